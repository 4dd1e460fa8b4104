package bpf

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// BenchmarkVerdict runs packets with random sources through parts of the shipped function:
//
//	table=drop    the packet generator and XDP_DROP, nothing else; absolute
//	table=parse   Ethernet to port; net of the generator
//	table=hash    the shipped verdict with its counters; net of the generator
//
// One operation is one packet; ns/pkt is the number to read. size is the number of blocked sources.
func BenchmarkVerdict(b *testing.B) {
	needKernel(b)
	b.Run("table=drop", func(b *testing.B) { benchVerdict(b, "drop", 1000, false) })
	b.Run("table=parse", func(b *testing.B) { benchVerdict(b, "parse", 1000, false) })
	for _, size := range []struct {
		name string
		n    int
	}{{"1k", 1_000}, {"100k", 100_000}, {"1M", 1_000_000}} {
		for _, c := range []string{"hit", "miss"} {
			b.Run(fmt.Sprintf("table=hash/size=%s/case=%s", size.name, c), func(b *testing.B) {
				benchVerdict(b, "hash", size.n, c == "miss")
			})
		}
	}
}

// benchSource is source() of bench.c.
func benchSource(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x7feb352d
	x ^= x >> 15
	x *= 0x846ca68b
	x ^= x >> 16
	return x
}

func benchVerdict(b *testing.B, what string, size int, miss bool) {
	ports, err := portTable(Options{MXPorts: []uint16{25}, SubmissionPorts: []uint16{465, 587}})
	must(b, err)
	load := func(what uint32, maps map[string]*ebpf.Map) *ebpf.Collection {
		spec, err := loadHash()
		must(b, err)
		delete(spec.Programs, shieldProgMxshieldTc)
		delete(spec.Programs, shieldProgMxshieldXdp)
		missing := uint32(0)
		if miss {
			missing = 1
		}
		must(b, errors.Join(
			spec.Variables["ports"].Set(ports),
			spec.Variables["bench_what"].Set(what),
			spec.Variables["bench_miss"].Set(missing),
			spec.Variables["bench_size"].Set(uint32(size)),
		))
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
		must(b, err)
		b.Cleanup(coll.Close)
		return coll
	}
	generator := load(0, nil)
	run := generator
	switch what {
	case "parse":
		run = load(1, nil)
	case "hash":
		run = load(2, nil)
		keys, values := make([]uint32, size), make([]hashEntry, size)
		for i := range keys {
			keys[i], values[i] = benchSource(uint32(i)), hashEntry{Until: ^uint64(0), Scope: ScopeAll}
		}
		for i := 0; i < size; i += 10_000 {
			to := min(i+10_000, size)
			if _, err := run.Maps[shieldMapExactV4].BatchUpdate(keys[i:to], values[i:to], nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	pkt := frame{src: "192.0.2.1", port: 25}.bytes()
	measure := func(c *ebpf.Collection, n int, want uint32) time.Duration {
		ret, perRun, err := c.Programs["mxshield_bench"].Benchmark(pkt, n, nil)
		must(b, err)
		if ret != want {
			b.Fatalf("verdict %d, want %d", ret, want)
		}
		return perRun
	}
	want := uint32(1)
	if miss {
		want = 2
	}
	measure(run, size, want) // warm

	// The kernel gives whole nanoseconds per run; short interleaved rounds give the fractions, and their sum the noise
	// that the generator had too.
	const round = 20_000
	var net float64
	rounds := max(1, b.N/round)
	b.ResetTimer()
	for range rounds {
		d := measure(run, round, want)
		if run != generator {
			d -= measure(generator, round, 1)
		}
		net += float64(d.Nanoseconds())
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(net/float64(rounds), "ns/pkt")
}

type benchSize struct {
	name string
	n    int
}

// benchSizes: the largest takes minutes and gigabytes, and only comes when it is asked for.
func benchSizes(testing.TB) []benchSize {
	sizes := []benchSize{{"1k", 1_000}, {"100k", 100_000}, {"1M", 1_000_000}}
	if os.Getenv("MXSHIELD_BENCH_10M") != "" {
		sizes = append(sizes, benchSize{"10M", 10_000_000})
	}
	return sizes
}
