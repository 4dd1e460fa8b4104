package maillog

import (
	"bytes"
	"net/netip"
)

// Dovecot logs "service: message" behind its tag, or "service: Level: message" in a file of its own. Login processes
// (imap-login, ...) and the auth process speak of clients; all other services come after the login.
//
// The user name is the client's and may hold anything, also what looks like the rest of the line. auth_username_chars
// forbids most of it by default, but nothing here relies on that.

// whole is how long a message may be for its end to be the end: no syslogd cuts a line before 1024 bytes with its
// header, so in a longer one the last words may be the client's.
const whole = 800

// dovecotService says whether "service: " or "service(...", as auth-worker(123) and auth(user,...) of 2.4, begins b. The
// services that are read are the login processes and auth.
func dovecotService(b []byte) bool {
	if len(b) < 6 {
		return false
	}
	name := ""
	switch b[0] {
	case 'a':
		name = "auth"
	case 'i':
		name = "imap-login"
	case 'p':
		name = "pop3-login"
	case 'm':
		name = "managesieve-login"
	case 's':
		name = "submission-login"
	default:
		return false
	}
	c, ok := cut(b, name)
	if b[0] == 'a' {
		c, _ = cut(c, "-worker")
	}
	return ok && (has(c, ": ") || has(c, "("))
}

// dovecotOwn says whether b is what follows the stamp in a file that Dovecot writes itself: a service, and after "service: "
// a level, which no line of syslog has there.
func dovecotOwn(b []byte) bool {
	if len(b) < 8 {
		return false
	}
	if !dovecotService(b) {
		c, ok := level(b) // version 1 writes it in front
		return ok && dovecotService(c)
	}
	i := bytes.IndexByte(b[:min(len(b), 24)], ':')
	if i < 0 || i+2 >= len(b) || bytes.IndexByte(b[:i], '(') >= 0 {
		return true
	}
	_, ok := level(b[i+2:])
	return ok
}

// level cuts "Info: " and the like off.
func level(b []byte) ([]byte, bool) {
	if len(b) == 0 || !isUpper(b[0]) {
		return b, false
	}
	for _, l := range [...]string{"Info: ", "Warning: ", "Warn: ", "Error: ", "Debug: ", "Fatal: ", "Panic: "} {
		if c, ok := cut(b, l); ok {
			return c, true
		}
	}
	return b, false
}

// info cuts "Info: " off, the level of all that is read. Behind others (Error, Warning, Debug) stands text of libraries, with a
// client's certificate or server name in it.
func info(b []byte) ([]byte, bool) {
	c, other := level(b)
	if d, ok := cut(b, "Info: "); ok {
		return d, true
	}
	return c, !other
}

func (p *Parser) dovecot(h *header, e *Event) bool {
	m := h.msg
	if len(h.tag) > 0 && string(h.tag) != "dovecot" {
		// The tag is a service, or PAM's, which logs in the name of the program that called it.
		if has(m, "pam_") {
			return p.pamFailure(h, m, e)
		}
		switch string(h.tag) {
		case "auth", "auth-worker", "dovecot-auth":
			m, ok := info(m)
			return ok && p.dovecotAuth(h, m, e)
		}
		e.Submission = string(h.tag) == "submission-login"
		m, ok := info(m)
		return ok && p.dovecotLogin(m, e)
	}
	if len(m) < 8 {
		return false
	}
	if h.mta == Dovecot {
		var ok bool
		if m, ok = info(m); !ok || len(m) == 0 {
			return false
		}
	}
	switch m[0] {
	case 'a':
		if b, ok := cut(m, "auth"); ok {
			b, worker := cut(b, "-worker")
			if worker {
				h.by = byWorker
			}
			// "(123): " of a worker and "(default): " of 1.x are Dovecot's own; any other parenthesis is the slot of 2.4.
			if c, ok := cut(b, "("); ok {
				n := 0
				for n < len(c) && n < 16 && isAlnum(c[n]) {
					n++
				}
				if d, ok := cut(c[n:], "): "); ok {
					b = d
				} else {
					return p.dovecotAuth(h, m, e)
				}
			} else if b, ok = cut(b, ": "); !ok {
				return false
			}
			b, ok = info(b)
			return ok && p.dovecotAuth(h, b, e)
		}
	case 'p':
		if has(m, "pam_") {
			return p.pamFailure(h, m, e)
		}
		if b, ok := cut(m, "pop3-login: "); ok {
			b, ok = info(b)
			return ok && p.dovecotLogin(b, e)
		}
	case 'i':
		if b, ok := cut(m, "imap-login: "); ok {
			b, ok = info(b)
			return ok && p.dovecotLogin(b, e)
		}
	case 'm':
		if b, ok := cut(m, "managesieve-login: "); ok {
			b, ok = info(b)
			return ok && p.dovecotLogin(b, e)
		}
	case 's':
		if b, ok := cut(m, "submission-login: "); ok {
			e.Submission = true
			b, ok = info(b)
			return ok && p.dovecotLogin(b, e)
		}
	}
	return false
}

// dovecotLogin reads "WHAT[: cause][ (human)][ (event)]: user=<U>, [method=M, ]rip=IP, lip=IP2, ...". WHAT, cause and human are
// Dovecot's words. U may hold another ", rip=", but nothing of the client stands behind the true one, so that is the
// last of the line.
func (p *Parser) dovecotLogin(b []byte, e *Event) bool {
	if len(b) > whole {
		return false
	}
	const mark = " rip="
	i := last2(b, mark)
	if i < 1 || b[i-1] != ',' && b[i-1] != ':' {
		return false
	}
	c := b[i+len(mark):]
	var v4 [4]byte
	n := quad(b[i+len(mark)-1:], &v4) - 1 // as addrIn
	if n > 0 && n < len(c) && c[n] == ',' && v4 != [4]byte{} {
		e.Source = netip.AddrFrom4(v4)
	} else {
		if n = bytes.IndexByte(c, ','); n < 0 {
			n = len(c)
		}
		var ok bool
		if e.Source, ok = parseAddr(c[:n]); !ok {
			return false
		}
	}
	once := last2(b[:i], mark) < 0
	if !has(c[n:], ", lip=") && (!once || !loginEnd(c[n:])) {
		return false
	}
	if !once && bytes.Contains(b[bytes.Index(b, []byte(mark)):i], []byte(", TLS")) {
		return false // what TLS has to complain of should not hold one
	}
	head, user := b[:i], []byte(nil)
	j := bytes.IndexByte(head, ':')
	if j >= 0 && !has(head[j:], ": user=<") {
		j = bytes.Index(head, []byte(": user=<"))
	}
	if j >= 0 {
		user = head[j+len(": user=<"):]
		head = head[:j]
		if k := lastByte(user, '>'); k >= 0 {
			user = user[:k]
		}
	}
	e.Kind = Other
	if string(head) == "Login" || string(head) == "Logged in" { // the latter since 2.4
		e.Kind, e.User = AuthSuccess, p.userHash(user)
		return true
	}
	proxied := false
	for c := head; ; c = c[1:] {
		j := bytes.IndexByte(c, '(')
		if j < 0 {
			break
		}
		c = c[j:]
		if d, ok := cut(c, "(auth failed, "); ok {
			n, k := 0, 0
			for k < len(d) && isDigit(d[k]) && k < 5 {
				n = n*10 + int(d[k]-'0')
				k++
			}
			if !has(d[k:], " attempt") {
				e.Kind = Other
				return true
			}
			e.Kind, e.User = AuthFailure, p.userHash(user)
			e.Count *= max(1, n)
			return true
		}
		proxied = proxied || has(c, "(proxy dest auth failed)")
		if has(c, "(no auth attempts") || has(c, "(disconnected before ") || // auth was ready, greeting
			has(c, "(disconnected during TLS") || has(c, "(client didn't finish") {
			e.Kind = LostConnection
		}
	}
	if j := endOf(head, " authentication attempts)"); j >= 0 || proxied {
		// version 1, "(N authentication attempts)"; the server that the login was passed on to refused it
		n, scale := 0, 1
		for j--; j >= 0 && isDigit(head[j]) && scale <= 1000; j-- {
			n, scale = n+scale*int(head[j]-'0'), scale*10
		}
		e.Kind, e.User = AuthFailure, p.userHash(user)
		e.Count *= max(1, n)
		return true
	}
	if bytes.IndexByte(head, 'T') >= 0 && (bytes.Contains(head, []byte("Too many invalid commands")) || bytes.Contains(head, []byte("Too many bad commands"))) {
		e.Kind = TooManyErrors
	}
	// Else: told not to send passwords in the clear, a certificate missing, a backend or we ourselves at fault.
	return true
}

// endOf is where words that end in a parenthesis stand first, -1 if nowhere.
func endOf(b []byte, words string) int {
	for i := 0; ; i++ {
		j := bytes.IndexByte(b[i:], ')')
		if j < 0 {
			return -1
		}
		if i += j; i+1 >= len(words) && string(b[i+1-len(words):i+1]) == words {
			return i + 1 - len(words)
		}
	}
}

// loginEnd says that nothing but Dovecot's own words follows the address, in a line without lip= (login_log_format_elements):
// "[, mpid=N][, TLS...][, secured][, session=<S>]".
func loginEnd(b []byte) bool {
	if i := last(b, ", session=<"); i >= 0 && b[len(b)-1] == '>' && bytes.IndexByte(b[i+len(", session=<"):len(b)-1], '>') < 0 {
		b = b[:i]
	}
	if c, ok := cut(b, ", mpid="); ok {
		b = bytes.TrimLeft(c, "0123456789")
	}
	return !bytes.ContainsAny(b, "<>=")
}

// dovecotAuth reads "[conn unix:auth-worker (...): auth-worker<7>: ]DRIVER(U,IP[,<S>]): WHY" and, whole message with its
// service, "auth(U,IP,sasl:mech)<S>: [Info: ]DRIVER: WHY" of 2.4. U stands before the address, and behind it may stand
// the password, so the place is found only if exactly one of the line has its shape: IP between a comma and the closing
// parenthesis. A client can hide such a line by naming itself like another; the login process then counts it.
//
// The bad case is a server that does not tell Dovecot the client's address at all (Postfix before 2.5, a program that asks
// the auth socket itself) together with auth_username_chars that allow commas and parentheses.
func (p *Parser) dovecotAuth(h *header, b []byte, e *Event) bool {
	if string(h.tag) == "auth-worker" {
		h.by = byWorker
	}
	if h.by != byWorker {
		h.by = byAuth
	}
	if len(b) > whole {
		return false
	}
	if c, ok := cut(b, "conn unix:"); ok { // PATH (pid=..,uid=..): auth-worker<N>:
		i := bytes.Index(c[:min(len(c), 160)], []byte("): auth-worker<"))
		if i < 0 {
			return false
		}
		c = c[i+len("): auth-worker<"):]
		if i = bytes.Index(c[:min(len(c), 24)], []byte(">: ")); i < 0 {
			return false
		}
		b, h.by = c[i+3:], byWorker
	}
	n := 0
	for n < len(b) && n < 32 && (isAlnum(b[n]) || b[n] == '-' || b[n] == '_') {
		n++
	}
	if n == 0 || n == len(b) || b[n] != '(' {
		return false
	}
	driver := b[:n]
	b = b[n+1:]
	var user, why []byte
	found := 0
	for i := 0; i < len(b); {
		j := bytes.IndexByte(b[i:], ')')
		if j < 0 {
			break
		}
		i += j + 1
		if at, n, w, ok := authSlot(b, i-1); ok {
			if a, ok := addrIn(b, at, n); ok {
				e.Source, user, why = a, b[:at-1], w
				found++
			}
		}
	}
	if found != 1 {
		return false
	}
	why, ok := info(why)
	if !ok {
		return false
	}
	if string(driver) == "auth" || string(driver) == "auth-worker" { // 2.4: what asked is named behind
		i := bytes.Index(why[:min(len(why), 40)], []byte(": "))
		if i < 0 {
			return false
		}
		driver, why = why[:i], why[i+2:]
	}
	h.key = p.drivers.hash(p.seed, driver)
	if !authFailed(why) {
		why, ok = cut(why, "pam_authenticate() failed: ")
		if !ok {
			return false
		}
		// System errors of PAM are ours.
		e.Kind = Other
		if !(has(why, "Authentication failure") || has(why, "authentication error") || has(why, "User not known") || has(why, "unknown user") ||
			has(why, "Permission denied") || has(why, "Have exhausted maximum number of retries")) {
			return true
		}
	}
	e.Kind, e.User = AuthFailure, p.userHash(user)
	return true
}

// authFailed says that a database refused the login, and did not fail itself.
func authFailed(why []byte) bool {
	if len(why) == 0 {
		return false
	}
	switch why[0] {
	case 'P', 'p':
		return has(why[1:], "assword mismatch")
	case 'U':
		return has(why, "Unknown user")
	case 'u':
		return has(why, "unknown user") || has(why, "user not found")
	case 'I', 'i':
		return has(why[1:], "nvalid credentials")
	case 'A':
		return has(why, "Authentication failure")
	}
	return false
}

// driverCache is the last database and its hash: most servers have one.
type driverCache struct {
	n    int // 0: none
	text [40]byte
	sum  uint32
}

func (c *driverCache) hash(seed uint64, driver []byte) uint32 {
	if c.n == 0 || string(c.text[:c.n]) != string(driver) {
		c.n, c.sum = copy(c.text[:], driver), uint32(hash(seed, driver, false))
		if len(driver) > len(c.text) {
			c.n = 0
		}
	}
	return c.sum
}

// authSlot looks at the ')' at b[i]: "U,IP): WHY", "U,IP,<S>): WHY", "U,IP,sasl:mech)<S>: WHY". It looks at no more than a few
// hundred bytes on either side. IP is b[at:at+n].
func authSlot(b []byte, i int) (at, n int, why []byte, ok bool) {
	rest := b[i+1:]
	if c, isSession := cut(rest, "<"); isSession {
		k := bytes.IndexByte(c[:min(len(c), 100)], '>')
		if k < 0 {
			return 0, 0, nil, false
		}
		rest = c[k+1:]
	}
	if why, ok = cut(rest, ": "); !ok {
		return 0, 0, nil, false
	}
	start := max(0, i-200)
	head := b[start:i]
	for range 3 {
		k := lastByte(head, ',')
		if k < 0 {
			return 0, 0, nil, false
		}
		f := head[k+1:]
		if len(f) == 0 || len(f) > 1 && f[0] == '<' && f[len(f)-1] == '>' || has(f, "sasl:") || string(f) == "master" {
			head = head[:k]
			continue
		}
		return start + k + 1, len(f), why, true
	}
	return 0, 0, nil, false
}

// pamFailure reads "pam_MODULE(dovecot:auth): authentication failure; logname=.. uid=.. euid=.. tty=dovecot ruser=U rhost=IP[  user=U2]".
// U is the client's. pam_unix writes U2 only if there is such a user, so that nothing of the client stands behind the last
// rhost=; other modules (pam_sss, ...) write what the client said, so that there must be one only.
func (p *Parser) pamFailure(h *header, b []byte, e *Event) bool {
	n := 0
	for n < len(b) && n < 32 && (isAlnum(b[n]) || b[n] == '_') {
		n++
	}
	module := b[:n]
	h.key = uint32(hash(p.seed, module, false))
	b, ok := cut(b[n:], "(dovecot:auth): authentication failure; ")
	i := last(b, " rhost=")
	if !ok || i < 0 || len(b) > whole || string(module) != "pam_unix" && last(b[:i], " rhost=") >= 0 {
		return false
	}
	c := b[i+len(" rhost="):]
	if n := bytes.IndexByte(c, ' '); n >= 0 {
		if !has(bytes.TrimLeft(c[n:], " "), "user=") {
			return false
		}
		c = c[:n]
	}
	a, ok := parseAddr(c)
	if !ok {
		return false
	}
	h.by = byPAM
	e.Kind, e.Source = AuthFailure, a
	if j := bytes.Index(b[:i], []byte(" ruser=")); j >= 0 {
		e.User = p.userHash(b[j+len(" ruser=") : i])
	}
	return true
}
