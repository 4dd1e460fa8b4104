package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrPermission is wrapped when this process may not do what it must.
var ErrPermission = errors.New("permission denied")

// checkCapabilities names the capabilities this process lacks for loading and attaching.
func checkCapabilities() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	var missing []string
	// CAP_SYS_ADMIN contains CAP_BPF and CAP_PERFMON, but not CAP_NET_ADMIN.
	for _, c := range []struct {
		name     string
		bit      int
		sysAdmin bool
	}{
		{"CAP_BPF", unix.CAP_BPF, true},
		{"CAP_NET_ADMIN", unix.CAP_NET_ADMIN, false},
		{"CAP_PERFMON", unix.CAP_PERFMON, true},
	} {
		if !has(c.bit) && !(c.sysAdmin && has(unix.CAP_SYS_ADMIN)) {
			missing = append(missing, c.name)
		}
	}
	if missing == nil {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		self = "PROGRAM"
	}
	return hint(fmt.Errorf("load BPF programs: %w: this process lacks %s", ErrPermission, strings.Join(missing, ", ")),
		fmt.Sprintf("run as root, or in the systemd unit set AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON, "+
			"or `setcap cap_bpf,cap_net_admin,cap_perfmon+ep %s`", self))
}

// checkBPFFS says whether dir is, or can be made, on a bpf file system.
func checkBPFFS(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("pin to %q: not an absolute path", dir)
	}
	at := dir
	for {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if errors.Is(err, unix.ENOENT) && at != "/" {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return fmt.Errorf("pin to %s: %w", dir, &os.PathError{Op: "statfs", Path: at, Err: err})
		}
		if st.Type == unix.BPF_FS_MAGIC {
			return nil
		}
		return hint(fmt.Errorf("pin to %s: %s is not on a bpf file system", dir, at),
			"`mount -t bpf bpf /sys/fs/bpf`, or in the systemd unit RequiresMountsFor=/sys/fs/bpf")
	}
}

// notPermitted explains EPERM, which the kernel gives for more reasons than missing capabilities.
func notPermitted(err error) error {
	if !errors.Is(err, unix.EPERM) {
		return err
	}
	return hint(fmt.Errorf("%w (%w)", err, ErrPermission), "all capabilities are there, so it is a container, a user namespace, kernel lockdown or a security "+
		"module that forbids BPF, or on kernels before 5.11 the memlock limit: set LimitMEMLOCK=infinity")
}
