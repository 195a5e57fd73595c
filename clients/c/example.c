// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * A cache of pinned memory on top of umn_cache.h. It behaves like the cache in Rust, and has the
 * simplest possible table.
 */

#include <stdlib.h>

#include "example.h"
#include "umn_cache.h"

struct entry {
	void *start;
	size_t length;
	uint64_t cookie; /* 0 if nothing is pinned */
	uint64_t pin;
	uint64_t last_use;
	struct umn_stamp stamp;
};

struct example {
	struct umn_cache cache;
	example_pin pin;
	example_unpin unpin;
	void *adapter;
	uint64_t next_cookie;
	uint64_t now;
	int has_once;
	uint64_t once; /* pinned by the last call for one use */
	size_t capacity;
	struct entry entries[];
};

static struct example *example_of(struct umn_cache *cache)
{
	return (struct example *)((char *)cache - offsetof(struct example, cache));
}

static int pin(struct umn_cache *cache, void *start, size_t length, uint64_t *pin)
{
	struct example *example = example_of(cache);

	return example->pin(example->adapter, start, length, pin);
}

static void unpin(struct umn_cache *cache, uint64_t pin)
{
	struct example *example = example_of(cache);

	example->unpin(example->adapter, pin);
}

static void drop_entry(struct example *example, struct entry *entry)
{
	umn_cache_forget(&example->cache, entry->cookie);
	example->unpin(example->adapter, entry->pin);
	entry->cookie = 0;
}

static void drop(struct umn_cache *cache, uint64_t cookie)
{
	struct example *example = example_of(cache);

	for (size_t i = 0; i < example->capacity; i++)
		if (example->entries[i].cookie == cookie)
			drop_entry(example, &example->entries[i]);
}

static int find(struct umn_cache *cache, uint64_t cookie, void **start, size_t *length, struct umn_stamp *stamp)
{
	struct example *example = example_of(cache);

	for (size_t i = 0; i < example->capacity; i++) {
		struct entry *entry = &example->entries[i];

		if (entry->cookie != cookie)
			continue;
		*start = entry->start;
		*length = entry->length;
		*stamp = entry->stamp;
		return 1;
	}
	return 0;
}

/* Returns a free entry, if necessary by evicting the least recently used one. */
static struct entry *make_room(struct example *example)
{
	struct entry *oldest = &example->entries[0];

	for (size_t i = 0; i < example->capacity; i++) {
		struct entry *entry = &example->entries[i];

		if (!entry->cookie)
			return entry;
		if (entry->last_use < oldest->last_use)
			oldest = entry;
	}
	drop_entry(example, oldest);
	return oldest;
}

int example_get(struct example *example, void *start, size_t length, uint64_t *pin)
{
	struct entry *entry;
	uint64_t cookie;
	int result = 0;

	if (example->has_once)
		example->unpin(example->adapter, example->once);
	example->has_once = 0;
	example->now++;
	if (umn_cache_changed(&example->cache))
		result = umn_cache_update(&example->cache);
	if (result < 0)
		return result;
	for (size_t i = 0; i < example->capacity; i++) {
		entry = &example->entries[i];
		if (entry->cookie && entry->start == start && entry->length == length) {
			entry->last_use = example->now;
			*pin = entry->pin;
			return 1;
		}
	}

	/* Pinning may free other entries; this one stays free. */
	entry = make_room(example);
	cookie = example->next_cookie++;
	result = umn_cache_pin(&example->cache, start, length, cookie, pin);
	if (result < 0)
		return result;
	if (result == 0) {
		example->has_once = 1;
		example->once = *pin;
	} else {
		*entry = (struct entry){ start, length, cookie, *pin, example->now, example->cache.stamped };
	}
	return 0;
}

struct example *example_open(size_t capacity, uint32_t features, example_pin pin_memory,
			     example_unpin unpin_memory, void *adapter)
{
	struct example *example = calloc(1, sizeof(*example) + capacity * sizeof(example->entries[0]));
	int error;

	if (!example)
		return NULL;
	example->cache.pin = pin;
	example->cache.unpin = unpin;
	example->cache.drop = drop;
	example->cache.find = find;
	example->pin = pin_memory;
	example->unpin = unpin_memory;
	example->adapter = adapter;
	example->next_cookie = 1;
	example->capacity = capacity;
	error = umn_cache_open_features(&example->cache, features);
	if (error) {
		free(example);
		errno = -error;
		return NULL;
	}
	return example;
}

void example_close(struct example *example)
{
	for (size_t i = 0; i < example->capacity; i++)
		if (example->entries[i].cookie)
			drop_entry(example, &example->entries[i]);
	if (example->has_once)
		example->unpin(example->adapter, example->once);
	umn_cache_close(&example->cache);
	free(example);
}
