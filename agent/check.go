package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/tail"
	"github.com/mxshield/mxshield/bpf"
	"github.com/mxshield/mxshield/gossip"
)

// check explains a config: what would be used and why. It changes nothing and needs no rights.
func check(ctx context.Context, cfg *config.Config, path string, out io.Writer) error {
	p := func(name, format string, a ...any) {
		fmt.Fprintf(out, "%-12s %s\n", name, fmt.Sprintf(format, a...))
	}
	var faults []error
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		p("config", "%s does not exist: all defaults", path)
	} else {
		p("config", "%s is good", path)
	}
	if cfg.DryRun {
		p("mode", "dry run: nothing will be dropped")
	}
	names, err := bpf.ResolveInterfaces(cfg.Interfaces)
	if err != nil {
		faults = append(faults, err)
	}
	for _, n := range names {
		p("interface", "%s, attach %s (a first native attach may take the link down for a moment on some drivers)", n, cfg.Attach)
	}
	p("ports", "mx %v, submission %v", cfg.MXPorts, cfg.SubmissionPorts)
	if len(cfg.Exempt) > 0 {
		p("exempt", "%v: packets to these local addresses are never dropped", cfg.Exempt)
	}
	for _, l := range []struct {
		what      string
		n, atOnce int
	}{
		{"from one source (IPv4 address, IPv6 /64)", cfg.Limits.SYNPerSource, bpf.SourceBurst * cfg.Limits.SYNPerSource},
		{"from all sources together", cfg.Limits.SYNTotal, bpf.TotalBurst * cfg.Limits.SYNTotal},
	} {
		if l.n > 0 {
			p("limit", "%d new connections a second %s, %d at once after silence; allowed sources and open sessions are not counted", l.n, l.what, l.atOnce)
		}
	}
	if len(cfg.Logs) == 0 {
		found, err := tail.Discover(ctx, tail.DiscoverOptions{})
		if err != nil {
			faults = append(faults, err)
		} else {
			p("input", "%s (%s)", found.Open(tail.FileOptions{}, tail.JournalOptions{}).ID(), found.Why)
			for _, w := range found.Warnings {
				p("", "note: %s", w)
			}
		}
	}
	for _, l := range cfg.Logs {
		in := openInput(l, tail.FileOptions{}, tail.JournalOptions{}, nil)
		p("input", "%s", in.ID())
		if c, ok := in.(interface{ Check() error }); ok {
			if err := c.Check(); err != nil {
				p("", "note: %v; the agent would wait for it", err)
			}
		}
	}
	b := cfg.Block
	p("block", "at a score of %g (half-life %s) for %s, repeat offenders up to %s; IPv6 by /%d", b.Threshold, brief(b.HalfLife), brief(b.For), brief(b.Max), b.IPv6Prefix)
	var w []string
	for k, x := range cfg.Weights {
		if x != 0 {
			w = append(w, fmt.Sprintf("%s %g", maillog.Kind(k), x))
		}
	}
	p("weights", "%s", strings.Join(w, ", "))
	if n := cfg.Traps.Len(); n > 0 {
		p("traps", "%d recipients and domains; one hit weighs %g of %g", n, cfg.Weights[maillog.Trap], b.Threshold)
	}
	nets, notes, err := tail.MyNetworks(ctx, tail.DiscoverOptions{})
	if err != nil {
		notes = append(notes, err.Error())
	}
	never, more := neverRules(cfg, nets)
	p("never block", "%d rules:", len(never))
	for _, n := range never {
		p("", "%-24s %s", n.Prefix, n.Rule)
	}
	for _, n := range append(notes, more...) {
		p("", "note: %s", n)
	}
	domains, notes, err := ownDomains(ctx, cfg.OwnDomains)
	if err != nil {
		notes = append(notes, err.Error())
	}
	p("own MXs", "those of %d domains are never blocked automatically: %s", len(domains), cmp.Or(strings.Join(domains[:min(len(domains), 10)], ", "), "name them under own_domains"))
	for _, n := range notes {
		p("", "note: %s", n)
	}
	for _, l := range cfg.DNS.Lists {
		p("list", "%s, at most %d queries a day", l.Name, l.Daily)
		if err := l.LoadKey(); err != nil {
			faults = append(faults, err)
		}
	}
	if h := cfg.DNS.OwnHook; h != "" {
		path, err := safeProgram(h)
		if err != nil {
			faults = append(faults, fmt.Errorf("dns.own_hook: %w", err))
		} else {
			p("own hook", "%s", path)
		}
	}
	if c := cfg.Cluster; c != nil {
		key := "no key, loopback only"
		if c.KeyFile != "" {
			key = "key " + c.KeyFile
			if err := gossip.CheckKeyFile(c.KeyFile); err != nil {
				faults = append(faults, err)
			}
		}
		p("cluster", "this node is %s; peers %s; %s", c.Name, cmp.Or(strings.Join(c.Peers, ", "), "none, others may name this node as theirs"), key)
	}
	if z := cfg.DNS.Publish; z != nil {
		p("publish", "%s on %s, for %s", z.Zone, z.Listen, cmp.Or(strings.Trim(fmt.Sprint(z.Clients), "[]"), "this host"))
	}
	if cfg.Metrics.IsValid() {
		if err := checkMetrics(cfg.Metrics, control.Answers(cfg.Socket), p); err != nil {
			faults = append(faults, err)
		}
	}
	if cfg.DNS.BeforeAccept {
		p("before", "%s", holdWords(cfg.DNS.BeforePoints(cfg.Block.Threshold), cfg.DNS.Lists))
		if cfg.DryRun {
			p("", "note: not in a dry run, which must not make anybody wait")
		}
	}
	p("state", "%s", cfg.State)
	p("socket", "%s", cfg.Socket)
	p("pins", "%s", cfg.Pins)
	if m, err := control.ReadMarker(filepath.Dir(cfg.State)); err == nil && m != nil {
		p("OFF", "since %s by %s: the agent would stay detached until `mxshieldctl on`", dayTime(m.Since), m.By)
	}
	return errors.Join(faults...)
}
