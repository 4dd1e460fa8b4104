package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
)

// BenchmarkHold is the shipped verdict on the SYN of an innocent, with a million blocked, when first SYNs are held and when
// not:
//
//	source=known   seen lately, one of the 40,000 that the agent names
//	source=new     never seen, and no budget left, as in a flood: it passes
//	source=held    never seen, and held: the agent is told, and the source noted
//
// ns/pkt is net of the generator, hold=on beside hold=off are the numbers to read. All are measured in turns. The agent
// does not read what it is told meanwhile, so that it is not woken up for each.
func BenchmarkHold(b *testing.B) {
	needKernel(b)
	var measured map[holdCell]float64
	for _, c := range holdCells {
		b.Run(fmt.Sprintf("hold=%s/source=%s", c.hold, c.source), func(b *testing.B) {
			if measured == nil {
				measured = measureHold(b)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(measured[c]-measured[c.generator()], "ns/pkt")
		})
	}
}

type holdCell struct{ hold, source string }

var holdCells = []holdCell{{"off", "known"}, {"on", "known"}, {"off", "new"}, {"on", "new"}, {"off", "held"}, {"on", "held"}}

// generator is the cell that says what drawing the sources of c costs.
func (c holdCell) generator() holdCell {
	if c.source == "known" {
		return holdCell{"none", "known"}
	}
	return holdCell{"none", "new"}
}

func measureHold(b *testing.B) map[holdCell]float64 {
	const (
		blocked         = 1_000_000
		rounds, packets = 31, 30_000
	)
	cells := append([]holdCell{{"none", "known"}, {"none", "new"}}, holdCells...)
	progs := map[holdCell]*ebpf.Program{}
	shields := map[holdCell]*Shield{}
	var ring *ringbuf.Reader
	for _, c := range cells {
		o := Options{MaxExact: blocked, Log: slog.New(slog.DiscardHandler), Hold: c.hold == "on", HoldBudget: maxRate}
		if c.source == "new" {
			o.HoldBudget = 1
		}
		s := openTest(b, o)
		shields[c] = s
		// Not the ones that are drawn as known.
		setSources(b, s, blocked, func(i uint32) netip.Prefix { return sourcePrefix(i + 1<<31) })
		spec, err := loadBench()
		must(b, err)
		for name := range spec.Programs {
			if name != "mxshield_bench" {
				delete(spec.Programs, name)
			}
		}
		flag := map[bool]uint32{true: 1}
		must(b, errors.Join(
			spec.Variables["clock"].Set(s.jiffies.constants()), setPorts(spec, s.opts), setAdmission(spec, s.opts, s.jiffies.hz),
			spec.Variables["bench_what"].Set(map[bool]uint32{false: 2}[c.hold == "none"]), // BENCH_TABLE, or BENCH_DROP
			spec.Variables["bench_miss"].Set(flag[c.source != "known"]),
			spec.Variables["bench_size"].Set(uint32(KnownSources)),
		))
		replace := map[string]*ebpf.Map{}
		for name, m := range s.gen.maps {
			spec.Maps[name].MaxEntries = m.MaxEntries()
			replace[name] = m
		}
		if c == (holdCell{"on", "held"}) { // room for all of a round
			spec.Maps[shieldMapFirsts].MaxEntries = 1 << 21
			m, err := ebpf.NewMap(spec.Maps[shieldMapFirsts])
			must(b, err)
			b.Cleanup(func() { m.Close() })
			replace[shieldMapFirsts] = m
			ring, err = ringbuf.NewReader(m)
			must(b, err)
			b.Cleanup(func() { ring.Close() })
		}
		if c == (holdCell{"on", "known"}) {
			var known []netip.Addr
			for i := range uint32(KnownSources) {
				known = append(known, sourcePrefix(i).Addr())
			}
			must(b, s.Known(known))
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		must(b, err)
		b.Cleanup(coll.Close)
		progs[c] = coll.Programs["mxshield_bench"]
	}
	// drain reads what the agent was told.
	drain := func() {
		var rec ringbuf.Record
		for ring.AvailableBytes() > 0 {
			ring.SetDeadline(time.Now().Add(time.Second))
			if err := ring.ReadInto(&rec); err != nil {
				b.Fatal(err)
			}
		}
	}
	run := func(c holdCell, n int) float64 {
		if c.hold == "on" {
			drain()
			must(b, shields[c].HoldAlive(time.Now().Add(10*time.Second), time.Time{}))
		}
		before, err := shields[c].Counters()
		must(b, err)
		data := syn("192.0.2.1")
		start := threadTime(b)
		_, err = progs[c].Run(&ebpf.RunOptions{Data: data, Repeat: uint32(n)})
		took := threadTime(b) - start
		must(b, err)
		after, err := shields[c].Counters()
		must(b, err)
		// A cell must measure what it says, but for some thousandths: the budget's first, a blocked one, one that is drawn twice.
		if c.hold != "none" {
			want := PassNotBlocked
			if c == (holdCell{"on", "held"}) {
				want = DropHeld
			}
			if got := after[want] - before[want]; float64(got) < 0.98*float64(n) {
				b.Fatalf("%v: %d of %d are %s", c, got, n, want)
			}
		}
		return float64(took.Nanoseconds()) / float64(n)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	samples := map[holdCell][]float64{}
	for range rounds {
		for _, c := range cells {
			run(c, packets/3)
			samples[c] = append(samples[c], run(c, packets))
		}
	}
	medians := map[holdCell]float64{}
	for c, all := range samples {
		medians[c] = median(slices.Clone(all))
	}
	return medians
}
