package dnslist

import (
	"math/bits"
	"math/rand/v2"
	"net/netip"
	"time"
)

// The log path must not wait for the engine's lock, nor walk its memory for every line: that would double what a line costs.
// So it only notes the sources of a batch of lines, and the engine sorts them out in a goroutine of its own.

// Bounds of what waits to be sorted out. What finds no place is asked about when it is seen again.
const (
	maxBatches = 16
	maxBatch   = 8192 // sources
	atOnce     = 256  // sources sorted out under one lock
)

// Collector gathers the sources of lines for an Engine. It is for one goroutine, or one lock.
type Collector struct {
	e      *Engine
	list   []netip.Addr
	last   netip.Addr
	second int64
	seed   uint64
	recent [4096]uint32 // most lines are about sources that were just seen: a hash of each, with the second
}

// NewCollector makes one.
func (e *Engine) NewCollector() *Collector { return &Collector{e: e, seed: rand.Uint64()} }

// Add notes a source. second is about now; a source is noted once in it.
func (c *Collector) Add(a netip.Addr, second int64) {
	if a == c.last && second == c.second || !a.IsValid() {
		return
	}
	c.last, c.second = a, second
	k := keyOf(a)
	h := (k.hi ^ c.seed) * 0x9e3779b97f4a7c15
	h = (bits.RotateLeft64(h, 32) ^ k.lo ^ uint64(second)<<32) * 0xd6e8feb86659fd93
	h ^= h >> 32
	// Two sources of one hash in one second are one in four billion: the other one is asked about when it is seen again.
	r := &c.recent[h>>52]
	if *r == uint32(h) {
		return
	}
	if *r = uint32(h); len(c.list) == maxBatch {
		c.Flush()
	}
	c.list = append(c.list, a)
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
		c.list = nil
		select {
		case c.list = <-c.e.spare:
		default:
		}
	default:
		c.e.offered.Add(-n)
		c.e.refused.Add(uint64(n))
	}
	c.list = c.list[:0]
}

// take sorts out a batch.
func (e *Engine) take(list []netip.Addr) {
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

func (e *Engine) takeSome(list []netip.Addr, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, a := range list {
		if a = a.Unmap().WithZone(""); e.askable(a) {
			e.askLocked(a, now)
		}
	}
	e.offered.Add(-int64(len(list)))
}
