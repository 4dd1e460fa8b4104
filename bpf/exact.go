package bpf

import (
	"crypto/rand"
	"encoding/binary"
	"math"
	"math/bits"
	"sync/atomic"
)

// exactTable is one exact table and its Bloom filter, as table.h describes them, in memory that the programs read at
// the same time. There is one writer; whoever calls holds the lock of the Shield. Every store is of one word and atomic,
// and the order of the stores is what table.h relies on.
//
// Keys are as the packet has them: an IPv4 address in the low half, or the upper half of an IPv6 address. What an entry
// says is one word, see maps.h; it is never 0.
type exactTable struct {
	v4    []shieldLineV4 // one of the two
	v6    []shieldLineV6
	bloom []uint64 // as many as lines
	seeds shieldSeeds
	moves *uint64

	used  int // entries
	stale int // entries deleted since the filter was made
}

const (
	slotsV4 = len(shieldLineV4{}.Slot)
	slotsV6 = len(shieldLineV6{}.Key)

	// A path of moves is looked for among so many lines. At three quarters load a dozen do.
	maxPath = 400
)

func (t *exactTable) slots() int {
	if t.v6 != nil {
		return slotsV6
	}
	return slotsV4
}

func (t *exactTable) lines() int { return len(t.bloom) }

// capacity is how many entries a table of so many lines takes: three quarters of its slots.
func capacity(lines, slots int) int { return lines * slots * 3 / 4 }

// linesFor is the way back. Very small tables get some lines more: two full lines are not rare among a handful.
func linesFor(entries, slots int) int { return max(16, (entries*4+slots*3-1)/(slots*3)) }

func (t *exactTable) capacity() int { return capacity(t.lines(), t.slots()) }

// newSeeds draws the random numbers of a table.
func newSeeds() shieldSeeds {
	var b [24]byte
	_, _ = rand.Read(b[:]) // never fails
	le := binary.LittleEndian
	return shieldSeeds{AddLow: le.Uint64(b[:]), Mul: le.Uint64(b[8:]) | 1, Odd: le.Uint64(b[16:]) | 1}
}

// mix is mix() of table.h.
func mix(s *shieldSeeds, key uint64) uint64 {
	h := (s.AddLow + key&0xffffffff) * (s.Mul + key>>32)
	h ^= h >> 32
	h *= s.Odd
	return h ^ h>>32
}

// place is where a key may be, and its bits in the filter.
type place struct {
	first, second int // lines; they may be the same
	word          int
	mask          uint64
}

func (t *exactTable) placeOf(key uint64) place {
	h, n := mix(&t.seeds, key), uint64(t.lines())
	g := h * 0x9e3779b97f4a7c15
	return place{
		first:  int(h >> 32 * n >> 32),
		second: int(h & 0xffffffff * n >> 32),
		word:   int(g >> 32 * n >> 32),
		mask:   1<<(g&63) | 1<<(g>>6&63) | 1<<(g>>12&63) | 1<<(g>>18&63),
	}
}

func (t *exactTable) linesOf(key uint64) (first, second int) {
	at := t.placeOf(key)
	return at.first, at.second
}

// get returns what is in a slot; word 0 if it is empty.
func (t *exactTable) get(line, slot int) (key uint64, word uint32) {
	if t.v6 != nil {
		l := &t.v6[line]
		return atomic.LoadUint64(&l.Key[slot]), atomic.LoadUint32(&l.Until[slot])
	}
	both := atomic.LoadUint64(&t.v4[line].Slot[slot])
	return both & 0xffffffff, uint32(both >> 32)
}

// set writes a slot that is empty or has this key.
func (t *exactTable) set(line, slot int, key uint64, word uint32) {
	if t.v6 == nil {
		atomic.StoreUint64(&t.v4[line].Slot[slot], uint64(word)<<32|key)
		return
	}
	l := &t.v6[line]
	if atomic.LoadUint64(&l.Key[slot]) != key {
		atomic.StoreUint32(&l.Until[slot], 0)
		atomic.StoreUint64(&l.Key[slot], key)
	}
	atomic.StoreUint32(&l.Until[slot], word)
}

func (t *exactTable) erase(line, slot int) {
	if t.v6 != nil {
		atomic.StoreUint32(&t.v6[line].Until[slot], 0)
		return
	}
	atomic.StoreUint64(&t.v4[line].Slot[slot], 0)
}

// drops is the counter of a slot. The programs add to it.
func (t *exactTable) drops(line, slot int) *uint32 {
	if t.v6 != nil {
		return &t.v6[line].Drops[slot]
	}
	return &t.v4[line].Drops[slot]
}

// free finds an empty slot, -1 if there is none.
func (t *exactTable) free(line int) int {
	if t.v6 == nil {
		l := &t.v4[line]
		for i := range l.Slot {
			if atomic.LoadUint64(&l.Slot[i])>>32 == 0 {
				return i
			}
		}
		return -1
	}
	for i := range t.slots() {
		if _, word := t.get(line, i); word == 0 {
			return i
		}
	}
	return -1
}

func (t *exactTable) inLine(line int, key uint64) int {
	for i := range t.slots() {
		if k, word := t.get(line, i); k == key && word != 0 {
			return i
		}
	}
	return -1
}

// touch brings into the cache what an insert at these places needs. One after the other each insert waits for memory
// three times; here the loads do not wait for each other. The number it returns keeps the compiler from leaving them out.
func (t *exactTable) touch(places []place) (sum uint64) {
	for i := range places {
		p := &places[i]
		sum += t.bloom[p.word]
		if t.v6 != nil {
			sum += t.v6[p.first].Key[0] + t.v6[p.second].Key[0]
		} else {
			sum += t.v4[p.first].Slot[0] + t.v4[p.second].Slot[0]
		}
	}
	return sum
}

// find returns where a key is.
func (t *exactTable) find(key uint64) (line, slot int, ok bool) { return t.findAt(t.placeOf(key), key) }

func (t *exactTable) findAt(at place, key uint64) (line, slot int, ok bool) {
	if t.bloom[at.word]&at.mask != at.mask {
		return 0, -1, false
	}
	return t.findInLines(at, key)
}

func (t *exactTable) findInLines(at place, key uint64) (line, slot int, ok bool) {
	if i := t.inLine(at.first, key); i >= 0 {
		return at.first, i, true
	}
	i := t.inLine(at.second, key)
	return at.second, i, i >= 0
}

// add puts in a key that is not there; false if there is no room that a short path of moves leads to.
func (t *exactTable) add(key uint64, word, drops uint32) bool {
	return t.addAt(t.placeOf(key), key, word, drops)
}

func (t *exactTable) addAt(at place, key uint64, word, drops uint32) bool {
	line, slot := at.first, t.free(at.first)
	if slot < 0 {
		line, slot = at.second, t.free(at.second)
	}
	if slot < 0 {
		var ok bool
		if line, slot, ok = t.makeRoom(at.first, at.second); !ok {
			return false
		}
	}
	t.noteInFilter(at) // before the slot: an entry behind a filter that does not know it would not be seen
	atomic.StoreUint32(t.drops(line, slot), drops)
	t.set(line, slot, key, word)
	t.used++
	return true
}

func (t *exactTable) noteInFilter(at place) {
	if was := t.bloom[at.word]; was&at.mask != at.mask {
		atomic.StoreUint64(&t.bloom[at.word], was|at.mask)
	}
}

// makeRoom empties a slot in one of two full lines, by a shortest path of moves to second lines, and returns it. The last
// move of the path comes first, so that at no moment an entry is nowhere.
func (t *exactTable) makeRoom(first, second int) (line, slot int, ok bool) {
	type step struct {
		line int
		from int // index of the step whose line the mover is in, -1 for the two we begin with
		slot int // of the mover, in that line
	}
	path := append(make([]step, 0, maxPath+slotsV4), step{first, -1, 0}, step{second, -1, 0})
	beenIn := func(at, line int) bool {
		for ; at >= 0; at = path[at].from {
			if path[at].line == line {
				return true
			}
		}
		return false
	}
	for at := 0; at < len(path) && len(path) < maxPath; at++ {
		here := path[at].line
		if empty := t.free(here); empty >= 0 {
			for ; path[at].from >= 0; at = path[at].from {
				from := path[path[at].from].line
				t.move(from, path[at].slot, path[at].line, empty)
				empty = path[at].slot
			}
			return path[at].line, empty, true
		}
		for i := range t.slots() {
			key, _ := t.get(here, i)
			a, b := t.linesOf(key)
			if a == here {
				a = b
			}
			if !beenIn(at, a) {
				path = append(path, step{a, at, i})
			}
		}
	}
	return 0, 0, false
}

// move copies an entry to an empty slot of its other line, says so, and erases it at the old place.
func (t *exactTable) move(fromLine, fromSlot, toLine, toSlot int) {
	key, word := t.get(fromLine, fromSlot)
	was := atomic.LoadUint32(t.drops(fromLine, fromSlot))
	atomic.StoreUint32(t.drops(toLine, toSlot), was)
	t.set(toLine, toSlot, key, word)
	atomic.AddUint64(t.moves, 1)
	t.erase(fromLine, fromSlot)
	// What was dropped while both stood there. A program that has matched and not yet added is lost to the count.
	if more := atomic.LoadUint32(t.drops(fromLine, fromSlot)) - was; more > 0 {
		atomic.AddUint32(t.drops(toLine, toSlot), more)
	}
}

// remove erases every copy of a key.
func (t *exactTable) remove(key uint64) bool {
	at := t.placeOf(key)
	if t.bloom[at.word]&at.mask != at.mask {
		return false
	}
	found := false
	for _, line := range []int{at.first, at.second} {
		for i := t.inLine(line, key); i >= 0; i = t.inLine(line, key) {
			t.erase(line, i)
			found = true
		}
	}
	if !found {
		return false
	}
	t.used--
	t.stale++
	if t.stale > 4096 && t.stale > t.capacity()/4 {
		t.refreshFilter()
	}
	return true
}

// refreshFilter rids the filter of the bits of deleted entries. It can be done in place: an entry's bits are in the old
// word and in the new one.
func (t *exactTable) refreshFilter() {
	fresh := make([]uint64, len(t.bloom))
	t.each(func(_, _ int, key uint64, _ uint32) {
		at := t.placeOf(key)
		fresh[at.word] |= at.mask
	})
	for i, w := range fresh {
		atomic.StoreUint64(&t.bloom[i], w)
	}
	t.stale = 0
}

func (t *exactTable) each(f func(line, slot int, key uint64, word uint32)) {
	for line := range t.lines() {
		for i := range t.slots() {
			if key, word := t.get(line, i); word != 0 {
				f(line, i, key, word)
			}
		}
	}
}

// scan counts the entries of a table that an earlier process wrote, and mends what a kill left: the copy of an entry
// that was on its way. It returns how many were mended.
func (t *exactTable) scan() (mended int) {
	t.used, t.stale = 0, 0
	t.each(func(line, slot int, key uint64, _ uint32) {
		p := t.placeOf(key)
		at, i, ok := t.findInLines(p, key)
		switch {
		case line != p.first && line != p.second || !ok:
			// Cannot be by a kill: no program would find it.
		case at == line && i == slot:
			t.used++
			if t.bloom[p.word]&p.mask == p.mask {
				return
			}
			t.noteInFilter(p)
			mended++
			return
		default:
			// The other copy is the one that find meets first, and the programs too: this one has no duty.
			atomic.AddUint32(t.drops(at, i), atomic.LoadUint32(t.drops(line, slot)))
			atomic.AddUint64(t.moves, 1)
		}
		t.erase(line, slot)
		mended++
	})
	// How many bits of the filter are stale nobody has counted over the restart. So many should be set:
	should := 1 - math.Exp(-4*float64(t.used)/float64(64*t.lines()))
	if t.filterFill() > 1.25*should+0.01 {
		t.refreshFilter()
	}
	return mended
}

// filterFill is the share of the filter's bits that are set.
func (t *exactTable) filterFill() float64 {
	n := 0
	for i := range t.bloom {
		n += bits.OnesCount64(atomic.LoadUint64(&t.bloom[i]))
	}
	return float64(n) / float64(64*t.lines())
}
