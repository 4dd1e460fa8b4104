package block

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// gate is a Sink that wants to know who is allowed.
type gate struct {
	allowed []netip.Prefix
	told    int
	err     error
}

func (g *gate) Set(netip.Prefix, uint8, time.Time) error { return nil }
func (g *gate) Remove(netip.Prefix) error                { return nil }
func (g *gate) SetAllowed(list []netip.Prefix) error {
	if g.told++; g.err == nil {
		g.allowed = slices.Clone(list)
	}
	return g.err
}

// Allower is told of never-block rules and allows as they come, end and are taken back; blocks are no news to it.
func TestAllowed(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	g := &gate{}
	x := New(Options{Origin: "mx1", Sink: g})
	want := func(list ...string) {
		t.Helper()
		var got []string
		for _, p := range g.allowed {
			got = append(got, p.String())
		}
		if !slices.Equal(got, list) {
			t.Errorf("allowed are %s, want %s", strings.Join(got, " "), strings.Join(list, " "))
		}
	}
	apply := func(kind Kind, p string, until time.Time) {
		t.Helper()
		e := Entry{Prefix: netip.MustParsePrefix(p), Kind: kind, Cause: Manual, Until: until}
		if kind == Block {
			e.Scope = ScopeAll
		}
		if _, err := x.Apply(e, now); err != nil {
			t.Fatal(err)
		}
	}
	rules := []Never{{Prefix: netip.MustParsePrefix("127.0.0.0/8")}, {Prefix: netip.MustParsePrefix("2001:db8:1::/48"), Config: true}}
	if err := x.SetNever(rules, now); err != nil {
		t.Fatal(err)
	}
	want("127.0.0.0/8", "2001:db8:1::/48")
	apply(Allow, "192.0.2.0/24", time.Time{})
	apply(Allow, "198.51.100.7/32", now.Add(time.Hour))
	apply(Allow, "2001:db8:2::7/128", now.Add(time.Minute))
	want("127.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32", "2001:db8:1::/48", "2001:db8:2::7/128")
	told := g.told
	apply(Block, "203.0.113.7/32", now.Add(time.Hour))
	apply(Block, "192.0.2.9/32", now.Add(time.Hour)) // a manual block in an allow: the tables see to that
	apply(Clear, "203.0.113.7/32", now.Add(time.Hour))
	x.Expire(now.Add(time.Second))
	if g.told != told {
		t.Errorf("told %d times for nothing", g.told-told)
	}
	now = now.Add(2 * time.Minute)
	x.Expire(now)
	want("127.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32", "2001:db8:1::/48")
	apply(Disallow, "192.0.2.0/24", time.Time{})
	want("127.0.0.0/8", "198.51.100.7/32", "2001:db8:1::/48")
	now = now.Add(time.Second)
	apply(Allow, "192.0.2.0/24", time.Time{})
	want("127.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32", "2001:db8:1::/48")
	// Another node's allow, as gossip and state file bring it.
	other := Entry{Origin: "mx2", Prefix: netip.MustParsePrefix("198.51.100.9/32"), Kind: Allow, Cause: Manual, Stamp: StampAt(now), Seq: 1, Since: now}
	if _, err := x.Merge(other, now); err != nil {
		t.Fatal(err)
	}
	want("127.0.0.0/8", "192.0.2.0/24", "198.51.100.7/32", "198.51.100.9/32", "2001:db8:1::/48")
	// The kernel refuses: it is tried again.
	g.err = errors.New("full")
	if r, err := x.Apply(Entry{Prefix: netip.MustParsePrefix("192.0.2.77/32"), Kind: Disallow}, now); err != nil || r.Unenforced == "" {
		t.Errorf("%+v, %v", r, err)
	}
	g.err = nil
	if err := x.SetNever(rules[1:], now); err != nil {
		t.Fatal(err)
	}
	x.Expire(now.Add(time.Second))
	want("192.0.2.0/24", "198.51.100.7/32", "198.51.100.9/32", "2001:db8:1::/48")

	// From the state file: told by the resync of the start.
	g2 := &gate{}
	y := New(Options{Origin: "mx1", Sink: g2})
	if _, err := y.Load(other); err != nil {
		t.Fatal(err)
	}
	if g2.told != 0 {
		t.Error("told while loading")
	}
	if _, err := y.Resync(nil, now, false); err != nil {
		t.Fatal(err)
	}
	if len(g2.allowed) != 1 || g2.allowed[0] != other.Prefix {
		t.Errorf("after a resync: %v", g2.allowed)
	}
}
