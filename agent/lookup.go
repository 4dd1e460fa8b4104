package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

// tellTime is how long lookup waits for the table at most.
const tellTime = time.Second

// Lookup answers lookup: the table's decision, and what the lists and the DNS say of an address right now.
func (d *daemon) Lookup(ctx context.Context, a netip.Addr) (control.Lookup, error) {
	p := netip.PrefixFrom(a, a.BitLen())
	l := control.Lookup{Address: a, Node: d.node, Now: time.Now().UTC(), Lists: []control.ListAnswer{}, Threshold: d.cfg.Block.Threshold}
	named, news := make(chan struct{}), false
	go func() {
		defer close(named)
		names := d.resolver.FCrDNS(ctx, a)
		_, news = d.senders.Learn(a, &names)
		l.RDNS = names.State.String()
		for _, n := range names.Claimed {
			l.Names = append(l.Names, control.Name{Name: n, Verified: slices.Contains(names.Verified, n)})
		}
	}()
	if d.lists != nil {
		for _, r := range d.lists.Report(ctx, a) {
			l.Lists = append(l.Lists, listAnswer(r))
			l.Sum += r.Points
		}
	}
	<-named
	// What was learned just now allows it as soon as the housekeeper has told the table; the page is to say so.
	for end := time.Now().Add(tellTime); news && d.table.Decide(p, time.Now()).Never == nil && time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(10 * time.Millisecond)
	}
	w, err := d.Why(p)
	if err != nil {
		return control.Lookup{}, err
	}
	l.Decision, l.Words, l.Warnings = w.Decision, w.Words, w.Warnings
	switch {
	case !d.listed():
		l.Warnings = append(l.Warnings, "there are no DNS lists in the config (dns.lists)")
	case len(l.Lists) == 0:
		l.Warnings = append(l.Warnings, "no DNS list can know this address, so none was asked")
	}
	if rule, ok := d.allowedSender(a); ok {
		l.Allowed = rule
	}
	if n := l.Decision.Never; n != nil && (l.Allowed == "" || l.Decision.Rule != block.RuleSender) {
		l.Allowed = fmt.Sprintf("%s (%s)", n.Rule, n.Prefix)
	}
	return l, nil
}
