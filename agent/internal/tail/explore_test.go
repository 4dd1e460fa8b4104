package tail

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// TestFileExplore lets two writers, a rotator and a reader that crashes do as they like with real files, and holds what the
// reader handed over against a model that knows which lines must come once, which may be lost (see File), and that none
// comes twice. The reader is driven by hand, so that nothing depends on how fast the machine is. 100 histories; 20000 with
// MXSHIELD_TEST_LONG=1.
func TestFileExplore(t *testing.T) {
	seed, n := seeds.Of(t), 100
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		n = 20000
	}
	var wg sync.WaitGroup
	work := make(chan uint64)
	var mu sync.Mutex
	failed := 0
	for range 8 { // they wait for the disk at times
		wg.Go(func() {
			for s := range work {
				h := newHistory(s)
				trace, err := h.run(t)
				if err == nil {
					continue
				}
				h.shrink(t, func(lessTrace []string, lessErr error) { trace, err = lessTrace, lessErr })
				mu.Lock()
				if failed++; failed <= 5 {
					t.Errorf("history %d: %v\n  %s", s, err, strings.Join(trace, "\n  "))
				}
				mu.Unlock()
			}
		})
	}
	for i := range n {
		work <- seed*1_000_000 + uint64(i)
	}
	close(work)
	wg.Wait()
	if failed > 5 {
		t.Errorf("%d histories failed", failed)
	}
}

// history is a sequence of things to do. What the numbers of an act mean depends on what there is when it is done, so that any
// of them can be left out.
type history struct {
	naming string
	acts   []act
}

type act struct {
	do   string
	a, b int
	amid []act // of a race: what happens in the middle of a step
}

// What is done, and how often.
var actWeights = []struct {
	do string
	n  int
}{
	{"write", 30}, {"step", 20}, {"commit", 10}, {"crash", 5}, {"start", 8}, {"rotate", 8}, {"copytruncate", 3}, {"quiet", 3},
	{"reopen", 10}, {"compress", 2}, {"delete", 1}, {"remove", 1}, {"olddir", 1}, {"back", 1}, {"truncate", 1}, {"age", 2},
	{"create", 1}, {"burst", 1}, {"fresh", 1}, {"inode", 1}, {"race", 6},
}

func newHistory(seed uint64) history {
	rnd := rand.New(rand.NewPCG(seed, 7))
	h := history{naming: []string{"number", "number", "date", "date", "number+ext", "date+ext", "link"}[rnd.IntN(7)]}
	total := 0
	for _, w := range actWeights {
		total += w.n
	}
	draw := func() act {
		k := rnd.IntN(total)
		for _, w := range actWeights {
			if k -= w.n; k < 0 {
				return act{do: w.do, a: rnd.IntN(1000), b: rnd.IntN(1000)}
			}
		}
		return act{}
	}
	for range 10 + rnd.IntN(60) {
		a := draw()
		for a.do == "race" && len(a.amid) < 1+a.a%3 {
			switch in := draw(); in.do {
			case "step", "commit", "crash", "start", "quiet", "fresh", "age", "race": // done by the reader, or to it
			default:
				a.amid = append(a.amid, in)
			}
		}
		h.acts = append(h.acts, a)
	}
	return h
}

// shrink leaves out what the failure does not need; failed is told of each shorter one.
func (h history) shrink(t *testing.T, failed func([]string, error)) {
	for size := max(1, len(h.acts)/2); ; {
		cut := false
		for i := 0; i+size <= len(h.acts); {
			less := history{h.naming, slices.Delete(slices.Clone(h.acts), i, i+size)}
			if trace, err := less.run(t); err != nil {
				failed(trace, err)
				h, cut = less, true
			} else {
				i += size
			}
		}
		if size == 1 && !cut {
			return
		}
		if size > 1 {
			size /= 2
		}
	}
}

// world is the model, beside the real files in dir.
type world struct {
	dir, path string
	naming    string
	files     []*xfile
	writers   [2]struct {
		f  *os.File
		of *xfile
	}
	lines     map[string]*xline
	pieces    map[string]int // texts of pieces of lines that may come, and how often
	next      int
	turn      int
	trace     []string
	fo        *follower
	out       chan Batch
	life      int // of the reader: counts starts
	mark      []byte
	unordered bool
	back      *xfile   // was moved back since the last commit
	got       []string // committed
	pend      []Batch  // handed over, not committed
}

// xfile is a file (an inode), whatever its name.
type xfile struct {
	nr     int
	name   string   // "": there is none any more
	lines  []*xline // in it now
	all    []*xline // that were ever written into it
	part   *xline   // unfinished at its end
	cut    int      // bytes of part that are there
	copied bool     // by copytruncate
	closed bool     // was quiet for so long that the reader need not know it any more
	held   int      // the life of the reader that has it open
}

type xline struct {
	text string
	must bool // come once; else it may be lost
	why  string
	at   []*xfile
}

var errModel = errors.New("model")

func (h history) run(t *testing.T) (trace []string, err error) {
	dir, err := os.MkdirTemp("", "explore")
	must(t, err)
	defer os.RemoveAll(dir)
	w := &world{dir: dir, path: filepath.Join(dir, "mail.log"), naming: h.naming, lines: map[string]*xline{}, pieces: map[string]int{}, out: make(chan Batch, 4096)}
	must(t, os.Mkdir(filepath.Join(dir, "old"), 0o755))
	defer w.close()
	w.note("naming %s", h.naming)
	if w.naming == "link" {
		w.link()
	}
	if err := w.write(act{b: 1}, false); err != nil {
		return w.trace, err
	}
	for _, a := range append(slices.Clone(h.acts), act{do: "end"}) {
		if err := w.do(a); err != nil {
			return w.trace, err
		}
	}
	return w.trace, nil
}

func (w *world) close() {
	if w.fo != nil {
		w.fo.close()
	}
	for _, wr := range w.writers {
		if wr.f != nil {
			wr.f.Close()
		}
	}
}

func (w *world) note(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

func (w *world) do(a act) error {
	switch a.do {
	case "write":
		return w.write(a, false)
	case "burst":
		return w.write(a, true)
	case "reopen":
		w.reopen(a.a % 2)
	case "step":
		return w.step()
	case "commit":
		n := len(w.pend)
		if a.b%3 == 0 {
			n = min(n, a.a%3)
		}
		w.commit(n)
	case "race":
		if w.fo == nil {
			return nil
		}
		pauses, amid, err := 0, a.amid, error(nil)
		w.fo.opts.between = func() {
			if pauses++; pauses > a.b%7 && len(amid) > 0 && err == nil {
				now := amid[0]
				amid = amid[1:]
				w.note("amid the next step:")
				err = w.do(now)
			}
		}
		serr := w.step()
		w.fo.opts.between = nil
		w.age(time.Second)
		return errors.Join(serr, err)
	case "crash":
		w.crash()
	case "start":
		return w.start()
	case "fresh":
		w.crash()
		w.mark = nil
		w.note("the mark is lost")
		return w.start()
	case "quiet":
		return w.quiet()
	case "age":
		w.age(time.Duration(1+a.a) * time.Second * 10)
	case "end":
		return w.end()
	default:
		defer w.age(time.Second) // what follows has later time stamps
		return w.rotator(a)
	}
	if a.b%2 == 0 {
		w.age(time.Second)
	}
	return nil
}

// named returns the file that has the name, in dir.
func (w *world) named(name string) *xfile {
	for _, f := range w.files {
		if f.name == name && name != "" {
			return f
		}
	}
	return nil
}

// current is the file at the path; nil if there is none.
func (w *world) current() *xfile {
	if w.naming != "link" {
		return w.named("mail.log")
	}
	to, err := os.Readlink(w.path)
	if err != nil {
		return nil
	}
	return w.named(to)
}

func (w *world) newFile(name string) *xfile {
	f := &xfile{nr: len(w.files), name: name}
	w.files = append(w.files, f)
	return f
}

// old returns the rotated files that want says yes to.
func (w *world) old(want func(*xfile) bool) (out []*xfile) {
	cur := w.current()
	for _, f := range w.files {
		if f != cur && f.name != "" && !strings.HasPrefix(f.name, "old/") && (want == nil || want(f)) {
			out = append(out, f)
		}
	}
	return out
}

func (w *world) reopen(i int) {
	wr := &w.writers[i]
	if wr.f != nil {
		w.note("writer %d closes file %d", i, wr.of.nr)
		wr.f.Close()
		wr.f, wr.of = nil, nil
	}
}

func (w *world) write(a act, burst bool) error {
	i := a.a % 2
	wr := &w.writers[i]
	if wr.f == nil {
		f := w.current()
		if f == nil {
			name := "mail.log"
			if w.naming == "link" {
				name, _ = os.Readlink(w.path)
			}
			f = w.newFile(name)
			w.note("writer %d makes file %d", i, f.nr)
		}
		fd, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return err
		}
		wr.f, wr.of = fd, f
	}
	f := wr.of
	var text strings.Builder
	if f.part != nil {
		text.WriteString(f.part.text[f.cut:] + "\n")
		w.whole(f, f.part)
		f.part, f.cut = nil, 0
	}
	n, size := 1+a.a/2%4, 0
	if burst {
		n, size = 30, 40<<10
	} else if a.b%4 == 0 {
		size = 300
	}
	from := w.next
	for range n {
		l := w.line(size)
		text.WriteString(l.text + "\n")
		w.whole(f, l)
	}
	said := fmt.Sprintf("writer %d writes lines %d to %d to file %d %q", i, from, w.next-1, f.nr, f.name)
	if a.b%7 == 0 {
		l := w.line(size)
		f.part, f.cut = l, 1+a.b%len(l.text)
		text.WriteString(l.text[:f.cut])
		l.at = nil
		said += fmt.Sprintf(" and %d bytes of %d", f.cut, w.next-1)
	}
	w.note("%s", said)
	_, err := io.WriteString(wr.f, text.String())
	return err
}

func (w *world) line(size int) *xline {
	l := &xline{text: numberedLine(w.next), must: true}
	if size > 0 {
		l.text += strings.Repeat(" x", size/2)
	}
	w.next++
	w.lines[l.text] = l
	return l
}

// whole says that all of l is in f.
func (w *world) whole(f *xfile, l *xline) {
	l.at = append(l.at, f)
	f.lines, f.all = append(f.lines, l), append(f.all, l)
	switch {
	case f.closed:
		l.may("written to a file that was quiet")
	case !w.reachable(f) && !w.isHeld(f):
		l.may("written to a file that is gone")
	}
}

func (l *xline) may(why string) {
	if l.must {
		l.must, l.why = false, why
	}
}

func (w *world) reachable(f *xfile) bool { return f.name != "" && !strings.HasPrefix(f.name, "old/") }

func (w *world) isHeld(f *xfile) bool { return w.fo != nil && f.held == w.life }

// gone says that what f held is to be had no more. The reader may have it open.
func (w *world) gone(f *xfile, why string) {
	f.name = ""
	w.lost(f, why)
}

func (w *world) lost(f *xfile, why string) {
	if w.isHeld(f) {
		return // until it crashes
	}
	seen := w.seen()
	for _, l := range f.lines {
		if seen[l.text] == 0 && !w.anywhere(l) {
			l.may(why)
		}
	}
}

func (w *world) anywhere(l *xline) bool {
	return slices.ContainsFunc(l.at, func(f *xfile) bool { return w.reachable(f) || w.isHeld(f) })
}

// seen counts what the reader handed over.
func (w *world) seen() map[string]int {
	m := map[string]int{}
	for _, l := range w.got {
		m[l]++
	}
	for _, b := range w.pend {
		for _, l := range b.Lines {
			m[string(l)]++
		}
	}
	return m
}

func (w *world) check() error {
	for text, n := range w.seen() {
		l := w.lines[text]
		allowed := w.pieces[text]
		if l != nil {
			allowed++
		}
		if n > allowed {
			if l == nil {
				return fmt.Errorf("what nobody wrote, %d times: %.200q", n, text)
			}
			return fmt.Errorf("line %.80q came %d times", text, n)
		}
	}
	return nil
}

// rotator does what logrotate, cron jobs and people do.
func (w *world) rotator(a act) error {
	cur := w.current()
	switch a.do {
	case "rotate":
		if cur == nil {
			return nil
		}
		if w.naming == "link" {
			w.link()
		} else {
			if err := w.away(cur, a); err != nil {
				return err
			}
		}
		if a.a%3 == 0 {
			w.create()
		}
		if a.b%3 == 0 {
			w.reopen(0)
		}
		if a.b%5 != 0 {
			w.reopen(1)
		}
	case "create":
		if cur == nil {
			w.create()
		}
	case "copytruncate":
		if cur == nil || w.naming == "link" {
			return nil
		}
		name, err := w.free()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(w.path)
		if err != nil {
			return err
		}
		c := w.newFile(name)
		if err := os.WriteFile(filepath.Join(w.dir, name), b, 0o640); err != nil {
			return err
		}
		c.copied = true
		c.lines, c.all = slices.Clone(cur.lines), slices.Clone(cur.lines)
		for _, l := range cur.lines {
			l.at = append(l.at, c)
		}
		w.note("file %d is copied to file %d %q and truncated", cur.nr, c.nr, name)
		return w.truncate(cur)
	case "truncate":
		if cur == nil {
			return nil
		}
		w.note("file %d is truncated", cur.nr)
		return w.truncate(cur)
	case "compress", "delete":
		old := w.old(nil)
		if len(old) == 0 {
			return nil
		}
		f := old[a.a%len(old)]
		if a.do == "compress" {
			w.turn++
			if err := os.WriteFile(filepath.Join(w.dir, fmt.Sprintf("%s.%d.gz", f.name, w.turn)), []byte("not a log"), 0o640); err != nil {
				return err
			}
		}
		w.note("%s of file %d %q", a.do, f.nr, f.name)
		if err := os.Remove(filepath.Join(w.dir, f.name)); err != nil {
			return err
		}
		w.gone(f, a.do)
	case "remove":
		if cur == nil {
			return nil
		}
		w.note("file %d, the log, is removed", cur.nr)
		if err := os.Remove(filepath.Join(w.dir, cur.name)); err != nil {
			return err
		}
		w.gone(cur, "removed")
	case "inode": // what is made next may be given the inode of what is removed
		if cur == nil {
			return nil
		}
		w.note("file %d, the log, is removed and made anew", cur.nr)
		if err := os.Remove(filepath.Join(w.dir, cur.name)); err != nil {
			return err
		}
		w.gone(cur, "removed")
		w.reopen(0)
		w.reopen(1)
		return w.write(a, false)
	case "olddir":
		old := w.old(nil)
		if len(old) == 0 {
			return nil
		}
		f := old[a.a%len(old)]
		w.turn++
		to := fmt.Sprintf("old/%s.%d", f.name, w.turn)
		w.note("file %d %q is moved to %q", f.nr, f.name, to)
		if err := os.Rename(filepath.Join(w.dir, f.name), filepath.Join(w.dir, to)); err != nil {
			return err
		}
		f.name = to
		w.lost(f, "moved to another directory")
	case "back":
		old := w.old(func(f *xfile) bool { return !f.closed && !f.copied })
		if cur != nil && w.naming != "link" || len(old) == 0 {
			return nil
		}
		f := old[a.a%len(old)]
		w.note("file %d %q is moved back", f.nr, f.name)
		if w.naming == "link" {
			w.unseen(f)
			return w.linkTo(f.name)
		}
		if err := os.Rename(filepath.Join(w.dir, f.name), w.path); err != nil {
			return err
		}
		f.name = "mail.log"
		w.unseen(f)
	default:
		return fmt.Errorf("%w: %q", errModel, a.do)
	}
	return nil
}

// unseen says that all may be lost that the reader does not know of besides f, which is at the path again.
func (w *world) unseen(f *xfile) {
	seen := w.seen()
	for _, o := range w.files {
		if o == f || w.isHeld(o) {
			continue
		}
		for _, l := range o.lines {
			if seen[l.text] == 0 {
				l.may("an older file was moved back")
			}
		}
		if o.part != nil {
			o.part.may("an older file was moved back")
		}
		o.closed = true
	}
	w.back = f
	if f.part != nil { // the reader may give it up before it sees that
		f.part.may("moved back when it was to be given up")
		w.pieces[f.part.text[:f.cut]]++
		w.pieces[f.part.text[f.cut:]]++
	}
}

// free makes the name free that the log is rotated to.
func (w *world) free() (string, error) {
	w.turn++
	if strings.HasPrefix(w.naming, "date") {
		if w.naming == "date+ext" {
			return fmt.Sprintf("mail-2026%04d.log", w.turn), nil
		}
		return fmt.Sprintf("mail.log-2026%04d", w.turn), nil
	}
	format := "mail.log.%d"
	if w.naming == "number+ext" {
		format = "mail.%d.log"
	}
	n := 1
	for w.named(fmt.Sprintf(format, n)) != nil {
		n++
	}
	for ; n > 1; n-- {
		f := w.named(fmt.Sprintf(format, n-1))
		to := fmt.Sprintf(format, n)
		if err := os.Rename(filepath.Join(w.dir, f.name), filepath.Join(w.dir, to)); err != nil {
			return "", err
		}
		f.name = to
	}
	return fmt.Sprintf(format, 1), nil
}

func (w *world) away(cur *xfile, a act) error {
	name, err := w.free()
	if err != nil {
		return err
	}
	w.note("file %d is rotated to %q", cur.nr, name)
	if err := os.Rename(w.path, filepath.Join(w.dir, name)); err != nil {
		return err
	}
	cur.name = name
	return nil
}

func (w *world) create() {
	name := "mail.log"
	if w.naming == "link" {
		name, _ = os.Readlink(w.path)
	}
	f := w.newFile(name)
	w.note("file %d is made, empty", f.nr)
	fd, err := os.OpenFile(w.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640)
	if err == nil {
		fd.Close()
	} else if fd, err = os.OpenFile(filepath.Join(w.dir, name), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o640); err == nil {
		fd.Close() // through a link
	}
}

// link switches the symbolic link at the path to a new name.
func (w *world) link() error {
	w.turn++
	to := fmt.Sprintf("mail-2026%04d.log", w.turn)
	w.note("the link is switched to %q", to)
	return w.linkTo(to)
}

func (w *world) linkTo(to string) error {
	tmp := filepath.Join(w.dir, "new")
	if err := os.Symlink(to, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, w.path)
}

func (w *world) truncate(f *xfile) error {
	if err := os.Truncate(filepath.Join(w.dir, f.name), 0); err != nil {
		return err
	}
	lines := f.lines
	f.lines, f.held = nil, 0
	for _, l := range lines {
		l.at = slices.DeleteFunc(l.at, func(o *xfile) bool { return o == f })
	}
	seen := w.seen()
	for _, l := range lines {
		if seen[l.text] == 0 && !w.anywhere(l) {
			l.may("truncated")
		}
	}
	if f.part != nil { // two pieces, of which none need come
		f.part.may("truncated in the middle")
		w.pieces[f.part.text[:f.cut]]++
		rest := &xline{text: f.part.text[f.cut:]}
		w.pieces[rest.text]++
		f.part, f.cut = rest, 0
	}
	return nil
}

func (w *world) commit(n int) {
	if n == 0 {
		return
	}
	w.note("commit of %d of %d batches", n, len(w.pend))
	for _, b := range w.pend[:n] {
		for _, l := range b.Lines {
			w.got = append(w.got, string(l))
		}
		w.mark = b.Mark
	}
	w.pend = w.pend[n:]
	if len(w.pend) == 0 {
		w.back = nil
	}
}

func (w *world) crash() {
	if w.fo == nil {
		return
	}
	w.note("crash; %d batches are lost", len(w.pend))
	w.fo.close()
	w.fo, w.pend = nil, nil
	if w.back != nil {
		w.unseen(w.back)
	}
	seen := w.seen()
	for text, l := range w.lines {
		if seen[text] == 0 && len(l.at) > 0 && !w.anywhere(l) {
			l.may("gone when the reader crashed")
		} else if seen[text] == 0 && len(l.at) == 0 && !slices.ContainsFunc(w.files, func(f *xfile) bool { return f.part == l }) {
			l.may("truncated when the reader crashed")
		}
	}
}

func (w *world) start() error {
	if w.fo != nil {
		return nil
	}
	f := NewFile(w.path, FileOptions{Linger: time.Hour})
	w.fo = f.newFollower(w.out)
	w.fo.chunk = make([]byte, 700)
	w.life++
	if w.mark != nil {
		w.note("start with mark %s", w.mark)
		w.markGone()
		if m, err := decodeMark(w.mark); err == nil && slices.ContainsFunc(m.Files, func(p position) bool { return p.N == 0 }) {
			w.unordered = true // what was empty is known by its inode alone, which a newer one may have been given
		}
		w.fo.begin(w.mark)
		return w.step()
	}
	w.note("start without a mark")
	w.got = nil
	cur := w.current()
	for _, f := range w.files {
		if f != cur {
			f.closed = true
			if f.part != nil {
				f.part.may("start without a mark")
			}
		}
	}
	for _, l := range w.lines {
		if len(l.at) > 0 && !slices.Contains(l.at, cur) {
			l.may("start without a mark")
		}
		if len(l.at) == 0 && (cur == nil || cur.part != l) {
			l.may("start without a mark")
		}
	}
	return w.step()
}

// markGone allows for what is said at File: if the last file of the mark is gone, older ones that were written to after they
// were given up, or copied in the moment of the mark, are read again.
func (w *world) markGone() {
	m, err := decodeMark(w.mark)
	if err != nil || len(m.Files) == 0 {
		return
	}
	for _, f := range w.files {
		if !w.reachable(f) {
			continue
		}
		if s, err := newSource(filepath.Join(w.dir, f.name)); err == nil {
			is := s.is(m.Files[len(m.Files)-1])
			s.close()
			if is {
				return
			}
		}
	}
	for _, f := range w.files {
		for _, l := range f.all {
			if f.closed || f.copied {
				w.pieces[l.text]++
			}
		}
	}
}

func (w *world) step() error {
	if w.fo == nil {
		return nil
	}
	if err := w.fo.step(context.Background()); err != nil {
		return fmt.Errorf("step: %w", err)
	}
	for len(w.out) > 0 {
		w.pend = append(w.pend, <-w.out)
	}
	n := 0
	for _, b := range w.pend {
		n += len(b.Lines)
	}
	w.note("step; %d lines not committed", n)
	for _, f := range w.files {
		if w.reachable(f) && !f.closed && len(f.lines) > 0 && w.fo.opts.between == nil {
			f.held = w.life
		}
	}
	return w.check()
}

// quiet lets so much time pass that rotated files are given up.
func (w *world) quiet() error {
	if w.fo == nil {
		return nil
	}
	w.age(time.Hour)
	cur := w.current()
	w.note("quiet")
	for _, f := range w.files {
		if f == cur {
			continue
		}
		f.closed = true
		if f.part != nil {
			f.part.may("unfinished when its file was quiet")
			w.pieces[f.part.text[:f.cut]]++
			w.pieces[f.part.text[f.cut:]]++ // should it be moved back
		}
	}
	w.fo.opts.Linger = -time.Second
	for range 2 {
		if err := w.step(); err != nil {
			return err
		}
	}
	w.fo.opts.Linger = time.Hour
	return nil
}

// age makes everything older, as if d had passed. Times of renaming cannot be changed.
func (w *world) age(d time.Duration) {
	if w.fo != nil && w.fo.opts.between != nil {
		return // amid a step, which has looked at the clock
	}
	if d > time.Second {
		w.note("%v pass", d)
	}
	for _, f := range w.files {
		if f.name == "" {
			continue
		}
		path := filepath.Join(w.dir, f.name)
		if fi, err := os.Stat(path); err == nil {
			os.Chtimes(path, time.Time{}, fi.ModTime().Add(-d))
		}
	}
	old := func(b []byte) []byte {
		m, err := decodeMark(b)
		if err != nil {
			return b
		}
		m.Time -= d.Microseconds()
		return m.encode()
	}
	w.mark = old(w.mark)
	for i := range w.pend {
		w.pend[i].Mark = old(w.pend[i].Mark)
	}
	if fo := w.fo; fo != nil {
		for _, at := range []*time.Time{&fo.since, &fo.seen, &fo.looked, &fo.before} {
			if !at.IsZero() {
				*at = at.Add(-d)
			}
		}
		for _, s := range fo.srcs { // those without a name
			if st := (unix.Stat_t{}); unix.Fstat(int(s.f.Fd()), &st) == nil && st.Nlink == 0 {
				at := unix.NsecToTimeval(unix.TimespecToNsec(st.Mtim) - d.Nanoseconds())
				unix.Futimes(int(s.f.Fd()), []unix.Timeval{at, at})
			}
		}
	}
}

// end lets the reader come to the end of everything, and looks whether it has what it must.
func (w *world) end() error {
	w.reopen(0)
	if err := w.write(act{b: 1}, false); err != nil { // so that there is something at the path
		return err
	}
	if err := w.start(); err != nil {
		return err
	}
	for range 3 {
		if err := w.step(); err != nil {
			return err
		}
	}
	if err := w.quiet(); err != nil {
		return err
	}
	w.commit(len(w.pend))
	seen := w.seen()
	missing := 0
	first := ""
	for i := range w.files { // in the order of writing
		for _, l := range w.files[i].all {
			if l.must && seen[l.text] == 0 {
				if missing++; missing == 1 {
					first = fmt.Sprintf("%.80q of file %d", l.text, i)
				}
			}
		}
	}
	if missing > 0 {
		return fmt.Errorf("%d lines are missing, first %s", missing, first)
	}
	if w.unordered {
		return nil
	}
	return w.order()
}

// order looks that the lines of each file came in the order in which they were written.
func (w *world) order() error {
	at := map[string]int{}
	for i, l := range w.got {
		at[l] = i
	}
	for _, f := range w.files {
		last := -1
		for _, l := range f.all {
			i, ok := at[l.text]
			if !ok || !l.must {
				continue
			}
			if i < last {
				return fmt.Errorf("line %.80q of file %d came before those before it", l.text, f.nr)
			}
			last = i
		}
	}
	return nil
}
