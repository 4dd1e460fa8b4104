/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * For tests and benchmarks only; never shipped, never attached. The shipped function, fed with another source at each run.
 *
 * Repeating one packet would keep its one entry in the first-level cache and hide nearly the whole cost of a big table.
 * So the program itself draws a source from all of IPv4 and writes it into the packet; see source.h. In an IPv6 packet it
 * goes into the second 32 bits of the source, so each is a /64 of one /32.
 */
#pragma once
#include "shield.h"
#include "source.h"

enum { BENCH_DROP, BENCH_PARSE, BENCH_TABLE, BENCH_LPM, BENCH_STRESS, BENCH_LOAD };

volatile const __u32 bench_what;
volatile const __u32 bench_v6;
volatile const __u32 bench_miss;
volatile const __u32 bench_size;
volatile const __u32 bench_innocent;	/* stress: source(i) is innocent for all i from here on */
__u64 bench_missed;	/* stress: blocked sources that passed */
__u64 bench_hurt;	/* stress: innocents that were dropped */

static __always_inline int stress(void *data, void *end, struct ipv4hdr *ip)
{
	__u32 run = bench_run;
	struct packet p = {};
	int dropped;

	if (run & 1)
		ip->src = source(draw(bench_size));
	else
		ip->src = source(bench_innocent + draw((1ULL << 32) - bench_innocent));
	dropped = count(shield(data, end, &p));
	if (run & 1 && !dropped)
		bench_missed++;
	if (!(run & 1) && dropped)
		bench_hurt++;
	return XDP_PASS;
}

#ifndef BENCH_LPM_LOOKUP
#define BENCH_LPM_LOOKUP(p, scope) PASS_NOT_BLOCKED
#endif
#ifndef BENCH_RANDOM_WORD
#define BENCH_RANDOM_WORD(x) (x)
#endif

/* The end of every packet, as in shield.c. */
static __always_inline int settle(struct xdp_md *ctx, enum reason reason, const struct packet *p)
{
	enum reason refused = 0;
	__u64 nth;

	if (may_open(reason))
		refused = refuse(AGAIN(ctx->data), AGAIN(ctx->data_end));
	if (refused)
		reason = refused;
	nth = count(reason);
	if (nth && is_sample(nth))
		tell_drop(p, reason, 0);
	return nth ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int mxshield_bench(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv4hdr *ip = data + sizeof(struct ethhdr);
	struct packet p = {};
	enum reason reason;
	__u32 src;
	__u8 scope;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	if (bench_what == BENCH_STRESS)
		return stress(data, end, ip);
	src = source((bench_miss ? bench_size : 0) + draw(bench_miss ? (1ULL << 32) - bench_size : bench_size));
	if (bench_v6) {
		struct ipv6hdr *ip6 = (void *)ip;

		if ((void *)(ip6 + 1) > end)
			return XDP_PASS;
		ip6->src[1] = src;
	} else {
		ip->src = src;
	}

	switch (bench_what) {
	case BENCH_PARSE:
		if (parse(data, end, &p) != UNDECIDED || !port_scope(p.dst_port))
			return XDP_PASS;
		return XDP_DROP;
	case BENCH_LOAD:
		if (parse(data, end, &p) != UNDECIDED || !port_scope(p.dst_port))
			return XDP_PASS;
		/*
		 * One cache miss: the next source depends on the word, so that the processor cannot fetch the words of several
		 * packets at once. Between real packets it has other work than the next packet.
		 */
		bench_run += (__u32)BENCH_RANDOM_WORD(src) & 1;
		return XDP_DROP;
	case BENCH_TABLE:
		return settle(ctx, shield(data, end, &p), &p);
	case BENCH_LPM:
		reason = parse(data, end, &p);
		if (reason == UNDECIDED) {
			scope = port_scope(p.dst_port);
			reason = scope ? BENCH_LPM_LOOKUP(&p, scope) : PASS_OTHER_PORT;
		}
		return settle(ctx, reason, &p);
	}
	return XDP_DROP;
}
