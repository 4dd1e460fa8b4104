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

func BenchmarkParse(b *testing.B) {
	b.Run("mta=postfix", func(b *testing.B) {
		log := mixedLog(20000)
		bytes := 0
		for _, l := range log {
			bytes += len(l)
		}
		p := New(Options{})
		var e Event
		b.SetBytes(int64(bytes / len(log)))
		b.ReportAllocs()
		b.ResetTimer()
		for i := range b.N {
			p.Parse(log[i%len(log)], corpusRef, &e)
		}
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "lines/s")
	})
}
