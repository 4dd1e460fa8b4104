package maillog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// What is done in a quick way gives what the plain way gives.

func TestLower8(t *testing.T) {
	for c := range 256 {
		for i := range 8 {
			got, want := lower8(uint64(c)<<(8*i)), uint64(bytes.ToLower([]byte{byte(c)})[0])
			if c >= 0x80 {
				want = uint64(c) // no letter of ASCII
			}
			if got != want<<(8*i) {
				t.Errorf("byte %d, place %d: %x", c, i, got)
			}
		}
	}
	if lower8(0xff5a41407b5b6100) != 0xff7a61407b5b6100 {
		t.Errorf("%x", lower8(0xff5a41407b5b6100))
	}
}

func TestHash(t *testing.T) {
	seen := map[uint64]string{}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 200_000 {
		b := fmt.Appendf(nil, "%X", i)
		switch i % 4 {
		case 1:
			b = bytes.Repeat([]byte{0}, i%64/4) // only the length differs
		case 2:
			b = fmt.Appendf(nil, "user%d@example.org", i)
		case 3:
			b = make([]byte, 16)
			b[rnd.IntN(16)], b[rnd.IntN(16)] = byte(i), byte(i>>8)
		}
		h := hash(7, b, false)
		if was, ok := seen[h]; ok && was != string(b) {
			t.Fatalf("%q and %q: %x", was, b, h)
		}
		seen[h] = string(b)
		if up := bytes.ToUpper(b); i%4 != 3 && hash(7, up, true) != hash(7, bytes.ToLower(up), true) || hash(8, b, false) == h {
			t.Fatalf("%q", b)
		}
	}
}

// TestStampCaches: a parser that has seen other stamps gives the time that a new one gives.
func TestStampCaches(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	used := New(Options{})
	refs := []time.Time{
		time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC), time.Date(2026, 3, 2, 12, 0, 0, 0, time.FixedZone("x", 3600)),
		time.Date(2024, 2, 29, 0, 0, 1, 0, time.UTC), time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	for range 200_000 {
		ref := refs[rnd.IntN(len(refs))]
		at := refs[rnd.IntN(len(refs))].Add(time.Duration(rnd.IntN(3)-1) * time.Second)
		frac := []string{"", ".5", ".000001", ".123456789", ".", ".x"}[rnd.IntN(6)]
		zone := []string{"", "Z", "+00:00", "+0100", "-02:30", "+1", " +0100"}[rnd.IntN(7)]
		stamp := at.Format("2006-01-02T15:04:05") + frac + zone
		switch rnd.IntN(3) {
		case 0:
			stamp = at.Format("Jan _2 15:04:05") + frac
		case 1:
			stamp = at.Format("2006-01-02 15:04:05") + frac + zone
		}
		line := []byte(stamp + " mx1 postfix/smtpd[1]: connect from unknown[192.0.2.1]")
		got, ok1 := used.Stamp(line, ref)
		want, ok2 := New(Options{MaxPending: 1}).Stamp(line, ref)
		if ok1 != ok2 || !got.Equal(want) {
			t.Fatalf("%s by %s: %v %v, want %v %v", stamp, ref, got, ok1, want, ok2)
		}
		var e Event
		if ok := used.Parse(line, ref, &e); ok != ok1 || ok && !e.Time.Equal(want) {
			t.Fatalf("%s by %s: %v %v, want %v %v", stamp, ref, e.Time, ok, want, ok2)
		}
	}
}

// TestClientCache: a parser that has seen other clients of a process reads a line as one does that has seen none.
func TestClientCache(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seeds.Of(t), 22))
	used := New(Options{})
	ref := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	found := 0
	for range 20_000 {
		client := []string{"unknown[192.0.2.1]", "unknown[192.0.2.1]:25", "unknown[192.0.2.11]", "unknown[2001:db8::1]", "mail.example.net[192.0.2.1]",
			"mail.example.net[::ffff:192.0.2.1]", "a.very.long.name.of.a.host.that.is.not.remembered.example.net[192.0.2.3]", "unknown[unknown]", "[192.0.2.1]", "unknown[192.0.2.1"}[rnd.IntN(10)]
		text := fmt.Sprintf([]string{"connect from %s", "disconnect from %s quit=1", "4F00000001: client=%s, sasl_method=PLAIN, sasl_username=x", "disconnect from %s:2x",
			"NOQUEUE: reject: RCPT from %s: 550 5.1.1 <a@example.org>: Recipient address rejected: User unknown; from=<> to=<a@example.org> proto=SMTP", "connect from %s]"}[rnd.IntN(6)], client)
		line := fmt.Appendf(nil, "Mar  2 10:00:00 mx1 postfix/smtpd[%d]: %s", 10+rnd.IntN(3), text)
		var got, want Event
		ok1, ok2 := used.Parse(line, ref, &got), New(Options{MaxPending: 1}).Parse(line, ref, &want)
		if ok1 != ok2 || got != want {
			t.Fatalf("%s: %+v %v, want %+v %v", line, got, ok1, want, ok2)
		}
		if ok1 {
			found++
		}
	}
	if found < 8_000 {
		t.Errorf("only %d are events", found)
	}
}

// TestSix: it never reads anything that parseAddr does not, and all that is usual.
func TestSix(t *testing.T) {
	rnd := rand.New(rand.NewPCG(seeds.Of(t), 24))
	for range 300_000 {
		addr := [16]byte{0x20, 0x01, 0x0d, 0xb8}
		for range rnd.IntN(12) {
			addr[4+rnd.IntN(12)] = byte(rnd.IntN(256))
		}
		text := netip.AddrFrom16(addr).String()
		b := []byte("[" + text + "]: x")
		usual := true
		for range rnd.IntN(3) {
			usual = false
			b[1+rnd.IntN(len(text))] = "::0a1G%.]/"[rnd.IntN(10)]
		}
		if rnd.IntN(4) == 0 {
			usual = false
			b = b[:1+rnd.IntN(len(b))]
		}
		got, n := six(b)
		if n == 0 {
			if usual {
				t.Fatalf("%q is not read", b)
			}
			continue
		}
		if want, ok := parseAddr(b[1:n]); !ok || got != want || b[n] != ']' {
			t.Fatalf("%q: %v up to %d, want %v %v", b, got, n, want, ok)
		}
	}
}

func TestTagCache(t *testing.T) {
	var c tagCache
	tags := []string{"postfix/smtpd", "postfix/submission/smtpd", "postfix-in/smtps/smtpd", "postfix/qmgr", "postfix/cleanup", "smtpd", "exim4", "dovecot",
		"imap-login", "sm-mta", "courierd", "kernel", "x", "", "postfix/lmtp", "postfix/x/a/very/long/service/name/smtpd", "a/b", "/smtpd", "cyrus/imap", "sshd"}
	rnd := rand.New(rand.NewPCG(5, 6))
	for range 100_000 {
		tag := []byte(tags[rnd.IntN(len(tags))])
		if len(tag) > 0 && rnd.IntN(4) == 0 {
			tag[rnd.IntN(len(tag))] ^= 1
		}
		if got, want := c.role(tag), roleOf(tag); got != want {
			t.Fatalf("%q: %+v, want %+v", tag, got, want)
		}
	}
}

// TestPendingStaysSmall: the ring is as long as what waits at one time needs, whatever passes through; and nothing is
// lost before max of them wait.
func TestPendingStaysSmall(t *testing.T) {
	const most = 10_000
	var p pending
	p.init(most, 1800)
	a := netip.MustParseAddr("192.0.2.1")
	p.add(1, a, 1000, false) // waits all the time
	for k := uint64(2); k < 100_000; k++ {
		p.add(k, a, 1000, false)
		if k > 100 {
			if _, ok := p.take(k-99, 1000); !ok {
				t.Fatalf("%d is lost", k-99)
			}
		}
		if p.look(1, 1000) == nil {
			t.Fatalf("the first is lost at %d", k)
		}
	}
	if len(p.ring) > 512 {
		t.Errorf("%d places for a hundred", len(p.ring))
	}
	for k := uint64(200_000); k < 200_000+most; k++ {
		p.add(k, a, 1000, false)
	}
	if len(p.ring) != most || p.live != most {
		t.Fatalf("%d of %d", p.live, len(p.ring))
	}
	for k := uint64(200_000); k < 200_000+most; k++ {
		if p.look(k, 1000) == nil {
			t.Fatalf("%d is lost", k)
		}
	}
	if p.look(1, 1000) != nil {
		t.Error("the oldest did not give way")
	}
}

// TestQuick: lines that quick reads are split as split does it.
func TestQuick(t *testing.T) {
	var lines [][]byte
	for _, file := range corpora {
		lines = append(lines, corpus(t, file)...)
	}
	for _, log := range []func(int) [][]byte{mixedLog, eximLog, dovecotLog, sendmailLog, opensmtpdLog, courierLog} {
		lines = append(lines, log(300)...)
	}
	lines = append(lines, eximForms()...)
	rnd := rand.New(rand.NewPCG(7, 8))
	const odd = " :[]<>()Ta0-.\n\r\x00\xff"
	p, seen, hosts := New(Options{}), 0, [][]byte{[]byte("mx1"), []byte("a"), []byte("mx2.example.org"), []byte("mail12.cluster.example.org"), []byte("2001:db8::25")}
	for i := range 60_000 {
		b := bytes.Clone(lines[(i/2+rnd.IntN(3))%len(lines)])
		if i%3 == 0 { // of a syslog host that writes for many
			b = bytes.Replace(b, []byte(" mx1 "), slices.Concat([]byte(" "), hosts[rnd.IntN(len(hosts))], []byte(" ")), 1)
		}
		if len(b) > 0 && rnd.IntN(2) == 0 {
			b[rnd.IntN(min(len(b), 70))] = odd[rnd.IntN(len(odd))]
		}
		if rnd.IntN(4) == 0 {
			b = append(b, odd[rnd.IntN(len(odd))])
		}
		var e Event
		p.Parse(b, corpusRef, &e) // lines before may be of the same host
		got, want := header{ref: corpusRef}, header{ref: corpusRef}
		if !p.quick(b, &got) {
			continue
		}
		seen++
		if ok := want.split(b, &p.record); !ok || want.kind != got.kind || want.count != got.count || want.again || want.part || want.mta != got.mta || got.seen != (got.mta == Auto) ||
			!bytes.Equal(want.stamp, got.stamp) || got.seen && got.from != hostHash(p.seed, want.host) || !bytes.Equal(want.tag, got.tag) ||
			!bytes.Equal(want.pid, got.pid) || !bytes.Equal(want.msg, got.msg) || got.seen && roleOf(want.tag) != got.role {
			t.Fatalf("%q: %+v, want %v %+v", b, got, ok, want)
		}
		if at, ok := New(Options{MaxPending: 1}).time(&want, corpusRef); !got.at.IsZero() && (!ok || at != got.at) {
			t.Fatalf("%q: %v, want %v %v", b, got.at, at, ok)
		}
	}
	if seen < 10_000 {
		t.Errorf("only %d lines were read the quick way", seen)
	}
}

// eximForms are lines of Exim's own file in the forms that quickExim knows beside those of eximLog.
func eximForms() (log [][]byte) {
	for _, l := range corpusOfExim {
		for _, stamp := range []string{"2026-03-02 10:00:00 ", "2026-03-02 10:00:59 ", "2026-03-02 10:01:00 [77] ", "2026-03-02 10:00:60 ", "2026-03-02 10:00:07 +0100 ", "2026-03-02 10:00:07.250 "} {
			log = append(log, []byte(stamp+l))
		}
	}
	return log
}

var corpusOfExim = []string{
	"1rgXyz-0001Ab-Cd <= s@example.net H=h.example.net [192.0.2.1] P=esmtp S=1", "1rgXyz-0001Ab-Cd Completed", "1rgXyz-00000000Abc-1De2 => u <u@example.org> R=r T=t",
	"1rgXyz_00000000Abc-1De2 => u <u@example.org> R=r T=t", "1rgXyz-00000000Ab_-1De2 => u", "PLAIN authenticator failed for (h) [192.0.2.1]: 535 Incorrect authentication data (set_id=u)",
	"plain.x authenticator failed for (h) [192.0.2.1]: 535 Incorrect authentication data", "unqualified authenticator failed for (h) [192.0.2.1]: 535 Incorrect authentication data",
	"SMTP connection from [192.0.2.1]:25 (TCP/IP connection count = 1)", "SMTP call from h [192.0.2.1] dropped: too many nonmail commands", "SMTP exim[7]: SMTP connection from [192.0.2.1]",
	"SMTP dovecot: imap-login: Login: user=<u>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2", "no host name found for IP address 192.0.2.1", "no IP address found for host a.b (during SMTP connection from [192.0.2.1])",
	"no exim[7]: no host name found for IP address 192.0.2.1", "unexpected EOF while reading SMTP command from [192.0.2.1]", "rejected EHLO from [192.0.2.1]: x", "rejected EHLO from [::1]",
	"temporarily refused connection from [192.0.2.1]", "refused connection from [192.0.2.1]", "H=[192.0.2.1] rejected EHLO or HELO x", "auth: Info: sql(u,192.0.2.1): unknown user",
	"cwd=/var/spool/exim 3 args: /usr/sbin/exim -q", "Start queue run: pid=7", "exim 4.98 daemon started: pid=7", "Warning: purging the environment.",
	"mx1 exim[7]: H=[192.0.2.1] rejected EHLO", "mx1 :: x", "mx1  dovecot: x", "auth(u,192.0.2.1): x",
	"imap-login: Info: Login: user=<u>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2", "mx dovecot: auth: sql(u,192.0.2.1): unknown user", "h authenticator failed for [192.0.2.1]: 535 Incorrect authentication data",
}

func TestQuad(t *testing.T) {
	rnd := rand.New(rand.NewPCG(9, 10))
	read := 0
	for range 200_000 {
		b := fmt.Appendf([]byte{"[09."[rnd.IntN(4)]}, "%d.%d.%d.%d", rnd.IntN(300), rnd.IntN(300)/3, rnd.IntN(300)/30, rnd.IntN(300))
		for range rnd.IntN(3) {
			i := rnd.IntN(len(b))
			b[i] = ".0]x"[rnd.IntN(4)]
		}
		b = append(b, "] 550 5.1.1 <"[:rnd.IntN(13)]...)
		var got, want [4]byte
		n := dotted(b[1:], &want)
		if at := quad(b, &got); at != 0 && (at != n+1 || got != want) || at == 0 && n > 0 && n+1 < len(b) && len(b) > 8 {
			t.Fatalf("%q: %d %v, want %d %v", b, at-1, got, n, want)
		} else if at > 0 {
			read++
		}
	}
	if read < 20_000 {
		t.Errorf("only %d were read", read)
	}
}

// TestWords: what is looked for eight bytes at a time is found where it is.
func TestWords(t *testing.T) {
	rnd := rand.New(rand.NewPCG(11, 12))
	pieces := []string{"<", ">", ">: ", "\"", "\\", "; from=<", " to=<", ",to=<", ";", "gREYlist", "grey", "g", "x", "y>)", ")", "quota", "Q", "user@example.org", "@", "A", "\xc0", "\x1c", "\x5e"}
	for range 60_000 {
		var b []byte
		for range rnd.IntN(12) {
			b = append(b, pieces[rnd.IntN(len(pieces))]...)
		}
		if got, want := indexFrom(b), bytes.Index(b, []byte("; from=<")); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		if got, want := indexTo(b), bytes.Index(b, []byte(" to=<")); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		want := bytes.IndexAny(b, "<>")
		if want < 0 {
			want = len(b)
		}
		if got := angle(b); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		if got, want := lastAt(b), bytes.LastIndexByte(b, '@'); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		for _, word := range []string{" to=<", "g", "tag"} {
			if got, want := last(b, word), bytes.LastIndex(b, []byte(word)); got != want {
				t.Fatalf("%q in %q: %d, want %d", word, b, got, want)
			}
		}
		for _, word := range []string{" to=<", "grey", ">: "} {
			if got, want := last2(b, word), bytes.LastIndex(b, []byte(word)); got != want {
				t.Fatalf("%q in %q: %d, want %d", word, b, got, want)
			}
		}
		if got, want := endOf(b, "y>)"), bytes.Index(b, []byte("y>)")); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		small := make([]byte, len(b))
		for _, word := range []string{"greylist", "quota", "user"} {
			if got, want := index(b, word), bytes.Index(small[:lower(small, b)], []byte(word)); got != want {
				t.Fatalf("%q in %q: %d, want %d", word, b, got, want)
			}
		}
		if n := echo(b); n > 0 && (!bytes.HasSuffix(b[:n], []byte(">: ")) || bytes.ContainsAny(b[1:n-3], "<>\"\\")) {
			t.Fatalf("%q: %d", b, n)
		}
	}
}

// TestEventCopy: copy knows all fields.
func TestEventCopy(t *testing.T) {
	want := Event{Kind: Connect, Source: client1, Time: corpusRef, Count: 2, MTA: Exim, Submission: true, Automatic: true, Temporary: true, Midway: true, Undone: true, User: 3}
	for v, i := reflect.ValueOf(want), 0; i < v.NumField(); i++ {
		if v.Field(i).IsZero() {
			t.Errorf("fill in %s", v.Type().Field(i).Name)
		}
	}
	var got Event
	if got.copy(&want); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestClasses(t *testing.T) {
	for c := range 256 {
		for i := range 8 {
			for _, around := range []uint64{'x' * ones, 0, ^uint64(0), '/' * ones} {
				w := around&^(0xff<<(8*i)) | uint64(c)<<(8*i)
				high := uint64(0x80) << (8 * i)
				if (notAlnum(w)&high == 0) != isAlnum(byte(c)) || (notHost(w)&high == 0) != isHost(byte(c)) {
					t.Fatalf("byte %#x, place %d of %x", c, i, w)
				}
			}
		}
	}
	rnd := rand.New(rand.NewPCG(13, 14))
	for range 20_000 {
		b := bytes.Repeat([]byte("a-Z_0.9"), 3)[:rnd.IntN(22)]
		for range rnd.IntN(3) {
			if len(b) > 0 {
				b[rnd.IntN(len(b))] = " /:@[^`{\x80\x00(,"[rnd.IntN(12)]
			}
		}
		most := rnd.IntN(30)
		if got, want := hostRun(b, most), run(b, aHost, most); got != want {
			t.Fatalf("%q up to %d: %d, want %d", b, most, got, want)
		}
		if got, want := alnumRun(b, most), run(b, anAlnum, most); got != want {
			t.Fatalf("%q up to %d: %d, want %d", b, most, got, want)
		}
	}
}

// TestMessageID: against an expression.
func TestMessageID(t *testing.T) {
	re := regexp.MustCompile(`^[A-Za-z0-9]{6}-(?:[A-Za-z0-9]{6}-[A-Za-z0-9]{2}|[A-Za-z0-9]{11}-[A-Za-z0-9]{4}) `)
	rnd := rand.New(rand.NewPCG(15, 16))
	found := 0
	for range 100_000 {
		b := []byte([]string{"1rgXyz-0001Ab-Cd <= x@example.org", "1rgXyz-00000000Abc-1De2 Completed"}[rnd.IntN(2)])
		for range rnd.IntN(3) {
			b[rnd.IntN(25)] = "-- aZ0_/:\x80"[rnd.IntN(10)]
		}
		b = b[:len(b)-rnd.IntN(len(b))]
		want := len(re.Find(b))
		if got := messageID(b); got != want {
			t.Fatalf("%q: %d, want %d", b, got, want)
		}
		if want > 0 {
			found++
		}
	}
	if found < 20_000 {
		t.Errorf("only %d are ids", found)
	}
}

// checkRefusal: what plainRefusal reads is what eximHost reads, and names the sender and the recipient that are found by
// their marks.
func checkRefusal(t *testing.T, b []byte) bool {
	var got, want Event
	from, to, text, ok := plainRefusal(b, &got)
	if !ok {
		return false
	}
	if !eximHost(b, &want) || got != want {
		t.Errorf("%q: %+v, want %+v", b, got, want)
	}
	s, _ := behind(b, markSender)
	r, _ := behind(b, markRcpt)
	if !bytes.Equal(from, upTo(s)) || !bytes.Equal(to, upTo(r)) || !bytes.HasSuffix(r, text) {
		t.Errorf("%q: from %q to %q, then %q", b, from, to, text)
	}
	for _, trap := range []*Traps{corpusTraps, trapsOf("a@example.org", "b@example.org")} {
		if got, want := trap.match(to) || trap.behind(text, markRcpt), trap.match(upTo(r)) || trap.behind(r, markRcpt); got != want {
			t.Errorf("%q: a trap: %v, want %v", b, got, want)
		}
	}
	return true
}

func refusals() (list [][]byte) {
	for _, fields := range []string{"", " I=[192.0.2.9]:587", " X=TLS1.3:x:256 CV=no", ` X=TLS1.3:x:256 CV=no DN="CN=x"`, " U=a<b", " L.", " K I=[192.0.2.9]:25"} {
		for _, rest := range []string{
			" F=<s@example.com> rejected RCPT <a@example.org>: Unrouteable address", " F=<> temporarily rejected RCPT <a@example.org>: greylisted for a minute",
			` F=<"x> rejected RCPT <a@example.org>: "@example.com> rejected RCPT <b@example.org>: Unknown user`, " F=<s@example.com> rejected RCPT <a@example.org>: x rejected RCPT <b@example.org>: y",
			" F=<s@example.com> rejected RCPT <a@example.org>", " F=<s> rejected RCPT b@example.org: no", " F=<s@example.com> rejected after DATA: spam", " sender verify fail for <x>: no",
		} {
			list = append(list, []byte(fields+rest))
		}
	}
	return list
}

func TestPlainRefusal(t *testing.T) {
	rnd := rand.New(rand.NewPCG(17, 18))
	read := 0
	list := refusals()
	for range 60_000 {
		b := bytes.Clone(list[rnd.IntN(len(list))])
		for range rnd.IntN(3) {
			b[rnd.IntN(len(b))] = "<>\"\\ =:FI@"[rnd.IntN(10)]
		}
		if checkRefusal(t, b[:len(b)-rnd.IntN(len(b)+1)*rnd.IntN(2)]) {
			read++
		}
	}
	if read < 2_000 {
		t.Errorf("only %d were read", read)
	}
}

func FuzzPlainRefusal(f *testing.F) {
	for _, b := range refusals() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkRefusal(t, b) })
}

// TestLoginTable: against maps.
func TestLoginTable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(19, 20))
	var got logins
	young, old := map[[16]byte]login{}, map[[16]byte]login{}
	for i := range 100_000 {
		addr := netip.AddrFrom4([4]byte{10, 0, byte(rnd.IntN(40)), byte(rnd.IntN(256))}).As16()
		if i%3 == 0 {
			addr = netip.AddrFrom16([16]byte{0x20, 1, 7: byte(rnd.IntN(20)), 15: byte(rnd.IntN(200))}).As16()
		}
		want, ok := young[addr]
		if !ok {
			if want = old[addr]; len(young) == loginSources {
				young, old = map[[16]byte]login{}, young
			}
		}
		l := got.of(addr)
		if *l != want || len(got.young.list) > loginSources {
			t.Fatalf("%d: %+v, want %+v", i, *l, want)
		}
		l.at, l.owed[1] = int64(i), uint16(i)
		young[addr] = *l
	}
	if len(got.young.list) != len(young) || len(got.old.list) != len(old) || len(old) != loginSources {
		t.Errorf("%d and %d, want %d and %d", len(got.young.list), len(got.old.list), len(young), len(old))
	}
}
