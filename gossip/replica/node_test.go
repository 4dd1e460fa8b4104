package replica

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

func autoBlock(p string, life time.Duration, now time.Time) block.Entry {
	return block.Entry{Prefix: pfx(p), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(life), Hits: 3}
}

func (h *simHost) say(t testing.TB, e block.Entry) block.Entry {
	t.Helper()
	r, err := h.table.Apply(e, h.clock())
	if err != nil {
		t.Fatal(err)
	}
	h.soon()
	return r.Entry
}

func (h *simHost) drops(p string) bool { return h.table.Decide(pfx(p), h.clock()).Drop }

// TestBreaker: a node that blocks sources with welcome mail is suspended by those who had that mail, before the blocks
// that tripped it are enforced; nothing it says counts then, until somebody resumes it.
func TestBreaker(t *testing.T) {
	w := newWorld(1, 3)
	for i := range 3 {
		w.good[pfx(fmt.Sprintf("198.51.100.%d/32", i))] = true
	}
	w.startAll()
	w.run(time.Second)
	a, b := w.hosts[0], w.hosts[1]
	a.say(t, autoBlock("203.0.113.1/32", time.Hour, a.clock()))
	b.say(t, autoBlock("203.0.113.2/32", time.Hour, b.clock()))
	a.say(t, autoBlock("198.51.100.0/32", time.Hour, a.clock()))
	w.run(time.Second)
	if !b.drops("203.0.113.1/32") || len(b.table.Suspended()) > 0 {
		t.Fatal("suspended too early")
	}
	a.say(t, autoBlock("198.51.100.0/32", 2*time.Hour, a.clock())) // the same one again does not count
	a.say(t, block.Entry{Prefix: pfx("203.0.113.2/32"), Kind: block.Allow, Cause: block.Manual})
	w.run(time.Second)
	if len(b.table.Suspended()) > 0 || b.drops("203.0.113.2/32") {
		t.Fatal("suspended by a repetition")
	}
	for i := range 3 {
		a.say(t, autoBlock(fmt.Sprintf("198.51.100.%d/32", i), time.Hour, a.clock()))
	}
	w.run(time.Second)
	for _, h := range w.hosts[1:] {
		if got := h.table.Suspended(); !slices.Equal(got, []string{"mx1"}) {
			t.Errorf("%s suspends %q", h.name, got)
		}
		if h.drops("198.51.100.2/32") || h.drops("203.0.113.1/32") || !h.drops("203.0.113.2/32") {
			t.Errorf("%s enforces what mx1 says", h.name)
		}
	}
	if s := b.node.Stats(); s.Suspensions != 1 || len(s.Alarms) != 1 || !strings.Contains(s.Alarms[0].Text, `node "mx1" is suspended`) {
		t.Errorf("%+v", s)
	}
	// The suspension outlives a restart; one command ends it, and another undoes what mx1 did.
	b.commit()
	b.crash(false)
	b.start()
	w.run(3 * time.Second)
	if b.drops("203.0.113.1/32") || !b.node.Resume("mx1") || !b.drops("203.0.113.1/32") {
		t.Error("resume")
	}
	if _, err := b.table.ClearOrigin("mx1", b.clock()); err != nil {
		t.Fatal(err)
	}
	w.run(time.Second)
	for _, h := range w.hosts {
		if h.drops("198.51.100.2/32") || h.drops("203.0.113.1/32") || !h.drops("203.0.113.2/32") {
			t.Errorf("%s: after the origin clear", h.name)
		}
	}
}

// TestBreakerProportion: a botnet with some members that once got a message in is reported by somebody who is right; a
// flood that hits those who deliver here, or hosts with much mail, is not.
func TestBreakerProportion(t *testing.T) {
	for _, c := range []struct {
		name                        string
		blocks, some, much, senders int
		suspended                   bool
	}{
		{"a botnet", 5000, 100, 0, 10_000, false},
		{"a flood that hits all small senders", 5000, 12, 0, 40, true},
		{"blocks of senders only", 12, 12, 0, 10_000, true},
		{"a flood that hits large senders among many", 5000, 0, 12, 10_000, true},
		{"too few", 5000, 5, 4, 10, false},
	} {
		now := epoch0.Add(time.Minute)
		standing := func(p netip.Prefix) Standing {
			a := p.Addr().As4()
			i, each := int(a[2])<<8|int(a[3]), c.blocks/(c.some+c.much)
			switch {
			case i%each != 0:
			case i/each < c.some:
				return SomeMail
			case i/each < c.some+c.much:
				return MuchMail
			}
			return NoMail
		}
		n, _ := lone(t, "mx2", &now, Options{Accepted: standing, Senders: func() int { return c.senders }})
		var list []block.Entry
		for i := range c.blocks {
			list = append(list, block.Entry{
				Origin: "mx1", Epoch: block.NewEpoch(epoch0, 1), Seq: uint64(i + 1), Stamp: block.StampAt(epoch0) + block.Stamp(i), Kind: block.Block, Cause: block.Dictionary,
				Scope: block.ScopeMX, Since: epoch0, Until: epoch0.Add(time.Hour), Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32),
			})
		}
		for part := range slices.Chunk(list, 40) {
			n.Receive("mx1", recordsMessage(part))
			now = now.Add(time.Second)
		}
		if st := n.Stats(); int(st.Merged) != c.blocks || (len(n.table.Suspended()) > 0) != c.suspended {
			t.Errorf("%s: suspended %q after %d entries; %v", c.name, n.table.Suspended(), st.Merged, st.Alarms)
		}
	}
}

// TestRollingUpgrade: nodes of this version and of later ones keep the same entries while they are replaced one by one.
func TestRollingUpgrade(t *testing.T) {
	w := newWorld(1, 4)
	spoken := map[[2]string]byte{}
	w.onWire = func(from, to string, msg []byte, _ bool) { spoken[[2]string{from, to}] = msg[0] }
	w.startAll()
	w.hosts[2].crash(false)
	w.hosts[2].wire = 2
	w.hosts[2].start()
	w.hosts[3].crash(false)
	w.hosts[3].wire = 3
	w.hosts[3].start()
	w.run(2 * time.Second)
	for i, h := range w.hosts {
		h.say(t, autoBlock(fmt.Sprintf("198.51.100.%d/32", i), time.Hour, h.clock()))
	}
	w.run(3 * time.Second)
	check := func() {
		t.Helper()
		for _, h := range w.hosts {
			for i := range w.hosts {
				if !h.drops(fmt.Sprintf("198.51.100.%d/32", i)) {
					t.Errorf("%s lacks the entry of mx%d", h.name, i+1)
				}
			}
			if st := h.node.Stats(); st.UnknownVersion+st.UnknownKind+st.UnknownRecords+st.Malformed > 0 {
				t.Errorf("%s: %+v", h.name, st)
			}
		}
	}
	check()
	for _, c := range []struct {
		from, to string
		version  byte
	}{{"mx1", "mx2", 1}, {"mx1", "mx4", 1}, {"mx3", "mx2", 1}, {"mx3", "mx4", 2}, {"mx4", "mx3", 2}, {"mx4", "mx1", 1}} {
		if got := spoken[[2]string{c.from, c.to}]; got != c.version {
			t.Errorf("%s speaks version %d with %s", c.from, got, c.to)
		}
	}
	for _, h := range w.hosts {
		h.crash(false)
		h.wire = 3
		h.start()
		w.run(3 * time.Second)
	}
	check()
	if got := spoken[[2]string{"mx1", "mx2"}]; got != 3 {
		t.Errorf("after the upgrade version %d", got)
	}

	// Whoever speaks a version that was not agreed on is not understood, and nothing else happens.
	was := w.hosts[0].node.Stats()
	w.hosts[0].node.Receive("mx2", []byte{4, kindHello, 0})
	w.hosts[0].node.Receive("mx2", []byte{0, kindHello, 0})
	w.hosts[0].node.Receive("mx2", []byte{3, 99, 0})
	if st := w.hosts[0].node.Stats(); st.UnknownVersion != was.UnknownVersion+2 || st.UnknownKind != was.UnknownKind+1 {
		t.Errorf("%+v", st)
	}
}

// TestEvidence: thin attacks add up, no node alone makes more than half of a block, what is old or cleared ends.
func TestEvidence(t *testing.T) {
	w := newWorld(1, 12)
	w.startAll()
	w.run(time.Second)
	src, other := pfx("198.51.100.7/32"), pfx("2001:db8:1:2::/64")
	for i, h := range w.hosts[:10] {
		h.node.Share(src, 40, uint32(i%2))
		h.soon()
	}
	w.hosts[0].node.Share(other, 4_000_000, 0)
	if w.hosts[1].node.Share(other, 9, 0) {
		t.Error("points under the floor are told")
	}
	w.run(time.Second)
	if bad, ok := w.hosts[11].node.Elsewhere(src); bad < 395 || bad > 400 || ok != 5 {
		t.Errorf("%.1f points and %d accepted", bad, ok)
	}
	if bad, _ := w.hosts[0].node.Elsewhere(src); bad < 355 || bad > 360 {
		t.Errorf("with one's own told apart: %.1f points", bad)
	}
	if bad, _ := w.hosts[11].node.Elsewhere(other); bad != 50 {
		t.Errorf("one node makes %.1f points", bad)
	}
	// The newest counts, and half of it an hour later.
	w.hosts[0].node.Share(other, 80, 2)
	w.hosts[0].soon()
	w.run(time.Second)
	w.now = w.now.Add(59 * time.Minute)
	if bad, ok := w.hosts[11].node.Elsewhere(other); bad < 40 || bad > 41 || ok != 2 {
		t.Errorf("after an hour %.1f points and %d accepted", bad, ok)
	}
	// A clear ends it, for what is inside.
	w.hosts[5].say(t, block.Entry{Prefix: pfx("198.51.100.0/24"), Kind: block.Clear, Until: w.now.Add(time.Hour)})
	w.run(time.Second)
	if bad, _ := w.hosts[11].node.Elsewhere(src); bad != 0 {
		t.Errorf("after the clear %.1f points", bad)
	}
	w.hosts[11].node.Suspend("mx1")
	if bad, _ := w.hosts[11].node.Elsewhere(other); bad != 0 {
		t.Errorf("of a suspended node %.1f points", bad)
	}
	w.hosts[11].node.Resume("mx1")
	w.now = w.now.Add(62 * time.Minute)
	if bad, _ := w.hosts[11].node.Elsewhere(other); bad != 0 {
		t.Errorf("after two half-lives %.1f points", bad)
	}
	w.run(2 * time.Minute)
	if s := w.hosts[11].node.Stats(); s.Evidence != 0 {
		t.Errorf("%d registers are left", s.Evidence)
	}
}

// TestEvidenceAnswers: those who know something of a source that another has something against tell it, once, whatever
// it is; nobody goes on about it. The daemon's locks are as here: Accepted takes what is held around Share and Elsewhere.
func TestEvidenceAnswers(t *testing.T) {
	w := newWorld(1, 4)
	src := pfx("198.51.100.7/32")
	good := map[string]uint32{"mx2": 500, "mx3": 20}
	heard := map[string]int{}
	for _, h := range w.hosts {
		h.heard = func(list []HeardEvidence) {
			for _, e := range list {
				heard[h.name]++
				if e.Source != src {
					t.Errorf("%s heard of %s", h.name, e.Source)
				}
				if e.Asks && good[h.name] > 0 && h.node.Answer(e.Source, 0, good[h.name]) {
					h.soon()
				}
			}
		}
	}
	w.startAll()
	w.run(time.Second)
	ask := func(bad uint32) {
		if !w.hosts[0].node.Share(src, bad, 0) {
			t.Errorf("%d points are not told", bad)
		}
		w.hosts[0].soon()
		w.run(time.Second)
	}
	ask(10)
	if _, ok := w.hosts[0].node.Elsewhere(src); ok != 520 {
		t.Errorf("%d accepted elsewhere", ok)
	}
	if heard["mx1"] != 2 || heard["mx4"] != 3 {
		t.Errorf("%v", heard)
	}
	ask(20) // at once again: they have said it
	if heard["mx1"] != 2 {
		t.Errorf("%v", heard)
	}
	w.run(10 * time.Second)
	ask(40) // it may have been lost
	if heard["mx1"] != 4 {
		t.Errorf("%v", heard)
	}
	good["mx3"] = 50
	ask(60) // news
	if _, ok := w.hosts[0].node.Elsewhere(src); ok != 550 || heard["mx1"] != 5 {
		t.Errorf("%d accepted elsewhere, %v", ok, heard)
	}
	w.run(time.Minute)
	if n := heard["mx1"]; n != 5 {
		t.Errorf("heard %d times", n)
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	now := epoch0
	n, c := lone(t, "mx2", &now, Options{Evidence: EvidenceOptions{Max: 100}})
	c.peers = nil
	for i := range 1000 {
		n.Share(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), 50, 0)
	}
	if s := n.Stats(); s.Evidence != 100 || s.EvidenceDropped != 900 {
		t.Errorf("%+v", s)
	}
	now = now.Add(3 * time.Hour)
	n.Tick(now)
	if !n.Share(pfx("198.18.77.1/32"), 50, 0) {
		t.Error("no room after the others ended")
	}
}

// TestClockOff: a node whose clock is off tells the others nothing new, says so, and catches up when that is mended.
// The others are not disturbed by it.
func TestClockOff(t *testing.T) {
	for _, skew := range []time.Duration{-10 * time.Minute, -40 * time.Second, 40 * time.Second, 10 * time.Minute} {
		t.Run(skew.String(), func(t *testing.T) {
			w := newWorld(1, 4)
			w.startAll()
			w.run(3 * time.Second)
			a, b := w.hosts[0], w.hosts[1]
			a.skew = skew
			w.run(5 * time.Second)
			s := a.node.Stats()
			if s.Muted == "" || len(s.Alarms) == 0 || s.Alarms[0].Key != "clock" || (s.Offset+skew).Abs() > time.Second {
				t.Fatalf("%+v", s)
			}
			a.say(t, autoBlock("198.51.100.1/32", time.Hour, a.clock()))
			b.say(t, autoBlock("198.51.100.2/32", time.Hour, b.clock()))
			w.run(5 * time.Second)
			if !a.drops("198.51.100.1/32") || b.drops("198.51.100.1/32") {
				t.Error("a node whose clock is off must block for itself alone")
			}
			if !a.drops("198.51.100.2/32") && skew > -time.Minute { // else it waits for its time there
				t.Error("a node whose clock is off does not listen")
			}
			if m := w.hosts[2].node.Stats().Muted; m != "" {
				t.Errorf("another node: %s", m)
			}
			a.skew = 0
			w.run(20 * time.Second)
			w.leap(11*time.Minute, 30)
			for _, h := range w.hosts {
				if !h.drops("198.51.100.1/32") || !h.drops("198.51.100.2/32") || h.node.Stats().Muted != "" {
					t.Errorf("%s after the clock was mended: %q", h.name, h.node.Stats().Muted)
				}
			}
		})
	}
}

// TestClockReplayed: packets that were recorded and come again change nothing about the clock, however often they come.
func TestClockReplayed(t *testing.T) {
	now := epoch0.Add(time.Hour)
	n, _ := lone(t, "mx2", &now, Options{})
	from, c := lone(t, "mx1", &now, Options{})
	c.peers = []string{"mx2"}
	var old [][]byte
	for range 40 {
		old = append(old, from.Digest())
		now = now.Add(2 * time.Second)
	}
	n.Receive("mx1", from.Digest())
	for _, m := range old {
		for range 3 {
			n.Receive("mx1", m)
		}
		now = now.Add(time.Second)
		n.Tick(now)
		if s := n.Stats(); s.Muted != "" || s.Offset != 0 {
			t.Fatalf("%+v", s)
		}
	}
	// A clock that was really set back counts, a little later.
	now = now.Add(offsetLife + time.Minute)
	n.Receive("mx1", old[0])
	n.Tick(now)
	if s := n.Stats(); s.Muted == "" {
		t.Errorf("%+v", s)
	}
}

// TestRefused: epochs of tomorrow, numbers that jump, and feeds.
func TestRefused(t *testing.T) {
	now := epoch0.Add(2 * time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	n.Receive("mx1", recordsMessage(samples()[:2]))
	e := samples()[2]
	for name, change := range map[string]func(*block.Entry){
		"epoch mx1": func(e *block.Entry) { e.Epoch = block.NewEpoch(now.Add(2*time.Minute), 1) },
		"jump mx1":  func(e *block.Entry) { e.Seq = maxJump + 100 }, // whichever comes first
		"refused mx1": func(e *block.Entry) {
			e.Cause, e.Scope, e.Until = block.Feed, block.ScopeMX, now.Add(time.Hour)
		},
	} {
		bad := e
		change(&bad)
		n.Receive("mx1", recordsMessage([]block.Entry{bad}))
		s := n.Stats()
		if s.Merged != 2 || !slices.ContainsFunc(s.Alarms, func(a Alarm) bool { return a.Key == name }) {
			t.Errorf("%s: %+v", name, s)
		}
	}
	n.Receive("mx3", recordsMessage([]block.Entry{e}))
	if s := n.Stats(); s.Merged != 2 || !slices.ContainsFunc(s.Alarms, func(a Alarm) bool { return a.Key == "forged mx3" }) {
		t.Errorf("in another's name: %+v", s)
	}
	wide := e
	wide.Seq, wide.Prefix = 4, pfx("198.0.0.0/8")
	n.Receive("mx1", recordsMessage([]block.Entry{wide}))
	if s := n.Stats(); s.Merged != 2 {
		t.Errorf("%+v", s)
	}
}

// TestOwnNumbers: if others know numbers that this node never gave, it gives new ones to what it said.
func TestOwnNumbers(t *testing.T) {
	w := newWorld(1, 3)
	w.startAll()
	w.run(time.Second)
	a := w.hosts[0]
	epoch, _ := a.table.Number()
	// Another machine with the same name and epoch told mx2 more than mx1 knows.
	now := a.clock()
	e := autoBlock("203.0.113.9/32", time.Hour, now)
	e.Origin, e.Epoch, e.Seq, e.Stamp, e.Since = "mx1", epoch, 5, block.StampAt(now), now
	w.hosts[1].node.Receive("mx1", recordsMessage([]block.Entry{e}))
	a.say(t, autoBlock("198.51.100.1/32", time.Hour, now))
	w.run(10 * time.Second)
	if next, n := a.table.Number(); next == epoch || n != 1 {
		t.Errorf("epoch %x, %d entries", next, n)
	}
	for _, h := range w.hosts {
		if !h.drops("198.51.100.1/32") || !h.drops("203.0.113.9/32") {
			t.Errorf("%s lacks one", h.name)
		}
	}
	if s := a.node.Stats(); s.Conflicts != 1 {
		t.Errorf("%d conflicts", s.Conflicts)
	}
}

// TestNothingOfPeopleOnTheWire: what crosses the wire holds no word but the names of nodes.
func TestNothingOfPeopleOnTheWire(t *testing.T) {
	w := newWorld(1, 3)
	secrets := []string{"alice@example.org", "mail.sender.example", "status=bounced", "ticket 4711"}
	var all strings.Builder
	w.onWire = func(_, _ string, msg []byte, _ bool) { all.Write(msg) }
	w.startAll()
	w.run(time.Second)
	a := w.hosts[0]
	for i, p := range []string{"198.51.100.1/32", "198.51.100.0/24", "2001:db8::1/128"} {
		a.say(t, block.Entry{Prefix: pfx(p), Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll, Reason: strings.Join(secrets, " ")})
		a.say(t, block.Entry{Prefix: pfx(p), Kind: block.Clear, Until: w.now.Add(time.Hour), Reason: secrets[i]})
	}
	w.run(2 * time.Second)
	w.hosts[2].crash(true)
	w.hosts[2].start()
	w.run(5 * time.Second)
	if got := w.hosts[2].table.Count(w.now).Entries; got != 6 {
		t.Fatalf("%d entries", got)
	}
	for _, s := range secrets {
		for _, word := range strings.Fields(s) {
			if strings.Contains(all.String(), word) {
				t.Errorf("%q crossed the wire", word)
			}
		}
	}
	if !strings.Contains(all.String(), "mx1") {
		t.Error("the test sees nothing")
	}
}

// TestConcurrent: all methods from many goroutines.
func TestConcurrent(t *testing.T) {
	now := epoch0.Add(2 * time.Second)
	n, _ := lone(t, "mx2", &now, Options{})
	n.o.Net = quiet{}
	done := make(chan bool)
	m := goldenMessages(t)
	for i := range 4 {
		go func() {
			for j := range 200 {
				switch i {
				case 0:
					n.Receive("mx1", m["records"])
					n.Receive("mx3", m["pull"])
				case 1:
					n.Tick(now.Add(time.Duration(j) * beat))
				case 2:
					_, _ = n.table.Apply(autoBlock(fmt.Sprintf("198.51.100.%d/32", j), time.Hour, now), now)
					n.Flush(now)
				case 3:
					n.Stats()
					n.State()
					n.Digest()
					n.Share(pfx("198.51.100.1/32"), uint32(j), 0)
					n.Elsewhere(pfx("198.51.100.1/32"))
				}
			}
			done <- true
		}()
	}
	for range 4 {
		<-done
	}
}

type quiet struct{}

func (quiet) Peers() []string            { return []string{"mx1", "mx3"} }
func (quiet) Send(string, []byte) bool   { return true }
func (quiet) Stream(string, []byte) bool { return false }
func (quiet) WireVersion(string) uint32  { return WireVersion }
func (quiet) Behind() time.Duration      { return 0 }

// TestOpening: a member that unblocks much is told of on all others, whichever way it does that, and believed all the same; one
// that unblocks now and then is not.
func TestOpening(t *testing.T) {
	clearOf := func(h *simHost, p string) block.Entry {
		return block.Entry{Prefix: pfx(p), Kind: block.Clear, Until: h.clock().Add(time.Hour)}
	}
	told := func(h *simHost, of string) string {
		for _, a := range h.node.Stats().Alarms {
			if a.Key == "opened "+of {
				return a.Text
			}
		}
		return ""
	}
	for name, open := range map[string]func(*simHost){
		"clears": func(h *simHost) { h.say(t, clearOf(h, "198.18.0.0/16")); h.say(t, clearOf(h, "198.19.0.0/16")) },
		"allows": func(h *simHost) {
			h.say(t, block.Entry{Prefix: pfx("198.18.0.0/16"), Kind: block.Allow, Cause: block.Manual})
		},
		"singles": func(h *simHost) {
			for i := range 150 {
				h.say(t, clearOf(h, fmt.Sprintf("198.18.0.%d/32", i)))
			}
		},
		"of an origin": func(h *simHost) {
			if _, err := h.table.ClearOrigin("mx1", h.clock()); err != nil {
				t.Fatal(err)
			}
			h.soon()
		},
	} {
		w := newWorld(1, 3)
		w.startAll()
		w.run(time.Second)
		a, b, enemy := w.hosts[0], w.hosts[1], w.hosts[2]
		for i := range 200 {
			a.say(t, autoBlock(fmt.Sprintf("198.18.0.%d/32", i), 72*time.Hour, a.clock()))
		}
		for i := range 100 {
			b.say(t, autoBlock(fmt.Sprintf("198.51.100.%d/32", i), 72*time.Hour, b.clock()))
		}
		w.run(time.Second)
		b.say(t, clearOf(b, "198.18.0.192/29")) // what people do
		w.run(time.Second)
		if text := told(a, "mx2"); text != "" {
			t.Errorf("%s: %s", name, text)
		}
		open(enemy)
		w.run(time.Second)
		for _, h := range w.hosts[:2] {
			if text := told(h, "mx3"); !strings.Contains(text, `node "mx3" unblocked or allowed 1`) || h.drops("198.18.0.1/32") {
				t.Errorf("%s: %s is told %q", name, h.name, text)
			}
		}
		if told(enemy, "mx3") != "" {
			t.Errorf("%s: it is told of itself", name)
		}
		a.node.Suspend("mx3")
		if !a.drops("198.18.0.1/32") {
			t.Errorf("%s: suspended, and still open", name)
		}
		w.leap(11*time.Minute, 2)
		enemy.say(t, clearOf(enemy, "198.51.100.0/32")) // one more, long after
		w.run(90 * time.Second)
		if text := told(b, "mx3"); text != "" {
			t.Errorf("%s: still told: %s", name, text)
		}
	}
}
