package maillog

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
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
