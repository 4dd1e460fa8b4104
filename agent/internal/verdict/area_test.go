package verdict

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// offendEach lets n parts of a network offend k times each, ten seconds apart; part says which address the nth one has.
func offendEach(st *story, n, k int, kind maillog.Kind, part func(i int) netip.Addr) {
	for i := range n {
		for j := range k {
			st.event(maillog.Event{Kind: kind, Source: part(i), Count: 1, User: spread(uint64(i*100 + j + 1))})
		}
		st.wait(10 * time.Second)
	}
}

func host24(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, 5, byte(i)}) }

func net56(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:7:1%02x::1", i))
}

func net48(i int) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("2001:db8:8:%02x%02x::1", i, i*7%256))
}

func TestAreas(t *testing.T) {
	for _, c := range []struct {
		name string
		part func(int) netip.Addr
		n    int    // one less must not do
		want string // the area
		kind maillog.Kind
		k    int
		scop block.Scope
	}{
		{"snowshoe /24, three unknown recipients each", host24, 128, "198.18.5.0/24", maillog.UnknownRecipient, 3, block.ScopeMX},
		{"/24 that relays", host24, 128, "198.18.5.0/24", maillog.RelayDenied, 1, block.ScopeMX},
		{"/24 that guesses", host24, 128, "198.18.5.0/24", maillog.AuthFailure, 3, block.ScopeAll},
		{"/64s of a /56", net56, 16, "2001:db8:7:100::/56", maillog.UnknownRecipient, 3, block.ScopeMX},
		{"/56s of a /48", net48, 16, "2001:db8:8::/48", maillog.UnknownRecipient, 3, block.ScopeMX},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			offendEach(st, c.n-1, c.k, c.kind, c.part)
			if len(st.verdicts) != 0 {
				t.Fatalf("blocked after %d: %+v", c.n-1, st.verdicts)
			}
			// A restart changes nothing.
			store := shelf{}
			store.save(st.s)
			st.s = store.load(t, DefaultConfig())
			offendEach(st, 1, c.k, c.kind, func(int) netip.Addr { return c.part(c.n - 1) })
			if len(st.verdicts) != 1 {
				t.Fatalf("%d verdicts", len(st.verdicts))
			}
			v := st.verdicts[0]
			if v.Prefix.String() != c.want || v.Scope != c.scop || v.Cause != causeOf(c.kind) || v.Evidence.Parts != c.n || v.Until.Sub(v.Since) != 72*time.Hour ||
				v.Source.Addr() == v.Prefix.Addr() || !strings.HasPrefix(v.Evidence.Words(), fmt.Sprintf("%d parts of it offend: ", c.n)) {
				t.Errorf("got %+v: %s", v, v.Evidence.Words())
			}
			if _, err := block.New(block.Options{Origin: "x"}).Apply(block.Entry{Prefix: v.Prefix, Kind: block.Block, Cause: v.Cause, Scope: v.Scope, Since: v.Since, Until: v.Until}, st.now); err != nil {
				t.Error(err)
			}
			store.save(st.s)
			st.s = store.load(t, DefaultConfig())
			// While it stands nobody in it is blocked again ...
			offendEach(st, c.n+3, 20, maillog.UnknownRecipient, c.part)
			if len(st.verdicts) != 1 {
				t.Fatalf("again: %+v", st.verdicts[1])
			}
			a, ok := st.s.Lookup(c.part(0), st.now)
			if !ok || a.Wide != v.Prefix || !strings.Contains(a.Why(), "as part of "+c.want) {
				t.Errorf("lookup %v %+v", ok, a)
			}
			// ... but who was reset is on his own.
			one := c.part(2)
			p, _ := one.Prefix(one.BitLen())
			st.s.Reset(p)
			offendEach(st, 2, 20, maillog.UnknownRecipient, func(i int) netip.Addr { return c.part(2 + i) })
			if len(st.verdicts) != 2 || !st.verdicts[1].Prefix.Contains(one) || st.verdicts[1].Prefix.Bits() <= v.Prefix.Bits() {
				t.Errorf("after a reset of one: %+v", st.verdicts[1:])
			}
			// A reset of the whole starts anew, and so does the end of the block, as a repetition.
			st.verdicts = nil
			st.now = v.Until.Add(24 * time.Hour)
			offendEach(st, c.n, c.k, c.kind, c.part)
			if len(st.verdicts) != 1 || st.verdicts[0].Prefix != v.Prefix || st.verdicts[0].Repeat != 1 {
				t.Fatalf("the second time: %+v", st.verdicts)
			}
			st.s.Reset(v.Prefix)
			st.verdicts = nil
			offendEach(st, c.n-1, c.k, c.kind, c.part)
			if a, _ := st.s.Lookup(c.part(0), st.now); a.Wide.IsValid() || len(st.verdicts) != 0 {
				t.Errorf("after a reset: %+v %+v", a, st.verdicts)
			}
			offendEach(st, 1, c.k, c.kind, func(int) netip.Addr { return c.part(c.n) })
			if len(st.verdicts) != 1 || st.verdicts[0].Repeat != 0 {
				t.Errorf("after a reset: %+v", st.verdicts)
			}
		})
	}
}

// TestAreaWithMail: an area that mail comes from is never blocked as a whole; its sources are, one by one.
func TestAreaWithMail(t *testing.T) {
	for _, c := range []struct {
		name  string
		hosts []byte // who has a message accepted, an hour apart
		wide  bool
	}{
		{"one message", []byte{200}, true},
		{"one host, two hours", []byte{200, 200}, false},
		{"two hosts, two hours", []byte{200, 201}, false},
	} {
		for _, part := range []func(int) netip.Addr{host24, net56, net48} {
			t.Run(c.name+" "+part(0).String(), func(t *testing.T) {
				st := newStory()
				for _, h := range c.hosts {
					st.event(maillog.Event{Kind: maillog.Delivered, Source: part(int(h)), Count: 1})
					st.wait(time.Hour)
				}
				st.others(100)
				offendEach(st, 140, 3, maillog.UnknownRecipient, part)
				if (len(st.verdicts) > 0) != c.wide {
					t.Errorf("%+v", st.verdicts)
				}
				st.verdicts = nil
				st.wait(24 * time.Hour)
				offendEach(st, 60, 20, maillog.UnknownRecipient, part)
				if want := 60; !c.wide && len(st.verdicts) != want {
					t.Errorf("%d of %d blocked one by one", len(st.verdicts), want)
				}
			})
		}
	}
}

// TestAreaOver: 32 hosts of a /24 that reach the threshold are enough. Those before were blocked one by one.
func TestAreaOver(t *testing.T) {
	st := newStory()
	offendEach(st, 60, 7, maillog.UnknownRecipient, func(i int) netip.Addr { return host24(100 + i) })
	offendEach(st, 31, 12, maillog.UnknownRecipient, host24)
	if len(st.verdicts) != 31 {
		t.Fatalf("%d verdicts", len(st.verdicts))
	}
	for _, v := range st.verdicts {
		if v.Prefix.Bits() != 32 {
			t.Errorf("%+v", v)
		}
	}
	store := shelf{}
	store.save(st.s)
	st.s = store.load(t, DefaultConfig())
	offendEach(st, 1, 12, maillog.UnknownRecipient, func(int) netip.Addr { return host24(31) })
	if len(st.verdicts) != 32 || st.verdicts[31].Prefix.String() != "198.18.5.0/24" {
		t.Errorf("%+v", st.verdicts[31:])
	}
}

// TestAreaSlow: what offends too slowly to be many at any time is no area.
func TestAreaSlow(t *testing.T) {
	st := newStory()
	for i := range 200 {
		offendEach(st, 1, 3, maillog.UnknownRecipient, func(int) netip.Addr { return host24(i) })
		st.wait(9 * time.Minute)
	}
	if len(st.verdicts) != 0 {
		t.Errorf("%+v", st.verdicts)
	}
}

// TestAreasBounded: a hundred thousand areas do not push out the one in which many offend, nor fill the memory.
func TestAreasBounded(t *testing.T) {
	st := newStory()
	places := len(st.s.areas.sets) * areaSet
	for i := range 140 {
		offendEach(st, 1, 3, maillog.UnknownRecipient, func(int) netip.Addr { return host24(i) })
		for j := range 700 {
			n := i*700 + j
			for range 3 {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: netip.AddrFrom4([4]byte{20 + byte(n>>16), byte(n >> 8), byte(n), 1}), Count: 1})
			}
		}
	}
	if len(st.verdicts) != 1 || st.verdicts[0].Prefix.String() != "198.18.5.0/24" {
		t.Errorf("%+v", st.verdicts)
	}
	if len(st.s.areas.sets)*areaSet != places || len(st.s.areas.gone) != 0 {
		t.Errorf("%d areas, %d gone", len(st.s.areas.sets)*areaSet, len(st.s.areas.gone))
	}
}

func TestLoadAreaRefuses(t *testing.T) {
	st := newStory()
	offendEach(st, 20, 3, maillog.UnknownRecipient, net56)
	var key, val []byte
	st.s.changedAreas(func(k, v []byte) { key, val = bytes.Clone(k), bytes.Clone(v) })
	if err := New(DefaultConfig()).Load(key, val); err != nil {
		t.Fatal(err)
	}
	for i := range val {
		if New(DefaultConfig()).Load(key, val[:i]) == nil {
			t.Errorf("loaded %d of %d bytes", i, len(val))
		}
	}
	key[len(key)-1]++
	if New(DefaultConfig()).Load(key, val) == nil {
		t.Error("loaded an area with host bits")
	}
}

// TestGrazed: a network whose each part guesses once is blocked when nearly all of a /24 or many of a /56 or /48 have, but not if
// a single message of it was accepted: a new pool of a large provider has typos too.
func TestGrazed(t *testing.T) {
	for _, c := range []struct {
		name string
		part func(int) netip.Addr
		n    int
		want string
	}{
		{"/24", host24, graze4, "198.18.5.0/24"},
		{"/64s of a /56", net56, graze6, "2001:db8:7:100::/56"},
		{"/56s of a /48", net48, graze6, "2001:db8:8::/48"},
	} {
		for _, mail := range []bool{false, true} {
			st := newStory()
			st.others(1000)
			if mail {
				st.event(maillog.Event{Kind: maillog.Delivered, Source: c.part(200), Count: 1})
			}
			offendEach(st, c.n-1, 1, maillog.UnknownRecipient, c.part)
			if len(st.verdicts) != 0 {
				t.Fatalf("%s: blocked before: %+v", c.name, st.verdicts)
			}
			offendEach(st, 1, 1, maillog.UnknownRecipient, func(int) netip.Addr { return c.part(c.n - 1) })
			if mail {
				if len(st.verdicts) != 0 {
					t.Errorf("%s with mail: %+v", c.name, st.verdicts)
				}
				continue
			}
			if len(st.verdicts) != 1 || st.verdicts[0].Prefix.String() != c.want || st.verdicts[0].Evidence.Parts != c.n {
				t.Errorf("%s: %+v", c.name, st.verdicts)
			}
		}
		// Bounces and callbacks of a network are no guesses, nor is what takes a day.
		st := newStory()
		for i := range 200 {
			st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: c.part(i), Count: 1, User: spread(uint64(i + 1)), Automatic: true})
			st.wait(10 * time.Second)
		}
		for i := range 200 {
			st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: c.part(i), Count: 1, User: spread(uint64(i + 1))})
			st.wait(5 * time.Minute)
		}
		if len(st.verdicts) != 0 {
			t.Errorf("%s, honest: %+v", c.name, st.verdicts)
		}
	}
}
