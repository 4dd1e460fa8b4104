/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * The little of the kernel's and of the wire's ABI that this program uses, declared here.
 *
 * Taking it from linux/bpf.h and libbpf would make the object depend on the headers of whoever builds it: the same
 * source would give another object on another distribution, and the committed object could not be checked by building
 * it again. All of this is frozen ABI (offsets, helper ids, map types) or an RFC, so copies cannot go stale.
 */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed long long __s64;

#define SEC(name) __attribute__((section(name), used))
#define __always_inline inline __attribute__((always_inline))
#define __noinline __attribute__((noinline))
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name

/* The compiler must take v as it is, and forget what it knows of how it came about. */
#define barrier_var(v) asm volatile("" : "+r"(v))

/* Loads stay on the side of this that they are written on. */
#define barrier() asm volatile("" ::: "memory")

/*
 * v, of which the verifier does not know any more what it was: unknown is anything that it does not know. What it knows, it
 * goes on with separately for each value.
 */
static __always_inline __u32 forget(__u64 v, __u64 unknown)
{
	asm volatile("%0 ^= %1\n%0 ^= %1" : "+r"(v) : "r"(unknown));
	return v;
}

/* Both directions of one conversion; the object is built for little-endian hosts only (-target bpfel). */
#define BE16(x) ((__u16)__builtin_bswap16(x))

/* Contexts: the kernel rewrites every access by its offset, so only offsets and widths count. */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
};
_Static_assert(__builtin_offsetof(struct __sk_buff, data) == 76, "__sk_buff.data is at 76");
_Static_assert(__builtin_offsetof(struct __sk_buff, data_end) == 80, "__sk_buff.data_end is at 80");

/* Verdicts. tcx: NEXT goes on to the next program of the hook and, after the last one, to the stack. */
enum { XDP_DROP = 1, XDP_PASS = 2 };
enum { TCX_NEXT = -1, TCX_DROP = 2 };

/* Map types and flags. */
enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};
enum { BPF_F_NO_PREALLOC = 1, BPF_F_MMAPABLE = 1 << 10 };
enum { BPF_ANY = 0 };
enum { BPF_RB_NO_WAKEUP = 1 };

/* Helpers by number. Of those that are shipped the ring buffer's (5.8) is the youngest; boot_ns (5.8) is the tests'. */
static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static __u64 (*const bpf_jiffies64)(void) = (void *)118;
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_ringbuf_output)(void *ring, void *data, __u64 size, __u64 flags) = (void *)130;

/* The wire. Multi-byte fields stay in network order; constants are converted instead, at compile time. */
enum {
	ETH_P_IP_BE = BE16(0x0800),
	ETH_P_IPV6_BE = BE16(0x86dd),
	ETH_P_8021Q_BE = BE16(0x8100),
	ETH_P_8021AD_BE = BE16(0x88a8),
	ETH_P_QINQ_OLD_BE = BE16(0x9100),
};

enum {
	NEXT_HOP_BY_HOP = 0,
	NEXT_TCP = 6,
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_AUTH = 51,
	NEXT_DEST_OPTS = 60,
};

struct ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__u16 proto;
};
_Static_assert(sizeof(struct ethhdr) == 14, "Ethernet header");

struct vlanhdr {
	__u16 tci;
	__u16 proto; /* of what follows the tag */
};
_Static_assert(sizeof(struct vlanhdr) == 4, "VLAN tag");

struct ipv4hdr {
	__u8 version_ihl;
	__u8 tos;
	__u16 len;
	__u16 id;
	__u16 frag_off;
	__u8 ttl;
	__u8 proto;
	__u16 check;
	__u32 src;
	__u32 dst;
};
_Static_assert(sizeof(struct ipv4hdr) == 20, "IPv4 header without options");

struct ipv6hdr {
	__u8 version_class;
	__u8 class_flow[3];
	__u16 len;
	__u8 next;
	__u8 hops;
	__u32 src[4];
	__u32 dst[4];
};
_Static_assert(sizeof(struct ipv6hdr) == 40, "IPv6 header");

struct exthdr {
	__u8 next;
	__u8 len;
	__u16 frag_off; /* fragment header only */
	__u32 more;
};
_Static_assert(sizeof(struct exthdr) == 8, "an extension header has at least 8 bytes (RFC 8200, RFC 4302: 12)");

enum { TCP_FLAGS = 13 /* offset */, TCP_SYN = 0x02, TCP_ACK = 0x10 };

struct tcpports {
	__u16 src;
	__u16 dst;
};
_Static_assert(sizeof(struct tcpports) == 4, "TCP ports");
