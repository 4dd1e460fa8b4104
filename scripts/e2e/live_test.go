//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/mxshield/mxshield/scripts/lab"
)

// idle is an SMTP session that waits.
type idle struct {
	net.Conn
	in *bufio.Reader
}

// idles opens sessions and reads their greetings.
func (r *rig) idles(n int, from netip.Addr, to netip.AddrPort) []idle {
	r.t.Helper()
	var list []idle
	for range n {
		c, err := r.top.Net.Dial(r.t.Context(), from, to)
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { c.Close() })
		list = append(list, idle{c, bufio.NewReader(c)})
	}
	for _, s := range list {
		_ = s.SetDeadline(time.Now().Add(patience))
		if line, err := s.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "220") {
			r.t.Fatalf("no greeting: %q, %v", line, err)
		}
	}
	return list
}

func (s idle) answers() bool {
	_ = s.SetDeadline(time.Now().Add(patience))
	if _, err := s.Write([]byte("NOOP\r\n")); err != nil {
		return false
	}
	line, err := s.in.ReadString('\n')
	return err == nil && strings.HasPrefix(line, "250")
}

// reset says that the mail host ended the session.
func (s idle) reset() bool {
	_ = s.SetDeadline(time.Now().Add(patience))
	_, err := s.in.ReadByte()
	return errors.Is(err, syscall.ECONNRESET)
}

// held counts the mail host's connections with peers of the prefix that a process has open.
func (r *rig) held(from netip.Prefix) (n int) {
	r.t.Helper()
	err := r.host.Do(func() error {
		for _, f := range []uint8{syscall.AF_INET, syscall.AF_INET6} {
			list, err := netlink.SocketDiagTCP(f)
			if err != nil {
				return err
			}
			for _, s := range list {
				if a, ok := netip.AddrFromSlice(s.ID.Destination); ok && from.Contains(a.Unmap()) {
					n++
				}
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

func all(list []idle, f func(idle) bool) (n int) {
	for _, s := range list {
		if f(s) {
			n++
		}
	}
	return n
}

// TestSessionsOfFreshBlocksEnd: 50 idle sessions of a source that is blocked leave the mail server, by
// hand and by evidence; all others stay, those of the same source at ports that its block does not close included.
func TestSessionsOfFreshBlocksEnd(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, "")
	r.start()
	src := lab.Sources(lab.Attack4, 4)
	src6 := lab.Sources(lab.Attack6, 2)

	attacker := r.idles(50, src[0], mx)
	other := append(r.idles(2, src[1], mx), r.idles(2, lab.Honest4, mx)...)
	other = append(other, r.idles(2, src6[0], mx6)...)
	if n := r.held(netip.PrefixFrom(src[0], 32)); n != 50 {
		t.Fatalf("the mail host has %d sessions of the attacker", n)
	}
	lost := countLines(t, r.mta.LogPath(), "lost connection after CONNECT from unknown["+src[0].String()+"]")
	r.must("block", src[0].String(), "--for", "1h")
	began := time.Now()
	if n := all(attacker, idle.reset); n != 50 {
		t.Errorf("%d of 50 sessions ended", n)
	}
	r.eventually("the mail host has no session of the attacker", func() bool { return r.held(netip.PrefixFrom(src[0], 32)) == 0 })
	t.Logf("50 sessions were gone %s after the block was acknowledged", time.Since(began))
	r.eventually("smtpd has noticed", func() bool {
		return countLines(t, r.mta.LogPath(), "lost connection after CONNECT from unknown["+src[0].String()+"]") >= lost+50
	})
	if n := all(other, idle.answers); n != len(other) {
		t.Errorf("%d of %d other sessions live", n, len(other))
	}

	// By evidence, IPv6: the whole /64 at the mx port; its submission session stays.
	six := r.idles(3, src6[1], mx6)
	submission := r.idles(1, src6[1], netip.AddrPortFrom(lab.MX6, 587))
	lab.Dictionary(t.Context(), r.top.Net, src6[1], mx6, lab.DictionaryOptions{Talk: brief, Recipients: 40})
	r.awaitBlock(src6[1])
	if n := all(six, idle.reset); n != 3 {
		t.Errorf("%d of 3 sessions ended", n)
	}
	if !submission[0].answers() {
		t.Error("the submission session ended too, which an mx block does not close")
	}

	// A CIDR with a hole in it.
	r.must("allow", "add", src[3].String())
	inside, hole := r.idles(2, src[2], mx), r.idles(2, src[3], mx)
	r.must("block", "198.18.0.0/24", "--for", "1h")
	if n := all(inside, idle.reset); n != 2 {
		t.Errorf("%d of 2 sessions inside the CIDR ended", n)
	}
	if n := all(hole, idle.answers); n != 2 {
		t.Errorf("%d of 2 sessions in the hole live", n)
	}
	if s := r.status(); s.Ended < 50+3+2 {
		t.Errorf("status counts %d ended sessions", s.Ended)
	}

	// While off nothing ends; on ends what a block covers that was made meanwhile.
	where := []string{"--pins", r.pins, "--state-dir", r.dir}
	late := lab.Sources(netip.MustParsePrefix("198.18.9.0/24"), 1)[0]
	sessions := r.idles(2, late, mx)
	r.must(append([]string{"off"}, where...)...)
	r.must("block", late.String(), "--for", "1h")
	time.Sleep(1200 * time.Millisecond) // longer than the interval between two walks
	if n := all(sessions, idle.answers); n != 2 {
		t.Errorf("while off %d of 2 sessions live", n)
	}
	r.must(append([]string{"on"}, where...)...)
	if n := all(sessions, idle.reset); n != 2 {
		t.Errorf("on: %d of 2 sessions ended", n)
	}
}

// TestDryRunEndsNoSession: a dry run looks on.
func TestDryRunEndsNoSession(t *testing.T) {
	r := newRig(t, lab.Options{}, "dry_run: true\n")
	r.start()
	a := lab.Sources(lab.Attack4, 1)[0]
	sessions := r.idles(3, a, mx)
	r.must("block", a.String())
	time.Sleep(1200 * time.Millisecond)
	if n := all(sessions, idle.answers); n != 3 {
		t.Errorf("%d of 3 sessions live", n)
	}
}

// TestInterfacesComeAndGo: an interface that is added while the agent runs is shielded, one that is
// removed is forgotten without a warning, one that is renamed stays shielded.
func TestInterfacesComeAndGo(t *testing.T) {
	r := bareRig(t, "interfaces: [eth0, \"ext*\"]\nexempt: [192.0.2.26, \"2001:db8:25::26\"]\n")
	r.start()
	host := r.host
	link := func(f func() error) {
		t.Helper()
		if err := host.Do(f); err != nil {
			t.Fatal(err)
		}
	}
	shielded := func() (names []string) {
		for _, i := range r.status().Interfaces {
			names = append(names, i.Name)
		}
		slices.Sort(names)
		return names
	}
	soon := func(what, want string) {
		t.Helper()
		began := time.Now()
		r.eventually(what, func() bool { return fmt.Sprint(shielded()) == want })
		t.Logf("%s: after %s", what, time.Since(began))
	}
	loud := func() (lines []string) {
		b, err := os.ReadFile(r.log)
		if err != nil {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			if bytes.Contains(line, []byte("level=WARN")) || bytes.Contains(line, []byte("level=ERROR")) {
				lines = append(lines, string(line))
			}
		}
		return lines
	}
	r.eventually("eth0 is shielded", func() bool { return fmt.Sprint(shielded()) == "[eth0]" })
	before := len(loud()) // there is no mail server here, so no log

	a := lab.Sources(lab.Attack4, 1)[0]
	r.must("block", a.String())
	rename := func(from, to string) {
		link(func() error {
			l, err := netlink.LinkByName(from)
			if err != nil {
				return err
			}
			err = netlink.LinkSetName(l, to)
			if errors.Is(err, syscall.EBUSY) { // kernels before 6.2 want it down
				err = errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, to), netlink.LinkSetUp(l))
			}
			return err
		})
	}
	for range 2 {
		link(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ext0"}, PeerName: "peer0"})
		})
		soon("the new interface is shielded", "[eth0 ext0]")
		rename("ext0", "uplink.7")
		soon("the renamed one stays", "[eth0 uplink.7]")
		link(func() error {
			l, err := netlink.LinkByName("uplink.7")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
		soon("the removed one is forgotten", "[eth0]")
	}
	r.eventually("its pin is gone", func() bool {
		pins, err := os.ReadDir(r.pins)
		return err == nil && !slices.ContainsFunc(pins, func(e os.DirEntry) bool {
			return strings.Contains(e.Name(), "link-") && e.Name() != "link-eth0"
		})
	})
	if l := loud()[before:]; len(l) > 0 {
		t.Errorf("the log is loud:\n%s", strings.Join(l, ""))
	}

	// The interface with the traffic: dropped under its new name too, and by the status's word.
	if !r.timesOut(a, mx) {
		t.Error("the block does not hold")
	}
	rename("eth0", "wan0")
	// A link that went down lost its route.
	if err := host.AddRoute("wan0", netip.MustParsePrefix("0.0.0.0/0"), lab.Router4); err != nil && !errors.Is(err, syscall.EEXIST) {
		t.Fatal(err)
	}
	soon("eth0 is wan0 now", "[wan0]")
	if !r.timesOut(a, mx) {
		t.Error("the block does not hold under the new name")
	}

	// An exempt local address is not shielded, the others are; nobody listens, so an answer is a refusal.
	if err := host.AddAddr("wan0", netip.MustParsePrefix("192.0.2.26/24")); err != nil {
		t.Fatal(err)
	}
	if r.timesOut(a, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.26"), 25)) {
		t.Error("packets to an exempt address are dropped")
	}
	if s := r.status(); s.Packets["pass_exempt"] == 0 {
		t.Errorf("no packet has the reason pass_exempt: %v", s.Packets)
	}
	if !r.timesOut(a, mx) {
		t.Error("the block does not hold beside an exempt address")
	}
	r.eventually("status says that nothing listens", func() bool {
		return slices.ContainsFunc(r.status().Warnings, func(w string) bool { return strings.Contains(w, "nothing listens on a protected port") })
	})
}

// TestOffWhileItHung: an agent that did not answer when the shield was switched off does not switch it on again.
func TestOffWhileItHung(t *testing.T) {
	r := bareRig(t, "")
	r.start()
	a := lab.Sources(lab.Attack4, 1)[0]
	r.must("block", a.String())
	r.freeze()
	r.must("off", "--pins", r.pins, "--state-dir", r.dir)
	if err := r.agent.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	r.eventually("it knows", func() bool { return r.status().Off != nil })
	if s := r.status(); len(s.Interfaces) > 0 || r.timesOut(a, mx) {
		t.Errorf("it drops again: %v", s.Interfaces)
	}
	r.must("on", "--pins", r.pins, "--state-dir", r.dir)
	if !r.timesOut(a, mx) {
		t.Error("on does not bring it back")
	}
}
