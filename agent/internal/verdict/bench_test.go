package verdict

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// fill makes n sources offend once each.
func fill(s *Scorer, n int) {
	e := maillog.Event{Kind: maillog.UnknownRecipient, Count: 1}
	for i := range n {
		e.Source = netip.AddrFrom4([4]byte{10 + byte(i>>22), byte(i >> 16), byte(i >> 8), byte(i)})
		s.Observe(&e, t0)
	}
}

// TestMemory: a million sources in at most 64 MB, all of them offenders.
func TestMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("needs a million sources")
	}
	measure := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	cfg := DefaultConfig()
	cfg.Sources, cfg.Seed = 1e6, 1
	before := measure()
	s := New(cfg)
	fill(s, 1.2e6)
	used := measure() - before
	if s.Len() != 1e6 {
		t.Fatalf("%d sources", s.Len())
	}
	t.Logf("%d sources, %.1f MB, %.1f bytes each", s.Len(), float64(used)/1e6, float64(used)/float64(s.Len()))
	if used > 64e6 {
		t.Errorf("%d bytes for a million sources", used)
	}
	runtime.KeepAlive(s)
}

func TestNoAllocations(t *testing.T) {
	s := New(DefaultConfig())
	fill(s, 1000)
	e := maillog.Event{Source: netip.AddrFrom4([4]byte{10, 0, 0, 1}), Count: 1, User: 77}
	for k := range maillog.NumKinds {
		e.Kind = k
		if n := testing.AllocsPerRun(100, func() { s.Observe(&e, t0) }); n != 0 {
			t.Errorf("%v allocations for %v", n, k)
		}
	}
}

// busy makes the lines of a busy MX, from sources many sources.
func busy(n, sources int) [][]byte {
	var log [][]byte
	x := uint64(1)
	for i := 0; len(log) < n; i++ {
		x = spread(x + uint64(i))
		ip := fmt.Sprintf("198.%d.%d.%d", 18+x>>40%2, x>>8%251, x>>16%uint64(max(1, sources/251)))
		stamp := fmt.Sprintf("Mar  2 12:%02d:%02d mx1 postfix/", i/60/20%60, i/20%60)
		add := func(tag, format string, a ...any) {
			log = append(log, []byte(stamp+tag+"[77]: "+fmt.Sprintf(format, a...)))
		}
		switch i % 3 {
		case 0:
			add("smtpd", "connect from mail.example.net[%s]", ip)
			add("smtpd", "4%09X: client=mail.example.net[%s]", i, ip)
			add("cleanup", "4%09X: message-id=<%d@mail.example.net>", i, i)
			add("qmgr", "4%09X: from=<user%d@example.net>, size=2000, nrcpt=1 (queue active)", i, i)
			add("smtpd", "disconnect from mail.example.net[%s] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5", ip)
			add("qmgr", "4%09X: removed", i)
		case 1:
			for r := range 4 {
				add("smtpd", "NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <u%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.com> to=<u%d@example.org> proto=ESMTP helo=<x>", ip, r, r)
			}
		case 2:
			add("submission/smtpd", "warning: unknown[%s]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user%d@example.org", ip, i)
			add("postscreen", "PREGREET 11 after 0.07 from [%s]:4711: EHLO User\\r\\n", ip)
		}
	}
	return log[:n]
}

// BenchmarkObserve: a million sources known, one event each in turn.
func BenchmarkObserve(b *testing.B) {
	s := New(DefaultConfig())
	fill(s, 1<<20)
	e := maillog.Event{Kind: maillog.UnknownRecipient, Count: 1}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		j := i * 7919 % (1 << 20)
		e.Source = netip.AddrFrom4([4]byte{10 + byte(j>>22), byte(j >> 16), byte(j >> 8), byte(j)})
		s.Observe(&e, t0.Add(time.Duration(i>>16)*time.Second))
	}
}

func BenchmarkChanged(b *testing.B) {
	s := New(DefaultConfig())
	fill(s, 1<<20)
	s.Changed(func(_, _ []byte) {})
	e := maillog.Event{Kind: maillog.UnknownRecipient, Count: 1}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		for j := range 100 {
			e.Source = netip.AddrFrom4([4]byte{10, byte(j), byte(i), byte(i >> 8)})
			s.Observe(&e, t0)
		}
		s.Changed(func(_, _ []byte) {})
	}
}
