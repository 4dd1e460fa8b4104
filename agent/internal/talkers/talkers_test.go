package talkers

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var start = time.Unix(1_700_000_000, 0)

func near(a, b float64) bool { return math.Abs(a-b) <= 0.15*b }

// Steady sources: the rates are right, by source and reason; when they stop, they fade and are forgotten.
func TestRates(t *testing.T) {
	x := New(16)
	a, b := netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("2001:db8:1:2::7")
	now := start
	for range 6000 { // two minutes
		now = now.Add(20 * time.Millisecond)
		x.Add(a, "drop_exact", 25, now)
		if now.UnixMilli()%100 == 0 {
			x.Add(b, "drop_cidr", 587, now)
			x.Add(b, "drop_held", 25, now)
		}
	}
	list, total := x.Top(10, now)
	if len(list) != 2 || list[0].Source.String() != "198.18.0.1/32" || list[1].Source.String() != "2001:db8:1:2::/64" {
		t.Fatalf("%+v", list)
	}
	if !near(list[0].Rate, 50) || !near(list[1].Rate, 20) || !near(list[1].Reasons["drop_cidr"], 10) || list[0].Error != 0 {
		t.Errorf("rates %+v", list)
	}
	if !near(total["drop_exact"], 50) || !near(total["drop_held"], 10) {
		t.Errorf("total %v", total)
	}
	if p := list[1].Ports; len(p) != 2 || p[0] != 25 || p[1] != 587 {
		t.Errorf("ports %v", p)
	}
	if l, _ := x.Top(1, now); len(l) != 1 || l[0].Source != list[0].Source {
		t.Errorf("the loudest: %+v", l)
	}
	if l, _ := x.Top(10, now.Add(HalfLife)); !near(l[0].Rate, 25) {
		t.Errorf("after a half-life: %+v", l)
	}
	if l, _ := x.Top(10, now.Add(Forget)); len(l) != 0 {
		t.Errorf("not forgotten: %+v", l)
	}
	if l, total := New(4).Top(10, now); len(l) != 0 || len(total) != 0 {
		t.Errorf("out of nothing: %v %v", l, total)
	}
}

// Forged sources, each seen once, cannot hide who sends a twentieth of all, nor make it grow.
func TestBounded(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	const max = 64
	x := New(max)
	loud := netip.MustParseAddr("192.0.2.1")
	now := start
	for i := range 200_000 {
		now = now.Add(time.Duration(r.IntN(int(2 * time.Millisecond))))
		src := loud
		if i%20 != 0 {
			src = netip.AddrFrom4([4]byte{198, byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())})
		}
		x.Add(src, "drop_exact", uint16(r.Uint32()), now)
	}
	if len(x.heap) != max || len(x.index) != max {
		t.Errorf("%d sources in %d places", len(x.index), len(x.heap))
	}
	list, _ := x.Top(5, now)
	if list[0].Source.Addr() != loud || !near(list[0].Rate+list[0].Error/2, 50) {
		t.Errorf("%+v", list[0])
	}
	for _, k := range list {
		if len(k.Ports) > maxPorts {
			t.Errorf("%d ports", len(k.Ports))
		}
	}
	for i, k := range x.heap {
		if k.at != i || x.index[k.source] != k || k.weight < x.heap[0].weight || k.error > k.weight {
			t.Fatalf("place %d: %+v", i, k)
		}
	}
}

// Weeks pass, samples come late, addresses are none: the figures stay figures.
func TestOddTimes(t *testing.T) {
	x := New(4)
	now := start
	for range 2000 {
		now = now.Add(HalfLife)
		x.Add(netip.MustParseAddr("192.0.2.1"), "drop_exact", 25, now)
		x.Add(netip.MustParseAddr("::ffff:192.0.2.1"), "drop_exact", 25, now.Add(-time.Minute))
	}
	x.Add(netip.Addr{}, "drop_exact", 0, now)
	x.Add(netip.MustParseAddr("fe80::1%eth0"), "drop_exact", 25, now)
	x.Add(netip.MustParseAddr("192.0.2.9"), "drop_exact", 25, now.Add(10*365*24*time.Hour))
	if l, _ := x.Top(9, now.Add(10*365*24*time.Hour)); len(l) != 1 || !near(l[0].Rate, math.Ln2/HalfLife.Seconds()) {
		t.Errorf("after years: %+v", l)
	}
	for _, at := range []time.Time{start, now, now.Add(time.Hour), now.Add(11 * 365 * 24 * time.Hour)} {
		list, total := x.Top(9, at)
		for _, k := range list {
			if math.IsNaN(k.Rate) || k.Rate < 0 {
				t.Errorf("%+v", k)
			}
		}
		for _, v := range total {
			if math.IsNaN(v) {
				t.Errorf("%v", total)
			}
		}
	}
}

// The clock is set back by a day: what is told is what comes now.
func TestClockBack(t *testing.T) {
	x := New(4)
	x.Add(netip.MustParseAddr("192.0.2.1"), "drop_exact", 25, start)
	x.Add(netip.MustParseAddr("192.0.2.2"), "drop_exact", 25, start.Add(-24*time.Hour))
	if l, _ := x.Top(9, start.Add(-24*time.Hour)); len(l) != 1 || l[0].Source.String() != "192.0.2.2/32" || l[0].Rate < 0.05 {
		t.Errorf("%+v", l)
	}
}
