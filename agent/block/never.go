package block

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Never is one prefix that is never blocked, and the rule that says so in words ("own address", "gateway",
// "allow in config line 12").
type Never struct {
	Prefix netip.Prefix `json:"prefix"`
	Rule   string       `json:"rule"`
	// Config marks an allow of the config file, which `allow list` shows and `allow remove` cannot take away.
	Config bool `json:"config,omitempty"`
	// Sender marks an allow by name (spf:, domain:). It keeps automatic blocks away, and a person can still block
	// one bad host of a big sender.
	Sender bool `json:"sender,omitempty"`
	// Ports narrows an allow by name to some ports: those stay open, and automatic blocks close the rest. Zero: all.
	Ports Scope `json:"ports,omitzero"`
}

// BuiltinNever returns the ranges that are never the address of a stranger's mail server: loopback, link-local,
// multicast, the unspecified address, the ranges of NAT64 and, unless private is true, RFC 1918, CGNAT (RFC 6598) and ULA
// (RFC 4193).
// Documentation and benchmark ranges are not among them: labs use these as attackers.
func BuiltinNever(private bool) []Never {
	list := []Never{
		{Prefix: netip.MustParsePrefix("0.0.0.0/8"), Rule: "this network"},
		{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Rule: "loopback"},
		{Prefix: netip.MustParsePrefix("169.254.0.0/16"), Rule: "link-local"},
		{Prefix: netip.MustParsePrefix("224.0.0.0/4"), Rule: "multicast"},
		{Prefix: netip.MustParsePrefix("255.255.255.255/32"), Rule: "broadcast"},
		{Prefix: netip.MustParsePrefix("::/127"), Rule: "loopback"},
		{Prefix: netip.MustParsePrefix("fe80::/10"), Rule: "link-local"},
		{Prefix: netip.MustParsePrefix("ff00::/8"), Rule: "multicast"},
		// All of IPv4 stands in one /64 there (RFC 6052, RFC 8215), and a /64 is what a block closes.
		{Prefix: netip.MustParsePrefix("64:ff9b::/64"), Rule: "NAT64"},
		{Prefix: netip.MustParsePrefix("64:ff9b:1::/48"), Rule: "NAT64"},
	}
	if private {
		return list
	}
	for _, p := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"} {
		list = append(list, Never{Prefix: netip.MustParsePrefix(p), Rule: rulePrivate})
	}
	return list
}

// neverSet finds the never-block rule around a prefix. It is replaced as a whole, never changed.
type neverSet struct {
	rules map[pkey]Never
	keys  []pkey // of rules, by address
	// Those that lie in no other rule, by family and address: they do not overlap. The senders' are apart, and those of
	// them for some ports.
	wide, senders, some [2][]pkey
}

func newNeverSet(list []Never) *neverSet {
	s := &neverSet{rules: make(map[pkey]Never, len(list))}
	for _, n := range list {
		if !n.Prefix.IsValid() {
			continue
		}
		n.Prefix = n.Prefix.Masked()
		k := keyOf(n.Prefix)
		if was, dup := s.rules[k]; !dup {
			s.keys = append(s.keys, k)
		} else if !was.Sender || n.Sender {
			continue
		}
		s.rules[k] = n
	}
	slices.SortFunc(s.keys, comparePkey)
	for _, k := range s.keys { // of two with the same address the wider one comes first
		w := &s.wide[family(k)]
		switch n := s.rules[k]; {
		case n.Sender && n.Ports != 0:
			w = &s.some[family(k)]
		case n.Sender:
			w = &s.senders[family(k)]
		}
		if n := len(*w); n == 0 || !(*w)[n-1].covers(k) {
			*w = append(*w, k)
		}
	}
	return s
}

func comparePkey(a, b pkey) int {
	if c := cmp.Compare(a.hi, b.hi); c != 0 {
		return c
	}
	if c := cmp.Compare(a.lo, b.lo); c != 0 {
		return c
	}
	return cmp.Compare(a.bits, b.bits)
}

// eachInside visits the rules that lie inside k, and k's own.
func (s *neverSet) eachInside(k pkey, visit func(pkey)) {
	i, _ := slices.BinarySearchFunc(s.keys, pkey{k.hi, k.lo, 0}, comparePkey)
	for _, o := range s.keys[i:] {
		if m := o.masked(k.bits); m.hi != k.hi || m.lo != k.lo {
			break
		}
		if k.covers(o) {
			visit(o)
		}
	}
}

// inside returns the rules that lie inside k and stay open in a block of it: a manual one closes the senders'.
func (s *neverSet) inside(k pkey, manual bool) (list []Never) {
	s.eachInside(k, func(o pkey) {
		if n := s.rules[o]; n.Ports == 0 && (!manual || !n.Sender) {
			list = append(list, n)
		}
	})
	return list
}

// around returns the widest rule that covers k and that no block overrides.
func (s *neverSet) around(k pkey) (Never, bool) { return s.find(s.wide[family(k)], k) }

// sender returns the widest allow by name that covers k.
func (s *neverSet) sender(k pkey) (Never, bool) { return s.find(s.senders[family(k)], k) }

// ports returns the allow by name that keeps some ports of k open.
func (s *neverSet) ports(k pkey) (Never, bool) { return s.find(s.some[family(k)], k) }

// keeps is either: what keeps an automatic block away.
func (s *neverSet) keeps(k pkey) (Never, bool) {
	if by, ok := s.around(k); ok {
		return by, true
	}
	return s.sender(k)
}

func (s *neverSet) find(wide []pkey, k pkey) (Never, bool) {
	i, exact := slices.BinarySearchFunc(wide, k, comparePkey)
	if !exact {
		i-- // the last one that does not begin behind k
	}
	if i < 0 || !wide[i].covers(k) {
		return Never{}, false
	}
	return s.rules[wide[i]], true
}

// A NeverError says which rule refused a block.
type NeverError struct {
	Prefix netip.Prefix
	By     Never
}

func (e *NeverError) Error() string {
	if e.By.Sender {
		return fmt.Sprintf("%s is not blocked automatically: it is allowed by %s (%s)", e.Prefix, e.By.Rule, e.By.Prefix)
	}
	return fmt.Sprintf("%s is never blocked: it lies in %s (%s)", e.Prefix, e.By.Prefix, e.By.Rule)
}

const rulePrivate = "private range"

// HintText tells what to do about it.
func (e *NeverError) HintText() string {
	if e.By.Sender {
		return "mxshieldctl block " + e.Prefix.String() + " blocks it all the same"
	}
	if e.By.Config {
		return "take the line out of the config file and reload the agent if this prefix may be blocked"
	}
	if e.By.Rule == rulePrivate {
		return "`block: {private: true}` in the config lets private ranges be blocked"
	}
	return "`mxshieldctl allow list --all` shows all rules"
}
