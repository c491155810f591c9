/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What a failed request has done to its process: what stays, and what must not reach the library.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

enum { NUMBERS = 100, TIMERS = 64 };

static vmsrs_app *app;
static vmsrs_domain *domain;
static char *volatile wild = (char *)8;

static int request(vmsrs_request *this, void *argument)
{
	void (*work)(void) = argument;

	(void)this;
	work();
	return 0;
}

static void fails(void (*work)(void))
{
	CHECK(vmsrs_run(domain, request, (void *)work, NULL) == VMSRS_EFAILED);
}

static void print_a_wild_string(void)
{
	printf("%s", wild);
}

static void nothing(void)
{
}

static void *print(void *argument)
{
	CHECK(vmsrs_run(domain, request, (void *)nothing, NULL) == VMSRS_OK);
	CHECK(printf("a line of another user\n") > 0 && fflush(stdout) == 0);
	return argument;
}

/* The thread's limit for work after a failure needs a timer; other threads print and run requests. */
static void everything_works(void)
{
	pthread_t thread;

	for (int i = 0; i < 3; i++) {
		fails(print_a_wild_string);
		CHECK(pthread_create(&thread, NULL, print, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
	}
}

/* As by variables that were never set. */
static void delete_numbers(void)
{
	for (int i = 0; i < NUMBERS; i++) {
		syscall(SYS_timer_delete, i);
		pthread_setspecific(i, NULL);
		pthread_key_delete(i);
	}
	*wild = 1;
}

static void numbers(void)
{
	pthread_key_t key;

	everything_works();
	fails(delete_numbers);
	CHECK(pthread_key_create(&key, free) == 0);
	everything_works();
}

static void make_timers(void)
{
	timer_t timer;

	while (timer_create(CLOCK_MONOTONIC, NULL, &timer) == 0)
		;
	*wild = 1;
}

static void timers(void)
{
	struct rlimit limit;

	CHECK(getrlimit(RLIMIT_SIGPENDING, &limit) == 0);
	limit.rlim_cur = limit.rlim_cur < TIMERS ? limit.rlim_cur : TIMERS;
	CHECK(setrlimit(RLIMIT_SIGPENDING, &limit) == 0);
	fails(make_timers);
	everything_works();
}

static void change_settings(void)
{
	struct rlimit limit = { .rlim_cur = 77, .rlim_max = 77 };

	CHECK(chdir("/proc") == 0);
	umask(0123);
	CHECK(setenv("CHANGED", "by a request", 1) == 0);
	CHECK(setrlimit(RLIMIT_MSGQUEUE, &limit) == 0);
	*wild = 1;
}

static void settings(void)
{
	struct rlimit limit;
	char path[16];

	fails(change_settings);
	CHECK(getcwd(path, sizeof(path)) && !strcmp(path, "/proc"));
	CHECK(umask(0) == 0123);
	CHECK(getenv("CHANGED") && !strcmp(getenv("CHANGED"), "by a request"));
	CHECK(getrlimit(RLIMIT_MSGQUEUE, &limit) == 0 && limit.rlim_cur == 77);
}

struct shared {
	pthread_mutex_t mutex;
	atomic_int locked;
};

/* argument: PTHREAD_PROCESS_SHARED or the other. */
static int make_a_mutex(vmsrs_request *this, void *argument)
{
	struct shared *shared = vmsrs_alloc_zeroed(domain, sizeof(*shared));
	pthread_mutexattr_t attributes;

	(void)this;
	CHECK(shared && vmsrs_set_root(domain, shared) == VMSRS_OK);
	CHECK(pthread_mutexattr_init(&attributes) == 0);
	CHECK(pthread_mutexattr_setpshared(&attributes, *(int *)argument) == 0);
	CHECK(pthread_mutex_init(&shared->mutex, &attributes) == 0);
	return 0;
}

/* Has it until the other thread sleeps for it, which its first word tells. */
static int locks_first(vmsrs_request *this, void *argument)
{
	struct shared *shared = vmsrs_root(domain);

	(void)this;
	(void)argument;
	CHECK(pthread_mutex_lock(&shared->mutex) == 0);
	shared->locked = 1;
	while (*(volatile int *)&shared->mutex != 2)
		sched_yield();
	return pthread_mutex_unlock(&shared->mutex);
}

static int locks_second(vmsrs_request *this, void *argument)
{
	struct shared *shared = vmsrs_root(domain);

	(void)this;
	(void)argument;
	while (!shared->locked)
		sched_yield();
	CHECK(pthread_mutex_lock(&shared->mutex) == 0);
	return pthread_mutex_unlock(&shared->mutex);
}

static int contend(vmsrs_request *this, void *argument)
{
	vmsrs_piece pieces[2] = {
		{ .function = locks_first },
		{ .function = locks_second },
	};

	(void)argument;
	return vmsrs_fan_out(this, pieces, 2);
}

/* Those between processes cost the request that waits for one, where the pages of a domain are the driver's. */
static void mutexes_in_a_domain(void)
{
	int private = PTHREAD_PROCESS_PRIVATE, between = PTHREAD_PROCESS_SHARED;
	int protected = vmsrs_protection(app) == VMSRS_PROTECTION_FULL;
	vmsrs_failure failure;

	CHECK(vmsrs_run(domain, make_a_mutex, &private, NULL) == VMSRS_OK);
	CHECK(vmsrs_run(domain, contend, NULL, NULL) == VMSRS_OK);
	CHECK(vmsrs_run(domain, make_a_mutex, &between, NULL) == VMSRS_OK);
	CHECK(vmsrs_run(domain, contend, NULL, NULL) == (protected ? VMSRS_EFAILED : VMSRS_OK));
	if (protected) {
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == VMSRS_KIND_ABORT);
	}
	everything_works();
}

struct mode {
	const char *name;
	void (*run)(void);
};

static const struct mode modes[] = {
	{ "numbers", numbers },
	{ "timers", timers },
	{ "settings", settings },
	{ "mutexes", mutexes_in_a_domain },
};

int main(int count, char **arguments)
{
	CHECK(count == 2);
	CHECK(vmsrs_open("process", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++)
		if (!strcmp(modes[i].name, arguments[1])) {
			modes[i].run();
			return 0;
		}
	CHECK(!"a mode of that name");
	return 1;
}
