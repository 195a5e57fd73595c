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
 * first pin is released. Some ways to pin change mappings themselves; the second pin then has
 * nothing left to change. Memory that still changes after several rounds is used once and not cached.
 *
 * umn_cache_open_features() requests features, and works without those that the kernel does not grant.
 * Changes that leave the same pages mapped, such as those by fork() and NUMA balancing, are then
 * ignored, and drop() is not called for memory whose pages are known to be those that were pinned.
 *
 * The caller must hold a lock of its own for every function except umn_cache_changed(). Errors are
 * negative. After an error of umn_cache_update(), nothing in the cache may be used. In a forked
 * child it always fails; the child has to open its own cache.
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
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/ummunotify.h>

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

/* Identifies the pages that are mapped, if `is_known`. */
struct umn_stamp {
	uint64_t value;
	int is_known;
};

struct umn_cache {
	/*
	 * Set by the caller. Each cookie may be used for one pin only, since drop() may be called for a
	 * cookie that was forgotten already.
	 */
	int (*pin)(struct umn_cache *cache, void *start, size_t length, uint64_t *pin);
	void (*unpin)(struct umn_cache *cache, uint64_t pin);
	void (*drop)(struct umn_cache *cache, uint64_t cookie); /* unpins, and calls umn_cache_forget() */
	/*
	 * Needed only with features, and may be a null pointer. Returns 1 and the memory that was pinned
	 * under this cookie, with the value that `stamped` had after that; or 0 if there is none.
	 */
	int (*find)(struct umn_cache *cache, uint64_t cookie, void **start, size_t *length,
		    struct umn_stamp *stamp);
	/* Set by umn_cache_pin(): the stamp of the memory that it has pinned. */
	struct umn_stamp stamped;
	/* Set by umn_cache_open(). */
	uint32_t features;	/* those that the kernel grants */
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

/* Makes the kernel read from each page, which faults in absent ones. Raises no signal. */
static inline void umn_cache_touch(uint64_t start, uint64_t end)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t address;

	for (address = start / page * page; address < end; address += page)
		/* The kernel reads the mask before it rejects -1 as the way to change it. */
		syscall(SYS_rt_sigprocmask, -1, (uintptr_t)address, (uintptr_t)0, sizeof(uint64_t));
}

/* Returns the stamp of the pages that are mapped now. */
static inline struct umn_stamp umn_cache_stamp(const struct umn_cache *cache, void *start, size_t length)
{
	struct umn_stamp result = { 0, 0 };
	int tries;

	if (!(cache->features & UMMUNOTIFY_FEATURE_STAMP))
		return result;
	for (tries = 0; tries < 2 && !result.is_known; tries++) {
		struct ummunotify_stamp_ioctl stamp = {
			(uintptr_t)start, (uintptr_t)start + length, 0, 0, 0
		};
		int error;

		if (tries)
			umn_cache_touch(stamp.start, stamp.end);
		do
			error = ioctl(cache->fd, UMMUNOTIFY_STAMP, &stamp);
		while (error && errno == EINTR);
		if (error)
			break;
		result.value = stamp.stamp;
		result.is_known = stamp.absent == 0;
	}
	return result;
}

static inline int umn_cache_is_same(struct umn_stamp one, struct umn_stamp two)
{
	return one.is_known && two.is_known && one.value == two.value;
}

/* Whether the pages are the same after a change. A change after the stamp has an event of its own. */
static inline int umn_cache_may_keep(struct umn_cache *cache, const struct ummunotify_event *event)
{
	const uint32_t needed = UMMUNOTIFY_FEATURE_CAUSE | UMMUNOTIFY_FEATURE_STAMP;
	const uint32_t other_pages = UMMUNOTIFY_CAUSE_UNMAP | UMMUNOTIFY_CAUSE_OTHER;
	struct umn_stamp before;
	void *start;
	size_t length;

	if ((cache->features & needed) != needed || !cache->find ||
	    (event->flags >> UMMUNOTIFY_EVENT_CAUSES_SHIFT & other_pages))
		return 0;
	return cache->find(cache, event->user_cookie_counter, &start, &length, &before) &&
	       umn_cache_is_same(before, umn_cache_stamp(cache, start, length));
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
			else if (!umn_cache_may_keep(cache, &events[i]))
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
	struct umn_stamp before, after;
	uint64_t older;
	int round, error;

	cache->stamped.is_known = 0;
	if (cache->features & UMMUNOTIFY_FEATURE_CAUSE)
		region.flags = UMMUNOTIFY_CAUSES_SAME_PAGES;
	if (ioctl(cache->fd, UMMUNOTIFY_REGISTER_REGION, &region)) {
		if (errno != ENOMEM && errno != ENOSPC)
			return -errno;
		return cache->pin(cache, start, length, pin);
	}
	cache->pinning = cookie;
	before = umn_cache_stamp(cache, start, length);
	error = cache->pin(cache, start, length, pin);
	for (round = 0; !error && round < 8; round++) {
		after = umn_cache_stamp(cache, start, length);
		cache->changed_meanwhile = 0;
		error = umn_cache_update(cache);
		if (!error && !cache->changed_meanwhile) {
			/* A change in progress may have replaced a page between the stamps. */
			cache->stamped.value = after.value;
			cache->stamped.is_known = umn_cache_is_same(before, after);
			cache->pinning = 0;
			return 1;
		}
		before = umn_cache_stamp(cache, start, length);
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

/* Opens the device, and requests features. `features` are those that the kernel grants. */
static inline int umn_cache_open_features(struct umn_cache *cache, uint32_t features)
{
	__u32 mask = features;
	int error;

	cache->features = 0;
	cache->fd = open("/dev/ummunotify", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (cache->fd < 0)
		return -errno;
	if (features) {
		if (ioctl(cache->fd, UMMUNOTIFY_EXCHANGE_FEATURES, &mask)) {
			error = -errno;
			close(cache->fd);
			return error;
		}
		cache->features = mask;
	}
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

/* Opens the device, without features. */
static inline int umn_cache_open(struct umn_cache *cache)
{
	return umn_cache_open_features(cache, 0);
}

#endif /* UMN_CACHE_H */
