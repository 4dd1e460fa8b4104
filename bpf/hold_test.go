package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// Each family is held by itself; who is known is not held; who is forgotten is held again.
func TestHoldKnown(t *testing.T) {
	l := newAdmitLab(t, Options{Hold: true, HoldBudget: 1 << 10}, nil).only("xdp")
	soon := time.Now().Add(10 * time.Second)
	held := func(src string) bool {
		t.Helper()
		r, _ := l.run(t, "xdp", syn(src))
		if r != DropHeld && r != PassNotBlocked {
			t.Fatalf("%s: %s", src, r)
		}
		return r == DropHeld
	}
	must(t, l.shield.HoldAlive(time.Time{}, soon))
	if held("192.0.2.1") || !held("2001:db8:1::1") {
		t.Error("only IPv6 is to be held")
	}
	must(t, l.shield.HoldAlive(soon, time.Time{}))
	if !held("192.0.2.1") || held("2001:db8:2::1") || held("2001:db8:1::1") {
		t.Error("only IPv4 is to be held")
	}
	must(t, l.shield.HoldAlive(soon, soon))
	must(t, l.shield.Known([]netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8:3::1"), netip.MustParseAddr("::ffff:192.0.2.3")}))
	for src, want := range map[string]bool{"192.0.2.2": false, "2001:db8:3::2": false, "192.0.2.3": false, "192.0.2.4": true, "2001:db8:4::1": true} {
		if held(src) != want {
			t.Errorf("%s: held %v", src, !want)
		}
	}
	l.sleep(l.model.hz)
	must(t, l.shield.HoldAlive(soon, soon))
	if held("192.0.2.4") {
		t.Fatal("held a second time")
	}
	must(t, l.shield.Forget(netip.MustParseAddr("192.0.2.4")))
	must(t, l.shield.Forget(netip.MustParseAddr("192.0.2.99"))) // who is that?
	if !held("192.0.2.4") {
		t.Error("forgotten, and not held")
	}
	l.sleep(24 * 3600 * l.model.hz)
	must(t, l.shield.HoldAlive(soon, soon))
	if !held("192.0.2.2") {
		t.Error("known a day ago, and not held")
	}
}

// The agent learns until when a SYN is held, however late it reads.
func TestHeldUntil(t *testing.T) {
	l := newAdmitLab(t, Options{Hold: true}, nil).only("xdp")
	l.sleep(1<<32 - l.model.now&(1<<32-1) - l.model.hz/2) // its low half wraps meanwhile
	l.holdFor(t, 5*time.Second)
	l.expect(t, DropHeld, syn("192.0.2.1"))
	l.sleep(2 * l.model.hz)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan First, 1)
	done := make(chan error, 1)
	go func() { done <- l.shield.FirstSeen(ctx, func(f First) { got <- f }) }()
	f := <-got
	if late := time.Since(f.Until); f.Source.String() != "192.0.2.1" || late < 1090*time.Millisecond {
		t.Errorf("%v, %s ago", f, late)
	}
	cancel()
	must(t, <-done)
}

// Under a flood of forged sources, at the rate that the agent allows, with the table full of older ones, nobody is
// forgotten within a day: so nobody is held twice.
func TestNobodyIsForgotten(t *testing.T) {
	l := newAdmitLab(t, Options{Hold: true, HoldBudget: maxRate}, nil).only("xdp")
	prog := l.progs["xdp"]
	pkt := syn("10.0.0.1")
	at := 14 + 12
	one := func(i uint32) {
		binary.BigEndian.PutUint32(pkt[at:], i)
		if _, _, err := prog.Test(pkt); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var told, sent atomic.Int64
	done := make(chan error, 1)
	go func() { done <- l.shield.FirstSeen(ctx, func(First) { told.Add(1) }) }()
	hour := 3600 * l.model.hz
	holds := func(base uint32, n int) {
		for i := range n {
			if i%1000 == 0 {
				eventually(t, "the ring is read", func() bool { return told.Load() == sent.Load() })
				l.sleep(l.model.hz / 100)
				must(t, l.shield.HoldAlive(time.Now().Add(time.Minute), time.Time{}))
			}
			one(base + uint32(i))
			sent.Add(1)
		}
	}
	holds(10<<24, seenSources) // of earlier days
	l.sleep(30 * hour)
	const honest = 1000
	holds(11<<24, honest)
	l.sleep(hour)
	var known []netip.Addr
	for i := range KnownSources {
		known = append(known, netip.AddrFrom4([4]byte{12, byte(i >> 16), byte(i >> 8), byte(i)}))
	}
	must(t, l.shield.Known(known))
	holds(13<<24, DailyHolds)
	for i := range 20 {
		l.sleep(hour)
		holds(14<<24+uint32(i)<<16, DailyHolds/20)
	}
	l.sleep(hour)
	lost := 0
	for i := range honest {
		key := sourceOf(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}))
		var v shieldSeenValue
		if l.shield.gen.maps[shieldMapSeen].Lookup(&key, &v) != nil {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d were forgotten within a day", lost, honest)
	}
	for _, a := range known {
		key := sourceOf(a)
		var v shieldSeenValue
		if l.shield.gen.maps[shieldMapSeen].Lookup(&key, &v) != nil {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of the known ones were forgotten within a day", lost)
	}
	cancel()
	must(t, <-done)
}
