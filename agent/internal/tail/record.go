package tail

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// maxRecord bounds one JSON object of journalctl. Without --all it writes null for fields over 4096 bytes, so that even a
// message spelled as an array of numbers stays far below.
const maxRecord = 256 << 10

// identMax is the longest identifier kept in a line.
const identMax = 64

// Errors about a record.
var (
	errRecord  = errors.New("not a journal record")
	errTooLong = errors.New("message too long")
)

// record is what is used of a journal entry.
type record struct {
	cursor string
	time   time.Time
	uid    int64 // trusted: written by the kernel through journald, not by the sender; -1 if missing
	line   []byte
}

// journalFields are the fields asked for; those with two underscores always come.
const journalFields = "MESSAGE,SYSLOG_IDENTIFIER,SYSLOG_RAW,_COMM,_PID,SYSLOG_PID,_UID,_HOSTNAME"

// decodeRecord reads one line of `journalctl -o json` and makes a log line of it:
//
//	2026-01-31T12:00:00.123456Z mx1 postfix/smtpd[4711]: connect from unknown[192.0.2.1]
//
// The fields without underscore are the sender's: whatever they hold, the result is one line, and its time, host,
// identifier and process number stand where they belong. An error of errTooLong comes with a good cursor, time and uid.
func decodeRecord(b []byte) (record, error) {
	if len(b) > maxRecord {
		return record{}, fmt.Errorf("%w: %d bytes long", errRecord, len(b))
	}
	var fields map[string]json.RawMessage // not a struct: its keys would match in any case
	if err := json.Unmarshal(b, &fields); err != nil {
		return record{}, fmt.Errorf("%w: %v", errRecord, err)
	}
	r := record{cursor: text(fields["__CURSOR"]), uid: -1}
	if r.cursor == "" || !validCursor(r.cursor) {
		return record{}, fmt.Errorf("%w: cursor %.40q", errRecord, r.cursor)
	}
	micros, err := strconv.ParseInt(text(fields["__REALTIME_TIMESTAMP"]), 10, 64)
	if err != nil || micros < 0 || micros > 1<<53 { // the year 2255: beyond, the header would change its shape
		return record{}, fmt.Errorf("%w: time %.40q", errRecord, fields["__REALTIME_TIMESTAMP"])
	}
	r.time = time.UnixMicro(micros).UTC()
	if uid, err := strconv.ParseUint(text(fields["_UID"]), 10, 32); err == nil {
		r.uid = int64(uid)
	}
	message, ok := value(fields["MESSAGE"])
	if !ok {
		if raw := fields["MESSAGE"]; raw != nil && string(raw) != "null" {
			return r, fmt.Errorf("%w: message of another kind", errRecord)
		}
		return r, errTooLong // null: journalctl leaves out what is over 4096 bytes
	}
	// journald takes the blanks off the end of a message, but keeps what it had got. They matter where the end of a line
	// tells whether it was cut.
	if raw, ok := value(fields["SYSLOG_RAW"]); ok {
		raw = bytes.TrimRight(raw, "\r\n\x00")
		message = append(message[:len(message):len(message)], raw[len(bytes.TrimRight(raw, " ")):]...)
	}
	if len(message) > maxLine {
		return r, errTooLong
	}

	ident := text(fields["SYSLOG_IDENTIFIER"])
	if ident == "" {
		ident = text(fields["_COMM"])
	}
	pid := text(fields["_PID"])
	if pid == "" {
		pid = text(fields["SYSLOG_PID"])
	}
	line := make([]byte, 0, 64+len(ident)+len(message))
	line = r.time.AppendFormat(line, "2006-01-02T15:04:05.000000Z07:00")
	line = append(line, ' ')
	line = appendWord(line, text(fields["_HOSTNAME"]), "localhost", 255)
	line = append(line, ' ')
	line = appendWord(line, ident, "unknown", identMax)
	if n, err := strconv.ParseUint(pid, 10, 32); err == nil {
		line = append(line, '[')
		line = strconv.AppendUint(line, n, 10)
		line = append(line, ']')
	}
	line = append(line, ": "...)
	for _, c := range message {
		switch {
		case c == '\n' || c == '\r' || c == '\t':
			c = ' '
		case c < ' ' || c == 0x7f:
			c = '?'
		}
		line = append(line, c)
	}
	r.line = line
	return r, nil
}

// appendWord appends s as one word of a log line's header: at most limit bytes, printable ASCII, no blank, bracket or
// colon; what may not stand there becomes an underscore. An empty s becomes none.
func appendWord(b []byte, s, none string, limit int) []byte {
	if s == "" {
		s = none
	}
	for i := range min(len(s), limit) {
		c := s[i]
		if c <= ' ' || c >= 0x7f || c == '[' || c == ']' || c == ':' {
			c = '_'
		}
		b = append(b, c)
	}
	return b
}

// text returns a field that has to be a string; "" for anything else.
func text(raw json.RawMessage) string {
	v, ok := value(raw)
	if !ok {
		return ""
	}
	return string(v)
}

// value returns what a field holds: a string; an array of numbers, which journalctl writes for what is not UTF-8 or has
// control characters; or an array of such values if the sender gave the field several times: the first counts.
func value(raw json.RawMessage) ([]byte, bool) {
	if len(raw) == 0 {
		return nil, false
	}
	switch raw[0] {
	case '"':
		if b := raw[1 : len(raw)-1]; plain(b) {
			return b, true
		}
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return nil, false
		}
		return []byte(s), true
	case '[':
		first := bytes.TrimLeft(raw[1:], " \t\r\n")
		if len(first) > 0 && (first[0] == '"' || first[0] == '[' || first[0] == 'n') {
			var many []json.RawMessage
			if json.Unmarshal(raw, &many) != nil || len(many) == 0 || many[0][0] == '[' && nested(many[0]) {
				return nil, false
			}
			return value(many[0])
		}
		// Not []uint8, which would be base64.
		var numbers []uint16
		if json.Unmarshal(raw, &numbers) != nil {
			return nil, false
		}
		out := make([]byte, len(numbers))
		for i, n := range numbers {
			if n > 255 {
				return nil, false
			}
			out[i] = byte(n)
		}
		return out, true
	}
	return nil, false
}

// plain tells whether the inside of a JSON string means itself: nearly all do.
func plain(b []byte) bool {
	for _, c := range b {
		if c == '\\' || c >= 0x80 {
			return false
		}
	}
	return true
}

// nested tells whether an array starts with another array: no field is that deep.
func nested(raw json.RawMessage) bool {
	rest := bytes.TrimLeft(raw[1:], " \t\r\n")
	return len(rest) > 0 && rest[0] == '['
}
