// Package resolve is the agent's DNS client: (name, type) -> records, over several servers, with a bounded cache. It
// does no recursion, no DNSSEC, no search lists and no policy: what an answer means is for those who ask.
//
// An Answer is a fact: records, or NXDOMAIN, or no record of the type. Everything else is an *Error that says what
// went wrong; all of them but BadName are temporary and say nothing about the name.
//
//   - Servers come from the config or from resolv.conf(5), which is looked at again when it changed. A server that does not
//     answer, or refuses us, is asked last for a while (1 s doubling to 1 min).
//
//   - Each query has its own socket (the kernel picks a random port), a random id, and may vary the case of the name (0x20).
//     A datagram from elsewhere never reaches us; one with another id, question or type is ignored, and so is one
//     that cannot be read: who forges answers must not be able to end the wait for the right one.
//
//   - EDNS0 with 1232 octets (DNS flag day 2020); without EDNS where a server does not know it (RFC 6891 7). An answer that was
//     cut (TC) is asked for again over TCP, up to 16 KiB.
//
//   - One query in flight per name and type; whoever else asks waits for it. At most Concurrency in flight in all.
//
//   - The cache keeps an answer for its TTL between MinTTL and MaxTTL, a negative one by RFC 2308 (the lesser of the SOA's
//     TTL and minimum) up to NegativeTTL, a failure for 5 s (RFC 9520). It is bounded in bytes.
//
//     r, err := resolve.New(resolve.Options{})
//     defer r.Close()
//     ans, err := r.Lookup(ctx, "2.0.0.127.bl.example.net", dns.TypeA)
//
// New starts no goroutine; Lookup starts one per query in flight, and Close waits for them. All methods may be
// called at the same time.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Options is what New needs. Zero values mean the defaults named here.
type Options struct {
	Servers     []netip.AddrPort // none: those of ResolvConf
	ResolvConf  string           // /etc/resolv.conf
	Timeout     time.Duration    // of one attempt: 2 s
	Total       time.Duration    // of a lookup with all its attempts: 8 s
	Concurrency int              // queries in flight: 128
	CacheBytes  int              // about: 16 MiB
	MinTTL      time.Duration    // 1 min
	MaxTTL      time.Duration    // 1 h
	NegativeTTL time.Duration    // the longest for a negative answer: 1 h
	MixCase     bool             // 0x20: vary the case of the question and want it back
	Now         func() time.Time // time.Now
	// Dial opens a connected socket, udp or tcp; default: net.Dialer. For other network namespaces.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// What is believed of one answer.
const (
	ednsSize   = 1232
	maxTCP     = 16 << 10 // octets
	maxRecords = 256      // in the answer section
	maxChain   = 8        // CNAMEs
	maxStrange = 64       // datagrams that are not the answer, per attempt
	maxServers = 8
	failureTTL = 5 * time.Second
	confEvery  = 5 * time.Second // how often resolv.conf is looked at
)

// Answer is what a name has. Records are shared with the cache: read only.
type Answer struct {
	Records  []dns.RR      // of the asked type, at the end of the CNAME chain if there is one
	NXDomain bool          // the name (or the end of the chain) does not exist
	NoData   bool          // it exists, without a record of this type
	TTL      time.Duration // what is left of it, by this cache's clock
	Cached   bool
	Took     time.Duration // of the query, 0 if cached
}

// Kind says why there is no answer.
type Kind uint8

// The kinds of errors. All but BadName are temporary.
const (
	Timeout   Kind = iota + 1 // nothing came
	Network                   // the question could not be sent, or the connection broke
	ServFail                  // RFC 1035 rcode 2
	Refused                   // rcode 5
	Rcode                     // any other rcode
	Truncated                 // cut over UDP, and TCP failed
	Mismatch                  // only answers with another id or question came: somebody forges, or a broken server
	Malformed                 // it cannot be read, or contradicts itself
	Huge                      // more than 16 KiB or 256 records
	Chain                     // CNAMEs in a circle, or more than 8
	Lame                      // a referral: the server does not recurse
	BadName                   // no domain name
	Stopped                   // the caller gave up, or the resolver was closed
	NoServer                  // there is none to ask
)

var kindWords = [...]string{
	Timeout: "no answer in time", Network: "the server cannot be reached", ServFail: "SERVFAIL", Refused: "REFUSED", Rcode: "the server reports an error",
	Truncated: "the answer was cut and TCP failed", Mismatch: "only answers to another question came (forged?)", Malformed: "the answer cannot be read",
	Huge: "the answer is too large", Chain: "CNAME chain without end", Lame: "the server does not recurse (it gave a referral)",
	BadName: "no domain name", Stopped: "not waited for", NoServer: "no DNS server is known",
}

func (k Kind) String() string {
	if int(k) < len(kindWords) && k > 0 {
		return kindWords[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is why there is no answer.
type Error struct {
	Kind   Kind
	Name   string // as asked; may hold a secret (a list's key): log Words instead where that may be
	Type   uint16
	Server netip.AddrPort // the one asked last, invalid if none was
	Err    error          // more about it, nil or without the name
}

// Words says it without the name.
func (e *Error) Words() string {
	s := e.Kind.String()
	if e.Server.IsValid() {
		s += " (" + e.Server.String() + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Error() string {
	return fmt.Sprintf("look up %s %q: %s", dns.Type(e.Type), e.Name, e.Words())
}

func (e *Error) Unwrap() error { return e.Err }

// Temporary says whether a later try may fare better. Nothing is known about the name then.
func (e *Error) Temporary() bool { return e.Kind != BadName }

// HintText tells what to look at.
func (e *Error) HintText() string {
	switch e.Kind {
	case Timeout, Network, NoServer:
		return "is the server in dns.resolvers (or /etc/resolv.conf) running and reachable?"
	case Refused, Lame:
		return "the server must answer recursive queries from this host (allow-recursion, access-control)"
	case Truncated:
		return "TCP port 53 to the server must be open"
	}
	return ""
}

// ErrBusy stands in a Stopped error when too many queries were in flight: the question was never sent.
var ErrBusy = errors.New("too many queries in flight")

// Temporary says whether err is a temporary failure of a lookup.
func Temporary(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Temporary()
}

// Resolver asks DNS servers. Make it with New.
type Resolver struct {
	o      Options
	ctx    context.Context // ends what is in flight at Close, whoever asked for it
	cancel context.CancelFunc
	slots  chan struct{}
	all    sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	servers  []*server
	conf     confState
	flights  map[question]*flight
	cache    cache
	hits     uint64
	queries  uint64
	failures [NoServer + 1]uint64
}

type question struct {
	name  string // lower case, with the final dot
	qtype uint16
}

type flight struct {
	done chan struct{}
	ans  Answer
	err  error
}

// New makes a Resolver. It reads resolv.conf if there are no servers in o; a missing file means 127.0.0.1, as resolv.conf(5)
// says.
func New(o Options) (*Resolver, error) {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&o.Timeout, 2*time.Second)
	def(&o.Total, 8*time.Second)
	def(&o.MinTTL, time.Minute)
	def(&o.MaxTTL, time.Hour)
	def(&o.NegativeTTL, time.Hour)
	if o.Concurrency <= 0 {
		o.Concurrency = 128
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = 16 << 20
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Servers) > maxServers {
		return nil, fmt.Errorf("%d DNS servers are too many: at most %d", len(o.Servers), maxServers)
	}
	for _, s := range o.Servers {
		if !s.IsValid() || s.Port() == 0 || s.Addr().IsUnspecified() {
			return nil, fmt.Errorf("DNS server %s: not an address with a port", s)
		}
	}
	r := &Resolver{o: o, slots: make(chan struct{}, o.Concurrency), flights: map[question]*flight{}, cache: newCache(o.CacheBytes)}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.setServersLocked(o.Servers)
	r.followLocked(o.Now())
	return r, nil
}

// Close ends what is in flight and waits for it. Later lookups fail with Stopped.
func (r *Resolver) Close() {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.cancel()
	r.all.Wait()
}

// Lookup asks for the records of a type. The name may lack its final dot; it is never completed with a search list.
// It returns at the latest when ctx ends; the query itself goes on and its answer is cached.
func (r *Resolver) Lookup(ctx context.Context, name string, qtype uint16) (Answer, error) {
	return r.lookup(ctx, name, qtype, false)
}

// Fresh is Lookup past the cache of this resolver. The answer enters the cache.
func (r *Resolver) Fresh(ctx context.Context, name string, qtype uint16) (Answer, error) {
	return r.lookup(ctx, name, qtype, true)
}

func (r *Resolver) lookup(ctx context.Context, name string, qtype uint16, fresh bool) (Answer, error) {
	q := question{strings.ToLower(dns.Fqdn(name)), qtype}
	if _, ok := dns.IsDomainName(q.name); !ok || len(name) == 0 || len(q.name) > 1000 || q.name == "." {
		return Answer{}, &Error{Kind: BadName, Name: clip(name), Type: qtype}
	}
	// More than 253 octets on the wire do not pack; escapes make the text longer than that.
	if n, err := dns.PackDomainName(q.name, make([]byte, 256), 0, nil, false); err != nil || n > 255 {
		return Answer{}, &Error{Kind: BadName, Name: clip(name), Type: qtype}
	}
	stopped := func(err error) error { return &Error{Kind: Stopped, Name: name, Type: qtype, Err: err} }
	f, ans, err := r.join(q, fresh, false)
	if f == nil && (err != nil || ans != nil) {
		return deref(ans), err
	}
	if f == nil {
		select {
		case r.slots <- struct{}{}:
		case <-ctx.Done():
			return Answer{}, stopped(ErrBusy)
		case <-r.ctx.Done():
			return Answer{}, stopped(nil)
		}
		// While this waited for its turn another one may have asked.
		if f, ans, err = r.join(q, fresh, true); f == nil {
			if ans == nil && err == nil {
				err = stopped(nil)
			}
			return deref(ans), err
		}
	}
	select {
	case <-f.done:
		return f.ans, f.err
	case <-ctx.Done():
		return Answer{}, stopped(ctx.Err())
	}
}

func deref(a *Answer) Answer {
	if a == nil {
		return Answer{}
	}
	return *a
}

func clip(s string) string { return s[:min(len(s), 300)] }

// join answers from the cache or returns the flight to wait for. With slot, the caller holds a slot: it starts the
// flight if there is none, and the slot is given back if not.
func (r *Resolver) join(q question, fresh, slot bool) (*flight, *Answer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.o.Now()
	give := func() {
		if slot {
			<-r.slots
		}
	}
	if r.closed {
		give()
		return nil, nil, &Error{Kind: Stopped, Name: q.name, Type: q.qtype}
	}
	if f := r.flights[q]; f != nil {
		give()
		return f, nil, nil
	}
	if !fresh {
		if e := r.cache.get(q, now); e != nil {
			r.hits++
			give()
			if e.err != nil {
				return nil, nil, e.err
			}
			a := e.ans
			a.TTL, a.Cached, a.Took = e.expires.Sub(now), true, 0
			return nil, &a, nil
		}
	}
	if !slot {
		return nil, nil, nil
	}
	r.followLocked(now)
	f := &flight{done: make(chan struct{})}
	r.flights[q] = f
	order := r.orderLocked(now)
	r.all.Add(1)
	go func() {
		defer r.all.Done()
		ctx, cancel := context.WithTimeout(r.ctx, r.o.Total)
		f.ans, f.err = r.ask(ctx, q, order)
		cancel()
		<-r.slots
		r.land(q, f)
	}()
	return f, nil, nil
}

// land puts what a flight brought into the cache and wakes those who wait.
func (r *Resolver) land(q question, f *flight) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.flights, q)
	now := r.o.Now()
	var e *Error
	switch {
	case f.err == nil:
		r.cache.put(q, f.ans, nil, now, f.ans.TTL)
	case errors.As(f.err, &e):
		r.failures[e.Kind]++
		if e.Kind != Stopped {
			r.cache.put(q, Answer{}, e, now, failureTTL)
		}
	}
	close(f.done)
}

// clamp bounds the TTL of an answer, in seconds.
func (r *Resolver) clamp(seconds uint32, negative bool) time.Duration {
	most := r.o.MaxTTL
	if negative {
		most = r.o.NegativeTTL
	}
	if seconds > math.MaxInt32 { // RFC 2181 8: as if it were zero
		seconds = 0
	}
	return max(r.o.MinTTL, min(most, time.Duration(seconds)*time.Second))
}

// Status is what the resolver does, for people.
type Status struct {
	Servers    []ServerStatus    `json:"servers"`
	Queries    uint64            `json:"queries"` // sent, retries included
	Hits       uint64            `json:"hits"`    // answered by the cache
	InFlight   int               `json:"in_flight"`
	Cached     int               `json:"cached"` // names
	CacheBytes int               `json:"cache_bytes"`
	Failures   map[string]uint64 `json:"failures"` // by kind in words
	Problem    string            `json:"problem,omitempty"`
}

// ServerStatus is one server's share.
type ServerStatus struct {
	Server   netip.AddrPort `json:"server"`
	Queries  uint64         `json:"queries"`
	Failures uint64         `json:"failures"`
	Down     bool           `json:"down"`            // asked last for now
	Why      string         `json:"why,omitempty"`   // of the last failure
	Millis   float64        `json:"ms"`              // how long answers take, smoothed
	Since    time.Time      `json:"since,omitempty"` // of the last failure
}

// Status collects it.
func (r *Resolver) Status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.o.Now()
	s := Status{Queries: r.queries, Hits: r.hits, InFlight: len(r.flights), Cached: len(r.cache.m), CacheBytes: r.cache.bytes, Failures: map[string]uint64{}, Problem: r.conf.problem}
	for k, n := range r.failures {
		if n > 0 {
			s.Failures[Kind(k).String()] = n
		}
	}
	for _, v := range r.servers {
		s.Servers = append(s.Servers, ServerStatus{Server: v.addr, Queries: v.queries, Failures: v.failures, Down: v.down(now), Why: v.why, Since: v.failed, Millis: v.rtt})
	}
	return s
}

// Deaf says whether no server has answered of late: whoever can do without an answer need not wait for one.
func (r *Resolver) Deaf() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.servers {
		if s.streak < deafAfter {
			return false
		}
	}
	return true
}

// Servers returns the addresses that are asked now.
func (r *Resolver) Servers() []netip.AddrPort {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followLocked(r.o.Now())
	var list []netip.AddrPort
	for _, s := range r.servers {
		list = append(list, s.addr)
	}
	return list
}
