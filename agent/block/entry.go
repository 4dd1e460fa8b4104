package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// An Entry is one record of the table: one node's statement about one prefix. (Origin, Prefix, Kind) is its key, where
// manual and automatic blocks are two kinds, so that evidence never replaces a person's word; of an origin clear it is
// (Origin, Target, Kind). Of two entries with the same key the one with the higher (Stamp, Epoch, Seq) holds.
type Entry struct {
	Origin string       `json:"origin"`
	Prefix netip.Prefix `json:"prefix"`
	Kind   Kind         `json:"kind"`
	Cause  Cause        `json:"cause,omitzero"`
	Scope  Scope        `json:"scope,omitzero"`
	Since  time.Time    `json:"since"` // whole seconds, rounded down
	// Until is when a block or allow ends (zero: no end); of a clear it is the end of its hold against automatic
	// blocks; of an origin clear the time up to which the target's stamps are void, if that is later than its own
	// stamp. Whole seconds, rounded up.
	Until time.Time `json:"until,omitzero"`
	Stamp Stamp     `json:"stamp"`
	// Epoch and Seq number the entries of one origin, from 1 on. A node begins a new epoch when it may have lost what
	// it numbered before; epochs are stamps of their beginning. Seq 0: not numbered, and never told to other nodes.
	Epoch uint64 `json:"epoch,omitzero"`
	Seq   uint64 `json:"seq"`
	Hits  uint32 `json:"hits,omitempty"` // events behind the block
	// Reason is what the person who made a manual entry wrote. It stays on this host.
	Reason string `json:"reason,omitempty"`
	// Target is the origin that an origin clear is about.
	Target string `json:"target,omitempty"`
	// Local marks an automatic block that neither leaves this host nor outlives the agent; see ApplyLocal.
	Local bool `json:"local,omitempty"`
}

// Automatic says whether a block was made by evidence, and not by a person.
func (e *Entry) Automatic() bool { return e.Kind == Block && e.Cause != Manual }

// Opens says whether an entry can end blocks.
func (e *Entry) Opens() bool { return e.Kind == Clear || e.Kind == Allow || e.Kind == OriginClear }

// MaxAutomatic is the longest life of an automatic block, counted from its stamp, whoever made it.
const MaxAutomatic = 7 * 24 * time.Hour

// MaxHold is the longest hold of a clear, counted from its stamp.
const MaxHold = 30 * 24 * time.Hour

// maxReason bounds the free text of a manual entry, in bytes.
const maxReason = 500

func unix32(t time.Time) uint32 {
	if t.IsZero() {
		return 0
	}
	s := t.Unix()
	if t.Nanosecond() > 0 {
		s++
	}
	return uint32(max(1, min(s, 1<<32-1)))
}

// floor32 is for what has begun: it must not seem to begin later than it did.
func floor32(t time.Time) uint32 { return unix32(t.Truncate(time.Second)) }

func time32(s uint32) time.Time {
	if s == 0 {
		return time.Time{}
	}
	return time.Unix(int64(s), 0).UTC()
}

// Binary form of an entry in the state file, big-endian:
//
//	version 1 | kind 1 | cause 1 | scope 1 | bits 1 | family 1 | origin length 1 | reason length 2 |
//	address 16 | stamp 8 | seq 8 | since 4 | until 4 | hits 4 | origin | reason
//
// Version 2, of entries with an epoch or a target, has epoch 8 | target length 1 before the origin, and the target at
// the end. An entry without a prefix has family 0, and zeros for bits and address.
const (
	entryVersion = 1
	entryFixed   = 7 + 2 + 16 + 8 + 8 + 4 + 4 + 4
	entryMore    = 8 + 1
)

var errEntry = errors.New("malformed entry")

// MarshalBinary encodes the entry for the state file.
func (e *Entry) MarshalBinary() ([]byte, error) {
	return e.AppendBinary(make([]byte, 0, entryFixed+24))
}

// AppendBinary appends the encoding of MarshalBinary to b.
func (e *Entry) AppendBinary(b []byte) ([]byte, error) {
	if len(e.Origin) > 255 || len(e.Reason) > maxReason || len(e.Target) > 255 || e.Prefix.IsValid() == (e.Kind == OriginClear) || e.Local {
		return b, fmt.Errorf("%w: origin %d bytes, reason %d bytes, target %d bytes, prefix %v, local %v", errEntry, len(e.Origin), len(e.Reason), len(e.Target), e.Prefix, e.Local)
	}
	version, family, bits, a := byte(entryVersion), byte(0), byte(0), [16]byte{}
	if e.Epoch != 0 || e.Target != "" {
		version = 2
	}
	if e.Prefix.IsValid() {
		family, bits, a = 6, byte(e.Prefix.Bits()), e.Prefix.Addr().As16()
		if e.Prefix.Addr().Is4() {
			family = 4
		}
	}
	b = append(b, version, byte(e.Kind), byte(e.Cause), byte(e.Scope), bits, family, byte(len(e.Origin)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Reason)))
	b = append(b, a[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Stamp))
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint32(b, floor32(e.Since))
	b = binary.BigEndian.AppendUint32(b, unix32(e.Until))
	b = binary.BigEndian.AppendUint32(b, e.Hits)
	if version == 2 {
		b = append(binary.BigEndian.AppendUint64(b, e.Epoch), byte(len(e.Target)))
	}
	b = append(b, e.Origin...)
	b = append(b, e.Reason...)
	return append(b, e.Target...), nil
}

// UnmarshalBinary decodes what MarshalBinary wrote. Anything else is an error: the file may have been edited.
func (e *Entry) UnmarshalBinary(b []byte) error {
	if len(b) < entryFixed || b[0] != entryVersion && (b[0] != 2 || len(b) < entryFixed+entryMore) {
		return fmt.Errorf("%w: %d bytes", errEntry, len(b))
	}
	kind, cause, scope, bits, family := Kind(b[1]), Cause(b[2]), Scope(b[3]), int(b[4]), b[5]
	no, nr := int(b[6]), int(binary.BigEndian.Uint16(b[7:]))
	text, nt, epoch := b[entryFixed:], 0, uint64(0)
	if b[0] == 2 {
		epoch, nt, text = binary.BigEndian.Uint64(text), int(text[8]), text[entryMore:]
		if epoch == 0 && nt == 0 {
			return fmt.Errorf("%w: version", errEntry)
		}
	}
	if len(text) != no+nr+nt || nr > maxReason {
		return fmt.Errorf("%w: lengths do not add up", errEntry)
	}
	a := netip.AddrFrom16([16]byte(b[9:25]))
	if family == 4 {
		a = a.Unmap()
	}
	var p netip.Prefix
	switch {
	case family == 0:
		if bits != 0 || a != netip.IPv6Unspecified() {
			return fmt.Errorf("%w: prefix", errEntry)
		}
	case (family == 4) != a.Is4() || family != 4 && family != 6:
		return fmt.Errorf("%w: family", errEntry)
	default:
		var err error
		if p, err = a.Prefix(bits); err != nil || p.Addr() != a {
			return fmt.Errorf("%w: prefix", errEntry)
		}
	}
	n := Entry{
		Origin: string(text[:no]), Prefix: p, Kind: kind, Cause: cause, Scope: scope, Epoch: epoch,
		Stamp: Stamp(binary.BigEndian.Uint64(b[25:])), Seq: binary.BigEndian.Uint64(b[33:]),
		Since: time32(binary.BigEndian.Uint32(b[41:])), Until: time32(binary.BigEndian.Uint32(b[45:])),
		Hits: binary.BigEndian.Uint32(b[49:]), Reason: string(text[no : no+nr]), Target: string(text[no+nr:]),
	}
	if err := n.check(); err != nil {
		return err
	}
	*e = n
	return nil
}

// limit bounds the life of an automatic block and the hold of a clear by the stamp, in the same whole second on every
// node.
func (e *Entry) limit() {
	most := MaxAutomatic
	if e.Kind == Clear {
		most = MaxHold
	} else if !e.Automatic() {
		return
	}
	if end := time32(unix32(e.Stamp.Time().Add(most))); e.Until.After(end) {
		e.Until = end
	}
}

// check refuses entries that no node may make, wherever they come from.
func (e *Entry) check() error {
	switch {
	case e.Kind < Block || e.Kind > OriginClear:
		return fmt.Errorf("%w: kind %d", errEntry, e.Kind)
	case (e.Kind == OriginClear) != (e.Target != "") || len(e.Target) > 255 || e.Kind == OriginClear && e.Prefix.IsValid():
		return fmt.Errorf("%w: an origin clear has a target and no prefix, and nothing else has a target", errEntry)
	case e.Cause > Manual:
		return fmt.Errorf("%w: cause %d", errEntry, e.Cause)
	case e.Kind == Block && (e.Cause == NoCause || e.Scope != ScopeMX && e.Scope != ScopeAll):
		return fmt.Errorf("%w: a block needs a cause and a scope", errEntry)
	case e.Kind == Block && e.Automatic() && e.Until.IsZero():
		return fmt.Errorf("%w: an automatic block needs an end", errEntry)
	case e.Kind == Clear && e.Until.IsZero():
		return fmt.Errorf("%w: a clear needs an end of its hold", errEntry)
	case e.Local && (!e.Automatic() || e.Seq != 0):
		return fmt.Errorf("%w: only an automatic block without a number can be local", errEntry)
	case len(e.Reason) > maxReason:
		return fmt.Errorf("%w: the reason has %d bytes, at most %d fit", errEntry, len(e.Reason), maxReason)
	case e.Origin == "" || len(e.Origin) > 255:
		return fmt.Errorf("%w: origin", errEntry)
	case e.Kind == OriginClear:
		return nil
	}
	return checkWidth(e.Prefix, e.Automatic())
}
