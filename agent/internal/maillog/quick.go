package maillog

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// This file is the way of nearly all lines: what it cannot read goes the plain way (header.split, dotted, skipEcho) and it
// never reads anything in another way than that. It looks at eight bytes at a time, because most of the time that a line takes is
// spent on a processor that guesses wrong when a word ends.

const ones, highs = 0x0101010101010101, 0x8080808080808080

func load8(b []byte, at int) uint64 { return binary.LittleEndian.Uint64(b[at : at+8 : len(b)]) }
func load4(b []byte, at int) uint32 { return binary.LittleEndian.Uint32(b[at : at+4 : len(b)]) }
func load5(b []byte, at int) uint64 { return uint64(b[at]) | uint64(load4(b, at+1))<<8 }

// zeros has the high bit of each byte that is zero, and maybe those of bytes above the lowest one that is.
func zeros(w uint64) uint64 { return (w - ones) &^ w & highs }

// others has the high bit of each byte that is no digit.
func others(w uint64) uint64 {
	w ^= '0' * ones
	return (w&^highs + (0x80-10)*ones | w) & highs
}

// notAlnum and notHost have the high bit of each byte that is no aAlnum, no aHost.
func notAlnum(w uint64) uint64 {
	x := w &^ highs
	l := x | 0x20*ones
	letter := (l + (0x80-'a')*ones) &^ (l + (0x80-'z'-1)*ones)
	digit := (x + (0x80-'0')*ones) &^ (x + (0x80-'9'-1)*ones)
	return ^((letter | digit) &^ w) & highs
}

func notHost(w uint64) uint64 {
	x := w &^ highs
	l := x | 0x20*ones
	letter := (l + (0x80-'a')*ones) &^ (l + (0x80-'z'-1)*ones)
	digit := (x + (0x80-'-')*ones) &^ (x + (0x80-'9'-1)*ones) & (x ^ '/'*ones + ^uint64(highs)) // and - and .
	line := ^(x ^ '_'*ones + ^uint64(highs))
	return ^((letter | digit | line) &^ w) & highs
}

// hostRun is run(b, aHost, most).
func hostRun(b []byte, most int) int {
	b = b[:min(len(b), most)]
	n := 0
	for ; n+8 <= len(b); n += 8 {
		if z := notHost(load8(b, n)); z != 0 {
			return n + bits.TrailingZeros64(z)/8
		}
	}
	for n < len(b) && isHost(b[n]) {
		n++
	}
	return n
}

// alnumRun is run(b, anAlnum, most).
func alnumRun(b []byte, most int) int {
	b = b[:min(len(b), most)]
	n := 0
	for ; n+8 <= len(b); n += 8 {
		if z := notAlnum(load8(b, n)); z != 0 {
			return n + bits.TrailingZeros64(z)/8
		}
	}
	for n < len(b) && isAlnum(b[n]) {
		n++
	}
	return n
}

// quick is split for lines with a stamp of RFC 3164 or 3339, a host and a tag that were seen of late and a
// process id, or none, and for most of Exim's own. It says no to all that needs a second look.
func (p *Parser) quick(b []byte, h *header) bool {
	if len(b) < 44 {
		return false
	}
	if b[len(b)-1] == '\n' {
		b = b[:len(b)-1]
	}
	if end := b[len(b)-1]; end == '\r' || end == '\n' {
		return false
	}
	const (
		blanks         = ' ' * ones
		bsd0, bsd0mask = ' '<<24 | ' '<<48, 0xff<<24 | 0xff<<48
		bsd1, bsd1mask = ':'<<8 | ':'<<32 | ' '<<56, 0xff<<8 | 0xff<<32 | 0xff<<56
	)
	n := 15
	w, v := load8(b, 0), load8(b, 8)
	if b[10] == ' ' && b[4] == '-' {
		return p.quickExim(b, h)
	}
	switch {
	case w&bsd0mask == bsd0 && v&bsd1mask == bsd1 && isUpper(byte(w)):
		h.kind = stampBSD
		if s := &p.stamps; w == s.words[0] && v == s.words[1] && h.ref == s.ref {
			h.at = s.at
		}
	case byte(w>>32) == '-':
		// 2026-03-02T10:00:00[.ffffff](Z|+hh:mm)
		h.kind = stampISO
		if h.at, n = p.isoStamps.micro(b); n > 0 {
			break
		}
		if n = 16 + blank(b[16:40]); n == 40 || !isDigit(byte(w)) || zeros(w^blanks)|zeros(v^blanks) != 0 {
			return false
		}
	default:
		return false
	}
	host := n + 1
	if host+8 > len(b) {
		return false
	}
	c := p.hosts.at(load8(b, host))
	word := host + c.n + 1
	if !c.plain || word+24 > len(b) {
		return false
	}
	if c.n < 16 { // with the blank behind it
		if (load8(b, host)^c.words[0])&c.masks[0]|(load8(b, host+8)^c.words[1])&c.masks[1] != 0 {
			return false
		}
	} else if b[word-1] != ' ' || string(b[host:word-1]) != string(c.text[:c.n]) {
		return false
	}
	end := word // of "tag[pid]:"
	for {
		z := zeros(load8(b, end) ^ blanks)
		if z != 0 {
			end += bits.TrailingZeros64(z) / 8
			break
		}
		if end += 8; end+8 > len(b) {
			return false
		}
	}
	if end+8 > len(b) || b[end-1] != ':' {
		return false
	}
	if m := load8(b, end); m == messageWord || byte(m>>8) == ' ' || byte(m>>8) == '[' {
		return false
	}
	tag := end - 1
	if b[end-2] == ']' {
		w = load8(b, end-10)
		tag = end - 3 - bits.LeadingZeros64(others(w))/8
		if tag < end-10 || tag == end-3 || b[tag] != '[' {
			return false
		}
		h.pid, h.process = b[tag+1:end-2], uint8(w*0x9fb21c651e98df25>>56)
	}
	if tag-word < 3 {
		return false
	}
	last := tagEnd(load8(b, tag-8), tag-word)
	x := p.tags.at(last, tag-word)
	if !x.plain || !x.is(b, word, tag, last) {
		return false
	}
	h.stamp, h.tag, h.msg, h.role, h.count, h.seen, h.from = b[:n], b[word:tag], b[end+1:], x.role, 1, true, c.sum
	return true
}

// quickExim reads "YYYY-MM-DD HH:MM:SS " and a message that begins as only Exim's do: see eximOpening and eximOwn. What begins
// with a process id has no tag either, so it is Exim's too.
func (p *Parser) quickExim(b []byte, h *header) bool {
	const n = len("YYYY-MM-DD HH:MM:SS")
	l := &p.isoStamps.local
	if load8(b, 0) == l.text[0] && load8(b, 8) == l.text[1] && l.minute.Location() == h.ref.Location() {
		const frame, frameMask = ':' | ' '<<24, 0xff | 0xff<<24
		w := load4(b, 16)
		if w != l.second {
			ten, one := w>>8&0xff-'0', w>>16&0xff-'0'
			if w&frameMask != frame || ten > 5 || one > 9 {
				return false
			}
			l.second, l.at = w, l.minute.Add(time.Duration(ten*10+one)*time.Second)
		}
		h.at = l.at
	} else if b[n] != ' ' || stampLen(b) != n {
		return false
	}
	m := b[n+1:]
	if m[0] == '-' { // a zone
		return false
	}
	if m[0] == '[' {
		m = h.eximPid(m)
	}
	h.opens, h.opened = eximOpening(m)
	if h.opens == opensOther && b[n+1] != '[' && !eximOwn(m) {
		return false
	}
	h.kind, h.stamp, h.mta, h.msg, h.count = stampISO, b[:n], Exim, m, 1
	return true
}

// blank is where the first blank stands, len(b) if nowhere. In what it is asked about that is near.
func blank(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if z := zeros(load8(b, i) ^ ' '*ones); z != 0 {
			return i + bits.TrailingZeros64(z)/8
		}
	}
	for i < len(b) && b[i] != ' ' {
		i++
	}
	return i
}

// Words of eight bytes, as load8 has them.
const (
	messageWord = 'e'<<56 | 'g'<<48 | 'a'<<40 | 's'<<32 | 's'<<24 | 'e'<<16 | 'm'<<8 | ' ' // of "message repeated N times: [ msg]"
	unknownHost = '['<<56 | 'n'<<48 | 'w'<<40 | 'o'<<32 | 'n'<<24 | 'k'<<16 | 'n'<<8 | 'u'
	toWord      = '<'<<32 | '='<<24 | 'o'<<16 | 't'<<8 | ' ' // five of them
	fromWord    = '<'<<56 | '='<<48 | 'm'<<40 | 'o'<<32 | 'r'<<24 | 'f'<<16 | ' '<<8 | ';'
)

// quad reads the dotted quad behind the first byte of b, as dotted does, without a guess at how long each number is. It
// returns where it ends. What it does not read (0) is for dotted to judge.
func quad(b []byte, out *[4]byte) int {
	if len(b) < 9 {
		return 0
	}
	lo, hi := load8(b, 1), uint64(0)
	if len(b) >= 17 {
		hi = load8(b, 9)
	} else {
		hi = load8(b, len(b)-8) >> ((8 * (17 - uint(len(b)))) & 63) &^ -(uint64(17-len(b)) >> 3) // nothing if they are eight
	}
	// A bit for each byte that is no digit, and the first one: four of them end the four numbers.
	const gather = 0x0002040810204081
	ends := others(lo)*gather>>55 | others(hi)*gather>>56<<9
	ends &^= 1
	n0 := bits.TrailingZeros64(ends)
	ends &= ends - 1
	n1 := bits.TrailingZeros64(ends)
	ends &= ends - 1
	n2 := bits.TrailingZeros64(ends)
	ends &= ends - 1
	n3 := bits.TrailingZeros64(ends)
	if n1 < 4 || n3 > 16 || n3 > len(b) || b[n0] != '.' || b[n1] != '.' || b[n2] != '.' {
		return 0
	}
	v0 := number(uint32(lo<<((40-8*uint(n0))&63)), n0)
	v1 := number(load4(b, n1-4), n1-n0)
	v2 := number(load4(b, n2-4), n2-n1)
	v3 := number(load4(b, n3-4), n3-n2)
	if v0|v1|v2|v3 > 255 {
		return 0
	}
	out[0], out[1], out[2], out[3] = byte(v0), byte(v1), byte(v2), byte(v3)
	return n3
}

// six reads the IPv6 text between the first byte of b and a bracket, and returns where that is. What it does not read (0), such
// as addresses with an IPv4 one inside, is for parseAddr to judge.
func six(b []byte) (a netip.Addr, end int) {
	var out [16]byte
	n, gap, i := 0, -1, 1 // bytes written, where "::" stood, position
	for i < len(b) && b[i] != ']' {
		v, start := uint(0), i
		for i < len(b) && digits[b[i]] < 16 {
			v = v<<4 | uint(digits[b[i]])
			i++
		}
		if i == start || i-start > 4 || i == len(b) || n == 16 {
			return a, 0
		}
		out[n], out[n+1] = byte(v>>8), byte(v)
		n += 2
		if b[i] != ':' {
			break
		}
		if i++; i < len(b) && b[i] == ':' && gap < 0 {
			gap = n
			i++
		} else if i < len(b) && b[i] == ']' {
			return a, 0
		}
	}
	if i >= len(b) || b[i] != ']' || (n == 16) != (gap < 0) || out[0]|out[1] == 0 {
		return a, 0
	}
	if gap >= 0 {
		copy(out[16-(n-gap):], out[gap:n])
		clear(out[gap : 16-(n-gap)])
	}
	return netip.AddrFrom16(out), i
}

// digits is what a hexadecimal digit stands for; 16 for all other bytes.
var digits = func() (t [256]uint8) {
	for c := range t {
		if t[c] = 16; isHex(byte(c)) {
			t[c] = uint8(unhex(byte(c)))
		}
	}
	return t
}()

// number is that of n-1 digits at the end of w; more than 255 if they are no number of a dotted quad.
func number(w uint32, n int) uint32 {
	d := w & 0x0f0f0f0f >> ((40 - 8*uint32(n)) & 31) << ((40 - 8*uint32(n)) & 31)
	v := d>>24 + d>>16&15*10 + d>>8&15*100
	if uint(n-2) > 2 || v < smallest[n&7] { // of more digits than it needs
		return 1 << 10
	}
	return v
}

var smallest = [8]uint32{3: 10, 4: 100}

// echo is how long "<what the client sent>: " at the start of b is if nothing in it means anything to skipEcho; else 0.
func echo(b []byte) int {
	if len(b) == 0 || b[0] != '<' {
		return 0
	}
	if i := special(b, 1); i+2 < len(b) && b[i] == '>' && b[i+1] == ':' && b[i+2] == ' ' {
		return i + 3
	}
	return 0
}

// special is where, at or behind i, a byte stands that means something inside brackets: <>"\. It is len(b) if there is none,
// or if it is one of the last seven.
func special(b []byte, i int) int {
	for ; i+8 <= len(b); i += 8 {
		w := load8(b, i)
		// < and > differ in one bit
		if z := zeros((w|2*ones)^'>'*ones) | zeros(w^'"'*ones) | zeros(w^'\\'*ones); z != 0 {
			return i + bits.TrailingZeros64(z)/8
		}
	}
	return len(b)
}

// behind returns what follows the first mark, which ends in <.
func behind(b, mark []byte) ([]byte, bool) {
	n := len(mark)
	for at := n - 1; at < len(b); at++ {
		i := bytes.IndexByte(b[at:], '<')
		if i < 0 {
			return nil, false
		}
		if at += i; string(b[at+1-n:at+1]) == string(mark) {
			return b[at+1:], true
		}
	}
	return nil, false
}

// indexFrom is where "; from=<" stands first, -1 if nowhere.
func indexFrom(b []byte) int {
	for at := 0; ; at++ {
		i := bytes.IndexByte(b[at:], ';')
		if at += i; i < 0 || at+8 > len(b) {
			return -1
		}
		if load8(b, at) == fromWord {
			return at
		}
	}
}

// indexTo is where " to=<" stands first, -1 if nowhere.
func indexTo(b []byte) int {
	for at := 4; at < len(b); at++ {
		i := bytes.IndexByte(b[at:], '<')
		if i < 0 {
			return -1
		}
		if at += i; load5(b, at-4) == toWord {
			return at - 4
		}
	}
	return -1
}

// angle is where < or > stands first, len(b) if nowhere. In what it is asked about they are near.
func angle(b []byte) int {
	i := 0
	for ; i+8 <= len(b); i += 8 {
		if z := zeros((load8(b, i) | 2*ones) ^ '>'*ones); z != 0 {
			return i + bits.TrailingZeros64(z)/8
		}
	}
	for i < len(b) && b[i]|2 != '>' {
		i++
	}
	return i
}

// lastAt is where the last @ of an address is, -1 if there is none.
func lastAt(b []byte) int { return lastByte(b, '@') }

// lastByte is bytes.LastIndexByte.
func lastByte(b []byte, c byte) int {
	i, each := len(b)-8, uint64(c)*ones
	for ; i >= 0; i -= 8 {
		w := load8(b, i) ^ each
		// All zeros of it, and nothing else.
		if z := ^((w&^highs + ^uint64(highs)) | w) & highs; z != 0 {
			return i + 7 - bits.LeadingZeros64(z)/8
		}
	}
	for i += 7; i >= 0 && b[i] != c; i-- {
	}
	return i
}

// last2 is last of a word whose first two bytes do not often stand together.
func last2(b []byte, word string) int {
	n := len(word)
	first, second := uint64(word[0])*ones, uint64(word[1])*ones
	i := len(b) - n // the last place where it may begin
	for i >= 7 {
		// zeros may say too much, never too little.
		z := zeros(load8(b, i-7)^first) & zeros(load8(b, i-6)^second)
		if z == 0 {
			i -= 8
			continue
		}
		i -= bits.LeadingZeros64(z) / 8
		if string(b[i:i+n]) == word {
			return i
		}
		i--
	}
	for ; i >= 0; i-- {
		if b[i] == word[0] && string(b[i:i+n]) == word {
			return i
		}
	}
	return -1
}
