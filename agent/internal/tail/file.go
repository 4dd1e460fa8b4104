package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
)

// FileOptions changes how a file is followed. Zero values mean the defaults.
type FileOptions struct {
	Back   int64         // bytes of an existing file to read when there is no mark; default 256 MiB
	Linger time.Duration // how long a rotated file must have been quiet to be given up; default 3 s
	Poll   time.Duration // look at the file at least this often; default 1 s
	Pace   *Pace         // with which files to keep in step at the start; default: none
	Log    *slog.Logger  // default: none

	left    func(position) // told where the reading of a rotated file ended
	between func()         // tests: what happens between two looks at the files
}

// File follows a log file by name, through rotation.
//
// Without a mark, an existing file is read from its start (at most the last Back bytes of it) and one that comes to be
// later from its first byte. With a mark, reading goes on where the mark says: in the file at the path if it is still
// the same (inode and hash of the first 256 bytes), else in the file that it was renamed to (any name in the same
// directory, not compressed), then in those rotated later (mail.log.1, mail.log-20260131, mail-20260131.log and the like),
// then in the one at the path.
//
// Rotation by rename loses and doubles nothing. The old file is read until another file with content is at the path
// and the old one has been quiet for Linger; meanwhile both are read and the mark holds a place in both. A last line
// without newline is handed over when its file is given up, never before.
//
// A file that shrank, or whose first bytes changed, was truncated ("copytruncate") and is read again from its start. The
// copy that logrotate made is looked for first, and what had not been read yet is read from there.
//
// What can be lost:
//   - lines that reach the old file when it was quiet for longer than Linger after the new one got content. One writer
//     is assumed; two programs writing one log are followed well only while they agree on the file;
//   - lines written between logrotate's last copy and its truncate: they are in no file at all;
//   - an unfinished line that is truncated away;
//   - with the agent down (or its consumer stuck) over two rotations: files that were compressed meanwhile. logrotate's
//     delaycompress avoids it for one rotation; "postfix logrotate" compresses at once;
//   - with the agent down: what was removed, or moved to another directory (olddir);
//   - lines written to the new log, if an old one is moved back before they were committed.
//
// What can be doubled:
//   - a file rewritten in place of itself (sed -i) is a new file and read from its start;
//   - so is an old file that is moved back, if the agent was started anew after it had given that file up;
//   - so is one that was given up and then written to, or a copy made in the moment of the checkpoint, if at the agent's next
//     start the log it had gone on to is gone or truncated, and there is no copy of that.
type File struct {
	path  string
	opts  FileOptions
	board board

	mu   sync.Mutex
	ino  uint64 // of the current file
	size int64  // of the current file when Status.Lag was computed
}

// NewFile returns the input for the log file at path, which need not exist.
func NewFile(path string, opts FileOptions) *File {
	if opts.Back <= 0 {
		opts.Back = 256 << 20
	}
	if opts.Linger <= 0 {
		opts.Linger = 3 * time.Second
	}
	if opts.Poll <= 0 {
		opts.Poll = time.Second
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	f := &File{path: filepath.Clean(path), opts: opts}
	f.board.s = Status{Input: f.ID(), State: Stopped}
	if opts.Pace != nil {
		opts.Pace.join(f.ID())
	}
	return f
}

// ID is "file:" and the path.
func (f *File) ID() string { return "file:" + f.path }

// Check says what would keep Run from reading now; nil if nothing. The error may have a HintText.
func (f *File) Check() error {
	file, _, err := openRegular(f.path)
	if err != nil {
		return err
	}
	return file.Close()
}

// Status is safe to call from any goroutine.
func (f *File) Status() Status {
	s := f.board.get()
	if s.State == Following || s.State == Reading {
		f.mu.Lock()
		ino, size := f.ino, f.size
		f.mu.Unlock()
		// The consumer may have kept us waiting while the file grew.
		if fi, err := os.Stat(f.path); err == nil && fi.Sys().(*syscall.Stat_t).Ino == ino {
			s.Lag += max(0, fi.Size()-size)
		}
	}
	return s
}

// Run implements Input. It returns an error only if there is something at the path that is no regular file.
func (f *File) Run(ctx context.Context, markBytes []byte, out chan<- Batch) error {
	fo := f.newFollower(out)
	defer fo.close()
	defer fo.ownPace()
	if err := f.Check(); errors.Is(err, errKind) {
		fo.board.update(func(s *Status) { s.State, s.LastError = Failed, describe(err) })
		return err
	}
	if markBytes != nil {
		fo.begin(markBytes)
	}
	w := newWatch(f.path, fo.log)
	defer w.close()
	for ctx.Err() == nil {
		w.update()
		began := time.Now()
		if err := fo.step(ctx); err != nil {
			if ctx.Err() != nil {
				break
			}
			fo.fail(err)
		}
		// Lines that come in quick succession share a batch.
		w.wait(ctx, began.Add(5*time.Millisecond), fo.opts.Poll)
	}
	return nil
}

// follower is the state of one Run.
type follower struct {
	file  *File
	path  string
	opts  FileOptions
	log   *slog.Logger
	board *board
	id    string
	out   chan<- Batch
	watch suppressWatch
	chunk []byte

	srcs []*source // files being read, oldest first; the last is the current one, the others have been rotated away
	gather
	fresh    bool       // started without a mark, and the file was never seen missing
	resume   []position // of the mark, until they were found
	since    time.Time  // of the mark, until its last file was found: what was rotated later is unread
	left     []position // in rotated files, where their reading ended
	caughtUp bool       // the last batch said so
	news     bool       // pos of some source moved since the last batch
	truncs   uint64     // cut lines not yet in Status
	dropped  uint64     // suppressed messages not yet in Status

	pace  *Pace     // until the end was reached for the first time
	first time.Time // stamp of the first line of the batch, while there is a pace to keep

	live    bool      // the first look is behind us
	looked  time.Time // when this step began
	before  time.Time // when the one before began
	seen    time.Time // when the last look began that found all there was; at first of the mark
	absent  bool      // there was no file at the path
	missing bool      // warned that the file does not exist
	problem string    // the last error warned of
}

func (f *File) newFollower(out chan<- Batch) *follower {
	return &follower{
		file: f, path: f.path, opts: f.opts, log: f.opts.Log, board: &f.board, id: f.ID(), out: out,
		chunk: make([]byte, 256<<10),
		watch: suppressWatch{log: f.opts.Log, input: f.ID()},
		fresh: true, pace: f.opts.Pace,
	}
}

// begin takes up a mark.
func (fo *follower) begin(markBytes []byte) {
	m, err := decodeMark(markBytes)
	if err == nil && m.Cursor != "" {
		err = fmt.Errorf("%w: it is one of the journal", errMark)
	}
	if err != nil {
		fo.log.Warn("starting without a checkpoint: lines may be counted twice", "input", fo.id, "error", err)
		return
	}
	fo.fresh, fo.resume, fo.since, fo.seen = false, m.Files, m.when(), m.when()
}

func (fo *follower) close() {
	for _, s := range fo.srcs {
		s.close()
	}
	fo.board.update(func(s *Status) {
		if s.State != Failed {
			s.State, s.Detail = Stopped, ""
		}
	})
}

// step reads everything there is and looks for rotation, once.
func (fo *follower) step(ctx context.Context) error {
	before := fo.looked
	fo.looked = time.Now()
	if before.IsZero() {
		before = fo.looked
	}
	fo.before = before
	if fo.resume != nil {
		if ok, err := fo.find(); !ok {
			return err
		}
	}
	if err := fo.drainAll(ctx); err != nil {
		return fo.reopen(ctx, err)
	}
	fo.pause()
	switched, err := fo.look()
	if !fo.live && err == nil && len(fo.srcs) > 0 {
		fo.leaveOld()
	}
	fo.live = true
	if switched { // the old file to its end once more, then the new one
		if derr := fo.drainAll(ctx); derr != nil {
			return fo.reopen(ctx, derr)
		}
	}
	if ferr := fo.flush(ctx, true); ferr != nil {
		return ferr
	}
	if err != nil || fo.nothing() {
		return err
	}
	if fo.problem != "" || fo.missing {
		fo.log.Info("following", "input", fo.id)
		fo.problem, fo.missing = "", false
	}
	return nil
}

func (fo *follower) pause() {
	if fo.opts.between != nil {
		fo.opts.between()
	}
}

// reopen is called when a file could not be read (a stale NFS handle, a bad disk): what was gathered is handed over, and
// the files are opened anew next time.
func (fo *follower) reopen(ctx context.Context, cause error) error {
	if err := fo.flush(ctx, false); err != nil || len(fo.srcs) == 0 {
		return cause
	}
	fo.resume = nil
	for _, s := range fo.srcs {
		fo.resume = append(fo.resume, s.position())
		s.close()
	}
	fo.srcs, fo.since, fo.live = nil, fo.seen, false
	return cause
}

// ownPace ends the keeping in step with other files.
func (fo *follower) ownPace() {
	if fo.pace != nil {
		fo.pace.leave(fo.id)
		fo.pace = nil
	}
}

// fail reports a problem that will be tried again.
func (fo *follower) fail(err error) {
	fo.ownPace()
	text := describe(err)
	if text != fo.problem {
		var hint string
		if h, ok := err.(interface{ HintText() string }); ok {
			hint = h.HintText()
		}
		fo.log.Warn("cannot read the log; trying again", "input", fo.id, "error", err, "hint", hint)
		fo.problem = text
	}
	fo.board.update(func(s *Status) { s.State, s.Detail, s.LastError = Failed, "trying again", text })
}

// wait reports that there is nothing to read yet.
func (fo *follower) wait() {
	fo.ownPace()
	if !fo.missing {
		fo.log.Warn("the log file does not exist; waiting for it", "input", fo.id, "path", fo.path)
		fo.missing = true
	}
	fo.board.update(func(s *Status) { s.State, s.Detail = Waiting, "waiting for "+fo.path+" to appear" })
}

// find opens the files that the mark speaks of. ok is false when it has to be tried again.
func (fo *follower) find() (ok bool, err error) {
	var at *source // what is at the path now
	at, err = newSource(fo.path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return false, err
	}
	places := placesOf(fo.path)
	var found []*source
	used := map[uint64]bool{}
	var empty []*source // when the mark was made
	lastFound, lost := false, 0
	for i, p := range fo.resume {
		var s *source
		if at != nil && p.N > 0 && !used[at.ino] && at.is(p) { // what was empty has nothing to be known by
			s = at
		} else {
			s = fo.findRotated(places, p, used)
		}
		if s == nil && at != nil && !used[at.ino] && p.N == headMax && at.isCopy(p) {
			s = at // the same content under a new inode: restored, or edited in place
		}
		if s == nil {
			if p.N > 0 { // from an empty one nothing is missed
				lost++
			}
			continue
		}
		s.pos = p.Offset
		used[s.ino] = true
		found = append(found, s)
		if p.N == 0 {
			empty = append(empty, s)
		}
		lastFound = i == len(fo.resume)-1
	}
	if !lastFound { // then what came since is looked for by its time, and an inode may be that of anything
		for _, s := range empty {
			s.close()
			found = slices.DeleteFunc(found, func(o *source) bool { return o == s })
		}
	}
	if missing && len(found) == 0 && len(fo.resume) > 0 && len(fo.rotatedSince(nil)) == 0 {
		fo.wait() // for the file system to be mounted, it may be
		return false, nil
	}
	if lost > 0 {
		fo.log.Warn("cannot find the file that the checkpoint is in; lines after the checkpoint may be missed", "input", fo.id,
			"files", lost, "hint", "rotate with delaycompress")
	}
	if at != nil && (len(found) == 0 || found[len(found)-1] != at) {
		if used[at.ino] {
			// A place in a rotated file was found at the path: the order of the mark no longer holds. Read on there.
			fo.log.Warn("the log files changed order since the checkpoint", "input", fo.id)
		} else {
			at.close()
		}
	}
	for _, s := range found[:max(0, len(found)-1)] {
		_, s.moved = changed(s)
	}
	if lastFound || len(fo.resume) == 0 {
		fo.since = time.Time{}
	}
	fo.srcs, fo.resume = found, nil
	return true, nil
}

// changed returns when the file of s was last written, and when it was last written or renamed, but no time in the future.
func changed(s *source) (mtime, ctime time.Time) {
	now := time.Now()
	fi, err := s.f.Stat()
	if err != nil {
		return now, now
	}
	mtime, ctime = fi.ModTime(), time.Unix(fi.Sys().(*syscall.Stat_t).Ctim.Unix())
	if mtime.After(now) {
		mtime = now
	}
	if ctime.After(now) {
		ctime = now
	}
	return mtime, ctime
}

// findRotated looks for the file of p beside the log: by inode, else a copy of it. nil if there is none.
func (fo *follower) findRotated(places []place, p position, used map[uint64]bool) *source {
	s := search(places, true, func(r rotated) bool {
		// Without a hash any file with a reused inode would do: then the name must fit.
		return r.ino == p.Ino && !used[r.ino] && (p.N > 0 || r.suffix != "")
	}, func(s *source) bool {
		// And it must be no copy of what is read elsewhere.
		return s.is(p) && (p.N > 0 || !slices.ContainsFunc(fo.resume, func(o position) bool { return o.N > 0 && s.isCopy(o) }))
	})
	if s == nil {
		s = findCopy(places, p, used)
	}
	return s
}

// findCopy looks for a file that starts like the one that p is a place in, and goes as far: what logrotate copied before
// it truncated the log. nil if there is none.
func findCopy(places []place, p position, used map[uint64]bool) *source {
	if p.Offset == 0 || p.N == 0 {
		return nil
	}
	return search(places, false, func(r rotated) bool { return !used[r.ino] && r.size >= p.Offset },
		func(s *source) bool { return s.isCopy(p) })
}

// search opens the first file beside the log that may and does fit.
func search(places []place, all bool, may func(rotated) bool, fits func(*source) bool) *source {
	for range 10 {
		moving := false
		for _, r := range listRotated(places, all) {
			if !may(r) {
				continue
			}
			s, err := newSource(r.path)
			if err != nil {
				moving = moving || errors.Is(err, fs.ErrNotExist)
				continue
			}
			if fits(s) {
				return s
			}
			moving = moving || s.ino != r.ino
			s.close()
		}
		if !moving { // nothing was renamed before it could be opened
			break
		}
	}
	return nil
}

// errMoving says that files are being renamed right now.
var errMoving = errors.New("files are being rotated")

// look sees whether the path still names the current file. switched tells that there is more to read.
func (fo *follower) look() (switched bool, err error) {
	for range 10 {
		began := time.Now()
		if switched, err = fo.lookOnce(began); err == nil {
			fo.seen = began
		}
		if err != errMoving {
			return switched, err
		}
	}
	return false, nil // the last rename will wake us
}

func (fo *follower) lookOnce(now time.Time) (switched bool, err error) {
	fi, err := os.Stat(fo.path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		fo.fresh, fo.absent = false, true
		if len(fo.srcs) == 0 {
			if fo.since.IsZero() { // what comes may be rotated away before it is seen
				fo.since = now
			}
			if switched, err = fo.follow(fo.rotatedSince(nil), nil); !switched && err == nil {
				fo.wait()
			}
			return switched, err
		}
		fo.board.update(func(s *Status) { s.Detail = "the file was moved away; waiting for " + fo.path + " to appear" })
		// It may have been moved away more than once. The next line, which makes it again, may be hours off.
		return fo.follow(fo.rotatedSince(fo.inos()), nil)
	}
	if err != nil {
		return false, permissionHint(fo.path, err)
	}
	fo.absent = false
	var cur *source
	if n := len(fo.srcs); n > 0 {
		for i, s := range fo.srcs {
			if st := fi.Sys().(*syscall.Stat_t); st.Ino != s.ino || uint64(st.Dev) != s.dev {
				continue
			}
			if i < n-1 { // an old file was moved back
				for _, o := range fo.srcs[i+1:] {
					o.moved, o.ended = time.Now(), false
				}
				fo.srcs = append(append(fo.srcs[:i:i], fo.srcs[i+1:]...), s)
				s.moved, fo.news = time.Time{}, true
			}
			return false, nil
		}
		cur = fo.srcs[n-1]
	}
	next, err := newSource(fo.path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, errMoving // rotated again just now
		}
		return false, err
	}
	fo.pause()
	nextIno := next.ino
	skip := fo.inos()
	if skip[nextIno] { // moved back just now
		next.close()
		return false, errMoving
	}
	skip[nextIno] = true
	between := fo.rotatedSince(skip)
	fo.pause()
	if cur == nil && fo.since.IsZero() && fo.fresh {
		if err := next.back(fo.opts.Back); err != nil {
			next.close()
			return false, err
		}
	}
	fo.readOn(next) // if it was moved back
	if len(next.head) == 0 {
		// Made by logrotate, but the writer is still on the old file. And a file without content could not be known again.
		next.close()
		if cur == nil && fo.since.IsZero() {
			fo.since, fo.fresh = now, false
		}
		next = nil
	}
	// Rotated again since next was opened: then between may hold what is newer than next.
	if fi2, err := os.Stat(fo.path); err != nil || fi2.Sys().(*syscall.Stat_t).Ino != nextIno {
		if next != nil {
			next.close()
		}
		return false, errMoving
	}
	return fo.follow(between, next)
}

// inos are the inodes of the files being read.
func (fo *follower) inos() map[uint64]bool {
	m := map[uint64]bool{}
	for _, s := range fo.srcs {
		m[s.ino] = true
	}
	return m
}

// rotatedSince returns the files that were rotated after what is being read, or since the checkpoint; oldest first. Empty
// ones are among them for as long as somebody may still write there.
func (fo *follower) rotatedSince(skip map[uint64]bool) []rotated {
	quiet := time.Now().Add(-fo.opts.Linger)
	list := listRotated(placesOf(fo.path), false)
	if n := len(fo.srcs); n > 0 {
		newer, later := newerThan(list, fo.srcs[n-1].ino, fo.seen), changedSince(fo.since)
		return pick(list, quiet, skip, func(r rotated) bool { return newer(r) && (fo.since.IsZero() || later(r)) })
	}
	if fo.since.IsZero() {
		return nil
	}
	return pick(list, quiet, skip, changedSince(fo.since))
}

// follow adds the files of between and then next, if it is not nil, to those being read. It closes next if it fails.
func (fo *follower) follow(between []rotated, next *source) (switched bool, err error) {
	if next == nil { // the last one must be known again: an empty one is looked for again when there is more
		for len(between) > 0 && between[len(between)-1].size == 0 {
			between = between[:len(between)-1]
		}
		if len(between) == 0 {
			return false, nil
		}
	}
	if cut := len(between) - maxRotated; cut > 0 {
		fo.log.Warn("too many rotated files since the last checkpoint; skipping the oldest", "input", fo.id, "skipped", cut)
		between = between[cut:]
	}
	var opened []*source
	for _, r := range between {
		s, err := newSource(r.path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && s.ino != r.ino { // renamed before it could be opened
			for _, o := range append(opened, next, s) {
				if o != nil {
					o.close()
				}
			}
			return false, errMoving
		}
		if err != nil {
			fo.log.Warn("cannot read a rotated file; skipping it", "input", fo.id, "error", err)
			continue
		}
		if fo.copyOfAny(s, next) { // of what is being read anyway
			s.close()
			continue
		}
		fo.readOn(s)
		_, s.moved = changed(s)
		opened = append(opened, s)
		fo.pause()
	}
	if next != nil {
		opened = append(opened, next)
	}
	if len(opened) == 0 {
		return false, nil
	}
	if n := len(fo.srcs); n > 0 {
		cur := fo.srcs[n-1]
		cur.ended = false
		switch {
		case !cur.moved.IsZero(): // a copy of what was truncated
		case fo.live:
			cur.moved = time.Now()
		default: // rotated while nobody looked, maybe long ago
			_, cur.moved = changed(cur)
		}
	}
	fo.srcs = append(fo.srcs, opened...)
	fo.fresh, fo.since = false, time.Time{}
	return true, nil
}

// copyOfAny tells whether s starts like a file being read, or like next: logrotate may be about to truncate that one.
func (fo *follower) copyOfAny(s, next *source) bool {
	for _, o := range append(fo.srcs[:len(fo.srcs):len(fo.srcs)], next) {
		// The copy may still be short.
		if o != nil && o != s && len(s.head) > 0 && len(o.head) >= len(s.head) && bytes.HasPrefix(o.head, s.head) {
			return true
		}
	}
	return false
}

// toLastLine moves to the end of the last whole line before size.
func (s *source) toLastLine(size int64) error {
	tail := make([]byte, min(size, maxLine))
	n, err := s.f.ReadAt(tail, size-int64(len(tail)))
	if err != nil && err != io.EOF {
		return err
	}
	s.pos = size - int64(len(tail)) + int64(bytes.LastIndexByte(tail[:n], '\n')) + 1
	return nil
}

// back moves to the first line start within the last n bytes.
func (s *source) back(n int64) error {
	fi, err := s.f.Stat()
	if err != nil || fi.Size() <= n {
		return err
	}
	start := fi.Size() - n - 1 // the byte before: a newline there means that a line starts at size-n
	buf := make([]byte, 64<<10)
	for start < fi.Size() {
		k, err := s.f.ReadAt(buf, start)
		if i := strings.IndexByte(string(buf[:k]), '\n'); i >= 0 {
			s.pos = start + int64(i) + 1
			return nil
		}
		if start += int64(k); err != nil {
			break
		}
	}
	s.pos = fi.Size() - n // no newline at all: an endless line
	return nil
}

// drainAll reads every file to its end, oldest first, and gives up those that were rotated away and have become quiet.
func (fo *follower) drainAll(ctx context.Context) error {
	for i := 0; i < len(fo.srcs); i++ {
		s := fo.srcs[i]
		if len(s.head) == 0 && i < len(fo.srcs)-1 { // rotated when empty: by now it may be seen that it is a copy being made
			var err error
			if s.head, err = readHead(s.f); err != nil {
				return fmt.Errorf("read %s: %w", fo.path, err)
			}
			if fo.copyOfAny(s, nil) {
				s.close()
				fo.srcs = append(fo.srcs[:i], fo.srcs[i+1:]...)
				fo.news = true
				i--
				continue
			}
		}
		giveUp := i < len(fo.srcs)-1 && !s.moved.IsZero() && time.Since(later(s.moved, s.grew)) > fo.opts.Linger // before the last read
		from := s.readOffset()
		cut, err := fo.drain(ctx, s)
		if err != nil {
			return err
		}
		if cut {
			more, err := fo.truncated(i)
			if err != nil {
				return err
			}
			if more {
				i--
			}
			continue
		}
		if !giveUp || s.readOffset() != from {
			continue
		}
		if len(s.part) > 0 { // the end of a file that nobody will finish
			size := int64(len(s.part)) + s.skip
			if err := fo.add(ctx, s, s.part, size); err != nil {
				return err
			}
		}
		fo.leave(s)
		if fo.opts.left != nil && len(s.head) > 0 {
			fo.opts.left(s.position())
		}
		s.close()
		fo.srcs = append(fo.srcs[:i], fo.srcs[i+1:]...)
		fo.news = true
		i--
	}
	return nil
}

// leave remembers where the reading of a rotated file ended.
func (fo *follower) leave(s *source) {
	if len(s.head) == 0 {
		return
	}
	if len(fo.left) == maxRotated {
		fo.left = append(fo.left[:0], fo.left[1:]...)
	}
	fo.left = append(fo.left, s.position())
}

// leaveOld remembers how long the rotated files are that are not read at the start. Should one be written to after that, it is not
// to be read from its start.
func (fo *follower) leaveOld() {
	list := pick(listRotated(placesOf(fo.path), false), time.Time{}, fo.inos(), func(r rotated) bool { return r.size > 0 })
	for _, r := range list[max(0, len(list)-maxRotated):] {
		s, err := newSource(r.path)
		if err != nil {
			continue
		}
		if s.ino == r.ino && !fo.copyOfAny(s, nil) && s.toLastLine(r.size) == nil {
			fo.leave(s)
		}
		s.close()
	}
}

// readOn moves s to where its reading, or that of what it is a copy of, ended before.
func (fo *follower) readOn(s *source) {
	for _, p := range fo.left {
		if s.isCopy(p) {
			s.pos = max(s.pos, p.Offset)
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// truncated deals with file i having been cut. more tells that there is something to read at index i.
func (fo *follower) truncated(i int) (more bool, err error) {
	s := fo.srcs[i]
	fo.news = true
	if i < len(fo.srcs)-1 { // rotated away and then emptied: its time is over
		fo.leave(s)
		s.close()
		fo.srcs = append(fo.srcs[:i], fo.srcs[i+1:]...)
		return true, nil
	}
	fo.log.Info("the log file was truncated; reading it from its start", "input", fo.id)
	used := map[uint64]bool{}
	for _, o := range fo.srcs {
		used[o.ino] = true
	}
	p := s.position()
	s.close()
	fo.srcs = fo.srcs[:i]
	fo.pause()
	if rest := findCopy(placesOf(fo.path), p, used); rest != nil {
		rest.pos, rest.moved = p.Offset, time.Unix(0, 0) // nobody writes to a copy
		fo.srcs = append(fo.srcs, rest)
	} else if i == 0 {
		fo.since = fo.before
		if fo.seen.Before(fo.since) {
			fo.since = fo.seen
		}
	}
	return len(fo.srcs) > i, nil // look opens the rest
}

// drain reads s up to the size it has now. truncated tells that s has to go back to its start.
func (fo *follower) drain(ctx context.Context, s *source) (truncated bool, err error) {
	defer func() {
		if err == nil {
			s.ended = true
		}
	}()
	limit := int64(-1)
	for {
		fo.pause()
		n, err := s.f.ReadAt(fo.chunk, s.readOffset())
		if err != nil && err != io.EOF {
			return false, fmt.Errorf("read %s: %w", fo.path, err)
		}
		state, size, err := s.check(n)
		if err != nil {
			return false, fmt.Errorf("read %s: %w", fo.path, err)
		}
		if state == another {
			return true, nil
		}
		if limit < 0 {
			limit = size
		}
		if n > 0 && s.ended && !s.moved.IsZero() && len(fo.srcs) < 16 {
			s.grew = time.Now()
		}
		if err := fo.feed(ctx, s, fo.chunk[:n]); err != nil {
			return false, err
		}
		if state == shrunk {
			return true, nil
		}
		if n == 0 || s.readOffset() >= limit {
			return false, nil
		}
	}
}

// feed takes the lines off b, which was read at the end of what s had.
func (fo *follower) feed(ctx context.Context, s *source, b []byte) error {
	for len(b) > 0 {
		before := s.pos
		b = s.skipNULs(b)
		if s.pos != before {
			fo.news = true
			if len(b) == 0 {
				return nil
			}
		}
		line, rest, size, ok := s.next(b)
		if !ok {
			return nil
		}
		if err := fo.add(ctx, s, line, size); err != nil {
			return err
		}
		b = rest
	}
	return nil
}

// add puts a line into the batch, and moves s behind it; the batch is handed over first if it is full.
func (fo *follower) add(ctx context.Context, s *source, line []byte, size int64) error {
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	if !fo.room(len(line)) {
		if err := fo.flush(ctx, false); err != nil {
			return err
		}
	}
	if fo.pace != nil {
		if t, ok := fo.pace.when(line); ok {
			if len(fo.ends) > 0 && t.Sub(fo.first) > paceSlack {
				if err := fo.flush(ctx, false); err != nil {
					return err
				}
			}
			if len(fo.ends) == 0 {
				fo.first = t
			}
		}
	}
	fo.gather.add(line)
	fo.dropped += fo.watch.line(line, time.Now())
	if s.done(size) {
		fo.truncs++
	}
	fo.news = true
	return nil
}

// flush hands over what was gathered, with the places reached. end tells that the end of the input was reached.
func (fo *follower) flush(ctx context.Context, end bool) error {
	now := time.Now()
	m := mark{Time: fo.seen.UnixMicro()}
	if len(fo.srcs) == 0 {
		m.Time = fo.since.UnixMicro()
	}
	lag := int64(0)
	for _, s := range fo.srcs {
		m.Files = append(m.Files, s.position())
		if fi, err := s.f.Stat(); err == nil {
			lag += max(0, fi.Size()-s.pos)
			s.size = fi.Size()
		}
	}
	size := int64(len(fo.buf))
	lines := fo.take()
	if fo.nothing() || (len(lines) == 0 && !fo.news && (fo.caughtUp || !end)) {
		if end {
			fo.ownPace()
		}
		fo.publish(0, lag, end)
		return nil
	}
	fo.publish(0, lag+size, end) // the consumer may take its time
	b := Batch{Input: fo.id, Lines: lines, Mark: m.encode(), CaughtUp: end, Read: now}
	if fo.pace != nil {
		if err := fo.pace.wait(ctx, fo.id, fo.first); err != nil {
			return err
		}
	}
	select {
	case fo.out <- b:
		fo.caughtUp, fo.news = end, false
		if end {
			fo.ownPace()
		}
		fo.publish(len(lines), lag, end)
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// nothing tells that there is neither a file being read nor an empty one at the path.
func (fo *follower) nothing() bool {
	return len(fo.srcs) == 0 && (fo.since.IsZero() || fo.absent)
}

// publish brings Status up to date: lines were handed over, lag bytes are left.
func (fo *follower) publish(lines int, lag int64, end bool) {
	fo.board.update(func(s *Status) {
		s.Lag = lag
		s.Lines += uint64(lines)
		s.Truncated += fo.truncs
		s.Suppressed += fo.dropped
		fo.truncs, fo.dropped = 0, 0
		if lines > 0 {
			s.LastLine = time.Now()
		}
		switch {
		case fo.nothing():
		case end:
			s.State, s.Detail = Following, ""
			if n := len(fo.srcs) - 1; n > 0 {
				s.Detail = fmt.Sprintf("finishing %d rotated files", n)
			}
		default:
			s.State, s.Detail = Reading, ""
		}
	})
	fo.file.mu.Lock()
	defer fo.file.mu.Unlock()
	if n := len(fo.srcs); n > 0 {
		fo.file.ino, fo.file.size = fo.srcs[n-1].ino, fo.srcs[n-1].size
	}
}

// dirWatch wakes the follower when something happens to the log or beside it. It is only a wake-up: everything also works
// without it, at the pace of the poll.
type dirWatch struct {
	path string
	log  *slog.Logger
	fs   *fsnotify.Watcher // nil: the kernel gave none
	dirs map[string]uint64 // watched directories and their inodes
	base []string
}

func newWatch(path string, log *slog.Logger) *dirWatch {
	w := &dirWatch{path: path, log: log, dirs: map[string]uint64{}}
	var err error
	if w.fs, err = fsnotify.NewWatcher(); err != nil {
		log.Warn("cannot watch the log directory; looking at intervals", "path", path, "error", err,
			"hint", "raise fs.inotify.max_user_instances")
	}
	return w
}

func (w *dirWatch) close() {
	if w.fs != nil {
		w.fs.Close()
	}
}

// update sees to it that the directories as they are now are watched.
func (w *dirWatch) update() {
	if w.fs == nil {
		return
	}
	w.base = w.base[:0]
	want := map[string]bool{}
	for _, p := range placesOf(w.path) {
		w.base = append(w.base, p.base)
		want[p.dir] = true
		fi, err := os.Stat(p.dir)
		if err != nil {
			continue
		}
		ino := fi.Sys().(*syscall.Stat_t).Ino
		if w.dirs[p.dir] == ino {
			continue
		}
		w.fs.Remove(p.dir)
		if err := w.fs.Add(p.dir); err != nil {
			w.log.Warn("cannot watch the log directory; looking at intervals", "path", p.dir, "error", err,
				"hint", "raise fs.inotify.max_user_watches")
		}
		w.dirs[p.dir] = ino // also after a failure: one warning is enough
	}
	for dir := range w.dirs {
		if !want[dir] {
			w.fs.Remove(dir)
			delete(w.dirs, dir)
		}
	}
}

// wait returns when something happened, but not before notBefore; at the latest after poll.
func (w *dirWatch) wait(ctx context.Context, notBefore time.Time, poll time.Duration) {
	var events chan fsnotify.Event
	var errs chan error
	if w.fs != nil {
		events, errs = w.fs.Events, w.fs.Errors
	} else {
		poll = min(poll, 200*time.Millisecond)
	}
	timer := time.NewTimer(poll)
	defer timer.Stop()
	woken := false
	wake := func() {
		if !woken {
			woken = true
			timer.Reset(max(0, time.Until(notBefore)))
		}
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case ev, ok := <-events:
			if !ok {
				events = nil
			} else if w.concerns(ev.Name) {
				wake()
			}
		case _, ok := <-errs: // an overflow, above all
			if !ok {
				errs = nil
			} else {
				wake()
			}
		}
	}
}

func (w *dirWatch) concerns(name string) bool {
	if _, isDir := w.dirs[name]; isDir {
		return true
	}
	name = filepath.Base(name)
	for _, base := range w.base {
		if strings.HasPrefix(name, base) {
			return true
		}
	}
	return false
}
