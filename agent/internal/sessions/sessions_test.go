package sessions

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// patience is how long a test waits for what has to happen.
const patience = time.Minute

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// place is a mail host and the world: two namespaces and a veth. The test's goroutine is locked to a thread in the mail
// host's; thread and namespaces end with the test.
type place struct {
	t           *testing.T
	host, world netns.NsHandle
}

const host4, host6 = "192.0.2.25", "2001:db8:25::25"

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: network namespaces need root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	p := &place{t: t}
	for _, ns := range []*netns.NsHandle{&p.world, &p.host} {
		h, err := netns.New()
		if err != nil {
			t.Skip("skipped: cannot make a network namespace:", err)
		}
		*ns = h
		t.Cleanup(func() { h.Close() })
		for _, s := range []string{"all", "default"} {
			must(t, os.WriteFile("/proc/sys/net/ipv6/conf/"+s+"/accept_dad", []byte("0"), 0))
		}
	}
	up := func(name string, addrs ...string) {
		l, err := netlink.LinkByName(name)
		must(t, err)
		must(t, netlink.LinkSetUp(l))
		for _, a := range addrs {
			addr, err := netlink.ParseAddr(a)
			must(t, err)
			addr.Flags = unix.IFA_F_NODAD
			must(t, netlink.AddrAdd(l, addr))
		}
	}
	route := func(dst, via string) {
		_, ip, _ := net.ParseCIDR(dst)
		must(t, netlink.RouteAdd(&netlink.Route{Dst: ip, Gw: net.ParseIP(via)}))
	}
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(p.world)}))
	up("lo")
	up("eth0", host4+"/24", host6+"/64")
	p.in(p.world, func() {
		up("lo")
		up("eth0", "192.0.2.1/24", "2001:db8:25::1/64")
		lo, err := netlink.LinkByName("lo")
		must(t, err)
		for _, local := range []string{"198.18.0.0/16", "2001:db8:bad::/48"} {
			_, ip, _ := net.ParseCIDR(local)
			must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ip, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}))
		}
		must(t, os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0))
	})
	route("198.18.0.0/16", "192.0.2.1")
	route("2001:db8:bad::/48", "2001:db8:25::1")
	return p
}

func (p *place) in(ns netns.NsHandle, f func()) {
	p.t.Helper()
	must(p.t, netns.Set(ns))
	defer func() { must(p.t, netns.Set(p.host)) }()
	f()
}

// listen serves an echo on the mail host.
func (p *place) listen(network, addr string) {
	p.t.Helper()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(p.t.Context(), network, addr)
	must(p.t, err)
	p.t.Cleanup(func() { l.Close() })
	go echo(l)
}

func echo(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			b := make([]byte, 1)
			for {
				if _, err := c.Read(b); err != nil {
					return
				}
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
	}
}

// dial opens a session from the world, and sees it work.
func (p *place) dial(from, to string) net.Conn {
	p.t.Helper()
	var c net.Conn
	p.in(p.world, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, KeepAlive: -1}
		d.SetMultipathTCP(false)
		var err error
		c, err = d.Dial("tcp", to)
		must(p.t, err)
	})
	p.t.Cleanup(func() { c.Close() })
	if !lives(c) {
		p.t.Fatalf("%s -> %s: no session", from, to)
	}
	return c
}

// lives says whether a session still answers.
func lives(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte{'x'}); err != nil {
		return false
	}
	_, err := c.Read(make([]byte, 1))
	return err == nil
}

// reset waits until the session was ended from the other side.
func reset(c net.Conn) bool {
	_ = c.SetDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, syscall.ECONNRESET)
}

// run runs an Ender in the mail host's namespace.
func (p *place) run(e *Ender) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(p.host); err != nil {
			p.t.Error(err)
			return
		}
		_ = e.Run(ctx)
	}()
	p.t.Cleanup(func() { cancel(); <-done })
}

var ports = []uint16{25, 587}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// The sessions of fresh prefixes end, over IPv4, IPv6 and IPv4 on a socket of IPv6; whatever the decision spares stays,
// and so do other ports, other sources, and connections that the mail host itself made to a blocked source.
func TestEnds(t *testing.T) {
	p := newPlace(t)
	p.listen("tcp4", "192.0.2.25:25")
	p.listen("tcp6", "[::]:587") // takes IPv4 too, as IPv4-mapped; unless the kernel is told otherwise
	p.listen("tcp6", "["+host6+"]:25")
	p.listen("tcp4", "192.0.2.25:2525")

	var l net.Listener
	p.in(p.world, func() {
		var lc net.ListenConfig
		lc.SetMultipathTCP(false)
		var err error
		l, err = lc.Listen(t.Context(), "tcp4", "198.18.0.66:25")
		must(t, err)
	})
	defer l.Close()
	go echo(l)
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(host4)}}
	d.SetMultipathTCP(false)
	outgoing, err := d.Dial("tcp4", "198.18.0.66:25")
	must(t, err)
	defer outgoing.Close()

	// An IPv6 socket that takes IPv4: Go's tcp6 does not, so it is made by hand.
	p.mapped(588)

	type session struct {
		what string
		c    net.Conn
	}
	open := func(what, from, to string) session {
		return session{what + ": " + from + " -> " + to, p.dial(from, to)}
	}
	end := []session{
		open("IPv4", "198.18.0.66", host4+":25"), open("IPv4 again", "198.18.0.66", host4+":25"),
		open("IPv6", "2001:db8:bad:1::7", "["+host6+"]:25"), open("the same /64", "2001:db8:bad:1:ffff::9", "["+host6+"]:587"),
		open("mapped", "198.18.0.66", host4+":588"), open("CIDR", "198.18.7.1", host4+":25"), open("CIDR", "198.18.7.200", host4+":25"),
	}
	stay := []session{
		open("another source", "198.18.0.67", host4+":25"), open("another /64", "2001:db8:bad:2::7", "["+host6+"]:25"),
		open("another port", "198.18.0.66", host4+":2525"), open("the hole in the CIDR", "198.18.7.7", host4+":25"),
		open("blocked long ago", "198.18.9.9", host4+":25"), open("of another scope", "198.18.0.99", host4+":588"),
		{"made by the mail host", outgoing},
	}
	var log bytes.Buffer
	var everybody atomic.Bool
	e := New(Options{Ports: append(ports, 588), Log: slog.New(slog.NewTextHandler(&log, nil)), Ends: func(local netip.AddrPort, peer netip.Addr) bool {
		if local.Addr().Is4In6() || peer.Is4In6() {
			t.Errorf("mapped: %s %s", local, peer)
		}
		switch peer.String() {
		case "198.18.7.7":
			return false
		case "198.18.0.99":
			return local.Port() == 25
		case "198.18.0.67", "2001:db8:bad:2::7":
			if !everybody.Load() {
				t.Errorf("asked about %s, which is not fresh", peer)
			}
			return false
		}
		return true
	}})
	for _, f := range []string{"198.18.0.66/32", "2001:db8:bad:1::/64", "198.18.7.0/24", "198.18.0.99/32", "198.18.200.1/32"} {
		e.Fresh(prefix(f))
	}
	p.run(e)
	for _, s := range end {
		if !reset(s.c) {
			t.Errorf("goes on: %s", s.what)
		}
	}
	eventually(t, "all are counted", func() bool { return e.Status().Ended == uint64(len(end)) })
	for _, s := range stay {
		if !lives(s.c) {
			t.Errorf("ended: %s", s.what)
		}
	}

	// Everybody: what was blocked before drops began.
	everybody.Store(true)
	e.All()
	for _, s := range stay {
		if strings.HasPrefix(s.what, "blocked long ago") {
			if !reset(s.c) {
				t.Errorf("goes on: %s", s.what)
			}
		} else if !lives(s.c) {
			t.Errorf("ended: %s", s.what)
		}
	}
	if err := e.Status().Problem; err != nil {
		t.Error(err)
	}
}

// mapped listens on an IPv6 socket that takes IPv4 too.
func (p *place) mapped(port int) {
	t := p.t
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0) })
		return errors.Join(cerr, err)
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp6", fmt.Sprintf("[::]:%d", port))
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go echo(l)
}

// A connection that nobody has accepted yet, and one whose peer has closed, end as well.
func TestEndsUnaccepted(t *testing.T) {
	p := newPlace(t)
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp4", "192.0.2.25:25")
	must(t, err)
	defer l.Close()
	var waiting, half net.Conn
	p.in(p.world, func() {
		for _, c := range []*net.Conn{&waiting, &half} {
			d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP("198.18.0.66")}}
			d.SetMultipathTCP(false)
			*c, err = d.Dial("tcp", "192.0.2.25:25")
			must(t, err)
		}
	})
	defer waiting.Close()
	defer half.Close()
	must(t, half.(*net.TCPConn).CloseWrite())
	count := func() (n int) {
		c, err := dial()
		must(t, err)
		defer c.close()
		must(t, c.dump(established|synRecv|closeWait, ports, func(*socket) { n++ }))
		return n
	}
	eventually(t, "both are there", func() bool { return count() == 2 })
	e := New(Options{Ports: ports, Ends: func(netip.AddrPort, netip.Addr) bool { return true }})
	e.Fresh(prefix("198.18.0.66/32"))
	p.run(e)
	if !reset(waiting) || !reset(half) {
		t.Error("they go on")
	}
	eventually(t, "none is left", func() bool { return count() == 0 && e.Status().Ended == 2 })
}

// However many blocks there are, the sockets are walked once in Every; what came meanwhile is not forgotten.
func TestOncePerInterval(t *testing.T) {
	p := newPlace(t)
	p.listen("tcp4", "192.0.2.25:25")
	p.dial("198.18.0.1", host4+":25")
	late := p.dial("198.18.0.2", host4+":25")
	var mu sync.Mutex
	var asked []time.Time
	const every = 200 * time.Millisecond
	e := New(Options{Ports: ports, Every: every, Ends: func(_ netip.AddrPort, peer netip.Addr) bool {
		if peer.String() == "198.18.0.1" { // spared, so that it is asked about in each walk
			mu.Lock()
			asked = append(asked, time.Now())
			mu.Unlock()
			return false
		}
		return true
	}})
	p.run(e)
	began := time.Now()
	eventually(t, "a few walks", func() bool {
		e.Fresh(prefix("198.18.0.1/32"))
		mu.Lock()
		defer mu.Unlock()
		return len(asked) >= 4
	})
	e.Fresh(prefix("198.18.0.2/32"))
	if !reset(late) {
		t.Error("the last one goes on")
	}
	mu.Lock()
	defer mu.Unlock()
	// Not the intervals between two: the question comes anywhere in a walk.
	for i, at := range asked {
		if d := at.Sub(began); d < time.Duration(i)*every {
			t.Errorf("walk %d came after %s", i, d)
		}
	}
}

// While sessions of a prefix are found it is looked at again, a few times: a handshake may just have been finishing.
func TestLooksAgain(t *testing.T) {
	p := newPlace(t)
	p.listen("tcp4", "192.0.2.25:25")
	var found, probed atomic.Int64
	walking, dialed := make(chan bool), make(chan bool)
	e := New(Options{Ports: ports, Every: 100 * time.Millisecond, Ends: func(_ netip.AddrPort, peer netip.Addr) bool {
		if peer.String() == "198.18.0.2" { // spared
			probed.Add(1)
			return false
		}
		if found.Add(1) == 1 { // the next session comes before the first walk is over
			walking <- true
			<-dialed
		}
		return true
	}})
	first := p.dial("198.18.0.1", host4+":25")
	p.dial("198.18.0.2", host4+":25")
	e.Fresh(prefix("198.18.0.1/32"))
	p.run(e)
	<-walking
	second := p.dial("198.18.0.1", host4+":25") // there is no shield here that would stop it
	dialed <- true
	if !reset(first) || !reset(second) {
		t.Fatal("one goes on")
	}
	eventually(t, "it is enough", func() bool { // the third and last look is over when these walks are
		e.Fresh(prefix("198.18.0.2/32"))
		return probed.Load() >= 3
	})
	if third := p.dial("198.18.0.1", host4+":25"); found.Load() != 2 || !lives(third) {
		t.Errorf("found something %d times", found.Load())
	}
}

// Without CAP_NET_ADMIN it says so once, and does not try for ever.
func TestNotPermitted(t *testing.T) {
	p := newPlace(t)
	p.listen("tcp4", "192.0.2.25:25")
	c := p.dial("198.18.0.1", host4+":25")
	var log bytes.Buffer
	var asked int
	e := New(Options{Ports: ports, Every: time.Millisecond, Log: slog.New(slog.NewTextHandler(&log, nil)),
		Ends: func(netip.AddrPort, netip.Addr) bool { asked++; return true }})
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // capabilities are the thread's
		if err := netns.Set(p.host); err != nil {
			t.Error(err)
			return
		}
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := errors.Join(unix.Capget(&hdr, &caps[0]), func() error { caps[0].Effective &^= 1 << unix.CAP_NET_ADMIN; return unix.Capset(&hdr, &caps[0]) }()); err != nil {
			t.Error(err)
			return
		}
		for range 5 {
			e.Fresh(prefix("198.18.0.1/32"))
			e.walk()
		}
	}()
	<-done
	st := e.Status()
	var h interface{ HintText() string }
	if st.Problem == nil || !errors.As(st.Problem, &h) || !strings.Contains(h.HintText(), "CAP_NET_ADMIN") || st.Ended != 0 {
		t.Errorf("%+v", st)
	}
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || asked != 1 {
		t.Errorf("asked %d times; %d warnings: %s", asked, n, log.String())
	}
	if !lives(c) {
		t.Error("and yet it ended")
	}
}

// A kernel without SOCK_DESTROY or without the diagnosis of TCP.
func TestExplain(t *testing.T) {
	for _, err := range []error{unix.EOPNOTSUPP, unix.ENOENT, unix.EPROTONOSUPPORT, unix.EPERM} {
		got, never := explain(fmt.Errorf("end a session: %w", err))
		var h interface{ HintText() string }
		if !never || !errors.As(got, &h) || h.HintText() == "" || !errors.Is(got, err) {
			t.Errorf("%v: %v, %v", err, got, never)
		}
	}
	for _, err := range []error{nil, unix.ENOBUFS, unix.EAGAIN} {
		if got, never := explain(err); never || got != err {
			t.Errorf("%v: %v, %v", err, got, never)
		}
	}
}

func TestListening(t *testing.T) {
	p := newPlace(t)
	e := New(Options{Ports: ports})
	listening := func() bool { t.Helper(); on, err := e.Listening(); must(t, err); return on }
	if listening() {
		t.Error("in an empty namespace")
	}
	p.listen("tcp4", "192.0.2.25:2525")
	if listening() {
		t.Error("on another port")
	}
	p.listen("tcp6", "["+host6+"]:587")
	if !listening() {
		t.Error("not on port 587")
	}
}

// accepts runs a filter as the kernel does (inet_diag_bc_run), and checks it as the kernel does (inet_diag_bc_audit).
func accepts(t *testing.T, code []byte, port uint16) bool {
	t.Helper()
	no := func(at int) int { return int(binary.NativeEndian.Uint16(code[at+2:])) }
	at := 0
	for at < len(code) {
		yes := true
		switch code[at] {
		case opJump:
			yes = false
		case opSourceGE:
			yes = int(port) >= no(at+4)
		case opSourceLE:
			yes = int(port) <= no(at+4)
		default:
			t.Fatalf("instruction %d at %d", code[at], at)
		}
		if yes {
			at += int(code[at+1])
		} else {
			at += no(at)
		}
	}
	return at == len(code)
}

func TestPortFilter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for n := 1; n <= 16; n++ {
		list := []uint16{1, 65535}[:min(n, 2)]
		for len(list) < n {
			list = append(list, uint16(1+r.IntN(65535)))
		}
		code := portFilter(list)
		for port := range 1 << 16 {
			if got := accepts(t, code, uint16(port)); got != slices.Contains(list, uint16(port)) {
				t.Fatalf("%v: port %d: %v", list, port, got)
			}
		}
		// This kernel takes it.
		c, err := dial()
		must(t, err)
		if err := c.dump(listening, list, func(*socket) {}); err != nil {
			t.Errorf("%d ports: %v", n, err)
		}
		c.close()
	}
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, sizeofDiagMsg))
	f.Add(bytes.Repeat([]byte{10}, 100))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s socket
		if s.parse(b) && (s.local.Addr().Is4In6() || s.remote.Addr().Is4In6()) {
			t.Errorf("mapped: %v", s)
		}
	})
}

// A walk that finds nobody: what a block costs on a busy mail host.
func BenchmarkWalk(b *testing.B) {
	fresh := map[netip.Prefix]int{}
	for i := range 1000 {
		fresh[netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)] = 1
	}
	e := New(Options{Ports: ports, Ends: func(netip.AddrPort, netip.Addr) bool { return false }})
	for b.Loop() {
		if _, _, err := e.end(newSet(fresh), false); err != nil {
			b.Fatal(err)
		}
	}
}
