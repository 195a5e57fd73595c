/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * What the tests of the libraries share: memory that changes, and processes that must end well.
 *
 * Each test runs in a separate process, with the library loaded as its flags say. It passes if it exits
 * with 0 and the library's log has the expected text.
 */

#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>

#define PAGE 4096UL
#define DEVICE "/dev/ummunotify"

/* Ends the test unless the condition holds. */
#define check(condition) \
	do { \
		if (!(condition)) \
			fail(__LINE__, #condition); \
	} while (0)

void fail(int line, const char *what) __attribute__((noreturn));

/* --- memory ----------------------------------------------------------------------------------- */

char *map(void *at, size_t length);

/*
 * Memory far below the addresses that the kernel chooses, so that nobody else maps anything there
 * between an munmap() and the next mmap().
 */
char *map_apart(size_t length);

/* Writes to each page. */
void touch(char *start, size_t length);

/* Maps other frames there, in one of the ways in which programs do so, by raw system calls. */
void change(char *start, size_t length, unsigned int way);

unsigned int draw(unsigned int *state);

/* Whether this process may lock more memory than its limit says. */
void may_exceed_limits(bool may);

/* --- processes -------------------------------------------------------------------------------- */

/* Waits for a child, for a minute at most, and returns its status. A child that hangs is killed. */
int wait_for(int child);

/*
 * Has children end in all ways, each after a call of `begin`, which starts so many threads that use the
 * library. Each must end, with the status that belongs to the way.
 */
void end_in_all_ways(void (*begin)(int threads));

/*
 * Unloads and loads the driver, over and over, while `use` runs in one child after the other. All of
 * them must succeed. Afterwards the driver is loaded.
 */
void unload_meanwhile(void (*use)(void));

/* --- tests ------------------------------------------------------------------------------------ */

enum {
	WITHOUT = 1 << 0,	/* without the library */
	HIDE = 1 << 1,		/* without the device */
	FORBID = 1 << 2,	/* without the right to open it */
	SILENT = 1 << 3,	/* without a log */
	ON_DEMAND = 1 << 4,	/* only if it is named */
	PRELOAD = 1 << 5,	/* by LD_PRELOAD, even if the suite has a variable */
	LINKED = 1 << 6,	/* as if the program were linked to what it loads otherwise */
};

struct test {
	const char *name;
	void (*run)(void);	/* none: run the program late, beside the library's directory */
	int flags;
	const char *says;	/* a part of the library's log */
};

struct suite {
	const char *library;
	const char *variable;	/* which names its directory; none: use LD_PRELOAD */
	const char *linked;	/* the library for LINKED */
	const struct test *tests;
	size_t count;
	const char *fault;	/* what the middleware prints when it ends by a known fault of its own */
};

/* The main() of a test program: DIRECTORY-OF-THE-LIBRARY [TEST...]. Prints the results as KTAP. */
int run_suite(const struct suite *suite, int count, char **arguments);

#endif
