package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
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
		switch {
		case errors.Is(err, exec.ErrNotFound):
			d.nets, d.asked = nil, true // there is no Postfix here
		case err != nil:
			d.warn("mynetworks", "Postfix did not tell its mynetworks; what was known of them stays, and it is asked again", err)
		default:
			if !slices.Equal(nets, d.nets) {
				d.mu.Lock()
				if d.batch.Extra == nil {
					d.batch.Extra = map[string][]byte{}
				}
				d.batch.Extra["mynetworks"] = formatNets(nets)
				d.mu.Unlock()
			}
			d.nets, d.asked = nets, true
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
	mxs, addrs := d.ownMXRules()
	list = slices.Concat(list, d.peerRules(), mxs, d.senderRules(), d.sparedRules())
	d.setWarning("senders", d.sendersWarning(), nil)
	d.setWarning("never", strings.Join(notes, "; "), nil)
	if slices.Equal(d.table.Never(), sortedNever(list)) {
		return
	}
	if err := d.table.SetNever(list, time.Now()); err != nil {
		d.warn("kernel", "not every block is in the kernel", err)
	}
	var own []netip.Addr
	for _, n := range list {
		if a := n.Prefix.Addr(); !a.IsLinkLocalUnicast() && (n.Rule == ruleOwn || n.Rule == ruleGateway) {
			own = append(own, a)
		}
	}
	d.mu.Lock()
	d.own = own
	d.scorer.SetOwnMX(addrs)
	d.mu.Unlock()
	d.recheck()
}

// recheck lets the scorer look again at sources that it believes blocked and that are not: a rule kept them open and
// went, perhaps while no agent ran.
func (d *daemon) recheck() {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.scorer.Recheck(now, func(p netip.Prefix) bool { return d.table.Decide(p, now).Drop })
	if n > 0 {
		d.log.Debug("sources that are not blocked after all are watched again", "sources", n)
	}
}

// formatNets and parseNets keep mynetworks in the state file: an agent that starts while Postfix cannot be asked
// must not block them.
func formatNets(nets []netip.Prefix) []byte {
	var b []byte
	for _, p := range nets {
		b = append(p.AppendTo(b), '\n')
	}
	return b
}

func parseNets(b []byte) (nets []netip.Prefix) {
	for line := range strings.Lines(string(b)) {
		if p, err := netip.ParsePrefix(strings.TrimSpace(line)); err == nil {
			nets = append(nets, p)
		}
	}
	return nets
}

// Rules that the agent treats specially elsewhere.
const (
	ruleOwn     = "own address"
	ruleGateway = "gateway"
)

// sortedNever is what the table makes of a list: one rule per prefix, in order.
func sortedNever(list []block.Never) []block.Never {
	seen := map[netip.Prefix]bool{}
	var out []block.Never
	for _, n := range list {
		if n.Prefix = n.Prefix.Masked(); !seen[n.Prefix] { // allows by name come last
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
			add(a, ruleOwn)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		notes = append(notes, fmt.Sprintf("gateways are not known: %v", err))
	}
	for i := range routes {
		if a, ok := netip.AddrFromSlice(routes[i].Gw); ok {
			add(a, ruleGateway)
		}
		for _, hop := range routes[i].MultiPath {
			if a, ok := netip.AddrFromSlice(hop.Gw); ok {
				add(a, ruleGateway)
			}
		}
	}
	for _, a := range resolvers("/etc/resolv.conf") {
		add(a, "resolver")
	}
	for _, r := range cfg.DNS.Resolvers {
		add(r.Addr(), "resolver")
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
