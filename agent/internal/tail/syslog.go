package tail

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SyslogOptions changes how a syslog socket is read. Zero values mean the defaults.
type SyslogOptions struct {
	Users   []string      // whose datagrams count besides root's, looked up in Passwd; default MTAUsers and "syslog"
	Trusted []uint32      // instead of root and Users
	Passwd  string        // default /etc/passwd
	Group   string        // that may write to the socket; default mxshield
	Retry   time.Duration // between attempts to make the socket, and looks whether it is still there; default 1 s
	Buffer  int           // receive buffer in bytes, as far as the kernel allows; default 8 MiB
	Log     *slog.Logger  // default: none
}

// Syslog reads datagrams that carry one syslog message each, of RFC 3164 or RFC 5424, with or without <PRI>:
//
//	<22>Jan 31 12:00:00 mx1 postfix/smtpd[4711]: connect from unknown[192.0.2.1]
//	<22>1 2026-01-31T12:00:00.123456Z mx1 postfix/smtpd 4711 - - connect from unknown[192.0.2.1]
//
// On a unix socket (mode 0660, root and a group) only datagrams count of which the kernel says that a trusted user sent
// them; the others are counted in Status.Untrusted. A syslog daemon is such a user, and what it passes on it vouches for:
// whether a local user wrote it is for its rules to tell. While the agent is busy senders wait, as the kernel lets no
// sender overrun a unix socket.
//
// On UDP nobody knows the sender: any local user can write to it. It is read on loopback only. What comes faster than it
// is read the kernel drops, and Status.Dropped counts it (SO_RXQ_OVFL).
//
// What can be lost: datagrams sent while the agent is down (rsyslogd does not keep them), and those received but not
// committed when it is killed. There is nothing to go back to, so the mark is only a time.
type Syslog struct {
	network, address string
	opts             SyslogOptions
	board            board
}

// NewSyslog returns the input for network "unixgram" with a path, or "udp" with a loopback address and port.
func NewSyslog(network, address string, opts SyslogOptions) *Syslog {
	if opts.Users == nil {
		opts.Users = append(slices.Clone(MTAUsers), "syslog")
	}
	if opts.Passwd == "" {
		opts.Passwd = "/etc/passwd"
	}
	if opts.Group == "" {
		opts.Group = "mxshield"
	}
	if opts.Retry <= 0 {
		opts.Retry = time.Second
	}
	if opts.Buffer <= 0 {
		opts.Buffer = 8 << 20
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	s := &Syslog{network: network, address: address, opts: opts}
	s.board.s = Status{Input: s.ID(), State: Stopped}
	return s
}

// ID is "syslog:", the network, ":" and the address.
func (s *Syslog) ID() string { return "syslog:" + s.network + ":" + s.address }

// Status is safe to call from any goroutine.
func (s *Syslog) Status() Status { return s.board.get() }

// Pauses of what reads from a descriptor.
const (
	lookPause  = 100 * time.Millisecond // at the latest, ctx is looked at
	batchPause = 5 * time.Millisecond   // lines that come in quick succession share a batch
)

// Run implements Input. It returns an error for an address that may not be listened on.
func (s *Syslog) Run(ctx context.Context, _ []byte, out chan<- Batch) error {
	r := &datagrams{s: s, out: out, buf: make([]byte, maxLine+1), oob: make([]byte, unix.CmsgSpace(unix.SizeofUcred)),
		watch: suppressWatch{log: s.opts.Log, input: s.ID()}}
	if r.trusted = s.opts.Trusted; r.trusted == nil {
		r.trusted = append(lookupUsers(s.opts.Passwd, s.opts.Users), 0)
	}
	if err := s.check(); err != nil {
		s.board.update(func(st *Status) { st.State, st.LastError = Failed, describe(err) })
		return err
	}
	defer s.board.update(func(st *Status) { st.State, st.Detail = Stopped, "" })
	s.board.update(func(st *Status) { st.State, st.Detail = Waiting, "the socket is being made" })
	// Nothing that was there before can be read: there is nothing to catch up with.
	if err := r.send(ctx, nil); err != nil {
		return nil
	}
	problem := ""
	for ctx.Err() == nil {
		err := r.listen()
		if err == nil {
			if problem != "" {
				s.opts.Log.Info("following", "input", s.ID())
				problem = ""
			}
			err = r.read(ctx)
			r.close()
		}
		if err == nil || ctx.Err() != nil {
			continue // ended, or to be made anew
		}
		text := describe(err)
		if text != problem {
			var hint string
			if h, ok := err.(interface{ HintText() string }); ok {
				hint = h.HintText()
			}
			s.opts.Log.Warn("cannot read the syslog socket; trying again", "input", s.ID(), "error", err, "hint", hint)
			problem = text
		}
		s.board.update(func(st *Status) { st.State, st.Detail, st.LastError = Failed, "trying again", text })
		select {
		case <-ctx.Done():
		case <-time.After(s.opts.Retry):
		}
	}
	return nil
}

// check refuses what must not be listened on at all.
func (s *Syslog) check() error {
	switch s.network {
	case "unixgram":
		if !filepath.IsAbs(s.address) || len(s.address) > 107 {
			return withHint("give a whole path of at most 107 bytes, such as /run/mxshield/log", "syslog socket %.120q", s.address)
		}
	case "udp":
		if a, err := netip.ParseAddrPort(s.address); err != nil || !a.Addr().IsLoopback() || a.Port() == 0 {
			return withHint("name a loopback address and port such as 127.0.0.1:5514: what comes over a network can be forged by anybody",
				"syslog over UDP on %.120q", s.address)
		}
	default:
		return withHint("unixgram or udp", "syslog over %.40q", s.network)
	}
	return nil
}

// datagrams is the state of one Run.
type datagrams struct {
	s       *Syslog
	out     chan<- Batch
	trusted []uint32
	watch   suppressWatch
	buf     []byte
	oob     []byte

	fd       int
	ino      uint64 // of the socket at the path
	overflow uint32 // as the kernel counts it for this socket
	gather
	truncs, dropped, untrusted, suppressed uint64 // not yet in Status
}

func (r *datagrams) listen() error {
	if r.s.network == "udp" {
		return r.listenUDP()
	}
	path := r.s.address
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder of the syslog socket: %w", err)
	}
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode()&os.ModeSocket == 0 {
			return withHint("name a path where nothing is yet", "listen on %s: something that is no socket is there", path)
		}
		if c, err := net.Dial("unixgram", path); err == nil {
			c.Close()
			return withHint("stop the program that listens there, or name another path", "listen on %s: another program listens there", path)
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return withHint("name a path where nothing is yet", "listen on %s: something is there: %w", path, err)
		}
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove the stale syslog socket: %w", err)
		}
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make the syslog socket: %w", err)
	}
	// Before bind: no datagram may come without the sender's identity.
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1); err == nil {
		err = r.bind(fd, path)
	}
	if err != nil {
		unix.Close(fd)
		return withHint("the agent must be root, and with systemd the path must lie in /run/mxshield or in a ReadWritePaths of its unit", "listen on %s: %w", path, err)
	}
	r.fd = fd
	return nil
}

// bind binds fd to path, open to nobody until its group is set.
func (r *datagrams) bind(fd int, path string) error {
	// fchmod before bind sets the mode that the file is made with: it is at no time open to all.
	if err := unix.Fchmod(fd, 0o600); err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return err
	}
	gid := -1
	if g, err := user.LookupGroup(r.s.opts.Group); err == nil {
		if n, err := strconv.Atoi(g.Gid); err == nil {
			gid = n
		}
	} else {
		r.s.opts.Log.Warn("only root can write to the syslog socket: there is no such group", "input", r.s.ID(), "group", r.s.opts.Group)
	}
	err := os.Lchown(path, -1, gid)
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err == nil {
		r.ino, err = inodeOf(path)
	}
	if err != nil {
		os.Remove(path)
	}
	return err
}

func inodeOf(path string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return st.Ino, err
}

func (r *datagrams) listenUDP() error {
	a := netip.MustParseAddrPort(r.s.address)
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()})
	if a.Addr().Unmap().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().Unmap().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make the syslog socket: %w", err)
	}
	// Forcing goes beyond net.core.rmem_max and needs CAP_NET_ADMIN.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, r.s.opts.Buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, r.s.opts.Buffer)
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1); err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		unix.Close(fd)
		return withHint("another program may have the port", "listen on udp %s: %w", a, err)
	}
	r.fd, r.overflow = fd, 0
	return nil
}

func (r *datagrams) close() {
	if ino, err := inodeOf(r.s.address); r.s.network == "unixgram" && err == nil && ino == r.ino {
		os.Remove(r.s.address)
	}
	unix.Close(r.fd)
}

// read hands over what comes until ctx ends. It returns nil when the socket has to be made anew because its path is gone.
func (r *datagrams) read(ctx context.Context) error {
	r.publish(0)
	looked := time.Now()
	for ctx.Err() == nil {
		if now := time.Now(); r.s.network == "unixgram" && now.Sub(looked) >= r.s.opts.Retry {
			if ino, err := inodeOf(r.s.address); errors.Is(err, fs.ErrNotExist) || err == nil && ino != r.ino {
				r.s.opts.Log.Warn("the syslog socket was removed; making it anew", "input", r.s.ID())
				r.drain(ctx)
				return nil
			}
			looked = now
		}
		ready, err := pollIn(r.fd, lookPause)
		if err != nil {
			return err
		}
		if !ready {
			continue
		}
		for began := time.Now(); time.Since(began) < batchPause; {
			n, err := r.receive()
			if err == unix.EAGAIN {
				if ready, err = pollIn(r.fd, time.Millisecond); err != nil {
					return err
				} else if !ready {
					break
				}
				continue
			}
			if err != nil {
				return err
			}
			if n > 0 && !r.room(maxLine) {
				break
			}
		}
		if err := r.flush(ctx); err != nil {
			return nil
		}
	}
	return nil
}

// drain takes what still waits in a socket that is given up. Senders that have it open are refused from now on, and will look
// for the new one.
func (r *datagrams) drain(ctx context.Context) {
	if unix.Shutdown(r.fd, unix.SHUT_RD) != nil {
		return
	}
	for {
		// At its end the socket may also give empty datagrams for ever, which nobody has sent.
		if _, oobn, _, _, err := unix.Recvmsg(r.fd, nil, r.oob, unix.MSG_DONTWAIT|unix.MSG_PEEK); err == nil && oobn == 0 {
			_ = r.flush(ctx)
			return
		}
		_, err := r.receive()
		if (err != nil || !r.room(maxLine)) && r.flush(ctx) != nil || err != nil {
			return
		}
	}
}

// pollIn waits until fd can be read (or has ended), for at most d.
func pollIn(fd int, d time.Duration) (bool, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(p, int(d/time.Millisecond))
	if err == unix.EINTR {
		return false, nil
	}
	return n > 0, err
}

// receive takes one datagram; the error is EAGAIN if there is none.
func (r *datagrams) receive() (int, error) {
	n, oobn, flags, from, err := unix.Recvmsg(r.fd, r.buf, r.oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	switch {
	case err == unix.EINTR:
		return 0, nil
	case err != nil:
		return 0, err
	}
	uid, hasUID := r.control(r.oob[:oobn])
	if r.s.network == "unixgram" {
		if !hasUID || !slices.Contains(r.trusted, uid) {
			r.untrusted++
			return n, nil
		}
	} else if !fromLoopback(from) {
		r.untrusted++
		return n, nil
	}
	line := r.buf[:n]
	if flags&unix.MSG_TRUNC != 0 || n > maxLine {
		line = line[:maxLine]
		r.truncs++
	}
	if line = cleanDatagram(line); len(line) == 0 {
		return n, nil
	}
	r.gather.add(line)
	r.suppressed += r.watch.line(skipPRI(line), time.Now())
	return n, nil
}

// control reads the ancillary data: who sent it, and how many were dropped before. There is no room in it for descriptors
// that somebody might send along, but should they come, they are closed.
func (r *datagrams) control(oob []byte) (uid uint32, ok bool) {
	if len(oob) == 0 {
		return 0, false
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for i := range msgs {
		m := &msgs[i]
		if m.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch m.Header.Type {
		case unix.SCM_CREDENTIALS:
			if len(m.Data) < unix.SizeofUcred {
				continue
			}
			if c, err := unix.ParseUnixCredentials(m); err == nil {
				uid, ok = c.Uid, true
			}
		case unix.SCM_RIGHTS:
			fds, _ := unix.ParseUnixRights(m)
			for _, fd := range fds {
				unix.Close(fd)
			}
		case unix.SO_RXQ_OVFL:
			if len(m.Data) >= 4 {
				now := binary.NativeEndian.Uint32(m.Data)
				r.dropped += uint64(now - r.overflow) // it wraps
				r.overflow = now
			}
		}
	}
	return uid, ok
}

func fromLoopback(sa unix.Sockaddr) bool {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(a.Addr).IsLoopback()
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap().IsLoopback()
	}
	return false
}

// cleanDatagram makes one line of a datagram, in place: without the line end or NUL that some senders put behind it, and
// with nothing in it that could be taken for a second line.
func cleanDatagram(b []byte) []byte {
	b = bytes.TrimRight(b, "\r\n\x00")
	for i, c := range b {
		switch {
		case c == '\n' || c == '\r' || c == '\t':
			b[i] = ' '
		case c < ' ' || c == 0x7f:
			b[i] = '?'
		}
	}
	return b
}

// skipPRI returns what follows <PRI>.
func skipPRI(b []byte) []byte {
	if len(b) > 2 && b[0] == '<' {
		if i := bytes.IndexByte(b[:min(len(b), 5)], '>'); i > 0 {
			return b[i+1:]
		}
	}
	return b
}

// flush hands over what was gathered. The error is ctx's.
func (r *datagrams) flush(ctx context.Context) error {
	lines := r.take()
	if len(lines) > 0 {
		if err := r.send(ctx, lines); err != nil {
			return err
		}
	}
	r.publish(len(lines))
	return nil
}

func (r *datagrams) send(ctx context.Context, lines [][]byte) error {
	now := time.Now()
	b := Batch{Input: r.s.ID(), Lines: lines, Mark: mark{Time: now.UnixMicro()}.encode(), CaughtUp: true, Read: now}
	select {
	case r.out <- b:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *datagrams) publish(lines int) {
	if r.dropped > 0 {
		r.s.opts.Log.Warn("the kernel dropped datagrams: they came faster than they could be read", "input", r.s.ID(), "dropped", r.dropped,
			"hint", "raise net.core.rmem_max, or use a unix socket, whose senders wait")
	}
	r.s.board.update(func(s *Status) {
		s.State = Following
		s.Lines += uint64(lines)
		s.Truncated += r.truncs
		s.Dropped += r.dropped
		s.Untrusted += r.untrusted
		s.Suppressed += r.suppressed
		r.truncs, r.dropped, r.untrusted, r.suppressed = 0, 0, 0, 0
		if lines > 0 {
			s.LastLine = time.Now()
		}
		s.Detail = ""
		if s.Untrusted > 0 {
			s.Detail = fmt.Sprintf("ignored %d datagrams that other users sent", s.Untrusted)
		}
	})
}
