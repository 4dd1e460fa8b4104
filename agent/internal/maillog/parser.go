package maillog

import (
	"bytes"
	"math/bits"
	"net/netip"
	"time"
)

// Options are the settings of a Parser. The zero value works.
type Options struct {
	// Seed goes into the hash of user names and queue ids. Give every host its own, and keep it: user hashes and the
	// bytes of Pending mean something only under the seed they were made with.
	Seed uint64
	// MTA says whose lines to read; the lines of all others are no events. The zero value reads them all and tells them
	// apart by the tag, or by the shape of the line where Exim and Dovecot write their own files.
	MTA MTA
	// MaxPending is how many accepted recipients may wait for their message, and as many sessions of
	// OpenSMTPD and messages of Sendmail may be under way (see Pending). Default 65536, 48 bytes each; the tables of an
	// MTA that is not there take no memory.
	MaxPending int
	// PendingAge is how long one waits; sessions of OpenSMTPD may last twice as long. Default 30 minutes.
	PendingAge time.Duration
	// Traps are looked for among the recipients. It is only read; nil is none.
	Traps *Traps
	// Recipients asks for an event Recipient for each delivery of an accepted message.
	Recipients bool
	// Several says that there is more than one log to read, see Parser.Switch: then the refusals that Exim writes to its
	// main and to its reject log are told apart from two refusals.
	Several bool
}

// An MTA is one whose log can be read.
type MTA uint8

// Auto stands for all of them.
const (
	Auto MTA = iota
	Postfix
	Exim
	Sendmail
	OpenSMTPD
	Dovecot
	Courier // and the logins of Cyrus
	NumMTAs
)

var mtaNames = [NumMTAs]string{"auto", "postfix", "exim", "sendmail", "opensmtpd", "dovecot", "courier"}

// String returns the name as it stands in the config.
func (m MTA) String() string {
	if m < NumMTAs {
		return mtaNames[m]
	}
	return "unknown"
}

// Undoes says that a Delivered of this MTA may be taken back (see Event.Undone): that a message stayed is known for certain when a
// Recipient of it is.
func (m MTA) Undoes() bool { return m == Postfix || m == Sendmail }

// ParseMTA is the reverse of String.
func ParseMTA(s string) (MTA, bool) {
	for m, n := range mtaNames {
		if n == s {
			return MTA(m), true
		}
	}
	return Auto, false
}

// A role is what a tag says: whose line it is, and of Postfix which daemon's (0: one that is not read) on what service.
type role struct {
	mta        MTA
	daemon     byte
	submission bool
}

func roleOf(tag []byte) role {
	r := role{mta: mtaOf(tag)}
	if i := bytes.LastIndexByte(tag, '/'); r.mta == Postfix && i > 0 {
		r.daemon, r.submission = daemonOf(tag[i+1:]), submission(tag[:i])
	}
	return r
}

// tagCache remembers the roles of a few tags: a log has a dozen, and millions of lines with them.
type tagCache [64]tagRole

type tagRole struct {
	n     int  // 0: empty
	plain bool // has no bracket, so that what follows one is no part of it
	role  role
	text  [32]byte
	end   uint64 // the last eight bytes, or those that there are behind zeros
}

// is says that b[from:to] is this tag, end being what at was asked for. In front of it there are eight bytes at least.
func (x *tagRole) is(b []byte, from, to int, end uint64) bool {
	n := to - from
	if x.n != n || x.end != end {
		return false
	}
	if n <= 8 {
		return true
	}
	if n <= 16 {
		return load8(x.text[:], 0) == load8(b, from)
	}
	return string(b[from:to]) == string(x.text[:min(n, len(x.text))])
}

// tagEnd is the end of a tag of n bytes, of the eight bytes in front of what follows it.
func tagEnd(last uint64, n int) uint64 {
	if n < 8 {
		last >>= 64 - 8*uint(n)
	}
	return last
}

// at is the place of a tag of n bytes.
func (c *tagCache) at(end uint64, n int) *tagRole {
	return &c[(end^uint64(n))*0x9fb21c651e98df25>>58]
}

func (c *tagCache) role(tag []byte) role {
	n := len(tag)
	if n < 3 || n > len(c[0].text) {
		return roleOf(tag)
	}
	var end [8]byte
	copy(end[max(0, 8-n):], tag[max(0, n-8):])
	last := tagEnd(load8(end[:], 0), n)
	x := c.at(last, n)
	if string(x.text[:x.n]) != string(tag) {
		x.n, x.role, x.plain, x.end = n, roleOf(tag), bytes.IndexByte(tag, '[') < 0, last
		copy(x.text[:], tag)
	}
	return x.role
}

// hostCache remembers a few hosts and their hashes: of a log most lines are of one, but a syslog host may write those of many.
type hostCache [16]hostName

type hostName struct {
	n     int  // 0: empty
	plain bool // cannot be a tag, nor how another shape begins
	text  [48]byte
	sum   uint64
	// A host of up to 15 bytes and a blank, as load8 has them, and which bits those are.
	words, masks [2]uint64
}

// at is the place of a host, by its first eight bytes, or fewer and what follows it in the line.
func (c *hostCache) at(head uint64) *hostName { return &c[head*0x9fb21c651e98df25>>60] }

// hash is 0 where there is no host. It remembers one that has a line around it.
func (c *hostCache) hash(seed uint64, host []byte) uint64 {
	n := len(host)
	if n == 0 {
		return 0
	}
	if cap(host) < 8 || n > len(c[0].text) {
		return hostHash(seed, host)
	}
	x := c.at(load8(host[:8], 0))
	if string(x.text[:x.n]) == string(host) {
		return x.sum
	}
	x.n, x.sum = copy(x.text[:], host), hostHash(seed, host)
	x.plain = host[0] != '<' && bytes.IndexByte(host, ':') < 0 && bytes.IndexByte(host, '(') < 0
	if n < 16 {
		var text, mask [16]byte
		for i := range n + 1 {
			mask[i] = 0xff
		}
		text[copy(text[:], host)] = ' '
		x.words = [2]uint64{load8(text[:], 0), load8(text[:], 8)}
		x.masks = [2]uint64{load8(mask[:], 0), load8(mask[:], 8)}
	}
	return x.sum
}

func hostHash(seed uint64, host []byte) uint64 { return max(1, hash(^seed, host, true)) }

// clientCache remembers the last client of a few processes, as Postfix writes it, HOST[IP].
type clientCache [64]struct {
	n    int // 0: none
	text [48]byte
	addr netip.Addr
}

// domainCache is the last domain and its hash: mail goes to a few.
type domainCache struct {
	n    int // 0: none
	text [48]byte
	sum  uint64
}

func (c *domainCache) hash(seed uint64, domain []byte) uint64 {
	if n := c.n; n == 0 || string(c.text[:n]) != string(domain) {
		c.n, c.sum = copy(c.text[:], domain), hash(seed, domain, true)
		if len(domain) > len(c.text) {
			c.n = 0
		}
	}
	return c.sum
}

// mtaOf says by its tag whose line it is.
func mtaOf(tag []byte) MTA {
	if bytes.IndexByte(tag, '/') > 0 {
		if has(tag, "cyrus/") {
			return Courier
		}
		return Postfix
	}
	switch string(tag) {
	case "exim", "exim4":
		return Exim
	case "dovecot", "dovecot-auth", "auth", "auth-worker", "imap-login", "pop3-login", "managesieve-login", "submission-login":
		return Dovecot
	case "smtpd", "opensmtpd":
		return OpenSMTPD
	case "sendmail":
		return Sendmail
	case "courieresmtpd", "courierd", "esmtpd", "courierpop3login", "courierimaplogin", "imapd", "imapd-ssl", "pop3d", "pop3d-ssl", "imaplogin", "pop3login",
		"imap", "imaps", "pop3", "pop3s", "sieve", "timsieved":
		return Courier
	}
	switch {
	case has(tag, "sm-"):
		return Sendmail // sm-mta, sm-msp-queue, sm-acceptingconnections
	case has(tag, "exim"):
		return Exim // exim-in, exim4-daemon, ...
	}
	return Auto
}

// A Parser reads the logs of one host. It remembers which source a queue id or a session belongs to and which failed
// logins it has counted, so the lines of each log must come in order, and a Parser is for one goroutine at a time.
//
// A host may have several logs: Postfix's and Dovecot's, or Exim's main and reject log. One Parser reads them all, so
// that what several of them tell counts once; Switch says which of them the next lines are of. With two Parsers each
// would count it.
type Parser struct {
	seed     uint64
	several  bool
	own      stream  // of those who have one log and never call Switch
	from     *stream // of the lines to come
	streams  map[string]*stream
	pending  pending // Postfix: queue id -> source
	sessions pending // OpenSMTPD: session id -> source
	refused  pending // Sendmail: queue id -> number of refused recipients
	transit  pending // queue id -> source, of accepted messages whose recipients are to come; used if follows, or of Sendmail
	traps    *Traps
	// follows says that the recipients of accepted messages matter, recipients that those who are none matter too.
	follows, recipients bool
	copies              pending // Exim: refusal -> which log has it, and how often
	logins              logins
	twice               twice
	mailboxes           mailboxes // of Courier
	tags                tagCache
	hosts               hostCache
	domains             domainCache
	drivers             driverCache
	clients             clientCache
	host                uint64 // of the line at hand: its queue ids are its own
	process             uint8  // of the line at hand: its place among the clients
	stamps              stampCache
	isoStamps           isoCache
	record              record
}

// A stream is one log among those of a Parser, and what holds from line to line of it alone.
type stream struct {
	id   uint32 // hash of its name
	mta  MTA
	last Event // what the line before was, for "last message repeated"; Kind None if it was no event
	by   reporter
	key  uint32
	host uint64 // whose line that was, 0: not known
}

// maxStreams bounds how many logs are remembered.
const maxStreams = 1024

// Switch makes the lines to come those of the log named so. mta says whose lines to read in it, as in Options.
func (p *Parser) Switch(name string, mta MTA) {
	s := p.streams[name]
	if s == nil {
		s = p.addStream(name)
	}
	s.mta = mta
	p.from = s
}

func (p *Parser) addStream(name string) *stream {
	if len(p.streams) >= maxStreams { // any: it is about one line of it
		for n := range p.streams {
			delete(p.streams, n)
			break
		}
	}
	s := &stream{id: uint32(hash(p.seed, []byte(name), false))}
	if p.streams == nil {
		p.streams = map[string]*stream{}
	}
	p.streams[name] = s
	return s
}

// New returns a parser.
func New(o Options) *Parser {
	if o.MaxPending <= 0 {
		o.MaxPending = 1 << 16
	}
	if o.PendingAge <= 0 {
		o.PendingAge = 30 * time.Minute
	}
	n, age := min(o.MaxPending, 1<<20), int64(o.PendingAge/time.Second)
	p := &Parser{seed: o.Seed, recipients: o.Recipients, several: o.Several, own: stream{mta: o.MTA}}
	p.from = &p.own
	if o.Traps.Len() > 0 {
		p.traps = o.Traps
	}
	p.follows = p.recipients || p.traps != nil
	p.pending.init(n, age)
	p.sessions.init(n, 2*age)
	p.refused.init(n, age)
	p.transit.init(n, age)
	p.copies.init(n, copyAge)
	return p
}

// Parse reads one line, with or without its newline, and fills e if the line is an event. When it returns false, e is
// not changed.
//
// ref is when the line was read, or the modification time of an old file: it gives RFC 3164 stamps their year (the
// one that puts the stamp nearest to ref and not more than a day after it) and their zone. A stamp with a zone of its
// own uses that, and its event is in UTC. Parse does not allocate; its time is linear in the length of the line.
func (p *Parser) Parse(line []byte, ref time.Time, e *Event) bool {
	line = line[:len(line):len(line)] // what stands behind it in memory is not ours: see hostCache.hash
	h := header{ref: ref}
	if !p.quick(line, &h) {
		h = header{ref: ref}
		if !h.split(line, &p.record) {
			p.from.last.Kind = None
			return false
		}
	}
	return p.parse(&h, e)
}

// Stamp returns when a line was written; false for one without a stamp. It is the time that Parse would give its event.
func (p *Parser) Stamp(line []byte, ref time.Time) (time.Time, bool) {
	h := header{ref: ref}
	if !h.split(line, &p.record) || h.kind == stampNone {
		return time.Time{}, false
	}
	return p.time(&h, ref)
}

// ParseMessage reads a record that is already split, as the journal has it: tag is the syslog identifier
// ("postfix/smtpd"), pid may be empty, at is when the record was written.
func (p *Parser) ParseMessage(tag, pid, msg []byte, at time.Time, e *Event) bool {
	h := header{tag: tag, pid: pid, msg: msg, kind: stampNone, ref: at}
	h.repeat()
	return p.parse(&h, e)
}

func (p *Parser) parse(h *header, e *Event) bool {
	who := h.role
	if p.process = h.process; h.seen {
		p.host = h.from
	} else {
		p.host = p.hosts.hash(p.seed, h.host)
		if h.again {
			return p.repeated(h, e)
		}
		if who.mta = h.mta; who.mta == Auto {
			who = p.tags.role(h.tag)
		}
	}
	s := p.from
	ev := &s.last
	*ev = Event{Count: h.count}
	ok := false
	if s.mta != Auto && who.mta != s.mta {
		who.mta = Auto
	}
	ev.MTA = who.mta
	switch who.mta {
	case Postfix:
		ok = p.postfix(h, who, ev)
	case Exim:
		ok = p.exim(h, ev)
	case Sendmail:
		ok = p.sendmail(h, ev)
	case OpenSMTPD:
		ok = p.opensmtpd(h, ev)
	case Dovecot:
		ok = p.dovecot(h, ev)
	case Courier:
		ok = p.courier(h, ev)
	}
	if !ok || ev.Time.IsZero() && !p.when(h, ev) {
		ev.Kind = None
		return false
	}
	s.by, s.key, s.host = h.by, h.key, p.host
	e.copy(ev)
	if e.Kind == AuthFailure {
		p.countLogin(h, e)
	}
	return true
}

// repeated makes "last message repeated N times" N more of the line before, if that was of the same host: a syslog host
// writes the lines of many. Not of what is no offence: one message is delivered once.
func (p *Parser) repeated(h *header, e *Event) bool {
	s := p.from
	if k := s.last.Kind; k == None || k == Delivered || k == AuthSuccess || k == Trap || k == Recipient || s.host != 0 && s.host != p.host {
		s.last.Kind = None
		return false
	}
	s.last.Count, s.last.Time = h.count, time.Time{}
	if !p.when(h, &s.last) {
		s.last.Kind = None
		return false
	}
	*e = s.last
	if h.by, h.key = s.by, s.key; e.Kind == AuthFailure {
		p.countLogin(h, e)
	}
	return true
}

// when converts the stamp, once.
func (p *Parser) when(h *header, e *Event) bool {
	if e.Time.IsZero() {
		if h.at.IsZero() {
			at, ok := p.time(h, h.ref)
			if !ok {
				return false
			}
			h.at = at
		}
		e.Time = h.at
	}
	return true
}

// userHash is the hash of the lower-cased name, and never 0. It is stable over restarts. It is not meant to withstand
// somebody who has both the seed and a list of names.
func (p *Parser) userHash(name []byte) uint64 {
	if len(name) == 0 || string(name) == "(unavailable)" {
		return 0
	}
	return max(1, hash(p.seed, name, true))
}

// senderHash is the same for all senders of a domain; 0 for the null sender.
func (p *Parser) senderHash(a []byte) uint64 {
	i := bytes.LastIndexByte(a, '@')
	if i < 0 {
		return 0
	}
	return max(1, hash(p.seed, a[i:], true))
}

// hash takes b in words of eight bytes, of ASCII letters in lower case with fold, each into a wide product with the seed
// in it.
func hash(seed uint64, b []byte, fold bool) uint64 {
	const odd, lot = 0x9fb21c651e98df25, 0xd6e8feb86659fd93
	h := stir(seed^0xcbf29ce484222325) + uint64(len(b))*odd
	for i := 0; i < len(b); i += 8 {
		var w uint64
		switch rest := len(b) - i; {
		case rest >= 8:
			w = load8(b, i)
		case i > 0:
			w = load8(b, len(b)-8) >> (64 - 8*uint(rest))
		default:
			for i, c := range b {
				w |= uint64(c) << (8 * i)
			}
		}
		if fold {
			w = lower8(w)
		}
		hi, lo := bits.Mul64(h^w, lot)
		h = bits.RotateLeft64(h, 23) ^ hi ^ lo
	}
	return stir(h)
}

// lower8 makes the ASCII capitals among eight bytes small.
func lower8(w uint64) uint64 {
	const each = 0x0101010101010101
	low := w &^ (0x80 * each)
	capital := (low + (0x80-'A')*each) &^ (low + (0x80-'Z'-1)*each) &^ w & (0x80 * each)
	return w | capital>>2
}

// stir spreads the bits of x over the whole word: shift, xor and multiply by odd constants, one to one.
func stir(x uint64) uint64 {
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}
