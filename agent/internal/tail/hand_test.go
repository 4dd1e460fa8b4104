package tail

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// byHand is a reader that a test takes from step to step.
type byHand struct {
	t    *testing.T
	path string
	fo   *follower
	out  chan Batch
	mark []byte
}

// handAt starts a reader that gives up no file before quiet.
func handAt(t *testing.T, path string, mark []byte) *byHand {
	t.Helper()
	r := &byHand{t: t, path: path, out: make(chan Batch, 64), mark: mark}
	r.fo = NewFile(path, FileOptions{Linger: time.Hour}).newFollower(r.out)
	t.Cleanup(r.fo.close)
	if mark != nil {
		r.fo.begin(mark)
	}
	return r
}

// step takes one step, which must bring these lines; they are committed.
func (r *byHand) step(want ...string) {
	r.t.Helper()
	must(r.t, r.fo.step(r.t.Context()))
	var got []string
	for len(r.out) > 0 {
		b := <-r.out
		for _, l := range b.Lines {
			got = append(got, string(l))
		}
		r.mark = b.Mark
	}
	same(r.t, got, want)
}

// quiet takes a step after so long a time that rotated files are given up.
func (r *byHand) quiet(want ...string) {
	r.t.Helper()
	r.fo.opts.Linger = -1
	r.step(want...)
	r.fo.opts.Linger = time.Hour
}

// move renames files beside the log, by what their names have after its name.
func move(t *testing.T, path string, moves ...string) {
	t.Helper()
	for i := 0; i < len(moves); i += 2 {
		must(t, os.Rename(path+moves[i], path+moves[i+1]))
	}
}

// changedAt sets when a file was last written.
func changedAt(t *testing.T, path string, at time.Time) {
	t.Helper()
	must(t, os.Chtimes(path, time.Time{}, at))
}

// aged makes a mark older by d.
func aged(t *testing.T, mark []byte, d time.Duration) []byte {
	t.Helper()
	m, err := decodeMark(mark)
	must(t, err)
	m.Time -= d.Microseconds()
	return m.encode()
}

// logrotate's "extension" puts the number or date before it: what was rotated twice is read while the agent was down, and live.
func TestFileExtension(t *testing.T) {
	for _, names := range [][2]string{{"mail.2.log", "mail.1.log"}, {"mail-20260130.log", "mail-20260131.log"}} {
		dir := t.TempDir()
		path := filepath.Join(dir, "mail.log")
		twice := func(n string) {
			appendTo(t, path, "a"+n+"\n")
			must(t, os.Rename(path, filepath.Join(dir, names[0])))
			appendTo(t, path, "b"+n+"\n")
			must(t, os.Rename(path, filepath.Join(dir, names[1])))
			appendTo(t, filepath.Join(dir, "mail-2.log"), "another log\n")
			appendTo(t, path, "c"+n+"\n")
		}
		appendTo(t, path, "one\n")
		r := handAt(t, path, nil)
		r.step("one")
		twice("1")
		r.step("a1", "b1", "c1")
		r = handAt(t, path, r.mark)
		r.step()
		r.quiet()
		must(t, os.Remove(filepath.Join(dir, names[0])))
		twice("2")
		handAt(t, path, r.mark).step("a2", "b2", "c2")
	}
}

// The log came to be, and was rotated, between two looks, after a start at which there was none, or an empty one.
func TestFileRotatedBeforeSeen(t *testing.T) {
	for _, empty := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "mail.log")
		if empty {
			appendTo(t, path, "")
		}
		r := handAt(t, path, nil)
		r.step()
		appendTo(t, path, "one\n")
		// The kernel stamps files with the time of its last tick.
		changedAt(t, path, r.fo.since.Add(-clockTick/2))
		move(t, path, "", ".1")
		appendTo(t, path, "two\n")
		r.step("one", "two")
	}
}

// What was rotated away is read at once, also when there is nothing else to read and nothing at the path: it may be compressed
// before the next line makes the log again.
func TestFileOnlyRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	must(t, os.Truncate(path, 0))
	appendTo(t, path, "2\n")
	move(t, path, "", ".1")
	r.step("2")
	// And with the mark's file gone.
	appendTo(t, path, "three\n")
	must(t, os.Remove(path+".1"))
	move(t, path, "", ".1")
	handAt(t, path, r.mark).step("three")
}

// The log is removed. What was given up and was written to after that is not read again from its start, but from where it was
// left.
func TestFileRemovedBesideOld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	move(t, path, "", ".1")
	appendTo(t, path, "two\n")
	r.step("two")
	r.quiet()
	must(t, os.Remove(path))
	appendTo(t, path+".1", "late\n")
	appendTo(t, path, "three\n")
	r.step("late", "three")
	// The same when it was given up long ago, and not written to.
	r.quiet()
	must(t, os.Remove(path))
	appendTo(t, path, "four\n")
	r.step("four")
	// And when it was rotated before the agent was started.
	appendTo(t, path+".1", "unfini")
	changedAt(t, path+".1", time.Now().Add(-time.Minute))
	r = handAt(t, path, nil)
	r.step("four")
	must(t, os.Remove(path))
	appendTo(t, path, "five\n")
	r.step("five")
	appendTo(t, path+".1", "shed\nlater\n")
	must(t, os.Remove(path))
	appendTo(t, path, "six\n")
	r.step("unfinished", "later", "six")
}

// A file that grows just when it would be given up is not given up.
func TestFileGrowsAtLast(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	move(t, path, "", ".1")
	appendTo(t, path, "two\n")
	r.step("two")
	appendTo(t, path+".1", "late\n")
	r.quiet("late")
	appendTo(t, path+".1", "later\n")
	r.step("later")
	r.quiet()
	appendTo(t, path+".1", "too late\n")
	r.step()
}

// A file that is moved back when it was given up, or in the moment when it is, is read on.
func TestFileMovedBackLate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	move(t, path, "", ".1")
	appendTo(t, path, "two\n")
	r.step("two")
	move(t, path, "", ".2", ".1", "")
	appendTo(t, path, "three\n")
	r.quiet("three")
	r.step()
	move(t, path, "", ".1", ".2", "")
	appendTo(t, path, "four\n")
	r.step("four")
	r.quiet()
	move(t, path, "", ".2", ".1", "")
	appendTo(t, path, "five\n")
	r.step("five")
}

// A writer goes on for long with a file that was rotated, and the file rotated after it has been quiet for longer.
func TestFileOlderWrittenLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	mark := aged(t, r.mark, time.Hour)
	move(t, path, "", ".2")
	appendTo(t, path, "three\n")
	changedAt(t, path, time.Now().Add(-30*time.Minute))
	move(t, path, "", ".1")
	appendTo(t, path+".2", "two\n")
	appendTo(t, path, "four\n")
	handAt(t, path, mark).step("two", "three", "four")
	// Also if the one of the mark is gone by then.
	m, err := decodeMark(r.mark)
	must(t, err)
	must(t, os.Remove(path+".2"))
	changedAt(t, path+".1", m.when())
	handAt(t, path, r.mark).step("three", "four")
	// The clock was set back meanwhile.
	r = handAt(t, path, nil)
	r.step("four")
	move(t, path, ".1", ".3", "", ".2")
	changedAt(t, path+".2", time.Now().Add(-2*time.Hour))
	appendTo(t, path, "five\n")
	changedAt(t, path, time.Now().Add(-time.Hour))
	move(t, path, "", ".1")
	appendTo(t, path, "six\n")
	handAt(t, path, r.mark).step("five", "six")
}

// The agent is stopped in the middle of a long file that was rotated, having not yet looked for those after it; and then that
// file is compressed.
func TestFileStoppedBeforeLook(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	appendTo(t, path, join(numbered(0, 2*maxBatchLines)))
	move(t, path, "", ".2")
	appendTo(t, path, "two\n")
	move(t, path, "", ".1")
	appendTo(t, path, "three\n")
	changedAt(t, path+".1", time.Now().Add(-time.Minute))
	r = handAt(t, path, aged(t, r.mark, time.Hour))
	must(t, r.fo.step(t.Context()))
	first := <-r.out
	if first.CaughtUp {
		t.Fatal("not the case that is meant")
	}
	must(t, os.Remove(path+".2"))
	handAt(t, path, first.Mark).step("two", "three")
}

// The log was truncated, and the copy with what came last is compressed: older copies are not read again.
func TestFileLastCopyGone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	copyTruncate := func(to string) {
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path+to, b, 0o640))
		must(t, os.Truncate(path, 0))
	}
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	move(t, path, "", "-20260101")
	appendTo(t, path, "two\n")
	r.step("two")
	copyTruncate("-20260102")
	appendTo(t, path, "three\n")
	r.step("three")
	copyTruncate("-20260103")
	must(t, os.Remove(path+"-20260103"))
	appendTo(t, path, "4\n")
	changedAt(t, path+"-20260102", time.Now().Add(-time.Second))
	r = handAt(t, path, r.mark)
	r.step("4")
	// Live, a file moved back and truncated while it was behind another one.
	move(t, path, "", "-20260104")
	appendTo(t, path, "five\n")
	r.step("five")
	move(t, path, "", "-20260105", "-20260104", "")
	copyTruncate("-20260106")
	appendTo(t, path, "6\n")
	r.step("6")
}

// A file of the mark was empty, and its inode is another file's now.
func TestFileEmptyInodeReused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "one\n")
	r := handAt(t, path, nil)
	r.step("one")
	m, err := decodeMark(r.mark)
	must(t, err)
	with := func(ino uint64) []byte {
		n := m
		n.Files = append([]position{{Dev: m.Files[0].Dev, Ino: ino}}, m.Files...)
		return n.encode()
	}
	// Of a copy of what was read.
	appendTo(t, path+".1", "one\n")
	must(t, os.Truncate(path, 0))
	appendTo(t, path, "2\n")
	handAt(t, path, with(inode(t, path+".1"))).step("2")
	// Of the log; and what was rotated before it is not passed over.
	must(t, os.Remove(path))
	must(t, os.Remove(path+".1"))
	appendTo(t, path, "three\n")
	move(t, path, "", ".1")
	appendTo(t, path, "four\n")
	handAt(t, path, with(inode(t, path))).step("three", "four")
	// Of an empty file that was rotated after another.
	must(t, os.Remove(path+".1"))
	move(t, path, "", ".2")
	appendTo(t, path+".1", "")
	appendTo(t, path, "five\n")
	handAt(t, path, with(inode(t, path+".1"))).step("four", "five")
}
