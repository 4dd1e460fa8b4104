//go:build linux

// Package e2e holds the end-to-end tests: a real Postfix in a namespace, the real agent and ctl as processes, real
// packets on veth. One test tells one story. They need root, and skip with a reason where they have none.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// patience bounds every wait. It is long because the machine may be busy, and no test passes by waiting for it.
const patience = time.Minute

var (
	binaries string // where TestMain built the agent and the ctl
	postfix  string // root of the private Postfix, "" if it cannot be had
	why      string // why not
	mx       = netip.AddrPortFrom(lab.MX4, 25)
	mx6      = netip.AddrPortFrom(lab.MX6, 25)
	sub      = netip.AddrPortFrom(lab.MX4, 587)
)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if config := os.Getenv(liarEnv); config != "" {
			if err := runLiar(config); err != nil {
				fmt.Fprintln(os.Stderr, "the liar:", err)
				return 1
			}
			return 0
		}
		if os.Getuid() != 0 {
			why = "not root"
			return m.Run()
		}
		dir, err := os.MkdirTemp("", "mxshield-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binaries = dir
		for name, pkg := range map[string]string{"mxshield-agent": "agent", "mxshieldctl": "ctl"} {
			cmd := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, name), "github.com/mxshield/mxshield/"+pkg)
			if out, err := cmd.CombinedOutput(); err != nil {
				fmt.Fprintf(os.Stderr, "build %s: %v\n%s", name, err, out)
				return 1
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if postfix, err = lab.PostfixRoot(ctx, lab.CacheDir(), func(s string) { fmt.Fprintln(os.Stderr, s) }); err != nil {
			why = "no Postfix: " + err.Error()
		}
		return m.Run()
	}())
}

// rig is one mail host with its agent.
type rig struct {
	t     *testing.T
	top   *lab.Topology
	host  *lab.Host
	mta   lab.MTA
	dir   string
	pins  string
	log   string // the agent's
	agent *exec.Cmd
	env   []string
	wrap  []string // a command that starts the agent with fewer rights
}

// newRig makes the namespaces, starts Postfix and, with start, the agent.
func newRig(t *testing.T, o lab.Options, config string) *rig {
	t.Helper()
	if postfix == "" {
		t.Skip("skipped: " + why)
	}
	r := bareRig(t, config)
	r.startPostfix(o)
	return r
}

func (r *rig) startPostfix(o lab.Options) {
	r.t.Helper()
	m, err := lab.StartPostfix(r.t.Context(), r.host, postfix, filepath.Join(r.dir, "mta"), o)
	if err != nil {
		r.t.Fatal(err)
	}
	r.mta = m
	r.env = append(os.Environ(), "PATH="+m.Bin()+":"+os.Getenv("PATH"))
}

// bareRig is a rig without a mail server.
func bareRig(t *testing.T, config string) *rig {
	t.Helper()
	l := newLab(t)
	top, err := l.Standard()
	if err != nil {
		t.Fatal(err)
	}
	return rigOn(t, top, 0, l.Dir(), config)
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if binaries == "" {
		t.Skip("skipped: " + why)
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// rigOn is a rig on the i-th mail host, with its files in dir.
func rigOn(t *testing.T, top *lab.Topology, i int, dir, config string) *rig {
	t.Helper()
	r := &rig{t: t, top: top, host: top.MX[i], dir: dir, env: os.Environ()}
	// A bpf file system of its own: not every machine has one mounted, and the host's is the host's.
	fs := filepath.Join(r.dir, "bpf")
	if err := errors.Join(os.Mkdir(fs, 0o700), unix.Mount("bpf", fs, "bpf", 0, "")); err != nil {
		t.Fatal(err)
	}
	r.pins = filepath.Join(fs, "mxshield")
	r.log = filepath.Join(r.dir, "agent.log")
	r.configure(config)
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			b, _ := os.ReadFile(r.log)
			t.Logf("the log of %s's agent:\n%s", r.host.Name(), tailOf(b, 6000))
			if r.mta != nil {
				b, _ = os.ReadFile(r.mta.LogPath())
				t.Logf("the log of %s's MTA:\n%s", r.host.Name(), tailOf(b, 3000))
			}
		}
		r.ctl("off", "--purge", "--pins", r.pins, "--state-dir", r.dir)
		if _, err := os.Stat(r.pins); err == nil {
			t.Errorf("pins are left after off --purge")
		}
		if err := unix.Unmount(fs, 0); err != nil {
			t.Error(err)
		}
	})
	return r
}

func tailOf(b []byte, n int) []byte { return b[max(0, len(b)-n):] }

func (r *rig) configure(config string) {
	r.t.Helper()
	own := fmt.Sprintf("state: %s/state.db\nsocket: %s/sock\npins: %s\n", r.dir, r.dir, r.pins)
	if !strings.Contains(config, "dns:") {
		config += "dns: {resolvers: [127.0.0.1]}\n" // nobody, who refuses at once: the machine's own would be waited for
	}
	if err := os.WriteFile(filepath.Join(r.dir, "conf.yaml"), []byte(own+config), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// start starts the agent and waits until it answers.
func (r *rig) start() {
	r.t.Helper()
	r.launch()
	r.answers()
}

func (r *rig) answers() {
	r.t.Helper()
	r.eventually("the agent answers", func() bool {
		var s control.Status
		return r.client().Get(r.t.Context(), "/v1/status", nil, &s) == nil
	})
}

func (r *rig) launch() {
	r.t.Helper()
	f, err := os.OpenFile(r.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	args := append(slices.Clone(r.wrap), filepath.Join(binaries, "mxshield-agent"), "--config", filepath.Join(r.dir, "conf.yaml"), "--log-level", "debug")
	r.agent = r.host.Command(args[0], args[1:]...)
	r.agent.Env, r.agent.Stderr, r.agent.Stdout = r.env, f, f
	if err := r.agent.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// kill ends the agent as a power cut would.
func (r *rig) kill() {
	if r.agent != nil {
		_ = r.agent.Process.Kill()
		_ = r.agent.Wait() // it says "killed"
		r.agent = nil
	}
}

// freeze makes the agent hang, until it gets SIGCONT. A signal takes its time: a thread of it may still answer.
func (r *rig) freeze() {
	r.t.Helper()
	if err := r.agent.Process.Signal(syscall.SIGSTOP); err != nil {
		r.t.Fatal(err)
	}
	r.eventually("the agent hangs", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", r.agent.Process.Pid))
		return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(path string) bool {
			b, err := os.ReadFile(path)
			_, state, _ := strings.Cut(string(b), ") ")
			return err == nil && !strings.HasPrefix(state, "T")
		})
	})
}

// stop ends the agent as systemd would and returns its exit code.
func (r *rig) stop() int {
	r.t.Helper()
	if err := r.agent.Process.Signal(syscall.SIGTERM); err != nil {
		r.t.Fatal(err)
	}
	return r.wait()
}

// wait returns the exit code of an agent that ends by itself.
func (r *rig) wait() int {
	r.t.Helper()
	done := make(chan error, 1)
	a := r.agent
	go func() { done <- a.Wait() }()
	select {
	case <-done:
	case <-time.After(patience):
		r.t.Fatal("the agent does not end")
	}
	r.agent = nil
	return a.ProcessState.ExitCode()
}

func (r *rig) client() *control.Client {
	return control.NewClient(filepath.Join(r.dir, "sock"), 10*time.Second)
}

// ctl runs mxshieldctl and returns what it printed and its exit code.
func (r *rig) ctl(args ...string) (string, int) {
	cmd := r.host.Command(filepath.Join(binaries, "mxshieldctl"), append([]string{"--socket", filepath.Join(r.dir, "sock")}, args...)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Errorf("run mxshieldctl: %v", err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// must runs mxshieldctl and expects exit code 0.
func (r *rig) must(args ...string) string {
	r.t.Helper()
	out, code := r.ctl(args...)
	if code != 0 {
		r.t.Fatalf("mxshieldctl %s: exit %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

func ask[T any](r *rig, args ...string) (v T) {
	r.t.Helper()
	out := r.must(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		r.t.Fatalf("%s: %v\n%s", args, err, out)
	}
	return v
}

func (r *rig) why(a netip.Addr) control.Why {
	r.t.Helper()
	return ask[control.Why](r, "why", a.String())
}

func (r *rig) status() control.Status { r.t.Helper(); return ask[control.Status](r, "status") }

// serveAt listens on the mail host until the test ends, each connection in a goroutine of its own.
func (r *rig) serveAt(addr string, serve func(net.Conn)) {
	r.t.Helper()
	l, err := r.host.Listen(r.t.Context(), addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waited %s in vain until %s", patience, what)
		}
		if r.agent != nil && r.agent.Process.Signal(syscall.Signal(0)) != nil {
			r.t.Fatalf("the agent is gone while waiting until %s", what)
		}
	}
}

// awaitBlock waits until the address is blocked, and returns what why says.
func (r *rig) awaitBlock(a netip.Addr) (w control.Why) {
	r.t.Helper()
	r.eventually(a.String()+" is blocked", func() bool { w = r.why(a); return w.Decision.Drop })
	return w
}

// awaitLines waits until the agent has read all that the MTA has written so far.
func (r *rig) awaitLines() {
	r.t.Helper()
	fi, err := os.Stat(r.mta.LogPath())
	if err != nil {
		r.t.Fatal(err)
	}
	last := fi.Size()
	r.eventually("all lines are read", func() bool {
		s := r.status()
		fi, err := os.Stat(r.mta.LogPath())
		if err != nil || fi.Size() != last {
			if err == nil {
				last = fi.Size()
			}
			return false
		}
		return len(s.Inputs) == 1 && s.Inputs[0].State == "following" && s.Inputs[0].Lag == 0
	})
}

func (r *rig) timesOut(from netip.Addr, to netip.AddrPort) bool {
	return lab.ConnectTimesOut(r.t.Context(), r.top.Net, from, to, 700*time.Millisecond)
}

// counted is how many events of a kind the agent has counted for the source that w is about.
func counted(w control.Why, kind string) uint32 {
	switch {
	case w.Known != nil: // also what came after the block
		return w.Known.Counts[kind]
	case w.Evidence != nil:
		return w.Evidence.Counts[kind]
	}
	return 0
}
