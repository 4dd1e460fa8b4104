package tail

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// source is one open log file and how far it was read. Owned by the goroutine of Run.
type source struct {
	f        *os.File
	dev, ino uint64
	pos      int64  // everything before it was handed over (or sits in the batch being gathered); the start of a line
	part     []byte // start of the unfinished line at pos, at most maxLine bytes
	skip     int64  // bytes of that line beyond part: read and thrown away
	size     int64  // of the file, as of the last batch
	head     []byte // the first bytes of the file, at most headMax, as of the last read

	moved time.Time // when it was seen that the path names another file; zero for the current one
	grew  time.Time // last time that it grew after that
	ended bool      // was read to its end since it moved
}

// openRegular opens a regular file, following symbolic links. What is no regular file gives an error with a hint.
func openRegular(path string) (*os.File, *syscall.Stat_t, error) {
	// Look first: opening a device can have effects.
	fi, err := os.Stat(path)
	if err == nil {
		err = checkRegular(path, fi)
	}
	if err != nil {
		return nil, nil, permissionHint(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, permissionHint(path, err)
	}
	if fi, err = f.Stat(); err == nil {
		err = checkRegular(path, fi)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, fi.Sys().(*syscall.Stat_t), nil
}

// errKind is wrapped by the error about something that is no regular file.
var errKind = errors.New("not a regular file")

func checkRegular(path string, fi fs.FileInfo) error {
	switch mode := fi.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		return withHint("name the file in it, for example "+filepath.Join(path, "mail.log"), "follow %s: is a directory, %w", path, errKind)
	case mode&fs.ModeNamedPipe != 0:
		return withHint("what was read from a pipe cannot be read again after a crash: let the syslog daemon write a file, or follow the journal",
			"follow %s: is a named pipe, %w", path, errKind)
	default:
		return withHint("name a log file, or follow the journal", "follow %s: is a device or socket, %w", path, errKind)
	}
}

// permissionHint says which group may read the file.
func permissionHint(path string, err error) error {
	if !errors.Is(err, fs.ErrPermission) {
		return err
	}
	group := "adm"
	if fi, serr := os.Stat(path); serr == nil {
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Gid != 0 {
			gid := strconv.FormatUint(uint64(st.Gid), 10)
			group = gid
			if g, gerr := user.LookupGroupId(gid); gerr == nil {
				group = g.Name
			}
		}
	}
	return &hintError{err: fmt.Errorf("follow %s: %w", path, err),
		hint: fmt.Sprintf("let the agent's user read %s: make it a member of group %s, or run the agent as root", path, group)}
}

// newSource opens path to be read from its start.
func newSource(path string) (*source, error) {
	f, st, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	s := &source{f: f, dev: uint64(st.Dev), ino: st.Ino}
	if s.head, err = readHead(f); err != nil {
		f.Close()
		return nil, err
	}
	return s, nil
}

func readHead(f *os.File) ([]byte, error) {
	head := make([]byte, headMax)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	return head[:n], nil
}

// readOffset is where the next read starts.
func (s *source) readOffset() int64 { return s.pos + int64(len(s.part)) + s.skip }

func (s *source) position() position {
	return position{Dev: s.dev, Ino: s.ino, Offset: s.pos, N: len(s.head), Head: headHash(s.head)}
}

// is tells whether the file of s is the one that p is a place in: same inode, same first bytes, not shorter than p.
// The device number is not compared: on btrfs, NFS and overlay it changes when the machine is started anew.
func (s *source) is(p position) bool { return s.ino == p.Ino && s.isCopy(p) }

// isCopy tells whether s starts like the file that p is a place in, and goes at least as far.
func (s *source) isCopy(p position) bool {
	fi, err := s.f.Stat()
	return err == nil && fi.Size() >= p.Offset && len(s.head) >= p.N && headHash(s.head[:p.N]) == p.Head
}

// A file can be truncated, and even filled again beyond where we read, at any moment. verdicts of check:
type grown int

const (
	whole   grown = iota // what was read is what follows what was read before
	shrunk               // what was read is good, but has been cut off since
	another              // what was read belongs to other content; throw it away
)

// check is to be called after n bytes were read at readOffset and before they are used.
func (s *source) check(n int) (grown, int64, error) {
	fi, err := s.f.Stat()
	if err != nil {
		return whole, 0, err
	}
	if fi.Size() < s.readOffset()+int64(n) {
		return shrunk, fi.Size(), nil
	}
	head, err := readHead(s.f)
	if err != nil {
		return whole, 0, err
	}
	if !bytes.HasPrefix(head, s.head) {
		return another, fi.Size(), nil
	}
	s.head = head
	return whole, fi.Size(), nil
}

// skipNULs drops the NULs that b starts with when it is the start of a line. A writer without O_APPEND leaves a hole
// that reads as NULs when its file is truncated. A large hole is jumped over.
func (s *source) skipNULs(b []byte) []byte {
	if len(s.part) > 0 || s.skip > 0 || len(b) == 0 || b[0] != 0 {
		return b
	}
	rest := bytes.TrimLeft(b, "\x00")
	s.pos += int64(len(b) - len(rest))
	if len(rest) == 0 && len(b) >= 4096 {
		if data, err := unix.Seek(int(s.f.Fd()), s.pos, unix.SEEK_DATA); err == nil && data > s.pos {
			s.pos = data
		}
	}
	return rest
}

// hold keeps b as the next part of an unfinished line.
func (s *source) hold(b []byte) {
	room := maxLine - len(s.part)
	if len(b) > room {
		s.skip += int64(len(b) - room)
		b = b[:room]
	}
	s.part = append(s.part, b...)
}

// next takes the first line off b, which was read at readOffset. size is how many bytes of the file the line takes,
// newline included: pos must move by it when the line is handed over. ok is false when b holds no newline: all of it is
// kept for later.
func (s *source) next(b []byte) (line, rest []byte, size int64, ok bool) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		s.hold(b)
		return nil, nil, 0, false
	}
	if len(s.part) == 0 && i <= maxLine {
		return b[:i], b[i+1:], int64(i) + 1, true
	}
	s.hold(b[:i])
	return s.part, b[i+1:], int64(len(s.part)) + s.skip + 1, true
}

// done moves behind a line of size bytes and tells whether the line was cut.
func (s *source) done(size int64) (cut bool) {
	cut = s.skip > 0
	s.pos += size
	s.part, s.skip = s.part[:0], 0
	return cut
}

func (s *source) close() { s.f.Close() }
