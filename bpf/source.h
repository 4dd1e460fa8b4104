/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * For tests and benchmarks only. Random sources, another one for each packet: the blocked ones are source(0) ...
 * source(n - 1), and source() is a bijection, so all others are innocent.
 */
#pragma once
#include "uapi.h"

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

/* A number below n, another one each time. */
static __always_inline __u32 draw(__u64 n)
{
	return source(bench_run++) * n >> 32;
}
