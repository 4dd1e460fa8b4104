package replica

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// The simulator runs random histories of a small cluster and checks, on the way and after everything healed, what must
// hold. MXSHIELD_SIM=N runs N histories, MXSHIELD_SIM_SEED=S begins at seed S (one history is one seed).

var simPrefixes, simAddrs = func() (p []netip.Prefix, a []netip.Addr) {
	for i := range 8 {
		a = append(a, netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}))
	}
	for i := range 3 {
		a = append(a, netip.MustParseAddr(fmt.Sprintf("2001:db8:1:%d::25", i+1)))
	}
	a = append(a, netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("192.0.2.25"), netip.MustParseAddr("192.0.2.77"))
	for _, x := range a {
		bits := 32
		if x.Is6() {
			bits = 64
		}
		q, _ := x.Prefix(bits)
		p = append(p, q)
	}
	return p, a
}()

var simWide = []netip.Prefix{
	netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("198.51.100.0/30"), netip.MustParsePrefix("198.51.0.0/16"),
	netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:1:1::25/128"),
}

var simNever = []block.Never{
	{Prefix: netip.MustParsePrefix("192.0.2.25/32"), Rule: "own address"},
	{Prefix: netip.MustParsePrefix("192.0.2.64/26"), Rule: "allow in config line 1", Config: true},
}

// said is one entry of the history.
type said struct {
	block.Entry
	by, life int
	lost     bool // every copy of it was destroyed
}

type history struct {
	*world
	seed   uint64
	said   []said
	liar   *simHost
	lies   uint64
	faults []string
	trace  []string
}

func (h *history) fail(f string, a ...any) {
	if len(h.faults) < 10 {
		h.faults = append(h.faults, fmt.Sprintf("%s: ", h.now.Sub(epoch0))+fmt.Sprintf(f, a...))
	}
}

func (h *history) note(f string, a ...any) {
	h.trace = append(h.trace, fmt.Sprintf("%8.2fs ", h.now.Sub(epoch0).Seconds())+fmt.Sprintf(f, a...))
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (h *history) someone() *simHost {
	for range 20 {
		if x := pick(h.r, h.hosts); x.up {
			return x
		}
	}
	for _, x := range h.hosts {
		if x.up {
			return x
		}
	}
	x := pick(h.r, h.hosts)
	x.start()
	return x
}

// simulate runs the history of a seed.
func simulate(seed uint64, fault block.Fault) *history {
	r := rand.New(rand.NewPCG(seed, 99))
	h := &history{world: newWorld(seed, 3+r.IntN(3)), seed: seed}
	h.fault, h.budget = fault, block.Budget{Minute: 6, Live: 12}
	h.world.never = simNever
	h.net = network{loss: pick(r, []float64{0, 0.05, 0.3}), dup: 0.05, slow: pick(r, []float64{0, 0.1}), refuse: 0.02, delay: 50 * time.Millisecond}
	h.good[simPrefixes[11]] = true
	for i := range 4 {
		h.good[simPrefixes[i]] = r.IntN(3) == 0
	}
	h.startAll()
	if r.IntN(3) == 0 {
		h.liar = pick(r, h.hosts)
	}
	h.run(time.Second)
	for range 20 + h.r.IntN(30) {
		h.step()
		h.run(time.Duration(h.r.Int64N(int64(1500 * time.Millisecond))))
		h.safe()
	}
	h.heal()
	h.check()
	return h
}

// apply lets a host say something, as its scorer or its ctl would.
func (h *history) apply(x *simHost, e block.Entry) {
	now := x.clock()
	res, err := x.table.Apply(e, now)
	if err != nil || res.Entry.Stamp == 0 {
		return
	}
	h.note("%s says %s %s %s until %s (stamp %s)", x.name, e.Kind, e.Prefix, e.Cause, res.Entry.Until.Format(time.RFC3339), res.Entry.Stamp.Time().Format(time.RFC3339Nano))
	if !res.Entry.Automatic() {
		x.commit() // before it is acknowledged
	}
	for i, o := range h.hosts {
		if o == x {
			h.said = append(h.said, said{Entry: res.Entry, by: i, life: x.life})
		}
	}
	x.soon()
}

func (h *history) step() {
	x := h.someone()
	now := x.clock()
	i := h.r.IntN(len(simPrefixes))
	p := simPrefixes[i]
	if h.r.IntN(6) == 0 {
		p = pick(h.r, simWide)
	}
	hours := func(list ...int) time.Time { return now.Add(time.Duration(pick(h.r, list)) * time.Hour) }
	switch n := h.r.IntN(100); {
	case n < 30:
		c := pick(h.r, []block.Cause{block.Dictionary, block.AuthBrute, block.DNSBL})
		h.apply(x, block.Entry{Prefix: p, Kind: block.Block, Cause: c, Scope: c.Scope(), Until: hours(1, 20, 72, 168), Hits: uint32(h.r.IntN(100))})
	case n < 34: // many at once
		for j, q := range simPrefixes {
			if j != i {
				h.apply(x, block.Entry{Prefix: q, Kind: block.Block, Cause: block.Trap, Scope: block.ScopeMX, Until: hours(72), Hits: 1})
			}
		}
	case n < 48:
		e := block.Entry{Prefix: p, Kind: block.Clear, Until: now.Add(time.Duration(pick(h.r, []int{1, 24, 24 * 12, 24 * 30})) * time.Hour)}
		if h.r.IntN(8) == 0 {
			e.Until = time.Time{}
		}
		h.apply(x, e)
	case n < 54:
		e := block.Entry{Prefix: p, Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll}
		if h.r.IntN(2) == 0 {
			e.Until = hours(1, 50)
		}
		h.apply(x, e)
	case n < 58:
		h.apply(x, block.Entry{Prefix: p, Kind: block.Allow, Cause: block.Manual})
	case n < 61:
		h.apply(x, block.Entry{Prefix: p, Kind: block.Disallow})
	case n < 63:
		target := pick(h.r, h.hosts)
		if e, err := x.table.ClearOrigin(target.name, now); err == nil {
			h.note("%s clears origin %s", x.name, target.name)
			x.commit()
			x.soon()
			_ = e
		}
	case n < 66:
		if o := pick(h.r, h.hosts); o != x {
			h.note("%s suspends %s", x.name, o.name)
			x.node.Suspend(o.name)
		}
	case n < 68:
		for _, o := range x.table.Suspended() {
			h.note("%s resumes %s", x.name, o)
			x.node.Resume(o)
		}
	case n < 74:
		for _, o := range h.hosts {
			o.side = h.r.IntN(2)
		}
		h.note("partition: %s", h.sides())
	case n < 78:
		for _, o := range h.hosts {
			o.side = 0
		}
		h.note("no partition")
	case n < 84:
		wipe := h.r.IntN(3) == 0
		h.note("%s dies, disk lost: %v", x.name, wipe)
		x.crash(wipe)
		h.mourn()
		h.after(time.Duration(h.r.Int64N(int64(20*time.Second))), func() {
			if !x.up {
				h.note("%s starts", x.name)
				x.start()
			}
		})
	case n < 89:
		x.skew = time.Duration(h.r.Int64N(int64(20*time.Minute))) - 10*time.Minute
		if h.r.IntN(3) == 0 {
			x.skew /= 40
		}
		h.note("the clock of %s is off by %s", x.name, x.skew)
	case n < 92:
		for _, o := range h.hosts {
			o.skew = 0
		}
		h.note("clocks are right")
	case n < 95:
		d := time.Duration(pick(h.r, []int{1, 12, 24 * 6, 24 * 8, 24 * 11})) * time.Hour
		h.note("%s go by", d)
		h.leap(d, 6)
	default:
		if h.liar != nil && h.liar.up {
			h.lie()
		}
	}
}

func (h *history) sides() string {
	var b strings.Builder
	for _, o := range h.hosts {
		b.WriteByte('0' + byte(o.side))
	}
	return b.String()
}

// mourn finds what nobody has any more.
func (h *history) mourn() {
	have := map[string]bool{}
	key := func(e *block.Entry) string { return fmt.Sprint(e.Origin, e.Prefix, e.Kind, e.Stamp) }
	for _, x := range h.hosts {
		for _, e := range x.disk {
			have[key(&e)] = true
		}
		if x.up {
			for _, e := range entriesOf(x.table) {
				have[key(&e)] = true
			}
		}
	}
	for i := range h.said {
		s := &h.said[i]
		s.lost = s.lost || !have[key(&s.Entry)]
	}
}

// lie sends what no honest node would, in the liar's name.
func (h *history) lie() {
	x := h.liar
	now := x.clock()
	// In an epoch of its own: two records with the same number are beyond what nodes without identities can notice.
	h.lies++
	e := block.Entry{Origin: x.name, Epoch: block.NewEpoch(epoch0.Add(-time.Hour), 1), Seq: h.lies * 100, Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Prefix: pick(h.r, simPrefixes), Until: now.Add(time.Hour), Since: now, Stamp: block.StampAt(now)}
	var list []block.Entry
	switch n := h.r.IntN(9); n {
	case 0: // from the future
		e.Stamp = block.StampAt(now.Add(time.Duration(1+h.r.IntN(9)) * time.Minute))
	case 1: // for ever
		e.Until = now.Add(10000 * time.Hour)
	case 2: // wide
		e.Prefix = pick(h.r, []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("198.0.0.0/8"), netip.MustParsePrefix("2001:db8:1::/48")})
	case 3: // the numbers jump
		e.Seq += 1 << 24
	case 4: // a clear of everything
		e.Kind, e.Cause, e.Scope, e.Prefix = block.Clear, block.NoCause, 0, netip.MustParsePrefix("0.0.0.0/1")
	case 5: // a flood
		for i := range 60 {
			f := e
			f.Seq, f.Prefix = e.Seq+uint64(i), netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)
			f.Stamp += block.Stamp(i)
			list = append(list, f)
		}
	case 6: // an epoch of tomorrow
		e.Epoch = block.NewEpoch(now.Add(24*time.Hour), 1)
	case 7: // noise
		msg := make([]byte, h.r.IntN(200))
		for i := range msg {
			msg[i] = byte(h.r.Uint32())
		}
		if len(msg) > 2 {
			msg[0], msg[1], msg[2] = WireVersion, byte(h.r.IntN(9)), 0
		}
		for _, to := range x.Peers() {
			x.Send(to, msg)
		}
		return
	case 8: // one that does not know what it says: a digest of numbers that nobody gave
		b := binary.AppendUvarint(append(header(nil, kindDigest), 0), millis(now))
		o := pick(h.r, h.hosts)
		b, _ = appendDigest(b, []digestEntry{{o.name, o.node.own.epoch, spans{{1, uint64(1000 + h.r.IntN(1<<20))}}}}, 1000)
		for _, to := range x.Peers() {
			x.Send(to, b)
		}
		return
	}
	if list == nil {
		list = []block.Entry{e}
	}
	for _, l := range list {
		h.said = append(h.said, said{Entry: l, lost: true})
	}
	h.note("%s lies: %s", x.name, strings.TrimSpace(words(list[:1])))
	b := binary.BigEndian.AppendUint64(putString(header(nil, kindRecords), x.name), list[0].Epoch)
	b = binary.AppendUvarint(binary.AppendUvarint(b, millis(now)), list[len(list)-1].Seq)
	w := runWriter{b: b}
	w.start(list[0].Seq-1, list[0].Stamp)
	for i := range list {
		if !w.add(&list[i], MaxDatagram) {
			break
		}
	}
	for _, to := range x.Peers() {
		if h.r.IntN(2) == 0 {
			x.Send(to, w.b)
		}
	}
}

// clearsKnown returns the newest clears that must count on x: those that x made or, at the end, anybody.
func (h *history) clearsKnown(x *simHost, all bool) (list []block.Entry) {
	newest := map[string]block.Entry{}
	for _, s := range h.said {
		if s.Kind != block.Clear || s.lost || !all && (h.hosts[s.by] != x || s.life != x.life) {
			continue
		}
		k := fmt.Sprint(s.Origin, s.Prefix)
		if old, ok := newest[k]; !ok || old.Stamp < s.Stamp {
			newest[k] = s.Entry
		}
	}
	for _, k := range sortedKeys(newest) {
		list = append(list, newest[k])
	}
	return list
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// safe checks what must hold at any moment.
func (h *history) safe() {
	for _, x := range h.hosts {
		if x.up {
			x.table.Expire(x.clock()) // a clock that was just set is noticed then
			h.safeAt(x, h.clearsKnown(x, false))
		}
	}
}

func (h *history) safeAt(x *simHost, clears []block.Entry) {
	now := x.clock()
	suspended := x.table.Suspended()
	v := simView{self: x.name, suspended: suspended, now: now}
	v.entries = append(v.entries, x.table.OriginClears()...)
	for _, a := range simAddrs {
		d := x.table.Decide(single(a), now)
		if !d.Drop {
			continue
		}
		for _, n := range simNever {
			if n.Prefix.Contains(a) {
				h.fail("%s drops %s, which is never blocked", x.name, a)
			}
		}
		if d.By == nil {
			h.fail("%s drops %s for nothing", x.name, a)
			continue
		}
		b := d.By
		if b.Automatic() && now.After(b.Stamp.Time().Add(block.MaxAutomatic+time.Second)) {
			h.fail("%s drops %s by a block of %s, which outlived the longest life", x.name, a, b.Stamp.Time())
		}
		for _, s := range suspended {
			if b.Origin == s {
				h.fail("%s drops %s by a block of %s, which is suspended", x.name, a, s)
			}
		}
		for i := range clears {
			c := &clears[i]
			forgotten := !b.Automatic() && now.After(c.Until.Add(block.MaxAutomatic+time.Minute))
			if c.Prefix.Contains(a) && cancelled(c, b) && !forgotten && !v.early(c) && !v.mayBeVoid(c) && !contains(suspended, c.Origin) {
				h.fail("%s drops %s by %s although %s cleared it: %s", x.name, a, strings.TrimSpace(words([]block.Entry{*b})), c.Origin, strings.TrimSpace(words([]block.Entry{*c})))
			}
		}
	}
	byOrigin := map[string][]block.Stamp{}
	list, _ := x.table.List(block.Query{All: true}, now)
	for _, e := range list {
		if e.Effective && e.Automatic() && e.Origin != x.name {
			byOrigin[e.Origin] = append(byOrigin[e.Origin], e.Stamp)
		}
	}
	for _, o := range sortedKeys(byOrigin) {
		stamps := byOrigin[o]
		if len(stamps) > h.budget.Live {
			h.fail("%s enforces %d blocks of %s", x.name, len(stamps), o)
		}
		for _, s := range stamps {
			n := 0
			for _, t := range stamps {
				if t >= s && t < s+60_000<<16 {
					n++
				}
			}
			if n > h.budget.Minute {
				h.fail("%s enforces %d blocks of %s stamped within a minute", x.name, n, o)
			}
		}
	}
}

func contains(list []string, s string) bool {
	for _, t := range list {
		if t == s {
			return true
		}
	}
	return false
}

// heal ends all troubles and waits until nothing can be under way.
func (h *history) heal() {
	h.note("everything heals")
	h.net.loss, h.net.slow, h.net.refuse = 0.02, 0, 0
	for _, x := range h.hosts {
		x.side, x.skew = 0, 0
		if !x.up {
			x.start()
		}
	}
	h.run(30 * time.Second)
	h.leap(26*time.Minute, 26) // stamps and clocks that were ahead, doubts about clocks
	h.run(30 * time.Second)
}

// check compares all hosts with each other, with the model, and with what was said.
func (h *history) check() {
	for _, x := range h.hosts {
		for range 3 {
			x.table.Expire(x.clock().Add(2 * time.Minute))
		}
	}
	h.now = h.now.Add(2 * time.Minute)
	all := h.clearsKnown(nil, true)
	first := words(h.settled(entriesOf(h.hosts[0].table)))
	for _, x := range h.hosts {
		if s := x.node.Stats(); s.Muted != "" {
			h.fail("%s is still muted: %s", x.name, s.Muted)
		}
		entries := entriesOf(x.table)
		if got := words(h.settled(entries)); got != first {
			h.fail("%s differs from %s:\n%s", x.name, h.hosts[0].name, difference(first, got))
		}
		h.safeAt(x, all)
		v := simView{x.name, entries, simNever, x.table.Suspended(), h.budget, x.clock()}
		visible := v.visible()
		for _, a := range simAddrs {
			if got, want := x.table.Decide(single(a), x.clock()).Scope, v.decide(visible, a); got != want {
				h.fail("%s decides %s for %s, the model %s", x.name, got, a, want)
			}
		}
	}
	// Nothing is lost.
	have := map[string]block.Stamp{}
	for _, e := range entriesOf(h.hosts[0].table) {
		k := fmt.Sprint(e.Origin, e.Prefix, e.Kind, e.Automatic())
		have[k] = max(have[k], e.Stamp)
	}
	newest := map[string]block.Stamp{}
	for _, s := range h.said {
		k := fmt.Sprint(s.Origin, s.Prefix, s.Kind, s.Automatic())
		newest[k] = max(newest[k], s.Stamp)
	}
	for _, s := range h.said {
		replaced := newest[fmt.Sprint(s.Origin, s.Prefix, s.Kind, s.Automatic())] > s.Stamp
		ended := s.Kind != block.Clear && !s.Until.IsZero() && !s.Until.After(h.now)
		if s.lost || replaced || ended || h.hosts[s.by] == h.liar { // whose lies may replace what it said
			continue
		}
		if have[fmt.Sprint(s.Origin, s.Prefix, s.Kind, s.Automatic())] < s.Stamp {
			h.fail("lost: %s", strings.TrimSpace(words([]block.Entry{s.Entry})))
		}
	}
}

// settled leaves out what only a host that was away can still have, for a while: automatic blocks that their origin
// replaced with shorter ones, which ended meanwhile. That takes a lost disk, a lie, or a clear in between, which then
// cancels them there too; and they end within 7 days.
func (h *history) settled(list []block.Entry) []block.Entry {
	return slices.DeleteFunc(slices.Clone(list), func(e block.Entry) bool {
		if !e.Automatic() || e.Stamp.Time().Add(block.MaxAutomatic+time.Second).Before(h.now) {
			return false
		}
		return slices.ContainsFunc(h.said, func(s said) bool {
			return s.Origin == e.Origin && s.Prefix == e.Prefix && s.Automatic() && s.Stamp > e.Stamp && s.Until.Before(e.Until) && s.Until.Before(h.now)
		})
	})
}

func difference(a, b string) string {
	var out strings.Builder
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for _, s := range x {
		if !contains(y, s) {
			out.WriteString("- " + s + "\n")
		}
	}
	for _, s := range y {
		if !contains(x, s) {
			out.WriteString("+ " + s + "\n")
		}
	}
	return out.String()
}

func simSeed(t *testing.T) uint64 {
	if s := os.Getenv("MXSHIELD_SIM_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MXSHIELD_SIM_SEED: %v", err)
		}
		return n
	}
	return rand.Uint64() >> 16
}

func TestHistories(t *testing.T) {
	count := 200
	if s := os.Getenv("MXSHIELD_SIM"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("MXSHIELD_SIM: %v", err)
		}
	}
	seed := simSeed(t)
	t.Logf("%d histories from seed %d on", count, seed)
	for i := range uint64(count) {
		h := simulate(seed+i, block.NoFault)
		if len(h.faults) > 0 {
			t.Fatalf("MXSHIELD_SIM=1 MXSHIELD_SIM_SEED=%d:\n%s\n\n%s", h.seed, strings.Join(h.faults, "\n"), strings.Join(h.trace, "\n"))
		}
	}
}

// TestSimulatorFinds: each broken rule is found. A simulator that never fails proves nothing.
func TestSimulatorFinds(t *testing.T) {
	seed := simSeed(t)
	for name, f := range map[string]block.Fault{
		"clears forgotten at stamp + 7 d": block.FaultForgetClears, "no hold": block.FaultNoHold,
		"last writer's until": block.FaultLastWriter, "budgets by arrival": block.FaultArrivalBudget,
	} {
		t.Run(name, func(t *testing.T) {
			for i := range uint64(1000) {
				if h := simulate(seed+i, f); len(h.faults) > 0 {
					t.Logf("found in history %d (seed %d): %s", i+1, h.seed, h.faults[0])
					return
				}
			}
			t.Errorf("not found in 1000 histories from seed %d on", seed)
		})
	}
}
