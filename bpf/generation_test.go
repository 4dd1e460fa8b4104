package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// wantOnePinned checks that one generation is pinned, and nothing of older ones or of half a change.
func wantOnePinned(t *testing.T, pins string) {
	t.Helper()
	entries, err := os.ReadDir(pins)
	must(t, err)
	gens := 0
	for _, e := range entries {
		if _, ok := genNumber(e.Name()); ok {
			gens++
		} else if !strings.HasPrefix(e.Name(), linkPrefix) {
			t.Errorf("there is a pin %s", e.Name())
		}
	}
	if gens != 1 {
		t.Errorf("%d generations are pinned", gens)
	}
}

// The tables grow as blocks come, on links of both kinds, and nothing is lost: blocks, drops, CIDRs, totals.
func TestGrow(t *testing.T) {
	for _, mode := range []Mode{Native, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			opts := Options{Pins: testPins(t), Interfaces: []string{hostDev}, Attach: mode, MaxExact: 1000}
			s := openTest(t, opts)
			blockAttacker(t, s)
			must(t, s.Set(netip.MustParsePrefix("198.18.7.0/24"), ScopeMX, time.Time{}))
			must(t, s.Attach())
			if w.passes(t, attackerIP) {
				t.Fatal("a packet of the blocked source came through")
			}
			first := one(t, s)
			s.opts.MaxExact = 4000
			n := 1
			for _, v6 := range []bool{false, true} {
				for i := range 3900 {
					p := sourcePrefix(uint32(i))
					if v6 {
						p = exactV6Prefix(uint64(benchSource(uint32(i)))<<32 | 0x20)
					}
					must(t, s.Set(p, ScopeMX, future))
					n++
					if i%1000 == 500 && w.passes(t, attackerIP) {
						t.Fatalf("with %d entries a packet of the blocked source came through", n)
					}
				}
			}
			if s.gen.n < 3 { // one for each table
				t.Errorf("only %d generations", s.gen.n)
			}
			wantOnePinned(t, opts.Pins)
			if at := one(t, s); at.LinkID != first.LinkID || at.ProgramID == first.ProgramID {
				t.Errorf("link %d program %d became %d, %d", first.LinkID, first.ProgramID, at.LinkID, at.ProgramID)
			}
			if w.passes(t, attackerIP) || w.passes(t, "198.18.7.9") {
				t.Error("a packet of a blocked source came through")
			}
			c, err := s.Counters()
			must(t, err)
			r, _, err := s.Lookup(netip.MustParsePrefix(attackerIP + "/32"))
			must(t, err)
			if r.Drops != c[DropExact] || r.Drops < 8 {
				t.Errorf("the entry counts %d drops, the total is %d", r.Drops, c[DropExact])
			}
			before := collect(t, s)
			if len(before) != n+1 {
				t.Errorf("%d rules, want %d", len(before), n+1)
			}
			s.Close()

			// A rescue knows the generation too.
			_, err = Off(opts.Pins, false)
			must(t, err)
			if _, err := On(opts.Pins, []Attachment{{Interface: hostDev, Mode: mode}}); err != nil {
				t.Fatal(err)
			}
			if w.passes(t, attackerIP) {
				t.Error("on, and a packet of the blocked source came through")
			}
			again := openTest(t, opts)
			after := collect(t, again)
			for p, r := range before {
				if got := after[p]; got.Scope != r.Scope || !got.Until.Equal(r.Until) || got.Drops < r.Drops {
					t.Fatalf("after a restart %+v, was %+v", got, r)
				}
			}
			wantOnePinned(t, opts.Pins)
		})
	}
}

// After a wave has ended the table is made smaller, when it has been mostly empty for a while, and not one packet of what
// is still blocked comes through meanwhile.
func TestTrim(t *testing.T) {
	w := newWire(t)
	opts := Options{Pins: testPins(t), Interfaces: []string{hostDev}, Attach: Native, MaxExact: 1_000_000}
	s := openTest(t, opts)
	blockAttacker(t, s)
	must(t, s.Attach())
	const wave, left = 300_000, 20_000
	setSources(t, s, wave, sourcePrefix)
	setSources(t, s, 1000, sourcePrefixV6)
	large, six := s.gen.v4.capacity(), s.gen.v6.capacity()
	link := one(t, s).LinkID

	start := time.Now()
	look := func(after time.Duration, want int) {
		t.Helper()
		gen := s.gen.n
		s.trim(start.Add(after))
		if c := s.gen.v4.capacity(); c < want || c > want+100 || s.gen.v6.capacity() != six {
			t.Fatalf("after %s room for %d and %d, want %d and %d", after, c, s.gen.v6.capacity(), want, six)
		}
		if changed := want != large; changed != (s.gen.n != gen) {
			t.Fatalf("after %s generation %d became %d", after, gen, s.gen.n)
		}
	}
	look(0, large)
	look(time.Hour, large) // it is full
	for i := left; i < wave; i++ {
		must(t, s.Remove(sourcePrefix(uint32(i))))
	}
	look(2*time.Hour, large)
	look(2*time.Hour+trimAfter-1, large)
	// Filled again meanwhile: it is waited for anew.
	setSources(t, s, wave/2, sourcePrefix)
	look(3*time.Hour, large)
	for i := left; i < wave/2; i++ {
		must(t, s.Remove(sourcePrefix(uint32(i))))
	}
	look(3*time.Hour+trimAfter, large)

	// One CPU sends, this one swaps.
	stop, sent := make(chan struct{}), make(chan error, 1)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				sent <- nil
				return
			default:
			}
			if err := w.send(attackerIP, 0); err != nil {
				sent <- err
				return
			}
		}
	}()
	look(3*time.Hour+2*trimAfter, firstCapacity)
	close(stop)
	must(t, <-sent)
	// All that came before a friend's packet is through.
	const mark = 1 << 30
	for deadline, through := time.Now().Add(30*time.Second), false; !through; {
		must(t, w.send(friendIP, mark))
		for {
			src, seq, ok := w.receive(200 * time.Millisecond)
			if ok && src.String() == attackerIP {
				t.Fatal("a packet of a blocked source came through on the way")
			}
			if through = ok && src.String() == friendIP && seq == mark; through || !ok {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("the friend's packets do not come through")
		}
	}
	if at := one(t, s); at.LinkID != link {
		t.Errorf("link %d became %d", link, at.LinkID)
	}
	wantOnePinned(t, opts.Pins)
	if n := len(collect(t, s)); n != left+1+1000 {
		t.Errorf("%d rules are left, want %d", n, left+1+1000)
	}
	r, _, err := s.Lookup(netip.MustParsePrefix(attackerIP + "/32"))
	must(t, err)
	c, err := s.Counters()
	must(t, err)
	if r.Drops == 0 || r.Drops > c[DropExact] {
		t.Errorf("the entry counts %d drops, the total is %d", r.Drops, c[DropExact])
	}
	// As small as it gets; and the next wave has room.
	gen := s.gen.n
	s.trim(start.Add(5 * time.Hour))
	s.trim(start.Add(6 * time.Hour))
	if s.gen.n != gen {
		t.Error("made smaller again")
	}
	setSources(t, s, wave, sourcePrefix)
	s.Close()
	if n := len(collect(t, openTest(t, opts))); n != wave+1+1000 {
		t.Errorf("after a restart %d rules, want %d", n, wave+1+1000)
	}
}

// A counter of 32 bits that has got far is emptied into one that does not end.
func TestDropsGoOn(t *testing.T) {
	s := openTest(t, Options{})
	p := netip.MustParsePrefix("198.18.0.1/32")
	must(t, s.Set(p, ScopeMX, time.Time{}))
	want := uint64(0)
	for range 5 {
		line, slot, _ := s.gen.v4.find(s.key(p))
		*s.gen.v4.drops(line, slot) += 5 << 28
		want += 5 << 28
		s.collected = time.Time{}
		s.ClockStepped()
		if r, _, err := s.Lookup(p); err != nil || r.Drops != want {
			t.Fatalf("%d drops, want %d: %v", r.Drops, want, err)
		}
		if r := collect(t, s)[p]; r.Drops != want {
			t.Fatalf("Each says %d drops, want %d", r.Drops, want)
		}
	}
	// Over to the trie and back, with all of them.
	must(t, errors.Join(s.Set(p, 0, time.Time{}), s.Set(p, ScopeMX, time.Time{})))
	if r, _, err := s.Lookup(p); err != nil || r.Drops != want {
		t.Errorf("after a move %d drops, want %d: %v", r.Drops, want, err)
	}
	must(t, errors.Join(s.Remove(p), s.Set(p, ScopeMX, time.Time{})))
	if r, _, err := s.Lookup(p); err != nil || r.Drops != 0 {
		t.Errorf("a new entry begins with %d drops: %v", r.Drops, err)
	}
}

func (s *Shield) key(p netip.Prefix) uint64 {
	_, key := s.exactTable(p)
	return key
}

// firstVersionPins makes what the first version leaves: pinned hashes with blocks, and links.
func firstVersionPins(t *testing.T, pins string, index int, mode Mode, rules []Rule) {
	t.Helper()
	must(t, os.Mkdir(pins, 0o700))
	spec, err := loadHash()
	must(t, err)
	must(t, setPorts(spec, Options{MXPorts: []uint16{25}}))
	coll, err := ebpf.NewCollection(spec)
	must(t, err)
	defer coll.Close()
	clock, err := wallMinusBoot()
	must(t, err)
	var cidrs uint32
	for _, r := range rules {
		e := hashEntry{Until: ^uint64(0), Scope: r.Scope, Drops: r.Drops}
		if !r.Until.IsZero() {
			e.Until = uint64(max(r.Until.UnixNano()-clock, 0)) // the machine may be younger than what has ended
		}
		a := r.Prefix.Addr()
		switch {
		case r.Scope != 0 && isExactSize(r.Prefix) && a.Is4():
			err = coll.Maps["exact_v4"].Put(a.AsSlice(), e)
		case r.Scope != 0 && isExactSize(r.Prefix):
			err = coll.Maps["exact_v6"].Put(a.AsSlice()[:8], e)
		case a.Is4():
			cidrs++
			err = coll.Maps["cidr_v4"].Put(append([]byte{byte(r.Prefix.Bits()), 0, 0, 0}, a.AsSlice()...), e)
		default:
			err = coll.Maps["cidr_v6"].Put(append([]byte{byte(r.Prefix.Bits()), 0, 0, 0}, a.AsSlice()...), e)
		}
		must(t, err)
	}
	must(t, coll.Maps["state"].Put(uint32(0), hashStateValue{CidrsV4: cidrs, Clock: clock}))
	for name, m := range coll.Maps {
		if !strings.HasPrefix(name, ".") {
			must(t, m.Pin(filepath.Join(pins, pinName(name))))
		}
	}
	must(t, coll.Programs[shieldProgMxshieldXdp].Pin(filepath.Join(pins, pinXDP)))
	var l link.Link
	if mode == TCX {
		tc := coll.Programs[shieldProgMxshieldTc]
		must(t, tc.Pin(filepath.Join(pins, pinTC)))
		l, err = link.AttachTCX(link.TCXOptions{Program: tc, Interface: index, Attach: ebpf.AttachTCXIngress})
	} else {
		l, err = link.AttachXDP(link.XDPOptions{Program: coll.Programs[shieldProgMxshieldXdp], Interface: index, Flags: link.XDPDriverMode})
	}
	must(t, err)
	must(t, l.Pin(filepath.Join(pins, linkPin(hostDev))))
	must(t, l.Close())
}

// An upgrade from the first version: its blocks are there, the link stays and runs the new program.
func TestTakeOverFirstVersion(t *testing.T) {
	rules := append(slices.Clone(labRules), rule(attackerIP+"/32", ScopeMX, future), rule("198.18.7.0/24", ScopeAll, time.Time{}))
	rules[len(rules)-2].Drops = 5
	for _, c := range []struct {
		name string
		mode Mode
		kill bool
	}{{"native", Native, false}, {"tcx", TCX, false}, {"killed on the way", Native, true}} {
		t.Run(c.name, func(t *testing.T) {
			if c.mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			pins := testPins(t)
			firstVersionPins(t, pins, w.dev.Attrs().Index, c.mode, rules)
			if w.passes(t, attackerIP) || !w.passes(t, "198.18.0.77") {
				t.Fatal("the old program does not work")
			}
			if c.kill {
				// A process has built a generation and was killed before the link had its program. It is out of date.
				other := openTest(t, Options{})
				must(t, os.Rename(filepath.Join(other.opts.Pins, genName(1)), filepath.Join(pins, genName(1))))
				must(t, os.Mkdir(filepath.Join(pins, newPrefix+genName(2)), 0o700))
				other.Close()
			}
			opts := Options{Pins: pins, Interfaces: []string{hostDev}, Attach: c.mode}
			s := openTest(t, opts)
			wantOnePinned(t, pins)
			if w.passes(t, attackerIP) || w.passes(t, "198.18.7.1") || !w.passes(t, "198.18.0.77") {
				t.Error("before Attach: wrong")
			}
			must(t, s.Attach())
			if w.passes(t, attackerIP) || w.passes(t, "198.18.7.1") || !w.passes(t, "198.18.0.77") {
				t.Error("after Attach: wrong")
			}
			have := collect(t, s)
			if len(have) != len(rules) {
				t.Errorf("%d rules, were %d", len(have), len(rules))
			}
			for _, r := range rules {
				got, ok := have[r.Prefix]
				early := time.Duration(0)
				if !r.Until.IsZero() {
					early = r.Until.Sub(got.Until)
				}
				if !ok || got.Scope != r.Scope || early > 5*time.Millisecond || early < -unit(s)-5*time.Millisecond {
					t.Errorf("%+v, was %+v", got, r)
				}
			}
			if r := have[netip.MustParsePrefix(attackerIP+"/32")]; r.Drops < 5+2 {
				t.Errorf("%d drops", r.Drops)
			}
			if n, err := s.Counters(); err != nil || n[DropExact] < 3 {
				t.Errorf("the totals began anew: %v", err)
			}
			s.Close()
			s = openTest(t, opts)
			if again := collect(t, s); len(again) != len(rules) {
				t.Errorf("%d rules after a restart", len(again))
			}
		})
	}
}

// killed is the process that TestKill kills: it blocks and changes generations until then, and says what is done. With
// MXSHIELD_TEST_AT it comes to a halt at that step of its changes, and says so.
func killed(t *testing.T, pins string) {
	s, err := Open(Options{Pins: pins, Interfaces: killedDevs, Attach: Mode(os.Getenv("MXSHIELD_TEST_MODE")), MaxExact: 1 << 16, Log: slog.New(slog.DiscardHandler)})
	must(t, err)
	fmt.Println("OPEN")
	must(t, s.Attach())
	from, err := strconv.Atoi(os.Getenv("MXSHIELD_TEST_FROM"))
	must(t, err)
	if at, err := strconv.Atoi(os.Getenv("MXSHIELD_TEST_AT")); err == nil {
		step = func() {
			if at--; at == 0 {
				fmt.Println("HALT")
				select {}
			}
		}
	}
	for i := from; ; i++ {
		must(t, s.Set(sourcePrefix(uint32(i)), ScopeMX, time.Time{}))
		fmt.Println("SET", i)
		if i%8 == 0 {
			must(t, s.grow(true))
		}
	}
}

const otherDev, otherPeer = "mx1", "mx1peer"

var killedDevs = []string{hostDev, otherDev}

// Whatever kill -9 leaves of a change of generations: packets of a blocked source are dropped all the time, the next
// start finds everything that was set, and no pin is left. Half of the kills come at a random step of a change, the
// others at a random moment.
func TestKill(t *testing.T) {
	if pins := os.Getenv("MXSHIELD_TEST_KILL"); pins != "" {
		killed(t, pins)
	}
	for _, mode := range []Mode{Native, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			rounds := 8
			if long() {
				rounds = 200
			}
			kill(t, mode, rounds)
		})
	}
}

func kill(t *testing.T, mode Mode, rounds int) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	w := newWire(t)
	// The links of two interfaces get their new programs one after the other.
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: otherDev}, PeerName: otherPeer}))
	opts := Options{Pins: testPins(t), Interfaces: killedDevs, Attach: mode, MaxExact: 1 << 16}
	s := openTest(t, opts)
	blockAttacker(t, s)
	must(t, s.Attach())
	// How many steps a change has here.
	steps := 0
	step = func() { steps++ }
	must(t, s.grow(true))
	step = func() {}
	s.Close()
	set, gens := 0, 0
	var half, two, split, removing int // what the kills left
	for round := range rounds {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "MXSHIELD_TEST_KILL="+opts.Pins, "MXSHIELD_TEST_MODE="+string(mode), "MXSHIELD_TEST_FROM="+strconv.Itoa(set))
		at := round%2 == 0
		if at {
			cmd.Env = append(cmd.Env, "MXSHIELD_TEST_AT="+strconv.Itoa(1+r.IntN(2*steps)))
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		opened := lines.Scan() && lines.Text() == "OPEN"
		if !opened {
			rest, _ := io.ReadAll(out)
			t.Fatalf("%s\n%s", lines.Text(), rest)
		}
		pid := cmd.Process
		if !at {
			time.AfterFunc(time.Duration(r.IntN(300_000))*time.Microsecond, func() { _ = pid.Kill() })
		}
		for lines.Scan() {
			if lines.Text() == "HALT" && at {
				must(t, pid.Kill())
				continue
			}
			n, err := strconv.Atoi(strings.TrimPrefix(lines.Text(), "SET "))
			if err != nil {
				rest, _ := io.ReadAll(out)
				t.Fatalf("the process failed by itself: %s\n%s", lines.Text(), rest)
			}
			set = n + 1
		}
		_ = cmd.Wait()

		all, err := generations(opts.Pins)
		must(t, err)
		aside, err := filepath.Glob(filepath.Join(opts.Pins, newPrefix+genPrefix+"*"))
		must(t, err)
		links, err := linksByState(opts.Pins)
		must(t, err)
		state := func(n int) ebpf.MapID { return stateID(filepath.Join(opts.Pins, genName(n))) }
		switch {
		case len(aside) > 0:
			half++
		case len(all) < 2:
		case state(all[0]) == 0:
			removing++
		case links[state(all[0])] == 1:
			split++
		default:
			two++
		}
		if w.passes(t, attackerIP) {
			t.Fatalf("round %d: killed, and a packet of the blocked source came through", round)
		}
		s := openTest(t, opts)
		if w.passes(t, attackerIP) {
			t.Fatalf("round %d: opened, and a packet of the blocked source came through", round)
		}
		wantOnePinned(t, opts.Pins)
		for i := range set {
			if _, ok, err := s.Lookup(sourcePrefix(uint32(i))); !ok || err != nil {
				t.Fatalf("round %d: block %d of %d is lost: %v", round, i, set, err)
			}
		}
		if n := len(collect(t, s)); n < set+1 || n > set+2 { // one may be set and not said
			t.Fatalf("round %d: %d rules, want %d", round, n, set+1)
		}
		if links, err = linksByState(opts.Pins); err != nil || links[stateID(s.pin(""))] != 2 {
			t.Fatalf("round %d: of the two links %d run on the generation: %v", round, links[stateID(s.pin(""))], err)
		}
		must(t, s.Attach())
		if at, err := s.Attachments(); err != nil || len(at) != 2 {
			t.Fatalf("round %d: attached: %+v: %v", round, at, err)
		}
		gens = s.gen.n
		s.Close()
		if t.Failed() {
			t.FailNow()
		}
	}
	t.Logf("%s: %d rounds, %d blocks, %d generations of %d steps; kills left a half made generation %d times, two whole ones %d times, "+
		"the links on one each %d times, a half removed one %d times", mode, rounds, set, gens, steps, half, two, split, removing)
	if rounds >= 100 && (half == 0 || two == 0 || split == 0 || removing == 0) {
		t.Error("the kills have missed something")
	}
}
