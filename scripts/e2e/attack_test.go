//go:build linux

package e2e

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// brief clients do not wait long for a reply that was dropped.
var brief = lab.Talk{Reply: 3 * time.Second}

// patient clients are for sources that nobody blocks, where each reply counts.
var patient = lab.Talk{Reply: patience}

// TestAttacksEndInBlocks: every kind of attack on smtpd ends in a block of its source and in connects that time out;
// an honest sender with a few typos does not; unblock lets the source in, and old evidence does not block it again.
func TestAttacksEndInBlocks(t *testing.T) {
	r := newRig(t, lab.Options{AuthOnMX: true}, "")
	r.start()
	ctx := t.Context()
	src := lab.Sources(lab.Attack4, 4)
	src6 := lab.Sources(lab.Attack6, 1)[0]

	done := make(chan lab.HonestResult, 1)
	go func() {
		done <- lab.Honest(ctx, r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 25, Interval: 20 * time.Millisecond})
	}()
	for _, a := range []struct {
		name   string
		from   netip.Addr
		to     netip.AddrPort
		cause  block.Cause
		scope  block.Scope
		attack func()
	}{
		{"unknown recipients", src[0], mx, block.Dictionary, block.ScopeMX, func() {
			lab.Dictionary(ctx, r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: brief, Recipients: 40})
		}},
		{"unknown recipients over IPv6", src6, mx6, block.Dictionary, block.ScopeMX, func() {
			lab.Dictionary(ctx, r.top.Net, src6, mx6, lab.DictionaryOptions{Talk: brief, Recipients: 40})
		}},
		{"relay probes", src[1], mx, block.RelayProbe, block.ScopeMX, func() {
			lab.RelayProbe(ctx, r.top.Net, src[1], mx, lab.RelayOptions{Talk: brief, Attempts: 10})
		}},
		{"logins", src[2], sub, block.AuthBrute, block.ScopeAll, func() {
			lab.SASLBrute(ctx, r.top.Net, src[2], sub, lab.SASLOptions{Talk: brief, Attempts: 12})
		}},
	} {
		a.attack()
		w := r.awaitBlock(a.from)
		if w.Decision.By == nil || w.Decision.By.Cause != a.cause || w.Decision.Scope != a.scope {
			t.Errorf("%s: %s", a.name, w.Words)
		}
		if !r.timesOut(a.from, a.to) {
			t.Errorf("%s: a connect is still answered", a.name)
		}
		if a.scope == block.ScopeMX && a.to == mx && r.timesOut(a.from, sub) {
			t.Errorf("%s: the submission port is closed too", a.name)
		}
		if w.Evidence == nil || len(w.Evidence.Samples) == 0 || w.Decision.By.Since.IsZero() || w.Decision.Until.IsZero() {
			t.Errorf("%s: why does not explain: %+v", a.name, w)
		}
	}
	if w := r.why(src[0]); w.Drops == 0 {
		t.Error("why counts no drops of a source whose connects time out")
	}

	h := <-done
	lab.Dictionary(ctx, r.top.Net, lab.Honest4, mx, lab.DictionaryOptions{Talk: patient, Recipients: 5})
	more := lab.Honest(ctx, r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 5})
	r.awaitLines()
	if w := r.why(lab.Honest4); w.Decision.Drop || h.Accepted != 25 || more.Accepted != 5 {
		t.Errorf("the honest sender: %d and %d messages delivered, %s", h.Accepted, more.Accepted, w.Words)
	}
	if w := r.why(lab.Honest4); counted(w, "unknown_recipient") != 5 {
		t.Errorf("what is known of the honest sender: %+v", w.Known)
	}

	// The table names them all.
	list := r.must("list")
	for _, s := range src[:3] {
		if !strings.Contains(list, s.String()) {
			t.Errorf("list lacks %s:\n%s", s, list)
		}
	}

	// Undo, and old evidence does not block again.
	out := r.must("unblock", src[0].String())
	r.eventually("it connects again", func() bool { return !r.timesOut(src[0], mx) })
	if !strings.Contains(out, "is unblocked") {
		t.Errorf("unblock says %q", out)
	}
	lab.Dictionary(ctx, r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: patient, Recipients: 1})
	r.awaitLines()
	if w := r.why(src[0]); w.Decision.Drop || w.Decision.Rule != block.RuleCleared {
		t.Errorf("after the unblock: %s", w.Words)
	}
	if !r.timesOut(src[1], mx) {
		t.Error("unblock of one source let another in")
	}
}

func TestPregreet(t *testing.T) {
	r := newRig(t, lab.Options{Postscreen: true}, "")
	r.start()
	bot := lab.Sources(lab.Attack4, 1)[0]
	lab.Pregreet(t.Context(), r.top.Net, bot, mx, lab.PregreetOptions{Talk: brief, Attempts: 5})
	w := r.awaitBlock(bot)
	if w.Decision.By.Cause != block.ProtocolAbuse {
		t.Errorf("%s", w.Words)
	}
	if !r.timesOut(bot, mx) {
		t.Error("a connect is still answered")
	}
	if h := lab.Honest(t.Context(), r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 2}); h.Accepted != 2 || r.why(lab.Honest4).Decision.Drop {
		t.Errorf("the honest sender: %+v", h)
	}
}

// TestKilledWhileAttacked kills the agent again and again in the middle of an attack. Sources with seven unknown
// recipients each stay below the threshold: in the end each must have exactly seven, so no line was lost or counted
// twice. Sources with many are blocked, go on being dropped while no agent runs, and are still known afterwards.
func TestKilledWhileAttacked(t *testing.T) {
	r := newRig(t, lab.Options{}, "")
	r.start()
	all := lab.Sources(lab.Attack4, 72)
	light, heavy := all[:60], all[60:]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	lights := make(chan []lab.Result, 1)
	go func() {
		lights <- lab.Swarm(ctx, light, 6, func(ctx context.Context, a netip.Addr) lab.Result {
			return lab.Dictionary(ctx, r.top.Net, a, mx, lab.DictionaryOptions{Talk: patient, Recipients: 7, PerSession: 2, Pause: 30 * time.Millisecond})
		})
	}()
	heavies := make(chan []lab.Result, 1)
	go func() {
		heavies <- lab.Swarm(ctx, heavy, len(heavy), func(ctx context.Context, a netip.Addr) lab.Result {
			return lab.Dictionary(ctx, r.top.Net, a, mx, lab.DictionaryOptions{Talk: brief, Recipients: 40, PerSession: 4, Pause: 200 * time.Millisecond})
		})
	}()
	for round := range 6 {
		// Kill at other points of the agent's rhythm each time.
		time.Sleep(time.Duration(150+round*67) * time.Millisecond)
		r.kill()
		r.start()
	}
	for _, x := range <-lights {
		if x.Rejected != 7 {
			t.Errorf("a light source saw %d refusals, want 7: %+v", x.Rejected, x)
		}
	}
	<-heavies
	blocked := map[netip.Addr]control.Why{}
	for _, a := range heavy {
		blocked[a] = r.awaitBlock(a)
	}
	r.awaitLines()
	for _, a := range light {
		if w := r.why(a); w.Decision.Drop || counted(w, "unknown_recipient") != 7 {
			t.Errorf("light source %s: %s %+v", a, w.Words, w.Known)
		}
	}
	lines := countLines(t, r.mta.LogPath(), "Recipient address rejected")
	seen := uint64(0)
	for _, a := range all {
		seen += uint64(counted(r.why(a), "unknown_recipient"))
	}
	if seen != uint64(lines) {
		t.Errorf("the log has %d refusals, the agent counted %d", lines, seen)
	}

	r.kill()
	for _, a := range heavy[:3] {
		if !r.timesOut(a, mx) {
			t.Errorf("%s is not dropped while the agent is dead", a)
		}
	}
	r.start()
	for a, before := range blocked {
		w := r.why(a)
		if !w.Decision.Drop || !w.Decision.Until.Equal(before.Decision.Until) || w.Decision.By.Stamp != before.Decision.By.Stamp || w.Drops < before.Drops {
			t.Errorf("%s after the restart: %s, before: %s", a, w.Words, before.Words)
		}
	}
}

func countLines(t *testing.T, path, text string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), text)
}

// TestRotation renames the log in the middle of an attack, twice.
func TestRotation(t *testing.T) {
	r := newRig(t, lab.Options{}, "")
	r.start()
	light := lab.Sources(lab.Attack4, 60)
	done := make(chan []lab.Result, 1)
	go func() {
		done <- lab.Swarm(t.Context(), light, 4, func(ctx context.Context, a netip.Addr) lab.Result {
			return lab.Dictionary(ctx, r.top.Net, a, mx, lab.DictionaryOptions{Talk: patient, Recipients: 7, PerSession: 2, Pause: 60 * time.Millisecond})
		})
	}()
	for range 2 {
		if err := r.mta.Rotate(); err != nil {
			t.Fatal(err)
		}
	}
	for _, x := range <-done {
		if x.Rejected != 7 {
			t.Errorf("a source saw %d refusals, want 7", x.Rejected)
		}
	}
	r.awaitLines()
	for _, a := range light {
		r.eventually(a.String()+" is known", func() bool { w := r.why(a); return counted(w, "unknown_recipient") >= 7 })
		if w := r.why(a); counted(w, "unknown_recipient") != 7 {
			t.Errorf("%s: %d", a, counted(w, "unknown_recipient"))
		}
	}
}

// TestLogrotate: the real logrotate in its usual forms, with a live Postfix and the agent up, killed or down. No line is lost
// or counted twice.
func TestLogrotate(t *testing.T) {
	r := newRig(t, lab.Options{}, "")
	p, ok := r.mta.(*lab.Postfix)
	if !ok {
		t.Skip("skipped: no Postfix")
	}
	root, err := lab.Root(t.Context(), lab.CacheDir(), lab.KindLogrotate, func(s string) { t.Log(s) })
	if err != nil {
		t.Skip("skipped: no logrotate: ", err)
	}
	rotate := func(directives string) {
		t.Helper()
		if err := lab.Logrotate(t.Context(), root, filepath.Dir(p.LogPath()), directives); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(directives, "copytruncate") {
			return
		}
		if _, err := p.Run("postfix", "reload"); err != nil { // the postrotate script
			t.Fatal(err)
		}
	}
	sources := lab.Sources(lab.Attack4, 160)
	attack := func(n int) (wait func()) {
		some := sources[:n]
		sources = sources[n:]
		done := make(chan []lab.Result, 1)
		go func() {
			done <- lab.Swarm(t.Context(), some, 4, func(ctx context.Context, a netip.Addr) lab.Result {
				return lab.Dictionary(ctx, r.top.Net, a, mx, lab.DictionaryOptions{Talk: patient, Recipients: 7, PerSession: 2, Pause: 20 * time.Millisecond})
			})
		}()
		return func() {
			t.Helper()
			for _, x := range <-done {
				if x.Rejected != 7 {
					t.Errorf("a source saw %d refusals, want 7", x.Rejected)
				}
			}
		}
	}
	all := slices.Clone(sources)
	r.start()

	wait := attack(30) // in the midst of it, twice
	rotate("create")
	rotate("create")
	wait()
	saved := func() {
		t.Helper()
		r.awaitLines()
		if code := r.stop(); code != 0 {
			t.Fatalf("exit %d", code)
		}
		r.start()
	}
	saved()           // a file that logrotate compresses before it was read is lost
	wait = attack(30) // the agent is killed in between
	rotate("compress\n\tdelaycompress")
	r.kill()
	rotate("dateext\n\tdateformat -%Y%m%d-%s")
	r.start()
	wait()
	saved()
	rotate("compress\n\tdelaycompress")
	attack(20)()
	// What is written between logrotate's copy and its truncate is in no file: the log is quiet meanwhile.
	r.awaitLines()
	rotate("copytruncate")
	attack(20)()
	r.awaitLines()
	r.kill()
	attack(20)() // unread, and only in the copy
	rotate("copytruncate")
	attack(20)()
	rotate("copytruncate")
	attack(20)()
	r.start()
	r.awaitLines()
	for _, a := range all {
		r.eventually(a.String()+" is known", func() bool { w := r.why(a); return counted(w, "unknown_recipient") >= 7 })
		if w := r.why(a); counted(w, "unknown_recipient") != 7 {
			t.Errorf("%s: %d", a, counted(w, "unknown_recipient"))
		}
	}
}

// TestInjection: whatever a client writes into HELO, sender, recipient or user, the address it names is never blamed.
func TestInjection(t *testing.T) {
	r := newRig(t, lab.Options{AuthOnMX: true}, "")
	r.start()
	ctx := t.Context()
	const victim = "198.51.100.9"
	texts := []string{
		"x from mail[" + victim + "]: 550 5.1.1 <x>: Recipient address rejected: User unknown in virtual mailbox table",
		"connect from x[" + victim + "]", "a]: 550 5.1.1 from x[" + victim + "]", "RCPT from x[" + victim + "]: 554 5.7.1 <y>: Relay access denied; from=<",
		"x[" + victim + "]: SASL LOGIN authentication failed: x", "PREGREET 9 after 0.1 from [" + victim + "]:25",
	}
	src := lab.Sources(lab.Attack4, 4*len(texts))
	for i, text := range texts {
		quoted := `<"` + text + `"@example.org>`
		lab.Dictionary(ctx, r.top.Net, src[4*i], mx, lab.DictionaryOptions{Talk: lab.Talk{Helo: text, Reply: brief.Reply}, Recipients: 12})
		lab.Dictionary(ctx, r.top.Net, src[4*i+1], mx, lab.DictionaryOptions{Talk: lab.Talk{From: quoted, Reply: brief.Reply}, Recipients: 12})
		lab.Dictionary(ctx, r.top.Net, src[4*i+2], mx, lab.DictionaryOptions{Talk: brief, Recipients: 12, Rcpt: []string{quoted}})
		lab.SASLBrute(ctx, r.top.Net, src[4*i+3], sub, lab.SASLOptions{Talk: brief, Attempts: 3, Users: []string{text, "a" + text, "b" + text}})
	}
	r.awaitLines()
	if n := countLines(t, r.mta.LogPath(), victim); n < 4*len(texts) {
		t.Errorf("the text came into the log only %d times", n)
	}
	if w := r.why(netip.MustParseAddr(victim)); w.Decision.Drop || w.Known != nil || len(w.Entries) > 0 {
		t.Errorf("the victim is blamed: %s", w.Words)
	}
	for i := range texts {
		for j := range 3 {
			a := src[4*i+j]
			if countLines(t, r.mta.LogPath(), "reject: RCPT from unknown["+a.String()+"]") == 0 {
				continue // Postfix refused the text as no address at all, and logs nothing then
			}
			if w := r.why(a); !w.Decision.Drop || counted(w, "unknown_recipient") < 10 {
				t.Errorf("text %d, place %d: the attacker: %s", i, j, w.Words)
			}
		}
		if w := r.why(src[4*i+3]); counted(w, "auth_failure") != 3 {
			t.Errorf("text %d: the guesser: %s", i, w.Words)
		}
	}
	if s := r.status(); s.Sources > len(src)+1 { // Postfix greets itself from loopback at start
		t.Errorf("%d sources have a score, only %d attacked", s.Sources, len(src))
	}
}

// TestNeverBlock: own address, gateway, an allowed CIDR and a host of mynetworks are blocked neither by the log nor by
// the ctl.
func TestNeverBlock(t *testing.T) {
	nets := netip.MustParsePrefix("198.18.7.0/24")
	r := newRig(t, lab.Options{MyNetworks: []netip.Prefix{nets}}, "allow: [198.18.8.0/24]\n")
	r.start()
	ctx := t.Context()
	for _, a := range []string{"198.18.7.7", "198.18.8.8"} {
		x := lab.Dictionary(ctx, r.top.Net, netip.MustParseAddr(a), mx, lab.DictionaryOptions{Talk: brief, Recipients: 30})
		if x.Rejected != 30 {
			t.Errorf("%s saw %d refusals of 30", a, x.Rejected)
		}
	}
	stranger := netip.MustParseAddr("198.18.9.9")
	lab.Dictionary(ctx, r.top.Net, stranger, mx, lab.DictionaryOptions{Talk: brief, Recipients: 30})
	r.awaitBlock(stranger)
	for _, c := range []struct{ prefix, says string }{
		{lab.MX4.String(), "own address"}, {lab.MX6.String(), "own address"}, {lab.Router4.String(), "gateway"},
		{"198.18.7.7", "mynetworks"}, {"198.18.7.0/24", "mynetworks"}, {"198.18.8.8", "allow in config line 4"}, {"127.0.0.1", "loopback"}, {"10.0.0.0/8", ""}, {"10.2.0.0/16", "private"},
	} {
		out, code := r.ctl("block", c.prefix)
		if code == 0 || !strings.Contains(out, c.says) || !strings.Contains(out, "hint:") && c.says != "" {
			t.Errorf("block %s: exit %d, %q", c.prefix, code, out)
		}
		if c.says != "" && code != 4 {
			t.Errorf("block %s: exit %d, want 4", c.prefix, code)
		}
	}
	for _, a := range []string{"198.18.7.7", "198.18.8.8"} {
		if w := r.why(netip.MustParseAddr(a)); w.Decision.Drop || r.timesOut(netip.MustParseAddr(a), mx) {
			t.Errorf("%s", w.Words)
		}
	}
	// A CIDR around them goes in; they stay open inside it.
	r.must("block", "198.18.0.0/16", "--for", "1h", "--reason", "test")
	for a, blocked := range map[string]bool{"198.18.7.7": false, "198.18.8.8": false, "198.18.10.10": true} {
		if got := r.timesOut(netip.MustParseAddr(a), mx); got != blocked {
			t.Errorf("%s inside a blocked /16: times out %v, want %v", a, got, blocked)
		}
	}
	// Unblock one inside it, then a CIDR over all.
	r.must("unblock", "198.18.10.10")
	if r.timesOut(netip.MustParseAddr("198.18.10.10"), mx) || !r.timesOut(netip.MustParseAddr("198.18.10.11"), mx) {
		t.Error("unblock of one address inside a blocked CIDR")
	}
	r.must("unblock", "198.18.0.0/16")
	for _, a := range []netip.Addr{stranger, netip.MustParseAddr("198.18.10.11")} {
		if r.timesOut(a, mx) {
			t.Errorf("%s is still dropped after the CIDR around it was unblocked", a)
		}
	}
}

// TestOffOn: off lets everybody in at once, with the agent, without it, and across its restart; on ends it.
func TestOffOn(t *testing.T) {
	r := newRig(t, lab.Options{}, "")
	r.start()
	a := lab.Sources(lab.Attack4, 1)[0]
	r.must("block", a.String())
	if !r.timesOut(a, mx) {
		t.Fatal("the block does not hold")
	}
	where := []string{"--pins", r.pins, "--state-dir", r.dir}
	check := func(what string, dropped bool) {
		t.Helper()
		if r.timesOut(a, mx) != dropped {
			t.Errorf("%s: dropped %v", what, !dropped)
		}
	}
	r.must(append([]string{"off", "--reason", "test"}, where...)...)
	check("off with the agent", false)
	if s := r.status(); s.Off == nil || s.Off.Reason != "test" || len(s.Interfaces) != 0 {
		t.Errorf("status while off: %+v", s.Off)
	}
	r.kill()
	r.start()
	check("a restarted agent while off", false)
	r.must(append([]string{"on"}, where...)...)
	check("on with the agent", true)
	r.kill()
	check("a killed agent", true)
	r.must(append([]string{"off"}, where...)...)
	check("off without an agent", false)
	r.must(append([]string{"on"}, where...)...)
	check("on without an agent", true)
	r.must(append([]string{"off"}, where...)...)
	r.start()
	check("a new agent while off", false)
	r.must(append([]string{"on"}, where...)...)
	check("on again", true)
	// An agent that hangs must not keep anybody locked out.
	r.freeze()
	out := r.must(append([]string{"off"}, where...)...)
	check("off while the agent hangs", false)
	if !strings.Contains(out, "no agent answered") || strings.Contains(out, "nothing of mxshield") {
		t.Errorf("off says %q", out)
	}
	if err := r.agent.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}
