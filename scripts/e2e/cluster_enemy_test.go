//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
	"github.com/mxshield/mxshield/scripts/seeds"
)

// trap is a recipient nobody has a reason to write to.
const trap = "apotheker@example.org"

// TestClusterEnemies: who listens on the wire learns no mailbox; who throws noise, and what he recorded, at the nodes
// changes nothing; and a node that lies is undone with one command.
func TestClusterEnemies(t *testing.T) {
	noise, flood := 20_000, 20_000
	if long {
		noise, flood = 1_000_000, 300_000
	}
	c := newCluster(t, 3, 2, 1, "traps: ["+trap+"]\n")
	var w wire
	c.run("nobody is named", func() { w = c.nobodyIsNamed() })
	c.run("garbage", func() { c.garbage(noise, w) })
	c.run("flood", func() { c.flood(flood) })
	if long {
		c.run("idle", c.idle)
	}
}

// idle measures what a minute costs in which nobody has anything to say, after all that.
func (c *cluster) idle() {
	const minute = time.Minute
	t := c.t
	capture, err := c.top.Net.Capture(gossipPort)
	if err != nil {
		t.Fatal(err)
	}
	cpu := map[*rig]time.Duration{}
	for _, r := range c.nodes {
		cpu[r] = -r.cpu()
	}
	time.Sleep(minute)
	for _, r := range c.nodes {
		cpu[r] += r.cpu()
	}
	all, err := capture.Stop()
	if err != nil {
		t.Fatal(err)
	}
	sent := map[netip.Addr]int{}
	for _, s := range all {
		head := 14 + 20 + 8
		if s.Proto == unix.IPPROTO_TCP {
			head += 12
		}
		sent[s.From.Addr()] += head + len(s.Payload)
	}
	for _, r := range c.nodes {
		rate := sent[r.port25(lab.Honest4).Addr()] / int(minute.Seconds())
		t.Logf("%s, idle with %d entries: it sends %d bytes/s, headers included, and takes %.2f%% of a core", r.host.Name(), r.peek().Blocks.Entries, rate, 100*cpu[r].Seconds()/minute.Seconds())
		if rate > 3000 {
			t.Errorf("%d bytes/s, 3000 are promised", rate)
		}
	}
}

// cpu is the processor time that the agent has taken.
func (r *rig) cpu() time.Duration {
	r.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.agent.Process.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// peers asks without the ctl.
func (r *rig) peers() (p control.Peers) {
	r.t.Helper()
	if err := r.client().Get(r.t.Context(), "/v1/peers", nil, &p); err != nil {
		r.t.Fatalf("%s: %v", r.host.Name(), err)
	}
	return p
}

// steady is what no stranger's packet may change in what a node says of the others.
func (r *rig) steady() (list []control.Peer) {
	for _, m := range r.peers().Members {
		list = append(list, control.Peer{Name: m.Name, Self: m.Self, State: m.State, Since: m.Since, Addr: m.Addr, Version: m.Version, Key: m.Key, Suspended: m.Suspended, Problem: m.Problem})
	}
	return list
}

// size is what the agent's process has in memory, its peak since the last fresh, and how many files it has open.
func (r *rig) size() (now, peak, files int) {
	r.t.Helper()
	proc := fmt.Sprintf("/proc/%d", r.agent.Process.Pid)
	b, err := os.ReadFile(proc + "/status")
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.Atoi(f[1])
		switch f[0] {
		case "VmRSS:":
			now = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	open, err := os.ReadDir(proc + "/fd")
	if err != nil {
		r.t.Fatal(err)
	}
	return now, peak, len(open)
}

// fresh forgets the peak.
func (r *rig) fresh() {
	r.t.Helper()
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", r.agent.Process.Pid), []byte("5"), 0); err != nil {
		r.t.Fatal(err)
	}
}

// garbage throws noise at the port of every node, by packets in anybody's name and by streams: bytes at random, what was
// recorded of the nodes' own talk, cut, changed, mixed, and sent again. Meanwhile they talk.
func (c *cluster) garbage(total int, recorded wire) {
	t := c.t
	if len(recorded.packets) < 50 || len(recorded.calls) < 2 {
		t.Fatalf("%d datagrams and %d calls are too little to play with", len(recorded.packets), len(recorded.calls))
	}
	before := c.equal(c.nodes...)
	type state struct {
		steady        any
		memory, files int
		seen          uint64
	}
	was := map[*rig]state{}
	seen := func(r *rig) (n uint64) {
		p := r.peers()
		for _, k := range []string{"packets", "refused", "malformed"} {
			n += p.Counters[k]
		}
		return n
	}
	for _, r := range c.nodes {
		r.fresh()
		memory, _, files := r.size()
		was[r] = state{fmt.Sprint(r.steady()), memory, files, seen(r)}
	}

	seed := seeds.Of(t)
	var sent, streams int
	done := make(chan struct{})
	go func() {
		defer close(done)
		sent, streams = c.throw(rand.New(rand.NewPCG(seed, 2)), total, recorded, seen)
	}()
	made := 0
	for over := false; !over; {
		a := c.next(2)
		r := c.nodes[made%len(c.nodes)]
		r.must("block", a[0].String())
		r.must("block", a[1].String())
		c.doors(c.nodes, true, a...)
		c.nodes[(made+1)%len(c.nodes)].must("unblock", a[1].String())
		c.doors(c.nodes, false, a[1])
		c.doors(c.nodes, true, a[0])
		made++
		for _, r := range c.nodes {
			if err := r.agent.Process.Signal(zero); err != nil {
				t.Fatalf("the agent of %s is gone: %v", r.host.Name(), err)
			}
		}
		select {
		case <-done:
			over = true
		default:
		}
	}
	after := c.equal(c.nodes...)
	if len(after) != len(before)+3*made {
		t.Errorf("%d entries before, %d after, of which %d were made", len(before), len(after), 3*made)
	}
	for _, e := range before {
		if !slices.Contains(after, e) {
			t.Errorf("lost or changed: %+v", e)
		}
	}
	got := uint64(0)
	for _, r := range c.nodes {
		got += seen(r) - was[r].seen
		if now := fmt.Sprint(r.steady()); now != was[r].steady {
			t.Errorf("%s: the members were\n%s\nand are\n%s", r.host.Name(), was[r].steady, now)
		}
		p := r.peers()
		if p.Muted != "" || len(p.Warnings) > 0 {
			t.Errorf("%s: %s %q", r.host.Name(), p.Muted, p.Warnings)
		}
		r.eventually("it closes the streams", func() bool { _, _, files := r.size(); return files <= was[r].files+5 })
		_, peak, _ := r.size()
		t.Logf("%s: %d MB before, %d MB at most; %d packets refused, %d malformed, %d streams were too many", r.host.Name(), was[r].memory>>20, peak>>20,
			p.Counters["refused"], p.Counters["malformed"], p.Counters["busy"])
		if peak > was[r].memory+64<<20 {
			t.Errorf("%s had %d MB in memory, before %d", r.host.Name(), peak>>20, was[r].memory>>20)
		}
	}
	t.Logf("%d packets and %d streams; %d were seen; meanwhile %d blocks and %d unblocks spread", sent, streams, got, 2*made, made)
	if got < uint64(sent)*9/10 {
		t.Errorf("of %d packets only %d were looked at", sent, got)
	}
}

// throw throws, at a pace at which most of it is looked at: what overflows a socket's buffer shows nothing.
func (c *cluster) throw(r *rand.Rand, total int, recorded wire, seen func(*rig) uint64) (sent, streams int) {
	t, ctx := c.t, c.t.Context()
	forger, err := c.top.Net.Forge()
	if err != nil {
		t.Error(err)
		return 0, 0
	}
	defer forger.Close()
	var names []netip.AddrPort
	for i := range c.top.MX { // a member's, and one's that could be
		names = append(names, netip.AddrPortFrom(lab.MXAddr4(i), gossipPort))
	}
	names = append(names, netip.AddrPortFrom(lab.Honest4, gossipPort), netip.MustParseAddrPort("198.18.66.6:6666"), netip.MustParseAddrPort("10.1.2.3:53"))
	noise := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	// broken says that no node may take it, or answer.
	spoil := func(list [][]byte) (b []byte, broken bool) {
		const longest = 1400
		p := list[r.IntN(len(list))]
		b = bytes.Clone(p)
		at := r.IntN(len(b))
		switch r.IntN(8) {
		case 0:
			return noise(1 + r.IntN(longest)), true
		case 1: // with the label before it
			return append(b[:min(len(b), 10)], noise(1+r.IntN(longest-10))...), true
		case 2:
			return b[:at], true
		case 3:
			b[at] ^= 1 << r.IntN(8)
			return b, true
		case 4: // the beginning of one and the end of another
			o := list[r.IntN(len(list))]
			b = append(b[:at], o[min(at, len(o)):]...)
			b = b[:min(len(b), longest)]
			return b, !bytes.HasPrefix(b, p) && !bytes.HasPrefix(b, o)
		case 5:
			b = append(b[:min(len(b), longest-1)], byte(r.Uint32()))
			return b, !bytes.HasPrefix(b, p) // nobody reads what stands after a frame
		}
		return b, false // sent again as it was
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	slots := make(chan struct{}, 8)
	call := func(n *rig, b []byte, broken bool) {
		defer func() { <-slots }()
		conn, err := c.top.Net.Dial(ctx, lab.Sources(lab.Attack4, 1)[0], netip.AddrPortFrom(n.port25(lab.Honest4).Addr(), gossipPort))
		if err != nil {
			return // its backlog is full of us
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, _ = conn.Write(b) // it may have hung up on the first bytes
		_ = conn.(*net.TCPConn).CloseWrite()
		if answer, _ := io.ReadAll(conn); broken && len(answer) > 0 {
			t.Errorf("%s answered a broken call with %d bytes", n.host.Name(), len(answer))
		}
	}
	base, to := map[*rig]uint64{}, map[*rig]uint64{}
	for _, n := range c.nodes {
		base[n] = seen(n)
	}
	for sent < total {
		for range 400 {
			for i, n := range c.nodes {
				b, _ := spoil(recorded.packets)
				from := names[(i+1+r.IntN(len(names)-1))%len(names)] // what comes in its own name the kernel drops
				if err := forger.Send(from, names[i], b); err != nil {
					t.Errorf("send %d bytes from %s to %s: %v", len(b), from, names[i], err)
					return sent, streams
				}
				to[n]++
				sent++
			}
		}
		for range 4 {
			b, broken := spoil(recorded.calls)
			slots <- struct{}{}
			n := c.nodes[r.IntN(len(c.nodes))]
			calls.Go(func() { call(n, b, broken) })
			streams++
		}
		for _, n := range c.nodes {
			for end := time.Now().Add(2 * time.Second); seen(n)-base[n]+200 < to[n] && time.Now().Before(end); {
				time.Sleep(2 * time.Millisecond)
			}
			base[n], to[n] = seen(n), 0
		}
	}
	return sent, streams
}

// flood: a node blocks hosts by the hundred thousand, among them those who deliver here. Where they deliver it is suspended
// and nobody notices; one command cleans up everywhere.
func (c *cluster) flood(total int) {
	t, ctx := c.t, c.t.Context()
	mail, all := c.nodes[:2], slices.Clone(c.nodes)
	var hosts []netip.Addr
	for i := range 15 {
		hosts = append(hosts, netip.AddrFrom4([4]byte{203, 0, 113, byte(50 + i)}))
	}
	deliver := func(r *rig, a netip.Addr) {
		t.Helper()
		if h := lab.Honest(ctx, c.top.Net, a, r.port25(a), lab.HonestOptions{Messages: 3}); h.Accepted != 3 {
			t.Errorf("the mail of %s to %s: %+v", a, r.host.Name(), h.Result)
		}
	}
	for _, r := range mail {
		for _, a := range hosts {
			deliver(r, a)
		}
		r.awaitLines()
	}
	blocks := func(r *rig) int { return r.peek().Blocks.Blocks }
	before := map[*rig]int{}
	for _, r := range all {
		before[r] = blocks(r)
	}
	said := len(c.equal(all...))

	l := c.startLiar(total, hosts)
	c.meet4(all...)
	l.tell("flood")
	for _, r := range mail {
		c.eventually(r.host.Name()+" suspends the liar", func() bool { return peerOf(r, l.name).Suspended })
	}
	rounds := 0
	for there := false; !there; rounds++ { // while it goes on
		there = !slices.ContainsFunc(all, func(r *rig) bool {
			p := peerOf(r, l.name)
			return p.Entries < total || p.Lag > 0
		})
		for _, r := range mail {
			deliver(r, hosts[rounds%len(hosts)])
		}
	}
	l.hears("flooded")
	for _, r := range mail {
		for _, a := range hosts {
			deliver(r, a)
		}
		if n := blocks(r); n != before[r] {
			t.Errorf("%s enforces %d blocks, before %d", r.host.Name(), n, before[r])
		}
	}
	// The one without mail has no reason to doubt, but a limit.
	idle := all[2]
	c.doors([]*rig{idle}, true, bogus(0))
	if n := blocks(idle) - before[idle]; n < min(total, 50_000)/2 || n > 100_000 {
		t.Errorf("%s enforces %d blocks of the liar's %d", idle.host.Name(), n, total)
	}
	t.Logf("%d bogus blocks: %d enforced where no mail goes, none where it does; %d rounds of mail went through meanwhile", total, blocks(idle)-before[idle], rounds)
	// The others are heard.
	a := c.next(1)[0]
	lab.Dictionary(ctx, c.top.Net, a, mail[0].port25(a), lab.DictionaryOptions{Talk: brief, Recipients: 40})
	c.doors(all, true, a)

	idle.must("origin", "clear", l.name)
	for _, r := range all {
		c.eventually(r.host.Name()+" enforces nothing of the liar's, resumed or not", func() bool {
			r.must("origin", "resume", l.name)
			return blocks(r) == before[r]+1
		})
	}
	c.doors(all, false, append(hosts, bogus(0), bogus(100))...)
	for _, r := range mail {
		deliver(r, hosts[0])
	}
	l.stop()
	c.eventually("what is left is equal", func() bool { return len(all[0].entries()) >= said })
}

func peerOf(r *rig, name string) control.Peer {
	p := r.peers()
	if i := slices.IndexFunc(p.Members, func(m control.Peer) bool { return m.Name == name }); i >= 0 {
		return p.Members[i]
	}
	return control.Peer{}
}

// meet4 waits until each of the nodes has also met the liar.
func (c *cluster) meet4(nodes ...*rig) {
	c.t.Helper()
	for _, r := range nodes {
		c.eventually(r.host.Name()+" has met the liar", func() bool { k := r.peek().Cluster; return k != nil && k.Alive == len(nodes) })
	}
}

// liarProcess is the liar's process, which is this program again, in the namespace of the mail host after the nodes'.
type liarProcess struct {
	c    *cluster
	name string
	in   io.WriteCloser
	out  *bufio.Scanner
	stop func()
}

func (c *cluster) startLiar(flood int, hosts []netip.Addr) *liarProcess {
	c.t.Helper()
	i := len(c.nodes)
	key := filepath.Join(c.dir, "liar.key")
	if err := os.WriteFile(key, []byte(c.key), 0o600); err != nil {
		c.t.Fatal(err)
	}
	l := &liarProcess{c: c, name: c.top.MX[i].Name()}
	config := liar{Name: l.name, Bind: netip.AddrPortFrom(lab.MXAddr4(i), gossipPort).String(), Peer: lab.MXAddr4(0).String(), KeyFile: key, Others: len(c.nodes), Flood: flood, Hosts: hosts}
	cmd := c.top.MX[i].Command(os.Args[0])
	cmd.Env = append(os.Environ(), liarEnv+"="+config.String())
	cmd.Stderr = os.Stderr
	var err error
	if l.in, err = cmd.StdinPipe(); err != nil {
		c.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	l.out = bufio.NewScanner(out)
	l.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	c.t.Cleanup(l.stop)
	l.hears("met")
	return l
}

func (l *liarProcess) tell(word string) {
	l.c.t.Helper()
	if _, err := fmt.Fprintln(l.in, word); err != nil {
		l.c.t.Fatal(err)
	}
}

func (l *liarProcess) hears(word string) {
	l.c.t.Helper()
	if !l.out.Scan() || l.out.Text() != word {
		l.c.t.Fatalf("the liar says %q, not %q: %v", l.out.Text(), word, l.out.Err())
	}
}
