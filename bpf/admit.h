/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * A packet that the tables let pass: does it open a connection, and may it?
 *
 * Only a SYN without ACK opens one. Everything else belongs to a session that was let in, and is not looked at, nor
 * are sources that are allowed. Ports behind too many extension headers may be the mail ports and the packet a SYN, so
 * they count as one: no session comes like that, and it would be the way round.
 *
 * Off, nothing of this is in the program: new_connections is a constant, and the verifier removes what it rules out.
 */
#pragma once
#include "hold.h"

static __always_inline enum reason admit(const struct packet *p, enum reason reason)
{
	struct source key = {.net = {p->src[0], p->src[1]}, .ipv6 = p->ipv6};
	struct admission_value *a;
	enum reason limited;
	__u32 zero = 0;
	__u64 now;

	/* Pass: an open session's, or nobody's. */
	if (!p->hidden && (p->flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return reason;
	a = bpf_map_lookup_elem(&admission, &zero);
	/* Pass: cannot happen, as in decide(). */
	if (!a)
		return reason;
	/* Pass: never limited, never held. */
	if (is_allowed(p))
		return reason;
	now = a->frozen ? a->frozen : bpf_jiffies64();
	if (!p->ipv6)
		key.net[1] = 0;
	limited = limit(&key, a, now);
	if (limited)
		return limited;
	/* Drop: new here, and comes again in a second. */
	if (hold_for.time && hold(&key, p, a, now))
		return DROP_HELD;
	/* Pass: as the tables said. */
	return reason;
}
