// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause

#define _GNU_SOURCE
#include "harness.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

void fail(int line, const char *what)
{
	printf("line %d: %s (%s)\n", line, what, strerror(errno));
	exit(1);
}

/* --- memory ----------------------------------------------------------------------------------- */

char *map(void *at, size_t length)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (at ? MAP_FIXED : 0);
	char *start = (char *)syscall(SYS_mmap, at, length, PROT_READ | PROT_WRITE, flags, -1, 0L);

	check(start != MAP_FAILED);
	return start;
}

char *map_apart(size_t length)
{
	static _Atomic uintptr_t next = 64UL << 30;

	return map((void *)atomic_fetch_add(&next, length + PAGE), length);
}

void touch(char *start, size_t length)
{
	for (size_t i = 0; i < length; i += PAGE)
		start[i]++;
}

void change(char *start, size_t length, unsigned int way)
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

unsigned int draw(unsigned int *state)
{
	*state = *state * 1664525 + 1013904223;
	return *state >> 8;
}

void may_exceed_limits(bool may)
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

/* --- processes -------------------------------------------------------------------------------- */

int wait_for(int child)
{
	int status;

	for (int i = 0; waitpid(child, &status, WNOHANG) == 0; i++) {
		if (i == 6000) {
			printf("process %d takes more than a minute\n", child);
			kill(child, SIGKILL);
		}
		usleep(10000);
	}
	return status;
}

static void *exit_here(void *status)
{
	exit((int)(uintptr_t)status);
}

/* Ends in the middle of everything. */
static void end_by(int way, void (*begin)(int threads))
{
	char *arguments[] = { "true", NULL };
	pthread_t thread;

	begin(way == 6 ? 0 : 4);
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
		/* Without threads. */
		exit(0);
	case 7:
		raise(SIGTERM);
		break;
	}
	pause();
}

void end_in_all_ways(void (*begin)(int threads))
{
	const int expected[] = { 0, 0, SIGABRT, SIGKILL, 0, 0, 0, SIGTERM };

	for (int way = 0; way < 8; way++) {
		int status;
		pid_t child = fork();

		if (child == 0)
			end_by(way, begin);
		status = wait_for(child);
		if (WIFSIGNALED(status) ? WTERMSIG(status) != expected[way] :
					  WEXITSTATUS(status) != 0 || expected[way] != 0) {
			printf("way %d ended with status %#x\n", way, status);
			check(false);
		}
	}
}

static void load(void)
{
	int file = open(getenv("UMN_MODULE"), O_RDONLY | O_CLOEXEC);

	check(file >= 0);
	check(syscall(SYS_finit_module, file, "", 0) == 0);
	close(file);
}

void unload_meanwhile(void (*use)(void))
{
	volatile int *unloaded = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t other, child;
	int status = 0, ended;

	check(unloaded != MAP_FAILED);
	other = fork();
	if (other == 0) {
		for (;; usleep(1000 * (*unloaded % 5))) {
			if (syscall(SYS_delete_module, "ummunotify", O_NONBLOCK) == 0) {
				++*unloaded;
				usleep(1000 * (*unloaded % 8));
				load();
			} else {
				/* Whoever has the device open keeps it loaded. */
				check(errno == EWOULDBLOCK || errno == EBUSY);
			}
		}
	}
	for (int i = 0; i < 10 && status == 0; i++) {
		child = fork();
		if (child == 0) {
			use();
			exit(0);
		}
		status = wait_for(child);
	}
	kill(other, SIGKILL);
	waitpid(other, &ended, 0);
	if (access(DEVICE, F_OK))
		load();
	check(status == 0);
	check(WIFSIGNALED(ended));
	check(*unloaded > 0);
	printf("unloaded %d times\n", *unloaded);
}

/* --- tests ------------------------------------------------------------------------------------ */

static void run_here(const struct test *test)
{
	alarm(1500);
	test->run();
	exit(0);
}

/* Starts a test, with the library. */
static void start(const struct suite *suite, const struct test *test, const char *directory)
{
	char path[4096];

	if (test->flags & LINKED)
		snprintf(path, sizeof(path), "%s/%s:%s", directory, suite->library, suite->linked);
	else
		snprintf(path, sizeof(path), "%s/%s", directory, suite->library);
	if (!(test->flags & WITHOUT)) {
		if (test->flags & PRELOAD || !suite->variable)
			setenv("LD_PRELOAD", path, 1);
		else
			setenv(suite->variable, directory, 1);
	}
	if (!(test->flags & SILENT))
		setenv("UMMUNOTIFY_LOG", "1", 1);
	snprintf(path, sizeof(path), "%s/../late", directory);
	if (!test->run)
		execl(path, "late", NULL);
	else
		execl("/proc/self/exe", "test", "--here", test->name, NULL);
	_exit(1);
}

static bool run(const struct suite *suite, const struct test *test, const char *directory, bool *excused)
{
	FILE *output = tmpfile(), *errors = tmpfile();
	static char text[65536];
	bool passed = true;
	pid_t child;
	int status;

	chmod(DEVICE, test->flags & FORBID ? 0600 : 0666);
	if (test->flags & HIDE)
		check(rename(DEVICE, DEVICE "-hidden") == 0);
	child = fork();
	if (child == 0) {
		dup2(fileno(output), 1);
		dup2(fileno(errors), 2);
		start(suite, test, directory);
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
	*excused = status != 0 && suite->fault && strstr(text, suite->fault);
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

int run_suite(const struct suite *suite, int count, char **arguments)
{
	int number = 0, failed = 0;

	if (count < 2) {
		fprintf(stderr, "usage: %s DIRECTORY-OF-THE-LIBRARY [TEST...]\n", arguments[0]);
		return 2;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (!strcmp(arguments[1], "--here") && count == 3)
		for (size_t i = 0; i < suite->count; i++)
			if (!strcmp(arguments[2], suite->tests[i].name))
				run_here(&suite->tests[i]);
	stop_numa_balancing();
	printf("KTAP version 1\n");
	for (size_t i = 0; i < suite->count; i++) {
		const struct test *test = &suite->tests[i];
		bool chosen = count == 2 && !(test->flags & ON_DEMAND), passed = false, excused = true;

		for (int name = 2; name < count; name++)
			chosen |= !strcmp(arguments[name], test->name);
		if (!chosen)
			continue;
		for (int attempt = 0; attempt < 3 && !passed && excused; attempt++)
			passed = run(suite, test, arguments[1], &excused);
		failed += !passed;
		printf("%s %d %s\n", passed ? "ok" : "not ok", ++number, test->name);
	}
	printf("1..%d\n", number);
	return failed != 0;
}
