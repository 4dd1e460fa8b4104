package bpf

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// long says that the tests may take their time: sizes and rounds as a release wants them.
func long() bool { return os.Getenv("MXSHIELD_TEST_LONG") != "" }

// stressed is one of the programs of bench.h on a shield's tables, in stress mode.
type stressed struct{ coll *ebpf.Collection }

// loadStress loads it. The lock keeps the tables from being replaced meanwhile.
func loadStress(t testing.TB, s *Shield, load func() (*ebpf.CollectionSpec, error), blocked, innocentFrom int) *stressed {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	spec, err := load()
	must(t, err)
	for name := range spec.Programs {
		if name != "mxshield_bench" {
			delete(spec.Programs, name)
		}
	}
	for name, m := range s.gen.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	must(t, errors.Join(
		setPorts(spec, s.opts),
		spec.Variables["clock"].Set(s.jiffies.constants()),
		spec.Variables["bench_what"].Set(uint32(4)),
		spec.Variables["bench_size"].Set(uint32(blocked)),
		spec.Variables["bench_innocent"].Set(uint32(innocentFrom)),
		spec.Variables["bench_run"].Set(rand.Uint32()),
	))
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: s.gen.maps})
	must(t, err)
	return &stressed{coll}
}

// run puts n packets through, half of them blocked ones, and returns how many of each kind went wrong so far.
func (x *stressed) run(t testing.TB, n uint32) (missed, hurt uint64) {
	t.Helper()
	_, err := x.coll.Programs["mxshield_bench"].Run(&ebpf.RunOptions{Data: frame{src: "192.0.2.1", port: 25}.bytes(), Repeat: n})
	must(t, err)
	must(t, errors.Join(x.coll.Variables["bench_missed"].Get(&missed), x.coll.Variables["bench_hurt"].Get(&hurt)))
	return missed, hurt
}

// shove moves an entry to its other line, if there is a slot.
func (x *exactTable) shove(key uint64) bool {
	line, slot, ok := x.find(key)
	first, second := x.linesOf(key)
	other := first + second - line
	if !ok || other == line {
		return false
	}
	empty := x.free(other)
	if empty < 0 {
		return false
	}
	x.move(line, slot, other, empty)
	return true
}

// Packets on one CPU, and on the other inserts, deletes, moves, filter refreshes and new generations: what stays blocked
// is dropped by every packet, what was never blocked by none.
func TestStress(t *testing.T) {
	size, period := 20_000, 3*time.Second
	if long() {
		size, period = 1_000_000, 60*time.Second
	}
	if missed, hurt := stress(t, loadBench, size, size/10, period); missed > 0 || hurt > 0 {
		t.Errorf("%d packets of blocked sources passed, %d of innocents were dropped", missed, hurt)
	}
}

// The same without the second look: it must fail, or it would see nothing. Among few entries, which so are moved often.
func TestStressFails(t *testing.T) {
	missed, hurt := stress(t, loadBroken, 200, 1_000_000, time.Minute)
	if missed == 0 || hurt > 0 {
		t.Errorf("without the second look %d packets of blocked sources passed, %d of innocents were dropped", missed, hurt)
	}
}

// stress ends when something went wrong, or after so long. Filter and generation are made anew every so many writes.
func stress(t *testing.T, load func() (*ebpf.CollectionSpec, error), size, every int, period time.Duration) (missed, hurt uint64) {
	t.Helper()
	if runtime.NumCPU() < 2 {
		t.Skip("skipped: needs two CPUs")
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	s := openTest(t, Options{MaxExact: 4 * size})
	stay, churn := size/2, size // the rest of the used sources comes and goes
	for i := range stay {
		must(t, s.Set(sourcePrefix(uint32(i)), ScopeAll, time.Time{}))
	}
	model := make([]bool, churn)

	stop, done := make(chan struct{}), make(chan error, 1)
	var writes, rebuilds atomic.Uint64
	go func() {
		done <- func() error {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return nil
				default:
				}
				i := r.IntN(churn)
				p := sourcePrefix(uint32(stay + i))
				var err error
				switch k := r.IntN(100); {
				case k < 50 && !model[i]:
					err = s.Set(p, ScopeAll, time.Time{})
					model[i] = true
				case k < 50:
					err = s.Remove(p)
					model[i] = false
				case k < 95 || n%every != 0:
					s.mu.Lock()
					s.gen.v4.shove(uint64(benchSource(uint32(r.IntN(stay)))))
					s.mu.Unlock()
				case k < 97:
					s.mu.Lock()
					s.gen.v4.refreshFilter()
					s.mu.Unlock()
				default:
					err = s.grow(true)
					rebuilds.Add(1)
				}
				if err != nil {
					return err
				}
				writes.Add(1)
			}
		}()
	}()
	var packets uint64
	for deadline := time.Now().Add(period); missed == 0 && hurt == 0 && time.Now().Before(deadline); {
		x := loadStress(t, s, load, stay, stay+churn)
		s.mu.Lock()
		gen := s.gen.n
		s.mu.Unlock()
		for now := gen; now == gen && missed == 0 && hurt == 0 && time.Now().Before(deadline); {
			missed, hurt = x.run(t, 50_000)
			packets += 50_000
			s.mu.Lock()
			now = s.gen.n
			s.mu.Unlock()
		}
		x.coll.Close()
	}
	close(stop)
	must(t, <-done)
	s.mu.Lock()
	moves := s.gen.state.Moves
	s.mu.Unlock()
	t.Logf("%d packets, %d writes, %d new generations, %d moves in the last", packets, writes.Load(), rebuilds.Load(), moves)
	want := map[uint64]uint32{}
	word := uint32(timeNoEnd<<timeShift | uint32(ScopeAll))
	for i := range stay {
		want[uint64(benchSource(uint32(i)))] = word
	}
	for i, in := range model {
		if in {
			want[uint64(benchSource(uint32(stay+i)))] = word
		}
	}
	s.gen.v4.check(t, want)
	return missed, hurt
}

// slips: of how many packets one may pass while an entry is moved back and forth without a rest. A look that the machine
// interrupts (another CPU's work, an emulator) can miss the entry four times in a row; without a second look it is one
// in about fifty, and in real life entries are moved once in a while.
const slips = 2000

// One entry is moved back and forth as fast as it goes. Without the second look packets pass, so the stress test can
// fail; with it next to none does.
func TestSecondLook(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("skipped: needs two CPUs")
	}
	s := openTest(t, Options{})
	key := uint64(benchSource(0))
	must(t, s.Set(sourcePrefix(0), ScopeAll, time.Time{}))
	for !s.gen.v4.shove(key) {
		must(t, s.grow(true)) // both lines are the same one: other seeds
	}
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for range 1000 {
				s.gen.v4.shove(key)
			}
		}
	}()
	defer func() { close(stop); <-done }()
	broken := loadStress(t, s, loadBroken, 1, 1000)
	defer broken.coll.Close()
	var packets, missed uint64
	for deadline := time.Now().Add(20 * time.Second); missed < 5 && time.Now().Before(deadline); {
		missed, _ = broken.run(t, 100_000)
		packets += 50_000
	}
	if missed == 0 {
		t.Errorf("%d packets, and without the second look none passed: this test sees nothing", packets)
	}
	t.Logf("without the second look %d of %d packets of a blocked source passed", missed, packets)
	good := loadStress(t, s, loadBench, 1, 1000)
	defer good.coll.Close()
	n := max(packets*4, 2_000_000)
	if long() {
		n *= 50
	}
	for done := uint64(0); done < n; done += 500_000 {
		if missed, hurt := good.run(t, 1_000_000); missed > 500_000/slips || hurt > 0 {
			t.Fatalf("with it %d of %d passed, %d of innocents were dropped", missed, done+500_000, hurt)
		}
	}
}

// The same for a /64, whose slot is written in two pieces: it is moved and rewritten, and its neighbours come and go.
func TestStressV6(t *testing.T) {
	if runtime.NumCPU() < 2 {
		t.Skip("skipped: needs two CPUs")
	}
	s := openTest(t, Options{MaxExact: 12}) // 16 lines: everybody is everybody's neighbour
	p := netip.MustParsePrefix("2001:db8:0:1::/64")
	must(t, s.Set(p, ScopeAll, time.Time{}))
	_, key := s.exactTable(p)
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- func() error {
			r := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return nil
				default:
				}
				other := netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 1, 0, 0, byte(r.IntN(11))}), 64)
				// Another scope than the innocent's below, whose port they must not lend it.
				err := errors.Join(
					s.Set(other, ScopeMX, time.Now().Add(time.Hour)),
					s.Set(p, ScopeAll, time.Now().Add(time.Duration(1+r.IntN(100))*time.Hour)),
					s.Remove(other))
				s.mu.Lock()
				for range 10 {
					s.gen.v6.shove(key)
				}
				s.mu.Unlock()
				if err != nil {
					return err
				}
			}
		}()
	}()
	end := sync.OnceValue(func() error { close(stop); return <-done })
	defer func() { _ = end() }() // a test that fails must not leave the writer to a table that is gone
	blocked, innocent := frame{src: "2001:db8:0:1::1", port: 587}.bytes(), frame{src: "2001:db8:100:3::1", port: 587}.bytes()
	var want uint64
	for range 30 {
		before, err := s.Counters()
		must(t, err)
		_, err = s.xdp.Run(&ebpf.RunOptions{Data: blocked, Repeat: 50_000})
		must(t, err)
		c, err := s.Counters()
		must(t, err)
		want += 50_000
		if d, n := c.Drops()-before.Drops(), c.Packets()-before.Packets(); n-d > n/slips || n < 50_000 {
			t.Fatalf("%d of %d packets of the blocked /64 passed", n-d, n)
		}
		_, err = s.xdp.Run(&ebpf.RunOptions{Data: innocent, Repeat: 50_000})
		must(t, err)
		after, err := s.Counters()
		must(t, err)
		if d := after.Drops() - c.Drops(); d > 0 {
			t.Fatalf("%d packets to a port that was not blocked were dropped", d)
		}
	}
	must(t, end())
	s.mu.Lock()
	t.Logf("%d packets, %d moves", 2*want, s.gen.state.Moves)
	s.mu.Unlock()
}
