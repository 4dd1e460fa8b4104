package verdict

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// The rule of the crowd (see the package comment).
const (
	crowdSet     = 4
	crowdSets    = 512
	crowdUsers   = 5  // different people logged in
	crowdSenders = 12 // different domains' mail was accepted
	crowdRcpts   = 12 // different recipients got some
	crowdHours   = 6  // in so many different hours
	crowdSpan    = 64 // hours of one of the two spans that are remembered
)

// A crowd is what says that many people stand behind one source: a bit for each of those who logged in, of the domains that
// sent, of the recipients that were reached, and of the hours that brought mail; of this span of 64 hours and of the one
// before it. 80 bytes.
type crowd struct {
	key   key
	span  uint32 // of the first of each, in 64 hours since 1970
	flags uint16 // flagStored
	worth uint16 // see weigh
	seen  [crowdParts][2]uint64
}

const (
	crowdUser = iota
	crowdSender
	crowdRcpt
	crowdHour
	crowdParts
)

// crowds is a cache of sets of four. Who has most behind it stays, so that passers-by do not push out whom this is for.
type crowds struct {
	sets  [][crowdSet]crowd
	dirty [crowdSets * crowdSet / 64]uint64
	gone  []key // stored ones that lost their place
}

// count is how many there are at least: two may share a bit, nobody has two.
func (c *crowd) count(part int) int { return bits.OnesCount64(c.seen[part][0] | c.seen[part][1]) }

// weigh says how little it would be missed.
func (c *crowd) weigh() {
	c.worth = uint16(c.count(crowdUser) + c.count(crowdSender) + 2*c.count(crowdHour))
}

// missed is what it is worth still.
func (c *crowd) missed(span uint32) uint16 {
	if c.span+1 < span {
		return 0
	}
	return c.worth
}

// logins says that people log in from here who have nothing to do with each other's passwords.
func (c *crowd) logins() bool { return c.count(crowdUser) >= crowdUsers }

// mail says that others' mail comes from here, to many, again and again.
func (c *crowd) mail() bool {
	return c.count(crowdSender) >= crowdSenders && c.count(crowdRcpt) >= crowdRcpts && c.count(crowdHour) >= crowdHours
}

// roll brings the two spans up to date. It returns false for what is older than both.
func (c *crowd) roll(span uint32) (which int, ok bool) {
	switch {
	case span == c.span:
	case span == c.span+1:
		for i := range c.seen {
			c.seen[i][1], c.seen[i][0] = c.seen[i][0], 0
		}
		c.span = span
	case span > c.span:
		c.seen = [crowdParts][2]uint64{}
		c.span = span
	default:
		return 1, span+1 == c.span
	}
	return 0, true
}

func (s *Scorer) crowd(k key) (c *crowd, id int) { return s.crowdAt(k, s.hash(k)) }

func (s *Scorer) crowdAt(k key, h uint64) (c *crowd, id int) {
	if s.crowds.sets == nil {
		return nil, 0
	}
	n := s.home(h, crowdSets)
	for i := range s.crowds.sets[n] {
		if c := &s.crowds.sets[n][i]; c.key == k {
			return c, n*crowdSet + i
		}
	}
	return nil, 0
}

// meetsCrowd notes who logged in, whose mail was accepted, or who got it.
func (s *Scorer) meetsCrowd(k key, h uint64, e *maillog.Event, at, now uint32) {
	c, id := s.crowdAt(k, h)
	if c == nil {
		if e.Kind == maillog.Recipient {
			return
		}
		if s.crowds.sets == nil {
			s.crowds.sets = make([][crowdSet]crowd, crowdSets)
		}
		n, span := s.home(h, crowdSets), now/3600/crowdSpan
		set := &s.crowds.sets[n]
		least := 0
		for i := range set {
			if x, y := set[i].missed(span), set[least].missed(span); x < y || x == y && set[i].span < set[least].span {
				least = i
			}
		}
		if set[least].flags&flagStored != 0 {
			s.crowds.gone = append(s.crowds.gone, set[least].key)
		}
		set[least] = crowd{key: k, span: at / 3600 / crowdSpan}
		c, id = &set[least], n*crowdSet+least
	}
	if now := (now + ahead) / 3600 / crowdSpan; c.span > now { // the wall clock was wrong
		c.span = now
	}
	which, ok := c.roll(at / 3600 / crowdSpan)
	if !ok {
		return
	}
	was := c.seen
	note := func(part int, who uint64) {
		if who != 0 {
			c.seen[part][which] |= 1 << (who >> 58)
		}
	}
	switch e.Kind {
	case maillog.AuthSuccess:
		note(crowdUser, e.User)
	case maillog.Delivered:
		note(crowdSender, e.User)
		c.seen[crowdHour][which] |= 1 << (at / 3600 % crowdSpan)
	case maillog.Recipient:
		note(crowdRcpt, e.User)
	}
	if c.seen != was {
		c.weigh()
		s.crowds.dirty[id/64] |= 1 << (id % 64)
	}
}

// crowded says whether a block of k for such a cause would shut out a crowd. A crowd that logs in is not shut out by a block of
// the MX port.
func (s *Scorer) crowded(k key, scope block.Scope) bool {
	c, _ := s.crowd(k)
	return c != nil && (c.mail() || scope == block.ScopeAll && c.logins())
}

func (s *Scorer) crowdWords(k key) string {
	switch c, _ := s.crowd(k); {
	case c == nil:
	case c.mail():
		return fmt.Sprintf("mail of %d or more sender domains came from it to %d or more recipients, in %d different hours of the last days (a load balancer, NAT, forwarder or filtering service?); if the logged address is not the client's, no block can work: turn on the PROXY protocol or shield the host in front",
			crowdSenders, crowdRcpts, c.count(crowdHour))
	case c.logins():
		return fmt.Sprintf("%d or more people logged in from it in the last days (a NAT, webmail or load balancer?): the submission ports stay open to it", crowdUsers)
	}
	return ""
}

// A stored crowd: version (1), span (4), and this span's and the last one's bits of each part (8 each), little endian. Its key
// is 0xff, 'c', the configured IPv6 prefix length (1) and the key of the source (16, big endian).
const crowdVersion = 1

func (s *Scorer) crowdKey(k key) []byte {
	b := []byte{special, 'c', byte(s.cfg.IPv6Prefix)}
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.hi), k.lo)
}

func (s *Scorer) changedCrowds(fn func(key, val []byte)) {
	t := &s.crowds
	for _, k := range t.gone {
		if c, _ := s.crowd(k); c == nil {
			fn(s.crowdKey(k), nil)
		}
	}
	t.gone = t.gone[:0]
	le := binary.LittleEndian
	for w, set := range t.dirty {
		for ; set != 0; set &= set - 1 {
			id := w*64 + bits.TrailingZeros64(set)
			c := &t.sets[id/crowdSet][id%crowdSet]
			c.flags |= flagStored
			b := le.AppendUint32([]byte{crowdVersion}, c.span)
			for _, p := range c.seen {
				b = le.AppendUint64(le.AppendUint64(b, p[0]), p[1])
			}
			fn(s.crowdKey(c.key), b)
		}
		t.dirty[w] = 0
	}
}

func (s *Scorer) loadCrowd(kb, b []byte) error {
	if len(kb) != 17 || len(b) != 5+16*crowdParts || b[0] != crowdVersion {
		return fmt.Errorf("%w: a crowd", errRecord)
	}
	if int(kb[0]) != s.cfg.IPv6Prefix {
		return fmt.Errorf("%w: a crowd by IPv6 prefixes of %d bits, configured are %d", errRecord, kb[0], s.cfg.IPv6Prefix)
	}
	k := key{binary.BigEndian.Uint64(kb[1:]), binary.BigEndian.Uint64(kb[9:])}
	if k == (key{}) || s.key(s.prefix(k).Addr()) != k {
		return fmt.Errorf("%w: a crowd of no source", errRecord)
	}
	c := crowd{key: k, span: binary.LittleEndian.Uint32(b[1:]), flags: flagStored}
	for i, v := 0, b[5:]; i < crowdParts; i++ {
		c.seen[i] = [2]uint64{binary.LittleEndian.Uint64(v[16*i:]), binary.LittleEndian.Uint64(v[16*i+8:])}
	}
	if s.crowds.sets == nil {
		s.crowds.sets = make([][crowdSet]crowd, crowdSets)
	}
	c.weigh()
	set := &s.crowds.sets[s.home(s.hash(k), crowdSets)]
	least := 0
	for i := range set {
		if set[i].key == k {
			least = i
			break
		}
		if set[i].worth < set[least].worth {
			least = i
		}
	}
	set[least] = c
	return nil
}
