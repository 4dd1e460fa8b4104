package block

import (
	"net/netip"
	"slices"
)

// An Allower is a Sink that has limits of its own on who may connect, and has to know whom they must not touch. As a
// Sink it is called with the table's lock held.
type Allower interface {
	// SetAllowed replaces the list: the never-block rules, and what is allowed by an entry that stands. A prefix stands
	// for all that it holds. It says nothing about blocks.
	SetAllowed(list []netip.Prefix) error
}

// allows knows the nodes that are allows, so that nobody has to look for them among a million blocks.
type allows struct {
	to    Allower // nil: nobody wants to know
	nodes map[uint32]struct{}
	stale bool   // what to was told is not what holds
	next  uint32 // when the first allow of what it was told ends; 0: never
}

// noteLocked is told of every node of an allow or disallow that comes or goes.
func (a *allows) noteLocked(i uint32, kind Kind, comes bool) {
	if kind != Allow && kind != Disallow {
		return
	}
	a.stale = true
	if kind == Allow && comes {
		a.nodes[i] = struct{}{}
	} else {
		delete(a.nodes, i)
	}
}

// allowedLocked is the list, sorted.
func (t *Table) allowedLocked(at uint32) []netip.Prefix {
	list := make([]netip.Prefix, 0, len(t.never.rules)+len(t.allows.nodes))
	for k := range t.never.rules {
		list = append(list, k.prefix())
	}
	t.allows.next = 0
	for i := range t.allows.nodes {
		n := t.nodes.at(i)
		if k := n.key(); !n.ended(at) && !t.disallowedLocked(k, n.stamp) {
			list = append(list, k.prefix())
			if n.until != 0 && (t.allows.next == 0 || n.until < t.allows.next) {
				t.allows.next = n.until
			}
		}
	}
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

// disallowedLocked says whether an allow of exactly k with this stamp was taken back.
func (t *Table) disallowedLocked(k pkey, stamp Stamp) bool {
	for i := t.headLocked(k); i != 0; i = t.nodes.at(i).next {
		if d := t.nodes.at(i); d.kind == Disallow && d.stamp >= stamp {
			return true
		}
	}
	return false
}

// tellAllowedLocked hands the list on if it has changed. What fails is tried again by the next Expire.
func (t *Table) tellAllowedLocked(at uint32) error {
	// What has ended may stay in the table for a while.
	ended := t.allows.next != 0 && at >= t.allows.next
	if t.allows.to == nil || !t.allows.stale && !ended {
		return nil
	}
	err := t.allows.to.SetAllowed(t.allowedLocked(at))
	t.allows.stale = err != nil
	return err
}
