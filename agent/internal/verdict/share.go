package verdict

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// The rule of the great share (see the package comment).
const (
	shareHours = 25 // the present hour and the 24 before it
	shareKeys  = 64 // sources counted per hour
	shareFloor = 20 // messages below which a share means nothing
	shareSpan  = 3  // hours with mail that a share of less than a half needs
)

// share counts who brought the accepted mail of the last day: per hour the 64 largest, by Space-Saving (Metwally et
// al. 2005). It never counts less than a source brought, and at most a 64th of the mail more; with up to 64 sources an
// hour it is exact. 34 KB in all.
type share struct {
	hours [shareHours]shareHour
	dirty [shareHours]bool
	edits uint64 // changes so far; what the memo was made for
	memo  struct {
		key   key
		edits uint64
		hour  uint32
		held  holding
	}
}

type shareHour struct {
	hour  uint32 // since 1970, 0: never used
	total uint32
	n     int
	last  int // where the previous message was counted
	keys  [shareKeys]key
	marks [shareKeys]uint8 // a byte of each key: most are told apart by it
	got   [shareKeys]uint32

	// Nobody in front of from has as few as floor, and nobody at all fewer; 0 is not known, as after a count that fell.
	from  int
	floor uint32
}

// find is the place of a key, or -1.
func (h *shareHour) find(k key) int {
	m := uint64(k.mark()) * bytesOnes
	for at := 0; at < h.n; at += 8 {
		w := binary.LittleEndian.Uint64(h.marks[at:at+8]) ^ m
		for z := (w - bytesOnes) &^ w & (0x80 * bytesOnes); z != 0; z &= z - 1 {
			if i := at + bits.TrailingZeros64(z)/8; i < h.n && h.keys[i] == k {
				return i
			}
		}
	}
	return -1
}

const bytesOnes = 0x0101010101010101

func (k key) mark() uint8 { return uint8((k.hi ^ k.lo) * 0x9e3779b97f4a7c15 >> 56) }

// put gives a place to a key.
func (h *shareHour) put(i int, k key) { h.keys[i], h.marks[i] = k, k.mark() }

// smallest is the first place with the smallest count.
func (h *shareHour) smallest() int {
	if h.floor != 0 {
		for i := h.from; i < h.n; i++ {
			if h.got[i] == h.floor {
				h.from = i
				return i
			}
		}
	}
	h.from = 0
	for i, g := range h.got[:h.n] {
		if g < h.got[h.from] {
			h.from = i
		}
	}
	h.floor = h.got[h.from]
	return h.from
}

// add counts n messages of k at the time at. What is older than a day is not counted.
func (s *share) add(k key, n uint32, at, now uint32) {
	hour := at / 3600
	if hour+shareHours <= now/3600 {
		return
	}
	h := &s.hours[hour%shareHours]
	if h.hour != hour {
		if h.hour > hour && h.hour <= (now+ahead)/3600 {
			return // a later hour stands here
		}
		*h = shareHour{hour: hour}
	}
	s.dirty[hour%shareHours] = true
	s.edits++
	h.total += n
	if h.n > 0 && h.keys[h.last] == k {
		h.got[h.last] += n
		return
	}
	i := h.find(k)
	if i < 0 {
		if h.n < shareKeys {
			i = h.n
			h.n++
		} else {
			i = h.smallest() // gives up its place and its count
		}
		h.put(i, k)
	}
	h.got[i] += n
	h.last = i
}

// drop takes a message back, which was counted at the time at or just before.
func (s *share) drop(k key, at, now uint32) {
	hour := at / 3600
	h := &s.hours[hour%shareHours]
	if hour+shareHours <= now/3600 || h.hour != hour {
		return
	}
	i := h.find(k)
	if i < 0 {
		return // of the hour before, or it gave up its place
	}
	h.total--
	h.from, h.floor = 0, 0
	if h.got[i]--; h.got[i] == 0 {
		h.n--
		h.put(i, h.keys[h.n])
		h.got[i], h.last = h.got[h.n], 0
		h.got[h.n] = 0
	}
	s.dirty[hour%shareHours] = true
	s.edits++
}

// holding is what a source brought of the mail of the last day.
type holding struct {
	mine, total uint32
	hours       int // with mail of its
}

func (s *share) of(k key, now uint32) holding {
	hour := now / 3600
	if m := &s.memo; m.edits == s.edits && m.key == k && m.hour == hour && m.held.total > 0 {
		return m.held
	}
	var v holding
	for i := range s.hours {
		h := &s.hours[i]
		if h.hour+shareHours <= hour || h.hour > (now+ahead)/3600 {
			continue
		}
		v.total += h.total
		if j := h.find(k); j >= 0 {
			v.mine += h.got[j]
			v.hours++
		}
	}
	s.memo.key, s.memo.edits, s.memo.hour, s.memo.held = k, s.edits, hour, v
	return v
}

// great says that blocking this source would block the mail.
func (v holding) great() bool {
	return v.mine >= shareFloor && (v.mine >= v.total-v.mine || v.hours >= shareSpan && uint64(v.mine)*10 >= uint64(v.total))
}

// percent is in steps of five, so that what is shown does not change with every message.
func (v holding) percent() int {
	if v.total == 0 {
		return 0
	}
	return int(uint64(v.mine) * 20 / uint64(v.total) * 5)
}

func (v holding) words() string {
	return fmt.Sprintf("it brought %d%% or more of the mail accepted in the last 24 h (a load balancer, NAT or filtering service in front of this host?); if the logged address is not the client's, no block can work: turn on the PROXY protocol or shield the host in front", v.percent())
}

// spared remembers which sources were not blocked because of their share.
type spared struct {
	list [16]struct {
		key         key
		since, last uint32
	}
}

// add reports whether that is news.
func (s *spared) add(k key, now uint32) bool {
	old := 0
	for i := range s.list {
		if x := &s.list[i]; x.key == k && x.since != 0 && x.last+86400 > now {
			x.last = max(x.last, now)
			return false
		}
		if s.list[i].last < s.list[old].last {
			old = i
		}
	}
	x := &s.list[old]
	x.key, x.since, x.last = k, now, now
	return true
}

func (s *Scorer) spareNotice(k key, since, now uint32) Notice {
	p := s.prefix(k)
	who := p.String()
	if p.IsSingleIP() {
		who = p.Addr().String()
	}
	return Notice{
		Key:   "share " + p.String(),
		Since: when(since),
		Text:  fmt.Sprintf("%s offends but is not blocked automatically: %s", who, s.spares(k, block.ScopeAll, now)),
	}
}

// A stored hour: version (1), the configured IPv6 prefix length (1), hour, total (4 each), then per source its key (16)
// and number (4). Little endian. Its key is 0xff, 'h' and the place in the ring.
const shareVersion = 1

func (s *Scorer) changedShare(fn func(key, val []byte)) {
	for i := range s.share.dirty {
		if !s.share.dirty[i] {
			continue
		}
		s.share.dirty[i] = false
		h, le := &s.share.hours[i], binary.LittleEndian
		b := append(make([]byte, 0, 10+20*shareKeys), shareVersion, byte(s.cfg.IPv6Prefix))
		b = le.AppendUint32(b, h.hour)
		b = le.AppendUint32(b, h.total)
		for j := range h.n {
			b = le.AppendUint64(b, h.keys[j].hi)
			b = le.AppendUint64(b, h.keys[j].lo)
			b = le.AppendUint32(b, h.got[j])
		}
		fn([]byte{special, 'h', byte(i)}, b)
	}
}

func (s *Scorer) loadShare(i byte, b []byte) error {
	if i >= shareHours || len(b) < 10 || b[0] != shareVersion || (len(b)-10)%20 != 0 || len(b) > 10+20*shareKeys {
		return fmt.Errorf("%w: an hour of accepted mail", errRecord)
	}
	if int(b[1]) != s.cfg.IPv6Prefix {
		return fmt.Errorf("%w: an hour of accepted mail by IPv6 prefixes of %d bits, configured are %d", errRecord, b[1], s.cfg.IPv6Prefix)
	}
	le := binary.LittleEndian
	h := shareHour{hour: le.Uint32(b[2:]), total: le.Uint32(b[6:])}
	sum := uint64(0)
	for b = b[10:]; len(b) > 0; b = b[20:] {
		k := key{le.Uint64(b), le.Uint64(b[8:])}
		if n := le.Uint32(b[16:]); n == 0 || s.key(s.prefix(k).Addr()) != k || slices.Contains(h.keys[:h.n], k) {
			return fmt.Errorf("%w: an hour of accepted mail names no source", errRecord)
		}
		h.put(h.n, k)
		h.got[h.n] = le.Uint32(b[16:])
		sum += uint64(h.got[h.n])
		h.n++
	}
	if h.hour%shareHours != uint32(i) || sum != uint64(h.total) {
		return fmt.Errorf("%w: an hour of accepted mail does not add up", errRecord)
	}
	s.share.hours[i] = h
	s.share.dirty[i] = false
	s.share.edits++
	return nil
}

// A Notice is something a person should know: an alarm, or a source that is not blocked although it offends.
type Notice struct {
	Key   string    `json:"key"` // the same for the same matter
	Text  string    `json:"text"`
	Since time.Time `json:"since"`
}

// maxNews bounds what News keeps.
const maxNews = 100

func (s *Scorer) tell(n Notice) {
	if len(s.news) < maxNews {
		s.news = append(s.news, n)
	}
}

// News returns the notices that came up since the last call, oldest first; most calls return nil.
func (s *Scorer) News() []Notice {
	n := s.news
	s.news = nil
	return n
}

// Notices returns what holds at now: alarms, and sources spared within the last 24 hours.
func (s *Scorer) Notices(now time.Time) (list []Notice) {
	sec := unix(now)
	list = s.strayNotices(s.alarms.notices(list, sec), sec)
	for _, x := range s.spared.list {
		if x.since != 0 && x.last+86400 > sec && s.isSpared(x.key, block.ScopeAll, sec) {
			list = append(list, s.spareNotice(x.key, x.since, sec))
		}
	}
	return list
}

// sparedWords says why the source of a is never blocked automatically now, or nothing.
func (s *Scorer) sparedWords(a netip.Addr, now uint32) string {
	return s.spares(s.key(a), block.ScopeMX, now)
}

// isSpared says that a source is never blocked automatically, on these ports.
func (s *Scorer) isSpared(k key, scope block.Scope, now uint32) bool {
	_, ok := s.own[k]
	return ok || s.crowded(k, scope) || s.share.of(k, now).great()
}

// spares is isSpared in words; none if it is not.
func (s *Scorer) spares(k key, scope block.Scope, now uint32) string {
	if a, ok := s.own[k]; ok {
		return "it is an MX of our own domains (" + a.String() + ")"
	}
	if v := s.share.of(k, now); v.great() {
		return v.words()
	}
	if s.crowded(k, scope) {
		return s.crowdWords(k)
	}
	return ""
}
