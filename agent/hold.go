package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/bpf"
)

// Asked before accepted (dns.before_accept): the kernel drops the first SYN of a source that it has not seen for a day, and
// tells it here. The lists are asked, and before TCP sends the SYN again, a second later, the source is blocked or let go.
//
// A SYN can be forged, so nothing but a question may rest on it, and what comes of that is a local block (block.ApplyLocal):
// told to nobody, kept nowhere, no evidence for the scorer, and no longer than the listing.
//
// What holding has cost today outlives the agent, as the lists' budgets do: one that restarts often holds no more for it.
//
// In doubt the connection comes through: the kernel holds only as long as beat says so, which stops by itself when the
// agent dies, and by holdOff when there is nobody to ask.

const (
	holdBeat    = 500 * time.Millisecond
	holdLease   = 2 * time.Second // without a beat the kernel holds nothing after this
	holdRate    = 200             // first SYNs a second, if the lists may be asked that often
	holdAtOnce  = 256             // sources in question
	holdMargin  = 20 * time.Millisecond
	holdLeast   = 2 * time.Second  // a block ends no sooner, or the SYN that comes again would not meet it
	holdSave    = 10 * time.Second // how often the gate is written, while it moves
	knownEvery  = 6 * time.Hour
	knownStep   = 4096 // sources of the scorer that are looked at at a time
	holdAnswers = 8192 // that are remembered for why
)

// holder is what the daemon knows of held sources.
type holder struct {
	slots chan struct{}
	wake  chan struct{} // the gate closed: beat at once

	mu      sync.Mutex
	points  float64
	gate    holdGate
	kept    time.Time // when save gave the gate last
	ended   bool      // nothing is held any more
	deaf    bool      // the ring cannot be read
	asking  map[netip.Prefix]struct{}
	answers map[netip.Prefix]*heldAnswer
	order   []netip.Prefix // of answers, a ring
	next    int
	stats   control.Hold
}

// heldAnswer is what came of one question.
type heldAnswer struct {
	at    time.Time
	took  time.Duration
	words string
	found dnslist.Finding
	until time.Time // of the block; zero: there is none
}

// newHolder returns nil without before_accept.
func (d *daemon) newHolder() *holder {
	if !d.cfg.DNS.BeforeAccept || d.shield == nil {
		return nil
	}
	return &holder{
		slots: make(chan struct{}, holdAtOnce), wake: make(chan struct{}, 1), points: d.cfg.DNS.BeforePoints(d.cfg.Block.Threshold),
		gate: newHoldGate(holdBudget(d.cfg.DNS.Lists), time.Now()), asking: map[netip.Prefix]struct{}{}, answers: map[netip.Prefix]*heldAnswer{},
	}
}

// holdBudget is how many first SYNs a second are held: more than the lists may be asked would wait for nothing.
func holdBudget(lists []dnslist.List) int {
	rate := 0.0
	for _, l := range lists {
		rate = max(rate, l.Rate)
	}
	return int(min(holdRate, max(1, rate)))
}

// holdKey is where the gate stands in the state file.
const holdKey = "hold"

// resumeHold goes on with what an earlier life held today.
func (d *daemon) resumeHold() {
	saved := d.pending[holdKey]
	delete(d.pending, holdKey)
	if d.hold != nil {
		d.hold.gate.load(saved, time.Now())
	}
}

// save returns the gate, if something was held since it did so last and that is long enough ago.
func (h *holder) save() ([]byte, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if since := now.Sub(h.kept); !h.gate.news || !h.ended && since >= 0 && since < holdSave {
		return nil, false
	}
	b := h.gate.save()
	h.kept = now
	return b, b != nil
}

// retuneHold takes over the points of a new config, and how often its lists may be asked. Whether anything is held at all is
// built into the program, and stays.
func (d *daemon) retuneHold(cfg *config.Config) {
	h := d.hold
	switch {
	case cfg.DNS.BeforeAccept != (h != nil) && d.shield != nil:
		d.log.Warn("dns.before_accept is switched on or off by the next restart")
		return
	case h == nil:
		return
	}
	budget := holdBudget(cfg.DNS.Lists)
	if err := d.shield.SetHoldBudget(budget); err != nil {
		d.warn("hold budget", "the kernel goes on holding as many new sources as before", err)
		return
	}
	d.setWarning("hold budget", "", nil)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.points = cfg.DNS.BeforePoints(cfg.Block.Threshold)
	h.gate.setBudget(budget, time.Now())
}

// heldSource is what the kernel holds as one source.
func heldSource(a netip.Addr) netip.Prefix { return sourcePrefix(a, 64) }

// keepHold does its part until ctx ends. When it fails, nothing is held, and all the rest goes on.
func (d *daemon) keepHold(ctx context.Context) {
	var all sync.WaitGroup
	defer func() {
		all.Wait()
		d.hold.mu.Lock()
		d.hold.ended = true
		d.hold.mu.Unlock()
	}()
	d.tellKnown(ctx)
	all.Go(func() {
		err := d.shield.FirstSeen(ctx, func(f bpf.First) { d.first(ctx, &all, f) })
		if err != nil {
			d.hold.mu.Lock()
			d.hold.deaf = true
			d.hold.mu.Unlock()
			d.warn("hold", "new sources are not asked about before they are accepted any more", err)
		}
	})
	beat, known := time.NewTicker(holdBeat), time.NewTicker(knownEvery)
	defer beat.Stop()
	defer known.Stop()
	for {
		d.beat()
		select {
		case <-ctx.Done():
			_ = d.shield.HoldAlive(time.Time{}, time.Time{}) // it would end by itself
			return
		case <-beat.C:
		case <-d.hold.wake:
		case <-known.C:
			d.tellKnown(ctx)
		}
	}
}

// beat tells the kernel for how long it may go on holding, and ends blocks that rest on a list which is in error.
func (d *daemon) beat() {
	now := time.Now()
	h := d.hold
	v4, v6, why := d.holdOpen(now)
	until := func(open bool) time.Time {
		if !open {
			return time.Time{}
		}
		return now.Add(holdLease)
	}
	if err := d.shield.HoldAlive(until(v4), until(v6)); err != nil {
		v4, v6, why = false, false, err.Error()
	}
	h.mu.Lock()
	was := h.stats
	h.stats.IPv4, h.stats.IPv6, h.stats.Why = v4, v6, why
	var wrong []*heldAnswer
	for _, a := range h.answers {
		if now.Before(a.until) && !d.lists.Stands(&a.found) {
			wrong = append(wrong, a)
			a.until, a.words = time.Time{}, a.words+"; let go again: the list is suspended"
		}
	}
	h.mu.Unlock()
	for _, a := range wrong {
		d.letGo(a.found.Source, now)
	}
	on, wasOn := v4 || v6, was.IPv4 || was.IPv6
	if on == wasOn && (on || was.Why != "") {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case on && d.tellLocked("hold on", time.Minute, now):
		d.log.Info("new sources are asked about before they are accepted", "ipv4", v4, "ipv6", v6)
	case !on && d.tellLocked("hold off", time.Minute, now):
		d.log.Info("new sources are accepted unasked", "why", why)
	}
}

// holdOpen says of which families first SYNs may be held now.
func (d *daemon) holdOpen(now time.Time) (v4, v6 bool, why string) {
	h := d.hold
	h.mu.Lock()
	deaf, why, points := h.deaf, h.gate.open(now), h.points
	h.mu.Unlock()
	switch {
	case deaf:
		return false, false, "the kernel's news cannot be read"
	case d.marker() != nil:
		return false, false, "the shield is off"
	case why != "":
		return false, false, why
	case len(h.slots) == cap(h.slots):
		return false, false, "too many wait for an answer"
	case d.noResolver():
		return false, false, "no DNS server answers"
	}
	return d.lists.CanAsk(points)
}

// noResolver says that none of the DNS servers has answered lately.
func (d *daemon) noResolver() bool {
	for _, s := range d.resolver.Status().Servers {
		if !s.Down {
			return false
		}
	}
	return true
}

// tellKnown names the known senders to the kernel, before it would hold one of them.
func (d *daemon) tellKnown(ctx context.Context) {
	n := 0
	for from := 0; n < bpf.KnownSources && ctx.Err() == nil; {
		var list []netip.Addr
		d.mu.Lock()
		from = d.scorer.EachKnown(from, knownStep, time.Now(), func(p netip.Prefix) { list = append(list, p.Addr()) })
		d.mu.Unlock()
		if n += len(list); n > bpf.KnownSources {
			list = list[:len(list)-(n-bpf.KnownSources)]
		}
		if err := d.shield.Known(list); err != nil {
			d.warn("hold known", "known senders may have to wait a second", err)
			return
		}
		if from == 0 {
			break
		}
	}
	d.setWarning("hold known", "", nil)
	d.hold.mu.Lock()
	d.hold.stats.Known = min(n, bpf.KnownSources)
	d.hold.mu.Unlock()
}

// first takes in a first SYN. It does not wait.
func (d *daemon) first(ctx context.Context, all *sync.WaitGroup, f bpf.First) {
	now, h, key := time.Now(), d.hold, heldSource(f.Source)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stats.Held++
	if h.gate.held(now) {
		select {
		case h.wake <- struct{}{}:
		default:
		}
	}
	if _, asked := h.asking[key]; asked {
		return
	}
	select {
	case h.slots <- struct{}{}:
	default:
		h.stats.Busy++
		return
	}
	h.asking[key] = struct{}{}
	all.Go(func() {
		d.askBefore(ctx, f)
		h.mu.Lock()
		delete(h.asking, key)
		h.mu.Unlock()
		<-h.slots
	})
}

// askBefore asks about a held source and sees to what comes of it.
func (d *daemon) askBefore(ctx context.Context, f bpf.First) {
	began := time.Now()
	ans := &heldAnswer{at: began, found: dnslist.Finding{Source: f.Source}}
	if rule, ok := d.allowedSender(f.Source); ok {
		d.answered(ans, &d.hold.stats.Spared, "it is allowed by "+rule)
		return
	}
	if d.neverBlocked(f.Source) || d.knownSender(f.Source) {
		d.answered(ans, &d.hold.stats.Spared, "nothing the lists say could block it")
		return
	}
	until, unsure := f.Until.Add(-holdMargin), false
	var names chan resolve.Names
	if d.senders.ByName() { // an allow by domain may cover it
		names = make(chan resolve.Names, 1)
		var asked sync.WaitGroup
		defer asked.Wait()
		asked.Go(func() {
			ctx, cancel := context.WithDeadline(ctx, until)
			defer cancel()
			names <- d.resolver.FCrDNS(ctx, f.Source)
		})
	}
	d.hold.mu.Lock()
	points := d.hold.points
	d.hold.mu.Unlock()
	d.lists.Before(ctx, f.Source, until, points, func(found dnslist.Finding, listed bool) {
		if listed && names != nil {
			n := <-names
			if rule, _ := d.senders.Learn(f.Source, &n); rule != "" {
				d.answered(ans, &d.hold.stats.Spared, "it is allowed by "+rule)
				return
			}
			unsure = n.State == resolve.StateTemporary
		}
		now := time.Now()
		ans.found, ans.took = found, now.Sub(began)
		switch {
		case !now.Before(f.Until):
			// It is let in by now, and the log will tell what it does.
			d.answered(ans, &d.hold.stats.Unanswered, "no answer in time")
		case !listed && len(found.Unknown) > 0:
			d.answered(ans, &d.hold.stats.Unanswered, "not enough is known: "+found.Unknown[0])
		case !listed:
			d.answered(ans, &d.hold.stats.Clean, "not listed, or not enough")
		default:
			if err := d.blockBefore(ans, now); err != nil {
				d.answered(ans, &d.hold.stats.Spared, err.Error())
				return
			}
			if unsure { // as in the log path: the name is asked for again, and may open the block
				d.mu.Lock()
				d.doubtLocked(f.Source, 0, now)
				d.mu.Unlock()
			}
			d.answered(ans, &d.hold.stats.Listed, found.Words())
		}
	})
}

// blockBefore blocks a listed source.
func (d *daemon) blockBefore(ans *heldAnswer, now time.Time) error {
	f := &ans.found
	e := block.Entry{Prefix: d.heldPrefix(f.Source), Kind: block.Block, Cause: block.DNSBL, Scope: block.DNSBL.Scope(), Until: now.Add(max(f.TTL, holdLeast)), Hits: 1}
	res, err := d.table.ApplyLocal(e, now)
	if err != nil {
		return err
	}
	if res.Unenforced != "" {
		return fmt.Errorf("the kernel did not take the block: %s", res.Unenforced)
	}
	ans.until = e.Until
	d.mu.Lock()
	d.logBlockLocked(res.Entry, "asked before it was accepted: "+f.Words(), now)
	d.mu.Unlock()
	d.endSessions(e.Prefix)
	return nil
}

// heldPrefix is what of a source is blocked: not more than the address if the rest is our own network.
func (d *daemon) heldPrefix(a netip.Addr) netip.Prefix {
	p := d.prefixOf(a)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holdsOwnLocked(p) {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return p
}

// letGo ends a block of blockBefore. What refuses that, an unblock or a rule, has ended it already.
func (d *daemon) letGo(a netip.Addr, now time.Time) {
	p := d.heldPrefix(a)
	res, err := d.table.ApplyLocal(block.Entry{Prefix: p, Kind: block.Block, Cause: block.DNSBL, Scope: block.DNSBL.Scope(), Until: now, Hits: 1}, now)
	if err == nil && res.Unenforced != "" {
		d.log.Error("a block by a suspended list cannot be ended early", "source", a, "error", res.Unenforced)
	}
	d.freed(heldSource(a))
}

// answered lets the source go, or asks again about it when its block is over, counts it, and keeps the answer for why.
func (d *daemon) answered(ans *heldAnswer, count *uint64, words string) {
	h := d.hold
	ans.words = words
	what := d.shield.Release
	if !ans.until.IsZero() {
		what = d.shield.Forget
	}
	err := what(ans.found.Source)
	h.mu.Lock()
	defer h.mu.Unlock()
	*count++
	if ms := float64(ans.took) / float64(time.Millisecond); ms > 0 {
		if h.stats.Millis == 0 {
			h.stats.Millis = ms
		}
		h.stats.Millis += (ms - h.stats.Millis) / 16
	}
	if err != nil {
		ans.words += "; the kernel was not told: " + err.Error()
	}
	key := heldSource(ans.found.Source)
	if _, known := h.answers[key]; !known {
		if len(h.order) < holdAnswers {
			h.order = append(h.order, key)
		} else {
			delete(h.answers, h.order[h.next])
			h.order[h.next] = key
			h.next = (h.next + 1) % holdAnswers
		}
	}
	h.answers[key] = ans
}

// freed lets a source that was unblocked by hand through without a second question.
func (d *daemon) freed(p netip.Prefix) {
	if d.hold == nil || !p.IsSingleIP() && p != heldSource(p.Addr()) {
		return
	}
	if err := d.shield.Known([]netip.Addr{p.Addr()}); err != nil && !errors.Is(err, context.Canceled) {
		d.log.Warn("an unblocked source may have to wait a second", "prefix", p, "error", err)
	}
}

// whyHeld is what why adds of it.
func (d *daemon) whyHeld(p netip.Prefix) string {
	if d.hold == nil {
		return ""
	}
	d.hold.mu.Lock()
	defer d.hold.mu.Unlock()
	a := d.hold.answers[heldSource(p.Addr())]
	if a == nil {
		return ""
	}
	s := fmt.Sprintf("asked about at %s, before it was accepted", dayTime(a.at))
	if a.took > 0 {
		s += fmt.Sprintf(" (%d ms)", a.took.Milliseconds())
	}
	return s + ": " + a.words
}

// holdStatus is what status shows.
func (d *daemon) holdStatus() *control.Hold {
	if d.hold == nil {
		return nil
	}
	untold := d.shield.Untold()
	d.hold.mu.Lock()
	defer d.hold.mu.Unlock()
	s := d.hold.stats
	s.Points, s.Budget, s.Untold = d.hold.points, int(d.hold.gate.budget), untold
	return &s
}

// holdWords say in check what before_accept does.
func holdWords(points float64, lists []dnslist.List) string {
	names := make([]string, 0, len(lists))
	for _, l := range lists {
		names = append(names, l.Name)
	}
	slices.Sort(names)
	return fmt.Sprintf("the first connection of a source in a day waits a second while %d lists are asked; from %g points on it is refused, as long as the listing lives; at most %d a second wait", len(names), points, holdBudget(lists))
}
