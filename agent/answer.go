package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/agent/internal/verdict"
	"github.com/mxshield/mxshield/bpf"
)

// This file is what the daemon answers on the control socket (control.Agent).

// Status answers status.
func (d *daemon) Status() control.Status {
	s := d.figures()
	now := time.Now()
	blocks, _ := d.table.List(block.Query{Limit: 10_000}, now) // a walk over the table: too much for every scrape
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range blocks {
		if a, ok := d.scorer.Lookup(b.Prefix.Addr(), now); ok && b.Automatic() && a.Evidence.Accepted > 0 {
			s.Accepted++
		}
	}
	return s
}

// figures collects what the agent does now, as far as it is known without a walk over a table.
func (d *daemon) figures() control.Status {
	now := time.Now()
	s := control.Status{
		Version: control.Version(), Node: d.node, PID: os.Getpid(), Started: d.started.UTC(), Now: now.UTC(), DryRun: d.cfg.DryRun,
		Interfaces: []control.Interface{}, Packets: map[string]uint64{}, Events: map[string]uint64{},
		EventsByMTA: map[string]map[string]uint64{}, Made: map[string]uint64{}, Metrics: d.metricsAt(),
		Ports:  control.Ports{MX: d.cfg.MXPorts, Submission: d.cfg.SubmissionPorts},
		Blocks: d.table.Count(now), Senders: d.senderStatus(),
		Never:   slices.DeleteFunc(d.table.Never(), byName),
		Publish: d.publishStatus(),
		State:   control.State{Path: d.store.Path(), Bytes: d.store.Size()}, Limits: limits(d.cfg), Hold: d.holdStatus(),
	}
	warnings := map[string]string{}
	if d.shield != nil {
		on, err := d.shield.Attachments()
		if err != nil {
			warnings["attachments"] = "ask the kernel what is attached: " + err.Error()
		}
		for _, a := range on {
			s.Interfaces = append(s.Interfaces, control.Interface{Name: a.Interface, Mode: string(a.Mode)})
		}
		counters, err := d.shield.Counters()
		if err != nil {
			warnings["counters"] = "read the counters: " + err.Error()
		}
		for r, n := range counters {
			s.Packets[bpf.Reason(r).String()] = n
		}
		fills, err := d.shield.Fills()
		if err != nil {
			warnings["fills"] = "ask how full the kernel's tables are: " + err.Error()
		}
		for _, f := range fills {
			s.Kernel = append(s.Kernel, control.KernelTable(f))
		}
		if s.SamplesLost, err = d.shield.SamplesLost(); err != nil {
			warnings["samples lost"] = "ask for the samples lost: " + err.Error()
		}
		live := d.ender.Status()
		s.Ended = live.Ended
		if live.Problem != nil {
			warnings["sessions"] = "live sessions of blocked sources are not ended: " + live.Problem.Error()
			if h := control.Hint(live.Problem); h != "" {
				warnings["sessions"] += " (" + h + ")"
			}
		}
	}
	if s.Blocks.Unenforced > 0 {
		warnings["unenforced"] = fmt.Sprintf("%d prefixes are not in the kernel: %s", s.Blocks.Unenforced, s.Blocks.WhyUnenforced)
	}
	s.Inputs = d.inputStatus(now, warnings)
	d.clusterStatus(&s, warnings)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range d.scorer.Notices(now) {
		warnings["verdict "+n.Key] = n.Text
	}
	for m, kinds := range d.events {
		by := map[string]uint64{}
		for k, n := range kinds {
			if n > 0 {
				by[maillog.Kind(k).String()] = n
				s.Events[maillog.Kind(k).String()] += n
			}
		}
		if len(by) > 0 {
			s.EventsByMTA[maillog.MTA(m).String()] = by
		}
	}
	for c, n := range d.made {
		if n > 0 {
			s.Made[block.Cause(c).String()] = n
		}
	}
	s.Sources = d.scorer.Len()
	if d.off != nil {
		off := d.off.Off
		s.Off = &off
	}
	if d.storeErr != nil {
		s.State.Error = d.storeErr.Error()
	}
	d.dnsStatus(&s, warnings)
	d.ownStatus(&s, warnings)
	if s.Hold != nil && s.Hold.Why != "" {
		warnings["hold off"] = "new sources are accepted unasked: " + s.Hold.Why
	}
	maps.Copy(warnings, d.warnings)
	for _, k := range slices.Sorted(maps.Keys(warnings)) {
		s.Warnings = append(s.Warnings, warnings[k])
	}
	return s
}

// byName says whether a rule is one of an allow by name, of which a few names have thousands.
func byName(n block.Never) bool {
	return n.Sender && (strings.HasPrefix(n.Rule, "spf:") || strings.HasPrefix(n.Rule, "domain:"))
}

// List answers list.
func (d *daemon) List(q block.Query) control.List {
	rows, total := d.table.List(q, time.Now())
	l := control.List{Total: total, Entries: make([]control.Listed, len(rows))}
	for i := range rows {
		l.Entries[i] = control.Listed{Listed: rows[i], Drops: d.drops(rows[i].Prefix)}
	}
	return l
}

func (d *daemon) drops(p netip.Prefix) uint64 {
	if d.shield == nil {
		return 0
	}
	r, _, err := d.shield.Lookup(p)
	if err != nil {
		return 0 // a figure for the eye; what the kernel has is checked elsewhere
	}
	return r.Drops
}

// Why explains an address or prefix.
func (d *daemon) Why(p netip.Prefix) (control.Why, error) {
	now := time.Now()
	w := control.Why{Prefix: p, Now: now.UTC(), Decision: d.table.Decide(p, now), Entries: d.table.About(p)}
	w.Decision.Until = w.Decision.Until.UTC()
	if by := w.Decision.By; by != nil && by.Kind == block.Block {
		w.Drops = d.drops(by.Prefix)
		if by.Automatic() && by.Origin == d.node && !by.Local {
			w.Evidence = d.storedEvidence(by.Prefix)
		}
	}
	history, err := d.history(p, 20)
	if err != nil {
		w.Warnings = append(w.Warnings, "the history cannot be read: "+err.Error())
	}
	for _, h := range history {
		w.History = append(w.History, control.Audit(h))
	}
	d.mu.Lock()
	source := d.prefixOf(p.Addr())
	if a, ok := d.scorer.Lookup(p.Addr(), now); ok {
		w.Known = evidenceOf(source, &a.Evidence, d.samples.Get(source))
		if e := w.Evidence; e != nil && e.Last.Equal(w.Known.Last) && maps.Equal(e.Counts, w.Known.Counts) {
			w.Known = nil // nothing has come since the block: saying it twice helps nobody
		} else if w.Known.Score == 0 && w.Known.Accepted == 0 && len(w.Known.Counts) == 0 {
			w.Known = nil // it was unblocked
		}
		if a.Wide.IsValid() && !w.Decision.Drop {
			w.Warnings = append(w.Warnings, "the scorer asked for a block of "+a.Wide.String()+", in which it lies")
		}
		if a.Spared != "" {
			w.Warnings = append(w.Warnings, "no automatic block is made: "+a.Spared)
		}
		if !a.Held.IsZero() && !w.Decision.Drop {
			w.Warnings = append(w.Warnings, "its mail was accepted before, so it is blocked only if it goes on like this after "+dayTime(a.Held))
		}
	}
	off := d.off
	d.mu.Unlock()
	w.Before = d.whyHeld(p)
	w.Words = whyWords(&w, d.node, now)
	w.Lists = d.whyLists(p.Addr())
	if !p.IsSingleIP() {
		inside, n := d.table.Inside(p, 5, now)
		w.Entries = append(w.Entries, inside...)
		if n > 0 {
			stand := fmt.Sprintf("%d blocks stand", n)
			if n == 1 {
				stand = "1 block stands"
			}
			w.Words = fmt.Sprintf("%s inside %s (mxshieldctl list %s); the rest of it: %s", stand, p, p, w.Words)
		}
	}
	if w.Decision.Unenforced != "" {
		w.Warnings = append(w.Warnings, "the kernel does not have this yet: "+w.Decision.Unenforced)
	}
	switch {
	case off != nil && w.Decision.Drop:
		w.Warnings = append(w.Warnings, "the shield is off: its packets pass until `mxshieldctl on`")
	case d.cfg.DryRun && w.Decision.Drop:
		w.Warnings = append(w.Warnings, "dry run: its packets pass")
	}
	if w.Decision.Drop {
		everywhere := ""
		if d.replica != nil {
			everywhere = " on all nodes"
		}
		w.Unblock = "mxshieldctl unblock " + short(p) + ": its packets pass at once" + everywhere + ", its score starts at 0, and no automatic block is made for an hour (--hold)"
	}
	return w, nil
}

// unwritten are the batches that are not on disk yet, the newest first.
func (d *daemon) unwrittenLocked() []*store.Batch {
	if d.flight != nil {
		return []*store.Batch{&d.batch, d.flight}
	}
	return []*store.Batch{&d.batch}
}

// history is what was done about p, newest first, whether it is on disk yet or not.
func (d *daemon) history(p netip.Prefix, limit int) ([]store.Audit, error) {
	var list []store.Audit
	d.mu.Lock()
	for _, b := range d.unwrittenLocked() {
		for _, a := range slices.Backward(b.Audit) {
			if a.Prefix.IsValid() && a.Prefix.Overlaps(p) && len(list) < limit {
				list = append(list, a)
			}
		}
	}
	d.mu.Unlock()
	if len(list) == limit {
		return list, nil
	}
	old, err := d.store.History(p, limit-len(list))
	fresh := list
	for _, a := range old { // a commit may have ended in between: then it is in both
		if !slices.ContainsFunc(fresh, func(b store.Audit) bool {
			return a.Time.Equal(b.Time) && a.Who == b.Who && a.Action == b.Action && a.Prefix == b.Prefix
		}) {
			list = append(list, a)
		}
	}
	return list, err
}

func (d *daemon) storedEvidence(p netip.Prefix) *control.Evidence {
	var b []byte
	d.mu.Lock()
	for _, u := range d.unwrittenLocked() {
		if v := u.Evidence[p]; b == nil && v != nil {
			b = v
		}
	}
	d.mu.Unlock()
	if b == nil {
		var err error
		if b, err = d.store.Evidence(p); err != nil || b == nil {
			return nil
		}
	}
	e := new(control.Evidence)
	if json.Unmarshal(b, e) != nil {
		return nil // an edited file: the entry itself still explains the block
	}
	return e
}

func evidenceOf(p netip.Prefix, e *verdict.Evidence, samples []string) *control.Evidence {
	counts := map[string]uint32{}
	for k, n := range e.Counts {
		if n > 0 {
			counts[maillog.Kind(k).String()] = n
		}
	}
	return &control.Evidence{
		Prefix: p, Words: e.Words(), Score: e.Score, Threshold: e.Threshold, Counts: counts, Accepted: e.Accepted,
		First: e.First.UTC(), Last: e.Last.UTC(), Samples: samples,
	}
}

func short(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// dayTime says when something was or will be, for people who compare it with their logs.
func dayTime(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05 MST") }

// brief says a duration without zeros behind it, and to the minute if it is hours.
func brief(d time.Duration) string {
	if d >= time.Hour {
		d = d.Round(time.Minute)
	}
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// whyWords says the decision as a sentence. Of what was decided on another node than this one it names that.
func whyWords(w *control.Why, node string, now time.Time) string {
	d, who := &w.Decision, short(w.Prefix)
	on := func(e *block.Entry) string {
		if e.Origin == node {
			return ""
		}
		return fmt.Sprintf(" on node %.64s", e.Origin)
	}
	known := "nothing is known against it"
	if w.Known != nil {
		known = fmt.Sprintf("its score is %.0f of %.0f (%s)", w.Known.Score, w.Known.Threshold, w.Known.Words)
	}
	const notUs = "; if its mail is refused, it is not mxshield: look into the MTA's log"
	switch d.Rule {
	case block.RuleBlock, block.RuleManualBlock:
		end := "without end"
		if !d.Until.IsZero() {
			end = fmt.Sprintf("until %s (%s left)", dayTime(d.Until), brief(d.Until.Sub(now)))
		}
		why := d.By.Cause.String()
		if w.Evidence != nil {
			why += ": " + w.Evidence.Words
		} else if d.By.Cause == block.Manual {
			why = "by hand"
		} else if d.By.Local {
			why += ", listed when it was asked about before it was accepted; this block is of this host alone, and ends with the listing"
		}
		if why += on(d.By); d.By.Origin != node && d.By.Automatic() {
			why += ", where `mxshieldctl why` has the evidence"
		}
		ports := "the mx ports"
		if d.Scope == block.ScopeAll {
			ports = "the mx and submission ports"
		}
		if d.Never != nil && d.Never.Ports != 0 {
			ports += ", but not on the rest because of " + d.Never.Rule + ","
		}
		in := ""
		if d.By.Prefix != w.Prefix {
			in = " as part of " + d.By.Prefix.String()
		}
		return fmt.Sprintf("%s is BLOCKED%s on %s since %s, %s; %s", who, in, ports, dayTime(d.By.Since), end, why)
	case block.RuleNever, block.RuleConfig:
		return fmt.Sprintf("%s is not blocked and never will be: %s (%s)%s", who, d.Never.Rule, d.Never.Prefix, notUs)
	case block.RuleSender:
		would := ""
		if w.Known != nil && w.Known.Score >= w.Known.Threshold {
			would = " would have been blocked (" + w.Known.Words + "), but"
		} else if d.By != nil {
			would = " would be blocked (" + d.By.Cause.String() + "), but"
		}
		return fmt.Sprintf("%s%s is not blocked: allowed by %s (%s)%s", who, would, d.Never.Rule, d.Never.Prefix, notUs)
	case block.RuleManualAllow:
		return fmt.Sprintf("%s is not blocked: %s is allowed%s since %s%s", who, d.By.Prefix, on(d.By), dayTime(d.By.Since), notUs)
	case block.RuleCleared:
		hold := "the hold against automatic blocks is over"
		if d.Clear.Until.After(now) {
			hold = "held against automatic blocks until " + dayTime(d.Clear.Until)
		}
		return fmt.Sprintf("%s is not blocked: it was unblocked%s at %s, %s; %s%s", who, on(d.Clear), dayTime(d.Clear.Since), hold, known, notUs)
	}
	return fmt.Sprintf("%s is not blocked: %s%s", who, known, notUs)
}

// ---- changes: in the table and the kernel, then on disk, then answered

func (d *daemon) audit(who, action string, p netip.Prefix, detail string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.batch.Audit = append(d.batch.Audit, store.Audit{Time: time.Now().UTC(), Who: who, Action: action, Prefix: p, Detail: detail})
	args := []any{"action", action, "who", who}
	if p.IsValid() {
		args = append(args, "prefix", p)
	}
	if detail != "" {
		args = append(args, "detail", detail)
	}
	d.log.Info("by hand", args...)
}

// written commits, tells the other nodes meanwhile, and says so if it could not be done: the change holds, but might not survive.
func (d *daemon) written() error {
	d.said()
	if err := d.commit(); err != nil {
		return &control.Error{
			Status: http.StatusInternalServerError, Text: "it is done, but could not be written to the state file: " + err.Error(),
			Hint: "it holds until the agent restarts; make room for " + d.cfg.State + " and it will be written",
		}
	}
	return nil
}

// Block answers block.
func (d *daemon) Block(who string, p netip.Prefix, dur time.Duration, forever bool, reason string) (block.Result, error) {
	now := time.Now()
	e := block.Entry{Prefix: p, Kind: block.Block, Cause: block.Manual, Scope: block.Manual.Scope(), Reason: reason}
	if dur == 0 {
		dur = d.cfg.Block.For
	}
	if !forever {
		e.Until = now.Add(dur)
	}
	r, err := d.table.Apply(e, now)
	if err != nil {
		return r, err
	}
	d.endSessions(p)
	d.mu.Lock()
	d.scorer.Refused(p) // what it made the table say is replaced: when this ends, the score counts again
	d.mu.Unlock()
	d.audit(who, "block", p, reason)
	return r, d.written()
}

// Unblock answers unblock.
func (d *daemon) Unblock(who string, list []netip.Prefix, hold time.Duration, reason string) ([]block.Result, error) {
	now := time.Now()
	results := []block.Result{}
	var errs []error
	for _, p := range list {
		r, err := d.table.Apply(block.Entry{Prefix: p, Kind: block.Clear, Until: now.Add(hold), Reason: reason}, now)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d.mu.Lock()
		d.scorer.Reset(p)
		d.mu.Unlock()
		d.freed(p)
		d.audit(who, "unblock", p, reason)
		results = append(results, r)
	}
	return results, errors.Join(append(errs, d.written())...)
}

// Allow answers allow add.
func (d *daemon) Allow(who string, p netip.Prefix, dur time.Duration, forever bool, reason string) (block.Result, error) {
	now := time.Now()
	e := block.Entry{Prefix: p, Kind: block.Allow, Cause: block.Manual, Reason: reason}
	if !forever {
		e.Until = now.Add(dur)
	}
	r, err := d.table.Apply(e, now)
	if err != nil {
		return r, err
	}
	d.audit(who, "allow", p, reason)
	return r, d.written()
}

// Disallow answers allow remove.
func (d *daemon) Disallow(who string, p netip.Prefix) (block.Result, error) {
	now := time.Now()
	for _, n := range d.table.Never() {
		if n.Config && n.Prefix == p {
			return block.Result{}, &control.Error{Status: http.StatusConflict, Text: fmt.Sprintf("%s is allowed by the config: %s", p, n.Rule), Hint: "take the line out and reload the agent"}
		}
	}
	found := false
	standing, _ := d.table.List(block.Query{Kinds: []block.Kind{block.Allow}, Within: p}, now)
	for _, e := range standing {
		found = found || e.Prefix == p
	}
	if !found {
		return block.Result{}, &control.Error{Status: http.StatusNotFound, Text: fmt.Sprintf("%s is not allowed, so nothing was removed", p), Hint: "allow list shows what is; the prefix must be the same"}
	}
	r, err := d.table.Apply(block.Entry{Prefix: p, Kind: block.Disallow}, now)
	if err != nil {
		return r, err
	}
	d.audit(who, "disallow", p, "")
	return r, d.written()
}

// Off detaches the shield and leaves the marker.
func (d *daemon) Off(who, reason string) (string, error) {
	m := &control.Marker{Off: control.Off{Since: time.Now(), By: who, Reason: reason}}
	if len(reason) > 500 {
		return "", &control.Error{Status: http.StatusBadRequest, Text: "the reason is longer than 500 bytes"}
	}
	d.attachMu.Lock()
	defer d.attachMu.Unlock()
	d.mu.Lock()
	if d.off != nil { // keep what the first off detached
		m.Interfaces = d.off.Interfaces
	}
	d.mu.Unlock()
	var names []string
	if d.shield != nil {
		on, err := d.shield.Attachments()
		if err != nil {
			return "", err
		}
		if len(on) > 0 {
			m.Interfaces = nil
		}
		for _, a := range on {
			m.Interfaces = append(m.Interfaces, control.Interface{Name: a.Interface, Mode: string(a.Mode)})
			names = append(names, a.Interface)
		}
	}
	// The marker first: an agent that starts in this instant must find it. Detach even if it cannot be written.
	merr := control.WriteMarker(d.stateDir(), m)
	d.mu.Lock()
	d.off = m
	d.mu.Unlock()
	if d.shield != nil {
		if err := d.shield.Detach(); err != nil {
			return "", errors.Join(err, merr)
		}
	}
	if merr != nil {
		return "", fmt.Errorf("detached, but a restarted agent would attach again: %w", merr)
	}
	d.audit(who, "off", netip.Prefix{}, reason)
	d.log.Warn("the shield is OFF: nothing is dropped until `mxshieldctl on`", "by", who, "reason", reason)
	on := "nothing was attached"
	if len(names) > 0 {
		on = "detached from " + strings.Join(names, ", ")
	}
	return "off: " + on + "; blocks are kept and go on being made; `mxshieldctl on` ends it", d.written()
}

// On ends off.
func (d *daemon) On(who string) (string, error) {
	d.attachMu.Lock()
	was := d.marker()
	err := control.RemoveMarker(d.stateDir())
	if err == nil {
		d.mu.Lock()
		d.off = nil
		d.mu.Unlock()
	}
	d.attachMu.Unlock()
	if err != nil {
		return "", err
	}
	if d.shield != nil {
		if err := d.resync(true); err != nil {
			d.warn("kernel", "not every block is in the kernel", err)
		}
	}
	if err := d.attach(); err != nil {
		return "", err
	}
	if was == nil {
		return "it was not off", nil
	}
	d.audit(who, "on", netip.Prefix{}, "")
	words := "on"
	if d.shield == nil {
		words = "the marker is gone; this is a dry run, so nothing is attached"
	} else if on, err := d.shield.Attachments(); err == nil {
		var names []string
		for _, a := range on {
			names = append(names, a.Interface+" ("+string(a.Mode)+")")
		}
		words = "on: attached to " + strings.Join(names, ", ")
	}
	return words, d.written()
}
