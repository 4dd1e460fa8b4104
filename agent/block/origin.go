package block

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"
)

// This file is what other nodes' entries may do here. All nodes keep the same entries, whatever they think of them:
// what is not enforced is hidden from the decision, and never dropped, so that nodes with different clocks, budgets
// and suspensions still agree on what was said.

// view tells why an entry is kept and does not count; local is no such reason.
type view uint8

const (
	early view = 1 << iota // its stamp is ahead of the clock
	wide                   // an automatic block of another origin that is no /32 or /64
	over                   // beyond the budget of its origin
	local                  // it counts, and is told to nobody
)

// Fault breaks a rule of merge or decision, to show that the tests find it.
type Fault uint8

// The faults. Each was a tempting rule once.
const (
	NoFault            Fault = iota
	FaultForgetClears        // clears end 7 days after their stamp, not after their hold
	FaultNoHold              // a clear cancels older blocks only
	FaultLastWriter          // the blocks of all origins share the end of the last writer
	FaultArrivalBudget       // budgets count by arrival
)

// Budget bounds what is enforced of the automatic blocks of one other origin.
type Budget struct {
	Minute int // stamped within any 60 s
	Live   int // in all
}

// DefaultBudget is far above what one honest host sees in an attack.
var DefaultBudget = Budget{Minute: 100_000, Live: 500_000}

// MaxManual is how many entries made by people (manual blocks, allows, clears, disallows) a cluster may have before
// further manual blocks and allows are refused.
const MaxManual = 100_000

// manualError refuses a manual entry because there are too many.
type manualError struct{ n int }

func (e manualError) Error() string {
	return fmt.Sprintf("the cluster has %d manual entries, at most %d fit", e.n, MaxManual)
}

// HintText tells what to do about it.
func (e manualError) HintText() string {
	return "remove old ones, or give lists of addresses to the agent as a feed: every node reads its own feeds"
}

type origin struct {
	name      string
	suspended bool
	void      Stamp // an origin clear ends everything up to it
	opened    int   // standing blocks that its clears and allows ended, since the start
	entries   Families

	// The budget: automatic blocks that are not void, if this is another node.
	blocks  int
	minutes map[uint32]uint32 // the same by the minute of their stamps
	tight   bool              // one more may be too many: all newcomers are hidden until the next recount
	recount bool
	next    uint32 // not before this second, since it sorts them all
}

// writer is an origin in one of its epochs.
type writer struct {
	origin uint16
	epoch  uint64
	log    log
	live   int
}

type writerKey struct {
	origin uint16
	epoch  uint64
}

// maxEpochs bounds how many epochs of one origin the table tells apart.
const maxEpochs = 256

// NewEpoch makes the number of an epoch that begins now; r is random.
func NewEpoch(now time.Time, r uint64) uint64 { return uint64(StampAt(now)) | r&0xffff }

// EpochTime returns when an epoch began.
func EpochTime(epoch uint64) time.Time { return Stamp(epoch).Time() }

func (t *Table) originOf(n *node) *origin { return t.origins[t.writers[n.writer].origin] }

func (t *Table) originLocked(name string) (uint16, error) {
	if id, ok := t.originID[name]; ok {
		return id, nil
	}
	if len(t.origins) >= 1<<16-1 {
		return 0, fmt.Errorf("%w: too many origins", errEntry)
	}
	id := uint16(len(t.origins))
	t.origins = append(t.origins, &origin{name: name})
	t.originID[name] = id
	return id, nil
}

// writerLocked finds or makes a writer. An epoch of which nothing is left makes room for another.
func (t *Table) writerLocked(origin uint16, epoch uint64) (uint16, error) {
	k := writerKey{origin, epoch}
	if id, ok := t.writerID[k]; ok {
		return id, nil
	}
	n, empty := 0, -1
	for id, w := range t.writers {
		if w.origin == origin {
			if n++; w.live == 0 && id != int(t.own) {
				empty = id
			}
		}
	}
	if empty >= 0 {
		w := t.writers[empty]
		delete(t.writerID, writerKey{origin, w.epoch})
		w.epoch, t.writerID[k] = epoch, uint16(empty)
		return uint16(empty), nil
	}
	if n >= maxEpochs || len(t.writers) >= 1<<16-1 {
		return 0, fmt.Errorf("%w: origin %.40q has too many epochs", errEntry, t.origins[origin].name)
	}
	id := uint16(len(t.writers))
	t.writers = append(t.writers, &writer{origin: origin, epoch: epoch})
	t.writerID[k] = id
	return id, nil
}

func (t *Table) writerOfLocked(origin string, epoch uint64) (*writer, bool) {
	id, ok := t.originID[origin]
	if !ok {
		return nil, false
	}
	w, ok := t.writerID[writerKey{id, epoch}]
	if !ok {
		return nil, false
	}
	return t.writers[w], true
}

// hiddenLocked says that n does not count here.
func (t *Table) hiddenLocked(n *node) bool {
	if n.view&^local != 0 {
		return true
	}
	o := t.originOf(n)
	return o.suspended || n.stamp <= o.void
}

// tooWide refuses to enforce automatic blocks of other nodes that are wider than one host: what a node sees at its own
// door may close a network there, but not everywhere.
func tooWide(e *Entry, k pkey) bool {
	return e.Automatic() && k.bits != 128 && (k.is4() || k.bits < 64)
}

// newerLocked says whether e replaces node i of the same key. It is a total order, so that nodes agree whatever comes
// first.
func (t *Table) newerLocked(e *Entry, i uint32) bool {
	n := t.nodes.at(i)
	return cmp.Or(
		cmp.Compare(e.Stamp, n.stamp), cmp.Compare(e.Epoch, t.writers[n.writer].epoch), cmp.Compare(e.Seq, n.seq),
		cmp.Compare(unix32(e.Until), n.until), cmp.Compare(e.Cause, n.cause), cmp.Compare(e.Scope, n.scope),
		cmp.Compare(e.Hits, n.hits), cmp.Compare(floor32(e.Since), n.since),
	) > 0
}

// ---- stamps ahead of the clock

// due is when an entry with a stamp ahead of the clock may count, seconds since 1970, rounded up.
func due(s Stamp) uint32 {
	at := s.Time().Add(-MaxAhead)
	if at.Unix() < 1 {
		return 1
	}
	if at.Unix() >= math.MaxUint32 {
		return math.MaxUint32
	}
	return unix32(at)
}

// observeLocked advances the clock past a stamp of origin id, or says that the entry must wait.
func (t *Table) observeLocked(s Stamp, id uint16, now time.Time) view {
	switch {
	case now.IsZero() && id != 0:
		t.ahead = max(t.ahead, s)
	case !now.IsZero() && s.Time().After(now.Add(MaxAhead)):
		return early
	default:
		t.clk.observe(s)
	}
	return 0
}

// bootLocked compares what Load brought with the clock, once.
func (t *Table) bootLocked(now time.Time) {
	if t.booted {
		return
	}
	t.booted = true
	limit := StampAt(now.Add(MaxAhead)) | 0xffff
	if t.ahead <= limit {
		t.clk.observe(t.ahead)
		t.voidLocked(now)
		return
	}
	for i := range t.cleared {
		c := &t.cleared[i]
		c.early = c.stamp > limit && t.writers[c.writer].origin != 0
	}
	for i := uint32(1); i <= t.nodes.used; i++ {
		switch n := t.nodes.at(i); {
		case n.kind == 0 || t.writers[n.writer].origin == 0:
		case n.stamp <= limit:
			t.clk.observe(n.stamp)
		default:
			t.standsLocked(n, false)
			n.view |= early
			t.wakeAt(due(n.stamp))
		}
	}
	t.uncounted = true
	t.voidLocked(now)
}

// ---- suspension

// Suspend stops enforcing everything that an origin says, clears and allows included, or with on false begins to
// again. Nothing is forgotten. It reports whether that was news.
func (t *Table) Suspend(name string, on bool, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	id, err := t.originLocked(name)
	if err != nil || t.origins[id].suspended == on {
		return false
	}
	t.origins[id].suspended = on
	t.refreshOriginLocked(id, now)
	t.voidLocked(now) // its origin clears count no more, or again
	return true
}

// Suspended lists the suspended origins.
func (t *Table) Suspended() (names []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, o := range t.origins {
		if o.suspended {
			names = append(names, o.name)
		}
	}
	return names
}

func (t *Table) refreshOriginLocked(id uint16, now time.Time) {
	var keys []pkey
	t.eachOfLocked(id, func(_ uint32, n *node) { keys = append(keys, n.key()) })
	_ = t.refreshLocked(unix32(now), keys...)
}

func (t *Table) eachOfLocked(id uint16, visit func(uint32, *node)) {
	for i := uint32(1); i <= t.nodes.used; i++ {
		if n := t.nodes.at(i); n.kind != 0 && t.writers[n.writer].origin == id {
			visit(i, n)
		}
	}
}

// Opened says how many standing blocks the clears, allows and origin clears of another node ended since the start, and
// how many blocks stand. What waited for its time does not count.
func (t *Table) Opened(name string) (opened, standing int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if id, ok := t.originID[name]; ok {
		opened = t.origins[id].opened
	}
	return opened, t.counts.Blocks
}

// ---- origin clears

// originClear says that nothing of target up to max(stamp, until) counts.
type originClear struct {
	stamp  Stamp
	seq    uint64
	since  uint32
	until  uint32
	writer uint16
	target uint16
	early  bool // its stamp is ahead of the clock
}

func (c *originClear) upto() Stamp { return max(c.stamp, stamp32(c.until)) }

// maxOriginClears bounds them: one for each pair of nodes that ever needed one.
const maxOriginClears = 4096

// ClearOrigin undoes, on all nodes, everything that an origin said up to now: its blocks, clears and allows. What it
// says afterwards counts.
func (t *Table) ClearOrigin(target string, now time.Time) (Entry, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	t.seq++
	w := t.writers[t.own]
	e := Entry{Origin: t.origins[0].name, Kind: OriginClear, Target: target, Since: now, Stamp: t.clk.next(now), Epoch: w.epoch, Seq: t.seq}
	id, ok := t.originID[target]
	if ok { // entries that wait for their time are among what is undone
		t.eachOfLocked(id, func(_ uint32, n *node) {
			if at := n.stamp.Time().Add(time.Second); n.stamp > e.Stamp && at.After(e.Until) {
				e.Until = at
			}
		})
	}
	if err := e.check(); err != nil {
		return Entry{}, err
	}
	e.Until = endOf(&e)
	if _, err := t.mergeClearLocked(&e, 0, 0); err != nil {
		return Entry{}, err
	}
	t.dirty = append(t.dirty, e)
	t.voidLocked(now)
	return e, nil
}

// endOf bounds how far ahead an origin clear reaches.
func endOf(e *Entry) time.Time {
	if limit := e.Stamp.Time().Add(MaxHold); e.Until.After(limit) {
		return limit
	}
	return time32(unix32(e.Until))
}

func (t *Table) mergeClearLocked(e *Entry, id uint16, v view) (bool, error) {
	target, err := t.originLocked(e.Target)
	if err != nil {
		return false, err
	}
	w, err := t.writerLocked(id, e.Epoch)
	if err != nil {
		return false, err
	}
	if w == t.own {
		t.seq = max(t.seq, e.Seq)
	}
	c := originClear{stamp: e.Stamp, seq: e.Seq, since: floor32(e.Since), until: unix32(endOf(e)), writer: w, target: target, early: v&early != 0}
	i := slices.IndexFunc(t.cleared, func(o originClear) bool { return o.target == target && t.writers[o.writer].origin == id })
	if i < 0 {
		if len(t.cleared) >= maxOriginClears {
			return false, fmt.Errorf("%w: %d origin clears", ErrFull, len(t.cleared))
		}
		i = len(t.cleared)
		t.cleared = append(t.cleared, c)
	} else {
		o := t.cleared[i]
		if cmp.Or(cmp.Compare(c.stamp, o.stamp), cmp.Compare(e.Epoch, t.writers[o.writer].epoch), cmp.Compare(c.seq, o.seq), cmp.Compare(c.until, o.until)) <= 0 {
			return false, nil
		}
		t.dropClearLocked(i)
		t.cleared[i] = c
	}
	t.writers[w].live++
	t.writers[w].log.put(c.seq, clearBit|uint32(i))
	return true, nil
}

func (t *Table) dropClearLocked(i int) {
	c := t.cleared[i]
	t.writers[c.writer].live--
	t.writers[c.writer].log.remove(c.seq, clearBit|uint32(i))
}

func (t *Table) renumberClearLocked(i int, w uint16, seq uint64) {
	t.dropClearLocked(i)
	t.cleared[i].writer, t.cleared[i].seq = w, seq
	t.writers[w].live++
	t.writers[w].log.put(seq, clearBit|uint32(i))
}

func (t *Table) clearEntryLocked(i int) Entry {
	c := t.cleared[i]
	w := t.writers[c.writer]
	return Entry{
		Origin: t.origins[w.origin].name, Kind: OriginClear, Target: t.origins[c.target].name,
		Since: time32(c.since), Until: time32(c.until), Stamp: c.stamp, Epoch: w.epoch, Seq: c.seq,
	}
}

// OriginClears lists the origin clears, whether they hold or not.
func (t *Table) OriginClears() (list []Entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := range t.cleared {
		list = append(list, t.clearEntryLocked(i))
	}
	return list
}

// voidLocked works out which stamps of each origin are void. Origin clears may themselves be void, by a later one:
// so the latest is asked first.
func (t *Table) voidLocked(now time.Time) {
	if len(t.cleared) == 0 {
		return
	}
	order := make([]*originClear, len(t.cleared))
	for i := range t.cleared {
		order[i] = &t.cleared[i]
	}
	slices.SortFunc(order, func(a, b *originClear) int {
		return cmp.Or(cmp.Compare(b.stamp, a.stamp), cmp.Compare(t.nameOf(b), t.nameOf(a)), cmp.Compare(t.origins[b.target].name, t.origins[a.target].name))
	})
	void := make(map[uint16]Stamp, len(order))
	for _, c := range order {
		by := t.writers[c.writer].origin
		switch {
		case t.origins[by].suspended || c.stamp <= void[by]:
		case c.early && due(c.stamp) > unix32(now):
			t.wakeAt(due(c.stamp))
		default:
			c.early = false
			void[c.target] = max(void[c.target], c.upto())
		}
	}
	for id, o := range t.origins {
		if v := void[uint16(id)]; v != o.void {
			o.void = v
			t.sumBudgetLocked(uint16(id))
			// What came while it was void was never weighed, and what was weighed before may have room now: at once, before
			// any of it is enforced.
			o.recount, o.next = id != 0, 0
			t.rebudgetLocked(unix32(now))
			t.refreshOriginLocked(uint16(id), now)
		}
	}
}

func (t *Table) nameOf(c *originClear) string { return t.origins[t.writers[c.writer].origin].name }

// ---- budgets

const minute = Stamp(60_000 << 16)

// budgetOf returns whose budget n counts in: nil for this node's own entries, and all that is no automatic block.
func (t *Table) budgetOf(n *node) *origin {
	id := t.writers[n.writer].origin
	if o := t.origins[id]; id != 0 && n.automatic() && n.stamp > o.void {
		return o
	}
	return nil
}

func (o *origin) tightAt(m uint32, b Budget) bool {
	return o.blocks > b.Live || int(o.minutes[m-1]+o.minutes[m]+o.minutes[m+1]) > b.Minute
}

// countBudgetLocked counts n in. Near the limit it is hidden until it is known whether there is room: what is enforced
// is never too much, and in the end depends on the stamps alone.
func (t *Table) countBudgetLocked(n *node) {
	o := t.budgetOf(n)
	if o == nil {
		return
	}
	if o.minutes == nil {
		o.minutes = map[uint32]uint32{}
	}
	m := uint32(n.stamp / minute)
	o.blocks++
	o.minutes[m]++
	if t.fault == FaultArrivalBudget {
		if o.blocks > t.budget.Live || int(o.minutes[m]) > t.budget.Minute {
			n.view |= over
		}
		return
	}
	if o.tight = o.tight || o.tightAt(m, t.budget); o.tight {
		n.view |= over
		o.recount = true
	}
}

func (t *Table) uncountLocked(n *node) {
	o := t.budgetOf(n)
	if o == nil {
		return
	}
	m := uint32(n.stamp / minute)
	o.blocks--
	if o.minutes[m]--; o.minutes[m] == 0 {
		delete(o.minutes, m)
	}
	o.recount = o.recount || o.tight
}

func (t *Table) sumBudgetLocked(id uint16) {
	o := t.origins[id]
	o.blocks, o.minutes = 0, map[uint32]uint32{}
	t.eachOfLocked(id, func(_ uint32, n *node) {
		if t.budgetOf(n) == nil {
			return
		}
		m := uint32(n.stamp / minute)
		o.blocks++
		o.minutes[m]++
		o.tight = o.tight || o.tightAt(m, t.budget)
	})
	o.recount = o.tight
	if id == 0 {
		o.tight, o.recount = false, false
	}
}

// rebudgetLocked decides which blocks of the origins near their limit are enforced: the oldest by stamp.
func (t *Table) rebudgetLocked(at uint32) {
	for id, o := range t.origins {
		if !o.recount || t.fault == FaultArrivalBudget || at < o.next && o.next-at < 60 {
			continue
		}
		var list []uint32
		t.eachOfLocked(uint16(id), func(i uint32, n *node) {
			if t.budgetOf(n) != nil {
				list = append(list, i)
			}
		})
		slices.SortFunc(list, func(a, b uint32) int {
			x, y := t.nodes.at(a), t.nodes.at(b)
			return cmp.Or(cmp.Compare(x.stamp, y.stamp), cmp.Compare(t.writers[x.writer].epoch, t.writers[y.writer].epoch), cmp.Compare(x.seq, y.seq), comparePkey(x.key(), y.key()))
		})
		var changed []pkey
		admitted := make([]Stamp, 0, min(len(list), t.budget.Live))
		first := 0 // of admitted, the first within 60 s
		o.tight = len(list) > t.budget.Live
		for _, i := range list {
			n := t.nodes.at(i)
			o.tight = o.tight || o.tightAt(uint32(n.stamp/minute), t.budget)
			for first < len(admitted) && admitted[first]+minute <= n.stamp {
				first++
			}
			was := n.view & over
			if n.view &^= over; len(admitted) >= t.budget.Live || len(admitted)-first >= t.budget.Minute {
				n.view |= over
			} else {
				admitted = append(admitted, n.stamp)
			}
			if n.view&over != was {
				changed = append(changed, n.key())
			}
		}
		o.recount, o.next = false, at+1+uint32(len(list)/50_000)
		_ = t.refreshLocked(at, changed...)
	}
}

// OverBudget says how many automatic blocks of an origin are not enforced because there are too many.
func (t *Table) OverBudget(name string) (n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.originID[name]
	if !ok || t.origins[id].blocks == 0 || !t.origins[id].tight {
		return 0
	}
	t.eachOfLocked(id, func(_ uint32, b *node) { n += b2i(b.view&over != 0) })
	return n
}

// ClearedAt returns the newest stamp of a clear that covers a prefix and counts: evidence up to it counts no more.
// 0: there is none.
func (t *Table) ClearedAt(p netip.Prefix) (newest Stamp) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, i := range t.nearLocked(keyOf(p)) {
		if n := t.nodes.at(i); n.kind == Clear {
			newest = max(newest, n.stamp)
		}
	}
	return newest
}

// foldLocked is FaultLastWriter: one cell for all origins.
func (t *Table) foldLocked(k pkey) {
	var last *node
	for i := t.headLocked(k); i != 0; i = t.nodes.at(i).next {
		if n := t.nodes.at(i); n.automatic() && (last == nil || n.stamp > last.stamp) {
			last = n
		}
	}
	for i := t.headLocked(k); i != 0; i = t.nodes.at(i).next {
		if n := t.nodes.at(i); n.automatic() {
			n.until, n.stamp = max(n.until, last.until), last.stamp
		}
	}
}
