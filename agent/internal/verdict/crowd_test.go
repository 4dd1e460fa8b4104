package verdict

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// who is some hash of a name.
func who(kind string, n int) uint64 {
	h := uint64(0xcbf29ce484222325)
	for _, c := range fmt.Sprint(kind, n) {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return max(1, (h^h>>29)*0x9fb21c651e98df25)
}

// brings lets a source bring mail of so many senders to so many recipients, over so many hours, and returns the time after.
func brings(s *Scorer, senders, rcpts, hours int, at time.Time) time.Time {
	n := max(senders, rcpts, hours)
	for i := range n {
		now := at.Add(time.Duration(i*hours/n) * time.Hour)
		s.Observe(&maillog.Event{Kind: maillog.Delivered, Source: src, Time: now, Count: 1, User: who("sender", i%senders)}, now)
		s.Observe(&maillog.Event{Kind: maillog.Recipient, Source: src, Time: now, Count: 1, User: who("rcpt", i%rcpts)}, now)
	}
	return at.Add(time.Duration(hours) * time.Hour)
}

// others makes sure that what src brings is no tenth of the mail.
func others(s *Scorer, at time.Time) {
	for i := range 40 {
		now := at.Add(time.Duration(i) * 20 * time.Minute)
		for j := range 100 {
			e := maillog.Event{Kind: maillog.Delivered, Source: netip.AddrFrom4([4]byte{100, 64, 1, byte(j)}), Time: now, Count: 1, User: who("other", j)}
			s.Observe(&e, now)
		}
	}
}

func attack(s *Scorer, k maillog.Kind, n int, gap time.Duration, at time.Time) (v Verdict, after int) {
	for i := range n {
		at = at.Add(gap)
		if v, ok := s.Observe(&maillog.Event{Kind: k, Source: src, Time: at, Count: 1, User: who("victim", i)}, at); ok {
			return v, i + 1
		}
	}
	return v, 0
}

// TestCrowd: what stands for many people is not blocked for one of them, and what only looks a little so is.
func TestCrowd(t *testing.T) {
	for _, c := range []struct {
		name                          string
		senders, rcpts, hours, logins int
		kind                          maillog.Kind
		blocked                       bool
	}{
		{"nobody", 1, 1, 1, 0, maillog.UnknownRecipient, true},
		{"many of each", 40, 40, 8, 0, maillog.UnknownRecipient, false},
		{"many of each, in three hours", 40, 40, 3, 0, maillog.UnknownRecipient, true},
		{"one sender domain", 1, 40, 8, 0, maillog.UnknownRecipient, true},
		{"one recipient", 40, 1, 8, 0, maillog.UnknownRecipient, true},
		{"ten people log in, one guesses passwords", 1, 1, 1, 10, maillog.AuthFailure, false},
		{"three people log in, one guesses passwords", 1, 1, 1, 3, maillog.AuthFailure, true},
		{"ten people log in, one guesses recipients on the MX port", 1, 1, 1, 10, maillog.UnknownRecipient, true},
		{"many of each, one guesses passwords", 40, 40, 8, 0, maillog.AuthFailure, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(DefaultConfig())
			others(s, t0)
			at := brings(s, c.senders, c.rcpts, c.hours, t0)
			for i := range c.logins {
				s.Observe(&maillog.Event{Kind: maillog.AuthSuccess, Source: src, Time: at, Count: 1, User: who("login", i)}, at)
			}
			store := shelf{}
			store.save(s)
			s = store.load(t, DefaultConfig())
			v, n := attack(s, c.kind, 3000, time.Second, at)
			if (n > 0) != c.blocked {
				t.Fatalf("blocked after %d: %+v", n, v)
			}
			var told string
			for _, n := range s.Notices(at.Add(time.Hour)) {
				told += n.Text
			}
			if strings.Contains(told, src.String()) == c.blocked {
				t.Errorf("notices: %q", told)
			}
			if !c.blocked && c.kind == maillog.UnknownRecipient {
				if a, _ := s.Lookup(src, at); !strings.Contains(a.Why(), "sender domains") {
					t.Errorf("why: %q", a.Why())
				}
			}
			// It is forgotten when it does not come again.
			later := at.Add(12 * 24 * time.Hour)
			brings(s, 1, 1, 1, later)
			if s.crowded(s.key(src), block.ScopeAll) {
				t.Error("remembered for two weeks")
			}
		})
	}
}

// TestCrowdIsBounded: a flood of senders with one message each takes no more room, and does not push a crowd out.
func TestCrowdIsBounded(t *testing.T) {
	s := New(DefaultConfig())
	at := brings(s, 40, 40, 8, t0)
	for i := range 200_000 {
		e := maillog.Event{Kind: maillog.Delivered, Source: netip.AddrFrom4([4]byte{100, byte(i >> 16), byte(i >> 8), byte(i)}), Time: at, Count: 1, User: who("x", i%100)}
		s.Observe(&e, at)
	}
	if !s.crowded(s.key(src), block.ScopeMX) || len(s.crowds.sets) != crowdSets {
		t.Errorf("crowd forgotten, or %d sets", len(s.crowds.sets))
	}
}

// TestPatience: who guesses slowly is found in a day, and those who only look so are not.
func TestPatience(t *testing.T) {
	for _, c := range []struct {
		name    string
		kind    maillog.Kind
		each    time.Duration
		names   int  // different ones
		first   bool // a message was accepted, or somebody logged in
		auto    bool
		blocked bool
	}{
		{"a recipient every ten minutes", maillog.UnknownRecipient, 10 * time.Minute, 1e6, false, false, true},
		{"a recipient every half hour", maillog.UnknownRecipient, 30 * time.Minute, 1e6, false, false, false},
		{"the same few recipients every ten minutes", maillog.UnknownRecipient, 10 * time.Minute, 5, false, false, false},
		{"a sender of ours, every ten minutes", maillog.UnknownRecipient, 10 * time.Minute, 1e6, true, false, false},
		{"callbacks every two minutes", maillog.UnknownRecipient, 2 * time.Minute, 1e6, false, true, false},
		{"a name every 25 minutes", maillog.AuthFailure, 25 * time.Minute, 1e6, false, false, true},
		{"a wrong saved password every five minutes", maillog.AuthFailure, 5 * time.Minute, 1, false, false, false},
		{"a family's every half hour", maillog.AuthFailure, 30 * time.Minute, 4, false, false, false},
		{"a name every 25 minutes from an office", maillog.AuthFailure, 25 * time.Minute, 1e6, true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, at, got := New(DefaultConfig()), t0, 0
			for i := range 3 * 24 * 60 / int(c.each/time.Minute) {
				at = at.Add(c.each)
				if c.first && i%20 == 0 {
					k := maillog.Delivered
					if c.kind == maillog.AuthFailure {
						k = maillog.AuthSuccess
					}
					s.Observe(&maillog.Event{Kind: k, Source: src, Time: at, Count: 1, User: who("own", 1)}, at)
				}
				e := maillog.Event{Kind: c.kind, Source: src, Time: at, Count: 1, User: who("name", i%c.names), Automatic: c.auto}
				if v, ok := s.Observe(&e, at); ok {
					got = i + 1
					t.Logf("after %v: %s, %s", at.Sub(t0), v.Cause, v.Evidence.Words())
					break
				}
				if i%7 == 0 { // over restarts
					store := shelf{}
					store.save(s)
					s = store.load(t, DefaultConfig())
				}
			}
			if (got > 0) != c.blocked {
				t.Errorf("blocked after %d", got)
			}
		})
	}
}

// TestBounces: what answers forged mail counts a tenth, unless it comes as fast as no bounces do, but for the first two.
func TestBounces(t *testing.T) {
	for gap, want := range map[time.Duration]int{100 * time.Millisecond: 12, 3 * time.Second: 103} {
		s, at := New(DefaultConfig()), t0
		for i := 1; ; i++ {
			at = at.Add(gap)
			_, ok := s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Time: at, Count: 1, User: who("n", i), Automatic: true}, at)
			if ok {
				if i < want-2 || i > want+2 {
					t.Errorf("one in %v: blocked after %d, want about %d", gap, i, want)
				}
				break
			}
			if i > 200 {
				t.Fatalf("one in %v: not blocked", gap)
			}
		}
	}
}

// TestOldCrowdsGiveWay: what came together weeks ago takes no place from those of today.
func TestOldCrowdsGiveWay(t *testing.T) {
	s := New(DefaultConfig())
	at := brings(s, 40, 40, 8, t0).Add(20 * 24 * time.Hour)
	for i := range 20_000 {
		e := maillog.Event{Kind: maillog.Delivered, Source: netip.AddrFrom4([4]byte{101, 1, byte(i >> 8), byte(i)}), Time: at, Count: 1, User: who("x", i%100)}
		s.Observe(&e, at)
	}
	if c, _ := s.crowd(s.key(src)); c != nil {
		t.Errorf("%+v", c)
	}
}

// TestTryAgain: what honest servers do with what is refused for now is no attack, and a dictionary at a host that refuses
// for now is one.
func TestTryAgain(t *testing.T) {
	for _, c := range []struct {
		name      string
		kind      maillog.Kind
		temporary bool
		names     int
		gap       time.Duration
		n         int
		blocked   bool
	}{
		{"a recipient again and again", maillog.UnknownRecipient, true, 1, time.Minute, 80, false},
		{"five recipients again and again", maillog.UnknownRecipient, true, 5, time.Minute, 40, false},
		{"a dictionary", maillog.UnknownRecipient, true, 1e6, time.Second, 11, true},
		{"a long dictionary", maillog.UnknownRecipient, true, 1e6, 2 * time.Minute, 40, true},
		{"four recipients for good, again and again", maillog.UnknownRecipient, false, 4, time.Minute, 200, false},
		{"eight recipients for good, again and again", maillog.UnknownRecipient, false, 8, time.Minute, 20, true},
		{"five recipients for good, hammering", maillog.UnknownRecipient, false, 5, time.Second, 20, true},
		{"twenty recipients for good, again and again", maillog.UnknownRecipient, false, 20, time.Minute, 20, true},
		{"two recipients we do not relay to, again and again", maillog.RelayDenied, true, 2, 5 * time.Minute, 40, false},
		{"two recipients we do not relay to, without a pause", maillog.RelayDenied, true, 2, time.Minute, 12, true},
		{"two recipients we do not relay to, for good", maillog.RelayDenied, false, 2, 5 * time.Minute, 6, true},
		{"one recipient we do not relay to, for good", maillog.RelayDenied, false, 1, 5 * time.Minute, 300, false},
		{"one recipient we do not relay to, for good, without a pause", maillog.RelayDenied, false, 1, 3 * time.Minute, 6, true},
		{"a domain without DNS", maillog.SenderReject, true, 1, time.Second, 400, false},
		{"a domain that is not", maillog.SenderReject, false, 1, time.Second, 60, true},
		{"a hundred connections over the limit at once", maillog.RateLimit, false, 1, 0, 100, false},
		{"a minute over the limit", maillog.RateLimit, false, 1, time.Second, 60, true},
	} {
		s, at, got := New(DefaultConfig()), t0, false
		for i := 0; i < c.n && !got; i++ {
			at = at.Add(c.gap)
			_, got = s.Observe(&maillog.Event{Kind: c.kind, Source: src, Time: at, Count: 1, User: who("n", i%c.names), Temporary: c.temporary}, at)
		}
		if got != c.blocked {
			t.Errorf("%s: blocked %v", c.name, got)
		}
		if a, _ := s.Lookup(src, at); !got && int(a.Evidence.Counts[c.kind]) != c.n {
			t.Errorf("%s: %d of %d are told", c.name, a.Evidence.Counts[c.kind], c.n)
		}
	}
}
