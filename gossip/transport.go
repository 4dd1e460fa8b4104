package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// A caller must send its frame's header, and then the rest, within these.
	headerTimeout = 3 * time.Second
	frameTimeout  = 15 * time.Second

	// Streams that are being read, from addresses of members and from others (who may be members to be).
	maxKnown, maxKnownEach     = 64, 16
	maxUnknown, maxUnknownEach = 32, 4

	socketBuffer = 4 << 20
)

// Counters say what was thrown away, and what went. All only grow.
type Counters struct {
	Packets      uint64 `json:"packets"`       // received, opened and sane
	Streams      uint64 `json:"streams"`       // likewise
	Refused      uint64 `json:"refused"`       // packets and streams that no key of ours opens, of another label, or cut short
	Malformed    uint64 `json:"malformed"`     // opened by a key of ours, but nothing a member sends
	Busy         uint64 `json:"busy"`          // streams closed because too many were open
	Stranger     uint64 `json:"stranger"`      // messages of nodes that are no members, or share no wire version with us
	InboxFull    uint64 `json:"inbox_full"`    // messages dropped because the handler is slower than they come
	SentPackets  uint64 `json:"sent_packets"`  //
	SentMessages uint64 `json:"sent_messages"` // by stream
	SentBatches  uint64 `json:"sent_batches"`  // streams they went in
	QueueFull    uint64 `json:"queue_full"`    // stream messages not taken because the peer's queue was full
	Unsent       uint64 `json:"unsent"`        // stream messages dropped after they were taken: the peer went away
	SendErrors   uint64 `json:"send_errors"`   // packets the kernel did not take
	LogDropped   uint64 `json:"log_dropped"`   // lines of memberlist's log, for their number
}

type counters struct {
	packets, streams, refused, malformed, busy, stranger, inboxFull, sentPackets, sentMessages, sentBatches, queueFull,
	unsent, sendErrors, logDropped atomic.Uint64
}

func (c *counters) read() Counters {
	return Counters{c.packets.Load(), c.streams.Load(), c.refused.Load(), c.malformed.Load(), c.busy.Load(), c.stranger.Load(),
		c.inboxFull.Load(), c.sentPackets.Load(), c.sentMessages.Load(), c.sentBatches.Load(), c.queueFull.Load(),
		c.unsent.Load(), c.sendErrors.Load(), c.logDropped.Load()}
}

// transport is memberlist's door to the network and the guard at it: what is not sealed with a key of ours, or is but
// would hurt, ends here, unanswered.
type transport struct {
	seal  *seal
	count *counters
	known func(netip.Addr) bool // the address of a member or of a configured peer
	prove func(netip.Addr)      // there was a stream with this address that a key of ours opens
	user  func(msg []byte)      // user messages from packets; msg is valid during the call only
	tap   func(packet []byte)   // tests look at what comes in; nil else

	tcp       *net.TCPListener
	udp       *net.UDPConn
	source    *net.TCPAddr // of outgoing streams; nil: the kernel chooses
	advertise netip.AddrPort

	packets chan *memberlist.Packet
	streams chan net.Conn

	ctx  context.Context // ends with Shutdown
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{} // open ones, dialed and accepted
	busy  [2]map[netip.Addr]int
	sum   [2]int
}

var _ memberlist.NodeAwareTransport = (*transport)(nil)

// listen opens TCP and UDP on the same port; port 0 finds one that is free for both.
func listen(bind netip.AddrPort) (tcp *net.TCPListener, udp *net.UDPConn, err error) {
	network := [2]string{"tcp4", "udp4"}
	if bind.Addr().Is6() {
		network = [2]string{"tcp", "udp"} // [::] takes IPv4 too
	}
	for range 10 {
		if tcp, err = net.ListenTCP(network[0], net.TCPAddrFromAddrPort(bind)); err != nil {
			return nil, nil, err
		}
		at := netip.AddrPortFrom(bind.Addr(), tcp.Addr().(*net.TCPAddr).AddrPort().Port())
		if udp, err = net.ListenUDP(network[1], net.UDPAddrFromAddrPort(at)); err == nil {
			// The kernel caps these; a smaller buffer drops earlier, and that is counted nowhere and repaired anyway.
			_ = udp.SetReadBuffer(socketBuffer)
			_ = udp.SetWriteBuffer(socketBuffer)
			return tcp, udp, nil
		}
		tcp.Close()
		if bind.Port() != 0 {
			break
		}
	}
	return nil, nil, err
}

// start begins to read. Everything but the sockets must be set.
func (t *transport) start() {
	t.packets = make(chan *memberlist.Packet, 64)
	t.streams = make(chan net.Conn)
	t.conns = map[*conn]struct{}{}
	t.busy = [2]map[netip.Addr]int{{}, {}}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.wg.Add(2)
	go t.readPackets()
	go t.accept()
}

func (t *transport) readPackets() {
	defer t.wg.Done()
	buf := make([]byte, 64<<10)
	space := make([]byte, 0, maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if t.ctx.Err() != nil {
				return
			}
			// ICMP errors do not come up on an unconnected socket; whatever this is, it must not spin.
			if !t.pause(100 * time.Millisecond) {
				return
			}
			continue
		}
		t.packet(buf[:n], space, from)
	}
}

func (t *transport) packet(b, space []byte, from netip.AddrPort) {
	at := time.Now()
	if t.tap != nil {
		t.tap(b)
	}
	msg, err := t.seal.openPacket(space, b)
	if err != nil {
		t.refuse(err)
		return
	}
	t.count.packets.Add(1)
	if msg[0] == typeUser {
		t.user(msg[1:]) // past memberlist's hand-off queue, which is last in, first out and drops
		return
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from), Timestamp: at}
	select {
	case t.packets <- p:
	case <-t.ctx.Done():
	}
}

func (t *transport) refuse(err error) {
	if errors.Is(err, errShape) {
		t.count.malformed.Add(1)
	} else {
		t.count.refused.Add(1)
	}
}

func (t *transport) pause(d time.Duration) bool {
	select {
	case <-t.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func (t *transport) accept() {
	defer t.wg.Done()
	for {
		c, err := t.tcp.AcceptTCP()
		if err != nil {
			if t.ctx.Err() != nil || !t.pause(100*time.Millisecond) {
				return
			}
			continue
		}
		g := &conn{Conn: c, t: t}
		if !t.admit(g) {
			t.count.busy.Add(1)
			c.Close()
			continue
		}
		t.wg.Add(1)
		go func() {
			defer t.wg.Done()
			t.receive(g)
		}()
	}
}

// admit takes a place for an accepted stream. Members have places that others cannot fill.
func (t *transport) admit(g *conn) bool {
	ap, err := netip.ParseAddrPort(g.Conn.RemoteAddr().String())
	if err != nil {
		return false
	}
	addr := ap.Addr().Unmap().WithZone("")
	kind, most, each := 1, maxUnknown, maxUnknownEach
	if t.known(addr) {
		kind, most, each = 0, maxKnown, maxKnownEach
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil || t.sum[kind] >= most || t.busy[kind][addr] >= each {
		return false
	}
	t.sum[kind]++
	t.busy[kind][addr]++
	t.conns[g] = struct{}{}
	g.leave = func() {
		t.sum[kind]--
		if t.busy[kind][addr]--; t.busy[kind][addr] == 0 {
			delete(t.busy[kind], addr)
		}
	}
	return true
}

// receive reads the one frame that a caller may send before memberlist learns of the stream.
func (t *transport) receive(g *conn) {
	_ = g.Conn.SetReadDeadline(time.Now().Add(headerTimeout))
	if t.seal.plain {
		// Nothing tells where an unsealed frame ends: bound it, and leave the rest to memberlist. Loopback only.
		head, err := t.seal.readPlain(g.Conn)
		if err != nil {
			t.refuse(err)
			g.Close()
			return
		}
		g.rest = io.MultiReader(&frameReader{head}, io.LimitReader(g.Conn, maxFrame))
	} else {
		frame, err := t.seal.readFrame(g.Conn, true, func() { _ = g.Conn.SetReadDeadline(time.Now().Add(frameTimeout)) })
		if err != nil {
			t.refuse(err)
			g.Close()
			return
		}
		g.take(frame)
	}
	t.count.streams.Add(1)
	t.proved(g)
	_ = g.Conn.SetWriteDeadline(time.Now().Add(frameTimeout))
	select {
	case t.streams <- g:
	case <-t.ctx.Done():
		g.Close()
	}
}

// proved notes whose stream was opened with a key of ours.
func (t *transport) proved(g *conn) {
	if ap, err := netip.ParseAddrPort(g.Conn.RemoteAddr().String()); err == nil {
		t.prove(ap.Addr())
	}
}

// conn is a stream that hands out one frame, looked at beforehand, and then ends.
type conn struct {
	net.Conn
	t     *transport
	rest  io.Reader
	leave func() // gives the place back; the transport's lock is held
	once  sync.Once
	open  bool // dialed: the answer was not read yet
}

func (g *conn) take(frame []byte) { g.rest = &frameReader{frame} }

type frameReader struct{ b []byte }

func (r *frameReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	if r.b = r.b[n:]; len(r.b) == 0 {
		r.b = nil // the memory may go while the stream is still open
	}
	return n, nil
}

// Read is called by one goroutine only, after Dial or from StreamCh.
func (g *conn) Read(p []byte) (int, error) {
	if g.open {
		g.open = false
		frame, err := g.t.seal.readFrame(g.Conn, false, nil)
		if err != nil {
			g.rest = &frameReader{}
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				return 0, errHungUp // what a guard like ours does with those it does not understand
			}
			g.t.refuse(err)
			return 0, err
		}
		g.t.proved(g)
		g.take(frame)
	}
	return g.rest.Read(p)
}

func (g *conn) Close() error {
	err := g.Conn.Close()
	g.once.Do(func() {
		g.t.mu.Lock()
		defer g.t.mu.Unlock()
		delete(g.t.conns, g)
		if g.leave != nil {
			g.leave()
		}
	})
	return err
}

func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.advertise.Addr().AsSlice(), int(t.advertise.Port()), nil
}

func (t *transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr) // never a name: nothing here may wait for DNS
	if err != nil {
		return time.Time{}, err
	}
	if t.udp.LocalAddr().(*net.UDPAddr).IP.To4() == nil && to.Addr().Is4() {
		to = netip.AddrPortFrom(netip.AddrFrom16(to.Addr().As16()), to.Port())
	}
	_, err = t.udp.WriteToUDPAddrPort(b, to)
	return time.Now(), err
}

func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

func (t *transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(a.Addr); err != nil {
		return nil, err
	}
	if timeout <= 0 {
		return nil, fmt.Errorf("dial %s: %w", a.Addr, context.DeadlineExceeded)
	}
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	if t.source != nil {
		d.LocalAddr = t.source
	}
	c, err := d.DialContext(t.ctx, "tcp", a.Addr)
	if err != nil {
		return nil, err
	}
	// memberlist sets no deadline for what it sends this way.
	_ = c.SetDeadline(time.Now().Add(frameTimeout))
	g := &conn{Conn: c, t: t, open: !t.seal.plain}
	if t.seal.plain {
		g.rest = io.LimitReader(c, maxFrame)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ctx.Err() != nil {
		c.Close()
		return nil, net.ErrClosed
	}
	t.conns[g] = struct{}{}
	return g, nil
}

func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *transport) StreamCh() <-chan net.Conn           { return t.streams }

// Shutdown ends everything that is open and waits for the readers.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	t.stop()
	var open []*conn
	for g := range t.conns {
		open = append(open, g)
	}
	t.mu.Unlock()
	err := errors.Join(t.tcp.Close(), t.udp.Close())
	for _, g := range open {
		g.Conn.Close() // whoever uses it calls Close
	}
	t.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
