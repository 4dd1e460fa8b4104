//go:build ignore

/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The shipped program with the generator of bench.h in front. */
#include "shield.c"
#include "bench.h"
