//go:build linux

package dnslist_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/scripts/lab"
)

// What our own server does, by zone; the first label of an address's name is its last octet.
var misdeeds = map[string]func(w dns.ResponseWriter, q *dns.Msg, listed bool){
	"wild.test.":    func(w dns.ResponseWriter, q *dns.Msg, _ bool) { answer(w, q, "127.0.0.2") },
	"open.test.":    func(w dns.ResponseWriter, q *dns.Msg, _ bool) { answer(w, q, "127.255.255.254") },
	"over.test.":    func(w dns.ResponseWriter, q *dns.Msg, _ bool) { answer(w, q, "127.0.0.255") },
	"parked.test.":  func(w dns.ResponseWriter, q *dns.Msg, _ bool) { answer(w, q, "91.195.240.87") },
	"empty.test.":   func(w dns.ResponseWriter, q *dns.Msg, _ bool) { answer(w, q) },
	"fail.test.":    func(w dns.ResponseWriter, q *dns.Msg, _ bool) { rcode(w, q, dns.RcodeServerFailure) },
	"refuse.test.":  func(w dns.ResponseWriter, q *dns.Msg, _ bool) { rcode(w, q, dns.RcodeRefused) },
	"silent.test.":  func(dns.ResponseWriter, *dns.Msg, bool) {},
	"rubbish.test.": func(w dns.ResponseWriter, q *dns.Msg, _ bool) { _, _ = w.Write([]byte("rubbish, rubbish, rubbish")) },
	"id.test.": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		q.Id++
		answer(w, q, "127.0.0.2")
	},
	"name.test.": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		q.Question[0].Name = "other." + q.Question[0].Name
		answer(w, q, "127.0.0.2")
	},
	"circle.test.": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		m := new(dns.Msg).SetReply(q)
		for _, s := range []string{"%s 60 IN CNAME a.circle.test.", "a.circle.test. 60 IN CNAME %s"} {
			rr, _ := dns.NewRR(fmt.Sprintf(s, q.Question[0].Name))
			m.Answer = append(m.Answer, rr)
		}
		_ = w.WriteMsg(m)
	},
	// A huge answer: over UDP it is cut.
	"huge.test.": func(w dns.ResponseWriter, q *dns.Msg, _ bool) {
		m := new(dns.Msg).SetReply(q)
		if m.Compress = true; w.LocalAddr().Network() == "udp" {
			m.Truncated = true
		} else {
			for i := range 1500 {
				rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 127.0.%d.%d", q.Question[0].Name, i/250, i%250))
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	},
	// Right lists in unusual clothes.
	"tcp.test.": func(w dns.ResponseWriter, q *dns.Msg, listed bool) {
		if w.LocalAddr().Network() == "udp" {
			m := new(dns.Msg).SetReply(q)
			m.Truncated = true
			_ = w.WriteMsg(m)
			return
		}
		keep(w, q, listed)
	},
	// A resolver asks for each name of the chain itself.
	"cname.test.": func(w dns.ResponseWriter, q *dns.Msg, listed bool) {
		if !listed {
			answer(w, q)
			return
		}
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		for !strings.HasPrefix(name, "c.c.c.") {
			rr, _ := dns.NewRR(name + " 60 IN CNAME c." + name)
			m.Answer, name = append(m.Answer, rr), "c."+name
		}
		rr, _ := dns.NewRR(name + " 60 IN A 127.0.0.2")
		m.Answer = append(m.Answer, rr)
		_ = w.WriteMsg(m)
	},
	"plain.test.": keep,
}

func keep(w dns.ResponseWriter, q *dns.Msg, listed bool) {
	if listed {
		answer(w, q, "127.0.0.2")
		return
	}
	answer(w, q)
}

func rcode(w dns.ResponseWriter, q *dns.Msg, n int) { _ = w.WriteMsg(new(dns.Msg).SetRcode(q, n)) }

func answer(w dns.ResponseWriter, q *dns.Msg, codes ...string) {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	for _, c := range codes {
		rr, _ := dns.NewRR(q.Question[0].Name + " 300 IN A " + c)
		m.Answer = append(m.Answer, rr)
	}
	if len(codes) == 0 {
		m.Rcode = dns.RcodeNameError
		soa, _ := dns.NewRR("test. 60 IN SOA ns.test. root.test. 1 2 3 4 60")
		m.Ns = []dns.RR{soa}
	}
	_ = w.WriteMsg(m)
}

// misbehave serves the misdeeds, and the reverse names of the sources, in a host's namespace.
func misbehave(t *testing.T, host *lab.Host, at string) {
	t.Helper()
	pc, err := host.ListenPacket(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	l, err := host.Listen(t.Context(), at)
	if err != nil {
		t.Fatal(err)
	}
	// Whoever answers from another port is not who was asked.
	stranger, err := host.ListenPacket(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stranger.Close() })
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		name := strings.ToLower(q.Question[0].Name)
		if rest, _, ok := strings.Cut(name, ".127.later."); ok { // a list that is right whenever it is tested
			keep(w, q, rest == "2.0.0")
			return
		}
		if strings.HasSuffix(name, ".port.test.") {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(q.Question[0].Name + " 300 IN A 127.0.0.2")
			m.Answer = []dns.RR{rr}
			if b, err := m.Pack(); err == nil && w.RemoteAddr().Network() == "udp" {
				_, _ = stranger.WriteTo(b, w.RemoteAddr())
			}
			return
		}
		for zone, f := range misdeeds {
			if rest, ok := strings.CutSuffix(name, "."+zone); ok && !strings.Contains(rest, ".f.7.f.") {
				rest = strings.TrimSuffix(strings.TrimLeft(rest, "c."), ".later")
				f(w, q, rest == "2.0.0.127" || rest == "1.0.18.198")
				return
			}
		}
		switch {
		case name == "1.0.18.198.in-addr.arpa." && q.Question[0].Qtype == dns.TypePTR:
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(name + " 60 IN PTR mail.names.test.")
			m.Answer = []dns.RR{rr}
			_ = w.WriteMsg(m)
		case name == "mail.names.test." && q.Question[0].Qtype == dns.TypeA:
			answer(w, q, "198.18.0.1")
		default:
			answer(w, q)
		}
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		up, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe(); close(done) }()
		<-up
		t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

// TestRealServers: rbldnsd serves a list, unbound resolves, and a server of ours does what lists must not do. The right lists list
// what they list; none of the others lists anybody, and each is suspended for its own reason. The same without unbound between.
func TestRealServers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: not root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	root, err := lab.DNSRoot(ctx, lab.CacheDir(), func(s string) { t.Log(s) })
	if err != nil {
		t.Skipf("skipped: no unbound and rbldnsd: %v", err)
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	host, err := l.NewHost("dns")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(l.Dir(), "dns")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	rbl, bad := netip.MustParseAddrPort("127.0.0.1:5301"), netip.MustParseAddrPort("127.0.0.1:5302")
	const soa = "$SOA 300 ns.example.net root.example.net 1 600 300 86400 60\n$NS 300 ns.example.net\n"
	if _, err := lab.StartRBLDNSD(ctx, host, root, dir, rbl, map[string]map[string]string{
		"bl.example.net": {
			"ip4set":  soa + ":127.0.0.2:listed, see http://bl.example.net/$\n127.0.0.2\n198.18.0.1\n198.18.0.9 :127.0.0.99:\n",
			"ip6trie": ":127.0.0.2:listed\n::ffff:7f00:2/128\n2001:db8:1::/64\n",
		},
		"four.example.net": {"ip4set": soa + ":127.0.0.2:listed\n127.0.0.2\n198.18.0.1\n"},
		"wl.example.net":   {"ip4set": soa + ":127.0.9.2:welcome\n127.0.0.2\n198.18.0.2\n"},
	}); err != nil {
		t.Fatal(err)
	}
	misbehave(t, host, bad.String())
	stubs := map[string]netip.AddrPort{"bl.example.net": rbl, "four.example.net": rbl, "wl.example.net": rbl}
	if _, err := lab.StartUnbound(ctx, host, root, dir, netip.MustParseAddr("127.0.0.1"), stubs, bad); err != nil {
		t.Fatal(err)
	}

	good := []string{"bl.example.net=127.0.0.2", "four.example.net=127.0.0.2", "wl.example.net=127.0.[0..15].2*-2"}
	for _, via := range []struct {
		name   string
		server netip.AddrPort
		lists  []string
		// Reasons that a resolver between turns into SERVFAIL or silence are told by the direct run.
		reasons map[string]string
	}{
		{"unbound", netip.MustParseAddrPort("127.0.0.1:53"), append(good, "plain.test", "tcp.test", "cname.test"), map[string]string{
			"wild.test": "nobody can have", "open.test": "127.255.255.254", "over.test": "over the limit", "parked.test": "outside 127.0.0.0/8", "empty.test": "test entry",
			"fail.test": "", "refuse.test": "", "silent.test": "", "port.test": "", "rubbish.test": "", "id.test": "", "name.test": "", "circle.test": "", "huge.test": "",
		}},
		{"direct", bad, []string{"plain.test", "tcp.test", "cname.test"}, map[string]string{
			"wild.test": "nobody can have", "open.test": "127.255.255.254", "over.test": "over the limit", "parked.test": "outside 127.0.0.0/8", "empty.test": "test entry",
			"fail.test": "SERVFAIL", "refuse.test": "REFUSED", "silent.test": "no answer in time", "port.test": "no answer in time", "rubbish.test": "", "id.test": "another question",
			"name.test": "another question", "circle.test": "CNAME chain", "huge.test": "too large",
		}},
	} {
		t.Run(via.name, func(t *testing.T) {
			r, err := resolve.New(resolve.Options{Servers: []netip.AddrPort{via.server}, Dial: host.DialDNS, Timeout: 1500 * time.Millisecond, Total: 6 * time.Second, MinTTL: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var lists []dnslist.List
			add := func(s string) {
				x, err := dnslist.ParseSite(s)
				if err != nil {
					t.Fatal(err)
				}
				lists = append(lists, x)
			}
			for _, s := range via.lists {
				add(s)
			}
			for s := range via.reasons {
				add(s)
				if s != "wild.test" && s != "empty.test" { // a list of everybody is the breaker's; an empty one says what it may
					add("later." + s)
				}
			}
			var mu sync.Mutex
			var logs bytes.Buffer
			found := map[netip.Addr]dnslist.Finding{}
			e := dnslist.NewEngine(dnslist.Options{Lists: lists, Resolver: r, Timeout: 10 * time.Second, Log: slog.New(slog.NewTextHandler(&logs, nil)), Found: func(f dnslist.Finding) {
				mu.Lock()
				found[f.Source] = f
				mu.Unlock()
			}})
			ectx, stop := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() { _ = e.Run(ectx); close(ended) }()
			defer func() { stop(); <-ended }()
			eventually := func(what string, ok func() bool) {
				t.Helper()
				for end := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("waited in vain until %s: %+v\n%s", what, e.Status(), logs.String())
					}
				}
			}
			eventually("all lists are tested", func() bool {
				for _, z := range e.Status().Zones {
					if z.IPv4.State == dnslist.New || z.IPv6.State == dnslist.New {
						return false
					}
				}
				return true
			})
			sources := []string{"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.9", "2001:db8:1::5", "2001:db8:2::5"}
			for _, s := range sources {
				if !e.Ask(netip.MustParseAddr(s)) {
					t.Fatalf("%s is not asked about", s)
				}
			}
			eventually("all are found", func() bool {
				mu.Lock()
				defer mu.Unlock()
				for _, s := range sources {
					// A listing is not handed over if some list was suspended meanwhile; the next event asks again.
					if a := netip.MustParseAddr(s); !found[a].Source.IsValid() {
						e.Ask(a)
					}
				}
				return len(found) == len(sources)
			})

			mu.Lock()
			defer mu.Unlock()
			want := map[string]float64{"198.18.0.1": 105}
			if via.name == "unbound" {
				want = map[string]float64{"198.18.0.1": 175, "198.18.0.2": -70, "2001:db8:1::5": 35}
			}
			for _, s := range sources {
				if f := found[netip.MustParseAddr(s)]; f.Sum != want[s] {
					t.Errorf("%s: %v points, want %v: %+v", s, f.Sum, want[s], f)
				}
			}
			if via.name == "unbound" {
				if f := found[netip.MustParseAddr("198.18.0.1")]; f.RDNS != resolve.StateVerified || len(f.Names) != 1 || f.Names[0] != "mail.names.test" {
					t.Errorf("reverse names: %+v", f)
				}
				if f := found[netip.MustParseAddr("198.18.0.3")]; f.RDNS != resolve.StateNone {
					t.Errorf("no reverse name: %+v", f)
				}
			}
			for _, z := range e.Status().Zones {
				reason, isBad := via.reasons[z.Zone]
				if of, late := strings.CutPrefix(z.Zone, "later."); late {
					// It passed its test, so each source was asked about, and nothing was believed of what came.
					for _, s := range sources[:4] {
						f := found[netip.MustParseAddr(s)]
						if !slices.ContainsFunc(f.Unknown, func(u string) bool { return strings.HasPrefix(u, z.Zone+": ") }) {
							t.Errorf("%s about %s: %+v", z.Zone, s, f)
						}
					}
					if z.Listed > 0 || z.Welcomed > 0 || z.Errors == 0 {
						t.Errorf("%+v", z)
					}
					if reason = via.reasons[of]; z.IPv4.State == dnslist.Suspended && !strings.Contains(z.IPv4.Reason, reason) && !strings.Contains(z.IPv4.Reason, "in a row") {
						t.Errorf("%s: %+v, want %q", z.Zone, z.IPv4, reason)
					}
					continue
				}
				switch {
				case !isBad && z.IPv4.State != dnslist.OK:
					t.Errorf("%s: %+v", z.Zone, z.IPv4)
				case isBad && (z.IPv4.State != dnslist.Suspended || !strings.Contains(z.IPv4.Reason, reason)):
					t.Errorf("%s: %+v, want %q", z.Zone, z.IPv4, reason)
				case z.Zone == "bl.example.net" && z.IPv6.State != dnslist.OK:
					t.Errorf("%s: IPv6 %+v", z.Zone, z.IPv6)
				}
			}
			if via.name == "unbound" {
				list := e.Report(ctx, netip.MustParseAddr("198.18.0.1"))
				if len(list) != len(lists) || list[0].Says != dnslist.Listed || !strings.Contains(list[0].TXT, "http://bl.example.net/198.18.0.1") {
					t.Errorf("%+v", list)
				}
				for _, x := range list {
					if _, isBad := via.reasons[strings.TrimPrefix(x.Zone, "later.")]; isBad != (x.Says == dnslist.Unknown) || isBad != (x.Why != "") {
						t.Errorf("%+v", x)
					}
				}
			}
		})
	}
}
