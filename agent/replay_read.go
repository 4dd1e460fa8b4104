package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// This file reads the logs of a replay, in the order of time.

// lookAhead is how many bytes at the start of a log are searched for a stamp.
const lookAhead = maxReplayLine

// replayLog is one log being read.
type replayLog struct {
	name   string
	opened io.Closer
	zip    *gzip.Reader
	in     *bufio.Reader
	lines  *lines    // of in, since the first was asked for
	ref    time.Time // gives stamps without a year theirs
	first  time.Time // stamp of its first line that has one; zero if there is none near the start
	number int       // of the last line

	// The line to come, where several logs are read in turns.
	line []byte
	held bool      // there is one
	at   time.Time // its stamp, or that of a line before it
	err  error     // after it there is nothing more, io.EOF, or what went wrong
}

// read replays the logs. Several are read in the order of their stamps, whatever the order of their names: what was rotated
// away first, and those that cover the same time (Postfix's and Dovecot's, main and reject log) line by line in turns.
func (r *replay) read() error {
	var logs []*replayLog
	defer func() {
		for _, l := range logs {
			l.close()
		}
	}()
	bar := r.progress()
	defer bar.done()
	for _, name := range r.opts.files {
		l, err := r.open(name, bar)
		if err != nil {
			return err
		}
		logs = append(logs, l)
	}
	if len(logs) > 1 {
		given := slices.Clone(logs)
		slices.SortStableFunc(logs, func(a, b *replayLog) int {
			switch { // those without a stamp have nothing to tell; they come last
			case a.first.IsZero() || b.first.IsZero():
				return boolInt(a.first.IsZero()) - boolInt(b.first.IsZero())
			}
			return a.first.Compare(b.first)
		})
		if !slices.Equal(given, logs) && bar.bar == nil {
			names := make([]string, len(logs))
			for i, l := range logs {
				names[i] = l.name
			}
			fmt.Fprintf(r.err, "note: read in the order of time: %s\n", strings.Join(names, " "))
		}
	}
	var open []*replayLog
	for rest := logs; len(open) > 0 || len(rest) > 0; {
		if len(open) == 0 {
			open, rest = append(open, rest[0]), rest[1:]
		}
		if len(open) == 1 {
			next := time.Time{}
			if len(rest) > 0 {
				next = rest[0].first
			}
			ended, err := r.alone(open[0], next)
			if err != nil {
				return err
			}
			if ended {
				open[0].close()
				open = open[:0]
			} else {
				open, rest = append(open, rest[0]), rest[1:]
			}
			continue
		}
		// Of several, the one whose next line is the oldest.
		var l *replayLog
		for _, o := range open {
			if r.hold(o); !o.held {
				l = o // ended
				break
			}
			if l == nil || o.at.Before(l.at) {
				l = o
			}
		}
		if !l.held {
			if err := l.endOf(); err != nil {
				return err
			}
			l.close()
			open = slices.DeleteFunc(open, func(o *replayLog) bool { return o == l })
			continue
		}
		if len(rest) > 0 && !rest[0].first.IsZero() && !l.at.Before(rest[0].first) {
			open, rest = append(open, rest[0]), rest[1:]
			continue
		}
		l.held = false
		r.take(l, l.line)
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// hold reads the next line of a log, if there is one, and its stamp. A line without one goes with the line before it, and
// one that is older than that too.
func (r *replay) hold(l *replayLog) {
	if l.held || l.err != nil {
		return
	}
	l.line, l.err = l.next()
	if l.held = len(l.line) > 0 || l.err == nil; l.held {
		if at, ok := r.parser.Stamp(l.line, l.ref); ok && at.After(l.at) {
			l.at = at
		}
	}
}

// alone replays a log to its end, or to where the log begins whose first stamp next is.
func (r *replay) alone(l *replayLog, next time.Time) (ended bool, err error) {
	for !next.IsZero() {
		if r.hold(l); !l.held {
			return true, l.endOf()
		}
		if !l.at.Before(next) {
			return false, nil
		}
		l.held = false
		r.take(l, l.line)
	}
	if l.held { // of when there were more
		l.held = false
		r.take(l, l.line)
	}
	for l.err == nil {
		var line []byte
		if line, l.err = l.next(); len(line) > 0 || l.err == nil {
			r.take(l, line)
		}
	}
	return true, l.endOf()
}

func (l *replayLog) endOf() error {
	if errors.Is(l.err, io.EOF) {
		return nil
	}
	return l.fault(l.err)
}

func (l *replayLog) fault(err error) error {
	return fmt.Errorf("replay %s, line %d: %w", l.name, l.number, err)
}

// take replays one line.
func (r *replay) take(l *replayLog, line []byte) {
	l.number++
	r.lines++
	r.name, r.number = l.name, l.number
	if r.log != l {
		r.log = l
		r.parser.Switch(l.name, r.opts.mta)
	}
	e := r.next()
	if !r.parser.Parse(line, l.ref, e) || r.opts.events && e.Kind == maillog.Recipient {
		return
	}
	if e.Kind == maillog.DNSBLReject && r.opts.trust && listError(line) {
		e.Kind = maillog.Other
	}
	r.found++
	r.hand()
}

// open opens a log, "-" for standard input; .gz is seen by its first bytes.
func (r *replay) open(name string, bar *progress) (*replayLog, error) {
	l := &replayLog{name: name, ref: time.Date(unknownYear, 12, 30, 23, 59, 59, 0, time.Local)}
	f, dated := r.in, false
	if name != "-" {
		o, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		f, l.opened = o, o
		dated = true
	}
	if s, ok := f.(*os.File); ok {
		if fi, err := s.Stat(); err == nil && fi.Mode().IsRegular() {
			l.ref, dated = fi.ModTime(), true
			bar.add(fi.Size())
		} else if err == nil && fi.IsDir() {
			l.close()
			return nil, fmt.Errorf("replay %s: it is a directory", name)
		}
	}
	if y := r.opts.year; y != 0 {
		// The day before the last one: the parser lets a stamp be up to a day ahead of its reference.
		l.ref, dated = time.Date(y, 12, 30, 23, 59, 59, 0, time.Local), true
	}
	if !dated {
		fmt.Fprintf(r.err, "note: lines without a year are taken to be of %d; say --year\n", unknownYear)
	}
	l.in = bufio.NewReaderSize(bar.reader(f), lookAhead)
	magic, _ := l.in.Peek(6)
	if kind, tool := packed(magic); kind != "" {
		l.close()
		return nil, &hinted{fmt.Errorf("replay %s: it is packed with %s, which cannot be read here", name, kind), fmt.Sprintf("%s %s | mxshield-agent replay -", tool, name)}
	}
	if bytes.HasPrefix(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(l.in)
		if err != nil {
			l.close()
			return nil, fmt.Errorf("replay %s: %w", name, err)
		}
		l.zip, l.in = z, bufio.NewReaderSize(z, lookAhead)
	}
	if len(r.opts.files) > 1 && name != "-" {
		head, _ := l.in.Peek(lookAhead) // an error comes again
		for line := range bytes.Lines(head) {
			if at, ok := r.parser.Stamp(line, l.ref); ok {
				l.first = at
				break
			}
		}
	}
	return l, nil
}

// hinted is an error with a sentence on what to do about it.
type hinted struct {
	error
	hint string
}

func (e *hinted) HintText() string { return e.hint }
func (e *hinted) Unwrap() error    { return e.error }

// packed tells by a file's first bytes what packed it, if it is no gzip, and what unpacks it to standard output.
func packed(magic []byte) (kind, tool string) {
	for _, p := range []struct{ magic, kind, tool string }{
		{"\xfd7zXZ\x00", "xz", "xz -dc"}, {"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"}, {"BZh", "bzip2", "bzip2 -dc"},
		{"\x04\x22\x4d\x18", "lz4", "lz4 -dc"}, {"PK\x03\x04", "zip", "unzip -p"}, {"\x1f\x9d", "compress", "gzip -dc"},
	} {
		if strings.HasPrefix(string(magic), p.magic) {
			return p.kind, p.tool
		}
	}
	return "", ""
}

func (l *replayLog) close() {
	if l.lines != nil {
		l.lines.close()
	}
	if l.opened != nil {
		l.opened.Close()
		if l.lines != nil {
			<-l.lines.done
		}
	}
	if l.zip != nil {
		l.zip.Close()
	}
	l.zip, l.opened, l.in, l.lines = nil, nil, nil, nil
}

func (l *replayLog) next() ([]byte, error) {
	if l.lines == nil {
		l.lines = newLines(l.in)
	}
	return l.lines.next()
}

// listErrors are what lists, and the servers of theirs, answer to everybody who asks in a way that they do not serve.
var listErrors = []string{"open resolver", "127.255.255.", "returnc/pub", "query limit", "query volume", "too many queries", "excessive number of queries", "queries are blocked", "access denied due to", "error: "}

// listError tells whether the text of a list's rejection is one of its errors. Where the client's text begins it ends.
func listError(line []byte) bool {
	if i := bytes.Index(line, []byte(" from=<")); i >= 0 {
		line = line[:i]
	}
	text := bytes.ToLower(line)
	return slices.ContainsFunc(listErrors, func(s string) bool { return bytes.Contains(text, []byte(s)) })
}

// progress shows how much was read, on a terminal; else it does nothing.
type progress struct{ bar *progressbar.ProgressBar }

func (r *replay) progress() *progress {
	f, ok := r.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) || r.opts.events {
		return &progress{}
	}
	return &progress{progressbar.NewOptions64(0, progressbar.OptionSetWriter(f), progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription("replay"))}
}

func (p *progress) add(size int64) {
	if p.bar != nil {
		p.bar.ChangeMax64(p.bar.GetMax64() + size)
	}
}

func (p *progress) reader(f io.Reader) io.Reader {
	if p.bar == nil {
		return f
	}
	return &counted{f, p.bar}
}

func (p *progress) done() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// counted tells the bar what is read. At the end of what a file had when it was opened the bar stays: a live log grows.
type counted struct {
	f   io.Reader
	bar *progressbar.ProgressBar
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.f.Read(b)
	if room := c.bar.GetMax64() - 1 - c.bar.State().CurrentNum; room > 0 {
		_ = c.bar.Add64(min(int64(n), room))
	}
	return n, err
}
