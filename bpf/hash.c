//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* Not shipped: the programs of the first version, on hashes, and with the generator of bench.h in front. See hash.h. */
#include "hash.h"
#include "packet.h"

/* It knew nothing of new connections and samples. */
#define may_open(reason) 0
#define refuse(data, end) ((void)(data), (void)(end), 0)
#define is_sample(nth) 0
#define tell_drop(p, reason, ifindex) ((void)(p))
#include "shield.h"

static __always_inline enum reason lpm_lookup(struct packet *p, __u8 scope)
{
	struct cidr_v4_key key = {.bits = 32, .addr = p->src[0]};

	return decide_cidr(bpf_map_lookup_elem(&cidr_v4, &key), scope, PASS_NOT_BLOCKED);
}

#define BENCH_LPM_LOOKUP(p, scope) lpm_lookup(p, scope)
#include "bench.h"

char licence[] SEC("license") = "Dual BSD/GPL";

SEC("xdp")
int mxshield_xdp(struct xdp_md *ctx)
{
	struct packet p = {};

	return count(shield((void *)(long)ctx->data, (void *)(long)ctx->data_end, &p)) ? XDP_DROP : XDP_PASS;
}

/* The trie alone, whatever the rest does. */
SEC("xdp")
int mxshield_lpm(struct xdp_md *ctx)
{
	struct packet p = {};
	enum reason reason = parse((void *)(long)ctx->data, (void *)(long)ctx->data_end, &p);
	__u8 scope;

	if (reason == UNDECIDED) {
		scope = port_scope(p.dst_port);
		reason = scope ? lpm_lookup(&p, scope) : PASS_OTHER_PORT;
	}
	return count(reason) ? XDP_DROP : XDP_PASS;
}

SEC("tcx/ingress")
int mxshield_tc(struct __sk_buff *skb)
{
	struct packet p = {};

	return count(shield((void *)(long)skb->data, (void *)(long)skb->data_end, &p)) ? TCX_DROP : TCX_NEXT;
}
