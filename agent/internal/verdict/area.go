package verdict

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// When many of an area offend (see the package comment for the reasons).
const (
	many4     = 32  // hosts of a /24 over the threshold
	light4    = 128 // ... or that offend at all
	many6     = 16  // /64s of a /56, /56s of a /48
	offending = 4   // a source offends from a fourth of the threshold on
	grazing   = 10  // ... and grazes it from a tenth on
	graze4    = 192 // hosts of a /24 that at least graze it
	graze6    = 64  // parts of a /56 or /48 that do
	areaPause = 600 // seconds until an area that may not be blocked is looked at again
	areaSet   = 4
)

// An area is a /24, /56 or /48 and which of its 256 parts (hosts, /64s, /56s) offended.
type area struct {
	net     uint64 // hi of the key, masked; 0: free
	epoch   uint32 // of seen[0], in half-lives since 1970
	until   uint32 // end of its block, 0 if there was none
	checked uint32 // when it was last found to bring mail
	all     uint16 // registrations that seen stands for
	auth    uint16 // of these, for failed logins
	bits    uint8
	repeat  uint8
	flags   uint8        // flagAll, flagStored
	seen    [2][4]uint64 // in this half-life, in the one before
	over    [2][4]uint64 // the same for those over the threshold
	open    [4]uint64    // unblocked by hand since
	light   [2][4]uint64 // as seen, with those that only graze the threshold; not stored
}

// A degree is how much a source offends.
type degree uint8

const (
	grazes degree = iota
	offends
	exceeds
)

func parts(m *[2][4]uint64) (n int) {
	for i := range m[0] {
		n += bits.OnesCount64(m[0][i] | m[1][i])
	}
	return n
}

// many says that a verdict on the whole area is due.
func (a *area) many() bool {
	if a.bits == 24 {
		return parts(&a.over) >= many4 || parts(&a.seen) >= light4
	}
	return parts(&a.seen) >= many6
}

// grazed says that a verdict on the whole area is due if nobody in it has credit.
func (a *area) grazed() bool {
	if a.bits == 24 {
		return parts(&a.light) >= graze4
	}
	return parts(&a.light) >= graze6
}

// areas is a cache of sets of four. What has a block or many parts stays longest.
type areas struct {
	sets  [][areaSet]area
	dirty []uint64
	gone  []area // stored ones that lost their place
}

func (t *areas) init(sources int) {
	t.sets = make([][areaSet]area, min(1024, max(16, sources/256)))
	t.dirty = make([]uint64, len(t.sets)*areaSet/64+1)
}

// level is one area that a source lies in, and which part of it the source is.
type level struct {
	net  uint64
	bits uint8
	part uint8
}

// levels returns the areas of a source, the widest first.
func (s *Scorer) levels(k key) (l [2]level, n int) {
	if k.hi>>32 == v4mark>>32 {
		l[0] = level{k.hi &^ 0xff, 24, uint8(k.hi)}
		return l, 1
	}
	if s.bits6 >= 56 {
		l[0] = level{k.hi &^ 0xffff, 48, uint8(k.hi >> 8)}
		n = 1
	}
	if s.bits6 >= 60 { // else it has too few parts
		l[n] = level{k.hi &^ 0xff, 56, uint8(k.hi)}
		n++
	}
	return l, n
}

func (a *area) prefix() netip.Prefix { return areaPrefix(a.net, a.bits) }

func areaPrefix(net uint64, bits uint8) netip.Prefix {
	if bits == 24 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(net >> 24), byte(net >> 16), byte(net >> 8)}), 24)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], net)
	return netip.PrefixFrom(netip.AddrFrom16(b), int(bits))
}

func (s *Scorer) areaSet(net uint64, width uint8) int {
	return s.home(s.hash(key{net, uint64(width)}), len(s.areas.sets))
}

// area finds an area; with fresh it makes one that is not there, in the place of the least of its set.
func (s *Scorer) area(net uint64, width uint8, fresh bool, now uint32) (a *area, id int) {
	i := s.areaSet(net, width)
	set := &s.areas.sets[i]
	for j := range set {
		if set[j].net == net && set[j].bits == width {
			return &set[j], i*areaSet + j
		}
	}
	if !fresh {
		return nil, 0
	}
	worth := func(a *area) int {
		w := 8*parts(&a.seen) + parts(&a.light)
		if a.until > now {
			w += 10000
		}
		return w
	}
	least := 0
	for j := range set {
		if set[j].net == 0 {
			least = j
			break
		}
		if x, y := &set[j], &set[least]; x.epoch < y.epoch && x.until <= now || x.epoch == y.epoch && worth(x) < worth(y) {
			least = j
		}
	}
	a = &set[least]
	if a.flags&flagStored != 0 {
		s.areas.gone = append(s.areas.gone, *a)
	}
	*a = area{net: net, bits: width}
	return a, i*areaSet + least
}

func (t *areas) mark(id int) { t.dirty[id/64] |= 1 << (id % 64) }

// roll brings the two half-lives up to date.
func (a *area) roll(epoch, now uint32) {
	switch {
	case epoch == a.epoch:
		return
	case epoch == a.epoch+1:
		a.seen[1], a.seen[0] = a.seen[0], [4]uint64{}
		a.over[1], a.over[0] = a.over[0], [4]uint64{}
		a.light[1], a.light[0] = a.light[0], [4]uint64{}
		a.all, a.auth = a.all/2, a.auth/2
	case epoch > a.epoch || a.epoch > now+1:
		a.seen, a.over, a.light = [2][4]uint64{}, [2][4]uint64{}, [2][4]uint64{}
		a.all, a.auth = 0, 0
	default:
		return // late: it counts as now
	}
	a.epoch = epoch
}

// spreads notes that a source grazes the threshold, has begun to offend, or is over it, and gives the verdict on its area if that
// is due.
func (s *Scorer) spreads(k key, r *record, kind maillog.Kind, how degree, at, nowSec uint32, now time.Time) (Verdict, bool) {
	list, n := s.levels(k)
	half := uint32(s.cfg.HalfLife / time.Second)
	var found [2]*area
	var ids [2]int
	for i, l := range list[:n] {
		a, id := s.area(l.net, l.bits, true, nowSec)
		found[i], ids[i] = a, id
		a.roll(at/half, nowSec/half)
		word, bit := l.part>>6, uint64(1)<<(l.part&63)
		a.light[0][word] |= bit
		if how >= offends {
			a.seen[0][word] |= bit
			s.areas.mark(id)
		}
		if how == exceeds {
			a.over[0][word] |= bit
		}
		a.all = uint16(min(math.MaxUint16, int(a.all)+1))
		if kind == maillog.AuthFailure {
			a.auth = uint16(min(math.MaxUint16, int(a.auth)+1))
		}
	}
	for i, l := range list[:n] {
		a, id := found[i], ids[i]
		if a.net != l.net || a.bits != l.bits { // the narrower one took its place
			continue
		}
		if a.until > nowSec+uint32(s.cfg.Max/time.Second) { // the wall clock was wrong
			a.until = nowSec
		}
		if a.until > nowSec || !a.many() && !a.grazed() || nowSec < a.checked+areaPause && a.checked <= nowSec {
			continue
		}
		cause := r.cause()
		if a.auth*2 >= a.all {
			cause = block.AuthBrute
		}
		if cause == block.NoCause {
			continue // the next one has a better one
		}
		s.areas.mark(id)
		if v, ok := s.survey(a, cause, nowSec, now); ok {
			return v, true
		}
	}
	return Verdict{}, false
}

// survey looks at the sources of an area: whether mail comes from it, and what they did.
func (s *Scorer) survey(a *area, cause block.Cause, nowSec uint32, now time.Time) (Verdict, bool) {
	e := Evidence{Threshold: s.cfg.Threshold, Parts: parts(&a.light)}
	var credit, hour uint32 // sources with credit, and the hour of the first one
	mail, total := s.ownInside(a.prefix()), 0.0
	look := func(slot int, k key) {
		r := *s.rec(slot)
		if r.has() {
			h := r.at / 3600
			if r.flags&flagKnown != 0 {
				h = 0 // an earlier one
			}
			if credit > 0 && (h == 0 || h != hour) || r.flags&flagTwice != 0 {
				mail = true
			}
			credit, hour = credit+1, h
		}
		s.forward(&r, nowSec, nowSec)
		one := s.account(slot, k, &r).Evidence
		total += one.Score
		e.Accepted, e.Logins = e.Accepted+one.Accepted, e.Logins+one.Logins
		if one.First.IsZero() {
			return
		}
		if e.First.IsZero() || one.First.Before(e.First) {
			e.First = one.First
		}
		if one.Last.After(e.Last) {
			e.Last = one.Last
		}
		for i, n := range one.Counts {
			e.Counts[i] += n
		}
	}
	if a.bits == 24 || a.bits == 56 && s.bits6 <= 64 {
		for i := range uint64(256) {
			k := key{hi: a.net | i}
			if slot, ok := s.lookup(k); ok {
				look(slot, k)
			}
		}
	} else {
		// A walk over the table: at most one in a second, so that nobody can keep us walking.
		if s.walked == nowSec {
			return Verdict{}, false
		}
		s.walked = nowSec
		width := 64 - a.bits
		for slot := range s.used {
			if s.rec(slot).key>>width == a.net>>width {
				look(slot, s.keyAt(slot))
			}
		}
	}
	if mail || credit > 0 && !a.many() {
		a.checked = nowSec
		return Verdict{}, false
	}
	e.Score = total
	if a.until != 0 && a.repeat < math.MaxUint8 {
		a.repeat++
	}
	a.flags &^= flagAll
	if cause.Scope() == block.ScopeAll {
		a.flags |= flagAll
	}
	a.open = [4]uint64{}
	a.until = nowSec + uint32(s.term(int(a.repeat))/time.Second)
	return Verdict{
		Prefix: a.prefix(), Cause: cause, Scope: cause.Scope(), Since: now, Until: when(a.until), Repeat: int(a.repeat), Evidence: e,
	}, true
}

// covering returns the area with a block around a source that also closes what the source would be blocked for.
func (s *Scorer) covering(k key, c block.Cause, now uint32) *area {
	list, n := s.levels(k)
	for _, l := range list[:n] {
		a, _ := s.area(l.net, l.bits, false, now)
		if a != nil && a.until > now && a.open[l.part>>6]>>(l.part&63)&1 == 0 && (a.flags&flagAll != 0 || c.Scope() == block.ScopeMX) {
			return a
		}
	}
	return nil
}

// resetAreas forgets areas inside p, and opens the part of an area that p is.
func (s *Scorer) resetAreas(p netip.Prefix) {
	for i := range s.areas.sets {
		for j := range s.areas.sets[i] {
			a := &s.areas.sets[i][j]
			if a.net == 0 || !a.prefix().Overlaps(p) {
				continue
			}
			s.areas.mark(i*areaSet + j)
			if p.Bits() <= int(a.bits) {
				*a = area{net: a.net, bits: a.bits, epoch: a.epoch, flags: a.flags & flagStored}
				continue
			}
			first, n := 0, 1<<max(0, int(a.bits)+8-p.Bits())
			if b := p.Addr().AsSlice(); len(b) == 4 {
				first = int(b[3])
			} else {
				first = int(b[a.bits/8])
			}
			for part := first; part < min(256, first+n); part++ {
				bit := uint64(1) << (part & 63)
				a.seen[0][part>>6] &^= bit
				a.seen[1][part>>6] &^= bit
				a.light[0][part>>6] &^= bit
				a.light[1][part>>6] &^= bit
				a.over[0][part>>6] &^= bit
				a.over[1][part>>6] &^= bit
				a.open[part>>6] |= bit
			}
		}
	}
}

// A stored area: version (1), repeat (1), flags (1), all, auth (2 each), epoch, until, checked (4 each), seen, over (64 each),
// open (32). Little endian. Its key is 0xff, 'w', the prefix length (1) and the first 64 bits of the network (IPv4: as in key).
const (
	areaVersion = 1
	areaStored  = 3 + 2*2 + 3*4 + 2*64 + 32
)

func (a *area) storeKey() []byte {
	return binary.BigEndian.AppendUint64([]byte{special, 'w', a.bits}, a.net)
}

func (s *Scorer) changedAreas(fn func(key, val []byte)) {
	t := &s.areas
	for i := range t.gone {
		if a, _ := s.area(t.gone[i].net, t.gone[i].bits, false, 0); a == nil {
			fn(t.gone[i].storeKey(), nil)
		}
	}
	t.gone = t.gone[:0]
	for w, set := range t.dirty {
		for ; set != 0; set &= set - 1 {
			id := w*64 + bits.TrailingZeros64(set)
			a := &t.sets[id/areaSet][id%areaSet]
			a.flags |= flagStored
			le := binary.LittleEndian
			b := append(make([]byte, 0, areaStored), areaVersion, a.repeat, a.flags&flagAll)
			b = le.AppendUint16(le.AppendUint16(b, a.all), a.auth)
			for _, v := range [...]uint32{a.epoch, a.until, a.checked} {
				b = le.AppendUint32(b, v)
			}
			for _, m := range [...][4]uint64{a.seen[0], a.seen[1], a.over[0], a.over[1], a.open} {
				for _, v := range m {
					b = le.AppendUint64(b, v)
				}
			}
			fn(a.storeKey(), b)
		}
		t.dirty[w] = 0
	}
}

func (s *Scorer) loadArea(k, b []byte) error {
	if len(k) != 9 || len(b) != areaStored || b[0] != areaVersion || b[2]&^flagAll != 0 {
		return fmt.Errorf("%w: an area", errRecord)
	}
	le := binary.LittleEndian
	n := area{
		net: binary.BigEndian.Uint64(k[1:]), bits: k[0], repeat: b[1], flags: b[2] | flagStored, all: le.Uint16(b[3:]), auth: le.Uint16(b[5:]),
		epoch: le.Uint32(b[7:]), until: le.Uint32(b[11:]), checked: le.Uint32(b[15:]),
	}
	is4 := n.net>>32 == v4mark>>32
	if n.net == 0 || is4 != (n.bits == 24) || !is4 && n.bits != 48 && n.bits != 56 || n.until > math.MaxUint32-1<<19 {
		return fmt.Errorf("%w: an area that cannot be", errRecord)
	}
	if p := n.prefix(); p != p.Masked() || is4 && n.net&0xff != 0 || !is4 && n.net<<n.bits != 0 {
		return fmt.Errorf("%w: an area that cannot be", errRecord)
	}
	b = b[19:]
	for _, m := range [...]*[4]uint64{&n.seen[0], &n.seen[1], &n.over[0], &n.over[1], &n.open} {
		for i := range m {
			m[i] = le.Uint64(b)
			b = b[8:]
		}
	}
	n.light = n.seen
	a, id := s.area(n.net, n.bits, true, 0)
	*a = n
	s.areas.dirty[id/64] &^= 1 << (id % 64)
	return nil
}
