//go:build linux

package e2e

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// silent as an answer is none.
const silent = "silent"

// lists serves DNS lists on port 53 of the mail host. code says what a zone answers about an address, "" for nothing; every zone
// keeps RFC 5782.
func (r *rig) lists(code func(zone string, a netip.Addr) string) {
	r.t.Helper()
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		m.Authoritative = true
		name := q.Question[0].Name
		labels := dns.SplitDomainName(name)
		answer := ""
		if a, n := reversed(labels); n > 0 && q.Question[0].Qtype == dns.TypeA {
			answer = code(strings.Join(labels[n:], "."), a)
			if answer == "" && a.Unmap() == netip.MustParseAddr("127.0.0.2") {
				answer = "127.0.0.2"
			}
		}
		if answer == silent {
			return
		}
		if answer != "" {
			rr, _ := dns.NewRR(name + " 60 IN A " + answer)
			m.Answer = []dns.RR{rr}
		} else {
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m)
	})
	r.serve(h)
}

// serve answers questions on port 53 of the mail host.
func (r *rig) serve(h dns.Handler) {
	r.t.Helper()
	const at = "127.0.0.1:53"
	pc, err := r.host.ListenPacket(r.t.Context(), at)
	if err != nil {
		r.t.Fatal(err)
	}
	l, err := r.host.Listen(r.t.Context(), at)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		up, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(up) }
		go func() { _ = s.ActivateAndServe(); close(done) }()
		<-up
		r.t.Cleanup(func() { _ = s.Shutdown(); <-done })
	}
}

// reversed is the address that a list is asked about, and of how many labels it is.
func reversed(labels []string) (a netip.Addr, n int) {
	if len(labels) > 32 {
		var b strings.Builder
		for i := range 32 {
			if b.WriteString(labels[31-i]); i%4 == 3 && i < 31 {
				b.WriteByte(':')
			}
		}
		a, _ = netip.ParseAddr(b.String())
		return a, 32
	}
	if len(labels) > 4 {
		var err error
		if a, err = netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0]); err == nil {
			return a, 4
		}
	}
	return a, 0
}

const listConfig = `dns:
  resolvers: [127.0.0.1]
  lists: [{zone: bl.example.net, codes: {"127.0.0.[2..254]": 60}}]
`

func rejecting(zone string) lab.Options {
	return lab.Options{Resolver: "127.0.0.1", Main: map[string]string{"smtpd_client_restrictions": "permit_mynetworks, reject_rbl_client " + zone}}
}

// TestListInError: Postfix rejects everybody because a list without a filter answers 127.255.255.254 for everybody. Its log says
// "blocked using" of each, without a word of the error; nobody is blocked for that, and status says what is wrong.
func TestListInError(t *testing.T) {
	r := newRig(t, rejecting("bl.example.net"), listConfig)
	r.lists(func(string, netip.Addr) string { return "127.255.255.254" })
	r.start()
	src := lab.Sources(lab.Attack4, 5)
	for _, a := range src {
		if res := lab.Dictionary(t.Context(), r.top.Net, a, mx, lab.DictionaryOptions{Talk: patient, Recipients: 30}); res.Rejected < 30 {
			t.Fatalf("Postfix did not reject: %+v", res)
		}
	}
	r.eventually("the list is suspended and all sources were dealt with", func() bool {
		s := r.status()
		return s.DNS != nil && s.DNS.Waiting == 0 && s.DNS.Asked >= 5 && s.DNS.Lists[0].IPv4 == "suspended"
	})
	r.awaitLines()
	s := r.status()
	if s.Events["dnsbl_reject"] < 150 {
		t.Fatalf("the test shows nothing: %d rejections in the log", s.Events["dnsbl_reject"])
	}
	if s.Blocks.Blocks != 0 {
		t.Errorf("blocked for a list's error:\n%s", r.must("list"))
	}
	for _, a := range src {
		if w := r.why(a); w.Decision.Drop || r.timesOut(a, mx) {
			t.Errorf("%s", w.Words)
		}
	}
	if !strings.Contains(strings.Join(s.Warnings, "\n"), "bl.example.net is suspended") || !strings.Contains(s.DNS.Lists[0].Reason, "127.255.255.254") || s.DNS.Lists[0].Hint == "" {
		t.Errorf("status does not say it: %+v %q", s.DNS, s.Warnings)
	}
	if out := r.must("status"); !strings.Contains(out, "bl.example.net, suspended") {
		t.Errorf("%s", out)
	}
}

// TestListConfirms: the same Postfix, and the list is right: its listings and the rejections that follow from them block. Who is
// not listed is not, and a listing that counts enough blocks at the first connect.
func TestListConfirms(t *testing.T) {
	src := lab.Sources(lab.Attack4, 3)
	r := newRig(t, rejecting("bl.example.net"), strings.Replace(listConfig, "lists: [", `lists: [{zone: heavy.example.net, codes: {"127.0.0.9": 100}}, `, 1))
	r.lists(func(zone string, a netip.Addr) string {
		switch {
		case zone == "bl.example.net" && (a == src[0] || a == src[1]):
			return "127.0.0.4"
		case zone == "heavy.example.net" && a == src[2]:
			return "127.0.0.9"
		}
		return ""
	})
	r.start()
	ctx := t.Context()
	lab.Dictionary(ctx, r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: brief, Recipients: 5})
	w := r.awaitBlock(src[0])
	if w.Decision.By.Cause != block.DNSBL || w.Decision.Scope != block.ScopeMX || !strings.Contains(w.Lists+w.Evidence.Words, "bl.example.net") {
		t.Errorf("%+v", w)
	}
	if !r.timesOut(src[0], mx) || r.timesOut(src[0], sub) {
		t.Error("the mx port is to be closed, the submission port is not")
	}
	lab.Honest(ctx, r.top.Net, src[2], mx, lab.HonestOptions{Messages: 1})
	w = r.awaitBlock(src[2])
	if w.Decision.By.Cause != block.DNSBL || !strings.Contains(w.Evidence.Words, "heavy.example.net +100") {
		t.Errorf("%+v", w)
	}
	// A listing of 60 points and one rejection are 80 of 100.
	lab.Dictionary(ctx, r.top.Net, src[1], mx, lab.DictionaryOptions{Talk: brief, Recipients: 1})
	h := lab.Honest(ctx, r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 3})
	r.awaitLines()
	r.eventually("all are found out", func() bool { s := r.status(); return s.DNS.Waiting == 0 && s.DNS.Lists[1].Asked >= 4 })
	for _, a := range []netip.Addr{src[1], lab.Honest4} {
		if w := r.why(a); w.Decision.Drop {
			t.Errorf("%s", w.Words)
		}
	}
	if h.Accepted != 3 {
		t.Errorf("the honest sender: %+v", h)
	}
}
