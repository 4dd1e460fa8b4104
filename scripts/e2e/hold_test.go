//go:build linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

const beforeConfig = `dns:
  resolvers: [127.0.0.1]
  lists: [{zone: bl.example.net, codes: {"127.0.0.9": 100, "127.0.0.4": 60}}]
  before_accept: true
`

// says is a list that can be changed, and switched off.
type says struct {
	mu   sync.Mutex
	what map[netip.Addr]string
	dead bool
}

func (s *says) set(a netip.Addr, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.what[a] = code
}

func (s *says) code(_ string, a netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return silent
	}
	return s.what[a]
}

// again connects and returns how many times a SYN had to be sent again. The mail server must greet.
func (r *rig) again(from netip.Addr, to netip.AddrPort) uint32 {
	r.t.Helper()
	c, err := r.top.Net.Dial(r.t.Context(), from, to)
	if err != nil {
		r.t.Fatalf("%s cannot connect: %v", from, err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	var info *unix.TCPInfo
	if err == nil {
		err = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	}
	if err != nil {
		r.t.Fatal(err)
	}
	b := make([]byte, 3)
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Read(b); err != nil || string(b) != "220" {
		r.t.Fatalf("%s is greeted with %q, %v", from, b, err)
	}
	return info.Total_retrans
}

// refused says whether a source gets no answer to its first three SYNs.
func (r *rig) refused(from netip.Addr, to netip.AddrPort) bool {
	return lab.ConnectTimesOut(r.t.Context(), r.top.Net, from, to, 3500*time.Millisecond)
}

// connectLines is how often Postfix has logged a connection of a source to port 25.
func (r *rig) connectLines(a netip.Addr) (n int) {
	r.t.Helper()
	b, err := os.ReadFile(r.mta.LogPath())
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " postfix/smtpd[") && strings.Contains(line, fmt.Sprintf("]: connect from unknown[%s]", a)) {
			n++
		}
	}
	return n
}

func (r *rig) holds(want bool) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("holding is %v", want), func() bool {
		h := r.status().Hold
		return h != nil && h.IPv4 == want
	})
}

// TestBeforeAccept: a listed source never reaches Postfix; a clean one does, with its second SYN the first time and at once
// the second time. Known senders, allowed sources and the submission ports wait for nothing. A block made so is this
// host's alone, is not in the state file, and ends with the listing.
func TestBeforeAccept(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, beforeConfig)
	src := lab.Sources(lab.Attack4, 8)
	clean, listed, grey, allowed, fixed, soon := src[0], src[1], src[2], src[3], src[4], src[5]
	six := []netip.Addr{lab.Sources(lab.Attack6, 1)[0], lab.Sources(lab.Attack6, 1)[0]}
	s := &says{what: map[netip.Addr]string{lab.Sources(lab.Attack6, 2)[1]: "127.0.0.9", listed: "127.0.0.9", grey: "127.0.0.4", allowed: "127.0.0.9", fixed: "127.0.0.9", soon: "127.0.0.9"}}
	r.lists(s.code)

	// Mail of a known sender, before the option is on.
	r.configure(strings.Replace(beforeConfig, "before_accept: true", "before_accept: false", 1))
	r.start()
	if h := lab.Honest(t.Context(), r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 3}); h.Accepted != 3 {
		t.Fatalf("%+v", h)
	}
	r.awaitLines()
	s.set(lab.Honest4, "127.0.0.9")
	r.must("allow", "add", allowed.String())
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.configure(beforeConfig)
	r.start()
	r.holds(true)

	for i, want := range []uint32{1, 0, 0} {
		if n := r.again(clean, mx); n != want {
			t.Errorf("connection %d of a clean source needed %d SYNs more", i+1, n)
		}
	}
	if n := r.again(grey, mx); n != 1 {
		t.Errorf("one that is listed a little needed %d SYNs more", n)
	}
	for i, want := range []uint32{1, 0} { // the second one is another address of its /64
		if n := r.again(six[i], mx6); n != want {
			t.Errorf("connection %d of an IPv6 source needed %d SYNs more", i+1, n)
		}
	}
	if !r.refused(lab.Sources(lab.Attack6, 2)[1], mx6) {
		t.Error("a listed IPv6 source gets an answer")
	}
	for _, a := range []netip.Addr{lab.Honest4, allowed} {
		if n := r.again(a, mx); n != 0 {
			t.Errorf("%s needed %d SYNs more", a, n)
		}
	}
	if n := r.again(listed, sub); n != 0 {
		t.Errorf("a submission needed %d SYNs more", n)
	}

	if !r.refused(listed, mx) {
		t.Error("a listed source gets an answer")
	}
	w := r.why(listed)
	d := w.Decision
	if !d.Drop || d.By == nil || !d.By.Local || d.By.Cause != block.DNSBL || d.Scope != block.ScopeMX || !strings.Contains(w.Before, "bl.example.net") {
		t.Errorf("%+v", w)
	}
	if left := time.Until(d.Until); left > 62*time.Second {
		t.Errorf("the listing lives for 60 s, the block for %s", left)
	}
	if r.timesOut(listed, sub) {
		t.Error("its submission port is closed")
	}
	if out := r.must("why", listed.String()); !strings.Contains(out, "ends with the listing") || !strings.Contains(out, "asked about at") {
		t.Errorf("%s", out)
	}
	if w := r.why(grey); w.Decision.Drop || !strings.Contains(w.Before, "not enough") {
		t.Errorf("%+v", w)
	}
	h := r.status().Hold
	if !h.IPv6 || h.Listed != 2 || h.Clean < 2 || h.Unanswered != 0 || h.Known < 1 {
		t.Errorf("%+v", h)
	}
	if out := r.must("status"); !strings.Contains(out, "2 refused") {
		t.Errorf("%s", out)
	}

	// A person unblocks it: it comes in, at once, as it is not asked about again.
	if !r.refused(fixed, mx) {
		t.Error("a listed source gets an answer")
	}
	r.must("unblock", fixed.String())
	if n := r.again(fixed, mx); n != 0 {
		t.Errorf("an unblocked source needed %d SYNs more", n)
	}

	// Nothing of it outlives the agent: the next one lets the source in as soon as it has looked.
	if r.connectLines(listed) != 0 || r.connectLines(clean) != 3 {
		t.Errorf("connect lines: listed %d, clean %d", r.connectLines(listed), r.connectLines(clean))
	}
	s.set(listed, "")
	r.kill()
	r.start()
	r.eventually("the block is forgotten", func() bool { return !r.timesOut(listed, mx) })
	if w := r.why(listed); w.Decision.Drop || len(w.Entries) > 0 {
		t.Errorf("%+v", w)
	}
	for _, a := range []netip.Addr{clean, grey} {
		if n := r.again(a, mx); n != 0 {
			t.Errorf("after a restart %s needed %d SYNs more", a, n)
		}
	}

	// A list that is suspended takes back what it said.
	r.holds(true)
	if !r.refused(soon, mx) {
		t.Error("a listed source gets an answer")
	}
	s.set(soon, "127.255.255.254")
	s.set(src[6], "127.255.255.254")
	r.again(src[6], mx)
	r.holds(false)
	r.eventually("what a suspended list said is taken back", func() bool { return !r.why(soon).Decision.Drop })
	if n := r.again(soon, mx) + r.again(src[7], mx); n != 0 {
		t.Errorf("with nobody to ask %d SYNs more were needed", n)
	}
}

// TestBeforeAcceptFails: whatever breaks, whoever is honest comes in: DNS that is dead, an agent that was killed, a
// hundred thousand forged sources.
func TestBeforeAcceptFails(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, beforeConfig)
	src := lab.Sources(lab.Attack4, 40)
	next := func() (a netip.Addr) { a, src = src[0], src[1:]; return a }
	s := &says{what: map[netip.Addr]string{}}
	r.lists(s.code)
	r.start()
	r.holds(true)
	if n := r.again(next(), mx); n != 1 {
		t.Fatalf("the test shows nothing: %d SYNs more", n)
	}

	// Killed: the kernel finds out by itself, in two seconds. Until then each has to wait for one.
	r.kill()
	waited := 0
	for at := 0; at < 3; at++ {
		n := r.again(next(), mx)
		if n > 1 || waited > 3 {
			t.Fatalf("%d after the kill: %d SYNs more", waited, n)
		}
		if n == 1 {
			waited, at = waited+1, -1
		}
	}
	r.start()
	r.holds(true)

	// A flood of forged sources, of which some are listed, at once with honest ones.
	done := make(chan error, 1)
	go func() { done <- r.forge(100_000) }()
	for i := range 6 {
		if n := r.again(next(), mx); n > 1 {
			t.Errorf("connection %d in the flood needed %d SYNs more", i+1, n)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	p, h := r.status().Packets, r.status().Hold
	if h.Held < 50 || h.Held > 10_000 || p["pass_not_blocked"] < 80_000 {
		t.Errorf("of 100,000 forged SYNs: %+v, %v", h, p)
	}
	t.Logf("%+v, %v", h, p)

	// Dead DNS: the first waits, the agent notices, and the others do not.
	r.kill()
	r.start()
	r.holds(true)
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	if n := r.again(next(), mx); n > 1 {
		t.Errorf("with dead DNS %d SYNs more", n)
	}
	r.holds(false)
	for range 3 {
		if n := r.again(next(), mx); n > 1 {
			t.Errorf("with dead DNS %d SYNs more", n)
		}
	}
	if b := r.status().Blocks.Blocks; b != 0 {
		t.Errorf("%d are blocked:\n%s", b, r.must("list"))
	}
}

// forge sends SYNs to the mail port from n sources that are not there.
func (r *rig) forge(n int) error {
	return r.top.Net.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: mx.Addr().As4()}
		p := make([]byte, 40)
		p[0], p[8], p[9], p[32], p[33] = 0x45, 64, unix.IPPROTO_TCP, 0x50, 2
		binary.BigEndian.PutUint16(p[2:], 40)
		copy(p[16:], to.Addr[:])
		binary.BigEndian.PutUint16(p[22:], mx.Port())
		binary.BigEndian.PutUint16(p[34:], 64240)
		for i := range n {
			binary.BigEndian.PutUint32(p[12:], 198<<24|19<<16|uint32(i)&0xffff|uint32(i)>>16<<24)
			binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60000))
			binary.BigEndian.PutUint32(p[24:], uint32(i))
			// The checksum: a pseudo header, and the segment.
			sum := uint32(unix.IPPROTO_TCP + 20)
			p[36], p[37] = 0, 0
			for j := 12; j < 40; j += 2 {
				sum += uint32(binary.BigEndian.Uint16(p[j:]))
			}
			sum = sum>>16 + sum&0xffff
			sum += sum >> 16
			binary.BigEndian.PutUint16(p[36:], ^uint16(sum))
			for {
				if err = unix.Sendto(fd, p, 0, to); !errors.Is(err, unix.ENOBUFS) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
