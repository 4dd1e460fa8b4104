package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReplayChild is the replay whose memory is measured: it reads standard input and then says its peak.
func TestReplayChild(t *testing.T) {
	conf := os.Getenv("AGENT_TEST_REPLAY")
	if conf == "" {
		t.Skip("run by TestReplayMemory")
	}
	code := run(context.Background(), []string{"mxshield-agent", "--config", conf, "replay", "-o", "json", "-"}, os.Stdout, io.Discard)
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	peak, _, _ = strings.Cut(peak, "kB")
	fmt.Printf("peak %s kB, exit %d\n", strings.TrimSpace(peak), code)
}

// stream writes about n bytes of a log with ever new sources: half of the sessions are of hosts never seen before, and
// there are hosts that come back, dictionary attacks (one in 256 sessions by somebody new), failed logins from as many
// /64s, long lines and messages under way. Each block that is reported takes about 400 bytes.
func stream(w io.Writer, n int64) (sources int, err error) {
	rnd := rand.New(rand.NewPCG(1, 2))
	out := bufio.NewWriterSize(w, 1<<16)
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	var stamp string
	line := make([]byte, 0, 4096)
	written := int64(0)
	put := func(format string, args ...any) {
		line = fmt.Appendf(append(append(line[:0], stamp...), " mx1 postfix/"...), format, args...)
		line = append(line, '\n')
		k, _ := out.Write(line) // Flush tells what went wrong
		written += int64(k)
	}
	junk := strings.Repeat("x", 100_000)
	for i := 0; written < n; i++ {
		if i%64 == 0 {
			at = at.Add(time.Second)
			stamp = at.Format("2006-01-02T15:04:05.000000-07:00")
		}
		x := uint32(i/2) * 2654435761 >> 5 // all over 101.0.0.0 to 108.255.255.255, none twice
		if i%2 == 1 && i%256 != 7 {
			x = uint32(rnd.IntN(1000)) * 77777
		} else {
			sources++
		}
		ip := fmt.Sprintf("%d.%d.%d.%d", 101+x>>24, x>>16&255, x>>8&255, x&255)
		switch i % 8 {
		case 0, 1, 2, 3:
			put("smtpd[7]: connect from unknown[%s]", ip)
			put("smtpd[7]: 4%09X: client=unknown[%s]", i, ip)
			put("qmgr[8]: 4%09X: from=<a@example.net>, size=1000, nrcpt=1 (queue active)", i)
			put("smtpd[7]: disconnect from unknown[%s] ehlo=1 mail=1 rcpt=1 data=1 quit=1 commands=5", ip)
		case 4, 5:
			for r := range 3 {
				put("smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <name%d@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<spam@example.com> to=<name%d@example.org> proto=ESMTP helo=<%s>", ip, r, r, junk[:200])
			}
		case 6:
			put("submission/smtpd[7]: warning: unknown[2001:db8:%x:%x::%x]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user%d@example.org", x>>16, x&0xffff, i&0xffff, i)
			put("smtpd[7]: 5%09X: client=unknown[%s]", i, ip) // and no message ever
		case 7:
			if i%4096 == 7 {
				put("smtpd[7]: %s", junk)
			}
			for range 12 { // odd, so of hosts that come back, but for one in 32
				put("smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 550 5.1.1 <n@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.com> to=<n@example.org> proto=ESMTP helo=<h>", ip)
			}
		}
	}
	return sources, out.Flush()
}

// TestReplayMemory: the peak memory of a replay does not grow with the log: at most 80 MB for 200 MB here, and for 10 GB
// with MXSHIELD_TEST_LONG=1.
func TestReplayMemory(t *testing.T) {
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		t.Skip("the race detector takes memory of its own")
	}
	size := int64(200 << 20)
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		size = 10 << 30
	}
	conf := filepath.Join(t.TempDir(), "conf.yaml")
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestReplayChild$", "-test.v", "-test.timeout=0")
	cmd.Env = append(os.Environ(), "AGENT_TEST_REPLAY="+conf)
	var said lastLines
	cmd.Stdout, cmd.Stderr = &said, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sources, werr := stream(in, size)
	in.Close()
	if err := cmd.Wait(); err != nil || werr != nil {
		t.Fatalf("%v, %v\n%s", err, werr, said.b)
	}
	_, rest, _ := strings.Cut(string(said.b), "\npeak ")
	var peak, code int
	if n, err := fmt.Sscanf(rest, "%d kB, exit %d", &peak, &code); n != 2 || code != 0 {
		t.Fatalf("%v: %s", err, said.b)
	}
	t.Logf("%d MB, %d sources: peak %d MB\n%s", size>>20, sources, peak>>10, said.b)
	if peak > 80<<10 {
		t.Errorf("peak memory %d kB", peak)
	}
}

// lastLines keeps the end of what is written to it.
type lastLines struct{ b []byte }

func (l *lastLines) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	if cut := len(l.b) - 1200; cut > 0 {
		l.b = append(l.b[:0], l.b[cut:]...)
	}
	return len(p), nil
}
