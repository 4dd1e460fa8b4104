package replica

import (
	"fmt"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// Standing is how welcome a source's mail was here lately.
type Standing uint8

// The standings.
const (
	NoMail   Standing = iota // none was accepted, or the source offends here too
	SomeMail                 // some was
	MuchMail                 // so much that nobody gets it accepted by chance
)

// breaker counts the sources with welcome mail that one origin blocks.
type breaker struct {
	since  time.Time
	blocks int       // all
	hosts  int       // of sources with welcome mail
	much   int       // of these, with much
	asked  time.Time // when Senders was asked last
}

// A botnet of thousands has members that got a message in here once, and whoever reports the botnet is right. So
// sources with some mail speak against an origin only if they are one in so many of all that it blocks, or of all that
// deliver here.
const (
	breakBlocks  = 20
	breakSenders = 10
)

// watch suspends an origin, before its entries are merged, if too many of the sources it blocks delivered welcome mail
// here lately. Blocks that it held before do not count again.
func (n *Node) watch(origin string, list []block.Entry, now time.Time) {
	if n.o.Accepted == nil || origin == n.o.Node {
		return
	}
	b := n.breakers[origin]
	for i := range list {
		e := &list[i]
		if !e.Automatic() || n.table.Holds(e) {
			continue
		}
		if b == nil {
			b = &breaker{since: now}
			n.breakers[origin] = b
		}
		if d := now.Sub(b.since); d < 0 || d > n.o.BreakerTime {
			*b = breaker{since: now}
		}
		b.blocks++
		switch n.o.Accepted(e.Prefix) {
		case MuchMail:
			b.much++
			b.hosts++
		case SomeMail:
			b.hosts++
		}
	}
	if b == nil || b.hosts < n.o.BreakerHosts || !n.wrong(b, now) {
		return
	}
	if n.table.Suspend(origin, true, now) {
		n.stats.Suspensions++
	}
	n.alarm("breaker "+origin, fmt.Sprintf("node %.64q is suspended: it blocked %d sources from which mail was accepted here lately; nothing it says is enforced", origin, b.hosts), now)
}

func (n *Node) wrong(b *breaker, now time.Time) bool {
	if b.much >= n.o.BreakerHosts || b.hosts*breakBlocks >= b.blocks {
		return true
	}
	if n.o.Senders == nil || now.Sub(b.asked).Abs() < time.Second { // it walks over all of them
		return false
	}
	b.asked = now
	return b.hosts*breakSenders >= n.o.Senders()
}

// opening is what an origin had opened when it was begun to be watched.
type opening struct {
	since time.Time
	from  int
	seen  int // when it opened something last
}

// An origin that opens so much of what is blocked is told of: at least openLeast blocks, and one in openPart of all, or
// openMost. Nothing is held back: a clear is a person's word, and a block too few hurts nobody whose mail is real.
const (
	openLeast = 100
	openPart  = 4
	openMost  = 10_000
)

// watchOpening tells people of an origin whose clears and allows just opened much.
func (n *Node) watchOpening(origin string, now time.Time) {
	total, standing := n.table.Opened(origin)
	o := n.openings[origin]
	if o == nil {
		o = &opening{since: now}
		n.openings[origin] = o
	}
	if d := now.Sub(o.since); d < 0 || d > n.o.BreakerTime {
		o.since, o.from = now, o.seen
	}
	o.seen = total
	if opened := total - o.from; opened >= openMost || opened >= openLeast && opened*openPart >= opened+standing {
		n.alarm("opened "+origin, fmt.Sprintf("node %.64q unblocked or allowed %d of %d blocked sources within %.0f minutes: if nobody meant that, `mxshieldctl origin suspend %.64s` blocks them again here, and `origin clear` everywhere", origin, opened, opened+standing, n.o.BreakerTime.Minutes(), origin), now)
	}
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
