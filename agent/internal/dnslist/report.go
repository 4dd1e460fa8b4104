package dnslist

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/miekg/dns"
)

// Says is what a list says of an address, in one word.
type Says string

// What lists say.
const (
	Listed  Says = "listed"  // it counts against the address, or it is a policy entry such as the PBL's
	Welcome Says = "welcome" // it speaks for the address
	Neutral Says = "neutral" // it has an entry that counts nothing
	Clean   Says = "clean"   // it has no entry
	Unknown Says = "unknown" // it could not be asked, or is not believed: Why
	NoIPv6  Says = "no_ipv6"
)

// An Answer is what one list says of an address, for people.
type Answer struct {
	Zone   string       `json:"zone"` // never holds a key
	Says   Says         `json:"says"`
	Codes  []netip.Addr `json:"codes,omitempty"`
	Points float64      `json:"points"`
	Words  string       `json:"words,omitempty"` // what the codes mean
	TXT    string       `json:"txt,omitempty"`   // the list's text, at most 500 bytes; from outside: quote it
	Page   string       `json:"page,omitempty"`  // where its owner looks it up and asks for removal
	Why    string       `json:"why,omitempty"`   // it is unknown
}

// Report asks all lists about an address now, with their texts. It is for people: it uses the budget, and neither counts nor is
// remembered. Addresses that no list can know are not asked about: the answer is empty.
func (e *Engine) Report(ctx context.Context, a netip.Addr) []Answer {
	a = a.Unmap().WithZone("")
	if !e.askable(a) {
		return nil
	}
	zones := *e.zones.Load()
	list := make([]Answer, len(zones))
	var all sync.WaitGroup
	for i, z := range zones {
		all.Go(func() { list[i] = z.report(ctx, a) })
	}
	all.Wait()
	return list
}

func (z *zone) report(ctx context.Context, a netip.Addr) Answer {
	o := z.about(ctx, a)
	r := Answer{Zone: z.Name, Codes: o.codes}
	switch {
	case o.err != nil:
		r.Says, r.Why = Unknown, o.err.Words()
	case o.reason != "":
		r.Says, r.Why = Unknown, o.reason
	case o.unsupported:
		r.Says = NoIPv6
	case len(o.codes) == 0:
		r.Says = Clean
	default:
		r.Points, r.Words = z.Points(o.codes)
		switch {
		case r.Points > 0 || z.policy(o.codes):
			r.Says = Listed
		case r.Points < 0:
			r.Says = Welcome
		default:
			r.Says = Neutral
		}
		if r.Words == "" && r.Says == Neutral {
			r.Words = "a code that is not in the table"
		}
		r.TXT = z.txt(ctx, a)
	}
	if r.Says == Listed {
		r.Page = strings.ReplaceAll(z.page, "{}", a.String())
	}
	return r
}

// policy says whether a code is one that says nothing of a source, but that no mail server's address should have.
func (l *List) policy(codes []netip.Addr) bool {
	for i := range l.Codes {
		for _, a := range codes {
			if l.Codes[i].policy && l.Codes[i].Pattern.Match(a) {
				return true
			}
		}
	}
	return false
}

// txt asks for the list's reason.
func (z *zone) txt(ctx context.Context, a netip.Addr) string {
	if _, ok := z.take(famOf(a), false); !ok {
		return ""
	}
	ans, err := z.e.o.Resolver.Lookup(ctx, queryName(a, z.suffix()), dns.TypeTXT)
	if err != nil {
		return ""
	}
	var w []string
	for _, rr := range ans.Records[:min(len(ans.Records), 4)] {
		if t, ok := rr.(*dns.TXT); ok {
			w = append(w, unescape(strings.Join(t.Txt, "")))
		}
	}
	s := strings.ToValidUTF8(z.redact(strings.Join(w, "; ")), "?")
	return s[:min(len(s), 500)]
}

// unescape undoes the zone file's escapes, in which package dns has texts: \" and \DDD.
func unescape(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b = append(b, s[i])
			continue
		}
		i++
		if n, err := strconv.ParseUint(s[i:min(i+3, len(s))], 10, 8); err == nil && i+3 <= len(s) {
			b = append(b, byte(n))
			i += 2
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}
