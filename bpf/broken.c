//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* bench.c without the second look of table.h: the stress test must fail with it, else it proves nothing. */
#define MAX_LOOKS 1
#include "shield.c"
#include "bench.h"
