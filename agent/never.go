package main

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/tail"
)

// refreshNever collects the never-block rules anew and gives them to the table if they changed. With postfix it asks
// Postfix for mynetworks too, which starts a process.
func (d *daemon) refreshNever(ctx context.Context, postfix bool) {
	if postfix {
		nets, notes, err := tail.MyNetworks(ctx, tail.DiscoverOptions{})
		if err != nil {
			d.warn("mynetworks", "Postfix did not tell its mynetworks; what was known of them stays", err)
		} else {
			d.nets = nets
			for _, n := range notes {
				d.warn("mynetworks", "mynetworks: "+n, nil)
			}
			if len(notes) == 0 {
				d.setWarning("mynetworks", "", nil)
			}
		}
	}
	d.mu.Lock()
	cfg := *d.cfg
	d.mu.Unlock()
	list, notes := neverRules(&cfg, d.nets)
	d.setWarning("never", strings.Join(notes, "; "), nil)
	old := d.table.Never()
	if slices.Equal(old, sortedNever(list)) {
		return
	}
	if err := d.table.SetNever(list, time.Now()); err != nil {
		d.warn("kernel", "not every block is in the kernel", err)
	}
	// A source whose rule went was refused while it was never to be blocked: its score starts anew.
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range old {
		if !slices.Contains(list, n) {
			d.scorer.Reset(n.Prefix)
		}
	}
}

// sortedNever is what the table makes of a list: one rule per prefix, in order.
func sortedNever(list []block.Never) []block.Never {
	seen := map[netip.Prefix]bool{}
	var out []block.Never
	for _, n := range list {
		if n.Prefix = n.Prefix.Masked(); !seen[n.Prefix] {
			seen[n.Prefix] = true
			out = append(out, n)
		}
	}
	slices.SortFunc(out, func(a, b block.Never) int { return a.Prefix.Compare(b.Prefix) })
	return out
}

// widest mynetworks that is believed: Postfix grants what it names the right to relay, so 0.0.0.0/0 there is a
// mistake, and must not switch the shield off.
const (
	widestNets4 = 8
	widestNets6 = 16
)

// neverRules lists all that is never blocked, and what was left out and why.
func neverRules(cfg *config.Config, nets []netip.Prefix) (list []block.Never, notes []string) {
	// What a person wrote comes first: of two rules for one prefix the first one stays, and the config's has a line.
	for _, a := range cfg.Allow {
		list = append(list, block.Never{Prefix: a.Prefix, Rule: fmt.Sprintf("allow in config line %d", a.Line), Config: true})
	}
	add := func(a netip.Addr, rule string) {
		if a = a.WithZone("").Unmap(); a.IsValid() && !a.IsUnspecified() {
			list = append(list, block.Never{Prefix: netip.PrefixFrom(a, a.BitLen()), Rule: rule})
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		notes = append(notes, fmt.Sprintf("own addresses are not known: %v", err))
	}
	for i := range addrs {
		if a, ok := netip.AddrFromSlice(addrs[i].IP); ok {
			add(a, "own address")
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		notes = append(notes, fmt.Sprintf("gateways are not known: %v", err))
	}
	for i := range routes {
		if a, ok := netip.AddrFromSlice(routes[i].Gw); ok {
			add(a, "gateway")
		}
		for _, hop := range routes[i].MultiPath {
			if a, ok := netip.AddrFromSlice(hop.Gw); ok {
				add(a, "gateway")
			}
		}
	}
	for _, a := range resolvers("/etc/resolv.conf") {
		add(a, "resolver")
	}
	list = append(list, block.BuiltinNever(cfg.Block.Private)...)
	for _, p := range nets {
		min := widestNets6
		if p.Addr().Is4() {
			min = widestNets4
		}
		if p.Bits() < min {
			notes = append(notes, fmt.Sprintf("mynetworks %s is wider than /%d and is ignored", p, min))
			continue
		}
		list = append(list, block.Never{Prefix: p, Rule: "Postfix mynetworks"})
	}
	return list, notes
}

// resolvers reads the nameserver lines of resolv.conf(5).
func resolvers(path string) (list []netip.Addr) {
	f, err := os.Open(path)
	if err != nil {
		return nil // a host without resolvers has none to protect
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() && len(list) < 16 {
		if w := strings.Fields(sc.Text()); len(w) >= 2 && w[0] == "nameserver" {
			if a, err := netip.ParseAddr(w[1]); err == nil {
				list = append(list, a)
			}
		}
	}
	return list
}
