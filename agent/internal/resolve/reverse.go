package resolve

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// State says what the reverse names of an address are worth.
type State uint8

// The states of forward-confirmed reverse DNS (RFC 8601 2.7.3: iprev).
const (
	StateUnknown   State = iota // not asked
	StateVerified               // at least one name leads back to the address
	StateNone                   // the address has no name (PTR: NXDOMAIN or no data)
	StateMismatch               // it has names, none leads back
	StateTemporary              // it could not be found out: says nothing
)

var stateWords = [...]string{"unknown", "verified", "none", "mismatch", "temporary"}

func (s State) String() string {
	if int(s) < len(stateWords) {
		return stateWords[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// MarshalText gives the word.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// maxNames bounds the PTR names that are verified. An address may claim any number of names.
const maxNames = 8

// Names is what the reverse DNS of an address says.
type Names struct {
	State    State
	Verified []string // lower case, without the final dot; a name is proof only if it stands here
	Claimed  []string // by the PTR records, at most 8; written by whoever owns the address
	TTL      time.Duration
	Err      error // why State is Temporary
}

// PTR returns the names that an address claims (not verified; at most max, lower case, without the final dot), and how
// many there are in all.
func (r *Resolver) PTR(ctx context.Context, a netip.Addr, max int) (names []string, all int, ttl time.Duration, err error) {
	rev, err := dns.ReverseAddr(a.Unmap().WithZone("").String())
	if err != nil {
		return nil, 0, 0, &Error{Kind: BadName, Type: dns.TypePTR}
	}
	ans, err := r.Lookup(ctx, rev, dns.TypePTR)
	if err != nil {
		return nil, 0, 0, err
	}
	for _, rr := range ans.Records {
		p, ok := rr.(*dns.PTR)
		if !ok {
			continue
		}
		n := strings.ToLower(strings.TrimSuffix(p.Ptr, "."))
		if n == "" || slices.Contains(names, n) {
			continue
		}
		if all++; len(names) < max {
			names = append(names, n)
		}
	}
	return names, all, ans.TTL, nil
}

// FCrDNS asks for the names of an address and which of them lead back to it. IPv4-mapped addresses are taken as IPv4.
func (r *Resolver) FCrDNS(ctx context.Context, a netip.Addr) Names {
	a = a.Unmap().WithZone("")
	qtype := dns.TypeA
	if a.Is6() {
		qtype = dns.TypeAAAA
	}
	claimed, all, ttl, err := r.PTR(ctx, a, maxNames)
	n := Names{Claimed: claimed, TTL: ttl}
	if err != nil {
		n.State, n.Err, n.TTL = StateTemporary, err, r.o.MinTTL
		return n
	}
	if len(claimed) == 0 {
		n.State = StateNone
		return n
	}
	for _, name := range claimed {
		ans, err := r.Lookup(ctx, name, qtype)
		if err != nil {
			if Temporary(err) {
				n.Err = err
			}
			continue
		}
		n.TTL = min(n.TTL, ans.TTL)
		for _, rr := range ans.Records {
			if got, ok := Addr(rr); ok && got == a {
				n.Verified = append(n.Verified, name)
				break
			}
		}
	}
	switch {
	case len(n.Verified) > 0:
		n.State, n.Err = StateVerified, nil
	case n.Err != nil:
		n.State, n.TTL = StateTemporary, r.o.MinTTL
	case all > len(claimed):
		n.State, n.Err = StateTemporary, errors.New("it claims more names than are looked at")
	default:
		n.State = StateMismatch
	}
	return n
}

// Addr returns the address of an A or AAAA record, unmapped.
func Addr(rr dns.RR) (netip.Addr, bool) {
	var b []byte
	switch v := rr.(type) {
	case *dns.A:
		b = v.A.To4()
	case *dns.AAAA:
		b = v.AAAA.To16()
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap(), ok
}
