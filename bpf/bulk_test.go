package bpf

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"
)

// someEntry draws an entry of any kind, from a space so small that they meet.
func someEntry(r *rand.Rand) Rule {
	e := Rule{Scope: uint8(r.IntN(4)), Until: time.Now().Add(time.Duration(1+r.IntN(100)) * time.Hour)}
	if r.IntN(4) == 0 {
		e.Until = time.Time{}
	}
	v4, v6 := [4]byte{198, 18, 0, 0}, [16]byte{0x20, 1, 0xd, 0xb8}
	binary.BigEndian.PutUint16(v4[2:], uint16(r.IntN(1<<11)))
	v6[7], v6[15] = byte(r.IntN(64)), byte(r.IntN(4))
	switch k := r.IntN(100); {
	case k < 1:
		e.Prefix = netip.Prefix{}
	case k < 2:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4(v4), 31) // may have host bits
	case k < 3:
		e.Prefix, e.Scope = sourcePrefix(r.Uint32()), 4
	case k < 50:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4(v4), 32)
	case k < 60:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4(v4), 24+r.IntN(8)).Masked()
	case k < 70:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom16(v6), 128)
	default:
		e.Prefix = netip.PrefixFrom(netip.AddrFrom16(v6), 64).Masked()
	}
	return e
}

// SetMany leaves the tables, and says of each entry, as Set does: growth, moves between the tables, a full table and bad
// entries included.
func TestSetMany(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	one, many := openTest(t, Options{MaxExact: 1500}), openTest(t, Options{MaxExact: 1500})
	for range 6 {
		all := make([]Rule, r.IntN(3000))
		for i := range all {
			all[i] = someEntry(r)
		}
		var want, got []string
		for _, e := range all {
			if err := one.Set(e.Prefix, e.Scope, e.Until); err != nil {
				want = append(want, err.Error())
			}
		}
		many.SetMany(r.IntN(2)*len(all), func(yield func(netip.Prefix, uint8, time.Time) bool) {
			for _, e := range all {
				yield(e.Prefix, e.Scope, e.Until)
			}
		}, func(_ netip.Prefix, err error) { got = append(got, err.Error()) })
		if !slices.Equal(want, got) {
			t.Fatalf("errors of Set:\n%q\nof SetMany:\n%q", want, got)
		}
	}
	rules := func(s *Shield) map[netip.Prefix]Rule {
		m := map[netip.Prefix]Rule{}
		must(t, s.Each(func(x Rule) bool { m[x.Prefix] = x; return true }))
		return m
	}
	a, b := rules(one), rules(many)
	if len(a) != len(b) {
		t.Errorf("%d rules by Set, %d by SetMany", len(a), len(b))
	}
	for p, x := range a {
		if y := b[p]; x.Scope != y.Scope || x.Until.Sub(y.Until).Abs() > 3*time.Second {
			t.Errorf("%s: %v by Set, %v by SetMany", p, x, y)
		}
	}
}

// A million entries grow the table once, and a closed shield refuses each.
func TestSetManyGrows(t *testing.T) {
	s := openTest(t, Options{MaxExact: 1 << 20})
	gen, n := s.gen.n, 3*firstCapacity
	entries := func(yield func(netip.Prefix, uint8, time.Time) bool) {
		for i := range n {
			yield(sourcePrefix(uint32(i)), ScopeAll, time.Time{})
		}
	}
	s.SetMany(n, entries, func(_ netip.Prefix, err error) { t.Fatal(err) })
	if got := s.gen.n - gen; got != 1 || s.gen.v4.used != n {
		t.Errorf("%d new generations for %d entries, %d are in; want 1", got, n, s.gen.v4.used)
	}
	want := map[uint64]uint32{}
	for i := range n {
		want[uint64(benchSource(uint32(i)))] = timeNoEnd<<timeShift | uint32(ScopeAll)
	}
	s.gen.v4.check(t, want)
	s.Close()
	n = 300
	refused := 0
	s.SetMany(n, entries, func(_ netip.Prefix, err error) {
		if errors.Is(err, os.ErrClosed) {
			refused++
		}
	})
	if refused != n {
		t.Errorf("%d of %d refused after Close", refused, n)
	}
}
