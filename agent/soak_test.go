package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/agent/internal/verdict"
	"github.com/mxshield/mxshield/scripts/seeds"
)

// TestAgentChild is an agent that can be killed.
func TestAgentChild(t *testing.T) {
	conf := os.Getenv("AGENT_TEST_RUN")
	if conf == "" {
		t.Skip("run by other tests")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if code := run(ctx, []string{"mxshield-agent", "--config", conf, "run"}, os.Stdout, os.Stderr); code != 0 {
		t.Errorf("exit %d", code)
	}
}

// agentProcess is a dry run in a process of its own.
type agentProcess struct {
	t     *testing.T
	dir   string
	state string
	cmd   *exec.Cmd
	said  lastLines
}

func startAgent(t *testing.T, dir, logs string) *agentProcess {
	t.Helper()
	return startAgentAt(t, dir, filepath.Join(dir, "state.db"), logs)
}

func startAgentAt(t *testing.T, dir, state, logs string) *agentProcess {
	t.Helper()
	conf := filepath.Join(dir, "conf.yaml")
	text := fmt.Sprintf("logs:\n%sdry_run: true\nweights: {unknown_recipient: 2, auth_failure: 2}\nstate: %s\nsocket: %s/sock\npins: %s/pins\n", logs, state, dir, dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &agentProcess{t: t, dir: dir, state: state, cmd: exec.Command(self, "-test.run=^TestAgentChild$", "-test.timeout=0")}
	a.cmd.Env = append(os.Environ(), "AGENT_TEST_RUN="+conf)
	a.cmd.Stdout, a.cmd.Stderr = &a.said, &a.said
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.end(syscall.SIGKILL) })
	return a
}

// end signals the process and waits for it.
func (a *agentProcess) end(s os.Signal) error {
	if a.cmd.ProcessState != nil {
		return nil
	}
	_ = a.cmd.Process.Signal(s)
	return a.cmd.Wait()
}

func (a *agentProcess) status() (s control.Status, err error) {
	err = control.NewClient(filepath.Join(a.dir, "sock"), 5*time.Second).Get(context.Background(), "/v1/status", nil, &s)
	return s, err
}

// awaitStatus asks for the status until ok.
func (a *agentProcess) awaitStatus(what string, ok func(*control.Status) bool) control.Status {
	a.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		s, err := a.status()
		if err == nil && ok(&s) {
			return s
		}
		if time.Now().After(deadline) {
			a.t.Fatalf("never %s: %v, %+v\n%s", what, err, s.Inputs, a.said.b)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// busyHost writes the logs of a host, Postfix's and Dovecot's, under load: unknown recipients, messages that go in, failed
// logins that both logs tell of, lines that syslog folded. Both logs are rotated now and then.
type busyHost struct {
	dir   string
	rnd   *rand.Rand
	files map[string]*os.File
	n     map[string]int // rotations
	lines []string       // all, in the order of writing
	logs  []string       // which log each went to
	turn  bool           // rotate
	queue int
	open  []int // messages that are not in the queue yet
}

// write writes a line to a log; into memory only if there is no dir.
func (h *busyHost) write(log, text string) error {
	line := time.Now().UTC().Format("2006-01-02T15:04:05.000000Z") + " mx1 " + text
	if h.dir == "" {
		h.lines, h.logs = append(h.lines, line), append(h.logs, log)
		return nil
	}
	path := filepath.Join(h.dir, log)
	if h.files[log] == nil {
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		h.files[log] = f
	}
	if _, err := io.WriteString(h.files[log], line+"\n"); err != nil {
		return err
	}
	h.lines, h.logs = append(h.lines, line), append(h.logs, log)
	if h.turn && h.rnd.IntN(150) == 0 {
		h.n[log]++
		err := os.Rename(path, fmt.Sprintf("%s.%d", path, 10_000-h.n[log]))
		h.files[log].Close()
		h.files[log] = nil
		return err
	}
	return nil
}

const busySources = 800

func busySource(i int) netip.Addr {
	if i%4 == 3 {
		return netip.MustParseAddr(fmt.Sprintf("2001:db8:%x:1::1", i))
	}
	return netip.AddrFrom4([4]byte{101, byte(i >> 4), byte(i << 4), 7}) // far apart: no network is blocked for them
}

// session writes what one source does.
func (h *busyHost) session() error {
	// Each kind has sources of its own. Known senders that are all refused at once are taken for a fault of ours, and a
	// score depends on what came quickly in a row, and on the name that a failure is put to: with two kinds in two logs all
	// of that would depend on the order between the logs.
	kind := h.rnd.IntN(4)
	a := busySource(200*kind + h.rnd.IntN(200))
	h.queue++
	var err error
	put := func(log, format string, args ...any) {
		if err == nil {
			err = h.write(log, fmt.Sprintf(format, args...))
		}
	}
	switch kind {
	case 0:
		for range 1 + h.rnd.IntN(3) {
			put("mail.log", "postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>", a)
		}
		if h.rnd.IntN(3) == 0 {
			put("mail.log", "last message repeated %d times", 1+h.rnd.IntN(3))
		}
	case 1:
		put("mail.log", "postfix/smtpd[7]: 4%09X: client=unknown[%s]", h.queue, a)
		// Many are under way, so that each kill comes between the lines of some.
		if h.open = append(h.open, h.queue); len(h.open) > 30 {
			put("mail.log", "postfix/qmgr[8]: 4%09X: from=<s@example.net>, size=300, nrcpt=1 (queue active)", h.open[0])
			h.open = h.open[1:]
		}
	case 2:
		put("mail.log", "postfix/submission/smtpd[7]: warning: unknown[%s]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user%d@example.org", a, h.queue)
		put("dovecot.log", "dovecot: auth: passwd-file(user%d@example.org,%s): Password mismatch", h.queue, a)
		put("mail.log", "postfix/submission/smtpd[7]: disconnect from unknown[%s] ehlo=1 auth=0/1 quit=1 commands=2/3", a)
	case 3:
		for range 2 {
			put("dovecot.log", "dovecot: auth: passwd-file(user%d@example.org,%s): Password mismatch", h.queue, a)
		}
		put("dovecot.log", "dovecot: imap-login: Disconnected (auth failed, 2 attempts in 9 secs): user=<user%d@example.org>, method=PLAIN, rip=%s, lip=192.0.2.25, session=<abcd>", h.queue, a)
	}
	return err
}

// TestKilledUnderLoad kills the agent at random points while two logs are written and rotated. What it knows in the end of
// every source is what one clean pass over all lines gives. 5 rounds; 100 with MXSHIELD_TEST_LONG=1.
func TestKilledUnderLoad(t *testing.T) {
	rounds := 5
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		rounds = 100
	}
	seed := seeds.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	if err := os.Mkdir(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	h := &busyHost{dir: logs, rnd: rand.New(rand.NewPCG(seed, 2)), files: map[string]*os.File{}, n: map[string]int{}}
	inputs := fmt.Sprintf("  - {file: %s/*.log}\n", logs)
	for h.queue < 50 || h.files["mail.log"] == nil || h.files["dovecot.log"] == nil {
		if err := h.session(); err != nil {
			t.Fatal(err)
		}
	}
	// Without a mark a rotated file is nobody's: the first one comes to its end in peace.
	first := startAgent(t, dir, inputs)
	first.awaitStatus("following", func(s *control.Status) bool {
		return len(s.Inputs) == 3 && s.Inputs[1].Lines > 0 && s.Inputs[2].Lines > 0
	})
	if err := first.end(syscall.SIGTERM); err != nil {
		t.Fatalf("%v\n%s", err, first.said.b)
	}
	h.turn = true
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wrote error
	var writer sync.WaitGroup
	pause := time.Duration(rounds) * 150 * time.Microsecond // some thousand sessions in all, however many the rounds
	writer.Go(func() {
		for ctx.Err() == nil && wrote == nil {
			wrote = h.session()
			time.Sleep(pause)
		}
	})
	for range rounds {
		a := startAgent(t, dir, inputs)
		if rnd.IntN(4) > 0 { // if not, wherever it is in its start
			a.awaitStatus("running", func(*control.Status) bool { return true })
		}
		time.Sleep(time.Duration(rnd.IntN(400)) * time.Millisecond)
		if err := a.end(syscall.SIGKILL); err == nil || errors.Is(err, os.ErrProcessDone) {
			t.Fatalf("the agent had ended: %v\n%s", err, a.said.b)
		}
	}
	cancel()
	writer.Wait()
	if wrote != nil {
		t.Fatal(wrote)
	}
	a := startAgent(t, dir, inputs)
	s := a.awaitStatus("running", func(s *control.Status) bool { return len(s.Inputs) == 3 })
	if i := s.Inputs[1]; i.Of != s.Inputs[0].ID || i.ID != "file:"+filepath.Join(logs, "dovecot.log") {
		t.Errorf("inputs %+v", s.Inputs)
	}
	h.finish(t, a)
}

// finish waits until the agent has read all, ends it, and compares what it has saved with one clean pass.
func (h *busyHost) finish(t *testing.T, a *agentProcess) {
	t.Helper()
	h.turn = false
	// The last line of each log is of a source of its own: when it is known, all lines before it are.
	last := []netip.Addr{netip.MustParseAddr("109.0.0.1"), netip.MustParseAddr("109.0.0.2")}
	err := h.write("mail.log", fmt.Sprintf("postfix/postscreen[7]: PREGREET 11 after 0.07 from [%s]:4711: EHLO User", last[0]))
	if err == nil {
		err = h.write("dovecot.log", fmt.Sprintf("dovecot: auth: passwd-file(last@example.org,%s): Password mismatch", last[1]))
	}
	if err != nil {
		t.Fatal(err)
	}
	for log, f := range h.files {
		f.Close()
		delete(h.files, log)
	}
	a.awaitStatus("at the end of both logs", func(*control.Status) bool {
		return !slices.ContainsFunc(last, func(x netip.Addr) bool {
			var w control.Why
			err := control.NewClient(filepath.Join(a.dir, "sock"), 5*time.Second).Get(t.Context(), "/v1/why", url.Values{"prefix": {x.String()}}, &w)
			return err != nil || w.Known == nil
		})
	})
	if err := a.end(syscall.SIGTERM); err != nil {
		t.Fatalf("%v\n%s", err, a.said.b)
	}
	compare(t, a.state, h)
}

// compare compares the scores of a state file with those of one clean pass.
func compare(t *testing.T, state string, h *busyHost) {
	t.Helper()
	now := time.Now()
	st, _, err := store.Open(state, now)
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	var seed uint64
	type score struct{ k, v []byte }
	var scores []score
	err = st.Load(store.State{
		Entry: func(block.Entry) {}, BadEntry: func(err error) { t.Error(err) }, Mark: func(string, []byte) {},
		Score: func(k, v []byte) { scores = append(scores, score{slices.Clone(k), slices.Clone(v)}) },
		Extra: func(name string, v []byte) {
			if name == "seed" {
				seed = binary.BigEndian.Uint64(v)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	cfg := busyConfig()
	got := verdict.New(scoring(cfg, cfg.Weights, seed))
	for _, s := range scores {
		if err := got.Load(s.k, s.v); err != nil {
			t.Fatal(err)
		}
	}
	events := compareScores(t, got, h.cleanPass(cfg, seed, now), now)
	t.Logf("%d lines, %d and %d rotations, %d events of %d sources", len(h.lines), h.n["mail.log"], h.n["dovecot.log"], events, busySources)
	if events < 500 {
		t.Errorf("only %d events", events)
	}
}

// busyConfig is the one of startAgent: nobody comes to be blocked, and no burst ends, for what happens then depends on the
// order between the logs.
func busyConfig() *config.Config {
	cfg := config.Default()
	cfg.Weights[maillog.UnknownRecipient], cfg.Weights[maillog.AuthFailure] = 2, 2
	return cfg
}

// cleanPass scores all lines in the order of writing.
func (h *busyHost) cleanPass(cfg *config.Config, seed uint64, now time.Time) *verdict.Scorer {
	s := verdict.New(scoring(cfg, cfg.Weights, seed))
	p := maillog.New(maillog.Options{Seed: seed, Several: true})
	var e maillog.Event
	for i, l := range h.lines {
		p.Switch(h.logs[i], maillog.Auto)
		if p.Parse([]byte(l), now, &e) {
			s.Observe(&e, now)
		}
	}
	return s
}

// compareScores compares what is known of all sources, and returns how many events want has.
func compareScores(t *testing.T, got, want *verdict.Scorer, now time.Time) (events int) {
	t.Helper()
	for i := range busySources {
		a := busySource(i)
		g, gok := got.Lookup(a, now)
		w, wok := want.Lookup(a, now)
		for _, n := range w.Evidence.Counts {
			events += int(n)
		}
		if gok != wok || g.Evidence.Counts != w.Evidence.Counts || g.Evidence.Accepted != w.Evidence.Accepted {
			t.Errorf("%s: %+v, %d accepted; in one clean pass %+v, %d accepted", a, g.Evidence.Counts, g.Evidence.Accepted, w.Evidence.Counts, w.Evidence.Accepted)
		}
		if d := g.Raw - w.Raw; d > 0.02*w.Raw+0.02 || d < -0.02*w.Raw-0.02 {
			t.Errorf("%s: %.2f points; in one clean pass %.2f", a, g.Raw, w.Raw)
		}
	}
	return events
}
