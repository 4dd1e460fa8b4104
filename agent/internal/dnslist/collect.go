package dnslist

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"time"
)

// The log path must not wait for the engine's lock, nor walk its memory for every line: that would double what a line costs.
// So it only notes the sources of a batch of lines, and the engine sorts them out in a goroutine of its own.

// Bounds of what waits to be sorted out. What finds no place is asked about when it is seen again.
const (
	maxBatches = 128
	maxBatch   = 1024 // sources
	atOnce     = 256  // sources sorted out under one lock
)

// Collector gathers the sources of lines for an Engine. It is for one goroutine, or one lock.
type Collector struct {
	e      *Engine
	list   []note
	last   note
	second int64
	salt   uint64          // another one each second
	recent [recents]uint64 // most lines are about sources that were just seen: each, salted
}

const recents = 2048

// note is an address without the pointer of netip.Addr, which the garbage collector would follow; IPv4 is mapped.
type note struct{ hi, lo uint64 }

func noteOf(a netip.Addr) note {
	if a.Is4() {
		b := a.As4()
		return note{0, mapped4 | uint64(binary.BigEndian.Uint32(b[:]))}
	}
	b := a.As16()
	return note{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

const mapped4 = 0xffff << 32

func (n note) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b).Unmap()
}

// NewCollector makes one.
func (e *Engine) NewCollector() *Collector {
	return &Collector{e: e, list: make([]note, 0, maxBatch)}
}

// Add notes a source. second is about now; a source is noted once in it.
func (c *Collector) Add(a netip.Addr, second int64) {
	n := noteOf(a)
	if second != c.second {
		// Nobody can know it, so nobody can choose sources of which one hides another.
		c.second, c.salt = second, rand.Uint64()
	} else if n == c.last {
		return
	}
	c.last = n
	x := n.lo
	if n.hi != 0 {
		x = n.hi // a /64 is asked about as one
	}
	r := &c.recent[(x^x>>16^x>>32)%recents]
	if x ^= c.salt; *r == x || !a.IsValid() {
		return
	}
	if *r = x; len(c.list) == maxBatch {
		c.Flush()
	}
	c.list = append(c.list, n)
}

// Flush hands over what was noted. It never waits.
func (c *Collector) Flush() {
	if len(c.list) == 0 {
		return
	}
	n := int64(len(c.list))
	c.e.offered.Add(n)
	select {
	case c.e.batches <- c.list:
		select {
		case c.list = <-c.e.spare:
		default:
			c.list = make([]note, 0, maxBatch) // growing it would cost more than all the rest
		}
	default:
		c.e.offered.Add(-n)
		c.e.refused.Add(uint64(n))
	}
	c.list = c.list[:0]
}

// take sorts out a batch.
func (e *Engine) take(list []note) {
	now := e.o.Now()
	for rest := list; len(rest) > 0; {
		n := min(len(rest), atOnce)
		e.takeSome(rest[:n], now)
		rest = rest[n:]
	}
	select {
	case e.spare <- list:
	default:
	}
}

func (e *Engine) takeSome(list []note, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range list {
		if a := n.addr(); e.askable(a) {
			e.askLocked(a, now)
		}
	}
	e.offered.Add(-int64(len(list)))
}
