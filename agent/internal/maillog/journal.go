package maillog

import (
	"bytes"
	"unicode/utf8"
)

// record unpacks what `journalctl -o json` writes: one object per line, its values strings, null, numbers as arrays of
// bytes (text that is not UTF-8 or has control bytes), or arrays of these (a field that stands twice). Strings have
// JSON's escapes, so no text of a client can end its string.
//
// Anybody may write a record with any SYSLOG_IDENTIFIER; fields that begin with _ are journald's own. A record of a login
// user (_UID from 1000 up) is nobody's log line. Package tail, which reads a live journal, knows the MTA's user and is
// stricter. A field that stands twice is the work of somebody who wants to be two things, so there is no event.
type record struct {
	buf   []byte          // unpacked MESSAGE, at most recordMax bytes; kept for the next line
	stamp [longStamp]byte // a stamp written anew, see rare
}

// recordMax is how much of a MESSAGE is looked at. Everything that counts stands in front.
const recordMax = 8 << 10

func (r *record) split(b []byte, h *header) bool {
	var msg, ident, pid, uid, at, raw []byte
	b = skipBlank(b[1:])
	for len(b) > 0 && b[0] != '}' {
		key, rest, ok := jsonRaw(b)
		if !ok || b[0] != '"' {
			return false
		}
		rest = skipBlank(rest)
		if len(rest) == 0 || rest[0] != ':' {
			return false
		}
		rest = skipBlank(rest[1:])
		value, rest, ok := jsonRaw(rest)
		if !ok {
			return false
		}
		var field *[]byte
		switch string(key) {
		case `"MESSAGE"`:
			field = &msg
		case `"SYSLOG_RAW"`:
			field = &raw
		case `"SYSLOG_IDENTIFIER"`:
			field = &ident
		case `"_PID"`:
			field = &pid
		case `"_UID"`:
			field = &uid
		case `"__REALTIME_TIMESTAMP"`:
			field = &at
		}
		if field != nil {
			if *field != nil {
				return false
			}
			*field = value
		}
		if b = skipBlank(rest); len(b) > 0 && b[0] == ',' {
			b = skipBlank(b[1:])
		} else {
			break
		}
	}
	if len(b) == 0 || b[0] != '}' || msg == nil {
		return false
	}
	var ok bool
	if h.tag, ok = plain(ident); !ok {
		return false
	}
	if h.stamp, ok = plain(at); !ok {
		return false
	}
	if pid != nil {
		h.pid, _ = plain(pid)
	}
	if uid != nil {
		if u, ok := plain(uid); !ok || len(u) > 3 {
			return false
		}
	}
	if h.msg, ok = r.unpack(msg); !ok {
		return false
	}
	h.cut = raw != nil
	h.kind = stampMicro
	h.repeat()
	return true
}

func skipBlank(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	return b
}

// jsonRaw cuts one value off: a string with its quotes, a flat array, a number or a word.
func jsonRaw(b []byte) (value, rest []byte, ok bool) {
	if len(b) == 0 {
		return nil, nil, false
	}
	end := byte(0)
	switch b[0] {
	case '"':
		end = '"'
	case '[':
		end = ']'
	case '{':
		return nil, nil, false
	default:
		n := 0
		for n < len(b) && b[n] != ',' && b[n] != '}' && b[n] != ' ' {
			n++
		}
		return b[:n], b[n:], n > 0
	}
	quoted := end == '"'
	for i := 1; i < len(b); i++ {
		switch c := b[i]; {
		case c == '\\' && quoted:
			i++
		case c == end && (end == '"' || !quoted):
			return b[:i+1], b[i+1:], true
		case c == '"':
			quoted = !quoted
		case c == '[' && !quoted:
			return nil, nil, false // an array of byte arrays
		}
	}
	return nil, nil, false
}

// plain is the text of a string without escapes.
func plain(b []byte) ([]byte, bool) {
	if len(b) < 2 || b[0] != '"' || bytes.IndexByte(b, '\\') >= 0 {
		return nil, false
	}
	return b[1 : len(b)-1], true
}

func (r *record) unpack(b []byte) ([]byte, bool) {
	out := r.buf[:0]
	if b[0] == '[' { // bytes as numbers
		n, digits := 0, 0
		for _, c := range b[1:] {
			switch {
			case isDigit(c) && digits < 3:
				n, digits = n*10+int(c-'0'), digits+1
			case c == ' ' && digits == 0:
			case (c == ',' || c == ']') && digits > 0 && n < 256:
				if len(out) < recordMax {
					out = append(out, byte(n))
				}
				n, digits = 0, 0
			default:
				return nil, false
			}
		}
		r.buf = out
		return out, true
	}
	if b[0] != '"' {
		return nil, false // null: journald left it out as too large
	}
	b = b[1 : len(b)-1]
	if bytes.IndexByte(b, '\\') < 0 {
		return b, true
	}
	for i := 0; i < len(b) && len(out) < recordMax; i++ {
		if b[i] != '\\' {
			out = append(out, b[i])
			continue
		}
		if i++; i == len(b) {
			return nil, false
		}
		switch b[i] {
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case 'r':
			out = append(out, '\r')
		case 'b':
			out = append(out, '\b')
		case 'f':
			out = append(out, '\f')
		case '"', '\\', '/':
			out = append(out, b[i])
		case 'u':
			if i+4 >= len(b) {
				return nil, false
			}
			v := rune(0)
			for _, c := range b[i+1 : i+5] {
				if !isHex(c) {
					return nil, false
				}
				v = v<<4 | rune(unhex(c))
			}
			out = utf8.AppendRune(out, v) // half a surrogate pair becomes U+FFFD; nothing we look for is beyond
			i += 4
		default:
			return nil, false
		}
	}
	r.buf = out
	return out, true
}
