package bpf

import (
	"fmt"
	"os"
)

// Reason says why a packet passed or was dropped. The list is closed, and kept in maps.h; every packet is counted
// under exactly one.
type Reason uint32

const (
	PassNotIP      = Reason(shieldReasonPASS_NOT_IP)
	PassMalformed  = Reason(shieldReasonPASS_MALFORMED)
	PassTruncated  = Reason(shieldReasonPASS_TRUNCATED)
	PassNotTCP     = Reason(shieldReasonPASS_NOT_TCP)
	PassFragment   = Reason(shieldReasonPASS_FRAGMENT)
	PassOtherPort  = Reason(shieldReasonPASS_OTHER_PORT)
	PassNotBlocked = Reason(shieldReasonPASS_NOT_BLOCKED)
	PassExpired    = Reason(shieldReasonPASS_EXPIRED)
	PassOutOfScope = Reason(shieldReasonPASS_OUT_OF_SCOPE)
	PassHole       = Reason(shieldReasonPASS_HOLE)
	PassExtHeaders = Reason(shieldReasonPASS_EXT_HEADERS)
	DropExact      = Reason(shieldReasonDROP_EXACT)
	DropCIDR       = Reason(shieldReasonDROP_CIDR)
	DropExtHeaders = Reason(shieldReasonDROP_EXT_HEADERS)
	PassExempt     = Reason(shieldReasonPASS_EXEMPT)

	DropLimitedSource = Reason(shieldReasonDROP_LIMITED_SOURCE)
	DropLimitedTotal  = Reason(shieldReasonDROP_LIMITED_TOTAL)
	DropHeld          = Reason(shieldReasonDROP_HELD)

	reasonCount = int(shieldReasonREASONS)
)

var reasonNames = [reasonCount]string{
	PassNotIP:      "pass_not_ip",
	PassMalformed:  "pass_malformed",
	PassTruncated:  "pass_truncated",
	PassNotTCP:     "pass_not_tcp",
	PassFragment:   "pass_fragment",
	PassOtherPort:  "pass_other_port",
	PassNotBlocked: "pass_not_blocked",
	PassExpired:    "pass_expired",
	PassOutOfScope: "pass_out_of_scope",
	PassHole:       "pass_hole",
	PassExtHeaders: "pass_ext_headers",
	DropExact:      "drop_exact",
	DropCIDR:       "drop_cidr",
	DropExtHeaders: "drop_ext_headers",
	PassExempt:     "pass_exempt",

	DropLimitedSource: "drop_limited_source",
	DropLimitedTotal:  "drop_limited_total",
	DropHeld:          "drop_held",
}

// String returns the word used in JSON, metrics and logs.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Drop reports whether a packet with this reason is dropped.
func (r Reason) Drop() bool {
	switch r {
	case DropExact, DropCIDR, DropExtHeaders, DropLimitedSource, DropLimitedTotal, DropHeld:
		return true
	}
	return false
}

// Counters are packets by [Reason], since the maps were made (they outlive agent and program). Index by Reason:
//
//	for i, n := range c { fmt.Println(bpf.Reason(i), n) }
type Counters [reasonCount]uint64

// Drops is the number of packets dropped.
func (c Counters) Drops() (n uint64) {
	for r, v := range c {
		if Reason(r).Drop() {
			n += v
		}
	}
	return n
}

// Packets is the number of packets seen.
func (c Counters) Packets() (n uint64) {
	for _, v := range c {
		n += v
	}
	return n
}

// Counters sums the counters of all CPUs. Safe to call at any time.
func (s *Shield) Counters() (Counters, error) {
	var c Counters
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return c, os.ErrClosed
	}
	for i := range c {
		var perCPU []uint64
		if err := s.gen.maps[shieldMapCounters].Lookup(uint32(i), &perCPU); err != nil {
			return c, fmt.Errorf("read counter %s: %w", Reason(i), err)
		}
		for _, n := range perCPU {
			c[i] += n
		}
	}
	return c, nil
}
