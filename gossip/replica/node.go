// Package replica keeps the block tables of a cluster equal. It is the replication alone: it knows neither sockets nor
// clocks nor members, which are given to it, so that a simulator can be as unkind to it as a network.
//
// Each node numbers what it says, by (origin, epoch, seq); the block table finds entries by these numbers. What a node
// knows of one origin and epoch is a set of numbers: those whose entries it has, or which mean nothing any more
// because a newer entry replaced theirs or it ended. New entries go to every member at once (Flush). Whatever is lost
// on the way is found by comparing these sets, once a second with one random member (scuttlebutt reconciliation, van
// Renesse et al. 2008), and pulled, oldest first. So every message may be lost, late, doubled, or out of order.
//
// A node answers for exactly the numbers it knows, and says so in each reply. That a number means nothing any more is
// believed only together with all that the same node knows: the entry that replaced it may be the last of that, and
// might be lost before anyone else has it. A number that nobody knows any more (its node died before anyone else heard
// it) stays a gap in all sets alike, and costs nothing.
//
// What an entry may do is not decided here: package block keeps all of them, and hides what must not count.
package replica

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// Net carries messages to other nodes; *gossip.Cluster is one. No method may call back into the Node. A message is not
// changed after it was handed over, so that it may be kept, but it goes to several peers.
type Net interface {
	// Peers lists the names of the other live nodes.
	Peers() []string
	// Send hands over a datagram of at most Options.Datagram bytes, which may get lost.
	Send(peer string, msg []byte) bool
	// Stream hands over a message of at most MaxMessage bytes, which arrives unless the peer dies. It may refuse.
	Stream(peer string, msg []byte) bool
	// WireVersion is the version to speak with a peer, the highest that both understand; 0: it is not known.
	WireVersion(peer string) uint32
	// Behind is how long the message that is given to Receive now, or the oldest that waits for it, has waited: all that
	// came before was received. 0: none waits.
	Behind() time.Duration
}

// Options of a Node.
type Options struct {
	Node  string // this node's name: the origin of the table
	Clock func() time.Time
	Rand  *rand.Rand
	Net   Net
	Table *block.Table
	// State is what State returned, as it was in the state file together with the entries of the table.
	State []byte
	// Datagram is the largest message that is sent as a datagram; 0 or more than MaxDatagram: MaxDatagram.
	Datagram int
	// Wire is the highest version that this node speaks. 0: WireVersion. Tests make a later one.
	Wire uint32
	// Accepted says how welcome mail from an address or /64 was here lately, and Senders how many sources with welcome mail
	// there are. A node that blocks BreakerHosts such sources within BreakerTime is suspended here, if that is a good
	// part of what it blocks or of what delivers here, or much mail came from them. nil: no breaker.
	Accepted     func(netip.Prefix) Standing
	Senders      func() int
	BreakerHosts int           // 0: 10
	BreakerTime  time.Duration // 0: 10 min
	// Learned is called with entries of other nodes that changed the table, after they did, and outside of all locks. It
	// may keep the list.
	Learned func([]block.Entry)
	// Heard is called likewise with sources of which other nodes told something that Elsewhere knows now.
	Heard func([]HeardEvidence)
	// Evidence says how evidence of other nodes counts.
	Evidence EvidenceOptions
}

// The pace of the protocol.
const (
	round       = time.Second            // between two comparisons
	beat        = 250 * time.Millisecond // Tick is called so often
	grace       = time.Second            // what was heard of may still be on its way
	patience    = 5 * time.Second        // with what a peer knew and does not give
	pullTimeout = 500 * time.Millisecond // at least, and twice as long after each one, up to maxTimeout
	maxTimeout  = 8 * time.Second
	maxTrip     = 15 * time.Second // the longest that is waited for a peer that is always slow, or pretends to be
	maxPulls    = 8                // at once, one for each origin and epoch
	maxAsked    = 32               // spans in one pull
	servedBytes = 16 << 20         // of replies in one second
	maxBacklog  = 8 << 20          // of what goes to all at once; the rest is pulled
	maxJump     = 1 << 22          // numbers ahead of the highest known one
	maxLanes    = 4096             // origins and epochs
	clockMost   = 30 * time.Second
	leadMost    = block.MaxAhead + 5*time.Second // others cannot push this node's stamps further ahead than MaxAhead
	offsetLife  = 5 * time.Minute
	laneLife    = 37 * 24 * time.Hour // of an epoch of which nothing is left: the longest hold and the longest block
)

// lane is what is known of one origin and epoch.
type lane struct {
	origin string
	epoch  uint64
	know   spans // entries merged, or numbers that mean nothing any more
	skip   spans // entries that this version does not understand or take: not asked for, not answered for
	latest uint64
	ripe   [grace / beat]uint64 // latest, as it was at the last beats

	offer struct { // who said to have what is missing
		peer string
		have spans
	}
	pull     pull          // under way
	late     pull          // the first that the same peer did not answer in time: it may still do
	patience time.Duration // with the next pull, after some that had no reply
	series   struct {      // what one peer answered for, and becomes known when all is here that the peer knew meanwhile
		peer string
		got  spans
		need map[uint64]spans // by epoch, since entries of one epoch replace those of another
		last time.Time        // the last answer
	}
	quiet   time.Time // nothing is asked before
	backoff time.Duration
}

// pull is a request for what is missing.
type pull struct {
	id       uint64 // 0: none
	peer     string
	asked    spans
	sent     time.Time
	deadline time.Time
}

type laneKey struct {
	origin string
	epoch  uint64
}

// peer is what is known of a member.
type peer struct {
	offset time.Duration // its clock - ours
	heard  time.Time
	at     time.Time // its clock then
}

type outgoing struct {
	to     string
	msg    []byte
	stream bool
}

// Node is one node's side of the replication. It is safe for concurrent use.
type Node struct {
	mu      sync.Mutex
	o       Options
	table   *block.Table
	lanes   map[laneKey]*lane
	newest  map[string]uint64 // origin -> its newest epoch
	own     *lane
	sent    uint64 // the last number of own that went out
	members []string
	peers   map[string]*peer
	trips   map[string]*trip // by peer
	offset  time.Duration
	mute    string

	came                           time.Time // when the message came that is received now
	lastBeat, nextRound, nextSweep time.Time
	lastFlush                      time.Time
	tips                           int
	renumbered                     time.Time
	pullID                         uint64
	pulls                          int
	served                         int
	servedAt                       int64
	full                           time.Time

	breakers map[string]*breaker
	openings map[string]*opening
	evidence evidence
	alarms   map[string]Alarm
	stats    Stats
	out      []outgoing
	learned  []block.Entry
	heard    []HeardEvidence
	silent   atomic.Bool // mute is not empty
}

// New returns the node of a table that holds what the state file had. It begins a new epoch.
func New(o Options) (*Node, error) {
	if o.Node == "" || len(o.Node) > maxName {
		return nil, fmt.Errorf("node name %.40q: 1 to %d bytes", o.Node, maxName)
	}
	if o.Datagram == 0 || o.Datagram > MaxDatagram {
		o.Datagram = MaxDatagram
	}
	if o.Wire == 0 {
		o.Wire = WireVersion
	}
	o.Datagram = max(o.Datagram, 512) // what comes before the first record must fit
	if o.BreakerHosts == 0 {
		o.BreakerHosts = 10
	}
	if o.BreakerTime == 0 {
		o.BreakerTime = 10 * time.Minute
	}
	n := &Node{
		o: o, table: o.Table, lanes: map[laneKey]*lane{}, newest: map[string]uint64{}, peers: map[string]*peer{}, trips: map[string]*trip{},
		breakers: map[string]*breaker{}, openings: map[string]*opening{}, alarms: map[string]Alarm{},
	}
	n.evidence.init(o.Evidence)
	now := o.Clock()
	var ownEpochs []block.LogInfo
	for _, l := range o.Table.Logs() {
		if l.Origin == o.Node && l.Top > 0 {
			ownEpochs = append(ownEpochs, l)
		}
	}
	wrote, err := n.load(o.State, now)
	if err != nil {
		return nil, err
	}
	for _, l := range ownEpochs {
		// What this node said is in the state file that it said it to, up to some number, without gaps. What it learned
		// of itself after it lost another file is as what it learned of others.
		if l.Epoch == wrote || len(o.State) == 0 {
			x := n.lane(l.Origin, l.Epoch)
			x.know = x.know.add(1, l.Top)
			x.latest = x.know.top()
		}
	}
	// Old epochs with little left go into the new one, so that restarts do not add up.
	slices.SortFunc(ownEpochs, func(a, b block.LogInfo) int { return b.Live - a.Live })
	keep := map[uint64]bool{}
	for i, l := range ownEpochs {
		keep[l.Epoch] = i < 8 && l.Live > 100
	}
	n.begin(now, func(l block.LogInfo) uint64 {
		if keep[l.Epoch] {
			return math.MaxUint64
		}
		return 0
	})
	return n, nil
}

// begin starts a new epoch of this node.
func (n *Node) begin(now time.Time, move func(block.LogInfo) uint64) {
	last, _ := n.table.Number()
	epoch := block.NewEpoch(now, n.o.Rand.Uint64())
	if least := max(last, n.newest[n.o.Node]); epoch <= least {
		epoch = least + 1 // the clock was ahead once
	}
	n.table.Renumber(epoch, move)
	n.own, n.sent = n.lane(n.o.Node, epoch), 0
	n.renumbered = now
}

func (n *Node) lane(origin string, epoch uint64) *lane {
	k := laneKey{origin, epoch}
	l := n.lanes[k]
	if l == nil {
		l = &lane{origin: origin, epoch: epoch}
		n.lanes[k] = l
		n.newest[origin] = max(n.newest[origin], epoch)
	}
	return l
}

// meet finds or makes the lane of what a message is about; nil if there can be none.
func (n *Node) meet(origin string, epoch uint64, now time.Time) *lane {
	if l := n.lanes[laneKey{origin, epoch}]; l != nil {
		return l
	}
	if at := block.EpochTime(epoch); at.After(now.Add(block.MaxAhead)) {
		n.stats.Refused++
		n.alarm("epoch "+origin, fmt.Sprintf("an epoch of node %.64q begins at %s, which is ahead of the clock: refused until then", origin, at.Format(time.RFC3339)), now)
		return nil
	}
	if len(n.lanes) >= maxLanes {
		n.stats.Refused++
		n.alarm("lanes", fmt.Sprintf("%d epochs of nodes are known, and no more are taken", len(n.lanes)), now)
		return nil
	}
	return n.lane(origin, epoch)
}

// hear notes that number top was given.
func (n *Node) hear(l *lane, top uint64, now time.Time) {
	if top <= l.latest {
		return
	}
	if l == n.own {
		if _, given := n.table.Number(); top > given {
			n.conflict(top, now)
		}
		return
	}
	base := max(l.latest, l.know.top())
	if limit := base + maxJump; top > limit { // in steps, if it is true after all
		n.stats.Refused++
		n.alarm("jump "+l.origin, fmt.Sprintf("the numbers of node %.64q jump from %d to %d", l.origin, base, top), now)
		top = limit
	}
	l.latest = top
}

// conflict begins a new epoch, since somebody else gave numbers in this one.
func (n *Node) conflict(top uint64, now time.Time) {
	if now.Sub(n.renumbered) < time.Minute && n.stats.Conflicts > 0 {
		return
	}
	n.stats.Conflicts++
	n.alarm("own numbers", fmt.Sprintf("others know %d entries of this node's present epoch, and it made fewer: is there another node of this name?", top), now)
	epoch := n.own.epoch
	n.begin(now, func(l block.LogInfo) uint64 {
		if l.Epoch == epoch {
			return 0
		}
		return math.MaxUint64
	})
}

// ---- sending

func (n *Node) send(to string, msg []byte) {
	n.out = append(n.out, outgoing{to, msg, len(msg) > n.o.Datagram})
}

// unlock sends what was collected, and tells what was learned, without the lock.
func (n *Node) unlock() {
	out, learned, heard := n.out, n.learned, n.heard
	n.out, n.learned, n.heard = nil, nil, nil
	n.mu.Unlock()
	if len(learned) > 0 {
		n.o.Learned(learned)
	}
	if len(heard) > 0 {
		n.o.Heard(heard)
	}
	var sent, bytes, failed uint64
	for _, m := range out {
		ok := false
		m.msg = n.inVersion(m.msg, n.o.Net.WireVersion(m.to))
		if m.stream {
			ok = n.o.Net.Stream(m.to, m.msg)
		} else {
			ok = n.o.Net.Send(m.to, m.msg)
		}
		if ok {
			sent++
			bytes += uint64(len(m.msg))
		} else {
			failed++
		}
	}
	if len(out) > 0 {
		n.mu.Lock()
		n.stats.Sent += sent
		n.stats.SentBytes += bytes
		n.stats.Unsent += failed
		n.mu.Unlock()
	}
}

// inVersion writes a message in the version that a peer understands. All versions up to now differ in nothing but their
// number: a later one has its kinds of messages and records, which earlier ones skip and count.
func (n *Node) inVersion(msg []byte, version uint32) []byte {
	version = min(version, n.o.Wire)
	if version < WireMin || msg[0] == byte(version) {
		return msg
	}
	msg = slices.Clone(msg) // it may go to others too
	msg[0] = byte(version)
	return msg
}

// Flush sends what this node said since the last call to every member. It is called each 25 to 50 ms, or sooner when
// something was said.
func (n *Node) Flush(now time.Time) {
	members := n.o.Net.Peers()
	n.mu.Lock()
	defer n.unlock()
	n.setMembers(members)
	n.flush(now)
	n.flushEvidence(now)
}

func (n *Node) flush(now time.Time) {
	if n.muted(now) {
		return
	}
	_, seq := n.table.Number()
	from := n.sent
	if seq <= from {
		return
	}
	n.own.know = n.own.know.add(from+1, seq)
	n.own.latest, n.sent = seq, seq
	if len(n.members) == 0 {
		return
	}
	n.lastFlush, n.tips = now, 2
	packets, total := n.pack(from+1, seq, now)
	for _, to := range n.members {
		if total <= chunk {
			for _, p := range packets {
				n.send(to, p)
			}
			continue
		}
		for _, b := range bundles(packets) {
			n.out = append(n.out, outgoing{to, b, true})
		}
	}
}

// pack puts this node's entries from ... to into datagrams.
func (n *Node) pack(from, to uint64, now time.Time) (packets [][]byte, total int) {
	head := header(nil, kindRecords)
	head = putString(head, n.o.Node)
	head = binary.BigEndian.AppendUint64(head, n.own.epoch)
	head = binary.AppendUvarint(head, millis(now))
	head = binary.AppendUvarint(head, to)
	var w runWriter
	seal := func() {
		if w.n > 0 {
			packets = append(packets, w.b)
			total += len(w.b)
		}
	}
	n.table.Log(n.o.Node, n.own.epoch, from, to, func(e *block.Entry) bool {
		if w.n > 0 && w.add(e, n.o.Datagram) {
			return true
		}
		if seal(); total > maxBacklog {
			n.stats.Dropped++
			w.n = 0
			return false
		}
		w.b = append(make([]byte, 0, n.o.Datagram), head...)
		w.start(e.Seq-1, e.Stamp)
		w.add(e, MaxMessage) // with two long names in it even one record may need a stream
		return true
	})
	seal()
	return packets, total
}

func bundles(packets [][]byte) (list [][]byte) {
	var b []byte
	for _, p := range packets {
		if b == nil || len(b)+len(p)+4 > chunk {
			if b != nil {
				list = append(list, b)
			}
			b = header(make([]byte, 0, chunk), kindBundle)
		}
		b = append(binary.AppendUvarint(b, uint64(len(p))), p...)
	}
	if b != nil {
		list = append(list, b)
	}
	return list
}

// tip tells everybody the last number given, a little after it was, so that the loss of the last packet of a burst is
// noticed.
func (n *Node) tip(now time.Time) {
	if n.tips == 0 || now.Sub(n.lastFlush) < time.Duration(3-n.tips)*beat || n.mute != "" {
		return
	}
	n.tips--
	b := header(nil, kindRecords)
	b = putString(b, n.o.Node)
	b = binary.BigEndian.AppendUint64(b, n.own.epoch)
	b = binary.AppendUvarint(b, millis(now))
	b = binary.AppendUvarint(b, n.sent)
	var w runWriter
	w.b = b
	w.start(n.sent, 0)
	for _, to := range n.members {
		n.send(to, w.b)
	}
}

func (n *Node) setMembers(list []string) {
	n.members = n.members[:0]
	for _, m := range list {
		if m != n.o.Node && m != "" && len(m) <= maxName {
			n.members = append(n.members, m)
		}
	}
	slices.Sort(n.members)
	n.members = slices.Compact(n.members)
}

// Tick does what is due. It is called four times a second; less often only makes everything slower.
func (n *Node) Tick(now time.Time) {
	members, behind := n.o.Net.Peers(), n.o.Net.Behind()
	n.mu.Lock()
	defer n.unlock()
	n.setMembers(members)
	if d := now.Sub(n.lastBeat); d < 0 || d >= beat-beat/10 {
		n.lastBeat = now
		for _, l := range n.lanes {
			copy(l.ripe[1:], l.ripe[:])
			l.ripe[0] = l.latest
		}
	}
	n.checkClock(now)
	n.flush(now)
	n.tip(now)
	if d := n.nextRound.Sub(now); (d <= 0 || d > 2*round) && len(n.members) > 0 {
		n.nextRound = now.Add(round - beat/2 + time.Duration(n.o.Rand.Int64N(int64(beat))))
		n.hello(n.members[n.o.Rand.IntN(len(n.members))], now)
	}
	if d := n.nextSweep.Sub(now); d <= 0 || d > time.Hour {
		n.nextSweep = now.Add(time.Minute)
		n.sweep(now)
	}
	for _, l := range n.sorted() {
		if p := &l.pull; p.id != 0 && n.overdue(p, now, now.Add(-behind)) {
			n.stats.Timeouts++
			if l.late.peer != p.peer || now.Sub(l.late.sent).Abs() > maxTrip {
				l.late = *p
			}
			n.donePull(l)
			l.patience = min(max(2*l.patience, 2*pullTimeout), maxTimeout)
			l.offer.peer, l.series.peer = "", ""
		}
		n.tryPull(l, now)
	}
}

// overdue says that no reply to p came in time. One that came may wait to be received, behind others: what came before
// seen was.
func (n *Node) overdue(p *pull, now, seen time.Time) bool {
	wait := p.deadline
	if _, live := slices.BinarySearch(n.members, p.peer); !live {
		wait = p.sent.Add(pullTimeout)
	}
	return seen.After(wait) || p.deadline.Sub(now) > time.Minute // the clock was set back
}

// sorted returns the lanes in an order that does not depend on chance.
func (n *Node) sorted() []*lane {
	list := make([]*lane, 0, len(n.lanes))
	for _, l := range n.lanes {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *lane) int {
		return cmp.Or(strings.Compare(a.origin, b.origin), cmp.Compare(a.epoch, b.epoch))
	})
	return list
}

func (n *Node) sweep(now time.Time) {
	for k, l := range n.lanes {
		old := k.epoch != n.newest[k.origin] && now.Sub(block.EpochTime(k.epoch)) > laneLife
		empty := len(l.know) == 0 && len(l.skip) == 0 && l.pull.id == 0 // somebody spoke of it, and nobody has it
		if l != n.own && (old || empty) && n.table.Live(k.origin, k.epoch) == 0 {
			if l.pull.id != 0 {
				n.donePull(l)
			}
			delete(n.lanes, k)
		} else if !n.full.IsZero() {
			l.skip = nil // there may be room again
		}
	}
	n.full = time.Time{}
	clear(n.newest)
	for k := range n.lanes {
		n.newest[k.origin] = max(n.newest[k.origin], k.epoch)
	}
	for name, p := range n.peers {
		if now.Sub(p.heard).Abs() > offsetLife {
			delete(n.peers, name)
		}
	}
	for name := range n.trips {
		if _, live := slices.BinarySearch(n.members, name); !live {
			delete(n.trips, name)
		}
	}
	for k, a := range n.alarms {
		if now.Sub(a.Last).Abs() > 10*time.Minute {
			delete(n.alarms, k)
		}
	}
	n.evidence.sweep(now)
}

// ---- the clock

// noteClock notes a peer's clock. One that does not go on from where it was is no news, for as long as the last one counts:
// anybody on the way can send a sealed packet again, and old ones must not make this node take its own clock for wrong. A
// peer whose clock was set back is heard again when that time is over.
func (n *Node) noteClock(name string, at, now time.Time) {
	p := n.peers[name]
	switch {
	case p == nil && len(n.peers) < maxLanes && name != n.o.Node:
		n.peers[name] = &peer{at.Sub(now), now, at}
	case p == nil, !at.After(p.at) && now.Sub(p.heard).Abs() <= offsetLife:
	default:
		*p = peer{at.Sub(now), now, at}
	}
}

// median of the members' clocks against this one; of an even number, the one that is nearer.
func (n *Node) median(now time.Time) time.Duration {
	var list []time.Duration
	for _, p := range n.peers {
		if now.Sub(p.heard).Abs() <= offsetLife {
			list = append(list, p.offset)
		}
	}
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	a, b := list[(len(list)-1)/2], list[len(list)/2]
	if a.Abs() < b.Abs() {
		return a
	}
	return b
}

func (n *Node) checkClock(now time.Time) {
	n.offset = n.median(now)
	n.mute = ""
	if n.offset.Abs() > clockMost {
		n.mute = fmt.Sprintf("this node's clock is %s off the median of the others: what it says stays here until that is mended", -n.offset.Round(time.Second))
	} else if lead := n.table.Lead(now); lead > leadMost {
		n.mute = fmt.Sprintf("this node's clock was set back by %s: what it says stays here until its clock has come that far again", lead.Round(time.Second))
	}
	n.silent.Store(n.mute != "")
	if n.mute != "" {
		n.alarm("clock", n.mute, now)
	} else {
		delete(n.alarms, "clock")
	}
}

// muted says that this node must not tell others anything new. What it says stands here, has its numbers, and goes
// out later.
func (n *Node) muted(now time.Time) bool {
	if n.mute == "" && n.table.Lead(now) > leadMost {
		n.checkClock(now)
	}
	return n.mute != ""
}

// ---- state

const stateVersion = 1

// State returns what must be in the state file. It must be taken before the Drain of the table with which it is
// committed, in one transaction: then it never knows more than the file has.
func (n *Node) State() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	b := binary.BigEndian.AppendUint64([]byte{stateVersion}, n.own.epoch)
	names := n.table.Suspended()
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, s := range names {
		b = putString(b, s)
	}
	list := make([]digestEntry, 0, len(n.lanes))
	for _, l := range n.sorted() {
		list = append(list, digestEntry{l.origin, l.epoch, l.know})
	}
	b, _ = appendDigest(b, list, math.MaxInt)
	return b
}

var errState = errors.New("malformed state of the replication")

// load takes in what State returned, and returns the epoch in which this node spoke then.
func (n *Node) load(b []byte, now time.Time) (epoch uint64, err error) {
	if len(b) == 0 {
		return 0, nil
	}
	r := &reader{b: b}
	if r.byte() != stateVersion {
		return 0, errState
	}
	epoch = r.u64()
	names := make([]string, 0, 8)
	for k := r.uvarint(); k > 0 && !r.bad; k-- {
		names = append(names, r.name())
	}
	list := r.digest()
	if r.bad || len(list) > maxLanes {
		return 0, errState
	}
	for _, s := range names {
		n.table.Suspend(s, true, now)
	}
	for _, d := range list {
		l := n.lane(d.origin, d.epoch)
		for _, a := range d.know {
			l.know = l.know.add(a.from, a.to)
		}
		l.latest = l.know.top()
	}
	return epoch, nil
}

// digestList is what this node tells of its knowledge: epochs of which something is left, and the newest of each
// origin.
func (n *Node) digestList() []digestEntry {
	var list []digestEntry
	for _, l := range n.sorted() {
		if len(l.know) > 0 && (l == n.own || l.epoch == n.newest[l.origin] || n.table.Live(l.origin, l.epoch) > 0) {
			list = append(list, digestEntry{l.origin, l.epoch, l.know})
		}
	}
	return list
}

func hashOf(list []digestEntry) uint64 {
	h := fnv.New64a()
	b, _ := appendDigest(nil, list, math.MaxInt)
	_, _ = h.Write(b)
	return h.Sum64()
}

// Digest returns what this node knows, at most 8 KB, as a message to another node.
func (n *Node) Digest() []byte {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.digest(n.digestList(), 0, n.o.Clock())
}

func (n *Node) digest(list []digestEntry, flags byte, now time.Time) []byte {
	head := func(flags byte) []byte {
		return binary.AppendUvarint(append(header(nil, kindDigest), flags), millis(now))
	}
	b, k := appendDigest(head(flags), list, maxDigest)
	if k == len(list) {
		return b
	}
	// Another part each time. It must begin with an origin's first epoch.
	at := n.o.Rand.IntN(len(list))
	for at > 0 && list[at].origin == list[at-1].origin {
		at--
	}
	b, _ = appendDigest(head(flags|digestPartial), slices.Concat(list[at:], list[:at]), maxDigest)
	return b
}
