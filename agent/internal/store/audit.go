package store

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"strings"

	bolt "go.etcd.io/bbolt"
)

// The audit trail has two buckets, so that a flood of automatic blocks does not push out what people did. Both number
// their records from one sequence, which is the order of History whatever the clock did meanwhile. The key of a
// record holds its prefix: to find those of one address, a look at the keys is enough (two hundred thousand take some
// milliseconds), and an index, one more random write for each block, is not needed.
//
//	number, 8 bytes big-endian | length of the prefix in the IPv6 space, 1 | address as IPv6, 16
//
// Records without a prefix, and those of older files, have the number alone.

// maxAudit is how many records are kept of each: of the agent, and of people.
const maxAudit = 100_000

// agentName is Audit.Who of what the agent did by itself.
const agentName = "agent"

// nodePrefix begins Audit.Who of what other nodes said, which must not push out what people did here either.
const nodePrefix = "node "

const (
	byPeople = iota
	byAgent
)

var bAudits = [...][]byte{byPeople: []byte("audit"), byAgent: []byte("audit_agent")}

func auditKey(n uint64, p netip.Prefix) []byte {
	k := seqKey(n)
	if !p.IsValid() {
		return k
	}
	a, bits := p.Addr().As16(), p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return append(append(k, byte(bits)), a[:]...)
}

// auditPrefix reads the prefix out of a key; not known: only the record itself can tell.
func auditPrefix(k []byte) (p netip.Prefix, known bool) {
	if len(k) != 8+1+16 {
		return p, false
	}
	a, bits := netip.AddrFrom16([16]byte(k[9:])), int(k[8])
	if a.Is4In6() && bits >= 96 {
		a, bits = a.Unmap(), bits-96
	}
	return netip.PrefixFrom(a, bits), true
}

// writeAudit appends the records and removes the oldest ones beyond maxAudit. kept is how many there are, by bucket;
// it returns how many there are now.
func writeAudit(tx *bolt.Tx, list []Audit, kept [2]int) ([2]int, error) {
	for _, a := range list {
		which := byPeople
		if a.Who == agentName || strings.HasPrefix(a.Who, nodePrefix) {
			which = byAgent
		}
		v, err := json.Marshal(a)
		if err != nil {
			return kept, err
		}
		n, err := tx.Bucket(bAudits[byPeople]).NextSequence()
		if err != nil {
			return kept, err
		}
		b := tx.Bucket(bAudits[which])
		b.FillPercent = 0.95
		if err := b.Put(auditKey(n, a.Prefix), v); err != nil {
			return kept, err
		}
		kept[which]++
	}
	for which, name := range bAudits {
		if kept[which] <= maxAudit {
			continue
		}
		b := tx.Bucket(name)
		var old [][]byte
		c := b.Cursor()
		for k, _ := c.First(); k != nil && kept[which] > maxAudit; k, _ = c.Next() {
			old = append(old, append([]byte(nil), k...))
			kept[which]--
		}
		for _, k := range old {
			if err := b.Delete(k); err != nil {
				return kept, err
			}
		}
	}
	return kept, nil
}

// History returns the audit records about prefixes that contain p or lie inside it, newest first, at most limit.
// An invalid p selects all.
func (s *Store) History(p netip.Prefix, limit int) (list []Audit, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		var cursors [2]*bolt.Cursor
		var keys, vals [2][]byte
		for i, name := range bAudits {
			cursors[i] = tx.Bucket(name).Cursor()
			keys[i], vals[i] = cursors[i].Last()
		}
		for len(list) < limit {
			i := byPeople
			switch {
			case keys[byPeople] == nil && keys[byAgent] == nil:
				return nil
			case keys[byPeople] == nil, keys[byAgent] != nil && number(keys[byAgent]) > number(keys[byPeople]):
				i = byAgent
			}
			if of, known := auditPrefix(keys[i]); !p.IsValid() || !known || of.Overlaps(p) {
				var a Audit
				// An edited record is left out; the others still count.
				if json.Unmarshal(vals[i], &a) == nil && (!p.IsValid() || a.Prefix.IsValid() && a.Prefix.Overlaps(p)) {
					list = append(list, a)
				}
			}
			keys[i], vals[i] = cursors[i].Prev()
		}
		return nil
	})
	return list, err
}

// number reads the sequence number that a key begins with; 0 for an edited one.
func number(k []byte) uint64 {
	if len(k) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(k)
}
