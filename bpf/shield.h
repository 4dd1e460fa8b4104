/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The way of a packet through the shield. What decide() is, and on which tables, is the including file's business:
 * the shipped one, or one of the tests'.
 */
#pragma once
#include "classify.h"
#include "exempt.h"
#include "packet.h"

/* From what parse() said to one reason: protected port -> not exempt -> exact -> CIDR -> pass. */
static __always_inline enum reason judge(enum reason reason, struct packet *p)
{
	__u8 scope = SCOPE_ALL;

	if (reason != UNDECIDED)
		return reason;
	/* Hidden: the port is out of reach. Dropped only if the source is blocked for any port; see packet.h. */
	if (!p->hidden) {
		scope = port_scope(p->dst_port);
		/* Pass: not a mail port. Nearly all traffic that is not mail has left before, see maybe_protected(). */
		if (!scope)
			return PASS_OTHER_PORT;
	}
	/* Pass: the config says that this local address is not shielded. */
	if (exempt(p))
		return PASS_EXEMPT;
	reason = forget(decide(p, scope), p->src[0]);
	if (p->hidden)
		return reason == DROP_EXACT || reason == DROP_CIDR ? DROP_EXT_HEADERS : PASS_EXT_HEADERS;
	return reason;
}

/* One packet, one reason: Ethernet -> IP -> TCP -> protected port -> not exempt -> exact -> CIDR -> pass. */
static __always_inline enum reason shield(void *data, void *end, struct packet *p)
{
	return judge(parse(data, end, p), p);
}

/*
 * Counts the packet, under one reason, on this CPU's own counter. 0 if it is to pass, else the how manieth of its reason
 * it is here.
 */
static __always_inline __u64 count(enum reason reason)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason), nth = 1;

	if (n)
		nth = ++*n;
	return dropped(reason) ? nth : 0;
}
