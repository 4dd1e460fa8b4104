package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	distribution "github.com/mxshield/mxshield/scripts/lab"
)

// BenchmarkWire is end to end: packets with random sources on a veth, and the CPU time that the thread spends on each
// that receives them, in turns for all filters:
//
//	filter=cacheline      the agent's Shield, attached native
//	filter=hash, lpm      the programs of the first version, and an LPM trie alone
//	filter=xdp_drop       a program that drops everything, filter=xdp_pass one that drops nothing, filter=none none
//	filter=xdp_filter     the distribution's, with its table made large enough
//	filter=nft_ingress    an nftables set at the netdev hook, filter=nft_raw at prerouting, before connection tracking
//	filter=ipset_raw      ipset, asked by iptables in the raw table
//
// case=drop is a blocked source, case=pass an innocent one, whose packet ends at a black hole among the routes, so that it
// is the same for all what comes after. Frames are made by XDP's test run and reach the veth as they would come off the
// ring of a card, so nobody has made an skb for them before the filter (a packet socket would). The receiving end runs in
// a kernel thread (threaded NAPI), whose time is that of nothing else. What the ring has no room for is not counted: the
// generator is faster than all of them. What this machine lacks is left out, and says why.
func BenchmarkWire(b *testing.B) {
	needKernel(b)
	const size = 1_000_000
	var measured map[wireCell]float64
	var missing map[string]error
	for _, f := range wireFilters {
		for _, kind := range f.kinds() {
			b.Run(fmt.Sprintf("filter=%s/size=1M/case=%s", f.name, kind), func(b *testing.B) {
				if measured == nil {
					measured, missing = measureWires(b, size)
				}
				if err := missing[f.name]; err != nil {
					b.Skip("skipped:", err)
				}
				b.ReportMetric(0, "ns/op")
				b.ReportMetric(measured[wireCell{f.name, kind}], "cpu-ns/pkt")
			})
		}
	}
}

type wireCell struct{ filter, kind string }

// wireFilter makes a filter that blocks the first size sources, on hostDev in the namespace that the thread is in.
type wireFilter struct {
	name string
	only string // the one case it can do; both if empty
	make func(b *testing.B, size int) error
}

func (f wireFilter) kinds() []string {
	if f.only != "" {
		return []string{f.only}
	}
	return []string{"drop", "pass"}
}

var wireFilters = []wireFilter{
	{"none", "pass", func(*testing.B, int) error { return nil }},
	{"xdp_pass", "pass", func(b *testing.B, _ int) error { return attachConstant(b, 2) }},
	{"xdp_drop", "drop", func(b *testing.B, _ int) error { return attachConstant(b, 1) }},
	{"cacheline", "", func(b *testing.B, size int) error {
		s := openTest(b, Options{MaxExact: size, Interfaces: []string{hostDev}, Attach: Native, Log: slog.New(slog.DiscardHandler)})
		setSources(b, s, size, sourcePrefix)
		return s.Attach()
	}},
	{"hash", "", func(b *testing.B, size int) error {
		old := newHash(b, size)
		fillHash(b, old["exact_v4"], size, benchSource)
		return attachHash(b, "mxshield_xdp", old)
	}},
	{"lpm", "", func(b *testing.B, size int) error {
		old := newHash(b, size)
		fillTrie(b, old["cidr_v4"], size, 32, 0xffffffff)
		return attachHash(b, "mxshield_lpm", old)
	}},
	{"xdp_filter", "", makeXDPFilter},
	{"nft_ingress", "", func(b *testing.B, size int) error {
		return nftables(b, size, "netdev", `type filter hook ingress device "`+hostDev+`" priority 0`)
	}},
	{"nft_raw", "", func(b *testing.B, size int) error {
		return nftables(b, size, "ip", "type filter hook prerouting priority raw")
	}},
	{"ipset_raw", "", func(b *testing.B, size int) error {
		err := tool(b, func(w io.Writer) {
			fmt.Fprintf(w, "create blocked hash:ip hashsize %d maxelem %d\n", size/2, size)
			for i := 1; i < size; i++ { // the first is 0.0.0.0, which it does not take
				fmt.Fprintf(w, "add blocked %s\n", sourcePrefix(uint32(i)).Addr())
			}
		}, "ipset", "restore")
		if err != nil {
			return err
		}
		return tool(b, nil, "iptables-nft", "-t", "raw", "-A", "PREROUTING", "-p", "tcp", "--dport", "25",
			"-m", "set", "--match-set", "blocked", "src", "-j", "DROP")
	}},
}

func attachXDP(b *testing.B, prog *ebpf.Program) error {
	l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: byName(b, hostDev).Attrs().Index, Flags: link.XDPDriverMode})
	if err == nil {
		b.Cleanup(func() { l.Close() })
	}
	return err
}

func attachConstant(b *testing.B, verdict int32) error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}})
	if err != nil {
		return err
	}
	b.Cleanup(func() { prog.Close() })
	return attachXDP(b, prog)
}

func attachHash(b *testing.B, program string, tables filledHash) error {
	spec, err := loadHash()
	if err != nil {
		return err
	}
	for name := range spec.Programs {
		if name != program {
			delete(spec.Programs, name)
		}
	}
	for name, m := range tables {
		spec.Maps[name].MaxEntries = m.MaxEntries()
	}
	if err := setPorts(spec, Options{MXPorts: []uint16{25}, SubmissionPorts: []uint16{465, 587}}); err != nil {
		return err
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: tables})
	if err != nil {
		return err
	}
	b.Cleanup(coll.Close)
	return attachXDP(b, coll.Programs[program])
}

func makeXDPFilter(b *testing.B, size int) error {
	root, err := distribution.Root(b.Context(), distribution.CacheDir(), distribution.KindFilters, nil)
	if err != nil {
		return err
	}
	// The one for addresses, where all pass that are not in the table. xdp-filter itself would put it behind libxdp's
	// dispatcher, which costs a little more, and make its table for 10,000.
	objects, err := filepath.Glob(filepath.Join(root, "usr/lib/*/bpf/xdpfilt_alw_ip.o"))
	if err != nil || len(objects) != 1 {
		return errors.Join(errors.New("there is no xdpfilt_alw_ip.o"), err)
	}
	spec, err := ebpf.LoadCollectionSpec(objects[0])
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	spec.Maps["filter_ipv4"].MaxEntries = uint32(size) + 1
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return err
	}
	b.Cleanup(coll.Close)
	const flagSource = 1 // MAP_FLAG_SRC
	cpus := make([]uint64, ebpf.MustPossibleCPU())
	for i := range cpus {
		cpus[i] = flagSource
	}
	for i := range size {
		if err := coll.Maps["filter_ipv4"].Put(benchSource(uint32(i)), cpus); err != nil {
			return err
		}
	}
	for _, prog := range coll.Programs {
		return attachXDP(b, prog)
	}
	return errors.New("there is no program in xdpfilt_alw_ip.o")
}

func nftables(b *testing.B, size int, family, hook string) error {
	return tool(b, func(w io.Writer) {
		fmt.Fprintf(w, "table %s shield {\n set blocked { type ipv4_addr; }\n"+
			" chain in { %s; policy accept; tcp dport 25 ip saddr @blocked counter drop; }\n}\n", family, hook)
		for i := 0; i < size; i += 1000 {
			fmt.Fprintf(w, "add element %s shield blocked {", family)
			for j := i; j < min(i+1000, size); j++ {
				fmt.Fprintf(w, "%s,", sourcePrefix(uint32(j)).Addr())
			}
			fmt.Fprintln(w, "}")
		}
	}, "nft", "-f", "-")
}

// tool runs one of the distribution's tools, out of its private root, in the namespace of this thread.
func tool(b *testing.B, input func(w io.Writer), name string, args ...string) error {
	root, err := distribution.Root(b.Context(), distribution.CacheDir(), distribution.KindFilters, nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root, "/usr/sbin/" + name}, args...)...)
	if input != nil {
		r, w := io.Pipe()
		go func() {
			input(w)
			w.Close()
		}()
		defer r.Close()
		cmd.Stdin = r
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %.300s", name, err, out)
	}
	return nil
}

// lane is a wire with one filter.
type lane struct {
	*wire
	napi   int // the thread that receives
	floods map[string]*ebpf.Program
	frame  []byte
}

// measureWires measures all filters in turns: CPU ns of the receiver per packet. What could not be made is in missing.
func measureWires(b *testing.B, size int) (medians map[wireCell]float64, missing map[string]error) {
	missing = map[string]error{}
	runtime.LockOSThread()
	// The sender has the first processor, those who receive the last.
	var first, last unix.CPUSet
	first.Set(0)
	last.Set(runtime.NumCPU() - 1)
	must(b, unix.SchedSetaffinity(0, &first))
	lanes := map[string]*lane{}
	for _, f := range wireFilters {
		l, err := newLane(b, size, &last)
		if err != nil {
			b.Skip("skipped:", err)
		}
		if err := f.make(b, size); err != nil {
			missing[f.name] = err
			b.Logf("%s: %v", f.name, err)
			continue
		}
		// It does what it is to do. (Asked by packets of a third one, which nothing passes that drops all.)
		if f.only != "drop" {
			if got := l.passes(b, usableSource(0)); got != (f.only == "pass") {
				b.Fatalf("%s: a blocked source passes: %v", f.name, got)
			}
			if !l.passes(b, usableSource(uint32(size))) {
				b.Fatalf("%s: an innocent is dropped", f.name)
			}
		}
		lanes[f.name] = l
	}
	const rounds, packets = 21, 50_000
	samples := map[wireCell][]float64{}
	for range rounds {
		for _, f := range wireFilters {
			for _, kind := range f.kinds() {
				if l := lanes[f.name]; l != nil {
					l.run(b, kind, packets/5) // the others' tables go out of the cache, ours come in
					c := wireCell{f.name, kind}
					samples[c] = append(samples[c], l.run(b, kind, packets))
				}
			}
		}
	}
	medians = map[wireCell]float64{}
	for c, all := range samples {
		medians[c] = median(all)
	}
	return medians, missing
}

// usableSource is the first source from number i on that a host may have.
func usableSource(i uint32) string {
	for ; ; i++ {
		if a := sourcePrefix(i).Addr(); a.IsGlobalUnicast() && !a.IsPrivate() && a.As4()[0] > 0 && a.As4()[0] < 224 {
			return a.String()
		}
	}
}

var blackHole = netip.MustParseAddr("203.0.113.9")

func newLane(b *testing.B, size int, cpus *unix.CPUSet) (*lane, error) {
	l := &lane{wire: newWire(b), floods: map[string]*ebpf.Program{}}
	before := napiThreads()
	// With GRO a veth receives by NAPI without XDP too, as cards do; and that is put into a thread.
	if err := errors.Join(enableGRO(hostDev), threadNAPI(l.host, hostDev)); err != nil {
		return nil, err
	}
	for _, pid := range napiThreads() {
		if !slices.Contains(before, pid) {
			if l.napi != 0 {
				return nil, errors.New("one interface has two receiving threads; does something else start some?")
			}
			l.napi = pid
		}
	}
	if l.napi == 0 {
		return nil, errors.New("the kernel made no receiving thread (threaded NAPI)")
	}
	if err := unix.SchedSetaffinity(l.napi, cpus); err != nil {
		return nil, fmt.Errorf("give the receiving thread its processor: %w", err)
	}
	hole := &net.IPNet{IP: blackHole.AsSlice(), Mask: net.CIDRMask(32, 32)}
	must(b, netlink.RouteAdd(&netlink.Route{Dst: hole, Type: unix.RTN_BLACKHOLE}))
	// Any source may come from here.
	must(b, netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)},
		LinkIndex: l.dev.Attrs().Index, Scope: netlink.SCOPE_LINK}))

	l.frame = frame{src: "0.0.0.0", dst: blackHole.String(), port: 25}.bytes()
	copy(l.frame, l.dev.Attrs().HardwareAddr)
	var sum uint32
	for i := 14; i < 34; i += 2 {
		if i != 24 { // the checksum itself
			sum += uint32(binary.LittleEndian.Uint16(l.frame[i:]))
		}
	}
	must(b, netns.Set(l.attacker))
	to := uint32(byName(b, peerDev).Attrs().Index)
	must(b, netns.Set(l.host))
	for kind, r := range map[string]struct {
		first uint32
		many  uint64
	}{"drop": {0, uint64(size)}, "pass": {uint32(size), 1<<32 - uint64(size)}} {
		spec, err := loadFlood()
		must(b, err)
		must(b, errors.Join(
			spec.Variables["flood_to"].Set(to), spec.Variables["flood_sum"].Set(sum),
			spec.Variables["flood_first"].Set(r.first), spec.Variables["flood_many"].Set(r.many)))
		coll, err := ebpf.NewCollection(spec)
		must(b, err)
		b.Cleanup(coll.Close)
		l.floods[kind] = coll.Programs["mxshield_flood"]
	}
	return l, nil
}

// run sends until n packets are received, and returns what each of them has cost.
func (l *lane) run(b *testing.B, kind string, n int) float64 {
	must(b, netns.Set(l.host))
	received := func() int { return int(byName(b, hostDev).Attrs().Statistics.RxPackets) }
	before, cpu := received(), l.cpu(b)
	const liveFrames = 1 << 1 // BPF_F_TEST_XDP_LIVE_FRAMES
	const turn = 20_000
	for sent := 0; received()-before < n; sent += turn {
		if sent > 1000*n {
			b.Fatalf("of %d packets %d were received", sent, received()-before)
		}
		must(b, netns.Set(l.attacker))
		_, err := l.floods[kind].Run(&ebpf.RunOptions{Data: l.frame, Repeat: turn, Flags: liveFrames})
		must(b, err)
		must(b, netns.Set(l.host))
	}
	// What is left in the ring is soon done.
	for last := -1; last != received(); time.Sleep(time.Millisecond) {
		last = received()
	}
	return float64(l.cpu(b)-cpu) / float64(received()-before)
}

// cpu is the time that the receiving thread has run, in ns.
func (l *lane) cpu(b *testing.B) uint64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", l.napi))
	must(b, err)
	field, _, _ := strings.Cut(string(text), " ")
	ns, err := strconv.ParseUint(field, 10, 64)
	must(b, err)
	return ns
}

func napiThreads() []int {
	var all []int
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if comm, _ := os.ReadFile(name); strings.HasPrefix(string(comm), "napi/"+hostDev) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			all = append(all, pid)
		}
	}
	return all
}

// enableGRO is ethtool -K DEV gro on.
func enableGRO(dev string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const setGRO = 0x2c // ETHTOOL_SGRO
	value := struct{ cmd, data uint32 }{setGRO, 1}
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		pad  [16]byte
	}
	copy(ifr.name[:], dev)
	ifr.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return fmt.Errorf("turn GRO on: %w", errno)
	}
	return nil
}

// threadNAPI puts the receiving of an interface into a kernel thread. Sysfs shows the interfaces of the namespace in which
// it was mounted, so a thread mounts it for itself alone, and ends with that.
func threadNAPI(ns netns.NsHandle, dev string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		done <- func() error {
			if err := errors.Join(unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS), netns.Set(ns)); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
				return err
			}
			return os.WriteFile("/sys/class/net/"+dev+"/threaded", []byte("1"), 0)
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("put receiving into a thread (kernel 5.12): %w", err)
	}
	return nil
}
