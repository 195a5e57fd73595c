// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tests libummunotify-fi.so on machines without libfabric and without an adapter. The program
 * provides libfabric's interface for memory monitors, and calls the library as libfabric's cache
 * does. "Pinning" records how often the owner of a buffer had changed it.
 *
 * usage: direct LIBRARY [BUFFERS [LOOK-UPS]]
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096UL
#define SMALL 64UL
#define THREADS 4
#define OWNED 8	/* buffers of each thread */

#define check(condition) \
	do { \
		if (!(condition)) { \
			printf("# line %d: %s\n", __LINE__, #condition); \
			printf("not ok 1 fi_direct\n"); \
			exit(1); \
		} \
	} while (0)

/* --- libfabric, as a monitor sees it ----------------------------------------------------------- */

struct fid;
struct ops {
	size_t size;
	int (*close)(struct fid *fid);
	int (*bind)(struct fid *fid, struct fid *other, uint64_t flags);
};
struct fid {
	size_t class;
	void *context;
	const struct ops *ops;
};
struct monitor {
	struct fid fid;
	const struct {
		size_t size;
		int (*start)(struct monitor *monitor);
		void (*stop)(struct monitor *monitor);
		int (*subscribe)(struct monitor *monitor, const void *start, size_t length);
		void (*unsubscribe)(struct monitor *monitor, const void *start, size_t length);
		bool (*valid)(struct monitor *monitor, const void *start, size_t length);
	} *export_ops;
	const struct import_ops {
		size_t size;
		void (*notify)(struct monitor *monitor, const void *start, size_t length);
	} *import_ops;
};

struct entry {
	char *start;
	size_t length;
	bool cached;
	uint64_t pinned; /* the page frame that is registered */
};

static struct monitor *monitor;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *entries;
static size_t count;
static _Atomic unsigned long notified, registered;

static void notify(struct monitor *of, const void *start, size_t length)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < count; i++) {
		struct entry *entry = &entries[i];

		if (!entry->cached || entry->start >= (char *)start + length ||
		    (char *)start >= entry->start + entry->length)
			continue;
		entry->cached = false;
		notified++;
		of->export_ops->unsubscribe(of, entry->start, entry->length);
	}
	pthread_mutex_unlock(&lock);
}

static int close_fid(struct fid *fid)
{
	(void)fid;
	return 0;
}

static const struct ops monitor_ops = { sizeof(monitor_ops), close_fid, NULL };
static const struct import_ops import_ops = { sizeof(import_ops), notify };

static int import(struct fid *cache, struct fid *fid, uint64_t flags)
{
	(void)cache;
	check(flags == 0 && fid->class == 23 && !monitor);
	monitor = (struct monitor *)fid;
	check(monitor->export_ops->size >= 6 * sizeof(void *));
	fid->ops = &monitor_ops;
	monitor->import_ops = &import_ops;
	return 0;
}

static const struct ops cache_ops = { sizeof(cache_ops), close_fid, import };
static struct fid cache = { 22, NULL, &cache_ops };

int fi_open(uint32_t version, const char *name, void *attr, size_t length, uint64_t flags, struct fid **fid,
	    void *context);
int fi_open(uint32_t version, const char *name, void *attr, size_t length, uint64_t flags, struct fid **fid,
	    void *context)
{
	(void)context;
	check(version == (1 << 16 | 13) && !strcmp(name, "mr_cache") && !attr && !length && !flags);
	*fid = &cache;
	return 0;
}

static int pagemap;

/* The page frame that is mapped at an address. Nothing is pinned here, so one that was freed may come back. */
static uint64_t frame_of(const char *start)
{
	uint64_t page = 0;

	check(pread(pagemap, &page, sizeof(page), (off_t)((uintptr_t)start / PAGE * sizeof(page))) == sizeof(page));
	page &= (1ULL << 55) - 1;
	check(page);
	return page;
}

/* A look-up. Returns whether what is used is stale. */
static bool look_up(struct entry *entry, bool *found)
{
	bool valid;

	pthread_mutex_lock(&lock);
	valid = entry->cached && monitor->export_ops->valid(monitor, entry->start, entry->length);
	if (entry->cached && !valid) {
		entry->cached = false;
		monitor->export_ops->unsubscribe(monitor, entry->start, entry->length);
	}
	pthread_mutex_unlock(&lock);
	*found = valid;
	if (valid)
		return entry->pinned != frame_of(entry->start);

	entry->pinned = frame_of(entry->start);
	registered++;
	pthread_mutex_lock(&lock);
	entry->cached = true;
	if (monitor->export_ops->subscribe(monitor, entry->start, entry->length)) {
		entry->cached = false;
		monitor->export_ops->unsubscribe(monitor, entry->start, entry->length);
	}
	pthread_mutex_unlock(&lock);
	return false;
}

/* --- the tests -------------------------------------------------------------------------------- */

static char *map(size_t length)
{
	char *start = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(start != MAP_FAILED);
	check(madvise(start, length, MADV_NOHUGEPAGE) == 0 || errno == EINVAL);
	memset(start, 1, length);
	return start;
}

static unsigned long look_ups;
static _Atomic unsigned long stale, hits;

/* Each buffer is in the caches of two domains. */
static void *look_up_own(void *argument)
{
	size_t first = (size_t)(uintptr_t)argument * OWNED * 2;
	unsigned int state = first;

	for (unsigned long i = 0; i < look_ups / THREADS; i++) {
		size_t chosen = rand_r(&state) % OWNED;
		struct entry *entry = &entries[first + 2 * chosen + rand_r(&state) % 2];
		bool found;

		if (rand_r(&state) % 4 == 0) {
			check(madvise(entry->start, entry->length, MADV_DONTNEED) == 0);
			memset(entry->start, 1, entry->length);
		}
		stale += look_up(entry, &found);
		hits += found;
	}
	return NULL;
}

static void threads(void)
{
	pthread_t others[THREADS];
	char *start = map(THREADS * OWNED * 2 * PAGE);

	count = THREADS * OWNED * 2;
	for (size_t i = 0; i < count; i++)
		entries[i] = (struct entry){ start + i / 2 * 2 * PAGE, PAGE, false, 0 };
	check(monitor->export_ops->start(monitor) == 0);
	for (uintptr_t i = 0; i < THREADS; i++)
		check(pthread_create(&others[i], NULL, look_up_own, (void *)i) == 0);
	for (int i = 0; i < THREADS; i++)
		check(pthread_join(others[i], NULL) == 0);
	printf("# %lu stale, %lu hits of %lu look-ups; %lu registrations, %lu notified\n", stale, hits, look_ups,
	       registered, notified);
	check(stale == 0);
	check(hits > look_ups / 20);
	check(notified > 0);
	notify(monitor, start, THREADS * OWNED * 2 * PAGE);
	monitor->export_ops->stop(monitor);
}

/* Provides zeroes for missing pages, but registers memory before that. */
static void *provide(void *argument)
{
	int faults = *(int *)argument;
	struct uffd_msg message;
	bool found;

	while (read(faults, &message, sizeof(message)) == sizeof(message)) {
		struct uffdio_zeropage page = { .range = { message.arg.pagefault.address & ~(PAGE - 1), PAGE } };

		look_up(&entries[1], &found);
		check(ioctl(faults, UFFDIO_ZEROPAGE, &page) == 0);
	}
	return NULL;
}

static void hangs(int signal)
{
	(void)signal;
	_exit(write(1, "not ok 1 fi_direct hangs\n", 25) ? 1 : 2);
}

/*
 * The pages of a buffer come from a thread that uses libfabric itself, so nobody may wait for them with
 * libfabric's lock held.
 */
static void userfault(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	char *start = map(2 * PAGE);
	pthread_t provider;
	bool found;

	count = 2;
	entries[0] = (struct entry){ start, PAGE, false, 0 };
	entries[1] = (struct entry){ start + PAGE, PAGE, false, 0 };
	range.range = (struct uffdio_range){ (uintptr_t)start, PAGE };
	check(faults >= 0 && ioctl(faults, UFFDIO_API, &api) == 0);
	check(ioctl(faults, UFFDIO_REGISTER, &range) == 0);
	check(pthread_create(&provider, NULL, provide, &faults) == 0);
	check(monitor->export_ops->start(monitor) == 0);
	signal(SIGALRM, hangs);
	alarm(60);
	for (int i = 0; i < 20; i++) {
		check(madvise(start, PAGE, MADV_DONTNEED) == 0);
		pthread_mutex_lock(&lock);
		check(!entries[0].cached || !monitor->export_ops->valid(monitor, start, PAGE));
		pthread_mutex_unlock(&lock);
		start[0]++;
		look_up(&entries[0], &found);
		look_up(&entries[0], &found);
	}
	alarm(0);
	notify(monitor, start, 2 * PAGE);
	monitor->export_ops->stop(monitor);
}

/* As many buffers as possible, each of 64 bytes. */
static void scale(size_t buffers)
{
	char *start = map(buffers * SMALL);
	unsigned long before, lost = 0, found_count = 0;
	bool found;

	count = buffers;
	for (size_t i = 0; i < count; i++)
		entries[i] = (struct entry){ start + i * SMALL, SMALL, false, 0 };
	check(monitor->export_ops->start(monitor) == 0);
	for (int round = 0; round < 3; round++)
		for (size_t i = 0; i < count; i++) {
			look_up(&entries[i], &found);
			check(!found || round == 2);
			lost += !found && round == 2;
		}
	/* Only buffers that have changed are dropped. */
	before = notified;
	check(madvise(start, PAGE, MADV_DONTNEED) == 0);
	/* A page to write to could have the frame that was just freed. */
	check(*(volatile char *)start == 0);
	for (size_t i = PAGE / SMALL; i < count; i++) {
		look_up(&entries[i], &found);
		lost += !found;
	}
	/* The kernel itself changes a few pages. */
	check(lost <= buffers / 1000);
	check(!look_up(&entries[0], &found) && !found);
	for (int i = 0; i < 1000 && notified < before + PAGE / SMALL - 1; i++)
		usleep(10000);
	for (size_t i = 0; i < PAGE / SMALL; i++) {
		look_up(&entries[i], &found);
		found_count += found;
	}
	printf("# %zu buffers, %lu lost; of %lu that changed %lu were dropped, %lu found\n", buffers, lost, PAGE / SMALL,
	       notified - before, found_count);
	check(notified >= before + PAGE / SMALL - 1);
	check(found_count <= 1);
	notify(monitor, start, buffers * SMALL);
	monitor->export_ops->stop(monitor);
}

/* It changes page tables; see the driver's documentation. */
static void stop_numa_balancing(void)
{
	FILE *file = fopen("/proc/sys/kernel/numa_balancing", "w");

	if (file) {
		fputs("0", file);
		fclose(file);
	}
}

int main(int argc, char **arguments)
{
	size_t buffers = argc > 2 ? strtoul(arguments[2], NULL, 0) : 20000;

	look_ups = argc > 3 ? strtoul(arguments[3], NULL, 0) : 20000;
	check(argc > 1);
	stop_numa_balancing();
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	check(pagemap >= 0);
	entries = calloc(buffers + THREADS * OWNED * 2, sizeof(*entries));
	check(entries);
	printf("KTAP version 1\n");
	/* The library finds this program by itself. */
	check(dlopen(arguments[1], RTLD_NOW));
	check(monitor);
	threads();
	userfault();
	scale(buffers);
	printf("ok 1 fi_direct\n1..1\n");
	return 0;
}
