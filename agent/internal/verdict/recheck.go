package verdict

import (
	"net/netip"
	"time"
)

// Refused says that a verdict had no effect: the block table did not take it. The score stays, so that the next
// offence gives a verdict again; without this the source would be believed blocked until the verdict's end.
func (s *Scorer) Refused(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	if slot, ok := s.lookup(s.key(p.Addr())); ok {
		s.refused(slot)
	}
}

func (s *Scorer) refused(slot int) {
	r := s.rec(slot)
	if r.until == 0 {
		return
	}
	r.until = 0
	r.flags &^= flagAll
	if r.repeat > 0 {
		r.repeat--
	}
	s.mark(slot)
}

// Recheck asks, for each source that is believed blocked at now, whether it still is, and lets those that are not be
// judged again. It returns how many. It walks over all sources.
func (s *Scorer) Recheck(now time.Time, blocked func(netip.Prefix) bool) (n int) {
	sec := unix(now)
	for slot := range s.used {
		if r := s.rec(slot); r.until > sec && !blocked(s.prefix(s.keyAt(slot))) {
			s.refused(slot)
			n++
		}
	}
	return n
}
