package store

import (
	"os"
	"testing"

	bolt "go.etcd.io/bbolt"
)

// setVersion writes another version into the file, as a newer agent would.
func (s *Store) setVersion(v string) error {
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bMeta).Put(kVersion, []byte(v)) })
}

// failOpen makes the n-th opening of a file (counted from 0) fail, and those after it.
func failOpen(t *testing.T, n int, err error) {
	t.Cleanup(func() { openFile = os.OpenFile })
	openFile = func(name string, flag int, perm os.FileMode) (*os.File, error) {
		if n--; n < 0 {
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return os.OpenFile(name, flag, perm)
	}
}
