package tail

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStdin(t *testing.T) {
	rd, wr, err := os.Pipe()
	must(t, err)
	defer rd.Close()
	r := startAt(t, NewStdin(StdinOptions{File: rd}), nil)
	write := func(s string) {
		t.Helper()
		_, err := io.WriteString(wr, s)
		must(t, err)
	}
	if b := r.take(); !b.CaughtUp || len(b.Lines) != 0 {
		t.Fatalf("first batch %+v", b)
	}
	write("one\r\ntwo\nthr")
	r.want("one", "two")
	write("ee\n\n")
	r.want("one", "two", "three", "")
	long := strings.Repeat("x", 3*maxLine)
	go func() {
		io.WriteString(wr, long+"\nlast, without newline")
		wr.Close()
	}()
	r.want("one", "two", "three", "", long[:maxLine], "last, without newline")
	s := r.waitStatus("ended", func(s Status) bool { return s.State == Ended })
	if s.Truncated != 1 || s.Lines != 6 || !strings.Contains(s.Detail, "closed") {
		t.Errorf("status %+v", s)
	}
	if err := <-r.done; err != nil {
		t.Errorf("Run: %v", err)
	}
	r.done <- nil
}

// TestStdinLag: what waits in the pipe is the lag.
func TestStdinLag(t *testing.T) {
	rd, wr, err := os.Pipe()
	must(t, err)
	defer rd.Close()
	defer wr.Close()
	r := startAt(t, NewStdin(StdinOptions{File: rd}), nil)
	r.take()
	_, err = io.WriteString(wr, "one\n")
	must(t, err)
	r.want("one")
	r.waitStatus("read", func(s Status) bool { return s.Lag == 0 && s.State == Following })
	r.stop()
	io.WriteString(wr, "two\n")
	in := NewStdin(StdinOptions{File: rd})
	in.board.s.State = Reading
	if s := in.Status(); s.Lag != 4 {
		t.Errorf("status %+v", s)
	}
}

func TestStdinFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	must(t, os.WriteFile(path, []byte("one\n"), 0o600))
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	in := NewStdin(StdinOptions{File: f})
	if err := in.Run(context.Background(), nil, nil); err == nil || !strings.Contains(describe(err), "replay") || in.Status().State != Failed {
		t.Errorf("%v, %+v", err, in.Status())
	}
}
