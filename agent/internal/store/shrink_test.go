package store

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// hollow makes a closed state file of which most is free, and tells what it holds.
func hollow(t *testing.T) (path string, size int64, c contents) {
	t.Helper()
	was := shrinkFrom
	shrinkFrom = 1 << 18
	t.Cleanup(func() { shrinkFrom = was })
	path = filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	s.now = func() time.Time { return t0.Add(73 * time.Hour) }
	addGarbage(t, s, 1000, 13)
	if err := s.Commit(&Batch{
		Marks: map[string][]byte{"file:/x": []byte("m")}, Extra: map[string][]byte{"seed": []byte("s")},
		Audit: []Audit{{Time: t0, Who: "root", Action: "block", Prefix: entry(1).Prefix}, {Time: t0, Who: "agent", Action: "block", Prefix: entry(2).Prefix}},
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Compact(100, func(e *block.Entry) bool { return e.Prefix.Addr().As4()[3] < 10 }, func(netip.Prefix) bool { return false }); err != nil {
		t.Fatal(err)
	}
	c = load(t, s)
	size = s.Size()
	s.Close()
	return path, size, c
}

func TestShrink(t *testing.T) {
	path, size, want := hollow(t)
	if err := os.WriteFile(path+".new", []byte("what a killed agent left"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := open1(t, path)
	if s.Size() > size/4 {
		t.Errorf("%d bytes of %d are left", s.Size(), size)
	}
	if got := load(t, s); !reflect.DeepEqual(got, want) {
		t.Errorf("%d entries and %d scores, want %d and %d", len(got.entries), len(got.scores), len(want.entries), len(want.scores))
	}
	if h, err := s.History(netip.Prefix{}, 9); err != nil || len(h) != 2 || h[0].Who != "agent" {
		t.Errorf("history %+v, %v", h, err)
	}
	// Numbers go on: a new record must not take the place of an old one.
	if err := s.Commit(&Batch{Entries: []block.Entry{entry(5000)}, Audit: []Audit{{Time: t0, Who: "root", Action: "off"}}}); err != nil {
		t.Fatal(err)
	}
	if got := load(t, s); len(got.entries) != len(want.entries)+1 || got.entries[len(want.entries)] != entry(5000) {
		t.Errorf("%d entries after one more", len(got.entries))
	}
	if h, err := s.History(netip.Prefix{}, 9); err != nil || len(h) != 3 {
		t.Errorf("history %+v, %v", h, err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if _, err := os.Stat(path + ".new"); !os.IsNotExist(err) {
		t.Errorf("the copy is still there: %v", err)
	}
	size = s.Size()
	s.Close()
	if s = open1(t, path); s.Size() != size {
		t.Errorf("shrunk again: %d of %d", s.Size(), size)
	}
}

// TestShrinkFails: without room for the copy the file stays as it is, and in use.
func TestShrinkFails(t *testing.T) {
	path, size, want := hollow(t)
	failOpen(t, 1, syscall.ENOSPC) // the file itself can be opened, the copy cannot
	s := open1(t, path)
	if got := load(t, s); s.Size() != size || !reflect.DeepEqual(got, want) {
		t.Errorf("%d bytes of %d, %d entries", s.Size(), size, len(got.entries))
	}
	if err := s.Commit(&Batch{Entries: []block.Entry{entry(1)}}); err != nil {
		t.Error(err)
	}
}

// TestReplacedWhileWaiting: who waited for the lock of a file that was replaced meanwhile must not write to the old one.
func TestReplacedWhileWaiting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open1(t, path).Close()
	t.Cleanup(func() { openFile = os.OpenFile })
	openFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag, perm)
		if err == nil && name == path {
			if err := os.Rename(path, path+".old"); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return f, err
	}
	if s, aside, err := Open(path, t0); s != nil || aside != "" || err == nil {
		t.Errorf("store %v, set aside %q, %v", s != nil, aside, err)
	}
}
