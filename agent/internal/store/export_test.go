package store

import bolt "go.etcd.io/bbolt"

// setVersion writes another version into the file, as a newer agent would.
func (s *Store) setVersion(v string) error {
	return s.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bMeta).Put(kVersion, []byte(v)) })
}
