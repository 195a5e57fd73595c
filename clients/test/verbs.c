// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The program's functions precede those of libibverbs for all libraries.
 */

#define _GNU_SOURCE
#include "verbs.h"

#include <dlfcn.h>

#undef ibv_reg_mr

/* libibverbs calls one of the functions below from the other. */
static __thread int depth;

__attribute__((weak)) void registering(void)
{
}

static void making(void)
{
	if (depth++ == 0)
		registering();
}

static struct ibv_mr *made(struct ibv_mr *mr, void *start, size_t length)
{
	if (--depth == 0)
		registered(mr, start, length);
	return mr;
}

struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *start, size_t length, int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, int) = dlsym(RTLD_NEXT, "ibv_reg_mr");

	making();
	return made(real(pd, start, length, access), start, length);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *start, size_t length, uint64_t iova,
				unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		dlsym(RTLD_NEXT, "ibv_reg_mr_iova2");

	making();
	return made(real(pd, start, length, iova, access), start, length);
}
