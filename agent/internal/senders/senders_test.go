package senders

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

func list(t testing.TB, rules ...string) (out []Sender) {
	t.Helper()
	for _, r := range rules {
		s, err := Parse(r)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func prefixes(s *Set) string {
	var l []string
	for _, r := range s.Ranges() {
		l = append(l, r.Prefix.String()+"="+r.Rule)
	}
	return strings.Join(l, " ")
}

func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"spf:google.com": "spf:google.com", "spf:_SPF.Google.com.": "spf:_spf.google.com", "domain:Yahoo.com": "domain:yahoo.com",
		"spf:com": "", "domain:": "", "spf:": "", "helo:x.test": "", "domain:*.x.test": "", "domain:x test": "", "domain:bücher.test": "", "spf:x.test..": "", "domain:x.test..": "",
		"domain:" + strings.Repeat("a.", 130) + "test": "",
	} {
		got, err := Parse(in)
		if got.Rule != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", in, got.Rule, err)
		}
	}
	for _, s := range Preset() {
		if !s.Preset {
			t.Errorf("%s is not marked as preset", s.Rule)
		}
	}
}

// TestRefresh follows one rule over days: a failure, a shrunk answer, one that stays small.
func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answers := zone{}
		now := func(ip4 ...string) {
			clear(answers)
			maps.Copy(answers, newZone(t, `a.test. 300 TXT "v=spf1 ip4:`+strings.Join(ip4, " ip4:")+` -all"`))
		}
		now("192.0.2.0/24", "198.51.100.0/24")
		changes := 0
		o := Options{Senders: list(t, "spf:a.test", "spf:x.broken.test", "domain:b.test"), Resolver: answers, Changed: func() { changes++ }, Log: slog.New(slog.DiscardHandler)}
		s := New(o)
		day := func(n int) {
			for range n {
				time.Sleep(24 * time.Hour)
				for _, e := range s.spf {
					s.refresh(t.Context(), e)
				}
			}
		}
		day(1)
		check := func(what, want string, n int) {
			t.Helper()
			if got := prefixes(s); got != want || changes != n {
				t.Errorf("%s: %s after %d changes, want %s after %d", what, got, changes, want, n)
			}
		}
		const all = "192.0.2.0/24=spf:a.test 198.51.100.0/24=spf:a.test"
		check("first", all, 1)
		st := s.Status()
		if st[0].Error != "" || st[0].Ranges != 2 || st[1].Error == "" || len(st) != 3 {
			t.Errorf("status %+v", st)
		}
		kept, ok := s.Save()
		if _, again := s.Save(); !ok || again {
			t.Error("Save must give the state once per change")
		}
		clear(answers) // NXDOMAIN
		day(2)
		check("record gone", all, 1)
		now("192.0.2.0/25")
		day(1)
		check("a quarter of it", all, 1)
		if e := s.Status()[0].Error; !strings.Contains(e, "less than half") {
			t.Errorf("status says %q", e)
		}
		now("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
		day(1)
		check("whole again", all+" 203.0.113.0/24=spf:a.test", 2)
		now("192.0.2.0/24")
		day(1)
		day(1)
		check("small for two days", all+" 203.0.113.0/24=spf:a.test", 2)
		day(1)
		check("small for three days", "192.0.2.0/24=spf:a.test", 3)

		// What was saved on the first day holds at once in the next life, before anything is asked.
		o.Saved = kept
		if got := prefixes(New(o)); got != all {
			t.Errorf("after a restart: %s", got)
		}
		o.Saved = []byte(`{"version":1,"senders":{"spf:a.test":{"at":"2000-01-01T00:00:00Z","ranges":["0.0.0.0/0","192.0.2.9/24","192.0.2.0/25"]}}}`)
		if got := prefixes(New(o)); got != "192.0.2.0/25=spf:a.test" {
			t.Errorf("of an edited state: %s", got)
		}
		for _, bad := range []string{"{", `{"version":9}`, `{"version":1,"senders":{"spf:a.test":{"at":"2000-01-01T00:00:00Z","ranges":["x"]}}}`, "null"} {
			o.Saved = []byte(bad)
			if got := prefixes(New(o)); got != "" {
				t.Errorf("%s: %s", bad, got)
			}
		}
	})
}

// TestStopSaves: what was proved a moment before the end is known at the next start.
func TestStopSaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Options{Senders: list(t, "domain:yahoo.test"), Resolver: newZone(t, ""), Log: slog.New(slog.DiscardHandler)}
		a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
		s := New(o)
		s.Learn(a, &resolve.Names{State: resolve.StateVerified, Verified: []string{"m1.yahoo.test"}})
		if _, ok := s.Save(); !ok {
			t.Fatal("the first is not saved")
		}
		s.Learn(b, &resolve.Names{State: resolve.StateVerified, Verified: []string{"m2.yahoo.test"}})
		if _, ok := s.Save(); ok {
			t.Fatal("the second is saved at once: the test shows nothing")
		}
		s.Stop()
		o.Saved, _ = s.Save()
		for _, a := range []netip.Addr{a, b} {
			if _, ok := New(o).Covers(a); !ok {
				t.Errorf("%s is not known after a restart", a)
			}
		}
	})
}

// TestRhythm counts what Run asks: each record once a day, a failing one again after minutes.
func TestRhythm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		z := &counting{zone: newZone(t, `a.test. 300 TXT "v=spf1 ip4:192.0.2.0/24 -all"`), asked: map[string]int{}}
		s := New(Options{Senders: list(t, "spf:a.test", "spf:x.broken.test"), Resolver: z, Log: slog.New(slog.DiscardHandler)})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		time.Sleep(time.Second)
		synctest.Wait()
		if z.n("a.test.") != 1 || z.n("x.broken.test.") != 1 {
			t.Errorf("at the start: %v", z.asked)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := z.n("x.broken.test."); n < 3 || n > 6 { // after 5, 10, 20, 40 minutes, each give or take a tenth
			t.Errorf("a failing record was asked %d times in an hour", n)
		}
		time.Sleep(10 * 24 * time.Hour)
		synctest.Wait()
		if n := z.n("a.test."); n < 10 || n > 13 {
			t.Errorf("asked %d times in ten days", n)
		}
		stop()
		<-done
	})
}

// TestOneLine: where the DNS is down, no rule can be refreshed, and the log says so once.
func TestOneLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var rules []string
		for i := range 13 {
			rules = append(rules, fmt.Sprintf("spf:x%d.broken.test", i))
		}
		var log strings.Builder
		s := New(Options{Senders: list(t, rules...), Resolver: newZone(t, ""), Log: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { s.Run(ctx); close(done) }()
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		stop()
		<-done
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "rules=13 of=13 first=spf:x0.broken.test") {
			t.Errorf("%s", got)
		}
	})
}

type counting struct {
	zone
	mu    sync.Mutex
	asked map[string]int
}

func (c *counting) n(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[name]
}

func (c *counting) Lookup(ctx context.Context, name string, qtype uint16) (resolve.Answer, error) {
	c.mu.Lock()
	c.asked[name]++
	c.mu.Unlock()
	return c.zone.Lookup(ctx, name, qtype)
}

func TestCovers(t *testing.T) {
	z := newZone(t, `a.test. 300 TXT "v=spf1 ip4:192.0.2.0/25 ip4:198.51.100.7 ip6:2001:db8:1::/48 -all"`)
	s := New(Options{Senders: list(t, "spf:a.test"), Resolver: z, Log: slog.New(slog.DiscardHandler)})
	s.refresh(t.Context(), s.spf[0])
	for a, want := range map[string]bool{
		"192.0.2.0": true, "192.0.2.127": true, "192.0.2.128": false, "192.0.1.255": false, "198.51.100.7": true, "198.51.100.8": false,
		"2001:db8:1::": true, "2001:db8:1:ffff::1": true, "2001:db8:2::": false, "::ffff:192.0.2.1": false, "255.255.255.255": false, "0.0.0.0": false,
	} {
		rule, ok := s.Covers(netip.MustParseAddr(a))
		if ok != want || ok && rule != "spf:a.test" {
			t.Errorf("%s: %q %v", a, rule, ok)
		}
	}
}

func TestDomains(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	s := New(Options{Senders: list(t, "domain:yahoo.test", "domain:mx.example.test"), Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)})
	if !s.ByName() {
		t.Error("names matter here")
	}
	a := netip.MustParseAddr("198.18.0.7")
	for _, c := range []struct {
		state resolve.State
		names []string
		want  string
	}{
		{resolve.StateVerified, []string{"sonic.mail.yahoo.test"}, "domain:yahoo.test"},
		{resolve.StateVerified, []string{"YAHOO.test."}, "domain:yahoo.test"},
		{resolve.StateVerified, []string{"evil.test", "out.mx.example.test"}, "domain:mx.example.test"},
		{resolve.StateVerified, []string{"notyahoo.test"}, ""},
		{resolve.StateVerified, []string{"yahoo.test.evil.test"}, ""},
		{resolve.StateVerified, []string{"example.test"}, ""},
		{resolve.StateMismatch, nil, ""},
		{resolve.StateTemporary, nil, ""},
	} {
		clear(s.proved)
		rule, news := s.Learn(a, &resolve.Names{State: c.state, Verified: c.names, Claimed: []string{"mail.yahoo.test"}})
		if rule != c.want || news != (c.want != "") {
			t.Errorf("%v %v: %q %v", c.state, c.names, rule, news)
		}
		if got, ok := s.Covers(a); ok != (c.want != "") || got != c.want {
			t.Errorf("%v: covered by %q", c.names, got)
		}
	}
	s.Learn(a, &resolve.Names{State: resolve.StateVerified, Verified: []string{"x.yahoo.test"}})
	if _, news := s.Learn(a, &resolve.Names{State: resolve.StateVerified, Verified: []string{"x.yahoo.test"}}); news {
		t.Error("the same is no news")
	}
	s.Learn(a, &resolve.Names{State: resolve.StateTemporary})
	if _, ok := s.Covers(a); !ok {
		t.Error("a DNS failure took a proof away")
	}
	// An IPv6 address stands for its /64. Both outlive a restart, as long as the rule stands in the config.
	if rule, news := s.Learn(netip.MustParseAddr("2001:db8::7"), &resolve.Names{State: resolve.StateVerified, Verified: []string{"x.yahoo.test"}}); rule == "" || !news {
		t.Error("IPv6 is not learnt")
	}
	const both = "198.18.0.7/32=domain:yahoo.test 2001:db8::/64=domain:yahoo.test"
	if _, ok := s.Covers(netip.MustParseAddr("2001:db8::8")); !ok || prefixes(s) != both {
		t.Errorf("%s", prefixes(s))
	}
	kept, ok := s.Save()
	if _, again := s.Save(); !ok || again {
		t.Error("Save must give the state once per change")
	}
	s.Learn(netip.MustParseAddr("198.18.0.8"), &resolve.Names{State: resolve.StateVerified, Verified: []string{"x.yahoo.test"}})
	if _, ok := s.Save(); ok {
		t.Error("each proof is written at once")
	}
	delete(s.proved, netip.MustParseAddr("198.18.0.8"))
	next := Options{Senders: s.o.Senders, Now: s.o.Now, Log: s.o.Log, Saved: kept}
	if got := prefixes(New(next)); got != both {
		t.Errorf("after a restart: %s", got)
	}
	next.Senders = list(t, "domain:other.test")
	if got := prefixes(New(next)); got != "" {
		t.Errorf("of another config: %s", got)
	}
	next.Senders = s.o.Senders
	next.Saved = []byte(`{"version":1,"proved":{"192.0.2.1":{"rule":"domain:yahoo.test","until":"2099-01-01T00:00:00Z"},"2001:db8::1":{"rule":"domain:yahoo.test","until":"2026-11-23T13:00:00Z"},"192.0.2.2":{"rule":"domain:yahoo.test","until":"2026-11-23T13:00:00Z"}}}`)
	if got := prefixes(New(next)); got != "192.0.2.2/32=domain:yahoo.test" {
		t.Errorf("of an edited state: %s", got)
	}
	now = now.Add(provedFor)
	if _, ok := s.Covers(a); ok || prefixes(s) != "" {
		t.Error("a proof has no end")
	}
	for i := range 3 * maxProved {
		now = now.Add(time.Millisecond)
		s.Learn(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}), &resolve.Names{State: resolve.StateVerified, Verified: []string{fmt.Sprintf("m%d.yahoo.test", i)}})
	}
	last := netip.AddrFrom4([4]byte{198, 18 + byte((3*maxProved-1)>>16), byte((3*maxProved - 1) >> 8 & 255), byte((3*maxProved - 1) & 255)})
	if n := len(s.Ranges()); n > maxProved || n < maxProved*9/10 || !slices.ContainsFunc(s.Ranges(), func(r Range) bool { return r.Prefix.Addr() == last }) {
		t.Errorf("%d addresses are remembered", n)
	}
}

// FuzzSaved: whatever stands in the state file, no more is allowed than an SPF record could, nobody by a rule that is not in the
// config, and it can be saved again.
func FuzzSaved(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	o := Options{Senders: []Sender{{Rule: "spf:a.test"}, {Rule: "domain:b.test"}}, Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}
	s := New(o)
	s.take(s.spf[0], Expansion{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/48")}}, nil)
	s.Learn(netip.MustParseAddr("198.51.100.9"), &resolve.Names{State: resolve.StateVerified, Verified: []string{"x.b.test"}})
	b, ok := s.Save()
	if !ok {
		f.Fatal("nothing to save")
	}
	f.Add(b)
	for _, s := range []string{
		"", "{", "null", `{"version":2}`, `{"version":1,"senders":{"spf:a.test":{"at":"2023-11-01T00:00:00Z","ranges":["0.0.0.0/0","::/0","10.0.0.1/8","::ffff:1.2.3.0/120",""]},"spf:c.test":{"ranges":["192.0.2.0/24"]}}}`,
		`{"version":1,"senders":{"spf:a.test":{"at":"9999-12-31T23:59:59-12:00","fewer":-5}},"proved":{"198.51.100.9":{"rule":"domain:b.test","until":"9999-12-31T23:59:59Z"},"":{"rule":"domain:"},"::ffff:1.2.3.4":{"rule":"domain:b.test","until":"2023-11-14T23:00:00Z"}}}`,
		`{"version":1,"senders":{"spf:a.test":{"at":"2023-11-01T00:00:00Z","ranges":["192.0.2.128/25","192.0.2.0/24","16.0.0.0/12","16.16.0.0/12","192.0.2.0/26"]}}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o := o
		o.Saved = b
		s := New(o)
		var spf []netip.Prefix
		for _, r := range s.Ranges() {
			p := r.Prefix
			switch {
			case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
				t.Fatalf("%+v", r)
			case r.Rule == "spf:a.test":
				spf = append(spf, p)
			case r.Rule != "domain:b.test" || p != network(p.Addr()):
				t.Fatalf("%+v", r)
			}
			if rule, ok := s.Covers(p.Addr()); !ok || rule != r.Rule && rule != "domain:b.test" {
				t.Fatalf("%s is in %s, and covered by %q", p, r.Rule, rule)
			}
		}
		if v4, v6 := size(spf); v4 > most4 || v6 > most6 || len(spf) > maxRanges {
			t.Fatalf("%v", spf)
		}
		s.take(s.spf[0], Expansion{Ranges: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, nil)
		if _, ok := s.Save(); !ok {
			t.Fatal("it cannot be saved")
		}
	})
}
