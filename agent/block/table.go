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
//	            > automatic blocks that no clear cancels (latest until wins)
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

// Options of a Table.
type Options struct {
	Origin string // this node's name, 1 to 255 bytes
	Sink   Sink   // nil: nothing is enforced (dry run)
	// MaxEntries bounds the table; beyond it automatic blocks are refused. 0: 2,097,152.
	MaxEntries int
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
	origins  []string // index 0 is this node
	originID map[string]uint16
	heads    map[pkey]uint32 // 1-based index of the first node of a prefix
	nodes    []node
	free     uint32            // 1-based index of the first unused node
	live     int               // nodes in use
	have     lengths           // prefixes by length
	under64  map[uint64]uint32 // IPv6 /64 -> how many longer prefixes stand inside it
	never    *neverSet
	clk      clock
	seq      uint64
	reasons  map[uint32]string // by node: only manual entries have one
	dirty    []Entry           // entries since the last Drain
	unsunk   map[pkey]error    // what the Sink refused
	wake     uint32            // earliest end of any entry, seconds since 1970; 0: none
	scratch  []uint32
}

type node struct {
	record
	key    pkey
	next   uint32
	origin uint16
	kind   Kind // 0: unused
}

// New returns an empty table.
func New(o Options) *Table {
	if o.MaxEntries == 0 {
		o.MaxEntries = 2 << 20
	}
	return &Table{
		sink: o.Sink, max: o.MaxEntries,
		origins: []string{o.Origin}, originID: map[string]uint16{o.Origin: 0},
		heads: map[pkey]uint32{}, under64: map[uint64]uint32{}, reasons: map[uint32]string{}, unsunk: map[pkey]error{},
		never: newNeverSet(nil),
	}
}

// Result says what Apply did.
type Result struct {
	Entry Entry `json:"entry"`
	// Already is set when the block stood already and only its end, scope or hits changed.
	Already bool `json:"already,omitempty"`
	// Cancelled are the blocks that a clear or allow ended, at most 100 of them; CancelledTotal counts all.
	Cancelled      []Entry `json:"cancelled,omitempty"`
	CancelledTotal int     `json:"cancelled_total,omitempty"`
	// Open are never-block prefixes inside a blocked CIDR, which stay open.
	Open []Never `json:"open,omitempty"`
	// Unenforced tells why the kernel does not have it (the entry stands and is tried again).
	Unenforced string `json:"unenforced,omitempty"`
}

// Apply makes a statement of this node: Prefix and Kind, for a block also Cause, Scope, Until, Hits; the rest is
// filled in. It fails with a *NeverError, a *HeldError, ErrPrefix or ErrFull and then changes nothing.
func (t *Table) Apply(e Entry, now time.Time) (Result, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e.Origin, e.Stamp = t.origins[0], 1
	if e.Since.IsZero() {
		e.Since = now
	}
	if e.Kind == Clear {
		if h := now.Add(MaxHold); e.Until.After(h) {
			e.Until = h
		}
		if e.Until.IsZero() {
			e.Until = now
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
	if e.Kind == Block {
		if by, ok := t.never.around(k); ok {
			return Result{}, &NeverError{e.Prefix, by}
		}
		if e.Automatic() {
			if c, ok := t.heldLocked(k, StampAt(now)); ok {
				return Result{}, &HeldError{e.Prefix, t.entryLocked(c)}
			}
			if t.live >= t.max {
				return Result{}, fmt.Errorf("%w: %d entries", ErrFull, t.live)
			}
		}
		if old, ok := t.findLocked(k, Block, 0); ok && t.liveBlockLocked(old, at) {
			r := &t.nodes[old-1].record
			if e.Automatic() && r.cause == Manual { // a person's word is not replaced by evidence
				return Result{Entry: t.entryLocked(old), Already: true}, nil
			}
			if e.Automatic() {
				e.Since = time32(r.since)
				e.Scope |= r.scope
				if u := time32(r.until); u.After(e.Until) {
					e.Until = u
				}
				e.Hits += r.hits
			}
			res.Already = true
		}
		res.Open = t.never.inside(k)
	}
	if e.Kind == Clear || e.Kind == Allow {
		res.Cancelled, res.CancelledTotal = t.blocksTouchingLocked(k, at, 100)
	}
	t.seq++
	e.Stamp, e.Seq = t.clk.next(now), t.seq
	t.putLocked(e)
	t.dirty = append(t.dirty, e)
	if err := t.refreshLocked(k, at); err != nil {
		res.Unenforced = err.Error()
	}
	i, _ := t.findLocked(k, e.Kind, 0)
	res.Entry = t.entryLocked(i)
	return res, nil
}

// Merge takes in an entry that another node made. It reports whether the entry was new; older ones, and ones no
// node may make (with the error), change nothing.
func (t *Table) Merge(e Entry, now time.Time) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed, err := t.mergeLocked(e)
	if err == nil && changed {
		t.dirty = append(t.dirty, e)
		_ = t.refreshLocked(keyOf(e.Prefix), unix32(now)) // what the Sink refuses is kept in unsunk and tried again
	}
	return changed, err
}

// Load takes in an entry of the state file. The Sink learns of it at the next Resync.
func (t *Table) Load(e Entry) (bool, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mergeLocked(e)
}

func (t *Table) mergeLocked(e Entry) (bool, error) {
	if err := e.check(); err != nil {
		return false, err
	}
	if limit := e.Stamp.Time().Add(MaxAutomatic); e.Automatic() && e.Until.After(limit) {
		e.Until = limit
	}
	if limit := e.Stamp.Time().Add(MaxHold); e.Kind == Clear && e.Until.After(limit) {
		e.Until = limit
	}
	id, ok := t.originID[e.Origin]
	if !ok {
		if len(t.origins) >= 1<<16-1 {
			return false, fmt.Errorf("%w: too many origins", errEntry)
		}
		id = uint16(len(t.origins))
		t.origins = append(t.origins, e.Origin)
		t.originID[e.Origin] = id
	}
	t.clk.observe(e.Stamp)
	if id == 0 {
		t.seq = max(t.seq, e.Seq)
	}
	if i, ok := t.findLocked(keyOf(e.Prefix), e.Kind, id); ok {
		if n := (record{stamp: e.Stamp, seq: e.Seq}); !n.newer(&t.nodes[i-1].record) {
			return false, nil
		}
	}
	t.putLocked(e)
	return true, nil
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
	_, ok = t.findLocked(keyOf(e.Prefix), e.Kind, id)
	return ok
}

// SetNever replaces the never-block rules and brings the Sink in line with them.
func (t *Table) SetNever(list []Never, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.never
	t.never = newNeverSet(list)
	at := unix32(now)
	var errs []error
	for k := range old.rules { // a hole that a rule made may close again
		if t.never.rules[k] != old.rules[k] {
			errs = append(errs, t.refreshLocked(k, at))
		}
	}
	for k := range t.never.rules {
		if old.rules[k] != t.never.rules[k] {
			errs = append(errs, t.refreshLocked(k, at))
		}
	}
	return errors.Join(errs...)
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

// Expire removes what has ended and brings the Sink in line. A wall clock that is older than the newest stamp
// expires nothing until it is right again.
func (t *Table) Expire(now time.Time) (removed int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := unix32(now)
	tries := 0
	for k := range t.unsunk {
		if tries++; tries > retries {
			break // a kernel table that is full refuses all of them alike
		}
		_ = t.sinkLocked([]op{t.wantedLocked(k, at)})
	}
	if t.wake == 0 || at < t.wake || now.Add(time.Minute).Before(t.clk.last.Time()) {
		return 0
	}
	t.wake = 0
	var gone []uint32
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.kind == 0 || n.until == 0 {
			continue
		}
		end := n.until
		if n.kind == Clear {
			end = t.clearEndLocked(n, at)
		}
		if end <= at {
			gone = append(gone, uint32(i)+1)
		} else {
			t.wakeAt(end)
		}
	}
	keys := make([]pkey, len(gone))
	for i, id := range gone {
		keys[i] = t.nodes[id-1].key
		t.dropLocked(id)
	}
	for _, k := range keys {
		_ = t.refreshLocked(k, at)
	}
	return len(gone)
}

// clearLinger is how long a clear is kept after its hold: every automatic block it may still have to cancel, from
// whatever partition it arrives, has ended by then (DESIGN: hold_until + 7 d + 60 s).
const clearLinger = uint32((MaxAutomatic + time.Minute) / time.Second)

// clearEndLocked says when a clear may be forgotten: never while a block stands that only it cancels.
func (t *Table) clearEndLocked(n *node, at uint32) uint32 {
	end := n.until + clearLinger
	if end > at {
		return end
	}
	for i := range t.nodes {
		b := &t.nodes[i]
		if b.kind == Block && (b.until == 0 || b.until > at) && (n.key.covers(b.key) || b.key.covers(n.key)) && cancels(n, b) {
			return at + uint32(MaxAutomatic/time.Second)
		}
	}
	return end
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
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.sink == nil {
		return 0, nil
	}
	at := unix32(now)
	has := make(map[pkey]Enforced, len(kernel))
	for _, e := range kernel {
		has[keyOf(e.Prefix)] = e
	}
	want := make(map[pkey]op, len(t.heads))
	consider := func(k pkey) {
		if _, done := want[k]; !done {
			want[k] = t.wantedLocked(k, at)
		}
	}
	for k := range t.heads {
		consider(k)
	}
	for k := range t.never.rules {
		consider(k)
	}
	var ops []op
	for k, o := range want {
		h, ok := has[k]
		delete(has, k)
		switch {
		case o.remove && !ok:
		case !o.remove && ok && h.Scope == uint8(o.scope) && sameEnd(h.Until, time32(o.until)):
		default:
			ops = append(ops, o)
		}
	}
	for k := range has {
		o := t.wantedLocked(k, at)
		if !o.remove || orphans || t.knownLocked(k) {
			ops = append(ops, o)
		}
	}
	return len(ops), t.sinkLocked(ops)
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
	return len(t.nearLocked(k)) > 0
}

// ---- nodes

func (t *Table) findLocked(k pkey, kind Kind, origin uint16) (uint32, bool) {
	for i := t.heads[k]; i != 0; i = t.nodes[i-1].next {
		if n := &t.nodes[i-1]; n.kind == kind && n.origin == origin {
			return i, true
		}
	}
	return 0, false
}

func (t *Table) putLocked(e Entry) {
	k, id := keyOf(e.Prefix), t.originID[e.Origin]
	i, ok := t.findLocked(k, e.Kind, id)
	if !ok {
		if t.free != 0 {
			i, t.free = t.free, t.nodes[t.free-1].next
		} else {
			t.nodes = append(t.nodes, node{})
			i = uint32(len(t.nodes))
		}
		head := t.heads[k]
		if head == 0 {
			t.have[k.bits]++
			if !k.is4() && k.bits > 64 {
				t.under64[k.hi]++
			}
		}
		t.nodes[i-1] = node{key: k, origin: id, kind: e.Kind, next: head}
		t.heads[k] = i
		t.live++
	}
	t.nodes[i-1].record = record{
		stamp: e.Stamp, seq: e.Seq, since: floor32(e.Since), until: unix32(e.Until), hits: e.Hits, cause: e.Cause, scope: e.Scope,
	}
	delete(t.reasons, i)
	if e.Reason != "" {
		t.reasons[i] = e.Reason
	}
	t.wakeAt(t.nodes[i-1].until)
}

func (t *Table) dropLocked(i uint32) {
	n := &t.nodes[i-1]
	k := n.key
	if t.heads[k] == i {
		t.heads[k] = n.next
	} else {
		p := t.heads[k]
		for t.nodes[p-1].next != i {
			p = t.nodes[p-1].next
		}
		t.nodes[p-1].next = n.next
	}
	if t.heads[k] == 0 {
		delete(t.heads, k)
		t.have[k.bits]--
		if !k.is4() && k.bits > 64 {
			if t.under64[k.hi]--; t.under64[k.hi] == 0 {
				delete(t.under64, k.hi)
			}
		}
	}
	delete(t.reasons, i)
	*n = node{next: t.free}
	t.free = i
	t.live--
}

func (t *Table) entryLocked(i uint32) Entry {
	n := &t.nodes[i-1]
	return Entry{
		Origin: t.origins[n.origin], Prefix: n.key.prefix(), Kind: n.kind, Cause: n.cause, Scope: n.scope,
		Since: time32(n.since), Until: time32(n.until), Stamp: n.stamp, Seq: n.seq, Hits: n.hits, Reason: t.reasons[i],
	}
}

// nearLocked returns the nodes whose prefix covers k, widest first. The slice is good until the next call.
func (t *Table) nearLocked(k pkey) []uint32 {
	t.scratch = t.scratch[:0]
	t.have.around(k, func(w pkey) {
		for i := t.heads[w]; i != 0; i = t.nodes[i-1].next {
			t.scratch = append(t.scratch, i)
		}
	})
	return t.scratch
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
func (t *Table) wantedLocked(k pkey, at uint32) op {
	if _, rule := t.never.rules[k]; !rule && t.heads[k] == 0 {
		return op{key: k, remove: true} // nothing is said about k itself any more: the wider prefixes decide
	}
	if v := t.verdictLocked(k, at); v.drop {
		return op{key: k, scope: v.scope, until: v.until}
	}
	hole := false
	wider := func(w pkey) {
		if w != k && !hole && t.heads[w] != 0 {
			hole = t.verdictLocked(w, at).drop
		}
	}
	t.have.around(k, wider)
	return op{key: k, remove: !hole}
}

// refreshLocked brings the Sink in line for k and for every prefix inside k about which anything is said.
func (t *Table) refreshLocked(k pkey, at uint32) error {
	if t.sink == nil {
		return nil
	}
	ops := []op{t.wantedLocked(k, at)}
	if k.bits < 128 {
		seen := map[pkey]bool{k: true}
		inside := func(o pkey) {
			if !seen[o] && k.covers(o) {
				seen[o] = true
				ops = append(ops, t.wantedLocked(o, at))
			}
		}
		for o := range t.never.rules {
			inside(o)
		}
		// The common case is a /64 with nothing inside it; only CIDRs pay for a walk over the table.
		if k.is4() || k.bits != 64 || t.under64[k.hi] > 0 {
			for i := range t.nodes {
				if t.nodes[i].kind != 0 {
					inside(t.nodes[i].key)
				}
			}
		}
	}
	return t.sinkLocked(ops)
}

// sinkLocked hands the ops on: holes before drops, so that no innocent is hit while a wide block goes in, and
// removals from wide to narrow, so that a hole outlives the block around it.
func (t *Table) sinkLocked(ops []op) error {
	if t.sink == nil {
		return nil
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
	var first error
	for i := range ops {
		o := &ops[i]
		p := o.key.prefix()
		var err error
		if o.remove {
			err = t.sink.Remove(p)
		} else {
			err = t.sink.Set(p, uint8(o.scope), time32(o.until))
		}
		if err != nil {
			t.unsunk[o.key] = err
			if first == nil {
				first = err
			}
		} else {
			delete(t.unsunk, o.key)
		}
	}
	return first
}

// Newest returns the time of the newest stamp, zero if there is none.
func (t *Table) Newest() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.clk.last == 0 {
		return time.Time{}
	}
	return t.clk.last.Time()
}
