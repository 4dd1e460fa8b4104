package tail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// GlobOptions changes how a glob of files is followed. Zero values mean the defaults.
type GlobOptions struct {
	File   FileOptions                     // of each file; Back is shared by those that are there at the start
	Marks  map[string][]byte               // committed marks by ID, those of other inputs too
	Scan   time.Duration                   // between looks for new files; default 500 ms
	Forget time.Duration                   // a file whose path is gone and to which nothing was added for so long is forgotten; default 5 min
	Max    int                             // files followed at once; default 64
	Log    *slog.Logger                    // default: none
	input  func(string, FileOptions) Input // tests
}

// Glob follows all files that a pattern (of path/filepath.Match) matches, and those that come to match. Each is followed
// as a File, under its own ID and with its own mark, so that a file keeps its place when the config comes to name it in
// another way.
//
// Rotated files are not read by themselves, though the pattern may match them: compressed ones, and those named as
// rotated logs are (mail.log.1, mail.log-20260131, mail-20260131.log) if there is a file with the name without that part, or one
// is followed. What such a file holds is read as part of the log that it was. A file that was renamed to another name that
// matches is known by its inode: it is read on from where it was left, not from its start, unless the agent was killed
// within moments of the renaming.
//
// A symbolic link to a file that matches too is left to that one. A file that is gone is forgotten, with its mark, after Forget.
// If more than Max files match, those are followed that were written to last, and Status says so.
type Glob struct {
	pattern string
	opts    GlobOptions

	mu    sync.Mutex
	board Status // of the glob itself
	parts map[string]*part
}

// part is one file that is followed.
type part struct {
	path   string
	in     Input
	cancel context.CancelFunc
	done   chan error
	inos   []uint64 // files being read, by the last mark, and at first the one at the path
	mark   []byte   // last handed over
	caught bool     // its end was reached once
	gone   time.Time
}

// NewGlob returns the input for an absolute pattern.
func NewGlob(pattern string, opts GlobOptions) *Glob {
	if opts.Scan <= 0 {
		opts.Scan = 500 * time.Millisecond
	}
	if opts.Forget <= 0 {
		opts.Forget = 5 * time.Minute
	}
	if opts.Max <= 0 {
		opts.Max = 64
	}
	if opts.File.Back <= 0 {
		opts.File.Back = 256 << 20
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	opts.File.Log = opts.Log
	if opts.input == nil {
		opts.input = func(path string, o FileOptions) Input { return NewFile(path, o) }
	}
	g := &Glob{pattern: filepath.Clean(pattern), opts: opts, parts: map[string]*part{}}
	g.board = Status{Input: g.ID(), State: Stopped}
	return g
}

// IsGlob tells whether a path is a pattern.
func IsGlob(path string) bool { return strings.ContainsAny(path, "*?[") }

// ID is "file:" and the pattern.
func (g *Glob) ID() string { return "file:" + g.pattern }

// Status is that of all files together: lags and counts added up, and the worst state. Parts has them one by one.
func (g *Glob) Status() Status {
	g.mu.Lock()
	s := g.board
	g.mu.Unlock()
	for _, p := range g.Parts() {
		s.Lag += p.Lag
		s.Lines += p.Lines
		s.Truncated += p.Truncated
		s.Suppressed += p.Suppressed
		s.LastLine = later(s.LastLine, p.LastLine)
		if p.State == Failed || p.State == Reading && s.State == Following {
			s.State = p.State
		}
		if p.LastError != "" {
			s.LastError = p.LastError
		}
	}
	return s
}

// Parts returns the status of each file, in the order of their names.
func (g *Glob) Parts() []Status {
	g.mu.Lock()
	list := make([]*part, 0, len(g.parts))
	for _, p := range g.parts {
		list = append(list, p)
	}
	g.mu.Unlock()
	slices.SortFunc(list, func(a, b *part) int { return strings.Compare(a.path, b.path) })
	out := make([]Status, len(list))
	for i, p := range list {
		out[i] = p.in.Status()
	}
	return out
}

// Run implements Input. The batches are those of the files, with Of set; the glob's own ID has one, without lines, when
// the ends of all files that were there have been reached.
func (g *Glob) Run(ctx context.Context, _ []byte, out chan<- Batch) error {
	if _, err := filepath.Match(g.pattern, ""); err != nil || !filepath.IsAbs(g.pattern) {
		err := withHint("for example /var/log/exim4/*log", "follow %.200q: not an absolute pattern", g.pattern)
		g.set(func(s *Status) { s.State, s.LastError = Failed, describe(err) })
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	w := &globber{g: g, opts: &g.opts, ctx: ctx, batches: make(chan Batch), lefts: make(chan position, 16), left: map[uint64]position{}, marks: maps.Clone(g.opts.Marks), rests: map[string]bool{}, first: true}
	if w.marks == nil {
		w.marks = map[string][]byte{}
	}
	defer func() {
		stop()
		for _, p := range w.parts() {
			<-p.done
		}
		g.set(func(s *Status) { s.State, s.Detail = Stopped, "" })
	}()
	tick := time.NewTicker(g.opts.Scan)
	defer tick.Stop()
	if !w.scan(out) {
		return nil
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case b := <-w.batches:
			if !w.pass(b, out) {
				return nil
			}
		case pos := <-w.lefts:
			w.leave(pos)
		case <-tick.C:
			if !w.scan(out) {
				return nil
			}
		}
	}
}

func (g *Glob) set(fn func(*Status)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fn(&g.board)
}

// globber is the state of one Run.
type globber struct {
	g        *Glob
	opts     *GlobOptions
	ctx      context.Context
	batches  chan Batch
	lefts    chan position
	left     map[uint64]position // files that were read to where, by inode; nobody reads them now
	marks    map[string][]byte   // of the start, until they are used
	rests    map[string]bool     // IDs of files that there is no room for; their marks are kept while the file is there
	first    bool
	caughtUp bool
	told     bool // that there are too many
}

// maxLeft bounds how many such files are remembered.
const maxLeft = 1024

func (w *globber) leave(p position) {
	if len(w.left) >= maxLeft {
		for ino := range w.left { // any
			delete(w.left, ino)
			break
		}
	}
	w.left[p.Ino] = p
}

// leaveAll takes in what parts said before their last batches: what a batch says is no more read must be known to be left.
func (w *globber) leaveAll() {
	for {
		select {
		case p := <-w.lefts:
			w.leave(p)
		default:
			return
		}
	}
}

func (w *globber) parts() []*part {
	w.g.mu.Lock()
	defer w.g.mu.Unlock()
	out := make([]*part, 0, len(w.g.parts))
	for _, p := range w.g.parts {
		out = append(out, p)
	}
	return out
}

// pass hands a file's batch on. It returns false when ctx is done.
func (w *globber) pass(b Batch, out chan<- Batch) bool {
	w.g.mu.Lock()
	p := w.g.parts[strings.TrimPrefix(b.Input, "file:")]
	w.g.mu.Unlock()
	if p == nil {
		return true // cannot be: it was waited for when it was forgotten
	}
	p.mark = b.Mark
	p.caught = p.caught || b.CaughtUp
	if m, err := decodeMark(b.Mark); err == nil {
		p.inos = p.inos[:0]
		for _, f := range m.Files {
			p.inos = append(p.inos, f.Ino)
		}
	}
	b.Of = w.g.ID()
	return w.send(b, out) && w.catchUp(out)
}

func (w *globber) send(b Batch, out chan<- Batch) bool {
	select {
	case out <- b:
		return true
	case <-w.ctx.Done():
		return false
	}
}

// catchUp says once that all files were read to their ends, or cannot be read.
func (w *globber) catchUp(out chan<- Batch) bool {
	if w.caughtUp {
		return true
	}
	for _, p := range w.parts() {
		if st := p.in.Status().State; !p.caught && st != Failed && st != Waiting {
			return true
		}
	}
	w.caughtUp = true
	now := time.Now()
	return w.send(Batch{Input: w.g.ID(), Of: w.g.ID(), Mark: mark{Time: now.UnixMicro()}.encode(), CaughtUp: true, Read: now}, out)
}

// match is a file that the pattern matches.
type match struct {
	path  string
	ino   uint64
	mtime time.Time
}

// scan looks for files that came and went. It returns false when ctx is done.
func (w *globber) scan(out chan<- Batch) bool {
	paths, err := filepath.Glob(w.g.pattern)
	if err != nil {
		return true // the pattern was checked
	}
	w.leaveAll()
	for id := range w.rests {
		if slices.Contains(paths, strings.TrimPrefix(id, "file:")) {
			continue
		}
		known := w.marks[id] != nil
		delete(w.rests, id)
		delete(w.marks, id)
		if known && !w.send(Batch{Input: id, Of: w.g.ID(), Read: time.Now()}, out) {
			return false
		}
	}
	now := time.Now()
	for _, p := range w.parts() {
		select {
		case err := <-p.done: // it is no file any more, or never was
			p.done <- err
			w.drop(p)
			continue
		default:
		}
		if slices.Contains(paths, p.path) {
			p.gone = time.Time{}
			// What another log was rotated to: it came to be seen before that one.
			if st := p.in.Status(); st.State == Following && st.Lag == 0 && w.rotated(p.path) && !w.forget(p, out) {
				return false
			}
			continue
		}
		if p.gone.IsZero() {
			p.gone = now
		}
		if now.Sub(later(p.gone, p.in.Status().LastLine)) >= w.opts.Forget {
			if !w.forget(p, out) {
				return false
			}
		}
	}
	ignored := 0
	var found []match
	names := map[uint64]bool{} // inodes of files that are followed by a name which is no link
	links := map[string]bool{}
	for _, path := range paths {
		fi, err := os.Lstat(path)
		switch {
		case err != nil:
		case fi.Mode()&fs.ModeSymlink != 0:
			links[path] = true
		case fi.Mode().IsRegular() && !w.rotated(path):
			names[fi.Sys().(*syscall.Stat_t).Ino] = true
		}
	}
	for _, path := range paths {
		if w.g.followed(path) {
			continue
		}
		if w.rotated(path) {
			ignored++
			continue
		}
		fi, err := os.Stat(path)
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		ino := fi.Sys().(*syscall.Stat_t).Ino
		if links[path] && names[ino] { // it may come to lead to another that matches
			continue
		}
		found = append(found, match{path, ino, fi.ModTime()})
	}
	if w.first { // rotated away while nobody looked, and with nothing at the path yet
		for id := range w.marks {
			if path := w.pathOf(id); path != "" && !slices.Contains(paths, path) && !w.rotated(path) {
				found = append(found, match{path: path, mtime: now})
			}
		}
	}
	// Those that were written to last, if there are too many.
	slices.SortStableFunc(found, func(a, b match) int { return b.mtime.Compare(a.mtime) })
	tooMany := max(0, len(found)+len(w.parts())-w.opts.Max)
	if tooMany > 0 {
		all := found
		if found, err = w.makeRoom(all, out); err != nil {
			return false
		}
		for _, m := range all[len(found):] {
			w.rests["file:"+m.path] = true
		}
		if !w.told {
			w.opts.Log.Warn("more files match than can be followed", "input", w.g.ID(), "left_out", tooMany, "limit", w.opts.Max,
				"hint", "narrow the pattern, or name several")
			w.told = true
		}
	}
	slices.SortStableFunc(found, func(a, b match) int { return strings.Compare(a.path, b.path) })
	back := w.opts.File.Back
	if w.first && len(found) > 1 {
		back = max(back/int64(len(found)), 16<<20)
	}
	for _, m := range found {
		w.begin(m, back)
	}
	w.first = false
	n := len(w.parts())
	w.g.set(func(s *Status) {
		s.State, s.Detail = Following, fmt.Sprintf("%d files", n)
		if n == 0 {
			s.State, s.Detail = Waiting, "waiting for a file that matches"
		}
		if ignored > 0 {
			s.Detail += fmt.Sprintf("; %d rotated ones that match are left out", ignored)
		}
		s.LastError = ""
		if tooMany > 0 {
			s.LastError = fmt.Sprintf("%d more files match than the %d that can be followed (narrow the pattern, or name several)", tooMany, w.opts.Max)
		}
	})
	return w.catchUp(out)
}

func (g *Glob) followed(path string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.parts[path] != nil
}

// rotated tells whether a file is what a log was rotated to: the name without the part that says so is another log.
func (w *globber) rotated(path string) bool {
	if compressed(path) {
		return true
	}
	dir, name := filepath.Split(path)
	return slices.ContainsFunc(rotatedBases(name), func(base string) bool {
		base = dir + base
		if w.g.followed(base) || w.marks["file:"+base] != nil {
			return true
		}
		fi, err := os.Stat(base)
		return err == nil && fi.Mode().IsRegular()
	})
}

// pathOf returns the path of a file's ID if the pattern matches it, else "".
func (w *globber) pathOf(id string) string {
	path, ok := strings.CutPrefix(id, "file:")
	if !ok || IsGlob(path) {
		return ""
	}
	if ok, _ = filepath.Match(w.g.pattern, path); !ok {
		return ""
	}
	return path
}

// rotatedBases returns the names that a rotated log may have had: mail.log for mail.log.1, mail.log-20260131,
// mail.1.log and mail-20260131.log.
func rotatedBases(name string) (out []string) {
	add := func(stem, ext string) {
		for i := 1; i < len(stem); i++ {
			if rotatedSuffix(stem, stem[:i]) != "" {
				out = append(out, stem[:i]+ext)
			}
		}
	}
	add(name, "")
	if ext := filepath.Ext(name); ext != "" && strings.Trim(ext, ".0123456789") != "" {
		add(strings.TrimSuffix(name, ext), ext) // logrotate's "extension"
	}
	return out
}

// makeRoom returns those of found, which is sorted, that can be followed. For what was written to later than a file that was read
// to its end, that one is let go; its mark is kept.
func (w *globber) makeRoom(found []match, out chan<- Batch) ([]match, error) {
	idle := map[*part]time.Time{}
	for _, p := range w.parts() {
		if fi, err := os.Stat(p.path); err == nil {
			if st := p.in.Status(); st.State == Following && st.Lag == 0 && st.Detail == "" && p.mark != nil {
				idle[p] = fi.ModTime()
			}
		}
	}
	for i, m := range found {
		if len(w.parts())+i < w.opts.Max {
			continue
		}
		var oldest *part
		for p, t := range idle {
			if oldest == nil || t.Before(idle[oldest]) {
				oldest = p
			}
		}
		if oldest == nil || !idle[oldest].Before(m.mtime) {
			return found[:i], nil
		}
		delete(idle, oldest)
		if !w.end(oldest, out) {
			return nil, w.ctx.Err()
		}
		w.marks[oldest.in.ID()], w.rests[oldest.in.ID()] = oldest.mark, true
	}
	return found, nil
}

// begin follows a file, unless it is being read under another name.
func (w *globber) begin(m match, back int64) {
	id := "file:" + m.path
	mark := w.marks[id]
	if mark == nil && m.ino != 0 {
		for _, p := range w.parts() {
			if slices.Contains(p.inos, m.ino) {
				return
			}
			if ino, err := inodeAt(p.path); err == nil && ino == m.ino { // a link that leads there since a moment ago
				return
			}
		}
		if w.first && w.knownElsewhere(m) {
			return // whoever has the mark finishes it first
		}
		mark = w.leftAt(m)
	}
	delete(w.marks, id)
	delete(w.rests, id)
	o := w.opts.File
	o.Back = back
	ctx, cancel := context.WithCancel(w.ctx)
	o.left = func(p position) {
		select {
		case w.lefts <- p:
		case <-ctx.Done():
		}
	}
	p := &part{path: m.path, in: w.opts.input(m.path, o), cancel: cancel, done: make(chan error, 1), mark: mark}
	if m.ino != 0 {
		p.inos = append(p.inos, m.ino)
	}
	if old, err := decodeMark(mark); err == nil {
		for _, f := range old.Files {
			p.inos = append(p.inos, f.Ino)
		}
	}
	w.g.mu.Lock()
	w.g.parts[m.path] = p
	w.g.mu.Unlock()
	w.opts.Log.Info("following", "input", id, "of", w.g.ID())
	go func() { p.done <- p.in.Run(ctx, mark, w.batches) }()
}

func inodeAt(path string) (uint64, error) {
	var st syscall.Stat_t
	err := syscall.Stat(path, &st)
	return st.Ino, err
}

// knownElsewhere tells whether a mark of another file of the pattern has a place in this one.
func (w *globber) knownElsewhere(m match) bool {
	for id, b := range w.marks {
		if path := w.pathOf(id); path == "" || path == m.path {
			continue
		}
		k, err := decodeMark(b)
		if err == nil && slices.ContainsFunc(k.Files, func(p position) bool { return p.Ino == m.ino && w.is(m.path, p) }) {
			return true
		}
	}
	return false
}

// is tells whether the file at path is the one that p is a place in.
func (w *globber) is(path string, p position) bool {
	s, err := newSource(path)
	if err != nil {
		return false
	}
	defer s.close()
	return s.is(p)
}

// leftAt is the mark to go on with in a file that was read under another name; nil if it was not.
func (w *globber) leftAt(m match) []byte {
	pos, ok := w.left[m.ino]
	if !ok {
		return nil
	}
	delete(w.left, m.ino)
	if !w.is(m.path, pos) {
		return nil // the inode is another file's now
	}
	return mark{Time: time.Now().UnixMicro(), Files: []position{pos}}.encode()
}

// forget stops following a file that is gone; its mark is taken out of the store. It returns false when ctx is done.
func (w *globber) forget(p *part, out chan<- Batch) bool {
	if !w.end(p, out) {
		return false
	}
	w.opts.Log.Info("forgetting a log file that is gone", "input", p.in.ID(), "of", w.g.ID())
	return w.send(Batch{Input: p.in.ID(), Of: w.g.ID(), Read: time.Now()}, out)
}

// end stops following a file. It returns false when ctx is done.
func (w *globber) end(p *part, out chan<- Batch) bool {
	p.cancel()
	for waiting := true; waiting; { // what it was about to hand over
		select {
		case b := <-w.batches:
			if !w.pass(b, out) {
				return false
			}
		case pos := <-w.lefts:
			w.leave(pos)
		case err := <-p.done:
			p.done <- err
			waiting = false
		}
	}
	w.drop(p)
	return true
}

func (w *globber) drop(p *part) {
	p.cancel()
	if m, err := decodeMark(p.mark); err == nil {
		for _, f := range m.Files { // it may live on under another name
			w.leave(f)
		}
	}
	w.g.mu.Lock()
	delete(w.g.parts, p.path)
	w.g.mu.Unlock()
}

// Check says what would keep Run from reading now; nil if nothing. The error may have a HintText.
func (g *Glob) Check() error {
	paths, err := filepath.Glob(g.pattern)
	if err != nil {
		return err
	}
	var all []error
	n := 0
	for _, p := range paths {
		if fi, err := os.Stat(p); err != nil || !fi.Mode().IsRegular() || compressed(p) {
			continue
		}
		n++
		if err := NewFile(p, FileOptions{}).Check(); err != nil {
			all = append(all, err)
		}
	}
	if n == 0 {
		return fmt.Errorf("no file matches %s yet: %w", g.pattern, fs.ErrNotExist)
	}
	return errors.Join(all...)
}
