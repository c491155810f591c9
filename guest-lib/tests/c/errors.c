/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Real errors that the C library, the compiler or the CPU detects, each in a request.
 *
 * `errors NAME [ROUNDS]` makes requests fail that way while another thread works. It exits with 0 if
 * each of them failed with the expected kind and the process goes on. With 0 rounds it makes the error
 * outside of requests.
 */
#define _GNU_SOURCE
#undef NDEBUG
#include <alloca.h>
#include <assert.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

/* Values that the compiler cannot know. */
static volatile size_t many = 64;
static volatile size_t huge = 3 << 20;
static char *volatile escaped;

static vmsrs_domain *domain;

/* Keeps the compiler from removing writes to the bytes. */
static void use(const volatile char *bytes)
{
	many = bytes[3] == 1 ? 64 : 0;
}

static void overrun_the_stack_frame(void)
{
	char buffer[16];
	volatile char *bytes = buffer;

	escaped = buffer;
	for (size_t i = 0; i < many; i++)
		bytes[i] = 1;
}

static void overrun_a_known_buffer(void)
{
	char buffer[16];

	escaped = buffer;
	memset(buffer, 1, many);
	use(escaped);
}

static void format_into_a_known_buffer(void)
{
	char buffer[16];

	escaped = buffer;
	sprintf(buffer, "%0*d", (int)many, 1);
}

static void fail_an_assertion(void)
{
	assert(many == 65);
}

static void free_twice_in_the_thread_cache(void)
{
	char *block = escaped = malloc(40);

	CHECK(block);
	free(escaped);
	free(escaped);
}

/* Too large for the cache of the thread: glibc finds it with the arena locked. */
static void free_twice_in_the_arena(void)
{
	char *block = escaped = malloc(4000), *next = malloc(4000);

	CHECK(block && next);
	free(escaped);
	free(escaped);
}

static void free_a_wild_pointer(void)
{
	escaped = malloc(4000);
	CHECK(escaped);
	free(escaped + 16);
}

/* Overwrites the size of the next chunk; glibc finds it when it merges that chunk. */
static void overrun_a_block_of_the_c_library(void)
{
	char *block = escaped = malloc(4008), *next = malloc(4008),
	     *last = malloc(4008);

	CHECK(block && next && last);
	memset(escaped, 0x41, 4008 + many / 4);
	free(next);
}

/* A block of a domain, of another size in each round. */
static char *block_of_a_domain(void)
{
	static size_t round;
	size_t size = ++round % 16 ? round : round << 12;

	escaped = vmsrs_alloc(domain, size);
	CHECK(escaped);
	return escaped;
}

static void free_a_block_of_a_domain(void)
{
	free(block_of_a_domain());
}

static void resize_a_block_of_a_domain(void)
{
	escaped = realloc(block_of_a_domain(), 100);
}

static void call_abort(void)
{
	abort();
}

static void divide_by_zero(void)
{
	volatile size_t zero = 0;

	many = many / zero;
}

static void run_an_undefined_instruction(void)
{
	__builtin_trap();
}

static void meet_a_breakpoint(void)
{
	__asm__ volatile("int3");
}

static void write_to_null(void)
{
	*(volatile int *)many = 1;
}

static void read_a_noncanonical_address(void)
{
	many = *(volatile size_t *)0xdfdfdfdfdfdfdfdf;
}

static void write_to_code(void)
{
	*(volatile char *)(size_t)write_to_null = 1;
}

/* The file was truncated after it was mapped. */
static void read_past_the_end_of_a_file(void)
{
	int fd = memfd_create("short", MFD_CLOEXEC);
	volatile char *bytes;

	CHECK(fd >= 0 && ftruncate(fd, 8192) == 0);
	bytes = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, 0);
	CHECK(bytes != MAP_FAILED && bytes[4096] == 0);
	CHECK(ftruncate(fd, 100) == 0);
	CHECK(close(fd) == 0);
	many = bytes[4096];
}

static size_t recurse(size_t depth)
{
	volatile char frame[200];

	frame[0] = depth;
	if (many == 64)
		return recurse(depth + 1) + frame[0];
	return depth;
}

static void recurse_endlessly(void)
{
	recurse(0);
}

/* Steps over a guard of one page, or of sixteen, unless the compiler probes the stack. */
static void overflow_the_stack_by_alloca(void)
{
	char *bytes = alloca(huge);

	escaped = bytes;
	memset(bytes, 1, many);
	use(escaped);
}

static void fail_on_purpose(void)
{
	vmsrs_fail("on purpose");
}

/* Found by the audit, at the end of the request. */
static void overrun_a_block(void)
{
	escaped = vmsrs_alloc(domain, 40);
	CHECK(escaped);
	escaped[many - 24] = 1;
}

/* The compiler would remove an unused block. */
static void allocate_and_free(size_t size)
{
	char *volatile block = malloc(size);

	free(block);
}

static void loop_in_malloc(void)
{
	for (;;)
		allocate_and_free(100000);
}

/* Copies with the heap locked, by string instructions where the CPU is fast at them. */
static void loop_in_realloc(void)
{
	char *volatile block = NULL;

	for (size_t size = 60000;; size = size == 60000 ? 120000 : 60000) {
		/* Prevents growing in place. */
		char *volatile other = malloc(3000);

		block = realloc(block, size);
		free(other);
	}
}

/* Like a list that a stray write has made circular. */
static void loop_in_the_c_library(void)
{
	for (;;)
		many = strlen(memset(escaped, 1, huge - 1)) ? 64 : 0;
}

static void sleep_in_read(void)
{
	int ends[2];
	char byte;

	CHECK(pipe2(ends, O_CLOEXEC) == 0);
	for (;;)
		if (read(ends[0], &byte, 1) > 0)
			break;
}

static void sleep_in_pause(void)
{
	for (;;)
		pause();
}

static void lock_a_mutex_twice(void)
{
	pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

	for (;;)
		pthread_mutex_lock(&mutex);
}

static char *volatile server_stack;

/* The stack to which the aborted request returns; it is not versioned. */
static void destroy_the_stack_of_the_server(void)
{
	volatile char *bytes = server_stack;

	for (int i = 1; i < 3000; i++)
		bytes[-i] = 0x41;
	write_to_null();
}

static void write_to_a_pipe_that_nobody_reads(void)
{
	int ends[2];

	CHECK(pipe(ends) == 0);
	close(ends[0]);
	CHECK(write(ends[1], "x", 1) == 1);
}

static void write_past_the_limit_of_files(void)
{
	struct rlimit limit = { 4096, RLIM_INFINITY };
	int file = memfd_create("file", 0);

	CHECK(file >= 0 && setrlimit(RLIMIT_FSIZE, &limit) == 0);
	CHECK(pwrite(file, "x", 1, 4096) == 1);
}

/* Has the kernel send SIGSYS for a call that nothing else here makes. */
static void forbid_a_system_call(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getpriority, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { 4, filter };

	CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void make_a_forbidden_system_call(void)
{
	syscall(SYS_getpriority, PRIO_PROCESS, 0);
}

struct error {
	const char *name;
	void (*commit)(void);
	unsigned int kind;
};

static const struct error errors[] = {
	{ "stack-protector", overrun_the_stack_frame, VMSRS_KIND_ABORT },
	{ "fortify-memset", overrun_a_known_buffer, VMSRS_KIND_ABORT },
	{ "fortify-sprintf", format_into_a_known_buffer, VMSRS_KIND_ABORT },
	{ "assert", fail_an_assertion, VMSRS_KIND_ABORT },
	{ "malloc-twice-cache", free_twice_in_the_thread_cache, VMSRS_KIND_ABORT },
	{ "malloc-twice-arena", free_twice_in_the_arena, VMSRS_KIND_ABORT },
	{ "malloc-no-block", free_a_wild_pointer, VMSRS_KIND_ABORT },
	{ "malloc-overrun", overrun_a_block_of_the_c_library, VMSRS_KIND_ABORT },
	{ "domain-free", free_a_block_of_a_domain, VMSRS_KIND_ABORT },
	{ "domain-realloc", resize_a_block_of_a_domain, VMSRS_KIND_ABORT },
	{ "abort", call_abort, VMSRS_KIND_ABORT },
	{ "division", divide_by_zero, VMSRS_KIND_ARITHMETIC },
	{ "undefined", run_an_undefined_instruction, VMSRS_KIND_INSTRUCTION },
	{ "breakpoint", meet_a_breakpoint, VMSRS_KIND_INSTRUCTION },
	{ "null", write_to_null, VMSRS_KIND_MEMORY },
	{ "no-address", read_a_noncanonical_address, VMSRS_KIND_MEMORY },
	{ "wrapped", write_to_null, VMSRS_KIND_MEMORY },
	{ "code", write_to_code, VMSRS_KIND_MEMORY },
	{ "truncated", read_past_the_end_of_a_file, VMSRS_KIND_MEMORY },
	{ "recursion", recurse_endlessly, VMSRS_KIND_STACK_OVERFLOW },
	{ "alloca", overflow_the_stack_by_alloca, VMSRS_KIND_STACK_OVERFLOW },
	{ "pipe", write_to_a_pipe_that_nobody_reads, VMSRS_KIND_ABORT },
	{ "file-size", write_past_the_limit_of_files, VMSRS_KIND_ABORT },
	{ "filter", make_a_forbidden_system_call, VMSRS_KIND_ABORT },
	{ "fail", fail_on_purpose, VMSRS_KIND_INVARIANT },
	{ "red-zone", overrun_a_block, VMSRS_KIND_RED_ZONE },
	{ "landing", destroy_the_stack_of_the_server, VMSRS_KIND_MEMORY },
	{ "deadline-in-malloc", loop_in_malloc, VMSRS_KIND_DEADLINE },
	{ "deadline-in-realloc", loop_in_realloc, VMSRS_KIND_DEADLINE },
	{ "deadline-in-c-library", loop_in_the_c_library, VMSRS_KIND_DEADLINE },
	{ "deadline-in-read", sleep_in_read, VMSRS_KIND_DEADLINE },
	{ "deadline-in-pause", sleep_in_pause, VMSRS_KIND_DEADLINE },
	{ "deadline-in-mutex", lock_a_mutex_twice, VMSRS_KIND_DEADLINE },
};

static int request(vmsrs_request *this, void *argument)
{
	const struct error *error = argument;

	(void)this;
	error->commit();
	return 0;
}

static int nothing(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	return 0;
}

static atomic_bool ended;

static void free_twice_later(void *block)
{
	(void)block;
	free_twice_in_the_arena();
}

static int defer_and_fail(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, free_twice_later, NULL) == VMSRS_OK);
	vmsrs_fail("on purpose");
}

/* Another thread that uses the heap of the C library, in the same arena. */
static void *work(void *argument)
{
	(void)argument;
	while (!ended)
		allocate_and_free(100000);
	return NULL;
}

/* Interrupts the thread past its deadline, as the driver does where there is one. */
static void *watch(void *argument)
{
	const struct timespec tick = { .tv_nsec = 300000 };

	while (!ended) {
		/* Without suppression nobody handles it. */
		if (!getenv("VMSRS_SUPPRESSION"))
			pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		nanosleep(&tick, NULL);
	}
	return NULL;
}

static struct sigaction before;
static atomic_int came_back;

/* As the tools of some programs do. */
static void call_the_one_before(int signal, siginfo_t *info, void *context)
{
	before.sa_sigaction(signal, info, context);
	came_back++;
}

static void wrap_the_handler(void)
{
	struct sigaction action = { .sa_sigaction = call_the_one_before,
				    .sa_flags = SA_SIGINFO | SA_ONSTACK };

	CHECK(sigaction(SIGSEGV, &action, &before) == 0);
}

int main(int count, char **arguments)
{
	const struct error *error = NULL;
	int rounds = count > 2 ? atoi(arguments[2]) : 3;
	vmsrs_app *app;
	vmsrs_options options = { 0 };
	static pthread_t self;
	pthread_t worker, watcher;

	CHECK(count >= 2);
	self = pthread_self();
	server_stack = __builtin_frame_address(0) - 256;
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		if (!strcmp(errors[i].name, arguments[1]))
			error = &errors[i];
	CHECK(error || !strcmp(arguments[1], "defer-twice-arena"));
	CHECK(vmsrs_open("errors", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	CHECK(pthread_create(&worker, NULL, work, NULL) == 0);
	if (!strcmp(arguments[1], "defer-twice-arena")) {
		alarm(600);
		/* Does not return. */
		CHECK(vmsrs_run(domain, defer_and_fail, NULL, NULL) == VMSRS_OK);
	}
	if (error->kind == VMSRS_KIND_DEADLINE) {
		options.deadline_ms = 1;
		escaped = malloc(huge);
		CHECK(escaped);
		escaped[huge - 1] = 0;
	}
	/* The library handles the topmost real-time signal. */
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	if (!strcmp(error->name, "wrapped"))
		wrap_the_handler();
	if (!strcmp(error->name, "filter"))
		forbid_a_system_call();
	/* A hang fails the test. */
	alarm(600);
	if (count > 2 && !rounds)
		error->commit();
	for (int round = 0; round < rounds; round++) {
		vmsrs_failure failure;

		CHECK(vmsrs_run_with(domain, &options, request, (void *)error,
				     NULL) == VMSRS_EFAILED);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		if (failure.kind != error->kind)
			dprintf(2, "kind %u\n", failure.kind);
		CHECK(failure.kind == error->kind && failure.incident != 0);
		CHECK(vmsrs_run(domain, nothing, NULL, NULL) == VMSRS_OK);
		CHECK(came_back == (before.sa_sigaction ? round + 1 : 0));
		/* The heap of the C library works in every size class. */
		for (size_t size = 16; size < 4 << 20; size *= 2)
			allocate_and_free(size);
	}
	ended = 1;
	CHECK(pthread_join(worker, NULL) == 0);
	CHECK(pthread_join(watcher, NULL) == 0);
	return 0;
}
