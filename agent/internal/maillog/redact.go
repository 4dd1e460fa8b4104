package maillog

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

const (
	redactMax   = 300  // characters of a redacted line
	redactInput = 2048 // bytes of a line that Redact looks at
)

// Redact makes a log line fit to be shown: control bytes, bytes that are not UTF-8 and invisible characters become \xNN or
// \u{N}, the local part of every e-mail address and every SASL user name is cut to its first letter and "***",
// passwords that the server logs become "***" (Courier has them behind AUTH PLAIN, Dovecot if it is told to), and the result has at most 300 characters. It is for people, not for parsing.
func Redact(line []byte) string {
	line = bytes.TrimRight(line, "\r\n")
	long := len(line) > redactInput
	if long {
		line = line[:redactInput]
		for len(line) > 0 && isLocal(line[len(line)-1]) { // may be the half of an address
			line = line[:len(line)-1]
		}
	}
	out := make([]byte, 0, min(len(line)+16, redactInput+64))
	for i := 0; i < len(line); {
		c := line[i]
		if c == '@' {
			out = append(shorten(out), '@')
			i++
			continue
		}
		if c < utf8.RuneSelf {
			if c < ' ' || c == 0x7f {
				out = append(out, '\\', 'x', hexDigit(c>>4), hexDigit(c))
			} else {
				out = append(out, c)
			}
			i++
			if c == '=' && bytes.HasSuffix(out, []byte("sasl_username=")) && i < len(line) {
				n := bytes.IndexByte(line[i:], ',')
				if n < 0 {
					n = len(line) - i
				}
				out = append(out, shortened(line[i:i+n])...)
				i += n
			}
			if c == ' ' {
				if n := secret(out, line[i:]); n > 0 {
					out = append(out, "***"...)
					i += n
				}
			}
			continue
		}
		r, n := utf8.DecodeRune(line[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			out = append(out, '\\', 'x', hexDigit(c>>4), hexDigit(c))
		case !unicode.IsPrint(r):
			out = append(out, '\\', 'u', '{')
			for shift := 20; shift >= 0; shift -= 4 {
				if r>>shift != 0 {
					out = append(out, hexDigit(byte(r>>shift)))
				}
			}
			out = append(out, '}')
		default:
			out = append(out, line[i:i+n]...)
		}
		i += n
	}
	n := 0
	for i := range string(out) {
		if n++; n == redactMax {
			if utf8.RuneCount(out[i:]) > 1 || long {
				return string(out[:i]) + "…"
			}
			break
		}
	}
	return string(out)
}

// secret is the length of what no one must see at the start of rest, which follows out.
func secret(out, rest []byte) int {
	switch {
	case bytes.HasSuffix(out, []byte("given password: ")):
		return len(rest)
	case bytes.HasSuffix(out, []byte("AUTH PLAIN ")), bytes.HasSuffix(out, []byte("AUTH LOGIN ")):
		if n := bytes.IndexByte(rest, ' '); n >= 0 {
			return n
		}
		return len(rest)
	}
	return 0
}

// shorten cuts the local part at the end of out. A local part reaches back to a delimiter or, quoted, to the other
// quote; "name=" of a log field in front of it stays.
func shorten(out []byte) []byte {
	end := len(out)
	start := end
	if end > 0 && out[end-1] == '"' {
		if i := bytes.LastIndexByte(out[:end-1], '"'); i >= 0 {
			return append(append(out[:i+1], shortened(out[i+1:end-1])...), '"')
		}
		start-- // half a quoted string
	}
	for start > 0 && isLocal(out[start-1]) {
		start--
	}
	if start == 0 || out[start-1] != '<' {
		n := start
		for n < end && (isAlpha(out[n]) || out[n] == '_') {
			n++
		}
		if n > start && n < end && out[n] == '=' {
			start = n + 1
		}
	}
	return append(out[:start], shortened(out[start:end])...)
}

// shortened returns the first character of a name and "***", in new memory.
func shortened(name []byte) []byte {
	if len(name) == 0 {
		return nil
	}
	r, n := utf8.DecodeRune(name)
	if r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r) {
		return []byte("***")
	}
	return append(append(make([]byte, 0, n+3), name[:n]...), "***"...)
}

// isLocal says whether c may be part of an unquoted local part; \ is there for what has been escaped.
func isLocal(c byte) bool {
	return isAlnum(c) || c >= utf8.RuneSelf || bytes.IndexByte([]byte(".!#$%&'*+/=?^_`{|}~-\\"), c) >= 0
}

func hexDigit(b byte) byte { return "0123456789abcdef"[b&15] }
