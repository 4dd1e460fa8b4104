// Package reputation watches what DNS lists say of our own addresses: each is looked up once an hour, and what changes is an
// event. The history follows the address, not who holds it: events are kept for a year, also of addresses that left the
// config.
//
// An answer that is not known (a list in error, the DNS down, the budget spent) changes nothing: a delisting is only what the
// list itself says. An address is watched as it is; of an IPv6 network one address of each /64, for lists have /64s.
//
//	w := reputation.New(reputation.Options{Own: own, Lists: engine, Log: log})
//	w.Run(ctx)
//
// It knows of no points and blocks nothing. All methods may be called at the same time.
package reputation

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mxshield/mxshield/agent/internal/dnslist"
)

// The rhythm.
const (
	every     = time.Hour              // give or take a twentieth
	pace      = 200 * time.Millisecond // between two addresses, at least
	patience  = 30 * time.Second       // for one address
	saveEvery = 5 * time.Minute        // while nothing has changed but when was asked
)

// Bounds.
const (
	MaxAddresses = 256 // each costs a query per list and hour: 256 of them 6,144 a day
	keep         = 365 * 24 * time.Hour
	maxEvents    = 20_000
	maxPair      = 100 // events of one address and list
)

// Lists asks DNS lists; *dnslist.Engine does.
type Lists interface {
	Report(ctx context.Context, a netip.Addr) []dnslist.Answer
}

// What happened.
const (
	Listed   = "listed"
	Delisted = "delisted"
	Changed  = "changed" // listed as before, with other codes
)

// An Event is a listing, or its end, or a change of it.
type Event struct {
	Time    time.Time    `json:"time"`
	Address netip.Addr   `json:"address"`
	List    string       `json:"list"`
	What    string       `json:"what"`
	Codes   []netip.Addr `json:"codes,omitempty"`
	Words   string       `json:"words,omitempty"`
	TXT     string       `json:"txt,omitempty"` // the list's text; from outside: quote it
}

// Standing is what one list says of one address.
type Standing struct {
	List    string         `json:"list"`
	Says    dnslist.Says   `json:"says"` // never unknown, but for what was never known
	Since   time.Time      `json:"since,omitzero"`
	Checked time.Time      `json:"checked,omitzero"` // when the list last said so
	Why     string         `json:"why,omitempty"`    // the last question had no answer
	Answer  dnslist.Answer `json:"answer"`           // the last one that is known
}

// Own is an address that is watched.
type Own struct {
	Address netip.Addr `json:"address"`
	Asked   time.Time  `json:"asked,omitzero"`
	Next    time.Time  `json:"next,omitzero"`
	Lists   []Standing `json:"lists"`
}

// Options configure a Watch. Own and Lists must be set.
type Options struct {
	Own   []netip.Prefix
	Lists Lists
	Saved []byte // what Save returned in an earlier life; what of it cannot be read is forgotten
	// Happened is called for each event, without a lock, one at a time. It must not wait.
	Happened func(Event)
	Now      func() time.Time
	Log      *slog.Logger
}

// Watch watches.
type Watch struct {
	o Options

	mu     sync.Mutex
	own    []*Own
	events []Event // the oldest first
	dirty  bool    // something happened since the last Save
	asked  bool    // somebody was asked since
	saved  time.Time
}

// Addresses lists what is watched of some networks, or says that it is too much.
func Addresses(own []netip.Prefix) ([]netip.Addr, error) {
	var list []netip.Addr
	for _, p := range own {
		step := p.Addr().BitLen()
		if p.Addr().Is6() && p.Bits() < 128 {
			step = max(64, p.Bits())
		}
		if step-p.Bits() > 8 || len(list)+1<<(step-p.Bits()) > MaxAddresses {
			return nil, fmt.Errorf("more than %d addresses (in IPv6 /64s) to watch", MaxAddresses)
		}
		for a, i := p.Masked().Addr(), 0; i < 1<<(step-p.Bits()); i++ {
			if !slices.Contains(list, a) {
				list = append(list, a)
			}
			a = after(netip.PrefixFrom(a, step))
		}
	}
	return list, nil
}

// after is the first address after a network.
func after(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	for i := bits - 1; i >= 0; i-- {
		b[i/8] ^= 1 << (7 - i%8)
		if b[i/8]&(1<<(7-i%8)) != 0 {
			break
		}
	}
	if p.Addr().Is4() {
		return netip.AddrFrom16(b).Unmap()
	}
	return netip.AddrFrom16(b)
}

const fileVersion = 1

type file struct {
	Version int     `json:"version"`
	Own     []Own   `json:"own"`
	Events  []Event `json:"events"`
}

// New makes a Watch; Run asks.
func New(o Options) (*Watch, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Happened == nil {
		o.Happened = func(Event) {}
	}
	list, err := Addresses(o.Own)
	if err != nil {
		return nil, err
	}
	w := &Watch{o: o}
	var was file
	if err := json.Unmarshal(o.Saved, &was); len(o.Saved) > 0 && (err != nil || was.Version != fileVersion) {
		o.Log.Warn("the reputation of our own addresses cannot be read from the state file; it is forgotten", "error", err)
		was = file{}
	}
	now := o.Now()
	for _, a := range list {
		own := &Own{Address: a}
		if i := slices.IndexFunc(was.Own, func(x Own) bool { return x.Address == a }); i >= 0 {
			own.Lists = was.Own[i].Lists[:min(len(was.Own[i].Lists), 64)]
			if t := was.Own[i].Asked; !t.After(now) {
				own.Asked, own.Next = t, t.Add(every)
			}
		}
		w.own = append(w.own, own)
	}
	for _, e := range was.Events {
		if e.Address.IsValid() && len(w.events) < maxEvents {
			w.events = append(w.events, e)
		}
	}
	w.forgetLocked(now)
	return w, nil
}

// forgetLocked drops what is older than a year.
func (w *Watch) forgetLocked(now time.Time) {
	// A clock that was wrong must not keep its events for good, nor a good part of them away.
	w.events = slices.DeleteFunc(w.events, func(e Event) bool { return now.Sub(e.Time) > keep || e.Time.Sub(now) > keep })
	if n := len(w.events) - maxEvents; n > 0 {
		w.events = slices.Delete(w.events, 0, n)
	}
}

// Save returns what is to be kept over a restart, if it has changed since the last call.
func (w *Watch) Save() ([]byte, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.o.Now()
	if since := now.Sub(w.saved); !w.dirty && (!w.asked || since >= 0 && since < saveEvery) {
		return nil, false
	}
	f := file{Version: fileVersion, Events: w.events}
	for _, o := range w.own {
		f.Own = append(f.Own, *o)
	}
	b, err := json.Marshal(f)
	if err != nil {
		return nil, false
	}
	w.dirty, w.asked, w.saved = false, false, now
	return b, true
}

// Run looks the addresses up until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	for {
		own, at := w.due()
		wait := pace
		if own == nil {
			wait = every
		} else {
			wait = max(wait, min(at.Sub(w.o.Now()), time.Minute)) // the clock may be set meanwhile
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		if own == nil || w.o.Now().Before(at) && at.Sub(w.o.Now()) <= 2*every {
			continue
		}
		one, cancel := context.WithTimeout(ctx, patience)
		answers := w.o.Lists.Report(one, own.Address)
		cancel()
		if ctx.Err() != nil {
			return
		}
		for _, e := range w.take(own, answers) {
			w.o.Happened(e)
		}
	}
}

// due returns what is to be asked about next, and when.
func (w *Watch) due() (*Own, time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var next *Own
	for _, o := range w.own {
		if next == nil || o.Next.Before(next.Next) {
			next = o
		}
	}
	if next == nil {
		return nil, time.Time{}
	}
	return next, next.Next
}

// take compares answers with what was known.
func (w *Watch) take(own *Own, answers []dnslist.Answer) (events []Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.o.Now()
	own.Asked, own.Next = now, now.Add(every-every/20+time.Duration(rand.Int64N(int64(every/10))))
	w.asked = true
	// A list that left the config says nothing any more.
	lists := make([]Standing, 0, len(answers))
	for _, a := range answers {
		s := Standing{List: a.Zone, Says: dnslist.Unknown}
		if i := slices.IndexFunc(own.Lists, func(s Standing) bool { return s.List == a.Zone }); i >= 0 {
			s = own.Lists[i]
		}
		if a.Says == dnslist.Unknown {
			s.Why = a.Why
			lists = append(lists, s)
			continue
		}
		e := Event{Time: now.UTC().Truncate(time.Second), Address: own.Address, List: a.Zone, Codes: a.Codes, Words: a.Words, TXT: a.TXT}
		switch was, is := s.Says == dnslist.Listed, a.Says == dnslist.Listed; {
		case is && !was:
			e.What = Listed
		case was && !is:
			e.What, e.Codes, e.Words, e.TXT = Delisted, s.Answer.Codes, s.Answer.Words, ""
		case is && !slices.Equal(s.Answer.Codes, a.Codes):
			e.What = Changed
		}
		if s.Says != a.Says {
			s.Since = now.UTC().Truncate(time.Second)
		}
		s.Says, s.Checked, s.Why, s.Answer = a.Says, now.UTC().Truncate(time.Second), "", a
		lists = append(lists, s)
		if e.What != "" {
			w.addLocked(e)
			events = append(events, e)
		}
	}
	own.Lists = lists
	return events
}

// addLocked notes an event. One list that goes back and forth must not push out what others said.
func (w *Watch) addLocked(e Event) {
	w.dirty = true
	pair, first := 0, -1
	for i := range w.events {
		if x := &w.events[i]; x.Address == e.Address && x.List == e.List {
			if pair++; first < 0 {
				first = i
			}
		}
	}
	if pair >= maxPair {
		w.events = slices.Delete(w.events, first, first+1)
	}
	w.events = append(w.events, e)
	w.forgetLocked(w.o.Now())
}

// Own returns the addresses with what lists say of them, those that are listed first.
func (w *Watch) Own() []Own {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := make([]Own, 0, len(w.own))
	for _, o := range w.own {
		x := *o
		x.Lists = slices.Clone(o.Lists)
		list = append(list, x)
	}
	listed := func(o *Own) int {
		return -len(slices.DeleteFunc(slices.Clone(o.Lists), func(s Standing) bool { return s.Says != dnslist.Listed }))
	}
	slices.SortStableFunc(list, func(a, b Own) int { return cmp.Compare(listed(&a), listed(&b)) })
	return list
}

// Events returns what happened to an address, or to all if it is not valid, the newest first, at most limit.
func (w *Watch) Events(a netip.Addr, limit int) (list []Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, e := range slices.Backward(w.events) {
		if len(list) < limit && (!a.IsValid() || e.Address == a) {
			list = append(list, e)
		}
	}
	return list
}
