package replica_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/gossip/replica"
)

// The whole way of a block, over real sockets and with encryption: a table, the replication, memberlist, and the other
// tables with what stands for the kernel behind them; beside the same entries sent as memberlist's users do, by its broadcast
// queue and its push/pull. All nodes of both share this process and its processors, so only the ratios mean much.

// kernel stands for the maps: it notes when it got a prefix.
type kernel struct {
	n    atomic.Int64
	mu   sync.Mutex
	want map[netip.Prefix]bool
	at   map[netip.Prefix]time.Time
}

func newKernel() *kernel {
	return &kernel{want: map[netip.Prefix]bool{}, at: map[netip.Prefix]time.Time{}}
}

func (k *kernel) Set(p netip.Prefix, _ uint8, _ time.Time) error {
	now := time.Now()
	k.n.Add(1)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.want[p] && k.at[p].IsZero() {
		k.at[p] = now
	}
	return nil
}

func (k *kernel) Remove(netip.Prefix) error { return nil }

func (k *kernel) watch(p netip.Prefix) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.want[p] = true
}

func (k *kernel) when(p netip.Prefix) (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t, ok := k.at[p]
	return t, ok
}

// way is one way of spreading entries among nodes.
type way interface {
	say(p netip.Prefix) // node 0 blocks p
	kernels() []*kernel // of all nodes, node 0 first
	join() *kernel      // one more node comes, which knows nothing
	bytes() uint64      // received by all nodes so far
}

func entry(p netip.Prefix) block.Entry {
	return block.Entry{Prefix: p, Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: time.Now().Add(72 * time.Hour), Hits: 10}
}

var lastHost atomic.Uint32

// bindHost gives each node an address of its own: the kernel answers for all of 127/8.
func bindHost() string {
	n := lastHost.Add(1)
	return fmt.Sprintf("127.78.%d.%d", 1+n/200, 1+n%200)
}

// ---- ours

type ours struct {
	b     *testing.B
	key   string
	nodes []*oursNode
}

type oursNode struct {
	c     *gossip.Cluster
	table *block.Table
	node  *replica.Node
	k     *kernel
	kick  chan struct{}
	stop  chan struct{}
	done  chan struct{}
}

func (n *oursNode) close() {
	close(n.stop)
	<-n.done
	n.c.Close()
}

// drive is what the agent does: it flushes soon after something was said, and ticks.
func (n *oursNode) drive() {
	defer close(n.done)
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-n.stop:
			return
		case now := <-tick.C:
			n.table.Drain()
			n.node.Tick(now)
		case <-n.kick:
			time.Sleep(25 * time.Millisecond)
			n.node.Flush(time.Now())
		}
	}
}

func (o *ours) open(name string) *oursNode {
	n := &oursNode{k: newKernel(), kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	n.table = block.New(block.Options{Origin: name, Sink: n.k})
	ready := make(chan struct{})
	opt := gossip.Options{
		Name: name, Bind: bindHost() + ":0", KeyFile: o.key,
		Handler: func(p string, m []byte) { <-ready; n.node.Receive(p, m) },
		Digest:  func() []byte { <-ready; return n.node.Digest() },
		Merge:   func(p string, m []byte) { <-ready; n.node.Receive(p, m) },
	}
	if len(o.nodes) > 0 {
		opt.Peers = []string{o.nodes[0].c.Addr().String()}
	}
	var err error
	if n.c, err = gossip.Open(opt); err != nil {
		o.b.Fatal(err)
	}
	if n.node, err = replica.New(replica.Options{
		Node: name, Clock: time.Now, Rand: rand.New(rand.NewPCG(1, uint64(len(o.nodes)))), Net: n.c, Table: n.table, Datagram: n.c.PacketRoom(),
	}); err != nil {
		o.b.Fatal(err)
	}
	close(ready)
	go n.drive()
	o.b.Cleanup(n.close)
	o.nodes = append(o.nodes, n)
	return n
}

func newOurs(b *testing.B, nodes int) *ours {
	o := &ours{b: b, key: filepath.Join(b.TempDir(), "cluster.key")}
	if err := os.WriteFile(o.key, []byte(base64.StdEncoding.EncodeToString(secret)+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	for i := range nodes {
		o.open(fmt.Sprintf("n%d", i))
	}
	for _, n := range o.nodes {
		wait(b, "the members meet", func() bool { return len(n.c.Peers()) == nodes-1 })
	}
	return o
}

func (o *ours) say(p netip.Prefix) {
	if _, err := o.nodes[0].table.Apply(entry(p), time.Now()); err != nil {
		o.b.Fatal(err)
	}
	select {
	case o.nodes[0].kick <- struct{}{}:
	default:
	}
}

func (o *ours) kernels() (list []*kernel) {
	for _, n := range o.nodes {
		list = append(list, n.k)
	}
	return list
}

func (o *ours) join() *kernel { return o.open("fresh").k }

func (o *ours) bytes() (sum uint64) {
	for _, n := range o.nodes {
		sum += n.node.Stats().ReceivedBytes
	}
	return sum
}

// ---- memberlist's

var secret = []byte("0123456789abcdef0123456789abcdef")

type plain struct {
	b     *testing.B
	nodes []*plainNode
}

type plainNode struct {
	list  *memberlist.Memberlist
	queue *memberlist.TransmitLimitedQueue
	table *block.Table
	k     *kernel
	mu    sync.Mutex
	seen  map[netip.Prefix]bool
	state []byte // what push/pull carries
	got   atomic.Uint64
}

func (n *plainNode) NodeMeta(int) []byte { return nil }

func (n *plainNode) GetBroadcasts(overhead, limit int) [][]byte {
	return n.queue.GetBroadcasts(overhead, limit)
}

// NotifyMsg merges an entry and passes it on if it is news.
func (n *plainNode) NotifyMsg(m []byte) {
	n.got.Add(uint64(len(m)))
	var e block.Entry
	if e.UnmarshalBinary(m) == nil && n.merge(e) {
		n.queue.QueueBroadcast(message(slices.Clone(m)))
	}
}

func (n *plainNode) merge(e block.Entry) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen[e.Prefix] {
		return false
	}
	n.seen[e.Prefix] = true
	m, _ := e.MarshalBinary()
	n.state = append(append(n.state, byte(len(m))), m...)
	if e.Origin != n.list.LocalNode().Name {
		_, _ = n.table.Merge(e, time.Now())
		n.table.Drain()
	}
	return true
}

func (n *plainNode) LocalState(bool) []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.state)
}

func (n *plainNode) MergeRemoteState(b []byte, _ bool) {
	n.got.Add(uint64(len(b)))
	for len(b) > 0 && len(b) > int(b[0]) {
		var e block.Entry
		if e.UnmarshalBinary(b[1:1+b[0]]) == nil {
			n.merge(e)
		}
		b = b[1+b[0]:]
	}
}

type message []byte

func (m message) Invalidates(memberlist.Broadcast) bool { return false }
func (m message) Message() []byte                       { return m }
func (m message) Finished()                             {}
func (m message) UniqueBroadcast()                      {}

func (p *plain) open(name string) *plainNode {
	n := &plainNode{k: newKernel(), seen: map[netip.Prefix]bool{}}
	n.table = block.New(block.Options{Origin: name, Sink: n.k})
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertiseAddr, c.SecretKey = name, bindHost(), 0, "", secret
	c.Logger = log.New(io.Discard, "", 0)
	n.queue = &memberlist.TransmitLimitedQueue{RetransmitMult: c.RetransmitMult, NumNodes: func() int { return len(p.nodes) }}
	c.Delegate = n
	list, err := memberlist.Create(c)
	if err != nil {
		p.b.Fatal(err)
	}
	n.list = list
	p.b.Cleanup(func() { _ = list.Shutdown() })
	if len(p.nodes) > 0 {
		if _, err := list.Join([]string{p.nodes[0].list.LocalNode().Address()}); err != nil {
			p.b.Logf("memberlist's join: %.200s", err)
		}
	}
	p.nodes = append(p.nodes, n)
	return n
}

func newPlain(b *testing.B, nodes int) *plain {
	p := &plain{b: b}
	for i := range nodes {
		p.open(fmt.Sprintf("n%d", i))
	}
	for _, n := range p.nodes {
		wait(b, "memberlist's members meet", func() bool { return n.list.NumMembers() == nodes })
	}
	return p
}

func (p *plain) say(x netip.Prefix) {
	n := p.nodes[0]
	res, err := n.table.Apply(entry(x), time.Now())
	if err != nil {
		p.b.Fatal(err)
	}
	m, err := res.Entry.MarshalBinary()
	if err != nil {
		p.b.Fatal(err)
	}
	n.table.Drain()
	n.merge(res.Entry)
	n.queue.QueueBroadcast(message(m))
}

func (p *plain) kernels() (list []*kernel) {
	for _, n := range p.nodes {
		list = append(list, n.k)
	}
	return list
}

func (p *plain) join() *kernel { return p.open("fresh").k }

func (p *plain) bytes() (sum uint64) {
	for _, n := range p.nodes {
		sum += n.got.Load()
	}
	return sum
}

// ---- the measurement

// wait is for what must come; the bound is for a machine that is very busy.
func wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func prefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{20 + byte(i>>24), byte(i >> 16), byte(i >> 8), byte(i)}), 32)
}

// figures are what one way came to.
type figures struct {
	p50, p99 time.Duration // of one block, until it is in the kernel of another node
	single   float64       // the part of them that arrived within 5 s
	burst    float64       // the part of a burst that was everywhere when measuring ended
	took     time.Duration // the burst, until then
	perBlock float64       // bytes received for one block and node, of the burst
	joined   float64       // the part of all entries that a fresh node had in the end
	join     time.Duration
}

const singles = 40

// measure lets node 0 block singles addresses one after the other, then burst of them at once, and then a node joins. What
// does not arrive within patience counts as not arrived.
func measure(w way, burst int, patience time.Duration) (f figures) {
	next := 0
	var took []time.Duration
	list := w.kernels()[1:]
	for range singles {
		p := prefix(next)
		next++
		for _, k := range list {
			k.watch(p)
		}
		began := time.Now()
		w.say(p)
		for _, k := range list {
			for {
				if at, ok := k.when(p); ok {
					took = append(took, at.Sub(began))
					break
				}
				if time.Since(began) > 5*time.Second {
					break
				}
				time.Sleep(200 * time.Microsecond)
			}
		}
	}
	slices.Sort(took)
	f.single = float64(len(took)) / float64(singles*len(list))
	if len(took) > 0 {
		f.p50, f.p99 = took[len(took)/2], took[len(took)*99/100]
	}

	have := func() (sum int64) {
		for _, k := range list {
			sum += k.n.Load()
		}
		return sum
	}
	before, began, bytes := have(), time.Now(), w.bytes()
	for range burst {
		w.say(prefix(next))
		next++
	}
	all := int64(burst * len(list))
	for have()-before < all && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	f.took, f.burst = time.Since(began), float64(have()-before)/float64(all)
	f.perBlock = float64(w.bytes()-bytes) / float64(max(have()-before, 1))

	began = time.Now()
	k := w.join()
	for k.n.Load() < int64(next) && time.Since(began) < patience {
		time.Sleep(time.Millisecond)
	}
	f.join, f.joined = time.Since(began), float64(k.n.Load())/float64(next)
	return f
}

// BenchmarkSpread measures both ways one after the other, on the same entries. p50-ms and p99-ms are ours, from Apply on one
// node to the kernel of each other one; ratios are memberlist's figure to ours. In a burst memberlist's queue is given as
// long as ours took, ten times, but at most half a minute, and queue-burst is the part of it that got everywhere in that
// time.
func BenchmarkSpread(b *testing.B) {
	burst := 20_000
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		burst = block.DefaultBudget.Minute - singles // what is over the budget of a node reaches no kernel but its own
	}
	for _, nodes := range []int{5, 20, 50} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			for b.Loop() {
				o := measure(newOurs(b, nodes), burst, time.Minute)
				if o.single < 1 || o.burst < 1 || o.joined < 1 {
					b.Fatalf("not all arrived: %+v", o)
				}
				p := measure(newPlain(b, nodes), burst, min(max(10*o.took, 5*time.Second), 30*time.Second))
				b.ReportMetric(float64(o.p50.Microseconds())/1000, "p50-ms")
				b.ReportMetric(float64(o.p99.Microseconds())/1000, "p99-ms")
				b.ReportMetric(float64(p.p50)/float64(o.p50), "p50-ratio")
				b.ReportMetric(float64(p.p99)/float64(o.p99), "p99-ratio")
				b.ReportMetric(p.single, "queue-delivered")
				b.ReportMetric(o.took.Seconds(), "burst-s")
				b.ReportMetric(p.burst, "queue-burst-delivered")
				b.ReportMetric(o.perBlock, "B/block/node")
				b.ReportMetric(p.perBlock, "queue-B/block/node")
				b.ReportMetric(o.join.Seconds(), "join-s")
				b.ReportMetric(p.joined, "pushpull-joined")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
