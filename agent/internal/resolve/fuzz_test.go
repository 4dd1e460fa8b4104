package resolve

import (
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// FuzzDecode feeds what a network may deliver to the path from packet to Answer: nothing panics, and no record is taken
// but of the asked type, in an answer to this very question.
func FuzzDecode(f *testing.F) {
	asked := new(dns.Msg).SetQuestion("2.0.0.127.test.", dns.TypeA)
	asked.Id = 0x1234
	for _, text := range [][]string{{"2.0.0.127.test. 300 IN A 127.0.0.2"}, {"2.0.0.127.test. 300 IN CNAME b.test.", "b.test. 1 IN A 127.0.0.2"}, {"b.test. 1 IN A 127.0.0.2"}, nil} {
		m := new(dns.Msg).SetReply(asked)
		for _, s := range text {
			m.Answer = append(m.Answer, rr(f, s))
		}
		m.Ns = []dns.RR{rr(f, "test. 900 IN SOA ns.test. root.test. 1 2 3 4 300")}
		m.Compress = true
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-5])
	}
	f.Add([]byte{0x12, 0x34, 0x81, 0, 0, 1, 0xff, 0xff, 0, 0, 0, 0, 0xc0, 12})
	r, err := New(Options{Servers: nil, ResolvConf: "/nonexistent"})
	if err != nil {
		f.Fatal(err)
	}
	q := question{"2.0.0.127.test.", dns.TypeA}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, e := decode(b, asked)
		if e != nil {
			if m != nil && e.Kind != Huge {
				t.Fatal("a message and an error")
			}
			return
		}
		if m.Truncated {
			return // only its header is used
		}
		if m.Id != asked.Id || !m.Response {
			t.Fatal("not an answer to the question")
		}
		a, e := r.read(q, m)
		if e != nil {
			return
		}
		if (len(a.Records) > 0) == (a.NXDomain || a.NoData) || a.NXDomain && a.NoData {
			t.Fatalf("%+v says two things", a)
		}
		if len(m.Question) != 1 || !strings.EqualFold(m.Question[0].Name, q.name) {
			t.Fatalf("an answer to %v", m.Question)
		}
		if a.TTL < time.Minute || a.TTL > time.Hour {
			t.Fatalf("TTL %s", a.TTL)
		}
		for _, rr := range a.Records {
			if _, ok := rr.(*dns.A); !ok || len(a.Records) > maxRecords {
				t.Fatalf("%v", rr)
			}
		}
	})
}
