package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// Receive takes in a message of another node. Whatever is wrong with it is counted, and changes nothing.
func (n *Node) Receive(from string, msg []byte) {
	now := n.o.Clock()
	came := now.Add(-n.o.Net.Behind())
	n.mu.Lock()
	defer n.unlock()
	n.came = came
	n.stats.Received++
	n.stats.ReceivedBytes += uint64(len(msg))
	if from == n.o.Node {
		return
	}
	n.receive(from, msg, now, true)
}

func (n *Node) receive(from string, msg []byte, now time.Time, outer bool) {
	kind, r, err := open(msg, n.o.Wire)
	if err == nil {
		err = n.dispatch(from, kind, r, now, outer)
	}
	switch {
	case errors.Is(err, errVersion):
		n.stats.UnknownVersion++
	case errors.Is(err, errKind):
		n.stats.UnknownKind++
	case errors.Is(err, errForged):
		n.stats.Refused++
		n.alarm("forged "+from, fmt.Sprintf("node %.64q speaks in the name of another", from), now)
	case err != nil:
		n.stats.Malformed++
	}
}

func (n *Node) dispatch(from string, kind byte, r *reader, now time.Time, outer bool) error {
	switch kind {
	case kindRecords:
		return n.onRecords(from, r, now)
	case kindDigest:
		return n.onDigest(from, r, now)
	case kindPull:
		return n.onPull(from, r, now)
	case kindReply:
		return n.onReply(from, r, now)
	case kindEvidence:
		return n.onEvidence(from, r, now)
	case kindHello:
		return n.onHello(from, r, now)
	case kindBundle:
		if !outer {
			return wireError(kind)
		}
		for len(r.b) > 0 {
			m := r.take(int(min(r.uvarint(), MaxMessage)))
			if r.bad {
				return wireError(kind)
			}
			n.receive(from, m, now, false)
		}
		return nil
	}
	return errKind
}

func (n *Node) onRecords(from string, r *reader, now time.Time) error {
	origin, epoch, at, top := r.name(), r.u64(), r.clock(), r.uvarint()
	list, unknown := r.run(origin, epoch)
	if r.bad || top >= 1<<63 {
		return wireError(kindRecords)
	}
	if origin != from { // what others said is told to those who ask
		return errForged
	}
	n.noteClock(from, at, now)
	l := n.meet(origin, epoch, now)
	if l == nil {
		return nil
	}
	if n.take(l, list, unknown, now); l == n.own || top <= max(l.latest, l.know.top())+maxJump {
		n.hear(l, top, now)
	}
	return nil
}

// take merges entries of one origin and epoch. It reports whether all of them are in the table, or need not be.
func (n *Node) take(l *lane, list []block.Entry, unknown []uint64, now time.Time) (all bool) {
	all = true
	n.stats.UnknownRecords += uint64(len(unknown))
	for _, seq := range unknown {
		n.skip(l, seq)
		all = false
	}
	list = slices.DeleteFunc(list, func(e block.Entry) bool { return l.know.has(e.Seq) || l.skip.has(e.Seq) })
	if len(list) == 0 {
		return all
	}
	base := max(l.latest, l.know.top())
	if top := list[len(list)-1].Seq; l == n.own || top > base+maxJump {
		n.hear(l, top, now)
		if l == n.own { // not what this node said
			return false
		}
		list = slices.DeleteFunc(list, func(e block.Entry) bool { return e.Seq > base+maxJump })
		all = false
	}
	n.watch(l.origin, list, now)
	opens := false
	learned := list[:0] // those that were looked at make room for it
	for i := range list {
		e := &list[i]
		var err error
		var news bool
		if e.Cause == block.Feed {
			err = errFeed
		} else {
			news, err = n.table.Merge(*e, now)
		}
		switch {
		case err == nil:
			n.stats.Merged++
			n.know(l, e.Seq, e.Seq)
			if e.Stamp.Time().After(now.Add(block.MaxAhead)) {
				n.stats.Early++
				n.alarm("early "+l.origin, fmt.Sprintf("entries of node %.64q are stamped %s, ahead of the clock: they wait for their time", l.origin, e.Stamp.Time().Format(time.RFC3339)), now)
			}
			if news {
				opens = opens || e.Opens()
				learned = append(learned, *e)
			}
			continue
		case errors.Is(err, block.ErrFull):
			n.full = now
			n.alarm("full", "entries of other nodes do not fit any more: "+err.Error(), now)
		default:
			n.alarm("refused "+l.origin, fmt.Sprintf("an entry of node %.64q is refused: %v", l.origin, err), now)
		}
		n.stats.Refused++
		n.skip(l, e.Seq)
		all = false
	}
	if opens {
		n.watchOpening(l.origin, now)
	}
	switch {
	case n.o.Learned == nil:
	case len(n.learned) == 0:
		n.learned = learned
	default:
		n.learned = append(n.learned, learned...)
	}
	return all
}

var errFeed = errors.New("every node has its own feeds")

func (n *Node) know(l *lane, from, to uint64) {
	l.know = l.know.add(from, to)
	if len(l.know) > maxSpans {
		l.know = l.know[:maxSpans]
	}
	l.latest = max(l.latest, l.know.top())
}

func (n *Node) skip(l *lane, seq uint64) {
	if l.skip = l.skip.add(seq, seq); len(l.skip) > maxSpans {
		l.skip = l.skip[1:]
	}
}

// ---- comparing

func (n *Node) hello(to string, now time.Time) {
	b := binary.AppendUvarint(header(nil, kindHello), millis(now))
	n.send(to, binary.BigEndian.AppendUint64(b, hashOf(n.digestList())))
}

func (n *Node) onHello(from string, r *reader, now time.Time) error {
	at, hash := r.clock(), r.u64()
	if r.bad {
		return wireError(kindHello)
	}
	n.noteClock(from, at, now)
	if list := n.digestList(); hashOf(list) != hash {
		n.send(from, n.digest(list, digestAnswer, now))
	}
	return nil
}

func (n *Node) onDigest(from string, r *reader, now time.Time) error {
	flags, at, list := r.byte(), r.clock(), []digestEntry(nil)
	if !r.bad {
		list = r.digest()
	}
	if r.bad {
		return wireError(kindDigest)
	}
	n.noteClock(from, at, now)
	theirs := make(map[laneKey]spans, len(list))
	for _, d := range list {
		theirs[laneKey{d.origin, d.epoch}] = d.know
		l := n.meet(d.origin, d.epoch, now)
		if l == nil {
			continue
		}
		n.hear(l, d.know.top(), now)
		if l == n.own {
			continue
		}
		if missing := d.know.minus(l.know).minus(l.skip); len(missing) > 0 {
			l.offer.peer, l.offer.have = from, d.know
			n.tryPull(l, now)
		}
	}
	if flags&digestAnswer == 0 {
		return nil
	}
	mine := n.digestList()
	for _, d := range mine {
		t, ok := theirs[laneKey{d.origin, d.epoch}]
		if !ok && flags&digestPartial != 0 {
			continue
		}
		if len(d.know.minus(t)) > 0 {
			n.send(from, n.digest(mine, 0, now))
			break
		}
	}
	return nil
}

// tryPull asks for what is missing of l: whoever offered it, else the origin itself.
func (n *Node) tryPull(l *lane, now time.Time) {
	if l == n.own || l.pull.id != 0 || n.pulls >= maxPulls || now.Before(l.quiet) && l.quiet.Sub(now) < time.Hour {
		return
	}
	ripe := l.ripe[len(l.ripe)-1]
	var to string
	var missing spans
	if s := &l.series; s.peer != "" && len(s.got) > 0 && now.Sub(s.last).Abs() > patience {
		s.peer, s.got, s.need = "", nil, nil // it cannot, any more: others are asked
		l.offer.peer = ""
	}
	if s := &l.series; s.peer != "" && !n.settle(l) {
		if to, missing = s.peer, s.need[l.epoch].minus(l.know).minus(l.skip).minus(s.got).upto(ripe); len(missing) == 0 {
			return // it is on its way
		}
	}
	if o := &l.offer; o.peer != "" && len(missing) == 0 {
		if missing = o.have.minus(l.know).minus(l.skip); len(missing) == 0 {
			o.peer, o.have = "", nil
		}
		to, missing = o.peer, missing.upto(ripe)
	}
	if _, live := slices.BinarySearch(n.members, l.origin); len(missing) == 0 && ripe > 0 && live && l.epoch == n.newest[l.origin] && l.origin != n.o.Node {
		to, missing = l.origin, spans{{1, ripe}}.minus(l.know).minus(l.skip)
	}
	if len(missing) == 0 {
		return
	}
	if to != l.series.peer {
		l.series.peer, l.series.got, l.series.need = to, nil, nil
	}
	n.pullID++
	wait := max(l.patience, pullTimeout)
	if t := n.trips[to]; t != nil {
		wait = max(wait, t.timeout())
	}
	l.pull = pull{n.pullID, to, slices.Clone(missing.lowest(maxAsked)), now, now.Add(wait)}
	p := &l.pull
	n.pulls++
	n.stats.Pulls++
	b := binary.AppendUvarint(header(nil, kindPull), p.id)
	b = putString(b, l.origin)
	b = binary.BigEndian.AppendUint64(b, l.epoch)
	b = binary.AppendUvarint(b, chunk)
	n.send(to, putSpans(b, p.asked))
}

// settle ends a series if all is here that the peer knew. It reports whether there is no series any more.
func (n *Node) settle(l *lane) bool {
	s := &l.series
	if s.peer == "" {
		return true
	}
	if l.pull.id != 0 || len(s.got) == 0 {
		return false
	}
	for epoch, need := range s.need {
		o := n.lanes[laneKey{l.origin, epoch}]
		if o == nil {
			return false
		}
		lack := need.minus(o.know).minus(o.skip)
		if o.series.peer == s.peer {
			lack = lack.minus(o.series.got)
		}
		if len(lack) > 0 {
			return false
		}
	}
	for _, a := range s.got {
		n.know(l, a.from, a.to)
	}
	s.peer, s.got, s.need = "", nil, nil
	return true
}

func (n *Node) donePull(l *lane) {
	l.pull = pull{}
	n.pulls--
}

// answered finds the pull that a reply is to, and ends what it answers. A reply that comes late is as good, unless another
// peer was asked since: then it may speak of numbers that the series of that peer does not account for.
func (n *Node) answered(l *lane, id uint64, from string) (asked spans, ok bool) {
	var p pull
	switch now := l.pull; {
	case id == 0:
		return nil, false
	case now.id == id && now.peer == from:
		p = now
	case l.late.id == id && l.late.peer == from && (now.id == 0 || now.peer == from):
		p = l.late
		if l.series.peer != from {
			l.series.peer, l.series.got, l.series.need = from, nil, nil
		}
	default:
		return nil, false
	}
	t := n.trips[from]
	if t == nil {
		t = &trip{}
		n.trips[from] = t
	}
	t.measure(n.came.Sub(p.sent))
	if l.pull.id != 0 {
		n.donePull(l)
	}
	l.late, l.patience = pull{}, 0
	return p.asked, true
}

func (n *Node) onPull(from string, r *reader, now time.Time) error {
	id, origin, epoch, limit, asked := r.uvarint(), r.name(), r.u64(), r.uvarint(), r.spans()
	if r.bad {
		return wireError(kindPull)
	}
	if s := now.Unix(); s != n.servedAt {
		n.servedAt, n.served = s, 0
	}
	if n.served >= servedBytes { // it asks again
		n.stats.Dropped++
		return nil
	}
	var known spans
	l := n.lanes[laneKey{origin, epoch}]
	if origin == n.o.Node && n.muted(now) { // what it said may have been replaced by what it keeps for itself
		l = nil
	}
	if l != nil {
		if l == n.own {
			n.flush(now)
		}
		known = l.know
	}
	have := asked.and(known)
	size := int(min(limit, chunk)) - 1024 // for what comes before the records
	var w runWriter
	var complete spans
	for _, a := range have.lowest(maxSpans) {
		cut := uint64(0)
		n.table.Log(origin, epoch, a.from, a.to, func(e *block.Entry) bool {
			if w.b == nil {
				w.start(e.Seq-1, e.Stamp)
			}
			if !w.add(e, size) {
				cut = e.Seq
				return false
			}
			return true
		})
		if cut > 0 {
			if cut > a.from {
				complete = append(complete, span{a.from, cut - 1})
			}
			break
		}
		complete = append(complete, a)
	}
	if w.b == nil {
		w.start(0, 0)
	}
	b := binary.AppendUvarint(header(make([]byte, 0, len(w.b)+1024), kindReply), id)
	b = putString(b, origin)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.AppendUvarint(b, millis(now))
	all := 0
	at := len(b)
	if l != nil {
		for _, o := range n.sorted() {
			if o.origin != origin || o != l && n.table.Live(origin, o.epoch) == 0 {
				continue
			}
			known := o.know
			if o == n.own { // what was said meanwhile may have replaced what was read
				if _, seq := n.table.Number(); seq > 0 {
					known = spans{{1, seq}}
				}
			}
			b = putSpans(binary.BigEndian.AppendUint64(b, o.epoch), known)
			all++
		}
	}
	b = slices.Insert(b, at, binary.AppendUvarint(nil, uint64(all))...)
	b = append(putSpans(b, complete), w.b...)
	n.served += len(b)
	n.send(from, b)
	return nil
}

func (n *Node) onReply(from string, r *reader, now time.Time) error {
	id, origin, epoch, at, known, complete := r.uvarint(), r.name(), r.u64(), r.clock(), r.known(), r.spans()
	if r.bad {
		return wireError(kindReply)
	}
	l := n.lanes[laneKey{origin, epoch}]
	if l == nil {
		return nil
	}
	waited := id == l.pull.id || id == l.late.id
	if !waited && len(complete.minus(l.know).minus(l.skip).minus(l.series.got)) == 0 {
		n.stats.Late++ // the second answer to what was asked twice: not worth reading
		return nil
	}
	list, unknown := r.run(origin, epoch)
	if r.bad {
		return wireError(kindReply)
	}
	n.noteClock(from, at, now)
	asked, ok := n.answered(l, id, from)
	if !ok {
		n.stats.Late++
		n.take(l, list, unknown, now) // entries are welcome whenever they come
		return nil
	}
	n.take(l, list, unknown, now)
	// What is not in the table although the reply had it is not known.
	complete = complete.and(asked).minus(l.skip)
	for _, a := range complete {
		l.series.got = l.series.got.add(a.from, a.to)
	}
	for epoch, k := range known {
		o := n.meet(origin, epoch, now)
		if o == nil { // refused for now: until then the series stays open
			continue
		}
		if o == n.own {
			delete(known, epoch)
			continue
		}
		k = k.upto(max(o.latest, o.know.top(), asked.top()) + maxJump)
		known[epoch] = k
		n.hear(o, k.top(), now)
		if o != l && o.offer.peer == "" && len(k.minus(o.know).minus(o.skip)) > 0 {
			o.offer.peer, o.offer.have = from, k
		}
	}
	l.series.need, l.series.last = known, now
	n.settle(l)
	if len(complete) == 0 && len(list) == 0 {
		l.offer.peer, l.series.peer = "", ""
		l.backoff = min(max(2*l.backoff, time.Second), time.Minute)
		l.quiet = now.Add(l.backoff)
		return nil
	}
	l.backoff = 0
	n.tryPull(l, now)
	return nil
}
