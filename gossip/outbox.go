package gossip

import (
	"context"
	"sync"
	"time"
)

const (
	maxQueue      = 4 << 20 // bytes that wait for one peer
	maxQueueCount = 1 << 16
	maxQueueAll   = 64 << 20 // and for all of them
	sendAttempts  = 3
)

// outbox holds what waits to go to peers by stream. A peer with something to get has a worker of its own, so that one
// slow peer holds up nobody else.
type outbox struct {
	send  func(peer string, batch []byte) error
	alive func(peer string) bool
	start []byte // the envelope of a batch
	count *counters

	ctx context.Context
	wg  sync.WaitGroup

	mu    sync.Mutex
	peers map[string]*lane
	bytes int

	closed bool
}

type lane struct {
	queue [][]byte
	bytes int
}

func (o *outbox) push(peer string, msg []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || o.ctx.Err() != nil {
		return false
	}
	l := o.peers[peer]
	if l != nil && (l.bytes+len(msg) > maxQueue || len(l.queue) >= maxQueueCount) || o.bytes+len(msg) > maxQueueAll {
		o.count.queueFull.Add(1)
		return false
	}
	if l == nil {
		l = &lane{}
		o.peers[peer] = l
		o.wg.Add(1)
		go o.work(peer, l)
	}
	l.queue = append(l.queue, msg)
	l.bytes += len(msg)
	o.bytes += len(msg)
	return true
}

// wait is for the workers to end, once the context has ended; none begins afterwards.
func (o *outbox) wait() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.wg.Wait()
}

// queued is how many bytes wait for a peer.
func (o *outbox) queued(peer string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.peers[peer]; l != nil {
		return l.bytes
	}
	return 0
}

// next packs the oldest messages into a batch. What it returns still counts as queued.
func (o *outbox) next(peer string, l *lane) (batch []byte, n, size int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(l.queue) == 0 {
		delete(o.peers, peer)
		return nil, 0, 0
	}
	batch = append([]byte(nil), o.start...)
	for n < len(l.queue) && n < maxBatch && (n == 0 || size+len(l.queue[n]) <= batchSize) {
		batch = appendBatched(batch, l.queue[n])
		size += len(l.queue[n])
		n++
	}
	return batch, n, size
}

func (o *outbox) done(l *lane, n, size int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(l.queue[:n])
	l.queue = l.queue[n:]
	l.bytes -= size
	o.bytes -= size
}

func (o *outbox) work(peer string, l *lane) {
	defer o.wg.Done()
	for {
		batch, n, size := o.next(peer, l)
		if n == 0 {
			return
		}
		if o.deliver(peer, batch) {
			o.count.sentMessages.Add(uint64(n))
			o.count.sentBatches.Add(1)
		} else {
			o.count.unsent.Add(uint64(n))
		}
		o.done(l, n, size)
	}
}

// deliver tries again while the peer is a member: a restart or a moment without a route costs nothing. A message may
// thus arrive twice.
func (o *outbox) deliver(peer string, batch []byte) bool {
	wait := 100 * time.Millisecond
	for i := range sendAttempts {
		if o.ctx.Err() != nil || !o.alive(peer) {
			return false
		}
		if o.send(peer, batch) == nil {
			return true
		}
		if i == sendAttempts-1 {
			break
		}
		select {
		case <-o.ctx.Done():
		case <-time.After(wait):
		}
		wait *= 4
	}
	return false
}
