//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// A fact is something the demo claims and has checked.
type fact struct {
	ok          bool
	what, shown string
}

type facts []fact

func (f *facts) add(ok bool, what, format string, args ...any) {
	*f = append(*f, fact{ok, what, fmt.Sprintf(format, args...)})
}

func (f facts) hold() bool {
	return !slices.ContainsFunc(f, func(x fact) bool { return !x.ok })
}

func (f facts) print(out *screen) {
	width := 0
	for _, x := range f {
		width = max(width, len(x.what))
	}
	for _, x := range f {
		out.print("  %-5s  %-*s  %s\n", word(x.ok, "ok", "FALSE"), width, x.what, x.shown)
	}
}

func joinErr(err error, left []string) string {
	if err != nil {
		left = append([]string{err.Error()}, left...)
	}
	return strings.Join(left, "; ")
}

// record is what the attack left: what everybody saw, and what the agent says.
type record struct {
	began, done, ended   time.Time // done: everyone was blocked; zero if that never came
	mta                  lab.MTA
	attackers            []*attacker
	quiet, during, after deliveries
	mail                 deliveries // all of it
	blocks               []control.Listed
	honest               []block.Entry // about the honest sender
	packets              map[string]uint64
	sessions             int // of attackers, by the MTA's log
	calm                 int // as many of them there were when the last connection from before the blocks was through; -1: never

	// What match makes of it.
	delays durations // from first offence to block
	last   time.Time // the last block's stamp
	open   int       // attackers without a block
	knocks int       // attempts to connect
	late   int       // answered connects begun more than slack after the block
	latest durations // from the block to the beginning of the last answered connect; mostly below zero
}

// slack is between the stamp of a block, which the agent takes when it reads the lines, and the moment it is in the
// kernel: milliseconds, and more when two cores have two hundred clients to serve.
const slack = 500 * time.Millisecond

// match compares the attackers' clocks with the agent's stamps: it is one machine with one clock.
func (r *record) match() {
	for _, a := range r.attackers {
		r.knocks += a.knocks
		stamp, ok := r.blockOf(a.addr)
		if !ok {
			r.open++
			continue
		}
		if !a.offence.IsZero() {
			r.delays = append(r.delays, max(0, stamp.Sub(a.offence)))
		}
		for _, t := range a.answered {
			if t.Sub(stamp) > slack {
				r.late++
			}
		}
		if n := len(a.answered); n > 0 {
			r.latest = append(r.latest, a.answered[n-1].Sub(stamp))
		}
		if stamp.After(r.last) {
			r.last = stamp
		}
	}
	slices.Sort(r.delays)
	slices.Sort(r.latest)
}

// covered counts the sources that a block covers.
func covered(blocks []control.Listed, sources []netip.Addr) (n int) {
	single := make(map[netip.Prefix]bool, len(blocks))
	var wide []netip.Prefix
	for _, b := range blocks {
		if !b.Effective {
			continue
		}
		if p := b.Prefix; p.Bits() == 32 || p.Bits() == 64 {
			single[p] = true
		} else {
			wide = append(wide, p)
		}
	}
	for _, a := range sources {
		exact := netip.PrefixFrom(a, 32)
		if a.Is6() {
			exact, _ = a.Prefix(64)
		}
		if single[exact] || slices.ContainsFunc(wide, func(p netip.Prefix) bool { return p.Contains(a) }) {
			n++
		}
	}
	return n
}

// blockOf is when the first block of an address was made. Since in the list is in whole seconds; the stamp is in
// milliseconds.
func (r *record) blockOf(a netip.Addr) (at time.Time, ok bool) {
	for _, b := range r.blocks {
		if t := b.Stamp.Time(); b.Effective && b.Prefix.Contains(a) && (!ok || t.Before(at)) {
			at, ok = t, true
		}
	}
	return at, ok
}

func (r *record) sources() (list []netip.Addr) {
	for _, a := range r.attackers {
		list = append(list, a.addr)
	}
	return list
}

func (r *record) without(one netip.Addr) []netip.Addr {
	return slices.DeleteFunc(r.sources(), func(a netip.Addr) bool { return a == one })
}

// choose picks an attacker for a pardon, and up to 20 others, of both families, who get none.
func (r *record) choose() (one netip.Addr, others []netip.Addr) {
	one = r.attackers[0].addr
	list := r.without(one)
	step := max(1, len(list)/20)
	for i := len(list) - 1; i >= 0; i -= step { // IPv6 is at the end
		others = append(others, list[i])
	}
	return one, others
}

// judge turns the figures into facts.
func (r *record) judge(f *facts, s *control.Status) {
	n := len(r.attackers)
	f.add(r.open == 0, "all attackers are blocked", "%d of %d, the last %s after the attack began", n-r.open, n, ms(r.last.Sub(r.began)))
	closest := r.latest.quantile(1)
	f.add(r.late == 0, "no attack session begins after its source's block", "%d do; the closest began %s %s it", r.late,
		ms(closest.Abs()), word(closest > 0, "after", "before"))
	if r.calm < 0 {
		f.add(false, "the MTA's log is free of attackers then", "not seen: they are not all blocked")
	} else {
		f.add(r.sessions == r.calm, "the MTA's log is free of attackers then", "%d connects later than %s after the last block", r.sessions-r.calm, drained)
	}
	var drops uint64
	var by []string
	for reason, packets := range r.packets {
		if strings.HasPrefix(reason, "drop") {
			drops += packets
			by = append(by, fmt.Sprintf("%s %d", reason, packets))
		}
	}
	slices.Sort(by)
	f.add(drops > 0, "packets are dropped in XDP", "%d on %s: %s", drops, interfaces(s), strings.Join(by, ", "))
	typos := 0
	for _, d := range r.mail {
		if d.typo {
			typos++
		}
	}
	f.add(len(r.mail) > 0 && r.mail.delivered() == len(r.mail), "all honest mail is delivered", "%d of %d at the first try", r.mail.delivered(), len(r.mail))
	f.add(len(r.honest) == 0, "the honest host is never blocked", "%d entries about %s, which mistyped %d recipients", len(r.honest), lab.Honest4, typos)
}
