//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Forger sends datagrams in anybody's name.
type Forger struct{ fd int }

// Forge opens one on the host. Close it.
func (h *Host) Forge() (f *Forger, err error) {
	err = h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // IP_HDRINCL
		f = &Forger{fd}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a raw socket: %w", err)
	}
	return f, nil
}

// Close closes it.
func (f *Forger) Close() error { return unix.Close(f.fd) }

// Send sends a datagram of at most 1400 bytes over IPv4, whatever from is.
func (f *Forger) Send(from, to netip.AddrPort, payload []byte) error {
	if !from.Addr().Is4() || !to.Addr().Is4() || len(payload) > 1400 {
		return errors.New("a forged datagram is of IPv4, and has at most 1400 bytes")
	}
	const head = 20 + 8
	b := make([]byte, head, head+len(payload))
	b[0], b[8], b[9] = 4<<4|5, 64, unix.IPPROTO_UDP // the kernel fills in length, id and checksum
	src, dst := from.Addr().As4(), to.Addr().As4()
	copy(b[12:], src[:])
	copy(b[16:], dst[:])
	binary.BigEndian.PutUint16(b[20:], from.Port())
	binary.BigEndian.PutUint16(b[22:], to.Port())
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload))) // no checksum: IPv4 takes that
	for {
		err := unix.Sendto(f.fd, append(b, payload...), 0, &unix.SockaddrInet4{Addr: dst})
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
