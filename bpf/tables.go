package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
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

// Where a prefix lives. IPv4 /32 and IPv6 /64 blocks are nearly everything, and live in a hash; all else lives in a
// trie. The programs ask the hash first, so a /64 that has something longer under it would hide it: such a /64 lives
// in the trie as long as that lasts. Holes live in the trie always.
//
// A move inserts at the new place before it deletes at the old one, so a blocked source stays blocked. Drops are
// carried over by read and write; what is dropped in the microseconds between is lost to the count. The same holds for
// Set on an existing entry.

func isExactSize(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() == 32 || p.Addr().Is6() && p.Bits() == 64
}

// isLonger says that p lies within a /64 and is not all of it.
func isLonger(p netip.Prefix) bool { return p.Addr().Is6() && p.Bits() > 64 }

func net64(p netip.Prefix) netip.Prefix { return netip.PrefixFrom(p.Addr(), 64).Masked() }

// checkPrefix refuses what is not the canonical form of a prefix.
func checkPrefix(p netip.Prefix) error {
	switch {
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

func (s *Shield) exactTable(p netip.Prefix) (m *ebpf.Map, key any) {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return s.maps[shieldMapExactV4], binary.NativeEndian.Uint32(a[:])
	}
	a := p.Addr().As16()
	return s.maps[shieldMapExactV6], binary.NativeEndian.Uint64(a[:8])
}

func (s *Shield) cidrTable(p netip.Prefix) (m *ebpf.Map, key any) {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return s.maps[shieldMapCidrV4], &shieldCidrV4Key{Bits: uint32(p.Bits()), Addr: binary.NativeEndian.Uint32(a[:])}
	}
	k := &shieldCidrV6Key{Bits: uint32(p.Bits())}
	a := p.Addr().As16()
	for i := range k.Addr {
		k.Addr[i] = binary.NativeEndian.Uint32(a[4*i:])
	}
	return s.maps[shieldMapCidrV6], k
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
	if err := checkPrefix(p); err != nil {
		return fmt.Errorf("set: %w", err)
	}
	if scope&^ScopeAll != 0 {
		return fmt.Errorf("set %s: unknown scope bits %#x", p, scope)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.setLocked(p, shieldEntry{Until: toBoot(until, s.clock), Scope: scope}); err != nil {
		return fmt.Errorf("set %s: %w", p, err)
	}
	return nil
}

func (s *Shield) setLocked(p netip.Prefix, e shieldEntry) error {
	inCIDRs := s.hasCIDR(p)
	if inCIDRs {
		old, _, err := s.getCIDR(p)
		if err != nil {
			return err
		}
		e.Drops = old.Drops
	}

	if !isExactSize(p) {
		if isLonger(p) && !inCIDRs {
			return s.setUnderExactLocked(p, e)
		}
		return s.putCIDRLocked(p, e)
	}

	old, inExact, err := s.getExact(p)
	if err != nil {
		return err
	}
	e.Drops += old.Drops
	if e.Scope == 0 || s.longer[p] > 0 {
		if err := s.putCIDRLocked(p, e); err != nil {
			return err
		}
		if inExact {
			return s.deleteExact(p)
		}
		return nil
	}
	if err := s.putExact(p, e); err != nil {
		return err
	}
	if inCIDRs {
		if err := s.moveLocked(); err != nil {
			return err
		}
		return s.deleteCIDRLocked(p)
	}
	return nil
}

// setUnderExactLocked adds a prefix longer than /64. If its /64 is in the exact table, that moves to the trie.
func (s *Shield) setUnderExactLocked(p netip.Prefix, e shieldEntry) error {
	around := net64(p)
	old, inExact, err := s.getExact(around)
	if err != nil {
		return err
	}
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
		return s.deleteExact(around)
	}
	return nil
}

// Remove forgets p; removing what is not set is no error. Safe for concurrent use.
func (s *Shield) Remove(p netip.Prefix) error {
	if err := checkPrefix(p); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.removeLocked(p); err != nil {
		return fmt.Errorf("remove %s: %w", p, err)
	}
	return nil
}

func (s *Shield) removeLocked(p netip.Prefix) error {
	if isExactSize(p) {
		if err := s.deleteExact(p); err != nil {
			return err
		}
	}
	if !s.hasCIDR(p) {
		return nil
	}
	if err := s.deleteCIDRLocked(p); err != nil {
		return err
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
	if err != nil || e.Scope == 0 {
		return err
	}
	if err := s.putExact(p, e); err != nil {
		if errors.Is(err, ErrFull) {
			return nil // it is as right, if slower, where it is
		}
		return err
	}
	if err := s.moveLocked(); err != nil {
		return err
	}
	return s.deleteCIDRLocked(p)
}

// moveLocked tells the programs that an entry stands in both tables and is about to leave the trie: one that looked
// into the exact table before it came there must look again. See table.h.
func (s *Shield) moveLocked() error {
	s.moves++
	return s.writeStateLocked()
}

// Lookup returns the rule of exactly p, if p is set. It does not say what happens to an address of p: a longer or
// wider prefix may decide that. Safe for concurrent use.
func (s *Shield) Lookup(p netip.Prefix) (Rule, bool, error) {
	if err := checkPrefix(p); err != nil {
		return Rule{}, false, fmt.Errorf("look up: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var e shieldEntry
	var found bool
	var err error
	if isExactSize(p) {
		e, found, err = s.getExact(p)
	}
	if err == nil && !found && s.hasCIDR(p) {
		e, found, err = s.getCIDR(p)
	}
	if err != nil || !found {
		return Rule{}, false, err
	}
	return s.rule(p, e, s.clock), true, nil
}

func (s *Shield) rule(p netip.Prefix, e shieldEntry, clock int64) Rule {
	return Rule{Prefix: p, Scope: e.Scope, Until: toWall(e.Until, clock), Drops: e.Drops}
}

// Each calls f with every rule, in no order, ended ones included, until f returns false. f is called outside of any
// lock and may call other methods. What is set, removed or moved between the tables while Each runs may be seen or not,
// or (a /64 that moves) twice.
func (s *Shield) Each(f func(Rule) bool) error {
	s.mu.Lock()
	clock := s.clock
	cidrs := make([]netip.Prefix, 0, len(s.cidrs))
	for p := range s.cidrs {
		cidrs = append(cidrs, p)
	}
	s.mu.Unlock()

	stop := errors.New("stop")
	visit := func(p netip.Prefix, e shieldEntry) error {
		if !f(s.rule(p, e, clock)) {
			return stop
		}
		return nil
	}
	err := func() error {
		if err := eachExact(s.maps[shieldMapExactV4], exactV4Prefix, visit); err != nil {
			return err
		}
		if err := eachExact(s.maps[shieldMapExactV6], exactV6Prefix, visit); err != nil {
			return err
		}
		for _, p := range cidrs {
			s.mu.Lock()
			var e shieldEntry
			var err error
			found := s.hasCIDR(p)
			if found {
				e, found, err = s.getCIDR(p)
			}
			s.mu.Unlock()
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			if err := visit(p, e); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil && err != stop {
		return fmt.Errorf("read the tables: %w", err)
	}
	return nil
}

// eachExact walks a hash in batches: a system call per thousands of entries, and no restart when entries vanish.
func eachExact[K any](m *ebpf.Map, prefix func(K) netip.Prefix, visit func(netip.Prefix, shieldEntry) error) error {
	var cursor ebpf.MapBatchCursor
	keys, values := make([]K, 4096), make([]shieldEntry, 4096)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, unix.ENOSPC) { // a bucket with more entries than the batch has room for
			keys, values = make([]K, 2*len(keys)), make([]shieldEntry, 2*len(values))
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if err := visit(prefix(keys[i]), values[i]); err != nil {
				return err
			}
		}
		if err != nil { // that was the last batch
			return nil
		}
	}
}

// Single tables. Only these touch the maps and the bookkeeping.

func (s *Shield) hasCIDR(p netip.Prefix) bool {
	_, ok := s.cidrs[p]
	return ok
}

func (s *Shield) getExact(p netip.Prefix) (shieldEntry, bool, error) {
	m, key := s.exactTable(p)
	return get(m, key)
}

// getCIDR must only be asked for what hasCIDR: a trie answers with the longest match otherwise.
func (s *Shield) getCIDR(p netip.Prefix) (shieldEntry, bool, error) {
	m, key := s.cidrTable(p)
	return get(m, key)
}

func get(m *ebpf.Map, key any) (e shieldEntry, found bool, err error) {
	err = m.Lookup(key, &e)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return shieldEntry{}, false, nil
	}
	return e, err == nil, err
}

func (s *Shield) putExact(p netip.Prefix, e shieldEntry) error {
	m, key := s.exactTable(p)
	return put(m, key, &e, "raise the maximum of exact entries")
}

func (s *Shield) deleteExact(p netip.Prefix) error {
	m, key := s.exactTable(p)
	if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

func (s *Shield) putCIDRLocked(p netip.Prefix, e shieldEntry) error {
	m, key := s.cidrTable(p)
	have := s.cidrsV4
	if p.Addr().Is6() {
		have = len(s.cidrs) - s.cidrsV4
	}
	// One place stays free: kernels before 6.13 refuse to change an entry of a trie that is full.
	if room := int(m.MaxEntries()) - 1; !s.hasCIDR(p) && have >= room {
		return full(room, "raise the maximum of CIDRs")
	}
	if err := put(m, key, &e, "raise the maximum of CIDRs"); err != nil {
		return err
	}
	if s.hasCIDR(p) {
		return nil
	}
	s.noteCIDRLocked(p)
	return s.writeStateLocked()
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
	return s.writeStateLocked()
}

// writeStateLocked tells the programs whether there is any CIDR to ask for.
func (s *Shield) writeStateLocked() error {
	st := shieldStateValue{
		CidrsV4: uint32(s.cidrsV4),
		CidrsV6: uint32(len(s.cidrs) - s.cidrsV4),
		Clock:   s.clock,
		Moves:   s.moves,
	}
	if err := s.maps[shieldMapState].Put(uint32(0), &st); err != nil {
		return fmt.Errorf("write state: %w", err)
	}
	return nil
}

func full(size int, text string) error {
	return hint(fmt.Errorf("%w (%d entries)", ErrFull, size), text+", or let blocks end earlier")
}

func put(m *ebpf.Map, key any, e *shieldEntry, ifFull string) error {
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

// recoverTables builds the bookkeeping from the pinned tables, and mends what a kill in the middle of a move left: the
// same prefix in both tables.
func (s *Shield) recoverTables() error {
	var st shieldStateValue
	if err := s.maps[shieldMapState].Lookup(uint32(0), &st); err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	s.clock, s.moves = st.Clock, st.Moves
	if s.clock == 0 {
		var err error
		if s.clock, err = wallMinusBoot(); err != nil {
			return err
		}
	}

	var e shieldEntry
	var k4 shieldCidrV4Key
	it := s.maps[shieldMapCidrV4].Iterate()
	for it.Next(&k4, &e) {
		s.noteCIDRLocked(cidrV4Prefix(k4))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read cidr_v4: %w", err)
	}
	var k6 shieldCidrV6Key
	it = s.maps[shieldMapCidrV6].Iterate()
	for it.Next(&k6, &e) {
		s.noteCIDRLocked(cidrV6Prefix(k6))
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read cidr_v6: %w", err)
	}

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
		_, both, err := s.getExact(p)
		if err != nil {
			return err
		}
		switch {
		case e.Scope == 0 || s.longer[p] > 0:
			if both {
				err = s.deleteExact(p)
			}
		case both:
			if err = s.moveLocked(); err == nil {
				err = s.deleteCIDRLocked(p)
			}
		default:
			err = s.moveBackLocked(p)
		}
		if err != nil {
			return fmt.Errorf("mend %s: %w", p, err)
		}
	}
	// The other way round: a longer prefix was set, its /64 not yet taken out of the exact table.
	for p := range s.longer {
		e, found, err := s.getExact(p)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if err := s.putCIDRLocked(p, e); err != nil {
			return err
		}
		if err := s.deleteExact(p); err != nil {
			return err
		}
	}
	return s.writeStateLocked()
}
