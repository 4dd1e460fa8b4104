package tail

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Bounds of a mark.
const (
	markVersion  = 1
	maxMark      = 64 << 10
	maxPositions = 128
	maxCursor    = 1024
	headMax      = 256 // bytes at the start of a file that are hashed
	headHex      = 32  // hex digits of the hash that are kept
)

// errMark is wrapped by every error about a mark that cannot be used.
var errMark = errors.New("unusable checkpoint")

// mark is the checkpoint of an input: either positions in files, or a cursor in the journal (which may be missing: then
// all records later than the time are still to be read).
type mark struct {
	Version int        `json:"v"`
	Time    int64      `json:"time"` // microseconds since 1970: of the newest journal record, or when all files there were had been seen
	Files   []position `json:"files,omitempty"`
	Cursor  string     `json:"cursor,omitempty"`
}

// position is a place in one file, and what is needed to know the file again: an inode number alone is given to the
// next new file at once.
type position struct {
	Dev    uint64 `json:"dev"`
	Ino    uint64 `json:"ino"`
	Offset int64  `json:"off"`
	N      int    `json:"n"`    // how many bytes Head is the hash of
	Head   string `json:"head"` // empty when N is 0
}

func (m mark) encode() []byte {
	m.Version = markVersion
	b, err := json.Marshal(m)
	if err != nil { // cannot be: plain numbers and strings
		return nil
	}
	return b
}

func (m mark) when() time.Time { return time.UnixMicro(m.Time) }

// decodeMark reads a mark. It accepts what encode writes and refuses what is out of bounds.
func decodeMark(b []byte) (mark, error) {
	if len(b) > maxMark {
		return mark{}, fmt.Errorf("%w: %d bytes long", errMark, len(b))
	}
	var m mark
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return mark{}, fmt.Errorf("%w: %v", errMark, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return mark{}, fmt.Errorf("%w: text after its end", errMark)
	}
	switch {
	case m.Version != markVersion:
		return mark{}, fmt.Errorf("%w: version %d, want %d", errMark, m.Version, markVersion)
	case m.Time < 0:
		return mark{}, fmt.Errorf("%w: time %d", errMark, m.Time)
	case len(m.Files) > maxPositions:
		return mark{}, fmt.Errorf("%w: %d files", errMark, len(m.Files))
	case len(m.Files) > 0 && m.Cursor != "":
		return mark{}, fmt.Errorf("%w: both of files and of the journal", errMark)
	case !validCursor(m.Cursor):
		return mark{}, fmt.Errorf("%w: cursor %.40q", errMark, m.Cursor)
	}
	for _, p := range m.Files {
		digits, err := hex.DecodeString(p.Head)
		if err != nil || p.Offset < 0 || p.N < 0 || p.N > headMax || (p.N > 0) != (len(digits) == headHex/2) || (p.N == 0 && p.Head != "") {
			return mark{}, fmt.Errorf("%w: position %+v", errMark, p)
		}
	}
	return m, nil
}

// validCursor tells whether s may stand on journalctl's command line: empty, or printable ASCII without blanks.
func validCursor(s string) bool {
	if len(s) > maxCursor {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

func headHash(head []byte) string {
	if len(head) == 0 {
		return ""
	}
	sum := sha256.Sum256(head)
	return hex.EncodeToString(sum[:])[:headHex]
}
