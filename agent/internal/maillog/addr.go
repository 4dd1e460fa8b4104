package maillog

import "net/netip"

// parseAddr reads the text of an IP address strictly: no leading zeros, no names, nothing left over. IPv4-mapped IPv6
// is unmapped, a zone id dropped, and the unspecified addresses refused: they are nobody's.
func parseAddr(b []byte) (netip.Addr, bool) {
	// 45 bytes hold the longest IPv6 text; a zone id may be as long again.
	if len(b) < 2 || len(b) > 96 {
		return netip.Addr{}, false
	}
	var v4 [4]byte
	if parse4(b, &v4) {
		a := netip.AddrFrom4(v4)
		return a, !a.IsUnspecified()
	}
	colon := false
	for i, c := range b {
		if c == ':' {
			colon = true
			continue
		}
		if c == '%' && colon && i+1 < len(b) {
			b = b[:i]
			break
		}
		if !isHex(c) && c != '.' {
			return netip.Addr{}, false // "unknown" and the like, without making an error value
		}
	}
	if !colon || len(b) > 45 {
		return netip.Addr{}, false
	}
	a, ok := parse6(b)
	if !ok {
		return netip.Addr{}, false
	}
	a = a.Unmap()
	return a, !a.IsUnspecified()
}

// addrIn is parseAddr(b[at:at+n]) for who has more of the line.
func addrIn(b []byte, at, n int) (netip.Addr, bool) {
	var v4 [4]byte
	if at > 0 && quad(b[at-1:], &v4) == n+1 && v4 != [4]byte{} {
		return netip.AddrFrom4(v4), true
	}
	return parseAddr(b[at : at+n])
}

// dotted reads a dotted quad at the start of b and returns how long it is; 0 if there is none. What follows is for the
// caller to judge.
func dotted(b []byte, out *[4]byte) int {
	n, part := 0, 0
	for n < len(b) {
		v := uint(b[n] - '0')
		if v > 9 {
			return 0
		}
		n++
		if n < len(b) && b[n]-'0' < 10 {
			if v == 0 {
				return 0 // leading zero: octal to some, decimal to others
			}
			v = v*10 + uint(b[n]-'0')
			n++
			if n < len(b) && b[n]-'0' < 10 {
				if v = v*10 + uint(b[n]-'0'); v > 255 {
					return 0
				}
				n++
			}
		}
		out[part&3] = byte(v)
		if part++; part == 4 {
			if n < len(b) && b[n]-'0' < 10 {
				return 0
			}
			return n
		}
		if n == len(b) || b[n] != '.' {
			return 0
		}
		n++
	}
	return 0
}

func parse4(b []byte, out *[4]byte) bool { return len(b) > 0 && dotted(b, out) == len(b) }

// parse6 reads RFC 4291 text: up to eight groups of one to four hex digits, one "::", a dotted quad at the end.
// netip.ParseAddr would do, but it takes a string and makes an error value, and both allocate.
func parse6(b []byte) (netip.Addr, bool) {
	var out [16]byte
	n, gap, i := 0, -1, 0 // bytes written, where "::" stood, position
	if len(b) >= 2 && b[0] == ':' {
		if b[1] != ':' {
			return netip.Addr{}, false
		}
		gap, i = 0, 2
	}
	for i < len(b) {
		if n == 16 {
			return netip.Addr{}, false
		}
		start, v := i, 0
		for i < len(b) && isHex(b[i]) && i-start < 5 {
			v = v<<4 | unhex(b[i])
			i++
		}
		if i < len(b) && b[i] == '.' {
			var v4 [4]byte
			if n > 12 || !parse4(b[start:], &v4) {
				return netip.Addr{}, false
			}
			n += copy(out[n:], v4[:])
			break
		}
		if i == start || i-start > 4 {
			return netip.Addr{}, false
		}
		out[n], out[n+1] = byte(v>>8), byte(v)
		n += 2
		if i == len(b) {
			break
		}
		if b[i] != ':' || i+1 == len(b) {
			return netip.Addr{}, false
		}
		i++
		if b[i] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap = n
			i++
		}
	}
	if gap < 0 {
		return netip.AddrFrom16(out), n == 16
	}
	if n == 16 {
		return netip.Addr{}, false // "::" must stand for at least one group
	}
	tail := n - gap
	copy(out[16-tail:], out[gap:n])
	clear(out[gap : 16-tail])
	return netip.AddrFrom16(out), true
}

// client reads HOST[IP] or HOST[IP]:PORT at the start of b, which is how Postfix writes its peer. HOST has passed
// Postfix's hostname check, so it has no byte that could imitate the brackets; any other byte there means that this is
// not the slot we took it for. rest is what follows.
func client(b []byte) (a netip.Addr, rest []byte, ok bool) {
	if len(b) > 8 && load8(b, 0) == unknownHost {
		return bracketed(b[7:])
	}
	i := hostRun(b, 256)
	if i == 0 || i > 255 {
		return a, nil, false
	}
	return bracketed(b[i:])
}

// bracketed reads [IP] or [IP]:PORT at the start of b, which is how postscreen writes its peer.
func bracketed(b []byte) (a netip.Addr, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '[' {
		return a, nil, false
	}
	var v4 [4]byte
	i := quad(b, &v4)
	if i == 0 {
		if a, i = six(b); i == 0 {
			i = 1 + dotted(b[1:], &v4)
		}
	}
	switch {
	case a.IsValid():
	case i > 1 && i < len(b) && b[i] == ']':
		if a = netip.AddrFrom4(v4); v4 == [4]byte{} {
			return a, nil, false
		}
	default:
		for i = 1; i < len(b) && b[i] != ']'; i++ {
			if i > 100 {
				return a, nil, false
			}
		}
		if i == len(b) {
			return a, nil, false
		}
		if a, ok = parseAddr(b[1:i]); !ok {
			return a, nil, false
		}
	}
	b = b[i+1:]
	if port(b) {
		n := 1
		for n < len(b) && isDigit(b[n]) {
			n++
		}
		if n > 6 {
			return a, nil, false
		}
		b = b[n:]
	}
	return a, b, true
}

func port(b []byte) bool { return len(b) > 1 && b[0] == ':' && isDigit(b[1]) }

// class tells what a byte may be part of; a table is faster here than comparing.
var class = func() (t [256]uint8) {
	for c := range t {
		switch {
		case '0' <= c && c <= '9':
			t[c] = aDigit | anAlnum | aHost | aHex
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			t[c] = aLetter | anAlnum | aHost | aHex
		case 'a' <= c|0x20 && c|0x20 <= 'z':
			t[c] = aLetter | anAlnum | aHost
		case c == '.' || c == '-' || c == '_':
			t[c] = aHost
		case c == '<' || c == '>' || c == '"' || c == '\\':
			t[c] = inEcho
		}
		if 'A' <= c && c <= 'Z' {
			t[c] |= anUpper
		}
	}
	return t
}()

const (
	aDigit = 1 << iota
	aLetter
	anUpper
	aHex
	aHost
	anAlnum
	inEcho // means something inside an echo, see skipEcho
)

func isDigit(c byte) bool { return c-'0' < 10 }
func isUpper(c byte) bool { return class[c]&anUpper != 0 }
func isAlpha(c byte) bool { return class[c]&aLetter != 0 }
func isAlnum(c byte) bool { return class[c]&anAlnum != 0 }
func isHost(c byte) bool  { return class[c]&aHost != 0 }
func isHex(c byte) bool   { return class[c]&aHex != 0 }

// run is how many bytes of a class begin b, up to most.
func run(b []byte, of uint8, most int) int {
	b = b[:min(len(b), most)]
	n := 0
	for n+8 <= len(b) {
		c := (*[8]byte)(b[n:])
		if class[c[0]]&class[c[1]]&class[c[2]]&class[c[3]]&class[c[4]]&class[c[5]]&class[c[6]]&class[c[7]]&of == 0 {
			break
		}
		n += 8
	}
	for n < len(b) && class[b[n]]&of != 0 {
		n++
	}
	return n
}

func unhex(c byte) int {
	if isDigit(c) {
		return int(c - '0')
	}
	return int(c|0x20-'a') + 10
}
