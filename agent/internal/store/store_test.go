package store

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

var t0 = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func entry(i int) block.Entry {
	a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
	return block.Entry{
		Origin: "mx1", Prefix: netip.PrefixFrom(a, 32), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX,
		Since: t0, Until: t0.Add(72 * time.Hour), Stamp: block.StampAt(t0) + block.Stamp(i), Seq: uint64(i + 1), Hits: 10,
	}
}

type contents struct {
	entries []block.Entry
	bad     int
	scores  map[string]string
	marks   map[string]string
	extra   map[string]string
}

func load(t *testing.T, s *Store) contents {
	t.Helper()
	c := contents{scores: map[string]string{}, marks: map[string]string{}, extra: map[string]string{}}
	err := s.Load(State{
		Entry:    func(e block.Entry) { c.entries = append(c.entries, e) },
		BadEntry: func(error) { c.bad++ },
		Score:    func(k, v []byte) { c.scores[string(k)] = string(v) },
		Mark:     func(id string, m []byte) { c.marks[id] = string(m) },
		Extra:    func(n string, v []byte) { c.extra[n] = string(v) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func open1(t *testing.T, path string) *Store {
	t.Helper()
	s, aside, err := Open(path, t0)
	if err != nil || aside != "" {
		t.Fatalf("open: %v, set aside %q", err, aside)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestCommitAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "deep", "state.db")
	s := open1(t, path)
	p := netip.MustParsePrefix("198.18.0.1/32")
	err := s.Commit(&Batch{
		Entries: []block.Entry{entry(1), entry(2)}, Scores: map[string][]byte{"k": []byte("v")},
		Marks: map[string][]byte{"file:/x": []byte("m1")}, Extra: map[string][]byte{"seed": []byte("s")},
		Evidence: map[netip.Prefix][]byte{p: []byte("{}")}, Audit: []Audit{{Time: t0, Who: "root", Action: "block", Prefix: p}},
	})
	if err != nil {
		t.Fatal(err)
	}
	size := s.Size()
	if err := s.Commit(&Batch{}); err != nil || s.Size() != size {
		t.Errorf("an empty batch wrote something: %v", err)
	}
	s.Close()
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", fi.Mode(), err)
	}
	s = open1(t, path)
	c := load(t, s)
	if len(c.entries) != 2 || c.entries[0] != entry(1) || c.scores["k"] != "v" || c.marks["file:/x"] != "m1" || c.extra["seed"] != "s" {
		t.Errorf("read back %+v", c)
	}
	if e, err := s.Evidence(p); err != nil || string(e) != "{}" {
		t.Errorf("evidence %q, %v", e, err)
	}
	h, err := s.History(netip.MustParsePrefix("198.18.0.0/16"), 10)
	if err != nil || len(h) != 1 || h[0].Who != "root" {
		t.Errorf("history %+v, %v", h, err)
	}
	if h, _ := s.History(netip.MustParsePrefix("203.0.113.1/32"), 10); len(h) != 0 {
		t.Errorf("history of another address: %+v", h)
	}
	if err := s.Commit(&Batch{Marks: map[string][]byte{"file:/x": nil}, Extra: map[string][]byte{"seed": nil}}); err != nil {
		t.Fatal(err)
	}
	if c := load(t, s); len(c.marks) != 0 || len(c.extra) != 0 {
		t.Errorf("not taken out: %+v", c)
	}
}

func TestLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	if err := s.Commit(&Batch{Entries: []block.Entry{entry(1)}}); err != nil {
		t.Fatal(err)
	}
	if _, aside, err := Open(path, t0); !errors.Is(err, ErrLocked) || aside != "" {
		t.Errorf("second open: %v, set aside %q", err, aside)
	}
}

func TestDamagedFileIsSetAside(t *testing.T) {
	whole := filepath.Join(t.TempDir(), "whole.db")
	s := open1(t, whole)
	for i := range 200 {
		if err := s.Commit(&Batch{Entries: []block.Entry{entry(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	good, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func() []byte{
		"text":     func() []byte { return []byte("this is no state file\n") },
		"empty":    nil,
		"cut":      func() []byte { return good[:len(good)/2] },
		"cut page": func() []byte { return good[:len(good)-4096*2] },
		"zeroes":   func() []byte { return make([]byte, len(good)) },
		"noise": func() []byte {
			b := append([]byte(nil), good...)
			for i := 2 * 4096; i < len(b); i += 7 {
				b[i] ^= 0x5a
			}
			return b
		},
	}
	for name, f := range damage {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.db")
			var b []byte
			if f != nil {
				b = f()
			}
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			s, aside, err := Open(path, t0)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if f == nil { // what a first start leaves if it is killed at once
				if aside != "" {
					t.Errorf("an empty file was set aside as %s", aside)
				}
				return
			}
			if name == "cut page" && aside == "" {
				return // the last pages may be free ones
			}
			if kept, err := os.ReadFile(aside); err != nil || string(kept) != string(b) {
				t.Errorf("the damaged file was not kept: %v", err)
			}
			if err := s.Commit(&Batch{Entries: []block.Entry{entry(1)}}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestOtherVersionIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	if err := s.setVersion("2"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, aside, err := Open(path, t0); !errors.Is(err, ErrVersion) || aside != "" {
		t.Errorf("%v, set aside %q", err, aside)
	}
}

// addGarbage commits rounds versions of n entries, so that a compaction is due.
func addGarbage(t *testing.T, s *Store, n, rounds int) {
	t.Helper()
	for round := range rounds {
		b := Batch{Scores: map[string][]byte{}, Evidence: map[netip.Prefix][]byte{}}
		for i := range n {
			e := entry(i)
			e.Seq += uint64(round * n)
			b.Entries = append(b.Entries, e)
			b.Scores[strconv.Itoa(i)] = []byte{1}
			b.Evidence[e.Prefix] = []byte("{}")
		}
		if err := s.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCompact(t *testing.T) {
	s := open1(t, filepath.Join(t.TempDir(), "state.db"))
	s.maxKeys = 700 // several parts
	s.now = func() time.Time { return t0.Add(73 * time.Hour) }
	addGarbage(t, s, 1000, 13)
	n, err := s.Compact(1000, func(e *block.Entry) bool { return e.Prefix != entry(3).Prefix },
		func(p netip.Prefix) bool { return p != entry(7).Prefix })
	if want := 12*1000 + 2; err != nil || n != want {
		t.Errorf("removed %d, %v; want %d", n, err, want)
	}
	if err := s.Commit(&Batch{Scores: map[string][]byte{"7": nil}}); err != nil {
		t.Fatal(err)
	}
	c := load(t, s)
	if len(c.entries) != 999 || len(c.scores) != 999 {
		t.Errorf("left %d entries and %d scores", len(c.entries), len(c.scores))
	}
	for _, e := range c.entries {
		if e.Seq <= 12*1000 || e.Prefix == entry(3).Prefix {
			t.Fatalf("left %+v", e)
		}
	}
	if e, _ := s.Evidence(entry(7).Prefix); e != nil {
		t.Error("evidence that nobody wants is still there")
	}
	if n, err := s.Compact(1000, func(*block.Entry) bool { t.Error("compacted again"); return true }, nil); n != 0 || err != nil {
		t.Errorf("second time: %d, %v", n, err)
	}
}

// TestCompactBelievesTheDisk: a newer version that is only in memory, or no version in memory at all, does not remove
// the committed record of a block that stands.
func TestCompactBelievesTheDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	s.now = func() time.Time { return t0.Add(time.Hour) }
	tab := block.New(block.Options{Origin: "mx1"})
	hand := block.Entry{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll}
	if _, err := tab.Apply(hand, t0); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(&Batch{Entries: tab.Drain()}); err != nil { // this is what was acknowledged
		t.Fatal(err)
	}
	addGarbage(t, s, 1000, 13)
	hand.Until = t0.Add(time.Minute)
	if _, err := tab.Apply(hand, t0.Add(time.Second)); err != nil { // this never gets to the disk
		t.Fatal(err)
	}
	for _, knows := range []func(*block.Entry) bool{tab.Holds, func(*block.Entry) bool { return false }} {
		s.garbage.Store(13_000)
		if _, err := s.Compact(100, knows, func(netip.Prefix) bool { return true }); err != nil {
			t.Fatal(err)
		}
		found := 0
		for _, e := range load(t, s).entries {
			if e.Prefix == hand.Prefix {
				found++
			}
		}
		if found != 1 {
			t.Fatalf("%d records of the acknowledged block are left, want 1", found)
		}
	}
}

// TestCompactNeverRevives: whatever the compaction has done when it is killed, no older version comes back.
func TestCompactNeverRevives(t *testing.T) {
	s := open1(t, filepath.Join(t.TempDir(), "state.db"))
	s.now = func() time.Time { return t0.Add(73 * time.Hour) }
	newer, older := entry(1), entry(1)
	newer.Seq += 5
	older.Until = t0.Add(160 * time.Hour)
	// A commit that failed is repeated after others: the numbers of the records are not the order of their stamps.
	if err := s.Commit(&Batch{Entries: []block.Entry{newer, older}}); err != nil {
		t.Fatal(err)
	}
	addGarbage(t, s, 1, 0)
	s.garbage.Store(1 << 20)
	ended := 0
	_, err := s.Compact(1, func(e *block.Entry) bool {
		ended++
		if *e != newer {
			t.Errorf("%+v stood when the ended ones were removed", e)
		}
		return false
	}, nil)
	if err != nil || ended != 1 || len(load(t, s).entries) != 0 {
		t.Errorf("%v; %d ended, left %+v", err, ended, load(t, s).entries)
	}
}

func TestAuditIsBounded(t *testing.T) {
	s := open1(t, filepath.Join(t.TempDir(), "state.db"))
	p := netip.MustParsePrefix("198.18.0.1/32")
	for range 11 {
		b := Batch{}
		for range maxAudit / 10 {
			b.Audit = append(b.Audit, Audit{Time: t0, Who: "agent", Action: "block", Prefix: p})
		}
		if err := s.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
	if h, err := s.History(p, 2*maxAudit); err != nil || len(h) != maxAudit {
		t.Errorf("%d records, %v; want %d", len(h), err, maxAudit)
	}
}

// TestKill writes batches in a child that is killed at a random instant; what the child said was committed is there,
// and every batch is there whole or not at all.
func TestKill(t *testing.T) {
	if path := os.Getenv("MXSHIELD_STORE_CHILD"); path != "" {
		s, _, err := Open(path, t0)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		for i := 0; ; i++ {
			b := Batch{Marks: map[string][]byte{"file:/x": []byte(strconv.Itoa(i))}}
			for j := range 5 {
				b.Entries = append(b.Entries, entry(i*5+j))
			}
			if err := s.Commit(&b); err != nil {
				fmt.Println("error", err)
				os.Exit(1)
			}
			fmt.Println(i)
		}
	}
	path := filepath.Join(t.TempDir(), "state.db")
	for round := range 5 {
		os.Remove(path)
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "MXSHIELD_STORE_CHILD="+path)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := -1
		buf := make([]byte, 4096)
		var text strings.Builder
		for acked < 10+round*7 {
			n, err := out.Read(buf)
			if err != nil {
				t.Fatalf("the child ended early: %v %s", err, text.String())
			}
			text.Write(buf[:n])
			for line := range strings.Lines(text.String()) {
				if i, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && strings.HasSuffix(line, "\n") {
					acked = max(acked, i)
				}
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it says "killed"
		s := open1(t, path)
		c := load(t, s)
		mark, err := strconv.Atoi(c.marks["file:/x"])
		if err != nil || mark < acked || len(c.entries) != (mark+1)*5 || c.bad != 0 {
			t.Errorf("round %d: acknowledged %d, mark %q, %d entries, %d bad", round, acked, c.marks["file:/x"], len(c.entries), c.bad)
		}
		s.Close()
	}
}
