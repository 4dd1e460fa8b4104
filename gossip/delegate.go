package gossip

import (
	"encoding/binary"
	"time"

	"github.com/hashicorp/memberlist"
)

// delegate is what memberlist calls. It holds its own lock during most of these: none may call back into it.
type delegate struct{ c *Cluster }

func (c *Cluster) selfMeta() []byte {
	return meta{session: c.session, wire: c.opt.Wire, keys: c.keyIDs(), version: c.opt.Version}.append(nil)
}

func (d delegate) NodeMeta(int) []byte {
	d.c.keyMu.Lock()
	defer d.c.keyMu.Unlock()
	return d.c.selfMeta()
}

// NotifyMsg comes from streams only: the guard takes user packets aside, and lets none through in a compound. Waiting
// for room holds up one stream.
func (d delegate) NotifyMsg(b []byte) { d.c.accept(b, true) }

func (d delegate) GetBroadcasts(int, int) [][]byte { return nil }

func (d delegate) LocalState(bool) []byte {
	if d.c.opt.Digest == nil {
		return nil
	}
	digest := d.c.opt.Digest()
	if len(digest) == 0 {
		return nil
	}
	if len(digest) > maxDigest {
		d.c.log.Error("the digest is too long to be sent", "bytes", len(digest), "max", maxDigest)
		return nil
	}
	return append(appendEnvelope(nil, kindDigest, d.c.opt.Name), digest...)
}

func (d delegate) MergeRemoteState(b []byte, _ bool) { d.c.accept(b, true) }

func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.c.table.admissible(n) }

func (d delegate) NotifyJoin(n *memberlist.Node) {
	joined := d.c.table.put(n, Alive)
	if !joined || n.Name == d.c.opt.Name {
		return
	}
	d.c.log.Info("member joined", "member", n.Name, "address", n.Address())
	d.c.in.push(delivery{kind: kindJoin, peer: n.Name}, true)
}

func (d delegate) NotifyUpdate(n *memberlist.Node) { d.c.table.put(n, Alive) }

func (d delegate) NotifyLeave(n *memberlist.Node) {
	// memberlist does not say which of the two it is.
	state, word := Failed, []byte(nil)
	if d.c.table.saidBye(n.Name) {
		state, word = Left, []byte{1}
	}
	d.c.table.put(n, state)
	if n.Name == d.c.opt.Name {
		return
	}
	d.c.log.Info("member gone", "member", n.Name, "address", n.Address(), "state", state)
	d.c.in.push(delivery{kind: kindLeave, peer: n.Name, msg: word}, true)
}

func (d delegate) NotifyConflict(have, other *memberlist.Node) {
	d.c.log.Warn("two members of one name", "member", have.Name, "address", have.Address(), "other", other.Address())
	d.c.table.conflict(have.Name, other.Address())
}

// An ack carries the wall clock of whoever sends it, and its session: version 1, nanoseconds since 1970 as int64, 8 bytes
// that older agents neither send nor read.
const ackVersion = 1

func (d delegate) AckPayload() []byte {
	b := binary.BigEndian.AppendUint64([]byte{ackVersion}, uint64(d.c.opt.Now().UnixNano()))
	return append(b, d.c.session[:]...)
}

func (d delegate) NotifyPingComplete(n *memberlist.Node, rtt time.Duration, b []byte) {
	if len(b) < 9 || b[0] != ackVersion || rtt < 0 {
		return
	}
	theirs := time.Unix(0, int64(binary.BigEndian.Uint64(b[1:9])))
	d.c.table.addClock(n.Name, sample{theirs.Sub(d.c.opt.Now().Add(-rtt / 2)), rtt})
	if b = b[9:]; len(b) >= len(session{}) && d.c.table.answered(n.Name, session(b[:len(session{})])) {
		d.c.seek.look()
	}
}
