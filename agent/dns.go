package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/agent/internal/verdict"
	"github.com/mxshield/mxshield/agent/internal/zone"
)

// What the reverse name of a source counts, in points: next to nothing, since honest hosts go without one.
const (
	pointsNoName    = 5 // no PTR record
	pointsOtherName = 3 // names that do not lead back
)

// dnsParts are the daemon's parts that speak DNS.
type dnsParts struct {
	resolver *resolve.Resolver
	lists    *dnslist.Engine // asks lists, and for names; nil if neither matters
	hasLists atomic.Bool
	seen     *dnslist.Collector
	zone     atomic.Pointer[zone.Server] // our own list; nil until it is served
}

// liveWeights are the weights by which the scorer takes lines as they come: refusals by a list come in by Confirmed only.
func liveWeights(w [maillog.NumKinds]float64) [maillog.NumKinds]float64 {
	w[maillog.DNSBLReject] = 0
	return w
}

// openDNS makes the resolver and what asks it. It starts nothing.
func (d *daemon) openDNS() (err error) {
	if d.resolver, err = resolve.New(resolve.Options{Servers: d.cfg.DNS.Resolvers}); err != nil {
		return err
	}
	d.openSenders()
	d.openLists()
	return nil
}

// openLists makes the engine that asks about sources, with lists or an allow by domain in the config.
func (d *daemon) openLists() {
	if len(d.cfg.DNS.Lists) == 0 && !d.senders.ByName() {
		return
	}
	saved := d.pending[budgetsKey]
	delete(d.pending, budgetsKey)
	d.hasLists.Store(len(d.cfg.DNS.Lists) > 0)
	d.lists = dnslist.NewEngine(dnslist.Options{
		Lists: d.withKeys(d.cfg.DNS.Lists), Saved: saved, Resolver: d.resolver, Found: d.found, Known: d.knownSender, Skip: d.neverBlocked, Private: d.cfg.Block.Private, Log: d.log,
	})
	d.seen = d.lists.NewCollector()
}

// withKeys loads the keys of lists and returns those that can be asked.
func (d *daemon) withKeys(all []dnslist.List) []dnslist.List {
	lists := make([]dnslist.List, 0, len(all))
	for _, l := range all {
		if err := l.LoadKey(); err != nil {
			// Without its key one list is of no use; the others are, and the shield above all.
			d.warn("list "+l.Name, "the DNS list "+l.Name+" is not asked", err)
			continue
		}
		d.setWarning("list "+l.Name, "", nil)
		lists = append(lists, l)
	}
	return lists
}

// reloadLists takes over the lists of a new config, and keys that changed. It reports whether that could be done: an engine that
// was not needed at the start is not there.
func (d *daemon) reloadLists(lists []dnslist.List) bool {
	if d.lists == nil {
		return len(lists) == 0
	}
	d.lists.SetLists(d.withKeys(lists))
	d.hasLists.Store(len(lists) > 0)
	return true
}

// budgetsKey is where the queries of the day stand in the state file.
const budgetsKey = "dns_budgets"

// listed says whether there are lists to ask; without them only names are asked for.
func (d *daemon) listed() bool { return d.hasLists.Load() }

// runDNS asks until ctx ends.
func (d *daemon) runDNS(ctx context.Context) error {
	defer d.resolver.Close()
	if d.lists == nil {
		<-ctx.Done()
		return nil
	}
	return d.lists.Run(ctx)
}

// noTime is what an event without a time has.
var noTime = time.Time{}.Unix()

// lookedUpLocked notes the source of an event for the lists, which never takes time. It reports whether the event is dealt with:
// an MTA's word that a list made it refuse the source counts only if the lists say so to us too.
func (d *daemon) lookedUpLocked(e *maillog.Event, now time.Time) (done bool) {
	if d.lists == nil || e.Submission { // people at home are on those lists, and log in
		return false
	}
	// A line older than the window is history: a log that is read from its beginning must not spend the day's queries.
	// In seconds: the difference of two time.Time costs more than all the rest here.
	second, at := now.Unix(), e.Time.Unix()
	old := second-at > int64(d.cfg.Block.HalfLife/time.Second) && at != noTime
	if e.Kind != maillog.DNSBLReject {
		if e.Kind != maillog.Disconnect && !old {
			d.seen.Add(e.Source, second)
		}
		return false
	}
	if !old && d.listed() && d.lists.Rejected(e.Source, e.Count) {
		d.confirmedLocked(e.Source, e.Count, now)
	}
	return true
}

// confirmedLocked counts refusals by the MTA that our own query confirms.
func (d *daemon) confirmedLocked(a netip.Addr, n int, now time.Time) {
	if v, ok := d.scorer.Confirmed(a, n, d.cfg.Weights[maillog.DNSBLReject], now); ok {
		d.judgeLocked(&v, a, now)
	}
}

// found takes in what the lists say of a source.
func (d *daemon) found(f dnslist.Finding) {
	now := time.Now()
	d.learn(&f)
	if !d.listed() {
		return // names were asked for to spare, not to accuse
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch f.RDNS {
	case resolve.StateNone:
		if v, ok := d.scorer.Nameless(f.Source, pointsNoName, now); ok {
			d.judgeLocked(&v, f.Source, now)
		}
	case resolve.StateMismatch:
		if v, ok := d.scorer.Nameless(f.Source, pointsOtherName, now); ok {
			d.judgeLocked(&v, f.Source, now)
		}
	}
	if f.Sum > 0 {
		if v, ok := d.scorer.Listed(f.Source, f.Sum, f.Words(), now); ok {
			d.judgeLocked(&v, f.Source, now)
		}
	}
	if f.Rejects > 0 && f.Listed() {
		d.confirmedLocked(f.Source, f.Rejects, now)
	}
	for _, n := range d.scorer.News() {
		d.log.Warn(n.Text, "notice", n.Key)
	}
}

// heedListsLocked adds to a verdict what the lists say of its source. It returns false if they welcome the source and the score
// does not reach that much more: it is watched on then.
func (d *daemon) heedListsLocked(v *verdict.Verdict, source netip.Addr, now time.Time) bool {
	if d.lists == nil || !d.listed() {
		return true
	}
	f, ok := d.lists.Recent(source)
	if !ok {
		return true
	}
	if v.Evidence.Lists == "" {
		v.Evidence.Lists = f.Words()
	}
	if f.Sum >= 0 || v.Prefix != v.Source || v.Cause == block.Trap {
		return true
	}
	t := d.cfg.Block.Threshold
	if v.Evidence.Score >= t+min(-f.Sum, t) { // a welcome never more than doubles the threshold
		return true
	}
	d.scorer.Refused(v.Prefix)
	if d.tellLocked("source welcome "+v.Prefix.String(), time.Hour, now) {
		d.log.Info("not blocked yet: welcome lists speak for it", "prefix", v.Prefix, "cause", v.Cause, "evidence", v.Evidence.Words())
	}
	return false
}

// knownSender says whether mail of a source was accepted before.
func (d *daemon) knownSender(a netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	acc, ok := d.scorer.Lookup(a, time.Now())
	return ok && acc.Evidence.Accepted > 0
}

// neverBlocked says whether asking about a source is a waste: nothing the lists say could block it.
func (d *daemon) neverBlocked(a netip.Addr) bool {
	switch d.table.Decide(d.prefixOf(a), time.Now()).Rule {
	case block.RuleNever, block.RuleConfig, block.RuleManualAllow:
		return true
	}
	return false
}

// dnsStatus is the part of status about DNS; suspended lists are warnings.
func (d *daemon) dnsStatus(s *control.Status, warnings map[string]string) {
	if d.lists == nil {
		return
	}
	r, l := d.resolver.Status(), d.lists.Status()
	st := &control.DNS{Asked: l.Asked, Dropped: l.Dropped, Waiting: l.Waiting, Queries: r.Queries, Lists: []control.DNSList{}}
	for _, v := range r.Servers {
		st.Resolvers = append(st.Resolvers, control.DNSServer{Server: v.Server.String(), Down: v.Down, Why: v.Why, Failures: v.Failures, Millis: v.Millis})
	}
	if r.Problem != "" {
		warnings["resolv.conf"] = "resolv.conf: " + r.Problem
	}
	for _, z := range l.Zones {
		x := control.DNSList{Zone: z.Zone, IPv4: string(z.IPv4.State), IPv6: string(z.IPv6.State), Asked: z.Asked, Listed: z.Listed, Welcomed: z.Welcomed, Errors: z.Errors, Skipped: z.Skipped, Left: z.Left, Millis: z.Millis}
		for i, f := range []dnslist.FamilyStatus{z.IPv4, z.IPv6} {
			if f.State != dnslist.Suspended || i == 1 && f.Reason == z.IPv4.Reason {
				continue
			}
			x.Reason, x.Hint = f.Reason, f.Hint
			warnings[fmt.Sprintf("list %s %d", z.Zone, i)] = fmt.Sprintf("the DNS list %s is suspended since %s: %s%s; it is tested again at %s", z.Zone, dayTime(f.Since), f.Reason, inBrackets(f.Hint), dayTime(f.Next))
		}
		st.Lists = append(st.Lists, x)
	}
	s.DNS = st
}

func inBrackets(h string) string {
	if h == "" {
		return ""
	}
	return " (" + h + ")"
}

// whyLists is what why adds from the lists.
func (d *daemon) whyLists(a netip.Addr) string {
	if d.lists == nil {
		return ""
	}
	f, ok := d.lists.Recent(a)
	if !ok {
		return ""
	}
	s := "reverse name " + f.RDNS.String()
	if w := f.Words(); w != "" {
		s = fmt.Sprintf("%s (%+g points together); ", w, f.Sum) + s
	}
	return s
}
