package main

import (
	"context"
	"encoding/json"
	"net/netip"
	"sync"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/agent/internal/senders"
	"github.com/mxshield/mxshield/agent/internal/verdict"
)

// This file wires the allows by domain: reverse names are asked for at the first sight of a source, so that a verdict hardly
// ever waits for them. Where they are not known yet it waits for a moment, beside the log path; where they cannot be found out
// in time the source is blocked and asked for again, since a blocked host shows up in no log any more.

// Bounds of that.
const (
	namePatience = time.Second
	maxHeld      = 256    // verdicts that wait at once; further ones do not wait
	maxUnsure    = 10_000 // blocked sources whose names are asked for again
	unsureEvery  = 2 * time.Second
	unsureAtOnce = 16
)

// unsureAfter is when names that could not be found out are asked for again.
var unsureAfter = [...]time.Duration{10 * time.Second, time.Minute, 10 * time.Minute, time.Hour, 6 * time.Hour}

// namesParts are the daemon's parts for that. Its lock guards all but the first two.
type namesParts struct {
	senders *senders.Set // allows by name
	toAsk   chan held

	held     map[netip.Prefix]held // verdicts that wait for names, by what they would block
	heldNews bool                  // it differs from what the state file says
	unsure   map[netip.Addr]unsure
}

// held is a verdict that waits. It stands in the state file too: its lines will not be read again.
type held struct {
	Verdict verdict.Verdict `json:"verdict"`
	Source  netip.Addr      `json:"source"`
}

type unsure struct {
	next  time.Time
	tries int
}

const heldKey = "held"

// learn takes in the reverse names that the engine has found.
func (d *daemon) learn(f *dnslist.Finding) {
	if rule, news := d.senders.Learn(f.Source, &resolve.Names{State: f.RDNS, Verified: f.Names}); news {
		d.log.Debug("a source belongs to an allowed domain", "source", f.Source, "rule", rule)
	}
}

// holdLocked lets a verdict wait if the names of its source matter and are not known. Whoever holds it enters it later.
func (d *daemon) holdLocked(v *verdict.Verdict, source netip.Addr) bool {
	if !d.senders.ByName() || d.resolver == nil {
		return false
	}
	if _, ok := d.allowedSender(source); ok {
		return false
	}
	if d.lists != nil {
		// A /64 is asked about as one, by the first of its addresses that was seen.
		if f, ok := d.lists.Recent(source); ok && f.Source == source {
			switch f.RDNS {
			case resolve.StateVerified, resolve.StateNone, resolve.StateMismatch:
				d.learn(&f) // it may be on its way still
				return false
			}
		}
	}
	if _, waits := d.held[v.Prefix]; waits {
		return true
	}
	h := held{*v, source}
	if len(d.held) < maxHeld && !d.resolver.Deaf() {
		select {
		case d.toAsk <- h:
			d.held[v.Prefix], d.heldNews = h, true
			return true
		default:
		}
	}
	d.doubtLocked(source, 0, time.Now())
	return false
}

// heldNewsLocked returns the verdicts that wait, for the state file, if they are others than it has.
func (d *daemon) heldNewsLocked() ([]byte, bool) {
	if !d.heldNews {
		return nil, false
	}
	d.heldNews = false
	list := make([]held, 0, len(d.held))
	for _, h := range d.held {
		list = append(list, h)
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, false
	}
	return b, true
}

// resumeHeld goes on with the verdicts that waited when the agent was killed.
func (d *daemon) resumeHeld() {
	var list []held
	if b := d.pending[heldKey]; len(b) > 0 {
		if err := json.Unmarshal(b, &list); err != nil {
			d.log.Warn("verdicts that waited for a name cannot be read from the state file; the sources are watched on", "error", err)
		}
	}
	delete(d.pending, heldKey)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range list[:min(len(list), maxHeld)] {
		h := &list[i]
		if h.Source.IsValid() && h.Verdict.Prefix.IsValid() && h.Verdict.Source.IsValid() && h.Verdict.Cause != block.Manual && h.Verdict.Until.After(now) {
			d.judgeLocked(&h.Verdict, h.Source, now)
		}
	}
	d.heldNews = len(list) > 0
}

// askNames asks for the names that verdicts wait for, and for those of blocked sources that could not be found out in time.
func (d *daemon) askNames(ctx context.Context) {
	var all sync.WaitGroup
	again := time.NewTicker(unsureEvery)
	defer again.Stop()
	for {
		select {
		case h := <-d.toAsk:
			all.Go(func() { d.settle(ctx, h) })
			continue
		case <-again.C:
			for _, a := range d.unsureDue(time.Now()) {
				all.Go(func() { d.askAgain(ctx, a) })
			}
			continue
		case <-ctx.Done():
		}
		break
	}
	all.Wait()
	for { // what nobody began with is entered all the same
		select {
		case h := <-d.toAsk:
			d.settle(ctx, h)
		default:
			return
		}
	}
}

// settle waits for the names of a source, for a moment, and enters the verdict.
func (d *daemon) settle(ctx context.Context, h held) {
	ask, cancel := context.WithTimeout(ctx, namePatience)
	names := d.resolver.FCrDNS(ask, h.Source)
	cancel()
	d.senders.Learn(h.Source, &names)
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.held, h.Verdict.Prefix)
	d.heldNews = true
	d.enterLocked(&h.Verdict, h.Source, now)
	if names.State == resolve.StateTemporary {
		d.doubtLocked(h.Source, 0, now)
	}
}

// doubtLocked sees to it that the names of a source are asked for again.
func (d *daemon) doubtLocked(a netip.Addr, tries int, now time.Time) {
	if _, known := d.unsure[a]; tries >= len(unsureAfter) || !known && len(d.unsure) >= maxUnsure {
		delete(d.unsure, a)
		return
	}
	d.unsure[a] = unsure{now.Add(unsureAfter[tries]), tries}
}

// unsureDue returns some sources whose names are to be asked for again.
func (d *daemon) unsureDue(now time.Time) (list []netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for a, u := range d.unsure {
		if len(list) == unsureAtOnce {
			break
		}
		if now.Before(u.next) && u.next.Sub(now) <= unsureAfter[len(unsureAfter)-1] {
			continue
		}
		if !d.table.Decide(netip.PrefixFrom(a, a.BitLen()), now).Drop {
			delete(d.unsure, a)
			continue
		}
		list = append(list, a)
		d.unsure[a] = unsure{now.Add(time.Minute), u.tries} // while it is asked for
	}
	return list
}

func (d *daemon) askAgain(ctx context.Context, a netip.Addr) {
	ask, cancel := context.WithTimeout(ctx, 2*namePatience)
	names := d.resolver.FCrDNS(ask, a)
	cancel()
	rule, news := d.senders.Learn(a, &names)
	now := time.Now()
	was := d.table.Decide(netip.PrefixFrom(a, a.BitLen()), now)
	d.mu.Lock()
	defer d.mu.Unlock()
	if names.State == resolve.StateTemporary {
		d.doubtLocked(a, d.unsure[a].tries+1, now)
		return
	}
	delete(d.unsure, a)
	if news && was.Rule == block.RuleBlock {
		d.log.Info("was blocked before its name could be found out: it is let in, an allowed sender", "source", a, "by", rule)
	}
}
