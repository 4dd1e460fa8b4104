package maillog

import (
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// The second opinion: the same trusted places of a line, written down once more as anchored expressions. It shares no
// code with the parser. Every expression starts at the beginning of the message and reaches the address through words
// of Postfix only; the first group is the address.
const (
	hostRE   = `[A-Za-z0-9._-]{1,255}\[([0-9A-Fa-f:.]{2,45})(?:%[^\]]+)?\](?::[0-9]+)?`
	screenRE = `\[([0-9A-Fa-f:.]{2,45})(?:%[^\]]+)?\](?::[0-9]+)?`
	queueRE  = `[A-Za-z0-9]{5,24}: `
	stageRE  = `[A-Z-]+(?: \([^)]*\))?`
)

var slots = map[string][]*regexp.Regexp{
	"smtpd": compile(
		`(?:connect|disconnect) from `+hostRE+`(?: |$)`,
		`(?:`+queueRE+`)?(?:lost connection|timeout|too many errors) after `+stageRE+` from `+hostRE+` *$`,
		`(?:improper command pipelining|bare <LF> received) after `+stageRE+` from `+hostRE+`(?::| *$)`,
		`SSL_accept error from `+hostRE+`(?::| *$)`,
		queueRE+`abort: TLS from `+hostRE+`(?::| *$)`,
		queueRE+`[A-Za-z_-]+: [A-Z-]+ from `+hostRE+`: `,
		queueRE+`client=`+hostRE+`,`,
		`warning: `+hostRE+`: SASL `,
		`warning: [A-Za-z ]+ limit exceeded: [0-9]* from `+hostRE+`(?: |$)`,
		`warning: hostname [A-Za-z0-9._-]+ does not resolve to address ([0-9A-Fa-f:.]+)(?:%\S+)?(?: |$)`,
		`warning: `+hostRE+` sent (?:non-SMTP command|message header instead of SMTP command): `,
		`warning: ([0-9A-Fa-f:.]+): (?:hostname |address not listed for hostname )`,
		`reject: RCPT from `+hostRE+`: `,
		`warning: non-SMTP command from `+hostRE+`(?::| *$)`,
		`warning: (?:Illegal address syntax|Wrapper-mode request dropped|Refusing STARTTLS request|Refusing TLS service request) from `+hostRE+`(?: |$)`,
		`warning: `+queueRE+`(?:malformed BDAT command syntax|null BDAT request|too much BDAT content).*?from `+hostRE+`(?::| *$)`,
		`warning: (?:bad|reject:) ETRN .* from `+hostRE+`$`,
	),
	"postscreen": compile(
		`(?:NOQUEUE: )?(?:CONNECT from|DISCONNECT|PASS NEW|PASS OLD|WHITELISTED|ALLOWLISTED|BLACKLISTED|DENYLISTED|WHITELIST VETO|ALLOWLIST VETO) `+screenRE,
		`(?:NOQUEUE: )?(?:PREGREET|HANGUP after|DNSBL rank) .{0,24}? (?:from|for) `+screenRE,
		`(?:NOQUEUE: )?(?:BARE NEWLINE|COMMAND [A-Z]+ LIMIT|COMMAND PIPELINING|NON-SMTP COMMAND|DATA without valid RCPT|BDAT without valid RCPT) from `+screenRE,
		`(?:NOQUEUE: )?reject: [A-Za-z]+ from `+screenRE+`: `,
	),
	"cleanup": compile(
		queueRE+`milter-reject: [A-Z-]+ from `+hostRE+`: `,
		queueRE+`reject: (?:header|body|mime-header|nested-header) ?.* from `+hostRE+`; from=<`,
	),
}

// solarisID stands between tag and message there.
var solarisID = regexp.MustCompile(`^\[ID [0-9]{1,10} [A-Za-z0-9.]{0,24}\] `)

func compile(res ...string) []*regexp.Regexp {
	var out []*regexp.Regexp
	for _, r := range res {
		out = append(out, regexp.MustCompile(`(?s)^`+r))
	}
	return out
}

// trusted returns the addresses that stand in a trusted place of the message.
func trusted(daemon, msg string) (found []netip.Addr) {
	for _, re := range slots[daemon] {
		m := re.FindStringSubmatch(msg)
		if m == nil {
			continue
		}
		if strings.Contains(re.String(), "mime-header") && strings.Count(msg, "; from=<") != 1 {
			continue
		}
		a, err := netip.ParseAddr(m[1])
		if err != nil && strings.HasPrefix(msg, "warning: hostname ") {
			a, err = netip.ParseAddr(strings.TrimSuffix(m[1], ":"))
		}
		if err == nil {
			found = append(found, a.Unmap())
		}
	}
	return found
}

func checkMessage(t *testing.T, daemon, msg string) {
	if strings.HasPrefix(msg, "message repeated ") {
		return // the corpus has those
	}
	line := []byte("Mar  2 10:00:00 mx postfix/" + daemon + "[1]: " + msg)
	p := New(Options{MaxPending: 8, Traps: corpusTraps, Recipients: true})
	var e Event
	ok := p.Parse(line, corpusRef, &e)
	msg = solarisID.ReplaceAllString(strings.TrimLeft(strings.TrimRight(msg, "\r\n"), " "), "")
	if ok {
		good := false
		for _, a := range trusted(daemon, msg) {
			good = good || a == e.Source
		}
		if !good {
			t.Errorf("%s %s from an untrusted place of %q; trusted are %v", e.Kind, e.Source, msg, trusted(daemon, msg))
		}
		checkEvent(t, &e)
	}
	// What the client= line left behind must be in its slot too.
	if p.Parse([]byte("Mar  2 10:00:01 mx postfix/qmgr[1]: "+firstWord(msg)+" from=<>, size=1, nrcpt=1 (queue active)"), corpusRef, &e) {
		if daemon != "smtpd" || !strings.Contains(msg, "client=") || !slices.Contains(trusted(daemon, msg+","), e.Source) {
			t.Errorf("delivered by %s after %q", e.Source, msg)
		}
		// ... and who delivered it hits the trap, but not with the null sender.
		if p.Parse([]byte("Mar  2 10:00:02 mx postfix/lmtp[1]: "+firstWord(msg)+" to=<honeypot@example.org>, status=deferred (x)"), corpusRef, &e) {
			t.Errorf("a bounce by %s hits a trap after %q", e.Source, msg)
		}
	}
}

func firstWord(s string) string { w, _, _ := strings.Cut(s, " "); return w }

func checkEvent(t *testing.T, e *Event) {
	if e.Kind == None || e.Kind >= NumKinds || e.Count < 1 || e.Time.IsZero() || !e.Source.IsValid() || e.Source.Is4In6() ||
		e.Source.Zone() != "" || e.Source.IsUnspecified() {
		t.Errorf("impossible event %+v", e)
	}
}

func FuzzParse(f *testing.F) {
	for _, file := range []string{"testdata/postfix.txt", "testdata/hostile.txt"} {
		for _, l := range corpus(f, file) {
			f.Add(string(l), "")
			tag, msg, _ := strings.Cut(string(l), ": ")
			_, tag, _ = strings.Cut(tag, "postfix/")
			tag, _, _ = strings.Cut(tag, "[")
			f.Add(tag, msg)
		}
	}
	shared := New(Options{MaxPending: 64, Traps: corpusTraps, Recipients: true})
	f.Fuzz(func(t *testing.T, line, msg string) {
		// A whole line in one parser that goes on from input to input: never panics, never leaves nonsense.
		var e Event
		if shared.Parse([]byte(line), corpusRef, &e) {
			checkEvent(t, &e)
		}
		for daemon := range slots {
			checkMessage(t, daemon, msg)
		}
	})
}

func TestCorpusSecondOpinion(t *testing.T) {
	n := 0
	for _, file := range []string{"testdata/postfix.txt", "testdata/hostile.txt"} {
		for _, l := range corpus(t, file) {
			tag, msg, _ := strings.Cut(string(l), ": ")
			for daemon := range slots {
				if strings.Contains(tag, "/"+daemon) {
					checkMessage(t, daemon, msg)
					n++
				}
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d lines checked", n)
	}
	// The check itself must be able to fail.
	if a := trusted("smtpd", "NOQUEUE: reject: RCPT to x[198.51.100.9]: from y[192.0.2.1]: "); len(a) != 0 {
		t.Errorf("trusts %v", a)
	}
}

// TestLinear: a line of a megabyte must not cost more per byte than a line of 64 KB, whatever it is made of. The margin is
// wide; a quadratic parser misses it by far.
func TestLinear(t *testing.T) {
	for _, start := range []string{
		"postfix/smtpd[1]: NOQUEUE: reject: RCPT from a[192.0.2.1]: 550 5.1.1 <",
		"postfix/smtpd[1]: warning: bad ETRN ",
		"postfix/smtpd[1]: warning: a[192.0.2.1]: SASL ",
		"postfix/smtpd[1]: connect from ",
		"postfix/cleanup[1]: 4D0000000001: reject: header ",
		"exim[1]: H=(h) [192.0.2.1] F=<",
		"exim[1]: H=(",
		"exim[1]: SMTP syntax error in \"",
		"exim[1]: 1rgXyz-0001Ab-Cd <= ",
		"dovecot: auth: sql(",
		"dovecot: imap-login: ",
		"sm-mta[1]: 622A1abC012345: ruleset=check_rcpt, arg1=<",
		"sm-mta[1]: 622A1abC012345: h [192.0.2.1]: VRFY ",
		"smtpd[1]: 0123456789abcdef smtp failed-command command=\"",
		"imapd: LOGIN FAILED, user=",
		"courieresmtpd: error,relay=192.0.2.1,from=<",
	} {
		for _, fill := range []string{"a", "<", "\"", " from ", "; from=<", "[", "spam", ">: ", "sasl_username=", "greylis", ") [", ",192.0.2.9): ",
			"\" H=[", ", relay=[", ", rip=", "@[", " A="} {
			cost := func(n int) time.Duration {
				line := []byte("Mar  2 10:00:00 mx " + start + strings.Repeat(fill, n/len(fill)))
				p, best := New(Options{MaxPending: 8}), time.Hour
				for range 3 {
					var e Event
					from := time.Now()
					p.Parse(line, corpusRef, &e)
					best = min(best, time.Since(from))
				}
				return best
			}
			small, big := cost(1<<16), cost(1<<20)
			for try := 0; big > 160*small+20*time.Millisecond && try < 20; try++ { // the machine may have been busy
				big = min(big, cost(1<<20))
			}
			if big > 160*small+20*time.Millisecond {
				t.Errorf("%s%s...: 64 KB in %v, 1 MB in %v", start, fill, small, big)
			}
		}
	}
}

func FuzzRedact(f *testing.F) {
	f.Add([]byte("from=<alice@example.org> \x1b[31m \xff \u202e"))
	f.Add([]byte(`"a b"@x "@ @@ <@> sasl_username=bob, sasl_username=`))
	f.Add(bytes.Repeat([]byte("a@"), 2000))
	f.Fuzz(func(t *testing.T, line []byte) {
		s := Redact(line)
		if !utf8.ValidString(s) || utf8.RuneCountInString(s) > 300 {
			t.Errorf("%q has %d characters", s, utf8.RuneCountInString(s))
		}
		for i := range len(s) {
			if s[i] < ' ' || s[i] == 0x7f {
				t.Errorf("%q has a control byte", s)
			}
			// No letter may stand right before an @: a local part is one character and ***.
			if s[i] == '@' && i > 0 && isAlnum(s[i-1]) {
				t.Errorf("%q shows a local part", s)
			}
		}
	})
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"from=<alice@example.org> to=<b@example.net>":      "from=<a***@example.org> to=<b***@example.net>",
		"F=alice@example.org P=esmtp":                      "F=a***@example.org P=esmtp",
		"<bounce-alice=example.com@lists.example.org>":     "<b***@lists.example.org>",
		`<"alice smith"@example.org>`:                      `<"a***"@example.org>`,
		"sasl_username=alice, sasl_sender=bob@example.org": "sasl_username=a***, sasl_sender=b***@example.org",
		"\x1b[31mred\x07":                                  `\x1b[31mred\x07`,
		"a\xffb":                                           `a\xffb`,
		"\u202eevil\u2028":                                 `\u{202e}evil\u{2028}`,
		"übung@example.org":                                "ü***@example.org",
		"no address here\r\n":                              "no address here",
		`cmd: AUTH PLAIN AGpvZQBwdw== joe@example.org`:     `cmd: AUTH PLAIN *** j***@example.org`,
		`"AUTH LOGIN am9l" given password: a)b`:            `"AUTH LOGIN *** given password: ***`,
		"":                                                 "",
	} {
		if got := Redact([]byte(in)); got != want {
			t.Errorf("%q:\nwant %q\ngot  %q", in, want, got)
		}
	}
	if s := Redact(bytes.Repeat([]byte("x y "), 200)); utf8.RuneCountInString(s) != 300 || !strings.HasSuffix(s, "…") {
		t.Errorf("%d characters: %q", utf8.RuneCountInString(s), s)
	}
}
