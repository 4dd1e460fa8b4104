/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Not shipped: the tables of the first version, hashes with a 24-byte entry. They stay here so that the benchmarks have
 * something to compare with, and so that the tests can show that pins of that version are taken over.
 */
#pragma once
#include "packet.h"

#define NO_END (~0ULL)

struct entry {
	__u64 until;	/* ns of CLOCK_BOOTTIME; NO_END */
	__u64 drops;	/* packets dropped because of this entry; atomic add here, the agent only reads and carries over */
	__u8 scope;	/* SCOPE_ bits */
	__u8 pad[7];
};
_Static_assert(sizeof(struct entry) == 24, "struct entry is a pinned format");

/* LPM keys begin with the number of bits that count. Addresses are in network order. */
struct cidr_v4_key {
	__u32 bits;
	__u32 addr;
};
_Static_assert(sizeof(struct cidr_v4_key) == 8, "struct cidr_v4_key is a pinned format");

struct cidr_v6_key {
	__u32 bits;
	__u32 addr[4];
};
_Static_assert(sizeof(struct cidr_v6_key) == 20, "struct cidr_v6_key is a pinned format");

/* What the agent tells the running program. One record. */
struct state_value {
	__u32 cidrs_v4;	/* CIDRs loaded; 0 saves the lookup (an LPM miss costs several hash lookups) */
	__u32 cidrs_v6;
	__s64 clock;	/* wall minus boot time in ns when the entries were written; the agent's, not read here */
	__u32 moves;	/* goes up while an entry stands in both tables, before it leaves the old one; see table.h */
	__u32 pad;
};
_Static_assert(sizeof(struct state_value) == 24, "struct state_value is a pinned format");

/*
 * No preallocation for the exact tables: a table for a million sources costs nothing while it is empty, and elements
 * are freed by RCU, so a program never sees an element turn into another one under its hands.
 * max_entries are defaults; the agent sets its own.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct entry);
} exact_v4 SEC(".maps");

/* Key: the upper 64 bits of the address as they stand in the packet. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct entry);
} exact_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_v4_key);
	__type(value, struct entry);
} cidr_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_v6_key);
	__type(value, struct entry);
} cidr_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct state_value);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REASONS);
	__type(key, enum reason);
	__type(value, __u64);
} counters SEC(".maps");

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
