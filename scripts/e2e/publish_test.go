//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/scripts/lab"
)

// question asks a DNS server of the mail host.
func (r *rig) question(at, network, name string, qtype uint16) *dns.Msg {
	r.t.Helper()
	c, err := r.top.MX[0].DialDNS(r.t.Context(), network, at)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	client := dns.Client{Net: network, Timeout: 10 * time.Second}
	m, _, err := client.ExchangeWithConn(new(dns.Msg).SetQuestion(name, qtype), &dns.Conn{Conn: c})
	if err != nil {
		r.t.Fatalf("%s %s: %v", network, name, err)
	}
	return m
}

// TestPublish: the block table is a DNS list. A Postfix whose address is not shielded refuses by it whom the shield would drop: it asks
// unbound, which asks the agent. Our own list engine, which trusts nobody, finds the zone in order. An unblock is seen, and
// while the shield is off nobody is listed.
func TestPublish(t *testing.T) {
	r := newRig(t, rejecting("bl.mx.example"), "big_senders: false\nexempt: ["+lab.MX4.String()+"]\ndns: {resolvers: [127.0.0.1], publish: {listen: \"127.0.0.1:5353\", zone: bl.mx.example}}\n")
	root, err := lab.DNSRoot(t.Context(), lab.CacheDir(), func(s string) { t.Log(s) })
	if err != nil {
		t.Skipf("skipped: no unbound: %v", err)
	}
	zone := netip.MustParseAddrPort("127.0.0.1:5353")
	if _, err := lab.StartUnbound(t.Context(), r.top.MX[0], root, r.dir, netip.MustParseAddr("127.0.0.1"), map[string]netip.AddrPort{"bl.mx.example": zone}, zone); err != nil {
		t.Fatal(err)
	}
	r.start()
	ctx := t.Context()
	src := lab.Sources(lab.Attack4, 3)
	at := func(a netip.Addr) string {
		b := a.As4()
		return fmt.Sprintf("%d.%d.%d.%d.bl.mx.example.", b[3], b[2], b[1], b[0])
	}
	// One is blocked by what Postfix logs about it, and by hand an IPv6 network.
	lab.Dictionary(ctx, r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: brief, Recipients: 30, PerSession: 15})
	r.awaitBlock(src[0])
	r.must("block", "2001:db8:66::/64")
	// An smtpd remembers what a list said as long as it lives: this one it has not asked about yet.
	r.must("block", src[2].String(), "--for", "1h")

	for _, network := range []string{"udp", "tcp"} {
		for _, server := range []string{"127.0.0.1:5353", "127.0.0.1:53"} {
			m := r.question(server, network, at(src[0]), dns.TypeA)
			if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != "127.0.0.3" {
				t.Errorf("%s %s: %v", server, network, m)
			}
			m = r.question(server, network, at(src[0]), dns.TypeTXT)
			if len(m.Answer) != 1 || !strings.Contains(m.Answer[0].String(), "dictionary, until ") {
				t.Errorf("%s %s: %v", server, network, m)
			}
			if m = r.question(server, network, at(src[1]), dns.TypeA); m.Rcode != dns.RcodeNameError || len(m.Answer) != 0 {
				t.Errorf("%s %s: %v", server, network, m)
			}
		}
	}
	// What a person sees who looks with dig.
	for args, want := range map[string]string{
		"+short " + at(src[0]) + " A":        "127.0.0.3",
		"+short +tcp " + at(src[0]) + " TXT": "dictionary, until ",
		"+short bl.mx.example. SOA":          "bl.mx.example. ",
		at(src[1]) + " A":                    "status: NXDOMAIN",
		"+short 2.0.0.127.bl.mx.example. A":  "127.0.0.2",
	} {
		said, err := lab.Dig(r.top.MX[0], root, append([]string{"-r", "@127.0.0.1", "-p", "5353", "+timeout=10"}, strings.Fields(args)...)...)
		if err != nil || !strings.Contains(said, want) {
			t.Errorf("dig %s says %q, want %q: %v", args, said, want, err)
		}
	}
	res := lab.Honest(ctx, r.top.Net, src[2], mx, lab.HonestOptions{Messages: 1})
	if res.Accepted != 0 || !strings.Contains(res.Last, "blocked using bl.mx.example") || !strings.Contains(res.Last, "manual, until") {
		t.Errorf("Postfix does not use it: %+v", res)
	}
	if res := lab.Honest(ctx, r.top.Net, src[1], mx, lab.HonestOptions{Messages: 1}); res.Accepted != 1 {
		t.Errorf("%+v", res)
	}

	// RFC 5782 section 5, and an IPv6 network.
	for name, listed := range map[string]bool{
		"2.0.0.127": true, "1.0.0.127": false, "2.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0": true, "1.0.0.0.0.0.f.7.f.f.f.f.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0": false,
		"5.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.6.0.0.8.b.d.0.1.0.0.2": true, "5.2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.6.0.0.8.b.d.0.1.0.0.2": false,
	} {
		if m := r.question("127.0.0.1:53", "udp", name+".bl.mx.example.", dns.TypeA); listed != (len(m.Answer) == 1) || !listed && m.Rcode != dns.RcodeNameError {
			t.Errorf("%s: %v", name, m)
		}
	}

	r.must("off", "--reason", "test")
	if m := r.question("127.0.0.1:5353", "udp", at(src[0]), dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("listed while the shield is off: %v", m)
	}
	r.must("on")
	if m := r.question("127.0.0.1:5353", "udp", at(src[0]), dns.TypeA); len(m.Answer) != 1 {
		t.Errorf("not listed when it is on again: %v", m)
	}
	r.must("unblock", src[0].String())
	if m := r.question("127.0.0.1:5353", "udp", at(src[0]), dns.TypeA); m.Rcode != dns.RcodeNameError {
		t.Errorf("listed after an unblock: %v", m)
	}
	if s := r.status(); s.Publish == nil || s.Publish.Listed < 5 || s.Publish.Listen != "127.0.0.1:5353" {
		t.Errorf("%+v", s.Publish)
	}
}
