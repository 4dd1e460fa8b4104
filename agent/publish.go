package main

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/zone"
)

// thisHost may always ask.
var thisHost = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// publish serves the block table as a DNS list until ctx ends. Its troubles are no reason to stop the shield.
func (d *daemon) publish(ctx context.Context) {
	p := d.cfg.DNS.Publish
	if p == nil {
		return
	}
	d.keepServing(ctx, "publish", "the block table is not served as a DNS list; it is tried again", func() error {
		s, err := zone.Listen(zone.Options{Zone: p.Zone, Listen: p.Listen, Clients: slices.Concat(thisHost, p.Clients), Node: d.node, Lookup: d.published, Log: d.log})
		if err != nil {
			return err
		}
		d.setWarning("publish", "", nil)
		d.log.Info("serving the block table as a DNS list", "zone", p.Zone, "listen", s.Addr())
		d.zone.Store(s)
		return s.Run(ctx)
	})
}

// published says what the zone tells about an address: what is dropped here is listed. In a dry run, and while the shield is off,
// nothing is: others would refuse mail that passes here.
func (d *daemon) published(a netip.Addr) (zone.Listing, bool) {
	if d.cfg.DryRun || d.marker() != nil {
		return zone.Listing{}, false
	}
	by := d.table.Decide(netip.PrefixFrom(a, a.BitLen()), time.Now())
	if !by.Drop || by.By == nil {
		return zone.Listing{}, false
	}
	return zone.Listing{Prefix: by.By.Prefix, Cause: by.By.Cause, Until: by.Until}, true
}

// publishStatus is what status shows of it.
func (d *daemon) publishStatus() *control.Publish {
	p, s := d.cfg.DNS.Publish, d.zone.Load()
	if p == nil {
		return nil
	}
	st := &control.Publish{Zone: p.Zone, Listen: p.Listen.String()}
	if s != nil {
		n := s.Stats()
		st.Listen, st.Queries, st.Listed, st.Refused = s.Addr().String(), n.Queries, n.Listed, n.Refused
	}
	return st
}
