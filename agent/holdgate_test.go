package main

import (
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/bpf"
)

// offer lets n first SYNs a second come for d, of which those are held for which the gate is open, and returns how many
// that were.
func (g *holdGate) offer(now *time.Time, d time.Duration, n int) (held int) {
	const step = time.Second
	for end := now.Add(d); now.Before(end); *now = now.Add(step) {
		for range min(n, int(g.budget)) {
			if g.open(*now) == "" {
				g.held(*now)
				held++
			}
		}
	}
	return held
}

// What is usual is always held; a flood closes the gate within a minute, for longer each time, and does not keep it closed.
func TestHoldGate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	g := newHoldGate(50, now)
	if n := g.offer(&now, time.Minute, 24); n != 60*24 {
		t.Errorf("%d held", n)
	}
	if n := g.offer(&now, time.Minute, 1000); n < 750 || n > 2000 || !strings.Contains(g.open(now), "flood") {
		t.Errorf("%d held in a minute of flood, %q", n, g.open(now))
	}
	if n := g.offer(&now, 24*time.Hour, 1000); n > 60_000 {
		t.Errorf("%d held in a day of flood", n)
	}
	now = now.Add(time.Hour)
	if why := g.open(now); why != "" {
		t.Errorf("an hour after the flood: %s", why)
	}
	now = now.Add(time.Hour)
	g.offer(&now, 40*time.Second, 1000)
	if left := g.closed.Sub(now); left <= 0 || left > time.Minute {
		t.Errorf("the first flood in a while closes for %s", left)
	}
	// A clock that steps neither opens nor closes it for long.
	now = now.Add(-48 * time.Hour)
	if why := g.open(now); why != "" {
		t.Errorf("after the clock was set back: %s", why)
	}
}

// Below a flood, too, only as many are held in any day as the kernel remembers.
func TestHoldGateDay(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	g := newHoldGate(50, now)
	var hours []int
	for range 72 {
		hours = append(hours, g.offer(&now, time.Hour, 24))
	}
	for i := range len(hours) - 24 {
		n := 0
		for _, h := range hours[i : i+24] {
			n += h
		}
		if n > 2*bpf.DailyHolds {
			t.Errorf("%d held in the day from hour %d on", n, i)
		}
	}
	if hours[30] == 0 || hours[30] > 5000 || !strings.Contains(g.open(now), "enough for a day") {
		t.Errorf("%v, %q", hours, g.open(now))
	}
	now = now.Add(10 * time.Hour)
	if why := g.open(now); why != "" {
		t.Errorf("ten hours later: %s", why)
	}
}

// Over a restart a flood stays one and the day's share is not full again; time that passed meanwhile counts.
func TestHoldGateKept(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	g := newHoldGate(50, now)
	g.day = 10
	g.offer(&now, time.Minute, 24)
	again := newHoldGate(50, now)
	again.load(g.save(), now.Add(time.Minute))
	if why := again.open(now.Add(time.Minute)); !strings.Contains(why, "enough for a day") {
		t.Errorf("after a restart: %q", why)
	}
	again.load(g.save(), now.Add(100*time.Hour))
	if why := again.open(now.Add(100 * time.Hour)); why != "" || again.day != bpf.DailyHolds {
		t.Errorf("days later: %q, %v", why, again.day)
	}
	again.load(g.save(), now.Add(-100*time.Hour)) // the clock was wrong
	if why := again.open(now.Add(-100*time.Hour + time.Minute)); !strings.Contains(why, "enough for a day") {
		t.Errorf("with the clock set back: %q", why)
	}
	g = newHoldGate(50, now)
	g.offer(&now, time.Minute, 1000)
	again = newHoldGate(50, now)
	again.load(g.save(), now)
	if why := again.open(now); !strings.Contains(why, "flood") {
		t.Errorf("in a flood: %q", why)
	}
	if !g.news {
		g.held(now)
	}
	if !g.news || g.save() == nil || g.news {
		t.Error("what is news is not known")
	}
	// Another budget is no flood.
	g = newHoldGate(200, now)
	g.offer(&now, 20*time.Second, 99)
	g.setBudget(1, now)
	if why := g.open(now); why != "" {
		t.Errorf("with a smaller budget: %q", why)
	}
}

// Whatever stands in the state file, the gate neither opens for more than a day's share nor stays closed for good.
func FuzzHoldGate(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	g := newHoldGate(50, now)
	g.offer(&now, time.Minute, 1000)
	f.Add(g.save())
	for _, s := range []string{"", "null", "{", `{"day":-1}`, `{"day":1e300}`, `{"pause":-1,"day":5}`, `{"at":"9999-12-31T23:59:59Z","closed":"9999-12-31T23:59:59Z","day":5,"pause":3600000000000}`, `{"at":"0000-01-01T00:00:00Z","day":0}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, now := newHoldGate(200, now), now
		g.load(b, now)
		if n := g.offer(&now, 20*time.Minute, 90); float64(n) > bpf.DailyHolds*1.1 {
			t.Errorf("%d held in 20 minutes", n)
		}
		now = now.Add(2 * time.Hour)
		if why := g.open(now); why != "" {
			t.Errorf("two hours later: %s", why)
		}
		if g.save() == nil {
			t.Error("it cannot be saved")
		}
	})
}
