package verdict

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// A stored source is a key and a value. Key: the prefix length (1 byte) and the address (4 or 16 bytes). Value, little
// endian: version (1), at, until (4 each), points, offences, fails, accepted, logins (float32 each), names (8),
// acceptedNow, loginsNow (2 each), parts (2, 2), why (1, 1), repeat, flags (1 each), the number of counts (1) and, if
// there are any, first and last (4 each) and per count the kind (1) and its number (2), and behind them, if it got mail to anybody
// meanwhile, its reach: at (4), deliveries (float32), and a bit per recipient (16), and last a bit per unknown recipient (8).
//
// Kinds and causes are stored as numbers: a change of their order needs a new version.
//
// Version 1 had fewer flags, version 2 no reach, version 3 no unknown recipients; all are still read. Beside the sources there are
// records whose key begins with 0xff: see share.go, alarm.go, area.go, crowd.go and stray.go.
const (
	storeVersion = 4
	special      = 0xff // begins the keys of what is not a source
	storeFixed   = 1 + 2*4 + 5*4 + 8 + 2*2 + 2*2 + 2 + 2 + 1
)

var errRecord = errors.New("not the record of a source")

// Changed calls fn for every source that changed since the last call, with what Load wants to see again; a nil val
// says that the source is forgotten and key can be deleted. key and val are valid only during the call. The order is
// that of the table. Its cost is one bit per known source and the encoding of those that changed.
func (s *Scorer) Changed(fn func(key, val []byte)) {
	var kb [17]byte
	var vb [storeFixed + 8 + 3*evidenceKinds + reachStored + 8]byte
	for _, k := range s.gone {
		if _, back := s.lookup(k); !back {
			fn(s.appendKey(kb[:0], k), nil)
		}
	}
	s.gone = s.gone[:0]
	s.changedShare(fn)
	s.changedAlarms(fn)
	s.changedAreas(fn)
	s.changedCrowds(fn)
	s.changedStrays(fn)
	for w, set := range s.dirty {
		for ; set != 0; set &= set - 1 {
			slot := w*64 + bits.TrailingZeros64(set)
			r, k := s.rec(slot), s.keyAt(slot)
			r.flags |= flagStored
			fn(s.appendKey(kb[:0], k), s.appendRecord(vb[:0], slot, k, r))
		}
		s.dirty[w] = 0
	}
}

func (s *Scorer) appendKey(b []byte, k key) []byte {
	p := s.prefix(k)
	b = append(b, byte(p.Bits()))
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return append(b, a[:]...)
	}
	a := p.Addr().As16()
	return append(b, a[:]...)
}

func (s *Scorer) appendRecord(b []byte, slot int, k key, r *record) []byte {
	le := binary.LittleEndian
	b = append(b, storeVersion)
	b = le.AppendUint32(b, r.at)
	b = le.AppendUint32(b, r.until)
	for _, v := range [...]float32{r.points, r.offences, r.fails, r.accepted, r.logins} {
		b = le.AppendUint32(b, math.Float32bits(v))
	}
	b = le.AppendUint64(b, r.names)
	for _, v := range [...]uint16{r.acceptedNow, r.loginsNow, r.parts[0], r.parts[1]} {
		b = le.AppendUint16(b, v)
	}
	b = append(b, r.why[0], r.why[1], r.repeat, r.flags&flagsKept, 0)
	c := s.evidence.get(slot, s.hash(k))
	if c == nil {
		return b
	}
	at := len(b) - 1
	b = le.AppendUint32(b, c.first)
	b = le.AppendUint32(b, c.last)
	for kind, i := range evidenceSlot {
		if i > 0 && c.n[i-1] > 0 {
			b[at]++
			b = le.AppendUint16(append(b, byte(kind)), c.n[i-1])
		}
	}
	if b[at] == 0 {
		return b[:at+1]
	}
	return le.AppendUint64(c.reach.store(b), c.missed)
}

// Load takes in a source that Changed gave out, in place of what is known about it. A record that is damaged, of
// another version, or of another prefix length than the configured one is an error and changes nothing: that source
// starts anew.
func (s *Scorer) Load(keyBytes, val []byte) error {
	if len(keyBytes) > 1 && keyBytes[0] == special {
		return s.loadSpecial(keyBytes[1:], val)
	}
	k, err := s.parseKey(keyBytes)
	if err != nil {
		return err
	}
	if len(val) < storeFixed || val[0] == 0 || val[0] > storeVersion {
		return fmt.Errorf("%w of this version", errRecord)
	}
	le := binary.LittleEndian
	r := record{key: k.hi, at: le.Uint32(val[1:]), until: le.Uint32(val[5:])}
	for i, to := range [...]*float32{&r.points, &r.offences, &r.fails, &r.accepted, &r.logins} {
		v := math.Float32frombits(le.Uint32(val[9+4*i:]))
		if !(v >= 0 && v <= 1e9) || i >= 3 && v > creditCap {
			return fmt.Errorf("%w: impossible number %v", errRecord, v)
		}
		*to = v
	}
	r.names = le.Uint64(val[29:])
	r.acceptedNow, r.loginsNow = le.Uint16(val[37:]), le.Uint16(val[39:])
	r.parts = [2]uint16{le.Uint16(val[41:]), le.Uint16(val[43:])}
	r.why = [2]uint8{val[45], val[46]}
	r.repeat, r.flags = val[47], val[48]
	if r.at == 0 || max(r.at, r.until) > math.MaxUint32-1<<20+uint32(s.cfg.Max.Seconds()) || r.why[0] > uint8(block.Manual) || r.why[1] > uint8(block.Manual) ||
		r.flags&^flagsKept != 0 {
		return fmt.Errorf("%w: impossible field", errRecord)
	}
	var c counts
	n, rest := int(val[49]), val[storeFixed:]
	if val[0] >= 4 && n > 0 {
		if len(rest) < 8+3*n+8 {
			return fmt.Errorf("%w: too short", errRecord)
		}
		c.missed = le.Uint64(rest[len(rest)-8:])
		rest = rest[:len(rest)-8]
	}
	if val[0] >= 3 && n > 0 && len(rest) == 8+3*n+reachStored {
		if err := c.reach.load(rest[8+3*n:]); err != nil {
			return err
		}
		rest = rest[:8+3*n]
	}
	if n == 0 && len(rest) != 0 || n > 0 && len(rest) != 8+3*n || n >= evidenceKinds {
		return fmt.Errorf("%w: wrong length", errRecord)
	}
	if n > 0 {
		c.first, c.last = le.Uint32(rest), le.Uint32(rest[4:])
		if c.first == 0 || c.last < c.first {
			return fmt.Errorf("%w: impossible times", errRecord)
		}
		for rest = rest[8:]; len(rest) > 0; rest = rest[3:] {
			if rest[0] >= uint8(maillog.NumKinds) || evidenceSlot[rest[0]] == 0 {
				return fmt.Errorf("%w: impossible kind", errRecord)
			}
			c.n[evidenceSlot[rest[0]]-1] = le.Uint16(rest[1:])
		}
	}
	slot, known := s.lookup(k)
	if !known {
		slot = s.insert(k, r.at)
	}
	h := s.hash(k)
	s.evidence.drop(slot, h)
	r.flags |= flagStored | 1
	if r.accepted > 0 || r.logins > 0 {
		r.flags |= flagUsed
	}
	*s.rec(slot) = r
	if n > 0 {
		s.evidence.put(slot, h, c)
	}
	s.dirty[slot/64] &^= 1 << (slot % 64)
	return nil
}

func (s *Scorer) loadSpecial(key, val []byte) error {
	switch {
	case key[0] == 'h' && len(key) == 2:
		return s.loadShare(key[1], val)
	case key[0] == 'w':
		return s.loadArea(key[1:], val)
	case key[0] == 'c':
		return s.loadCrowd(key[1:], val)
	case key[0] == 'a' && len(key) == 1:
		return s.loadAlarms(val)
	case key[0] == 's' && len(key) == 1:
		return s.loadStrays(val)
	}
	return fmt.Errorf("%w: %x", errRecord, key)
}

func (s *Scorer) parseKey(b []byte) (key, error) {
	var p netip.Prefix
	switch len(b) {
	case 5:
		p = netip.PrefixFrom(netip.AddrFrom4([4]byte(b[1:])), int(b[0]))
		if b[0] != 32 {
			return key{}, fmt.Errorf("%w: IPv4 prefix of %d bits", errRecord, b[0])
		}
	case 17:
		p = netip.PrefixFrom(netip.AddrFrom16([16]byte(b[1:])), int(b[0]))
		if int(b[0]) != s.cfg.IPv6Prefix {
			return key{}, fmt.Errorf("%w: IPv6 prefix of %d bits, configured are %d", errRecord, b[0], s.cfg.IPv6Prefix)
		}
	default:
		return key{}, fmt.Errorf("%w: key of %d bytes", errRecord, len(b))
	}
	k := s.key(p.Addr())
	if s.prefix(k) != p {
		return key{}, fmt.Errorf("%w: %v is not a source", errRecord, p)
	}
	return k, nil
}
