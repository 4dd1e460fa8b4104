package bpf

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// One of 1024 on average, and whatever the rhythm of the packets is: of m sources that take turns each is a fair part.
func TestSampleIsFair(t *testing.T) {
	const n, all = 1 << 22, 1 << 12
	var picks []uint64
	for i := uint64(1); i <= n; i++ {
		if i*0x9e3779b97f4a7c15>>54 == 0 { // is_sample in sample.h
			picks = append(picks, i)
		}
	}
	if len(picks) < all-8 || len(picks) > all+8 {
		t.Errorf("%d samples of %d packets, want %d", len(picks), n, all)
	}
	for _, m := range []uint64{2, 3, 4, 7, 8, 16, 50, 64, 100, 128, 256} {
		count := make([]float64, m)
		for _, i := range picks {
			count[i%m]++
		}
		fair := float64(len(picks)) / float64(m)
		for i, c := range count {
			if math.Abs(c-fair) > 2+fair/4 {
				t.Errorf("%d sources in turns: source %d is in %.0f samples, fair are %.0f", m, i, c, fair)
			}
		}
	}
	for i := 1; i < len(picks); i++ {
		if d := picks[i] - picks[i-1]; d != 610 && d != 987 && d != 1597 {
			t.Fatalf("%d packets between two samples", d)
		}
	}
}

// What is dropped is told, with its address, port and reason, by both programs; what passes is not.
func TestSamples(t *testing.T) {
	l := newLab(t, labRules)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Sample, 1000)
	done := make(chan error, 1)
	go func() { done <- l.shield.Samples(ctx, func(s Sample) { got <- s }) }()
	repeat := func(name string, f frame) {
		t.Helper()
		// At most 1597 between two samples, on each of the CPUs it may come to.
		_, err := l.progs[name].Run(&ebpf.RunOptions{Data: f.bytes(), Repeat: 4 * 1600})
		must(t, err)
	}
	type what struct {
		src    string
		reason Reason
		port   uint16
	}
	var chain []ext
	for range 7 {
		chain = append(chain, ext{typ: protoDestOpts})
	}
	for name := range l.progs {
		before, missing := time.Now(), map[what]bool{}
		repeat(name, frame{src: "192.0.2.1", port: 25})
		for _, c := range []struct {
			f      frame
			reason Reason
			port   uint16
		}{
			{frame{src: "198.18.0.2", port: 587}, DropExact, 587},
			{frame{src: "2001:db8:0:2::9", port: 25}, DropExact, 25},
			{frame{src: "198.18.1.1", port: 465}, DropCIDR, 465},
			{frame{src: "2001:db8:0:2::9", port: 25, exts: chain}, DropExtHeaders, 0},
		} {
			repeat(name, c.f)
			missing[what{c.f.src, c.reason, c.port}] = true
		}
		late := time.After(time.Minute)
		for seen := 0; seen < len(missing); {
			select {
			case s := <-got:
				w := what{s.Source.String(), s.Reason, s.Port}
				if first, expected := missing[w]; !expected {
					t.Errorf("%s: a sample of %+v", name, w)
				} else if first {
					missing[w] = false
					seen++
				}
				if s.Time.Before(before.Add(-time.Second)) || s.Time.After(time.Now().Add(time.Second)) || s.Interface == 0 {
					t.Errorf("%s: %+v", name, s)
				}
			case <-late:
				t.Fatalf("%s: no sample of some: %v", name, missing)
			}
		}
	}
	cancel()
	must(t, <-done)
	if n, err := l.shield.SamplesLost(); n != 0 || err != nil {
		t.Errorf("%d lost, %v", n, err)
	}
}

// Nobody reads: the ring fills, packets are dropped as ever, and what is lost is counted. Then somebody reads.
func TestSamplesLost(t *testing.T) {
	l := newLab(t, labRules)
	// A record has a header of 8 bytes.
	const room = 1 << 18 / (sampleSize + 8)
	const more = 500
	for range 10 {
		_, err := l.progs["xdp"].Run(&ebpf.RunOptions{Data: syn("198.18.0.2"), Repeat: (room + more) * SampleEvery / 10})
		must(t, err)
	}
	lost, err := l.shield.SamplesLost()
	must(t, err)
	if lost < more/2 || lost > more*2 {
		t.Errorf("%d lost, want about %d", lost, more)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	n := 0
	must(t, l.shield.Samples(ctx, func(Sample) {
		if n++; n == room-1 {
			cancel()
		}
	}))
	if n != room-1 {
		t.Errorf("%d samples were left, want %d", n, room-1)
	}
}
