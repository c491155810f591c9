/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Requests that are cut short in the C library on other stacks than the request's: on
 * that of a signal handler, or of a coroutine. Nothing of them is left to others.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <syslog.h>
#include <ucontext.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

enum { STACK = 64 * 1024 };

static vmsrs_domain *domain;
static void *volatile wild = (void *)8;

static void log_a_wild_string(void)
{
	syslog(LOG_INFO, "user %s logged in", (char *)wild);
}

/* The stream that it makes lies in its own frame. */
static void print_a_wild_string(void)
{
	dprintf(2, "%s", (char *)wild);
}

static void make_robust(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attributes;

	CHECK(pthread_mutexattr_init(&attributes) == 0);
	CHECK(pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
	CHECK(pthread_mutex_init(mutex, &attributes) == 0);
}

/* The mutex lies on the stack. */
static void lock_and_fail(void)
{
	pthread_mutex_t mutex;

	make_robust(&mutex);
	CHECK(pthread_mutex_lock(&mutex) == 0);
	*(volatile int *)wild = 1;
}

static void (*const works[])(void) = { log_a_wild_string, print_a_wild_string,
				       lock_and_fail };
static void (*work)(void);

static void *use_all(void *argument)
{
	static pthread_mutex_t mutex;

	/* It takes the lock, and sends nothing. */
	setlogmask(LOG_MASK(LOG_ERR));
	syslog(LOG_INFO, "a line that nobody wants");
	setlogmask(LOG_UPTO(LOG_DEBUG));
	CHECK(fflush(NULL) == 0);
	make_robust(&mutex);
	CHECK(pthread_mutex_lock(&mutex) == 0);
	CHECK(pthread_mutex_unlock(&mutex) == 0);
	return argument;
}

/* Outside of requests: an error ends the test, and so does a hang. */
static void others_go_on(void)
{
	pthread_t other;

	use_all(NULL);
	CHECK(pthread_create(&other, NULL, use_all, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
}

static int came_back;

static void expect_failure(vmsrs_request_fn function)
{
	vmsrs_failure failure;

	CHECK(vmsrs_run(domain, function, NULL, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	CHECK(failure.kind == VMSRS_KIND_MEMORY);
	CHECK(came_back == 0);
}

static void fail_in_handler(int number)
{
	(void)number;
	/* It is blocked, and comes when the request has failed. */
	raise(SIGUSR2);
	work();
	came_back++;
}

/* It uses what other handlers have had. */
static void use_the_stack(int number)
{
	volatile char bytes[30000];

	(void)number;
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = 0x33;
}

static int raise_it(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	raise(SIGUSR1);
	came_back++;
	return 0;
}

static pthread_mutex_t waited = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static volatile int waits;

static void *signal_who_waits(void *argument)
{
	/* Whoever has the mutex waits for the condition. */
	while (!waits)
		usleep(1000);
	pthread_mutex_lock(&waited);
	pthread_mutex_unlock(&waited);
	pthread_kill(*(pthread_t *)argument, SIGUSR1);
	return NULL;
}

static int wait_for_it(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	pthread_mutex_lock(&waited);
	waits = 1;
	while (!came_back)
		pthread_cond_wait(&condition, &waited);
	return 0;
}

static volatile int ended;

/* At any moment, also while a failed request is put right. */
static void *send_signals(void *argument)
{
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGUSR2);
		usleep(20);
	}
	return NULL;
}

static void handlers(void)
{
	struct sigaction action = { .sa_handler = fail_in_handler,
				    .sa_flags = SA_ONSTACK | SA_RESTART };
	pthread_t other, self = pthread_self();

	sigaddset(&action.sa_mask, SIGUSR2);
	CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
	action.sa_handler = use_the_stack;
	CHECK(sigaction(SIGUSR2, &action, NULL) == 0);
	CHECK(pthread_create(&other, NULL, send_signals, &self) == 0);
	for (int i = 0; i < 300; i++) {
		sigset_t blocked;

		work = works[i % 3];
		expect_failure(raise_it);
		CHECK(sigprocmask(SIG_BLOCK, NULL, &blocked) == 0);
		CHECK(sigisemptyset(&blocked));
		raise(SIGUSR2);
		others_go_on();
	}
	ended = 1;
	CHECK(pthread_join(other, NULL) == 0);
	/* What it has interrupted is left, too. */
	CHECK(pthread_create(&other, NULL, signal_who_waits, &self) == 0);
	expect_failure(wait_for_it);
	CHECK(pthread_join(other, NULL) == 0);
	CHECK(pthread_cond_destroy(&condition) == 0);
	CHECK(pthread_mutex_trylock(&waited) == 0);
}

static ucontext_t caller, coroutine;
static char *stack;

static void run_coroutine(void)
{
	work();
	came_back++;
}

static int switch_to_coroutine(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	CHECK(getcontext(&coroutine) == 0);
	coroutine.uc_stack.ss_sp = stack;
	coroutine.uc_stack.ss_size = STACK;
	coroutine.uc_link = &caller;
	makecontext(&coroutine, run_coroutine, 0);
	CHECK(swapcontext(&caller, &coroutine) == 0);
	came_back++;
	return 0;
}

static void coroutines(void)
{
	for (int i = 0; i < 6; i++) {
		work = works[i % 3];
		stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		CHECK(stack != MAP_FAILED);
		expect_failure(switch_to_coroutine);
		CHECK(munmap(stack, STACK) == 0);
		others_go_on();
	}
}

/* Beside the stack, and with their last byte as near as can be. */
static struct {
	pthread_mutex_t below;
	char stack[STACK];
	pthread_mutex_t above;
} *heap;
static FILE *file;

static void open_and_fail(void)
{
	CHECK(pthread_mutex_lock(&heap->below) == 0);
	CHECK(pthread_mutex_lock(&heap->above) == 0);
	file = fopen("/dev/null", "w");
	CHECK(file && fputs("a line", file) >= 0);
	*(volatile int *)wild = 1;
}

static void *fail_and_end(void *argument)
{
	expect_failure(switch_to_coroutine);
	return argument;
}

static void memory_of_the_heap(void)
{
	pthread_t other;

	heap = malloc(sizeof(*heap));
	CHECK(heap);
	make_robust(&heap->below);
	make_robust(&heap->above);
	stack = heap->stack;
	work = open_and_fail;
	CHECK(pthread_create(&other, NULL, fail_and_end, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
	/* They were still on the list of that thread, */
	CHECK(pthread_mutex_lock(&heap->below) == EOWNERDEAD);
	CHECK(pthread_mutex_lock(&heap->above) == EOWNERDEAD);
	/* and the stream is on that of the process. */
	CHECK(fflush(NULL) == 0);
	CHECK(__fpending(file) == 0);
	work = print_a_wild_string;
	expect_failure(switch_to_coroutine);
	memset(heap->stack, 0x33, STACK);
	others_go_on();
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("stacks", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	if (!strcmp(arguments[1], "handlers")) {
		handlers();
	} else if (!strcmp(arguments[1], "coroutines")) {
		coroutines();
	} else {
		CHECK(!strcmp(arguments[1], "heap"));
		memory_of_the_heap();
	}
	return 0;
}
