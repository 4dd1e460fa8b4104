package tail

import (
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxRotated bounds how many rotated files are read after a long absence; the newest are kept.
const maxRotated = 64

// place is a directory and a base name under which the log may stand: the path itself, and where its symbolic link
// leads.
type place struct{ dir, base string }

func placesOf(path string) []place {
	out := []place{{filepath.Dir(path), filepath.Base(path)}}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		if p := (place{filepath.Dir(real), filepath.Base(real)}); p != out[0] {
			out = append(out, p)
		}
	}
	return out
}

// rotated is a file that may be what the log was renamed to.
type rotated struct {
	path   string
	suffix string // of the base name, "" if the name does not start with it as rotated files' do
	dev    uint64
	ino    uint64
	size   int64
	mtime  time.Time
	ctime  time.Time // of the last change or renaming
}

// listRotated returns the regular, uncompressed files beside the log, without the log itself. all includes those whose
// names do not look like rotated logs.
func listRotated(places []place, all bool) []rotated {
	// A listing made while files are being renamed shows some twice and some not at all: take one that stands still.
	var last []rotated
	for range 5 {
		now := listOnce(places, all)
		if last != nil && slices.EqualFunc(last, now, func(a, b rotated) bool { return a.path == b.path && a.ino == b.ino }) {
			return now
		}
		if last = now; last == nil {
			last = []rotated{}
		}
	}
	return last
}

func listOnce(places []place, all bool) []rotated {
	var out []rotated
	for _, p := range places {
		entries, err := os.ReadDir(p.dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if slices.Contains(places, place{p.dir, name}) || !e.Type().IsRegular() || compressed(name) {
				continue
			}
			suffix := suffixOf(name, p.base)
			if suffix == "" && !all {
				continue
			}
			fi, err := e.Info()
			if err != nil {
				continue
			}
			st, ok := fi.Sys().(*syscall.Stat_t)
			if !ok {
				continue
			}
			path := filepath.Join(p.dir, name)
			if slices.ContainsFunc(out, func(r rotated) bool { return r.path == path }) {
				continue
			}
			out = append(out, rotated{path, suffix, uint64(st.Dev), st.Ino, fi.Size(), fi.ModTime(), time.Unix(st.Ctim.Unix())})
		}
	}
	return out
}

func compressed(name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".xz", ".bz2", ".zst", ".lz4", ".lzma", ".lz", ".Z", ".zip", ".br":
		return true
	}
	return false
}

// suffixOf is rotatedSuffix, for names too that have it before their extension: mail-20260131.log, mail.1.log. There it must
// be a number after a dot or the whole of a date, as mail-2.log may be another log.
func suffixOf(name, base string) string {
	if s := rotatedSuffix(name, base); s != "" {
		return s
	}
	ext := filepath.Ext(base)
	stem, ok := strings.CutSuffix(name, ext)
	if !ok || strings.Trim(ext, ".0123456789") == "" {
		return ""
	}
	s := rotatedSuffix(stem, strings.TrimSuffix(base, ext))
	digits := len(s) - strings.Count(s, ".") - strings.Count(s, "-") - strings.Count(s, "_")
	if _, ok := (rotated{suffix: s}).number(); ok || digits >= 6 {
		return s
	}
	return ""
}

// rotatedSuffix returns what a rotated log's name has after the base name: ".1", "-20260131", ".2026-01-31_12:00",
// ".old". A name that starts with the base name but goes on with other words ("mail.log.offset") is not one.
func rotatedSuffix(name, base string) string {
	suffix, ok := strings.CutPrefix(name, base)
	if !ok || len(suffix) < 2 || !strings.ContainsRune(".-_", rune(suffix[0])) {
		return ""
	}
	if s := suffix[1:]; s == "old" || s == "prev" {
		return suffix
	}
	if strings.Trim(suffix, "0123456789.-_:TZ") != "" || !strings.ContainsAny(suffix, "0123456789") {
		return ""
	}
	return suffix
}

// number returns N of a suffix ".N" as logrotate, newsyslog and savelog count: the higher the older.
func (r rotated) number() (int, bool) {
	if len(r.suffix) > 5 || !strings.HasPrefix(r.suffix, ".") {
		return 0, false
	}
	n, err := strconv.Atoi(r.suffix[1:])
	return n, err == nil
}

// newer tells whether r was rotated later than o. Names say it when they are of one kind: the time of the last change
// misleads when a writer lingers on an old file.
func (r rotated) newer(o rotated) bool {
	rn, rok := r.number()
	on, ook := o.number()
	switch {
	case rok && ook:
		return rn < on
	case !rok && !ook && len(r.suffix) == len(o.suffix) && r.suffix != o.suffix && r.suffix != ".old" && o.suffix != ".old":
		return r.suffix > o.suffix // dates
	}
	return r.mtime.After(o.mtime)
}

// staleSlack is how much older than the predecessor's, or than the last look, the last change of a rotated file may be that
// its name says is newer. Names alone are not trusted: a ".1" may be left over from before the naming was changed.
const staleSlack = time.Minute

// newerThan tells which files of list came after the one with inode ino, which at seen was the last one with content.
func newerThan(list []rotated, ino uint64, seen time.Time) func(rotated) bool {
	for _, self := range list {
		if self.ino != ino {
			continue
		}
		oldest := seen
		if self.mtime.Before(oldest) {
			oldest = self.mtime
		}
		return func(r rotated) bool { return r.newer(self) && r.changed().After(oldest.Add(-staleSlack)) }
	}
	return changedSince(seen) // it is gone
}

func changedSince(t time.Time) func(rotated) bool {
	return func(r rotated) bool { return r.changed().After(t.Add(-clockTick)) }
}

// clockTick is how much a file's time stamps may be behind the clock: the kernel takes them from its last tick.
const clockTick = 10 * time.Millisecond

// changed is when the content came, as far as one can know: an empty file may get its first after it was renamed.
func (r rotated) changed() time.Time {
	if r.size == 0 {
		return r.ctime
	}
	return r.mtime
}

// pick returns the rotated files that want says yes to, oldest first. Those in skip (inodes), and empty ones that were not
// renamed since quiet, are left out.
func pick(list []rotated, quiet time.Time, skip map[uint64]bool, want func(rotated) bool) []rotated {
	var out []rotated
	for _, r := range list {
		if r.suffix != "" && (r.size > 0 || r.ctime.After(quiet)) && !skip[r.ino] && want(r) {
			out = append(out, r)
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[j].newer(out[i]) })
	return out
}
