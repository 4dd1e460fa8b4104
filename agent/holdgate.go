package main

import (
	"encoding/json"
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
	news   bool // something was held since save
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

func (g *holdGate) setBudget(budget int, now time.Time) {
	g.pass(now)
	g.budget = float64(budget)
	g.flood = min(g.flood, floodSeconds*g.budget) // what was no flood must not become one by that
}

// keptGate is how a gate stands in the state file. A flood begins anew.
type keptGate struct {
	At     time.Time     `json:"at"`
	Day    float64       `json:"day"` // that may still be held
	Closed time.Time     `json:"closed"`
	Pause  time.Duration `json:"pause"`
}

func (g *holdGate) save() []byte {
	b, err := json.Marshal(keptGate{g.at.UTC().Round(0), g.day, g.closed.UTC().Round(0), g.pause})
	if err != nil {
		return nil
	}
	g.news = false
	return b
}

// load goes on with a gate that was saved. What cannot be, or cannot be read, is as nothing.
func (g *holdGate) load(saved []byte, now time.Time) {
	var k keptGate
	if json.Unmarshal(saved, &k) != nil || k.Day < 0 || k.Day > bpf.DailyHolds || k.Pause < 0 || k.Pause > pauseMost {
		return
	}
	g.at, g.day, g.closed, g.pause = k.At, k.Day, k.Closed, k.Pause
	g.spent = g.day < dayAgain
	for range 24 { // a day fills it; a pass counts an hour at most
		if !g.at.Add(time.Hour).Before(now) {
			break
		}
		g.pass(g.at.Add(time.Hour))
	}
	g.pass(now)
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
	g.news = true
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
		return fmt.Sprintf("a flood of new sources, %.0f a second and more; it is tried again at %s", g.budget/2, dayTime(g.closed))
	case g.spent:
		return fmt.Sprintf("%d sources were held, which is enough for a day", bpf.DailyHolds)
	}
	return ""
}
