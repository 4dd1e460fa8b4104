package bpf

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// BenchmarkTable measures what the writer does, in CPU time of its thread: table=cacheline is a Shield with kernel maps,
// programs loaded for growth included; table=hash is single updates of the first version's hash. ns/entry is the number
// to read, the median of some rounds in turns for insert. A size is filled, used, restarted and emptied:
//
//	insert    by SetMany, from an empty Shield
//	set       by Set, the same
//	update    Set on what is there
//	scan      Each
//	filter    the Bloom filter made anew
//	rebuild   a new generation, of the same size
//	restart   Close and Open, which takes over the pins
//	expire    Remove of all
//
// bytes/entry are those of lines and filter, rss-MB what the process has in memory when all are in (with what earlier
// benchmarks left in it).
func BenchmarkTable(b *testing.B) {
	needKernel(b)
	for _, size := range benchSizes() {
		var measured map[string]tableCosts
		for _, name := range []string{"cacheline", "cacheline_v6", "hash"} {
			for _, op := range []string{"insert", "set", "update", "scan", "filter", "rebuild", "restart", "expire"} {
				if name == "hash" && (op != "insert" || size.n > 1_000_000) {
					continue
				}
				b.Run(fmt.Sprintf("table=%s/size=%s/op=%s", name, size.name, op), func(b *testing.B) {
					if measured == nil {
						measured = measureTables(b, size.n)
					}
					c := measured[name]
					b.ReportMetric(0, "ns/op")
					b.ReportMetric(c.ns[op]/float64(size.n), "ns/entry")
					if op == "insert" && c.bytes > 0 {
						b.ReportMetric(float64(c.bytes)/float64(size.n), "bytes/entry")
						b.ReportMetric(c.rss, "rss-MB")
					}
				})
			}
		}
	}
}

type tableCosts struct {
	ns    map[string]float64 // of the whole, by op
	bytes int
	rss   float64 // MB
}

func measureTables(b *testing.B, size int) map[string]tableCosts {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	rounds := 3
	if size > 1_000_000 {
		rounds = 1
	}
	all := map[string]map[string][]float64{"cacheline": {}, "cacheline_v6": {}, "hash": {}}
	costs := map[string]tableCosts{}
	timed := func(name, op string, f func()) {
		start := threadTime(b)
		f()
		all[name][op] = append(all[name][op], float64((threadTime(b) - start).Nanoseconds()))
	}
	for range rounds {
		for _, name := range []string{"cacheline", "cacheline_v6"} {
			costs[name] = measureShield(b, size, name == "cacheline_v6", func(op string, f func()) { timed(name, op, f) })
		}
		if size > 1_000_000 {
			continue
		}
		m := newHash(b, size)["exact_v4"]
		timed("hash", "insert", func() {
			for i := range size {
				key := benchSource(uint32(i))
				if err := m.Update(&key, &hashValue, ebpf.UpdateAny); err != nil {
					b.Fatal(err)
				}
			}
		})
		m.Close()
	}
	for name, ops := range all {
		c := costs[name]
		c.ns = map[string]float64{}
		for op, x := range ops {
			c.ns[op] = median(x)
		}
		costs[name] = c
	}
	return costs
}

// measureShield goes through the life of a Shield of so many entries.
func measureShield(b *testing.B, size int, v6 bool, timed func(op string, f func())) (c tableCosts) {
	prefix, exact, bloom := sourcePrefix, shieldMapExactV4, shieldMapBloomV4
	if v6 {
		prefix, exact, bloom = sourcePrefixV6, shieldMapExactV6, shieldMapBloomV6
	}
	opts := Options{MaxExact: size, Log: slog.New(slog.DiscardHandler)}
	set := func(s *Shield, until time.Time) func() {
		return func() {
			for i := range size {
				if err := s.Set(prefix(uint32(i)), ScopeAll, until); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	s := openTest(b, opts)
	timed("set", set(s, time.Time{}))
	s.Close()
	_, err := Off(s.opts.Pins, true)
	must(b, err)

	s = openTest(b, opts)
	timed("insert", func() { setSources(b, s, size, prefix) })
	for _, name := range []string{exact, bloom} {
		c.bytes += int(s.gen.maps[name].MaxEntries()) * int(s.gen.maps[name].ValueSize())
	}
	c.rss = rss(b)
	timed("update", set(s, future))
	n := 0
	timed("scan", func() { must(b, s.Each(func(Rule) bool { n++; return true })) })
	if n != size {
		b.Fatalf("%d entries, want %d", n, size)
	}
	timed("filter", func() {
		if v6 {
			s.gen.v6.refreshFilter()
		} else {
			s.gen.v4.refreshFilter()
		}
	})
	timed("rebuild", func() { must(b, s.grow(!v6)) })
	timed("restart", func() {
		s.Close()
		s, err = Open(s.opts)
		must(b, err)
	})
	timed("expire", func() {
		for i := range size {
			if err := s.Remove(prefix(uint32(i))); err != nil {
				b.Fatal(err)
			}
		}
	})
	s.Close()
	_, err = Off(s.opts.Pins, true)
	must(b, err)
	return c
}

// rss is what the process has in memory, in MB.
func rss(tb testing.TB) float64 {
	text, err := os.ReadFile("/proc/self/status")
	must(tb, err)
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmRSS:" {
			kb, err := strconv.Atoi(f[1])
			must(tb, err)
			return float64(kb) / 1e3
		}
	}
	return 0
}
