package verdict

import (
	"net/netip"
	"time"
)

// Refused says that a verdict on p had no effect: the block table did not take it, or took less. The score stays, so
// that the next offence gives a verdict again; without this p would be believed blocked until the verdict's end.
func (s *Scorer) Refused(p netip.Prefix) {
	if !p.IsValid() {
		return
	}
	width := 32
	if p.Addr().Is6() {
		width = s.cfg.IPv6Prefix
	}
	if p.Bits() < width {
		s.refusedAreas(func(a *area) bool { return a.prefix() == p })
		return
	}
	if slot, ok := s.lookup(s.key(p.Addr())); ok {
		s.refused(slot)
	}
}

func (s *Scorer) refused(slot int) bool {
	r := s.rec(slot)
	if r.until == 0 || r.flags&flagHeld != 0 { // held: until is the end of a wait, not of a block
		return false
	}
	r.until = 0
	r.flags &^= flagAll
	if r.repeat > 0 {
		r.repeat--
	}
	s.mark(slot)
	return true
}

func (s *Scorer) refusedAreas(which func(*area) bool) (n int) {
	for i := range s.areas.sets {
		for j := range s.areas.sets[i] {
			a := &s.areas.sets[i][j]
			if a.net == 0 || a.until == 0 || !which(a) {
				continue
			}
			a.until = 0
			a.flags &^= flagAll
			if a.repeat > 0 {
				a.repeat--
			}
			s.areas.mark(i*areaSet + j)
			n++
		}
	}
	return n
}

// Recheck asks, for each source and area that is believed blocked at now, whether it still is, and lets those that are
// not be judged again. It returns how many. It walks over all of them.
func (s *Scorer) Recheck(now time.Time, blocked func(netip.Prefix) bool) (n int) {
	sec := unix(now)
	for slot := range s.used {
		if r := s.rec(slot); r.until > sec && !blocked(s.prefix(s.keyAt(slot))) && s.refused(slot) {
			n++
		}
	}
	return n + s.refusedAreas(func(a *area) bool { return a.until > sec && !blocked(a.prefix()) })
}
