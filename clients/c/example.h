/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
#ifndef EXAMPLE_H
#define EXAMPLE_H

#include <stddef.h>
#include <stdint.h>

struct example;

/* How memory is pinned, and unpinned. */
typedef int (*example_pin)(void *adapter, void *start, size_t length, uint64_t *pin);
typedef void (*example_unpin)(void *adapter, uint64_t pin);

/* Makes a cache that keeps `capacity` pieces of memory pinned, or returns a null pointer and sets errno. */
struct example *example_open(size_t capacity, example_pin pin, example_unpin unpin, void *adapter);

/*
 * Finds what is pinned of this memory, or pins it. The pin is valid until the next call. Returns 1 if it
 * was found, 0 if not, or a negative error.
 */
int example_get(struct example *example, void *start, size_t length, uint64_t *pin);

/* Unpins everything. */
void example_close(struct example *example);

#endif /* EXAMPLE_H */
