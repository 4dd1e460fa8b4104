//go:build linux

package lab

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// MTA is a mail server that a lab runs: a real Postfix, or the Fallback.
type MTA interface {
	Name() string    // "Postfix 3.7.11", "built-in SMTP server"
	LogPath() string // its log, as a path of the machine
	Bin() string     // a folder for the front of PATH, with a postconf in it
	Rotate() error   // renames the log, as logrotate would; a new one is there on return
	Stop() error     // leaves no process and no mount; the log stays
}

var (
	_ MTA = (*Postfix)(nil)
	_ MTA = (*Fallback)(nil)
)

// Options of a mail server. The zero value is a plain smtpd on port 25 and a
// submission service with passwords on 587.
type Options struct {
	Postscreen     bool           // postscreen on 25, greet wait 2 s, PREGREET refused
	AuthOnMX       bool           // AUTH on port 25 too
	HardErrorLimit int            // smtpd_hard_error_limit; 20
	ProcessLimit   int            // default_process_limit; 100
	MyNetworks     []netip.Prefix // besides loopback
	Recipients     int            // user1 ... userN@example.org exist, and may log in; 50
	Password       string         // of all of them; "secret"
	Hostname       string         // mx1.example.org
	Resolver       string         // a name server's address; default: nobody, lookups fail at once
	Main           map[string]string

	copyRoot bool // for tests: as on a machine where overlays cannot be had
}

func (o Options) withDefaults() Options {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.HardErrorLimit, 20)
	def(&o.ProcessLimit, 100)
	def(&o.Recipients, 50)
	if o.Password == "" {
		o.Password = "secret"
	}
	if o.Hostname == "" {
		o.Hostname = "mx1.example.org"
	}
	if o.Resolver == "" {
		o.Resolver = "127.0.0.1"
	}
	return o
}

// networks is mynetworks.
func (o Options) networks() string {
	out := []string{"127.0.0.0/8", "[::1]/128"}
	for _, p := range o.MyNetworks {
		if p.Addr().Is6() {
			out = append(out, fmt.Sprintf("[%s]/%d", p.Addr(), p.Bits()))
		} else {
			out = append(out, p.String())
		}
	}
	return strings.Join(out, " ")
}

func userAddress(n int) string { return fmt.Sprintf("user%d@example.org", n) }

// Postfix is a running Postfix with Dovecot as its SASL server.
type Postfix struct {
	host    *Host
	work    string
	version string

	mu   sync.Mutex // one Stop or Rotate at a time
	cmd  *exec.Cmd
	done chan struct{} // closed when the process is reaped
}

//go:embed start.sh
var startScript string

// StartPostfix runs the Postfix of rootDir (see PostfixRoot) on host and
// returns when ports 25 and 587 greet. workDir is made if need be; it must not
// hold another server's files and must have no colon or comma in its path. The
// server's mail is for user1 to userN@example.org and goes nowhere (discard);
// nothing ever leaves the lab.
//
// It runs in its own pid and mount namespaces. If this process is killed with
// SIGKILL it may live on (the kernel forgets whom to tell when master changes
// its user); the next New or Sweep ends it.
func StartPostfix(ctx context.Context, host *Host, rootDir, workDir string, o Options) (*Postfix, error) {
	o = o.withDefaults()
	info, err := readRootInfo(rootDir)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(workDir+rootDir, ":,") {
		return nil, fmt.Errorf("overlay mounts do not take a colon or comma in %s or %s", workDir, rootDir)
	}
	if workDir, err = filepath.Abs(workDir); err != nil {
		return nil, err
	}
	p := &Postfix{host: host, work: workDir, version: info.postfix()}
	if err := p.writeFiles(info, rootDir, o); err != nil {
		return nil, fmt.Errorf("configure Postfix: %w", err)
	}
	if err := p.start(rootDir, o); err != nil {
		return nil, fmt.Errorf("start Postfix: %w", err)
	}
	if err := host.lab.adopt(p); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	for _, port := range []uint16{25, 587} {
		if err := p.awaitGreeting(ctx, port); err != nil {
			return nil, errors.Join(fmt.Errorf("start Postfix: %w", err), p.Stop())
		}
	}
	return p, nil
}

func (p *Postfix) path(name string) string { return filepath.Join(p.work, name) }

// writeFiles makes the working folder: root (the mount point), upper and work
// (the overlay's), conf, dovecot and log (mounted into the root), bin.
func (p *Postfix) writeFiles(info rootInfo, rootDir string, o Options) error {
	for _, dir := range []string{"root", "upper", "work", "conf", "dovecot", "log", "bin"} {
		if err := os.MkdirAll(p.path(dir), 0o755); err != nil {
			return err
		}
	}
	files := map[string]string{
		"conf/main.cf":         p.mainCf(info, o),
		"conf/master.cf":       masterCf(o),
		"conf/recipients":      recipients(o, "%s OK\n"),
		"dovecot/users":        recipients(o, "%s:{PLAIN}"+o.Password+"::::::\n"),
		"dovecot/dovecot.conf": dovecotConf(info.Dovecot),
		"resolv.conf":          "nameserver " + o.Resolver + "\noptions timeout:1 attempts:1\n",
	}
	// These were part of the root's /etc/postfix, which conf covers.
	for _, name := range []string{"postfix-files", "dynamicmaps.cf", "post-install", "postfix-script"} {
		if text, err := os.ReadFile(filepath.Join(rootDir, "etc/postfix", name)); err == nil {
			files["conf/"+name] = string(text)
		}
	}
	// RFC 3164 stamps have no zone: the log must be in the zone of whoever
	// reads it on this machine.
	zone := "/etc/localtime"
	if tz := os.Getenv("TZ"); tz != "" {
		zone = filepath.Join("/usr/share/zoneinfo", strings.TrimPrefix(tz, ":"))
	}
	if text, err := os.ReadFile(zone); err == nil {
		files["localtime"] = string(text)
	}
	for name, text := range files {
		if err := os.WriteFile(p.path(name), []byte(text), 0o644); err != nil {
			return err
		}
		// Postfix waits 1.5 s for a file that was written a moment ago "to
		// cool down".
		old := time.Now().Add(-time.Minute)
		if err := os.Chtimes(p.path(name), old, old); err != nil {
			return err
		}
	}
	return os.WriteFile(p.path("bin/postconf"), []byte(p.postconfScript(rootDir)), 0o755)
}

func recipients(o Options, format string) string {
	var b strings.Builder
	for i := range o.Recipients {
		fmt.Fprintf(&b, format, userAddress(i+1))
	}
	return b.String()
}

func (p *Postfix) mainCf(info rootInfo, o Options) string {
	set := map[string]string{
		"compatibility_level":   "3.6",
		"myhostname":            o.Hostname,
		"mydomain":              "example.org",
		"myorigin":              "example.org",
		"mydestination":         "",
		"mynetworks":            o.networks(),
		"inet_interfaces":       "all",
		"inet_protocols":        "all",
		"maillog_file":          "/var/log/mail.log",
		"maillog_file_prefixes": "/var",
		// `postfix logrotate` compresses at once; an agent that still reads
		// the old file is better served by logrotate's delaycompress.
		"maillog_file_compressor": "/bin/true",
		"default_process_limit":   fmt.Sprint(o.ProcessLimit),

		"virtual_mailbox_domains": "example.org",
		"virtual_mailbox_maps":    "texthash:/etc/postfix/recipients",
		"virtual_transport":       "discard:",
		"local_transport":         "discard:",
		"relay_transport":         "discard:",
		"default_transport":       "discard:",
		"alias_maps":              "",
		"alias_database":          "",
		"local_recipient_maps":    "",

		"smtpd_peername_lookup":       "no",
		"smtpd_error_sleep_time":      "0",
		"smtpd_hard_error_limit":      fmt.Sprint(o.HardErrorLimit),
		"smtpd_relay_restrictions":    "permit_mynetworks, reject_unauth_destination",
		"smtpd_sasl_type":             "dovecot",
		"smtpd_sasl_path":             "private/auth",
		"smtpd_sasl_security_options": "noanonymous",
		"smtpd_sasl_auth_enable":      yesNo(o.AuthOnMX),
		"smtpd_tls_security_level":    "none",
		"smtp_tls_security_level":     "none",
		"disable_vrfy_command":        "yes",
		"biff":                        "no",

		"postscreen_greet_wait":   "2s",
		"postscreen_greet_action": "enforce",
		"postscreen_access_list":  "permit_mynetworks",
		"postscreen_cache_map":    cacheMap(info) + ":$data_directory/postscreen_cache",
	}
	maps.Copy(set, o.Main)
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(set)) {
		fmt.Fprintf(&b, "%s = %s\n", k, set[k])
	}
	return b.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// cacheMap: Berkeley DB is on its way out of the distributions.
func cacheMap(info rootInfo) string {
	if slices.Contains(info.Maps, "lmdb") {
		return "lmdb"
	}
	return "btree"
}

func masterCf(o Options) string {
	mx := "smtp       inet       n  -  n  -    -  smtpd\n"
	if o.Postscreen {
		mx = `smtp       inet       n  -  n  -    1  postscreen
smtpd      pass       -  -  n  -    -  smtpd
dnsblog    unix       -  -  n  -    0  dnsblog
tlsproxy   unix       -  -  n  -    0  tlsproxy
`
	}
	return `# service  type       private unpriv chroot wakeup maxproc command
` + mx + `submission inet       n  -  n  -    -  smtpd
  -o syslog_name=postfix/submission
  -o smtpd_sasl_auth_enable=yes
  -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
  -o smtpd_recipient_restrictions=
cleanup    unix       n  -  n  -    0  cleanup
qmgr       unix       n  -  n  300  1  qmgr
pickup     unix       n  -  n  60   1  pickup
tlsmgr     unix       -  -  n  1000? 1 tlsmgr
rewrite    unix       -  -  n  -    -  trivial-rewrite
bounce     unix       -  -  n  -    0  bounce
defer      unix       -  -  n  -    0  bounce
trace      unix       -  -  n  -    0  bounce
verify     unix       -  -  n  -    1  verify
flush      unix       n  -  n  1000? 0 flush
proxymap   unix       -  -  n  -    -  proxymap
proxywrite unix       -  -  n  -    1  proxymap
showq      unix       n  -  n  -    -  showq
error      unix       -  -  n  -    -  error
retry      unix       -  -  n  -    -  error
discard    unix       -  -  n  -    -  discard
anvil      unix       -  -  n  -    1  anvil
scache     unix       -  -  n  -    1  scache
postlog    unix-dgram n  -  n  -    1  postlogd
`
}

// dovecotConf is an authentication server and nothing else, without the usual
// two seconds per failed login and without Dovecot's own penalty per address:
// whether an attacker is slowed down is what the lab is there to measure.
// Dovecot still answers failures only twice a second.
func dovecotConf(version string) string {
	head := `auth_failure_delay = 0
disable_plaintext_auth = no
passdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
`
	if !strings.HasPrefix(version, "2.3") && !strings.HasPrefix(version, "2.2") {
		head = `dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
auth_failure_delay = 0
auth_allow_cleartext = yes
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
`
	}
	return head + `protocols =
ssl = no
log_path = /var/log/dovecot.log
base_dir = /run/dovecot
auth_mechanisms = plain login
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
service auth {
  unix_listener /var/spool/postfix/private/auth {
    mode = 0660
    user = postfix
    group = postfix
  }
}
`
}

// postconfScript runs the real postconf over the server's configuration, in a
// mount namespace of its own, so that it needs no running server. The log has
// another path inside the server's root than on the machine; where postconf
// says /var/log/mail.log, the script says LogPath. All other paths
// (config_directory, queue_directory, ...) are those inside the root.
func (p *Postfix) postconfScript(rootDir string) string {
	return fmt.Sprintf(`#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
out=$(unshare -m sh -c 'mount --bind %[2]s %[1]s/etc/postfix && exec chroot %[1]s /usr/sbin/postconf "$@"' postconf "$@")
rc=$?
[ -z "$out" ] || printf '%%s\n' "$out" | sed 's#/var/log/mail\.log#%[3]s#g'
exit $rc
`, rootDir, p.path("conf"), p.LogPath())
}

func (info rootInfo) postfix() string {
	for _, name := range info.Packages {
		if v, ok := strings.CutPrefix(name, "postfix_"); ok {
			v, _, _ = strings.Cut(v, "_")
			v, _, _ = strings.Cut(v, "-")
			return v
		}
	}
	return "?"
}

func (p *Postfix) start(rootDir string, o Options) error {
	console, err := os.Create(p.path("console.log"))
	if err != nil {
		return err
	}
	defer console.Close()
	mode := "overlay"
	if o.copyRoot {
		mode = "copy"
	}
	p.cmd = exec.Command("sh", "-c", startScript, "sh", rootDir, p.work, o.Hostname, mode)
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

func (p *Postfix) awaitGreeting(ctx context.Context, port uint16) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port)
	for {
		s, err := open(ctx, p.host, netip.Addr{}, to, 5*time.Second)
		if err == nil {
			code, text, rerr := s.read()
			s.quit()
			if code == 220 {
				return nil
			}
			err = errors.Join(fmt.Errorf("greeted with %d %s", code, text), rerr)
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
func (p *Postfix) complaints() string {
	var out []byte
	for _, name := range []string{"console.log", "log/dovecot.log", "log/mail.log"} {
		text, _ := os.ReadFile(p.path(name))
		if len(text) > 0 {
			out = fmt.Appendf(out, "\n%s: %s", name, tailOf(text, 600))
		}
	}
	return string(bytes.TrimSpace(out))
}

// Name says which Postfix it is.
func (p *Postfix) Name() string { return "Postfix " + p.version }

// LogPath is the mail log as a path of the machine, "WORKDIR/log/mail.log"; to
// Postfix it is /var/log/mail.log. Dovecot's own log stands beside it.
func (p *Postfix) LogPath() string { return p.path("log/mail.log") }

// Bin is a folder with a postconf (see postconfScript), for the front of PATH.
func (p *Postfix) Bin() string { return p.path("bin") }

// Conf is the folder that is /etc/postfix to the server.
func (p *Postfix) Conf() string { return p.path("conf") }

// Run runs a program of the root beside the server, such as "postfix", "reload".
func (p *Postfix) Run(args ...string) ([]byte, error) {
	select {
	case <-p.done:
		return nil, errors.New("Postfix is not running")
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

// Rotate (which takes over a second) runs Postfix's own `postfix logrotate`: the log is renamed to
// mail.log.YYYYMMDD-hhmmss, all services are told to start afresh, and until
// the logger has done so (a second or so) lines still go into the old file.
// It returns when the new file is there.
func (p *Postfix) Rotate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.Run("postfix", "logrotate"); err != nil {
		return err
	}
	for range 50 {
		if _, err := os.Stat(p.LogPath()); err == nil {
			return nil
		}
		// The new file comes with the first line for it, and an idle server
		// may have none.
		if _, err := p.Run("postlog", "-t", "postfix/lab", "the log was rotated"); err != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("no new %s five seconds after the rotation", p.LogPath())
}

// Stop ends Postfix and all its children. It may be called again.
func (p *Postfix) Stop() error {
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
