package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/store"
)

// crew is a cluster of whole agents in this process: dry runs with logs, state files, control sockets and gossip over
// loopback. Only the kernel is missing.
type crew struct {
	t     *testing.T
	dir   string
	key   string
	hosts []*crewAgent
}

type crewAgent struct {
	crew *crew
	name string
	bind string // host:port; the port is that of the first run
	more string // of the config
	key  string
	stop context.CancelFunc
	done chan error
	log  logBuffer
}

// logBuffer keeps what an agent logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	crewKey      = "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
	crewOtherKey = "IQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA="
)

func newCrew(t *testing.T) *crew {
	t.Helper()
	dir, err := os.MkdirTemp("", "mxs") // short: a socket's path has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	c := &crew{t: t, dir: dir, key: crewKey}
	t.Cleanup(func() {
		for _, a := range c.hosts {
			a.end()
			if t.Failed() {
				t.Logf("%s:\n%s", a.name, a.log.String())
			}
		}
		os.RemoveAll(dir)
	})
	return c
}

// add makes an agent that knows those before it, and starts it.
func (c *crew) add(more string) *crewAgent {
	c.t.Helper()
	a := &crewAgent{crew: c, name: fmt.Sprintf("mx%d", len(c.hosts)+1), bind: fmt.Sprintf("127.0.0.%d:0", len(c.hosts)+11), more: more, key: c.key}
	if err := os.MkdirAll(filepath.Join(c.dir, a.name), 0o755); err != nil {
		c.t.Fatal(err)
	}
	a.write("")
	c.hosts = append(c.hosts, a)
	a.start()
	return a
}

func (a *crewAgent) path(name string) string { return filepath.Join(a.crew.dir, a.name, name) }

// write appends lines to its mail log.
func (a *crewAgent) write(lines string) {
	a.crew.t.Helper()
	f, err := os.OpenFile(a.path("mail.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(lines)
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		a.crew.t.Fatal(err)
	}
}

// guesses writes n unknown recipients of a source into its log.
func (a *crewAgent) guesses(source string, n int) {
	a.crew.t.Helper()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "%s mx postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <secret%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<secret%d@example.org> proto=ESMTP helo=<h>\n", now, source, i, i)
	}
	a.write(b.String())
}

func (a *crewAgent) config() *config.Config {
	t := a.crew.t
	t.Helper()
	text := fmt.Sprintf("logs: [{file: %s}]\ndry_run: true\nbig_senders: false\nstate: %s\nsocket: %s\npins: %s\n%s\n", a.path("mail.log"), a.path("state.db"), a.path("sock"), a.path("pins"), a.more)
	cfg, err := config.Parse("test", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	cfg.Cluster = &config.Cluster{Name: a.name, Bind: a.bind}
	if a.key != "" {
		cfg.Cluster.KeyFile = a.path("cluster.key")
		if _, err := os.Stat(cfg.Cluster.KeyFile); err != nil {
			if err := os.WriteFile(cfg.Cluster.KeyFile, []byte(a.key+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, o := range a.crew.hosts {
		if o != a && !strings.HasSuffix(o.bind, ":0") {
			cfg.Cluster.Peers = append(cfg.Cluster.Peers, o.bind)
		}
	}
	return cfg
}

// start runs it until end, and waits for its port.
func (a *crewAgent) start() {
	a.crew.t.Helper()
	cfg := a.config()
	ctx, stop := context.WithCancel(context.Background())
	a.stop, a.done = stop, make(chan error, 1)
	go func() {
		a.done <- serve(ctx, cfg, nil, slog.New(slog.NewTextHandler(&a.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	}()
	a.await("in the cluster", func() bool {
		s, err := a.tryStatus()
		if err != nil || s.Cluster == nil || s.Cluster.Addr == "" {
			return false
		}
		a.bind = s.Cluster.Addr
		return true
	})
}

// end stops it in peace.
func (a *crewAgent) end() {
	a.crew.t.Helper()
	if a.stop == nil {
		return
	}
	a.stop()
	a.stop = nil
	if err := <-a.done; err != nil {
		a.crew.t.Errorf("%s: %v", a.name, err)
	}
}

func (a *crewAgent) client() *control.Client {
	return control.NewClient(a.path("sock"), 30*time.Second)
}

func (a *crewAgent) tryStatus() (s control.Status, err error) {
	err = a.client().Get(context.Background(), "/v1/status", nil, &s)
	return s, err
}

func (a *crewAgent) status() control.Status {
	a.crew.t.Helper()
	s, err := a.tryStatus()
	if err != nil {
		a.crew.t.Fatalf("%s: %v", a.name, err)
	}
	return s
}

func (a *crewAgent) get(path string, q url.Values, v any) {
	a.crew.t.Helper()
	if err := a.client().Get(context.Background(), path, q, v); err != nil {
		a.crew.t.Fatalf("%s: %s: %v", a.name, path, err)
	}
}

func (a *crewAgent) post(path string, req, v any) {
	a.crew.t.Helper()
	if err := a.client().Post(context.Background(), path, req, v); err != nil {
		a.crew.t.Fatalf("%s: %s: %v", a.name, path, err)
	}
}

func (a *crewAgent) why(p string) (w control.Why) {
	a.crew.t.Helper()
	a.get("/v1/why", url.Values{"prefix": {p}}, &w)
	return w
}

func (a *crewAgent) block(p string) (d control.Done) {
	a.crew.t.Helper()
	a.post("/v1/block", control.BlockRequest{Prefix: p}, &d)
	return d
}

func (a *crewAgent) unblock(p string) (d control.Done) {
	a.crew.t.Helper()
	a.post("/v1/unblock", control.UnblockRequest{Prefixes: []string{p}}, &d)
	return d
}

// await waits for a condition. The bound is for a machine that is very busy; it says nothing about speed.
func (a *crewAgent) await(what string, ok func() bool) {
	a.crew.t.Helper()
	end := time.Now().Add(60 * time.Second)
	for !ok() {
		if a.done != nil {
			select {
			case err := <-a.done:
				a.stop = nil
				a.crew.t.Fatalf("%s ended: %v", a.name, err)
			default:
			}
		}
		if time.Now().After(end) {
			a.crew.t.Fatalf("%s never: %s", a.name, what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// all waits until each agent decides so about an address.
func (c *crew) all(p string, rule block.Rule) {
	c.t.Helper()
	for _, a := range c.hosts {
		a.decides(p, rule)
	}
}

func (a *crewAgent) decides(p string, rule block.Rule) {
	a.crew.t.Helper()
	a.await(fmt.Sprintf("%s for %s", rule, p), func() bool { return a.why(p).Decision.Rule == rule })
}

// TestClusterStory: what is blocked on one node is on all, whoever did it; what is unblocked is on none, stays so, and
// all know it after a restart.
func TestClusterStory(t *testing.T) {
	c := newCrew(t)
	a, b, d := c.add(""), c.add("allow: [198.18.9.0/24]"), c.add("")

	a.guesses("198.18.0.1", 12)
	c.all("198.18.0.1", block.RuleBlock)
	w := b.why("198.18.0.1")
	if w.Decision.By.Origin != "mx1" || w.Decision.By.Cause != block.Dictionary || w.Evidence != nil || !strings.Contains(w.Words, "on node mx1, where `mxshieldctl why` has the evidence") {
		t.Errorf("%+v", w)
	}
	if w := a.why("198.18.0.1"); w.Evidence == nil || strings.Contains(w.Words, "on node") {
		t.Errorf("%+v", w)
	}

	// Anybody may end it, and the score is gone where it was made.
	d.unblock("198.18.0.1")
	c.all("198.18.0.1", block.RuleCleared)
	a.await("forgets the score", func() bool { k := a.why("198.18.0.1").Known; return k == nil || k.Score < 1 })
	w = a.why("198.18.0.1")
	if !strings.Contains(w.Words, "unblocked on node mx3") || !slices.ContainsFunc(w.History, func(h control.Audit) bool { return h.Who == "node mx3" && h.Action == "unblock" }) {
		t.Errorf("%q %+v", w.Words, w.History)
	}
	// The hold holds on a node that did not see the unblock being made.
	b.guesses("198.18.0.1", 30)
	b.await("reads on", func() bool { return b.status().Events["unknown_recipient"] >= 30 })
	c.all("198.18.0.1", block.RuleCleared)

	// Manual blocks, allows and disallows.
	b.block("198.18.1.0/24")
	c.all("198.18.1.77", block.RuleManualBlock)
	var done control.Done
	d.post("/v1/allow", control.BlockRequest{Prefix: "198.18.1.7"}, &done)
	c.all("198.18.1.7", block.RuleManualAllow)
	a.post("/v1/disallow", control.BlockRequest{Prefix: "198.18.1.7"}, &done)
	c.all("198.18.1.7", block.RuleManualBlock)
	a.unblock("198.18.1.0/24")
	c.all("198.18.1.77", block.RuleCleared)

	// A score under a wide clear of another node goes too.
	b.guesses("198.18.2.5", 6)
	b.await("scores", func() bool { return b.why("198.18.2.5").Known != nil })
	d.unblock("198.18.2.0/24")
	b.await("forgets the score", func() bool { k := b.why("198.18.2.5").Known; return k == nil || k.Score < 1 })

	// Each node's own allows win there, and only there.
	a.block("198.18.9.7")
	a.decides("198.18.9.7", block.RuleManualBlock)
	d.decides("198.18.9.7", block.RuleManualBlock)
	b.await("has it too", func() bool { return len(b.why("198.18.9.7").Entries) > 0 })
	b.decides("198.18.9.7", block.RuleConfig)

	// Peers are never blocked.
	never := func(s control.Status) bool {
		return slices.ContainsFunc(s.Never, func(n block.Never) bool {
			return n.Rule == "cluster peer mx3" && n.Prefix.Addr() == netip.MustParseAddrPort(d.bind).Addr()
		})
	}
	a.await("keeps mx3 open", func() bool { return never(a.status()) })

	// A node that was away comes back with what it knew, and learns the rest.
	a.guesses("198.18.0.2", 12)
	c.all("198.18.0.2", block.RuleBlock)
	known := len(b.entries())
	b.await("has written all", func() bool { return b.onDisk() >= known })
	b.end()
	a.unblock("198.18.0.2")
	d.guesses("198.18.0.3", 12)
	b.start()
	c.all("198.18.0.1", block.RuleCleared)
	c.all("198.18.0.2", block.RuleCleared)
	c.all("198.18.0.3", block.RuleBlock)
	c.same()
}

// entries lists all that a node has.
func (a *crewAgent) entries() (list []string) {
	a.crew.t.Helper()
	for _, kind := range []string{"block", "allow", "clear", "disallow"} {
		var l control.List
		a.get("/v1/list", url.Values{"kind": {kind}, "all": {"1"}, "limit": {"0"}}, &l)
		for _, e := range l.Entries {
			list = append(list, fmt.Sprint(e.Origin, " ", e.Kind, " ", e.Prefix, " ", e.Cause, " ", e.Until.Unix(), " ", uint64(e.Stamp)))
		}
	}
	slices.Sort(list)
	return list
}

// onDisk says how many keys of entries the state file has, as a crash would leave it: it reads a copy.
func (a *crewAgent) onDisk() int {
	a.crew.t.Helper()
	dir, err := os.MkdirTemp(a.crew.dir, "copy")
	if err != nil {
		a.crew.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	b, err := os.ReadFile(a.path("state.db"))
	if err != nil {
		a.crew.t.Fatal(err)
	}
	path := filepath.Join(dir, "state.db")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		a.crew.t.Fatal(err)
	}
	s, aside, err := store.Open(path, time.Now())
	if err != nil {
		return 0
	}
	defer s.Close()
	if aside != "" {
		return 0 // copied in the midst of a commit
	}
	keys := map[string]bool{}
	err = s.Load(store.State{
		Entry:    func(e block.Entry) { keys[fmt.Sprint(e.Origin, e.Kind, e.Prefix, e.Automatic())] = true },
		BadEntry: func(err error) { a.crew.t.Error(err) },
		Score:    func(_, _ []byte) {}, Mark: func(string, []byte) {}, Extra: func(string, []byte) {},
	})
	if err != nil {
		return 0
	}
	return len(keys)
}

// same waits until all nodes have the same entries.
func (c *crew) same() {
	c.t.Helper()
	last := c.hosts[len(c.hosts)-1]
	for _, a := range c.hosts {
		a.await("the same entries as "+last.name, func() bool { return slices.Equal(a.entries(), last.entries()) })
	}
}

// TestClusterKeys: without the right key nothing gets in and nothing out; without any a node is alone on loopback.
func TestClusterKeys(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	c.key = crewOtherKey
	stranger := c.add("")
	c.key = ""
	mute := c.add("")
	a.block("198.18.0.1")
	stranger.block("198.18.0.2")
	mute.block("198.18.0.3")
	b.decides("198.18.0.1", block.RuleManualBlock)
	// They have called each other, in vain, and nobody knows what the others said.
	for _, x := range []*crewAgent{stranger, mute} {
		x.await("finds nobody", func() bool { k := x.status().Cluster; return k.Peers > 0 && k.Alive == 0 })
	}
	for _, x := range c.hosts {
		if l := x.entries(); len(l) != 1 {
			t.Errorf("%s has %d entries: %v", x.name, len(l), l)
		}
	}
}

// TestClusterAlone: an agent whose port is taken shields all the same, says so, and joins when it can.
func TestClusterAlone(t *testing.T) {
	c := newCrew(t)
	a := c.add("")
	x := &crewAgent{crew: c, name: "mx2", bind: a.bind, key: c.key} // the port of a
	if err := os.MkdirAll(filepath.Join(c.dir, x.name), 0o755); err != nil {
		t.Fatal(err)
	}
	x.write("")
	cfg := x.config()
	ctx, stop := context.WithCancel(context.Background())
	x.stop, x.done = stop, make(chan error, 1)
	c.hosts = append(c.hosts, x)
	go func() { x.done <- serve(ctx, cfg, nil, slog.New(slog.NewTextHandler(&x.log, nil))) }()
	x.await("warns", func() bool {
		s, err := x.tryStatus()
		return err == nil && s.Cluster.Addr == "" && slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "not in the cluster") })
	})
	x.guesses("198.18.0.1", 12)
	x.decides("198.18.0.1", block.RuleBlock)
	a.end()
	x.await("joins", func() bool { s := x.status(); return s.Cluster.Addr != "" && len(s.Warnings) == 0 })

	// Without a readable key it does not even begin.
	y := &crewAgent{crew: c, name: "mx3", bind: "127.0.0.31:0", key: c.key}
	if err := os.MkdirAll(filepath.Join(c.dir, y.name), 0o755); err != nil {
		t.Fatal(err)
	}
	y.write("")
	cfg = y.config()
	if err := os.Chmod(cfg.Cluster.KeyFile, 0o644); err != nil {
		t.Fatal(err)
	}
	err := serve(t.Context(), cfg, nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(control.Hint(err), "chmod 600") {
		t.Errorf("a key that all can read: %v (%s)", err, control.Hint(err))
	}
	if err := os.Remove(cfg.Cluster.KeyFile); err != nil {
		t.Fatal(err)
	}
	err = serve(t.Context(), cfg, nil, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(control.Hint(err), "mxshieldctl cluster key new > ") {
		t.Errorf("no key file: %v (%s)", err, control.Hint(err))
	}
	if _, err := os.Stat(y.path("state.db")); !os.IsNotExist(err) {
		t.Error("it touched something")
	}
}
