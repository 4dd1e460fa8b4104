//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

const qemu = "qemu-system-x86_64"

// modules that the tests need, with what they depend on; what a kernel has built in, or under another name, is not found
// and not missed: the tests say so.
var modules = []string{
	"veth", "dummy", "bridge", "bonding", "8021q", "tun", "sch_ingress", "cls_bpf", "ipv6",
	"inet_diag", "tcp_diag", "unix_diag", "nf_tables", "algif_hash", "crc32c_generic",
}

// machine is one emulated machine: a kernel, an initramfs with the tests in it, and nothing else.
type machine struct {
	tests  []string
	match  string
	limit  time.Duration
	log    string // file
	kernel string
	initrd string // file, made by make

	verbose bool
}

// doneMark ends what the machine says: without it, it has not come to the end.
const doneMark = "mxshield-kernels: done"

// init is the first program there. File systems come first: a program of BPF asks for them once and remembers. Console and
// answers have a line each, so that the kernel's words do not fall into the midst of the tests'.
const initScript = `#!/bin/sh
export PATH=/bin HOME=/ TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /run /tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
for m in $(cat /modules); do insmod "$m" || echo "no $m"; done
stty -F /dev/ttyS1 raw 2>/dev/null
for t in /tests/*.test; do
	echo "PACKAGE ${t##*/}"
	(cd /tmp && "$t" -test.v -test.short -test.timeout %s %s) 2>&1
	echo "EXIT $?"
done >/dev/ttyS1
echo "%s" >/dev/ttyS1
sync
sleep 1
poweroff -f
`

// make makes the initramfs and returns the kernel's version.
func (m *machine) make(root string) (version string, err error) {
	dirs, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	if err != nil || len(dirs) != 1 {
		return "", fmt.Errorf("there should be one kernel in %s: %v", root, dirs)
	}
	version = filepath.Base(dirs[0])
	m.kernel = filepath.Join(dirs[0], "vmlinuz")
	if _, err := os.Stat(m.kernel); err != nil {
		m.kernel = filepath.Join(root, "boot/vmlinuz-"+version) // before 7.0
	}
	busybox, err := os.ReadFile(filepath.Join(root, "usr/bin/busybox"))
	if err != nil {
		return version, err
	}
	f, err := os.Create(m.initrd)
	if err != nil {
		return version, err
	}
	defer f.Close()
	w := newCPIO(f)
	for _, dir := range []string{"bin", "dev", "proc", "sys", "tmp", "run", "etc", "tests", "lib"} {
		w.dir(dir)
	}
	w.file("bin/busybox", 0o755, busybox)
	for _, name := range []string{
		"sh", "mount", "mkdir", "cat", "echo", "insmod", "ip", "sync", "sleep", "poweroff", "stty", "ls", "setpriv",
	} {
		w.link("bin/"+name, "busybox")
	}
	w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n"))
	w.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	needed, err := modulesOf(filepath.Join(root, "usr/lib/modules", version))
	if err != nil {
		return version, err
	}
	var list strings.Builder
	for _, path := range needed {
		body, err := readModule(path)
		if err != nil {
			return version, err
		}
		name := "lib/" + strings.TrimSuffix(filepath.Base(path), ".xz")
		w.file(name, 0o644, body)
		list.WriteString("/" + name + "\n")
	}
	w.file("modules", 0o644, []byte(list.String()))
	for _, t := range m.tests {
		body, err := os.ReadFile(t)
		if err != nil {
			return version, err
		}
		w.file("tests/"+filepath.Base(t), 0o755, body)
	}
	match := ""
	if m.match != "" {
		match = "'-test.run=" + strings.ReplaceAll(m.match, "'", `'\''`) + "'"
	}
	w.file("init", 0o755, fmt.Appendf(nil, initScript, m.limit, match, doneMark))
	w.end()
	return version, w.err
}

// modulesOf returns the files of modules and of what they depend on, in the order to load them in.
func modulesOf(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	byName, depends := map[string]string{}, map[string][]string{}
	for line := range strings.Lines(string(text)) {
		path, needs, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		name, _, _ := strings.Cut(filepath.Base(path), ".")
		byName[strings.ReplaceAll(name, "-", "_")] = path
		depends[path] = strings.Fields(needs)
	}
	var all []string
	var add func(path string)
	add = func(path string) {
		if slices.Contains(all, filepath.Join(dir, path)) {
			return
		}
		// What comes last in the file comes first in the kernel.
		for _, d := range slices.Backward(depends[path]) {
			add(d)
		}
		all = append(all, filepath.Join(dir, path))
	}
	for _, name := range modules {
		if path := byName[name]; path != "" {
			add(path)
		}
	}
	return all, nil
}

func readModule(path string) ([]byte, error) {
	if filepath.Ext(path) != ".xz" {
		return os.ReadFile(path)
	}
	out, err := exec.Command("xz", "-dc", path).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w\nhint: apt-get install xz-utils", filepath.Base(path), err)
	}
	return out, nil
}

// run runs the tests. A machine that dies before they begin is started anew: kernels change their own code while they
// start, and the emulator now and then lets one processor run what another has half written.
func (m *machine) run(ctx context.Context) (results []result, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.limit)
	defer cancel()
	for range 3 {
		var began bool
		results, began, err = m.runOnce(ctx)
		if err == nil || began || ctx.Err() != nil {
			break
		}
	}
	return results, err
}

// runOnce starts the machine and waits for its end, or for the limit.
func (m *machine) runOnce(ctx context.Context) (results []result, began bool, err error) {
	log, err := os.Create(m.log)
	if err != nil {
		return nil, false, err
	}
	defer log.Close()
	answers, into, err := os.Pipe()
	if err != nil {
		return nil, false, err
	}
	defer answers.Close()
	cmd := exec.CommandContext(ctx, qemu,
		// Two processors, as some of the tests want. la57: the emulated five-level paging is slow.
		"-accel", "tcg,thread=multi", "-cpu", "max,la57=off", "-smp", "2", "-m", "3000",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-append", "console=ttyS0 loglevel=5 panic=-1 softlockup_panic=1 watchdog_thresh=60 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on",
		"-chardev", "file,id=console,path="+m.log+".console", "-serial", "chardev:console",
		"-chardev", "file,id=answers,path=/dev/fd/3", "-serial", "chardev:answers")
	cmd.ExtraFiles = []*os.File{into}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		into.Close()
		return nil, false, err
	}
	into.Close()
	var shown io.Writer = log
	if m.verbose {
		shown = io.MultiWriter(log, os.Stderr)
	}
	results, began, done := read(io.TeeReader(answers, shown))
	err = cmd.Wait()
	if console, rerr := os.ReadFile(m.log + ".console"); rerr == nil {
		fmt.Fprintf(log, "\nWhat the kernel said:\n%s", console)
		os.Remove(m.log + ".console")
	}
	switch {
	case ctx.Err() != nil:
		return results, began, fmt.Errorf("ended after %s: %w", m.limit, ctx.Err())
	case err != nil:
		return results, began, fmt.Errorf("%s: %w", qemu, err)
	case !done:
		return results, began, errNoEnd
	}
	return results, began, nil
}

type status string

const (
	passed  status = "PASS"
	failed  status = "FAIL"
	skipped status = "SKIP"
)

// result is that of one test, without its subtests.
type result struct {
	name   string
	status status
}

var resultLine = regexp.MustCompile(`^--- (PASS|FAIL|SKIP): (\S+)`)

// read reads what the tests say. began says that they were begun with, done that all were run to their end. A test binary that ends badly without
// a failed test (a crash) counts as one.
func read(r io.Reader) (results []result, began, done bool) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	pkg, running, failures := "", "", 0
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		if m := resultLine.FindStringSubmatch(line); m != nil {
			results = append(results, result{m[2], status(m[1])})
			if status(m[1]) == failed {
				failures++
			}
			running = ""
		}
		if name, ok := strings.CutPrefix(line, "=== RUN   "); ok && !strings.Contains(name, "/") {
			running = name
		}
		if name, ok := strings.CutPrefix(line, "PACKAGE "); ok {
			pkg, failures, began = name, 0, true
		}
		if code, ok := strings.CutPrefix(line, "EXIT "); ok {
			if code != "0" && failures == 0 {
				results = append(results, result{fmt.Sprintf("%s, exit code %s, %s", pkg, code, running), failed})
			}
		}
		done = done || line == doneMark
	}
	_, _ = io.Copy(io.Discard, r)
	return results, began, done
}
