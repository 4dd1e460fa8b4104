/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What limits and hold share: how a source is named, who is allowed, and the one record of all CPUs.
 */
#pragma once
#include "clock.h"
#include "packet.h"

/* IPv4: the address; IPv6: its upper half. As in the packet. */
struct source {
	__u32 net[2];
	__u32 ipv6;
};
_Static_assert(sizeof(struct source) == 12, "struct source is a pinned format");

/* How many a second; see rate.h. */
struct rate {
	__u64 each;	/* what one costs: jiffies << RATE_SHIFT; 0: no limit */
	__u64 ahead;	/* (burst - 1) * each */
};
_Static_assert(sizeof(struct rate) == 16, "struct rate is written by the agent");

/* The first line is written by new connections, the second hardly ever. */
struct admission_value {
	__u64 total;	/* bucket of all new connections; see rate.h */
	__u64 asked;	/* bucket of first SYNs that the agent is told; see hold.h */
	__u64 untold;	/* first SYNs that passed because the ring was full */
	__u64 pad[5];

	__u64 alive[2];	/* IPv4, IPv6: jiffies until which the agent answers for what is held */
	__u64 frozen;	/* for tests: the time, in jiffies; 0 otherwise */
	struct rate budget;	/* of first SYNs that are held */
	__u64 pad2[3];
};
_Static_assert(sizeof(struct admission_value) == 128, "struct admission_value is shared with the agent");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct admission_value);
} admission SEC(".maps");

/*
 * Who is allowed, and never limited or held: a prefix that is in it allows all that it holds, so there are no holes and
 * the longest match is as good as any. One trie for both families, keyed as struct source and a trie of bits goes: first
 * the family, then the address.
 */
struct allowed_key {
	__u32 bits;	/* 32 for the family, and those of the prefix */
	__u32 ipv6;
	__u32 addr[4];
};
_Static_assert(sizeof(struct allowed_key) == 24, "struct allowed_key is written by the agent");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct allowed_key);
	__type(value, __u32);
} allowed SEC(".maps");

static __always_inline int is_allowed(const struct packet *p)
{
	struct allowed_key key = {.bits = 32 + 128, .ipv6 = p->ipv6};

	if (!p->ipv6)
		key.bits = 32 + 32;
	key.addr[0] = p->src[0];
	key.addr[1] = p->src[1];
	key.addr[2] = p->src[2];
	key.addr[3] = p->src[3];
	return bpf_map_lookup_elem(&allowed, &key) != 0;
}
