/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause */
/*
 * Tests libummunotify-fi.so with the real libfabric, its verbs provider, and soft-RoCE.
 *
 * usage: fi-test DIRECTORY-OF-THE-LIBRARY [TEST...]
 *
 * Each test runs in a separate process, into which libfabric loads the library because of
 * FI_PROVIDER_PATH. The test records the page frames that were mapped when a registration was made.
 * Pinned frames stay, so the registration is stale if other frames are mapped later.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <linux/capability.h>
#include <pthread.h>
#include <rdma/fabric.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096UL
#define DEVICE "/dev/ummunotify"
#define ADDRESS "10.0.0.1"	/* of the adapter */

#define check(condition) \
	do { \
		if (!(condition)) \
			fail(__LINE__, #condition); \
	} while (0)

static void fail(int line, const char *what)
{
	printf("line %d: %s (%s)\n", line, what, strerror(errno));
	exit(1);
}

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

/* Each process needs its own: the file describes the process that opened it. */
static void open_pagemap(void)
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

/* libibverbs calls one of the functions below from the other. */
static __thread int depth;

static struct ibv_mr *made(struct ibv_mr *mr, void *start, size_t length)
{
	if (--depth > 0)
		return mr;
	atomic_fetch_add(&registrations, 1);
	if (mr && length <= MOST_PAGES * PAGE) {
		struct pinned *place = pinned_by(mr->rkey);

		frames(start, length, place->frames);
		atomic_store(&place->key, mr->rkey);
	}
	if (mr && after_pin) {
		void (*change)(void *, size_t) = atomic_exchange(&after_pin, NULL);

		if (change)
			change(start, length);
	}
	return mr;
}

/* libfabric finds these before those of libibverbs. */
#undef ibv_reg_mr
struct ibv_mr *ibv_reg_mr(struct ibv_pd *pd, void *start, size_t length, int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, int) = dlsym(RTLD_NEXT, "ibv_reg_mr");

	depth++;
	return made(real(pd, start, length, access), start, length);
}

struct ibv_mr *ibv_reg_mr_iova2(struct ibv_pd *pd, void *start, size_t length, uint64_t iova,
				unsigned int access)
{
	struct ibv_mr *(*real)(struct ibv_pd *, void *, size_t, uint64_t, unsigned int) =
		dlsym(RTLD_NEXT, "ibv_reg_mr_iova2");

	depth++;
	return made(real(pd, start, length, iova, access), start, length);
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

/* --- memory ----------------------------------------------------------------------------------- */

static char *map(void *at, size_t length)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
	char *start = (char *)syscall(SYS_mmap, at, length, PROT_READ | PROT_WRITE, flags, -1, 0L);

	check(start != MAP_FAILED);
	return start;
}

/*
 * Memory far below the addresses that the kernel chooses, so that nobody else maps anything there
 * between an munmap() and the next mmap().
 */
static char *map_apart(size_t length)
{
	static _Atomic uintptr_t next = 64UL << 30;

	return map((void *)atomic_fetch_add(&next, length + PAGE), length);
}

static void touch(char *start, size_t length)
{
	for (size_t i = 0; i < length; i += PAGE)
		start[i]++;
}

/* Maps other frames there, in one of the ways in which programs do so. */
static void change(char *start, size_t length, unsigned int way)
{
	char *other;

	switch (way % 4) {
	case 0:
		check(syscall(SYS_munmap, start, length) == 0);
		map(start, length);
		break;
	case 1:
		check(syscall(SYS_madvise, start, length, MADV_DONTNEED) == 0);
		break;
	case 2:
		map(start, length);
		break;
	case 3:
		other = map(NULL, length);
		touch(other, length);
		check((char *)syscall(SYS_mremap, other, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, start) ==
		      start);
		break;
	}
	touch(start, length);
}

static unsigned int draw(unsigned int *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
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
static void change_after_pin(void)
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

static void *exit_here(void *status)
{
	exit((int)(uintptr_t)status);
}

/* Ends with everything in use; the caller expects the status. */
static void end_by(int way)
{
	char *arguments[] = { "true", NULL };
	pthread_t thread;

	begin_look_ups(way == 6 ? 0 : 4);
	switch (way) {
	case 0:
		exit(0);
	case 1:
		_exit(0);
	case 2:
		abort();
	case 3:
		kill(getpid(), SIGKILL);
		break;
	case 4:
		check(pthread_create(&thread, NULL, exit_here, NULL) == 0);
		pthread_exit(NULL);
	case 5:
		execv("/bin/true", arguments);
		break;
	case 6:
		/* Without threads, but with a registration in use and the domain open. */
		reg(domains[0], map(NULL, PAGE), PAGE);
		exit(0);
	case 7:
		raise(SIGTERM);
		break;
	}
	pause();
}

static void ends(void)
{
	const int expected[] = { 0, 0, SIGABRT, SIGKILL, 0, 0, 0, SIGTERM };

	for (int way = 0; way < 8; way++) {
		int status;
		pid_t child = fork();

		if (child == 0) {
			open_pagemap();
			end_by(way);
		}
		for (int i = 0; waitpid(child, &status, WNOHANG) == 0; i++) {
			if (i == 1000) {
				printf("way %d to end takes more than 10 s\n", way);
				kill(child, SIGKILL);
			}
			usleep(10000);
		}
		if (WIFSIGNALED(status) ? WTERMSIG(status) != expected[way] :
					  WEXITSTATUS(status) != 0 || expected[way] != 0) {
			printf("way %d ended with status %#x\n", way, status);
			check(false);
		}
	}
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
		for (int wait = 0; waitpid(child, &status, WNOHANG) == 0; wait++) {
			if (wait == 1000)
				check(!"the child hangs");
			usleep(10000);
		}
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

static void no_permission(void)
{
	check(setgid(65534) == 0 && setuid(65534) == 0);
	works_uncached_or_not();
}

static void may_exceed_limits(bool may)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct sets[2];

	check(syscall(SYS_capget, &header, sets) == 0);
	if (may)
		sets[0].effective |= 1U << CAP_IPC_LOCK;
	else
		sets[0].effective &= ~(1U << CAP_IPC_LOCK);
	check(syscall(SYS_capset, &header, sets) == 0);
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

enum {
	WITHOUT = 1 << 0,	/* without the library */
	HIDE = 1 << 1,		/* without the device */
	FORBID = 1 << 2,	/* without the right to open it */
	SILENT = 1 << 3,	/* without being asked to print anything */
	ON_DEMAND = 1 << 4,	/* only if it is named */
	PRELOAD = 1 << 5,	/* by LD_PRELOAD, and not by FI_PROVIDER_PATH */
};

static const struct test {
	const char *name;
	void (*run)(void);	/* none: late.c, which loads libfabric late */
	int flags;
	const char *says;	/* a part of the library's log */
} tests[] = {
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
	{ "fi_no_device", no_device, HIDE, "cannot open /dev/ummunotify: No such file" },
	{ "fi_no_device_is_silent", no_device, HIDE | SILENT, NULL },
	{ "fi_no_permission", no_permission, FORBID, "cannot open /dev/ummunotify: Permission denied" },
	{ "fi_limit", limit_hit, 0, "memory that cannot be watched is not cached" },
	{ "fi_cost", cost, ON_DEMAND, NULL },
	{ "fi_cost_without", cost, ON_DEMAND | WITHOUT, NULL },
};
#define TESTS (sizeof(tests) / sizeof(tests[0]))

/* Runs one test in this process. */
static void run_here(const struct test *test)
{
	alarm(1500);
	open_pagemap();
	test->run();
	exit(0);
}

static bool run(const struct test *test, const char *directory)
{
	FILE *output = tmpfile(), *errors = tmpfile();
	static char text[65536];
	bool passed = true;
	mode_t mode = test->flags & FORBID ? 0600 : 0666;
	pid_t child;
	int status;

	chmod(DEVICE, mode);
	if (test->flags & HIDE)
		check(rename(DEVICE, DEVICE "-hidden") == 0);
	child = fork();
	if (child == 0) {
		if (!(test->flags & (WITHOUT | PRELOAD)))
			setenv("FI_PROVIDER_PATH", directory, 1);
		if (!(test->flags & SILENT))
			setenv("UMMUNOTIFY_LOG", "1", 1);
		dup2(fileno(output), 1);
		dup2(fileno(errors), 2);
		if (test->flags & PRELOAD) {
			snprintf(text, sizeof(text), "%s/libummunotify-fi.so", directory);
			setenv("LD_PRELOAD", text, 1);
			snprintf(text, sizeof(text), "%s/../late", directory);
			if (!test->run)
				execl(text, "late", NULL);
			else
				execl("/proc/self/exe", "fi-test", "--here", test->name, NULL);
			_exit(1);
		}
		run_here(test);
	}
	waitpid(child, &status, 0);
	if (test->flags & HIDE)
		check(rename(DEVICE "-hidden", DEVICE) == 0);

	rewind(output);
	while (fgets(text, sizeof(text), output))
		printf("# %s", text);
	if (status != 0) {
		printf("# ended with status %#x\n", status);
		passed = false;
	}
	rewind(errors);
	text[fread(text, 1, sizeof(text) - 1, errors)] = 0;
	if (test->says && !strstr(text, test->says)) {
		printf("# standard error has no '%s'\n", test->says);
		passed = false;
	}
	if (test->flags & SILENT && text[0]) {
		printf("# standard error is not empty\n");
		passed = false;
	}
	if (!passed || !(test->flags & SILENT)) {
		if (passed)
			text[2000] = 0;
		for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
			printf("# %s\n", line);
	}
	fclose(output);
	fclose(errors);
	return passed;
}

/* It changes page tables, so unchanged buffers would be registered again. */
static void stop_numa_balancing(void)
{
	FILE *file = fopen("/proc/sys/kernel/numa_balancing", "w");

	if (file) {
		fputs("0", file);
		fclose(file);
	}
}

int main(int count, char **arguments)
{
	const char *wanted = getenv("LOOK_UPS");
	int number = 0, failed = 0;

	if (count < 2) {
		fprintf(stderr, "usage: fi-test DIRECTORY-OF-THE-LIBRARY [TEST...]\n");
		return 2;
	}
	if (!strcmp(arguments[1], "--here") && count == 3)
		for (size_t i = 0; i < TESTS; i++)
			if (!strcmp(arguments[2], tests[i].name))
				run_here(&tests[i]);
	if (wanted)
		look_ups = strtoul(wanted, NULL, 0);
	stop_numa_balancing();
	setvbuf(stdout, NULL, _IOLBF, 0);
	printf("KTAP version 1\n");
	for (size_t i = 0; i < TESTS; i++) {
		bool chosen = count == 2 && !(tests[i].flags & ON_DEMAND);

		for (int name = 2; name < count; name++)
			chosen |= !strcmp(arguments[name], tests[i].name);
		if (!chosen)
			continue;
		bool passed = run(&tests[i], arguments[1]);

		failed += !passed;
		printf("%s %d %s\n", passed ? "ok" : "not ok", ++number, tests[i].name);
	}
	printf("1..%d\n", number);
	return failed != 0;
}
