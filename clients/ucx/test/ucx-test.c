// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tests libummunotify-ucx.so with the real UCX, and soft-RoCE.
 *
 * usage: ucx-test DIRECTORY-OF-THE-LIBRARY [TEST...]
 *
 * A process sends to itself, in a way that has UCX register what is sent and what is received into,
 * and looks at every byte. UCX is loaded when it is needed, so that it can be unloaded, too.
 */

#define _GNU_SOURCE
#include "harness.h"
#include "uct.h"
#include "verbs.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <ucp/api/ucp.h>
#include <unistd.h>

static _Atomic unsigned long registrations;

/* The memory that the library may have locked on its behalf, in pages; 0: as much as it likes. */
static unsigned long limit;

static void set_limit(unsigned long pages)
{
	struct rlimit locked;

	check(getrlimit(RLIMIT_MEMLOCK, &locked) == 0);
	locked.rlim_cur = pages ? pages * PAGE : locked.rlim_max;
	check(setrlimit(RLIMIT_MEMLOCK, &locked) == 0);
}

/* The adapter has no limit. */
void registering(void)
{
	if (limit)
		set_limit(0);
}

void registered(struct ibv_mr *mr, void *start, size_t length)
{
	(void)mr;
	(void)start;
	(void)length;
	if (limit)
		set_limit(limit);
	atomic_fetch_add(&registrations, 1);
}

/* --- UCX -------------------------------------------------------------------------------------- */

#define FUNCTIONS(each) \
	each(ucp_cleanup) each(ucp_config_read) each(ucp_config_release) each(ucp_ep_create) \
	each(ucp_get_version_string) each(ucp_init_version) each(ucp_mem_map) each(ucp_mem_unmap) \
	each(ucp_request_check_status) each(ucp_request_free) each(ucp_tag_recv_nbx) each(ucp_tag_send_nbx) each(ucp_worker_create) \
	each(ucp_worker_destroy) each(ucp_worker_get_address) each(ucp_worker_progress) \
	each(ucp_worker_release_address)
#define POINTER(function) __typeof__(function) *function;
#define FIND(function) \
	ucx.function = dlsym(ucx_library, #function); \
	check(ucx.function);

static struct { FUNCTIONS(POINTER) } ucx;
static void *ucx_library;

static void load_ucx(void)
{
	ucx_library = dlopen("libucp.so.0", RTLD_NOW);
	check(ucx_library);
	FUNCTIONS(FIND)
}

/* Two ends, one of which sends to the other. With a loop, nothing else is used. */
struct pair {
	ucp_context_h context;
	ucp_worker_h sender, receiver;
	ucp_ep_h end;
	struct loop *loop;
};

static ucp_worker_h make_worker(ucp_context_h context)
{
	const ucp_worker_params_t params = { .field_mask = 0 };
	ucp_worker_h worker;

	check(ucx.ucp_worker_create(context, &params, &worker) == UCS_OK);
	return worker;
}

/* Creates the caches, too. */
static ucp_context_h make_context(void)
{
	const ucp_params_t params = { .field_mask = UCP_PARAM_FIELD_FEATURES, .features = UCP_FEATURE_TAG };
	ucp_context_h context;
	ucp_config_t *config;

	if (!ucx_library)
		load_ucx();
	check(ucx.ucp_config_read(NULL, NULL, &config) == UCS_OK);
	check(ucx.ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &context) == UCS_OK);
	ucx.ucp_config_release(config);
	return context;
}

static struct pair connect_pair(void)
{
	ucp_ep_params_t end = { .field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS };
	struct pair pair = { .context = make_context() };
	ucp_address_t *address;
	size_t length;

	pair.sender = make_worker(pair.context);
	pair.receiver = make_worker(pair.context);
	check(ucx.ucp_worker_get_address(pair.receiver, &address, &length) == UCS_OK);
	end.address = address;
	check(ucx.ucp_ep_create(pair.sender, &end, &pair.end) == UCS_OK);
	ucx.ucp_worker_release_address(pair.receiver, address);
	return pair;
}

static struct pair connect_loop(void)
{
	if (!ucx_library)
		load_ucx();
	return (struct pair){ .loop = open_loop(ucx_library) };
}

static void disconnect(const struct pair *pair)
{
	if (pair->loop) {
		close_loop(pair->loop);
		return;
	}
	ucx.ucp_worker_destroy(pair->sender);
	ucx.ucp_worker_destroy(pair->receiver);
	ucx.ucp_cleanup(pair->context);
}

static void finish(const struct pair *pair, void *request)
{
	if (!request)
		return;
	check(!UCS_PTR_IS_ERR(request));
	while (ucx.ucp_request_check_status(request) == UCS_INPROGRESS) {
		ucx.ucp_worker_progress(pair->sender);
		ucx.ucp_worker_progress(pair->receiver);
	}
	check(ucx.ucp_request_check_status(request) == UCS_OK);
	ucx.ucp_request_free(request);
}

static void send_tagged(const struct pair *pair, char *from, char *to, size_t length)
{
	const ucp_request_param_t nothing = { .op_attr_mask = 0 };
	void *sent, *received;

	received = ucx.ucp_tag_recv_nbx(pair->receiver, to, length, 1, 1, &nothing);
	sent = ucx.ucp_tag_send_nbx(pair->end, from, length, 1, &nothing);
	finish(pair, received);
	finish(pair, sent);
}

/* Sends what nobody has sent before, and returns whether something else has arrived. */
static bool arrives_wrong(const struct pair *pair, char *from, char *to, size_t length)
{
	static _Atomic uint64_t next = 1;
	uint64_t message = atomic_fetch_add(&next, 1) << 16, *words = (uint64_t *)from;

	for (size_t i = 0; i < length / sizeof(*words); i++)
		words[i] = message + i;
	memset(to, 0, length);
	if (pair->loop)
		get(pair->loop, from, to, length);
	else
		send_tagged(pair, from, to, length);
	return memcmp(from, to, length) != 0;
}

/* --- the tests -------------------------------------------------------------------------------- */

#define LENGTH (8 * PAGE)

static char *map_touched(size_t length)
{
	char *start = map_apart(length);

	touch(start, length);
	return start;
}

/* Sends over and over while nothing changes; returns how often something was registered. */
static unsigned long send_quietly(const struct pair *pair, char *from, char *to, int times)
{
	unsigned long before;

	for (int i = 0; i < 4; i++)
		check(!arrives_wrong(pair, from, to, LENGTH));
	before = registrations;
	for (int i = 0; i < times; i++)
		check(!arrives_wrong(pair, from, to, LENGTH));
	return registrations - before;
}

/* Returns how many of so many messages are wrong, when both buffers change in all ways. */
static int send_from_what_changes(const struct pair *pair, char *from, char *to, int times)
{
	int wrong = 0;

	for (int i = 0; i < times; i++) {
		if (i % 3)
			change(i % 3 == 1 ? from : to, LENGTH, i);
		wrong += arrives_wrong(pair, from, to, LENGTH);
	}
	return wrong;
}

static void are_wrong(struct pair pair)
{
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);
	int wrong = send_from_what_changes(&pair, from, to, 120);

	printf("%d of 120 wrong\n", wrong);
	check(wrong > 30);
	disconnect(&pair);
}

static void changes_without(void)
{
	are_wrong(connect_pair());
}

static void loop_without(void)
{
	are_wrong(connect_loop());
}

/*
 * What was overwritten of the text of the program and its libraries: each function that has bytes
 * which are not in the file. Returns how many there are.
 */
static int patched_functions(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	static char line[5000], access[8], path[4200], text[1 << 16];
	unsigned long start, end, offset;
	int patched = 0, compared = 0;

	check(maps);
	while (fgets(line, sizeof(line), maps)) {
		const char *last = "";
		int file;

		if (sscanf(line, "%lx-%lx %7s %lx %*s %*s %4199s", &start, &end, access, &offset, path) != 5 ||
		    access[2] != 'x' || path[0] != '/')
			continue;
		file = open(path, O_RDONLY);
		check(file >= 0);
		for (unsigned long at = start; at < end; at += sizeof(text)) {
			size_t length = end - at < sizeof(text) ? end - at : sizeof(text);
			ssize_t in_file = pread(file, text, length, (off_t)(offset + at - start));

			check(in_file > 0);
			compared++;
			for (ssize_t i = 0; i < in_file; i++) {
				Dl_info info;

				if (text[i] == ((char *)at)[i])
					continue;
				check(dladdr((void *)(at + (size_t)i), &info));
				if (info.dli_sname && strcmp(info.dli_sname, last)) {
					last = info.dli_sname;
					printf("%s of %s is overwritten\n", last, path);
				}
				patched++;
			}
		}
		close(file);
	}
	fclose(maps);
	check(compared > 5);
	return patched;
}

static void are_right(struct pair pair)
{
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);

	printf("UCX %s\n", ucx.ucp_get_version_string());
	check(send_quietly(&pair, from, to, 200) == 0);
	check(send_from_what_changes(&pair, from, to, 120) == 0);
	check(send_quietly(&pair, from, to, 200) == 0);
	/* A registration for each change, at least, or nothing was shown. */
	printf("%lu registrations\n", registrations);
	check(registrations >= 80);
	check(patched_functions() == 0);
	disconnect(&pair);
}

static void changes(void)
{
	are_right(connect_pair());
}

static void changes_in_loop(void)
{
	are_right(connect_loop());
}

static void text_is_left_alone(void)
{
	ucp_context_h context = make_context();

	printf("UCX %s\n", ucx.ucp_get_version_string());
	check(patched_functions() == 0);
	ucx.ucp_cleanup(context);
	check(patched_functions() == 0);
}

static void text_is_overwritten_without(void)
{
	ucp_context_h context = make_context();

	check(patched_functions() > 0);
	ucx.ucp_cleanup(context);
}

/* Finds memory in the cache, or registers it. It stays in the cache. */
static void look_up(ucp_context_h context, char *start, size_t length)
{
	const ucp_mem_map_params_t params = {
		.field_mask = UCP_MEM_MAP_PARAM_FIELD_ADDRESS | UCP_MEM_MAP_PARAM_FIELD_LENGTH,
		.address = start,
		.length = length,
	};
	ucp_mem_h memory;

	check(ucx.ucp_mem_map(context, &params, &memory) == UCS_OK);
	check(ucx.ucp_mem_unmap(context, memory) == UCS_OK);
}

/* The first descriptor of the device from `fd` on, or -1. */
static int next_device(int fd)
{
	char path[64], target[64];

	for (; fd < 1024; fd++) {
		ssize_t length;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		length = readlink(path, target, sizeof(target) - 1);
		if (length < 0)
			continue;
		target[length] = 0;
		if (!strcmp(target, DEVICE))
			return fd;
	}
	return -1;
}

/* How many regions the library has, of all files that it has opened. */
static unsigned long watched(void)
{
	unsigned long regions, sum = 0, files = 0;
	char path[64], line[256];

	for (int fd = next_device(0); fd >= 0; fd = next_device(fd + 1)) {
		FILE *info;

		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
		info = fopen(path, "r");
		check(info);
		while (fgets(line, sizeof(line), info))
			if (sscanf(line, "regions: %lu", &regions) == 1) {
				sum += regions;
				files++;
			}
		fclose(info);
	}
	check(files > 0);
	return sum;
}

/* Each buffer has a page of its own after it. Sending takes long, so only some are sent. */
#define BUFFER (4 * PAGE)
#define STRIDE (BUFFER + PAGE)

/*
 * Looks up many buffers and changes one of eight, if they are to change. Returns how often anything was
 * registered beyond that.
 */
static unsigned long use_many(const struct pair *pair, char *start, size_t many, char *to, bool changing)
{
	unsigned long before = registrations, changed = 0;
	static unsigned int state = 1;

	for (size_t i = 0; i < many; i++) {
		char *buffer = start + i * STRIDE;

		if (changing && draw(&state) % 8 == 0) {
			change(buffer, BUFFER, draw(&state));
			changed++;
		}
		look_up(pair->context, buffer, BUFFER);
		if (i % 200 < 2)
			check(!arrives_wrong(pair, buffer, to, BUFFER));
	}
	printf("%zu buffers: %lu registrations, %lu changed, %lu watched\n", many, registrations - before,
	       changed, watched());
	check(registrations - before >= changed);
	return registrations - before - changed;
}

static void many_buffers(void)
{
	const size_t many = 10000;
	struct pair pair = connect_pair();
	char *start = map_touched(many * STRIDE), *to = map_touched(BUFFER);

	check(use_many(&pair, start, many, to, false) >= many);
	check(watched() >= many);
	/* The kernel has some reasons of its own. */
	check(use_many(&pair, start, many, to, true) < many / 10);
	check(watched() >= many && watched() < many + many / 10);
	disconnect(&pair);
}

/* What UCX drops from a full cache is not watched any more. */
static void evictions(void)
{
	const size_t most = 200, many = 2000;
	struct pair pair;
	char *start = map_touched(many * STRIDE), *to = map_touched(BUFFER);

	setenv("UCX_RCACHE_MAX_REGIONS", "200", 1);
	pair = connect_pair();
	for (int round = 0; round < 3; round++) {
		check(use_many(&pair, start, many, to, round == 1) >= many / 2);
		check(watched() < 2 * most);
	}
	disconnect(&pair);
}

/* How often a text is in the log of this process, which is a file. */
static int times_logged(const char *text)
{
	static char log[65536];
	ssize_t length = pread(2, log, sizeof(log) - 1, 0);
	int times = 0;

	check(length >= 0);
	log[length] = 0;
	for (const char *at = log; (at = strstr(at, text)); at++)
		times++;
	return times;
}

/*
 * From now on, the library has a limit. The process never has its capability again: libibverbs may not
 * use a file that was opened with other credentials.
 */
static void begin_limit(unsigned long pages)
{
	may_exceed_limits(false);
	limit = pages;
	set_limit(limit);
}

/* Beyond the locked-memory limit, memory is not cached. */
static void limit_hit(void)
{
	const size_t many = 1000;
	char *start = map_touched(many * STRIDE), *to = map_touched(LENGTH);
	unsigned long before;
	struct pair pair;

	begin_limit(8);
	pair = connect_pair();
	for (int round = 0; round < 2; round++) {
		before = registrations;
		check(use_many(&pair, start, many, to, round) > 0);
		check(registrations - before > many / 2);
		check(watched() > 50 && watched() < many / 2);
	}
	check(send_from_what_changes(&pair, start + many / 2 * STRIDE, to, 30) == 0);
	check(times_logged("cannot be watched and are not cached: Cannot allocate memory") == 1);
	disconnect(&pair);
}

static void start_and_stop(void)
{
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);

	for (int round = 0; round < 6; round++) {
		struct pair pair = connect_pair(), other;

		if (round % 2)
			other = connect_pair();
		check(send_from_what_changes(&pair, from, to, 8) == 0);
		if (round % 2) {
			check(send_from_what_changes(&other, from, to, 8) == 0);
			disconnect(&other);
		}
		disconnect(&pair);
	}
}

/* A program may close all descriptors that it does not know. */
static void device_closed(void)
{
	struct pair pair = connect_pair();
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);

	check(!arrives_wrong(&pair, from, to, LENGTH));
	for (int fd = next_device(0); fd >= 0; fd = next_device(fd + 1))
		check(close(fd) == 0);
	check(send_from_what_changes(&pair, from, to, 60) == 0);
	check(times_logged("nothing is cached any more") == 1);
	disconnect(&pair);
}

/* A child drops nothing that its parent has registered, and may have caches of its own. */
static void in_a_child(void)
{
	const size_t many = 100;
	struct pair pair = connect_pair();
	char *start = map_touched(many * STRIDE), *to = map_touched(LENGTH);
	pid_t child;

	use_many(&pair, start, many, to, false);
	child = fork();
	check(child >= 0);
	if (child == 0) {
		for (size_t i = 0; i < many; i++)
			look_up(pair.context, start + i * STRIDE, BUFFER);
		_exit(0);
	}
	check(wait_for(child) == 0);
	check(use_many(&pair, start, many, to, false) < many / 10);

	child = fork();
	check(child >= 0);
	if (child == 0) {
		/* UCX has no thread there, and does not connect, but it can register memory. */
		ucp_context_h own = make_context();
		unsigned long before = registrations;

		for (int i = 0; i < 20; i++) {
			if (i % 2)
				change(start, BUFFER, i);
			look_up(own, start, BUFFER);
		}
		_exit(registrations - before < 20);
	}
	check(wait_for(child) == 0);
	check(use_many(&pair, start, many, to, false) < many / 10);
	disconnect(&pair);
}

static void unload(void)
{
	for (int round = 0; round < 3; round++) {
		start_and_stop();
		check(dlclose(ucx_library) == 0);
		ucx_library = NULL;
	}
}

static pthread_barrier_t all_have_sent;

/* UCX itself does not survive an exit while another thread is in it. */
static void *send_and_sleep(void *unused)
{
	struct pair pair = connect_pair();
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);

	(void)unused;
	send_from_what_changes(&pair, from, to, 12);
	pthread_barrier_wait(&all_have_sent);
	for (;;)
		pause();
	return NULL;
}

static void begin(int threads)
{
	pthread_t thread;

	load_ucx();
	check(pthread_barrier_init(&all_have_sent, NULL, (unsigned int)threads + 1) == 0);
	for (int i = 0; i < threads; i++)
		check(pthread_create(&thread, NULL, send_and_sleep, NULL) == 0);
	if (threads == 0)
		start_and_stop();
	pthread_barrier_wait(&all_have_sent);
}

static void ends(void)
{
	end_in_all_ways(begin);
}

static void works(void)
{
	struct pair pair = connect_pair();
	char *from = map_touched(LENGTH), *to = map_touched(LENGTH);

	send_quietly(&pair, from, to, 20);
	disconnect(&pair);
}

static void unloaded(void)
{
	unload_meanwhile(works);
}

/* Not even the file can be opened. */
static void works_without_memory(void)
{
	begin_limit(1);
	works();
}

static void works_as_nobody(void)
{
	check(setgid(65534) == 0 && setuid(65534) == 0);
	works();
}

static const struct test tests[] = {
	{ "ucx_changes", changes, 0, "took over the cache" },
	{ "ucx_without_it_is_stale", changes_without, WITHOUT, NULL },
	{ "ucx_uct_changes", changes_in_loop, ON_DEMAND, "took over the cache" },
	{ "ucx_uct_without_it_is_stale", loop_without, WITHOUT | ON_DEMAND, NULL },
	{ "ucx_text_is_left_alone", text_is_left_alone, 0, "took over the cache" },
	{ "ucx_text_is_left_alone_at_start", text_is_left_alone, LINKED, "took over the cache" },
	{ "ucx_without_it_overwrites_text", text_is_overwritten_without, WITHOUT, NULL },
	{ "ucx_many_buffers", many_buffers, 0, " 0 of memory that could not be watched" },
	{ "ucx_evictions", evictions, 0, " 0 of memory that could not be watched" },
	{ "ucx_limit", limit_hit, 0, "cannot be watched and are not cached: Cannot allocate memory" },
	{ "ucx_limit_at_open", works_without_memory, 0, "cannot open /dev/ummunotify: Cannot allocate memory" },
	{ "ucx_start_and_stop", start_and_stop, 0, "took over the cache" },
	{ "ucx_device_closed", device_closed, 0, "nothing is cached any more: Bad file descriptor" },
	{ "ucx_in_a_child", in_a_child, 0, "took over the cache" },
	{ "ucx_dlclose", unload, 0, "took over the cache" },
	{ "ucx_ends", ends, SILENT, NULL },
	{ "ucx_no_device", works, HIDE, "cannot open /dev/ummunotify: No such file" },
	{ "ucx_no_device_is_silent", works, HIDE | SILENT, NULL },
	{ "ucx_no_permission", works_as_nobody, FORBID, "cannot open /dev/ummunotify: Permission denied" },
	{ "ucx_unloaded", unloaded, SILENT, NULL },
};

int main(int count, char **arguments)
{
	const struct suite suite = {
		"libummunotify-ucx.so", NULL, "libucp.so.0", tests, sizeof(tests) / sizeof(tests[0]),
		/* Two events of one queue pair, on a busy machine: openucx/ucx issue 10432. */
		"Assertion `wait_ctx->cb_id == UCS_CALLBACKQ_ID_NULL' failed"
	};

	return run_suite(&suite, count, arguments);
}
