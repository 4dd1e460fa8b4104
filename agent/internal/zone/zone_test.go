package zone

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/block"
)

var until = time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC)

// blocked is the table of the tests: an address, a /64 and all of a /24.
func blocked(a netip.Addr) (Listing, bool) {
	for p, c := range map[string]block.Cause{"198.18.0.7/32": block.Dictionary, "2001:db8:0:7::/64": block.AuthBrute, "198.18.9.0/24": block.Manual} {
		if p := netip.MustParsePrefix(p); p.Contains(a) {
			l := Listing{Prefix: p, Cause: c, Until: until}
			if c == block.Manual {
				l.Until = time.Time{}
			}
			return l, true
		}
	}
	return Listing{}, false
}

func serve(t *testing.T, o Options) *Server {
	t.Helper()
	o.Zone, o.Lookup, o.Log, o.Node = "BL.example.org", blocked, slog.New(slog.DiscardHandler), "mx1"
	o.Now = func() time.Time { return until }
	if !o.Listen.IsValid() {
		o.Listen = netip.MustParseAddrPort("127.0.0.1:0")
	}
	s, err := Listen(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func ask(t *testing.T, s *Server, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	c := dns.Client{Net: network, Timeout: 10 * time.Second}
	r, _, err := c.Exchange(m, s.Addr().String())
	if err != nil {
		t.Fatalf("%s %s: %v", network, name, err)
	}
	return r
}

// nibbles writes the name of an IPv6 address.
func nibbles(a string) string {
	b := netip.MustParseAddr(a).As16()
	var n []string
	for i := 31; i >= 0; i-- {
		n = append(n, fmt.Sprintf("%x", b[i/2]>>(4*(1-i%2))&15))
	}
	return strings.Join(n, ".")
}

func TestAnswers(t *testing.T) {
	s := serve(t, Options{})
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // the data of the one answer; "": none
	}{
		{"7.0.18.198.", dns.TypeA, 0, "127.0.0.3"},
		{"7.0.18.198.", dns.TypeTXT, 0, `"198.18.0.7/32 blocked by mx1: dictionary, until 2026-11-23T18:00:00Z"`},
		{"7.0.18.198.", dns.TypeAAAA, 0, ""},
		{"200.9.18.198.", dns.TypeA, 0, "127.0.0.12"},
		{"200.9.18.198.", dns.TypeTXT, 0, `"198.18.9.0/24 blocked by mx1: manual, until somebody unblocks it"`},
		{"8.0.18.198.", dns.TypeA, dns.RcodeNameError, ""},
		{nibbles("2001:db8:0:7::25") + ".", dns.TypeA, 0, "127.0.0.6"},
		{strings.ToUpper(nibbles("2001:db8:0:7::25")) + ".", dns.TypeA, 0, "127.0.0.6"},
		{nibbles("2001:db8:0:8::25") + ".", dns.TypeA, dns.RcodeNameError, ""},
		{nibbles("::ffff:198.18.0.7") + ".", dns.TypeA, 0, "127.0.0.3"},
		// RFC 5782 section 5
		{"2.0.0.127.", dns.TypeA, 0, "127.0.0.2"},
		{"1.0.0.127.", dns.TypeA, dns.RcodeNameError, ""},
		{nibbles("::ffff:127.0.0.2") + ".", dns.TypeA, 0, "127.0.0.2"},
		{nibbles("::ffff:127.0.0.1") + ".", dns.TypeA, dns.RcodeNameError, ""},
		{"", dns.TypeA, 0, ""},
		{"", dns.TypeNS, 0, "ns.bl.example.org."},
		{"ns.", dns.TypeA, 0, "127.0.0.1"},
		{"ns.", dns.TypeAAAA, 0, ""},
		// Names on the way to longer ones exist (RFC 8020, RFC 9156); 1.0.0.2 is also the front of 2001::/16.
		{"198.", dns.TypeA, 0, ""},
		{"0.18.198.", dns.TypeA, 0, ""},
		{"1.0.0.2.", dns.TypeA, 0, ""},
		{"8.b.d.0.1.0.0.2.", dns.TypeA, 0, ""},
		// No names of ours.
		{"7.0.18.256.", dns.TypeA, dns.RcodeNameError, ""},
		{"07.0.18.198.", dns.TypeA, dns.RcodeNameError, ""},
		{"1.7.0.18.198.", dns.TypeA, dns.RcodeNameError, ""},
		{"www.", dns.TypeA, dns.RcodeNameError, ""},
		{"0." + nibbles("2001:db8:0:7::25") + ".", dns.TypeA, dns.RcodeNameError, ""},
		{"x.7.0.18.198.", dns.TypeA, dns.RcodeNameError, ""},
		{"", dns.TypeAXFR, dns.RcodeRefused, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			r := ask(t, s, network, c.name+"bl.Example.ORG.", c.qtype)
			got := ""
			for _, rr := range r.Answer {
				got += strings.TrimPrefix(rr.String(), rr.Header().String())
			}
			if r.Rcode != c.rcode || got != c.want {
				t.Errorf("%s %s %s: %s %q, want %s %q", network, c.name, dns.TypeToString[c.qtype], dns.RcodeToString[r.Rcode], got, dns.RcodeToString[c.rcode], c.want)
			}
			if r.Rcode == dns.RcodeRefused {
				continue
			}
			if !r.Authoritative {
				t.Errorf("%s: not authoritative", c.name)
			}
			if len(r.Answer) > 0 && time.Duration(r.Answer[0].Header().Ttl)*time.Second != TTL {
				t.Errorf("%s: TTL %d", c.name, r.Answer[0].Header().Ttl)
			}
			if len(r.Answer) == 0 {
				soa, ok := r.Ns[0].(*dns.SOA)
				if !ok || soa.Hdr.Name != "bl.example.org." || time.Duration(min(soa.Hdr.Ttl, soa.Minttl))*time.Second != TTL {
					t.Errorf("%s: how long the no holds is not told: %v", c.name, r.Ns)
				}
			}
		}
	}
	if st := s.Stats(); st.Listed == 0 || st.Queries < st.Listed || st.Refused != 2 {
		t.Errorf("stats %+v", st)
	}
}

// TestEveryCause keeps the codes apart and inside 127.0.0/24, and away from the test entry.
func TestEveryCause(t *testing.T) {
	seen := map[netip.Addr]block.Cause{testCode: block.NoCause}
	for c := block.Dictionary; c <= block.Manual; c++ {
		a := Code(c)
		if was, dup := seen[a]; dup {
			t.Errorf("%s and %s are both %s", c, was, a)
		}
		seen[a] = c
	}
	if Code(block.Dictionary).String() != "127.0.0.3" || Code(block.Manual).String() != "127.0.0.12" {
		t.Error("codes are an interface: they stand in people's Postfix configs")
	}
}

func TestStrangersAreRefused(t *testing.T) {
	s := serve(t, Options{Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}})
	if r := ask(t, s, "udp", "7.0.18.198.bl.example.org.", dns.TypeA); r.Rcode != dns.RcodeRefused || len(r.Answer) > 0 {
		t.Errorf("a stranger got %v", r)
	}
	c := dns.Client{Dialer: &net.Dialer{LocalAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 9)}}}
	r, _, err := c.Exchange(new(dns.Msg).SetQuestion("7.0.18.198.bl.example.org.", dns.TypeA), s.Addr().String())
	if err != nil || len(r.Answer) != 1 {
		t.Errorf("a client got %v, %v", r, err)
	}
	// Somebody else's zone, and one whose name merely ends alike.
	for _, name := range []string{"example.org.", "7.0.18.198.xbl.example.org.", "."} {
		if r := s.answer(netip.MustParseAddr("127.0.0.9"), new(dns.Msg).SetQuestion(name, dns.TypeA)); r.Rcode != dns.RcodeRefused {
			t.Errorf("%s: %s", name, dns.RcodeToString[r.Rcode])
		}
	}
}

// TestRubbish throws damaged questions at the sockets, and half of some over TCP: the server goes on answering right ones.
func TestRubbish(t *testing.T) {
	s := serve(t, Options{})
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	good, err := new(dns.Msg).SetQuestion("7.0.18.198.bl.example.org.", dns.TypeA).SetEdns0(1232, true).Pack()
	if err != nil {
		t.Fatal(err)
	}
	damaged := func() []byte {
		b := slices.Clone(good)
		for range 1 + r.IntN(8) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		switch r.IntN(4) {
		case 0:
			b = b[:r.IntN(len(b))]
		case 1:
			b = append(b, make([]byte, r.IntN(1400))...)
		}
		return b
	}
	udp, err := net.Dial("udp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for i := range 5000 {
		if _, err := udp.Write(damaged()); err != nil {
			t.Fatal(err)
		}
		if i%50 != 0 {
			continue
		}
		tcp, err := net.Dial("tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b := damaged()
		_, _ = tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b)+r.IntN(3)-1)), b...)) // it may hang up first
		tcp.Close()
		for _, network := range []string{"udp", "tcp"} {
			var a *dns.Msg
			for range 30 { // a datagram may be lost where so many come
				c := dns.Client{Net: network, Timeout: 2 * time.Second}
				if a, _, err = c.Exchange(new(dns.Msg).SetQuestion("7.0.18.198.bl.example.org.", dns.TypeA), s.Addr().String()); err == nil {
					break
				}
			}
			if err != nil || len(a.Answer) != 1 {
				t.Fatalf("after %d: %v, %v", i, a, err)
			}
		}
	}
}

func TestPortTaken(t *testing.T) {
	s := serve(t, Options{})
	_, err := Listen(Options{Zone: "bl.example.org", Listen: s.Addr()})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("second server: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, ok := range map[string]bool{
		"bl.example.org": true, "bl.example.org.": true, "": false, "org": false, "bl..example.org": false,
		`bl\032.example.org`: false, "bl.exämple.org": false, strings.Repeat("a.", 95) + "org": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// FuzzAnswer gives the handler what the library would: any message with any question.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"7.0.18.198.bl.example.org.", nibbles("2001:db8:0:7::25") + ".bl.example.org.", ".", "bl.example.org."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeANY)
		m.SetEdns0(4096, true)
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	s := &Server{o: Options{Lookup: blocked, Node: "mx1", Now: func() time.Time { return until }, Clients: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, zone: "bl.example.org.", ns: "ns.bl.example.org."}
	f.Fuzz(func(t *testing.T, b []byte) {
		var q dns.Msg
		if q.Unpack(b) != nil {
			return
		}
		m := s.answer(netip.MustParseAddr("127.0.0.1"), &q)
		if m.Id != q.Id || !m.Response {
			t.Fatalf("no reply to %v: %v", &q, m)
		}
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("a reply that cannot be sent: %v", err)
		}
		if len(q.Question) == 1 && len(out) > 800 {
			t.Fatalf("%d bytes in answer to %d", len(out), len(b))
		}
		// Listed is only what the table lists: the address in the name must be blocked or the test entry's.
		for _, rr := range m.Answer {
			a, ok := rr.(*dns.A)
			if !ok || strings.HasPrefix(strings.ToLower(a.Hdr.Name), "ns.") {
				continue
			}
			below := strings.TrimSuffix(strings.ToLower(a.Hdr.Name), ".bl.example.org.")
			addr, _ := parse(below)
			if _, listed := blocked(addr.Unmap()); !listed && addr.Unmap() != testCode {
				t.Fatalf("%s is listed", a.Hdr.Name)
			}
		}
	})
}
