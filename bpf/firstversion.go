package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The first version had hashes for exact tables, entries of 24 bytes everywhere, ends in ns of CLOCK_BOOTTIME, and its
// pins right in the pin directory. An upgrade builds a generation out of what is there, while the old programs go on
// dropping, and then gives the links its program. What the kernel drops in between is lost to the counts of the
// entries; the totals go on.

type firstVersionEntry struct {
	Until uint64 // math.MaxUint64: no end
	Drops uint64
	Scope uint8
	Pad   [7]uint8
}

type firstVersionState struct {
	CidrsV4, CidrsV6 uint32
	Clock            int64 // wall minus boot time, ns
	Moves            uint32
	Pad              uint32
}

var firstVersionMaps = map[string]*ebpf.MapSpec{
	"exact_v4": {Type: ebpf.Hash, KeySize: 4, ValueSize: 24, Flags: unix.BPF_F_NO_PREALLOC},
	"exact_v6": {Type: ebpf.Hash, KeySize: 8, ValueSize: 24, Flags: unix.BPF_F_NO_PREALLOC},
	"cidr_v4":  {Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 24, Flags: unix.BPF_F_NO_PREALLOC},
	"cidr_v6":  {Type: ebpf.LPMTrie, KeySize: 20, ValueSize: 24, Flags: unix.BPF_F_NO_PREALLOC},
	"state":    {Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 1},
	"counters": {Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 64},
}

func isFirstVersionPin(name string) bool {
	if name == pinXDP || name == pinTC {
		return true
	}
	_, ok := firstVersionMaps[strings.ReplaceAll(name, "-", "_")]
	return ok
}

// hasFirstVersion says whether there are tables of the first version.
func hasFirstVersion(pins string) bool {
	for name := range firstVersionMaps {
		if _, err := os.Lstat(filepath.Join(pins, pinName(name))); err == nil {
			return true
		}
	}
	return false
}

func removeFirstVersion(pins string) error {
	names := []string{pinXDP, pinTC}
	for name := range firstVersionMaps {
		names = append(names, pinName(name))
	}
	for _, name := range names {
		if err := os.Remove(filepath.Join(pins, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove the pins of an older version: %w", err)
		}
	}
	return nil
}

// firstVersion is what the first version left: maps by name, those that there are.
type firstVersion struct{ maps map[string]*ebpf.Map }

func (f *firstVersion) close() {
	for _, m := range f.maps {
		m.Close()
	}
}

func (s *Shield) openFirstVersion() (_ *firstVersion, err error) {
	f := &firstVersion{maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	for name, want := range firstVersionMaps {
		path := filepath.Join(s.opts.Pins, pinName(name))
		want := *want
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // killed while it made them
		}
		if err == nil {
			if want.MaxEntries == 0 {
				want.MaxEntries = m.MaxEntries()
			}
			m.Close()
		}
		if m, err = openMap(path, name, &want); err != nil {
			return nil, err
		}
		f.maps[name] = m
	}
	return f, nil
}

// takeOver builds a generation with the blocks of the first version.
func (s *Shield) takeOver(f *firstVersion, n int) (g *generation, err error) {
	var st firstVersionState
	if m := f.maps["state"]; m != nil {
		if err := m.Lookup(uint32(0), &st); err != nil {
			return nil, fmt.Errorf("read state: %w", err)
		}
	}
	if st.Clock == 0 {
		if st.Clock, err = wallMinusBoot(); err != nil {
			return nil, err
		}
	}
	if s.clock, err = s.jiffies.wallMinusJiffies(); err != nil {
		return nil, err
	}
	word := func(e firstVersionEntry) uint32 {
		units := uint32(timeNoEnd)
		if e.Until != math.MaxUint64 {
			units = s.jiffies.toUnits(fromBoot(e.Until, st.Clock), s.clock)
		}
		return units<<timeShift | uint32(e.Scope&ScopeAll)
	}

	var v4 []uint32
	var v6 []uint64
	var v4Entries, v6Entries []firstVersionEntry
	if m := f.maps["exact_v4"]; m != nil {
		if v4, v4Entries, err = readHash[uint32](m); err != nil {
			return nil, fmt.Errorf("read exact_v4: %w", err)
		}
	}
	if m := f.maps["exact_v6"]; m != nil {
		if v6, v6Entries, err = readHash[uint64](m); err != nil {
			return nil, fmt.Errorf("read exact_v6: %w", err)
		}
	}
	given := map[string]*ebpf.Map{}
	if m := f.maps["counters"]; m != nil {
		if given[shieldMapCounters], err = m.Clone(); err != nil {
			return nil, fmt.Errorf("keep the counters: %w", err)
		}
	}
	first := min(firstCapacity, s.opts.MaxExact)
	g, err = s.makeGeneration(n, max(first, len(v4)), max(first, len(v6)), given, nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			g.close(nil)
		}
	}()
	g.state.Clock = s.clock
	for i, key := range v4 {
		if e := v4Entries[i]; e.Scope != 0 && !g.v4.add(uint64(key), word(e), uint32(min(e.Drops, math.MaxUint32))) {
			return nil, errNoRoom
		}
	}
	for i, key := range v6 {
		if e := v6Entries[i]; e.Scope != 0 && !g.v6.add(key, word(e), uint32(min(e.Drops, math.MaxUint32))) {
			return nil, errNoRoom
		}
	}
	// The bits in front are set, and the tries counted, by recoverTables.
	var k4 shieldCidrV4Key
	var k6 shieldCidrV6Key
	var e firstVersionEntry
	if m := f.maps["cidr_v4"]; m != nil {
		it := m.Iterate()
		for it.Next(&k4, &e) {
			if err := g.maps[shieldMapCidrV4].Put(&k4, &shieldCidrValue{Until: word(e), Drops: e.Drops}); err != nil {
				return nil, fmt.Errorf("fill cidr_v4: %w", err)
			}
		}
		if err := it.Err(); err != nil {
			return nil, fmt.Errorf("read cidr_v4: %w", err)
		}
	}
	if m := f.maps["cidr_v6"]; m != nil {
		it := m.Iterate()
		for it.Next(&k6, &e) {
			if err := g.maps[shieldMapCidrV6].Put(&k6, &shieldCidrValue{Until: word(e), Drops: e.Drops}); err != nil {
				return nil, fmt.Errorf("fill cidr_v6: %w", err)
			}
		}
		if err := it.Err(); err != nil {
			return nil, fmt.Errorf("read cidr_v6: %w", err)
		}
	}
	s.log.Info("took over the tables of an older version", "entries", len(v4)+len(v6))
	return g, nil
}

// readHash reads a hash in batches: a system call per thousands of entries, and no restart when entries vanish.
func readHash[K any](m *ebpf.Map) (keys []K, values []firstVersionEntry, err error) {
	var cursor ebpf.MapBatchCursor
	k, v := make([]K, 4096), make([]firstVersionEntry, 4096)
	for {
		n, err := m.BatchLookup(&cursor, k, v, nil)
		if errors.Is(err, unix.ENOSPC) { // a bucket with more entries than the batch has room for
			k, v = make([]K, 2*len(k)), make([]firstVersionEntry, 2*len(v))
			continue
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil, err
		}
		keys, values = append(keys, k[:n]...), append(values, v[:n]...)
		if err != nil { // that was the last batch
			return keys, values, nil
		}
	}
}

// wallMinusBoot measures wall minus boot time in ns: the best of a few tries, as the process may be descheduled
// between two readings.
func wallMinusBoot() (int64, error) {
	var offset int64
	best := int64(math.MaxInt64)
	for range 5 {
		var a, w, b unix.Timespec
		for _, c := range []struct {
			id int32
			ts *unix.Timespec
		}{{unix.CLOCK_BOOTTIME, &a}, {unix.CLOCK_REALTIME, &w}, {unix.CLOCK_BOOTTIME, &b}} {
			if err := unix.ClockGettime(c.id, c.ts); err != nil {
				return 0, fmt.Errorf("read clock %d: %w", c.id, err)
			}
		}
		if width := b.Nano() - a.Nano(); width < best {
			best = width
			offset = w.Nano() - a.Nano() - width/2
		}
	}
	return offset, nil
}

// fromBoot is the wall time of an end in the first version's tables.
func fromBoot(boot uint64, offset int64) time.Time {
	return time.Unix(0, offset).Add(time.Duration(min(boot, math.MaxInt64)))
}
