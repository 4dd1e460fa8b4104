package block

import (
	"encoding/binary"
	"hash/maphash"
)

// This file is how the table keeps a million entries: nodes without pointers in chunks, so that growing copies
// nothing and the garbage collector has nothing to follow, and a hash index of four bytes per slot that finds the
// keys in the nodes themselves. Together about 65 bytes an entry.

// node is an entry as the table holds it: whole seconds, no pointers, 56 bytes.
type node struct {
	stamp  Stamp
	seq    uint64
	hi, lo uint64 // the prefix, with bits
	since  uint32 // seconds since 1970
	until  uint32 // the same; 0: no end
	hits   uint32
	next   uint32 // the next node of the same prefix, or the next unused one
	writer uint16 // its origin and epoch
	bits   uint8
	kind   Kind // 0: unused
	cause  Cause
	scope  Scope
	stands bool // counted as in effect, see settleLocked
	view   view // why it is kept, but not enforced
}

func (n *node) key() pkey { return pkey{n.hi, n.lo, n.bits} }

func (n *node) automatic() bool { return n.kind == Block && n.cause != Manual }

func (n *node) ended(at uint32) bool { return n.until != 0 && n.until <= at }

const chunkBits = 12

// nodes holds nodes by their number, counted from 1.
type nodes struct {
	chunks []*[1 << chunkBits]node
	used   uint32 // highest number ever given out
	free   uint32 // the first unused node
	live   int
}

func (s *nodes) at(i uint32) *node {
	i--
	return &s.chunks[i>>chunkBits][i&(1<<chunkBits-1)]
}

func (s *nodes) take() uint32 {
	s.live++
	if i := s.free; i != 0 {
		s.free = s.at(i).next
		return i
	}
	if int(s.used) == len(s.chunks)<<chunkBits {
		s.chunks = append(s.chunks, new([1 << chunkBits]node))
	}
	s.used++
	return s.used
}

func (s *nodes) give(i uint32) {
	*s.at(i) = node{next: s.free}
	s.free = i
	s.live--
}

// index finds the first node of a prefix: open addressing with linear probing, at most three quarters full. The hash
// has a random seed, since strangers choose the keys.
type index struct {
	seed  maphash.Seed
	slots []uint32 // node numbers; 0: empty
	n     int

	// What was looked up last of each length: to take an entry in asks for the same prefixes some six times.
	last  [129]looked
	moved uint64 // how often slots were; what was looked up before is forgotten
}

// looked is where a prefix was found, or would be.
type looked struct {
	hi, lo uint64
	slot   uint32
	moved  uint64
}

func newIndex() index { return index{seed: maphash.MakeSeed(), slots: make([]uint32, 64), moved: 1} }

func (x *index) home(k pkey) int {
	var b [17]byte
	binary.LittleEndian.PutUint64(b[:], k.hi)
	binary.LittleEndian.PutUint64(b[8:], k.lo)
	b[16] = k.bits
	return int(maphash.Bytes(x.seed, b[:]) & uint64(len(x.slots)-1))
}

// slot returns where k is, or the empty slot where it would be.
func (x *index) slot(s *nodes, k pkey) int {
	last := &x.last[k.bits]
	if last.hi == k.hi && last.lo == k.lo && last.moved == x.moved {
		// Where it would be, another may be by now.
		if i := x.slots[last.slot]; i == 0 || s.at(i).key() == k {
			return int(last.slot)
		}
	}
	for p := x.home(k); ; p = (p + 1) & (len(x.slots) - 1) {
		if i := x.slots[p]; i == 0 || s.at(i).key() == k {
			*last = looked{k.hi, k.lo, uint32(p), x.moved}
			return p
		}
	}
}

func (x *index) get(s *nodes, k pkey) uint32 { return x.slots[x.slot(s, k)] }

// set points k to node i. It reports whether k is new.
func (x *index) set(s *nodes, k pkey, i uint32) bool {
	p := x.slot(s, k)
	if x.slots[p] != 0 {
		x.slots[p] = i
		return false
	}
	if (x.n+1)*4 > len(x.slots)*3 {
		old := x.slots
		x.slots = make([]uint32, 2*len(old))
		x.moved++
		for _, j := range old {
			if j != 0 {
				x.slots[x.slot(s, s.at(j).key())] = j
			}
		}
		p = x.slot(s, k)
	}
	x.slots[p] = i
	x.n++
	return true
}

// remove takes k out and moves up what probing put behind it, so that no tombstones are left.
func (x *index) remove(s *nodes, k pkey) {
	mask := len(x.slots) - 1
	hole := x.slot(s, k)
	if x.slots[hole] == 0 {
		return
	}
	x.n--
	x.moved++
	for p := (hole + 1) & mask; x.slots[p] != 0; p = (p + 1) & mask {
		home := x.home(s.at(x.slots[p]).key())
		if (p-home)&mask >= (p-hole)&mask { // it may stand in the hole
			x.slots[hole], hole = x.slots[p], p
		}
	}
	x.slots[hole] = 0
}

// family tells the arrays for IPv4 and IPv6 apart.
func family(k pkey) int {
	if k.is4() {
		return 0
	}
	return 1
}

// headLocked returns the first node of exactly k, 0 if there is none.
func (t *Table) headLocked(k pkey) uint32 { return t.index.get(&t.nodes, k) }

// register is what of an entry's key is not the prefix.
type register struct {
	kind   Kind
	auto   bool // an automatic block
	origin uint16
	local  bool
}

func registerOf(e *Entry, origin uint16) register {
	return register{e.Kind, e.Automatic(), origin, e.Local}
}

func (t *Table) findLocked(k pkey, r register) (uint32, bool) { return t.findViewLocked(k, r, 0) }

// findViewLocked finds the entry of a key, or with early the one that waits for its time.
func (t *Table) findViewLocked(k pkey, r register, v view) (uint32, bool) {
	for i := t.headLocked(k); i != 0; {
		n := t.nodes.at(i)
		if n.kind == r.kind && n.automatic() == r.auto && n.view&early == v && (n.view&local != 0) == r.local && t.writers[n.writer].origin == r.origin {
			return i, true
		}
		i = n.next
	}
	return 0, false
}

// putLocked takes e in as an entry of writer w. With v it waits for its time, or is too wide to be enforced.
func (t *Table) putLocked(e *Entry, w uint16, v view) uint32 {
	k := keyOf(e.Prefix)
	i, ok := t.findViewLocked(k, registerOf(e, t.writers[w].origin), v&early)
	if e.Local {
		v |= local
	}
	if ok {
		n := t.nodes.at(i)
		t.standsLocked(n, false)
		t.forgetLocked(i, n)
	} else {
		head := t.headLocked(k)
		i = t.nodes.take()
		*t.nodes.at(i) = node{hi: k.hi, lo: k.lo, bits: k.bits, kind: e.Kind, next: head}
		if t.index.set(&t.nodes, k, i) {
			t.have[family(k)][k.bits]++
			if !k.is4() && k.bits > 64 {
				t.long[k.hi] = append(t.long[k.hi], k)
			}
		}
	}
	t.allows.noteLocked(i, e.Kind, true)
	n := t.nodes.at(i)
	n.stamp, n.seq, n.hits, n.cause, n.scope = e.Stamp, e.Seq, e.Hits, e.Cause, e.Scope
	n.since, n.until, n.writer, n.view = floor32(e.Since), unix32(e.Until), w, v
	t.rememberLocked(i, n)
	delete(t.reasons, i)
	if e.Reason != "" {
		t.reasons[i] = e.Reason
	}
	delete(t.linger, i)
	t.wakeAt(n.until)
	if v&early != 0 {
		t.wakeAt(due(n.stamp))
	}
	return i
}

func (t *Table) dropLocked(i uint32) {
	n := t.nodes.at(i)
	t.allows.noteLocked(i, n.kind, false)
	t.standsLocked(n, false)
	t.forgetLocked(i, n)
	k, next := n.key(), n.next
	switch head := t.headLocked(k); {
	case head != i:
		p := t.nodes.at(head)
		for p.next != i {
			p = t.nodes.at(p.next)
		}
		p.next = next
	case next != 0:
		t.index.set(&t.nodes, k, next)
	default:
		t.index.remove(&t.nodes, k)
		t.have[family(k)][k.bits]--
		if !k.is4() && k.bits > 64 {
			list := t.long[k.hi]
			for j := range list {
				if list[j] == k {
					list[j] = list[len(list)-1]
					list = list[:len(list)-1]
					break
				}
			}
			if t.long[k.hi] = list; len(list) == 0 {
				delete(t.long, k.hi)
			}
		}
	}
	delete(t.reasons, i)
	delete(t.linger, i)
	t.nodes.give(i)
}

func (t *Table) entryLocked(i uint32) Entry {
	n := t.nodes.at(i)
	return Entry{
		Origin: t.originOf(n).name, Prefix: n.key().prefix(), Kind: n.kind, Cause: n.cause, Scope: n.scope,
		Since: time32(n.since), Until: time32(n.until), Stamp: n.stamp, Epoch: t.writers[n.writer].epoch, Seq: n.seq,
		Hits: n.hits, Reason: t.reasons[i], Local: n.view&local != 0,
	}
}

// nearLocked returns the nodes that count whose prefix covers k, widest first. The slice is good until the next call.
func (t *Table) nearLocked(k pkey) []uint32 { return t.aroundLocked(k, false) }

// aroundLocked does so with hidden nodes too, if all is true.
func (t *Table) aroundLocked(k pkey, all bool) []uint32 {
	t.scratch = t.scratch[:0]
	t.have[family(k)].around(k, func(w pkey) {
		for i := t.headLocked(w); i != 0; {
			n := t.nodes.at(i)
			if all || !t.hiddenLocked(n) {
				t.scratch = append(t.scratch, i)
			}
			i = n.next
		}
	})
	return t.scratch
}

// insideCostLocked says how many look-ups insideLocked makes for k: it probes every prefix that could be there, of
// the lengths in use, or walks over the table if that is less. A /24 costs some hundred, a /16 up to 131,071, an
// IPv6 /56 the 511 between it and its /64s; prefixes longer than /64, which are few, are kept in lists by their /64.
func (t *Table) insideCostLocked(k pkey) int {
	have, top := &t.have[family(k)], uint8(64)
	if k.is4() {
		top = 128
	}
	cost := 1
	for l := k.bits + 1; l <= top && cost <= t.nodes.live; l++ {
		if have[l] > 0 {
			cost += 1 << min(l-k.bits, 32)
		}
	}
	if !k.is4() && k.bits < 64 {
		cost += min(len(t.long), 1<<min(64-k.bits, 32))
	}
	return min(cost, t.nodes.live)
}

// insideLocked visits every prefix strictly inside k about which there are entries, until visit returns false. visit
// must not change the table.
func (t *Table) insideLocked(k pkey, visit func(pkey) bool) {
	if t.insideCostLocked(k) >= t.nodes.live {
		t.scanLocked(k, visit)
	} else {
		t.probeLocked(k, visit)
	}
}

func (t *Table) scanLocked(k pkey, visit func(pkey) bool) {
	for i := uint32(1); i <= t.nodes.used; i++ {
		n := t.nodes.at(i)
		if n.kind == 0 || n.bits <= k.bits {
			continue
		}
		if o := n.key(); k.covers(o) && t.headLocked(o) == i && !visit(o) {
			return
		}
	}
}

func (t *Table) probeLocked(k pkey, visit func(pkey) bool) {
	have := &t.have[family(k)]
	if k.is4() {
		for l := k.bits + 1; l <= 128 && l != 0; l++ {
			for j := uint64(0); have[l] > 0 && j < 1<<(l-k.bits); j++ {
				if o := (pkey{k.hi, k.lo | j<<(128-l), l}); t.headLocked(o) != 0 && !visit(o) {
					return
				}
			}
		}
		return
	}
	for l := k.bits + 1; l <= 64; l++ {
		for j := uint64(0); have[l] > 0 && j < 1<<(l-k.bits); j++ {
			if o := (pkey{k.hi | j<<(64-l), 0, l}); t.headLocked(o) != 0 && !visit(o) {
				return
			}
		}
	}
	list := func(hi uint64) bool {
		for _, o := range t.long[hi] {
			if o != k && k.covers(o) && !visit(o) {
				return false
			}
		}
		return true
	}
	switch n := uint64(1) << (64 - min(k.bits, 64)); {
	case k.bits >= 64:
		list(k.hi)
	case n <= uint64(len(t.long)):
		for j := range n {
			if !list(k.hi | j) {
				return
			}
		}
	default:
		for hi := range t.long {
			if !list(hi) {
				return
			}
		}
	}
}

// walkLocked visits every prefix about which there are entries, until visit returns false.
func (t *Table) walkLocked(visit func(pkey) bool) {
	for _, i := range t.index.slots {
		if i != 0 && !visit(t.nodes.at(i).key()) {
			return
		}
	}
}
