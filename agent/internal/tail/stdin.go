package tail

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// StdinOptions changes how standard input is read. Zero values mean the defaults.
type StdinOptions struct {
	File *os.File     // default os.Stdin
	Log  *slog.Logger // default: none
}

// Stdin reads lines from standard input: a pipe, a socket or a terminal. What was read from it cannot be read again, so
// lines that were not committed when the agent is killed are lost, and the mark is only a time. A file is refused: it
// would be read from its start at each restart, and its lines counted again.
type Stdin struct {
	opts  StdinOptions
	board board
}

// NewStdin returns the input. There is one standard input: two of these would share its lines.
func NewStdin(opts StdinOptions) *Stdin {
	if opts.File == nil {
		opts.File = os.Stdin
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Stdin{opts: opts}
	s.board.s = Status{Input: s.ID(), State: Stopped}
	return s
}

// ID is "stdin".
func (s *Stdin) ID() string { return "stdin" }

// Status is safe to call from any goroutine.
func (s *Stdin) Status() Status {
	st := s.board.get()
	if st.State == Following || st.State == Reading {
		if n, err := unix.IoctlGetInt(int(s.opts.File.Fd()), unix.TIOCINQ); err == nil {
			st.Lag += int64(n)
		}
	}
	return st
}

// Run implements Input. When the input ends it hands over the last line, finished or not, and returns nil.
func (s *Stdin) Run(ctx context.Context, _ []byte, out chan<- Batch) error {
	fi, err := s.opts.File.Stat()
	if err == nil && fi.Mode().IsRegular() {
		err = withHint("follow a file with logs: [{file: PATH}], or look at it with mxshield-agent replay", "read standard input: it is a file")
	}
	if err != nil {
		s.board.update(func(st *Status) { st.State, st.LastError = Failed, describe(err) })
		return err
	}
	defer s.board.update(func(st *Status) {
		if st.State != Ended {
			st.State, st.Detail = Stopped, ""
		}
	})
	fd := int(s.opts.File.Fd())
	r := &pipe{s: s, out: out, watch: suppressWatch{log: s.opts.Log, input: s.ID()}}
	buf := make([]byte, 64<<10)
	for ctx.Err() == nil {
		wait := lookPause
		if len(r.ends) > 0 {
			wait = batchPause
		}
		ready, err := pollIn(fd, wait)
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		if !ready {
			if r.flush(ctx, true) != nil {
				return nil
			}
			continue
		}
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue
		}
		if n <= 0 {
			return r.end(ctx, err)
		}
		if r.feed(ctx, buf[:n]) != nil {
			return nil
		}
	}
	return nil
}

// pipe is the state of one Run.
type pipe struct {
	s     *Stdin
	out   chan<- Batch
	watch suppressWatch
	line  source // only its unfinished line is used
	gather
	caughtUp        bool
	truncs, dropped uint64 // not yet in Status
}

// feed takes the lines off b. The error is ctx's.
func (r *pipe) feed(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		line, rest, size, ok := r.line.next(b)
		if !ok {
			return nil
		}
		if err := r.add(ctx, line, size); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

func (r *pipe) add(ctx context.Context, line []byte, size int64) error {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	if !r.room(len(line)) {
		if err := r.flush(ctx, false); err != nil {
			return err
		}
	}
	r.gather.add(line)
	r.dropped += r.watch.line(line, time.Now())
	if r.line.done(size) {
		r.truncs++
	}
	return nil
}

func (r *pipe) end(ctx context.Context, cause error) error {
	if len(r.line.part) > 0 {
		if r.add(ctx, r.line.part, int64(len(r.line.part))+r.line.skip) != nil {
			return nil
		}
	}
	r.caughtUp = false
	if r.flush(ctx, true) != nil {
		return nil
	}
	text := "standard input was closed: no more lines will come"
	if cause != nil {
		text = "standard input cannot be read any more: " + cause.Error()
	}
	r.s.opts.Log.Warn(text, "input", r.s.ID(), "hint", "start the agent again with the pipe that feeds it")
	r.s.board.update(func(st *Status) { st.State, st.Detail = Ended, text })
	return nil
}

func (r *pipe) flush(ctx context.Context, end bool) error {
	lines := r.take()
	if len(lines) > 0 || end && !r.caughtUp {
		now := time.Now()
		b := Batch{Input: r.s.ID(), Lines: lines, Mark: mark{Time: now.UnixMicro()}.encode(), CaughtUp: end, Read: now}
		select {
		case r.out <- b:
			r.caughtUp = end
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.s.board.update(func(st *Status) {
		st.State = Reading
		if end {
			st.State = Following
		}
		st.Lines += uint64(len(lines))
		st.Truncated += r.truncs
		st.Suppressed += r.dropped
		r.truncs, r.dropped = 0, 0
		if len(lines) > 0 {
			st.LastLine = time.Now()
		}
	})
	return nil
}
