package dnslist

import (
	"encoding/binary"
	"math/bits"
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
	seed   uint64
	recent [4096]uint32 // most lines are about sources that were just seen: a hash of each, with the second
}

// note is an address without the pointer of netip.Addr, which the garbage collector would follow; IPv4 is mapped.
type note struct{ hi, lo uint64 }

func noteOf(a netip.Addr) note {
	b := a.As16()
	return note{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

func (n note) addr() netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], n.hi)
	binary.BigEndian.PutUint64(b[8:], n.lo)
	return netip.AddrFrom16(b).Unmap()
}

// NewCollector makes one.
func (e *Engine) NewCollector() *Collector {
	return &Collector{e: e, seed: rand.Uint64(), list: make([]note, 0, maxBatch)}
}

// Add notes a source. second is about now; a source is noted once in it.
func (c *Collector) Add(a netip.Addr, second int64) {
	n := noteOf(a)
	if n == c.last && second == c.second || !a.IsValid() {
		return
	}
	c.last, c.second = n, second
	lo := n.lo
	if !a.Is4() && n.hi != 0 {
		lo = 0 // a /64 is asked about as one
	}
	h := (n.hi ^ c.seed) * 0x9e3779b97f4a7c15
	h = (bits.RotateLeft64(h, 32) ^ lo ^ uint64(second)<<32) * 0xd6e8feb86659fd93
	h ^= h >> 32
	// Two sources of one hash in one second are one in four billion: the other one is asked about when it is seen again.
	r := &c.recent[h>>52]
	if *r == uint32(h) {
		return
	}
	if *r = uint32(h); len(c.list) == maxBatch {
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
