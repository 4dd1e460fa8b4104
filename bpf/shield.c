//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * mxshield: drop packets to the mail ports from blocked sources, before the kernel spends an skb on them.
 *
 * Two programs around one function. mxshield_xdp is the one that counts: native XDP, or generic. mxshield_tc is for
 * interfaces whose driver has no XDP, and runs at the tcx hook (6.6): later, on an skb, but without generic XDP's
 * copying of it.
 */
#include "admit.h"
#include "decide.h"
#include "sample.h"
#include "shield.h"
#include "uapi.h"

/* Dual, so that GPL-only helpers may be used one day and the source may be taken under BSD. */
char licence[] SEC("license") = "Dual BSD/GPL";

/*
 * xdp.frags: jumbo frames come in several buffers, and drivers refuse programs that do not say they can live with
 * that. We can: the headers are in the first buffer. The agent drops the flag on kernels before 5.18.
 */
SEC("xdp.frags")
int mxshield_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct packet p = {};
	enum reason reason = shield(data, end, &p);
	enum reason refused = 0;
	__u64 nth;

	if (may_open(reason))
		refused = refuse(AGAIN(ctx->data), AGAIN(ctx->data_end));
	if (refused)
		reason = refused;
	nth = count(reason);
	if (!nth)
		return XDP_PASS;
	if (is_sample(nth))
		tell_drop(&p, reason, ctx->ingress_ifindex);
	return XDP_DROP;
}

/* At this hook the outer VLAN tag has gone into the skb's metadata already; what is left is parsed as above. */
SEC("tcx/ingress")
int mxshield_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct packet p = {};
	enum reason reason = parse(data, end, &p);
	enum reason refused = 0;
	__u64 nth;

	/*
	 * Only the linear part can be read. Drivers put the headers there; when one does not, gather the packet and look
	 * again. Out of memory: go on with what was found.
	 */
	if ((reason == PASS_TRUNCATED || p.hidden) && (__u64)(end - data) < skb->len && !bpf_skb_pull_data(skb, skb->len)) {
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		p = (struct packet){};
		reason = parse(data, end, &p);
	}
	reason = judge(reason, &p);
	if (may_open(reason))
		refused = refuse(AGAIN(skb->data), AGAIN(skb->data_end));
	if (refused)
		reason = refused;
	nth = count(reason);
	if (!nth)
		return TCX_NEXT;
	if (is_sample(nth))
		tell_drop(&p, reason, skb->ifindex);
	return TCX_DROP;
}

/*
 * Never attached: the agent runs it to learn HZ and to compare the clocks. Answers in the packet: jiffies, and ns of
 * CLOCK_MONOTONIC, which like jiffies stands still during suspend.
 */
SEC("xdp")
int mxshield_clock(struct xdp_md *ctx)
{
	__u64 *answer = (void *)(long)ctx->data;

	if ((void *)(answer + 2) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	answer[0] = bpf_jiffies64();
	answer[1] = bpf_ktime_get_ns();
	return XDP_PASS;
}
