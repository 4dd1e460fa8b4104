package main

import (
	"net/netip"
	"slices"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// This file is what the daemon has to say about live sessions; agent/internal/sessions ends them.

// endSessions has the live sessions of a prefix looked at that was blocked now.
func (d *daemon) endSessions(p netip.Prefix) {
	if d.ender != nil && d.marker() == nil {
		d.ender.Fresh(p)
	}
}

// ends says whether a session ends now: whether its packets are dropped, by the block table's own decision.
func (d *daemon) ends(local netip.AddrPort, peer netip.Addr) bool {
	if d.marker() != nil || slices.ContainsFunc(d.cfg.Exempt, func(p netip.Prefix) bool { return p.Contains(local.Addr()) }) {
		return false
	}
	scope := block.ScopeMX
	if slices.Contains(d.cfg.SubmissionPorts, local.Port()) {
		scope = block.ScopeSubmission
	}
	decision := d.table.Decide(netip.PrefixFrom(peer, peer.BitLen()), time.Now())
	return decision.Drop && decision.Scope&scope != 0
}

// lookForListeners lets status say when the mail server is in another network namespace. It is no line in the log: a
// mail server that is just being restarted does not listen either.
func (d *daemon) lookForListeners() {
	on, err := d.ender.Listening()
	if err != nil || on {
		d.setWarning("listen", "", nil) // what the kernel cannot tell is said when a session cannot be ended
		return
	}
	d.setWarning("listen", "nothing listens on a protected port in the agent's network namespace: packets of blocked sources are dropped, but sessions they have open go on until the mail server's timeout", nil)
}
