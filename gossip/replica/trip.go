package replica

import "time"

// trip estimates how long a peer takes to answer a pull, as TCP does for its acknowledgements (RFC 6298): the smoothed
// time, and how far it strays from that. What waited in this node's own inbox is not part of it; Net.Behind tells that.
//
// Each pull has a number of its own, which its reply repeats, so it is clear which one of two was answered: what Karn's
// algorithm leaves out, the repeated ones, is measured here too, as with TCP's timestamps (RFC 7323). Else a peer that
// is always slower than the first timeout would never be measured.
type trip struct {
	smooth, strays time.Duration
	measured       bool
}

func (t *trip) measure(d time.Duration) {
	d = min(max(d, 0), maxTrip) // the clock may have been set
	if !t.measured {
		t.smooth, t.strays, t.measured = d, d/2, true
		return
	}
	t.strays += ((t.smooth - d).Abs() - t.strays) / 4
	t.smooth += (d - t.smooth) / 8
}

// timeout is how long to wait for an answer.
func (t *trip) timeout() time.Duration {
	return min(max(t.smooth+4*t.strays, pullTimeout), maxTrip)
}
