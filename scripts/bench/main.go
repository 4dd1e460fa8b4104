// Bench reads the output of `go test -bench` and writes Markdown tables of its ratios, for the README and for people.
//
//	go test -run '^$' -bench . ./bpf | go run ./scripts/bench
//
// The input is passed on to standard error as it comes; the tables, under a line that names the machine, go to standard
// output. Benchmarks are to be named Name/key=value/key=value, one cell each. What is made of them stands in tables.go:
// a new benchmark needs an entry there. If a benchmark failed, or none that is known was run, the exit code is 1.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Stdin, os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out, progress io.Writer) error {
	var cells []cell
	failed := ""
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		fmt.Fprintln(progress, line)
		if c, ok := parseLine(line); ok {
			cells = append(cells, c)
		}
		if strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "--- FAIL") {
			failed = line
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the benchmarks: %w", err)
	}
	if failed != "" {
		return fmt.Errorf("a benchmark failed: %q", failed)
	}
	text := ""
	for _, t := range tables {
		text += t.markdown(cells)
	}
	if text == "" {
		return fmt.Errorf("none of the %d benchmarks read belongs to a table", len(cells))
	}
	_, err := fmt.Fprintf(out, "Measured on %s.\n%s", machine(), text)
	return err
}

// machine names what the figures are of.
func machine() string {
	model := "an unknown processor"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
		if strings.Contains(string(info), " hypervisor") {
			model += " (virtual)"
		}
	}
	var u unix.Utsname
	kernel := runtime.GOOS
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%s, %d cores, %s, %s", model, runtime.NumCPU(), kernel, runtime.Version())
}
