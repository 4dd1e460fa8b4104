// Package dnslist asks DNS lists (DNSBL and DNSWL, RFC 5782) about sources, and believes them only as far as they can be
// checked. It knows nothing of scores: it says what the lists say, in points.
//
// # Asking
//
// A Collector takes sources from the log path and never waits: it hands over a batch at a time, and a source goes into a
// bounded queue unless it was asked about within the TTL of the answer (an LRU of bounded size; IPv6 by /64). Workers ask
// all lists about it, and for its reverse names, and hand over a Finding. Each list has a rate and a daily budget (IPv6
// may use half of it); what is over it is not asked, and counts as not known. Without any list only names are asked for.
//
// # Codes
//
// An answer counts only by the list's table of codes; a code that is not in it counts nothing. Answers outside 127/8, error
// codes (127.255.255.x, 127.0.0.255, ...), SERVFAIL, REFUSED and silence say nothing about a source, and the first three
// of them suspend the list.
//
// # Trust, but verify
//
//   - Before first use, every 15 minutes, and after a suspension, the test entries of RFC 5782 are asked for: 127.0.0.2 must
//     be listed, 127.0.0.1 and a random address of 127/8 must not; for IPv6 ::ffff:127.0.0.2 and so on. A list that has no
//     IPv6 test entry is not asked about IPv6.
//   - A yes counts only if the list said no to a random address of 127/8 within the last minute.
//   - The breaker suspends a list for half an hour that lists half of the sources from which mail was accepted (five at
//     least), or 95% of the last 64 to 128 sources while no other list agrees, or welcomes as many.
//   - A suspended list is retried after 1 min, doubling to 1 h. What it said before is forgotten.
//
// # Secrets
//
// A list's key (Spamhaus DQS) stands in no name, error, status or log: errors are told by resolve's Words, which have no name.
package dnslist

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// Resolver is the part of resolve.Resolver that is used here.
type Resolver interface {
	Lookup(ctx context.Context, name string, qtype uint16) (resolve.Answer, error)
	Fresh(ctx context.Context, name string, qtype uint16) (resolve.Answer, error)
	FCrDNS(ctx context.Context, a netip.Addr) resolve.Names
}

// Options is what NewEngine needs. Lists (with their keys loaded) and Resolver must be set.
type Options struct {
	Lists    []List
	Saved    []byte // what Save returned in an earlier life: the queries of the day
	Resolver Resolver
	Found    func(Finding)         // called by the workers, several at a time
	Known    func(netip.Addr) bool // whether mail of a source was accepted before; called by the workers
	Skip     func(netip.Addr) bool // whether a source need not be asked about; called by the workers
	Private  bool                  // ask about private addresses too
	Queue    int                   // sources that wait: 10,000
	Workers  int                   // 32
	Sources  int                   // that are remembered: 32,768, about 300 bytes each
	Timeout  time.Duration         // for all questions about one source: 5 s
	Now      func() time.Time
	Log      *slog.Logger
}

// A Listing is what one list says of a source.
type Listing struct {
	Zone   string       `json:"zone"` // never holds a key
	Codes  []netip.Addr `json:"codes"`
	Points float64      `json:"points"` // negative: welcome
	Words  string       `json:"words,omitempty"`
}

// A Finding is what is known about a source.
type Finding struct {
	Source   netip.Addr    `json:"source"`
	Listings []Listing     `json:"listings,omitempty"`
	Sum      float64       `json:"sum"` // of all points
	RDNS     resolve.State `json:"rdns"`
	Names    []string      `json:"names,omitempty"`   // verified ones
	Unknown  []string      `json:"unknown,omitempty"` // lists that could not be asked, and why
	TTL      time.Duration `json:"ttl"`               // how long it is believed
	Rejects  int           `json:"-"`                 // dnsbl_reject lines that waited for it
}

// Bounds of how long a Finding is believed (postscreen's are the same).
const (
	ttlLeast   = time.Minute
	ttlMost    = time.Hour
	ttlUnknown = 2 * time.Minute  // if a list could not be asked
	ttlOff     = 10 * time.Minute // if a list is suspended
	ttlNames   = 10 * time.Minute // if the names could not be found out
	maxRejects = 1000
)

// Listed says whether a list speaks against the source.
func (f *Finding) Listed() bool {
	for i := range f.Listings {
		if f.Listings[i].Points > 0 {
			return true
		}
	}
	return false
}

// Words says it to a person: "zen.spamhaus.org (SBL, XBL) +140".
func (f *Finding) Words() string {
	var w []string
	for _, l := range f.Listings {
		if l.Points == 0 {
			continue
		}
		s := l.Zone
		if l.Words != "" {
			s += " (" + l.Words + ")"
		}
		w = append(w, fmt.Sprintf("%s %+g", s, l.Points))
	}
	return strings.Join(w, ", ")
}

// Engine asks. Make it with NewEngine; Run does the work.
type Engine struct {
	o     Options
	zones atomic.Pointer[[]*zone]
	queue chan netip.Addr
	rdns  chan struct{} // slots

	batches chan []note   // from a Collector
	spare   chan []note   // back to it
	offered atomic.Int64  // sources in batches, or given up
	refused atomic.Uint64 // sources in batches that found no place

	setting sync.Mutex    // one SetLists at a time
	news    chan struct{} // there are other lists
	mu      sync.Mutex
	sources sources
	epoch   uint32 // raised when a list is suspended: older findings confirm nothing
	asked   uint64
	dropped uint64
	done    uint64

	savedAt time.Time
	saved   []byte // what Save returned last
	ended   bool   // Run has
}

// NewEngine checks the options. It starts nothing.
func NewEngine(o Options) *Engine {
	def := func(n *int, v int) {
		if *n <= 0 {
			*n = v
		}
	}
	def(&o.Queue, 10_000)
	def(&o.Workers, 32)
	def(&o.Sources, 32_768)
	if o.Timeout <= 0 {
		o.Timeout = 5 * time.Second
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Found == nil {
		o.Found = func(Finding) {}
	}
	if o.Skip == nil {
		o.Skip = func(netip.Addr) bool { return false }
	}
	if o.Known == nil {
		o.Known = func(netip.Addr) bool { return false }
	}
	e := &Engine{
		o: o, queue: make(chan netip.Addr, o.Queue), rdns: make(chan struct{}, rdnsSlots), sources: newSources(o.Sources),
		batches: make(chan []note, maxBatches), spare: make(chan []note, 16), news: make(chan struct{}, 1),
	}
	e.zones.Store(new([]*zone))
	e.SetLists(o.Lists)
	<-e.news // Run begins with a test anyway
	e.load(o.Saved)
	return e
}

// SetLists asks these lists from now on. One that is the same as before goes on as it is; another one is tested first. What
// was found by lists that are gone confirms nothing any more.
func (e *Engine) SetLists(lists []List) {
	e.setting.Lock()
	defer e.setting.Unlock()
	was := *e.zones.Load()
	now := make([]*zone, 0, len(lists))
	kept := 0
	for _, l := range lists {
		if l.Rate <= 0 {
			l.Rate = DefaultRate
		}
		if l.Daily <= 0 {
			l.Daily = DefaultDaily
		}
		z := &zone{List: l, e: e}
		for i := range z.fam {
			z.fam[i].state, z.fam[i].tested = New, make(chan struct{})
		}
		if i := slices.IndexFunc(was, func(o *zone) bool { return o.Zone == l.Zone }); i >= 0 {
			if reflect.DeepEqual(was[i].List, l) {
				z = was[i]
				kept++
			} else {
				z.resume(was[i].spent())
			}
		}
		now = append(now, z)
	}
	e.zones.Store(&now)
	select {
	case e.news <- struct{}{}:
	default:
	}
	if kept < len(was) {
		e.forget()
	}
}

// Run asks until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for range e.o.Workers {
		all.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case a := <-e.queue:
					e.work(ctx, a)
				}
			}
		})
	}
	all.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case list := <-e.batches:
				e.take(list)
			}
		}
	})
	all.Go(func() {
		tick := time.NewTicker(10 * time.Second)
		defer tick.Stop()
		for {
			for _, z := range *e.zones.Load() {
				for fam := range z.fam {
					if z.due(fam, e.o.Now()) {
						all.Go(func() {
							ctx, cancel := context.WithTimeout(ctx, probeTime)
							defer cancel()
							z.probe(ctx, fam)
						})
					}
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			case <-e.news:
			}
		}
	})
	all.Wait()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended = true
	return nil
}

var cgnat = netip.MustParsePrefix("100.64.0.0/10")

// askable says whether lists can know an address.
func (e *Engine) askable(a netip.Addr) bool {
	if !a.IsValid() || !a.IsGlobalUnicast() || a.Is4() && a.As4()[0] == 0 {
		return false
	}
	return e.o.Private || !a.IsPrivate() && !cgnat.Contains(a)
}

// Ask wants to know about a source. It never waits. It reports whether the source will be asked about now.
func (e *Engine) Ask(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if !e.askable(a) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.askLocked(a, e.o.Now()) != nil
}

// askLocked queues a source that nothing is known about, and returns its memory if it is queued.
func (e *Engine) askLocked(a netip.Addr, now time.Time) *source {
	k := keyOf(a)
	s := e.sources.get(k)
	if s != nil {
		outdated := s.epoch != e.epoch && s.found != nil && s.found.Listed()
		if s.pending || !outdated && s.holds(now) {
			return nil
		}
	}
	if !e.pushLocked(a) {
		return nil
	}
	if s == nil {
		s = e.sources.add(k)
	} else {
		e.sources.touch(s)
	}
	s.pending = true
	return s
}

// holds says whether what was found still holds. A clock that was set back must not prolong it.
func (s *source) holds(now time.Time) bool {
	left := s.until - now.Unix()
	return left > 0 && left <= int64(ttlMost/time.Second)
}

func (e *Engine) pushLocked(a netip.Addr) bool {
	select {
	case e.queue <- a:
		e.asked++
		return true
	default:
		e.dropped++
		return false
	}
}

// Rejected notes n lines by which the MTA says that a list made it refuse a source. It says whether that is confirmed by what
// the lists told us; if they are still to tell, the lines wait for the Finding (Rejects).
func (e *Engine) Rejected(a netip.Addr, n int) (confirmed bool) {
	a = a.Unmap().WithZone("")
	if !e.askable(a) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.o.Now()
	s := e.sources.get(keyOf(a))
	if s != nil && !s.pending && e.validLocked(s, now) {
		return s.found.Listed()
	}
	if s == nil || !s.pending {
		s = e.askLocked(a, now)
	}
	if s != nil {
		s.rejects = uint16(min(int(s.rejects)+n, maxRejects))
	}
	return false
}

func (e *Engine) validLocked(s *source, now time.Time) bool {
	return s.found != nil && s.epoch == e.epoch && s.holds(now)
}

// Recent returns what was found out about a source, if that still holds.
func (e *Engine) Recent(a netip.Addr) (Finding, bool) {
	a = a.Unmap().WithZone("")
	e.mu.Lock()
	defer e.mu.Unlock()
	if !a.IsValid() {
		return Finding{}, false
	}
	if s := e.sources.get(keyOf(a)); s != nil && e.validLocked(s, e.o.Now()) {
		return *s.found, true
	}
	return Finding{}, false
}

// forget makes all findings so far confirm nothing: a list that had a part in them is in error.
func (e *Engine) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.epoch++
}

func (e *Engine) work(ctx context.Context, a netip.Addr) {
	e.mu.Lock()
	epoch := e.epoch
	e.mu.Unlock()
	f, skip := Finding{TTL: ttlOff}, e.o.Skip(a)
	if !skip {
		f = e.check(ctx, a)
	}
	if ctx.Err() != nil {
		return
	}
	defer e.finished() // not before Found has returned: who waits for Done waits for what came of it
	e.mu.Lock()
	s := e.sources.get(keyOf(a))
	if s == nil { // pushed out meanwhile
		s = e.sources.add(keyOf(a))
	}
	s.pending, s.until, s.epoch, s.found = false, e.o.Now().Add(f.TTL).Unix(), epoch, nil
	f.Rejects, s.rejects = int(s.rejects), 0
	if !skip {
		kept := f
		kept.Rejects, kept.Unknown = 0, nil
		s.found = &kept
	}
	stale := e.epoch != epoch
	e.mu.Unlock()
	if skip || stale && f.Listed() {
		return // a list was suspended meanwhile; perhaps it is one of these: the next event asks again
	}
	e.o.Found(f)
}

func (e *Engine) finished() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.done++
}

// check asks all lists and the reverse DNS about one source.
func (e *Engine) check(ctx context.Context, a netip.Addr) Finding {
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	zones := *e.zones.Load()
	outs := make([]outcome, len(zones))
	var all sync.WaitGroup
	for i, z := range zones {
		all.Go(func() { outs[i] = z.about(ctx, a) })
	}
	names := e.names(ctx, a)
	all.Wait()

	f := Finding{Source: a, TTL: ttlMost, RDNS: names.State, Names: names.Verified}
	if names.State == resolve.StateTemporary {
		f.TTL = ttlNames
	}
	against, listings := 0, make([]*Listing, len(outs))
	for i, o := range outs {
		z := zones[i]
		switch {
		case o.err != nil:
			f.Unknown = append(f.Unknown, z.Name+": "+o.err.Words())
			f.TTL = min(f.TTL, ttlUnknown)
		case o.reason != "":
			f.Unknown = append(f.Unknown, z.Name+": "+o.reason)
			if o.off {
				f.TTL = min(f.TTL, ttlOff)
			} else {
				f.TTL = min(f.TTL, ttlUnknown)
			}
		default:
			f.TTL = min(f.TTL, o.ttl)
		}
		if len(o.codes) == 0 {
			continue
		}
		l := Listing{Zone: z.Name, Codes: o.codes}
		l.Points, l.Words = z.Points(o.codes)
		if l.Points > 0 {
			against++
		}
		listings[i] = &l
	}
	known := e.o.Known(a)
	for i, o := range outs {
		if o.err != nil || o.reason != "" {
			continue
		}
		z, l := zones[i], listings[i]
		m := mark{known: known}
		if l != nil {
			m.yes, m.welcome, m.agreed = l.Points > 0, l.Points < 0, against > 1
		}
		if reason, hint := z.tally(m); reason != "" {
			z.suspend(-1, reason, hint, breakerOut)
			f.Unknown = append(f.Unknown, z.Name+": "+reason)
			continue
		}
		if l == nil {
			continue
		}
		f.Listings = append(f.Listings, *l)
		f.Sum += l.Points
	}
	f.TTL = max(ttlLeast, min(f.TTL, ttlMost))
	return f
}

// Reverse zones belong to the sources: one that never answers must not keep the lists from being asked. Few are asked at once, for
// a short time; who finds no place has no known name, which counts nothing.
const (
	rdnsSlots = 16
	rdnsTime  = 2 * time.Second
)

func (e *Engine) names(ctx context.Context, a netip.Addr) resolve.Names {
	select {
	case e.rdns <- struct{}{}:
		defer func() { <-e.rdns }()
	default:
		return resolve.Names{State: resolve.StateTemporary, Err: resolve.ErrBusy}
	}
	ctx, cancel := context.WithTimeout(ctx, rdnsTime)
	defer cancel()
	return e.o.Resolver.FCrDNS(ctx, a)
}

// about asks one list about a source.
func (z *zone) about(ctx context.Context, a netip.Addr) outcome {
	fam := famOf(a)
	if !z.ready(ctx, fam) {
		z.mu.Lock()
		defer z.mu.Unlock()
		z.skipped++
		f := &z.fam[fam]
		switch f.state {
		case Unsupported:
			return outcome{clean: true, ttl: ttlMost, unsupported: true}
		case Suspended:
			return outcome{reason: "suspended: " + f.reason, off: true}
		}
		return outcome{reason: "not tested yet"}
	}
	o := z.query(ctx, a, false)
	switch {
	case o.err != nil:
		if errors.Is(o.err, errBudget) || errors.Is(o.err, resolve.ErrBusy) || errors.Is(ctx.Err(), context.Canceled) {
			return o // not the list's fault
		}
		z.mu.Lock()
		z.errs++
		z.streak++
		bad := z.streak >= maxErrors
		z.mu.Unlock()
		if bad {
			z.suspend(-1, fmt.Sprintf("%d queries in a row failed, the last one: %s", maxErrors, o.err.Words()), o.err.HintText(), 0)
		}
		return o
	case o.reason != "":
		z.mu.Lock()
		z.errs++
		z.mu.Unlock()
		z.suspend(-1, o.reason, o.hint, 0)
		return o
	}
	z.mu.Lock()
	z.streak = 0
	z.mu.Unlock()
	if p, _ := z.Points(o.codes); p != 0 && !z.believe(ctx, fam) {
		return outcome{reason: "its answer is not believed"}
	}
	return o
}

// tally counts an answer, for status and for the breaker.
func (z *zone) tally(m mark) (reason, hint string) {
	z.mu.Lock()
	z.asked++
	if m.yes {
		z.listed++
	}
	if m.welcome {
		z.welcomed++
	}
	z.mu.Unlock()
	return z.count(m)
}
