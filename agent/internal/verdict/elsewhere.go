package verdict

import (
	"math"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// This file is what other nodes of a cluster know of a source: see Elsewhere.

// away is what they have against a source, and what speaks for it there.
type away struct {
	points   float32 // decaying as the score does
	accepted float32 // messages, as was told
	spent    float32 // of these, what has cancelled offences here that faded since
	at       uint32  // the time points is for
}

// maxAway bounds how many sources the others may tell of.
const maxAway = 1 << 16

func (w *away) pointsAt(at uint32, decay *halving) float64 {
	if at <= w.at {
		return float64(w.points)
	}
	return float64(w.points) * decay.left(at-w.at)
}

func (w *away) credit() float64 { return float64(max(0, w.accepted-w.spent)) }

// awayOf returns what others know of the source of a record that is about to be brought forward to the time at, nil if
// nothing. What cancels offences here is used up as they fade, as own credit is.
func (s *Scorer) awayOf(slot int, k key, r *record, at uint32) *away {
	if len(s.away) == 0 {
		return nil
	}
	w := s.away[k]
	if w == nil || at <= r.at || w.accepted == 0 {
		return w
	}
	own := float64(r.accepted) + s.reach(s.evidence.get(slot, s.hash(k)), r.at)
	use := min(max(0, float64(r.offences)-own), w.credit())
	w.spent += float32(use * (1 - s.decay.left(at-r.at)))
	return w
}

// putAway keeps what others know of a source. When there is no room what is older than two half-lives goes.
func (s *Scorer) putAway(k key, points, accepted float64, at uint32) *away {
	w := s.away[k]
	if w == nil {
		if len(s.away) >= maxAway {
			old := uint32(2 * s.cfg.HalfLife / time.Second)
			for k, w := range s.away {
				if at-min(at, w.at) > old {
					delete(s.away, k)
				}
			}
			if len(s.away) >= maxAway {
				return nil
			}
		}
		if s.away == nil {
			s.away = map[key]*away{}
		}
		w = &away{}
		s.away[k] = w
	}
	w.points, w.accepted, w.at = float32(min(max(points, 0), 1e6)), float32(min(max(accepted, 0), 1e6)), at
	return w
}

// Elsewhere takes in what the other nodes of a cluster have against a source at now, in points before credit, and how many
// messages speak for it there. It replaces what was said before. So an attacker that spreads thin is seen by all
// together, and a host that delivers to one node is known to the others.
//
// The points count as offences of perOffence points each, the messages as credit, which is used up here as own credit is. They count
// for a source only while there are offences of its own here, other than failed logins: what others
// saw is theirs to block for.
func (s *Scorer) Elsewhere(source netip.Addr, points, accepted float64, now time.Time) (v Verdict, ok bool) {
	if !source.IsValid() {
		return v, false
	}
	k := s.key(source)
	slot, ok := s.lookup(k)
	if !ok {
		return v, false
	}
	r, at := s.rec(slot), unix(now)
	w := s.awayOf(slot, k, r, at)
	s.forward(r, at, at)
	c := s.evidence.get(slot, s.hash(k))
	before := s.score(r, c, w).sum()
	if w != nil || points > 0 || accepted > 0 {
		w = s.putAway(k, points, accepted, at)
	}
	s.mark(slot)
	if r.flags&flagBurst == 0 || r.points == 0 || s.alarms.suspended(maillog.UnknownRecipient, at) {
		return v, false
	}
	if w != nil {
		s.paysAway(r, w)
	}
	ok = s.judge(slot, k, r, c, maillog.UnknownRecipient, before, at, at, now, &v)
	return v, ok
}

// paysAway lets what a known sender delivered elsewhere pay for trap hits here, at the same price.
func (s *Scorer) paysAway(r *record, w *away) {
	weight := s.cfg.Weights[maillog.Trap]
	part := [2]float64{r.part(0), r.part(1)}
	for i, why := range r.why {
		if why != uint8(block.Trap) || weight == 0 || part[i] == 0 {
			continue
		}
		cost := standing * math.Ceil(part[i]/weight)
		if w.credit() < cost {
			return
		}
		w.spent += float32(cost)
		r.points = float32(max(0, float64(r.points)-part[i]))
		part[i] = 0
		r.share(part)
		return
	}
}

// Own returns what this node alone knows of a source at now, to be told to others: points before credit, without those of DNS
// lists (each node asks them itself) and of failed logins, and the messages that speak for it.
func (s *Scorer) Own(source netip.Addr, now time.Time) (points, accepted float64, ok bool) {
	if !source.IsValid() {
		return 0, 0, false
	}
	k := s.key(source)
	slot, ok := s.lookup(k)
	if !ok {
		return 0, 0, false
	}
	r, at := *s.rec(slot), unix(now)
	s.forward(&r, at, at)
	points = float64(r.points)
	for i, why := range r.why {
		if why == uint8(block.DNSBL) {
			points -= r.part(i)
		}
	}
	return max(0, points), float64(r.accepted) + s.reach(s.evidence.get(slot, s.hash(k)), at), true
}

// Senders counts the sources with accepted mail to their credit. It walks over all.
func (s *Scorer) Senders() (n int) {
	for slot := range s.used {
		if s.rec(slot).accepted >= 0.5 {
			n++
		}
	}
	return n
}

// A Spare is a source that is never blocked automatically, because mail or logins of others would be blocked with it.
type Spare struct {
	Prefix netip.Prefix
	Why    string // in a few words
	Logins bool   // only the submission ports stay open to it
}

// Spared returns those that are spared at now for what they bring, but for the MXs of our own domains, of which the caller
// knows.
func (s *Scorer) Spared(now time.Time) (list []Spare) {
	at := unix(now)
	seen := map[key]bool{}
	for _, set := range s.crowds.sets {
		for i := range set {
			if c := &set[i]; c.key != (key{}) && c.mail() {
				seen[c.key] = true
				list = append(list, Spare{s.prefix(c.key), "the mail of many senders that comes from it", false})
			}
		}
	}
	for i := range s.share.hours {
		h := &s.share.hours[i]
		for _, k := range h.keys[:h.n] {
			if !seen[k] && s.share.of(k, at).great() {
				seen[k] = true
				list = append(list, Spare{s.prefix(k), "its share of the accepted mail, a tenth or more in the last 24 h", false})
			}
		}
	}
	for _, set := range s.crowds.sets {
		for i := range set {
			if c := &set[i]; c.key != (key{}) && c.logins() && !seen[c.key] {
				list = append(list, Spare{s.prefix(c.key), "the many people that log in from it", true})
			}
		}
	}
	return list
}
