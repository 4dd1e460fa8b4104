//go:build linux

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mxshield/mxshield/scripts/lab"
)

// attackSources spreads n attackers over their networks: every 20th has an IPv6 /64 of its own, the others stand in
// different IPv4 /24s as far as that goes. late are those who come afterwards.
func attackSources(n int) (early, late []netip.Addr) {
	n6 := n / 20
	v4 := lab.Sources(lab.Attack4, 65_000)
	for i := range n - n6 + newcomers {
		a := v4[i*311%len(v4)]
		if i < n-n6 {
			early = append(early, a)
		} else {
			late = append(late, a)
		}
	}
	return append(early, lab.Sources(lab.Attack6, n6)...), late
}

func families(list []netip.Addr) string {
	n4 := 0
	for _, a := range list {
		if a.Is4() {
			n4++
		}
	}
	return fmt.Sprintf("%d IPv4 addresses, %d IPv6 /64s", n4, len(list)-n4)
}

// target is the mail host's port 25 in the source's family.
func (n *node) target(from netip.Addr) netip.AddrPort {
	if from.Is4() {
		return netip.AddrPortFrom(lab.MXAddr4(n.number), 25)
	}
	return netip.AddrPortFrom(lab.MXAddr6(n.number), 25)
}

// unanswered counts the connects, one from each source to each of the mail hosts and all at once, that get no answer for
// a while.
func (st *stage) unanswered(ctx context.Context, sources []netip.Addr, hosts ...*node) int {
	var n atomic.Int64
	var all sync.WaitGroup
	for _, a := range sources {
		for _, h := range hosts {
			all.Go(func() {
				if lab.ConnectTimesOut(ctx, st.world, a, h.target(a), noAnswer) {
					n.Add(1)
				}
			})
		}
	}
	all.Wait()
	return int(n.Load())
}

// knockAt knocks at the mail hosts' doors until stop is called, which returns the knocks at each.
func (st *stage) knockAt(ctx context.Context, from netip.Addr, hosts ...*node) (stop func() ([][]lab.Knock, error)) {
	ctx, cancel := context.WithCancel(ctx)
	out, errs := make([][]lab.Knock, len(hosts)), make([]error, len(hosts))
	var all sync.WaitGroup
	for i, h := range hosts {
		all.Go(func() { out[i], errs[i] = lab.KnockUntil(ctx, st.world, from, h.target(from), knockEvery) })
	}
	return func() ([][]lab.Knock, error) {
		cancel()
		all.Wait()
		return out, errors.Join(errs...)
	}
}

// ---- attackers

// mob is all attackers at work.
type mob struct {
	host *lab.Host
	at   *node
	all  []*attacker
}

// attacker is one source, and what it saw. Only its own goroutine touches it while the mob runs.
type attacker struct {
	addr     netip.Addr
	offence  time.Time   // its first unknown recipient was refused
	answered []time.Time // when those connects began that were answered
	knocks   int         // connects, answered or not
}

func newMob(h *lab.Host, at *node, sources []netip.Addr) *mob {
	m := &mob{host: h, at: at}
	for _, a := range sources {
		m.all = append(m.all, &attacker{addr: a})
	}
	return m
}

func (m *mob) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, a := range m.all {
		wg.Go(func() { m.work(ctx, a) })
	}
	wg.Wait()
}

// maxKnocks bounds what one attacker does, whatever becomes of the clock.
const maxKnocks = 500

// work guesses five recipients in each session, again and again.
func (m *mob) work(ctx context.Context, a *attacker) {
	o := lab.DictionaryOptions{
		Talk:       lab.Talk{Connect: noAnswer, Reply: 3 * time.Second, Helo: "mail.example.com", From: "<info@example.com>"},
		Recipients: 5, PerSession: 5,
	}
	for ctx.Err() == nil && a.knocks < maxKnocks {
		began := time.Now()
		r := lab.Dictionary(ctx, m.host, a.addr, m.at.target(a.addr), o)
		if ctx.Err() != nil {
			return
		}
		a.knocks++
		if a.offence.IsZero() {
			a.offence = r.FirstOffence
		}
		if r.ConnectTimeouts == 0 {
			a.answered = append(a.answered, began)
		}
		// Not in step with the others.
		wait := time.NewTimer(100*time.Millisecond + rand.N(200*time.Millisecond))
		select {
		case <-ctx.Done():
		case <-wait.C:
		}
		wait.Stop()
	}
}

// ---- the honest sender

// sender is the honest host. It sends at a steady rate whether or not the last message is through, so that a slow
// server is measured as slow and not as seldom used.
type sender struct {
	host *lab.Host
	from netip.Addr
	to   netip.AddrPort

	mu   sync.Mutex
	sent []delivery
}

// delivery is one message, tried once.
type delivery struct {
	began time.Time
	took  time.Duration // until the reply to its last dot
	ok    bool
	typo  bool // an unknown recipient was among the recipients
	last  string
}

func (d delivery) words() string {
	if d.ok {
		return "delivers, in " + ms(d.took)
	}
	return fmt.Sprintf("DOES NOT DELIVER: %.100q", d.last)
}

// run sends n messages (0: until stop is closed), the first few of which have a mistyped recipient too, and waits for
// the last.
func (s *sender) run(ctx context.Context, stop <-chan struct{}, n, typos int) {
	tick := time.NewTicker(mailEvery)
	defer tick.Stop()
	var all sync.WaitGroup
	defer all.Wait()
	for i := 0; n == 0 || i < n; i++ {
		all.Go(func() {
			d := s.deliver(ctx, i < typos)
			s.mu.Lock()
			s.sent = append(s.sent, d)
			s.mu.Unlock()
		})
		select {
		case <-ctx.Done():
			return
		case <-stop:
			return
		case <-tick.C:
		}
	}
}

func (s *sender) deliver(ctx context.Context, typo bool) delivery {
	o := lab.HonestOptions{Talk: lab.Talk{Helo: "mail.example.net", Connect: 10 * time.Second, Reply: 30 * time.Second}}
	if typo {
		o.Unknown = 1
	}
	began := time.Now()
	r := lab.Honest(ctx, s.host, s.from, s.to, o)
	return delivery{began: began, took: r.Quantile(1), ok: r.Accepted == 1, typo: typo, last: r.Last}
}

// between are the finished messages begun in a stretch of time.
func (s *sender) between(from, to time.Time) (out deliveries) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.sent {
		if !d.began.Before(from) && d.began.Before(to) {
			out = append(out, d)
		}
	}
	return out
}

// ---- the MTA's log

// logReader counts the sessions of attackers in the MTA's log as it grows.
type logReader struct {
	path      string
	attackers map[netip.Addr]bool
	at        int64 // read up to here
	sessions  int
}

func newLogReader(path string, attackers []netip.Addr) *logReader {
	l := &logReader{path: path, attackers: map[netip.Addr]bool{}}
	for _, a := range attackers {
		l.attackers[a] = true
	}
	return l
}

// read returns the count up to the last whole line.
func (l *logReader) read() (int, error) {
	f, err := os.Open(l.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if _, err := f.Seek(l.at, io.SeekStart); err != nil {
		return 0, err
	}
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadString('\n')
		if err == io.EOF {
			return l.sessions, nil
		}
		if err != nil {
			return 0, err
		}
		l.at += int64(len(line))
		// "... postfix/smtpd[123]: connect from unknown[198.18.0.1]": every line is of the demo's own making.
		if _, peer, ok := strings.Cut(line, "]: connect from "); ok {
			_, peer, _ = strings.Cut(strings.TrimSpace(peer), "[")
			if a, err := netip.ParseAddr(strings.TrimSuffix(peer, "]")); err == nil && l.attackers[a] {
				l.sessions++
			}
		}
	}
}
