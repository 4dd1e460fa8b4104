//go:build linux

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// noLog is a config for agents whose log does not matter.
const noLog = "logs: [{file: /nonexistent/mail.log}]\n"

// fails starts an agent that must end by itself, and checks how.
func (r *rig) fails(what string, code int, says ...string) {
	r.t.Helper()
	if err := os.RemoveAll(r.log); err != nil {
		r.t.Fatal(err)
	}
	r.launch()
	r.failed(what, code, says...)
}

func (r *rig) failed(what string, code int, says ...string) {
	r.t.Helper()
	got := r.wait()
	b, err := os.ReadFile(r.log)
	if err != nil {
		r.t.Fatal(err)
	}
	if got != code {
		r.t.Errorf("%s: exit code %d, want %d\n%s", what, got, code, b)
	}
	for _, s := range append(says, "error: ", "hint: ") {
		if !strings.Contains(string(b), s) {
			r.t.Errorf("%s: the error does not say %q:\n%s", what, s, b)
		}
	}
}

func TestBadConfig(t *testing.T) {
	r := bareRig(t, "")
	r.configure("interfaces: [\n")
	r.fails("broken YAML", 2, "conf.yaml:4")
	r.configure("wieghts: {}\n")
	r.fails("unknown key", 2, "conf.yaml:4", "wieghts")
	r.configure("dns: {own: [192.0.2.25]}\nattach: quickly\n")
	r.fails("two faults", 2, "conf.yaml:4: dns.own: there are no lists", "conf.yaml:5: attach")
	r.configure("interfaces: [nope0]\n")
	r.fails("no such interface", 1, "nope0", "eth0")
	r.agent = r.host.Command(filepath.Join(binaries, "mxshield-agent"), "--config", "/nonexistent.yaml", "check")
	out, err := r.agent.CombinedOutput()
	r.agent = nil
	if err == nil || !strings.Contains(string(out), "/nonexistent.yaml") {
		t.Errorf("a named config that is not there: %v %s", err, out)
	}
}

func TestNoPermission(t *testing.T) {
	r := bareRig(t, noLog)
	if err := os.Chmod(r.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(binaries, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(r.log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.agent = r.host.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		filepath.Join(binaries, "mxshield-agent"), "--config", filepath.Join(r.dir, "conf.yaml"))
	r.agent.Stderr = f
	if err := r.agent.Start(); err != nil {
		t.Fatal(err)
	}
	r.failed("no capabilities", 4, "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
}

func TestSecondAgent(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	first := r.agent
	r.launch()
	if got := r.wait(); got != 3 {
		t.Errorf("exit code %d of the second agent, want 3", got)
	}
	r.agent = first
	if s := r.status(); len(s.Interfaces) != 1 {
		t.Errorf("the first agent: %+v", s)
	}
}

// TestLogComesLater: a log that is missing at start is waited for, said so, and read from its start.
func TestLogComesLater(t *testing.T) {
	r := bareRig(t, "")
	path := filepath.Join(r.dir, "mail.log")
	r.configure("logs: [{file: " + path + "}]\n")
	r.start()
	if s := r.status(); len(s.Inputs) != 1 || s.Inputs[0].State != "waiting" || !strings.Contains(s.Inputs[0].Detail, path) {
		t.Errorf("%+v", s.Inputs)
	}
	source := netip.MustParseAddr("198.18.1.1")
	writeRejects(t, path, source, 10)
	r.awaitBlock(source)
	// Lines from long before make no fresh block.
	old := netip.MustParseAddr("198.18.1.2")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		fmt.Fprintln(f, reject(time.Now().Add(-3*time.Hour), old))
	}
	f.Close()
	last := netip.MustParseAddr("198.18.1.3")
	writeRejects(t, path, last, 10)
	r.awaitBlock(last)
	if w := r.why(old); w.Decision.Drop {
		t.Errorf("%s", w.Words)
	}
	if out, _ := r.ctl("list"); !strings.Contains(out, source.String()) {
		t.Error(out)
	}
}

func reject(at time.Time, a netip.Addr) string {
	return at.Format("2006-01-02T15:04:05.000000-07:00") + " mx1 postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[" + a.String() +
		"]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>"
}

func writeRejects(t *testing.T, path string, a netip.Addr, n int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range n {
		if _, err := fmt.Fprintln(f, reject(time.Now(), a)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSameInode: a log that is removed and made anew, with the same inode, is read from its start.
func TestSameInode(t *testing.T) {
	r := bareRig(t, "")
	path := filepath.Join(r.dir, "mail.log")
	r.configure("logs: [{file: " + path + "}]\n")
	first, second := netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.1.2")
	writeRejects(t, path, first, 10)
	ino := inode(t, path)
	r.start()
	r.awaitBlock(first)
	r.eventually("the position is stored", func() bool { return r.stop() == 0 })
	// Files that are freed and made in turn get the number back sooner or later, on most file systems at once.
	for i := 0; ; i++ {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		writeRejects(t, path, second, 30)
		if inode(t, path) == ino {
			break
		}
		if i == 100 {
			t.Skip("skipped: this file system does not give an inode number back")
		}
	}
	r.start()
	r.awaitBlock(second)
	if w := r.why(second); counted(w, "unknown_recipient") != 30 {
		t.Errorf("%d", counted(w, "unknown_recipient"))
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestDamagedState: the file is kept aside, the agent starts empty and says so loudly; what the kernel has drops on
// until the agent has read its log.
func TestDamagedState(t *testing.T) {
	r := bareRig(t, noLog)
	junk := strings.Repeat("no state file\n", 5000)
	if err := os.WriteFile(filepath.Join(r.dir, "state.db"), []byte(junk), 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	kept, err := filepath.Glob(filepath.Join(r.dir, "state.db.corrupt-*"))
	if err != nil || len(kept) != 1 {
		t.Fatalf("set aside: %v, %v", kept, err)
	}
	if b, err := os.ReadFile(kept[0]); err != nil || string(b) != junk {
		t.Errorf("the damaged file was not kept: %v", err)
	}
	if s := r.status(); len(s.Warnings) == 0 || !strings.Contains(strings.Join(s.Warnings, "\n"), kept[0]) {
		t.Errorf("status does not say it: %q", s.Warnings)
	}
	r.must("block", "198.18.1.1")
}

// TestEditedState: entries for own addresses and allowed ones, written into the state file by hand, are not enforced.
func TestEditedState(t *testing.T) {
	r := bareRig(t, noLog+"allow: [198.18.8.0/24]\n")
	r.start()
	r.must("block", "198.18.1.1")
	if code := r.stop(); code != 0 {
		t.Fatalf("exit code %d", code)
	}
	db, err := bolt.Open(filepath.Join(r.dir, "state.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("entries"))
		for i, p := range []string{lab.MX4.String() + "/32", lab.Router4.String() + "/32", "198.18.8.8/32", "127.0.0.1/32"} {
			e := block.Entry{
				Origin: "evil", Prefix: netip.MustParsePrefix(p), Kind: block.Block, Cause: block.Manual, Scope: block.ScopeAll,
				Since: time.Now(), Stamp: block.StampAt(time.Now()), Seq: uint64(i),
			}
			v, err := e.MarshalBinary()
			if err != nil {
				return err
			}
			if err := b.Put(binary.BigEndian.AppendUint64(nil, uint64(1000+i)), v); err != nil {
				return err
			}
		}
		// And a block of half the internet, which does not even decode.
		return b.Put(binary.BigEndian.AppendUint64(nil, 2000), []byte("\x01\x01\x0a\x03\x01\x04junk"))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	r.start()
	if l := ask[control.List](r, "list"); l.Total != 1 || l.Entries[0].Prefix.String() != "198.18.1.1/32" {
		t.Errorf("list %+v", l)
	}
	for _, a := range []string{lab.MX4.String(), lab.Router4.String(), "198.18.8.8", "127.0.0.1"} {
		if w := r.why(netip.MustParseAddr(a)); w.Decision.Drop || w.Decision.Never == nil {
			t.Errorf("%s", w.Words)
		}
	}
	if s := r.status(); !strings.Contains(strings.Join(s.Warnings, "\n"), "1 records of the state file were refused") {
		t.Errorf("warnings %q", s.Warnings)
	}
}

// TestForeignPin: an object of somebody else where ours should be is named, with the command that mends it.
func TestForeignPin(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	r.must("block", "198.18.1.1")
	r.kill()
	pins, err := filepath.Glob(filepath.Join(r.pins, "gen-*", "exact-v4"))
	if err != nil || len(pins) != 1 {
		t.Fatalf("pins %v, %v", pins, err)
	}
	pin := pins[0]
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(pin); err != nil {
		t.Fatal(err)
	}
	r.fails("foreign pin", 1, pin, "mxshieldctl off --purge")
	where := []string{"--pins", r.pins, "--state-dir", r.dir}
	r.must(append([]string{"off", "--purge"}, where...)...)
	r.must(append([]string{"on"}, where...)...)
	r.start()
	if w := r.why(netip.MustParseAddr("198.18.1.1")); !w.Decision.Drop {
		t.Errorf("after mending: %s", w.Words)
	}
}

// TestCountersAreExact sends a known number of packets from a blocked and an innocent source while the agent is killed
// and restarted: the counters by reason are exact, and so are the entry's drops within a hundredth.
func TestCountersAreExact(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	bad, good := netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.1.2")
	r.must("block", bad.String())
	before := r.status().Packets
	const n = 20_000
	done := make(chan error, 1)
	go func() { done <- sendSYNs(r.top.Net, n, bad, good) }()
	for range 3 {
		r.kill()
		r.start()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	var after map[string]uint64
	r.eventually("all packets are counted", func() bool {
		after = r.status().Packets
		return after["drop_exact"]-before["drop_exact"] >= n && after["pass_not_blocked"]-before["pass_not_blocked"] >= n
	})
	for _, reason := range []string{"drop_exact", "pass_not_blocked"} {
		if got := after[reason] - before[reason]; got != n {
			t.Errorf("%s grew by %d, want %d", reason, got, n)
		}
	}
	if w := r.why(bad); w.Drops < n*99/100 || w.Drops > n {
		t.Errorf("the entry has %d drops, want %d within a hundredth", w.Drops, n)
	}
}

// sendSYNs sends n SYNs to port 25 of the mail host from each source, through a raw socket, so that no retransmission
// of the kernel's blurs the number.
func sendSYNs(h *lab.Host, n int, from ...netip.Addr) error {
	return h.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: lab.MX4.As4()}
		p := make([]byte, 40)
		p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_TCP
		binary.BigEndian.PutUint16(p[2:], 40)
		copy(p[16:], lab.MX4.AsSlice())
		binary.BigEndian.PutUint16(p[22:], 25)
		p[32], p[33] = 5<<4, 0x02
		for i := range n {
			for _, a := range from {
				copy(p[12:], a.AsSlice())
				binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60000))
				for {
					err := unix.Sendto(fd, p, 0, to)
					if err == nil {
						break
					}
					if !errors.Is(err, syscall.ENOBUFS) && !errors.Is(err, syscall.EINTR) {
						return err
					}
				}
			}
		}
		return nil
	})
}

// TestDryRun: everything happens but the drop, and one restart goes live.
func TestDryRun(t *testing.T) {
	r := bareRig(t, "")
	path := filepath.Join(r.dir, "mail.log")
	conf := "logs: [{file: " + path + "}]\n"
	r.configure(conf + "dry_run: true\n")
	r.start()
	l, err := r.host.Listen(t.Context(), lab.MX4.String()+":25")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a := netip.MustParseAddr("198.18.1.1")
	writeRejects(t, path, a, 12)
	w := r.awaitBlock(a)
	if r.timesOut(a, mx) || !strings.Contains(strings.Join(w.Warnings, " "), "dry run") {
		t.Errorf("a dry run drops, or does not say it is one: %q", w.Warnings)
	}
	if s := r.status(); !s.DryRun || s.Blocks.Blocks != 1 || len(s.Interfaces) != 0 {
		t.Errorf("%+v", s)
	}
	if code := r.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	r.configure(conf)
	r.start()
	if !r.timesOut(a, mx) {
		t.Error("live, the block of the dry run is not enforced")
	}
	r.stop()
	r.configure(conf + "dry_run: true\n")
	r.start()
	if r.timesOut(a, mx) {
		t.Error("a dry run after a live one still drops")
	}
}

// TestDryRunBesideAnAgent: trying a config out does not take the program of the agent that runs off its interface.
func TestDryRunBesideAnAgent(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	r.must("block", "198.18.1.1")
	live := r.agent
	trial := filepath.Join(r.dir, "trial")
	if err := os.Mkdir(trial, 0o755); err != nil {
		t.Fatal(err)
	}
	conf := fmt.Sprintf("state: %s/state.db\nsocket: %s/sock\npins: %s\ndry_run: true\n%s", trial, trial, r.pins, noLog)
	if err := os.WriteFile(filepath.Join(trial, "conf.yaml"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(trial, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.agent = r.host.Command(filepath.Join(binaries, "mxshield-agent"), "--config", filepath.Join(trial, "conf.yaml"))
	r.agent.Stderr = f
	if err := r.agent.Start(); err != nil {
		t.Fatal(err)
	}
	if code := r.wait(); code != 3 {
		t.Errorf("exit code %d, want 3", code)
	}
	r.agent = live
	if !r.timesOut(netip.MustParseAddr("198.18.1.1"), mx) {
		t.Error("the live agent's block does not hold any more")
	}
}

// TestUnitCapabilities runs the agent with no more than the systemd unit gives it: it starts, takes over its own links
// at a restart, and obeys off and on.
func TestUnitCapabilities(t *testing.T) {
	unit, err := os.ReadFile("../mxshield-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	caps := "-all"
	for line := range strings.Lines(string(unit)) {
		if list, ok := strings.CutPrefix(line, "CapabilityBoundingSet="); ok {
			for _, c := range strings.Fields(list) {
				caps += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
			}
		}
		if strings.HasPrefix(line, "ProtectKernelTunables=yes") {
			t.Error("ProtectKernelTunables makes /sys/fs/bpf read-only")
		}
	}
	r := bareRig(t, noLog)
	r.wrap = []string{"setpriv", "--bounding-set", caps, "--inh-caps", "-all"}
	r.start()
	r.must("block", "198.18.1.1")
	a := netip.MustParseAddr("198.18.1.1")
	for round := range 2 {
		if !r.timesOut(a, mx) {
			t.Errorf("round %d: the block does not hold", round)
		}
		r.kill()
		r.start()
	}
	where := []string{"--pins", r.pins, "--state-dir", r.dir}
	r.must(append([]string{"off"}, where...)...)
	if r.timesOut(a, mx) {
		t.Error("off")
	}
	r.must(append([]string{"on"}, where...)...)
	if !r.timesOut(a, mx) {
		t.Error("on")
	}
}

// TestOffBesideAnAgent: an off that did not go through the agent is not undone by it.
func TestOffBesideAnAgent(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	r.must("block", "198.18.1.1")
	a := netip.MustParseAddr("198.18.1.1")
	where := []string{"--pins", r.pins, "--state-dir", r.dir}
	r.must(append([]string{"--socket", "/nonexistent/sock", "off"}, where...)...)
	r.eventually("the agent knows that it is off", func() bool { return r.status().Off != nil })
	if r.timesOut(a, mx) || len(r.status().Interfaces) != 0 {
		t.Error("the agent attached again")
	}
	r.must(append([]string{"--socket", "/nonexistent/sock", "on"}, where...)...)
	r.eventually("the agent knows that it is on", func() bool { return r.status().Off == nil })
	if !r.timesOut(a, mx) {
		t.Error("on")
	}
}

// TestRefusedVerdicts: a source whose verdict had no effect, because a person's short block stood or an allow, is
// judged again by its next offence once that is over.
func TestRefusedVerdicts(t *testing.T) {
	r := bareRig(t, "")
	path := filepath.Join(r.dir, "mail.log")
	conf := "logs: [{file: " + path + "}]\n"
	r.configure(conf + "allow: [198.18.8.0/24]\n")
	r.start()
	short, allowed := netip.MustParseAddr("198.18.1.1"), netip.MustParseAddr("198.18.8.8")
	r.must("block", short.String())
	writeRejects(t, path, short, 10)
	r.eventually("the offences are known", func() bool { return counted(r.why(short), "unknown_recipient") == 10 })
	r.must("block", short.String(), "--for", "1s") // a person's newer word replaces the older one
	r.eventually("the short block is over", func() bool { return !r.why(short).Decision.Drop })
	writeRejects(t, path, short, 1)
	r.awaitBlock(short)
	writeRejects(t, path, allowed, 30)
	r.eventually("the allowed one is known", func() bool { return counted(r.why(allowed), "unknown_recipient") == 30 })
	if code := r.stop(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	r.configure(conf)
	r.start()
	writeRejects(t, path, allowed, 1)
	r.awaitBlock(allowed)
}
