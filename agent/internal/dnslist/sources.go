package dnslist

import (
	"encoding/binary"
	"net/netip"
)

// sources remembers the sources that were asked about, the least recently asked go first. The log path goes through it for every
// event, so an entry costs no allocation of its own. Its user holds the lock.
type sources struct {
	max    int
	m      map[sourceKey]uint32 // slot
	chunks []*[sourceChunk]source
	used   uint32 // slots; slot 0 is the head of the list
}

const sourceChunk = 1024

// sourceKey is an IPv4 address as IPv4-mapped, or an IPv6 /64: lists list no less, and an attacker has 2^64 addresses there.
type sourceKey struct{ hi, lo uint64 }

// source is what is remembered of one.
type source struct {
	key        sourceKey
	until      int64    // Unix seconds
	found      *Finding // nil: nothing yet
	prev, next uint32   // newer, older
	epoch      uint32
	rejects    uint16
	pending    bool
}

func keyOf(a netip.Addr) sourceKey {
	b := a.As16()
	k := sourceKey{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
	if !a.Is4() {
		k.lo = 0 // no IPv4-mapped address has that
	}
	return k
}

func newSources(max int) sources {
	s := sources{max: max, m: make(map[sourceKey]uint32, max+1), used: 1}
	s.chunks = append(s.chunks, new([sourceChunk]source))
	return s
}

func (s *sources) at(slot uint32) *source { return &s.chunks[slot/sourceChunk][slot%sourceChunk] }

func (s *sources) get(k sourceKey) *source {
	if slot, ok := s.m[k]; ok {
		return s.at(slot)
	}
	return nil
}

// add makes an entry, in place of the oldest one if all are taken.
func (s *sources) add(k sourceKey) *source {
	var slot uint32
	if len(s.m) >= s.max {
		slot = s.at(0).prev
		old := s.at(slot)
		delete(s.m, old.key)
		s.unlink(old)
	} else {
		slot = s.used
		s.used++
		if int(slot/sourceChunk) == len(s.chunks) {
			s.chunks = append(s.chunks, new([sourceChunk]source))
		}
	}
	s.m[k] = slot
	x := s.at(slot)
	*x = source{key: k}
	s.link(x, slot)
	return x
}

// touch makes an entry the newest.
func (s *sources) touch(x *source) {
	slot := s.m[x.key]
	s.unlink(x)
	s.link(x, slot)
}

func (s *sources) link(x *source, slot uint32) {
	head := s.at(0)
	x.prev, x.next = 0, head.next
	s.at(head.next).prev = slot
	head.next = slot
}

func (s *sources) unlink(x *source) {
	s.at(x.prev).next, s.at(x.next).prev = x.next, x.prev
}
