//go:build linux

package lab

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// session is one SMTP connection, client side. It writes what it is given, byte
// for byte, and reads replies of a bounded size within a bounded time. net/smtp
// does neither: it refuses line breaks and checks what it sends.
type session struct {
	conn    net.Conn
	in      *bufio.Reader
	timeout time.Duration // for each reply
	stop    func() bool
}

const (
	maxReplyLine  = 2048 // RFC 5321 4.5.3.1.5 says 512
	maxReplyLines = 100
)

// open connects; the greeting is not yet read.
func open(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, timeout time.Duration) (*session, error) {
	conn, err := h.Dial(ctx, from, to)
	if err != nil {
		return nil, err
	}
	return attach(ctx, conn, timeout), nil
}

// attach speaks SMTP over conn until ctx ends, in the middle of a read if need be.
func attach(ctx context.Context, conn net.Conn, timeout time.Duration) *session {
	s := &session{conn: conn, in: bufio.NewReaderSize(conn, maxReplyLine), timeout: timeout}
	s.stop = context.AfterFunc(ctx, func() { conn.Close() })
	return s
}

func (s *session) close() {
	s.stop()
	s.conn.Close()
}

// quit says good-bye properly; servers log a session without QUIT otherwise.
func (s *session) quit() {
	_, _, _ = s.command("QUIT")
	s.close()
}

// command sends one line and reads the reply. A line with CR LF in it is
// several commands to the server, and the replies run behind from then on.
func (s *session) command(line string) (code int, text string, err error) {
	if err := s.write(line + "\r\n"); err != nil {
		return 0, "", err
	}
	return s.read()
}

func (s *session) write(text string) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	_, err := io.WriteString(s.conn, text)
	return err
}

// line reads one line, without its end.
func (s *session) line() (string, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.timeout)); err != nil {
		return "", err
	}
	line, err := s.in.ReadSlice('\n')
	return strings.TrimRight(string(line), "\r\n"), err
}

// startTLS changes to TLS. The certificate is not looked at: servers of the lab
// make their own.
func (s *session) startTLS() error {
	if code, text, err := s.command("STARTTLS"); err != nil || code != 220 {
		return errors.Join(fmt.Errorf("STARTTLS: %d %s", code, text), err)
	}
	c := tls.Client(s.conn, &tls.Config{InsecureSkipVerify: true})
	if err := s.conn.SetDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	if err := c.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	s.conn, s.in = c, bufio.NewReaderSize(c, maxReplyLine)
	return nil
}

// read reads one reply, of one or more lines.
func (s *session) read() (code int, text string, err error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.timeout)); err != nil {
		return 0, "", err
	}
	for n := range maxReplyLines {
		// A postscreen that was talked to too early leaves its teaser ("220-")
		// without an end and goes on with the reply to the early command.
		if n > 0 {
			next, err := s.in.Peek(3)
			if err != nil {
				return 0, "", err
			}
			if string(next) != strconv.Itoa(code) {
				return code, "", nil
			}
		}
		line, err := s.in.ReadSlice('\n')
		if err != nil {
			return 0, "", err
		}
		l := strings.TrimRight(string(line), "\r\n")
		if len(l) < 3 {
			return 0, "", fmt.Errorf("short reply %q", l)
		}
		if code, err = strconv.Atoi(l[:3]); err != nil {
			return 0, "", fmt.Errorf("reply without a code: %q", l)
		}
		if len(l) == 3 || l[3] != '-' {
			return code, strings.TrimSpace(l[3:]), nil
		}
	}
	return 0, "", errors.New("endless reply")
}

// over is ctx.Err() != nil, but does not lag behind the deadline as that does:
// an operation that was given the same deadline may fail a moment earlier.
func over(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(end)
}

// timedOut tells silence (dropped packets) from an answer of any kind.
func timedOut(err error) bool {
	var ne net.Error
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, syscall.ETIMEDOUT) ||
		errors.As(err, &ne) && ne.Timeout()
}
