package gossip

import (
	"sync"
	"time"
)

// inbox hands what came in to the callbacks, one at a time and in the order of arrival, so that slow ones hold up neither
// failure detection nor each other's locks. It is bounded in bytes; joins and leaves always find room.
type inbox struct {
	mu     sync.Mutex
	change *sync.Cond
	queue  []delivery
	oldest time.Time // when the one that was not handled yet came; zero: there is none
	bytes  int
	closed bool
}

type delivery struct {
	kind byte // kindOne, kindDigest, or one of:
	peer string
	msg  []byte
	came time.Time // set by push
}

const (
	kindJoin  = 128
	kindLeave = 129
)

const (
	maxInbox     = 16 << 20
	deliveryCost = 64 // what a small message costs besides its bytes
)

func newInbox() *inbox {
	b := &inbox{}
	b.change = sync.NewCond(&b.mu)
	return b
}

// push takes one over. If there is no room it waits, or says false.
func (b *inbox) push(d delivery, wait bool) bool {
	cost := len(d.msg) + deliveryCost
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.closed && d.kind < kindJoin && b.bytes+cost > maxInbox {
		if !wait {
			return false
		}
		b.change.Wait()
	}
	if b.closed {
		return false
	}
	if d.came = time.Now(); b.oldest.IsZero() {
		b.oldest = d.came
	}
	b.queue = append(b.queue, d)
	b.bytes += cost
	b.change.Broadcast()
	return true
}

// run calls out until close.
func (b *inbox) run(call func(delivery)) {
	for {
		b.mu.Lock()
		for len(b.queue) == 0 && !b.closed {
			b.change.Wait()
		}
		if b.closed {
			b.mu.Unlock()
			return
		}
		batch := b.queue
		b.queue = nil
		b.mu.Unlock()
		for i, d := range batch {
			call(d)
			b.mu.Lock()
			b.bytes -= len(d.msg) + deliveryCost
			switch {
			case i+1 < len(batch):
				b.oldest = batch[i+1].came
			case len(b.queue) > 0:
				b.oldest = b.queue[0].came
			default:
				b.oldest = time.Time{}
			}
			b.change.Broadcast()
			closed := b.closed
			b.mu.Unlock()
			if closed {
				return
			}
		}
	}
}

// behind is how long the oldest that was not handled yet has waited.
func (b *inbox) behind(now time.Time) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.oldest.IsZero() {
		return 0
	}
	return max(0, now.Sub(b.oldest))
}

func (b *inbox) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.change.Broadcast()
}
