/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Memory that changes under its address, in all the ways in which programs do that.
 */

#ifndef MEMORY_H
#define MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* What may be done to a buffer between two messages. */
enum change {
	NOTHING,
	/* By the functions of the C library, which libraries intercept. */
	FREE,
	REPLACE,
	DISCARD,
	MOVE_OVER,
	/* The same by the system call itself, as run-times of other languages and allocators do. */
	RAW_FREE,
	RAW_REPLACE,
	RAW_DISCARD,
	RAW_MOVE_OVER,
	/* What garbage collectors do. */
	BARRIER,
	EVACUATE,
	FLIP,
	/* By another process, to a file that both have mapped. */
	PUNCH,
	TRUNCATE,
	/* A child, which ends at once; the parent writes to what they share. */
	FORK,
	CHANGES
};

/* What it is in terms of system calls. */
extern const char *const change_name[CHANGES];

struct buffer {
	unsigned char *start;
	size_t length;
	int file;	/* -1: private memory */
	bool flipped;	/* the second half of the file is mapped */
};

/* Changes files on behalf of others. There is to be one before there are threads. */
void start_other_process(void);

/* Maps a buffer; of a file, if `shared`. */
void map_buffer(struct buffer *buffer, size_t length, bool shared);

/* Can this be done to such a buffer? */
bool change_applies(enum change change, bool shared);

/* Does the buffer have other pages after it? */
bool moves_pages(enum change change);

/* After that the buffer holds anything, and may be elsewhere. */
void change_buffer(struct buffer *buffer, enum change change);

/* Says what is wrong and ends the program, with all its ranks. */
void give_up(const char *what) __attribute__((noreturn));

#endif
