package block

import (
	"math"
	"slices"
	"sort"
	"strings"
)

// This file is the table's second index: what an origin said in one epoch, by its numbers, so that a node can be sent
// what it lacks. Records that a newer one replaced, and those that have ended, are in no log: their numbers mean
// nothing any more. It costs 8 bytes an entry where numbers are dense, and some 60 where they are not.

// runBits is how many numbers one run of a log spans, as a power of two.
const runBits = 10

// run is the part of a log with the numbers of key<<runBits and up.
type run struct {
	key   uint64
	items []uint64 // low bits of the number << 32 | node, in order
}

// log finds nodes by their number.
type log struct {
	runs []run // by key, none empty
	live int
}

func (l *log) find(key uint64) (int, bool) {
	if n := len(l.runs); n > 0 && l.runs[n-1].key <= key { // nearly always the newest
		return n - 1 + b2i(l.runs[n-1].key < key), l.runs[n-1].key == key
	}
	i := sort.Search(len(l.runs), func(i int) bool { return l.runs[i].key >= key })
	return i, i < len(l.runs) && l.runs[i].key == key
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func itemOf(seq uint64, i uint32) uint64 { return seq&(1<<runBits-1)<<32 | uint64(i) }

func (r *run) find(seq uint64) (int, bool) {
	want := seq & (1<<runBits - 1)
	if n := len(r.items); n > 0 && r.items[n-1]>>32 < want {
		return n, false
	}
	j := sort.Search(len(r.items), func(j int) bool { return r.items[j]>>32 >= want })
	return j, j < len(r.items) && r.items[j]>>32 == want
}

// put gives number seq to node i.
func (l *log) put(seq uint64, i uint32) {
	at, ok := l.find(seq >> runBits)
	if !ok {
		l.runs = slices.Insert(l.runs, at, run{key: seq >> runBits})
	}
	r := &l.runs[at]
	j, ok := r.find(seq)
	if ok {
		r.items[j] = itemOf(seq, i)
		return
	}
	r.items = slices.Insert(r.items, j, itemOf(seq, i))
	l.live++
}

// remove takes number seq away, if it is node i's.
func (l *log) remove(seq uint64, i uint32) {
	at, ok := l.find(seq >> runBits)
	if !ok {
		return
	}
	r := &l.runs[at]
	j, ok := r.find(seq)
	if !ok || uint32(r.items[j]) != i {
		return
	}
	l.live--
	switch n := len(r.items); {
	case n == 1:
		l.runs = slices.Delete(l.runs, at, at+1)
	case n*4 <= cap(r.items):
		short := make([]uint64, 0, n)
		r.items = append(append(short, r.items[:j]...), r.items[j+1:]...)
	default:
		r.items = slices.Delete(r.items, j, j+1)
	}
}

// each visits the numbers from ... to, oldest first, until visit returns false. visit must not change the log.
func (l *log) each(from, to uint64, visit func(seq uint64, i uint32) bool) {
	at, _ := l.find(from >> runBits)
	for _, r := range l.runs[min(at, len(l.runs)):] {
		for _, it := range r.items {
			seq := r.key<<runBits | it>>32
			if seq < from {
				continue
			}
			if seq > to || !visit(seq, uint32(it)) {
				return
			}
		}
	}
}

// clearBit marks the numbers of origin clears, which are in t.cleared and not among the nodes.
const clearBit = 1 << 31

func (t *Table) forgetLocked(i uint32, n *node) {
	w := t.writers[n.writer]
	if w.live--; n.seq != 0 {
		w.log.remove(n.seq, i)
	}
	if !n.automatic() {
		t.manual--
	}
	t.originOf(n).entries.add(n.key(), -1)
	t.uncountLocked(n)
}

func (t *Table) rememberLocked(i uint32, n *node) {
	w := t.writers[n.writer]
	if w.live++; n.seq != 0 {
		w.log.put(n.seq, i)
	}
	if !n.automatic() {
		t.manual++
	}
	t.originOf(n).entries.add(n.key(), 1)
	t.countBudgetLocked(n)
}

// A LogInfo is what the table holds of one origin and epoch.
type LogInfo struct {
	Origin string
	Epoch  uint64
	Live   int    // numbered entries
	Top    uint64 // the highest number among them
}

// Logs lists what the table holds, by origin and epoch. This node's present epoch is always among them, with the
// highest number ever given.
func (t *Table) Logs() []LogInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]LogInfo, 0, len(t.writers))
	for id, w := range t.writers {
		info := t.infoLocked(id)
		if id != int(t.own) && w.live == 0 {
			continue
		}
		list = append(list, info)
	}
	slices.SortFunc(list, func(a, b LogInfo) int {
		if c := strings.Compare(a.Origin, b.Origin); c != 0 {
			return c
		}
		if a.Epoch != b.Epoch {
			return 2*b2i(a.Epoch > b.Epoch) - 1
		}
		return 0
	})
	return list
}

func (t *Table) infoLocked(id int) LogInfo {
	w := t.writers[id]
	info := LogInfo{Origin: t.origins[w.origin].name, Epoch: w.epoch, Live: w.log.live}
	if n := len(w.log.runs); n > 0 {
		r := w.log.runs[n-1]
		info.Top = r.key<<runBits | r.items[len(r.items)-1]>>32
	}
	if id == int(t.own) {
		info.Top = t.seq
	}
	return info
}

// Live says how many numbered entries of one origin and epoch the table holds.
func (t *Table) Live(origin string, epoch uint64) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	if w, ok := t.writerOfLocked(origin, epoch); ok {
		return w.log.live
	}
	return 0
}

// Log visits the entries of an origin and epoch with the numbers from ... to, oldest first, until visit returns
// false. The table is locked meanwhile, so visit must not call it.
func (t *Table) Log(origin string, epoch, from, to uint64, visit func(*Entry) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w, ok := t.writerOfLocked(origin, epoch)
	if !ok {
		return
	}
	w.log.each(from, to, func(_ uint64, i uint32) bool {
		e := t.loggedLocked(i)
		return visit(&e)
	})
}

func (t *Table) loggedLocked(i uint32) Entry {
	if i >= clearBit {
		return t.clearEntryLocked(int(i - clearBit))
	}
	return t.entryLocked(i)
}

// Number returns this node's epoch and the last number it gave.
func (t *Table) Number() (epoch, seq uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.writers[t.own].epoch, t.seq
}

// Renumber begins a new epoch, and gives entries of this node's earlier epochs numbers in it: of each epoch those with
// numbers above what move returns. They keep their stamps. It returns them, and does nothing unless epoch is newer
// than the present one.
//
// A node does so when it starts, since its state file may lack the last numbers that others know, and when others
// know numbers that it never gave: then another machine speaks in its name, or one that is forged.
func (t *Table) Renumber(epoch uint64, move func(LogInfo) uint64) []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	if epoch <= t.writers[t.own].epoch {
		return nil
	}
	var list []uint32
	for id, w := range t.writers {
		if w.origin != 0 {
			continue
		}
		if from := move(t.infoLocked(id)); from < math.MaxUint64 {
			w.log.each(from+1, math.MaxUint64, func(_ uint64, i uint32) bool { list = append(list, i); return true })
		}
	}
	id, err := t.writerLocked(0, epoch)
	if err != nil {
		return nil
	}
	t.own, t.seq = id, 0
	moved := make([]Entry, 0, len(list))
	for _, i := range list {
		t.seq++
		if i >= clearBit {
			t.renumberClearLocked(int(i-clearBit), id, t.seq)
		} else {
			n := t.nodes.at(i)
			t.forgetLocked(i, n)
			n.writer, n.seq = id, t.seq
			t.rememberLocked(i, n)
		}
		e := t.loggedLocked(i)
		t.dirty = append(t.dirty, e)
		moved = append(moved, e)
	}
	return moved
}
