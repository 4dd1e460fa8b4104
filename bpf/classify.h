/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which group of ports does a packet go to?
 *
 * The ports are constants of the program (.rodata, frozen before it is loaded), not a map: the verifier knows them and
 * removes the code of empty places. All other traffic of the host leaves after one bit test, however many ports there
 * are: maybe_protected() is asked before anything but the port has been read, and is wrong for one port in 64 for each
 * protected one; those go through the list. New ports are a new program; links are updated in place, so that costs no gap.
 */
#pragma once
#include "reason.h"

#define MAX_PORTS 16

struct port {
	__u16 port;	/* network order */
	__u8 scope;	/* its one SCOPE_ bit; 0 ends the list */
	__u8 pad;
};
_Static_assert(sizeof(struct port) == 4, "struct port is written by the agent");

volatile const struct port ports[MAX_PORTS];
volatile const __u64 port_bits; /* for each of ports the bit of port_bit() */

/* The low six bits of the port's number: of the ports that a host is busy on, few share them with 25, 465 or 587. */
static __always_inline __u32 port_bit(__u16 port)
{
	return port >> 8 & 63;
}

/* False if the port is not protected. */
static __always_inline int maybe_protected(__u16 port)
{
	return port_bits >> port_bit(port) & 1;
}

/* The scope bit of a destination port, 0 if it is not protected. */
static __always_inline __u8 port_scope(__u16 port)
{
#pragma clang loop unroll(full)
	for (int i = 0; i < MAX_PORTS; i++) {
		if (!ports[i].scope)
			break;
		if (ports[i].port == port)
			return ports[i].scope;
	}
	return 0;
}
