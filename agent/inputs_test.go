package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/tail"
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

// standing is an input that says of itself what the test wants.
type standing tail.Status

func (s standing) Run(context.Context, []byte, chan<- tail.Batch) error { return nil }
func (s standing) Status() tail.Status                                  { return tail.Status(s) }
func (s standing) ID() string                                           { return s.Input }

// TestLagOfInputs: how far behind each input is, in seconds: by the newest event that was read of it, while there is more.
func TestLagOfInputs(t *testing.T) {
	d := bareDaemon(t, nil)
	now := time.Now()
	for _, c := range []struct {
		s       tail.Status
		reached time.Duration // before now; 0: no event was read yet
		want    float64
	}{
		{tail.Status{Input: "file:/reading", State: tail.Reading}, 90 * time.Second, 90},
		{tail.Status{Input: "file:/behind", State: tail.Following, Lag: 5}, 1500 * time.Millisecond, 1.5},
		{tail.Status{Input: "file:/quiet", State: tail.Following}, time.Hour, 0},
		{tail.Status{Input: "file:/new", State: tail.Reading, Lag: 5}, 0, 0},
		{tail.Status{Input: "file:/future", State: tail.Reading, Lag: 5}, -time.Hour, 0},
	} {
		d.inputs = []tail.Input{standing(c.s)}
		if c.reached != 0 {
			d.markLocked(&tail.Batch{Input: c.s.Input, Mark: []byte("{}")}, now.Add(-c.reached))
		}
		if in := d.inputStatus(now, map[string]string{}); len(in) != 1 || in[0].LagSeconds != c.want || in[0].Lag != c.s.Lag || in[0].State != c.s.State {
			t.Errorf("%+v: %+v", c, in)
		}
	}
}
