package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	packet4 = 1400
	packet6 = 1232 // what IPv6 guarantees: 1280 less its header and UDP's

	// A user message in a packet: memberlist's type, its checksum, the seal, its label's header.
	packetOverhead = 1 + 5 + sealed + 2

	defaultLabel = "mxshield"
	maxLabel     = 32

	handoffDepth = 4096
)

// CheckName says what is wrong with a node's name.
func CheckName(s string) error {
	if !validName(s) {
		return hint(fmt.Errorf("%.80q is no name of a node", s), "1 to 64 letters, digits, dots, dashes and underscores, for example the host's name")
	}
	return nil
}

// CheckLabel says what is wrong with a cluster's label.
func CheckLabel(s string) error {
	if len(s) > maxLabel || !validName(s) {
		return hint(fmt.Errorf("%.80q is no label", s), fmt.Sprintf("1 to %d letters, digits, dots, dashes and underscores, the same on every node", maxLabel))
	}
	return nil
}

// ParseBind reads the address to listen at; the port may be left out.
func ParseBind(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		var ip netip.Addr
		if ip, err = netip.ParseAddr(s); err == nil {
			a = netip.AddrPortFrom(ip, DefaultPort)
		}
	}
	if err != nil || a.Addr().IsMulticast() {
		return a, hint(fmt.Errorf("%.80q is no address to listen at", s), "for example 0.0.0.0:7946 or [::]:7946; names are for peers")
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// ParseAdvertise reads the address that others reach us at; without a port it is 0.
func ParseAdvertise(s string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		var ip netip.Addr
		if ip, err = netip.ParseAddr(s); err == nil {
			a = netip.AddrPortFrom(ip, 0)
		}
	}
	if err != nil || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
		return a, hint(fmt.Errorf("%.80q is no address of a host", s), "the address under which the peers reach this node, for example 192.0.2.25 or 192.0.2.25:7946")
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), nil
}

// settings checks the options and fills in the defaults.
func (c *Cluster) settings() error {
	o := &c.opt
	c.tune = o.tune
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c.log = o.Log
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Label == "" {
		o.Label = defaultLabel
	}
	if err := errors.Join(CheckName(o.Name), CheckLabel(o.Label)); err != nil {
		return err
	}
	if o.Wire == (Wire{}) {
		o.Wire = Wire{1, 1}
	}
	if o.Wire.Min == 0 || o.Wire.Min > o.Wire.Max {
		return fmt.Errorf("wire versions %d to %d", o.Wire.Min, o.Wire.Max)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.tune.rejoin, 10*time.Second)
	def(&c.tune.settle, settle)
	def(&c.tune.probe, time.Second)
	def(&c.tune.pushPull, time.Minute)
	def(&c.tune.dead, 30*time.Second)
	if c.tune.lookup == nil {
		c.tune.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	c.seal = &seal{label: o.Label, plain: o.KeyFile == ""}
	c.table = newTable(o.Name, o.Wire, o.Now)
	if o.KeyFile == "" {
		return nil
	}
	keys, err := readKeys(o.KeyFile)
	if err != nil {
		return err
	}
	if c.ring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
		return fmt.Errorf("%s: %w", o.KeyFile, err)
	}
	c.keys = keys
	return c.seal.setKeys(keys)
}

// listen opens the sockets and finds out how others reach us.
func (c *Cluster) listen() error {
	o := &c.opt
	if o.Bind == "" {
		o.Bind = fmt.Sprintf("0.0.0.0:%d", DefaultPort)
		if c.seal.plain {
			o.Bind = fmt.Sprintf("127.0.0.1:%d", DefaultPort)
		}
	}
	bind, err := ParseBind(o.Bind)
	if err != nil {
		return err
	}
	var adv netip.AddrPort
	if o.Advertise != "" {
		if adv, err = ParseAdvertise(o.Advertise); err != nil {
			return err
		}
	}
	if c.seal.plain && (!bind.Addr().IsLoopback() || adv.IsValid() && !adv.Addr().IsLoopback()) {
		return hint(fmt.Errorf("the cluster has no key, and %s is not loopback", bind), "make a key with `mxshieldctl cluster key new > /etc/mxshield/cluster.key`, copy that file to every node, and name it as key_file in the config's cluster section")
	}
	tcp, udp, err := listen(bind)
	if err != nil {
		return hint(networkError{fmt.Errorf("listen for the cluster: %w", err)}, "the cluster needs this port for TCP and UDP: see `ss -tulpn`, or choose another with bind")
	}
	local := netip.AddrPortFrom(bind.Addr(), udp.LocalAddr().(*net.UDPAddr).AddrPort().Port())
	port := local.Port()
	if port == 0 {
		port = DefaultPort
	}
	var peers []*static
	for _, p := range o.Peers {
		s, err := parsePeer(p, port)
		if err != nil {
			tcp.Close()
			udp.Close()
			return err
		}
		if !slices.ContainsFunc(peers, func(o *static) bool { return o.host == s.host && o.port == s.port }) {
			peers = append(peers, s)
		}
	}
	if !adv.IsValid() {
		adv = netip.AddrPortFrom(bind.Addr(), 0)
		if bind.Addr().IsUnspecified() {
			a, err := c.reachedAt(bind.Addr(), peers)
			if err != nil {
				tcp.Close()
				udp.Close()
				return err
			}
			adv = netip.AddrPortFrom(a, 0)
		}
	}
	if adv.Port() == 0 {
		adv = netip.AddrPortFrom(adv.Addr(), local.Port())
	}
	var source *net.TCPAddr
	if !bind.Addr().IsUnspecified() {
		source = &net.TCPAddr{IP: bind.Addr().AsSlice(), Zone: bind.Addr().Zone()}
	}
	c.trans = &transport{seal: c.seal, count: &c.count, tap: c.tune.tap, user: c.fromPacket, tcp: tcp, udp: udp, source: source, advertise: adv}
	c.trans.prove = c.table.prove
	c.trans.known = func(a netip.Addr) bool { return c.table.knows(a) || c.seek.knows(a) }
	c.seek = &seeker{
		every: c.tune.rejoin, port: port, static: peers, table: c.table, lookup: c.tune.lookup,
		self: func(a netip.AddrPort) bool {
			return a == adv || a.Port() == local.Port() && c.ours(bind.Addr(), a.Addr())
		},
		slots: make(chan struct{}, maxCalls), again: make(chan struct{}, 1), calls: map[netip.AddrPort]*attempt{},
		call: func(name string, at netip.AddrPort) error {
			// The name is there because memberlist was told to want one; its transport gets it, and ours ignores it.
			_, err := c.list.Join([]string{name + "/" + at.String()})
			if err == nil {
				return nil
			}
			// "1 error occurred:\n\t* failed to join 192.0.2.7:7946: ..."
			text := err.Error()
			if _, why, ok := strings.Cut(text, "failed to join "+at.String()+": "); ok {
				text = why
			}
			return errors.New(strings.Join(strings.Fields(text), " "))
		},
	}
	size := packet4
	if adv.Addr().Is6() {
		size = packet6
	}
	c.room = min(MaxPacket, size-packetOverhead-len(o.Label)-3-len(o.Name))
	return nil
}

// ours says whether an address is this host's, as far as the socket listens there.
func (c *Cluster) ours(bind, a netip.Addr) bool {
	if !bind.IsUnspecified() {
		return bind == a
	}
	if a.IsLoopback() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(list, func(n net.Addr) bool {
		p, err := netip.ParsePrefix(n.String())
		return err == nil && p.Addr().Unmap() == a
	})
}

// reachedAt is the address that packets to the peers leave from, or to anywhere. memberlist itself would look for a
// private one, and mail hosts often have none.
func (c *Cluster) reachedAt(bind netip.Addr, peers []*static) (netip.Addr, error) {
	network := "udp4"
	to := []netip.AddrPort{}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	for _, p := range peers {
		if p.fixed {
			to = append(to, p.addrs...)
		} else if addrs, err := c.tune.lookup(ctx, p.host); err == nil {
			for _, a := range addrs {
				to = append(to, netip.AddrPortFrom(a.Unmap(), p.port))
			}
		}
	}
	to = append(to, netip.MustParseAddrPort("192.0.2.1:9"))
	if bind.Is6() {
		network = "udp"
		to = append(to, netip.MustParseAddrPort("[2001:db8::1]:9"))
	}
	for _, a := range to {
		// Connecting a UDP socket sends nothing; it makes the kernel choose the source.
		s, err := net.Dial(network, a.String())
		if err != nil {
			continue
		}
		from := s.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
		s.Close()
		// A peer that is ourselves is reached over loopback from its own address: right all the same.
		if !from.IsUnspecified() && !from.IsLoopback() {
			return from.WithZone(""), nil
		}
	}
	return netip.Addr{}, hint(networkError{errors.New("this node's address is not known: it has no route to its peers, nor a default route")}, "name it as advertise in the config's cluster section")
}

func (c *Cluster) memberlistConfig() *memberlist.Config {
	m := memberlist.DefaultLANConfig()
	m.Name = c.opt.Name
	m.Label = c.opt.Label
	m.Transport = c.trans
	m.BindAddr, m.BindPort = c.trans.advertise.Addr().String(), int(c.trans.advertise.Port())
	m.AdvertiseAddr, m.AdvertisePort = m.BindAddr, m.BindPort
	m.Keyring = c.ring
	m.GossipVerifyIncoming, m.GossipVerifyOutgoing = true, true
	m.RequireNodeNames = true
	m.EnableCompression = false
	m.HandoffQueueDepth = handoffDepth
	m.UDPBufferSize = packet4
	if c.trans.advertise.Addr().Is6() {
		m.UDPBufferSize = packet6
	}
	m.PushPullInterval = c.tune.pushPull
	m.ProbeInterval = c.tune.probe
	m.ProbeTimeout = c.tune.probe / 2
	m.GossipInterval = min(m.GossipInterval, c.tune.probe/4)
	m.GossipToTheDeadTime = c.tune.dead
	// A host that died and comes back with another address is welcome at once. While it is not yet known to be dead it
	// is refused, and its next push/pull, within a minute or two, brings it in.
	m.DeadNodeReclaimTime = time.Nanosecond
	m.DNSConfigPath = "/dev/null" // names are resolved here, never there
	m.LogOutput, m.Logger = nil, newLineLogger(c.log, &c.count)
	d := delegate{c}
	m.Delegate, m.Events, m.Conflict, m.Alive, m.Ping = d, d, d, d, d
	return m
}
