package maillog

import "bytes"

// Courier writes its addresses as ip=[::ffff:192.0.2.1] (imapd, pop3d) or relay=::ffff:192.0.2.1 (courieresmtpd). Cyrus
// logs under the same names, and writes "badlogin: NAME [IP] MECH ...".

func (p *Parser) courier(h *header, e *Event) bool {
	tag, m := h.tag, h.msg
	if i := bytes.LastIndexByte(tag, '/'); i >= 0 {
		tag = tag[i+1:] // cyrus/imap
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
	return p.mailbox(h, tag, e)
}

// courierd reads "newmsg,id=ID: ..." and, if somebody wants to know, "started,id=ID,from=<S>,module=M,host=H,addr=<R>".
func (p *Parser) courierd(h *header, m []byte, e *Event) bool {
	if courierMessage(m, e) {
		id := m[len("newmsg,id="):]
		if n := bytes.IndexAny(id, ":,"); n > 0 && p.when(h, e) {
			p.follow(p.queueKey(id[:n]), e, false)
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
		if e.Kind = courierReply(c); e.Kind == AuthFailure {
			if _, c, ok := bytes.Cut(c, []byte(`",cmd: AUTH `)); ok {
				e.User = p.userHash(courierLogin(c))
			}
		}
		return true
	}
	if !has(b, "from=<") {
		return true
	}
	// The text stands behind the last ">: ". S and R cannot hold another, as Courier writes blanks for what is special in
	// them, but in versions that do not; and of 128 bytes and more they end in dots instead.
	i, n := last(b, ">: "), len(">: ")
	if i < 0 {
		i, n = bytes.Index(b, []byte("...: ")), len("...: ")
	}
	if i < 0 {
		return true
	}
	if e.Kind = courierReply(b[i+n:]); e.Kind == UnknownRecipient {
		s := b[len("from=<"):]
		e.Automatic = automatic(upTo(s))
		if _, r, ok := bytes.Cut(b[:i+1], markComma); ok {
			e.User = p.recipientHash(upTo(r)) // 0 for one that is not all there: many would look the same
		}
	}
	return true
}

// courierLogin is the user in "MECHANISM[ INITIAL][ USER]": what was tried is the last of two words, and what is behind
// the first of three.
func courierLogin(b []byte) []byte {
	_, b, _ = bytes.Cut(b, []byte(" "))
	if _, user, ok := bytes.Cut(b, []byte(" ")); ok {
		return user
	}
	return b
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
		switch {
		case has(text, "Authentication required"), oursAuth(text): // a command without a login; nobody has tried one
			return Other
		case has(text, "Authentication rejected"): // AUTH where it is not offered
			return ProtocolError
		}
		return AuthFailure
	case has(text, "User <"): // and the recipient, which may hold any word
		return UnknownRecipient
	case within(text, "relay"):
		return RelayDenied
	case within(text, "user") && within(text, "unknown"), nobody(text, rc.hard):
		return UnknownRecipient
	case within(text, "spamhaus"), within(text, "blacklist"), within(text, "blocklist"), within(text, "dnsbl"), within(text, "rbl"), within(text, "http:"), within(text, "https:"):
		return listing(text)
	case has(b, "500"), has(b, "501"), has(b, "502"), has(b, "503"), has(b, "504"), has(b, "554 Syntax error"):
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

// courierMessage reads "newmsg,id=ID[, auth=USER]: dns; HELO (NAME [IP])" or "... ([IP])". HELO is the client's; NAME is
// not, and the last words of the line are Courier's. (Where HELO is so long that they are not there, nobody is credited.)
func courierMessage(m []byte, e *Event) bool {
	b, ok := cut(m, "newmsg,id=")
	if !ok || len(b) > whole {
		return false
	}
	n := bytes.IndexAny(b[:min(len(b), 80)], ":,")
	if n < 0 {
		return false
	}
	if b = b[n:]; has(b, ", auth=") {
		n := bytes.IndexByte(b, ':')
		if n < 0 {
			return false
		}
		b = b[n:]
	}
	if b, ok = cut(b, ": dns; "); !ok {
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
		n := len(c)
		for len(c) > 0 && isHost(c[len(c)-1]) {
			c = c[:len(c)-1]
		}
		if len(c) == n { // a blank behind no name
			return false
		}
	}
	if !bytes.HasSuffix(c, []byte(" (")) {
		return false
	}
	e.Kind, e.Count = Delivered, 1
	e.Source, ok = parseAddr(b[i+1:])
	return ok
}
