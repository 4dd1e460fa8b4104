//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * mxshield: drop packets to the mail ports from blocked sources, before the kernel spends an skb on them.
 *
 * Two programs around one function. mxshield_xdp is the one that counts: native XDP, or generic. mxshield_tc is for
 * interfaces whose driver has no XDP, and runs at the tcx hook (6.6): later, on an skb, but without generic XDP's
 * copying of it.
 */
#include "classify.h"
#include "exempt.h"
#include "maps.h"
#include "packet.h"
#include "table.h"
#include "uapi.h"

/* Dual, so that GPL-only helpers may be used one day and the source may be taken under BSD. */
char licence[] SEC("license") = "Dual BSD/GPL";

/* One packet, one reason: Ethernet -> IP -> TCP -> protected port -> not exempt -> exact -> CIDR -> pass. */
static __always_inline enum reason shield(void *data, void *end)
{
	struct packet p = {};
	__u8 scope = SCOPE_ALL;
	enum reason reason = parse(data, end, &p);

	if (reason != UNDECIDED)
		return reason;
	if (!p.hidden)
		scope = port_scope(p.dst_port);
	/* Pass: not a mail port. Nearly all traffic that is not mail leaves here, before any table. */
	if (!scope)
		return PASS_OTHER_PORT;
	/* Pass: the config says that this local address is not shielded. */
	if (exempt(&p))
		return PASS_EXEMPT;
	reason = decide(&p, scope);
	/* The port is out of reach: dropped only if the source is blocked for any port. See packet.h. */
	if (p.hidden)
		return reason == DROP_EXACT || reason == DROP_CIDR ? DROP_EXT_HEADERS : PASS_EXT_HEADERS;
	return reason;
}

/* Counts the packet, under one reason, on this CPU's own counter. True if it is to be dropped. */
static __always_inline int count(enum reason reason)
{
	__u64 *n = bpf_map_lookup_elem(&counters, &reason);

	if (n)
		(*n)++;
	return reason == DROP_EXACT || reason == DROP_CIDR || reason == DROP_EXT_HEADERS;
}

/*
 * xdp.frags: jumbo frames come in several buffers, and drivers refuse programs that do not say they can live with
 * that. We can: the headers are in the first buffer. The agent drops the flag on kernels before 5.18.
 */
SEC("xdp.frags")
int mxshield_xdp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	return count(shield(data, end)) ? XDP_DROP : XDP_PASS;
}

/* At this hook the outer VLAN tag has gone into the skb's metadata already; what is left is parsed as above. */
SEC("tcx/ingress")
int mxshield_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	enum reason reason = shield(data, end);

	/*
	 * Only the linear part can be read. Drivers put the headers there; when one does not, gather the packet and look
	 * again. Out of memory: pass, by the reason already found.
	 */
	if ((reason == PASS_TRUNCATED || reason == PASS_EXT_HEADERS) && (__u64)(end - data) < skb->len &&
	    !bpf_skb_pull_data(skb, skb->len)) {
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		reason = shield(data, end);
	}
	return count(reason) ? TCX_DROP : TCX_NEXT;
}
