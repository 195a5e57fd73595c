/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Memory whose mapping changes in all the ways in which programs change it.
 */

#ifndef MEMORY_H
#define MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Changes that may be made to a buffer between two messages. */
enum change {
	NOTHING,
	/* By functions of the C library, which libraries can intercept. */
	FREE,
	REPLACE,
	DISCARD,
	MOVE_OVER,
	/* The same by bare system calls, as language run-times and allocators do. */
	RAW_FREE,
	RAW_REPLACE,
	RAW_DISCARD,
	RAW_MOVE_OVER,
	/* What garbage collectors do. */
	BARRIER,
	EVACUATE,
	FLIP,
	/* By another process, to a file that both map. */
	PUNCH,
	TRUNCATE,
	/* A child that ends at once; the parent writes to the pages they share. */
	FORK,
	CHANGES
};

/* The system calls of each change. */
extern const char *const change_name[CHANGES];

struct buffer {
	unsigned char *start;
	size_t length;
	int file;	/* -1: private memory */
	bool flipped;	/* the second half of the file is mapped */
};

/* Starts the process that changes files for the ranks. Call before starting threads. */
void start_other_process(void);

/* Maps a buffer; if `shared`, of a file. */
void map_buffer(struct buffer *buffer, size_t length, bool shared);

/* Returns whether a change is possible for such a buffer. */
bool change_applies(enum change change, bool shared);

/* Returns whether the buffer has other pages after a change. */
bool moves_pages(enum change change);

/* Makes a change. Afterwards the contents are undefined and the address may differ. */
void change_buffer(struct buffer *buffer, enum change change);

/* Forks a child, which ends at once. */
void have_child(void);

/* Prints what is wrong and aborts all ranks. */
void give_up(const char *what) __attribute__((noreturn));

#endif
