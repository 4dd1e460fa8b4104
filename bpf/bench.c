//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The shipped program with the generator of bench.h in front. */
#include "shield.c"

static __always_inline __u64 random_word(__u32 x)
{
	__u32 zero = 0, index;
	struct state_value *st = bpf_map_lookup_elem(&state, &zero);
	__u64 *word;

	if (!st)
		return 0;
	index = (__u64)(x * 0x9e3779b1U) * st->lines_v4 >> 32;
	word = bpf_map_lookup_elem(&bloom_v4, &index);
	return word ? *(volatile __u64 *)word : 0;
}

#define BENCH_RANDOM_WORD(x) random_word(x)
#include "bench.h"
