package reputation

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mxshield/mxshield/agent/internal/dnslist"
)

// fake answers by address, and counts.
type fake struct {
	mu    sync.Mutex
	says  map[string]dnslist.Answer // "ADDRESS LIST"
	lists []string
	asked int
}

func (f *fake) Report(_ context.Context, a netip.Addr) (list []dnslist.Answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	for _, z := range f.lists {
		r, ok := f.says[a.String()+" "+z]
		if !ok {
			r.Says = dnslist.Clean
		}
		r.Zone = z
		list = append(list, r)
	}
	return list
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

func (f *fake) set(key string, says dnslist.Says, codes ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := dnslist.Answer{Says: says, Why: "SERVFAIL"}
	for _, c := range codes {
		r.Codes, r.Why = append(r.Codes, netip.MustParseAddr(c)), ""
	}
	f.says[key] = r
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.25/32": "198.51.100.25", "198.51.100.254/31": "198.51.100.254 198.51.100.255", "2001:db8::25/128": "2001:db8::25",
		"2001:db8:25::/64": "2001:db8:25::", "2001:db8:25::/63": "2001:db8:25:: 2001:db8:25:1::", "2001:db8::/126": "2001:db8::",
		"2001:db8:0:fffe::/62": "2001:db8:0:fffc:: 2001:db8:0:fffd:: 2001:db8:0:fffe:: 2001:db8:0:ffff::",
		"198.51.0.0/16":        "", "::/0": "", "2001:db8::/32": "",
	} {
		list, err := Addresses(prefixes(in))
		if got := strings.Trim(fmt.Sprint(list), "[]"); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	if list, err := Addresses(prefixes("198.51.100.0/24")); err != nil || len(list) != 256 || list[255] != netip.MustParseAddr("198.51.100.255") {
		t.Errorf("%d, %v", len(list), err)
	}
	if _, err := Addresses(prefixes("198.51.100.0/24", "198.51.101.0/32")); err == nil {
		t.Error("257 addresses")
	}
}

// TestWatch follows an address through a listing, an outage, another code and the delisting, over a restart.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{says: map[string]dnslist.Answer{}, lists: []string{"a.test", "b.test"}}
		var mu sync.Mutex
		var got []string
		o := Options{Own: prefixes("198.51.100.25/32", "2001:db8:25::/64"), Lists: f, Log: slog.New(slog.DiscardHandler), Happened: func(e Event) {
			mu.Lock()
			got = append(got, fmt.Sprintf("%s %s %s %v", e.What, e.Address, e.List, e.Codes))
			mu.Unlock()
		}}
		var w *Watch
		var stop func()
		start := func() {
			var err error
			if w, err = New(o); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			go func() { w.Run(ctx); close(done) }()
			stop = func() { cancel(); <-done }
		}
		hours := func(n int, want ...string) {
			t.Helper()
			time.Sleep(time.Duration(n)*time.Hour + 5*time.Minute)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%q, want %q", got, want)
			}
			got = nil
		}
		const own = "198.51.100.25 a.test"
		start()
		hours(1)
		f.set(own, dnslist.Listed, "127.0.0.2")
		hours(1, "listed 198.51.100.25 a.test [127.0.0.2]")
		hours(3)
		f.set(own, dnslist.Unknown)
		hours(3)
		if o := w.Own()[0]; o.Lists[0].Says != dnslist.Listed || o.Lists[0].Why != "SERVFAIL" || o.Lists[1].Says != dnslist.Clean {
			t.Errorf("%+v", o)
		}
		kept, ok := w.Save()
		if _, again := w.Save(); !ok || again {
			t.Error("Save must give the state once per change")
		}
		stop()
		o.Saved = kept
		asked := f.count()
		start()
		time.Sleep(time.Minute)
		if f.count() != asked {
			t.Error("a restart asks anew")
		}
		f.set(own, dnslist.Listed, "127.0.0.2", "127.0.0.9")
		hours(1, "changed 198.51.100.25 a.test [127.0.0.2 127.0.0.9]")
		f.set(own, dnslist.Neutral, "127.0.0.1")
		hours(1, "delisted 198.51.100.25 a.test [127.0.0.2 127.0.0.9]")
		f.set("2001:db8:25:: b.test", dnslist.Listed, "127.0.0.3")
		hours(1, "listed 2001:db8:25:: b.test [127.0.0.3]")
		asked = f.count()
		time.Sleep(24 * time.Hour)
		if n := f.count() - asked; n < 40 || n > 56 {
			t.Errorf("%d questions about two addresses in a day", n)
		}

		// The history follows the address, and ends after a year.
		stop()
		o.Saved, _ = w.Save()
		o.Own = prefixes("198.51.100.26/32")
		start()
		hours(1)
		if e := w.Events(netip.MustParseAddr("198.51.100.25"), 100); len(e) != 3 || e[0].What != Delisted || e[2].What != Listed {
			t.Errorf("%+v", e)
		}
		if e := w.Events(netip.Addr{}, 2); len(e) != 2 || e[0].Address != netip.MustParseAddr("2001:db8:25::") {
			t.Errorf("%+v", e)
		}
		time.Sleep(366 * 24 * time.Hour)
		f.set("198.51.100.26 a.test", dnslist.Listed, "127.0.0.2")
		hours(1, "listed 198.51.100.26 a.test [127.0.0.2]")
		if e := w.Events(netip.Addr{}, 100); len(e) != 1 {
			t.Errorf("%+v", e)
		}

		// A list that goes back and forth has its share of the history and no more.
		for i := range 3 * maxPair {
			f.set("198.51.100.26 b.test", []dnslist.Says{dnslist.Clean, dnslist.Listed}[i%2], "127.0.0.2")
			time.Sleep(time.Hour + 5*time.Minute)
		}
		if e := w.Events(netip.Addr{}, 10_000); len(e) != maxPair+1 {
			t.Errorf("%d events", len(e))
		}
		stop()
		for _, bad := range []string{"{", "null", `{"version":9}`, `{"version":1,"events":[{"address":""}],"own":[{"address":"198.51.100.26","lists":null}]}`} {
			o.Saved = []byte(bad)
			if w, err := New(o); err != nil || len(w.Events(netip.Addr{}, 10)) != 0 {
				t.Errorf("%s: %v", bad, err)
			}
		}
	})
}

// FuzzSaved: whatever stands in the state file, a Watch comes of it that asks, within its bounds, and can be saved again.
func FuzzSaved(f *testing.F) {
	now := time.Unix(1_700_000_000, 0)
	own := netip.MustParseAddr("198.51.100.25")
	o := Options{Own: prefixes("198.51.100.25/32", "2001:db8:25::/64"), Now: func() time.Time { return now }, Log: slog.New(slog.DiscardHandler)}
	w, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	code := []netip.Addr{netip.MustParseAddr("127.0.0.2")}
	w.take(w.own[0], []dnslist.Answer{{Zone: "a.test", Says: dnslist.Listed, Codes: code}, {Zone: "b.test", Says: dnslist.Clean}})
	b, ok := w.Save()
	if !ok {
		f.Fatal("nothing to save")
	}
	f.Add(b)
	for _, s := range []string{
		"", "{", "null", `{"version":9}`, `{"version":1,"own":[{"address":"198.51.100.25","asked":"9999-12-31T23:59:59Z","next":"9999-12-31T23:59:59-12:00","lists":[{"list":"a.test","says":"x"},{"list":"a.test"}]}]}`,
		`{"version":1,"events":[{"address":"198.51.100.25","time":"9999-12-31T23:59:59-12:00"},{"address":"::ffff:1.2.3.4","what":"\u001b[2J","codes":["::"]}]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o := o
		o.Saved = b
		w, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		if o, at := w.due(); o == nil || at.Sub(now) > 2*every {
			t.Fatalf("asked next at %s", at)
		}
		for _, e := range w.Events(netip.Addr{}, 1<<30) {
			if d := now.Sub(e.Time).Abs(); d > keep || !e.Address.IsValid() {
				t.Fatalf("%+v", e)
			}
		}
		before := len(w.Events(own, 1<<30))
		w.take(w.own[0], []dnslist.Answer{{Zone: "a.test", Says: dnslist.Listed, Codes: code}})
		w.take(w.own[0], []dnslist.Answer{{Zone: "a.test", Says: dnslist.Clean}})
		if n := len(w.Events(own, 1<<30)) - before; n < 1 || n > 2 || len(w.own[0].Lists) != 1 {
			t.Fatalf("%d events of a listing and its end: %+v", n, w.own[0])
		}
		if _, ok := w.Save(); !ok {
			t.Fatal("it cannot be saved")
		}
	})
}
