package verdict

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// What the alarms go by (see the package comment for the reasons).
const (
	outageKnown = 8   // known senders refused for one kind before it may be our fault
	outageRatio = 4   // ... and that many times as many as have mail accepted
	outageLast  = 600 // seconds that a kind stays suspended after the signs of a fault were last seen

	breakKnown = 10   // would-be blocks of known senders by one rule
	breakRatio = 10   // ... if they are at least one in so many of all its blocks
	breakSpan  = 10   // minutes it looks back
	breakLast  = 1800 // seconds that a rule then spares known senders

	holdFor   = 180  // seconds from the first would-be block of a known sender to the block
	holdAgain = 600  // the same while the breaker is open
	holdMost  = 10   // thresholds: with a score above that many it does not wait
	holdStale = 3600 // seconds after which an old hold says nothing
)

const numCauses = int(block.Manual) + 1

// alarms looks for our own faults: in the sources of refusals (outages) and in the blocks they would lead to (breakers).
type alarms struct {
	scales   [2]window
	outages  [maillog.NumKinds]alarm
	breakers [numCauses]alarm
	judged   [numCauses]tally
	active   bool // some alarm may be on
	dirty    bool
}

type alarm struct {
	since, until uint32
	n            uint32 // known senders it was raised for
}

// window counts distinct sources in this and the last span of time.
type window struct {
	span, cur uint32
	good      [2][2]bitmap // mail and logins; this span and the last one
	bad       [maillog.NumKinds][2]bitmap
}

// bitmap counts distinct sources by linear counting: exact enough up to about 2000.
type bitmap [8]uint64

func (b *bitmap) set(h uint32) { b[h>>6&7] |= 1 << (h & 63) }

func distinct(a, b *bitmap) float64 {
	n := 0
	for i := range a {
		n += bits.OnesCount64(a[i] | b[i])
	}
	if n < 32 {
		return float64(n)
	}
	return -512 * math.Log(max(0.5, float64(512-n))/512)
}

// bit places a source. It needs no seed: who makes his sources fall together is only counted less.
func (k key) bit() uint32 {
	h := (k.hi ^ bits.RotateLeft64(k.lo, 31)) * 0x9fb21c651e98df25
	return uint32(h >> 55)
}

func (a *alarms) init() { a.scales[0].span, a.scales[1].span = 60, 900 }

// roll moves the window on to the time at. It returns false for what is older than the window.
func (w *window) roll(at, now uint32) bool {
	p := at / w.span
	switch {
	case p == w.cur:
	case p == w.cur+1:
		for i := range w.good {
			w.good[i][1], w.good[i][0] = w.good[i][0], bitmap{}
		}
		for i := range w.bad {
			w.bad[i][1], w.bad[i][0] = w.bad[i][0], bitmap{}
		}
		w.cur = p
	case p > w.cur || w.cur > (now+ahead)/w.span:
		*w = window{span: w.span, cur: p}
	default:
		return p+1 == w.cur
	}
	return true
}

// good notes that a source had mail accepted (0) or logged in (1).
func (a *alarms) good(class int, k key, at, now uint32) {
	for i := range a.scales {
		if w := &a.scales[i]; w.roll(at, now) {
			w.good[class][0].set(k.bit())
		}
	}
}

// bad notes that a known sender was refused, and returns how many were if that looks like a fault of ours.
func (a *alarms) bad(kind maillog.Kind, k key, at, now uint32) (known uint32, ours bool) {
	class := 0
	if kind == maillog.AuthFailure {
		class = 1
	}
	for i := range a.scales {
		w := &a.scales[i]
		if !w.roll(at, now) {
			continue
		}
		w.bad[kind][0].set(k.bit())
		n := distinct(&w.bad[kind][0], &w.bad[kind][1])
		if n >= outageKnown && n >= outageRatio*distinct(&w.good[class][0], &w.good[class][1]) {
			return uint32(n), true
		}
	}
	return 0, false
}

// raise begins or prolongs an alarm. It reports whether it begins.
func (a *alarms) raise(x *alarm, n, now, last uint32) bool {
	begins := !x.on(now)
	if begins {
		*x = alarm{since: now, n: n}
	}
	if until := now + last; begins || until > x.until+30 || until+30 < x.until {
		x.until, a.dirty = until, true
	}
	a.active = true
	return begins
}

func (x *alarm) on(now uint32) bool { return now < x.until && x.since <= now+ahead }

// suspended says that offences of a kind do not count now. A session with too many errors is what any other fault leads
// to, so it does not count while another kind does not.
func (a *alarms) suspended(kind maillog.Kind, now uint32) bool {
	if !a.active {
		return false
	}
	if a.outages[kind].on(now) {
		return true
	}
	any := false
	for i := range a.outages {
		any = any || a.outages[i].on(now)
	}
	if any {
		return kind == maillog.TooManyErrors
	}
	for i := range a.breakers {
		any = any || a.breakers[i].on(now)
	}
	a.active = any
	return false
}

// tally counts would-be blocks by the minute.
type tally struct {
	minute     uint32
	known, all [breakSpan]uint32
}

// count takes in one would-be block and says whether the rule shows signs of being wrong.
func (t *tally) count(known bool, now uint32) (n uint32, wrong bool) {
	m := now / 60
	if m != t.minute {
		if m > t.minute+breakSpan || m+breakSpan < t.minute {
			*t = tally{minute: m}
		}
		for t.minute < m {
			t.minute++
			t.known[t.minute%breakSpan], t.all[t.minute%breakSpan] = 0, 0
		}
	}
	i := t.minute % breakSpan
	t.all[i]++
	if known {
		t.known[i]++
	}
	all := uint32(0)
	for j := range t.all {
		n, all = n+t.known[j], all+t.all[j]
	}
	return n, n >= breakKnown && n*breakRatio >= all
}

// judge counts a would-be block of cause c.
func (s *Scorer) count(c block.Cause, known bool, now uint32) {
	n, wrong := s.alarms.judged[c].count(known, now)
	if wrong && s.alarms.raise(&s.alarms.breakers[c], n, now, breakLast) {
		s.tell(breakerNotice(c, &s.alarms.breakers[c]))
	}
}

// outage suspends a kind. What known senders are suspected of at this moment is forgiven: it was our fault. This walks
// over the table, once per alarm.
func (s *Scorer) outage(kind maillog.Kind, n, now uint32) {
	x := &s.alarms.outages[kind]
	if !s.alarms.raise(x, n, now, outageLast) {
		return
	}
	s.tell(outageNotice(kind, x))
	for slot := range s.used {
		if r := s.rec(slot); r.flags&(flagBurst|flagKnown) == flagBurst|flagKnown {
			s.begin(slot, r)
			r.flags &^= flagBurst
			s.mark(slot)
		}
	}
}

func outageNotice(kind maillog.Kind, x *alarm) Notice {
	return Notice{
		Key:   "outage " + kind.String(),
		Since: when(x.since),
		Text: fmt.Sprintf("%s is not counted against anybody since %s: %d known senders were refused for it at once and hardly anybody got through; look for a fault of our own (recipient tables, user database, filter). It counts again 10 minutes after this is over",
			kind, when(x.since).Format("2006-01-02 15:04:05 MST"), x.n),
	}
}

func breakerNotice(c block.Cause, x *alarm) Notice {
	return Notice{
		Key:   "breaker " + c.String(),
		Since: when(x.since),
		Text: fmt.Sprintf("known senders are not blocked for %s since %s: %d of them would have been within 10 minutes, which is more likely a fault of ours than theirs; sources that never had mail accepted are blocked as ever. It ends by itself half an hour after it was last so",
			c, when(x.since).Format("2006-01-02 15:04:05 MST"), x.n),
	}
}

func (a *alarms) notices(list []Notice, now uint32) []Notice {
	for k := range a.outages {
		if x := &a.outages[k]; x.on(now) {
			list = append(list, outageNotice(maillog.Kind(k), x))
		}
	}
	for c := range a.breakers {
		if x := &a.breakers[c]; x.on(now) {
			list = append(list, breakerNotice(block.Cause(c), x))
		}
	}
	return list
}

// Stored alarms: version (1), then per alarm 'o' and the kind or 'b' and the cause (2), since, until, n (4 each). The
// windows and tallies of some minutes are not stored: after a restart they fill anew.
const alarmVersion = 1

func (s *Scorer) changedAlarms(fn func(key, val []byte)) {
	a := &s.alarms
	if !a.dirty {
		return
	}
	a.dirty = false
	b := []byte{alarmVersion}
	add := func(what byte, i int, x *alarm) {
		if x.until == 0 {
			return
		}
		b = append(b, what, byte(i))
		for _, v := range [...]uint32{x.since, x.until, x.n} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
	}
	for i := range a.outages {
		add('o', i, &a.outages[i])
	}
	for i := range a.breakers {
		add('b', i, &a.breakers[i])
	}
	fn([]byte{special, 'a'}, b)
}

func (s *Scorer) loadAlarms(b []byte) error {
	if len(b) == 0 || b[0] != alarmVersion || (len(b)-1)%14 != 0 {
		return fmt.Errorf("%w: alarms", errRecord)
	}
	n := s.alarms
	for b = b[1:]; len(b) > 0; b = b[14:] {
		le := binary.LittleEndian
		x := alarm{le.Uint32(b[2:]), le.Uint32(b[6:]), le.Uint32(b[10:])}
		switch i := int(b[1]); {
		case x.since == 0 || x.until < x.since || x.until > math.MaxUint32-1<<19:
			return fmt.Errorf("%w: times of an alarm", errRecord)
		case b[0] == 'o' && i < int(maillog.NumKinds):
			n.outages[i] = x
		case b[0] == 'b' && i < numCauses:
			n.breakers[i] = x
		default:
			return fmt.Errorf("%w: an alarm of no kind", errRecord)
		}
	}
	n.active = true
	s.alarms = n
	return nil
}
