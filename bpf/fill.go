package bpf

import "os"

// A Fill is how full a table of the kernel is.
type Fill struct {
	Table             string // exact_v4, exact_v6, cidr_v4, cidr_v6
	Entries, Capacity int    // an exact table grows before it is full, a CIDR table does not
}

// Fills says how full the tables are. Ended entries count until they are removed. Safe to call at any time.
func (s *Shield) Fills() ([]Fill, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, os.ErrClosed
	}
	cidr := func(name string, n int) Fill { return Fill{name, n, int(s.gen.maps[name].MaxEntries())} }
	return []Fill{
		{shieldMapExactV4, s.gen.v4.used, s.gen.v4.capacity()},
		{shieldMapExactV6, s.gen.v6.used, s.gen.v6.capacity()},
		cidr(shieldMapCidrV4, s.cidrsV4),
		cidr(shieldMapCidrV6, len(s.cidrs)-s.cidrsV4),
	}, nil
}
