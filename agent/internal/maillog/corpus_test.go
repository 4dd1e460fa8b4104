package maillog

import (
	"bytes"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the expected events in testdata")

// corpusRef is when the corpus is read.
var corpusRef = time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)

const corpusSeed = 42

// corpusTraps are the traps of the corpora.
var corpusTraps = trapsOf("honeypot@example.org", "user+tag@example.org", "box-*@example.org", "@trap.example.net")

func trapsOf(list ...string) *Traps {
	t := new(Traps)
	for _, s := range list {
		if err := t.Add(s); err != nil {
			panic(err)
		}
	}
	return t
}

var corpora = []string{"testdata/postfix.txt", "testdata/exim.txt", "testdata/opensmtpd.txt", "testdata/sendmail.txt", "testdata/courier.txt", "testdata/dovecot.txt", "testdata/hostile.txt"}

func describe(e *Event, ok bool) string {
	if !ok {
		return "none"
	}
	s := fmt.Sprintf("%s %s %s", e.Kind, e.Source, e.Time.UTC().Format(time.RFC3339Nano))
	if e.Count != 1 {
		s += fmt.Sprintf(" count=%d", e.Count)
	}
	if e.Submission {
		s += " submission"
	}
	if e.Temporary {
		s += " temporary"
	}
	if e.Automatic {
		s += " automatic"
	}
	if e.Midway {
		s += " midway"
	}
	if e.Undone {
		s += " undone"
	}
	if e.User != 0 {
		s += fmt.Sprintf(" user=%016x", e.User)
	}
	return s
}

const expectMark = "\t= "

// corpus returns the raw lines of a file.
func corpus(t testing.TB, file string) [][]byte {
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]byte
	for _, l := range bytes.Split(b, []byte("\n")) {
		if len(l) > 0 && l[0] != '#' && !bytes.HasPrefix(l, []byte(expectMark)) {
			lines = append(lines, l)
		}
	}
	return lines
}

func TestCorpus(t *testing.T) {
	for _, file := range corpora {
		t.Run(file, func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := New(Options{Seed: corpusSeed, Traps: corpusTraps})
			var out []string
			got, raw, cases := "", "", 0
			for i, l := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
				if want, ok := strings.CutPrefix(l, expectMark); ok {
					if !*update && want != got {
						t.Errorf("%s:%d:\nline %s\nwant %s\ngot  %s", file, i+1, raw, want, got)
					}
					got = ""
					continue
				}
				if got != "" && !*update {
					t.Errorf("%s:%d: no expectation for %s", file, i+1, raw)
				}
				got = ""
				out = append(out, l)
				if l == "" || l[0] == '#' {
					continue
				}
				var e Event
				ok := p.Parse([]byte(l), corpusRef, &e)
				raw, got = l, describe(&e, ok)
				out = append(out, expectMark+got)
				cases++
				if ok && e.Source == netip.MustParseAddr("198.51.100.9") {
					t.Errorf("%s:%d: an innocent is blamed: %s", file, i+1, l)
				}
			}
			if cases < 20 {
				t.Errorf("only %d lines", cases)
			}
			if *update {
				if err := os.WriteFile(file, []byte(strings.Join(out, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestNoAllocations(t *testing.T) {
	var lines [][]byte
	for _, file := range corpora {
		lines = append(lines, corpus(t, file)...)
	}
	p := New(Options{Seed: corpusSeed, Traps: corpusTraps, Recipients: true})
	var e Event
	for _, l := range lines { // the tables are made at their first use
		p.Parse(l, corpusRef, &e)
	}
	for _, l := range lines {
		if n := testing.AllocsPerRun(20, func() { p.Parse(l, corpusRef, &e) }); n != 0 {
			t.Errorf("%v allocations for %s", n, l)
		}
	}
}

// TestCutLines: a line may end anywhere. In any part of a line of the corpora, beginning anywhere too, there is no panic.
func TestCutLines(t *testing.T) {
	p := New(Options{Seed: corpusSeed, MaxPending: 64, Traps: corpusTraps, Recipients: true})
	var e Event
	for _, file := range corpora {
		for _, l := range corpus(t, file) {
			l = l[:min(len(l), 300)]
			for i := range l {
				p.Parse(l[:i], corpusRef, &e)
				if i < 60 {
					p.Parse(l[i:], corpusRef, &e)
				}
			}
		}
	}
}

// TestZeroBytes: a file that was cut off by a power failure.
func TestZeroBytes(t *testing.T) {
	const line = "Mar  2 10:00:00 mx1 postfix/smtpd[1]: connect from mail.example.net[192.0.2.1]"
	for zeros, want := range map[string]bool{"\x00": true, strings.Repeat("\x00", 5000): true, "\x00x": false, "\x00\xef\xbb\xbf\x00": false} {
		var e Event
		if got := New(Options{}).Parse([]byte(zeros+line), corpusRef, &e); got != want {
			t.Errorf("behind %d bytes: %v", len(zeros), got)
		}
	}
	if New(Options{}).Parse(make([]byte, 100), corpusRef, new(Event)) {
		t.Error("an event of nothing")
	}
}

func TestNewYear(t *testing.T) {
	berlin := time.FixedZone("CET", 3600)
	for _, c := range []struct{ stamp, ref, want string }{
		{"Dec 31 23:59:58", "2026-01-01T00:00:02+01:00", "2025-12-31T23:59:58+01:00"},
		{"Jan  1 00:00:05", "2025-12-31T23:59:58+01:00", "2026-01-01T00:00:05+01:00"},
		{"Jan  1 00:00:05", "2026-12-31T00:00:04+01:00", "2026-01-01T00:00:05+01:00"},
		{"Jun  1 00:00:05", "2026-05-01T00:00:00+01:00", "2025-06-01T00:00:05+01:00"},
		{"Feb 29 12:00:00", "2026-05-01T00:00:00+01:00", "2024-02-29T12:00:00+01:00"},
		{"Feb 29 12:00:00", "2024-02-29T13:00:00+01:00", "2024-02-29T12:00:00+01:00"},
	} {
		p := New(Options{})
		ref, err := time.Parse(time.RFC3339, c.ref)
		if err != nil {
			t.Fatal(err)
		}
		line := []byte(c.stamp + " mx postfix/smtpd[1]: connect from a[192.0.2.1]")
		var e Event
		for range 2 { // the second time from the cache
			if !p.Parse(line, ref.In(berlin), &e) || e.Time.Format(time.RFC3339) != c.want {
				t.Errorf("%s read at %s: %v, want %s", c.stamp, c.ref, e.Time, c.want)
			}
		}
	}
	// The cache must not hand a stamp's year to a read a year later.
	p, line := New(Options{}), []byte("Mar  2 10:00:00 mx postfix/smtpd[1]: connect from a[192.0.2.1]")
	var e Event
	for y := 2026; y < 2030; y++ {
		p.Parse(line, corpusRef.AddDate(y-2026, 0, 0), &e)
		if e.Time.Year() != y {
			t.Errorf("read in %d: %v", y, e.Time)
		}
	}
}

func TestParseMessage(t *testing.T) {
	p := New(Options{})
	var e Event
	if !p.ParseMessage([]byte("postfix/submission/smtpd"), nil, []byte("connect from a[192.0.2.1]"), corpusRef, &e) ||
		e.Kind != Connect || !e.Submission || !e.Time.Equal(corpusRef) {
		t.Errorf("got %+v", e)
	}
}

// TestUserHash: the same name in any case is the same user, under the same seed only.
func TestUserHash(t *testing.T) {
	p, q := New(Options{Seed: 1}), New(Options{Seed: 2})
	if p.userHash([]byte("Alice")) != p.userHash([]byte("aLICE")) || p.userHash([]byte("alice")) == p.userHash([]byte("alicf")) ||
		p.userHash([]byte("alice")) == q.userHash([]byte("alice")) || p.userHash(nil) != 0 {
		t.Error("user hash")
	}
}

func TestKindNames(t *testing.T) {
	for k := None; k < NumKinds; k++ {
		if got, ok := ParseKind(k.String()); !ok || got != k {
			t.Errorf("kind %d is %q and back %d", k, k, got)
		}
	}
}
