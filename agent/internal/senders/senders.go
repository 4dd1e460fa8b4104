// Package senders knows the big senders that must never be blocked automatically, by name: spf:google.com stands for
// the ranges of an SPF record (RFC 7208), domain:yahoo.com for every address whose reverse name is forward-confirmed
// (RFC 8601 section 2.7.3) and lies under yahoo.com.
//
// SPF ranges are expanded once a day and kept over restarts. What was known stays while a refresh fails, or gives less
// than half of it, for that is what a broken record looks like: the owner of the domain repairs it, and until then
// its mail must come in. Only if three days in a row say so is the smaller answer believed.
//
// A domain proves nothing by PTR alone, which the owner of the address writes: the name must lead back to the
// address, and it is compared on label boundaries. Who has been proved to belong to a domain is so for a day, over
// restarts too. An IPv6 address stands for its /64, for that is what is scored and blocked.
package senders

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"go4.org/netipx"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// The rhythm of refreshes.
const (
	refreshEvery = 24 * time.Hour // give or take a tenth
	retryFirst   = 5 * time.Minute
	retryMost    = 6 * time.Hour
	believeAfter = 3 // refreshes in a row that give less than half
	onePatience  = time.Minute
)

// The addresses that belong to a domain are remembered for provedFor, at most maxProved of them.
const (
	provedFor = 24 * time.Hour
	maxProved = 10_000
	saveEvery = 10 * time.Second // while addresses are proved; they are only asked for anew if some are lost
)

// Sender is one line of the list: an SPF record or a domain.
type Sender struct {
	Rule   string // as written: spf:google.com, domain:yahoo.com
	Preset bool   // from the shipped list
}

// Parse reads "spf:NAME" or "domain:NAME".
func Parse(s string) (Sender, error) {
	kind, name, _ := strings.Cut(s, ":")
	if kind != "spf" && kind != "domain" {
		return Sender{}, fmt.Errorf("%.80q is neither spf:NAME nor domain:NAME", s)
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	switch labels, ok := dns.IsDomainName(name); {
	case !ok || name == "" || strings.HasSuffix(name, ".") || strings.ContainsFunc(name, func(r rune) bool {
		return !('a' <= r && r <= 'z' || '0' <= r && r <= '9' || r == '-' || r == '_' || r == '.')
	}):
		return Sender{}, fmt.Errorf("%.80q is no DNS name", name)
	case labels < 2:
		return Sender{}, fmt.Errorf("%q is a top-level domain", name)
	}
	return Sender{Rule: kind + ":" + name}, nil
}

func (s Sender) spf() (string, bool)    { return strings.CutPrefix(s.Rule, "spf:") }
func (s Sender) domain() (string, bool) { return strings.CutPrefix(s.Rule, "domain:") }

// Range is a prefix that is never blocked automatically, and the rule that says so.
type Range struct {
	Prefix netip.Prefix
	Rule   string
}

// Options configure a Set.
type Options struct {
	Senders  []Sender
	Resolver Resolver
	Saved    []byte // what Save returned in an earlier life; what of it cannot be read is forgotten
	// Changed is called when Ranges has changed, without a lock.
	Changed func()
	Now     func() time.Time
	Log     *slog.Logger
}

// Set is the list with what is known of it. Its methods may be called at the same time.
type Set struct {
	o       Options
	domains []string // domain: rules, without the prefix

	mu     sync.Mutex
	spf    []*expanded
	proved map[netip.Addr]proof
	dirty  bool
	newly  bool      // something was proved since the last Save
	failed []failure // newly, since the last tell
	saved  time.Time
}

// expanded is an spf: rule.
type expanded struct {
	Sender
	name   string
	ranges []netip.Prefix
	at     time.Time // of the last good expansion
	next   time.Time
	wait   time.Duration // after a failure
	fewer  int           // how many refreshes in a row gave less than half
	err    string
	notes  []string
}

type proof struct {
	rule  string
	until time.Time
}

// network is what an address is remembered as.
func network(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	return p
}

// New makes a Set. Run keeps it fresh.
func New(o Options) *Set {
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Set{o: o, proved: map[netip.Addr]proof{}}
	var saved file
	if err := json.Unmarshal(o.Saved, &saved); len(o.Saved) > 0 && (err != nil || saved.Version != fileVersion) {
		o.Log.Warn("the ranges of allowed senders in the state file cannot be read; they are asked for anew", "error", err)
		saved = file{}
	}
	for _, snd := range o.Senders {
		if d, ok := snd.domain(); ok {
			s.domains = append(s.domains, d)
			continue
		}
		name, ok := snd.spf()
		if !ok || slices.ContainsFunc(s.spf, func(e *expanded) bool { return e.Rule == snd.Rule }) {
			continue
		}
		e := &expanded{Sender: snd, name: name}
		if was, ok := saved.Senders[snd.Rule]; ok && !was.At.After(o.Now()) {
			e.at, e.fewer, e.next = was.At, was.Fewer, was.At.Add(refreshEvery)
			e.ranges = believable(was.Ranges)
		}
		s.spf = append(s.spf, e)
	}
	for a, was := range saved.Proved {
		left := was.Until.Sub(o.Now())
		d, ok := strings.CutPrefix(was.Rule, "domain:")
		if ok && slices.Contains(s.domains, d) && left > 0 && left <= provedFor && a == network(a).Addr() && !a.Is4In6() && len(s.proved) < maxProved {
			s.proved[a] = proof{was.Rule, was.Until}
		}
	}
	return s
}

// believable is what of saved ranges could have come from Expand: the file may have been edited. Neighbours of the widest that is
// believed stand there as one, so it is the whole that must not be too large.
func believable(list []netip.Prefix) []netip.Prefix {
	var b netipx.IPSetBuilder
	for _, p := range list[:min(len(list), maxRanges)] {
		if v4, v6 := size([]netip.Prefix{p}); p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() && v4 <= most4 && v6 <= most6 {
			b.AddPrefix(p)
		}
	}
	set, err := b.IPSet()
	if err != nil {
		return nil
	}
	list = set.Prefixes()
	if v4, v6 := size(list); v4 > most4 || v6 > most6 || len(list) > maxRanges {
		return nil
	}
	return list
}

const fileVersion = 1

// file is how expansions stand in the state file.
type file struct {
	Version int                       `json:"version"`
	Senders map[string]saved          `json:"senders"`
	Proved  map[netip.Addr]savedProof `json:"proved,omitempty"`
}

type savedProof struct {
	Rule  string    `json:"rule"`
	Until time.Time `json:"until"`
}

type saved struct {
	At     time.Time      `json:"at"`
	Fewer  int            `json:"fewer,omitempty"`
	Ranges []netip.Prefix `json:"ranges"`
}

// Stop says that the next Save is the last one: it does not wait for more.
func (s *Set) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dirty = s.dirty || s.newly
}

// Save returns what is to be kept over a restart, if it has changed since the last call.
func (s *Set) Save() ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	if since := now.Sub(s.saved); !s.dirty && (!s.newly || since >= 0 && since < saveEvery) {
		return nil, false
	}
	f := file{Version: fileVersion, Senders: map[string]saved{}, Proved: map[netip.Addr]savedProof{}}
	for _, e := range s.spf {
		if !e.at.IsZero() {
			f.Senders[e.Rule] = saved{e.at, e.fewer, e.ranges}
		}
	}
	for a, p := range s.proved {
		if now.Before(p.until) {
			f.Proved[a] = savedProof{p.rule, p.until}
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return nil, false
	}
	s.dirty, s.newly, s.saved = false, false, now
	return b, true
}

// Ranges returns every range and address that is known now, the ranges first.
func (s *Set) Ranges() []Range {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Range
	for _, e := range s.spf {
		for _, p := range e.ranges {
			list = append(list, Range{p, e.Rule})
		}
	}
	n, now := len(list), s.o.Now()
	for a, p := range s.proved {
		if now.Before(p.until) {
			list = append(list, Range{network(a), p.rule})
		}
	}
	slices.SortFunc(list[n:], func(a, b Range) int { return a.Prefix.Compare(b.Prefix) })
	return list
}

// Covers returns the rule that allows an address, as far as that is known.
func (s *Set) Covers(a netip.Addr) (rule string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p, ok := s.proved[network(a).Addr()]; ok && s.o.Now().Before(p.until) {
		return p.rule, true
	}
	for _, e := range s.spf {
		i, found := slices.BinarySearchFunc(e.ranges, a, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
		if found || i > 0 && e.ranges[i-1].Contains(a) {
			return e.Rule, true
		}
	}
	return "", false
}

// ByName says whether reverse names matter: only with domain: rules.
func (s *Set) ByName() bool { return len(s.domains) > 0 }

// Learn takes in the reverse names of a source, and returns the rule that allows it by them. It reports whether that
// is news.
func (s *Set) Learn(a netip.Addr, n *resolve.Names) (rule string, news bool) {
	a = a.Unmap()
	if n.State != resolve.StateVerified {
		return "", false // an earlier proof holds till it ends: the DNS may fail at times
	}
	for _, d := range s.domains {
		if slices.ContainsFunc(n.Verified, func(name string) bool { return under(name, d) }) {
			rule = "domain:" + d
			break
		}
	}
	if rule == "" {
		return "", false
	}
	if news = s.prove(network(a).Addr(), rule); news && s.o.Changed != nil {
		s.o.Changed()
	}
	return rule, news
}

func (s *Set) prove(a netip.Addr, rule string) (news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	was, known := s.proved[a]
	if !known && len(s.proved) >= maxProved {
		s.forgetLocked(now)
	}
	s.proved[a], s.newly = proof{rule, now.Add(provedFor)}, true
	return !known || was.rule != rule || !now.Before(was.until)
}

// forgetLocked makes room: what has ended, else a hundredth of all, those that end first.
func (s *Set) forgetLocked(now time.Time) {
	type aged struct {
		a     netip.Addr
		until time.Time
	}
	all := make([]aged, 0, len(s.proved))
	for a, p := range s.proved {
		all = append(all, aged{a, p.until})
	}
	slices.SortFunc(all, func(x, y aged) int { return cmp.Or(x.until.Compare(y.until), x.a.Compare(y.a)) })
	for i, x := range all {
		if i >= maxProved/100 && x.until.After(now) {
			break
		}
		delete(s.proved, x.a)
	}
}

// under says whether a name is a domain or lies under it, label by label.
func under(name, domain string) bool {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	front, ok := strings.CutSuffix(name, domain)
	return ok && (front == "" || front[len(front)-1] == '.')
}

// Run refreshes what is due until ctx ends.
func (s *Set) Run(ctx context.Context) {
	for {
		e, at := s.due()
		if e == nil {
			<-ctx.Done()
			return
		}
		if wait := at.Sub(s.o.Now()); wait > 0 {
			s.tell()
			t := time.NewTimer(min(wait, time.Hour)) // the clock may be set meanwhile
			select {
			case <-ctx.Done():
				t.Stop()
				return
			case <-t.C:
			}
			continue
		}
		s.refresh(ctx, e)
		if ctx.Err() != nil {
			return
		}
	}
}

// due returns what is to be refreshed next, and when.
func (s *Set) due() (*expanded, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next *expanded
	for _, e := range s.spf {
		if next == nil || e.next.Before(next.next) {
			next = e
		}
	}
	if next == nil {
		return nil, time.Time{}
	}
	return next, next.next
}

func (s *Set) refresh(ctx context.Context, e *expanded) {
	one, cancel := context.WithTimeout(ctx, onePatience)
	got, err := Expand(one, s.o.Resolver, e.name)
	cancel()
	if ctx.Err() != nil {
		return
	}
	if s.take(e, got, err) && s.o.Changed != nil {
		s.o.Changed()
	}
}

// take decides what an expansion is worth. It reports whether the ranges have changed.
func (s *Set) take(e *expanded, got Expansion, err error) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	e.notes = got.Notes
	if err == nil && len(got.Ranges) == 0 {
		err = errors.New("it names no address")
		if len(got.Notes) > 0 {
			err = fmt.Errorf("it names no address that can be listed: %s", got.Notes[0])
		}
	}
	if err != nil {
		e.wait = min(max(2*e.wait, retryFirst), retryMost)
		e.next = now.Add(jitter(e.wait))
		if text := err.Error(); e.err != text {
			e.err = text
			s.failed = append(s.failed, failure{e.Rule, text})
		}
		return false
	}
	e.wait, e.next = 0, now.Add(jitter(refreshEvery))
	if half(e.ranges, got.Ranges) {
		if e.fewer++; e.fewer < believeAfter {
			e.err = fmt.Sprintf("the last answer names less than half of what was known (%d ranges, now %d): believed if it stays so for %d days", len(e.ranges), len(got.Ranges), believeAfter)
			s.o.Log.Warn(e.err, "rule", e.Rule)
			s.dirty = true
			return false
		}
	}
	e.err, e.fewer, e.at, s.dirty = "", 0, now, true
	changed = !slices.Equal(e.ranges, got.Ranges)
	e.ranges = got.Ranges
	return changed
}

// failure is a rule that could not be refreshed, and why.
type failure struct{ rule, why string }

// tell logs the rules of a round that could not be refreshed, in one line: where the DNS is down, it is all of them.
func (s *Set) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.failed) == 0 {
		return
	}
	first := s.failed[0]
	s.o.Log.Info("allowed senders whose ranges could not be refreshed; what was known of them stays",
		"rules", len(s.failed), "of", len(s.spf), "first", first.rule, "error", first.why, "hint", "mxshieldctl allow list shows all")
	s.failed = nil
}

func jitter(d time.Duration) time.Duration {
	return d - d/10 + time.Duration(rand.Int64N(int64(d/5)+1))
}

// half says whether what is new covers less than half of the addresses of old, in either family.
func half(old, now []netip.Prefix) bool {
	a4, a6 := size(old)
	b4, b6 := size(now)
	return b4 < a4/2 || b6 < a6/2
}

// size counts IPv4 addresses and IPv6 /64s.
func size(list []netip.Prefix) (v4, v6 float64) {
	for _, p := range list {
		if p.Addr().Is4() {
			v4 += math.Exp2(float64(32 - p.Bits()))
		} else {
			v6 += math.Exp2(float64(max(64-p.Bits(), 0)))
		}
	}
	return v4, v6
}

// Status describes one rule.
type Status struct {
	Rule      string
	Preset    bool
	Ranges    int // known now; of a domain: addresses proved to belong to it
	Refreshed time.Time
	Next      time.Time
	Error     string
	Notes     []string // what of an SPF record is not taken over, and why
}

// Status returns the rules in the order they were given, spf: first.
func (s *Set) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []Status
	for _, e := range s.spf {
		list = append(list, Status{Rule: e.Rule, Preset: e.Preset, Ranges: len(e.ranges), Refreshed: e.at, Next: e.next, Error: e.err, Notes: e.notes})
	}
	n, now := map[string]int{}, s.o.Now()
	for _, p := range s.proved {
		if now.Before(p.until) {
			n[p.rule]++
		}
	}
	for _, snd := range s.o.Senders {
		if _, ok := snd.domain(); ok {
			list = append(list, Status{Rule: snd.Rule, Preset: snd.Preset, Ranges: n[snd.Rule]})
		}
	}
	return list
}
