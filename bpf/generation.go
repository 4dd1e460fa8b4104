package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A generation is a set of tables with the programs that use them. The exact tables cannot grow, nor get other seeds, in
// place. So a new generation is built aside while the old one goes on dropping, filled, pinned, and then each link gets
// the new program. What does not change (CIDRs, counters, the other exact table) is the same map in both.
//
// The writer's lock is held all the while: no write happens while links of two generations live, so both say the
// same, and a process that is killed anywhere in between leaves nothing worse than two generations of which either is
// right. A directory gets its name gen-N only when all in it is complete. The next start takes the generation that the
// links run on (the newer one if there are two, the newest without links), gives its program to all links, and removes
// the rest. Which generation a link runs on is told by the maps of its program, not by the program: a start with other
// ports loads a new program on the same tables.

const genPrefix = "gen-"

// firstCapacity is how many entries the exact tables of the first generation hold: 2.7 MB, filters included.
const firstCapacity = 1 << 16

// step comes between any two things that a change of generations does to pins and links. Tests are killed there.
var step = func() {}

type generation struct {
	n    int // of gen-N
	maps map[string]*ebpf.Map
	// Mapped memory; see unmap.
	v4, v6 *exactTable
	near   []uint64
	state  *shieldStateValue
	admit  *shieldAdmissionValue
	mapped [][]byte
}

func genName(n int) string { return genPrefix + strconv.Itoa(n) }

// genNumber is the way back.
func genNumber(name string) (int, bool) {
	digits, ok := strings.CutPrefix(name, genPrefix)
	n, err := strconv.Atoi(digits)
	return n, ok && err == nil && n > 0 && genName(n) == name
}

// generations returns the numbers of the pinned generations, sorted.
func generations(pins string) ([]int, error) {
	entries, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	var all []int
	for _, e := range entries {
		if n, ok := genNumber(e.Name()); ok {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return all, nil
}

// removeGeneration removes the pins of a generation, under whatever name its directory has. What is not ours stays, and
// the directory with it.
func removeGeneration(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove generation: %w", err)
	}
	// First what makes it one: a half removed generation must not look like a whole one.
	slices.SortFunc(entries, func(a, b os.DirEntry) int {
		if a.Name() == pinName(shieldMapState) {
			return -1
		}
		return strings.Compare(a.Name(), b.Name())
	})
	left := false
	for _, e := range entries {
		if !isGenPin(e.Name()) {
			left = true
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove generation: %w", err)
		}
		step()
	}
	if left {
		return nil
	}
	if err := os.Remove(dir); err != nil {
		return fmt.Errorf("remove generation: %w", err)
	}
	return nil
}

// isGenPin says whether mxshield gives this name to a pin of a generation.
func isGenPin(name string) bool {
	name = strings.TrimPrefix(name, newPrefix)
	return name == pinXDP || name == pinTC || slices.ContainsFunc(mapNames, func(m string) bool { return isPinned(m) && pinName(m) == name })
}

// mapMemory maps an array map into this process. The programs see every store at once.
func (g *generation) mapMemory(name string) (unsafe.Pointer, error) {
	m := g.maps[name]
	size := int(m.MaxEntries()) * int(m.ValueSize())
	page := os.Getpagesize()
	mem, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of %s: %w", name, err)
	}
	g.mapped = append(g.mapped, mem)
	return unsafe.Pointer(&mem[0]), nil
}

// mapAll maps what the writer writes by itself.
func (g *generation) mapAll() error {
	at := map[string]unsafe.Pointer{}
	for _, name := range []string{shieldMapState, shieldMapAdmission, shieldMapCidrNear, shieldMapExactV4, shieldMapExactV6, shieldMapBloomV4, shieldMapBloomV6} {
		p, err := g.mapMemory(name)
		if err != nil {
			return err
		}
		at[name] = p
	}
	g.state = (*shieldStateValue)(at[shieldMapState])
	g.admit = (*shieldAdmissionValue)(at[shieldMapAdmission])
	g.near = unsafe.Slice((*uint64)(at[shieldMapCidrNear]), g.maps[shieldMapCidrNear].MaxEntries())
	lines4, lines6 := g.maps[shieldMapExactV4].MaxEntries(), g.maps[shieldMapExactV6].MaxEntries()
	g.v4 = &exactTable{
		v4:    unsafe.Slice((*shieldLineV4)(at[shieldMapExactV4]), lines4),
		bloom: unsafe.Slice((*uint64)(at[shieldMapBloomV4]), lines4),
		moves: &g.state.Moves,
	}
	g.v6 = &exactTable{
		v6:    unsafe.Slice((*shieldLineV6)(at[shieldMapExactV6]), lines6),
		bloom: unsafe.Slice((*uint64)(at[shieldMapBloomV6]), lines6),
		moves: &g.state.Moves,
	}
	return nil
}

// close lets go of the memory and the maps, except those another generation keeps.
func (g *generation) close(keep *generation) {
	if g == nil {
		return
	}
	for _, mem := range g.mapped {
		_ = unix.Munmap(mem)
	}
	g.mapped, g.v4, g.v6, g.near, g.state, g.admit = nil, nil, nil, nil, nil, nil
	for name, m := range g.maps {
		if keep == nil || keep.maps[name] != m {
			m.Close()
		}
	}
}

// makeGeneration makes a generation with room for so many entries, taking over maps that are given. Tables that are
// made get new seeds; those that are given keep theirs, in seeds.
func (s *Shield) makeGeneration(n, capacityV4, capacityV6 int, given map[string]*ebpf.Map, seeds *shieldStateValue) (_ *generation, err error) {
	spec, err := s.spec()
	if err != nil {
		return nil, err
	}
	lines4, lines6 := uint32(linesFor(capacityV4, slotsV4)), uint32(linesFor(capacityV6, slotsV6))
	for name, lines := range map[string]uint32{
		shieldMapExactV4: lines4, shieldMapBloomV4: lines4, shieldMapExactV6: lines6, shieldMapBloomV6: lines6,
	} {
		spec.Maps[name].MaxEntries = lines
	}
	g := &generation{n: n, maps: map[string]*ebpf.Map{}}
	maps.Copy(g.maps, given)
	defer func() {
		if err != nil {
			for name := range given {
				delete(g.maps, name)
			}
			g.close(nil)
		}
	}()
	for _, name := range mapNames {
		if g.maps[name] != nil {
			continue
		}
		if g.maps[name], err = ebpf.NewMap(spec.Maps[name]); err != nil {
			delete(g.maps, name)
			return nil, fmt.Errorf("make map %s: %w", name, err)
		}
	}
	if err := g.mapAll(); err != nil {
		return nil, err
	}
	st := g.state
	st.V4, st.V6 = newSeeds(), newSeeds()
	if given[shieldMapExactV4] != nil {
		st.V4 = seeds.V4
	}
	if given[shieldMapExactV6] != nil {
		st.V6 = seeds.V6
	}
	st.LinesV4, st.LinesV6 = g.maps[shieldMapExactV4].MaxEntries(), g.maps[shieldMapExactV6].MaxEntries()
	g.v4.seeds, g.v6.seeds = st.V4, st.V6
	return g, nil
}

// openGeneration opens the pins of a generation.
func (s *Shield) openGeneration(n int) (_ *generation, err error) {
	spec, err := s.spec()
	if err != nil {
		return nil, err
	}
	g := &generation{n: n, maps: map[string]*ebpf.Map{}}
	defer func() {
		if err != nil {
			g.close(nil)
		}
	}()
	for _, name := range mapNames {
		path := filepath.Join(s.opts.Pins, genName(n), pinName(name))
		m, err := openPassing(path, name, spec.Maps[name])
		if err == nil && m == nil {
			m, err = openMap(path, name, spec.Maps[name])
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil, hint(fmt.Errorf("open pinned map %s: it is missing", path), mendPins)
		}
		if err != nil {
			return nil, err
		}
		g.maps[name] = m
		if m.Type() == ebpf.LPMTrie && isPinned(name) && m.MaxEntries() != spec.Maps[name].MaxEntries {
			s.log.Warn("a pinned table has another size than configured; it is kept, with its blocks",
				"pin", path, "size", m.MaxEntries(), "configured", spec.Maps[name].MaxEntries, "hint", "to resize it: "+mendPins)
		}
	}
	if err := g.mapAll(); err != nil {
		return nil, err
	}
	for _, c := range []struct {
		table        *exactTable
		seeds        shieldSeeds
		lines        uint32
		exact, bloom string
	}{
		{g.v4, g.state.V4, g.state.LinesV4, shieldMapExactV4, shieldMapBloomV4},
		{g.v6, g.state.V6, g.state.LinesV6, shieldMapExactV6, shieldMapBloomV6},
	} {
		if e, b := g.maps[c.exact].MaxEntries(), g.maps[c.bloom].MaxEntries(); e != c.lines || b != c.lines {
			return nil, hint(fmt.Errorf("open pinned map %s: it has %d lines and its filter %d words, and should have %d",
				filepath.Join(s.opts.Pins, genName(n), pinName(c.exact)), e, b, c.lines), mendPins)
		}
		c.table.seeds = c.seeds
		if mended := c.table.scan(); mended > 0 {
			s.log.Info("mended what a kill had left", "table", c.exact, "entries", mended)
		}
	}
	return g, nil
}

// openMap opens a pinned map and checks that it is what we make. The error for a missing pin is fs.ErrNotExist.
func openMap(path, name string, want *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("open pinned map %s: %w", path, err)
	}
	if err != nil {
		return nil, hint(fmt.Errorf("open pinned map %s: this is no map: %w", path, err), mendPins)
	}
	if diff := mapDifference(m, name, want); diff != "" {
		m.Close()
		return nil, hint(fmt.Errorf("open pinned map %s: made by another version or program: %s", path, diff), mendPins)
	}
	return m, nil
}

// mapDifference says how a pinned map differs from ours, "" if it can be used. The size of the tables may differ.
func mapDifference(m *ebpf.Map, name string, want *ebpf.MapSpec) string {
	sized := slices.Contains([]string{shieldMapExactV4, shieldMapExactV6, shieldMapBloomV4, shieldMapBloomV6}, name)
	switch {
	case m.Type() != want.Type:
		return fmt.Sprintf("its type is %s, not %s", m.Type(), want.Type)
	case m.KeySize() != want.KeySize:
		return fmt.Sprintf("its keys have %d bytes, not %d", m.KeySize(), want.KeySize)
	case m.ValueSize() != want.ValueSize:
		return fmt.Sprintf("its values have %d bytes, not %d", m.ValueSize(), want.ValueSize)
	case m.Flags() != want.Flags:
		return fmt.Sprintf("its flags are %#x, not %#x", m.Flags(), want.Flags)
	case (m.Type() == ebpf.Array || m.Type() == ebpf.PerCPUArray) && !sized && m.MaxEntries() != want.MaxEntries:
		return fmt.Sprintf("it has %d entries, not %d", m.MaxEntries(), want.MaxEntries)
	}
	return ""
}

// pinGeneration pins a complete generation: aside first, then by its name, in one step.
func (s *Shield) pinGeneration(g *generation, xdp, tc *ebpf.Program) error {
	dir := filepath.Join(s.opts.Pins, genName(g.n))
	tmp := filepath.Join(s.opts.Pins, newPrefix+genName(g.n))
	if err := errors.Join(removeGeneration(tmp), removeGeneration(dir)); err != nil {
		return err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return fmt.Errorf("pin generation: %w", err)
	}
	step()
	err := func() error {
		for name, m := range g.maps {
			if !isPinned(name) {
				continue
			}
			if err := pinMap(m, filepath.Join(tmp, pinName(name))); err != nil {
				return err
			}
			step()
		}
		if err := replacePin(xdp, filepath.Join(tmp, pinXDP)); err != nil {
			return err
		}
		step()
		if tc != nil {
			if err := replacePin(tc, filepath.Join(tmp, pinTC)); err != nil {
				return err
			}
		}
		step()
		if err := os.Rename(tmp, dir); err != nil {
			return fmt.Errorf("pin generation: %w", err)
		}
		step()
		return nil
	}()
	if err != nil {
		_ = removeGeneration(tmp)
	}
	return err
}

// pinMap pins a map that may be pinned elsewhere too: a clone has no memory of that.
func pinMap(m *ebpf.Map, path string) error {
	clone, err := m.Clone()
	if err != nil {
		return fmt.Errorf("pin map %s: %w", path, err)
	}
	defer clone.Close()
	if err := clone.Pin(path); err != nil {
		return fmt.Errorf("pin map %s: %w", path, err)
	}
	return nil
}

// linksByState returns, for the id of each state map, how many pinned links run on it. Every generation has a state map
// of its own, and so had every version before there were generations.
func linksByState(pins string) (map[ebpf.MapID]int, error) {
	n := map[ebpf.MapID]int{}
	err := eachLink(pins, func(l *pinnedLink, _ string) error {
		ids, err := l.mapIDs(pins)
		for _, id := range ids {
			n[id]++
		}
		return err
	})
	return n, err
}

// eachLink calls f with every pinned link of ours, those too that wait to replace another one.
func eachLink(pins string, f func(l *pinnedLink, pin string) error) error {
	entries, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read pin directory: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(strings.TrimPrefix(e.Name(), newPrefix), linkPrefix) {
			continue
		}
		l, err := openLink(filepath.Join(pins, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // gone since
		}
		if err == nil {
			err = f(l, e.Name())
			l.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mapIDs are the maps of the program that the link runs; none if that cannot be known.
func (l *pinnedLink) mapIDs(pins string) ([]ebpf.MapID, error) {
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("read pinned link: %w", err)
	}
	prog, err := ebpf.NewProgramFromID(info.Program)
	if errors.Is(err, unix.EPERM) {
		// That takes CAP_SYS_ADMIN, which the agent does not have. It is a program of ours, so look for it among the pins.
		// A program that a crash left in a link without its pin is not found: the link gets a new one then.
		return pinnedMapIDs(pins, info.Program), nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the program of a link: %w", err)
	}
	defer prog.Close()
	pi, err := prog.Info()
	if err != nil {
		return nil, fmt.Errorf("read the program of a link: %w", err)
	}
	ids, _ := pi.MapIDs()
	return ids, nil
}

// pinnedMapIDs are the maps of the program with this id, if it is pinned in the folder or in a generation.
func pinnedMapIDs(pins string, id ebpf.ProgramID) []ebpf.MapID {
	var found []ebpf.MapID
	_ = filepath.WalkDir(pins, func(path string, e fs.DirEntry, err error) error {
		// What cannot be opened is none of our programs, or gone since.
		if err != nil || e.IsDir() || !strings.HasPrefix(strings.TrimPrefix(e.Name(), newPrefix), "prog-") {
			return nil
		}
		prog, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			return nil
		}
		defer prog.Close()
		info, err := prog.Info()
		if err != nil {
			return nil
		}
		if got, ok := info.ID(); ok && got == id {
			found, _ = info.MapIDs()
			return fs.SkipAll
		}
		return nil
	})
	return found
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("read map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// moveLinks gives all links that do not run on a generation its program. What fails is left as it was, and reported.
func moveLinks(pins string, g *generation, xdp *ebpf.Program, tc func() (*ebpf.Program, error), log *slog.Logger) error {
	id, err := mapID(g.maps[shieldMapState])
	if err != nil {
		return err
	}
	return eachLink(pins, func(l *pinnedLink, pin string) error {
		ids, err := l.mapIDs(pins)
		if err != nil || slices.Contains(ids, id) {
			return err
		}
		info, err := l.Info()
		if err != nil {
			return fmt.Errorf("read pinned link: %w", err)
		}
		prog := xdp
		if info.TCX() != nil {
			if prog, err = tc(); err != nil {
				return err
			}
		}
		err = l.Update(prog)
		if errors.Is(err, unix.ENOLINK) {
			log.Debug("a link hangs nowhere any more", "pin", pin)
			return nil
		}
		if err != nil {
			return fmt.Errorf("give %s the program of the new generation: %w", pin, err)
		}
		step()
		return nil
	})
}

// grow replaces an exact table by a new generation of it: larger if it is as full as it may be, as large with other
// seeds if an insert found no room before. The other one stays.
func (s *Shield) grow(v4 bool) error { return s.growTo(v4, 0) }

// growTo is grow, in one step, to room for so many entries, if it is known that they will come.
func (s *Shield) growTo(v4 bool, entries int) error {
	return s.rebuild(v4, func(t *exactTable) int { return s.growth(t, entries) })
}

// rebuild replaces an exact table by a generation of the capacity that is asked for under the lock; 0: not at all.
func (s *Shield) rebuild(v4 bool, next func(t *exactTable) int) error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	capacity := next(s.gen.exact(v4))
	if capacity == 0 {
		return nil
	}
	return s.rebuildLocked(v4, capacity)
}

func (g *generation) exact(v4 bool) *exactTable {
	if v4 {
		return g.v4
	}
	return g.v6
}

// trimAfter is how long a table must have been mostly empty before it is made smaller: a list that is read anew, or an
// agent that starts with nothing in its store, fills it again before.
const trimAfter = 10 * time.Minute

// trim makes tables smaller that a wave of blocks has left behind: less memory, and the filter is in fewer cache lines.
// A table is mostly empty if an eighth of its room would do with half of that to spare, so what was trimmed can double
// before it grows, and must shrink to a quarter before it is trimmed again.
func (s *Shield) trim(now time.Time) {
	for i, v4 := range []bool{true, false} {
		smaller := 0
		s.mu.Lock()
		if !s.closed {
			if smaller = s.trimmed(s.gen.exact(v4)); smaller == 0 {
				s.roomySince[i] = time.Time{}
			} else if s.roomySince[i].IsZero() {
				s.roomySince[i] = now
			}
		}
		ripe := smaller > 0 && now.Sub(s.roomySince[i]) >= trimAfter
		s.mu.Unlock()
		if !ripe {
			continue
		}
		was := 0
		err := s.rebuild(v4, func(t *exactTable) int {
			was, smaller = t.capacity(), s.trimmed(t)
			s.roomySince[i] = time.Time{} // and if it fails, again after as long
			return smaller
		})
		switch {
		case errors.Is(err, os.ErrClosed):
		case err != nil:
			s.log.Warn("a table that is mostly empty could not be made smaller", "err", err)
		case smaller > 0:
			s.log.Info("a table that was mostly empty was made smaller", "entries", was, "now", smaller)
		}
	}
}

// trimmed is the capacity that a mostly empty table should have, 0 if it is not mostly empty.
func (s *Shield) trimmed(t *exactTable) int {
	c := max(2*t.used, min(firstCapacity, s.opts.MaxExact))
	if 4*c > t.capacity() {
		return 0
	}
	return c
}

// growth is the capacity a table should have next, if so many entries are known to come.
func (s *Shield) growth(t *exactTable, entries int) int {
	c := t.capacity()
	if max(t.used+1, entries) <= c {
		return c
	}
	return max(c, min(max(nextCapacity(c), entries), s.opts.MaxExact))
}

// nextCapacity is the step by which a table grows. A small one costs little, so it takes large steps: fewer programs to
// load, and less to copy. A large one must not be mostly empty: 10 million IPv4 entries are to fit into 200 MB.
func nextCapacity(c int) int {
	switch {
	case c < 1<<19:
		return 4 * c
	case c < 1<<22:
		return 2 * c
	}
	return c + c/4
}

// rebuildLocked replaces an exact table by one of another capacity, or other seeds.
func (s *Shield) rebuildLocked(v4 bool, capacity int) (err error) {
	old := s.gen
	given := map[string]*ebpf.Map{}
	for _, name := range mapNames {
		given[name] = old.maps[name]
	}
	delete(given, shieldMapState)
	c4, c6 := old.v4.capacity(), old.v6.capacity()
	if v4 {
		delete(given, shieldMapExactV4)
		delete(given, shieldMapBloomV4)
		c4 = capacity
	} else {
		delete(given, shieldMapExactV6)
		delete(given, shieldMapBloomV6)
		c6 = capacity
	}
	g, err := s.makeGeneration(old.n+1, c4, c6, given, old.state)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			g.close(old)
		}
	}()
	st := g.state
	st.CidrsV4, st.CidrsV6, st.Clock, st.Skew = old.state.CidrsV4, old.state.CidrsV6, old.state.Clock, old.state.Skew
	from, to, same := old.v4, g.v4, g.v6
	if !v4 {
		from, to, same = old.v6, g.v6, g.v4
	}
	if v4 {
		same.used, same.stale = old.v6.used, old.v6.stale
	} else {
		same.used, same.stale = old.v4.used, old.v4.stale
	}
	if err := to.fill(from); err != nil {
		return err
	}
	if err := s.swapLocked(g); err != nil {
		return err
	}
	// Drops go into the new table only now that nothing is added to the old one any more.
	from.each(func(line, slot int, key uint64, _ uint32) {
		if n := atomic.LoadUint32(from.drops(line, slot)); n > 0 {
			if at, i, ok := to.find(key); ok {
				atomic.AddUint32(to.drops(at, i), n)
			}
		}
	})
	old.close(g)
	return nil
}

// fill puts in everything that is in another table, without its drops.
func (t *exactTable) fill(from *exactTable) error {
	failed := 0
	from.each(func(_, _ int, key uint64, word uint32) {
		if !t.add(key, word, 0) {
			failed++
		}
	})
	if failed > 0 {
		return fmt.Errorf("fill the new tables: %d of %d entries found no room", failed, from.used)
	}
	return nil
}

// swapLocked makes a filled generation the one that counts: programs, pins, links; then the old pins go.
func (s *Shield) swapLocked(g *generation) (err error) {
	xdp, err := s.load(shieldProgMxshieldXdp, g)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			xdp.Close()
		}
	}()
	s.tcx.Lock()
	defer s.tcx.Unlock()
	var tc *ebpf.Program
	if s.tcx.prog != nil {
		if tc, err = s.load(shieldProgMxshieldTc, g); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				tc.Close()
			}
		}()
	}
	// Purged pins come back with Attach, not here.
	dir := filepath.Join(s.opts.Pins, genName(g.n))
	if _, statErr := os.Lstat(s.pin(pinName(shieldMapState))); statErr == nil {
		if err := s.pinGeneration(g, xdp, tc); err != nil {
			return err
		}
	}
	loadTC := func() (*ebpf.Program, error) {
		if tc == nil {
			return nil, errors.New("the tcx program is not loaded")
		}
		return tc, nil
	}
	if err := moveLinks(s.opts.Pins, g, xdp, loadTC, s.log); err != nil {
		back := moveLinks(s.opts.Pins, s.gen, s.xdp, func() (*ebpf.Program, error) { return s.tcx.prog, nil }, s.log)
		if back == nil {
			back = removeGeneration(dir)
		}
		return errors.Join(err, back)
	}
	if err := removeGeneration(s.pin("")); err != nil {
		s.log.Warn("the pins of the old generation are left; the next start removes them", "err", err)
	}
	// Once more: `mxshieldctl on` may have hung up the old program meanwhile.
	if err := moveLinks(s.opts.Pins, g, xdp, loadTC, s.log); err != nil {
		s.log.Warn("a link was left behind", "err", err)
	}
	s.xdp.Close()
	s.xdp = xdp
	if s.tcx.prog != nil {
		s.tcx.prog.Close()
		s.tcx.prog = tc
	}
	s.gen = g
	return nil
}
