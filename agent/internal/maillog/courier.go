package maillog

import "bytes"

// Courier writes its addresses as ip=[::ffff:192.0.2.1] (imapd, pop3d) or relay=::ffff:192.0.2.1 (courieresmtpd). Cyrus
// logs under the same names, and writes "badlogin: NAME [IP] MECH ...".

func (p *Parser) courier(h *header, e *Event) bool {
	tag, m := h.tag, h.msg
	if i := bytes.LastIndexByte(tag, '/'); i >= 0 {
		tag = tag[i+1:] // cyrus/imap
	}
	if len(m) < 8 {
		return false
	}
	switch string(tag) {
	case "courieresmtpd", "esmtpd":
		if !p.courierSMTP(m, e) {
			return false
		}
		// "from=<S>,to=<R>: ..."
		if _, s, ok := bytes.Cut(m, []byte("from=<")); ok && !automatic(upTo(s)) && p.traps.behind(s, markComma) {
			e.Kind = Trap
		}
		return true
	case "courierd":
		return p.courierd(h, m, e)
	}
	switch m[0] {
	case 'L':
		// "LOGIN FAILED, {user=U|method=M}, ip=[IP][, port=[N]]", "LOGIN, user=U, ip=[IP], port=[N], protocol=IMAP[, stls=1]"
		if b, ok := cut(m, "LOGIN FAILED, "); ok {
			e.Kind = AuthFailure
			u, ok := lastIP(b, e)
			if u, named := cut(u, "user="); named {
				e.User = p.userHash(u)
			}
			return ok
		}
		if b, ok := cut(m, "LOGIN, user="); ok {
			u, ok := lastIP(b, e)
			e.Kind, e.User = AuthSuccess, p.userHash(u)
			return ok
		}
	case 'C':
		if b, ok := cut(m, "Connection, ip=["); ok {
			e.Kind = Connect
			return firstIP(b, ']', e)
		}
	case 'D':
		if b, ok := cut(m, "Disconnected, ip=["); ok {
			e.Kind = Disconnect
			return firstIP(b, ']', e)
		}
	case 'b':
		// "badlogin: NAME [IP] MECH ...": the name is verified, and nothing of the client's stands before the address.
		if b, ok := cut(m, "badlogin: "); ok {
			n := 0
			for n < len(b) && n < 256 && isHost(b[n]) {
				n++
			}
			if n > 0 {
				if b, ok = cut(b[n:], " "); !ok {
					return false
				}
			}
			a, rest, ok := bracketed(b)
			if !ok || len(rest) == 0 || rest[0] != ' ' {
				return false
			}
			e.Source, e.Kind = a, AuthFailure
			if oursAuth(lastReason(rest)) {
				e.Kind = Other
			}
			return true
		}
	}
	return false
}

// courierd reads "newmsg,id=ID: ..." and, if somebody wants to know, "started,id=ID,from=<S>,module=M,host=H,addr=<R>".
func (p *Parser) courierd(h *header, m []byte, e *Event) bool {
	if courierMessage(m, e) {
		if id, _, ok := bytes.Cut(m[len("newmsg,id="):], []byte(":")); ok && p.when(h, e) {
			p.follow(p.queueKey(id), e, false)
		}
		return true
	}
	b, ok := cut(m, "started,id=")
	if !ok || !p.follows || !p.when(h, e) {
		return false
	}
	id, b, ok := bytes.Cut(b, []byte(",from=<"))
	if !ok {
		return false
	}
	w := p.transit.look(p.queueKey(id), e.Time.Unix())
	i := last(b, ",addr=<")
	if w == nil || i < 0 {
		return false
	}
	w.quiet = w.quiet || automatic(upTo(b))
	to := upTo(b[i+len(",addr=<"):])
	return p.recipient(w, to, to, true, e)
}

// lastReason is what follows the last "): " of "MECH user SASL(-13): reason".
func lastReason(b []byte) []byte {
	if i := bytes.LastIndex(b, []byte("SASL(")); i >= 0 {
		if j := bytes.Index(b[i:], []byte("): ")); j >= 0 {
			return b[i+j+3:]
		}
	}
	return nil
}

// lastIP reads "U, ip=[IP][, port=[N]][, protocol=P][, stls=1]". U is the client's, nothing behind it is, so the last
// ip= counts, and only known words may follow.
func lastIP(b []byte, e *Event) (user []byte, ok bool) {
	i := last(b, ", ip=[")
	if i < 0 || len(b) > whole {
		return nil, false
	}
	c := b[i+len(", ip=["):]
	n := bytes.IndexByte(c, ']')
	if n < 0 {
		return nil, false
	}
	if e.Source, ok = parseAddr(c[:n]); !ok {
		return nil, false
	}
	c = c[n+1:]
	if len(c) > 0 && !has(c, ", port=[") && !has(c, ", protocol=") && !has(c, ", stls=") {
		return nil, false
	}
	return b[:i], true
}

// firstIP reads an address up to end.
func firstIP(b []byte, end byte, e *Event) (ok bool) {
	n := bytes.IndexByte(b[:min(len(b), 100)], end)
	if n < 0 {
		return false
	}
	e.Source, ok = parseAddr(b[:n])
	return ok
}

// courierSMTP reads "started,ip=[IP]" and "error,relay=IP,[port=N,]{from=<S>,to=<R>: NNN text|msg="NNN text",cmd: TEXT}".
func (p *Parser) courierSMTP(m []byte, e *Event) bool {
	if b, ok := cut(m, "started,ip=["); ok {
		e.Kind = Connect
		return firstIP(b, ']', e)
	}
	b, ok := cut(m, "error,relay=")
	if !ok || !firstIP(b, ',', e) {
		return false
	}
	b = b[bytes.IndexByte(b, ',')+1:]
	if c, ok := cut(b, "port="); ok {
		i := bytes.IndexByte(c, ',')
		if i < 0 {
			return false
		}
		b = c[i+1:]
	}
	if has(b, "ident=") { // whatever the client's host says
		i := bytes.Index(b, []byte(",from=<"))
		if i < 0 {
			i = bytes.Index(b, []byte(`,msg="`))
		}
		b = b[i+1:]
	}
	e.Kind = Other
	if c, ok := cut(b, `msg="`); ok {
		e.Kind = courierReply(c)
		return true
	}
	if !has(b, "from=<") {
		return true
	}
	// The text stands behind the last ">: "; S and R may hold another, and so hide what they were refused for.
	if i := last(b, ">: "); i >= 0 {
		if e.Kind = courierReply(b[i+3:]); e.Kind == UnknownRecipient {
			s := b[len("from=<"):]
			e.Automatic = automatic(upTo(s))
			if _, r, ok := bytes.Cut(s, markComma); ok {
				e.User = p.recipientHash(upTo(r))
			}
		}
	}
	return true
}

// courierReply says what "NNN text" is about.
func courierReply(b []byte) Kind {
	rc, text := splitReply(b)
	text = text[:min(len(text), 512)]
	switch {
	case len(b) < 4 || b[0] == '4':
		if within(text, "greylist") {
			return Greylisted
		}
		return Other
	case has(b, "535"):
		if oursAuth(text) {
			return Other
		}
		return AuthFailure
	case within(text, "relay"):
		return RelayDenied
	case within(text, "user") && within(text, "unknown"), nobody(text, rc.hard):
		return UnknownRecipient
	case within(text, "spamhaus"), within(text, "blacklist"), within(text, "blocklist"), within(text, "dnsbl"), within(text, "rbl"), within(text, "http:"), within(text, "https:"):
		return listing(text)
	case has(b, "500"), has(b, "501"), has(b, "502"), has(b, "503"), has(b, "504"):
		return ProtocolError
	case has(b, "517"), within(text, "sender"):
		return SenderReject
	case ours(text):
		return Other
	case rc.hard && spammy(text):
		return SpamReject
	}
	return Other
}

// courierMessage reads "newmsg,id=ID: dns; HELO (NAME [IP])" or "... ([IP])". HELO is the client's; NAME is not, and the
// last words of the line are Courier's.
func courierMessage(m []byte, e *Event) bool {
	b, ok := cut(m, "newmsg,id=")
	if !ok || len(b) > whole {
		return false
	}
	n := bytes.IndexByte(b, ':')
	if n < 0 || n > 80 {
		return false
	}
	if b, ok = cut(b[n:], ": dns; "); !ok {
		return false
	}
	if b, ok = bytes.CutSuffix(b, []byte("])")); !ok {
		return false
	}
	i := bytes.LastIndexByte(b, '[')
	if i < 0 {
		return false
	}
	c := b[:i]
	if len(c) > 0 && c[len(c)-1] == ' ' {
		c = c[:len(c)-1]
		for len(c) > 0 && isHost(c[len(c)-1]) {
			c = c[:len(c)-1]
		}
	}
	if !bytes.HasSuffix(c, []byte(" (")) {
		return false
	}
	e.Kind, e.Count = Delivered, 1
	e.Source, ok = parseAddr(b[i+1:])
	return ok
}
