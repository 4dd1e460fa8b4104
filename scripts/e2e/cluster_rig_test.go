//go:build linux

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// longPatience bounds waits for what memberlist does at its own pace: to miss a node, and to find it again.
const longPatience = 2 * time.Minute

// long says that the long variants of the stories are wanted: make soak.
var long = os.Getenv("MXSHIELD_TEST_LONG") == "1"

// cluster is several mail hosts on one segment with an agent each. Attackers and honest senders reach all of them.
type cluster struct {
	t     *testing.T
	top   *lab.Topology
	dir   string
	key   string // the one all began with
	used  int    // see next
	nodes []*rig
}

// newCluster makes n nodes in one cluster, of which the first mail run Postfix, and room for as many more. All have met on
// return.
func newCluster(t *testing.T, n, mail, more int, config string) *cluster {
	t.Helper()
	if mail > 0 && postfix == "" {
		t.Skip("skipped: " + why)
	}
	l := newLab(t)
	top, err := l.Cluster(n + more)
	if err != nil {
		t.Fatal(err)
	}
	if err := top.Net.StartNoNames(t.Context(), lab.Router4); err != nil {
		t.Fatal(err)
	}
	config += fmt.Sprintf("dns: {resolvers: [%s]}\n", lab.Router4)
	c := &cluster{t: t, top: top, dir: l.Dir(), key: newKey(t)}
	for i := range n {
		if i < mail {
			c.add(c.key, "", config).startPostfix(lab.Options{Hostname: fmt.Sprintf("mx%d.example.org", i+1)})
		} else {
			c.add(c.key, "", noLog+config)
		}
	}
	c.startAll(c.nodes...)
	c.meet(c.nodes...)
	return c
}

// startAll starts agents at the same time.
func (c *cluster) startAll(nodes ...*rig) {
	c.t.Helper()
	for _, r := range nodes {
		r.launch()
	}
	for _, r := range nodes {
		r.answers()
	}
}

// newKey is a line for a key file.
func newKey(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(binaries, "mxshieldctl"), "cluster", "key", "new").Output()
	if err != nil {
		t.Fatalf("mxshieldctl cluster key new: %v", err)
	}
	return string(out)
}

// add makes the next mail host's rig, with a key file of its own unless key is empty, and more in the config's cluster
// section. Its agent is not started.
func (c *cluster) add(key, more, config string) *rig {
	c.t.Helper()
	i := len(c.nodes)
	dir := filepath.Join(c.dir, c.top.MX[i].Name())
	if err := os.Mkdir(dir, 0o755); err != nil {
		c.t.Fatal(err)
	}
	section := fmt.Sprintf("cluster:\n  name: %s\n  peers: [%s, %s]\n", c.top.MX[i].Name(), lab.MXAddr4(0), lab.MXAddr4(1))
	if key != "" {
		path := filepath.Join(dir, "cluster.key")
		if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
			c.t.Fatal(err)
		}
		section += "  key_file: " + path + "\n"
	}
	section += more
	r := rigOn(c.t, c.top, i, dir, section+config)
	c.nodes = append(c.nodes, r)
	return r
}

// run tells a part of the story: failures in it are the part's.
func (c *cluster) run(name string, part func()) {
	c.t.Run(name, func(t *testing.T) {
		outer := c.t
		set := func(t *testing.T) {
			c.t = t
			for _, r := range c.nodes {
				r.t = t
			}
		}
		set(t)
		defer set(outer)
		part()
	})
}

// eventually waits longer than a rig does.
func (c *cluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for end := time.Now().Add(longPatience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("waited %s in vain until %s", longPatience, what)
		}
	}
}

// meet waits until each of the nodes counts all others of them as alive, and nobody else.
func (c *cluster) meet(nodes ...*rig) {
	c.t.Helper()
	for _, r := range nodes {
		c.eventually(fmt.Sprintf("%s has met %d others", r.host.Name(), len(nodes)-1), func() bool {
			k := r.peek().Cluster
			return k != nil && k.Alive == len(nodes)-1
		})
	}
}

// peek is the status without the ctl: cheap, and zero if the agent does not answer.
func (r *rig) peek() (s control.Status) {
	_ = r.client().Get(r.t.Context(), "/v1/status", nil, &s)
	return s
}

// entries are all entries of the node's table that are told to others, ended ones included, in a fixed order, without
// what stays on a host.
func (r *rig) entries() (all []block.Entry) {
	r.t.Helper()
	for _, kind := range []block.Kind{block.Block, block.Allow, block.Clear, block.Disallow} {
		var l control.List
		err := r.client().Get(r.t.Context(), "/v1/list", url.Values{"kind": {kind.String()}, "all": {"1"}, "limit": {"0"}}, &l)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range l.Entries {
			if e.Entry.Seq == 0 {
				continue
			}
			e.Entry.Reason = ""
			all = append(all, e.Entry)
		}
	}
	slices.SortFunc(all, func(a, b block.Entry) int {
		return cmp.Or(cmp.Compare(a.Origin, b.Origin), cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Seq, b.Seq))
	})
	return all
}

// equal waits until the nodes have the same entries, and returns them.
func (c *cluster) equal(list ...*rig) (all []block.Entry) {
	c.t.Helper()
	differ := ""
	ok := func() bool {
		all = list[0].entries()
		for _, r := range list[1:] {
			if other := r.entries(); !slices.Equal(all, other) {
				differ = difference(list[0].host.Name(), all, r.host.Name(), other)
				return false
			}
		}
		return true
	}
	for end := time.Now().Add(longPatience); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			c.t.Fatalf("after %s the nodes still differ: %s", longPatience, differ)
		}
	}
	return all
}

func difference(an string, a []block.Entry, bn string, b []block.Entry) string {
	text := fmt.Sprintf("%s has %d entries, %s %d", an, len(a), bn, len(b))
	for _, e := range a {
		if !slices.Contains(b, e) {
			return text + fmt.Sprintf("; of %s %s lacks or has otherwise: %+v", an, bn, e)
		}
	}
	for _, e := range b {
		if !slices.Contains(a, e) {
			return text + fmt.Sprintf("; of %s %s lacks or has otherwise: %+v", bn, an, e)
		}
	}
	return text
}

// port25 is the node's port 25 in the family of an address.
func (r *rig) port25(from netip.Addr) netip.AddrPort {
	i := slices.Index(r.top.MX, r.host)
	if from.Is6() {
		return netip.AddrPortFrom(lab.MXAddr6(i), 25)
	}
	return netip.AddrPortFrom(lab.MXAddr4(i), 25)
}

// drops says whether the node's XDP drops packets of an address: a connect gets no answer, not even a refusal.
func (r *rig) drops(from netip.Addr) bool { return r.timesOut(from, r.port25(from)) }

// doors waits until each of the nodes drops just those of the addresses that are to be dropped.
func (c *cluster) doors(nodes []*rig, drop bool, list ...netip.Addr) {
	c.t.Helper()
	want := map[netip.Addr]bool{}
	for _, a := range list {
		want[a] = drop
	}
	c.allDoors(nodes, want)
}

func (c *cluster) allDoors(nodes []*rig, want map[netip.Addr]bool) {
	c.t.Helper()
	type door struct {
		r *rig
		a netip.Addr
	}
	var left []door
	for a := range want {
		for _, r := range nodes {
			left = append(left, door{r, a})
		}
	}
	for end := time.Now().Add(longPatience); ; {
		var mu sync.Mutex
		var not []door
		var all sync.WaitGroup
		for _, d := range left {
			all.Go(func() {
				if d.r.drops(d.a) != want[d.a] {
					mu.Lock()
					defer mu.Unlock()
					not = append(not, d)
				}
			})
		}
		all.Wait()
		if left = not; len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			d := left[0]
			c.t.Fatalf("waited %s in vain until %s drops %s: %v (and %d others)", longPatience, d.r.host.Name(), d.a, want[d.a], len(left)-1)
		}
	}
}

// knocks knocks at the nodes until stop is called, which returns the knocks at each.
func (c *cluster) knocks(from netip.Addr, nodes ...*rig) (stop func() [][]lab.Knock) {
	ctx, cancel := context.WithCancel(c.t.Context())
	type result struct {
		i   int
		all []lab.Knock
		err error
	}
	results := make(chan result, len(nodes))
	for i, r := range nodes {
		go func() {
			all, err := lab.KnockUntil(ctx, c.top.Net, from, r.port25(from), 5*time.Millisecond)
			results <- result{i, all, err}
		}()
	}
	return func() [][]lab.Knock {
		c.t.Helper()
		cancel()
		out := make([][]lab.Knock, len(nodes))
		for range nodes {
			r := <-results
			if r.err != nil {
				c.t.Fatal(r.err)
			}
			out[r.i] = r.all
		}
		return out
	}
}
