//go:build linux

package lab

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Converse sends lines, literally and one after another, and returns the
// replies; it ends where the server does. Without a QUIT among the lines it
// hangs up. With t.TLS it changes to TLS before the first line. A line may hold
// CR LF: what follows is sent along without waiting.
func Converse(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, t Talk, lines []string) (replies []string) {
	c := newClient(h, from, to, t)
	s := c.connect(ctx)
	if s == nil {
		return nil
	}
	defer s.close()
	if !c.greeted(ctx, s) {
		return []string{c.Last}
	}
	for _, line := range lines {
		code, text, err := s.command(line)
		if err != nil {
			return append(replies, err.Error())
		}
		replies = append(replies, fmt.Sprint(code, " ", text))
		if code == 421 {
			break
		}
	}
	return replies
}

// MailboxOptions: like SASLOptions, for the ports 143 (IMAP: LOGIN), 110
// (POP3: USER and PASS) and 4190 (ManageSieve: PLAIN). Mechanism PLAIN stands
// for AUTHENTICATE and AUTH.
type MailboxOptions = SASLOptions

// Ports that MailboxBrute speaks to.
const (
	portIMAP  = 143
	portPOP3  = 110
	portSieve = 4190
)

// MailboxBrute is SASLBrute for ports 143 (IMAP), 110 (POP3) and 4190 (ManageSieve).
func MailboxBrute(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o MailboxOptions) Result {
	o = o.withDefaults()
	c := newClient(h, from, to, o.Talk)
	for tried := 0; tried < o.Attempts && c.more(ctx); {
		n := c.mailbox(ctx, min(o.PerSession, o.Attempts-tried), o, tried)
		tried += max(n, 1)
		pause(ctx, o.Pause)
	}
	return c.result()
}

// mailbox tries n logins in one session and returns how many were answered.
func (c *client) mailbox(ctx context.Context, n int, o MailboxOptions, first int) int {
	s := c.connect(ctx)
	if s == nil {
		return 0
	}
	defer s.close()
	port := c.to.Port()
	if line, err := s.untagged(port); err != nil || !mailboxOK(line) {
		c.Refused++
		return 0
	}
	c.Sessions++
	for i := range n {
		ok, err := s.mailboxLogin(port, o.Mechanism, o.user(first+i), o.Password)
		switch {
		case err != nil:
			c.lost(ctx, s, err)
			return i
		case ok:
			c.count(250)
			return i + 1
		default:
			c.count(535)
		}
	}
	bye := map[uint16]string{portIMAP: "a LOGOUT", portPOP3: "QUIT", portSieve: "LOGOUT"}
	_, _ = s.ask(port, bye[port])
	return n
}

func mailboxOK(line string) bool {
	return strings.HasPrefix(line, "+OK") || strings.HasPrefix(line, "a OK") || strings.HasPrefix(line, "* OK") || strings.HasPrefix(line, "OK")
}

// untagged reads a greeting: of ManageSieve that is lines of capabilities and an OK.
func (s *session) untagged(port uint16) (line string, err error) {
	for range maxReplyLines {
		if line, err = s.line(); err != nil || port != portSieve || !strings.HasPrefix(line, `"`) {
			return line, err
		}
	}
	return "", errors.New("endless greeting")
}

// ask sends a command and returns the tagged reply.
func (s *session) ask(port uint16, cmd string) (string, error) {
	if err := s.write(cmd + "\r\n"); err != nil {
		return "", err
	}
	for range maxReplyLines {
		line, err := s.line()
		if err != nil || port != portIMAP || !strings.HasPrefix(line, "* ") {
			return line, err
		}
	}
	return "", fmt.Errorf("endless reply to %q", cmd)
}

func (s *session) mailboxLogin(port uint16, mechanism, user, password string) (bool, error) {
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	var line string
	var err error
	switch {
	case port == portSieve:
		line, err = s.ask(port, fmt.Sprintf("AUTHENTICATE \"PLAIN\" {%d+}\r\n%s", len(plain), plain))
	case strings.EqualFold(mechanism, "PLAIN"):
		cmd := "AUTH PLAIN"
		if port == portIMAP {
			cmd = "a AUTHENTICATE PLAIN"
		}
		if line, err := s.ask(port, cmd); err != nil || !strings.HasPrefix(line, "+") {
			return false, err
		}
		line, err = s.ask(port, plain)
	case port == portPOP3:
		if line, err = s.ask(port, "USER "+user); err == nil && mailboxOK(line) {
			line, err = s.ask(port, "PASS "+password)
		}
	case strings.ContainsAny(user, "\r\n"): // which only a literal can hold
		if line, err := s.ask(port, fmt.Sprintf("a LOGIN {%d}", len(user))); err != nil || !strings.HasPrefix(line, "+") {
			return false, err
		}
		line, err = s.ask(port, user+` "`+password+`"`)
	default:
		quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(user)
		line, err = s.ask(port, `a LOGIN "`+quoted+`" "`+password+`"`)
	}
	return mailboxOK(line), err
}
