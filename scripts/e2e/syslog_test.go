//go:build linux

package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/lab"
)

// udpPorts are the unconnected UDP sockets of the agent's network namespace, in which nobody else has any: what anybody
// can send to. A query to a name server has a connected one.
func (r *rig) udpPorts() (open []string) {
	r.t.Helper()
	for _, name := range []string{"udp", "udp6"} {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", r.agent.Process.Pid, name))
		if err != nil {
			r.t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			const unconnected = "07" // the state of a closed TCP socket
			f := strings.Fields(line)
			if len(f) < 4 || f[3] != unconnected {
				continue
			}
			at, port, _ := strings.Cut(f[1], ":")
			raw, err := hex.DecodeString(at)
			n, err2 := strconv.ParseUint(port, 16, 16)
			if err := errors.Join(err, err2); err != nil {
				r.t.Fatalf("%q: %v", line, err)
			}
			for word := range slices.Chunk(raw, 4) { // each in the order of the machine
				slices.Reverse(word)
			}
			a, _ := netip.AddrFromSlice(raw)
			open = append(open, netip.AddrPortFrom(a, uint16(n)).String())
		}
	}
	return open
}

// datagram sends one from a host and says how it went: an answer that nobody listens is syscall.ECONNREFUSED.
func datagram(t *testing.T, from *lab.Host, to, text string) error {
	t.Helper()
	var c net.Conn
	if err := from.Do(func() (err error) { c, err = net.Dial("udp", to); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(text)); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(patience))
	_, err := c.Read(make([]byte, 1))
	return err
}

// TestSyslogPorts: who has the log sent to a socket opens no port. Who asks for UDP opens one, which is on loopback, and
// cannot ask for another.
func TestSyslogPorts(t *testing.T) {
	r := bareRig(t, "")
	path := filepath.Join(r.dir, "log")
	line := func(a netip.Addr) string {
		return fmt.Sprintf("<22>%s mx1 postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>",
			time.Now().Format(time.Stamp), a)
	}
	known := func(a netip.Addr) {
		t.Helper()
		r.eventually(a.String()+" is known", func() bool { return counted(r.why(a), "unknown_recipient") == 1 })
	}
	following := func() {
		t.Helper()
		r.eventually("all inputs follow", func() bool {
			in := r.status().Inputs
			for _, i := range in {
				if i.State != "following" {
					return false
				}
			}
			return len(in) > 0
		})
	}
	sources := lab.Sources(lab.Attack4, 4)

	r.configure(fmt.Sprintf("logs: [{syslog: \"unixgram:%s\"}]\n", path))
	r.start()
	following()
	c, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte(line(sources[0]))); err != nil {
		t.Fatal(err)
	}
	known(sources[0])
	if open := r.udpPorts(); len(open) > 0 {
		t.Errorf("open without being asked for: %v", open)
	}
	if err := datagram(t, r.host, "127.0.0.1:514", line(sources[1])); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a datagram to port 514: %v", err)
	}
	r.stop()

	for i, at := range []string{"127.0.0.1:5514", "[::1]:5514"} {
		r.configure(fmt.Sprintf("logs: [{syslog: \"unixgram:%s\"}, {syslog: \"udp:%s\"}]\n", path, at))
		r.start()
		following()
		if open := r.udpPorts(); !slices.Equal(open, []string{at}) {
			t.Errorf("open are %v, not %s", open, at)
		}
		if err := r.host.Do(func() error {
			c, err := net.Dial("udp", at)
			if err == nil {
				defer c.Close()
				_, err = c.Write([]byte(line(sources[2+i])))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		known(sources[2+i])
		for _, a := range []netip.Addr{lab.MX4, lab.MX6} {
			if err := datagram(t, r.top.Net, netip.AddrPortFrom(a, 5514).String(), line(sources[1])); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a datagram from outside to %s: %v", a, err)
			}
		}
		r.stop()
	}
	for _, at := range []string{"0.0.0.0:5514", "[::]:5514", netip.AddrPortFrom(lab.MX4, 5514).String()} {
		r.configure(fmt.Sprintf("logs: [{syslog: \"udp:%s\"}]\n", at))
		r.launch()
		if code := r.wait(); code == 0 {
			t.Errorf("%s: exit 0", at)
		}
		b, err := os.ReadFile(r.log)
		if err != nil {
			t.Fatal(err)
		}
		if host, _, _ := net.SplitHostPort(at); !strings.Contains(string(b), host+" is not a loopback address") {
			t.Errorf("%s is refused without a word of it:\n%s", at, tailOf(b, 600))
		}
	}

	r.configure(fmt.Sprintf("logs: [{syslog: \"unixgram:%s\"}]\n", path))
	r.start()
	if n := counted(r.why(sources[1]), "unknown_recipient"); n != 0 {
		t.Errorf("%v of %s came in all the same", n, sources[1])
	}
}
