package tail

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// globbing is a glob that is being followed by a test, with a store of marks that outlives it.
type globbing struct {
	t      *testing.T
	g      *Glob
	out    chan Batch
	cancel context.CancelFunc
	done   chan error
	lines  map[string][]string // by base name, over all runs
	marks  map[string][]byte
	caught bool
}

func startGlob(t *testing.T, pattern string, was *globbing, change func(*GlobOptions)) *globbing {
	t.Helper()
	r := &globbing{t: t, out: make(chan Batch), done: make(chan error, 1), lines: map[string][]string{}, marks: map[string][]byte{}}
	if was != nil {
		r.lines, r.marks = was.lines, was.marks
	}
	o := GlobOptions{File: FileOptions{Linger: 50 * time.Millisecond, Poll: 10 * time.Millisecond}, Marks: r.marks, Scan: 10 * time.Millisecond}
	if change != nil {
		change(&o)
	}
	r.g = NewGlob(pattern, o)
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() { r.done <- r.g.Run(ctx, nil, r.out) }()
	t.Cleanup(r.stop)
	return r
}

func (r *globbing) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.cancel = nil
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Errorf("Run: %v", err)
		}
	case <-time.After(patience):
		r.t.Error("Run does not end")
	}
}

func (r *globbing) commit(b Batch) {
	r.t.Helper()
	if b.Of != r.g.ID() || b.Read.IsZero() {
		r.t.Fatalf("batch %+v", b)
	}
	if b.Input == r.g.ID() {
		if r.caught || len(b.Lines) > 0 || !b.CaughtUp {
			r.t.Fatalf("batch of the glob itself: %+v", b)
		}
		r.caught = true
		return
	}
	name := filepath.Base(strings.TrimPrefix(b.Input, "file:"))
	for _, l := range b.Lines {
		r.lines[name] = append(r.lines[name], string(l))
	}
	if b.Mark == nil {
		delete(r.marks, b.Input)
	} else {
		r.marks[b.Input] = b.Mark
	}
}

// until takes batches until ok.
func (r *globbing) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for !ok() {
		if time.Now().After(deadline) {
			r.t.Fatalf("never %s: %v, status %+v, %+v", what, r.lines, r.g.Status(), r.g.Parts())
		}
		select {
		case b := <-r.out:
			r.commit(b)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// want waits until there are so many lines of a file, and compares.
func (r *globbing) want(name string, want ...string) {
	r.t.Helper()
	r.until(fmt.Sprintf("%d lines of %s", len(want), name), func() bool { return len(r.lines[name]) >= len(want) })
	same(r.t, r.lines[name], want)
}

// nothingMore takes what comes for several scans and looks that no line is there twice.
func (r *globbing) nothingMore() {
	r.t.Helper()
	end := time.Now().Add(150 * time.Millisecond)
	r.until("quiet", func() bool { return time.Now().After(end) })
	var all []string
	for _, l := range r.lines {
		all = append(all, l...)
	}
	slices.Sort(all)
	for i := 1; i < len(all); i++ {
		if all[i] == all[i-1] {
			r.t.Fatalf("%q was read twice: %v", all[i], r.lines)
		}
	}
}

func TestGlob(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("mainlog"), "m1\n")
	appendTo(t, at("mainlog.1"), "old\n")
	appendTo(t, at("mainlog.2.gz"), "older\n")
	appendTo(t, at("other"), "x\n")
	must(t, os.Mkdir(at("dirlog"), 0o755))
	r := startGlob(t, at("*log*"), nil, nil)
	r.want("mainlog", "m1")
	r.until("caught up", func() bool { return r.caught })

	// A file that comes; and both are rotated.
	appendTo(t, at("rejectlog"), "r1\n")
	r.want("rejectlog", "r1")
	for _, n := range []string{"mainlog", "rejectlog"} {
		must(t, os.Rename(at(n), at(n+".1")))
		appendTo(t, at(n+".1"), n+" after the renaming\n")
	}
	r.want("mainlog", "m1", "mainlog after the renaming")
	r.nothingMore() // and nothing at the path
	appendTo(t, at("mainlog"), "m2\n")
	r.want("mainlog", "m1", "mainlog after the renaming", "m2")
	r.want("rejectlog", "r1", "rejectlog after the renaming")
	r.nothingMore()
	if p := r.g.Parts(); len(p) != 2 || p[0].Input != "file:"+at("mainlog") || r.g.Status().Lines != 5 {
		t.Errorf("%+v, %+v", p, r.g.Status())
	}
	if s := r.g.Status(); s.State != Following || !strings.Contains(s.Detail, "2 files; 3 rotated") {
		t.Errorf("status %+v", s)
	}

	// Over a restart, with a rotation and a new file meanwhile.
	r.stop()
	appendTo(t, at("mainlog"), "m3\n")
	must(t, os.Rename(at("mainlog.1"), at("mainlog.3")))
	must(t, os.Rename(at("mainlog"), at("mainlog.1")))
	appendTo(t, at("mainlog"), "m4\n")
	appendTo(t, at("newlog"), "n1\n")
	r = startGlob(t, at("*log*"), r, nil)
	r.want("mainlog", "m1", "mainlog after the renaming", "m2", "m3", "m4")
	r.want("newlog", "n1")
	r.until("caught up", func() bool { return r.caught })
	r.nothingMore()
}

// TestGlobRenamed: a file gets another name that matches and does not look like a rotated log's. It is read on, not anew,
// over a restart too.
func TestGlobRenamed(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("a.log"), "1\n2\n")
	r := startGlob(t, at("*.log"), nil, nil)
	r.want("a.log", "1", "2")
	must(t, os.Rename(at("a.log"), at("b.log")))
	appendTo(t, at("a.log"), "3\n")
	r.want("a.log", "1", "2", "3")
	appendTo(t, at("b.log"), "4\n") // of either, once
	r.until("four lines", func() bool { return len(r.lines["a.log"])+len(r.lines["b.log"]) == 4 })
	r.until("followed under its new name", func() bool { return r.marks["file:"+at("b.log")] != nil })
	appendTo(t, at("b.log"), "5\n")
	r.until("five lines", func() bool { return len(r.lines["a.log"])+len(r.lines["b.log"]) == 5 })
	r.nothingMore()
	r.stop()
	must(t, os.Rename(at("b.log"), at("c.log"))) // nobody looks, and nothing is at the path
	appendTo(t, at("c.log"), "6\n")
	r = startGlob(t, at("*.log"), r, func(o *GlobOptions) { o.Forget = 100 * time.Millisecond })
	r.until("six lines", func() bool { return len(r.lines["a.log"])+len(r.lines["b.log"])+len(r.lines["c.log"]) == 6 })
	r.until("followed under its newest name", func() bool { return r.marks["file:"+at("c.log")] != nil })
	appendTo(t, at("c.log"), "7\n")
	r.until("the seventh line", func() bool { return len(r.lines["c.log"]) > 0 })
	r.nothingMore()
	if r.marks["file:"+at("b.log")] != nil {
		t.Error("the mark of what is gone is still there")
	}
}

// TestGlobSymlink: the same file under two names that match is read once.
func TestGlobSymlink(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("today.log"), "1\n")
	must(t, os.Symlink("today.log", at("current.log")))
	r := startGlob(t, at("*.log"), nil, nil)
	r.until("read", func() bool { return len(r.lines) > 0 })
	appendTo(t, at("today.log"), "2\n")
	r.until("both", func() bool { return len(r.lines["current.log"])+len(r.lines["today.log"]) == 2 })
	r.nothingMore()
}

func TestGlobForgets(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("a.log"), "1\n")
	r := startGlob(t, at("*.log"), nil, func(o *GlobOptions) { o.Forget = 50 * time.Millisecond })
	r.want("a.log", "1")
	must(t, os.Remove(at("a.log")))
	r.until("forgotten", func() bool { return len(r.g.Parts()) == 0 && len(r.marks) == 0 })
	if s := r.g.Status(); s.State != Waiting {
		t.Errorf("status %+v", s)
	}
	appendTo(t, at("a.log"), "2\n")
	r.want("a.log", "1", "2")
}

func TestGlobMany(t *testing.T) {
	dir := t.TempDir()
	base := time.Now().Add(-time.Hour)
	for i := range 10 {
		p := filepath.Join(dir, fmt.Sprintf("%d.log", i))
		appendTo(t, p, "x\n")
		must(t, os.Chtimes(p, base, base.Add(time.Duration(i)*time.Minute)))
	}
	r := startGlob(t, filepath.Join(dir, "*.log"), nil, func(o *GlobOptions) { o.Max = 3 })
	r.until("read", func() bool { return len(r.lines) == 3 })
	for _, n := range []string{"7.log", "8.log", "9.log"} {
		r.want(n, "x")
	}
	if s := r.g.Status(); !strings.Contains(s.LastError, "7 more files") || !strings.Contains(s.LastError, "narrow") {
		t.Errorf("status %+v", s)
	}
}

// TestGlobMakesRoom: with as many followed as may be, a file that comes takes the place of the one that was quiet for longest.
// That one is read on when it is written to again, over a restart too.
func TestGlobMakesRoom(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for i, n := range []string{"a.log", "b.log"} {
		appendTo(t, at(n), n+" 1\n")
		changedAt(t, at(n), time.Now().Add(-time.Hour+time.Duration(i)*time.Minute))
	}
	two := func(o *GlobOptions) { o.Max = 2 }
	r := startGlob(t, at("*.log"), nil, two)
	r.want("a.log", "a.log 1")
	r.want("b.log", "b.log 1")
	appendTo(t, at("c.log"), "c.log 1\n")
	r.want("c.log", "c.log 1")
	r.until("a.log let go", func() bool {
		p := r.g.Parts()
		return len(p) == 2 && p[0].Input == "file:"+at("b.log") && r.marks["file:"+at("a.log")] != nil
	})
	appendTo(t, at("a.log"), "a.log 2\n")
	r.want("a.log", "a.log 1", "a.log 2")
	r.stop()
	appendTo(t, at("b.log"), "b.log 2\n")
	r = startGlob(t, at("*.log"), r, two)
	r.want("b.log", "b.log 1", "b.log 2")
	r.nothingMore()
	// What goes while there is no room for it leaves no mark.
	if parts := r.g.Parts(); len(parts) != 2 || len(r.marks) != 3 {
		t.Fatalf("%+v, marks of %d", parts, len(r.marks))
	}
	resting := ""
	for id := range r.marks {
		if !slices.ContainsFunc(r.g.Parts(), func(s Status) bool { return s.Input == id }) {
			resting = id
		}
	}
	must(t, os.Remove(strings.TrimPrefix(resting, "file:")))
	r.until("its mark gone", func() bool { return r.marks[resting] == nil })
	for _, n := range []string{"a.log", "b.log", "c.log"} {
		os.Remove(at(n))
	}
	r.stop()
	r = startGlob(t, at("*.log"), r, func(o *GlobOptions) { o.Forget = 50 * time.Millisecond })
	r.until("all forgotten", func() bool { return len(r.marks) == 0 })
}

// TestGlobSymlinkSwitched: a link that matches leads from one day's file to the next one's, which matches too and was there for a
// while.
func TestGlobSymlinkSwitched(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Symlink("day1.log", at("current.log")))
	appendTo(t, at("day1.log"), "1\n")
	r := startGlob(t, at("*.log"), nil, nil)
	r.want("day1.log", "1")
	appendTo(t, at("day2.log"), "2\n")
	r.want("day2.log", "2")
	must(t, os.Remove(at("current.log")))
	must(t, os.Symlink("day2.log", at("current.log")))
	appendTo(t, at("day2.log"), "3\n")
	appendTo(t, at("day1.log"), "late\n")
	r.want("day2.log", "2", "3")
	r.want("day1.log", "1", "late")
	r.nothingMore()
	if p := r.g.Parts(); len(p) != 2 {
		t.Errorf("%+v", p)
	}
	// A link outside of the pattern's names is a log as any other.
	must(t, os.Mkdir(at("else"), 0o755))
	appendTo(t, at("else/where"), "4\n")
	must(t, os.Symlink("else/where", at("linked.log")))
	r.want("linked.log", "4")
	// Also when it comes to lead to one that matches and that nobody has seen yet.
	must(t, os.Remove(at("linked.log")))
	must(t, os.Symlink("new.log", at("linked.log")))
	appendTo(t, at("new.log"), "5\n")
	r.until("the fifth line", func() bool { return len(r.lines["linked.log"])+len(r.lines["new.log"]) == 2 })
	r.nothingMore()
	// And one to what is named as a rotated log is.
	appendTo(t, at("dated.log-20260131"), "6\n")
	must(t, os.Symlink("dated.log-20260131", at("dated.log")))
	r.stop()
	r = startGlob(t, at("dated.log*"), r, nil)
	r.want("dated.log", "6")
}

// globberAt is a globber whose scans are called by hand, and whose files say nothing.
func globberAt(t *testing.T, pattern string) *globber {
	g := NewGlob(pattern, GlobOptions{input: func(path string, o FileOptions) Input { return idleInput("file:" + path) }})
	return &globber{g: g, opts: &g.opts, ctx: t.Context(), batches: make(chan Batch), lefts: make(chan position, 16),
		left: map[uint64]position{}, marks: map[string][]byte{}, rests: map[string]bool{}}
}

// TestGlobLinkSwitchedNow: a link that is followed leads to a new file since a moment ago, and has not been seen to.
func TestGlobLinkSwitchedNow(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("elsewhere"), "1\n")
	must(t, os.Symlink("elsewhere", at("linked.log")))
	w, out := globberAt(t, at("*.log")), make(chan Batch, 1)
	w.scan(out)
	must(t, os.Remove(at("linked.log")))
	must(t, os.Symlink("new.log", at("linked.log")))
	appendTo(t, at("new.log"), "2\n")
	w.scan(out)
	if p := w.parts(); len(p) != 1 || p[0].path != at("linked.log") {
		t.Errorf("%d files are followed, %s", len(p), p[0].path)
	}
}

// TestGlobLeftBeforeBatch: where the reading of a file ended is known by the time that a batch says it is read no more, though both
// come by ways of their own.
func TestGlobLeftBeforeBatch(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	appendTo(t, at("b.log"), "1\n")
	w := globberAt(t, at("*.log"))
	s, err := newSource(at("b.log"))
	must(t, err)
	s.pos = 2
	w.lefts <- s.position()
	s.close()
	if !w.scan(make(chan Batch, 1)) {
		t.Fatal("ended")
	}
	if m, err := decodeMark(w.parts()[0].mark); err != nil || len(m.Files) != 1 || m.Files[0].Offset != 2 {
		t.Errorf("mark %s, %v", w.parts()[0].mark, err)
	}
}

// idleInput says nothing.
type idleInput string

func (i idleInput) ID() string     { return string(i) }
func (i idleInput) Status() Status { return Status{Input: string(i), State: Following} }
func (i idleInput) Run(ctx context.Context, _ []byte, _ chan<- Batch) error {
	<-ctx.Done()
	return nil
}

func TestGlobNone(t *testing.T) {
	dir := t.TempDir()
	r := startGlob(t, filepath.Join(dir, "*", "log"), nil, nil)
	r.until("caught up", func() bool { return r.caught })
	if s := r.g.Status(); s.State != Waiting || !strings.Contains(s.Detail, "waiting") {
		t.Errorf("status %+v", s)
	}
	must(t, os.Mkdir(filepath.Join(dir, "mx1"), 0o755))
	appendTo(t, filepath.Join(dir, "mx1", "log"), "1\n")
	r.want("log", "1")
	for _, p := range []string{"relative*", "/a["} {
		if err := NewGlob(p, GlobOptions{}).Run(context.Background(), nil, nil); err == nil {
			t.Errorf("%s: no error", p)
		}
	}
}

func TestRotatedBases(t *testing.T) {
	for name, want := range map[string]string{
		"mail.log.1": "mail.log", "mail.log-20260131": "mail.log", "mail-20260131.log": "mail.log", "mail.1.log": "mail.log", "mail.log.old": "mail.log",
		"mail.log": "", "mainlog": "", "mail.log.offset": "", "x-y.log": "",
	} {
		got := rotatedBases(name)
		if want == "" && len(got) > 0 || want != "" && !slices.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestGlobCrashes: two logs are written and rotated, the reader is stopped again and again with batches in hand that are
// not committed. Each line is read once.
func TestGlobCrashes(t *testing.T) {
	seed := seeds.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	logs := []*writer{{path: filepath.Join(dir, "a.log")}, {path: filepath.Join(dir, "b.log")}}
	for _, w := range logs {
		must(t, w.write(1))
	}
	r := startGlob(t, filepath.Join(dir, "*.log"), nil, nil)
	r.until("begun", func() bool { return len(r.marks) == 2 && len(r.lines) == 2 })
	for range 60 {
		for range rnd.IntN(20) {
			w := logs[rnd.IntN(2)]
			must(t, w.write(1+rnd.IntN(20)))
			switch rnd.IntN(40) {
			case 0:
				must(t, w.rotate())
			case 1: // and nothing at the path until the next line
				must(t, w.rotate())
				must(t, w.f.Close())
				must(t, os.Remove(w.path))
				w.f = nil
			}
			if rnd.IntN(3) == 0 {
				select {
				case b := <-r.out:
					r.commit(b)
				case <-time.After(time.Duration(rnd.IntN(20)) * time.Millisecond):
				}
			}
		}
		r.stop()
		for range rnd.IntN(3) {
			w := logs[rnd.IntN(2)]
			must(t, w.write(1))
			if rnd.IntN(4) == 0 {
				must(t, w.rotate())
				must(t, w.f.Close())
				must(t, os.Remove(w.path))
				w.f = nil
			}
		}
		r = startGlob(t, filepath.Join(dir, "*.log"), r, nil)
	}
	for i, name := range []string{"a.log", "b.log"} {
		r.want(name, numbered(0, logs[i].next)...)
		t.Logf("%s: %d lines, %d rotations", name, logs[i].next, logs[i].turns)
	}
}
