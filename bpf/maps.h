/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the agent and the programs share: the closed list of reasons, the entry, the maps.
 *
 * All maps are pinned, so blocks and totals outlive agent and program. A program that is replaced (new ports, new
 * version) takes over the maps of the old one. The structs are therefore a format: change one and the agent refuses
 * the old pin by name instead of misreading it.
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
	REASONS = 15,
};

/* Room for reasons to come, so that an upgrade fits the pinned totals. */
#define MAX_REASONS 64
_Static_assert(REASONS <= MAX_REASONS, "the counters map is too small");

/* Scope bits: which group of protected ports an entry is about. No bit at all is a hole. */
enum {
	SCOPE_MX = 1,
	SCOPE_SUBMISSION = 2,
	SCOPE_ALL = SCOPE_MX | SCOPE_SUBMISSION,
};

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
