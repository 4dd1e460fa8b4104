package maillog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
)

// MaxTraps bounds the number of trap recipients; a hundred thousand of them take about 12 MB.
const MaxTraps = 100_000

// maxRecipient is the longest address that is looked up: RFC 5321 allows 64 + 1 + 255 bytes.
const maxRecipient = 320

// maxTags is how many delimiters in one local part are tried.
const maxTags = 8

// Traps is a set of recipients that nobody has a reason to write to. ASCII letters match in either case; an IDN matches
// the form that the log has, so list both. It is filled before it is used, and then only read.
//
//	honeypot@example.org    this recipient, and honeypot+anything@example.org
//	honeypot-*@example.org  honeypot-anything@example.org: where - delimits too. Said apart, since sales-team is not sales
//	@old.example.org        every recipient of this domain, not of those below it; also without the @
//
// A trap makes an event of kind Trap out of a line that names it as the recipient of a client's command or message.
// The recipient is the client's text and is never more than that: the source is the one that the line, or the queue id that
// it names, has anyway.
//
// Not counted is what comes from the null sender, mailer-daemon, postmaster or double-bounce: bounces of mail with a forged
// sender, and verification callbacks, hit the innocent who forwarded or asked. Neither is what somebody sent who logged in.
// Where a refusal does not name the sender (OpenSMTPD's) it is no hit: the trap has to accept mail there.
type Traps struct {
	set     map[string]struct{} // lower case: local@domain, local-*@domain, @domain
	domains bool
	dashes  bool
	// first has the bytes that local parts of traps begin with, and width the lengths of whole domains, modulo 64: most
	// recipients need no closer look.
	first [4]uint64
	width uint64
}

var errTrap = errors.New("not a trap recipient")

// Add takes in one trap as it stands in the config.
func (t *Traps) Add(s string) error {
	local, domain, ok := cutLast(strings.ToLower(s))
	if !ok {
		local, domain = "", strings.ToLower(s)
	}
	domain = strings.TrimSuffix(domain, ".")
	switch {
	case len(t.set) >= MaxTraps:
		return fmt.Errorf("more than %d traps", MaxTraps)
	case len(s) > maxRecipient || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == 0x7f || strings.ContainsRune("<>,;\"()[]\\", r) }):
		return fmt.Errorf("%.80q: %w", s, errTrap)
	case !strings.Contains(domain, ".") || strings.HasPrefix(domain, ".") || strings.Contains(domain, "..") || strings.Contains(domain, "*"):
		return fmt.Errorf("%.80q: %w: %.80q is no domain", s, errTrap, domain)
	}
	name, many := strings.CutSuffix(local, "-*")
	if strings.Contains(name, "*") || many && name == "" {
		return fmt.Errorf("%.80q: %w: a * stands only behind the - of a local part", s, errTrap)
	}
	if t.set == nil {
		t.set = map[string]struct{}{}
	}
	t.domains = t.domains || local == ""
	t.dashes = t.dashes || many
	t.set[local+"@"+domain] = struct{}{}
	if local == "" {
		t.width |= 1 << (len(domain) % 64)
	} else {
		t.first[local[0]>>6] |= 1 << (local[0] & 63)
	}
	return nil
}

// Len returns how many there are. It is 0 for nil.
func (t *Traps) Len() int {
	if t == nil {
		return 0
	}
	return len(t.set)
}

func cutLast(s string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

// match says whether an address as a client wrote it is a trap.
func (t *Traps) match(a []byte) bool {
	if t == nil {
		return false
	}
	return t.matchAt(a, lastAt(a))
}

// matchAt is match for who knows where the last @ is.
func (t *Traps) matchAt(a []byte, at int) bool {
	if at <= 0 || len(a) > maxRecipient {
		return false
	}
	local, domain := a[:at], a[at+1:]
	if n := len(domain); n > 0 && domain[n-1] == '.' {
		domain = domain[:n-1]
	}
	if n := len(local); n > 2 && local[0] == '"' && local[n-1] == '"' {
		local = local[1 : n-1] // "honeypot"@ is honeypot@, RFC 5321 4.1.2
	}
	c := local[0]
	if isUpper(c) {
		c |= 0x20
	}
	if t.first[c>>6]>>(c&63)&1 == 0 && t.width>>(len(domain)%64)&1 == 0 {
		return false
	}
	return t.inSet(local, domain)
}

func (t *Traps) inSet(local, domain []byte) bool {
	// local@domain, and behind it room for a shorter local part with the same domain.
	var buf, short [maxRecipient + 2]byte
	n := lower(buf[:], local)
	buf[n] = '@'
	end := n + 1 + lower(buf[n+1:], domain)
	if t.domains {
		if _, ok := t.set[string(buf[n:end])]; ok {
			return true
		}
	}
	if _, ok := t.set[string(buf[:end])]; ok {
		return true
	}
	tags := 0
	for i := 1; i < n && tags < maxTags; i++ {
		k := i
		switch c := buf[i]; {
		case c == '+':
			copy(short[:], buf[:i])
		case c == '-' && t.dashes:
			copy(short[:], buf[:i])
			short[i], short[i+1] = '-', '*'
			k += 2
		default:
			continue
		}
		tags++
		if k+end-n > len(short) {
			continue
		}
		m := k + copy(short[k:], buf[n:end])
		if _, ok := t.set[string(short[:m])]; ok {
			return true
		}
	}
	return false
}

// lower copies src to dst with ASCII letters in lower case.
func lower(dst, src []byte) int {
	for i, c := range src {
		if isUpper(c) {
			c |= 0x20
		}
		dst[i] = c
	}
	return len(src)
}

// behind says whether a trap stands in b behind any mark, up to an angle bracket. Which mark is the MTA's own and which
// one a client has written does not matter: who writes a trap into its own line asks for it, and cannot hide the true
// one by writing another in front of it or behind.
func (t *Traps) behind(b, mark []byte) bool {
	if t == nil {
		return false
	}
	for {
		var ok bool
		if b, ok = behind(b, mark); !ok {
			return false
		}
		if n := bytes.IndexByte(b[:min(len(b), maxRecipient+1)], '>'); n > 0 && t.match(b[:n]) {
			return true
		}
	}
}

// either says whether to, whose last @ is at at, is a trap, or what stands in rest behind any " to=<", as behind does it.
func (t *Traps) either(to []byte, at int, rest []byte) bool {
	if t.matchAt(to, at) {
		return true
	}
	i := indexTo(rest)
	return i >= 0 && t.behind(rest[i:], markTo)
}

// inList says whether one of the recipients of a list with blanks or commas between them is a trap.
func (t *Traps) inList(b []byte) bool {
	for len(b) > 0 && t != nil {
		n := bytes.IndexAny(b, " ,")
		if n < 0 {
			n = len(b)
		}
		if t.match(bare(b[:n])) {
			return true
		}
		b = b[min(n+1, len(b)):]
	}
	return false
}

// bare takes off angle brackets.
func bare(b []byte) []byte {
	if len(b) > 1 && b[0] == '<' && b[len(b)-1] == '>' {
		return b[1 : len(b)-1]
	}
	return b
}

// automatic says that a sender is one whose mail answers other mail: bounces, and the callbacks that ask whether a sender
// exists. RFC 5321 4.5.5 has both come from the null sender; Postfix asks as double-bounce, others as postmaster.
func automatic(sender []byte) bool {
	if len(sender) == 0 {
		return true
	}
	switch sender[0] | 0x20 {
	case 'm', 'p', 'd':
	default:
		return false
	}
	if i := bytes.LastIndexByte(sender, '@'); i >= 0 {
		sender = sender[:i]
	}
	return foldEqual(sender, "mailer-daemon") || foldEqual(sender, "postmaster") ||
		len(sender) >= len("double-bounce") && foldEqual(sender[:len("double-bounce")], "double-bounce")
}

func foldEqual(b []byte, word string) bool { return len(b) == len(word) && index(b, word) == 0 }

// upTo is b up to an angle bracket; nil if there is none.
func upTo(b []byte) []byte {
	if n := bytes.IndexByte(b, '>'); n >= 0 {
		return b[:n]
	}
	return nil
}

var (
	markTo     = []byte(" to=<")
	markComma  = []byte(",to=<")
	markRcpt   = []byte("rejected RCPT <")
	markTaken  = []byte("> RCPT <")
	markSender = []byte(" F=<")
)

// hits says whether "REPLY; from=<S>[,] to=<R>[,] proto=..." of Postfix is about a trap.
func (t *Traps) hits(b []byte) bool {
	if t == nil {
		return false
	}
	from, to, rest, ok := envelope(b)
	return ok && !automatic(from) && t.either(to, lastAt(to), rest)
}

// ---- accepted messages on their way

// follow remembers the source of a message until its recipients are named. quiet: a trap among them is no hit.
func (p *Parser) follow(key uint64, e *Event, quiet bool) {
	if p.follows {
		p.transit.add(key, e.Source, e.Time.Unix(), e.Submission)
		if quiet {
			p.hush(&p.transit, key)
		}
	}
}

// hush marks an entry as one of which a trap is no hit: its client logged in, or its sender answers other mail.
func (p *Parser) hush(t *pending, key uint64) {
	if w := t.entry(key); w != nil {
		w.quiet = true
	}
}

// recipient makes an event of a recipient of a message that w is about: a trap, or, if it was delivered, Recipient. to is
// where it went, orig what the client asked for: behind an alias it may be a trap, and a catch-all is one recipient.
func (p *Parser) recipient(w *waiting, to, orig []byte, sent bool, e *Event) bool {
	e.Source, e.Submission, e.Count = w.source(), w.sub, 1
	if !w.quiet && p.traps.match(orig) {
		w.quiet = true // one message, one hit
		e.Kind = Trap
		return true
	}
	if !sent || !p.recipients || len(to) == 0 {
		return false
	}
	e.Kind, e.User = Recipient, p.mailboxHash(to)
	return true
}

// recipientHash is the hash of a recipient that was refused, the same for all of its +tags; 0 for none. What stands
// behind a - is part of the name here: who guesses at info-sales and info-shop guesses twice, and most sites have names with a
// dash, but hardly any has one with a +.
func (p *Parser) recipientHash(a []byte) uint64 {
	if len(a) == 0 {
		return 0
	}
	return p.recipientHashAt(a, lastAt(a))
}

// recipientHashAt is that for who knows where the last @ is; a is not empty.
func (p *Parser) recipientHashAt(a []byte, at int) uint64 {
	local, domain := a, []byte(nil)
	if at >= 0 {
		local, domain = a[:at], a[at:]
	}
	if n := bytes.IndexByte(local, '+'); n > 0 {
		local = local[:n]
	}
	return p.addressHash(local, domain)
}

// mailboxHash is the hash of a recipient that was reached, the same for all variants that a + or - may make: who has one
// mailbox of ours must not pass for somebody who knows many.
func (p *Parser) mailboxHash(a []byte) uint64 {
	local, domain := a, []byte(nil)
	if at := lastAt(a); at >= 0 {
		local, domain = a[:at], a[at:]
	}
	if n := delimiter(local); n > 0 {
		local = local[:n]
	}
	return p.addressHash(local, domain)
}

func (p *Parser) addressHash(local, domain []byte) uint64 {
	return max(1, hash(p.seed^p.domains.hash(p.seed, domain), local, true))
}

// relayedHash is the hash of a recipient that we do not relay to. Its lower half is that of the domain.
func (p *Parser) relayedHash(a []byte, at int) uint64 {
	h := p.recipientHashAt(a, at)
	if at >= 0 {
		h = h&^math.MaxUint32 | p.domains.hash(p.seed, a[at:])&math.MaxUint32
	}
	return max(1, h)
}

// delimiter is where + or - stands first in a local part, but for its first byte; 0 if nowhere.
func delimiter(local []byte) int {
	for i := 1; i < len(local); i++ {
		if c := local[i]; c == '+' || c == '-' {
			return i
		}
	}
	return 0
}
