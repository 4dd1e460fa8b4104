package replica

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// This file is what must hold, in the plainest words, over plain lists.

// entriesOf is all that a table holds with a number.
func entriesOf(t *block.Table) (list []block.Entry) {
	for _, l := range t.Logs() {
		t.Log(l.Origin, l.Epoch, 1, math.MaxUint64, func(e *block.Entry) bool {
			list = append(list, *e)
			return true
		})
	}
	return list
}

func words(list []block.Entry) string {
	var b strings.Builder
	for _, e := range list {
		e.Reason = ""
		fmt.Fprintf(&b, "%s/%x/%d %s %s%s %s %s since %d until %d stamp %d hits %d\n", e.Origin, e.Epoch, e.Seq, e.Kind, e.Prefix, e.Target, e.Cause, e.Scope, e.Since.Unix(), e.Until.Unix(), e.Stamp, e.Hits)
	}
	return b.String()
}

// view is how one node must see a state.
type simView struct {
	self      string
	entries   []block.Entry
	never     []block.Never
	suspended []string
	budget    block.Budget
	now       time.Time
}

func (v *simView) early(e *block.Entry) bool {
	return e.Origin != v.self && e.Stamp.Time().After(v.now.Add(time.Minute))
}

func upto(c *block.Entry) block.Stamp {
	if c.Until.IsZero() {
		return c.Stamp
	}
	return max(c.Stamp, block.StampAt(c.Until))
}

// counts says whether an origin clear counts: no later one that counts ends it.
func (v *simView) counts(c *block.Entry) bool {
	return !slices.Contains(v.suspended, c.Origin) && !v.early(c) && !slices.ContainsFunc(v.entries, func(d block.Entry) bool { return ends(&d, c) && v.counts(&d) })
}

// ends says that d is a later clear of the origin that made c.
func ends(d, c *block.Entry) bool {
	later := d.Stamp > c.Stamp || d.Stamp == c.Stamp && d.Origin > c.Origin
	return d.Kind == block.OriginClear && d.Target == c.Origin && later && upto(d) >= c.Stamp
}

// may says whether an origin clear may count where the clock was set back, and with surely whether it must: what is early
// by it may have come before, and counts then, or after, and waits.
func (v *simView) may(c *block.Entry, surely bool) bool {
	return !slices.Contains(v.suspended, c.Origin) && !(surely && v.early(c)) && !slices.ContainsFunc(v.entries, func(d block.Entry) bool { return ends(&d, c) && v.may(&d, !surely) })
}

// mayBeVoid is void where the clock was set back.
func (v *simView) mayBeVoid(e *block.Entry) bool {
	return slices.ContainsFunc(v.entries, func(c block.Entry) bool {
		return c.Kind == block.OriginClear && c.Target == e.Origin && upto(&c) >= e.Stamp && v.may(&c, false)
	})
}

func (v *simView) void(e *block.Entry) bool {
	for i := range v.entries {
		c := &v.entries[i]
		if c.Kind == block.OriginClear && c.Target == e.Origin && upto(c) >= e.Stamp && v.counts(c) {
			return true
		}
	}
	return false
}

// visible returns the entries that count.
func (v *simView) visible() (list []block.Entry) {
	blocks := map[string][]block.Entry{}
	for _, e := range v.entries {
		switch {
		case e.Kind == block.OriginClear || v.void(&e):
		case e.Automatic() && e.Origin != v.self:
			blocks[e.Origin] = append(blocks[e.Origin], e) // all of them use up the budget
		case !v.early(&e) && !slices.Contains(v.suspended, e.Origin):
			list = append(list, e)
		}
	}
	for _, o := range sortedKeys(blocks) {
		b := blocks[o]
		slices.SortFunc(b, func(a, b block.Entry) int {
			return cmp.Or(cmp.Compare(a.Stamp, b.Stamp), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq))
		})
		var in []block.Stamp
		for _, e := range b {
			recent := 0
			for _, s := range in {
				if s+60_000<<16 > e.Stamp {
					recent++
				}
			}
			if len(in) >= v.budget.Live || recent >= v.budget.Minute {
				continue
			}
			in = append(in, e.Stamp)
			single := e.Prefix.Addr().Is4() && e.Prefix.Bits() == 32 || e.Prefix.Addr().Is6() && e.Prefix.Bits() >= 64
			if single && !v.early(&e) && !slices.Contains(v.suspended, o) {
				list = append(list, e)
			}
		}
	}
	return list
}

func cancelled(c, b *block.Entry) bool {
	return c.Stamp >= b.Stamp || b.Automatic() && block.StampAt(c.Until) > b.Stamp
}

// decide is DESIGN's decision.
func (v *simView) decide(visible []block.Entry, a netip.Addr) (scope block.Scope) {
	for _, n := range v.never {
		if n.Prefix.Contains(a) {
			return block.ScopeNone
		}
	}
	var best *block.Entry
	for i := range visible {
		e := &visible[i]
		if !e.Prefix.Contains(a) || !e.Until.IsZero() && !e.Until.After(v.now) || e.Kind == block.Clear || e.Kind == block.Disallow {
			continue
		}
		dead := false
		for j := range visible {
			c := &visible[j]
			dead = dead || e.Kind == block.Block && c.Kind == block.Clear && c.Prefix.Contains(a) && cancelled(c, e)
			dead = dead || e.Kind == block.Allow && c.Kind == block.Disallow && c.Prefix == e.Prefix && c.Stamp >= e.Stamp
		}
		switch {
		case dead:
		case e.Automatic():
			scope = max(scope, e.Scope)
		case best == nil || e.Prefix.Bits() > best.Prefix.Bits() || e.Prefix.Bits() == best.Prefix.Bits() &&
			(e.Stamp > best.Stamp || e.Stamp == best.Stamp && e.Kind == block.Allow):
			best = e
		}
	}
	if best != nil {
		if best.Kind == block.Allow {
			return block.ScopeNone
		}
		return best.Scope
	}
	return scope
}
