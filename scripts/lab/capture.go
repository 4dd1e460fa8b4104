//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Segment is one UDP datagram or TCP segment as it was on the wire.
type Segment struct {
	Proto    uint8 // unix.IPPROTO_UDP or IPPROTO_TCP
	From, To netip.AddrPort
	Seq      uint32 // TCP: of the first byte of Payload, or of the SYN
	SYN      bool
	Payload  []byte
}

// Capture copies what crosses a host.
type Capture struct {
	fd       int
	port     uint16
	stopping atomic.Bool
	done     chan struct{}

	mu   sync.Mutex
	all  []Segment
	size int
	err  error
}

// maxCapture bounds what a capture holds, in bytes.
const maxCapture = 512 << 20

// Capture begins to copy every datagram and segment from or to a port that comes in on any interface of the host. On Net
// that is what the mail hosts send, to each other too. Stop it.
func (h *Host) Capture(port uint16) (*Capture, error) {
	c := &Capture{port: port, done: make(chan struct{})}
	err := h.Do(func() (err error) {
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	if err := errors.Join(
		unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 128<<20),
		unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000})); err != nil {
		unix.Close(c.fd)
		return nil, fmt.Errorf("set up a packet socket: %w", err)
	}
	go c.read()
	return c, nil
}

// SoFar returns what was copied until now.
func (c *Capture) SoFar() []Segment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.all[:len(c.all):len(c.all)]
}

// Stop ends the capture and returns all of it, or an error if something is missing.
func (c *Capture) Stop() ([]Segment, error) {
	c.stopping.Store(true)
	<-c.done
	return c.all, c.err
}

func (c *Capture) read() {
	defer close(c.done)
	defer unix.Close(c.fd)
	buf := make([]byte, 128<<10) // a segment may be as long as 64 kB before it is cut for the wire
	for {
		n, from, err := unix.Recvfrom(c.fd, buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			if !c.stopping.Load() {
				continue
			}
			// Nothing more waits.
			st, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
			if err == nil && st.Drops > 0 {
				err = fmt.Errorf("%d packets were not captured", st.Drops)
			}
			c.err = errors.Join(c.err, err)
			return
		case err != nil:
			c.err = fmt.Errorf("read packets: %w", err)
			return
		}
		// What goes out had come in before.
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		s, ok := parseSegment(buf[:n])
		if !ok || s.From.Port() != c.port && s.To.Port() != c.port {
			continue
		}
		s.Payload = append([]byte(nil), s.Payload...)
		c.mu.Lock()
		if c.size += len(s.Payload) + 100; c.size <= maxCapture {
			c.all = append(c.all, s)
		} else if c.err == nil {
			c.err = fmt.Errorf("more than %d MB: the rest was not kept", maxCapture>>20)
		}
		c.mu.Unlock()
	}
}

// parseSegment reads an IP packet. Those of the lab have no extension headers and are no fragments.
func parseSegment(b []byte) (s Segment, ok bool) {
	var src, dst netip.Addr
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		head, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
		if head < 20 || total < head || total > len(b) {
			return s, false
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		s.Proto, b = b[9], b[head:total]
	case len(b) >= 40 && b[0]>>4 == 6:
		total := 40 + int(binary.BigEndian.Uint16(b[4:]))
		if total > len(b) {
			return s, false
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		s.Proto, b = b[6], b[40:total]
	default:
		return s, false
	}
	head := 8
	switch {
	case s.Proto == unix.IPPROTO_UDP && len(b) >= 8:
	case s.Proto == unix.IPPROTO_TCP && len(b) >= 20:
		if head = int(b[12]>>4) * 4; head < 20 || head > len(b) {
			return s, false
		}
		s.Seq, s.SYN = binary.BigEndian.Uint32(b[4:]), b[13]&2 != 0
	default:
		return s, false
	}
	s.From = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	s.To = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	s.Payload = b[head:]
	return s, true
}
