package dnslist

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// When a list is tested, and how long it stays out.
const (
	probeEvery   = 15 * time.Minute
	canaryEvery  = time.Minute // a yes counts only if the list said no to a canary this lately
	backoffFirst = time.Minute
	backoffMost  = time.Hour
	breakerOut   = 30 * time.Minute
	probeTime    = 30 * time.Second // for all questions of a test
	maxErrors    = 5                // failed queries in a row
	maxAnswers   = 16

	window       = 128 // sources looked back on by the breaker
	windowLeast  = 64
	mostListed   = 0.95
	knownListed  = 5
	knownShare   = 0.5
	otherAgrees  = 0.5
	budget6Share = 2 // IPv6 may use one in so many of the day's queries: whoever has a /32 has many sources
)

var (
	testListed = netip.AddrFrom4([4]byte{127, 0, 0, 2}) // RFC 5782 5
	testClean  = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)

// State of a list, for one address family.
type State string

// The states.
const (
	New         State = "new"         // not tested yet
	OK          State = "ok"          // both test entries are right
	Suspended   State = "suspended"   // it is in error: not asked until it is right again
	Unsupported State = "unsupported" // the list has no IPv6
)

// family is the state of a list for IPv4 or IPv6.
type family struct {
	state        State
	reason, hint string
	since        time.Time
	next         time.Time // of the next probe
	backoff      time.Duration
	canary       time.Time // of the last good one
	testing      bool
	tested       chan struct{} // closed after the first test
}

// zone is a list at work.
type zone struct {
	List
	e *Engine

	canaries sync.Mutex
	mu       sync.Mutex
	fam      [2]family // IPv4, IPv6
	tokens   float64
	filled   time.Time
	day      int64
	used     [2]int // queries of the day
	asked    uint64
	listed   uint64
	welcomed uint64
	errs     uint64
	skipped  uint64
	streak   int // of errors
	millis   float64
	seen     [window]mark
	seenN    int
	before   before
}

// mark is what the breaker remembers of one source.
type mark struct{ yes, welcome, known, agreed bool }

func famOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// settled lets those go on who wait for the first test. The zone's lock is held.
func (f *family) settled() {
	if f.state == New {
		return
	}
	select {
	case <-f.tested:
	default:
		close(f.tested)
	}
}

// outcome of one query, before it is believed.
type outcome struct {
	codes        []netip.Addr
	ttl          time.Duration
	clean        bool
	reason, hint string // set: the list is in error
	off          bool   // it was not asked: suspended since before
	unsupported  bool   // it was not asked: it has no IPv6
	err          *resolve.Error
}

// read makes sense of an answer: clean, codes of 127/8, or an error of the list's. One error code or one address outside
// 127/8 among the answers spoils them all.
func (l *List) read(ans resolve.Answer) outcome {
	o := outcome{ttl: ans.TTL, clean: ans.NXDomain || ans.NoData || len(ans.Records) == 0}
	if len(ans.Records) > maxAnswers {
		return outcome{reason: fmt.Sprintf("it answers with %d codes at once", len(ans.Records)), hint: "no list does; is the resolver's answer rewritten?"}
	}
	for _, rr := range ans.Records {
		a, ok := resolve.Addr(rr)
		if !ok || !a.Is4() {
			continue
		}
		if a.As4()[0] != 127 {
			return outcome{reason: fmt.Sprintf("it answers %s, which is outside 127.0.0.0/8", a), hint: "the answer is rewritten: an expired or parked domain, or a resolver that makes up answers"}
		}
		if reason, hint, bad := l.ErrorCode(a); bad {
			return outcome{reason: reason, hint: hint}
		}
		o.ttl = min(o.ttl, time.Duration(rr.Header().Ttl)*time.Second) // the cache keeps it a minute at least
		if !slices.Contains(o.codes, a) {
			o.codes = append(o.codes, a)
		}
	}
	slices.SortFunc(o.codes, netip.Addr.Compare)
	return o
}

// Points adds up what codes count, and says it in words. Codes that no pattern knows count nothing.
func (l *List) Points(codes []netip.Addr) (points float64, words string) {
	var w []string
	for i := range l.Codes {
		c := &l.Codes[i]
		if slices.ContainsFunc(codes, c.Pattern.Match) {
			points += c.Points
			if c.Words != "" {
				w = append(w, c.Words)
			}
		}
	}
	return points, strings.Join(w, ", ")
}

var errBudget = errors.New("over the rate or the day's budget")

// query asks for one name. It waits for the rate limit at most until ctx ends.
func (z *zone) query(ctx context.Context, a netip.Addr, fresh bool) outcome {
	wait, ok := z.take(famOf(a), fresh)
	if !ok {
		return outcome{err: &resolve.Error{Kind: resolve.Stopped, Err: errBudget}}
	}
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			z.give(famOf(a))
			return outcome{err: &resolve.Error{Kind: resolve.Stopped, Err: errBudget}}
		}
	}
	ask := z.e.o.Resolver.Lookup
	if fresh {
		ask = z.e.o.Resolver.Fresh
	}
	ans, err := ask(ctx, queryName(a, z.suffix()), dns.TypeA)
	if err != nil {
		var e *resolve.Error
		if !errors.As(err, &e) {
			e = &resolve.Error{Kind: resolve.Network}
		}
		return outcome{err: e}
	}
	if ans.Cached && !fresh {
		z.give(famOf(a)) // nobody was asked
	} else {
		z.mu.Lock()
		if ms := float64(ans.Took) / float64(time.Millisecond); z.millis == 0 {
			z.millis = ms
		} else {
			z.millis += (ms - z.millis) / 16
		}
		z.mu.Unlock()
	}
	return z.read(ans)
}

// take reserves a query: ok within the day's budget, after a wait for the rate (token bucket of two seconds' worth). Tests are
// counted and never refused: a list that cannot be tested could not be believed.
func (z *zone) take(fam int, test bool) (wait time.Duration, ok bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	now := z.e.o.Now()
	if day := now.Unix() / 86400; day != z.day {
		z.day, z.used = day, [2]int{}
	}
	if test {
		z.used[fam]++
		return 0, true
	}
	if z.used[0]+z.used[1] >= z.Daily || fam == 1 && z.used[1] >= z.Daily/budget6Share {
		z.skipped++
		return 0, false
	}
	burst := max(1, 2*z.Rate)
	if z.filled.IsZero() {
		z.tokens = burst
	} else if dt := now.Sub(z.filled).Seconds(); dt > 0 {
		z.tokens = min(burst, z.tokens+dt*z.Rate)
	}
	z.filled = now
	z.tokens--
	if z.tokens < 0 {
		wait = time.Duration(-z.tokens / z.Rate * float64(time.Second))
		if wait > z.e.o.Timeout {
			z.tokens++
			z.skipped++
			return 0, false
		}
	}
	z.used[fam]++
	return wait, true
}

func (z *zone) give(fam int) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.tokens++; z.used[fam] > 0 {
		z.used[fam]--
	}
}

// suspend takes the list out for a while. An error of the list's is one for both families.
func (z *zone) suspend(fam int, reason, hint string, out time.Duration) {
	z.mu.Lock()
	now := z.e.o.Now()
	news := false
	for i := range z.fam {
		f := &z.fam[i]
		if fam >= 0 && i != fam || f.state == Unsupported {
			continue
		}
		if f.state == Suspended && now.Before(f.next) {
			continue // several questions in flight saw the same
		}
		if f.state != Suspended {
			news, f.since = true, now
		}
		if f.backoff = min(backoffMost, max(backoffFirst, 2*f.backoff)); out == 0 {
			f.next = now.Add(f.backoff)
		} else {
			f.next = now.Add(out)
		}
		f.state, f.reason, f.hint, f.canary = Suspended, reason, hint, time.Time{}
		f.settled()
	}
	z.streak, z.seenN = 0, 0
	z.mu.Unlock()
	if news {
		z.e.o.Log.Warn("a DNS list is suspended: its answers do not count", "list", z.Name, "reason", reason, "hint", hint)
		z.e.forget() // what it said before may be wrong too
	}
}

// ready says whether the list may be asked for addresses of a family. The first test is waited for.
func (z *zone) ready(ctx context.Context, fam int) bool {
	f := &z.fam[fam]
	select {
	case <-f.tested:
	case <-ctx.Done():
		return false
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	return f.state == OK
}

// due says whether it is time for a probe.
func (z *zone) due(fam int, now time.Time) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	f := &z.fam[fam]
	return !f.testing && (f.state == New || !now.Before(f.next) || f.next.Sub(now) > backoffMost)
}

// probe tests the list both ways (RFC 5782 5): what must be listed is, what must not be is not, a random address of 127/8
// neither: its name cannot be in any cache.
func (z *zone) probe(ctx context.Context, fam int) {
	z.mu.Lock()
	f := &z.fam[fam]
	if f.testing {
		z.mu.Unlock()
		return
	}
	f.testing = true
	was := f.state
	z.mu.Unlock()
	defer func() {
		z.mu.Lock()
		f.testing = false
		f.settled()
		z.mu.Unlock()
	}()
	reason, hint, unsupported := z.test(ctx, fam)
	if errors.Is(ctx.Err(), context.Canceled) && reason != "" {
		return // the agent stops
	}
	if reason != "" {
		z.suspend(fam, reason, hint, 0)
		return
	}
	z.mu.Lock()
	now := z.e.o.Now()
	next := OK
	if unsupported {
		next = Unsupported
	}
	if f.state != next {
		f.since = now
	}
	f.state, f.reason, f.hint, f.backoff, f.next, f.canary = next, "", "", 0, now.Add(probeEvery), now
	z.mu.Unlock()
	if was == Suspended && next == OK {
		z.e.o.Log.Info("a DNS list is right again", "list", z.Name, "family", famNames[fam])
	}
}

var famNames = [2]string{"IPv4", "IPv6"}

func (z *zone) test(ctx context.Context, fam int) (reason, hint string, unsupported bool) {
	at := func(a netip.Addr) netip.Addr {
		if fam == 1 {
			return mapped(a)
		}
		return a
	}
	if !z.noListed {
		o := z.query(ctx, at(testListed), true)
		switch {
		case o.err != nil:
			return "its test entry cannot be asked for: " + o.err.Words(), o.err.HintText(), false
		case o.reason != "":
			return o.reason, o.hint, false
		case o.clean && fam == 1:
			return "", "", true
		case len(o.codes) == 0:
			return fmt.Sprintf("it does not list its test entry %s (RFC 5782)", testListed), "the list is dead, the zone's name is wrong, or this resolver is refused", false
		}
	}
	if reason, hint = z.canary(ctx, fam); reason != "" || z.noClean {
		return reason, hint, false
	}
	o := z.query(ctx, at(testClean), true)
	switch {
	case o.err != nil:
		return "its test entry cannot be asked for: " + o.err.Words(), o.err.HintText(), false
	case o.reason != "":
		return o.reason, o.hint, false
	case !o.clean:
		return fmt.Sprintf("it lists %s, which must not be listed (RFC 5782)", testClean), "a list that lists everything: its domain may have expired", false
	}
	return "", "", false
}

// canary asks for an address that nobody can be: a list that has it lists everything.
func (z *zone) canary(ctx context.Context, fam int) (reason, hint string) {
	if z.noClean {
		return "", ""
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], rand.Uint32())
	b[0], b[1] = 127, 1+b[1]%254
	a := netip.AddrFrom4(b)
	if fam == 1 {
		a = mapped(a)
	}
	o := z.query(ctx, a, true)
	switch {
	case o.err != nil:
		return "it could not be tested: " + o.err.Words(), o.err.HintText()
	case o.reason != "":
		return o.reason, o.hint
	case !o.clean:
		return fmt.Sprintf("it lists %s, an address nobody can have", a), "a list that lists everything: its domain may have expired, or it punishes too many queries"
	}
	return "", ""
}

// believe says whether a yes counts now: the list must have said no to a canary within the last minute.
func (z *zone) believe(ctx context.Context, fam int) bool {
	if z.noClean {
		return true
	}
	z.canaries.Lock() // one at a time; whoever waited finds it done
	defer z.canaries.Unlock()
	z.mu.Lock()
	f := &z.fam[fam]
	since, state := z.e.o.Now().Sub(f.canary), f.state
	z.mu.Unlock()
	if state != OK || since >= 0 && since < canaryEvery {
		return state == OK
	}
	reason, hint := z.canary(ctx, fam)
	if reason == "" {
		z.mu.Lock()
		defer z.mu.Unlock()
		if f.state == OK {
			f.canary = z.e.o.Now()
		}
		return f.state == OK
	}
	if ctx.Err() == nil {
		z.suspend(fam, reason, hint, 0)
	}
	return false
}

// count feeds the breaker with what the list said of one source: agreed if another list said the same. It returns
// why the list is to be suspended, if it is.
func (z *zone) count(m mark) (reason, hint string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.seen[z.seenN%window] = m
	z.seenN++
	n := min(z.seenN, window)
	var yes, welcome, known, knownYes, agreed int
	for _, s := range z.seen[:n] {
		add := func(c *int, b bool) {
			if b {
				*c++
			}
		}
		add(&yes, s.yes)
		add(&welcome, s.welcome)
		add(&known, s.known)
		add(&knownYes, s.known && s.yes)
		add(&agreed, s.yes && s.agreed)
	}
	switch {
	case knownYes >= knownListed && float64(knownYes) > knownShare*float64(known):
		return fmt.Sprintf("it lists %d of the last %d sources from which mail was accepted", knownYes, known), "look at the list's own news: one that lists the senders of your mail is of no use or in error"
	case n >= windowLeast && float64(yes) >= mostListed*float64(n) && float64(agreed) < otherAgrees*float64(yes):
		return fmt.Sprintf("it lists %d of the last %d sources, and no other list agrees", yes, n), "a list that lists nearly everybody is in error, or all who come are bots: a second list would tell"
	case n >= windowLeast && float64(welcome) >= mostListed*float64(n):
		return fmt.Sprintf("it welcomes %d of the last %d sources", welcome, n), "a welcome list that welcomes nearly everybody punishes too many queries: register with it"
	}
	return "", ""
}
