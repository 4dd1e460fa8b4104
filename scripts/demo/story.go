//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// The story's clock.
const (
	timeLimit   = 85 * time.Second // for all of it, once there is a mail server
	quietMail   = 50               // messages of the honest sender before the attack
	mailEvery   = 50 * time.Millisecond
	attackLimit = 40 * time.Second // by then every attacker must be blocked
	afterwards  = 5 * time.Second  // attackers go on knocking, the honest sender goes on delivering
	drained     = 2 * time.Second  // after the last block: connections that waited for a free smtpd are through
	typos       = 5                // unknown recipients of the honest sender, during the attack
	noAnswer    = time.Second      // a connect without an answer for so long is a dropped one
	opensWithin = time.Second      // after an unblock, everywhere
	newcomers   = 10               // further attackers, one after another, whose blocks are timed at all hosts
	knockEvery  = 2 * time.Millisecond
	tellsWithin = time.Second // from a block on one host to dropped packets on all
)

type options struct {
	attackers int
	mta       string
	bin       string // folder with mxshield-agent and mxshieldctl
}

// hintError is an error for people, with what to do about it.
type hintError struct {
	error
	hint string
}

var (
	errFalse       = errors.New("not every fact holds")
	errInterrupted = errors.New("interrupted; what the demo had made is removed")
)

// run is the whole program but for the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	err = show(ctx, o, newScreen(stdout, cancel))
	if err == nil {
		return 0
	}
	fmt.Fprintln(stderr, "error:", err)
	var h hintError
	if errors.As(err, &h) {
		fmt.Fprintln(stderr, "hint:", h.hint)
	}
	if errors.Is(err, errInterrupted) {
		return 130
	}
	return 1
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.IntVar(&o.attackers, "attackers", 200, "how many attackers, 3 to 1000; every 20th comes by IPv6")
	f.StringVar(&o.mta, "mta", "auto", "auto, postfix (or fail), or builtin (the lab's SMTP server)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("%q is not understood", f.Arg(0))
	case o.attackers < 3 || o.attackers > 1000:
		err = fmt.Errorf("-attackers %d is out of range: 3 to 1000", o.attackers)
	case o.mta != "auto" && o.mta != "postfix" && o.mta != "builtin":
		err = fmt.Errorf("-mta %q is unknown: auto, postfix or builtin", o.mta)
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\nhint: demo -help\n", err)
		return o, err
	}
	self, err := os.Executable()
	o.bin = filepath.Dir(self)
	return o, err
}

// show gives the demo: stage, story, clean-up, and only then the facts, for the clean-up is one of them.
func show(ctx context.Context, o options, out *screen) error {
	began := time.Now()
	if os.Geteuid() != 0 {
		return hintError{errors.New("the demo needs root: it makes network namespaces and loads BPF programs, all private"), "sudo make demo"}
	}
	for _, name := range []string{"mxshield-agent", "mxshieldctl"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return hintError{fmt.Errorf("the demo's program is missing: %w", err), "sudo make demo builds it"}
		}
	}
	st, err := newStage(o.bin)
	if err != nil {
		return err
	}
	defer st.close() // whatever happens below, a panic included
	var facts facts
	err = play(ctx, o, st, out, &facts)
	if ctx.Err() == nil && (err != nil || !facts.hold()) {
		for _, n := range st.nodes {
			if words := n.lastWords(15); words != "" {
				out.print("\nThe end of the log of %s's agent, which goes with the demo's folder:\n%s\n", n.Name(), words)
			}
		}
	}
	out.endLive()
	closed := st.close()
	switch {
	case ctx.Err() != nil && closed == nil:
		return errInterrupted
	case err != nil:
		return errors.Join(err, closed)
	}
	left := st.leftovers()
	facts.add(closed == nil && len(left) == 0, "everything is cleaned up", "%s",
		orElse(joinErr(closed, left), "no namespace, mount, pin, process or file is left"))
	out.heading("Facts")
	facts.print(out)
	out.print("\n%d s in all.\n", int(time.Since(began).Round(time.Second)/time.Second))
	if !facts.hold() {
		return errFalse
	}
	return nil
}

// play is the story, top to bottom.
func play(ctx context.Context, o options, st *stage, out *screen, facts *facts) (err error) {
	sources, late := attackSources(o.attackers)
	out.print("mxshield demo: %d attackers (%s), one honest sender and a cluster of %d mail hosts, all in private namespaces.\n",
		len(sources), families(sources), mailHosts)

	// The download of the first run is not under the time limit.
	if err := st.startMTAs(ctx, o.mta, out); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("it takes longer than %s", timeLimit))
	defer cancel()
	defer func() {
		if ctx.Err() != nil { // whatever step noticed it first
			err = context.Cause(ctx)
		}
	}()
	if err := st.startAgents(ctx); err != nil {
		return err
	}
	mx := st.nodes[0]
	for _, n := range st.nodes {
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		out.row(n.Name(), "%s and %s, %s", lab.MXAddr4(n.number), lab.MXAddr6(n.number), n.mtaWords())
		out.row("", "agent %d shields %s, reads %s, and has met %d others", s.PID, interfaces(s), inputs(s), s.Cluster.Alive)
	}

	mail := &sender{host: st.world, from: lab.Honest4, to: netip.AddrPortFrom(lab.MX4, 25)}
	out.heading("Before: only the honest sender")
	mail.run(ctx, nil, quietMail, 0)
	quiet := mail.between(time.Time{}, time.Now())
	out.row("honest", "%s", quiet)

	out.heading("Attack on mx1: everybody guesses recipients, and goes on when nobody answers any more")
	r, err := attack(ctx, st, out, sources, mail)
	if err != nil {
		return err
	}
	r.quiet = quiet
	out.heading("What happened")
	s, err := mx.status(ctx)
	if err != nil {
		return err
	}
	r.print(out)
	r.judge(facts, s)

	out.heading("Is it true? All attackers try once more, everywhere, and the honest sender too")
	if err := tryAll(ctx, st, out, facts, r); err != nil {
		return err
	}
	out.heading("How fast? More attackers come to mx1, one after another, and knock at the other hosts meanwhile")
	if err := timeBlocks(ctx, st, out, facts, late); err != nil {
		return err
	}
	out.heading("For the person at the keyboard, of any host")
	freed, err := byHand(ctx, st, out, facts, r)
	if err != nil {
		return err
	}
	out.heading("The agent of mx1 dies: kill -9")
	return survive(ctx, st, out, facts, r, freed)
}

// attack lets everybody loose and returns when the attackers have been blocked for a while, or were not in time.
func attack(ctx context.Context, st *stage, out *screen, sources []netip.Addr, mail *sender) (*record, error) {
	mx := st.nodes[0]
	before, err := mx.status(ctx)
	if err != nil {
		return nil, err
	}
	r := &record{began: time.Now(), mta: mx.mta, calm: -1}
	log := newLogReader(mx.mta.LogPath(), sources)
	stopMail, mailDone := make(chan struct{}), make(chan struct{})
	go func() { mail.run(ctx, stopMail, 0, typos); close(mailDone) }()
	mob := newMob(st.world, mx, sources)
	attackCtx, stopAttack := context.WithCancel(ctx)
	attackDone := make(chan struct{})
	go func() { mob.run(attackCtx); close(attackDone) }()
	defer func() { stopAttack(); <-attackDone }()

	tick := time.NewTicker(out.every())
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		s, err := mx.status(ctx)
		if err != nil {
			return nil, err
		}
		if r.sessions, err = log.read(); err != nil {
			return nil, err
		}
		// Many attackers out of one network are blocked as a network, so entries are not what counts.
		blocks, err := mx.blocks(ctx)
		if err != nil {
			return nil, err
		}
		blocked := covered(blocks, sources)
		now := time.Now()
		out.live("%3d s  blocked %d/%d  attack sessions %d  dropped in XDP %d  honest %s",
			int(now.Sub(r.began)/time.Second), blocked, len(sources), r.sessions, dropped(s)-dropped(before),
			mail.between(now.Add(-2*time.Second), now).short())
		if r.done.IsZero() && blocked >= len(sources) {
			r.done = now
		}
		if !r.done.IsZero() && r.calm < 0 && now.Sub(r.done) > drained {
			r.calm = r.sessions
		}
		if !r.done.IsZero() && now.Sub(r.done) > afterwards || r.done.IsZero() && now.Sub(r.began) > attackLimit {
			break
		}
	}
	stopAttack()
	<-attackDone
	close(stopMail)
	<-mailDone
	r.ended = time.Now()
	out.endLive()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s, err := mx.status(ctx)
	if err != nil {
		return nil, err
	}
	r.packets = reasons(before, s)
	if r.blocks, err = mx.blocks(ctx); err != nil {
		return nil, err
	}
	if r.honest, err = mx.entries(ctx, lab.Honest4); err != nil {
		return nil, err
	}
	if r.sessions, err = log.read(); err != nil {
		return nil, err
	}
	attackEnd := r.done
	if attackEnd.IsZero() {
		attackEnd = r.ended
	}
	r.during, r.after = mail.between(r.began, attackEnd), mail.between(attackEnd, r.ended)
	r.mail = mail.between(time.Time{}, r.ended)
	r.attackers = mob.all
	r.match()
	return r, nil
}

// tryAll connects once from every attacker to every mail host and delivers one more message to each.
func tryAll(ctx context.Context, st *stage, out *screen, facts *facts, r *record) error {
	elsewhere, total, unhappy := 0, 0, 0
	for _, n := range st.nodes {
		silent := st.unanswered(ctx, r.sources(), n)
		one := (&sender{host: st.world, from: lab.Honest4, to: n.target(lab.Honest4)}).deliver(ctx, false)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		out.row(n.Name(), "%d of %d attackers' connects get no answer for %s; the honest sender %s", silent, len(r.attackers), noAnswer, one.words())
		if !one.ok {
			unhappy++
		}
		if n == st.nodes[0] {
			facts.add(silent == len(r.attackers), "no attacker can connect any more", "%d of %d connects get no answer", silent, len(r.attackers))
			continue
		}
		elsewhere, total = elsewhere+silent, total+len(r.attackers)
		s, err := n.status(ctx)
		if err != nil {
			return err
		}
		out.row("", "nobody attacked it: %d events in its log, %d blocks from other hosts", s.Events["unknown_recipient"], s.Cluster.Learned)
	}
	facts.add(elsewhere == total, "attacked on one, dropped on all", "%d of %d connects to the hosts that were not attacked get no answer", elsewhere, total)
	facts.add(unhappy == 0, "and the honest sender still can", "delivers to %d of %d hosts", len(st.nodes)-unhappy, len(st.nodes))
	return nil
}

// timeBlocks lets one attacker after another be blocked by mx1, each of which knocks at the other hosts all the time: what
// counts is when their packets are dropped there.
func timeBlocks(ctx context.Context, st *stage, out *screen, facts *facts, sources []netip.Addr) error {
	mx, others := st.nodes[0], st.nodes[1:]
	var took durations
	closed := 0
	for _, a := range sources {
		stop := st.knockAt(ctx, a, others...)
		guessing, enough := context.WithCancel(ctx)
		guessed := make(chan struct{})
		go func() {
			defer close(guessed)
			lab.Dictionary(guessing, st.world, a, mx.target(a), lab.DictionaryOptions{
				Talk: lab.Talk{Connect: noAnswer, Reply: 3 * time.Second, Helo: "mail.example.com", From: "<info@example.com>"}, Recipients: 20, PerSession: 20,
			})
		}()
		stamp, err := mx.awaitBlock(ctx, a)
		enough()
		<-guessed
		if err == nil {
			pause(ctx, 150*time.Millisecond) // some more knocks, none of which may be answered
		}
		knocks, kerr := stop()
		if err := errors.Join(err, kerr, ctx.Err()); err != nil {
			return err
		}
		for _, k := range knocks {
			if at := lab.Closed(k); !at.IsZero() {
				closed++
				took = append(took, max(0, at.Sub(stamp)))
			}
		}
	}
	slices.Sort(took)
	want := len(sources) * len(others)
	out.row("doors", "%d of %d close at the hosts that were not attacked", closed, want)
	out.row("time", "p50 %s, max %s from the block at mx1 to the first packet that is dropped there, with one every %s",
		ms(took.quantile(.5)), ms(took.quantile(1)), ms(knockEvery))
	facts.add(closed == want && took.quantile(1) <= tellsWithin, "a block made on one host drops packets on all within a second",
		"%d of %d times; p50 %s, max %s", closed, want, ms(took.quantile(.5)), ms(took.quantile(1)))
	return nil
}

// byHand shows the commands of mxshieldctl, and that unblock opens all doors to the one it names, wherever it is given.
func byHand(ctx context.Context, st *stage, out *screen, facts *facts, r *record) (netip.Addr, error) {
	one, others := r.choose()
	last := st.nodes[len(st.nodes)-1]
	for _, args := range [][]string{{"peers"}, {"list", "--limit", "5"}, {"why", one.String()}} {
		if err := last.ctl(ctx, out, args...); err != nil {
			return one, err
		}
	}
	stop := st.knockAt(ctx, one, st.nodes...)
	pause(ctx, 100*time.Millisecond) // some knocks while it is blocked
	began := time.Now()
	err := last.ctl(ctx, out, "unblock", one.String())
	pause(ctx, opensWithin/2-time.Since(began))
	knocks, kerr := stop()
	if err := errors.Join(err, kerr, ctx.Err()); err != nil {
		return one, err
	}
	out.print("\n")
	opened, early := 0, 0
	var took durations
	for i, n := range st.nodes {
		// What counts is the time from pressing return.
		at := lab.Opened(knocks[i])
		switch {
		case at.IsZero():
			out.row(n.Name(), "%s STILL GETS NO ANSWER", one)
			continue
		case at.Before(began):
			early++
		default:
			opened++
			took = append(took, at.Sub(began))
		}
		out.row(n.Name(), "%s connects again, %s after the command was given on %s", one, ms(at.Sub(began)), last.Name())
	}
	slices.Sort(took)
	silent := st.unanswered(ctx, others, st.nodes...)
	if ctx.Err() != nil {
		return one, ctx.Err()
	}
	out.row("others", "%d of %d connects still get no answer", silent, len(others)*len(st.nodes))
	facts.add(opened == len(st.nodes) && early == 0 && took.quantile(1) <= opensWithin, "unblocked once, unblocked everywhere within a second",
		"%s connects to %d of %d hosts, the last after %s", one, opened, len(st.nodes), ms(took.quantile(1)))
	facts.add(silent == len(others)*len(st.nodes), "and for nobody else", "%d of %d connects of others get no answer", silent, len(others)*len(st.nodes))
	return one, nil
}

// survive kills an agent, looks whether its blocks hold, lets the others change something, and starts it again.
func survive(ctx context.Context, st *stage, out *screen, facts *facts, r *record, freed netip.Addr) error {
	mx, other := st.nodes[0], st.nodes[1]
	before, err := mx.status(ctx)
	if err != nil {
		return err
	}
	mx.agent.kill()
	out.row("killed", "pid %d", before.PID)
	rest := r.without(freed)
	silent := st.unanswered(ctx, rest, mx)
	open := !lab.ConnectTimesOut(ctx, st.world, freed, mx.target(freed), noAnswer)
	out.row("without it", "%d of %d attackers get no answer; the unblocked one %s", silent, len(rest), word(open, "connects", "DOES NOT CONNECT"))
	facts.add(silent == len(rest) && open, "a killed agent goes on dropping, and only whom it blocked", "%d of %d attackers get no answer", silent, len(rest))
	second := rest[0]
	rest = rest[1:]
	if err := other.ctl(ctx, out, "unblock", second.String()); err != nil {
		return err
	}
	out.print("\n")
	began := time.Now()
	if err := mx.startAgent(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	learned, err := mx.letsIn(ctx, second)
	if err != nil {
		return err
	}
	after, err := mx.status(ctx)
	if err != nil {
		return err
	}
	out.row("restarted", "pid %d answers and has met the others after %s: %d blocks, before %d", after.PID, ms(took), after.Blocks.Blocks, before.Blocks.Blocks)
	silent = st.unanswered(ctx, rest, mx)
	open = !lab.ConnectTimesOut(ctx, st.world, second, mx.target(second), noAnswer)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	out.row("", "%d of %d attackers get no answer; packets dropped so far: %d", silent, len(rest), dropped(after))
	out.row("", "%s, unblocked elsewhere meanwhile, %s", second, word(open, "connects, "+ms(learned)+" later", "DOES NOT CONNECT"))
	facts.add(silent == len(rest) && after.Blocks.Blocks == before.Blocks.Blocks-1, "the restarted agent knows them all",
		"%d blocks, as before but for one; %d of %d attackers get no answer", after.Blocks.Blocks, silent, len(rest))
	facts.add(open, "and what was unblocked elsewhere while it was dead", "%s connects to %s", second, mx.Name())
	return nil
}

func interfaces(s *control.Status) (text string) {
	for i, in := range s.Interfaces {
		text += word(i > 0, ", ", "") + in.Name + " (" + in.Mode + ")"
	}
	return orElse(text, "NOTHING")
}

func inputs(s *control.Status) (text string) {
	for i, in := range s.Inputs {
		text += word(i > 0, ", ", "") + in.ID
	}
	return orElse(text, "NOTHING")
}

func word(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}

func orElse(text, empty string) string { return word(text != "", text, empty) }
