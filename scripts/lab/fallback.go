//go:build linux

package lab

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"
)

// Fallback is a small SMTP server in this process that logs in the words of
// Postfix, for machines where a real one cannot be had. Tests of what the agent
// makes of a log may use it; a claim about Postfix may not.
//
// It knows connect, disconnect, unknown recipients, relay denied, failed logins
// and accepted mail. It has no postscreen, no process limit and no error limit.
type Fallback struct {
	work    string
	o       Options
	servers []*smtp.Server
	doors   []net.Listener
	served  sync.WaitGroup
	pid     atomic.Uint32 // of the next session, as each smtpd has its own

	mu  sync.Mutex
	log *os.File // nil when stopped
}

// Start runs the best mail server there is here: Postfix, or the Fallback if no
// root for it can be had. log, which may be nil, is told which and why.
func Start(ctx context.Context, host *Host, workDir string, o Options, log func(string)) (MTA, error) {
	if log == nil {
		log = func(string) {}
	}
	root, err := PostfixRoot(ctx, CacheDir(), log)
	if err == nil {
		return StartPostfix(ctx, host, root, workDir, o)
	}
	if ctx.Err() != nil {
		return nil, err
	}
	log(fmt.Sprintf("no Postfix here, using the built-in SMTP server instead: %v", err))
	return StartFallback(ctx, host, workDir, o)
}

// StartFallback listens on ports 25 and 587 of host. Of the options it follows
// Recipients, Password, Hostname, AuthOnMX and MyNetworks (for postconf).
func StartFallback(ctx context.Context, host *Host, workDir string, o Options) (*Fallback, error) {
	workDir, err := filepath.Abs(workDir)
	if err != nil {
		return nil, err
	}
	f := &Fallback{work: workDir, o: o.withDefaults()}
	for _, dir := range []string{"log", "bin"} {
		if err := os.MkdirAll(filepath.Join(workDir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(filepath.Join(f.Bin(), "postconf"), []byte(f.postconfScript()), 0o755); err != nil {
		return nil, err
	}
	if f.log, err = openLog(f.LogPath()); err != nil {
		return nil, err
	}
	for _, service := range []struct {
		addr, tag string
		auth      bool
	}{{":25", "postfix/smtpd", f.o.AuthOnMX}, {":587", "postfix/submission/smtpd", true}} {
		ln, err := host.Listen(ctx, service.addr)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("listen on %s of %s: %w", service.addr, host.name, err), f.Stop())
		}
		s := smtp.NewServer(&backend{f: f, tag: service.tag, auth: service.auth})
		s.Domain = f.o.Hostname
		s.AllowInsecureAuth = true
		s.ReadTimeout, s.WriteTimeout = 5*time.Minute, time.Minute
		s.ErrorLog = log.New(io.Discard, "", 0)
		f.servers, f.doors = append(f.servers, s), append(f.doors, ln)
		f.served.Go(func() { _ = s.Serve(&loggingListener{ln, f, service.tag}) })
	}
	if err := host.lab.adopt(f); err != nil {
		return nil, errors.Join(err, f.Stop())
	}
	return f, nil
}

func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// postconfScript answers the two parameters an agent asks for.
func (f *Fallback) postconfScript() string {
	return fmt.Sprintf(`#!/bin/sh
bare=
for a; do
	case $a in
	-*h*) bare=1 ;;
	-*) ;;
	maillog_file) v='%s' ;;
	mynetworks) v='%s' ;;
	*) echo "postconf: warning: $a: unknown parameter" >&2; continue ;;
	esac
	case $a in -*) ;; *) [ "$bare" ] && echo "$v" || echo "$a = $v" ;; esac
done
`, f.LogPath(), f.o.networks())
}

// Name says that this is not Postfix.
func (f *Fallback) Name() string { return "built-in SMTP server" }

// LogPath is the log, as of Postfix.
func (f *Fallback) LogPath() string { return filepath.Join(f.work, "log/mail.log") }

// Bin is a folder with a postconf that knows maillog_file and mynetworks.
func (f *Fallback) Bin() string { return filepath.Join(f.work, "bin") }

// Rotate renames the log and begins a new one.
func (f *Fallback) Rotate() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.log == nil {
		return errors.New("the server is stopped")
	}
	if err := os.Rename(f.LogPath(), f.LogPath()+"."+time.Now().Format("20060102-150405.000")); err != nil {
		return err
	}
	next, err := openLog(f.LogPath())
	if err != nil {
		return err
	}
	_ = f.log.Close()
	f.log = next
	return nil
}

// Stop closes all connections. It may be called again.
func (f *Fallback) Stop() error {
	for i, s := range f.servers {
		_ = s.Close() // says "already closed" the second time
		// A server that has not begun to serve does not know its listener yet.
		_ = f.doors[i].Close()
	}
	f.served.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.log == nil {
		return nil
	}
	err := f.log.Close()
	f.log = nil
	return err
}

// say writes one line as postlogd does. Clients write parts of it: like
// Postfix, nothing unprintable goes in.
func (f *Fallback) say(tag string, pid uint32, format string, args ...any) {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, fmt.Sprintf(format, args...))
	host, _, _ := strings.Cut(f.o.Hostname, ".")
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.log != nil {
		fmt.Fprintf(f.log, "%s %s %s[%d]: %s\n", time.Now().Format(time.Stamp), host, tag, pid, text)
	}
}

// loggingListener gives every connection a pid and logs its two ends.
type loggingListener struct {
	net.Listener
	f   *Fallback
	tag string
}

func (l *loggingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	peer := "unknown[unknown]"
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		peer = fmt.Sprintf("unknown[%s]", ap.Addr().Unmap())
	}
	lc := &loggedConn{Conn: c, l: l, pid: 1000 + l.f.pid.Add(1), peer: peer}
	l.f.say(l.tag, lc.pid, "connect from %s", peer)
	return lc, nil
}

type loggedConn struct {
	net.Conn
	l    *loggingListener
	pid  uint32
	peer string
	once sync.Once

	// Counts for the disconnect line; closing may be another goroutine's.
	mu                             sync.Mutex
	auth, authOK, rcpt, rcptOK, ok int
}

func (c *loggedConn) Close() error {
	c.once.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		text := ""
		if c.auth > 0 {
			text += " auth=" + ratio(c.authOK, c.auth)
		}
		if c.rcpt > 0 {
			text += " rcpt=" + ratio(c.rcptOK, c.rcpt)
		}
		c.l.f.say(c.l.tag, c.pid, "disconnect from %s%s commands=%s",
			c.peer, text, ratio(c.ok+c.authOK+c.rcptOK, c.ok+c.auth+c.rcpt))
	})
	return c.Conn.Close()
}

// ratio is "ok/all", or "all" if all were, as Postfix counts commands.
func ratio(ok, all int) string {
	if ok == all && all > 0 {
		return fmt.Sprint(all)
	}
	return fmt.Sprintf("%d/%d", ok, all)
}

type backend struct {
	f    *Fallback
	tag  string
	auth bool
}

func (b *backend) NewSession(c *smtp.Conn) (smtp.Session, error) {
	s := &visit{b: b, conn: c.Conn().(*loggedConn), helo: c.Hostname()}
	if b.auth {
		return &authVisit{s}, nil
	}
	return s, nil
}

// visit is one SMTP session.
type visit struct {
	b    *backend
	conn *loggedConn
	helo string
	user string // logged in
	mech string

	from string
	rcpt int
	id   string // queue id, from the first accepted recipient on
}

func (v *visit) Reset() { v.from, v.rcpt, v.id = "", 0, "" }

func (v *visit) Logout() error { return nil }

func (v *visit) Mail(from string, _ *smtp.MailOptions) error {
	v.from = from
	v.conn.add(&v.conn.ok, 1)
	return nil
}

// add counts for the disconnect line.
func (c *loggedConn) add(n *int, d int) {
	c.mu.Lock()
	*n += d
	c.mu.Unlock()
}

func (v *visit) Rcpt(to string, _ *smtp.RcptOptions) error {
	v.conn.add(&v.conn.rcpt, 1)
	f := v.b.f
	local, domain, _ := strings.Cut(to, "@")
	var n int
	_, scanErr := fmt.Sscanf(local, "user%d", &n)
	known := scanErr == nil && n >= 1 && n <= f.o.Recipients && local == fmt.Sprintf("user%d", n)
	switch ours := strings.EqualFold(domain, "example.org"); {
	case v.b.tag != "postfix/smtpd" && v.user == "":
		return v.refuse(554, smtp.EnhancedCode{5, 7, 1}, to, "Recipient address rejected: Access denied")
	case !ours && v.user == "":
		return v.refuse(554, smtp.EnhancedCode{5, 7, 1}, to, "Relay access denied")
	case ours && !known:
		return v.refuse(550, smtp.EnhancedCode{5, 1, 1}, to, "Recipient address rejected: User unknown in virtual mailbox table")
	}
	if v.id == "" {
		v.id = rand.Text()[:11]
		login := ""
		if v.user != "" {
			login = fmt.Sprintf(", sasl_method=%s, sasl_username=%s", v.mech, v.user)
		}
		f.say(v.b.tag, v.conn.pid, "%s: client=%s%s", v.id, v.conn.peer, login)
	}
	v.rcpt++
	v.conn.add(&v.conn.rcptOK, 1)
	return nil
}

func (v *visit) refuse(code int, enhanced smtp.EnhancedCode, to, text string) error {
	id := v.id
	if id == "" {
		id = "NOQUEUE"
	}
	v.b.f.say(v.b.tag, v.conn.pid, "%s: reject: RCPT from %s: %d %d.%d.%d <%s>: %s; from=<%s> to=<%s> proto=ESMTP helo=<%s>",
		id, v.conn.peer, code, enhanced[0], enhanced[1], enhanced[2], to, text, v.from, to, v.helo)
	return &smtp.SMTPError{Code: code, EnhancedCode: enhanced, Message: fmt.Sprintf("<%s>: %s", to, text)}
}

func (v *visit) Data(r io.Reader) error {
	size, err := io.Copy(io.Discard, io.LimitReader(r, 10<<20))
	if err != nil {
		return err
	}
	f := v.b.f
	f.say("postfix/cleanup", v.conn.pid, "%s: message-id=<>", v.id)
	f.say("postfix/qmgr", 999, "%s: from=<%s>, size=%d, nrcpt=%d (queue active)", v.id, v.from, size, v.rcpt)
	f.say("postfix/qmgr", 999, "%s: removed", v.id)
	v.conn.add(&v.conn.ok, 1)
	return nil
}

// authVisit is a session on a service with AUTH.
type authVisit struct{ *visit }

func (v *authVisit) AuthMechanisms() []string { return []string{sasl.Plain, sasl.Login} }

func (v *authVisit) Auth(mech string) (sasl.Server, error) {
	check := func(user, password string) error {
		v.conn.add(&v.conn.auth, 1)
		f := v.b.f
		if password != f.o.Password || !strings.HasSuffix(user, "@example.org") {
			f.say(v.b.tag, v.conn.pid, "warning: %s: SASL %s authentication failed: (reason unavailable), sasl_username=%s", v.conn.peer, mech, user)
			return &smtp.SMTPError{Code: 535, EnhancedCode: smtp.EnhancedCode{5, 7, 8}, Message: "Error: authentication failed: (reason unavailable)"}
		}
		v.user, v.mech = user, mech
		v.conn.add(&v.conn.authOK, 1)
		return nil
	}
	switch mech {
	case sasl.Plain:
		return sasl.NewPlainServer(func(_, user, password string) error { return check(user, password) }), nil
	case sasl.Login:
		return &loginServer{check: check}, nil
	}
	return nil, smtp.ErrAuthUnknownMechanism
}

// loginServer is the server side of AUTH LOGIN, which the library leaves out as
// obsolete and which is what attackers use.
type loginServer struct {
	check func(user, password string) error
	step  int
	user  string
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	l.step++
	switch l.step {
	case 1:
		if response == nil {
			return []byte("Username:"), false, nil
		}
		l.step++ // an initial response is the name
		fallthrough
	case 2:
		l.user = string(response)
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.check(l.user, string(response))
	}
}
