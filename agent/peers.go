package main

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/gossip/replica"
)

// This file is what the daemon answers about the other nodes (control.ClusterAgent).

// clockWarn is how far apart clocks may be before people are told.
const clockWarn = 10 * time.Second

// Peers answers peers.
func (d *daemon) Peers() control.Peers {
	p := control.Peers{Node: d.node, Clustered: d.replica != nil, Members: []control.Peer{}, Counters: map[string]uint64{}}
	if d.replica == nil {
		return p
	}
	st := d.replica.Stats()
	p.Muted = st.Muted
	var offset time.Duration
	if g := d.net.to.Load(); g != nil {
		p.Addr, p.Encrypted = g.Addr().String(), d.cfg.Cluster.KeyFile != ""
		offset, _ = g.ClockOffset()
		for _, m := range g.Members() {
			p.Members = append(p.Members, control.Peer{
				Name: m.Name, Self: m.Self, State: string(m.State), Since: m.Since.UTC(), Addr: m.Addr, Version: m.Version,
				Wire: m.Wire, WireMin: m.WireMin, WireMax: m.WireMax, Key: m.Key, Keys: m.Keys,
				ClockOffset: m.ClockOffset, RTT: m.RTT, Queued: m.Queued, Problem: m.Problem,
			})
		}
		gossipCounters(p.Counters, g.Counters())
	}
	p.ClockOffset = offset.Seconds()
	replicaCounters(p.Counters, &st)
	for _, o := range st.Origins {
		m := peerNamed(&p, o.Origin)
		m.Entries += o.Live
		m.Lag += o.Lag
		m.Suspended = o.Suspended
	}
	for _, name := range d.table.Suspended() {
		peerNamed(&p, name).Suspended = true
	}
	for i := range p.Members {
		if m := &p.Members[i]; !m.Self {
			m.OverBudget = d.table.OverBudget(m.Name)
		}
	}
	warnings := map[string]string{}
	d.clusterWarnings(&p, &st, warnings)
	for _, k := range slices.Sorted(maps.Keys(warnings)) {
		p.Warnings = append(p.Warnings, warnings[k])
	}
	return p
}

// peerNamed finds a node, or adds one that is no member any more.
func peerNamed(p *control.Peers, name string) *control.Peer {
	i := slices.IndexFunc(p.Members, func(m control.Peer) bool { return m.Name == name && m.State != string(gossip.Unreached) })
	if i < 0 {
		i = len(p.Members)
		p.Members = append(p.Members, control.Peer{Name: name, Self: name == p.Node, State: "gone"})
		if name == p.Node {
			p.Members[i].State = string(gossip.Alive)
		}
	}
	return &p.Members[i]
}

func gossipCounters(to map[string]uint64, c gossip.Counters) {
	for k, n := range map[string]uint64{
		"packets": c.Packets, "streams": c.Streams, "sent_packets": c.SentPackets, "sent_messages": c.SentMessages, "sent_streams": c.SentBatches,
		"refused": c.Refused, "malformed": c.Malformed, "busy": c.Busy, "stranger": c.Stranger, "inbox_full": c.InboxFull,
		"queue_full": c.QueueFull, "unsent": c.Unsent, "send_errors": c.SendErrors,
	} {
		to[k] = n
	}
}

func replicaCounters(to map[string]uint64, s *replica.Stats) {
	for k, n := range map[string]uint64{
		"entries_merged": s.Merged, "entries_early": s.Early, "entries_refused": s.Refused, "bursts_cut": s.Dropped,
		"unknown_version": s.UnknownVersion, "unknown_kind": s.UnknownKind, "unknown_records": s.UnknownRecords, "messages_malformed": s.Malformed,
		"pulls": s.Pulls, "pull_timeouts": s.Timeouts, "conflicts": s.Conflicts, "suspensions": s.Suspensions,
		"evidence": uint64(s.Evidence), "evidence_dropped": s.EvidenceDropped,
	} {
		to[k] = n
	}
}

// clusterWarnings says in words what is wrong with the cluster.
func (d *daemon) clusterWarnings(p *control.Peers, st *replica.Stats, warnings map[string]string) {
	for _, a := range st.Alarms {
		warnings["cluster "+a.Key] = a.Text
	}
	by := map[string][]string{}
	for i := range p.Members {
		m := &p.Members[i]
		if m.Self {
			if m.Problem != "" {
				warnings["cluster name"] = "the name of this node is not its own: " + m.Problem
			}
			continue
		}
		switch m.State {
		case string(gossip.Unreached):
			if m.Problem != "" {
				by["unreached"] = append(by["unreached"], fmt.Sprintf("%.100s (%.200s)", m.Name, m.Problem))
			} else {
				by["unreached"] = append(by["unreached"], fmt.Sprintf("%.100s", m.Name))
			}
		case string(gossip.Incompatible):
			by["incompatible"] = append(by["incompatible"], fmt.Sprintf("%s (agent %.64s, wire %d to %d)", m.Name, m.Version, m.WireMin, m.WireMax))
		case string(gossip.Failed):
			by["failed"] = append(by["failed"], m.Name+" since "+dayTime(m.Since))
		default:
			if m.Problem != "" {
				by["problem"] = append(by["problem"], fmt.Sprintf("%s: %.200s", m.Name, m.Problem))
			}
		}
		if o := m.ClockOffset; o != nil && (*o > clockWarn.Seconds() || *o < -clockWarn.Seconds()) {
			by["clocks"] = append(by["clocks"], fmt.Sprintf("%s by %+.0f s", m.Name, *o))
		}
		if m.Suspended {
			if k := "cluster breaker " + m.Name; warnings[k] == "" {
				warnings[k] = fmt.Sprintf("node %.64q is suspended: nothing it says is enforced here", m.Name)
			}
			warnings["cluster breaker "+m.Name] += fmt.Sprintf(" (`mxshieldctl origin clear %s` undoes it everywhere, `origin resume %s` trusts it again)", m.Name, m.Name)
		}
		if m.OverBudget > 0 {
			by["budget"] = append(by["budget"], fmt.Sprintf("%s %d", m.Name, m.OverBudget))
		}
	}
	for k, text := range map[string]string{
		"unreached":    "configured peers that no node answers for: %s",
		"incompatible": "nodes that speak no version of the protocol that this one does, with which nothing is exchanged: %s; upgrade the older of the two",
		"failed":       "nodes that do not answer: %s; they are called on, and catch up when they are back",
		"problem":      "something is wrong with nodes: %s",
		"clocks":       "the clocks of nodes are ahead of this one's: %s; from 30 s off the median on a node tells the others nothing new",
		"budget":       "automatic blocks that are not enforced because one node made too many: %s; `mxshieldctl origin clear` undoes all that it did",
	} {
		if list := by[k]; len(list) > 0 {
			warnings["cluster "+k] = fmt.Sprintf(text, fewOf(list))
		}
	}
	if n := st.UnknownVersion + st.UnknownKind + st.UnknownRecords; n > 0 {
		warnings["cluster unknown"] = fmt.Sprintf("%d messages and entries of kinds that this version does not know were skipped: upgrade this agent", n)
	}
}

// fewOf joins the first of a list.
func fewOf(list []string) string {
	const most = 5
	if n := len(list) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), n)
	}
	return strings.Join(list, ", ")
}

// clusterStatus is the part of status about the other nodes. It must be called without d.mu.
func (d *daemon) clusterStatus(s *control.Status, warnings map[string]string) {
	if d.replica == nil {
		return
	}
	p := d.Peers()
	c := &control.ClusterStatus{Addr: p.Addr, ClockOffset: p.ClockOffset, Counters: p.Counters, States: map[string]int{}}
	for _, state := range []gossip.State{gossip.Alive, gossip.Failed, gossip.Left, gossip.Incompatible, gossip.Unreached} {
		c.States[string(state)] = 0
	}
	for _, m := range p.Members {
		if m.Self {
			continue
		}
		if m.State != "gone" {
			c.Peers++
			c.States[m.State]++
		}
		if m.State == string(gossip.Alive) {
			c.Alive++
		}
		if m.Suspended {
			c.Suspended = append(c.Suspended, m.Name)
		}
		c.Learned += m.Entries
		c.Lag += m.Lag
	}
	s.Cluster = c
	for i, w := range p.Warnings {
		warnings[fmt.Sprintf("cluster %03d", i)] = w
	}
}

// errAlone refuses what needs a cluster.
var errAlone = &control.Error{Status: http.StatusConflict, Text: "this node is alone: the config has no cluster", Hint: "README.md, Cluster, tells how to make one"}

// conflict hands a refusal of the cluster on.
func conflict(err error) error {
	var h *gossip.HintError
	if errors.As(err, &h) {
		return &control.Error{Status: http.StatusConflict, Text: err.Error(), Hint: h.Hint}
	}
	return err
}

// members is the open gossip, or says why there is none.
func (d *daemon) members() (*gossip.Cluster, error) {
	if d.replica == nil {
		return nil, errAlone
	}
	g := d.net.to.Load()
	if g == nil {
		return nil, &control.Error{Status: http.StatusConflict, Text: "this node is not in the cluster yet", Hint: "`mxshieldctl status` says why"}
	}
	return g, nil
}

// Keys answers cluster key list.
func (d *daemon) Keys() ([]control.Key, error) {
	g, err := d.members()
	if err != nil {
		return nil, err
	}
	list := []control.Key{}
	for _, k := range g.Keys() {
		list = append(list, control.Key{ID: k.Name, Held: k.Held, Used: k.Used, HeldBy: k.HeldBy, UsedBy: k.UsedBy, Missing: k.Missing})
	}
	return list, nil
}

// ChangeKey answers cluster key add, use and remove. It is about this node alone: keys never go over the wire.
func (d *daemon) ChangeKey(who string, r control.KeyRequest) (words string, err error) {
	g, err := d.members()
	if err != nil {
		return "", err
	}
	var id gossip.KeyID
	if r.Do == "add" {
		if id, err = g.AddKey(r.Key); err != nil {
			return "", conflict(err)
		}
	} else {
		i := slices.IndexFunc(g.Keys(), func(k gossip.Key) bool { return k.Name == strings.ToLower(r.ID) })
		if i < 0 {
			return "", &control.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("no key %.20q is known", r.ID), Hint: "`mxshieldctl cluster key list` shows the ids"}
		}
		id = g.Keys()[i].ID
	}
	switch r.Do {
	case "use":
		err = g.UseKey(id, r.Force)
	case "remove":
		err = g.RemoveKey(id, r.Force)
	}
	if err != nil {
		return "", conflict(err)
	}
	d.audit(who, "key "+r.Do, netip.Prefix{}, id.String())
	var missing, others []string
	for _, k := range g.Keys() {
		if k.ID == id {
			missing = k.Missing
			for _, m := range g.Members() {
				if m.State != gossip.Left && !slices.Contains(k.UsedBy, m.Name) {
					others = append(others, m.Name)
				}
			}
		}
	}
	switch r.Do {
	case "add":
		words = fmt.Sprintf("key %s is understood here now; ", id)
		if len(missing) > 0 {
			return words + fmt.Sprintf("not known to be yet by %s: add it there, then `mxshieldctl cluster key use %s` on every node", fewOf(missing), id), d.written()
		}
		return words + fmt.Sprintf("all nodes have it: `mxshieldctl cluster key use %s` on every node", id), d.written()
	case "use":
		words = fmt.Sprintf("this node seals with key %s now; ", id)
		if len(others) > 0 {
			return words + "not known to do so yet: " + fewOf(others), d.written()
		}
		return words + "all nodes do: the old key can be removed in half a minute, on every node", d.written()
	}
	return fmt.Sprintf("key %s is gone from this node", id), d.written()
}

// ChangeOrigin answers origin suspend, resume and clear.
func (d *daemon) ChangeOrigin(who string, r control.OriginRequest) (string, error) {
	if d.replica == nil {
		return "", errAlone
	}
	p := d.Peers()
	i := slices.IndexFunc(p.Members, func(m control.Peer) bool {
		return m.Name == r.Node && m.State != string(gossip.Unreached)
	})
	if i < 0 {
		return "", &control.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("no node %.64q is known", r.Node), Hint: "`mxshieldctl peers` lists the names"}
	}
	m := &p.Members[i]
	self := r.Node == d.node
	switch r.Do {
	case "suspend":
		if self {
			return "", &control.Error{Status: http.StatusConflict, Text: "this is the node itself", Hint: "`mxshieldctl off` stops all dropping here; suspend it on the others"}
		}
		if !d.replica.Suspend(r.Node) {
			return fmt.Sprintf("node %s was suspended here already", r.Node), nil
		}
		d.audit(who, "origin suspend", netip.Prefix{}, r.Node)
		return fmt.Sprintf("node %s is suspended on this node: none of its %d entries is enforced here until `mxshieldctl origin resume %s`", r.Node, m.Entries, r.Node), d.written()
	case "resume":
		if !d.replica.Resume(r.Node) {
			return fmt.Sprintf("node %s was not suspended here", r.Node), nil
		}
		if d.ender != nil && d.marker() == nil {
			d.ender.All()
		}
		d.audit(who, "origin resume", netip.Prefix{}, r.Node)
		return fmt.Sprintf("what node %s says is enforced here again: %d entries", r.Node, m.Entries), d.written()
	}
	if _, err := d.table.ClearOrigin(r.Node, time.Now()); err != nil {
		return "", err
	}
	if self {
		d.mu.Lock()
		d.cleared = []netip.Prefix{everything4, everything6}
		d.mu.Unlock()
		d.resetCleared()
	}
	d.audit(who, "origin clear", netip.Prefix{}, r.Node)
	words := fmt.Sprintf("all that node %s said up to now is undone on all nodes: %d entries; what it says from now on counts", r.Node, m.Entries)
	if m.Suspended {
		words = fmt.Sprintf("all that node %s said up to now is undone on all nodes: %d entries; it is still suspended here (`mxshieldctl origin resume %s`)", r.Node, m.Entries, r.Node)
	}
	return words, d.written()
}
