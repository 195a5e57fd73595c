// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Makes the changes of memory.h, some of them by another process.
 */
#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

const char *const change_name[CHANGES] = {
	[NOTHING] = "nothing",
	[FREE] = "munmap, mmap there again",
	[REPLACE] = "mmap(MAP_FIXED) over it",
	[DISCARD] = "madvise(MADV_DONTNEED)",
	[MOVE_OVER] = "mremap of other memory over it",
	[RAW_FREE] = "munmap, mmap there again, raw",
	[RAW_REPLACE] = "mmap(MAP_FIXED) over it, raw",
	[RAW_DISCARD] = "madvise(MADV_DONTNEED), raw",
	[RAW_MOVE_OVER] = "mremap over it, raw",
	[BARRIER] = "collector: mprotect, and back",
	[EVACUATE] = "collector: moved away, mapped anew",
	[FLIP] = "collector: other half of a file",
	[PUNCH] = "another process punches a hole",
	[TRUNCATE] = "another process truncates the file",
	[FORK] = "fork, then written to",
};

/*
 * A system call that no library can intercept.
 */
static long raw(long number, long a, long b, long c, long d, long e, long f)
{
#ifdef __x86_64__
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	long result;

	__asm__ volatile("syscall" : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	if (result < 0 && result >= -4095) {
		errno = (int)-result;
		return -1;
	}
	return result;
#else
	return syscall(number, a, b, c, d, e, f);
#endif
}

static void *map(bool is_raw, void *at, size_t length, int flags, int file, off_t offset)
{
	int protection = PROT_READ | PROT_WRITE;

	flags |= file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
	if (is_raw)
		return (void *)raw(SYS_mmap, (long)at, (long)length, protection, flags, file, offset);
	return mmap(at, length, protection, flags, file, offset);
}

static int unmap(bool is_raw, void *at, size_t length)
{
	return is_raw ? (int)raw(SYS_munmap, (long)at, (long)length, 0, 0, 0, 0) : munmap(at, length);
}

static int discard(bool is_raw, void *at, size_t length)
{
	return is_raw ? (int)raw(SYS_madvise, (long)at, (long)length, MADV_DONTNEED, 0, 0, 0) :
			madvise(at, length, MADV_DONTNEED);
}

static void *move(bool is_raw, void *from, size_t length, void *to)
{
	int flags = MREMAP_MAYMOVE | MREMAP_FIXED;

	if (is_raw)
		return (void *)raw(SYS_mremap, (long)from, (long)length, (long)length, flags, (long)to, 0);
	return mremap(from, length, length, flags, to);
}

static void protect(void *at, size_t length, int protection)
{
	if (raw(SYS_mprotect, (long)at, (long)length, protection, 0, 0, 0))
		give_up("mprotect");
}

/* --- the other process ----------------------------------------------------------------------- */

/* A request, with the file as its ancillary data; the answer is a byte. */
struct request {
	enum change change;
	off_t offset, length;
};

static int other_process = -1;
static pthread_mutex_t other_process_lock = PTHREAD_MUTEX_INITIALIZER;

static void serve(int requests)
{
	struct request request;
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec part = { .iov_base = &request, .iov_len = sizeof(request) };

	for (;;) {
		struct msghdr message = {
			.msg_iov = &part, .msg_iovlen = 1,
			.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
		};
		int file, failed;

		if (recvmsg(requests, &message, 0) != sizeof(request))
			_exit(0);
		file = *(int *)CMSG_DATA(CMSG_FIRSTHDR(&message));
		if (request.change == PUNCH)
			failed = fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					   request.offset, request.length);
		else
			failed = ftruncate(file, 0) || ftruncate(file, request.length);
		close(file);
		if (write(requests, failed ? "!" : "", 1) != 1)
			_exit(0);
	}
}

void start_other_process(void)
{
	int ends[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends))
		give_up("socketpair");
	switch (fork()) {
	case -1:
		give_up("fork");
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(ends[0]);
		serve(ends[1]);
	}
	close(ends[1]);
	other_process = ends[0];
}

static void have_changed(int file, struct request request)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = { .align = {
		.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)),
	} };
	struct iovec part = { .iov_base = &request, .iov_len = sizeof(request) };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1,
		.msg_control = control.bytes, .msg_controllen = sizeof(control.bytes),
	};
	char answer;

	*(int *)CMSG_DATA(&control.align) = file;
	pthread_mutex_lock(&other_process_lock);
	if (sendmsg(other_process, &message, 0) < 0 || read(other_process, &answer, 1) != 1 || answer)
		give_up("the other process");
	pthread_mutex_unlock(&other_process_lock);
}

/* --- buffers --------------------------------------------------------------------------------- */

static off_t offset(const struct buffer *buffer)
{
	return buffer->flipped ? (off_t)buffer->length : 0;
}

void map_buffer(struct buffer *buffer, size_t length, bool shared)
{
	buffer->length = length;
	buffer->flipped = false;
	buffer->file = -1;
	if (shared) {
		buffer->file = memfd_create("mpi-test", MFD_CLOEXEC);
		if (buffer->file < 0 || ftruncate(buffer->file, 2 * (off_t)length))
			give_up("memfd_create");
	}
	buffer->start = map(false, NULL, length, 0, buffer->file, 0);
	if (buffer->start == MAP_FAILED)
		give_up("mmap");
}

bool change_applies(enum change change, bool shared)
{
	switch (change) {
	case FLIP:
	case PUNCH:
	case TRUNCATE:
		return shared;
	case DISCARD:
	case RAW_DISCARD:
	case MOVE_OVER:
	case RAW_MOVE_OVER:
	case REPLACE:
	case RAW_REPLACE:
	case EVACUATE:
		return !shared;
	default:
		return true;
	}
}

bool moves_pages(enum change change)
{
	return change != NOTHING && change != BARRIER && change != FORK;
}

/*
 * Maps new memory at the address of the buffer, where nothing is mapped. If another thread has been
 * given that address in the meantime, the buffer moves elsewhere.
 */
static void map_again(struct buffer *buffer, bool is_raw)
{
	void *start = map(is_raw, buffer->start, buffer->length, MAP_FIXED_NOREPLACE, buffer->file,
			  offset(buffer));

	if (start == MAP_FAILED)
		start = map(is_raw, NULL, buffer->length, 0, buffer->file, offset(buffer));
	if (start == MAP_FAILED)
		give_up("mmap");
	buffer->start = start;
}

void have_child(void)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	if (child < 0 || waitpid(child, &status, 0) != child)
		give_up("fork");
}

void change_buffer(struct buffer *buffer, enum change change)
{
	bool is_raw = change >= RAW_FREE;
	size_t length = buffer->length;
	void *start = buffer->start, *other;

	switch (change) {
	case NOTHING:
	case CHANGES:
		break;
	case FREE:
	case RAW_FREE:
		/* A file would have the same pages again, so use its other half. */
		buffer->flipped = buffer->file >= 0 && !buffer->flipped;
		if (unmap(is_raw, start, length))
			give_up("munmap");
		map_again(buffer, is_raw);
		break;
	case FLIP:
		buffer->flipped = !buffer->flipped;
		/* fall through */
	case REPLACE:
	case RAW_REPLACE:
		if (map(is_raw, start, length, MAP_FIXED, buffer->file, offset(buffer)) == MAP_FAILED)
			give_up("mmap(MAP_FIXED)");
		break;
	case DISCARD:
	case RAW_DISCARD:
		if (discard(is_raw, start, length))
			give_up("madvise");
		break;
	case MOVE_OVER:
	case RAW_MOVE_OVER:
		other = map(is_raw, NULL, length, 0, -1, 0);
		if (other == MAP_FAILED || move(is_raw, other, length, start) != start)
			give_up("mremap");
		break;
	case BARRIER:
		protect(start, length, PROT_NONE);
		protect(start, length, PROT_READ | PROT_WRITE);
		break;
	case EVACUATE:
		protect(start, length, PROT_NONE);
		other = map(true, NULL, length, 0, -1, 0);
		if (other == MAP_FAILED || move(true, start, length, other) != other)
			give_up("mremap");
		map_again(buffer, true);
		unmap(true, other, length);
		break;
	case PUNCH:
		have_changed(buffer->file, (struct request){
			.change = change, .offset = offset(buffer), .length = (off_t)length });
		break;
	case TRUNCATE:
		have_changed(buffer->file, (struct request){
			.change = change, .length = 2 * (off_t)length });
		break;
	case FORK:
		have_child();
		break;
	}
}
