package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// BenchmarkVerdict runs packets with random sources, as bench.h draws them:
//
//	table=drop        the generator and XDP_DROP, nothing else; absolute
//	table=parse       Ethernet to port; net of the generator, as are all below
//	table=cacheline   the shipped verdict with its filter and counters
//	table=hash        the same on hashes, as the first version had it
//	table=lpm         the same on an LPM trie alone
//
// and case=hit (a blocked source), miss (an innocent one) or other_port (to 443). ns/pkt is the number to read, and of
// it the ratios: all cells of one size are measured in turns, and the median of the rounds is told. Size 10M takes
// minutes and 4 GB, and is only run with MXSHIELD_BENCH_10M set. At the end the ratios come as a Markdown table.
func BenchmarkVerdict(b *testing.B) {
	needKernel(b)
	measured := map[string]map[benchCell]float64{}
	for _, size := range benchSizes(b) {
		cell := func(c benchCell) {
			name := fmt.Sprintf("table=%s/size=%s/case=%s", c.table, size.name, c.kind)
			b.Run(name, func(b *testing.B) {
				if measured[size.name] == nil {
					measured[size.name] = measureVerdicts(b, size.n)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(measured[size.name][c], "ns/pkt")
			})
		}
		for _, c := range benchCells(size.n) {
			cell(c)
		}
	}
	if text := verdictTable(measured); text != "" {
		fmt.Print("\n", text, "\n")
	}
}

type benchCell struct{ table, kind string }

func benchCells(size int) []benchCell {
	cells := []benchCell{{"drop", "hit"}, {"drop", "miss"}, {"parse", "hit"}, {"parse", "miss"}, {"cacheline", "other_port"}}
	for _, table := range []string{"cacheline", "hash", "lpm"} {
		if table == "lpm" && size > 1_000_000 && os.Getenv("MXSHIELD_BENCH_10M") != "lpm" {
			continue // a minute and a half to fill
		}
		cells = append(cells, benchCell{table, "hit"}, benchCell{table, "miss"})
	}
	return cells
}

type benchSize struct {
	name string
	n    int
}

func benchSizes(testing.TB) []benchSize {
	sizes := []benchSize{{"1k", 1_000}, {"100k", 100_000}, {"1M", 1_000_000}}
	if os.Getenv("MXSHIELD_BENCH_10M") != "" {
		sizes = append(sizes, benchSize{"10M", 10_000_000})
	}
	return sizes
}

// benchSource is source() of bench.h.
func benchSource(x uint32) uint32 {
	x ^= x >> 16
	x *= 0x7feb352d
	x ^= x >> 15
	x *= 0x846ca68b
	x ^= x >> 16
	return x
}

// filledShield is a shield with so many blocks, as full as it may be. The time is that of all the Sets.
func filledShield(tb testing.TB, size int) (*Shield, time.Duration) {
	s := openTest(tb, Options{MaxExact: size, Log: slog.New(slog.DiscardHandler)})
	start := time.Now()
	s.SetMany(size, func(yield func(netip.Prefix, uint8, time.Time) bool) {
		for i := range size {
			yield(sourcePrefix(uint32(i)), ScopeAll, time.Time{})
		}
	}, func(_ netip.Prefix, err error) { tb.Fatal(err) })
	return s, time.Since(start)
}

// filledHash is the tables of the first version with so many blocks, in the hash and in the trie, as far as wanted.
func filledHash(tb testing.TB, size int, hash, lpm bool) map[string]*ebpf.Map {
	spec, err := loadHash()
	must(tb, err)
	made := map[string]*ebpf.Map{}
	for _, name := range []string{"exact_v4", "cidr_v4"} {
		spec.Maps[name].MaxEntries = uint32(size) + 1
		made[name], err = ebpf.NewMap(spec.Maps[name])
		must(tb, err)
		tb.Cleanup(func() { made[name].Close() })
	}
	if hash {
		keys, values := make([]uint32, size), make([]hashEntry, size)
		for i := range keys {
			keys[i], values[i] = benchSource(uint32(i)), hashEntry{Until: ^uint64(0), Scope: ScopeAll}
		}
		for i := 0; i < size; i += 10_000 {
			to := min(i+10_000, size)
			_, err := made["exact_v4"].BatchUpdate(keys[i:to], values[i:to], nil)
			must(tb, err)
		}
	}
	for i := 0; lpm && i < size; i++ {
		for {
			err := made["cidr_v4"].Put(hashCidrV4Key{Bits: 32, Addr: benchSource(uint32(i))}, hashEntry{Until: ^uint64(0), Scope: ScopeAll})
			if err == nil {
				break
			}
			time.Sleep(time.Millisecond) // the kernel's allocator is out of breath
		}
	}
	return made
}

// measureVerdicts measures all cells of a size in turns.
func measureVerdicts(b *testing.B, size int) map[benchCell]float64 {
	cells := benchCells(size)
	has := func(table string) bool {
		return slices.ContainsFunc(cells, func(c benchCell) bool { return c.table == table })
	}
	s, _ := filledShield(b, size)
	old := filledHash(b, size, has("hash"), has("lpm"))
	load := func(c benchCell) *ebpf.Program {
		var err error
		spec, replace := (*ebpf.CollectionSpec)(nil), old
		if c.table == "hash" || c.table == "lpm" {
			spec, err = loadHash()
		} else {
			spec, err = loadBench()
			replace = s.gen.maps
		}
		must(b, err)
		for name := range spec.Programs {
			if name != "mxshield_bench" {
				delete(spec.Programs, name)
			}
		}
		for name, m := range replace {
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
		if v := spec.Variables["clock"]; v != nil {
			must(b, v.Set(s.jiffies.constants()))
		}
		missing := uint32(0)
		if c.kind == "miss" {
			missing = 1
		}
		what := map[string]uint32{"drop": 0, "parse": 1, "cacheline": 2, "hash": 2, "lpm": 3}[c.table]
		must(b, errors.Join(
			setPorts(spec, s.opts),
			spec.Variables["bench_what"].Set(what),
			spec.Variables["bench_miss"].Set(missing),
			spec.Variables["bench_size"].Set(uint32(size)),
		))
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		must(b, err)
		b.Cleanup(coll.Close)
		return coll.Programs["mxshield_bench"]
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	progs := map[benchCell]*ebpf.Program{}
	for _, c := range cells {
		progs[c] = load(c)
	}
	run := func(c benchCell, n int) float64 {
		port := uint16(25)
		if c.kind == "other_port" {
			port = 443
		}
		start := threadTime(b)
		ret, err := progs[c].Run(&ebpf.RunOptions{Data: frame{src: "192.0.2.1", port: port}.bytes(), Repeat: uint32(n)})
		took := threadTime(b) - start
		must(b, err)
		want := uint32(1)
		if c.kind != "hit" && c.table != "drop" && c.table != "parse" {
			want = 2
		}
		if ret != want {
			b.Fatalf("%v: verdict %d, want %d", c, ret, want)
		}
		return float64(took.Nanoseconds()) / float64(n)
	}
	// Long windows: a flood is long too, and in short ones a process that runs beside has just emptied the caches.
	const rounds, packets = 11, 200_000
	samples := map[benchCell][]float64{}
	for range rounds {
		for _, c := range cells {
			run(c, packets/2) // the others' tables go out of the cache, ours come in
			samples[c] = append(samples[c], run(c, packets))
		}
	}
	if os.Getenv("ZZ") != "" {
		for _, c := range cells {
			slices.Sort(samples[c])
			fmt.Printf("%-20v min %.1f med %.1f max %.1f\n", c, samples[c][0], samples[c][rounds/2], samples[c][rounds-1])
		}
	}
	medians := map[benchCell]float64{}
	for c, all := range samples {
		slices.Sort(all)
		medians[c] = all[len(all)/2]
	}
	for c := range medians {
		switch {
		case c.table == "drop":
		case c.kind == "miss":
			medians[c] -= medians[benchCell{"drop", "miss"}]
		default:
			medians[c] -= medians[benchCell{"drop", "hit"}]
		}
	}
	return medians
}

// threadTime is the CPU time of this thread: what other processes take in between does not count.
func threadTime(tb testing.TB) time.Duration {
	var t unix.Timespec
	must(tb, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t))
	return time.Duration(t.Nano())
}

// verdictTable tells the ratios in Markdown.
func verdictTable(measured map[string]map[benchCell]float64) string {
	var out strings.Builder
	for _, size := range []string{"1k", "100k", "1M", "10M"} {
		m := measured[size]
		if m == nil {
			continue
		}
		if out.Len() == 0 {
			out.WriteString("| blocks | table | hit ns/pkt | miss ns/pkt | hit, times cacheline | miss, times cacheline |\n|---|---|---|---|---|---|\n")
		}
		for _, table := range []string{"drop", "parse", "cacheline", "hash", "lpm"} {
			hit, ok := m[benchCell{table, "hit"}]
			if !ok {
				continue
			}
			miss := m[benchCell{table, "miss"}]
			fmt.Fprintf(&out, "| %s | %s | %.0f | %.0f |", size, table, hit, miss)
			if table == "drop" {
				out.WriteString(" | |\n")
				continue
			}
			fmt.Fprintf(&out, " %.1f | %.1f |\n", hit/m[benchCell{"cacheline", "hit"}], miss/m[benchCell{"cacheline", "miss"}])
		}
		fmt.Fprintf(&out, "| %s | cacheline, to port 443 | | %.0f | | |\n", size, m[benchCell{"cacheline", "other_port"}])
	}
	if out.Len() > 0 {
		out.WriteString("\ndrop is absolute and the generator's own cost; the others are net of it.\n")
	}
	return out.String()
}

// BenchmarkTable measures what the writer does. table=cacheline is a Shield with kernel maps, growing included;
// table=hash is single updates of the first version's hash.
func BenchmarkTable(b *testing.B) {
	for _, size := range benchSizes(b) {
		per := func(b *testing.B, d time.Duration) {
			b.ReportMetric(float64(d.Nanoseconds())/float64(size.n), "ns/entry")
			b.ReportMetric(0, "ns/op")
		}
		var cached *Shield
		var setting time.Duration
		filled := func(b *testing.B) *Shield {
			needKernel(b)
			if cached == nil {
				cached, setting = filledShield(&outliving{TB: b}, size.n)
			}
			return cached
		}
		run := func(table, op string, f func(b *testing.B)) {
			b.Run(fmt.Sprintf("table=%s/op=%s/size=%s", table, op, size.name), f)
		}
		run("cacheline", "insert", func(b *testing.B) {
			s := filled(b)
			per(b, setting)
			bytes := 0
			for _, name := range []string{shieldMapExactV4, shieldMapBloomV4} {
				bytes += int(s.gen.maps[name].MaxEntries()) * int(s.gen.maps[name].ValueSize())
			}
			b.ReportMetric(float64(bytes)/float64(size.n), "bytes/entry")
		})
		timed := func(op string, f func(s *Shield) error) {
			run("cacheline", op, func(b *testing.B) {
				s := filled(b)
				start := time.Now()
				must(b, f(s))
				per(b, time.Since(start))
				for range b.N { // once is enough
					continue
				}
			})
		}
		timed("update", func(s *Shield) error {
			for i := range size.n {
				if err := s.Set(sourcePrefix(uint32(i)), ScopeAll, future); err != nil {
					return err
				}
			}
			return nil
		})
		timed("scan", func(s *Shield) error { return s.Each(func(Rule) bool { return true }) })
		timed("filter", func(s *Shield) error { s.gen.v4.refreshFilter(); return nil })
		timed("rebuild", func(s *Shield) error { return s.grow(true) })
		timed("restart", func(s *Shield) error {
			s.Close()
			var err error
			cached, err = Open(s.opts)
			return err
		})
		timed("delete", func(s *Shield) error {
			for i := range size.n {
				if err := s.Remove(sourcePrefix(uint32(i))); err != nil {
					return err
				}
			}
			cached = nil
			s.Close()
			_, err := Off(s.opts.Pins, true)
			return err
		})
		if cached != nil { // the last ones were not asked for
			cached.Close()
			_, err := Off(cached.opts.Pins, true)
			must(b, err)
		}
		// The table alone, as large as it has to be from the start, which no Shield of that size is.
		run("cacheline", "add", func(b *testing.B) {
			x := heapTable(false, size.n)
			for i := range x.v4 {
				x.v4[i].Pad, x.bloom[i] = 0, 0 // the pages are there
			}
			start := time.Now()
			for i := range size.n {
				x.add(uint64(benchSource(uint32(i))), 1, 0)
			}
			per(b, time.Since(start))
		})
		if size.n > 1_000_000 {
			continue
		}
		run("hash", "insert", func(b *testing.B) {
			needKernel(b)
			m := filledHash(b, size.n, false, false)["exact_v4"]
			start := time.Now()
			for i := range size.n {
				key := benchSource(uint32(i))
				if err := m.Put(&key, &hashEntry{Until: ^uint64(0), Scope: ScopeAll}); err != nil {
					b.Fatal(err)
				}
			}
			per(b, time.Since(start))
		})
	}
}

// outliving is a test that does not clean up: what is made is used by several.
type outliving struct{ testing.TB }

func (*outliving) Cleanup(func()) {}

// The benchmarks run, and their table is whole: a small one, so that it does not rot.
func TestBench(t *testing.T) {
	m := map[string]map[benchCell]float64{"1k": {}}
	for i, c := range benchCells(1000) {
		m["1k"][c] = float64(i + 1)
	}
	text := verdictTable(maps.Clone(m))
	for _, table := range []string{"drop", "parse", "cacheline", "hash", "lpm"} {
		if !strings.Contains(text, "| 1k | "+table+" |") {
			t.Errorf("no %s in\n%s", table, text)
		}
	}
}
