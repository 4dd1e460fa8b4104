package main

import (
	"fmt"

	"github.com/mxshield/mxshield/agent/control"
)

// hold prints what status says of sources that are asked about before they are accepted.
func (c *ctl) hold(h *control.Hold, p func(name, format string, a ...any)) {
	state := "on"
	switch {
	case !h.IPv4 && !h.IPv6:
		state = "not now: " + h.Why
	case !h.IPv6:
		state = "on for IPv4"
	case !h.IPv4:
		state = "on for IPv6"
	}
	p("before", "%s; a listing of %g points refuses a source before it is accepted, at most %d new ones a second are asked about", state, h.Points, h.Budget)
	t := fmt.Sprintf("%d asked about, %d refused, %d clean, %d without an answer in time, %d spared", h.Held, h.Listed, h.Clean, h.Unanswered, h.Spared)
	if n := h.Busy + h.Untold; n > 0 {
		t += fmt.Sprintf(", %d let in because too many came", n)
	}
	p("", "%s; %.0f ms; %d known senders are never asked about", t, h.Millis, h.Known)
}
