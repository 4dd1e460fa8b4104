package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/scripts/loggen/traffic"
	"github.com/mxshield/mxshield/scripts/seeds"
)

// sampleLog is an attacker with 14 unknown recipients and one message in, an honest sender with a typo, a source that the
// config allows, and one that a list rejects.
func sampleLog() string {
	var b strings.Builder
	at := time.Date(2025, 12, 31, 23, 59, 50, 0, time.UTC)
	line := func(format string, args ...any) {
		fmt.Fprintf(&b, "%s mx1 postfix/%s\n", at.Format(time.Stamp), fmt.Sprintf(format, args...))
		at = at.Add(time.Second)
	}
	reject := func(a string) {
		line("smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>", a)
	}
	accept := func(q, a string) {
		line("smtpd[7]: %s: client=unknown[%s]", q, a)
		line("qmgr[8]: %s: from=<s@example.net>, size=300, nrcpt=1 (queue active)", q)
	}
	accept("4A0000000001", "203.0.113.10")
	reject("203.0.113.10")
	for i := range 14 {
		reject("198.18.0.1")
		reject("198.18.8.8")
		if i < 4 {
			line("smtpd[7]: NOQUEUE: reject: RCPT from unknown[198.18.0.2]: 554 5.7.1 Service unavailable; Client host [198.18.0.2] blocked using zen.example; from=<s@example.net> to=<user1@example.org> proto=ESMTP helo=<h>")
		}
	}
	accept("4A0000000002", "198.18.0.1")
	return b.String()
}

func runReplay(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	t.Setenv("TZ", "UTC")
	dir := t.TempDir()
	conf := filepath.Join(dir, "conf.yaml")
	if err := os.WriteFile(conf, []byte("allow: [198.18.8.0/24]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "mail.log")
	if err := os.WriteFile(log, []byte(sampleLog()), 0o600); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write([]byte(sampleLog())); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log+".gz", z.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	mtime := time.Date(2026, 1, 1, 0, 5, 0, 0, time.UTC)
	for _, p := range []string{log, log + ".gz"} {
		if err := os.Chtimes(p, mtime, mtime); err != nil {
			t.Fatal(err)
		}
	}
	for i, a := range args {
		args[i] = strings.ReplaceAll(a, "LOG", log)
	}
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"mxshield-agent", "--config", conf, "replay"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

func TestReplay(t *testing.T) {
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	first := ""
	for _, form := range [][]string{{"-o", "json", "LOG"}, {"-o", "json", "LOG.gz"}} {
		out, errs, code := runReplay(t, form...)
		if code != 0 || errs != "" {
			t.Fatalf("%v: exit %d, %s", form, code, errs)
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if len(lines) != 2 || !strings.Contains(lines[0], `"prefix":"198.18.0.1/32","cause":"dictionary","scope":"mx"`) ||
			!strings.Contains(lines[0], `"offences_later":4,"accepted":1`) || !strings.Contains(lines[1], `"blocks":1,"blocks_with_accepted_mail":1,"never_blocked":1`) {
			t.Errorf("%v:\n%s", form, out)
		}
		switch {
		case form[len(form)-1] == "LOG" && first == "":
			first = lines[0]
			if !strings.Contains(first, `"first":"2025-12-31T23:59:53Z"`) || !strings.Contains(first, `"at":"2026-01-01T00:00`) {
				t.Errorf("the year of a stamp without one: %s", first)
			}
		case form[len(form)-1] == "LOG.gz" && lines[0] != first:
			t.Errorf("packed, the same file gives\n%s, not\n%s", lines[0], first)
		}
	}
	out, _, _ := runReplay(t, "-o", "json", "--year", "2024", "LOG")
	if !strings.Contains(out, `"at":"2024-01-01T00:00`) {
		t.Errorf("--year 2024:\n%s", out)
	}
	out, _, _ = runReplay(t, "LOG")
	if !strings.Contains(out, "198.18.0.1  dictionary") || !strings.Contains(out, "1 blocks, 1 of them with accepted mail") || strings.Contains(out, "198.18.8.8") {
		t.Errorf("%s", out)
	}
	if out, _, _ = runReplay(t, "--trust-lists", "LOG"); !strings.Contains(out, "198.18.0.2  dnsbl") {
		t.Errorf("%s", out)
	}
}

func TestReplayEvents(t *testing.T) {
	out, _, code := runReplay(t, "--events", "-o", "json", "LOG")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || lines[0] != `{"line":2,"source":"203.0.113.10","event":"delivered"}` || lines[1] != `{"line":3,"source":"203.0.113.10","event":"unknown_recipient"}` {
		t.Errorf("exit %d\n%s", code, out)
	}
	if out, errs, code := runReplay(t, "--events", "--mta", "exim", "LOG"); out != "" || code != 0 || !strings.Contains(errs, "note: of 37 lines none is an event") {
		t.Errorf("a Postfix log read as Exim's: exit %d, %s\n%s", code, errs, out)
	}
	if out, _, _ := runReplay(t, "--events", "LOG", "LOG.gz"); !strings.Contains(out, `mail.log.gz" 3 203.0.113.10 unknown_recipient 1`) {
		t.Errorf("%s", out)
	}
}

func TestReplayFaults(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, 2, "needs a FILE"}, {[]string{"-o", "xml", "LOG"}, 2, "xml"}, {[]string{"--year", "7", "LOG"}, 2, "out of range"},
		{[]string{"--mta", "qmail", "LOG"}, 2, "qmail"},
		{[]string{"LOG.none"}, 1, "no such file"}, {[]string{"/"}, 1, "directory"}, {[]string{"--frob"}, 2, "frob"},
	} {
		if _, errs, code := runReplay(t, c.args...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%q: exit %d, %q", c.args, code, errs)
		}
	}
}

// TestReplayLongLine: a line of ten megabytes costs no more memory than others, and the next one is read.
func TestReplayLongLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	line, _, _ := strings.Cut(sampleLog(), "\n")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 10<<20)+"\n"+strings.Replace(line, "4A0000000001: client=", "connect from ", 1)+"\nno newline"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := runReplay(t, "--events", path)
	if code != 0 || !strings.HasPrefix(out, "2 203.0.113.10 connect") {
		t.Errorf("exit %d, %q", code, out)
	}
}

// TestReplayIdleEvents: events that change nothing are left out, and the answer is the same, also where stamps go back, and
// where a config makes such an event count.
func TestReplayIdleEvents(t *testing.T) {
	seed := seeds.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	l, err := traffic.New(traffic.Options{Seed: seed, Lines: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	for range len(l.Lines) / 3 {
		i := rnd.IntN(len(l.Lines))
		j := min(i+rnd.IntN(3000), len(l.Lines)-1)
		l.Lines[i], l.Lines[j] = l.Lines[j], l.Lines[i]
	}
	text := strings.Join(l.Lines, "\n")
	for _, connect := range []float64{0, 1} {
		cfg := config.Default()
		cfg.Weights[maillog.Connect] = connect
		var last string
		for _, all := range []bool{true, false} {
			var out bytes.Buffer
			r, err := newReplay(cfg, replayOptions{files: []string{"-"}, json: true}, strings.NewReader(text), &out, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if r.idle[maillog.Connect] != (connect == 0) || !r.idle[maillog.Disconnect] || r.idle[maillog.Delivered] {
				t.Fatalf("weight %v: %v", connect, r.idle)
			}
			if all {
				r.idle = [maillog.NumKinds]bool{}
			}
			if err := r.run(); err != nil {
				t.Fatal(err)
			}
			got, _, _ := strings.Cut(out.String(), `,"seconds":`)
			if len(r.blocks) == 0 || !all && got != last {
				t.Fatalf("weight %v, %d blocks: without idle events\n%s\nnot\n%s", connect, len(r.blocks), got, last)
			}
			last = got
		}
	}
}

// TestReplayUndone: what a milter of Sendmail throws away is no credit in a replay either, though the line is of a kind that changes
// nothing.
func TestReplayUndone(t *testing.T) {
	var lines []string
	say := func(i int, format string, a ...any) {
		lines = append(lines, fmt.Sprintf("2026-03-02T%02d:%02d:00Z mx1 sm-mta[7]: 622A%06d012345: ", 10+i/60, i%60, i)+fmt.Sprintf(format, a...))
	}
	for i := range 60 {
		say(i, "from=<s@example.com>, size=25, class=0, nrcpts=1, msgid=<%d@example.com>, proto=ESMTP, daemon=MTA-v4, relay=[198.18.0.1]", i)
		say(i, "Milter: data, discard")
	}
	for i := range 20 {
		say(60, "ruleset=check_rcpt, arg1=<x%d@example.org>, relay=[198.18.0.1], reject=550 5.1.1 <x%d@example.org>... User unknown", i, i)
	}
	r := replayedLines(t, lines)
	if len(r.blocks) != 1 || r.blocks[0].Later != 10 || r.blocks[0].Accepted != 0 {
		t.Errorf("%d blocks: %+v", len(r.blocks), r.blocks)
	}
}

// TestReplayBlockJSON: as encoding/json writes it.
func TestReplayBlockJSON(t *testing.T) {
	at := time.Date(2026, 3, 2, 10, 0, 0, 123456000, time.UTC)
	for _, after := range []float64{0, 1, 0.000001, 1e-9, 5e-7, 41.123456, 1e6, 86399.999999, 3e9} {
		for _, evidence := range []string{"", "10 unknown recipients, 0 accepted, in 41 s", "3 failed logins (about 3 names), 0 accepted; on other nodes 20 points, 1 accepted", `a "b" \ <c> & é` + "\x01\x7f\xff"} {
			b := replayBlock{Prefix: netip.MustParsePrefix("2001:db8::/64"), Cause: block.Dictionary, Scope: block.ScopeMX, At: at, First: at.Truncate(time.Second),
				After: after, Until: at.Add(72 * time.Hour).Truncate(time.Second), Evidence: evidence, Later: 3, Accepted: 1}
			want, err := json.Marshal(b)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.append(nil); string(got) != string(want)+"\n" {
				t.Errorf("got  %swant %s", got, want)
			}
		}
	}
}

// TestReplayBlockOf: the block of a source is found as in the map of all of them.
func TestReplayBlockOf(t *testing.T) {
	r, err := newReplay(config.Default(), replayOptions{json: true}, nil, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"198.18.0.7/32", "198.18.1.0/24", "2001:db8::/64", "2001:db8:1:200::/56", "2001:db8:2::/48", "0.0.0.0/24", "255.255.255.0/24"} {
		p := netip.MustParsePrefix(text)
		r.blocks = append(r.blocks, &replayBlock{Prefix: p, Later: i})
		r.block(r.blocks[i], i%2 == 1 || i > 2)
	}
	rnd := rand.New(rand.NewPCG(seeds.Of(t), 2))
	found := map[*replayBlock]int{}
	for range 200_000 {
		a := netip.AddrFrom4([4]byte{byte(198 * rnd.IntN(2)), byte(18 * rnd.IntN(2)), byte(rnd.IntN(3)), byte(rnd.IntN(256))})
		switch rnd.IntN(3) {
		case 0:
			a = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 5: byte(rnd.IntN(4)), 6: byte(rnd.IntN(4)), 7: byte(rnd.IntN(2)), 15: byte(rnd.IntN(256))})
		case 1:
			a = netip.AddrFrom4([4]byte{255, 255, byte(254 + rnd.IntN(2)), byte(rnd.IntN(256))})
		}
		var want *replayBlock
		for _, b := range r.blocks {
			if b.Prefix.Contains(a) {
				want = b
			}
		}
		if got := r.blockOf(a); got != want {
			t.Fatalf("%v: %+v, want %+v", a, got, want)
		}
		found[want]++
	}
	if len(found) != len(r.blocks)+1 {
		t.Errorf("only %d of them were asked for", len(found))
	}
}
