//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/lab"
)

// TestRsyslog: a real rsyslogd hands the mail log over as the README says. It goes on after a restart of either. What is
// logged while the agent is down rsyslogd throws away, whatever queue it is told to keep; none of it counts twice.
func TestRsyslog(t *testing.T) {
	r := bareRig(t, "")
	root, err := lab.Root(t.Context(), lab.CacheDir(), lab.KindDovecot, func(s string) { t.Log(s) })
	if err != nil {
		t.Skip("skipped: no rsyslog: ", err)
	}
	dir := filepath.Join(r.dir, "syslog")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.configure(fmt.Sprintf("logs: [{syslog: \"unixgram:%s/log\"}]\n", dir))
	const conf = `module(load="imuxsock" SysSock.Use="off")
input(type="imuxsock" Socket="/var/log/in")
module(load="omuxsock")
$OMUxSockSocket /var/log/log
mail.* :omuxsock:;RSYSLOG_FileFormat
`
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	in := filepath.Join(dir, "in")
	rsyslog := func() (stop func()) {
		t.Helper()
		cmd := exec.Command("unshare", "-m", "sh", "-c", `mount --bind "$2" "$1/var/log" && exec chroot "$1" /usr/sbin/rsyslogd -n -f /var/log/conf -i /var/log/pid`, "rsyslog", root, dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := false
		stop = func() {
			if !ended {
				ended = true
				_ = cmd.Process.Signal(syscall.SIGTERM)
				_ = cmd.Wait()
			}
		}
		t.Cleanup(stop)
		r.eventually("rsyslogd listens", func() bool {
			c, err := net.Dial("unixgram", in)
			if err == nil {
				c.Close()
			}
			return err == nil
		})
		return stop
	}
	sources := lab.Sources(lab.Attack4, 30)
	log := func(some []netip.Addr) {
		t.Helper()
		c, err := net.Dial("unixgram", in)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := range 7 {
			for _, a := range some {
				if _, err := fmt.Fprintf(c, "<22>%s postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x%d@example.org> proto=ESMTP helo=<h>",
					time.Now().Format(time.Stamp), a, i, i); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	known := func(some []netip.Addr) {
		t.Helper()
		for _, a := range some {
			r.eventually(a.String()+" is known", func() bool { return counted(r.why(a), "unknown_recipient") >= 7 })
			if n := counted(r.why(a), "unknown_recipient"); n != 7 {
				t.Errorf("%s: %d", a, n)
			}
		}
	}

	r.start()
	stop := rsyslog()
	log(sources[:10])
	known(sources[:10])
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	log(sources[10:15]) // nobody listens
	r.start()
	log(sources[15:20])
	known(sources[15:20])
	stop()
	rsyslog()
	log(sources[20:])
	known(append(slices.Clone(sources[:10]), sources[15:]...))
	for _, a := range sources[10:15] {
		if n := counted(r.why(a), "unknown_recipient"); n > 7 {
			t.Errorf("%s: %d", a, n)
		}
	}
	if in := r.status().Inputs; len(in) != 1 || in[0].State != "following" || in[0].Lines < 105 || in[0].Untrusted != 0 {
		t.Errorf("%+v", in)
	}
}
