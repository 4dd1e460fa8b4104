//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// server is a program of a private root at work on a host, in pid, mount, uts
// and ipc namespaces of its own.
type server struct {
	host *Host
	work string   // the working folder: root, upper, work (for the overlay) and dirs
	name string   // for errors
	dirs []string // DIR:TARGET, see start.sh
	last []string // files in work whose last words explain a failure

	mu   sync.Mutex // one Stop or Rotate at a time
	cmd  *exec.Cmd
	done chan struct{} // closed when the process is reaped
}

//go:embed start.sh
var startScript string

// startSyslog, followed by a configuration file, starts rsyslogd in the root
// and waits for its socket. Without systemd it makes /dev/log itself.
const startSyslog = `
	waitlog() {
		tries=0
		until [ -S /dev/log ]; do
			tries=$((tries + 1))
			[ $tries -lt 500 ] || { echo no syslog socket >&2; exit 1; }
			sleep 0.01
		done
	}
	syslog() { rsyslogd -i /run/rsyslogd.pid -f "$1"; waitlog; }
	syslog`

// rsyslogConf writes mail and logins to /var/log/mail.log, as Debian's does,
// but for the logins, which PAM writes to auth.log there.
func rsyslogConf(o Options) string {
	template := "RSYSLOG_FileFormat"
	if o.Syslog == "traditional" {
		template = "RSYSLOG_TraditionalFileFormat"
	}
	return `module(load="imuxsock" SysSock.RateLimit.Interval="0")
module(load="builtin:omfile" Template="` + template + `")
global(workDirectory="/var/spool/rsyslog")
mail.*;authpriv.*;auth.* action(type="omfile" file="/var/log/mail.log" fileCreateMode="0644")
`
}

func (p *server) path(name string) string { return filepath.Join(p.work, name) }

// write makes the folders and files of work. Names end in .key if only root may read them.
func (p *server) write(files map[string]string, o Options) error {
	// RFC 3164 stamps have no zone: the log must be in the zone of whoever
	// reads it on this machine.
	zone := "/etc/localtime"
	if tz := os.Getenv("TZ"); tz != "" {
		zone = filepath.Join("/usr/share/zoneinfo", strings.TrimPrefix(tz, ":"))
	}
	if text, err := os.ReadFile(zone); err == nil {
		files["localtime"] = string(text)
	}
	files["resolv.conf"] = "nameserver " + o.Resolver + "\noptions timeout:1 attempts:1\n"
	dirs := []string{"root", "upper", "work", "log", "bin"}
	for _, d := range p.dirs {
		d, _, _ = strings.Cut(d, ":")
		dirs = append(dirs, d)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(p.path(dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range files {
		mode := os.FileMode(0o644)
		if strings.HasSuffix(name, ".key") {
			mode = 0o600
		}
		if err := os.WriteFile(p.path(name), []byte(text), mode); err != nil {
			return err
		}
		// Postfix waits 1.5 s for a file that was written a moment ago "to
		// cool down".
		old := time.Now().Add(-time.Minute)
		if err := os.Chtimes(p.path(name), old, old); err != nil {
			return err
		}
	}
	return nil
}

// start runs script, which becomes the server, as pid 1 of the root.
func (p *server) start(rootDir, script string, o Options) error {
	console, err := os.Create(p.path("console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	mode := "overlay"
	if o.copyRoot {
		mode = "copy"
	}
	p.cmd = exec.Command("sh", append([]string{"-c", startScript, "sh", rootDir, p.work, o.Hostname, mode, script}, p.dirs...)...)
	p.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	p.cmd.Stdout, p.cmd.Stderr = console, console
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Setsid:     true, // a Ctrl-C is for the program that owns the lab
		Pdeathsig:  syscall.SIGKILL,
	}
	p.done = make(chan struct{})
	started := make(chan error)
	go func() {
		// Pdeathsig follows the thread that forked, so that thread must live
		// as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := p.host.Do(p.cmd.Start)
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // "signal: killed" is the usual end
		}
		close(p.done)
	}()
	return <-started
}

// awaitGreeting waits until a port greets as SMTP (220), POP3, IMAP or ManageSieve do.
func (p *server) awaitGreeting(ctx context.Context, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	for {
		s, err := open(ctx, p.host, netip.Addr{}, to, 5*time.Second)
		if err == nil {
			var line string
			line, err = s.line()
			switch {
			case strings.HasPrefix(line, "220"):
				s.quit()
				return nil
			case strings.HasPrefix(line, "+OK"), strings.HasPrefix(line, "* OK"), strings.HasPrefix(line, `"IMPLEMENTATION"`):
				s.close()
				return nil
			}
			s.close()
			err = errors.Join(fmt.Errorf("greeted with %q", line), err)
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %s", p.complaints())
		case <-ctx.Done():
			return fmt.Errorf("no greeting on port %d: %w: %s", port, err, p.complaints())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// complaints are the last words of console and log.
func (p *server) complaints() string {
	var out []byte
	for _, name := range p.last {
		text, _ := os.ReadFile(p.path(name))
		if len(text) > 0 {
			out = fmt.Appendf(out, "\n%s: %s", name, tailOf(text, 600))
		}
	}
	return string(bytes.TrimSpace(out))
}

// Run runs a program of the root beside the server, such as "postfix", "reload".
func (p *server) Run(args ...string) ([]byte, error) {
	select {
	case <-p.done:
		return nil, fmt.Errorf("%s is not running", p.name)
	default:
	}
	in := []string{fmt.Sprintf("--target=%d", p.cmd.Process.Pid), "--mount", "--pid", "--net", "--uts", "--ipc", "--"}
	cmd := exec.Command("nsenter", append(in, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tailOf(out, 300))
	}
	return out, nil
}

// rotateSyslog does what Debian's logrotate does for rsyslog: it renames the
// file and sends SIGHUP.
func (p *server) rotateSyslog(path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := os.Rename(path, path+".1"); err != nil {
		return err
	}
	if _, err := p.Run("/bin/sh", "-c", "kill -HUP $(cat /run/rsyslogd.pid)"); err != nil {
		return err
	}
	for range 100 {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		// The new file comes with the first line for it.
		if c, err := p.host.Dial(context.Background(), netip.Addr{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 25)); err == nil {
			c.Close() // most servers log a connection
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("no new %s five seconds after the rotation", path)
}

// Stop ends the server and all its children. It may be called again.
func (p *server) Stop() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The master of Postfix stops its children on SIGTERM. Before it runs, pid
	// 1 is a shell, which as pid 1 gets only signals it asked for.
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(2 * time.Second):
		// The death of pid 1 is the death of its namespace.
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	var errs []error
	for _, dir := range []string{"root", "upper", "work"} {
		errs = append(errs, os.RemoveAll(p.path(dir)))
	}
	return errors.Join(errs...)
}
