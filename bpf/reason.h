/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The words: why a packet passed or was dropped, and which ports a block is about.
 */
#pragma once
#include "uapi.h"

/*
 * Why a packet passed or was dropped. Every packet is counted under exactly one. The names, in lower case, are the
 * words of Go, JSON and metrics. Append only: the totals are pinned and keep their places over an upgrade.
 */
enum reason {
	PASS_NOT_IP = 0,	/* ARP, LLDP, a third VLAN tag ... */
	PASS_MALFORMED = 1,	/* version or header length is nonsense; the stack throws it away */
	PASS_TRUNCATED = 2,	/* ends before the TCP ports */
	PASS_NOT_TCP = 3,	/* another protocol */
	PASS_FRAGMENT = 4,	/* not the first fragment */
	PASS_OTHER_PORT = 5,	/* TCP to a port that is not protected */
	PASS_NOT_BLOCKED = 6,	/* protected port, source in no table */
	PASS_EXPIRED = 7,	/* the entry that decides has ended */
	PASS_OUT_OF_SCOPE = 8,	/* the entry that decides is not about this port */
	PASS_HOLE = 9,		/* the entry that decides is a hole in a wider block */
	PASS_EXT_HEADERS = 10,	/* ports hidden behind IPv6 extension headers, source not blocked */
	DROP_EXACT = 11,	/* blocked address (IPv4) or /64 (IPv6) */
	DROP_CIDR = 12,		/* in a blocked CIDR */
	DROP_EXT_HEADERS = 13,	/* ports hidden behind IPv6 extension headers, source blocked */
	PASS_EXEMPT = 14,	/* protected port, but of a local address that is not shielded */
	DROP_LIMITED_SOURCE = 15, /* new connection, and its source has made too many in the last seconds */
	DROP_LIMITED_TOTAL = 16, /* new connection, and there were too many from all sources together */
	DROP_HELD = 17,		/* new connection of a source not seen lately: dropped once, while the agent asks about it */
	REASONS = 18,
};

static __always_inline int dropped(enum reason reason)
{
	return reason == DROP_EXACT || reason == DROP_CIDR || reason == DROP_EXT_HEADERS ||
	       reason == DROP_LIMITED_SOURCE || reason == DROP_LIMITED_TOTAL || reason == DROP_HELD;
}

/* Room for reasons to come, so that an upgrade fits the pinned totals. */
#define MAX_REASONS 64
_Static_assert(REASONS <= MAX_REASONS, "the counters map is too small");

/* Scope bits: which group of protected ports an entry is about. No bit at all is a hole. */
enum {
	SCOPE_MX = 1,
	SCOPE_SUBMISSION = 2,
	SCOPE_ALL = SCOPE_MX | SCOPE_SUBMISSION,
};
