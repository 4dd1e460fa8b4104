package block

import (
	"fmt"
	"testing"
	"time"
)

// hourly is a table with a block for each of 48 hours, as the state file of an earlier run would give it back, under
// a monotonic clock that the test turns.
func hourly(t *testing.T) (tab *Table, sleep func(time.Duration)) {
	t.Helper()
	var up time.Duration
	tab = New(Options{Origin: "mx1", Uptime: func() time.Duration { return up }})
	for i := range 48 {
		e := auto("198.51.100.7", Dictionary, time.Duration(i+1)*time.Hour, t0)
		e.Prefix = pfx(fmt.Sprintf("198.51.100.%d", i))
		e.Origin, e.Stamp, e.Since = "mx1", StampAt(t0), t0
		if _, err := tab.Load(e); err != nil {
			t.Fatal(err)
		}
	}
	return tab, func(d time.Duration) { up += d }
}

func TestWallClock(t *testing.T) {
	type step struct {
		run  time.Duration // how long the agent has run since the step before
		wall time.Duration // what the wall clock says, from t0
		gone int
	}
	const h, m = time.Hour, time.Minute
	for name, steps := range map[string][]step{
		"right":                               {{0, m, 0}, {59 * m, h, 1}, {h, 2 * h, 1}},
		"behind at the start, then right":     {{0, -30 * h, 0}, {m, -30*h + m, 0}, {m, 3 * h, 3}, {h, 4 * h, 1}},
		"behind for good":                     {{0, -30 * h, 0}, {14 * m, -30*h + 14*m, 0}, {m, -30*h + 15*m, 0}, {31 * h, h + 15*m, 1}},
		"ahead at the start, then right":      {{0, 47 * h, 0}, {m, 47*h + m, 0}, {m, h / 2, 0}, {h, h + h/2, 1}},
		"off for a day":                       {{0, 24 * h, 0}, {14 * m, 24*h + 14*m, 0}, {m, 24*h + 15*m, 24}},
		"a moment in the future":              {{0, m, 0}, {m, 40 * h, 0}, {m, 40*h + m, 0}, {m, 4 * m, 0}, {h, h + 4*m, 1}},
		"a moment in the past":                {{0, 30 * m, 0}, {m, -40 * h, 0}, {m, 32 * m, 0}, {h, h + 32*m, 1}},
		"set forward for good":                {{0, m, 0}, {m, 10 * h, 0}, {15 * m, 10*h + 15*m, 10}},
		"set forward again and again":         {{0, m, 0}, {10 * m, 10 * h, 0}, {10 * m, 20 * h, 0}, {10 * m, 30 * h, 0}, {15 * m, 30*h + 15*m, 30}},
		"slewed, and small steps":             {{0, m, 0}, {h, h + 30*m, 1}, {h, 3 * h, 2}, {h, 4*h + 30*m, 1}},
		"suspended for less than is believed": {{0, m, 0}, {m, h, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			tab, sleep := hourly(t)
			for i, s := range steps {
				sleep(s.run)
				if got := tab.Expire(t0.Add(s.wall)); got != s.gone {
					t.Fatalf("step %d, the clock at t0%+v: %d expired, want %d; doubt %q", i, s.wall, got, s.gone, tab.Doubt())
				}
			}
			if tab.Doubt() != "" {
				t.Errorf("still in doubt: %s", tab.Doubt())
			}
		})
	}
}

// TestFutureBlockDoesNotPoison: one block made while the clock was ten years ahead must not keep the table from
// expiring afterwards, in this run or the next.
func TestFutureBlockDoesNotPoison(t *testing.T) {
	far := t0.Add(10 * 365 * 24 * time.Hour)
	tab := New(Options{Origin: "mx1"})
	r := apply(t, tab, auto("198.51.100.1", Dictionary, time.Hour, far), far)
	apply(t, tab, auto("198.51.100.2", Dictionary, time.Hour, t0), t0)
	if n := tab.Expire(t0.Add(2 * time.Hour)); n != 1 {
		t.Errorf("%d expired, want 1", n)
	}
	next := New(Options{Origin: "mx1"})
	if _, err := next.Load(r.Entry); err != nil {
		t.Fatal(err)
	}
	apply(t, next, auto("198.51.100.2", Dictionary, time.Minute, t0), t0)
	for d := time.Duration(0); d < 20*time.Minute; d += time.Second {
		next.Expire(t0.Add(d))
	}
	if c := next.Count(t0.Add(20 * time.Minute)); c.Entries != 1 {
		t.Errorf("%d entries, want the one of the future", c.Entries)
	}
	// Evidence against that address brings its end back to what evidence may do.
	r = apply(t, next, auto("198.51.100.1", Dictionary, time.Hour, t0), t0)
	if r.Entry.Until.After(t0.Add(MaxAutomatic + time.Second)) {
		t.Errorf("blocked until %s", r.Entry.Until)
	}
}

// TestDoubtStopsDropping: while expiry waits, what has ended does not drop and is not counted, and comes back with
// the clock.
func TestDoubtStopsDropping(t *testing.T) {
	tab, s := newTable(t)
	var up time.Duration
	tab.wall.uptime = func() time.Duration { return up }
	apply(t, tab, auto("198.51.100.7", Dictionary, time.Hour, t0), t0)
	apply(t, tab, Entry{Prefix: pfx("203.0.113.7"), Kind: Allow, Cause: Manual, Until: t0.Add(time.Hour)}, t0)
	apply(t, tab, manual("203.0.113.0/24", time.Time{}), t0)
	tab.Expire(t0)
	wrong := t0.Add(100 * time.Hour)
	up += time.Second
	if n := tab.Expire(wrong); n != 0 {
		t.Fatalf("%d expired", n)
	}
	if c := tab.Count(wrong); c.Blocks != 1 || c.Allows != 0 || c.Entries != 3 {
		t.Errorf("%+v", c)
	}
	if got := s.scope(pfx("203.0.113.7").Addr(), wrong); got != ScopeAll {
		t.Errorf("the hole of an ended allow is open: %s", got)
	}
	if _, err := tab.Resync(s.all(), t0.Add(2*time.Second), true); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]Scope{"198.51.100.7": ScopeMX, "203.0.113.7": ScopeNone, "203.0.113.8": ScopeAll} {
		if got := s.scope(pfx(p).Addr(), t0.Add(2*time.Second)); got != want {
			t.Errorf("%s: %s, want %s", p, got, want)
		}
	}
}
