package maillog

import (
	"bytes"
	"net/netip"
)

// Courier's logger (courierlogger -start, which imapd and pop3d have) reads 511 bytes at a time. Of a longer line it
// logs the first 511, and then what follows as a line of its own, with the same tag and in no way marked: a login name
// of 500 characters and more writes a line of the log from its first byte on, and, as imapd ends a line after 1023
// bytes, to its last. With that, anybody who can connect could have anybody else blocked. (It also throws away the line
// that came next, which nobody can mend here.) So a line of these daemons is believed only if
//
//   - it names address and port of a connection that they have told of, where they tell of connections: the port is what
//     the client does not know of others,
//   - and the line before it, of the same daemon of the same host in the same log, was whole: no login with an end
//     that it should not have, and not as long as the logger's lines can be.
//
// A Cyrus, whose lines have the same tags, is known by never having written such lines.

// shortest a line that was cut may be: 511 bytes without "DEBUG: ", which the logger takes off.
const torn = 511 - len("DEBUG: ")

// A mailboxLog is what one daemon of one host writes into one log.
type mailboxLog struct {
	broken   bool // what comes next may be the rest of the line before
	connects bool // it tells of connections
}

const (
	maxMailboxLogs = 256 // a host has four daemons
	maxConnections = 4096
)

// mailboxes is what is known of them all. The zero value knows nothing.
type mailboxes struct {
	logs map[uint64]*mailboxLog
	// connections holds hashes of daemon, address and port, each at a place of its own, so that only another connection
	// takes it away. What was closed may stay: nobody else has learned its port.
	connections []uint64
}

func (x *mailboxes) log(key uint64, add bool) *mailboxLog {
	l := x.logs[key]
	if l != nil || !add {
		return l
	}
	if x.logs == nil {
		x.logs = map[uint64]*mailboxLog{}
		x.connections = make([]uint64, maxConnections)
	}
	if len(x.logs) >= maxMailboxLogs {
		for k := range x.logs {
			delete(x.logs, k)
			break
		}
	}
	l = new(mailboxLog)
	x.logs[key] = l
	return l
}

func (x *mailboxes) connected(sum uint64) bool { return x.connections[sum%maxConnections] == sum }
func (x *mailboxes) connect(sum uint64)        { x.connections[sum%maxConnections] = sum }

// connection is the hash of a connection to a daemon; port is in the words of the log.
func (p *Parser) connection(tag []byte, a netip.Addr, port []byte) uint64 {
	b := a.As16()
	return hash(hash(hash(p.seed^p.host, tag, false), b[:], false), port, false)
}

// mailbox reads what imapd and pop3d write, and Cyrus.
func (p *Parser) mailbox(h *header, tag []byte, e *Event) bool {
	m := h.msg
	key := hash(p.seed^p.host^uint64(p.from.id), tag, false)
	l := p.mailboxes.log(key, has(m, "Connection, ip=[") || has(m, "LOGIN"))
	if l == nil {
		return p.cyrus(m, e)
	}
	believed := !l.broken
	l.broken = h.cut || len(m) >= torn
	switch {
	case l.broken:
		return false
	case has(m, "Connection, ip=["):
		// "Connection, ip=[IP][, port=[N]]"
		a, port, rest, ok := addressAndPort(m[len("Connection, "):])
		if l.broken = !ok || len(rest) > 0; l.broken || !believed {
			return false
		}
		l.connects = true
		p.mailboxes.connect(p.connection(tag, a, port))
		e.Kind, e.Source = Connect, a
		return true
	case has(m, "Disconnected, ip=["):
		a, _, rest, ok := addressAndPort(m[len("Disconnected, "):])
		if l.broken = !ok || len(rest) > 0 && !has(rest, ", time="); l.broken || !believed {
			return false
		}
		e.Kind, e.Source = Disconnect, a
		return true
	case has(m, "LOGIN"):
		return p.mailboxLogin(tag, m, l, believed, e)
	}
	return false
}

// mailboxLogin reads "LOGIN FAILED, {user=U|method=M}, ip=[IP][, port=[N]]" and "LOGIN, user=U, ip=[IP][, port=[N]][,
// protocol=P][, stls=1]". U is the client's, nothing behind it is, so the last ip= counts, and only known words may
// follow.
func (p *Parser) mailboxLogin(tag, m []byte, l *mailboxLog, believed bool, e *Event) bool {
	l.broken = true
	b, failed := cut(m, "LOGIN FAILED, ")
	if !failed {
		var ok bool
		if b, ok = cut(m, "LOGIN, "); !ok || !has(b, "user=") {
			return false
		}
	}
	i, from := last(b, ", ip=["), 2
	if i < 0 {
		if !failed { // of the first versions, which name nobody
			return false
		}
		i, from = 0, 0
	}
	a, port, rest, ok := addressAndPort(b[i+from:])
	if !ok || len(rest) > 0 && (failed || !has(rest, ", protocol=") && !has(rest, ", stls=")) {
		return false
	}
	if l.connects && !p.mailboxes.connected(p.connection(tag, a, port)) && !p.mailboxes.connected(p.connection(tag, a, nil)) {
		return false
	}
	if l.broken = false; !believed {
		return false
	}
	e.Kind, e.Source = AuthSuccess, a
	if failed {
		e.Kind = AuthFailure
	}
	if u, named := cut(b[:i], "user="); named {
		e.User = p.userHash(u)
	}
	return true
}

// addressAndPort reads "ip=[IP][, port=[N]]"; port is empty if there is none.
func addressAndPort(b []byte) (a netip.Addr, port, rest []byte, ok bool) {
	b, ok = cut(b, "ip=[")
	n := bytes.IndexByte(b[:min(len(b), 100)], ']')
	if !ok || n < 0 {
		return a, nil, nil, false
	}
	if a, ok = parseAddr(b[:n]); !ok {
		return a, nil, nil, false
	}
	b = b[n+1:]
	if c, ok := cut(b, ", port=["); ok {
		n := bytes.IndexByte(c[:min(len(c), 6)], ']')
		if n < 0 {
			return a, nil, nil, false
		}
		port, b = c[:n], c[n+1:]
	}
	return a, port, b, true
}

// cyrus reads "badlogin: NAME [IP] MECH ..." and "login: NAME [IP] USER MECH User logged in...". NAME is what a PTR record
// says, of which the C library lets only what is a host name pass; the first versions have no blank behind it. Nothing else
// of the client's stands before the address.
func (p *Parser) cyrus(m []byte, e *Event) bool {
	if b, ok := cut(m, "event=login."); ok {
		return p.cyrusFmt(b, e)
	}
	b, failed := cut(m, "badlogin: ")
	if !failed {
		var ok bool
		if b, ok = cut(m, "login: "); !ok {
			return false
		}
	}
	n := 0
	for n < len(b) && n < 256 && isHost(b[n]) {
		n++
	}
	if n > 0 {
		b, _ = cut(b[n:], " ")
	}
	a, rest, ok := bracketed(b)
	if !ok || len(rest) == 0 || rest[0] != ' ' {
		return false
	}
	e.Source, rest = a, rest[1:]
	if !failed {
		n := bytes.IndexByte(rest, ' ')
		if n < 0 || last(rest, " User logged in") < n {
			return false
		}
		e.Kind, e.User = AuthSuccess, p.userHash(rest[:n])
		return true
	}
	u, why := cyrusFailure(rest)
	if e.Kind = cyrusReason(why); e.Kind == AuthFailure && len(u) > 0 {
		e.User = p.userHash(u)
	}
	return true
}

// cyrusFailure reads what follows the address: "MECH (USER) [WHY]", "plaintext (USER) invalid user", of APOP
// "APOP (<CHALLENGE>) WHY", before 3.5 "plaintext USER WHY" and "MECH [WHY]", of ManageSieve "MECH WHY". WHY has
// "SASL(-N): " in front, or not. A client wrote USER, MECH, and, where USER is -notset-, a part of WHY; a name that is none
// may be anything.
func cyrusFailure(b []byte) (user, why []byte) {
	if bytes.HasSuffix(bytes.TrimSuffix(b, []byte("]")), noMechanism) {
		return nil, noMechanism
	}
	mech, b, _ := bytes.Cut(b, []byte(" "))
	c, parens := cut(b, "(")
	user, invalid := bytes.CutSuffix(c, []byte(" invalid user"))
	switch {
	case string(mech) == "APOP":
		_, why, _ = bytes.Cut(c, []byte(") "))
		return nil, why
	case invalid && parens:
		return bytes.TrimSuffix(user, []byte(")")), nil
	case invalid:
		return user, nil
	case has(c, "-notset-) [") && parens:
		return nil, c[len("-notset-) ["):]
	case parens:
		i := last(c, ") [")
		if i < 0 {
			return nil, nil
		}
		return c[:i], c[i+3:]
	case has(mech, "plaintext"):
		if i := last(c, " SASL("); i >= 0 {
			return c[:i], c[i+1:]
		}
		return nil, nil
	}
	why, _ = cut(c, "[")
	return nil, why
}

var noMechanism = []byte("no mechanism available")

// cyrusReason says what a failure is: of the host itself if it could not ask who knows the passwords.
func cyrusReason(why []byte) Kind {
	if has(why, "SASL(") {
		_, why, _ = bytes.Cut(why, []byte("): "))
	}
	switch {
	case has(why, string(noMechanism)):
		return ProtocolError
	case has(why, "generic failure: All-whitespace username"):
		return AuthFailure
	case has(why, "generic failure"), has(why, "remote authentication server unavailable"), has(why, "no memory available"):
		return Other
	}
	return AuthFailure
}

// cyrusFmt reads what follows "event=login." from 3.13 on: "bad r.clienthost=HOST u.username=U ... error=WHY" and "good
// r.sessionid=ID r.clienthost=HOST u.username=U ...". HOST is "NAME [IP]" in quotes or [IP]. What is behind it is the client's.
func (p *Parser) cyrusFmt(b []byte, e *Event) bool {
	b, failed := cut(b, "bad ")
	if !failed {
		var ok bool
		if b, ok = cut(b, "good r.sessionid="); !ok {
			return false
		}
		n := bytes.IndexByte(b[:min(len(b), 256)], ' ')
		if n <= 0 || b[0] == '"' {
			return false
		}
		b = b[n+1:]
	}
	b, ok := cut(b, "r.clienthost=")
	if !ok {
		return false
	}
	b, quoted := cut(b, `"`)
	if quoted {
		n := 0
		for n < len(b) && n < 256 && isHost(b[n]) {
			n++
		}
		if b, ok = cut(b[n:], " "); !ok || n == 0 {
			return false
		}
	}
	a, b, ok := bracketed(b)
	if !ok {
		return false
	}
	if quoted {
		if b, ok = cut(b, `"`); !ok {
			return false
		}
	}
	if b, ok = cut(b, " u.username="); !ok {
		return false
	}
	e.Source = a
	u, quoted := cut(b, `"`)
	n := 0
	end := byte(' ')
	if quoted {
		end = '"'
	}
	for n < len(u) && u[n] != end {
		if n++; u[n-1] == '\\' {
			n++
		}
	}
	n = min(n, len(u))
	e.Kind = AuthSuccess
	if failed {
		_, why, _ := bytes.Cut(u[n:], []byte(" error="))
		why, _ = cut(why, `"`)
		if e.Kind = cyrusReason(why); e.Kind != AuthFailure {
			return true
		}
	}
	if u = u[:n]; string(u) != "~null~" {
		e.User = p.userHash(u)
	}
	return true
}
