/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the agent and the programs share: lines, entries, maps.
 *
 * All maps are pinned, so blocks and totals outlive agent and program. The structs are therefore a format: change one
 * and the agent refuses the old pin by name, or builds a new generation out of it, instead of misreading it.
 */
#pragma once
#include "reason.h"

/*
 * When a block ends and what it is about, in one word: bits 0 and 1 scope, bit 2 reserved (always 0), bits 3 to 31 time
 * in units of clock.h. In the exact tables a word of 0 is an empty slot: an entry there always has a scope.
 */
#define TIME_SHIFT 3
#define TIME_NO_END 0x1fffffff

/*
 * The exact tables are arrays of lines of 64 bytes, as the cache has them, so a source costs one or two cache misses.
 * How a key finds its lines is told in table.h. Drops are the packets dropped because of the entry, modulo 2^32; the
 * agent keeps what is more. The arrays are mapped into the agent, which is their only writer but for the drops.
 */
#define SLOTS_V4 5
#define SLOTS_V6 4

struct line_v4 {
	__u64 slot[SLOTS_V4];	/* low half address in network order, high half until: written and read in one piece */
	__u32 drops[SLOTS_V4];
	__u32 pad;
};
_Static_assert(sizeof(struct line_v4) == 64, "struct line_v4 is a pinned format, and a cache line");

struct line_v6 {
	__u64 key[SLOTS_V6];	/* upper half of the address as it stands in the packet */
	__u32 until[SLOTS_V6];
	__u32 drops[SLOTS_V6];
};
_Static_assert(sizeof(struct line_v6) == 64, "struct line_v6 is a pinned format, and a cache line");

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

struct cidr_value {
	__u32 until;	/* as in the lines; without scope it is a hole */
	__u32 pad;
	__u64 drops;
};
_Static_assert(sizeof(struct cidr_value) == 16, "struct cidr_value is a pinned format");

/* Random numbers of one exact table; see table.h. */
struct seeds {
	__u64 add_low;
	__u64 mul;	/* odd */
	__u64 odd;	/* odd */
};

/*
 * What the agent tells the running program. One record of two cache lines: what every packet needs and what seldom
 * changes; and behind it what changes all the time while the agent writes, so that innocents do not wait for that line.
 */
struct state_value {
	struct seeds v4;
	struct seeds v6;
	__u32 lines_v4;	/* also the words of the Bloom filter */
	__u32 lines_v6;
	__u32 cidrs_v4;	/* CIDRs loaded; 0 saves looking for them */
	__u32 cidrs_v6;

	__u64 moves;	/* goes up while an entry stands in two places, before it leaves the old one; see table.h */
	__s64 clock;	/* wall time minus jiffies since boot in ns, when the entries were written; not read here */
	__u64 skew;	/* for tests: added to the clock, in its units; 0 otherwise */
	__u64 pad[5];
};
_Static_assert(sizeof(struct state_value) == 128, "struct state_value is a pinned format");

/* max_entries of the tables are the agent's to set. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct line_v4);
} exact_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct line_v6);
} exact_v6 SEC(".maps");

/* Bloom filters before the exact tables: as many words as the table has lines. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} bloom_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} bloom_v6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_v4_key);
	__type(value, struct cidr_value);
} cidr_v4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 1 << 18);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct cidr_v6_key);
	__type(value, struct cidr_value);
} cidr_v6 SEC(".maps");

/*
 * Which parts of the address space some CIDR touches: a trie costs ten times what this costs, and few packets need it.
 * IPv4: a bit for each /24, in order. IPv6: a bit for each of 2^20 values of a hash of the upper 32 bits; something wider
 * than a /32 sets them all. A bit may be stale, never missing.
 */
#define NEAR_V4_WORDS (1 << 18)
#define NEAR_V6_WORDS (1 << 14)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NEAR_V4_WORDS + NEAR_V6_WORDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} cidr_near SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct state_value);
} state SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_REASONS);
	__type(key, enum reason);
	__type(value, __u64);
} counters SEC(".maps");
