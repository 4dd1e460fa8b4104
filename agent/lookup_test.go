package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/dnslist"
)

// TestLookup: the page says of each list what it answers and means, of the names whether they lead back, and why the address is not
// blocked; the key of a list is not on it.
func TestLookup(t *testing.T) {
	const key = "q7secretq7secretq7"
	n, r, _ := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{"zen.dq.spamhaus.net", "psbl.surriel.com", "bl.spamcop.net"} {
		l, err := dnslist.NewList(zone)
		if err != nil {
			t.Fatal(err)
		}
		suffix := zone + "."
		if l.NeedsKey() {
			l.KeyFile, suffix = path, key+"."+suffix
			if err := l.LoadKey(); err != nil {
				t.Fatal(err)
			}
			n.set("1.0.18.198."+suffix, "A", "127.0.0.4")
			n.set("1.0.18.198."+suffix, "TXT", fmt.Sprintf("%q", "see https://"+suffix+"/198.18.0.1"))
		}
		if zone != "bl.spamcop.net" { // that one is dead
			n.set("2.0.0.127."+suffix, "A", "127.0.0.2")
		}
		d.cfg.DNS.Lists = append(d.cfg.DNS.Lists, l)
	}
	n.set(reverse(t, "198.18.0.1"), "PTR", "mta1.yahoo.test.")
	n.set("mta1.yahoo.test.", "A", "198.18.0.1")
	n.set(reverse(t, "198.18.0.2"), "PTR", "mta1.yahoo.test.")
	d.openLists()
	d.runNames(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := d.Lookup(ctx, netip.MustParseAddr("198.18.0.1"))
	if err != nil || len(l.Lists) != 3 {
		t.Fatalf("%v %+v", err, l)
	}
	zen, psbl, dead := l.Lists[0], l.Lists[1], l.Lists[2]
	if zen.Says != "listed" || zen.Words != "XBL" || zen.Points != 60 || zen.Page != "https://check.spamhaus.org/results/?query=198.18.0.1" || !strings.Contains(zen.TXT, "https://***.zen.dq.spamhaus.net") {
		t.Errorf("%+v", zen)
	}
	if psbl.Says != "clean" || dead.Says != "unknown" || !strings.Contains(dead.Why, "test entry") {
		t.Errorf("%+v %+v", psbl, dead)
	}
	if l.Sum != 60 || l.RDNS != "verified" || len(l.Names) != 1 || !l.Names[0].Verified || l.Names[0].Name != "mta1.yahoo.test" || l.Allowed != "domain:yahoo.test" {
		t.Errorf("%+v", l)
	}
	other, err := d.Lookup(ctx, netip.MustParseAddr("198.18.0.2"))
	if err != nil || other.RDNS != "mismatch" || len(other.Names) != 1 || other.Names[0].Verified || other.Allowed != "" {
		t.Errorf("%v %+v", err, other)
	}
	if own, err := d.Lookup(ctx, netip.MustParseAddr("127.0.0.1")); err != nil || len(own.Lists) != 0 || len(own.Warnings) == 0 {
		t.Errorf("%v %+v", err, own)
	}
	if b, _ := json.Marshal([]any{l, other, d.dnsWhole()}); strings.Contains(string(b), key) {
		t.Errorf("the key of a list: %s", b)
	}
}

// dnsWhole is all that status says of the DNS.
func (d *daemon) dnsWhole() any { return []any{d.resolver.Status(), d.lists.Status()} }
