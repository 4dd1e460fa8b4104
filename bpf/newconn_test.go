package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// street is a wire with a mail server at one end, that greets, and clients with addresses of their own at the other.
type street struct {
	*wire
	s *Shield
}

const honestIP, honestIP2, otherIP = "198.18.7.1", "198.18.7.2", "198.18.7.3"

func newStreet(t *testing.T, o Options) *street {
	t.Helper()
	w := newWire(t)
	// Forged sources get no answer: it would only wait for neighbours that are not there.
	_, forged, err := net.ParseCIDR("198.19.0.0/16")
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{Dst: forged, Type: unix.RTN_BLACKHOLE}))
	must(t, netns.Set(w.attacker))
	peer := byName(t, peerDev)
	for _, a := range []string{attackerIP, honestIP, honestIP2, otherIP} {
		addr, err := netlink.ParseAddr(a + "/16")
		must(t, err)
		must(t, netlink.AddrAdd(peer, addr))
	}
	must(t, netns.Set(w.host))
	// The test's thread is in the mail host's namespace, so the socket is too.
	l, err := net.Listen("tcp", "198.18.255.1:25")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 64)
				for {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					if _, err := c.Write(b[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	o.Interfaces = []string{hostDev}
	st := &street{w, openTest(t, o)}
	must(t, st.s.Attach())
	return st
}

// dial connects from the other end.
func (st *street) dial(t *testing.T, from string, patience time.Duration) (*net.TCPConn, error) {
	t.Helper()
	must(t, netns.Set(st.attacker))
	defer func() { must(t, netns.Set(st.host)) }()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience, KeepAlive: -1}
	c, err := d.DialContext(t.Context(), "tcp4", "198.18.255.1:25")
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn), nil
}

// connects dials and returns how many times a SYN had to be sent again.
func (st *street) connects(t *testing.T, from string) (again uint32) {
	t.Helper()
	c, err := st.dial(t, from, 30*time.Second)
	must(t, err)
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, errors.Join(raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			again = info.Total_retrans
		}
	}), err))
	must(t, answers(c))
	return again
}

func answers(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	b := []byte("NOOP")
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := c.Read(b)
	return err
}

// flood sends SYNs as fast as they go, from the sources that f gives.
func (st *street) flood(t *testing.T, n int, f func(i int) string) {
	t.Helper()
	for i := range n {
		must(t, st.send(f(i), uint32(2*i)))
	}
}

// crowd sends SYNs as fast as the other end takes them: what a full ring loses is not the shield's doing, and honest
// clients on the same wire would lose theirs too.
type crowd struct {
	st   *street
	sent uint64
	seen uint64 // before the first
}

func (st *street) crowd(t *testing.T) *crowd {
	t.Helper()
	n, err := st.s.Counters()
	must(t, err)
	return &crowd{st: st, seen: total(n)}
}

func total(c Counters) (sum uint64) {
	for _, n := range c {
		sum += n
	}
	return sum
}

func (c *crowd) send(src string) error {
	const ahead = 64
	if c.sent++; c.sent%ahead == 0 {
		for deadline := time.Now().Add(30 * time.Second); ; runtime.Gosched() {
			n, err := c.st.s.Counters()
			if err != nil || total(n)-c.seen+ahead >= c.sent {
				return errors.Join(err, c.st.send(src, uint32(2*c.sent)))
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%d sent, %d came", c.sent, total(n)-c.seen)
			}
		}
	}
	return c.st.send(src, uint32(2*c.sent))
}

func forged(i int) string {
	return netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}).String()
}

// One source floods: it is limited. Its session that was open goes on, and others come in at once.
func TestLimitOnTheWire(t *testing.T) {
	st := newStreet(t, Options{SYNPerSource: 2})
	st.s.freeze(1 << 40) // no token comes back, however slow this machine is
	open, err := st.dial(t, attackerIP, 10*time.Second)
	must(t, err)
	st.flood(t, 5000, func(int) string { return attackerIP })
	var ne net.Error
	if _, err := st.dial(t, attackerIP, 150*time.Millisecond); !errors.As(err, &ne) || !ne.Timeout() {
		t.Errorf("the flooder connects: %v", err)
	}
	must(t, answers(open))
	for range 5 { // its burst is ten
		st.connects(t, honestIP)
	}
	n, err := st.s.Counters()
	must(t, err)
	// 5001 SYNs and the last dial's, less a burst of ten and what the wire lost.
	if limited := n[DropLimitedSource]; limited < 1000 || limited > 4999 {
		t.Errorf("%d were limited", limited)
	}
	// Allowed, it is let alone.
	must(t, st.s.SetAllowed(prefixes(attackerIP+"/32")))
	st.connects(t, attackerIP)
}

// A flood from forged sources spends the total. Sessions and allowed sources do not feel it.
func TestLimitTotalOnTheWire(t *testing.T) {
	st := newStreet(t, Options{SYNTotal: 20})
	must(t, st.s.SetAllowed(prefixes(honestIP+"/32")))
	open, err := st.dial(t, otherIP, 10*time.Second)
	must(t, err)
	stop, done := make(chan struct{}), make(chan error, 1)
	c := st.crowd(t)
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if err := c.send(forged(i)); err != nil || i == 5_000_000 {
				done <- errors.Join(err, fmt.Errorf("%d sent", i))
				return
			}
		}
	}()
	eventually(t, "the total is spent", func() bool {
		n, err := st.s.Counters()
		must(t, err)
		return n[DropLimitedTotal] > 1000
	})
	for range 20 {
		must(t, answers(open))
		if n := st.connects(t, honestIP); n > 0 {
			t.Errorf("an allowed source had to try %d times more", n)
		}
	}
	close(stop)
	must(t, <-done)
}

// The first connection of a source comes through with its second SYN, the next at once. Without an agent all do.
func TestHoldOnTheWire(t *testing.T) {
	st := newStreet(t, Options{Hold: true})
	ctx, cancel := context.WithCancel(t.Context())
	var told atomic.Int32
	done := make(chan error, 1)
	go func() {
		done <- st.s.FirstSeen(ctx, func(f First) {
			if f.Source.String() == honestIP {
				told.Add(1)
			}
		})
	}()
	must(t, st.s.HoldAlive(time.Now().Add(10*time.Second), time.Now().Add(10*time.Second)))
	// Two, if the machine is so busy that the first was seen a tenth of a second late.
	if n := st.connects(t, honestIP); n < 1 || n > 2 {
		t.Errorf("a new source sent %d SYNs again", n)
	}
	eventually(t, "the agent is told", func() bool { return told.Load() == 1 })
	if n := st.connects(t, honestIP); n != 0 {
		t.Errorf("its second connection needed %d SYNs more", n)
	}
	// An agent that dies, with the next source held: nobody says that it lives any more.
	must(t, st.s.HoldAlive(time.Time{}, time.Time{}))
	if n := st.connects(t, honestIP2); n != 0 {
		t.Errorf("with the agent gone a connection needed %d SYNs more", n)
	}
	cancel()
	must(t, <-done)

	// 100,000 forged sources: whoever is honest comes in, held at most once.
	must(t, st.s.HoldAlive(time.Now().Add(10*time.Second), time.Now().Add(10*time.Second)))
	c := st.crowd(t)
	go func() {
		for i := range 100_000 {
			if err := c.send(forged(i)); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 3 {
		for _, src := range []string{honestIP, honestIP2, otherIP} {
			must(t, st.s.HoldAlive(time.Now().Add(10*time.Second), time.Now().Add(10*time.Second)))
			if n := st.connects(t, src); n > 2 || n > 0 && src == honestIP {
				t.Errorf("%s sent %d SYNs again", src, n)
			}
		}
	}
	must(t, <-done)
	n, err := st.s.Counters()
	must(t, err)
	if n[DropHeld] > 100_000/10 { // the budget is 200 a second, and retransmissions come to it
		t.Errorf("%d were held", n[DropHeld])
	}
	t.Logf("%d of 100,000 forged SYNs were held", n[DropHeld])
}
