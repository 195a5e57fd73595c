/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Keeps a cache of pinned memory coherent, with /dev/ummunotify.
 *
 * The caller provides the table of pinned memory and the functions that pin and unpin. This header
 * has the protocol between these and the device:
 *
 *	if (umn_cache_changed(cache))		before each look-up: one load
 *		umn_cache_update(cache);	calls drop() for stale entries
 *	...look it up; if it is not found:
 *	umn_cache_pin(cache, start, length, cookie, &pin);
 *
 * Memory is watched before it is pinned. If it changes in between, it is pinned again before the
 * first pin is released: some ways to pin change mappings themselves, but then have nothing left to
 * change. Memory that still changes after several rounds is used once and not cached.
 *
 * The caller must hold a lock of its own for every function except umn_cache_changed(). Errors are
 * negative. After an error of umn_cache_update(), nothing in the cache may be used. It fails in a
 * forked child, which has to open its own cache.
 *
 * example.c is a complete cache.
 */
#ifndef UMN_CACHE_H
#define UMN_CACHE_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/ummunotify.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

struct umn_cache {
	/*
	 * Set by the caller. Each cookie is used for one pin only, since drop() may be called for one
	 * that is gone already.
	 */
	int (*pin)(struct umn_cache *cache, void *start, size_t length, uint64_t *pin);
	void (*unpin)(struct umn_cache *cache, uint64_t pin);
	void (*drop)(struct umn_cache *cache, uint64_t cookie); /* unpins, and calls umn_cache_forget() */
	/* Set by umn_cache_open(). */
	int fd;
	const uint64_t *counter;
	uint64_t *seen;		/* one more than the counter of the last update; 0 in a forked child */
	uint64_t pinning;	/* the cookie of the memory that is being pinned */
	int changed_meanwhile;
};

/* Returns whether something may have changed. Needs no lock and makes no system call. */
static inline int umn_cache_changed(const struct umn_cache *cache)
{
	return __atomic_load_n(cache->counter, __ATOMIC_ACQUIRE) + 1 !=
	       __atomic_load_n(cache->seen, __ATOMIC_ACQUIRE);
}

/* Calls drop() for everything that has changed. */
static inline int umn_cache_update(struct umn_cache *cache)
{
	struct ummunotify_event events[32];

	if (!umn_cache_changed(cache))
		return 0;
	for (;;) {
		uint64_t now = __atomic_load_n(cache->counter, __ATOMIC_ACQUIRE);
		ssize_t i, length = read(cache->fd, events, sizeof(events));

		if (length < 0 && errno == EINTR)
			continue;
		if (length < 0 && errno == EAGAIN) {
			/* The driver of 2010 sends no LAST if the only event was unregistered. */
			__atomic_store_n(cache->seen, now + 1, __ATOMIC_RELEASE);
			return 0;
		}
		if (length <= 0)
			return length ? -errno : -EPIPE;
		for (i = 0; i < length / (ssize_t)sizeof(events[0]); i++) {
			uint64_t number = events[i].user_cookie_counter;

			if (events[i].type == UMMUNOTIFY_EVENT_TYPE_LAST) {
				__atomic_store_n(cache->seen, number + 1, __ATOMIC_RELEASE);
				return 0;
			}
			if (number == cache->pinning)
				cache->changed_meanwhile = 1;
			else
				cache->drop(cache, number);
		}
	}
}

/* Stops watching memory that was pinned. */
static inline int umn_cache_forget(struct umn_cache *cache, uint64_t cookie)
{
	__u64 argument = cookie;

	return ioctl(cache->fd, UMMUNOTIFY_UNREGISTER_REGION, &argument) ? -errno : 0;
}

/*
 * Pins memory under a new cookie, which must not be 0. Returns 1 if the pin may be cached. Returns
 * 0 if it may be used once and must then be released, because a limit is reached or the memory
 * changes all the time.
 */
static inline int umn_cache_pin(struct umn_cache *cache, void *start, size_t length, uint64_t cookie,
				uint64_t *pin)
{
	struct ummunotify_register_ioctl region = {
		(uintptr_t)start, (uintptr_t)start + length, cookie, 0, 0
	};
	uint64_t older;
	int round, error;

	if (ioctl(cache->fd, UMMUNOTIFY_REGISTER_REGION, &region)) {
		if (errno != ENOMEM && errno != ENOSPC)
			return -errno;
		return cache->pin(cache, start, length, pin);
	}
	cache->pinning = cookie;
	error = cache->pin(cache, start, length, pin);
	for (round = 0; !error && round < 8; round++) {
		cache->changed_meanwhile = 0;
		error = umn_cache_update(cache);
		if (!error && !cache->changed_meanwhile) {
			cache->pinning = 0;
			return 1;
		}
		older = *pin;
		if (!error)
			error = cache->pin(cache, start, length, pin);
		cache->unpin(cache, older);
	}
	cache->pinning = 0;
	umn_cache_forget(cache, cookie);
	return error;
}

static inline void umn_cache_close(struct umn_cache *cache)
{
	if (cache->counter != MAP_FAILED)
		munmap((void *)(uintptr_t)cache->counter, sizeof(*cache->counter));
	if (cache->seen != MAP_FAILED)
		munmap(cache->seen, sizeof(*cache->seen));
	close(cache->fd);
}

/* Opens the device. */
static inline int umn_cache_open(struct umn_cache *cache)
{
	int error;

	cache->fd = open("/dev/ummunotify", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (cache->fd < 0)
		return -errno;
	cache->counter = (const uint64_t *)mmap(NULL, sizeof(uint64_t), PROT_READ, MAP_SHARED, cache->fd, 0);
	cache->seen = (uint64_t *)mmap(NULL, sizeof(uint64_t), PROT_READ | PROT_WRITE,
				       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (cache->counter == MAP_FAILED || cache->seen == MAP_FAILED ||
	    madvise(cache->seen, sizeof(uint64_t), MADV_WIPEONFORK)) {
		error = -errno;
		umn_cache_close(cache);
		return error;
	}
	*cache->seen = 1;
	cache->pinning = 0;
	return 0;
}

#endif /* UMN_CACHE_H */
