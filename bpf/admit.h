/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A packet that the tables let pass: does it open a connection, and may it?
 *
 * Only a SYN without ACK opens one. Everything else belongs to a session that was let in, and is not looked at, nor
 * are sources that are allowed. Ports behind too many extension headers may be the mail ports and the packet a SYN, so
 * they count as one: no session comes like that, and it would be the way round.
 *
 * Off, nothing of this is in the program: new_connections is a constant, and the verifier removes what it rules out. On,
 * the packet is parsed again: so flags and addresses need not be carried along for it, which costs the packets of all
 * the world.
 */
#pragma once
#include "hold.h"

/* 1 if something is asked about new connections. */
volatile const __u32 new_connections;

/* The reasons for which a packet to a protected port passes, and may open a connection. */
static __always_inline int may_open(enum reason reason)
{
	_Static_assert(PASS_EXPIRED == PASS_NOT_BLOCKED + 1 && PASS_OUT_OF_SCOPE == PASS_NOT_BLOCKED + 2 &&
		       PASS_HOLE == PASS_NOT_BLOCKED + 3 && PASS_EXT_HEADERS == PASS_NOT_BLOCKED + 4, "side by side");
	return new_connections && reason >= PASS_NOT_BLOCKED && reason <= PASS_EXT_HEADERS;
}

/* Why it is dropped after all; 0 if it passes as the tables said. */
static __always_inline enum reason refuse(void *data, void *end)
{
	struct source key = {};
	struct admission_value *a;
	struct packet p = {};
	enum reason limited;
	__u32 zero = 0;
	__u64 now;

	/* Pass: cannot happen, it went well a moment ago. */
	if (parse_flags(data, end, &p) != UNDECIDED)
		return 0;
	/* Pass: an open session's, or nobody's. */
	if (!p.hidden && (p.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return 0;
	a = bpf_map_lookup_elem(&admission, &zero);
	/* Pass: cannot happen, as in decide(). */
	if (!a)
		return 0;
	/* Pass: never limited, never held. */
	if (is_allowed(&p))
		return 0;
	now = a->frozen ? a->frozen : bpf_jiffies64();
	key.ipv6 = p.ipv6;
	key.net[0] = p.src[0];
	key.net[1] = p.src[1]; /* IPv4: 0 */
	limited = limit(&key, a, now);
	if (limited)
		return limited;
	/*
	 * Drop: new here, and comes again in a second. Not on the submission ports: people at home are on the lists, and
	 * log in.
	 */
	if (hold_for.time && (p.hidden || port_scope(p.dst_port) & SCOPE_MX) && hold(&key, &p, a, now))
		return DROP_HELD;
	/* Pass: as the tables said. */
	return 0;
}
