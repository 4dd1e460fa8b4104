package verdict

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

var far = netip.MustParseAddr("198.51.100.7")

func offences(s *Scorer, k maillog.Kind, n int, now time.Time) (v Verdict, ok bool) {
	for range n {
		if w, is := s.Observe(&maillog.Event{Kind: k, Source: far, Count: 1}, now); is {
			v, ok = w, true
		}
	}
	return v, ok
}

// TestElsewhere: who spreads thin over nodes is blocked, and only where it offends; what speaks for a source elsewhere
// counts as what speaks for it here.
func TestElsewhere(t *testing.T) {
	s := New(DefaultConfig())
	if _, ok := s.Elsewhere(far, 360, 0, t0); ok || s.Len() != 0 {
		t.Error("a source that was never here is blocked for what others saw")
	}
	if _, ok := offences(s, maillog.UnknownRecipient, 4, t0); ok {
		t.Fatal("4 are no attack")
	}
	if _, ok := s.Elsewhere(far, 50, 0, t0); ok {
		t.Error("40 and 50 of 100")
	}
	v, ok := s.Elsewhere(far, 90, 0, t0)
	if !ok || v.Cause != block.Dictionary || v.Scope != block.ScopeMX || !strings.Contains(v.Evidence.Words(), "4 unknown recipients, 0 accepted, in 0 s; on other nodes 90 points, 0 accepted") {
		t.Errorf("%v %+v %q", ok, v, v.Evidence.Words())
	}
	if _, ok := s.Elsewhere(far, 400, 0, t0); ok {
		t.Error("blocked twice")
	}

	// What others saw fades as what was seen here does.
	s = New(DefaultConfig())
	offences(s, maillog.UnknownRecipient, 2, t0)
	s.Elsewhere(far, 70, 0, t0)
	if _, ok := offences(s, maillog.UnknownRecipient, 2, t0.Add(2*time.Hour)); ok {
		t.Error("it did not fade")
	}
	if a, _ := s.Lookup(far, t0.Add(2*time.Hour)); a.Evidence.Score < 40 || a.Evidence.Score > 45 {
		t.Errorf("score %g: 2 new ones, and a quarter of 20 and 70", a.Evidence.Score)
	}

	// Failed logins alone are not made more by what others saw: it might close the submission ports.
	s = New(DefaultConfig())
	for i := range 3 {
		if _, ok := s.Observe(&maillog.Event{Kind: maillog.AuthFailure, Source: far, Count: 1, User: uint64(i+1) << 58, Submission: true}, t0); ok {
			t.Fatal("3 names")
		}
	}
	if _, ok := s.Elsewhere(far, 500, 0, t0); ok {
		t.Error("a few failed logins here and mail offences there")
	}
}

// TestElsewhereCredit: a list host that bounces here and delivers there stays, and its credit there is used up.
func TestElsewhereCredit(t *testing.T) {
	s := New(DefaultConfig())
	offences(s, maillog.UnknownRecipient, 1, t0)
	s.Elsewhere(far, 0, 50, t0)
	if _, ok := offences(s, maillog.UnknownRecipient, 49, t0); ok {
		t.Error("50 offences, 50 messages elsewhere")
	}
	// Told again and again it is the same 50.
	now := t0
	total, blocked := 50, false
	for ; !blocked && total < 1000; total++ {
		now = now.Add(5 * time.Minute)
		if _, ok := s.Elsewhere(far, 0, 50, now); ok {
			blocked = true
		}
		if _, ok := offences(s, maillog.UnknownRecipient, 4, now); ok {
			blocked = true
		}
	}
	if !blocked || total > 150 {
		t.Errorf("after %d rounds: blocked %v", total-50, blocked)
	}

	// Both sums count: as bad elsewhere as good.
	s = New(DefaultConfig())
	offences(s, maillog.UnknownRecipient, 8, t0)
	if _, ok := s.Elsewhere(far, 300, 50, t0); ok {
		t.Error("80 and 300 points are 38 offences, against 50 messages")
	}
	if _, ok := s.Elsewhere(far, 450, 20, t0); !ok {
		t.Error("53 offences against 20 messages")
	}
}

// TestElsewhereTrap: a trap hit costs a hundred messages, wherever they were delivered.
func TestElsewhereTrap(t *testing.T) {
	for _, c := range []struct {
		good  float64
		block bool
	}{{0, true}, {99, true}, {100, false}, {5000, false}} {
		cfg := DefaultConfig()
		asked := false
		cfg.Wait = func(netip.Prefix, time.Time) bool { was := asked; asked = true; return !was }
		s := New(cfg)
		if _, ok := offences(s, maillog.Trap, 1, t0); ok {
			t.Fatal("it did not wait")
		}
		v, ok := s.Elsewhere(far, 0, c.good, t0)
		if ok != c.block || ok && v.Cause != block.Trap {
			t.Errorf("%g messages: %v %+v", c.good, ok, v)
		}
	}
}

// TestWait: a source that waits is judged by Elsewhere, once, and as if it had not waited.
func TestWait(t *testing.T) {
	cfg := DefaultConfig()
	wait := true
	cfg.Wait = func(p netip.Prefix, _ time.Time) bool { return wait && p.Addr() == far }
	s := New(cfg)
	if _, ok := offences(s, maillog.UnknownRecipient, 20, t0); ok {
		t.Fatal("it did not wait")
	}
	if _, ok := s.Elsewhere(far, 0, 0, t0); ok {
		t.Fatal("it did not wait")
	}
	wait = false
	v, ok := s.Elsewhere(far, 0, 0, t0)
	if !ok || v.Repeat != 0 || v.Evidence.Counts[maillog.UnknownRecipient] != 20 || len(s.away) != 0 {
		t.Errorf("%v %+v", ok, v)
	}
	if _, ok := s.Elsewhere(far, 0, 0, t0); ok {
		t.Error("twice")
	}

	// Others say nothing of logins: there is nothing to wait for.
	wait = true
	s = New(cfg)
	blocked := false
	for i := range 12 {
		_, ok := s.Observe(&maillog.Event{Kind: maillog.AuthFailure, Source: far, Count: 1, User: uint64(i+1) << 58, Submission: true}, t0)
		blocked = blocked || ok
	}
	if !blocked {
		t.Error("a login attack waits")
	}
}

// TestOwn: what is told to others leaves out what they find out themselves, and what may not be mixed.
func TestOwn(t *testing.T) {
	s := New(DefaultConfig())
	if _, _, ok := s.Own(far, t0); ok {
		t.Error("it knows a stranger")
	}
	s.Listed(far, 35, "bl", t0)
	offences(s, maillog.UnknownRecipient, 3, t0)
	offences(s, maillog.AuthFailure, 1, t0)
	s.Elsewhere(far, 20, 7, t0)
	if bad, good, ok := s.Own(far, t0); !ok || bad < 29.9 || bad > 30.1 || good != 0 {
		t.Errorf("%g %g %v", bad, good, ok)
	}
	s.Reset(netip.PrefixFrom(far, 32))
	if a, _ := s.Lookup(far, t0); a.Evidence.Elsewhere != (Elsewhere{}) {
		t.Errorf("after a reset: %+v", a.Evidence)
	}
	for range 5 {
		s.Observe(&maillog.Event{Kind: maillog.Delivered, Source: far, Count: 1}, t0)
	}
	if bad, good, _ := s.Own(far, t0); bad != 0 || good != 5 {
		t.Errorf("%g %g", bad, good)
	}
}
