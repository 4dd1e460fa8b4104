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
	afterwards  = 6 * time.Second  // attackers go on knocking, the honest sender goes on delivering
	drained     = 2 * time.Second  // after the last block: connections that waited for a free smtpd are through
	typos       = 5                // unknown recipients of the honest sender, during the attack
	noAnswer    = time.Second      // a connect without an answer for so long is a dropped one
	opensWithin = time.Second      // after an unblock
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
	f.IntVar(&o.attackers, "attackers", 200, "how many attackers, 1 to 1000; every 20th comes by IPv6")
	f.StringVar(&o.mta, "mta", "auto", "auto, postfix (or fail), or builtin (the lab's SMTP server)")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		err = fmt.Errorf("%q is not understood", f.Arg(0))
	case o.attackers < 1 || o.attackers > 1000:
		err = fmt.Errorf("-attackers %d is out of range: 1 to 1000", o.attackers)
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
	if words := st.lastWords(15); words != "" && ctx.Err() == nil && (err != nil || !facts.hold()) {
		out.print("\nThe end of the agent's log, which goes with the demo's folder:\n%s\n", words)
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
	sources := attackSources(o.attackers)
	out.print("mxshield demo: %d attackers (%s), one honest sender and a mail host, all in private namespaces.\n",
		len(sources), families(sources))

	// The download of the first run is not under the time limit.
	if err := st.startMTA(ctx, o.mta, out); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeLimit, fmt.Errorf("it takes longer than %s", timeLimit))
	defer cancel()
	defer func() {
		if ctx.Err() != nil { // whatever step noticed it first
			err = context.Cause(ctx)
		}
	}()
	if err := st.startAgent(ctx); err != nil {
		return err
	}
	s, err := st.status(ctx)
	if err != nil {
		return err
	}
	out.row("mail host", "%s and %s, %s", lab.MX4, lab.MX6, st.mtaWords())
	out.row("agent", "pid %d; shields %s; reads %s, found by itself", s.PID, interfaces(s), inputs(s))

	mail := &sender{host: st.world, from: lab.Honest4, to: netip.AddrPortFrom(lab.MX4, 25)}
	out.heading("Before: only the honest sender")
	mail.run(ctx, nil, quietMail, 0)
	quiet := mail.between(time.Time{}, time.Now())
	out.row("honest", "%s", quiet)

	out.heading("Attack: everybody guesses recipients, and goes on when nobody answers any more")
	r, err := attack(ctx, st, out, sources, mail)
	if err != nil {
		return err
	}
	r.quiet = quiet
	out.heading("What happened")
	r.print(out)
	r.judge(facts, s)

	out.heading("Is it true? All attackers try once more, and the honest sender too")
	if err := tryAll(ctx, st, out, facts, r); err != nil {
		return err
	}
	out.heading("For the person at the keyboard")
	freed, err := byHand(ctx, st, out, facts, r)
	if err != nil {
		return err
	}
	out.heading("The agent dies: kill -9")
	return survive(ctx, st, out, facts, r, freed)
}

// attack lets everybody loose and returns when the attackers have been blocked for a while, or were not in time.
func attack(ctx context.Context, st *stage, out *screen, sources []netip.Addr, mail *sender) (*record, error) {
	before, err := st.status(ctx)
	if err != nil {
		return nil, err
	}
	r := &record{began: time.Now(), mta: st.mta, calm: -1}
	log := newLogReader(st.mta.LogPath(), sources)
	stopMail, mailDone := make(chan struct{}), make(chan struct{})
	go func() { mail.run(ctx, stopMail, 0, typos); close(mailDone) }()
	mob := newMob(st.world, sources)
	attackCtx, stopAttack := context.WithCancel(ctx)
	attackDone := make(chan struct{})
	go func() { mob.run(attackCtx); close(attackDone) }()
	defer func() { stopAttack(); <-attackDone }()

	tick := time.NewTicker(out.every())
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		s, err := st.status(ctx)
		if err != nil {
			return nil, err
		}
		if r.sessions, err = log.read(); err != nil {
			return nil, err
		}
		// Many attackers out of one network are blocked as a network, so entries are not what counts.
		blocks, err := st.blocks(ctx)
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
	s, err := st.status(ctx)
	if err != nil {
		return nil, err
	}
	r.packets = reasons(before, s)
	if r.blocks, err = st.blocks(ctx); err != nil {
		return nil, err
	}
	if r.honest, err = st.entries(ctx, lab.Honest4); err != nil {
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

// tryAll connects once from every attacker and delivers one more message.
func tryAll(ctx context.Context, st *stage, out *screen, facts *facts, r *record) error {
	silent := unanswered(ctx, st.world, r.sources(), noAnswer)
	one := (&sender{host: st.world, from: lab.Honest4, to: netip.AddrPortFrom(lab.MX4, 25)}).deliver(ctx, false)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	out.row("attackers", "%d of %d connects get no answer for %s", silent, len(r.attackers), noAnswer)
	out.row("honest", "%s", one.words())
	facts.add(silent == len(r.attackers), "no attacker can connect any more", "%d of %d connects get no answer", silent, len(r.attackers))
	facts.add(one.ok, "and the honest sender still can", "%s", one.words())
	return nil
}

// byHand shows the commands of mxshieldctl, and that unblock opens the door to the one it names.
func byHand(ctx context.Context, st *stage, out *screen, facts *facts, r *record) (netip.Addr, error) {
	one, others := r.choose()
	for _, args := range [][]string{{"list", "--limit", "5"}, {"why", one.String()}} {
		if err := st.ctl(ctx, out, args...); err != nil {
			return one, err
		}
	}
	began := time.Now()
	if err := st.ctl(ctx, out, "unblock", one.String()); err != nil {
		return one, err
	}
	// What counts is the time from pressing return.
	opened := !lab.ConnectTimesOut(ctx, st.world, one, target(one), opensWithin)
	took := time.Since(began)
	silent := unanswered(ctx, st.world, others, noAnswer)
	if ctx.Err() != nil {
		return one, ctx.Err()
	}
	out.print("\n")
	if opened {
		out.row("unblocked", "%s connects again, %s after the command was given", one, ms(took))
	} else {
		out.row("unblocked", "%s still gets no answer after %s", one, ms(took))
	}
	out.row("others", "%d of %d still get no answer", silent, len(others))
	facts.add(opened && took <= opensWithin, "unblock works within a second", "%s connects after %s", one, ms(took))
	facts.add(silent == len(others), "and for nobody else", "%d of %d others get no answer", silent, len(others))
	return one, nil
}

// survive kills the agent, looks whether its blocks hold, and starts it again.
func survive(ctx context.Context, st *stage, out *screen, facts *facts, r *record, freed netip.Addr) error {
	before, err := st.status(ctx)
	if err != nil {
		return err
	}
	st.agent.kill()
	out.row("killed", "pid %d", before.PID)
	others := r.without(freed)
	silent := unanswered(ctx, st.world, others, noAnswer)
	open := !lab.ConnectTimesOut(ctx, st.world, freed, target(freed), noAnswer)
	out.row("without it", "%d of %d attackers get no answer; the unblocked one %s", silent, len(others), word(open, "connects", "DOES NOT CONNECT"))
	facts.add(silent == len(others) && open, "a killed agent goes on dropping, and only whom it blocked", "%d of %d attackers get no answer", silent, len(others))
	began := time.Now()
	if err := st.startAgent(ctx); err != nil {
		return err
	}
	took := time.Since(began)
	after, err := st.status(ctx)
	if err != nil {
		return err
	}
	out.row("restarted", "pid %d answers after %s: %d blocks, before %d", after.PID, ms(took), after.Blocks.Blocks, before.Blocks.Blocks)
	silent = unanswered(ctx, st.world, others, noAnswer)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	out.row("", "%d of %d attackers get no answer; packets dropped so far: %d", silent, len(others), dropped(after))
	facts.add(after.Blocks.Blocks == before.Blocks.Blocks && silent == len(others), "the restarted agent knows them all",
		"%d blocks, as before; %d of %d attackers get no answer", after.Blocks.Blocks, silent, len(others))
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
