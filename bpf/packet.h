/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Parsing: from the first byte of the Ethernet header to the addresses and the TCP destination port.
 *
 * The port comes first, and most packets leave by it: IPv4 addresses are copied only when the tables may be asked for
 * them. (IPv6 addresses are copied before the walk along the headers: after it, that doubled the verifier's work.)
 *
 * What cannot be read passes: a packet we do not understand is the stack's business, and the stack throws away what
 * is broken. The one exception is IPv6 extension headers: there a valid packet can push the ports out of our reach
 * (a long chain, or a first fragment that ends inside the chain). It is returned with hidden set, and is then dropped
 * if, and only if, its source is blocked: no mail comes like that, and passing it would be the way round a block.
 *
 * Bounds: 2 VLAN tags, 15 words of IPv4 header, MAX_EXT_HEADERS of at most 2048 bytes each, so the verifier sees at
 * most about 12 kB of offset and no unbounded loop.
 */
#pragma once
#include "classify.h"

#define MAX_VLAN_TAGS 2
#define MAX_EXT_HEADERS 6

/* Not a reason: parsing went well, ports and tables decide. */
#define UNDECIDED REASONS

struct packet {
	__u32 src[4];	/* network order; IPv4 uses src[0] */
	__u32 dst[4];
	__u16 dst_port;	/* network order; 0 if hidden */
	__u8 ipv6;
	__u8 hidden;	/* TCP ports out of reach behind extension headers */
	__u8 flags;	/* of TCP; by parse_flags() alone */
};

/*
 * Flags that are out of reach are taken for a SYN: the header of a TCP packet is never shorter than 20 bytes, so this is
 * broken, or it is a first fragment made so small that the flags are in the next one.
 */
static __always_inline void read_flags(struct packet *p, void *tcp, void *end)
{
	p->flags = TCP_SYN;
	if (tcp + TCP_FLAGS + 1 <= end)
		p->flags = *((__u8 *)tcp + TCP_FLAGS);
}

static __always_inline int is_vlan(__u16 proto)
{
	return proto == ETH_P_8021Q_BE || proto == ETH_P_8021AD_BE || proto == ETH_P_QINQ_OLD_BE;
}

/* Extension headers that the stack walks on its way to TCP. ESP is not one: what is in it cannot be read. */
#define EXT_HEADERS (1ULL << NEXT_HOP_BY_HOP | 1ULL << NEXT_ROUTING | 1ULL << NEXT_FRAGMENT | 1ULL << NEXT_AUTH | 1ULL << NEXT_DEST_OPTS)

static __always_inline int is_ext_header(__u8 next)
{
	return next < 64 && EXT_HEADERS >> next & 1;
}

/*
 * 1 if they are equal, else 0, without a branch. Along a chain of headers the verifier goes every way from every way: what
 * it has to look at, and so how long a new program takes, grows with the power of the ways on each header.
 */
static __always_inline __u32 same(__u8 a, __u8 b)
{
	__u32 differ = a ^ b;

	barrier_var(differ);
	return (differ - 1) >> 31;
}

static __always_inline enum reason parse_ipv4(void *pos, void *end, struct packet *p, const int flags)
{
	struct ipv4hdr *ip = pos;
	struct tcpports *tcp;
	__u32 words;

	/* Pass: no whole header, nothing to compare. */
	if ((void *)(ip + 1) > end)
		return PASS_TRUNCATED;
	words = ip->version_ihl & 0x0f;
	/* Pass: the stack drops it. */
	if (ip->version_ihl >> 4 != 4 || words < 5)
		return PASS_MALFORMED;
	/* Pass: mail is TCP. */
	if (ip->proto != NEXT_TCP)
		return PASS_NOT_TCP;
	/*
	 * Pass: only the first fragment has the ports. The others are worth nothing without it: if we drop the first,
	 * they are never reassembled. (Fragments are multiples of 8 bytes, so the first always has the ports.)
	 */
	if (ip->frag_off & BE16(0x1fff))
		return PASS_FRAGMENT;
	tcp = pos + words * 4;
	/* Pass: it ends inside the options or before the ports. */
	if ((void *)(tcp + 1) > end)
		return PASS_TRUNCATED;
	p->dst_port = tcp->dst;
	/* Pass: not a mail port. */
	if (!maybe_protected(p->dst_port))
		return PASS_OTHER_PORT;
	barrier(); /* the compiler would read the addresses before */
	p->src[0] = ip->src;
	p->dst[0] = ip->dst;
	if (flags)
		read_flags(p, tcp, end);
	return UNDECIDED;
}

/* From the end of the IPv6 header, along the extension headers, to the port. */
static __always_inline enum reason walk_ipv6(void *pos, void *end, __u8 next, struct packet *p, const int flags)
{
	for (int i = 0; i <= MAX_EXT_HEADERS; i++) {
		struct exthdr *ext = pos;
		__u32 fragment, auth, offset, size;

		if (next == NEXT_TCP) {
			struct tcpports *tcp = pos;

			if ((void *)(tcp + 1) > end) {
				/* Pass: cut off right after the IPv6 header, the stack drops it. */
				if (i == 0)
					return PASS_TRUNCATED;
				/* The ports may be in the next fragment or buffer: look at the source only. */
				p->hidden = 1;
				return UNDECIDED;
			}
			p->dst_port = tcp->dst;
			/* Pass: not a mail port. */
			if (!maybe_protected(p->dst_port))
				return PASS_OTHER_PORT;
			if (flags)
				read_flags(p, tcp, end);
			return UNDECIDED;
		}
		/* Pass: mail is TCP. ESP and unknown headers end up here too. */
		if (!is_ext_header(next))
			return PASS_NOT_TCP;
		/* More headers than we walk, or the chain goes on elsewhere: look at the source only. */
		if (i == MAX_EXT_HEADERS || (void *)(ext + 1) > end) {
			p->hidden = 1;
			return UNDECIDED;
		}
		fragment = same(next, NEXT_FRAGMENT);
		auth = same(next, NEXT_AUTH);
		offset = ext->frag_off & BE16(0xfff8) & (0 - fragment);
		barrier_var(offset); /* one branch, not two */
		/* Pass: as for IPv4, not reassembled without the first one. */
		if (offset)
			return PASS_FRAGMENT;
		/* The length of a fragment header is 8 and nowhere in it; AUTH counts in 4 bytes from 8, the others in 8. */
		size = ((ext->len & (fragment - 1)) + 1 + auth) << (3 - auth);
		barrier_var(size);
		pos += size & 0xfff; /* 8 to 2056: now the verifier knows it too */
		next = ext->next;
	}
	/* Not reached: the last turn of the loop always returns. Pass, as everywhere, when in doubt. */
	return PASS_TRUNCATED;
}

static __always_inline enum reason parse_ipv6(void *pos, void *end, struct packet *p, const int flags)
{
	struct ipv6hdr *ip = pos;

	/* Pass: no whole header, nothing to compare. */
	if ((void *)(ip + 1) > end)
		return PASS_TRUNCATED;
	/* Pass: the stack drops it. */
	if (ip->version_class >> 4 != 6)
		return PASS_MALFORMED;
	p->ipv6 = 1;
	p->src[0] = ip->src[0];
	p->src[1] = ip->src[1];
	p->src[2] = ip->src[2];
	p->src[3] = ip->src[3];
	p->dst[0] = ip->dst[0];
	p->dst[1] = ip->dst[1];
	p->dst[2] = ip->dst[2];
	p->dst[3] = ip->dst[3];
	return walk_ipv6(ip + 1, end, ip->next, p, flags);
}

/* flags is known at compile time: what is not asked for is not in the code. */
static __always_inline enum reason parse_with(void *data, void *end, struct packet *p, const int flags)
{
	struct ethhdr *eth = data;
	void *pos = eth + 1;
	__u16 proto;

	/* Pass: not even an Ethernet header. */
	if (pos > end)
		return PASS_TRUNCATED;
	proto = eth->proto;

#pragma clang loop unroll(full)
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlanhdr *tag = pos;

		if (!is_vlan(proto))
			break;
		/* Pass: ends inside a tag. */
		if ((void *)(tag + 1) > end)
			return PASS_TRUNCATED;
		proto = tag->proto;
		pos = tag + 1;
	}

	if (proto == ETH_P_IP_BE)
		return parse_ipv4(pos, end, p, flags);
	if (proto == ETH_P_IPV6_BE)
		return parse_ipv6(pos, end, p, flags);
	/* Pass: ARP and friends, and what has three VLAN tags or more: no mail host terminates that. */
	return PASS_NOT_IP;
}

/*
 * A place from the context, read anew. To the verifier a place that is kept over the look-ups would be another one on
 * each way there, and it would go all ways to the end.
 */
#define AGAIN(place) ((void *)(long)*(volatile __u32 *)&(place))

static __always_inline enum reason parse(void *data, void *end, struct packet *p)
{
	return parse_with(data, end, p, 0);
}

static __always_inline enum reason parse_flags(void *data, void *end, struct packet *p)
{
	return parse_with(data, end, p, 1);
}
