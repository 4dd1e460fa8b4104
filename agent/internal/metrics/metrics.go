// Package metrics shows what the agent's status says to Prometheus: the same figures under the same words, in the units
// and with the suffixes that Prometheus expects.
//
//	mxshield_packets_total{verdict="drop",reason="drop_exact"} 123456
//	mxshield_blocks{cause="dictionary",family="ipv4"} 214
//
// Labels are closed lists, or names out of the config (inputs, lists, resolvers, interfaces), or names of cluster members,
// of which the status has a bounded number. None is written by a client of the MTA, and there is no series per source. A
// scrape reads figures that are kept anyway; it walks over no table.
package metrics

import (
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

// Register adds to a registry what status says at each scrape. status must be safe for concurrent use.
func Register(reg prometheus.Registerer, status func() control.Status) error {
	return reg.Register(&collector{status})
}

type collector struct{ status func() control.Status }

// Describe is part of prometheus.Collector.
func (c *collector) Describe(to chan<- *prometheus.Desc) {
	for _, f := range all {
		to <- f.desc
	}
}

// Collect is part of prometheus.Collector.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	s := c.status()
	put := func(f *figure, v float64, labels ...string) {
		for i := range labels {
			labels[i] = strings.ToValidUTF8(labels[i], "?")
		}
		to <- prometheus.MustNewConstMetric(f.desc, f.kind, v, labels...)
	}
	put(buildInfo, 1, s.Version, runtime.Version(), s.Node)
	put(startTime, float64(s.Started.UnixNano())/1e9)
	mode := "on"
	switch {
	case s.Off != nil:
		mode = "off"
	case s.DryRun:
		mode = "dry_run"
	}
	for _, m := range []string{"on", "off", "dry_run"} {
		put(shieldMode, is(m == mode), m)
	}
	put(warnings, float64(len(s.Warnings)))
	for _, i := range s.Interfaces {
		put(interfaceInfo, 1, i.Name, i.Mode)
	}
	for reason, n := range s.Packets {
		verdict, _, _ := strings.Cut(reason, "_")
		put(packets, float64(n), verdict, reason)
	}
	put(samplesLost, float64(s.SamplesLost))
	for _, t := range s.Kernel {
		put(tableEntries, float64(t.Entries), t.Table)
		put(tableCapacity, float64(t.Capacity), t.Table)
	}
	blocks(put, &s)
	for mta, kinds := range s.EventsByMTA {
		for kind, n := range kinds {
			put(events, float64(n), mta, kind)
		}
	}
	put(sources, float64(s.Sources))
	put(sessionsEnded, float64(s.Ended))
	inputs(put, s.Inputs)
	put(stateBytes, float64(s.State.Bytes))
	put(stateFailed, is(s.State.Error != ""))
	failing := 0
	for _, r := range s.Senders {
		if r.Error != "" {
			failing++
		}
	}
	put(senders, float64(len(s.Senders)))
	put(sendersFailing, float64(failing))
	if l := s.Limits; l != nil {
		put(limit, float64(l.SYNPerSource), "source")
		put(limit, float64(l.SYNTotal), "total")
	}
	if s.DNS != nil {
		dns(put, s.DNS)
	}
	if h := s.Hold; h != nil {
		hold(put, h)
	}
	if o := s.Own; o != nil {
		put(ownAddresses, float64(o.Watched))
		put(ownListed, float64(o.Listed))
		for list, n := range o.Lists {
			put(ownListings, float64(n), list)
		}
	}
	if p := s.Publish; p != nil {
		put(publishQueries, float64(p.Queries))
		put(publishListed, float64(p.Listed))
		put(publishRefused, float64(p.Refused))
	}
	if k := s.Cluster; k != nil {
		cluster(put, k)
	}
}

type putter func(f *figure, v float64, labels ...string)

func is(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

func families(put putter, f *figure, n block.Families, label string) {
	put(f, float64(n.IPv4), label, "ipv4")
	put(f, float64(n.IPv6), label, "ipv6")
}

func blocks(put putter, s *control.Status) {
	for _, c := range block.Causes() { // those that have none too: a series that comes late is hard to alert on
		families(put, standing, s.Blocks.Causes[c], c.String())
		put(made, float64(s.Made[c.String()]), c.String())
	}
	for _, o := range s.Blocks.Origins {
		families(put, entries, o.Families, o.Origin)
	}
	put(allows, float64(s.Blocks.Allows))
	put(clears, float64(s.Blocks.Clears))
	put(unenforced, float64(s.Blocks.Unenforced))
}

// inputs are those that the config names: the files of a glob come and go, and are added up.
func inputs(put putter, list []control.Input) {
	sum := map[string]*control.Input{}
	for _, i := range list {
		if i.Of == "" {
			sum[i.ID] = &i
			continue
		}
		if of := sum[i.Of]; of != nil {
			of.LagSeconds = max(of.LagSeconds, i.LagSeconds)
			of.Truncated += i.Truncated
			of.Suppressed += i.Suppressed
			of.Untrusted += i.Untrusted
			of.Dropped += i.Dropped
		}
	}
	for id, i := range sum {
		put(inputLines, float64(i.Lines), id)
		put(inputLag, float64(i.Lag), id)
		put(inputLagSeconds, i.LagSeconds, id)
		put(inputTruncated, float64(i.Truncated), id)
		put(inputSuppressed, float64(i.Suppressed), id)
		put(inputUntrusted, float64(i.Untrusted), id)
		put(inputDropped, float64(i.Dropped), id)
		put(inputFailing, is(i.LastError != ""), id)
	}
}

func dns(put putter, d *control.DNS) {
	put(dnsQueries, float64(d.Queries))
	put(dnsAsked, float64(d.Asked))
	put(dnsWaiting, float64(d.Waiting))
	put(dnsDropped, float64(d.Dropped))
	for _, r := range d.Resolvers {
		put(resolverUp, is(!r.Down), r.Server)
		put(resolverFailures, float64(r.Failures), r.Server)
		put(resolverSeconds, r.Millis/1000, r.Server)
	}
	for _, l := range d.Lists {
		put(listAsked, float64(l.Asked), l.Zone)
		put(listListed, float64(l.Listed), l.Zone)
		put(listWelcomed, float64(l.Welcomed), l.Zone)
		put(listErrors, float64(l.Errors), l.Zone)
		put(listSkipped, float64(l.Skipped), l.Zone)
		put(listLeft, float64(l.Left), l.Zone)
		put(listSeconds, l.Millis/1000, l.Zone)
		put(listSuspended, is(l.IPv4 == "suspended"), l.Zone, "ipv4")
		put(listSuspended, is(l.IPv6 == "suspended"), l.Zone, "ipv6")
	}
}

func hold(put putter, h *control.Hold) {
	put(holdActive, is(h.IPv4), "ipv4")
	put(holdActive, is(h.IPv6), "ipv6")
	put(holdBudget, float64(h.Budget))
	put(holdHeld, float64(h.Held))
	for result, n := range map[string]uint64{
		"listed": h.Listed, "clean": h.Clean, "unanswered": h.Unanswered, "spared": h.Spared, "busy": h.Busy, "untold": h.Untold,
	} {
		put(holdResults, float64(n), result)
	}
	put(holdKnown, float64(h.Known))
	put(holdSeconds, h.Millis/1000)
}

func cluster(put putter, k *control.ClusterStatus) {
	for _, state := range slices.Sorted(maps.Keys(k.States)) {
		put(members, float64(k.States[state]), state)
	}
	put(clusterLearned, float64(k.Learned))
	put(clusterLag, float64(k.Lag))
	put(clusterSuspended, float64(len(k.Suspended)))
	put(clusterOffset, k.ClockOffset)
	for name, f := range clusterCounters {
		put(f, float64(k.Counters[name]))
	}
}
