/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * Interface of /dev/ummunotify, which relays MMU notifier events to the
 * process whose mappings they concern.
 *
 * This file is the only definition of the interface. The driver and the test
 * program take every size, offset and number from it when they are built.
 * See Documentation/userspace-api/ummunotify.rst for the model and the guarantees.
 */
#ifndef _UAPI_LINUX_UMMUNOTIFY_H
#define _UAPI_LINUX_UMMUNOTIFY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct ummunotify_register_ioctl - a region to watch
 * @start: first address of the region, in bytes, of any alignment.
 * @end: first address after the region. Equal to @start, it watches the one
 *	byte at @start; below @start, it is an error.
 * @user_cookie: names the region in events and in UNREGISTER_REGION. Any
 *	value that no other region of the same file has.
 * @flags: ignored unless a negotiated feature gives it a meaning.
 * @reserved: ignored unless a negotiated feature gives it a meaning.
 */
struct ummunotify_register_ioctl {
	__u64 start;
	__u64 end;
	__u64 user_cookie;
	__u32 flags;
	__u32 reserved;
};

/*
 * What a record that read() returns says.
 *
 * INVAL: a mapping inside the region named by the cookie was, or is about to
 * be, changed. Whatever was derived from it (a registration with a network
 * adapter, say) must not be used any more.
 *
 * LAST: nothing is queued any more. The record carries the generation counter
 * at that instant: as long as the mapped counter equals it, nothing happened.
 */
enum {
	UMMUNOTIFY_EVENT_TYPE_INVAL	= 0,
	UMMUNOTIFY_EVENT_TYPE_LAST	= 1
};

/*
 * HINT: hint_start and hint_end enclose all that was invalidated. Without it
 * several invalidations were folded into one record, and they are the bounds
 * of the whole region.
 */
enum {
	UMMUNOTIFY_EVENT_FLAG_HINT	= 1 << 0
};

/**
 * struct ummunotify_event - a record returned by read()
 * @type: UMMUNOTIFY_EVENT_TYPE_INVAL or UMMUNOTIFY_EVENT_TYPE_LAST.
 * @flags: for INVAL, UMMUNOTIFY_EVENT_FLAG_HINT or 0; for LAST, 0.
 * @hint_start: for INVAL, first invalidated address, inside the region.
 * @hint_end: for INVAL, first address after it, inside the region or its end.
 * @user_cookie_counter: for INVAL, the cookie of the region; for LAST, the
 *	generation counter.
 */
struct ummunotify_event {
	__u32 type;
	__u32 flags;
	__u64 hint_start;
	__u64 hint_end;
	__u64 user_cookie_counter;
};

#define UMMUNOTIFY_MAGIC	'U'

/*
 * EXCHANGE_FEATURES: in, the mask of features wanted; out, the subset of it
 * that is granted. At most once, and before the file is used otherwise.
 */
#define UMMUNOTIFY_EXCHANGE_FEATURES	_IOWR(UMMUNOTIFY_MAGIC, 1, __u32)

/* REGISTER_REGION: start to watch a region. */
#define UMMUNOTIFY_REGISTER_REGION	\
	_IOW(UMMUNOTIFY_MAGIC, 2, struct ummunotify_register_ioctl)

/*
 * UNREGISTER_REGION: stop to watch the region whose cookie is pointed to, and
 * forget what is queued for it.
 */
#define UMMUNOTIFY_UNREGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 3, __u64)

#endif /* _UAPI_LINUX_UMMUNOTIFY_H */
