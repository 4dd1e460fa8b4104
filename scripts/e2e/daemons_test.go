//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// A daemon is a mail server with one set of settings, and what its log must say of each attack: the kind of the events.
// "" says that the server does not log it.
type daemon struct {
	name string
	kind lab.Kind
	long bool // with MXSHIELD_TEST_LONG=1 only
	o    lab.Options
	log  string // below the server's folder

	relay, auth, syntax string
	pregreet            string // Postfix without postscreen sees it or not, as it happens
	mailbox             bool   // it serves IMAP and POP3
	slow                bool   // it takes five seconds over each login there that fails
	user                string // of a login that works; "" if there are none
	tls                 bool   // logins need it
	loggedIn            string // what a message of a logged-in user is, if not delivered

	config string                        // more lines for the agent's
	story  func(d *daemon, t *testing.T) // if it is no SMTP server
}

const eximLog, syslogLog = "log/exim/mainlog", "log/mail.log"

var daemons = []daemon{
	{
		name: "exim", kind: lab.KindExim, log: eximLog, user: "user1@example.org", loggedIn: "auth_success",
		// Else this Exim lets everybody talk early, since the client might have been here before (PIPE_CONNECT).
		o:     lab.Options{Extra: "log_selector = +smtp_protocol_error +smtp_syntax_error\npipelining_connect_advertise_hosts =\n"},
		relay: "relay_denied", auth: "auth_failure", syntax: "protocol_error", pregreet: "protocol_error",
	},
	{
		name: "opensmtpd", kind: lab.KindOpenSMTPD, log: syslogLog,
		// A recipient that no rule matches is refused in the same words as an unknown one; this version has no TLS and so no
		// logins, and refuses AUTH as a command.
		relay: "unknown_recipient", auth: "protocol_error", syntax: "protocol_error",
	},
	{
		name: "sendmail", kind: lab.KindSendmail, log: syslogLog, user: "user1@mx1.example.org", o: lab.Options{Syslog: "traditional"},
		relay: "relay_denied", auth: "auth_failure", pregreet: "pregreet",
	},
	{
		name: "dovecot", kind: lab.KindDovecot, log: syslogLog, user: "user1@example.org", mailbox: true,
		o:     lab.Options{Syslog: "traditional", Mailboxes: true, Extra: "auth_verbose = yes\n"},
		relay: "relay_denied", auth: "auth_failure",
	},
	{
		name: "courier", kind: lab.KindCourier, log: syslogLog, user: "user1@example.org", mailbox: true, slow: true, o: lab.Options{Syslog: "iso"},
		relay: "relay_denied", auth: "auth_failure", syntax: "protocol_error",
	},
	{
		name: "cyrus", kind: lab.KindCyrus, log: syslogLog, story: (*daemon).cyrusStory,
		config: "ports: {submission: [143, 110, 4190]}\n",
	},

	{
		name: "exim, everything logged", kind: lab.KindExim, long: true, log: eximLog, user: "user1@example.org", loggedIn: "auth_success",
		o:     lab.Options{Extra: "log_selector = +all\n"},
		relay: "relay_denied", auth: "auth_failure", syntax: "protocol_error",
	},
	{
		name: "exim by syslog", kind: lab.KindExim, long: true, log: syslogLog, user: "user1@example.org", loggedIn: "auth_success",
		o:     lab.Options{Syslog: "iso", Extra: "log_selector = +smtp_protocol_error +smtp_syntax_error +incoming_port +incoming_interface +pid +millisec\n"},
		relay: "relay_denied", auth: "auth_failure", syntax: "protocol_error",
	},
	{
		name: "exim by syslog without its own stamp", kind: lab.KindExim, long: true, log: syslogLog, user: "user1@example.org", loggedIn: "auth_success",
		o:     lab.Options{Syslog: "traditional", Extra: "syslog_timestamp = false\nsyslog_duplication = false\nlog_selector = +smtp_protocol_error +smtp_syntax_error\n"},
		relay: "relay_denied", auth: "auth_failure", syntax: "protocol_error",
	},
	{
		name: "sendmail, private", kind: lab.KindSendmail, long: true, log: syslogLog, user: "user1@mx1.example.org",
		o:     lab.Options{Syslog: "iso", Extra: "define(`confPRIVACY_FLAGS', `goaway')dnl\ndefine(`confLOG_LEVEL', `15')dnl\n"},
		relay: "relay_denied", auth: "auth_failure", pregreet: "pregreet",
	},
	{
		name: "opensmtpd 7", kind: lab.KindOpenSMTPD7, long: true, log: syslogLog, user: "user1@example.org", tls: true, o: lab.Options{Syslog: "traditional"},
		relay: "unknown_recipient", auth: "auth_failure", syntax: "protocol_error",
	},
	{
		name: "dovecot with debug", kind: lab.KindDovecot, long: true, log: syslogLog, user: "user1@example.org", mailbox: true,
		o:     lab.Options{Syslog: "iso", Mailboxes: true, Extra: "auth_verbose = yes\nauth_debug = yes\nauth_verbose_passwords = plain\n"},
		relay: "relay_denied", auth: "auth_failure",
	},
	{
		name: "dovecot, quiet", kind: lab.KindDovecot, long: true, log: syslogLog, user: "user1@example.org", mailbox: true,
		o:     lab.Options{Syslog: "iso", Mailboxes: true, Main: map[string]string{"syslog_name": "postfix-in", "smtpd_client_port_logging": "yes"}},
		relay: "relay_denied", auth: "auth_failure",
	},
	{
		name: "postfix 3.10 with postscreen", kind: lab.KindDovecot24, long: true, log: syslogLog, user: "user1@example.org",
		o: lab.Options{Syslog: "iso", Postscreen: true, Main: map[string]string{
			"postscreen_greet_wait": "1s", "syslog_name": "postfix-mx", "smtpd_client_port_logging": "yes"}},
		relay: "relay_denied", auth: "auth_failure", pregreet: "pregreet",
	},
	{
		name: "dovecot 2.4", kind: lab.KindDovecot24, long: true, log: syslogLog, user: "user1@example.org", mailbox: true,
		o:     lab.Options{Syslog: "iso", Mailboxes: true, Extra: "auth_verbose = yes\nauth_verbose_passwords = plain\n"},
		relay: "relay_denied", auth: "auth_failure",
	},
	{
		name: "dovecot 2.4, quiet", kind: lab.KindDovecot24, long: true, log: syslogLog, user: "user1@example.org", mailbox: true,
		o:     lab.Options{Syslog: "traditional", Mailboxes: true},
		relay: "relay_denied", auth: "auth_failure",
	},
}

// TestDaemons: for each real mail server, each attack by a source ends in as many events of the right kind as the source
// saw refusals, from its own address, in the live agent and in a replay of the log; more of it ends in a block in the
// kernel; honest mail is accepted and counted; and no text of a client brings an event for the address that it names.
func TestDaemons(t *testing.T) {
	for _, d := range daemons {
		t.Run(d.name, func(t *testing.T) {
			if d.long && os.Getenv("MXSHIELD_TEST_LONG") == "" {
				t.Skip("skipped: one setting of each server is enough here; MXSHIELD_TEST_LONG=1 runs all")
			}
			began := time.Now()
			if d.story != nil {
				d.story(&d, t)
			} else {
				d.smtpStory(t)
			}
			t.Logf("%s took %.1f s", d.name, time.Since(began).Seconds())
		})
	}
}

// daemonRig is a rig with the server of d and an agent that reads its log.
func (d *daemon) rig(t *testing.T) *rig {
	t.Helper()
	if binaries == "" {
		t.Skip("skipped: " + why)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	root, err := lab.Root(ctx, lab.CacheDir(), d.kind, func(s string) { t.Log(s) })
	if err != nil {
		t.Skipf("skipped: no %s: %v", d.kind, err)
	}
	r := bareRig(t, "")
	work := filepath.Join(r.dir, "mta")
	r.configure(fmt.Sprintf("logs: [{file: %q}]\n", filepath.Join(work, d.log)) + d.config)
	began := time.Now()
	if d.kind == lab.KindDovecot || d.kind == lab.KindDovecot24 {
		r.mta, err = lab.StartPostfix(ctx, r.host, root, work, d.o)
	} else {
		r.mta, err = lab.StartDaemon(ctx, r.host, d.kind, root, work, d.o)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s started in %.1f s", r.mta.Name(), time.Since(began).Seconds())
	r.env = append(os.Environ(), "PATH="+r.mta.Bin()+":"+os.Getenv("PATH"))
	return r
}

// An expectation is what one source must have in the log.
type expectation struct {
	what   string
	source netip.Addr
	event  string
	count  int
}

// expectations are those of a story.
type expectations []expectation

// add: the client saw as many refusals or successes as there must be events.
func (x *expectations) add(t *testing.T, what string, source netip.Addr, event string, count, saw int) {
	t.Helper()
	if saw != count {
		t.Errorf("%s: the client was refused or served %d times, not %d", what, saw, count)
	}
	if event != "" {
		*x = append(*x, expectation{what, source, event, count})
	}
}

func (d *daemon) smtpStory(t *testing.T) {
	r := d.rig(t)
	r.start()
	ctx, net := t.Context(), r.top.Net
	light := lab.Sources(lab.Attack4, 12)
	six := lab.Sources(lab.Attack6, 3)
	heavy := lab.Sources(netip.MustParsePrefix("198.18.9.0/24"), 2)
	mailbox := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(lab.MX4, port) }
	login := lab.Talk{Reply: patience, TLS: d.tls}
	var want expectations
	expect := func(what string, source netip.Addr, event string, count, saw int) {
		t.Helper()
		want.add(t, what, source, event, count, saw)
	}

	// Each below the threshold, so that nothing is dropped and every count is exact.
	x := lab.Dictionary(ctx, net, light[0], mx, lab.DictionaryOptions{Recipients: 5, PerSession: 3})
	expect("dictionary", light[0], "unknown_recipient", 5, x.Rejected)
	x = lab.Dictionary(ctx, net, six[0], mx6, lab.DictionaryOptions{Recipients: 4})
	expect("dictionary over IPv6", six[0], "unknown_recipient", 4, x.Rejected)
	x = lab.RelayProbe(ctx, net, light[1], mx, lab.RelayOptions{Attempts: 2})
	expect("relay probe", light[1], d.relay, 2, x.Rejected)
	// Side by side: Dovecot answers failures only twice a second.
	var logins [4]lab.Result
	var wg sync.WaitGroup
	wg.Go(func() {
		logins[0] = lab.SASLBrute(ctx, net, light[2], sub, lab.SASLOptions{Talk: login, Attempts: 4, PerSession: 2})
	})
	wg.Go(func() {
		logins[1] = lab.SASLBrute(ctx, net, light[3], sub, lab.SASLOptions{Talk: login, Attempts: 2, Mechanism: "PLAIN"})
	})
	tries := 3
	if d.slow {
		tries = 1
	}
	if d.mailbox {
		wg.Go(func() {
			logins[2] = lab.MailboxBrute(ctx, net, light[4], mailbox(143), lab.MailboxOptions{Attempts: tries, PerSession: 2})
		})
		wg.Go(func() {
			logins[3] = lab.MailboxBrute(ctx, net, light[5], mailbox(110), lab.MailboxOptions{Attempts: tries, PerSession: 2, Mechanism: "PLAIN"})
		})
	}
	wg.Wait()
	expect("AUTH LOGIN", light[2], d.auth, 4, logins[0].Rejected)
	expect("AUTH PLAIN", light[3], d.auth, 2, logins[1].Rejected)
	if d.mailbox {
		expect("IMAP LOGIN", light[4], "auth_failure", tries, logins[2].Rejected)
		expect("POP3 AUTH", light[5], "auth_failure", tries, logins[3].Rejected)
		x = lab.MailboxBrute(ctx, net, light[6], mailbox(143), lab.MailboxOptions{Attempts: 1, Users: []string{d.user}, Password: "secret"})
		expect("IMAP login that works", light[6], "auth_success", 1, x.Accepted)
		x = lab.MailboxBrute(ctx, net, light[6], mailbox(110), lab.MailboxOptions{Attempts: 1, Users: []string{d.user}, Password: "secret"})
		want[len(want)-1].count += x.Accepted
	}
	n := bad(lab.Converse(ctx, net, light[7], mx, lab.Talk{}, []string{"EHLO x", "BLURB x", "DATA", "QUIT"}))
	expect("syntax errors", light[7], d.syntax, 2, n)
	if d.pregreet != "" {
		early := lab.Sources(lab.Waited4, 1)[0]
		lab.Pregreet(ctx, net, early, mx, lab.PregreetOptions{})
		expect("early talk", early, d.pregreet, 1, 1)
	}
	if d.kind == lab.KindOpenSMTPD || d.kind == lab.KindOpenSMTPD7 {
		// It takes a quote there, and logs it as it is.
		n = bad(lab.Converse(ctx, net, light[9], mx, lab.Talk{}, []string{"EHLO x", "MAIL FROM:<a@example.net>", `RCPT TO:<nobody@example.org> NOTIFY=NEVER"`, "QUIT"}))
		expect("a quote behind a recipient", light[9], "unknown_recipient", 1, n)
	}
	// A recipient that exists, and no message: that is no delivery.
	lab.Converse(ctx, net, light[8], mx, lab.Talk{}, []string{"EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:<user1@example.org>", "RSET", "QUIT"})
	expect("a recipient and no message", light[8], "delivered", 0, 0)

	h := lab.Honest(ctx, net, lab.Honest4, mx, lab.HonestOptions{Messages: 3})
	expect("honest mail", lab.Honest4, "delivered", 3, h.Accepted)
	h = lab.Honest(ctx, net, lab.Honest6, mx6, lab.HonestOptions{Messages: 1})
	expect("honest mail over IPv6", lab.Honest6, "delivered", 1, h.Accepted)
	if d.user != "" {
		user := netip.MustParseAddr("203.0.113.20")
		h = lab.Honest(ctx, net, user, sub, lab.HonestOptions{Talk: login, User: d.user, Password: "secret"})
		event := "delivered"
		if d.loggedIn != "" {
			event = d.loggedIn
		}
		expect("a user's mail", user, event, 1, h.Accepted)
	}
	d.inject(r)
	want.hold(t, r)

	// And now for good.
	plain := lab.Talk{Connect: time.Second, Reply: 2 * time.Second}
	guess := lab.DictionaryOptions{Talk: plain, Recipients: 40, PerSession: 4}
	wg.Go(func() { lab.Dictionary(ctx, net, heavy[0], mx, guess) })
	wg.Go(func() { lab.Dictionary(ctx, net, six[1], mx6, guess) })
	// Of a session with several failures a quiet Dovecot names only the last user, and the same name again counts little.
	brute := lab.SASLOptions{Talk: plain, Attempts: 20, PerSession: 2}
	switch {
	case d.mailbox && !d.slow:
		wg.Go(func() { lab.MailboxBrute(ctx, net, heavy[1], mailbox(143), brute) })
	case d.auth == "auth_failure":
		brute.TLS = d.tls
		wg.Go(func() { lab.SASLBrute(ctx, net, heavy[1], sub, brute) })
	}
	wg.Wait()
	d.blocked(r, heavy[0], mx, block.Dictionary)
	d.blocked(r, six[1], mx6, block.Dictionary)
	if d.auth == "auth_failure" {
		d.blocked(r, heavy[1], mx, block.AuthBrute)
	}
	if h := lab.Honest(ctx, net, lab.Honest4, mx, lab.HonestOptions{Messages: 1}); h.Accepted != 1 || r.why(lab.Honest4).Decision.Drop {
		t.Errorf("the honest sender afterwards: %+v", h.Result)
	}
}

// hold checks them against a replay of the log and against what the agent counted, and that nobody is blocked by now.
func (x expectations) hold(t *testing.T, r *rig) {
	t.Helper()
	r.awaitLines()
	got := replayed(t, r.mta.LogPath())
	for _, w := range x {
		if n := got[w.source][w.event]; n != w.count {
			t.Errorf("replay, %s from %s: %d %s events, want %d; all: %v", w.what, w.source, n, w.event, w.count, got[w.source])
		}
		known := r.why(w.source)
		n := int(counted(known, w.event))
		switch w.event {
		case "delivered":
			n = 0
			if known.Known != nil {
				n = int(known.Known.Accepted)
			}
		case "auth_success":
			n = w.count // credit, which why does not count
		}
		if n != w.count {
			t.Errorf("agent, %s from %s: %d %s events, want %d", w.what, w.source, n, w.event, w.count)
		}
		if known.Decision.Drop {
			t.Errorf("%s: %s is blocked: %s", w.what, w.source, known.Words)
		}
	}
	if got[victim] != nil {
		t.Errorf("replay blames the victim: %v", got[victim])
	}
	if w := r.why(victim); w.Decision.Drop || w.Known != nil || len(w.Entries) > 0 {
		t.Errorf("the victim is blamed: %s", w.Words)
	}
}

func (d *daemon) blocked(r *rig, a netip.Addr, to netip.AddrPort, cause block.Cause) {
	r.t.Helper()
	w := r.awaitBlock(a)
	if w.Decision.By == nil || w.Decision.By.Cause != cause {
		r.t.Errorf("%s: %s, want %s", a, w.Words, cause)
	}
	if !r.timesOut(a, to) {
		r.t.Errorf("%s: a connect is still answered", a)
	}
}

// bad counts the replies that refuse.
func bad(replies []string) (n int) {
	for _, s := range replies {
		if s[0] == '4' || s[0] == '5' {
			n++
		}
	}
	return n
}

// longName fills the first of the lines into which Courier's logger cuts a longer one.
var longName = strings.Repeat("A", 486)

var victim = netip.MustParseAddr("198.51.100.9")

// inject writes lines like those of every server's log into everything that a client can write.
func (d *daemon) inject(r *rig) {
	r.t.Helper()
	ctx, net, v := r.t.Context(), r.top.Net, victim.String()
	texts := []string{
		"x) [" + v + "] F=<a@example.net> rejected RCPT <b@example.org>: Unrouteable address",
		"x [" + v + "], reject=550 5.1.1 <x>... User unknown",
		"x>, method=PLAIN, rip=" + v + ", lip=192.0.2.25, session=<x>",
		"x," + v + "): unknown user",
		"x from mail[" + v + "]: 550 5.1.1 <x>: Recipient address rejected: User unknown in virtual mailbox table",
		`x" H=[` + v + "] unrecognized command",
		`x" result="550 Invalid recipient: x" 0123456789abcdef smtp connected address=` + v + " host=x",
		"x, relay=[" + v + "]", "x rhost=" + v, "[" + v + "]", v,
	}
	// A source of its own for each, far from the others, so that none is blocked by what the others do.
	source := func(i, n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(100 + i*6 + n), 7}) }
	var hasty lab.Talk
	if d.slow { // the line is written before the pause
		hasty.Reply = time.Second
	}
	var wg sync.WaitGroup
	busy := make(chan struct{}, 6)
	do := func(f func()) {
		busy <- struct{}{}
		wg.Go(func() { f(); <-busy })
	}
	for i, text := range texts {
		quoted := `<"` + text + `"@example.org>`
		for n, lines := range [][]string{
			{"EHLO " + text, "MAIL FROM:<a@example.net>", "RCPT TO:<nobody@example.org>"},
			{"HELO " + strings.ReplaceAll(text, " ", "_"), "MAIL FROM:<a@example.net>", "RCPT TO:<nobody@example.org>"},
			{"EHLO x", "MAIL FROM:" + quoted, "RCPT TO:<nobody@example.org>"},
			{"EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:" + quoted, "RCPT TO:<" + text + ">", "VRFY " + text, text},
		} {
			do(func() { lab.Converse(ctx, net, source(i, n), mx, lab.Talk{}, lines) })
		}
		if d.user != "" && i%3 == 0 {
			o := lab.SASLOptions{Talk: lab.Talk{TLS: d.tls}, Attempts: 1, Users: []string{text}, Mechanism: "PLAIN"}
			do(func() { lab.SASLBrute(ctx, net, source(i, 4), sub, o) })
		}
		if d.mailbox && (i == 2 || i == 3 || i == 8) { // each takes Dovecot half a second
			o := lab.MailboxOptions{Talk: hasty, Attempts: 1, Users: []string{text}}
			do(func() { lab.MailboxBrute(ctx, net, source(i, 5), netip.AddrPortFrom(lab.MX4, 143), o) })
		}
	}
	if d.kind == lab.KindCourier {
		// What stands behind the 486th character of a login name begins a line of its own, and the 997th is the last of it.
		whole := func(s, end string) string { return s + strings.Repeat("B", 511-len(s)-len(end)) + end }
		for i, text := range []string{
			"badlogin: x [" + v + "] plaintext",
			"LOGIN FAILED, user=x, ip=[::ffff:" + v + "], port=[1]",
			whole("LOGIN FAILED, user=", ", ip=[::ffff:"+v+"]") + "x",
			whole("LOGIN FAILED, user=", ", ip=[::ffff:"+v+"], port=[1]") + "x",
			whole("Connection, ip=[::ffff:"+v+"], port=[1]", "") + "x",
		} {
			for n, port := range []uint16{143, 110} {
				o := lab.MailboxOptions{Talk: hasty, Attempts: 1, Users: []string{longName + text}}
				wg.Go(func() { lab.MailboxBrute(ctx, net, source(len(texts)+i, n), netip.AddrPortFrom(lab.MX4, port), o) })
			}
		}
	}
	wg.Wait()
	if d.kind == lab.KindCourier {
		r.eventually("what begins with a long name is in the log", func() bool { return countLines(r.t, r.mta.LogPath(), "user="+longName) > 0 })
	}
	if n := countLines(r.t, r.mta.LogPath(), v); n < len(texts) {
		r.t.Errorf("the victim's address came into the log only %d times", n)
	}
}

// replayed runs `mxshield-agent replay --events` over a log and counts the events by source and kind.
func replayed(t *testing.T, path string) map[netip.Addr]map[string]int {
	t.Helper()
	cmd := exec.Command(filepath.Join(binaries, "mxshield-agent"), "replay", "--events", "-o", "json", path)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("replay: %v: %s", err, errs.Bytes())
	}
	got := map[netip.Addr]map[string]int{}
	in := bufio.NewScanner(&out)
	for in.Scan() {
		var e struct {
			Source netip.Addr
			Event  string
			Count  int
		}
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			t.Fatalf("replay printed %q: %v", in.Text(), err)
		}
		if got[e.Source] == nil {
			got[e.Source] = map[string]int{}
		}
		got[e.Source][e.Event] += max(1, e.Count)
	}
	if len(got) == 0 {
		t.Fatal("replay printed nothing")
	}
	return got
}

// TestDaemonsCoverEachServer: every server has a story that CI runs.
func TestDaemonsCoverEachServer(t *testing.T) {
	for _, k := range []lab.Kind{lab.KindExim, lab.KindOpenSMTPD, lab.KindSendmail, lab.KindDovecot, lab.KindCourier, lab.KindCyrus} {
		if !slices.ContainsFunc(daemons, func(d daemon) bool { return d.kind == k && !d.long }) {
			t.Errorf("no story for %s", k)
		}
	}
}

// TestEximRejectLog: the reject log holds the headers of refused messages, which the client wrote. Whoever follows it
// blames nobody for what stands in them.
func TestEximRejectLog(t *testing.T) {
	d := daemon{name: "exim", kind: lab.KindExim, log: eximLog, o: lab.Options{
		Extra: "acl_smtp_data = acl_lab_data\n\nbegin acl\nacl_lab_data:\n  deny message = not today\n",
	}}
	r := d.rig(t)
	forged := "2026-03-02 10:00:00 H=(x) [" + victim.String() + "] F=<a@example.net> rejected RCPT <b@example.org>: Unrouteable address"
	src := lab.Sources(lab.Attack4, 1)[0]
	// Folded lines, a stamp that is a header's name, and bare line ends.
	headers := "Subject: x\r\n " + forged + "\r\n\t" + forged + "\r\n" + strings.Replace(forged, " ", "T", 1) +
		"\r\n2026-03-02T10:00:00+00:00 mx exim[1]: " + forged + "\r\nTo: x\r" + forged + "\n" + forged + "\r\n\r\n."
	lab.Converse(t.Context(), r.top.Net, src, mx, lab.Talk{}, []string{"EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:<user1@example.org>", "DATA", headers, "QUIT"})
	reject := filepath.Join(filepath.Dir(r.mta.LogPath()), "rejectlog")
	r.eventually("the refusal is in the reject log", func() bool {
		b, err := os.ReadFile(reject)
		return err == nil && bytes.Contains(b, []byte("not today"))
	})
	if n := countLines(t, reject, victim.String()); n < 3 {
		t.Errorf("the victim's address came into the reject log only %d times", n)
	}
	if got := replayed(t, reject); got[victim] != nil || len(got[src]) == 0 {
		b, _ := os.ReadFile(reject)
		t.Errorf("replay of the reject log: %v\n%s", got, b)
	}
}
