package dnslist

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Pattern matches answers: four octets, each a set of values.
type Pattern struct {
	text  string
	octet [4][4]uint64 // 256 bits each
}

func (p Pattern) String() string { return p.text }

// Match says whether an answer is one of the pattern's.
func (p *Pattern) Match(a netip.Addr) bool {
	if !a.Is4() {
		return false
	}
	for i, b := range a.As4() {
		if p.octet[i][b>>6]>>(b&63)&1 == 0 {
			return false
		}
	}
	return true
}

// maxPattern bounds the text of a pattern, in bytes.
const maxPattern = 512

// ParsePattern reads the form that postscreen_dnsbl_sites has (Postfix postconf(5)): d.d.d.d, where a part may be a list in
// brackets of numbers and ranges, as in 127.0.0.[2..11] or 127.0.[1;2].[0..3;7].
func ParsePattern(s string) (Pattern, error) {
	p := Pattern{text: s}
	if len(s) > maxPattern {
		return p, fmt.Errorf("longer than %d bytes", maxPattern)
	}
	rest := s
	for i := range p.octet {
		var part string
		if strings.HasPrefix(rest, "[") {
			end := strings.IndexByte(rest, ']')
			if end < 0 {
				return p, fmt.Errorf("%q: a bracket is not closed", s)
			}
			part, rest = rest[1:end], rest[end+1:]
			for _, r := range strings.Split(part, ";") {
				lo, hi, isRange := strings.Cut(r, "..")
				if !isRange {
					hi = lo
				}
				if err := p.set(i, lo, hi); err != nil {
					return p, fmt.Errorf("%q: %w", s, err)
				}
			}
		} else {
			end := strings.IndexByte(rest, '.')
			if end < 0 {
				end = len(rest)
			}
			part, rest = rest[:end], rest[end:]
			if err := p.set(i, part, part); err != nil {
				return p, fmt.Errorf("%q: %w", s, err)
			}
		}
		if i < 3 {
			if !strings.HasPrefix(rest, ".") {
				return p, fmt.Errorf("%q has %d parts, not 4", s, i+1)
			}
			rest = rest[1:]
		}
	}
	if rest != "" {
		return p, fmt.Errorf("%q: %q is too much", s, rest)
	}
	for b := range 256 {
		if b != 127 && p.octet[0][b>>6]>>(b&63)&1 == 1 {
			return p, fmt.Errorf("%q: answers of lists begin with 127 (RFC 5782); others are rewritten ones and never count", s)
		}
	}
	return p, nil
}

func (p *Pattern) set(i int, lo, hi string) error {
	a, err := octet(lo)
	if err != nil {
		return err
	}
	b, err := octet(hi)
	if err != nil {
		return err
	}
	if a > b {
		return fmt.Errorf("the range %d..%d is empty", a, b)
	}
	for v := a; v <= b; v++ {
		p.octet[i][v>>6] |= 1 << (v & 63)
	}
	return nil
}

func octet(s string) (int, error) {
	if len(s) == 0 || len(s) > 3 || strings.Trim(s, "0123456789") != "" {
		return 0, fmt.Errorf("%q is no number from 0 to 255", s)
	}
	n, _ := strconv.Atoi(s)
	if n > 255 {
		return 0, fmt.Errorf("%q is no number from 0 to 255", s)
	}
	return n, nil
}

// PointsPerWeight is what a postscreen weight of 1 is here: with postscreen's default threshold of 1 a single list would
// reject; here three of them block, since a block outlasts a rejection by days. `replay --trust-lists` counts the same.
const PointsPerWeight = 35

// MaxPoints bounds what a code may count, up or down.
const MaxPoints = 1000

// anyCode is what counts without a filter. Postfix counts any answer; here error codes and rewritten answers never do.
var anyCode = mustPattern("127.[0..254].[0..255].[2..254]")

func mustPattern(s string) Pattern {
	p, err := ParsePattern(s)
	if err != nil {
		panic(err)
	}
	return p
}

var errZone = errors.New("is no domain name")

// ParseSite reads an item in the form of postscreen_dnsbl_sites: zone[=filter][*weight]. A weight is an integer, 1 if left out;
// see PointsPerWeight. Without a filter a preset's codes are taken, times the weight being an error then; else any code of
// 127/8 counts that is not known as an error.
func ParseSite(s string) (List, error) {
	if len(s) > 1024 {
		return List{}, errors.New("longer than 1024 bytes")
	}
	rest, weight, weighed := strings.Cut(s, "*")
	zone, filter, filtered := strings.Cut(rest, "=")
	points := float64(PointsPerWeight)
	if weighed {
		n, err := strconv.Atoi(weight)
		if err != nil || n == 0 {
			return List{}, fmt.Errorf("%q is no weight: an integer such as 2 or -1", weight)
		}
		if points *= float64(n); math.Abs(points) > MaxPoints {
			return List{}, fmt.Errorf("the weight %d is out of range: at most %d", n, MaxPoints/PointsPerWeight)
		}
	}
	l, err := NewList(zone)
	if err != nil {
		return List{}, err
	}
	if !filtered && !weighed && len(l.Codes) > 0 {
		return l, nil
	}
	if !filtered {
		l.Codes = []Code{{Pattern: anyCode, Points: points}}
		return l, nil
	}
	p, err := ParsePattern(filter)
	if err != nil {
		return List{}, err
	}
	l.Codes = []Code{{Pattern: p, Points: points}}
	return l, nil
}

// zoneName checks and normalises a list's zone.
func zoneName(s string) (string, error) {
	z := strings.ToLower(strings.TrimSuffix(s, "."))
	labels := dns.SplitDomainName(z)
	// An IPv6 name is 64 octets before the zone, a key some more.
	if len(labels) < 2 || len(z) > 150 || strings.HasSuffix(z, ".") {
		return "", errZone
	}
	for _, l := range labels {
		if len(l) == 0 || len(l) > 63 || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return "", errZone
		}
	}
	return z, nil
}

// queryName is the name under which a list has an address: octets or nibbles reversed (RFC 5782 2.1, 2.4). The address is
// taken as it is: ::ffff:127.0.0.2 is an IPv6 address here.
func queryName(a netip.Addr, zone string) string {
	var b strings.Builder
	if a.Is4() {
		o := a.As4()
		fmt.Fprintf(&b, "%d.%d.%d.%d.", o[3], o[2], o[1], o[0])
	} else {
		const hex = "0123456789abcdef"
		o := a.As16()
		for i := 15; i >= 0; i-- {
			b.WriteByte(hex[o[i]&15])
			b.WriteByte('.')
			b.WriteByte(hex[o[i]>>4])
			b.WriteByte('.')
		}
	}
	b.WriteString(zone)
	b.WriteByte('.')
	return b.String()
}

// mapped is an IPv4 address in the form in which IPv6 lists have their test entries.
func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }
