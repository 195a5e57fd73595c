/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <stddef.h>
#include <stdint.h>

struct example;

/* Functions that pin and unpin memory. */
typedef int (*example_pin)(void *adapter, void *start, size_t length, uint64_t *pin);
typedef void (*example_unpin)(void *adapter, uint64_t pin);

/*
 * Makes a cache that keeps `capacity` pieces of memory pinned. It requests features (UMMUNOTIFY_FEATURE_*,
 * or 0). If it fails, it returns a null pointer and sets errno.
 */
struct example *example_open(size_t capacity, uint32_t features, example_pin pin, example_unpin unpin,
			     void *adapter);

/*
 * Returns in `pin` the pin of this memory, from the cache or a new one. It is valid until the next
 * call. The result is 1 for a hit, 0 for a miss, or a negative error.
 */
int example_get(struct example *example, void *start, size_t length, uint64_t *pin);

/* Unpins everything. */
void example_close(struct example *example);

#endif /* EXAMPLE_H */
