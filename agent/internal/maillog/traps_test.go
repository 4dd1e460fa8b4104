package maillog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestTrapsAdd(t *testing.T) {
	for _, s := range []string{"", "@", "nobody", "a@b", "a@", "a b@example.org", "<a@example.org>", "a,b@example.org", "*@example.org", "a*@example.org",
		"-*@example.org", "a@*.example.org", "@.example.org", "a@example..org", "a\x00@example.org", strings.Repeat("a", 400) + "@example.org"} {
		if err := new(Traps).Add(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
	tr := trapsOf("Honeypot@Example.ORG", "old.example.org", "@OLDER.example.org.", "box-*@example.org", "müll@example.org", "x+y@example.org")
	for s, want := range map[string]bool{
		"honeypot@example.org": true, "HONEYPOT+1@example.org": true, "honeypot-1@example.org": false, "a@old.example.org": true, "a@b.old.example.org": false,
		"A@Older.Example.org": true, "box-a@example.org": true, "box-a-b+c@example.org": true, "box@example.org": false, "müll@example.org": true,
		"x@example.org": false, "x+y@example.org": true, "x+y+z@example.org": true, "x+z@example.org": false, "honeypot@": false, "@example.org": false, "@": false, "": false,
		`"honeypot"@example.org`: true, `"honeypot+1"@example.org`: true, `""@old.example.org`: true,
		"a@b@old.example.org": true, "++++++++++honeypot@example.org": false, "honeypot++++++++++++@example.org": true,
		strings.Repeat("a", 308) + "@old.example.org": false,
	} {
		if got := tr.match([]byte(s)); got != want {
			t.Errorf("%q: %v", s, got)
		}
	}
	var none *Traps
	if none.match([]byte("a@b.c")) || none.Len() != 0 || tr.Len() != 6 {
		t.Error("no traps, or not six")
	}
}

func TestTrapsBounded(t *testing.T) {
	tr := new(Traps)
	for i := range MaxTraps {
		if err := tr.Add(fmt.Sprintf("t%d@example.org", i)); err != nil {
			t.Fatal(err)
		}
	}
	if tr.Add("one@example.org") == nil {
		t.Error("one more is taken")
	}
	if n := testing.AllocsPerRun(100, func() { tr.match([]byte("T99999+a@Example.Org")) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if !tr.match([]byte("T99999+a@Example.Org")) {
		t.Error("not found")
	}
}

// FuzzTraps: match against a slow second opinion.
func FuzzTraps(f *testing.F) {
	for _, s := range []string{"honeypot@example.org", "x+y@example.org", `"honeypot"@example.org`, "box-a@example.org", "@", "a@trap.example.net", "a+b+c-d-e@example.org."} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, a []byte) {
		got, want := corpusTraps.match(a), false
		fold := bytes.Map(func(r rune) rune {
			if 'A' <= r && r <= 'Z' {
				return r | 0x20
			}
			return r
		}, bytes.ToValidUTF8(a, []byte("?")))
		if i := bytes.LastIndexByte(fold, '@'); i > 0 && len(a) <= maxRecipient {
			local, domain := string(fold[:i]), strings.TrimSuffix(string(fold[i+1:]), ".")
			if len(local) > 2 && local[0] == '"' && local[len(local)-1] == '"' {
				local = local[1 : len(local)-1]
			}
			first, _, _ := strings.Cut(local, "+")
			want = domain == "trap.example.net" || domain == "example.org" &&
				(first == "honeypot" || local == "user+tag" || strings.HasPrefix(local, "user+tag+") || strings.HasPrefix(local, "box-"))
		}
		if got != want && bytes.Count(a, []byte("+"))+bytes.Count(a, []byte("-")) < maxTags {
			t.Errorf("%q: %v, want %v", a, got, want)
		}
	})
}

// TestRecipients: with the option each delivery is an event with a hash of the mailbox, tags aside.
func TestRecipients(t *testing.T) {
	p := New(Options{Seed: 3, Recipients: true})
	hashes := map[uint64]bool{}
	n := 0
	for i, l := range []string{
		"postfix/smtpd[1]: 4D0000000001: client=h[192.0.2.1]",
		"postfix/qmgr[1]: 4D0000000001: from=<>, size=1, nrcpt=5 (queue active)",
		"postfix/lmtp[1]: 4D0000000001: to=<a@example.org>, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"postfix/lmtp[1]: 4D0000000001: to=<A+tag@Example.org>, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"postfix/lmtp[1]: 4D0000000001: to=<a@example.org>, orig_to=<any@example.org>, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"postfix/lmtp[1]: 4D0000000001: to=<b@example.org>, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"postfix/lmtp[1]: 4D0000000001: to=<c@example.org>, relay=x, delay=1, dsn=5.1.1, status=bounced (no, status=sent (250 ok))",
		"postfix/qmgr[1]: 4D0000000001: removed",
		"postfix/lmtp[1]: 4D0000000001: to=<d@example.org>, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"exim[1]: 1rgXyz-0001Ab-Cd <= s@example.com H=h [192.0.2.1] P=esmtp S=1",
		"exim[1]: 1rgXyz-0001Ab-Cd => b <b@example.org> R=local_user T=x",
		"exim[1]: 1rgXyz-0001Ab-Cd ** e@example.org: Unrouteable address",
		"sm-mta[1]: 622A1abC012345: from=<s@example.com>, size=1, class=0, nrcpts=1, msgid=<m@example.com>, proto=ESMTP, daemon=MTA, relay=h [192.0.2.1]",
		"sm-mta[1]: 622A1abC012345: to=<b@example.org>, delay=00:00:01, mailer=local, dsn=2.0.0, stat=Sent",
		"sm-mta[1]: 622A1abC012345: to=<f@example.org>, delay=00:00:01, mailer=local, dsn=5.1.1, stat=User unknown",
	} {
		var e Event
		if !p.Parse([]byte("Mar  2 10:00:00 mx "+l), corpusRef, &e) || e.Kind != Recipient {
			continue
		}
		n++
		hashes[e.User] = true
		if e.Source != client1 || e.Count != 1 || e.User == 0 {
			t.Errorf("%d: %+v", i, e)
		}
	}
	if n != 6 || len(hashes) != 2 {
		t.Errorf("%d events of %d recipients", n, len(hashes))
	}
}

// TestGuessesAreApart: what is refused is one recipient with all its +tags, and another one with each dash; of what is reached a
// dash may be a tag too. The lower half of what we do not relay is its domain's.
func TestGuessesAreApart(t *testing.T) {
	p := New(Options{Seed: 3, Recipients: true})
	hash := func(line string) uint64 {
		var e Event
		if !p.Parse([]byte("Mar  2 10:00:00 mx "+line), corpusRef, &e) || e.User == 0 {
			t.Fatalf("%s: %+v", line, e)
		}
		return e.User
	}
	for _, mta := range []struct{ name, line string }{
		{"postfix", "postfix/smtpd[1]: NOQUEUE: reject: RCPT from h[192.0.2.1]: 550 5.1.1 <@>: Recipient address rejected: User unknown; from=<s@example.com> to=<@> proto=ESMTP helo=<h>"},
		{"exim", "exim[1]: H=(h) [192.0.2.1] F=<s@example.com> rejected RCPT <@>: Unrouteable address"},
		{"sendmail", "sm-mta[1]: 622A1abC012345: ruleset=check_rcpt, arg1=<@>, relay=h [192.0.2.1], reject=550 5.1.1 <@>... User unknown"},
	} {
		refused := func(to string) uint64 { return hash(strings.ReplaceAll(mta.line, "<@>", "<"+to+">")) }
		sales, shop, info := refused("info-sales@example.org"), refused("info-shop@example.org"), refused("info@example.org")
		if sales == shop || sales == info || shop == info {
			t.Errorf("%s: two guesses are one", mta.name)
		}
		if refused("ops+a@example.org") != refused("OPS+b@Example.org") || refused("a@example.org") == refused("a@example.net") {
			t.Errorf("%s: tags or domains", mta.name)
		}
	}
	for _, l := range []string{
		"postfix/smtpd[1]: 4D0000000001: client=h[192.0.2.1]",
		"postfix/qmgr[1]: 4D0000000001: from=<s@example.com>, size=1, nrcpt=5 (queue active)",
	} {
		var e Event
		p.Parse([]byte("Mar  2 10:00:00 mx "+l), corpusRef, &e)
	}
	reached := func(to string) uint64 {
		return hash("postfix/lmtp[1]: 4D0000000001: to=<" + to + ">, relay=x, delay=1, dsn=2.0.0, status=sent (250 ok)")
	}
	if reached("u-1@example.org") != reached("u+2@example.org") || reached("u@example.org") == reached("v@example.org") {
		t.Error("reached")
	}
	for _, line := range []string{
		"postfix/smtpd[1]: NOQUEUE: reject: RCPT from h[192.0.2.1]: 554 5.7.1 <@>: Relay access denied; from=<s@example.com> to=<@> proto=ESMTP helo=<h>",
		"exim[1]: H=(h) [192.0.2.1] F=<s@example.com> rejected RCPT <@>: relay not permitted",
	} {
		relayed := func(to string) uint64 { return hash(strings.ReplaceAll(line, "<@>", "<"+to+">")) }
		a, b, c := relayed("a@left.example"), relayed("b@Left.Example"), relayed("a@other.example")
		if uint32(a) != uint32(b) || a == b || uint32(a) == uint32(c) {
			t.Errorf("%.40s: relayed %x %x %x", line, a, b, c)
		}
	}
}

// TestTransitPersists: a message on its way to a trap outlives a restart, and who may hit it too.
func TestTransitPersists(t *testing.T) {
	for _, sender := range []string{"s@example.com", ""} {
		p := New(Options{Seed: 7, Traps: corpusTraps})
		var e Event
		for _, l := range []string{"postfix/smtpd[1]: 4D0000000001: client=h[192.0.2.1]", "postfix/qmgr[1]: 4D0000000001: from=<" + sender + ">, size=1, nrcpt=1 (queue active)",
			"sm-mta[1]: 622A1abC012345: <honeypot@example.org>... User unknown"} {
			p.Parse([]byte("Mar  2 10:00:00 mx "+l), corpusRef, &e)
		}
		q := New(Options{Seed: 7, Traps: corpusTraps})
		if err := q.Restore(p.Pending()); err != nil {
			t.Fatal(err)
		}
		ok := q.Parse([]byte("Mar  2 10:00:01 mx postfix/lmtp[1]: 4D0000000001: to=<honeypot@example.org>, relay=x, status=sent (ok)"), corpusRef, &e)
		if hit := ok && e.Kind == Trap && e.Source == client1; hit != (sender != "") {
			t.Errorf("from <%s>: %v %+v", sender, ok, e)
		}
		if !q.Parse([]byte("Mar  2 10:00:01 mx sm-mta[1]: 622A1abC012345: from=<s@x>, size=0, class=0, nrcpts=0, proto=SMTP, daemon=MTA, relay=[192.0.2.3]"), corpusRef, &e) || e.Kind != Trap {
			t.Errorf("Sendmail: %+v", e)
		}
	}
}

// TestTransitBounded: messages that never arrive make room for new ones.
func TestTransitBounded(t *testing.T) {
	p, at := New(Options{MaxPending: 100, Traps: corpusTraps}), corpusRef
	var e Event
	for i := range 1000 {
		q := fmt.Sprintf("Q%06d", i)
		p.Parse(clientLine(q, "192.0.2.1", at), at, &e)
		p.Parse(activeLine(q, at), at, &e)
	}
	if len(p.transit.ring) != 100 {
		t.Errorf("%d entries", len(p.transit.ring))
	}
	// What is stored of them is a minute's. What is not about messages has the same size in an empty parser, up to a line.
	empty := len(New(Options{}).Pending())
	if n := len(p.Pending()) - empty; n/pendingEntry != 100 {
		t.Errorf("%d bytes", n)
	}
	at = at.Add(2 * time.Minute)
	p.Parse(clientLine("QQQQQQ", "192.0.2.1", at), at, &e)
	p.Parse(activeLine("QQQQQQ", at), at, &e)
	if n := len(p.Pending()) - empty; n/pendingEntry != 1 {
		t.Errorf("%d bytes after two minutes", n)
	}
}

// BenchmarkRecipients: what it costs to look at recipients, against not doing so.
func BenchmarkRecipients(b *testing.B) {
	log := mixedLog(20000)
	for _, c := range []struct {
		name string
		o    Options
	}{{"no", Options{}}, {"recipients", Options{Recipients: true}}, {"recipients+traps", Options{Recipients: true, Traps: corpusTraps}}} {
		b.Run("look="+c.name, func(b *testing.B) {
			p := New(c.o)
			var e Event
			for _, l := range log {
				p.Parse(l, corpusRef, &e)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				p.Parse(log[i%len(log)], corpusRef, &e)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
