package dnslist

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// fakeDNS answers without a network. answer gets the name without its final dot.
type fakeDNS struct {
	mu     sync.Mutex
	answer func(name string, qtype uint16) ([]string, *resolve.Error)
	rdns   resolve.State
	asked  map[string]int
	n      int
	delay  time.Duration
}

func (f *fakeDNS) Lookup(ctx context.Context, name string, qtype uint16) (resolve.Answer, error) {
	f.mu.Lock()
	if f.asked == nil {
		f.asked = map[string]int{}
	}
	name = strings.TrimSuffix(name, ".")
	f.asked[name]++
	f.n++
	delay, answer := f.delay, f.answer
	f.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return resolve.Answer{}, &resolve.Error{Kind: resolve.Timeout, Name: name}
		}
	}
	list, err := answer(name, qtype)
	if err != nil {
		err.Name = name
		return resolve.Answer{}, err
	}
	a := resolve.Answer{TTL: 5 * time.Minute, NXDomain: len(list) == 0, Took: time.Millisecond}
	for _, s := range list {
		if qtype == dns.TypeTXT {
			a.Records = append(a.Records, &dns.TXT{Txt: []string{s}})
		} else {
			a.Records = append(a.Records, recordsTTL(300, s)...)
		}
	}
	return a, nil
}

func recordsTTL(seconds uint32, addr string) []dns.RR {
	return []dns.RR{&dns.A{Hdr: dns.RR_Header{Ttl: seconds}, A: net.ParseIP(addr)}}
}

func (f *fakeDNS) Fresh(ctx context.Context, name string, qtype uint16) (resolve.Answer, error) {
	return f.Lookup(ctx, name, qtype)
}

func (f *fakeDNS) FCrDNS(ctx context.Context, _ netip.Addr) resolve.Names {
	if f.rdns == resolve.StateTemporary {
		<-ctx.Done()
	}
	return resolve.Names{State: f.rdns}
}

func (f *fakeDNS) queries() int { f.mu.Lock(); defer f.mu.Unlock(); return f.n }

func (f *fakeDNS) set(a func(string, uint16) ([]string, *resolve.Error)) {
	f.mu.Lock()
	f.answer = a
	f.mu.Unlock()
}

// good is a list that keeps RFC 5782 and has some entries: reversed names without zone.
func good(zone string, entries map[string]string) func(string, uint16) ([]string, *resolve.Error) {
	return func(name string, qtype uint16) ([]string, *resolve.Error) {
		rev, ok := strings.CutSuffix(name, "."+zone)
		if !ok {
			return nil, nil
		}
		if qtype == dns.TypeTXT {
			return []string{"see http://example.net/" + name}, nil
		}
		if rev == "2.0.0.127" || strings.HasPrefix(rev, "2.0.0.0.0.0.f.7.f.f.f.f.") {
			return []string{"127.0.0.2"}, nil
		}
		if e := entries[rev]; e != "" {
			return strings.Fields(e), nil
		}
		return nil, nil
	}
}

// bench is an engine in a bubble of fake time.
type bench struct {
	*Engine
	dns  *fakeDNS
	mu   sync.Mutex
	got  []Finding
	logs bytes.Buffer
}

func (b *bench) found(f Finding) { b.mu.Lock(); b.got = append(b.got, f); b.mu.Unlock() }

func (b *bench) findings() []Finding {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]Finding(nil), b.got...)
}

// bubble runs test with an engine over lists, in fake time.
func bubble(t *testing.T, o Options, f *fakeDNS, sites []string, test func(t *testing.T, b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		for _, s := range sites {
			l, err := ParseSite(s)
			if err != nil {
				t.Fatal(err)
			}
			o.Lists = append(o.Lists, l)
		}
		b := &bench{dns: f}
		o.Resolver, o.Found = f, b.found
		o.Log = slog.New(slog.NewTextHandler(&b.logs, nil))
		b.Engine = NewEngine(o)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { _ = b.Run(ctx); close(done) }()
		synctest.Wait()
		test(t, b)
		cancel()
		<-done
	})
}

const site = "bl.example.net=127.0.0.[2..11]*2"

func TestFinding(t *testing.T) {
	f := &fakeDNS{rdns: resolve.StateMismatch, answer: good("bl.example.net", map[string]string{
		"1.2.0.192": "127.0.0.2 127.0.0.4", "2.2.0.192": "127.0.0.99", "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2": "127.0.0.3",
	})}
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		for _, c := range []struct {
			source string
			sum    float64
		}{{"192.0.2.1", 70}, {"::ffff:192.0.2.9", 0}, {"192.0.2.2", 0}, {"2001:db8::1", 70}, {"192.0.2.3", 0}} {
			b.mu.Lock()
			b.got = nil
			b.mu.Unlock()
			if !b.Ask(addr(c.source)) {
				t.Fatalf("%s is not asked about", c.source)
			}
			if b.Ask(addr(c.source)) {
				t.Errorf("%s is asked about twice", c.source)
			}
			synctest.Wait()
			g := b.findings()
			if len(g) != 1 || g[0].Sum != c.sum || g[0].Source != addr(c.source).Unmap() || g[0].RDNS != resolve.StateMismatch || g[0].TTL != 5*time.Minute {
				t.Errorf("%s: %+v", c.source, g)
			}
			if r, ok := b.Recent(addr(c.source)); !ok || r.Sum != c.sum {
				t.Errorf("%s: %+v", c.source, r)
			}
		}
		n := f.queries()
		if b.Ask(addr("192.0.2.1")) {
			t.Error("asked again within the TTL")
		}
		if b.Ask(addr("2001:db8::abcd")) {
			t.Error("an address of the same /64 is asked about")
		}
		for _, a := range []string{"127.0.0.2", "10.1.2.3", "100.64.0.1", "fe80::1", "0.0.0.0", "::", "224.0.0.1", "fd00::1", "0.1.2.3"} {
			if b.Ask(addr(a)) {
				t.Errorf("%s is asked about", a)
			}
		}
		if b.Ask(netip.Addr{}) {
			t.Error("nobody is asked about")
		}
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if !b.Ask(addr("192.0.2.1")) {
			t.Error("not asked again after the TTL")
		}
		synctest.Wait()
		if f.queries() == n {
			t.Error("no query")
		}
		if list := b.Report(t.Context(), addr("192.0.2.1")); len(list) != 1 || list[0].Says != Listed || !strings.Contains(list[0].TXT, "http://example.net") {
			t.Errorf("%+v", list)
		}
		if list := b.Report(t.Context(), addr("192.0.2.9")); len(list) != 1 || list[0].Says != Clean || list[0].TXT != "" {
			t.Errorf("%+v", list)
		}
		if list := b.Report(t.Context(), addr("10.0.0.1")); list != nil {
			t.Errorf("asked about a private address: %+v", list)
		}
	})
}

// What a list may do wrong: none of it makes a source listed, and each is told in words with a hint.
func TestBadLists(t *testing.T) {
	all := func(codes ...string) func(string, uint16) ([]string, *resolve.Error) {
		return func(string, uint16) ([]string, *resolve.Error) { return codes, nil }
	}
	fails := func(k resolve.Kind) func(string, uint16) ([]string, *resolve.Error) {
		return func(string, uint16) ([]string, *resolve.Error) { return nil, &resolve.Error{Kind: k} }
	}
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("127.0.0.%d", i+2)
	}
	for _, c := range []struct {
		name   string
		answer func(string, uint16) ([]string, *resolve.Error)
		reason string
		hinted bool
	}{
		{"lists everybody", all("127.0.0.2"), "an address nobody can have", true},
		{"lists nobody", all(), "does not list its test entry", true},
		{"open resolver", all("127.255.255.254"), "127.255.255.254", true},
		{"too many queries", all("127.255.255.255"), "too many queries", true},
		{"over the limit", all("127.0.0.255"), "over the limit", true},
		{"blocked query", all("127.0.0.1"), "127.0.0.1", true},
		{"an error among listings", all("127.0.0.2", "127.255.255.254"), "127.255.255.254", true},
		{"parked", all("91.195.240.87"), "outside 127.0.0.0/8", true},
		{"parked, among listings", all("127.0.0.2", "91.195.240.87"), "outside 127.0.0.0/8", true},
		{"a hundred codes", all(many...), "100 codes", true},
		{"SERVFAIL", fails(resolve.ServFail), "SERVFAIL", false},
		{"REFUSED", fails(resolve.Refused), "REFUSED", true},
		{"silence", fails(resolve.Timeout), "no answer in time", true},
		{"forged", fails(resolve.Mismatch), "another question", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := &fakeDNS{answer: c.answer}
			bubble(t, Options{}, f, []string{site, "ok.example.org"}, func(t *testing.T, b *bench) {
				for i := range 40 {
					b.Ask(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				for _, g := range b.findings() {
					if g.Listed() || g.Sum != 0 || len(g.Listings) > 0 {
						t.Fatalf("%+v", g)
					}
				}
				if len(b.findings()) != 40 {
					t.Errorf("%d findings", len(b.findings()))
				}
				z := b.Status().Zones[0]
				if z.IPv4.State != Suspended || !strings.Contains(z.IPv4.Reason, c.reason) || c.hinted != (z.IPv4.Hint != "") {
					t.Errorf("%+v", z)
				}
				// It becomes right: found out within an hour at most.
				f.set(good("bl.example.net", map[string]string{"9.9.2.192": "127.0.0.3", "77.2.0.192": "127.0.0.3"}))
				time.Sleep(2*time.Hour + time.Minute)
				synctest.Wait()
				if z := b.Status().Zones[0]; z.IPv4.State != OK {
					t.Fatalf("%+v", z.IPv4)
				}
				b.Ask(addr("192.0.2.77"))
				synctest.Wait()
				if g := b.findings(); !g[len(g)-1].Listed() {
					t.Errorf("%+v", g[len(g)-1])
				}
			})
		})
	}
}

// A list that was right and becomes wrong while it is asked: the first yes after a minute is held against a canary.
func TestTurnsBad(t *testing.T) {
	f := &fakeDNS{answer: good("bl.example.net", nil)}
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		b.Ask(addr("192.0.2.1"))
		synctest.Wait()
		if z := b.Status().Zones[0]; z.IPv4.State != OK || z.Asked != 1 {
			t.Fatalf("%+v", z)
		}
		time.Sleep(61 * time.Second)
		f.set(func(string, uint16) ([]string, *resolve.Error) { return []string{"127.0.0.2"}, nil })
		for i := range 200 {
			b.Ask(netip.AddrFrom4([4]byte{192, 0, 3, byte(i)}))
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		for _, g := range b.findings() {
			if g.Listed() {
				t.Fatalf("%+v", g)
			}
		}
		if z := b.Status().Zones[0]; z.IPv4.State != Suspended || !strings.Contains(b.logs.String(), "suspended") {
			t.Errorf("%+v", z)
		}
	})
}

// IPv6: a list without its test entry is not asked about IPv6, and the entry is asked for as IPv6.
func TestNoIPv6(t *testing.T) {
	f := &fakeDNS{answer: func(name string, qtype uint16) ([]string, *resolve.Error) {
		if strings.Contains(name, "f.7.f.f.f.f") {
			return nil, nil
		}
		return good("bl.example.net", nil)(name, qtype)
	}}
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		b.Ask(addr("2001:db8::1"))
		synctest.Wait()
		z := b.Status().Zones[0]
		if z.IPv6.State != Unsupported || z.IPv4.State != OK {
			t.Errorf("%+v", z)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.asked["2.0.0.0.0.0.f.7.f.f.f.f."+strings.Repeat("0.", 20)+"bl.example.net"] == 0 {
			t.Error("the test entry of IPv6 was not asked for")
		}
		for n := range f.asked {
			if strings.HasPrefix(n, "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0") {
				t.Errorf("%s was asked for", n)
			}
		}
	})
}

// A list that lists the senders of accepted mail is suspended, and one that lists nearly everybody.
func TestBreaker(t *testing.T) {
	everybody := func(zones ...string) func(string, uint16) ([]string, *resolve.Error) {
		return func(name string, qtype uint16) ([]string, *resolve.Error) {
			for _, z := range zones {
				if strings.HasSuffix(name, ".192."+z) {
					return []string{"127.0.0.3"}, nil
				}
			}
			return append(one(good("bl.example.net", nil)(name, qtype)), one(good("two.example.net", nil)(name, qtype))...), nil
		}
	}
	feed := func(b *bench, n int) {
		for i := range n {
			b.Ask(netip.AddrFrom4([4]byte{192, 0, byte(2 + i/200), byte(i % 200)}))
			time.Sleep(20 * time.Millisecond) // the rate
			synctest.Wait()
		}
	}
	const two = "two.example.net=127.0.0.[2..11]"
	f := &fakeDNS{answer: everybody("bl.example.net")}
	bubble(t, Options{Known: func(a netip.Addr) bool { return a.As4()[3] < 10 }}, f, []string{site, two}, func(t *testing.T, b *bench) {
		feed(b, 10)
		if z := b.Status().Zones[0]; z.IPv4.State != Suspended || !strings.Contains(z.IPv4.Reason, "from which mail was accepted") {
			t.Errorf("it lists known senders: %+v", z)
		}
		if _, ok := b.Recent(addr("192.0.2.1")); ok {
			t.Error("what it said before still counts")
		}
		if b.Rejected(addr("192.0.2.1"), 1) {
			t.Error("what it said before confirms a rejection")
		}
	})
	f = &fakeDNS{answer: everybody("bl.example.net")}
	bubble(t, Options{}, f, []string{site, two}, func(t *testing.T, b *bench) {
		feed(b, 70)
		z := b.Status().Zones
		if z[0].IPv4.State != Suspended || !strings.Contains(z[0].IPv4.Reason, "no other list agrees") || z[1].IPv4.State != OK {
			t.Errorf("it lists everybody: %+v", z)
		}
	})
	f = &fakeDNS{answer: everybody("bl.example.net", "two.example.net")}
	bubble(t, Options{}, f, []string{site, two}, func(t *testing.T, b *bench) {
		feed(b, 200)
		z := b.Status().Zones
		if z[0].IPv4.State != OK || z[1].IPv4.State != OK || z[0].Listed != 200 {
			t.Errorf("two lists agree about a botnet: %+v", z)
		}
	})
	f = &fakeDNS{answer: everybody("bl.example.net")}
	bubble(t, Options{}, f, []string{"bl.example.net=127.0.0.3*-2"}, func(t *testing.T, b *bench) {
		feed(b, 70)
		if z := b.Status().Zones[0]; z.IPv4.State != Suspended || !strings.Contains(z.IPv4.Reason, "welcomes") {
			t.Errorf("it welcomes everybody: %+v", z)
		}
	})
}

func one(s []string, _ *resolve.Error) []string { return s }

// A rejection by the MTA counts if our own query says so, at once or when the answer comes.
func TestRejected(t *testing.T) {
	f := &fakeDNS{answer: good("bl.example.net", map[string]string{"1.2.0.192": "127.0.0.2"})}
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		if b.Rejected(addr("192.0.2.1"), 2) || b.Rejected(addr("192.0.2.1"), 1) || b.Rejected(addr("192.0.2.2"), 1) {
			t.Error("confirmed before anybody was asked")
		}
		synctest.Wait()
		for _, g := range b.findings() {
			if want := map[string]int{"192.0.2.1": 3, "192.0.2.2": 1}[g.Source.String()]; g.Rejects != want || g.Listed() != (want == 3) {
				t.Errorf("%+v", g)
			}
		}
		if !b.Rejected(addr("192.0.2.1"), 1) || b.Rejected(addr("192.0.2.2"), 1) {
			t.Error("the answers are known")
		}
	})
}

// Ten thousand new sources at once: no query above the budget, no memory beyond the bounds, and Ask never waits.
func TestBurst(t *testing.T) {
	f := &fakeDNS{answer: good("bl.example.net", nil), delay: 20 * time.Millisecond}
	l, err := ParseSite(site)
	if err != nil {
		t.Fatal(err)
	}
	l.Daily, l.Rate = 500, 50
	bubble(t, Options{Lists: []List{l}, Queue: 1000, Sources: 2000}, f, nil, func(t *testing.T, b *bench) {
		before := time.Now()
		for i := range 10_000 {
			b.Ask(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
		}
		if !time.Now().Equal(before) {
			t.Error("Ask took time")
		}
		s := b.Status()
		if s.Dropped < 8000 || s.Waiting > 1000 || s.Known > 2000 {
			t.Errorf("%+v", s)
		}
		for range 20 {
			time.Sleep(time.Minute)
			for i := range 3000 {
				b.Ask(netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}))
			}
		}
		synctest.Wait()
		s = b.Status()
		// Tests are asked beyond it: six at the start, six more after a quarter of an hour.
		if n := f.queries(); n > 500+20 || s.Zones[0].Left > 0 || s.Zones[0].Skipped == 0 || s.Known > 2000 {
			t.Errorf("%d queries, %+v", n, s)
		}
		time.Sleep(24 * time.Hour)
		if b.Ask(addr("192.0.2.1")); true {
			synctest.Wait()
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if g := b.findings(); len(g[len(g)-1].Unknown) > 0 {
			t.Errorf("the next day has its own budget: %+v", g[len(g)-1])
		}
	})
	// Half of it is kept from IPv6, whose sources are free.
	f = &fakeDNS{answer: good("bl.example.net", nil)}
	l.Rate = 10_000
	bubble(t, Options{Lists: []List{l}}, f, nil, func(t *testing.T, b *bench) {
		for i := range 2000 {
			b.Ask(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(i >> 8), byte(i), 15: 1}))
		}
		synctest.Wait()
		if left := b.Status().Zones[0].Left; left < 240 {
			t.Errorf("IPv6 left %d of 500", left)
		}
	})
}

// A slow list holds up neither Ask nor the end.
func TestSlowList(t *testing.T) {
	f := &fakeDNS{answer: good("bl.example.net", nil), delay: time.Hour}
	bubble(t, Options{Workers: 2}, f, []string{site}, func(t *testing.T, b *bench) {
		for i := range 100 {
			b.Ask(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if z := b.Status().Zones[0]; z.IPv4.State != Suspended {
			t.Errorf("%+v", z)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if n := len(b.findings()); n != 100 {
			t.Errorf("%d findings", n)
		}
	})
}

// Sources whose reverse zones never answer do not keep the lists from being asked.
func TestSlowNames(t *testing.T) {
	f := &fakeDNS{answer: good("bl.example.net", map[string]string{"9.2.0.192": "127.0.0.2"}), rdns: resolve.StateTemporary}
	l, err := ParseSite(site)
	if err != nil {
		t.Fatal(err)
	}
	l.Rate = 10_000
	bubble(t, Options{Lists: []List{l}, Queue: 100_000}, f, nil, func(t *testing.T, b *bench) {
		for i := range 5000 {
			b.Ask(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}))
		}
		b.Ask(addr("192.0.2.9"))
		time.Sleep(3 * time.Second)
		synctest.Wait()
		g := b.findings()
		n := 0
		for _, x := range g {
			if x.Listed() {
				n++
			}
		}
		if z := b.Status().Zones[0]; len(g) != 5001 || n != 1 || z.IPv4.State != OK || z.Errors != 0 {
			t.Errorf("%d findings, %d listed, %+v", len(g), n, z)
		}
	})
}

// What lists say of an address, in words: the PBL counts nothing against a source, and is a listing all the same.
func TestReport(t *testing.T) {
	zen, err := NewList("zen.spamhaus.org")
	if err != nil {
		t.Fatal(err)
	}
	wl, err := NewList("list.dnswl.org")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeDNS{answer: func(name string, qtype uint16) ([]string, *resolve.Error) {
		if strings.HasSuffix(name, "list.dnswl.org") {
			return good("list.dnswl.org", map[string]string{"1.2.0.192": "127.0.9.2", "3.2.0.192": "127.0.9.0", "4.2.0.192": "127.0.200.9"})(name, qtype)
		}
		return good("zen.spamhaus.org", map[string]string{"1.2.0.192": "127.0.0.10", "2.2.0.192": "127.0.0.4"})(name, qtype)
	}}
	bubble(t, Options{Lists: []List{zen, wl}}, f, nil, func(t *testing.T, b *bench) {
		for a, want := range map[string]string{
			"192.0.2.1": "listed PBL +0 https://check.spamhaus.org/results/?query=192.0.2.1; welcome DNSWL medium -60 ",
			"192.0.2.2": "listed XBL +60 https://check.spamhaus.org/results/?query=192.0.2.2; clean  +0 ",
			"192.0.2.3": "clean  +0 ; neutral DNSWL none +0 ",
			"192.0.2.4": "clean  +0 ; neutral a code that is not in the table +0 ",
		} {
			var got []string
			for _, x := range b.Report(t.Context(), addr(a)) {
				got = append(got, fmt.Sprintf("%s %s %+g %s", x.Says, x.Words, x.Points, x.Page))
			}
			if s := strings.Join(got, "; "); s != want {
				t.Errorf("%s: %s, want %s", a, s, want)
			}
		}
		if s := b.Status(); s.Done != 0 || s.Zones[0].Listed != 0 {
			t.Errorf("a report counts: %+v", s)
		}
	})
}

// TestBudgetKept: an agent that restarts has no more queries for it; the next day has its own.
func TestBudgetKept(t *testing.T) {
	l, err := ParseSite("example.net=127.0.0.2")
	if err != nil {
		t.Fatal(err)
	}
	l.Daily = 100
	f := &fakeDNS{answer: good("example.net", nil)}
	var saved []byte
	left := func(b *bench) int { return b.Status().Zones[0].Left }
	var before int
	bubble(t, Options{Lists: []List{l}}, f, nil, func(t *testing.T, b *bench) {
		for i := range 20 {
			b.Ask(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		var ok bool
		saved, ok = b.Save()
		if _, again := b.Save(); !ok || again || strings.Contains(string(saved), "secret") {
			t.Errorf("%s", saved)
		}
		b.Ask(addr("192.0.2.200"))
		time.Sleep(time.Second)
		synctest.Wait()
		if _, ok := b.Save(); ok {
			t.Error("it is saved at each query")
		}
		b.mu.Lock()
		b.ended = true // as at the end of Run
		b.mu.Unlock()
		if saved, ok = b.Save(); !ok {
			t.Error("what came last is not saved at the end")
		}
		before = left(b)
	})
	// Bubbles begin at the same time, so this is the same day.
	bubble(t, Options{Lists: []List{l}, Saved: saved}, f, nil, func(t *testing.T, b *bench) {
		if n := left(b); before > 75 || n > before {
			t.Errorf("%d queries are left after a restart, %d before", n, before)
		}
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		b.Ask(addr("192.0.2.77"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := left(b); n < before && n < 20 {
			t.Errorf("%d queries are left on the next day", n)
		}
	})
	for _, bad := range []string{"", "{", `{"example.net":{"day":10957,"used":[-5,0]}}`, `{"example.net":{"day":1,"used":[99,0]}}`, "null"} {
		bubble(t, Options{Lists: []List{l}, Saved: []byte(bad)}, f, nil, func(t *testing.T, b *bench) {
			if n := left(b); n < 90 {
				t.Errorf("%s: %d queries are left", bad, n)
			}
		})
	}
}

// TestSetLists: a list that stays goes on without a new test, a new one is tested first, one that is gone says nothing any more.
func TestSetLists(t *testing.T) {
	site := func(s string) List {
		l, err := ParseSite(s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	a, c := site("a.example=127.0.0.2"), site("c.example=127.0.0.2")
	all := map[string]string{"1.2.0.192": "127.0.0.2"}
	f := &fakeDNS{answer: func(name string, qtype uint16) ([]string, *resolve.Error) {
		for _, z := range []string{"a.example", "c.example"} {
			if strings.HasSuffix(name, z) {
				return good(z, all)(name, qtype)
			}
		}
		return nil, nil
	}}
	bubble(t, Options{Lists: []List{a}}, f, nil, func(t *testing.T, b *bench) {
		sum := func(want float64) {
			t.Helper()
			b.Ask(addr("192.0.2.1"))
			time.Sleep(20 * time.Second)
			synctest.Wait()
			if got, ok := b.Recent(addr("192.0.2.1")); !ok || got.Sum != want {
				t.Errorf("%v, want %v: %+v", got.Sum, want, b.Status().Zones)
			}
		}
		sum(35)
		asked := b.Status().Zones[0].Asked
		b.SetLists([]List{a, c})
		if z := b.Status().Zones; len(z) != 2 || z[0].IPv4.State != OK || z[0].Asked != asked || z[1].IPv4.State != New {
			t.Errorf("%+v", z)
		}
		time.Sleep(2 * time.Hour)
		sum(70)
		c = site("c.example=127.0.0.2")
		c.Codes[0].Points = 20
		b.SetLists([]List{c})
		if _, ok := b.Recent(addr("192.0.2.1")); ok {
			t.Error("what a list said that is gone still holds")
		}
		time.Sleep(2 * time.Hour)
		sum(20)
		b.SetLists(nil)
		if len(b.Status().Zones) != 0 {
			t.Error("lists are left")
		}
	})
}

// The key of a list is nowhere to be seen.
func TestSecret(t *testing.T) {
	const key = "q7secretq7secretq7"
	for _, mode := range []string{"good", "error", "parked", "fails"} {
		l, err := NewList("zen.dq.spamhaus.net")
		if err != nil {
			t.Fatal(err)
		}
		l.key = key
		f := &fakeDNS{answer: func(name string, qtype uint16) ([]string, *resolve.Error) {
			if !strings.HasSuffix(name, key+".zen.dq.spamhaus.net") {
				return nil, &resolve.Error{Kind: resolve.Malformed}
			}
			switch mode {
			case "error":
				return []string{"127.255.255.252"}, nil
			case "parked":
				return []string{"192.0.2.1"}, nil
			case "fails":
				return nil, &resolve.Error{Kind: resolve.ServFail}
			}
			return good(key+".zen.dq.spamhaus.net", map[string]string{"1.2.0.192": "127.0.0.3"})(name, qtype)
		}}
		bubble(t, Options{Lists: []List{l}}, f, nil, func(t *testing.T, b *bench) {
			b.Ask(addr("192.0.2.1"))
			time.Sleep(10 * time.Second)
			synctest.Wait()
			text, _ := json.Marshal([]any{b.Status(), b.findings(), b.Report(t.Context(), addr("192.0.2.1"))})
			for _, s := range []string{string(text), b.logs.String(), fmt.Sprintf("%+v", b.findings())} {
				if strings.Contains(strings.ToLower(s), key) {
					t.Errorf("%s: %s", mode, s)
				}
			}
			if mode == "good" && !b.findings()[0].Listed() {
				t.Errorf("%+v", b.findings())
			}
		})
	}
}

// The memory of all sources that are remembered stays in its bounds.
func TestMemory(t *testing.T) {
	e := NewEngine(Options{Resolver: &fakeDNS{}, Queue: 1 << 20})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 300_000 {
		e.Ask(netip.AddrFrom4([4]byte{198, 18 + byte(i>>16), byte(i >> 8), byte(i)}))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if n := after.HeapAlloc - before.HeapAlloc; after.HeapAlloc > before.HeapAlloc && n > 32<<20 {
		t.Errorf("%d bytes for %d sources", n, len(e.sources.m))
	}
	if len(e.sources.m) != 32_768 {
		t.Errorf("%d sources", len(e.sources.m))
	}
}

// FuzzSpent: whatever stands in the state file as the queries of the day, a list has no more for it, and not for good less.
func FuzzSpent(f *testing.F) {
	for _, s := range []string{
		"", "{", "null", `{"bl.example.net":{"day":19675,"used":[5,6],"before":[1,2]}}`, `{"bl.example.net":{"day":19675,"used":[-5,6]}}`,
		`{"bl.example.net":{"day":19675,"used":[1073741823,1073741823],"before":[1073741823,1073741823]}}`, `{"bl.example.net":{"day":19675,"before":[1073741824]}}`, `{"x":{"day":1e300}}`,
	} {
		f.Add([]byte(s))
	}
	l, err := ParseSite(site)
	if err != nil {
		f.Fatal(err)
	}
	l.Daily = 100
	f.Fuzz(func(t *testing.T, b []byte) {
		now := time.Unix(1_700_000_000, 0) // of day 19675
		e := NewEngine(Options{Lists: []List{l}, Saved: b, Resolver: &fakeDNS{}, Now: func() time.Time { return now }})
		z := (*e.zones.Load())[0]
		for i := range z.fam {
			z.fam[i].state = OK
		}
		took := func() (all, before int) {
			for fam := range 2 {
				for range 200 {
					now = now.Add(time.Second)
					if z.spare(fam) {
						before++
					}
					if wait, ok := z.take(fam, false); ok && wait == 0 {
						all++
					}
				}
			}
			return all, before
		}
		if left := e.Status().Zones[0].Left; left < 0 || left > 100 {
			t.Fatalf("%q: %d are left", b, left)
		}
		if all, before := took(); all > 100 || before > 50 {
			t.Fatalf("%q: %d questions of 100, %d of 50", b, all, before)
		}
		now = now.Add(24 * time.Hour)
		if all, before := took(); all != 100 || before == 0 {
			t.Fatalf("%q: %d questions of the next day's 100, %d before", b, all, before)
		}
		if _, ok := e.Save(); !ok {
			t.Fatal("it cannot be saved")
		}
	})
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", `a\"b\\c`: `a"b\c`, `\027[31m\195\169`: "\x1b[31mé", `\`: `\`, `\25`: "25", `\256x`: "256x", `\\027`: `\027`, `x\0`: "x0",
	} {
		if got := unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
