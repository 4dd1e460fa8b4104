package verdict

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// relayed is a refusal to relay to one recipient of a domain: see maillog.Event.User.
func relayed(domain, n int) uint64 { return who("rcpt", n)&^0xffffffff | who("domain", domain)>>32 }

// TestStrayDomain: once three known senders were refused for the same domain, nobody is blocked for it, and it is said. Strangers
// do not make it so, nor does it help with other domains.
func TestStrayDomain(t *testing.T) {
	for _, c := range []struct {
		name             string
		known, strangers int
		domain           int // that the source tries
		later            time.Duration
		restart          bool
		blocked          bool
	}{
		{"three known senders", 3, 0, 1, time.Hour, false, false},
		{"three known senders, after a restart", 3, 0, 1, time.Hour, true, false},
		{"two known senders", 2, 0, 1, time.Hour, false, true},
		{"a hundred strangers", 0, 100, 1, time.Hour, false, true},
		{"another domain", 3, 0, 2, time.Hour, false, true},
		{"two days later", 3, 0, 1, 48 * time.Hour, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
			for i := range c.known {
				st.event(maillog.Event{Kind: maillog.Delivered, Source: at(i), Count: 1})
			}
			st.others(1000)
			st.wait(time.Hour)
			for i := range c.known + c.strangers {
				st.event(maillog.Event{Kind: maillog.RelayDenied, Source: at(i), Count: 1, User: relayed(1, i)})
				st.wait(time.Second)
			}
			told := ""
			for _, n := range st.s.News() {
				told += n.Text
			}
			if strings.Contains(told, "one and the same domain") != (c.known >= strayKnown) {
				t.Errorf("told %q", told)
			}
			st.wait(c.later)
			if c.restart {
				store := shelf{}
				store.save(st.s)
				st.s = store.load(t, DefaultConfig())
			}
			for i := range 20 {
				st.event(maillog.Event{Kind: maillog.RelayDenied, Source: src, Count: 1, User: relayed(c.domain, i)})
				st.wait(time.Minute)
			}
			if got := len(st.verdicts) > 0; got != c.blocked {
				t.Errorf("blocked: %v", got)
			}
			stands := false
			for _, n := range st.s.Notices(st.now) {
				stands = stands || strings.HasPrefix(n.Key, "stray ")
			}
			if want := c.known >= strayKnown && c.later < 24*time.Hour; stands != want {
				t.Errorf("in the notices: %v", stands)
			}
			if len(st.s.News()) != 0 {
				t.Error("told twice")
			}
		})
	}
}

// TestStraysBounded: a known sender that tries thousands of domains takes no more room, and those that are in use stay.
func TestStraysBounded(t *testing.T) {
	st := newStory()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	for i := range 4 {
		st.event(maillog.Event{Kind: maillog.Delivered, Source: at(i), Count: 1})
	}
	st.wait(time.Hour)
	for i := range 3000 {
		for j := range 3 {
			st.event(maillog.Event{Kind: maillog.RelayDenied, Source: at(j), Count: 1, User: relayed(1, i)})
		}
		st.event(maillog.Event{Kind: maillog.RelayDenied, Source: at(3), Count: 1, User: relayed(2+i, i)})
		st.wait(time.Second)
	}
	st.verdicts = nil
	for i := range 20 {
		st.event(maillog.Event{Kind: maillog.RelayDenied, Source: src, Count: 1, User: relayed(1, i)})
	}
	if len(st.verdicts) != 0 {
		t.Error("forgotten")
	}
}

// TestLoadStraysRefuses: damaged records are errors and change nothing.
func TestLoadStraysRefuses(t *testing.T) {
	st := newStory()
	for i := range 3 {
		a := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
		st.event(maillog.Event{Kind: maillog.Delivered, Source: a, Count: 1})
		st.now = st.now.Add(time.Hour)
		st.event(maillog.Event{Kind: maillog.RelayDenied, Source: a, Count: 1, User: relayed(1, i)})
	}
	key := []byte{special, 's'}
	var good []byte
	st.s.Changed(func(k, v []byte) {
		if string(k) == string(key) {
			good = append(good, v...)
		}
	})
	if len(good) != 1+strayStored {
		t.Fatalf("%d bytes", len(good))
	}
	for name, b := range map[string][]byte{
		"nothing": {}, "another version": append([]byte{9}, good[1:]...), "cut": good[:len(good)-1],
		"no domain": append([]byte{1, 0, 0, 0, 0}, good[5:]...), "too many": append([]byte{1}, make([]byte, strayStored*(strays+1))...),
		"no time": append(append([]byte{}, good[:5]...), make([]byte, strayStored-4)...),
	} {
		s := New(DefaultConfig())
		if err := s.Load(key, b); err == nil || s.strays != [strays]stray{} {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := New(DefaultConfig())
	if err := s.Load(key, good); err != nil || s.strays[0].domain == 0 {
		t.Errorf("%v, %+v", err, s.strays[0])
	}
}

// FuzzLoadStrays: no record makes the scorer panic or keeps a domain astray for ever.
func FuzzLoadStrays(f *testing.F) {
	f.Add([]byte{1})
	f.Add(append([]byte{1, 7, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}, 7, 0, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := New(DefaultConfig())
		if s.Load([]byte{special, 's'}, b) != nil {
			return
		}
		if n := s.Notices(t0.Add(40 * 365 * 24 * time.Hour)); len(n) > strays {
			t.Errorf("%d notices", len(n))
		}
		for i := range 5 {
			s.Observe(&maillog.Event{Kind: maillog.RelayDenied, Source: src, Count: 1, User: uint64(i)<<60 | 7}, t0)
		}
	})
}
