package bpf

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The message names the capability that lacks, and only that. Capabilities belong to threads: the test gives up its
// thread's and never gives the thread back.
func TestMissingCapability(t *testing.T) {
	needKernel(t)
	all := []int{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON}
	names := map[int]string{unix.CAP_BPF: "CAP_BPF", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_PERFMON: "CAP_PERFMON"}
	for _, missing := range all {
		t.Run(names[missing], func(t *testing.T) {
			pins := testPins(t)
			runtime.LockOSThread()
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var was, data [2]unix.CapUserData
			must(t, unix.Capget(&hdr, &was[0]))
			data = was
			for _, c := range []int{missing, unix.CAP_SYS_ADMIN} {
				data[c/32].Effective &^= 1 << (c % 32)
			}
			must(t, unix.Capset(&hdr, &data[0]))
			_, openErr := Open(Options{Pins: pins})
			must(t, os.MkdirAll(pins, 0o700))
			_, offErr := Off(pins, false)
			_, onErr := On(pins, nil)
			must(t, unix.Capset(&hdr, &was[0])) // for the clean-up
			for _, err := range []error{openErr, offErr, onErr} {
				wantHint(t, err, "lacks "+names[missing], "AmbientCapabilities", "setcap")
				for _, c := range all {
					if c != missing && strings.Contains(err.Error(), names[c]) {
						t.Errorf("%s is not missing: %v", names[c], err)
					}
				}
			}
		})
	}
}

// The least that is needed is enough: CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, and nothing of root's.
func TestLeastCapabilities(t *testing.T) {
	if os.Getenv("MXSHIELD_TEST_LEAST") != "" {
		s, err := Open(Options{Pins: os.Getenv("MXSHIELD_TEST_LEAST")})
		must(t, err)
		if haveTCX() {
			_, err = s.tc()
			must(t, err)
		}
		s.Close()
		return
	}
	pins := testPins(t)
	setpriv, err := exec.LookPath("setpriv")
	if err != nil {
		t.Skip("skipped: no setpriv here")
	}
	if help, _ := exec.Command(setpriv, "--help").CombinedOutput(); !bytes.Contains(help, []byte("--reuid")) {
		t.Skip("skipped: this setpriv cannot change the user")
	}
	// The directory belongs to the agent's user, as a systemd unit would make it.
	must(t, os.Mkdir(pins, 0o700))
	must(t, os.Chown(pins, 65534, 65534))
	// Reachable for everybody, which the place go test builds in may not be.
	bin, err := os.ReadFile("/proc/self/exe")
	must(t, err)
	dir, err := os.MkdirTemp("/tmp", "mxshield-test-")
	must(t, err)
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o755))
	must(t, os.WriteFile(dir+"/bpf.test", bin, 0o755))
	caps := "+bpf,+net_admin,+perfmon"
	cmd := exec.Command(setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all,"+caps,
		"--inh-caps=-all,"+caps, "--ambient-caps=-all,"+caps, dir+"/bpf.test", "-test.run=^TestLeastCapabilities$", "-test.v")
	cmd.Dir = dir
	cmd.Env = []string{"MXSHIELD_TEST_LEAST=" + pins, "PATH=" + os.Getenv("PATH")}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestLeastCapabilities")) {
		t.Errorf("%v\n%s", err, out)
	}
}
