//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * For BenchmarkVerdict only; never shipped, never attached. The shipped function, fed with another source at each run.
 *
 * Repeating one packet would keep its one entry in the first-level cache and hide nearly the whole cost of a big table.
 * So the program itself draws a source from all of IPv4 and writes it into the packet: the blocked ones are
 * source(0) ... source(size-1), and source() is a bijection, so all others are innocent.
 */
#include "shield.c"

enum { BENCH_DROP, BENCH_PARSE, BENCH_HASH };

volatile const __u32 bench_what;
volatile const __u32 bench_miss;
volatile const __u32 bench_size;
__u32 bench_run;

/* Each step can be undone, so no two inputs give one output. */
static __always_inline __u32 source(__u32 x)
{
	x ^= x >> 16;
	x *= 0x7feb352d;
	x ^= x >> 15;
	x *= 0x846ca68b;
	x ^= x >> 16;
	return x;
}

SEC("xdp")
int mxshield_bench(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ipv4hdr *ip = data + sizeof(struct ethhdr);
	struct packet p = {};
	__u64 draw, of = bench_miss ? (1ULL << 32) - bench_size : bench_size;

	if ((void *)(ip + 1) > end)
		return XDP_PASS;
	draw = source(bench_run++) * of >> 32;
	ip->src = source((bench_miss ? bench_size : 0) + (__u32)draw);

	switch (bench_what) {
	case BENCH_PARSE:
		if (parse(data, end, &p) != UNDECIDED || !port_scope(p.dst_port))
			return XDP_PASS;
		return XDP_DROP;
	case BENCH_HASH:
		return count(shield(data, end)) ? XDP_DROP : XDP_PASS;
	}
	return XDP_DROP;
}
