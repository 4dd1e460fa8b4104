//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/scripts/lab"
)

// TestLookupPage: the page for a ticket says of each list what it answers and means, quotes what others wrote, and tells a
// network and an address that nobody can have from one that can be looked up.
func TestLookupPage(t *testing.T) {
	r := newRig(t, lab.Options{}, `allow: ["domain:example.net"]
dns:
  resolvers: [127.0.0.1]
  lists: [{zone: zen.spamhaus.org}, {zone: list.dnswl.org}, {zone: psbl.surriel.com}, {zone: dead.example.net, codes: {"127.0.0.2": 20}}]
`)
	bad4, bad6 := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8:bad::1")
	r.serve(dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		name := q.Question[0].Name
		labels := dns.SplitDomainName(name)
		a, n := reversed(labels)
		zone := strings.Join(labels[n:], ".")
		say := func(list ...string) {
			for _, s := range list {
				rr, err := dns.NewRR(name + " 60 IN " + s)
				if err != nil {
					t.Error(err)
					return
				}
				m.Answer = append(m.Answer, rr)
			}
		}
		bad := a == bad4 || a == bad6
		switch what := q.Question[0].Qtype; {
		case zone == "dead.example.net":
		case what == dns.TypeA && n > 0 && a.Unmap() == netip.MustParseAddr("127.0.0.2"):
			say(map[bool]string{true: "A 127.0.10.0", false: "A 127.0.0.2"}[zone == "list.dnswl.org"])
		case what == dns.TypeA && bad && zone == "zen.spamhaus.org":
			say("A 127.0.0.2", "A 127.0.0.4", "A 127.0.0.10")
		case what == dns.TypeTXT && bad && zone == "zen.spamhaus.org":
			say(`TXT "see \"here\" \027[31m\010x"`)
		case what == dns.TypeA && bad && zone == "list.dnswl.org":
			say("A 127.0.5.1")
		case what == dns.TypePTR && name == "1.0.18.198.in-addr.arpa.":
			say("PTR mail.example.net.", `PTR evil\027name.example.org.`)
		case what == dns.TypeA && name == "mail.example.net.":
			say("A 198.18.0.1")
		}
		if len(m.Answer) == 0 {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	}))
	r.start()
	r.eventually("the lists are tested", func() bool {
		l := r.status().DNS.Lists
		return l[0].IPv4 == "ok" && l[0].IPv6 == "ok" && l[3].IPv4 == "suspended"
	})
	r.eventually("what was learned of its name is in the table", func() bool { return strings.Contains(r.must("lookup", "198.18.0.1"), "is not blocked: allowed by") })
	for ask, want := range map[string][]string{
		"198.18.0.1": {
			"address    198.18.0.1, asked by ", "allowed    by domain:example.net", "mail.example.net, leads back to the address", `"evil\\027name.example.org", DOES NOT lead back`,
			"zen.spamhaus.org: LISTED, 127.0.0.2 127.0.0.4 127.0.0.10 (SBL, XBL, PBL), +140 points", `"see \"here\" \x1b[31m\nx"`, "see https://check.spamhaus.org/results/?query=198.18.0.1",
			"list.dnswl.org: welcome, 127.0.5.1 (DNSWL low), -20 points", "psbl.surriel.com: not listed", "dead.example.net: not known: suspended: it does not list its test entry", "sum        +120 points of the 100 that block",
		},
		"::ffff:198.18.0.1": {"address    198.18.0.1, asked by ", "shield     198.18.0.1 is not blocked: allowed by domain:example.net", "(SBL, XBL, PBL)"},
		"2001:db8:bad::1":   {"name       none", "(SBL, XBL, PBL)", "query=2001:db8:bad::1", "dead.example.net: not asked, it has no IPv6"},
		"198.18.0.9":        {"zen.spamhaus.org: not listed", "sum        0 points"},
		"10.0.0.1":          {"allowed    by private range", "no DNS list can know this address"},
	} {
		out := r.must("lookup", ask)
		for _, s := range want {
			if !strings.Contains(out, s) {
				t.Errorf("%s: %q is missing in\n%s", ask, s, out)
			}
		}
		if strings.ContainsAny(out, "\x1b\x07\r") {
			t.Errorf("%s: what others wrote is not quoted: %q", ask, out)
		}
	}
	for ask, want := range map[string]string{
		"198.18.0.0/24": "no single address", "2001:db8::/64": "no single address", "192.0.2.300": "neither an address", "fe80::1%eth0": "has a zone", "": "neither an address",
	} {
		if out, code := r.ctl("lookup", ask); code != 2 || !strings.Contains(out, want) || !strings.Contains(out, "hint: ") {
			t.Errorf("%q: exit %d, %s", ask, code, out)
		}
	}
}
