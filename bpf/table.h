/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The exact tables: IPv4 /32 and IPv6 /64, nearly all entries.
 *
 * Where a key is. Two-choice cuckoo hashing: a key has two lines, and is in a slot of one of them, and an insert that
 * finds both full moves others to their second lines. One 64-bit hash h gives everything, by multiplying a half of it
 * with the number of lines and taking the upper half, so that number need not be a power of two:
 *
 *	(seed + low half of key) * (seed + high half of key)	pairwise universal: whoever does not know the seeds cannot
 *								choose keys that meet more often than chance has it
 *	xor and multiply by an odd seed				spreads that over all 64 bits; bijective, so nothing new meets
 *
 * Seeds are random for each generation of a table. At the load the agent allows (three quarters) an insert fails
 * practically never; if one does, the agent builds a generation with other seeds.
 *
 * The Bloom filter in front: 4 bits of one 64-bit word, a word for each line, which is 2.1 bytes for each key of a full
 * IPv4 table and 2.7 for IPv6. 0.5% of the innocents go on to the lines; the rest have paid one cache line.
 *
 * Memory model. There is one writer, the agent, which stores word by word through its own mapping, in program order; we
 * load by volatile in program order. x86-64 keeps both orders (TSO).
 *
 * - An IPv4 slot is one word, so address and until always belong together.
 * - An IPv6 slot is two. The writer stores until = 0, key, until. We load key, until, key, until: equal untils around a
 *   key mean that they belong together (but for the slot having been given away and come back with the same until
 *   between two loads; then scope and time are right all the same). If they differ, we look again.
 * - An insert sets the Bloom bits before the slot. A delete leaves them; they may be stale, never missing.
 * - A move stores the copy, then adds one to moves, then erases the old slot. We load moves, then both lines. If the
 *   entry moved from the line we look at last to the one we look at first, we can miss it: too early for the copy, too
 *   late for the old slot. Having seen the erased slot, we see the greater moves, which came before it; and our first
 *   load of moves came before the load that did not see the copy, so it did not see the greater one. So moves differ,
 *   and we look again, four times in all. Innocents stop at the filter and pay nothing for this.
 * - On arm64, which keeps neither order of loads, one packet may pass; its retransmission meets the entry.
 * - Drops are added after the match, and may go to whoever got the slot in between: a packet of another's count.
 */
#pragma once
#include "clock.h"
#include "packet.h"

static __always_inline __u64 mix(const struct seeds *seeds, __u64 key)
{
	__u64 h = (seeds->add_low + (__u32)key) * (seeds->mul + (key >> 32));

	h ^= h >> 32;
	h *= seeds->odd;
	return h ^ h >> 32;
}

static __always_inline __u32 first_line(__u64 h, __u32 lines)
{
	return (h >> 32) * lines >> 32;
}

static __always_inline __u32 second_line(__u64 h, __u32 lines)
{
	return (__u64)(__u32)h * lines >> 32;
}

/* A third number from h, for the filter: its upper half chooses the word, its low 24 bits the four bits. */
static __always_inline __u64 mix_bloom(__u64 h)
{
	return h * 0x9e3779b97f4a7c15ULL;
}

static __always_inline __u64 bloom_bits(__u64 g)
{
	return 1ULL << (g & 63) | 1ULL << (g >> 6 & 63) | 1ULL << (g >> 12 & 63) | 1ULL << (g >> 18 & 63);
}

static __always_inline int in_bloom(void *bloom, __u64 h, __u32 words)
{
	__u64 g = mix_bloom(h), bits = bloom_bits(g);
	__u32 index = (g >> 32) * words >> 32;
	__u64 *word = bpf_map_lookup_elem(bloom, &index);

	return word && (*(volatile __u64 *)word & bits) == bits;
}

/* The until of the address in this line, 0 if it is not in it. */
static __always_inline __u32 in_line_v4(__u32 index, __u32 addr, __u32 **drops)
{
	struct line_v4 *line = bpf_map_lookup_elem(&exact_v4, &index);
	__u64 until = 0, found = 0;

	if (!line)
		return 0;
	/*
	 * Without branches: which slot it is nobody can predict, and a wrong guess costs more than looking at all five.
	 * equal is 1 or 0, and 1 for at most one slot; the barrier keeps the compiler from making a branch of it again.
	 */
#pragma clang loop unroll(full)
	for (int i = 0; i < SLOTS_V4; i++) {
		__u64 slot = *(volatile __u64 *)&line->slot[i];
		__u64 equal = (((__u64)((__u32)slot ^ addr) - 1) & (0 - (slot >> 32))) >> 63;

		barrier_var(equal);
		until |= slot >> 32 & -equal;
		found |= i & -equal;
	}
	if (!until || found >= SLOTS_V4)
		return 0;
	*drops = &line->drops[found];
	return until;
}

/* The until of the address, 0 if it is not found; again is set if it may have moved under our eyes. */
static __always_inline __u32 find_v4(struct state_value *st, __u32 addr, __u32 **drops, int *again)
{
	__u64 h = mix(&st->v4, addr), moves;
	__u32 lines = st->lines_v4, until;

	if (!in_bloom(&bloom_v4, h, lines))
		return 0;
	moves = *(volatile __u64 *)&st->moves;
	until = in_line_v4(first_line(h, lines), addr, drops);
	if (until)
		return until;
	until = in_line_v4(second_line(h, lines), addr, drops);
	if (!until && moves != *(volatile __u64 *)&st->moves)
		*again = 1;
	return until;
}

/* The same for a /64; again is set if the slot changed under our hands. */
static __always_inline __u32 in_line_v6(__u32 index, __u64 net, __u32 **drops, int *again)
{
	struct line_v6 *line = bpf_map_lookup_elem(&exact_v6, &index);

	if (!line)
		return 0;
#pragma clang loop unroll(full)
	for (int i = 0; i < SLOTS_V6; i++) {
		volatile __u64 *key = &line->key[i];
		volatile __u32 *until = &line->until[i];
		__u32 was;

		if (*key != net)
			continue;
		was = *until;
		if (!was)
			continue;
		if (*key != net || *until != was) {
			*again = 1;
			continue;
		}
		*drops = &line->drops[i];
		return was;
	}
	return 0;
}

static __always_inline __u32 find_v6(struct state_value *st, __u64 net, __u32 **drops, int *again)
{
	__u64 h = mix(&st->v6, net);
	__u32 lines = st->lines_v6, until;

	if (!in_bloom(&bloom_v6, h, lines))
		return 0;
	until = in_line_v6(first_line(h, lines), net, drops, again);
	return until ? until : in_line_v6(second_line(h, lines), net, drops, again);
}
