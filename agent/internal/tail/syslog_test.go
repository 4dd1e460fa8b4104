package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sendAs sends datagrams to a socket as another user, who is let in by a socket open to all.
func sendAs(t *testing.T, uid int, path string, texts ...string) {
	t.Helper()
	if out, err := senderAs(t, uid, path, strings.Join(texts, "\n")).CombinedOutput(); err != nil {
		t.Fatalf("sender: %v, %s", err, out)
	}
}

func senderAs(t *testing.T, uid int, path, text string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(self, "-test.run=^TestDatagramSender$")
	cmd.Env = append(os.Environ(), "TAIL_TEST_SOCKET="+path, fmt.Sprintf("TAIL_TEST_UID=%d", uid))
	cmd.Stdin = strings.NewReader(text)
	return cmd
}

// TestDatagramSender is the process behind sendAs.
func TestDatagramSender(t *testing.T) {
	path := os.Getenv("TAIL_TEST_SOCKET")
	if path == "" {
		t.Skip("run by TestSyslog")
	}
	uid, err := strconv.Atoi(os.Getenv("TAIL_TEST_UID"))
	must(t, err)
	must(t, syscall.Setgroups(nil))
	must(t, syscall.Setgid(uid))
	must(t, syscall.Setuid(uid))
	var in bytes.Buffer
	_, err = in.ReadFrom(os.Stdin)
	must(t, err)
	c, err := net.Dial("unixgram", path)
	must(t, err)
	defer c.Close()
	for line := range strings.SplitSeq(in.String(), "\n") {
		_, err := c.Write([]byte(line))
		must(t, err)
	}
}

// openDir is a directory that every user may pass through.
func openDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Chmod(filepath.Dir(dir), 0o755))
	return dir
}

func TestSyslog(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to send as other users")
	}
	path := filepath.Join(openDir(t), "run", "log")
	in := NewSyslog("unixgram", path, SyslogOptions{Trusted: []uint32{0, 4242}, Retry: 10 * time.Millisecond, Group: "nogroup"})
	r := startAt(t, in, nil)
	if b := r.take(); !b.CaughtUp || len(b.Lines) != 0 {
		t.Fatalf("first batch %+v", b)
	}
	r.waitStatus("listening", func(s Status) bool { return s.State == Following })
	fi, err := os.Stat(path)
	must(t, err)
	if fi.Mode() != os.ModeSocket|0o660 {
		t.Errorf("mode %v", fi.Mode())
	}
	must(t, os.Chmod(path, 0o666)) // now all can send, and only credentials tell them apart

	const one = "<22>Jan 31 12:00:00 mx1 postfix/smtpd[1]: connect from unknown[192.0.2.1]"
	sendAs(t, 0, path, one)
	sendAs(t, 65534, path, "<22>Jan 31 12:00:00 mx1 postfix/smtpd[1]: forged", "forged")
	sendAs(t, 4242, path, "no header", "<22>1 2026-01-31T12:00:00Z mx1 postfix/smtpd 1 - - five\x00", "rsyslogd: x")
	c, err := net.Dial("unixgram", path)
	must(t, err)
	defer c.Close()
	for _, s := range []string{"a\nJan 31 12:00:00 mx1 postfix/smtpd[1]: b\n", "\r\n\x00", "", strings.Repeat("x", maxLine+100)} {
		_, err := c.Write([]byte(s))
		must(t, err)
	}
	r.want(one, "no header", "<22>1 2026-01-31T12:00:00Z mx1 postfix/smtpd 1 - - five", "rsyslogd: x",
		"a Jan 31 12:00:00 mx1 postfix/smtpd[1]: b", strings.Repeat("x", maxLine))
	r.waitStatus("counted", func(s Status) bool {
		return s.Untrusted == 2 && s.Truncated == 1 && s.Lines == 6 && strings.Contains(s.Detail, "ignored 2 ")
	})

	// Descriptors that somebody sends along are not kept.
	before := descriptors(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	must(t, err)
	defer unix.Close(fd)
	for range 50 {
		must(t, unix.Sendmsg(fd, []byte("with a descriptor"), unix.UnixRights(0, 1, 2), &unix.SockaddrUnix{Name: path}, 0))
	}
	for len(r.lines) < 56 {
		r.take()
	}
	if after := descriptors(t); after > before+5 {
		t.Errorf("%d descriptors, %d before", after, before)
	}

	// The socket's path goes away: it is made anew.
	must(t, os.Remove(path))
	r.waitStatus("listening again", func(Status) bool { return exists(path) })
	sendAs(t, 0, path, "again")
	for r.lines[len(r.lines)-1] != "again" {
		r.take()
	}
	r.stop()
	if exists(path) {
		t.Error("the socket is left behind")
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(list)
}

// TestSyslogSendersWait: a consumer that hangs loses nothing of a unix socket.
func TestSyslogSendersWait(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := startAt(t, NewSyslog("unixgram", path, SyslogOptions{Trusted: []uint32{uint32(os.Getuid())}}), nil)
	r.take()
	r.waitStatus("listening", func(Status) bool { return exists(path) })
	const n = 20_000
	go sendNumbered(path, n)
	for len(r.lines) < n {
		r.take()
	}
	same(t, r.lines, numbered(0, n))
}

// TestSyslogRemoved: what waits in the socket when its path goes is not lost, for a sender that has it open.
func TestSyslogRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	r := startAt(t, NewSyslog("unixgram", path, SyslogOptions{Trusted: []uint32{uint32(os.Getuid())}, Retry: time.Millisecond}), nil)
	r.take()
	r.waitStatus("listening", func(Status) bool { return exists(path) })
	sent := 0
	for range 20 {
		c, err := net.Dial("unixgram", path)
		must(t, err)
		for i := range 9 { // nobody takes the batch: they wait in the socket
			if i == 5 {
				must(t, os.Remove(path))
			}
			must(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
			if _, err := c.Write([]byte(numberedLine(sent))); err != nil { // it was closed already
				break
			}
			if sent++; i == 0 { // the socket is ready
				for len(r.lines) < sent {
					r.take()
				}
			}
		}
		r.waitStatus("listening again", func(Status) bool {
			must(t, c.SetWriteDeadline(time.Now().Add(time.Second)))
			_, err := c.Write(nil)
			return (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTCONN)) && exists(path)
		})
		c.Close()
	}
	for len(r.lines) < sent {
		r.take()
	}
	same(t, r.lines, numbered(0, sent))
}

// TestSyslogFlood: users who may write to the socket, but are not trusted, flood it. They are counted, no line of theirs
// comes through, and none of a trusted sender's is lost.
func TestSyslogFlood(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to send as other users")
	}
	path := filepath.Join(openDir(t), "log")
	r := startAt(t, NewSyslog("unixgram", path, SyslogOptions{Trusted: []uint32{0}}), nil)
	r.take()
	r.waitStatus("listening", func(s Status) bool { return s.State == Following })
	must(t, os.Chmod(path, 0o666))
	const flood, senders, n = 20_000, 2, 1000
	forged := strings.TrimSuffix(strings.Repeat("<22>Jan 31 12:00:00 mx1 postfix/smtpd[1]: connect from unknown[192.0.2.1]\n", flood), "\n")
	flooded := make(chan error, senders)
	for range senders {
		cmd := senderAs(t, 65534, path, forged)
		go func() { flooded <- cmd.Run() }()
	}
	go sendNumbered(path, n)
	for len(r.lines) < n {
		r.take()
	}
	same(t, r.lines, numbered(0, n))
	r.waitStatus("all are counted", func(s Status) bool { return s.Untrusted == senders*flood })
	for range senders {
		must(t, <-flooded)
	}
}

func TestSyslogInTheWay(t *testing.T) {
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "live"), Net: "unixgram"})
	must(t, err)
	stale, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	must(t, err)
	must(t, unix.Bind(stale, &unix.SockaddrUnix{Name: filepath.Join(dir, "stale")}))
	must(t, unix.Close(stale))
	for name, says := range map[string]string{"file": "no socket", "live": "another program"} {
		r := startAt(t, NewSyslog("unixgram", filepath.Join(dir, name), SyslogOptions{Retry: 10 * time.Millisecond}), nil)
		r.take()
		r.waitStatus("failed", func(s Status) bool { return s.State == Failed && strings.Contains(s.LastError, says) })
		if name == "live" { // it works once the other is gone
			c.Close()
			r.waitStatus("following", func(s Status) bool { return s.State == Following })
		}
		r.stop()
	}
	r := startAt(t, NewSyslog("unixgram", filepath.Join(dir, "stale"), SyslogOptions{}), nil)
	r.take()
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
	for _, a := range [][2]string{{"unixgram", "x"}, {"unixgram", "/" + strings.Repeat("x", 107)}, {"udp", "0.0.0.0:5514"}, {"udp", "[::]:5514"},
		{"udp", "192.0.2.1:5514"}, {"udp", "127.0.0.1:0"}, {"udp", "localhost:5514"}, {"tcp", "127.0.0.1:5514"}} {
		in := NewSyslog(a[0], a[1], SyslogOptions{})
		if err := in.Run(context.Background(), nil, nil); err == nil || in.Status().State != Failed || in.Status().LastError == "" {
			t.Errorf("%v: %v, %+v", a, err, in.Status())
		}
	}
}

// freeUDP is a loopback address and port that nobody has just now.
func freeUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer c.Close()
	return c.LocalAddr().String()
}

// TestSyslogUDP: datagrams arrive, and those that the kernel drops while the consumer hangs are counted exactly.
func TestSyslogUDP(t *testing.T) {
	addr := freeUDP(t)
	r := startAt(t, NewSyslog("udp", addr, SyslogOptions{Buffer: 4096}), nil)
	r.take()
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
	c, err := net.Dial("udp", addr)
	must(t, err)
	defer c.Close()
	send := func(s string) {
		_, err := c.Write([]byte(s))
		must(t, err)
	}
	send("one")
	r.want("one")
	// The input blocks on handing over a batch of which nobody takes the second, and the buffer fills.
	const n = 500
	sent := 1
	send("two")
	time.Sleep(3 * batchPause) // not a promise: where it is too short, the first of these come in one batch with "two"
	sent++
	for i := range n {
		send(fmt.Sprintf("%0200d", i))
		sent++
	}
	deadline := time.Now().Add(patience)
	for {
		// The kernel tells of drops with a later datagram.
		send("more")
		sent++
		select {
		case b := <-r.out:
			r.commit(b)
		case <-time.After(20 * time.Millisecond):
		}
		s := r.in.Status()
		if s.Dropped > 0 && len(r.lines)+int(s.Dropped) == sent {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of %d lines, status %+v", len(r.lines), sent, s)
		}
	}
}

// FuzzDatagram: whatever comes, what is handed over is one line with nothing in it that could start another.
func FuzzDatagram(f *testing.F) {
	for _, s := range []string{"", "\x00", "<22>Jan 31 12:00:00 mx1 postfix/smtpd[1]: x\n", "a\nb\r\n", "<22>rsyslogd: imuxsock lost 60 messages from pid 12 due to rate-limiting", "<1", "<99999>x", "\xff\xfe\x7f"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		line := cleanDatagram(b)
		for i, c := range line {
			if c < ' ' || c == 0x7f {
				t.Fatalf("%q of %q", line, was)
			}
			if w := was[i]; w >= ' ' && w != 0x7f && w != c {
				t.Fatalf("%q became %q", was, line)
			}
		}
		if rest := skipPRI(line); !bytes.HasSuffix(line, rest) || len(line)-len(rest) > 5 {
			t.Fatalf("%q of %q", rest, line)
		}
		suppressed(skipPRI(line))
	})
}

// FuzzControl: ancillary data as the kernel never writes it.
func FuzzControl(f *testing.F) {
	f.Add([]byte{})
	f.Add(unix.UnixCredentials(&unix.Ucred{Pid: 1, Uid: 0, Gid: 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if msgs, err := unix.ParseSocketControlMessage(b); err == nil {
			for _, m := range msgs {
				if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_RIGHTS {
					t.Skip("would close descriptors of the test")
				}
			}
		}
		r := &datagrams{}
		if uid, ok := r.control(b); !ok && uid != 0 {
			t.Errorf("user %d of nothing", uid)
		}
	})
}

// sendNumbered writes n numbered lines to a socket, as fast as it takes them.
func sendNumbered(path string, n int) {
	c, err := net.Dial("unixgram", path)
	if err != nil {
		return
	}
	defer c.Close()
	for i := range n {
		if _, err := c.Write([]byte(numberedLine(i))); err != nil {
			return
		}
	}
}
