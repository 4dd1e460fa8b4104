/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Which group of ports does a packet go to?
 *
 * The ports are constants of the program (.rodata, frozen before it is loaded), not a map: the verifier knows them,
 * removes the code of empty places, and what is left for all other traffic of the host is one compare per configured
 * port. New ports are a new program; links are updated in place, so that costs no gap.
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
