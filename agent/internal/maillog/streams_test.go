package maillog

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// feed gives lines to the parser as those of one log, and adds up what counts.
func feed(t *testing.T, p *Parser, name string, lines ...string) (sum map[Kind]int) {
	t.Helper()
	sum = map[Kind]int{}
	p.Switch(name, Auto)
	var e Event
	for _, l := range lines {
		if p.Parse([]byte(l), corpusRef, &e) {
			sum[e.Kind] += e.Count
		}
	}
	return sum
}

const (
	failedSMTPD   = "Mar  2 10:00:01 mx postfix/submission/smtpd[7]: warning: unknown[192.0.2.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user@example.org"
	failedAuth    = "Mar 02 10:00:01 auth: Info: passwd-file(user@example.org,192.0.2.1): Password mismatch"
	failedQuit    = "Mar  2 10:00:02 mx postfix/submission/smtpd[7]: disconnect from unknown[192.0.2.1] ehlo=1 auth=0/1 quit=1 commands=2/3"
	eximUnknown   = "2026-03-02 10:00:01 H=(h) [192.0.2.1]:4711 F=<a@example.net> rejected RCPT <b@example.org>: Unrouteable address"
	postfixReject = "Mar  2 10:00:01 mx postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[192.0.2.1]: 550 5.1.1 <a@example.org>: Recipient address rejected: User unknown in local recipient table; from=<b@example.net> to=<a@example.org> proto=ESMTP helo=<h>"
	repeated4     = "Mar  2 10:00:05 mx last message repeated 4 times"
)

// TestOneLoginInTwoLogs: Postfix and Dovecot tell of one failed login in two logs, in any order of reading. It counts once,
// over a restart too.
func TestOneLoginInTwoLogs(t *testing.T) {
	type part struct{ log, line string }
	parts := []part{{"mail.log", failedSMTPD}, {"dovecot.log", failedAuth}, {"mail.log", failedQuit}}
	for _, order := range [][]int{{0, 1, 2}, {1, 0, 2}, {0, 2, 1}} {
		for _, restart := range []bool{false, true} {
			p, n := New(Options{Seed: 7, Several: true}), 0
			for _, i := range order {
				n += feed(t, p, parts[i].log, parts[i].line)[AuthFailure]
				if restart {
					b := p.Pending()
					p = New(Options{Seed: 7, Several: true})
					if err := p.Restore(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			if n != 1 {
				t.Errorf("order %v, restarts %v: counted %d times", order, restart, n)
			}
		}
	}
}

// TestRepeatedIsOfItsLog: "last message repeated" is about the line before it in its own log.
func TestRepeatedIsOfItsLog(t *testing.T) {
	p := New(Options{Seed: 7})
	feed(t, p, "a", postfixReject)
	if n := feed(t, p, "b", repeated4); len(n) != 0 {
		t.Errorf("of another log: %v", n)
	}
	b := p.Pending()
	if n := feed(t, p, "a", repeated4)[UnknownRecipient]; n != 4 {
		t.Errorf("of its own: %d", n)
	}
	q := New(Options{Seed: 7})
	if err := q.Restore(b); err != nil {
		t.Fatal(err)
	}
	if n := feed(t, q, "b", repeated4); len(n) != 0 {
		t.Errorf("of another log, after a restart: %v", n)
	}
	if n := feed(t, q, "a", repeated4)[UnknownRecipient]; n != 4 {
		t.Errorf("of its own, after a restart: %d", n)
	}
}

// TestEximMainAndReject: what Exim writes to its main and its reject log counts once; what it writes twice to each, twice.
func TestEximMainAndReject(t *testing.T) {
	for _, n := range []int{1, 2, 40} {
		p := New(Options{Seed: 7, Several: true})
		sum := 0
		for range n {
			sum += feed(t, p, "mainlog", eximUnknown)[UnknownRecipient]
		}
		b := p.Pending()
		p = New(Options{Seed: 7, Several: true})
		if err := p.Restore(b); err != nil {
			t.Fatal(err)
		}
		for range n {
			sum += feed(t, p, "rejectlog", eximUnknown)[UnknownRecipient]
		}
		if sum != n {
			t.Errorf("%d refusals in both logs count %d", n, sum)
		}
		if more := feed(t, p, "rejectlog", eximUnknown)[UnknownRecipient]; more != 1 {
			t.Errorf("one that only the reject log has counts %d", more)
		}
	}
	// One log far ahead of the other: what was read at start-up.
	p, sum := New(Options{Seed: 7, Several: true}), 0
	var lines []string
	for i := range 30_000 {
		at := time.Date(2026, 3, 2, 8, 0, i/10, 0, time.UTC)
		lines = append(lines, fmt.Sprintf("%s H=(h) [198.18.%d.%d]:4711 F=<a@example.net> rejected RCPT <b%d@example.org>: Unrouteable address", at.Format(time.DateTime), i%50, i%201, i))
	}
	sum += feed(t, p, "mainlog", lines...)[UnknownRecipient]
	sum += feed(t, p, "rejectlog", lines...)[UnknownRecipient]
	if sum != len(lines) {
		t.Errorf("%d refusals count %d", len(lines), sum)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	p := New(Options{Seed: 7})
	for i := range 3 * maxStreams {
		feed(t, p, fmt.Sprint(i), postfixReject)
	}
	if len(p.streams) > maxStreams {
		t.Errorf("%d logs remembered", len(p.streams))
	}
}

func TestSwitchDoesNotAllocate(t *testing.T) {
	p := New(Options{Seed: 7, Several: true})
	feed(t, p, "a", eximUnknown, failedAuth)
	feed(t, p, "b", eximUnknown, failedAuth)
	lines := [][]byte{[]byte(eximUnknown), []byte(failedAuth), []byte(failedSMTPD)}
	var e Event
	if n := testing.AllocsPerRun(100, func() {
		for _, s := range []string{"a", "b"} {
			p.Switch(s, Auto)
			for _, l := range lines {
				p.Parse(l, corpusRef, &e)
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzState: what stands behind the entries of Pending. Whatever is taken makes the same bytes again.
func FuzzState(f *testing.F) {
	p := New(Options{Several: true})
	empty := p.appendState(nil)
	f.Add(empty)
	var e Event
	for _, name := range []string{"mail.log", "dovecot.log"} {
		p.Switch(name, Auto)
		for _, l := range []string{failedSMTPD, failedAuth, postfixReject, "Mar  2 10:00:01 mx exim[9]: H=(h) [192.0.2.1]:4711 F=<a@example.net> rejected RCPT <b@example.org>: Unrouteable address"} {
			p.Parse([]byte(l), corpusRef, &e)
		}
	}
	if b := p.appendState(nil); len(b) < len(empty)+loginBytes+twiceBytes+2*streamBytes {
		f.Fatalf("%d bytes", len(b))
	} else {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := readState(b)
		if !ok {
			return
		}
		p := New(Options{})
		p.restoreState(&s)
		one := p.appendState(nil)
		if s, ok = readState(one); !ok {
			t.Fatal("its own bytes are refused")
		}
		q := New(Options{})
		q.restoreState(&s)
		if two := q.appendState(nil); !bytes.Equal(one, two) {
			t.Errorf("%x, then %x", one, two)
		}
		for _, st := range q.streams {
			if st.last.Source == (netip.Addr{}) || st.last.Source.Is4In6() {
				t.Errorf("source %v", st.last.Source)
			}
		}
	})
}
