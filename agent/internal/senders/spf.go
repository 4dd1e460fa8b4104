package senders

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
	"go4.org/netipx"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// Resolver asks the DNS; *resolve.Resolver is one.
type Resolver interface {
	Lookup(ctx context.Context, name string, qtype uint16) (resolve.Answer, error)
}

// Bounds of one expansion. An expander lists addresses and does not judge a message, so it may ask more often than
// the ten times of RFC 7208 section 4.6.4, which big senders break now and then; it needs bounds of its own.
const (
	maxDepth   = 10      // includes inside includes
	maxLookups = 200     // DNS questions in all
	maxRecord  = 8 << 10 // bytes of one SPF record
	maxTerms   = 500     // of one record
	maxMX      = 10      // names of one mx term (RFC 7208 section 4.6.4)
	maxRanges  = 5000    // of the result
	maxNotes   = 20
)

// No range wider than this is believed, whoever publishes it.
const (
	widest4 = 12
	widest6 = 29
)

// Nor that so much belongs to one sender, put together from whatever pieces: a /8, and a /24 of IPv6. The largest real
// ones have about a tenth of a /8.
const (
	most4 = 1 << 24
	most6 = 1 << 40
)

// Expansion is what an SPF record authorises, as ranges.
type Expansion struct {
	Ranges  []netip.Prefix // sorted, none inside another; at most 5,000
	Notes   []string       // what could not be expanded or was refused, and why; at most 20
	Lookups int            // DNS questions asked
}

// ErrNoSPF says that a domain has no SPF record, or more than one.
var ErrNoSPF = errors.New("no SPF record")

// Expand lists the addresses that may send for a domain by its SPF record (RFC 7208): ip4, ip6, a, mx, include and
// redirect are followed; exists, ptr and macros other than %{d} cannot be listed and are noted. As in the evaluation
// of a message the first term that matches an address settles it, so a range after "-ip4:" lacks what that names.
//
// It fails if the domain has no record or if any answer is missing for a passing reason: half an expansion must not
// replace a whole one. What the owner of the domain got wrong is noted and costs only that term.
func Expand(ctx context.Context, r Resolver, domain string) (Expansion, error) {
	e := expander{ctx: ctx, r: r, known: map[string]*netipx.IPSet{}}
	set, err := e.domain(strings.ToLower(strings.TrimSuffix(domain, ".")), nil)
	out := Expansion{Notes: e.notes, Lookups: e.lookups}
	if err != nil {
		return out, err
	}
	if out.Ranges = set.Prefixes(); len(out.Ranges) > maxRanges {
		return out, fmt.Errorf("SPF of %q: %d ranges are too many (at most %d)", domain, len(out.Ranges), maxRanges)
	}
	if v4, v6 := size(out.Ranges); v4 > most4 || v6 > most6 {
		return out, fmt.Errorf("SPF of %q covers %.0f IPv4 addresses and %.0f IPv6 /64s, which is not believed", domain, v4, v6)
	}
	return out, nil
}

type expander struct {
	ctx     context.Context
	r       Resolver
	lookups int
	known   map[string]*netipx.IPSet // by domain: a record included twice is read once
	notes   []string
}

func (e *expander) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); len(e.notes) < maxNotes && !slices.Contains(e.notes, n) {
		e.notes = append(e.notes, n)
	}
}

// errBound ends the whole expansion: what is cut off somewhere must not pass for complete.
var errBound = errors.New("bound reached")

func (e *expander) lookup(name string, qtype uint16) (resolve.Answer, error) {
	if e.lookups++; e.lookups > maxLookups {
		return resolve.Answer{}, fmt.Errorf("%w: more than %d DNS questions", errBound, maxLookups)
	}
	return e.r.Lookup(e.ctx, dns.Fqdn(name), qtype)
}

// domain returns the set that passes the record of a domain. path are the domains it is reached by.
func (e *expander) domain(name string, path []string) (*netipx.IPSet, error) {
	if set, ok := e.known[name]; ok {
		return set, nil
	}
	if len(path) > maxDepth {
		return nil, fmt.Errorf("%w: SPF of %q includes more than %d levels", errBound, path[0], maxDepth)
	}
	record, err := e.record(name)
	if err != nil {
		return nil, err
	}
	var pass, settled netipx.IPSetBuilder
	path = append(slices.Clone(path), name)
	redirect := ""
	terms := strings.Fields(record)[1:]
	if len(terms) > maxTerms {
		return nil, fmt.Errorf("%w: SPF of %q has %d terms", errBound, name, len(terms))
	}
	all := false
	for _, term := range terms {
		if to, ok := cutPrefixFold(term, "redirect="); ok {
			redirect = to
			continue
		}
		if i := strings.IndexAny(term, ":/="); i > 0 && term[i] == '=' {
			continue // exp= and modifiers to come (RFC 7208 section 6)
		}
		good := true
		switch term[0] {
		case '-', '~', '?':
			good = false
			fallthrough
		case '+':
			term = term[1:]
		}
		if strings.EqualFold(term, "all") {
			if good {
				e.note("%q authorises everybody (+all): this is not believed", name)
			}
			all = true
			break // what stands behind it is never reached
		}
		set, err := e.term(name, term, good, path)
		if err != nil {
			return nil, err
		}
		if set == nil {
			continue
		}
		if good {
			var fresh netipx.IPSetBuilder
			fresh.AddSet(set)
			done, err := settled.IPSet()
			if err != nil {
				return nil, err
			}
			fresh.RemoveSet(done)
			add, err := fresh.IPSet()
			if err != nil {
				return nil, err
			}
			pass.AddSet(add)
		}
		settled.AddSet(set)
	}
	if redirect != "" && !all {
		set, err := e.nested(name, redirect, "redirect", path)
		if err != nil {
			return nil, err
		}
		if set != nil {
			done, err := settled.IPSet()
			if err != nil {
				return nil, err
			}
			var fresh netipx.IPSetBuilder
			fresh.AddSet(set)
			fresh.RemoveSet(done)
			add, err := fresh.IPSet()
			if err != nil {
				return nil, err
			}
			pass.AddSet(add)
		}
	}
	set, err := pass.IPSet()
	if err != nil {
		return nil, err
	}
	e.known[name] = set
	return set, nil
}

// record returns the one SPF record of a name.
func (e *expander) record(name string) (string, error) {
	ans, err := e.lookup(name, dns.TypeTXT)
	if err != nil {
		return "", err
	}
	var found []string
	for _, rr := range ans.Records {
		t, ok := rr.(*dns.TXT)
		if !ok {
			continue
		}
		s := strings.Join(t.Txt, "")
		if v, ok := cutPrefixFold(s, "v=spf1"); !ok || v != "" && v[0] != ' ' {
			continue
		}
		if len(s) > maxRecord {
			return "", fmt.Errorf("%w: the SPF record of %q has %d bytes", errBound, name, len(s))
		}
		found = append(found, s)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", fmt.Errorf("%w: %q", ErrNoSPF, name)
	}
	return "", fmt.Errorf("%w: %q has %d of them, which counts as none (RFC 7208 section 4.5)", ErrNoSPF, name, len(found))
}

// nested expands an include or redirect. A target without a record costs only this term.
func (e *expander) nested(name, spec, what string, path []string) (*netipx.IPSet, error) {
	to, ok := target(spec, name)
	if !ok {
		e.note("%s: %s:%.80q has a macro and cannot be listed", name, what, spec)
		return nil, nil
	}
	if slices.Contains(path, to) {
		e.note("%s: %s:%s goes in a circle", name, what, to)
		return nil, nil
	}
	set, err := e.domain(to, path)
	if errors.Is(err, ErrNoSPF) || err != nil && !resolve.Temporary(err) && !errors.Is(err, errBound) && e.ctx.Err() == nil {
		e.note("%s: %s:%.80s: %v", name, what, to, err)
		return nil, nil
	}
	return set, err
}

// term returns the addresses that a mechanism matches, nil if that cannot be told. good says that they pass.
func (e *expander) term(name, term string, good bool, path []string) (*netipx.IPSet, error) {
	word, arg := term, ""
	if i := strings.IndexAny(term, ":/"); i >= 0 {
		word, arg = term[:i], term[i:]
	}
	spec, isSpec := strings.CutPrefix(arg, ":")
	switch strings.ToLower(word) {
	case "ip4", "ip6":
		p, err := ipTerm(spec, strings.EqualFold(word, "ip4"))
		if err != nil {
			e.note("%s: %.80q: %v", name, term, err)
			return nil, nil
		}
		if good && tooWide(p) {
			e.note("%s: %s is wider than /%d and is not believed", name, term, widest(p))
			return nil, nil
		}
		return setOf(p)
	case "a", "mx":
		spec, bits4, bits6, err := dualCIDR(arg)
		if err != nil {
			e.note("%s: %.80q: %v", name, term, err)
			return nil, nil
		}
		host := name
		if spec != "" {
			var ok bool
			if host, ok = target(spec, name); !ok {
				e.note("%s: %.80q has a macro and cannot be listed", name, term)
				return nil, nil
			}
		}
		return e.hosts(name, term, host, strings.EqualFold(word, "mx"), bits4, bits6, good)
	case "include":
		if !isSpec || spec == "" {
			e.note("%s: %.80q names no domain", name, term)
			return nil, nil
		}
		return e.nested(name, spec, "include", path)
	case "exists", "ptr":
		e.note("%s: %.80q cannot be listed", name, term)
		return nil, nil
	}
	e.note("%s: %.80q is no SPF term", name, term)
	return nil, nil
}

// hosts returns the networks around the addresses of a host, or of the mail exchangers of a domain.
func (e *expander) hosts(name, term, host string, mx bool, bits4, bits6 int, good bool) (*netipx.IPSet, error) {
	hosts := []string{host}
	if mx {
		ans, err := e.lookup(host, dns.TypeMX)
		if err != nil {
			return nil, e.costs(err, name, term)
		}
		hosts = nil
		for _, rr := range ans.Records {
			if m, ok := rr.(*dns.MX); ok && m.Mx != "." {
				hosts = append(hosts, m.Mx)
			}
		}
		if len(hosts) > maxMX {
			e.note("%s: %.80q has %d mail exchangers, more than %d", name, term, len(hosts), maxMX)
			return nil, nil
		}
	}
	var b netipx.IPSetBuilder
	for _, h := range hosts {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			ans, err := e.lookup(h, qtype)
			if err != nil {
				if err := e.costs(err, name, term); err != nil {
					return nil, err
				}
				continue
			}
			for _, rr := range ans.Records {
				a, ok := resolve.Addr(rr)
				if !ok || a.Is4() != (qtype == dns.TypeA) {
					continue
				}
				bits := bits6
				if a.Is4() {
					bits = bits4
				}
				p, err := a.Prefix(bits)
				if err != nil {
					continue
				}
				if good && tooWide(p) {
					e.note("%s: %.80q is wider than /%d and is not believed", name, term, widest(p))
					continue
				}
				b.AddPrefix(p)
			}
		}
	}
	return b.IPSet()
}

// costs says whether an error is more than the loss of one term, and notes it if not.
func (e *expander) costs(err error, name, term string) error {
	if resolve.Temporary(err) || errors.Is(err, errBound) || e.ctx.Err() != nil {
		return err
	}
	e.note("%s: %.80q: %v", name, term, err)
	return nil
}

func setOf(p netip.Prefix) (*netipx.IPSet, error) {
	var b netipx.IPSetBuilder
	b.AddPrefix(p)
	return b.IPSet()
}

func widest(p netip.Prefix) int {
	if p.Addr().Is4() {
		return widest4
	}
	return widest6
}

func tooWide(p netip.Prefix) bool { return p.Bits() < widest(p) }

// ipTerm reads what stands behind ip4: or ip6:. Host bits are masked: big senders publish them.
func ipTerm(s string, v4 bool) (netip.Prefix, error) {
	var p netip.Prefix
	if strings.Contains(s, "/") {
		var err error
		if p, err = netip.ParsePrefix(s); err != nil {
			return p, errors.New("no CIDR")
		}
	} else {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			return p, errors.New("no address")
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4() != v4 || p.Addr().Is4In6() {
		return p, errors.New("the address is of the other family")
	}
	return p.Masked(), nil
}

// dualCIDR takes ":host/24//64" apart: host, IPv4 and IPv6 prefix lengths (RFC 7208 section 5.6).
func dualCIDR(arg string) (spec string, bits4, bits6 int, err error) {
	spec, bits4, bits6 = arg, 32, 128
	length := func(s string, max int) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > max || strconv.Itoa(n) != s {
			return 0, errors.New("no prefix length")
		}
		return n, nil
	}
	if before, after, ok := strings.Cut(spec, "//"); ok {
		if bits6, err = length(after, 128); err != nil {
			return "", 0, 0, err
		}
		spec = before
	}
	if before, after, ok := strings.Cut(spec, "/"); ok {
		if bits4, err = length(after, 32); err != nil {
			return "", 0, 0, err
		}
		spec = before
	}
	if spec == ":" {
		return "", 0, 0, errors.New("names no domain")
	}
	return strings.TrimPrefix(spec, ":"), bits4, bits6, nil
}

// target expands a domain-spec as far as that is possible without a message: %{d} is the domain of the record.
func target(spec, domain string) (string, bool) {
	spec = strings.ReplaceAll(strings.ReplaceAll(spec, "%{d}", domain), "%{D}", domain)
	spec = strings.ToLower(strings.TrimSuffix(spec, "."))
	if strings.Contains(spec, "%") || spec == "" || len(spec) > 253 {
		return "", false
	}
	_, ok := dns.IsDomainName(spec)
	return spec, ok
}

func cutPrefixFold(s, prefix string) (string, bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return "", false
	}
	return s[len(prefix):], true
}
