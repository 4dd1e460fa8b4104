package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

var update = flag.Bool("update", false, "rewrite the expected output in testdata")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mxshieldctl": func() { os.Exit(run(context.Background(), os.Args, os.Stdout, os.Stderr)) },
	})
}

// TestScript runs the stories of testdata/script against a real control server over a real block table; only the
// kernel and the log behind it are missing.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           filepath.Join("testdata", "script"),
		UpdateScripts: *update,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits CODE COMMAND... runs a command that must end with that code.
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want := args[0]
				err := ts.Exec(args[1], args[2:]...)
				got := "0"
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					got = strconv.Itoa(exit.ExitCode())
				}
				if got != want {
					ts.Fatalf("exit code %s, want %s", got, want)
				}
			},
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("TZ", "UTC")
			e.Setenv("MXSHIELD_SOCKET", filepath.Join(e.WorkDir, "sock"))
			l, err := control.Listen(filepath.Join(e.WorkDir, "sock"))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- control.NewServer(newDesk(), slog.New(slog.DiscardHandler)).Run(ctx, l) }()
			e.Defer(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			return nil
		},
	})
}

// desk is an agent with a table and a frozen clock, and nothing behind it.
type desk struct{ table *block.Table }

var frozen = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func newDesk() *desk {
	d := &desk{block.New(block.Options{Origin: "mx1"})}
	_ = d.table.SetNever(append(block.BuiltinNever(false),
		block.Never{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Rule: "allow in config line 3", Config: true}), frozen)
	for _, p := range []string{"198.18.0.1/32", "198.18.0.2/32", "2001:db8:bad:1::/64"} {
		_, _ = d.table.Apply(block.Entry{
			Prefix: netip.MustParsePrefix(p), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX,
			Since: frozen.Add(-time.Hour), Until: frozen.Add(71 * time.Hour), Hits: 12,
		}, frozen.Add(-time.Hour))
	}
	return d
}

func (d *desk) Status() control.Status {
	return control.Status{
		Version: "v0", Node: "mx1", PID: 7, Started: frozen.Add(-time.Hour), Now: frozen, Ports: control.Ports{MX: []uint16{25}},
		Interfaces: []control.Interface{{Name: "eth0", Mode: "native"}}, Blocks: d.table.Count(frozen), Never: d.table.Never(),
		Packets: map[string]uint64{"drop_exact": 5, "pass_other_port": 9}, State: control.State{Path: "/s", Bytes: 32768},
		Inputs:   []control.Input{{ID: "file:/var/log/mail.log", State: "following", Lines: 3, LastLine: frozen}},
		Warnings: []string{"mind the gap"}, Limits: &control.Limits{SYNPerSource: 5, SourceBurst: 25, SYNTotal: 100, TotalBurst: 100},
	}
}

func (d *desk) Top(limit int) (control.Top, error) {
	t := control.Top{Now: frozen, SampleEvery: 1024, Window: "10s", Lost: 3, Reasons: map[string]float64{"drop_exact": 2000, "drop_limited_source": 50}}
	if limit == 1 {
		return t, nil // nothing was sampled
	}
	t.Talkers = []control.Talker{
		{
			Source: netip.MustParsePrefix("198.18.0.1/32"), Rate: 1999.7, Reasons: map[string]float64{"drop_exact": 1999.7}, Ports: []uint16{25, 587},
			Last: frozen.Add(-time.Second), Block: netip.MustParsePrefix("198.18.0.1/32"), Cause: "dictionary", Drops: 123456,
		},
		{Source: netip.MustParsePrefix("2001:db8:5::/64"), Rate: 51, Reasons: map[string]float64{"drop_limited_source": 50, "drop_held": 1}, Ports: []uint16{25}, Last: frozen},
	}
	return t, nil
}

func (d *desk) Lookup(_ context.Context, a netip.Addr) (control.Lookup, error) {
	l := control.Lookup{
		Address: a, Node: "mx1", Now: frozen, Words: a.String() + " in words", RDNS: "verified", Threshold: 100, Sum: 20,
		Names: []control.Name{{Name: "mail.example.org", Verified: true}, {Name: "a\x1b.example.org"}}, Allowed: "spf:example.org",
		Lists: []control.ListAnswer{
			{Zone: "zen.spamhaus.org", Says: "listed", Codes: []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.9")}, Points: 80, Words: "SBL, DROP", TXT: "see \x1b[31mhere", Page: "https://list.example/?q=" + a.String()},
			{Zone: "wl.example.net", Says: "welcome", Codes: []netip.Addr{netip.MustParseAddr("127.0.9.2")}, Points: -60, Words: "medium"},
			{Zone: "bl.example.net", Says: "clean"}, {Zone: "four.example.net", Says: "no_ipv6"},
			{Zone: "off.example.net", Says: "unknown", Why: "suspended: it lists 127.0.0.1"},
		},
	}
	if !a.Is4() {
		return control.Lookup{Address: a, Node: "mx1", Now: frozen, Words: "in words", RDNS: "temporary", Warnings: []string{"there are no DNS lists"}}, nil
	}
	return l, nil
}

func (d *desk) Reputation(a netip.Addr, limit int) (control.Reputation, error) {
	code := []netip.Addr{netip.MustParseAddr("127.0.0.4")}
	listed := control.OwnStanding{ListAnswer: control.ListAnswer{Zone: "zen.spamhaus.org", Says: "listed", Codes: code, Words: "XBL"}, Since: frozen.Add(-3 * time.Hour), Checked: frozen}
	clean := control.OwnStanding{ListAnswer: control.ListAnswer{Zone: "bl.example.net", Says: "clean"}, Since: frozen.Add(-time.Hour), Checked: frozen}
	lost := control.OwnStanding{ListAnswer: control.ListAnswer{Zone: "off.example.net", Says: "unknown", Why: "SERVFAIL"}}
	r := control.Reputation{Now: frozen, Own: []control.OwnAddress{
		{Address: netip.MustParseAddr("198.51.100.25"), Asked: frozen, Lists: []control.OwnStanding{listed, clean, lost}},
		{Address: netip.MustParseAddr("2001:db8:25::"), Asked: frozen, Lists: []control.OwnStanding{clean, lost}},
		{Address: netip.MustParseAddr("198.51.100.26")},
	}, Events: []control.ReputationEvent{
		{Time: frozen.Add(-3 * time.Hour), Address: netip.MustParseAddr("198.51.100.25"), List: "zen.spamhaus.org", What: "listed", Codes: code, Words: "XBL", TXT: "see \x1b[31mhere"},
		{Time: frozen.Add(-30 * time.Hour), Address: netip.MustParseAddr("198.51.100.25"), List: "bl.example.net", What: "delisted"},
	}[:min(limit, 2)]}
	if a.IsValid() {
		r.Own = r.Own[:1]
	}
	return r, nil
}

func (d *desk) List(q block.Query) control.List {
	rows, total := d.table.List(q, frozen)
	l := control.List{Total: total, Entries: make([]control.Listed, len(rows))}
	for i := range rows {
		l.Entries[i] = control.Listed{Listed: rows[i], Drops: 3}
	}
	return l
}

func (d *desk) Why(p netip.Prefix) (control.Why, error) {
	w := control.Why{Prefix: p, Now: frozen, Entries: d.table.About(p), Decision: d.table.Decide(p, frozen), Words: p.String() + " in words", Drops: 3}
	if w.Decision.Drop {
		w.Evidence = &control.Evidence{
			Prefix: p, Words: "12 unknown recipients, 0 accepted, in 3 s", Score: 120, Threshold: 100,
			Counts: map[string]uint32{"unknown_recipient": 12}, Samples: []string{"a line with \\x1b in it"},
		}
		w.History = []control.Audit{{Time: frozen, Who: "agent", Action: "block", Prefix: p}}
	}
	return w, nil
}

func (d *desk) Block(_ string, p netip.Prefix, dur time.Duration, forever bool, reason string) (block.Result, error) {
	e := block.Entry{Prefix: p, Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll, Reason: reason}
	if dur == 0 {
		dur = 72 * time.Hour
	}
	if !forever {
		e.Until = frozen.Add(dur)
	}
	return d.table.Apply(e, frozen)
}

func (d *desk) Unblock(_ string, list []netip.Prefix, hold time.Duration, reason string) (res []block.Result, err error) {
	for _, p := range list {
		r, err := d.table.Apply(block.Entry{Prefix: p, Kind: block.Clear, Until: frozen.Add(hold), Reason: reason}, frozen)
		if err != nil {
			return res, err
		}
		res = append(res, r)
	}
	return res, nil
}

func (d *desk) Allow(_ string, p netip.Prefix, dur time.Duration, forever bool, reason string) (block.Result, error) {
	e := block.Entry{Prefix: p, Kind: block.Allow, Cause: block.Manual, Reason: reason}
	if !forever {
		e.Until = frozen.Add(dur)
	}
	return d.table.Apply(e, frozen)
}

func (d *desk) Disallow(_ string, p netip.Prefix) (block.Result, error) {
	return d.table.Apply(block.Entry{Prefix: p, Kind: block.Disallow}, frozen)
}

func (d *desk) Peers() control.Peers {
	off, rtt := -0.0123, 0.00042
	return control.Peers{
		Node: "mx1", Clustered: true, Addr: "192.0.2.1:7946", Encrypted: true,
		Members: []control.Peer{
			{Name: "mx1", Self: true, State: "alive", Addr: "192.0.2.1:7946", Version: "v0", Wire: 1, Key: "01020304", Entries: 3},
			{Name: "mx2", State: "alive", Addr: "192.0.2.2:7946", Version: "v0", Wire: 1, Key: "01020304", ClockOffset: &off, RTT: &rtt, Entries: 1234, Lag: 5, Suspended: true},
			{Name: "mx3.example.org", State: "unreached", Problem: "no route to host"},
		},
		Counters: map[string]uint64{"packets": 99, "unknown_kind": 2, "refused": 7},
		Warnings: []string{"mx3 is gone"},
	}
}

func (d *desk) Keys() ([]control.Key, error) {
	return []control.Key{
		{ID: "01020304", Held: true, Used: true, HeldBy: []string{"mx1", "mx2"}, UsedBy: []string{"mx1", "mx2"}, Missing: []string{"mx3"}},
		{ID: "0a0b0c0d", Held: true, HeldBy: []string{"mx1"}, Missing: []string{"mx2", "mx3"}},
	}, nil
}

func (d *desk) ChangeKey(_ string, r control.KeyRequest) (string, error) {
	if r.Do == "use" && !r.Force {
		return "", &control.Error{Status: http.StatusConflict, Text: "key " + r.ID + " is not known to be held by mx2", Hint: "add it there first"}
	}
	return fmt.Sprintf("%s %s%d bytes", r.Do, r.ID, len(r.Key)), nil
}

func (d *desk) ChangeOrigin(_ string, r control.OriginRequest) (string, error) {
	if r.Node != "mx2" {
		return "", &control.Error{Status: http.StatusNotFound, Text: "no node " + strconv.Quote(r.Node) + " is known", Hint: "`mxshieldctl peers` lists the names"}
	}
	return r.Do + " " + r.Node, nil
}

// TestNewKey: what cluster key new prints is a key, another one each time, and a file that it goes to is nobody else's.
func TestNewKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cluster.key")
	seen := map[string]bool{}
	for range 3 {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if code := run(t.Context(), []string{"mxshieldctl", "--socket", "/nowhere", "cluster", "key", "new"}, f, os.Stderr); code != exitOK {
			t.Fatalf("exit %d", code)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", st.Mode(), err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		k, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
		if err != nil || len(k) != 32 || seen[string(k)] || bytes.Count(b, []byte("\n")) != 1 {
			t.Errorf("%q: %d bytes, %v", b, len(k), err)
		}
		seen[string(k)] = true
	}
}

func (d *desk) Off(string, string) (string, error) { return "off: detached", nil }
func (d *desk) On(string) (string, error)          { return "on: attached", nil }
