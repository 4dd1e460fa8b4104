package verdict

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// deliver lets a message reach recipient number to.
func (st *story) deliver(to int) {
	st.event(maillog.Event{Kind: maillog.Delivered, Source: src, Count: 1})
	st.event(maillog.Event{Kind: maillog.Recipient, Source: src, Count: 1, User: stirred(to)})
}

// stirred is a hash of a recipient.
func stirred(n int) uint64 {
	x := uint64(n+1) * 0x9e3779b97f4a7c15
	x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
	return x ^ x>>32
}

// guesses counts how many unknown recipients a source can try before it is blocked, at most limit; before each it does
// what it takes to be believed.
func guesses(st *story, limit int, every time.Duration, pay func(i int)) int {
	for i := range limit {
		pay(i)
		st.do(maillog.UnknownRecipient, 1, every)
		if len(st.verdicts) > 0 {
			return i + 1
		}
	}
	return limit
}

// TestBuyingCredit: what a guess at a recipient costs who would rather not be blocked. This is the price list of the
// package comment.
func TestBuyingCredit(t *testing.T) {
	bought := func(n int, wait time.Duration) *story {
		st := newStory()
		st.others(9000)
		st.do(maillog.Delivered, n, time.Second)
		st.wait(wait)
		return st
	}
	fresh := func() *story { return bought(0, 0) }
	for _, c := range []struct {
		name     string
		min, max int
		run      func() int
	}{
		{"nothing", 10, 10, func() int { return guesses(fresh(), 5000, time.Second, func(int) {}) }},
		// A known sender is held for three minutes, but not beyond ten thresholds.
		{"one message before", 20, 102, func() int { return guesses(bought(1, time.Hour), 5000, time.Second, func(int) {}) }},
		{"50 messages before", 60, 160, func() int { return guesses(bought(50, 2*time.Hour), 5000, time.Second, func(int) {}) }},
		{"50 messages before, then all at once", 60, 160, func() int { return guesses(bought(50, 2*time.Hour), 5000, 0, func(int) {}) }},
		{"50 messages before, then slowly, for weeks", 50, 400, func() int {
			// Slower than seven an hour needs no credit at all.
			return guesses(bought(50, 2*time.Hour), 20000, 4*time.Minute, func(int) {})
		}},
		{"a message to the same recipient, behind which are 18 guesses", 20, 60, func() int {
			st := fresh()
			for i := range 5000 {
				st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: src, Count: 1, User: stirred(i + 1000), Midway: true})
				if len(st.verdicts) > 0 {
					return i + 1
				}
				if i%18 == 17 {
					st.deliver(7)
					st.wait(5 * time.Second)
				}
			}
			return 5000
		}},
		{"a message to the same recipient per guess", 30, 65, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(int) { st.deliver(7) })
		}},
		{"ten messages to the same recipient per guess", 5000, 5000, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(int) {
				for range 10 {
					st.deliver(7)
				}
			})
		}},
		{"two messages to the same recipient per guess", 30, 100, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(int) { st.deliver(7); st.deliver(7) })
		}},
		{"a message to one of twenty recipients per guess", 50, 110, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(i int) { st.deliver(i % 20) })
		}},
		{"a message to one of 400 recipients per guess", 5000, 5000, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(i int) { st.deliver(i % 400) })
		}},
		{"a message to one of 400 recipients per two guesses", 40, 700, func() int {
			st := fresh()
			return guesses(st, 5000, time.Second, func(i int) {
				if i%2 == 0 {
					st.deliver(i / 2 % 400)
				}
			})
		}},
	} {
		got := c.run()
		t.Logf("%s: %d guesses", c.name, got)
		if got < c.min || got > c.max {
			t.Errorf("%s: %d guesses, want %d to %d", c.name, got, c.min, c.max)
		}
	}
}

// TestNewsletter: 40% of its addresses are dead, nobody has heard of it before, the order is up to chance, and the log
// names the recipients late: a filter takes its time.
func TestNewsletter(t *testing.T) {
	seeds := uint64(40)
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		seeds = 1000
	}
	for _, c := range []struct{ every, lag time.Duration }{{time.Second, 0}, {time.Second, 10 * time.Second}, {200 * time.Millisecond, 10 * time.Second}} {
		blocked := uint64(0)
		for seed := range seeds {
			st, rnd := newStory(), rand.New(rand.NewPCG(seed, 5))
			st.others(5000)
			var reached []time.Time // of recipients by number, those that the log has not named yet
			for i := range 500 {
				if rnd.IntN(100) < 40 {
					st.do(maillog.UnknownRecipient, 1, 0)
				} else {
					st.do(maillog.Delivered, 1, 0)
					reached = append(reached, st.now.Add(c.lag))
				}
				for len(reached) > 0 && !reached[0].After(st.now) {
					reached = reached[1:]
					st.event(maillog.Event{Kind: maillog.Recipient, Source: src, Count: 1, User: stirred(i)})
				}
				st.wait(c.every)
			}
			if len(st.verdicts) > 0 {
				blocked++
			}
		}
		if t.Logf("every %s, named %s later: %d of %d blocked", c.every, c.lag, blocked, seeds); blocked*100 > seeds {
			t.Errorf("%d of %d blocked", blocked, seeds)
		}
	}
}

func TestTraps(t *testing.T) {
	for _, c := range []struct {
		name string
		want int
		tell func(st *story)
	}{
		{"one hit", 1, func(st *story) { st.do(maillog.Trap, 1, 0) }},
		{"one hit after a message in the same hour", 1, func(st *story) { st.do(maillog.Delivered, 1, time.Second); st.do(maillog.Trap, 1, 0) }},
		{"one hit after 20 messages in the same hour", 1, func(st *story) {
			st.do(maillog.Delivered, 20, time.Second)
			st.do(maillog.Trap, 1, 0)
		}},
		{"one hit after 500 messages in the same hour", 1, func(st *story) {
			st.do(maillog.Delivered, 500, time.Second)
			st.do(maillog.Trap, 1, 0)
		}},
		{"a known sender with 20 messages is held, and blocked if it goes on", 1, func(st *story) {
			st.do(maillog.Delivered, 20, time.Second)
			st.wait(2 * time.Hour)
			st.do(maillog.Trap, 1, 4*time.Minute)
			if len(st.verdicts) != 0 {
				t.Error("not held")
			}
			st.do(maillog.Trap, 1, 0)
		}},
		{"a known sender with 5 messages", 1, func(st *story) {
			st.do(maillog.Delivered, 5, time.Second)
			st.wait(2 * time.Hour)
			st.do(maillog.Trap, 1, 0)
		}},
		{"other offences before it do not hide it", 1, func(st *story) {
			st.do(maillog.Delivered, 30, time.Second)
			st.do(maillog.UnknownRecipient, 5, time.Second)
			st.do(maillog.RelayDenied, 2, time.Second)
			st.do(maillog.Trap, 1, 0)
		}},
		{"a list host with 5000 messages pays for ten hits", 0, func(st *story) {
			st.do(maillog.Delivered, 5000, time.Second)
			st.wait(2 * time.Hour)
			for range 10 {
				st.do(maillog.Trap, 1, time.Hour)
			}
		}},
		{"... but not for a hundred", 1, func(st *story) {
			st.do(maillog.Delivered, 5000, time.Second)
			st.wait(2 * time.Hour)
			st.do(maillog.Trap, 100, time.Minute)
		}},
		{"three hits with 250 messages", 1, func(st *story) {
			st.do(maillog.Delivered, 250, time.Second)
			st.wait(2 * time.Hour)
			st.do(maillog.Trap, 4, 4*time.Minute)
		}},
	} {
		st := newStory()
		st.others(9000)
		c.tell(st)
		if len(st.verdicts) != c.want {
			a, _ := st.s.Lookup(src, st.now)
			t.Errorf("%s: %d verdicts; %s, %s", c.name, len(st.verdicts), a.Words(), a.Why())
			continue
		}
		for _, v := range st.verdicts {
			if v.Cause != block.Trap || v.Scope != block.ScopeMX || !strings.Contains(v.Evidence.Words(), "trap hit") {
				t.Errorf("%s: %+v, %s", c.name, v, v.Evidence.Words())
			}
		}
	}
	st := newStory()
	st.do(maillog.Trap, 1, 0)
	if w := st.verdicts[0].Evidence.Words(); w != "1 trap hit, 0 accepted, in 0 s" {
		t.Errorf("%q", w)
	}
}

// TestTrapKeepsItsShare: in whatever order a third cause comes.
func TestTrapKeepsItsShare(t *testing.T) {
	type step struct {
		c      block.Cause
		points float64
	}
	for _, steps := range [][]step{
		{{block.Dictionary, 50}, {block.RelayProbe, 30}, {block.Trap, 100}},
		{{block.RelayProbe, 30}, {block.Dictionary, 50}, {block.Trap, 100}},
		{{block.Trap, 100}, {block.Dictionary, 50}, {block.RelayProbe, 75}, {block.Flood, 20}},
		{{block.Dictionary, 50}, {block.Trap, 100}, {block.RelayProbe, 75}, {block.Flood, 200}},
	} {
		var r record
		total := 0.0
		for _, x := range steps {
			r.offend(x.c, x.points, 1)
			total += x.points
		}
		trap := 0.0
		for i, why := range r.why {
			if why == uint8(block.Trap) {
				trap += r.part(i)
			}
		}
		if trap < 99.9 || trap > 100.1 || float64(r.points) != total {
			t.Errorf("%v: %v of %v points, %+v", steps, trap, r.points, r)
		}
	}
}

// TestTrapsByMistake: somebody writes the own domain among the traps. Nobody who is known may be blocked for it.
func TestTrapsByMistake(t *testing.T) {
	x := newSite()
	x.run(3*time.Hour, 2000, 500, 0, delivered)
	x.run(30*time.Minute, 2000, 500, 0, func(int) maillog.Kind { return maillog.Trap })
	if n := x.honestBlocked(); n > 0 || len(x.news) == 0 {
		t.Errorf("%d known senders blocked, news %q", n, x.news)
	}
	// Small senders do not wait, so the first ten tell.
	x = newSite()
	x.run(time.Hour, 2000, 500, 0, delivered)
	for range 3 {
		for i := range 100 {
			x.do(honestAddr(5000+i), maillog.Delivered)
		}
		x.now = x.now.Add(time.Hour)
	}
	for i := range 100 {
		x.do(honestAddr(5000+i), maillog.Trap)
		x.now = x.now.Add(time.Second)
	}
	if n := x.honestBlocked(); n == 0 || n > 10 || len(x.news) == 0 {
		t.Errorf("%d small known senders blocked, news %q", n, x.news)
	}
}

func TestOwnMX(t *testing.T) {
	st := newStory()
	st.others(100)
	st.s.SetOwnMX([]netip.Addr{src, netip.MustParseAddr("::ffff:198.51.100.8"), {}, netip.IPv4Unspecified()})
	st.do(maillog.UnknownRecipient, 100, time.Second)
	st.do(maillog.Trap, 3, time.Second)
	if len(st.verdicts) != 0 {
		t.Errorf("blocked: %+v", st.verdicts)
	}
	a, _ := st.s.Lookup(src, st.now)
	if n := st.s.Notices(st.now); len(n) != 1 || !strings.Contains(n[0].Text, "MX of our own domains") || a.Spared == "" {
		t.Errorf("notices %+v, account %+v", n, a)
	}
	// Nor is the network around it, and once it is none any more, it is blocked at its next offence.
	for i := range 60 {
		for range 15 {
			st.event(maillog.Event{Kind: maillog.UnknownRecipient, Source: netip.AddrFrom4([4]byte{198, 51, 100, byte(20 + i)}), Count: 1})
		}
	}
	if slices.ContainsFunc(st.verdicts, func(v Verdict) bool { return v.Prefix.Bits() == 24 }) || len(st.verdicts) != 60 {
		t.Errorf("%d verdicts", len(st.verdicts))
	}
	st.verdicts = nil
	st.s.SetOwnMX(nil)
	st.do(maillog.UnknownRecipient, 1, 0)
	if len(st.verdicts) != 1 {
		t.Error("still spared")
	}
}

// TestReachPersists: a restart in the midst of a newsletter changes nothing.
func TestReachPersists(t *testing.T) {
	st := newStory()
	st.others(9000)
	st.do(maillog.UnknownRecipient, 1, time.Second)
	for i := range 200 {
		st.deliver(i)
	}
	st.do(maillog.UnknownRecipient, 150, time.Second)
	want, _ := st.s.Lookup(src, st.now)
	store := shelf{}
	store.save(st.s)
	st.s = store.load(t, DefaultConfig())
	if got, _ := st.s.Lookup(src, st.now); got != want || want.Evidence.Score != 0 {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestReadme: the table of weights in README.md is what the code has.
func TestReadme(t *testing.T) {
	b, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "| offence | points |")
	table, _, end := strings.Cut(rest, "\n\n")
	if !ok || !end {
		t.Fatal("no table of weights")
	}
	got, want := map[string]float64{}, map[string]float64{}
	for _, cell := range regexp.MustCompile(`\| ([a-z_, ]+) \| (\d+) `).FindAllStringSubmatch(table, -1) {
		w, _ := strconv.ParseFloat(cell[2], 64)
		for name := range strings.SplitSeq(cell[1], ",") {
			name = strings.TrimSpace(name)
			if _, twice := got[name]; twice {
				t.Errorf("%s stands there twice", name)
			}
			got[name] = w
		}
	}
	for k, w := range DefaultWeights() {
		switch kind := maillog.Kind(k); kind {
		case maillog.None, maillog.Connect, maillog.Disconnect, maillog.Delivered, maillog.AuthSuccess, maillog.Other, maillog.Recipient, maillog.DNSListed, maillog.DNSBLReject: // the lists' are weighed by the agent
			if w != 0 {
				t.Errorf("%s weighs %v", kind, w)
			}
		default:
			want[kind.String()] = w
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("README: %v\ncode:   %v", got, want)
	}
}

// TestWordsOfAllKinds: whatever can count is said in words, in singular and plural.
func TestWordsOfAllKinds(t *testing.T) {
	for k := range maillog.NumKinds {
		if (evidenceSlot[k] > 0) != (kindWords[k][0] != "" && k != maillog.Connect) {
			t.Errorf("%s is counted but has no words, or the other way round", k)
		}
		if w := DefaultWeights()[k]; w > 0 && evidenceSlot[k] == 0 {
			t.Errorf("%s weighs %v but is not counted", k, w)
		}
		if evidenceSlot[k] == 0 {
			continue
		}
		for n, word := range map[uint32]string{1: kindWords[k][0], 2: kindWords[k][1]} {
			e := Evidence{Accepted: 3, First: t0, Last: t0.Add(41 * time.Second)}
			e.Counts[k] = n
			if want := fmt.Sprintf("%d %s, 3 accepted, in 41 s", n, word); e.Words() != want {
				t.Errorf("%q, want %q", e.Words(), want)
			}
		}
	}
}
