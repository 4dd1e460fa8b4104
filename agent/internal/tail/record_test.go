package tail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

const someCursor = "s=aa5d661adee7435abea9033bde357fba;i=3;b=eb9d18c88ec94262a4fd1e5c5b857de2;m=31170de6;t=660d4c55c8fb2;x=36e846a2247fd1da"

// object makes what journalctl -o json writes.
func object(fields ...any) string {
	m := map[string]any{"__CURSOR": someCursor, "__REALTIME_TIMESTAMP": "1795316820774834", "_UID": "0",
		"_HOSTNAME": "mx1", "_PID": "4711", "SYSLOG_IDENTIFIER": "postfix/smtpd", "MESSAGE": "hello"}
	for i := 0; i < len(fields); i += 2 {
		if fields[i+1] == nil {
			delete(m, fields[i].(string))
		} else {
			m[fields[i].(string)] = fields[i+1]
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		panic(err)
	}
	return string(b) + "\n"
}

func TestDecodeRecord(t *testing.T) {
	const at = "2026-11-22T03:07:00.774834Z "
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	for _, c := range []struct {
		in   string
		want string // "" if there is none
		uid  int64
	}{
		{object(), at + "mx1 postfix/smtpd[4711]: hello", 0},
		{object("_UID", "108"), at + "mx1 postfix/smtpd[4711]: hello", 108},
		{object("_UID", nil), at + "mx1 postfix/smtpd[4711]: hello", -1},
		{object("_UID", "-1"), at + "mx1 postfix/smtpd[4711]: hello", -1},
		{object("_UID", "4294967296"), at + "mx1 postfix/smtpd[4711]: hello", -1},
		{object("_UID", raw(`["0","65534"]`)), at + "mx1 postfix/smtpd[4711]: hello", 0}, // cannot be: journald adds it
		{object("_UID", nil, "_uid", "0", "UID", "0"), at + "mx1 postfix/smtpd[4711]: hello", -1},
		{object("MESSAGE", "a\nb\r\nc\td\x00\x1b[31m\x7f"), at + "mx1 postfix/smtpd[4711]: a b  c d??[31m?", 0},
		{object("MESSAGE", raw(`[104, 105,255,10,0]`)), at + "mx1 postfix/smtpd[4711]: hi\xff ?", 0},
		{object("MESSAGE", raw(`["first","second"]`)), at + "mx1 postfix/smtpd[4711]: first", 0},
		{object("MESSAGE", raw(`[[104,105],"second"]`)), at + "mx1 postfix/smtpd[4711]: hi", 0},
		{object("MESSAGE", raw(`[]`)), at + "mx1 postfix/smtpd[4711]: ", 0},
		{object("MESSAGE", ""), at + "mx1 postfix/smtpd[4711]: ", 0},
		{object("SYSLOG_RAW", "<22>Nov 22 03:07:00 imapd: hello   "), at + "mx1 postfix/smtpd[4711]: hello   ", 0},
		{object("SYSLOG_RAW", raw(`[104,105,32,32,10,0]`)), at + "mx1 postfix/smtpd[4711]: hello  ", 0},
		{object("SYSLOG_RAW", "   "), at + "mx1 postfix/smtpd[4711]: hello   ", 0},
		{object("SYSLOG_RAW", "hello\n"), at + "mx1 postfix/smtpd[4711]: hello", 0},
		{object("SYSLOG_RAW", raw("null")), at + "mx1 postfix/smtpd[4711]: hello", 0},
		{object("SYSLOG_RAW", strings.Repeat(" ", maxLine)), "", 0},
		{object("MESSAGE", raw(`[[[104]]]`)), "", 0},
		{object("MESSAGE", raw(`[256]`)), "", 0},
		{object("MESSAGE", raw(`[-1]`)), "", 0},
		{object("MESSAGE", raw(`{"a":1}`)), "", 0},
		{object("MESSAGE", raw(`null`)), "", 0},
		{object("MESSAGE", nil), "", 0},
		{object("MESSAGE", strings.Repeat("x", maxLine+1)), "", 0},
		{object("SYSLOG_IDENTIFIER", "postfix/smtpd[1]: connect from x[192.0.2.1]\n2026"),
			at + "mx1 postfix/smtpd_1___connect_from_x_192.0.2.1__2026[4711]: hello", 0},
		{object("SYSLOG_IDENTIFIER", strings.Repeat("i", 1000)), at + "mx1 " + strings.Repeat("i", identMax) + "[4711]: hello", 0},
		{object("SYSLOG_IDENTIFIER", nil), at + "mx1 unknown[4711]: hello", 0},
		{object("SYSLOG_IDENTIFIER", nil, "_COMM", "smtpd"), at + "mx1 smtpd[4711]: hello", 0},
		{object("_PID", nil, "SYSLOG_PID", "5]: x"), at + "mx1 postfix/smtpd: hello", 0},
		{object("_PID", nil, "SYSLOG_PID", "5"), at + "mx1 postfix/smtpd[5]: hello", 0},
		{object("_HOSTNAME", "a b:c\n"), at + "a_b_c_ postfix/smtpd[4711]: hello", 0},
		{object("_HOSTNAME", nil), at + "localhost postfix/smtpd[4711]: hello", 0},
	} {
		r, err := decodeRecord([]byte(c.in))
		if string(r.line) != c.want || r.uid != c.uid || r.cursor != someCursor || (err == nil) != (c.want != "") {
			t.Errorf("%s\n got %q uid %d, %v\nwant %q uid %d", c.in, r.line, r.uid, err, c.want, c.uid)
		}
	}
	for _, in := range []string{"", "{", "null", "[]", "{}", object() + object(), object("__CURSOR", nil), object("__CURSOR", "a b"),
		object("__CURSOR", strings.Repeat("x", maxCursor+1)), object("__REALTIME_TIMESTAMP", nil), object("__REALTIME_TIMESTAMP", "-1"),
		object("__REALTIME_TIMESTAMP", "9223372036854775807"), object("MESSAGE", strings.Repeat("x", maxRecord)), strings.Repeat("[", 1<<16)} {
		if r, err := decodeRecord([]byte(in)); !errors.Is(err, errRecord) || r.line != nil {
			t.Errorf("%.100q: %+v, %v", in, r, err)
		}
	}
}

var lineShape = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z [!-9;-Z\\^-~]{1,255} [!-9;-Z\\^-~]{1,64}(\[\d{1,10}\])?: [^\x00-\x1f\x7f]*$`)

func FuzzJournalRecord(f *testing.F) {
	for _, s := range []string{object(), object("MESSAGE", json.RawMessage(`[104,105,255,10,0]`)), object("MESSAGE", json.RawMessage("null")),
		object("MESSAGE", json.RawMessage(`[[1],"b"]`)), object("SYSLOG_IDENTIFIER", "a[1]: \n"), object("SYSLOG_RAW", "hello \t \n"), `{"__CURSOR":["a"]}`, "{"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			if r.line != nil {
				t.Errorf("a line and an error: %q, %v", r.line, err)
			}
			return
		}
		if !lineShape.Match(bytes.ToValidUTF8(r.line, []byte("?"))) || len(r.line) > maxLine+400 {
			t.Errorf("line %q", r.line)
		}
		if r.uid >= 0 { // only what stands under exactly this key
			var m map[string]any
			if json.Unmarshal(b, &m) != nil || m["_UID"] == nil {
				t.Errorf("uid %d from nowhere", r.uid)
			}
		}
		if _, err := decodeMark(mark{Time: r.time.UnixMicro(), Cursor: r.cursor}.encode()); err != nil {
			t.Errorf("mark: %v", err)
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add([]byte(`{"v":1,"time":5,"files":[{"dev":1,"ino":2,"off":3,"n":256,"head":"` + strings.Repeat("ab", headHex/2) + `"}]}`))
	f.Add(mark{Time: 7, Cursor: someCursor}.encode())
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`{"v":1,"files":[{"off":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeMark(b)
		if err != nil {
			if !errors.Is(err, errMark) {
				t.Errorf("error %v", err)
			}
			return
		}
		if len(m.Files) == 0 {
			m.Files = nil
		}
		again, err := decodeMark(m.encode())
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%s -> %s: %v", b, m.encode(), err)
		}
		for _, p := range m.Files {
			if p.Offset < 0 || p.N < 0 || p.N > headMax {
				t.Errorf("position %+v", p)
			}
		}
	})
}

func TestScan(t *testing.T) {
	in := "-- Boot 1 --\n" + object() + "{broken\n" + "{" + strings.Repeat("x", 10<<20) + "\n" + object("MESSAGE", "after") + `{"cut`
	var got []string
	scan(strings.NewReader(in), func(e entry) bool {
		got = append(got, fmt.Sprintf("%s|%v", e.record.line, errors.Is(e.err, errRecord) || errors.Is(e.err, errTooLong)))
		return true
	})
	if len(got) != 4 || !strings.HasSuffix(got[0], "hello|false") || got[1] != "|true" || got[2] != "|true" || !strings.HasSuffix(got[3], "after|false") {
		t.Errorf("%q", got)
	}
}

func TestSuppressed(t *testing.T) {
	const iso, old = "2026-01-31T12:00:00.000001+00:00 mx1 ", "Jan  1 12:00:00 mx1 "
	for line, want := range map[string]uint64{
		iso + "systemd-journald[321]: Suppressed 1432 messages from postfix@-.service":                             1432,
		old + "systemd-journald[321]: Suppressed 7 messages from postfix@-.service":                                7,
		old + "systemd-journal[321]: Suppressed 7 messages from /system.slice/postfix.service":                     7,
		iso + "rsyslogd: imuxsock[pid 4711]: begin to drop messages due to rate-limiting":                          1,
		iso + "rsyslogd-2177: imuxsock lost 60 messages from pid 12 due to rate-limiting":                          60,
		iso + "rsyslogd[9]: imjournal: 1432 messages lost due to rate-limiting (20000 allowed within 600 seconds)": 1432,
		iso + "rsyslogd: imuxsock lost 99999999999999999999999 messages from pid 12 due to rate-limiting":          1e9,
		iso + "rsyslogd: [origin software=\"rsyslogd\"] rsyslogd was HUPed":                                        0,
		iso + "systemd-journald[321]: Journal started":                                                             0,
		iso + "postfix/smtpd[1]: Suppressed 5 messages from x due to rate-limiting":                                0,
		iso + "postfix/smtpd[1]: connect from systemd-journald[1]: Suppressed 5 messages from postfix":             0,
		"systemd-journald[321]: Suppressed 5 messages":                                                             0,
		"": 0, "x": 0, "2026": 0, strings.Repeat("A", 400): 0, "Jan  1 12:00:00 ": 0, "Jan  1 12:00:00     ": 0,
	} {
		if n, hint := suppressed([]byte(line)); n != want || (n > 0) != (hint != "") {
			t.Errorf("%q: %d, %q", line, n, hint)
		}
	}
	var said syncBuffer
	w := suppressWatch{log: testLog(&said)}
	now := time.Unix(1e9, 0)
	line := []byte(iso + "systemd-journald[321]: Suppressed 10 messages from postfix@-.service")
	for i := range 61 {
		w.line(line, now.Add(time.Duration(i)*time.Second))
	}
	if s := said.String(); strings.Count(s, "RateLimitBurst=") != 2*1 && strings.Count(s, "\n") != 2 || !strings.Contains(s, "dropped=600") {
		t.Errorf("log:\n%s", s)
	}
}

func BenchmarkSuppressed(b *testing.B) {
	line := []byte(numberedLine(12345))
	b.ReportAllocs()
	for b.Loop() {
		suppressed(line)
	}
}

func BenchmarkDecodeRecord(b *testing.B) {
	line := []byte(object("MESSAGE", "NOQUEUE: reject: RCPT from unknown[198.18.0.1]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in local recipient table"))
	b.SetBytes(int64(len(line)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeRecord(line); err != nil {
			b.Fatal(err)
		}
	}
}
