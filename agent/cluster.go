package main

import (
	"context"
	cryptorand "crypto/rand"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/gossip/replica"
)

// This file wires the cluster: what this node says goes from the table to the others, and what they say into the table
// and on into the kernel. Package gossip knows who is there and carries bytes, package replica knows what to tell whom.
//
// The shield never waits for any of it: the agent filters with its own state file before it opens the cluster's port,
// and goes on alone if that cannot be opened.
//
// Locks: the replica calls welcome with its lock held, which takes d.mu. So nobody may call the replica with d.mu held,
// but for Share and Elsewhere, which take neither.

const (
	// replicaKey is where the state file has what the replica knows.
	replicaKey = "replica"

	clusterBeat  = 250 * time.Millisecond // of Tick
	clusterPack  = 25 * time.Millisecond  // what is said within this goes out together
	clusterRetry = 5 * time.Second        // until the port can be opened
	clusterBye   = time.Second            // for the word that we go

	// clusterRoom is how large datagrams are, in bytes: with all that stands around them they fit IPv6's least MTU and
	// tunnels, whatever the lengths of names.
	clusterRoom = 1080

	// maxLearned bounds the audit records of what other nodes' people did, and maxLearnedLines the log lines, per second.
	maxLearned, maxLearnedLines = 200, 20
)

// clusterParts are the daemon's parts that speak to other nodes. A node that is alone has none.
type clusterParts struct {
	replica      *replica.Node
	net          *clusterNet
	alive        atomic.Int32  // other nodes that are, a moment ago
	utter        chan struct{} // something was said
	asking       asking
	cleared      []netip.Prefix // guarded by mu: wide clears of other nodes, whose scores are to be reset
	learnedAt    int64          // guarded by mu: the second that learned counts
	learnedN     int
	savedReplica []byte // guarded by commitMu: what of the replica is on disk
}

// clusterNet is the replica's way to the others. Before the port is open there are none.
type clusterNet struct {
	to atomic.Pointer[gossip.Cluster]
}

func (n *clusterNet) Peers() []string {
	if c := n.to.Load(); c != nil {
		return c.Peers()
	}
	return nil
}

func (n *clusterNet) Send(peer string, msg []byte) bool {
	c := n.to.Load()
	return c != nil && c.Send(peer, msg)
}

func (n *clusterNet) Stream(peer string, msg []byte) bool {
	c := n.to.Load()
	return c != nil && c.Stream(peer, msg)
}

func (n *clusterNet) Behind() time.Duration {
	if c := n.to.Load(); c != nil {
		return c.Behind()
	}
	return 0
}

func (n *clusterNet) WireVersion(peer string) uint32 {
	if c := n.to.Load(); c != nil {
		return c.WireVersion(peer)
	}
	return 0
}

// checkClusterKey refuses a cluster that has no key where it needs one.
func checkClusterKey(c *config.Cluster) error {
	if c.KeyFile == "" {
		return nil // the config has seen to it that only loopback is bound
	}
	err := gossip.CheckKeyFile(c.KeyFile)
	if err == nil {
		return nil
	}
	return &config.Error{File: c.KeyFile, Text: err.Error(), Hint: control.Hint(err)}
}

// openCluster makes the replica, which begins to number what this node says. It opens no port yet.
func (d *daemon) openCluster() error {
	saved := d.pending[replicaKey]
	delete(d.pending, replicaKey)
	if d.cfg.Cluster == nil {
		if saved != nil {
			d.setExtraLocked(replicaKey, nil) // it will not be true any more when there is a cluster again
		}
		return nil
	}
	var seed [16]byte
	_, _ = cryptorand.Read(seed[:]) // never fails
	d.net, d.utter = &clusterNet{}, make(chan struct{}, 1)
	d.asking.init()
	o := replica.Options{
		Node: d.node, Clock: time.Now, Net: d.net, Table: d.table, State: saved, Datagram: clusterRoom,
		Rand:     rand.New(rand.NewPCG(binary.BigEndian.Uint64(seed[:]), binary.BigEndian.Uint64(seed[8:]))),
		Accepted: d.welcome, Senders: d.senderCount, Learned: d.learned, Heard: d.heard, Evidence: d.evidenceOptions(),
	}
	var err error
	if d.replica, err = replica.New(o); err != nil && saved != nil {
		d.warn("replica", "what the state file knows of the other nodes cannot be read: it is asked for again, and nodes that were suspended are not any more", err)
		o.State = nil
		d.replica, err = replica.New(o)
	}
	return err
}

// forgetReplicaLocked drops what the state file says of the replica.
func (d *daemon) forgetReplicaLocked() {
	if _, ok := d.pending[replicaKey]; ok {
		delete(d.pending, replicaKey)
		d.setExtraLocked(replicaKey, nil)
	}
}

// replicaState returns what of the replica belongs into the next commit, and whether that is news. It must be asked
// before the table is drained for that commit.
func (d *daemon) replicaState() ([]byte, bool) {
	if d.replica == nil {
		return nil, false
	}
	state := d.replica.State()
	return state, !slices.Equal(state, d.savedReplica)
}

// said has the others told soon.
func (d *daemon) said() {
	select {
	case d.utter <- struct{}{}:
	default: // they will be, or there are none
	}
}

// beatCluster tells the others what this node says, and keeps up with them.
func (d *daemon) beatCluster(ctx context.Context) error {
	if d.replica == nil {
		return nil
	}
	beat := time.NewTicker(clusterBeat)
	defer beat.Stop()
	var pack <-chan time.Time
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			d.alive.Store(int32(len(d.net.Peers())))
			d.replica.Tick(time.Now())
		case <-d.utter:
			// The first block of an attack goes out at once, those after it in packs.
			if pack == nil {
				pack = time.After(max(0, clusterPack-time.Since(last)))
			}
		case <-pack:
			pack, last = nil, time.Now()
			d.replica.Flush(last)
		}
	}
}

// keepGossip opens the cluster's port, as soon as that is possible, and closes it when ctx ends.
func (d *daemon) keepGossip(ctx context.Context) error {
	if d.replica == nil {
		return nil
	}
	c := d.cfg.Cluster
	o := gossip.Options{
		Name: c.Name, Bind: c.Bind, Advertise: c.Advertise, Peers: c.Peers, KeyFile: c.KeyFile, Label: c.Label,
		Version: control.Version(), Log: d.log, Wire: gossip.Wire{Min: replica.WireMin, Max: replica.WireVersion},
		Handler: d.replica.Receive, Digest: d.replica.Digest, Merge: d.replica.Receive,
		Join: func(string) { d.peersChanged() }, Leave: func(string, bool) { d.peersChanged() },
	}
	g, err := gossip.Open(o)
	for err != nil {
		if !errors.Is(err, gossip.ErrNetwork) {
			return err
		}
		d.warn("cluster", "not in the cluster, the shield works alone and it is tried again", err)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(clusterRetry):
		}
		g, err = gossip.Open(o)
	}
	d.setWarning("cluster", "", nil)
	d.net.to.Store(g)
	d.log.Info("in the cluster", "node", c.Name, "address", g.Addr(), "peers", len(c.Peers))
	d.peersChanged()
	<-ctx.Done()
	d.replica.Flush(time.Now())
	if err := g.Leave(clusterBye); err != nil {
		d.log.Debug("say good-bye to the cluster", "error", err)
	}
	return g.Close()
}

// peersChanged has the never-block rules made anew.
func (d *daemon) peersChanged() {
	select {
	case d.ranges <- struct{}{}:
	default:
	}
}

// peerRules keeps the other nodes from being blocked.
func (d *daemon) peerRules() (list []block.Never) {
	if d.replica == nil {
		return nil
	}
	add := func(a netip.Addr, name string) {
		list = append(list, block.Never{Prefix: netip.PrefixFrom(a, a.BitLen()), Rule: "cluster peer " + name})
	}
	if g := d.net.to.Load(); g != nil {
		for a, name := range g.Addrs() {
			add(a, name)
		}
		return list
	}
	for _, p := range d.cfg.Cluster.Peers {
		if a, ok := gossip.PeerAddr(p); ok {
			add(a, p)
		}
	}
	return list
}

// muchMail is how many accepted messages, halved every week, are more than chance.
const muchMail = 20

// welcome says how welcome mail of a source was here lately: not, if it offends here too.
func (d *daemon) welcome(p netip.Prefix) replica.Standing {
	d.mu.Lock()
	defer d.mu.Unlock()
	a, ok := d.scorer.Lookup(p.Addr(), time.Now())
	switch {
	case !ok || a.Evidence.Accepted == 0 || a.Evidence.Score >= a.Evidence.Threshold/4:
		return replica.NoMail
	case a.Evidence.Accepted >= muchMail:
		return replica.MuchMail
	}
	return replica.SomeMail
}

// senderCount is how many sources have mail to their credit.
func (d *daemon) senderCount() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.scorer.Senders()
}

// learned does what an entry of another node means here besides its place in the table.
func (d *daemon) learned(list []block.Entry) {
	now := time.Now()
	suspended := d.table.Suspended()
	d.mu.Lock()
	defer d.mu.Unlock()
	if s := now.Unix(); s != d.learnedAt {
		d.learnedAt, d.learnedN = s, 0
	}
	for i := range list {
		e := &list[i]
		if slices.Contains(suspended, e.Origin) {
			continue
		}
		switch e.Kind {
		case block.Block:
			if d.ender != nil && d.off == nil {
				d.ender.Fresh(e.Prefix)
			}
		case block.Clear:
			// Old evidence must not block again what a person has unblocked.
			if d.table.ClearedAt(e.Prefix) >= e.Stamp {
				d.clearedLocked(e.Prefix)
			}
		case block.OriginClear:
			if e.Target == d.node {
				d.cleared = []netip.Prefix{everything4, everything6}
			}
		}
		if e.Automatic() {
			continue
		}
		if d.learnedN++; d.learnedN <= maxLearned {
			d.batch.Audit = append(d.batch.Audit, learnedAudit(e, now))
		}
		if d.learnedN <= maxLearnedLines {
			d.log.Info("by another node", "node", e.Origin, "action", actionOf(e), "prefix", e.Prefix, "target", e.Target)
		}
	}
}

var everything4, everything6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")

// maxCleared bounds what waits for one walk over the scores.
const maxCleared = 10_000

func (d *daemon) clearedLocked(p netip.Prefix) {
	if q := d.prefixOf(p.Addr()); p.Bits() >= q.Bits() {
		d.scorer.Reset(p)
	} else if len(d.cleared) < maxCleared {
		d.cleared = append(d.cleared, p)
	} else {
		d.cleared = []netip.Prefix{everything4, everything6}
	}
}

// resetCleared resets the scores under wide clears of other nodes, in one walk.
func (d *daemon) resetCleared() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.cleared) > 0 {
		d.scorer.ResetMany(d.cleared)
		d.cleared = nil
	}
}

func actionOf(e *block.Entry) string {
	switch e.Kind {
	case block.Clear:
		return "unblock"
	case block.OriginClear:
		return "origin clear"
	}
	return e.Kind.String()
}

func learnedAudit(e *block.Entry, now time.Time) store.Audit {
	a := store.Audit{Time: now.UTC(), Who: "node " + e.Origin, Action: actionOf(e), Prefix: e.Prefix}
	if e.Target != "" {
		a.Detail = "all that node " + e.Target + " said"
	}
	return a
}
