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
	RuleSender      Rule = "sender_allow" // an allow by name: spf:, domain:
	RuleBlock       Rule = "block"        // an automatic block
	RuleCleared     Rule = "cleared"      // a block stands, but a clear cancels it
	RuleNone        Rule = "none"         // nothing is known against the address
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
	// Unenforced is set if the kernel does not do so, and tells why: it refused the block, the hole or the removal.
	Unenforced string `json:"unenforced,omitempty"`
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
func (t *Table) cancels(c, b *node) bool {
	return c.stamp >= b.stamp || b.automatic() && stamp32(c.until) > b.stamp && t.fault != FaultNoHold
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
			if c := t.nodes.at(i); c.kind == Clear && t.cancels(c, b) {
				return i
			}
		}
		return 0
	}
	disallowed := func(a *node) bool {
		for _, i := range near {
			if d := t.nodes.at(i); d.kind == Disallow && d.key() == a.key() && d.stamp >= a.stamp {
				return true
			}
		}
		return false
	}
	var manual, auto, cleared outcome
	for _, i := range near {
		n := t.nodes.at(i)
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
		if n.automatic() {
			// The widest scope that stands now, and its latest end: when that is over the agent looks again.
			if auto.by == 0 || n.scope > auto.scope || n.scope == auto.scope && later(n.until, auto.until) {
				auto = outcome{drop: true, scope: n.scope, until: n.until, rule: RuleBlock, by: i}
			}
			continue
		}
		if manual.by != 0 {
			// Nodes with the same entries must decide alike, so equal stamps of two origins need an order too.
			m := t.nodes.at(manual.by)
			switch {
			case m.bits != n.bits:
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
	if manual.by != 0 {
		return manual
	}
	if n, ok := t.never.sender(k); ok {
		return outcome{rule: RuleSender, never: n, by: auto.by} // by: what would drop without the allow
	}
	if n, ok := t.never.ports(k); ok && auto.by != 0 {
		auto.never = n
		if auto.scope &^= n.Ports; auto.scope == 0 {
			return outcome{rule: RuleSender, never: n, by: auto.by}
		}
	}
	switch {
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
	k, at := keyOf(p), unix32(now)
	d := t.decisionLocked(t.verdictLocked(k, at))
	d.Unenforced = t.unenforcedLocked(k, at)
	return d
}

// unenforcedLocked tells why the Sink does not hold what decides for k: the narrowest prefix around k of which the
// Sink should hold something, or could not let go, is the one that counts.
func (t *Table) unenforcedLocked(k pkey, at uint32) string {
	if len(t.unsunk) == 0 {
		return ""
	}
	least := uint8(0)
	if k.is4() {
		least = v4Bits
	}
	for bits := int(k.bits); bits >= int(least); bits-- {
		w := k.masked(uint8(bits))
		if err, ok := t.unsunk[w]; ok {
			return err.Error()
		}
		if !t.wantedLocked(w, at).remove {
			return ""
		}
	}
	return ""
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
	for _, i := range t.aroundLocked(keyOf(p), true) {
		list = append(list, t.entryLocked(i))
	}
	return list
}

// heldLocked finds a clear around k whose hold is not over at stamp.
func (t *Table) heldLocked(k pkey, stamp Stamp) (uint32, bool) {
	for _, i := range t.nearLocked(k) {
		if c := t.nodes.at(i); c.kind == Clear && stamp32(c.until) > stamp {
			return i, true
		}
	}
	return 0, false
}

// liveBlockLocked says whether block node i still stands for its own prefix.
func (t *Table) liveBlockLocked(i, at uint32) bool {
	b := t.nodes.at(i)
	if b.until != 0 && b.until <= at || t.hiddenLocked(b) {
		return false
	}
	for _, j := range t.nearLocked(b.key()) {
		if c := t.nodes.at(j); c.kind == Clear && t.cancels(c, b) {
			return false
		}
	}
	return true
}

// touchingLocked returns the standing blocks that cover k or lie inside it.
func (t *Table) touchingLocked(k pkey, at uint32) (list []uint32) {
	near := slices.Clone(t.nearLocked(k))
	add := func(i uint32) {
		if t.nodes.at(i).kind == Block && t.liveBlockLocked(i, at) {
			list = append(list, i)
		}
	}
	for _, i := range near {
		add(i)
	}
	t.insideLocked(k, func(o pkey) bool {
		for i := t.headLocked(o); i != 0; i = t.nodes.at(i).next {
			add(i)
		}
		return true
	})
	return list
}

// Query selects entries for List.
type Query struct {
	Kinds  []Kind       // none: blocks
	Within netip.Prefix // only entries inside it or around it; zero: all
	Cause  Cause        // NoCause: any
	Origin string       // empty: any
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

// newestLocked collects node numbers and gives back the limit (0: all) newest of them, newest first. It never holds
// more than twice the limit.
type newestLocked struct {
	t     *Table
	limit int
	list  []uint32
	floor Stamp // of the list's last, once there are limit of them
	total int
}

func (c *newestLocked) add(i uint32) {
	c.total++
	if c.t.nodes.at(i).stamp < c.floor {
		return
	}
	if c.list = append(c.list, i); c.limit > 0 && len(c.list) >= 2*c.limit+64 {
		c.sort()
		c.floor = c.t.nodes.at(c.list[len(c.list)-1]).stamp
	}
}

func (c *newestLocked) sort() []uint32 {
	slices.SortFunc(c.list, func(a, b uint32) int {
		switch x, y := c.t.nodes.at(a).stamp, c.t.nodes.at(b).stamp; {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return int(a) - int(b)
	})
	if c.limit > 0 && len(c.list) > c.limit {
		c.list = c.list[:c.limit]
	}
	return c.list
}

// List returns entries, newest first, and how many matched in all. With a limit it costs one walk over the table and
// a decision for each entry returned.
func (t *Table) List(q Query, now time.Time) ([]Listed, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := unix32(now)
	t.countLocked(at)
	if len(q.Kinds) == 0 {
		q.Kinds = []Kind{Block}
	}
	var kinds [Disallow + 1]bool
	for _, k := range q.Kinds {
		if k <= Disallow {
			kinds[k] = true
		}
	}
	kinds[0] = false // unused nodes
	var within pkey
	if q.Within.IsValid() {
		within = keyOf(q.Within)
	}
	found := newestLocked{t: t, limit: q.Limit}
	for i := uint32(1); i <= t.nodes.used; i++ {
		n := t.nodes.at(i)
		if !kinds[n.kind] || q.Cause != NoCause && n.cause != q.Cause {
			continue
		}
		if q.Origin != "" && t.originOf(n).name != q.Origin {
			continue
		}
		if q.Within.IsValid() && !within.covers(n.key()) && !n.key().covers(within) {
			continue
		}
		if q.All || !n.ended(at) && (n.stands || n.kind == Disallow) {
			found.add(i)
		}
	}
	list := make([]Listed, 0, min(found.total, len(found.list)))
	for _, i := range found.sort() {
		n := t.nodes.at(i)
		v := t.verdictLocked(n.key(), at)
		if e := t.standsNowLocked(i, v, at); e || q.All {
			list = append(list, Listed{t.entryLocked(i), e, v.rule})
		} else {
			found.total-- // something ended since the last Expire
		}
	}
	return list, found.total
}

// Inside returns the standing blocks strictly inside p, newest first and at most limit (0: all), and their number.
// What covers p, About and Decide tell.
func (t *Table) Inside(p netip.Prefix, limit int, now time.Time) ([]Entry, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := unix32(now)
	t.countLocked(at)
	found := newestLocked{t: t, limit: limit}
	t.insideLocked(keyOf(p), func(o pkey) bool {
		for i := t.headLocked(o); i != 0; i = t.nodes.at(i).next {
			if n := t.nodes.at(i); n.kind == Block && n.stands && !n.ended(at) {
				found.add(i)
			}
		}
		return true
	})
	var list []Entry
	for _, i := range found.sort() {
		list = append(list, t.entryLocked(i))
	}
	return list, found.total
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

	Causes  map[Cause]Families `json:"causes"`  // of Blocks; causes that have none are left out
	Origins []OriginCount      `json:"origins"` // of Entries, by whom they are of
}

// Count counts. The figures are kept with every change, so it costs nothing; what has ended since the last Expire
// still counts, unless that is seconds ago.
func (t *Table) Count(now time.Time) Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.countLocked(unix32(now))
	c := t.counts
	c.Causes, c.Origins = t.causesLocked(), t.originsLocked()
	c.Entries, c.Unenforced = t.nodes.live, len(t.unsunk)
	for _, err := range t.unsunk {
		c.WhyUnenforced = err.Error()
		break
	}
	return c
}

// countLocked walks over the table if the figures are not kept: after Load, and when nobody calls Expire or Expire
// waits for the clock.
func (t *Table) countLocked(at uint32) {
	late := t.wake != 0 && at >= t.wake+2 && (at >= t.counted+10 || at < t.counted)
	if !t.uncounted && !late {
		return
	}
	t.walkLocked(func(k pkey) bool {
		t.settleLocked(k, t.verdictLocked(k, at), at)
		return true
	})
	t.uncounted, t.counted = false, at
}

// standsNowLocked says whether node i is in effect for its own prefix, of which v is the verdict.
func (t *Table) standsNowLocked(i uint32, v outcome, at uint32) bool {
	switch n := t.nodes.at(i); {
	case n.ended(at) || t.hiddenLocked(n):
		return false
	case n.kind == Block:
		return v.drop && (v.by == i || t.liveBlockLocked(i, at))
	case n.kind == Allow:
		return v.rule == RuleManualAllow && v.by == i
	}
	return true
}

// settleLocked brings the figures in line with v, the verdict of k.
func (t *Table) settleLocked(k pkey, v outcome, at uint32) {
	for i := t.headLocked(k); i != 0; {
		n := t.nodes.at(i)
		t.standsLocked(n, t.standsNowLocked(i, v, at))
		i = n.next
	}
}

func (t *Table) standsLocked(n *node, yes bool) {
	if n.stands == yes {
		return
	}
	n.stands = yes
	d := -1
	if yes {
		d = 1
	}
	switch n.kind {
	case Block:
		t.counts.Blocks += d
		t.causes[n.cause].add(n.key(), d)
		if n.cause == Manual {
			t.counts.Manual += d
		}
	case Allow:
		t.counts.Allows += d
	case Clear:
		t.counts.Clears += d
	}
}
