package maillog

import "bytes"

// Headers that few logs have: none of this is on the way of a usual line.

// longStamp is how long a stamp may be that rare writes anew: "2026-03-02T10:00:00.123456789Z" and one to spare.
const longStamp = 31

// rare reads lines that begin with
//
//   - a byte order mark, which an editor put in front of the file;
//   - zero bytes, which a file has where its host lost power, in front of what was written then;
//   - "Mmm d HH:MM:SS", a day of one digit that is not padded;
//   - "Www YYYY-MM-DD HH:MM:SS[.f...] ZONE", as journalctl -o short-full has it. ZONE is UTC or the name of the zone of
//     where it was printed, which is taken for ours.
//
// j is where the stamp is put as the others have it.
func (h *header) rare(b []byte, j *record) bool {
	if c, ok := cut(b, "\xef\xbb\xbf"); ok {
		return !has(c, "\xef\xbb\xbf") && h.split(c, j)
	}
	if len(b) > 0 && b[0] == 0 {
		b = bytes.TrimLeft(b, "\x00")
		return len(b) > 0 && b[0] != 0xef && h.split(b, j)
	}
	if len(b) < 20 || !isUpper(b[0]) || b[3] != ' ' {
		return false
	}
	if isDigit(b[4]) && b[5] == ' ' && b[8] == ':' && b[11] == ':' {
		s := append(append(j.stamp[:0], b[:4]...), ' ')
		b = b[4:]
		n := 10
		if b[n] == '.' {
			for n++; n < len(b) && n < 20 && isDigit(b[n]); {
				n++
			}
		}
		h.kind, h.stamp = stampBSD, append(s, b[:n]...)
		b, ok := cut(b[n:], " ")
		if ok && dovecotOwn(b) {
			h.mta, h.msg, h.count = Dovecot, b, 1
			return true
		}
		return ok && h.hostAndTag(b)
	}
	b = b[4:]
	n := stampLen(b)
	if n < 19 || n > 29 || b[n-5] == '+' || b[n-5] == '-' {
		return false
	}
	s := append(j.stamp[:0], b[:n]...)
	s[10] = 'T'
	zone, b, ok := cutSpace(b[n+1:])
	if !ok || len(zone) > 6 {
		return false
	}
	if string(zone) == "UTC" {
		s = append(s, 'Z')
	}
	h.kind, h.stamp = stampISO, s
	return h.hostAndTag(b)
}

// zoneLen is the length of a zone behind a stamp with blanks: " +hhmm", "+hh:mm", "Z" and so on, and a blank after it.
func zoneLen(b []byte) int {
	n := 0
	if len(b) > 0 && b[0] == ' ' {
		n = 1
	}
	switch {
	case len(b) > n && b[n] == 'Z':
		n++
	case len(b) > n+6 && (b[n] == '+' || b[n] == '-') && isDigit(b[n+1]) && isDigit(b[n+2]):
		m := n + 3
		if b[m] == ':' {
			m++
		}
		if m+2 >= len(b) || !isDigit(b[m]) || !isDigit(b[m+1]) {
			return 0
		}
		n = m + 2
	default:
		return 0
	}
	if n >= len(b) || b[n] != ' ' {
		return 0
	}
	return n
}

// hostAndTag says whether "host tag[pid]: " of a known program begins b, behind a stamp that Exim's own files have too.
// No message of Exim's own has that in its second word, unless an administrator writes a client's text behind a word of
// his own (logwrite).
func hostAndTag(b []byte) bool {
	if messageID(b) > 0 {
		return false
	}
	n := run(b, aHost, 256)
	for n < len(b) && n < 256 && (isHost(b[n]) || b[n] == ':') {
		n++
	}
	if n == 0 || n == len(b) || b[n] != ' ' {
		return false
	}
	word, _, ok := cutSpace(b[n+1:])
	if !ok || !bytes.HasSuffix(word, []byte("]:")) {
		return ok && string(word) == "dovecot:" // which has no number
	}
	i := bytes.IndexByte(word, '[')
	if i <= 0 || i+3 > len(word) {
		return false
	}
	for _, c := range word[i+1 : len(word)-2] {
		if !isDigit(c) {
			return false
		}
	}
	return mtaOf(word[:i]) != Auto
}

// afterTag skips what may stand between a tag and the message: more blanks, where a template has one and the message
// brings another, and "[ID 197553 mail.info] ", which Solaris puts there.
func afterTag(b []byte) []byte {
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	c, ok := cut(b, "[ID ")
	if !ok {
		return b
	}
	n := 0
	for n < len(c) && n < 10 && isDigit(c[n]) {
		n++
	}
	if n == 0 || n == len(c) || c[n] != ' ' {
		return b
	}
	n++
	for start := n; n < len(c) && n < start+24 && (isAlnum(c[n]) || c[n] == '.'); {
		n++
	}
	if c, ok = cut(c[n:], "] "); !ok {
		return b
	}
	return c
}
