package main

import (
	"context"
	"maps"
	"math"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/gossip/replica"
)

// This file wires evidence across nodes: what the scorer has against a source goes to the other nodes, and what they have
// into the scorer. A node that has something against a source tells the others; those who know something good of it, or more
// bad, answer. For the answers a verdict waits a moment, once: else a list host with stale recipients here and much
// mail there would be blocked before anybody could say so.

const (
	answerWait = 300 * time.Millisecond
	answerStep = 25 * time.Millisecond // they are judged together that become due within it
	askedLife  = 10 * time.Minute      // after that it is asked again
	maxAsked   = 100_000
)

// asking is which sources the others were told of, and what waits for their answers. Guarded by daemon.mu.
type asking struct {
	asked   map[netip.Prefix]time.Time // when
	waiting map[netip.Prefix]struct{}
	swept   time.Time
	kick    chan struct{} // something waits
}

func (a *asking) init() {
	a.asked, a.waiting, a.kick = map[netip.Prefix]time.Time{}, map[netip.Prefix]struct{}{}, make(chan struct{}, 1)
}

// evidenceOptions says how evidence of other nodes counts here.
func (d *daemon) evidenceOptions() replica.EvidenceOptions {
	t := d.cfg.Block.Threshold
	return replica.EvidenceOptions{Threshold: t, HalfLife: d.cfg.Block.HalfLife, Floor: uint32(max(1, t/10))}
}

// sharedPrefix is what others call a source; not ok: scores here are of something wider than they know.
func (d *daemon) sharedPrefix(a netip.Addr) (p netip.Prefix, ok bool) {
	if a.Is6() && d.cfg.Block.IPv6Prefix < 64 {
		return p, false
	}
	return sourcePrefix(a, 64), true
}

// shareLocked tells the others what an event made of its source.
func (d *daemon) shareLocked(e *maillog.Event, now time.Time) {
	if d.replica == nil {
		return
	}
	if d.cfg.Weights[e.Kind] == 0 || e.Kind == maillog.AuthFailure {
		if e.Kind != maillog.Delivered || !d.known(e.Source) {
			return
		}
	}
	p, ok := d.sharedPrefix(e.Source)
	if !ok {
		return
	}
	bad, good, ok := d.scorer.Own(e.Source, now)
	if ok && d.replica.Share(p, whole(bad), whole(good)) {
		d.askedLocked(p, now)
		d.said()
		d.elsewhereLocked(p, now) // they may have told of it before it came here
	}
}

// known says whether a source was told of lately.
func (d *daemon) known(a netip.Addr) bool {
	_, ok := d.asking.asked[sourcePrefix(a, 64)]
	return ok
}

func whole(x float64) uint32 { return uint32(math.Round(min(max(x, 0), 1e6))) }

// askedLocked notes that the others are told of a source now, unless they were before. It returns when.
func (d *daemon) askedLocked(p netip.Prefix, now time.Time) (at time.Time, ok bool) {
	a := &d.asking
	if at, ok = a.asked[p]; ok && now.Sub(at) < askedLife && !now.Before(at) {
		return at, true
	}
	if len(a.asked) >= maxAsked {
		if now.Sub(a.swept) > time.Second {
			a.swept = now
			maps.DeleteFunc(a.asked, func(_ netip.Prefix, t time.Time) bool { return now.Sub(t) >= askedLife })
		}
		if len(a.asked) >= maxAsked {
			return at, false
		}
	}
	a.asked[p] = now
	return now, true
}

// waitLocked says whether a verdict must wait for what the others have to say. The scorer calls it.
func (d *daemon) waitLocked(source netip.Prefix, now time.Time) bool {
	if d.replica == nil || d.alive.Load() == 0 {
		return false
	}
	p, ok := d.sharedPrefix(source.Addr())
	if !ok {
		return false
	}
	at, ok := d.askedLocked(p, now)
	if !ok || now.Sub(at) >= answerWait {
		return false
	}
	d.asking.waiting[p] = struct{}{}
	select {
	case d.asking.kick <- struct{}{}:
	default:
	}
	return true
}

// keepAsking judges those whose wait is over.
func (d *daemon) keepAsking(ctx context.Context) error {
	if d.replica == nil {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.asking.kick:
		}
		for wait := d.judgeWaiting(time.Now()); wait > 0; wait = d.judgeWaiting(time.Now()) {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
		}
	}
}

// judgeWaiting judges those whose wait is over, and returns how long the next one has to wait; 0: there is none.
func (d *daemon) judgeWaiting(now time.Time) (wait time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for p := range d.asking.waiting {
		left := answerWait - now.Sub(d.asking.asked[p])
		if left > 0 && left <= answerWait {
			if wait == 0 || left < wait {
				wait = max(left, answerStep)
			}
			continue
		}
		delete(d.asking.waiting, p)
		d.elsewhereLocked(p, now)
	}
	return wait
}

// elsewhereLocked puts what the others know of a source to the scorer.
func (d *daemon) elsewhereLocked(p netip.Prefix, now time.Time) {
	bad, good := d.replica.Elsewhere(p)
	if v, ok := d.scorer.Elsewhere(p.Addr(), bad, float64(good), now); ok {
		d.judgeLocked(&v, p.Addr(), now)
	}
	for _, n := range d.scorer.News() {
		d.log.Warn(n.Text, "notice", n.Key)
	}
}

// heard takes in that the others told something new of sources.
func (d *daemon) heard(list []replica.HeardEvidence) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, h := range list {
		a := h.Source.Addr()
		if p, ok := d.sharedPrefix(a); !ok || p != h.Source {
			continue
		}
		bad, good, ok := d.scorer.Own(a, now)
		if !ok {
			continue
		}
		if h.Asks && good >= 0.5 && d.replica.Answer(h.Source, whole(bad), whole(good)) {
			d.said()
		}
		d.elsewhereLocked(h.Source, now)
	}
}

// sparedRules keep those from being blocked by other nodes whose block would stop much of the mail of this one.
func (d *daemon) sparedRules() (list []block.Never) {
	if d.replica == nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.scorer.Spared(time.Now()) {
		n := block.Never{Prefix: s.Prefix, Rule: s.Why, Sender: true}
		if s.Logins {
			n.Ports = block.ScopeSubmission
		}
		list = append(list, n)
	}
	return list
}
