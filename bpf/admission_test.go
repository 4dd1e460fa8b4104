package bpf

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

const tcpSYN, tcpACK, tcpRST, tcpFIN = 2, 16, 4, 1

// admitModel is the reference for limits and hold: buckets that are counted full of tokens, where the program has one
// time. Tokens are in 1/hz, so that a jiffy brings whole ones.
type admitModel struct {
	hz, now       uint64 // jiffies
	source, total bucketModel
	sources       map[netip.Prefix]*bucketModel
	allowed       []netip.Prefix

	hold   bool
	alive  uint64
	budget bucketModel
	seen   map[netip.Prefix]seenModel
	told   []netip.Addr
}

type bucketModel struct {
	rate, burst, tokens, at uint64
}

type seenModel struct{ last, until uint64 }

func (b *bucketModel) refill(hz, now uint64) {
	b.tokens = min(b.burst*hz, b.tokens+(now-b.at)*b.rate)
	b.at = now
}

func (b *bucketModel) has(hz, now uint64) bool {
	b.refill(hz, now)
	return b.rate == 0 || b.tokens >= hz
}

func (b *bucketModel) take(hz uint64) {
	if b.rate > 0 {
		b.tokens -= hz
	}
}

func sourceModel(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

func (m *admitModel) admit(src netip.Addr, scope uint8, pass Reason) Reason {
	if m == nil {
		return pass
	}
	for _, p := range m.allowed {
		if p.Contains(src) {
			return pass
		}
	}
	if !m.total.has(m.hz, m.now) {
		return DropLimitedTotal
	}
	key := sourceModel(src)
	b := m.sources[key]
	if b == nil {
		fresh := m.source
		fresh.tokens, fresh.at = fresh.burst*m.hz, m.now
		b = &fresh
		m.sources[key] = b
	}
	if !b.has(m.hz, m.now) {
		return DropLimitedSource
	}
	b.take(m.hz)
	m.total.take(m.hz)
	if !m.hold || m.now >= m.alive || scope&ScopeMX == 0 {
		return pass
	}
	if s, ok := m.seen[key]; ok && m.now-s.last < 24*3600*m.hz {
		if m.now < s.until {
			return DropHeld
		}
		m.seen[key] = seenModel{m.now, s.until}
		return pass
	}
	if !m.budget.has(m.hz, m.now) {
		return pass
	}
	m.budget.take(m.hz)
	m.told = append(m.told, src)
	m.seen[key] = seenModel{m.now, m.now + m.hz*9/10}
	return DropHeld
}

// freeze makes the programs' time stand still for limits and hold.
func (s *Shield) freeze(jiffies uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	atomic.StoreUint64(&s.gen.admit.Frozen, jiffies)
}

// admitLab is a lab whose time stands still. Powers of two and 5 divide any HZ << 20, so that rates are exact.
type admitLab struct {
	*lab
	model *admitModel
}

func newAdmitLab(t testing.TB, opts Options, rules []Rule) *admitLab {
	t.Helper()
	l := newLabWith(t, opts, rules)
	hz := l.shield.jiffies.hz
	m := &admitModel{
		hz: hz, now: 1 << 33, hold: opts.Hold,
		source:  bucketModel{rate: uint64(opts.SYNPerSource), burst: uint64(SourceBurst * opts.SYNPerSource)},
		total:   bucketModel{rate: uint64(opts.SYNTotal), burst: uint64(TotalBurst * opts.SYNTotal)},
		budget:  bucketModel{rate: uint64(opts.HoldBudget), burst: uint64(opts.HoldBudget)},
		sources: map[netip.Prefix]*bucketModel{}, seen: map[netip.Prefix]seenModel{},
	}
	for _, b := range []*bucketModel{&m.total, &m.budget} {
		b.tokens, b.at = b.burst*hz, m.now
	}
	l.ref.admit = m
	a := &admitLab{l, m}
	a.sleep(0)
	return a
}

func (l *admitLab) sleep(jiffies uint64) {
	l.model.now += jiffies
	l.shield.freeze(l.model.now)
}

func (l *admitLab) allow(t testing.TB, list ...string) {
	t.Helper()
	l.model.allowed = prefixes(list...)
	must(t, l.shield.SetAllowed(l.model.allowed))
}

func (l *admitLab) holdFor(t testing.TB, d time.Duration) {
	t.Helper()
	must(t, l.shield.HoldAlive(time.Now().Add(d), time.Now().Add(d)))
	l.model.alive = atomic.LoadUint64(&l.shield.gen.admit.Alive[0])
}

// only leaves one program, so that each packet is one packet.
func (l *admitLab) only(name string) *admitLab {
	for other := range l.progs {
		if other != name {
			delete(l.progs, other)
		}
	}
	return l
}

func syn(src string) []byte { return frame{src: src, port: 25}.bytes() }

// A burst is exact, then tokens come at the rate, and only SYNs to protected ports cost one.
func TestLimitSource(t *testing.T) {
	for _, name := range []string{"xdp", "tc"} {
		t.Run(name, func(t *testing.T) {
			l := newAdmitLab(t, Options{SYNPerSource: 5}, labRules).only(name)
			if len(l.progs) == 0 {
				t.Skip("skipped: tcx needs kernel 6.6")
			}
			const a, b = "192.0.2.1", "192.0.2.2"
			const a6, same6, b6 = "2001:db8:ffff::1", "2001:db8:ffff::2", "2001:db8:fffe::1"
			for range 25 {
				l.expect(t, PassNotBlocked, syn(a))
			}
			for range 3 {
				l.expect(t, DropLimitedSource, syn(a))
			}
			// Its sessions go on, and what is not for a mail port; others go on.
			for _, flags := range []byte{tcpACK, tcpSYN | tcpACK, tcpRST, tcpFIN | tcpACK, 0x18} {
				l.expect(t, PassNotBlocked, frame{src: a, port: 25, flags: flags}.bytes())
			}
			l.expect(t, PassOtherPort, frame{src: a, port: 443}.bytes())
			l.expect(t, DropLimitedSource, frame{src: a, port: 587}.bytes())
			l.expect(t, DropLimitedSource, frame{src: a, port: 25, flags: tcpSYN | 0xc0}.bytes()) // with ECN
			l.expect(t, PassNotBlocked, syn(b))
			// A first fragment too small for the flags is no way round, nor is a long chain of headers.
			tiny := frame{src: a, port: 25, frag: 0x2000}.bytes()[:14+20+8]
			l.expect(t, DropLimitedSource, tiny)
			// The other family; a /64 is one source.
			for i := range 25 {
				l.expect(t, PassNotBlocked, syn([]string{a6, same6}[i%2]))
			}
			l.expect(t, DropLimitedSource, syn(a6))
			l.expect(t, DropLimitedSource, syn(same6))
			var exts []ext
			for range 7 {
				exts = append(exts, ext{typ: protoDestOpts})
			}
			l.expect(t, DropLimitedSource, frame{src: a6, port: 25, exts: exts}.bytes())
			l.expect(t, PassNotBlocked, syn(b6))
			// Time: a fifth of a second brings one, eight of them eight, ten the whole burst and not more.
			fifth := l.model.hz / 5
			l.sleep(fifth - 1)
			l.expect(t, DropLimitedSource, syn(a))
			l.sleep(1)
			l.expect(t, PassNotBlocked, syn(a))
			l.expect(t, DropLimitedSource, syn(a))
			l.sleep(8 * fifth)
			for range 8 {
				l.expect(t, PassNotBlocked, syn(a))
			}
			l.expect(t, DropLimitedSource, syn(a))
			l.sleep(10 * l.model.hz)
			for range 25 {
				l.expect(t, PassNotBlocked, syn(a))
			}
			l.expect(t, DropLimitedSource, syn(a))
			// Blocked stays blocked, an exempt destination is none of our business.
			l.expect(t, DropExact, syn("198.18.0.2"))
		})
	}
}

// An IPv4 address and the /64 with the same bytes are two sources.
func TestLimitFamilies(t *testing.T) {
	l := newAdmitLab(t, Options{SYNPerSource: 1}, nil).only("xdp")
	for range 5 {
		l.expect(t, PassNotBlocked, syn("32.1.13.184")) // 2001:db8
	}
	l.expect(t, DropLimitedSource, syn("32.1.13.184"))
	l.expect(t, PassNotBlocked, syn("2001:db8::1"))
}

// The total: a flood from forged sources costs newcomers, and nobody else.
func TestLimitTotal(t *testing.T) {
	l := newAdmitLab(t, Options{SYNTotal: 32, SYNPerSource: 4}, nil).only("xdp")
	l.allow(t, "203.0.113.0/24")
	for i := range 32 {
		l.expect(t, PassNotBlocked, syn(netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}).String()))
	}
	l.expect(t, DropLimitedTotal, syn("198.18.0.0"))
	l.expect(t, DropLimitedTotal, syn("192.0.2.1"))
	l.expect(t, PassNotBlocked, frame{src: "192.0.2.1", port: 25, flags: tcpACK}.bytes())
	for range 100 {
		l.expect(t, PassNotBlocked, syn("203.0.113.7"))
	}
	// What its own limit stops takes nothing from the others.
	l.sleep(10 * l.model.hz)
	for range 20 {
		l.expect(t, PassNotBlocked, syn("192.0.2.9"))
	}
	for range 50 {
		l.expect(t, DropLimitedSource, syn("192.0.2.9"))
	}
	for i := range 12 {
		l.expect(t, PassNotBlocked, syn(netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String()))
	}
	l.expect(t, DropLimitedTotal, syn("198.18.1.200"))
}

// Allowed sources, by address and CIDR, are not counted; what is not allowed any more is.
func TestAllowed(t *testing.T) {
	l := newAdmitLab(t, Options{SYNPerSource: 1}, labRules).only("xdp")
	l.allow(t, "192.0.2.1/32", "203.0.113.0/24", "203.0.113.64/26", "2001:db8:600d::/48", "2001:db8:ffff::7/128")
	limited := func(src string) bool {
		t.Helper()
		n := 0
		for range 8 {
			if l.check(t, syn(src)) == DropLimitedSource {
				n++
			}
		}
		if n != 0 && n != 3 {
			t.Errorf("%s: %d of 8 were limited", src, n)
		}
		return n > 0
	}
	for src, want := range map[string]bool{
		"192.0.2.1": false, "192.0.2.2": true, "203.0.113.1": false, "203.0.113.65": false, "203.0.114.1": true,
		"2001:db8:600d:1::1": false, "2001:db8:600e::1": true, "2001:db8:ffff::7": false, "2001:db8:ffff::8": true,
	} {
		if limited(src) != want {
			t.Errorf("%s: limited %v", src, !want)
		}
	}
	l.allow(t, "203.0.113.64/26")
	for src, want := range map[string]bool{"192.0.2.1": true, "203.0.113.1": true, "203.0.113.65": false} {
		if limited(src) != want {
			t.Errorf("after the change: %s: limited %v", src, !want)
		}
	}
	l.expect(t, DropExact, syn("198.18.0.2"))
	wantHint(t, l.shield.SetAllowed(prefixes("203.0.113.0/24", "::ffff:192.0.2.0/120")), "unmap")
	if !errors.Is(func() error { l.shield.Close(); return l.shield.SetAllowed(nil) }(), os.ErrClosed) {
		t.Error("a closed shield takes a list")
	}
}

// Random packets at random times against the reference: limits, hold and tables together.
func TestAdmissionRandom(t *testing.T) {
	o := Options{SYNPerSource: 2, SYNTotal: 64, Hold: true, HoldBudget: 8, Exempt: labExempt}
	l := newAdmitLab(t, o, labRules)
	l.allow(t, "192.0.2.1/32", "2001:db8:1::/48")
	ctx, cancel := context.WithCancel(t.Context())
	var told []netip.Addr
	done := make(chan error, 1)
	events := make(chan netip.Addr, 1<<16)
	go func() { done <- l.shield.FirstSeen(ctx, func(f First) { events <- f.Source }) }()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	seen := map[Reason]int{}
	deadline := time.Now().Add(2 * time.Second)
	n := 0
	for ; time.Now().Before(deadline) && !t.Failed(); n++ {
		switch r.IntN(40) {
		case 0, 1, 2:
			l.sleep(r.Uint64N(l.model.hz))
		case 3:
			l.sleep(r.Uint64N(10 * l.model.hz))
		case 4:
			l.holdFor(t, 5*time.Second)
		case 5:
			if r.IntN(20) == 0 {
				l.sleep(24 * 3600 * l.model.hz)
			}
		}
		pkt := mutant(r)
		if r.IntN(2) == 0 {
			pkt = frame{src: labSources[r.IntN(len(labSources))], port: 25, flags: []byte{tcpSYN, tcpACK}[r.IntN(2)]}.bytes()
		}
		seen[l.check(t, pkt)]++
	}
	t.Logf("%d packets: %v", n, seen)
	// The limits have tests of their own: here chance decides whether their turn comes.
	for _, reason := range []Reason{DropHeld, PassNotBlocked, PassHole, DropExact} {
		if n > 20000 && seen[reason] == 0 {
			t.Errorf("no packet had the reason %s", reason)
		}
	}
	for len(told) < len(l.model.told) {
		select {
		case a := <-events:
			told = append(told, a)
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d first SYNs were told", len(told), len(l.model.told))
		}
	}
	for i, a := range told {
		if a != l.model.told[i] {
			t.Fatalf("first SYN %d was told as %s, want %s", i, a, l.model.told[i])
		}
	}
	cancel()
	must(t, <-done)
	if len(events) > 0 {
		t.Errorf("%d more were told", len(events))
	}
}

// The hold: once, for 0.9 s, told to the agent; then at once for a day.
func TestHold(t *testing.T) {
	l := newAdmitLab(t, Options{Hold: true, HoldBudget: 16}, labRules).only("xdp")
	l.allow(t, "203.0.113.0/24")
	hz := l.model.hz
	const a, b = "192.0.2.1", "192.0.2.2"
	// Nobody said that he lives: everything passes, and is not remembered.
	l.expect(t, PassNotBlocked, syn(a))
	l.holdFor(t, 5*time.Second)
	l.expect(t, DropHeld, syn(a))
	l.expect(t, PassNotBlocked, frame{src: a, port: 25, flags: tcpACK}.bytes())
	l.expect(t, PassOtherPort, frame{src: a, port: 443}.bytes())
	l.expect(t, PassNotBlocked, frame{src: a, port: 587}.bytes()) // who logs in is on lists often
	l.expect(t, PassNotBlocked, syn("203.0.113.1"))
	l.expect(t, DropExact, syn("198.18.0.2"))
	l.sleep(hz/2 + 1)
	l.expect(t, DropHeld, syn(a)) // another connection of it
	l.expect(t, DropHeld, syn(b))
	l.expect(t, DropHeld, syn("2001:db8:ffff::1"))
	l.expect(t, DropHeld, syn("2001:db8:ffff::2")) // the same /64
	l.sleep(hz * 9 / 10 / 2)
	l.expect(t, PassNotBlocked, syn(a)) // sent again after a second
	l.expect(t, DropHeld, syn(b))
	// The agent may end it earlier.
	must(t, l.shield.Release(netip.MustParseAddr(b)))
	l.model.seen[sourceModel(netip.MustParseAddr(b))] = seenModel{l.model.now, 0}
	l.expect(t, PassNotBlocked, syn(b))
	must(t, l.shield.Release(netip.MustParseAddr("192.0.2.99"))) // who is that?
	must(t, l.shield.Release(netip.MustParseAddr("2001:db8:ffff::ff")))
	l.model.seen[sourceModel(netip.MustParseAddr("2001:db8:ffff::"))] = seenModel{l.model.now, 0}
	l.expect(t, PassNotBlocked, syn("2001:db8:ffff::1"))
	// All day long.
	for range 23 {
		l.sleep(hz * 3600)
		l.holdFor(t, 5*time.Second)
		l.expect(t, PassNotBlocked, syn(a))
	}
	l.sleep(hz * 3600)
	l.holdFor(t, 5*time.Second)
	l.expect(t, PassNotBlocked, syn(a)) // it came an hour ago
	l.expect(t, DropHeld, syn(b))       // it did not
	// A block made meanwhile decides, in its time and after.
	must(t, l.shield.Set(netip.MustParsePrefix(b+"/32"), ScopeAll, future))
	l.ref.rules = append(l.ref.rules, rule(b+"/32", ScopeAll, future))
	l.sleep(hz)
	l.expect(t, DropExact, syn(b))
	// The agent is gone: at once, also those that are held.
	l.expect(t, DropHeld, syn("192.0.2.3"))
	l.sleep(5 * hz)
	l.expect(t, PassNotBlocked, syn("192.0.2.4"))
	l.holdFor(t, 5*time.Second)
	l.expect(t, DropHeld, syn("192.0.2.5"))
	must(t, l.shield.HoldAlive(time.Time{}, time.Time{}))
	l.model.alive = 0
	l.expect(t, PassNotBlocked, syn("192.0.2.5"))
	// However far ahead it is said, ten seconds are believed.
	l.holdFor(t, time.Hour)
	if ahead := l.model.alive - l.model.now; ahead < 9*hz || ahead > 10*hz+1 {
		t.Errorf("alive for %d jiffies of %d a second", ahead, hz)
	}
}

// What is above the budget, and what the ring has no room for, passes.
func TestHoldBudget(t *testing.T) {
	l := newAdmitLab(t, Options{Hold: true, HoldBudget: 1 << 12}, nil).only("xdp")
	l.holdFor(t, 10*time.Second)
	addr := func(i int) string { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}).String() }
	// Nobody reads, so the ring is full before the budget is spent: 32 bytes each.
	room := firstsSize / 32
	held := 0
	for i := range room + 100 {
		if got, _ := l.run(t, "xdp", syn(addr(i))); got == DropHeld {
			held++
		} else if i < room-1 {
			t.Fatalf("%d: %s", i, got)
		}
	}
	if held != room && held != room-1 {
		t.Errorf("%d were held, the ring has room for %d", held, room)
	}
	if n := atomic.LoadUint64(&l.shield.gen.admit.Untold); n != uint64(room+100-held) {
		t.Errorf("untold %d, want %d", n, room+100-held)
	}

	l = newAdmitLab(t, Options{Hold: true, HoldBudget: 16}, nil).only("xdp")
	l.holdFor(t, 10*time.Second)
	for i := range 16 {
		l.expect(t, DropHeld, syn(addr(i)))
	}
	l.expect(t, PassNotBlocked, syn(addr(100)))
	l.expect(t, DropHeld, syn(addr(3)))
	l.sleep(l.model.hz)
	l.expect(t, PassNotBlocked, syn(addr(3)))
	l.expect(t, DropHeld, syn(addr(100))) // it was not remembered, so it may be asked about now

	// Another budget holds at once, in the next generation too.
	budget := func(n int) {
		t.Helper()
		must(t, l.shield.SetHoldBudget(n))
		l.model.budget = bucketModel{rate: uint64(n), burst: uint64(n), tokens: uint64(n) * l.model.hz, at: l.model.now}
	}
	l.sleep(5 * l.model.hz)
	budget(4)
	for i := range 5 {
		l.expect(t, map[bool]Reason{true: DropHeld, false: PassNotBlocked}[i < 4], syn(addr(200+i)))
	}
	must(t, l.shield.grow(true))
	l.progs["xdp"] = l.shield.xdp
	l.sleep(5 * l.model.hz)
	l.holdFor(t, 10*time.Second)
	budget(32)
	for i := range 33 {
		l.expect(t, map[bool]Reason{true: DropHeld, false: PassNotBlocked}[i < 32], syn(addr(300+i)))
	}
	for _, n := range []int{-1, maxRate + 1} {
		if l.shield.SetHoldBudget(n) == nil {
			t.Errorf("a budget of %d is taken", n)
		}
	}
}

// What was seen outlives agent and generation; pins of a version or config that had no such table are taken over.
func TestSeenSurvives(t *testing.T) {
	o := Options{Hold: true, Pins: testPins(t)}
	s := openTest(t, o)
	held := func(s *Shield, src string) bool {
		t.Helper()
		must(t, s.HoldAlive(time.Now().Add(10*time.Second), time.Now().Add(10*time.Second)))
		_, err := s.Counters()
		must(t, err)
		l := &lab{shield: s, progs: nil}
		l.last, err = s.Counters()
		must(t, err)
		l.progs = map[string]*ebpf.Program{"xdp": s.xdp}
		got, _ := l.run(t, "xdp", syn(src))
		return got == DropHeld
	}
	s.freeze(1 << 40)
	if !held(s, "192.0.2.1") {
		t.Fatal("the first SYN passed")
	}
	must(t, s.grow(true))
	s.freeze(1<<40 + s.jiffies.hz)
	if held(s, "192.0.2.1") {
		t.Error("held again in the new generation")
	}
	s.Close()
	s = openTest(t, o)
	s.freeze(1<<40 + 2*s.jiffies.hz)
	if held(s, "192.0.2.1") {
		t.Error("held again by the next agent")
	}
	if !held(s, "192.0.2.2") {
		t.Error("the first SYN passed")
	}
	pin := s.pin(pinName(shieldMapSeen))
	s.Close()
	for name, change := range map[string]func(){
		"a pin that is missing": func() { must(t, os.Remove(pin)) },
		"a config without it": func() {
			s := openTest(t, Options{Pins: o.Pins})
			s.Close()
		},
	} {
		change()
		s = openTest(t, o)
		s.freeze(1<<40 + 3*s.jiffies.hz)
		if !held(s, "192.0.2.1") {
			t.Errorf("%s: the first SYN passed", name)
		}
		if _, err := os.Lstat(pin); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.Close()
	}
}

// The allowed list and the buckets are the same after the tables have grown.
func TestAdmissionGrows(t *testing.T) {
	l := newAdmitLab(t, Options{SYNPerSource: 1}, nil).only("xdp")
	l.allow(t, "203.0.113.7/32")
	for range 5 {
		l.expect(t, PassNotBlocked, syn("192.0.2.1"))
	}
	must(t, l.shield.grow(true))
	l.progs["xdp"] = l.shield.xdp
	for range 6 {
		l.expect(t, PassNotBlocked, syn("203.0.113.7"))
	}
	l.expect(t, DropLimitedSource, syn("192.0.2.1"))
}

func TestCheckLimits(t *testing.T) {
	must(t, CheckLimits(0, 0))
	must(t, CheckLimits(1_000_000, 1_000_000))
	must(t, CheckLimits(5, 0))
	for _, c := range [][2]int{{-1, 0}, {0, -1}, {1_000_001, 0}, {0, 1_000_001}} {
		wantHint(t, CheckLimits(c[0], c[1]), "a second")
	}
	wantHint(t, CheckLimits(6, 5), "raise the total")
	if _, err := Open(Options{SYNPerSource: -1, Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("opened with a negative limit")
	}
	if err := openTest(t, Options{}).HoldAlive(time.Now(), time.Now()); err == nil {
		t.Error("HoldAlive without Hold")
	}
}

// Off, a SYN costs what an ACK costs: limits and hold are not asked.
func TestAdmissionOff(t *testing.T) {
	l := newLab(t, nil)
	for range 100 {
		l.expect(t, PassNotBlocked, syn("192.0.2.1"))
	}
	for _, name := range []string{shieldMapBuckets, shieldMapSeen} {
		if n := l.shield.gen.maps[name].MaxEntries(); n != 1 {
			t.Errorf("%s has room for %d", name, n)
		}
	}
}
