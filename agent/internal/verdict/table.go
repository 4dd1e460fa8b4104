package verdict

import (
	"math"
	"math/bits"
	"net/netip"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// A key is a masked prefix: hi is an IPv4 address under a mark no IPv6 network has, or the first 64 bits of an IPv6
// address; lo is the rest, used only if IPv6Prefix is longer than 64.
type key struct{ hi, lo uint64 }

const v4mark = 0x0000ffff_00000000

// A record is what is remembered of one source: 56 bytes, so that a million of them with their index and the evidence
// stay below 64 MB. It has no pointers. Times are seconds since 1970.
type record struct {
	key         uint64  // the hi of the key
	names       uint64  // see guess
	at          uint32  // the time the decaying numbers are for
	until       uint32  // end of the last verdict's block, 0 if there was none
	points      float32 // decaying: weights of all offences but failed logins
	offences    float32 // decaying: how many
	fails       float32 // decaying: failed logins as they count
	accepted    float32 // decaying slowly: credit in messages
	logins      float32 // decaying slowly: credit in logins
	acceptedNow uint16  // messages inside the burst; a tenth of them is in accepted already
	loginsNow   uint16
	parts       [2]uint16 // how much of the points the two largest causes made, 65535 being all
	why         [2]uint8  // those causes
	repeat      uint8
	flags       uint8
}

// part returns the points of one of the two largest causes.
func (r *record) part(i int) float64 { return float64(r.parts[i]) / math.MaxUint16 * float64(r.points) }

const (
	flagUsed   = 3      // two bits: how many more times the clock hand passes by
	flagBurst  = 1 << 2 // a burst is on
	flagAll    = 1 << 3 // the block closes the submission ports too
	flagStored = 1 << 4 // the store has this source
	flagKnown  = 1 << 5 // got credit in an earlier quarter of an hour than it was last active
	flagHeld   = 1 << 6 // waits for its block: until is the end of the wait
	flagTwice  = 1 << 7 // got credit in two different hours

	flagsKept = flagBurst | flagAll | flagKnown | flagHeld | flagTwice
)

// table finds records by key. Records live in chunks that never move; the index is open addressing over 32-bit words,
// each a slot number and as many bits of the hash as fit beside it, so that a probe seldom touches a record in vain.
// When the table is full, a clock hand takes the next record that was not used since it last came by: a source with
// an offence survives one pass, one that delivered mail or logged in three, so that a flood of strangers does not
// push the regular senders' credit out.
type table struct {
	seed     uint64
	bits6    int
	limit    int
	used     int
	hand     int
	chunks   []*[chunk]record
	low      []*[chunk]uint64 // lo of the keys, if IPv6Prefix > 64
	index    []uint32
	slotBits int
	dirty    []uint64 // a bit per slot: changed since the last Changed
	evidence evidence
	gone     []key // stored sources that were evicted
}

const chunk = 4096

func (t *table) init(cfg Config) {
	t.seed, t.bits6, t.limit = cfg.Seed, cfg.IPv6Prefix, cfg.Sources
	t.slotBits = bits.Len(uint(t.limit))
	t.index = make([]uint32, min(t.fullIndex(), 1024))
	t.evidence.init(t.limit)
}

// fullIndex is the size of the index when all records are in use: four fifths full.
func (t *table) fullIndex() int { return t.limit + t.limit/4 + 8 }

func (t *table) rec(slot int) *record { return &t.chunks[slot/chunk][slot%chunk] }

func (t *table) key(a netip.Addr) key {
	if a = a.Unmap(); a.Is4() {
		b := a.As4()
		return key{hi: v4mark | uint64(b[0])<<24 | uint64(b[1])<<16 | uint64(b[2])<<8 | uint64(b[3])}
	}
	b := a.As16()
	var k key
	for i := range 8 {
		k.hi = k.hi<<8 | uint64(b[i])
		k.lo = k.lo<<8 | uint64(b[i+8])
	}
	if t.bits6 <= 64 {
		return key{hi: k.hi &^ (math.MaxUint64 >> t.bits6)}
	}
	k.lo &^= math.MaxUint64 >> (t.bits6 - 64)
	return k
}

func (t *table) prefix(k key) netip.Prefix {
	if k.hi>>32 == v4mark>>32 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(k.hi >> 24), byte(k.hi >> 16), byte(k.hi >> 8), byte(k.hi)}), 32)
	}
	var b [16]byte
	for i := range 8 {
		b[i], b[i+8] = byte(k.hi>>(56-8*i)), byte(k.lo>>(56-8*i))
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), t.bits6)
}

func (t *table) keyAt(slot int) key {
	k := key{hi: t.rec(slot).key}
	if t.low != nil {
		k.lo = t.low[slot/chunk][slot%chunk]
	}
	return k
}

// hash mixes a key with the secret seed by two wide multiplications.
func (t *table) hash(k key) uint64 {
	hi, lo := bits.Mul64(k.hi^t.seed^0x9e6c63d0676a9a99, k.lo^bits.RotateLeft64(t.seed, 29)^0xa0b428db3b1f5c2d)
	hi, lo = bits.Mul64(hi^lo^t.seed, 0xd1342543de82ef95^k.hi)
	return hi ^ lo
}

func (t *table) home(h uint64, n int) int {
	hi, _ := bits.Mul64(h, uint64(n))
	return int(hi)
}

// word is what the index holds for a slot.
func (t *table) word(h uint64, slot int) uint32 { return uint32(h)<<t.slotBits | uint32(slot+1) }

func (t *table) find(k key, h uint64) (pos, slot int, ok bool) {
	tag, mask := uint32(h)<<t.slotBits, uint32(1)<<t.slotBits-1
	for i := t.home(h, len(t.index)); ; {
		w := t.index[i]
		if w == 0 {
			return i, 0, false
		}
		if w&^mask == tag {
			if slot = int(w&mask) - 1; t.keyAt(slot) == k {
				return i, slot, true
			}
		}
		if i++; i == len(t.index) {
			i = 0
		}
	}
}

func (t *table) lookup(k key) (slot int, ok bool) {
	_, slot, ok = t.find(k, t.hash(k))
	return slot, ok
}

// insert makes a record for a key that is not there.
func (t *table) insert(k key, at uint32) int {
	h := t.hash(k)
	slot := t.used
	if t.used == t.limit {
		slot = t.evict()
	} else {
		t.used++
		if (t.used)*4 > len(t.index)*3 {
			t.grow()
		}
		if slot/chunk == len(t.chunks) {
			t.chunks = append(t.chunks, new([chunk]record))
			t.dirty = append(t.dirty, make([]uint64, chunk/64)...)
			if t.bits6 > 64 {
				t.low = append(t.low, new([chunk]uint64))
			}
		}
	}
	*t.rec(slot) = record{key: k.hi, at: at}
	if t.low != nil {
		t.low[slot/chunk][slot%chunk] = k.lo
	}
	pos, _, _ := t.find(k, h)
	t.index[pos] = t.word(h, slot)
	return slot
}

// grow doubles the index. It is called before the new slot is in use.
func (t *table) grow() {
	n := min(2*len(t.index), t.fullIndex())
	if n == len(t.index) {
		return
	}
	t.index = make([]uint32, n)
	for slot := range t.used - 1 {
		h := t.hash(t.keyAt(slot))
		i := t.home(h, n)
		for t.index[i] != 0 {
			if i++; i == n {
				i = 0
			}
		}
		t.index[i] = t.word(h, slot)
	}
}

// evict frees a slot. Each record can send the hand on at most three times, and gives something up each time.
func (t *table) evict() int {
	for {
		slot := t.hand
		if t.hand++; t.hand == t.limit {
			t.hand = 0
		}
		r := t.rec(slot)
		if r.flags&flagUsed != 0 {
			r.flags--
			continue
		}
		k := t.keyAt(slot)
		if r.flags&flagStored != 0 {
			t.gone = append(t.gone, k)
		}
		t.unlink(k)
		t.evidence.drop(slot, t.hash(k))
		t.dirty[slot/64] &^= 1 << (slot % 64)
		return slot
	}
}

// unlink takes a key out of the index and moves later words of its run up.
func (t *table) unlink(k key) {
	i, _, ok := t.find(k, t.hash(k))
	if !ok {
		return
	}
	n, mask := len(t.index), uint32(1)<<t.slotBits-1
	for j := i; ; {
		if j++; j == n {
			j = 0
		}
		w := t.index[j]
		if w == 0 {
			break
		}
		home := t.home(t.hash(t.keyAt(int(w&mask)-1)), n)
		if (j-home+n)%n >= (j-i+n)%n {
			t.index[i] = w
			i = j
		}
	}
	t.index[i] = 0
}

// touch says that a source was active.
func (t *table) touch(slot int, r *record, good bool) {
	if good {
		r.flags |= flagUsed
	} else if r.flags&flagUsed == 0 {
		r.flags |= 1
	}
	t.mark(slot)
}

func (t *table) mark(slot int) { t.dirty[slot/64] |= 1 << (slot % 64) }

// evidence is the counts behind the scores, for one in 55 of the sources the table may hold: those that offended
// last. Decisions can do without it: then a source lacks the credit for its recipients. It is a cache of sets of four, found
// by the hash of the source.
type evidence struct {
	sets []evidenceSet
}

// evidenceSet has in front what is looked at to find a place: one cache line.
type evidenceSet struct {
	owner  [4]uint32 // slot + 1, 0 is free
	used   [4]uint32 // the last of each
	counts [4]counts
}

// oldest is the place whose last offence is longest ago, a free one if there is one.
func (set *evidenceSet) oldest() int {
	old := 0
	for i, u := range set.used {
		if u < set.used[old] {
			old = i
		}
	}
	return old
}

type counts struct {
	first, last uint32
	n           [evidenceKinds - 1]uint16
	reach       reach  // who got mail from it meanwhile
	missed      uint64 // a bit for each unknown recipient
}

const evidenceKinds = 17

// evidenceSlot says where a kind is counted; 0 is nowhere.
var evidenceSlot = [maillog.NumKinds]uint8{
	maillog.UnknownRecipient: 1, maillog.DNSBLReject: 2, maillog.RelayDenied: 3, maillog.AuthFailure: 4,
	maillog.NoRDNS: 5, maillog.HeloReject: 6, maillog.SenderReject: 7, maillog.Pregreet: 8, maillog.ProtocolError: 9,
	maillog.TooManyErrors: 10, maillog.RateLimit: 11, maillog.Greylisted: 12, maillog.SpamReject: 13,
	maillog.LostConnection: 14, maillog.Trap: 15, maillog.DNSListed: 16,
}

func (e *evidence) init(limit int) { e.sets = make([]evidenceSet, max(64, limit/220)) }

func (e *evidence) set(h uint64) *evidenceSet {
	hi, _ := bits.Mul64(h, uint64(len(e.sets)))
	return &e.sets[hi]
}

// add counts n events; at is 0 for events that are no offence and do not stretch the burst. It returns the counts, or nil.
func (e *evidence) add(slot int, h uint64, k maillog.Kind, n int, at uint32) *counts {
	set := e.set(h)
	i := set.find(slot)
	if i < 0 {
		if at == 0 {
			return nil
		}
		i = set.oldest()
		set.owner[i], set.counts[i] = uint32(slot+1), counts{first: at, last: at}
	}
	c := &set.counts[i]
	if at != 0 {
		c.first, c.last = min(c.first, at), max(c.last, at)
		set.used[i] = c.last
	}
	if i := evidenceSlot[k]; i > 0 {
		c.n[i-1] = uint16(min(math.MaxUint16, int(c.n[i-1])+n))
	}
	return c
}

func (e *evidence) get(slot int, h uint64) *counts {
	set := e.set(h)
	if i := set.find(slot); i >= 0 {
		return &set.counts[i]
	}
	return nil
}

func (set *evidenceSet) find(slot int) int {
	for i, o := range set.owner {
		if o == uint32(slot+1) {
			return i
		}
	}
	return -1
}

func (e *evidence) read(slot int, h uint64, out *Evidence) {
	c := e.get(slot, h)
	if c == nil {
		return
	}
	out.First, out.Last = when(c.first), when(c.last)
	for k, i := range evidenceSlot {
		if i > 0 {
			out.Counts[k] = uint32(c.n[i-1])
		}
	}
}

func (e *evidence) drop(slot int, h uint64) {
	set := e.set(h)
	if i := set.find(slot); i >= 0 {
		set.owner[i], set.used[i], set.counts[i] = 0, 0, counts{}
	}
}

// put places c as the evidence of a slot that has none.
func (e *evidence) put(slot int, h uint64, c counts) {
	set := e.set(h)
	i := set.oldest()
	set.owner[i], set.used[i], set.counts[i] = uint32(slot+1), c.last, c
}
