package replica

import (
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// What one node says for itself alone reaches no other node, whatever else it tells them, and in whichever way: by the
// news, by a pull of all it said, after a restart, or with new numbers.
func TestLocalIsNotTold(t *testing.T) {
	w := newWorld(1, 3)
	w.startAll()
	w.run(time.Second)
	a := w.hosts[0]
	local := func(p string) {
		t.Helper()
		if r, err := a.table.ApplyLocal(autoBlock(p, time.Hour, a.clock()), a.clock()); err != nil || !r.Entry.Local {
			t.Fatal(r, err)
		}
		a.soon()
	}
	local("198.51.100.1/32")
	a.say(t, autoBlock("203.0.113.1/32", time.Hour, a.clock()))
	local("198.51.100.2/32")
	local("203.0.113.1/32") // the same prefix, a minute longer
	w.run(3 * time.Second)
	b := w.hosts[1]
	b.crash(true) // without its disk: it pulls everything
	b.start()
	w.run(30 * time.Second)
	a.node.begin(a.clock(), func(block.LogInfo) uint64 { return 0 })
	a.say(t, autoBlock("203.0.113.2/32", time.Hour, a.clock()))
	w.run(30 * time.Second)
	for _, h := range w.hosts {
		own := h == a
		if h.drops("198.51.100.1/32") != own || h.drops("198.51.100.2/32") != own || !h.drops("203.0.113.1/32") || !h.drops("203.0.113.2/32") {
			t.Errorf("%s has %v %v", h.name, h.table.About(pfx("198.51.100.1/32")), h.table.About(pfx("203.0.113.1/32")))
		}
		for _, e := range h.disk {
			if e.Local || pfx("198.51.100.0/24").Overlaps(e.Prefix) {
				t.Errorf("%s wrote %v", h.name, e)
			}
		}
	}
	if n := len(a.table.About(pfx("203.0.113.1/32"))); n != 2 {
		t.Errorf("%d entries, want the told one and the local one", n)
	}
}
