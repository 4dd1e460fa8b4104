package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/sdnotify"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/sessions"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/agent/internal/tail"
	"github.com/mxshield/mxshield/agent/internal/talkers"
	"github.com/mxshield/mxshield/agent/internal/verdict"
	"github.com/mxshield/mxshield/bpf"
)

// The agent's rhythm.
const (
	commitSoon   = 50 * time.Millisecond // a new block is on disk this long after the verdict, plus the write
	commitLazy   = time.Second           // positions and scores
	expireEvery  = time.Second
	inspectEvery = 5 * time.Second  // interfaces, clock, own addresses
	postfixEvery = time.Hour        // mynetworks
	compactEvery = 10 * time.Minute // the state file
	orphansAfter = 10 * time.Second // at the latest, entries in the kernel that nobody knows are removed
)

// daemon is the running agent. Lines flow one way: tail -> maillog -> verdict -> block.Table -> bpf.
type daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	node    string
	started time.Time
	reload  func() (*config.Config, error)
	table   *block.Table
	store   *store.Store
	shield  *bpf.Shield     // nil in a dry run
	hold    *holder         // nil without dns.before_accept
	ender   *sessions.Ender // nil in a dry run
	dnsParts
	clusterParts
	namesParts
	ownMXParts
	reputationParts
	scraped atomic.Pointer[string] // where the metrics are, while they are served
	ranges  chan struct{}          // tells the housekeeper that senders has new ranges
	inputs  []tail.Input
	mtas    map[string]maillog.MTA // by input; those without an entry are told apart line by line
	nets    []netip.Prefix         // Postfix mynetworks; only serve and the housekeeper use it and the next
	asked   bool                   // Postfix has answered; until then what the state file knows of mynetworks holds

	mu       sync.Mutex // guards what follows
	scorer   *verdict.Scorer
	samples  *verdict.Samples
	parser   *maillog.Parser
	pending  map[string][]byte // of the state file, until the parser is made
	seed     uint64
	batch    store.Batch  // what the next commit writes
	flight   *store.Batch // what a commit is writing just now
	own      []netip.Addr // own addresses and gateways
	events   [maillog.NumMTAs][maillog.NumKinds]uint64
	made     [block.Manual + 1]uint64 // blocks, by cause
	caughtUp map[string]bool
	reached  map[string]time.Time // by input: when the newest event was that was read
	off      *control.Marker
	warnings map[string]string
	told     map[string]time.Time // when a repeated log message was last written
	swept    time.Time            // when told was last cleared of old ones
	second   int64                // for the limit on log lines of blocks
	blocks   int

	talkersMu sync.Mutex
	talkers   *talkers.Talkers

	attachMu sync.Mutex // off and on, and whoever attaches, wait for each other; taken before mu
	commitMu sync.Mutex // one commit at a time
	storeErr error      // guarded by mu: why the last write failed
	kick     chan struct{}
}

// serve is the start-up story, top to bottom, and runs until ctx ends.
func serve(ctx context.Context, cfg *config.Config, reload func() (*config.Config, error), log *slog.Logger) (err error) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP) // first of all: until then it would end the process
	defer signal.Stop(hup)
	d := &daemon{
		cfg: cfg, log: log, started: time.Now(), reload: reload,
		mtas: map[string]maillog.MTA{}, pending: map[string][]byte{}, caughtUp: map[string]bool{}, reached: map[string]time.Time{},
		warnings: map[string]string{}, told: map[string]time.Time{}, kick: make(chan struct{}, 1), ranges: make(chan struct{}, 1),
	}
	if d.node, err = os.Hostname(); err != nil || d.node == "" {
		d.node = "localhost"
	}
	if cfg.Cluster != nil {
		d.node = cfg.Cluster.Name
		if err := checkClusterKey(cfg.Cluster); err != nil { // before anything is touched
			return err
		}
	}

	// The socket first: it keeps a second agent away before anything is touched.
	listener, err := control.Listen(cfg.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()

	if d.off, err = control.ReadMarker(d.stateDir()); err != nil {
		return err
	}
	if err := d.openShield(); err != nil {
		return err
	}
	if d.shield != nil {
		defer d.shield.Close()
	}
	if err := d.openState(); err != nil {
		return err
	}
	defer d.store.Close()
	if err := d.openCluster(); err != nil {
		return err
	}
	if err := d.openDNS(); err != nil {
		return err
	}
	d.openOwnMX()
	if err := d.openReputation(); err != nil {
		return err
	}
	d.resumeHeld()
	d.resumeHold()
	marks := d.marks()
	d.openInputs(ctx, marks)
	d.newParser()
	d.refreshNever(ctx, true)
	if err := d.resync(false); err != nil {
		d.warn("kernel", "not every block is in the kernel", err)
	}
	if err := d.attach(); err != nil {
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var all sync.WaitGroup
	failed := make(chan error, len(d.inputs)+16)
	start := func(f func() error) {
		all.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil {
				failed <- err
			}
		})
	}
	lines := make(chan tail.Batch, 4)
	for _, in := range d.inputs {
		start(func() error { return in.Run(ctx, marks[in.ID()], lines) })
	}
	if d.shield != nil {
		start(func() error { return d.ender.Run(ctx) })
		start(func() error { bpf.Watch(ctx, log, d.follow); return nil })
		start(func() error { d.watchDrops(ctx); return nil })
	}
	if d.hold != nil {
		start(func() error { d.keepHold(ctx); return nil })
	}
	start(func() error { d.senders.Run(ctx); return nil })
	start(func() error { d.askNames(ctx); return nil })
	start(func() error { return d.readLines(ctx, lines) })
	start(func() error { return d.runDNS(ctx) })
	start(func() error { return d.beatCluster(ctx) })
	start(func() error { return d.keepGossip(ctx) })
	start(func() error { return d.keepAsking(ctx) })
	start(func() error { d.publish(ctx); return nil })
	start(func() error { return d.serveMetrics(ctx) })
	start(func() error { d.keepOwnMX(ctx); return nil })
	start(func() error { d.keepReputation(ctx); return nil })
	start(func() error { return d.keepHouse(ctx, hup) })
	start(func() error { return control.NewServer(d, log).Run(ctx, listener) })
	committed := make(chan struct{})
	go func() { d.commitUntil(ctx); close(committed) }()

	d.notify(sdnotify.Ready)
	log.Info("running", "node", d.node, "version", control.Version(), "blocks", d.table.Count(time.Now()).Blocks, "dry_run", cfg.DryRun)
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	d.notify(sdnotify.Stopping)
	stop()
	all.Wait()
	<-committed
	d.senders.Stop()
	if cerr := d.commit(); cerr != nil {
		err = errors.Join(err, cerr)
	}
	log.Info("stopped; what is blocked stays blocked", "pins", cfg.Pins)
	return err
}

func (d *daemon) stateDir() string { return filepath.Dir(d.cfg.State) }

// notify tells systemd, where it listens.
func (d *daemon) notify(states ...string) {
	n, err := sdnotify.New()
	if err != nil {
		return // not started by systemd
	}
	defer n.Close()
	if err := n.Notify(states...); err != nil {
		d.log.Warn("tell systemd", "error", err)
	}
}

// ---- opening

func (d *daemon) openShield() error {
	if d.cfg.DryRun {
		// What an earlier run attached would go on dropping. What a live agent has attached is not ours to take off.
		if err := bpf.InUse(d.cfg.Pins); err != nil {
			return err
		}
		was, err := bpf.Off(d.cfg.Pins, false)
		if len(was) > 0 {
			d.log.Warn("dry run: detached what an earlier run had attached", "interfaces", len(was))
		}
		if err != nil {
			d.warn("dry_run", "a program of an earlier run may still drop packets", err)
		}
		return nil
	}
	s, err := bpf.Open(bpf.Options{
		Pins: d.cfg.Pins, Interfaces: d.cfg.Interfaces, Attach: bpf.Mode(d.cfg.Attach),
		MXPorts: d.cfg.MXPorts, SubmissionPorts: d.cfg.SubmissionPorts, Exempt: d.cfg.Exempt, Log: d.log,
		SYNPerSource: d.cfg.Limits.SYNPerSource, SYNTotal: d.cfg.Limits.SYNTotal,
		Hold: d.cfg.DNS.BeforeAccept, HoldBudget: holdBudget(d.cfg.DNS.Lists),
	})
	if err != nil {
		return err
	}
	d.shield = s
	d.hold = d.newHolder()
	d.ender = sessions.New(sessions.Options{Ports: slices.Concat(d.cfg.MXPorts, d.cfg.SubmissionPorts), Ends: d.ends, Log: d.log})
	return nil
}

// openState opens the state file and fills the table and the scores from it.
func (d *daemon) openState() error {
	now := time.Now()
	s, aside, err := store.Open(d.cfg.State, now)
	if err != nil {
		return err
	}
	d.store = s
	renamed, err := s.SetNode(d.node)
	if err != nil {
		return err
	}
	if renamed > 0 {
		d.log.Info("this host has another name now: its entries were taken over", "node", d.node, "entries", renamed)
	}
	if aside != "" {
		d.warn("state", "the state file was damaged: it is kept as "+aside+", and the agent started without blocks, scores and positions", nil)
	}
	o := block.Options{Origin: d.node}
	if d.shield != nil {
		o.Sink = d.shield
	}
	d.table = block.New(o)
	d.samples = new(verdict.Samples)
	var bad, entries, scores int
	var firstBad error
	var keys, vals [][]byte
	d.batch.Marks = map[string][]byte{}
	reject := func(err error) {
		if bad++; firstBad == nil {
			firstBad = err
		}
	}
	err = s.Load(store.State{
		Entry: func(e block.Entry) {
			if _, err := d.table.Load(e); err != nil {
				reject(err)
			}
			entries++
		},
		BadEntry: reject,
		Score: func(k, v []byte) {
			keys, vals = append(keys, slices.Clone(k)), append(vals, slices.Clone(v))
		},
		Mark: func(id string, m []byte) { d.batch.Marks[id] = slices.Clone(m) },
		Extra: func(name string, v []byte) {
			switch {
			case name == "seed" && len(v) == 8:
				d.seed = binary.BigEndian.Uint64(v)
			case name == "mynetworks":
				d.nets = parseNets(v)
			default:
				d.pending[name] = slices.Clone(v)
			}
		},
	})
	if err != nil {
		return err
	}
	if renamed > 0 {
		d.forgetReplicaLocked() // it speaks of entries by the old name
	}
	if d.seed == 0 {
		var b [8]byte
		if _, err := rand.Read(b[:]); err != nil {
			return err
		}
		d.seed = binary.BigEndian.Uint64(b[:])
		d.setExtraLocked("seed", b[:])
	}
	sc := scoring(d.cfg, liveWeights(d.cfg.Weights), d.seed)
	if d.cfg.Cluster != nil {
		sc.Wait = d.waitLocked
	}
	d.scorer = verdict.New(sc)
	for i, k := range keys {
		if err := d.scorer.Load(k, vals[i]); err != nil {
			reject(err)
			continue
		}
		scores++
	}
	if bad > 0 {
		d.warn("state", fmt.Sprintf("%d records of the state file were refused", bad), firstBad)
	}
	if newest := d.table.Newest(); newest.After(now.Add(time.Minute)) {
		d.warn("clock", fmt.Sprintf("the clock (%s) is behind the newest entry (%s): nothing expires until it is right", now.Format(time.RFC3339), newest.Format(time.RFC3339)), nil)
	}
	d.log.Info("read the state file", "path", d.cfg.State, "records", entries, "scores", scores)
	return nil
}

// marks returns the checkpoints of the state file and leaves the batch without them.
func (d *daemon) marks() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	m := d.batch.Marks
	d.batch.Marks = nil
	return m
}

// resync brings the kernel in line with the table.
func (d *daemon) resync(orphans bool) error {
	if d.shield == nil {
		return nil
	}
	n, err := d.table.ResyncEach(func(yield func(block.Enforced) bool) error {
		return d.shield.Each(func(r bpf.Rule) bool {
			return yield(block.Enforced{Prefix: r.Prefix, Scope: r.Scope, Until: r.Until})
		})
	}, time.Now(), orphans)
	if n > 0 {
		d.log.Info("brought the kernel in line with the table", "changed", n)
	}
	return err
}

// attach hangs the program on the interfaces, unless somebody said off. It fails if nothing at all is shielded then.
func (d *daemon) attach() error {
	if d.shield == nil {
		return nil
	}
	d.attachMu.Lock()
	defer d.attachMu.Unlock()
	if m := d.marker(); m != nil {
		d.log.Warn("the shield is OFF: nothing is dropped until `mxshieldctl on`", "since", m.Since, "by", m.By, "reason", m.Reason)
		return d.shield.Detach()
	}
	if on, err := d.attachLocked(); err != nil && on == 0 {
		return err
	}
	d.ender.All() // sessions of blocked sources that came while nothing was dropped
	return nil
}

// follow does the same for interfaces that came, went or changed their names since.
func (d *daemon) follow() {
	if d.shield == nil {
		return
	}
	d.attachMu.Lock()
	defer d.attachMu.Unlock()
	// `mxshieldctl off` and `on` do not wait for an agent that hangs: then the marker on disk is the truth.
	m, err := control.ReadMarker(d.stateDir())
	was := d.marker()
	if err != nil {
		m = was
	}
	d.mu.Lock()
	d.off = m
	d.mu.Unlock()
	if m != nil {
		if was == nil {
			d.log.Warn("the shield was switched OFF while this agent did not answer", "since", m.Since, "by", m.By, "reason", m.Reason)
			if err := d.shield.Detach(); err != nil {
				d.warn("attach", "detach after off", err)
			}
		}
		return
	}
	if was != nil {
		d.log.Info("the shield was switched on while this agent did not answer")
	}
	_, _ = d.attachLocked() // the error is in status and in the log
}

// attachLocked attaches, says what is wrong, and returns how many interfaces are shielded.
func (d *daemon) attachLocked() (int, error) {
	err := d.shield.Attach()
	on, aerr := d.shield.Attachments()
	if err = errors.Join(err, aerr); err != nil {
		d.warn("attach", "not every interface is shielded", err)
	} else {
		d.setWarning("attach", "", nil)
	}
	var generic []string
	for _, a := range on {
		if a.Mode == bpf.Generic {
			generic = append(generic, a.Interface)
		}
	}
	if generic != nil {
		d.warn("mode", strings.Join(generic, ", ")+": shielded in generic mode, which costs several times more per packet", nil)
	} else {
		d.setWarning("mode", "", nil)
	}
	return len(on), err
}

func (d *daemon) marker() *control.Marker {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.off
}

// ---- lines

func (d *daemon) readLines(ctx context.Context, lines <-chan tail.Batch) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-lines:
			d.take(&b)
		}
	}
}

// take works through one batch. Its checkpoint goes into the same commit as all it led to.
func (d *daemon) take(b *tail.Batch) {
	now := time.Now()
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.switchParserLocked(b)
	var at time.Time
	var e maillog.Event // one for all lines: the parser fills it
	for _, line := range b.Lines {
		if !p.Parse(line, b.Read, &e) {
			continue
		}
		d.events[e.MTA][e.Kind] += uint64(e.Count)
		at = e.Time
		if d.cfg.Weights[e.Kind] > 0 {
			d.samples.Add(d.prefixOf(e.Source), line)
		}
		if d.lookedUpLocked(&e, now) {
			continue
		}
		if v, ok := d.scorer.Observe(&e, now); ok {
			d.judgeLocked(&v, e.Source, now)
		}
		d.shareLocked(&e, now)
		for _, n := range d.scorer.News() {
			d.log.Warn(n.Text, "notice", n.Key) // status shows it as long as it holds
		}
	}
	d.markLocked(b, at)
	if d.seen != nil {
		d.seen.Flush()
	}
}

func (d *daemon) prefixOf(a netip.Addr) netip.Prefix { return sourcePrefix(a, d.cfg.Block.IPv6Prefix) }

// sourcePrefix is what a source is scored and blocked as.
func sourcePrefix(a netip.Addr, bits6 int) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = bits6
	}
	p, _ := a.Prefix(bits)
	return p
}

// judgeLocked enters a verdict into the table.
func (d *daemon) judgeLocked(v *verdict.Verdict, source netip.Addr, now time.Time) {
	if !d.heedListsLocked(v, source, now) {
		return
	}
	// Our own network: the neighbours in it, backup and monitoring among them, are not to be cut off for one of them.
	if wide := v.Prefix; d.holdsOwnLocked(wide) {
		if v.Prefix = d.prefixOf(source); d.holdsOwnLocked(v.Prefix) {
			v.Prefix = netip.PrefixFrom(source, source.BitLen())
		}
		if wide != v.Prefix {
			d.scorer.Refused(wide)
		}
	}
	if d.holdLocked(v, source) {
		return
	}
	d.enterLocked(v, source, now)
}

// enterLocked is the rest of it, once the names of the source are known or need not be.
func (d *daemon) enterLocked(v *verdict.Verdict, source netip.Addr, now time.Time) {
	words := v.Evidence.Words()
	if rule, ok := d.allowedSender(source); ok { // of a /64 or an area the rule may cover only the source
		d.spareLocked(v, rule, words, now)
		return
	}
	e := block.Entry{Prefix: v.Prefix, Kind: block.Block, Cause: v.Cause, Scope: v.Scope, Since: v.Since, Until: v.Until, Hits: d.hits(&v.Evidence.Counts)}
	res, err := d.table.Apply(e, now)
	var never *block.NeverError
	var held *block.HeldError
	switch {
	case errors.As(err, &never) && never.By.Sender:
		d.spareLocked(v, never.By.Rule, words, now)
		return
	case errors.As(err, &never):
		d.scorer.Refused(v.Prefix)
		if d.tellLocked("source never "+v.Prefix.String(), time.Hour, now) {
			d.log.Info("not blocked: "+err.Error(), "cause", v.Cause, "evidence", words)
		}
		return
	case errors.As(err, &held):
		d.scorer.Reset(v.Prefix) // old evidence must not block it once the hold is over
		if d.tellLocked("source held "+v.Prefix.String(), time.Hour, now) {
			d.log.Info("not blocked: "+err.Error(), "cause", v.Cause, "evidence", words)
		}
		return
	case err != nil:
		d.scorer.Refused(v.Prefix)
		if d.tellLocked("apply", time.Minute, now) {
			d.log.Error("a source could not be blocked", "prefix", v.Prefix, "cause", v.Cause, "error", err)
		}
		return
	}
	if res.Entry.Cause == block.Manual {
		d.scorer.Refused(v.Prefix) // a person has blocked it already; when that ends, the score counts again
		return
	}
	if res.Unenforced != "" && d.tellLocked("unenforced", time.Minute, now) {
		d.log.Error("the kernel did not take a block", "prefix", v.Prefix, "error", res.Unenforced)
	}
	ev := evidenceOf(v.Prefix, &v.Evidence, d.samples.Get(v.Source))
	if b, err := json.Marshal(ev); err == nil {
		if d.batch.Evidence == nil {
			d.batch.Evidence = map[netip.Prefix][]byte{}
		}
		d.batch.Evidence[v.Prefix] = b
	}
	d.batch.Audit = append(d.batch.Audit, store.Audit{Time: now.UTC(), Who: "agent", Action: "block", Prefix: v.Prefix, Detail: fmt.Sprintf("%s: %s", v.Cause, words)})
	if !res.Already {
		d.made[v.Cause]++
	}
	d.logBlockLocked(res.Entry, words, now)
	d.commitSoon()
	if d.ender != nil && d.off == nil {
		d.ender.Fresh(v.Prefix)
	}
	d.said()
}

// holdsOwnLocked says whether a prefix holds an own address or a gateway.
func (d *daemon) holdsOwnLocked(p netip.Prefix) bool { return slices.ContainsFunc(d.own, p.Contains) }

// hits counts the events that have weight.
func (d *daemon) hits(c *verdict.Counts) (n uint32) {
	for k, x := range c {
		if d.cfg.Weights[k] > 0 {
			n += x
		}
	}
	return n
}

// maxBlockLines bounds the log lines about single blocks, per second: a flood of attackers must not become a flood
// of log lines.
const maxBlockLines = 20

func (d *daemon) logBlockLocked(e block.Entry, words string, now time.Time) {
	if s := now.Unix(); s != d.second {
		if d.blocks > maxBlockLines {
			d.log.Info("blocked", "more", d.blocks-maxBlockLines)
		}
		d.second, d.blocks = s, 0
	}
	if d.blocks++; d.blocks <= maxBlockLines {
		d.log.Info("blocked", "prefix", e.Prefix, "cause", e.Cause, "scope", e.Scope, "until", e.Until, "evidence", words)
	}
}

// maxTold bounds how many repeated messages are remembered.
const maxTold = 10_000

// tellLocked says whether a repeated message is due again. What is about one source begins with "source ".
func (d *daemon) tellLocked(what string, every time.Duration, now time.Time) bool {
	if now.Sub(d.told[what]) < every {
		return false
	}
	if _, known := d.told[what]; !known && len(d.told) >= maxTold {
		if now.Sub(d.swept) >= time.Minute {
			d.swept = now
			maps.DeleteFunc(d.told, func(_ string, t time.Time) bool { return now.Sub(t) > time.Hour })
		}
		if len(d.told) >= maxTold && strings.HasPrefix(what, "source ") {
			return false // one line about each of so many sources helps nobody
		}
	}
	d.told[what] = now
	return true
}

// ---- the state file

// commitSoon asks for a commit; several asks become one.
func (d *daemon) commitSoon() {
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

func (d *daemon) commitUntil(ctx context.Context) {
	lazy := time.NewTicker(commitLazy)
	defer lazy.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.kick:
			select {
			case <-ctx.Done():
				return
			case <-time.After(commitSoon):
			}
		case <-lazy.C:
		}
		if err := d.commit(); err != nil {
			d.mu.Lock()
			tell := d.tellLocked("commit", time.Minute, time.Now())
			d.mu.Unlock()
			if tell {
				d.log.Error("the state file cannot be written: blocks hold in the kernel, but a restart would forget the newest", "error", err)
			}
		}
	}
}

// commit writes what came up since the last one, in one transaction. After an error nothing is lost: the next
// commit writes it too.
func (d *daemon) commit() error {
	d.commitMu.Lock()
	defer d.commitMu.Unlock()
	state, news := d.replicaState()
	d.mu.Lock()
	if news {
		d.setExtraLocked(replicaKey, state)
	}
	b := d.batch
	d.batch = store.Batch{}
	if said := d.table.Drain(); len(b.Entries) == 0 {
		b.Entries = said
	} else {
		b.Entries = append(b.Entries, said...)
	}
	d.scorer.Changed(func(k, v []byte) {
		if b.Scores == nil {
			b.Scores = map[string][]byte{}
		}
		b.Scores[string(k)] = slices.Clone(v)
	})
	keep := func(name string, v []byte, news bool) {
		if !news {
			return
		}
		if b.Extra == nil {
			b.Extra = map[string][]byte{}
		}
		b.Extra[name] = v
	}
	if len(b.Marks) > 0 {
		keep("parser", d.parser.Pending(), true)
	}
	extra := func(name string, save func() ([]byte, bool)) {
		v, news := save()
		keep(name, v, news)
	}
	extra(sendersKey, d.senders.Save)
	extra(heldKey, d.heldNewsLocked)
	if d.lists != nil {
		extra(budgetsKey, d.lists.Save)
	}
	if d.hold != nil {
		extra(holdKey, d.hold.save)
	}
	if d.watch != nil {
		extra(reputationKey, d.watch.Save)
	}
	d.flight = &b
	d.mu.Unlock()
	err := d.store.Commit(&b)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flight, d.storeErr = nil, err
	if err == nil {
		if news {
			d.savedReplica = state
		}
		return nil
	}
	n := &d.batch
	n.Entries = append(b.Entries, n.Entries...)
	n.Audit = append(b.Audit, n.Audit...)
	n.Audit = n.Audit[max(0, len(n.Audit)-maxUnsaved):] // a disk may stay full for days
	n.Scores = under(b.Scores, n.Scores)
	n.Marks = under(b.Marks, n.Marks)
	n.Extra = under(b.Extra, n.Extra)
	n.Evidence = under(b.Evidence, n.Evidence)
	return err
}

// maxUnsaved is how many lines of the audit trail wait for a disk that takes them: not more than the store keeps.
const maxUnsaved = 100_000

// under lays the newer values over the older ones.
func under[K comparable](older, newer map[K][]byte) map[K][]byte {
	if older == nil {
		return newer
	}
	maps.Copy(older, newer)
	return older
}

// ---- housekeeping

func (d *daemon) keepHouse(ctx context.Context, hup <-chan os.Signal) error {
	expire, inspect := time.NewTicker(expireEvery), time.NewTicker(inspectEvery)
	postfix, compact := time.NewTicker(postfixEvery), time.NewTicker(compactEvery)
	defer func() {
		for _, t := range []*time.Ticker{expire, inspect, postfix, compact} {
			t.Stop()
		}
	}()
	orphans := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-expire.C:
			d.table.Expire(now)
			d.resetCleared()
			if text := d.table.Doubt(); text == "" {
				d.setWarning("clock", "", nil)
			} else {
				d.warn("clock", text, nil)
			}
			if !orphans && (d.allCaughtUp() && d.replica == nil || now.Sub(d.started) > orphansAfter) {
				// The lines before the crash have been read again, and other nodes have told again what they told: what is
				// still unknown is nobody's.
				orphans = true
				if err := d.resync(true); err != nil {
					d.warn("kernel", "not every block is in the kernel", err)
				}
			}
		case <-inspect.C:
			d.inspect(ctx)
		case <-d.ranges:
			d.refreshNever(ctx, false)
		case <-postfix.C:
			d.refreshNever(ctx, true)
		case <-compact.C:
			d.compact()
			d.recheck()
		case <-hup:
			d.reloadConfig(ctx)
		}
	}
}

func (d *daemon) allCaughtUp() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, in := range d.inputs {
		if !d.caughtUp[in.ID()] {
			return false
		}
	}
	return true
}

// inspect looks whether the world around has changed.
func (d *daemon) inspect(ctx context.Context) {
	d.refreshNever(ctx, !d.asked)
	if d.shield == nil {
		return
	}
	if d.shield.ClockStepped() {
		d.log.Warn("the clock was set: the ends of all blocks are written anew")
		if err := d.resync(true); err != nil {
			d.warn("kernel", "not every block is in the kernel", err)
		}
	}
	d.follow()
	d.lookForListeners()
}

func (d *daemon) compact() {
	n, err := d.store.Compact(d.table.Count(time.Now()).Entries, d.table.Holds,
		func(p netip.Prefix) bool {
			return d.table.Decide(p, time.Now()).Drop
		})
	if err != nil {
		d.warn("compact", "the state file cannot be compacted", err)
		return
	}
	if n > 0 {
		d.log.Debug("compacted the state file", "removed", n)
	}
}

// reloadConfig takes over what can change without a restart: the ranges of the allow list, and the DNS lists with their
// keys. A restart opens no gap, so the rest asks for one.
func (d *daemon) reloadConfig(ctx context.Context) {
	d.notify(sdnotify.Reloading)
	defer d.notify(sdnotify.Ready)
	cfg, err := d.reload()
	if err != nil {
		d.warn("config", "the config was not reloaded, the old one stays", err)
		return
	}
	d.setWarning("config", "", nil)
	d.mu.Lock()
	d.cfg.Allow = cfg.Allow
	d.mu.Unlock()
	d.refreshNever(ctx, true)
	if !d.reloadLists(cfg.DNS.Lists) {
		d.log.Warn("DNS lists are asked after the next restart: none were asked so far, and no names")
	}
	d.retuneHold(cfg)
	d.log.Info("reloaded the allow list and the DNS lists; other changes of the config take effect at the next restart", "allows", len(cfg.Allow), "lists", len(cfg.DNS.Lists))
}

// warn logs a problem that lasts and shows it in status.
func (d *daemon) warn(key, text string, err error) {
	if d.setWarning(key, text, err) {
		args := []any{}
		if err != nil {
			args = append(args, "error", err)
			if h := control.Hint(err); h != "" {
				args = append(args, "hint", h)
			}
		}
		d.log.Warn(text, args...)
	}
}

// setWarning sets or, with an empty text, takes back what status shows. It reports whether that is news.
func (d *daemon) setWarning(key, text string, err error) bool {
	if err != nil {
		text += ": " + err.Error()
		if h := control.Hint(err); h != "" {
			text += " (" + h + ")"
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.warnings[key] == text {
		return false
	}
	if text == "" {
		delete(d.warnings, key)
	} else {
		d.warnings[key] = text
	}
	return true
}
