package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/gossip/replica"
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
	seal string // its key
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
	a := &crewAgent{crew: c, name: fmt.Sprintf("mx%d", len(c.hosts)+1), bind: fmt.Sprintf("127.0.0.%d:0", len(c.hosts)+11), more: more, seal: c.key}
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

// delivers writes n accepted messages of a source, each to a recipient of its own.
func (a *crewAgent) delivers(source string, n int) {
	a.crew.t.Helper()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	var b strings.Builder
	for i := range n {
		id := fmt.Sprintf("4%09X", i+1)
		fmt.Fprintf(&b, "%s mx postfix/smtpd[7]: %s: client=unknown[%s]\n", now, id, source)
		fmt.Fprintf(&b, "%s mx postfix/qmgr[8]: %s: from=<s@example.net>, size=300, nrcpt=1 (queue active)\n", now, id)
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
	if a.seal != "" {
		cfg.Cluster.KeyFile = a.path("cluster.key")
		if _, err := os.Stat(cfg.Cluster.KeyFile); err != nil {
			if err := os.WriteFile(cfg.Cluster.KeyFile, []byte(a.seal+"\n"), 0o600); err != nil {
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

// meet waits until each agent knows all others. What a node says of a source before that, the others need not hear.
func (c *crew) meet() {
	c.t.Helper()
	for _, a := range c.hosts {
		a.await("knows all others", func() bool { return a.status().Cluster.Alive == len(c.hosts)-1 })
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
	x := &crewAgent{crew: c, name: "mx2", bind: a.bind, seal: c.key} // the port of a
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
	y := &crewAgent{crew: c, name: "mx3", bind: "127.0.0.31:0", seal: c.key}
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

// refused says that a request is refused by a rule, and returns the error.
func (a *crewAgent) refused(path string, req any) *control.Error {
	a.crew.t.Helper()
	err := a.client().Post(context.Background(), path, req, &control.Done{})
	var e *control.Error
	if !errors.As(err, &e) || e.Status != http.StatusConflict && e.Status != http.StatusNotFound || e.Hint == "" {
		a.crew.t.Fatalf("%s: %s %+v: %v", a.name, path, req, err)
	}
	return e
}

func (a *crewAgent) key(id string) (k control.Key) {
	a.crew.t.Helper()
	var keys control.Keys
	a.get("/v1/cluster/keys", nil, &keys)
	for _, k := range keys.Keys {
		if k.ID == id {
			return k
		}
	}
	return k
}

// TestClusterKeyChange: the key changes under traffic, step by step, and no step can be taken too early.
func TestClusterKeyChange(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	var done control.Done
	var keys control.Keys
	a.await("knows b", func() bool { return a.status().Cluster.Alive == 1 })
	a.get("/v1/cluster/keys", nil, &keys)
	if len(keys.Keys) != 1 || !keys.Keys[0].Used {
		t.Fatalf("%+v", keys)
	}
	old := keys.Keys[0].ID
	a.post("/v1/cluster/key", control.KeyRequest{Do: "add", Key: crewOtherKey}, &done)
	a.get("/v1/cluster/keys", nil, &keys)
	if len(keys.Keys) != 2 || keys.Keys[1].Used || !slices.Equal(keys.Keys[1].Missing, []string{"mx2"}) {
		t.Fatalf("%+v", keys)
	}
	id := keys.Keys[1].ID
	if e := a.refused("/v1/cluster/key", control.KeyRequest{Do: "add", Key: base64.StdEncoding.EncodeToString([]byte("a third one, of 32 bytes length!"))}); !strings.Contains(e.Text, "two keys") {
		t.Error(e)
	}
	if e := a.refused("/v1/cluster/key", control.KeyRequest{Do: "use", ID: id}); !strings.Contains(e.Text, "mx2") {
		t.Error(e)
	}
	a.refused("/v1/cluster/key", control.KeyRequest{Do: "remove", ID: old})
	a.refused("/v1/cluster/key", control.KeyRequest{Do: "use", ID: "ffffffff"})
	b.post("/v1/cluster/key", control.KeyRequest{Do: "add", Key: crewOtherKey}, &done)
	a.await("hears that b has it", func() bool { return a.key(id).Held && len(a.key(id).Missing) == 0 })
	a.post("/v1/cluster/key", control.KeyRequest{Do: "use", ID: id}, &done)
	a.block("198.18.0.1") // one seals with the new key, one with the old
	b.block("198.18.0.2")
	c.all("198.18.0.1", block.RuleManualBlock)
	c.all("198.18.0.2", block.RuleManualBlock)
	if e := a.refused("/v1/cluster/key", control.KeyRequest{Do: "remove", ID: old}); !strings.Contains(e.Text, "mx2") {
		t.Error(e)
	}
	b.await("hears that all have it", func() bool { return b.key(id).Held && len(b.key(id).Missing) == 0 })
	b.post("/v1/cluster/key", control.KeyRequest{Do: "use", ID: id}, &done)
	a.await("hears that b uses it", func() bool { return slices.Contains(a.key(id).UsedBy, "mx2") })
	if e := a.refused("/v1/cluster/key", control.KeyRequest{Do: "remove", ID: old}); !strings.Contains(e.Text, "until a moment ago") {
		t.Error(e)
	}
	for _, x := range c.hosts {
		x.post("/v1/cluster/key", control.KeyRequest{Do: "remove", ID: old, Force: true}, &done)
		b, err := os.ReadFile(x.path("cluster.key"))
		if err != nil || string(b) != crewOtherKey+"\n" {
			t.Errorf("%s: %q, %v", x.name, b, err)
		}
	}
	b.end()
	b.start() // with the file as it is now
	b.block("198.18.0.3")
	c.all("198.18.0.3", block.RuleManualBlock)
}

// TestClusterOrigin: what a node said stops counting, here or everywhere, and counts again.
func TestClusterOrigin(t *testing.T) {
	c := newCrew(t)
	a, b, d := c.add(""), c.add(""), c.add("")
	var done control.Done
	a.guesses("198.18.0.1", 12)
	a.post("/v1/allow", control.BlockRequest{Prefix: "198.18.5.5"}, &done)
	c.all("198.18.0.1", block.RuleBlock)
	c.all("198.18.5.5", block.RuleManualAllow)

	b.post("/v1/origin", control.OriginRequest{Do: "suspend", Node: "mx1"}, &done)
	b.decides("198.18.0.1", block.RuleNone)
	b.decides("198.18.5.5", block.RuleNone)
	warned := func() bool {
		return slices.ContainsFunc(b.status().Warnings, func(w string) bool {
			return strings.Contains(w, `"mx1" is suspended`) && strings.Contains(w, "origin clear mx1")
		})
	}
	if !warned() || !b.peer("mx1").Suspended || d.peer("mx1").Suspended {
		t.Errorf("%q %+v", b.status().Warnings, b.peer("mx1"))
	}
	d.decides("198.18.0.1", block.RuleBlock)
	a.guesses("198.18.0.2", 12)
	d.decides("198.18.0.2", block.RuleBlock)
	b.await("has it too", func() bool { return len(b.why("198.18.0.2").Entries) > 0 })
	b.decides("198.18.0.2", block.RuleNone)
	b.end()
	b.start()
	if !warned() {
		t.Error("forgotten by a restart")
	}
	b.decides("198.18.0.2", block.RuleNone)
	b.post("/v1/origin", control.OriginRequest{Do: "resume", Node: "mx1"}, &done)
	c.all("198.18.0.1", block.RuleBlock)
	c.all("198.18.0.2", block.RuleBlock)

	// One command undoes it everywhere, its scores on that node included.
	d.post("/v1/origin", control.OriginRequest{Do: "clear", Node: "mx1"}, &done)
	for _, p := range []string{"198.18.0.1", "198.18.0.2", "198.18.5.5"} {
		c.all(p, block.RuleNone)
	}
	a.await("forgets the scores", func() bool { k := a.why("198.18.0.1").Known; return k == nil || k.Score < 1 })
	a.guesses("198.18.0.1", 12)
	c.all("198.18.0.1", block.RuleBlock)
	c.same()

	b.refused("/v1/origin", control.OriginRequest{Do: "suspend", Node: "mx2"})
	b.refused("/v1/origin", control.OriginRequest{Do: "clear", Node: "mx9"})
}

func (a *crewAgent) peers() (p control.Peers) {
	a.crew.t.Helper()
	a.get("/v1/peers", nil, &p)
	return p
}

func (a *crewAgent) peer(name string) control.Peer {
	a.crew.t.Helper()
	for _, m := range a.peers().Members {
		if m.Name == name {
			return m
		}
	}
	return control.Peer{}
}

// TestClusterPeers: what peers and status tell of the others.
func TestClusterPeers(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	a.block("198.18.0.1")
	a.block("198.18.0.2")
	b.await("has both", func() bool { p := b.peer("mx1"); return p.Entries == 2 && p.Lag == 0 && p.State == "alive" })
	b.await("compares clocks", func() bool { p := b.peer("mx1"); return p.ClockOffset != nil && p.RTT != nil })
	p := b.peers()
	m := b.peer("mx1")
	self := b.peer("mx2")
	if !p.Clustered || !p.Encrypted || p.Addr != b.bind || m.Addr != a.bind || m.Wire != 1 || m.Version == "" || len(m.Key) != 8 || m.Key != self.Key || !self.Self || *m.ClockOffset > 5 || *m.ClockOffset < -5 {
		t.Errorf("%+v", p)
	}
	b.await("all is well", func() bool {
		s := b.status()
		return s.Cluster.Alive == 1 && s.Cluster.Learned == 2 && len(s.Warnings) == 0
	})
	a.end()
	b.await("tells that it left", func() bool { return b.peer("mx1").State == "left" })
	if b.decides("198.18.0.1", block.RuleManualBlock); b.peer("mx1").Entries != 2 {
		t.Errorf("%+v", b.peer("mx1"))
	}
}

// TestClusterAbsent: without a cluster, what is about one is refused with a hint, and peers says so.
func TestClusterAbsent(t *testing.T) {
	c := newCrew(t)
	a := &crewAgent{crew: c, name: "mx1"}
	if err := os.MkdirAll(filepath.Join(c.dir, a.name), 0o755); err != nil {
		t.Fatal(err)
	}
	a.write("")
	cfg := a.config()
	cfg.Cluster = nil
	ctx, stop := context.WithCancel(context.Background())
	a.stop, a.done = stop, make(chan error, 1)
	c.hosts = append(c.hosts, a)
	go func() { a.done <- serve(ctx, cfg, nil, slog.New(slog.NewTextHandler(&a.log, nil))) }()
	a.await("runs", func() bool { _, err := a.tryStatus(); return err == nil })
	if p := a.peers(); p.Clustered || len(p.Members) != 0 {
		t.Errorf("%+v", p)
	}
	a.refused("/v1/cluster/key", control.KeyRequest{Do: "use", ID: "01020304"})
	a.refused("/v1/origin", control.OriginRequest{Do: "clear", Node: "mx1"})
	if s := a.status(); s.Cluster != nil {
		t.Errorf("%+v", s.Cluster)
	}
}

// TestClusterBreaker: a node that blocks those who delivered mail here is suspended here, before they are blocked for
// long, and one command undoes what it did.
func TestClusterBreaker(t *testing.T) {
	c := newCrew(t)
	a, b, d := c.add(""), c.add(""), c.add("")
	good := func(i int) string { return fmt.Sprintf("101.%d.7.1", i) }
	for i := range 12 {
		b.delivers(good(i), 3)
	}
	b.await("knows its senders", func() bool { k := b.why(good(11)).Known; return k != nil && k.Accepted >= 3 })
	for i := range 12 {
		a.guesses(good(i), 30) // more than what speaks for them on b cancels
	}
	for i := range 12 {
		d.decides(good(i), block.RuleBlock)
	}
	b.await("suspends mx1", func() bool { return b.peer("mx1").Suspended })
	for i := range 12 {
		b.decides(good(i), block.RuleNone)
	}
	if w := b.status().Warnings; !slices.ContainsFunc(w, func(w string) bool { return strings.Contains(w, `"mx1" is suspended: it blocked 1`) }) {
		t.Errorf("%q", w)
	}
	var done control.Done
	b.post("/v1/origin", control.OriginRequest{Do: "clear", Node: "mx1"}, &done)
	for i := range 12 {
		c.all(good(i), block.RuleNone)
	}
}

// TestClusterThin: an attacker that guesses four recipients on each of ten nodes is caught, and blocked on all of them.
// One that does so on two nodes is not.
func TestClusterThin(t *testing.T) {
	c := newCrew(t)
	for range 10 {
		c.add("")
	}
	c.meet()
	for i, a := range c.hosts {
		a.guesses("198.18.0.1", 4)
		if i < 2 {
			a.guesses("198.18.0.2", 4)
		}
	}
	c.all("198.18.0.1", block.RuleBlock)
	w := c.hosts[0].why("198.18.0.1")
	if w.Decision.By.Cause != block.Dictionary || w.Decision.By.Scope != block.ScopeMX {
		t.Errorf("%+v", w.Decision.By)
	}
	for _, a := range c.hosts {
		// The first of the four may be enough, where the others have told of theirs before.
		if e := a.why("198.18.0.1").Evidence; e != nil && (e.Counts["unknown_recipient"] > 4 || !strings.Contains(e.Words, "on other nodes")) {
			t.Errorf("%s: %q", a.name, e.Words)
		}
	}
	for _, a := range c.hosts[:2] {
		a.await("knows what the other has", func() bool {
			k := a.why("198.18.0.2").Known
			return k != nil && k.Score > 75 && strings.Contains(k.Words, "on other nodes 40 points")
		})
	}
	c.all("198.18.0.2", block.RuleNone)

	// An unblock ends the suspicion too.
	c.hosts[4].unblock("198.18.0.2")
	for _, a := range c.hosts[:2] {
		a.await("forgets", func() bool { k := a.why("198.18.0.2").Known; return k == nil || k.Score < 1 })
	}
}

// TestClusterListHost: a host that bounces on one node and delivers to another is blocked on neither, whichever comes first.
func TestClusterListHost(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	c.meet()
	const list, spam = "198.18.0.1", "198.18.0.2"
	b.delivers("198.18.77.1", 100) // so that it is not spared for its share
	b.delivers(list, 40)
	b.await("credits it", func() bool { k := b.why(list).Known; return k != nil && k.Accepted >= 40 })
	a.guesses(list, 1)
	a.await("hears of its credit", func() bool { k := a.why(list).Known; return k != nil && strings.Contains(k.Words, "40 accepted") })
	a.guesses(list, 25)
	a.guesses(spam, 25)
	a.decides(spam, block.RuleBlock)
	a.await("reads on", func() bool { return a.status().Events["unknown_recipient"] == 51 })
	if k := a.why(list).Known; k == nil || k.Score > 1 {
		t.Errorf("%+v", k)
	}
	c.all(list, block.RuleNone)
	// It is no licence.
	a.guesses(list, 60)
	c.all(list, block.RuleBlock)
}

// TestClusterShare: a node does not drop who brings it much of its mail, whatever another node says.
func TestClusterShare(t *testing.T) {
	c := newCrew(t)
	a, b, d := c.add(""), c.add(""), c.add("")
	b.delivers("198.18.0.1", 30)
	b.await("spares it", func() bool { return b.why("198.18.0.1").Decision.Rule == block.RuleSender })
	d.await("knows all", func() bool { return d.status().Cluster.Alive == 2 })
	a.guesses("198.18.0.1", 250)
	a.decides("198.18.0.1", block.RuleBlock)
	d.decides("198.18.0.1", block.RuleBlock)
	b.await("has it too", func() bool { return len(b.why("198.18.0.1").Entries) > 0 })
	if w := b.why("198.18.0.1"); w.Decision.Rule != block.RuleSender || !strings.Contains(w.Words, "share of the accepted mail") {
		t.Errorf("%+v", w)
	}
}

// other is a node of another version, without an agent around it.
type other struct {
	t     *testing.T
	g     *gossip.Cluster
	node  *replica.Node
	table *block.Table
	net   clusterNet
}

func (c *crew) other(name string, wire gossip.Wire) *other {
	c.t.Helper()
	o := &other{t: c.t, table: block.New(block.Options{Origin: name})}
	key := filepath.Join(c.dir, name+".key")
	err := os.WriteFile(key, []byte(crewKey+"\n"), 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	o.node, err = replica.New(replica.Options{Node: name, Clock: time.Now, Rand: rand.New(rand.NewPCG(1, 2)), Net: &o.net, Table: o.table, Wire: wire.Max})
	if err != nil {
		c.t.Fatal(err)
	}
	o.g, err = gossip.Open(gossip.Options{
		Name: name, Bind: "127.0.0.99:0", KeyFile: key, Wire: wire, Version: "from the future", Peers: []string{c.hosts[0].bind},
		Handler: o.node.Receive, Digest: o.node.Digest, Merge: o.node.Receive,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	o.net.to.Store(o.g)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			o.node.Tick(time.Now())
			time.Sleep(50 * time.Millisecond)
		}
	})
	c.t.Cleanup(func() {
		stop()
		wg.Wait()
		o.g.Close()
	})
	return o
}

func (o *other) block(p string) {
	o.t.Helper()
	if _, err := o.table.Apply(block.Entry{Prefix: netip.MustParsePrefix(p), Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll}, time.Now()); err != nil {
		o.t.Fatal(err)
	}
}

// TestClusterUpgrade: with a node of a later version everything works that both know; what only that one knows is
// skipped, counted and told of. A node with which no version is shared is kept out, and told of.
func TestClusterUpgrade(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	later := c.other("mx8", gossip.Wire{Min: 1, Max: 2})
	later.block("198.18.8.1/32")
	a.block("198.18.0.1")
	c.all("198.18.8.1", block.RuleManualBlock)
	a.await("is heard by the later one", func() bool { return later.table.Decide(netip.MustParsePrefix("198.18.0.1/32"), time.Now()).Drop })
	p := b.peer("mx8")
	if p.State != "alive" || p.Wire != 1 || p.WireMin != 1 || p.WireMax != 2 || p.Version != "from the future" || p.Entries != 1 {
		t.Errorf("%+v", p)
	}
	if w := b.status().Warnings; len(w) > 0 {
		t.Errorf("%q", w)
	}

	// A kind of message, and a kind of record, of which this version knows nothing.
	later.g.Stream("mx2", []byte{1, 99, 0, 1, 2, 3})
	epoch, seq := later.table.Number()
	m := append([]byte{1, 1, 0}, 3)
	m = append(m, "mx8"...)
	m = binary.BigEndian.AppendUint64(m, epoch)
	m = binary.AppendUvarint(m, uint64(time.Now().UnixMilli()))
	m = binary.AppendUvarint(m, seq+1)
	m = binary.AppendUvarint(m, seq) // the run begins behind this number
	m = binary.BigEndian.AppendUint64(m, uint64(block.StampAt(time.Now())))
	m = append(m, 6, 1, 0, 0, 7, 0, 42) // number, time, counter, head with kind 7, and something
	later.g.Stream("mx2", m)
	b.await("counts both", func() bool { k := b.peers().Counters; return k["unknown_kind"] == 1 && k["unknown_records"] == 1 })
	if w := b.status().Warnings; len(w) != 1 || !strings.Contains(w[0], "2 messages and entries of kinds that this version does not know were skipped: upgrade this agent") {
		t.Errorf("%q", w)
	}
	if p := b.peer("mx8"); p.Lag != 0 {
		t.Errorf("%+v", p)
	}
	b.block("198.18.0.2")
	a.decides("198.18.0.2", block.RuleManualBlock)

	alien := c.other("mx9", gossip.Wire{Min: 2, Max: 3})
	a.await("sees that they have nothing in common", func() bool { return a.peer("mx9").State == "incompatible" })
	alien.block("198.18.9.1/32")
	a.block("198.18.0.3")
	b.decides("198.18.0.3", block.RuleManualBlock)
	if w := a.status().Warnings; !slices.ContainsFunc(w, func(w string) bool {
		return strings.Contains(w, "mx9 (agent from the future, wire 2 to 3); upgrade the older of the two")
	}) {
		t.Errorf("%q", w)
	}
	alien.node.Tick(time.Now())
	if n := alien.table.Count(time.Now()).Entries; n != 1 || len(a.why("198.18.9.1").Entries) > 0 {
		t.Errorf("something went across: %d entries there", n)
	}
}

// TestClusterLogins: where many people log in from, an attack on another node closes the MX port here, and nothing
// else.
func TestClusterLogins(t *testing.T) {
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	const nat = "198.18.0.1"
	line := func(format string, args ...any) string {
		return time.Now().UTC().Format("2006-01-02T15:04:05.000000Z") + " mx postfix/submission/smtpd[7]: " + fmt.Sprintf(format, args...) + "\n"
	}
	for i := range 12 {
		b.write(line("5%09X: client=unknown[%s], sasl_method=PLAIN, sasl_username=user%d@example.org", i, nat, i))
	}
	b.await("spares their logins", func() bool {
		return slices.ContainsFunc(b.status().Never, func(n block.Never) bool { return n.Prefix.Contains(netip.MustParseAddr(nat)) && n.Ports != 0 })
	})
	for i := range 12 {
		a.write(line("warning: unknown[%s]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=other%d@example.org", nat, i))
	}
	a.decides(nat, block.RuleBlock)
	b.decides(nat, block.RuleBlock)
	if d := a.why(nat).Decision; d.Scope != block.ScopeAll || d.By.Cause != block.AuthBrute {
		t.Errorf("%+v", d)
	}
	if w := b.why(nat); w.Decision.Scope != block.ScopeMX || !strings.Contains(w.Words, "not on the rest because of the many people that log in from it") {
		t.Errorf("%+v", w)
	}
}

// TestClusterFlood: a node that floods bogus blocks, hosts with welcome mail among them, is suspended by those who had
// that mail; their mail flows, and one command cleans up everywhere. 300,000 blocks with MXSHIELD_TEST_LONG=1.
func TestClusterFlood(t *testing.T) {
	flood := 30_000
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		flood = 300_000
	}
	c := newCrew(t)
	a, b := c.add(""), c.add("")
	good := func(i int) string { return fmt.Sprintf("101.%d.7.1", i) }
	bogus := func(i int) string { return fmt.Sprintf("102.%d.%d.%d", i>>16, i>>8&255, i&255) }
	for i := range 12 {
		a.delivers(good(i), 3)
		b.delivers(good(i), 3)
	}
	for _, x := range c.hosts {
		x.await("knows its senders", func() bool { k := x.why(good(11)).Known; return k != nil && k.Accepted >= 3 })
	}
	liar := c.other("mx8", gossip.Wire{Min: 1, Max: 1})
	now := time.Now()
	apply := func(p string) {
		t.Helper()
		e := block.Entry{Prefix: netip.MustParsePrefix(p + "/32"), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(72 * time.Hour)}
		if _, err := liar.table.Apply(e, now); err != nil {
			t.Fatal(err)
		}
	}
	for i := range flood {
		if apply(bogus(i)); i < 12 {
			apply(good(i))
		}
	}
	for _, x := range c.hosts {
		x.await("suspends the liar", func() bool { return x.peer("mx8").Suspended })
		x.await("has all the same", func() bool { p := x.peer("mx8"); return p.Entries == flood+12 && p.Lag == 0 })
		for i := range 12 {
			x.decides(good(i), block.RuleNone)
		}
		if s := x.status(); s.Blocks.Blocks != 0 {
			t.Errorf("%s enforces %d blocks", x.name, s.Blocks.Blocks)
		}
	}
	b.guesses("198.18.0.1", 12) // the others go on
	a.decides("198.18.0.1", block.RuleBlock)

	var done control.Done
	a.post("/v1/origin", control.OriginRequest{Do: "clear", Node: "mx8"}, &done)
	for _, x := range c.hosts {
		x.await("hears of it", func() bool {
			var d control.Done
			x.post("/v1/origin", control.OriginRequest{Do: "resume", Node: "mx8"}, &d)
			return x.status().Blocks.Blocks == 1
		})
		x.decides(bogus(7), block.RuleNone)
		x.decides(good(7), block.RuleNone)
	}
	apply("103.0.0.1") // what it says from now on counts
	c.all("103.0.0.1", block.RuleBlock)
}

// TestClusterNames: names of origins that a member tells of are names, and nothing that a terminal obeys.
func TestClusterNames(t *testing.T) {
	c := newCrew(t)
	a := c.add("")
	o := c.other("mx8", gossip.Wire{Min: 1, Max: 1})
	o.block("198.18.8.1/32")
	a.decides("198.18.8.1", block.RuleManualBlock)
	for _, name := range []string{"mx\x1b[2J", "mx 9", "mx\n9", "mx\xff"} {
		m := append([]byte{1, 2, 0, 0}, binary.AppendUvarint(nil, uint64(time.Now().UnixMilli()))...) // a digest
		m = append(append(m, byte(len(name))), name...)
		m = append(m, 1)
		m = binary.BigEndian.AppendUint64(m, block.NewEpoch(time.Now(), 1))
		m = append(m, 1, 0, 4) // it knows 1 to 5
		o.g.Stream("mx1", m)
	}
	a.await("refuses them", func() bool { return a.peers().Counters["messages_malformed"] == 4 })
	if n := len(a.peers().Members); n != 2 {
		t.Errorf("%+v", a.peers().Members)
	}
}

// TestClusterSecrets: nothing that names a mailbox, a host or a person goes over the wire. All packets of a story, not
// encrypted, are searched for every such word in it.
func TestClusterSecrets(t *testing.T) {
	wire := listenToLoopback(t)
	c := newCrew(t)
	c.key = ""
	a, b, d := c.add(""), c.add("traps: [\"honeypot@trap.example.org\"]"), c.add("")
	c.meet()
	now := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z")
	a.write(strings.Join([]string{
		now + " mx postfix/smtpd[7]: connect from evil.helo.example.net[198.18.3.3]",
		now + " mx postfix/submission/smtpd[7]: warning: unknown[198.18.3.3]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=sasluser@example.org",
		now + " mx postfix/smtpd[7]: 4000000001: client=evil.helo.example.net[198.18.3.3]",
		now + " mx postfix/qmgr[8]: 4000000001: from=<thesender@example.com>, size=300, nrcpt=1 (queue active)",
		now + " mx postfix/smtp[9]: 4000000001: to=<therecipient@example.org>, relay=inner.example.org[10.0.0.1]:25, delay=1, dsn=2.0.0, status=sent (250 ok)",
		"",
	}, "\n"))
	a.guesses("198.18.0.1", 12)
	b.guesses("198.18.0.2", 4)
	d.guesses("198.18.0.2", 7)
	b.write(now + " mx postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[198.18.0.4]: 550 5.1.1 <honeypot@trap.example.org>: Recipient address rejected: User unknown; from=<trapped@example.net> to=<honeypot@trap.example.org> proto=ESMTP helo=<evil.helo.example.net>\n")
	for _, p := range []string{"198.18.0.1", "198.18.0.2", "198.18.0.4"} {
		c.all(p, block.RuleBlock)
	}
	var done control.Done
	a.post("/v1/block", control.BlockRequest{Prefix: "198.18.1.0/24", Reason: "theboss said so"}, &done)
	b.post("/v1/allow", control.BlockRequest{Prefix: "198.18.1.7", Reason: "ticket of theclerk"}, &done)
	d.post("/v1/unblock", control.UnblockRequest{Prefixes: []string{"198.18.0.1"}, Reason: "thecustomer called"}, &done)
	c.all("198.18.1.7", block.RuleManualAllow)
	c.all("198.18.0.1", block.RuleCleared)
	c.same()
	d.end()
	d.start() // and all of it again, by pulls
	d.decides("198.18.1.77", block.RuleManualBlock)

	seen := wire()
	if !bytes.Contains(seen, []byte("mx1")) || !bytes.Contains(seen, []byte{198, 18, 0, 1}) {
		t.Fatalf("%d bytes, and not even what must be there: the ear is deaf", len(seen))
	}
	for _, word := range []string{
		"example", "secret", "honeypot", "trapped", "helo", "sasluser", "thesender", "therecipient", "inner", "postfix", "unknown",
		"theboss", "theclerk", "thecustomer", "ticket",
	} {
		if i := bytes.Index(seen, []byte(word)); i >= 0 {
			t.Errorf("%q went over the wire: %q", word, seen[max(0, i-40):min(len(seen), i+40)])
		}
	}
}

// listenToLoopback hears every packet to and from the crew's addresses. The function it returns ends that, and returns
// what was heard. It needs root.
func listenToLoopback(t *testing.T) func() []byte {
	t.Helper()
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skipf("no loopback: %v", err)
	}
	const ip4 = 0x0008 // ETH_P_IP, big-endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, ip4)
	if err != nil {
		t.Skipf("packets cannot be listened to (root can): %v", err)
	}
	for _, err := range []error{
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ip4, Ifindex: lo.Index}),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var heard []byte
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer unix.Close(fd)
		b := make([]byte, 1<<17)
		for {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				if stop.Load() { // and nothing is left
					return
				}
				continue
			}
			const ether = 14
			if n < ether+20 || len(heard) > 256<<20 {
				continue
			}
			src, dst := [4]byte(b[ether+12:]), [4]byte(b[ether+16:])
			if crewAddr(src) && crewAddr(dst) {
				heard = append(heard, b[:n]...)
			}
		}
	}()
	end := sync.OnceFunc(func() { stop.Store(true); <-done })
	t.Cleanup(end)
	return func() []byte { end(); return heard }
}

func crewAddr(a [4]byte) bool { return a[0] == 127 && a[1] == 0 && a[2] == 0 && a[3] > 10 && a[3] < 30 }
