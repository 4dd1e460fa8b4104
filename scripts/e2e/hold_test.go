//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

const beforeConfig = `dns:
  resolvers: [127.0.0.1]
  lists: [{zone: bl.example.net, codes: {"127.0.0.9": 100, "127.0.0.4": 60}}]
  before_accept: true
`

// says is a list that can be changed, switched off, and made to think.
type says struct {
	mu    sync.Mutex
	what  map[netip.Addr]string
	dead  bool
	think chan struct{} // set: who is asked about a source of the lab answers when it is closed
	asked map[netip.Addr]bool
}

func (s *says) set(a netip.Addr, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.what[a] = code
}

func (s *says) code(_ string, a netip.Addr) string {
	s.mu.Lock()
	think := s.think
	if s.asked == nil {
		s.asked = map[netip.Addr]bool{}
	}
	s.asked[a] = true
	s.mu.Unlock()
	if think != nil && a.Unmap().As16()[12] != 127 {
		<-think
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return silent
	}
	return s.what[a]
}

// ponder makes the list think about each source until the function it returns is called.
func (s *says) ponder() (answer func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	think := make(chan struct{})
	s.think = think
	return sync.OnceFunc(func() {
		s.mu.Lock()
		s.think = nil
		s.mu.Unlock()
		close(think)
	})
}

func (s *says) wasAsked(list []netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !slices.ContainsFunc(list, func(a netip.Addr) bool { return !s.asked[a] })
}

// again connects and returns how many times a SYN had to be sent again. The mail server must greet.
func (r *rig) again(from netip.Addr, to netip.AddrPort) uint32 {
	r.t.Helper()
	n, err := r.greeted(r.t.Context(), from, to, patience)
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

var errMute = errors.New("it is not greeted")

func (r *rig) greeted(ctx context.Context, from netip.Addr, to netip.AddrPort, wait time.Duration) (again uint32, err error) {
	c, err := r.top.Net.Dial(ctx, from, to)
	if err != nil {
		return 0, fmt.Errorf("%s cannot connect: %w", from, err)
	}
	defer c.Close()
	raw, err := c.(*net.TCPConn).SyscallConn()
	var info *unix.TCPInfo
	if err == nil {
		err = raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	}
	if err != nil {
		return 0, err
	}
	b := make([]byte, 3)
	_ = c.SetDeadline(time.Now().Add(wait))
	if n, err := c.Read(b); err != nil || string(b[:n]) != "220" {
		return info.Total_retrans, fmt.Errorf("%s: %w: %q, %v", from, errMute, b[:n], err)
	}
	return info.Total_retrans, nil
}

// visit is a connection in the background.
type visit struct {
	from  netip.Addr
	done  chan struct{}
	again uint32
	err   error
}

// visit lets a source try for so long. It begins anew if it is connected and nobody speaks to it: in a flood of SYNs the mail host's
// kernel makes do with cookies, and a connection whose one ACK is lost then is there on one side only.
func (r *rig) visit(a netip.Addr, d time.Duration) *visit {
	v := &visit{from: a, done: make(chan struct{})}
	go func() {
		defer close(v.done)
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		for range 3 {
			var n uint32
			n, v.err = r.greeted(ctx, a, mx, patience/4)
			if v.again = max(v.again, n); !errors.Is(v.err, errMute) {
				return
			}
		}
	}()
	return v
}

// visits lets sources connect, all at once.
func (r *rig) visits(list ...netip.Addr) (all []*visit) {
	for _, a := range list {
		all = append(all, r.visit(a, patience))
	}
	return all
}

// comeIn waits for the visits and expects that all were let in, after so many SYNs more at most.
func (r *rig) comeIn(when string, most uint32, all []*visit) {
	r.t.Helper()
	for _, v := range all {
		<-v.done
		if v.err != nil || v.again > most {
			r.t.Errorf("%s: %s needed %d SYNs more, %v", when, v.from, v.again, v.err)
		}
	}
}

// refused says whether a source gets no answer to its first three SYNs.
func (r *rig) refused(from netip.Addr, to netip.AddrPort) bool {
	return lab.ConnectTimesOut(r.t.Context(), r.top.Net, from, to, 3500*time.Millisecond)
}

// connectLines is how often Postfix has logged a connection of a source to port 25.
func (r *rig) connectLines(a netip.Addr) (n int) {
	r.t.Helper()
	b, err := os.ReadFile(r.mta.LogPath())
	if err != nil {
		r.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " postfix/smtpd[") && strings.Contains(line, fmt.Sprintf("]: connect from unknown[%s]", a)) {
			n++
		}
	}
	return n
}

func (r *rig) holds(want bool) {
	r.t.Helper()
	r.eventually(fmt.Sprintf("holding is %v", want), func() bool {
		h := r.status().Hold
		return h != nil && h.IPv4 == want
	})
}

// TestBeforeAccept: a listed source never reaches Postfix; a clean one does, with its second SYN the first time and at once
// the second time. Known senders, allowed sources and the submission ports wait for nothing. A block made so is this
// host's alone, is not in the state file, and ends with the listing.
func TestBeforeAccept(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, beforeConfig)
	src := lab.Sources(lab.Attack4, 8)
	clean, listed, grey, allowed, fixed, soon := src[0], src[1], src[2], src[3], src[4], src[5]
	six := []netip.Addr{lab.Sources(lab.Attack6, 1)[0], lab.Sources(lab.Attack6, 1)[0]}
	s := &says{what: map[netip.Addr]string{lab.Sources(lab.Attack6, 2)[1]: "127.0.0.9", listed: "127.0.0.9", grey: "127.0.0.4", allowed: "127.0.0.9", fixed: "127.0.0.9", soon: "127.0.0.9"}}
	r.lists(s.code)

	// Mail of a known sender, before the option is on.
	r.configure(strings.Replace(beforeConfig, "before_accept: true", "before_accept: false", 1))
	r.start()
	if h := lab.Honest(t.Context(), r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 3}); h.Accepted != 3 {
		t.Fatalf("%+v", h)
	}
	r.awaitLines()
	s.set(lab.Honest4, "127.0.0.9")
	r.must("allow", "add", allowed.String())
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.configure(beforeConfig)
	r.start()
	r.holds(true)

	for i, want := range []uint32{1, 0, 0} {
		if n := r.again(clean, mx); n != want {
			t.Errorf("connection %d of a clean source needed %d SYNs more", i+1, n)
		}
	}
	if n := r.again(grey, mx); n != 1 {
		t.Errorf("one that is listed a little needed %d SYNs more", n)
	}
	for i, want := range []uint32{1, 0} { // the second one is another address of its /64
		if n := r.again(six[i], mx6); n != want {
			t.Errorf("connection %d of an IPv6 source needed %d SYNs more", i+1, n)
		}
	}
	if !r.refused(lab.Sources(lab.Attack6, 2)[1], mx6) {
		t.Error("a listed IPv6 source gets an answer")
	}
	for _, a := range []netip.Addr{lab.Honest4, allowed} {
		if n := r.again(a, mx); n != 0 {
			t.Errorf("%s needed %d SYNs more", a, n)
		}
	}
	if n := r.again(listed, sub); n != 0 {
		t.Errorf("a submission needed %d SYNs more", n)
	}

	if !r.refused(listed, mx) {
		t.Error("a listed source gets an answer")
	}
	w := r.why(listed)
	d := w.Decision
	if !d.Drop || d.By == nil || !d.By.Local || d.By.Cause != block.DNSBL || d.Scope != block.ScopeMX || !strings.Contains(w.Before, "bl.example.net") {
		t.Errorf("%+v", w)
	}
	if left := time.Until(d.Until); left > 62*time.Second {
		t.Errorf("the listing lives for 60 s, the block for %s", left)
	}
	if r.timesOut(listed, sub) {
		t.Error("its submission port is closed")
	}
	if out := r.must("why", listed.String()); !strings.Contains(out, "ends with the listing") || !strings.Contains(out, "asked about at") {
		t.Errorf("%s", out)
	}
	if w := r.why(grey); w.Decision.Drop || !strings.Contains(w.Before, "not enough") {
		t.Errorf("%+v", w)
	}
	h := r.status().Hold
	if !h.IPv6 || h.Listed != 2 || h.Clean < 2 || h.Unanswered != 0 || h.Known < 1 {
		t.Errorf("%+v", h)
	}
	if out := r.must("status"); !strings.Contains(out, "2 refused") {
		t.Errorf("%s", out)
	}

	// A person unblocks it: it comes in, at once, as it is not asked about again.
	if !r.refused(fixed, mx) {
		t.Error("a listed source gets an answer")
	}
	r.must("unblock", fixed.String())
	if n := r.again(fixed, mx); n != 0 {
		t.Errorf("an unblocked source needed %d SYNs more", n)
	}

	// Nothing of it outlives the agent: the next one lets the source in as soon as it has looked.
	if r.connectLines(listed) != 0 || r.connectLines(clean) != 3 {
		t.Errorf("connect lines: listed %d, clean %d", r.connectLines(listed), r.connectLines(clean))
	}
	s.set(listed, "")
	r.kill()
	r.start()
	r.eventually("the block is forgotten", func() bool { return !r.timesOut(listed, mx) })
	if w := r.why(listed); w.Decision.Drop || len(w.Entries) > 0 {
		t.Errorf("%+v", w)
	}
	for _, a := range []netip.Addr{clean, grey} {
		if n := r.again(a, mx); n != 0 {
			t.Errorf("after a restart %s needed %d SYNs more", a, n)
		}
	}

	// A list that is suspended takes back what it said.
	r.holds(true)
	if !r.refused(soon, mx) {
		t.Error("a listed source gets an answer")
	}
	s.set(soon, "127.255.255.254")
	s.set(src[6], "127.255.255.254")
	r.again(src[6], mx)
	r.holds(false)
	r.eventually("what a suspended list said is taken back", func() bool { return !r.why(soon).Decision.Drop })
	if n := r.again(soon, mx) + r.again(src[7], mx); n != 0 {
		t.Errorf("with nobody to ask %d SYNs more were needed", n)
	}
}

// TestBeforeAcceptFails: whatever breaks, whoever is honest comes in: DNS that is dead, an agent that was killed, or stopped
// and started, with questions open.
func TestBeforeAcceptFails(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, beforeConfig)
	src := lab.Sources(lab.Attack4, 40)
	next := func() (a netip.Addr) { a, src = src[0], src[1:]; return a }
	s := &says{what: map[netip.Addr]string{}}
	r.lists(s.code)
	r.start()
	r.holds(true)
	if n := r.again(next(), mx); n != 1 {
		t.Fatalf("the test shows nothing: %d SYNs more", n)
	}

	// Killed in the midst of questions: the kernel finds out by itself, in two seconds. Until then each has to wait for one.
	answer := s.ponder()
	defer func() { answer() }()
	held := []netip.Addr{next(), next(), next(), next()}
	s.set(held[3], "127.0.0.9") // nobody is there any more who would block it
	all := r.visits(held...)
	r.eventually("the list is asked", func() bool { return s.wasAsked(held) })
	r.kill()
	answer()
	r.comeIn("killed with questions open", 1, all)
	waited := 0
	for at := 0; at < 3; at++ {
		n := r.again(next(), mx)
		if n > 1 || waited > 3 {
			t.Fatalf("%d after the kill: %d SYNs more", waited, n)
		}
		if n == 1 {
			waited, at = waited+1, -1
		}
	}
	r.start()
	r.holds(true)
	came := func(a netip.Addr) { // it is blocked for it as if nothing had been held
		t.Helper()
		if by := r.awaitBlock(a).Decision.By; by == nil || by.Local {
			t.Errorf("%+v", by)
		}
	}
	came(held[3])

	// Stopped and started in the midst of questions: nobody is asked about, and waits, a second time.
	answer = s.ponder()
	held = []netip.Addr{next(), next(), next(), next()}
	s.set(held[3], "127.0.0.9")
	all = r.visits(held...)
	r.eventually("the list is asked", func() bool { return s.wasAsked(held) })
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.start()
	answer()
	r.comeIn("stopped with questions open", 1, all)
	r.holds(true)
	r.comeIn("after the restart", 0, r.visits(held[:3]...))
	came(held[3])

	// Dead DNS: the first waits, the agent notices, and the others do not.
	r.kill()
	r.start()
	r.holds(true)
	s.mu.Lock()
	s.dead = true
	s.mu.Unlock()
	if n := r.again(next(), mx); n > 1 {
		t.Errorf("with dead DNS %d SYNs more", n)
	}
	r.holds(false)
	for range 3 {
		if n := r.again(next(), mx); n > 1 {
			t.Errorf("with dead DNS %d SYNs more", n)
		}
	}
	if b := r.status().Blocks.Blocks; b != 2 {
		t.Errorf("%d are blocked:\n%s", b, r.must("list"))
	}
}

// TestBeforeAcceptForged: whoever forges a hundred thousand sources, listed and honest ones among them, delays nobody by
// more than a second, gets nobody blocked who is not listed, and nobody for longer than the listing lives; and of the lists'
// budget he gets his half at most, whatever restarts.
func TestBeforeAcceptForged(t *testing.T) {
	const daily = 200
	few := strings.Replace(beforeConfig, "100, ", fmt.Sprintf("100}, daily: %d, rate: 50}, {zone: other.example.net, codes: {", daily), 1)
	r := newRig(t, lab.Options{ProcessLimit: 200}, few)
	src := lab.Sources(lab.Attack4, 60)
	honest, fresh, bad := src[:20], src[20:30], src[30]
	s := &says{what: map[netip.Addr]string{bad: "127.0.0.9"}}
	isListed := func(a netip.Addr) bool { return forgedNet.Contains(a) && a.As4()[3]%4 == 0 }
	r.lists(func(zone string, a netip.Addr) string {
		if zone == "bl.example.net" && isListed(a) {
			return "127.0.0.9"
		}
		if zone == "bl.example.net" {
			return s.code(zone, a)
		}
		return ""
	})
	r.start()
	r.holds(true)
	done := make(chan error, 1)
	began := time.Now()
	go func() { done <- r.forge(100_000, honest...) }()
	for at := 0; at < len(honest); at += 4 {
		r.comeIn("in the flood", 1, r.visits(honest[at:at+4]...))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	flood := time.Since(began)
	r.comeIn("after the flood", 1, r.visits(fresh...))
	r.comeIn("after the flood, again", 0, r.visits(honest...))
	for _, a := range slices.Concat(honest, fresh) {
		if w := r.why(a); w.Decision.Drop {
			t.Errorf("%s", w.Words)
		}
	}

	st := r.status()
	h := st.Hold
	// The budget is 50 a second, and as many at once.
	if most := 50*(flood.Seconds()+2) + 100; h.Held < 50 || float64(h.Held) > most || st.Packets["pass_not_blocked"] < 80_000 {
		t.Errorf("of 100,000 forged SYNs in %s: %+v, %v", flood, h, st.Packets)
	}
	if h.Listed == 0 || h.Listed > daily/2 {
		t.Errorf("%d forged sources were found listed: %+v", h.Listed, h)
	}
	blocks := ask[control.List](r, "list").Entries
	if uint64(len(blocks)) > h.Listed {
		t.Errorf("%d are blocked, %d were found listed", len(blocks), h.Listed)
	}
	for _, e := range blocks {
		if !isListed(e.Prefix.Addr()) || !e.Local || e.Cause != block.DNSBL || time.Until(e.Until) > 62*time.Second {
			t.Errorf("blocked: %+v", e)
		}
	}
	// What is left belongs to those who connect, before and after a restart.
	r.eventually("the forger's share is spent", func() bool {
		i := 0
		for ; i < 60 && r.status().Hold.IPv4; i++ {
			if err := r.forge(50); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		return strings.Contains(r.status().Hold.Why, "no queries left")
	})
	left := r.status().DNS.Lists[0].Left
	if left < daily/2-20 { // those who connected, and tests
		t.Errorf("%d of %d queries are left", left, daily)
	}
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	r.start()
	r.eventually("the lists are tested", func() bool { return r.status().DNS.Lists[0].IPv4 == "ok" })
	if h := r.status().Hold; h.IPv4 {
		t.Errorf("after a restart the forger has a share again: %+v", h)
	}
	r.comeIn("with the share spent", 0, r.visits(bad))
	if by := r.awaitBlock(bad).Decision.By; by == nil || by.Local {
		t.Errorf("%+v", by)
	}
	t.Logf("flood %s, %+v, %d left", flood, h, left)
}

// TestBeforeAcceptGrows: the kernel's tables grow, and get a new program, while sources wait: they come in or not as the
// lists say. And a SIGHUP changes how many may wait.
func TestBeforeAcceptGrows(t *testing.T) {
	config := strings.Replace(beforeConfig, "before_accept: true", "before_accept: false", 1) + "traps: [honeypot@example.org]\n"
	r := newRig(t, lab.Options{ProcessLimit: 200}, config)
	src := lab.Sources(lab.Attack4, 400)
	s := &says{what: map[netip.Addr]string{}}
	for i, a := range src {
		if i%2 == 1 {
			s.what[a] = "127.0.0.9"
		}
	}
	r.lists(s.code)
	r.start()
	const full = 1 << 16 // entries of the first table
	r.trapped(0, full-2000)
	r.eventually("all are blocked", func() bool { return r.status().Blocks.Blocks == full-2000 })
	if code := r.stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	config = strings.Replace(config, "before_accept: false", "before_accept: true", 1)
	r.configure(strings.Replace(config, "60}}]", "60}, rate: 20}]", 1))
	r.start()
	r.holds(true)
	if n := r.status().Hold.Budget; n != 20 {
		t.Errorf("%d a second may be held", n)
	}
	r.configure(strings.Replace(config, "60}}]", "60}, rate: 10000}]", 1))
	if err := r.agent.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	at := 0
	r.eventually("the new budget holds", func() bool { return r.status().Hold.Budget == 200 })
	r.eventually("the changed list is tested, and sources are held", func() bool { at += 2; return r.again(src[at-2], mx) == 1 })

	before := r.generation()
	var all []*visit
	come := func() {
		all = append(all, r.visit(src[at], patience), r.visit(src[at+1], 3500*time.Millisecond))
		at += 2
		time.Sleep(20 * time.Millisecond) // fewer than the budget, so that all are held
	}
	for range 20 {
		come()
	}
	r.trapped(full-2000, 4000)
	for end := time.Now().Add(patience); r.generation() == before && at < len(src)-40; come() {
		if time.Now().After(end) {
			break
		}
	}
	if r.generation() == before {
		t.Fatalf("the tables have not grown: %+v", r.status().Blocks)
	}
	for range 20 {
		come()
	}
	refused, waited := 0, 0
	for i, v := range all {
		<-v.done
		var w control.Why
		if err := r.client().Get(t.Context(), "/v1/why", url.Values{"prefix": {v.from.String()}}, &w); err != nil {
			t.Fatal(err)
		}
		switch {
		case i%2 == 0:
			if v.err != nil || v.again > 1 || w.Decision.Drop {
				t.Errorf("a clean source needed %d SYNs more, %v; %s", v.again, v.err, w.Before)
			}
			waited += int(v.again)
		case v.err != nil:
			refused++
			if !w.Decision.Drop {
				t.Errorf("refused: %v, but %s; %s", v.err, w.Words, w.Before)
			}
		case w.Before != "" && !strings.Contains(w.Before, "no answer in time"): // a busy machine may be late
			t.Errorf("a listed source came in: %s; %s", w.Words, w.Before)
		}
	}
	if refused == 0 || waited == 0 {
		t.Errorf("the test shows nothing: %d waited, %d were refused", waited, refused)
	}
	t.Logf("%d connections, %d waited, %d refused, generation %s -> %s", len(all), waited, refused, before, r.generation())
}

// generation names the tables in use.
func (r *rig) generation() string {
	list, err := filepath.Glob(filepath.Join(r.pins, "gen-*"))
	if err != nil || len(list) == 0 {
		r.t.Fatalf("%v %v", list, err)
	}
	return filepath.Base(list[len(list)-1])
}

// trapped writes lines of n sources that hit a trap into the mail log; none is another one's neighbour.
func (r *rig) trapped(from, n int) {
	r.t.Helper()
	f, err := os.OpenFile(r.mta.LogPath(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	stamp := time.Now().Format(time.Stamp)
	for i := from; i < from+n; i++ {
		fmt.Fprintf(w, "%s mx postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%d.%d.%d.7]: 550 5.1.1 <honeypot@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<a@example.net> to=<honeypot@example.org> proto=ESMTP helo=<x>\n",
			stamp, 11+i>>16, i>>8&255, i&255)
	}
	if err := w.Flush(); err != nil {
		r.t.Fatal(err)
	}
}

// forgedNet is where forged sources are, and forgedAt how many there were.
var (
	forgedNet = netip.MustParsePrefix("198.19.0.0/16")
	forgedAt  atomic.Uint32
)

// forge sends SYNs to the mail port from n sources that are not there, and in between from some that are.
func (r *rig) forge(n int, real ...netip.Addr) error {
	return r.top.Net.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := &unix.SockaddrInet4{Addr: mx.Addr().As4()}
		p := make([]byte, 40)
		p[0], p[8], p[9], p[32], p[33] = 0x45, 64, unix.IPPROTO_TCP, 0x50, 2
		binary.BigEndian.PutUint16(p[2:], 40)
		copy(p[16:], to.Addr[:])
		binary.BigEndian.PutUint16(p[22:], mx.Port())
		binary.BigEndian.PutUint16(p[34:], 64240)
		for i := range n {
			// Spread, so that one flood after the other does not have the same sources.
			binary.BigEndian.PutUint32(p[12:], 198<<24|19<<16|uint32(forgedAt.Add(1)*40503)&0xffff)
			if k := i / 2; k < len(real) && i%2 == 0 {
				copy(p[12:], real[k].AsSlice()) // as long as there is a budget
			}
			binary.BigEndian.PutUint16(p[20:], uint16(1024+i%60000))
			binary.BigEndian.PutUint32(p[24:], uint32(i))
			// The checksum: a pseudo header, and the segment.
			sum := uint32(unix.IPPROTO_TCP + 20)
			p[36], p[37] = 0, 0
			for j := 12; j < 40; j += 2 {
				sum += uint32(binary.BigEndian.Uint16(p[j:]))
			}
			sum = sum>>16 + sum&0xffff
			sum += sum >> 16
			binary.BigEndian.PutUint16(p[36:], ^uint16(sum))
			for {
				if err = unix.Sendto(fd, p, 0, to); !errors.Is(err, unix.ENOBUFS) {
					break
				}
				time.Sleep(time.Millisecond)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
