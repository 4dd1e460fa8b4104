package replica

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// These are about a member that holds the key and lies. In another's name it says nothing here: see TestRefused.

// lies are entries of mx1 as that node's next message would have them.
type lies struct {
	n   *Node
	now *time.Time
	seq uint64
}

func (l *lies) say(e block.Entry) {
	l.seq++
	e.Origin, e.Epoch, e.Seq = "mx1", block.NewEpoch(epoch0, 1), l.seq
	if e.Stamp == 0 {
		e.Stamp = block.StampAt(*l.now)
	}
	e.Since = e.Stamp.Time()
	l.n.Receive("mx1", recordsMessage([]block.Entry{e}))
}

func (l *lies) drops(p string) bool { return l.n.table.Decide(pfx(p), *l.now).Drop }

// TestTooWide: nothing of everybody is blocked, allowed or cleared.
func TestTooWide(t *testing.T) {
	now := epoch0.Add(time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	l := lies{n: n, now: &now}
	mine := autoBlock("198.51.100.9/32", time.Hour, now)
	if _, err := n.table.Apply(mine, now); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"0.0.0.0/0", "::/0", "0.0.0.0/1", "128.0.0.0/1", "198.0.0.0/8", "198.50.0.0/15", "2000::/3", "2001:db8::/31"} {
		for _, e := range []block.Entry{
			{Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll},
			{Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(time.Hour)},
			{Kind: block.Allow}, {Kind: block.Disallow}, {Kind: block.Clear, Until: now.Add(time.Hour)},
		} {
			e.Prefix = pfx(p)
			was := n.Stats()
			l.say(e)
			if s := n.Stats(); s.Refused != was.Refused+1 || s.Merged != was.Merged || !slices.ContainsFunc(s.Alarms, func(a Alarm) bool { return a.Key == "refused mx1" }) {
				t.Errorf("%s of %s: %+v", e.Kind, p, s)
			}
		}
	}
	// What may be said by hand is not enforced if a machine says it.
	for _, p := range []string{"198.51.100.0/24", "198.51.100.0/31", "2001:db8:1::/48", "2001:db8:1:1::25/127"} {
		l.say(block.Entry{Prefix: pfx(p), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(time.Hour)})
	}
	for _, p := range []string{"198.51.100.1/32", "2001:db8:1:2::/64"} {
		if l.drops(p) {
			t.Errorf("%s is dropped", p)
		}
	}
	if !l.drops("198.51.100.9/32") {
		t.Error("a clear of everybody counted")
	}
}

// TestTooLong: whatever end it names, an automatic block is over a week after its stamp, and a hold after 30 days.
func TestTooLong(t *testing.T) {
	now := epoch0.Add(time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	l := lies{n: n, now: &now}
	begin := now
	l.say(block.Entry{Prefix: pfx("198.51.100.1/32"), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(50 * 365 * 24 * time.Hour)})
	l.say(block.Entry{Prefix: pfx("198.51.0.0/16"), Kind: block.Clear, Stamp: block.StampAt(now.Add(-time.Second)), Until: now.Add(50 * 365 * 24 * time.Hour)})
	l.say(block.Entry{Prefix: pfx("203.0.113.1/32"), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(50 * 365 * 24 * time.Hour)})
	at := func(d time.Duration) { now = begin.Add(d); n.table.Expire(now); n.Tick(now) }
	for _, c := range []struct {
		after         time.Duration
		held, blocked bool
	}{{0, true, true}, {block.MaxAutomatic - 2*time.Second, true, true}, {block.MaxAutomatic + 2*time.Second, true, false}, {block.MaxHold - 2*time.Minute, true, false}, {block.MaxHold + 2*time.Second, false, false}} {
		at(c.after)
		if got := l.drops("203.0.113.1/32"); got != c.blocked {
			t.Errorf("after %s it drops: %v", c.after, got)
		}
		if l.drops("198.51.100.1/32") {
			t.Errorf("after %s it drops what was cleared", c.after)
		}
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + c.after/(24*time.Hour))}), 32)
		if _, err := n.table.Apply(autoBlock(p.String(), time.Hour, now), now); err != nil && c.held == false {
			t.Error(err)
		}
		if got := l.drops(p.String()); got == c.held {
			t.Errorf("after %s a block inside the hold counts: %v", c.after, got)
		}
	}
}

// TestFarFuture: what is stamped ahead waits for its time and moves nobody's clock; a clear of then cancels nothing now.
func TestFarFuture(t *testing.T) {
	now := epoch0.Add(time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	l := lies{n: n, now: &now}
	if _, err := n.table.Apply(autoBlock("198.51.100.9/32", time.Hour, now), now); err != nil {
		t.Fatal(err)
	}
	for i, ahead := range []time.Duration{2 * time.Minute, time.Hour, 24 * time.Hour, 80 * 365 * 24 * time.Hour} {
		at := now.Add(ahead)
		l.say(block.Entry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Stamp: block.StampAt(at), Until: at.Add(time.Hour)})
		l.say(block.Entry{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 112, byte(i)}), 32), Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll, Stamp: block.StampAt(at)})
		l.say(block.Entry{Prefix: pfx("198.51.100.0/24"), Kind: block.Clear, Stamp: block.StampAt(at), Until: at.Add(time.Hour)})
	}
	for i := range 4 {
		for _, p := range []string{fmt.Sprintf("203.0.113.%d/32", i), fmt.Sprintf("203.0.112.%d/32", i)} {
			if l.drops(p) {
				t.Errorf("%s is dropped before its time", p)
			}
		}
	}
	if !l.drops("198.51.100.9/32") {
		t.Error("a clear of the future counted")
	}
	e := autoBlock("198.51.100.8/32", time.Hour, now)
	if _, err := n.table.Apply(e, now); err != nil {
		t.Fatal(err)
	}
	d := n.table.Decide(e.Prefix, now)
	if d.By == nil || d.By.Stamp.Time().After(now.Add(time.Second)) {
		t.Errorf("the clock was moved: %+v", d.By)
	}
	if s := n.Stats(); s.Early == 0 || s.Muted != "" {
		t.Errorf("%+v", s)
	}
}

// TestManyOrigins: epochs of nodes that nobody has fill no more than their places, and these are free again soon.
func TestManyOrigins(t *testing.T) {
	now := epoch0.Add(time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	for from := 0; from < 2*maxLanes; from += 200 {
		b := binary.AppendUvarint(append(header(nil, kindDigest), 0), millis(now))
		var list []digestEntry
		for i := range 200 {
			list = append(list, digestEntry{fmt.Sprintf("ghost%d", from+i), block.NewEpoch(epoch0, uint64(i)), spans{{1, 5}}})
		}
		b, _ = appendDigest(b, list, math.MaxInt)
		n.Receive("mx1", b)
	}
	if len(n.lanes) > maxLanes {
		t.Errorf("%d lanes", len(n.lanes))
	}
	if d := n.Digest(); len(d) > maxDigest {
		t.Errorf("a digest of %d bytes", len(d))
	}
	for range 40 { // what was offered is asked for in vain meanwhile
		now = now.Add(30 * time.Second)
		n.Tick(now)
	}
	e := autoBlock("198.51.100.1/32", time.Hour, now)
	e.Origin, e.Epoch, e.Seq, e.Stamp, e.Since = "mx3", block.NewEpoch(now, 1), 1, block.StampAt(now), now
	n.Receive("mx3", recordsMessage([]block.Entry{e}))
	if !n.table.Decide(e.Prefix, now).Drop {
		t.Errorf("no room for an honest node among %d lanes", len(n.lanes))
	}
}

// evidenceMessage tells of n sources.
func evidenceMessage(origin string, first, n int, bad, accepted uint64, now time.Time) []byte {
	b := binary.AppendUvarint(putString(header(nil, kindEvidence), origin), millis(now))
	b = binary.BigEndian.AppendUint64(b, millis(now))
	for i := range n {
		b = binary.BigEndian.AppendUint32(append(b, 4), uint32(198<<24|18<<16+first+i))
		b = binary.AppendUvarint(binary.AppendUvarint(binary.AppendVarint(b, 0), bad), accepted)
	}
	return b
}

// TestEvidenceOfLiars: whom a node does not like it does not get blocked, whom it likes is spared so far and no further, and
// it cannot keep the others from being heard.
func TestEvidenceOfLiars(t *testing.T) {
	now := epoch0.Add(time.Second)
	n, _ := lone(t, "mx2", &now, Options{Evidence: EvidenceOptions{Max: 400}})
	source := func(i int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)
	}
	for range 3 { // again and again, and more each time
		n.Receive("mx1", evidenceMessage("mx1", 0, 1000, 1<<40, 1<<40, now))
		now = now.Add(time.Second)
	}
	if s := n.Stats(); s.Evidence != 100 {
		t.Errorf("one node fills %d registers", s.Evidence)
	}
	if bad, ok := n.Elsewhere(source(5)); bad > 50 || ok != maxAccepted {
		t.Errorf("%.1f points and %d messages", bad, ok)
	}
	if !n.Share(source(5000), 50, 0) {
		t.Error("no room for this node's own")
	}
	n.Receive("mx3", evidenceMessage("mx3", 5000, 1, 30, 0, now))
	if bad, _ := n.Elsewhere(source(5000)); bad < 29 {
		t.Error("no room for an honest node's")
	}
	n.Receive("mx1", evidenceMessage("mx3", 5000, 1, 0, 4000, now.Add(time.Second)))
	if _, ok := n.Elsewhere(source(5000)); ok != 0 {
		t.Error("it spoke in another's name")
	}
	for i := range 9 { // with many names
		name := fmt.Sprintf("ghost%d", i)
		n.Receive(name, evidenceMessage(name, 0, 1000, 40, 0, now))
	}
	if s := n.Stats(); s.Evidence > 301 {
		t.Errorf("other nodes fill %d registers", s.Evidence)
	}
	for i := range 90 {
		if !n.Share(source(6000+i), 50, 0) {
			t.Fatal("no room for this node's own")
		}
	}
	now = now.Add(3 * time.Hour)
	n.Tick(now)
	if v := &n.evidence; len(v.names) > 0 || len(v.held) > 0 {
		t.Errorf("names are kept after their evidence ended: %v %v", v.names, v.held)
	}
}
