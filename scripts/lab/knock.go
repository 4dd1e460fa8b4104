//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Knock is one attempt to connect. Any answer counts, a refusal too: the packet was not dropped.
type Knock struct {
	Began    time.Time
	Answered time.Time // zero: never
}

const (
	// maxWait is how long a knock waits for its answer: less than TCP waits before it sends its SYN again, so that each
	// stands for one packet.
	maxWait = 800 * time.Millisecond
	// lastWait is the same for those that are open when the knocking ends.
	lastWait = 200 * time.Millisecond
)

// KnockUntil begins a connection every so often until ctx ends, each from a port of its own, and ends each as soon as it is
// answered. It shows to a few milliseconds when packets begin to be dropped and when they pass again.
func KnockUntil(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, every time.Duration) (all []Knock, err error) {
	type waiting struct{ fd, knock int }
	var open []waiting
	defer func() {
		for _, w := range open {
			unix.Close(w.fd)
		}
	}()
	// The namespace matters only where a socket is made.
	err = h.Do(func() error {
		next := time.Now()
		var end time.Time
		for end.IsZero() || len(open) > 0 && time.Now().Before(end) {
			now := time.Now()
			if ctx.Err() != nil {
				if end.IsZero() {
					end = now.Add(lastWait)
				}
			} else if !now.Before(next) {
				fd, err := knock(from, to)
				if err != nil {
					return err
				}
				open = append(open, waiting{fd, len(all)})
				all = append(all, Knock{Began: now})
				next = now.Add(every)
			}
			fds := make([]unix.PollFd, len(open))
			for i, w := range open {
				fds[i] = unix.PollFd{Fd: int32(w.fd), Events: unix.POLLOUT}
			}
			wait := int(max(1, min(every, 50*time.Millisecond)/time.Millisecond))
			if _, err := unix.Poll(fds, wait); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll: %w", err)
			}
			now = time.Now()
			left := open[:0]
			for i, w := range open {
				switch {
				case fds[i].Revents != 0:
					all[w.knock].Answered = now
				case now.Sub(all[w.knock].Began) < maxWait:
					left = append(left, w)
					continue
				}
				unix.Close(w.fd)
			}
			open = left
		}
		return nil
	})
	return all, err
}

// Closed is when the first knock began that was dropped, as were all after it; zero if that never came. The door closed
// less than one pause between knocks earlier.
func Closed(all []Knock) (at time.Time) {
	for _, k := range slices.Backward(all) {
		if !k.Answered.IsZero() {
			return at
		}
		at = k.Began
	}
	return time.Time{} // none was answered: who knows since when it is closed
}

// Opened is when the first answer came; zero if none did.
func Opened(all []Knock) (at time.Time) {
	for _, k := range all {
		if !k.Answered.IsZero() && (at.IsZero() || k.Answered.Before(at)) {
			at = k.Answered
		}
	}
	return at
}

// knock begins one connection, which a close resets.
func knock(from netip.Addr, to netip.AddrPort) (fd int, err error) {
	family := unix.AF_INET
	if from.Is6() {
		family = unix.AF_INET6
	}
	fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a socket: %w", err)
	}
	err = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	if err == nil {
		err = unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0)))
	}
	if err == nil {
		err = unix.Connect(fd, sockaddr(to))
	}
	if err != nil && !errors.Is(err, unix.EINPROGRESS) && !errors.Is(err, unix.ECONNREFUSED) {
		unix.Close(fd)
		return -1, fmt.Errorf("knock at %s from %s: %w", to, from, err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
