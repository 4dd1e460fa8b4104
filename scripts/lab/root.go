//go:build linux

package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// recipe is part of the cache key: raise it when what goes into a root changes.
const recipe = "r3"

// A Kind is what a private root holds.
type Kind string

// The kinds of root. Packages that conflict with each other need roots of their
// own.
const (
	KindPostfix   Kind = "postfix"   // Postfix, and Dovecot as its SASL server
	KindDovecot   Kind = "dovecot"   // the same, Dovecot's IMAP and POP3, and rsyslog
	KindExim      Kind = "exim"      // Exim and rsyslog
	KindOpenSMTPD Kind = "opensmtpd" // OpenSMTPD and rsyslog
	KindSendmail  Kind = "sendmail"  // Sendmail, Cyrus SASL and rsyslog
	KindCourier   Kind = "courier"   // Courier with IMAP and POP3, and rsyslog
	KindCyrus     Kind = "cyrus"     // Cyrus IMAP with POP3 and ManageSieve, and rsyslog
	KindFail2ban  Kind = "fail2ban"  // fail2ban and its Python
	KindDNS       Kind = "dns"       // unbound, rbldnsd and dig
	KindFilters   Kind = "filters"   // nft, ipset, iptables and xdp-filter
	KindLogrotate Kind = "logrotate"

	// The same from a newer release, on Debian only; see otherSuites.
	KindDovecot24  Kind = "dovecot24"  // Dovecot 2.4, whose configuration and log are others
	KindOpenSMTPD7 Kind = "opensmtpd7" // OpenSMTPD 7; 6.8 has no TLS under OpenSSL 3, and so no logins

	// Kernels, for an emulated machine, each from its release of Debian.
	KindLinux510 Kind = "linux5.10"
	KindLinux61  Kind = "linux6.1"
	KindLinux612 Kind = "linux6.12"
	KindLinux7   Kind = "linux7" // the newest that a named release has
)

// otherSuites are the kinds of root that are made from a certain release, not
// the machine's: a root has its own C library.
var otherSuites = map[Kind]string{
	KindDovecot24: "trixie", KindOpenSMTPD7: "trixie",
	KindLinux510: "bullseye", KindLinux61: "bookworm", KindLinux612: "trixie", KindLinux7: "forky",
}

// A root's contents: the package that gives it its name, and the others. What
// the start-up scripts of the lab and of the servers call is in all of them.
// mount is for leaving the old root behind (see start.sh).
var rootPackages = map[Kind][]string{
	KindPostfix: {"postfix", "postfix-lmdb", "dovecot-core", "sed", "grep", "findutils", "gawk", "diffutils"},
	KindDovecot: {"dovecot-core", "dovecot-imapd", "dovecot-pop3d", "postfix", "postfix-lmdb", "rsyslog",
		"sed", "grep", "findutils", "gawk", "diffutils"},
	KindDovecot24: {"dovecot-core", "dovecot-imapd", "dovecot-pop3d", "postfix", "postfix-lmdb", "rsyslog",
		"sed", "grep", "findutils", "gawk", "diffutils"},
	KindExim:       {"exim4-daemon-light", "rsyslog"},
	KindOpenSMTPD:  {"opensmtpd", "rsyslog"},
	KindOpenSMTPD7: {"opensmtpd", "rsyslog"},
	KindSendmail:   {"sendmail-bin", "sendmail-cf", "sensible-mda", "m4", "sasl2-bin", "libsasl2-modules", "rsyslog", "sed", "grep"},
	KindCourier:    {"courier-mta", "courier-imap", "courier-pop", "courier-authlib-userdb", "rsyslog", "sed", "grep", "findutils"},
	KindCyrus:      {"cyrus-imapd", "cyrus-pop3d", "sasl2-bin", "libsasl2-modules", "dma", "rsyslog"}, // it wants a mail server: dma is small
	KindFail2ban:   {"fail2ban", "python3", "python3-pyinotify"},
	KindDNS:        {"unbound", "rbldnsd", "bind9-dnsutils"},
	KindFilters:    {"nftables", "ipset", "iptables", "xdp-tools"},
	KindLogrotate:  {"logrotate", "gzip"},
	KindLinux510:   linuxPackages,
	KindLinux61:    linuxPackages,
	KindLinux612:   linuxPackages,
	KindLinux7:     linuxPackages,
}

// depmod reads compressed modules by a library it does not depend on: without, no module depends on another.
var linuxPackages = []string{linuxMeta, "busybox-static", "kmod", "liblzma5"}

// linuxMeta depends on the newest kernel of its release.
const linuxMeta = "linux-image-cloud-amd64"

var anyRoot = []string{"dash", "coreutils", "mount"}

// Users of the private root, by number: maintainer scripts, which would have
// made them, are not run.
const (
	uidPostfix  = 28901
	uidDovecot  = 28902
	uidDovenull = 28903
	gidPostdrop = 28904
	uidExim     = 28905
	uidSMTPD    = 28906
	uidSMTPQ    = 28907
	uidSendmail = 28908
	uidSubmit   = 28909
	uidUser     = 28910
	gidSASL     = 28911
	uidCourier  = 28912
	uidCyrus    = 28913
	gidMail     = 8 // as everywhere
)

var rootFiles = map[string]string{
	"etc/passwd": fmt.Sprintf(`root:x:0:0:root:/root:/bin/sh
mail:x:8:8:mail:/var/mail:/bin/false
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
postfix:x:%[1]d:%[1]d:Postfix:/var/spool/postfix:/bin/false
dovecot:x:%[2]d:%[2]d:Dovecot:/nonexistent:/bin/false
dovenull:x:%[3]d:%[3]d:Dovecot login:/nonexistent:/bin/false
Debian-exim:x:%[4]d:%[4]d:Exim:/var/spool/exim4:/bin/false
opensmtpd:x:%[5]d:%[5]d:OpenSMTPD:/var/lib/opensmtpd/empty:/bin/false
opensmtpq:x:%[6]d:%[6]d:OpenSMTPD queue:/var/lib/opensmtpd/empty:/bin/false
smmta:x:%[7]d:%[7]d:Sendmail:/var/lib/sendmail:/bin/false
smmsp:x:%[8]d:%[8]d:Sendmail submission:/var/lib/sendmail:/bin/false
vmail:x:%[9]d:%[9]d:mailboxes:/var/vmail:/bin/false
courier:x:%[10]d:%[10]d:Courier:/var/lib/courier:/bin/false
cyrus:x:%[11]d:%[12]d:Cyrus:/var/spool/cyrus:/bin/sh
`, uidPostfix, uidDovecot, uidDovenull, uidExim, uidSMTPD, uidSMTPQ, uidSendmail, uidSubmit, uidUser, uidCourier, uidCyrus, gidMail),
	"etc/group": fmt.Sprintf(`root:x:0:
adm:x:4:
mail:x:8:
nogroup:x:65534:
postfix:x:%d:
dovecot:x:%d:
dovenull:x:%d:
postdrop:x:%d:
Debian-exim:x:%d:
opensmtpd:x:%d:
opensmtpq:x:%d:
smmta:x:%d:
smmsp:x:%d:
vmail:x:%d:
sasl:x:%d:
courier:x:%d:
`, uidPostfix, uidDovecot, uidDovenull, gidPostdrop, uidExim, uidSMTPD, uidSMTPQ, uidSendmail, uidSubmit, uidUser, gidSASL, uidCourier),
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\nprotocols: files\n",
	"etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n",
	// Nobody answers there: a lookup fails at once instead of leaving the lab.
	"etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}

// rootInfo is lab.json at the top of a root.
type rootInfo struct {
	Packages []string // file names: NAME_VERSION_ARCH.deb
	Dovecot  string   // version
	Maps     []string // postconf -m
}

// CacheDir is $MXSHIELD_LAB_CACHE, or /var/cache/mxshield-lab.
func CacheDir() string {
	if dir := os.Getenv("MXSHIELD_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/mxshield-lab"
}

// PostfixRoot returns a folder that holds this distribution's Postfix, Dovecot
// and what they need, for StartPostfix. The first call downloads the packages
// (about 50 MB, from the machine's own apt sources) and unpacks them; the host
// gets no package, runs no maintainer script and keeps its apt state. Later
// calls return what is in cacheDir under
//
//	DISTRIBUTION-VERSION-ARCH-RECIPE-postfix_VERSION-HASH OF ALL PACKAGE VERSIONS
//
// and look for nothing newer; remove the folder for that. Nobody writes to a
// root once it is there. Concurrent callers, in other processes too, wait for
// one download. log, which may be nil, is told what takes long.
func PostfixRoot(ctx context.Context, cacheDir string, log func(string)) (string, error) {
	return Root(ctx, cacheDir, KindPostfix, log)
}

// Root is PostfixRoot for any kind of root. The names of the others begin with
// their kind.
func Root(ctx context.Context, cacheDir string, kind Kind, log func(string)) (string, error) {
	if rootPackages[kind] == nil {
		return "", fmt.Errorf("no kind of root is called %q", kind)
	}
	if log == nil {
		log = func(string) {}
	}
	rel, err := hostRelease()
	if err != nil {
		return "", err
	}
	if dir := newestRoot(cacheDir, kind, rel); dir != "" {
		return dir, nil
	}
	if os.Geteuid() != 0 {
		return "", ErrNotRoot
	}
	if err := os.MkdirAll(cacheDir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lockFile(ctx, filepath.Join(cacheDir, "lock"), log)
	if err != nil {
		return "", err
	}
	defer unlock()
	if dir := newestRoot(cacheDir, kind, rel); dir != "" {
		return dir, nil // somebody else made it while we waited
	}
	// The lock is ours, so a temporary folder here is a dead run's.
	for _, name := range dirNames(cacheDir) {
		if strings.HasPrefix(name, "tmp-") {
			if err := removeTree(filepath.Join(cacheDir, name)); err != nil {
				return "", err
			}
		}
	}
	tmp, err := os.MkdirTemp(cacheDir, "tmp-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	suite := otherSuites[kind]
	if suite != "" && rel.id != "debian" {
		return "", fmt.Errorf("the root for %s is made from Debian %s, and this is %s", kind, suite, rel.id)
	}
	b := builder{
		kind: kind, suite: suite, tmp: tmp, root: filepath.Join(tmp, "root"), rel: rel, log: log,
		lists: filepath.Join(cacheDir, "apt-"+rel.key()+cmp.Or(suite, rel.codename)),
	}
	name, err := b.build(ctx)
	if err != nil {
		return "", fmt.Errorf("make a private root for %s: %w", kind, err)
	}
	dir := filepath.Join(cacheDir, name)
	if err := os.Rename(b.root, dir); err != nil {
		return "", err
	}
	return dir, nil
}

// newestRoot returns the most recently made finished root, or "". A root gets
// its name by rename, so one that has its name is finished.
func newestRoot(cacheDir string, kind Kind, rel release) string {
	key := rootName(kind, rel)
	var best string
	var bestTime time.Time
	for _, name := range dirNames(cacheDir) {
		dir := filepath.Join(cacheDir, name)
		st, err := os.Stat(filepath.Join(dir, "lab.json"))
		if err == nil && strings.HasPrefix(name, key) && st.ModTime().After(bestTime) {
			best, bestTime = dir, st.ModTime()
		}
	}
	return best
}

// lockFile waits for an exclusive flock, which the kernel drops with its owner.
func lockFile(ctx context.Context, path string, log func(string)) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for said := false; ; said = true {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !said {
			log("another process is making the root; waiting for it")
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

type release struct{ id, version, codename, arch string }

func (r release) key() string {
	return fmt.Sprintf("%s-%s-%s-%s-", r.id, r.version, r.arch, recipe)
}

func hostRelease() (release, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return release{}, err
	}
	field := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			field[k] = strings.Trim(v, `"'`)
		}
	}
	for _, tool := range []string{"apt-get", "apt-config", "dpkg", "dpkg-deb", "tar"} {
		if _, err := exec.LookPath(tool); err != nil {
			return release{}, fmt.Errorf("no %s here: private roots are made from Debian or Ubuntu packages", tool)
		}
	}
	arch, err := exec.Command("dpkg", "--print-architecture").Output()
	if err != nil {
		return release{}, fmt.Errorf("dpkg --print-architecture: %w", err)
	}
	r := release{field["ID"], field["VERSION_ID"], field["VERSION_CODENAME"], strings.TrimSpace(string(arch))}
	if r.version == "" {
		r.version = r.codename // testing has no number
	}
	return r, nil
}

// rootName is how the name of a root begins. That of Postfix is the oldest and
// has no kind in front.
func rootName(kind Kind, rel release) string {
	name := rel.key() + rootPackages[kind][0] + "_"
	if kind != KindPostfix {
		name = string(kind) + "-" + name
	}
	return name
}

type builder struct {
	kind      Kind
	tmp, root string
	suite     string // another than the machine's
	lists     string // package lists, shared by the kinds of root
	rel       release
	log       func(string)
}

// freshLists is how old package lists may be before they are read again.
const freshLists = time.Hour

// download gets the packages into tmp. A mirror in the middle of an update
// answers 404 for what its lists name, and a network fails now and then: the
// lists are read anew and all is tried again, three times in all.
func (b *builder) download(ctx context.Context) error {
	want := append(slices.Clone(rootPackages[b.kind]), anyRoot...)
	stamp := filepath.Join(b.lists, "read")
	var err error
	for try := range 3 {
		if try > 0 {
			b.log(fmt.Sprintf("that failed, trying again: %.200s", err))
			select {
			case <-ctx.Done():
				return errors.Join(err, ctx.Err())
			case <-time.After(time.Duration(try) * 3 * time.Second):
			}
		}
		if st, serr := os.Stat(stamp); try > 0 || serr != nil || time.Since(st.ModTime()) > freshLists {
			b.log("reading the package lists of this distribution")
			if err = b.run(ctx, "apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"); err != nil {
				continue
			}
			if err := os.WriteFile(stamp, nil, 0o644); err != nil {
				return err
			}
		}
		if rootPackages[b.kind][0] == linuxMeta {
			// A mirror may keep the kernel of a release that gets no more updates, and lose this package, which is empty.
			if want[0], err = b.linuxImage(ctx); err != nil {
				return err
			}
		}
		b.log(fmt.Sprintf("downloading %s (once)", b.kind))
		if err = b.run(ctx, "apt-get", append([]string{"-q", "-y", "--download-only", "install"}, want...)...); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%w\nhint: apt must reach the mirrors in /etc/apt (apt-config dump Acquire shows its proxies); packages are kept in %s once they are there", err, filepath.Dir(b.lists))
}

// linuxImage is the package of the newest kernel.
func (b *builder) linuxImage(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "apt-cache", "depends", linuxMeta)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(b.tmp, "apt.conf"), "LC_ALL=C")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("apt-cache depends %s: %w", linuxMeta, err)
	}
	m := regexp.MustCompile(`Depends: (linux-image-[0-9]\S+)`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s depends on no kernel: %.200q", linuxMeta, out)
	}
	return string(m[1]), nil
}

// build fills b.root and returns the name it deserves in the cache.
func (b *builder) build(ctx context.Context) (string, error) {
	if err := b.writeAptConf(ctx); err != nil {
		return "", err
	}
	if err := b.download(ctx); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(b.tmp, "cache/archives/*.deb"))
	if err != nil || len(debs) == 0 {
		return "", errors.Join(errors.New("apt-get downloaded nothing"), err)
	}
	b.log(fmt.Sprintf("unpacking %d packages", len(debs)))
	if err := b.unpack(ctx, debs); err != nil {
		return "", err
	}
	if err := b.finish(); err != nil {
		return "", err
	}
	info := rootInfo{}
	version := ""
	for _, deb := range debs {
		name := strings.ReplaceAll(filepath.Base(deb), "%3a", ":") // apt's escape
		info.Packages = append(info.Packages, name)
		f := strings.Split(name, "_")
		if len(f) == 3 && (f[0] == rootPackages[b.kind][0] || otherSuites[b.kind] != "" && strings.HasPrefix(f[0], "linux-image-")) {
			version = f[1]
		}
	}
	slices.Sort(info.Packages)
	if err := b.ask(ctx, &info); err != nil {
		return "", err
	}
	text, err := json.MarshalIndent(info, "", "\t")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(b.root, "lab.json"), text, 0o644); err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(strings.Join(info.Packages, "\n")))
	return rootName(b.kind, b.rel) + strings.NewReplacer(":", "-", "/", "-", "~", "-", "+", "-").Replace(version) +
		"-" + hex.EncodeToString(sum[:6]), nil
}

// writeAptConf makes an apt that knows the host's sources, keys and way to the
// network, and nothing else of it: no state, no cache, no list of installed
// packages, and above all none of the hooks in apt.conf.d, some of which empty
// the host's own cache.
func (b *builder) writeAptConf(ctx context.Context) error {
	for _, dir := range []string{"state", "cache/archives/partial", "sources", "log"} {
		if err := os.MkdirAll(filepath.Join(b.tmp, dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Join(b.lists, "partial"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.tmp, "status"), nil, 0o644); err != nil {
		return err
	}
	if err := b.copySources(); err != nil {
		return err
	}
	// Proxies and certificates of the host, from its own configuration.
	acquire, err := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output()
	if err != nil {
		return fmt.Errorf("apt-config dump: %w", err)
	}
	conf := fmt.Sprintf(`%[2]s
Dir::State "%[1]s/state";
Dir::State::lists "%[4]s";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Log "%[1]s/log";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "%[1]s/sources";
Dir::Etc::Parts "/dev/null";
Dir::Etc::Main "/dev/null";
APT::Architecture "%[3]s";
APT::Architectures { "%[3]s"; };
APT::Install-Recommends "0";
APT::Install-Suggests "0";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
`, b.tmp, acquire, b.rel.arch, b.lists)
	return os.WriteFile(filepath.Join(b.tmp, "apt.conf"), []byte(conf), 0o644)
}

// copySources takes the source files that speak of this release, so that a
// dozen third-party archives are not read as well; all files if none does.
func (b *builder) copySources() error {
	all, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	all = append(all, "/etc/apt/sources.list")
	suite := regexp.MustCompile(`(?m)^[^#\n]*[\s/]` + regexp.QuoteMeta(b.rel.codename) + `(-[a-z-]+|/updates)?(\s|$)`)
	texts, ours := map[string][]byte{}, false
	for _, path := range all {
		if ext := filepath.Ext(path); ext != ".list" && ext != ".sources" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		texts[path] = text
		ours = ours || b.rel.codename != "" && suite.Match(text)
	}
	if len(texts) == 0 {
		return errors.New("this machine has no apt sources")
	}
	for path, text := range texts {
		if (ours || b.suite != "") && !suite.Match(text) {
			continue
		}
		if b.suite != "" {
			text = bytes.ReplaceAll(text, []byte(b.rel.codename), []byte(b.suite))
		}
		if err := os.WriteFile(filepath.Join(b.tmp, "sources", filepath.Base(path)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// run runs a tool in a process group of its own, so that a cancelled apt-get
// takes its download helpers along.
func (b *builder) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(b.tmp, "apt.conf"), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tailOf(out, 600))
	}
	return nil
}

func tailOf(b []byte, n int) string {
	b = bytes.TrimSpace(b)
	if len(b) > n {
		b = b[len(b)-n:]
	}
	return string(b)
}

func (b *builder) unpack(ctx context.Context, debs []string) error {
	// The merged /usr of today's packages; tar must then not replace these
	// links by the folders of packages that still ship /bin.
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(b.root, "usr", d), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+d, filepath.Join(b.root, d)); err != nil {
			return err
		}
	}
	// tar fails on a stream that ends early, so dpkg-deb's failure shows too.
	const script = `dpkg-deb --fsys-tarfile "$1" | tar -x --keep-directory-symlink -C "$2" \
		--exclude=./usr/share/doc --exclude=./usr/share/man --exclude=./usr/share/locale`
	for _, deb := range debs {
		if err := b.run(ctx, "sh", "-c", script, "sh", deb, b.root); err != nil {
			return err
		}
	}
	return nil
}

// finish does what maintainer scripts would have done, as far as it matters.
func (b *builder) finish() error {
	for _, dir := range []string{"dev", "proc", "tmp", "run", "root", "old-root", "var/log", "var/lib", "var/spool/rsyslog", "etc"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range rootFiles {
		if err := os.WriteFile(filepath.Join(b.root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(b.root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for _, step := range rootSteps[b.kind] {
		if err := step(b.root); err != nil {
			return err
		}
	}
	return nil
}

var rootSteps = map[Kind][]func(root string) error{
	KindPostfix:   {finishPostfix},
	KindDovecot:   {finishPostfix, ownedDir("var/vmail", uidUser, uidUser, 0o700)},
	KindDovecot24: {finishPostfix, ownedDir("var/vmail", uidUser, uidUser, 0o700)},
	KindExim: {
		ownedDir("var/spool/exim4", uidExim, uidExim, 0o750),
		ownedDir("etc/exim4", 0, 0, 0o755),
		link("exim4", "usr/sbin/exim"),
	},
	KindOpenSMTPD:  finishOpenSMTPD,
	KindOpenSMTPD7: finishOpenSMTPD,
	KindSendmail: {
		ownedDir("var/spool/mqueue", uidSendmail, uidSubmit, 0o2750),
		ownedDir("var/spool/mqueue-client", uidSubmit, uidSubmit, 0o2770),
		ownedDir("run/sendmail/mta", uidSendmail, uidSubmit, 0o755),
		ownedDir("var/lib/sendmail", uidSendmail, uidSubmit, 0o755),
		ownedDir("etc/mail/sasl", 0, 0, 0o755),
		// update-alternatives would have made these.
		link("../libexec/sendmail/sendmail", "usr/sbin/sendmail"),
		link("../libexec/sendmail/makemap", "usr/sbin/makemap"),
	},
	KindCourier: {
		ownedDir("var/vmail", uidUser, uidUser, 0o700),
		ownedDir("var/lib/courier", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/allfilters", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/filters", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/msgq", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/msgs", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/track", uidCourier, uidCourier, 0o750),
		ownedDir("var/lib/courier/tmp", uidCourier, uidCourier, 0o770),
		func(root string) error { // as its maintainer script does
			path := filepath.Join(root, "usr/lib/courier/courier/submitmkdir")
			return errors.Join(os.Chown(path, uidCourier, uidCourier), unix.Chmod(path, 0o4755))
		},
		link("makedat.courier", "usr/bin/makedat"),
		link("maildirmake.courier", "usr/bin/maildirmake"),
	},
	KindCyrus: {
		ownedDir("var/lib/cyrus", uidCyrus, gidMail, 0o750),
		ownedDir("var/spool/cyrus", uidCyrus, gidMail, 0o755),
		ownedDir("var/spool/sieve", uidCyrus, gidMail, 0o755),
	},
	KindFail2ban: {
		ownedDir("run/fail2ban", 0, 0, 0o755),
		ownedDir("var/lib/fail2ban", 0, 0, 0o755),
		ownedDir("etc/lab", 0, 0, 0o755),
	},
	KindLinux510: {indexModules}, KindLinux61: {indexModules}, KindLinux612: {indexModules}, KindLinux7: {indexModules},
}

// indexModules does what the kernel's maintainer script does.
func indexModules(root string) error {
	versions, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	if err != nil || len(versions) != 1 {
		return errors.Join(fmt.Errorf("there should be the modules of one kernel: %v", versions), err)
	}
	out, err := exec.Command("chroot", root, "/sbin/depmod", filepath.Base(versions[0])).CombinedOutput()
	if err != nil {
		return fmt.Errorf("depmod: %w: %s", err, tailOf(out, 300))
	}
	return nil
}

var finishOpenSMTPD = []func(root string) error{
	ownedDir("var/lib/opensmtpd/empty", 0, 0, 0o711),
	ownedDir("var/spool/smtpd", 0, 0, 0o711),
	ownedDir("etc/lab", 0, 0, 0o755),
	func(root string) error { // as its maintainer script does
		path := filepath.Join(root, "usr/sbin/smtpctl")
		return errors.Join(os.Chown(path, 0, uidSMTPQ), os.Chmod(path, 0o755|os.ModeSetgid))
	},
}

func ownedDir(name string, uid, gid int, mode uint32) func(string) error {
	return func(root string) error {
		dir := filepath.Join(root, name)
		// chmod comes after the chown, which clears the set-group-id bit.
		return errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, uid, gid), unix.Chmod(dir, mode))
	}
}

func link(target, name string) func(string) error {
	return func(root string) error {
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	}
}

func finishPostfix(root string) error {
	for _, dir := range []string{"var/lib/postfix", "var/lib/dovecot", "etc/postfix", "etc/dovecot"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	// update-alternatives would have made this one.
	if err := link("gawk", "usr/bin/awk")(root); err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "usr/lib/postfix/postfix-lmdb.so")); err == nil {
		line := "lmdb\tpostfix-lmdb.so\tdict_lmdb_open\tmkmap_lmdb_open\n"
		if err := os.WriteFile(filepath.Join(root, "etc/postfix/dynamicmaps.cf"), []byte(line), 0o644); err != nil {
			return err
		}
	}
	for _, name := range []string{"usr/sbin/postdrop", "usr/sbin/postqueue"} {
		path := filepath.Join(root, name)
		if err := os.Chown(path, 0, gidPostdrop); err != nil {
			return err
		}
		// After the chown, which clears the bit.
		if err := os.Chmod(path, 0o755|os.ModeSetgid); err != nil {
			return err
		}
	}
	return os.Chown(filepath.Join(root, "var/lib/postfix"), uidPostfix, uidPostfix)
}

// ask fills in what the binaries say of themselves.
func (b *builder) ask(ctx context.Context, info *rootInfo) error {
	info.Dovecot = info.version("dovecot-core")
	if info.version("postfix") == "" {
		return nil
	}
	conf := filepath.Join(b.root, "etc/postfix/main.cf")
	if err := os.WriteFile(conf, []byte("compatibility_level = 3.6\n"), 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "chroot", b.root, "/usr/sbin/postconf", "-m").CombinedOutput()
	if err != nil {
		return fmt.Errorf("postconf -m: %w: %s", err, tailOf(out, 300))
	}
	info.Maps = strings.Fields(string(out))
	return os.Remove(conf)
}

// version of a package, without epoch and Debian's revision; "" if it is not there.
func (info *rootInfo) version(name string) string {
	for _, p := range info.Packages {
		if v, ok := strings.CutPrefix(p, name+"_"); ok {
			if _, after, epoch := strings.Cut(v, ":"); epoch {
				v = after
			}
			v, _, _ = strings.Cut(v, "_")
			v, _, _ = strings.Cut(v, "-")
			return v
		}
	}
	return ""
}

func readRootInfo(root string) (rootInfo, error) {
	var info rootInfo
	text, err := os.ReadFile(filepath.Join(root, "lab.json"))
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil {
		return info, fmt.Errorf("%s is not a root made by the lab: %w", root, err)
	}
	return info, nil
}
