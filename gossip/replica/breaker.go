package replica

import (
	"fmt"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// breaker counts the sources with welcome mail that one origin blocks.
type breaker struct {
	since time.Time
	hosts int
}

// watch suspends an origin, before its entries are merged, if too many of the sources it blocks delivered welcome mail
// here lately. Blocks that it held before do not count again.
func (n *Node) watch(origin string, list []block.Entry, now time.Time) {
	if n.o.Accepted == nil || origin == n.o.Node {
		return
	}
	b := n.breakers[origin]
	for i := range list {
		e := &list[i]
		if !e.Automatic() || n.table.Holds(e) || !n.o.Accepted(e.Prefix) {
			continue
		}
		if b == nil {
			b = &breaker{since: now}
			n.breakers[origin] = b
		}
		if d := now.Sub(b.since); d < 0 || d > n.o.BreakerTime {
			b.since, b.hosts = now, 0
		}
		b.hosts++
	}
	if b == nil || b.hosts < n.o.BreakerHosts {
		return
	}
	if n.table.Suspend(origin, true, now) {
		n.stats.Suspensions++
	}
	n.alarm("breaker "+origin, fmt.Sprintf("node %.64q is suspended: it blocked %d sources from which mail was accepted here lately; nothing it says is enforced", origin, b.hosts), now)
}

// Suspend stops enforcing what an origin says, on this node. Resume begins again, and its breaker counts from zero.
func (n *Node) Suspend(origin string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.Suspend(origin, true, n.o.Clock())
}

// Resume undoes Suspend, whoever did it.
func (n *Node) Resume(origin string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.breakers, origin)
	delete(n.alarms, "breaker "+origin)
	return n.table.Suspend(origin, false, n.o.Clock())
}
