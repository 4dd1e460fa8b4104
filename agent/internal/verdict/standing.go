package verdict

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// This file is what speaks for a source beside the messages it had accepted: whom it knows here, what it has to lose, and
// whether it is one of us.

// reach is who got mail of a source during its burst: how many deliveries, halved as the score is, and which recipients, a
// bit each.
type reach struct {
	at   uint32  // the time got is for
	got  float32 // deliveries
	seen [4]uint32
}

// distinct estimates how many recipients, by linear counting over 128 bits: to a tenth or so up to 200.
func (c *reach) distinct() float64 {
	free := 128
	for _, w := range c.seen {
		free -= bits.OnesCount32(w)
	}
	return -128 * math.Log(max(1, float64(free))/128)
}

// recipient takes in that a message of the source was delivered to somebody. It matters only during a burst. Where that is the first
// word that the message was not thrown away it forgives what a message of another MTA forgives at once.
func (s *Scorer) recipient(e *maillog.Event, now time.Time) {
	key := s.key(e.Source)
	at, nowSec := times(e, now)
	h := s.hash(key)
	s.meetsCrowd(key, h, e, at, nowSec)
	_, slot, ok := s.find(key, h)
	if !ok || s.rec(slot).flags&flagBurst == 0 {
		return
	}
	if e.MTA.Undoes() {
		s.rec(slot).forgive(forgiven)
		s.mark(slot)
	}
	c := s.evidence.get(slot, h)
	if c == nil {
		return
	}
	r := &c.reach
	r.got = float32(min(1e6, s.faded(r, at)+1))
	r.at = max(r.at, at)
	hi, _ := bits.Mul64(e.User, 128)
	r.seen[hi>>5] |= 1 << (hi & 31)
	s.mark(slot)
}

// faded is the deliveries as they count at a time.
func (s *Scorer) faded(r *reach, at uint32) float64 {
	if at <= r.at {
		return float64(r.got)
	}
	return float64(r.got) * s.decay.left(at-r.at)
}

// reach is the credit for having reached recipients of ours, in offences: one and a half for each, and for repeated ones
// only once they are so many that nobody has guessed them.
func (s *Scorer) reach(c *counts, at uint32) float64 {
	if c == nil || c.reach.got == 0 {
		return 0
	}
	got := s.faded(&c.reach, at)
	if n := c.reach.distinct(); n < knows {
		got = min(got, n)
	}
	return known * got
}

const reachStored = 4 + 4 + 4*4

// store appends a reach, or nothing if there is none.
func (c *reach) store(b []byte) []byte {
	if c.got == 0 {
		return b
	}
	le := binary.LittleEndian
	b = le.AppendUint32(le.AppendUint32(b, c.at), math.Float32bits(c.got))
	for _, w := range c.seen {
		b = le.AppendUint32(b, w)
	}
	return b
}

func (c *reach) load(b []byte) error {
	le := binary.LittleEndian
	c.at, c.got = le.Uint32(b), math.Float32frombits(le.Uint32(b[4:]))
	if !(c.got >= 0 && c.got <= 1e6) {
		return fmt.Errorf("%w: impossible reach", errRecord)
	}
	for i := range c.seen {
		c.seen[i] = le.Uint32(b[8+4*i:])
	}
	return nil
}

// pays says that a known sender gives a hundred messages of its credit for each of n trap hits.
func (r *record) pays(n int) bool {
	cost := float32(standing * n)
	if !r.known(maillog.Trap) || r.accepted < cost {
		return false
	}
	r.accepted -= cost
	return true
}

// SetOwnMX says which addresses are MXs of our own domains, as DNS has them; it replaces what was said before. Such a source,
// and an area with one in it, is never blocked automatically. At most 1000 of them are kept.
func (s *Scorer) SetOwnMX(list []netip.Addr) {
	s.own = make(map[key]netip.Addr, len(list))
	for _, a := range list {
		if a = a.WithZone("").Unmap(); a.IsValid() && !a.IsUnspecified() && len(s.own) < 1000 {
			s.own[s.key(a)] = a
		}
	}
}

// ownInside says whether one of them lies in p.
func (s *Scorer) ownInside(p netip.Prefix) bool {
	for _, a := range s.own {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
