package replica

import (
	"slices"
	"time"
)

// Stats describes the replication. Counts are from the start of the node.
type Stats struct {
	Sent, SentBytes         uint64 // messages handed to the network, and their bytes
	Received, ReceivedBytes uint64
	Unsent                  uint64 // messages that the network refused
	Dropped                 uint64 // parts of bursts that were left to be pulled, and pulls not served
	Merged                  uint64 // entries of other nodes
	Early                   uint64 // of these, with stamps ahead of the clock
	Refused                 uint64 // entries, epochs and jumps of numbers that were refused
	UnknownVersion          uint64 // messages
	UnknownKind             uint64 // messages
	UnknownRecords          uint64
	Malformed               uint64 // messages
	Pulls, Timeouts, Late   uint64 // requests; those without a reply in time; replies that nobody waited for
	Conflicts               uint64 // epochs begun because others knew numbers that this node never gave
	Suspensions             uint64 // by the breaker
	EvidenceDropped         uint64 // not sent or not kept
	Evidence                int    // registers held

	Offset  time.Duration // the median of the members' clocks - this one
	Muted   string        // why this node tells others nothing new; empty: it does
	Origins []OriginStats
	Alarms  []Alarm
}

// OriginStats is what is known of one origin and epoch.
type OriginStats struct {
	Origin    string
	Epoch     uint64
	Live      int    // entries
	Top       uint64 // the highest number heard of
	Lag       uint64 // numbers that are missing and that another node has, as far as is known
	Suspended bool
}

// An Alarm tells people what is wrong. It goes ten minutes after it last happened.
type Alarm struct {
	Key         string
	Text        string
	First, Last time.Time
	Count       uint64
}

// maxAlarms bounds them, since nodes that misbehave have many names.
const maxAlarms = 256

func (n *Node) alarm(key, text string, now time.Time) {
	a, ok := n.alarms[key]
	if !ok && len(n.alarms) >= maxAlarms {
		return
	}
	if !ok {
		a = Alarm{Key: key, First: now}
	}
	a.Text, a.Last = text, now
	a.Count++
	n.alarms[key] = a
}

// Stats returns the figures.
func (n *Node) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.stats
	s.Offset, s.Muted = n.offset, n.mute
	n.evidence.mu.Lock()
	s.Evidence, s.EvidenceDropped = len(n.evidence.recs)-n.evidence.unused, n.evidence.dropped
	n.evidence.mu.Unlock()
	suspended := map[string]bool{}
	for _, name := range n.table.Suspended() {
		suspended[name] = true
	}
	for _, l := range n.sorted() {
		o := OriginStats{Origin: l.origin, Epoch: l.epoch, Live: n.table.Live(l.origin, l.epoch), Top: max(l.latest, l.know.top()), Suspended: suspended[l.origin]}
		if o.Live == 0 && l.epoch != n.newest[l.origin] {
			continue
		}
		// A number that nobody has any more is no lag: of epochs that are over counts what somebody offers.
		missing := l.offer.have
		if _, live := slices.BinarySearch(n.members, l.origin); live && l.epoch == n.newest[l.origin] && o.Top > 0 {
			missing = spans{{1, o.Top}}
		}
		if l != n.own {
			o.Lag = missing.minus(l.know).minus(l.skip).count()
		}
		s.Origins = append(s.Origins, o)
	}
	for _, k := range sortedKeys(n.alarms) {
		s.Alarms = append(s.Alarms, n.alarms[k])
	}
	return s
}
