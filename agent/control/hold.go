package control

// Hold is the part of status about sources that are asked about before they are accepted. Counts are since the agent started.
type Hold struct {
	IPv4       bool    `json:"ipv4"`          // new sources are held
	IPv6       bool    `json:"ipv6"`          // new sources are held
	Why        string  `json:"why,omitempty"` // why none is
	Points     float64 `json:"points"`        // from which on a listing blocks
	Budget     int     `json:"budget"`        // first SYNs that are held a second at most
	Held       uint64  `json:"held"`          // first SYNs
	Listed     uint64  `json:"listed"`        // blocked before they were accepted
	Clean      uint64  `json:"clean"`         // let in: the lists do not say enough
	Unanswered uint64  `json:"unanswered"`    // let in: no answer in time
	Spared     uint64  `json:"spared"`        // let in: a known sender, or never to be blocked
	Busy       uint64  `json:"busy"`          // let in unasked: too many at once
	Untold     uint64  `json:"untold"`        // never held: the agent was too slow
	Known      int     `json:"known"`         // known senders, which are never held
	Millis     float64 `json:"ms"`            // how long answers take, smoothed
}
