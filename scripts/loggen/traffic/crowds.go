package traffic

import (
	"fmt"
	"net/netip"
	"time"
)

// This file has the honest hosts behind which many people stand, and those that suffer from somebody else's attack or fault.

// others is mail of many senders to many recipients, through one host.
func (w *who) others(senders, rcpts int) {
	n := w.m.rnd.IntN(1e6)
	w.session(func() {
		w.send(fmt.Sprintf("s%d@dom%d.example", n, n%senders), fmt.Sprintf("u%d@example.org", n%rcpts))
	})
}

// guesses is an attack that comes through the host.
func (w *who) guesses(n int) {
	w.session(func() {
		for range n {
			w.reject(unknown)
		}
	})
}

// imap is a login at Dovecot.
func (w *who) imap(user int, ok bool) {
	name := fmt.Sprintf("user%d@example.org", user)
	session := fmt.Sprintf("%08x", w.m.rnd.Uint32())
	if ok {
		w.line("dovecot: imap-login: Login: user=<%s>, method=PLAIN, rip=%s, lip=192.0.2.25, mpid=%d, TLS, session=<%s>", name, w.addr, w.pid, session)
		return
	}
	w.h.Refused++
	w.line("dovecot: auth: passwd-file(%s,%s,<%s>): Password mismatch", name, w.addr, session)
	w.line("dovecot: imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<%s>, method=PLAIN, rip=%s, lip=192.0.2.25, TLS, session=<%s>", name, w.addr, session)
}

func (m *maker) crowds() {
	w := m.host("2001:db8:600d:3::1", "load balancer for a twentieth of the mail, and of an attack from 10:00 on", false)
	n := max(150, m.scale(700))
	for range n {
		w.others(40, 100)
		if w.at > 10*time.Hour {
			w.guesses(20)
		}
		w.about(day / time.Duration(n) * 9 / 10)
	}

	for i := range 4 {
		w = m.host(fmt.Sprintf("203.0.113.%d", 40+i), "filtering service, one of its four addresses, attacked from 09:00 to 15:00", false)
		n := max(100, m.scale(300))
		for range n {
			w.others(60, 100)
			if w.at > 9*time.Hour && w.at < 15*time.Hour {
				w.guesses(5)
			}
			w.about(day / time.Duration(n) * 9 / 10)
		}
	}

	w = m.host("2001:db8:600d:4::1", "campus, one /64: most log in, some have an old password", false)
	w.wait(8 * time.Hour)
	for i := range 240 {
		w.addr = netip.MustParseAddr(fmt.Sprintf("2001:db8:600d:4:%x::%x", i*7, 1+i)) // privacy addresses
		if i%6 == 5 {
			for range 4 {
				w.imap(1000+i, false)
				w.about(3 * time.Second)
			}
		} else {
			w.imap(i, true)
		}
		w.about(15 * time.Second)
	}

	w = m.host("100.200.2.1", "moves 150 mailboxes over, every tenth password is wrong", false)
	w.wait(13 * time.Hour)
	for i := range 150 {
		w.imap(i, i%10 != 9)
		w.about(8 * time.Second)
	}

	w = m.host("100.200.2.2", "webmail of somebody else, users mistype", false)
	w.wait(6 * time.Hour)
	for range 300 {
		user := m.rnd.IntN(60)
		for m.chance(15) {
			w.imap(user, false)
			w.about(5 * time.Second)
		}
		w.imap(user, true)
		w.about(2 * time.Minute)
	}

	for i := range 90 { // each host of a campus has a /64 of its own
		w = m.host(fmt.Sprintf("2001:db8:600d:5%02x::1", i), "campus, a /64 each: most log in, some have an old password", false)
		w.at = m.random(2 * time.Hour)
		for range 6 {
			w.imap(3000+i, i%3 != 2)
			w.about(10 * time.Minute)
		}
	}

	for i := range 60 {
		w = m.host(fmt.Sprintf("100.202.3.%d", 1+i), "phone with an old password, an address of its network every quarter of an hour", false)
		w.at = 5*time.Hour + time.Duration(i)*15*time.Minute
		for range 4 {
			w.imap(4000, false)
			w.login(4000, false)
			w.about(3 * time.Minute)
		}
	}

	w = m.host("100.200.2.3", "office of three, its printer tries an old password every two minutes", false)
	for i := range 600 {
		w.login(5000, false)
		if i%10 == 9 {
			w.login(5001+i/10%3, true)
		}
		w.about(2 * time.Minute)
	}
}

// troubles makes the hosts that meet somebody else's fault.
func (m *maker) troubles() {
	start := m.random(6 * time.Hour)
	for i := range 60 {
		w := m.host(fmt.Sprintf("100.201.%d.%d", i%7, 1+i), "returns spam that was sent in our name", false)
		w.at = start + time.Duration(m.rnd.Int64N(int64(time.Hour)))
		for range 8 + m.rnd.IntN(30) {
			w.session(func() { w.refused("", fmt.Sprintf("x%d@example.org", m.rnd.IntN(1e6))) })
			w.about(90 * time.Second)
		}
	}

	w := m.host("192.0.2.30", "asks about senders that were forged, once a minute", false)
	w.at = m.random(7 * time.Hour)
	for range 300 {
		w.session(func() {
			if m.chance(70) {
				w.refused([]string{"", "postmaster@example.net", "double-bounce@example.net"}[m.rnd.IntN(3)], fmt.Sprintf("x%d@example.org", m.rnd.IntN(1e6)))
			} else {
				w.log("smtpd", "%s: client=%s", w.id(), w.client())
			}
		})
		w.about(time.Minute)
	}

	w = m.host("192.0.2.31", "list host, of whose subscribers 300 accounts were deleted", false)
	for range 400 {
		w.send("list-bounces@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
		w.about(2 * time.Minute)
	}
	for i := range 400 {
		if i%4 == 3 {
			w.send("list-bounces@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
		} else {
			w.refused("list-bounces@example.net", fmt.Sprintf("gone%d@example.org", i))
		}
		w.about(time.Second / 2)
	}

	w = m.host("192.0.2.32", "relay of a provider, new today, many of its customers mistype", false)
	w.at = m.random(4 * time.Hour)
	for range 120 {
		if m.chance(45) {
			w.session(func() { w.reject(unknown) })
		} else {
			w.session(func() {
				w.send(fmt.Sprintf("c%d@dom%d.example", m.rnd.IntN(99), m.rnd.IntN(30)), fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
			})
		}
		w.about(90 * time.Second)
	}

	w = m.host("192.0.2.33", "rewrites senders and forwards, a third to aliases that are gone", false)
	for i := range 150 {
		from := fmt.Sprintf("SRS0=%04x=TT=dom%d.example=s@forward.example.net", i, i%40)
		w.session(func() {
			if i%3 == 2 {
				w.refused(from, fmt.Sprintf("gone%d@example.org", i%7))
			} else {
				w.send(from, fmt.Sprintf("u%d@example.org", i%20))
			}
		})
		w.about(8 * time.Minute)
	}

	w = m.host("192.0.2.34", "sends what was queued for a day, all of it greylisted at first", false)
	w.at = m.random(3 * time.Hour)
	for range 400 {
		w.session(func() { w.quiet(greylist) })
		w.about(time.Second)
	}
	w.wait(10 * time.Minute)
	for range 400 {
		w.session(func() { w.send("s@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
		w.about(time.Second)
	}

	w = m.host("192.0.2.35", "surveys TLS, never says anything", false)
	w.at = m.random(2 * time.Hour)
	for range 200 {
		w.connect()
		w.log("smtpd", "SSL_accept error from %s: -1", w.client())
		w.log("smtpd", "warning: TLS library problem: error:1417A0C1:SSL routines:tls_post_process_client_hello:no shared cipher:../ssl/statem/statem_srvr.c:2285:")
		w.log("smtpd", "lost connection after STARTTLS from %s", w.client())
		w.log("smtpd", "disconnect from %s ehlo=1 starttls=0/1 commands=1/2", w.client())
		w.about(10 * time.Second)
	}

	for i := range 80 {
		w = m.host(fmt.Sprintf("100.203.7.%d", 1+i), "ESP, one of 80 addresses of a new /24", false)
		w.at = 11*time.Hour + time.Duration(m.rnd.Int64N(int64(time.Hour)))
		for j := range 16 {
			if j%4 == 3 {
				w.session(func() { w.reject(unknown) })
			} else {
				w.session(func() { w.send("bounce@esp.example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
			}
			w.about(3 * time.Minute)
		}
	}

	w = m.host("192.0.2.36", "reports to an account that was deleted, every ten minutes", false)
	for range 140 {
		w.session(func() { w.refused("root@host.example.net", "ops@example.org") })
		w.about(10 * time.Minute)
	}
}

// retries makes the hosts that are refused for now, and try again.
func (m *maker) retries() {
	w := m.host("192.0.2.40", "its DNS is down for two hours, and what it has queued is refused for now", false)
	w.at = m.random(8 * time.Hour)
	for range 40 {
		w.session(func() { w.send("s@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
		w.about(2 * time.Minute)
	}
	for range 8 {
		for range 60 {
			w.session(func() { w.reject(sender) })
			w.about(time.Second)
		}
		w.wait(15 * time.Minute)
	}
	for range 60 {
		w.session(func() { w.send("s@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
		w.about(time.Second)
	}

	w = m.host("192.0.2.41", "tries again for days what a host that is set up anew refuses for now", false)
	for range 70 {
		for i := range 7 {
			w.session(func() {
				w.h.Refused++
				w.log("smtpd", "NOQUEUE: reject: RCPT from %s: 450 4.1.1 <old%d@example.org>: Recipient address rejected: User unknown in local recipient table; from=<list@example.net> to=<old%d@example.org> proto=ESMTP helo=<%s>",
					w.client(), i, i, w.name)
			})
			w.about(2 * time.Second)
		}
		w.session(func() { w.send("list@example.net", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
		w.about(20 * time.Minute)
	}

	w = m.host("192.0.2.42", "provider that opens 150 connections at once, with a limit of 50", false)
	w.at = m.random(8 * time.Hour)
	for range 6 {
		var mail []string
		for i := range 150 {
			if i < 50 {
				mail = append(mail, w.id())
				w.connect()
				continue
			}
			w.h.Refused++
			w.connect()
			w.log("smtpd", "warning: Connection concurrency limit exceeded: %d from %s for service smtp", i, w.client())
			w.log("smtpd", "disconnect from %s commands=0/0", w.client())
		}
		for _, q := range mail {
			w.log("smtpd", "%s: client=%s", q, w.client())
			w.log("qmgr", "%s: from=<bounce@esp.example.net>, size=3000, nrcpt=1 (queue active)", q)
			w.h.Accepted++
		}
		w.about(time.Hour)
	}
}

// patient makes the attackers that hope to stay below what is noticed.
func (m *maker) patient() {
	w := m.host("198.51.100.20", "dictionary, a guess every ten minutes all day", true)
	for range 140 {
		w.session(func() { w.reject(unknown) })
		w.about(10 * time.Minute)
	}
	w = m.host("198.51.100.21", "passwords, a name every twenty minutes all day", true)
	for i := range 70 {
		w.login(1+i, false)
		w.about(20 * time.Minute)
	}
	w = m.host("198.51.100.22", "passwords, over submission and IMAP in turns", true)
	w.at = m.random(2 * time.Hour)
	for i := range 40 {
		if i%2 == 0 {
			w.login(1+i, false)
		} else {
			w.imap(1+i, false)
		}
		w.about(30 * time.Second)
	}
	w = m.host("198.51.100.23", "dictionary in the name of the null sender", true)
	w.at = m.random(2 * time.Hour)
	w.session(func() {
		for range 40 {
			w.refused("", fmt.Sprintf("n%d@example.org", m.rnd.IntN(1e6)))
		}
	})
	w = m.host("198.51.100.24", "dictionary in the name of the null sender, a connection each", true)
	w.at = m.random(2 * time.Hour)
	for range 200 {
		w.session(func() { w.refused("", fmt.Sprintf("n%d@example.org", m.rnd.IntN(1e6))) })
		w.about(5 * time.Second)
	}
	w = m.host("198.51.100.25", "seen by postscreen only: newlines, pipelining, web requests", true)
	w.at = m.random(2 * time.Hour)
	for i := range 12 {
		w.h.Refused++
		client := fmt.Sprintf("[%s]:%d", w.addr, 1024+m.rnd.IntN(60000))
		switch i % 3 {
		case 0:
			w.log("postscreen", "BARE NEWLINE from %s after EHLO", client)
		case 1:
			w.log("postscreen", "COMMAND PIPELINING from %s after EHLO: MAIL FROM:<s@example.com>\\r\\n", client)
		case 2:
			w.log("postscreen", "NON-SMTP COMMAND from %s after CONNECT: GET / HTTP/1.1", client)
		}
		w.log("postscreen", "HANGUP after 0.3 from %s in tests after SMTP handshake", client)
		w.about(20 * time.Second)
	}
	w = m.host("198.51.100.26", "spammer, mail of 40 domains to the one address it knows, then a dictionary", true)
	w.at = m.random(12 * time.Hour)
	for i := range 80 {
		w.session(func() { w.send(fmt.Sprintf("s@dom%d.example", i%40), "u7@example.org") })
		w.about(6 * time.Minute)
	}
	for range 600 {
		w.reject(unknown)
		w.about(2 * time.Second)
	}
	for i := range 40 {
		w := m.host(fmt.Sprintf("198.51.101.%d", 1+i), "botnet, one of 40 hosts of a /24, a probe per connection", true)
		w.at = m.random(3 * time.Hour)
		for range 15 {
			w.session(func() { w.reject(unknown) })
			w.about(3 * time.Minute)
		}
	}
}
