//go:build linux

package lab

import (
	"bytes"
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
const recipe = "r1"

// What Postfix's own start-up scripts call, Postfix, and Dovecot as its SASL
// server. mount is for leaving the old root behind (see postfix.go).
var rootPackages = []string{
	"postfix", "postfix-lmdb", "dovecot-core",
	"dash", "coreutils", "sed", "grep", "findutils", "gawk", "diffutils", "mount",
}

// Users of the private root, by number: maintainer scripts, which would have
// made them, are not run.
const (
	uidPostfix  = 28901
	uidDovecot  = 28902
	uidDovenull = 28903
	gidPostdrop = 28904
)

var rootFiles = map[string]string{
	"etc/passwd": fmt.Sprintf(`root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
postfix:x:%[1]d:%[1]d:Postfix:/var/spool/postfix:/bin/false
dovecot:x:%[2]d:%[2]d:Dovecot:/nonexistent:/bin/false
dovenull:x:%[3]d:%[3]d:Dovecot login:/nonexistent:/bin/false
`, uidPostfix, uidDovecot, uidDovenull),
	"etc/group": fmt.Sprintf(`root:x:0:
mail:x:8:
nogroup:x:65534:
postfix:x:%d:
dovecot:x:%d:
dovenull:x:%d:
postdrop:x:%d:
`, uidPostfix, uidDovecot, uidDovenull, gidPostdrop),
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
	if log == nil {
		log = func(string) {}
	}
	rel, err := hostRelease()
	if err != nil {
		return "", err
	}
	if dir := newestRoot(cacheDir, rel.key()); dir != "" {
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
	if dir := newestRoot(cacheDir, rel.key()); dir != "" {
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
	b := builder{tmp: tmp, root: filepath.Join(tmp, "root"), rel: rel, log: log}
	name, err := b.build(ctx)
	if err != nil {
		return "", fmt.Errorf("make a private Postfix root: %w", err)
	}
	dir := filepath.Join(cacheDir, name)
	if err := os.Rename(b.root, dir); err != nil {
		return "", err
	}
	return dir, nil
}

// newestRoot returns the most recently made finished root, or "". A root gets
// its name by rename, so one that has its name is finished.
func newestRoot(cacheDir, key string) string {
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
			return release{}, fmt.Errorf("no %s here: the Postfix root is made from Debian or Ubuntu packages", tool)
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

type builder struct {
	tmp, root string
	rel       release
	log       func(string)
}

// build fills b.root and returns the name it deserves in the cache.
func (b *builder) build(ctx context.Context) (string, error) {
	if err := b.writeAptConf(ctx); err != nil {
		return "", err
	}
	b.log("reading the package lists of this distribution")
	if err := b.run(ctx, "apt-get", "-q", "update"); err != nil {
		return "", err
	}
	b.log("downloading Postfix and Dovecot (about 50 MB, once)")
	if err := b.run(ctx, "apt-get", append([]string{"-q", "-y", "--download-only", "install"}, rootPackages...)...); err != nil {
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
	postfix := ""
	for _, deb := range debs {
		name := strings.ReplaceAll(filepath.Base(deb), "%3a", ":") // apt's escape
		info.Packages = append(info.Packages, name)
		if f := strings.Split(name, "_"); len(f) == 3 && f[0] == "postfix" {
			postfix = f[1]
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
	return b.rel.key() + "postfix_" + strings.NewReplacer(":", "-", "/", "-", "~", "-", "+", "-").Replace(postfix) +
		"-" + hex.EncodeToString(sum[:6]), nil
}

// writeAptConf makes an apt that knows the host's sources, keys and way to the
// network, and nothing else of it: no state, no cache, no list of installed
// packages, and above all none of the hooks in apt.conf.d, some of which empty
// the host's own cache.
func (b *builder) writeAptConf(ctx context.Context) error {
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "sources", "log"} {
		if err := os.MkdirAll(filepath.Join(b.tmp, dir), 0o755); err != nil {
			return err
		}
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
`, b.tmp, acquire, b.rel.arch)
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
		if ours && !suite.Match(text) {
			continue
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
	for _, dir := range []string{"dev", "proc", "tmp", "run", "root", "old-root", "var/log", "var/lib/postfix", "var/lib/dovecot", "etc/postfix", "etc/dovecot"} {
		if err := os.MkdirAll(filepath.Join(b.root, dir), 0o755); err != nil {
			return err
		}
	}
	for name, text := range rootFiles {
		if err := os.WriteFile(filepath.Join(b.root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// update-alternatives would have made this one.
	if err := os.Symlink("gawk", filepath.Join(b.root, "usr/bin/awk")); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if _, err := os.Stat(filepath.Join(b.root, "usr/lib/postfix/postfix-lmdb.so")); err == nil {
		line := "lmdb\tpostfix-lmdb.so\tdict_lmdb_open\tmkmap_lmdb_open\n"
		if err := os.WriteFile(filepath.Join(b.root, "etc/postfix/dynamicmaps.cf"), []byte(line), 0o644); err != nil {
			return err
		}
	}
	if err := os.Chmod(filepath.Join(b.root, "tmp"), 0o777|os.ModeSticky); err != nil {
		return err
	}
	for _, name := range []string{"usr/sbin/postdrop", "usr/sbin/postqueue"} {
		path := filepath.Join(b.root, name)
		if err := os.Chown(path, 0, gidPostdrop); err != nil {
			return err
		}
		// After the chown, which clears the bit.
		if err := os.Chmod(path, 0o755|os.ModeSetgid); err != nil {
			return err
		}
	}
	return os.Chown(filepath.Join(b.root, "var/lib/postfix"), uidPostfix, uidPostfix)
}

// ask fills in what the binaries say of themselves.
func (b *builder) ask(ctx context.Context, info *rootInfo) error {
	conf := filepath.Join(b.root, "etc/postfix/main.cf")
	if err := os.WriteFile(conf, []byte("compatibility_level = 3.6\n"), 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "chroot", b.root, "/usr/sbin/postconf", "-m").CombinedOutput()
	if err != nil {
		return fmt.Errorf("postconf -m: %w: %s", err, tailOf(out, 300))
	}
	info.Maps = strings.Fields(string(out))
	for _, p := range info.Packages {
		if v, ok := strings.CutPrefix(p, "dovecot-core_"); ok {
			_, after, epoch := strings.Cut(v, ":")
			if epoch {
				v = after
			}
			info.Dovecot, _, _ = strings.Cut(v, "_")
		}
	}
	return os.Remove(conf)
}

func readRootInfo(root string) (rootInfo, error) {
	var info rootInfo
	text, err := os.ReadFile(filepath.Join(root, "lab.json"))
	if err == nil {
		err = json.Unmarshal(text, &info)
	}
	if err != nil {
		return info, fmt.Errorf("%s is not a root made by PostfixRoot: %w", root, err)
	}
	return info, nil
}
