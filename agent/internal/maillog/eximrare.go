package maillog

// What few of Exim's logs have, and what few settings of log_selector add.

// connectedFrom reads "[Ci=ID ]from " in front of HOSTTEXT: +connection_id puts it there.
func connectedFrom(b []byte) ([]byte, bool) {
	if c, ok := cut(b, "Ci="); ok {
		n := run(c, anAlnum, 24)
		if n == 0 || n == len(c) || c[n] != ' ' {
			return nil, false
		}
		b = c[n+1:]
	}
	return cut(b, "from ")
}

// fromHost reads "[ DS] H=". DS says that the name was looked up with DNSSEC (+dnssec).
func fromHost(b []byte) ([]byte, bool) {
	if c, ok := cut(b, " H="); ok {
		return c, true
	}
	return cut(b, " DS H=")
}

// eximRare reads
//
//   - " DSH=HOSTTEXT ..." of a refusal, where Exim forgets the blank;
//   - "VRFY failed for X H=HOSTTEXT", if there is an ACL that allows VRFY. X is the client's;
//   - `[temporarily ]rejected "EHLO NAME" from HOSTTEXT`: NAME, which the client says, is not its name (helo_verify_hosts);
//   - fixed words and HOSTTEXT.
func (h *header) eximRare(p *Parser, m []byte, e *Event) bool {
	switch m[0] {
	case 'V', ' ', 'D', 'r', 't', 'n', 'o':
	default:
		return false
	}
	if b, ok := cut(m, "VRFY failed for "); ok {
		if e.Kind = UnknownRecipient; !h.afterMark(b, " H=", e) {
			return false
		}
		r, _, _ := cutSpace(b)
		e.User = p.recipientHash(bare(r))
		return true
	}
	b, _ := cut(m, " ") // which is not there in syslog
	if b, ok := cut(b, "DSH="); ok {
		return p.eximRefused(h, b, e)
	}
	for i := range eximRares {
		s := &eximRares[i]
		b, ok := cut(m, s.start)
		if !ok {
			continue
		}
		if e.Kind = s.kind; s.then != 0 {
			return h.afterMark(b, `" from `, e)
		}
		_, ok = h.hostText(b, e)
		return ok
	}
	return false
}

var eximRares = [...]eximStart{
	{`rejected "EHLO `, '"', HeloReject, 0},
	{`rejected "HELO `, '"', HeloReject, 0},
	{`temporarily rejected "EHLO `, '"', Other, 0},
	{`temporarily rejected "HELO `, '"', Other, 0},
	{"no MAIL in TFO SMTP connection from ", 0, LostConnection, 0}, // TCP Fast Open
	{"no MAIL in TFO* SMTP connection from ", 0, LostConnection, 0},
	{"ridiculously long message header received from ", 0, ProtocolError, 0},
	{"overlong message header line received from ", 0, ProtocolError, 0},
}
