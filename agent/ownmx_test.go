package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// TestOwnMX: hosts that are MXs of our own domains pass on hundreds of guesses. They are not blocked and why says so; what is known
// of them outlives a restart and a DNS that fails. Somebody else's MX is blocked.
func TestOwnMX(t *testing.T) {
	n, r, ahead := serveNames(t)
	n.set("example.org.", "MX", "10 mx2.example.org.")
	n.set("mx2.example.org.", "A", "198.18.0.2")
	n.set("mx2.example.org.", "AAAA", "2001:db8::2")
	n.set("bare.example.org.", "A", "198.18.0.3")
	n.set("nomail.example.org.", "MX", "0 .")
	n.set("nomail.example.org.", "A", "198.18.0.9")
	n.set("odd.example.org.", "MX", "0 odd.example.org.")
	n.set("odd.example.org.", "A", "127.0.0.1")
	d := namedDaemon(t, r, "domain:yahoo.test")
	d.cfg.OwnDomains = []string{"example.org", "bare.example.org", "nomail.example.org", "odd.example.org", "gone.example.org"}
	t.Setenv("PATH", t.TempDir()) // no Postfix here
	if !d.refreshOwnMX(t.Context()) {
		t.Error("not all could be asked for")
	}
	d.refreshNever(t.Context(), false)
	stop := d.runNames(t)
	for _, a := range []string{"198.18.0.2", "198.18.0.3", "198.18.0.9"} {
		d.read(a, 300)
	}
	eventually(t, "the stranger is blocked", func() bool { return drops(d, "198.18.0.9") })
	stop()
	for a, rule := range map[string]string{"198.18.0.2": "MX of example.org", "198.18.0.3": "MX of bare.example.org"} {
		w, err := d.Why(netip.PrefixFrom(netip.MustParseAddr(a), 32))
		if err != nil || w.Decision.Drop || w.Decision.Rule != "sender_allow" || !strings.Contains(w.Words, "would have been blocked (300 unknown recipients") || !strings.Contains(w.Words, rule) {
			t.Errorf("%s: %v %s", a, err, w.Words)
		}
	}
	if got := d.table.Decide(netip.MustParsePrefix("2001:db8::2/128"), time.Now()); got.Never == nil || got.Never.Rule != "MX of example.org" {
		t.Errorf("%+v", got)
	}
	var mine []string
	for _, rule := range d.table.Never() {
		if isOwnMX(rule) {
			mine = append(mine, rule.Prefix.String())
		}
	}
	if want := []string{"198.18.0.2/32", "198.18.0.3/32", "2001:db8::2/128"}; !slices.Equal(mine, want) {
		t.Errorf("%q", mine)
	}

	if err := d.commit(); err != nil {
		t.Fatal(err)
	}
	next := namedDaemon(t, r, "domain:yahoo.test")
	next.cfg.OwnDomains, next.pending = d.cfg.OwnDomains[:2], d.saved(t)
	next.openOwnMX()
	n.hush("example.org.")
	n.set("bare.example.org.", "A", "198.18.0.4")
	ahead.Store(int64(2 * time.Hour))
	if next.refreshOwnMX(t.Context()) {
		t.Error("a silent DNS is no answer")
	}
	if got := next.ownMX; len(got) != 2 || !slices.Contains(got["example.org"], netip.MustParseAddr("198.18.0.2")) || got["bare.example.org"][0] != netip.MustParseAddr("198.18.0.4") {
		t.Errorf("%v", got)
	}
	if d.events[maillog.Postfix][maillog.UnknownRecipient] != 900 {
		t.Errorf("the test shows nothing: %v", d.events)
	}
}
