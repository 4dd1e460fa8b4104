package dnslist

import (
	"bytes"
	"encoding/json"
	"time"
)

// A budget is the day's, not the process's: an agent that restarts often must not ask more than one that does not.

// saveEvery is how often Save gives something while queries are made.
const saveEvery = 10 * time.Second

// spentFile is how the queries of the day stand in the state file, by zone without the key.
type spentFile map[string]spentZone

type spentZone struct {
	Day    int64  `json:"day"`             // since 1970, UTC
	Used   [2]int `json:"used"`            // IPv4, IPv6
	Before [2]int `json:"before,omitzero"` // of Engine.Before
}

func (z *zone) spent() spentZone {
	z.mu.Lock()
	defer z.mu.Unlock()
	s := spentZone{Day: z.day, Used: z.used}
	if z.before.day == z.day {
		s.Before = z.before.used
	}
	return s
}

func (z *zone) resume(s spentZone) {
	z.day, z.used, z.before = s.Day, s.Used, before{s.Day, s.Before}
}

// load takes over what an earlier life has spent today. What cannot be read, or is of another day, is nothing.
func (e *Engine) load(saved []byte) {
	var f spentFile
	if json.Unmarshal(saved, &f) != nil {
		return
	}
	today := e.o.Now().Unix() / 86400
	for _, z := range *e.zones.Load() {
		s, ok := f[z.Zone]
		if !ok || s.Day != today {
			continue
		}
		sane := true
		for _, n := range [...]int{s.Used[0], s.Used[1], s.Before[0], s.Before[1]} {
			sane = sane && n >= 0 && n < 1<<30
		}
		if sane {
			z.resume(s)
		}
	}
}

// Save returns what is to be kept over a restart, if it has changed and the last time is long enough ago, or Run has ended.
func (e *Engine) Save() ([]byte, bool) {
	now := e.o.Now()
	e.mu.Lock()
	since, ended := now.Sub(e.savedAt), e.ended
	e.mu.Unlock()
	if !ended && since >= 0 && since < saveEvery {
		return nil, false
	}
	f := spentFile{}
	none := true
	for _, z := range *e.zones.Load() {
		s := z.spent()
		f[z.Zone] = s
		none = none && s.Used == [2]int{}
	}
	b, err := json.Marshal(f)
	e.mu.Lock()
	defer e.mu.Unlock()
	if err != nil || none && e.saved == nil || bytes.Equal(b, e.saved) {
		return nil, false
	}
	e.savedAt, e.saved = now, b
	return b, true
}
