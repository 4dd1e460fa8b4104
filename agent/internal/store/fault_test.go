package store

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/mxshield/mxshield/agent/block"
)

// TestTransientErrorsLeaveTheFile: what is not the file's fault must not cost the file.
func TestTransientErrorsLeaveTheFile(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EACCES, syscall.ETXTBSY} {
		t.Run(errno.Error(), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			s := open1(t, path)
			if err := s.Commit(&Batch{Entries: []block.Entry{entry(1)}}); err != nil {
				t.Fatal(err)
			}
			s.Close()
			failOpen(t, 0, errno)
			s, aside, err := Open(path, t0)
			if s != nil || aside != "" || !errors.Is(err, errno) {
				t.Errorf("store %v, set aside %q, error %v; want the file left alone and %v", s != nil, aside, err, errno)
			}
			var hint interface{ HintText() string }
			if !errors.As(err, &hint) || hint.HintText() == "" {
				t.Errorf("%v has no hint", err)
			}
			openFile = os.OpenFile
			if c := load(t, open1(t, path)); len(c.entries) != 1 {
				t.Errorf("%d entries are left", len(c.entries))
			}
		})
	}
}

// TestDamageMustBeReadable: a file that looks damaged because the disk does not give it back is not set aside.
func TestDamageMustBeReadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(path, []byte("what a failing disk made of it"), 0o600); err != nil {
		t.Fatal(err)
	}
	failOpen(t, 1, syscall.EIO) // bbolt's opening works, reading the whole file does not
	if s, aside, err := Open(path, t0); s != nil || aside != "" || !errors.Is(err, syscall.EIO) {
		t.Errorf("store %v, set aside %q, error %v", s != nil, aside, err)
	}
}

func TestFolderAtThePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if s, aside, err := Open(path, t0); s != nil || aside != "" || err == nil {
		t.Errorf("store %v, set aside %q, error %v", s != nil, aside, err)
	}
}

// TestStartWritesNothing: on a full disk the agent must still get at what it knows.
func TestStartWritesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	if err := s.Commit(&Batch{Entries: []block.Entry{entry(1)}}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	open1(t, path).Close()
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("opening changed the file: %v", err)
	}
}
