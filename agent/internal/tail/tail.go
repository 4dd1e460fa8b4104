// Package tail follows the inputs that carry an MTA's log (files, globs of files, the systemd journal, a syslog socket,
// standard input) and hands whole lines, in batches, to one consumer.
//
// It knows nothing of what the lines say, except for the notices by which rsyslog and journald admit that they threw
// messages away. It stores nothing: every Batch brings a Mark, an opaque checkpoint that means exactly "everything up
// to and including the last line of this batch". The consumer commits the Mark in the transaction that holds what
// the lines led to, and gives the last committed one to Run after a restart. A line whose Mark was not committed is
// read again; a line whose Mark was committed is not.
//
// A Mark is JSON, at most 64 KiB:
//
//	{"v":1,"time":1795316820674122,"files":[{"dev":2049,"ino":131,"off":5120,"n":256,"head":"9f86d081884c7d65..."}]}
//	{"v":1,"time":1795316820674122,"cursor":"s=aa5d66...;i=3;b=eb9d18...;m=31170de6;t=660d4c55c8fb2;x=36e846a2247fd1da"}
//
// where time is microseconds since 1970, and head is the first half of the SHA-256 of the first n bytes of the file.
// There are several files in a Mark while a rotated file is still being finished.
//
//	in := tail.NewFile("/var/log/mail.log", tail.FileOptions{Log: log})
//	out := make(chan tail.Batch)
//	go func() { done <- in.Run(ctx, mark, out) }()
//	for b := range out { process(b.Lines); commit(b.Input, b.Mark) }
//
// What can be lost, and why, is told at File.
package tail

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Limits of a batch and of a line. A longer line is handed over cut to maxLine bytes.
const (
	maxBatchLines = 4096
	maxBatchBytes = 1 << 20
	maxLine       = 64 << 10
)

// States of an input, as Status.State tells them.
const (
	Stopped   = "stopped"   // Run is not running
	Waiting   = "waiting"   // there is nothing to read yet; Detail says what is missing
	Reading   = "reading"   // working through what was there before
	Following = "following" // at the end; a new line is handed over within milliseconds
	Failed    = "failed"    // cannot read; LastError says why; tried again until it works
	Ended     = "ended"     // standard input was closed: nothing more can come
)

// Batch is a run of whole lines of one input. Its memory belongs to the receiver.
type Batch struct {
	Input    string    // which input, e.g. "file:/var/log/mail.log": the key to keep Mark under
	Of       string    // the glob that the input is a file of, e.g. "file:/var/log/exim4/*log"; else empty
	Lines    [][]byte  // without newline; may be empty when only the Mark or CaughtUp is news
	Mark     []byte    // checkpoint after these lines; nil only when a file of a glob is gone: its Mark is of no more use
	CaughtUp bool      // the end of the input was reached with this batch
	Read     time.Time // when the batch was made
}

// Status is what an input says about itself. Counters start with the process.
type Status struct {
	Input      string
	State      string // one of the states above
	Detail     string // for people, e.g. "waiting for /var/log/mail.log to appear"
	Lag        int64  // bytes not yet handed over (files, and standard input if it is a pipe)
	Lines      uint64 // lines handed over
	Truncated  uint64 // lines longer than 64 KiB, and journal records too large to read
	Suppressed uint64 // messages that rsyslog or journald say they dropped; a notice without a number counts as one
	Untrusted  uint64 // journal records and datagrams ignored because a user who is not the MTA's wrote them
	Dropped    uint64 // datagrams that the kernel dropped because the receive buffer was full (UDP only)
	LastLine   time.Time
	LastError  string
}

// Input is anything that can be followed. One Run at a time; Status may be called from anywhere.
type Input interface {
	// Run hands over batches until ctx is done, and then returns nil with all that it started ended. It returns an
	// error only for an input that no waiting will mend. mark is the last committed one, nil for none.
	Run(ctx context.Context, mark []byte, out chan<- Batch) error
	Status() Status
	// ID is stable over restarts.
	ID() string
}

// hintError is an error with a sentence on what to do about it. Whoever prints errors finds it by the interface
// { HintText() string }.
type hintError struct {
	err  error
	hint string
}

func (e *hintError) Error() string    { return e.err.Error() }
func (e *hintError) Unwrap() error    { return e.err }
func (e *hintError) HintText() string { return e.hint }

func withHint(hint, format string, args ...any) error {
	return &hintError{err: fmt.Errorf(format, args...), hint: hint}
}

// describe gives an error and its hint as one text, for Status.
func describe(err error) string {
	if h, ok := err.(interface{ HintText() string }); ok && h.HintText() != "" {
		return err.Error() + " (" + h.HintText() + ")"
	}
	return err.Error()
}

// board holds an input's Status.
type board struct {
	mu sync.Mutex
	s  Status
}

func (b *board) update(fn func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fn(&b.s)
}

func (b *board) get() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.s
}

// gather collects the lines of the next batch.
type gather struct {
	buf  []byte
	ends []int // end of each line in buf
}

// room tells whether a line of n bytes still fits.
func (g *gather) room(n int) bool {
	return len(g.ends) < maxBatchLines && (len(g.ends) == 0 || len(g.buf)+n <= maxBatchBytes)
}

func (g *gather) add(line []byte) {
	g.buf = append(g.buf, line...)
	g.ends = append(g.ends, len(g.buf))
}

// take returns the lines and forgets them; the caller owns their memory.
func (g *gather) take() [][]byte {
	if len(g.ends) == 0 {
		return nil
	}
	lines := make([][]byte, len(g.ends))
	start := 0
	for i, end := range g.ends {
		lines[i] = g.buf[start:end:end]
		start = end
	}
	g.buf, g.ends = nil, g.ends[:0]
	return lines
}

// suppressWatch looks for the notices by which a syslog daemon says that it dropped messages, which happens just when
// there is an attack to be seen.
type suppressWatch struct {
	log    *slog.Logger
	input  string
	warned time.Time
	since  uint64 // dropped since the last warning
}

// line returns how many messages the line says were dropped, and warns, at most once a minute.
func (w *suppressWatch) line(line []byte, now time.Time) uint64 {
	n, setting := suppressed(line)
	if n == 0 {
		return 0
	}
	w.since += n
	if now.Sub(w.warned) >= time.Minute {
		w.log.Warn("the log is incomplete: messages were dropped by rate limiting", "input", w.input,
			"dropped", w.since, "hint", setting)
		w.warned, w.since = now, 0
	}
	return n
}

const (
	journaldSetting = "set RateLimitBurst=0 in /etc/systemd/journald.conf, or LogRateLimitBurst=0 in the MTA's unit"
	rsyslogSetting  = "set SysSock.RateLimit.Interval=\"0\" for imuxsock ($SystemLogRateLimitInterval 0 in old syntax; " +
		"RateLimit.Interval for imjournal) in /etc/rsyslog.conf"
)

// suppressed tells how many messages the line says were dropped, and the setting to change; 0 for any other line. Lines
// seen:
//
//	systemd-journald[321]: Suppressed 1432 messages from postfix@-.service
//	rsyslogd: imuxsock[pid 4711]: begin to drop messages due to rate-limiting
//	rsyslogd-2177: imuxsock lost 60 messages from pid 12 due to rate-limiting
//	rsyslogd: imjournal: 1432 messages lost due to rate-limiting (20000 allowed within 600 seconds)
//
// Only the tag decides whether a line is looked at, so that other lines cost next to nothing. A local user can forge
// such a line in a file; all he gets is a warning.
func suppressed(line []byte) (uint64, string) {
	rest := afterHost(line)
	switch {
	case bytes.HasPrefix(rest, []byte("rsyslogd")):
		if !bytes.Contains(rest, []byte("rate-limiting")) {
			return 0, ""
		}
		return max(1, numberBefore(rest, " messages")), rsyslogSetting
	case bytes.HasPrefix(rest, []byte("systemd-journal")):
		_, msg, ok := bytes.Cut(rest, []byte(": Suppressed "))
		if !ok {
			return 0, ""
		}
		return max(1, numberBefore(msg, " messages")), journaldSetting
	}
	return 0, ""
}

// afterHost returns what follows the time and the host of a syslog line (ISO 8601 or RFC 3164), nil if it cannot tell.
func afterHost(line []byte) []byte {
	if len(line) < 20 {
		return nil
	}
	if c := line[0]; c >= '0' && c <= '9' {
		i := bytes.IndexByte(line[:min(len(line), 40)], ' ')
		if i < 0 {
			return nil
		}
		line = line[i+1:]
	} else if c >= 'A' && c <= 'Z' && line[3] == ' ' && line[15] == ' ' {
		line = line[16:]
	} else {
		return nil
	}
	i := bytes.IndexByte(line[:min(len(line), 256)], ' ')
	if i < 0 {
		return nil
	}
	return line[i+1:]
}

// numberBefore returns the decimal number that stands right before word, at most 1e9; 0 if there is none.
func numberBefore(b []byte, word string) uint64 {
	i := bytes.Index(b, []byte(word))
	if i < 0 {
		return 0
	}
	start := i
	for start > 0 && b[start-1] >= '0' && b[start-1] <= '9' {
		start--
	}
	var n uint64
	for _, c := range b[start:i] {
		if n = n*10 + uint64(c-'0'); n > 1e9 {
			return 1e9
		}
	}
	return n
}
