package tail

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestPace: files of which one has many lines a second and one a line every few minutes are handed over in step; nobody waits
// for one that is missing, may not be followed, or is empty.
func TestPace(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	t0 := time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC)
	const span = 5 * 3600
	for name, every := range map[string]int{"busy.log": 1, "calm.log": 7, "rare.log": 200} {
		var b strings.Builder
		for s := 0; s < span; s += every {
			fmt.Fprintf(&b, "%s %s\n", t0.Add(time.Duration(s)*time.Second).Format(time.RFC3339), name)
		}
		b.WriteString("no stamp\n")
		appendTo(t, at(name), b.String())
	}
	appendTo(t, at("empty.log"), "")
	appendTo(t, at("old.log"), t0.Add(-24*time.Hour).Format(time.RFC3339)+" old.log\n")
	must(t, os.Mkdir(at("directory.log"), 0o755))
	pace := NewPace(func(line []byte) (time.Time, bool) {
		stamp, _, _ := strings.Cut(string(line), " ")
		when, err := time.Parse(time.RFC3339, stamp)
		return when, err == nil
	})
	// A glob, and beside it files that are not there or no files.
	o := FileOptions{Pace: pace, Poll: 10 * time.Millisecond}
	missing, directory := NewFile(at("missing"), o), NewFile(at("directory.log"), o)
	r := startGlob(t, at("*.log"), nil, func(g *GlobOptions) { g.File.Pace = pace })
	go func() { _ = directory.Run(t.Context(), nil, nil) }()
	go func() { _ = missing.Run(t.Context(), nil, nil) }()
	reached := map[string]time.Time{}
	want := map[string]int{"busy.log": span, "calm.log": (span + 6) / 7, "rare.log": span / 200}
	r.until("all are read", func() bool {
		for name, lines := range r.lines {
			stamp, _, _ := strings.Cut(lines[len(lines)-1], " ")
			if when, err := time.Parse(time.RFC3339, stamp); err == nil {
				reached[name] = when
			}
		}
		done := true
		for name, n := range want {
			done = done && len(r.lines[name]) == n+1
			for other, m := range want {
				// Of the other one the next line may be that far off.
				if len(r.lines[other]) < m && reached[name].Sub(later(t0, reached[other])) > 4*paceSlack+time.Duration(span/m)*time.Second {
					t.Fatalf("%s is at %s, and %s at %s", name, reached[name], other, reached[other])
				}
			}
		}
		return done && len(r.lines["old.log"]) == 1
	})
	r.until("nobody is waited for", func() bool {
		pace.mu.Lock()
		defer pace.mu.Unlock()
		return len(pace.at) == 0
	})
}
