package bpf

import (
	"errors"
	"fmt"
	"log/slog"
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
//	table=drop        the generator and XDP_DROP, nothing else
//	table=parse       Ethernet to port
//	table=load        the same, and one load from a random word of the filter: what one cache miss costs here
//	table=cacheline   the shipped verdict with its filter and counters
//	table=hash        the same on hashes, as the first version had it
//	table=lpm         the same on an LPM trie alone
//
// and case=hit (a blocked source), miss (an innocent one) or other_port (to 443); with _v6 the sources are /64s, with
// _cidr the blocks are /24s, as many as size. ns/run is the time of a run; ns/pkt is net of the generator (table=drop).
// The ratios of either are the numbers to read: all cells of one size are measured in turns, by the CPU time of the
// thread, and the median of the rounds is told. Size 10M takes minutes and 4 GB, and is only run with MXSHIELD_BENCH_10M
// set ("lpm": with the trie too). `make bench` makes tables of this.
//
// What was found on the way (1M, a virtual Xeon with 260 MB of shared cache, busy; differences of 3% are noise there):
//
//   - Without the filter a hit costs 8% less (the processor seems to fetch word and line at once), without the count of
//     drops, or with a plain ++ for it, 3% less.
//   - Fetching the second line early changes nothing. Looking at both lines without a branch costs 4% more.
//   - So what is left of a hit is the one line (150 of 172 ns on a virtual EPYC with 32 MB of shared cache, on which the
//     rest was found). Arrays are of 4 kB pages whatever their size, and nothing in BPF asks for larger ones. A loop in user
//     space says what they would bring: nothing at 1M, a third at 10M.
//   - Lines alone, without the filter, and in the padding of each a bit for the entries that stand in their second line: a
//     hit costs 12% less, but a miss 2.4 times as much.
//   - A filter of half the size: a miss costs 8% less at 1M, where it fits into more of the second-level cache, and a hit the
//     same. It lets four times as many innocents through to the lines, so a small table would pay for it.
//   - Neither the count of drops nor that of totals can be felt, atomic or not.
//   - SetMany takes the same time with chunks of 32 to 512, and more with 2048.
//   - Of the 130 ms that SetMany takes for a million, some 15 are the verifier's, for the one program of the growth. (They
//     were 45 before the extension headers were one way each for it, and the looks after the first functions.)
func BenchmarkVerdict(b *testing.B) {
	needKernel(b)
	for _, size := range benchSizes() {
		var measured map[benchCell]float64
		for _, c := range benchCells(size.n) {
			b.Run(fmt.Sprintf("table=%s/size=%s/case=%s", c.table, size.name, c.kind), func(b *testing.B) {
				if measured == nil {
					measured = measureVerdicts(b, size.n)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(measured[c], "ns/run")
				if c.table != "drop" {
					b.ReportMetric(measured[c]-measured[c.generator()], "ns/pkt")
				}
			})
		}
	}
}

type benchCell struct{ table, kind string }

func (c benchCell) v6() bool   { return strings.HasSuffix(c.kind, "_v6") }
func (c benchCell) cidr() bool { return strings.HasSuffix(c.kind, "_cidr") }
func (c benchCell) miss() bool { return strings.HasPrefix(c.kind, "miss") }

// generator is the cell that says what drawing the sources of c costs.
func (c benchCell) generator() benchCell {
	kind := "hit"
	if c.miss() {
		kind = "miss"
	}
	if c.v6() {
		kind += "_v6"
	}
	return benchCell{"drop", kind}
}

func benchCells(size int) []benchCell {
	both := func(cells []benchCell, table, suffix string) []benchCell {
		return append(cells, benchCell{table, "hit" + suffix}, benchCell{table, "miss" + suffix})
	}
	var cells []benchCell
	for _, table := range []string{"drop", "parse", "load", "cacheline", "hash", "lpm"} {
		if table == "lpm" && size > 1_000_000 && os.Getenv("MXSHIELD_BENCH_10M") != "lpm" {
			continue // a minute and a half to fill
		}
		cells = both(cells, table, "")
		if table == "cacheline" {
			cells = append(cells, benchCell{table, "other_port"})
		}
	}
	if size <= 1_000_000 {
		for _, table := range []string{"drop", "parse", "cacheline", "hash"} {
			cells = both(cells, table, "_v6")
		}
	}
	if size <= maxBenchCIDRs {
		cells = both(cells, "cacheline", "_cidr")
		cells = both(cells, "lpm", "_cidr")
	}
	return cells
}

const maxBenchCIDRs = 100_000

type benchSize struct {
	name string
	n    int
}

func benchSizes() []benchSize {
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

func sourcePrefix(i uint32) netip.Prefix { return exactV4Prefix(benchSource(i)) }

// benchNet is the first half of 2001:db8::/32 as it stands in a packet; the second is the source.
const benchNet = 0xb80d0120

func sourcePrefixV6(i uint32) netip.Prefix {
	return exactV6Prefix(uint64(benchSource(i))<<32 | benchNet)
}

func sourcePrefixCIDR(i uint32) netip.Prefix {
	return netip.PrefixFrom(sourcePrefix(i).Addr(), 24).Masked()
}

// setSources makes blocks of the first size sources.
func setSources(tb testing.TB, s *Shield, size int, prefix func(uint32) netip.Prefix) {
	s.SetMany(size, func(yield func(netip.Prefix, uint8, time.Time) bool) {
		for i := range size {
			yield(prefix(uint32(i)), ScopeAll, time.Time{})
		}
	}, func(_ netip.Prefix, err error) { tb.Fatal(err) })
}

// filledHash is the tables of the first version with so many blocks.
type filledHash map[string]*ebpf.Map

func newHash(tb testing.TB, size int) filledHash {
	spec, err := loadHash()
	must(tb, err)
	made := filledHash{}
	for _, name := range []string{"exact_v4", "exact_v6", "cidr_v4"} {
		spec.Maps[name].MaxEntries = uint32(size) + 1
		made[name], err = ebpf.NewMap(spec.Maps[name])
		must(tb, err)
		tb.Cleanup(func() { made[name].Close() })
	}
	return made
}

var hashValue = hashEntry{Until: ^uint64(0), Scope: ScopeAll}

func fillHash[K any](tb testing.TB, m *ebpf.Map, size int, key func(i uint32) K) {
	keys, values := make([]K, size), make([]hashEntry, size)
	for i := range keys {
		keys[i], values[i] = key(uint32(i)), hashValue
	}
	for i := 0; i < size; i += 10_000 {
		to := min(i+10_000, size)
		_, err := m.BatchUpdate(keys[i:to], values[i:to], nil)
		must(tb, err)
	}
}

func fillTrie(tb testing.TB, m *ebpf.Map, size int, bits, mask uint32) {
	for i := range size {
		must(tb, put(m, hashCidrV4Key{Bits: bits, Addr: benchSource(uint32(i)) & mask}, &hashValue, ""))
	}
}

// measureVerdicts measures all cells of a size in turns: ns of a run.
func measureVerdicts(b *testing.B, size int) map[benchCell]float64 {
	cells := benchCells(size)
	has := func(table, kind string) bool { return slices.Contains(cells, benchCell{table, kind}) }
	quiet := slog.New(slog.DiscardHandler)
	s, old := openTest(b, Options{MaxExact: size, Log: quiet}), newHash(b, size)
	setSources(b, s, size, sourcePrefix)
	fillHash(b, old["exact_v4"], size, benchSource)
	if has("cacheline", "hit_v6") {
		setSources(b, s, size, sourcePrefixV6)
		fillHash(b, old["exact_v6"], size, func(i uint32) uint64 { return uint64(benchSource(i))<<32 | benchNet })
	}
	if has("lpm", "hit") {
		fillTrie(b, old["cidr_v4"], size, 32, 0xffffffff)
	}
	var cidr *Shield
	var oldCIDR filledHash
	if has("cacheline", "hit_cidr") {
		cidr, oldCIDR = openTest(b, Options{MaxCIDRs: size, Log: quiet}), newHash(b, size)
		setSources(b, cidr, size, sourcePrefixCIDR)
		fillTrie(b, oldCIDR["cidr_v4"], size, 24, 0xffffff)
	}

	load := func(c benchCell) *ebpf.Program {
		read, replace := loadBench, s.gen.maps
		switch {
		case c.table == "hash":
			read, replace = loadHash, old
		case c.table == "lpm" && c.cidr():
			read, replace = loadHash, oldCIDR
		case c.table == "lpm":
			read, replace = loadHash, old
		case c.cidr():
			replace = cidr.gen.maps
		}
		spec, err := read()
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
		flag := map[bool]uint32{true: 1}
		what := map[string]uint32{"drop": 0, "parse": 1, "cacheline": 2, "hash": 2, "lpm": 3, "load": 5}[c.table]
		must(b, errors.Join(
			setPorts(spec, s.opts),
			spec.Variables["bench_what"].Set(what),
			spec.Variables["bench_miss"].Set(flag[c.miss()]),
			spec.Variables["bench_v6"].Set(flag[c.v6()]),
			spec.Variables["bench_size"].Set(uint32(size)),
		))
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		must(b, err)
		b.Cleanup(coll.Close)
		return coll.Programs["mxshield_bench"]
	}
	progs := map[benchCell]*ebpf.Program{}
	for _, c := range cells {
		progs[c] = load(c)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	run := func(c benchCell, n int) float64 {
		f := frame{src: "192.0.2.1", port: 25}
		if c.v6() {
			f.src = "2001:db8::1"
		}
		if c.kind == "other_port" {
			f.port = 443
		}
		start := threadTime(b)
		ret, err := progs[c].Run(&ebpf.RunOptions{Data: f.bytes(), Repeat: uint32(n)})
		took := threadTime(b) - start
		must(b, err)
		want := uint32(1)
		if (c.miss() || c.kind == "other_port") && slices.Contains([]string{"cacheline", "hash", "lpm"}, c.table) {
			want = 2
		}
		// An innocent of the CIDRs may have a blocked neighbour.
		if ret != want && c.kind != "miss_cidr" {
			b.Fatalf("%v: verdict %d, want %d", c, ret, want)
		}
		return float64(took.Nanoseconds()) / float64(n)
	}
	// Many short turns: what disturbs the machine for a second disturbs all cells alike.
	const rounds, packets = 31, 30_000
	samples := map[benchCell][]float64{}
	for range rounds {
		for _, c := range cells {
			run(c, packets/3) // the others' tables go out of the cache, ours come in
			samples[c] = append(samples[c], run(c, packets))
		}
	}
	medians := map[benchCell]float64{}
	for c, all := range samples {
		medians[c] = median(all)
	}
	return medians
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	return x[len(x)/2]
}

// threadTime is the CPU time of this thread: what other processes take in between does not count.
func threadTime(tb testing.TB) time.Duration {
	var t unix.Timespec
	must(tb, unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t))
	return time.Duration(t.Nano())
}
