//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

const netnsDir = "/run/netns"

// The addresses of the standard topology. All of them are documentation or
// benchmark ranges: mxshield never blocks private ones.
var (
	MX4     = netip.MustParseAddr("192.0.2.25")        // the (first) mail host
	MX6     = netip.MustParseAddr("2001:db8:25::25")   //
	Router4 = netip.MustParseAddr("192.0.2.1")         // the internet's end of the link
	Router6 = netip.MustParseAddr("2001:db8:25::1")    //
	Honest4 = netip.MustParseAddr("203.0.113.10")      // an honest sender
	Honest6 = netip.MustParseAddr("2001:db8:600d::10") //

	// Every address of these can be used as a local address in Net.
	Attack4  = netip.MustParsePrefix("198.18.0.0/16")
	Attack6  = netip.MustParsePrefix("2001:db8:bad::/48")
	Waited4  = netip.MustParsePrefix("198.18.77.0/24") // part of Attack4; Exim and Sendmail let them wait for the greeting
	Senders4 = netip.MustParsePrefix("203.0.113.0/24")
	Senders6 = netip.MustParsePrefix("2001:db8:600d::/48")
)

// Host is a network namespace. It has a loopback that is up, no reverse-path
// filter and no duplicate address detection (an IPv6 address is usable at once).
type Host struct {
	lab  *Lab
	name string
	path string

	// Set-up and Close may meet when a signal arrives.
	mu sync.Mutex
	nl *netlink.Handle // nil when closed
}

// NewHost makes an empty host. Names are short words, unique in the lab.
func (l *Lab) NewHost(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, ErrClosed
	}
	full := l.id + "-" + name
	h := &Host{lab: l, name: name, path: filepath.Join(netnsDir, full)}
	if err := h.create(full); err != nil {
		return nil, errors.Join(fmt.Errorf("make namespace %s: %w", full, err), h.close())
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

func (h *Host) create(full string) error {
	if _, err := os.Lstat(h.path); err == nil {
		return errors.New("it exists")
	}
	err := onThread(func() error {
		ns, err := netns.NewNamed(full)
		if err != nil {
			return err
		}
		defer ns.Close()
		h.nl, err = netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return err
	}
	// `default` is what interfaces that come later inherit, so this is first.
	for _, s := range [][2]string{
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
	} {
		if err := h.Sysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return h.up("lo")
}

// close may meet a half-made host.
func (h *Host) close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nl != nil {
		h.nl.Close()
		h.nl = nil
	}
	return removeNetns(h.path)
}

// onLink hands fn the host's netlink handle and one of its interfaces.
func (h *Host) onLink(ifname string, fn func(*netlink.Handle, netlink.Link) error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.nl == nil {
		return ErrClosed
	}
	link, err := h.nl.LinkByName(ifname)
	if err == nil {
		err = fn(h.nl, link)
	}
	if err != nil {
		return fmt.Errorf("%s of %s: %w", ifname, h.name, err)
	}
	return nil
}

func removeNetns(path string) error {
	// EINVAL: the file is there but nothing is mounted on it.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Name is the short name, "mx".
func (h *Host) Name() string { return h.name }

// Netns is the path of the namespace, for `nsenter --net=` and setns.
func (h *Host) Netns() string { return h.path }

// onThread runs fn on the calling goroutine, locked to its thread, and then
// brings the thread back to the namespace it was in. A thread that cannot be
// brought back stays locked, so that the runtime throws it away with the
// goroutine instead of letting others run in the wrong namespace.
func onThread(fn func() error) error {
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open this thread's namespace: %w", err)
	}
	defer func() {
		if netns.Set(before) == nil {
			runtime.UnlockOSThread()
		}
		_ = before.Close()
	}()
	return fn()
}

// Do runs fn inside the namespace, on the calling goroutine. Sockets and child
// processes that fn makes itself belong to the namespace for ever; goroutines
// that it starts do not run inside.
func (h *Host) Do(fn func() error) error {
	return onThread(func() error {
		ns, err := netns.GetFromPath(h.path)
		if err != nil {
			return fmt.Errorf("open %s: %w", h.path, err)
		}
		err = netns.Set(ns)
		_ = ns.Close()
		if err != nil {
			return fmt.Errorf("enter %s: %w", h.path, err)
		}
		return fn()
	})
}

// Dial connects by TCP from local (the zero Addr: the kernel chooses).
func (h *Host) Dial(ctx context.Context, local netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if local.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0))
	}
	var c net.Conn
	err := h.Do(func() (err error) {
		// The address is literal and single: the dialer makes its socket on
		// this goroutine, and thus on this thread.
		c, err = d.DialContext(ctx, "tcp", remote.String())
		return err
	})
	return c, err
}

// Listen opens a TCP listener.
func (h *Host) Listen(ctx context.Context, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var ln net.Listener
	err := h.Do(func() (err error) {
		ln, err = lc.Listen(ctx, "tcp", addr)
		return err
	})
	return ln, err
}

// Command is a child process in the namespace, with the host's mounts: unlike
// `ip netns exec`, nsenter does not remount /sys, so pins under /sys/fs/bpf
// stay visible. nsenter execs the program, so the child's pid is the program's.
func (h *Host) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("nsenter", append([]string{"--net=" + h.path, "--", name}, args...)...)
}

// Sysctl writes one key ("net/ipv4/...") of the namespace.
func (h *Host) Sysctl(key, value string) error {
	return h.Do(func() error {
		return os.WriteFile("/proc/sys/"+key, []byte(value), 0)
	})
}

// Link joins two hosts by a veth pair; both ends are up.
func (l *Lab) Link(a *Host, aIf string, b *Host, bIf string) error {
	peer, err := netns.GetFromPath(b.path)
	if err != nil {
		return fmt.Errorf("open %s: %w", b.path, err)
	}
	defer peer.Close()
	// The pair is made from inside: it never shows on the machine itself.
	err = a.onLink("lo", func(nl *netlink.Handle, _ netlink.Link) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aIf
		veth := netlink.NewVeth(attrs)
		veth.PeerName = bIf
		veth.PeerNamespace = netlink.NsFd(peer)
		return nl.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("join %s %s with %s %s: %w", a.name, aIf, b.name, bIf, err)
	}
	return errors.Join(a.up(aIf), b.up(bIf))
}

func (h *Host) up(ifname string) error {
	return h.onLink(ifname, (*netlink.Handle).LinkSetUp)
}

// SetUp brings an interface up or down.
func (h *Host) SetUp(ifname string, up bool) error {
	if up {
		return h.up(ifname)
	}
	return h.onLink(ifname, (*netlink.Handle).LinkSetDown)
}

// AddAddr gives an interface an address, which is usable at once.
func (h *Host) AddAddr(ifname string, p netip.Prefix) error {
	return h.onLink(ifname, func(nl *netlink.Handle, link netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := nl.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", p, err)
		}
		return nil
	})
}

// AddRoute routes dst (0.0.0.0/0 and ::/0 included) to a neighbour on ifname.
func (h *Host) AddRoute(ifname string, dst netip.Prefix, via netip.Addr) error {
	return h.onLink(ifname, func(nl *netlink.Handle, link netlink.Link) error {
		r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(dst), Gw: via.AsSlice()}
		if err := nl.RouteAdd(r); err != nil {
			return fmt.Errorf("route %s via %s: %w", dst, via, err)
		}
		return nil
	})
}

// AddLocal makes every address of p one of the host's own, without an address
// each: `ip route add local P dev lo`.
func (h *Host) AddLocal(p netip.Prefix) error {
	return h.onLink("lo", func(nl *netlink.Handle, lo netlink.Link) error {
		r := &netlink.Route{
			LinkIndex: lo.Attrs().Index,
			Dst:       ipNet(p),
			Type:      unix.RTN_LOCAL,
			Table:     unix.RT_TABLE_LOCAL,
			Scope:     netlink.SCOPE_HOST,
		}
		if err := nl.RouteAdd(r); err != nil {
			return fmt.Errorf("local route %s: %w", p, err)
		}
		return nil
	})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// Topology is the standard lab: mail hosts on one segment, and everybody else
// in the world behind its router.
type Topology struct {
	MX  []*Host // "mx", or "mx1", "mx2", ...: MX4, MX6 and the following addresses on eth0
	Net *Host   // "net": router, honest senders and attackers
}

// Standard is Cluster of one mail host.
func (l *Lab) Standard() (*Topology, error) { return l.Cluster(1) }

// Cluster makes n mail hosts (1 to 100), the i-th (from 0) with the addresses
// MXAddr4(i) and MXAddr6(i) on its eth0 and its default routes to Net. One mail
// host has a plain veth pair to Net, several share a bridge in Net.
func (l *Lab) Cluster(n int) (*Topology, error) {
	if n < 1 || n > 100 {
		return nil, fmt.Errorf("a cluster of %d hosts: want 1 to 100", n)
	}
	world, err := l.NewHost("net")
	if err != nil {
		return nil, err
	}
	t := &Topology{Net: world}
	for _, s := range [][2]string{
		// An AnyIP route is enough to bind for IPv4; IPv6 wants this as well.
		{"net/ipv6/ip_nonlocal_bind", "1"},
		// Thousands of short sessions per second from here.
		{"net/ipv4/ip_local_port_range", "1024 65535"},
		{"net/ipv4/tcp_tw_reuse", "1"},
	} {
		if err := world.Sysctl(s[0], s[1]); err != nil {
			return nil, err
		}
	}
	for _, p := range []netip.Prefix{Attack4, Attack6, Senders4, Senders6} {
		if err := world.AddLocal(p); err != nil {
			return nil, err
		}
	}
	segment := "eth0"
	if n > 1 {
		segment = "br0"
		err := world.onLink("lo", func(nl *netlink.Handle, _ netlink.Link) error {
			attrs := netlink.NewLinkAttrs()
			attrs.Name = segment
			return nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
		})
		if err != nil {
			return nil, fmt.Errorf("make the bridge: %w", err)
		}
		if err := world.up(segment); err != nil {
			return nil, err
		}
	}
	for i := range n {
		if err := l.addMX(t, i, n); err != nil {
			return nil, err
		}
	}
	return t, errors.Join(
		world.AddAddr(segment, netip.PrefixFrom(Router4, 24)),
		world.AddAddr(segment, netip.PrefixFrom(Router6, 64)))
}

func (l *Lab) addMX(t *Topology, i, n int) error {
	name, port := "mx", "eth0"
	if n > 1 {
		name, port = fmt.Sprintf("mx%d", i+1), fmt.Sprintf("mx%d", i+1)
	}
	mx, err := l.NewHost(name)
	if err != nil {
		return err
	}
	t.MX = append(t.MX, mx)
	if err := l.Link(mx, "eth0", t.Net, port); err != nil {
		return err
	}
	if n > 1 {
		err := t.Net.onLink(port, func(nl *netlink.Handle, link netlink.Link) error {
			bridge, err := nl.LinkByName("br0")
			if err != nil {
				return err
			}
			return nl.LinkSetMaster(link, bridge)
		})
		if err != nil {
			return fmt.Errorf("put it on the bridge: %w", err)
		}
	}
	if err := errors.Join(
		mx.AddAddr("eth0", netip.PrefixFrom(MXAddr4(i), 24)),
		mx.AddAddr("eth0", netip.PrefixFrom(MXAddr6(i), 64))); err != nil {
		return err
	}
	return errors.Join(
		mx.AddRoute("eth0", netip.MustParsePrefix("0.0.0.0/0"), Router4),
		mx.AddRoute("eth0", netip.MustParsePrefix("::/0"), Router6))
}

// MXAddr4 is the IPv4 address of the i-th mail host, from 0: MX4 and upwards.
func MXAddr4(i int) netip.Addr { return nth(MX4, i) }

// MXAddr6 is the same for IPv6.
func MXAddr6(i int) netip.Addr { return nth(MX6, i) }

func nth(a netip.Addr, i int) netip.Addr {
	for range i {
		a = a.Next()
	}
	return a
}

// Sources are the first n attacking addresses of p: single addresses of an IPv4
// prefix, and ::1 of consecutive /64s of an IPv6 one, because that is what one
// attacker is.
func Sources(p netip.Prefix, n int) []netip.Addr {
	p = p.Masked()
	out := make([]netip.Addr, 0, n)
	if p.Addr().Is4() {
		for a := p.Addr().Next(); len(out) < n && p.Contains(a); a = a.Next() {
			out = append(out, a)
		}
		return out
	}
	b := p.Addr().As16()
	for i := range n {
		// The /64s of a /48 are numbered by bytes 6 and 7.
		b[6], b[7], b[15] = byte(i>>8), byte(i), 1
		if a := netip.AddrFrom16(b); i < 1<<16 && p.Contains(a) {
			out = append(out, a)
		}
	}
	return out
}
