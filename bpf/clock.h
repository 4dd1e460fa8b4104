/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The clock: scaled jiffies. Reading them is one load, where the finer clocks cost as much as the whole lookup.
 *
 *	now = (jiffies - jiffies at boot) >> shift, plus skew
 *
 * The unit is between half a second and a second, by HZ, which is not known to the programs of BPF: the agent finds it
 * by mxshield_clock and sets base and shift before it loads the others. Jiffies begin at 2^32 - 300 * HZ, so that their
 * low half wraps five minutes after boot; base takes that out. They stand still during suspend, as blocks must not:
 * the agent sees that (ClockStepped) and writes all ends again.
 *
 * The time of an entry has 29 bits: 8.5 years of uptime at the shortest unit. Ends are rounded up to the next unit, so no
 * block ends early, and none more than a unit (and a jiffy) late.
 */
#pragma once
#include "maps.h"

struct clock {
	__u64 base;	/* jiffies at boot */
	__u32 shift;
	__u32 pad;
};
_Static_assert(sizeof(struct clock) == 16, "struct clock is written by the agent");

volatile const struct clock clock;

static __always_inline __u64 now(const struct state_value *st)
{
	return ((bpf_jiffies64() - clock.base) >> clock.shift) + st->skew;
}

static __always_inline int ended(__u32 until, const struct state_value *st)
{
	__u32 time = until >> TIME_SHIFT;

	return time != TIME_NO_END && now(st) >= time;
}
