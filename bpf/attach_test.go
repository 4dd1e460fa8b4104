package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// wire is a mail host and an attacker: two network namespaces without names, joined by a veth. The test's goroutine is
// locked to a thread in the mail host's namespace; the thread ends with the test, and the namespaces with it.
type wire struct {
	host, attacker netns.NsHandle
	dev            netlink.Link // the mail host's end
	tx, rx         int          // AF_PACKET on the attacker's end; raw TCP on the mail host
	seq            uint32
	tags           []uint16 // VLAN ethertypes of what is sent
}

const hostDev, peerDev = "mx0.25", "attacker0" // a dot, as VLAN interfaces have

func newNS(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, err := netns.New() // and enters it
	if err != nil {
		t.Skip("skipped: cannot make a network namespace:", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// ownNS locks the test to a thread of its own in a new namespace.
func ownNS(t *testing.T) netns.NsHandle {
	t.Helper()
	needKernel(t)
	runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
	ns := newNS(t)
	must(t, netlink.LinkSetUp(byName(t, "lo")))
	return ns
}

func newWire(t testing.TB) *wire {
	t.Helper()
	needKernel(t)
	runtime.LockOSThread()
	w := &wire{attacker: newNS(t)}
	w.host = newNS(t)
	w.plug(t)

	var err error
	w.rx, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	must(t, err)
	t.Cleanup(func() { unix.Close(w.rx) })
	return w
}

// plug makes the veth, also a second time.
func (w *wire) plug(t testing.TB) {
	t.Helper()
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostDev}, PeerName: peerDev,
		PeerNamespace: netlink.NsFd(w.attacker)}))
	w.dev = byName(t, hostDev)
	addr, err := netlink.ParseAddr("198.18.255.1/16")
	must(t, err)
	must(t, netlink.AddrAdd(w.dev, addr))
	must(t, netlink.LinkSetUp(w.dev))

	must(t, netns.Set(w.attacker))
	defer func() { must(t, netns.Set(w.host)) }()
	peer := byName(t, peerDev)
	must(t, netlink.LinkSetUp(peer))
	w.tx, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	tx := w.tx
	t.Cleanup(func() { unix.Close(tx) })
	must(t, unix.Bind(w.tx, &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index}))
	// A carrier that has not come up yet swallows packets.
	eventually(t, "carrier", func() bool {
		return byName(t, peerDev).Attrs().OperState == netlink.OperUp
	})
}

// send puts a SYN on the wire. Its number, and its kind, are in the sequence number.
func (w *wire) send(src string, seq uint32) error {
	pkt := frame{src: src, port: 25, tags: w.tags}.bytes()
	copy(pkt, w.dev.Attrs().HardwareAddr)
	binary.BigEndian.PutUint32(pkt[14+4*len(w.tags)+20+4:], seq)
	for {
		_, err := unix.Write(w.tx, pkt)
		if err == unix.ENOBUFS || err == unix.EAGAIN {
			continue
		}
		return err
	}
}

// receive returns the source of the next packet that reached the mail host's stack; false if none came in time.
func (w *wire) receive(timeout time.Duration) (src netip.Addr, seq uint32, ok bool) {
	tv := unix.NsecToTimeval(int64(max(timeout, time.Microsecond)))
	_ = unix.SetsockoptTimeval(w.rx, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
	b := make([]byte, 256)
	n, _, err := unix.Recvfrom(w.rx, b, 0)
	if err != nil || n < 40 {
		return netip.Addr{}, 0, false
	}
	return netip.AddrFrom4([4]byte(b[12:16])), binary.BigEndian.Uint32(b[24:]), true
}

const attackerIP, friendIP = "198.18.0.66", "198.18.0.5"

// passes sends a packet from src and then one from a friend; did the first come through as well? The friend's packet
// is the clock: packets do not overtake each other on a veth.
func (w *wire) passes(t testing.TB, src string) bool {
	t.Helper()
	w.seq += 2
	must(t, w.send(src, w.seq))
	deadline := time.Now().Add(time.Minute)
	passed := false
	for time.Now().Before(deadline) {
		must(t, w.send(friendIP, w.seq+1))
		for {
			from, seq, ok := w.receive(200 * time.Millisecond)
			if !ok {
				break // lost in the carrier's first moments: once more
			}
			if from.String() == src && seq == w.seq {
				passed = true
			}
			if from.String() == friendIP && seq == w.seq+1 {
				return passed
			}
		}
	}
	t.Fatal("the friend's packets do not come through")
	return false
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func byName(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func wantHint(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", words)
	}
	var h interface{ HintText() string }
	text := err.Error()
	if !errors.As(err, &h) {
		t.Errorf("no hint: %v", err)
	} else {
		text += "\nhint: " + h.HintText()
	}
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%q is not in: %s", word, text)
		}
	}
	t.Log("error:", text)
}

func one(t *testing.T, s *Shield) Attachment {
	t.Helper()
	all, err := s.Attachments()
	must(t, err)
	if len(all) != 1 {
		t.Fatalf("attached: %+v, want one", all)
	}
	return all[0]
}

func blockAttacker(t *testing.T, s *Shield) {
	t.Helper()
	must(t, s.Set(netip.MustParsePrefix(attackerIP+"/32"), ScopeMX, time.Time{}))
}

// Every mode drops, and every change of mode leaves one program, of the new mode, dropping.
func TestModes(t *testing.T) {
	w := newWire(t)
	pins := testPins(t)
	for _, mode := range []Mode{Native, TCX, Generic, Native, Generic, TCX, Auto, TCX, Native, Generic, Auto} {
		if (mode == TCX || mode == Auto) && !haveTCX() {
			continue // there auto leaves generic as it is
		}
		s := openTest(t, Options{Pins: pins, Interfaces: []string{hostDev}, Attach: mode})
		must(t, s.Attach())
		blockAttacker(t, s)
		want := mode
		if mode == Auto {
			want = Native
		}
		if at := one(t, s); at.Mode != want || at.Interface != hostDev || at.Index != w.dev.Attrs().Index {
			t.Fatalf("%s: %+v", mode, at)
		}
		if w.passes(t, attackerIP) {
			t.Errorf("%s: a packet of the blocked source came through", mode)
		}
		if q, err := link.QueryPrograms(link.QueryOptions{Target: w.dev.Attrs().Index, Attach: ebpf.AttachTCXIngress}); err == nil && mode != TCX && len(q.Programs) > 0 {
			t.Errorf("%s: the tcx program is left", mode)
		}
		s.Close()
	}
}

// A new process with new ports takes over while packets come: the link stays, the program changes, and not one packet
// of the blocked source comes through.
func TestReplaceWithoutGap(t *testing.T) {
	for _, mode := range []Mode{Native, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			opts := Options{Pins: testPins(t), Interfaces: []string{hostDev}, Attach: mode}
			s := openTest(t, opts)
			blockAttacker(t, s)
			must(t, s.Attach())
			first := one(t, s)

			var sent, friends, leaked atomic.Uint64
			const window = 32 // friends' packets on their way: a slow machine must not drown
			stop := make(chan struct{})
			var wg sync.WaitGroup
			wg.Add(2)
			go func() {
				defer wg.Done()
				lost := uint64(0)
				for i := uint32(0); ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					src := attackerIP
					if i%16 == 0 {
						src = friendIP
						full := time.Now().Add(20 * time.Millisecond) // or some were lost
						for on := uint64(i / 16); on > friends.Load()+lost+window; {
							if time.Now().After(full) {
								lost = on - friends.Load()
							}
							runtime.Gosched()
						}
					}
					if err := w.send(src, i); err != nil {
						t.Error(err)
						return
					}
					sent.Add(1)
				}
			}()
			go func() {
				defer wg.Done()
				for {
					src, _, ok := w.receive(50 * time.Millisecond)
					switch {
					case ok && src.String() == attackerIP:
						leaked.Add(1)
					case ok:
						friends.Add(1)
					default:
						select {
						case <-stop:
							return
						default:
						}
					}
				}
			}()
			flowing := func() {
				n := friends.Load()
				eventually(t, "packets flow", func() bool { return friends.Load() > n+20 })
			}
			flowing()
			var last Attachment
			for i := range 10 {
				s.Close()
				flowing()
				opts.SubmissionPorts = []uint16{uint16(1000 + i)}
				s = openTest(t, opts)
				must(t, s.Attach())
				last = one(t, s)
				if last.LinkID != first.LinkID {
					t.Errorf("link %d became %d", first.LinkID, last.LinkID)
				}
				flowing()
			}
			close(stop)
			wg.Wait()
			if last.ProgramID == first.ProgramID {
				t.Error("the program was not replaced")
			}
			c, err := s.Counters()
			must(t, err)
			if n := leaked.Load(); n > 0 {
				t.Errorf("%d packets of the blocked source came through", n)
			}
			t.Logf("%d packets sent, %d dropped, %d of friends came through", sent.Load(), c.Drops(), friends.Load())
			if c.Drops() < sent.Load()/2 {
				t.Errorf("only %d drops counted", c.Drops())
			}
			if r, _, _ := s.Lookup(netip.MustParsePrefix(attackerIP + "/32")); r.Drops != c.Drops() {
				t.Errorf("the entry counts %d drops, the total is %d", r.Drops, c.Drops())
			}
		})
	}
}

func otherXDP(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}})
	must(t, err)
	t.Cleanup(func() { prog.Close() })
	return prog
}

func TestOtherProgram(t *testing.T) {
	w := newWire(t)
	other := otherXDP(t, "somebody_else")
	l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: w.dev.Attrs().Index, Flags: link.XDPDriverMode})
	must(t, err)
	defer l.Close()
	info, err := other.Info()
	must(t, err)
	id, _ := info.ID()
	for _, mode := range []Mode{Auto, Native, Generic} {
		s := openTest(t, Options{Interfaces: []string{hostDev}, Attach: mode})
		wantHint(t, s.Attach(), hostDev, "somebody_else", fmt.Sprint(id), "attach: tcx")
		s.Close()
	}
	// The way out that the hint names.
	needTCX(t)
	s := openTest(t, Options{Interfaces: []string{hostDev}, Attach: TCX})
	blockAttacker(t, s)
	must(t, s.Attach())
	if w.passes(t, attackerIP) {
		t.Error("tcx beside another program: a packet of the blocked source came through")
	}
}

// Two agents with different pin directories on one interface.
func TestOurOwnFromElsewhere(t *testing.T) {
	newWire(t)
	must(t, openTest(t, Options{Interfaces: []string{hostDev}}).Attach())
	wantHint(t, openTest(t, Options{Interfaces: []string{hostDev}}).Attach(), "another pin directory")
}

func TestOneAgent(t *testing.T) {
	pins := testPins(t)
	openTest(t, Options{Pins: pins})
	_, err := Open(Options{Pins: pins})
	wantHint(t, err, "another agent", pins)
}

func TestForeignPins(t *testing.T) {
	pins := testPins(t)
	must(t, os.Mkdir(pins, 0o700))
	for _, spec := range []ebpf.MapSpec{
		{Type: ebpf.Array, KeySize: 4, ValueSize: 24, MaxEntries: 8},
		{Type: ebpf.Hash, KeySize: 8, ValueSize: 24, MaxEntries: 8, Flags: unix.BPF_F_NO_PREALLOC},
		{Type: ebpf.Hash, KeySize: 4, ValueSize: 16, MaxEntries: 8, Flags: unix.BPF_F_NO_PREALLOC},
		{Type: ebpf.Hash, KeySize: 4, ValueSize: 24, MaxEntries: 8},
	} {
		m, err := ebpf.NewMap(&spec)
		must(t, err)
		path := filepath.Join(pins, "exact-v4")
		must(t, m.Pin(path))
		_, err = Open(Options{Pins: pins, MaxExact: 1024})
		wantHint(t, err, path, "mxshieldctl off --purge && mxshieldctl on")
		must(t, m.Unpin())
		m.Close()
	}
	prog := otherXDP(t, "somebody_else")
	must(t, prog.Pin(filepath.Join(pins, "cidr-v4")))
	_, err := Open(Options{Pins: pins, MaxExact: 1024})
	wantHint(t, err, "cidr-v4", "mxshieldctl off --purge && mxshieldctl on")
	must(t, prog.Unpin())

	// What is not ours at all is named, and left.
	must(t, prog.Pin(filepath.Join(pins, "visitor")))
	var log bytes.Buffer
	s := openTest(t, Options{Pins: pins, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if !strings.Contains(log.String(), filepath.Join(pins, "visitor")) {
		t.Errorf("the visitor is not named: %s", log.String())
	}
	s.Close()
	// Another size is kept, with a warning.
	log.Reset()
	s = openTest(t, Options{Pins: pins, MaxCIDRs: 7, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if got := s.gen.maps[shieldMapCidrV4].MaxEntries(); got != 1024+1 || !strings.Contains(log.String(), "another size") {
		t.Errorf("size %d; %s", got, log.String())
	}
	s.Close()
	if _, err := Off(pins, true); err != nil {
		t.Error(err)
	}
	if names, _ := os.ReadDir(pins); len(names) != 1 || names[0].Name() != "visitor" {
		t.Errorf("after the purge there is %v", names)
	}
}

func TestNoBPFFS(t *testing.T) {
	needKernel(t)
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "not", "yet")} {
		_, err := Open(Options{Pins: dir})
		wantHint(t, err, dir, "mount -t bpf bpf /sys/fs/bpf")
	}
	if _, err := Open(Options{Pins: "relative"}); err == nil {
		t.Error("a relative path is no error")
	}
}

// The interface goes and comes back: the old link hangs nowhere, Attach makes a new one.
func TestInterfaceMadeAnew(t *testing.T) {
	for _, mode := range []Mode{Native, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			s := openTest(t, Options{Interfaces: []string{hostDev}, Attach: mode})
			blockAttacker(t, s)
			must(t, s.Attach())
			first := one(t, s)
			must(t, netlink.LinkDel(w.dev))
			if all, err := s.Attachments(); err != nil || len(all) != 0 {
				t.Errorf("with the interface gone: %+v, %v", all, err)
			}
			wantHint(t, s.Attach(), hostDev, "lo")
			w.plug(t)
			if !w.passes(t, attackerIP) {
				t.Error("dropped without a program")
			}
			must(t, s.Attach())
			if at := one(t, s); at.LinkID == first.LinkID || at.Index != w.dev.Attrs().Index {
				t.Errorf("%+v, before %+v", at, first)
			}
			if w.passes(t, attackerIP) {
				t.Error("a packet of the blocked source came through")
			}
		})
	}
}

// The rescue: off works while an agent lives and holds the link open, on works without one.
func TestOffOn(t *testing.T) {
	for _, mode := range []Mode{Native, Generic, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			opts := Options{Pins: testPins(t), Interfaces: []string{hostDev}, Attach: mode}
			s := openTest(t, opts)
			blockAttacker(t, s)
			must(t, s.Attach())
			held, err := link.LoadPinnedLink(filepath.Join(opts.Pins, linkPin(hostDev)), nil)
			must(t, err)
			defer held.Close()
			if w.passes(t, attackerIP) {
				t.Fatal("a packet of the blocked source came through")
			}

			were, err := Off(opts.Pins, false)
			must(t, err)
			if len(were) != 1 || were[0].Interface != hostDev || were[0].Mode != mode {
				t.Errorf("Off: %+v", were)
			}
			if !w.passes(t, attackerIP) {
				t.Error("off, and still dropping")
			}
			if again, err := Off(opts.Pins, false); err != nil || len(again) != 0 {
				t.Errorf("off again: %+v, %v", again, err)
			}
			s.Close()
			now, err := On(opts.Pins, were)
			must(t, err)
			if len(now) != 1 || now[0].Interface != hostDev || now[0].Mode != mode {
				t.Errorf("On: %+v", now)
			}
			if w.passes(t, attackerIP) {
				t.Error("on, and a packet of the blocked source came through")
			}
			if twice, err := On(opts.Pins, were); err != nil || len(twice) != 1 || twice[0].LinkID != now[0].LinkID {
				t.Errorf("on again: %+v, %v", twice, err)
			}

			// The agent comes back to what On made.
			s = openTest(t, opts)
			must(t, s.Attach())
			if at := one(t, s); at.LinkID != now[0].LinkID {
				t.Errorf("the agent made another link: %+v", at)
			}
			must(t, s.Detach())
			if !w.passes(t, attackerIP) {
				t.Error("detached, and still dropping")
			}
			must(t, s.Attach())

			if _, err = Off(opts.Pins, true); err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(opts.Pins); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("purged, and there is %v", err)
			}
			if !w.passes(t, attackerIP) {
				t.Error("purged, and still dropping")
			}
			_, err = On(opts.Pins, were)
			wantHint(t, err, "mxshield-agent")

			// A living agent brings everything back.
			must(t, s.Attach())
			if w.passes(t, attackerIP) {
				t.Error("attached after a purge, and a packet of the blocked source came through")
			}
			s.Close()
			s = openTest(t, opts)
			if _, ok, err := s.Lookup(netip.MustParsePrefix(attackerIP + "/32")); !ok || err != nil {
				t.Errorf("the block was lost: %v", err)
			}
		})
	}
}

// Where the driver has no XDP, auto takes tcx and says why.
func TestAutoFallsBack(t *testing.T) {
	ownNS(t)
	fallback := TCX
	if !haveTCX() {
		fallback = Generic
	}
	// A bridge has no native XDP, nor has lo.
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "plain0"}}))
	must(t, netlink.LinkSetUp(byName(t, "plain0")))
	for _, name := range []string{"plain0", "lo"} {
		var log bytes.Buffer
		opts := Options{Pins: testPins(t), Interfaces: []string{name}, Log: slog.New(slog.NewTextHandler(&log, nil))}
		s := openTest(t, opts)
		must(t, s.Attach())
		if at := one(t, s); at.Mode != fallback || !strings.Contains(log.String(), "native XDP") {
			t.Errorf("%+v: %s", at, log.String())
		}
		must(t, s.Attach()) // stays
		one(t, s)
		s.Close()

		opts.Attach = Native
		s = openTest(t, opts)
		wantHint(t, s.Attach(), name, "attach: auto")
		if at := one(t, s); at.Mode != fallback { // what worked still does
			t.Errorf("%+v", at)
		}
		s.Close()

		opts.Attach = Generic
		s = openTest(t, opts)
		must(t, s.Attach())
		if at := one(t, s); at.Mode != Generic {
			t.Errorf("%+v", at)
		}
		s.Close()
		// From generic to native there is no way without a gap; where native fails, generic comes back.
		opts.Attach = Native
		s = openTest(t, opts)
		wantHint(t, s.Attach(), name)
		if at := one(t, s); at.Mode != Generic {
			t.Errorf("%+v", at)
		}
		s.Close()
		_, err := Off(opts.Pins, true)
		must(t, err)
	}
}

func TestInterfaces(t *testing.T) {
	ownNS(t)
	if _, err := DefaultInterfaces(); true {
		wantHint(t, err, "interfaces: [")
	}
	for _, name := range []string{"eth-a", "eth-b", "other0"} {
		must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
		must(t, netlink.LinkSetUp(byName(t, name)))
	}
	route := func(dev, dst string, metric int) {
		t.Helper()
		_, ip, err := net.ParseCIDR(dst)
		must(t, err)
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: byName(t, dev).Attrs().Index, Dst: ip, Priority: metric, Scope: netlink.SCOPE_LINK}))
	}
	route("eth-b", "0.0.0.0/0", 1)
	route("eth-a", "0.0.0.0/0", 2)
	route("other0", "10.0.0.0/8", 1)
	if got, err := DefaultInterfaces(); err != nil || fmt.Sprint(got) != "[eth-a eth-b]" {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		_, ip, _ := net.ParseCIDR("::/0")
		must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: byName(t, "other0").Attrs().Index, Dst: ip}))
		if got, err := DefaultInterfaces(); err != nil || fmt.Sprint(got) != "[eth-a eth-b other0]" {
			t.Errorf("with IPv6: %v, %v", got, err)
		}
	}
	for _, c := range []struct{ specs, want string }{
		{"eth-b", "[eth-b]"}, {"eth-*", "[eth-a eth-b]"}, {"eth-* eth-a auto", "[eth-a eth-b other0]"},
		{"*", "[eth-a eth-b other0]"}, {"lo", "[lo]"}, {"eth-?", "[eth-a eth-b]"},
	} {
		if got, err := ResolveInterfaces(strings.Fields(c.specs)); err != nil || fmt.Sprint(got) != c.want {
			t.Errorf("%s: %v, %v; want %s", c.specs, got, err, c.want)
		}
	}
	got, err := ResolveInterfaces([]string{"eth-a", "nowhere0"})
	if fmt.Sprint(got) != "[eth-a]" {
		t.Errorf("%v", got)
	}
	wantHint(t, err, "nowhere0", "eth-a, eth-b")
	if _, err := ResolveInterfaces([]string{"wan*"}); err == nil {
		t.Error("a glob that matches nothing is no error")
	}

	// One that is missing does not keep the other from being shielded; one not wanted any more is let go.
	pins := testPins(t)
	s := openTest(t, Options{Pins: pins, Interfaces: []string{"eth-a", "nowhere0"}})
	wantHint(t, s.Attach(), "nowhere0")
	if at := one(t, s); at.Interface != "eth-a" {
		t.Errorf("%+v", at)
	}
	s.Close()
	s = openTest(t, Options{Pins: pins, Interfaces: []string{"eth-b"}})
	must(t, s.Attach())
	if at := one(t, s); at.Interface != "eth-b" {
		t.Errorf("%+v", at)
	}
}

// No Ethernet header: the program would read nonsense.
func TestNoEthernet(t *testing.T) {
	ownNS(t)
	tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(tun); err != nil {
		t.Skip("skipped: cannot make a tun device:", err)
	}
	s := openTest(t, Options{Interfaces: []string{"tun0"}})
	wantHint(t, s.Attach(), "tun0", "Ethernet")
}

// Jumbo frames come in pieces; the program takes them. A native program without frags would be refused here.
func TestJumboFrames(t *testing.T) {
	w := newWire(t)
	must(t, netlink.LinkSetMTU(w.dev, 9000))
	must(t, netns.Set(w.attacker))
	must(t, netlink.LinkSetMTU(byName(t, peerDev), 9000))
	must(t, netns.Set(w.host))
	s := openTest(t, Options{Interfaces: []string{hostDev}, Attach: Native})
	blockAttacker(t, s)
	if v, err := features.LinuxVersionCode(); err == nil && v < 5<<16|18<<8 {
		wantHint(t, s.Attach(), "MTU of 9000", "ip link set dev "+hostDev+" mtu 1500")
		return
	}
	must(t, s.Attach())
	if w.passes(t, attackerIP) {
		t.Error("a packet of the blocked source came through")
	}
	big := append(frame{src: attackerIP, port: 25}.bytes(), make([]byte, 8000)...)
	before, err := s.Counters()
	must(t, err)
	_, err = unix.Write(w.tx, big)
	must(t, err)
	eventually(t, "a jumbo frame is dropped", func() bool {
		c, err := s.Counters()
		return err == nil && c[DropExact] == before[DropExact]+1
	})
	s.Close()

	// A program without frags, as on kernels before 5.18, is explained.
	plain := otherXDP(t, shieldProgMxshieldXdp)
	a := &attacher{pins: s.opts.Pins, log: slog.New(slog.DiscardHandler), xdp: plain, tc: s.tc}
	must(t, s.Detach())
	_, err = a.attach(hostDev, Native)
	wantHint(t, err, "MTU of 9000", "ip link set dev "+hostDev+" mtu 1500")
}

// A process that dies between attaching a new link and dropping the old one.
func TestDiedWhileSwapping(t *testing.T) {
	needTCX(t)
	w := newWire(t)
	opts := Options{Pins: testPins(t), Interfaces: []string{hostDev}, Attach: Native}
	s := openTest(t, opts)
	blockAttacker(t, s)
	must(t, s.Attach())
	pin := filepath.Join(opts.Pins, linkPin(hostDev))
	tmp := filepath.Join(opts.Pins, newPrefix+linkPin(hostDev))
	l, err := s.attacher().createTCX(w.dev)
	must(t, err)
	must(t, l.Pin(tmp))
	l.Close()
	s.Close()

	// Both live: the old one stays.
	s = openTest(t, opts)
	must(t, s.Attach())
	if at := one(t, s); at.Mode != Native {
		t.Errorf("%+v", at)
	}
	if _, err := os.Lstat(tmp); !errors.Is(err, os.ErrNotExist) {
		t.Error("the leftover is left")
	}

	// Only the new one lives: it is taken.
	l, err = s.attacher().createTCX(w.dev)
	must(t, err)
	must(t, l.Pin(tmp))
	l.Close()
	must(t, os.Remove(pin))
	s.Close()
	opts.Attach = TCX
	s = openTest(t, opts)
	must(t, s.Attach())
	if at := one(t, s); at.Mode != TCX {
		t.Errorf("%+v", at)
	}
	if w.passes(t, attackerIP) {
		t.Error("a packet of the blocked source came through")
	}
}
