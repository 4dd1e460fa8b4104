package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Scopes: bits of the port groups an entry is about. 0 makes a hole.
const (
	ScopeMX         uint8 = 1
	ScopeSubmission uint8 = 2
	ScopeAll              = ScopeMX | ScopeSubmission
)

// ErrFull is returned by Set when the table has no room.
var ErrFull = errors.New("table is full")

// Rule is an entry as the kernel has it.
type Rule struct {
	Prefix netip.Prefix
	Scope  uint8     // bits; 0 is a hole
	Until  time.Time // zero: no end
	Drops  uint64    // packets dropped because of it
}

// Where a prefix lives. IPv4 /32 and IPv6 /64 blocks are nearly everything, and live in the exact tables; all else lives
// in a trie. The programs ask the exact table first, so a /64 that has something longer under it would hide it: such a
// /64 lives in the trie as long as that lasts. Holes live in the trie always.
//
// A move inserts at the new place before it deletes at the old one, so a blocked source stays blocked. Drops are
// carried over by read and write; what is dropped in the microseconds between is lost to the count. The same holds for
// Set on an existing CIDR.

// entry is what a table says about a prefix.
type entry struct {
	word  uint32 // time and scope, see maps.h
	drops uint64
}

func (e entry) scope() uint8 { return uint8(e.word) & ScopeAll }

// errNoRoom: the exact table must get a new generation before this entry fits in.
var errNoRoom = errors.New("no room in the exact table")

func isExactSize(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() == 32 || p.Addr().Is6() && p.Bits() == 64
}

// isLonger says that p lies within a /64 and is not all of it.
func isLonger(p netip.Prefix) bool { return p.Addr().Is6() && p.Bits() > 64 }

func net64(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), 64).Masked() }

// checkPrefix refuses what is not the canonical form of a prefix.
func checkPrefix(p netip.Prefix) error {
	switch {
	case p.Addr().Is4() && p.Bits() == 32:
		return nil // nearly all
	case !p.IsValid():
		return hint(errors.New("invalid prefix"), "give an address and a length, like 192.0.2.7/32 or 2001:db8::/64")
	case p.Addr().Is4In6():
		return hint(fmt.Errorf("prefix %s is an IPv4-mapped IPv6 prefix", p), "unmap it: packets carry the IPv4 address")
	case p.Masked() != p:
		return hint(fmt.Errorf("prefix %s has host bits set", p), fmt.Sprintf("did you mean %s?", p.Masked()))
	}
	return nil
}

// Keys in network order, as the packet has them.

func (s *Shield) exactTable(p netip.Prefix) (t *exactTable, key uint64) {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return s.gen.v4, uint64(binary.NativeEndian.Uint32(a[:]))
	}
	a := p.Addr().As16()
	return s.gen.v6, binary.NativeEndian.Uint64(a[:8])
}

func (s *Shield) cidrTable(p netip.Prefix) (m *ebpf.Map, key any) {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return s.gen.maps[shieldMapCidrV4], &shieldCidrV4Key{Bits: uint32(p.Bits()), Addr: binary.NativeEndian.Uint32(a[:])}
	}
	k := &shieldCidrV6Key{Bits: uint32(p.Bits())}
	a := p.Addr().As16()
	for i := range k.Addr {
		k.Addr[i] = binary.NativeEndian.Uint32(a[4*i:])
	}
	return s.gen.maps[shieldMapCidrV6], k
}

func exactV4Prefix(key uint32) netip.Prefix {
	var a [4]byte
	binary.NativeEndian.PutUint32(a[:], key)
	return netip.PrefixFrom(netip.AddrFrom4(a), 32)
}

func exactV6Prefix(key uint64) netip.Prefix {
	var a [16]byte
	binary.NativeEndian.PutUint64(a[:8], key)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

func cidrV4Prefix(k shieldCidrV4Key) netip.Prefix {
	return netip.PrefixFrom(exactV4Prefix(k.Addr).Addr(), int(k.Bits))
}

func cidrV6Prefix(k shieldCidrV6Key) netip.Prefix {
	var a [16]byte
	for i, w := range k.Addr {
		binary.NativeEndian.PutUint32(a[4*i:], w)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), int(k.Bits))
}

// Set makes packets from p to the ports of scope drop until until (zero time: no end). Scope 0 makes a hole: addresses
// of p pass although a wider prefix is set. The longest prefix that contains an address decides; an exact entry
// (IPv4 /32, IPv6 /64) that has ended decides nothing any more, a CIDR that has ended decides "pass" until it is
// removed. Set on an existing entry keeps its drops. Safe for concurrent use.
//
// Errors: [ErrFull]; a prefix that is not canonical (host bits, IPv4-mapped); an unknown scope bit.
func (s *Shield) Set(p netip.Prefix, scope uint8, until time.Time) error {
	err := checkEntry(p, scope)
	if err == nil {
		err = s.withRoom(p, func() error { return s.setLocked(p, s.word(scope, until)) })
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	return nil
}

func checkEntry(p netip.Prefix, scope uint8) error {
	if scope&^ScopeAll != 0 {
		return fmt.Errorf("unknown scope bits %#x", scope)
	}
	return checkPrefix(p)
}

// word is what the tables say of an entry; see maps.h. The lock is held: the clock may be stepped.
func (s *Shield) word(scope uint8, until time.Time) uint32 {
	return s.jiffies.toUnits(until, s.clock)<<timeShift | uint32(scope)
}

// withRoom runs a change under the lock, and once more after the exact table of p has got room if that lacked.
func (s *Shield) withRoom(p netip.Prefix, change func() error) error {
	for try := 0; ; try++ {
		s.mu.Lock()
		err := os.ErrClosed
		if !s.closed {
			err = change()
		}
		s.mu.Unlock()
		if !errors.Is(err, errNoRoom) || try == 8 {
			return err
		}
		if err := s.grow(p.Addr().Is4()); err != nil {
			return hint(fmt.Errorf("%w: it cannot grow: %w", ErrFull, err), "let blocks end earlier")
		}
	}
}

func (s *Shield) setLocked(p netip.Prefix, word uint32) error {
	e := entry{word: word}
	inCIDRs := s.hasCIDR(p)
	if inCIDRs {
		old, _, err := s.getCIDR(p)
		if err != nil {
			return err
		}
		e.drops = old.drops
	}
	if !isExactSize(p) {
		if isLonger(p) && !inCIDRs {
			return s.setUnderExactLocked(p, e)
		}
		return s.putCIDRLocked(p, e)
	}

	if e.scope() == 0 || s.longer[p] > 0 {
		old, inExact := s.getExact(p)
		e.drops += old.drops
		if err := s.putCIDRLocked(p, e); err != nil {
			return err
		}
		if inExact {
			s.deleteExact(p)
		}
		return nil
	}
	if err := s.putExact(p, e); err != nil {
		return err
	}
	if inCIDRs {
		s.moveLocked()
		return s.deleteCIDRLocked(p)
	}
	return nil
}

// setUnderExactLocked adds a prefix longer than /64. If its /64 is in the exact table, that moves to the trie.
func (s *Shield) setUnderExactLocked(p netip.Prefix, e entry) error {
	around := net64(p)
	old, inExact := s.getExact(around)
	if inExact {
		if err := s.putCIDRLocked(around, old); err != nil {
			return err
		}
	}
	if err := s.putCIDRLocked(p, e); err != nil {
		if inExact { // as it was: the exact one still decides
			return errors.Join(err, s.deleteCIDRLocked(around))
		}
		return err
	}
	if inExact {
		s.deleteExact(around)
	}
	return nil
}

// Remove forgets p; removing what is not set is no error. Safe for concurrent use.
func (s *Shield) Remove(p netip.Prefix) error {
	if err := checkPrefix(p); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	err := s.withRoom(p, func() error { return s.removeLocked(p) })
	if err != nil {
		return fmt.Errorf("remove %s: %w", p, err)
	}
	return nil
}

func (s *Shield) removeLocked(p netip.Prefix) error {
	if isExactSize(p) {
		s.deleteExact(p)
	}
	if s.hasCIDR(p) {
		if err := s.deleteCIDRLocked(p); err != nil {
			return err
		}
	}
	if isLonger(p) && s.longer[net64(p)] == 0 {
		return s.moveBackLocked(net64(p))
	}
	return nil
}

// moveBackLocked moves a /64 block that has nothing longer under it any more back to the exact table.
func (s *Shield) moveBackLocked(p netip.Prefix) error {
	if !s.hasCIDR(p) {
		return nil
	}
	e, _, err := s.getCIDR(p)
	if err != nil || e.scope() == 0 {
		return err
	}
	if err := s.putExact(p, e); err != nil {
		if errors.Is(err, ErrFull) {
			return nil // it is as right, if slower, where it is
		}
		return err
	}
	s.moveLocked()
	return s.deleteCIDRLocked(p)
}

// moveLocked tells the programs that an entry stands in both tables and is about to leave the trie: one that looked
// into the exact table before it came there must look again. See decide.h.
func (s *Shield) moveLocked() { atomic.AddUint64(&s.gen.state.Moves, 1) }

// Lookup returns the rule of exactly p, if p is set. It does not say what happens to an address of p: a longer or
// wider prefix may decide that. Safe for concurrent use.
func (s *Shield) Lookup(p netip.Prefix) (Rule, bool, error) {
	if err := checkPrefix(p); err != nil {
		return Rule{}, false, fmt.Errorf("look up: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return Rule{}, false, os.ErrClosed
	}
	var e entry
	var found bool
	var err error
	if isExactSize(p) {
		e, found = s.getExact(p)
	}
	if !found && s.hasCIDR(p) {
		e, found, err = s.getCIDR(p)
	}
	if err != nil || !found {
		return Rule{}, false, err
	}
	return s.rule(p, e, s.clock), true, nil
}

func (s *Shield) rule(p netip.Prefix, e entry, clock int64) Rule {
	return Rule{Prefix: p, Scope: e.scope(), Until: s.jiffies.toWall(e.word>>timeShift, clock), Drops: e.drops}
}

// Each calls f with every rule, in no order, ended ones included, until f returns false. f is called outside of any
// lock and may call other methods. It sees the exact entries as they were at one moment; a CIDR that is set or removed,
// or a /64 that moves, while Each runs may be seen or not, or (a /64) twice.
func (s *Shield) Each(f func(Rule) bool) error {
	type exact struct {
		key   uint64
		word  uint32
		drops uint32
	}
	// A copy: entries move about in the table, and a walk beside that would miss some. 16 bytes each, for a moment.
	snapshot := func(t *exactTable) []exact {
		all := make([]exact, 0, t.used)
		t.each(func(line, slot int, key uint64, word uint32) {
			all = append(all, exact{key, word, atomic.LoadUint32(t.drops(line, slot))})
		})
		return all
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return os.ErrClosed
	}
	clock := s.clock
	v4, v6 := snapshot(s.gen.v4), snapshot(s.gen.v6)
	carried := maps.Clone(s.carried)
	cidrs := slices.Collect(maps.Keys(s.cidrs))
	s.mu.Unlock()

	visit := func(p netip.Prefix, e exact) bool {
		return f(s.rule(p, entry{e.word, uint64(e.drops) + carried[p]}, clock))
	}
	for _, e := range v4 {
		if !visit(exactV4Prefix(uint32(e.key)), e) {
			return nil
		}
	}
	for _, e := range v6 {
		if !visit(exactV6Prefix(e.key), e) {
			return nil
		}
	}
	for _, p := range cidrs {
		s.mu.Lock()
		var e entry
		var err error
		found := !s.closed && s.hasCIDR(p)
		if found {
			e, found, err = s.getCIDR(p)
		}
		s.mu.Unlock()
		if err != nil {
			return fmt.Errorf("read the tables: %w", err)
		}
		if found && !f(s.rule(p, e, clock)) {
			return nil
		}
	}
	return nil
}

// Single tables. Only these touch the maps and the bookkeeping.

func (s *Shield) hasCIDR(p netip.Prefix) bool {
	_, ok := s.cidrs[p]
	return ok
}

func (s *Shield) getExact(p netip.Prefix) (entry, bool) {
	t, key := s.exactTable(p)
	line, slot, ok := t.find(key)
	if !ok {
		return entry{}, false
	}
	_, word := t.get(line, slot)
	return entry{word, uint64(atomic.LoadUint32(t.drops(line, slot))) + s.carried[p]}, true
}

// getCIDR must only be asked for what hasCIDR: a trie answers with the longest match otherwise.
func (s *Shield) getCIDR(p netip.Prefix) (entry, bool, error) {
	m, key := s.cidrTable(p)
	var v shieldCidrValue
	err := m.Lookup(key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return entry{}, false, nil
	}
	return entry{v.Until, v.Drops}, err == nil, err
}

// putExact writes an entry. One that is there keeps its drops, and gets those of e on top.
func (s *Shield) putExact(p netip.Prefix, e entry) error {
	t, key := s.exactTable(p)
	return s.putExactAt(p, e, t, key, t.placeOf(key))
}

func (s *Shield) putExactAt(p netip.Prefix, e entry, t *exactTable, key uint64, at place) error {
	line, slot, ok := t.findAt(at, key)
	if ok {
		t.set(line, slot, key, e.word)
		s.addDrops(p, t.drops(line, slot), e.drops)
		return nil
	}
	if t.used >= s.opts.MaxExact {
		return full(s.opts.MaxExact, "raise the maximum of exact entries")
	}
	if t.used >= t.capacity() {
		return errNoRoom
	}
	few := e.drops
	if few > maxFewDrops {
		few = 0
	}
	if !t.addAt(at, key, e.word, uint32(few)) {
		return errNoRoom
	}
	if few != e.drops {
		s.carried[p] += e.drops
	}
	return nil
}

// maxFewDrops is how many drops a counter of 32 bits is trusted with: the other half is room until the next collection.
const maxFewDrops = 1 << 31

func (s *Shield) addDrops(p netip.Prefix, counter *uint32, n uint64) {
	if n >= maxFewDrops {
		s.carried[p] += n
		return
	}
	if n > 0 {
		atomic.AddUint32(counter, uint32(n))
	}
}

// collectDropsLocked takes drops out of counters that have got far. At 35 million packets a second from one source a
// counter goes from half full to over in a minute.
func (s *Shield) collectDropsLocked() {
	for _, c := range []struct {
		t      *exactTable
		prefix func(uint64) netip.Prefix
	}{
		{s.gen.v4, func(k uint64) netip.Prefix { return exactV4Prefix(uint32(k)) }},
		{s.gen.v6, exactV6Prefix},
	} {
		c.t.each(func(line, slot int, key uint64, _ uint32) {
			if n := c.t.drops(line, slot); atomic.LoadUint32(n) >= maxFewDrops {
				atomic.AddUint32(n, ^uint32(maxFewDrops-1))
				s.carried[c.prefix(key)] += maxFewDrops
			}
		})
	}
}

func (s *Shield) deleteExact(p netip.Prefix) {
	t, key := s.exactTable(p)
	if t.remove(key) {
		delete(s.carried, p)
	}
}

func (s *Shield) putCIDRLocked(p netip.Prefix, e entry) error {
	m, key := s.cidrTable(p)
	have := s.cidrsV4
	if p.Addr().Is6() {
		have = len(s.cidrs) - s.cidrsV4
	}
	// One place stays free: kernels before 6.13 refuse to change an entry of a trie that is full.
	if room := int(m.MaxEntries()) - 1; !s.hasCIDR(p) && have >= room {
		return full(room, "raise the maximum of CIDRs")
	}
	s.gen.setNear(p) // before the entry, which would not be looked for otherwise
	if err := put(m, key, &shieldCidrValue{Until: e.word, Drops: e.drops}, "raise the maximum of CIDRs"); err != nil {
		return err
	}
	if !s.hasCIDR(p) {
		s.noteCIDRLocked(p)
		s.countCIDRsLocked()
	}
	return nil
}

func (s *Shield) noteCIDRLocked(p netip.Prefix) {
	s.cidrs[p] = struct{}{}
	if p.Addr().Is4() {
		s.cidrsV4++
	}
	if isLonger(p) {
		s.longer[net64(p)]++
	}
}

func (s *Shield) deleteCIDRLocked(p netip.Prefix) error {
	m, key := s.cidrTable(p)
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	delete(s.cidrs, p)
	if p.Addr().Is4() {
		s.cidrsV4--
	}
	if isLonger(p) {
		if s.longer[net64(p)]--; s.longer[net64(p)] == 0 {
			delete(s.longer, net64(p))
		}
	}
	s.countCIDRsLocked()
	// Something very wide leaves so many stale bits that they go at once; of small ones, when they are a quarter.
	s.farCIDRs++
	if s.farCIDRs > 64+len(s.cidrs)/4 || p.Bits() < 16 {
		s.refreshNearLocked()
	}
	return nil
}

// countCIDRsLocked tells the programs whether there is any CIDR to ask for.
func (s *Shield) countCIDRsLocked() {
	atomic.StoreUint32(&s.gen.state.CidrsV4, uint32(s.cidrsV4))
	atomic.StoreUint32(&s.gen.state.CidrsV6, uint32(len(s.cidrs)-s.cidrsV4))
}

// The bits of cidr_near, see maps.h.

const (
	nearV4Words = 1 << 18 // NEAR_V4_WORDS
	nearV6Words = 1 << 14 // NEAR_V6_WORDS
)

// eachNear calls f with the words and bits that p touches.
func eachNear(p netip.Prefix, f func(word int, mask uint64)) {
	if p.Addr().Is6() {
		if p.Bits() < 32 {
			for w := range nearV6Words {
				f(nearV4Words+w, math.MaxUint64)
			}
			return
		}
		a := p.Addr().As16()
		bit := binary.NativeEndian.Uint32(a[:4]) * 0x9e3779b1 >> 12
		f(nearV4Words+int(bit>>6), 1<<(bit&63))
		return
	}
	a := p.Addr().As4()
	first := int(binary.BigEndian.Uint32(a[:]) >> 8)
	n := 1 << max(0, 24-p.Bits()) // a power of two, and first a multiple of it
	if n < 64 {
		f(first>>6, (1<<n-1)<<(first&63))
		return
	}
	for w := first >> 6; w < (first+n)>>6; w++ {
		f(w, math.MaxUint64)
	}
}

func (g *generation) setNear(p netip.Prefix) {
	eachNear(p, func(w int, mask uint64) {
		if was := g.near[w]; was&mask != mask {
			atomic.StoreUint64(&g.near[w], was|mask)
		}
	})
}

// refreshNearLocked takes out stale bits. In place: what a CIDR needs is set in the old word and in the new one.
func (s *Shield) refreshNearLocked() {
	fresh := make([]uint64, len(s.gen.near))
	for p := range s.cidrs {
		eachNear(p, func(w int, mask uint64) { fresh[w] |= mask })
	}
	for i, w := range fresh {
		if s.gen.near[i] != w {
			atomic.StoreUint64(&s.gen.near[i], w)
		}
	}
	s.farCIDRs = 0
}

func full(size int, text string) error {
	return hint(fmt.Errorf("%w (%d entries)", ErrFull, size), text+", or let blocks end earlier")
}

func put(m *ebpf.Map, key, e any, ifFull string) error {
	wait := 100 * time.Microsecond
	for {
		err := m.Put(key, e)
		switch {
		case errors.Is(err, unix.E2BIG), errors.Is(err, unix.ENOSPC):
			return full(int(m.MaxEntries()), ifFull)
		case errors.Is(err, unix.ENOMEM) && wait < 100*time.Millisecond:
			// The kernel refills the maps' memory in the background; a fast writer overtakes it. Wait for it.
			time.Sleep(wait)
			wait *= 2
		default:
			return err
		}
	}
}

// recoverTables builds the bookkeeping from the tables, and mends what a kill in the middle of a move left: the same
// prefix in both tables.
func (s *Shield) recoverTables() error {
	if s.clock = s.gen.state.Clock; s.clock == 0 {
		var err error
		if s.clock, err = s.jiffies.wallMinusJiffies(); err != nil {
			return err
		}
		atomic.StoreInt64(&s.gen.state.Clock, s.clock)
	}

	var v shieldCidrValue
	var k4 shieldCidrV4Key
	it := s.gen.maps[shieldMapCidrV4].Iterate()
	for it.Next(&k4, &v) {
		s.noteCIDRLocked(cidrV4Prefix(k4))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read cidr_v4: %w", err)
	}
	var k6 shieldCidrV6Key
	it = s.gen.maps[shieldMapCidrV6].Iterate()
	for it.Next(&k6, &v) {
		s.noteCIDRLocked(cidrV6Prefix(k6))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read cidr_v6: %w", err)
	}
	s.refreshNearLocked()
	s.countCIDRsLocked()

	// What is right of the two cannot be known; the agent sets everything again after a start. Until then: a hole wins
	// (fail open), and a /64 stays where what is longer needs it.
	for p := range s.cidrs {
		if !isExactSize(p) {
			continue
		}
		e, _, err := s.getCIDR(p)
		if err != nil {
			return err
		}
		_, both := s.getExact(p)
		switch {
		case e.scope() == 0 || s.longer[p] > 0:
			s.deleteExact(p)
		case both:
			s.moveLocked()
			err = s.deleteCIDRLocked(p)
		default:
			if err = s.moveBackLocked(p); errors.Is(err, errNoRoom) {
				err = nil // as right where it is
			}
		}
		if err != nil {
			return fmt.Errorf("mend %s: %w", p, err)
		}
	}
	// The other way round: a longer prefix was set, its /64 not yet taken out of the exact table.
	for p := range s.longer {
		e, found := s.getExact(p)
		if !found {
			continue
		}
		if err := s.putCIDRLocked(p, e); err != nil {
			return err
		}
		s.deleteExact(p)
	}
	return nil
}
