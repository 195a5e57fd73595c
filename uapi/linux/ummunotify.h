/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * /dev/ummunotify: reports changes of a process's mappings to the process.
 *
 * This file is the only definition of the interface. The driver takes every
 * size, offset and number from it. The calls, their errors and the guarantees
 * are described in Documentation/userspace-api/ummunotify.rst.
 */
#ifndef _UAPI_LINUX_UMMUNOTIFY_H
#define _UAPI_LINUX_UMMUNOTIFY_H

#include <linux/ioctl.h>
#include <linux/types.h>

/**
 * DOC: ummunotify features
 *
 * Bits of the mask that UMMUNOTIFY_EXCHANGE_FEATURES negotiates. A file without
 * granted features behaves exactly as in version 2 of the interface.
 *
 * UMMUNOTIFY_FEATURE_CAUSE
 *	Events carry the causes of the changes, and each region can ignore
 *	causes that leave the page frames unchanged.
 *
 * UMMUNOTIFY_FEATURE_HULL
 *	A region that is hit again before its event is read keeps a hint, which
 *	encloses all of its changes. Without the feature the event is about the
 *	whole region.
 *
 * UMMUNOTIFY_FEATURE_STAMP
 *	UMMUNOTIFY_STAMP can be called. Not offered on architectures without
 *	fast GUP.
 */
enum {
	UMMUNOTIFY_FEATURE_CAUSE	= 1 << 0,
	UMMUNOTIFY_FEATURE_HULL		= 1 << 1,
	UMMUNOTIFY_FEATURE_STAMP	= 1 << 2
};

/**
 * DOC: ummunotify causes of change
 *
 * UMMUNOTIFY_CAUSE_UNMAP
 *	The memory was unmapped, moved, or replaced: munmap(), mremap(), brk(),
 *	shmdt(), MAP_FIXED. Other page frames are there now, or none.
 *
 * UMMUNOTIFY_CAUSE_CLEAR
 *	Entries of the page table were cleared, as by MADV_DONTNEED, truncation,
 *	copy on write, reclaim, migration, KSM, or the splitting or collapsing
 *	of a huge page. Other page frames may be there, or the same.
 *
 * UMMUNOTIFY_CAUSE_PROTECT_AREA
 *	Protections of an area were changed, as by mprotect(), NUMA balancing or
 *	userfaultfd. The page frames are the same.
 *
 * UMMUNOTIFY_CAUSE_PROTECT_PAGES
 *	Pages were made read-only, as by fork() and write-back. The page frames
 *	are the same.
 *
 * UMMUNOTIFY_CAUSE_SOFT_DIRTY
 *	Tracking of writes was restarted, through /proc/PID/clear_refs. The page
 *	frames are the same.
 *
 * UMMUNOTIFY_CAUSE_DEVICE
 *	Pages were moved to or from the memory of a device, or became exclusive
 *	to one. Other page frames may be there.
 *
 * UMMUNOTIFY_CAUSE_OTHER
 *	A kind of change that this version of the driver does not know.
 *
 * UMMUNOTIFY_CAUSES_SAME_PAGES
 *	The causes that leave the same page frames at the same addresses. A
 *	region may ignore only these. A later change that gives a page another
 *	frame raises UNMAP, CLEAR or DEVICE itself, so a program that only
 *	cares which frames are mapped misses nothing. Do not ignore them if
 *	anything was derived from the protections.
 */
enum {
	UMMUNOTIFY_CAUSE_UNMAP		= 1 << 0,
	UMMUNOTIFY_CAUSE_CLEAR		= 1 << 1,
	UMMUNOTIFY_CAUSE_PROTECT_AREA	= 1 << 2,
	UMMUNOTIFY_CAUSE_PROTECT_PAGES	= 1 << 3,
	UMMUNOTIFY_CAUSE_SOFT_DIRTY	= 1 << 4,
	UMMUNOTIFY_CAUSE_DEVICE		= 1 << 5,
	UMMUNOTIFY_CAUSE_OTHER		= 1 << 15,
	UMMUNOTIFY_CAUSES_SAME_PAGES	= UMMUNOTIFY_CAUSE_PROTECT_AREA |
					  UMMUNOTIFY_CAUSE_PROTECT_PAGES |
					  UMMUNOTIFY_CAUSE_SOFT_DIRTY
};

/**
 * struct ummunotify_register_ioctl - a region to watch
 * @start: First address of the region. It need not be aligned.
 * @end: First address after the region. If it equals @start, the one byte at
 *	@start is watched. It must not be below @start.
 * @user_cookie: Identifies the region in events and in
 *	UMMUNOTIFY_UNREGISTER_REGION. No other region of the file may have the
 *	same value.
 * @flags: Ignored if no feature was granted. With
 *	UMMUNOTIFY_FEATURE_CAUSE, the causes of change that the region ignores:
 *	any of UMMUNOTIFY_CAUSES_SAME_PAGES. With other features alone, 0.
 * @reserved: Ignored if no feature was granted, otherwise 0.
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
 *	at that instant. As long as the mapped counter has this value, nothing
 *	has happened since.
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
 *
 * UMMUNOTIFY_EVENT_CAUSES_SHIFT
 *	With UMMUNOTIFY_FEATURE_CAUSE, the flags of an INVAL record shifted down
 *	by this many bits are the causes of all changes since the event was
 *	queued, at least one. Without the feature they are 0.
 */
enum {
	UMMUNOTIFY_EVENT_FLAG_HINT	= 1 << 0,
	UMMUNOTIFY_EVENT_CAUSES_SHIFT	= 16
};

/**
 * struct ummunotify_event - a record returned by read()
 * @type: UMMUNOTIFY_EVENT_TYPE_INVAL or UMMUNOTIFY_EVENT_TYPE_LAST.
 * @flags: For INVAL, UMMUNOTIFY_EVENT_FLAG_HINT or 0, and from bit
 *	UMMUNOTIFY_EVENT_CAUSES_SHIFT on the causes. For LAST, 0.
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

/**
 * struct ummunotify_stamp_ioctl - which page frames are mapped
 * @start: First address of the range. It is rounded down to a page.
 * @end: First address after the range. It is rounded up to a page. If it equals
 *	@start, the range is the page of @start. It must not be below @start.
 * @stamp: Returned. The stamp, or 0 if @absent is not 0.
 * @absent: Returned. How many pages could not be looked up. If it is not 0, the
 *	stamp is meaningless.
 * @flags: Must be 0.
 */
struct ummunotify_stamp_ioctl {
	__u64 start;
	__u64 end;
	__u64 stamp;
	__u32 absent;
	__u32 flags;
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

/**
 * define UMMUNOTIFY_STAMP - identify the page frames mapped in a range
 *
 * The argument points to a struct ummunotify_stamp_ioctl. Needs
 * UMMUNOTIFY_FEATURE_STAMP.
 *
 * If two stamps of the same range by the same file are equal, and no page was
 * absent for either, then the same page frames were at the same addresses when
 * each page was looked up. This can be wrong by chance, for n pages with a
 * probability of at most n * 2^-60. Different stamps prove nothing.
 *
 * A frame that was freed and allocated again counts as the same. So stamps only
 * prove something about memory that the caller kept pinned from before the first
 * stamp until after the second.
 */
#define UMMUNOTIFY_STAMP	\
	_IOWR(UMMUNOTIFY_MAGIC, 4, struct ummunotify_stamp_ioctl)

#endif /* _UAPI_LINUX_UMMUNOTIFY_H */
