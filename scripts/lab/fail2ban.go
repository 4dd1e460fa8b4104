//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Fail2ban is a fail2ban-server in a private root, for comparisons. Its action
// writes the address into a file: it touches no firewall, not even that of its
// namespace.
type Fail2ban struct {
	server
	version string
}

// The jail of a Postfix host: the distribution's filter in its widest mode, with
// the distribution's limits (5 failures in 10 minutes), on LogDir/mail.log.
const fail2banJail = `[DEFAULT]
banaction = lab
banaction_allports = lab
[postfix]
enabled = true
mode = aggressive
port = smtp,465,submission
backend = auto
logpath = /var/log/mail.log
`

const fail2banAction = `[Definition]
actionstart =
actionstop =
actioncheck =
actionban = echo <ip> >>/var/log/bans
actionunban =
`

// StartFail2ban runs fail2ban-server on host and returns when it watches the
// log, which is made if need be.
func StartFail2ban(ctx context.Context, host *Host, rootDir, workDir string) (*Fail2ban, error) {
	o := Options{}.withDefaults()
	info, err := readRootInfo(rootDir)
	if err != nil {
		return nil, err
	}
	if workDir, err = filepath.Abs(workDir); err != nil {
		return nil, err
	}
	f := &Fail2ban{version: info.version("fail2ban"), server: server{
		host: host, work: workDir, name: "fail2ban", last: []string{"console.log", "log/fail2ban.log"},
		dirs: []string{"conf:etc/lab", "log:var/log"},
	}}
	err = f.write(map[string]string{"conf/jail.local": fail2banJail, "conf/lab.conf": fail2banAction, "log/mail.log": "", "log/bans": ""}, o)
	if err != nil {
		return nil, err
	}
	// The distribution's own jail is for sshd, which is not here.
	const script = `
		rm -f /etc/fail2ban/jail.d/*
		cp /etc/lab/jail.local /etc/fail2ban/
		cp /etc/lab/lab.conf /etc/fail2ban/action.d/
		exec fail2ban-server -xf --logtarget=/var/log/fail2ban.log start`
	if err := f.start(rootDir, script, o); err != nil {
		return nil, err
	}
	if err := host.lab.adopt(f); err != nil {
		return nil, errors.Join(err, f.Stop())
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	for {
		text, _ := os.ReadFile(f.path("log/fail2ban.log"))
		if bytes.Contains(text, []byte("Jail 'postfix' started")) {
			return f, nil
		}
		select {
		case <-f.done:
			return nil, errors.Join(fmt.Errorf("fail2ban ended: %s", f.complaints()), f.Stop())
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("fail2ban does not start: %w: %s", ctx.Err(), f.complaints()), f.Stop())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Name says which fail2ban it is.
func (f *Fail2ban) Name() string { return "fail2ban " + f.version }

// LogDir is the folder of mail.log as a path of the machine.
func (f *Fail2ban) LogDir() string { return f.path("log") }

// Bans is how many addresses it has banned so far.
func (f *Fail2ban) Bans() int {
	text, _ := os.ReadFile(f.path("log/bans"))
	return bytes.Count(text, []byte("\n"))
}

// CPU is what the server and the actions that it ran have used so far.
func (f *Fail2ban) CPU() (time.Duration, error) { return ProcessCPU(f.cmd.Process.Pid) }

// Regex runs fail2ban-regex with the filter over a file in LogDir and returns
// the CPU time that it used, its start included.
func (f *Fail2ban) Regex(ctx context.Context, name string) (time.Duration, []byte, error) {
	in := []string{fmt.Sprintf("--target=%d", f.cmd.Process.Pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--",
		"fail2ban-regex", "/var/log/" + name, "postfix[mode=aggressive]"}
	cmd := exec.CommandContext(ctx, "nsenter", in...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return 0, out, fmt.Errorf("fail2ban-regex: %w: %s", err, tailOf(out, 300))
	}
	return cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), out, nil
}

// ProcessCPU is the user and system time of a process and of its children that
// have ended, in units of the kernel's clock tick (10 ms).
func ProcessCPU(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name may hold blanks and brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 15 {
		return 0, fmt.Errorf("short /proc/%d/stat", pid)
	}
	var sum time.Duration
	for _, s := range fields[11:15] { // utime, stime, cutime, cstime
		n, err := strconv.Atoi(s)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(n) * 10 * time.Millisecond // USER_HZ is 100 on every architecture we run on
	}
	return sum, nil
}
