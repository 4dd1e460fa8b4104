//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// ctlPath is where make install puts it.
const ctlPath = "/usr/local/bin/mxshieldctl"

// machine is a mail host that is run by systemd.
type machine struct {
	*rig
	sd *lab.Systemd
}

// bootMachine starts the agent as `make install` and `systemctl enable` would. Postfix's unit is a stand-in that writes what a
// test tells it to; the journal that takes it, with the fields that nobody can forge, is real.
func bootMachine(t *testing.T) *machine {
	t.Helper()
	m := &machine{rig: bareRig(t, noLog)}
	unit, err := os.ReadFile("../mxshield-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	m.sd, err = lab.StartSystemd(t.Context(), m.top.MX[0], filepath.Join(m.dir, "systemd"), lab.SystemdOptions{
		Units: map[string]string{
			"mxshield-agent.service": strings.ReplaceAll(string(unit), "@PREFIX@", "/usr/local"),
			"postfix@-.service":      "[Service]\nType=oneshot\nExecStart=/bin/sh /run/say\n",
		},
		Wants: []string{"mxshield-agent.service"},
		Files: map[string]string{"/etc/mxshield/mxshield.yaml": "logs: [{journal: postfix@-.service}]\nmetrics: \"" + metricsAt.String() + "\"\n"},
		Copy: map[string]string{
			"/usr/local/sbin/mxshield-agent": filepath.Join(binaries, "mxshield-agent"),
			ctlPath:                          filepath.Join(binaries, "mxshieldctl"),
		},
	})
	if err != nil {
		t.Skip("skipped: ", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.sd.Run("journalctl", "--no-pager", "-n", "60")
			t.Logf("the journal:\n%s", out)
		}
	})
	return m
}

func (m *machine) run(args ...string) string {
	m.t.Helper()
	out, err := m.sd.Run(args...)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func (m *machine) status() (s control.Status, ok bool) {
	out, err := m.sd.Run(ctlPath, "-o", "json", "status")
	return s, err == nil && json.Unmarshal(out, &s) == nil
}

func (m *machine) blocked(a netip.Addr) bool {
	out, err := m.sd.Run(ctlPath, "-o", "json", "why", a.String())
	var w control.Why
	return err == nil && json.Unmarshal(out, &w) == nil && w.Decision.Drop
}

// rejects is a script that logs rejected recipients, as Postfix does: out of one process that lives on. Of one that is gone before
// journald has read its line, journald does not know the unit.
func rejects(a netip.Addr) string {
	line := fmt.Sprintf("NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.com> to=<x@example.org> proto=ESMTP helo=<h>", a)
	return fmt.Sprintf("{ for i in 1 2 3 4 5 6 7 8 9 10; do echo '%s'; done; sleep 1; } | logger -p mail.info -t postfix/smtpd", line)
}

// say lets the mail server's unit run a script.
func (m *machine) say(script string) {
	m.t.Helper()
	m.run("sh", "-c", `printf '%s\n' "$1" >/run/say`, "sh", script)
	m.run("systemctl", "start", "postfix@-.service")
}

// TestSystemd is the first day of an installation: systemd runs the agent in the sandbox of its unit, it reads the journal, and
// is killed, reloaded, restarted and stopped; what is blocked stays blocked all the time.
func TestSystemd(t *testing.T) {
	m := bootMachine(t)
	m.eventually("the agent answers", func() bool { s, ok := m.status(); return ok && len(s.Interfaces) == 1 })
	if s, _ := m.status(); s.Interfaces[0].Mode != "native" {
		t.Errorf("attached as %s", s.Interfaces[0].Mode)
	}
	attacker, forged, later := netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.2.2"), netip.MustParseAddr("198.18.3.3")
	m.say(rejects(attacker))
	m.eventually("the attacker is blocked", func() bool { return m.blocked(attacker) })
	if !m.timesOut(attacker, mx) {
		t.Error("its packets pass")
	}

	m.eventually("Prometheus can scrape it", func() bool {
		have, err := m.scrape()
		return err == nil && have["mxshield_blocks dictionary ipv4"] == 1 && have["process_resident_memory_bytes"] > 0
	})

	// An ordinary user can write such lines too, and even set the fields that a program sets itself.
	m.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", rejects(forged))
	m.say(rejects(later)) // behind it in the journal
	m.eventually("the next one is blocked", func() bool { return m.blocked(later) })
	if m.blocked(forged) {
		t.Error("lines of an ordinary user count")
	}

	pid := func() string { return m.run("systemctl", "show", "-P", "MainPID", "mxshield-agent") }
	first := pid()
	m.run("systemctl", "kill", "-s", "KILL", "mxshield-agent")
	if !m.timesOut(attacker, mx) {
		t.Error("the kernel forgot the block with the agent")
	}
	m.eventually("systemd started another agent", func() bool { p := pid(); _, ok := m.status(); return ok && p != first && p != "0" })
	if !m.blocked(attacker) {
		t.Error("the next agent does not know the block")
	}

	m.run("sh", "-c", "echo 'allow: [198.18.9.0/24]' >>/etc/mxshield/mxshield.yaml")
	m.run("systemctl", "reload", "mxshield-agent")
	m.eventually("the new allow is taken over", func() bool {
		return strings.Contains(m.run(ctlPath, "allow", "list"), "198.18.9.0/24")
	})
	m.run("systemctl", "restart", "mxshield-agent")
	m.eventually("the agent answers again", func() bool { _, ok := m.status(); return ok })
	m.run("systemctl", "stop", "mxshield-agent")
	if state := m.run("systemctl", "show", "-P", "Result", "mxshield-agent"); state != "success" {
		t.Errorf("stopped: %s", state)
	}
	if !m.timesOut(attacker, mx) {
		t.Error("stopping the agent ended the block")
	}
	m.run(ctlPath, "off", "--purge")
	if lab.ConnectTimesOut(t.Context(), m.top.Net, attacker, mx, 700*time.Millisecond) {
		t.Error("off --purge left the program")
	}
}
