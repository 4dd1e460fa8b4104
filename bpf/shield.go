package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

const (
	// DefaultPins is where the pins are unless Options say otherwise.
	DefaultPins = "/sys/fs/bpf/mxshield"

	maxPorts     = 16
	newPrefix    = "new-"
	linkPrefix   = "link-"
	pinXDP       = "prog-xdp"
	pinTC        = "prog-tc"
	flagXDPFrags = 1 << 5 // BPF_F_XDP_HAS_FRAGS

	mendPins = "`mxshieldctl off --purge && mxshieldctl on` (blocks come back from the agent's state file)"
)

// Options of Open. The zero value of a field means its default.
type Options struct {
	Pins            string         // directory on a bpf file system; DefaultPins
	Interfaces      []string       // names, globs, "auto"; {"auto"}
	Attach          Mode           // Auto
	MXPorts         []uint16       // {25}
	SubmissionPorts []uint16       // {465, 587}; together at most 16
	Exempt          []netip.Prefix // local addresses whose ports are not protected; see [CheckExempt]
	MaxExact        int            // entries of each exact table, IPv4 and IPv6, that it may grow to; 1 << 24
	MaxCIDRs        int            // entries of each CIDR table; 1 << 18
	SYNPerSource    int            // new connections a second from one source, five seconds' worth at once; 0: no limit
	SYNTotal        int            // the same from all together, one second's worth at once; see [CheckLimits]
	Hold            bool           // hold first SYNs as long as [Shield.HoldAlive] says so
	HoldBudget      int            // first SYNs a second that are held, what is more passes; 200
	Log             *slog.Logger
}

// Shield is the loaded kernel side. See the package comment for concurrency.
type Shield struct {
	opts    Options
	log     *slog.Logger
	dir     *os.File // the pin directory, locked
	object  *ebpf.CollectionSpec
	jiffies *jiffyClock
	// attachMu: one Attach, Detach or change of generation at a time. Taken before mu, and needed together with it to
	// change gen, xdp and tcx.
	attachMu sync.Mutex
	xdp      *ebpf.Program
	tcx      struct { // loaded when first needed
		sync.Mutex
		prog *ebpf.Program
	}
	// Guarded by attachMu:
	settled   map[int]uint32 // index of an interface -> the link this Shield made or found there
	notNative map[int]bool   // indexes of devices under VLAN devices that have no native XDP

	mu         sync.Mutex // below: the writer's tables and bookkeeping
	closed     bool
	gen        *generation
	cidrs      map[netip.Prefix]struct{}
	cidrsV4    int                     // how many of cidrs are IPv4
	longer     map[netip.Prefix]int    // /64 -> how many of cidrs are longer and inside
	farCIDRs   int                     // CIDRs deleted since cidr_near was made
	carried    map[netip.Prefix]uint64 // drops of exact entries beyond what their counters have
	collected  time.Time               // when carried was last seen to
	roomySince [2]time.Time            // since when a look has found exact_v4, exact_v6 mostly empty; zero: not
	clock      int64                   // wall minus jiffies, ns, that the entries are written with
	allowed    map[netip.Prefix]struct{}
}

// mapNames are the maps of the object, all but .rodata. They are pinned, but for those of passing.
var mapNames = []string{
	shieldMapExactV4, shieldMapExactV6, shieldMapBloomV4, shieldMapBloomV6, shieldMapCidrV4, shieldMapCidrV6,
	shieldMapCidrNear, shieldMapState, shieldMapCounters,
	shieldMapAdmission, shieldMapAllowed, shieldMapBuckets, shieldMapSeen, shieldMapFirsts, shieldMapSamples, shieldMapSamplesLost,
}

func pinName(mapName string) string { return strings.ReplaceAll(mapName, "_", "-") }

// Open loads the programs and takes over the pinned maps, or makes and pins new ones. It attaches nothing. Entries of
// an earlier process are there, and go on dropping as far as links are.
func Open(opts Options) (_ *Shield, err error) {
	if opts.Pins == "" {
		opts.Pins = DefaultPins
	}
	if len(opts.Interfaces) == 0 {
		opts.Interfaces = []string{"auto"}
	}
	if opts.Attach == "" {
		opts.Attach = Auto
	}
	if !slices.Contains(Modes, opts.Attach) {
		return nil, hint(fmt.Errorf("open shield: unknown attach mode %q", opts.Attach), "use auto, native, generic or tcx")
	}
	if opts.MXPorts == nil {
		opts.MXPorts = []uint16{25}
	}
	if opts.SubmissionPorts == nil {
		opts.SubmissionPorts = []uint16{465, 587}
	}
	if opts.MaxExact == 0 {
		opts.MaxExact = 1 << 24
	}
	if opts.MaxCIDRs == 0 {
		opts.MaxCIDRs = 1 << 18
	}
	if opts.HoldBudget == 0 {
		opts.HoldBudget = defaultHoldBudget
	}
	if opts.MaxExact < 0 || opts.MaxCIDRs < 0 {
		return nil, errors.New("open shield: a table cannot have a negative size")
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	if _, err := portTable(opts); err != nil {
		return nil, fmt.Errorf("open shield: %w", err)
	}
	if err := CheckExempt(opts.Exempt); err != nil {
		return nil, fmt.Errorf("open shield: %w", err)
	}
	if err := checkAdmission(opts); err != nil {
		return nil, fmt.Errorf("open shield: %w", err)
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	if err := checkBPFFS(opts.Pins); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		// Needs CAP_SYS_RESOURCE, and matters before 5.11 only: later kernels charge the cgroup.
		opts.Log.Debug("cannot raise the memlock limit, going on", "err", err)
	}

	s := &Shield{
		opts:      opts,
		log:       opts.Log,
		cidrs:     map[netip.Prefix]struct{}{},
		longer:    map[netip.Prefix]int{},
		carried:   map[netip.Prefix]uint64{},
		allowed:   map[netip.Prefix]struct{}{},
		collected: time.Now(),

		settled: map[int]uint32{}, notNative: map[int]bool{},
	}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := s.lockPins(); err != nil {
		return nil, err
	}
	if s.object, err = loadShield(); err != nil {
		return nil, err
	}
	if s.jiffies, err = openClock(s.object.Programs[shieldProgMxshieldClock]); err != nil {
		return nil, notPermitted(err)
	}
	if err := s.openTables(); err != nil {
		return nil, notPermitted(err)
	}
	return s, nil
}

// openTables finds, or makes, the generation to go on with, and gives links of any other one its program.
func (s *Shield) openTables() error {
	from, err := s.choose()
	if err != nil {
		return err
	}
	var old *firstVersion
	switch {
	case from.firstVersion:
		if old, err = s.openFirstVersion(); err != nil {
			return err
		}
		defer old.close()
		if s.gen, err = s.takeOver(old, from.next); err != nil {
			return fmt.Errorf("take over the tables of an older version: %w", err)
		}
	case from.n > 0:
		if s.gen, err = s.openGeneration(from.n); err != nil {
			return err
		}
	default:
		c := min(firstCapacity, s.opts.MaxExact)
		if s.gen, err = s.makeGeneration(from.next, c, c, nil, nil); err != nil {
			return err
		}
	}
	if err := s.recoverTables(); err != nil {
		return fmt.Errorf("recover tables: %w", err)
	}
	s.tellBudgetLocked() // nobody else has s yet
	if s.xdp, err = s.load(shieldProgMxshieldXdp, s.gen); err != nil {
		return err
	}
	// It was needed once: do not leave one with old ports or tables for Off and On.
	for _, path := range []string{s.pin(pinTC), filepath.Join(s.opts.Pins, pinTC)} {
		if _, err := os.Lstat(path); err != nil || s.tcx.prog != nil {
			continue
		}
		if s.tcx.prog, err = s.load(shieldProgMxshieldTc, s.gen); err != nil {
			return tcxError(err)
		}
	}
	if from.n > 0 {
		err = replaceMapPin(s.gen.maps[shieldMapSeen], s.pin(pinName(shieldMapSeen)))
		err = errors.Join(err, replacePin(s.xdp, s.pin(pinXDP)))
		if err == nil && s.tcx.prog != nil {
			err = replacePin(s.tcx.prog, s.pin(pinTC))
		}
	} else {
		err = s.pinGeneration(s.gen, s.xdp, s.tcx.prog)
	}
	if err != nil {
		return err
	}
	if err := moveLinks(s.opts.Pins, s.gen, s.xdp, s.tc, s.log); err != nil {
		return err
	}
	return s.removeOthers()
}

// origin is what Open goes on from: the tables of the first version, generation n, or nothing.
type origin struct {
	firstVersion bool
	n            int
	next         int // the number of a new generation
}

// choose looks what the links run on. See generation.go.
func (s *Shield) choose() (o origin, err error) {
	all, err := generations(s.opts.Pins)
	if err != nil {
		return o, err
	}
	o.next = 1
	if len(all) > 0 {
		o.n = all[len(all)-1]
		o.next = o.n + 1
	}
	hasFirst := hasFirstVersion(s.opts.Pins)
	if !hasFirst && len(all) < 2 {
		return o, nil
	}
	links, err := linksByState(s.opts.Pins)
	if err != nil {
		return o, err
	}
	for _, n := range slices.Backward(all) {
		if links[stateID(filepath.Join(s.opts.Pins, genName(n)))] > 0 {
			o.n = n
			return o, nil
		}
	}
	if hasFirst && (o.n == 0 || links[stateID(s.opts.Pins)] > 0) {
		return origin{firstVersion: true, next: o.next}, nil
	}
	return o, nil
}

// stateID returns the id of the state map pinned in dir, 0 if there is none: no map has the id 0.
func stateID(dir string) ebpf.MapID {
	m, err := ebpf.LoadPinnedMap(filepath.Join(dir, pinName(shieldMapState)), nil)
	if err != nil {
		return 0
	}
	defer m.Close()
	id, err := mapID(m)
	if err != nil {
		return 0
	}
	return id
}

// removeOthers removes the pins of all generations but ours, now that no link runs on them.
func (s *Shield) removeOthers() error {
	all, err := generations(s.opts.Pins)
	if err != nil {
		return err
	}
	for _, n := range all {
		if n == s.gen.n {
			continue
		}
		if err := removeGeneration(filepath.Join(s.opts.Pins, genName(n))); err != nil {
			return err
		}
	}
	return removeFirstVersion(s.opts.Pins)
}

// Close lets go of the kernel side. Pins stay, so nothing stops dropping.
func (s *Shield) Close() {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.gen.close(nil)
	if s.xdp != nil {
		s.xdp.Close()
	}
	s.tcx.Lock()
	if s.tcx.prog != nil {
		s.tcx.prog.Close()
	}
	s.tcx.Unlock()
	if s.jiffies != nil {
		s.jiffies.prog.Close()
	}
	if s.dir != nil {
		s.dir.Close()
	}
}

// pin is the path of a pin of the current generation.
func (s *Shield) pin(name string) string { return filepath.Join(s.opts.Pins, genName(s.gen.n), name) }

// lockPins makes the directory and locks it: two writers would undo each other's bookkeeping.
func (s *Shield) lockPins() error {
	if err := os.MkdirAll(s.opts.Pins, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	dir, err := os.Open(s.opts.Pins)
	if err != nil {
		return fmt.Errorf("open pin directory: %w", err)
	}
	s.dir = dir
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return hint(fmt.Errorf("lock %s: another agent uses it", s.opts.Pins),
				"stop the other mxshield-agent, or give this one its own pin directory")
		}
		return fmt.Errorf("lock %s: %w", s.opts.Pins, err)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read pin directory: %w", err)
	}
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, newPrefix+linkPrefix):
			// Attach looks which of the two links lives.
		case strings.HasPrefix(name, newPrefix):
			// A process died while it replaced this; what it was to replace is still in place.
			path := filepath.Join(s.opts.Pins, name)
			s.log.Info("removing a leftover pin", "pin", path)
			if _, ok := genNumber(strings.TrimPrefix(name, newPrefix)); ok {
				err = removeGeneration(path)
			} else {
				err = os.Remove(path)
			}
			if err != nil {
				return fmt.Errorf("remove leftover pin: %w", err)
			}
		case name == "maps.debug" || name == "progs.debug":
			// The kernel's own, at the root of every bpf file system.
		case !isOurs(name):
			s.log.Warn("there is an object in the pin directory that is not mxshield's; it is left alone", "pin", filepath.Join(s.opts.Pins, name))
		}
	}
	return nil
}

// isOurs says whether mxshield gives pins, or directories of pins, this name in the pin directory.
func isOurs(name string) bool {
	_, gen := genNumber(name)
	return gen || strings.HasPrefix(name, linkPrefix) || strings.HasPrefix(name, newPrefix) || isFirstVersionPin(name)
}

// spec is a copy of the object with the options put in.
func (s *Shield) spec() (*ebpf.CollectionSpec, error) {
	spec := s.object.Copy()
	for _, name := range []string{shieldMapCidrV4, shieldMapCidrV6} {
		spec.Maps[name].MaxEntries = uint32(s.opts.MaxCIDRs) + 1 // see putCIDRLocked
	}
	if err := setPorts(spec, s.opts); err != nil {
		return nil, err
	}
	if err := setExempt(spec, s.opts.Exempt); err != nil {
		return nil, err
	}
	if err := spec.Variables[shieldVarClock].Set(s.jiffies.constants()); err != nil {
		return nil, fmt.Errorf("set the clock: %w", err)
	}
	if err := setAdmission(spec, s.opts, s.jiffies.hz); err != nil {
		return nil, err
	}
	return spec, nil
}

// portTable lays out the protected ports for the program.
func portTable(opts Options) (table [maxPorts]shieldPort, err error) {
	if n := len(opts.MXPorts) + len(opts.SubmissionPorts); n > maxPorts {
		return table, fmt.Errorf("%d ports are to be protected, at most %d can be", n, maxPorts)
	} else if n == 0 {
		return table, hint(errors.New("no port is to be protected"), "set ports: {mx: [25]}")
	}
	seen := map[uint16]bool{}
	i := 0
	for _, group := range []struct {
		ports []uint16
		scope uint8
	}{{opts.MXPorts, ScopeMX}, {opts.SubmissionPorts, ScopeSubmission}} {
		for _, port := range group.ports {
			if port == 0 {
				return table, errors.New("port 0 cannot be protected")
			}
			if seen[port] {
				return table, hint(fmt.Errorf("port %d is given twice", port), "a port is either mx or submission")
			}
			seen[port] = true
			table[i] = shieldPort{Port: bits.ReverseBytes16(port), Scope: group.scope}
			i++
		}
	}
	return table, nil
}

// setPorts writes the protected ports into the object.
func setPorts(spec *ebpf.CollectionSpec, opts Options) error {
	ports, err := portTable(opts)
	if err != nil {
		return err
	}
	var bits uint64 // see maybe_protected() in classify.h
	for _, p := range ports {
		if p.Scope != 0 {
			bits |= 1 << (p.Port >> 8 & 63)
		}
	}
	if err := errors.Join(spec.Variables[shieldVarPorts].Set(ports), spec.Variables[shieldVarPortBits].Set(bits)); err != nil {
		return fmt.Errorf("set ports: %w", err)
	}
	return nil
}

// load loads one of the two programs onto the maps of a generation.
func (s *Shield) load(name string, g *generation) (*ebpf.Program, error) {
	spec, err := s.spec()
	if err != nil {
		return nil, err
	}
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	for name, m := range g.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	opts := ebpf.CollectionOptions{MapReplacements: g.maps}
	coll, err := ebpf.NewCollectionWithOptions(spec, opts)
	if prog := spec.Programs[name]; err != nil && prog.Flags&flagXDPFrags != 0 {
		// Before 5.18 there is no such flag, and jumbo frames and XDP exclude each other.
		s.log.Debug("loading without support for jumbo frames", "program", name, "err", err)
		prog.Flags &^= flagXDPFrags
		coll, err = ebpf.NewCollectionWithOptions(spec, opts)
	}
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	defer coll.Close()
	return coll.DetachProgram(name), nil
}

// tc returns the tcx program, loading and pinning it the first time.
func (s *Shield) tc() (*ebpf.Program, error) {
	s.tcx.Lock()
	defer s.tcx.Unlock()
	if s.tcx.prog != nil {
		return s.tcx.prog, nil
	}
	prog, err := s.load(shieldProgMxshieldTc, s.gen)
	if err != nil {
		return nil, tcxError(err)
	}
	if err := replacePin(prog, s.pin(pinTC)); err != nil {
		prog.Close()
		return nil, err
	}
	s.tcx.prog = prog
	return prog, nil
}

// pinAll pins again what is not pinned any more: the pins may have been purged under a living agent.
func (s *Shield) pinAll() error {
	if err := os.MkdirAll(s.opts.Pins, 0o700); err != nil {
		return fmt.Errorf("make pin directory: %w", err)
	}
	if _, err := os.Lstat(s.pin("")); errors.Is(err, fs.ErrNotExist) {
		s.tcx.Lock()
		defer s.tcx.Unlock()
		return s.pinGeneration(s.gen, s.xdp, s.tcx.prog)
	}
	for name, m := range s.gen.maps {
		if !isPinned(name) {
			continue
		}
		path := s.pin(pinName(name))
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := pinMap(m, path); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(s.pin(pinXDP)); errors.Is(err, fs.ErrNotExist) {
		if err := replacePin(s.xdp, s.pin(pinXDP)); err != nil {
			return err
		}
	}
	s.tcx.Lock()
	defer s.tcx.Unlock()
	if _, err := os.Lstat(s.pin(pinTC)); s.tcx.prog != nil && errors.Is(err, fs.ErrNotExist) {
		return replacePin(s.tcx.prog, s.pin(pinTC))
	}
	return nil
}

// replacePin pins a program, in one step if the path is taken: a reader finds the old one or the new one.
func replacePin(prog *ebpf.Program, path string) error {
	dir, name := filepath.Split(path)
	tmp := filepath.Join(dir, newPrefix+name)
	clone, err := prog.Clone()
	if err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	defer clone.Close()
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := clone.Pin(tmp); err != nil {
		return fmt.Errorf("pin %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("pin %s: %w", path, err)
	}
	return nil
}
