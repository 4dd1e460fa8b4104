//go:build linux

package gossip_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/scripts/lab"
)

// A node of these tests is a process of its own in a namespace of its own: this test binary again. It reads commands,
// one per line, and answers each with one line of JSON.
func TestMain(m *testing.M) {
	if o := os.Getenv("MXSHIELD_TEST_NODE"); o != "" {
		if err := serveNode(o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

type nodeOptions struct {
	Name, Bind, KeyFile string
	Peers               []string
}

type nodeAnswer struct {
	OK       bool
	Members  []gossip.Member
	Peers    []string
	Got      map[string]int
	Counters gossip.Counters
	Addr     string
	Room     int
}

func serveNode(options string) error {
	var no nodeOptions
	if err := json.Unmarshal([]byte(options), &no); err != nil {
		return err
	}
	var mu sync.Mutex
	got := map[string]int{}
	o := gossip.Options{Name: no.Name, Bind: no.Bind, KeyFile: no.KeyFile, Peers: no.Peers, Handler: func(p string, m []byte) {
		mu.Lock()
		defer mu.Unlock()
		got[p+": "+string(m)]++
	}}
	gossip.Quicken(&o)
	c, err := gossip.Open(o)
	if err != nil {
		return err
	}
	defer c.Close()
	in := bufio.NewScanner(os.Stdin)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		a := nodeAnswer{OK: true}
		switch f := strings.SplitN(in.Text(), " ", 3); {
		case f[0] == "leave":
			a.OK = c.Leave(10*time.Second) == nil
		case f[0] == "send" && len(f) == 3:
			a.OK = c.Send(f[1], []byte(f[2]))
		case f[0] == "stream" && len(f) == 3:
			a.OK = c.Stream(f[1], []byte(f[2]))
		}
		mu.Lock()
		a.Members, a.Peers, a.Got, a.Counters, a.Addr, a.Room = c.Members(), c.Peers(), got, c.Counters(), c.Addr().String(), c.PacketRoom()
		err := out.Encode(a)
		mu.Unlock()
		if err != nil {
			return err
		}
	}
	return in.Err()
}

type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	in   *os.File
	out  *json.Decoder
}

func start(t *testing.T, h *lab.Host, o nodeOptions) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	options, _ := json.Marshal(o)
	cmd := h.Command(self, "-test.run", "^$")
	cmd.Env = append(os.Environ(), "MXSHIELD_TEST_NODE="+string(options))
	cmd.Stderr = os.Stderr
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = r
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	p := &process{t, o.Name, cmd, w, json.NewDecoder(out)}
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9. It may be called again.
func (p *process) kill() {
	p.in.Close()
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

func (p *process) ask(format string, args ...any) (a nodeAnswer) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	if err := p.out.Decode(&a); err != nil {
		p.t.Fatalf("%s: %v", p.name, err)
	}
	return a
}

func (p *process) state(of string) gossip.State {
	for _, m := range p.ask("look").Members {
		if m.Name == of {
			return m.State
		}
	}
	return ""
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("after 60 s still not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func meet(t *testing.T, nodes ...*process) {
	t.Helper()
	var names []string
	for _, n := range nodes {
		names = append(names, n.name)
	}
	slices.Sort(names)
	for _, n := range nodes {
		want := slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == n.name })
		until(t, fmt.Sprintf("%s sees %v", n.name, want), func() bool { return slices.Equal(n.ask("look").Peers, want) })
	}
}

// TestNamespaces: nodes on hosts of their own, bound to all addresses, through a partition, kill -9, a host with the
// wrong key and one that leaves.
func TestNamespaces(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	top, err := l.Cluster(6)
	if err != nil {
		t.Fatal(err)
	}
	keys := make([]string, 2)
	for i := range keys {
		keys[i] = filepath.Join(l.Dir(), fmt.Sprintf("key%d", i))
		if err := os.WriteFile(keys[i], []byte(gossip.FixedKey(byte(1+100*i))+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	seeds := []string{lab.MXAddr4(0).String(), lab.MXAddr4(1).String()}
	open := func(i int, peers []string) *process {
		return start(t, top.MX[i], nodeOptions{Name: fmt.Sprintf("mx%d", i+1), Bind: "0.0.0.0:7946", KeyFile: keys[0], Peers: peers})
	}
	var nodes []*process
	for i := range 5 {
		nodes = append(nodes, open(i, seeds))
	}
	meet(t, nodes...)
	for i, n := range nodes {
		if got := n.ask("look").Addr; got != lab.MXAddr4(i).String()+":7946" {
			t.Errorf("%s thinks it is reached at %s", n.name, got)
		}
	}
	round := 0
	talk := func(nodes ...*process) {
		t.Helper()
		round++
		for _, from := range nodes {
			for _, to := range nodes {
				if from == to {
					continue
				}
				s, p := fmt.Sprintf("stream %d", round), fmt.Sprintf("packet %d", round)
				until(t, from.name+" streams to "+to.name, func() bool { return from.ask("stream %s %s", to.name, s).OK })
				until(t, to.name+" hears "+from.name, func() bool { return to.ask("look").Got[from.name+": "+s] > 0 })
				until(t, to.name+" gets a packet of "+from.name, func() bool { // one may get lost, ten do not
					from.ask("send %s %s", to.name, p)
					return to.ask("look").Got[from.name+": "+p] > 0
				})
			}
		}
	}
	talk(nodes...)

	// A sixth host with another key calls all, and one of us is told to call it.
	var all []string
	for i := range 6 {
		all = append(all, lab.MXAddr4(i).String())
	}
	wrong := start(t, top.MX[5], nodeOptions{Name: "mx6", Bind: "0.0.0.0:7946", KeyFile: keys[1], Peers: all})
	until(t, "it is refused by all", func() bool {
		return !slices.ContainsFunc(nodes, func(n *process) bool { return n.ask("look").Counters.Refused == 0 })
	})
	if a := wrong.ask("look"); len(a.Peers) != 0 || len(a.Got) != 0 || a.Counters.Packets+a.Counters.Streams+a.Counters.Refused > 0 {
		t.Errorf("it got something: %+v", a)
	}
	for _, n := range nodes {
		if s := n.state("mx6"); s != "" {
			t.Errorf("%s lists it as %s", n.name, s)
		}
	}
	wrong.kill()

	// Two on one side, three on the other, until everybody has forgotten everybody else. Packets to the other side go to
	// a hardware address that nobody has: nothing is refused, all of it vanishes.
	cut := func(f func(*netlink.Neigh) error) {
		for i := range 5 {
			for j := range 5 {
				if (i < 2) == (j < 2) {
					continue
				}
				err := top.MX[i].Do(func() error {
					l, err := netlink.LinkByName("eth0")
					if err != nil {
						return err
					}
					return f(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT,
						IP: lab.MXAddr4(j).AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x99}})
				})
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	cut(netlink.NeighSet)
	for i, n := range nodes {
		for j, o := range nodes {
			if (i < 2) != (j < 2) {
				until(t, n.name+" misses "+o.name, func() bool { return n.state(o.name) == gossip.Failed })
			}
		}
	}
	meet(t, nodes[:2]...)
	meet(t, nodes[2:]...)
	talk(nodes[:2]...)
	talk(nodes[2:]...)
	// memberlist gossips to the dead for a while, and would mend a short partition itself.
	gone := time.Now()
	until(t, "the dead are forgotten", func() bool { return time.Since(gone) > 2*gossip.Quick.Dead })
	cut(netlink.NeighDel)
	meet(t, nodes...)
	talk(nodes...)

	// kill -9 of two. They come back knowing nobody, and are called.
	for _, i := range []int{0, 3} {
		nodes[i].kill()
	}
	until(t, "two are missed", func() bool { return nodes[1].state("mx1") == gossip.Failed && nodes[1].state("mx4") == gossip.Failed })
	nodes[0], nodes[3] = open(0, nil), open(3, nil)
	meet(t, nodes...)
	talk(nodes...)

	if !nodes[4].ask("leave").OK {
		t.Error("could not leave")
	}
	nodes[4].kill()
	for _, n := range nodes[:4] {
		until(t, n.name+" knows that mx5 left", func() bool { return n.state("mx5") == gossip.Left })
	}
	for _, n := range nodes[:4] {
		n.kill()
	}

	// The same over IPv6.
	six := []*process{}
	for i := range 2 {
		six = append(six, start(t, top.MX[i], nodeOptions{
			Name: fmt.Sprintf("mx%d", i+1), Bind: "[::]:7946", KeyFile: keys[0], Peers: []string{lab.MXAddr6(0).String(), lab.MXAddr6(1).String()},
		}))
	}
	meet(t, six...)
	talk(six...)
	a := six[0].ask("look")
	if at, err := netip.ParseAddrPort(a.Addr); err != nil || at.Addr() != lab.MXAddr6(0) || a.Room >= gossip.MaxPacket {
		t.Errorf("it is at %s, with room for %d bytes", a.Addr, a.Room)
	}
}
