package gossip

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
)

// meta is what a member says about itself, carried with its membership (at most 512 bytes):
//
//	version 1, session, uvarint wire min, uvarint wire max, number of keys, 4 bytes for each (the one in use first),
//	length of the agent's version, the version
//
// Bytes after that belong to later agents and are skipped.
type meta struct {
	session session
	wire    Wire
	keys    []KeyID // held; the first is used
	version string  // of the agent
}

const (
	metaVersion = 1
	maxMeta     = 512
	maxKeys     = 2
	maxVersion  = 64
)

var errMeta = errors.New("node meta of no version known here")

// session is made anew by each Open. A good-bye names it, so that one that was recorded cannot be used again.
type session [8]byte

// Wire is a range of versions of the replication protocol.
type Wire struct{ Min, Max uint32 }

// common is the highest version that both speak; 0 is none.
func (w Wire) common(o Wire) uint32 {
	v := min(w.Max, o.Max)
	if v < max(w.Min, o.Min) {
		return 0
	}
	return v
}

// KeyID names a key without telling it: the first 4 bytes of a hash.
type KeyID [4]byte

func (k KeyID) String() string { return hex.EncodeToString(k[:]) }

func (m meta) append(b []byte) []byte {
	b = append(b, metaVersion)
	b = append(b, m.session[:]...)
	b = binary.AppendUvarint(b, uint64(m.wire.Min))
	b = binary.AppendUvarint(b, uint64(m.wire.Max))
	b = append(b, byte(len(m.keys)))
	for _, k := range m.keys {
		b = append(b, k[:]...)
	}
	v := m.version[:min(len(m.version), maxVersion)]
	b = append(b, byte(len(v)))
	return append(b, v...)
}

func parseMeta(b []byte) (m meta, err error) {
	if len(b) < 1+len(m.session) || len(b) > maxMeta || b[0] != metaVersion {
		return m, errMeta
	}
	b = b[1+copy(m.session[:], b[1:]):]
	for _, to := range []*uint32{&m.wire.Min, &m.wire.Max} {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > 1<<16 {
			return meta{}, errMeta
		}
		*to, b = uint32(v), b[n:]
	}
	if m.wire.Min == 0 || m.wire.Min > m.wire.Max || len(b) == 0 {
		return meta{}, errMeta
	}
	n := int(b[0])
	b = b[1:]
	if n > maxKeys || len(b) < n*len(KeyID{})+1 {
		return meta{}, errMeta
	}
	for range n {
		k := KeyID(b[:len(KeyID{})])
		if slices.Contains(m.keys, k) {
			return meta{}, errMeta
		}
		m.keys, b = append(m.keys, k), b[len(k):]
	}
	n = int(b[0])
	b = b[1:]
	if n > maxVersion || len(b) < n {
		return meta{}, errMeta
	}
	for _, c := range b[:n] {
		if c < ' ' || c > '~' {
			return meta{}, errMeta
		}
	}
	m.version = string(b[:n])
	return m, nil
}
