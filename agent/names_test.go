package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/resolve"
	"github.com/mxshield/mxshield/agent/internal/senders"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/agent/internal/verdict"
)

// names is a DNS server on loopback. What it has nothing about does not exist; about silent addresses it says nothing.
type names struct {
	mu     sync.Mutex
	rr     map[string]string // "NAME TYPE" -> record data
	silent map[string]bool   // names
	asked  map[string]int
}

func (n *names) set(name, qtype, data string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rr[name+" "+qtype] = data
	delete(n.silent, name)
}

// hush makes the server say nothing about a name.
func (n *names) hush(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.silent[name] = true
}

func (n *names) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	name := strings.ToLower(q.Question[0].Name)
	n.mu.Lock()
	n.asked[name]++
	data, silent := n.rr[name+" "+dns.TypeToString[q.Question[0].Qtype]], n.silent[name]
	exists := false
	for k := range n.rr {
		exists = exists || strings.HasPrefix(k, name+" ")
	}
	n.mu.Unlock()
	if silent {
		return
	}
	m := new(dns.Msg).SetReply(q)
	if rr, err := dns.NewRR(fmt.Sprintf("%s 60 IN %s %s", name, dns.TypeToString[q.Question[0].Qtype], data)); data != "" && err == nil {
		m.Answer = []dns.RR{rr}
	} else if !exists {
		m.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(m)
}

func reverse(t testing.TB, a string) string {
	t.Helper()
	s, err := dns.ReverseAddr(a)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serveNames starts it and returns a resolver that asks it, whose clock can be set ahead.
func serveNames(t testing.TB) (*names, *resolve.Resolver, *atomic.Int64) {
	t.Helper()
	n := &names{rr: map[string]string{}, silent: map[string]bool{}, asked: map[string]int{}}
	up := make(chan struct{})
	srv := &dns.Server{Addr: "127.0.0.1:0", Net: "udp", Handler: n, NotifyStartedFunc: func() { close(up) }}
	done := make(chan error, 1)
	go func() { done <- srv.ListenAndServe() }()
	select {
	case <-up:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Shutdown(); <-done })
	ahead := new(atomic.Int64)
	r, err := resolve.New(resolve.Options{
		Servers: []netip.AddrPort{netip.MustParseAddrPort(srv.PacketConn.LocalAddr().String())},
		Now:     func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return n, r, ahead
}

// namedDaemon is a bareDaemon with allows by name and a state file.
func namedDaemon(t testing.TB, r *resolve.Resolver, rules ...string) *daemon {
	t.Helper()
	d := bareDaemon(t, nil)
	d.resolver = r
	for _, rule := range rules {
		s, err := senders.Parse(rule)
		if err != nil {
			t.Fatal(err)
		}
		d.cfg.Senders = append(d.cfg.Senders, s)
	}
	d.ranges = make(chan struct{}, 1)
	d.openSenders()
	d.openLists()
	s, _, err := store.Open(filepath.Join(t.TempDir(), "state.db"), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	d.store = s
	return d
}

// saved is what stands in the state file beside entries and scores.
func (d *daemon) saved(t testing.TB) map[string][]byte {
	t.Helper()
	m := map[string][]byte{}
	err := d.store.Load(store.State{
		Entry: func(block.Entry) {}, BadEntry: func(err error) { t.Error(err) }, Score: func(_, _ []byte) {}, Mark: func(string, []byte) {},
		Extra: func(name string, v []byte) { m[name] = slices.Clone(v) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// runNames starts what serve would start of it.
func (d *daemon) runNames(t testing.TB) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() { d.senders.Run(ctx) })
	all.Go(func() { d.askNames(ctx) })
	all.Go(func() { _ = d.lists.Run(ctx) })
	all.Go(func() {
		for {
			select {
			case <-d.ranges:
				d.refreshNever(ctx, false)
			case <-ctx.Done():
				return
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); all.Wait() })
	t.Cleanup(stop)
	return stop
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func (d *daemon) read(a string, n int) {
	for _, line := range slices.Repeat([]string{unknown(a)}, n) {
		d.readLine(line)
	}
}

// TestAllowByDomain: of four hosts that try 500 unknown recipients each, the one whose name is confirmed and lies under an allowed
// domain is not blocked, and why says so; one that only claims such a name is, and one without a name.
func TestAllowByDomain(t *testing.T) {
	n, r, _ := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	for a, name := range map[string]string{"198.18.0.1": "mta1.yahoo.test.", "198.18.0.2": "mta2.yahoo.test.", "198.18.0.4": "mail.notyahoo.test."} {
		n.set(reverse(t, a), "PTR", name)
		if a != "198.18.0.2" {
			n.set(name, "A", a)
		}
	}
	stop := d.runNames(t)
	for _, a := range []string{"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"} {
		d.read(a, 500)
	}
	for _, a := range []string{"198.18.0.2", "198.18.0.3", "198.18.0.4"} {
		eventually(t, a+" is blocked", func() bool { return drops(d, a) })
	}
	p := netip.MustParsePrefix("198.18.0.1/32")
	eventually(t, "the allowed one is known to the table", func() bool { return d.table.Decide(p, time.Now()).Rule == "sender_allow" })
	w, err := d.Why(p)
	if err != nil || w.Decision.Drop || !strings.Contains(w.Words, "would have been blocked (500 unknown recipients") || !strings.Contains(w.Words, "allowed by domain:yahoo.test") {
		t.Errorf("%v %+v", err, w.Words)
	}
	if len(w.History) != 1 || w.History[0].Action != "spare" {
		t.Errorf("%+v", w.History)
	}

	// It outlives a restart, without anybody being asked.
	stop()
	if err := d.commit(); err != nil {
		t.Fatal(err)
	}
	again := senders.New(senders.Options{Senders: d.cfg.Senders, Saved: d.saved(t)[sendersKey], Log: d.log})
	if rule, ok := again.Covers(p.Addr()); !ok || rule != "domain:yahoo.test" {
		t.Errorf("after a restart: %q", rule)
	}
}

// TestVerdictWaits: while the DNS is silent the log path goes on and the verdict waits, in the state file too; then the source is
// blocked, asked for again, and let in once its name is known.
func TestVerdictWaits(t *testing.T) {
	n, r, ahead := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	rev := reverse(t, "198.18.0.1")
	n.hush(rev)
	d.read("198.18.0.1", 100) // nobody asks yet, so it would hang here if it waited
	if drops(d, "198.18.0.1") || len(d.held) != 1 {
		t.Fatal("the verdict does not wait")
	}
	if err := d.commit(); err != nil {
		t.Fatal(err)
	}
	// The agent is killed; the next one goes on with it.
	next := namedDaemon(t, r, "domain:yahoo.test")
	next.pending = d.saved(t)
	next.resumeHeld()
	if len(next.held) != 1 || next.held[netip.MustParsePrefix("198.18.0.1/32")].Verdict.Evidence.Score < 100 {
		t.Fatalf("after a restart: %+v", next.held)
	}
	next.runNames(t)
	eventually(t, "it is blocked in the end", func() bool { return drops(next, "198.18.0.1") })
	eventually(t, "it is to be asked for again", func() bool { next.mu.Lock(); defer next.mu.Unlock(); return len(next.unsure) == 1 })

	n.set(rev, "PTR", "mta1.yahoo.test.")
	n.set("mta1.yahoo.test.", "A", "198.18.0.1")
	ahead.Store(int64(time.Minute)) // what the resolver keeps of the failure has ended
	for _, a := range next.unsureDue(time.Now().Add(unsureAfter[0])) {
		next.askAgain(t.Context(), a)
	}
	eventually(t, "it is let in", func() bool { return !drops(next, "198.18.0.1") })
	next.mu.Lock()
	defer next.mu.Unlock()
	if len(next.unsure) != 0 {
		t.Error("it is asked for for ever")
	}
}

// TestDeaf: while no server answers at all, verdicts do not wait for names.
func TestDeaf(t *testing.T) {
	n, r, _ := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	for _, name := range []string{"a.test.", "b.test.", "c.test."} {
		n.hush(name)
	}
	if r.Deaf() {
		t.Error("deaf before anything was asked")
	}
	for _, name := range []string{"a.test.", "b.test.", "c.test."} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if _, err := r.Lookup(ctx, name, dns.TypeA); err == nil {
			t.Error("an answer")
		}
		cancel()
	}
	if !r.Deaf() {
		t.Error("not deaf")
	}
	d.read("198.18.0.1", 20)
	if !drops(d, "198.18.0.1") || len(d.unsure) != 1 {
		t.Error("it waits")
	}
	if _, err := r.Lookup(t.Context(), "d.test.", dns.TypeA); err != nil || r.Deaf() {
		t.Errorf("deaf after an answer: %v", err)
	}
}

// TestManyVerdictsWait: a flood of verdicts neither piles up nor waits in a row.
func TestManyVerdictsWait(t *testing.T) {
	n, r, _ := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	var list []string
	for i := range 2 * maxHeld {
		a := fmt.Sprintf("198.%d.%d.1", 18+i/200, i%200)
		n.hush(reverse(t, a))
		list = append(list, a)
	}
	for _, a := range list {
		d.read(a, 20)
	}
	if len(d.held) != maxHeld || !drops(d, list[len(list)-1]) {
		t.Fatalf("%d wait", len(d.held))
	}
	stop := d.runNames(t)
	stop() // an agent that ends leaves none behind
	for _, a := range list {
		if !drops(d, a) {
			t.Fatalf("%s is not blocked", a)
		}
	}
	if len(d.held) != 0 {
		t.Errorf("%d wait still", len(d.held))
	}
}

// TestNamesWithoutLists: names that are asked for to spare a source never count against it.
func TestNamesWithoutLists(t *testing.T) {
	n, r, _ := serveNames(t)
	d := namedDaemon(t, r, "domain:yahoo.test")
	d.runNames(t)
	for range 30 {
		d.readLine("connect from unknown[198.18.0.9]")
	}
	eventually(t, "it is asked for", func() bool { s := d.lists.Status(); return s.Done == 1 })
	n.mu.Lock()
	asked := n.asked[reverse(t, "198.18.0.9")]
	n.mu.Unlock()
	if asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if acc, ok := d.scorer.Lookup(netip.MustParseAddr("198.18.0.9"), time.Now()); ok && acc.Evidence.Score > 0 {
		t.Errorf("%+v", acc)
	}
}

// FuzzHeld: whatever stands in the state file as verdicts that wait, what comes of it is an automatic block as any other, or none.
func FuzzHeld(f *testing.F) {
	v := verdict.Verdict{Prefix: netip.MustParsePrefix("198.18.0.1/32"), Source: netip.MustParsePrefix("198.18.0.1/32"), Cause: block.Dictionary, Scope: block.ScopeMX, Since: time.Now(), Until: time.Now().Add(72 * time.Hour)}
	b, err := json.Marshal([]held{{v, v.Prefix.Addr()}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	for _, was := range []string{`"198.18.0.1/32"`, `"198.18.0.1"`, `"mx"`, `"dictionary"`} {
		for _, is := range []string{`""`, `"0.0.0.0/0"`, `"127.0.0.0/8"`, `"::ffff:198.18.0.1"`, `"all"`, `"manual"`, `null`, `7`} {
			f.Add([]byte(strings.ReplaceAll(string(b), was, is)))
		}
	}
	f.Add([]byte("["))
	f.Add([]byte(`[{},{"verdict":{"Prefix":"::/0","Source":"::/0","Until":"9999-12-31T23:59:59Z"},"source":"::1"}]`))
	d := bareDaemon(f, nil)
	f.Fuzz(func(t *testing.T, b []byte) {
		d.table = block.New(block.Options{Origin: "test"})
		d.pending, d.batch = map[string][]byte{heldKey: b}, store.Batch{}
		d.resumeHeld()
		list, _ := d.table.List(block.Query{All: true}, time.Now())
		for _, e := range list {
			p := e.Prefix
			if e.Kind != block.Block || e.Cause == block.Manual || time.Until(e.Until) > 169*time.Hour || p.Bits() < map[bool]int{true: 24, false: 48}[p.Addr().Is4()] || p.Addr().IsLoopback() {
				t.Fatalf("%q makes %+v", b, e.Entry)
			}
		}
	})
}
