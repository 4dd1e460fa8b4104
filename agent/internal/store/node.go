package store

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/mxshield/mxshield/agent/block"
)

// kNode holds the name of this node, and while its entries are being renamed also the names it had before, oldest
// first, with a zero byte between them.
var kNode = []byte("node")

// SetNode tells whose file this is, and must be called before Load. If the node had another name when it last ran,
// the entries it made then get the new one: they are still this node's word, and only so can it replace or take back
// what it said. Entries of other nodes keep their names. (Other nodes, when there are any, see the renamed entries as
// new ones; those under the old name end there by themselves or by a clear.)
//
// A file that does not tell whose it is comes from a version that knew no other nodes: all its entries are this node's.
func (s *Store) SetNode(name string) (renamed int, err error) {
	if name == "" || len(name) > 255 || strings.Contains(name, "\x00") {
		return 0, fmt.Errorf("node name %.40q: 1 to 255 bytes, none of them zero", name)
	}
	fail := func(err error) (int, error) {
		return renamed, hinted(fmt.Errorf("rename the entries of the state file %s: %w", s.path, err))
	}
	var names []string
	if err := s.db.View(func(tx *bolt.Tx) error {
		if v := tx.Bucket(bMeta).Get(kNode); v != nil {
			names = strings.Split(string(v), "\x00")
		}
		return nil
	}); err != nil {
		return fail(err)
	}
	if slices.Equal(names, []string{name}) {
		return 0, nil
	}
	put := func(names ...string) error {
		return s.db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket(bMeta).Put(kNode, []byte(strings.Join(names, "\x00")))
		})
	}
	// Before the first entry: if this is killed half way, and the name changes once more, both names are known.
	if names != nil && !slices.Contains(names, name) {
		names = append(names, name)
		if err := put(names...); err != nil {
			return fail(err)
		}
	}
	var at []byte
	for done := false; !done; {
		if err := s.db.Update(func(tx *bolt.Tx) error {
			b := tx.Bucket(bEntries)
			b.FillPercent = 1
			c := b.Cursor()
			k, v := c.Seek(at)
			type change struct{ k, v []byte }
			var list []change
			for n := 0; k != nil && n < compactChunk; n++ {
				var e block.Entry
				if e.UnmarshalBinary(v) == nil && e.Origin != name && (names == nil || slices.Contains(names, e.Origin)) {
					e.Origin = name
					w, err := e.MarshalBinary()
					if err != nil {
						return err
					}
					list = append(list, change{bytes.Clone(k), w})
				}
				k, v = c.Next()
			}
			at, done = bytes.Clone(k), k == nil
			for _, x := range list {
				if err := b.Put(x.k, x.v); err != nil {
					return err
				}
			}
			renamed += len(list)
			return nil
		}); err != nil {
			return fail(err)
		}
	}
	if err := put(name); err != nil {
		return fail(err)
	}
	return renamed, nil
}
