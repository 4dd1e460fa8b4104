/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Limits on new connections: so many SYNs a second from one source, so many from all together.
 *
 * A token bucket in one word (the "virtual scheduling" of ITU-T I.371, GCRA). The word is the time at which the bucket
 * will be full again. A packet moves it on by what one costs; if it is further ahead of the clock than the burst allows,
 * the packet is one too many, and moves nothing. After silence it lies in the past, and the bucket is full.
 *
 *	burst of n, one each e:  pass if word - now <= (n - 1) * e, then word = max(word, now) + e
 *
 * Exact on one CPU: n at once, then one each e. Several CPUs share the word without a lock, with what 5.10 has (an atomic
 * add that returns nothing): between the look and the add of one CPU each other CPU can pass one packet, which has been
 * added to the word all the same, so the rate stays right and a burst can be longer by the number of CPUs. Only the step
 * from the past to the present is a plain store, and may undo the adds of the same instant; once per silence.
 *
 * The total is one bucket for all CPUs, not a share for each: a share would be wrong as soon as the network card gives
 * one queue more than others. It costs little just when it matters: in a flood it is spent, and who finds it spent only
 * reads, which CPUs can do side by side; it is written at most as often per second as the limit says. The total is asked
 * first, so that a flood from forged sources does not even touch the table of sources. A packet that its own limit
 * stops takes nothing from the total.
 *
 * The table of sources is an LRU of fixed size. More sources than it has places, within seconds, means that some begin
 * with a full bucket again: forged floods are the total's business. It is never read by the agent, and nothing that is
 * in it leads to a block. Time is in jiffies, shifted up so that more than one per jiffy can be told.
 */
#pragma once
#include "admission.h"

#define RATE_SHIFT 20

volatile const struct rate limit_source, limit_total;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1);
	__type(key, struct source);
	__type(value, __u64);
} buckets SEC(".maps");

static __always_inline int spent(const __u64 *bucket, const volatile struct rate *rate, __u64 now)
{
	__u64 full = *(const volatile __u64 *)bucket;

	return full > now && full - now > rate->ahead;
}

static __always_inline void take(__u64 *bucket, const volatile struct rate *rate, __u64 now)
{
	if (*(volatile __u64 *)bucket < now)
		*(volatile __u64 *)bucket = now + rate->each;
	else
		__sync_fetch_and_add(bucket, rate->each);
}

/* Pass (0), or why not. */
static __always_inline enum reason limit(const struct source *key, struct admission_value *a, __u64 jiffies)
{
	__u64 now = jiffies << RATE_SHIFT;

	/* Drop: too many from all. */
	if (limit_total.each && spent(&a->total, &limit_total, now))
		return DROP_LIMITED_TOTAL;
	if (limit_source.each) {
		__u64 *bucket = bpf_map_lookup_elem(&buckets, key);

		if (!bucket) {
			__u64 first = now + limit_source.each;

			/* No room: the next one of this source comes to a full bucket again. */
			bpf_map_update_elem(&buckets, key, &first, BPF_ANY);
		} else {
			/* Drop: too many from this one. */
			if (spent(bucket, &limit_source, now))
				return DROP_LIMITED_SOURCE;
			take(bucket, &limit_source, now);
		}
	}
	if (limit_total.each)
		take(&a->total, &limit_total, now);
	return 0;
}
