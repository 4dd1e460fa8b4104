package dnslist

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestPattern(t *testing.T) {
	for _, c := range []struct{ pattern, yes, no string }{
		{"127.0.0.2", "127.0.0.2", "127.0.0.3 127.0.1.2 ::ffff:127.0.0.2"},
		{"127.0.0.[2..11]", "127.0.0.2 127.0.0.11", "127.0.0.1 127.0.0.12"},
		{"127.0.[1;3].[0..3;7]", "127.0.1.0 127.0.3.7", "127.0.2.0 127.0.1.4"},
		{"127.[0..255].[0..255].[0..255]", "127.255.255.255", "128.0.0.1"},
	} {
		p, err := ParsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		for _, a := range strings.Fields(c.yes) {
			if !p.Match(addr(a)) {
				t.Errorf("%s does not match %s", c.pattern, a)
			}
		}
		for _, a := range strings.Fields(c.no) {
			if p.Match(addr(a)) {
				t.Errorf("%s matches %s", c.pattern, a)
			}
		}
	}
	for _, s := range []string{"", "127", "127.0.0", "127.0.0.2.3", "127.0.0.256", "127.0.0.[2..", "127.0.0.[]", "127.0.0.[5..2]", "127.0.0.[1;]", "127.0.0.-1", "1.2.3.4",
		"[126..127].0.0.2", "127.0.0.2 ", "127.0.0.+2", "127.0.0.[2..3..4]", strings.Repeat("1", 600)} {
		if _, err := ParsePattern(s); err == nil {
			t.Errorf("%.40q is taken", s)
		}
	}
}

func TestParseSite(t *testing.T) {
	for _, c := range []struct {
		text, code string
		want       float64
	}{
		{"bl.example.net", "127.0.0.2", 35},
		{"bl.example.net", "127.255.255.254", 0},
		{"bl.example.net*3", "127.9.9.9", 105},
		{"bl.example.net=127.0.0.[2..11]*3", "127.0.0.11", 105},
		{"bl.example.net=127.0.0.[2..11]*3", "127.0.0.12", 0},
		{"wl.example.net=127.0.[0..255].3*-2", "127.0.9.3", -70},
		{"zen.spamhaus.org", "127.0.0.10", 0},
		{"zen.spamhaus.org", "127.0.0.4", 60},
		{"zen.spamhaus.org=127.0.0.[10..11]", "127.0.0.10", 35}, // who asks for it gets it
	} {
		l, err := ParseSite(c.text)
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
			continue
		}
		if got, _ := l.Points([]netip.Addr{addr(c.code)}); got != c.want {
			t.Errorf("%s: %s counts %v, want %v", c.text, c.code, got, c.want)
		}
	}
	for _, s := range []string{"", "example", "bl.example.net*", "bl.example.net*0", "bl.example.net*1.5", "bl.example.net*99", "bl.example.net=", "bl..net", "bl.exa mple.net", strings.Repeat("a.", 600)} {
		if l, err := ParseSite(s); err == nil {
			t.Errorf("%.40q is taken: %+v", s, l.Zone)
		}
	}
}

// Every preset: its error codes are errors, its words are there, and no code is counted twice.
func TestPresets(t *testing.T) {
	for _, name := range Presets() {
		l, err := NewList(name)
		if err != nil {
			t.Fatal(err)
		}
		answers := map[string]string{"dnsbl.dronebl.org": "127.0.0.1 127.0.0.255", "hostkarma.junkemailfilter.com": "127.0.0.1", "bl.score.senderscore.com": "127.0.0.1"}[name]
		for _, e := range []string{"127.255.255.250", "127.255.255.251", "127.255.255.252", "127.255.255.253", "127.255.255.254", "127.255.255.255", "127.0.0.255", "127.0.1.255", "127.0.2.255", "127.0.0.1"} {
			if _, hint, bad := l.ErrorCode(addr(e)); bad == slices.Contains(strings.Fields(answers), e) || bad && hint == "" {
				t.Errorf("%s: %s is an error: %t", name, e, bad)
			}
		}
		for b := range 256 {
			n := 0
			for i := range l.Codes {
				if l.Codes[i].Pattern.Match(netip.AddrFrom4([4]byte{127, 0, 0, byte(b)})) {
					n++
				}
			}
			if n > 1 {
				t.Errorf("%s: 127.0.0.%d matches %d codes", name, b, n)
			}
		}
	}
	// What the lists themselves say (docs.spamhaus.com zones; mailspike.org; dnswl.org; dronebl.org/classes): the sign of each code.
	for name, want := range map[string]string{
		"zen.spamhaus.org": "1:e 2:+ 3:+ 4:+ 5:0 7:0 9:+ 10:0 11:0 30:+ 255:e", "zen.dq.spamhaus.net": "2:+ 3:+ 4:+ 9:+ 10:0 11:0 30:+", "authbl.dq.spamhaus.net": "20:+ 2:0",
		"bl.spamcop.net": "2:+ 3:0", "psbl.surriel.com": "2:+", "b.barracudacentral.org": "2:+", "dnsbl-1.uceprotect.net": "2:+", "bl.blocklist.de": "2:+ 15:+ 22:+",
		"rep.mailspike.net": "10:+ 11:+ 12:+ 13:0 14:0 15:0 16:0 17:- 18:- 19:- 20:-", "dnsbl.dronebl.org": "1:0 3:+ 5:0 8:+ 9:+ 13:+ 14:0 255:0",
		"list.dnswl.org": "0.255:e 2.0:0 2.1:- 5.2:- 10.3:- 15.0:0 16.3:0 1.3:0", "score.senderscore.com": "4.5:+ 4.20:+ 4.50:0 4.85:- 4.100:-",
	} {
		l, err := NewList(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range strings.Fields(want) {
			tail, sign, _ := strings.Cut(w, ":")
			if !strings.Contains(tail, ".") {
				tail = "0." + tail
			}
			a := addr("127.0." + tail)
			is := "0"
			if _, _, bad := l.ErrorCode(a); bad {
				is = "e"
			} else if p, _ := l.Points([]netip.Addr{a}); p > 0 {
				is = "+"
			} else if p < 0 {
				is = "-"
			}
			if is != sign {
				t.Errorf("%s: %s is %s, want %s", name, a, is, sign)
			}
		}
	}
	zen, _ := NewList("zen.spamhaus.org")
	if p, w := zen.Points([]netip.Addr{addr("127.0.0.2"), addr("127.0.0.4"), addr("127.0.0.10"), addr("127.0.0.77")}); p != 140 || w != "SBL, XBL, PBL" {
		t.Errorf("%v %q", p, w)
	}
}

func TestQueryName(t *testing.T) {
	for a, want := range map[string]string{
		"192.0.2.10":       "10.2.0.192.bl.example.net.",
		"2001:db8::1":      "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.bl.example.net.",
		"::ffff:127.0.0.2": "2.0.0.0.0.0.f.7.f.f.f.f." + strings.Repeat("0.", 20) + "bl.example.net.", // RFC 5782 5: not 127.0.0.2
	} {
		if got := queryName(addr(a), "bl.example.net"); got != want {
			t.Errorf("%s: %s", a, got)
		}
	}
	if m := mapped(testListed); m.Is4() || m.String() != "::ffff:127.0.0.2" {
		t.Errorf("%s", m)
	}
}

func TestKey(t *testing.T) {
	l, err := NewList("zen.dq.spamhaus.net")
	if err != nil {
		t.Fatal(err)
	}
	if err := l.LoadKey(); err == nil {
		t.Error("no key, no error")
	}
	l.KeyFile = filepath.Join(t.TempDir(), "key")
	write := func(s string, mode os.FileMode) error {
		if err := os.WriteFile(l.KeyFile, []byte(s), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.KeyFile, mode); err != nil {
			t.Fatal(err)
		}
		return l.LoadKey()
	}
	const key = "abcdefghijklmnopqrstuvwxyz"
	for _, bad := range []string{"", "a.b.c.d", "ab", "key with blanks", strings.Repeat("k", 64)} {
		if err := write(bad, 0o600); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if err := write(key, 0o644); err == nil || strings.Contains(err.Error(), key) {
		t.Errorf("a key everybody can read: %v", err)
	}
	if err := write(" "+strings.ToUpper(key)+"\nsecond line\n", 0o640); err != nil {
		t.Fatal(err)
	}
	if l.suffix() != key+".zen.dq.spamhaus.net" || strings.Contains(l.Name, key) {
		t.Errorf("%s", l.suffix())
	}
	if s := l.redact("see " + strings.ToUpper(key) + ".zen and " + key); s != "see ***.zen and ***" {
		t.Errorf("%q", s)
	}
}

// FuzzSite: no text makes the parsers panic, and whatever they take counts no error code and nothing outside 127/8.
func FuzzSite(f *testing.F) {
	for _, s := range []string{"zen.spamhaus.org", "bl.example.net=127.0.0.[2..11]*3", "bl.example.net=127.[0..255].[0;1].[2..3;9]*-2", "x.y*1", "a.b=[127].0.0.1"} {
		f.Add(s)
	}
	outside := []netip.Addr{addr("1.2.3.4"), addr("126.0.0.2"), addr("128.0.0.2"), addr("0.0.0.0"), addr("::1")}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseSite(s)
		if err != nil {
			return
		}
		if _, ok := dns.IsDomainName(queryName(addr("2001:db8::1"), l.suffix())); !ok {
			t.Fatalf("%q: the zone %q makes no name", s, l.Zone)
		}
		if p, _ := l.Points(outside); p != 0 {
			t.Fatalf("%q: %v points outside 127/8", s, p)
		}
		for _, e := range []string{"127.255.255.254", "127.0.0.255"} {
			if _, _, bad := l.ErrorCode(addr(e)); !bad {
				t.Fatalf("%q: %s is no error", s, e)
			}
		}
	})
}

// FuzzAnswer: whatever records a list answers with, only codes of 127/8 that are no error get through, and few of them.
func FuzzAnswer(f *testing.F) {
	f.Add([]byte{127, 0, 0, 2})
	f.Add([]byte{127, 0, 0, 2, 127, 255, 255, 254})
	f.Add([]byte{91, 195, 240, 87})
	l, err := NewList("zen.spamhaus.org")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var ans resolve.Answer
		spoiled := len(b)/4 > maxAnswers
		for i := 0; i+4 <= len(b); i += 4 {
			ans.Records = append(ans.Records, &dns.A{A: append([]byte(nil), b[i:i+4]...)})
			a := netip.AddrFrom4([4]byte(b[i : i+4]))
			_, _, bad := l.ErrorCode(a)
			spoiled = spoiled || b[i] != 127 || bad
		}
		o := l.read(ans)
		if spoiled != (o.reason != "") || spoiled && len(o.codes) > 0 || len(o.codes) > maxAnswers || o.clean != (len(ans.Records) == 0) {
			t.Fatalf("%v: %+v", b, o)
		}
	})
}
