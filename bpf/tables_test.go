package bpf

import (
	"errors"
	"maps"
	"math"
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
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
			if got.Scope != scope || !sameUntil(s, got.Until, untils[p]) || got.Drops != drops[p] {
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

	// The next process sees the same, to the unit.
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
	if err := again.gen.maps[shieldMapState].Lookup(uint32(0), &st); err != nil || st.CidrsV4 != 0 || st.CidrsV6 != 0 {
		t.Errorf("state says %+v, %v", st, err)
	}
}

// unit is what times in the kernel are rounded up to.
func unit(s *Shield) time.Duration {
	return time.Duration(uint64(time.Second) << s.jiffies.shift / s.jiffies.hz)
}

// sameUntil says whether an end that was read back is what was set: the same, or less than a unit later.
func sameUntil(s *Shield, got, set time.Time) bool {
	if got.IsZero() || set.IsZero() {
		return got.IsZero() == set.IsZero()
	}
	return !got.Before(set) && got.Sub(set) < unit(s)
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
		e, inExact := s.getExact(p)
		if inExact == s.hasCIDR(p) {
			t.Errorf("%s: in exact table %v, in CIDR table %v", p, inExact, s.hasCIDR(p))
		}
		if inExact && (s.longer[p] > 0 || e.scope() == 0) {
			t.Errorf("%s is in the exact table, with %d longer ones, scope %d", p, s.longer[p], e.scope())
		}
		if !inExact && s.longer[p] == 0 {
			if e, _, _ := s.getCIDR(p); e.scope() != 0 {
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
	t.Logf("%d moves, %d drops from the exact table, %d from the trie", s.gen.state.Moves, c[DropExact], c[DropCIDR])
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
	e := entry{word: timeNoEnd<<timeShift | uint32(ScopeAll)}
	for _, err := range []error{
		s.putExact(netip.MustParsePrefix("2001:db8:0:1::/64"), e),
		s.putCIDRLocked(netip.MustParsePrefix("2001:db8:0:2::/64"), e),
		s.putExact(netip.MustParsePrefix("198.18.0.1/32"), e),
		// Put into the exact table before the longer one came; never moved.
		s.putExact(netip.MustParsePrefix("2001:db8:0:3::/64"), e),
		s.putCIDRLocked(netip.MustParsePrefix("2001:db8:0:3::9/128"), entry{word: timeNoEnd << timeShift}),
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
		{"a moment ago", time.Now().Add(-2 * time.Second), PassExpired},
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

	// Right within two seconds: it drops until then and passes soon after. The test moves the programs' clock, by the
	// skew of the state that is there for this, over the end of an entry; and once the real clock has to do it.
	until := time.Now().Add(time.Hour)
	if err := l.shield.Set(p, ScopeMX, until); err != nil {
		t.Fatal(err)
	}
	if r, _, _ := l.shield.Lookup(p); !sameUntil(l.shield, r.Until, until) {
		t.Errorf("until %s is read back as %s", until, r.Until)
	}
	skew := &l.shield.gen.state.Skew
	units := uint64(time.Hour / unit(l.shield))
	atomic.StoreUint64(skew, units-2)
	if got, _ := l.run(t, "xdp", pkt); got != DropExact {
		t.Errorf("two units before the end: %s", got)
	}
	atomic.StoreUint64(skew, units+2)
	if got, _ := l.run(t, "xdp", pkt); got != PassExpired {
		t.Errorf("two units after the end: %s", got)
	}
	atomic.StoreUint64(skew, 0)

	until = time.Now().Add(300 * time.Millisecond)
	if err := l.shield.Set(p, ScopeMX, until); err != nil {
		t.Fatal(err)
	}
	for {
		before := time.Now()
		got, _ := l.run(t, "xdp", pkt)
		after := time.Now()
		if got == PassExpired {
			if early := until.Sub(after); early > 0 {
				t.Errorf("passed %s early", early)
			}
			break
		}
		if late := before.Sub(until); late > 2*time.Second {
			t.Fatalf("still dropped %s late", late)
		}
	}
}

func TestClock(t *testing.T) {
	const offset = 1_700_000_000_000_000_000
	// By the source of the kernel: HZ -> shift.
	for hz, shift := range map[uint64]uint32{100: 6, 250: 7, 300: 8, 1000: 9} {
		c := &jiffyClock{hz: hz, shift: shiftFor(hz)}
		if c.shift != shift {
			t.Errorf("HZ %d: shift %d, want %d", hz, c.shift, shift)
		}
		unit := uint64(1e9) << shift / hz
		for _, x := range []struct {
			t     time.Time
			units uint32
		}{
			{time.Time{}, timeNoEnd},
			{time.Unix(0, offset), 0},
			{time.Unix(0, offset+1), 1},
			{time.Unix(0, offset+int64(unit)), 1},
			{time.Unix(0, offset+int64(unit)+1), 2},
			{time.Unix(0, offset-5), 0},
			{time.Unix(0, math.MinInt64), 0},
			{time.Unix(0, math.MaxInt64), timeNoEnd - 1},
			{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), timeNoEnd - 1},
			{time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC), 0},
		} {
			if got := c.toUnits(x.t, offset); got != x.units {
				t.Errorf("HZ %d: toUnits(%s) = %d, want %d", hz, x.t, got, x.units)
			}
		}
		if got := c.toUnits(time.Unix(0, math.MaxInt64), math.MinInt64+1); got != timeNoEnd-1 {
			t.Errorf("HZ %d: an overflow gives %d", hz, got)
		}
		for range 1000 {
			units := uint32(rand.Uint64N(timeNoEnd))
			if back := c.toUnits(c.toWall(units, offset), offset); back != units {
				t.Fatalf("HZ %d: %d units come back as %d", hz, units, back)
			}
		}
		if !c.toWall(timeNoEnd, offset).IsZero() {
			t.Error("no end comes back as an end")
		}
		// HZ is found from the uptime, before and after the low half of jiffies has wrapped, and never guessed wrong.
		for _, up := range []float64{1, 30, 200, 290, 300, 301, 400, 86400, 1e8} {
			j, ns := bootJiffies(hz)+uint64(up*float64(hz)), uint64(up*1e9)
			if got, ok := hzByUptime(j, ns+200e6); ok && got != hz || !ok && (up < 200 || up > 400) {
				t.Errorf("HZ %d after %.0f s: %d, %v", hz, up, got, ok)
			}
		}
		if got := hzByPace(hz/10, 100e6); got != hz {
			t.Errorf("HZ %d by pace: %d", hz, got)
		}
	}

	s := openTest(t, Options{})
	if j, mono, err := s.jiffies.read(); err != nil {
		t.Error(err)
	} else if up := float64(j-bootJiffies(s.jiffies.hz)) / float64(s.jiffies.hz); math.Abs(up-float64(mono)/1e9) > 5 {
		t.Errorf("HZ %d: by jiffies the machine is up for %.1f s, by the clock for %.1f s", s.jiffies.hz, up, float64(mono)/1e9)
	}
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
	if r, _, _ := s.Lookup(p); !sameUntil(s, r.Until, future) {
		t.Errorf("after the step: %s, want %s", r.Until, future)
	}
	// The clock was "stepped", or the machine suspended, while no agent ran: the next one sees it, once.
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

// The bitmap in front of the tries: bits of every CIDR are set, of any width, and go when the CIDRs do.
func TestNear(t *testing.T) {
	l := newLab(t, nil)
	s := l.shield
	bitsSet := func() (n int) {
		for _, w := range s.gen.near {
			n += bits.OnesCount64(w)
		}
		return n
	}
	for _, c := range []struct {
		prefix, in, out string
		bits            int
	}{
		{"0.0.0.0/0", "203.0.113.9", "", 1 << 24},
		{"128.0.0.0/1", "198.18.0.1", "127.255.255.255", 1 << 23},
		{"198.0.0.0/8", "198.255.255.255", "199.0.0.0", 1 << 16},
		{"198.18.0.0/15", "198.19.255.255", "198.20.0.0", 1 << 9},
		{"198.18.64.0/18", "198.18.127.255", "198.18.128.0", 64},
		{"198.18.32.0/19", "198.18.63.255", "198.18.31.255", 32},
		{"198.18.3.0/24", "198.18.3.255", "198.18.4.0", 1},
		{"198.18.3.0/25", "198.18.3.127", "198.18.3.128", 1},
		{"255.255.255.254/31", "255.255.255.255", "255.255.255.253", 1},
		{"::/0", "2001:db8::1", "", 1 << 20},
		{"2000::/3", "2001:db8::1", "4000::1", 1 << 20},
		{"2001:db8::/31", "2001:db9::1", "2001:dba::1", 1 << 20},
		{"2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1", 1},
		{"2001:db8:1::/48", "2001:db8:1::1", "2001:db8:2::1", 1},
		{"2001:db8::7/128", "2001:db8::7", "2001:db8::8", 1},
	} {
		p := netip.MustParsePrefix(c.prefix)
		must(t, s.Set(p, ScopeAll, time.Time{}))
		if got, _ := l.run(t, "xdp", frame{src: c.in, port: 25}.bytes()); got != DropCIDR {
			t.Errorf("%s in %s: %s", c.in, p, got)
		}
		if c.out != "" {
			if got, _ := l.run(t, "xdp", frame{src: c.out, port: 25}.bytes()); got != PassNotBlocked {
				t.Errorf("%s out of %s: %s", c.out, p, got)
			}
		}
		if n := bitsSet(); n != c.bits {
			t.Errorf("%s sets %d bits, want %d", p, n, c.bits)
		}
		must(t, s.Remove(p))
		if got, _ := l.run(t, "xdp", frame{src: c.in, port: 25}.bytes()); got != PassNotBlocked {
			t.Errorf("%s after %s was removed: %s", c.in, p, got)
		}
		s.refreshNearLocked()
		if n := bitsSet(); n != 0 {
			t.Errorf("%s leaves %d bits", p, n)
		}
	}
	// Many come and go: stale bits do not pile up, those of the living stay.
	stay := netip.MustParsePrefix("198.18.3.0/24")
	must(t, s.Set(stay, ScopeAll, time.Time{}))
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		must(t, errors.Join(s.Set(p, ScopeMX, time.Time{}), s.Remove(p)))
	}
	if n := bitsSet(); n > 100 {
		t.Errorf("%d bits for one CIDR", n)
	}
	s.Close()
	l.shield = openTest(t, s.opts)
	s = l.shield
	if n := bitsSet(); n != 1 {
		t.Errorf("%d bits for one CIDR after a restart", n)
	}
	l.progs = map[string]*ebpf.Program{"xdp": s.xdp}
	if got, _ := l.run(t, "xdp", frame{src: "198.18.3.7", port: 25}.bytes()); got != DropCIDR {
		t.Errorf("after a restart: %s", got)
	}
}
