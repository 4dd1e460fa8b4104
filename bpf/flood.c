//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * For benchmarks only; never shipped. Run by BPF_PROG_TEST_RUN with live frames (5.18), it puts packets with random sources
 * on an interface, as fast as a network card.
 */
#include "source.h"

char licence[] SEC("license") = "Dual BSD/GPL";

volatile const __u32 flood_to;		/* interface */
volatile const __u32 flood_first;	/* source(flood_first) and the flood_many after it */
volatile const __u64 flood_many;
volatile const __u32 flood_sum;		/* of the 16-bit words of the IPv4 header without source and checksum */

static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;

SEC("xdp")
int mxshield_flood(struct xdp_md *ctx)
{
	struct ipv4hdr *ip = (void *)(long)ctx->data + sizeof(struct ethhdr);
	__u32 sum = flood_sum;

	if ((void *)(ip + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	ip->src = source(flood_first + draw(flood_many));
	sum += (ip->src & 0xffff) + (ip->src >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	ip->check = ~sum;
	return bpf_redirect(flood_to, 0);
}
