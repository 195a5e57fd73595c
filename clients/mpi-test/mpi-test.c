// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Checks whether messages arrive as they were sent if the memory that they are sent from and
 * received into changes between them.
 *
 * Ranks form pairs, and each pair has as many conversations as there are threads. Both ends of a
 * conversation draw the same random numbers, so each knows what the other does. A message goes from
 * a buffer of one rank to a buffer of the other, in either direction. Before it, one of the two
 * buffers may change. The sender writes data that was never written before. The receiver wipes its
 * buffer first, and checks every byte afterwards.
 *
 * If a message is wrong and the receiver's buffer was not written to at all, the receiver's buffer
 * is at fault, otherwise the sender's. A buffer may stay at fault for a long time, whatever happens
 * to it meanwhile, so the fault is attributed to the change before it was first seen. The receiver
 * reports this to the sender.
 */

#define _GNU_SOURCE
#include "memory.h"

#include <errno.h>
#include <getopt.h>
#include <mpi.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFERS 8	/* at each end of a conversation; every other one maps a file */
#define MAX_THREADS 64

enum side { SENDER, RECEIVER, SIDES };

/* Results of messages, by side and by change of the buffer. */
struct counts {
	unsigned long messages, wrong;
	unsigned long by[SIDES][CHANGES], wrong_by[SIDES][CHANGES];
};
#define COUNTS (sizeof(struct counts) / sizeof(unsigned long))

static struct {
	unsigned long messages, warm_up, seed, fork_every;
	size_t size;
	unsigned int threads;
	bool quiet;		/* nothing changes */
	const char *end;	/* how the last rank ends before the others are done */
} options = { .messages = 200, .seed = 1, .size = 256 << 10, .threads = 1 };

static int rank, ranks;

void give_up(const char *what)
{
	int running = 0;

	fprintf(stderr, "mpi-test: %s: %s\n", what, strerror(errno));
	MPI_Initialized(&running);
	if (running)
		MPI_Abort(MPI_COMM_WORLD, 2);
	exit(2);
}

/* --- contents -------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t draw(uint64_t *state)
{
	return mix(*state += 0x9e3779b97f4a7c15);
}

/* The words of a message are derived from its number. */
static uint64_t word_at(uint64_t message, long index)
{
	return message + (uint64_t)index * 0x9e3779b97f4a7c15;
}

static void fill(void *start, size_t length, uint64_t message)
{
	uint64_t *at = start;

	for (long i = 0; i < (long)(length / sizeof(*at)); i++)
		at[i] = word_at(message, i);
}

/* Returns the index of the first word that `fill` did not write, or -1. */
static long differs(const void *start, size_t length, uint64_t message)
{
	const uint64_t *at = start;

	for (long i = 0; i < (long)(length / sizeof(*at)); i++)
		if (at[i] != word_at(message, i))
			return i;
	return -1;
}

/* --- conversations --------------------------------------------------------------------------- */

struct conversation {
	unsigned int thread;
	uint64_t random;
	struct buffer buffer[BUFFERS];
	/* The change that each buffer's fault is attributed to, by rank of the pair. */
	enum change blamed[2][BUFFERS];
	bool at_fault[2][BUFFERS];
	struct counts counts;
};

static enum change draw_change(uint64_t *random, bool shared)
{
	enum change change;

	/* Nothing in half of the cases, so that a cache is useful. */
	if (draw(random) & 1)
		return NOTHING;
	do
		change = 1 + draw(random) % (CHANGES - 1);
	while (!change_applies(change, shared));
	return change;
}

static void end_early(void)
{
	if (!options.end || rank != ranks - 1)
		return;
	if (!strcmp(options.end, "abort"))
		MPI_Abort(MPI_COMM_WORLD, 3);
	else if (!strcmp(options.end, "kill"))
		raise(SIGKILL);
	else if (!strcmp(options.end, "exit"))
		exit(4);
}

static void transfer(void *start, size_t length, bool is_sender, int peer, unsigned int thread)
{
	if (is_sender)
		MPI_Send(start, (int)length, MPI_BYTE, peer, (int)thread, MPI_COMM_WORLD);
	else
		MPI_Recv(start, (int)length, MPI_BYTE, peer, (int)thread, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* The buffer's registration is known to be good. */
static void clear(enum change *blamed, bool *at_fault)
{
	*blamed = NOTHING;
	*at_fault = false;
}

/* One message from a buffer of one rank to a buffer of the other. */
static void exchange(struct conversation *it, bool counts)
{
	uint64_t choice = draw(&it->random), message = draw(&it->random), wiped = draw(&it->random);
	int peer = rank ^ 1, owner[SIDES] = { choice & 1, ~choice & 1 };
	unsigned int index[SIDES] = { choice >> 8 & (BUFFERS - 1), choice >> 16 & (BUFFERS - 1) };
	enum side changed = choice >> 24 & 1 ? SENDER : RECEIVER;
	enum side mine = (rank & 1) == owner[SENDER] ? SENDER : RECEIVER;
	/*
	 * All buffers are as long as the longest message. A longer message than before is a reason
	 * to register a buffer again, so if nothing is to change, the length does not either.
	 */
	size_t length = options.size + (options.quiet ? 0 : index[SENDER] * 4096);
	struct buffer *buffer = &it->buffer[index[mine]];
	enum change change = NOTHING, *blamed[SIDES], after[SIDES];
	bool *at_fault[SIDES];
	int fault = -1;

	if (!options.quiet)
		change = draw_change(&it->random, index[changed] & 1);
	for (enum side side = SENDER; side < SIDES; side++) {
		blamed[side] = &it->blamed[owner[side]][index[side]];
		at_fault[side] = &it->at_fault[owner[side]][index[side]];
		if (side == changed && (*blamed[side] == NOTHING || (!*at_fault[side] && moves_pages(change))))
			*blamed[side] = change;
		after[side] = *blamed[side];
	}

	if (changed == mine)
		change_buffer(buffer, change);
	fill(buffer->start, length, mine == SENDER ? message : wiped);
	transfer(buffer->start, length, mine == SENDER, peer, it->thread);
	if (mine == RECEIVER) {
		long wrong = differs(buffer->start, length, message);

		if (wrong >= 0)
			fault = ((uint64_t *)buffer->start)[wrong] == word_at(wiped, wrong) ? RECEIVER : SENDER;
	}
	transfer(&fault, sizeof(fault), mine == RECEIVER, peer, it->thread);

	/* If the receiver's buffer is at fault, nothing is known of the sender's. */
	if (fault >= 0)
		*at_fault[fault] = true;
	if (fault < 0)
		clear(blamed[SENDER], at_fault[SENDER]);
	if (fault != RECEIVER)
		clear(blamed[RECEIVER], at_fault[RECEIVER]);

	if (!counts || mine == SENDER)
		return;
	it->counts.messages++;
	it->counts.by[SENDER][after[SENDER]]++;
	it->counts.by[RECEIVER][after[RECEIVER]]++;
	if (fault >= 0) {
		it->counts.wrong++;
		it->counts.wrong_by[fault][after[fault]]++;
	}
}

static void begin(struct conversation *it, unsigned int thread)
{
	it->thread = thread;
	it->random = mix(options.seed << 32 | (unsigned int)(rank >> 1) << 16 | thread);
	for (unsigned int i = 0; i < BUFFERS; i++)
		map_buffer(&it->buffer[i], options.size + BUFFERS * 4096, i & 1);
}

static unsigned long phase_from, phase_to;

static void *converse(void *conversation)
{
	for (unsigned long i = phase_from; i < phase_to; i++) {
		if (i == (options.warm_up + options.messages) / 2)
			end_early();
		if (options.fork_every && i % options.fork_every == 0)
			have_child();
		exchange(conversation, i >= options.warm_up);
	}
	return NULL;
}

static void run_phase(struct conversation *all, unsigned long from, unsigned long to)
{
	pthread_t thread[MAX_THREADS];

	phase_from = from;
	phase_to = to;
	for (unsigned int i = 1; i < options.threads; i++)
		if (pthread_create(&thread[i], NULL, converse, &all[i]))
			give_up("pthread_create");
	converse(&all[0]);
	for (unsigned int i = 1; i < options.threads; i++)
		pthread_join(thread[i], NULL);
	MPI_Barrier(MPI_COMM_WORLD);
}

/* --- output ---------------------------------------------------------------------------------- */

/* The number of registrations, counted by a kernel probe; see scripts/mpi. */
static long registrations(void)
{
	FILE *profile = fopen("/sys/kernel/tracing/kprobe_profile", "r");
	char name[128];
	unsigned long hits, missed;
	long all = -1;

	if (!profile)
		return -1;
	while (fscanf(profile, "%127s %lu %lu", name, &hits, &missed) == 3)
		if (!strcmp(name, "register_memory"))
			all = (long)(hits + missed);
	fclose(profile);
	return all;
}

static void report(const struct counts *all, long registered)
{
	printf("messages %lu\nwrong %lu\n", all->messages, all->wrong);
	if (registered >= 0)
		printf("registrations %ld\n", registered);
	for (enum side side = SENDER; side < SIDES; side++)
		for (enum change change = 0; change < CHANGES; change++)
			if (all->by[side][change])
				printf("%s %lu of %lu after %s\n", side == SENDER ? "sender" : "receiver",
				       all->wrong_by[side][change], all->by[side][change],
				       change_name[change]);
}

static void __attribute__((noreturn)) usage(FILE *to, int status)
{
	fputs("usage: mpirun -n RANKS mpi-test [OPTIONS]\n"
	      "\n"
	      "Pairs of ranks send messages from and into memory that changes, and check every byte.\n"
	      "\n"
	      "  --messages N   in each conversation (200)\n"
	      "  --warm-up N    before those, not counted (0)\n"
	      "  --threads N    conversations of each pair (1)\n"
	      "  --size BYTES   of the shortest message (262144)\n"
	      "  --seed N       of the random numbers (1)\n"
	      "  --quiet        nothing changes\n"
	      "  --fork-every N each rank forks a child, which ends at once, every N messages\n"
	      "  --end HOW      end the last rank early: abort, kill, exit\n"
	      "\n"
	      "Exit status: 0 all arrived as they were sent, 1 some did not, 2 error.\n", to);
	exit(status);
}

static unsigned long number(const char *text, unsigned long min, unsigned long max)
{
	char *rest;
	unsigned long value = strtoul(text, &rest, 10);

	if (*rest || rest == text || value < min || value > max)
		usage(stderr, 2);
	return value;
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "messages", required_argument, NULL, 'm' }, { "warm-up", required_argument, NULL, 'w' },
		{ "threads", required_argument, NULL, 't' }, { "size", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' }, { "quiet", no_argument, NULL, 'q' },
		{ "fork-every", required_argument, NULL, 'f' }, { "end", required_argument, NULL, 'e' },
		{ "help", no_argument, NULL, 'h' }, { 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 'm': options.messages = number(optarg, 1, 1000000000); break;
		case 'w': options.warm_up = number(optarg, 0, 1000000000); break;
		case 't': options.threads = (unsigned int)number(optarg, 1, MAX_THREADS); break;
		case 's': options.size = number(optarg, 4096, 1 << 30) & ~4095ul; break;
		case 'r': options.seed = number(optarg, 0, -1ul); break;
		case 'q': options.quiet = true; break;
		case 'f': options.fork_every = number(optarg, 1, -1ul); break;
		case 'e': options.end = optarg; break;
		case 'h': usage(stdout, 0);
		default: usage(stderr, 2);
		}
	if (optind < argc)
		usage(stderr, 2);
}

int main(int argc, char **argv)
{
	static struct conversation all[MAX_THREADS];
	struct counts sum = { 0 }, mine = { 0 };
	int wanted, granted;
	long before, after;

	parse(argc, argv);
	start_other_process();
	wanted = options.threads > 1 ? MPI_THREAD_MULTIPLE : MPI_THREAD_SINGLE;
	MPI_Init_thread(&argc, &argv, wanted, &granted);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	if (ranks & 1 || granted < wanted) {
		fprintf(stderr, "mpi-test: an even number of ranks%s\n",
			wanted == MPI_THREAD_MULTIPLE ? " and MPI_THREAD_MULTIPLE are needed" : " is needed");
		MPI_Abort(MPI_COMM_WORLD, 2);
	}
	for (unsigned int i = 0; i < options.threads; i++)
		begin(&all[i], i);

	run_phase(all, 0, options.warm_up);
	before = registrations();
	run_phase(all, options.warm_up, options.warm_up + options.messages);
	after = registrations();

	for (unsigned int i = 0; i < options.threads; i++)
		for (size_t j = 0; j < COUNTS; j++)
			((unsigned long *)&mine)[j] += ((unsigned long *)&all[i].counts)[j];
	MPI_Reduce(&mine, &sum, COUNTS, MPI_UNSIGNED_LONG, MPI_SUM, 0, MPI_COMM_WORLD);
	MPI_Bcast(&sum.wrong, 1, MPI_UNSIGNED_LONG, 0, MPI_COMM_WORLD);
	if (rank == 0)
		report(&sum, before < 0 || after < 0 ? -1 : after - before);
	MPI_Finalize();
	return sum.wrong != 0;
}
