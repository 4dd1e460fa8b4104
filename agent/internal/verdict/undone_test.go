package verdict

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// milterDay reads what Sendmail logs of messages that come from one host every so often: some are refused at their end, or thrown
// away, which a line says that follows the one that looks like a delivery. It returns how many went by before the verdict,
// -1 if there was none.
func milterDay(t *testing.T, s *Scorer, messages int, every time.Duration, end func(i int) string) int {
	t.Helper()
	p := maillog.New(maillog.Options{Recipients: true})
	now := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
	found := -1
	say := func(i int, format string, a ...any) {
		t.Helper()
		line := fmt.Appendf(nil, "%s mx1 sm-mta[4711]: 622A%06d012345: %s", now.Format("2006-01-02T15:04:05Z"), i, fmt.Sprintf(format, a...))
		var e maillog.Event
		if p.Parse(line, now, &e) {
			if _, ok := s.Observe(&e, now); ok && found < 0 {
				found = i + 1
			}
		}
	}
	for i := range messages {
		now = now.Add(every)
		say(i, "from=<s@example.com>, size=25, class=0, nrcpts=1, msgid=<%d@example.com>, proto=ESMTP, daemon=MTA-v4, relay=[192.0.2.230]", i)
		if refusal := end(i); refusal != "" {
			say(i, "%s", "Milter: data, "+refusal)
			say(i, "to=<user%d@example.org>, delay=00:00:00, pri=30025, stat=%s", i, refusal)
		} else {
			say(i, "to=<user%d@example.org>, delay=00:00:00, xdelay=00:00:00, mailer=local, pri=30493, dsn=2.0.0, stat=Sent", i)
		}
	}
	return found
}

// TestUndone: a message of which Sendmail's filter says that it is spam after Sendmail has logged it is an offence and no credit:
// not at the moment, not later, and not for a share of the mail.
func TestUndone(t *testing.T) {
	const spam = "reject=550 5.7.1 Blocked by SpamAssassin"
	other := maillog.Event{Kind: maillog.Delivered, Source: netip.MustParseAddr("192.0.2.7"), Count: 1}
	for _, c := range []struct {
		name     string
		messages int
		every    time.Duration
		end      func(i int) string
		want     int
	}{
		{"spam and nothing else", 200, 20 * time.Second, func(int) string { return spam }, 11}, // the score fades meanwhile
		{"spam, after a day of messages that were thrown away", 200, 7 * time.Minute, func(i int) string {
			if i < 190 {
				return "discard"
			}
			return spam
		}, -1},
		{"spam at once, after as many thrown away", 200, 20 * time.Second, func(i int) string {
			if i < 180 {
				return "discard"
			}
			return spam
		}, 191},
		{"spam, all of a small host's mail", 400, 3 * time.Minute, func(int) string { return spam }, 12},
		{"a forwarder of which a tenth is spam", 400, 20 * time.Second, func(i int) string {
			if i%10 == 9 {
				return spam
			}
			return ""
		}, -1},
		{"greylisted by the filter", 400, 20 * time.Second, func(i int) string {
			if i%2 == 0 {
				return "reject=451 4.7.1 Greylisting in action"
			}
			return ""
		}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(DefaultConfig())
			s.Observe(&other, time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC))
			if got := milterDay(t, s, c.messages, c.every, c.end); got != c.want {
				t.Errorf("verdict at message %d, want %d", got, c.want)
			}
		})
	}
	// What was undone leaves nothing: neither credit nor a share.
	s := New(DefaultConfig())
	milterDay(t, s, 100, 4*time.Minute, func(int) string { return "discard" })
	a, ok := s.Lookup(netip.MustParseAddr("192.0.2.230"), time.Date(2026, 3, 2, 6, 45, 0, 0, time.UTC))
	if !ok || a.Evidence.Accepted != 0 {
		t.Errorf("account %+v", a)
	}
	for i := range s.share.hours {
		if h := &s.share.hours[i]; h.total != 0 || h.n != 0 {
			t.Errorf("hour %d: %d messages of %d sources", i, h.total, h.n)
		}
	}
}

// TestUndoneLater: Postfix's filter needs its time, and ten messages are on their way at once. What it keeps of another host's
// forgives that one's protocol errors when it is delivered.
func TestUndoneLater(t *testing.T) {
	p, s := maillog.New(maillog.Options{Recipients: true}), New(DefaultConfig())
	now := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	blocked := map[netip.Addr]int{}
	say := func(i int, format string, a ...any) {
		t.Helper()
		line := fmt.Appendf(nil, "%s mx1 postfix/%s", now.Format("2006-01-02T15:04:05Z"), fmt.Sprintf(format, a...))
		var e maillog.Event
		if p.Parse(line, now, &e) {
			if _, ok := s.Observe(&e, now); ok {
				blocked[e.Source] = i
			}
		}
	}
	const flight = 10
	for i := range 200 {
		now = now.Add(time.Second)
		for n, from := range []string{"192.0.2.1", "192.0.2.2"} {
			say(i, "smtpd[7]: 4E%08d%d: client=unknown[%s]", i, n, from)
			say(i, "qmgr[7]: 4E%08d%d: from=<a@example.net>, size=1, nrcpt=1 (queue active)", i, n)
			reply := "250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 4E0000000099"
			if n == 0 {
				reply = "250 2.7.0 Ok, discarded, id=00073-02 - spam"
			} else if i%2 == 0 {
				say(i, "smtpd[7]: warning: non-SMTP command from unknown[%s]: Subject: x", from)
			}
			if old := i - flight; old >= 0 {
				say(i, "smtp[7]: 4E%08d%d: to=<user%d@example.org>, relay=127.0.0.1[127.0.0.1]:10024, delay=9, delays=1/0/0/8, dsn=2.0.0, status=sent (%s)", old, n, old, reply)
			}
		}
	}
	spammer := netip.MustParseAddr("192.0.2.1")
	// Ten offences, and one and a half for each message that is on its way then.
	if at, ok := blocked[spammer]; !ok || at > flight+10+flight*3/2 || len(blocked) != 1 {
		t.Errorf("blocked at message %v", blocked)
	}
}

// TestShareDrop: of several sources one is taken back, whichever of them, and the others stay as they were.
func TestShareDrop(t *testing.T) {
	const at = 1_000_000
	for gone := range 3 {
		var h share
		for i := range 3 {
			h.add(key{1, uint64(i)}, uint32(i+1), at, at)
		}
		for range gone + 1 {
			h.drop(key{1, uint64(gone)}, at, at)
		}
		h.drop(key{1, uint64(gone)}, at, at) // has none
		h.drop(key{1, 9}, at, at)            // never had one
		h.drop(key{1, 2}, at+7200, at+7200)  // not in that hour
		for i := range 3 {
			want := uint32(i + 1)
			if i == gone {
				want = 0
			}
			if v := h.of(key{1, uint64(i)}, at); v.mine != want || v.total != 6-uint32(gone+1) {
				t.Errorf("%d gone: %d has %+v", gone, i, v)
			}
		}
		h.add(key{1, uint64(gone)}, 5, at, at)
		if v := h.of(key{1, uint64(gone)}, at); v.mine != 5 {
			t.Errorf("%d again: %+v", gone, v)
		}
	}
}
