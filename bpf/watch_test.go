package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// logBook collects log lines of several goroutines.
type logBook struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// loud returns the lines that ask for somebody's attention.
func (l *logBook) loud() (lines []string) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, "level=WARN") || strings.Contains(line, "level=ERROR") {
			lines = append(lines, line)
		}
	}
	return lines
}

func (l *logBook) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(l, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// inNS runs f on a thread in the namespace until the test ends.
func inNS(t *testing.T, ns netns.NsHandle, f func(ctx context.Context)) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			t.Error(err)
			return
		}
		f(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// follow attaches at every change, as the agent does, and returns the number of calls.
func follow(t *testing.T, ns netns.NsHandle, s *Shield, log *logBook) *atomic.Int64 {
	t.Helper()
	var calls atomic.Int64
	inNS(t, ns, func(ctx context.Context) {
		Watch(ctx, log.logger(), func() {
			calls.Add(1)
			if err := s.Attach(); err != nil {
				log.logger().Warn("attach", "err", err)
			}
		})
	})
	return &calls
}

func attachedTo(t *testing.T, s *Shield) (names []string) {
	t.Helper()
	all, err := s.Attachments()
	must(t, err)
	for _, a := range all {
		names = append(names, a.Interface)
	}
	slices.Sort(names)
	return names
}

func pinNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if strings.Contains(e.Name(), linkPrefix) {
			names = append(names, e.Name())
		}
	}
	return names
}

// An interface that comes is shielded; one that goes is forgotten without a warning; one that gets
// another name stays shielded all the time, and its pin follows.
func TestWatch(t *testing.T) {
	for _, mode := range []Mode{Auto, TCX} {
		t.Run(string(mode), func(t *testing.T) {
			if mode == TCX {
				needTCX(t)
			}
			w := newWire(t)
			must(t, netlink.LinkDel(w.dev))
			// Something else that is always there: nobody is told that there is nothing to shield.
			must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
			var log logBook
			s := openTest(t, Options{Interfaces: []string{"br0", "mx*"}, Attach: mode, Log: log.logger()})
			blockAttacker(t, s)
			must(t, s.Attach())
			calls := follow(t, w.host, s, &log)
			eventually(t, "it listens", func() bool { return calls.Load() > 0 })
			before := len(log.loud()) // the bridge has no native XDP

			for range 3 {
				w.plug(t)
				eventually(t, "the new interface is shielded", func() bool { return slices.Contains(attachedTo(t, s), hostDev) })
				if w.passes(t, attackerIP) {
					t.Error("a packet of the blocked source came through")
				}
				must(t, netlink.LinkDel(w.dev))
				eventually(t, "the interface that went is forgotten", func() bool { return len(pinNames(t, s.opts.Pins)) == 1 })
			}
			w.plug(t)
			eventually(t, "the new interface is shielded", func() bool { return slices.Contains(attachedTo(t, s), hostDev) })

			all, err := s.Attachments()
			must(t, err)
			was := all[slices.IndexFunc(all, func(a Attachment) bool { return a.Interface == hostDev })]
			for _, name := range []string{"wan0", "wan.1", hostDev, "uplink"} {
				must(t, netlink.LinkSetDown(w.dev)) // kernels before 6.2 want that
				must(t, netlink.LinkSetName(w.dev, name))
				must(t, netlink.LinkSetUp(w.dev))
				if w.passes(t, attackerIP) {
					t.Errorf("renamed to %s: a packet of the blocked source came through", name)
				}
				eventually(t, "the pin is renamed to "+name, func() bool {
					_, err := os.Lstat(filepath.Join(s.opts.Pins, linkPin(name)))
					return err == nil && len(pinNames(t, s.opts.Pins)) == 2
				})
				all, err := s.Attachments()
				must(t, err)
				i := slices.IndexFunc(all, func(a Attachment) bool { return a.Interface == name })
				if i < 0 || all[i].LinkID != was.LinkID {
					t.Errorf("renamed to %s: %+v, was %+v", name, all, was)
				}
			}
			// The old name on another interface is another interface.
			must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: hostDev}, PeerName: "mx-peer"}))
			eventually(t, "the one with the old name is shielded", func() bool { return fmt.Sprint(attachedTo(t, s)) == "[br0 mx-peer "+hostDev+" uplink]" })
			if w.passes(t, attackerIP) {
				t.Error("a packet of the blocked source came through")
			}
			if loud := log.loud()[before:]; len(loud) > 0 {
				t.Errorf("the log is loud: %s", loud)
			}
			// Attaching makes news itself on some devices: it must come to rest.
			eventually(t, "it is quiet", func() bool {
				n := calls.Load()
				time.Sleep(500 * time.Millisecond)
				return calls.Load() == n
			})
		})
	}
}

// Two interfaces change names with each other between two looks.
func TestSwappedNames(t *testing.T) {
	ownNS(t)
	for _, name := range []string{"a0", "b0"} {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer-" + name}))
	}
	s := openTest(t, Options{Interfaces: []string{"a0", "b0"}})
	must(t, s.Attach())
	links := func() map[string]uint32 {
		m := map[string]uint32{}
		all, err := s.Attachments()
		must(t, err)
		for _, a := range all {
			m[a.Interface] = a.LinkID
		}
		return m
	}
	was := links()
	a, b := byName(t, "a0"), byName(t, "b0")
	must(t, netlink.LinkSetName(a, "tmp"))
	must(t, netlink.LinkSetName(b, "a0"))
	must(t, netlink.LinkSetName(a, "b0"))
	must(t, s.Attach())
	if now := links(); len(now) != 2 || now["a0"] != was["b0"] || now["b0"] != was["a0"] {
		t.Errorf("%v, were %v", now, was)
	}
	if got := pinNames(t, s.opts.Pins); len(got) != 2 {
		t.Errorf("pins: %v", got)
	}
}

func defaultRoute(t *testing.T, dev string, metric int) *netlink.Route {
	t.Helper()
	_, all, _ := net.ParseCIDR("0.0.0.0/0")
	r := &netlink.Route{LinkIndex: byName(t, dev).Attrs().Index, Dst: all, Priority: metric, Scope: netlink.SCOPE_LINK}
	must(t, netlink.RouteAdd(r))
	return r
}

// A default route that goes for a moment does not open the shield; one that comes elsewhere brings another interface.
// What lost its route for good is let go by the next agent.
func TestDefaultRouteMoves(t *testing.T) {
	ownNS(t)
	host, err := netns.Get()
	must(t, err)
	defer host.Close()
	for _, name := range []string{"eth0", "eth1"} {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer-" + name}))
		must(t, netlink.LinkSetUp(byName(t, name)))
		must(t, netlink.LinkSetUp(byName(t, "peer-"+name)))
	}
	route := defaultRoute(t, "eth0", 1)
	var log logBook
	pins := testPins(t)
	s := openTest(t, Options{Pins: pins, Interfaces: []string{"auto"}, Log: log.logger()})
	must(t, s.Attach())
	first := one(t, s)
	must(t, netlink.RouteDel(route))
	wantHint(t, s.Attach(), "no default route")
	if at := one(t, s); at != first {
		t.Errorf("without a default route: %+v, was %+v", at, first)
	}
	s.Close()

	// Nor does an agent that starts in that moment know better.
	s = openTest(t, Options{Pins: pins, Interfaces: []string{"auto"}, Log: log.logger()})
	wantHint(t, s.Attach(), "no default route")
	if at := one(t, s); at.LinkID != first.LinkID {
		t.Errorf("started without a default route: %+v, was %+v", at, first)
	}
	defaultRoute(t, "eth0", 1)
	calls := follow(t, host, s, &log)
	eventually(t, "it listens", func() bool { return calls.Load() > 0 })
	defaultRoute(t, "eth1", 2)
	eventually(t, "the second is shielded", func() bool { return fmt.Sprint(attachedTo(t, s)) == "[eth0 eth1]" })
	must(t, netlink.RouteDel(route))
	n := calls.Load()
	eventually(t, "the change is seen", func() bool { return calls.Load() > n })
	if got := fmt.Sprint(attachedTo(t, s)); got != "[eth0 eth1]" {
		t.Errorf("after the first route went: %s", got)
	}
	if loud := log.loud(); len(loud) > 0 {
		t.Errorf("the log is loud: %s", loud)
	}
}

func TestNextAgentLetsGo(t *testing.T) {
	ownNS(t)
	for _, name := range []string{"eth0", "eth1"} {
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "peer-" + name}))
		must(t, netlink.LinkSetUp(byName(t, name)))
	}
	pins := testPins(t)
	s := openTest(t, Options{Pins: pins, Interfaces: []string{"eth0"}})
	must(t, s.Attach())
	s.Close()
	defaultRoute(t, "eth1", 1)
	s = openTest(t, Options{Pins: pins, Interfaces: []string{"auto"}})
	must(t, s.Attach())
	if at := one(t, s); at.Interface != "eth1" {
		t.Errorf("%+v", at)
	}
}

// What auto fell back to is neither tried nor told again with every look.
func TestSettled(t *testing.T) {
	ownNS(t)
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "plain0"}}))
	var log logBook
	s := openTest(t, Options{Interfaces: []string{"plain0"}, Log: log.logger()})
	for range 4 {
		must(t, s.Attach())
	}
	if loud := log.loud(); len(loud) != 1 {
		t.Errorf("%d warnings: %s", len(loud), loud)
	}
}

// The socket fails to open, overflows, and is lost: each time there is a new one, and a look at everything.
func TestWatcherResubscribes(t *testing.T) {
	ownNS(t)
	host, err := netns.Get()
	must(t, err)
	defer host.Close()
	var log logBook
	var calls, opens atomic.Int64
	var mu sync.Mutex
	var last *os.File
	gate := make(chan struct{}) // while it is open, changed waits
	close(gate)
	w := watcher{
		open: func() (*os.File, error) {
			if opens.Add(1) < 3 {
				return nil, errors.New("not today")
			}
			f, err := subscribe(4096)
			mu.Lock()
			defer mu.Unlock()
			last = f
			return f, err
		},
		changed: func() {
			calls.Add(1)
			mu.Lock()
			g := gate
			mu.Unlock()
			<-g
		},
		log: log.logger(), quiet: 20 * time.Millisecond, most: 100 * time.Millisecond, retry: time.Millisecond,
	}
	inNS(t, host, w.run)
	eventually(t, "it listens in the end", func() bool { return calls.Load() == 1 })
	if n := len(log.loud()); n != 1 {
		t.Errorf("%d warnings for one spell of bad luck:\n%s", n, log.String())
	}

	// More news than fit while changed is busy.
	g := make(chan struct{})
	mu.Lock()
	gate = g
	mu.Unlock()
	open := sync.OnceFunc(func() { close(g) })
	t.Cleanup(open) // a test that fails must not wait for itself
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a0"}, PeerName: "a1"}))
	eventually(t, "changed is busy", func() bool { return calls.Load() == 2 })
	for i := range 200 {
		must(t, netlink.LinkSetMTU(byName(t, "a0"), 1400+i%2))
	}
	n := opens.Load()
	open()
	eventually(t, "a new socket after the overflow", func() bool { return opens.Load() > n && calls.Load() > 2 })

	// The socket is lost.
	n = opens.Load()
	mu.Lock()
	last.Close()
	mu.Unlock()
	eventually(t, "a new socket after the loss", func() bool { return opens.Load() > n })
	c := calls.Load()
	eventually(t, "changes are heard of", func() bool {
		_ = netlink.LinkSetMTU(byName(t, "a0"), 1300+int(time.Now().UnixMilli()%100))
		return calls.Load() > c+1
	})
}

func TestConcerns(t *testing.T) {
	ownNS(t)
	f, err := subscribe(0)
	must(t, err)
	defer f.Close()
	next := func() bool {
		t.Helper()
		buf := make([]byte, 64<<10)
		must(t, f.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := f.Read(buf)
		must(t, err)
		return concerns(buf[:n])
	}
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	if !next() {
		t.Error("a new link is no news")
	}
	must(t, netlink.LinkSetUp(byName(t, "br0")))
	drain := func() {
		t.Helper()
		for buf := make([]byte, 64<<10); ; {
			must(t, f.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
			if _, err := f.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	drain()
	_, dst, _ := net.ParseCIDR("10.0.0.0/8")
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: byName(t, "br0").Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK}))
	if next() {
		t.Error("a route to somewhere is news")
	}
	route := defaultRoute(t, "br0", 1)
	if !next() {
		t.Error("a default route is no news")
	}
	must(t, netlink.RouteDel(route))
	if !next() {
		t.Error("a default route that goes is no news")
	}
	for _, b := range [][]byte{bytes.Repeat([]byte{0xff}, 40)} {
		if !concerns(b) {
			t.Errorf("%x: what cannot be read is no news", b)
		}
	}
	if concerns(nil) || unix.SizeofRtMsg != 12 {
		t.Error("nothing is news")
	}
}
