package traffic

import (
	"fmt"
	"net/netip"
	"time"
)

// This file has what a postmaster sees in a year of mail operations: pools that try again from other addresses, machines that
// nobody looks after, lists and robots whose recipients have left, and domains that have moved.

// permanent is a recipient refused for good, with a reply of one's own; q is the message it belongs to.
func (w *who) permanent(q, reply, from, to string) {
	w.h.Refused++
	w.log("smtpd", "%s: reject: RCPT from %s: %s; from=<%s> to=<%s> proto=ESMTP helo=<%s>", q, w.client(), fmt.Sprintf(reply, to), from, to, w.name)
}

const (
	notHere    = "550 5.1.1 <%s>: Recipient address rejected: User unknown in virtual mailbox table"
	notRelayed = "554 5.7.1 <%s>: Relay access denied"
)

// invite is one message to so many who are gone and then so many who are there: nobody good stands in front.
func (w *who) invite(from string, gone, there int) {
	w.connect()
	for i := range gone {
		w.permanent("NOQUEUE", notHere, from, fmt.Sprintf("a.left%d@example.org", i))
	}
	q := w.id()
	w.log("smtpd", "%s: client=%s", q, w.client())
	w.log("qmgr", "%s: from=<%s>, size=4000, nrcpt=%d (queue active)", q, from, there)
	for i := range there {
		w.log("lmtp", "%s: to=<b.colleague%d@example.org>, relay=mx1[private/dovecot-lmtp], delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q, i)
	}
	w.log("qmgr", "%s: removed", q)
	w.h.Accepted++
	w.quit()
}

// asks is a recipient that is asked about and not written to.
func (w *who) asks(from string, there bool) {
	w.connect()
	if there {
		w.log("smtpd", "%s: client=%s", w.id(), w.client())
	} else {
		w.permanent("NOQUEUE", notHere, from, fmt.Sprintf("x%d@example.org", w.m.rnd.IntN(1e6)))
	}
	w.quit()
}

func (m *maker) operations() {
	for i := range 120 {
		w := m.host(fmt.Sprintf("100.205.%d.%d", i/30, 10+i%30*3), "large provider's pool: 120 addresses of four /24s, another one at each try", false)
		w.at = 9*time.Hour + time.Duration(m.rnd.Int64N(int64(2*time.Hour)))
		for range 1 + m.rnd.IntN(4) {
			w.session(func() {
				switch {
				case m.chance(45):
					w.quiet(greylist)
				case m.chance(25):
					w.reject(unknown)
				default:
					w.send(fmt.Sprintf("s@tenant%d.example", m.rnd.IntN(50)), fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
				}
			})
			w.about(10 * time.Minute)
		}
	}

	w := m.host("192.0.2.60", "hoster's outbound: thirty forwards, one of them to a mailbox that was deleted", false)
	w.at = m.random(5 * time.Hour)
	for i := range 240 {
		w.session(func() {
			if i%3 > 0 {
				w.refused(fmt.Sprintf("s@dom%d.example", i), "boss@example.org")
			} else {
				w.send(fmt.Sprintf("s@dom%d.example", i%60), fmt.Sprintf("u%d@example.org", i%30))
			}
		})
		w.about(time.Minute)
	}

	w = m.host("192.0.2.61", "filtering service, new today: asks for each recipient before it takes a message", false)
	w.at = m.random(8 * time.Hour)
	for i := range 150 {
		there := m.chance(60)
		w.asks("verify@filter.example.net", there)
		if there {
			w.about(5 * time.Second)
			w.session(func() { w.send(fmt.Sprintf("s@dom%d.example", i%80), fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
		}
		w.about(3 * time.Minute)
	}

	w = m.host("192.0.2.62", "helpdesk, answers spam that was forged in our name, and a customer now and then", false)
	for i := range 60 {
		w.session(func() {
			if i%15 == 5 {
				w.send("support@tickets.example", "u7@example.org")
			} else {
				w.refused("support@tickets.example", fmt.Sprintf("x%d@example.org", m.rnd.IntN(1e6)))
			}
		})
		w.about(20 * time.Minute)
	}

	w = m.host("192.0.2.63", "list host, probes those of its subscribers that bounced", false)
	for i := range 300 {
		w.session(func() { w.send("list-bounces@example.net", fmt.Sprintf("u%d@example.org", i%90)) })
		w.about(2 * time.Minute)
	}
	for i := range 60 {
		w.session(func() {
			w.refused(fmt.Sprintf("list-bounces+%08x@example.net", m.rnd.Uint32()), fmt.Sprintf("gone%d@example.org", i))
		})
		w.about(time.Second)
	}

	w = m.host("192.0.2.64", "calendar robot, a message to each of forty invited, of whom the first nine have left", false)
	w.at = m.random(time.Hour)
	for i := range 40 {
		if i < 9 {
			w.session(func() { w.refused("calendar@example.net", fmt.Sprintf("a.left%d@example.org", i)) })
		} else {
			w.session(func() { w.send("calendar@example.net", fmt.Sprintf("b.colleague%d@example.org", i)) })
		}
		w.about(400 * time.Millisecond)
	}

	w = m.host("192.0.2.65", "partner, one message to forty of us, of whom the first nine have left", false)
	w.at = m.random(time.Hour)
	w.invite("sales@partner.example", 9, 31)

	w = m.host("192.0.2.66", "shop, sorted by customer number: the oldest nine are gone, later every fourth", false)
	w.at = m.random(4 * time.Hour)
	for i := range 300 {
		if i < 9 || i > 60 && i%4 == 0 {
			w.session(func() { w.refused("shop@example.net", fmt.Sprintf("customer%d@example.org", i)) })
		} else {
			w.session(func() { w.send("shop@example.net", fmt.Sprintf("customer%d@example.org", i)) })
		}
		w.about(700 * time.Millisecond)
	}

	w = m.host("100.204.0.10", "copier with an old password: three mechanisms for each page, then without", false)
	w.at = m.random(10 * time.Hour)
	for range 25 {
		for _, mech := range []string{"PLAIN", "LOGIN", "CRAM-MD5"} {
			w.h.Refused++
			w.log("submission/smtpd", "warning: %s: SASL %s authentication failed: UGFzc3dvcmQ6, sasl_username=copier@example.org", w.client(), mech)
			w.wait(time.Second)
		}
		w.session(func() { w.send("copier@example.org", "u1@example.org") })
		w.about(20 * time.Minute)
	}

	w = m.host("100.204.0.11", "mail program that looks for its settings: two names, four services", false)
	w.at = m.random(time.Hour)
	for _, name := range []string{"anna", "anna@example.org"} {
		for range 2 {
			w.imapAs(name, false)
			w.h.Refused++
			w.log("submission/smtpd", "warning: %s: SASL PLAIN authentication failed: (reason unavailable), sasl_username=%s", w.client(), name)
			w.wait(time.Second)
		}
	}
	w.wait(time.Minute)
	w.imapAs("anna.b@example.org", true)

	w = m.host("2001:db8:600d:8::1", "laptop with an old password, a new privacy address every ten minutes", false)
	w.at = m.random(13 * time.Hour)
	for i := range 240 {
		w.addr = netip.MustParseAddr(fmt.Sprintf("2001:db8:600d:8:%x:%x:%x:1", 0x1000+i/3*97, i/3, i/3*31))
		w.imap(6200, false)
		w.login(6200, false)
		w.about(3 * time.Minute)
	}

	for i := range 16 {
		w = m.host(fmt.Sprintf("100.206.1.%d", 1+i), "mobile carrier's NAT: users come and go, the phone of one has an old password", false)
		w.at = time.Duration(i) * time.Minute
		for j := range 40 {
			w.imap(6300+(i+j)%25, true)
			if (i+j)%4 == 0 {
				w.imap(6400, false)
				w.login(6400, false)
			}
			w.about(20 * time.Minute)
		}
	}

	for i := range 25 {
		w = m.host(fmt.Sprintf("203.0.113.%d", 130+i), "writes to the former staff of a firm whose mail we took over", false)
		w.at = m.random(12 * time.Hour)
		for range 8 {
			w.session(func() { w.refused("office@partner.example", fmt.Sprintf("former%d@firm.example.org", m.rnd.IntN(60))) })
			w.about(15 * time.Minute)
			if m.chance(30) {
				w.session(func() { w.send("office@partner.example", fmt.Sprintf("firm%d@firm.example.org", m.rnd.IntN(8))) })
				w.about(30 * time.Minute)
			}
		}
	}

	// The domain is with another host now, but its MX record still names us; or it will be with us tomorrow.
	for i := range 40 {
		w = m.host(fmt.Sprintf("203.0.113.%d", 160+i), "writes to a domain that has left us, whose MX record has not", false)
		w.at = time.Duration(m.rnd.Int64N(int64(3 * time.Hour)))
		if i < 12 {
			for range 4 {
				w.session(func() { w.send("office@customer.example", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
				w.about(time.Hour)
			}
		}
		w.at = 9*time.Hour + time.Duration(m.rnd.Int64N(int64(2*time.Hour)))
		if i >= 12 {
			w.at += 2 * time.Hour
		}
		for range 8 {
			w.session(func() {
				w.permanent("NOQUEUE", notRelayed, "office@customer.example", fmt.Sprintf("p%d@left.example.com", m.rnd.IntN(40)))
			})
			w.about(5 * time.Minute)
		}
	}

	w = m.host("192.0.2.67", "monitor that asks every five minutes whether we relay", false)
	for range 270 {
		w.session(func() { w.permanent("NOQUEUE", notRelayed, "monitor@diagnosis.example", "test@diagnosis.example") })
		w.about(5 * time.Minute)
	}

	w = m.host("192.0.2.68", "backup server, eight reports at once to an administrator who has left, three times a day", false)
	w.at = 2 * time.Hour
	for range 3 {
		for range 8 {
			w.session(func() { w.refused("backup@office.example", "admin@example.org") })
			w.about(2 * time.Second)
		}
		w.at += 7 * time.Hour
	}

	w = m.host("100.204.0.12", "program with an old password, every minute, names not in the log", false)
	w.at = m.random(11 * time.Hour)
	for range 600 {
		w.login(0, false)
		w.wait(time.Minute)
	}

	w = m.host("192.0.2.69", "shop, confirms orders, every tenth address is mistyped", false)
	for range 200 {
		w.session(func() {
			if m.chance(10) {
				w.refused("orders@shop.example", fmt.Sprintf("typo%d@example.org", m.rnd.IntN(1e6)))
			} else {
				w.send("orders@shop.example", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300)))
			}
		})
		w.about(7 * time.Minute)
	}

	w = m.host("192.0.2.70", "maps the Internet: EHLO, STARTTLS, HELP, a web request, four times a day", false)
	for range 4 {
		w.connect()
		w.h.Refused++
		w.log("smtpd", "warning: non-SMTP command from %s: GET / HTTP/1.1", w.client())
		w.log("smtpd", "SSL_accept error from %s: lost connection", w.client())
		w.log("smtpd", "lost connection after STARTTLS from %s", w.client())
		w.log("smtpd", "disconnect from %s ehlo=1 starttls=0/1 help=1 unknown=0/1 commands=2/4", w.client())
		w.about(5 * time.Hour)
	}

	for i := range 80 {
		w = m.host(fmt.Sprintf("2001:db8:600d:9%02x::1", i), "tenant of a hoster's /48, new here, with a typo", false)
		w.at = 14*time.Hour + time.Duration(m.rnd.Int64N(int64(30*time.Minute)))
		w.session(func() { w.refused("s@tenant.example", fmt.Sprintf("typo%d@example.org", m.rnd.IntN(1e6))) })
		w.about(3 * time.Minute)
		w.session(func() { w.send("s@tenant.example", fmt.Sprintf("u%d@example.org", m.rnd.IntN(300))) })
	}

	w = m.host("192.0.2.71", "asks about forged senders: a name that cannot be, then the one it is about", false)
	w.at = m.random(8 * time.Hour)
	for range 120 {
		w.session(func() {
			w.refused("", fmt.Sprintf("probe-%08x@example.org", m.rnd.Uint32()))
			w.wait(200 * time.Millisecond)
			if m.chance(50) {
				w.log("smtpd", "%s: client=%s", w.id(), w.client())
			} else {
				w.refused("", fmt.Sprintf("x%d@example.org", m.rnd.IntN(1e6)))
			}
		})
		w.about(4 * time.Minute)
	}
}

// cunning makes attackers that know what shields look at.
func (m *maker) cunning() {
	w := m.host("198.51.100.30", "dictionary of double names, one in ninety seconds", true)
	w.at = m.random(4 * time.Hour)
	for i := range 150 {
		w.session(func() { w.refused("s@example.com", fmt.Sprintf("anna-%d@example.org", i)) })
		w.about(90 * time.Second)
	}

	for i := range 150 {
		w = m.host(fmt.Sprintf("2001:db8:31:%x::1", i*0x183&0xffff), "two guesses from each of 150 /64s of a /48", true)
		w.at = 3*time.Hour + time.Duration(i)*20*time.Second
		for range 2 {
			w.session(func() { w.reject(unknown) })
			w.about(5 * time.Second)
		}
	}
	for i := range 100 {
		w = m.host(fmt.Sprintf("2001:db8:32:11%02x::1", i), "one guess from each of 100 /64s of a /56", true)
		w.at = 5*time.Hour + time.Duration(i)*30*time.Second
		w.session(func() { w.reject(unknown) })
	}
	for i := range 230 {
		w = m.host(fmt.Sprintf("198.18.254.%d", 1+i), "two guesses from each of 230 hosts of a /24", true)
		w.at = 6*time.Hour + time.Duration(m.rnd.Int64N(int64(50*time.Minute)))
		for range 2 {
			w.session(func() { w.reject(unknown) })
			w.about(2 * time.Minute)
		}
	}

	w = m.host("198.51.100.31", "null sender, one good recipient in front of guesses, two seconds apart", true)
	w.at = m.random(4 * time.Hour)
	q := w.id()
	w.log("smtpd", "%s: client=%s", q, w.client())
	for i := range 150 {
		w.permanent(q, notHere, "", fmt.Sprintf("g%d@example.org", i))
		w.wait(2 * time.Second)
	}

	w = m.host("198.51.100.32", "harvester: asks for one recipient in each connection, a fifth are there", true)
	w.at = m.random(4 * time.Hour)
	for range 200 {
		w.asks("s@example.com", m.chance(20))
		w.about(20 * time.Second)
	}

	w = m.host("198.51.100.33", "asks with VRFY", true)
	w.at = m.random(4 * time.Hour)
	w.session(func() {
		for i := range 19 {
			w.h.Refused++
			w.log("smtpd", "NOQUEUE: reject: VRFY from %s: 550 5.1.1 <v%d>: Recipient address rejected: User unknown in local recipient table; to=<v%d> proto=SMTP helo=<h>", w.client(), i, i)
			w.wait(time.Second)
		}
	})

	w = m.host("198.51.100.34", "dictionary that obeys greylisting", true)
	w.at = m.random(4 * time.Hour)
	for i := range 40 {
		w.session(func() { w.quiet(greylist) })
		w.about(2 * time.Minute)
		w.session(func() { w.refused("s@example.com", fmt.Sprintf("g%d@example.org", i)) })
		w.about(time.Minute)
	}

	w = m.host("198.51.100.35", "newsletter to fifteen accounts of its own all morning, then a dictionary", true)
	for i := range 180 {
		w.session(func() { w.send("news@example.com", fmt.Sprintf("own%d@example.org", i%15)) })
		w.about(time.Minute)
	}
	w.wait(time.Hour)
	for range 1500 {
		w.reject(unknown)
		w.about(2 * time.Second)
	}

	for i := range 200 {
		w = m.host(fmt.Sprintf("198.18.253.%d", 1+i), "password spraying, three names from each of 200 hosts of a /24", true)
		w.at = 8*time.Hour + time.Duration(m.rnd.Int64N(int64(50*time.Minute)))
		for j := range 3 {
			w.login(7000+3*i+j, false)
			w.about(2 * time.Minute)
		}
	}

	w = m.host("198.51.100.36", "pipelines its commands", true)
	w.at = m.random(4 * time.Hour)
	for range 15 {
		w.h.Refused++
		w.connect()
		w.log("smtpd", "improper command pipelining after EHLO from %s: MAIL FROM:<s@example.com>\\r\\nRCPT TO:<u1@example.org>\\r\\n", w.client())
		w.quit()
		w.about(time.Minute)
	}

	w = m.host("198.51.100.37", "passwords every thirty seconds, names not in the log", true)
	w.at = m.random(4 * time.Hour)
	for range 300 {
		w.login(0, false)
		w.about(30 * time.Second)
	}

	w = m.host("198.51.100.38", "one of twenty valid recipients per eight guesses", true)
	w.at = m.random(4 * time.Hour)
	for i := range 60 {
		for range 8 {
			w.session(func() { w.reject(unknown) })
			w.about(5 * time.Second)
		}
		w.session(func() { w.send("s@example.com", fmt.Sprintf("u%d@example.org", i%20)) })
		w.about(5 * time.Second)
	}

	w = m.host("198.51.100.39", "relay prober, another domain each time, refused for now", true)
	w.at = m.random(4 * time.Hour)
	for i := range 20 {
		w.session(func() {
			w.permanent("NOQUEUE", "454 4.7.1 <%s>: Relay access denied", "s@example.com", fmt.Sprintf("t%d@target%d.example", i, i))
		})
		w.about(5 * time.Minute)
	}

	w = m.host("198.51.100.40", "relay prober, while known senders are refused for another domain", true)
	w.at = 14 * time.Hour
	for i := range 20 {
		w.session(func() { w.permanent("NOQUEUE", notRelayed, "s@example.com", fmt.Sprintf("t%d@elsewhere.example", i)) })
		w.about(time.Minute)
	}
}
