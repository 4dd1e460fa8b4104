package block

import (
	"net/netip"
	"slices"
	"time"
)

// Rule names the step of the decision that settled it.
type Rule string

// The rules, in the order in which they are asked.
const (
	RuleNever       Rule = "never_block"
	RuleConfig      Rule = "config_allow"
	RuleManualBlock Rule = "manual_block"
	RuleManualAllow Rule = "manual_allow"
	RuleBlock       Rule = "block"   // an automatic block
	RuleCleared     Rule = "cleared" // a block stands, but a clear cancels it
	RuleNone        Rule = "none"    // nothing is known against the address
)

// A Decision is what happens to a packet from an address to a protected port now.
type Decision struct {
	Drop  bool      `json:"drop"`
	Scope Scope     `json:"scope,omitzero"` // which ports are closed
	Until time.Time `json:"until,omitzero"` // when the drop ends by itself (zero: no end)
	Rule  Rule      `json:"rule"`
	By    *Entry    `json:"by,omitempty"`    // the entry that decides, if one does
	Never *Never    `json:"never,omitempty"` // the never-block rule that decides, if one does
	Clear *Entry    `json:"clear,omitempty"` // with RuleCleared: the clear that cancels By
}

type outcome struct {
	drop  bool
	scope Scope
	until uint32
	rule  Rule
	by    uint32 // node
	clear uint32 // node
	never Never
}

// cancels says whether clear c cancels block b for the addresses both cover.
func cancels(c, b *node) bool {
	return c.stamp >= b.stamp || b.automatic(Block) && StampAt(time32(c.until)) > b.stamp
}

// verdictLocked decides for the addresses of k about which nothing more specific is said.
func (t *Table) verdictLocked(k pkey, at uint32) outcome {
	if n, ok := t.never.around(k); ok {
		rule := RuleNever
		if n.Config {
			rule = RuleConfig
		}
		return outcome{rule: rule, never: n}
	}
	near := t.nearLocked(k)
	cancelledBy := func(b *node) uint32 {
		for _, i := range near {
			if c := &t.nodes[i-1]; c.kind == Clear && cancels(c, b) {
				return i
			}
		}
		return 0
	}
	disallowed := func(a *node) bool {
		for _, i := range near {
			if d := &t.nodes[i-1]; d.kind == Disallow && d.key == a.key && d.stamp >= a.stamp {
				return true
			}
		}
		return false
	}
	var manual, auto, cleared outcome
	for _, i := range near {
		n := &t.nodes[i-1]
		if n.kind != Block && n.kind != Allow || n.until != 0 && n.until <= at {
			continue
		}
		if n.kind == Allow && disallowed(n) {
			continue
		}
		if n.kind == Block {
			if c := cancelledBy(n); c != 0 {
				cleared = outcome{rule: RuleCleared, by: i, clear: c}
				continue
			}
		}
		if n.automatic(n.kind) {
			// The widest scope that stands now, and its latest end: when that is over the agent looks again.
			if auto.by == 0 || n.scope > auto.scope || n.scope == auto.scope && later(n.until, auto.until) {
				auto = outcome{drop: true, scope: n.scope, until: n.until, rule: RuleBlock, by: i}
			}
			continue
		}
		if manual.by != 0 {
			// Nodes with the same entries must decide alike, so equal stamps of two origins need an order too.
			m := &t.nodes[manual.by-1]
			switch {
			case m.key.bits != n.key.bits:
				// n is the more specific one: nearLocked goes from wide to narrow
			case m.stamp != n.stamp:
				if m.stamp > n.stamp {
					continue
				}
			case m.kind != n.kind:
				if m.kind == Allow {
					continue
				}
			case later(m.until, n.until):
				continue
			}
		}
		if n.kind == Allow {
			manual = outcome{rule: RuleManualAllow, by: i}
		} else {
			manual = outcome{drop: true, scope: n.scope, until: n.until, rule: RuleManualBlock, by: i}
		}
	}
	switch {
	case manual.by != 0:
		return manual
	case auto.by != 0:
		return auto
	case cleared.by != 0:
		return cleared
	}
	return outcome{rule: RuleNone}
}

func later(a, b uint32) bool { return a == 0 || b != 0 && a > b }

// Decide returns what happens to packets from p (an address, or all of a prefix about which nothing more specific
// is said).
func (t *Table) Decide(p netip.Prefix, now time.Time) Decision {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.decisionLocked(t.verdictLocked(keyOf(p), unix32(now)))
}

func (t *Table) decisionLocked(o outcome) Decision {
	d := Decision{Drop: o.drop, Scope: o.scope, Until: time32(o.until), Rule: o.rule}
	if o.by != 0 {
		e := t.entryLocked(o.by)
		d.By = &e
	}
	if o.clear != 0 {
		e := t.entryLocked(o.clear)
		d.Clear = &e
	}
	if o.never.Prefix.IsValid() {
		d.Never = &o.never
	}
	return d
}

// About returns every entry whose prefix covers p, widest first, whether it holds or not.
func (t *Table) About(p netip.Prefix) []Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []Entry
	for _, i := range t.nearLocked(keyOf(p)) {
		list = append(list, t.entryLocked(i))
	}
	return list
}

// heldLocked finds a clear around k whose hold is not over at stamp.
func (t *Table) heldLocked(k pkey, stamp Stamp) (uint32, bool) {
	for _, i := range t.nearLocked(k) {
		if c := &t.nodes[i-1]; c.kind == Clear && StampAt(time32(c.until)) > stamp {
			return i, true
		}
	}
	return 0, false
}

// liveBlockLocked says whether block node i still stands for its own prefix.
func (t *Table) liveBlockLocked(i, at uint32) bool {
	b := &t.nodes[i-1]
	if b.until != 0 && b.until <= at {
		return false
	}
	for _, j := range t.nearLocked(b.key) {
		if c := &t.nodes[j-1]; c.kind == Clear && cancels(c, b) {
			return false
		}
	}
	return true
}

// blocksTouchingLocked returns the standing blocks that cover k or lie inside it, at most limit of them, and their
// number.
func (t *Table) blocksTouchingLocked(k pkey, at uint32, limit int) (list []Entry, total int) {
	add := func(i uint32) {
		if t.nodes[i-1].kind == Block && t.liveBlockLocked(i, at) {
			if total++; len(list) < limit {
				list = append(list, t.entryLocked(i))
			}
		}
	}
	for _, i := range slices.Clone(t.nearLocked(k)) {
		add(i)
	}
	if k.bits < 128 {
		for i := range t.nodes {
			if n := &t.nodes[i]; n.kind == Block && n.key != k && k.covers(n.key) {
				add(uint32(i) + 1)
			}
		}
	}
	return list, total
}

// inside returns the rules that lie inside k.
func (s *neverSet) inside(k pkey) (list []Never) {
	for o, n := range s.rules {
		if k.covers(o) {
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b Never) int { return a.Prefix.Compare(b.Prefix) })
	return list
}

// Query selects entries for List.
type Query struct {
	Kinds  []Kind       // none: blocks
	Within netip.Prefix // only entries inside it or around it; zero: all
	Cause  Cause        // NoCause: any
	All    bool         // also entries that have ended or are cancelled
	Limit  int          // 0: no limit
}

// Listed is an entry with what it does now.
type Listed struct {
	Entry
	// Effective says that the entry holds: it has not ended and nothing overrides it for its own prefix.
	Effective bool `json:"effective"`
	Rule      Rule `json:"rule"`
}

// List returns entries, newest first, and how many matched in all.
func (t *Table) List(q Query, now time.Time) ([]Listed, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := unix32(now)
	if len(q.Kinds) == 0 {
		q.Kinds = []Kind{Block}
	}
	var within pkey
	if q.Within.IsValid() {
		within = keyOf(q.Within)
	}
	type hit struct {
		i         uint32
		effective bool
		rule      Rule
	}
	var hits []hit
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.kind == 0 || !slices.Contains(q.Kinds, n.kind) || q.Cause != NoCause && n.cause != q.Cause {
			continue
		}
		if q.Within.IsValid() && !within.covers(n.key) && !n.key.covers(within) {
			continue
		}
		v := t.verdictLocked(n.key, at)
		h := hit{i: uint32(i) + 1, rule: v.rule}
		switch n.kind {
		case Block:
			h.effective = v.drop && (n.until == 0 || n.until > at) && t.liveBlockLocked(h.i, at)
		case Allow:
			h.effective = v.rule == RuleManualAllow && v.by == h.i
		default:
			h.effective = n.until == 0 || n.until > at
		}
		if q.All || h.effective {
			hits = append(hits, h)
		}
	}
	slices.SortFunc(hits, func(a, b hit) int {
		switch x, y := t.nodes[a.i-1].stamp, t.nodes[b.i-1].stamp; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return int(a.i) - int(b.i)
	})
	total := len(hits)
	if q.Limit > 0 && total > q.Limit {
		hits = hits[:q.Limit]
	}
	list := make([]Listed, len(hits))
	for j, h := range hits {
		list[j] = Listed{t.entryLocked(h.i), h.effective, h.rule}
	}
	return list, total
}

// Counts describes the table's size.
type Counts struct {
	Entries    int `json:"entries"`
	Blocks     int `json:"blocks"`     // standing blocks, whatever made them
	Manual     int `json:"manual"`     // of these, made by a person
	Allows     int `json:"allows"`     // standing allows that are not in the config file
	Clears     int `json:"clears"`     // clears whose hold is not over
	Unenforced int `json:"unenforced"` // prefixes that the kernel did not take
	// WhyUnenforced is the first reason for that.
	WhyUnenforced string `json:"why_unenforced,omitempty"`
}

// Count counts; it walks the whole table.
func (t *Table) Count(now time.Time) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := unix32(now)
	c := Counts{Entries: t.live, Unenforced: len(t.unsunk)}
	for _, err := range t.unsunk {
		c.WhyUnenforced = err.Error()
		break
	}
	for i := range t.nodes {
		n := &t.nodes[i]
		if n.kind == 0 || n.until != 0 && n.until <= at {
			continue
		}
		switch n.kind {
		case Block:
			if t.verdictLocked(n.key, at).drop && t.liveBlockLocked(uint32(i)+1, at) {
				c.Blocks++
				if n.cause == Manual {
					c.Manual++
				}
			}
		case Allow:
			if v := t.verdictLocked(n.key, at); v.by == uint32(i)+1 {
				c.Allows++
			}
		case Clear:
			c.Clears++
		}
	}
	return c
}
