package maillog

import "testing"

// TestHostsInOneLog: a syslog host writes the lines of two mail hosts into one file. Queue ids and repetitions are each
// host's own.
func TestHostsInOneLog(t *testing.T) {
	p := New(Options{Seed: 7})
	var e Event
	parse := func(line string) string {
		if !p.Parse([]byte("Mar  2 10:00:00 "+line), corpusRef, &e) {
			return ""
		}
		return e.Kind.String() + " " + e.Source.String()
	}
	for _, c := range [][2]string{
		// the same short queue id on both
		{"mx1 postfix/smtpd[7]: 3A1B2C3D4E: client=a.example.net[192.0.2.1]", ""},
		{"mx2 postfix/smtpd[7]: 3A1B2C3D4E: client=b.example.net[192.0.2.2]", ""},
		{"mx1 postfix/qmgr[8]: 3A1B2C3D4E: from=<s@example.net>, size=1, nrcpt=1 (queue active)", "delivered 192.0.2.1"},
		{"mx2 postfix/qmgr[8]: 3A1B2C3D4E: from=<s@example.net>, size=1, nrcpt=1 (queue active)", "delivered 192.0.2.2"},
		// the same process number before a proxy filter
		{"mx1 postfix/smtpd[9]: NOQUEUE: client=a.example.net[192.0.2.1]", ""},
		{"mx2 postfix/smtpd[9]: NOQUEUE: client=b.example.net[192.0.2.2]", ""},
		{"mx1 postfix/smtpd[9]: proxy-accept: END-OF-MESSAGE: 250 2.0.0 Ok; from=<s@example.net> to=<r@example.org> proto=ESMTP helo=<h>", "delivered 192.0.2.1"},
		// the last message of the other one was another
		{"mx1 postfix/smtpd[7]: warning: non-SMTP command from unknown[198.18.0.1]: GET / HTTP/1.1", "protocol_error 198.18.0.1"},
		{"mx2 last message repeated 9 times", ""},
		{"mx1 postfix/smtpd[7]: warning: non-SMTP command from unknown[198.18.0.1]: GET / HTTP/1.1", "protocol_error 198.18.0.1"},
		{"mx1 last message repeated 9 times", "protocol_error 198.18.0.1"},
		// OpenSMTPD's sessions
		{"mx1 smtpd[7]: 1234567890abcdef smtp connected address=198.18.0.3 host=h", "connect 198.18.0.3"},
		{"mx2 smtpd[7]: 1234567890abcdef smtp connected address=198.18.0.4 host=h", "connect 198.18.0.4"},
		{"mx1 smtpd[7]: 1234567890abcdef smtp bad-input result=\"500 5.5.1 Invalid command: Pipelining error\"", "protocol_error 198.18.0.3"},
	} {
		if got := parse(c[0]); got != c[1] {
			t.Errorf("%s: %q, want %q", c[0], got, c[1])
		}
	}
}
