package maillog

import (
	"fmt"
	"testing"
)

// mixedLog is a made-up hour of a busy MX: sessions that deliver, dictionary attacks, logins, and other programs' lines.
func mixedLog(n int) [][]byte {
	var log [][]byte
	add := func(i int, tag, format string, args ...any) {
		log = append(log, fmt.Appendf(nil, "Mar  2 %02d:%02d:%02d mx1 postfix/%s[%d]: ", 10+i/3600%2, i/60%60, i%60, tag, 1000+i%50))
		log[len(log)-1] = fmt.Appendf(log[len(log)-1], format, args...)
	}
	for i := 0; len(log) < n; i++ {
		s, ip := i/20, fmt.Sprintf("198.18.%d.%d", i%97, i%251)
		q := fmt.Sprintf("4%09X", i)
		switch i % 4 {
		case 0:
			add(s, "smtpd", "connect from mail%d.example.net[%s]", i%9, ip)
			add(s, "smtpd", "%s: client=mail%d.example.net[%s]", q, i%9, ip)
			add(s, "cleanup", "%s: message-id=<%d.abcdef@mail%d.example.net>", q, i, i%9)
			add(s, "qmgr", "%s: from=<user%d@example.net>, size=%d, nrcpt=1 (queue active)", q, i, 1000+i)
			add(s, "smtpd", "disconnect from mail%d.example.net[%s] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5", i%9, ip)
			add(s, "lmtp", "%s: to=<user%d@example.org>, relay=mx1[private/lmtp], delay=0.3, delays=0.1/0/0/0.2, dsn=2.0.0, status=sent (250 2.0.0 Saved)", q, i)
			add(s, "qmgr", "%s: removed", q)
		case 1:
			add(s, "smtpd", "connect from unknown[%s]", ip)
			for r := range 5 {
				add(s, "smtpd", "NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <name%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<spam@example.com> to=<name%d@example.org> proto=ESMTP helo=<[%s]>", ip, r, r, ip)
			}
			add(s, "smtpd", "lost connection after RCPT from unknown[%s]", ip)
		case 2:
			add(s, "submission/smtpd", "connect from unknown[2001:db8:%x::%x]", i%999, i)
			add(s, "submission/smtpd", "warning: unknown[2001:db8:%x::%x]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user%d@example.org", i%999, i, i)
			add(s, "submission/smtpd", "disconnect from unknown[2001:db8:%x::%x] ehlo=1 auth=0/1 quit=1 commands=2/3", i%999, i)
		case 3:
			add(s, "postscreen", "CONNECT from [%s]:%d to [192.0.2.25]:25", ip, 1024+i%60000)
			add(s, "dnsblog", "addr %s listed by domain bl.example.net as 127.0.0.4", ip)
			add(s, "postscreen", "PREGREET 11 after 0.07 from [%s]:%d: EHLO User\\r\\n", ip, 1024+i%60000)
			add(s, "postscreen", "DISCONNECT [%s]:%d", ip, 1024+i%60000)
		}
	}
	return log[:n]
}

// eximLog, dovecotLog and so on are the same hour on other servers, in the mix of lines that each of them writes.
func eximLog(n int) (log [][]byte) {
	for i := 0; len(log) < n; i++ {
		ip, id := fmt.Sprintf("198.18.%d.%d", i%97, i%251), fmt.Sprintf("1rg%03d-%011d-%04d", i%1000, i, i%10000)
		add := func(format string, args ...any) {
			log = append(log, fmt.Appendf(fmt.Appendf(nil, "2026-03-02 %02d:%02d:%02d ", 10+i/36000%2, i/600%60, i/10%60), format, args...))
		}
		switch i % 4 {
		case 0:
			add("%s <= user%d@example.net H=mail%d.example.net [%s]:4711 P=esmtps X=TLS1.3:TLS_AES_256_GCM_SHA384:256 CV=no S=%d id=%d@mail.example.net", id, i, i%9, ip, 1000+i, i)
			add("%s => user%d <user%d@example.org> R=local_user T=maildir_home", id, i, i)
			add("%s Completed", id)
		case 1:
			for r := range 5 {
				add("H=(host%d.example.com) [%s]:4711 F=<spam@example.com> rejected RCPT <name%d@example.org>: Unrouteable address", i, ip, r)
			}
			add("unexpected disconnection while reading SMTP command from (host%d.example.com) [%s]:4711 D=1.2s", i, ip)
		case 2:
			add("SMTP connection from [2001:db8:%x::%x]:4711 (TCP/IP connection count = %d)", i%999, i, i%9)
			add("dovecot_login authenticator failed for (h) [2001:db8:%x::%x]:4711: 535 Incorrect authentication data (set_id=user%d@example.org)", i%999, i, i)
			add("no MAIL in SMTP connection from (h) [2001:db8:%x::%x]:4711 D=2s C=EHLO,AUTH,QUIT", i%999, i)
		case 3:
			add("no host name found for IP address %s", ip)
			add("H=(x) [%s]:4711 rejected EHLO or HELO x: bad helo", ip)
			add("%s => user%d@example.com R=dnslookup T=remote_smtp H=mx.example.com [203.0.113.5] X=TLS1.3:x:256 CV=yes C=\"250 OK\"", id, i)
		}
	}
	return log[:n]
}

// tagged makes lines with a syslog header.
func tagged(n int, each func(i int, ip string, add func(tag, format string, args ...any))) (log [][]byte) {
	for i := 0; len(log) < n; i++ {
		each(i, fmt.Sprintf("198.18.%d.%d", i%97, i%251), func(tag, format string, args ...any) {
			log = append(log, fmt.Appendf(fmt.Appendf(nil, "Mar  2 %02d:%02d:%02d mx1 %s: ", 10+i/36000%2, i/600%60, i/10%60, tag), format, args...))
		})
	}
	return log[:n]
}

func dovecotLog(n int) [][]byte {
	return tagged(n, func(i int, ip string, add func(string, string, ...any)) {
		switch i % 4 {
		case 0:
			add("dovecot", "imap-login: Login: user=<user%d@example.org>, method=PLAIN, rip=%s, lip=192.0.2.25, mpid=%d, TLS, session=<abcdEFGH+/%d>", i, ip, i, i)
			add("dovecot", "imap(user%d@example.org)<%d><abcdEFGH+/%d>: Disconnected: Logged out in=120 out=4567 deleted=0 expunged=0", i, i, i)
		case 1:
			for r := range 3 {
				add("dovecot", "auth: passwd-file(user%d@example.org,%s,<abcdEFGH+/%d>): Password mismatch", r, ip, i)
			}
			add("dovecot", "imap-login: Disconnected (auth failed, 3 attempts in 9 secs): user=<user2@example.org>, method=PLAIN, rip=%s, lip=192.0.2.25, TLS, session=<abcdEFGH+/%d>", ip, i)
		case 2:
			add("dovecot", "lmtp(user%d@example.org)<%d><abcd>: sieve: msgid=<%d@example.net>: stored mail into mailbox 'INBOX'", i, i, i)
			add("dovecot", "pop3-login: Disconnected (no auth attempts in 0 secs): user=<>, rip=%s, lip=192.0.2.25, TLS handshaking, session=<abcd>", ip)
		case 3:
			add("dovecot", "auth-worker(77): conn unix:auth-worker (pid=1,uid=97): auth-worker<%d>: sql(user%d@example.org,%s): unknown user", i, i, ip)
		}
	})
}

func sendmailLog(n int) [][]byte {
	return tagged(n, func(i int, ip string, add func(string, string, ...any)) {
		q := fmt.Sprintf("622A1ab%07d", i)
		switch i % 3 {
		case 0:
			add("sm-mta[77]", "%s: from=<user%d@example.net>, size=%d, class=0, nrcpts=1, msgid=<%d@example.net>, proto=ESMTPS, daemon=MTA, relay=mail.example.net [%s]", q, i, i, i, ip)
			add("sm-mta[77]", "%s: to=<user%d@example.org>, delay=00:00:01, xdelay=00:00:00, mailer=local, pri=30000, dsn=2.0.0, stat=Sent", q, i)
		case 1:
			for r := range 3 {
				add("sm-mta[77]", "%s: <name%d@example.org>... User unknown", q, r)
			}
			add("sm-mta[77]", "%s: from=<user%d@example.net>, size=0, class=0, nrcpts=0, proto=ESMTP, daemon=MTA, relay=[%s]", q, i, ip)
			add("sm-mta[77]", "%s: lost input channel from [%s] to MTA after rcpt", q, ip)
		case 2:
			add("sm-mta[77]", "%s: ruleset=check_rcpt, arg1=<r%d@example.net>, relay=h.example.net [%s], reject=550 5.7.1 <r%d@example.net>... Relaying denied", q, i, ip, i)
			add("sm-mta[77]", "%s: AUTH failure (LOGIN): authentication failure (-13) SASL(-13): authentication failure: checkpass failed, user=user%d, relay=h.example.net [%s]", q, i, ip)
		}
	})
}

func opensmtpdLog(n int) [][]byte {
	return tagged(n, func(i int, ip string, add func(string, string, ...any)) {
		add("smtpd[77]", "%016x smtp connected address=%s host=mail%d.example.net", i, ip, i%9)
		switch i % 3 {
		case 0:
			add("smtpd[77]", "%016x smtp tls ciphers=TLSv1.3:AEAD-AES256-GCM-SHA384:256", i)
			add("smtpd[77]", "%016x smtp message msgid=%08x size=%d nrcpt=1 proto=ESMTP", i, i, i)
			add("smtpd[77]", "%016x smtp envelope evpid=%016x from=<user%d@example.net> to=<user@example.org>", i, i, i)
		case 1:
			for r := range 5 {
				add("smtpd[77]", "%016x smtp failed-command command=\"RCPT TO:<name%d@example.org>\" result=\"550 Invalid recipient: <name%d@example.org>\"", i, r, r)
			}
		case 2:
			add("smtpd[77]", "%016x smtp authentication user=user%d@example.org result=permfail", i, i)
			add("smtpd[77]", "%016x smtp failed-command command=\"AUTH PLAIN (...)\" result=\"535 Authentication failed\"", i)
		}
		add("smtpd[77]", "%016x smtp disconnected reason=quit", i)
	})
}

func courierLog(n int) [][]byte {
	return tagged(n, func(i int, ip string, add func(string, string, ...any)) {
		add("courieresmtpd", "started,ip=[::ffff:%s]", ip)
		switch i % 3 {
		case 0:
			add("courierd", "newmsg,id=%014d.4A38FBE5.000045F9: dns; mail%d.example.net (mail%d.example.net [::ffff:%s])", i, i%9, i%9, ip)
			add("courierd", "started,id=%014d.4A38FBE5.000045F9,from=<user%d@example.net>,module=local,host=user!!1000,addr=<user>", i, i)
		case 1:
			add("courieresmtpd", "error,relay=::ffff:%s,from=<user%d@example.net>,to=<name%d@example.org>: 550 User unknown.", ip, i, i)
		case 2:
			add("imapd-ssl", "LOGIN FAILED, user=user%d@example.org, ip=[::ffff:%s], port=[4711]", i, ip)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for _, m := range []struct {
		mta MTA
		log func(int) [][]byte
	}{{Postfix, mixedLog}, {Exim, eximLog}, {Dovecot, dovecotLog}, {Sendmail, sendmailLog}, {OpenSMTPD, opensmtpdLog}, {Courier, courierLog}} {
		b.Run("mta="+m.mta.String(), func(b *testing.B) {
			log := m.log(20000)
			bytes, events := 0, 0
			p := New(Options{})
			var e Event
			for _, l := range log { // also makes the tables
				bytes += len(l)
				if p.Parse(l, corpusRef, &e) {
					events++
				}
			}
			if events < len(log)/3 {
				b.Fatalf("%d events in %d lines", events, len(log))
			}
			b.SetBytes(int64(bytes / len(log)))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				p.Parse(log[i%len(log)], corpusRef, &e)
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
