package maillog

import "time"

// Options are the settings of a Parser. The zero value works.
type Options struct {
	// Seed goes into the hash of user names and queue ids. Give every host its own, and keep it: user hashes and the
	// bytes of Pending mean something only under the seed they were made with.
	Seed uint64
	// MaxPending is how many accepted recipients may wait for their message (see Pending). Default 65536, 48 bytes each.
	MaxPending int
	// PendingAge is how long one waits. Default 30 minutes.
	PendingAge time.Duration
}

// A Parser reads the lines of one log. It remembers which source a queue id belongs to, so the lines must come in
// order, and a Parser is for one goroutine at a time.
type Parser struct {
	seed    uint64
	pending pending
	stamps  stampCache
}

// New returns a parser.
func New(o Options) *Parser {
	if o.MaxPending <= 0 {
		o.MaxPending = 1 << 16
	}
	if o.PendingAge <= 0 {
		o.PendingAge = 30 * time.Minute
	}
	p := &Parser{seed: o.Seed}
	p.pending.init(min(o.MaxPending, 1<<20), int64(o.PendingAge/time.Second))
	return p
}

// Parse reads one line, with or without its newline, and fills e if the line is an event. When it returns false, e is
// not changed.
//
// ref is when the line was read, or the modification time of an old file: it gives RFC 3164 stamps their year (the
// one that puts the stamp nearest to ref and not more than a day after it) and their zone. A stamp with a zone of its
// own uses that, and its event is in UTC. Parse does not allocate; its time is linear in the length of the line.
func (p *Parser) Parse(line []byte, ref time.Time, e *Event) bool {
	var h header
	if !h.split(line) {
		return false
	}
	return p.postfix(&h, ref, e)
}

// ParseMessage reads a record that is already split, as the journal has it: tag is the syslog identifier
// ("postfix/smtpd"), pid may be empty, at is when the record was written.
func (p *Parser) ParseMessage(tag, pid, msg []byte, at time.Time, e *Event) bool {
	h := header{tag: tag, pid: pid, msg: msg, kind: stampNone}
	h.repeat()
	return p.postfix(&h, at, e)
}

// userHash is FNV-1a over the lower-cased name, started from the seed and stirred, and never 0. It is stable over
// restarts. It is not meant to withstand somebody who has both the seed and a list of names.
func (p *Parser) userHash(name []byte) uint64 {
	if len(name) == 0 || string(name) == "(unavailable)" {
		return 0
	}
	return max(1, hash(p.seed, name, true))
}

func hash(seed uint64, b []byte, fold bool) uint64 {
	h := stir(seed ^ 0xcbf29ce484222325)
	for _, c := range b {
		if fold && 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	return stir(h)
}

// stir spreads the bits of x over the whole word: shift, xor and multiply by odd constants, one to one.
func stir(x uint64) uint64 {
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	x = (x ^ x>>32) * 0xd6e8feb86659fd93
	return x ^ x>>32
}
