//go:build linux

package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// TestCluster is the story of five nodes in short; the stories below have the long variants of its parts.
func TestCluster(t *testing.T) {
	c := newCluster(t, 5, 2, 2, "")
	c.run("attacked on one, dropped on all", c.attackedOnOne)
	c.run("partition", func() {
		apart := 2 * time.Second
		if long {
			apart = time.Minute
		}
		c.partition(apart)
	})
	c.run("killed", func() { c.killed(0, 1) }) // whom all the others were told to call
	c.run("strangers", c.strangers)
}

// attackedOnOne: an attack on node 1 drops on node 5, and an unblock anywhere lets the source in everywhere and holds.
func (c *cluster) attackedOnOne() {
	t, ctx := c.t, c.t.Context()
	first, last := c.nodes[0], c.nodes[len(c.nodes)-1]
	src := []netip.Addr{lab.Sources(lab.Attack4, 1)[0], lab.Sources(lab.Attack6, 1)[0]}
	for _, a := range src {
		if last.drops(a) {
			t.Fatalf("%s is dropped before it did anything", a)
		}
		stop := c.knocks(a, last)
		lab.Dictionary(ctx, c.top.Net, a, first.port25(a), lab.DictionaryOptions{Talk: brief, Recipients: 40})
		w := first.awaitBlock(a)
		c.doors(c.nodes, true, a)
		knocks := stop()[0]
		closed := lab.Closed(knocks)
		if closed.IsZero() || w.Decision.By == nil {
			t.Fatalf("the door of %s never closed (%d knocks), or there is no block: %s", last.host.Name(), len(knocks), w.Words)
		}
		t.Logf("%s: %s dropped the first packet %s after the block was made on %s", a, last.host.Name(),
			closed.Sub(w.Decision.By.Stamp.Time()).Round(time.Millisecond), first.host.Name())
		for _, r := range c.nodes {
			w := r.why(a)
			if by := w.Decision.By; by == nil || by.Origin != "mx1" || by.Cause != block.Dictionary || w.Decision.Scope != block.ScopeMX {
				t.Errorf("%s: %s", r.host.Name(), w.Words)
			}
			if r != first && w.Evidence != nil && len(w.Evidence.Samples) > 0 {
				t.Errorf("%s has sample lines of another host: %q", r.host.Name(), w.Evidence.Samples)
			}
		}
	}
	for i, a := range src {
		if out := c.nodes[2+i].must("unblock", a.String()); !strings.Contains(out, "the other nodes are told: 4 of 4 alive") {
			t.Errorf("unblock says: %s", out)
		}
		c.doors(c.nodes, false, a)
		// What it did before counts no more where it did it, and one more offence does not block it.
		lab.Dictionary(ctx, c.top.Net, a, first.port25(a), lab.DictionaryOptions{Talk: brief, Recipients: 3})
		first.awaitLines()
		if w := first.why(a); w.Decision.Drop || w.Decision.Rule != block.RuleCleared {
			t.Errorf("after the unblock: %s", w.Words)
		}
	}
	c.equal(c.nodes...)
}

// partition: two nodes and three do not hear each other for a while. Both sides block, unblock and allow, each also what
// the other has something to say about. Then all say the same, and an unblock has won over every block.
func (c *cluster) partition(apart time.Duration) {
	t, ctx := c.t, c.t.Context()
	src := lab.Sources(lab.Attack4, 20)[4:]
	left, right := c.nodes[:2], c.nodes[2:]
	one, other := []int{0, 1}, []int{2, 3, 4}
	// Known to all before.
	for _, a := range src[:4] {
		c.nodes[3].must("block", a.String())
	}
	c.doors(c.nodes, true, src[:4]...)
	if err := c.top.Cut(one, other); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	drop := map[netip.Addr]bool{}
	dictionary := func(r *rig, a netip.Addr) {
		t.Helper()
		lab.Dictionary(ctx, c.top.Net, a, r.port25(a), lab.DictionaryOptions{Talk: brief, Recipients: 40})
		r.awaitBlock(a)
	}
	// Blocks on each side, by evidence and by hand.
	dictionary(left[0], src[4])
	left[1].must("block", src[5].String())
	right[0].must("block", src[6].String())
	right[1].must("block", src[7].String())
	// Unblocks on each side.
	left[0].must("unblock", src[0].String())
	right[2].must("unblock", src[1].String())
	// One side unblocks what the other blocks automatically afterwards: the unblock holds.
	right[0].must("unblock", src[8].String())
	dictionary(left[1], src[8])
	// One side unblocks what the other blocks by hand afterwards: a person's later word holds.
	right[1].must("unblock", src[9].String())
	left[0].must("block", src[9].String())
	// One side blocks, the other unblocks afterwards.
	left[1].must("block", src[10].String())
	right[2].must("unblock", src[10].String())
	// One side allows what the other blocks automatically.
	right[0].must("allow", "add", src[11].String())
	dictionary(left[0], src[11])
	for i, d := range []bool{false, false, true, true, true, true, true, true, false, true, false, false} {
		drop[src[i]] = d
	}
	// While they are apart each has its own view.
	c.allDoors(left, map[netip.Addr]bool{src[8]: true, src[11]: true, src[0]: false, src[6]: false})
	c.allDoors(right, map[netip.Addr]bool{src[8]: false, src[4]: false, src[0]: true, src[6]: true})
	for time.Since(cut) < apart {
		time.Sleep(100 * time.Millisecond)
	}
	said := [][]block.Entry{left[0].entries(), right[0].entries()}
	if err := c.top.Mend(one, other); err != nil {
		t.Fatal(err)
	}
	mended := time.Now()
	all := c.equal(c.nodes...)
	t.Logf("%d entries are equal on %d nodes %s after the cut was mended", len(all), len(c.nodes), time.Since(mended).Round(10*time.Millisecond))
	// What a side knew is there, or what replaced it.
	for _, e := range slices.Concat(said...) {
		if !slices.ContainsFunc(all, func(x block.Entry) bool {
			return x.Origin == e.Origin && x.Prefix == e.Prefix && x.Kind == e.Kind && x.Stamp >= e.Stamp
		}) {
			t.Errorf("lost: %+v", e)
		}
	}
	c.allDoors(c.nodes, drop)
	for a, d := range drop {
		for _, r := range c.nodes {
			if w := r.why(a); w.Decision.Drop != d {
				t.Errorf("%s: %s", r.host.Name(), w.Words)
			}
		}
	}
	c.meet(c.nodes...)
}
