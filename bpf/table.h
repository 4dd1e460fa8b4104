/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The decision: what do the tables say about a source and a scope?
 *
 * The longest prefix that contains the source decides. The exact tables (IPv4 /32, IPv6 /64) are asked first because
 * nearly all entries are there and a hash costs a fifth of a trie; the agent keeps a /64 out of the exact table while
 * something longer lies under it, so "exact first" and "longest first" are the same.
 *
 * An exact entry that has ended is as good as gone: the CIDRs decide. Among the CIDRs the longest match decides even
 * when it has ended: the trie gives no second longest. So a short block inside a longer-lived wider one opens a gap
 * when it ends, until the agent removes it; agents write the effective state, in which that does not occur.
 *
 * A block that moves between the tables is written to the new one, then moves goes up, then it leaves the old one. From
 * exact to CIDR we meet it in one or the other, as exact is asked first. From CIDR to exact we can look into the exact
 * table too early and into the trie too late; that is seen by moves, and we look again. Measured on two CPUs, one block
 * moved back and forth some 50,000 times a second: without the second look 1 to 3 packets in 2 million passed, with it 0 in
 * 10 million. This relies on loads staying in order, as they do on x86-64; on arm64 one packet may pass, and its
 * retransmission meets the entry.
 *
 * The clock is read only after a hit: reading it costs more than the miss of everybody else.
 */
#pragma once
#include "packet.h"

static __always_inline int ended(const struct entry *e)
{
	return e->until != NO_END && bpf_ktime_get_boot_ns() >= e->until;
}

static __always_inline enum reason drop(struct entry *e, enum reason reason)
{
	/* Atomic: one entry is hit on several CPUs at once, and plain ++ loses a tenth there. */
	__sync_fetch_and_add(&e->drops, 1);
	return reason;
}

/* What the exact table says; UNDECIDED if it has no word in it, PASS_EXPIRED if it had. */
static __always_inline enum reason decide_exact(struct entry *e, __u8 scope)
{
	if (!e)
		return UNDECIDED;
	if (ended(e))
		return PASS_EXPIRED;
	/* Pass: the source is blocked for other ports, and nothing wider overrules that. */
	if (!(e->scope & scope))
		return PASS_OUT_OF_SCOPE;
	/* Drop: this very source is blocked. */
	return drop(e, DROP_EXACT);
}

static __always_inline enum reason decide_cidr(struct entry *e, __u8 scope, enum reason otherwise)
{
	if (!e)
		return otherwise;
	/* Pass: an exception in a wider block. Asked before the clock, holes are the agent's allows. */
	if (!e->scope)
		return PASS_HOLE;
	/* Pass: the block has ended, the agent has not swept it yet (or is dead). */
	if (ended(e))
		return PASS_EXPIRED;
	/* Pass: the block is about other ports. */
	if (!(e->scope & scope))
		return PASS_OUT_OF_SCOPE;
	/* Drop: the longest CIDR around the source is blocked. */
	return drop(e, DROP_CIDR);
}

static __always_inline enum reason decide_ipv4(struct packet *p, struct state_value *st, __u8 scope)
{
	struct cidr_v4_key key = {.bits = 32, .addr = p->src[0]};
	enum reason reason = decide_exact(bpf_map_lookup_elem(&exact_v4, &key.addr), scope);

	if (reason != UNDECIDED && reason != PASS_EXPIRED)
		return reason;
	/* Pass: in no table. */
	if (reason == UNDECIDED)
		reason = PASS_NOT_BLOCKED;
	if (!st->cidrs_v4)
		return reason;
	return decide_cidr(bpf_map_lookup_elem(&cidr_v4, &key), scope, reason);
}

static __always_inline enum reason decide_ipv6(struct packet *p, struct state_value *st, __u8 scope)
{
	struct cidr_v6_key key = {.bits = 128, .addr = {p->src[0], p->src[1], p->src[2], p->src[3]}};
	/* Two halves: 64-bit loads from a packet are unaligned. Little endian, so the bytes keep their order. */
	__u64 net = (__u64)p->src[1] << 32 | p->src[0];
	enum reason reason = decide_exact(bpf_map_lookup_elem(&exact_v6, &net), scope);

	if (reason != UNDECIDED && reason != PASS_EXPIRED)
		return reason;
	/* Pass: in no table. */
	if (reason == UNDECIDED)
		reason = PASS_NOT_BLOCKED;
	if (!st->cidrs_v6)
		return reason;
	return decide_cidr(bpf_map_lookup_elem(&cidr_v6, &key), scope, reason);
}

#define MAX_LOOKS 3

static __always_inline enum reason decide(struct packet *p, __u8 scope)
{
	enum reason reason = PASS_NOT_BLOCKED;
	__u32 zero = 0;
	struct state_value *st = bpf_map_lookup_elem(&state, &zero);

	/* Pass: cannot happen, an array has all its elements; the verifier wants it said. */
	if (!st)
		return PASS_NOT_BLOCKED;
	/* Only /64 blocks move: an IPv4 address is in one table for good, or becomes a hole, which passes. */
	if (!p->ipv6)
		return decide_ipv4(p, st, scope);
	for (int i = 0; i < MAX_LOOKS; i++) {
		__u32 moves = *(volatile __u32 *)&st->moves;

		reason = decide_ipv6(p, st, scope);
		/* Found, one way or the other; or not found, and nothing moved meanwhile: the usual case. */
		if (reason == DROP_EXACT || reason == DROP_CIDR || moves == *(volatile __u32 *)&st->moves)
			break;
	}
	return reason;
}
