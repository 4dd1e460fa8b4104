package dnslist

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mxshield/mxshield/agent/internal/resolve"
)

// worlds are lists by zone: what each says of 192.0.2.N, by N; "-" never answers, "!" is SERVFAIL, "slow" comes after 950 ms.
func worlds(f *fakeDNS, zones map[string]map[string]string) {
	f.answer = func(name string, qtype uint16) ([]string, *resolve.Error) {
		for zone, says := range zones {
			rev, ok := strings.CutSuffix(name, "."+zone)
			if !ok {
				continue
			}
			if n, ok := strings.CutSuffix(rev, ".2.0.192"); ok {
				switch s := says[n]; s {
				case "-", "slow 127.0.0.2":
					d := 950 * time.Millisecond
					if s == "-" {
						d = time.Hour
					}
					time.Sleep(min(d, 5*time.Second))
					if s == "-" {
						return nil, &resolve.Error{Kind: resolve.Timeout}
					}
					return []string{"127.0.0.2"}, nil
				case "!":
					return nil, &resolve.Error{Kind: resolve.ServFail}
				case "":
					return nil, nil
				default:
					return strings.Fields(s), nil
				}
			}
			return good(zone, nil)(name, qtype)
		}
		return nil, nil
	}
}

// before asks and returns the decision, and after how long it came.
func (b *bench) before(a string, enough float64) (f Finding, listed bool, after time.Duration) {
	t0, n := time.Now(), 0
	b.Before(context.Background(), netip.MustParseAddr(a), t0.Add(900*time.Millisecond), enough, func(g Finding, l bool) {
		f, listed, after = g, l, time.Since(t0)
		n++
	})
	if n != 1 {
		panic(fmt.Sprintf("decided %d times", n))
	}
	return f, listed, after
}

// What blocks before the connection is accepted: enough points, of lists that are in order, in time, and that no list
// which is still silent could take back.
func TestBefore(t *testing.T) {
	sites := []string{"black.example=127.0.0.2*2", "grey.example=127.0.0.2", "white.example=127.0.0.2*-2"}
	for name, c := range map[string]struct {
		black, grey, white string
		enough             float64
		listed             bool
		sum                float64
		late               bool // it takes until the deadline
	}{
		"not listed":                      {enough: 70},
		"listed":                          {black: "127.0.0.2", enough: 70, listed: true, sum: 70},
		"not enough":                      {black: "127.0.0.2", enough: 71, sum: 70},
		"two lists":                       {black: "127.0.0.2", grey: "127.0.0.2", enough: 105, listed: true, sum: 105},
		"welcome too":                     {black: "127.0.0.2", white: "127.0.0.2", enough: 70},
		"another code":                    {black: "127.0.0.9", enough: 70},
		"no answer":                       {black: "-", enough: 70, late: true},
		"late":                            {black: "slow 127.0.0.2", enough: 70, late: true},
		"the late one does not matter":    {grey: "-", enough: 70},
		"the late one could not save it":  {black: "127.0.0.2", grey: "-", enough: 70, listed: true, sum: 70},
		"the late one could have saved":   {black: "127.0.0.2", white: "-", enough: 70, sum: 70, late: true},
		"the failing one could have":      {black: "127.0.0.2", white: "!", enough: 70, sum: 70},
		"SERVFAIL":                        {black: "!", enough: 70},
		"an error code, and it suspends":  {black: "127.255.255.254", enough: 70},
		"outside 127/8, and it suspends":  {black: "203.0.113.1", enough: 70},
		"grey alone can never be enough":  {grey: "127.0.0.2", enough: 70},
		"enough, and the others are late": {black: "127.0.0.2", grey: "-", enough: 60, listed: true, sum: 70},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeDNS{}
			worlds(f, map[string]map[string]string{"black.example": {"7": c.black}, "grey.example": {"7": c.grey}, "white.example": {"7": c.white}})
			bubble(t, Options{}, f, sites, func(t *testing.T, b *bench) {
				got, listed, after := b.before("192.0.2.7", c.enough)
				if listed != c.listed || listed && got.Sum != c.sum || (after >= 900*time.Millisecond) != c.late {
					t.Errorf("listed %v after %s: %+v", listed, after, got)
				}
				if n := len(b.findings()); n != 0 {
					t.Errorf("%d findings were handed over", n)
				}
				if s := b.Status(); s.Asked != 0 || s.Known != 0 || s.Zones[0].Listed != 0 {
					t.Errorf("it is remembered: %+v", s)
				}
			})
		})
	}
}

// Neither forged sources nor an impatient asker can suspend a list, use up its day, or its rate: the sources in the log come
// first.
func TestBeforeSpares(t *testing.T) {
	f := &fakeDNS{rdns: resolve.StateVerified}
	says := map[string]string{}
	for i := range 256 {
		says[fmt.Sprint(i)] = "127.0.0.2"
	}
	worlds(f, map[string]map[string]string{"bl.example.net": says})
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		(*b.zones.Load())[0].Daily, (*b.zones.Load())[0].Rate = 300, 10
		listed := 0
		ask := func(n int) {
			for i := range n {
				if _, l, _ := b.before(fmt.Sprintf("192.0.2.%d", i%256), 70); l {
					listed++
				}
			}
		}
		ask(100)
		if listed < 5 || listed > 10 { // half of two seconds' worth
			t.Errorf("%d of 100 at once were answered", listed)
		}
		if v4, _, why := b.CanAsk(70); v4 || why == "" {
			t.Errorf("there seems to be more: %q", why)
		}
		for range 60 {
			time.Sleep(time.Second)
			ask(5)
		}
		if listed < 145 || listed > 150 {
			t.Errorf("%d questions of a day's 300 were taken", listed)
		}
		if s := b.Status().Zones[0]; s.IPv4.State != OK || s.Left < 100 {
			t.Errorf("%+v", s)
		}
		// Who is in the log is asked about all the same, and found.
		b.Ask(netip.MustParseAddr("192.0.2.9"))
		time.Sleep(10 * time.Second)
		if g := b.findings(); len(g) != 1 || g[0].Sum != 70 {
			t.Errorf("%+v", g)
		}
		time.Sleep(24 * time.Hour)
		if v4, _, why := b.CanAsk(70); !v4 {
			t.Errorf("the next day: %s", why)
		}
	})
}

// TestBeforeKept: the share of these questions is the day's too, over restarts and with other codes. The rest of the day's
// queries stays for those who did connect.
func TestBeforeKept(t *testing.T) {
	f := &fakeDNS{rdns: resolve.StateVerified}
	worlds(f, map[string]map[string]string{"bl.example.net": {"9": "127.0.0.2"}})
	lists := func() []List {
		l, err := ParseSite(site)
		if err != nil {
			t.Fatal(err)
		}
		l.Daily = 100
		return []List{l}
	}
	var saved []byte
	bubble(t, Options{Lists: lists()}, f, nil, func(t *testing.T, b *bench) {
		for i := range 60 {
			b.before(fmt.Sprintf("192.0.2.%d", i), 70)
			time.Sleep(time.Second)
		}
		if v4, _, why := b.CanAsk(70); v4 || !strings.Contains(why, "no queries left") {
			t.Errorf("there seems to be more: %q", why)
		}
		saved, _ = b.Save()
	})
	bubble(t, Options{Lists: lists(), Saved: saved}, f, nil, func(t *testing.T, b *bench) {
		spent := func(when string) {
			t.Helper()
			if v4, _, why := b.CanAsk(70); v4 || !strings.Contains(why, "no queries left") {
				t.Errorf("%s there seems to be more: %q", when, why)
			}
		}
		spent("after a restart")
		other := lists()
		other[0].Codes[0].Points = 90
		b.SetLists(other)
		time.Sleep(time.Minute)
		spent("with other codes")
		b.Ask(netip.MustParseAddr("192.0.2.9"))
		time.Sleep(10 * time.Second)
		if g := b.findings(); len(g) != 1 || g[0].Sum != 90 {
			t.Errorf("who connects is not asked about: %+v", g)
		}
		time.Sleep(24 * time.Hour)
		if v4, _, why := b.CanAsk(70); !v4 {
			t.Errorf("the next day: %s", why)
		}
	})
}

// Nothing is to be held for a family, a list, or points that no answer can come for.
func TestCanAsk(t *testing.T) {
	f := &fakeDNS{}
	six := false
	f.answer = func(name string, qtype uint16) ([]string, *resolve.Error) {
		if strings.Contains(name, ".f.7.f.f.f.f.") && !six {
			return nil, nil // no test entry for IPv6
		}
		return good("bl.example.net", nil)(name, qtype)
	}
	bubble(t, Options{}, f, []string{site, "white.example*-1"}, func(t *testing.T, b *bench) {
		if v4, v6, why := b.CanAsk(70); !v4 || v6 || why != "" {
			t.Errorf("%v %v %q", v4, v6, why)
		}
		if v4, v6, _ := b.CanAsk(71); v4 || v6 {
			t.Error("more than all lists can give")
		}
		got := Finding{Source: netip.MustParseAddr("192.0.2.7"), Listings: []Listing{{Zone: "bl.example.net", Points: 70}}}
		if !b.Stands(&got) {
			t.Error("it does not stand")
		}
		(*b.zones.Load())[0].suspend(-1, "it lists everybody", "", 0)
		if v4, v6, why := b.CanAsk(70); v4 || v6 || !strings.Contains(why, "it lists everybody") {
			t.Errorf("%v %v %q", v4, v6, why)
		}
		if b.Stands(&got) {
			t.Error("it stands on a suspended list")
		}
		if _, listed, after := b.before("192.0.2.7", 70); listed || after > 0 {
			t.Errorf("a suspended list is asked, for %s", after)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if v4, _, why := b.CanAsk(70); !v4 {
			t.Error(why)
		}
		for _, a := range []string{"10.0.0.1", "127.0.0.1", "::1", "fe80::1"} {
			if _, listed, after := b.before(a, 70); listed || after > 0 {
				t.Errorf("%s is asked about", a)
			}
		}
	})
	six = true
	bubble(t, Options{}, f, []string{site}, func(t *testing.T, b *bench) {
		if v4, v6, why := b.CanAsk(70); !v4 || !v6 {
			t.Errorf("%v %v %q", v4, v6, why)
		}
	})
}

// A block must not outlive the listing, though the cache may.
func TestBeforeTTL(t *testing.T) {
	l, err := ParseSite(site)
	if err != nil {
		t.Fatal(err)
	}
	for rr, want := range map[uint32]time.Duration{5: 5 * time.Second, 0: 0, 600: 5 * time.Minute} {
		a := resolve.Answer{TTL: 5 * time.Minute, Records: recordsTTL(rr, "127.0.0.2")}
		if o := l.read(a); o.ttl != want {
			t.Errorf("a record of %d s, 5 min left in the cache: %s, want %s", rr, o.ttl, want)
		}
	}
}
