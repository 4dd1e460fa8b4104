package replica

import (
	"testing"
	"time"
)

// full makes a world of hosts with n entries each, beside one that is not up yet.
func full(t *testing.T, hosts, n int) (w *world, fresh *simHost) {
	w = newWorld(1, hosts+1)
	w.net = network{delay: 2 * time.Millisecond}
	fresh = w.hosts[hosts]
	w.hosts = w.hosts[:hosts]
	w.startAll()
	w.run(2 * time.Second)
	for i, h := range w.hosts {
		h.many(t, i*n, n)
	}
	w.until(t, hosts*n, time.Minute)
	w.run(10 * time.Second)
	w.hosts = append(w.hosts, fresh)
	w.bytes = 0
	return w, fresh
}

// TestSlowInbox: a host that takes two seconds for each reply asks nobody twice for what waits in its own inbox, and has all
// in the time that its work takes.
func TestSlowInbox(t *testing.T) {
	const hosts, each = 2, 20_000
	w, fresh := full(t, hosts, each)
	fresh.cost = 8 * time.Millisecond // 2 s for a reply of 256 KiB
	fresh.start()
	took := w.until(t, hosts*each, 5*time.Minute)
	s := fresh.node.Stats()
	work := time.Duration(s.ReceivedBytes/1024) * fresh.cost
	t.Logf("%s for %s of work, %d pulls, %d timeouts, %d late, %.1f bytes an entry", took, work, s.Pulls, s.Timeouts, s.Late, float64(w.bytes)/hosts/each)
	if s.Timeouts > 0 || s.Late > 0 {
		t.Errorf("%d of %d pulls timed out although their replies were there, %d replies came late", s.Timeouts, s.Pulls, s.Late)
	}
	if w.bytes > 25*hosts*each {
		t.Errorf("%d bytes for %d entries", w.bytes, hosts*each)
	}
	if took > work+2*time.Second { // until somebody tells what there is
		t.Errorf("it took %s for %s of work", took, work)
	}
}

// TestSlowPeers: peers that take seconds to answer are asked once for each thing after their first answer. That one comes
// late, and counts all the same.
func TestSlowPeers(t *testing.T) {
	for _, c := range []struct {
		cost     time.Duration // a pull has some sixty bytes
		timeouts uint64        // of each peer, while nothing is known of it: after 0.5, 1.5 and 3.5 s
	}{{20 * time.Second, 1}, {40 * time.Second, 3}} {
		const hosts, each = 2, 30_000
		w, fresh := full(t, hosts, each)
		for _, h := range w.hosts[:hosts] {
			h.cost = c.cost
		}
		fresh.start()
		took := w.until(t, hosts*each, 10*time.Minute)
		s := fresh.node.Stats()
		t.Logf("%s, %d pulls, %d timeouts, %d late, %.1f bytes an entry", took, s.Pulls, s.Timeouts, s.Late, float64(w.bytes)/hosts/each)
		if s.Timeouts > c.timeouts*hosts || s.Late > c.timeouts*hosts {
			t.Errorf("%d of %d pulls timed out, %d replies came late", s.Timeouts, s.Pulls, s.Late)
		}
	}
}
