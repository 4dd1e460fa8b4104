package gossip

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// testKey returns a key that is the same in every run.
func testKey(n byte) string {
	k := make([]byte, keySize)
	for i := range k {
		k[i] = n + byte(i)
	}
	return encodeKey(k)
}

func keyFile(t testing.TB, keys ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cluster.key")
	if err := os.WriteFile(path, []byte(strings.Join(keys, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// host gives each node of a test an address of its own: the kernel answers for all of 127/8.
var hosts atomic.Uint32

func newHost() string {
	n := hosts.Add(1)
	return fmt.Sprintf("127.77.%d.%d", 1+n/200, 1+n%200)
}

// quick makes membership decide in a second or two instead of half a minute.
var quick = tuning{rejoin: 300 * time.Millisecond, settle: 100 * time.Millisecond, probe: 300 * time.Millisecond, dead: time.Second}

// node is a member with an ear.
type node struct {
	*Cluster
	t testing.TB

	mu      sync.Mutex
	got     map[string]int // peer + ": " + message
	digests map[string]string
	events  []string
}

// open starts a node; its options may be changed by f.
func open(t testing.TB, name string, key string, f func(*Options)) *node {
	t.Helper()
	n := &node{t: t, got: map[string]int{}, digests: map[string]string{}}
	o := Options{
		Name: name, Bind: newHost() + ":0", Version: "test", tune: quick,
		Handler: func(p string, m []byte) { n.note(func() { n.got[p+": "+string(m)]++ }) },
		Digest:  func() []byte { return []byte("digest of " + name) },
		Merge:   func(p string, m []byte) { n.note(func() { n.digests[p] = string(m) }) },
		Join:    func(p string) { n.note(func() { n.events = append(n.events, "join "+p) }) },
		Leave: func(p string, left bool) {
			n.note(func() { n.events = append(n.events, fmt.Sprintf("leave %s %v", p, left)) })
		},
	}
	if key != "" {
		o.KeyFile = keyFile(t, key)
	}
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", name)
	}
	if f != nil {
		f(&o)
	}
	c, err := Open(o)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	n.Cluster = c
	t.Cleanup(func() { c.Close() })
	return n
}

func (n *node) note(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) count(what string) (c int) {
	n.note(func() { c = n.got[what] })
	return c
}

func (n *node) saw(event string) (ok bool) {
	n.note(func() { ok = slices.Contains(n.events, event) })
	return ok
}

func (n *node) member(name string) Member {
	for _, m := range n.Members() {
		if m.Name == name {
			return m
		}
	}
	return Member{}
}

// until waits for a condition. The bound is for a machine that is very busy; it says nothing about speed.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	end := time.Now().Add(40 * time.Second)
	for !ok() {
		if time.Now().After(end) {
			t.Fatalf("after 40 s still not: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func meet(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		until(t, n.Name()+" sees all", func() bool { return len(n.Peers()) == len(nodes)-1 })
	}
}

// cluster starts n nodes that know the first.
func cluster(t testing.TB, key string, names ...string) (list []*node) {
	t.Helper()
	for _, name := range names {
		list = append(list, open(t, name, key, func(o *Options) {
			if len(list) > 0 {
				o.Peers = []string{list[0].Addr().String()}
			}
		}))
	}
	meet(t, list...)
	return list
}

func TestTalk(t *testing.T) {
	for _, key := range []string{testKey(1), ""} {
		nodes := cluster(t, key, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		if !a.Send("b", []byte("hello")) || !b.Send("a", []byte("hello")) {
			t.Fatal("not sent")
		}
		until(t, "b hears a", func() bool { return b.count("a: hello") == 1 })
		until(t, "a hears b", func() bool { return a.count("b: hello") == 1 })
		big := strings.Repeat("x", MaxStream-binaryMax)
		for i := range 500 {
			if !a.Stream("b", fmt.Appendf(nil, "number %d", i)) {
				t.Fatal("not taken")
			}
		}
		if !a.Stream("b", []byte(big)) {
			t.Fatal("the largest message was not taken")
		}
		until(t, "b has the largest", func() bool { return b.count("a: "+big) == 1 })
		for i := range 500 {
			if n := b.count(fmt.Sprintf("a: number %d", i)); n != 1 {
				t.Fatalf("message %d came %d times", i, n)
			}
		}
		if s := a.Counters(); s.SentMessages != 501 || s.SentBatches > 400 {
			t.Errorf("not packed: %+v", s)
		}
		long := strings.Repeat("p", MaxPacket)
		if !a.Send("b", []byte(long)) {
			t.Error("the largest packet was not sent")
		}
		until(t, "b has the largest packet", func() bool { return b.count("a: "+long) == 1 })
		for what, ok := range map[string]bool{
			"to itself": a.Send("a", []byte("x")), "to nobody": a.Send("nobody", []byte("x")), "too long": a.Send("b", make([]byte, MaxPacket+1)),
			"empty": a.Send("b", nil), "stream to nobody": a.Stream("nobody", []byte("x")), "stream too long": a.Stream("b", make([]byte, MaxStream)),
		} {
			if ok {
				t.Errorf("%s was taken", what)
			}
		}
		// Both sides of a join have exchanged digests; who the others were is up to the minute's push/pull.
		until(t, "digests", func() (ok bool) {
			a.note(func() { ok = a.digests["b"] == "digest of b" && a.digests["c"] == "digest of c" })
			return ok
		})
		for _, n := range nodes {
			if s := n.Counters(); s.Refused+s.Malformed+s.InboxFull+s.Unsent > 0 {
				t.Errorf("%s: %+v", n.Name(), s)
			}
		}
		m := a.member("b")
		if m.State != Alive || m.Version != "test" || m.Wire != 1 || m.Addr != b.Addr().String() || (m.Key == "") != (key == "") || m.Since.IsZero() {
			t.Errorf("%+v", m)
		}
		if !a.member("a").Self {
			t.Error("a does not know itself")
		}
	}
}

// TestLeaveAndKill: who says good-bye has left, who does not has failed, and is found again when it comes back, even
// at another address.
func TestLeaveAndKill(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	if err := b.Leave(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	b.Close()
	until(t, "a knows that b left", func() bool { return a.member("b").State == Left })
	until(t, "c knows that b left", func() bool { return c.member("b").State == Left && c.saw("leave b true") })

	at := c.Addr().String()
	c.Close()
	until(t, "a finds c failed", func() bool { return a.member("c").State == Failed && a.saw("leave c false") })
	until(t, "memberlist forgets c", func() bool { return a.list.NumMembers() == 1 })
	if a.Send("c", []byte("x")) || a.Stream("c", []byte("x")) {
		t.Error("sent to a dead member")
	}
	// c comes back and knows nobody: a must call it.
	c = open(t, "c", testKey(1), func(o *Options) { o.Bind = at })
	meet(t, a, c)
	// b comes back elsewhere.
	b = open(t, "b", testKey(1), func(o *Options) { o.Peers = []string{at} })
	meet(t, a, b, c)
	until(t, "a has b's new address", func() bool { return a.member("b").Addr == b.Addr().String() })
}

// TestKilledMoves: a host that died comes back with another address under its name.
func TestKilledMoves(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b")
	a := nodes[0]
	nodes[1].Close()
	until(t, "b failed", func() bool { return a.member("b").State == Failed })
	b := open(t, "b", testKey(1), func(o *Options) { o.Peers = []string{a.Addr().String()} })
	meet(t, a, b)
	if got := a.member("b").Addr; got != b.Addr().String() {
		t.Errorf("a has b at %s", got)
	}
	if !a.Send("b", []byte("moved")) {
		t.Error("not sent")
	}
	until(t, "it arrives", func() bool { return b.count("a: moved") == 1 })
}

// TestSeedsRestarted: all that the others know by the config were killed at once and come back before anybody missed them,
// knowing nobody but each other. Nothing is heard of for an hour but pings, so only who pings can bring them in.
func TestSeedsRestarted(t *testing.T) {
	seeds := []string{newHost() + ":7946", newHost() + ":7946"}
	start := func(name, at string) *node {
		return open(t, name, testKey(1), func(o *Options) {
			o.Bind, o.Peers = at, seeds
			o.tune = tuning{pushPull: time.Hour}
		})
	}
	nodes := []*node{start("a", seeds[0]), start("b", seeds[1]), start("c", newHost()+":7946"), start("d", newHost()+":7946")}
	meet(t, nodes...)
	for i := range seeds {
		nodes[i].Close()
	}
	for i, at := range seeds {
		nodes[i] = start(nodes[i].Name(), at)
	}
	meet(t, nodes...)
	for _, n := range nodes[2:] {
		for i := range seeds {
			until(t, n.Name()+" has heard of the new session", func() bool {
				n.table.mu.Lock()
				defer n.table.mu.Unlock()
				return n.table.members[nodes[i].Name()].meta.session == nodes[i].session
			})
		}
	}
}

// TestRestartedIsBounded: who answers every ping in another session is called once in a while, and who is no member is not.
func TestRestartedIsBounded(t *testing.T) {
	table := newTable("self", Wire{1, 1}, time.Now)
	liar := memberlist.Node{Name: "liar", Addr: []byte{192, 0, 2, 7}, Port: 7946, Meta: meta{session: session{1}, wire: Wire{1, 1}}.append(nil)}
	table.put(&liar, Alive)
	if table.answered("liar", session{1}) || table.answered("liar", session{}) || table.answered("nobody", session{2}) || table.answered("self", session{2}) {
		t.Error("nothing changed, or it is no member")
	}
	calls := 0
	for i := range 1000 {
		if !table.answered("liar", session{2, byte(i), byte(i >> 8)}) {
			t.Fatal("the change was not noticed")
		}
		calls += len(table.restarted(time.Hour))
	}
	if calls != 1 {
		t.Errorf("%d calls", calls)
	}
	if n := len(table.restarted(0)); n != 1 {
		t.Errorf("%d calls after the while", n)
	}
	liar.Meta = meta{session: session{2, 231, 3}, wire: Wire{1, 1}}.append(nil)
	table.put(&liar, Alive)
	table.put(&liar, Failed)
	if list := table.restarted(0); len(list) != 0 {
		t.Errorf("called though it told of its session, or is gone: %v", list)
	}
}

// TestNames: peers are names that are looked up again and again; we ourselves among them are not called.
func TestNames(t *testing.T) {
	var mu sync.Mutex
	dns := map[string][]netip.Addr{}
	lookup := func(_ context.Context, host string) ([]netip.Addr, error) {
		mu.Lock()
		defer mu.Unlock()
		if a := dns[host]; a != nil {
			return a, nil
		}
		return nil, fmt.Errorf("no such host: %s", host)
	}
	ha, hb := newHost(), newHost()
	// Both listen at the same port, as nodes do; a chooses it.
	start := func(name, host, port string) *node {
		return open(t, name, testKey(1), func(o *Options) {
			o.Bind, o.tune.lookup, o.Peers = host+":"+port, lookup, []string{"mx1.example.org", "mx2.example.org"}
		})
	}
	a := start("a", ha, "0")
	until(t, "a says what it cannot find", func() bool {
		m := a.member("mx2.example.org")
		return m.State == Unreached && strings.Contains(m.Problem, "no such host")
	})
	mu.Lock()
	dns["mx1.example.org"] = []netip.Addr{netip.MustParseAddr(ha)}
	dns["mx2.example.org"] = []netip.Addr{netip.MustParseAddr(hb)}
	mu.Unlock()
	until(t, "a's own name is no missing peer", func() bool { return a.member("mx1.example.org").State == "" })
	until(t, "nobody is there yet", func() bool { return strings.Contains(a.member("mx2.example.org").Problem, "refused") })
	b := start("b", hb, fmt.Sprint(a.Addr().Port()))
	meet(t, a, b)
	until(t, "all names are members", func() bool { return len(a.Members()) == 2 && len(b.Members()) == 2 })

	// b moves, and the name with it.
	b.Close()
	until(t, "b failed", func() bool { return a.member("b").State == Failed })
	hb = newHost()
	mu.Lock()
	dns["mx2.example.org"] = []netip.Addr{netip.MustParseAddr(hb)}
	mu.Unlock()
	b = open(t, "b", testKey(1), func(o *Options) { o.Bind = fmt.Sprintf("%s:%d", hb, a.Addr().Port()) }) // it knows nobody
	meet(t, a, b)
}

// TestWrongKey: who has no key of ours gets nothing in and nothing out, whoever calls whom.
func TestWrongKey(t *testing.T) {
	var answered atomic.Uint64
	for _, c := range []struct {
		name, key string
		f         func(*Options)
	}{
		{"other", testKey(99), nil},
		{"none", "", nil},
		{"label", testKey(1), func(o *Options) { o.Label = "another" }},
	} {
		nodes := cluster(t, testKey(1), "a", "b")
		a, b := nodes[0], nodes[1]
		wrong := open(t, "wrong", c.key, func(o *Options) {
			o.Peers = []string{a.Addr().String(), b.Addr().String()}
			if c.f != nil {
				c.f(o)
			}
			o.tune.tap = func([]byte) { answered.Add(1) }
		})
		// And we call it.
		third := open(t, "third", testKey(1), func(o *Options) { o.Peers = []string{a.Addr().String(), wrong.Addr().String()} })
		meet(t, a, b, third)
		before := a.Counters().Refused
		until(t, c.name+": a refuses", func() bool { return a.Counters().Refused > before+2 })
		until(t, c.name+": wrong sees that it is refused", func() bool {
			return strings.Contains(wrong.member(a.Addr().String()).Problem, "hung up") || c.key == "" && wrong.member(a.Addr().String()).Problem != ""
		})
		until(t, c.name+": third cannot reach it", func() bool { return third.member(wrong.Addr().String()).Problem != "" })
		if n := answered.Load(); n != 0 || len(wrong.Peers()) != 0 || wrong.Counters().Packets+wrong.Counters().Streams > 0 {
			t.Errorf("%s: %d packets came out; it sees %v", c.name, n, wrong.Peers())
		}
		for _, n := range []*node{a, b, third} {
			if m := n.member("wrong"); m.Name != "" {
				t.Errorf("%s: %s lists %+v", c.name, n.Name(), m)
			}
		}
		if len(wrong.digests)+len(wrong.got) > 0 {
			t.Errorf("%s: it got %v %v", c.name, wrong.digests, wrong.got)
		}
	}
}

// TestClock: everybody learns how far a wrong clock is off, and the one with it that all others differ.
func TestClock(t *testing.T) {
	const off = 45 * time.Second
	a := open(t, "a", testKey(1), nil)
	var nodes = []*node{a}
	for _, name := range []string{"b", "c", "wrong"} {
		nodes = append(nodes, open(t, name, testKey(1), func(o *Options) {
			o.Peers = []string{a.Addr().String()}
			if name == "wrong" {
				o.Now = func() time.Time { return time.Now().Add(off) }
			}
		}))
	}
	meet(t, nodes...)
	near := func(got, want time.Duration) bool { return (got - want).Abs() < 5*time.Second }
	until(t, "a knows wrong's offset", func() bool {
		m := a.member("wrong")
		return m.ClockOffset != nil && near(time.Duration(*m.ClockOffset*1e9), off) && m.RTT != nil && *m.RTT >= 0
	})
	until(t, "wrong knows that it is ahead of all", func() bool {
		d, n := nodes[3].ClockOffset()
		return n == 3 && near(d, off)
	})
	until(t, "a is right by the median", func() bool {
		d, n := a.ClockOffset()
		return n == 3 && near(d, 0)
	})
}

// TestWireVersions: nodes that share no version see each other and do not talk.
func TestWireVersions(t *testing.T) {
	a := open(t, "a", testKey(1), func(o *Options) { o.Wire = Wire{1, 2} })
	b := open(t, "b", testKey(1), func(o *Options) { o.Wire, o.Peers = Wire{2, 3}, []string{a.Addr().String()} })
	c := open(t, "c", testKey(1), func(o *Options) { o.Wire, o.Peers = Wire{3, 3}, []string{a.Addr().String()} })
	until(t, "all see all", func() bool { return len(a.Members()) == 3 && len(b.Members()) == 3 && len(c.Members()) == 3 })
	for _, w := range []struct {
		n    *node
		peer string
		want uint32
	}{{a, "b", 2}, {b, "a", 2}, {b, "c", 3}, {c, "b", 3}, {a, "c", 0}, {c, "a", 0}} {
		if got := w.n.WireVersion(w.peer); got != w.want {
			t.Errorf("%s speaks %d with %s, want %d", w.n.Name(), got, w.peer, w.want)
		}
	}
	if m := a.member("c"); m.State != Incompatible || m.Problem == "" {
		t.Errorf("%+v", m)
	}
	if a.Send("c", []byte("x")) || slices.Contains(a.Peers(), "c") {
		t.Error("a talks to c")
	}
	// A message that comes all the same is not understood, and not handed on.
	n, _ := b.table.node("a")
	before := a.Counters().Stranger
	if err := c.list.SendBestEffort(&n, append(appendEnvelope(nil, kindOne, "c"), "x"...)); err != nil {
		t.Fatal(err)
	}
	until(t, "a refuses it", func() bool { return a.Counters().Stranger == before+1 })
	if a.count("c: x") != 0 {
		t.Error("it was handed on")
	}
}

// TestSameName: two hosts that think they are the same one are named to the operator.
func TestSameName(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b")
	twin := open(t, "b", testKey(1), func(o *Options) { o.Peers = []string{nodes[0].Addr().String()} })
	until(t, "a says so", func() bool {
		m := nodes[0].member("b")
		return strings.Contains(m.Problem, "same name") && strings.Contains(m.Problem, twin.Addr().String())
	})
	if !nodes[0].Send("b", []byte("to the first")) {
		t.Error("the first b is cut off")
	}
	until(t, "the first b still hears", func() bool { return nodes[1].count("a: to the first") == 1 })
}

func TestRefusesToOpen(t *testing.T) {
	loose := keyFile(t, testKey(1))
	if err := os.Chmod(loose, 0o644); err != nil {
		t.Fatal(err)
	}
	used := open(t, "used", testKey(1), nil)
	good := keyFile(t, testKey(1))
	for _, c := range []struct {
		says string
		o    Options
	}{
		{"no key", Options{Name: "a", Bind: "0.0.0.0:0"}},
		{"no key", Options{Name: "a", Bind: "[::]:0"}},
		{"no key", Options{Name: "a", Bind: "192.0.2.1:0"}},
		{"no key", Options{Name: "a", Bind: "127.0.0.1:0", Advertise: "192.0.2.1"}},
		{"name", Options{Name: "", Bind: "127.0.0.1:0"}},
		{"name", Options{Name: "a b", Bind: "127.0.0.1:0"}},
		{"name", Options{Name: strings.Repeat("x", 65), Bind: "127.0.0.1:0"}},
		{"label", Options{Name: "a", Bind: "127.0.0.1:0", Label: strings.Repeat("x", 33)}},
		{"address to listen", Options{Name: "a", Bind: "mx1:7946", KeyFile: good}},
		{"mode 0644", Options{Name: "a", Bind: "127.0.0.1:0", KeyFile: loose}},
		{"no such file", Options{Name: "a", Bind: "127.0.0.1:0", KeyFile: loose + ".none"}},
		{"no peer", Options{Name: "a", Bind: "127.0.0.1:0", KeyFile: good, Peers: []string{"mx2:0"}}},
		{"no peer", Options{Name: "a", Bind: "127.0.0.1:0", KeyFile: good, Peers: []string{"a/b"}}},
		{"in use", Options{Name: "a", Bind: used.Addr().String(), KeyFile: good}},
		{"address of a host", Options{Name: "a", Bind: "127.0.0.1:0", KeyFile: good, Advertise: "0.0.0.0"}},
	} {
		n, err := Open(c.o)
		if err == nil {
			n.Close()
			t.Errorf("%+v opened", c.o)
			continue
		}
		var h interface{ HintText() string }
		if !strings.Contains(err.Error(), c.says) || !errors.As(err, &h) || h.HintText() == "" {
			t.Errorf("%+v: %v", c.o, err)
		}
	}
}

// TestClose: closing twice, while others talk, leaving after closing.
func TestClose(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b")
	a, b := nodes[0], nodes[1]
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				select {
				case <-stop:
					return
				default:
					a.Stream("b", make([]byte, 1000))
					b.Stream("a", make([]byte, 1000))
					a.Members()
				}
			}
		}()
	}
	until(t, "traffic flows", func() bool { return a.Counters().SentBatches > 5 })
	for range 2 {
		if err := b.Close(); err != nil && !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	}
	if err := b.Leave(time.Second); err != nil {
		t.Error(err)
	}
	close(stop)
	wg.Wait()
}
