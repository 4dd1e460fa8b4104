package main

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime/debug"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/verdict"
)

// replayOptions are the flags of replay.
type replayOptions struct {
	files  []string // "-": standard input
	events bool     // print events, not blocks
	json   bool
	year   int // of stamps without one; 0: from the file's modification time
	mta    maillog.MTA
	trust  bool // a DNS list's rejection counts although nobody asked the list
}

// trustedList is what a list's rejection counts with --trust-lists, in points: three of them block.
const trustedList = 35

// unknownYear dates stamps without a year that come through a pipe: replay is the same on every day it is run.
const unknownYear = 2000

// replay runs log files through parser, scorer and never-block rules with the config at hand, and says whom it would have
// blocked. It asks no DNS, reads no state, touches no kernel, and gives the same answer for the same files.
type replay struct {
	opts   replayOptions
	cfg    *config.Config
	in     io.Reader // standard input
	out    *bufio.Writer
	err    io.Writer
	parser *maillog.Parser
	lines  int
	found  int // events
	number int // line of the present file
	name   string
	log    *replayLog
	// Events on their way, see judge. What the one goroutine writes for each event is not to lie close to what the other
	// reads for each: they would wait for each other's caches.
	idle        [maillog.NumKinds]bool // kinds that change nothing
	batch       []maillog.Event
	one         maillog.Event // where events are only printed
	full, empty chan []maillog.Event

	scorer  *verdict.Scorer
	table   *block.Table // has the never-block rules and nothing else
	weights [maillog.NumKinds]float64
	now     time.Time // of the newest of them
	blocks  []*replayBlock
	blocked map[netip.Prefix]*replayBlock
	spared  map[netip.Prefix]string // never-block rule that kept a verdict from having an effect
	wide    bool                    // there is a block of more than a source
	near    [nearBits / 64]uint64
	last    struct { // the source that was last looked for among the blocked
		addr  netip.Addr
		block *replayBlock
	}
	notices []verdict.Notice
	verdict verdict.Verdict // the last one
}

// replayBlock is one block that would have been made. Field names are those of the JSON output.
type replayBlock struct {
	Prefix   netip.Prefix `json:"prefix"`
	Cause    block.Cause  `json:"cause"`
	Scope    block.Scope  `json:"scope"`
	At       time.Time    `json:"at"`            // when it would have been made
	First    time.Time    `json:"first"`         // the first offence of the burst
	After    float64      `json:"after_seconds"` // from the first offence to the block
	Until    time.Time    `json:"until"`
	Evidence string       `json:"evidence"`
	Later    int          `json:"offences_later"` // offences that the block would have spared the MTA
	Accepted int          `json:"accepted"`       // messages accepted from it in the files: a false positive?
}

// replaySummary ends the output.
type replaySummary struct {
	Lines    int `json:"lines"`
	Events   int `json:"events"`
	Blocks   int `json:"blocks"`
	Accepted int `json:"blocks_with_accepted_mail"`
	Spared   int `json:"never_blocked"` // sources that a never-block rule kept open
	// Notices are alarms, and sources that were not blocked because most mail comes from them.
	Notices []verdict.Notice `json:"notices,omitempty"`
	Seconds float64          `json:"seconds"`
	Rate    float64          `json:"lines_per_second"`
}

func newReplay(cfg *config.Config, o replayOptions, in io.Reader, stdout, stderr io.Writer) (*replay, error) {
	r := &replay{
		opts: o, cfg: cfg, in: in, out: bufio.NewWriterSize(stdout, 1<<16), err: stderr,
		parser: maillog.New(maillog.Options{MTA: o.mta, Several: len(o.files) > 1, Traps: cfg.Traps, Recipients: true}), weights: cfg.Weights,
		table: block.New(block.Options{Origin: "replay"}), blocked: map[netip.Prefix]*replayBlock{}, spared: map[netip.Prefix]string{},
	}
	r.weights[maillog.DNSBLReject] = 0 // nobody is asked whether it is true
	if o.trust {
		r.weights[maillog.DNSBLReject] = trustedList
	}
	score := scoring(cfg, r.weights, 0)
	score.Sources = replaySources
	r.scorer = verdict.New(score)
	for k := range maillog.NumKinds {
		r.idle[k] = !r.scorer.Minds(k)
	}
	never := block.BuiltinNever(cfg.Block.Private)
	for _, a := range cfg.Allow {
		never = append(never, block.Never{Prefix: a.Prefix, Rule: fmt.Sprintf("allow in config line %d", a.Line), Config: true})
	}
	return r, r.table.SetNever(never, time.Unix(0, 0))
}

// scoring is the scorer's part of the config.
func scoring(cfg *config.Config, weights [maillog.NumKinds]float64, seed uint64) verdict.Config {
	v, b := verdict.DefaultConfig(), cfg.Block
	v.Threshold, v.HalfLife, v.For, v.Max, v.IPv6Prefix, v.Weights, v.Seed = b.Threshold, b.HalfLife, b.For, b.Max, b.IPv6Prefix, weights, seed
	return v
}

// replaySources is how many sources are remembered at one time, half of what the agent remembers: it takes 35 MB, and who did not
// offend or send for half a million others has faded anyway.
const replaySources = 1 << 19

// replayMemory is what the garbage collector keeps the heap under, in bytes, if it can: the table of sources takes most of
// it, and nearly nothing is allocated per line, so that it has little to do.
const replayMemory = 64 << 20

func (r *replay) run() error {
	began := time.Now()
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(replayMemory))
	defer debug.SetGCPercent(debug.SetGCPercent(200))
	judged := r.judge()
	err := r.read()
	judged()
	if err != nil {
		return errors.Join(err, r.out.Flush())
	}
	if r.lines > 0 && r.found == 0 {
		fmt.Fprintf(r.err, "note: of %d lines none is an event: a mail log as syslog, the MTA or journalctl (-o short-iso, -o json) writes it is expected\n", r.lines)
	}
	if !r.opts.events {
		r.report(time.Since(began))
	}
	return r.out.Flush()
}

// Reading and parsing are one half of the work, judging is the other: each has a goroutine, and events go from one to the
// other in their order, so many at a time.
const (
	batchEvents = 4096
	batches     = 3
)

// judge judges what is handed over, until the function that it returns is called: after that it has judged all.
func (r *replay) judge() (stop func()) {
	if r.opts.events {
		return func() {}
	}
	full, done := make(chan []maillog.Event, batches), make(chan struct{})
	r.full, r.empty = full, make(chan []maillog.Event, batches)
	for range batches {
		r.empty <- make([]maillog.Event, 0, batchEvents)
	}
	r.batch = <-r.empty
	go func() {
		defer close(done)
		for b := range full {
			for i := range b {
				r.event(&b[i])
			}
			r.empty <- b[:0]
		}
	}()
	return func() {
		full <- r.batch
		close(full)
		<-done
	}
}

// next is where the next event is to be put, and hand hands it over.
func (r *replay) next() *maillog.Event {
	if r.opts.events {
		return &r.one
	}
	n := len(r.batch)
	return &r.batch[:n+1][n]
}

// An event that changes nothing goes no further: a third of a day's are connects and disconnects.
func (r *replay) hand() {
	if r.opts.events {
		r.print(&r.one)
		return
	}
	n := len(r.batch) + 1
	if e := &r.batch[:n][n-1]; r.idle[e.Kind] && !e.Undone {
		return
	}
	if r.batch = r.batch[:n]; n == batchEvents {
		r.full <- r.batch
		r.batch = <-r.empty
	}
}

// event judges an event.
func (r *replay) event(e *maillog.Event) {
	at := e.Time
	if at.IsZero() {
		at = r.now
	}
	if at.After(r.now) {
		r.now = at
	}
	if len(r.blocked) > 0 && (e.Kind == maillog.Delivered || r.weights[e.Kind] > 0 || e.Undone) {
		if b := r.blockOf(e.Source); b != nil {
			if e.Undone {
				b.Accepted = max(0, b.Accepted-1)
			}
			switch {
			case e.Kind == maillog.Delivered:
				b.Accepted += e.Count
			case r.weights[e.Kind] > 0 && at.Before(b.Until):
				b.Later += e.Count
			}
		}
	}
	v := &r.verdict
	ok := r.scorer.ObserveInto(e, at, v)
	r.notices = append(r.notices, r.scorer.News()...)
	if !ok {
		return
	}
	if never, ok := r.table.Refuses(v.Prefix); ok {
		r.spared[v.Prefix] = never.Rule
		return
	}
	b := &replayBlock{
		Prefix: v.Prefix, Cause: v.Cause, Scope: v.Scope, At: at.UTC(), First: v.Evidence.First, Until: v.Until,
		Evidence: v.Evidence.Words(), Accepted: int(v.Evidence.Accepted),
	}
	if b.After = at.Sub(b.First).Seconds(); b.After < 0 {
		b.After = 0
	}
	r.blocks = append(r.blocks, b)
	r.block(b, v.Prefix != v.Source)
}

// block makes b be found by blockOf; wide: it is of more than a source.
func (r *replay) block(b *replayBlock, wide bool) {
	r.blocked[b.Prefix], r.wide = b, r.wide || wide
	r.last.addr = netip.Addr{}
	a, hosts := b.Prefix.Addr(), 1
	switch {
	case b.Prefix.IsSingleIP():
		r.last.addr, r.last.block = a, b
	case a.Is4():
		hosts = 1 << (32 - b.Prefix.Bits()) // a /24
	}
	for range hosts {
		x := near(a)
		r.near[x/64] |= 1 << (x % 64)
		a = a.Next()
	}
}

// blockOf finds the block of a source: its own, or that of the /24, /56 or /48 around it.
func (r *replay) blockOf(a netip.Addr) *replayBlock {
	if x := near(a); r.near[x/64]>>(x%64)&1 == 0 {
		return nil
	}
	if a != r.last.addr {
		r.last.addr, r.last.block = a, r.findBlock(a)
	}
	return r.last.block
}

func (r *replay) findBlock(a netip.Addr) *replayBlock {
	b := r.blocked[r.prefix(a)]
	if b != nil || !r.wide {
		return b
	}
	widths := []int{56, 48}
	if a.Is4() {
		widths = []int{24}
	}
	for _, bits := range widths {
		if p, err := a.Prefix(bits); err == nil && b == nil {
			b = r.blocked[p]
		}
	}
	return b
}

// nearBits is how many bits say whether there may be a block of an address, or any in its /48: most sources need no look at
// the map.
const nearBits = 1 << 18

func near(a netip.Addr) uint64 {
	b := a.As16()
	x := binary.BigEndian.Uint64(b[:]) >> 16
	if a.Is4() {
		x = uint64(binary.BigEndian.Uint32(b[12:]))
	}
	return x * 0x9e3779b97f4a7c15 >> (64 - 18)
}

func (r *replay) prefix(a netip.Addr) netip.Prefix { return sourcePrefix(a, r.cfg.Block.IPv6Prefix) }

// print writes an event as one JSON object or one row.
func (r *replay) print(e *maillog.Event) {
	b := r.out.AvailableBuffer()
	if r.opts.json {
		b = append(b, '{')
		if len(r.opts.files) > 1 {
			name, _ := json.Marshal(r.name)
			b = append(append(append(b, `"file":`...), name...), ',')
		}
		b = strconv.AppendInt(append(b, `"line":`...), int64(r.number), 10)
		b = append(e.Source.AppendTo(append(b, `,"source":"`...)), `","event":"`...)
		b = append(append(b, e.Kind.String()...), '"')
		if e.Count > 1 {
			b = strconv.AppendInt(append(b, `,"count":`...), int64(e.Count), 10)
		}
		b = append(b, "}\n"...)
	} else {
		if len(r.opts.files) > 1 {
			b = append(strconv.AppendQuote(b, r.name), ' ')
		}
		b = fmt.Appendf(b, "%d %s %s %d\n", r.number, e.Source, e.Kind, e.Count)
	}
	_, _ = r.out.Write(b) // Flush tells what went wrong
}

// append appends the block as json.Encoder writes it, which takes five times as long: an attack has many.
func (b *replayBlock) append(to []byte) []byte {
	to = append(b.Prefix.AppendTo(append(to, `{"prefix":"`...)), `","cause":"`...)
	to = append(append(append(to, b.Cause.String()...), `","scope":"`...), b.Scope.String()...)
	for _, f := range [...]struct {
		key string
		at  time.Time
	}{{`","at":"`, b.At}, {`","first":"`, b.First}} {
		to = f.at.AppendFormat(append(to, f.key...), time.RFC3339Nano)
	}
	if to = append(to, `","after_seconds":`...); b.After == 0 || b.After >= 1e-6 {
		to = strconv.AppendFloat(to, b.After, 'f', -1, 64)
	} else {
		after, _ := json.Marshal(b.After)
		to = append(to, after...)
	}
	to = b.Until.AppendFormat(append(to, `,"until":"`...), time.RFC3339Nano)
	to = append(to, `","evidence":`...)
	if plainJSON(b.Evidence) {
		to = append(append(append(to, '"'), b.Evidence...), '"')
	} else {
		evidence, _ := json.Marshal(b.Evidence)
		to = append(to, evidence...)
	}
	to = strconv.AppendInt(append(to, `,"offences_later":`...), int64(b.Later), 10)
	to = strconv.AppendInt(append(to, `,"accepted":`...), int64(b.Accepted), 10)
	return append(to, "}\n"...)
}

// plainJSON says that s stands in JSON as it is.
func plainJSON(s string) bool {
	for _, c := range []byte(s) {
		switch {
		case c < ' ', c > '~', c == '"', c == '\\', c == '<', c == '>', c == '&':
			return false
		}
	}
	return true
}

func (r *replay) report(took time.Duration) {
	slices.SortStableFunc(r.blocks, func(a, b *replayBlock) int {
		return cmp.Or(a.At.Compare(b.At), a.Prefix.Compare(b.Prefix))
	})
	s := replaySummary{Lines: r.lines, Events: r.found, Blocks: len(r.blocks), Spared: len(r.spared), Notices: r.notices, Seconds: took.Seconds()}
	if s.Seconds > 0 {
		s.Rate = float64(r.lines) / s.Seconds
	}
	for _, b := range r.blocks {
		if b.Accepted > 0 {
			s.Accepted++
		}
	}
	if r.opts.json {
		j := json.NewEncoder(r.out)
		for _, b := range r.blocks {
			_, _ = r.out.Write(b.append(r.out.AvailableBuffer())) // Flush tells what went wrong
		}
		_ = j.Encode(s)
		return
	}
	if len(r.blocks) > 0 {
		w := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "AT\tPREFIX\tCAUSE\tSCOPE\tAFTER\tLATER\tACCEPTED\tEVIDENCE")
		for _, b := range r.blocks {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%gs\t%d\t%d\t%s\n", b.At.Local().Format("2006-01-02 15:04:05"), short(b.Prefix), b.Cause, b.Scope, b.After, b.Later, b.Accepted, b.Evidence)
		}
		w.Flush()
	}
	for _, n := range r.notices {
		fmt.Fprintf(r.out, "note: %s: %s\n", n.Since.Local().Format("2006-01-02 15:04:05"), n.Text)
	}
	fmt.Fprintf(r.out, "%d lines, %d events, %d blocks, %d of them with accepted mail, %d sources never blocked by rule; %.1f s, %.0f lines/s\n",
		s.Lines, s.Events, s.Blocks, s.Accepted, s.Spared, s.Seconds, s.Rate)
}
