package block

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// lpm is a Sink that enforces its contract in the plainest way: the longest prefix that contains an address decides.
type lpm struct {
	set  map[netip.Prefix]Enforced
	fail error
	ops  []string
}

func newLPM() *lpm { return &lpm{set: map[netip.Prefix]Enforced{}} }

func (l *lpm) Set(p netip.Prefix, scope uint8, until time.Time) error {
	if l.fail != nil {
		return l.fail
	}
	l.ops = append(l.ops, fmt.Sprintf("set %s %d", p, scope))
	l.set[p] = Enforced{p, scope, until}
	return nil
}

func (l *lpm) Remove(p netip.Prefix) error {
	if l.fail != nil {
		return l.fail
	}
	if _, ok := l.set[p]; ok {
		l.ops = append(l.ops, "remove "+p.String())
	}
	delete(l.set, p)
	return nil
}

func (l *lpm) scope(a netip.Addr, now time.Time) Scope {
	best := Enforced{}
	for p, e := range l.set {
		if p.Contains(a) && (!best.Prefix.IsValid() || p.Bits() > best.Prefix.Bits()) {
			best = e
		}
	}
	if best.Prefix.IsValid() && (best.Until.IsZero() || best.Until.After(now)) {
		return Scope(best.Scope)
	}
	return ScopeNone
}

func (l *lpm) all() (list []Enforced) {
	for _, e := range l.set {
		list = append(list, e)
	}
	return list
}

func pfx(s string) netip.Prefix {
	p, err := ParsePrefix(s)
	if err != nil {
		panic(err)
	}
	return p
}

func auto(p string, c Cause, d time.Duration, at time.Time) Entry {
	return Entry{Prefix: pfx(p), Kind: Block, Cause: c, Scope: c.Scope(), Until: at.Add(d), Hits: 10}
}

func manual(p string, at time.Time) Entry {
	return Entry{Prefix: pfx(p), Kind: Block, Cause: Manual, Scope: ScopeAll, Until: at}
}

func newTable(t *testing.T, never ...string) (*Table, *lpm) {
	t.Helper()
	s := newLPM()
	tab := New(Options{Origin: "mx1", Sink: s})
	list := BuiltinNever(false)
	for _, n := range never {
		list = append(list, Never{Prefix: pfx(n), Rule: "own address"})
	}
	if err := tab.SetNever(list, t0); err != nil {
		t.Fatal(err)
	}
	return tab, s
}

func apply(t *testing.T, tab *Table, e Entry, now time.Time) Result {
	t.Helper()
	r, err := tab.Apply(e, now)
	if err != nil {
		t.Fatalf("apply %s %s: %v", e.Kind, e.Prefix, err)
	}
	return r
}

func TestUnblockInsideCIDR(t *testing.T) {
	tab, s := newTable(t)
	apply(t, tab, manual("198.51.100.0/24", time.Time{}), t0)
	r := apply(t, tab, Entry{Prefix: pfx("198.51.100.7"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Second))
	if r.CancelledTotal != 1 {
		t.Errorf("cancelled %d blocks, want 1", r.CancelledTotal)
	}
	now := t0.Add(2 * time.Second)
	for a, want := range map[string]Scope{"198.51.100.7": ScopeNone, "198.51.100.8": ScopeAll, "198.51.101.1": ScopeNone} {
		if got := s.scope(netip.MustParseAddr(a), now); got != want {
			t.Errorf("%s: kernel drops %s, want %s", a, got, want)
		}
	}
	d := tab.Decide(pfx("198.51.100.7"), now)
	if d.Drop || d.Rule != RuleCleared || d.By == nil || d.Clear == nil {
		t.Errorf("decision %+v", d)
	}
	// A newer block of the single address holds again.
	apply(t, tab, manual("198.51.100.7", time.Time{}), now)
	if s.scope(netip.MustParseAddr("198.51.100.7"), now) != ScopeAll {
		t.Error("a block newer than the clear does not hold")
	}
}

func TestUnblockCIDROverSingles(t *testing.T) {
	tab, s := newTable(t)
	for i := range 100 {
		apply(t, tab, auto(fmt.Sprintf("198.51.100.%d", i), Dictionary, 72*time.Hour, t0), t0)
	}
	for i := range 5 {
		apply(t, tab, auto(fmt.Sprintf("2001:db8:1:%d::/64", i), Dictionary, 72*time.Hour, t0), t0)
	}
	r := apply(t, tab, Entry{Prefix: pfx("198.51.100.0/24"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Second))
	if r.CancelledTotal != 100 {
		t.Errorf("cancelled %d, want 100", r.CancelledTotal)
	}
	if n := len(s.set); n != 5 {
		t.Errorf("the kernel holds %d prefixes, want the 5 of IPv6: %v", n, s.set)
	}
	apply(t, tab, Entry{Prefix: pfx("2001:db8::/32"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Second))
	if n := len(s.set); n != 0 {
		t.Errorf("the kernel holds %d prefixes after the second clear", n)
	}
}

func TestHoleInExact64(t *testing.T) {
	tab, s := newTable(t, "2001:db8:9::25")
	now := t0
	apply(t, tab, auto("2001:db8:5::/64", Dictionary, time.Hour, now), now)
	apply(t, tab, Entry{Prefix: pfx("2001:db8:5::1"), Kind: Allow, Cause: Manual}, now)
	r := apply(t, tab, auto("2001:db8:9::/64", Dictionary, time.Hour, now), now)
	if len(r.Open) != 1 {
		t.Errorf("open %v, want the own address", r.Open)
	}
	for a, want := range map[string]Scope{
		"2001:db8:5::1": ScopeNone, "2001:db8:5::2": ScopeMX, "2001:db8:9::25": ScopeNone, "2001:db8:9::26": ScopeMX,
	} {
		if got := s.scope(netip.MustParseAddr(a), now); got != want {
			t.Errorf("%s: kernel drops %s, want %s", a, got, want)
		}
	}
}

func TestHoldsAgainstAutomaticBlocks(t *testing.T) {
	tab, s := newTable(t)
	now := t0
	apply(t, tab, auto("203.0.113.7", Dictionary, 72*time.Hour, now), now)
	apply(t, tab, Entry{Prefix: pfx("203.0.113.7"), Kind: Clear, Until: now.Add(time.Hour)}, now.Add(time.Second))
	_, err := tab.Apply(auto("203.0.113.7", Dictionary, 72*time.Hour, now), now.Add(30*time.Minute))
	var held *HeldError
	if !errors.As(err, &held) {
		t.Fatalf("automatic block during the hold: %v, want a HeldError", err)
	}
	if len(s.set) != 0 {
		t.Errorf("the kernel holds %v", s.set)
	}
	later := now.Add(61 * time.Minute)
	apply(t, tab, auto("203.0.113.7", Dictionary, 72*time.Hour, later), later)
	if s.scope(netip.MustParseAddr("203.0.113.7"), later) != ScopeMX {
		t.Error("no block after the hold")
	}
	// An entry that another node made during the hold is cancelled for good, not only while the hold lasts.
	e := auto("203.0.113.7", AuthBrute, 100*time.Hour, now)
	e.Origin, e.Stamp, e.Seq, e.Since = "mx2", StampAt(now.Add(20*time.Minute)), 1, now
	if _, err := tab.Merge(e, later); err != nil {
		t.Fatal(err)
	}
	if d := tab.Decide(pfx("203.0.113.7"), later); d.By.Origin != "mx1" || d.Scope != ScopeMX {
		t.Errorf("decision by %s, scope %s", d.By.Origin, d.Scope)
	}
}

func TestNever(t *testing.T) {
	tab, s := newTable(t, "192.0.2.25")
	if err := tab.SetNever(append(BuiltinNever(false), Never{Prefix: pfx("192.0.2.25"), Rule: "own address"},
		Never{Prefix: pfx("203.0.113.0/24"), Rule: "allow in config line 4", Config: true}), t0); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"192.0.2.25", "203.0.113.9", "203.0.113.0/25", "127.0.0.1", "10.1.2.3", "fe80::1", "::1", "224.0.0.1", "::ffff:10.0.0.1", "100.64.3.4", "fd00::1"} {
		for _, e := range []Entry{manual(p, time.Time{}), auto(p, Dictionary, time.Hour, t0)} {
			_, err := tab.Apply(e, t0)
			var never *NeverError
			if !errors.As(err, &never) && !(e.Automatic() && errors.Is(err, ErrPrefix)) {
				t.Errorf("%s %s: %v, want a NeverError", e.Cause, p, err)
			}
		}
	}
	for _, p := range []string{"192.0.0.0/15", "2001::/31", "0.0.0.0/0", "::/0", "::/32"} {
		if _, err := tab.Apply(Entry{Prefix: netip.MustParsePrefix(p), Kind: Clear, Until: t0.Add(time.Hour)}, t0); p != "::/32" && !errors.Is(err, ErrPrefix) {
			t.Errorf("clear %s: %v, want ErrPrefix", p, err)
		}
	}
	if _, err := tab.Apply(auto("198.51.100.0/23", Dictionary, time.Hour, t0), t0); !errors.Is(err, ErrPrefix) {
		t.Errorf("automatic /23: %v", err)
	}
	// An edited state file cannot block them either.
	e := manual("203.0.113.9", time.Time{})
	e.Origin, e.Stamp, e.Since = "mx1", StampAt(t0), t0
	if _, err := tab.Load(e); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Resync(nil, t0, true); err != nil || len(s.set) != 0 {
		t.Errorf("the kernel holds %v, %v", s.set, err)
	}
	if d := tab.Decide(pfx("203.0.113.9"), t0); d.Drop || d.Rule != RuleConfig {
		t.Errorf("decision %+v", d)
	}
	// A CIDR around them goes in with holes, and a rule that goes closes its hole.
	apply(t, tab, manual("192.0.2.0/24", time.Time{}), t0)
	own := netip.MustParseAddr("192.0.2.25")
	if s.scope(own, t0) != ScopeNone || s.scope(own.Next(), t0) != ScopeAll {
		t.Errorf("the kernel holds %v", s.set)
	}
	if err := tab.SetNever(BuiltinNever(false), t0); err != nil {
		t.Fatal(err)
	}
	if s.scope(own, t0) != ScopeAll {
		t.Errorf("the hole of a rule that went is open: %v", s.set)
	}
}

// TestSenders: an allow by name keeps automatic blocks away, and a person can still block one bad host of a big sender.
func TestSenders(t *testing.T) {
	tab, s := newTable(t)
	host, other := netip.MustParseAddr("198.51.100.9"), netip.MustParseAddr("198.51.100.10")
	apply(t, tab, auto("198.51.100.9", Dictionary, time.Hour, t0), t0) // from before the name was known
	rule := Never{Prefix: pfx("198.51.100.0/25"), Rule: "spf:google.com", Sender: true}
	if err := tab.SetNever([]Never{rule}, t0); err != nil {
		t.Fatal(err)
	}
	d := tab.Decide(pfx("198.51.100.9"), t0)
	if d.Drop || d.Rule != RuleSender || d.Never == nil || *d.Never != rule || d.By == nil || d.By.Cause != Dictionary {
		t.Errorf("decision %+v", d)
	}
	if len(s.set) != 0 {
		t.Errorf("the kernel holds %v", s.set)
	}
	_, err := tab.Apply(auto("198.51.100.10", Dictionary, time.Hour, t0), t0)
	var never *NeverError
	if !errors.As(err, &never) || never.By != rule || !strings.Contains(err.Error(), "spf:google.com") || !strings.Contains(never.HintText(), "block 198.51.100.10") {
		t.Errorf("an automatic block: %v", err)
	}
	// An automatic block of the network around goes in with a hole, a manual one without.
	r := apply(t, tab, auto("198.51.100.0/24", Dictionary, time.Hour, t0), t0)
	if len(r.Open) != 1 || s.scope(host, t0) != ScopeNone || s.scope(netip.MustParseAddr("198.51.100.200"), t0) != ScopeMX {
		t.Errorf("open %v, the kernel holds %v", r.Open, s.set)
	}
	apply(t, tab, manual("198.51.100.9", time.Time{}), t0)
	if s.scope(host, t0) != ScopeAll || s.scope(other, t0) != ScopeNone {
		t.Errorf("one bad host: the kernel holds %v", s.set)
	}
	if r := apply(t, tab, manual("198.51.100.0/24", time.Time{}), t0); len(r.Open) != 0 || s.scope(other, t0) != ScopeAll {
		t.Errorf("open %v, the kernel holds %v", r.Open, s.set)
	}
	// The same prefix as an own address is never blocked at all.
	if err := tab.SetNever([]Never{rule, {Prefix: rule.Prefix, Rule: "own"}}, t0); err != nil {
		t.Fatal(err)
	}
	if _, err := tab.Apply(manual("198.51.100.9", time.Time{}), t0); !errors.As(err, &never) || never.By.Rule != "own" {
		t.Errorf("a manual block of an own address: %v", err)
	}
}

// TestSomePorts: an allow by name for some ports keeps those open, and a person can still close them.
func TestSomePorts(t *testing.T) {
	tab, s := newTable(t)
	nat := netip.MustParseAddr("198.51.100.9")
	rule := Never{Prefix: pfx("198.51.100.9"), Rule: "people log in", Sender: true, Ports: ScopeSubmission}
	if err := tab.SetNever([]Never{rule}, t0); err != nil {
		t.Fatal(err)
	}
	r := apply(t, tab, auto("198.51.100.9", AuthBrute, time.Hour, t0), t0)
	d := tab.Decide(pfx("198.51.100.9"), t0)
	if !d.Drop || d.Scope != ScopeMX || d.By == nil || d.By.Scope != ScopeAll || d.Never == nil || *d.Never != rule || r.Unenforced != "" || s.scope(nat, t0) != ScopeMX {
		t.Errorf("%+v, the kernel holds %v", d, s.set)
	}
	// Inside a blocked network too, and not beside it.
	net := auto("198.51.100.0/24", AuthBrute, time.Hour, t0)
	if r = apply(t, tab, net, t0); len(r.Open) != 0 || s.scope(nat, t0) != ScopeMX || s.scope(nat.Next(), t0) != ScopeAll {
		t.Errorf("open %v, the kernel holds %v", r.Open, s.set)
	}
	apply(t, tab, manual("198.51.100.9", time.Time{}), t0)
	if s.scope(nat, t0) != ScopeAll {
		t.Errorf("by hand: the kernel holds %v", s.set)
	}
	// The rule goes, the block stands; and comes again, and is for all ports.
	tab, s = newTable(t)
	apply(t, tab, net, t0)
	for _, c := range []struct {
		ports Scope
		want  Scope
	}{{ScopeMX, ScopeSubmission}, {ScopeSubmission, ScopeMX}, {ScopeAll, ScopeNone}, {0, ScopeNone}} {
		rule.Ports = c.ports
		if err := tab.SetNever([]Never{rule}, t0); err != nil {
			t.Fatal(err)
		}
		if s.scope(nat, t0) != c.want || s.scope(nat.Next(), t0) != ScopeAll {
			t.Errorf("ports %s: the kernel holds %v", c.ports, s.set)
		}
		if d := tab.Decide(pfx("198.51.100.9"), t0); d.Drop != (c.want != ScopeNone) || !d.Drop && d.Rule != RuleSender {
			t.Errorf("ports %s: %+v", c.ports, d)
		}
		if err := tab.SetNever(nil, t0); err != nil {
			t.Fatal(err)
		}
		if s.scope(nat, t0) != ScopeAll {
			t.Errorf("without the rule the kernel holds %v", s.set)
		}
	}
}

func TestFamiliesAreApart(t *testing.T) {
	tab, s := newTable(t)
	apply(t, tab, Entry{Prefix: netip.MustParsePrefix("::/32"), Kind: Clear, Until: t0.Add(time.Hour)}, t0)
	apply(t, tab, auto("198.51.100.7", Dictionary, time.Hour, t0), t0)
	if s.scope(netip.MustParseAddr("198.51.100.7"), t0) != ScopeMX {
		t.Error("a clear of ::/32 holds against an IPv4 block")
	}
}

func TestManualBeatsAutomatic(t *testing.T) {
	tab, s := newTable(t)
	a := netip.MustParseAddr("198.51.100.7")
	apply(t, tab, auto("198.51.100.7", Dictionary, time.Hour, t0), t0)
	apply(t, tab, Entry{Prefix: pfx("198.51.100.0/24"), Kind: Allow, Cause: Manual}, t0)
	if s.scope(a, t0) != ScopeNone {
		t.Error("an allow does not beat an automatic block")
	}
	apply(t, tab, manual("198.51.100.7", t0.Add(time.Hour)), t0)
	if s.scope(a, t0) != ScopeAll {
		t.Error("a more specific manual block does not beat an allow")
	}
	r := apply(t, tab, auto("198.51.100.7", Dictionary, 2*time.Hour, t0), t0.Add(time.Minute))
	if !r.Already || r.Entry.Cause != Manual {
		t.Errorf("evidence replaced a manual block: %+v", r)
	}
	apply(t, tab, Entry{Prefix: pfx("198.51.100.0/24"), Kind: Disallow}, t0.Add(time.Minute))
	tab.Expire(t0.Add(2 * time.Hour))
	if s.scope(a, t0.Add(2*time.Hour)) != ScopeNone || len(s.set) != 0 {
		t.Errorf("after the end the kernel holds %v", s.set)
	}
}

func prefixes(list []Entry) (out []string) {
	for _, e := range list {
		out = append(out, e.Prefix.String())
	}
	slices.Sort(out)
	return out
}

// TestWhatAnAllowDoes: an allow ends no block. What it overrides comes back, and what is more specific goes on.
func TestWhatAnAllowDoes(t *testing.T) {
	tab, _ := newTable(t)
	apply(t, tab, manual("203.0.113.7", time.Time{}), t0)
	apply(t, tab, auto("203.0.113.8", Dictionary, 72*time.Hour, t0), t0)
	apply(t, tab, manual("203.0.0.0/16", time.Time{}), t0)
	r := apply(t, tab, Entry{Prefix: pfx("203.0.113.0/24"), Kind: Allow, Cause: Manual, Until: t0.Add(time.Hour)}, t0)
	if r.CancelledTotal != 0 || len(r.Cancelled) != 0 {
		t.Errorf("an allow cancelled %v", prefixes(r.Cancelled))
	}
	if got, want := prefixes(r.Overridden), []string{"203.0.0.0/16", "203.0.113.8/32"}; !slices.Equal(got, want) || r.OverriddenTotal != 2 {
		t.Errorf("overridden %v, %d; want %v", got, r.OverriddenTotal, want)
	}
	if got, want := prefixes(r.Remaining), []string{"203.0.113.7/32"}; !slices.Equal(got, want) || r.RemainingTotal != 1 {
		t.Errorf("remaining %v, %d; want %v", got, r.RemainingTotal, want)
	}
	if !r.Held.IsZero() {
		t.Errorf("an allow holds until %s", r.Held)
	}
	for _, e := range r.Overridden {
		if d := tab.Decide(pfx("203.0.113.8"), t0.Add(2*time.Hour)); !d.Drop {
			t.Errorf("%s did not come back: %+v", e.Prefix, d)
		}
	}
	// Of what was allowed before, a second allow overrides nothing.
	r = apply(t, tab, Entry{Prefix: pfx("203.0.113.8"), Kind: Allow, Cause: Manual}, t0)
	if r.OverriddenTotal != 0 || r.RemainingTotal != 0 {
		t.Errorf("second allow: %+v", r)
	}
	r = apply(t, tab, Entry{Prefix: pfx("203.0.113.0/24"), Kind: Clear, Until: t0.Add(time.Hour)}, t0)
	if got := prefixes(r.Cancelled); !slices.Equal(got, []string{"203.0.0.0/16", "203.0.113.7/32", "203.0.113.8/32"}) || r.RemainingTotal+r.OverriddenTotal != 0 {
		t.Errorf("clear: cancelled %v, %+v", got, r)
	}
}

// TestHoldIsNotShortened: "partner, do not block for 30 days" is not undone by a colleague's unblock with the
// default hold.
func TestHoldIsNotShortened(t *testing.T) {
	tab, _ := newTable(t)
	long, p := t0.Add(30*24*time.Hour), pfx("203.0.113.7")
	apply(t, tab, Entry{Prefix: p, Kind: Clear, Until: long}, t0)
	r := apply(t, tab, Entry{Prefix: p, Kind: Clear, Until: t0.Add(2 * time.Hour)}, t0.Add(time.Hour))
	if !r.Entry.Until.Equal(long) || !r.Held.Equal(long) {
		t.Errorf("held until %s, %s; want %s", r.Entry.Until, r.Held, long)
	}
	if _, err := tab.Apply(auto("203.0.113.7", Dictionary, time.Hour, t0), t0.Add(24*time.Hour)); err == nil {
		t.Error("blocked automatically within the first hold")
	}
	// It can be ended on purpose.
	at := t0.Add(24 * time.Hour)
	if r = apply(t, tab, Entry{Prefix: p, Kind: Clear}, at); !r.Held.Equal(at) {
		t.Errorf("ended hold: until %s", r.Held)
	}
	apply(t, tab, auto("203.0.113.7", Dictionary, time.Hour, at.Add(time.Minute)), at.Add(time.Minute))
	// Held tells of a wider clear too.
	apply(t, tab, Entry{Prefix: pfx("203.0.113.0/24"), Kind: Clear, Until: at.Add(9 * time.Hour)}, at)
	if r = apply(t, tab, Entry{Prefix: p, Kind: Clear, Until: at.Add(time.Hour)}, at); !r.Held.Equal(at.Add(9*time.Hour)) || !r.Entry.Until.Equal(at.Add(time.Hour)) {
		t.Errorf("held until %s, entry %s", r.Held, r.Entry.Until)
	}
}

// TestHitsAreNotAddedUp: evidence counts from its first event on, so the second verdict contains the first.
func TestHitsAreNotAddedUp(t *testing.T) {
	tab, _ := newTable(t)
	e := auto("203.0.113.7", Dictionary, time.Hour, t0)
	for i, hits := range []uint32{10, 50, 20} {
		e.Hits = hits
		if r := apply(t, tab, e, t0); r.Entry.Hits != []uint32{10, 50, 50}[i] {
			t.Errorf("%d hits after a verdict of %d", r.Entry.Hits, hits)
		}
	}
}

func TestDecisionTellsWhatTheKernelRefused(t *testing.T) {
	tab, s := newTable(t)
	apply(t, tab, manual("203.0.113.0/24", time.Time{}), t0)
	s.fail = errors.New("no room")
	apply(t, tab, auto("198.51.100.7", Dictionary, time.Hour, t0), t0)
	apply(t, tab, Entry{Prefix: pfx("203.0.113.7"), Kind: Allow, Cause: Manual}, t0)
	for p, want := range map[string]string{
		"198.51.100.7": "no room", "198.51.100.8": "", "203.0.113.7": "no room", "203.0.113.8": "",
	} {
		if d := tab.Decide(pfx(p), t0); d.Unenforced != want {
			t.Errorf("%s: drop %v, unenforced %q, want %q", p, d.Drop, d.Unenforced, want)
		}
	}
	apply(t, tab, Entry{Prefix: pfx("203.0.113.0/24"), Kind: Clear}, t0) // cannot be removed: it goes on dropping
	if d := tab.Decide(pfx("203.0.113.8"), t0); d.Drop || d.Unenforced == "" {
		t.Errorf("%+v", d)
	}
	s.fail = nil
	tab.Expire(t0)
	for _, p := range []string{"198.51.100.7", "203.0.113.7", "203.0.113.8"} {
		if d := tab.Decide(pfx(p), t0); d.Unenforced != "" {
			t.Errorf("%s: %+v after the second try", p, d)
		}
	}
}

func TestInside(t *testing.T) {
	tab, _ := newTable(t)
	for i, p := range []string{"203.0.112.9", "203.0.113.7", "203.0.113.8", "203.0.113.0/25", "203.0.114.1", "203.0.112.0/23"} {
		apply(t, tab, manual(p, time.Time{}), t0.Add(time.Duration(i)*time.Second))
	}
	apply(t, tab, auto("203.0.113.200", Dictionary, time.Minute, t0), t0.Add(time.Minute))
	apply(t, tab, Entry{Prefix: pfx("203.0.113.8"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Minute))
	at := t0.Add(2 * time.Minute)
	list, total := tab.Inside(pfx("203.0.112.0/23"), 0, at)
	want := []string{"203.0.112.9/32", "203.0.113.0/25", "203.0.113.7/32"}
	if got := prefixes(list); !slices.Equal(got, want) || total != 3 {
		t.Errorf("%v, %d; want %v", got, total, want)
	}
	if list, total = tab.Inside(pfx("203.0.112.0/23"), 1, at); len(list) != 1 || total != 3 || list[0].Prefix != pfx("203.0.113.0/25") {
		t.Errorf("%v, %d", list, total)
	}
	if list, total = tab.Inside(pfx("203.0.113.7"), 1, at); len(list) != 0 || total != 0 {
		t.Errorf("%v, %d", list, total)
	}
}

// TestListLimit: the newest ones, and how many there are in all.
func TestListLimit(t *testing.T) {
	tab, _ := newTable(t)
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		e := auto("198.51.100.1", Dictionary, time.Hour, t0)
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(r.IntN(8)), byte(r.IntN(256))}), 32)
		apply(t, tab, e, t0)
	}
	all, total := tab.List(Query{}, t0)
	for _, n := range []int{1, 2, 7, 100, 1000, 5000} {
		got, of := tab.List(Query{Limit: n}, t0)
		if of != total || !slices.EqualFunc(got, all[:min(n, total)], func(a, b Listed) bool { return a == b }) {
			t.Errorf("limit %d: %d of %d, want the first of %d", n, len(got), of, total)
		}
	}
}

func TestScopeWidens(t *testing.T) {
	tab, s := newTable(t)
	a := netip.MustParseAddr("198.51.100.7")
	apply(t, tab, auto("198.51.100.7", Dictionary, 3*time.Hour, t0), t0)
	r := apply(t, tab, auto("198.51.100.7", AuthBrute, time.Hour, t0), t0.Add(time.Second))
	if !r.Already || s.scope(a, t0.Add(time.Second)) != ScopeAll || !r.Entry.Until.Equal(t0.Add(3*time.Hour)) || r.Entry.Hits != 10 {
		t.Errorf("%+v", r)
	}
	// Scopes of two origins: the wider one holds for its time, then the narrower one is seen again.
	tab, s = newTable(t)
	apply(t, tab, auto("198.51.100.7", AuthBrute, time.Hour, t0), t0)
	e := auto("198.51.100.7", Dictionary, 3*time.Hour, t0)
	e.Origin, e.Stamp, e.Since = "mx2", StampAt(t0), t0
	if _, err := tab.Merge(e, t0); err != nil {
		t.Fatal(err)
	}
	if s.scope(a, t0) != ScopeAll {
		t.Error("the wider scope does not hold")
	}
	at := t0.Add(61 * time.Minute)
	if n := tab.Expire(at); n != 1 || s.scope(a, at) != ScopeMX {
		t.Errorf("after its end: %d expired, scope %s", n, s.scope(a, at))
	}
}

func TestClockBehindStampsExpiresNothing(t *testing.T) {
	tab, s := newTable(t)
	e := auto("198.51.100.7", Dictionary, time.Hour, t0)
	e.Origin, e.Stamp, e.Since = "mx1", StampAt(t0), t0
	if _, err := tab.Load(e); err != nil {
		t.Fatal(err)
	}
	long := auto("198.51.100.8", Dictionary, time.Second, t0.Add(-48*time.Hour))
	long.Origin, long.Stamp, long.Since = "mx1", StampAt(t0.Add(-48*time.Hour)), t0
	if _, err := tab.Load(long); err != nil {
		t.Fatal(err)
	}
	if n := tab.Expire(t0.Add(-time.Hour)); n != 0 {
		t.Errorf("%d expired by a clock that is behind the newest stamp", n)
	}
	if n := tab.Expire(t0.Add(time.Second)); n != 1 {
		t.Errorf("%d expired, want 1", n)
	}
	_ = s
}

func TestClearIsKeptWhileItIsNeeded(t *testing.T) {
	tab, _ := newTable(t)
	e := manual("198.51.100.0/24", time.Time{})
	e.Origin, e.Stamp, e.Since = "mx2", StampAt(t0), t0
	if _, err := tab.Merge(e, t0); err != nil {
		t.Fatal(err)
	}
	apply(t, tab, Entry{Prefix: pfx("198.51.100.7"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Second))
	apply(t, tab, Entry{Prefix: pfx("203.0.113.7"), Kind: Clear, Until: t0.Add(time.Hour)}, t0.Add(time.Second))
	at := t0.Add(60 * 24 * time.Hour)
	if n := tab.Expire(at); n != 0 {
		t.Errorf("%d clears forgotten while there are few", n)
	}
	tab.keep = 1 // there are three entries of people
	at = at.Add(25 * time.Hour)
	tab.wakeAt(1) // the next time that anything ends
	if n := tab.Expire(at); n != 1 {
		t.Errorf("%d clears forgotten, want the one that cancels nothing", n)
	}
	if d := tab.Decide(pfx("198.51.100.7"), at); d.Drop {
		t.Error("a block without end came back after its clear was forgotten")
	}
}

func TestSinkFailureIsRetried(t *testing.T) {
	tab, s := newTable(t)
	s.fail = errors.New("no room")
	r := apply(t, tab, auto("198.51.100.7", Dictionary, time.Hour, t0), t0)
	if r.Unenforced == "" || tab.Count(t0).Unenforced != 1 {
		t.Errorf("a refused prefix is not reported: %+v", r)
	}
	s.fail = nil
	tab.Expire(t0.Add(time.Second))
	if s.scope(netip.MustParseAddr("198.51.100.7"), t0) != ScopeMX || tab.Count(t0).Unenforced != 0 {
		t.Error("a refused prefix is not tried again")
	}
}

// manyLPM takes many at once, as late as it may.
type manyLPM struct {
	*lpm
	calls  int
	refuse netip.Prefix
}

func (m *manyLPM) SetMany(_ int, entries func(func(netip.Prefix, uint8, time.Time) bool), failed func(netip.Prefix, error)) {
	m.calls++
	var all []Enforced
	entries(func(p netip.Prefix, scope uint8, until time.Time) bool {
		all = append(all, Enforced{p, scope, until})
		return true
	})
	for _, e := range all {
		err := m.Set(e.Prefix, e.Scope, e.Until)
		if e.Prefix == m.refuse {
			delete(m.set, e.Prefix)
			err = errors.New("no room")
		}
		if err != nil {
			failed(e.Prefix, err)
		}
	}
}

// A Sink that takes many at once holds the same after a resync, in an order as safe, and what it refuses is tried again.
func TestResyncMany(t *testing.T) {
	at := t0.Add(time.Minute)
	one, many := newLPM(), &manyLPM{lpm: newLPM(), refuse: pfx("198.51.100.3")}
	for _, sink := range []Sink{one, many} {
		tab := New(Options{Origin: "mx1", Sink: sink})
		set := func() map[netip.Prefix]Enforced {
			if sink == Sink(one) {
				return one.set
			}
			return many.set
		}
		for i := range 40 {
			apply(t, tab, auto(fmt.Sprintf("198.51.100.%d", i), Dictionary, time.Hour, t0), t0)
		}
		apply(t, tab, manual("203.0.113.0/24", time.Time{}), t0)
		apply(t, tab, Entry{Prefix: pfx("203.0.113.7"), Kind: Clear, Until: t0.Add(time.Hour)}, t0)
		clear(set())
		one.ops, many.ops = nil, nil
		n, err := tab.Resync(nil, at, true)
		if wantErr := sink != Sink(one); n != 42 || (err != nil) != wantErr {
			t.Errorf("%T: %d changes, %v; want 42", sink, n, err)
		}
		if sink == Sink(one) {
			continue
		}
		if many.calls == 0 || tab.Count(at).Unenforced != 1 {
			t.Errorf("SetMany was called %d times, %d are counted as refused, want 1", many.calls, tab.Count(at).Unenforced)
		}
		hole, drop := slices.Index(many.ops, "set 203.0.113.7/32 0"), slices.Index(many.ops, "set 203.0.113.0/24 3")
		if hole < 0 || drop < hole {
			t.Errorf("the block goes in before the hole in it: %q", many.ops[len(many.ops)-3:])
		}
		many.refuse = netip.Prefix{}
		tab.Expire(at.Add(time.Second))
		if tab.Count(at).Unenforced != 0 || len(many.set) != len(one.set) {
			t.Errorf("%d prefixes are set, want %d", len(many.set), len(one.set))
		}
		for p, e := range one.set {
			if many.set[p] != e {
				t.Errorf("%s: %v, want %v", p, many.set[p], e)
			}
		}
	}
}

func TestFull(t *testing.T) {
	tab := New(Options{Origin: "mx1", MaxEntries: 3})
	for i := range 3 {
		apply(t, tab, auto(fmt.Sprintf("198.51.100.%d", i), Dictionary, time.Hour, t0), t0)
	}
	if _, err := tab.Apply(auto("198.51.100.9", Dictionary, time.Hour, t0), t0); !errors.Is(err, ErrFull) {
		t.Errorf("automatic: %v, want ErrFull", err)
	}
	apply(t, tab, manual("198.51.100.9", time.Time{}), t0) // a person is never refused
}

func TestResyncKeepsOrphansAtFirst(t *testing.T) {
	tab, s := newTable(t)
	apply(t, tab, auto("198.51.100.1", Dictionary, time.Hour, t0), t0)
	apply(t, tab, Entry{Prefix: pfx("198.51.100.2"), Kind: Clear, Until: t0.Add(time.Hour)}, t0)
	s.set = map[netip.Prefix]Enforced{}
	for _, p := range []string{"198.51.100.2", "198.51.100.3", "127.0.0.1"} {
		s.set[pfx(p)] = Enforced{pfx(p), 1, t0.Add(time.Hour)}
	}
	if _, err := tab.Resync(s.all(), t0, false); err != nil {
		t.Fatal(err)
	}
	has := func(p string) bool { _, ok := s.set[pfx(p)]; return ok }
	if !has("198.51.100.1") || has("198.51.100.2") || !has("198.51.100.3") || has("127.0.0.1") {
		t.Errorf("first resync: %v", s.set)
	}
	n, err := tab.Resync(s.all(), t0, true)
	if err != nil || n != 1 || has("198.51.100.3") {
		t.Errorf("second resync: %d changes, %v, %v", n, err, s.set)
	}
	if n, _ := tab.Resync(s.all(), t0, true); n != 0 {
		t.Errorf("a resync of what is in line makes %d changes", n)
	}
}

// TestHolesFirst: while a wide block goes in or out, no innocent inside it is ever dropped.
func TestHolesFirst(t *testing.T) {
	tab, s := newTable(t)
	apply(t, tab, Entry{Prefix: pfx("198.51.100.7"), Kind: Allow, Cause: Manual}, t0)
	apply(t, tab, manual("198.51.100.0/24", time.Time{}), t0)
	apply(t, tab, Entry{Prefix: pfx("198.51.100.0/24"), Kind: Clear, Until: t0.Add(time.Hour)}, t0)
	want := []string{"set 198.51.100.7/32 0", "set 198.51.100.0/24 3", "remove 198.51.100.0/24", "remove 198.51.100.7/32"}
	if !slices.Equal(s.ops, want) {
		t.Errorf("order %q, want %q", s.ops, want)
	}
}

// model decides by the words of DESIGN section 6, over a plain list.
func model(entries []Entry, never []Never, a netip.Addr, now time.Time) Scope {
	sender, open := false, Never{}
	for _, n := range never {
		switch {
		case !n.Prefix.Contains(a):
		case !n.Sender:
			return ScopeNone
		case n.Ports == 0:
			sender = true
		case open.Ports == 0 || n.Prefix.Bits() < open.Prefix.Bits():
			open = n
		}
	}
	latest := map[string]Entry{}
	for _, e := range entries {
		k := fmt.Sprint(e.Origin, e.Prefix, e.Kind, e.Automatic())
		if o, ok := latest[k]; !ok || e.Stamp > o.Stamp || e.Stamp == o.Stamp && e.Seq > o.Seq {
			latest[k] = e
		}
	}
	live := func(e Entry) bool { return e.Until.IsZero() || e.Until.After(now) }
	var best *Entry
	scope := ScopeNone
	for _, e := range latest {
		if !e.Prefix.Contains(a) || !live(e) {
			continue
		}
		cancelled := false
		for _, c := range latest {
			switch {
			case e.Kind == Block && c.Kind == Clear && c.Prefix.Contains(a):
				cancelled = cancelled || c.Stamp >= e.Stamp || e.Automatic() && StampAt(c.Until) > e.Stamp
			case e.Kind == Allow && c.Kind == Disallow && c.Prefix == e.Prefix:
				cancelled = cancelled || c.Stamp >= e.Stamp
			}
		}
		if cancelled || e.Kind == Clear || e.Kind == Disallow {
			continue
		}
		if e.Automatic() {
			if single := e.Prefix.Addr().Is4() && e.Prefix.Bits() == 32 || e.Prefix.Addr().Is6() && e.Prefix.Bits() >= 64; single || e.Origin == "mx1" {
				scope = max(scope, e.Scope)
			}
			continue
		}
		if best == nil || e.Prefix.Bits() > best.Prefix.Bits() || e.Prefix.Bits() == best.Prefix.Bits() && (e.Stamp > best.Stamp || e.Stamp == best.Stamp && e.Kind == Allow) {
			best = &e
		}
	}
	if best != nil {
		if best.Kind == Allow {
			return ScopeNone
		}
		return best.Scope
	}
	if sender {
		return ScopeNone
	}
	return scope &^ open.Ports
}

// drawEntry makes entries in a tiny space, so that they meet.
func drawEntry(t *rapid.T, now time.Time) Entry {
	prefixes := []string{
		"198.51.0.0/16", "198.51.100.0/24", "198.51.100.0/28", "198.51.100.1/32", "198.51.100.2/32", "198.51.100.200/32",
		"2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:1::/64", "2001:db8:1:2::/64", "2001:db8:1:1::/80", "2001:db8:1:1::1/128", "2001:db8:1:2::1/128",
	}
	e := Entry{
		Prefix: netip.MustParsePrefix(rapid.SampledFrom(prefixes).Draw(t, "prefix")),
		Kind:   Kind(rapid.IntRange(1, 4).Draw(t, "kind")),
		Since:  now, Hits: 1,
	}
	d := time.Duration(rapid.IntRange(1, 90).Draw(t, "minutes")) * time.Minute
	switch e.Kind {
	case Block:
		e.Cause = rapid.SampledFrom([]Cause{Dictionary, AuthBrute, Manual}).Draw(t, "cause")
		e.Scope, e.Until = e.Cause.Scope(), now.Add(d)
		if e.Cause == Manual && d > time.Hour {
			e.Until = time.Time{}
		}
	case Clear:
		e.Until = now.Add(d)
	case Allow:
		e.Cause = Manual
	}
	return e
}

var probes = []string{
	"198.51.100.1", "198.51.100.2", "198.51.100.9", "198.51.100.200", "198.51.100.77", "198.51.7.7", "198.52.0.1",
	"2001:db8:1:1::1", "2001:db8:1:1::2", "2001:db8:1:1:8000::", "2001:db8:1:2::1", "2001:db8:1:2::2", "2001:db8:1:3::1", "2001:db8:9::1", "2001:db9::1",
}

// TestDecisionAndSinkAgainstModel runs random histories of local and foreign entries, expiry, changes of the rules
// and restarts; after each step the decision and what the kernel would do equal the model, for every probe.
func TestDecisionAndSinkAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newLPM()
		tab := New(Options{Origin: "mx1", Sink: s})
		now := t0
		never := []Never{}
		var all []Entry
		seq, foreign := uint64(1<<20), Stamp(0)
		for range rapid.IntRange(1, 25).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(1, 1200).Draw(t, "seconds")) * time.Second)
			switch rapid.IntRange(0, 9).Draw(t, "step") {
			case 0:
				never = nil
				for _, p := range []string{"198.51.100.1/32", "198.51.100.0/28", "2001:db8:1:1::1/128", "2001:db8:1::/48"} {
					if rapid.Bool().Draw(t, p) {
						n := Never{Prefix: netip.MustParsePrefix(p), Rule: "test", Sender: rapid.Bool().Draw(t, "sender")}
						if n.Sender {
							n.Ports = rapid.SampledFrom([]Scope{0, ScopeMX, ScopeSubmission}).Draw(t, "ports")
						}
						never = append(never, n)
					}
				}
				if err := tab.SetNever(never, now); err != nil {
					t.Fatal(err)
				}
			case 1: // restart: a new table from what was stored, over a kernel that kept its state
				fresh := New(Options{Origin: "mx1", Sink: s})
				if err := fresh.SetNever(never, now); err != nil {
					t.Fatal(err)
				}
				for _, e := range all {
					if _, err := fresh.Load(e); err != nil {
						t.Fatal(err)
					}
				}
				tab = fresh
				if _, err := tab.Resync(s.all(), now, true); err != nil {
					t.Fatal(err)
				}
			case 2, 3:
				e := drawEntry(t, now)
				seq++
				// Entries arrive late, but those of one origin in their order.
				foreign = max(foreign+1, StampAt(now.Add(-time.Duration(rapid.IntRange(0, 3600).Draw(t, "age"))*time.Second)))
				e.Origin, e.Stamp, e.Seq = "mx2", foreign, seq
				if e.Automatic() && e.Prefix.Bits() < map[bool]int{true: MinAutoBits4, false: MinAutoBits6}[e.Prefix.Addr().Is4()] {
					continue
				}
				if _, err := tab.Merge(e, now); err != nil {
					t.Fatal(err)
				}
				all = append(all, e)
			default:
				r, err := tab.Apply(drawEntry(t, now), now)
				var n *NeverError
				var h *HeldError
				if err != nil && !errors.As(err, &n) && !errors.As(err, &h) && !errors.Is(err, ErrPrefix) {
					t.Fatal(err)
				}
				if err == nil {
					all = append(all, r.Entry)
				}
			}
			tab.Expire(now)
			got := tab.Count(now)
			tab.uncounted = true
			if want := tab.Count(now); !reflect.DeepEqual(got, want) {
				t.Fatalf("the figures kept are %+v, counted anew %+v", got, want)
			}
			checkCounts(t, tab, got, now)
			for _, p := range probes {
				a := netip.MustParseAddr(p)
				want := model(all, never, a, now)
				d := tab.Decide(netip.PrefixFrom(a, a.BitLen()), now)
				if got := d.Scope; got != want || d.Drop != (want != ScopeNone) {
					for _, e := range all {
						if e.Prefix.Contains(a) {
							t.Logf("%+v", e)
						}
					}
					t.Fatalf("%s at %s: decision %s (%+v), model %s", a, now, got, d, want)
				}
				if got := s.scope(a, now); got != want {
					t.Fatalf("%s at %s: kernel %s, model %s; %v", a, now, got, want, s.set)
				}
			}
		}
	})
}

// TestMergeLaws: the order in which entries arrive, and how often, does not matter.
func TestMergeLaws(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var list []Entry
		for i := range rapid.IntRange(1, 20).Draw(t, "n") {
			e := drawEntry(t, t0)
			if e.Automatic() {
				e.Prefix = netip.MustParsePrefix("198.51.100.1/32")
			}
			e.Origin = rapid.SampledFrom([]string{"mx1", "mx2", "mx3"}).Draw(t, "origin")
			e.Stamp, e.Seq = StampAt(t0.Add(time.Duration(rapid.IntRange(0, 5).Draw(t, "stamp"))*time.Minute)), uint64(i)
			list = append(list, e)
		}
		a, b := New(Options{Origin: "me"}), New(Options{Origin: "me"})
		for _, e := range list {
			if _, err := a.Merge(e, t0.Add(10*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		other := slices.Concat(list, list)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		r.Shuffle(len(other), func(i, j int) { other[i], other[j] = other[j], other[i] })
		for _, e := range other {
			if _, err := b.Merge(e, t0.Add(10*time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range probes {
			x, y := a.Decide(pfx(p), t0), b.Decide(pfx(p), t0)
			if x.Drop != y.Drop || x.Scope != y.Scope || x.Rule != y.Rule || !x.Until.Equal(y.Until) {
				t.Fatalf("%s: %+v against %+v", p, x, y)
			}
		}
	})
}

func TestEntryBinary(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := drawEntry(t, t0)
		if e.Automatic() {
			e.Prefix = netip.MustParsePrefix("2001:db8:1:2::/64")
		}
		e.Origin, e.Stamp, e.Seq, e.Reason = rapid.StringN(1, 20, 60).Draw(t, "origin"), 7<<16, 9, rapid.StringN(0, 40, 200).Draw(t, "reason")
		b, err := e.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Entry
		if err := got.UnmarshalBinary(b); err != nil {
			t.Fatal(err)
		}
		if got != e {
			t.Fatalf("%+v became %+v", e, got)
		}
	})
}

func FuzzEntry(f *testing.F) {
	for _, e := range []Entry{auto("198.51.100.7", Dictionary, time.Hour, t0), manual("2001:db8::/32", time.Time{})} {
		e.Origin = "mx1"
		b, err := e.MarshalBinary()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var e Entry
		if e.UnmarshalBinary(b) != nil {
			return
		}
		if err := checkWidth(e.Prefix, e.Automatic()); err != nil {
			t.Fatalf("decoded %v: %v", e, err)
		}
		again, err := e.MarshalBinary()
		if err != nil || string(again) != string(b) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}

func TestParse(t *testing.T) {
	good := map[string]string{
		"192.0.2.7": "192.0.2.7/32", "192.0.2.0/24": "192.0.2.0/24", "2001:DB8::": "2001:db8::/128",
		"::ffff:192.0.2.7": "192.0.2.7/32", "::ffff:192.0.2.0/120": "192.0.2.0/24",
	}
	for in, want := range good {
		if p, err := ParsePrefix(in); err != nil || p.String() != want {
			t.Errorf("%s: %v, %v; want %s", in, p, err, want)
		}
	}
	for _, in := range []string{"", "x", "192.0.2.7/24", "192.0.2.256", "192.0.02.1", "fe80::1%eth0", "::ffff:0:0/90", "1.2.3.4/33", " 192.0.2.7"} {
		if p, err := ParsePrefix(in); !errors.Is(err, ErrPrefix) {
			t.Errorf("%q: %v, %v; want ErrPrefix", in, p, err)
		}
	}
	for in, want := range map[string]time.Duration{"90s": 90 * time.Second, "3d": 72 * time.Hour, "1w": 168 * time.Hour, "0s": 0, "1h30m": 90 * time.Minute} {
		if d, err := ParseDuration(in); err != nil || d != want {
			t.Errorf("%s: %s, %v", in, d, err)
		}
	}
	for _, in := range []string{"", "3", "d", "-3d", "-1h", "x", "3dd", "999999999d", "3d "} {
		if d, err := ParseDuration(in); err == nil {
			t.Errorf("%q: %s, want an error", in, d)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	tab := New(Options{Origin: "mx1", MaxEntries: 1 << 30})
	_ = tab.SetNever(BuiltinNever(false), t0)
	r := rand.New(rand.NewPCG(1, 2))
	e := auto("198.51.100.7", Dictionary, time.Hour, t0)
	for b.Loop() {
		v := r.Uint32()
		e.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v>>24)&0x3f | 0x80, byte(v >> 16), byte(v >> 8), byte(v)}), 32)
		_, _ = tab.Apply(e, t0) // a few of these addresses are private and refused, as they should be
		if len(tab.dirty) > 1000 {
			tab.Drain()
		}
	}
}

// TestNAT64: behind a NAT64 all of IPv4 shares one /64, which no block may close; its neighbours are ordinary.
func TestNAT64(t *testing.T) {
	tab, s := newTable(t)
	for a, want := range map[string]Scope{
		"64:ff9b::c633:6407": ScopeNone, "64:ff9b:1:7::c633:6407": ScopeNone, // 198.51.100.7
		"64:ff9b:0:1::1": ScopeMX, "64:ff9b:2::1": ScopeMX,
	} {
		p := netip.PrefixFrom(netip.MustParseAddr(a), 64).Masked()
		_, err := tab.Apply(auto(p.String(), Dictionary, time.Hour, t0), t0)
		if never := new(NeverError); errors.As(err, &never) != (want == ScopeNone) {
			t.Errorf("block %s: %v", p, err)
		}
		if got := s.scope(netip.MustParseAddr(a), t0); got != want {
			t.Errorf("%s: kernel drops %s, want %s", a, got, want)
		}
	}
}

// TestCountBeforeExpire: that somebody asks for the figures, or a clear comes in, between the end of a block and Expire does
// not keep the Sink from being told what holds inside of it from now on.
func TestCountBeforeExpire(t *testing.T) {
	for name, ask := range map[string]func(*Table, time.Time) error{
		"count": func(tab *Table, now time.Time) error { tab.Count(now); return nil },
		"merge": func(tab *Table, now time.Time) error {
			_, err := tab.Merge(Entry{Prefix: pfx("203.0.113.1/32"), Kind: Clear, Since: now, Until: now.Add(time.Hour), Origin: "mx2", Stamp: StampAt(now), Seq: 1}, now)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newLPM()
			tab := New(Options{Origin: "mx1", Sink: s})
			for _, e := range []Entry{
				{Prefix: pfx("198.51.100.0/24"), Kind: Block, Cause: Dictionary, Scope: ScopeMX, Since: t0, Until: t0.Add(time.Hour)},
				{Prefix: pfx("198.51.0.0/16"), Kind: Block, Cause: Manual, Scope: ScopeAll, Since: t0, Until: t0.Add(time.Minute)},
			} {
				if _, err := tab.Apply(e, t0); err != nil {
					t.Fatal(err)
				}
			}
			tab.Expire(t0)
			tab.Count(t0)
			now := t0.Add(80 * time.Second)
			if err := ask(tab, now); err != nil {
				t.Fatal(err)
			}
			tab.Expire(now)
			if got := s.scope(netip.MustParseAddr("198.51.100.7"), now); got != ScopeMX {
				t.Errorf("the kernel blocks %s, want %s", got, ScopeMX)
			}
		})
	}
}
