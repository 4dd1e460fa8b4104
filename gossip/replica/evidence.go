package replica

import (
	"encoding/binary"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// Evidence across nodes: an attacker who spreads thin over the cluster is seen by nobody alone. Each node tells the
// others two numbers for a source, how bad it was (points of the score) and how many messages were accepted from it.
// They are one register for each origin and source; the newest stamp wins; what is lost is said again when it grows.
// Whoever knows something good of a source that another has something against says so too (Answer).
//
// The registers have a lock of their own, after the node's and before the table's: Share, Answer and Elsewhere may be
// called with locks held that Options.Accepted takes.

// EvidenceOptions says how evidence of other nodes counts.
type EvidenceOptions struct {
	Threshold float64       // points that block a source; 0: 100. No single node adds more than half of it.
	HalfLife  time.Duration // of points; 0: 1 h. A register ends after two of them.
	Floor     uint32        // points under which nothing is told; 0: 10
	Max       int           // registers kept; 0: 200,000. One other node may fill a quarter of them, all others three.
}

// maxAccepted is how many accepted messages of a source one node may report: as many as the scorer credits a source with
// for its own mail. A node that vouches for attackers does so no further than that.
const maxAccepted = 5000

// evidencePackets bounds what is told in one Flush.
const evidencePackets = 4

// maxEvidenceQueue bounds what waits to be told.
const maxEvidenceQueue = 20_000

// answerAgain is how soon the same is said again to those who ask.
const answerAgain = 5 * time.Second

// HeardEvidence is a source of which other nodes told something new.
type HeardEvidence struct {
	Source netip.Prefix
	Asks   bool // one of them has something against it, and may not know what speaks for it
}

// sourceKey is an IPv4 address or an IPv6 /64, without pointers.
type sourceKey struct {
	addr uint64
	v6   bool
}

type evidenceRec struct {
	source   sourceKey
	stamp    uint64 // ms
	bad      uint32
	accepted uint32
	next     uint32 // the next of the same source, or the next unused one; from 1 on
	origin   uint16 // 0: this node
	used     bool
}

type evidence struct {
	mu     sync.Mutex
	o      EvidenceOptions
	recs   []evidenceRec
	free   uint32
	unused int
	first  map[sourceKey]uint32
	names  map[string]uint16 // from 1 on
	held   map[uint16]int    // registers of each
	queue  []sourceKey
	queued map[sourceKey]bool

	dropped uint64
}

func (v *evidence) init(o EvidenceOptions) {
	if o.Threshold == 0 {
		o.Threshold = 100
	}
	if o.HalfLife == 0 {
		o.HalfLife = time.Hour
	}
	if o.Floor == 0 {
		o.Floor = 10
	}
	if o.Max == 0 {
		o.Max = 200_000
	}
	v.o, v.first, v.names, v.held, v.queued = o, map[sourceKey]uint32{}, map[string]uint16{}, map[uint16]int{}, map[sourceKey]bool{}
}

func sourceOf(p netip.Prefix) (sourceKey, bool) {
	a := p.Addr()
	switch {
	case a.Is4() && p.Bits() == 32:
		b := a.As4()
		return sourceKey{uint64(binary.BigEndian.Uint32(b[:])), false}, true
	case a.Is6() && !a.Is4In6() && p.Bits() >= 64:
		b := a.As16()
		return sourceKey{binary.BigEndian.Uint64(b[:8]), true}, true
	}
	return sourceKey{}, false
}

func (k sourceKey) prefix() netip.Prefix {
	if !k.v6 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(k.addr))
		return netip.PrefixFrom(netip.AddrFrom4(b), 32)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], k.addr)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

func (v *evidence) find(k sourceKey, origin uint16) *evidenceRec {
	for i := v.first[k]; i != 0; i = v.recs[i-1].next {
		if r := &v.recs[i-1]; r.origin == origin {
			return r
		}
	}
	return nil
}

// put keeps the newest of a register. False: it is older, or there is no room.
func (v *evidence) put(k sourceKey, origin uint16, stamp uint64, bad, accepted uint32) (news, room bool) {
	if r := v.find(k, origin); r != nil {
		if stamp <= r.stamp {
			return false, true
		}
		r.stamp, r.bad, r.accepted = stamp, bad, accepted
		return true, true
	}
	if used := len(v.recs) - v.unused; origin != 0 && (v.held[origin] >= v.o.Max/4 || used-v.held[0] >= v.o.Max/4*3) {
		return false, false // nobody keeps the others, or this node, from being heard
	}
	i := v.free
	switch {
	case i != 0:
		v.free = v.recs[i-1].next
		v.unused--
	case len(v.recs) >= v.o.Max:
		return false, false
	default:
		v.recs = append(v.recs, evidenceRec{})
		i = uint32(len(v.recs))
	}
	v.recs[i-1] = evidenceRec{source: k, stamp: stamp, bad: bad, accepted: accepted, next: v.first[k], origin: origin, used: true}
	v.first[k] = i
	v.held[origin]++
	return true, true
}

// id is the number of a node, 0 if there are too many.
func (v *evidence) id(origin string) uint16 {
	if id := v.names[origin]; id != 0 {
		return id
	}
	if len(v.names) >= maxLanes {
		return 0
	}
	used := make(map[uint16]bool, len(v.names))
	for _, id := range v.names {
		used[id] = true
	}
	id := uint16(1)
	for used[id] {
		id++
	}
	v.names[origin] = id
	return id
}

func (v *evidence) life() uint64 { return uint64(2 * v.o.HalfLife / time.Millisecond) }

// sweep drops what has ended.
func (v *evidence) sweep(now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := millis(now)
	for i := range v.recs {
		r := &v.recs[i]
		if !r.used || r.stamp+v.life() > at {
			continue
		}
		me := uint32(i + 1)
		if v.first[r.source] == me {
			if r.next == 0 {
				delete(v.first, r.source)
			} else {
				v.first[r.source] = r.next
			}
		} else {
			p := v.first[r.source]
			for v.recs[p-1].next != me {
				p = v.recs[p-1].next
			}
			v.recs[p-1].next = r.next
		}
		if v.held[r.origin]--; v.held[r.origin] == 0 {
			delete(v.held, r.origin)
		}
		*r = evidenceRec{next: v.free}
		v.free = me
		v.unused++
	}
	maps.DeleteFunc(v.names, func(_ string, id uint16) bool { return v.held[id] == 0 })
}

// Share tells the others what this node has against a source, an IPv4 /32 or an IPv6 /64: its points, as they decayed
// until now, and the messages accepted from it. Points under the floor, and changes of less than a tenth, are not
// told. It reports whether the others will be told.
func (n *Node) Share(source netip.Prefix, bad, accepted uint32) bool {
	return n.tell(source, bad, accepted, false)
}

// Answer is Share of a source that others asked about: it is told whatever the points, and again if it was told a
// while ago.
func (n *Node) Answer(source netip.Prefix, bad, accepted uint32) bool {
	return n.tell(source, bad, accepted, true)
}

func (n *Node) tell(source netip.Prefix, bad, accepted uint32, answer bool) bool {
	now := n.o.Clock()
	k, ok := sourceOf(source)
	if !ok || n.silent.Load() {
		return false
	}
	v := &n.evidence
	v.mu.Lock()
	defer v.mu.Unlock()
	stamp := millis(now)
	if r := v.find(k, 0); r != nil {
		was := float64(r.bad) * math.Exp2(-float64(stamp-min(stamp, r.stamp))/float64(v.o.HalfLife.Milliseconds()))
		same := math.Abs(float64(bad)-was) < max(1, was/10) && accepted <= r.accepted+r.accepted/10
		if same && (!answer || stamp < r.stamp+uint64(answerAgain/time.Millisecond)) {
			return false
		}
		stamp = max(stamp, r.stamp+1)
	} else if bad < v.o.Floor && !answer {
		return false
	}
	if _, room := v.put(k, 0, stamp, bad, accepted); !room || len(v.queue) >= maxEvidenceQueue {
		v.dropped++
		return false
	}
	if !v.queued[k] {
		v.queued[k] = true
		v.queue = append(v.queue, k)
	}
	return true
}

// Elsewhere returns what the other nodes have against a source: points, decayed until now, of which no single node
// adds more than half the threshold, and accepted messages. What is older than a clear of the source counts no more,
// nor does what a suspended node says.
func (n *Node) Elsewhere(source netip.Prefix) (bad float64, accepted uint64) {
	k, ok := sourceOf(source)
	if !ok {
		return 0, 0
	}
	now := n.o.Clock()
	v := &n.evidence
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.first[k] == 0 {
		return 0, 0
	}
	at, cleared := millis(now), uint64(n.table.ClearedAt(source))>>16
	suspended := map[uint16]bool{}
	for _, name := range n.table.Suspended() {
		suspended[v.names[name]] = true
	}
	for i := v.first[k]; i != 0; i = v.recs[i-1].next {
		r := &v.recs[i-1]
		if r.origin == 0 || r.stamp <= cleared || r.stamp+v.life() <= at || suspended[r.origin] {
			continue
		}
		age := float64(at - min(at, r.stamp))
		bad += min(float64(r.bad)*math.Exp2(-age/float64(v.o.HalfLife.Milliseconds())), v.o.Threshold/2)
		accepted += uint64(min(r.accepted, maxAccepted))
	}
	return bad, accepted
}

// flushEvidence tells the members what Share queued.
func (n *Node) flushEvidence(now time.Time) {
	v := &n.evidence
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.queue) == 0 {
		return
	}
	if len(n.members) == 0 || n.mute != "" {
		clear(v.queued)
		v.queue = nil
		return
	}
	head := putString(header(nil, kindEvidence), n.o.Node)
	head = binary.AppendUvarint(head, millis(now))
	at := 0
	for range evidencePackets {
		if at >= len(v.queue) {
			break
		}
		b := append(make([]byte, 0, MaxDatagram), head...)
		base := millis(now)
		b = binary.BigEndian.AppendUint64(b, base)
		for ; at < len(v.queue) && len(b) < n.o.Datagram-40; at++ {
			k := v.queue[at]
			delete(v.queued, k)
			r := v.find(k, 0)
			if r == nil {
				continue
			}
			if k.v6 {
				b = binary.BigEndian.AppendUint64(append(b, 6), k.addr)
			} else {
				b = binary.BigEndian.AppendUint32(append(b, 4), uint32(k.addr))
			}
			b = binary.AppendVarint(b, int64(r.stamp)-int64(base))
			b = binary.AppendUvarint(b, uint64(r.bad))
			b = binary.AppendUvarint(b, uint64(r.accepted))
		}
		for _, to := range n.members {
			n.send(to, b)
		}
	}
	if v.queue = v.queue[at:]; len(v.queue) == 0 {
		v.queue = nil
	}
}

func (n *Node) onEvidence(from string, r *reader, now time.Time) error {
	origin, _, base := r.name(), r.clock(), r.u64()
	if r.bad || base >= 1<<48 {
		return wireError(kindEvidence)
	}
	type item struct {
		k             sourceKey
		stamp         uint64
		bad, accepted uint32
	}
	var list []item
	for !r.bad && len(r.b) > 0 {
		var it item
		switch r.byte() {
		case 4:
			if t := r.take(4); t != nil {
				it.k = sourceKey{uint64(binary.BigEndian.Uint32(t)), false}
			}
		case 6:
			it.k = sourceKey{r.u64(), true}
		default:
			r.fail()
		}
		stamp := int64(base) + r.varint()
		it.bad, it.accepted = uint32(min(r.uvarint(), math.MaxUint32)), uint32(min(r.uvarint(), math.MaxUint32))
		if stamp < 0 || stamp >= 1<<48 {
			r.fail()
		}
		it.stamp = uint64(stamp)
		list = append(list, it)
	}
	if r.bad {
		return wireError(kindEvidence)
	}
	if origin != from {
		return errForged
	}
	v, at := &n.evidence, millis(now)
	v.mu.Lock()
	defer v.mu.Unlock()
	id := v.id(origin)
	if id == 0 {
		v.dropped += uint64(len(list))
		return nil
	}
	for _, it := range list {
		if it.stamp+v.life() <= at || it.stamp > at+uint64(block.MaxAhead/time.Millisecond) {
			v.dropped++
			continue
		}
		news, room := v.put(it.k, id, it.stamp, it.bad, it.accepted)
		if !room {
			v.dropped++
		}
		if news && n.o.Heard != nil {
			n.heard = append(n.heard, HeardEvidence{it.k.prefix(), it.bad >= v.o.Floor})
		}
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
