/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What the C library and the C++ runtime keep for a thread, after a request that has
 * failed in the middle of one of their functions.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *domain;
static FILE *file;
static void *volatile wild = (void *)8;

static int request(vmsrs_request *this, void *argument)
{
	void (*work)(void) = argument;

	(void)this;
	work();
	return 0;
}

static void expect_failure(void (*work)(void), uint32_t deadline_ms)
{
	vmsrs_options options = { .deadline_ms = deadline_ms };

	CHECK(vmsrs_run_with(domain, &options, request, (void *)work, NULL) ==
	      VMSRS_EFAILED);
}

/* What the next request on the thread has on its stack. */
static void overwrite_the_stack(void)
{
	volatile unsigned long words[6000];

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		words[i] = 0x4242424242424242;
}

static void expect_success(void)
{
	CHECK(vmsrs_run(domain, request, (void *)overwrite_the_stack, NULL) ==
	      VMSRS_OK);
}

static void print_a_wild_string(void)
{
	fprintf(file, "user %s logged in\n", (char *)wild);
}

static void print_to_a_stream_of_its_own(void)
{
	file = fopen("/dev/null", "w");
	CHECK(file);
	print_a_wild_string();
}

static void scan_into_a_wild_pointer(void)
{
	FILE *numbers = fmemopen("12 13", 5, "r");

	CHECK(numbers);
	(void)!fscanf(numbers, "%d", (int *)wild);
}

static atomic_int cleaned;

static void clean(void *argument)
{
	(void)argument;
	cleaned++;
}

static void fail_with_a_cleanup(void)
{
	pthread_cleanup_push(clean, NULL);
	*(volatile int *)wild = 1;
	pthread_cleanup_pop(0);
}

/* Ends by pthread_exit(), as workers of a pool that shrinks do. */
static void *worker(void *argument)
{
	pthread_cleanup_push(clean, NULL);
	expect_failure((void (*)(void))argument, 0);
	expect_success();
	pthread_exit(NULL);
	pthread_cleanup_pop(0);
	return NULL;
}

static void in_a_worker(void (*work)(void))
{
	pthread_t thread;

	cleaned = 0;
	CHECK(pthread_create(&thread, NULL, worker, (void *)work) == 0);
	CHECK(pthread_join(thread, NULL) == 0);
	/* The worker's own, and nothing of the request's. */
	CHECK(cleaned == 1);
}

static void fail_with_its_signal_blocked(void)
{
	sigset_t all;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	*(volatile int *)wild = 1;
}

static void fail_without_its_thread_pointer(void)
{
	syscall(SYS_arch_prctl, ARCH_SET_FS, 4096);
	*(volatile int *)wild = 1;
}

static void wait_for_a_signal(void)
{
	for (;;)
		pause();
}

static void *cancelled_worker(void *argument)
{
	expect_failure(wait_for_a_signal, 0);
	expect_success();
	pthread_testcancel();
	return argument;
}

static void cancel_a_worker(void)
{
	static int mark;
	pthread_t thread;
	void *result;

	CHECK(pthread_create(&thread, NULL, cancelled_worker, &mark) == 0);
	CHECK(pthread_cancel(thread) == 0);
	CHECK(pthread_join(thread, &result) == 0);
	/* The request has ended, and the thread goes on. */
	CHECK(result == &mark);
}

static atomic_bool ended;

/* Interrupts the thread past its deadline, as the driver does where there is one. */
static void *watch(void *argument)
{
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		usleep(2000);
	}
	return NULL;
}

static void run_a_program(void)
{
	(void)!system("exec sleep 1000");
}

static void *disposition(int number)
{
	struct sigaction action;

	CHECK(sigaction(number, NULL, &action) == 0);
	return (void *)action.sa_handler;
}

static void program_past_its_deadline(void)
{
	pthread_t watcher, self = pthread_self();
	sigset_t before, after;

	/* A shell has its programs in the background ignore them. */
	signal(SIGINT, SIG_DFL);
	signal(SIGQUIT, SIG_DFL);
	CHECK(pthread_sigmask(SIG_BLOCK, NULL, &before) == 0);
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	for (int round = 0; round < 3; round++) {
		expect_failure(run_a_program, 100);
		CHECK(pthread_sigmask(SIG_BLOCK, NULL, &after) == 0);
		CHECK(memcmp(&before, &after, 8) == 0);
		CHECK(disposition(SIGINT) == SIG_DFL);
		CHECK(disposition(SIGQUIT) == SIG_DFL);
		/* The program has ended too. */
		CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
		expect_success();
		CHECK(system("exit 7") == 7 << 8);
	}
	ended = 1;
	CHECK(pthread_join(watcher, NULL) == 0);
}

static void write_wild_bytes(void)
{
	fwrite(wild, 1, 100000, file);
}

static void read_to_a_wild_pointer(void)
{
	(void)!fread(wild, 1, 10, file);
}

static void fail_with_output_locked(void)
{
	flockfile(stdout);
	*(volatile int *)wild = 1;
}

static void close_a_wild_stream(void)
{
	/* Its lock is nowhere. */
	static char bytes[512];
	FILE *volatile stream = (FILE *)memset(bytes, 0x42, sizeof(bytes));

	fclose(stream);
}

static void leave_a_mutex_locked(void)
{
	static pthread_mutex_t mutexes[2];
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < 2; i++) {
		pthread_mutex_init(&mutexes[i], &attributes);
		pthread_mutex_lock(&mutexes[i]);
	}
	*(volatile int *)wild = 1;
}

static void *try_from_another_thread(void *stream)
{
	if (ftrylockfile(stream))
		return NULL;
	funlockfile(stream);
	return stream;
}

static void is_free(FILE *stream)
{
	pthread_t other;
	void *result;

	CHECK(pthread_create(&other, NULL, try_from_another_thread, stream) == 0);
	CHECK(pthread_join(other, &result) == 0);
	CHECK(result == stream);
}

/* A failed request leaves no stream of the process locked. */
static void streams(void)
{
	expect_failure(write_wild_bytes, 0);
	is_free(file);
	expect_success();
	expect_failure(print_a_wild_string, 0);
	is_free(file);
	expect_failure(close_a_wild_stream, 0);
	file = fopen("/proc/self/maps", "r");
	CHECK(file);
	expect_failure(read_to_a_wild_pointer, 0);
	is_free(file);
	CHECK(fclose(file) == 0);
	expect_failure(fail_with_output_locked, 0);
	is_free(stdout);
}

static void locks(void)
{
	vmsrs_health_t before, after;

	CHECK(vmsrs_health(&before) == VMSRS_OK);
	expect_failure(leave_a_mutex_locked, 0);
	CHECK(vmsrs_health(&after) == VMSRS_OK);
	CHECK(after.locks_left == before.locks_left + 2);
	expect_failure(fail_with_a_cleanup, 0);
	CHECK(vmsrs_health(&after) == VMSRS_OK);
	CHECK(after.locks_left == before.locks_left + 2);
}

static void *print_from_another_thread(void *argument)
{
	CHECK(fprintf(file, "%s", "") >= 0);
	return argument;
}

static void stream_works(void)
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, print_from_another_thread, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("thread state", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	file = fopen("/dev/null", "w");
	CHECK(file);
	if (!strcmp(arguments[1], "print")) {
		in_a_worker(print_a_wild_string);
		stream_works();
		in_a_worker(print_to_a_stream_of_its_own);
		stream_works();
		in_a_worker(scan_into_a_wild_pointer);
	} else if (!strcmp(arguments[1], "cleanup")) {
		in_a_worker(fail_with_a_cleanup);
	} else if (!strcmp(arguments[1], "blocked")) {
		expect_failure(fail_with_its_signal_blocked, 0);
	} else if (!strcmp(arguments[1], "thread-pointer")) {
		expect_failure(fail_without_its_thread_pointer, 0);
	} else if (!strcmp(arguments[1], "streams")) {
		streams();
	} else if (!strcmp(arguments[1], "locks")) {
		locks();
	} else if (!strcmp(arguments[1], "cancel")) {
		cancel_a_worker();
	} else {
		CHECK(!strcmp(arguments[1], "program"));
		program_past_its_deadline();
	}
	return 0;
}
