//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/scripts/lab"
)

// records serves DNS records, in zone file form, on port 53 of the mail host. Other names do not exist.
func (r *rig) records(text ...string) {
	r.t.Helper()
	var all []dns.RR
	for _, s := range text {
		rr, err := dns.NewRR(s)
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, rr)
	}
	r.serve(dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Rcode = dns.RcodeNameError
		for _, rr := range all {
			if !strings.EqualFold(rr.Header().Name, q.Question[0].Name) {
				continue
			}
			if m.Rcode = dns.RcodeSuccess; rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	}))
}

// TestBigSenders: three hosts try hundreds of recipients that do not exist. Two belong to large providers, one of which is known by
// its SPF record and one by its names, as Google and Yahoo are: they are not blocked, why says so, and a person can block
// them all the same. The third only claims such a name.
func TestBigSenders(t *testing.T) {
	src := lab.Sources(lab.Attack4, 3)
	google, yahoo, liar := src[0], src[1], src[2]
	rev := func(a netip.Addr) string {
		s, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	r := newRig(t, lab.Options{Resolver: "127.0.0.1"}, "big_senders: false\nallow: [\"spf:google.example\", \"domain:yahoo.example\"]\ndns: {resolvers: [127.0.0.1]}\n")
	r.records(
		`google.example. 300 IN TXT "v=spf1 include:_netblocks.google.example ~all"`,
		`_netblocks.google.example. 300 IN TXT "v=spf1 ip4:`+google.String()+`/32 ip6:2001:db8:60::/48 ~all"`,
		rev(yahoo)+" 300 IN PTR sonic1.mail.yahoo.example.",
		"sonic1.mail.yahoo.example. 300 IN A "+yahoo.String(),
		rev(liar)+" 300 IN PTR sonic2.mail.yahoo.example.",
	)
	r.start()
	ctx := t.Context()
	r.eventually("the SPF record is known", func() bool {
		s := r.status()
		return len(s.Senders) == 2 && s.Senders[0].Ranges > 0
	})
	for _, a := range []netip.Addr{google, yahoo} {
		if res := lab.Dictionary(ctx, r.top.Net, a, mx, lab.DictionaryOptions{Talk: patient, Recipients: 500, PerSession: 50}); res.Rejected < 500 || res.Blocked() {
			t.Fatalf("the test shows nothing: %+v", res)
		}
	}
	lab.Dictionary(ctx, r.top.Net, liar, mx, lab.DictionaryOptions{Talk: brief, Recipients: 30, PerSession: 15})
	r.awaitBlock(liar)
	r.awaitLines()
	for a, rule := range map[netip.Addr]string{google: "spf:google.example", yahoo: "domain:yahoo.example"} {
		w := r.why(a)
		if w.Decision.Drop || !strings.Contains(w.Words, "would have been blocked (500 unknown recipients") || !strings.Contains(w.Words, "allowed by "+rule) {
			t.Errorf("%s", w.Words)
		}
		if res := lab.Honest(ctx, r.top.Net, a, mx, lab.HonestOptions{Messages: 1}); res.Accepted != 1 {
			t.Errorf("%s: %+v", a, res)
		}
	}
	if out := r.must("allow", "list"); !strings.Contains(out, "domain:yahoo.example") || !strings.Contains(out, "1 addresses proved") {
		t.Errorf("%s", out)
	}
	// What was proved holds at the next start, before anybody is asked.
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.start()
	if w := r.why(yahoo); w.Decision.Rule != "sender_allow" {
		t.Errorf("after a restart: %s", w.Words)
	}
	r.must("block", yahoo.String(), "--reason", "this one host of theirs")
	if !r.timesOut(yahoo, mx) {
		t.Error("a person cannot block it")
	}
}
