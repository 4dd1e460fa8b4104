package traffic

import (
	"fmt"
	"net/netip"
	"time"
)

// everyday makes the hosts of a postmaster's usual week: mistyped and forgotten passwords, machines that nobody looks after,
// and mail to those who have left.
func (m *maker) everyday() {
	names := []string{"joe", "joe@example.org", "Joe User", "joe.user", "joe.user@example.org"}
	w := m.host("100.204.0.1", "new phone, its owner tries five names before the right one", false)
	w.at = m.random(time.Hour)
	for _, name := range names {
		w.imapAs(name, false)
		w.about(15 * time.Second)
	}
	w.imapAs("juser@example.org", true)

	w = m.host("100.204.0.2", "family whose four phones have old passwords", false)
	w.at = m.random(12 * time.Hour)
	for range 100 {
		for i := range 4 {
			w.imap(6000+i, false)
			w.imap(6000+i, false)
			w.about(15 * time.Second)
		}
		w.wait(4 * time.Minute)
	}

	w = m.host("100.204.0.3", "mail program with an old password, four connections every minute", false)
	w.at = m.random(12 * time.Hour)
	for range 300 {
		for range 4 {
			w.imap(6010, false)
		}
		w.wait(time.Minute)
	}

	w = m.host("100.204.0.4", "scanner with an old password, three tries for each page", false)
	w.at = m.random(10 * time.Hour)
	for range 60 {
		for range 3 {
			w.login(6020, false)
			w.wait(2 * time.Second)
		}
		w.about(5 * time.Minute)
	}

	w = m.host("100.204.0.5", "office on the day that passwords expire, never seen before", false)
	w.at = m.random(6 * time.Hour)
	for i := range 40 {
		w.imap(6100+i, false)
		w.wait(3 * time.Second)
		w.imap(6100+i, false)
		w.about(20 * time.Second)
		w.imap(6100+i, true)
		w.about(20 * time.Second)
	}

	w = m.host("192.0.2.50", "monitor, says EHLO, STARTTLS and QUIT every 15 s", false)
	for range m.scale(2000) {
		w.connect()
		w.log("smtpd", "disconnect from %s ehlo=2 starttls=1 quit=1 commands=4", w.client())
		w.about(15 * time.Second)
	}

	w = m.host("192.0.2.51", "cron job, every four minutes to a mailbox that was deleted", false)
	for range 300 {
		w.session(func() { w.refused("root@host.example.net", "ops@example.org") })
		w.about(4 * time.Minute)
	}

	w = m.host("192.0.2.52", "monitor whose three mailboxes were deleted, one every two minutes", false)
	for i := range 600 {
		w.session(func() { w.refused("mon@host.example.net", fmt.Sprintf("probe%d@example.org", i%3)) })
		w.about(2 * time.Minute)
	}

	w = m.host("192.0.2.53", "teacher, one message to sixty pupils, of whom fifteen have left", false)
	w.at = m.random(2 * time.Hour)
	w.classMail(15, 45)

	w = m.host("192.0.2.54", "queue with two messages for a domain that has left us", false)
	w.at = m.random(14 * time.Hour)
	for _, wait := range []int{5, 10, 20, 40, 66, 66, 66, 66, 66} {
		for i := range 2 {
			w.session(func() {
				w.h.Refused++
				w.log("smtpd", "NOQUEUE: reject: RCPT from %s: 454 4.7.1 <u%d@gone.example.com>: Relay access denied; from=<s@example.net> to=<u%d@gone.example.com> proto=ESMTP helo=<%s>",
					w.client(), i, i, w.name)
			})
			w.about(3 * time.Second)
		}
		w.about(time.Duration(wait) * time.Minute)
	}

	w = m.host("192.0.2.55", "program with a bad HELO, every two minutes", false)
	for range 600 {
		w.session(func() { w.reject(helo) })
		w.about(2 * time.Minute)
	}

	w = m.host("192.0.2.56", "returns mail to rewritten senders that have expired", false)
	w.at = m.random(4 * time.Hour)
	for i := range 60 {
		w.session(func() { w.refused("", fmt.Sprintf("SRS0=%04x=TT=dom%d.example=s@example.org", i, i)) })
		w.about(time.Minute)
	}

	for i := range 20 {
		w = m.host(fmt.Sprintf("203.0.113.%d", 100+i), "sends a DMARC report a day to an address that is gone", false)
		w.at = m.random(time.Hour)
		for range 3 {
			w.session(func() { w.refused("noreply-dmarc@example.net", "dmarc@example.org") })
			w.about(10 * time.Minute)
		}
	}

	w = m.host("2001:db8:600d:7::1", "tenants of a hoster share a /64, one has an infected page", false)
	for i := range 240 {
		w.addr = netip.MustParseAddr(fmt.Sprintf("2001:db8:600d:7::%x", 1+i%6))
		w.others(30, 60)
		w.about(5 * time.Minute)
		if i == 200 {
			for range 40 {
				w.reject(unknown)
				w.about(3 * time.Second)
			}
		}
	}
}

// imapAs is imap with a name of one's own.
func (w *who) imapAs(name string, ok bool) {
	if ok {
		w.line("dovecot: imap-login: Login: user=<%s>, method=PLAIN, rip=%s, lip=192.0.2.25, mpid=%d, TLS, session=<s>", name, w.addr, w.pid)
		return
	}
	w.h.Refused++
	w.line("dovecot: imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<%s>, method=PLAIN, rip=%s, lip=192.0.2.25, TLS, session=<s>", name, w.addr)
}

// classMail is one message to many, of whom some are gone; the first one is not.
func (w *who) classMail(gone, there int) {
	q := w.id()
	w.connect()
	w.log("smtpd", "%s: client=%s", q, w.client())
	for i := range gone {
		w.h.Refused++
		w.log("smtpd", "%s: reject: RCPT from %s: 550 5.1.1 <left%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<t@school.example> to=<left%d@example.org> proto=ESMTP helo=<%s>",
			q, w.client(), i, i, w.name)
	}
	w.log("qmgr", "%s: from=<t@school.example>, size=2000, nrcpt=%d (queue active)", q, there)
	for i := range there {
		w.log("lmtp", "%s: to=<pupil%d@example.org>, relay=mx1[private/dovecot-lmtp], delay=0.1, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q, i)
	}
	w.log("qmgr", "%s: removed", q)
	w.h.Accepted++
	w.quit()
}
