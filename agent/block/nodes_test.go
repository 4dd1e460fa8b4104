package block

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"
	"unsafe"

	"pgregory.net/rapid"
)

// TestIndexAgainstMap: the index finds what was put in and not what was taken out, through collisions and growth.
func TestIndexAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s nodes
		x, want := newIndex(), map[pkey]uint32{}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			bits := rapid.SampledFrom([]int{24, 29, 32}).Draw(t, "bits")
			k := keyOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, rapid.Byte().Draw(t, "a") % 8, rapid.Byte().Draw(t, "b")}), bits))
			if i, ok := want[k]; ok {
				x.remove(&s, k)
				s.give(i)
				delete(want, k)
			} else {
				i := s.take()
				*s.at(i) = node{hi: k.hi, lo: k.lo, bits: k.bits, kind: Block}
				x.set(&s, k, i)
				want[k] = i
			}
			for k, i := range want {
				if x.get(&s, k) != i {
					t.Fatalf("%v is at %d, want %d", k.prefix(), x.get(&s, k), i)
				}
			}
			if x.n != len(want) || s.live != len(want) {
				t.Fatalf("%d and %d, want %d", x.n, s.live, len(want))
			}
			if i, ok := want[k]; x.get(&s, k) != i || !ok && i != 0 {
				t.Fatalf("%v is at %d", k.prefix(), x.get(&s, k))
			}
		}
	})
}

// TestInsideAgainstScan: probing finds exactly what a walk over the table finds, before and after removals.
func TestInsideAgainstScan(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	tab := New(Options{Origin: "mx1"})
	draw := func() netip.Prefix {
		if r.IntN(2) == 0 {
			a := netip.AddrFrom4([4]byte{198, 51, byte(r.IntN(4)), byte(r.IntN(256))})
			return netip.PrefixFrom(a, []int{16, 20, 24, 25, 28, 32, 32, 32}[r.IntN(8)]).Masked()
		}
		a := [16]byte{0x20, 1, 0xd, 0xb8, 0, byte(r.IntN(2)), byte(r.IntN(3)), byte(r.IntN(3)), 15: byte(r.IntN(3))}
		return netip.PrefixFrom(netip.AddrFrom16(a), []int{32, 44, 48, 52, 56, 60, 64, 64, 80, 128}[r.IntN(10)]).Masked()
	}
	collect := func(k pkey, f func(pkey, func(pkey) bool)) (list []pkey) {
		f(k, func(o pkey) bool { list = append(list, o); return true })
		slices.SortFunc(list, comparePkey)
		return list
	}
	check := func() {
		for range 200 {
			k := keyOf(draw())
			if k.bits < 48 {
				continue // 2^20 probes and more: insideLocked walks
			}
			probed, walked := collect(k, tab.probeLocked), collect(k, tab.scanLocked)
			if !slices.Equal(probed, walked) {
				t.Fatalf("inside %v: probing finds %d, a walk %d", k.prefix(), len(probed), len(walked))
			}
			if got := collect(k, tab.insideLocked); !slices.Equal(got, walked) {
				t.Fatalf("inside %v: %d, want %d", k.prefix(), len(got), len(walked))
			}
		}
	}
	for range 1500 {
		e := Entry{Prefix: draw(), Kind: Allow, Cause: Manual}
		if r.IntN(2) == 0 {
			e.Until = t0.Add(time.Hour)
		}
		apply(t, tab, e, t0)
	}
	check()
	tab.Expire(t0.Add(2 * time.Hour))
	check()
	tab.Expire(t0.Add(2 * time.Hour))
	if l := tab.nodes.live; l == 0 || l != tab.Count(t0).Entries {
		t.Errorf("%d live", l)
	}
}

func v4(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 32)
}

// fill makes a table of n automatic blocks of single addresses, of which each ends a little later.
func fill(tb testing.TB, s Sink, n int) *Table {
	tab := New(Options{Origin: "mx1", Sink: s})
	_ = tab.SetNever(BuiltinNever(false), t0)
	e := auto("198.51.100.7", Dictionary, 0, t0)
	for i := range n {
		e.Prefix, e.Until = v4(i), t0.Add(time.Hour+time.Duration(i)*10*time.Millisecond)
		if _, err := tab.Apply(e, t0); err != nil {
			tb.Fatal(err)
		}
		if i%1000 == 0 {
			tab.Drain()
		}
	}
	tab.Drain()
	return tab
}

// drain is a Sink that takes everything.
type drain struct{ n int }

func (d *drain) Set(netip.Prefix, uint8, time.Time) error { d.n++; return nil }
func (d *drain) Remove(netip.Prefix) error                { d.n++; return nil }

// TestManyEntries: the counts of a large table are right through blocks, ends and clears. What each of these costs
// BenchmarkTable shows.
func TestManyEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	n := 200_000
	tab := fill(t, new(drain), n)
	tab.keep = 0
	at := t0.Add(time.Minute)
	for i := range 1000 {
		apply(t, tab, auto(fmt.Sprintf("2001:db8:%x:%x00::/56", i>>8, i&255), Dictionary, time.Hour, at), at)
		apply(t, tab, auto(fmt.Sprintf("203.0.%d.0/24", i%256), Dictionary, time.Hour, at), at)
		if c := tab.Count(at); c.Blocks != n+i+1+min(i+1, 256) {
			t.Fatalf("after %d of each: %+v", i+1, c)
		}
	}
	if l, total := tab.List(Query{Limit: 100}, at); len(l) != 100 || total != n+1000+256 {
		t.Errorf("%d of %d", len(l), total)
	}
	end := at.Add(time.Hour + time.Second)
	tab.Expire(end)
	var clears []netip.Prefix
	for i := range 1000 {
		clears = append(clears, netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 32))
	}
	for _, p := range clears {
		apply(t, tab, Entry{Prefix: p, Kind: Clear, Until: t0.Add(2 * time.Hour)}, end)
	}
	late := end.Add(8 * 24 * time.Hour)
	for i := range n { // they stand when the clears may go
		e := auto("198.51.100.7", Dictionary, 72*time.Hour, late)
		e.Prefix = v4(i)
		apply(t, tab, e, late)
	}
	tab.Drain()
	for range 10 {
		tab.Expire(late)
	}
	if c := tab.Count(late); c.Entries != n {
		t.Errorf("%d entries are left, want %d", c.Entries, n)
	}
}

// TestExpireIsBounded: what ends all at once goes in parts.
func TestExpireIsBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	tab := fill(t, nil, expireMost+10)
	end := t0.Add(7 * 24 * time.Hour)
	if a, b, c := tab.Expire(end), tab.Expire(end), tab.Expire(end); a != expireMost || b != 10 || c != 0 {
		t.Errorf("removed %d, %d, %d", a, b, c)
	}
}

func BenchmarkTableMemory(b *testing.B) {
	const n = 1 << 20
	for b.Loop() {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		tab := fill(b, nil, n)
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "bytes/entry")
		runtime.KeepAlive(tab)
	}
	if s := unsafe.Sizeof(node{}); s != 56 {
		b.Errorf("a node has %d bytes", s)
	}
}

// BenchmarkTable is what the agent does with a table of a million entries.
func BenchmarkTable(b *testing.B) {
	const n = 1 << 20
	tab := fill(b, new(drain), n)
	at := t0.Add(time.Minute)
	for _, bench := range []struct {
		name string
		f    func(i int)
	}{
		{"count", func(int) { tab.Count(at) }},
		{"list 100", func(int) { tab.List(Query{Limit: 100}, at) }},
		{"decide", func(i int) { tab.Decide(v4(i%n), at) }},
		{"block 24", func(i int) { _, _ = tab.Apply(auto("203.0.113.0/24", Dictionary, time.Hour, at), at) }},
		{"block 56", func(i int) { _, _ = tab.Apply(auto("2001:db8:1::/56", Dictionary, time.Hour, at), at) }},
		{"inside 16", func(i int) { tab.Inside(pfx("198.18.0.0/16"), 100, at) }},
		{"resync", func(i int) { _, _ = tab.Resync(nil, at, false) }},
		{"resync same", func(i int) {
			_, _ = tab.ResyncEach(func(yield func(Enforced) bool) error {
				for i := range n {
					yield(Enforced{v4(i), 1, t0.Add(time.Hour + time.Duration(i)*10*time.Millisecond)})
				}
				return nil
			}, at, true)
		}},
		{"load", func(i int) {
			fresh := New(Options{Origin: "mx1"})
			e := auto("198.51.100.7", Dictionary, time.Hour, t0)
			e.Origin, e.Since, e.Stamp = "mx1", t0, StampAt(t0)
			for i := range n {
				e.Prefix = v4(i)
				_, _ = fresh.Load(e)
			}
		}},
	} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				bench.f(i)
				tab.dirty = tab.dirty[:0]
				i++
			}
		})
	}
}

// TestNeverAround: the rule found is the widest one that covers the prefix, in the right family.
func TestNeverAround(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	draw := func() netip.Prefix {
		if r.IntN(2) == 0 {
			a := netip.AddrFrom4([4]byte{198, byte(r.IntN(2)), byte(r.IntN(2)), byte(r.IntN(4))})
			return netip.PrefixFrom(a, 8+r.IntN(25)).Masked()
		}
		a := netip.AddrFrom16([16]byte{1: byte(r.IntN(2)), 5: byte(r.IntN(3)), 15: byte(r.IntN(3))})
		return netip.PrefixFrom(a, 8+r.IntN(121)).Masked() // ::/8 begins before the mapped range and ends behind it
	}
	for range 2000 {
		var list []Never
		for range r.IntN(8) {
			list = append(list, Never{Prefix: draw(), Rule: "test"})
		}
		s, p := newNeverSet(list), draw()
		var want netip.Prefix
		for _, n := range list {
			if n.Prefix.Bits() <= p.Bits() && n.Prefix.Contains(p.Addr()) && (!want.IsValid() || n.Prefix.Bits() < want.Bits()) {
				want = n.Prefix
			}
		}
		if got, ok := s.around(keyOf(p)); ok != want.IsValid() || got.Prefix != want {
			t.Fatalf("around %s of %v: %s, want %s", p, list, got.Prefix, want)
		}
	}
}
