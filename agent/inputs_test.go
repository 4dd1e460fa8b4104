package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/control"
)

// TestSyslogSocketToStatus: what comes on the socket is counted, and status has the input.
func TestSyslogSocketToStatus(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: datagrams of other users are not trusted")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "log")
	a := startAgent(t, dir, fmt.Sprintf("  - {syslog: \"unixgram:%s\", users: [nobody]}\n  - {file: %s/none.log}\n", path, dir))
	a.awaitStatus("listening", func(s *control.Status) bool { return s.Inputs[0].State == "following" })
	c, err := net.Dial("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for range 7 {
		line := "<22>" + time.Now().Format(time.Stamp) + " mx1 postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[198.18.0.1]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>"
		if _, err := c.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
	}
	s := a.awaitStatus("counted", func(s *control.Status) bool { return s.Events["unknown_recipient"]+s.Inputs[0].Untrusted == 7 })
	if in := s.Inputs[0]; in.ID != "syslog:unixgram:"+path || in.Untrusted != 0 || in.Lines != 7 || s.Inputs[1].State != "waiting" {
		t.Errorf("inputs %+v", s.Inputs)
	}
}
