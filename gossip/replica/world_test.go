package replica

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// This file is the simulated world: virtual time, a network that loses, delays, doubles, reorders and divides, and
// hosts that crash, with their disks or without, and whose clocks are wrong.

var epoch0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

type event struct {
	at time.Time
	n  uint64
	do func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

type network struct {
	loss, dup, slow, refuse float64
	delay                   time.Duration // of most messages, at most
}

type world struct {
	now    time.Time
	r      *rand.Rand
	events events
	n      uint64
	net    network
	hosts  []*simHost
	budget block.Budget
	fault  block.Fault
	never  []block.Never
	good   map[netip.Prefix]bool // sources with welcome mail
	bytes  uint64
	onWire func(from, to string, msg []byte, stream bool)
}

// simHost is one host of the world.
type simHost struct {
	w     *world
	name  string
	up    bool
	side  int // of the partition
	skew  time.Duration
	boot  time.Time
	table *block.Table
	node  *Node
	life  int // how often it started
	disk  map[string]block.Entry
	state []byte
	heard func([]HeardEvidence)
	wire  uint32        // the highest version it speaks; 0: WireVersion
	cost  time.Duration // of each KiB that it receives
	inbox []arrival
}

// arrival is a message that waits to be received by a host that takes time for that.
type arrival struct {
	from string
	msg  []byte
	came time.Time
}

func newWorld(seed uint64, hosts int) *world {
	w := &world{now: epoch0, r: rand.New(rand.NewPCG(seed, 7)), net: network{delay: 20 * time.Millisecond}, good: map[netip.Prefix]bool{}}
	for i := range hosts {
		w.hosts = append(w.hosts, &simHost{w: w, name: fmt.Sprintf("mx%d", i+1), disk: map[string]block.Entry{}})
	}
	return w
}

func (w *world) startAll() {
	for _, h := range w.hosts {
		h.start()
	}
}

func (w *world) after(d time.Duration, do func()) {
	w.n++
	heap.Push(&w.events, event{w.now.Add(d), w.n, do})
}

// run lets the world go on.
func (w *world) run(d time.Duration) {
	end := w.now.Add(d)
	for len(w.events) > 0 && !w.events[0].at.After(end) {
		e := heap.Pop(&w.events).(event)
		if e.at.After(w.now) {
			w.now = e.at
		}
		e.do()
	}
	w.now = end
}

// leap lets much time go by with few steps.
func (w *world) leap(d time.Duration, steps int) {
	for range steps {
		w.now = w.now.Add(d / time.Duration(steps))
		w.run(600 * time.Millisecond)
	}
}

func (h *simHost) clock() time.Time { return h.w.now.Add(h.skew) }

func (h *simHost) start() {
	h.up, h.boot = true, h.w.now
	h.life++
	boot := h.boot
	h.table = block.New(block.Options{Origin: h.name, Budget: h.w.budget, Fault: h.w.fault, Uptime: func() time.Duration { return h.w.now.Sub(boot) }})
	if err := h.table.SetNever(h.w.never, h.clock()); err != nil {
		panic(err)
	}
	for _, k := range sortedKeys(h.disk) {
		if _, err := h.table.Load(h.disk[k]); err != nil {
			panic(err)
		}
	}
	var err error
	h.node, err = New(Options{
		Node: h.name, Clock: h.clock, Rand: rand.New(rand.NewPCG(h.w.r.Uint64(), 1)), Net: h, Table: h.table, State: h.state,
		Accepted: func(p netip.Prefix) Standing {
			if h.w.good[p] {
				return MuchMail
			}
			return NoMail
		},
		BreakerHosts: 3, Heard: h.heard, Wire: h.wire,
	})
	if err != nil {
		panic(err)
	}
	h.table.Expire(h.clock())
	h.beat(h.life)
	h.commits(h.life)
}

func (h *simHost) alive(life int) bool { return h.up && h.life == life }

func (h *simHost) beat(life int) {
	if !h.alive(life) {
		return
	}
	h.node.Tick(h.clock())
	if h.w.r.IntN(4) == 0 {
		h.table.Expire(h.clock())
	}
	h.w.after(beat, func() { h.beat(life) })
}

func (h *simHost) commits(life int) {
	if !h.alive(life) {
		return
	}
	h.commit()
	h.w.after(100*time.Millisecond+time.Duration(h.w.r.Int64N(int64(3*time.Second))), func() { h.commits(life) })
}

// commit writes to the disk in the order that the agent must keep.
func (h *simHost) commit() {
	state := h.node.State()
	for _, e := range h.table.Drain() {
		k := fmt.Sprint(e.Origin, e.Prefix, e.Kind, e.Target, e.Automatic())
		b, err := e.MarshalBinary()
		if err != nil {
			panic(err)
		}
		var read block.Entry
		if err := read.UnmarshalBinary(b); err != nil {
			panic(err)
		}
		if old, ok := h.disk[k]; !ok || old.Stamp < e.Stamp || old.Stamp == e.Stamp && (old.Epoch < e.Epoch || old.Epoch == e.Epoch && old.Seq <= e.Seq) {
			h.disk[k] = read
		}
	}
	h.state = state
}

// soon flushes as the agent does, a little after something was said.
func (h *simHost) soon() {
	life := h.life
	h.w.after(30*time.Millisecond, func() {
		if h.alive(life) {
			h.node.Flush(h.clock())
		}
	})
}

func (h *simHost) crash(wipe bool) {
	h.up, h.inbox = false, nil
	if wipe {
		h.disk, h.state = map[string]block.Entry{}, nil
	}
}

// Peers, Send and Stream make it a Net.
func (h *simHost) Peers() (list []string) {
	for _, o := range h.w.hosts {
		if o != h && o.up && o.side == h.side { // what a failure detector would say
			list = append(list, o.name)
		}
	}
	return list
}

func (h *simHost) WireVersion(to string) uint32 {
	for _, o := range h.w.hosts {
		if o.name == to {
			return min(max(h.wire, WireVersion), max(o.wire, WireVersion))
		}
	}
	return 0
}

func (h *simHost) Send(to string, msg []byte) bool {
	if len(msg) > MaxDatagram {
		panic("datagram too long")
	}
	w := h.w
	w.bytes += uint64(len(msg))
	if w.onWire != nil {
		w.onWire(h.name, to, msg, false)
	}
	times := 1
	if w.net.dup > 0 && w.r.Float64() < w.net.dup {
		times = 2
	}
	for range times {
		if w.net.loss > 0 && w.r.Float64() < w.net.loss {
			continue
		}
		d := time.Duration(w.r.Int64N(int64(w.net.delay) + 1))
		if w.net.slow > 0 && w.r.Float64() < w.net.slow {
			d += time.Duration(w.r.Int64N(int64(3 * time.Second)))
		}
		w.deliver(h, to, slices.Clone(msg), d)
	}
	return true
}

func (h *simHost) Stream(to string, msg []byte) bool {
	if len(msg) > MaxMessage {
		panic("message too long")
	}
	w := h.w
	w.bytes += uint64(len(msg))
	if w.onWire != nil {
		w.onWire(h.name, to, msg, true)
	}
	if w.net.refuse > 0 && w.r.Float64() < w.net.refuse {
		return false
	}
	w.deliver(h, to, slices.Clone(msg), 2*time.Millisecond+time.Duration(w.r.Int64N(2*int64(w.net.delay)+1)))
	return true
}

func (w *world) deliver(from *simHost, to string, msg []byte, d time.Duration) {
	i := slices.IndexFunc(w.hosts, func(o *simHost) bool { return o.name == to })
	if i < 0 {
		return
	}
	o := w.hosts[i]
	w.after(d, func() {
		if !o.up || o.side != from.side {
			return
		}
		if o.inbox = append(o.inbox, arrival{from.name, msg, w.now}); len(o.inbox) == 1 {
			o.next(o.life)
		}
	})
}

// next receives the oldest message of the inbox, and goes on while there are more.
func (h *simHost) next(life int) {
	receive := func() {
		if !h.alive(life) {
			return
		}
		a := h.inbox[0]
		h.node.Receive(a.from, a.msg)
		for j := range a.msg { // the network uses its buffers again
			a.msg[j] = 0xee
		}
		if h.inbox = h.inbox[1:]; len(h.inbox) > 0 {
			h.next(life)
		}
	}
	if h.cost == 0 {
		receive()
		return
	}
	h.w.after(h.cost*time.Duration(len(h.inbox[0].msg))/1024, receive)
}

// Behind is how long the oldest of what waits has waited.
func (h *simHost) Behind() time.Duration {
	if len(h.inbox) == 0 {
		return 0
	}
	return h.w.now.Sub(h.inbox[0].came)
}
