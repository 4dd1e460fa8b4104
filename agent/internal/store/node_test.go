package store

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	bolt "go.etcd.io/bbolt"
)

// TestNewNodeName: after a change of the host's name, what a person says replaces what was said under the old name.
func TestNewNodeName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	p, q, other := netip.MustParsePrefix("203.0.113.7/32"), netip.MustParsePrefix("203.0.113.8/32"), netip.MustParsePrefix("203.0.113.9/32")
	start := func(name string, renamed int) (*Store, *block.Table) {
		t.Helper()
		s := open1(t, path)
		if n, err := s.SetNode(name); err != nil || n != renamed {
			t.Fatalf("as %s: %d renamed, %v; want %d", name, n, err, renamed)
		}
		tab := block.New(block.Options{Origin: name})
		for _, e := range load(t, s).entries {
			if _, err := tab.Load(e); err != nil {
				t.Fatal(err)
			}
		}
		return s, tab
	}
	apply := func(s *Store, tab *block.Table, e block.Entry, at time.Time) block.Result {
		t.Helper()
		r, err := tab.Apply(e, at)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Commit(&Batch{Entries: tab.Drain()}); err != nil {
			t.Fatal(err)
		}
		return r
	}
	hand := block.Entry{Prefix: p, Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll}
	s, tab := start("n1", 0)
	apply(s, tab, hand, t0)
	apply(s, tab, block.Entry{Prefix: q, Kind: block.Allow, Cause: block.Manual}, t0)
	peer := entry(0)
	peer.Origin, peer.Prefix = "peer", other
	if err := s.Commit(&Batch{Entries: []block.Entry{peer}}); err != nil {
		t.Fatal(err)
	}
	s.Close()

	s, tab = start("a-longer-name.example.org", 2)
	hand.Until = t0.Add(time.Hour)
	if r := apply(s, tab, hand, t0.Add(time.Second)); !r.Already {
		t.Error("the block made under the old name is not this node's")
	}
	if d := tab.Decide(p, t0.Add(2*time.Hour)); d.Drop {
		t.Errorf("the block under the old name goes on: %+v", d)
	}
	if list := tab.About(p); len(list) != 1 || list[0].Origin != "a-longer-name.example.org" {
		t.Errorf("%+v", list)
	}
	if list := tab.About(other); len(list) != 1 || list[0].Origin != "peer" {
		t.Errorf("the entry of another node became %+v", list)
	}
	// Killed while it was being renamed, and renamed once more.
	if err := s.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(bMeta).Put(kNode, []byte("n0\x00a-longer-name.example.org"))
	}); err != nil {
		t.Fatal(err)
	}
	half := entry(1)
	half.Origin = "n0"
	if err := s.Commit(&Batch{Entries: []block.Entry{half}}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s, tab = start("n3", 4)
	if list := tab.About(half.Prefix); len(list) != 1 || list[0].Origin != "n3" {
		t.Errorf("%+v", list)
	}
	s.Close()
	s, _ = start("n3", 0)
	for _, name := range []string{"", "a\x00b"} {
		if _, err := s.SetNode(name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}

// TestNodeOfAnOldFile: a file that does not tell whose it is has this node's entries only.
func TestNodeOfAnOldFile(t *testing.T) {
	s := open1(t, filepath.Join(t.TempDir(), "state.db"))
	if err := s.Commit(&Batch{Entries: []block.Entry{entry(1), entry(2)}}); err != nil { // of mx1
		t.Fatal(err)
	}
	if n, err := s.SetNode("mx9"); n != 2 || err != nil {
		t.Errorf("%d renamed, %v", n, err)
	}
	for _, e := range load(t, s).entries {
		if e.Origin != "mx9" {
			t.Errorf("%+v", e)
		}
	}
}
