//go:build linux

// Command kernels runs the tests that need a kernel on other kernels than this machine's: it takes Debian's, from 5.10
// to the newest, into private roots (see scripts/lab; nothing is installed), starts each in an emulated machine, and
// prints how many tests passed, failed and were skipped there.
//
//	go run ./scripts/kernels [-kernels 5.10,6.1] [-run REGEXP] [-keep DIR]
//
// It needs root, for the roots, and qemu-system-x86_64; everything is emulated, so no /dev/kvm, and a processor is busy for
// some minutes per kernel. A test that is skipped there says why in DIR/KERNEL.log, where everything is that the tests and
// the kernel said. Exit code 1 if a test failed or a kernel did not come to the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mxshield/mxshield/scripts/lab"
)

// kernels are those that are tried, oldest first: the oldest that mxshield runs on, and one for each release of Debian since.
var kernels = []struct {
	name string
	kind lab.Kind
}{
	{"5.10", lab.KindLinux510},
	{"6.1", lab.KindLinux61},
	{"6.12", lab.KindLinux612},
	{"7", lab.KindLinux7},
}

// packages whose tests are run: those that talk to the kernel by what has changed since 5.10.
var packages = []string{"./bpf", "./agent/internal/sessions"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var only, match, keep string
	var limit time.Duration
	var verbose bool
	flag.StringVar(&only, "kernels", "", "comma-separated; all if empty")
	flag.StringVar(&match, "run", "", "only the tests that match, as in go test")
	flag.StringVar(&keep, "keep", "bin/kernels", "folder of the logs")
	flag.DurationVar(&limit, "limit", 20*time.Minute, "for each kernel")
	flag.BoolVar(&verbose, "v", false, "show what the machines say")
	flag.Parse()

	wanted := kernels
	if only != "" {
		names := strings.Split(only, ",")
		wanted = nil
		for _, k := range kernels {
			if i := slices.Index(names, k.name); i >= 0 {
				wanted, names = append(wanted, k), slices.Delete(names, i, i+1)
			}
		}
		if len(names) > 0 {
			return fmt.Errorf("no kernel is called %q; there are 5.10, 6.1, 6.12 and 7", names[0])
		}
	}
	if _, err := exec.LookPath(qemu); err != nil {
		return fmt.Errorf("%s is not here\nhint: apt-get install --no-install-recommends qemu-system-x86", qemu)
	}
	tmp, err := os.MkdirTemp("", "mxshield-kernels-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	tests, err := buildTests(ctx, tmp)
	if err != nil {
		return err
	}

	var rows []row
	for _, k := range wanted {
		progress("%s: making the machine", k.name)
		m := machine{tests: tests, match: match, limit: limit, log: filepath.Join(keep, k.name+".log"), verbose: verbose}
		r := row{kernel: k.name}
		root, err := lab.Root(ctx, lab.CacheDir(), k.kind, func(s string) { progress("%s: %s", k.name, s) })
		if err == nil {
			m.initrd = filepath.Join(tmp, "initrd")
			r.kernel, err = m.make(root)
		}
		if err == nil {
			progress("%s: running", r.kernel)
			start := time.Now()
			r.results, err = m.run(ctx)
			r.took = time.Since(start)
		}
		r.err = err
		rows = append(rows, r)
		if ctx.Err() != nil {
			break
		}
		for _, name := range r.failed() {
			progress("%s: FAIL %s", r.kernel, name)
		}
		if err != nil {
			progress("%s: %v", r.kernel, err)
		}
	}
	fmt.Print(table(rows))
	for _, r := range rows {
		if r.err != nil || len(r.failed()) > 0 {
			return fmt.Errorf("not all is well; the logs are in %s", keep)
		}
	}
	return ctx.Err()
}

func progress(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// buildTests builds the test binaries, static, so that they run where nothing else is.
func buildTests(ctx context.Context, dir string) ([]string, error) {
	var all []string
	for _, pkg := range packages {
		out := filepath.Join(dir, filepath.Base(pkg)+".test")
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		if text, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the tests of %s: %w: %s", pkg, err, text)
		}
		all = append(all, out)
	}
	return all, nil
}

// row is a line of the table.
type row struct {
	kernel  string
	results []result
	took    time.Duration
	err     error
}

func (r row) count(s status) int {
	n := 0
	for _, x := range r.results {
		if x.status == s {
			n++
		}
	}
	return n
}

func (r row) failed() []string {
	var names []string
	for _, x := range r.results {
		if x.status == failed {
			names = append(names, x.name)
		}
	}
	return names
}

func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| kernel | passed | failed | skipped | minutes |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %d | %d | %d | %.1f |", r.kernel, r.count(passed), r.count(failed), r.count(skipped), r.took.Minutes())
		if r.err != nil {
			fmt.Fprintf(&b, " did not come to the end: %s |", strings.ReplaceAll(firstLine(r.err), "|", "/"))
		}
		b.WriteString("\n")
	}
	return b.String()
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

var errNoEnd = errors.New("the machine stopped before the tests were through")
