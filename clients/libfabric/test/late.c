// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * A program that is not linked to libfabric but loads it at run time, as MPI libraries do. The
 * monitor is in place after the first use of libfabric.
 */

#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

int main(void)
{
	int (*getinfo)(uint32_t, const char *, const char *, uint64_t, const void *, void **);
	void *library = dlopen("libfabric.so.1", RTLD_NOW | RTLD_LOCAL), *info;

	if (!library)
		return 1;
	*(void **)&getinfo = dlsym(library, "fi_getinfo");
	if (!getinfo)
		return 2;
	return getinfo(1 << 16 | 13, NULL, NULL, 0, NULL, &info) ? 3 : 0;
}
