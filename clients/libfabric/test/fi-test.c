/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Tests libummunotify-fi.so with the real libfabric, its verbs provider, and soft-RoCE.
 *
 * usage: fi-test DIRECTORY-OF-THE-LIBRARY [TEST...]
 *
 * The test records the page frames that were mapped when a registration was made. Pinned frames stay,
 * so the registration is stale if other frames are mapped later.
 */

#define _GNU_SOURCE
#include "harness.h"
#include "verbs.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ADDRESS "10.0.0.1"	/* of the adapter */

/* --- what is pinned --------------------------------------------------------------------------- */

/* The length of the longest buffer whose frames are checked. */
#define MOST_PAGES 4

/* The frames that registrations have pinned, indexed by key. */
static struct pinned {
	_Atomic uint32_t key;
	uint64_t frames[MOST_PAGES];
} pinned[1 << 20];

static struct pinned *pinned_by(uint32_t key)
{
	/* The lower bits of a key are random. */
	return &pinned[(key >> 8) % (1 << 20)];
}

static int pagemap;
static _Atomic unsigned long registrations;

/* Called right after a buffer was pinned, in place of another thread. */
static void (*_Atomic after_pin)(void *start, size_t length);

/* Each child needs its own: the file describes the process that opened it. */
static void __attribute__((constructor)) open_pagemap(void)
{
	pagemap = open("/proc/self/pagemap", O_RDONLY);
	check(pagemap >= 0);
}

static void frames(const void *start, size_t length, uint64_t *found)
{
	size_t pages = (length + PAGE - 1) / PAGE;

	check(pages <= MOST_PAGES);
	check(pread(pagemap, found, pages * 8, (uintptr_t)start / PAGE * 8) == (ssize_t)pages * 8);
	for (size_t i = 0; i < pages; i++)
		found[i] &= (1UL << 55) - 1;
}

void registered(struct ibv_mr *mr, void *start, size_t length)
{
	void (*change)(void *, size_t);

	atomic_fetch_add(&registrations, 1);
	if (!mr)
		return;
	if (length <= MOST_PAGES * PAGE) {
		struct pinned *place = pinned_by(mr->rkey);

		frames(start, length, place->frames);
		atomic_store(&place->key, mr->rkey);
	}
	change = after_pin ? atomic_exchange(&after_pin, NULL) : NULL;
	if (change)
		change(start, length);
}

/* Whether the mapped frames differ from those that the registration has pinned. */
static bool is_stale(struct fid_mr *mr, const void *start, size_t length)
{
	struct pinned *place = pinned_by(fi_mr_key(mr));
	uint64_t mapped[MOST_PAGES];

	check(place->key == (uint32_t)fi_mr_key(mr));
	frames(start, length, mapped);
	return memcmp(mapped, place->frames, (length + PAGE - 1) / PAGE * 8) != 0;
}

/* --- libfabric -------------------------------------------------------------------------------- */

static struct fi_info *info;
static struct fid_fabric *fabric;

static struct fid_domain *open_domain(void)
{
	struct fid_domain *domain;

	if (!fabric) {
		struct fi_info *hints = fi_allocinfo();

		hints->caps = FI_MSG | FI_RMA;
		hints->ep_attr->type = FI_EP_MSG;
		hints->fabric_attr->prov_name = strdup("verbs");
		hints->domain_attr->mr_mode =
			FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
		check(fi_getinfo(FI_VERSION(1, 13), ADDRESS, NULL, FI_SOURCE, hints, &info) == 0);
		check(fi_fabric(info->fabric_attr, &fabric, NULL) == 0);
		fi_freeinfo(hints);
	}
	check(fi_domain(fabric, info, &domain, NULL) == 0);
	return domain;
}

static struct fid_mr *reg(struct fid_domain *domain, void *start, size_t length)
{
	struct fid_mr *mr;

	check(fi_mr_reg(domain, start, length, FI_SEND | FI_RECV, 0, 0, 0, &mr, NULL) == 0);
	return mr;
}

static void done(struct fid_mr *mr)
{
	check(fi_close(&mr->fid) == 0);
}

/* --- the tests -------------------------------------------------------------------------------- */

#define THREADS 8
#define BUFFERS 8

static unsigned long look_ups = 20000;
static struct fid_domain *domains[2];
static _Atomic unsigned long stale;

static void *look_up(void *argument)
{
	unsigned int state = (unsigned int)(uintptr_t)argument;
	char *buffers[BUFFERS];

	for (int i = 0; i < BUFFERS; i++) {
		buffers[i] = map_apart(MOST_PAGES * PAGE);
		touch(buffers[i], MOST_PAGES * PAGE);
	}
	for (unsigned long i = 0; i < look_ups / THREADS; i++) {
		char *buffer = buffers[draw(&state) % BUFFERS];
		/* For a cache, these are two buffers with the same start. */
		size_t length = (draw(&state) % 2 + 1) * MOST_PAGES / 2 * PAGE;
		struct fid_mr *mr;

		if (draw(&state) % 6 == 0)
			change(buffer, length, draw(&state));
		mr = reg(domains[draw(&state) % 2], buffer, length);
		stale += is_stale(mr, buffer, length);
		done(mr);
	}
	return NULL;
}

static void look_up_with_threads(void)
{
	pthread_t threads[THREADS];

	for (int i = 0; i < 2; i++)
		domains[i] = open_domain();
	for (uintptr_t i = 0; i < THREADS; i++)
		check(pthread_create(&threads[i], NULL, look_up, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		check(pthread_join(threads[i], NULL) == 0);
	for (int i = 0; i < 2; i++)
		check(fi_close(&domains[i]->fid) == 0);
	printf("stale: %lu of %lu look-ups, %lu registrations\n", stale, look_ups, registrations);
}

static void threads(void)
{
	look_up_with_threads();
	check(stale == 0);
	/* It is still a cache. */
	check(registrations < look_ups);
}

/* Without the library, registrations do go stale. */
static void threads_without(void)
{
	look_up_with_threads();
	check(stale > 0);
}

static void replace(void *start, size_t length)
{
	change(start, length, 1);
}

/* The memory changes between being pinned and being subscribed to, at each registration in turn. */
static void change_after_pin_in_turn(void)
{
	struct fid_domain *domain = open_domain();

	for (int nth = 0; nth < 4; nth++) {
		char *buffer = map_apart(2 * PAGE);

		touch(buffer, 2 * PAGE);
		for (int i = 0; i < 8; i++) {
			struct fid_mr *mr;

			if (i == nth) {
				change(buffer, 2 * PAGE, nth);
				after_pin = replace;
			}
			mr = reg(domain, buffer, 2 * PAGE);
			/* A change during the registration is the caller's fault. */
			if (i != nth)
				check(!is_stale(mr, buffer, 2 * PAGE));
			done(mr);
		}
	}
	check(fi_close(&domain->fid) == 0);
}

/* Then with a new domain, of which nothing is known although the thread is the same. */
static void change_after_pin(void)
{
	change_after_pin_in_turn();
	change_after_pin_in_turn();
}

/* Two domains have the same buffer, and are asked in turn. */
static void two_domains(void)
{
	char *buffer = map_apart(PAGE);
	unsigned long before;

	for (int i = 0; i < 2; i++)
		domains[i] = open_domain();
	for (int round = 0; round < 50; round++) {
		change(buffer, PAGE, round);
		for (int i = 0; i < 6; i++) {
			struct fid_mr *mr = reg(domains[i % 2], buffer, PAGE);

			check(!is_stale(mr, buffer, PAGE));
			done(mr);
		}
	}
	/* Without changes, it becomes a hit again. */
	for (int i = 0; i < 50 && registrations > 0; i++) {
		usleep(20000);
		registrations = 0;
		done(reg(domains[i % 2], buffer, PAGE));
		done(reg(domains[(i + 1) % 2], buffer, PAGE));
	}
	before = registrations;
	for (int i = 0; i < 1000; i++)
		done(reg(domains[i % 2], buffer, PAGE));
	check(registrations == before);
	for (int i = 0; i < 2; i++)
		check(fi_close(&domains[i]->fid) == 0);
}

/* Changes page tables, but no page of this process. */
static void keep_pages(char *start, size_t length)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	check(wait_for(child) == 0);
	check(mprotect(start, length, PROT_READ) == 0);
	check(mprotect(start, length, PROT_READ | PROT_WRITE) == 0);
	touch(start, length);
}

/* A buffer is registered twice at first, and once after each change. */
static void few_registrations(void)
{
	struct fid_domain *domain = open_domain();
	char *buffer = map_apart(PAGE);

	touch(buffer, PAGE);
	registrations = 0;
	for (int i = 0; i < 10000; i++)
		done(reg(domain, buffer, PAGE));
	check(registrations == 2);
	for (int i = 0; i < 10; i++) {
		struct fid_mr *mr;

		keep_pages(buffer, PAGE);
		mr = reg(domain, buffer, PAGE);
		check(!is_stale(mr, buffer, PAGE));
		done(mr);
	}
	check(registrations == 2);
	for (int round = 0; round < 20; round++) {
		change(buffer, PAGE, round);
		for (int i = 0; i < 10; i++)
			done(reg(domain, buffer, PAGE));
	}
	printf("%lu registrations\n", registrations);
	/* And twice if the thread was faster than the look-up, which is rare. */
	check(registrations >= 22 && registrations <= 42);
	check(fi_close(&domain->fid) == 0);
}

/*
 * The cost of a hit in nanoseconds; with --icount, these are instructions. MOST_COST is the
 * maximum.
 */
static void cost(void)
{
	struct fid_domain *domain = open_domain();
	char *buffer = map_apart(PAGE);
	struct timespec begin, end;
	const int times = 10000;
	const char *most = getenv("MOST_COST");
	long each;

	touch(buffer, PAGE);
	for (int i = 0; i < 100; i++)
		done(reg(domain, buffer, PAGE));
	clock_gettime(CLOCK_MONOTONIC, &begin);
	for (int i = 0; i < times; i++)
		done(reg(domain, buffer, PAGE));
	clock_gettime(CLOCK_MONOTONIC, &end);
	each = ((end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec) / times;
	printf("cost: %ld\n", each);
	check(!most || each <= atol(most));
	check(fi_close(&domain->fid) == 0);
}

static void many_buffers(void)
{
	const size_t many = 10000;
	struct fid_domain *domain;
	char *start = map_apart(2 * many * PAGE);
	unsigned int state = 1;

	setenv("FI_MR_CACHE_MAX_COUNT", "20000", 1);
	domain = open_domain();
	touch(start, 2 * many * PAGE);
	for (int round = 0; round < 4; round++) {
		for (size_t i = 0; i < many; i++) {
			char *buffer = start + 2 * i * PAGE;
			struct fid_mr *mr;

			if (round == 2 && draw(&state) % 2)
				change(buffer, PAGE, draw(&state));
			mr = reg(domain, buffer, PAGE);
			check(!is_stale(mr, buffer, PAGE));
			done(mr);
		}
		printf("round %d: %lu registrations\n", round, registrations);
	}
	check(fi_close(&domain->fid) == 0);
}

/* Domains come and go, alone and beside another. */
static void start_and_stop(void)
{
	char *buffer = map_apart(PAGE);

	for (int round = 0; round < 30; round++) {
		struct fid_domain *one = open_domain(), *other = round % 3 ? NULL : open_domain();

		for (int i = 0; i < 4; i++) {
			struct fid_mr *mr;

			change(buffer, PAGE, round + i);
			mr = reg(i % 2 && other ? other : one, buffer, PAGE);
			check(!is_stale(mr, buffer, PAGE));
			done(mr);
		}
		check(fi_close(&one->fid) == 0);
		if (other)
			check(fi_close(&other->fid) == 0);
	}
}

/* --- ends of all kinds ------------------------------------------------------------------------ */

static void *look_up_for_ever(void *argument)
{
	look_ups = ~0UL;
	return look_up(argument);
}

static void begin_look_ups(int count)
{
	pthread_t thread;

	for (int i = 0; i < 2; i++)
		domains[i] = open_domain();
	for (uintptr_t i = 0; i < (uintptr_t)count; i++)
		check(pthread_create(&thread, NULL, look_up_for_ever, (void *)i) == 0);
	usleep(100000);
}

/* Without threads, but with a registration in use and the domain open. */
static void begin(int threads)
{
	open_pagemap();
	begin_look_ups(threads);
	if (threads == 0)
		reg(domains[0], map(NULL, PAGE), PAGE);
}

static void ends(void)
{
	end_in_all_ways(begin);
}

/*
 * A child may do anything, and the parent continues. libfabric itself does not survive a fork while
 * another thread holds its locks, so the child that uses it has a parent that does not.
 */
static void fork_while_in_use(void)
{
	char *arguments[] = { "true", NULL }, *buffer = map_apart(PAGE);

	for (int i = 0; i < 12; i++) {
		struct fid_mr *mr;
		pid_t child;
		int status;

		if (i == 6)
			begin_look_ups(2);
		if (i < 6) {
			if (i == 0)
				domains[0] = open_domain();
			change(buffer, PAGE, i);
			mr = reg(domains[0], buffer, PAGE);
			check(!is_stale(mr, buffer, PAGE));
			done(mr);
		}
		child = fork();
		if (child == 0) {
			/* It has other frames, so the parent's registrations are stale. */
			if (i < 3) {
				registrations = 0;
				open_pagemap();
				touch(buffer, PAGE);
				for (int again = 0; again < 3; again++) {
					mr = reg(domains[0], buffer, PAGE);
					check(!is_stale(mr, buffer, PAGE));
					done(mr);
				}
				check(registrations == 3);
			}
			if (i % 3 == 0 && i < 6)
				exit(0);
			if (i % 3 == 1)
				_exit(0);
			execv("/bin/true", arguments);
			_exit(1);
		}
		status = wait_for(child);
		check(status == 0);
		usleep(20000);
	}
	check(stale == 0);
	_exit(0);
}

static void unload(void)
{
	int (*version)(void);
	void *library;

	for (int i = 0; i < 3; i++) {
		library = dlopen("libfabric.so.1", RTLD_NOW);
		check(library);
		version = dlsym(library, "fi_version");
		check(version && version() > 0);
		start_and_stop();
		check(dlclose(library) == 0);
		library = dlopen("libummunotify-fi.so", RTLD_NOW);
		check(!library || dlclose(library) == 0);
	}
}

/* A signal to the process waits for one of the program's own threads. */
static void signals(void)
{
	struct fid_domain *domain = open_domain();
	sigset_t all, pending;

	sigfillset(&all);
	check(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
	check(kill(getpid(), SIGUSR1) == 0);
	usleep(100000);
	check(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
	check(fi_close(&domain->fid) == 0);
}

/* --- when the library cannot work ------------------------------------------------------------- */

static void works_uncached_or_not(void)
{
	struct fid_domain *domain = open_domain();
	char *buffer = map_apart(PAGE);

	for (int i = 0; i < 20; i++) {
		touch(buffer, PAGE);
		done(reg(domain, buffer, PAGE));
	}
	check(fi_close(&domain->fid) == 0);
}

static void no_device(void)
{
	works_uncached_or_not();
}

static void disabled(void)
{
	setenv("FI_MR_CACHE_MONITOR", "disabled", 1);
	works_uncached_or_not();
	/* libfabric has no cache then. */
	check(registrations == 20);
}

/* It may be there when libfabric is given the monitor, and gone when a domain is opened. */
static void unloaded(void)
{
	unload_meanwhile(works_uncached_or_not);
}

static void no_permission(void)
{
	check(setgid(65534) == 0 && setuid(65534) == 0);
	works_uncached_or_not();
}

/* Beyond the locked-memory limit, memory is not cached. The adapter has no limit here. */
static void limit_hit(void)
{
	const struct rlimit limit = { 40 * PAGE, 40 * PAGE };
	struct fid_domain *domain;
	char *start = map_apart(4000 * PAGE);

	setenv("FI_MR_CACHE_MAX_COUNT", "5000", 1);
	check(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
	may_exceed_limits(false);
	domain = open_domain();
	may_exceed_limits(true);
	touch(start, 4000 * PAGE);
	for (int round = 0; round < 3; round++)
		for (int i = 0; i < 2000; i++) {
			char *buffer = start + 2UL * i * PAGE;
			struct fid_mr *mr;

			if (i % 5 == 0)
				change(buffer, PAGE, i);
			mr = reg(domain, buffer, PAGE);
			check(!is_stale(mr, buffer, PAGE));
			done(mr);
		}
	check(fi_close(&domain->fid) == 0);
}

/* --- how they are run ------------------------------------------------------------------------- */

static const struct test tests[] = {
	{ "fi_threads_and_domains", threads, 0, "libfabric.so.1 uses /dev/ummunotify" },
	{ "fi_without_it_is_stale", threads_without, WITHOUT, NULL },
	{ "fi_change_after_pin", change_after_pin, 0, "unproven" },
	{ "fi_two_domains_share_a_buffer", two_domains, 0, "evictions" },
	{ "fi_few_registrations", few_registrations, 0, "0 of them not cached" },
	{ "fi_many_buffers", many_buffers, 0, "0 of them not cached" },
	{ "fi_start_and_stop", start_and_stop, 0, NULL },
	{ "fi_ends", ends, SILENT, NULL },
	{ "fi_fork", fork_while_in_use, SILENT, NULL },
	{ "fi_dlclose", unload, 0, "look-ups" },
	{ "fi_preload", few_registrations, PRELOAD, "libfabric.so.1 uses /dev/ummunotify" },
	{ "fi_preload_before_libfabric", NULL, PRELOAD, "libfabric.so.1 uses /dev/ummunotify" },
	{ "fi_signals", signals, 0, "libfabric.so.1 uses /dev/ummunotify" },
	{ "fi_disabled", disabled, 0, "FI_MR_CACHE_MONITOR=disabled" },
	{ "fi_no_device", no_device, HIDE, "cannot open /dev/ummunotify: No such file" },
	{ "fi_no_device_is_silent", no_device, HIDE | SILENT, NULL },
	{ "fi_unloaded", unloaded, SILENT, NULL },
	{ "fi_no_permission", no_permission, FORBID, "cannot open /dev/ummunotify: Permission denied" },
	{ "fi_limit", limit_hit, 0, "memory that cannot be watched is not cached" },
	{ "fi_cost", cost, ON_DEMAND, NULL },
	{ "fi_cost_without", cost, ON_DEMAND | WITHOUT, NULL },
};

int main(int count, char **arguments)
{
	const struct suite suite = {
		"libummunotify-fi.so", "FI_PROVIDER_PATH", NULL, tests, sizeof(tests) / sizeof(tests[0]), NULL
	};
	const char *wanted = getenv("LOOK_UPS");

	if (wanted)
		look_ups = strtoul(wanted, NULL, 0);
	return run_suite(&suite, count, arguments);
}
