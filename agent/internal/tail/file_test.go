package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// patience is how long a test waits for what has to happen.
const patience = time.Minute

// running is an input that is being followed by a test.
type running struct {
	t      *testing.T
	in     Input
	out    chan Batch
	cancel context.CancelFunc
	done   chan error

	lines []string
	mark  []byte
	last  Batch
}

func startAt(t *testing.T, in Input, mark []byte) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{t: t, in: in, out: make(chan Batch), cancel: cancel, done: make(chan error, 1), mark: mark}
	go func() { r.done <- in.Run(ctx, mark, r.out) }()
	t.Cleanup(r.stop)
	return r
}

// stop ends Run. A batch that it was about to hand over is lost, as in a crash.
func (r *running) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		r.t.Error("Run does not end")
	}
}

// take receives a batch and commits it.
func (r *running) take() Batch {
	r.t.Helper()
	b, ok := r.peek()
	if !ok {
		r.t.Fatalf("no batch; %d lines so far, status %+v", len(r.lines), r.in.Status())
	}
	r.commit(b)
	return b
}

func (r *running) peek() (Batch, bool) {
	select {
	case b := <-r.out:
		return b, true
	case err := <-r.done:
		r.done <- err
		r.t.Fatalf("Run ended: %v", err)
	case <-time.After(patience):
	}
	return Batch{}, false
}

func (r *running) commit(b Batch) {
	r.t.Helper()
	if len(b.Lines) > maxBatchLines {
		r.t.Fatalf("batch of %d lines", len(b.Lines))
	}
	size := 0
	for _, l := range b.Lines {
		r.lines = append(r.lines, string(l))
		size += len(l)
	}
	if size > maxBatchBytes || b.Input != r.in.ID() || b.Read.IsZero() {
		r.t.Fatalf("batch of %d bytes, input %q", size, b.Input)
	}
	if _, err := decodeMark(b.Mark); err != nil {
		r.t.Fatalf("mark %s: %v", b.Mark, err)
	}
	r.mark, r.last = b.Mark, b
}

// want receives batches until there are as many lines as wanted, and compares. Then nothing more may come up to the end.
func (r *running) want(want ...string) {
	r.t.Helper()
	for len(r.lines) < len(want) || !r.last.CaughtUp {
		r.take()
	}
	same(r.t, r.lines, want)
}

func same(t *testing.T, got, want []string) {
	t.Helper()
	if slices.Equal(got, want) {
		return
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			lo := max(0, i-2)
			t.Fatalf("%d lines, want %d; first difference at %d:\n got %.200q\nwant %.200q", len(got), len(want), i,
				got[min(lo, len(got)):min(i+3, len(got))], want[min(lo, len(want)):min(i+3, len(want))])
		}
	}
}

func (r *running) waitStatus(what string, ok func(Status) bool) Status {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		s := r.in.Status()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("status never %s: %+v", what, s)
		}
		select {
		case b := <-r.out:
			r.commit(b)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func numbered(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, numberedLine(i))
	}
	return out
}

func numberedLine(i int) string {
	return fmt.Sprintf("2026-01-31T12:00:00.%06d+00:00 mx1 postfix/smtpd[%d]: line %d", i%1e6, i%977, i)
}

func join(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func appendTo(t testing.TB, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// quick makes waiting short, except where a test is about it.
func quick(path string) *File {
	return NewFile(path, FileOptions{Linger: 50 * time.Millisecond, Poll: 50 * time.Millisecond})
}

func TestFileAppend(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\r\ntwo\n\nfour\n")
	// A poll of an hour: only the watch on the directory can wake it.
	r := startAt(t, NewFile(path, FileOptions{Poll: time.Hour}), nil)
	r.want("one", "two", "", "four")
	appendTo(t, path, "fi")
	appendTo(t, path, "ve")
	appendTo(t, path, "!\nsix\nsev")
	r.want("one", "two", "", "four", "five!", "six")
	// The lines come before their count: the batch is counted once it is taken.
	s := r.waitStatus("following", func(s Status) bool { return s.State == Following && s.Lines == 6 && s.Lag == 3 })
	if s.LastLine.IsZero() || s.Input != "file:"+path {
		t.Errorf("status %+v", s)
	}
	r.stop()
	if s := r.in.Status(); s.State != Stopped {
		t.Errorf("state %s", s.State)
	}
	// The half line is read when it is whole, by another run.
	appendTo(t, path, "en\n")
	r = startAt(t, r.in, r.mark)
	r.want("seven")
}

func TestFilePollAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	w := &dirWatch{path: path, log: slog.New(slog.DiscardHandler)}
	began := time.Now()
	w.update()
	w.wait(t.Context(), began, 10*time.Millisecond)
	w.close()
	if d := time.Since(began); d > patience {
		t.Errorf("waited %v", d)
	}
}

func TestFileBatches(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	lines := numbered(0, 3*maxBatchLines+5)
	for i := range 100 { // and some that fill a batch by their size
		lines = append(lines, strings.Repeat(string(rune('a'+i%26)), 40<<10))
	}
	appendTo(t, path, join(lines))
	r := startAt(t, quick(path), nil)
	b := r.take()
	if len(b.Lines) != maxBatchLines || b.CaughtUp {
		t.Errorf("first batch: %d lines, caught up %v", len(b.Lines), b.CaughtUp)
	}
	if s := r.in.Status(); s.Lag <= 0 {
		t.Errorf("status %+v", s)
	}
	// Memory belongs to the receiver: filling a line up must not touch the next one.
	keep := string(b.Lines[1])
	_ = append(b.Lines[0], "xxxxxxxxxxxxxxxxxxx"...)
	if string(b.Lines[1]) != keep {
		t.Error("lines share capacity")
	}
	r.want(lines...)
}

func TestFileBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	lines := numbered(0, 1000)
	appendTo(t, path, join(lines))
	size := int64(len(lines[999]) + 1)
	for _, c := range []struct {
		back int64
		want []string
	}{
		{1 << 20, lines},
		{2 * size, lines[998:]},   // exactly at a line start
		{2*size - 1, lines[999:]}, // in the middle of a line
		{1, nil},
	} {
		r := startAt(t, NewFile(path, FileOptions{Back: c.back}), nil)
		r.want(c.want...)
		r.stop()
	}
	// A file that comes to be later is read whole.
	late := filepath.Join(t.TempDir(), "mail.log")
	r := startAt(t, NewFile(late, FileOptions{Back: 1, Poll: 20 * time.Millisecond}), nil)
	r.waitStatus("waiting", func(s Status) bool { return s.State == Waiting })
	must(t, os.Rename(path, late))
	r.want(lines...)
}

func TestFileLate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "postfix") // even the directory is missing
	path := filepath.Join(dir, "mail.log")
	var said syncBuffer
	f := NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Log: slog.New(slog.NewTextHandler(&said, nil))})
	r := startAt(t, f, nil)
	s := r.waitStatus("waiting", func(s Status) bool { return s.State == Waiting })
	if s.Detail != "waiting for "+path+" to appear" {
		t.Errorf("detail %q", s.Detail)
	}
	must(t, os.Mkdir(dir, 0o755))
	appendTo(t, path, "one\n")
	r.want("one")
	if got := said.String(); strings.Count(got, "waiting for it") != 1 || !strings.Contains(got, path) {
		t.Errorf("log:\n%s", got)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestFileKinds(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, syscall.Mkfifo(fifo, 0o600))
	for path, want := range map[string]string{dir: "is a directory", fifo: "named pipe", "/dev/null": "device"} {
		err := NewFile(path, FileOptions{}).Run(t.Context(), nil, nil)
		var hint interface{ HintText() string }
		if err == nil || !strings.Contains(err.Error(), want) || !errors.As(err, &hint) || hint.HintText() == "" {
			t.Errorf("%s: %v", path, err)
		}
	}
	real := filepath.Join(dir, "real.log")
	link := filepath.Join(dir, "mail.log")
	appendTo(t, real, "one\n")
	must(t, os.Symlink(real, link))
	r := startAt(t, quick(link), nil)
	r.want("one")
	// Rotation happens where the link leads to.
	must(t, os.Rename(real, real+".1"))
	appendTo(t, real+".1", "two\n")
	appendTo(t, real, "three\n")
	r.want("one", "two", "three")
	mark := r.mark
	r.stop()
	appendTo(t, real, "four\n")
	must(t, os.Rename(real, real+"-20260131"))
	appendTo(t, real, "five\n")
	r = startAt(t, quick(link), mark)
	r.want("four", "five")
}

// TestFileReplaced: at the path of the log comes to be something that is no file. It is not touched, status says what it is,
// and the log is read on when it is there again.
func TestFileReplaced(t *testing.T) {
	for name, c := range map[string]struct {
		put  func(path string) error
		says string
	}{
		"directory":           {func(p string) error { return os.Mkdir(p, 0o755) }, "is a directory"},
		"pipe":                {func(p string) error { return syscall.Mkfifo(p, 0o600) }, "is a named pipe"},
		"link to a device":    {func(p string) error { return os.Symlink("/dev/zero", p) }, "device"},
		"link to a directory": {func(p string) error { return os.Symlink("/", p) }, "is a directory"},
		"link to itself":      {func(p string) error { return os.Symlink(filepath.Base(p), p) }, "too many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mail.log")
			appendTo(t, path, "one\n")
			r := startAt(t, quick(path), nil)
			r.want("one")
			must(t, os.Rename(path, path+".1"))
			appendTo(t, path+".1", "two\n")
			must(t, c.put(path))
			r.waitStatus("failed", func(s Status) bool { return s.State == Failed && strings.Contains(s.LastError, c.says) })
			r.want("one", "two") // the old file is read on
			must(t, os.Remove(path))
			appendTo(t, path, "three\n")
			r.want("one", "two", "three")
			r.waitStatus("following", func(s Status) bool { return s.State == Following })
			// A link that leads to a file is the file.
			real := filepath.Join(t.TempDir(), "real.log")
			must(t, os.Rename(path, path+".2"))
			must(t, os.Symlink(real, path))
			appendTo(t, real, "four\n")
			r.want("one", "two", "three", "four")
		})
	}
}

func TestFilePermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become another user")
	}
	if dir := os.Getenv("TAIL_TEST_DENIED"); dir != "" {
		return // the child below runs TestDeniedChild
	}
	dir, err := os.MkdirTemp("/tmp", "tail")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	path := filepath.Join(dir, "mail.log")
	appendTo(t, path, "one\n")
	must(t, os.Chmod(path, 0o600))
	exe := filepath.Join(dir, "test")
	self, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	must(t, os.WriteFile(exe, self, 0o755))
	cmd := exec.Command(exe, "-test.run=^TestDeniedChild$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "TAIL_TEST_DENIED="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	stdin, err := cmd.StdinPipe()
	must(t, err)
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	defer cmd.Process.Kill()
	for deadline := time.Now().Add(patience); !strings.Contains(out.String(), "denied:"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the child never said so:\n%s", out.String())
		}
	}
	if s := out.String(); !strings.Contains(s, "permission denied") || !strings.Contains(s, "group adm") || !strings.Contains(s, path) {
		t.Errorf("child said:\n%s", s)
	}
	must(t, os.Chmod(path, 0o644)) // and now it works, without a restart
	said := func(what string) {
		t.Helper()
		for deadline := time.Now().Add(patience); !strings.Contains(out.String(), what); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the child never said %q:\n%s", what, out.String())
			}
		}
	}
	said("read one\n")
	// Lost while it is open, and with a new file that may not be read.
	must(t, os.Chmod(path, 0o600))
	appendTo(t, path, "two\n")
	said("read two\n")
	must(t, os.Rename(path, path+".1"))
	appendTo(t, path, "three\n")
	must(t, os.Chmod(path, 0o600))
	said("denied again: ")
	appendTo(t, path, "four\n")
	must(t, os.Chmod(path, 0o644))
	said("read three four\n")
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("child: %v\n%s", err, out.String())
	}
}

// TestDeniedChild is the part of TestFilePermission that runs as another user.
func TestDeniedChild(t *testing.T) {
	path := os.Getenv("TAIL_TEST_DENIED")
	if path == "" {
		t.Skip("run by TestFilePermission")
	}
	r := startAt(t, quick(path), nil)
	s := r.waitStatus("failed", func(s Status) bool { return s.State == Failed })
	fmt.Printf("denied: %s\n", s.LastError)
	r.want("one")
	fmt.Println("read one")
	r.want("one", "two")
	fmt.Println("read two")
	s = r.waitStatus("failed", func(s Status) bool { return s.State == Failed })
	fmt.Printf("denied again: %s\n", s.LastError)
	r.want("one", "two", "three", "four")
	fmt.Println("read three four")
	io.Copy(io.Discard, os.Stdin)
}

func TestFileLongLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	exact := strings.Repeat("e", maxLine)
	long := strings.Repeat("0123456789", 1<<20)
	appendTo(t, path, "one\n"+exact+"\n"+exact+"x\n"+long+"\nlast\n")
	r := startAt(t, quick(path), nil)
	r.want("one", exact, exact, long[:maxLine], "last")
	if s := r.in.Status(); s.Truncated != 2 {
		t.Errorf("truncated %d", s.Truncated)
	}
	// A long line that never ends is not held beyond its limit.
	appendTo(t, path, long)
	r.waitStatus("behind", func(s Status) bool { return s.Lag == int64(len(long)) })
	appendTo(t, path, "\nend\n")
	r.want("one", exact, exact, long[:maxLine], "last", long[:maxLine], "end")
}

func TestSourceHoldsLittle(t *testing.T) {
	s := &source{}
	chunk := bytes.Repeat([]byte("x"), 256<<10)
	for range 1000 {
		s.hold(chunk)
	}
	if cap(s.part) > 2*maxLine || s.readOffset() != 1000*256<<10 {
		t.Errorf("holds %d bytes, read offset %d", cap(s.part), s.readOffset())
	}
}

func TestFileSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	f, err := os.Create(path) // no O_APPEND
	must(t, err)
	defer f.Close()
	first := numbered(0, 100)
	io.WriteString(f, join(first))
	r := startAt(t, quick(path), nil)
	r.want(first...)
	// Truncated: the writer goes on at its old offset, and all before reads as NULs.
	must(t, f.Truncate(0))
	r.waitStatus("at the start again", func(s Status) bool { return s.Lag == 0 })
	io.WriteString(f, "after\n")
	r.want(append(first, "after")...)
	// A huge hole is jumped over.
	_, err = f.Seek(1<<40, io.SeekStart)
	must(t, err)
	io.WriteString(f, "far\n")
	r.want(append(first, "after", "far")...)
	mark := r.mark
	r.stop()
	r = startAt(t, quick(path), mark)
	io.WriteString(f, "on\n")
	r.want("on")
	// And without a mark.
	r.stop()
	r = startAt(t, NewFile(path, FileOptions{Back: 1 << 50}), nil)
	r.want("after", "far", "on")
}

// A numbered log is written and rotated by rename, in logrotate's ways, while it is followed.
func TestFileRotate(t *testing.T) {
	for _, dates := range []bool{false, true} {
		t.Run(fmt.Sprintf("dates=%v", dates), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mail.log")
			const total = 20000
			w := &writer{path: path, dates: dates, linger: 0}
			must(t, w.write(1)) // rotated files are not read by one who starts without a mark
			r := startAt(t, NewFile(path, FileOptions{}), nil)
			r.want(numbered(0, 1)...)
			wrote := make(chan error, 1)
			go func() {
				for w.next < total {
					if err := w.write(1 + w.next%7); err != nil {
						wrote <- err
						return
					}
					if w.next%1500 < 7 {
						if err := w.rotate(); err != nil {
							wrote <- err
							return
						}
					}
				}
				wrote <- nil
			}()
			for len(r.lines) < total {
				r.take()
			}
			must(t, <-wrote)
			for len(r.lines) < w.next {
				r.take()
			}
			same(t, r.lines, numbered(0, w.next))
		})
	}
}

// writer writes numbered lines, and rotates.
type writer struct {
	path   string
	dates  bool
	linger int // lines that still go to the old file after a rotation
	next   int
	turns  int
	f, old *os.File
	left   int
}

func (w *writer) write(n int) error {
	var text []byte
	for range n {
		text = append(append(text, numberedLine(w.next)...), '\n')
		w.next++
	}
	if w.f == nil {
		f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		w.f = f
	}
	f := w.f
	if w.left > 0 {
		if w.left -= n; w.left%2 == 0 {
			f = w.old
		}
	} else if w.old != nil {
		w.old.Close()
		w.old = nil
	}
	_, err := f.Write(text)
	return err
}

// rotate moves the file away and makes a new one, empty at first.
func (w *writer) rotate() error {
	w.turns++
	if w.dates {
		if err := os.Rename(w.path, fmt.Sprintf("%s-2026%04d", w.path, w.turns)); err != nil {
			return err
		}
	} else {
		for i := w.turns - 1; i >= 1; i-- {
			if err := os.Rename(w.path+"."+strconv.Itoa(i), w.path+"."+strconv.Itoa(i+1)); err != nil {
				return err
			}
		}
		if err := os.Rename(w.path, w.path+".1"); err != nil {
			return err
		}
	}
	if w.old != nil {
		w.old.Close()
	}
	w.old, w.f, w.left = w.f, nil, w.linger
	if w.linger == 0 {
		w.old.Close()
		w.old = nil
	}
	f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	w.f = f
	return err
}

// copyTruncate does what logrotate does, with the writer held still.
func (w *writer) copyTruncate() error {
	w.turns++
	for i := w.turns - 1; i >= 1; i-- {
		if err := os.Rename(w.path+"."+strconv.Itoa(i), w.path+"."+strconv.Itoa(i+1)); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(w.path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(w.path+".1", b, 0o640); err != nil {
		return err
	}
	return os.Truncate(w.path, 0)
}

// The writer stays on the old file for a while after the new one has content, and the reader is stopped in between.
func TestFileLinger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	old, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
	must(t, err)
	defer old.Close()
	io.WriteString(old, join(numbered(0, 10)))
	f := NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Linger: time.Hour})
	r := startAt(t, f, nil)
	r.want(numbered(0, 10)...)
	must(t, os.Rename(path, path+".1"))
	io.WriteString(old, join(numbered(10, 12)))
	r.want(numbered(0, 12)...)
	appendTo(t, path, join(numbered(12, 14)))
	r.want(numbered(0, 14)...)
	io.WriteString(old, join(numbered(14, 16)))
	r.want(numbered(0, 16)...)
	if m, _ := decodeMark(r.mark); len(m.Files) != 2 {
		t.Fatalf("mark %s", r.mark)
	}
	if s := r.in.Status(); !strings.Contains(s.Detail, "finishing 1 ") {
		t.Errorf("detail %q", s.Detail)
	}
	r.stop()
	io.WriteString(old, join(numbered(16, 18))+"no newline")
	appendTo(t, path, join(numbered(18, 20)))
	r = startAt(t, f, r.mark)
	r.want(append(numbered(16, 18), numbered(18, 20)...)...)
	mark := r.mark
	r.stop()
	// With the old one quiet, its unfinished line is handed over and it leaves the mark.
	r = startAt(t, NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Linger: time.Millisecond}), mark)
	r.want("no newline")
	if m, _ := decodeMark(r.mark); len(m.Files) != 1 {
		t.Fatalf("mark %s", r.mark)
	}
}

// Rotation while the agent is down.
func TestFileRotatedWhileDown(t *testing.T) {
	for _, c := range []struct {
		name  string
		turns int
		setup func(w *writer)
	}{
		{"once", 1, nil}, {"twice", 2, nil}, {"ten times", 10, nil},
		{"once, dates", 1, func(w *writer) { w.dates = true }},
		{"twice, dates", 2, func(w *writer) { w.dates = true }},
		{"five times, dates", 5, func(w *writer) { w.dates = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mail.log")
			// What else may stand there: compressed files, leftovers, others' files.
			for _, other := range []string{".gz", ".2.gz", "-20250101.xz", ".offset", ".swp", "rotate.conf", ".99"} {
				appendTo(t, path+other, "not this\n")
			}
			must(t, os.Chtimes(path+".99", time.Now(), time.Now().AddDate(0, 0, -9)))
			w := &writer{path: path}
			if c.setup != nil {
				c.setup(w)
			}
			must(t, w.write(50))
			r := startAt(t, quick(path), nil)
			r.want(numbered(0, 50)...)
			r.stop()
			must(t, w.write(5)) // unread when it is rotated
			for range c.turns {
				must(t, w.rotate())
				must(t, w.write(5))
			}
			r = startAt(t, quick(path), r.mark)
			r.want(numbered(50, w.next)...)
			r.stop()
			r = startAt(t, quick(path), r.mark)
			must(t, w.write(1))
			r.want(numberedLine(w.next - 1))
		})
	}
}

// The log was rotated away several times and not made again: its next line may be hours off.
func TestFileRotatedAway(t *testing.T) {
	for _, dates := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "mail.log")
		w := &writer{path: path, dates: dates}
		must(t, w.write(50))
		r := startAt(t, quick(path), nil)
		r.want(numbered(0, 50)...)
		r.stop()
		for range 3 {
			must(t, w.write(5))
			must(t, w.rotate())
		}
		must(t, os.Remove(path)) // which was empty
		r = startAt(t, quick(path), r.mark)
		r.want(numbered(50, 65)...)
		r.stop()
		// And over a restart, with the log there again.
		w.f.Close()
		w.f = nil
		must(t, w.write(5))
		r = startAt(t, quick(path), r.mark)
		r.want(numbered(65, 70)...)
	}
}

// The log was rotated when it was still empty, and its writer wrote to it only then, after another had written to the next.
func TestFileRotatedEmpty(t *testing.T) {
	for _, start := range []string{"follows", "no mark", "was down"} {
		t.Run(start, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "mail.log")
			in := func() *File { return NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Linger: time.Hour}) }
			w := &writer{path: path}
			var r *running
			if start == "no mark" {
				appendTo(t, path, "")
				r = startAt(t, in(), nil)
				r.waitStatus("following", func(s Status) bool { return s.State == Following })
			} else {
				must(t, w.write(3))
				r = startAt(t, in(), nil)
				r.want(numbered(0, 3)...)
			}
			if start == "was down" {
				r.stop()
			}
			must(t, w.rotate()) // what comes to be now stays empty
			must(t, w.rotate())
			empty, err := os.OpenFile(path+".1", os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			defer empty.Close()
			must(t, w.write(2))
			if start == "was down" {
				r = startAt(t, in(), r.mark)
			}
			if start == "was down" {
				r.want(numbered(3, w.next)...)
			} else {
				r.want(numbered(0, w.next)...)
			}
			before := len(r.lines)
			for i := range 3 {
				io.WriteString(empty, "late "+strconv.Itoa(i)+"\n")
			}
			r.want(append(slices.Clone(r.lines[:before]), "late 0", "late 1", "late 2")...)
			// The mark holds the place in it.
			r.stop()
			io.WriteString(empty, "later\n")
			must(t, w.write(1))
			r = startAt(t, in(), r.mark)
			r.want("later", numberedLine(w.next-1))
		})
	}
}

// A copy that logrotate is about to fill is not taken for a log that was rotated when empty.
func TestFileCopyStillEmpty(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "")
	in := NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Linger: time.Hour})
	r := startAt(t, in, nil)
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
	appendTo(t, path+".1", "")
	appendTo(t, path, "one\ntwo\n")
	r.want("one", "two")
	if m, _ := decodeMark(r.mark); len(m.Files) != 2 {
		t.Fatalf("mark %s: not the case that is meant", r.mark)
	}
	appendTo(t, path+".1", "one\n") // half of it at first
	r.waitStatus("done with the copy", func(s Status) bool { return s.Detail == "" })
	appendTo(t, path+".1", "two\n")
	must(t, os.Truncate(path, 0))
	appendTo(t, path, "three\n")
	r.want("one", "two", "three")
}

// The file of the mark is gone; what was rotated after it is read.
func TestFileMarkFileGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	w := &writer{path: path}
	must(t, w.write(50))
	r := startAt(t, quick(path), nil)
	r.want(numbered(0, 50)...)
	r.stop()
	hour := time.Now().Add(time.Hour)
	must(t, w.rotate())
	must(t, w.write(5))
	must(t, w.rotate())
	must(t, w.write(5))
	must(t, os.Remove(path+".2"))
	must(t, os.Chtimes(path+".1", hour, hour)) // later than the mark, whatever the clock's grain
	r = startAt(t, quick(path), r.mark)
	r.want(numbered(50, 60)...)
}

// A file that is removed and made again gets the same inode at once.
func TestFileSameInode(t *testing.T) {
	var r *running
	var path string
	back := false
	for try := 0; !back; try++ { // another process may be given the inode
		if try == 50 {
			t.Skip("this file system does not give the inode back")
		}
		path = filepath.Join(t.TempDir(), "mail.log")
		appendTo(t, path, join(numbered(0, 100)))
		ino := inode(t, path)
		r = startAt(t, quick(path), nil)
		r.want(numbered(0, 100)...)
		r.stop()
		must(t, os.Remove(path))
		appendTo(t, path, join(numbered(500, 700))) // longer than the offset
		back = inode(t, path) == ino
	}
	r = startAt(t, quick(path), r.mark)
	r.want(numbered(500, 700)...)
	r.stop()
	// The same with a shorter one that starts like the old one.
	must(t, os.Truncate(path, 0))
	appendTo(t, path, join(numbered(500, 510)))
	r = startAt(t, quick(path), r.mark)
	r.want(numbered(500, 510)...)
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Ino
}

func TestFileCopyTruncate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	w := &writer{path: path}
	r := startAt(t, quick(path), nil)
	for range 5 { // live
		must(t, w.write(100))
		r.want(numbered(0, w.next)...)
		must(t, w.write(3))
		must(t, w.copyTruncate())
		must(t, w.write(100)) // at times the reader sees it shorter, at times longer than before
		r.want(numbered(0, w.next)...)
	}
	r.stop()
	must(t, w.write(50)) // unread, and only in the copy
	must(t, w.copyTruncate())
	must(t, w.write(150))
	must(t, w.copyTruncate())
	must(t, w.write(10))
	before := len(r.lines)
	r = startAt(t, quick(path), r.mark)
	r.want(numbered(before, w.next)...)
}

func TestFileTruncatedBelow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, join(numbered(0, 10)))
	r := startAt(t, quick(path), nil)
	r.want(numbered(0, 10)...)
	must(t, os.WriteFile(path, []byte("new one\n"), 0o640)) // shorter and other text
	r.want(append(numbered(0, 10), "new one")...)
	r.stop()
	must(t, os.WriteFile(path, []byte("x\n"), 0o640))
	r = startAt(t, quick(path), r.mark)
	r.want("x")
}

// An old file that is moved back is read on, not again.
func TestFileMovedBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := startAt(t, NewFile(path, FileOptions{Poll: 20 * time.Millisecond, Linger: time.Hour}), nil)
	r.want("one")
	must(t, os.Rename(path, path+".1"))
	appendTo(t, path, "two\n")
	r.want("one", "two")
	must(t, os.Rename(path+".1", path))
	appendTo(t, path, "three\n")
	r.want("one", "two", "three")
}

func TestFileBadMark(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	for _, bad := range []string{"", "nonsense", `{"v":2}`, `{"v":1,"time":5,"cursor":"s=1"}`} {
		var said syncBuffer
		r := startAt(t, NewFile(path, FileOptions{Log: slog.New(slog.NewTextHandler(&said, nil))}), []byte(bad))
		r.want("one")
		if !strings.Contains(said.String(), "without a checkpoint") {
			t.Errorf("%q: log %q", bad, said.String())
		}
		r.stop()
	}
}

// The mark is kept when there is nothing at all to read yet: the log's file system may be mounted later.
func TestFileMarkWaits(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "mail.log")
	must(t, os.Mkdir(dir, 0o755))
	appendTo(t, path, "one\n")
	r := startAt(t, quick(path), nil)
	r.want("one")
	r.stop()
	must(t, os.Rename(dir, dir+".away"))
	r = startAt(t, quick(path), r.mark)
	r.waitStatus("waiting", func(s Status) bool { return s.State == Waiting })
	appendTo(t, filepath.Join(dir+".away", "mail.log"), "two\n")
	must(t, os.Rename(dir+".away", dir))
	r.want("two")
}

// Whatever happens to the reader: with what was committed, every line is there exactly once. A writer writes and
// rotates in all ways while readers are stopped at random, with the last batch in hand and not committed.
func TestFileCrashes(t *testing.T) {
	for _, mode := range []string{"rename", "dates", "linger", "copytruncate"} {
		t.Run(mode, func(t *testing.T) {
			checkCrashes(t, mode, seeds.Of(t))
		})
	}
}

func checkCrashes(t *testing.T, mode string, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	path := filepath.Join(t.TempDir(), "mail.log")
	w := &writer{path: path, dates: mode == "dates"}
	if mode == "linger" {
		w.linger = 60
	}
	rotations := 12
	total := 6000
	must(t, w.write(1))
	keep := false // do not rotate
	step := func() {
		must(t, w.write(1+rnd.IntN(20)))
		switch {
		case keep || w.left > 0 || w.turns >= rotations || rnd.IntN(40) > 0:
		case mode == "copytruncate":
			must(t, w.copyTruncate())
			must(t, w.write(10)) // or else two copies could start alike: with nothing
		default:
			must(t, w.rotate())
		}
	}
	first := startAt(t, quick(path), nil) // rotated files are not read by one who starts without a mark
	first.want(numbered(0, 1)...)
	first.stop()
	got, mark := first.lines, first.mark
	crashes := 0
	for w.next < total || len(got) < w.next {
		linger := 50 * time.Millisecond
		if mode == "linger" {
			// No file is given up while it may be written to, however slow the machine: files are given up between
			// rotations only.
			if keep = w.old == nil && rnd.IntN(2) == 0; !keep {
				linger = time.Hour
			}
		}
		r := startAt(t, NewFile(path, FileOptions{Linger: linger, Poll: 10 * time.Millisecond}), mark)
		for batches := rnd.IntN(8); batches >= 0; batches-- {
			for range rnd.IntN(3) {
				if w.next < total {
					step()
				}
			}
			if len(got) >= w.next {
				break
			}
			if rnd.IntN(3) == 0 && w.next < total { // not waiting for the reader
				continue
			}
			b, ok := r.peek()
			if !ok {
				t.Fatalf("no batch; %d of %d lines, status %+v\nmark %s", len(got), w.next, r.in.Status(), mark)
			}
			if batches == 0 && rnd.IntN(2) == 0 && w.next < total {
				break // received, worked on, and then the power went
			}
			r.commit(b)
			for _, l := range b.Lines {
				got = append(got, string(l))
			}
			mark = b.Mark
		}
		r.stop()
		crashes++
		keep = false
		for range rnd.IntN(3) { // while nobody reads
			if w.next < total {
				step()
			}
		}
	}
	t.Logf("%d lines, %d rotations, %d restarts", w.next, w.turns, crashes)
	want := numbered(0, w.next)
	if mode == "linger" { // two files are written in turns: the order between them is nobody's
		slices.Sort(got)
		slices.Sort(want)
	}
	same(t, got, want)
}

func testLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func BenchmarkFile(b *testing.B) {
	path := filepath.Join(b.TempDir(), "mail.log")
	text := join(numbered(0, 200000))
	appendTo(b, path, text)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		ctx, cancel := context.WithCancel(context.Background())
		out := make(chan Batch)
		done := make(chan error, 1)
		go func() { done <- quick(path).Run(ctx, nil, out) }()
		for n := 0; n < 200000; {
			n += len((<-out).Lines)
		}
		cancel()
		<-done
	}
	b.ReportMetric(200000*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
