package main

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/senders"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/agent/internal/verdict"
)

// This file wires the allows by name: what package senders finds out becomes never-block rules of the table.

// sendersKey is where the ranges stand in the state file.
const sendersKey = "senders"

func (d *daemon) openSenders() {
	d.toAsk, d.held, d.unsure = make(chan held, maxHeld), map[netip.Prefix]held{}, map[netip.Addr]unsure{}
	d.senders = senders.New(senders.Options{
		Senders: d.cfg.Senders, Resolver: d.resolver, Saved: d.pending[sendersKey], Log: d.log,
		Changed: func() {
			select {
			case d.ranges <- struct{}{}:
			default: // the housekeeper knows already
			}
		},
	})
	delete(d.pending, sendersKey)
}

// senderRules are the never-block rules of all that is known by name.
func (d *daemon) senderRules() (list []block.Never) {
	for _, r := range d.senders.Ranges() {
		list = append(list, block.Never{Prefix: r.Prefix, Rule: r.Rule, Sender: true})
	}
	return list
}

// spareLocked notes that evidence would have blocked a big sender.
func (d *daemon) spareLocked(v *verdict.Verdict, rule, words string, now time.Time) {
	d.scorer.Refused(v.Prefix)
	if !d.tellLocked("source spared "+v.Prefix.String(), time.Hour, now) {
		return
	}
	d.log.Info("would have been blocked, but is an allowed sender", "prefix", v.Prefix, "by", rule, "cause", v.Cause, "evidence", words)
	d.batch.Audit = append(d.batch.Audit, store.Audit{Time: now.UTC(), Who: "agent", Action: "spare", Prefix: v.Prefix, Detail: fmt.Sprintf("%s: %s; allowed by %s", v.Cause, words, rule)})
}

// senderStatus is what status shows.
func (d *daemon) senderStatus() (list []control.Sender) {
	for _, s := range d.senders.Status() {
		list = append(list, control.Sender(s))
	}
	return list
}

// sendersWarning names the allows of the config file that are not known at all: their mail may be blocked.
func (d *daemon) sendersWarning() string {
	n, first := 0, ""
	for _, s := range d.senders.Status() {
		if !s.Preset && s.Ranges == 0 && s.Error != "" {
			if n++; n == 1 {
				first = fmt.Sprintf("%s: %s", s.Rule, s.Error)
			}
		}
	}
	switch n {
	case 0:
		return ""
	case 1:
		return "an allow by name has no effect yet: " + first
	}
	return fmt.Sprintf("%d allows by name have no effect yet; the first: %s", n, first)
}

// allowedSender returns the rule by which a source is never blocked automatically.
func (d *daemon) allowedSender(a netip.Addr) (rule string, ok bool) { return d.senders.Covers(a) }
