// Package block is the heart of mxshield: the table of who is blocked, allowed and cleared, and the one place that
// decides what happens to packets of an address.
//
// Everything that blocks or unblocks goes through Table.Apply (what this node says) or Table.Merge (what other nodes
// and the state file say), and everything that reaches the kernel leaves through the table's one Sink. The safety
// rules (never-block, width limits, longest lives) live inside, so no source of blocks can go round them.
//
// The decision for an address, made at read time:
//
//	never-block > allow in the config file > manual entries (most specific, then latest stamp)
//	            > allows by name (spf:, domain:) > automatic blocks that no clear cancels (latest until wins)
//
// A clear covers every address inside its prefix, of any width. It cancels blocks with a stamp up to its own, and
// automatic blocks made during its hold. The package knows no files, no sockets and no kernel.
package block

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"sync"
	"time"
)

// A Sink enforces the effective state. The longest prefix that contains an address decides, and only until its end.
// The table calls it with its lock held, since the order of calls matters; a Sink must not call back.
type Sink interface {
	// Set makes packets from p to the ports of scope (a Scope) drop until until (zero: no end); scope 0 makes a
	// hole: addresses of p pass although a wider prefix is set.
	Set(p netip.Prefix, scope uint8, until time.Time) error
	// Remove forgets p; removing what is not set is no error.
	Remove(p netip.Prefix) error
}

// A Sink may know a cheaper way to take many.
type manySink interface {
	// SetMany is Set for all that entries yields, in that order; about is how many those are, or 0. What goes wrong is
	// told to failed, for each prefix.
	SetMany(about int, entries func(yield func(p netip.Prefix, scope uint8, until time.Time) bool), failed func(p netip.Prefix, err error))
}

// Options of a Table.
type Options struct {
	Origin string // this node's name, 1 to 255 bytes
	Sink   Sink   // nil: nothing is enforced (dry run)
	// Epoch numbers what this node says from now on. It must be a new one whenever the numbers given before may not
	// all be in the state file (NewEpoch makes one). 0: a node that was never in a cluster.
	Epoch uint64
	// MaxEntries bounds the table; beyond it automatic blocks are refused. 0: 2,097,152.
	MaxEntries int
	// Budget bounds what is enforced of the automatic blocks of each other origin. Zero: DefaultBudget.
	Budget Budget
	// Fault breaks a rule of merge or decision. Only the simulator sets it, which must find what that does.
	Fault Fault
	// Uptime is a monotonic clock, which tells steps of the wall clock. nil: the monotonic readings of the times that
	// Expire is called with (those of time.Now and of tickers have one).
	Uptime func() time.Duration
}

// ErrFull refuses an automatic block because the table has MaxEntries entries.
var ErrFull = errors.New("the block table is full")

// A HeldError refuses an automatic block because of an unblock.
type HeldError struct {
	Prefix netip.Prefix
	Clear  Entry
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("%s was unblocked and is held against automatic blocks until %s", e.Prefix, e.Clear.Until.Format(time.RFC3339))
}

// Table is safe for concurrent use.
type Table struct {
	mu       sync.Mutex
	sink     Sink
	max      int
	budget   Budget
	fault    Fault
	origins  []*origin // index 0 is this node
	originID map[string]uint16
	writers  []*writer // index own is this node in its present epoch
	writerID map[writerKey]uint16
	own      uint16
	cleared  []originClear
	manual   int   // entries made by people
	keep     int   // up to so many of them are kept for ever
	booted   bool  // what Load brought was compared with the clock
	ahead    Stamp // the highest stamp of other origins that Load brought
	nodes    nodes
	index    index
	have     [2]lengths        // prefixes by family and length
	long     map[uint64][]pkey // IPv6 /64 -> the longer prefixes inside it
	never    *neverSet
	clk      clock
	wall     wallClock
	seq      uint64
	reasons  map[uint32]string // by node: only manual entries have one
	linger   map[uint32]uint32 // by node: clears past their time that are still needed, and when to look again
	dirty    []Entry           // entries since the last Drain
	unsunk   map[pkey]error    // what the Sink refused
	allows   allows
	wake     uint32 // earliest end of any entry, seconds since 1970; 0: none
	expired  uint32 // up to when Expire has told the Sink what ended

	counts    Counts // kept by standsLocked, and so are the blocks by cause
	causes    [len(causeNames)]Families
	uncounted bool   // Load went by counts
	counted   uint32 // when they were last counted anew

	scratch []uint32
	ops     []op
	todo    []pkey
}

// New returns an empty table.
func New(o Options) *Table {
	if o.MaxEntries == 0 {
		o.MaxEntries = 2 << 20
	}
	if o.Budget == (Budget{}) {
		o.Budget = DefaultBudget
	}
	to, _ := o.Sink.(Allower)
	return &Table{
		allows: allows{to: to, nodes: map[uint32]struct{}{}, stale: true},
		sink:   o.Sink, max: o.MaxEntries, keep: MaxManual / 2, budget: o.Budget, fault: o.Fault,
		origins: []*origin{{name: o.Origin}}, originID: map[string]uint16{o.Origin: 0},
		writers: []*writer{{epoch: o.Epoch}}, writerID: map[writerKey]uint16{{0, o.Epoch}: 0},
		index: newIndex(), long: map[uint64][]pkey{}, reasons: map[uint32]string{}, linger: map[uint32]uint32{}, unsunk: map[pkey]error{},
		never: newNeverSet(nil), wall: wallClock{uptime: o.Uptime},
	}
}

// Result says what Apply did.
type Result struct {
	Entry Entry `json:"entry"`
	// Already is set when the block stood already and only its end, scope or hits changed.
	Already bool `json:"already,omitempty"`
	// Cancelled are the blocks that a clear ended, or ended for the addresses of its prefix; CancelledTotal counts all.
	// This list and the following two have at most 100 entries.
	Cancelled      []Entry `json:"cancelled,omitempty"`
	CancelledTotal int     `json:"cancelled_total,omitempty"`
	// Overridden are the blocks that do not drop any more because of an allow. They are not ended: when the allow ends
	// or is taken back, they drop again.
	Overridden      []Entry `json:"overridden,omitempty"`
	OverriddenTotal int     `json:"overridden_total,omitempty"`
	// Remaining are blocks that touch the prefix of a clear or allow and drop all the same (under an allow: a more
	// specific manual block).
	Remaining      []Entry `json:"remaining,omitempty"`
	RemainingTotal int     `json:"remaining_total,omitempty"`
	// Held is, for a clear, until when no automatic block is made for all of its prefix: the latest end of any clear
	// around it. A clear never shortens the hold of an earlier one, unless its own Until is zero.
	Held time.Time `json:"held,omitzero"`
	// Open are never-block prefixes inside a blocked CIDR, which stay open.
	Open []Never `json:"open,omitempty"`
	// Then is, for a manual block with an end, the block that drops on when that has come.
	Then *Entry `json:"then,omitempty"`
	// Unenforced tells why the kernel does not have it (the entry stands and is tried again).
	Unenforced string `json:"unenforced,omitempty"`
}

// Apply makes a statement of this node: Prefix and Kind, for a block also Cause, Scope, Until, Hits; the rest is
// filled in. It fails with a *NeverError, a *HeldError, ErrPrefix or ErrFull and then changes nothing.
func (t *Table) Apply(e Entry, now time.Time) (Result, error) {
	e.Local = false
	return t.apply(e, now)
}

// ApplyLocal is Apply for an automatic block that rests on something too weak to be shared or kept, such as the listing
// of an address that nobody has proved to have. It has no number, so that no other node hears of it, is not among what
// Drain returns, so that it ends with the agent at the latest, and its end is e.Until, whatever was said before. It stands
// beside other blocks of its prefix and changes nothing about them, nor they about it.
func (t *Table) ApplyLocal(e Entry, now time.Time) (Result, error) {
	e.Local = true
	return t.apply(e, now)
}

func (t *Table) apply(e Entry, now time.Time) (Result, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	e.Origin, e.Stamp = t.origins[0].name, 1
	e.Epoch, e.Seq = t.writers[t.own].epoch, 0
	if e.Kind == OriginClear {
		return Result{}, fmt.Errorf("%w: origin clears are made by ClearOrigin", errEntry)
	}
	if e.Since.IsZero() {
		e.Since = now
	}
	if e.Kind == Clear {
		if h := now.Add(MaxHold); e.Until.After(h) {
			e.Until = h
		}
		switch old, ok := t.findLocked(keyOf(e.Prefix), registerOf(&e, 0)); {
		case e.Until.IsZero():
			e.Until = now
		case ok:
			if u := time32(t.nodes.at(old).until); u.After(e.Until) {
				e.Until = u
			}
		}
	}
	if e.Automatic() && e.Until.After(now.Add(MaxAutomatic)) {
		e.Until = now.Add(MaxAutomatic)
	}
	if err := e.check(); err != nil {
		return Result{}, err
	}
	k, at := keyOf(e.Prefix), unix32(now)
	var res Result
	if (e.Kind == Allow || e.Kind == Block && e.Cause == Manual) && t.manual >= MaxManual {
		if _, ok := t.findLocked(k, registerOf(&e, 0)); !ok {
			return Result{}, manualError{t.manual}
		}
	}
	if e.Kind == Block {
		if by, ok := t.never.around(k); ok {
			return Result{}, &NeverError{e.Prefix, by}
		}
		if by, ok := t.never.sender(k); ok && e.Automatic() {
			return Result{}, &NeverError{e.Prefix, by}
		}
		if e.Automatic() {
			if c, ok := t.heldLocked(k, StampAt(now)); ok {
				return Result{}, &HeldError{e.Prefix, t.entryLocked(c)}
			}
			if t.nodes.live >= t.max {
				return Result{}, fmt.Errorf("%w: %d entries", ErrFull, t.nodes.live)
			}
		}
		if old, ok := t.findLocked(k, register{kind: Block}); ok && t.liveBlockLocked(old, at) {
			if e.Automatic() { // a person's word needs no evidence
				return Result{Entry: t.entryLocked(old), Already: true}, nil
			}
			res.Already = true
		}
		if old, ok := t.findLocked(k, register{Block, true, 0, e.Local}); ok && t.liveBlockLocked(old, at) {
			n := t.nodes.at(old)
			if e.Local {
				e.Since = time32(n.since)
			} else if e.Automatic() {
				e.Since = time32(n.since)
				e.Scope |= n.scope
				// Not longer than any automatic block, in case the clock was wrong when the old one was made.
				if u := time32(min(n.until, unix32(now.Add(MaxAutomatic)))); u.After(e.Until) {
					e.Until = u
				}
				e.Hits = max(e.Hits, n.hits) // both count from the first event on
			}
			res.Already = true
		}
		res.Open = t.never.inside(k, e.Cause == Manual)
	}
	var touching []touched
	if e.Kind == Clear || e.Kind == Allow {
		for _, i := range t.touchingLocked(k, at) {
			b := touched{i, t.nodes.at(i).key(), false}
			if b.region.bits < k.bits {
				b.region = k
			}
			b.dropped = t.verdictLocked(b.region, at).drop
			touching = append(touching, b)
		}
	}
	e.Stamp = t.clk.next(now)
	if e.Cause != Feed && !e.Local { // every node has its own feeds
		t.seq++
		e.Seq = t.seq
	}
	e.limit()
	i := t.putLocked(&e, t.own, 0)
	if !e.Local {
		t.dirtyLocked(&e)
	}
	if err := t.refreshLocked(at, k); err != nil {
		res.Unenforced = err.Error()
	}
	res.Entry = t.entryLocked(i)
	if e.Kind == Block && !e.Automatic() && !e.Until.IsZero() {
		if v := t.verdictLocked(k, unix32(e.Until)); v.drop {
			then := t.entryLocked(v.by)
			res.Then = &then
		}
	}
	t.outcomeLocked(&res, touching, at)
	return res, nil
}

// touched is a block that stood when a clear or allow came.
type touched struct {
	block   uint32
	region  pkey // what the two have in common
	dropped bool // it was dropped
}

// maxTold bounds the lists of a Result.
const maxTold = 100

// outcomeLocked tells what became of the blocks that a clear or allow touches.
func (t *Table) outcomeLocked(res *Result, list []touched, at uint32) {
	tell := func(to *[]Entry, total *int, i uint32) {
		if *total++; *total <= maxTold {
			*to = append(*to, t.entryLocked(i))
		}
	}
	for _, b := range list {
		switch v := t.verdictLocked(b.region, at); {
		case v.drop && v.by == b.block:
			tell(&res.Remaining, &res.RemainingTotal, b.block)
		case res.Entry.Kind == Clear:
			tell(&res.Cancelled, &res.CancelledTotal, b.block)
		case b.dropped && !v.drop:
			tell(&res.Overridden, &res.OverriddenTotal, b.block)
		}
	}
	if res.Entry.Kind == Clear {
		for _, i := range t.nearLocked(keyOf(res.Entry.Prefix)) {
			if c := t.nodes.at(i); c.kind == Clear && time32(c.until).After(res.Held) {
				res.Held = time32(c.until)
			}
		}
	}
}

// Merge takes in an entry that another node made. It reports whether the entry was new; older ones, and ones no
// node may make (with the error), change nothing.
func (t *Table) Merge(e Entry, now time.Time) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	opens := e.Opens()
	if opens {
		t.countLocked(unix32(now))
	}
	before := t.counts.Blocks
	changed, err := t.mergeLocked(e, now)
	if err == nil && changed {
		t.dirtyLocked(&e)
		if e.Kind == OriginClear {
			t.voidLocked(now)
		} else {
			_ = t.refreshLocked(unix32(now), keyOf(e.Prefix)) // what the Sink refuses is kept in unsunk and tried again
		}
		if opens {
			t.origins[t.originID[e.Origin]].opened += max(0, before-t.counts.Blocks)
		}
	}
	return changed, err
}

// Load takes in an entry of the state file. The Sink learns of it at the next Resync.
func (t *Table) Load(e Entry) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed, err := t.mergeLocked(e, time.Time{})
	if at := e.Stamp.Time(); err == nil && at.After(t.wall.newest) {
		t.wall.newest = at
	}
	t.uncounted = true
	return changed, err
}

// mergeLocked takes e in. Without now, what is ahead of the clock is found later, by bootLocked.
func (t *Table) mergeLocked(e Entry, now time.Time) (bool, error) {
	if e.Local {
		return false, fmt.Errorf("%w: it is local to another table", errEntry)
	}
	if err := e.check(); err != nil {
		return false, err
	}
	e.limit()
	id, err := t.originLocked(e.Origin)
	if err != nil {
		return false, err
	}
	v := t.observeLocked(e.Stamp, id, now)
	if e.Kind == OriginClear {
		return t.mergeClearLocked(&e, id, v)
	}
	k := keyOf(e.Prefix)
	r := registerOf(&e, id)
	i, found := t.findLocked(k, r)
	if found && !t.newerLocked(&e, i) {
		return false, nil // also if it waits for its time: it would change nothing then
	}
	if v&early != 0 {
		if j, ok := t.findViewLocked(k, r, early); ok {
			if found = true; !t.newerLocked(&e, j) {
				return false, nil
			}
		}
	}
	if !found {
		if n := t.nodes.live; n >= t.max && e.Automatic() || n >= t.max+2*MaxManual {
			return false, fmt.Errorf("%w: %d entries", ErrFull, n)
		}
	}
	w, err := t.writerLocked(id, e.Epoch)
	if err != nil {
		return false, err
	}
	if w == t.own {
		t.seq = max(t.seq, e.Seq)
	}
	if id != 0 && tooWide(&e, k) {
		v |= wide
	}
	t.putLocked(&e, w, v)
	if t.fault == FaultLastWriter {
		t.foldLocked(k)
	}
	return true, nil
}

// dirtyLocked has e written to the state file. A wave brings a hundred thousand between two Drains, which append would copy
// four times.
func (t *Table) dirtyLocked(e *Entry) {
	if len(t.dirty) == cap(t.dirty) {
		t.dirty = slices.Grow(t.dirty, max(16, len(t.dirty)))
	}
	t.dirty = append(t.dirty, *e)
}

// Drain returns the entries made or merged since the last call, for the state file.
func (t *Table) Drain() []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.dirty
	t.dirty = nil
	return d
}

// Holds reports whether the table has an entry with e's key: e itself, a newer or an older one. What it does not hold
// has ended; the state file may forget it.
func (t *Table) Holds(e *Entry) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	id, ok := t.originID[e.Origin]
	if !ok {
		return false
	}
	if e.Kind == OriginClear {
		return true
	}
	k, r := keyOf(e.Prefix), registerOf(e, id)
	if _, ok = t.findLocked(k, r); !ok {
		_, ok = t.findViewLocked(k, r, early)
	}
	return ok
}

// Refuses says which never-block rule keeps an automatic block of p away.
func (t *Table) Refuses(p netip.Prefix) (Never, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.never.keeps(keyOf(p))
}

// SetNever replaces the never-block rules and brings the Sink in line with them.
func (t *Table) SetNever(list []Never, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.never
	t.never = newNeverSet(list)
	t.allows.stale = true
	var changed []pkey
	for k := range old.rules { // a hole that a rule made may close again
		if t.never.rules[k] != old.rules[k] {
			changed = append(changed, k)
		}
	}
	for k := range t.never.rules {
		if _, was := old.rules[k]; !was {
			changed = append(changed, k)
		}
	}
	return t.refreshLocked(unix32(now), changed...)
}

// Never returns the never-block rules, sorted.
func (t *Table) Never() []Never {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := make([]Never, 0, len(t.never.rules))
	for _, n := range t.never.rules {
		list = append(list, n)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Prefix.Compare(list[j].Prefix) < 0 })
	return list
}

// retries bounds how many refused prefixes one Expire offers the Sink again.
const retries = 1000

// One Expire removes at most expireMost entries and spends at most lingerMost look-ups on clears that may go; the
// next one goes on. So the table is locked for some ten milliseconds, however much ends at once.
const (
	expireMost = 1 << 16
	lingerMost = 1 << 18
)

// Expire removes what has ended and brings the Sink in line. While there is reason to doubt the wall clock, at most
// 15 minutes, it removes nothing (Doubt tells why), but what has ended by the clock does not drop. If the clock is
// set right again in that time, Resync brings back what it ended too early.
func (t *Table) Expire(now time.Time) (removed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	at := unix32(now)
	t.rebudgetLocked(at)
	tries := 0
	for k := range t.unsunk {
		if tries++; tries > retries {
			break // a kernel table that is full refuses all of them alike
		}
		_ = t.refreshOneLocked(k, at)
	}
	_ = t.tellAllowedLocked(at)
	right := t.wall.right(now)
	if (t.wake == 0 || at < t.wake) && t.fault != FaultForgetClears {
		return 0
	}
	t.wake = 0
	budget := lingerMost
	// What ended since the last time may not stand any more: Count has looked. But the Sink was not told.
	since := t.expired
	if t.expired > at {
		since = 0
	}
	var gone, ripe []uint32
	var keys []pkey
	for i := uint32(1); i <= t.nodes.used; i++ {
		n := t.nodes.at(i)
		switch {
		case n.kind == 0:
		case n.view&early != 0 && due(n.stamp) > at:
			t.wakeAt(due(n.stamp))
		case n.view&early != 0 && right:
			ripe = append(ripe, i)
		case n.view&early != 0:
			t.wakeAt(at + 1)
		case t.fault == FaultForgetClears && n.kind == Clear && n.stamp.Time().Add(MaxAutomatic).Before(now):
			gone = append(gone, i)
		case n.until == 0:
		case n.until > at:
			t.wakeAt(n.until)
		case !right:
			t.wakeAt(n.until) // not later, for the clock may be set back
			if n.stands || n.until > since {
				if n.kind == Clear {
					t.standsLocked(n, false)
				} else if len(keys) < expireMost {
					keys = append(keys, n.key())
				}
			}
		case len(gone) >= expireMost || len(keys) >= expireMost:
			t.wakeAt(at)
		case !n.automatic() && t.manual <= t.keep:
			if n.kind == Clear {
				t.standsLocked(n, false) // its hold is over
			} else if n.stands || n.until > since {
				keys = append(keys, n.key())
			}
		case n.kind == Clear:
			t.standsLocked(n, false)
			if end := t.clearEndLocked(i, at, &budget); end > at {
				t.wakeAt(end)
				continue
			} else if end == 0 {
				t.wakeAt(at)
				continue
			}
			fallthrough
		default:
			gone = append(gone, i)
		}
	}
	for _, i := range gone {
		keys = append(keys, t.nodes.at(i).key())
		t.dropLocked(i)
	}
	for n, i := range ripe { // their time has come
		if n >= expireMost {
			t.wakeAt(at)
			break
		}
		e := t.entryLocked(i)
		t.dropLocked(i)
		_, _ = t.mergeLocked(e, now)
		keys = append(keys, keyOf(e.Prefix))
	}
	t.voidLocked(now)
	_ = t.refreshLocked(at, keys...)
	if len(keys) < expireMost {
		t.expired = at
	}
	return len(gone)
}

// Doubt tells why Expire waits, empty if it does not.
func (t *Table) Doubt() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wall.words
}

// What people said is kept for ever, also when it has ended: only so a clear still cancels a manual block, which need
// not have an end, that arrives from another side of a long partition; only so a manual block that was made shorter
// does not live on where nobody heard of that; and only so all nodes keep the same. There is as much as people made.
//
// Beyond Table.keep of that, what has ended goes, and clears go clearLinger after their hold: every automatic block
// they may still have to cancel has ended by then, from whatever partition it arrives.
const clearLinger = uint32((MaxAutomatic + time.Minute) / time.Second)

// lookAgain is when a clear that is still needed is looked at again: looking costs, and keeping it does not.
const lookAgain = 24 * 60 * 60

// clearEndLocked says when clear i may be forgotten: never while a block stands that only it cancels. 0: the budget
// is spent.
func (t *Table) clearEndLocked(i, at uint32, budget *int) uint32 {
	c := t.nodes.at(i)
	if end := max(c.until+clearLinger, t.linger[i]); end > at {
		return end
	}
	k := c.key()
	cost := t.insideCostLocked(k)
	if *budget <= 0 { // at least one a call, whatever it costs
		return 0
	}
	*budget -= cost
	needed := false
	look := func(j uint32) {
		b := t.nodes.at(j)
		needed = needed || b.kind == Block && !b.ended(at) && t.cancels(c, b)
	}
	for _, j := range t.aroundLocked(k, true) {
		look(j)
	}
	if !needed {
		t.insideLocked(k, func(o pkey) bool {
			for j := t.headLocked(o); j != 0; j = t.nodes.at(j).next {
				look(j)
			}
			return !needed
		})
	}
	if !needed {
		return at
	}
	t.linger[i] = at + lookAgain
	return at + lookAgain
}

func (t *Table) wakeAt(s uint32) {
	if s != 0 && (t.wake == 0 || s < t.wake) {
		t.wake = s
	}
}

// Enforced is one thing the Sink holds.
type Enforced struct {
	Prefix netip.Prefix
	Scope  uint8
	Until  time.Time
}

// Resync brings the Sink in line with the table, given what it holds now. What the table knows nothing about (a
// block made in the instant before a crash, whose log lines are about to be read again) goes only if orphans is
// true; its end in the kernel bounds it anyway.
func (t *Table) Resync(kernel []Enforced, now time.Time, orphans bool) (changed int, err error) {
	return t.ResyncEach(func(yield func(Enforced) bool) error {
		for _, e := range kernel {
			if !yield(e) {
				break
			}
		}
		return nil
	}, now, orphans)
}

// ResyncEach is Resync without a list: each calls yield for everything that the Sink holds, until it returns false.
// The table is locked meanwhile, so each must not call it. If each fails, nothing is changed.
func (t *Table) ResyncEach(each func(yield func(Enforced) bool) error, now time.Time, orphans bool) (changed int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.bootLocked(now)
	at := unix32(now)
	if t.sink == nil {
		t.uncounted = true
		return 0, nil
	}
	var ops []op
	// Nearly all that is missing are single addresses and /64s with nothing inside: their order does not matter, so
	// they go at once, and a list of a million is spared.
	seen := make([]uint64, t.nodes.used/64+1) // by number of the prefix's first node
	rules := map[pkey]bool{}                  // never-block rules without a node
	done := func(k pkey) bool {
		i := t.headLocked(k)
		if i == 0 {
			was := rules[k]
			rules[k] = true
			return was
		}
		was := seen[i/64]>>(i%64)&1 == 1
		seen[i/64] |= 1 << (i % 64)
		return was
	}
	have := 0
	err = each(func(e Enforced) bool {
		have++
		k := keyOf(e.Prefix)
		o := t.wantedLocked(k, at)
		_, rule := t.never.rules[k]
		if rule || t.headLocked(k) != 0 {
			done(k)
		}
		switch {
		case o.remove && !orphans && !t.knownLocked(k):
		case !o.remove && e.Scope == uint8(o.scope) && sameEnd(e.Until, time32(o.until)):
		default:
			ops = append(ops, o)
		}
		return true
	})
	if err != nil {
		return 0, err
	}
	n, serr := t.sinkEachLocked(t.nodes.live-have, func(yield func(op) bool) {
		missing := func(k pkey) bool {
			v := t.verdictLocked(k, at)
			t.settleLocked(k, v, at)
			if done(k) {
				return true
			}
			switch o := t.opLocked(k, v, at); {
			case o.remove:
			case o.scope != ScopeNone && t.aloneLocked(k):
				return yield(o)
			default:
				ops = append(ops, o)
			}
			return true
		}
		t.walkLocked(missing)
		for k := range t.never.rules {
			missing(k)
		}
	})
	changed += n
	if err == nil {
		err = serr
	}
	t.uncounted, t.counted = false, at
	n, serr = t.sinkLocked(ops)
	if err == nil {
		err = serr
	}
	if aerr := t.tellAllowedLocked(at); err == nil {
		err = aerr
	}
	return changed + n, err
}

// aloneLocked says that nothing is said about anything inside k, and that this is known without a search.
func (t *Table) aloneLocked(k pkey) bool {
	if k.bits != 128 && (k.bits != 64 || len(t.long[k.hi]) > 0) {
		return false
	}
	alone := true
	t.never.eachInside(k, func(o pkey) { alone = alone && o == k })
	return alone
}

func sameEnd(a, b time.Time) bool {
	if a.IsZero() || b.IsZero() {
		return a.IsZero() == b.IsZero()
	}
	return a.Sub(b).Abs() <= 1500*time.Millisecond // the kernel's clock is another one
}

func (t *Table) knownLocked(k pkey) bool {
	if _, ok := t.never.around(k); ok {
		return true
	}
	if _, ok := t.never.sender(k); ok {
		return true
	}
	return len(t.aroundLocked(k, true)) > 0
}

// ---- from effective state to Sink

// op is what the Sink should hold for one prefix.
type op struct {
	key    pkey
	remove bool
	scope  Scope
	until  uint32
}

// wantedLocked computes what the Sink should hold for k: a drop, a hole in a wider drop, or nothing.
func (t *Table) wantedLocked(k pkey, at uint32) op { return t.opLocked(k, t.verdictLocked(k, at), at) }

// opLocked does so with the verdict of k.
func (t *Table) opLocked(k pkey, v outcome, at uint32) op {
	if _, rule := t.never.rules[k]; !rule && t.headLocked(k) == 0 {
		return op{key: k, remove: true} // nothing is said about k itself any more: the wider prefixes decide
	}
	if v.drop {
		return op{key: k, scope: v.scope, until: v.until}
	}
	hole := false
	t.have[family(k)].around(k, func(w pkey) {
		if w != k && !hole && t.headLocked(w) != 0 {
			hole = t.verdictLocked(w, at).drop
		}
	})
	return op{key: k, remove: !hole}
}

// refreshLocked brings the figures and the Sink in line for the keys and for every prefix inside them about which
// anything is said. However many keys there are, the look-ups inside them cost no more than one walk over the table.
func (t *Table) refreshLocked(at uint32, keys ...pkey) error {
	todo := t.todo[:0]
	var wide map[pkey]struct{}
	var wideBits [2]lengths
	budget := t.nodes.live
	for _, k := range keys {
		todo = append(todo, k)
		if k.bits == 128 {
			continue
		}
		t.never.eachInside(k, func(o pkey) { todo = append(todo, o) })
		if budget -= t.insideCostLocked(k); budget > 0 {
			t.insideLocked(k, func(o pkey) bool { todo = append(todo, o); return true })
			continue
		}
		if wide == nil {
			wide = map[pkey]struct{}{}
		}
		wide[k] = struct{}{}
		wideBits[family(k)][k.bits]++
	}
	if wide != nil {
		for i := uint32(1); i <= t.nodes.used; i++ {
			n := t.nodes.at(i)
			if n.kind == 0 {
				continue
			}
			k, in := n.key(), false
			wideBits[family(k)].around(k, func(w pkey) {
				if !in {
					_, in = wide[w]
				}
			})
			if in && t.headLocked(k) == i {
				todo = append(todo, k)
			}
		}
	}
	if len(todo) > 1 {
		slices.SortFunc(todo, comparePkey)
		todo = slices.Compact(todo)
	}
	ops := t.ops[:0]
	for _, k := range todo {
		v := t.verdictLocked(k, at)
		t.settleLocked(k, v, at)
		if t.sink != nil {
			ops = append(ops, t.opLocked(k, v, at))
		}
	}
	if cap(todo) <= keepScratch {
		t.todo, t.ops = todo, ops
	}
	_, err := t.sinkLocked(ops)
	if aerr := t.tellAllowedLocked(at); err == nil {
		err = aerr
	}
	return err
}

// keepScratch bounds, in elements, what refreshLocked keeps for the next time.
const keepScratch = 1024

// refreshOneLocked offers the Sink again what it should hold for k.
func (t *Table) refreshOneLocked(k pkey, at uint32) error {
	_, err := t.sinkLocked([]op{t.wantedLocked(k, at)})
	return err
}

// sinkLocked hands the ops on: holes before drops, so that no innocent is hit while a wide block goes in, and
// removals from wide to narrow, so that a hole outlives the block around it.
func (t *Table) sinkLocked(ops []op) (n int, first error) {
	if t.sink == nil {
		return 0, nil
	}
	rank := func(o *op) int {
		switch {
		case o.remove:
			return 2
		case o.scope == ScopeNone:
			return 0
		default:
			return 1
		}
	}
	slices.SortFunc(ops, func(a, b op) int {
		if r := rank(&a) - rank(&b); r != 0 {
			return r
		}
		return int(a.key.bits) - int(b.key.bits)
	})
	sets := sort.Search(len(ops), func(i int) bool { return ops[i].remove })
	_, first = t.sinkEachLocked(sets, func(yield func(op) bool) {
		for _, o := range ops[:sets] {
			yield(o)
		}
	})
	for i := range ops[sets:] {
		k := ops[sets+i].key
		if err := t.sunkLocked(k, t.sink.Remove(k.prefix())); first == nil {
			first = err
		}
	}
	return len(ops), first
}

// sinkEachLocked hands on what ops yields, all of it to be Set, and returns how many those were.
func (t *Table) sinkEachLocked(about int, ops func(yield func(op) bool)) (n int, first error) {
	many, ok := t.sink.(manySink)
	if !ok || about < 16 {
		ops(func(o op) bool {
			n++
			if err := t.sunkLocked(o.key, t.sink.Set(o.key.prefix(), uint8(o.scope), time32(o.until))); first == nil {
				first = err
			}
			return true
		})
		return n, first
	}
	many.SetMany(about, func(yield func(netip.Prefix, uint8, time.Time) bool) {
		ops(func(o op) bool {
			n++
			delete(t.unsunk, o.key)
			return yield(o.key.prefix(), uint8(o.scope), time32(o.until))
		})
	}, func(p netip.Prefix, err error) {
		_ = t.sunkLocked(keyOf(p), err)
		if first == nil {
			first = err
		}
	})
	return n, first
}

// sunkLocked remembers whether the Sink took k.
func (t *Table) sunkLocked(k pkey, err error) error {
	if err != nil {
		t.unsunk[k] = err
	} else {
		delete(t.unsunk, k)
	}
	return err
}

// Lead says how far the newest stamp of this table's clock is ahead of now: more than a moment if the wall clock was
// set back, or runs behind that of others.
func (t *Table) Lead(now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.clk.last.Time().Sub(now))
}

// Newest returns the time of the newest stamp, zero if there is none.
func (t *Table) Newest() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := max(t.clk.last, t.ahead); n != 0 {
		return n.Time()
	}
	return time.Time{}
}
