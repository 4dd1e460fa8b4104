package main

import (
	"fmt"
	"time"

	"github.com/mxshield/mxshield/bpf"
)

// A holdGate says whether first SYNs may be held, by how many were. Anybody can forge a SYN, so what holding costs has
// bounds: the kernel holds no more than budget a second. When more than half of that comes for half a minute, it is a
// flood: holding pauses for a minute, and each time twice as long, up to an hour. And in a day no more are held than
// the kernel can remember (bpf.DailyHolds at once, and as many over the day), so that no source is held twice in a day.
//
// Its user holds a lock.
type holdGate struct {
	budget float64 // first SYNs a second
	at     time.Time
	flood  float64 // rises by one for each, sinks by half the budget each second
	day    float64 // that may still be held
	spent  bool    // day was used up
	closed time.Time
	pause  time.Duration
}

const (
	floodSeconds = 15 // of twice the rate that is no flood
	pauseFirst   = time.Minute
	pauseMost    = time.Hour
	dayAgain     = bpf.DailyHolds / 100 // when the day's share was used up, so many must be free again
)

func newHoldGate(budget int, now time.Time) holdGate {
	return holdGate{budget: float64(budget), at: now, day: bpf.DailyHolds}
}

func (g *holdGate) pass(now time.Time) {
	// A step of the clock is no time.
	s := min(max(0, now.Sub(g.at).Seconds()), 3600)
	g.at = now
	g.flood = max(0, g.flood-s*g.budget/2)
	g.day = min(bpf.DailyHolds, g.day+s*bpf.DailyHolds/86400)
	if g.day >= dayAgain {
		g.spent = false
	}
	if now.Sub(g.closed) > pauseMost {
		g.pause = 0 // it was calm for long
	}
}

// held counts one. It reports whether the gate closes by it.
func (g *holdGate) held(now time.Time) (closes bool) {
	g.pass(now)
	g.flood++
	g.day--
	if g.day < 1 && !g.spent {
		g.spent, closes = true, true
	}
	if g.flood > floodSeconds*g.budget {
		g.pause = min(pauseMost, max(pauseFirst, 2*g.pause))
		g.flood, g.closed, closes = 0, now.Add(g.pause), true
	}
	return closes
}

// open says whether SYNs may be held now, and if not, why.
func (g *holdGate) open(now time.Time) (why string) {
	g.pass(now)
	switch left := g.closed.Sub(now); {
	case left > 0 && left <= pauseMost:
		return fmt.Sprintf("a flood of new sources, %.0f a second and more; it is tried again at %s", g.budget/2, g.closed.Local().Format("15:04:05"))
	case g.spent:
		return fmt.Sprintf("%d sources were held, which is enough for a day", bpf.DailyHolds)
	}
	return ""
}
