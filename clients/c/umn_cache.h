/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Keeps a cache of pinned memory true, with /dev/ummunotify.
 *
 * The table of what is pinned is the caller's, and so are the functions that pin and unpin. This is
 * the protocol between them and the device:
 *
 *	if (umn_cache_changed(cache))		before each look-up: one load
 *		umn_cache_update(cache);	calls drop() for what is not true any more
 *	...look it up; if it is not there:
 *	umn_cache_pin(cache, start, length, cookie, &pin);
 *
 * Memory is watched before it is pinned. What changes meanwhile is pinned again before the first pin
 * is let go: some ways to pin change mappings themselves, but have nothing left to change then. What
 * still changes after some rounds is used once, and not kept.
 *
 * All but umn_cache_changed() is called with a lock of the caller held. Errors are negative. After one
 * of umn_cache_update() nothing in the cache may be used; it fails in a forked child, which has to open
 * a cache of its own.
 *
 * example.c has a whole cache.
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
	/* Set by the caller. A cookie is used for one pin only, so that drop() may be told one that is gone. */
	int (*pin)(struct umn_cache *cache, void *start, size_t length, uint64_t *pin);
	void (*unpin)(struct umn_cache *cache, uint64_t pin);
	void (*drop)(struct umn_cache *cache, uint64_t cookie); /* unpins, and calls umn_cache_forget() */
	/* Set by umn_cache_open(). */
	int fd;
	const uint64_t *counter;
	uint64_t *seen;		/* one more than the counter up to which all is known; 0 in a forked child */
	uint64_t pinning;	/* the cookie of what is being pinned */
	int changed_meanwhile;
};

/* Something may have changed. This may be called without the lock, and makes no system call. */
static inline int umn_cache_changed(const struct umn_cache *cache)
{
	return __atomic_load_n(cache->counter, __ATOMIC_ACQUIRE) + 1 !=
	       __atomic_load_n(cache->seen, __ATOMIC_ACQUIRE);
}

/* Calls drop() for all that has changed. */
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
			/* The driver of 2010 has no LAST if the only event went away with its region. */
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

/* Stops watching what was pinned. */
static inline int umn_cache_forget(struct umn_cache *cache, uint64_t cookie)
{
	__u64 argument = cookie;

	return ioctl(cache->fd, UMMUNOTIFY_UNREGISTER_REGION, &argument) ? -errno : 0;
}

/*
 * Pins memory under a new cookie, which is not 0. Returns 1 if it may be kept; 0 if it may be used once,
 * because a limit is reached or it changes all the time, and is then to be unpinned.
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
