package verdict

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// A site is a mail host with many senders at once; time moves in seconds.
type site struct {
	s       *Scorer
	now     time.Time
	rnd     *rand.Rand
	blocked map[netip.Addr]Verdict
	at      map[netip.Addr]time.Time
	news    []string
}

func newSite() *site {
	return &site{s: New(DefaultConfig()), now: t0, rnd: rand.New(rand.NewPCG(7, 7)), blocked: map[netip.Addr]Verdict{}, at: map[netip.Addr]time.Time{}}
}

func (x *site) do(a netip.Addr, k maillog.Kind) {
	if v, ok := x.s.Observe(&maillog.Event{Kind: k, Source: a, Count: 1, Time: x.now, User: x.rnd.Uint64() | 1}, x.now); ok {
		x.blocked[a], x.at[a] = v, x.now
	}
	for _, n := range x.s.News() {
		x.news = append(x.news, n.Key)
	}
}

func honestAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 80 + byte(i>>16), byte(i >> 8), byte(i)})
}

// attackAddr spreads attackers one to a /24.
func attackAddr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18 + byte(i>>8&1), byte(i), byte(i>>9) + 1})
}

// run lets each of senders send every mean seconds on average, a tenth of them bursts of 30, and each attacker
// offend every 10 s; outcome says what becomes of the message of a sender.
func (x *site) run(d time.Duration, senders, mean, attackers int, outcome func(i int) maillog.Kind) {
	for end := x.now.Add(d); x.now.Before(end); x.now = x.now.Add(time.Second) {
		for range max(1, senders/mean) {
			if senders < mean && x.rnd.IntN(mean) >= senders {
				continue
			}
			i, n := x.rnd.IntN(senders), 1
			if i%10 == 0 {
				n = 30
			}
			for range n {
				x.do(honestAddr(i), outcome(i))
			}
		}
		for range attackers / 10 {
			x.do(attackAddr(x.rnd.IntN(attackers)), maillog.UnknownRecipient)
		}
	}
}

func delivered(int) maillog.Kind { return maillog.Delivered }

func (x *site) honestBlocked() (n int) {
	for a := range x.blocked {
		if a.As4()[0] == 192 {
			n++
		}
	}
	return n
}

// TestOutage: the recipient table of a site with 2000 senders and 300 attackers is lost for an hour; whenever in a
// minute it begins.
func TestOutage(t *testing.T) {
	for _, begin := range []time.Duration{0, 1, 30, 59} {
		x := newSite()
		x.run(3*time.Hour+begin*time.Second, 2000, 500, 0, delivered)
		x.run(10*time.Minute, 2000, 500, 300, delivered)
		if len(x.blocked) != 300 || len(x.news) != 0 {
			t.Fatalf("before: %d blocked, %q", len(x.blocked), x.news)
		}
		began := x.now
		x.run(time.Hour, 2000, 500, 300, func(int) maillog.Kind { return maillog.UnknownRecipient })
		if !slices.Equal(x.news, []string{"outage unknown_recipient"}) {
			t.Errorf("news %q", x.news)
		}
		list := x.s.Notices(x.now)
		if len(list) != 1 || !strings.Contains(list[0].Text, "known senders were refused") {
			t.Errorf("notices %+v", list)
		} else if late := list[0].Since.Sub(began); late > holdFor*time.Second {
			t.Errorf("seen after %v", late)
		}
		// The state survives a restart.
		store := shelf{}
		store.save(x.s)
		x.s = store.load(t, DefaultConfig())
		if len(x.s.Notices(x.now)) != 1 {
			t.Error("forgotten by a restart")
		}
		x.run(30*time.Minute, 2000, 500, 0, delivered)
		if n := x.honestBlocked(); n != 0 {
			t.Errorf("%d honest senders blocked", n)
		}
		if len(x.s.Notices(x.now)) != 0 {
			t.Error("does not end")
		}
		before := len(x.blocked)
		for i := range 40 {
			for range 20 {
				x.do(attackAddr(1000+i), maillog.UnknownRecipient)
			}
		}
		if len(x.blocked) != before+40 {
			t.Errorf("%d blocked after it was over", len(x.blocked)-before)
		}
	}
}

// TestPlainAttack: 5000 attackers raise no alarm, nor do 8 compromised customers at their start or 30 more later; all
// are blocked.
func TestPlainAttack(t *testing.T) {
	x := newSite()
	x.run(3*time.Hour, 2000, 500, 0, delivered)
	for minute := range 20 {
		x.run(time.Minute, 2000, 500, 5000, delivered)
		customers := 8
		if minute >= 5 {
			customers = 38
		}
		for i := range customers {
			for range 40 {
				x.do(honestAddr(10*i+1), maillog.UnknownRecipient)
			}
		}
	}
	if len(x.news) != 0 || len(x.blocked) != 5038 || x.honestBlocked() != 38 {
		t.Errorf("%d blocked, %d of them with accepted mail, news %q", len(x.blocked), x.honestBlocked(), x.news)
	}
	for i := range 8 {
		if after := x.at[honestAddr(10*i+1)].Sub(t0.Add(3 * time.Hour)); after > 6*time.Minute {
			t.Errorf("a compromised customer is blocked after %v", after)
		}
	}
}

// TestBreaker: a fault that hits 40 known senders, while the other 1960 deliver: no outage to be seen, but a rule that
// would block dozens of sources with accepted mail.
func TestBreaker(t *testing.T) {
	x := newSite()
	x.run(3*time.Hour, 2000, 500, 0, delivered)
	for range 20 {
		x.run(time.Minute, 2000, 500, 0, delivered)
		for i := range 40 {
			for range 60 {
				x.do(honestAddr(20*i+1), maillog.SpamReject)
			}
		}
		for i := range 50 {
			for range 20 {
				x.do(attackAddr(i), maillog.SpamReject)
			}
		}
	}
	if x.honestBlocked() != 0 || !slices.Equal(x.news, []string{"breaker protocol_abuse"}) || len(x.s.Notices(x.now)) != 1 {
		t.Errorf("%d honest senders blocked, news %q", x.honestBlocked(), x.news)
	}
	if len(x.blocked) != 50 {
		t.Errorf("%d attackers blocked meanwhile", len(x.blocked))
	}
	before := len(x.blocked)
	for i := range 50 {
		for range 20 {
			x.do(attackAddr(2000+i), maillog.SpamReject)
		}
	}
	if len(x.blocked)-before != 50 {
		t.Errorf("the breaker protects strangers: %d blocked", len(x.blocked)-before)
	}
	x.run(time.Hour, 2000, 500, 0, delivered)
	if x.honestBlocked() != 0 || len(x.s.Notices(x.now)) != 0 {
		t.Errorf("%d blocked, %v", x.honestBlocked(), x.s.Notices(x.now))
	}
}

// TestSmallOutage: ten senders, one message in three minutes each.
func TestSmallOutage(t *testing.T) {
	x := newSite()
	x.run(3*time.Hour, 10, 180, 0, delivered)
	x.run(3*time.Hour, 10, 180, 0, func(int) maillog.Kind { return maillog.UnknownRecipient })
	if x.honestBlocked() != 0 {
		t.Errorf("%d blocked, %q", x.honestBlocked(), x.news)
	}
	if !slices.Contains(x.news, "outage unknown_recipient") {
		t.Errorf("%q", x.news)
	}
}

// TestHold: a sender that is known waits for his block, one that is not does not.
func TestHold(t *testing.T) {
	st := newStory()
	st.do(maillog.Delivered, 1, time.Second)
	st.others(200)
	st.wait(2 * time.Hour)
	began := st.now
	st.do(maillog.UnknownRecipient, 30, time.Second)
	a, _ := st.s.Lookup(src, st.now)
	if len(st.verdicts) != 0 || a.Held.IsZero() || !a.Until.IsZero() || !strings.Contains(a.Why(), "accepted before") {
		t.Errorf("%d verdicts, %+v", len(st.verdicts), a)
	}
	store := shelf{}
	store.save(st.s)
	st.s = store.load(t, DefaultConfig())
	st.do(maillog.UnknownRecipient, 300, time.Second)
	if len(st.verdicts) != 1 || st.verdicts[0].Since.Sub(began) > (holdFor+15)*time.Second || st.verdicts[0].Repeat != 0 {
		t.Errorf("%+v", st.verdicts)
	}
	// The second time is a repetition, whether or not it waits.
	st.now = st.verdicts[0].Until
	st.do(maillog.UnknownRecipient, 300, time.Second)
	if len(st.verdicts) != 2 || st.verdicts[1].Repeat != 1 || st.verdicts[1].Until.Sub(st.verdicts[1].Since) != 144*time.Hour {
		t.Errorf("%+v", st.verdicts[1:])
	}
	// What waits and stops is not blocked for it a day later.
	st = newStory()
	st.do(maillog.Delivered, 1, time.Second)
	st.others(200)
	st.wait(2 * time.Hour)
	st.do(maillog.UnknownRecipient, 30, time.Second)
	st.wait(24 * time.Hour)
	st.do(maillog.UnknownRecipient, 9, time.Second)
	if len(st.verdicts) != 0 {
		t.Errorf("%+v", st.verdicts)
	}
}

// TestGreatShare: everything comes from one address, or a great part of it.
func TestGreatShare(t *testing.T) {
	for _, c := range []struct {
		name        string
		mine, other int           // messages
		every       time.Duration // of mine
		block       bool
	}{
		{"load balancer, first 20 messages", 20, 0, time.Second, false},
		{"half of the mail within minutes", 30, 30, time.Second, false},
		{"19 messages are no great share of anything", 19, 0, time.Second, true},
		{"three messages a day of three", 3, 0, 3 * time.Hour, true},
		{"an eighth, over the day", 100, 700, 10 * time.Minute, false},
		{"an eighth, within minutes", 100, 700, time.Second, true},
		{"a twelfth, over the day", 100, 1100, 10 * time.Minute, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			st.others(c.other)
			st.do(maillog.Delivered, c.mine, c.every)
			st.do(maillog.UnknownRecipient, 200, 3*time.Second)
			a, _ := st.s.Lookup(src, st.now)
			if got := len(st.verdicts) > 0; got != c.block || (a.Spared == "") != c.block {
				t.Errorf("blocked %v, spared %q", got, a.Spared)
			}
			notes := st.s.Notices(st.now)
			if (len(notes) == 0) != c.block || !c.block && len(st.s.News()) != 1 {
				t.Errorf("%+v", notes)
			}
			if c.block {
				return
			}
			store := shelf{}
			store.save(st.s)
			st.s = store.load(t, DefaultConfig())
			st.do(maillog.UnknownRecipient, 200, time.Second)
			if len(st.verdicts) > 0 {
				t.Error("forgotten by a restart")
			}
			st.wait(49 * time.Hour)
			st.others(1000)
			st.do(maillog.UnknownRecipient, 400, time.Second)
			if len(st.verdicts) != 1 {
				t.Errorf("spared for ever")
			}
		})
	}
}

// TestShareBound: a share is never counted too low, and at most a 64th of all mail too high.
func TestShareBound(t *testing.T) {
	var s share
	rnd := rand.New(rand.NewPCG(3, 3))
	real, total := map[key]uint32{}, uint32(0)
	base := unix(t0)
	for i := range uint32(60000) {
		k := key{hi: uint64(rnd.ExpFloat64()*100) + 1}
		at := base + i
		s.add(k, 1, at, at)
		real[k]++
		total++
	}
	for k, n := range real {
		v := s.of(k, base+60000)
		if v.total != total || n > 3000 && v.mine < n || v.mine > n+total/shareKeys {
			t.Errorf("%v brought %d of %d, counted %+v", k, n, total, v)
		}
	}
}

func TestSuspendedWords(t *testing.T) {
	x := &alarm{since: unix(t0), until: unix(t0) + 60, n: 12}
	for _, n := range []Notice{outageNotice(maillog.UnknownRecipient, x), breakerNotice(block.Dictionary, x)} {
		if !strings.Contains(n.Text, "12") || !strings.Contains(n.Text, "2026-03-02 12:00:00 UTC") {
			t.Errorf("%+v", n)
		}
	}
	if fmt.Sprint(when(0).IsZero()) != "true" {
		t.Error("when")
	}
}

// TestShareGivesWay: who gives up its place in an hour is the first of those with the smallest count, as a search of all
// of them finds it.
func TestShareGivesWay(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 8))
	var h shareHour
	for range 100_000 {
		k := key{hi: v4mark | uint64(rnd.IntN(1+rnd.IntN(300)))}
		n := uint32(1 + rnd.IntN(3))
		i := h.find(k)
		if i < 0 && h.n < shareKeys {
			i, h.n = h.n, h.n+1
		}
		if i < 0 {
			want := 0
			for j, g := range h.got {
				if g < h.got[want] {
					want = j
				}
			}
			if i = h.smallest(); i != want {
				t.Fatalf("place %d with %d, want %d with %d", i, h.got[i], want, h.got[want])
			}
		}
		h.keys[i] = k
		h.got[i] += n
	}
}
