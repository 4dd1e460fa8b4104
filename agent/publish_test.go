package main

import (
	"context"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// TestPublishedListIsRight: our own list engine, which tests every list both ways before it believes a word, takes the zone that the
// agent serves for a list in order, and hears from it what the table says; nothing while the shield is off or in a dry run.
func TestPublishedListIsRight(t *testing.T) {
	d := bareDaemon(t, nil)
	d.cfg.DNS.Publish = &config.Publish{Listen: netip.MustParseAddrPort("127.0.0.1:0"), Zone: "bl.mx.example"}
	now := time.Now()
	for p, c := range map[string]block.Cause{"198.18.0.1/32": block.Dictionary, "2001:db8:66::/64": block.Manual} {
		if _, err := d.table.Apply(block.Entry{Prefix: netip.MustParsePrefix(p), Kind: block.Block, Cause: c, Scope: c.Scope(), Until: now.Add(time.Hour)}, now); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.publish(ctx); close(done) }()
	defer stop()
	eventually(t, "it is served", func() bool { return d.zone.Load() != nil })

	var ahead atomic.Int64
	r, err := resolve.New(resolve.Options{Servers: []netip.AddrPort{d.zone.Load().Addr()}, Now: func() time.Time { return now.Add(time.Duration(ahead.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := dnslist.ParseSite("bl.mx.example=127.0.0.[3..12]")
	if err != nil {
		t.Fatal(err)
	}
	e := dnslist.NewEngine(dnslist.Options{Lists: []dnslist.List{l}, Resolver: r})
	ended := make(chan struct{})
	go func() { _ = e.Run(ctx); close(ended) }()
	defer func() { stop(); <-ended }()
	eventually(t, "it has passed its tests", func() bool {
		z := e.Status().Zones[0]
		return z.IPv4.State == dnslist.OK && z.IPv6.State == dnslist.OK
	})
	says := func(a string) dnslist.Says {
		t.Helper()
		list := e.Report(ctx, netip.MustParseAddr(a))
		if len(list) != 1 {
			t.Fatalf("%s: %+v", a, list)
		}
		return list[0].Says
	}
	check := func(what string, want dnslist.Says) {
		t.Helper()
		for _, a := range []string{"198.18.0.1", "2001:db8:66::25"} {
			if got := says(a); got != want {
				t.Errorf("%s: %s is %s", what, a, got)
			}
		}
		for _, a := range []string{"198.18.0.2", "2001:db8:67::25"} {
			if got := says(a); got != dnslist.Clean {
				t.Errorf("%s: %s is %s", what, a, got)
			}
		}
		ahead.Add(int64(2 * time.Minute)) // what the resolver remembers has ended
	}
	check("at first", dnslist.Listed)
	d.mu.Lock()
	d.off = &control.Marker{}
	d.mu.Unlock()
	check("off", dnslist.Clean)
	d.mu.Lock()
	d.off = nil
	d.mu.Unlock()
	check("on", dnslist.Listed)
	if s := d.publishStatus(); s.Listed == 0 || s.Queries < s.Listed || s.Zone != "bl.mx.example" {
		t.Errorf("%+v", s)
	}
	stop()
	<-done
	d.cfg.DryRun = true
	if _, listed := d.published(netip.MustParseAddr("198.18.0.1")); listed {
		t.Error("listed in a dry run")
	}
}
