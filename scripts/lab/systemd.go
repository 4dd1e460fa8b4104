//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// systemdPath is where distributions have it.
const systemdPath = "/lib/systemd/systemd"

// SystemdOptions of StartSystemd. Paths are absolute.
type SystemdOptions struct {
	Units map[string]string // name -> text; of the machine's own /etc/systemd/system nothing is seen
	Wants []string          // what is started, beside the journal
	Files map[string]string // path in there -> text
	Copy  map[string]string // path in there -> file of the machine, as a program
}

// Systemd is the machine's own systemd with its journal, as pid 1 of namespaces of its own. Its root is the machine's, seen
// through an overlay, without its units and with empty /run, /tmp, /var/lib and /var/log. The machine's systemd, if it runs one,
// and its services know nothing of it.
type Systemd struct {
	server
	group string // its control group, below the one that the caller is in
}

// boot makes what the kernel and an initramfs make for a real one. It is in a control group of its own before it takes that for
// the root of all, or it would make its slices beside the machine's.
const boot = `
	mount -t sysfs -o ro sysfs /sys
	mount -t bpf bpf /sys/fs/bpf
	for d in run tmp var/lib var/log; do mount -t tmpfs -o mode=755 tmpfs /$d; done
	chmod 1777 /tmp
	mount -t proc proc /proc
	mount --bind /proc/sys /proc/sys
	mount -o remount,bind,ro /proc/sys
	ln -s /proc/self/fd /dev/fd
	ln -s pts/ptmx /dev/ptmx
	mkdir -p /dev/pts /dev/shm
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/$GROUP
	mkdir "$group"
	echo 0 >"$group/cgroup.procs"
	umount /sys/fs/cgroup
	exec unshare --cgroup sh -ec '
		mount -t cgroup2 cgroup2 /sys/fs/cgroup
		exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin ` + systemdPath + ` --system --unit=lab.target --log-target=journal'`

// StartSystemd starts it on host and returns when it says that it is up. Services that fail are no error.
func StartSystemd(ctx context.Context, host *Host, workDir string, o SystemdOptions) (*Systemd, error) {
	if _, err := os.Stat(systemdPath); err != nil {
		return nil, fmt.Errorf("no systemd here: %w", err)
	}
	workDir, err := filepath.Abs(workDir)
	if err != nil {
		return nil, err
	}
	s := &Systemd{group: filepath.Base(host.Netns()), server: server{host: host, work: workDir, name: "systemd", last: []string{"console.log"}}}
	if err := os.MkdirAll(workDir, 0o755); err != nil {
		return nil, err
	}
	// The overlay's upper layer must not lie in its lower one, which is all of the machine's root.
	if err := unix.Mount("tmpfs", workDir, "tmpfs", 0, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	if err := host.lab.adopt(s); err != nil {
		return nil, errors.Join(err, unix.Unmount(workDir, unix.MNT_DETACH))
	}
	if err := s.fill(o); err != nil {
		return nil, fmt.Errorf("fill the root of systemd: %w", err)
	}
	if err := s.start("/", "GROUP="+s.group+"\n"+boot, Options{Hostname: "mx1.example.org"}); err != nil {
		return nil, fmt.Errorf("start systemd: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := s.Run("systemctl", "is-system-running")
		switch strings.TrimSpace(string(out)) {
		case "running", "degraded":
			return s, nil
		}
		select {
		case <-s.done:
			return nil, fmt.Errorf("systemd ended: %s", s.complaints())
		case <-ctx.Done():
			return nil, fmt.Errorf("systemd does not come up: %s, %w: %s", out, err, s.complaints())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// fill writes the upper layer.
func (s *Systemd) fill(o SystemdOptions) error {
	if err := s.write(map[string]string{}, Options{Resolver: "127.0.0.1"}); err != nil {
		return err
	}
	for _, dir := range []string{"old-root", "etc/systemd/system", "etc/mxshield"} {
		dir = s.path("upper/" + dir)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		// What the machine has there is not seen.
		if err := unix.Setxattr(dir, "trusted.overlay.opaque", []byte("y"), 0); err != nil {
			return fmt.Errorf("make %s opaque: %w", dir, err)
		}
	}
	wants := append([]string{"systemd-journald.service"}, o.Wants...)
	files := map[string]string{"/etc/systemd/system/lab.target": "[Unit]\nDescription=lab\nWants=" + strings.Join(wants, " ") + "\n"}
	for name, text := range o.Units {
		files["/etc/systemd/system/"+name] = text
	}
	maps.Copy(files, o.Files)
	put := func(name string, text []byte, mode os.FileMode) error {
		path := s.path("upper" + name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, text, mode)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := put(name, []byte(files[name]), 0o644); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.Copy)) {
		b, err := os.ReadFile(o.Copy[name])
		if err != nil {
			return err
		}
		if err := put(name, b, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends it, and with it all that it started.
func (s *Systemd) Stop() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil && s.done != nil {
		_ = s.cmd.Process.Kill() // to SIGTERM it would start anew; its death is the death of its namespace
		<-s.done
	}
	return errors.Join(s.removeGroup(), removeTree(s.work))
}

// removeGroup removes the control groups that it left. Where they are mounted differs among machines, so it looks at a mount of
// its own.
func (s *Systemd) removeGroup() error {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return err
	}
	below := ""
	for line := range strings.Lines(string(self)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			below = path
		}
	}
	dir, err := os.MkdirTemp("", prefix+"cgroup-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Mount("cgroup2", dir, "cgroup2", 0, ""); err != nil {
		return nil // then there were none
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	var dirs []string
	top := filepath.Join(dir, below, s.group)
	_ = filepath.WalkDir(top, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	var first error
	for _, d := range slices.Backward(dirs) {
		if first = errors.Join(first, os.Remove(d)); first != nil {
			return fmt.Errorf("remove a control group: %w", first)
		}
	}
	return nil
}
