/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Transfers by UCT, the lower layer of UCX, whose endpoints can be connected by hand: UCP's way needs
 * unreliable datagrams, which time out with UCX 1.13 and soft-RoCE. Only for the version that the
 * headers are from, since some functions of UCT are in them.
 */

#ifndef UCT_H
#define UCT_H

#include <stddef.h>

/* Two connected endpoints of an adapter. */
struct loop;

/* Connects them. The library is libucp, or another that is linked to UCT. */
struct loop *open_loop(void *library);

/* Has the adapter read from one buffer into the other. Registers both, by the cache of the adapter. */
void get(struct loop *loop, const char *from, char *to, size_t length);

void close_loop(struct loop *loop);

#endif
