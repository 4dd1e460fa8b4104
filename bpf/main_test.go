package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

const bpffs = "/sys/fs/bpf"

// TestMain sees to a bpf file system. Where none is mounted, the tests run again in a mount namespace of their own that
// has one, and the host's stays as it is.
func TestMain(m *testing.M) {
	const marker = "MXSHIELD_TEST_OWN_MOUNTS"
	if os.Geteuid() == 0 && checkBPFFS(bpffs) != nil {
		if os.Getenv(marker) == "" {
			cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
			cmd.Env = append(os.Environ(), marker+"=1")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
			cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
			err := cmd.Run()
			var exit *exec.ExitError
			switch {
			case errors.As(err, &exit):
				os.Exit(exit.ExitCode())
			case err != nil:
				fmt.Fprintln(os.Stderr, "cannot make a mount namespace:", err)
			default:
				os.Exit(0)
			}
		} else if err := errors.Join(
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("bpf", bpffs, "bpf", 0, ""),
		); err != nil {
			fmt.Fprintln(os.Stderr, "cannot mount a bpf file system:", err)
		}
	}
	os.Exit(m.Run())
}

// needKernel skips where BPF cannot be used.
func needKernel(t testing.TB) {
	t.Helper()
	if err := checkCapabilities(); err != nil {
		t.Skip("skipped:", err)
	}
	if err := checkBPFFS(bpffs); err != nil {
		t.Skip("skipped:", err)
	}
}

// haveTCX says whether the kernel has the tcx hook. What needs it is skipped where it is not.
func haveTCX() bool {
	v, err := features.LinuxVersionCode()
	return err == nil && v >= 6<<16|6<<8
}

func needTCX(t testing.TB) {
	t.Helper()
	if !haveTCX() {
		t.Skip("skipped: tcx needs kernel 6.6")
	}
}

var pinCount atomic.Int32

// testPins returns a pin directory that does not exist yet, and will not afterwards.
func testPins(t testing.TB) string {
	t.Helper()
	needKernel(t)
	dir := filepath.Join(bpffs, fmt.Sprintf("mxshield-test-%d-%d", os.Getpid(), pinCount.Add(1)))
	t.Cleanup(func() {
		if _, err := detachAll(dir); err != nil {
			t.Logf("detach: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

// openTest opens a small shield that is closed with the test.
func openTest(t testing.TB, opts Options) *Shield {
	t.Helper()
	if opts.Pins == "" {
		opts.Pins = testPins(t)
	}
	if opts.MaxExact == 0 {
		opts.MaxExact = 1024
	}
	if opts.MaxCIDRs == 0 {
		opts.MaxCIDRs = 1024
	}
	if opts.Interfaces == nil {
		opts.Interfaces = []string{"none"}
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.NewTextHandler(testWriter{t}, nil))
	}
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}
