package dnslist

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// This file is about sources that wait for the answer: their connection is accepted or not by what the lists say.
//
// Nobody has proved to have such an address: one packet is enough to have it asked about, so whoever forges them has what
// he likes asked. So these questions have a share of a list's means only, are no evidence for the breaker, and what they
// find is not remembered here (the resolver's cache has it, for the day when the source is in the log).

// beforeShare is the part of a list's daily budget that these questions may use: one in so many.
const beforeShare = 2

// before is what a zone knows of these questions. The zone's lock guards it.
type before struct {
	day  int64
	used [2]int
}

// Before asks the lists about a source and calls decided, once: as soon as it is known whether the points of all lists
// together reach enough, and not later than until. listed is true only if no list that has not answered could change that
// by a welcome; a list that is suspended, or out of its means, has no say. Of a Finding that says listed, TTL is how
// long the shortest listing lives, by the list's word, and may be less than a Finding's usually is.
//
// Before returns when all answers are there, which may be later by the engine's Timeout.
func (e *Engine) Before(ctx context.Context, a netip.Addr, until time.Time, enough float64, decided func(f Finding, listed bool)) {
	a = a.Unmap().WithZone("")
	f := Finding{Source: a, TTL: ttlMost}
	if !e.askable(a) {
		decided(f, false)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	type answer struct {
		z *zone
		outcome
	}
	zones := *e.zones.Load()
	answers := make(chan answer, len(zones))
	var all sync.WaitGroup
	defer all.Wait()
	var best, worst float64 // what the silent ones can add
	waiting := 0
	for _, z := range zones {
		if !z.spare(famOf(a)) {
			f.Unknown = append(f.Unknown, z.Name+": not asked")
			continue
		}
		b, w := z.span()
		best, worst = best+b, worst+w
		waiting++
		all.Go(func() { answers <- answer{z, z.about(ctx, a)} })
	}
	timer := time.NewTimer(until.Sub(e.o.Now()))
	defer timer.Stop()
	for waiting > 0 && f.Sum+worst < enough && f.Sum+best >= enough {
		select {
		case <-timer.C:
			f.Unknown = append(f.Unknown, "no answer in time")
			decided(f, false)
			return
		case o := <-answers:
			waiting--
			b, w := o.z.span()
			switch {
			case o.reason != "":
				f.Unknown = append(f.Unknown, o.z.Name+": "+o.reason)
				best, worst = best-b, worst-w
			case o.err != nil:
				f.Unknown = append(f.Unknown, o.z.Name+": "+o.err.Words())
				best -= b // and a welcome is still possible
			default:
				best, worst = best-b, worst-w
				f.add(o.z, o.outcome)
			}
		}
	}
	decided(f, f.Sum+worst >= enough)
}

// add takes in what a list says.
func (f *Finding) add(z *zone, o outcome) {
	if len(o.codes) == 0 {
		return
	}
	l := Listing{Zone: z.Name, Codes: o.codes}
	l.Points, l.Words = z.Points(o.codes)
	if f.Listings, f.Sum = append(f.Listings, l), f.Sum+l.Points; l.Points > 0 {
		f.TTL = min(f.TTL, o.ttl)
	}
}

// span is the most that a list can say against a source, all codes at once, and for it: one code.
func (z *zone) span() (best, worst float64) {
	for _, c := range z.Codes {
		best, worst = best+max(0, c.Points), min(worst, c.Points)
	}
	return best, worst
}

// spare takes one of these questions out of a list's means: half of the day's queries are for sources that did connect, and so
// is half of what may be asked at once.
func (z *zone) spare(fam int) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	if !z.spareLocked(fam) {
		return false
	}
	z.before.used[fam]++
	return true
}

func (z *zone) spareLocked(fam int) bool {
	now := z.e.o.Now()
	if day := now.Unix() / 86400; day != z.before.day {
		z.before = before{day: day}
	}
	n := z.before.used
	if z.fam[fam].state != OK || n[0]+n[1] >= z.Daily/beforeShare || fam == 1 && n[1] >= z.Daily/beforeShare/budget6Share {
		return false
	}
	if now.Unix()/86400 == z.day && z.used[0]+z.used[1] >= z.Daily {
		return false
	}
	burst := max(1, 2*z.Rate)
	tokens := burst
	if !z.filled.IsZero() {
		tokens = min(burst, z.tokens+max(0, now.Sub(z.filled).Seconds())*z.Rate)
	}
	return tokens-1 >= burst/2
}

// CanAsk says for which families a question of Before could reach enough points now, and if for none, why.
func (e *Engine) CanAsk(enough float64) (v4, v6 bool, why string) {
	var most [2]float64
	for _, z := range *e.zones.Load() {
		best, _ := z.span()
		z.mu.Lock()
		for fam := range most {
			if z.spareLocked(fam) {
				most[fam] += best
			} else if f := &z.fam[fam]; fam == 0 && best > 0 && why == "" {
				switch f.state {
				case New:
					why = z.Name + " is not tested yet"
				case Suspended:
					why = z.Name + " is suspended: " + f.reason
				default:
					why = z.Name + " has no queries left for it"
				}
			}
		}
		z.mu.Unlock()
	}
	if v4, v6 = most[0] >= enough, most[1] >= enough; v4 || v6 {
		why = ""
	}
	return v4, v6, why
}

// Stands says whether a finding of listings is still to be believed: none of the lists behind it is suspended by now.
func (e *Engine) Stands(f *Finding) bool {
	for _, l := range f.Listings {
		for _, z := range *e.zones.Load() {
			if l.Points > 0 && z.Name == l.Zone {
				z.mu.Lock()
				off := z.fam[famOf(f.Source)].state == Suspended
				z.mu.Unlock()
				if off {
					return false
				}
			}
		}
	}
	return true
}

// Reach is how many points lists can give a source at most, all of them together.
func Reach(lists []List) (points float64) {
	for i := range lists {
		best, _ := (&zone{List: lists[i]}).span()
		points += best
	}
	return points
}
