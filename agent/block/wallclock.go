package block

import (
	"fmt"
	"time"
)

// wallClock says whether the wall clock may be believed enough to forget entries for good. A clock that is wrong for
// a moment (a dead battery before NTP answers, a slip of NTP) must not expire everything; a clock that was wrong must
// not keep the table from expiring for ever. So doubt is bounded: after settle of running without another step
// (measured by the monotonic clock) the clock is believed, whatever it says.
//
// There is doubt
//   - at the start, if the clock is behind the newest entry of the state file, or more than stepMost ahead of it (the
//     host was off, or its clock is wrong: both look alike). It ends when the clock comes to stand right by the
//     newest entry, or is set forward from behind it.
//   - when the wall clock steps by more than stepMost against the monotonic clock. It ends when it steps back.
//
// Only expiry waits. What has ended by the clock stops dropping all the same, and comes back if the clock does.
type wallClock struct {
	uptime func() time.Duration
	first  time.Time // where uptime begins if it is nil
	newest time.Time // of the state file

	known  bool
	origin time.Time // believed: the wall clock's time at uptime 0

	doubt  bool
	behind bool
	other  time.Time // doubted: the same
	since  time.Duration
	words  string
}

const (
	settle   = 15 * time.Minute
	stepMost = time.Hour
	lagMost  = time.Minute // stamps run a little ahead of the clock
)

func (w *wallClock) right(now time.Time) bool {
	if w.first.IsZero() {
		w.first = now
	}
	// The difference of two times with monotonic readings is monotonic; of two without (replay) it is the wall
	// clock's, and no step is seen.
	up := now.Sub(w.first)
	if w.uptime != nil {
		up = w.uptime()
	}
	now = now.Round(0)
	origin := now.Add(-up)
	near := func(a time.Time) bool { return origin.Sub(a).Abs() <= stepMost }
	behind := now.Add(lagMost).Before(w.newest)
	switch {
	case w.known && near(w.origin),
		!w.known && w.newest.IsZero(),
		!w.known && !behind && (w.doubt && w.behind || !now.After(w.newest.Add(stepMost+up))):
		w.known, w.origin, w.doubt, w.words = true, origin, false, ""
		return true
	}
	if !w.doubt || !near(w.other) {
		w.doubt, w.other, w.since, w.behind = true, origin, up, behind && !w.known
		switch {
		case w.known:
			w.words = fmt.Sprintf("the clock was set by %s", origin.Sub(w.origin).Round(time.Second))
		case behind:
			w.words = fmt.Sprintf("the clock is behind the newest entry (%s)", w.newest.Format(time.RFC3339))
		default:
			w.words = fmt.Sprintf("the clock is %s ahead of the newest entry", now.Sub(w.newest).Round(time.Second))
		}
	}
	if up-w.since >= settle {
		w.known, w.origin, w.doubt, w.words = true, origin, false, ""
		return true
	}
	return false
}
