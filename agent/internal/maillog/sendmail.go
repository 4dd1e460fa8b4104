package maillog

import "bytes"

// Sendmail writes "Q: ..." with the client as RELAY: "[ident@]NAME [IP][ (may be forged)]" or "[IP]", IPv6 as
// [IPv6:...]. Recipient, sender, user and the reply that echoes them are the client's and stand before and behind it.
// Where both sides are the client's, the words around it must stand in the line once; where nothing follows, it is the last and must
// reach to the end. Lines so long that syslogd may have cut them are no events then.
//
// "Q: <R>... User unknown" has no address. Such lines are counted by queue id in a table (bounded in number and age, see
// Pending) until "Q: from=<S>, ... nrcpts=N, ... relay=RELAY" of the same id comes: with more refused than accepted
// recipients it is UnknownRecipient with their number, else, if a message was taken, Delivered. That line comes for every
// MAIL command, with the recipients accepted so far: after RSET and QUIT without DATA its size is 0 and it has no msgid,
// and after a DATA that broke off "Q: collect: ..." stands before it. NAME is written as "[IP]" where there is none, so
// lines that print NAME and IP apart say "[IP] [IP]".
//
// "Q: to=<R>, ... relay=MX [IP], ..., stat=..." is about our destinations.

func (p *Parser) sendmail(h *header, e *Event) bool {
	if c, ok := cut(h.msg, "AUTH=server, relay="); ok { // it has no queue id
		return p.sendmailLogin(c, e)
	}
	if c, ok := cut(h.msg, "ruleset="); ok { // nor has this, if no message has begun
		return sendmailRuleset(c, e)
	}
	q, b, ok := queueID(h.msg)
	if !ok || len(b) < 8 {
		return false
	}
	switch b[0] {
	case 't', 'S':
		if c, ok := cut(b, "to="); ok {
			return p.follows && p.sendmailTo(h, q, c, e) // by far the commonest
		}
		if has(b, "STARTTLS=") {
			return false
		}
	case 'f':
		if has(b, "from=") {
			return p.sendmailFrom(h, q, b, e)
		}
	case 'r':
		if c, ok := cut(b, "ruleset="); ok {
			if ok = sendmailRuleset(c, e); ok && e.Kind == UnknownRecipient {
				if _, r, rcpt := bytes.Cut(c, []byte("arg1=<")); rcpt {
					e.User = p.recipientHash(upTo(r))
				}
			}
			if d, rcpt := cut(c, "check_rcpt, arg1=<"); ok && rcpt && p.traps.match(upTo(d)) && p.when(h, e) {
				p.sendmailTrap(q, 0, e.Time.Unix()) // whether it is a hit the line with the sender tells
			}
			return ok
		}
		if c, ok := cut(b, "rejecting commands from "); ok {
			c, ok = nameAndAddress(c, e)
			e.Kind = Pregreet
			return ok && has(c, " due to pre-greeting traffic")
		}
		if c, ok := cut(b, "rejecting server "); ok { // CMD from NAME [IP] due to traffic before response
			n := command(c)
			if c, ok = cut(c[n:], " from "); !ok || n == 0 {
				return false
			}
			c, ok = nameAndAddress(c, e)
			e.Kind = ProtocolError
			return ok && has(c, " due to traffic before response")
		}
	case 'A':
		if has(b, "AUTH failure (") {
			return p.sendmailAuth(b, e)
		}
		if c, ok := cut(b, "AUTH=server, relay="); ok {
			return p.sendmailLogin(c, e)
		}
		if has(b, "AUTH decode64 error [") {
			_, ok := lastRelay(b, e)
			e.Kind = ProtocolError
			return ok
		}
	case 'c':
		if c, ok := cut(b, "collect: "); ok {
			return p.sendmailBroken(h, q, c, e)
		}
	case 'l':
		if c, ok := cut(b, "lost input channel from "); ok {
			_, ok = firstRelay(c, e)
			e.Kind = LostConnection
			return ok
		}
	case '<':
		return p.sendmailUnknown(h, q, b, e)
	case 'M':
		if c, ok := cut(b, "Milter: "); ok {
			return p.sendmailMilter(h, q, c, e)
		}
	}
	if c, ok := cut(b, "timeout waiting for input from "); ok {
		_, ok = firstRelay(c, e)
		e.Kind = LostConnection
		return ok
	}
	// The rest begins with the client.
	c, ok := firstRelay(b, e)
	if !ok {
		return false
	}
	switch {
	case has(c, ": possible SMTP attack: command="):
		e.Kind = TooManyErrors
	case has(c, " did not issue MAIL/EXPN/VRFY/ETRN during connection to "):
		e.Kind = LostConnection
	case has(c, ": probable open proxy: command="):
		e.Kind = ProtocolError
	case has(c, ": ") && bytes.HasSuffix(c, []byte(" [rejected]")) && verb(c[2:]):
		e.Kind = ProtocolError
	default:
		return false
	}
	return true
}

// verb says whether EXPN, VRFY or ETRN and a blank begins b, as the client wrote it.
func verb(b []byte) bool {
	b = b[:min(len(b), 5)]
	return index(b, "expn ") == 0 || index(b, "vrfy ") == 0 || index(b, "etrn ") == 0
}

// sendmailLogin reads "RELAY, authid=U, mech=M, bits=N".
func (p *Parser) sendmailLogin(b []byte, e *Event) bool {
	b, ok := firstRelay(b, e)
	if !ok {
		return false
	}
	if b, ok = cut(b, ", authid="); !ok {
		return false
	}
	e.Kind = AuthSuccess
	if i := last(b, ", mech="); i >= 0 {
		e.User = p.userHash(b[:i])
	}
	return true
}

// nameAndAddress reads "NAME [IP]" where NAME may be "[IP]" itself. Neither is the client's beyond a host name.
func nameAndAddress(b []byte, e *Event) (rest []byte, ok bool) {
	if has(b, " [") { // no name
		b = b[1:]
	}
	if rest, ok = firstRelay(b, e); !ok || !has(b, "[") || !has(rest, " [") {
		return rest, ok
	}
	first := e.Source
	rest, ok = relay(rest[1:], e)
	return rest, ok && e.Source == first
}

// firstRelay reads RELAY where the client's text follows. An ident that has got blanks and brackets past Sendmail could
// imitate the address and what follows it, but then "@NAME [IP]" would come later.
//
// "ADDRESS... TEXT" is what Sendmail says of an address that it cannot take. It should stand in angle brackets, but a line that
// may be one is none of these.
func firstRelay(b []byte, e *Event) (rest []byte, ok bool) {
	rest, ok = relay(b, e)
	if !ok || len(rest) > whole || bytes.Contains(rest, []byte("... ")) {
		return nil, false
	}
	if i := bytes.IndexByte(rest, '@'); i >= 0 {
		for c := rest[i:]; ; {
			n := bytes.IndexByte(c, '[')
			if n < 0 {
				break
			}
			c, _ = cut(c[n+1:], "IPv6:")
			if n = bytes.IndexByte(c[:min(len(c), 100)], ']'); n < 0 {
				continue
			}
			if _, ok := parseAddr(c[:n]); ok {
				return nil, false
			}
		}
	}
	return rest, true
}

// relay reads RELAY at the start of b. NAME and ident have no blank and no bracket.
func relay(b []byte, e *Event) (rest []byte, ok bool) {
	n := 0
	for n < len(b) && n < 400 && b[n] > ' ' && b[n] != '[' && b[n] != ']' && b[n] != ',' && b[n] != '(' && b[n] != ')' {
		n++
	}
	// "ident@[IP]" has no blank either.
	c := b[n:]
	if n > 0 && b[n-1] != '@' {
		if c, ok = cut(c, " "); !ok {
			return nil, false
		}
	}
	if c, ok = cut(c, "["); !ok {
		return nil, false
	}
	c, _ = cut(c, "IPv6:")
	n = bytes.IndexByte(c[:min(len(c), 100)], ']')
	if n < 0 {
		return nil, false
	}
	if e.Source, ok = parseAddr(c[:n]); !ok {
		return nil, false
	}
	c, _ = cut(c[n+1:], " (may be forged)")
	return c, true
}

// sendmailRuleset reads "NAME, arg1=X[, arg2=Y], relay=RELAY, reject=NNN ...". X and the echo in the reply are the client's.
func sendmailRuleset(b []byte, e *Event) bool {
	mark := []byte(", relay=")
	i := bytes.Index(b, mark)
	if i < 0 || len(b) > whole || bytes.LastIndex(b, mark) != i {
		return false
	}
	c := b[i+len(mark):]
	mark = []byte(", reject=")
	if i = bytes.Index(c, mark); i < 0 || bytes.Count(b, mark) != 1 {
		return false
	}
	if rest, ok := relay(c[:i], e); !ok || len(rest) != 0 {
		return false
	}
	c = c[i+len(mark):]
	rc, text := splitReply(c)
	if has(text, "<") { // <R>... TEXT
		if j := bytes.Index(text, []byte(">... ")); j >= 0 {
			text = text[j+len(">... "):]
		}
	}
	e.Kind = sendmailText(rc, text)
	if e.Kind == Other && rc.hard && has(b, "check_mail, ") {
		e.Kind = SenderReject
	}
	return true
}

func sendmailText(rc replyCode, text []byte) Kind {
	switch {
	case has(text, "Connection rate limit exceeded"), has(text, "Too many open connections"), has(text, "Too many errors"):
		return RateLimit
	case has(text, "User unknown"), has(text, "No such user"), has(text, "No such user here"):
		if rc.hard {
			return UnknownRecipient
		}
		return Other
	case has(text, "Fix reverse DNS"), has(text, "Relaying temporarily denied. Cannot resolve PTR record"):
		return NoRDNS
	case !rc.hard:
		if within(text, "greylist") {
			return Greylisted
		}
		return Other // Domain of sender address X does not resolve, and the like
	case has(text, "Relaying denied"):
		return RelayDenied
	case ours(text):
		return Other
	case has(text, "Domain of sender address "), within(text, "sender address"):
		return SenderReject
	case within(text, "listed at"), within(text, "blacklist"), within(text, "blocklist"), within(text, "rbl"), within(text, "dnsbl"), within(text, "see http"),
		within(text, "spamhaus"):
		return listing(text)
	case nobody(text, true):
		return UnknownRecipient
	case within(text, "reverse dns"):
		return NoRDNS
	case within(text, "helo"):
		return HeloReject
	case spammy(text):
		return SpamReject
	}
	return Other
}

// lastRelay reads the last ", relay=RELAY", which must reach to the end of the line.
func lastRelay(b []byte, e *Event) (head []byte, ok bool) {
	i := last(b, ", relay=")
	if i < 0 || len(b) > whole {
		return nil, false
	}
	c, ok := relay(b[i+len(", relay="):], e)
	return b[:i], ok && len(c) == 0
}

// sendmailAuth reads "AUTH failure (MECH): REASON (-N) SASL(-N): ...[, user=U], relay=RELAY".
func (p *Parser) sendmailAuth(b []byte, e *Event) bool {
	head, ok := lastRelay(b, e)
	if !ok {
		return false
	}
	e.Kind = AuthFailure
	if i := bytes.Index(head, []byte("): ")); i >= 0 {
		why := head[i+3:]
		if oursAuth(why) || has(why, "no connection") || has(why, "can't connect") || has(why, "remote authentication server unavailable") {
			e.Kind = Other
			return true
		}
	}
	if i := bytes.Index(head, []byte(", user=")); i >= 0 {
		e.User = p.userHash(head[i+len(", user="):])
	}
	return true
}

// sendmailUnknown counts "<R>... User unknown". It is never an event.
func (p *Parser) sendmailUnknown(h *header, q, b []byte, e *Event) bool {
	if !bytes.HasSuffix(b, []byte(">... User unknown")) && !bytes.HasSuffix(b, []byte(">... No such user here")) &&
		!bytes.HasSuffix(b, []byte(">... No such user")) || !p.when(h, e) {
		return false
	}
	return p.sendmailNobody(h, q, upTo(b[1:]), e)
}

// sendmailNobody counts a refused recipient of the message q. It is never an event.
func (p *Parser) sendmailNobody(h *header, q, to []byte, e *Event) bool {
	key, n := p.queueKey(q), h.count
	if p.traps.match(to) {
		p.sendmailTrap(q, n, e.Time.Unix())
		return false
	}
	trap, who := false, p.recipientHash(to)
	if w := p.refused.look(key, e.Time.Unix()); w != nil {
		n = min(n+w.number()%brokenOff, brokenOff-1)
		trap = w.sub
		if w.who() != who {
			who = 0 // several
		}
	}
	p.refused.addNumber(key, n, who, trap, e.Time.Unix())
	return false
}

// sendmailMilter reads what follows "Milter: ": "to=<R>, reject=REPLY" is a recipient refused by a filter, which counts as one that
// Sendmail refused; "data, reject=REPLY" and "data, discard" stand behind the line with the sender, which has said by then that
// there is a message. Neither has an address.
func (p *Parser) sendmailMilter(h *header, q, b []byte, e *Event) bool {
	mark := []byte(", reject=")
	if c, ok := cut(b, "to=<"); ok {
		i := bytes.LastIndex(c, mark)
		if i < 0 || !p.when(h, e) {
			return false
		}
		rc, text := splitReply(c[i+len(mark):])
		return rc.hard && nobody(text, true) && p.sendmailNobody(h, q, upTo(c), e)
	}
	c, ok := cut(b, "data, ")
	if !ok || !p.when(h, e) {
		return false
	}
	reply, refused := cut(c, "reject=")
	if !refused && string(c) != "discard" {
		return false
	}
	w, ok := p.transit.take(p.queueKey(q), e.Time.Unix())
	if !ok {
		return false
	}
	e.Source, e.Submission, e.Undone = w.source(), w.sub, true
	if !refused {
		e.Kind = Other
		return true
	}
	e.Temporary = len(reply) > 0 && reply[0] == '4'
	if e.Kind = classify(reply, true); e.Kind == UnknownRecipient || e.Kind == RelayDenied {
		e.Kind = Other // a message is refused, not a recipient
	}
	return true
}

// sendmailTrap notes that a trap is among the refused recipients of a message, and n more were refused.
func (p *Parser) sendmailTrap(q []byte, n int, at int64) {
	key := p.queueKey(q)
	if w := p.refused.look(key, at); w != nil {
		n = min(n+w.number()%brokenOff, brokenOff-1)
	}
	p.refused.addNumber(key, n, 0, true, at)
}

// sendmailTo reads "R[,R...], [ctladdr=.., ]delay=.., ..., stat=S" of a delivery. One hit or one recipient a line is
// enough.
func (p *Parser) sendmailTo(h *header, q, b []byte, e *Event) bool {
	if !p.when(h, e) {
		return false
	}
	w := p.transit.look(p.queueKey(q), e.Time.Unix())
	if w == nil {
		return false
	}
	list, b, ok := bytes.Cut(b, []byte(", "))
	if !ok {
		return false
	}
	first, _, _ := bytes.Cut(list, []byte(","))
	orig := bare(first)
	for rest := list; len(rest) > 0 && p.traps != nil; {
		var r []byte
		r, rest, _ = bytes.Cut(rest, []byte(","))
		if r = bare(r); p.traps.match(r) {
			orig = r
			break
		}
	}
	return p.recipient(w, bare(first), orig, bytes.Contains(b, []byte(", stat=Sent")), e)
}

// brokenOff, in the table of refused recipients, says that the client hung up in the middle of the message.
const brokenOff = 1 << 19

// sendmailBroken reads "premature EOM: WHY", and "relay=RELAY, from=<S>, info=WHY", which follows it.
func (p *Parser) sendmailBroken(h *header, q, b []byte, e *Event) bool {
	c, ok := cut(b, "relay=")
	if !ok && !has(b, "premature EOM") || !p.when(h, e) {
		return false
	}
	key, n, trap := p.queueKey(q), 0, false
	if w := p.refused.look(key, e.Time.Unix()); w != nil {
		n, trap = w.number()%brokenOff, w.sub
	}
	p.refused.addNumber(key, n+brokenOff, 0, trap, e.Time.Unix())
	if !ok {
		return false
	}
	c, ok = firstRelay(c, e)
	e.Kind = LostConnection
	return ok && has(c, ", from=")
}

// sendmailFrom reads "from=<S>, size=N, class=N, nrcpts=N, [msgid=<M>, ...]relay=RELAY". S and M are the client's.
func (p *Parser) sendmailFrom(h *header, q, b []byte, e *Event) bool {
	if !p.when(h, e) {
		return false
	}
	key, refused, trap, who := p.queueKey(q), 0, false, uint64(0)
	if w := p.refused.look(key, e.Time.Unix()); w != nil {
		refused, trap, who = w.number(), w.sub, w.who()
		p.refused.remove(key)
	}
	head, ok := lastRelay(b, e)
	if !ok {
		return false
	}
	mark := []byte(", nrcpts=")
	i := bytes.Index(head, mark)
	if i < 0 {
		return false
	}
	// A sender that says nrcpts= itself has nothing accepted: which is Sendmail's cannot be told, and nobody honest does.
	accepted, tail := 0, head[i+len(mark):]
	if bytes.LastIndex(head, mark) != i {
		tail = nil
	}
	for len(tail) > 0 && isDigit(tail[0]) && accepted <= 1e6 {
		accepted = accepted*10 + int(tail[0]-'0')
		tail = tail[1:]
	}
	broken := refused >= brokenOff
	refused %= brokenOff
	// Nobody but Sendmail writes what stands right behind the count.
	taken := accepted > 0 && !broken && has(tail, ", msgid=")
	s, _ := cut(b, "from=")
	if sender, _, ok := bytes.Cut(s, []byte(",")); ok {
		s = bare(sender)
	}
	quiet := automatic(s)
	if i := last(head, ", proto="); i >= 0 { // what the client may write stands before it
		// Mail of those who log in comes to the daemon MSA, or as ESMTPA and ESMTPSA.
		way := head[i:]
		quiet = quiet || bytes.Contains(way, []byte(", daemon=MSA")) || has(way, ", proto=ESMTPA,") || has(way, ", proto=ESMTPSA,")
	}
	switch {
	case trap && !quiet:
		e.Kind, e.Count, quiet = Trap, 1, true
	case refused > accepted || refused > 0 && !taken:
		e.Kind, e.Count, e.Automatic, e.User = UnknownRecipient, refused, automatic(s), who
	case taken:
		e.Kind, e.Count, e.User = Delivered, 1, p.senderHash(s)
	default:
		e.Kind, e.Count = Other, 1
	}
	if taken {
		p.transit.add(key, e.Source, e.Time.Unix(), e.Submission)
		if quiet {
			p.hush(&p.transit, key)
		}
	}
	return true
}
