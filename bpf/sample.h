/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * One of about 1024 dropped packets is told to the agent, so that people can see who knocks right now, and on what.
 *
 * Which one: the n-th packet of its reason on its CPU, if frac(n * 0.618...) < 1/1024. That is a multiplication, and the
 * number is at hand; a random number costs as much as the whole look-up. A plain mask of n would see only one of two
 * sources whose packets take turns. The golden ratio is the number that no short rhythm keeps step with: picks are 610,
 * 987 or 1597 packets apart, so a source that is a part x of the packets is that part of the samples, whatever the order.
 *
 * The ring never makes anybody wait. When the agent does not read, it fills up, and what is lost is counted. No wake-up
 * either: the agent comes by itself a few times a second, while a flood would wake it ten thousand times.
 */
#pragma once
#include "packet.h"

#define SAMPLE_BITS 10

struct drop_event {
	__u64 time;	/* ns of CLOCK_MONOTONIC */
	__u32 src[4];	/* network order; IPv4 uses src[0] */
	__u32 reason;
	__u32 ifindex;
	__u16 port;	/* destination, network order; 0 if hidden */
	__u8 ipv6;
	__u8 pad[5];
};
_Static_assert(sizeof(struct drop_event) == 40, "struct drop_event is read by the agent");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 18);
} samples SEC(".maps");

/* Samples that found no room. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} samples_lost SEC(".maps");

static __always_inline int is_sample(__u64 nth) { return nth * 0x9e3779b97f4a7c15ULL >> (64 - SAMPLE_BITS) == 0; }

static __always_inline void tell_drop(const struct packet *p, __u32 reason, __u32 ifindex)
{
	struct drop_event e = {};
	__u32 zero = 0;
	__u64 *lost;

	e.time = bpf_ktime_get_ns();
	e.src[0] = p->src[0];
	e.src[1] = p->src[1];
	e.src[2] = p->src[2];
	e.src[3] = p->src[3];
	e.reason = reason;
	e.ifindex = ifindex;
	e.port = p->dst_port;
	e.ipv6 = p->ipv6;
	if (!bpf_ringbuf_output(&samples, &e, sizeof(e), BPF_RB_NO_WAKEUP))
		return;
	lost = bpf_map_lookup_elem(&samples_lost, &zero);
	if (lost)
		__sync_fetch_and_add(lost, 1);
}
