package replica

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/mxshield/mxshield/agent/block"
)

var update = flag.Bool("update", false, "rewrite testdata")

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// samples are entries of every form on the wire.
func samples() []block.Entry {
	at := epoch0.Add(1234 * time.Millisecond)
	e := func(seq uint64, p string, k block.Kind, c block.Cause, life time.Duration, hits uint32) block.Entry {
		e := block.Entry{Origin: "mx1", Epoch: 0x1a20320a2001234, Seq: seq, Prefix: pfx(p), Kind: k, Cause: c, Stamp: block.StampAt(at) + block.Stamp(seq), Since: at.Truncate(time.Second), Hits: hits}
		if k == block.Block {
			e.Scope = c.Scope()
		}
		if life > 0 {
			e.Until = at.Truncate(time.Second).Add(life)
		}
		return e
	}
	return []block.Entry{
		e(1, "198.51.100.7/32", block.Block, block.Dictionary, 72*time.Hour, 12),
		e(2, "2001:db8:1:2::/64", block.Block, block.AuthBrute, 168*time.Hour, 70_000),
		e(3, "198.51.100.0/24", block.Block, block.Manual, 0, 0),
		e(9, "2001:db8::/32", block.Clear, block.NoCause, 30*24*time.Hour, 0),
		e(10, "2001:db8::1/128", block.Allow, block.Manual, 0, 0),
		e(300, "203.0.113.4/30", block.Disallow, block.NoCause, 0, 0),
		{Origin: "mx1", Epoch: 0x1a20320a2001234, Seq: 301, Kind: block.OriginClear, Target: "mx9", Stamp: block.StampAt(at.Add(-time.Hour)), Since: at.Truncate(time.Second)},
	}
}

func recordsMessage(list []block.Entry) []byte {
	b := putString(header(nil, kindRecords), list[0].Origin)
	b = binary.BigEndian.AppendUint64(b, list[0].Epoch)
	b = binary.AppendUvarint(binary.AppendUvarint(b, millis(epoch0)), list[len(list)-1].Seq)
	w := runWriter{b: b}
	w.start(list[0].Seq-1, list[0].Stamp)
	for i := range list {
		if !w.add(&list[i], MaxDatagram) {
			panic("too long")
		}
	}
	return w.b
}

// catcher is a Net that keeps what is sent.
type catcher struct {
	peers []string
	msgs  [][]byte
	to    []string
}

func (c *catcher) Peers() []string { return c.peers }
func (c *catcher) Send(to string, msg []byte) bool {
	c.msgs, c.to = append(c.msgs, msg), append(c.to, to)
	return true
}
func (c *catcher) Stream(to string, msg []byte) bool { return c.Send(to, msg) }
func (c *catcher) WireVersion(string) uint32         { return WireVersion }
func (c *catcher) Behind() time.Duration             { return 0 }

// lone is a node without a world.
func lone(t testing.TB, name string, clock *time.Time, o Options) (*Node, *catcher) {
	c := &catcher{peers: []string{"mx8", "mx9"}}
	o.Node, o.Net, o.Rand = name, c, rand.New(rand.NewPCG(1, 2))
	o.Clock = func() time.Time { return *clock }
	if o.Table == nil {
		o.Table = block.New(block.Options{Origin: name})
	}
	n, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return n, c
}

// goldenMessages are one of each kind, as version 1 writes them.
func goldenMessages(t testing.TB) map[string][]byte {
	m := map[string][]byte{"records": recordsMessage(samples())}
	now := epoch0.Add(1500 * time.Millisecond)
	n, c := lone(t, "mx2", &now, Options{})
	n.Receive("mx1", m["records"])
	m["digest"] = n.Digest()
	ask := func(spans spans) []byte {
		b := putString(binary.AppendUvarint(header(nil, kindPull), 77), "mx1")
		b = binary.BigEndian.AppendUint64(b, samples()[0].Epoch)
		return putSpans(binary.AppendUvarint(b, chunk), spans)
	}
	m["pull"] = ask(spans{{1, 9}, {300, 400}})
	n.Receive("mx3", m["pull"])
	m["reply"] = c.msgs[len(c.msgs)-1]
	n.mu.Lock()
	n.hello("mx3", now)
	m["hello"] = n.out[0].msg
	n.out = nil
	n.mu.Unlock()
	n.Share(pfx("198.51.100.7/32"), 45, 0)
	n.Share(pfx("2001:db8:1:2::/64"), 60, 3)
	c.msgs = nil
	n.Flush(now)
	m["evidence"] = c.msgs[0]
	m["bundle"] = bundles([][]byte{m["records"], m["hello"]})[0]
	return m
}

// TestGolden: what is on the wire does not change within a version.
func TestGolden(t *testing.T) {
	const path = "testdata/wire1.txt"
	m := goldenMessages(t)
	var b strings.Builder
	for _, k := range sortedKeys(m) {
		fmt.Fprintf(&b, "%s %s\n", k, hex.EncodeToString(m[k]))
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("version 1 became\n%s, it was\n%s", b.String(), want)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	want := samples()
	kind, r, err := open(recordsMessage(want), WireVersion)
	if err != nil || kind != kindRecords {
		t.Fatal(kind, err)
	}
	origin, epoch, at, top := r.name(), r.u64(), r.clock(), r.uvarint()
	got, unknown := r.run(origin, epoch)
	if r.bad || len(unknown) > 0 || origin != "mx1" || !at.Equal(epoch0) || top != 301 {
		t.Fatal(r.bad, unknown, origin, at, top)
	}
	if a, b := words(got), words(want); a != b {
		t.Errorf("%s became %s", b, a)
	}
}

// TestWireCost: at most 25 bytes a block, headers and all.
func TestWireCost(t *testing.T) {
	for name, prefix := range map[string]func(i int) netip.Prefix{
		"IPv4": func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 32)
		},
		"IPv6 /64": func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, 0, byte(i >> 8), byte(i)}), 64)
		},
	} {
		now := epoch0
		n, c := lone(t, "mx2.example.org", &now, Options{})
		for i := range 20_000 {
			now = now.Add(7 * time.Millisecond)
			if _, err := n.table.Apply(block.Entry{Prefix: prefix(i), Kind: block.Block, Cause: block.AuthBrute, Scope: block.ScopeAll, Until: now.Add(72 * time.Hour), Hits: uint32(i % 300)}, now); err != nil {
				t.Fatal(err)
			}
		}
		n.Flush(now)
		total := 0
		for i, m := range c.msgs {
			if c.to[i] == "mx8" {
				total += len(m)
			}
		}
		per := float64(total) / 20_000
		t.Logf("%s: %.1f bytes a block", name, per)
		if per > 25 {
			t.Errorf("%s: %.1f bytes a block, at most 25 are promised", name, per)
		}
	}
}

// TestUnknownIsSkipped: messages and records of later versions are counted and do no harm, and what is around them is
// understood. A record that is not understood is neither asked for again nor answered for.
func TestUnknownIsSkipped(t *testing.T) {
	now := epoch0.Add(2 * time.Second)
	n, c := lone(t, "mx2", &now, Options{})
	msg := recordsMessage(samples()[:3])
	later := slices.Clone(msg)
	later[0] = 2
	n.Receive("mx1", later)
	kind := slices.Clone(msg)
	kind[1] = 99
	n.Receive("mx1", kind)
	if s := n.Stats(); s.UnknownVersion != 1 || s.UnknownKind != 1 || s.Merged != 0 {
		t.Errorf("%+v", s)
	}
	// A record of kind 7 and one with a new flag between two known ones, and a known one that is longer than today's.
	list := samples()[:2]
	b := putString(header(nil, kindRecords), "mx1")
	b = binary.BigEndian.AppendUint64(b, list[0].Epoch)
	b = binary.AppendUvarint(binary.AppendUvarint(b, millis(epoch0)), 5)
	w := runWriter{b: b}
	w.start(0, list[0].Stamp)
	w.add(&list[0], MaxDatagram)
	w.b = append(w.b, 6, 1, 0, 5, 7, 0xaa, 0xbb)
	w.b = append(w.b, 5, 1, 0, 6, 0x81, 0xcc)
	list[1].Seq, list[1].Stamp = 4, w.stamp+4
	w.seq += 2
	at := len(w.b)
	w.add(&list[1], MaxDatagram)
	w.b = append(w.b, 0xdd)
	w.b[at]++
	n.Receive("mx1", w.b)
	if s := n.Stats(); s.UnknownRecords != 2 || s.Merged != 2 || s.Malformed != 0 {
		t.Errorf("%+v", s)
	}
	l := n.lanes[laneKey{"mx1", list[0].Epoch}]
	if !slices.Equal(l.know, spans{{1, 1}, {4, 4}}) || !slices.Equal(l.skip, spans{{2, 3}}) {
		t.Errorf("knows %v, skips %v", l.know, l.skip)
	}
	n.Receive("mx3", goldenMessages(t)["pull"])
	_, r, _ := open(c.msgs[len(c.msgs)-1], WireVersion)
	r.uvarint()
	r.name()
	r.u64()
	r.clock()
	r.known()
	if got := r.spans(); !slices.Equal(got, spans{{1, 1}, {4, 4}}) {
		t.Errorf("answers for %v", got)
	}
	// A signature is not looked at.
	signed := append([]byte{WireVersion, kindRecords, 64}, bytes.Repeat([]byte{1}, 64)...)
	signed = append(signed, recordsMessage(samples()[3:4])[3:]...)
	n.Receive("mx1", signed)
	if s := n.Stats(); s.Merged != 3 {
		t.Errorf("signed: %+v", s)
	}
}

func TestSpans(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string) (s spans, m map[uint64]bool) {
			m = map[uint64]bool{}
			for range rapid.IntRange(0, 20).Draw(t, name) {
				from := rapid.Uint64Range(1, 60).Draw(t, "from")
				to := from + rapid.Uint64Range(0, 8).Draw(t, "length")
				s = s.add(from, to)
				for ; from <= to; from++ {
					m[from] = true
				}
			}
			return s, m
		}
		is := func(what string, s spans, want func(uint64) bool) {
			t.Helper()
			last := uint64(0)
			for i, a := range s {
				if a.from > a.to || i > 0 && a.from <= last+1 {
					t.Fatalf("%s: %v", what, s)
				}
				last = a.to
			}
			count := uint64(0)
			for n := uint64(1); n < 80; n++ {
				if s.has(n) != want(n) {
					t.Fatalf("%s: %v, has %d: %v", what, s, n, s.has(n))
				}
				if want(n) {
					count++
				}
			}
			if s.count() != count {
				t.Fatalf("%s: %v counts %d", what, s, s.count())
			}
		}
		a, am := draw("a")
		b, bm := draw("b")
		limit := rapid.Uint64Range(0, 70).Draw(t, "limit")
		is("a", a, func(n uint64) bool { return am[n] })
		is("minus", a.minus(b), func(n uint64) bool { return am[n] && !bm[n] })
		is("and", a.and(b), func(n uint64) bool { return am[n] && bm[n] })
		is("upto", a.upto(limit), func(n uint64) bool { return am[n] && n <= limit })
		r := &reader{b: putSpans(nil, a)}
		if got := r.spans(); r.bad || !slices.Equal(got, a) || len(r.b) > 0 {
			t.Fatalf("%v became %v", a, got)
		}
	})
}

// FuzzReceive: whatever comes, nothing crashes, nothing of it is in this node's name, and nothing but well-formed
// entries goes in.
func FuzzReceive(f *testing.F) {
	for _, m := range goldenMessages(f) {
		f.Add(m, m)
	}
	f.Add([]byte{1, 1, 0}, []byte{})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		now := epoch0.Add(2 * time.Second)
		n, c := lone(t, "mx2", &now, Options{Accepted: func(netip.Prefix) Standing { return MuchMail }})
		for range 3 {
			n.Receive("mx1", a)
			n.Receive("mx3", b)
			now = now.Add(time.Second)
			n.Tick(now)
			n.Flush(now)
		}
		for _, e := range entriesOf(n.table) {
			if e.Origin == "" || e.Automatic() && e.Until.After(e.Stamp.Time().Add(block.MaxAutomatic+time.Second)) {
				t.Fatalf("%+v", e)
			}
			if e.Kind != block.OriginClear && e.Prefix != e.Prefix.Masked() {
				t.Fatalf("%+v", e)
			}
		}
		for i, m := range c.msgs {
			if _, _, err := open(m, WireVersion); err != nil || len(m) > MaxMessage {
				t.Fatalf("message %d to %s: %v", i, c.to[i], err)
			}
		}
		for _, l := range n.lanes {
			if len(l.know) > maxSpans || len(l.skip) > maxSpans {
				t.Fatalf("%d and %d spans", len(l.know), len(l.skip))
			}
		}
	})
}

// FuzzState: the state file may be damaged.
func FuzzState(f *testing.F) {
	now := epoch0
	n, _ := lone(f, "mx2", &now, Options{})
	n.Receive("mx1", recordsMessage(samples()))
	n.Suspend("mx7")
	f.Add(n.State())
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := New(Options{Node: "mx2", Net: &catcher{}, Rand: rand.New(rand.NewPCG(1, 1)), Clock: func() time.Time { return epoch0 }, Table: block.New(block.Options{Origin: "mx2"}), State: b})
		if err != nil {
			return
		}
		n.Tick(epoch0)
		n.State()
	})
}
