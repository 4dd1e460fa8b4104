package verdict

import (
	"bytes"
	"fmt"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
	"pgregory.net/rapid"
)

// shelf is a store: what a set of calls of Changed left.
type shelf map[string]string

func (m shelf) save(s *Scorer) {
	s.Changed(func(k, v []byte) {
		if v == nil {
			delete(m, string(k))
		} else {
			m[string(k)] = string(v)
		}
	})
}

func (m shelf) load(t interface{ Fatalf(string, ...any) }, cfg Config) *Scorer {
	s := New(cfg)
	for k, v := range m {
		if err := s.Load([]byte(k), []byte(v)); err != nil {
			t.Fatalf("load: %v", err)
		}
	}
	return s
}

// TestSaveLoadIsNoDifference: a scorer that is saved and loaded at any moments gives the verdicts of one that runs
// through, and a third one with another seed too.
func TestSaveLoadIsNoDifference(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := DefaultConfig()
		cfg.Sources = 1000
		straight, broken, store := New(cfg), New(cfg), shelf{}
		cfg.Seed = 99
		seeded := New(cfg)
		now := t0
		kinds := []maillog.Kind{maillog.UnknownRecipient, maillog.UnknownRecipient, maillog.AuthFailure, maillog.AuthFailure,
			maillog.AuthSuccess, maillog.Delivered, maillog.RelayDenied, maillog.Pregreet, maillog.ProtocolError, maillog.RateLimit,
			maillog.NoRDNS, maillog.Connect, maillog.SpamReject, maillog.Trap, maillog.Recipient, maillog.Recipient}
		for range rapid.IntRange(1, 300).Draw(t, "events") {
			e := maillog.Event{
				Kind:   rapid.SampledFrom(kinds).Draw(t, "kind"),
				Source: netip.AddrFrom4([4]byte{198, 51, 100, rapid.ByteRange(0, 4).Draw(t, "source")}),
				Count:  rapid.SampledFrom([]int{1, 1, 1, 3, 50}).Draw(t, "count"),
				User:   spread(rapid.Uint64Range(0, 9).Draw(t, "user")),
				Time:   now.Add(-time.Duration(rapid.SampledFrom([]int{0, 0, 0, 1, 100, 9000}).Draw(t, "late")) * time.Second),
			}
			if rapid.IntRange(0, 9).Draw(t, "v6") == 0 {
				e.Source = netip.MustParseAddr("2001:db8::1")
			}
			v1, ok1 := straight.Observe(&e, now)
			v2, ok2 := broken.Observe(&e, now)
			v3, ok3 := seeded.Observe(&e, now)
			if ok1 != ok2 || ok1 != ok3 || !reflect.DeepEqual(v1, v2) || !reflect.DeepEqual(v1, v3) {
				t.Fatalf("straight %v %+v\nloaded   %v %+v\nseeded   %v %+v", ok1, v1, ok2, v2, ok3, v3)
			}
			if rapid.IntRange(0, 9).Draw(t, "save") == 0 {
				store.save(broken)
				if rapid.Bool().Draw(t, "load") {
					broken = store.load(t, DefaultConfig())
				}
			}
			if rapid.IntRange(0, 40).Draw(t, "reset") == 0 {
				p := netip.PrefixFrom(e.Source, e.Source.BitLen())
				if straight.Reset(p) != broken.Reset(p) || seeded.Reset(p) > 1 {
					t.Fatalf("resets differ")
				}
			}
			now = now.Add(time.Duration(rapid.SampledFrom([]int{0, 1, 30, 3600, 300000}).Draw(t, "wait")) * time.Second)
			if straight.Len() != broken.Len() {
				t.Fatalf("%d and %d sources", straight.Len(), broken.Len())
			}
		}
	})
}

// TestTimeOnlyLowers: whatever a source did, its score never rises by waiting.
func TestTimeOnlyLowers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New(DefaultConfig())
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			k := maillog.Kind(rapid.IntRange(1, int(maillog.NumKinds)-1).Draw(t, "kind"))
			s.Observe(&maillog.Event{Kind: k, Source: src, Count: 1, User: spread(rapid.Uint64Range(0, 9).Draw(t, "user"))}, t0)
		}
		last := 1e18
		for i := range 12 {
			a, _ := s.Lookup(src, t0.Add(time.Duration(i*i)*time.Hour))
			if a.Raw > last {
				t.Fatalf("raw score rose from %v to %v", last, a.Raw)
			}
			last = a.Raw
		}
	})
}

func TestChangedIsOnlyWhatChanged(t *testing.T) {
	s, store := New(DefaultConfig()), shelf{}
	for i := range 100 {
		s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: netip.AddrFrom4([4]byte{198, 18, 0, byte(i)}), Count: 1}, t0)
	}
	store.save(s)
	if len(store) != 100 {
		t.Errorf("%d saved", len(store))
	}
	n := 0
	s.Changed(func(_, _ []byte) { n++ })
	s.Observe(&maillog.Event{Kind: maillog.Connect, Source: netip.AddrFrom4([4]byte{198, 18, 0, 1}), Count: 1}, t0)
	s.Changed(func(_, _ []byte) { n++ })
	if n != 0 {
		t.Errorf("%d saved without a change", n)
	}
	s.Observe(&maillog.Event{Kind: maillog.Delivered, Source: netip.AddrFrom4([4]byte{198, 18, 0, 1}), Count: 1}, t0)
	s.Changed(func(_, v []byte) { n += len(v) })
	if n == 0 {
		t.Error("a change was not saved")
	}
}

// TestEviction: the table stays bounded, the store learns what is forgotten, and senders outlive a flood of strangers.
func TestEviction(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Sources = 500
	s, store := New(cfg), shelf{}
	good := netip.MustParseAddr("192.0.2.1")
	for i := range 20000 {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i), byte(i >> 8)}) // no /24 offends as a whole
		s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: a, Count: 1}, t0)
		if i%400 == 0 {
			s.Observe(&maillog.Event{Kind: maillog.Delivered, Source: good, Count: 1}, t0)
			store.save(s)
		}
		if _, ok := s.Lookup(a, t0); !ok || s.Len() > 500 {
			t.Fatalf("after %d: %v, %d sources", i, ok, s.Len())
		}
		if i%3000 == 2999 {
			s = store.load(t, cfg)
		}
	}
	store.save(s)
	if a, ok := s.Lookup(good, t0); !ok || a.Evidence.Accepted != 50 {
		t.Errorf("the regular sender: %v %+v", ok, a.Evidence)
	}
	if len(store) != 502 || len(s.gone) != 0 { // and the hour of accepted mail, and what crowd is behind the sender
		t.Errorf("%d in the store", len(store))
	}
	for k := range store {
		if k[0] == special {
			continue
		}
		key, err := s.parseKey([]byte(k))
		if _, ok := s.lookup(key); err != nil || !ok {
			t.Errorf("%x is in the store but not in the table: %v", k, err)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	s := New(DefaultConfig())
	for range 3 {
		s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1}, t0)
	}
	var key, val []byte
	s.Changed(func(k, v []byte) { key, val = bytes.Clone(k), bytes.Clone(v) })
	for i := range val {
		if err := New(DefaultConfig()).Load(key, val[:i]); err == nil {
			t.Errorf("loaded %d of %d bytes", i, len(val))
		}
	}
	for i := range key {
		if err := New(DefaultConfig()).Load(key[:i], val); err == nil {
			t.Errorf("loaded with %d bytes of key", i)
		}
	}
	cfg := DefaultConfig()
	cfg.IPv6Prefix = 56
	if New(cfg).Load(append([]byte{64}, make([]byte, 16)...), val) == nil {
		t.Error("loaded another prefix length")
	}
}

func FuzzLoad(f *testing.F) {
	s := New(DefaultConfig())
	for i := range 30 {
		s.Observe(&maillog.Event{Kind: maillog.Kind(i % int(maillog.NumKinds)), Source: src, Count: i, User: uint64(i)}, t0)
	}
	s.Changed(func(k, v []byte) { f.Add(bytes.Clone(k), bytes.Clone(v)) })
	f.Add([]byte{}, []byte{})
	cfg := DefaultConfig()
	cfg.Sources = 64
	f.Fuzz(func(t *testing.T, key, val []byte) {
		s := New(cfg)
		if s.Load(key, val) != nil {
			if s.Len() != 0 {
				t.Error("an error left something behind")
			}
			return
		}
		if s.Len() == 0 { // no source, but one of the other records
			s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 3}, t0)
			for i := range s.share.dirty {
				s.share.dirty[i] = s.share.hours[i].hour > 0
			}
			s.alarms.dirty = true
			s.Changed(func(k, v []byte) {
				if err := New(cfg).Load(k, v); err != nil {
					t.Errorf("does not survive a second trip: %v", err)
				}
			})
			return
		}
		slot, k := 0, s.keyAt(0)
		first := s.appendRecord(nil, slot, k, s.rec(slot))
		again := New(cfg)
		if err := again.Load(key, first); err != nil || !bytes.Equal(again.appendRecord(nil, 0, k, again.rec(0)), first) {
			t.Errorf("does not survive a second trip: %v", err)
		}
		a := s.prefix(k).Addr()
		for kind := range maillog.NumKinds {
			v, ok := s.Observe(&maillog.Event{Kind: kind, Source: a, Count: 3}, t0)
			if ok && (!v.Until.After(t0) || v.Until.Sub(t0) > 169*time.Hour) {
				t.Errorf("blocked until %v", v.Until)
			}
		}
		if acc, ok := s.Lookup(a, t0); !ok || !(acc.Evidence.Score >= 0) || !(acc.Raw < 1e13) {
			t.Errorf("score %v", acc.Evidence.Score)
		}
		s.Reset(s.prefix(k))
	})
}

func TestDeterministic(t *testing.T) {
	run := func() string {
		s, out := New(DefaultConfig()), ""
		for i := range 5000 {
			e := maillog.Event{Kind: maillog.Kind(i * 7 % int(maillog.NumKinds)), Source: netip.AddrFrom4([4]byte{198, 18, 0, byte(i * i % 37)}), Count: 1, User: spread(uint64(i % 11))}
			if v, ok := s.Observe(&e, t0.Add(time.Duration(i)*time.Second)); ok {
				out += fmt.Sprintln(v)
			}
		}
		return out
	}
	if a := run(); a == "" || a != run() {
		t.Error("two runs differ, or say nothing")
	}
}
