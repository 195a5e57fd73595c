/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/* The interface of example.c, a cache of pinned memory. */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <stddef.h>
#include <stdint.h>

struct example;

/* Functions that pin and unpin memory. */
typedef int (*example_pin)(void *adapter, void *start, size_t length, uint64_t *pin);
typedef void (*example_unpin)(void *adapter, uint64_t pin);

/*
 * Opens a cache that keeps up to `capacity` pieces of memory pinned, and requests features for it
 * (UMMUNOTIFY_FEATURE_*, or 0). On failure, returns a null pointer and sets errno.
 */
struct example *example_open(size_t capacity, uint32_t features, example_pin pin, example_unpin unpin,
			     void *adapter);

/*
 * Stores in `pin` a pin of this memory, from the cache or a new one. It is valid until the next
 * call. Returns 1 for a hit, 0 for a miss, or a negative error.
 */
int example_get(struct example *example, void *start, size_t length, uint64_t *pin);

/* Unpins everything. */
void example_close(struct example *example);

#endif /* EXAMPLE_H */
