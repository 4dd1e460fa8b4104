package traffic

import (
	"fmt"
	"time"
)

// scale shrinks the big honest hosts for logs of less than 100,000 lines.
func (m *maker) scale(n int) int { return min(n, n*m.o.Lines/100_000) }

// honest makes the hosts that look bad and are not.
func (m *maker) honest() {
	w := m.host("192.0.2.1", "mailing-list host, 3% stale recipients", false)
	for n, gap := m.scale(1500), day/time.Duration(m.scale(1500)+1)*4/5; n > 0; {
		w.session(func() {
			for range min(n, 5) {
				n--
				if m.chance(3) {
					w.reject(unknown)
				} else {
					w.message(true)
				}
				w.wait(gap)
			}
		})
	}

	w = m.host("192.0.2.2", "forwarder, a fifth of it spam or of dead senders", false)
	for range m.scale(500) {
		w.session(func() {
			switch {
			case m.chance(12):
				w.h.Refused++
				w.log("cleanup", "%s: milter-reject: END-OF-MESSAGE from %s: 5.7.1 Spam message rejected; from=<s@example.com> to=<u@example.org> proto=ESMTP helo=<%s>", w.id(), w.client(), w.name)
			case m.chance(8):
				w.reject(sender)
			default:
				w.message(false)
			}
		})
		w.about(150 * time.Second)
	}

	w = m.host("192.0.2.206", "alumni forwarder, more than half of it spam that is thrown away behind the queue", false)
	for range m.scale(300) {
		switch {
		case m.chance(60):
			w.h.Refused++
			w.session(func() { w.filtered(spam) })
		default:
			w.h.Accepted++
			w.session(func() { w.filtered(keeps) })
		}
		w.about(3 * time.Minute)
	}

	w = m.host("192.0.2.208", "mailing-list host, a tenth of whose recipients are bounced after they were accepted", false)
	for range m.scale(400) {
		w.session(func() {
			if m.chance(10) {
				w.bounced()
			} else {
				w.message(false)
			}
		})
		w.about(2 * time.Minute)
	}

	w = m.host("192.0.2.207", "sends programs, all of which are thrown away behind the queue", false)
	for range m.scale(60) {
		w.h.Refused++
		w.session(func() { w.filtered(banned) })
		w.about(10 * time.Minute)
	}

	for i := range 4 {
		w = m.host(fmt.Sprintf("203.0.113.%d", 10+i), "ESP, one of its four addresses", false)
		for range m.scale(300) {
			w.session(func() {
				if m.chance(2) {
					w.reject(unknown)
				}
				w.message(true)
			})
			if m.chance(1) {
				w.h.Refused++
				w.log("smtpd", "warning: Connection rate limit exceeded: 61 from %s for service smtp", w.client())
			}
			w.about(4 * time.Minute)
		}
	}

	w = m.host("192.0.2.3", "monitor, connects and quits every 10 s", false)
	for range m.scale(2500) {
		w.connect()
		w.log("smtpd", "lost connection after CONNECT from %s", w.client())
		w.log("smtpd", "disconnect from %s commands=0/0", w.client())
		w.wait(10 * time.Second)
	}

	w = m.host("192.0.2.4", "obeys greylisting", false)
	for range 150 {
		w.session(func() { w.quiet(greylist) })
		w.about(6 * time.Minute)
		w.session(func() { w.message(false) })
		w.about(3 * time.Minute)
	}

	w = m.host("192.0.2.5", "TLS fails, then it delivers in clear", false)
	for range 120 {
		w.connect()
		w.log("smtpd", "SSL_accept error from %s: lost connection", w.client())
		w.log("smtpd", "lost connection after STARTTLS from %s", w.client())
		w.log("smtpd", "disconnect from %s ehlo=1 starttls=0/1 commands=1/2", w.client())
		w.wait(time.Second)
		w.session(func() { w.message(false) })
		w.about(10 * time.Minute)
	}

	w = m.host("192.0.2.6", "backup MX, relays others' dictionary attack", false)
	for i := range 500 {
		w.session(func() {
			if i >= 200 && m.chance(45) {
				w.reject(unknown)
				return
			}
			w.message(true)
		})
		w.about(2 * time.Minute)
	}

	w = m.host("192.0.2.7", "NAT of an office, one infected PC", false)
	for i := range 400 {
		w.login(1+i%40, true)
		w.about(40 * time.Second)
	}
	for i := range 300 {
		w.login(1000+i, false)
		if i%4 == 0 {
			w.login(1+i%40, true)
		}
		w.about(30 * time.Second)
	}

	w = m.host("192.0.2.8", "newsletter, 40% of the second issue to dead addresses", false)
	w.wait(10 * time.Hour)
	for range m.scale(3000) {
		w.message(true)
		w.wait(time.Second)
	}
	w.wait(3 * time.Hour)
	for i := range m.scale(2000) * 10 / 6 {
		if m.chance(40) {
			w.reject(unknown)
		} else {
			w.message(true)
		}
		if i%100 == 99 {
			w.h.Refused++
			w.log("smtpd", "too many errors after RCPT from %s", w.client())
		}
		w.wait(time.Second)
	}

	w = m.host("192.0.2.12", "newsletter nobody has heard of, 40% of it to dead addresses", false)
	w.at = m.random(4 * time.Hour)
	for i, n := 0, min(5000, m.o.Lines/50); i < n; { // 5000 of a log of 250,000 lines
		if m.chance(40) {
			w.reject(unknown)
		} else {
			w.send("news@example.net", fmt.Sprintf("reader%d@example.org", i))
			i++
		}
		w.wait(time.Second)
	}

	w = m.host("192.0.2.13", "backup MX after an outage of ours: half of what it brings is others' dictionary attack", false)
	w.at = m.random(4 * time.Hour)
	for range m.scale(800) {
		if m.chance(50) {
			w.reject(unknown)
		} else {
			w.send(fmt.Sprintf("s%d@example.com", m.rnd.IntN(1e6)), fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
		}
		w.about(500 * time.Millisecond)
	}

	w = m.host("192.0.2.14", "list host whom somebody gave a trap to", false)
	for i := range 300 {
		w.send("list@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
		if i == 250 {
			w.send("list@example.net", "honeypot@example.org")
			w.refused("list@example.net", "info@old.example.org")
		}
		w.about(2 * time.Minute)
	}

	w = m.host("192.0.2.15", "bounces what a trap is said to have sent", false)
	w.at = m.random(2 * time.Hour)
	for range 5 {
		w.session(func() { w.send("", "honeypot@example.org") })
		w.session(func() { w.refused("", "info@old.example.org") })
		w.about(10 * time.Minute)
	}

	w = m.host("192.0.2.16", "asks whether a trap exists that wrote to it", false)
	w.at = m.random(2 * time.Hour)
	for _, s := range []string{"", "double-bounce@mail.example.net", "postmaster@example.net"} {
		w.session(func() { w.refused(s, "info@old.example.org") })
		w.about(time.Minute)
	}

	w = m.host("192.0.2.17", "comes back every 5 s while it is greylisted", false)
	w.at = m.random(3 * time.Hour)
	for range 3 {
		for range 60 {
			w.session(func() { w.quiet(greylist) })
			w.about(5 * time.Second)
		}
		w.session(func() { w.message(false) })
	}

	w = m.host("100.200.1.9", "user of ours who writes to a trap", false)
	w.at = m.random(time.Hour)
	q := w.id()
	w.log("submission/smtpd", "%s: client=%s, sasl_method=PLAIN, sasl_username=alice@example.org", q, w.client())
	w.log("qmgr", "%s: from=<alice@example.org>, size=900, nrcpt=1 (queue active)", q)
	w.log("lmtp", "%s: to=<honeypot@example.org>, relay=mx1[private/dovecot-lmtp], delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q)
	w.h.Accepted++

	for i, user := range []int{77, 0} {
		w = m.host(fmt.Sprintf("100.200.1.%d", i+1), "user with a wrong saved password", false)
		for range 270 {
			w.login(user, false)
			w.about(5 * time.Minute)
		}
	}

	w = m.host("192.0.2.10", "postmaster with telnet", false)
	w.wait(9 * time.Hour)
	w.session(func() {
		w.h.Refused += 2
		w.log("smtpd", "improper command pipelining after EHLO from %s: QUIT\\r\\n", w.client())
		w.wait(time.Minute)
		w.log("smtpd", "warning: non-SMTP command from %s: Subject: test", w.client())
		w.wait(time.Minute)
		w.reject(unknown)
		w.wait(time.Minute)
		w.reject(unknown)
		w.reject(relay)
		w.reject(helo)
		w.log("smtpd", "timeout after RCPT from %s", w.client())
	})

	w = m.host("192.0.2.11", "verification callbacks", false)
	for range 200 {
		w.session(func() {
			if m.chance(25) {
				w.reject(unknown)
			} else {
				w.log("smtpd", "%s: client=%s", w.id(), w.client())
			}
		})
		w.about(6 * time.Minute)
	}

	w = m.host("2001:db8:600d:1::1", "load balancer for a part of the mail, and of an attack from 08:00 to 09:30", false)
	share := max(1800, m.scale(3000)) // a tenth of the mail, in small logs too
	for range share {
		w.others(200, 100)
		if w.at > 8*time.Hour && w.at < 9*time.Hour+30*time.Minute {
			w.connect()
			for range 25 {
				w.reject(unknown)
			}
			w.quit()
		}
		w.about(day / time.Duration(share) * 9 / 10)
	}

	w = m.host("2001:db8:600d:2::1", "no reverse name, delivers", false)
	w.name = "unknown"
	for range 60 {
		w.log("smtpd", "warning: hostname mail.example.edu does not resolve to address %s: Name or service not known", w.addr)
		w.session(func() { w.message(false) })
		w.about(20 * time.Minute)
	}
}

// ordinary is a sender without anything special: some messages in the day, now and then a typo.
func (m *maker) ordinary(i int) {
	a := fmt.Sprintf("100.%d.%d.%d", 128+m.rnd.IntN(60), i>>8&0xff, i&0xff)
	if i%10 == 9 {
		n := 0x1000 + i
		a = fmt.Sprintf("2001:db8:%x:%x::1", 0x600d+n>>16, n&0xffff)
	}
	w := m.host(a, "ordinary sender", false)
	n := 1 + m.rnd.IntN(8)
	w.at = m.random(12 * time.Hour)
	for range n {
		w.session(func() {
			if m.chance(3) {
				w.reject(unknown)
			}
			if m.chance(10) {
				w.quiet(greylist)
				return
			}
			w.message(false)
		})
		w.about(time.Hour)
	}
}

// balanced is a log in which one address stands for everybody.
func (m *maker) balanced() {
	w := m.host("192.0.2.20", "load balancer, everything comes through it", false)
	gap := day / time.Duration(m.o.Lines) * 9
	for len(m.lines) < m.o.Lines && w.at < day {
		w.session(func() { w.message(false) })
		if w.at > time.Hour {
			w.connect()
			for range 4 {
				w.reject(unknown)
			}
			w.quit()
		}
		w.about(gap)
	}
}
