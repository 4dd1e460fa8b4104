//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

const (
	mailHosts  = 3                // the attacked one first
	readyLimit = 40 * time.Second // for an agent to answer, to follow its log, and to meet the others

	answerLimit = 15 * time.Second // for an agent to know what it must
)

// stage is what the story plays on. It owns everything that must be gone at the end.
type stage struct {
	lab   *lab.Lab
	world *lab.Host
	nodes []*node

	bin      string
	closing  sync.Once
	closeErr error
}

// node is a mail host: a mail server and an agent, which is in a cluster with the others'.
type node struct {
	*lab.Host
	number  int // from 0
	bin     string
	mta     lab.MTA
	notReal string // why there is no Postfix, if there is none
	dir     string // in the lab's folder
	pins    string
	agent   *child
	client  *control.Client
}

// newStage makes the namespaces. If it fails it leaves nothing.
func newStage(bin string) (*stage, error) {
	l, err := lab.New() // sweeps what dead labs left
	if err != nil {
		return nil, err
	}
	st := &stage{lab: l, bin: bin}
	top, err := l.Cluster(mailHosts)
	if err != nil {
		return nil, errors.Join(hintError{fmt.Errorf("make the namespaces: %w", err),
			"the kernel must have network namespaces, veth and bridges, and a container must be privileged"}, st.close())
	}
	st.world = top.Net
	if err := top.Net.StartNoNames(context.Background(), lab.Router4); err != nil {
		return nil, errors.Join(err, st.close())
	}
	key, err := exec.Command(filepath.Join(bin, "mxshieldctl"), "cluster", "key", "new").Output()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mxshieldctl cluster key new: %w", err), st.close())
	}
	for i, host := range top.MX {
		n := &node{Host: host, number: i, bin: bin, dir: filepath.Join(l.Dir(), host.Name())}
		st.nodes = append(st.nodes, n)
		n.pins = n.path("bpf/mxshield")
		n.client = control.NewClient(n.path("control.sock"), 10*time.Second)
		bpffs := filepath.Dir(n.pins)
		if err := os.MkdirAll(bpffs, 0o700); err != nil {
			return nil, errors.Join(err, st.close())
		}
		if err := os.WriteFile(n.path("cluster.key"), key, 0o600); err != nil {
			return nil, errors.Join(err, st.close())
		}
		// A bpf file system of its own: neither needs the host's nor shows there, and goes with the lab's folder (in the
		// next run's sweep, if this one is killed).
		if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
			return nil, errors.Join(hintError{fmt.Errorf("mount a bpf file system: %w", err),
				"the kernel must have CONFIG_BPF_SYSCALL, and a container must be privileged"}, st.close())
		}
	}
	return st, nil
}

func (n *node) path(name string) string { return filepath.Join(n.dir, name) }

// startMTAs runs Postfix everywhere, or the built-in server if it must be.
func (st *stage) startMTAs(ctx context.Context, which string, out *screen) error {
	root, notReal := "", "-mta builtin"
	if which != "builtin" {
		var err error
		root, err = lab.PostfixRoot(ctx, lab.CacheDir(), func(s string) { out.row("postfix", "%s", s) })
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case which == "postfix":
			return hintError{err, "-mta auto goes on with the built-in SMTP server"}
		default:
			notReal = err.Error()
		}
	}
	errs := make([]error, len(st.nodes))
	var all sync.WaitGroup
	for i, n := range st.nodes {
		all.Go(func() { errs[i] = n.startMTA(ctx, which, root, notReal) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// startMTA runs the Postfix of a root, or the built-in server if there is none.
func (n *node) startMTA(ctx context.Context, which, root, notReal string) error {
	o := lab.Options{Hostname: n.Name() + ".example.org"}
	if root != "" {
		p, err := lab.StartPostfix(ctx, n.Host, root, n.path("mta"), o)
		switch {
		case err == nil:
			n.mta = p
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case which == "postfix":
			return hintError{err, "-mta auto goes on with the built-in SMTP server"}
		}
		notReal = err.Error()
	}
	f, err := lab.StartFallback(ctx, n.Host, n.path("builtin"), o)
	if err == nil {
		n.mta, n.notReal = f, notReal
	}
	return err
}

// mtaWords says what the mail server is, and what it is not.
func (n *node) mtaWords() string {
	if n.notReal == "" {
		return n.mta.Name() + " (this distribution's, in a private folder)"
	}
	return n.mta.Name() + ", NOT Postfix: " + n.notReal
}

// startAgents runs an agent on each mail host and returns when they have met.
func (st *stage) startAgents(ctx context.Context) error {
	errs := make([]error, len(st.nodes))
	var all sync.WaitGroup
	for i, n := range st.nodes {
		all.Go(func() { errs[i] = n.startAgent(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// startAgent runs mxshield-agent on the mail host and returns when it follows the log and has met all others.
func (n *node) startAgent(ctx context.Context) error {
	// Interfaces and logs are left to the agent to find, as on a real host.
	config := fmt.Sprintf("pins: %s\nstate: %s\nsocket: %s\ndns: {resolvers: [%s]}\ncluster: {name: %s, peers: [%s, %s, %s], key_file: %s}\n",
		n.pins, n.path("state.db"), n.path("control.sock"), lab.Router4, n.Name(), lab.MXAddr4(0), lab.MXAddr4(1), lab.MXAddr4(2), n.path("cluster.key"))
	if err := os.WriteFile(n.path("mxshield.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(n.path("agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := n.Command(filepath.Join(n.bin, "mxshield-agent"), "--config", n.path("mxshield.yaml"))
	// The first postconf in the path is the private Postfix's.
	cmd.Env = []string{"PATH=" + n.mta.Bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if tz, ok := os.LookupEnv("TZ"); ok { // the log's stamps are in this zone
		cmd.Env = append(cmd.Env, "TZ="+tz)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if n.agent, err = start(cmd); err != nil {
		return fmt.Errorf("start the agent of %s: %w", n.Name(), err)
	}
	late := time.After(readyLimit)
	for {
		s, err := n.status(ctx)
		if err == nil && len(s.Inputs) > 0 && s.Inputs[0].State == "following" && s.Cluster != nil && s.Cluster.Alive == mailHosts-1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-n.agent.done:
			return n.agentFailed()
		case <-late:
			if err == nil {
				err = fmt.Errorf("logs %+v, cluster %+v", s.Inputs, s.Cluster)
			}
			return fmt.Errorf("the agent of %s is not ready after %s: %w", n.Name(), readyLimit, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// agentFailed makes the agent's own error and hint the demo's.
func (n *node) agentFailed() error {
	var text, hint string
	for line := range strings.Lines(n.lastWords(50)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "error: "); ok {
			text = s
		}
		if s, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = s
		}
	}
	err := fmt.Errorf("the agent of %s ended: %s", n.Name(), orElse(text, n.agent.state()))
	if hint != "" {
		return hintError{err, hint}
	}
	return err
}

// lastWords is the end of the agent's log.
func (n *node) lastWords(lines int) string {
	b, err := os.ReadFile(n.path("agent.log"))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

func (n *node) status(ctx context.Context) (*control.Status, error) {
	var s control.Status
	return &s, n.client.Get(ctx, "/v1/status", nil, &s)
}

// blocks are the blocks that hold.
func (n *node) blocks(ctx context.Context) ([]control.Listed, error) {
	var l control.List
	err := n.client.Get(ctx, "/v1/list", url.Values{"limit": {"0"}}, &l)
	return l.Entries, err
}

// entries are all blocks that touch an address, those that have ended included.
func (n *node) entries(ctx context.Context, a netip.Addr) ([]block.Entry, error) {
	var w control.Why
	err := n.client.Get(ctx, "/v1/why", url.Values{"prefix": {a.String()}}, &w)
	return w.Entries, err
}

// awaitBlock waits until an address is blocked and returns when that block was made.
func (n *node) awaitBlock(ctx context.Context, a netip.Addr) (at time.Time, err error) {
	err = n.until(ctx, a, "is not blocked", func(w *control.Why) bool {
		if w.Decision.By != nil {
			at = w.Decision.By.Stamp.Time()
		}
		return w.Decision.Drop && w.Decision.By != nil
	})
	return at, err
}

// letsIn waits until an address is not blocked, and returns how long that took.
func (n *node) letsIn(ctx context.Context, a netip.Addr) (time.Duration, error) {
	began := time.Now()
	err := n.until(ctx, a, "is still blocked", func(w *control.Why) bool { return !w.Decision.Drop })
	return time.Since(began), err
}

// until asks about an address again and again.
func (n *node) until(ctx context.Context, a netip.Addr, not string, ok func(*control.Why) bool) error {
	for end := time.Now().Add(answerLimit); ; pause(ctx, 5*time.Millisecond) {
		var w control.Why
		err := n.client.Get(ctx, "/v1/why", url.Values{"prefix": {a.String()}}, &w)
		switch {
		case err == nil && ok(&w):
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end) && err == nil:
			return fmt.Errorf("%s %s on %s after %s: %s", a, not, n.Name(), answerLimit, w.Words)
		case time.Now().After(end):
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// ctl runs mxshieldctl and shows it.
func (n *node) ctl(ctx context.Context, out *screen, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(n.bin, "mxshieldctl"), args...)
	cmd.Env = append(os.Environ(), "MXSHIELD_SOCKET="+n.path("control.sock"))
	text, err := cmd.CombinedOutput()
	out.print("\n%s$ mxshieldctl %s\n%s", n.Name(), strings.Join(args, " "), text)
	if err != nil {
		return fmt.Errorf("mxshieldctl %s: %w", args[0], err)
	}
	return nil
}

// close ends and removes everything, once.
func (st *stage) close() error {
	st.closing.Do(func() {
		var all sync.WaitGroup
		for _, n := range st.nodes {
			if n.agent != nil {
				all.Go(n.agent.stop)
			}
		}
		all.Wait()
		st.closeErr = st.lab.Close()
	})
	return st.closeErr
}

// leftovers names what is still there after close. Other demos and labs may run on this machine, so only what
// carries the name of this one counts.
func (st *stage) leftovers() (left []string) {
	id := filepath.Base(st.lab.Dir()) // mxshield-lab-PID-N-RANDOM
	own := fmt.Sprintf("mxshield-lab-%d-", os.Getpid())
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		names, _ := filepath.Glob(filepath.Join(dir, own+"*"))
		left = append(left, names...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, own) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		stat, err := os.ReadFile(filepath.Join(p, "stat"))
		if err != nil {
			continue // it has just ended
		}
		cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
		// The name in brackets may hold blanks; the parent is the second field after it.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		child := len(f) > 1 && f[1] == strconv.Itoa(os.Getpid())
		if child || bytes.Contains(cmdline, []byte(id)) {
			left = append(left, "process "+filepath.Base(p)+" "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	return left
}

// child is a process that dies with this one, even by SIGKILL.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it is reaped
}

func start(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:    true, // a Ctrl-C is for the demo
		Pdeathsig: syscall.SIGKILL,
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go func() {
		// Pdeathsig follows the thread that forked, so that thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is in ProcessState
		}
		close(c.done)
	}()
	return c, <-started
}

func (c *child) state() string {
	if c.cmd.ProcessState == nil {
		return "not started"
	}
	return c.cmd.ProcessState.String()
}

func (c *child) kill() {
	if c.cmd.Process == nil {
		return
	}
	_ = c.cmd.Process.Kill()
	<-c.done
}

func (c *child) stop() {
	if c.cmd.Process == nil {
		return
	}
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-c.done:
	case <-time.After(5 * time.Second):
		c.kill()
	}
}
