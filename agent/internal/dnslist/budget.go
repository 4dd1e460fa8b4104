package dnslist

import (
	"encoding/json"
	"time"
)

// A budget is the day's, not the process's: an agent that restarts often must not ask more than one that does not.

// saveEvery is how often Save gives something while queries are made.
const saveEvery = 10 * time.Second

// spentFile is how the queries of the day stand in the state file, by zone without the key.
type spentFile map[string]spentZone

type spentZone struct {
	Day  int64  `json:"day"`  // since 1970, UTC
	Used [2]int `json:"used"` // IPv4, IPv6
}

func (z *zone) spent() (day int64, used [2]int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.day, z.used
}

// load takes over what an earlier life has spent today. What cannot be read, or is of another day, is nothing.
func (e *Engine) load(saved []byte) {
	var f spentFile
	if json.Unmarshal(saved, &f) != nil {
		return
	}
	today := e.o.Now().Unix() / 86400
	for _, z := range *e.zones.Load() {
		if s, ok := f[z.Zone]; ok && s.Day == today && s.Used[0] >= 0 && s.Used[1] >= 0 && s.Used[0]+s.Used[1] < 1<<31 {
			z.day, z.used = s.Day, s.Used
		}
	}
}

// Save returns what is to be kept over a restart, if it has changed and the last time is long enough ago.
func (e *Engine) Save() ([]byte, bool) {
	f := spentFile{}
	sum := 0
	for _, z := range *e.zones.Load() {
		day, used := z.spent()
		f[z.Zone] = spentZone{day, used}
		sum += used[0] + used[1]
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	since := now.Sub(e.savedAt)
	if sum == e.savedSum || since >= 0 && since < saveEvery {
		return nil, false
	}
	b, err := json.Marshal(f)
	if err != nil {
		return nil, false
	}
	e.savedAt, e.savedSum = now, sum
	return b, true
}
