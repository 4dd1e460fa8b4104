package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/agent/internal/tail"
	"github.com/mxshield/mxshield/agent/internal/verdict"
)

// hangs is a resolver that never answers.
type hangs struct{ asked chan struct{} }

func (h hangs) Lookup(ctx context.Context, _ string, _ uint16) (resolve.Answer, error) {
	select {
	case h.asked <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return resolve.Answer{}, &resolve.Error{Kind: resolve.Timeout}
}

func (h hangs) Fresh(ctx context.Context, n string, t uint16) (resolve.Answer, error) {
	return h.Lookup(ctx, n, t)
}

func (h hangs) FCrDNS(ctx context.Context, _ netip.Addr) resolve.Names {
	<-ctx.Done()
	return resolve.Names{State: resolve.StateTemporary}
}

// listed answers at once: what says of whom the list speaks.
type listed struct{ what func(a string) string }

func (l listed) Lookup(_ context.Context, n string, _ uint16) (resolve.Answer, error) {
	code := l.what(n)
	if n == "2.0.0.127.bl.example.net." {
		code = "127.0.0.2"
	}
	a := resolve.Answer{TTL: time.Hour, NXDomain: code == ""}
	if code != "" {
		rr, err := dns.NewRR(n + " 60 IN A " + code)
		if err != nil {
			panic(err)
		}
		a.Records = []dns.RR{rr}
	}
	return a, nil
}

func (l listed) Fresh(ctx context.Context, n string, t uint16) (resolve.Answer, error) {
	return l.Lookup(ctx, n, t)
}

func (l listed) FCrDNS(context.Context, netip.Addr) resolve.Names {
	return resolve.Names{State: resolve.StateVerified}
}

// bareDaemon is what take needs, without files, sockets and kernel. r may be nil: no lists.
func bareDaemon(t testing.TB, r dnslist.Resolver, sites ...string) *daemon {
	cfg := config.Default()
	cfg.Senders = nil // nobody answers here for names that verdicts would wait for
	d := &daemon{
		cfg: cfg, log: slog.New(slog.DiscardHandler), mtas: map[string]maillog.MTA{}, pending: map[string][]byte{}, reached: map[string]time.Time{},
		caughtUp: map[string]bool{}, warnings: map[string]string{}, told: map[string]time.Time{}, kick: make(chan struct{}, 1),
		table: block.New(block.Options{Origin: "test"}), samples: new(verdict.Samples),
		scorer: verdict.New(scoring(cfg, liveWeights(cfg.Weights), 1)),
	}
	d.openSenders()
	d.newParser()
	if r != nil {
		var lists []dnslist.List
		for _, s := range sites {
			l, err := dnslist.ParseSite(s)
			if err != nil {
				t.Fatal(err)
			}
			lists = append(lists, l)
		}
		d.hasLists.Store(true)
		d.lists = dnslist.NewEngine(dnslist.Options{Lists: lists, Resolver: r, Found: d.found, Known: d.knownSender, Skip: d.neverBlocked})
		d.seen = d.lists.NewCollector()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { _ = d.lists.Run(ctx); close(done) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	return d
}

// newSources are lines of n sources that were never seen: they connect; in sessions they try a recipient, too, and go.
func newSources(n, round int, sessions bool) *tail.Batch {
	b := &tail.Batch{Input: "file:test", Read: time.Now()}
	stamp := b.Read.Format(time.Stamp)
	for i := range n {
		a := netip.AddrFrom4([4]byte{11 + byte(round), byte(i >> 16), byte(i >> 8), byte(i)})
		b.Lines = append(b.Lines, fmt.Appendf(nil, "%s mx postfix/smtpd[7]: connect from unknown[%s]", stamp, a))
		if sessions {
			b.Lines = append(b.Lines,
				fmt.Appendf(nil, "%s mx postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <info%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<a@example.net> to=<info%d@example.org> proto=ESMTP helo=<mail>", stamp, a, i, i),
				fmt.Appendf(nil, "%s mx postfix/smtpd[7]: disconnect from unknown[%s] ehlo=1 mail=1 rcpt=0/1 quit=1 commands=3/4", stamp, a))
		}
	}
	return b
}

// TestTakeNeverWaits: with a resolver that never answers, ten thousand new sources are read, a few are asked about, the rest is
// dropped and counted. It hangs if the log path waits for DNS.
func TestTakeNeverWaits(t *testing.T) {
	r := hangs{make(chan struct{}, 1)}
	d := bareDaemon(t, r, "bl.example.net")
	d.take(newSources(20_000, 0, false))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s := d.lists.Status()
		if s.Asked+s.Dropped == 20_000 && s.Waiting <= 10_000 && s.Dropped > 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", s)
		}
	}
	if d.events[maillog.Postfix][maillog.Connect] != 20_000 {
		t.Errorf("%d lines were read", d.events[maillog.Postfix][maillog.Connect])
	}
	<-r.asked // and it does ask
}

// lines hands the daemon lines about sources and waits until the engine has dealt with them.
func (d *daemon) lines(t *testing.T, text ...string) {
	t.Helper()
	b := &tail.Batch{Input: "file:test", Read: time.Now()}
	for _, s := range text {
		b.Lines = append(b.Lines, []byte(b.Read.Format(time.Stamp)+" mx postfix/smtpd[7]: "+s))
	}
	d.take(b)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		if s := d.lists.Status(); s.Waiting == 0 && s.Done == s.Asked {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%+v", d.lists.Status())
		}
	}
}

// readLine hands the daemon one line.
func (d *daemon) readLine(text string) {
	now := time.Now()
	d.take(&tail.Batch{Input: "file:test", Read: now, Lines: [][]byte{[]byte(now.Format(time.Stamp) + " mx postfix/smtpd[7]: " + text)}})
}

func rejected(a string) string {
	return fmt.Sprintf("NOQUEUE: reject: RCPT from unknown[%[1]s]: 554 5.7.1 Service unavailable; Client host [%[1]s] blocked using bl.example.net; from=<s@example.com> to=<r@example.org> proto=ESMTP helo=<h>", a)
}

func unknown(a string) string {
	return fmt.Sprintf("NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.com> to=<x@example.org> proto=ESMTP helo=<h>", a)
}

// A rejection by a list counts if our own query says the same, whether it comes before the answer or after it.
func TestRejectionsNeedConfirmation(t *testing.T) {
	r := listed{func(n string) string {
		if n == "1.0.18.198.bl.example.net." || n == "4.0.18.198.bl.example.net." {
			return "127.0.0.3"
		}
		return ""
	}}
	d := bareDaemon(t, r, "bl.example.net=127.0.0.[2..11]")
	many := func(a string, n int) []string { return slices.Repeat([]string{rejected(a)}, n) }
	d.lines(t, many("198.18.0.1", 4)...) // 35 + 4*20
	if !drops(d, "198.18.0.1") {
		t.Error("a confirmed rejection does not block")
	}
	for range 10 {
		d.lines(t, many("198.18.0.2", 50)...)
	}
	if drops(d, "198.18.0.2") {
		t.Error("an unconfirmed rejection blocks")
	}
	d.lines(t, "connect from unknown[198.18.0.4]")
	if drops(d, "198.18.0.4") {
		t.Error("35 points block")
	}
	d.lines(t, many("198.18.0.4", 3)...)
	if drops(d, "198.18.0.4") {
		t.Error("35 points and three rejections block")
	}
	d.lines(t, many("198.18.0.4", 1)...)
	if !drops(d, "198.18.0.4") {
		t.Error("35 points and four rejections do not block")
	}
}

func drops(d *daemon, a string) bool {
	return d.table.Decide(netip.PrefixFrom(netip.MustParseAddr(a), 32), time.Now()).Drop
}

// What the log said hours ago is history: nobody is asked about it.
func TestOldLinesAskNobody(t *testing.T) {
	d := bareDaemon(t, hangs{make(chan struct{}, 1)}, "bl.example.net")
	b := &tail.Batch{Input: "file:test", Read: time.Now()}
	for _, ago := range []time.Duration{3 * time.Hour, 2 * time.Hour} {
		for _, s := range []string{"connect from unknown[198.18.0.1]", rejected("198.18.0.1")} {
			b.Lines = append(b.Lines, []byte(b.Read.Add(-ago).Format(time.RFC3339)+" mx postfix/smtpd[7]: "+s))
		}
	}
	d.take(b)
	if s := d.lists.Status(); s.Asked != 0 || d.events[maillog.Postfix][maillog.DNSBLReject] != 2 {
		t.Errorf("%+v", s)
	}
}

// Who is welcome must offend twice as much.
func TestWelcome(t *testing.T) {
	r := listed{func(n string) string {
		if n == "1.0.18.198.bl.example.net." {
			return "127.0.9.3"
		}
		return ""
	}}
	d := bareDaemon(t, r, "bl.example.net=127.0.[0..15].[2..3]*-3")
	offend := func(a string, n int) {
		d.lines(t, "connect from unknown["+a+"]")
		d.lines(t, slices.Repeat([]string{unknown(a)}, n)...)
	}
	offend("198.18.0.1", 15)
	offend("198.18.0.2", 15)
	if drops(d, "198.18.0.1") || !drops(d, "198.18.0.2") {
		t.Errorf("welcome: %t, unknown: %t", drops(d, "198.18.0.1"), drops(d, "198.18.0.2"))
	}
	offend("198.18.0.1", 10)
	if !drops(d, "198.18.0.1") {
		t.Error("a welcome makes immune")
	}
}

// cpuTime is what a clock of the processor's time says, one of this thread or of the whole process.
func cpuTime(b *testing.B, clock int32) time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkTake reads lines of 10,000 sources that are new, or were seen before, without lists and with three lists that hang:
// connects, the cheapest lines there are, or whole sessions. ratio is how much more of the processor the log path takes with
// lists. It is the time of its thread: what the engine does meanwhile is not waited for, and other processes are left out.
func BenchmarkTake(b *testing.B) {
	spent := func() time.Duration { return cpuTime(b, unix.CLOCK_THREAD_CPUTIME_ID) }
	for _, c := range []struct {
		name           string
		seen, sessions bool
	}{{"lines=connect/sources=new", false, false}, {"lines=connect/sources=seen", true, false}, {"lines=session/sources=new", false, true}} {
		b.Run(c.name, func(b *testing.B) {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var took [2]time.Duration
			lines := 0
			for i := 0; b.Loop(); i++ {
				batch := newSources(10_000, i%100, c.sessions)
				lines += len(batch.Lines)
				for k, r := range []dnslist.Resolver{nil, hangs{make(chan struct{}, 1)}} {
					d := bareDaemon(b, r, "zen.spamhaus.org", "bl.spamcop.net", "psbl.surriel.com")
					d.take(newSources(10_000, 101, c.sessions)) // as an agent that has run for a while
					if c.seen {
						d.take(batch)
					}
					began := spent()
					d.take(batch)
					took[k] += spent() - began
				}
			}
			b.ReportMetric(float64(took[1])/float64(took[0]), "ratio")
			b.ReportMetric(float64(took[0].Nanoseconds())/float64(lines), "ns/line-without")
			b.ReportMetric(float64(took[1].Nanoseconds())/float64(lines), "ns/line-with")
		})
	}
}

// replay --trust-lists takes the MTA's word for a listing, but never a list's error for one.
func TestReplayTrustsNoErrors(t *testing.T) {
	var b strings.Builder
	for i := range 20 {
		for _, x := range []struct{ a, more string }{{"198.18.0.1", ""}, {"198.18.0.2", "; Error: open resolver; https://check.spamhaus.org/returnc/pub/192.0.2.53"}} {
			fmt.Fprintf(&b, "2026-03-02T10:00:%02dZ mx postfix/smtpd[7]: %s\n", i, strings.Replace(rejected(x.a), "; from=", x.more+"; from=", 1))
		}
	}
	path := filepath.Join(t.TempDir(), "mail.log")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, _, code := runReplay(t, "--trust-lists", path); code != 0 || !strings.Contains(out, "198.18.0.1  dnsbl") || strings.Contains(out, "198.18.0.2") {
		t.Errorf("exit %d\n%s", code, out)
	}
	if out, _, _ := runReplay(t, path); strings.Contains(out, "198.18.0") {
		t.Errorf("without the flag:\n%s", out)
	}
}
