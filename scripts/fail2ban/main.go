//go:build linux

// Command fail2ban compares the agent with fail2ban, both at work on the same Postfix log on the same machine at the
// same time of day, and prints a table of ratios:
//
//	go run ./scripts/fail2ban [-lines 500000] [-sources 1000]
//
// fail2ban is the distribution's, in a private root and a namespace (see package lab), with the distribution's Postfix
// filter in mode aggressive; its action appends to a file. Nothing of the host is touched. It needs root; where it or the
// packages cannot be had, it says so and ends with 0, since it stands in `make bench`.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
	"github.com/mxshield/mxshield/scripts/loggen/traffic"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// bound is how long all of it may take, downloads aside.
const bound = 170 * time.Second

type bench struct {
	lines, sources int
	agent          string
	lab            *lab.Lab
	host           *lab.Host
	f2b            *lab.Fail2ban
	table          *tabwriter.Writer
}

func run() error {
	b := bench{table: tabwriter.NewWriter(os.Stdout, 0, 0, 1, ' ', 0)}
	flag.IntVar(&b.lines, "lines", 500_000, "lines of the log that both read from end to end")
	flag.IntVar(&b.sources, "sources", 1000, "attackers of the live comparison, 12 lines each")
	flag.Parse()
	if b.lines < 20000 || b.sources < 1 || b.sources > 60000 {
		return errors.New("want at least 20000 lines and 1 to 60000 sources")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if os.Getuid() != 0 {
		fmt.Println("note: no comparison with fail2ban: it needs root (a namespace and a private root)")
		return nil
	}
	root, err := lab.Root(ctx, lab.CacheDir(), lab.KindFail2ban, func(s string) { fmt.Fprintln(os.Stderr, s) })
	if err != nil {
		fmt.Printf("note: no comparison with fail2ban: %v\n", err)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	if b.lab, err = lab.New(); err != nil {
		return err
	}
	defer b.lab.Close()
	top, err := b.lab.Standard()
	if err != nil {
		return err
	}
	b.host = top.MX[0]
	b.agent = filepath.Join(b.lab.Dir(), "mxshield-agent")
	build := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-o", b.agent, "github.com/mxshield/mxshield/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as make build does it
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w: %s", err, out)
	}
	if b.f2b, err = lab.StartFail2ban(ctx, b.host, root, filepath.Join(b.lab.Dir(), "fail2ban")); err != nil {
		return err
	}
	fmt.Fprintf(b.table, "| what\t| mxshield\t| %s\t| ratio\t|\n|---\t|--:\t|--:\t|--:\t|\n", b.f2b.Name())
	if err := b.replay(ctx); err != nil {
		return fmt.Errorf("replay: %w", err)
	}
	if err := b.live(ctx); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	return b.table.Flush()
}

// replay reads logs from end to end with both: lines per second, and per CPU second, start-up included. fail2ban-regex has one
// thread, replay two.
func (b *bench) replay(ctx context.Context) error {
	l, err := traffic.New(traffic.Options{Seed: 1, Lines: b.lines})
	if err != nil {
		return err
	}
	day := []byte(strings.Join(l.Lines, "\n") + "\n")
	var storm bytes.Buffer
	if err := attack(ctx, &storm, b.lines/12); err != nil {
		return err
	}
	dir := b.f2b.LogDir()
	for name, text := range map[string][]byte{"small.log": day[:len(l.Lines[0])+1], "day.log": day, "storm.log": storm.Bytes()} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	// Once for nothing: Python compiles its modules, the kernel reads the files.
	if _, _, err := b.f2b.Regex(ctx, "small.log"); err != nil {
		return err
	}
	for _, c := range []struct {
		what, file string
		lines      int
	}{
		{"a day of a mail host", "day.log", len(l.Lines)},
		{"an attack and nothing else", "storm.log", bytes.Count(storm.Bytes(), []byte("\n"))},
	} {
		began := time.Now()
		theirs, out, err := b.f2b.Regex(ctx, c.file)
		theirWait := time.Since(began)
		if err != nil {
			return err
		}
		if !bytes.Contains(out, fmt.Appendf(nil, "Lines: %d lines", c.lines)) {
			return fmt.Errorf("fail2ban-regex did not read %d lines: %s", c.lines, out[max(0, len(out)-300):])
		}
		ours, ourWait, err := b.replayed(ctx, filepath.Join(dir, c.file))
		if err != nil {
			return err
		}
		n := float64(c.lines)
		a, f := n/ours.Seconds(), n/theirs.Seconds()
		fmt.Fprintf(b.table, "| replay of %s, %d lines: lines per CPU second\t| %.0f\t| %.0f\t| %.0fx\t|\n", c.what, c.lines, a, f, a/f)
		a, f = n/ourWait.Seconds(), n/theirWait.Seconds()
		fmt.Fprintf(b.table, "| the same, lines per second\t| %.0f\t| %.0f\t| %.0fx\t|\n", a, f, a/f)
	}
	return nil
}

// replayed is the CPU time of mxshield-agent replay and how long one waits for it, the least of five: the others were disturbed.
func (b *bench) replayed(ctx context.Context, path string) (least, wait time.Duration, err error) {
	for range 5 {
		cmd := exec.CommandContext(ctx, b.agent, "replay", "-o", "json", path)
		var errs bytes.Buffer
		cmd.Stderr = &errs
		began := time.Now()
		if err := cmd.Run(); err != nil {
			return 0, 0, fmt.Errorf("mxshield-agent replay: %w: %s", err, errs.Bytes())
		}
		if d := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(); least == 0 || d < least {
			least = d
		}
		if d := time.Since(began); wait == 0 || d < wait {
			wait = d
		}
	}
	return least, wait, nil
}

// live lets both follow the same file while an attack is written into it.
func (b *bench) live(ctx context.Context) error {
	path := filepath.Join(b.f2b.LogDir(), "mail.log")
	agent, client, stop, err := b.startAgent(ctx, path)
	if err != nil {
		return err
	}
	defer stop()
	agentBefore, err := lab.ProcessCPU(agent)
	if err != nil {
		return err
	}
	banBefore, err := b.f2b.CPU()
	if err != nil {
		return err
	}
	log, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	began := time.Now()
	if err := attack(ctx, log, b.sources); err != nil {
		return err
	}
	written := time.Since(began)

	// Both are looked at equally often, until both have blocked everybody.
	var ours, theirs time.Duration
	var ourCPU, theirCPU time.Duration
	blocked, banned := 0, 0
	for ours == 0 || theirs == 0 {
		if ours == 0 {
			var s control.Status
			if err := client.Get(ctx, "/v1/status", nil, &s); err != nil && ctx.Err() == nil {
				return err
			}
			if blocked = s.Blocks.Blocks; blocked >= b.sources {
				ours = time.Since(began)
				if ourCPU, err = lab.ProcessCPU(agent); err != nil {
					return err
				}
			}
		}
		if theirs == 0 {
			if banned = b.f2b.Bans(); banned >= b.sources {
				theirs = time.Since(began)
				if theirCPU, err = b.f2b.CPU(); err != nil {
					return err
				}
			}
		}
		if ctx.Err() != nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if ours == 0 {
		return fmt.Errorf("the agent blocked %d of %d sources", blocked, b.sources)
	}
	more := ""
	if theirs == 0 { // out of time: what it took so far is a lower bound
		theirs, more = time.Since(began), fmt.Sprintf(" and more (%d of %d banned)", banned, b.sources)
		if theirCPU, err = b.f2b.CPU(); err != nil {
			return err
		}
	}
	ourCPU, theirCPU = max(ourCPU-agentBefore, 10*time.Millisecond), theirCPU-banBefore
	fmt.Fprintf(b.table, "| %d sources, %d lines written in %.1f s: last block after\t| %.2f s\t| %.2f s%s\t| %.1fx\t|\n",
		b.sources, 12*b.sources, written.Seconds(), ours.Seconds(), theirs.Seconds(), more, theirs.Seconds()/ours.Seconds())
	fmt.Fprintf(b.table, "| CPU seconds for it\t| %.2f\t| %.2f\t| %.1fx\t|\n", ourCPU.Seconds(), theirCPU.Seconds(), theirCPU.Seconds()/ourCPU.Seconds())
	return nil
}

// attack writes twelve lines of each source, ten refused recipients among them, with stamps of now, as fast as log takes
// them.
func attack(ctx context.Context, log io.Writer, sources int) error {
	w := bufio.NewWriter(log)
	for i := range sources {
		// Spread over 198.18.0.0/15: the agent would block a /24 with many of them at once.
		ip := fmt.Sprintf("198.%d.%d.%d", 18+i&1, i>>1&255, 1+i>>9&127)
		line := func(format string, args ...any) {
			fmt.Fprintf(w, "%s mx1 postfix/smtpd[%d]: "+format+"\n", append([]any{time.Now().UTC().Format("2006-01-02T15:04:05.000000Z07:00"), 1000 + i%100}, args...)...)
		}
		line("connect from unknown[%s]", ip)
		for n := range 10 {
			line("NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <guess%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; "+
				"from=<s@example.net> to=<guess%d@example.org> proto=ESMTP helo=<client.example.net>", ip, n, n)
		}
		line("disconnect from unknown[%s] ehlo=1 mail=1 rcpt=0/10 quit=1 commands=3/13", ip)
		if err := w.Flush(); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// startAgent runs the agent in the namespace and returns its pid and a client.
func (b *bench) startAgent(ctx context.Context, log string) (pid int, client *control.Client, stop func(), err error) {
	dir := filepath.Join(b.lab.Dir(), "agent")
	fs := filepath.Join(dir, "bpf")
	if err := errors.Join(os.MkdirAll(fs, 0o755), unix.Mount("bpf", fs, "bpf", 0, "")); err != nil {
		return 0, nil, nil, fmt.Errorf("mount bpffs: %w", err)
	}
	conf := filepath.Join(dir, "conf.yaml")
	quoted, err := json.Marshal(log)
	if err != nil {
		return 0, nil, nil, err
	}
	text := fmt.Sprintf("state: %[1]s/state.db\nsocket: %[1]s/sock\npins: %[1]s/bpf/mxshield\nlogs: [{file: %[2]s}]\ndns: {resolvers: [127.0.0.1]}\n", dir, quoted)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return 0, nil, nil, err
	}
	out, err := os.Create(filepath.Join(dir, "agent.log"))
	if err != nil {
		return 0, nil, nil, err
	}
	defer out.Close()
	cmd := b.host.Command(b.agent, "--config", conf, "--log-level", "warn")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return 0, nil, nil, err
	}
	stop = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it says "killed"
		// The program goes with the interfaces of the namespace, and the pins with their file system.
		_ = unix.Unmount(fs, unix.MNT_DETACH)
	}
	client = control.NewClient(filepath.Join(dir, "sock"), 10*time.Second)
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		var s control.Status
		if err = client.Get(ctx, "/v1/status", nil, &s); err == nil && len(s.Inputs) == 1 && s.Inputs[0].State == "following" {
			return cmd.Process.Pid, client, stop, nil
		}
		if time.Now().After(end) || ctx.Err() != nil {
			stop()
			text, _ := os.ReadFile(filepath.Join(dir, "agent.log"))
			return 0, nil, nil, fmt.Errorf("the agent does not start: %w: %s", err, text[max(0, len(text)-500):])
		}
	}
}
