package verdict

import (
	"net/netip"
	"time"
)

// EachKnown calls visit for the known senders among n sources from the from-th on, those with credit for accepted mail,
// and returns where to go on, or 0 at the end. In parts, because others wait meanwhile; a source that comes or goes in between
// may be missed.
func (s *Scorer) EachKnown(from, n int, now time.Time, visit func(netip.Prefix)) (next int) {
	at := unix(now)
	for slot := from; slot < s.used; slot++ {
		if slot == from+n {
			return slot
		}
		r := s.rec(slot)
		credit := r.accepted
		if at > r.at {
			credit = shrink(credit, s.fade.left(at-r.at))
		}
		if credit >= 1e-3 || r.acceptedNow > 0 {
			visit(s.prefix(s.keyAt(slot)))
		}
	}
	return 0
}
