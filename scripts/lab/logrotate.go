//go:build linux

package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Logrotate runs the real logrotate of rootDir (KindLogrotate) once, by force,
// over mail.log in dir, with directives such as "create" or "copytruncate". Its
// state and configuration stand beside the log. What a postrotate script would
// do is the caller's.
func Logrotate(ctx context.Context, rootDir, dir, directives string) error {
	conf := fmt.Sprintf("/var/log/mail.log {\n\trotate 9\n\tmissingok\n\t%s\n}\n", directives)
	if err := os.WriteFile(filepath.Join(dir, ".logrotate.conf"), []byte(conf), 0o644); err != nil {
		return err
	}
	// In a mount namespace of its own: nobody writes to a root.
	cmd := exec.CommandContext(ctx, "unshare", "-m", "sh", "-c",
		`mount --bind "$2" "$1/var/log" && exec chroot "$1" /usr/sbin/logrotate --force --state /var/log/.logrotate.state /var/log/.logrotate.conf`,
		"logrotate", rootDir, dir)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("logrotate: %w: %s", err, out)
	}
	return nil
}
