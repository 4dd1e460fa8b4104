package control

// DNS is the part of status about DNS lists.
type DNS struct {
	Resolvers []DNSServer `json:"resolvers"`
	Lists     []DNSList   `json:"lists"`
	Asked     uint64      `json:"asked"`   // sources
	Waiting   int         `json:"waiting"` // sources
	Dropped   uint64      `json:"dropped"` // sources, because too many waited
	Queries   uint64      `json:"queries"` // sent
}

// DNSServer is one resolver.
type DNSServer struct {
	Server   string  `json:"server"`
	Down     bool    `json:"down"`
	Why      string  `json:"why,omitempty"` // of the last failure
	Failures uint64  `json:"failures"`
	Millis   float64 `json:"ms"`
}

// DNSList is one list. The states are new, ok, suspended, unsupported.
type DNSList struct {
	Zone     string  `json:"zone"`
	IPv4     string  `json:"ipv4"`
	IPv6     string  `json:"ipv6"`
	Reason   string  `json:"reason,omitempty"` // of a suspension
	Hint     string  `json:"hint,omitempty"`
	Asked    uint64  `json:"asked"`  // sources
	Listed   uint64  `json:"listed"` // sources it speaks against
	Welcomed uint64  `json:"welcomed"`
	Errors   uint64  `json:"errors"`
	Skipped  uint64  `json:"skipped"` // sources it was not asked about: rate, budget, suspension
	Left     int     `json:"left"`    // queries of today's budget
	Millis   float64 `json:"ms"`
}
