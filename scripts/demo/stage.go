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

// stage is what the story plays on. It owns everything that must be gone at the end.
type stage struct {
	lab       *lab.Lab
	mx, world *lab.Host
	mta       lab.MTA
	notReal   string // why there is no Postfix, if there is none

	bin      string
	dir      string // in the lab's folder
	pins     string
	agent    *child
	client   *control.Client
	closing  sync.Once
	closeErr error
}

// newStage makes the namespaces. If it fails it leaves nothing.
func newStage(bin string) (*stage, error) {
	l, err := lab.New() // sweeps what dead labs left
	if err != nil {
		return nil, err
	}
	st := &stage{lab: l, bin: bin, dir: filepath.Join(l.Dir(), "mxshield")}
	st.pins = st.path("bpf/mxshield")
	st.client = control.NewClient(st.path("control.sock"), 10*time.Second)
	top, err := l.Standard()
	if err != nil {
		return nil, errors.Join(hintError{fmt.Errorf("make the namespaces: %w", err),
			"the kernel must have network namespaces and veth, and a container must be privileged"}, st.close())
	}
	st.mx, st.world = top.MX[0], top.Net
	bpffs := filepath.Dir(st.pins)
	if err := os.MkdirAll(bpffs, 0o700); err != nil {
		return nil, errors.Join(err, st.close())
	}
	// A bpf file system of its own: neither needs the host's nor shows there, and goes with the lab's folder (in the
	// next run's sweep, if this one is killed).
	if err := unix.Mount("bpf", bpffs, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700"); err != nil {
		return nil, errors.Join(hintError{fmt.Errorf("mount a bpf file system: %w", err),
			"the kernel must have CONFIG_BPF_SYSCALL, and a container must be privileged"}, st.close())
	}
	return st, nil
}

func (st *stage) path(name string) string { return filepath.Join(st.dir, name) }

// startMTA runs Postfix, or the built-in server if it must be.
func (st *stage) startMTA(ctx context.Context, which string, out *screen) error {
	var o lab.Options
	if which != "builtin" {
		err := func() error {
			root, err := lab.PostfixRoot(ctx, lab.CacheDir(), func(s string) { out.row("postfix", "%s", s) })
			if err != nil {
				return err
			}
			p, err := lab.StartPostfix(ctx, st.mx, root, filepath.Join(st.lab.Dir(), "postfix"), o)
			if err == nil {
				st.mta = p
			}
			return err
		}()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case which == "postfix":
			return hintError{err, "-mta auto goes on with the built-in SMTP server"}
		}
		st.notReal = err.Error()
	} else {
		st.notReal = "-mta builtin"
	}
	f, err := lab.StartFallback(ctx, st.mx, filepath.Join(st.lab.Dir(), "builtin"), o)
	if err == nil {
		st.mta = f
	}
	return err
}

// mtaWords says what the mail server is, and what it is not.
func (st *stage) mtaWords() string {
	if st.notReal == "" {
		return st.mta.Name() + " (this distribution's, in a private folder)"
	}
	return st.mta.Name() + ", NOT Postfix: " + st.notReal
}

// startAgent runs mxshield-agent on the mail host and returns when it follows the log.
func (st *stage) startAgent(ctx context.Context) error {
	// Interfaces and logs are left to the agent to find, as on a real host.
	config := fmt.Sprintf("pins: %s\nstate: %s\nsocket: %s\n", st.pins, st.path("state.db"), st.path("control.sock"))
	if err := os.WriteFile(st.path("mxshield.yaml"), []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(st.path("agent.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := st.mx.Command(filepath.Join(st.bin, "mxshield-agent"), "--config", st.path("mxshield.yaml"))
	// The first postconf in the path is the private Postfix's.
	cmd.Env = []string{"PATH=" + st.mta.Bin() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	if tz, ok := os.LookupEnv("TZ"); ok { // the log's stamps are in this zone
		cmd.Env = append(cmd.Env, "TZ="+tz)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if st.agent, err = start(cmd); err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	late := time.After(20 * time.Second)
	for {
		s, err := st.status(ctx)
		if err == nil && len(s.Inputs) > 0 && s.Inputs[0].State == "following" {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.agent.done:
			return st.agentFailed()
		case <-late:
			if err == nil {
				err = fmt.Errorf("it does not follow the log: %+v", s.Inputs)
			}
			return fmt.Errorf("the agent is not ready after 20 s: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// agentFailed makes the agent's own error and hint the demo's.
func (st *stage) agentFailed() error {
	var text, hint string
	for line := range strings.Lines(st.lastWords(50)) {
		line = strings.TrimSpace(line)
		if s, ok := strings.CutPrefix(line, "error: "); ok {
			text = s
		}
		if s, ok := strings.CutPrefix(line, "hint: "); ok {
			hint = s
		}
	}
	err := fmt.Errorf("the agent ended: %s", orElse(text, st.agent.state()))
	if hint != "" {
		return hintError{err, hint}
	}
	return err
}

// lastWords is the end of the agent's log.
func (st *stage) lastWords(lines int) string {
	b, err := os.ReadFile(st.path("agent.log"))
	if err != nil {
		return ""
	}
	all := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

func (st *stage) status(ctx context.Context) (*control.Status, error) {
	var s control.Status
	return &s, st.client.Get(ctx, "/v1/status", nil, &s)
}

// blocks are the blocks that hold.
func (st *stage) blocks(ctx context.Context) ([]control.Listed, error) {
	var l control.List
	err := st.client.Get(ctx, "/v1/list", url.Values{"limit": {"0"}}, &l)
	return l.Entries, err
}

// entries are all blocks that touch an address, those that have ended included.
func (st *stage) entries(ctx context.Context, a netip.Addr) ([]block.Entry, error) {
	var w control.Why
	err := st.client.Get(ctx, "/v1/why", url.Values{"prefix": {a.String()}}, &w)
	return w.Entries, err
}

// ctl runs mxshieldctl and shows it.
func (st *stage) ctl(ctx context.Context, out *screen, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(st.bin, "mxshieldctl"), args...)
	cmd.Env = append(os.Environ(), "MXSHIELD_SOCKET="+st.path("control.sock"))
	text, err := cmd.CombinedOutput()
	out.print("\n$ mxshieldctl %s\n%s", strings.Join(args, " "), text)
	if err != nil {
		return fmt.Errorf("mxshieldctl %s: %w", args[0], err)
	}
	return nil
}

// close ends and removes everything, once.
func (st *stage) close() error {
	st.closing.Do(func() {
		if st.agent != nil {
			st.agent.stop()
		}
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
