package traffic

import (
	"fmt"
	"net/netip"
	"time"
)

// An attack is one kind of attacker.
type attack struct {
	role string
	do   func(m *maker, w *who)
}

// attacks come in turn.
var attacks = []attack{
	{"dictionary, fast", func(m *maker, w *who) {
		for range 10 {
			w.session(func() {
				for range 10 {
					w.reject(unknown)
				}
				w.log("smtpd", "too many errors after RCPT from %s", w.client())
			})
			w.about(3 * time.Second)
		}
	}},
	{"dictionary, one try in two minutes", func(m *maker, w *who) {
		for range 25 {
			w.session(func() { w.reject(unknown) })
			w.about(2 * time.Minute)
		}
	}},
	{"dictionary, its repeated lines folded by syslog", func(m *maker, w *who) {
		for range 3 {
			w.h.Refused += 9
			w.log("smtpd", "message repeated 9 times: [ NOQUEUE: reject: RCPT from %s: 550 5.1.1 <a@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<b@example.com> to=<a@example.org> proto=ESMTP helo=<h>]", w.client())
			w.about(10 * time.Second)
		}
	}},
	{"relay prober", func(m *maker, w *who) {
		for range 8 {
			w.session(func() { w.reject(relay) })
			w.about(time.Minute)
		}
	}},
	{"guesses passwords of a list of names", func(m *maker, w *who) {
		for i := range 30 {
			w.login(1+i*7, false)
			w.about(20 * time.Second)
		}
	}},
	{"guesses passwords fast, names not in the log", func(m *maker, w *who) {
		for range 40 {
			w.login(0, false)
			w.wait(2 * time.Second)
		}
	}},
	{"talks first", func(m *maker, w *who) {
		for range 4 {
			w.h.Refused++
			w.log("postscreen", "PREGREET 11 after 0.07 from [%s]:%d: EHLO User\\r\\n", w.addr, 1024+m.rnd.IntN(60000))
			w.about(5 * time.Minute)
		}
	}},
	{"web scanner", func(m *maker, w *who) {
		for range 15 {
			w.h.Refused++
			w.connect()
			w.log("smtpd", "warning: non-SMTP command from %s: GET / HTTP/1.1", w.client())
			w.quit()
			w.about(2 * time.Second)
		}
	}},
	{"spam, refused by the filter", func(m *maker, w *who) {
		for range 25 {
			w.h.Refused++
			w.log("cleanup", "%s: milter-reject: END-OF-MESSAGE from %s: 5.7.1 Spam message rejected; from=<s@example.com> to=<u@example.org> proto=ESMTP helo=<x>", w.id(), w.client())
			w.about(30 * time.Second)
		}
	}},
	{"dictionary, all of it accepted and bounced", func(m *maker, w *who) {
		for range 60 {
			w.session(w.bounced)
			w.about(4 * time.Second)
		}
	}},
	{"spam, thrown away behind the queue", func(m *maker, w *who) {
		for range 40 {
			w.h.Refused++
			w.session(func() { w.filtered(spam) })
			w.about(40 * time.Second)
		}
	}},
	{"spam, thrown away behind the queue, many at once", func(m *maker, w *who) {
		for range 150 {
			w.h.Refused++
			w.filtered(spam)
			w.about(300 * time.Millisecond)
		}
	}},
	{"writes to a trap, refused", func(m *maker, w *who) {
		w.session(func() { w.refused("s@example.com", "info@old.example.org") })
	}},
	{"writes to a trap, accepted", func(m *maker, w *who) {
		w.session(func() { w.send("s@example.com", "HoneyPot+news@Example.Org") })
	}},
	{"spammer, one valid recipient in twenty", func(m *maker, w *who) {
		for i := range 120 {
			if i%20 == 10 {
				w.message(true)
			} else {
				w.reject(unknown)
			}
			w.about(2 * time.Second)
		}
	}},
}

func (m *maker) attacker(i int) {
	k := attacks[i%len(attacks)]
	a := fmt.Sprintf("198.%d.%d.%d", 18+i%2, i/2%250, 1+i/500%250)
	if i%8 == 5 {
		a = fmt.Sprintf("2001:db8:bad:%x::%x", i&0xffff, 1+m.rnd.IntN(0xffff))
	}
	w := m.host(a, k.role, true)
	w.at = m.random(2 * time.Hour)
	k.do(m, w)
}

// attackers makes those that come once.
func (m *maker) attackers() {
	for i, first := range []int{250, 0} {
		w := m.host(fmt.Sprintf("198.51.100.%d", 1+i), "spammer, one valid recipient among 500 unknown", true)
		w.at = m.random(4 * time.Hour)
		for j := range 501 {
			if j == first {
				w.message(false)
			} else {
				w.reject(unknown)
			}
			w.about(2 * time.Second)
		}
	}
	w := m.host("198.51.100.3", "compromised sender: mail in the morning, a dictionary in the afternoon", true)
	for range 20 {
		w.session(func() { w.message(false) })
		w.about(20 * time.Minute)
	}
	w.wait(4 * time.Hour)
	for range 600 {
		w.reject(unknown)
		w.about(time.Second)
	}
	// Spammers who buy: in an earlier hour, and message for guess to the one address they have.
	w = m.host("198.51.100.4", "spammer, 50 messages to accounts of its own, then a dictionary", true)
	w.at = m.random(6 * time.Hour)
	for i := range 50 {
		w.session(func() { w.send("s@example.com", fmt.Sprintf("own%d@example.org", i)) })
		w.about(time.Minute)
	}
	w.wait(2 * time.Hour)
	for range 600 {
		w.reject(unknown)
		w.about(2 * time.Second)
	}
	w = m.host("198.51.100.5", "spammer, a message to the one address it knows for each guess", true)
	w.at = m.random(4 * time.Hour)
	for range 300 {
		w.reject(unknown)
		w.send("s@example.com", "u7@example.org")
		w.about(5 * time.Second)
	}
	w = m.host("198.51.100.6", "spammer, the same with a tag of its own on each", true)
	w.at = m.random(4 * time.Hour)
	for i := range 300 {
		w.reject(unknown)
		w.send("s@example.com", fmt.Sprintf("u7+%d@example.org", i))
		w.about(5 * time.Second)
	}
	w = m.host("198.51.100.8", "spammer, one good recipient in front of eighteen guesses in each message", true)
	w.at = m.random(4 * time.Hour)
	for range 30 {
		q := w.id()
		w.log("smtpd", "%s: client=%s", q, w.client())
		for range 18 {
			n := m.rnd.IntN(1e6)
			w.h.Refused++
			w.log("smtpd", "%s: reject: RCPT from %s: 550 5.1.1 <g%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.com> to=<g%d@example.org> proto=ESMTP helo=<h>", q, w.client(), n, n)
		}
		w.log("qmgr", "%s: from=<s@example.com>, size=2000, nrcpt=1 (queue active)", q)
		w.log("lmtp", "%s: to=<u7@example.org>, relay=mx1[private/dovecot-lmtp], delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q)
		w.log("qmgr", "%s: removed", q)
		w.about(10 * time.Second)
	}
	w = m.host("198.51.100.9", "guesses one password, every ten seconds", true)
	w.at = m.random(4 * time.Hour)
	for range 100 {
		w.login(9, false)
		w.about(10 * time.Second)
	}
	// Nobody of these reaches a threshold of his own.
	start := m.random(4 * time.Hour)
	for i := range 160 {
		w := m.host(fmt.Sprintf("198.18.255.%d", 1+i), "snowshoe, one of 160 hosts of a /24", true)
		w.at = start + time.Duration(m.rnd.Int64N(int64(time.Hour)))
		for range 4 {
			w.session(func() { w.reject(unknown) })
			w.about(2 * time.Minute)
		}
	}
	start = m.random(4 * time.Hour)
	for i := range 60 {
		w := m.host(fmt.Sprintf("2001:db8:5:%x::1", i*0x401&0xffff), "hops over the /64s of a /48", true)
		w.at = start + time.Duration(i)*30*time.Second
		for range 4 {
			w.session(func() { w.reject(unknown) })
			w.about(5 * time.Second)
		}
	}
	w = m.host("2001:db8:6:1::1", "hops over the addresses of a /64", true)
	w.at = m.random(2 * time.Hour)
	for i := range 200 {
		b := w.addr.As16()
		b[14], b[15] = byte(i>>8), byte(i)
		w.addr = netip.AddrFrom16(b)
		w.reject(unknown)
		w.about(5 * time.Second)
	}
}
