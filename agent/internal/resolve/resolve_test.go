package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// fake is a DNS server of ours that does what a test says, over UDP and TCP on one port.
type fake struct {
	addr netip.AddrPort
	udp  atomic.Int64
	tcp  atomic.Int64
}

// serve starts a fake. h gets the raw question, and sends what it likes.
func serve(t testing.TB, h func(w dns.ResponseWriter, m *dns.Msg)) *fake {
	t.Helper()
	f := &fake{}
	var pc net.PacketConn
	var l net.Listener
	var err error
	for range 20 { // until a port is free for both
		if pc, err = net.ListenPacket("udp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if l, err = net.Listen("tcp", pc.LocalAddr().String()); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	f.addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	mux := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		if w.LocalAddr().Network() == "tcp" {
			f.tcp.Add(1)
		} else {
			f.udp.Add(1)
		}
		h(w, m)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: mux}, {Listener: l, Handler: mux}} {
		up := make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		done := make(chan struct{})
		go func() { _ = s.ActivateAndServe(); close(done) }()
		<-up
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
	return f
}

func rr(t testing.TB, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// zone answers from a list of records and NXDOMAIN otherwise.
func zone(t testing.TB, text ...string) func(dns.ResponseWriter, *dns.Msg) {
	var all []dns.RR
	for _, s := range text {
		all = append(all, rr(t, s))
	}
	return func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name, known := strings.ToLower(q.Question[0].Name), false
		for _, r := range all {
			if strings.ToLower(r.Header().Name) == name {
				known = true
				if r.Header().Rrtype == q.Question[0].Qtype {
					m.Answer = append(m.Answer, r)
				}
			}
		}
		if !known {
			m.Rcode = dns.RcodeNameError
		}
		if len(m.Answer) == 0 {
			m.Ns = []dns.RR{rr(t, "test. 900 IN SOA ns.test. root.test. 1 2 3 4 300")}
		}
		_ = w.WriteMsg(m)
	}
}

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }

func (c *clock) add(d time.Duration) { c.mu.Lock(); c.t = c.t.Add(d); c.mu.Unlock() }

func newClock() *clock { return &clock{t: time.Unix(1_800_000_000, 0)} }

func resolver(t testing.TB, o Options, servers ...*fake) *Resolver {
	t.Helper()
	for _, f := range servers {
		o.Servers = append(o.Servers, f.addr)
	}
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Second // nobody waits for it where an answer comes
	}
	if o.Total == 0 {
		o.Total = 30 * time.Second
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func kind(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return 0
}

func TestAnswers(t *testing.T) {
	r := resolver(t, Options{}, serve(t, zone(t,
		"a.test. 300 IN A 127.0.0.2", "a.test. 200 IN A 127.0.0.4", "short.test. 1 IN A 127.0.0.2", "long.test. 999999 IN A 127.0.0.2", "t.test. 300 IN TXT \"x\"")))
	ctx := t.Context()
	for _, c := range []struct {
		name     string
		n        int
		nx, none bool
		ttl      time.Duration
	}{
		{"a.test", 2, false, false, 200 * time.Second},
		{"A.TEST.", 2, false, false, 200 * time.Second},
		{"short.test", 1, false, false, time.Minute},
		{"long.test", 1, false, false, time.Hour},
		{"t.test", 0, false, true, 300 * time.Second},
		{"nothing.test", 0, true, false, 300 * time.Second},
		{"nothing.else", 0, true, false, time.Minute}, // the SOA is of another zone
	} {
		a, err := r.Fresh(ctx, c.name, dns.TypeA)
		if err != nil || len(a.Records) != c.n || a.NXDomain != c.nx || a.NoData != c.none || a.TTL != c.ttl {
			t.Errorf("%s: %+v, %v, want %+v", c.name, a, err, c)
		}
	}
	for _, name := range []string{"", ".", strings.Repeat("a", 64) + ".test", strings.Repeat("a.", 130) + "test", "a..b"} {
		if _, err := r.Lookup(ctx, name, dns.TypeA); kind(err) != BadName || Temporary(err) {
			t.Errorf("%q: %v, want BadName", name, err)
		}
	}
}

// What a server may do wrong, and what is made of it. None of it is an answer.
func TestErrors(t *testing.T) {
	reply := func(f func(w dns.ResponseWriter, m *dns.Msg)) func(dns.ResponseWriter, *dns.Msg) {
		return func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 300 IN A 127.0.0.2")}
			f(w, m)
		}
	}
	send := func(w dns.ResponseWriter, m *dns.Msg) { _ = w.WriteMsg(m) }
	rcode := func(n int) func(dns.ResponseWriter, *dns.Msg) {
		return reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Rcode = n; send(w, m) })
	}
	for _, c := range []struct {
		name  string
		h     func(dns.ResponseWriter, *dns.Msg)
		want  Kind
		waits bool // the test has to wait for the timeout
	}{
		{"silence", func(dns.ResponseWriter, *dns.Msg) {}, Timeout, true},
		{"SERVFAIL", rcode(dns.RcodeServerFailure), ServFail, false},
		{"REFUSED", rcode(dns.RcodeRefused), Refused, false},
		{"NOTIMP", rcode(dns.RcodeNotImplemented), Rcode, false},
		{"another id", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Id++; send(w, m) }), Mismatch, true},
		{"another name", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Question[0].Name = "other.test."; send(w, m) }), Mismatch, true},
		{"another type", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT; send(w, m) }), Mismatch, true},
		{"another class", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS; send(w, m) }), Mismatch, true},
		{"no question", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Question = nil; send(w, m) }), Mismatch, true},
		{"a question", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Response = false; send(w, m) }), Mismatch, true},
		{"an update", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Opcode = dns.OpcodeUpdate; send(w, m) }), Mismatch, true},
		{"rubbish", func(w dns.ResponseWriter, m *dns.Msg) { _, _ = w.Write([]byte("rubbish")) }, Malformed, true},
		{"half a record", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			b, _ := m.Pack()
			_, _ = w.Write(b[:len(b)-3])
		}), Malformed, true},
		{"cut, and nothing over TCP", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			if w.LocalAddr().Network() == "tcp" {
				w.Close()
				return
			}
			m.Truncated, m.Answer = true, nil
			send(w, m)
		}), Truncated, false},
		{"cut over TCP too", reply(func(w dns.ResponseWriter, m *dns.Msg) { m.Truncated, m.Answer = true, nil; send(w, m) }), Truncated, false},
		{"another id over TCP", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			if w.LocalAddr().Network() == "tcp" {
				m.Id++
			} else {
				m.Truncated = true
			}
			send(w, m)
		}), Truncated, false},
		{"a thousand records over TCP", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			m.Truncated, m.Compress = true, true
			if w.LocalAddr().Network() == "tcp" {
				m.Truncated = false
				for i := range 900 {
					m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 300 IN A 127.0.%d.%d", m.Question[0].Name, i/250, i%250)))
				}
			}
			send(w, m)
		}), Huge, false},
		{"64 KiB over TCP", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			m.Truncated = w.LocalAddr().Network() == "udp"
			if !m.Truncated {
				for range 200 {
					m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 300 IN TXT %q", m.Question[0].Name, strings.Repeat("x", 250))))
				}
			}
			send(w, m)
		}), Huge, false},
		{"CNAMEs in a circle", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			n := m.Question[0].Name
			m.Answer = []dns.RR{rr(t, n+" 300 IN CNAME b.test."), rr(t, "b.test. 300 IN CNAME "+n)}
			send(w, m)
		}), Chain, false},
		{"nine CNAMEs", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			m.Answer = chain(t, m.Question[0].Name, 9)
			send(w, m)
		}), Chain, false},
		{"a referral", reply(func(w dns.ResponseWriter, m *dns.Msg) {
			m.Answer, m.Ns = nil, []dns.RR{rr(t, "test. 300 IN NS ns.test.")}
			send(w, m)
		}), Lame, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			o := Options{}
			if c.waits {
				o.Timeout, o.Total = 300*time.Millisecond, time.Minute
			}
			a, err := resolver(t, o, serve(t, c.h)).Lookup(t.Context(), "2.0.0.127.test", dns.TypeA)
			if kind(err) != c.want || !Temporary(err) {
				t.Fatalf("got %+v, %v; want %s", a, err, c.want)
			}
			if e := (*Error)(nil); errors.As(err, &e) && strings.Contains(e.Words(), "127.test") {
				t.Errorf("Words has the name: %s", e.Words())
			}
		})
	}
}

func chain(t testing.TB, name string, n int) (list []dns.RR) {
	for i := range n {
		next := fmt.Sprintf("c%d.test.", i)
		list = append(list, rr(t, name+" 300 IN CNAME "+next))
		name = next
	}
	return append(list, rr(t, name+" 120 IN A 127.0.0.2"), rr(t, "other.test. 300 IN A 127.0.0.9"))
}

// Eight CNAMEs are followed, and records of names beside the chain are not taken.
func TestChain(t *testing.T) {
	r := resolver(t, Options{MixCase: true}, serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Answer = chain(t, q.Question[0].Name, 8)
		_ = w.WriteMsg(m)
	}))
	a, err := r.Lookup(t.Context(), "deep.test", dns.TypeA)
	if err != nil || len(a.Records) != 1 || a.Records[0].(*dns.A).A.String() != "127.0.0.2" || a.TTL != 2*time.Minute {
		t.Fatalf("got %+v, %v", a, err)
	}
}

// Whoever guesses can send any number of wrong answers; the right one still counts.
func TestForgedBeforeRight(t *testing.T) {
	r := resolver(t, Options{}, serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		for i := range 20 {
			m := new(dns.Msg).SetReply(q)
			m.Id += uint16(i + 1)
			m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 300 IN A 127.0.0.66")}
			_ = w.WriteMsg(m)
		}
		_, _ = w.Write([]byte{1, 2, 3})
		zone(t, "a.test. 300 IN A 127.0.0.2")(w, q)
	}))
	a, err := r.Lookup(t.Context(), "a.test", dns.TypeA)
	if err != nil || len(a.Records) != 1 || a.Records[0].(*dns.A).A.String() != "127.0.0.2" {
		t.Fatalf("got %+v, %v", a, err)
	}
}

// With 0x20 an answer whose question has another case is not ours.
func TestMixCase(t *testing.T) {
	lower := func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Question[0].Name = strings.ToLower(m.Question[0].Name)
		m.Answer = []dns.RR{rr(t, m.Question[0].Name+" 300 IN A 127.0.0.2")}
		_ = w.WriteMsg(m)
	}
	const name = "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz.test" // 56 coins
	r := resolver(t, Options{MixCase: true, Timeout: 300 * time.Millisecond}, serve(t, lower))
	if _, err := r.Lookup(t.Context(), name, dns.TypeA); kind(err) != Mismatch {
		t.Errorf("with 0x20: %v", err)
	}
	r = resolver(t, Options{}, serve(t, lower))
	if _, err := r.Lookup(t.Context(), name, dns.TypeA); err != nil {
		t.Errorf("without: %v", err)
	}
}

func TestNoEDNS(t *testing.T) {
	good := zone(t, "a.test. 300 IN A 127.0.0.2")
	for _, question := range []bool{true, false} {
		f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
			if q.IsEdns0() != nil {
				m := new(dns.Msg).SetRcode(q, dns.RcodeFormatError)
				if !question {
					m.Question = nil
				}
				_ = w.WriteMsg(m)
				return
			}
			good(w, q)
		})
		if a, err := resolver(t, Options{}, f).Lookup(t.Context(), "a.test", dns.TypeA); err != nil || len(a.Records) != 1 {
			t.Errorf("question sent back: %t: %+v, %v", question, a, err)
		}
	}
}

func TestTCP(t *testing.T) {
	f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		for i := range 200 {
			m.Answer = append(m.Answer, rr(t, fmt.Sprintf("%s 300 IN A 127.0.0.%d", q.Question[0].Name, i)))
		}
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(int(q.IsEdns0().UDPSize()))
		}
		_ = w.WriteMsg(m)
	})
	a, err := resolver(t, Options{}, f).Lookup(t.Context(), "big.test", dns.TypeA)
	if err != nil || len(a.Records) != 200 || f.udp.Load() != 1 || f.tcp.Load() != 1 {
		t.Fatalf("%d records, %v, %d over UDP, %d over TCP", len(a.Records), err, f.udp.Load(), f.tcp.Load())
	}
}

// A dead first server costs one timeout, then it is asked last until its time is over.
func TestFailover(t *testing.T) {
	c := newClock()
	var alive atomic.Bool
	good := zone(t, "a.test. 300 IN A 127.0.0.2")
	first := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if alive.Load() {
			good(w, q)
		}
	})
	second := serve(t, good)
	r := resolver(t, Options{Now: c.now, Timeout: 200 * time.Millisecond}, first, second)
	ask := func() {
		t.Helper()
		if _, err := r.Fresh(t.Context(), "a.test", dns.TypeA); err != nil {
			t.Fatal(err)
		}
	}
	ask()
	if first.udp.Load() != 1 || second.udp.Load() != 1 {
		t.Fatalf("%d and %d queries", first.udp.Load(), second.udp.Load())
	}
	for range 5 {
		ask()
	}
	if first.udp.Load() != 1 || !r.Status().Servers[0].Down {
		t.Fatalf("the dead one was asked %d times: %+v", first.udp.Load(), r.Status())
	}
	alive.Store(true)
	c.add(2 * time.Minute)
	ask()
	if first.udp.Load() != 2 || r.Status().Servers[0].Down {
		t.Fatalf("the first one lives again, and was asked %d times", first.udp.Load())
	}
	// SERVFAIL of one: the other one is asked; the first stays the first.
	servfail := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	r = resolver(t, Options{Now: c.now}, servfail, second)
	ask()
	ask()
	if servfail.udp.Load() != 2 {
		t.Errorf("%d queries to the first one", servfail.udp.Load())
	}
}

func TestSingleFlight(t *testing.T) {
	hold := make(chan struct{})
	good := zone(t, "a.test. 300 IN A 127.0.0.2")
	f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) { <-hold; good(w, q) })
	r := resolver(t, Options{}, f)
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := r.Lookup(t.Context(), "a.test", dns.TypeA); err != nil {
				t.Error(err)
			}
		})
	}
	// A caller who gives up does not take the others' answer away.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Lookup(ctx, "a.test", dns.TypeA); kind(err) != Stopped {
		t.Error(err)
	}
	close(hold)
	all.Wait()
	if n := f.udp.Load(); n != 1 {
		t.Errorf("%d queries", n)
	}
}

func TestConcurrency(t *testing.T) {
	var now, most atomic.Int64
	hold := make(chan struct{})
	var full sync.Once
	f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		n := now.Add(1)
		for {
			m := most.Load()
			if n <= m || most.CompareAndSwap(m, n) {
				break
			}
		}
		if n == 4 {
			full.Do(func() { close(hold) }) // all slots are taken
		}
		<-hold
		now.Add(-1)
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})
	r := resolver(t, Options{Concurrency: 4}, f)
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() { _, _ = r.Lookup(t.Context(), fmt.Sprintf("n%d.test", i), dns.TypeA) })
	}
	all.Wait()
	if n := most.Load(); n > 4 {
		t.Errorf("%d at once", n)
	}
}

// Who finds no place is told so: the server is not to blame.
func TestBusy(t *testing.T) {
	asked, hold := make(chan struct{}, 1), make(chan struct{})
	f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		asked <- struct{}{}
		<-hold
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})
	r := resolver(t, Options{Concurrency: 1}, f)
	var all sync.WaitGroup
	all.Go(func() { _, _ = r.Lookup(t.Context(), "a.test", dns.TypeA) })
	<-asked
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := r.Lookup(ctx, "b.test", dns.TypeA); !errors.Is(err, ErrBusy) || kind(err) != Stopped {
		t.Error(err)
	}
	close(hold)
	all.Wait()
}

func TestCache(t *testing.T) {
	c := newClock()
	f := serve(t, zone(t, "a.test. 300 IN A 127.0.0.2"))
	r := resolver(t, Options{Now: c.now}, f)
	ask := func(name string, want int64) Answer {
		t.Helper()
		a, err := r.Lookup(t.Context(), name, dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if n := f.udp.Load(); n != want {
			t.Fatalf("%d queries, want %d", n, want)
		}
		return a
	}
	ask("a.test", 1)
	c.add(100 * time.Second)
	if a := ask("a.test", 1); !a.Cached || a.TTL != 200*time.Second {
		t.Fatalf("%+v", a)
	}
	c.add(200 * time.Second)
	ask("a.test", 2)
	ask("no.test", 3)
	c.add(299 * time.Second)
	ask("no.test", 3)
	c.add(time.Second)
	ask("no.test", 4)
	c.add(-time.Hour) // the clock was set back: an old answer must not live longer for it
	ask("no.test", 5)

	// Failures are kept for seconds.
	g := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
	})
	r = resolver(t, Options{Now: c.now}, g)
	for range 3 {
		if _, err := r.Lookup(t.Context(), "a.test", dns.TypeA); kind(err) != ServFail {
			t.Fatal(err)
		}
	}
	c.add(failureTTL)
	_, _ = r.Lookup(t.Context(), "a.test", dns.TypeA)
	if n := g.udp.Load(); n != 2 {
		t.Errorf("%d queries of a failing name", n)
	}
}

// However many names are asked, the cache stays in its bounds.
func TestCacheBound(t *testing.T) {
	const most = 100_000
	r := resolver(t, Options{CacheBytes: most}, serve(t, zone(t)))
	for i := range 1000 {
		if _, err := r.Lookup(t.Context(), fmt.Sprintf("n%d.test", i), dns.TypeA); err != nil {
			t.Fatal(err)
		}
	}
	s := r.Status()
	if s.CacheBytes > most || s.Cached < 100 || s.Cached > most/entryBytes {
		t.Errorf("%d names, %d bytes", s.Cached, s.CacheBytes)
	}
}

func TestResolvConf(t *testing.T) {
	c := newClock()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	r, err := New(Options{ResolvConf: path, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := func(list ...string) {
		t.Helper()
		c.add(confEvery)
		if got := fmt.Sprint(r.Servers()); got != fmt.Sprint(list) {
			t.Errorf("%s, want %s", got, list)
		}
	}
	write := func(s string) {
		t.Helper()
		// As network managers do it: a new file in its place.
		if err := os.WriteFile(path+".new", []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path+".new", time.Time{}, c.now()); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	want("127.0.0.1:53")
	write("nameserver 192.0.2.1\nnameserver 2001:db8::1\nsearch example.org\n")
	want("192.0.2.1:53", "[2001:db8::1]:53")
	write("# nothing\n")
	want("127.0.0.1:53")
	write("nameserver 192.0.2.2\nnameserver fe80::1%lo\nnameserver no\n")
	want("192.0.2.2:53", "[fe80::1%lo]:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want("192.0.2.2:53", "[fe80::1%lo]:53") // gone for a moment: what was known stays
	for _, bad := range []string{"0.0.0.0:53", "[::]:53", "192.0.2.1:0"} {
		if _, err := New(Options{Servers: []netip.AddrPort{netip.MustParseAddrPort(bad)}}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

func TestClose(t *testing.T) {
	asked := make(chan struct{}, 10)
	f := serve(t, func(dns.ResponseWriter, *dns.Msg) { asked <- struct{}{} })
	r := resolver(t, Options{}, f)
	failed := make(chan error)
	go func() { _, err := r.Lookup(context.Background(), "a.test", dns.TypeA); failed <- err }()
	<-asked
	r.Close()
	if err := <-failed; kind(err) != Stopped {
		t.Error(err)
	}
	if _, err := r.Lookup(t.Context(), "b.test", dns.TypeA); kind(err) != Stopped {
		t.Error(err)
	}
}

func TestFCrDNS(t *testing.T) {
	many := []string{"7.2.0.192.in-addr.arpa. 300 IN PTR mail.Good.test.", "mail.good.test. 300 IN A 192.0.2.7", "mail.good.test. 300 IN A 192.0.2.8",
		"8.2.0.192.in-addr.arpa. 300 IN PTR google.test.", "google.test. 300 IN A 192.0.2.1",
		"9.2.0.192.in-addr.arpa. 300 IN PTR no.test.", "9.2.0.192.in-addr.arpa. 300 IN PTR mail9.test.", "mail9.test. 60 IN A 192.0.2.9",
		"5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa. 300 IN PTR six.test.", "six.test. 300 IN AAAA 2001:db8::5", "six.test. 300 IN A 192.0.2.5",
		"11.2.0.192.in-addr.arpa. 300 IN PTR fail.test.", "13.2.0.192.in-addr.arpa. 300 IN PTR mapped.test.", "mapped.test. 300 IN AAAA ::ffff:192.0.2.13"}
	for i := range 20 {
		many = append(many, fmt.Sprintf("12.2.0.192.in-addr.arpa. 300 IN PTR n%d.test.", i))
	}
	z := zone(t, many...)
	f := serve(t, func(w dns.ResponseWriter, q *dns.Msg) {
		if n := q.Question[0].Name; n == "fail.test." || strings.HasPrefix(n, "14.") {
			_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
			return
		}
		z(w, q)
	})
	r := resolver(t, Options{}, f)
	for _, c := range []struct {
		addr  string
		state State
		names string
	}{
		{"192.0.2.7", StateVerified, "[mail.good.test]"},
		{"::ffff:192.0.2.7", StateVerified, "[mail.good.test]"},
		{"192.0.2.8", StateMismatch, "[]"}, // claims to be Google
		{"192.0.2.9", StateVerified, "[mail9.test]"},
		{"192.0.2.10", StateNone, "[]"},
		{"192.0.2.11", StateTemporary, "[]"},
		{"192.0.2.12", StateTemporary, "[]"},
		{"192.0.2.13", StateMismatch, "[]"},
		{"192.0.2.14", StateTemporary, "[]"},
		{"2001:db8::5", StateVerified, "[six.test]"},
		{"2001:db8::6", StateNone, "[]"},
	} {
		n := r.FCrDNS(t.Context(), netip.MustParseAddr(c.addr))
		if n.State != c.state || fmt.Sprint(n.Verified) != c.names || n.TTL <= 0 || (n.State == StateTemporary) != (n.Err != nil) {
			t.Errorf("%s: %+v, want %s %s", c.addr, n, c.state, c.names)
		}
	}
	if n := f.udp.Load(); n > 40 {
		t.Errorf("%d queries: an address with 20 names must cost at most 9", n)
	}
}
