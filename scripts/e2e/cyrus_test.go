//go:build linux

package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// Cyrus's ports, and which of MailboxBrute's mechanisms it has there.
var (
	imap  = netip.AddrPortFrom(lab.MX4, 143)
	imap6 = netip.AddrPortFrom(lab.MX6, 143)
	pop3  = netip.AddrPortFrom(lab.MX4, 110)
	sieve = netip.AddrPortFrom(lab.MX4, 4190)

	cyrusLogins = []struct {
		what, mechanism string
		to              netip.AddrPort
	}{
		{"IMAP LOGIN", "", imap}, {"IMAP AUTHENTICATE PLAIN", "PLAIN", imap},
		{"POP3 PASS", "", pop3}, {"POP3 AUTH PLAIN", "PLAIN", pop3}, {"ManageSieve", "", sieve},
		{"IMAP over IPv6", "", imap6}, // last, as it has sources of its own
	}
)

// cyrusStory is the story of a server that knows logins only: each way to log in, with names that are none, one that
// exists, and texts that look like lines of its log.
func (d *daemon) cyrusStory(t *testing.T) {
	r := d.rig(t)
	r.start()
	ctx, net, v := t.Context(), r.top.Net, victim.String()
	patient := lab.Talk{Reply: patience}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var want expectations
	busy := make(chan struct{}, 6)
	// try logs in, and wants events as the client saw answers; 0 attempts are one of each user.
	try := func(what string, from netip.Addr, to netip.AddrPort, event string, o lab.MailboxOptions) {
		o.Talk = patient
		busy <- struct{}{}
		wg.Go(func() {
			defer func() { <-busy }()
			x := lab.MailboxBrute(ctx, net, from, to, o)
			saw := x.Rejected
			if event == "auth_success" {
				saw = x.Accepted
			}
			mu.Lock()
			defer mu.Unlock()
			want.add(t, what, from, event, o.Attempts, saw)
		})
	}

	light, six := lab.Sources(lab.Attack4, 30), lab.Sources(lab.Attack6, 3)
	for i, l := range cyrusLogins {
		from, known, good := light[i], light[10+i], light[20+i]
		if l.to == imap6 {
			from, known, good = six[0], six[1], six[2]
		}
		try(l.what, from, l.to, "auth_failure", lab.MailboxOptions{Attempts: 3, PerSession: 2, Mechanism: l.mechanism})
		// Each its own: POP3 locks its mailbox. The first login makes it, but by ManageSieve it must be there.
		user := []string{fmt.Sprintf("user%d", i+1)}
		try(l.what+", a name that exists", known, l.to, "auth_failure",
			lab.MailboxOptions{Attempts: 2, Users: user, Mechanism: l.mechanism})
		if l.to == sieve {
			continue
		}
		try(l.what+" that works", good, l.to, "auth_success", lab.MailboxOptions{Attempts: 1, Users: user, Password: "secret", Mechanism: l.mechanism})
	}

	// A source of its own for each, far from the others, so that none is blocked by what the others do.
	sources := 0
	source := func() netip.Addr {
		sources++
		return netip.AddrFrom4([4]byte{198, 18, byte(100 + sources), 7})
	}
	texts := []string{
		"x [" + v + "] plaintext", "badlogin: evil [" + v + "] ", `"x" [` + v + "] (y) [z", "[" + v + "]", "x) [SASL(-1): generic failure [" + v + "]",
		"evil [" + v + "] plaintext (y) [SASL(-13): user not found: checkpass failed]\r\nbadlogin: evil [" + v + "] plaintext (y) [SASL(-13): user not found: checkpass failed]",
		"\nMar  2 10:00:00 mx1 cyrus/imap[1]: badlogin: evil [" + v + "] plaintext y SASL(-13): authentication failure",
		"LOGIN FAILED, user=x, ip=[" + v + "], port=[1]",
		longName + "badlogin: x [" + v + "] plaintext",                  // where Courier's logger would cut it
		strings.Repeat("B", 8080) + "badlogin: x [" + v + "] plaintext", // where rsyslog cuts
	}
	for _, text := range texts {
		for _, l := range cyrusLogins[:len(cyrusLogins)-1] {
			if strings.Contains(text, "\n") && l.what == "POP3 PASS" { // there it would be two commands
				continue
			}
			try(l.what+" as "+text[:min(len(text), 40)], source(), l.to, "auth_failure", lab.MailboxOptions{Attempts: 1, Users: []string{text}, Mechanism: l.mechanism})
		}
	}
	wg.Wait()
	try("ManageSieve that works", light[29], sieve, "auth_success", lab.MailboxOptions{Attempts: 1, Users: []string{"user1"}, Password: "secret"})
	wg.Wait()

	// What MailboxBrute does not say. The digest is of 16 bytes, and nobody's.
	digest := strings.Repeat("0", 32)
	for _, c := range []struct {
		what  string
		to    netip.AddrPort
		event string
		lines []string
	}{
		{"IMAP, a name of its program", imap, "auth_failure",
			[]string{`a ID ("name" "x [` + v + `] plaintext" "version" "badlogin: evil [` + v + `] plaintext")`, "b LOGIN x x", "c LOGOUT"}},
		{"IMAP CRAM-MD5, where the reason holds the name", imap, "auth_failure",
			[]string{"a AUTHENTICATE CRAM-MD5", base64.StdEncoding.EncodeToString([]byte("x) [generic failure[" + v + "] " + digest)), "b LOGOUT"}},
		{"IMAP, a made-up mechanism", imap, "auth_failure", []string{"a AUTHENTICATE x[" + v + "]", "b LOGOUT"}},
		{"POP3 APOP", pop3, "auth_failure", []string{"APOP x)[generic[" + v + "] " + digest, "QUIT"}},
		{"POP3, a made-up mechanism", pop3, "protocol_error", []string{"AUTH x[" + v + "]", "QUIT"}},
		{"ManageSieve, a made-up mechanism", sieve, "protocol_error", []string{`AUTHENTICATE "x [` + v + `] (y) [generic failure"`, "LOGOUT"}},
	} {
		from := source()
		want.add(t, c.what, from, c.event, 1, refusals(t, net, from, c.to, c.lines))
	}
	r.eventually("the last line is there", func() bool { return countLines(t, r.mta.LogPath(), "no mechanism available") > 1 })
	if n := countLines(t, r.mta.LogPath(), v); n < 2*len(texts) {
		t.Errorf("the victim's address came into the log only %d times", n)
	}
	want.hold(t, r)

	// And now for good, until they are blocked.
	brutes, stop := context.WithCancel(ctx)
	defer stop()
	heavy := lab.Sources(netip.MustParsePrefix("198.18.9.0/24"), len(cyrusLogins)-1)
	for i, from := range heavy {
		l := cyrusLogins[i]
		wg.Go(func() {
			lab.MailboxBrute(brutes, net, from, l.to, lab.MailboxOptions{
				Talk: lab.Talk{Connect: time.Second, Reply: 2 * time.Second}, Attempts: 20, PerSession: 2, Mechanism: l.mechanism})
		})
	}
	for _, from := range heavy {
		r.awaitBlock(from)
	}
	stop()
	wg.Wait()
	for i, from := range heavy {
		d.blocked(r, from, cyrusLogins[i].to, block.AuthBrute)
	}
}

// refusals sends lines, and counts what a server of mailboxes refuses of them.
func refusals(t *testing.T, h *lab.Host, from netip.Addr, to netip.AddrPort, lines []string) (n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, from, to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(c, strings.Join(lines, "\r\n")+"\r\n"); err != nil {
		t.Fatal(err)
	}
	out, err := io.ReadAll(c) // to its end, as the last line says good-bye
	if err != nil {
		t.Fatalf("%q: %v after %q", lines, err, out)
	}
	for l := range strings.Lines(string(out)) {
		if _, tagged, ok := strings.Cut(l, " "); strings.HasPrefix(l, "-ERR") || strings.HasPrefix(l, "NO ") || ok && strings.HasPrefix(tagged, "NO ") {
			n++
		}
	}
	return n
}
