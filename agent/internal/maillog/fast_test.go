package maillog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"
	"time"
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
	rnd := rand.New(rand.NewPCG(7, 8))
	const odd = " :[]<>()Ta0-.\n\r\x00\xff"
	p, seen := New(Options{}), 0
	for i := range 60_000 {
		b := bytes.Clone(lines[(i/2+rnd.IntN(3))%len(lines)])
		if len(b) > 0 && rnd.IntN(2) == 0 {
			b[rnd.IntN(min(len(b), 70))] = odd[rnd.IntN(len(odd))]
		}
		if rnd.IntN(4) == 0 {
			b = append(b, odd[rnd.IntN(len(odd))])
		}
		var e Event
		p.Parse(b, corpusRef, &e) // the line before may be of the same host
		got, want := header{ref: corpusRef}, header{ref: corpusRef}
		if !p.quick(b, &got) {
			continue
		}
		seen++
		if ok := want.split(b, &p.record); !ok || want.kind != got.kind || want.count != got.count || want.again || want.part || want.mta != got.mta || got.seen != (got.mta == Auto) ||
			!bytes.Equal(want.stamp, got.stamp) || got.seen && string(want.host) != string(p.hosts.text[:p.hosts.n]) || !bytes.Equal(want.tag, got.tag) ||
			!bytes.Equal(want.pid, got.pid) || !bytes.Equal(want.msg, got.msg) || got.seen && roleOf(want.tag) != got.role {
			t.Fatalf("%q: %+v, want %v %+v", b, got, ok, want)
		}
		if at, ok := New(Options{MaxPending: 1}).time(&want, corpusRef); !got.at.IsZero() && (!ok || at != got.at) {
			t.Fatalf("%q: %v, want %v %v", b, got.at, at, ok)
		}
	}
	if seen < 8_000 {
		t.Errorf("only %d lines were read the quick way", seen)
	}
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
	pieces := []string{"<", ">", ">: ", "\"", "\\", "; from=<", " to=<", ",to=<", ";", "gREYlist", "grey", "g", "x", "quota", "Q", "user@example.org", "@", "A", "\xc0", "\x1c", "\x5e"}
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
	want := Event{Kind: Connect, Source: client1, Time: corpusRef, Count: 2, MTA: Exim, Submission: true, Automatic: true, Temporary: true, Midway: true, User: 3}
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
