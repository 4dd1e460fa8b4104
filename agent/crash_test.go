package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/tail"
	"github.com/mxshield/mxshield/scripts/seeds"
)

// crashed is an agent whose lines the test delivers, and which saves when the test says so.
type crashed struct {
	t *testing.T
	*daemon
	at map[string]int // how far each log was read
}

const (
	crashMail    = "file:/log/mail.log"
	crashDovecot = "file:/log/dovecot.log"
)

// openCrashed starts one as serve does, from the state file in dir.
func openCrashed(t *testing.T, dir string) *crashed {
	t.Helper()
	d := bareDaemon(t, nil)
	d.cfg = busyConfig()
	d.cfg.Senders, d.node = nil, "test"
	d.cfg.State = filepath.Join(dir, "state.db")
	d.pending = map[string][]byte{}
	for _, id := range []string{crashMail, crashDovecot} {
		d.inputs = append(d.inputs, tail.NewFile(strings.TrimPrefix(id, "file:"), tail.FileOptions{}))
	}
	if err := d.openState(); err != nil {
		t.Fatal(err)
	}
	if len(d.warnings) > 0 {
		t.Fatal(d.warnings)
	}
	c := &crashed{t: t, daemon: d, at: map[string]int{}}
	for id, m := range d.marks() {
		var n int
		if err := json.Unmarshal(m, &n); err != nil {
			t.Fatal(err)
		}
		c.at[id] = n
	}
	d.newParser()
	return c
}

func (c *crashed) save() {
	c.t.Helper()
	if err := c.commit(); err != nil {
		c.t.Fatal(err)
	}
}

// readOn delivers what is left of the logs in batches of a few lines, one log at times far ahead of the other. after is
// called behind each batch.
func (c *crashed) readOn(logs map[string][]string, rnd *rand.Rand, after func()) {
	ahead := 1 + rnd.IntN(40)
	for limit := 0; c.at[crashMail] < len(logs[crashMail]) || c.at[crashDovecot] < len(logs[crashDovecot]); limit += ahead {
		for _, i := range rnd.Perm(2) {
			id := []string{crashMail, crashDovecot}[i]
			for end := min(len(logs[id]), limit+rnd.IntN(ahead)); c.at[id] < end; {
				n := min(1+rnd.IntN(6), end-c.at[id])
				b := tail.Batch{Input: id, Read: time.Now()}
				for _, l := range logs[id][c.at[id] : c.at[id]+n] {
					b.Lines = append(b.Lines, []byte(l))
				}
				c.at[id] += n
				b.Mark = fmt.Append(nil, c.at[id])
				c.take(&b)
				after()
			}
		}
	}
}

// TestCrashAtEverySave: two logs that tell of the same logins are read in batches, and the agent dies after each save in
// turn, and in the midst of it: when the pages are written and the file's head is not, or only one half of the pages.
// Whatever comes after a restart from there, read in another order, each source has what one clean pass gives it.
func TestCrashAtEverySave(t *testing.T) {
	seed := seeds.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	h := &busyHost{rnd: rnd}
	for range 60 {
		if err := h.session(); err != nil {
			t.Fatal(err)
		}
	}
	logs := map[string][]string{}
	for i, l := range h.lines {
		id := "file:/log/" + h.logs[i]
		logs[id] = append(logs[id], l)
	}

	for _, every := range []int{1, 4} { // batches between two saves
		dir := t.TempDir()
		first := openCrashed(t, dir)
		state := func() []byte {
			b, err := os.ReadFile(first.cfg.State)
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		files := [][]byte{state()}
		first.save() // the seed
		files = append(files, state())
		n := 0
		first.readOn(logs, rnd, func() {
			if n++; n%every == 0 {
				first.save()
				files = append(files, state())
			}
		})
		seedOf := first.seed
		first.store.Close()

		page := os.Getpagesize()
		for k, file := range files {
			cases := map[string][]byte{"after": file}
			if k > 1 {
				before := files[k-1]
				torn := bytes.Clone(file)
				copy(torn[:2*page], before[:2*page])
				cases["before its head"] = torn
				half := bytes.Clone(before)
				for i := 2 * page; i+page <= len(before); i += page {
					if rnd.IntN(2) == 0 {
						copy(half[i:i+page], file[i:i+page])
					}
				}
				cases["in the midst of"] = half
			}
			for name, file := range cases {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "state.db"), file, 0o600); err != nil {
					t.Fatal(err)
				}
				c := openCrashed(t, dir)
				if k > 0 && c.seed != seedOf {
					t.Fatalf("save %d: another seed", k)
				}
				c.readOn(logs, rnd, func() {})
				c.save()
				c.store.Close()
				now := time.Now()
				last := openCrashed(t, dir) // what counts is what the file says in the end
				events := compareScores(t, last.scorer, h.cleanPass(busyConfig(), last.seed, now), now)
				last.store.Close()
				if events < 30 {
					t.Errorf("only %d events", events)
				}
				if t.Failed() {
					t.Fatalf("killed %s save %d of %d, %d batches each", name, k, len(files), every)
				}
			}
		}
		t.Logf("%d saves, %d lines", len(files), len(h.lines))
	}
}
