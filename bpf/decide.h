/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The decision: what do the tables say about a source and a scope?
 *
 * The longest prefix that contains the source decides. The exact tables (IPv4 /32, IPv6 /64) are asked first because
 * nearly all entries are there and a trie costs ten times as much; the agent keeps a /64 out of the exact table while
 * something longer lies under it, so "exact first" and "longest first" are the same.
 *
 * An exact entry that has ended is as good as gone: the CIDRs decide. Among the CIDRs the longest match decides even
 * when it has ended: the trie gives no second longest. So a short block inside a longer-lived wider one opens a gap
 * when it ends, until the agent removes it; agents write the effective state, in which that does not occur.
 *
 * A /64 that moves between the tables is written to the new one, then moves goes up, then it leaves the old one, as in
 * a move inside a table. From exact to CIDR we meet it in one or the other, as exact is asked first. From CIDR to exact
 * we can look into the exact table too early and into the trie too late; that is seen by moves, as table.h argues, and
 * we look again. Measured on two CPUs, one block moved back and forth some 50,000 times a second: without the second
 * look 1 to 3 packets in 2 million passed, with it 0 in 10 million.
 *
 * The clock is read only after a hit.
 */
#pragma once
#include "table.h"

/*
 * How often the tables are looked into while entries move. The first look is in line; the others, which hardly ever
 * come, are functions for the verifier to check once, and not on each of the ways that lead to the first. That halves
 * the time that a new program takes.
 */
#ifndef MAX_LOOKS /* the broken variant of the tests sets it to 1 */
#define MAX_LOOKS 4
#endif

/* What the exact table says, by the until it has; UNDECIDED if it has no word in it, PASS_EXPIRED if it had. */
static __always_inline enum reason decide_exact(struct state_value *st, __u32 until, __u32 *drops, __u8 scope)
{
	if (!until)
		return UNDECIDED;
	if (ended(until, st))
		return PASS_EXPIRED;
	/* Pass: the source is blocked for other ports, and nothing wider overrules that. */
	if (!(until & scope))
		return PASS_OUT_OF_SCOPE;
	/* Atomic: one entry is hit on several CPUs at once, and plain ++ loses a tenth there. */
	if (drops)
		__sync_fetch_and_add(drops, 1);
	/* Drop: this very source is blocked. */
	return DROP_EXACT;
}

static __always_inline enum reason decide_cidr(struct state_value *st, struct cidr_value *e, __u8 scope, enum reason otherwise)
{
	__u32 until;

	if (!e)
		return otherwise;
	until = *(volatile __u32 *)&e->until;
	/* Pass: an exception in a wider block. Asked before the clock, holes are the agent's allows. */
	if (!(until & SCOPE_ALL))
		return PASS_HOLE;
	/* Pass: the block has ended, the agent has not swept it yet (or is dead). */
	if (ended(until, st))
		return PASS_EXPIRED;
	/* Pass: the block is about other ports. */
	if (!(until & scope))
		return PASS_OUT_OF_SCOPE;
	__sync_fetch_and_add(&e->drops, 1);
	/* Drop: the longest CIDR around the source is blocked. */
	return DROP_CIDR;
}

static __always_inline int is_near(__u32 first_word, __u32 bit)
{
	__u32 index = first_word + (bit >> 6);
	__u64 *word = bpf_map_lookup_elem(&cidr_near, &index);

	return word && *(volatile __u64 *)word >> (bit & 63) & 1;
}

static __always_inline enum reason look_ipv4(struct state_value *st, __u32 addr, __u8 scope, int *again)
{
	__u32 *drops = 0, until = find_v4(st, addr, &drops, again);

	return decide_exact(st, until, drops, scope);
}

/* The looks after the first. A function of its own, like the one for IPv6: see MAX_LOOKS. */
__noinline __u32 look_ipv4_again(__u32 addr, __u32 scope)
{
	__u32 zero = 0;
	struct state_value *st = bpf_map_lookup_elem(&state, &zero);
	enum reason reason = UNDECIDED;

	if (!st)
		return reason;
#pragma clang loop unroll(full)
	for (int i = 1; i < MAX_LOOKS; i++) {
		int again = 0;

		reason = look_ipv4(st, addr, scope, &again);
		if (!again)
			break;
	}
	return reason;
}

static __always_inline enum reason decide_ipv4(struct state_value *st, struct packet *p, __u8 scope)
{
	struct cidr_v4_key key = {.bits = 32, .addr = p->src[0]};
	int again = 0;
	enum reason reason = look_ipv4(st, p->src[0], scope, &again);

	if (MAX_LOOKS > 1 && again)
		reason = look_ipv4_again(p->src[0], scope);
	if (reason != UNDECIDED && reason != PASS_EXPIRED)
		return reason;
	/* Pass: in no table. */
	if (reason == UNDECIDED)
		reason = PASS_NOT_BLOCKED;
	if (!st->cidrs_v4 || !is_near(0, __builtin_bswap32(p->src[0]) >> 8))
		return reason;
	return decide_cidr(st, bpf_map_lookup_elem(&cidr_v4, &key), scope, reason);
}

static __always_inline enum reason look_ipv6_once(struct state_value *st, const __u32 *src, __u8 scope, int *again)
{
	struct cidr_v6_key key = {.bits = 128, .addr = {src[0], src[1], src[2], src[3]}};
	/* Two halves: 64-bit loads from a packet are unaligned. Little endian, so the bytes keep their order. */
	__u64 net = (__u64)src[1] << 32 | src[0];
	__u32 *drops = 0;
	__u32 until = find_v6(st, net, &drops, again);
	enum reason reason = decide_exact(st, until, drops, scope);

	if (reason != UNDECIDED && reason != PASS_EXPIRED)
		return reason;
	/* Pass: in no table. */
	if (reason == UNDECIDED)
		reason = PASS_NOT_BLOCKED;
	if (!*(volatile __u32 *)&st->cidrs_v6 || !is_near(NEAR_V4_WORDS, src[0] * 0x9e3779b1U >> 12))
		return reason;
	return decide_cidr(st, bpf_map_lookup_elem(&cidr_v6, &key), scope, reason);
}

/* One look; again is set unless it settled the matter: found, one way or the other; or not found, and nothing moved meanwhile. */
static __always_inline enum reason look_ipv6(struct state_value *st, const __u32 *src, __u8 scope, int *again)
{
	__u64 moves = *(volatile __u64 *)&st->moves;
	enum reason reason = look_ipv6_once(st, src, scope, again);

	if (reason == DROP_EXACT || reason == DROP_CIDR)
		*again = 0;
	else if (moves != *(volatile __u64 *)&st->moves)
		*again = 1;
	return reason;
}

__noinline __u32 look_ipv6_again(__u32 src0, __u32 src1, __u32 src2, __u32 src3, __u32 scope)
{
	__u32 zero = 0, src[4] = {src0, src1, src2, src3};
	struct state_value *st = bpf_map_lookup_elem(&state, &zero);
	enum reason reason = PASS_NOT_BLOCKED;

	if (!st)
		return reason;
#pragma clang loop unroll(full)
	for (int i = 1; i < MAX_LOOKS; i++) {
		int again = 0;

		reason = look_ipv6(st, src, scope, &again);
		if (!again)
			break;
	}
	return reason;
}

static __always_inline enum reason decide_ipv6(struct state_value *st, struct packet *p, __u8 scope)
{
	int again = 0;
	enum reason reason = look_ipv6(st, p->src, scope, &again);

	if (MAX_LOOKS > 1 && again)
		reason = look_ipv6_again(p->src[0], p->src[1], p->src[2], p->src[3], scope);
	return reason;
}

static __always_inline enum reason decide(struct packet *p, __u8 scope)
{
	__u32 zero = 0;
	struct state_value *st = bpf_map_lookup_elem(&state, &zero);

	/* Pass: cannot happen, an array has all its elements; the verifier wants it said. */
	if (!st)
		return PASS_NOT_BLOCKED;
	return p->ipv6 ? decide_ipv6(st, p, scope) : decide_ipv4(st, p, scope);
}
