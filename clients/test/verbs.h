/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Has a test know of each registration with an adapter.
 */

#ifndef VERBS_H
#define VERBS_H

#include <infiniband/verbs.h>
#include <stddef.h>

/* Memory will be registered. By default, this does nothing. */
void registering(void);

/* Memory was registered, or was not to be, in which case there is no `mr`. The test defines it. */
void registered(struct ibv_mr *mr, void *start, size_t length);

#endif
