/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Local addresses that are not shielded: does the packet go to one of them?
 *
 * Constants of the program like the ports, and not a map: a host has few of them, the verifier removes the places
 * that are not used, and without any the whole of it, so that nobody pays who exempts nothing. New addresses are a new
 * program, put into the links in place. Nothing is pinned, so nothing can be stale or of another layout.
 *
 * Asked after the port test, so other traffic does not pay either: about one compare per configured prefix (IPv6 four).
 * The other side of it: the list is walked, so it is bounded, and a long list wants to be a CIDR.
 */
#pragma once
#include "packet.h"

#define MAX_EXEMPTS 16 /* of each family */

/* Network order; addr has no bits outside mask. */
struct exempt_v4 {
	__u32 addr;
	__u32 mask;
};
_Static_assert(sizeof(struct exempt_v4) == 8, "struct exempt_v4 is written by the agent");

struct exempt_v6 {
	__u32 addr[4];
	__u32 mask[4];
};
_Static_assert(sizeof(struct exempt_v6) == 32, "struct exempt_v6 is written by the agent");

volatile const __u32 exempts_v4, exempts_v6; /* how many are used */
volatile const struct exempt_v4 exempt_v4[MAX_EXEMPTS];
volatile const struct exempt_v6 exempt_v6[MAX_EXEMPTS];

static __always_inline int exempt(const struct packet *p)
{
	if (!p->ipv6) {
#pragma clang loop unroll(full)
		for (__u32 i = 0; i < MAX_EXEMPTS; i++) {
			if (i >= exempts_v4)
				break;
			if ((p->dst[0] & exempt_v4[i].mask) == exempt_v4[i].addr)
				return 1;
		}
		return 0;
	}
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_EXEMPTS; i++) {
		__u32 other = 0;

		if (i >= exempts_v6)
			break;
#pragma clang loop unroll(full)
		for (int word = 0; word < 4; word++)
			other |= (p->dst[word] & exempt_v6[i].mask[word]) ^ exempt_v6[i].addr[word];
		if (!other)
			return 1;
	}
	return 0;
}
