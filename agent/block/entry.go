package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// An Entry is one record of the table: one node's statement about one prefix. (Origin, Prefix, Kind) is its key;
// of two entries with the same key the one with the higher (Stamp, Seq) holds.
type Entry struct {
	Origin string       `json:"origin"`
	Prefix netip.Prefix `json:"prefix"`
	Kind   Kind         `json:"kind"`
	Cause  Cause        `json:"cause,omitzero"`
	Scope  Scope        `json:"scope,omitzero"`
	Since  time.Time    `json:"since"` // whole seconds, rounded down
	// Until is when a block or allow ends (zero: no end); of a clear it is the end of its hold against automatic
	// blocks. Whole seconds, rounded up.
	Until time.Time `json:"until,omitzero"`
	Stamp Stamp     `json:"stamp"`
	Seq   uint64    `json:"seq"`
	Hits  uint32    `json:"hits,omitempty"` // events behind the block
	// Reason is what the person who made a manual entry wrote. It stays on this host.
	Reason string `json:"reason,omitempty"`
}

// Automatic says whether a block was made by evidence, and not by a person.
func (e *Entry) Automatic() bool { return e.Kind == Block && e.Cause != Manual }

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
const (
	entryVersion = 1
	entryFixed   = 7 + 2 + 16 + 8 + 8 + 4 + 4 + 4
)

var errEntry = errors.New("malformed entry")

// MarshalBinary encodes the entry for the state file.
func (e *Entry) MarshalBinary() ([]byte, error) {
	return e.AppendBinary(make([]byte, 0, entryFixed+24))
}

// AppendBinary appends the encoding of MarshalBinary to b.
func (e *Entry) AppendBinary(b []byte) ([]byte, error) {
	if len(e.Origin) > 255 || len(e.Reason) > maxReason || !e.Prefix.IsValid() {
		return b, fmt.Errorf("%w: origin %d bytes, reason %d bytes, prefix %v", errEntry, len(e.Origin), len(e.Reason), e.Prefix)
	}
	family := byte(6)
	if e.Prefix.Addr().Is4() {
		family = 4
	}
	b = append(b, entryVersion, byte(e.Kind), byte(e.Cause), byte(e.Scope), byte(e.Prefix.Bits()), family, byte(len(e.Origin)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Reason)))
	a := e.Prefix.Addr().As16()
	b = append(b, a[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(e.Stamp))
	b = binary.BigEndian.AppendUint64(b, e.Seq)
	b = binary.BigEndian.AppendUint32(b, floor32(e.Since))
	b = binary.BigEndian.AppendUint32(b, unix32(e.Until))
	b = binary.BigEndian.AppendUint32(b, e.Hits)
	b = append(b, e.Origin...)
	return append(b, e.Reason...), nil
}

// UnmarshalBinary decodes what MarshalBinary wrote. Anything else is an error: the file may have been edited.
func (e *Entry) UnmarshalBinary(b []byte) error {
	if len(b) < entryFixed || b[0] != entryVersion {
		return fmt.Errorf("%w: %d bytes", errEntry, len(b))
	}
	kind, cause, scope, bits, family := Kind(b[1]), Cause(b[2]), Scope(b[3]), int(b[4]), b[5]
	no, nr := int(b[6]), int(binary.BigEndian.Uint16(b[7:]))
	if len(b) != entryFixed+no+nr || nr > maxReason {
		return fmt.Errorf("%w: lengths do not add up", errEntry)
	}
	a := netip.AddrFrom16([16]byte(b[9:25]))
	if family == 4 {
		a = a.Unmap()
	}
	if (family == 4) != a.Is4() || family != 4 && family != 6 {
		return fmt.Errorf("%w: family", errEntry)
	}
	p, err := a.Prefix(bits)
	if err != nil || p.Addr() != a {
		return fmt.Errorf("%w: prefix", errEntry)
	}
	n := Entry{
		Origin: string(b[entryFixed : entryFixed+no]), Prefix: p, Kind: kind, Cause: cause, Scope: scope,
		Stamp: Stamp(binary.BigEndian.Uint64(b[25:])), Seq: binary.BigEndian.Uint64(b[33:]),
		Since: time32(binary.BigEndian.Uint32(b[41:])), Until: time32(binary.BigEndian.Uint32(b[45:])),
		Hits: binary.BigEndian.Uint32(b[49:]), Reason: string(b[entryFixed+no:]),
	}
	if err := n.check(); err != nil {
		return err
	}
	*e = n
	return nil
}

// check refuses entries that no node may make, wherever they come from.
func (e *Entry) check() error {
	switch {
	case e.Kind < Block || e.Kind > Disallow:
		return fmt.Errorf("%w: kind %d", errEntry, e.Kind)
	case e.Cause > Manual:
		return fmt.Errorf("%w: cause %d", errEntry, e.Cause)
	case e.Kind == Block && (e.Cause == NoCause || e.Scope != ScopeMX && e.Scope != ScopeAll):
		return fmt.Errorf("%w: a block needs a cause and a scope", errEntry)
	case e.Kind == Block && e.Automatic() && e.Until.IsZero():
		return fmt.Errorf("%w: an automatic block needs an end", errEntry)
	case e.Kind == Clear && e.Until.IsZero():
		return fmt.Errorf("%w: a clear needs an end of its hold", errEntry)
	case len(e.Reason) > maxReason:
		return fmt.Errorf("%w: the reason has %d bytes, at most %d fit", errEntry, len(e.Reason), maxReason)
	case e.Origin == "" || len(e.Origin) > 255:
		return fmt.Errorf("%w: origin", errEntry)
	}
	return checkWidth(e.Prefix, e.Automatic())
}
