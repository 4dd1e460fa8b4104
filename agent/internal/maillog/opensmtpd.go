package maillog

import (
	"bytes"
	"net/netip"
)

// OpenSMTPD names the client once, when it connects:
//
//	ID smtp connected address=IP host=NAME
//	ID smtp failed-command command="TEXT" result="550 Invalid recipient: <R>"
//	ID smtp disconnected reason=quit
//
// So the sessions are kept in a table by their 16 hex digits (see Parser, Pending), bounded in number and age. A line of
// a session whose beginning was not seen is no event. 6.0 to 6.3 write the address on every line ("ID smtp
// event=failed-command address=IP host=NAME ..."), 5.x "smtp-in: New session ID from host NAME [IP]" and then the ID.
// The address stands before anything of the client's. TEXT has its quotes escaped, or not (6.8 and 7), but no text behind it
// has a blank of the client's, so the last result= counts.

func (p *Parser) opensmtpd(h *header, e *Event) bool {
	m := h.msg
	if b, ok := cut(m, "smtp-in: "); ok {
		return p.opensmtpd5(h, b, e)
	}
	id, b, ok := sessionID(m)
	if !ok {
		return false
	}
	if b, ok = cut(b, " smtp "); !ok {
		return false // mta, mda, ...: what we send
	}
	key := p.queueKey(id)
	if c, ok := cut(b, "event="); ok {
		n := bytes.IndexByte(c, ' ')
		if n < 0 {
			return false
		}
		what := c[:n]
		c, ok := cut(c[n:], " address=")
		if !ok {
			return false
		}
		if n = bytes.IndexByte(c, ' '); n < 0 {
			n = len(c)
		}
		if e.Source, ok = sessionAddr(c[:n]); !ok {
			return false
		}
		c = c[n:]
		if d, ok := cut(c, " host="); ok {
			if n = bytes.IndexByte(d, ' '); n < 0 {
				n = len(d)
			}
			c = d[n:]
		}
		return p.sessionEvent(h, what, bytes.TrimPrefix(c, []byte(" ")), e)
	}
	n := bytes.IndexByte(b, ' ')
	if n < 0 {
		n = len(b)
	}
	what, b := b[:n], bytes.TrimPrefix(b[n:], []byte(" "))
	switch string(what) {
	case "connected":
		c, ok := cut(b, "address=")
		if !ok {
			return false
		}
		if n = bytes.IndexByte(c, ' '); n < 0 {
			n = len(c)
		}
		if e.Source, ok = sessionAddr(c[:n]); !ok || !p.when(h, e) {
			p.sessions.remove(key) // local, or the id of an older session
			return false
		}
		p.sessions.add(key, e.Source, e.Time.Unix(), false)
		e.Kind = Connect
		return true
	case "failed-command", "bad-input", "authentication", "message", "disconnected":
	case "envelope":
		return p.follows && p.session(h, key, e) && p.envelope(key, b, e)
	default:
		return false // envelope, tls, cert-check, ...
	}
	if !p.session(h, key, e) {
		return false
	}
	if string(what) == "disconnected" {
		p.sessions.remove(key)
	}
	if !p.sessionEvent(h, what, b, e) {
		return false
	}
	if e.Kind == AuthSuccess {
		p.hush(&p.sessions, key)
	}
	return true
}

// envelope reads "evpid=X from=<S> to=<R>" of one accepted recipient.
func (p *Parser) envelope(key uint64, b []byte, e *Event) bool {
	i, found := p.sessions.find(key)
	_, s, ok := bytes.Cut(b, []byte(" from=<"))
	if !ok || !found {
		return false
	}
	j := last(s, string(markTo))
	if j < 0 {
		return false
	}
	w := p.sessions.ring[p.sessions.index[i]-1] // a copy: the session may send more
	w.quiet = w.quiet || automatic(upTo(s))
	to := upTo(s[j+len(markTo):])
	return p.recipient(&w, to, to, true, e)
}

// mailed says whether the line of an accepted message names a trap, as "from=<S>[,] to=<R>" of the versions before 6.4.
func (t *Traps) mailed(b []byte) bool {
	i := bytes.Index(b, []byte("from=<"))
	return t != nil && i >= 0 && !automatic(upTo(b[i+len("from=<"):])) && t.behind(b, markTo)
}

// session finds the client of a session.
func (p *Parser) session(h *header, key uint64, e *Event) bool {
	if !p.when(h, e) {
		return false
	}
	w := p.sessions.look(key, e.Time.Unix())
	if w == nil {
		return false
	}
	e.Source = w.source()
	return true
}

// sessionID reads the 16 hex digits that begin a line.
func sessionID(b []byte) (id, rest []byte, ok bool) {
	if len(b) < 16 {
		return nil, nil, false
	}
	for _, c := range b[:16] {
		if !isHex(c) {
			return nil, nil, false
		}
	}
	return b[:16], b[16:], true
}

// sessionEvent reads what a line says of its session. The source is known.
func (p *Parser) sessionEvent(h *header, what, b []byte, e *Event) bool {
	switch string(what) {
	case "connected":
		e.Kind = Connect
	case "disconnected", "closed":
		e.Kind = LostConnection
		if b, ok := cut(b, "reason="); ok && has(b, "quit") {
			e.Kind = Disconnect
		}
	case "message":
		e.Kind, e.Count = Delivered, 1
		if p.traps.mailed(b) {
			e.Kind = Trap
		}
	case "bad-input":
		e.Kind = ProtocolError
	case "authentication":
		// user=U result=..: U is the client's, nothing follows the result. The failed AUTH command has a line of its own.
		i := last(b, " result=")
		if i < 0 || len(b) > whole {
			return false
		}
		u, ok := cut(b[:i], "user=")
		if !ok {
			return false
		}
		e.Kind = Other
		switch string(b[i+len(" result="):]) {
		case "ok":
			e.Kind = AuthSuccess
		case "permfail":
			e.Kind, h.by = AuthFailure, byAuth
		default:
			return true
		}
		e.User = p.userHash(u)
	case "failed-command":
		b, ok := cut(b, `command="`)
		i := last(b, `" result="`)
		switch {
		case ok && i >= 0:
			p.failed(b[:i], bytes.TrimSuffix(b[i+len(`" result="`):], []byte(`"`)), e)
		case ok && len(b) > 512:
			e.Kind = ProtocolError // longer than a command may be, and so long that syslogd cut off what came of it
		default:
			return false
		}
	default:
		return false
	}
	return true
}

// failed reads a refused command; of RCPT TO:<R> it notes R.
func (p *Parser) failed(command, result []byte, e *Event) {
	if e.Kind = failedCommand(command, result); e.Kind == UnknownRecipient {
		if _, r, ok := bytes.Cut(command, []byte(":<")); ok {
			e.User = p.recipientHash(upTo(r))
		}
	}
}

// failedCommand says what a refused command was about.
func failedCommand(command, result []byte) Kind {
	rc, text := splitReply(result)
	if len(result) < 4 || result[0] == '4' {
		// Ours, but for filters that ask to come back.
		switch {
		case within(text, "greylist"):
			return Greylisted
		case within(text, "too many connections"), within(text, "rate limit"):
			return RateLimit
		}
		return Other
	}
	switch {
	case has(result, "550 Invalid recipient"), has(text, "Invalid recipient"):
		// Also what a missing match rule says, that is, a relay denied.
		return UnknownRecipient
	case has(result, "524 5.2.4 Mailing list expansion problem"):
		return UnknownRecipient // an address that a table of virtual users does not have
	case has(result, "535"):
		if oursAuth(text) {
			return Other
		}
		return AuthFailure
	case has(result, "500"), has(result, "501"), has(result, "502"), has(result, "503"), has(result, "504"), has(result, "555"):
		if has(command, "EHLO") || has(command, "HELO") {
			return HeloReject
		}
		return ProtocolError
	case ours(text):
		return Other
	case within(text, "rdns"), within(text, "reverse dns"), within(text, "fcrdns"):
		return NoRDNS
	case within(text, "dnsbl"), within(text, "blocklist"), within(text, "blacklist"), within(text, "spamhaus"), within(text, "rbl"):
		return listing(text)
	case within(text, "relay"):
		return RelayDenied
	case nobody(text, true):
		return UnknownRecipient
	case rc.hard && spammy(text):
		return SpamReject
	case within(text, "sender"):
		return SenderReject
	}
	return Other
}

// opensmtpd5 reads the lines of 5.x behind "smtp-in: ".
func (p *Parser) opensmtpd5(h *header, b []byte, e *Event) bool {
	if c, ok := cut(b, "New session "); ok {
		id, c, ok := sessionID(c)
		if !ok {
			return false
		}
		key := p.queueKey(id)
		if c, ok = cut(c, " from host "); !ok {
			return false
		}
		n := 0
		for n < len(c) && n < 256 && isHost(c[n]) {
			n++
		}
		d, ok := cut(c[n:], " ")
		if !ok {
			p.sessions.remove(key)
			return false
		}
		if d, ok = cut(d, "[IPv6:"); ok {
			n = bytes.IndexByte(d, ']')
		} else if d, ok = cut(d, "["); ok {
			n = bytes.IndexByte(d, ']')
		}
		if !ok || n < 0 || n+1 != len(d) {
			p.sessions.remove(key)
			return false
		}
		if e.Source, ok = parseAddr(d[:n]); !ok || !p.when(h, e) {
			p.sessions.remove(key)
			return false
		}
		p.sessions.add(key, e.Source, e.Time.Unix(), false)
		e.Kind = Connect
		return true
	}
	for _, s := range [...]struct {
		start string
		kind  Kind
	}{
		{"Failed command on session ", UnknownRecipient},
		{"Closing session ", Disconnect},
		{"Received disconnect from session ", LostConnection},
		{"Disconnecting session ", LostConnection},
	} {
		c, ok := cut(b, s.start)
		if !ok {
			continue
		}
		id, c, ok := sessionID(c)
		if !ok || !p.session(h, p.queueKey(id), e) {
			return false
		}
		if e.Kind = s.kind; s.kind != UnknownRecipient {
			p.sessions.remove(p.queueKey(id))
			return true
		}
		c, ok = cut(c, `: "`)
		i := last(c, `" => `)
		if !ok || i < 0 {
			return false
		}
		p.failed(c[:i], c[i+len(`" => `):], e)
		return true
	}
	// "Accepted message M on session ID: from=<S>, to=<R>, size=N, ndest=N, proto=P"
	if c, ok := cut(b, "Accepted message "); ok {
		n := bytes.IndexByte(c, ' ')
		if n < 0 || n > 32 {
			return false
		}
		if c, ok = cut(c[n:], " on session "); !ok {
			return false
		}
		id, c, ok := sessionID(c)
		if !ok || !p.session(h, p.queueKey(id), e) {
			return false
		}
		e.Kind, e.Count = Delivered, 1
		if w := p.sessions.look(p.queueKey(id), e.Time.Unix()); (w == nil || !w.quiet) && p.traps.mailed(c) {
			e.Kind = Trap
		}
		return true
	}
	// "Accepted authentication for user U on session ID"
	if c, ok := cut(b, "Accepted authentication for user "); ok {
		i := last(c, " on session ")
		if i < 0 || len(c) > whole || len(c) != i+len(" on session ")+16 {
			return false
		}
		id := c[i+len(" on session "):]
		if !p.session(h, p.queueKey(id), e) {
			return false
		}
		e.Kind, e.User = AuthSuccess, p.userHash(c[:i])
		p.hush(&p.sessions, p.queueKey(id))
		return true
	}
	return false
}

// sessionAddr reads IP or [IP].
func sessionAddr(b []byte) (netip.Addr, bool) {
	if len(b) > 2 && b[0] == '[' && b[len(b)-1] == ']' {
		b = bytes.TrimPrefix(b[1:len(b)-1], []byte("IPv6:"))
	}
	return parseAddr(b)
}
