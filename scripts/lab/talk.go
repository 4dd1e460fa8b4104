//go:build linux

package lab

import (
	"context"
	"encoding/base64"
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

// MailboxOptions: like SASLOptions, for the ports 143 (IMAP: LOGIN) and 110
// (POP3: USER and PASS). Mechanism PLAIN stands for AUTHENTICATE and AUTH.
type MailboxOptions = SASLOptions

// MailboxBrute is SASLBrute for Dovecot's ports 143 (IMAP) and 110 (POP3).
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
	if line, err := s.line(); err != nil || !strings.HasPrefix(line, "* OK") && !strings.HasPrefix(line, "+OK") {
		c.Refused++
		return 0
	}
	c.Sessions++
	imap := c.to.Port() == 143
	for i := range n {
		ok, err := s.mailboxLogin(imap, o.Mechanism, o.user(first+i), o.Password)
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
	_, _ = s.ask("a LOGOUT", "QUIT", imap)
	return n
}

// ask sends one of two commands and returns the tagged reply.
func (s *session) ask(imap, pop string, isIMAP bool) (string, error) {
	cmd := pop
	if isIMAP {
		cmd = imap
	}
	if err := s.write(cmd + "\r\n"); err != nil {
		return "", err
	}
	for range maxReplyLines {
		line, err := s.line()
		if err != nil || !isIMAP || !strings.HasPrefix(line, "* ") {
			return line, err
		}
	}
	return "", fmt.Errorf("endless reply to %q", cmd)
}

func (s *session) mailboxLogin(imap bool, mechanism, user, password string) (bool, error) {
	good := func(line string) bool { return strings.HasPrefix(line, "+OK") || strings.HasPrefix(line, "a OK") }
	if strings.EqualFold(mechanism, "PLAIN") {
		text := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
		if line, err := s.ask("a AUTHENTICATE PLAIN", "AUTH PLAIN", imap); err != nil || !strings.HasPrefix(line, "+") {
			return false, err
		}
		line, err := s.ask(text, text, imap)
		return good(line), err
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(user)
	line, err := s.ask(`a LOGIN "`+quoted+`" "`+password+`"`, "USER "+user, imap)
	if err != nil || imap || !good(line) {
		return good(line), err
	}
	line, err = s.ask("", "PASS "+password, false)
	return good(line), err
}
