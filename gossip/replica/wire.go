package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// WireVersion is the version of the wire format. A message is
//
//	version 1 | kind 1 | signature length 1 | signature (0 to 64 bytes, not used yet) | body
//
// and every number in a body is an unsigned varint (encoding/binary) unless it says otherwise; zigzag marks signed
// ones, strings have their length in front. Epochs and stamps are 8 bytes big-endian.
//
//	records   origin | epoch | clock | top | run
//	digest    flags 1 | clock | { origin | epochs | { epoch | spans } }
//	pull      id | origin | epoch | bytes | spans
//	reply     id | origin | epoch | clock | epochs | { epoch | known spans } | complete spans | run
//	evidence  origin | clock | base stamp | { form 1 | address 4 or 8 | ms since base, zigzag | bad | accepted }
//	hello     clock | hash of the digest 8
//	bundle    { length | message }
//
//	spans     count | { gap | length-1 }, from 1 on
//	run       base seq | base stamp | { length 1 | record }
//	record    seq - last seq | ms - last ms, zigzag | counter | head 1 | cause + scope<<4 1 | address or target |
//	          until - seconds of the stamp, zigzag, if there is one | seconds of the stamp - since, zigzag | hits
//	head      kind (3 bits) | form (2 bits) | has until (1 bit) | zero
//	form      0: IPv4, 4 bytes   1: IPv6 /64, 8 bytes   2: 4 bytes and prefix length   3: 16 bytes and prefix length
//
// clock is the sender's, in ms. A record with a kind or a head of later versions is skipped by its length, and one
// that is longer than what is known of it is cut. There is no field for a mailbox, a host or a line of a log: the only
// text is names of nodes.
//
// The version of a message is the highest that both sides understand; a node understands all from WireMin on.
const (
	WireVersion = 1
	WireMin     = 1
)

// The kinds of messages.
const (
	kindRecords  = 1
	kindDigest   = 2
	kindPull     = 3
	kindReply    = 4
	kindEvidence = 5
	kindHello    = 6
	kindBundle   = 7
)

// Sizes, in bytes.
const (
	MaxDatagram = 1200      // of a message that is sent as a datagram
	MaxMessage  = 512 << 10 // of any message
	maxDigest   = 8 << 10
	chunk       = 256 << 10 // of a reply, and of what goes as a stream
	maxSig      = 64
	maxName     = 255
)

var (
	errWire    = errors.New("malformed message")
	errVersion = errors.New("message of another version")
	errKind    = errors.New("message of an unknown kind")
	errForged  = errors.New("message in another node's name")
)

// ---- writing

func header(b []byte, kind byte) []byte { return append(b, WireMin, kind, 0) }

func putString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func putSpans(b []byte, s spans) []byte {
	s = s.lowest(maxSpans)
	b = binary.AppendUvarint(b, uint64(len(s)))
	last := uint64(0)
	for _, a := range s {
		b = binary.AppendUvarint(b, a.from-last-1)
		b = binary.AppendUvarint(b, a.to-a.from)
		last = a.to
	}
	return b
}

func millis(t time.Time) uint64 { return uint64(max(0, t.UnixMilli())) }

// runWriter appends records to a message.
type runWriter struct {
	b     []byte
	seq   uint64
	stamp block.Stamp
	n     int
	one   []byte
}

// start begins a run before a record with this number and stamp.
func (w *runWriter) start(seq uint64, stamp block.Stamp) {
	w.seq, w.stamp, w.n = seq, stamp, 0
	w.b = binary.AppendUvarint(w.b, seq)
	w.b = binary.BigEndian.AppendUint64(w.b, uint64(stamp))
}

const (
	headUntil   = 1 << 5
	headUnknown = 3 << 6
)

// add appends e, whose number is above the last one, unless the message would be longer than limit.
func (w *runWriter) add(e *block.Entry, limit int) bool {
	r := binary.AppendUvarint(w.one[:0], e.Seq-w.seq)
	r = binary.AppendVarint(r, int64(e.Stamp>>16)-int64(w.stamp>>16))
	r = binary.AppendUvarint(r, uint64(e.Stamp&0xffff))
	head := byte(e.Kind)
	if !e.Until.IsZero() {
		head |= headUntil
	}
	var a [16]byte
	addr := a[:0]
	if e.Kind != block.OriginClear {
		a = e.Prefix.Addr().As16()
		switch v4, bits := e.Prefix.Addr().Is4(), e.Prefix.Bits(); {
		case v4 && bits == 32:
			addr = a[12:]
		case !v4 && bits == 64:
			head, addr = head|1<<3, a[:8]
		case v4:
			head, addr = head|2<<3, append(a[12:], byte(bits))
		default:
			head, addr = head|3<<3, append(a[:], byte(bits))
		}
	}
	r = append(r, head, byte(e.Cause)|byte(e.Scope)<<4)
	if r = append(r, addr...); e.Kind == block.OriginClear {
		r = putString(r, e.Target)
	}
	at := e.Stamp.Time().Unix()
	if !e.Until.IsZero() {
		r = binary.AppendVarint(r, e.Until.Unix()-at)
	}
	since := int64(0)
	if !e.Since.IsZero() {
		since = e.Since.Unix()
	}
	r = binary.AppendVarint(r, at-since)
	r = binary.AppendUvarint(r, uint64(e.Hits))
	w.one = r
	if len(r) > 255 || len(w.b)+1+len(r) > limit {
		return false
	}
	w.b = append(append(w.b, byte(len(r))), r...)
	w.seq, w.stamp = e.Seq, e.Stamp
	w.n++
	return true
}

// ---- reading

// reader takes a message apart. After the first fault it yields zeros, and bad is set.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) fail() { r.b, r.bad = nil, true }

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.fail()
		return nil
	}
	t := r.b[:n]
	r.b = r.b[n:]
	return t
}

func (r *reader) byte() byte {
	if t := r.take(1); t != nil {
		return t[0]
	}
	return 0
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) u64() uint64 {
	if t := r.take(8); t != nil {
		return binary.BigEndian.Uint64(t)
	}
	return 0
}

// name reads the name of a node. People see it on their terminals, so it must look like one, whoever tells of it.
func (r *reader) name() string {
	n := r.uvarint()
	if n == 0 || n > maxName {
		r.fail()
		return ""
	}
	b := r.take(int(n))
	for _, c := range b {
		if c <= ' ' || c > '~' {
			r.fail()
			return ""
		}
	}
	return string(b)
}

// clock reads a time in ms.
func (r *reader) clock() time.Time {
	ms := r.uvarint()
	if ms >= 1<<48 {
		r.fail()
		return time.Time{}
	}
	return time.UnixMilli(int64(ms))
}

func (r *reader) spans() spans {
	n := r.uvarint()
	if n > maxSpans {
		r.fail()
		return nil
	}
	s := make(spans, 0, n)
	last := uint64(0)
	for i := range n {
		gap, length := r.uvarint(), r.uvarint()
		if r.bad || gap >= 1<<62 || length >= 1<<62 || last >= 1<<62 || gap == 0 && i > 0 {
			r.fail()
			return nil
		}
		s = append(s, span{last + gap + 1, last + gap + 1 + length})
		last += gap + 1 + length
	}
	return s
}

// open takes the header off a message of a version up to most.
func open(msg []byte, most uint32) (kind byte, r *reader, err error) {
	if len(msg) < 3 || len(msg) > MaxMessage {
		return 0, nil, errWire
	}
	if msg[0] < WireMin || uint32(msg[0]) > most {
		return 0, nil, errVersion
	}
	r = &reader{b: msg[2:]}
	if n := r.byte(); n > maxSig || r.take(int(n)) == nil && n > 0 {
		return 0, nil, errWire
	}
	return msg[1], r, nil
}

// usualRecord is how long a block of an IPv4 address is, in bytes; most are, or a little longer.
const usualRecord = 16

// run reads records of an origin and epoch to the end of the message: those it understands, and the numbers of those
// it does not.
func (r *reader) run(origin string, epoch uint64) (list []block.Entry, unknown []uint64) {
	seq, stamp := r.uvarint(), block.Stamp(r.u64())
	list = make([]block.Entry, 0, len(r.b)/usualRecord)
	for !r.bad && len(r.b) > 0 {
		one := reader{b: r.take(int(r.byte()))}
		d, ms, counter := one.uvarint(), int64(stamp>>16)+one.varint(), one.uvarint()
		if one.bad || seq+d < seq || seq+d == 0 || seq+d >= 1<<63 || ms < 0 || ms >= 1<<48 || counter > 0xffff {
			r.fail()
			return nil, nil
		}
		seq, stamp = seq+d, block.Stamp(ms)<<16|block.Stamp(counter)
		e := block.Entry{Origin: origin, Epoch: epoch, Seq: seq, Stamp: stamp}
		if one.record(&e) {
			list = append(list, e)
		} else {
			unknown = append(unknown, seq)
		}
	}
	if r.bad {
		return nil, nil
	}
	return list, unknown
}

// record reads the rest of one record. False: a later version may understand it.
func (r *reader) record(e *block.Entry) bool {
	head, cs := r.byte(), r.byte()
	e.Kind, e.Cause, e.Scope = block.Kind(head&7), block.Cause(cs&15), block.Scope(cs>>4&3)
	if r.bad || head&headUnknown != 0 || cs>>6 != 0 || e.Kind < block.Block || e.Kind > block.OriginClear || e.Cause > block.Manual {
		return false
	}
	if e.Kind == block.OriginClear {
		e.Target = r.name()
	} else if !r.prefix(&e.Prefix, head>>3&3) {
		return false
	}
	at := e.Stamp.Time().Unix()
	var ok1, ok2 bool
	ok1 = true
	if head&headUntil != 0 {
		e.Until, ok1 = seconds(at, r.varint())
		ok1 = ok1 && !e.Until.IsZero()
	}
	e.Since, ok2 = seconds(at, -r.varint())
	hits := r.uvarint()
	e.Hits = uint32(min(hits, 1<<32-1))
	return !r.bad && ok1 && ok2
}

func seconds(at, d int64) (time.Time, bool) {
	if d < -1<<40 || d > 1<<40 || at+d < 0 || at+d >= 1<<32 {
		return time.Time{}, false
	}
	if at+d == 0 {
		return time.Time{}, true
	}
	return time.Unix(at+d, 0).UTC(), true
}

func (r *reader) prefix(p *netip.Prefix, form byte) bool {
	var a netip.Addr
	bits := 0
	switch form {
	case 0, 2:
		t := r.take(4)
		if t == nil {
			return false
		}
		a, bits = netip.AddrFrom4([4]byte(t)), 32
	case 1:
		t := r.take(8)
		if t == nil {
			return false
		}
		var b [16]byte
		copy(b[:], t)
		a, bits = netip.AddrFrom16(b), 64
	case 3:
		t := r.take(16)
		if t == nil {
			return false
		}
		a = netip.AddrFrom16([16]byte(t))
	}
	if form >= 2 {
		bits = int(r.byte())
	}
	q, err := a.Prefix(bits)
	if r.bad || err != nil || q.Addr() != a || a.Is4In6() {
		return false
	}
	*p = q
	return true
}

// digestEntry is what a node knows of one origin and epoch.
type digestEntry struct {
	origin string
	epoch  uint64
	know   spans
}

const (
	digestPartial = 1 << 0 // there is more than fits
	digestAnswer  = 1 << 1 // send yours too, if I lack something
)

// appendDigest appends the entries, of which those of one origin follow each other, while they fit.
func appendDigest(b []byte, list []digestEntry, limit int) (_ []byte, n int) {
	for n < len(list) {
		k := n
		for k < len(list) && list[k].origin == list[n].origin {
			k++
		}
		at := len(b)
		b = putString(b, list[n].origin)
		b = binary.AppendUvarint(b, uint64(k-n))
		for _, d := range list[n:k] {
			b = putSpans(binary.BigEndian.AppendUint64(b, d.epoch), d.know)
		}
		if len(b) > limit {
			return b[:at], n
		}
		n = k
	}
	return b, n
}

// digest reads the entries of a digest.
func (r *reader) digest() (list []digestEntry) {
	for !r.bad && len(r.b) > 0 {
		name, n := r.name(), r.uvarint()
		for i := uint64(0); i < n && !r.bad; i++ {
			list = append(list, digestEntry{name, r.u64(), r.spans()})
		}
	}
	if r.bad {
		return nil
	}
	return list
}

// known reads what a peer knows of all epochs of an origin.
func (r *reader) known() map[uint64]spans {
	n := r.uvarint()
	m := make(map[uint64]spans, min(n, 16))
	for i := uint64(0); i < n && !r.bad; i++ {
		epoch := r.u64()
		m[epoch] = r.spans()
	}
	return m
}

func wireError(kind byte) error { return fmt.Errorf("%w: kind %d", errWire, kind) }
