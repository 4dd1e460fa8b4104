package verdict

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
	"unsafe"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/scripts/seeds"
)

var (
	t0  = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	src = netip.MustParseAddr("198.51.100.7")
)

// A story is what one source does, told in events; the time moves on with wait.
type story struct {
	s        *Scorer
	now      time.Time
	verdicts []Verdict
}

func newStory() *story { return &story{s: New(DefaultConfig()), now: t0} }

func (st *story) wait(d time.Duration) { st.now = st.now.Add(d) }

func (st *story) do(k maillog.Kind, n int, every time.Duration) {
	for range n {
		st.event(maillog.Event{Kind: k, Source: src, Count: 1})
		st.wait(every)
	}
}

// others lets n other senders deliver a message each.
func (st *story) others(n int) {
	for i := range n {
		st.event(maillog.Event{Kind: maillog.Delivered, Source: netip.AddrFrom4([4]byte{192, 88, byte(i >> 8), byte(i)}), Count: 1})
	}
}

func (st *story) login(name uint64, ok bool) {
	k := maillog.AuthFailure
	if ok {
		k = maillog.AuthSuccess
	}
	st.event(maillog.Event{Kind: k, Source: src, Count: 1, Submission: true, User: spread(name)})
}

// spread makes a user hash of a small number; 0 stays "no name".
func spread(n uint64) uint64 {
	if n == 0 {
		return 0
	}
	n *= 0x9e3779b97f4a7c15
	return n ^ n>>29 | 1
}

func (st *story) event(e maillog.Event) {
	e.Time = st.now
	if v, ok := st.s.Observe(&e, st.now); ok {
		st.verdicts = append(st.verdicts, v)
	}
}

// TestAttackers: each of these must be blocked, for the right reason and on the right ports.
func TestAttackers(t *testing.T) {
	for _, c := range []struct {
		name  string
		cause block.Cause
		tell  func(st *story)
	}{
		{"dictionary flood", block.Dictionary, func(st *story) { st.do(maillog.UnknownRecipient, 50, time.Second) }},
		{"dictionary, 12 in 40 minutes", block.Dictionary, func(st *story) { st.do(maillog.UnknownRecipient, 13, 200*time.Second) }},
		{"spammer with one good address among 500", block.Dictionary, func(st *story) {
			st.do(maillog.UnknownRecipient, 250, time.Second)
			st.do(maillog.Delivered, 1, time.Second)
			st.do(maillog.UnknownRecipient, 250, time.Second)
		}},
		{"spammer whose first recipient is good", block.Dictionary, func(st *story) {
			st.do(maillog.Delivered, 1, time.Second)
			st.do(maillog.UnknownRecipient, 30, time.Second)
		}},
		{"spammer with one good in ten, inside the burst", block.Dictionary, func(st *story) {
			for range 40 {
				st.do(maillog.UnknownRecipient, 9, time.Second)
				st.do(maillog.Delivered, 1, time.Second)
			}
		}},
		{"spammer who knows half of the addresses", block.Dictionary, func(st *story) {
			st.others(2000) // else all mail comes through it
			for range 60 {
				st.do(maillog.UnknownRecipient, 1, time.Second)
				st.do(maillog.Delivered, 1, time.Second)
			}
		}},
		{"one line that stands for 30", block.Dictionary, func(st *story) {
			st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 30})
		}},
		{"one recipient, hammered", block.Dictionary, func(st *story) {
			for range 11 {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(5)})
				st.wait(2 * time.Second)
			}
		}},
		{"one name, a password every ten seconds", block.AuthBrute, func(st *story) {
			for range 30 {
				st.login(1, false)
				st.wait(10 * time.Second)
			}
		}},
		{"relay prober", block.RelayProbe, func(st *story) { st.do(maillog.RelayDenied, 5, time.Minute) }},
		{"login names from a list", block.AuthBrute, func(st *story) {
			for i := range uint64(12) {
				st.login(i+1, false)
				st.wait(20 * time.Second)
			}
		}},
		{"one name, many passwords", block.AuthBrute, func(st *story) {
			for range 120 {
				st.login(1, false)
				st.wait(30 * time.Second)
			}
		}},
		{"guessing fast, no names in the log", block.AuthBrute, func(st *story) {
			for range 20 {
				st.login(0, false)
				st.wait(2 * time.Second)
			}
		}},
		{"guessing every 40 seconds, no names in the log", block.AuthBrute, func(st *story) {
			for range 80 {
				st.login(0, false)
				st.wait(40 * time.Second)
			}
		}},
		{"null sender, a good recipient in front of the guesses", block.Dictionary, func(st *story) {
			for i := range uint64(40) {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(i + 1), Automatic: true, Midway: true})
				st.wait(5 * time.Second)
			}
		}},
		{"guessing every 20 seconds, no names in the log", block.AuthBrute, func(st *story) {
			for range 60 {
				st.login(0, false)
				st.wait(20 * time.Second)
			}
		}},
		{"logs in once and guesses 100 names", block.AuthBrute, func(st *story) {
			st.login(1, true)
			for i := range uint64(100) {
				st.login(i+2, false)
				st.wait(5 * time.Second)
			}
		}},
		{"talks first", block.ProtocolAbuse, func(st *story) { st.do(maillog.Pregreet, 3, time.Minute) }},
		{"web scanner", block.ProtocolAbuse, func(st *story) { st.do(maillog.ProtocolError, 12, time.Second) }},
		{"thrown out again and again", block.ProtocolAbuse, func(st *story) { st.do(maillog.TooManyErrors, 6, time.Minute) }},
		{"spam refused", block.ProtocolAbuse, func(st *story) { st.do(maillog.SpamReject, 20, time.Minute) }},
		{"rate limit, thousands of times", block.Flood, func(st *story) { st.do(maillog.RateLimit, 500, time.Second) }},
		{"mostly dictionary, with early talk", block.Dictionary, func(st *story) {
			st.do(maillog.UnknownRecipient, 6, time.Second)
			st.do(maillog.Pregreet, 1, time.Second)
		}},
		{"auth part too small to close submission", block.RelayProbe, func(st *story) {
			for i := range uint64(3) {
				st.login(i+1, false)
			}
			st.do(maillog.RelayDenied, 3, time.Second)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			c.tell(st)
			if len(st.verdicts) != 1 {
				a, _ := st.s.Lookup(src, st.now)
				t.Fatalf("%d verdicts; %s, %s", len(st.verdicts), a.Words(), a.Why())
			}
			v := st.verdicts[0]
			want := block.ScopeMX
			if c.cause == block.AuthBrute {
				want = block.ScopeAll
			}
			if v.Cause != c.cause || v.Scope != want || v.Prefix != netip.PrefixFrom(src, 32) || v.Repeat != 0 ||
				v.Until.Sub(v.Since).Round(time.Second) != 72*time.Hour || v.Evidence.Score < 0.99*v.Evidence.Threshold {
				t.Errorf("got %+v", v)
			}
		})
	}
}

// TestHonest: noisy, but none of these may ever be blocked.
func TestHonest(t *testing.T) {
	for _, c := range []struct {
		name string
		tell func(st *story)
	}{
		{"30 good and 5 unknown recipients", func(st *story) {
			for range 5 {
				st.do(maillog.UnknownRecipient, 1, time.Second)
				st.do(maillog.Delivered, 6, time.Second)
			}
		}},
		{"list host, 20,000 accepted and 500 unknown, never seen before", func(st *story) {
			for i := range 20500 {
				k := maillog.Delivered
				if i%41 == 0 {
					k = maillog.UnknownRecipient
				}
				st.do(k, 1, 300*time.Millisecond)
			}
		}},
		{"list host, the 500 all at once at the end", func(st *story) {
			st.do(maillog.Delivered, 20000, 100*time.Millisecond)
			st.do(maillog.UnknownRecipient, 500, 100*time.Millisecond)
			st.do(maillog.TooManyErrors, 25, time.Second)
		}},
		{"newsletter with 40% dead addresses, 5,000 accepted last week", func(st *story) {
			st.do(maillog.Delivered, 5000, time.Second)
			st.wait(5 * 24 * time.Hour)
			for i := range 5000 {
				k := maillog.Delivered
				if i%5 < 2 {
					k = maillog.UnknownRecipient
				}
				st.do(k, 1, time.Second)
				if i%50 == 49 {
					st.do(maillog.TooManyErrors, 1, 0)
				}
			}
		}},
		{"wrong saved password every 5 minutes for a day", func(st *story) {
			for range 288 {
				st.login(7, false)
				st.wait(5 * time.Minute)
			}
		}},
		{"... which tries twice each time", func(st *story) {
			for range 288 {
				st.login(7, false)
				st.wait(time.Second)
				st.login(7, false)
				st.wait(5 * time.Minute)
			}
		}},
		{"wrong saved password every 2 minutes for a day, no name in the log", func(st *story) {
			for range 720 {
				st.login(0, false)
				st.wait(2 * time.Minute)
			}
		}},
		{"wrong saved password every minute for a day, no name in the log", func(st *story) {
			for range 1440 {
				st.login(0, false)
				st.wait(time.Minute)
			}
		}},
		{"wrong saved password every 5 minutes for a day, no name in the log", func(st *story) {
			for range 288 {
				st.login(0, false)
				st.wait(5 * time.Minute)
			}
		}},
		{"... which tries twice each time", func(st *story) {
			for range 288 {
				st.login(0, false)
				st.wait(time.Second)
				st.login(0, false)
				st.wait(5 * time.Minute)
			}
		}},
		{"wrong saved password every minute for a day", func(st *story) {
			for range 1440 {
				st.login(7, false)
				st.wait(time.Minute)
			}
		}},
		{"... at four connections", func(st *story) {
			for range 1440 {
				for range 4 {
					st.login(7, false)
				}
				st.wait(time.Minute)
			}
		}},
		{"a new phone, five names and then the right one", func(st *story) {
			for i := range uint64(5) {
				st.login(i+1, false)
				st.wait(10 * time.Second)
			}
			st.login(9, true)
		}},
		{"thirty people mistype once each, none was here before", func(st *story) {
			for i := range uint64(30) {
				st.login(i+1, false)
				st.wait(10 * time.Second)
				st.login(i+1, true)
				st.wait(10 * time.Second)
			}
		}},
		{"cron job to a deleted mailbox, every five minutes for a day", func(st *story) {
			for range 288 {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(5)})
				st.wait(5 * time.Minute)
			}
		}},
		{"one message to forty, fifteen of them gone", func(st *story) {
			for i := range uint64(15) {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(100 + i), Midway: true})
			}
			st.do(maillog.Delivered, 1, time.Second)
			for i := range 25 {
				st.event(maillog.Event{Kind: maillog.Recipient, Source: src, Count: 1, User: stirred(i)})
			}
			for i := range uint64(15) {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(100 + i), Midway: true})
			}
		}},
		{"asks about a forged sender every four minutes: a name that cannot be, and the one it is about", func(st *story) {
			for i := range uint64(300) {
				for j := range uint64(2) {
					st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: spread(2*i + j + 1), Automatic: true})
				}
				st.wait(4 * time.Minute)
			}
		}},
		{"somebody tries four passwords", func(st *story) {
			for range 4 {
				st.login(3, false)
				st.wait(10 * time.Second)
			}
			st.login(3, true)
		}},
		{"office: forty people log in, one infected PC guesses", func(st *story) {
			for range 5 {
				for i := range uint64(400) {
					st.login(i%40+1, true)
					st.do(maillog.Delivered, 1, 20*time.Second)
				}
				st.wait(15 * time.Hour)
			}
			for i := range uint64(600) {
				st.login(1000+i, false)
				st.wait(6 * time.Second)
			}
		}},
		{"monitor: connects and quits every 10 seconds for a day", func(st *story) {
			for range 8640 {
				st.do(maillog.Connect, 1, time.Second)
				st.do(maillog.Disconnect, 1, 9*time.Second)
			}
		}},
		{"obeys greylisting", func(st *story) {
			for range 200 {
				st.do(maillog.Greylisted, 2, 5*time.Minute)
				st.do(maillog.Delivered, 1, time.Minute)
			}
		}},
		{"TLS does not work, connections are lost", func(st *story) { st.do(maillog.LostConnection, 5000, time.Second) }},
		{"no reverse name, delivers", func(st *story) {
			for range 1000 {
				st.do(maillog.NoRDNS, 1, time.Second)
				st.do(maillog.Delivered, 1, time.Second)
			}
		}},
		{"our list errs: everybody is listed", func(st *story) { st.do(maillog.DNSBLReject, 1000, time.Second) }},
		{"our database is down", func(st *story) { st.do(maillog.Other, 1000, time.Second) }},
		{"sloppy client, each message with a protocol note", func(st *story) {
			for range 1000 {
				st.do(maillog.ProtocolError, 1, time.Second)
				st.do(maillog.Delivered, 1, time.Second)
			}
		}},
		{"forwarder: a fifth is spam", func(st *story) {
			for i := range 2000 {
				k := maillog.Delivered
				if i%5 == 4 {
					k = maillog.SpamReject
				}
				st.do(k, 1, 30*time.Second)
			}
		}},
		{"sends to a customer who left us, among other mail", func(st *story) {
			st.do(maillog.Delivered, 50, time.Minute)
			st.do(maillog.RelayDenied, 20, time.Minute)
		}},
		{"retries a bad HELO every 5 minutes for a day", func(st *story) { st.do(maillog.HeloReject, 288, 5*time.Minute) }},
		{"9 unknown recipients a day for a month", func(st *story) {
			for range 30 {
				st.do(maillog.UnknownRecipient, 9, time.Second)
				st.wait(24 * time.Hour)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			c.tell(st)
			for _, v := range st.verdicts {
				t.Fatalf("blocked for %s after %s: %s", v.Cause, v.Since.Sub(t0), v.Evidence.Words())
			}
		})
	}
}

func TestWidening(t *testing.T) {
	st := newStory()
	st.do(maillog.UnknownRecipient, 20, time.Second)
	for i := range uint64(50) {
		st.login(i+1, false)
		st.wait(time.Second)
	}
	if len(st.verdicts) != 2 || st.verdicts[0].Scope != block.ScopeMX || st.verdicts[1].Scope != block.ScopeAll ||
		st.verdicts[1].Cause != block.AuthBrute || st.verdicts[1].Repeat != 0 || !st.verdicts[1].Until.Equal(st.verdicts[0].Until) {
		t.Errorf("got %+v", st.verdicts)
	}
}

func TestDecayAndRepeat(t *testing.T) {
	st := newStory()
	st.do(maillog.UnknownRecipient, 8, 0)
	for i, want := range []float64{80, 40, 20, 10} {
		a, ok := st.s.Lookup(src, t0.Add(time.Duration(i)*time.Hour))
		if !ok || a.Evidence.Score < want-0.01 || a.Evidence.Score > want+0.01 {
			t.Errorf("after %d h: %v", i, a.Evidence.Score)
		}
	}
	if a, _ := st.s.Lookup(src, t0.Add(-48*time.Hour)); a.Evidence.Score > 80 {
		t.Errorf("grew to %v when the clock was set back", a.Evidence.Score)
	}

	want := []time.Duration{72 * time.Hour, 144 * time.Hour, 168 * time.Hour, 168 * time.Hour}
	st = newStory()
	for i, d := range want {
		st.do(maillog.UnknownRecipient, 100, time.Second) // no second verdict while it is blocked
		if len(st.verdicts) != i+1 {
			t.Fatalf("%d verdicts in round %d", len(st.verdicts), i)
		}
		v := st.verdicts[i]
		if got := v.Until.Sub(v.Since); got != d || v.Repeat != i {
			t.Errorf("round %d: %v, repeat %d", i, got, v.Repeat)
		}
		st.now = v.Until
	}
	if st.s.Reset(netip.MustParsePrefix("198.51.100.0/24")) != 1 || st.s.Reset(netip.MustParsePrefix("198.51.100.0/24")) != 0 {
		t.Error("reset")
	}
	st.verdicts = nil
	st.do(maillog.UnknownRecipient, 9, time.Second)
	if len(st.verdicts) != 0 {
		t.Error("score survived the reset")
	}
	st.do(maillog.UnknownRecipient, 2, time.Second)
	if len(st.verdicts) != 1 || st.verdicts[0].Repeat != 0 {
		t.Errorf("after the reset: %+v", st.verdicts)
	}
}

func TestResetKeepsCredit(t *testing.T) {
	st := newStory()
	st.do(maillog.Delivered, 100, time.Second)
	st.others(2000) // else it is the one through whom all mail comes
	st.do(maillog.UnknownRecipient, 200, time.Second)
	if len(st.verdicts) != 1 {
		t.Fatal("not blocked")
	}
	st.s.Reset(netip.PrefixFrom(src, 32))
	st.verdicts = nil
	st.do(maillog.UnknownRecipient, 100, time.Second)
	if len(st.verdicts) != 0 {
		t.Error("credit is gone")
	}
}

func TestTimes(t *testing.T) {
	s := New(DefaultConfig())
	feed := func(at, now time.Time, n int) (got bool) {
		for range n {
			if _, ok := s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, Time: at}, now); ok {
				got = true
			}
		}
		return got
	}
	if feed(t0.Add(-2*time.Hour), t0, 500) {
		t.Error("a verdict from history")
	}
	if a, _ := s.Lookup(src, t0); a.Evidence.Score < 1200 || a.Evidence.Score > 1300 {
		t.Errorf("score %v, want 5000/4", a.Evidence.Score)
	}
	if !feed(t0, t0, 1) {
		t.Error("no verdict for a fresh offence")
	}
	// Late lines count as if they had come in time.
	s = New(DefaultConfig())
	feed(t0, t0, 4)
	feed(t0.Add(-time.Hour), t0, 4)
	if a, _ := s.Lookup(src, t0); a.Evidence.Score < 59.9 || a.Evidence.Score > 60.1 {
		t.Errorf("score %v, want 40+20", a.Evidence.Score)
	}
	// A stamp of next year is now, and a clock that was ahead for a while does not freeze the source.
	s = New(DefaultConfig())
	feed(t0.AddDate(1, 0, 0), t0, 4)
	if a, _ := s.Lookup(src, t0.Add(time.Hour)); a.Evidence.Score < 19.9 || a.Evidence.Score > 20.1 {
		t.Errorf("score %v, want 20", a.Evidence.Score)
	}
	s = New(DefaultConfig())
	feed(t0.AddDate(4, 0, 0), t0.AddDate(4, 0, 0), 4)
	if !feed(t0, t0, 6) {
		t.Error("frozen by a wrong clock")
	}
}

func TestPrefixes(t *testing.T) {
	s := New(DefaultConfig())
	var got Verdict
	for i := range 10 {
		a := netip.MustParseAddr(fmt.Sprintf("2001:db8:1:2::%x", i+1))
		if v, ok := s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: a, Count: 1}, t0); ok {
			got = v
		}
	}
	if got.Prefix != netip.MustParsePrefix("2001:db8:1:2::/64") || s.Len() != 1 {
		t.Errorf("got %v, %d sources", got.Prefix, s.Len())
	}
	if s.Reset(netip.MustParsePrefix("2001:db8:1:2::7/128")) != 1 {
		t.Error("reset by one address of it")
	}
	cfg := DefaultConfig()
	cfg.IPv6Prefix = 128
	s = New(cfg)
	for i := range 3000 {
		s.Observe(&maillog.Event{Kind: maillog.UnknownRecipient, Source: netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)), Count: 1}, t0)
	}
	if s.Len() != 3000 || s.Reset(netip.MustParsePrefix("2001:db8::/64")) != 3000 {
		t.Errorf("%d sources", s.Len())
	}
}

// TestResetMany: one walk does what a walk for each does.
func TestResetMany(t *testing.T) {
	seed := seeds.Of(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		one, many := New(DefaultConfig()), New(DefaultConfig())
		for range 100 {
			a := netip.AddrFrom4([4]byte{198, 18, byte(r.IntN(4)), byte(r.IntN(256))})
			if r.IntN(3) == 0 {
				a = netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::1", r.IntN(3), r.IntN(8)))
			}
			e := maillog.Event{Kind: maillog.UnknownRecipient, Source: a, Count: 1 + r.IntN(20)}
			one.Observe(&e, t0)
			many.Observe(&e, t0)
		}
		var list []netip.Prefix
		for range r.IntN(6) {
			a, bits := netip.AddrFrom4([4]byte{198, 18, byte(r.IntN(4)), byte(r.IntN(256))}), 16+r.IntN(17)
			if r.IntN(3) == 0 {
				a, bits = netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:%x::1", r.IntN(3), r.IntN(8))), 32+r.IntN(97)
			}
			p, err := a.Prefix(bits)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		n := 0
		for _, p := range list {
			n += one.Reset(p)
		}
		if got := many.ResetMany(list); got != n {
			t.Fatalf("%v: %d reset, one by one %d", list, got, n)
		}
		for slot := range one.used {
			a := one.prefix(one.keyAt(slot)).Addr()
			x, _ := one.Lookup(a, t0)
			y, ok := many.Lookup(a, t0)
			if !ok || x != y {
				t.Fatalf("%v: %s: %+v, one by one %+v", list, a, y, x)
			}
		}
	}
}

func TestWordsAndJSON(t *testing.T) {
	st := newStory()
	st.do(maillog.UnknownRecipient, 51, time.Second)
	st.wait(-10 * time.Second)
	st.do(maillog.UnknownRecipient, 1, time.Second)
	a, ok := st.s.Lookup(src, st.now)
	if want := "52 unknown recipients, 0 accepted, in 50 s"; !ok || a.Words() != want {
		t.Errorf("got %q, want %q", a.Words(), want)
	}
	b, err := json.Marshal(a.Evidence)
	if err != nil {
		t.Fatal(err)
	}
	var e Evidence
	if err := json.Unmarshal(b, &e); err != nil || e != a.Evidence {
		t.Errorf("%s: %+v, %v", b, e, err)
	}
	if _, ok := st.s.Lookup(netip.MustParseAddr("198.51.100.8"), st.now); ok {
		t.Error("knows a stranger")
	}
}

func TestSamples(t *testing.T) {
	var s Samples
	p := netip.PrefixFrom(src, 32)
	for i := range 200 {
		s.Add(p, fmt.Appendf(nil, "%d to=<alice@example.org>", i))
	}
	if got := s.Get(p); len(got) != 5 || got[4] != "191 to=<a***@example.org>" || got[0] != "3 to=<a***@example.org>" {
		t.Errorf("got %q", got)
	}
	for i := range 5000 {
		s.Add(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), []byte("x"))
	}
	if s.Get(p) != nil || len(s.by) != 4096 || s.order.Len() != 4096 {
		t.Errorf("%d prefixes", len(s.by))
	}
}

// TestNumbers: the store holds kinds and causes as numbers. If this fails, storeVersion must change.
func TestNumbers(t *testing.T) {
	if maillog.Other != 19 || maillog.UnknownRecipient != 3 || maillog.LostConnection != 18 || block.Manual != 10 || block.Dictionary != 1 {
		t.Error("the numbers of kinds or causes have changed")
	}
	if unsafe.Sizeof(record{}) != 56 || unsafe.Sizeof(counts{}) != 72 {
		t.Errorf("a record has %d bytes, counts %d", unsafe.Sizeof(record{}), unsafe.Sizeof(counts{}))
	}
}

// TestHalving: the tables give what math.Exp2 gives.
func TestHalving(t *testing.T) {
	for _, half := range []time.Duration{time.Second, time.Hour, 7 * 24 * time.Hour} {
		var h halving
		h.init(half)
		for _, s := range []uint32{0, 1, 255, 256, 257, 3600, 65535, 65536, 1 << 20, math.MaxUint32} {
			got, want := h.left(s), math.Exp2(-float64(s)/half.Seconds())
			if math.Abs(got-want) > 1e-12*want+1e-300 {
				t.Errorf("%v, %d s: %v, want %v", half, s, got, want)
			}
		}
	}
}

// TestMinds: without the events that a scorer does not mind it says the same.
func TestMinds(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seeds.Of(t), 1))
	left := 0
	for range 30 {
		cfg := DefaultConfig()
		cfg.Sources = 1000
		for k := range cfg.Weights {
			if rnd.IntN(8) == 0 {
				cfg.Weights[k] = float64(rnd.IntN(3) * 10)
			}
		}
		all, some := New(cfg), New(cfg)
		now := t0
		for range 5000 {
			now = now.Add(time.Duration(rnd.IntN(20)) * time.Second)
			e := maillog.Event{Kind: maillog.Kind(rnd.IntN(int(maillog.NumKinds) + 2)), Count: 1, User: rnd.Uint64(), Time: now.Add(-time.Duration(rnd.IntN(10)) * time.Second),
				Source: netip.AddrFrom4([4]byte{198, 18, byte(rnd.IntN(3)), byte(rnd.IntN(50))})}
			got, ok := all.Observe(&e, now)
			if !some.Minds(e.Kind) {
				if left++; ok {
					t.Fatalf("%v is minded: %+v", e.Kind, got)
				}
				continue
			}
			if want, ok2 := some.Observe(&e, now); ok != ok2 || !reflect.DeepEqual(got, want) {
				t.Fatalf("%v: %+v %v, want %+v %v", e.Kind, got, ok, want, ok2)
			}
		}
		if got, want := all.News(), some.News(); !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, want %+v", got, want)
		}
	}
	if left < 1000 {
		t.Errorf("only %d were left out", left)
	}
}
