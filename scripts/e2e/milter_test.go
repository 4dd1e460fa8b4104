package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mxshield/mxshield/scripts/lab"
)

// serveMilter is the least that Sendmail takes for a milter (its protocol version 2): it refuses recipients and messages that
// name words of verdicts, as a reply to be given, or throws them away.
func serveMilter(c net.Conn, verdicts map[string]string) {
	defer c.Close()
	in := bufio.NewReader(c)
	answer := func(b string) bool {
		_, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
		return err == nil
	}
	verdict := func(b []byte) string {
		for word, reply := range verdicts {
			switch {
			case !bytes.Contains(b, []byte(word)):
			case reply == "": // taken, and thrown away
				return "d"
			default:
				return "y" + reply + "\x00"
			}
		}
		return "c"
	}
	var body []byte
	for {
		var head [4]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(head[:])
		if n == 0 || n > 1<<20 {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(in, b); err != nil {
			return
		}
		reply := "c"
		switch b[0] {
		case 'O': // options: version 2, no changes, every step
			reply = "O" + string([]byte{0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0})
		case 'D': // macros
			continue
		case 'A': // abort
			body = nil
			continue
		case 'Q':
			return
		case 'R':
			reply = verdict(b)
		case 'B':
			body = append(body, b[1:]...)
		case 'E':
			reply, body = verdict(append(body, b[1:]...)), nil
		}
		if !answer(reply) {
			return
		}
	}
}

// TestSendmailMilter: what a milter refuses at the end of a message, or of its recipients, is held against its source, though
// Sendmail has logged the message by then.
func TestSendmailMilter(t *testing.T) {
	d := daemon{name: "sendmail", kind: lab.KindSendmail, log: syslogLog, o: lab.Options{Syslog: "iso",
		Extra: "INPUT_MAIL_FILTER(`lab', `S=inet:8893@127.0.0.1, F=T, T=C:10s;S:10s;R:10s;E:10s')dnl\n"}}
	r := d.rig(t)
	r.serveAt("127.0.0.1:8893", func(c net.Conn) {
		serveMilter(c, map[string]string{
			"buy-this": "550 5.7.1 Blocked by SpamAssassin", "later-please": "451 4.7.1 Greylisting in action",
			"user1@": "550 5.1.1 <user1@example.org>... User unknown", "virus": "",
		})
	})
	src := lab.Sources(lab.Attack4, 5)
	send := func(i int, lines ...string) string {
		t.Helper()
		lines = append(append([]string{"EHLO x", "MAIL FROM:<a@example.net>"}, lines...), "QUIT")
		replies := lab.Converse(t.Context(), r.top.Net, src[i], mx, lab.Talk{}, lines)
		if len(replies) != len(lines) && len(replies) != len(lines)+1 {
			t.Fatalf("replies to %q: %q", lines, replies)
		}
		return replies[len(replies)-2]
	}
	message := func(i int, text string) string {
		t.Helper()
		return send(i, "RCPT TO:<user2@example.org>", "DATA", "Subject: x\r\n\r\n"+text+"\r\n.")
	}
	for range 12 { // spam and nothing else, which the lines that look like deliveries must not outweigh
		if got := message(4, "buy-this now"); !strings.HasPrefix(got, "550 5.7.1") {
			t.Errorf("the client got %q", got)
		}
	}
	for _, c := range []struct{ got, want string }{
		{message(0, "buy-this now"), "550 5.7.1"},
		{message(0, "hello"), "250 "},
		{message(1, "later-please"), "451 4.7.1"},
		{message(3, "a virus"), "250 "},
		{send(2, "RCPT TO:<user1@example.org>"), "550 5.1.1"},
	} {
		if !strings.HasPrefix(c.got, c.want) {
			t.Errorf("the client got %q, want %s", c.got, c.want)
		}
	}
	r.eventually("the last message is logged", func() bool {
		b, err := os.ReadFile(r.mta.LogPath())
		return err == nil && bytes.Contains(b, []byte(", nrcpts=0, "))
	})
	got := replayed(t, r.mta.LogPath())
	for i, want := range []map[string]int{
		{"delivered": 2, "spam_reject": 1}, // the line of the message comes before its refusal, which takes it back
		{"delivered": 1, "greylisted": 1},
		{"unknown_recipient": 1},
		{"delivered": 1, "other": 1},
		{"delivered": 12, "spam_reject": 12},
	} {
		if !maps.Equal(got[src[i]], want) {
			t.Errorf("%s: %v, want %v", src[i], got[src[i]], want)
		}
	}
	out, err := exec.CommandContext(t.Context(), filepath.Join(binaries, "mxshield-agent"), "replay", "-o", "json", r.mta.LogPath()).Output()
	if err != nil || bytes.Count(out, []byte(`"prefix"`)) != 1 || !bytes.Contains(out, fmt.Appendf(nil, `"prefix":"%s/32","cause":"protocol_abuse"`, src[4])) {
		t.Errorf("replay: %v\n%s", err, out)
	}
}
