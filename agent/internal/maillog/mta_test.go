package maillog

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Each target has two checks that share no code with the parser. One: a message of any form, and the address that comes
// out must stand in one of the places of shapes below. Two, the stronger: the client's text, whatever it is, in every
// place where the MTA puts a client's text, and the only address that may ever come out is that of the client.

const (
	ipRE    = `([0-9A-Fa-f:.]{2,45})(?:%[^\]]+)?`
	eximRE  = `(?:[A-Za-z0-9._-]{1,255} )?(?:\((?:\[[0-9A-Za-z:.]*\]|[^()\[\]]*)\) )?\[` + ipRE + `\](?::[0-9]+)?`
	relayRE = `(?:[^ ,\[\]()]+ |[^ ,\[\]()]*@)?\[(?:IPv6:)?` + ipRE + `\](?: \(may be forged\))?`
)

var shapes = map[MTA][]*regexp.Regexp{
	Exim: compile(
		`(?:\[1[/\\]\d+\] )?(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[0-9.]*(?: ?(?:Z|[+-]\d\d:?\d\d))? )?(?:\[\d+\] )?(?:[A-Za-z0-9]{6}-[A-Za-z0-9]{6,11}-[A-Za-z0-9]{2,4} )?(?:`+
			`H=| ?DSH=|<= (?:[^ "\\]|\\.|"(?:[^"\\]|\\.)*")+ (?:DS )?H=|[A-Za-z0-9_-]+ authenticator failed for (?:H=)?|`+
			`SMTP (?:connection (?:Ci=[A-Za-z0-9]+ )?|call )from |SMTP connection lost after final dot H=|VRFY failed for .*? H=|`+
			`(?:temporarily )?rejected "(?:EHLO|HELO) .*?" from |(?:ridiculously long message header|overlong message header line) received from |SMTP (?:command|data) timeout (?:\(message abandoned\) )?on (?:TLS )?connection from |`+
			`SMTP (?:syntax|protocol) error in ".*?" H=|SMTP protocol synchronization error \([^)]*\): rejected (?:connection from|".*?") H=|`+
			`no MAIL in (?:TFO\*? )?SMTP connection from |no IP address found for host [A-Za-z0-9._-]* \(during SMTP connection from |unexpected (?:disconnection|EOF) while reading SMTP command from |`+
			`rejected (?:EHLO|HELO|MAIL) from |unqualified [a-z]+ rejected: <.*?> H=|(?:temporarily )?(?:refused|rejected) connection from |Connection from |TLS error on connection (?:Ci=[A-Za-z0-9]+ )?from |`+
			`F=(?:[^ "\\]|\\.|"(?:[^"\\]|\\.)*")* (?:DS )?H=)`+eximRE,
		`(?:\[\d+\] )?SMTP (?:syntax|protocol|protocol synchronization) error .*" H=`+eximRE+`(?: I=\[[^ ]*)?[A-Za-z0-9 /-]+$`,
		`(?:\[1[/\\]\d+\] )?(?:\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[0-9.]*(?: ?(?:Z|[+-]\d\d:?\d\d))? )?(?:\[\d+\] )?no host name found for IP address `+ipRE+`(?: |$)`,
	),
	Sendmail: compile(
		`[A-Za-z0-9]{5,24}: (?:lost input channel from |timeout waiting for input from |rejecting commands from |rejecting server [A-Z-]+ from |collect: relay=|AUTH=server, relay=|)`+relayRE,
		`AUTH=server, relay=`+relayRE,
		`[A-Za-z0-9]{5,24}: rejecting (?:commands|server [A-Z-]+) from  `+relayRE,
		`(?:[A-Za-z0-9]{5,24}: )?ruleset=.*, relay=`+relayRE+`, reject=`,
		`[A-Za-z0-9]{5,24}: (?:from=|AUTH failure \(|AUTH decode64 error \[).*, relay=`+relayRE+`$`,
	),
	OpenSMTPD: compile(
		`[0-9A-Fa-f]{16} smtp connected address=\[?(?:IPv6:)?`+ipRE+`\]?(?: |$)`,
		`[0-9A-Fa-f]{16} smtp event=[^ ]+ address=\[?(?:IPv6:)?`+ipRE+`\]?(?: |$)`,
		`smtp-in: New session [0-9A-Fa-f]{16} from host [A-Za-z0-9._-]* \[(?:IPv6:)?`+ipRE+`\]$`,
	),
	Dovecot: compile(
		`(?:imap|pop3|managesieve|submission)-login: .*[,:] rip=`+ipRE+`, lip=`,
		`(?:imap|pop3|managesieve|submission)-login: .*[,:] rip=`+ipRE+`(?:, mpid=[0-9]*)?[^<>=]*(?:, session=<[^>]*>)?$`,
		`pam_[A-Za-z0-9_]*\(dovecot:auth\): authentication failure; .* rhost=`+ipRE+`(?: |$)`,
	),
	Courier: compile(
		`LOGIN(?: FAILED)?, .*, ip=\[`+ipRE+`\](?:,|$)`, `^LOGIN FAILED, ip=\[`+ipRE+`\](?:,|$)`,
		`(?:Connection|Disconnected), ip=\[`+ipRE+`\]`,
		`(?:bad)?login: (?:[A-Za-z0-9._-]+ ?)?\[`+ipRE+`\](?::[0-9]+)? `,
		`^event=login\.(?:bad|good r\.sessionid=[^ "]+) r\.clienthost="[A-Za-z0-9._-]+ \[`+ipRE+`\](?::[0-9]+)?" `,
		`^event=login\.(?:bad|good r\.sessionid=[^ "]+) r\.clienthost=\[`+ipRE+`\](?::[0-9]+)? `,
		`started,ip=\[`+ipRE+`\]`, `error,relay=`+ipRE+`,`,
		`newmsg,id=[^:]*: dns; .* \((?:[A-Za-z0-9._-]+ )?\[`+ipRE+`\]\)$`,
	),
}

// authRE is the place in a line of Dovecot's auth process. It must be there once.
var authRE = regexp.MustCompile(`,` + ipRE + `(?:,<[^,]*>|,sasl:[^,]*|,master|,)*\)(?:<[^>]*>)?: `)

// shape says whether a may have come from msg.
func shape(mta MTA, msg string, a netip.Addr) bool {
	if mta == Dovecot && strings.HasPrefix(msg, "auth") {
		n, same := 0, false
		for _, m := range authRE.FindAllStringSubmatch(msg, -1) {
			if got, err := netip.ParseAddr(m[1]); err == nil && !got.IsUnspecified() {
				n, same = n+1, got.Unmap() == a
			}
		}
		return n == 1 && same
	}
	for _, re := range shapes[mta] {
		if m := re.FindStringSubmatch(msg); m != nil {
			if got, err := netip.ParseAddr(m[1]); err == nil && got.Unmap() == a {
				return true
			}
		}
	}
	return false
}

// A place is a line of an MTA with the client at 192.0.2.1 and the client's text at @.
type place struct {
	tag, msg string
	quote    bool // the MTA escapes quotes and backslashes there
	most     int  // bytes of it that the MTA writes; 0: all
}

const openID = "0123456789abcdef"

var places = map[MTA][]place{
	Postfix: {
		{"postfix/smtpd", "NOQUEUE: reject: RCPT from h.example.net[192.0.2.1]: 550 5.1.1 <@>: Recipient address rejected: User unknown in local recipient table; from=<@> to=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/smtpd", "4A1B2C3D4E: reject: RCPT from unknown[192.0.2.1]:4000: 550 5.7.1 <@>: Recipient address rejected: @; from=<@> to=<honeypot@example.org> proto=ESMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: reject: HELO from unknown[192.0.2.1]: 504 5.5.2 <@>: Helo command rejected: need fully-qualified hostname; proto=SMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: reject: MAIL from unknown[192.0.2.1]: 550 5.1.8 <@>: Sender address rejected: Domain not found; from=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: reject: RCPT from unknown[192.0.2.1]: 554 5.7.1 Service unavailable; Helo command [@] blocked using bl.example; @; from=<@> to=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: reject_warning: RCPT from unknown[192.0.2.1]: 450 4.7.1 <@>: Helo command rejected: Host not found; from=<@> to=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: reject: VRFY from unknown[192.0.2.1]: 550 5.1.1 <@>: Recipient address rejected: User unknown; to=<@> proto=SMTP helo=<@>", false, 0},
		{"postfix/smtpd", "NOQUEUE: milter-reject: RCPT from unknown[192.0.2.1]: 550 5.7.1 @; from=<@> to=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/submission/smtpd", "warning: unknown[192.0.2.1]: SASL @ authentication failed: @, sasl_username=@", false, 0},
		{"postfix/smtpd", "warning: non-SMTP command from unknown[192.0.2.1]: @", false, 0},
		{"postfix/smtpd", "warning: unknown[192.0.2.1] sent non-SMTP command: @", false, 0},
		{"postfix/smtpd", "warning: Illegal address syntax from unknown[192.0.2.1] in RCPT command: @", false, 0},
		{"postfix/smtpd", "improper command pipelining after EHLO from unknown[192.0.2.1]: @", false, 0},
		{"postfix/smtpd", "warning: bad ETRN @ from unknown[192.0.2.1]", false, 0},
		{"postfix/smtpd", "warning: reject: ETRN @... from unknown[192.0.2.1]", false, 0},
		{"postfix/smtpd", "4A1B2C3D4E: client=unknown[192.0.2.1], sasl_method=@, sasl_username=@, sasl_sender=@", false, 0},
		{"postfix/smtpd", "4A1B2C3D4E: client=unknown[192.0.2.1], sasl_method=PLAIN, sasl_username=@, orig_client=@[192.0.2.99]", false, 0},
		{"postfix/smtpd", "unknown[192.0.2.1]: Untrusted: subject_CN=@, issuer=@, fingerprint=192.0.2.99", false, 0},
		{"postfix/postscreen", "PREGREET 99 after 0.1 from [192.0.2.1]:99: @", false, 0},
		{"postfix/postscreen", "COMMAND PIPELINING from [192.0.2.1]:99 after EHLO: @", false, 0},
		{"postfix/postscreen", "NON-SMTP COMMAND from [192.0.2.1]:99 after CONNECT: @", false, 0},
		{"postfix/postscreen", "NOQUEUE: reject: RCPT from [192.0.2.1]:99: 550 5.7.1 Service unavailable; client [192.0.2.1] blocked using bl.example; from=<@>, to=<@>, proto=ESMTP, helo=<@>", false, 0},
		{"postfix/cleanup", "4A1B2C3D4E: milter-reject: END-OF-MESSAGE from unknown[192.0.2.1]: 5.7.1 @; from=<@> to=<@> proto=ESMTP helo=<@>", false, 0},
		{"postfix/cleanup", "4A1B2C3D4E: reject: header Subject: @ from unknown[192.0.2.1]; from=<@> to=<@> proto=ESMTP helo=<@>: 5.7.1 x", false, 200},
		{"postfix/cleanup", "4A1B2C3D4E: reject: body @ from local 192.0.2.99; from=<@>", false, 200},
		{"postfix/cleanup", "4A1B2C3D4E: message-id=@ 192.0.2.99", false, 0},
		{"postfix/smtp", "4A1B2C3D4E: to=<@>, relay=@[192.0.2.99]:25, status=bounced (host @[192.0.2.99] said: 550 5.1.1 <@>: Recipient address rejected: User unknown)", false, 0},
	},
	Exim: {
		{"exim", "H=(@) [192.0.2.1] F=<s@example.com> rejected RCPT <r@example.org>: Unrouteable address", false, 0},
		{"exim", "H=(h) [192.0.2.1] F=<@> rejected RCPT <r@example.org>: Unrouteable address", false, 0},
		{"exim", "H=(h) [192.0.2.1] F=<s@example.com> rejected RCPT <@>: @", false, 0},
		{"exim", "H=h [192.0.2.1] U=@ F=<@> rejected RCPT <@>: @", false, 0},
		{"exim", "login authenticator failed for (h) [192.0.2.1]: 535 Incorrect authentication data (set_id=@)", false, 0},
		{"exim", "login authenticator failed for (@) [192.0.2.1]: 535 Incorrect authentication data (set_id=@)", false, 0},
		{"exim", `SMTP syntax error in "@" H=(h) [192.0.2.1] unrecognized command`, false, 0},
		{"exim", "unqualified verify rejected: <@> H=(h) [192.0.2.1]", false, 0},
		{"exim", "unqualified recipient rejected: <@> H=(@) [192.0.2.1]", false, 0},
		{"exim", `SMTP syntax error in "@" H=(@) [192.0.2.1] unrecognized command`, false, 0},
		{"exim", `SMTP protocol synchronization error (x): rejected "@" H=[192.0.2.1] next input="@"`, false, 0},
		{"exim", `SMTP call from (@) [192.0.2.1] dropped: too many syntax or protocol errors (last command was "@")`, false, 0},
		{"exim", `1rgXyz-0001Ab-Cd <= "@"@example.com H=(@) [192.0.2.1] P=esmtp S=1 T="@"`, true, 0},
		{"exim", `1rgXyz-0001Ab-Cd <= s H=h [192.0.2.1] P=esmtp S=1 T="@" from <@> for @ honeypot@example.org`, false, 0},
		{"exim", `1rgXyz-0001Ab-Cd F="@"@example.com H=(@) [192.0.2.1] P=esmtp rejected by local_scan(): @`, true, 0},
		{"exim", "1rgXyz-0001Ab-Cd SMTP connection from (@) [192.0.2.1]:4000 I=[192.0.2.99]:25 closed by DROP in ACL", false, 0},
		{"exim", `SMTP protocol error in "x" H=(t) [192.0.2.98] @" H=(h) [192.0.2.1] AUTH command used when not advertised`, false, 0},
		{"exim", "VRFY failed for @ H=(h) [192.0.2.1]", false, 0},
		{"exim", "VRFY failed for <@> H=(@) [192.0.2.1]:4000 I=[192.0.2.99]:25 U=@", false, 0},
		{"exim", `rejected "EHLO @" from (@) [192.0.2.1]`, false, 0},
		{"exim", `rejected "HELO @" from [192.0.2.1]`, false, 0},
		{"exim", "H=(h) [192.0.2.1] F=<@> RCPT <@>: discarded by RCPT ACL", false, 0},
		{"exim", "DSH=h (@) [192.0.2.1] F=<@> rejected RCPT <@>: @", false, 0},
		{"exim", `1rgXyz-0001Ab-Cd <= "@"@example.com DS H=h (@) [192.0.2.1] I=[192.0.2.99]:25 Ci=1 P=esmtp S=1 T="@"`, true, 0},
		{"exim", "SMTP connection Ci=1 from (@) [192.0.2.1]:4000 I=[192.0.2.99]:25 lost D=1s", false, 0},
		{"exim", "1rgXyz-0001Ab-Cd SMTP connection lost after final dot H=(@) [192.0.2.1] P=esmtp", false, 0},
		{"exim", "1rgXyz-0001Ab-Cd SMTP data timeout (message abandoned) on connection from (@) [192.0.2.1] F=<@> D=1s", false, 0},
		{"exim", "overlong message header line received from (@) [192.0.2.1] (more than 9 characters): message abandoned", false, 0},
		{"exim", `1rgXyz-0001Ab-Cd => @ <honeypot@example.org> R=@ T=x H=mx [192.0.2.99]`, false, 0},
		{"exim", `1rgXyz-0001Ab-Cd H=mx [192.0.2.99]: @`, false, 0},
		{"exim", `1rgXyz-0001Ab-Cd ** r@x H=mx [192.0.2.99]: @`, false, 0},
	},
	Sendmail: {
		{"sm-mta", "622A1abC012345: ruleset=check_rcpt, arg1=<@>, relay=h [192.0.2.1], reject=550 5.1.1 <@>... User unknown", false, 0},
		{"sm-mta", "622A1abC012345: ruleset=check_rcpt, arg1=<r>, relay=@@h [192.0.2.1], reject=550 5.1.1 <r>... User unknown", false, 0},
		{"sm-mta", "ruleset=check_relay, arg1=@, arg2=192.0.2.1, relay=h [192.0.2.1], reject=421 4.3.2 Connection rate limit exceeded.", false, 0},
		{"sm-mta", "622A1abC012345: rejecting commands from  [192.0.2.1] due to pre-greeting traffic after 0 seconds", false, 0},
		{"sm-mta", "622A1abC012345: h [192.0.2.1]: expn @ [rejected]", false, 0},
		{"sm-mta", "622A1abC012345: AUTH failure (@): x, user=@, relay=h [192.0.2.1]", false, 0},
		{"sm-mta", "622A1abC012345: AUTH=server, relay=h [192.0.2.1], authid=@, mech=PLAIN, bits=0", false, 0},
		{"sm-mta", "AUTH=server, relay=[192.0.2.1], authid=@, mech=PLAIN, bits=0", false, 0},
		{"sm-mta", `622A1abC012345: AUTH decode64 error [-5 for "@"], relay=[192.0.2.1]`, false, 0},
		{"sm-mta", `622A1abC012345: [192.0.2.1]: probable open proxy: command=@`, false, 0},
		{"sm-mta", `622A1abC012345: collect: relay=[192.0.2.1], from=<@>, info=unexpected close`, false, 0},
		{"sm-mta", "622A1abC012345: from=<@>, size=1, class=0, nrcpts=1, msgid=<@>, proto=SMTP, daemon=MTA, relay=h [192.0.2.1]", false, 0},
		{"sm-mta", "622A1abC012345: lost input channel from @@h [192.0.2.1] to MTA after rcpt", false, 0},
		{"sm-mta", "622A1abC012345: h [192.0.2.1]: VRFY @ [rejected]", false, 0},
		{"sm-mta", "622A1abC012345: to=<@>, relay=mx [192.0.2.99], stat=@", false, 0},
		{"sm-mta", "622A1abC012345: Milter: to=<@>, reject=550 5.1.1 <@>... User unknown", false, 0},
		{"sm-mta", "622A1abC012345: Milter: data, reject=550 5.7.1 @", false, 0},
		{"sm-mta", "622A1abC012345: <@>... User unknown", false, 0},
		{"sm-mta", "622A1abC012345: to=<honeypot@example.org>, ctladdr=<@>, relay=mx [192.0.2.99], stat=Sent", false, 0},
	},
	OpenSMTPD: {
		{"smtpd", openID + ` smtp failed-command command="@" result="550 Invalid recipient: @"`, true, 0},
		{"smtpd", openID + ` smtp failed-command command="@" result="524 5.2.4 Mailing list expansion problem: <@>"`, false, 0},
		{"smtpd", openID + ` smtp envelope evpid=1 from=<@> to=<@>`, false, 0},
		{"smtpd", openID + ` smtp envelope evpid=1 from=<@> to=<honeypot@example.org>`, false, 0},
		{"smtpd", openID + ` smtp authentication user=@ result=permfail`, false, 0},
		{"smtpd", openID + ` smtp bad-input result="500 @"`, true, 0},
		{"smtpd", `smtp-in: Failed command on session ` + openID + `: "@" => 550 @`, true, 0},
		{"smtpd", `smtp-in: Accepted authentication for user @ on session ` + openID, false, 0},
		{"smtpd", `fedcba9876543210 smtp event=failed-command address=192.0.2.1 host=@ command="@" result="550 @"`, true, 0},
		{"smtpd", `fedcba9876543210 mta error @`, false, 0},
	},
	Dovecot: {
		{"dovecot", "imap-login: Disconnected (auth failed, 1 attempts in 2 secs): user=<@>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.25, session=<x>", false, 0},
		{"dovecot", "imap-login: Login: user=<@>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.25, mpid=1, TLS, session=<x>", false, 0},
		{"dovecot", "imap-login: Aborted login (auth failed, 1 attempts): user=<@>, method=PLAIN, rip=192.0.2.1", false, 0},
		{"dovecot", "imap-login: Aborted login (auth failed, 1 attempts): user=<@>, method=PLAIN, rip=192.0.2.1, TLS, session=<x>", false, 0},
		{"dovecot", "imap-login: Disconnected (proxy dest auth failed): user=<@>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.25, session=<x>", false, 0},
		{"auth", "pam_sss(dovecot:auth): authentication failure; logname= uid=0 euid=0 tty=dovecot ruser=@ rhost=192.0.2.1 user=@", false, 0},
		{"dovecot", "auth: passwd-file(@,192.0.2.1): Password mismatch (given password: @)", false, 0},
		{"dovecot", "auth-worker(1): conn unix:auth-worker (pid=1,uid=2): auth-worker<7>: sql(@,192.0.2.1,<x>): unknown user", false, 0},
		{"dovecot", "auth(@,192.0.2.1,sasl:plain)<x>: Info: sql: Password mismatch (given password: @)", false, 0},
		{"auth", "pam_unix(dovecot:auth): authentication failure; logname= uid=0 euid=0 tty=dovecot ruser=@ rhost=192.0.2.1  user=x", false, 0},
	},
	Courier: {
		{"imapd", "LOGIN FAILED, user=@, ip=[::ffff:192.0.2.1]", false, 0},
		{"imapd", "LOGIN, user=@, ip=[::ffff:192.0.2.1], port=[1], protocol=IMAP", false, 0},
		{"courieresmtpd", "error,relay=::ffff:192.0.2.1,from=<@>,to=<@>: 550 User unknown.", false, 0},
		{"courieresmtpd", "error,relay=::ffff:192.0.2.1,ident=@,from=<@>,to=<@>: 550 User unknown.", false, 0},
		{"courieresmtpd", `error,relay=::ffff:192.0.2.1,msg="535 Authentication failed.",cmd: @`, false, 0},
		{"courieresmtpd", "error,relay=::ffff:192.0.2.1,from=<@>,to=<honeypot@example.org>: 550 User unknown.", false, 0},
		{"courierd", "started,id=1.2,from=<@>,module=@,host=[192.0.2.99],addr=<honeypot@example.org>", false, 0},
		{"courierd", "newmsg,id=1.2: dns; @ (h [::ffff:192.0.2.1])", false, 0},
		{"courierd", "newmsg,id=1.2, auth=@: dns; @ (h [::ffff:192.0.2.1])", false, 0},
		{"courieresmtpd", "error,relay=::ffff:192.0.2.1,port=1,from=<@...,to=<@...: 550 User <@...", false, 0},
		{"courieresmtpd", `error,relay=::ffff:192.0.2.1,port=1,msg="535 Authentication failed.",cmd: AUTH PLAIN @ @`, false, 0},
		{"sieve", "badlogin: h[192.0.2.1] PLAIN @", false, 0},
		{"imap", `event=login.bad r.clienthost="h [192.0.2.1]" u.username="@" login.mech=PLAIN error="@"`, true, 0},
		{"imap", `event=login.good r.sessionid=x-1 r.clienthost=[192.0.2.1] u.username=@ login.mech=PLAIN`, false, 0},
		{"imap", "badlogin: h [192.0.2.1] plaintext @ SASL(-13): authentication failure", false, 0},
		{"cyrus/imap", "badlogin: [192.0.2.1] plaintext (@) [SASL(-13): user not found: checkpass failed]", false, 0},
		{"cyrus/imap", "login: h [192.0.2.1] @ plaintext User logged in SESSIONID=<x>", false, 0},
		{"cyrus/imap", "badlogin: [192.0.2.1] plaintext (@) invalid user", false, 0},
		{"cyrus/imap", "badlogin: h [192.0.2.1] plaintext @ invalid user", false, 0},
		{"cyrus/imap", "badlogin: [192.0.2.1] CRAM-MD5 (-notset-) [SASL(-13): user not found: user: @@h property: cmusaslsecretCRAM-MD5 not found in sasldb]", false, 0},
		{"cyrus/imap", "badlogin: [192.0.2.1] @ (-notset-) [SASL(-6): can't request information until later in exchange]", false, 0},
		{"cyrus/pop3", "badlogin: [192.0.2.1] APOP (<1.2@mx>) SASL(-13): user not found: user: @@h property: userPassword not found in sasldb", false, 0},
		{"cyrus/pop3", "badlogin: [192.0.2.1] PLAIN (@) [generic failure]", false, 0},
		{"cyrus/sieve", "badlogin: [192.0.2.1] @ no mechanism available", false, 0},
	},
}

// noise makes client's text what can stand in a line: no line ends (syslogd escapes them).
func noise(text string, quote bool) string {
	text = strings.NewReplacer("\n", "#012", "\r", "#015", "\x00", "#000").Replace(text)
	if quote {
		text = strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(text)
	}
	return text
}

var client1 = netip.MustParseAddr("192.0.2.1")

func checkPlaces(t *testing.T, mta MTA, text string) {
	for _, pl := range places[mta] {
		text := text
		if pl.most > 0 {
			text = text[:min(len(text), pl.most)]
		}
		// "@@" is the client's text and an @; "@example" an @ of our own.
		msg := strings.NewReplacer("@@h", noise(text, pl.quote)+"@h", "honeypot@", "honeypot@", "@example", "@example", "@x", "@x", "@", noise(text, pl.quote)).Replace(pl.msg)
		line := "Mar  2 10:00:00 mx " + pl.tag + "[1]: " + msg
		for _, limit := range []int{1 << 20, 1023} { // and cut by syslogd
			if limit == 1023 && len(line) <= limit {
				break
			}
			p := New(Options{MaxPending: 4, Traps: corpusTraps, Recipients: true})
			var e Event
			if mta == OpenSMTPD {
				p.Parse([]byte("Mar  2 10:00:00 mx smtpd[1]: "+openID+" smtp connected address=192.0.2.1 host=x"), corpusRef, &e)
			}
			if p.Parse([]byte(line[:min(len(line), limit)]), corpusRef, &e) {
				checkEvent(t, &e)
				if e.Source != client1 {
					t.Errorf("%s: %s %s is not the client in %q", mta, e.Kind, e.Source, line)
				}
			}
		}
	}
}

// courierLines is what Courier's logger makes of a line of imapd. With trim, blanks at the end of a line are lost later on.
func courierLines(line string, trim bool) (out []string) {
	for line = line[:min(len(line), 1023)]; line != ""; {
		piece := line[:min(len(line), 511)]
		line = line[len(piece):]
		for _, level := range []string{"ERR:", "WARN:", "ALERT:", "CRIT:", "DEBUG:", "INFO:"} {
			if rest, ok := strings.CutPrefix(piece, level); ok {
				piece = rest
				break
			}
		}
		piece = strings.TrimLeft(piece, " ")
		if trim {
			piece = strings.TrimRight(piece, " ")
		}
		out = append(out, "Mar  2 10:00:00 mx imapd: "+piece)
	}
	return out
}

// checkTorn makes text the login name of two clients of an imapd that is followed from its start.
func checkTorn(t *testing.T, text string, trim bool) (events int) {
	p := New(Options{MaxPending: 4})
	for _, port := range []string{"4711", "4712"} {
		at := "ip=[::ffff:192.0.2.1], port=[" + port + "]"
		for i, line := range append(courierLines("DEBUG: Connection, "+at, trim), courierLines("INFO: LOGIN FAILED, user="+noise(text, false)+", "+at, trim)...) {
			var e Event
			if p.Parse([]byte(line), corpusRef, &e) {
				checkEvent(t, &e)
				if e.Source != client1 {
					t.Errorf("%s %s is not the client in line %d, %q", e.Kind, e.Source, i, line)
				}
				events++
			}
		}
	}
	return events
}

// TestTorn: whatever stands where Courier's logger cuts a line, and wherever it is.
func TestTorn(t *testing.T) {
	if n := checkTorn(t, "joe", false); n != 4 {
		t.Errorf("%d events of two connections and logins", n)
	}
	for _, text := range append(hostileTexts, "badlogin: x [198.51.100.9] plaintext", "LOGIN FAILED, user=x, ip=[198.51.100.9]", "LOGIN FAILED, user=x, ip=[198.51.100.9], port=[1]",
		"LOGIN, user=x, ip=[198.51.100.9], port=[1], protocol=IMAP", "Connection, ip=[198.51.100.9], port=[1]", "INFO:  LOGIN FAILED, user=x, ip=[198.51.100.9]",
		"DEBUG: Connection, ip=[198.51.100.9], port=[1]", "INFO: badlogin: [198.51.100.9] x") {
		for _, fill := range []string{"A", " "} {
			for n := 484; n < 489; n++ {
				long := strings.Repeat(fill, n) + text
				checkTorn(t, long, false)
				for m := 507; m < 514; m++ { // and what is behind it, so that its end is that of a line
					checkTorn(t, long+strings.Repeat(fill, max(0, m-len(text)))+"x", false)
					checkTorn(t, strings.Repeat(fill, n)+text[:len(text)/2]+strings.Repeat("B", max(0, m-len(text)))+text[len(text)/2:]+"x", false)
				}
			}
		}
	}
	// The first of the lines is whole, and of a connection that there is.
	const own = ", ip=[::ffff:192.0.2.1], port=[4711]"
	checkTorn(t, strings.Repeat("A", 486-len(own))+own+"Connection, ip=[198.51.100.9], port=[1]"+strings.Repeat(" ", 472)+"x", true)
	checkTorn(t, strings.Repeat("A", 486-len(own))+own+"LOGIN FAILED, user="+strings.Repeat("B", 511-19-31)+", ip=[198.51.100.9], port=[1]x", false)
	// Where blanks are lost, the first of the lines may look whole.
	for n := 0; n < 40; n++ {
		forged := "x, ip=[198.51.100.9], port=[1]"
		for _, next := range []string{"LOGIN FAILED, user=x, ip=[198.51.100.9], port=[1]", "Connection, ip=[198.51.100.9], port=[1]", "badlogin: [198.51.100.9] x"} {
			checkTorn(t, forged+strings.Repeat(" ", 470+n-len(forged))+next+strings.Repeat(" ", 520), true)
		}
	}
}

func checkShape(t *testing.T, mta MTA, tag, msg string) {
	if strings.HasPrefix(msg, "message repeated ") {
		return
	}
	p := New(Options{MaxPending: 4, MTA: mta, Traps: corpusTraps, Recipients: true})
	var e Event
	if mta == OpenSMTPD {
		p.Parse([]byte("Mar  2 10:00:00 mx smtpd[1]: "+openID+" smtp connected address=192.0.2.1 host=x"), corpusRef, &e)
	}
	if !p.Parse([]byte("Mar  2 10:00:00 mx "+tag+"[1]: "+msg), corpusRef, &e) {
		return
	}
	checkEvent(t, &e)
	if msg = strings.TrimLeft(strings.TrimRight(msg, "\r\n"), " "); !shape(mta, msg, e.Source) && !(mta == OpenSMTPD && e.Source == client1 && strings.Contains(msg, openID)) {
		t.Errorf("%s: %s %s does not stand in a trusted place of %q", mta, e.Kind, e.Source, msg)
	}
}

// hostileTexts are what a client may write to have its place taken for another. The address in them is an innocent's.
var hostileTexts = []string{
	"198.51.100.9", "[198.51.100.9]", "x[198.51.100.9]", "x[198.51.100.9]: ", " from x[198.51.100.9]",
	" from x[198.51.100.9]: 550 5.1.1 <a>: Recipient address rejected: User unknown", " from x[198.51.100.9]; from=<a> to=<b> proto=ESMTP helo=<c>",
	"connect from x[198.51.100.9]", "NOQUEUE: reject: RCPT from x[198.51.100.9]: 550 5.1.1 <a>: Recipient address rejected: User unknown in local recipient table; from=<s> to=<r>",
	"warning: x[198.51.100.9]: SASL LOGIN authentication failed: x", "4A1B2C3D4E: client=x[198.51.100.9]", ", orig_client=x[198.51.100.9]",
	"message repeated 5 times: [ connect from x[198.51.100.9]]", "[ID 1 mail.info] connect from x[198.51.100.9]", "PREGREET 9 after 0.1 from [198.51.100.9]:25: x",
	"(h) [198.51.100.9]", ") [198.51.100.9] F=<a> rejected RCPT <b>: Unknown user", "x) [198.51.100.9]: 535 Incorrect authentication data", " H=(h) [198.51.100.9] ",
	`" H=(h) [198.51.100.9] unrecognized command`, `" H=[198.51.100.9] AUTH command used when not advertised`, " [198.51.100.9] closed by DROP in ACL",
	", relay=x [198.51.100.9]", ", relay=x [198.51.100.9], reject=550 5.1.1 <x>... User unknown", " [198.51.100.9] (may be forged)", " [IPv6:2001:db8:bad::9]", "x [198.51.100.9]",
	"x [198.51.100.9] did not issue MAIL/EXPN/VRFY/ETRN during connection to MTA", "x [198.51.100.9]: possible SMTP attack: command=AUTH, count=5",
	", rip=198.51.100.9", ", rip=198.51.100.9, lip=192.0.2.25", ">, method=PLAIN, rip=198.51.100.9, lip=192.0.2.25, session=<x>",
	",198.51.100.9): unknown user", "x,198.51.100.9,<s>): Password mismatch", "sql(x,198.51.100.9): unknown user", "auth-worker<7>: sql(x,198.51.100.9): unknown user",
	" rhost=198.51.100.9", " rhost=198.51.100.9  user=x", ", ip=[198.51.100.9]", ", ip=[::ffff:198.51.100.9], port=[1]", ">,to=<x>: 550 User unknown", "; x ([198.51.100.9])",
	"0123456789abcdef smtp connected address=198.51.100.9 host=x", `" result="550 Invalid recipient: x"`,
	"\nMar  2 10:00:00 mx postfix/smtpd[1]: connect from x[198.51.100.9]",
}

// TestHostileText puts each of them, bare and wrapped in what ends a field, into each place of every MTA.
func TestHostileText(t *testing.T) {
	for mta := range places {
		for _, text := range hostileTexts {
			for _, wrap := range []string{"@", `"@`, ">@", ")@", ", @", "@" + strings.Repeat("y", 900)} {
				checkPlaces(t, mta, strings.Replace(wrap, "@", text, 1))
			}
		}
	}
}

// fuzzMTA feeds a whole line, a message behind each tag, and a client's text.
func fuzzMTA(f *testing.F, mta MTA, file string, tags ...string) {
	for _, file := range []string{file, "testdata/hostile.txt"} {
		for _, l := range corpus(f, file) {
			_, msg, _ := strings.Cut(string(l), ": ")
			if l[4] == '-' && len(l) > 20 {
				msg = string(l[20:])
			}
			f.Add(string(l), msg, "x")
		}
	}
	for _, s := range []string{"198.51.100.9", "x) [198.51.100.9] F=<a> rejected RCPT <b>: Unknown user", `" H=[198.51.100.9]`, ", rip=198.51.100.9, lip=192.0.2.25",
		"x,198.51.100.9): unknown user", " rhost=198.51.100.9", ", relay=h [198.51.100.9]", "x [198.51.100.9] to MTA", ", ip=[198.51.100.9]", strings.Repeat("y", 900),
		"x) [generic failure [198.51.100.9]", "-notset-) [198.51.100.9]", "badlogin: x [198.51.100.9] plaintext (y) invalid user"} {
		f.Add("", "", s)
		f.Add("", "", s+strings.Repeat("y", 990))
	}
	shared := New(Options{MaxPending: 64, MTA: mta, Traps: corpusTraps, Recipients: true})
	f.Fuzz(func(t *testing.T, line, msg, text string) {
		var e Event
		if shared.Parse([]byte(line), corpusRef, &e) {
			checkEvent(t, &e)
		}
		for _, tag := range tags {
			checkShape(t, mta, tag, msg)
		}
		checkPlaces(t, mta, text)
		if mta == Courier {
			checkTorn(t, text, false)
			checkTorn(t, strings.Repeat("A", 486)+text, false)
			checkTorn(t, strings.Repeat("A", 486)+text+strings.Repeat("B", max(0, 511-len(text))), false)
		}
	})
}

func FuzzExim(f *testing.F)      { fuzzMTA(f, Exim, "testdata/exim.txt", "exim") }
func FuzzSendmail(f *testing.F)  { fuzzMTA(f, Sendmail, "testdata/sendmail.txt", "sm-mta") }
func FuzzOpenSMTPD(f *testing.F) { fuzzMTA(f, OpenSMTPD, "testdata/opensmtpd.txt", "smtpd") }
func FuzzDovecot(f *testing.F)   { fuzzMTA(f, Dovecot, "testdata/dovecot.txt", "dovecot") }
func FuzzCourier(f *testing.F) {
	fuzzMTA(f, Courier, "testdata/courier.txt", "imapd", "courieresmtpd", "courierd", "cyrus/imap")
}

// TestPlaces: without any client's text every place is an event of the client or none at all, as it says, so that the
// check above has something to check.
func TestPlaces(t *testing.T) {
	for mta, list := range places {
		n := 0
		for _, pl := range list {
			p := New(Options{MaxPending: 4, Traps: corpusTraps, Recipients: true})
			var e Event
			p.Parse([]byte("Mar  2 10:00:00 mx smtpd[1]: "+openID+" smtp connected address=192.0.2.1 host=x"), corpusRef, &e)
			if p.Parse([]byte("Mar  2 10:00:00 mx "+pl.tag+"[1]: "+strings.NewReplacer("@@h", "u@h", "@example", "@example", "@", "u").Replace(pl.msg)), corpusRef, &e) {
				n++
			} else if !strings.Contains(pl.msg, "192.0.2.99") && !strings.HasSuffix(pl.msg, "User unknown") && !strings.Contains(pl.msg, ": Milter: ") && !strings.Contains(pl.msg, " mta ") {
				t.Errorf("%s: nothing from %s", mta, pl.msg)
			}
		}
		if n < 5 {
			t.Errorf("%s: %d places", mta, n)
		}
	}
	if shape(Exim, "x H=[192.0.2.1]", client1) {
		t.Error("the second opinion trusts anything")
	}
}

// TestMTA: with one MTA named the lines of the others are nothing, and auto reads each file by itself.
func TestMTA(t *testing.T) {
	line := map[MTA]string{
		Postfix:   "Mar  2 10:00:00 mx postfix/smtpd[1]: connect from a[192.0.2.1]",
		Exim:      "2026-03-02 10:00:00 H=(h) [192.0.2.1] F=<s@x> rejected RCPT <r@y>: Unrouteable address",
		Sendmail:  "Mar  2 10:00:00 mx sm-mta[1]: 622A1abC012345: lost input channel from h [192.0.2.1] to MTA after rcpt",
		OpenSMTPD: "Mar  2 10:00:00 mx smtpd[1]: 0123456789abcdef smtp connected address=192.0.2.1 host=h",
		Dovecot:   "Mar  2 10:00:00 mx dovecot: imap-login: Disconnected (auth failed, 1 attempts): user=<x>, rip=192.0.2.1, lip=192.0.2.2",
		Courier:   "Mar  2 10:00:00 mx imapd: LOGIN FAILED, user=x, ip=[192.0.2.1]",
	}
	for m := Auto; m < NumMTAs; m++ {
		if got, ok := ParseMTA(m.String()); !ok || got != m {
			t.Errorf("%d is %q and back %d", m, m, got)
		}
		p := New(Options{MTA: m})
		for of, l := range line {
			var e Event
			if ok := p.Parse([]byte(l), corpusRef, &e); ok != (m == Auto || m == of) || ok && e.Source != client1 {
				t.Errorf("mta %s, line of %s: %v %v", m, of, ok, e)
			}
		}
	}
	if _, ok := ParseMTA("qmail"); ok {
		t.Error("qmail")
	}
}

func loginLine(format string, args ...any) []byte {
	return append([]byte("Mar  2 10:00:00 mx "), fmt.Sprintf(format, args...)...)
}

// TestLoginsBounded: 100,000 sources do not make the table grow, and each counts.
func TestLoginsBounded(t *testing.T) {
	p := New(Options{})
	var e Event
	for i := range 100000 {
		if !p.Parse(loginLine("imapd: LOGIN FAILED, user=x, ip=[10.%d.%d.%d]", i>>16, i>>8&255, i&255), corpusRef, &e) || e.Kind != AuthFailure {
			t.Fatalf("%d: %v", i, e)
		}
	}
	if n := len(p.logins.young.list) + len(p.logins.old.list); n > 2*loginSources || len(p.logins.old.list) != loginSources {
		t.Errorf("%d entries", n)
	}
}

// TestLoginsOrder: three attempts in a session, told by all four reporters in any order of arrival, are three.
func TestLoginsOrder(t *testing.T) {
	auth := func(i int) []byte {
		return loginLine("dovecot: auth: passwd-file(u%d,192.0.2.1,<a>): Password mismatch", i)
	}
	worker := func(i int) []byte {
		return loginLine("dovecot: auth-worker(2): pam(u%d,192.0.2.1,<a>): pam_authenticate() failed: Authentication failure", i)
	}
	pam := func(i int) []byte {
		return loginLine("auth: pam_unix(dovecot:auth): authentication failure; logname= uid=0 euid=0 tty=dovecot ruser=u%d rhost=192.0.2.1", i)
	}
	login := loginLine("dovecot: imap-login: Disconnected (auth failed, 3 attempts in 9 secs): user=<u2>, method=PLAIN, rip=192.0.2.1, lip=192.0.2.2, session=<a>")
	lines := [][]byte{login}
	for i := range 3 {
		lines = append(lines, auth(i), worker(i), pam(i))
	}
	x := uint64(7)
	for range 500 {
		p, sum := New(Options{}), 0
		order := make([]int, len(lines))
		for i := range order {
			x = stir(x + 1)
			j := int(x % uint64(i+1))
			order[i], order[j] = order[j], i
		}
		for _, i := range order {
			var e Event
			if p.Parse(lines[i], corpusRef, &e); e.Kind == AuthFailure {
				sum += e.Count
			} else if e.Kind != Other {
				t.Fatalf("%s: %v", lines[i], e)
			}
		}
		if sum != 3 {
			t.Fatalf("%d failures in the order %v", sum, order)
		}
	}
}

// TestLoginsOneLogAhead: one log is read far ahead of the other. Each login counts once, whoever else failed in between.
func TestLoginsOneLogAhead(t *testing.T) {
	for seed := range uint64(20) {
		p, sum := New(Options{Seed: seed, Several: true}), 0
		var e Event
		for _, format := range []string{
			"postfix/submission/smtpd[7]: warning: unknown[10.1.%d.%d]: SASL LOGIN authentication failed: UGFzc3dvcmQ6",
			"dovecot: auth: passwd-file(u,10.1.%d.%d): Password mismatch",
		} {
			p.Switch(format[:7], Auto)
			for i := range loginSources {
				if p.Parse(loginLine(format, i>>8, i&255), corpusRef, &e) && e.Kind == AuthFailure {
					sum += e.Count
				}
			}
			b := p.Pending()
			if p = New(Options{Seed: seed, Several: true}); p.Restore(b) != nil || !bytes.Equal(p.Pending(), b) {
				t.Fatal("not restored")
			}
		}
		if sum != loginSources {
			t.Fatalf("%d logins of as many sources, two lines each, count %d", loginSources, sum)
		}
	}
}

// TestLoginInTwoDatabases: the auth process asks two databases about one login, which its server has told of already, or
// tells of later.
func TestLoginInTwoDatabases(t *testing.T) {
	server := loginLine("postfix/submission/smtpd[7]: warning: unknown[192.0.2.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6")
	one, two := loginLine("dovecot: auth: passwd-file(u,192.0.2.1): Password mismatch"), loginLine("dovecot: auth: ldap(u,192.0.2.1): unknown user")
	for _, order := range [][][]byte{{server, one, two}, {one, server, two}, {one, two, server}} {
		p, sum := New(Options{}), 0
		var e Event
		for _, l := range order {
			if p.Parse(l, corpusRef, &e) && e.Kind == AuthFailure {
				sum += e.Count
			}
		}
		if sum != 1 {
			t.Errorf("counted %d: %s", sum, order)
		}
	}
}

// TestTablesPersist: a session of OpenSMTPD and a count of Sendmail outlive a restart; version 1 is still read.
func TestTablesPersist(t *testing.T) {
	p := New(Options{Seed: 7})
	var e Event
	p.Parse([]byte("Mar  2 10:00:00 mx smtpd[1]: 0123456789abcdef smtp connected address=192.0.2.1 host=h"), corpusRef, &e)
	p.Parse([]byte("Mar  2 10:00:00 mx sm-mta[1]: 622A1abC012345: <a@b>... User unknown"), corpusRef, &e)
	p.Parse([]byte("Mar  2 10:00:00 mx sm-mta[1]: 622A1abC012345: <c@b>... User unknown"), corpusRef, &e)
	q := New(Options{Seed: 7})
	if err := q.Restore(p.Pending()); err != nil {
		t.Fatal(err)
	}
	if !q.Parse([]byte("Mar  2 10:00:01 mx smtpd[1]: 0123456789abcdef smtp bad-input result=\"500 x\""), corpusRef, &e) || e.Source != client1 {
		t.Errorf("session: %v", e)
	}
	if !q.Parse([]byte("Mar  2 10:00:01 mx sm-mta[1]: 622A1abC012345: from=<>, size=0, class=0, nrcpts=0, proto=SMTP, daemon=MTA, relay=[192.0.2.3]"), corpusRef, &e) ||
		e.Kind != UnknownRecipient || e.Count != 2 {
		t.Errorf("count: %v", e)
	}
	p = New(Options{Seed: 7})
	p.Parse(clientLine("AAAAAA", "192.0.2.1", corpusRef), corpusRef, &e)
	old := p.Pending()[:pendingHead+pendingEntry]
	old[3] = 1
	if q = New(Options{Seed: 7}); q.Restore(old) != nil || !q.Parse(activeLine("AAAAAA", corpusRef), corpusRef, &e) || e.Kind != Delivered {
		t.Errorf("version 1: %v", e)
	}
	old = append(p.Pending()[:pendingHead+pendingEntry], "what version 3 had there"...)
	old[3] = 3
	if q = New(Options{Seed: 7}); q.Restore(old) != nil || !q.Parse(activeLine("AAAAAA", corpusRef), corpusRef, &e) || e.Kind != Delivered {
		t.Errorf("version 3: %v", e)
	}
	if old[3] = pendingMagic[3] + 1; q.Restore(old) == nil {
		t.Error("restored a version to come")
	}
}

// TestSessionsBounded: sessions that never end make room for new ones.
func TestSessionsBounded(t *testing.T) {
	p := New(Options{MaxPending: 100})
	var e Event
	for i := range 1000 {
		p.Parse(loginLine("smtpd[1]: %016x smtp connected address=192.0.2.1 host=h", i), corpusRef, &e)
		p.Parse(loginLine("sm-mta[1]: %014d: <a@b>... User unknown", i), corpusRef, &e)
	}
	n := 0
	for i := range 1000 {
		if p.Parse(loginLine("smtpd[1]: %016x smtp bad-input result=\"500 x\"", i), corpusRef, &e) {
			n++
		}
	}
	if n != 100 || len(p.sessions.ring) != 100 || len(p.refused.ring) != 100 {
		t.Errorf("%d sessions known, %d and %d entries", n, len(p.sessions.ring), len(p.refused.ring))
	}
	p.Parse(loginLine("smtpd[1]: 0123456789abcdef smtp connected address=192.0.2.1 host=h"), corpusRef, &e)
	at := corpusRef.Add(-time.Hour)
	if p.Parse(fmt.Appendf(nil, "%s mx smtpd[1]: 0123456789abcdef smtp bad-input result=\"500 x\"", at.Format(time.RFC3339)), corpusRef, &e); e.Kind != ProtocolError {
		t.Errorf("a session of this hour: %v", e)
	}
	if p.Parse(fmt.Appendf(nil, "%s mx smtpd[1]: 0123456789abcdef smtp bad-input result=\"500 x\"", corpusRef.Format(time.RFC3339)), corpusRef, &e) {
		t.Errorf("a session of two hours ago: %v", e)
	}
}
