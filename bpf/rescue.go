package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Off takes every program of ours off its interface, with or without an agent that lives, and returns where they were.
// With purge it removes all our pins too: the blocks in the kernel and the counters are gone when the last process
// that uses them ends. Objects that are not ours stay. Off twice is no error.
func Off(pins string, purge bool) ([]Attachment, error) {
	if pins == "" {
		pins = DefaultPins
	}
	if _, err := os.Lstat(pins); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	were, err := detachAll(pins)
	if err != nil {
		return were, notPermitted(err)
	}
	if !purge {
		return were, nil
	}
	entries, err := os.ReadDir(pins)
	if err != nil {
		return were, fmt.Errorf("read pin directory: %w", err)
	}
	left := 0
	for _, e := range entries {
		if !isOurs(e.Name()) {
			left++
			continue
		}
		path := filepath.Join(pins, e.Name())
		if !e.IsDir() {
			if err := os.Remove(path); err != nil {
				return were, fmt.Errorf("remove pin: %w", err)
			}
			continue
		}
		if err := removeGeneration(path); err != nil {
			return were, err
		}
		if _, err := os.Lstat(path); err == nil {
			left++ // somebody put something else into it
		}
	}
	if left > 0 {
		return were, nil
	}
	if err := os.Remove(pins); err != nil {
		return were, fmt.Errorf("remove pin directory: %w", err)
	}
	return were, nil
}

// On hangs the pinned programs, with the ports they were loaded with and the pinned tables, on interfaces again: what
// Off returned, or any Interface and Mode (empty is [Auto]). It needs no agent. What is attached already stays.
func On(pins string, want []Attachment) ([]Attachment, error) {
	if pins == "" {
		pins = DefaultPins
	}
	if err := checkCapabilities(); err != nil {
		return nil, err
	}
	dir, err := currentPins(pins)
	if err != nil {
		return nil, err
	}
	xdp, err := openProgram(filepath.Join(dir, pinXDP), ebpf.XDP)
	if err != nil {
		return nil, err
	}
	defer xdp.Close()
	var tc *ebpf.Program
	defer func() {
		if tc != nil {
			tc.Close()
		}
	}()
	a := &attacher{
		pins: pins,
		log:  slog.New(slog.DiscardHandler), // the modes returned tell what happened
		xdp:  xdp,
		tc: func() (*ebpf.Program, error) {
			if tc == nil {
				if tc, err = openProgram(filepath.Join(dir, pinTC), ebpf.SchedCLS); err != nil {
					return nil, err
				}
			}
			return tc, nil
		},
	}
	var now []Attachment
	var errs []error
	for _, w := range want {
		if w.Mode == "" {
			w.Mode = Auto
		}
		at, err := a.attach(w.Interface, w.Mode)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		now = append(now, at)
	}
	return now, errors.Join(errs...)
}

// currentPins is the directory of the generation that Open would take: the one that links run on, or the newest. If there
// is none, programs of the first version may be in the pin directory itself.
func currentPins(pins string) (string, error) {
	all, err := generations(pins)
	if err != nil || len(all) == 0 {
		return pins, err
	}
	links, err := linksByState(pins)
	if err != nil {
		return "", err
	}
	for _, n := range slices.Backward(all) {
		if dir := filepath.Join(pins, genName(n)); links[stateID(dir)] > 0 {
			return dir, nil
		}
	}
	return filepath.Join(pins, genName(all[len(all)-1])), nil
}

func openProgram(path string, want ebpf.ProgramType) (*ebpf.Program, error) {
	prog, err := ebpf.LoadPinnedProgram(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, hint(fmt.Errorf("open pinned program %s: there is none", path), "start mxshield-agent, it loads and pins it")
	}
	if err != nil {
		return nil, notPermitted(hint(fmt.Errorf("open pinned program %s: %w", path, err), mendPins))
	}
	if prog.Type() != want {
		prog.Close()
		return nil, hint(fmt.Errorf("open pinned program %s: its type is %s, not %s", path, prog.Type(), want), mendPins)
	}
	return prog, nil
}
