package maillog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// pending remembers which source a queue id belongs to, from the first accepted recipient to the moment the message
// is in the queue, or which source a session has. It is a ring in the order of arrival with an index. The ring is as long as
// what waits needs it to be, up to max; from there on a new entry takes the place of the oldest.
type pending struct {
	max   int
	ring  []waiting // made at the first use
	index []uint32  // ring position + 1, open addressing, 0 is free
	head  int       // where the next one goes
	live  int       // how many there are
	age   int64     // seconds
	last  int64     // the newest time seen, seconds since 1970
}

// firstRing is how long the ring is at first: what a quiet server has waiting fits into a cache.
const firstRing = 256

type waiting struct {
	key  uint64 // 0 is free
	addr [16]byte
	at   int64 // seconds since 1970
	sub  bool  // came in on a submission service; in the table refused: one of the recipients is a trap
	// quiet: a trap among its recipients is no hit, see hush.
	quiet bool
	alone bool // it has one recipient
}

func (t *pending) init(n int, age int64) { t.max, t.age = n, max(1, age) }

// size makes a ring of n with what is there in the order of arrival, or, if it has that length, moves it together in
// place.
func (t *pending) size(n int) {
	old, from := t.ring, t.head
	if n != len(old) {
		slots := 4
		for slots < 2*n {
			slots *= 2
		}
		t.ring, t.index, t.head = make([]waiting, n), make([]uint32, slots), 0
	} else {
		clear(t.index)
	}
	for i := range old {
		w := old[(from+i)%len(old)]
		if w.key == 0 {
			continue
		}
		old[(from+i)%len(old)] = waiting{}
		t.ring[t.head] = w
		slot, _ := t.find(w.key)
		t.index[slot] = uint32(t.head + 1)
		t.next()
	}
}

func (t *pending) next() {
	if t.head++; t.head == len(t.ring) {
		t.head = 0
	}
}

func (t *pending) find(key uint64) (slot int, ok bool) {
	if t.index == nil {
		return 0, false
	}
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
	if t.index == nil {
		t.size(min(t.max, firstRing))
	}
	t.last = max(t.last, at)
	if i, ok := t.find(key); ok { // the queue id is used again: the old message never came
		t.drop(i)
	}
	if t.ring[t.head].key != 0 { // it waits still
		// At least half of the ring is free after this, so that it does not come often.
		switch {
		case t.live <= len(t.ring)/2:
			t.size(len(t.ring))
		case len(t.ring) < t.max:
			t.size(min(t.max, 2*len(t.ring)))
		}
	}
	w := &t.ring[t.head]
	if w.key != 0 {
		i, _ := t.find(w.key)
		t.drop(i)
	}
	*w = waiting{key: key, addr: a.As16(), at: at, sub: sub}
	i, _ := t.find(key)
	t.index[i] = uint32(t.head + 1)
	t.live++
	t.next()
}

// entry is that of a key, nil if there is none.
func (t *pending) entry(key uint64) *waiting {
	if i, ok := t.find(key); ok {
		return &t.ring[t.index[i]-1]
	}
	return nil
}

func (t *pending) remove(key uint64) {
	if i, ok := t.find(key); ok {
		t.drop(i)
	}
}

func (t *pending) take(key uint64, now int64) (w waiting, ok bool) {
	i, ok := t.find(key)
	if !ok {
		return w, false
	}
	w = t.ring[t.index[i]-1]
	t.drop(i)
	return w, now-w.at <= t.age
}

// look is take that leaves the entry there.
func (t *pending) look(key uint64, now int64) *waiting {
	i, ok := t.find(key)
	if !ok {
		return nil
	}
	w := &t.ring[t.index[i]-1]
	if now-w.at > t.age {
		t.drop(i)
		return nil
	}
	return w
}

// number is what a table of numbers holds in place of an address. With the mark of a trap the address is never 0.
func (w *waiting) number() int { return int(binary.LittleEndian.Uint32(w.addr[:])) }

// who is the hash that is kept beside a number.
func (w *waiting) who() uint64 { return binary.LittleEndian.Uint64(w.addr[8:]) }

func (t *pending) addNumber(key uint64, n int, who uint64, trap bool, at int64) {
	var a [16]byte
	binary.LittleEndian.PutUint32(a[:], uint32(min(n, 1e6)))
	a[4] = 1
	binary.LittleEndian.PutUint64(a[8:], who)
	t.add(key, netip.AddrFrom16(a), at, trap)
}

// addNumbers and so on are for a table of two numbers.
func (t *pending) addNumbers(key uint64, n int, m uint32, at int64) {
	var w waiting
	w.setNumbers(n, m)
	t.add(key, netip.AddrFrom16(w.addr), at, false)
}

func (w *waiting) numbers() (int, uint32) {
	return w.number(), binary.LittleEndian.Uint32(w.addr[4:])
}

func (w *waiting) setNumbers(n int, m uint32) {
	binary.LittleEndian.PutUint32(w.addr[:], uint32(min(n, 1e6)))
	binary.LittleEndian.PutUint32(w.addr[4:], m)
}

func (w *waiting) source() netip.Addr { return netip.AddrFrom16(w.addr).Unmap() }

// drop frees slot i of the index and what it points to, and moves later entries of the run up.
func (t *pending) drop(i int) {
	t.ring[t.index[i]-1] = waiting{}
	t.live--
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

// The bytes of Pending: "mxq" and the version, a check of the seed (8), the count (4), then per entry, table by table and
// the oldest first: key (8), address (16), seconds since 1970 (8), flags (1). Little endian. The flags are 1 for
// submission, 128 for quiet, 64 for alone, and twice the number of the table: 0 messages of Postfix, 1 sessions of OpenSMTPD, 2 messages
// of Sendmail, whose address is the number of recipients refused, 3 accepted messages whose recipients are still to come,
// 4 refusals of Exim, whose address is how often which log has them. What follows the entries is told in state.go.
// Version 1 had table 0 only, version 2 the first three and nothing behind them; version 3 told less of logins, and of it
// only the entries are read; version 4 knew no alone.
const (
	pendingMagic = "mxq\x05"
	pendingQuiet = 0x80
	pendingAlone = 0x40
	pendingFlags = pendingQuiet | pendingAlone
	pendingHead  = len(pendingMagic) + 8 + 4
	pendingEntry = 8 + 16 + 8 + 1
)

// transitStored is for how many seconds a message on its way is worth storing. Sendmail and Courier do not say when one has
// reached all of its recipients, and half an hour of a busy server's would be megabytes, every second.
const transitStored = 60

var errPending = errors.New("not a table of pending queue ids")

func (p *Parser) tables() [5]*pending {
	return [5]*pending{&p.pending, &p.sessions, &p.refused, &p.transit, &p.copies}
}

// Pending returns what a later line may have to do with, for storing together with the positions in the logs: accepted
// recipients whose message has not come yet, open sessions of OpenSMTPD, recipients refused by Sendmail, messages on their
// way to their recipients (of the last minute), failed logins and refusals that have counted, the last line of each log. It
// leaves out what is too old. A server at work has a few dozen of the first, 33 bytes each; sessions that never send a
// message stay in it for PendingAge.
func (p *Parser) Pending() []byte {
	b := make([]byte, pendingHead, 1024)
	copy(b, pendingMagic)
	binary.LittleEndian.PutUint64(b[4:], p.seedCheck())
	count := uint32(0)
	for n, t := range p.tables() {
		for i := range t.ring {
			w := &t.ring[(t.head+i)%len(t.ring)]
			if w.key == 0 || t.last-w.at > t.age || t == &p.transit && t.last-w.at > transitStored {
				continue
			}
			b = binary.LittleEndian.AppendUint64(b, w.key)
			b = append(b, w.addr[:]...)
			b = binary.LittleEndian.AppendUint64(b, uint64(w.at))
			flags := byte(n) << 1
			if w.sub {
				flags |= 1
			}
			if w.quiet {
				flags |= pendingQuiet
			}
			if w.alone {
				flags |= pendingAlone
			}
			b = append(b, flags)
			count++
		}
	}
	binary.LittleEndian.PutUint32(b[12:], count)
	return p.appendState(b)
}

// Restore replaces what the Parser remembers by what Pending made. Damaged bytes, or ones made under another seed, are
// an error and change nothing: then the messages that were under way bring no credit, the open sessions no events, and
// a failed login of the last minutes may count twice, and that is all.
func (p *Parser) Restore(b []byte) error {
	if len(b) < pendingHead {
		return errPending
	}
	tables := p.tables()
	known := [...]byte{0, 1, 3, byte(len(tables)), byte(len(tables)), byte(len(tables))}
	if string(b[:3]) != pendingMagic[:3] || b[3] == 0 || int(b[3]) >= len(known) {
		return errPending
	}
	version := b[3]
	if binary.LittleEndian.Uint64(b[4:]) != p.seedCheck() {
		return fmt.Errorf("%w of this host: the seed is another", errPending)
	}
	n := uint64(binary.LittleEndian.Uint32(b[12:]))
	b = b[pendingHead:]
	size := n * uint64(pendingEntry)
	if uint64(len(b)) < size || version < 3 && uint64(len(b)) != size {
		return fmt.Errorf("%w: %d bytes for %d entries", errPending, len(b), n)
	}
	var more state
	if version >= 4 {
		var ok bool
		if more, ok = readState(b[size:]); !ok {
			return fmt.Errorf("%w: damaged behind its entries", errPending)
		}
	}
	b = b[:size]
	var sizes [len(tables)]int
	for e := b; len(e) > 0; e = e[pendingEntry:] {
		a, table := netip.AddrFrom16([16]byte(e[8:24])).Unmap(), e[32]&^pendingFlags>>1
		if binary.LittleEndian.Uint64(e) == 0 || a.IsUnspecified() || table >= known[version] || int64(binary.LittleEndian.Uint64(e[24:])) < 0 {
			return fmt.Errorf("%w: impossible entry", errPending)
		}
		sizes[table]++
	}
	for _, t := range tables {
		clear(t.ring)
		clear(t.index)
		t.head, t.live, t.last = 0, 0, 0
	}
	for e := b; len(e) > 0; e = e[pendingEntry:] {
		i := e[32] &^ pendingFlags >> 1
		if sizes[i]--; sizes[i] >= tables[i].max { // a smaller table than the one that was saved: the newest stay
			continue
		}
		key := binary.LittleEndian.Uint64(e)
		tables[i].add(key, netip.AddrFrom16([16]byte(e[8:24])), int64(binary.LittleEndian.Uint64(e[24:])), e[32]&1 == 1)
		if e[32]&pendingQuiet != 0 {
			p.hush(tables[i], key)
		}
		if w := tables[i].entry(key); w != nil {
			w.alone = e[32]&pendingAlone != 0
		}
	}
	p.restoreState(&more)
	return nil
}

func (p *Parser) seedCheck() uint64 { return stir(p.seed + 0x6d787368) }
