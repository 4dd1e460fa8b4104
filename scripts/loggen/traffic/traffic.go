// Package traffic makes up a day in the log of a mail host with Postfix and Dovecot, with attackers, ordinary senders, and honest hosts
// that look bad: and it knows which is which. The log is a pure function of the Options.
//
// Stamps are ISO 8601 in UTC, as rsyslog writes them. Attackers are documentation and benchmark addresses (198.18/15,
// 198.51.100/23, 2001:db8::/32), honest hosts stand in 192.0.2/24, 203.0.113/24, 100.128/9 and 2001:db8:600d::/48.
package traffic

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// Options choose the log.
type Options struct {
	Seed  uint64
	Lines int // about how many, at least 20000; the cast needs some 135000, or 205000 where it is told to come with 100000
	// Balancer makes one address the source of all lines: a load balancer whose clients the MTA does not see. The
	// attack begins an hour after the mail.
	Balancer bool
}

// Host is one source of the log. Field names are those of the JSON file.
type Host struct {
	Prefix   netip.Prefix `json:"prefix"` // /32 or /64
	Role     string       `json:"role"`
	Attacker bool         `json:"attacker"`
	Accepted int          `json:"accepted"` // messages
	Refused  int          `json:"refused"`  // lines that a scorer may hold against it
}

// Truth is what is to be found out about the log.
type Truth struct {
	Seed  uint64 `json:"seed"`
	Lines int    `json:"lines"`
	Hosts []Host `json:"hosts"`
}

// Log is the lines in the order of time, and the truth.
type Log struct {
	Lines []string
	Truth Truth
}

// Traps are the trap recipients of the site, as they stand in the config.
var Traps = []string{"honeypot@example.org", "@old.example.org"}

// Start is when the day begins.
var Start = time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

type line struct {
	at   time.Duration
	text string
}

type maker struct {
	o     Options
	rnd   *rand.Rand
	lines []line
	hosts []*Host
	byKey map[netip.Prefix]*Host
	queue uint64
}

// New makes a log.
func New(o Options) (*Log, error) {
	if o.Lines < 20_000 || o.Lines > 50_000_000 {
		return nil, fmt.Errorf("%d lines: need 20000 to 50000000", o.Lines)
	}
	m := &maker{o: o, rnd: rand.New(rand.NewPCG(o.Seed, 0x6c6f67)), byKey: map[netip.Prefix]*Host{}}
	if o.Balancer {
		m.balanced()
	} else {
		m.honest()
		m.crowds()
		m.troubles()
		m.retries()
		m.everyday()
		m.attackers()
		m.patient()
		m.operations()
		m.cunning()
		for i := 0; len(m.lines) < o.Lines || i < 4*len(attacks); i++ {
			m.ordinary(i)
			if i%2 == 0 {
				m.attacker(i / 2)
			}
		}
	}
	slices.SortStableFunc(m.lines, func(a, b line) int { return int(a.at - b.at) })
	l := &Log{Lines: make([]string, len(m.lines)), Truth: Truth{Seed: o.Seed, Lines: len(m.lines)}}
	for i, x := range m.lines {
		l.Lines[i] = Start.Add(x.at).Format("2006-01-02T15:04:05.000000-07:00") + " mx1 " + x.text
	}
	for _, h := range m.hosts {
		l.Truth.Hosts = append(l.Truth.Hosts, *h)
	}
	return l, nil
}

// ---- a host and its lines

// who is a host at work: its address may change inside its prefix.
type who struct {
	m    *maker
	h    *Host
	addr netip.Addr
	name string
	pid  int
	at   time.Duration
}

func (m *maker) host(addr, role string, attacker bool) *who {
	a := netip.MustParseAddr(addr)
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.Prefix(bits)
	h := m.byKey[p]
	if h == nil {
		h = &Host{Prefix: p, Role: role, Attacker: attacker}
		m.byKey[p] = h
		m.hosts = append(m.hosts, h)
	}
	name := "unknown"
	if !attacker {
		name = fmt.Sprintf("mail%d.example.net", len(m.hosts))
	}
	return &who{m: m, h: h, addr: a, name: name, pid: 1000 + m.rnd.IntN(30000)}
}

func (w *who) log(tag, format string, args ...any) {
	w.line("postfix/%s[%d]: %s", tag, w.pid, fmt.Sprintf(format, args...))
}

// line is one of any program.
func (w *who) line(format string, args ...any) {
	w.m.lines = append(w.m.lines, line{w.at, fmt.Sprintf(format, args...)})
	w.at += time.Duration(1+w.m.rnd.IntN(20)) * time.Millisecond
}

func (w *who) client() string { return fmt.Sprintf("%s[%s]", w.name, w.addr) }

func (w *who) wait(d time.Duration) { w.at += d }

// about waits d give or take a fifth.
func (w *who) about(d time.Duration) {
	w.at += d*4/5 + time.Duration(w.m.rnd.Int64N(int64(d)*2/5+1))
}

func (w *who) connect() { w.log("smtpd", "connect from %s", w.client()) }

func (w *who) quit() {
	w.log("smtpd", "disconnect from %s ehlo=1 mail=1 rcpt=1 quit=1 commands=4", w.client())
}

// reject is a refused recipient, or whatever reply says.
func (w *who) reject(reply string) {
	w.h.Refused++
	w.quiet(reply)
}

// quiet is a refusal that nobody may hold against the host.
func (w *who) quiet(reply string) {
	n := w.m.rnd.IntN(1e6)
	w.log("smtpd", "NOQUEUE: reject: RCPT from %s: %s; from=<s%d@example.com> to=<u%d@example.org> proto=ESMTP helo=<%s>",
		w.client(), fmt.Sprintf(reply, n), n%977, n, w.name)
}

// refused is a recipient refused to a sender.
func (w *who) refused(sender, rcpt string) {
	w.h.Refused++
	w.log("smtpd", "NOQUEUE: reject: RCPT from %s: 550 5.1.1 <%s>: Recipient address rejected: User unknown in virtual mailbox table; from=<%s> to=<%s> proto=ESMTP helo=<%s>",
		w.client(), rcpt, sender, rcpt, w.name)
}

// The refusals. %d becomes a number of the recipient.
const (
	unknown  = "550 5.1.1 <u%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table"
	relay    = "554 5.7.1 <u%d@example.info>: Relay access denied"
	greylist = "450 4.2.0 <u%d@example.org>: Recipient address rejected: Greylisted, see http://postgrey.example.org/"
	sender   = "450 4.1.8 <s%d@example.invalid>: Sender address rejected: Domain not found"
	helo     = "504 5.5.2 <h%d>: Helo command rejected: need fully-qualified hostname"
)

func (w *who) id() string {
	w.m.queue++
	return fmt.Sprintf("4%09X", w.m.queue)
}

// message goes in; bulk ones leave fewer lines.
func (w *who) message(bulk bool) {
	rcpt := ""
	if !bulk {
		rcpt = fmt.Sprintf("u%d@example.org", w.m.rnd.IntN(300))
	}
	w.send("s@example.net", rcpt)
}

// send is a message of a sender that reaches a recipient; without one the log does not say whom.
func (w *who) send(sender, rcpt string) {
	q := w.id()
	w.log("smtpd", "%s: client=%s", q, w.client())
	if rcpt != "" {
		w.log("cleanup", "%s: message-id=<%s@example.net>", q, q)
	}
	w.log("qmgr", "%s: from=<%s>, size=%d, nrcpt=1 (queue active)", q, sender, 1000+w.m.rnd.IntN(50000))
	if rcpt != "" {
		w.log("lmtp", "%s: to=<%s>, relay=mx1[private/dovecot-lmtp], delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q, rcpt)
	}
	w.log("qmgr", "%s: removed", q)
	w.h.Accepted++
}

// filtered is a message of which a filter behind the queue says after some seconds what becomes of it, by its reply.
func (w *who) filtered(reply string) {
	q := w.id()
	w.log("smtpd", "%s: client=%s", q, w.client())
	w.log("qmgr", "%s: from=<s@example.net>, size=%d, nrcpt=1 (queue active)", q, 1000+w.m.rnd.IntN(50000))
	later := *w
	later.about(5 * time.Second)
	later.log("smtp", "%s: to=<u%d@example.org>, relay=127.0.0.1[127.0.0.1]:10024, delay=5, delays=0.1/0/0/4.9, dsn=2.7.0, status=sent (%s)", q, w.m.rnd.IntN(300), reply)
	later.log("qmgr", "%s: removed", q)
}

// bounced is a message for one recipient who turns out not to be there.
func (w *who) bounced() {
	q, n := w.id(), w.m.rnd.IntN(1e6)
	w.log("smtpd", "%s: client=%s", q, w.client())
	w.log("qmgr", "%s: from=<s@example.net>, size=%d, nrcpt=1 (queue active)", q, 1000+w.m.rnd.IntN(50000))
	w.log("lmtp", "%s: to=<x%d@example.org>, relay=mx1[private/dovecot-lmtp], delay=0.1, delays=0/0/0/0, dsn=5.1.1, status=bounced (host mx1[private/dovecot-lmtp] said: 550 5.1.1 <x%d@example.org> User doesn't exist: x%d@example.org (in reply to RCPT TO command))",
		q, n, n, n)
	w.log("qmgr", "%s: removed", q)
	w.h.Refused++
}

// What the filter says.
const (
	keeps  = "250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 4E00000000"
	spam   = "250 2.7.0 Ok, discarded, id=09876-03 - spam"
	banned = "250 2.7.0 Ok, discarded, id=09876-04 - BANNED: .exe"
)

func (w *who) session(f func()) {
	w.connect()
	f()
	w.quit()
}

func (w *who) login(user int, ok bool) {
	if ok {
		q := w.id()
		w.log("submission/smtpd", "%s: client=%s, sasl_method=PLAIN, sasl_username=user%d@example.org", q, w.client(), user)
		w.log("qmgr", "%s: from=<user%d@example.org>, size=900, nrcpt=1 (queue active)", q, user)
		w.log("qmgr", "%s: removed", q)
		w.h.Accepted++
		return
	}
	w.h.Refused++
	name := ""
	if user > 0 {
		name = fmt.Sprintf(", sasl_username=user%d@example.org", user)
	}
	w.log("submission/smtpd", "warning: %s: SASL LOGIN authentication failed: UGFzc3dvcmQ6%s", w.client(), name)
}

// random is a time of the day that leaves d to its end.
func (m *maker) random(d time.Duration) time.Duration {
	return time.Duration(m.rnd.Int64N(int64(day - d)))
}

func (m *maker) chance(percent int) bool { return m.rnd.IntN(100) < percent }
