package dnslist

import "time"

// Status is what the engine does, for people.
type Status struct {
	Asked   uint64       `json:"asked"`   // sources
	Done    uint64       `json:"done"`    // sources, with what Found made of them
	Waiting int          `json:"waiting"` // sources
	Dropped uint64       `json:"dropped"` // sources, because too many waited
	Known   int          `json:"known"`   // sources that are remembered
	Zones   []ZoneStatus `json:"zones"`
}

// ZoneStatus is one list's share.
type ZoneStatus struct {
	Zone     string       `json:"zone"`
	IPv4     FamilyStatus `json:"ipv4"`
	IPv6     FamilyStatus `json:"ipv6"`
	Asked    uint64       `json:"asked"` // sources
	Listed   uint64       `json:"listed"`
	Welcomed uint64       `json:"welcomed"`
	Errors   uint64       `json:"errors"`
	Skipped  uint64       `json:"skipped"` // sources, because of the rate, the budget, or a suspension
	Left     int          `json:"left"`    // queries of today's budget
	Millis   float64      `json:"ms"`      // how long answers take, smoothed
}

// FamilyStatus is the state of a list for IPv4 or IPv6.
type FamilyStatus struct {
	State  State     `json:"state"`
	Reason string    `json:"reason,omitempty"`
	Hint   string    `json:"hint,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	Next   time.Time `json:"next,omitzero"` // test
}

// Status collects it.
func (e *Engine) Status() Status {
	e.mu.Lock()
	s := Status{Asked: e.asked, Done: e.done, Waiting: len(e.queue) + int(e.offered.Load()), Dropped: e.dropped + e.refused.Load(), Known: len(e.sources.m), Zones: []ZoneStatus{}}
	e.mu.Unlock()
	for _, z := range *e.zones.Load() {
		z.mu.Lock()
		fam := func(f *family) FamilyStatus {
			return FamilyStatus{State: f.state, Reason: f.reason, Hint: f.hint, Since: f.since, Next: f.next}
		}
		left := z.Daily
		if z.day == e.o.Now().Unix()/86400 {
			left = max(0, left-z.used[0]-z.used[1])
		}
		s.Zones = append(s.Zones, ZoneStatus{
			Zone: z.Name, IPv4: fam(&z.fam[0]), IPv6: fam(&z.fam[1]), Asked: z.asked, Listed: z.listed, Welcomed: z.welcomed,
			Errors: z.errs, Skipped: z.skipped, Left: left, Millis: z.millis,
		})
		z.mu.Unlock()
	}
	return s
}
