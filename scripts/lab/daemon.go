//go:build linux

package lab

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Daemon is a running Exim, OpenSMTPD, Sendmail, Courier or Cyrus. It takes mail for user1 to
// userN@example.org on ports 25 and 587 and throws it away, and knows their
// passwords, as Postfix does. Cyrus takes no mail by SMTP, and its users are user1 to userN.
type Daemon struct {
	server
	kind    Kind
	version string
	log     string // under work
	syslog  bool
}

var _ MTA = (*Daemon)(nil)

// A recipe says how a kind of daemon is run.
type daemonRecipe struct {
	title   string
	pkg     string
	dirs    []string
	files   func(o Options) (map[string]string, error)
	script  string
	ownLog  string // the log under work if it is not rsyslog's
	syslogs bool   // it has no log of its own
}

var daemonRecipes = map[Kind]daemonRecipe{
	KindExim: {
		title: "Exim", pkg: "exim4-daemon-light",
		dirs: []string{"conf:etc/exim4", "log:var/log"}, files: eximFiles, ownLog: "log/exim/mainlog",
		script: `
			install -d -o Debian-exim -g Debian-exim -m 755 /var/log/exim
			exec /usr/sbin/exim4 -bdf -q30m`,
	},
	KindCourier:    courier,
	KindCyrus:      cyrus,
	KindOpenSMTPD:  opensmtpd,
	KindOpenSMTPD7: opensmtpd,
	KindSendmail: {
		title: "Sendmail", pkg: "sendmail-bin",
		dirs: []string{"conf:etc/lab", "log:var/log"}, files: sendmailFiles, syslogs: true,
		script: `
			cp /etc/lab/Sendmail.conf /usr/lib/sasl2/Sendmail.conf
			cp /etc/lab/Sendmail.conf /etc/mail/sasl/Sendmail.conf
			cp /etc/lab/local-host-names /etc/lab/submit.cf /etc/mail/
			m4 -D_CF_DIR_=/usr/share/sendmail/cf/ /usr/share/sendmail/cf/m4/cf.m4 /etc/lab/sendmail.mc >/etc/mail/sendmail.cf
			cat /etc/lab/hosts >>/etc/hosts
			# Without a name server every relay test would be a temporary error.
			printf '%s\n' 'passwd: files' 'group: files' 'hosts: files' >/etc/nsswitch.conf
			: >/etc/mail/aliases
			sendmail -bi >/dev/null
			makemap hash /etc/mail/virtusertable </etc/lab/virtusertable
			makemap hash /etc/mail/access </etc/lab/access
			while read -r user password; do
				printf %s "$password" | saslpasswd2 -p -c -u mx1.example.org "$user" 2>/dev/null
			done </etc/lab/passwords
			exec /usr/sbin/sendmail -bD -q30m`,
	},
}

var courier = daemonRecipe{
	title: "Courier", pkg: "courier-mta",
	dirs: []string{"conf:etc/lab", "log:var/log"}, files: courierFiles, syslogs: true,
	script: `
		install -d -o root -g courier -m 775 /run/courier
		install -d -o courier -g courier -m 750 /run/courier/authdaemon
		cd /etc/lab
		cp me defaultdomain hosteddomains.txt esmtpacceptmailfor locals userdb /etc/courier/
		mv /etc/courier/hosteddomains.txt /etc/courier/hosteddomains/lab
		chmod 700 /etc/courier/userdb
		chmod 600 /etc/courier/userdb
		for f in authdaemonrc courierd esmtpd esmtpd-msa imapd pop3d; do
			cat add.$f >>/etc/courier/$f
		done
		: >/etc/environment
		: >/etc/courier/dhparams.pem
		makehosteddomains
		makesmtpaccess
		makealiases
		makeuserdb
		maildirmake /var/vmail/Maildir
		chown -R vmail:vmail /var/vmail
		authdaemond start
		courier start
		for s in esmtpd esmtpd-msa imapd pop3d; do
			$s start
		done
		# They are daemons all of them, and their orphans must be buried.
		trap "exit 0" TERM
		while :; do
			sleep 3600 &
			wait $!
		done`,
}

var cyrus = daemonRecipe{
	title: "Cyrus", pkg: "cyrus-imapd",
	dirs: []string{"conf:etc/lab", "log:var/log"}, files: cyrusFiles, syslogs: true,
	script: `
		cp /etc/lab/imapd.conf /etc/lab/cyrus.conf /etc/
		install -d -o cyrus -g mail -m 755 /run/cyrus /run/cyrus/proc /run/cyrus/lock /run/cyrus/socket
		install -d -o cyrus -g mail /var/lib/cyrus/db /var/lib/cyrus/socket
		while read -r user password; do
			printf %s "$password" | saslpasswd2 -p -c -u "$(uname -n)" "$user"
		done </etc/lab/passwords
		chown cyrus:mail /etc/sasldb2
		exec /usr/sbin/cyrmaster`,
}

var opensmtpd = daemonRecipe{
	title: "OpenSMTPD", pkg: "opensmtpd",
	dirs: []string{"conf:etc/lab", "log:var/log"}, files: opensmtpdFiles, syslogs: true,
	script: `
		install -d -o vmail -g vmail /var/vmail
		mkdir -p /etc/ssl/certs
		cp /etc/lab/mx.crt /etc/ssl/certs/ca-certificates.crt
		hash=$(smtpctl encrypt "$(cat /etc/lab/password)")
		while read -r name; do echo "$name $hash"; done </etc/lab/names >/etc/lab/passwords
		exec /usr/sbin/smtpd -F -f /etc/lab/smtpd.conf`,
}

// StartDaemon runs the server of rootDir (see Root) on host, as StartPostfix
// does, and returns when ports 25 and 587 greet, of Courier 143 and 110 too, of Cyrus these and 4190. Of o it heeds Recipients,
// Password, Hostname, Resolver, Syslog and Extra.
func StartDaemon(ctx context.Context, host *Host, kind Kind, rootDir, workDir string, o Options) (*Daemon, error) {
	r, ok := daemonRecipes[kind]
	if !ok {
		return nil, fmt.Errorf("%s is no mail server that StartDaemon knows", kind)
	}
	o = o.withDefaults()
	if r.syslogs && o.Syslog == "" {
		o.Syslog = "iso"
	}
	info, err := readRootInfo(rootDir)
	if err != nil {
		return nil, err
	}
	if workDir, err = filepath.Abs(workDir); err != nil {
		return nil, err
	}
	if strings.ContainsAny(workDir+rootDir, ":,") {
		return nil, fmt.Errorf("overlay mounts do not take a colon or comma in %s or %s", workDir, rootDir)
	}
	d := &Daemon{kind: kind, version: info.version(r.pkg), syslog: o.Syslog != "", log: "log/mail.log"}
	if !d.syslog {
		d.log = r.ownLog
	}
	d.server = server{host: host, work: workDir, name: r.title, dirs: r.dirs, last: []string{"console.log", d.log}}
	files, err := r.files(o)
	if err != nil {
		return nil, err
	}
	script := r.script
	if d.syslog {
		files["conf/rsyslog.conf"] = rsyslogConf(o)
		target, _, _ := strings.Cut(r.dirs[0][len("conf:"):], ":")
		script = startSyslog + " /" + target + "/rsyslog.conf\n" + script
	}
	if err := d.write(files, o); err != nil {
		return nil, fmt.Errorf("configure %s: %w", r.title, err)
	}
	if kind == KindSendmail && !strings.Contains(o.Extra, "Family=inet6") {
		// Its two sockets on one port.
		if err := host.Sysctl("net/ipv6/bindv6only", "1"); err != nil {
			return nil, err
		}
	}
	if err := d.start(rootDir, script, o); err != nil {
		return nil, fmt.Errorf("start %s: %w", r.title, err)
	}
	if err := host.lab.adopt(d); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	ports := []uint16{25, 587}
	switch kind {
	case KindCourier:
		ports = append(ports, 143, 110)
	case KindCyrus:
		ports = []uint16{143, 110, 4190}
	}
	for _, port := range ports {
		if err := d.awaitGreeting(ctx, port); err != nil {
			return nil, errors.Join(fmt.Errorf("start %s: %w", r.title, err), d.Stop())
		}
	}
	return d, nil
}

// Name says which server it is.
func (d *Daemon) Name() string { return d.name + " " + d.version }

// LogPath is the log as a path of the machine: Exim's main log, or what rsyslog
// writes.
func (d *Daemon) LogPath() string { return d.path(d.log) }

// Bin is an empty folder.
func (d *Daemon) Bin() string { return d.path("bin") }

// Rotate renames the log to LogPath.1. A new one is there on return.
func (d *Daemon) Rotate() error {
	if d.syslog {
		return d.rotateSyslog(d.LogPath())
	}
	// Exim opens its files anew for each process that writes.
	return os.Rename(d.LogPath(), d.LogPath()+".1")
}

func eximFiles(o Options) (map[string]string, error) {
	log := "log_file_path = /var/log/exim/%slog"
	if o.Syslog != "" {
		log = "log_file_path = syslog"
	}
	main, acl, _ := strings.Cut(o.Extra, "\nbegin acl\n")
	if !strings.Contains(acl, "acl_check_rcpt:") {
		// The rules of Exim's own example configuration, without what asks DNS.
		acl += `
acl_check_rcpt:
  accept  hosts = :
  deny    message = Restricted characters in address
          domains = +local_domains
          local_parts = ^[.] : ^.*[@%!/|]
  accept  authenticated = *
  require message = relay not permitted
          domains = +local_domains
  require verify = recipient
  accept
`
	}
	acl += `
acl_lab_connect:
  accept  hosts = ` + Waited4.String() + `
          delay = 1s
  accept
`
	return map[string]string{
		"conf/users": recipientNames(o, "%s\n"),
		"conf/exim4.conf": `primary_hostname = ` + o.Hostname + `
domainlist local_domains = example.org
acl_smtp_rcpt = acl_check_rcpt
acl_smtp_connect = acl_lab_connect
daemon_smtp_ports = 25 : 587
host_lookup =
rfc1413_hosts =
tls_advertise_hosts =
never_users = root
ignore_bounce_errors_after = 0s
` + log + "\n" + main + `
begin acl
` + acl + `
begin routers
local:
  driver = accept
  domains = +local_domains
  local_parts = lsearch;/etc/exim4/users
  transport = drop

begin transports
drop:
  driver = appendfile
  file = /dev/null
  user = Debian-exim

begin retry
*  *  F,2h,15m

begin authenticators
plain_server:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${if and{{eq{$auth3}{` + o.Password + `}}{match{$auth2}{\N^user[0-9]+@example\.org$\N}}}}
  server_set_id = $auth2
login_server:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth2}{` + o.Password + `}}{match{$auth1}{\N^user[0-9]+@example\.org$\N}}}}
  server_set_id = $auth1
`}, nil
}

func recipientNames(o Options, format string) string {
	var b strings.Builder
	for i := range o.Recipients {
		name, _, _ := strings.Cut(userAddress(i+1), "@")
		fmt.Fprintf(&b, format, name)
	}
	return b.String()
}

// courierFiles: a fault costs a client of Courier 8, 16, ... seconds (TARPIT), and five connections are all that one may
// have; whether an attacker is slowed down is what the lab is there to measure.
func courierFiles(o Options) (map[string]string, error) {
	var users strings.Builder
	sum := sha256.Sum256([]byte(o.Password))
	hash := base64.StdEncoding.EncodeToString(sum[:])
	for i := range o.Recipients {
		fmt.Fprintf(&users, "%s\tuid=%d|gid=%d|home=/var/vmail|systempw={SHA256}%s\n", userAddress(i+1), uidUser, uidUser, hash)
	}
	const many = "MAXDAEMONS=200\nMAXPERC=200\nMAXPERIP=200\n"
	mx := many + "TCPDOPTS=\"-stderrlogger=/usr/sbin/courierlogger -noidentlookup -nodnslookup\"\nPORT=25\nBOFHCHECKDNS=0\nTARPIT=0\n" + o.Extra
	return map[string]string{
		"conf/me":                 o.Hostname + "\n",
		"conf/defaultdomain":      "example.org\n",
		"conf/locals":             "localhost\n",
		"conf/hosteddomains.txt":  "example.org\n",
		"conf/esmtpacceptmailfor": "example.org\n",
		"conf/userdb":             users.String(),
		"conf/add.authdaemonrc":   `authmodulelist="authuserdb"` + "\n",
		"conf/add.courierd":       `DEFAULTDELIVERY="| /bin/cat >/dev/null"` + "\n",
		"conf/add.esmtpd":         mx,
		"conf/add.esmtpd-msa":     mx + "PORT=587\nAUTH_REQUIRED=1\nESMTPAUTH=\"LOGIN PLAIN\"\n",
		"conf/add.imapd":          many,
		"conf/add.pop3d":          many + "POP3AUTH=\"LOGIN PLAIN\"\n",
	}, nil
}

// cyrusFiles: without a pause, which is three seconds, each failure would cost a test that.
func cyrusFiles(o Options) (map[string]string, error) {
	var passwords strings.Builder
	for i := range min(o.Recipients, 6) { // each costs a process
		fmt.Fprintf(&passwords, "user%d %s\n", i+1, o.Password)
	}
	return map[string]string{
		"conf/passwords": passwords.String(),
		"conf/imapd.conf": `configdirectory: /var/lib/cyrus
proc_path: /run/cyrus/proc
mboxname_lockpath: /run/cyrus/lock
lmtpsocket: /run/cyrus/socket/lmtp
idlesocket: /run/cyrus/socket/idle
notifysocket: /run/cyrus/socket/notify
defaultpartition: default
partition-default: /var/spool/cyrus/mail
sievedir: /var/spool/sieve
servername: ` + o.Hostname + `
autocreate_quota: 0
umask: 077
allowplaintext: yes
failedloginpause: 0
sasl_pwcheck_method: auxprop
sasl_auxprop_plugin: sasldb
sasl_mech_list: PLAIN LOGIN CRAM-MD5
syslog_prefix: cyrus
` + o.Extra,
		"conf/cyrus.conf": `START {
  recover cmd="ctl_cyrusdb -r"
}
SERVICES {
  imap cmd="imapd" listen="imap" prefork=1 maxchild=100
  pop3 cmd="pop3d" listen="pop3" prefork=1 maxchild=100
  sieve cmd="timsieved" listen="4190" prefork=1 maxchild=100
}
EVENTS {
}
`,
	}, nil
}

// opensmtpdFiles: OpenSMTPD offers AUTH only under TLS, so it needs a key.
func opensmtpdFiles(o Options) (map[string]string, error) {
	cert, key, err := selfSigned(o.Hostname)
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"conf/mx.crt":   cert,
		"conf/mx.key":   key,
		"conf/users":    recipients(o, "%s vmail\n"),
		"conf/names":    recipients(o, "%s\n"),
		"conf/password": o.Password,
		"conf/smtpd.conf": `pki lab cert "/etc/lab/mx.crt"
pki lab key "/etc/lab/mx.key"
table users file:/etc/lab/users
table passwords file:/etc/lab/passwords
` + o.Extra + `
listen on 0.0.0.0 port 25 tls pki lab hostname "` + o.Hostname + `"
listen on :: port 25 tls pki lab hostname "` + o.Hostname + `"
listen on 0.0.0.0 port 587 tls pki lab auth <passwords> hostname "` + o.Hostname + `"
listen on :: port 587 tls pki lab auth <passwords> hostname "` + o.Hostname + `"
action drop mda "/bin/cat >/dev/null" virtual <users>
action out relay
match from any for domain "example.org" action drop
match auth from any for any action out
`}, nil
}

// selfSigned makes a certificate of a day, and its key, as PEM.
func selfSigned(name string) (cert, key string, err error) {
	// Not an elliptic curve: OpenSMTPD 6.8 fails with those under OpenSSL 3.
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", "", err
	}
	now := time.Now()
	t := x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
	c, err := x509.CreateCertificate(rand.Reader, &t, &t, &k.PublicKey, k)
	if err != nil {
		return "", "", err
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})), nil
}

func sendmailFiles(o Options) (map[string]string, error) {
	var passwords strings.Builder
	for i := range min(o.Recipients, 3) { // each costs a process
		fmt.Fprintf(&passwords, "user%d %s\n", i+1, o.Password)
	}
	return map[string]string{
		"conf/passwords":        passwords.String(),
		"conf/hosts":            "127.0.0.1 " + o.Hostname + "\n", // else it asks DNS for its own name
		"conf/local-host-names": "example.org\n",
		"conf/submit.cf":        "",
		"conf/access":           "GreetPause:198.18.77\t500\n",
		"conf/virtusertable":    recipients(o, "%s nobody\n"),
		"conf/Sendmail.conf":    "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\n",
		"conf/sendmail.mc": `divert(0)dnl
OSTYPE(` + "`debian')dnl" + `
DOMAIN(` + "`debian-mta')dnl" + `
define(` + "`LOCAL_MAILER_PATH', `/usr/bin/tee')dnl" + `
define(` + "`LOCAL_MAILER_ARGS', `tee /dev/null')dnl" + `
define(` + "`confDOMAIN_NAME', `" + o.Hostname + "')dnl" + `
define(` + "`confDONT_PROBE_INTERFACES', `true')dnl" + `
define(` + "`confTO_IDENT', `0')dnl" + `
define(` + "`confAUTH_MECHANISMS', `PLAIN LOGIN')dnl" + `
TRUST_AUTH_MECH(` + "`PLAIN LOGIN')dnl" + `
FEATURE(` + "`use_cw_file')dnl" + `
FEATURE(` + "`no_default_msa')dnl" + `
FEATURE(` + "`nocanonify')dnl" + `
FEATURE(` + "`accept_unresolvable_domains')dnl" + `
FEATURE(` + "`access_db')dnl" + `
FEATURE(` + "`greet_pause', `0')dnl" + `
FEATURE(` + "`virtusertable')dnl" + `
VIRTUSER_DOMAIN(` + "`example.org')dnl" + `
DAEMON_OPTIONS(` + "`Family=inet, Name=MTA-v4, Port=25')dnl" + `
DAEMON_OPTIONS(` + "`Family=inet6, Name=MTA-v6, Port=25')dnl" + `
DAEMON_OPTIONS(` + "`Family=inet, Name=MSP-v4, Port=587')dnl" + `
` + o.Extra + `
MAILER_DEFINITIONS
MAILER(` + "`local')dnl" + `
MAILER(` + "`smtp')dnl" + `
`}, nil
}
