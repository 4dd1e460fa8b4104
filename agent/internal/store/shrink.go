package store

import (
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// shrinkFrom is the size, in bytes, below which free space in the file does not matter.
var shrinkFrom = int64(4 << 20)

// wasteful says whether more than half of the file is free pages: bbolt uses them again, but never gives them back.
func (s *Store) wasteful() bool {
	size := s.Size()
	return size >= shrinkFrom && int64(s.db.Stats().FreePageN)*int64(s.db.Info().PageSize) > size/2
}

// shrink copies the content to a new file and puts it in the place of the old one. The copy is on disk, whole, before
// the one rename that makes it the state file; killed at any instant, one of the two is there. If it cannot be made
// (no room), the old file is as good as it was.
func (s *Store) shrink() (*Store, error) {
	tmp := s.path + ".new"
	if err := s.copyTo(tmp); err != nil {
		os.Remove(tmp)
		return s, nil
	}
	// Renamed while the old file is still locked: who waits for that lock finds another file at the path.
	if err := os.Rename(tmp, s.path); err != nil {
		os.Remove(tmp)
		return s, nil
	}
	if d, err := os.Open(filepath.Dir(s.path)); err == nil {
		_ = d.Sync() // without it the old file may be what is found after a power cut: as good
		d.Close()
	}
	if err := s.db.Close(); err != nil {
		return nil, err
	}
	return open(s.path)
}

func (s *Store) copyTo(tmp string) error {
	if err := os.Remove(tmp); err != nil && !os.IsNotExist(err) { // what a killed one left
		return err
	}
	dst, err := bolt.Open(tmp, 0o600, &bolt.Options{Timeout: time.Second, FreelistType: bolt.FreelistMapType, NoSync: true, OpenFile: openFile})
	if err != nil {
		return err
	}
	if err := bolt.Compact(dst, s.db, 1<<20); err != nil {
		dst.Close()
		return err
	}
	if err := dst.Sync(); err != nil {
		dst.Close()
		return err
	}
	return dst.Close()
}
