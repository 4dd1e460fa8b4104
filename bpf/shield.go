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
	MaxExact        int            // entries of each exact table, IPv4 and IPv6; 1 << 20
	MaxCIDRs        int            // entries of each CIDR table; 1 << 18
	Log             *slog.Logger
}

// Shield is the loaded kernel side. See the package comment for concurrency.
type Shield struct {
	opts Options
	log  *slog.Logger
	dir  *os.File             // the pin directory, locked
	maps map[string]*ebpf.Map // by name in the object
	xdp  *ebpf.Program
	tcx  struct { // loaded when first needed
		sync.Mutex
		prog *ebpf.Program
	}
	attachMu  sync.Mutex     // one Attach or Detach at a time; guards the two maps
	settled   map[int]uint32 // index of an interface -> the link this Shield made or found there
	notNative map[int]bool   // indexes of devices under VLAN devices that have no native XDP

	mu      sync.Mutex // below: the writer's bookkeeping of the tables
	cidrs   map[netip.Prefix]struct{}
	cidrsV4 int                  // how many of cidrs are IPv4
	longer  map[netip.Prefix]int // /64 -> how many of cidrs are longer and inside
	moves   uint32               // moves from the trie to the hash, told to the programs
	clock   int64                // wall minus boot time, ns, that the entries are written with
}

// mapNames are the maps of the object that are pinned, all but .rodata.
var mapNames = []string{
	shieldMapExactV4, shieldMapExactV6, shieldMapCidrV4, shieldMapCidrV6, shieldMapState, shieldMapCounters,
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
		opts.MaxExact = 1 << 20
	}
	if opts.MaxCIDRs == 0 {
		opts.MaxCIDRs = 1 << 18
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
		opts:   opts,
		log:    opts.Log,
		maps:   map[string]*ebpf.Map{},
		cidrs:  map[netip.Prefix]struct{}{},
		longer: map[netip.Prefix]int{},

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
	if err := s.openMaps(); err != nil {
		return nil, notPermitted(err)
	}
	if err := s.recoverTables(); err != nil {
		return nil, fmt.Errorf("recover tables: %w", err)
	}
	if s.xdp, err = s.load(shieldProgMxshieldXdp); err != nil {
		return nil, notPermitted(err)
	}
	if err := replacePin(s.xdp, s.pin(pinXDP)); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(s.pin(pinTC)); err == nil {
		// It was needed once: do not leave one with old ports for Off and On.
		if _, err := s.tc(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Close lets go of the kernel side. Pins stay, so nothing stops dropping.
func (s *Shield) Close() {
	for _, m := range s.maps {
		m.Close()
	}
	if s.xdp != nil {
		s.xdp.Close()
	}
	s.tcx.Lock()
	if s.tcx.prog != nil {
		s.tcx.prog.Close()
	}
	s.tcx.Unlock()
	if s.dir != nil {
		s.dir.Close()
	}
}

func (s *Shield) pin(name string) string { return filepath.Join(s.opts.Pins, name) }

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
			s.log.Info("removing a leftover pin", "pin", s.pin(name))
			if err := os.Remove(s.pin(name)); err != nil {
				return fmt.Errorf("remove leftover pin: %w", err)
			}
		case name == "maps.debug" || name == "progs.debug":
			// The kernel's own, at the root of every bpf file system.
		case !isOurs(name):
			s.log.Warn("there is an object in the pin directory that is not mxshield's; it is left alone", "pin", s.pin(name))
		}
	}
	return nil
}

// isOurs says whether mxshield gives pins this name.
func isOurs(name string) bool {
	if name == pinXDP || name == pinTC || strings.HasPrefix(name, linkPrefix) || strings.HasPrefix(name, newPrefix) {
		return true
	}
	return slices.ContainsFunc(mapNames, func(m string) bool { return pinName(m) == name })
}

// openMaps takes the pinned maps, and makes those that are not there.
func (s *Shield) openMaps() error {
	spec, err := s.spec()
	if err != nil {
		return err
	}
	for _, name := range mapNames {
		want, path := spec.Maps[name], s.pin(pinName(name))
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			if m, err = ebpf.NewMap(want); err != nil {
				return fmt.Errorf("make map %s: %w", name, err)
			}
			s.maps[name] = m
			if err := m.Pin(path); err != nil {
				return fmt.Errorf("pin map %s: %w", name, err)
			}
			continue
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return fmt.Errorf("open pinned map %s: %w", path, err)
		}
		if err != nil {
			return hint(fmt.Errorf("open pinned map %s: this is no map: %w", path, err), mendPins)
		}
		s.maps[name] = m
		if diff := mapDifference(m, want); diff != "" {
			return hint(fmt.Errorf("open pinned map %s: made by another version or program: %s", path, diff), mendPins)
		}
		if m.MaxEntries() != want.MaxEntries {
			s.log.Warn("a pinned table has another size than configured; it is kept, with its blocks",
				"pin", path, "size", m.MaxEntries(), "configured", want.MaxEntries, "hint", "to resize it: "+mendPins)
		}
	}
	return nil
}

// mapDifference says how a pinned map differs from ours, "" if it can be used. The size of the tables may differ.
func mapDifference(m *ebpf.Map, want *ebpf.MapSpec) string {
	switch {
	case m.Type() != want.Type:
		return fmt.Sprintf("its type is %s, not %s", m.Type(), want.Type)
	case m.KeySize() != want.KeySize:
		return fmt.Sprintf("its keys have %d bytes, not %d", m.KeySize(), want.KeySize)
	case m.ValueSize() != want.ValueSize:
		return fmt.Sprintf("its values have %d bytes, not %d", m.ValueSize(), want.ValueSize)
	case m.Flags() != want.Flags:
		return fmt.Sprintf("its flags are %#x, not %#x", m.Flags(), want.Flags)
	case (m.Type() == ebpf.Array || m.Type() == ebpf.PerCPUArray) && m.MaxEntries() != want.MaxEntries:
		return fmt.Sprintf("it has %d entries, not %d", m.MaxEntries(), want.MaxEntries)
	}
	return ""
}

// spec is the object with the options put in.
func (s *Shield) spec() (*ebpf.CollectionSpec, error) {
	spec, err := loadShield()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{shieldMapExactV4, shieldMapExactV6} {
		spec.Maps[name].MaxEntries = uint32(s.opts.MaxExact)
	}
	for _, name := range []string{shieldMapCidrV4, shieldMapCidrV6} {
		spec.Maps[name].MaxEntries = uint32(s.opts.MaxCIDRs) + 1 // see putCIDRLocked
	}
	ports, err := portTable(s.opts)
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[shieldVarPorts].Set(ports); err != nil {
		return nil, fmt.Errorf("set ports: %w", err)
	}
	if err := setExempt(spec, s.opts.Exempt); err != nil {
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

// load loads one of the two programs onto the open maps.
func (s *Shield) load(name string) (*ebpf.Program, error) {
	spec, err := s.spec()
	if err != nil {
		return nil, err
	}
	for other := range spec.Programs {
		if other != name {
			delete(spec.Programs, other)
		}
	}
	for name, m := range s.maps {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	opts := ebpf.CollectionOptions{MapReplacements: s.maps}
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
	prog, err := s.load(shieldProgMxshieldTc)
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
	for name, m := range s.maps {
		path := s.pin(pinName(name))
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		// A clone has no memory of having been pinned.
		clone, err := m.Clone()
		if err == nil {
			err = clone.Pin(path)
			clone.Close()
		}
		if err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
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
