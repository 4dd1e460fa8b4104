package main

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/tail"
)

// This file makes the inputs of the config and hands their lines to the one parser.

// openInputs opens what the config names, or else what is found. marks are the checkpoints of the state file.
func (d *daemon) openInputs(ctx context.Context, marks map[string][]byte) {
	stamps := maillog.New(maillog.Options{})
	pace := tail.NewPace(func(line []byte) (time.Time, bool) { return stamps.Stamp(line, time.Now()) })
	fo, jo := tail.FileOptions{Pace: pace, Log: d.log}, tail.JournalOptions{Log: d.log}
	for _, l := range d.cfg.Logs {
		in := openInput(l, fo, jo, marks)
		d.inputs = append(d.inputs, in)
		d.mtas[in.ID()] = l.MTA
	}
	if len(d.inputs) > 0 {
		return
	}
	found, err := tail.Discover(ctx, tail.DiscoverOptions{})
	if err != nil {
		d.warn("input", "looking for the MTA's log", err)
	}
	for i, w := range found.Warnings {
		d.warn(fmt.Sprintf("input %d", i), w, nil)
	}
	in := found.Open(fo, jo)
	d.log.Info("found the MTA's log", "input", in.ID(), "why", found.Why)
	d.inputs = append(d.inputs, in)
}

func openInput(l config.Log, fo tail.FileOptions, jo tail.JournalOptions, marks map[string][]byte) tail.Input {
	switch {
	case l.Journal != "":
		return tail.NewJournal([]string{l.Journal}, jo)
	case l.Syslog != "":
		return tail.NewSyslog(l.Network, l.Syslog, tail.SyslogOptions{Users: l.Users, Group: l.Group, Log: fo.Log})
	case l.Stdin:
		return tail.NewStdin(tail.StdinOptions{Log: fo.Log})
	case tail.IsGlob(l.File):
		return tail.NewGlob(l.File, tail.GlobOptions{File: fo, Marks: marks, Log: fo.Log})
	}
	return tail.NewFile(l.File, fo)
}

// newParser makes the parser of all inputs, with what it knew when the marks were committed. There is one, because what
// several logs of a host say of one login or refusal counts once.
func (d *daemon) newParser() {
	several := len(d.inputs) > 1
	for _, in := range d.inputs {
		_, glob := in.(*tail.Glob)
		several = several || glob
	}
	d.parser = maillog.New(maillog.Options{Seed: d.seed, Several: several, Traps: d.cfg.Traps, Recipients: true})
	const older = "pending:" // a version that had a parser for each input; the first of them had nearly always all
	names := []string{"parser"}
	for _, in := range d.inputs {
		names = append(names, older+in.ID())
	}
	for _, name := range names {
		s, ok := d.pending[name]
		if !ok {
			continue
		}
		if err := d.parser.Restore(s); err != nil {
			d.log.Warn("restore what the parser knew", "error", err)
		}
		break
	}
	for name := range d.pending {
		if strings.HasPrefix(name, older) {
			d.setExtraLocked(name, nil)
		}
	}
	d.pending = nil
}

func (d *daemon) setExtraLocked(name string, v []byte) {
	if d.batch.Extra == nil {
		d.batch.Extra = map[string][]byte{}
	}
	d.batch.Extra[name] = v
}

// markLocked notes how far an input has been read: at is the time of the newest event of the batch, if it had one.
func (d *daemon) markLocked(b *tail.Batch, at time.Time) {
	if d.batch.Marks == nil {
		d.batch.Marks = map[string][]byte{}
	}
	d.batch.Marks[b.Input] = b.Mark
	switch {
	case b.Mark == nil: // the file is gone
		delete(d.reached, b.Input)
	case !at.IsZero():
		d.reached[b.Input] = at
	}
	if b.CaughtUp {
		d.caughtUp[b.Input] = true
	}
}

// switchParserLocked makes the parser ready for the lines of an input.
func (d *daemon) switchParserLocked(b *tail.Batch) *maillog.Parser {
	d.parser.Switch(b.Input, d.mtas[cmp.Or(b.Of, b.Input)])
	return d.parser
}

// inputStatus is what status says of the inputs; a glob stands there with its files. warnings gets what a person
// should know.
func (d *daemon) inputStatus(now time.Time, warnings map[string]string) (list []control.Input) {
	add := func(t tail.Status, of string) {
		in := control.Input{
			ID: t.Input, Of: of, State: t.State, Detail: t.Detail, Lag: t.Lag, Lines: t.Lines, Truncated: t.Truncated,
			Suppressed: t.Suppressed, Untrusted: t.Untrusted, Dropped: t.Dropped, LastLine: t.LastLine, LastError: t.LastError,
		}
		d.mu.Lock()
		reached := d.reached[t.Input]
		d.mu.Unlock()
		if behind := now.Sub(reached); (t.State == tail.Reading || t.Lag > 0) && !reached.IsZero() && behind > 0 {
			in.LagSeconds = behind.Round(time.Millisecond).Seconds()
		}
		if t.Suppressed > 0 {
			warnings["suppressed "+t.Input] = fmt.Sprintf("%s: the log says that %d messages were suppressed: raise RateLimitBurst in journald.conf, or the rate limit of imuxsock in rsyslog.conf", t.Input, t.Suppressed)
		}
		if t.Dropped > 0 {
			warnings["dropped "+t.Input] = fmt.Sprintf("%s: the kernel dropped %d datagrams, which came faster than they were read: raise net.core.rmem_max, or use a unix socket, whose senders wait", t.Input, t.Dropped)
		}
		if t.State == tail.Ended {
			warnings["ended "+t.Input] = t.Detail + ": start the agent again with the pipe that feeds it"
		}
		list = append(list, in)
	}
	for _, in := range d.inputs {
		t := in.Status()
		g, ok := in.(*tail.Glob)
		if !ok {
			add(t, "")
			continue
		}
		// The counts and warnings are the files'.
		list = append(list, control.Input{ID: t.Input, State: t.State, Detail: t.Detail, Lag: t.Lag, Lines: t.Lines, LastLine: t.LastLine, LastError: t.LastError})
		for _, p := range g.Parts() {
			add(p, t.Input)
		}
	}
	return list
}
