package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/reputation"
)

// script writes a program.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReputation: a listing of an own address is in status, in the history, in the audit trail, and the hook is told of it.
func TestReputation(t *testing.T) {
	n, r, _ := serveNames(t)
	n.set("2.0.0.127.psbl.surriel.com.", "A", "127.0.0.2")
	n.set("25.0.18.198.psbl.surriel.com.", "A", "127.0.0.2")
	n.set("25.0.18.198.psbl.surriel.com.", "TXT", `"$(touch x); listed"`)
	d := namedDaemon(t, r)
	l, err := dnslist.NewList("psbl.surriel.com")
	if err != nil {
		t.Fatal(err)
	}
	told := filepath.Join(t.TempDir(), "told")
	d.node = "mx1"
	d.cfg.DNS.Lists = []dnslist.List{l}
	d.cfg.DNS.Own = []netip.Prefix{netip.MustParsePrefix("198.18.0.25/32"), netip.MustParsePrefix("198.18.0.26/32")}
	d.cfg.DNS.OwnHook = script(t, `printf '%s|' "$MXSHIELD_NODE" "$@" >`+told+`.new; mv `+told+`.new `+told)
	d.openLists()
	if err := d.openReputation(); err != nil {
		t.Fatal(err)
	}
	d.runNames(t)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { d.keepReputation(ctx); close(done) }()
	defer func() { stop(); <-done }()
	eventually(t, "the hook is told", func() bool {
		b, err := os.ReadFile(told)
		return err == nil && string(b) == "mx1|listed|198.18.0.25|psbl.surriel.com|127.0.0.2|PSBL|"
	})
	var rep control.Reputation
	eventually(t, "both were asked about", func() bool {
		rep, err = d.Reputation(netip.Addr{}, 10)
		return err == nil && len(rep.Own) == 2 && len(rep.Own[1].Lists) == 1
	})
	if rep.Own[0].Lists[0].Says != "listed" || rep.Own[1].Lists[0].Says != "clean" || len(rep.Events) != 1 || !strings.Contains(rep.Events[0].TXT, "$(touch x)") {
		t.Errorf("%+v", rep)
	}
	if _, err := d.Reputation(netip.MustParseAddr("192.0.2.1"), 10); err == nil {
		t.Error("a stranger's reputation is known")
	}
	warnings := map[string]string{}
	var s control.Status
	if d.ownStatus(&s, warnings); s.Own == nil || s.Own.Watched != 2 || s.Own.Listed != 1 || len(warnings) != 1 || !strings.Contains(fmt.Sprint(warnings), "198.18.0.25 is listed by psbl.surriel.com (PSBL)") {
		t.Errorf("%+v %v", s.Own, warnings)
	}
	if err := d.commit(); err != nil {
		t.Fatal(err)
	}
	if h, err := d.store.History(netip.MustParsePrefix("198.18.0.25/32"), 10); err != nil || len(h) != 1 || h[0].Action != "listed" || h[0].Detail != "psbl.surriel.com: PSBL" {
		t.Errorf("%v %+v", err, h)
	}
	if w, err := reputation.New(reputation.Options{Own: d.cfg.DNS.Own, Saved: d.saved(t)[reputationKey], Log: d.log}); err != nil || len(w.Events(netip.Addr{}, 10)) != 1 {
		t.Errorf("the history is not kept: %v", err)
	}
}

// TestHook: a program that fails, talks too much, hangs, or that anybody can change, harms nobody.
func TestHook(t *testing.T) {
	e := reputation.Event{What: reputation.Listed, Address: netip.MustParseAddr("198.18.0.25"), List: "bl.example.net"}
	run := func(path string) string {
		t.Helper()
		if err := runHook(t.Context(), path, "mx1", e); err != nil {
			return err.Error()
		}
		return ""
	}
	changed := func(path string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	open, data, other := script(t, "true"), script(t, "true"), script(t, "true")
	changed(open, os.Chmod(open, 0o777))
	changed(data, os.Chmod(data, 0o644))
	replaced := filepath.Join(t.TempDir(), "open", "hook")
	changed(replaced, errors.Join(os.Mkdir(filepath.Dir(replaced), 0o755), os.WriteFile(replaced, []byte("#!/bin/sh\n"), 0o755), os.Chmod(filepath.Dir(replaced), 0o777)))
	link := filepath.Join(t.TempDir(), "hook")
	changed(link, os.Symlink(replaced, link))
	elsewhere := filepath.Join(t.TempDir(), "good")
	changed(elsewhere, os.Symlink(script(t, "true"), elsewhere))
	if os.Geteuid() == 0 {
		changed(other, os.Chown(other, 12345, 0))
	} else {
		other = open
	}
	for path, want := range map[string]string{
		script(t, "true"):                                               "",
		script(t, "yes | head -c 1000000; exit 3"):                      "exit status 3",
		script(t, `test $# = 5 && test -z "$4$5" && test "$HOME" = ""`): "",
		script(t, `test "$(env | cut -d= -f1 | grep -vE '^(PWD|SHLVL|_|OLDPWD)$' | sort | tr '\n' ' ')" = "LC_ALL MXSHIELD_NODE PATH "`): "",
		open: "others than its owner", "/nowhere/hook": "no such file", t.TempDir(): "no program", data: "no program",
		replaced: "others than its owner", link: "others than its owner", elsewhere: "", other: map[bool]string{true: "belongs to user 12345", false: "others than"}[os.Geteuid() == 0],
	} {
		if got := run(path); want == "" && got != "" || !strings.Contains(got, want) || len(got) > 500 {
			t.Errorf("%s: %.500q, want %q", path, got, want)
		}
	}
	// One that hangs, with a child that holds its output, is ended with its child.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := runHook(ctx, script(t, "sleep 1000 & sleep 1000"), "mx1", e); err == nil {
		t.Error("it has ended well")
	}
}
