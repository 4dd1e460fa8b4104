package bpf

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Watch calls changed when interfaces or default routes of the calling thread's network namespace may have changed, so
// that Attach need not wait for the next look at everything. It is called at the beginning, and whenever news may have
// been lost. Several changes in a row become one call, not later than a third of a second after the first. Watch calls
// it on its own goroutine, one call at a time, and returns when ctx ends. It is no replacement for looking from time to
// time: a kernel that cannot tell us anything leaves it silent, after one warning.
func Watch(ctx context.Context, log *slog.Logger, changed func()) {
	w := watcher{
		open: func() (*os.File, error) { return subscribe(0) }, changed: changed, log: log,
		quiet: 50 * time.Millisecond, most: 300 * time.Millisecond, retry: time.Second,
	}
	w.run(ctx)
}

type watcher struct {
	open    func() (*os.File, error)
	changed func()
	log     *slog.Logger
	quiet   time.Duration // without news for so long: it was the last of a row
	most    time.Duration // a row that does not end is reported after this
	retry   time.Duration // between attempts to subscribe
}

// subscribe opens a socket that hears of links and routes.
func subscribe(rcvbuf int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if rcvbuf > 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, rcvbuf)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{
			Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE,
		})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to links and routes: %w", err)
	}
	return os.NewFile(uintptr(fd), "rtnetlink"), nil
}

func (w *watcher) run(ctx context.Context) {
	warned := false
	for ctx.Err() == nil {
		f, err := w.open()
		if err == nil {
			warned = false
			// What happened before, and between the last socket and this one, was not heard of.
			w.changed()
			stop := context.AfterFunc(ctx, func() { f.Close() })
			err = w.read(f)
			if stop() {
				f.Close()
			}
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, unix.ENOBUFS) {
			w.log.Debug("more changes of interfaces and routes at once than the socket holds: looking at all of them")
			continue
		}
		if !warned {
			warned = true
			w.log.Warn("changes of interfaces are not heard of at once; they are still found by looking from time to time", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(w.retry):
		}
	}
}

// read reads until the socket fails.
func (w *watcher) read(f *os.File) error {
	buf := make([]byte, 64<<10) // the kernel's messages are shorter
	for {
		if err := f.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		n, err := f.Read(buf)
		if err != nil {
			return err
		}
		if !concerns(buf[:n]) {
			continue
		}
		end := time.Now().Add(w.most)
		for {
			wait := time.Now().Add(w.quiet)
			if wait.After(end) {
				wait = end
			}
			if err := f.SetReadDeadline(wait); err != nil {
				return err
			}
			_, err := f.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return err // the next socket begins with a call
			}
		}
		w.changed()
	}
}

// concerns says whether a datagram has news for us: any link, or a default route. A router's thousands of other routes
// come and go without it. What cannot be read is news.
func concerns(b []byte) bool {
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			return true
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			// struct rtmsg: family, dst_len, src_len, tos, table ...
			if len(m.Data) < unix.SizeofRtMsg || m.Data[1] == 0 {
				return true
			}
		}
	}
	return false
}
