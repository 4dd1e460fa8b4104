//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// TestClusterKilled: kill -9 of any two nodes, with the word of one of them hardly spoken. They go on dropping while they
// are dead, come back knowing what they said, and learn what they missed.
func TestClusterKilled(t *testing.T) {
	if !long {
		t.Skip("skipped: the story of five nodes kills two; MXSHIELD_TEST_LONG=1 (make soak) kills each two")
	}
	c := newCluster(t, 5, 0, 0, "")
	for i := range c.nodes {
		for j := range i {
			c.run(fmt.Sprintf("mx%d and mx%d", j+1, i+1), func() { c.killed(j, i) })
		}
	}
}

var fresh = lab.Sources(lab.Attack4, 60_000)[1000:] // that no story has used; see next

// next hands out addresses that were in no story yet, in networks of their own.
func (c *cluster) next(n int) (list []netip.Addr) {
	for range n {
		list = append(list, fresh[c.used*311%len(fresh)])
		c.used++
	}
	return list
}

func (c *cluster) killed(i, j int) {
	dead := []*rig{c.nodes[i], c.nodes[j]}
	var alive []*rig
	for _, r := range c.nodes {
		if !slices.Contains(dead, r) {
			alive = append(alive, r)
		}
	}
	src := c.next(5)
	known, freed, lastWord, missed, kept := src[0], src[1], src[2], src[3], src[4]
	for _, a := range []netip.Addr{known, freed} {
		dead[0].must("block", a.String())
	}
	dead[1].must("block", kept.String())
	c.doors(c.nodes, true, known, freed, kept)
	dead[0].must("block", lastWord.String()) // acknowledged, so it is not lost; whether the others have heard it yet is open
	for _, r := range dead {
		r.kill()
	}
	alive[0].must("unblock", freed.String())
	alive[1].must("block", missed.String())
	c.allDoors(dead, map[netip.Addr]bool{known: true, freed: true, kept: true, missed: false})
	c.doors(dead[:1], true, lastWord)
	c.startAll(dead...)
	c.meet(c.nodes...)
	c.equal(c.nodes...)
	c.allDoors(c.nodes, map[netip.Addr]bool{known: true, freed: false, lastWord: true, missed: true, kept: true})
}

// TestClusterKeys: the key is changed while all nodes talk. Nothing is lost, nobody is refused, and what has only the old
// key is out afterwards.
func TestClusterKeys(t *testing.T) {
	if !long {
		t.Skip("skipped: an old key may go half a minute after its last use; MXSHIELD_TEST_LONG=1 (make soak) waits for it")
	}
	c := newCluster(t, 5, 0, 0, "")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	// Each node says something all the time.
	said := make([][]netip.Addr, len(c.nodes))
	var talkers sync.WaitGroup
	for i, r := range c.nodes {
		talkers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				a := netip.AddrFrom4([4]byte{20, byte(i), byte(n >> 8), byte(n)})
				var done control.Done
				err := r.client().Post(t.Context(), "/v1/block", control.BlockRequest{Prefix: a.String()}, &done)
				if err != nil {
					t.Errorf("%s: block %s: %v", r.host.Name(), a, err)
					return
				}
				said[i] = append(said[i], a)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	refusedBefore := c.refused()
	old := ask[control.Keys](c.nodes[0], "cluster", "key", "list").Keys[0].ID
	file := filepath.Join(c.dir, "new.key")
	if err := os.WriteFile(file, []byte(newKey(t)), 0o600); err != nil {
		t.Fatal(err)
	}
	c.nodes[0].must("cluster", "key", "add", file)
	var fresh string
	for _, k := range ask[control.Keys](c.nodes[0], "cluster", "key", "list").Keys {
		if k.ID != old {
			fresh = k.ID
		}
	}
	if fresh == "" {
		t.Fatal("the added key is not listed")
	}
	if out, code := c.nodes[0].ctl("cluster", "key", "use", fresh); code == 0 || !strings.Contains(out, "mx5") {
		t.Errorf("a key that nobody else has can be used: exit %d\n%s", code, out)
	}
	for _, r := range c.nodes[1:] {
		r.must("cluster", "key", "add", file)
	}
	step := func(do, id string) {
		for _, r := range c.nodes {
			c.eventually(fmt.Sprintf("%s may %s %s", r.host.Name(), do, id), func() bool {
				_, code := r.ctl("cluster", "key", do, id)
				return code == 0
			})
		}
	}
	step("use", fresh)
	step("remove", old)
	stop()
	talkers.Wait()
	if now := c.refused(); !slices.Equal(now, refusedBefore) {
		t.Errorf("messages were refused during the change: %v, before %v", now, refusedBefore)
	}
	all := c.equal(c.nodes...)
	n := 0
	for i, list := range said {
		for _, a := range list {
			n++
			if !slices.ContainsFunc(all, func(e block.Entry) bool {
				return e.Origin == c.nodes[i].host.Name() && e.Prefix == netip.PrefixFrom(a, 32) && e.Kind == block.Block
			}) {
				t.Errorf("lost: %s of %s", a, c.nodes[i].host.Name())
			}
		}
	}
	t.Logf("%d blocks, none lost", n)
	for _, r := range c.nodes {
		keys := ask[control.Keys](r, "cluster", "key", "list").Keys
		if len(keys) != 1 || keys[0].ID != fresh || !keys[0].Used || len(keys[0].UsedBy) != len(c.nodes) {
			t.Errorf("%s: %+v", r.host.Name(), keys)
		}
	}
	// The files have it too; one that was not changed has its node left out.
	c.nodes[1].kill()
	c.nodes[1].start()
	c.meet(c.nodes...)
	c.nodes[4].kill()
	if err := os.WriteFile(filepath.Join(c.nodes[4].dir, "cluster.key"), []byte(c.key), 0o600); err != nil {
		t.Fatal(err)
	}
	c.nodes[4].start()
	c.eventually("the one with the old key is missed", func() bool { return c.nodes[0].peek().Cluster.Alive == 3 })
	if k := c.nodes[4].peek().Cluster; k == nil || k.Alive != 0 {
		t.Errorf("it is not alone: %+v", k)
	}
}

// refused are the counters of messages that no key opened.
func (c *cluster) refused() (list []uint64) {
	c.t.Helper()
	for _, r := range c.nodes {
		list = append(list, ask[control.Peers](r, "peers").Counters["refused"])
	}
	return list
}

// strangers: a host with another key, and one without a key, get nothing in and nothing out.
func (c *cluster) strangers() {
	t := c.t
	members := slices.Clone(c.nodes)
	src := c.next(4)
	wrong := c.add(newKey(t), "", noLog)
	none := c.add("", "  bind: 127.0.0.1:7946\n", noLog)
	defer func() {
		for _, r := range []*rig{wrong, none} {
			r.kill()
		}
		c.nodes = members
	}()
	before := c.equal(members...)
	c.startAll(wrong, none)
	wrong.must("block", src[0].String())
	none.must("block", src[1].String())
	members[len(members)-1].must("block", src[2].String())
	c.doors(members, true, src[2])
	c.eventually("the one with another key was refused by both hosts that it was told to call", func() bool {
		return ask[control.Peers](members[0], "peers").Counters["refused"] > 0 && ask[control.Peers](members[1], "peers").Counters["refused"] > 0
	})
	members[0].must("block", src[3].String())
	c.doors(members, true, src[3])
	all := c.equal(members...)
	if len(all) != len(before)+2 || slices.ContainsFunc(all, func(e block.Entry) bool {
		return e.Origin == wrong.host.Name() || e.Origin == none.host.Name()
	}) {
		t.Errorf("the members have %d entries, before %d: %+v", len(all), len(before), all[len(all)-1])
	}
	for i, r := range []*rig{wrong, none} {
		e := r.entries()
		if k := r.peek().Cluster; len(e) != 1 || e[0].Origin != r.host.Name() || k == nil || k.Alive != 0 || k.Learned != 0 {
			t.Errorf("%s knows something of the cluster: %+v %+v", r.host.Name(), k, e)
		}
		c.allDoors([]*rig{r}, map[netip.Addr]bool{src[i]: true, src[1-i]: false, src[2]: false, src[3]: false})
	}
	c.doors(members, false, src[0], src[1])
	for _, r := range members {
		for _, m := range ask[control.Peers](r, "peers").Members {
			if m.Name == wrong.host.Name() || m.Name == none.host.Name() {
				t.Errorf("%s lists %+v", r.host.Name(), m)
			}
		}
	}
	// Without a key and not on loopback it does not even start.
	none.kill()
	none.configure("cluster: {name: mx9, peers: [192.0.2.25]}\n" + noLog)
	none.fails("no key", 2, "key_file is missing")
}
