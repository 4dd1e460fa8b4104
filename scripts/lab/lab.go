//go:build linux

// Package lab is a mail host, its attackers and its honest senders on one
// machine: network namespaces, a real Postfix (or Exim, OpenSMTPD, Sendmail, Courier,
// Cyrus, Dovecot; see StartDaemon) in a private root, and clients that speak real SMTP. The demo program and the end-to-end tests are written
// on top of it.
//
// It needs root (namespaces, mounts) and nothing else of the host: no package
// is installed, no service started, no interface touched. What it makes is
// named after the process that made it, mxshield-lab-PID-..., so that what a
// killed run left behind can be told from what a live one uses (Sweep).
//
//	l, err := lab.New()
//	defer l.Close()
//	top, err := l.Standard()
//	root, err := lab.PostfixRoot(ctx, lab.CacheDir(), log.Print)
//	pf, err := lab.StartPostfix(ctx, top.MX[0], root, l.Dir()+"/postfix", lab.Options{})
//	r := lab.Dictionary(ctx, top.Net, lab.Sources(lab.Attack4, 1)[0],
//		netip.AddrPortFrom(lab.MX4, 25), lab.DictionaryOptions{Recipients: 20})
//
// What it is not: a sandbox. The mail server runs as root in its own mount,
// pid and network namespaces, and trusts whoever wrote its options.
package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotRoot: namespaces and mounts need root.
	ErrNotRoot = errors.New("the lab needs root (network namespaces and mounts)")
	// ErrClosed: the lab was closed, perhaps by a signal handler, while
	// something was still being added to it.
	ErrClosed = errors.New("the lab is closed")
)

const prefix = "mxshield-lab-"

var serial atomic.Uint32

// Lab owns everything that was made in it. All methods are safe for concurrent
// use, Close from a signal handler's goroutine included.
type Lab struct {
	id  string // mxshield-lab-PID-N
	dir string

	mu      sync.Mutex
	closed  bool
	err     error // what Close returned
	hosts   []*Host
	servers []stopper
}

type stopper interface{ Stop() error }

// New makes an empty lab with a private folder, and sweeps away what dead runs
// left behind.
func New() (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if err := Sweep(); err != nil {
		return nil, fmt.Errorf("sweep dead labs: %w", err)
	}
	id := fmt.Sprintf("%s%d-%d", prefix, os.Getpid(), serial.Add(1))
	dir, err := os.MkdirTemp("", id+"-")
	if err != nil {
		return nil, fmt.Errorf("make the lab's folder: %w", err)
	}
	// 0755: Postfix and Dovecot drop to users of their own and must be able
	// to reach their files in here.
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	return &Lab{id: id, dir: dir}, nil
}

// Dir is a private folder that Close removes.
func (l *Lab) Dir() string { return l.dir }

// adopt makes Close responsible for s. It must be called before s can leave
// anything behind that its own failure path does not remove.
func (l *Lab) adopt(s stopper) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	l.servers = append(l.servers, s)
	return nil
}

// Close stops the mail servers, ends every process that still runs in one of
// the lab's namespaces (SIGTERM, two seconds, SIGKILL; by pid), and removes
// namespaces, mounts and the folder. It may be called often and from several
// goroutines: later callers wait for the first and get its error.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.err
	}
	l.closed = true
	var errs []error
	for _, s := range slices.Backward(l.servers) {
		errs = append(errs, s.Stop())
	}
	var spaces []string
	for _, h := range l.hosts {
		spaces = append(spaces, h.Netns())
	}
	errs = append(errs, endProcesses(spaces))
	for _, h := range slices.Backward(l.hosts) {
		errs = append(errs, h.close())
	}
	errs = append(errs, removeTree(l.dir))
	l.err = errors.Join(errs...)
	return l.err
}

// Sweep removes what labs of dead processes left behind: processes inside their
// namespaces, the namespaces, mounts under their folders, the folders. A lab
// whose pid is alive (even if the pid was reused since) is left alone.
func Sweep() error {
	var errs []error
	var spaces []string
	for _, name := range dirNames(netnsDir) {
		if deadOwner(name) {
			spaces = append(spaces, filepath.Join(netnsDir, name))
		}
	}
	if len(spaces) > 0 {
		errs = append(errs, endProcesses(spaces))
	}
	for _, path := range spaces {
		errs = append(errs, removeNetns(path))
	}
	for _, name := range dirNames(os.TempDir()) {
		if deadOwner(name) {
			errs = append(errs, removeTree(filepath.Join(os.TempDir(), name)))
		}
	}
	return errors.Join(errs...)
}

func dirNames(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

var ownName = regexp.MustCompile(`^` + prefix + `([0-9]{1,9})-[0-9]+-`)

// deadOwner says whether name belongs to a lab whose process is gone.
func deadOwner(name string) bool {
	m := ownName.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	pid, err := strconv.Atoi(m[1])
	return err == nil && !alive(pid)
}

// alive is false for zombies: they hold nothing any more.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	// The command name before the state may hold blanks and brackets.
	rest := stat[strings.LastIndexByte(string(stat), ')')+1:]
	f := strings.Fields(string(rest))
	return len(f) > 0 && f[0] != "Z" && f[0] != "X"
}

// endProcesses ends every process whose network namespace is one of spaces.
// Only somebody who entered such a namespace on purpose is there: a child of
// Command, or a child of that.
func endProcesses(spaces []string) error {
	var ids []unix.Stat_t
	for _, path := range spaces {
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil {
			ids = append(ids, st)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	term := time.Now().Add(2 * time.Second)
	for last := term.Add(3 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		sig, left := unix.SIGTERM, 0
		if time.Now().After(term) {
			sig = unix.SIGKILL
		}
		for _, name := range dirNames("/proc") {
			pid, err := strconv.Atoi(name)
			if err != nil || pid == os.Getpid() || !inside(pid, ids) || !alive(pid) {
				continue
			}
			left++
			// os.FindProcess holds the process, so that a pid that is reused
			// between the look and the signal is not hit.
			p, err := os.FindProcess(pid)
			if err == nil && inside(pid, ids) {
				_ = p.Signal(sig)
			}
			if err == nil {
				_ = p.Release()
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(last) {
			return fmt.Errorf("%d processes in the lab's namespaces do not end", left)
		}
	}
}

func inside(pid int, ids []unix.Stat_t) bool {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil {
		return false
	}
	return slices.ContainsFunc(ids, func(id unix.Stat_t) bool { return id.Ino == st.Ino && id.Dev == st.Dev })
}

// removeTree removes dir and first whatever is mounted below it: RemoveAll
// would otherwise walk into the mounts. The lab itself mounts only in private
// mount namespaces; a test may have mounted something of its own here.
func removeTree(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		if p := unescapeMount(f[4]); p == dir || strings.HasPrefix(p, dir+"/") {
			points = append(points, p)
		}
	}
	for _, p := range slices.Backward(points) {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return os.RemoveAll(dir)
}

// unescapeMount undoes the octal escapes of /proc/self/mountinfo.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
