//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// DNSRoot is PostfixRoot for a resolver and a list server as they are used for
// mail: unbound and rbldnsd. Their programs are run by the root's own loader,
// see DNSServer.
func DNSRoot(ctx context.Context, cacheDir string, log func(string)) (string, error) {
	return Root(ctx, cacheDir, KindDNS, log)
}

// A DNSServer is a program of a DNSRoot that runs in a host's namespace. The
// lab's Close ends it.
type DNSServer struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// inRoot is a program of the root run by the root's own loader, with the
// host's files: nothing is mounted, and its C library need not be the host's.
func inRoot(host *Host, root, program string, args ...string) (*exec.Cmd, error) {
	loaders, _ := filepath.Glob(filepath.Join(root, "usr/lib/*/ld-linux-*.so.*"))
	if len(loaders) == 0 {
		return nil, fmt.Errorf("%s has no loader", root)
	}
	return host.Command(loaders[0], append([]string{"--library-path", filepath.Dir(loaders[0]), filepath.Join(root, program)}, args...)...), nil
}

// Dig asks with dig(1) of a DNSRoot and returns what it prints.
func Dig(host *Host, root string, args ...string) (string, error) {
	cmd, err := inRoot(host, root, "usr/bin/dig", args...)
	if err != nil {
		return "", err
	}
	b, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(b)), err
}

// startDNS starts a server of the root.
func startDNS(host *Host, root, dir, program string, args ...string) (*DNSServer, error) {
	cmd, err := inRoot(host, root, program, args...)
	if err != nil {
		return nil, err
	}
	s := &DNSServer{cmd: cmd, log: filepath.Join(dir, filepath.Base(program)+".log"), done: make(chan struct{})}
	out, err := os.Create(s.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	return s, nil
}

// await waits until ready says so, or the server is gone.
func (s *DNSServer) await(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for !ready() {
		select {
		case <-s.done:
			b, _ := os.ReadFile(s.log)
			return fmt.Errorf("%s ended: %s", s.cmd.Path, tailOf(b, 500))
		case <-ctx.Done():
			b, _ := os.ReadFile(s.log)
			return fmt.Errorf("%s does not answer: %s", s.cmd.Path, tailOf(b, 500))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// StartRBLDNSD serves lists on an address of the host. zones is by zone name
// and data set type ("ip4set", "ip6trie", "ip4tset", ...), see rbldnsd(8).
func StartRBLDNSD(ctx context.Context, host *Host, root, dir string, at netip.AddrPort, zones map[string]map[string]string) (*DNSServer, error) {
	args := []string{"-n", "-q", "-u", "nobody:nogroup", "-b", fmt.Sprintf("%s/%d", at.Addr(), at.Port()), "-w", dir}
	for zone, sets := range zones {
		for kind, text := range sets {
			file := zone + "." + kind
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				return nil, err
			}
			args = append(args, zone+":"+kind+":"+file)
		}
	}
	s, err := startDNS(host, root, dir, "usr/sbin/rbldnsd", args...)
	if err != nil {
		return nil, err
	}
	return s, s.await(ctx, func() bool { return host.udpBound(at.Port()) })
}

// StartUnbound runs a resolver on port 53 of an address of the host. It asks
// the servers in stubs for their zones, and rest for everything else.
func StartUnbound(ctx context.Context, host *Host, root, dir string, at netip.Addr, stubs map[string]netip.AddrPort, rest netip.AddrPort) (*DNSServer, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `server:
  username: ""
  chroot: ""
  directory: %q
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  interface: %s
  access-control: 0.0.0.0/0 allow
  access-control: ::0/0 allow
  do-not-query-localhost: no
  module-config: "iterator"
  num-threads: 1
  do-ip6: no
  infra-host-ttl: 1
  # What stands in front of private and reserved addresses by default.
  unblock-lan-zones: yes
  local-zone: "test." nodefault
  serve-expired: no
remote-control:
  control-enable: no
`, dir, at)
	for zone, s := range stubs {
		fmt.Fprintf(&b, "stub-zone:\n  name: %q\n  stub-addr: %s@%d\n  stub-no-cache: yes\n", zone, s.Addr(), s.Port())
	}
	fmt.Fprintf(&b, "forward-zone:\n  name: \".\"\n  forward-addr: %s@%d\n", rest.Addr(), rest.Port())
	conf := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(conf, []byte(b.String()), 0o644); err != nil {
		return nil, err
	}
	s, err := startDNS(host, root, dir, "usr/sbin/unbound", "-d", "-c", conf)
	if err != nil {
		return nil, err
	}
	return s, s.await(ctx, func() bool { return host.udpBound(53) })
}

// udpBound says whether somebody has a UDP port of the host.
func (h *Host) udpBound(port uint16) bool {
	bound := false
	_ = h.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/udp")
		bound = err == nil && strings.Contains(string(b), fmt.Sprintf(":%04X 00000000:0000", port))
		return err
	})
	return bound
}

// ListenPacket opens a UDP socket.
func (h *Host) ListenPacket(ctx context.Context, addr string) (net.PacketConn, error) {
	var pc net.PacketConn
	err := h.Do(func() (err error) {
		pc, err = (&net.ListenConfig{}).ListenPacket(ctx, "udp", addr)
		return err
	})
	return pc, err
}

// DialDNS connects a udp or tcp socket; it fits resolve.Options.Dial.
func (h *Host) DialDNS(ctx context.Context, network, addr string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}
