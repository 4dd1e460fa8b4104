package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/agent/internal/tail"
)

// This file finds the other MXs of our own domains: backup MXs and filters in front of us pass on to us what others try at
// them, and blocking one blocks everybody's mail. The domains are Postfix's and those named in the config, their MXs what the
// DNS says. What was known of a domain stays while its MXs cannot be asked for.

const (
	ownMXEvery  = time.Hour
	ownMXAgain  = 5 * time.Minute // if some could not be asked for
	ownMXAtOnce = 4               // domains asked about at a time
	maxOwnMX    = 1000            // addresses
	maxHostsMX  = 10              // hosts of a domain
	maxAddrsMX  = 16              // addresses of a domain
	ownMXKey    = "own_mx"
	ruleOwnMX   = "MX of "
)

// ownMXParts are the daemon's parts for that; its lock guards them.
type ownMXParts struct {
	ownMX map[string][]netip.Addr // by domain
}

// openOwnMX takes over what the state file knows.
func (d *daemon) openOwnMX() {
	was := map[string][]netip.Addr{}
	if b := d.pending[ownMXKey]; len(b) > 0 {
		if err := json.Unmarshal(b, &was); err != nil {
			d.log.Warn("the MXs of our own domains cannot be read from the state file; they are asked for anew", "error", err)
		}
	}
	delete(d.pending, ownMXKey)
	for domain, list := range was {
		was[domain] = plausible(list)
	}
	d.ownMX = was
}

// plausible are the addresses that hosts of the internet can have, at most maxAddrsMX.
func plausible(list []netip.Addr) (out []netip.Addr) {
	for _, a := range list {
		if a = a.Unmap().WithZone(""); a.IsValid() && a.IsGlobalUnicast() && !slices.Contains(out, a) && len(out) < maxAddrsMX {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// keepOwnMX keeps them fresh until ctx ends.
func (d *daemon) keepOwnMX(ctx context.Context) {
	for {
		wait := ownMXEvery
		if !d.refreshOwnMX(ctx) {
			wait = ownMXAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// ownDomains are the domains whose MXs are ours.
func ownDomains(ctx context.Context, named []string) (domains, notes []string, err error) {
	domains, notes, err = tail.MailDomains(ctx, tail.DiscoverOptions{})
	if errors.Is(err, exec.ErrNotFound) {
		err = nil
	}
	for _, n := range named {
		if !slices.Contains(domains, n) {
			domains = append(domains, n)
		}
	}
	return domains, notes, err
}

// refreshOwnMX asks for all of them. It reports whether all could be asked for.
func (d *daemon) refreshOwnMX(ctx context.Context) (whole bool) {
	domains, notes, err := ownDomains(ctx, d.cfg.OwnDomains)
	if err != nil {
		d.log.Info("Postfix did not tell its domains; what was known of their MXs stays", "error", err)
	}
	for _, n := range notes {
		d.log.Debug("domains of our own", "note", n)
	}
	d.mu.Lock()
	was := d.ownMX
	d.mu.Unlock()
	now := map[string][]netip.Addr{}
	if whole = err == nil; !whole {
		maps.Copy(now, was)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	slots := make(chan struct{}, ownMXAtOnce)
	for _, name := range domains {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			list, err := mxOf(ctx, d.resolver, name)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				whole = false
				list = append(list, was[name]...)
			}
			if list = plausible(list); len(list) > 0 {
				now[name] = list
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil || maps.EqualFunc(was, now, slices.Equal) {
		return whole
	}
	b, err := json.Marshal(now)
	d.mu.Lock()
	d.ownMX = now
	if err == nil {
		if d.batch.Extra == nil {
			d.batch.Extra = map[string][]byte{}
		}
		d.batch.Extra[ownMXKey] = b
	}
	d.mu.Unlock()
	d.log.Info("MXs of our own domains are never blocked automatically", "domains", len(domains), "with_mx", len(now))
	select {
	case d.ranges <- struct{}{}:
	default: // the housekeeper knows already
	}
	return whole
}

// asker is the part of the resolver that is used here.
type asker interface {
	Lookup(ctx context.Context, name string, qtype uint16) (resolve.Answer, error)
}

// mxOf asks for the addresses of a domain's MXs; of the domain itself if it has none (RFC 5321 5.1). With an error the list is not
// whole.
func mxOf(ctx context.Context, r asker, domain string) (list []netip.Addr, err error) {
	ans, err := r.Lookup(ctx, domain, dns.TypeMX)
	if err != nil {
		return nil, err
	}
	var hosts []string
	for _, rr := range ans.Records {
		if mx, ok := rr.(*dns.MX); ok && len(hosts) < maxHostsMX {
			hosts = append(hosts, mx.Mx)
		}
	}
	if len(hosts) == 0 && !ans.NXDomain {
		hosts = []string{domain}
	}
	var failed error
	for _, h := range hosts {
		if h == "." {
			continue // no mail at all (RFC 7505)
		}
		for _, t := range []uint16{dns.TypeA, dns.TypeAAAA} {
			ans, err := r.Lookup(ctx, h, t)
			if err != nil {
				failed = cmp.Or(failed, err)
				continue
			}
			for _, rr := range ans.Records {
				if a, ok := resolve.Addr(rr); ok {
					list = append(list, a)
				}
			}
		}
	}
	return list, failed
}

// ownMXRules are the never-block rules of them: as those of allows by name they keep automatic blocks away.
func (d *daemon) ownMXRules() (rules []block.Never, addrs []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	domains := map[netip.Addr][]string{}
	for _, name := range slices.Sorted(maps.Keys(d.ownMX)) {
		for _, a := range d.ownMX[name] {
			if len(domains) < maxOwnMX || domains[a] != nil {
				domains[a] = append(domains[a], name)
			}
		}
	}
	addrs = slices.SortedFunc(maps.Keys(domains), netip.Addr.Compare)
	for _, a := range addrs {
		rule := ruleOwnMX + domains[a][0]
		if n := len(domains[a]) - 1; n > 0 {
			rule += fmt.Sprintf(" and %d more", n)
		}
		rules = append(rules, block.Never{Prefix: netip.PrefixFrom(a, a.BitLen()), Rule: rule, Sender: true})
	}
	return rules, addrs
}

// isOwnMX says whether a rule is one of those.
func isOwnMX(n block.Never) bool { return n.Sender && strings.HasPrefix(n.Rule, ruleOwnMX) }
