//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

	// Of the servers below rsyslog: "traditional" (RFC 3164 stamps) or "iso".
	// Postfix and Dovecot log by themselves and Exim into its own files if it
	// is empty; for the others that is "iso".
	Syslog    string
	Mailboxes bool   // Dovecot serves IMAP and POP3 on 143 and 110; needs the root KindDovecot
	Extra     string // lines for Dovecot's configuration, or that of the server that is no Postfix

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
	server
	version string
	syslog  string
}

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
	p := &Postfix{version: info.version("postfix"), syslog: o.Syslog, server: server{
		host: host, work: workDir, name: "Postfix", last: []string{"console.log", "log/dovecot.log", "log/mail.log"},
		dirs: []string{"conf:etc/postfix", "dovecot:etc/dovecot", "log:var/log"},
	}}
	if err := p.writeFiles(info, rootDir, o); err != nil {
		return nil, fmt.Errorf("configure Postfix: %w", err)
	}
	if err := p.start(rootDir, postfixScript(o), o); err != nil {
		return nil, fmt.Errorf("start Postfix: %w", err)
	}
	if err := host.lab.adopt(p); err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	ports := []uint16{25, 587}
	if o.Mailboxes {
		ports = append(ports, 143, 110)
	}
	for _, port := range ports {
		if err := p.awaitGreeting(ctx, port); err != nil {
			return nil, errors.Join(fmt.Errorf("start Postfix: %w", err), p.Stop())
		}
	}
	return p, nil
}

// writeFiles makes the working folder: conf, dovecot and log (mounted into the
// root), bin.
func (p *Postfix) writeFiles(info rootInfo, rootDir string, o Options) error {
	files := map[string]string{
		"conf/main.cf":         p.mainCf(info, o),
		"conf/master.cf":       masterCf(o),
		"conf/recipients":      recipients(o, "%s OK\n"),
		"dovecot/users":        recipients(o, "%s:{PLAIN}"+o.Password+"::::::\n"),
		"dovecot/dovecot.conf": dovecotConf(info.Dovecot, o),
		"conf/rsyslog.conf":    rsyslogConf(o),
	}
	// These were part of the root's /etc/postfix, which conf covers.
	for _, name := range []string{"postfix-files", "dynamicmaps.cf", "post-install", "postfix-script"} {
		if text, err := os.ReadFile(filepath.Join(rootDir, "etc/postfix", name)); err == nil {
			files["conf/"+name] = string(text)
		}
	}
	if err := p.write(files, o); err != nil {
		return err
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
		"maillog_file":          map[bool]string{true: "/var/log/mail.log"}[o.Syslog == ""],
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
smtp       unix       -  -  n  -    -  smtp
anvil      unix       -  -  n  -    1  anvil
scache     unix       -  -  n  -    1  scache
postlog    unix-dgram n  -  n  -    1  postlogd
`
}

// dovecotConf is an authentication server and nothing else, without the usual
// two seconds per failed login and without Dovecot's own penalty per address:
// whether an attacker is slowed down is what the lab is there to measure.
// Dovecot still answers failures only twice a second.
func dovecotConf(version string, o Options) string {
	head := `auth_failure_delay = 0
disable_plaintext_auth = no
passdb {
  driver = passwd-file
  args = /etc/dovecot/users
}
`
	old := strings.HasPrefix(version, "2.3") || strings.HasPrefix(version, "2.2")
	if !old {
		head = `dovecot_config_version = 2.4.0
dovecot_storage_version = 2.4.0
auth_failure_delay = 0
auth_allow_cleartext = yes
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
`
	}
	if o.Syslog == "" {
		head += "log_path = /var/log/dovecot.log\n"
	}
	switch {
	case !o.Mailboxes:
		head += "protocols =\n"
	case old:
		head += `protocols = imap pop3
userdb {
  driver = static
  args = uid=vmail gid=vmail home=/var/vmail/%u
}
mail_location = maildir:~/Maildir
`
	default:
		head += `protocols = imap pop3
userdb static {
  fields {
    uid = vmail
    gid = vmail
    home = /var/vmail/%{user}
  }
}
mail_driver = maildir
mail_path = ~/Maildir
`
	}
	return head + o.Extra + `ssl = no
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

func postfixScript(o Options) string {
	log := ""
	if o.Syslog != "" {
		log = startSyslog + " /etc/postfix/rsyslog.conf\n"
	}
	return log + `
	# Postfix makes its queue folders at its first start, Dovecot wants this
	# one before.
	install -d -o postfix -m 700 /var/spool/postfix/private
	dovecot
	# smtpd dies without its SASL socket, and master then waits a minute
	# before it starts another.
	tries=0
	until [ -S /var/spool/postfix/private/auth ]; do
		tries=$((tries + 1))
		[ $tries -lt 500 ] || { echo "no SASL socket from Dovecot" >&2; exit 1; }
		sleep 0.01
	done
	exec postfix start-fg
`
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

// Rotate (which takes over a second) runs Postfix's own `postfix logrotate`: the log is renamed to
// mail.log.YYYYMMDD-hhmmss, all services are told to start afresh, and until
// the logger has done so (a second or so) lines still go into the old file.
// It returns when the new file is there.
func (p *Postfix) Rotate() error {
	if p.syslog != "" {
		return p.rotateSyslog(p.LogPath())
	}
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
