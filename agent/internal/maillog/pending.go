package maillog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// pending remembers which source a queue id belongs to, from the first accepted recipient to the moment the message
// is in the queue. It is a ring in the order of arrival with an index: a new entry takes the place of the oldest, so
// the table holds what is still waiting of the last len(ring) accepted recipients.
type pending struct {
	ring  []waiting
	index []uint32 // ring position + 1, open addressing, 0 is free
	head  int      // where the next one goes
	age   int64    // seconds
	last  int64    // the newest time seen, seconds since 1970
}

type waiting struct {
	key  uint64 // 0 is free
	addr [16]byte
	at   int64 // seconds since 1970
	sub  bool
}

func (t *pending) init(n int, age int64) {
	slots := 4
	for slots < 2*n {
		slots *= 2
	}
	t.ring, t.index, t.age = make([]waiting, n), make([]uint32, slots), max(1, age)
}

func (t *pending) find(key uint64) (slot int, ok bool) {
	mask := len(t.index) - 1
	for i := int(key) & mask; ; i = (i + 1) & mask {
		n := t.index[i]
		if n == 0 {
			return i, false
		}
		if t.ring[n-1].key == key {
			return i, true
		}
	}
}

func (t *pending) add(key uint64, a netip.Addr, at int64, sub bool) {
	t.last = max(t.last, at)
	if i, ok := t.find(key); ok { // the queue id is used again: the old message never came
		t.drop(i)
	}
	w := &t.ring[t.head]
	if w.key != 0 {
		i, _ := t.find(w.key)
		t.drop(i)
	}
	*w = waiting{key: key, addr: a.As16(), at: at, sub: sub}
	i, _ := t.find(key)
	t.index[i] = uint32(t.head + 1)
	if t.head++; t.head == len(t.ring) {
		t.head = 0
	}
}

func (t *pending) remove(key uint64) {
	if i, ok := t.find(key); ok {
		t.drop(i)
	}
}

func (t *pending) take(key uint64, now int64) (netip.Addr, bool, bool) {
	i, ok := t.find(key)
	if !ok {
		return netip.Addr{}, false, false
	}
	w := t.ring[t.index[i]-1]
	t.drop(i)
	if now-w.at > t.age {
		return netip.Addr{}, false, false
	}
	return netip.AddrFrom16(w.addr).Unmap(), w.sub, true
}

// drop frees slot i of the index and what it points to, and moves later entries of the run up.
func (t *pending) drop(i int) {
	t.ring[t.index[i]-1] = waiting{}
	mask := len(t.index) - 1
	for j := (i + 1) & mask; t.index[j] != 0; j = (j + 1) & mask {
		home := int(t.ring[t.index[j]-1].key) & mask
		if (j-home)&mask >= (j-i)&mask {
			t.index[i] = t.index[j]
			i = j
		}
	}
	t.index[i] = 0
}

// The bytes of Pending: "mxq" and the version, a check of the seed (8), the count (4), then per entry, oldest first:
// key (8), address (16), seconds since 1970 (8), flags (1). Little endian.
const (
	pendingMagic = "mxq\x01"
	pendingHead  = len(pendingMagic) + 8 + 4
	pendingEntry = 8 + 16 + 8 + 1
)

var errPending = errors.New("not a table of pending queue ids")

// Pending returns the accepted recipients whose message has not come yet, for storing together with the position in
// the log. It leaves out what is older than PendingAge. A server at work has a few dozen, 33 bytes each; sessions that
// never send a message stay in it for PendingAge.
func (p *Parser) Pending() []byte {
	t := &p.pending
	b := make([]byte, pendingHead, 1024)
	copy(b, pendingMagic)
	binary.LittleEndian.PutUint64(b[4:], p.seedCheck())
	count := uint32(0)
	for i := range t.ring {
		w := &t.ring[(t.head+i)%len(t.ring)]
		if w.key == 0 || t.last-w.at > t.age {
			continue
		}
		b = binary.LittleEndian.AppendUint64(b, w.key)
		b = append(b, w.addr[:]...)
		b = binary.LittleEndian.AppendUint64(b, uint64(w.at))
		sub := byte(0)
		if w.sub {
			sub = 1
		}
		b = append(b, sub)
		count++
	}
	binary.LittleEndian.PutUint32(b[12:], count)
	return b
}

// Restore replaces the table by one that Pending made. A damaged one, or one made under another seed, is an error and
// changes nothing: then the messages that were under way bring no credit, and that is all.
func (p *Parser) Restore(b []byte) error {
	if len(b) < pendingHead || string(b[:4]) != pendingMagic {
		return errPending
	}
	if binary.LittleEndian.Uint64(b[4:]) != p.seedCheck() {
		return fmt.Errorf("%w of this host: the seed is another", errPending)
	}
	n := uint64(binary.LittleEndian.Uint32(b[12:]))
	b = b[pendingHead:]
	if uint64(len(b)) != n*uint64(pendingEntry) {
		return fmt.Errorf("%w: %d bytes for %d entries", errPending, len(b), n)
	}
	for e := b; len(e) > 0; e = e[pendingEntry:] {
		a := netip.AddrFrom16([16]byte(e[8:24])).Unmap()
		if binary.LittleEndian.Uint64(e) == 0 || a.IsUnspecified() || e[32] > 1 || int64(binary.LittleEndian.Uint64(e[24:])) < 0 {
			return fmt.Errorf("%w: impossible entry", errPending)
		}
	}
	t := &p.pending
	clear(t.ring)
	clear(t.index)
	t.head, t.last = 0, 0
	if skip := int(n) - len(t.ring); skip > 0 { // a smaller table than the one that was saved: the newest stay
		b = b[skip*pendingEntry:]
	}
	for e := b; len(e) > 0; e = e[pendingEntry:] {
		t.add(binary.LittleEndian.Uint64(e), netip.AddrFrom16([16]byte(e[8:24])), int64(binary.LittleEndian.Uint64(e[24:])), e[32] == 1)
	}
	return nil
}

func (p *Parser) seedCheck() uint64 { return stir(p.seed + 0x6d787368) }
