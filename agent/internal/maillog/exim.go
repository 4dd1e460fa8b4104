package maillog

import (
	"bytes"
	"math/bits"
)

// Exim logs to files of its own ("YYYY-MM-DD HH:MM:SS [+zzzz] [[pid]] message") or to syslog, where it repeats that stamp
// unless told not to, splits long lines into "[n/m] " parts and writes what goes to the reject log a second time.
//
// A client is HOSTTEXT: "[name ][(helo) ][IP][:PORT][ I=[LOCAL]:P][ U=ident]". The name is verified; the helo is the
// client's. With helo_accept_junk_hosts the helo may have any byte, and so imitate the address and all that follows it. So
// if there is a helo, and what looks like the end of a helo and an address stands in the line once more, there is no
// event: a client can hide its lines by putting that into its sender, but not lay them on somebody else. I= is our own
// address.
//
// Behind a message id "H=" is most often the host we deliver to. Those lines go on with a colon or words; the ones
// about a client go on with NAME=value fields and the verdict.
//
// The main log and the reject log tell the same refusals: follow one of them.

func (p *Parser) exim(h *header, e *Event) bool {
	m := h.msg
	if h.mta != Exim { // syslog
		var ok bool
		if m, ok = h.eximSyslog(m); !ok {
			return false
		}
	}
	if len(m) < 12 {
		return false
	}
	if !h.eximMessage(p, m, e) {
		return false
	}
	if h.mta != Exim && p.twice.seen(p, h, m, e) || h.mta == Exim && p.several && p.copied(h, m, e) {
		e.Kind, e.Count, e.User = Other, 1, 0
	}
	return true
}

// eximSyslog skips "[1/3] " and the second stamp. Parts after the first begin anywhere in the text of a client, and are
// nothing.
func (h *header) eximSyslog(m []byte) ([]byte, bool) {
	if len(m) > 6 && m[0] == '[' && isDigit(m[1]) {
		n := 1
		for n < len(m) && n < 5 && isDigit(m[n]) {
			n++
		}
		if n+1 < len(m) && (m[n] == '/' || m[n] == '\\') && isDigit(m[n+1]) {
			first := n == 2 && m[1] == '1'
			for n++; n < len(m) && n < 10 && isDigit(m[n]); n++ {
			}
			b, ok := cut(m[n:], "] ")
			if !ok || !first {
				return nil, false
			}
			m, h.part = b, true
		}
	}
	if len(m) > 20 && isDigit(m[0]) && m[4] == '-' {
		if n := stampLen(m); n > 0 {
			m = m[n+1:]
		}
	}
	return h.eximPid(m), true
}

func (h *header) eximMessage(p *Parser, m []byte, e *Event) bool {
	opens, n := h.opens, h.opened
	if opens == opensUnseen {
		opens, n = eximOpening(m)
	}
	switch opens {
	case opensHost:
		return p.eximRefused(h, m[n:], e)
	case opensID:
		return p.eximOf(h, m[:n-1], m[n:], e)
	case opensAuth:
		return p.eximAuth(h, m[n:], e)
	case opensSMTP:
		return h.eximS(m, e)
	case opensOther:
		return h.eximOther(p, m, e)
	}
	return h.eximWords(&eximStarts[opens-opensWords], m[n:], e)
}

// An opening is what the usual messages of Exim begin with.
type opening uint8

const (
	opensUnseen opening = iota // nobody has looked
	opensOther
	opensHost  // "H="
	opensID    // a message's id and a blank
	opensAuth  // "DRIVER authenticator failed for "
	opensSMTP  // "SMTP " and a word of eximSMTP, which are for eximS
	opensWords // from here on the words of eximStarts
)

// eximOpening says what m begins with, and how long that is. No line of another program's begins so behind a stamp of Exim's:
// see ownFile.
func eximOpening(m []byte) (opening, int) {
	if len(m) < 12 {
		return opensOther, 0
	}
	if m[0] == 'H' && m[1] == '=' {
		return opensHost, 2
	}
	if n := messageID(m); n > 0 {
		return opensID, n
	}
	if len(m) < 24 { // the shortest of the others: "rejected EHLO from [::1]"
		return opensOther, 0
	}
	first, end := 0, 0
	switch m[0] {
	case 'S':
		if b, ok := cut(m, "SMTP "); ok {
			for _, s := range eximSMTP {
				if has(b, s) {
					return opensSMTP, len("SMTP ")
				}
			}
			return opensOther, 0
		}
	case 'n':
		end = eximStartsU
	case 'u':
		if has(m, "unqualified ") {
			return opensOther, 0
		}
		first, end = eximStartsU, eximStartsR
	case 'r':
		first, end = eximStartsR, eximStartsT
	case 't':
		first, end = eximStartsT, len(eximStarts)
	}
	w := load8(m, 8)
	for i := first; i < end; i++ {
		if s := &eximStarts[i]; s.word == w && has(m, s.start) {
			return opensWords + opening(i), len(s.start)
		}
	}
	// DRIVER is the administrator's name for it.
	n := hostRun(m, 64)
	if n == 0 || !has(m[n:], authenticator) || bytes.IndexByte(m[:n], '.') >= 0 {
		return opensOther, 0
	}
	return opensAuth, n + len(authenticator)
}

const authenticator = " authenticator failed for "

// eximOwn says that a message with another opening is one of Exim's all the same: no service of Dovecot's and no host with a
// tag begins so, see ownFile.
func eximOwn(m []byte) bool {
	n := hostRun(m, 64)
	if n == 0 || n == 64 || n == len(m) {
		return false
	}
	if c := m[n]; c != ' ' {
		return c != ':' && c != '('
	}
	m = m[n+1:]
	n = blank(m)
	return n > 0 && n < len(m) && m[n-1] != ':'
}

// eximSMTP are the second words of the messages that begin with SMTP.
var eximSMTP = [...]string{"connection ", "call ", "syntax ", "protocol ", "command ", "data "}

// eximOther reads the messages that begin with something else.
func (h *header) eximOther(p *Parser, m []byte, e *Event) bool {
	if c, ok := cut(m, "unqualified "); ok {
		// "{verify|recipient|sender} rejected: <TEXT> H=HOSTTEXT"; TEXT is the client's.
		n := 0
		for n < len(c) && n < 16 && isAlpha(c[n]) {
			n++
		}
		if c, ok = cut(c[n:], " rejected: <"); !ok {
			return false
		}
		e.Kind = ProtocolError
		return h.afterMark(c, "> H=", e)
	}
	if b, ok := cut(m, "Connection from "); ok {
		c, ok := h.hostText(b, e)
		if !ok || !has(c, " refused: ") {
			return false
		}
		e.Kind = Other
		if has(c, " refused: too many connections") {
			e.Kind = RateLimit
		}
		return true
	}
	if b, ok := cut(m, "TLS error on connection "); ok {
		if b, ok = connectedFrom(b); !ok {
			return false
		}
		e.Kind = LostConnection
		_, ok = h.hostText(b, e)
		return ok
	}
	return h.eximRare(p, m, e)
}

// eximOf reads what follows the id of a message.
func (p *Parser) eximOf(h *header, q, m []byte, e *Event) bool {
	if len(m) < 3 {
		return false
	}
	switch m[0] {
	case '<':
		if b, ok := cut(m, "<= "); ok {
			return p.eximAccepted(h, q, b, e)
		}
	case 'H':
		if b, ok := cut(m, "H="); ok {
			return p.eximRefused(h, b, e)
		}
	case 'F':
		if b, ok := cut(m, "F="); ok {
			return h.eximScanned(b, e)
		}
	case 'S':
		if has(m, "SMTP ") {
			return h.eximS(m, e)
		}
	case ' ':
		if b, ok := cut(m, " DSH="); ok {
			return p.eximRefused(h, b, e)
		}
	}
	return p.follows && p.eximDelivery(h, q, m, e)
}

// messageID is the length of "1rgXyz-0001Ab-Cd " or, from 4.97 on, "1rgXyz-00000000Abc-1De2 ", or 0.
func messageID(m []byte) int {
	const third, fifth, sixth = 0x80 << 24, 0x80 << 40, 0x80 << 48
	if len(m) < 17 || m[6] != '-' || notAlnum(load8(m, 0)) != sixth {
		return 0
	}
	n := notAlnum(load8(m, 8))
	switch {
	case n == fifth && m[13] == '-' && m[16] == ' ':
		return 17
	case n == 0 && len(m) > 23 && m[18] == '-' && m[23] == ' ' && notAlnum(load8(m, 15)) == third:
		return 24
	}
	return 0
}

// hostText reads HOSTTEXT up to and with the port. What stands in front of the bracket must be a name, a helo, or both.
func (h *header) hostText(b []byte, e *Event) (rest []byte, ok bool) {
	helo := false
	n := hostRun(b, 256)
	if n > 0 {
		if b, ok = cut(b[n:], " "); !ok {
			return nil, false
		}
	}
	if c, ok := cut(b, "("); ok {
		if b, ok = skipHelo(c); !ok {
			return nil, false
		}
		helo = true
	}
	a, rest, ok := bracketed(b)
	if !ok || helo && !h.only(rest) {
		return nil, false
	}
	e.Source = a
	return rest, true
}

// only says that no second ") [IP]" follows, nor can have been cut off: Exim's own lines have 8 KB.
func (h *header) only(b []byte) bool {
	if !h.uncut() {
		return false
	}
	for {
		i := bytes.IndexByte(b, ')')
		if i < 0 {
			return true
		}
		var ok bool
		if b, ok = cut(b[i+1:], " ["); !ok {
			continue
		}
		n := bytes.IndexByte(b[:min(len(b), 100)], ']')
		if n < 0 {
			continue
		}
		if _, ok := parseAddr(b[:n]); ok {
			return false
		}
	}
}

// skipHelo reads "helo) " behind the parenthesis. A helo may be an address literal.
func skipHelo(b []byte) ([]byte, bool) {
	n := 0
	if len(b) > 0 && b[0] == '[' {
		n = 1
		for n < len(b) && n < 64 && (isHex(b[n]) || b[n] == ':' || b[n] == '.' || n < 6 && isAlpha(b[n]) || n < 6 && b[n] == 'v') {
			n++
		}
		if n == len(b) || b[n] != ']' {
			return nil, false
		}
		n++
	} else {
		n = hostRun(b, 512)
		for n < len(b) && n < 512 && b[n] != '(' && b[n] != ')' && b[n] != '[' && b[n] != ']' {
			n++
		}
	}
	return cut(b[n:], ") ")
}

// eximFields skips " NAME=value" up to the first word without a =. Values are bare words, "quoted" or <bracketed>. They
// are the client's, so they may hide the verdict, but the address is known by now.
func eximFields(b []byte, e *Event) (rest []byte, sender bool) {
	for len(b) > 0 && b[0] == ' ' {
		c := b[1:]
		n := 0
		for n < len(c) && n < 8 && isAlpha(c[n]) {
			n++
		}
		if n == 0 || n == len(c) || c[n] != '=' {
			if string(c[:n]) == "L" && has(c[n:], " ") {
				b = c[n:]
				continue
			}
			return c, sender
		}
		name := c[:n]
		c = c[n+1:]
		switch {
		case has(c, "<"):
			sender = true
			quoted := false
			i := 1
			if n := special(c, 1); n < len(c) && c[n] == '>' {
				i = n // and nothing in it has a meaning
			}
			for ; i < len(c) && (quoted || c[i] != '>'); i++ {
				if c[i] == '"' {
					quoted = !quoted
				} else if c[i] == '\\' && quoted {
					i++
				}
			}
			if i >= len(c) {
				return nil, sender
			}
			b = c[i+1:]
		case has(c, `"`):
			i := 1
			for ; i < len(c) && c[i] != '"'; i++ {
				if c[i] == '\\' {
					i++
				}
			}
			if i >= len(c) {
				return nil, sender
			}
			b = c[i+1:]
		default:
			i := bytes.IndexByte(c, ' ')
			if i < 0 {
				return nil, sender
			}
			if string(name) == "I" {
				e.Submission = submissionPort(c[:i])
			}
			b = c[i:]
		}
	}
	return b, sender
}

// submissionPort says whether "[IP]:PORT" is one of the ports where users log in.
func submissionPort(b []byte) bool {
	b = bytes.TrimSuffix(b, []byte(":"))
	return bytes.HasSuffix(b, []byte("]:587")) || bytes.HasSuffix(b, []byte("]:465"))
}

// eximHost reads what follows "H=HOSTTEXT" at the start of a message.
func eximHost(b []byte, e *Event) bool {
	b, sender := eximFields(b, e)
	if sender && !has(b, "rejected ") && !has(b, "temporarily rejected ") {
		// A sender with an angle bracket in it.
		if i := bytes.Index(b, []byte("> rejected ")); i >= 0 {
			b = b[i+2:]
		}
	}
	if c, ok := cut(b, "temporarily rejected "); ok {
		e.Kind = eximReject(c, false)
		return true
	}
	if c, ok := cut(b, "rejected "); ok {
		e.Kind = eximReject(c, true)
		return true
	}
	if has(b, "sender verify fail for ") || has(b, "sender verify defer for ") || has(b, "incomplete transaction ") {
		// The first two say why and the refusal has a line of its own; the third is also what a verification callback leaves.
		e.Kind = Other
		return true
	}
	if c, ok := cut(b, "dropped by "); ok {
		e.Kind = Other
		if i := bytes.Index(c, []byte(" ACL")); i >= 0 {
			if k := eximText(c[i+4:], true); k == RateLimit || k == DNSBLReject {
				e.Kind = k
			}
		}
		return true
	}
	if c, ok := cut(b, "RCPT "); ok {
		// "RCPT <R>: discarded by RCPT ACL": told that it was taken.
		e.Kind = Other
		return bytes.Contains(c, []byte(": discarded by "))
	}
	return false
}

// eximRefused is eximHost that knows of traps. A refusal that does not name its sender is no hit.
func (p *Parser) eximRefused(h *header, b []byte, e *Event) bool {
	c, ok := h.hostText(b, e)
	if !ok || len(c) == 0 || c[0] != ' ' {
		return false // a colon: what a host said that we deliver to
	}
	from, to, r, named := plainRefusal(c, e)
	if named && bytes.IndexByte(b[:len(b)-len(c)], '<') >= 0 {
		named = false // the helo may have a sender of its own
	}
	if !named && !eximHost(c, e) {
		return false
	}
	if e.Kind != UnknownRecipient && e.Kind != RelayDenied && (p.traps == nil || e.Submission) {
		return true
	}
	if !named {
		var s []byte
		s, named = behind(b, markSender)
		if r, ok = behind(b, markRcpt); !ok {
			r, ok = behind(b, markTaken)
		}
		from, to = upTo(s), upTo(r)
	}
	bounce := named && automatic(from)
	at := lastAt(to)
	if e.Kind == UnknownRecipient {
		if e.Automatic = bounce; len(to) > 0 {
			e.User = p.recipientHashAt(to, at)
		}
	} else if e.Kind == RelayDenied && len(to) > 0 {
		e.User = p.relayedHash(to, at)
	}
	if ok && named && !bounce && !e.Submission && p.traps != nil && (p.traps.matchAt(to, at) || p.traps.behind(r, markRcpt)) {
		e.Kind = Trap
	}
	return true
}

// plainRefusal reads what follows the host of nearly all refusals, "[ NAME=WORD]... F=<S> [temporarily ]rejected RCPT <R>: TEXT", if
// there is nothing in S and R that means anything: as eximHost does it, and in one go.
func plainRefusal(b []byte, e *Event) (from, to, text []byte, ok bool) {
	for !has(b, " F=<") {
		n := 1
		for n < len(b) && n < 8 && isAlpha(b[n]) {
			n++
		}
		if n == 1 || n+2 > len(b) || b[0] != ' ' || b[n] != '=' || b[n+1] == '<' || b[n+1] == '"' {
			return nil, nil, nil, false
		}
		c := b[n+1:]
		i := blank(c)
		if i == len(c) || bytes.IndexByte(c[:i], '<') >= 0 {
			return nil, nil, nil, false
		}
		if n == 2 && b[1] == 'I' {
			e.Submission = submissionPort(c[:i])
		}
		b = c[i:]
	}
	b = b[len(" F=<"):]
	n := special(b, 0)
	c, hard := cut(b[n:], "> rejected RCPT <")
	if !hard {
		if c, ok = cut(c, "> temporarily rejected RCPT <"); !ok {
			return nil, nil, nil, false
		}
	}
	i := special(c, 0)
	if text, ok = cut(c[i:], ">: "); !ok {
		return nil, nil, nil, false
	}
	if e.Kind = eximText(text, hard); e.Kind == None {
		e.Kind = Other
	}
	return b[:n], c[:i], text, true
}

// eximReject reads "STAGE ...: TEXT" after "rejected ". TEXT is the administrator's; the texts of the default
// configuration and the usual ones are known.
func eximReject(b []byte, hard bool) Kind {
	if c, ok := cut(b, "RCPT "); ok {
		text := afterEcho(c)
		if k := eximText(text, hard); k != None {
			return k
		}
		return Other
	}
	stage := b
	if i := bytes.IndexByte(b, ' '); i >= 0 {
		stage = b[:i]
	}
	if i := bytes.IndexByte(stage, ':'); i >= 0 {
		stage = stage[:i]
	}
	text := afterEcho(b)
	k := eximText(text, hard)
	switch string(stage) {
	case "EHLO", "HELO":
		if k == None && hard {
			return HeloReject
		}
	case "MAIL":
		if k == None && hard {
			return SenderReject
		}
	case "VRFY", "EXPN", "ETRN":
		if k == None && hard {
			return ProtocolError
		}
	case "DATA", "after", "by", "during":
		if k == UnknownRecipient || k == RelayDenied {
			return Other
		}
		if hard && spammy(text) {
			return SpamReject
		}
	}
	if k == None {
		return Other
	}
	return k
}

// afterEcho skips "<echo>: " or everything up to the first ": ".
func afterEcho(b []byte) []byte {
	if i := bytes.IndexByte(b[:min(len(b), 32)], '<'); i >= 0 && (i == 0 || b[i-1] == ' ') {
		if t, ok := skipEcho(b[i:]); ok {
			return t
		}
		return nil
	}
	if i := bytes.Index(b, []byte(": ")); i >= 0 {
		return b[i+2:]
	}
	return nil
}

// eximText says what the text of an ACL is about. A temporary refusal is greylisting, a limit, or ours.
func eximText(text []byte, hard bool) Kind {
	text = text[:min(len(text), 512)]
	switch {
	case has(text, "Unrouteable address"), has(text, "Unknown user"), has(text, "No Such User Here"):
		if hard {
			return UnknownRecipient // the commonest
		}
		return Other
	case within(text, "ratelimit"), within(text, "rate limit"), within(text, "too many connections"):
		return RateLimit
	case !hard:
		if within(text, "greylist") || within(text, "graylist") || within(text, "grey-list") {
			return Greylisted
		}
		return Other
	case within(text, "callout"), ours(text) && len(text) > 0:
		return Other
	case within(text, "unrouteable address"), within(text, "unrouteable mail"), nobody(text, true):
		return UnknownRecipient
	case has(text, "relay not permitted"), within(text, "relaying denied"), within(text, "relay access denied"), within(text, "relaying not permitted"), within(text, "relay attempt"),
		within(text, "smtp auth is required"):
		return RelayDenied
	case within(text, "listed at "), within(text, "listed in "), within(text, "black list"), within(text, "blacklist"), within(text, "blocklist"), within(text, "in an rbl"),
		within(text, "dnsbl"), within(text, "email blocked by "), within(text, "spamhaus"):
		return listing(text)
	case has(text, "Sender verify failed"), within(text, "sender verif"):
		return SenderReject
	case within(text, "reverse dns"), within(text, "host lookup failed"), within(text, "reverse lookup"), within(text, "no ptr"), within(text, "rdns"):
		return NoRDNS
	case within(text, "greylist"):
		return Greylisted
	}
	return None
}

// eximAuth reads "[H=]HOSTTEXT: 535 Incorrect authentication data[ (set_id=U)]".
func (p *Parser) eximAuth(h *header, b []byte, e *Event) bool {
	b, _ = cut(b, "H=")
	b, ok := h.hostText(b, e)
	if !ok {
		return false
	}
	// " I=[LOCAL]:PORT U=ident: ", of which the colon ends the last. Ident is the client's.
	if c, ok := cut(b, " I="); ok {
		if i := bytes.IndexByte(c, ' '); i > 0 {
			e.Submission = submissionPort(c[:i])
		}
	}
	if b, ok = cut(b, ": "); !ok {
		i := bytes.Index(b, []byte(": "))
		if i < 0 {
			return false
		}
		b = b[i+2:]
	}
	e.Kind = Other
	if c, ok := cut(b, "535 Incorrect authentication data"); ok { // nearly always
		// What oursAuth looks for is not in those words, and does not begin there.
		if within(c, "temporary") || within(c, "internal error") {
			return true
		}
		e.Kind = AuthFailure
		p.eximUser(c, e)
		return true
	}
	if !has(b, "5") || oursAuth(b[min(4, len(b)):]) {
		return true // 435 Unable to authenticate at present
	}
	if has(b, "501 ") {
		// No password was tried: "501 Authentication cancelled", "501 Invalid base64 data".
		if has(b, "501 Invalid base64") {
			e.Kind = ProtocolError
		}
		return true
	}
	e.Kind = AuthFailure
	p.eximUser(b, e)
	return true
}

// eximUser reads the user of a failed login.
func (p *Parser) eximUser(b []byte, e *Event) {
	i := bytes.IndexByte(b, '(')
	if i >= 0 && !has(b[i:], "(set_id=") {
		i = bytes.Index(b, []byte("(set_id="))
	}
	if i >= 0 && b[len(b)-1] == ')' {
		e.User = p.userHash(b[i+len("(set_id=") : len(b)-1])
	}
}

// eximAccepted reads "S H=HOSTTEXT P=proto [X=.. CV=.. DN=".." ][A=auth[:id] ]S=size ...". S is the client's and stands in
// front: a quoted local part may hold anything, so it is skipped by its quotes.
func (p *Parser) eximAccepted(h *header, q, b []byte, e *Event) bool {
	i := eximSender(b)
	if i == 0 {
		return false
	}
	sender := bare(b[:i])
	b, ok := fromHost(b[i:])
	if !ok {
		return false // U= of a local user, R= of a bounce
	}
	if b, ok = h.hostText(b, e); !ok {
		return false
	}
	if p.eximLogin(b, e); e.Kind == Delivered {
		e.User = p.senderHash(sender)
	}
	if !p.follows || !p.when(h, e) {
		return true
	}
	quiet := e.Submission || e.Kind == AuthSuccess || automatic(sender)
	// "[from <S> ]for R R ..." ends the line if log_selector has +received_recipients.
	if p.traps != nil && !quiet {
		if i := last2(b, " for "); i >= 0 && p.traps.inList(b[i+len(" for "):]) {
			e.Kind, quiet = Trap, true
		}
	}
	p.follow(p.queueKey(q), e, quiet)
	return true
}

// eximSender is the length of the sender at the start of b, whose local part may be quoted and hold blanks; 0 if its end is
// not certain.
func eximSender(b []byte) int {
	i, quoted := 0, false
	for ; i+8 <= len(b); i += 8 { // up to what means something
		w := load8(b, i)
		if z := zeros(w^' '*ones) | zeros(w^'"'*ones) | zeros(w^'\\'*ones); z != 0 {
			i += bits.TrailingZeros64(z) / 8
			break
		}
	}
	for i < len(b) && (quoted || b[i] != ' ') {
		if b[i] == '"' {
			quoted = !quoted
		} else if b[i] == '\\' {
			i++
		}
		i++
	}
	if i >= len(b) || i > whole {
		return 0
	}
	return i
}

// eximScanned reads "S H=HOSTTEXT P=proto [temporarily ]rejected by local_scan(): TEXT".
func (h *header) eximScanned(b []byte, e *Event) bool {
	b, ok := fromHost(b[eximSender(b):])
	if !ok {
		return false
	}
	if b, ok = h.hostText(b, e); !ok {
		return false
	}
	b, _ = eximFields(b, e)
	e.Kind = Other
	if c, ok := cut(b, "rejected by local_scan()"); ok {
		e.Kind = eximReject(b[len(b)-len(c)-len("by local_scan()"):], true)
		return true
	}
	return has(b, "temporarily rejected by local_scan()")
}

// eximLogin reads what follows the host of a message that came in.
func (p *Parser) eximLogin(b []byte, e *Event) {
	e.Kind = Delivered
	e.Count = 1
	// P= is Exim's word for a login; who it was is believed only if nothing but Exim's own words stands before A=: an ident,
	// a certificate's name or the name asked for in TLS may say anything.
	for len(b) > 3 && b[0] == ' ' {
		b = b[1:]
		n := 0
		for n < len(b) && n < 4 && isAlpha(b[n]) {
			n++
		}
		end := blank(b)
		word := b[:end]
		switch string(b[:n]) {
		case "I":
			e.Submission = submissionPort(word[min(2, len(word)):])
		case "P":
			if string(word) == "P=esmtpa" || string(word) == "P=esmtpsa" {
				e.Kind = AuthSuccess
			}
		case "X", "CV", "L", "K", "PRDR", "C", "Ci", "TFO":
			// fixed words
		case "A":
			if i := bytes.IndexByte(word, ':'); i >= 0 && e.Kind == AuthSuccess {
				u := word[i+1:]
				if j := bytes.IndexByte(u, ':'); j >= 0 { // log_selector +smtp_mailauth
					u = u[:j]
				}
				e.User = p.userHash(u)
			}
			return
		default:
			return
		}
		b = b[end:]
	}
}

// eximDelivery reads "{=>|->|**|==} R[ <O>][:] ..." and "Completed" of a message. O is the address that R comes from.
func (p *Parser) eximDelivery(h *header, q, b []byte, e *Event) bool {
	key := p.queueKey(q)
	if has(b, "Completed") {
		p.transit.remove(key)
		return false
	}
	if len(b) < 4 || b[2] != ' ' || !p.when(h, e) {
		return false
	}
	sent := has(b, "=>") || has(b, "->")
	if !sent && !has(b, "**") && !has(b, "==") {
		return false
	}
	w := p.transit.look(key, e.Time.Unix())
	if w == nil {
		return false
	}
	b = b[3:]
	if c, ok := cut(b, "blackhole ("); ok && sent && bytes.HasSuffix(c, []byte(" ACL discarded recipients)")) {
		// Accepted for nobody: an access list threw it away. Logins and bounces have no credit that could be taken back.
		if e.Kind, e.Count, e.Source, e.Submission, e.Undone = Other, 1, w.source(), w.sub, true; w.quiet {
			return false
		}
		p.transit.remove(key)
		return true
	}
	n := blank(b)
	to, b := b[:n], b[min(n+1, len(b)):]
	to = bare(bytes.TrimSuffix(to, []byte(":")))
	orig := to
	if c, ok := cut(b, "<"); ok {
		if c = upTo(c); c != nil {
			orig = c
		}
	}
	if bytes.IndexByte(to, '@') < 0 {
		to = orig // a local user, a file, a pipe
	}
	return p.recipient(w, to, orig, sent, e)
}

// eximS reads the messages that begin with SMTP.
func (h *header) eximS(m []byte, e *Event) bool {
	b, ok := cut(m, "SMTP ")
	if !ok {
		return false
	}
	if c, ok := cut(b, "connection "); ok {
		if d, ok := cut(c, "lost after final dot H="); ok { // the client did not wait for the answer
			e.Kind = LostConnection
			_, ok = h.hostText(d, e)
			return ok
		}
		if c, ok = connectedFrom(c); !ok {
			return false
		}
		if c, ok = h.hostText(c, e); !ok {
			return false
		}
		switch {
		case eximEnds(c, " (TCP/IP connection count = "):
			e.Kind = Connect
		case eximEnds(c, " closed by QUIT"):
			e.Kind = Disconnect
		case eximEnds(c, " closed by DROP in ACL"):
			e.Kind = Other
		default:
			e.Kind = LostConnection // lost, closed after SIGTERM, ...
		}
		return true
	}
	if c, ok := cut(b, "call from "); ok {
		if c, ok = h.hostText(c, e); !ok {
			return false
		}
		e.Kind = Other
		if i := bytes.Index(c[:min(len(c), 256)], []byte(" dropped: too many ")); i >= 0 {
			e.Kind = TooManyErrors
		}
		return true
	}
	for _, s := range [...]string{"command timeout on ", "data timeout (message abandoned) on ", "data timeout on "} {
		if c, ok := cut(b, s); ok {
			c, _ = cut(c, "TLS ")
			if c, ok = cut(c, "connection from "); !ok {
				return false
			}
			e.Kind = LostConnection
			_, ok = h.hostText(c, e)
			return ok
		}
	}
	if c, ok := cut(b, "protocol synchronization error ("); ok {
		i := bytes.Index(c[:min(len(c), 100)], []byte("): rejected "))
		if i < 0 {
			return false
		}
		c = c[i+len("): rejected "):]
		e.Kind = ProtocolError
		if d, ok := cut(c, "connection from H="); ok {
			_, ok = h.hostText(d, e)
			return ok
		}
		return h.afterText(c, e)
	}
	if c, ok := cut(b, "protocol error in "); ok {
		e.Kind = ProtocolError
		return h.afterText(c, e)
	}
	if c, ok := cut(b, "syntax error in "); ok {
		e.Kind = ProtocolError
		return h.afterText(c, e)
	}
	return false
}

// eximEnds looks for words in the few that follow a host.
func eximEnds(b []byte, words string) bool {
	return bytes.Contains(b[:min(len(b), 256)], []byte(words))
}

// afterText reads `"TEXT" H=HOSTTEXT ...`, where TEXT is the client's, not always with its quotes escaped, and more of the
// client's may follow. The place is certain if `" H=` stands in the line once, and the line is so short that the true one
// cannot have been cut off.
//
// Else it is the last, if from there to the end of the line there is nothing but the usual words of Exim's: a client
// that writes `" H=` into its helo has more than that behind it, the end of the helo and its own address. Other words may
// repeat what the client wrote ("malformed address: X may not follow Y").
func (h *header) afterText(b []byte, e *Event) bool {
	const mark = `" H=`
	b, ok := cut(b, `"`) // which may not be that of the mark
	if !ok {
		return false
	}
	if h.afterMark(b, mark, e) {
		return true
	}
	i := last(b, mark)
	if i < 0 || !h.uncut() {
		return false
	}
	b, ok = h.hostText(b[i+len(mark):], e)
	if c, local := cut(b, " I=["); local {
		if i = bytes.IndexByte(c, ' '); i < 0 {
			return false
		}
		b = c[i:]
	}
	if !ok || len(b) == 0 || b[0] != ' ' {
		return false
	}
	if b = b[1:]; string(b) == "unrecognized command" || string(b) == "AUTH command used when not advertised" {
		return true
	}
	n := 0
	for n < len(b) && (isAlnum(b[n]) || b[n] == '-' || b[n] == '_') {
		n++
	}
	return string(b[n:]) == " authentication mechanism not supported"
}

// uncut says that a line is so short that nothing of it is missing: all of it, as a long sender in front of a helo leaves
// that little room too.
func (h *header) uncut() bool {
	n := len(h.msg)
	return !h.part && (n <= whole || h.mta == Exim) && n <= 7000
}

func (h *header) afterMark(b []byte, mark string, e *Event) bool {
	i := bytes.Index(b, []byte(mark))
	if i < 0 || !h.uncut() || last(b, mark) != i {
		return false
	}
	_, ok := h.hostText(b[i+len(mark):], e)
	return ok
}

// eximWords reads what follows one of eximStarts.
func (h *header) eximWords(s *eximStart, b []byte, e *Event) (ok bool) {
	e.Kind = s.kind
	switch s.then {
	case 'i':
		n := blank(b)
		e.Source, ok = parseAddr(b[:n])
		return ok
	case 'h':
		n := 0
		for n < len(b) && n < 256 && isHost(b[n]) {
			n++
		}
		if b, ok = cut(b[n:], " (during SMTP connection from "); !ok {
			return false
		}
	}
	_, ok = h.hostText(b, e)
	return ok
}

type eximStart struct {
	start string
	then  byte // i: a bare address; h: a name and more words; else HOSTTEXT
	kind  Kind
	word  uint64 // its second eight bytes, which tell them apart
}

// eximStarts are in the order of their first letters.
var eximStarts = [...]eximStart{
	{"no MAIL in SMTP connection from ", 0, LostConnection, 0},
	{"no host name found for IP address ", 'i', NoRDNS, 0},
	{"no IP address found for host ", 'h', NoRDNS, 0},
	{"unexpected disconnection while reading SMTP command from ", 0, LostConnection, 0},
	{"unexpected EOF while reading SMTP command from ", 0, LostConnection, 0},
	{"rejected EHLO from ", 0, HeloReject, 0},
	{"rejected HELO from ", 0, HeloReject, 0},
	{"rejected MAIL from ", 0, ProtocolError, 0}, // no HELO/EHLO given
	{"refused connection from ", 0, Other, 0},
	{"rejected connection from ", 0, Other, 0},
	{"temporarily refused connection from ", 0, RateLimit, 0},
	{"temporarily rejected connection from ", 0, Other, 0},
}

// Where in eximStarts those begin that begin so.
const (
	eximStartsU = 3
	eximStartsR = 5
	eximStartsT = 10
)

func init() {
	for i := range eximStarts {
		eximStarts[i].word = load8([]byte(eximStarts[i].start), 8)
	}
}

// twice takes back the second of two equal messages within a second. Exim writes refusals to syslog once for the main
// log and once for the reject log, unless syslog_duplication is off. Only the last few are remembered, and each takes
// back one.
type twice struct {
	sum  [16]uint64
	at   [16]int64
	next int
}

func (t *twice) seen(p *Parser, h *header, m []byte, e *Event) bool {
	if !refusal(e.Kind) || !p.when(h, e) {
		return false
	}
	sum, now := p.eximSum(h, m), e.Time.Unix()
	for i := range t.sum {
		if t.sum[i] == sum && now-t.at[i] <= 1 && t.at[i]-now <= 1 {
			t.sum[i] = 0
			return true
		}
	}
	t.sum[t.next], t.at[t.next] = sum, now
	t.next = (t.next + 1) % len(t.sum)
	return false
}

// refusal says that Exim may write events of this kind to two logs.
func refusal(k Kind) bool {
	switch k {
	case Connect, Disconnect, Delivered, AuthSuccess, LostConnection, Other:
		return false
	}
	return true
}

func (p *Parser) eximSum(h *header, m []byte) uint64 {
	return max(1, hash(p.seed, m[:min(len(m), 512)], false)^hash(^p.seed, h.pid, false))
}

// copyAge is how long, in seconds of the log, a refusal that only one log has is stored over a restart.
const copyAge = 60

// copied tells whether a refusal in one of Exim's own files stood in another one before, within a second. Each copy takes
// one original back, so that the same refusal twice in the main log and twice in the reject log counts twice. The files
// are read in turns, and one may be ahead by MaxPending refusals: beyond that they count in both.
func (p *Parser) copied(h *header, m []byte, e *Event) bool {
	if !refusal(e.Kind) || !p.when(h, e) {
		return false
	}
	t, sum, now := &p.copies, p.eximSum(h, m), e.Time.Unix()
	i, ok := t.find(sum)
	if !ok {
		t.addNumbers(sum, 1, p.from.id, now)
		return false
	}
	w := &t.ring[t.index[i]-1]
	switch n, by := w.numbers(); {
	case now-w.at > 1 || w.at-now > 1:
		t.addNumbers(sum, 1, p.from.id, now)
		return false
	case by == p.from.id:
		t.addNumbers(sum, n+1, by, now)
		return false
	case n <= 1:
		t.drop(i)
	default:
		w.setNumbers(n-1, by)
	}
	return true
}
