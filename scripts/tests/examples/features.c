// SPDX-License-Identifier: GPL-2.0
//
// A program around the C examples of Documentation/userspace-api/ummunotify.rst, which are inserted
// where a line is just @NUMBER@.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ummunotify.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define SIZE 8192

struct entry {
	__u64 start, end, stamp;
	int has_stamp;
};

static struct entry entry;

static struct entry *find(__u64 cookie)
{
	return cookie == 42 ? &entry : NULL;
}

static void drop(__u64 cookie)
{
	printf("drop %d\n", (int)cookie);
}

static int negotiate(int fd)
{
@1@
		return -ENOSYS;
	return 0;
}

@2@

static int watch(int fd, __u64 start, __u64 end, __u64 cookie)
{
@3@

	return ioctl(fd, UMMUNOTIFY_REGISTER_REGION, &region);
}

static void read_events(int fd)
{
	struct ummunotify_event event;

@4@
}

static void check(int failed, const char *what)
{
	if (failed) {
		printf("%s: %s\n", what, strerror(errno));
		exit(1);
	}
}

int main(void)
{
	int fd = open("/dev/ummunotify", O_RDONLY | O_NONBLOCK);
	char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct ummunotify_stamp_ioctl stamp = {};

	check(fd < 0 || memory == MAP_FAILED, "open or mmap");
	check(negotiate(fd), "UMMUNOTIFY_EXCHANGE_FEATURES");
	memset(memory, 1, SIZE);
	entry.start = stamp.start = (__u64)memory;
	entry.end = stamp.end = entry.start + SIZE;
	check(watch(fd, entry.start, entry.end, 42), "UMMUNOTIFY_REGISTER_REGION");
	check(ioctl(fd, UMMUNOTIFY_STAMP, &stamp) || stamp.absent, "UMMUNOTIFY_STAMP");
	entry.stamp = stamp.stamp;
	entry.has_stamp = 1;

	/* The pages stay, first without an event, then with one. */
	mprotect(memory, SIZE, PROT_READ);
	mprotect(memory, SIZE, PROT_READ | PROT_WRITE);
	read_events(fd);
	madvise(memory, SIZE, MADV_FREE);
	memset(memory, 2, SIZE);
	read_events(fd);
	puts("kept");
	/* A page that is lost. */
	madvise(memory, SIZE / 2, MADV_DONTNEED);
	read_events(fd);
	munmap(memory, SIZE);
	read_events(fd);
	return 0;
}
