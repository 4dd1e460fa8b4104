package tail

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// JournalOptions changes how the journal is followed. Zero values mean the defaults.
type JournalOptions struct {
	Name    string        // makes the ID "journal:NAME", so that it stays the same when units come and go; default: the units
	Command []string      // how journalctl is called, e.g. with --directory; default {"journalctl"}
	Since   time.Duration // how far to go back when there is no mark; default 1 h
	Trusted []uint32      // users whose records count; default root and those named by Users
	Users   []string      // looked up in Passwd when Run starts, if Trusted is nil; default MTAUsers
	Passwd  string        // default /etc/passwd
	Backoff time.Duration // first pause before a journalctl that ended is started again, doubling up to 30 s; default 250 ms
	Log     *slog.Logger  // default: none
}

// Journal follows the records of some units in the systemd journal, through a journalctl child.
//
// Only records whose _UID, which journald takes from the kernel, is root's or the MTA's are handed over: anybody can
// write to the journal under the name of postfix/smtpd, and a program that local(8) runs for a user even does so within
// Postfix's unit. The others are counted in Status.Untrusted.
//
// The mark is the journal's cursor. If the journal no longer has the record, journalctl goes on with the next one that
// it has; if it does not take the cursor at all, reading starts behind the time of the mark. CaughtUp is a guess: the
// record is recent, or nothing came for half a second.
type Journal struct {
	units []string
	opts  JournalOptions
	board board
}

// NewJournal returns the input for the given units, e.g. "postfix@-.service". They need not exist. Patterns are allowed, but
// journalctl ends (and is tried again) while they match nothing.
func NewJournal(units []string, opts JournalOptions) *Journal {
	if len(opts.Command) == 0 {
		opts.Command = []string{"journalctl"}
	}
	if opts.Since <= 0 {
		opts.Since = time.Hour
	}
	if opts.Passwd == "" {
		opts.Passwd = "/etc/passwd"
	}
	if opts.Users == nil {
		opts.Users = MTAUsers
	}
	if opts.Backoff <= 0 {
		opts.Backoff = 250 * time.Millisecond
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	j := &Journal{units: slices.Clone(units), opts: opts}
	j.board.s = Status{Input: j.ID(), State: Stopped}
	return j
}

// ID is "journal:" and the name, or the units in order.
func (j *Journal) ID() string {
	if j.opts.Name != "" {
		return "journal:" + j.opts.Name
	}
	units := slices.Clone(j.units)
	slices.Sort(units)
	return "journal:" + strings.Join(units, ",")
}

// Status is safe to call from any goroutine.
func (j *Journal) Status() Status { return j.board.get() }

// Pauses of the journal reader.
const (
	maxBackoff  = 30 * time.Second
	gatherPause = 2 * time.Millisecond   // no record for so long: hand over what there is
	idlePause   = 500 * time.Millisecond // no record for so long: this was the end
	recent      = 5 * time.Second        // a record younger than this is near the end
	killPause   = 2 * time.Second        // from SIGTERM to SIGKILL
)

// Run implements Input. It returns nil when ctx is done; an error only if no unit is given.
func (j *Journal) Run(ctx context.Context, markBytes []byte, out chan<- Batch) error {
	if len(j.units) == 0 { // journalctl would show everything
		return withHint("name the MTA's unit, for example postfix@-.service", "follow the journal: no unit given")
	}
	r := &reader{j: j, out: out, log: j.opts.Log, id: j.ID(), trusted: j.opts.Trusted,
		watch: suppressWatch{log: j.opts.Log, input: j.ID()}}
	if r.trusted == nil {
		r.trusted = append(lookupUsers(j.opts.Passwd, j.opts.Users), 0)
	}
	r.mark = mark{Time: time.Now().Add(-j.opts.Since).UnixMicro()}
	if markBytes != nil {
		m, err := decodeMark(markBytes)
		if err == nil && len(m.Files) > 0 {
			err = fmt.Errorf("%w: it is one of a file", errMark)
		}
		if err != nil {
			r.log.Warn("starting without a checkpoint: lines may be counted twice", "input", r.id, "error", err)
		} else {
			r.mark = m
		}
	}
	defer j.board.update(func(s *Status) {
		if s.State != Failed {
			s.State, s.Detail = Stopped, ""
		}
	})
	pause := j.opts.Backoff
	for {
		began := r.records
		err := r.follow(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if r.records > began {
			pause = j.opts.Backoff
		} else if r.mark.Cursor != "" && strings.Contains(strings.ToLower(err.Error()), "cursor") {
			r.log.Warn("the journal does not take the checkpoint's cursor; reading on behind its time", "input", r.id,
				"time", r.mark.when(), "error", err)
			r.mark.Cursor = ""
		}
		r.fail(err, pause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, maxBackoff)
	}
}

// MTAUsers are the users as whom mail servers write their log, where they are not root: of Postfix, Exim, Sendmail,
// OpenSMTPD, Dovecot, Courier, Cyrus. Users who run programs of others (nobody, vmail, dovenull) are none of them.
var MTAUsers = []string{"postfix", "Debian-exim", "exim", "mailnull", "smmsp", "smmta", "_smtpd", "smtpd", "opensmtpd", "dovecot", "courier", "cyrus"}

// lookupUsers returns the numbers of those users that passwd has.
func lookupUsers(passwd string, names []string) []uint32 {
	b, err := os.ReadFile(passwd)
	if err != nil {
		return nil
	}
	var out []uint32
	for line := range strings.Lines(string(b)) {
		f := strings.Split(line, ":")
		if len(f) < 3 || !slices.Contains(names, f[0]) {
			continue
		}
		if uid, err := strconv.ParseUint(f[2], 10, 32); err == nil {
			out = append(out, uint32(uid))
		}
	}
	return out
}

// reader is the state of one Run.
type reader struct {
	j       *Journal
	out     chan<- Batch
	log     *slog.Logger
	id      string
	trusted []uint32
	watch   suppressWatch

	gather
	mark     mark // after the lines in gather
	ignored  int  // records since the last batch that gave no line
	caughtUp bool // the last batch said so
	records  uint64
	problem  string // last warned of
}

func (r *reader) fail(err error, pause time.Duration) {
	text := describe(err)
	if text != r.problem {
		var hint string
		if h, ok := err.(interface{ HintText() string }); ok {
			hint = h.HintText()
		}
		r.log.Warn("cannot follow the journal; trying again", "input", r.id, "error", err, "hint", hint)
		r.problem = text
	}
	r.j.board.update(func(s *Status) {
		s.State, s.Detail, s.LastError = Failed, fmt.Sprintf("trying again in %v", pause), text
	})
}

// args are journalctl's arguments for going on behind the mark.
func (r *reader) args() []string {
	args := append(slices.Clone(r.j.opts.Command), "--follow", "--no-tail", "--output=json", "--no-pager",
		"--output-fields="+journalFields)
	if r.mark.Cursor != "" {
		// Not --after-cursor: that passes over the first record blindly, also when the cursor's is gone and it is another.
		args = append(args, "--cursor="+r.mark.Cursor)
	} else {
		since := r.mark.Time + 1
		args = append(args, fmt.Sprintf("--since=@%d.%06d", since/1e6, since%1e6))
	}
	for _, u := range r.j.units {
		args = append(args, "--unit="+u)
	}
	return args
}

// follow runs journalctl once and hands over what it says, until it ends or ctx is done.
func (r *reader) follow(ctx context.Context) error {
	cctx, cancel := context.WithCancel(ctx)
	entries := make(chan entry, 256)
	c := &child{args: r.args()}
	ended := make(chan error, 1)
	go func() { ended <- c.run(cctx, entries) }() // closes entries
	defer func() {
		cancel()
		for range entries {
		}
	}()

	r.j.board.update(func(s *Status) { s.State, s.Detail = Reading, "" })
	r.caughtUp = false
	timer := time.NewTimer(2 * idlePause) // journalctl takes its time to open everything
	defer timer.Stop()
	for {
		select {
		case e, ok := <-entries:
			if !ok {
				if err := r.flush(ctx, false); err != nil {
					return err
				}
				return <-ended
			}
			if err := r.add(ctx, e); err != nil {
				return err
			}
			timer.Reset(gatherPause)
		case <-timer.C:
			pending := len(r.ends) > 0
			near := time.Since(r.mark.when()) < recent
			if err := r.flush(ctx, !pending || near); err != nil {
				return err
			}
			if pending && !near {
				timer.Reset(idlePause)
			} else {
				r.settled(c)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settled is called when the end was reached.
func (r *reader) settled(c *child) {
	if text := c.stderr.String(); r.records == 0 && strings.Contains(text, "not seeing messages") {
		err := withHint("make the agent's user a member of group systemd-journal, or run the agent as root", "follow the journal: may not read it")
		if describe(err) != r.problem {
			r.log.Warn("may not read the journal", "input", r.id, "hint", err.(*hintError).hint)
			r.problem = describe(err)
		}
		r.j.board.update(func(s *Status) { s.State, s.LastError = Failed, describe(err) })
		return
	}
	if r.problem != "" {
		r.log.Info("following", "input", r.id)
		r.problem = ""
	}
}

func (r *reader) add(ctx context.Context, e entry) error {
	rec := e.record
	if rec.cursor != "" && rec.cursor == r.mark.Cursor {
		return nil // the one that the mark is behind
	}
	r.records++
	switch {
	case e.err != nil && rec.cursor == "":
		r.j.board.update(func(s *Status) { s.Truncated++ })
		return nil // the cursor of the next record covers it
	case rec.uid < 0 || !slices.Contains(r.trusted, uint32(rec.uid)):
		r.j.board.update(func(s *Status) { s.Untrusted++ })
		r.ignored++
	case e.err != nil:
		r.j.board.update(func(s *Status) { s.Truncated++ })
		r.ignored++
	default:
		if !r.room(len(rec.line)) {
			if err := r.flush(ctx, false); err != nil {
				return err
			}
		}
		r.gather.add(rec.line)
		if n := r.watch.line(rec.line, time.Now()); n > 0 {
			r.j.board.update(func(s *Status) { s.Suppressed += n })
		}
	}
	r.mark.Cursor, r.mark.Time = rec.cursor, rec.time.UnixMicro()
	if r.ignored >= maxBatchLines { // let the mark get on
		return r.flush(ctx, false)
	}
	return nil
}

// flush hands over what was gathered; without lines only if the mark has got on a good deal, or the end is news.
func (r *reader) flush(ctx context.Context, end bool) error {
	lines := r.take()
	if len(lines) > 0 || r.ignored >= maxBatchLines || end && !r.caughtUp {
		b := Batch{Input: r.id, Lines: lines, Mark: r.mark.encode(), CaughtUp: end, Read: time.Now()}
		select {
		case r.out <- b:
			r.caughtUp, r.ignored = end, 0
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.j.board.update(func(s *Status) {
		s.Lines += uint64(len(lines))
		if len(lines) > 0 {
			s.LastLine = time.Now()
		}
		s.State, s.Detail = Reading, ""
		if end {
			s.State = Following
		}
		if s.Untrusted > 0 {
			s.Detail = fmt.Sprintf("ignored %d records that other users wrote", s.Untrusted)
		}
	})
	return nil
}

// entry is what the child said: a record, or why it is none.
type entry struct {
	record record
	err    error
}

// child is one run of journalctl.
type child struct {
	args   []string
	stderr lastBytes
}

// run starts the child, sends what it says, and returns when it is gone; it is ended when ctx is done. The error is never
// nil. entries is closed.
func (c *child) run(ctx context.Context, entries chan<- entry) error {
	defer close(entries)
	// The kernel kills the child when the thread that started it ends: keep the thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := exec.Command(c.args[0], c.args[1:]...)
	cmd.Stderr = &c.stderr
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = killPause
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("start %s: %w", c.args[0], err)
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return &hintError{err: fmt.Errorf("start %s: %w", c.args[0], err), hint: "install systemd, or have the MTA write a log file"}
		}
		return fmt.Errorf("start %s: %w", c.args[0], err)
	}
	gone := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		select {
		case <-gone:
			return
		case <-ctx.Done():
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-gone:
		case <-time.After(killPause):
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
	})
	scan(stdout, func(e entry) bool {
		select {
		case entries <- e:
			return true
		case <-ctx.Done():
			return false
		}
	})
	if ctx.Err() != nil {
		io.Copy(io.Discard, stdout) // until the killer has done its work
	}
	err = cmd.Wait()
	close(gone)
	killer.Wait()
	said := strings.TrimSpace(c.stderr.String())
	switch {
	case err == nil && said == "":
		return errors.New("journalctl ended")
	case err == nil:
		return fmt.Errorf("journalctl ended: %q", said)
	default:
		return fmt.Errorf("journalctl: %w: %q", err, said)
	}
}

// scan reads JSON objects, one per line, and gives them to fn until there are no more or fn returns false. Lines that are no
// objects are passed over; too long ones come as an error.
func scan(in io.Reader, fn func(entry) bool) {
	br := bufio.NewReaderSize(in, 64<<10)
	var line []byte
	long := false
	for {
		part, err := br.ReadSlice('\n')
		if !long && len(line)+len(part) > maxRecord {
			long, line = true, nil
		}
		if !long {
			line = append(line, part...)
		}
		if err == bufio.ErrBufferFull {
			continue
		}
		if err != nil {
			return // what came last is no whole line
		}
		var e entry
		switch {
		case long:
			e.err = errTooLong
		case !bytes.HasPrefix(line, []byte("{")):
			line = line[:0]
			continue
		default:
			e.record, e.err = decodeRecord(line)
		}
		line, long = line[:0], false
		if !fn(e) {
			return
		}
	}
}

// lastBytes keeps the last 2 KiB that were written to it.
type lastBytes struct {
	mu sync.Mutex
	b  []byte
}

func (l *lastBytes) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const limit = 2 << 10
	l.b = append(l.b, p[max(0, len(p)-limit):]...)
	if cut := len(l.b) - limit; cut > 0 {
		l.b = append(l.b[:0], l.b[cut:]...)
	}
	return len(p), nil
}

func (l *lastBytes) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.b)
}
