package verdict

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// The known senders are those of whom Lookup says that mail was accepted, in whatever parts they are asked for.
func TestEachKnown(t *testing.T) {
	cfg := DefaultConfig()
	s := New(cfg)
	now := time.Unix(1_700_000_000, 0)
	var want []netip.Prefix
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if i%7 == 0 {
			b := [16]byte{0x20, 1, 0xd, 0xb8, byte(i >> 8), byte(i)}
			a = netip.AddrFrom16(b)
		}
		e := maillog.Event{Kind: maillog.UnknownRecipient, Time: now, Source: a, Count: 1}
		if i%3 == 0 {
			e.Kind = maillog.Delivered
			p, _ := a.Prefix(min(a.BitLen(), 64))
			want = append(want, p)
		}
		s.Observe(&e, now)
	}
	slices.SortFunc(want, netip.Prefix.Compare)
	known := func(n int, now time.Time) (list []netip.Prefix) {
		for from := 0; ; {
			if from = s.EachKnown(from, n, now, func(p netip.Prefix) { list = append(list, p) }); from == 0 {
				slices.SortFunc(list, netip.Prefix.Compare)
				return list
			}
		}
	}
	for _, n := range []int{1, 999, 1000, 1 << 20} {
		if got := known(n, now); !slices.Equal(got, want) {
			t.Errorf("in parts of %d: %d known, want %d", n, len(got), len(want))
		}
	}
	if got := known(1000, now.Add(30*24*time.Hour)); !slices.Equal(got, want) {
		t.Errorf("after a month %d are known, want %d", len(got), len(want))
	}
}
