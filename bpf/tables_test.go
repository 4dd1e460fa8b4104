package bpf

import (
	"errors"
	"maps"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// The Sink that the agent's block table writes to; it is declared there, and must fit.
var _ interface {
	Set(p netip.Prefix, scope uint8, until time.Time) error
	Remove(p netip.Prefix) error
} = (*Shield)(nil)

// model is the contract in its plainest form: the longest prefix that contains an address decides.
type model map[netip.Prefix]uint8

func (m model) decide(a netip.Addr) (scope uint8) {
	best := -1
	for p, s := range m {
		if p.Contains(a) && p.Bits() > best {
			best, scope = p.Bits(), s
		}
	}
	return scope
}

// Prefixes from a small part of the space, so that they nest.
func randomPrefix(r *rand.Rand) netip.Prefix {
	if r.IntN(2) == 0 {
		a := [4]byte{198, 18, byte(r.IntN(2)), byte(r.IntN(4) * 37)}
		return netip.PrefixFrom(netip.AddrFrom4(a), []int{32, 32, 32, 31, 28, 24, 24, 16}[r.IntN(8)]).Masked()
	}
	a := netip.MustParseAddr("2001:db8::").As16()
	a[5], a[7] = byte(r.IntN(2)), byte(r.IntN(3))
	a[8], a[15] = byte(r.IntN(2)*0x80), byte(r.IntN(3))
	return netip.PrefixFrom(netip.AddrFrom16(a), []int{64, 64, 64, 128, 127, 65, 80, 63, 48, 40}[r.IntN(10)]).Masked()
}

func TestLongestPrefixDecides(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t, nil)
	s := l.shield
	m := model{}
	untils := map[netip.Prefix]time.Time{}
	drops := map[netip.Prefix]uint64{}
	steps := 3000
	if testing.Short() {
		steps = 300
	}
	for step := range steps {
		p := randomPrefix(r)
		if r.IntN(3) == 0 {
			if err := s.Remove(p); err != nil {
				t.Fatal(err)
			}
			delete(m, p)
			delete(untils, p)
			delete(drops, p)
		} else {
			scope := uint8(r.IntN(4))
			until := time.Time{}
			if r.IntN(2) == 0 {
				until = future.Add(time.Duration(r.IntN(1e9)))
			}
			if err := s.Set(p, scope, until); err != nil {
				t.Fatal(err)
			}
			m[p], untils[p] = scope, until
		}

		// What a packet gets, from some address, on each port.
		for range 2 {
			a := randomPrefix(r).Addr()
			for _, port := range []uint16{25, 587} {
				got, _ := l.run(t, "xdp", frame{src: a.String(), port: port}.bytes())
				want := m.decide(a)&labPorts[port] != 0
				if got.Drop() != want {
					t.Fatalf("step %d: %s to %d: %s, the model drops: %v\n%v", step, a, port, got, want, m)
				}
				if want {
					best := netip.Prefix{}
					for p := range m {
						if p.Contains(a) && (!best.IsValid() || p.Bits() > best.Bits()) {
							best = p
						}
					}
					drops[best]++
				}
			}
		}

		if step%20 != 0 {
			continue
		}
		have := map[netip.Prefix]Rule{}
		if err := s.Each(func(r Rule) bool {
			if _, twice := have[r.Prefix]; twice {
				t.Errorf("step %d: Each saw %s twice", step, r.Prefix)
			}
			have[r.Prefix] = r
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if len(have) != len(m) {
			t.Fatalf("step %d: Each saw %d rules, there are %d", step, len(have), len(m))
		}
		for p, scope := range m {
			got := have[p]
			if got.Scope != scope || !got.Until.Equal(untils[p]) || got.Drops != drops[p] {
				t.Fatalf("step %d: %+v; want scope %d until %s drops %d", step, got, scope, untils[p], drops[p])
			}
			one, ok, err := s.Lookup(p)
			if err != nil || !ok || one != got {
				t.Fatalf("step %d: Lookup(%s) = %+v, %v, %v; Each saw %+v", step, p, one, ok, err, got)
			}
		}
		if p := randomPrefix(r); true {
			_, want := m[p]
			if _, ok, err := s.Lookup(p); ok != want || err != nil {
				t.Fatalf("step %d: Lookup(%s) = %v, %v", step, p, ok, err)
			}
		}
		checkPlaces(t, s)
	}

	// The next process sees the same, to the nanosecond.
	before := collect(t, s)
	opts := s.opts
	s.Close()
	again := openTest(t, opts)
	if after := collect(t, again); !maps.Equal(before, after) {
		t.Errorf("after a restart the rules are %v, were %v", after, before)
	}
	if !maps.Equal(again.longer, s.longer) || !maps.Equal(again.cidrs, s.cidrs) || again.cidrsV4 != s.cidrsV4 {
		t.Error("the bookkeeping is not what it was")
	}
	for p := range m {
		if err := again.Remove(p); err != nil {
			t.Fatal(err)
		}
	}
	if left := collect(t, again); len(left) != 0 {
		t.Errorf("left after removing all: %v", left)
	}
	var st shieldStateValue
	if err := again.maps[shieldMapState].Lookup(uint32(0), &st); err != nil || st.CidrsV4 != 0 || st.CidrsV6 != 0 {
		t.Errorf("state says %+v, %v", st, err)
	}
}

func collect(t testing.TB, s *Shield) map[netip.Prefix]Rule {
	t.Helper()
	all := map[netip.Prefix]Rule{}
	if err := s.Each(func(r Rule) bool { all[r.Prefix] = r; return true }); err != nil {
		t.Fatal(err)
	}
	return all
}

// checkPlaces: blocks of an exact size are in the hash unless something longer needs them in the trie.
func checkPlaces(t *testing.T, s *Shield) {
	t.Helper()
	for p := range collect(t, s) {
		if !isExactSize(p) {
			continue
		}
		e, inExact, err := s.getExact(p)
		if err != nil {
			t.Fatal(err)
		}
		if inExact == s.hasCIDR(p) {
			t.Errorf("%s: in exact table %v, in CIDR table %v", p, inExact, s.hasCIDR(p))
		}
		if inExact && (s.longer[p] > 0 || e.Scope == 0) {
			t.Errorf("%s is in the exact table, with %d longer ones, scope %d", p, s.longer[p], e.Scope)
		}
		if !inExact && s.longer[p] == 0 {
			if e, _, _ := s.getCIDR(p); e.Scope != 0 {
				t.Errorf("%s is in the CIDR table for no reason", p)
			}
		}
	}
}

// A blocked /64 stays blocked at every moment of its moves between the tables.
func TestMoveHasNoGap(t *testing.T) {
	l := newLab(t, nil)
	s := l.shield
	p := netip.MustParsePrefix("2001:db8:0:1::/64")
	hole := netip.MustParsePrefix("2001:db8:0:1::7/128")
	if err := s.Set(p, ScopeAll, time.Time{}); err != nil {
		t.Fatal(err)
	}
	pkt := frame{src: "2001:db8:0:1::1", port: 25}.bytes()
	done := make(chan error)
	stop := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := errors.Join(s.Set(hole, 0, time.Time{}), s.Remove(hole)); err != nil {
				done <- err
				return
			}
		}
	}()
	// Many runs per system call, so that runs meet every moment of a move. The counters tell of each.
	const packets = 2_000_000
	for range 40 {
		if _, err := s.xdp.Run(&ebpf.RunOptions{Data: pkt, Repeat: packets / 40}); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	c, err := s.Counters()
	must(t, err)
	if c.Packets() < packets || c.Drops() != c.Packets() { // an interrupted system call runs some again
		t.Errorf("%d of %d packets of the blocked /64 passed while the /64 was moved", c.Packets()-c.Drops(), c.Packets())
	}
	t.Logf("%d moves, %d drops from the hash, %d from the trie", s.moves, c[DropExact], c[DropCIDR])
	if r, ok, err := s.Lookup(p); !ok || err != nil || r.Drops == 0 || r.Drops > c.Drops() {
		t.Errorf("after the moves: %+v, %v, %v", r, ok, err)
	}
}

// A kill in the middle of a move leaves the prefix in both tables.
func TestRecoverHalfAMove(t *testing.T) {
	l := newLab(t, nil)
	s := l.shield
	set := func(p string, scope uint8) {
		t.Helper()
		if err := s.Set(netip.MustParsePrefix(p), scope, time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	set("2001:db8:0:1::/64", ScopeAll)
	set("2001:db8:0:1::7/128", 0) // the /64 is in the trie now
	set("2001:db8:0:2::/64", ScopeAll)
	set("198.18.0.1/32", 0)
	e := shieldEntry{Until: noEnd, Scope: ScopeAll}
	for _, err := range []error{
		s.putExact(netip.MustParsePrefix("2001:db8:0:1::/64"), e),
		s.putCIDRLocked(netip.MustParsePrefix("2001:db8:0:2::/64"), e),
		s.putExact(netip.MustParsePrefix("198.18.0.1/32"), e),
		// Put into the exact table before the longer one came; never moved.
		s.putExact(netip.MustParsePrefix("2001:db8:0:3::/64"), e),
		s.putCIDRLocked(netip.MustParsePrefix("2001:db8:0:3::9/128"), shieldEntry{Until: noEnd}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	l.shield = openTest(t, s.opts)
	l.progs = map[string]*ebpf.Program{"xdp": l.shield.xdp}
	checkPlaces(t, l.shield)
	for src, want := range map[string]Reason{
		"2001:db8:0:1::1": DropCIDR, "2001:db8:0:1::7": PassHole, "2001:db8:0:2::1": DropExact, "198.18.0.1": PassHole,
		"2001:db8:0:3::1": DropCIDR, "2001:db8:0:3::9": PassHole,
	} {
		if got, _ := l.run(t, "xdp", frame{src: src, port: 25}.bytes()); got != want {
			t.Errorf("%s: %s, want %s", src, got, want)
		}
	}
}

func TestUntil(t *testing.T) {
	l := newLab(t, nil)
	p := netip.MustParsePrefix("198.18.0.1/32")
	pkt := frame{src: "198.18.0.1", port: 25}.bytes()
	for _, c := range []struct {
		name  string
		until time.Time
		want  Reason
	}{
		{"no end", time.Time{}, DropExact},
		{"in an hour", time.Now().Add(time.Hour), DropExact},
		{"a second ago", time.Now().Add(-time.Second), PassExpired},
		{"before the boot", time.Now().Add(-20 * 365 * 24 * time.Hour), PassExpired},
		{"year 1", time.Time{}.Add(time.Second), PassExpired},
		{"year 9999", time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), DropExact},
	} {
		if err := l.shield.Set(p, ScopeMX, c.until); err != nil {
			t.Fatal(err)
		}
		if got, _ := l.run(t, "xdp", pkt); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}

	// Right within a moment: it drops until then and passes after.
	until := time.Now().Add(300 * time.Millisecond)
	if err := l.shield.Set(p, ScopeMX, until); err != nil {
		t.Fatal(err)
	}
	if r, _, _ := l.shield.Lookup(p); !r.Until.Equal(until) {
		t.Errorf("until %s is read back as %s", until, r.Until)
	}
	for {
		before := time.Now()
		got, _ := l.run(t, "xdp", pkt)
		after := time.Now()
		if got == PassExpired {
			if early := until.Sub(after); early > 2*time.Millisecond {
				t.Errorf("passed %s early", early)
			}
			break
		}
		if late := before.Sub(until); late > 2*time.Millisecond {
			t.Fatalf("still dropped %s late", late)
		}
	}
}

func TestClock(t *testing.T) {
	const offset = 1_700_000_000_000_000_000
	for _, c := range []struct {
		t    time.Time
		boot uint64
	}{
		{time.Time{}, noEnd},
		{time.Unix(0, offset), 0},
		{time.Unix(0, offset+5), 5},
		{time.Unix(0, offset-5), 0},
		{time.Unix(0, math.MinInt64), 0},
		{time.Unix(0, math.MaxInt64), math.MaxInt64 - offset},
		{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxInt64 - offset},
		{time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), 0},
	} {
		if got := toBoot(c.t, offset); got != c.boot {
			t.Errorf("toBoot(%s) = %d, want %d", c.t, got, c.boot)
		}
	}
	if got := toBoot(time.Unix(0, math.MaxInt64), -5); got != math.MaxInt64 {
		t.Errorf("an overflow gives %d", got)
	}
	now := time.Now()
	if got := toWall(toBoot(now, offset), offset); !got.Equal(now) {
		t.Errorf("%s comes back as %s", now, got)
	}
	if !toWall(noEnd, offset).IsZero() {
		t.Error("no end comes back as an end")
	}

	s := openTest(t, Options{})
	if s.ClockStepped() {
		t.Error("the clock was stepped, says a fresh shield")
	}
	p := netip.MustParsePrefix("198.18.0.1/32")
	if err := s.Set(p, ScopeMX, future); err != nil {
		t.Fatal(err)
	}
	for _, step := range []time.Duration{time.Hour, -2 * time.Hour} {
		was := s.clock
		if s.clockIs(was + int64(step)/int64(time.Hour)*int64(900*time.Millisecond)/2) {
			t.Error("half a second is no step")
		}
		if !s.clockIs(was + int64(step)) {
			t.Errorf("a step of %s was not seen", step)
		}
		if s.clockIs(was + int64(step)) {
			t.Error("one step was seen twice")
		}
	}
	if err := s.Set(p, ScopeMX, future); err != nil {
		t.Fatal(err)
	}
	if r, _, _ := s.Lookup(p); !r.Until.Equal(future) {
		t.Errorf("after the step: %s, want %s", r.Until, future)
	}
	// The clock was "stepped" while no agent ran: the next one sees it, once.
	s.Close()
	s = openTest(t, s.opts)
	if !s.ClockStepped() || s.ClockStepped() {
		t.Error("a step between two processes must be reported once")
	}
}

func TestBadPrefix(t *testing.T) {
	s := openTest(t, Options{})
	for _, p := range []netip.Prefix{
		{},
		netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 33),
		netip.MustParsePrefix("192.0.2.1/24"),
		netip.MustParsePrefix("2001:db8::1/64"),
		netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 128),
		netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.1"), 32),
	} {
		var h interface{ HintText() string }
		err := s.Set(p, ScopeMX, time.Time{})
		if err == nil || !errors.As(err, &h) {
			t.Errorf("Set(%v) = %v", p, err)
		}
		if err := s.Remove(p); err == nil {
			t.Errorf("Remove(%v) is no error", p)
		}
		if _, _, err := s.Lookup(p); err == nil {
			t.Errorf("Lookup(%v) is no error", p)
		}
	}
	if err := s.Set(netip.MustParsePrefix("192.0.2.1/32"), 4, time.Time{}); err == nil {
		t.Error("an unknown scope is no error")
	}
	if err := s.Remove(netip.MustParsePrefix("192.0.2.0/24")); err != nil {
		t.Errorf("removing what is not set: %v", err)
	}
	if left := collect(t, s); len(left) != 0 {
		t.Errorf("set after all: %v", left)
	}
	// The widest and the narrowest.
	for _, p := range []string{"0.0.0.0/0", "::/0", "255.255.255.255/32", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/128"} {
		if err := s.Set(netip.MustParsePrefix(p), ScopeMX, time.Time{}); err != nil {
			t.Error(err)
		}
	}
	if n := len(collect(t, s)); n != 4 {
		t.Errorf("%d of 4 extreme prefixes are there", n)
	}
}

func TestFull(t *testing.T) {
	s := openTest(t, Options{MaxExact: 4, MaxCIDRs: 4})
	fill := func(bits int, base string) error {
		a := netip.MustParseAddr(base)
		for range 64 { // a hash may take a few more than asked for
			if err := s.Set(netip.PrefixFrom(a, bits), ScopeMX, time.Time{}); err != nil {
				return err
			}
			b := a.AsSlice()
			b[bits/8-1]++
			a, _ = netip.AddrFromSlice(b)
		}
		return nil
	}
	for base, bits := range map[string]int{"198.18.0.0": 32, "198.19.0.0": 24, "2001:db8::": 64, "2001:db8:1::": 48} {
		err := fill(bits, base)
		var h interface{ HintText() string }
		if !errors.Is(err, ErrFull) || !errors.As(err, &h) {
			t.Errorf("%s/%d: %v", base, bits, err)
		}
	}
	// A longer prefix under an exact /64 needs two places in the full trie: all stays as it was.
	before := collect(t, s)
	if err := s.Set(netip.MustParsePrefix("2001:db8::7/128"), 0, time.Time{}); !errors.Is(err, ErrFull) {
		t.Errorf("%v", err)
	}
	if !maps.Equal(before, collect(t, s)) {
		t.Error("a Set that failed changed something")
	}
	checkPlaces(t, s)
	// Existing entries can be changed in a full table.
	for p := range before {
		if err := s.Set(p, ScopeAll, time.Time{}); err != nil {
			t.Error(err)
		}
	}
}

// Writing, reading and dropping at the same time: for the race detector, and for Each while the hash changes.
func TestConcurrent(t *testing.T) {
	l := newLab(t, nil)
	s := l.shield
	fixed := netip.MustParsePrefix("192.0.2.1/32")
	if err := s.Set(fixed, ScopeMX, time.Time{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	stop := make(chan struct{})
	for i := range 2 {
		go func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := errors.Join(s.Set(randomPrefix(r), uint8(r.IntN(4)), time.Time{}), s.Remove(randomPrefix(r))); err != nil {
					done <- err
					return
				}
			}
		}()
	}
	for range 200 {
		var seen []netip.Prefix
		if err := s.Each(func(r Rule) bool { seen = append(seen, r.Prefix); return true }); err != nil {
			t.Error(err)
		}
		if !slices.Contains(seen, fixed) {
			t.Error("Each missed an entry that nobody touched")
		}
		if _, err := s.Counters(); err != nil {
			t.Error(err)
		}
		_ = s.ClockStepped()
	}
	close(stop)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	checkPlaces(t, s)
	n := 0
	if err := s.Each(func(Rule) bool { n++; return false }); err != nil || n != 1 {
		t.Errorf("Each went on after false: %d, %v", n, err)
	}
}
