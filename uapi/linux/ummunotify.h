/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/ummunotify: reports changes of a process's mappings to the process.
 *
 * This file is the only definition of the interface. The driver takes every
 * size, offset and number from it. What the calls do, their errors and what is
 * guaranteed is in Documentation/userspace-api/ummunotify.rst.
 */
#ifndef _UAPI_LINUX_UMMUNOTIFY_H
#define _UAPI_LINUX_UMMUNOTIFY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * struct ummunotify_register_ioctl - a region to watch
 * @start: First address of the region. It need not be aligned.
 * @end: First address after the region. If it equals @start, the one byte at
 *	@start is watched. It must not be below @start.
 * @user_cookie: Identifies the region in events and in
 *	UMMUNOTIFY_UNREGISTER_REGION. Any value that no other region of the
 *	same file has.
 * @flags: Ignored unless a negotiated feature defines it.
 * @reserved: Ignored unless a negotiated feature defines it.
 */
struct ummunotify_register_ioctl {
	__u64 start;
	__u64 end;
	__u64 user_cookie;
	__u32 flags;
	__u32 reserved;
};

/**
 * DOC: ummunotify record types
 *
 * UMMUNOTIFY_EVENT_TYPE_INVAL
 *	A mapping in the region was changed, or is about to be. Do not use
 *	anything that was derived from it any more, such as a registration
 *	with a network adapter.
 *
 * UMMUNOTIFY_EVENT_TYPE_LAST
 *	No more events are queued. The record carries the generation counter
 *	at that instant. Nothing has happened since for as long as the mapped
 *	counter has this value.
 */
enum {
	UMMUNOTIFY_EVENT_TYPE_INVAL	= 0,
	UMMUNOTIFY_EVENT_TYPE_LAST	= 1
};

/**
 * DOC: ummunotify record flags
 *
 * UMMUNOTIFY_EVENT_FLAG_HINT
 *	hint_start and hint_end enclose everything that was invalidated.
 *	Without this flag they are the bounds of the region, and any part of it
 *	may have been invalidated.
 */
enum {
	UMMUNOTIFY_EVENT_FLAG_HINT	= 1 << 0
};

/**
 * struct ummunotify_event - a record returned by read()
 * @type: UMMUNOTIFY_EVENT_TYPE_INVAL or UMMUNOTIFY_EVENT_TYPE_LAST.
 * @flags: For INVAL, 0 or UMMUNOTIFY_EVENT_FLAG_HINT. For LAST, 0.
 * @hint_start: For INVAL, the first address of what was invalidated. It is
 *	always inside the region. For LAST, 0.
 * @hint_end: For INVAL, the first address after that. It is never above the
 *	end of the region. For LAST, 0.
 * @user_cookie_counter: For INVAL, the cookie of the region. For LAST, the
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

/**
 * define UMMUNOTIFY_EXCHANGE_FEATURES - negotiate features
 *
 * The argument points to a mask. On entry it holds the features that the
 * program can use, on return those of them that the kernel grants. May be used
 * once, before any other use of the file.
 */
#define UMMUNOTIFY_EXCHANGE_FEATURES	_IOWR(UMMUNOTIFY_MAGIC, 1, __u32)

/**
 * define UMMUNOTIFY_REGISTER_REGION - start watching a region
 *
 * The argument points to a struct ummunotify_register_ioctl.
 */
#define UMMUNOTIFY_REGISTER_REGION	\
	_IOW(UMMUNOTIFY_MAGIC, 2, struct ummunotify_register_ioctl)

/**
 * define UMMUNOTIFY_UNREGISTER_REGION - stop watching a region
 *
 * Stops watching the region whose cookie the argument points to, and discards
 * an event that is queued for it.
 */
#define UMMUNOTIFY_UNREGISTER_REGION	_IOW(UMMUNOTIFY_MAGIC, 3, __u64)

#endif /* _UAPI_LINUX_UMMUNOTIFY_H */
