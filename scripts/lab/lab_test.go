//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	mx25   = netip.AddrPortFrom(MX4, 25)
	mx25v6 = netip.AddrPortFrom(MX6, 25)
	mx587  = netip.AddrPortFrom(MX4, 587)
)

func newLab(t *testing.T) *Lab {
	t.Helper()
	l, err := New()
	if errors.Is(err, ErrNotRoot) {
		t.Skip("not run: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

func newTopology(t *testing.T) (*Lab, *Topology) {
	t.Helper()
	l := newLab(t)
	top, err := l.Standard()
	if err != nil {
		t.Fatal(err)
	}
	return l, top
}

func postfixRoot(t *testing.T) string {
	t.Helper()
	dir, err := PostfixRoot(t.Context(), CacheDir(), func(s string) { t.Log(s) })
	if err != nil {
		t.Skip("not run: no Postfix here: ", err)
	}
	return dir
}

// eachMTA runs test against a real Postfix and against the fallback.
func eachMTA(t *testing.T, o Options, test func(*testing.T, *Topology, MTA)) {
	t.Helper()
	t.Run("postfix", func(t *testing.T) {
		l, top := newTopology(t)
		test(t, top, startPostfix(t, l, top, o))
	})
	t.Run("fallback", func(t *testing.T) {
		l, top := newTopology(t)
		f, err := StartFallback(t.Context(), top.MX[0], filepath.Join(l.Dir(), "mta"), o)
		if err != nil {
			t.Fatal(err)
		}
		test(t, top, f)
	})
}

func startPostfix(t *testing.T, l *Lab, top *Topology, o Options) *Postfix {
	t.Helper()
	root := postfixRoot(t)
	began := time.Now()
	p, err := StartPostfix(t.Context(), top.MX[0], root, filepath.Join(l.Dir(), "mta"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s started in %v", p.Name(), time.Since(began).Round(time.Millisecond))
	return p
}

// awaitLog waits until want lines (at least) of the log match, and returns them.
func awaitLog(t *testing.T, m MTA, want int, pattern string) []string {
	t.Helper()
	return awaitFile(t, m.LogPath(), want, pattern)
}

func awaitFile(t *testing.T, path string, want int, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(`(?m)^.*` + pattern + `.*$`)
	var text []byte
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		text, _ = os.ReadFile(path)
		if got := re.FindAllString(string(text), -1); len(got) >= want {
			return got
		}
	}
	t.Fatalf("%s has fewer than %d lines with %q:\n%s", path, want, pattern, tailOf(text, 4000))
	return nil
}

func TestHonestMailIsLogged(t *testing.T) {
	eachMTA(t, Options{}, func(t *testing.T, top *Topology, m MTA) {
		for _, c := range []struct {
			from netip.Addr
			to   netip.AddrPort
		}{{Honest4, mx25}, {Honest6, mx25v6}} {
			r := Honest(t.Context(), top.Net, c.from, c.to, HonestOptions{Messages: 3, Unknown: 1, To: []string{"user1@example.org", "user50@example.org"}})
			if r.Accepted != 3 || len(r.Latencies) != 3 || r.Quantile(1) <= 0 {
				t.Fatalf("got %+v", r)
			}
			from := regexp.QuoteMeta(c.from.String())
			id := ""
			for _, line := range awaitLog(t, m, 3, `postfix/smtpd\[\d+\]: [A-Za-z0-9]+: client=unknown\[`+from+`\]`) {
				id = regexp.MustCompile(`: ([A-Za-z0-9]+): client=`).FindStringSubmatch(line)[1]
			}
			awaitLog(t, m, 1, `postfix/qmgr\[\d+\]: `+id+`: from=<sender@example\.net>, size=\d+, nrcpt=2 \(queue active\)`)
			awaitLog(t, m, 3, `: reject: RCPT from unknown\[`+from+`\]: 550 5\.1\.1 <left\d\.0@example\.org>: Recipient address rejected: User unknown`)
		}
	})
}

func TestUnknownRecipientAndRelay(t *testing.T) {
	eachMTA(t, Options{}, func(t *testing.T, top *Topology, m MTA) {
		from := Sources(Attack4, 1)[0]
		r := Dictionary(t.Context(), top.Net, from, mx25, DictionaryOptions{Recipients: 7, PerSession: 3})
		if r.Sessions != 3 || r.Rejected != 7 || r.Accepted != 0 || r.FirstOffence.IsZero() || r.Blocked() {
			t.Fatalf("got %+v", r)
		}
		awaitLog(t, m, 7, `postfix/smtpd\[\d+\]: NOQUEUE: reject: RCPT from unknown\[198\.18\.0\.1\]: 550 5\.1\.1 <guess[0-9.]+@example\.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<sender@example\.net> to=<guess[0-9.]+@example\.org> proto=ESMTP helo=<client\.example\.net>`)
		awaitLog(t, m, 3, `postfix/smtpd\[\d+\]: disconnect from unknown\[198\.18\.0\.1\].* rcpt=0/\d`)

		r = RelayProbe(t.Context(), top.Net, from, mx25, RelayOptions{})
		if r.Rejected != 1 {
			t.Fatalf("got %+v", r)
		}
		awaitLog(t, m, 1, `NOQUEUE: reject: RCPT from unknown\[198\.18\.0\.1\]: 554 5\.7\.1 <victim@example\.com>: Relay access denied; from=`)
	})
}

func TestHostileTexts(t *testing.T) {
	l, top := newTopology(t)
	m := startPostfix(t, l, top, Options{})
	from := Sources(Attack6, 2)[1]
	r := Dictionary(t.Context(), top.Net, from, mx25v6, DictionaryOptions{
		Talk:       Talk{Helo: "connect from evil[203.0.113.10]", From: `<"a>: Relay access denied; x"@example.net>`},
		Recipients: 1,
		Rcpt:       []string{`<"x> from mx[192.0.2.1]: 550 5.1.1"@example.org>`},
	})
	if r.Rejected != 1 {
		t.Fatalf("got %+v", r)
	}
	line := awaitLog(t, m, 1, `NOQUEUE: reject: RCPT from unknown\[2001:db8:bad:1::1\]: `)[0]
	for _, want := range []string{"helo=<connect?from?evil[203.0.113.10]>", "x> from mx[192.0.2.1]: 550 5.1.1", "Relay access denied; x"} {
		if !strings.Contains(line, want) {
			t.Errorf("%q is not in %q", want, line)
		}
	}
}

func TestSASL(t *testing.T) {
	eachMTA(t, Options{AuthOnMX: true}, func(t *testing.T, top *Topology, m MTA) {
		from := Sources(Attack4, 1)[0]
		for _, c := range []struct {
			to                netip.AddrPort
			mechanism, daemon string
		}{{mx587, "LOGIN", "postfix/submission/smtpd"}, {mx587, "PLAIN", "postfix/submission/smtpd"}, {mx25, "LOGIN", "postfix/smtpd"}} {
			r := SASLBrute(t.Context(), top.Net, from, c.to, SASLOptions{Attempts: 5, PerSession: 2, Mechanism: c.mechanism})
			if r.Sessions != 3 || r.Rejected != 5 || r.Accepted != 0 {
				t.Fatalf("%+v: got %+v", c, r)
			}
			awaitLog(t, m, 5, c.daemon+`\[\d+\]: warning: unknown\[198\.18\.0\.1\]: SASL `+c.mechanism+` authentication failed`)
			awaitLog(t, m, 1, c.daemon+`\[\d+\]: disconnect from unknown\[198\.18\.0\.1\].* auth=0/2 `)

			r = SASLBrute(t.Context(), top.Net, from, c.to, SASLOptions{Attempts: 1, Users: []string{"user7@example.org"}, Password: "secret", Mechanism: c.mechanism})
			if r.Accepted != 1 || r.Rejected != 0 {
				t.Fatalf("%+v, the right password: got %+v", c, r)
			}
		}
		// Mail of somebody who logged in may go anywhere.
		r := Honest(t.Context(), top.Net, Honest4, mx587, HonestOptions{User: "user7@example.org", Password: "secret", To: []string{"friend@example.com"}})
		if r.Accepted != 1 {
			t.Fatalf("submission: got %+v", r)
		}
		awaitLog(t, m, 1, `postfix/submission/smtpd\[\d+\]: [A-Za-z0-9]+: client=unknown\[203\.0\.113\.10\], sasl_method=PLAIN, sasl_username=user7@example\.org`)
	})
}

func TestPostscreen(t *testing.T) {
	l, top := newTopology(t)
	m := startPostfix(t, l, top, Options{Postscreen: true})
	from := Sources(Attack4, 1)[0]
	r := Pregreet(t.Context(), top.Net, from, mx25, PregreetOptions{})
	if r.Accepted != 0 || r.Rejected != 1 {
		t.Fatalf("got %+v", r)
	}
	awaitLog(t, m, 1, `postfix/postscreen\[\d+\]: PREGREET 25 after [0-9.]+ from \[198\.18\.0\.1\]:\d+: EHLO client\.example\.net`)
	awaitLog(t, m, 1, `postfix/postscreen\[\d+\]: NOQUEUE: reject: RCPT from \[198\.18\.0\.1\]:\d+: 550 5\.5\.1 Protocol error`)

	h := Honest(t.Context(), top.Net, Honest4, mx25, HonestOptions{Messages: 2})
	if h.Accepted != 2 || h.Quantile(1) < 2*time.Second || h.Quantile(0) > time.Second {
		t.Fatalf("the first message should wait for the greeting, the second not: %+v", h)
	}
	awaitLog(t, m, 1, `postfix/postscreen\[\d+\]: PASS NEW \[203\.0\.113\.10\]:\d+`)
	awaitLog(t, m, 1, `postfix/qmgr\[\d+\]: .* \(queue active\)`)
}

func TestRotate(t *testing.T) {
	eachMTA(t, Options{}, func(t *testing.T, top *Topology, m MTA) {
		if r := Honest(t.Context(), top.Net, Honest4, mx25, HonestOptions{}); r.Accepted != 1 {
			t.Fatalf("got %+v", r)
		}
		awaitLog(t, m, 1, `queue active`)
		before, err := os.Stat(m.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Rotate(); err != nil {
			t.Fatal(err)
		}
		after, err := os.Stat(m.LogPath())
		if err != nil || os.SameFile(before, after) {
			t.Fatalf("the log is the old file still (%v)", err)
		}
		if r := Honest(t.Context(), top.Net, Honest6, mx25v6, HonestOptions{}); r.Accepted != 1 {
			t.Fatalf("after the rotation: got %+v", r)
		}
		awaitLog(t, m, 1, `client=unknown\[2001:db8:600d::10\]`)
		old, _ := filepath.Glob(m.LogPath() + ".*")
		if len(old) != 1 {
			t.Fatalf("rotated files: %q", old)
		}
		awaitFile(t, old[0], 1, `client=unknown\[203\.0\.113\.10\]`)
	})
}

func TestPostconf(t *testing.T) {
	o := Options{MyNetworks: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/28"), netip.MustParsePrefix("2001:db8:600d::/64")}}
	eachMTA(t, o, func(t *testing.T, _ *Topology, m MTA) {
		cmd := exec.Command("sh", "-c", "postconf -h maillog_file mynetworks && postconf mynetworks")
		cmd.Env = []string{"PATH=" + m.Bin() + ":" + os.Getenv("PATH")}
		out, err := cmd.CombinedOutput()
		nets := "127.0.0.0/8 [::1]/128 203.0.113.0/28 [2001:db8:600d::]/64\n"
		if want := m.LogPath() + "\n" + nets + "mynetworks = " + nets; err != nil || string(out) != want {
			t.Errorf("got %v\n%s want\n%s", err, out, want)
		}
	})
}

func TestDictionaryOverFiftySources(t *testing.T) {
	l, top := newTopology(t)
	m := startPostfix(t, l, top, Options{})
	for _, c := range []struct {
		sources []netip.Addr
		to      netip.AddrPort
	}{{Sources(Attack4, 50), mx25}, {Sources(Attack6, 50), mx25v6}} {
		all := Swarm(t.Context(), c.sources, 20, func(ctx context.Context, from netip.Addr) Result {
			return Dictionary(ctx, top.Net, from, c.to, DictionaryOptions{Recipients: 5, PerSession: 5})
		})
		if r := Sum(all); r.Sessions != 50 || r.Rejected != 250 || r.Blocked() || r.ConnectErrors != 0 {
			t.Fatalf("got %+v", r)
		}
		for _, a := range c.sources {
			awaitLog(t, m, 5, `NOQUEUE: reject: RCPT from unknown\[`+regexp.QuoteMeta(a.String())+`\]: 550 5\.1\.1 `)
		}
	}
}

// A blackhole route on the mail host is what a blocked source looks like.
func TestConnectTimesOut(t *testing.T) {
	l, top := newTopology(t)
	if _, err := StartFallback(t.Context(), top.MX[0], filepath.Join(l.Dir(), "mta"), Options{}); err != nil {
		t.Fatal(err)
	}
	from := Sources(Attack4, 2)
	hole := &net.IPNet{IP: from[0].AsSlice(), Mask: net.CIDRMask(32, 32)}
	if err := top.MX[0].Do(func() error { return netlink.RouteAdd(&netlink.Route{Dst: hole, Type: unix.RTN_BLACKHOLE}) }); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false} {
		if got := ConnectTimesOut(t.Context(), top.Net, from[i], mx25, 300*time.Millisecond); got != want {
			t.Errorf("%s: got %v", from[i], got)
		}
	}
	// Refused is an answer.
	if ConnectTimesOut(t.Context(), top.Net, from[1], netip.AddrPortFrom(MX4, 26), 300*time.Millisecond) {
		t.Error("a refused connection counts as timed out")
	}
	r := Dictionary(t.Context(), top.Net, from[0], mx25, DictionaryOptions{Talk: Talk{Connect: 200 * time.Millisecond}})
	if r.ConnectTimeouts != 1 || !r.Blocked() || r.FirstTimeout.IsZero() || r.Sessions != 0 {
		t.Errorf("got %+v", r)
	}
	// A cancelled context ends every generator, and says nothing of the server.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	r = Dictionary(ctx, top.Net, from[0], mx25, DictionaryOptions{Talk: Talk{Persist: true}, Recipients: 1000})
	if r.Blocked() || r.Rejected >= 1000 {
		t.Errorf("cancelled: got %+v", r)
	}
}

func TestCluster(t *testing.T) {
	l := newLab(t)
	top, err := l.Cluster(3)
	if err != nil {
		t.Fatal(err)
	}
	for i, mx := range top.MX {
		if _, err := StartFallback(t.Context(), mx, filepath.Join(l.Dir(), mx.Name()), Options{}); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ from, to netip.Addr }{{Honest4, MXAddr4(i)}, {Honest6, MXAddr6(i)}} {
			if r := Honest(t.Context(), top.Net, c.from, netip.AddrPortFrom(c.to, 25), HonestOptions{}); r.Accepted != 1 {
				t.Fatalf("%s to %s: got %+v", c.from, c.to, r)
			}
		}
	}
	// Mail hosts reach each other.
	if r := Honest(t.Context(), top.MX[0], MXAddr4(0), netip.AddrPortFrom(MXAddr4(2), 25), HonestOptions{}); r.Accepted != 1 {
		t.Fatalf("mx1 to mx3: got %+v", r)
	}
}

// What passes between two sides of a cut vanishes, and nothing else does. Knocks see it to the packet.
func TestCut(t *testing.T) {
	l := newLab(t)
	top, err := l.Cluster(3)
	if err != nil {
		t.Fatal(err)
	}
	// Nobody listens: a refusal is an answer.
	lost := func(from, to int, six bool) bool {
		a, b := MXAddr4(from), MXAddr4(to)
		if six {
			a, b = MXAddr6(from), MXAddr6(to)
		}
		return ConnectTimesOut(t.Context(), top.MX[from], a, netip.AddrPortFrom(b, 25), 300*time.Millisecond)
	}
	both := func(ok func(six bool) bool) bool { return ok(false) && ok(true) }
	whole := func() {
		t.Helper()
		end := time.Now().Add(30 * time.Second) // links and neighbours may take a moment
		for !both(func(six bool) bool { return !lost(0, 2, six) && !lost(2, 1, six) && !lost(0, 1, six) }) {
			if time.Now().After(end) {
				t.Fatal("packets are lost without a cut")
			}
		}
	}
	whole()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	knocks := make(chan []Knock, 1)
	go func() {
		all, err := KnockUntil(ctx, top.MX[0], MXAddr4(0), netip.AddrPortFrom(MXAddr4(2), 25), 5*time.Millisecond)
		if err != nil {
			t.Error(err)
		}
		knocks <- all
	}()
	time.Sleep(200 * time.Millisecond) // some knocks
	if err := top.Cut([]int{0, 1}, []int{2}); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	if !both(func(six bool) bool { return lost(0, 2, six) && lost(1, 2, six) && lost(2, 0, six) && !lost(0, 1, six) }) {
		t.Error("cut in the wrong place")
	}
	for i := range top.MX {
		if ConnectTimesOut(t.Context(), top.Net, Honest4, netip.AddrPortFrom(MXAddr4(i), 25), 300*time.Millisecond) {
			t.Errorf("mx%d is cut from everybody", i+1)
		}
	}
	mending := time.Now()
	if err := top.Mend([]int{0, 1}, []int{2}); err != nil {
		t.Fatal(err)
	}
	mended := time.Now()
	whole()
	time.Sleep(200 * time.Millisecond) // some knocks
	stop()
	all := <-knocks
	count := map[string]int{}
	for _, k := range all {
		answered := !k.Answered.IsZero()
		switch {
		case answered && k.Answered.Before(k.Began):
			t.Errorf("answered before it began: %+v", k)
		case answered && k.Answered.Before(cut):
			count["before"]++
		case k.Began.After(cut) && k.Began.Before(mending):
			count["cut"]++
			if answered {
				t.Errorf("answered %s after the cut", k.Began.Sub(cut))
			}
		case answered && k.Began.After(mended):
			count["after"]++
		}
	}
	if count["before"] == 0 || count["cut"] == 0 || count["after"] == 0 {
		t.Errorf("knocks: %v of %d", count, len(all))
	}
}

// The host's own mounts, bpf's file system among them, are the child's too.
func TestCommandKeepsMounts(t *testing.T) {
	_, top := newTopology(t)
	out, err := top.MX[0].Command("readlink", "/proc/self/ns/mnt", "/proc/self/ns/net").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	mnt, _ := os.Readlink("/proc/self/ns/mnt")
	netw, _ := os.Readlink("/proc/self/ns/net")
	if f := strings.Fields(string(out)); len(f) != 2 || f[0] != mnt || f[1] == netw {
		t.Fatalf("the child is in %q, we are in %s %s", f, mnt, netw)
	}
}

func TestWithoutOverlay(t *testing.T) {
	l, top := newTopology(t)
	m := startPostfix(t, l, top, Options{copyRoot: true})
	if r := Honest(t.Context(), top.Net, Honest4, mx25, HonestOptions{}); r.Accepted != 1 {
		t.Fatalf("got %+v", r)
	}
	awaitLog(t, m, 1, `queue active`)
}

// traces are what is left of the labs of process pid: namespaces, mounts,
// folders, and processes below pid or in the network namespaces spaces.
func traces(t *testing.T, pid int, spaces []unix.Stat_t) (out []string) {
	t.Helper()
	own := fmt.Sprintf("%s%d-", prefix, pid)
	for _, dir := range []string{netnsDir, os.TempDir()} {
		for _, name := range dirNames(dir) {
			if strings.HasPrefix(name, own) {
				out = append(out, "file "+filepath.Join(dir, name))
			}
		}
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, own) {
			out = append(out, "mount "+line)
		}
	}
	for _, name := range dirNames("/proc") {
		p, err := strconv.Atoi(name)
		if err != nil || p == os.Getpid() || !alive(p) {
			continue
		}
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(f) > 1 && f[1] == strconv.Itoa(pid) || inside(p, spaces) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p))
			out = append(out, fmt.Sprintf("process %d %q", p, cmdline))
		}
	}
	return out
}

func stats(hosts ...*Host) (out []unix.Stat_t) {
	for _, h := range hosts {
		var st unix.Stat_t
		if unix.Stat(h.Netns(), &st) == nil {
			out = append(out, st)
		}
	}
	return out
}

func TestCloseLeavesNothing(t *testing.T) {
	before := traces(t, os.Getpid(), nil)
	if len(before) != 0 {
		t.Skip("not run: there is something already: ", before)
	}
	l, top := newTopology(t)
	p := startPostfix(t, l, top, Options{Postscreen: true})
	spaces := stats(top.MX[0], top.Net)
	// Something that does not want to go, like an agent in the middle of its
	// shutdown, and somebody who is being served.
	deaf := top.MX[0].Command("sh", "-c", "trap '' TERM; echo deaf; sleep 1000; sleep 1000")
	pipe, err := deaf.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := deaf.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.Read(make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	go deaf.Wait()
	if conn, err := top.Net.Dial(t.Context(), Honest4, mx25); err != nil {
		t.Fatal(err)
	} else {
		defer conn.Close()
	}
	if got := traces(t, os.Getpid(), spaces); len(got) < 6 {
		t.Fatalf("the check does not see a running lab: %q", got)
	}

	began := time.Now()
	results := make(chan error, 3)
	for range 3 {
		go func() { results <- l.Close() }()
	}
	for range 3 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	t.Logf("closed in %v", time.Since(began).Round(time.Millisecond))
	if got := traces(t, os.Getpid(), spaces); len(got) != 0 {
		t.Errorf("left behind:\n%s", strings.Join(got, "\n"))
	}
	if err := p.Stop(); err != nil {
		t.Errorf("stop after close: %v", err)
	}
	if _, err := l.NewHost("late"); !errors.Is(err, ErrClosed) {
		t.Errorf("a host in a closed lab: %v", err)
	}
	if err := top.Net.AddLocal(netip.MustParsePrefix("198.51.100.0/24")); !errors.Is(err, ErrClosed) {
		t.Errorf("a route in a closed lab: %v", err)
	}
}

// TestMain lets the test binary be the lab that TestKilled kills.
func TestMain(m *testing.M) {
	if os.Getenv("MXSHIELD_LAB_VICTIM") == "" {
		os.Exit(m.Run())
	}
	l, err := New()
	check(err)
	top, err := l.Standard()
	check(err)
	root, err := PostfixRoot(context.Background(), CacheDir(), nil)
	check(err)
	_, err = StartPostfix(context.Background(), top.MX[0], root, filepath.Join(l.Dir(), "mta"), Options{})
	check(err)
	check(top.MX[0].Command("sleep", "1000").Start())
	fmt.Println("ready", top.MX[0].Netns(), top.Net.Netns())
	select {}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestKilled(t *testing.T) {
	newLab(t)
	postfixRoot(t)
	victim := exec.Command("/proc/self/exe")
	victim.Env = append(os.Environ(), "MXSHIELD_LAB_VICTIM=1")
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	var mx, world string
	_, err = fmt.Fscanf(out, "ready %s %s\n", &mx, &world)
	spaces := stats(&Host{path: mx}, &Host{path: world})
	_ = victim.Process.Signal(syscall.SIGKILL)
	_ = victim.Wait()
	if err != nil || len(spaces) != 2 {
		t.Fatalf("the victim did not get ready: %v", err)
	}
	if got := traces(t, victim.Process.Pid, spaces); len(got) < 4 {
		t.Fatalf("the check does not see what the dead left: %q", got)
	}
	if err := Sweep(); err != nil {
		t.Fatal(err)
	}
	if got := traces(t, victim.Process.Pid, spaces); len(got) != 0 {
		t.Errorf("left behind:\n%s", strings.Join(got, "\n"))
	}
}

// An interrupted download leaves no half root, and a dead one's rest is removed.
func TestInterruptedRoot(t *testing.T) {
	newLab(t)
	cache := t.TempDir()
	rel, err := hostRelease()
	if err != nil {
		t.Skip("not run: ", err)
	}
	for _, dir := range []string{"tmp-dead/root/usr", rel.key() + "without-lab.json"} {
		if err := os.MkdirAll(filepath.Join(cache, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if dir, err := PostfixRoot(ctx, cache, nil); err == nil {
		t.Fatalf("got %s", dir)
	}
	// Package lists stay: the next try reads what is missing.
	left := slices.DeleteFunc(dirNames(cache), func(name string) bool { return strings.HasPrefix(name, "apt-") })
	slices.Sort(left)
	want := []string{"lock", rel.key() + "without-lab.json"}
	if slices.Sort(want); !slices.Equal(left, want) { // which of them is first depends on the distribution's name
		t.Errorf("the cache holds %q, want %q", left, want)
	}

	// While somebody else is at it, a caller waits.
	unlock, err := lockFile(t.Context(), filepath.Join(cache, "lock"), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel = context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	said := ""
	if _, err := PostfixRoot(ctx, cache, func(s string) { said += s }); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(said, "waiting") {
		t.Errorf("got %v, said %q", err, said)
	}
}

func TestDeadOwner(t *testing.T) {
	for name, want := range map[string]bool{
		fmt.Sprintf("%s%d-1-mx", prefix, os.Getpid()): false,
		prefix + "999999999-1-mx":                     true,
		prefix + "999999999-1-":                       true,
		prefix + "999999999":                          false,
		prefix + "x-1-mx":                             false,
		"mx":                                          false,
		"other-" + prefix + "999999999-1-mx":          false,
	} {
		if got := deadOwner(name); got != want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

func TestSources(t *testing.T) {
	for _, c := range []struct {
		p       netip.Prefix
		n, want int
		last    string
	}{
		{Attack4, 256, 256, "198.18.1.0"},
		{Attack6, 257, 257, "2001:db8:bad:100::1"},
		{netip.MustParsePrefix("198.18.0.0/30"), 10, 3, "198.18.0.3"},
		{netip.MustParsePrefix("2001:db8:bad::/63"), 10, 2, "2001:db8:bad:1::1"},
	} {
		got := Sources(c.p, c.n)
		if len(got) != c.want || got[len(got)-1].String() != c.last {
			t.Errorf("%s, %d: got %d, the last %s", c.p, c.n, len(got), got[len(got)-1])
		}
	}
}
