package block

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func host(i int) string { return fmt.Sprintf("198.51.%d.%d", i/250, 1+i%250) }

// from makes an entry of another node.
func from(e Entry, origin string, seq uint64, at time.Time) Entry {
	e.Origin, e.Epoch, e.Seq, e.Stamp, e.Since = origin, 7, seq, StampAt(at)+Stamp(seq), at
	return e
}

func merge(t *testing.T, tab *Table, e Entry, now time.Time) {
	t.Helper()
	if _, err := tab.Merge(e, now); err != nil {
		t.Fatalf("merge %s %s of %s: %v", e.Kind, e.Prefix, e.Origin, err)
	}
}

// dump is the replicated state in words, whatever is enforced of it.
func dump(tab *Table) string {
	var list []string
	for _, l := range tab.Logs() {
		if l.Live > 0 {
			list = append(list, fmt.Sprintf("%s/%d live %d top %d", l.Origin, l.Epoch, l.Live, l.Top))
		}
		tab.Log(l.Origin, l.Epoch, 1, math.MaxUint64, func(e *Entry) bool {
			list = append(list, fmt.Sprintf("%+v", *e))
			return true
		})
	}
	return strings.Join(list, "\n")
}

// TestStateLaws: merge is commutative, associative and idempotent on the whole state, log and clocks included.
func TestStateLaws(t *testing.T) {
	origins := []string{"mx1", "mx2", "mx3"}
	rapid.Check(t, func(t *rapid.T) {
		now := t0.Add(10 * time.Minute)
		var list []Entry
		for range rapid.IntRange(1, 30).Draw(t, "n") {
			e := drawEntry(t, t0)
			if e.Kind == Block && e.Automatic() && e.Prefix.Addr().Is4() && e.Prefix.Bits() < 24 || e.Prefix.Bits() < 48 && e.Prefix.Addr().Is6() {
				e.Prefix = netip.MustParsePrefix("198.51.100.1/32")
			}
			if rapid.IntRange(0, 9).Draw(t, "clears an origin") == 0 {
				e = Entry{Kind: OriginClear, Target: rapid.SampledFrom(origins).Draw(t, "target"), Since: t0}
			}
			e.Origin = rapid.SampledFrom(origins).Draw(t, "origin")
			e.Epoch = uint64(rapid.IntRange(0, 1).Draw(t, "epoch"))
			e.Stamp = StampAt(t0.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "stamp")) * time.Minute))
			if rapid.IntRange(0, 9).Draw(t, "ahead") == 0 {
				e.Stamp = StampAt(now.Add(time.Duration(rapid.IntRange(2, 5).Draw(t, "by")) * time.Minute))
			}
			e.Seq = uint64(len(list) + 1)
			list = append(list, e)
		}
		a, b := New(Options{Origin: "me", Budget: Budget{3, 5}}), New(Options{Origin: "me", Budget: Budget{3, 5}})
		for _, e := range list {
			_, _ = a.Merge(e, now)
		}
		other := slices.Concat(list, list[:len(list)/2])
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		r.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		for _, e := range other {
			_, _ = b.Merge(e, now)
		}
		for _, at := range []time.Time{now, now.Add(6 * time.Minute)} {
			for range 3 { // whoever waits for a recount has it
				a.Expire(at)
				b.Expire(at)
				at = at.Add(time.Second)
			}
			if x, y := dump(a), dump(b); x != y {
				t.Fatalf("one way\n%s\nthe other way\n%s", x, y)
			}
			for _, p := range probes {
				x, y := a.Decide(pfx(p), at), b.Decide(pfx(p), at)
				if x.Drop != y.Drop || x.Scope != y.Scope || x.Rule != y.Rule || !x.Until.Equal(y.Until) {
					t.Fatalf("%s: %+v against %+v", p, x, y)
				}
			}
			for i := range a.origins {
				o := a.origins[i]
				n := 0
				a.eachOfLocked(uint16(i), func(_ uint32, b *node) { n += b2i(a.budgetOf(b) != nil) })
				if n != o.blocks {
					t.Fatalf("%s: %d blocks, counted as %d", o.name, n, o.blocks)
				}
			}
		}
	})
}

func TestBudgets(t *testing.T) {
	s := newLPM()
	tab := New(Options{Origin: "mx1", Sink: s, Budget: Budget{Minute: 10, Live: 25}})
	now := t0.Add(5 * time.Minute)
	enforced := func() (n int) {
		for i := range 100 {
			if s.scope(netip.MustParseAddr(host(i)), now) != ScopeNone {
				n++
			}
		}
		return n
	}
	// 30 blocks of one minute arrive newest first: the ten oldest are enforced, and never more than ten.
	for i := 29; i >= 0; i-- {
		merge(t, tab, from(auto(host(i), Dictionary, time.Hour, now), "mx2", uint64(i+1), t0), now)
		if n := enforced(); n > 10 {
			t.Fatalf("%d enforced", n)
		}
	}
	tab.Expire(now)
	for i := range 30 {
		if got := tab.Decide(pfx(host(i)), now).Drop; got != (i < 10) {
			t.Errorf("%s: drop %v", host(i), got)
		}
	}
	if n := tab.OverBudget("mx2"); n != 20 {
		t.Errorf("%d over budget, want 20", n)
	}
	// Another origin has its own budget, people have none, and clears are never truncated.
	merge(t, tab, from(auto(host(50), Dictionary, time.Hour, now), "mx3", 1, t0), now)
	merge(t, tab, from(manual(host(51), now.Add(time.Hour)), "mx2", 31, t0), now)
	merge(t, tab, from(Entry{Prefix: pfx(host(0)), Kind: Clear, Until: now}, "mx2", 32, t0), now)
	for h, want := range map[string]bool{host(50): true, host(51): true, host(0): false} {
		if tab.Decide(pfx(h), now).Drop != want {
			t.Errorf("%s: drop %v", h, !want)
		}
	}
	// Ten a minute are fine, up to 25 in all.
	for i := range 40 {
		merge(t, tab, from(auto(host(100+i), Dictionary, time.Hour, now), "mx4", uint64(i+1), t0.Add(time.Duration(i)*7*time.Second)), now)
	}
	tab.Expire(now)
	n := 0
	for i := range 40 {
		if tab.Decide(pfx(host(100+i)), now).Drop {
			n++
		}
	}
	if n != 25 {
		t.Errorf("%d of 40 enforced, want 25", n)
	}
	// When they end there is room again.
	later := now.Add(61 * time.Minute)
	tab.Expire(later)
	merge(t, tab, from(auto(host(99), Dictionary, 2*time.Hour, later), "mx2", 99, later), later)
	tab.Expire(later.Add(2 * time.Second))
	if !tab.Decide(pfx(host(99)), later).Drop {
		t.Error("no room after the others ended")
	}
}

// TestBudgetOfWhatWasVoid: blocks that came while a clear of their origin made them void are weighed before any of them is
// enforced, when that clear counts no more.
func TestBudgetOfWhatWasVoid(t *testing.T) {
	s := newLPM()
	tab := New(Options{Origin: "mx1", Sink: s, Budget: Budget{Minute: 10, Live: 25}})
	now := t0.Add(5 * time.Minute)
	merge(t, tab, from(Entry{Kind: OriginClear, Target: "mx2"}, "mx3", 1, now), now)
	for i := range 30 {
		merge(t, tab, from(auto(host(i), Dictionary, time.Hour, now), "mx2", uint64(i+1), t0), now)
	}
	tab.Expire(now)
	enforced := func() (n int) {
		for i := range 30 {
			if s.scope(netip.MustParseAddr(host(i)), now) != ScopeNone {
				n++
			}
		}
		return n
	}
	if n := enforced(); n != 0 {
		t.Errorf("%d enforced though they are void", n)
	}
	for range 2 { // and again, with what was over the budget before
		tab.Suspend("mx3", true, now)
		if n := enforced(); n != 10 {
			t.Errorf("%d enforced, want 10", n)
		}
		tab.Suspend("mx3", false, now)
		if n := enforced(); n != 0 {
			t.Errorf("%d enforced though they are void", n)
		}
		now = now.Add(2 * time.Second)
		tab.Expire(now)
	}
	// What is left of them in the end has room.
	for i := range 25 {
		merge(t, tab, from(auto(host(i), Dictionary, time.Second, now), "mx2", uint64(100+i), t0.Add(time.Second)), now)
	}
	now = now.Add(time.Minute)
	tab.Expire(now)
	tab.Suspend("mx3", true, now)
	if n := enforced(); n != 5 {
		t.Errorf("%d enforced, want 5", n)
	}
}

func TestSuspendAndOriginClear(t *testing.T) {
	tab, s := newTable(t)
	now := t0.Add(time.Minute)
	drops := func(h string) bool {
		t.Helper()
		d := tab.Decide(pfx(h), now).Drop
		if k := s.scope(netip.MustParseAddr(h), now) != ScopeNone; k != d {
			t.Errorf("%s: decision %v, kernel %v", h, d, k)
		}
		return d
	}
	apply(t, tab, manual(host(1), time.Time{}), t0)
	apply(t, tab, manual(host(2), time.Time{}), t0)
	merge(t, tab, from(auto(host(3), Dictionary, time.Hour, now), "mx2", 1, t0), now)
	merge(t, tab, from(Entry{Prefix: pfx(host(1)), Kind: Clear, Until: now.Add(time.Hour)}, "mx2", 2, now), now)
	merge(t, tab, from(Entry{Prefix: pfx(host(2)), Kind: Allow, Cause: Manual}, "mx2", 3, now), now)
	merge(t, tab, from(auto(host(4), Dictionary, time.Hour, now), "mx3", 1, t0), now)
	is := func(want ...bool) {
		t.Helper()
		for i, w := range want {
			if got := drops(host(i + 1)); got != w {
				t.Errorf("%s: drop %v, want %v", host(i+1), got, w)
			}
		}
	}
	before := dump(tab)
	is(false, false, true, true)
	tab.Suspend("mx2", true, now)
	is(true, true, false, true)
	if got := tab.Suspended(); !slices.Equal(got, []string{"mx2"}) || dump(tab) != before {
		t.Errorf("suspended %q; the state changed: %v", got, dump(tab) != before)
	}
	tab.Suspend("mx2", false, now)
	is(false, false, true, true)
	// What mx2 says afterwards counts.
	if _, err := tab.ClearOrigin("mx2", now); err != nil {
		t.Fatal(err)
	}
	is(true, true, false, true)
	later := now.Add(time.Second)
	merge(t, tab, from(auto(host(3), Dictionary, time.Hour, now), "mx2", 4, later), later)
	is(true, true, true, true)
	// An origin clear of a suspended node does nothing.
	c := from(Entry{Kind: OriginClear, Target: "mx3"}, "mx2", 5, later)
	merge(t, tab, c, later)
	is(true, true, true, false)
	tab.Suspend("mx2", true, later)
	is(true, true, false, true)
}

func TestStampsAheadWait(t *testing.T) {
	tab, _ := newTable(t)
	merge(t, tab, from(auto(host(1), Dictionary, time.Hour, t0), "mx2", 1, t0), t0)
	ahead := t0.Add(10 * time.Minute)
	merge(t, tab, from(Entry{Prefix: pfx(host(1)), Kind: Clear, Until: ahead}, "mx2", 2, ahead), t0)
	merge(t, tab, from(auto(host(1), AuthBrute, 3*time.Hour, ahead), "mx2", 3, ahead), t0)
	if d := tab.Decide(pfx(host(1)), t0); !d.Drop || d.Scope != ScopeMX {
		t.Errorf("before its time: %+v", d)
	}
	if r := apply(t, tab, auto(host(2), Dictionary, time.Hour, t0), t0); r.Entry.Stamp.Time().After(t0.Add(time.Second)) {
		t.Errorf("the clock follows a stamp ahead: %s", r.Entry.Stamp.Time())
	}
	// A restart keeps it waiting.
	next := New(Options{Origin: "mx1"})
	for _, e := range tab.Drain() {
		if _, err := next.Load(e); err != nil {
			t.Fatal(err)
		}
	}
	for _, tab := range []*Table{tab, next} {
		tab.Expire(t0)
		if tab.Decide(pfx(host(1)), t0).Scope == ScopeAll {
			t.Error("counts before its time")
		}
		for d := time.Duration(0); d < 20*time.Minute; d += time.Second { // past any doubt about the clock
			tab.Expire(t0.Add(d))
		}
		if d := tab.Decide(pfx(host(1)), t0.Add(20*time.Minute)); !d.Drop || d.Scope != ScopeAll {
			t.Errorf("in its time: %+v", d)
		}
	}
}

func TestRenumber(t *testing.T) {
	tab := New(Options{Origin: "mx1", Epoch: 5})
	for i := range 4 {
		apply(t, tab, auto(host(i), Dictionary, time.Hour, t0), t0)
	}
	if _, err := tab.ClearOrigin("mx9", t0); err != nil {
		t.Fatal(err)
	}
	moved := tab.Renumber(6, func(LogInfo) uint64 { return 2 })
	if len(moved) != 3 || moved[0].Epoch != 6 || moved[0].Seq != 1 || moved[2].Kind != OriginClear {
		t.Fatalf("moved %+v", moved)
	}
	if e, n := tab.Number(); e != 6 || n != 3 || tab.Live("mx1", 5) != 2 || tab.Live("mx1", 6) != 3 {
		t.Errorf("epoch %d at %d, live %d and %d", e, n, tab.Live("mx1", 5), tab.Live("mx1", 6))
	}
	// Whoever has the old ones takes the new ones instead.
	other := New(Options{Origin: "mx2"})
	tab2 := New(Options{Origin: "mx1", Epoch: 5})
	for i := range 4 {
		merge(t, other, apply(t, tab2, auto(host(i), Dictionary, time.Hour, t0), t0).Entry, t0)
	}
	for _, e := range moved {
		if ok, err := other.Merge(e, t0); !ok || err != nil {
			t.Errorf("%+v: %v, %v", e, ok, err)
		}
	}
}

func TestLogAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l log
		want := map[uint64]uint32{}
		for range rapid.IntRange(0, 400).Draw(t, "n") {
			seq := rapid.Uint64Range(1, 5000).Draw(t, "seq")
			i := rapid.Uint32Range(1, 3).Draw(t, "node")
			if rapid.Bool().Draw(t, "put") {
				l.put(seq, i)
				want[seq] = i
			} else {
				l.remove(seq, i)
				if want[seq] == i {
					delete(want, seq)
				}
			}
		}
		from, to := rapid.Uint64Range(0, 5000).Draw(t, "from"), rapid.Uint64Range(0, 6000).Draw(t, "to")
		last, n := uint64(0), 0
		l.each(from, to, func(seq uint64, i uint32) bool {
			if seq <= last || seq < from || seq > to || want[seq] != i {
				t.Fatalf("%d: node %d, want %d", seq, i, want[seq])
			}
			last = seq
			n++
			return true
		})
		for seq := range want {
			if seq >= from && seq <= to {
				n--
			}
		}
		if n != 0 || l.live != len(want) {
			t.Fatalf("%d more than there are; live %d, want %d", n, l.live, len(want))
		}
	})
}

func TestTooManyManual(t *testing.T) {
	tab, _ := newTable(t)
	tab.manual = MaxManual
	if _, err := tab.Apply(manual(host(1), time.Time{}), t0); err == nil || !strings.Contains(err.Error(), "manual") {
		t.Errorf("%v", err)
	}
	apply(t, tab, Entry{Prefix: pfx(host(1)), Kind: Clear, Until: t0.Add(time.Hour)}, t0) // an unblock always works
	apply(t, tab, auto(host(2), Dictionary, time.Hour, t0), t0)
}
