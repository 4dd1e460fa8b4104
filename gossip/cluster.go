// Package gossip keeps the cluster together: who is a member, who is alive, and how bytes get from one member to
// another. What the bytes say is the business of the replication above it.
//
//	c, err := gossip.Open(gossip.Options{
//		Name: "mx1", Bind: "0.0.0.0:7946", Peers: []string{"mx2.example.org"}, KeyFile: "/etc/mxshield/cluster.key",
//		Handler: func(peer string, msg []byte) { ... },
//	})
//	c.Send("mx2", msg)      // a datagram: fast, may be lost
//	c.Stream("mx2", msg)    // by TCP, queued
//
// Membership, failure detection and encryption are memberlist's (github.com/hashicorp/memberlist); its broadcast queue and
// its push/pull carry none of our messages, only a digest of at most 8 KB. In front of it stands a guard that opens and
// checks everything first (transport.go): without a key of ours nothing gets in, and nothing is answered.
//
// What it does not do: no message is acknowledged, ordered, or delivered exactly once. A member that holds the key can
// speak in another's name, and a packet that was recorded can be sent again: receivers must bear both.
package gossip

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Options say who we are and whom we know. Only Name is needed, but alone on loopback one is not much of a cluster.
type Options struct {
	Name      string   // unique in the cluster: 1 to 64 letters, digits, dots, dashes, underscores
	Bind      string   // host:port, TCP and UDP; default 0.0.0.0:7946 with a key, 127.0.0.1:7946 without
	Advertise string   // address or address:port that others reach us at; default: found by itself
	Peers     []string // addresses and names, with :port if it is not Bind's; we ourselves may be among them
	KeyFile   string   // one base64 key per line, the one in use first; without it only loopback is allowed
	Label     string   // clusters of different labels do not hear each other; default "mxshield"
	Wire      Wire     // versions of the replication protocol that we speak; default 1 to 1
	Version   string   // of the agent, for `mxshieldctl peers`
	Log       *slog.Logger

	// Handler gets each message, with the name of the member that sent it. msg belongs to the handler. This, Merge, Join
	// and Leave are called by one goroutine, one after the other, and perhaps before Open returns; while one blocks, up to 16 MiB wait, then datagrams are
	// dropped and streams held up. None may call Close.
	Handler func(peer string, msg []byte)
	// Digest returns what rides on the exchange that each pair of members has now and then (each member starts one a
	// minute, and when it joins): at most 8 KB, and it may be called from several goroutines. Merge gets it.
	Digest func() []byte
	Merge  func(peer string, digest []byte)
	// Join and Leave: a member came to life, or went (left: it said so).
	Join  func(peer string)
	Leave func(peer string, left bool)

	// Now is the wall clock, which members compare. Default time.Now.
	Now func() time.Time

	tune tuning
}

// tuning is what tests shorten.
type tuning struct {
	rejoin, settle, probe, pushPull, dead time.Duration
	lookup                                func(ctx context.Context, host string) ([]netip.Addr, error)
	tap                                   func(packet []byte)
}

// Cluster is this node's membership. Its methods may be called from any goroutine.
type Cluster struct {
	opt   Options
	tune  tuning
	log   *slog.Logger
	count counters
	seal  *seal
	ring  *memberlist.Keyring // nil: not encrypted
	trans *transport
	list  *memberlist.Memberlist
	table *table
	in    *inbox
	out   *outbox
	seek  *seeker
	room  int

	session session

	keyMu sync.Mutex
	keys  [][]byte

	tell  chan struct{} // the meta changed
	stop  context.CancelFunc
	wg    sync.WaitGroup
	state sync.Mutex // Leave and Close
	shut  bool
}

// HintError is an error for people: what went wrong, and what to do about it.
type HintError struct {
	Err  error
	Hint string
}

func (e *HintError) Error() string { return e.Err.Error() }
func (e *HintError) Unwrap() error { return e.Err }

// HintText tells what to do about it.
func (e *HintError) HintText() string { return e.Hint }

func hint(err error, text string) error { return &HintError{err, text} }

// ErrNetwork marks errors of Open that may go by themselves: the address is not there yet, the port is taken, there is
// no route. A host that boots meets them.
var ErrNetwork = errors.New("the network is not ready for the cluster")

// networkError marks an error so without adding to its text.
type networkError struct{ error }

func (n networkError) Unwrap() error        { return n.error }
func (n networkError) Is(target error) bool { return target == ErrNetwork }

// Open listens and begins to look for the peers. It does not wait for any of them: a node that starts alone is a
// cluster of one. Close it.
func Open(o Options) (*Cluster, error) {
	c := &Cluster{opt: o, tell: make(chan struct{}, 1)}
	_, _ = rand.Read(c.session[:]) // never fails
	if err := c.settings(); err != nil {
		return nil, err
	}
	if err := c.listen(); err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	c.in = newInbox()
	c.out = &outbox{
		send: c.sendBatch, alive: func(p string) bool { return c.table.wireOf(p) != 0 },
		start: appendEnvelope(nil, kindBatch, o.Name), count: &c.count, ctx: ctx, peers: map[string]*lane{},
	}
	c.trans.start()
	list, err := memberlist.Create(c.memberlistConfig())
	if err != nil {
		stop()
		_ = c.trans.Shutdown()
		return nil, fmt.Errorf("start the cluster: %w", err)
	}
	c.list = list
	c.run(func() { c.in.run(c.deliver) })
	c.run(func() { c.seek.run(ctx) })
	c.run(func() { c.announcer(ctx) })
	return c, nil
}

func (c *Cluster) run(f func()) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		f()
	}()
}

// Leave says good-bye, so that the others need not find out. It waits until somebody heard it, or timeout. Close must
// still be called.
func (c *Cluster) Leave(timeout time.Duration) error {
	c.state.Lock()
	defer c.state.Unlock()
	if c.shut {
		return nil
	}
	// memberlist's word for it spreads, but the others cannot tell it from a failure; this can be lost. Twice, then.
	c.goodBye()
	defer c.goodBye()
	if err := c.list.Leave(max(timeout, time.Millisecond)); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return nil
}

func (c *Cluster) goodBye() {
	for _, p := range c.Peers() {
		if n, ok := c.table.node(p); ok {
			_ = c.list.SendBestEffort(&n, append(appendEnvelope(nil, kindBye, c.opt.Name), c.session[:]...))
		}
	}
}

// Close stops listening. Without Leave the others take this node for failed, and go on calling it.
func (c *Cluster) Close() error {
	c.state.Lock()
	defer c.state.Unlock()
	if c.shut {
		return nil
	}
	c.shut = true
	c.stop()
	c.in.close()
	err := c.list.Shutdown() // ends the transport, and with it what the workers wait for
	c.out.wait()
	c.wg.Wait()
	return err
}

// Addr is where others reach this node.
func (c *Cluster) Addr() netip.AddrPort { return c.trans.advertise }

// Name is this node's.
func (c *Cluster) Name() string { return c.opt.Name }

// Peers lists the members, without ourselves, that are alive and speak a version that we do, sorted.
func (c *Cluster) Peers() []string { return c.table.peers() }

// WireVersion is the version of the replication protocol to speak with a peer; 0: it is not one of Peers.
func (c *Cluster) WireVersion(peer string) uint32 { return c.table.wireOf(peer) }

// PacketRoom is the largest message, in bytes, whose packet fits the path surely: 1,400 bytes of UDP payload on IPv4,
// 1,232 on IPv6, less what stands around the message. Larger ones, up to MaxPacket, are sent too, but a tunnel on the way
// may cut or lose them.
func (c *Cluster) PacketRoom() int { return c.room }

// Send sends a datagram of at most MaxPacket bytes. False: it was not sent. It does not keep msg.
func (c *Cluster) Send(peer string, msg []byte) bool {
	if len(msg) == 0 || len(msg) > MaxPacket {
		return false
	}
	n, ok := c.table.node(peer)
	if !ok {
		return false
	}
	b := append(appendEnvelope(make([]byte, 0, maxEnvelope+len(msg)), kindOne, c.opt.Name), msg...)
	if err := c.list.SendBestEffort(&n, b); err != nil {
		c.count.sendErrors.Add(1)
		return false
	}
	c.count.sentPackets.Add(1)
	return true
}

// Stream queues a message of at most MaxStream bytes for sending by TCP, packed with others, in order. False: the peer is
// none, or its queue is full. msg is kept until it was sent and must not be changed. A message that was taken is lost only
// with the peer or the connection to it (Counters.Unsent), and may arrive twice.
func (c *Cluster) Stream(peer string, msg []byte) bool {
	if len(msg) == 0 || len(msg) > MaxStream-binaryMax || c.table.wireOf(peer) == 0 {
		return false
	}
	return c.out.push(peer, msg)
}

// binaryMax is what a batch adds to its only message: the envelope, and a length.
const binaryMax = maxEnvelope + 5

func (c *Cluster) sendBatch(peer string, batch []byte) error {
	n, ok := c.table.node(peer)
	if !ok {
		return errors.New("gone")
	}
	return c.list.SendReliable(&n, batch)
}

// Behind is how long the message that Handler has now, or the oldest that waits for it, has waited since it came. 0:
// there is none.
func (c *Cluster) Behind() time.Duration { return c.in.behind(time.Now()) }

// Members lists all that are or were members, ourselves included, and the configured peers that no member answers for.
func (c *Cluster) Members() []Member {
	list := c.table.snapshot()
	for i := range list {
		list[i].Queued = c.out.queued(list[i].Name)
	}
	return append(list, c.seek.unreached(list)...)
}

// Addrs returns the addresses of the other members and of the configured peers, as far as they are known, with their
// names.
func (c *Cluster) Addrs() map[netip.Addr]string {
	list := map[netip.Addr]string{}
	c.seek.addrs(list)
	c.table.hosts(list)
	return list
}

// ClockOffset is how far our clock is ahead of the median of the peers' (negative: behind), and of how many that is.
func (c *Cluster) ClockOffset() (ahead time.Duration, peers int) {
	d, n := c.table.medianOffset()
	return -d, n
}

// Counters are the totals since Open.
func (c *Cluster) Counters() Counters { return c.count.read() }

// fromPacket takes a user message over from the guard.
func (c *Cluster) fromPacket(b []byte) { c.accept(b, false) }

// accept sorts an envelope into the inbox. b is not kept.
func (c *Cluster) accept(b []byte, wait bool) {
	e, err := openEnvelope(b)
	if err != nil {
		c.count.malformed.Add(1)
		return
	}
	if !c.table.speaks(e.from) {
		c.count.stranger.Add(1)
		return
	}
	if len(e.payload) == 0 {
		return
	}
	payload := slices.Clone(e.payload)
	list := [][]byte{payload}
	switch e.kind {
	case kindBatch:
		if list, err = openBatch(payload); err != nil {
			c.count.malformed.Add(1)
			return
		}
		e.kind = kindOne
	case kindBye:
		if len(payload) == len(session{}) {
			c.table.goodBye(e.from, session(payload))
		}
		return
	case kindDigest:
		if len(payload) > maxDigest {
			c.count.malformed.Add(1)
			return
		}
	}
	for _, m := range list {
		if !c.in.push(delivery{kind: e.kind, peer: e.from, msg: m}, wait) {
			c.count.inboxFull.Add(1)
		}
	}
}

func (c *Cluster) deliver(d delivery) {
	o := &c.opt
	switch d.kind {
	case kindOne:
		if o.Handler != nil {
			o.Handler(d.peer, d.msg)
		}
	case kindDigest:
		if o.Merge != nil {
			o.Merge(d.peer, d.msg)
		}
	case kindJoin:
		if o.Join != nil {
			o.Join(d.peer)
		}
	case kindLeave:
		if o.Leave != nil {
			o.Leave(d.peer, len(d.msg) > 0)
		}
	}
}

// announce asks for the meta to be told to the others.
func (c *Cluster) announce() {
	select {
	case c.tell <- struct{}{}:
	default:
	}
}

func (c *Cluster) announcer(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.tell:
		}
		// It changes our own state at once; what waits is the first packet that carries it.
		if err := c.list.UpdateNode(2 * time.Second); err != nil {
			c.log.Debug("tell the cluster about us", "error", err)
		}
	}
}
