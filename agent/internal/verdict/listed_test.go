package verdict

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

var listedAt = time.Unix(1_800_000_000, 0)

// A listing over the threshold blocks alone, one below it does not, however often it is found.
func TestListed(t *testing.T) {
	s := New(DefaultConfig())
	a := netip.MustParseAddr("192.0.2.1")
	for i := range 48 {
		if v, ok := s.Listed(a, 60, "bl.example.net", listedAt.Add(time.Duration(i)*30*time.Minute)); ok {
			t.Fatalf("found %d times: %+v", i+1, v)
		}
	}
	if acc, _ := s.Lookup(a, listedAt.Add(24*time.Hour)); acc.Evidence.Score > 61 || acc.Evidence.Score < 30 || acc.Cause != block.DNSBL {
		t.Errorf("%+v", acc)
	}
	v, ok := s.Listed(netip.MustParseAddr("192.0.2.2"), 100, "bl.example.net (bad) +100", listedAt)
	if !ok || v.Cause != block.DNSBL || v.Scope != block.ScopeMX || !strings.Contains(v.Evidence.Words(), "listed by bl.example.net (bad) +100") {
		t.Errorf("%t %+v", ok, v)
	}
	for _, p := range []float64{0, -50, 1e300 * 0} {
		if _, ok := s.Listed(netip.MustParseAddr("192.0.2.3"), p, "", listedAt); ok {
			t.Errorf("%v points block", p)
		}
	}
	if _, ok := s.Listed(netip.Addr{}, 100, "", listedAt); ok {
		t.Error("nobody is blocked")
	}
}

// A listing and an offence add up; a missing name alone is next to nothing.
func TestListedWithOffences(t *testing.T) {
	s := New(DefaultConfig())
	a := netip.MustParseAddr("192.0.2.1")
	offend := func(n int) (Verdict, bool) {
		return s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: a, Time: listedAt, Count: n}, listedAt)
	}
	s.Listed(a, 60, "bl.example.net", listedAt)
	if _, ok := offend(3); ok {
		t.Error("90 points block")
	}
	v, ok := offend(1)
	if !ok || v.Cause != block.DNSBL || v.Evidence.Counts[maillog.DNSListed] != 1 || v.Evidence.Counts[maillog.UnknownRecipient] != 4 {
		t.Errorf("%t %+v", ok, v)
	}
	b := netip.MustParseAddr("192.0.2.2")
	for i := range 100 {
		if _, ok := s.Nameless(b, 5, listedAt.Add(time.Duration(i)*time.Minute)); ok {
			t.Fatal("a host without a name is blocked for it")
		}
	}
	if acc, _ := s.Lookup(b, listedAt.Add(99*time.Minute)); acc.Evidence.Score > 5.1 {
		t.Errorf("%+v", acc)
	}
}

// Who brought mail before is not blocked for a listing alone: a message cancels ten points of it.
func TestListedWithCredit(t *testing.T) {
	s := New(DefaultConfig())
	a := netip.MustParseAddr("192.0.2.1")
	for i := range 6 {
		s.Observe(&maillog.Event{Kind: maillog.Delivered, Source: a, Count: 1, Time: listedAt.Add(time.Duration(i) * time.Hour)}, listedAt.Add(time.Duration(i)*time.Hour))
	}
	now := listedAt.Add(7 * time.Hour)
	for range 10 {
		if v, ok := s.Listed(a, 140, "bl.example.net", now); ok {
			t.Fatalf("%+v", v)
		}
		now = now.Add(time.Hour)
	}
	// The state survives the file.
	n := New(DefaultConfig())
	s.Changed(func(k, v []byte) {
		if err := n.Load(k, v); err != nil {
			t.Error(err)
		}
	})
	x, _ := s.Lookup(a, now)
	y, _ := n.Lookup(a, now)
	if x.Evidence.Score != y.Evidence.Score || x.Evidence.Counts != y.Evidence.Counts || x.Evidence.Counts[maillog.DNSListed] == 0 {
		t.Errorf("%+v\n%+v", x, y)
	}
}
