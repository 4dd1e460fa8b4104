package main

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/gossip"
)

// TestClusterMemory: an agent that joins five nodes with 200,000 entries each stays below 500 MB. It says how many bytes
// an entry takes, and how long the join. Only with MXSHIELD_TEST_LONG=1.
func TestClusterMemory(t *testing.T) {
	const origins, each = 5, 200_000
	if os.Getenv("MXSHIELD_TEST_LONG") == "" {
		t.Skip("long: MXSHIELD_TEST_LONG=1 runs it")
	}
	dir := t.TempDir()
	// The others are full before it comes, and call it for ever.
	c := &crew{t: t, dir: t.TempDir(), hosts: []*crewAgent{{bind: "127.0.0.91:7946"}}}
	began := time.Now().Add(-2 * time.Hour)
	for i := range origins {
		o := c.other(fmt.Sprintf("mx%d", i+2), gossip.Wire{Min: 1, Max: 1})
		for k := range each {
			n := uint32(i*each + k)
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{101, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
			e := block.Entry{Prefix: p, Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: began.Add(72 * time.Hour), Hits: 12}
			if _, err := o.table.Apply(e, began.Add(time.Duration(k)*5*time.Millisecond)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, text := range map[string]string{
		"cluster.key": crewKey + "\n", "mail.log": "",
		"conf.yaml": fmt.Sprintf("logs: [{file: %[1]s/mail.log}]\ndry_run: true\nbig_senders: false\nstate: %[1]s/state.db\nsocket: %[1]s/sock\npins: %[1]s/pins\ncluster: {name: mx1, bind: \"127.0.0.91:7946\", key_file: %[1]s/cluster.key}\n", dir),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	a := &agentProcess{t: t, dir: dir, cmd: exec.Command(self, "-test.run=^TestAgentChild$", "-test.timeout=0")}
	a.cmd.Env = append(os.Environ(), "AGENT_TEST_RUN="+filepath.Join(dir, "conf.yaml"))
	a.cmd.Stdout, a.cmd.Stderr = &a.said, &a.said
	if err := a.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.end(syscall.SIGKILL) })
	a.awaitStatus("in the cluster", func(s *control.Status) bool { return s.Cluster != nil && s.Cluster.Addr != "" })
	empty := residentKB(t, a.cmd.Process.Pid)

	a.awaitStatus("one has called", func(s *control.Status) bool { return s.Cluster.Alive > 0 })
	joined := time.Now()
	end := time.Now().Add(5 * time.Minute)
	for {
		s, err := a.status()
		if err == nil && s.Blocks.Blocks == origins*each {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d blocks, %v\n%s", s.Blocks.Blocks, err, a.said.b)
		}
		time.Sleep(500 * time.Millisecond) // asking costs processor time too
	}
	t.Logf("it has all %s after the first call, with %s of processor time", time.Since(joined).Round(100*time.Millisecond), processorTime(t, a.cmd.Process.Pid))
	last := int64(-1) // until the state file has all
	for last != stateSize(t, dir) {
		last = stateSize(t, dir)
		time.Sleep(5 * time.Second)
	}
	full := residentKB(t, a.cmd.Process.Pid)
	var l control.List
	if err := control.NewClient(filepath.Join(dir, "sock"), time.Minute).Get(context.Background(), "/v1/list", url.Values{"limit": {"1"}}, &l); err != nil || l.Total != origins*each {
		t.Errorf("%d entries, %v", l.Total, err)
	}
	t.Logf("%d MB resident, of which %d before; %d bytes an entry; the state file has %d MB", full/1024, empty/1024, (full-empty)*1024/(origins*each), last>>20)
	if full > 500*1024 {
		t.Errorf("more than 500 MB")
	}
}

func stateSize(t *testing.T, dir string) int64 {
	t.Helper()
	st, err := os.Stat(filepath.Join(dir, "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// processorTime is what a process has taken.
func processorTime(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// residentKB is how much of a process is in memory, its mapped state file included.
func residentKB(t *testing.T, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
