package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/seeds"
)

// TestDiskFull: the disk of the state file fills up while lines come. Status says so, lines are read on, and kill -9 and a
// start on the full disk lose nothing: when there is room again, the state is that of one clean pass.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to make a small disk")
	}
	dir := t.TempDir()
	logs, disk := filepath.Join(dir, "log"), filepath.Join(dir, "disk")
	for _, d := range []string{logs, disk} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	// In a mount namespace of this thread, which ends with the test, and of the agents that it starts.
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("small", disk, "tmpfs", 0, "size=1m,mode=700")
	}
	if err != nil {
		t.Skip("skipped: cannot mount here:", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})

	seed := seeds.Of(t)
	h := &busyHost{dir: logs, rnd: rand.New(rand.NewPCG(seed, 2)), files: map[string]*os.File{}, n: map[string]int{}}
	sessions := func(n int) {
		t.Helper()
		for range n {
			if err := h.session(); err != nil {
				t.Fatal(err)
			}
		}
	}
	sessions(50)
	inputs := fmt.Sprintf("  - {file: %s/*.log}\n", logs)
	start := func() *agentProcess { return startAgentAt(t, dir, filepath.Join(disk, "state.db"), inputs) }
	a := start()
	a.awaitStatus("following", func(s *control.Status) bool {
		return len(s.Inputs) == 3 && s.Inputs[1].Lines > 0 && s.Inputs[2].Lines > 0 && s.State.Error == ""
	})

	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for err == nil {
		_, err = io.WriteString(filler, strings.Repeat("x", 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	full := func(s *control.Status) bool {
		sessions(20) // the file has some free pages of its own
		return strings.Contains(s.State.Error, "no space left on device")
	}
	a.awaitStatus("saying that the disk is full", full)
	before := a.awaitStatus("there", func(*control.Status) bool { return true }).Inputs[0].Lines
	sessions(100)
	a.awaitStatus("reading on", func(s *control.Status) bool { return s.Inputs[0].Lines >= before+100 })
	for range 3 {
		_ = a.end(syscall.SIGKILL)
		a = start()
		a.awaitStatus("saying that the disk is full, after a restart", full)
	}
	if err := a.end(syscall.SIGTERM); err == nil {
		t.Error("it could not save, and says nothing")
	}
	a = start()
	a.awaitStatus("saying that the disk is full, after a stop", full)

	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	filler.Close()
	a.awaitStatus("well again", func(s *control.Status) bool { return s.State.Error == "" })
	sessions(100)
	h.finish(t, a)
}
