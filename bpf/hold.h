/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Asked before accepted: the first SYN of a source that was not seen for a day is dropped, and the agent told. TCP sends
 * it again a second later (RFC 6298: the first timeout is 1 s); by then the agent has asked the lists, and either there
 * is a block, which the tables know, or there is none, and the SYN passes here, as do all later ones.
 *
 * What is said about a source: when it was last seen, and until when its SYNs are held. 0.9 s, so that a retransmission
 * after 1 s is not too early by the grain of the clocks; all that comes within is dropped too, else a second connection
 * of the same client would overtake the question. The agent may end it earlier by writing 0.
 *
 * It fails open:
 * - the agent writes, twice a second, until when it answers for sources of each family. When that is over, nothing is
 *   held, and nothing remembered: it is dead, or nobody is left whom it could ask
 * - a ring without room: the agent would not hear of it, so the SYN passes
 * - a budget for each second (rate.h): what is above it passes, and is not remembered. So forged sources fill the table,
 *   the ring and the agent's questions no faster than that. The table has room for all that the agent lets be held
 *   in a day, or else a source that it forgot were held a second time
 * - no room in the table: passes
 */
#pragma once
#include "rate.h"

struct seen_value {
	__u64 last;	/* jiffies of the last SYN that passed, or of the first */
	__u64 until;	/* SYNs are held until here */
};
_Static_assert(sizeof(struct seen_value) == 16, "struct seen_value is a pinned format");

struct hold {
	__u64 time;	/* jiffies that a first SYN is held; 0: nothing is */
	__u64 lately;	/* jiffies after which a source counts as new again */
};
_Static_assert(sizeof(struct hold) == 16, "struct hold is written by the agent");

volatile const struct hold hold_for;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct source);
	__type(value, struct seen_value);
} seen SEC(".maps");

struct first_event {
	__u32 src[4];	/* network order; IPv4 uses src[0] */
	__u32 ipv6;
	__u32 at;	/* jiffies, their low half */
};
_Static_assert(sizeof(struct first_event) == 24, "struct first_event is read by the agent");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 12);
} firsts SEC(".maps");

/* True if the packet is to be dropped this time. */
static __always_inline int hold(const struct source *key, const struct packet *p, struct admission_value *a, __u64 now)
{
	struct seen_value *seen_at, fresh = {.last = now, .until = now + hold_for.time};
	struct first_event e = {};
	__u64 scaled = now << RATE_SHIFT;

	/* Pass: no agent answers for it. */
	if (now >= *(volatile __u64 *)&a->alive[p->ipv6 & 1])
		return 0;
	seen_at = bpf_map_lookup_elem(&seen, key);
	if (seen_at && now - seen_at->last < hold_for.lately) {
		/* Drop: still being asked about. */
		if (now < *(volatile __u64 *)&seen_at->until)
			return 1;
		/* Pass: it has waited, now or earlier. */
		if (seen_at->last != now)
			seen_at->last = now;
		return 0;
	}
	/* Pass: enough new ones for this second. */
	if (spent(&a->asked, &a->budget, scaled))
		return 0;
	e.src[0] = p->src[0];
	e.src[1] = p->src[1];
	e.src[2] = p->src[2];
	e.src[3] = p->src[3];
	e.ipv6 = p->ipv6;
	e.at = now;
	/* Pass: the agent does not keep up. */
	if (bpf_ringbuf_output(&firsts, &e, sizeof(e), 0)) {
		__sync_fetch_and_add(&a->untold, 1);
		return 0;
	}
	take(&a->asked, &a->budget, scaled);
	/* Pass: no room. The agent asks for nothing. */
	if (bpf_map_update_elem(&seen, key, &fresh, BPF_ANY))
		return 0;
	/* Drop: the first time. */
	return 1;
}
