package verdict

import (
	"math"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// perOffence is how many points of a list stand for one offence, for the ratio guard: a message accepted before cancels that
// much of a listing, as it cancels one unknown recipient.
const perOffence = 10

// Listed takes in what DNS lists say of a source: points are the sum over all lists, lists names them. It returns a verdict
// at the moment there is one to give; the listing alone may be enough.
//
// A listing counts once, however often it is found: the points are what the listing makes of the score at now, not what
// it adds. So a source that is asked about every hour does not reach the threshold by being asked. Points at or below
// zero change nothing: a welcome holds down what lists say (it is in the sum) and is for the caller to heed otherwise.
func (s *Scorer) Listed(source netip.Addr, points float64, lists string, now time.Time) (v Verdict, ok bool) {
	ok = s.fill(source, block.DNSBL, maillog.DNSListed, points, now, &v)
	v.Evidence.Lists = lists
	return v, ok
}

// Nameless takes in that a source has no reverse name, or none that leads back to it: points of protocol_abuse, in the
// same way.
func (s *Scorer) Nameless(source netip.Addr, points float64, now time.Time) (v Verdict, ok bool) {
	ok = s.fill(source, block.ProtocolAbuse, maillog.NoRDNS, points, now, &v)
	return v, ok
}

// fill raises the part of the score that a cause makes up to points.
func (s *Scorer) fill(source netip.Addr, c block.Cause, k maillog.Kind, points float64, now time.Time, v *Verdict) bool {
	if !source.IsValid() || !(points > 0) {
		return false
	}
	points = min(points, 1e6)
	at := unix(now)
	key := s.key(source)
	slot, known := s.lookup(key)
	if !known {
		slot = s.insert(key, at)
	}
	r := s.rec(slot)
	s.touch(slot, r, false)
	r.meet(at)
	credit, since := r.accepted, r.at
	w := s.awayOf(slot, key, r, at)
	s.forward(r, at, at)
	if s.alarms.suspended(k, at) {
		return false
	}
	if s.raw(r) < s.calm {
		s.begin(slot, r)
	}
	have := 0.0
	for i := range r.why {
		if r.why[i] == uint8(c) {
			have += r.part(i)
		}
	}
	if have > 0 && have >= 0.99*float64(r.points) {
		// What fades and is filled up again is one listing, and uses up credit once.
		r.accepted = max(r.accepted, shrink(credit, s.fade.left(r.at-since)))
	}
	add := points - have
	if !(add > 0.01*points) {
		return false
	}
	kept := s.evidence.get(slot, s.hash(key))
	if have < 1 {
		kept = s.evidence.add(slot, s.hash(key), k, 1, at)
	}
	before := s.score(r, kept, w).sum()
	r.offend(c, add, math.Max(add/perOffence, 0.1))
	return s.judge(slot, key, r, kept, k, before, at, at, now, v)
}

// Confirmed takes in n refusals by the MTA because of a list, of which the agent knows by a query of its own that they are right:
// points each.
func (s *Scorer) Confirmed(source netip.Addr, n int, points float64, now time.Time) (v Verdict, ok bool) {
	if !source.IsValid() || !(points > 0) {
		return v, false
	}
	n = min(max(n, 1), maxCount)
	at := unix(now)
	key := s.key(source)
	slot, known := s.lookup(key)
	if !known {
		slot = s.insert(key, at)
	}
	r := s.rec(slot)
	s.touch(slot, r, false)
	r.meet(at)
	w := s.awayOf(slot, key, r, at)
	s.forward(r, at, at)
	if s.alarms.suspended(maillog.DNSBLReject, at) {
		return v, false
	}
	if s.raw(r) < s.calm {
		s.begin(slot, r)
	}
	c := s.evidence.add(slot, s.hash(key), maillog.DNSBLReject, n, at)
	before := s.score(r, c, w).sum()
	r.offend(block.DNSBL, min(points, 1e6)*float64(n), float64(n))
	ok = s.judge(slot, key, r, c, maillog.DNSBLReject, before, at, at, now, &v)
	return v, ok
}
