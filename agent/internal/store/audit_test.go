package store

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

func audits(t *testing.T, s *Store, who string, n int) {
	t.Helper()
	for n > 0 {
		var b Batch
		for range min(n, 10_000) {
			a := netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
			b.Audit = append(b.Audit, Audit{Time: t0, Who: who, Action: "block", Prefix: netip.PrefixFrom(a, 32)})
			n--
		}
		if err := s.Commit(&b); err != nil {
			t.Fatal(err)
		}
	}
}

// TestAuditOfPeopleStays: a flood of automatic blocks must not push out what a person did, nor the other way round,
// and looking for it must not read them all.
func TestAuditOfPeopleStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	s := open1(t, path)
	p := netip.MustParsePrefix("203.0.113.7/32")
	hand := Audit{Time: t0, Who: "postmaster (uid 1000)", Action: "unblock", Prefix: p, Detail: "customer called"}
	if err := s.Commit(&Batch{Audit: []Audit{hand}}); err != nil {
		t.Fatal(err)
	}
	audits(t, s, "agent", maxAudit/2)
	s.Close()
	s = open1(t, path) // what is kept is counted anew
	audits(t, s, "agent", maxAudit/2+20_000)
	one := testing.AllocsPerRun(1, func() {
		h, err := s.History(p, 20)
		if err != nil || len(h) != 1 || h[0] != hand {
			t.Errorf("%+v, %v", h, err)
		}
	})
	all := testing.AllocsPerRun(1, func() {
		if h, err := s.History(netip.Prefix{}, 3*maxAudit); err != nil || len(h) != maxAudit+1 {
			t.Errorf("%d records, %v; want %d", len(h), err, maxAudit+1)
		}
	})
	// Looking for one address must not decode them all.
	if one > all/100 {
		t.Errorf("looking for one address among %d records allocates %.0f times, reading them all %.0f times", maxAudit, one, all)
	} else {
		t.Logf("search allocates %.4f of what reading all does", one/all)
	}
	s.Close()
	s = open1(t, path)
	if s.audits != [2]int{1, maxAudit} {
		t.Errorf("counted %v", s.audits)
	}
}

// TestHistoryMerges: one order for what the agent and what people did, whatever the clock says, and for records of
// files that had one bucket and no prefix in the key.
func TestHistoryMerges(t *testing.T) {
	s := open1(t, filepath.Join(t.TempDir(), "state.db"))
	old := Audit{Time: t0, Who: "agent", Action: "block", Prefix: netip.MustParsePrefix("2001:db8::/64"), Detail: "0"}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(bAudits[byPeople])
		n, err := b.NextSequence()
		if err != nil {
			return err
		}
		v, err := json.Marshal(old)
		if err != nil {
			return err
		}
		return b.Put(seqKey(n), v)
	}); err != nil {
		t.Fatal(err)
	}
	for i := 1; i < 10; i++ {
		a := Audit{Time: t0.Add(-time.Duration(i) * time.Hour), Who: []string{"agent", "root (uid 0)"}[i/2%2], Action: "block", Detail: fmt.Sprint(i)}
		a.Prefix = netip.MustParsePrefix([]string{"2001:db8::1/128", "192.0.2.7/32", "2001:db8::/48"}[i%3])
		if i == 5 {
			a.Action, a.Prefix = "off", netip.Prefix{}
		}
		if err := s.Commit(&Batch{Audit: []Audit{a}}); err != nil {
			t.Fatal(err)
		}
	}
	for p, want := range map[string]string{
		"": "9876543210", "2001:db8::1/128": "986320", "192.0.2.0/24": "741", "2001:db8:0:1::/64": "82", "::/0": "986320", "198.51.100.1/32": "",
	} {
		var of netip.Prefix
		if p != "" {
			of = netip.MustParsePrefix(p)
		}
		h, err := s.History(of, 100)
		got := ""
		for _, a := range h {
			got += a.Detail
		}
		if got != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", p, got, err, want)
		}
		if h, _ := s.History(of, 2); len(h) != min(2, len(want)) {
			t.Errorf("%s: %d with a limit of 2", p, len(h))
		}
	}
}
