package maillog

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func clientLine(q, ip string, at time.Time) []byte {
	return fmt.Appendf(nil, "%s mx postfix/smtpd[1]: %s: client=h[%s]", at.Format(time.RFC3339), q, ip)
}

func activeLine(q string, at time.Time) []byte {
	return fmt.Appendf(nil, "%s mx postfix/qmgr[1]: %s: from=<a@b>, size=1, nrcpt=1 (queue active)", at.Format(time.RFC3339), q)
}

func TestPendingBounds(t *testing.T) {
	p, at := New(Options{MaxPending: 100, PendingAge: time.Minute}), corpusRef
	var e Event
	for i := range 1000 {
		p.Parse(clientLine(fmt.Sprintf("Q%06d", i), "192.0.2.1", at), at, &e)
	}
	n := 0
	for i := range 1000 {
		if p.Parse(activeLine(fmt.Sprintf("Q%06d", i), at), at, &e) {
			if i < 900 {
				t.Fatalf("%d is still known", i)
			}
			n++
		}
	}
	if n != 100 {
		t.Errorf("%d of the newest 100 are known", n)
	}
	p.Parse(clientLine("ABCDEF", "192.0.2.1", at), at, &e)
	if p.Parse(activeLine("ABCDEF", at.Add(61*time.Second)), at, &e) {
		t.Error("too old, but delivered")
	}
}

// TestPendingModel: the table against a map, over many adds and removes of few keys.
func TestPendingModel(t *testing.T) {
	var tab pending
	tab.init(64, 1000)
	model, x := map[uint64]netip.Addr{}, uint64(1)
	for range 100000 {
		x = stir(x + 1)
		key := x>>8%50 + 1
		key = key << 60 >> 3 // long runs in the index
		key |= x >> 8 % 50
		key++
		a := netip.AddrFrom4([4]byte{192, 0, 2, byte(x >> 20)})
		switch x >> 40 % 3 {
		case 0:
			tab.add(key, a, 1, false)
			model[key] = a
		case 1:
			tab.remove(key)
			delete(model, key)
		case 2:
			w, ok := tab.take(key, 1)
			got := w.source()
			want, known := model[key]
			if ok && (!known || got != want) {
				t.Fatalf("take %d: %v, want %v %v", key, got, want, known)
			}
			delete(model, key)
		}
		live := 0
		for i := range tab.index {
			if tab.index[i] != 0 {
				live++
			}
		}
		if live > 64 || live > len(model) {
			t.Fatalf("%d in the index, %d in the model", live, len(model))
		}
	}
}

// TestPendingAlone: a restart between a message and its bounce does not leave it to its source's credit. A state of the version
// before has no such mark, and is read all the same.
func TestPendingAlone(t *testing.T) {
	at, o := corpusRef, Options{Seed: 7, Recipients: true}
	for _, old := range []bool{false, true} {
		p, e := New(o), Event{}
		p.Parse(clientLine("AAAAAA", "192.0.2.1", at), at, &e)
		p.Parse(activeLine("AAAAAA", at), at, &e)
		b := p.Pending()
		if old {
			b[len(pendingMagic)-1] = 4
			b[pendingHead+pendingEntry-1] &^= pendingAlone
		}
		q := New(o)
		if err := q.Restore(b); err != nil {
			t.Fatal(err)
		}
		line := fmt.Appendf(nil, `%s mx postfix/local[7]: AAAAAA: to=<x@example.org>, relay=local, delay=1, dsn=5.1.1, status=bounced (unknown user: "x")`,
			at.Format(time.RFC3339))
		if !q.Parse(line, at, &e) || e.Kind != UnknownRecipient || e.Undone == old {
			t.Errorf("old %v: %+v", old, e)
		}
	}
}

func TestPendingPersists(t *testing.T) {
	p, at := New(Options{Seed: 7}), corpusRef
	var e Event
	p.Parse(clientLine("AAAAAA", "192.0.2.1", at), at, &e)
	p.Parse(clientLine("BBBBBB", "2001:db8::1", at), at, &e)
	b := p.Pending()
	q := New(Options{Seed: 7})
	if err := q.Restore(b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q.Pending(), b) {
		t.Error("not the same bytes again")
	}
	if !q.Parse(activeLine("BBBBBB", at), at, &e) || e.Source != netip.MustParseAddr("2001:db8::1") || e.Kind != Delivered {
		t.Errorf("got %+v", e)
	}
	if err := New(Options{Seed: 8}).Restore(b); err == nil {
		t.Error("restored under another seed")
	}
	for i := range b {
		if New(Options{Seed: 7}).Restore(b[:i]) == nil {
			t.Errorf("restored from %d of %d bytes", i, len(b))
		}
	}
	small := New(Options{Seed: 7, MaxPending: 1})
	if err := small.Restore(b); err != nil || !small.Parse(activeLine("BBBBBB", at), at, &e) {
		t.Errorf("a smaller table: %v", err)
	}
}

func FuzzPending(f *testing.F) {
	p := New(Options{})
	var e Event
	f.Add(p.Pending())
	p.Parse(clientLine("AAAAAA", "192.0.2.1", corpusRef), corpusRef, &e)
	p.Parse(clientLine("BBBBBB", "2001:db8::1", corpusRef), corpusRef, &e)
	f.Add(p.Pending())
	f.Fuzz(func(t *testing.T, b []byte) {
		p := New(Options{MaxPending: 16})
		if err := p.Restore(b); err != nil {
			return
		}
		if b = p.Pending(); len(b) > pendingHead+3*16*pendingEntry {
			t.Errorf("%d bytes", len(b))
		}
		q := New(Options{MaxPending: 16})
		if err := q.Restore(b); err != nil || !bytes.Equal(q.Pending(), b) {
			t.Errorf("does not survive a second trip: %v", err)
		}
	})
}
