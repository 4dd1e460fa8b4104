// Package store is the agent's state file: one bbolt file with the entries of the block table, the scores of the
// sources, the checkpoints of the inputs, the evidence behind blocks, and the audit trail.
//
// One Commit is one transaction: a checkpoint is on disk together with everything that the lines before it led to,
// or not at all. So after a crash at any instant no line is lost or counted twice. The package knows what bytes it
// keeps under which key, and nothing of what they mean.
//
// Buckets:
//
//	meta      version -> "1"; node -> the name of the node whose file it is
//	entries   sequence number, 8 bytes big-endian -> block.Entry in binary. Append-ordered: random keys would
//	          rewrite a page for every block. A newer record of the same key makes the older one garbage, which
//	          Compact removes.
//	scores    source key -> score record (package verdict)
//	marks     input ID -> checkpoint (package tail)
//	evidence  prefix -> JSON
//	audit     what people did: sequence number and prefix -> JSON of Audit
//	audit_agent  the same, of what the agent did by itself
//	extra     name -> bytes (parser state)
//
// Pages that become free are used again. At Open a file of which more than half is free is copied into a smaller one.
package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
	"unique"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/mxshield/mxshield/agent/block"
)

var (
	bMeta, bEntries, bScores, bMarks = []byte("meta"), []byte("entries"), []byte("scores"), []byte("marks")
	bEvidence, bExtra                = []byte("evidence"), []byte("extra")

	buckets  = [][]byte{bMeta, bEntries, bScores, bMarks, bEvidence, bExtra, bAudits[byPeople], bAudits[byAgent]}
	kVersion = []byte("version")
)

const version = "1"

// ErrLocked says that another process has the file open.
var ErrLocked = errors.New("the state file is in use by another process")

// ErrVersion says that the file was written by a newer version. It is not set aside: it is good, only not ours.
var ErrVersion = errors.New("the state file is of another version")

// Store is safe for concurrent use.
type Store struct {
	db      *bolt.DB
	path    string
	garbage atomic.Int64 // superseded records in the entries bucket since the last Compact, at most

	committing sync.Mutex
	audits     [2]int // audit records, by bucket
	compacting sync.Mutex
	maxKeys    uint64           // maxKeys; tests make it small
	now        func() time.Time // time.Now; tests set it
}

// Audit is one line of the audit trail.
type Audit struct {
	Time   time.Time    `json:"time"`
	Who    string       `json:"who"`    // "agent", "node mx2", or user and uid of the peer of the control socket
	Action string       `json:"action"` // block, unblock, allow, disallow, off, on
	Prefix netip.Prefix `json:"prefix,omitzero"`
	Detail string       `json:"detail,omitempty"`
}

// Open opens or creates the file (mode 0600, parent folder made). A file that is proved to be no state file any more
// is moved aside to path.corrupt-TIME; aside then names it, and the store starts empty. Every other error (no
// descriptors, no memory, a disk that does not answer, a full disk) leaves the file where it is and is returned with a
// hint: such a file is good again a minute later.
func Open(path string, now time.Time) (s *Store, aside string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, "", hinted(fmt.Errorf("make the folder of the state file: %w", err))
	}
	s, err = open(path)
	if err == nil && s.wasteful() {
		s, err = s.shrink()
	}
	if err == nil {
		return s, "", nil
	}
	if !isDamage(err, path) {
		return nil, "", hinted(err)
	}
	// What the mapping shows is not what the disk holds while the disk fails: bbolt calls a page that could not be
	// read invalid. Only a file that can be read from end to end, and is damaged all the same, is set aside.
	if rerr := readable(path); rerr != nil {
		return nil, "", hinted(fmt.Errorf("read state file %s: %w", path, rerr))
	}
	aside = path + ".corrupt-" + now.UTC().Format("20060102T150405.000Z")
	if rerr := os.Rename(path, aside); rerr != nil {
		return nil, "", hinted(fmt.Errorf("open %s: %w; moving it aside failed too: %w", path, err, rerr))
	}
	s, err = open(path)
	if err != nil {
		return nil, aside, hinted(err)
	}
	return s, aside, nil
}

// openFile is os.OpenFile; tests make it fail.
var openFile = os.OpenFile

func open(path string) (s *Store, err error) {
	// bbolt panics on some kinds of damage, and a file cut short faults where it is mapped; either way the file is
	// as unreadable as with an error.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("open state file %s: %w: %v", path, errDamaged, r)
		}
	}()
	// The free list is kept in the file: without it bbolt walks all pages at start in a goroutine of its own, and
	// damage found there ends the process.
	var file *os.File
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout: 2 * time.Second, FreelistType: bolt.FreelistMapType,
		OpenFile: func(name string, flag int, perm os.FileMode) (*os.File, error) {
			f, err := openFile(name, flag, perm)
			file = f
			return f, err
		},
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	}
	// While this waited for the lock, its holder may have put a smaller copy in the file's place.
	if here, err := os.Stat(path); err != nil {
		db.Close()
		return nil, fmt.Errorf("open state file %s: %w", path, err)
	} else if mine, err := file.Stat(); err != nil || !os.SameFile(here, mine) {
		db.Close()
		return nil, fmt.Errorf("open %s: %w", path, ErrLocked)
	}
	s = &Store{db: db, path: path, maxKeys: maxKeys, now: time.Now}
	if err := s.verify(); err != nil {
		db.Close()
		return nil, err
	}
	if err := s.prepare(); err != nil {
		db.Close()
		return nil, err
	}
	return s, nil
}

// prepare makes what a new file lacks. A file that lacks nothing is not written to: on a full disk the agent must
// still start and read it.
func (s *Store) prepare() error {
	complete := true
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, b := range buckets {
			complete = complete && tx.Bucket(b) != nil
		}
		if meta := tx.Bucket(bMeta); meta != nil {
			v := meta.Get(kVersion)
			complete = complete && v != nil
			if v != nil && string(v) != version {
				return fmt.Errorf("open %s: %w: it has %.20q, this agent reads %q", s.path, ErrVersion, v, version)
			}
		}
		return nil
	})
	if err != nil || complete {
		return err
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return tx.Bucket(bMeta).Put(kVersion, []byte(version))
	})
	if err != nil {
		return fmt.Errorf("write state file %s: %w", s.path, err)
	}
	return nil
}

// verify walks every page once before anything is written, so that damage shows at start, when the file can be set
// aside as it is, and not at 3 a.m.
func (s *Store) verify() error {
	return s.db.View(func(tx *bolt.Tx) error {
		for _, b := range buckets {
			bucket := tx.Bucket(b)
			if bucket == nil {
				continue // a new file, or one of an older version
			}
			n := 0
			if err := bucket.ForEach(func(k, v []byte) error {
				if v == nil {
					return fmt.Errorf("state file %s: %w: bucket %s holds a bucket", s.path, errDamaged, b)
				}
				n++
				return nil
			}); err != nil {
				return err
			}
			for i := range bAudits {
				if bytes.Equal(b, bAudits[i]) {
					s.audits[i] = n
				}
			}
		}
		return nil
	})
}

// Close closes the file.
func (s *Store) Close() error { return s.db.Close() }

// Path returns where the file is.
func (s *Store) Path() string { return s.path }

// Size returns the length of the file in bytes.
func (s *Store) Size() int64 {
	fi, err := os.Stat(s.path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

// Batch collects what belongs into one transaction. The zero Batch is empty and ready.
type Batch struct {
	Entries  []block.Entry
	Scores   map[string][]byte       // nil value: delete
	Marks    map[string][]byte       // nil value: delete
	Evidence map[netip.Prefix][]byte // nil value: delete
	Extra    map[string][]byte       // nil value: delete
	Audit    []Audit
}

// Empty reports whether there is nothing to write.
func (b *Batch) Empty() bool {
	return len(b.Entries) == 0 && len(b.Scores) == 0 && len(b.Marks) == 0 && len(b.Evidence) == 0 && len(b.Extra) == 0 && len(b.Audit) == 0
}

// Commit writes the batch in one transaction that is on disk when Commit returns. An empty batch writes nothing.
func (s *Store) Commit(b *Batch) error {
	if b.Empty() {
		return nil
	}
	s.committing.Lock()
	defer s.committing.Unlock()
	var kept [2]int
	err := s.db.Update(func(tx *bolt.Tx) error {
		entries := tx.Bucket(bEntries)
		var room []byte // of many records: they must stay as they are until the end
		for i := range b.Entries {
			if cap(room)-len(room) < usualEntry {
				room = make([]byte, 0, min(len(b.Entries)-i, 1024)*usualEntry)
			}
			v, err := b.Entries[i].AppendBinary(room[len(room):])
			if err != nil {
				return err
			}
			if len(v) <= cap(room)-len(room) {
				room = room[:len(room)+len(v)]
			}
			if err := appendTo(entries, v[:len(v):len(v)]); err != nil {
				return err
			}
		}
		for k, v := range b.Scores {
			if err := putOrDelete(tx.Bucket(bScores), []byte(k), v); err != nil {
				return err
			}
		}
		for k, v := range b.Marks {
			if err := putOrDelete(tx.Bucket(bMarks), []byte(k), v); err != nil {
				return err
			}
		}
		for k, v := range b.Extra {
			if err := putOrDelete(tx.Bucket(bExtra), []byte(k), v); err != nil {
				return err
			}
		}
		for p, v := range b.Evidence {
			if err := putOrDelete(tx.Bucket(bEvidence), []byte(p.String()), v); err != nil {
				return err
			}
		}
		var err error
		kept, err = writeAudit(tx, b.Audit, s.audits)
		return err
	})
	if err != nil {
		return fmt.Errorf("write state file %s: %w", s.path, err)
	}
	s.audits = kept
	s.garbage.Add(int64(len(b.Entries)))
	return nil
}

// usualEntry is what most records of entries fit into, in bytes.
const usualEntry = 96

func putOrDelete(b *bolt.Bucket, k, v []byte) error {
	if v == nil {
		return b.Delete(k)
	}
	return b.Put(k, v)
}

func seqKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func appendTo(b *bolt.Bucket, v []byte) error {
	b.FillPercent = 0.95 // keys only grow: leave no room for inserts
	n, err := b.NextSequence()
	if err != nil {
		return err
	}
	var key [8]byte // Put copies it
	binary.BigEndian.PutUint64(key[:], n)
	return b.Put(key[:], v)
}

// State is what Load gives back. The functions are called with memory that is good only during the call.
type State struct {
	Entry    func(block.Entry)
	BadEntry func(error) // an entry that does not decode: damaged or edited
	Score    func(key, val []byte)
	Mark     func(id string, mark []byte)
	Extra    func(name string, val []byte)
}

// Load reads the whole file.
func (s *Store) Load(to State) error {
	return s.db.View(func(tx *bolt.Tx) error {
		err := tx.Bucket(bEntries).ForEach(func(_, v []byte) error {
			s.garbage.Add(1)
			var e block.Entry
			if err := e.UnmarshalBinary(v); err != nil {
				to.BadEntry(err)
				return nil
			}
			to.Entry(e)
			return nil
		})
		if err != nil {
			return err
		}
		if err := tx.Bucket(bScores).ForEach(func(k, v []byte) error { to.Score(k, v); return nil }); err != nil {
			return err
		}
		if err := tx.Bucket(bExtra).ForEach(func(k, v []byte) error { to.Extra(string(k), v); return nil }); err != nil {
			return err
		}
		return tx.Bucket(bMarks).ForEach(func(k, v []byte) error { to.Mark(string(k), v); return nil })
	})
}

// Evidence returns what was kept for the prefix, nil if nothing was.
func (s *Store) Evidence(p netip.Prefix) ([]byte, error) {
	var v []byte
	err := s.db.View(func(tx *bolt.Tx) error {
		v = bytes.Clone(tx.Bucket(bEvidence).Get([]byte(p.String())))
		return nil
	})
	return v, err
}

// compactChunk bounds how long one compaction transaction keeps writers waiting, in records.
const compactChunk = 5000

// maxKeys bounds how many keys one pass of Compact keeps in memory (about 100 bytes each).
const maxKeys = 1 << 18

// Compact removes what the file does not need any more, in chunks so that commits get in between:
//
//   - records of which a newer one with the same key (origin, prefix, kind) has been committed. What is only in
//     memory, however new, makes nothing on disk superfluous: it may never get there.
//   - after these, records that have ended and whose key the table does not know any more (knows).
//   - evidence of prefixes that wanted refuses.
//
// It does nothing until there may be as much garbage as content.
func (s *Store) Compact(content int, knows func(*block.Entry) bool, wanted func(netip.Prefix) bool) (removed int, err error) {
	s.compacting.Lock()
	defer s.compacting.Unlock()
	before := s.garbage.Load()
	if before < int64(2*content+10_000) {
		return 0, nil
	}
	sweep := func(bucket []byte, gone func(k, v []byte) bool) error {
		var at []byte
		for done := false; !done; {
			err := s.db.Update(func(tx *bolt.Tx) error {
				b := tx.Bucket(bucket)
				c := b.Cursor()
				k, v := c.Seek(at)
				var del [][]byte
				for n := 0; k != nil && n < compactChunk; n++ {
					if gone(k, v) {
						del = append(del, bytes.Clone(k))
					}
					k, v = c.Next()
				}
				at, done = bytes.Clone(k), k == nil
				for _, k := range del {
					if err := b.Delete(k); err != nil {
						return err
					}
				}
				removed += len(del)
				return nil
			})
			if err != nil {
				return fmt.Errorf("compact state file %s: %w", s.path, err)
			}
		}
		return nil
	}
	// The keys are taken in parts, so that the memory this needs does not grow with the file.
	seed := maphash.MakeSeed()
	parts := uint64(before)/s.maxKeys + 1
	partOf := func(k entryKey) uint64 { return maphash.Comparable(seed, k.prefix) % parts }
	keyOf := func(e *block.Entry) entryKey {
		return entryKey{unique.Make(e.Origin), e.Prefix, e.Kind, e.Automatic(), unique.Make(e.Target)}
	}
	for part := range parts {
		newest := map[entryKey]edition{}
		if err := s.db.View(func(tx *bolt.Tx) error {
			return tx.Bucket(bEntries).ForEach(func(_, v []byte) error {
				var e block.Entry
				if e.UnmarshalBinary(v) != nil {
					return nil
				}
				if k := keyOf(&e); partOf(k) == part {
					if n := (edition{e.Stamp, e.Epoch, e.Seq}); newest[k].before(n) {
						newest[k] = n
					}
				}
				return nil
			})
		}); err != nil {
			return removed, fmt.Errorf("compact state file %s: %w", s.path, err)
		}
		// Records that are committed from here on are newer than what newest knows, and are not before it.
		if err := sweep(bEntries, func(_, v []byte) bool {
			var e block.Entry
			if e.UnmarshalBinary(v) != nil {
				return true
			}
			return edition{e.Stamp, e.Epoch, e.Seq}.before(newest[keyOf(&e)]) // the zero edition, of other parts, is before none
		}); err != nil {
			return removed, err
		}
	}
	// Only now, when of every key the newest record alone is left: with an older one beside it, the removal of an
	// ended record and a crash in this instant would bring the older one back to life.
	now := s.now()
	if err := sweep(bEntries, func(_, v []byte) bool {
		var e block.Entry
		return e.UnmarshalBinary(v) != nil || !e.Until.IsZero() && !e.Until.After(now) && !knows(&e)
	}); err != nil {
		return removed, err
	}
	if err := sweep(bEvidence, func(k, _ []byte) bool {
		p, perr := netip.ParsePrefix(string(k))
		return perr != nil || !wanted(p)
	}); err != nil {
		return removed, err
	}
	s.garbage.Add(int64(content) - before)
	return removed, nil
}

type entryKey struct {
	origin unique.Handle[string]
	prefix netip.Prefix
	kind   block.Kind
	auto   bool
	target unique.Handle[string] // of an origin clear
}

// edition orders the records of one key.
type edition struct {
	stamp block.Stamp
	epoch uint64
	seq   uint64
}

func (a edition) before(b edition) bool {
	return cmp.Or(cmp.Compare(a.stamp, b.stamp), cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.seq, b.seq)) < 0
}
