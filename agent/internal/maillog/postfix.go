package maillog

import "bytes"

// The daemons of Postfix that talk to clients are smtpd and postscreen; cleanup refuses content; qmgr has the message
// once it is accepted; what delivers it (smtp, lmtp, local, ...) names its recipients. Everything else (bounce, dnsblog,
// anvil, tlsproxy, ...) speaks of our destinations, of list answers or of statistics, and gives no event.

// postfix dispatches on the last path element of the tag. What stands before it is the instance or the service
// (syslog_name), which may be anything; a bare "smtpd" is OpenSMTPD.
func (p *Parser) postfix(h *header, who role, e *Event) bool {
	if who.daemon == 0 || who.daemon == 'd' && !p.follows || !p.when(h, e) {
		return false
	}
	e.Submission = who.submission
	switch who.daemon {
	case 's':
		return p.smtpd(h, e)
	case 'p':
		return p.postscreen(h, e)
	case 'c':
		return p.cleanup(h, e)
	case 'q':
		return p.qmgr(h, e)
	case 'd':
		return p.delivery(h, e)
	}
	return p.pickup(h)
}

// daemonOf returns a letter for the daemons that are read, else 0.
func daemonOf(b []byte) byte {
	switch string(b) {
	case "smtpd":
		return 's'
	case "postscreen":
		return 'p'
	case "cleanup":
		return 'c'
	case "qmgr", "oqmgr":
		return 'q'
	case "pickup":
		return 'l'
	case "lmtp", "local", "smtp", "virtual", "pipe", "error", "discard":
		return 'd'
	}
	return 0
}

// submission says whether a syslog_name is that of a submission service, by the names of master.cf: an element
// "submission", "submissions", "smtps", 465 or 587, or one that ends so ("postfix-submission").
func submission(path []byte) bool {
	if string(path) == "postfix" {
		return false
	}
	for len(path) > 0 {
		var el []byte
		el, path, _ = bytes.Cut(path, []byte("/"))
		if i := bytes.LastIndexByte(el, '-'); i >= 0 {
			el = el[i+1:]
		}
		switch string(el) {
		case "submission", "submissions", "smtps", "465", "587":
			return true
		}
	}
	return false
}

// set fills an event about the client at the start of b.
func (e *Event) set(k Kind, b []byte) (rest []byte, ok bool) {
	a, rest, ok := client(b)
	if !ok {
		return nil, false
	}
	e.Kind, e.Source = k, a
	return rest, true
}

// client is set for the lines of which a session has several. A process has one client at a time.
func (p *Parser) client(k Kind, b []byte, e *Event) (rest []byte, ok bool) {
	c := &p.clients[p.process%uint8(len(p.clients))]
	if n := c.n; n > 0 && n <= len(b) && string(b[:n]) == string(c.text[:n]) && !port(b[n:]) {
		e.Kind, e.Source = k, c.addr
		return b[n:], true
	}
	if rest, ok = e.set(k, b); ok {
		if n := len(b) - len(rest); n <= len(c.text) && b[n-1] == ']' {
			c.n, c.addr = copy(c.text[:], b[:n]), e.Source
		}
	}
	return rest, ok
}

// tail is set for the shapes where the client is followed by a fixed byte or nothing.
func (e *Event) tail(k Kind, b []byte, next byte) bool {
	rest, ok := e.set(k, b)
	return ok && ended(rest, next)
}

func ended(rest []byte, next byte) bool {
	return len(rest) == 0 || next != 0 && rest[0] == next || len(bytes.TrimRight(rest, " ")) == 0
}

// smtpd reads the lines of the SMTP server. Everything up to the client is written by Postfix, except in the two ETRN
// warnings.
func (p *Parser) smtpd(h *header, e *Event) bool {
	m := h.msg
	if len(m) < 8 {
		return false
	}
	switch m[0] {
	case 'N':
		if b, ok := cut(m, "NOQUEUE: reject: RCPT from "); ok {
			return p.acted(nil, b, true, false, e)
		}
	case 'c':
		if b, ok := cut(m, "connect from "); ok {
			b, ok = p.client(Connect, b, e)
			return ok && ended(b, 0)
		}
	case 'd':
		// "auth=0/5 rcpt=0/3" here sums up lines that were counted one by one when they were written.
		if b, ok := cut(m, "disconnect from "); ok {
			b, ok = p.client(Disconnect, b, e)
			return ok && ended(b, ' ')
		}
	case 'w':
		if b, ok := cut(m, "warning: "); ok {
			return p.smtpdWarning(b, e)
		}
	case 'i':
		if b, ok := cut(m, "improper command pipelining after "); ok {
			return e.after(ProtocolError, b, ':')
		}
	case 'b':
		if b, ok := cut(m, "bare <LF> received after "); ok {
			return e.after(ProtocolError, b, ':')
		}
	case 'r':
		if b, ok := cut(m, "reject: RCPT from "); ok { // Postfix 1 wrote no NOQUEUE
			return p.acted(nil, b, true, false, e)
		}
	case 'S':
		if b, ok := cut(m, "SSL_accept error from "); ok {
			return e.tail(LostConnection, b, ':')
		}
	case 'p':
		if proxied(m) {
			return p.proxied(h, m, e)
		}
	case 'l', 't':
		if lost(m, e) {
			return true
		}
	}
	q, b, ok := queueID(m)
	if !ok {
		return false
	}
	switch b[0] {
	case 'c':
		if c, ok := cut(b, "client="); ok {
			return p.accepted(h, q, c, e)
		}
	case 'l', 't':
		if lost(b, e) {
			return true
		}
	case 'a':
		if c, ok := cut(b, "abort: TLS from "); ok {
			return e.tail(LostConnection, c, ':')
		}
	case 'p':
		if proxied(b) {
			return p.proxied(h, b, e)
		}
	}
	return p.action(q, b, e)
}

// lost reads "{lost connection|timeout|too many errors} after CMD[ (N bytes)] from C".
func lost(m []byte, e *Event) bool {
	if b, ok := cut(m, "lost connection after "); ok {
		return e.after(LostConnection, b, 0)
	}
	if b, ok := cut(m, "timeout after "); ok {
		return e.after(LostConnection, b, 0)
	}
	if b, ok := cut(m, "too many errors after "); ok {
		return e.after(TooManyErrors, b, 0)
	}
	return false
}

// after reads "CMD[ (N bytes)] from C". CMD is one of Postfix's own words, not what the client sent.
func (e *Event) after(k Kind, b []byte, next byte) bool {
	i := command(b)
	if i == 0 {
		return false
	}
	b = b[i:]
	if c, ok := cut(b, " ("); ok {
		n := 0
		for n < len(c) && (isDigit(c[n]) || n > 0 && c[n] == ' ' || isAlpha(c[n])) {
			n++
		}
		if b, ok = cut(c[n:], ")"); !ok {
			return false
		}
	}
	c, ok := cut(b, " from ")
	return ok && e.tail(k, c, next)
}

// command returns the length of the command or stage name at the start of b.
func command(b []byte) int {
	n := 0
	for n < len(b) && n < 24 && (isUpper(b[n]) || b[n] == '-') {
		n++
	}
	return n
}

// queueID reads "NOQUEUE: " or "Q: ".
func queueID(b []byte) (q, rest []byte, ok bool) {
	n := alnumRun(b, 24)
	if n < 5 || n+2 >= len(b) || b[n] != ':' || b[n+1] != ' ' {
		return nil, nil, false
	}
	return b[:n], b[n+2:], true
}

// action reads "ACTION: CMD from C: REPLY; ...". Only reject and milter-reject refuse something.
func (p *Parser) action(q, b []byte, e *Event) bool {
	n := 0
	for n < len(b) && n < 32 && (b[n]|0x20-'a' < 26 || b[n] == '_' || b[n] == '-') {
		n++
	}
	if n == 0 {
		return false
	}
	act := b[:n]
	b, ok := cut(b[n:], ": ")
	if !ok {
		return false
	}
	n = command(b)
	if n == 0 {
		return false
	}
	stage := b[:n]
	if b, ok = cut(b[n:], " from "); !ok {
		return false
	}
	return p.acted(q, b, refuses(act), stage[0] == 'D' || stage[0] == 'B' || string(stage) == "END-OF-MESSAGE", e)
}

// acted reads what follows "ACTION: CMD from ". content: the whole message is refused, not a recipient.
func (p *Parser) acted(q, b []byte, refused, content bool, e *Event) bool {
	b, ok := p.client(Other, b, e)
	if !ok {
		return false
	}
	reply, ok := cut(b, ": ")
	if !ok {
		return false
	}
	if refused {
		e.Temporary = len(reply) > 0 && reply[0] == '4'
		if content {
			p.pending.remove(p.queueKey(q))
		}
		e.Kind = classify(reply, content)
	}
	if e.Kind != UnknownRecipient && e.Kind != RelayDenied && (e.Submission || p.traps == nil) {
		return true
	}
	from, to, rest, ok := envelope(reply)
	if !ok {
		return true
	}
	bounce, at := automatic(from), lastAt(to)
	switch e.Kind {
	case UnknownRecipient:
		e.Automatic, e.Midway = bounce, !content && len(q) > 0 && string(q) != "NOQUEUE"
		if len(to) > 0 {
			e.User = p.recipientHashAt(to, at)
		}
	case RelayDenied:
		if len(to) > 0 {
			e.User = p.relayedHash(to, at)
		}
	}
	if !e.Submission && !bounce && p.traps != nil && p.traps.either(to, at, rest) {
		e.Kind = Trap // whatever was made of it: discard, hold and the like are what one does with a trap's mail
	}
	return true
}

// envelope reads "REPLY; from=<S>[,] to=<R>[,] proto=...". rest is what follows the mark of R.
func envelope(reply []byte) (from, to, rest []byte, ok bool) {
	i := indexFrom(reply)
	if i < 0 {
		return nil, nil, nil, false
	}
	b := reply[i+len("; from=<"):]
	if i = angle(b); i == len(b) {
		return nil, nil, nil, true
	}
	if b[i] == '<' { // inside S: it may be anything
		from = upTo(b)
	} else {
		from, b = b[:i], b[i+1:]
	}
	if c, ok := cut(b, " to=<"); ok {
		rest = c
	} else if i = indexTo(b); i >= 0 {
		rest = b[i+len(" to=<"):]
	} else {
		return from, nil, nil, true
	}
	if i = angle(rest); i < len(rest) && rest[i] == '>' {
		return from, rest[:i], rest[i:], true
	}
	return from, upTo(rest), rest, true
}

func refuses(act []byte) bool { return string(act) == "reject" || string(act) == "milter-reject" }

// accepted reads "Q: client=C[, sasl_method=M][, sasl_username=U]...". Postfix writes it at the first recipient it
// accepts, which is not yet a message: the source is remembered until qmgr has one. A login that worked is an event.
func (p *Parser) accepted(h *header, q, b []byte, e *Event) bool {
	rest, ok := p.client(AuthSuccess, b, e)
	if !ok || len(rest) > 0 && rest[0] != ',' {
		return false
	}
	key := p.queueKey(q)
	if string(q) == "NOQUEUE" { // a proxy filter stands before the queue: see proxied
		key = p.proxyKey(h)
	}
	p.pending.add(key, e.Source, e.Time.Unix(), e.Submission)
	if e.Submission || has(rest, ", sasl_") {
		p.hush(&p.pending, key)
	}
	// The fields stand in this order. orig_client, which comes later and may be XFORWARD text, is never read.
	if m, ok := cut(rest, ", sasl_method="); ok {
		i := bytes.IndexByte(m, ',')
		if i < 0 {
			return false
		}
		rest = m[i:]
	}
	u, ok := cut(rest, ", sasl_username=")
	if !ok {
		return false
	}
	if i := bytes.Index(u, []byte(", ")); i >= 0 {
		u = u[:i]
	}
	e.User = p.userHash(u)
	return true
}

const proxyAccept, proxyReject = "proxy-accept: END-OF-MESSAGE: ", "proxy-reject: END-OF-MESSAGE: "

// proxied says that a before-queue filter (smtpd_proxy_filter) took or refused a message. The line has no address, but one
// smtpd process serves one client at a time, and "NOQUEUE: client=" of that process has it.
func proxied(b []byte) bool { return has(b, proxyAccept) || has(b, proxyReject) }

func (p *Parser) proxied(h *header, b []byte, e *Event) bool {
	if reply, ok := cut(b, proxyReject); ok {
		w, ok := p.pending.take(p.proxyKey(h), e.Time.Unix())
		if !ok || len(reply) == 0 || reply[0] != '4' && reply[0] != '5' {
			return false // the filter hung up: our fault, and nothing is said
		}
		e.Kind, e.Source, e.Submission, e.Temporary = classify(reply, true), w.source(), w.sub, reply[0] == '4'
		if !w.quiet && p.traps.hits(reply) {
			e.Kind = Trap
		}
		return true
	}
	if reply, _ := cut(b, proxyAccept); len(reply) == 0 || reply[0] != '2' {
		return false
	}
	w, ok := p.deliver(p.proxyKey(h), e)
	if ok && !w.quiet && p.traps.hits(h.msg) {
		e.Kind = Trap
	}
	return ok
}

func (p *Parser) proxyKey(h *header) uint64 {
	return max(1, stir(hash(p.seed^p.host, h.tag, false)^hash(^p.seed, h.pid, false)))
}

// queueKey has the host in it: one log may be of several. It leaves the instance out: smtpd and qmgr of one instance may
// log under different names. Two instances of one host that use the same short queue id in the same half hour may swap a credit.
func (p *Parser) queueKey(q []byte) uint64 { return max(1, hash(p.seed^p.host, q, false)) }

func (p *Parser) deliver(key uint64, e *Event) (w waiting, ok bool) {
	if w, ok = p.pending.take(key, e.Time.Unix()); !ok {
		return w, false
	}
	// One message, whatever its number of recipients and however often the line is repeated.
	e.Kind, e.Source, e.Submission, e.Count = Delivered, w.source(), w.sub, 1
	return w, true
}

// smtpdWarning reads what follows "warning: ".
func (p *Parser) smtpdWarning(b []byte, e *Event) bool {
	if len(b) == 0 {
		return false
	}
	switch b[0] {
	case 'h':
		if c, ok := cut(b, "hostname "); ok {
			return noRDNS(c, e)
		}
	case 'n':
		if c, ok := cut(b, "non-SMTP command from "); ok {
			return e.tail(ProtocolError, c, ':')
		}
	case 'I':
		if c, ok := cut(b, "Illegal address syntax from "); ok {
			return e.tail(ProtocolError, c, ' ')
		}
	case 'W':
		if c, ok := cut(b, "Wrapper-mode request dropped from "); ok {
			return e.tail(LostConnection, c, ' ')
		}
	case 'b':
		if c, ok := cut(b, "bad ETRN "); ok {
			return lastFrom(ProtocolError, c, e)
		}
	case 'r':
		if c, ok := cut(b, "reject: ETRN "); ok {
			return lastFrom(ProtocolError, c, e)
		}
	}
	if c, ok := cut(b, "Refusing "); ok {
		// "{STARTTLS|TLS service} request from C": our TLS is out of order
		if d, ok := cut(c, "STARTTLS request from "); ok {
			return e.tail(Other, d, ' ')
		}
		if d, ok := cut(c, "TLS service request from "); ok {
			return e.tail(Other, d, ' ')
		}
		return false
	}
	if c, ok := limitExceeded(b); ok {
		return e.tail(RateLimit, c, ' ')
	}
	if _, c, ok := queueID(b); ok {
		return bdatWarning(c, e)
	}
	if isDigit(b[0]) || b[0] == ':' {
		if notItsName(b, e) {
			return true
		}
	}
	rest, ok := e.set(AuthFailure, b)
	if !ok {
		return false
	}
	if c, ok := cut(rest, " sent "); ok { // before 2.9
		e.Kind = ProtocolError
		return has(c, "non-SMTP command: ") || has(c, "message header instead of SMTP command: ")
	}
	rest, ok = cut(rest, ": SASL ")
	return ok && p.sasl(rest, e)
}

// notItsName reads "IP: {hostname NAME verification failed: why|address not listed for hostname NAME}", of Postfix before 2.8.
func notItsName(b []byte, e *Event) bool {
	i := bytes.Index(b[:min(len(b), 64)], []byte(": "))
	if i < 0 {
		return false
	}
	a, ok := parseAddr(b[:i])
	b = b[i+2:]
	e.Kind, e.Source = NoRDNS, a
	return ok && (has(b, "hostname ") || has(b, "address not listed for hostname "))
}

var limits = [...]string{"Connection concurrency", "Connection rate", "Message delivery request rate",
	"Recipient address rate", "New TLS session rate", "AUTH command rate"}

// limitExceeded reads "{WHAT} limit exceeded: N from " of the warnings about anvil's limits.
func limitExceeded(b []byte) ([]byte, bool) {
	for _, what := range &limits {
		if b[0] != what[0] {
			continue
		}
		c, ok := cut(b, what)
		if !ok {
			continue
		}
		if c, ok = cut(c, " limit exceeded: "); !ok {
			return nil, false
		}
		n := 0
		for n < len(c) && isDigit(c[n]) {
			n++
		}
		return cut(c[n:], " from ")
	}
	return nil, false
}

// bdatWarning reads the rest of "warning: Q: WHAT from C", where WHAT holds only Postfix's words and numbers.
func bdatWarning(b []byte, e *Event) bool {
	for _, what := range [...]string{"malformed BDAT command syntax", "null BDAT request", "too much BDAT content"} {
		if c, ok := cut(b, what); ok {
			i := bytes.Index(c, []byte("from "))
			return i > 0 && i < 80 && e.tail(ProtocolError, c[i+5:], ':')
		}
	}
	return false
}

// noRDNS reads "NAME does not resolve to address IP[: why]". NAME is the client's, but has only host name bytes.
func noRDNS(b []byte, e *Event) bool {
	n := 0
	for n < len(b) && n < 256 && isHost(b[n]) {
		n++
	}
	c, ok := cut(b[n:], " does not resolve to address ")
	if !ok || n == 0 {
		return false
	}
	if i := bytes.IndexByte(c, ' '); i >= 0 {
		c = c[:i]
	}
	a, ok := parseAddr(c)
	if !ok && len(c) > 0 && c[len(c)-1] == ':' {
		a, ok = parseAddr(c[:len(c)-1])
	}
	e.Kind, e.Source = NoRDNS, a
	return ok
}

// lastFrom reads "TEXT from C", where TEXT is the client's. Nothing follows C, so the last " from " of the line is
// Postfix's own, and C must reach to the end of the line. TEXT is at most 100 bytes: no syslogd cuts the line before C.
func lastFrom(k Kind, b []byte, e *Event) bool {
	i := last(b, " from ")
	if i < 0 || i > 512 {
		return false
	}
	rest, ok := e.set(k, b[i+6:])
	return ok && len(rest) == 0
}

// sasl reads "MECH authentication failed: REASON[, sasl_username=U]". MECH is the client's text and may hold anything;
// only when it is a single word do we trust what follows to be Postfix's. Else the failure counts without a name.
func (p *Parser) sasl(b []byte, e *Event) bool {
	i := bytes.IndexByte(b, ' ')
	if i < 0 {
		return false
	}
	b = b[i:]
	if _, ok := cut(b, " authentication aborted"); ok {
		e.Kind = Other
		return true
	}
	r, ok := cut(b, " authentication failed:")
	if !ok {
		// Some versions end the line here.
		return bytes.Contains(b, []byte(" authentication failed")) || bytes.Contains(b, []byte(" authentication aborted"))
	}
	r = bytes.TrimPrefix(r, []byte(" "))
	// REASON comes from the authentication server; the name stands behind it and may hold anything.
	if u := bytes.Index(r, []byte("sasl_username=")); u >= 0 {
		if u >= 2 && r[u-2] == ',' {
			e.User = p.userHash(r[u+len("sasl_username="):])
		}
		r = r[:u]
	}
	if oursAuth(r) {
		e.Kind, e.User = Other, 0
	}
	return true
}

// postscreen reads the lines of the screening daemon, which writes its client as [IP]:PORT.
func (p *Parser) postscreen(h *header, e *Event) bool {
	m := h.msg
	if b, ok := cut(m, "NOQUEUE: "); ok {
		m = b
	}
	if len(m) == 0 {
		return false
	}
	if b, ok := cut(m, "reject: "); ok {
		if !postscreenReject(b, e) {
			return false
		}
		if p.traps.hits(b) {
			e.Kind = Trap
		}
		return true
	}
	for _, s := range &postscreenShapes {
		if m[0] != s.start[0] {
			continue
		}
		b, ok := cut(m, s.start)
		if !ok {
			continue
		}
		if n := len(s.until); n > 0 {
			// Only a number or a duration stands between.
			i := bytes.Index(b[:min(len(b), 24+n)], s.until)
			if i < 0 {
				return false
			}
			b = b[i+n:]
		}
		a, rest, ok := bracketed(b)
		if !ok || len(rest) > 0 && rest[0] != ' ' && rest[0] != ':' {
			return false
		}
		e.Kind, e.Source = s.kind, a
		return true
	}
	return false
}

var postscreenShapes = [...]struct {
	start string
	until []byte
	kind  Kind
}{
	{"CONNECT from ", nil, Connect},
	{"DISCONNECT ", nil, Disconnect},
	{"PASS NEW ", nil, Other},
	{"PASS OLD ", nil, Other},
	{"PREGREET ", []byte(" from "), Pregreet},
	{"DNSBL rank ", []byte(" for "), DNSBLReject},
	{"HANGUP after ", []byte(" from "), LostConnection},
	{"BARE NEWLINE from ", nil, ProtocolError},
	{"COMMAND TIME LIMIT from ", nil, ProtocolError},
	{"COMMAND COUNT LIMIT from ", nil, ProtocolError},
	{"COMMAND LENGTH LIMIT from ", nil, ProtocolError},
	{"COMMAND PIPELINING from ", nil, ProtocolError},
	{"NON-SMTP COMMAND from ", nil, ProtocolError},
	{"DATA without valid RCPT from ", nil, ProtocolError},
	{"BDAT without valid RCPT from ", nil, ProtocolError},
	{"WHITELISTED ", nil, Other},
	{"ALLOWLISTED ", nil, Other},
	{"BLACKLISTED ", nil, Other},
	{"DENYLISTED ", nil, Other},
	{"WHITELIST VETO ", nil, Other},
	{"ALLOWLIST VETO ", nil, Other},
}

// postscreenReject reads "{RCPT|CONNECT|connect|...} from [IP]:P: REPLY; from=<S>, to=<R>, ...".
func postscreenReject(b []byte, e *Event) bool {
	n := 0
	for n < len(b) && n < 24 && isAlpha(b[n]) {
		n++
	}
	c, ok := cut(b[n:], " from ")
	if !ok || n == 0 {
		return false
	}
	a, rest, ok := bracketed(c)
	if !ok {
		return false
	}
	r, ok := cut(rest, ": ")
	if !ok {
		return false
	}
	e.Source, e.Kind = a, Other
	_, text := splitReply(r)
	switch {
	case has(text, "Service unavailable; client ["):
		e.Kind = listing(text)
	case len(r) > 0 && r[0] == '4' && has(text, "Service currently unavailable"):
		e.Kind = Greylisted // first deep test: the client is to come back
	case has(text, "Protocol error"):
		e.Kind = ProtocolError
	case has(text, "too many connections"):
		e.Kind = RateLimit
	}
	return true
}

// cleanup reads refusals of content.
func (p *Parser) cleanup(h *header, e *Event) bool {
	q, b, ok := queueID(h.msg)
	if !ok || has(b, "message-id=") || has(b, "info: ") {
		return false
	}
	quiet := false
	if p.traps != nil {
		w := p.pending.look(p.queueKey(q), e.Time.Unix())
		quiet = w != nil && w.quiet
	}
	if c, ok := cut(b, "milter-reject: "); ok {
		p.pending.remove(p.queueKey(q))
		n := command(c)
		if n == 0 {
			return false
		}
		c, ok = cut(c[n:], " from ")
		if !ok {
			return false
		}
		if c, ok = e.set(Other, c); !ok {
			return false
		}
		if c, ok = cut(c, ": "); ok {
			e.Kind = classify(c, true)
			if !quiet && p.traps.hits(c) {
				e.Kind = Trap
			}
		}
		return ok
	}
	if has(b, "milter-discard: ") || has(b, "discard: ") {
		p.pending.remove(p.queueKey(q)) // taken, but not delivered
		return false
	}
	if c, ok := cut(b, "reject: "); ok {
		p.pending.remove(p.queueKey(q))
		ok = contentReject(c, e)
		if ok && !quiet && p.traps.hits(c) {
			e.Kind = Trap
		}
		return ok
	}
	return false
}

// contentReject reads "{header|body|...} TEXT from C; from=<S> to=<R> proto=P helo=<H>[: reason]". TEXT, S, R and H are all
// the client's, before and after the address. Postfix always writes "; from=<" behind C; so if that stands in the line
// exactly once, C is before it, and if a client has put another one anywhere, there is no telling: no event.
func contentReject(b []byte, e *Event) bool {
	kind := b
	if i := bytes.IndexByte(b, ' '); i > 0 {
		kind = b[:i]
	}
	switch string(kind) {
	case "header", "body", "mime-header", "nested-header":
	default:
		return false
	}
	mark := []byte("; from=<")
	i := bytes.Index(b, mark)
	if i < 0 || i > 560 || bytes.LastIndex(b, mark) != i { // TEXT has 200 bytes at most: farther behind it is not Postfix's
		return false
	}
	head, after := b[:i], b[i+len(mark):]
	j := last(head, " from ")
	if j < 0 {
		return false
	}
	rest, ok := e.set(Other, head[j+6:])
	if !ok || len(rest) != 0 {
		return false
	}
	// The reason is the administrator's and the last thing on the line.
	if r := last(after, ">: "); r >= 0 && spammy(after[r+3:]) {
		e.Kind = SpamReject
	}
	return true
}

// qmgr reads "Q: from=<S>, size=N, nrcpt=N (queue active)": the message is ours now. A deferred message comes by here
// again and again, but its source is taken the first time.
func (p *Parser) qmgr(h *header, e *Event) bool {
	q, b, ok := queueID(h.msg)
	if !ok {
		return false
	}
	if s, ok := cut(b, "from=<"); ok && bytes.HasSuffix(b, []byte("(queue active)")) {
		key := p.queueKey(q)
		w, ok := p.deliver(key, e)
		if ok {
			e.User = p.senderHash(upTo(s))
			p.follow(key, e, w.quiet || automatic(upTo(s)))
			if bytes.HasSuffix(b, []byte(", nrcpt=1 (queue active)")) && p.follows {
				p.transit.entry(key).alone = true
			}
		}
		return ok
	}
	if string(b) == "removed" {
		key := p.queueKey(q)
		p.pending.remove(key)
		p.transit.remove(key)
	}
	return false
}

// delivery reads "Q: to=<R>[, orig_to=<O>], relay=.., .., status=S (TEXT)" of what delivers. R and O are the client's or the
// administrator's, TEXT the destination's; the source is that of the queue id.
func (p *Parser) delivery(h *header, e *Event) bool {
	q, b, ok := queueID(h.msg)
	if !ok {
		return false
	}
	if b, ok = cut(b, "to=<"); !ok {
		return false
	}
	w := p.transit.look(p.queueKey(q), e.Time.Unix())
	if w == nil {
		return false // ours, or forwarded by one of us
	}
	to, b, ok := bytes.Cut(b, []byte(">, "))
	if !ok {
		return false
	}
	orig := to
	if c, ok := cut(b, "orig_to=<"); ok {
		if orig, b, ok = bytes.Cut(c, []byte(">, ")); !ok {
			return false
		}
	}
	relay, status, _ := bytes.Cut(b, []byte(", status="))
	if reason, ok := thrownAway(relay, status); ok {
		return p.undone(q, w, orig, reason, e)
	}
	ok = p.recipient(w, to, orig, has(status, "sent "), e)
	if text, bounced := cut(status, "bounced ("); !ok && bounced && !w.quiet && len(to) > 0 && &to[0] == &orig[0] && nobodyHere(relay, text) {
		// What the client itself asked for; an alias may lead to who has left.
		if e.Kind, e.User, e.Undone = UnknownRecipient, p.recipientHash(to), w.alone; w.alone {
			p.transit.remove(p.queueKey(q))
		}
		return true
	}
	return ok
}

// nobodyHere says that a message was accepted for a recipient of ours that there is not, as what delivers it has found out:
// "unknown user: "X"" (local, virtual), "user unknown" (pipe), and "host H[A] said: 550 ... (in reply to RCPT TO command)" of a host or
// socket behind this one. Other hosts may say what they like.
func nobodyHere(relay, text []byte) bool {
	relay, ok := cut(relay, "relay=")
	if !ok {
		return false
	}
	i := bytes.IndexByte(relay, '[')
	if end := bytes.IndexByte(relay, ','); i < 0 || end >= 0 && end < i {
		return has(text, "unknown user: \"") || has(text, "user unknown")
	}
	if a, _, ok := bracketed(relay[i:]); !has(relay[i:], "[private/") && (!ok || !a.IsLoopback() && !a.IsPrivate()) {
		return false
	}
	_, said, ok := bytes.Cut(text, []byte("] said: "))
	if !ok || !bytes.HasSuffix(said, []byte("(in reply to RCPT TO command))")) {
		return false
	}
	rc, said := splitReply(said)
	return rc.hard && (rc.subject == '1' && rc.detail == '1' || nobody(said, true))
}

// thrownAway reads what a content filter behind the queue (amavis) says of a message that it does not pass on: "sent (250 2.7.0
// Ok, discarded, id=19-9 - spam)", or "bounced (host H[A] said: 554 5.7.0 Reject, id=19-9 - spam ...". It must be ours: hosts to which
// we forward may say what they like.
func thrownAway(relay, status []byte) (reason []byte, ok bool) {
	c, ok := cut(status, "sent (250 2.7.")
	if !ok {
		if c, ok = cut(status, "bounced (host "); !ok {
			return nil, false
		}
		const said = "] said: 554 5.7."
		i := bytes.Index(c, []byte(said))
		if i < 0 {
			return nil, false
		}
		c = c[i+len(said):]
	}
	if len(c) == 0 || !isDigit(c[0]) {
		return nil, false
	}
	if reason, ok = cut(c[1:], " Ok, discarded, "); !ok {
		if reason, ok = cut(c[1:], " Reject, id="); !ok {
			return nil, false
		}
	}
	i := bytes.IndexByte(relay, '[')
	if i < 0 || !has(relay, "relay=") {
		return nil, false
	}
	a, _, ok := bracketed(relay[i:])
	return reason, ok && (a.IsLoopback() || a.IsPrivate())
}

// undone takes a message back that a filter threw away after it was accepted; the first of its recipients says so for all.
func (p *Parser) undone(q []byte, w *waiting, orig, reason []byte, e *Event) bool {
	p.recipient(w, nil, orig, false, e)
	switch {
	case e.Kind == Trap:
	case !w.quiet && (spammy(reason) || has(reason, "UBE,") || within(reason, "infected")):
		e.Kind = SpamReject
	default: // a bounce, what our users send, an attachment that we do not want
		e.Kind = Other
	}
	e.Undone = true
	p.transit.remove(p.queueKey(q))
	return true
}

// pickup takes local mail. It may use a short queue id again that an abandoned session left behind.
func (p *Parser) pickup(h *header) bool {
	if q, b, ok := queueID(h.msg); ok && has(b, "uid=") {
		p.pending.remove(p.queueKey(q))
		p.transit.remove(p.queueKey(q))
	}
	return false
}

func has(b []byte, prefix string) bool {
	return len(b) >= len(prefix) && string(b[:len(prefix)]) == prefix
}

func cut(b []byte, prefix string) ([]byte, bool) {
	if has(b, prefix) {
		return b[len(prefix):], true
	}
	return b, false
}

// last is where word stands last in b, -1 if nowhere. bytes.LastIndex hashes all that it passes by.
func last(b []byte, word string) int {
	n := len(word)
	for i := len(b) - n + 1; i > 0; {
		if i = lastByte(b[:i], word[0]); i >= 0 && string(b[i:i+n]) == word {
			return i
		}
	}
	return -1
}
