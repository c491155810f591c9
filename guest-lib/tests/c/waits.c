/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Requests that miss their deadlines while they wait for another thread: what they
 * waited for works for all others afterwards.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"
#include "watch.h"

static vmsrs_domain *domain;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock;
static sem_t semaphore;
static int came_back;

static struct timespec in_seconds(int clock, int seconds)
{
	struct timespec time;

	CHECK(clock_gettime(clock, &time) == 0);
	time.tv_sec += seconds;
	return time;
}

static void wait_for_a_condition(void)
{
	pthread_mutex_lock(&mutex);
	for (;;)
		pthread_cond_wait(&condition, &mutex);
}

static void wait_for_a_condition_with_a_limit(void)
{
	struct timespec limit = in_seconds(CLOCK_REALTIME, 10000);

	pthread_mutex_lock(&mutex);
	for (;;)
		pthread_cond_timedwait(&condition, &mutex, &limit);
}

static void read_the_lock(void)
{
	pthread_rwlock_rdlock(&rwlock);
	came_back++;
}

static void read_the_lock_with_a_limit(void)
{
	struct timespec limit = in_seconds(CLOCK_REALTIME, 10000);

	pthread_rwlock_timedrdlock(&rwlock, &limit);
	came_back++;
}

static void write_the_lock(void)
{
	pthread_rwlock_wrlock(&rwlock);
	came_back++;
}

static void write_the_lock_with_a_limit(void)
{
	struct timespec limit = in_seconds(CLOCK_MONOTONIC, 10000);

	pthread_rwlock_clockwrlock(&rwlock, CLOCK_MONOTONIC, &limit);
	came_back++;
}

static void lock_the_mutex(void)
{
	pthread_mutex_lock(&mutex);
	came_back++;
}

static void lock_the_mutex_with_a_limit(void)
{
	struct timespec limit = in_seconds(CLOCK_REALTIME, 10000);

	pthread_mutex_timedlock(&mutex, &limit);
	came_back++;
}

static void wait_for_the_semaphore(void)
{
	while (sem_wait(&semaphore))
		;
	came_back++;
}

static void expect_deadline(void (*work)(void))
{
	vmsrs_options options = { .deadline_ms = 100 };
	pthread_t watcher, self = pthread_self();
	vmsrs_failure failure;

	ended = 0;
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	CHECK(vmsrs_run_with(domain, &options, request, (void *)work, NULL) ==
	      VMSRS_EFAILED);
	ended = 1;
	CHECK(pthread_join(watcher, NULL) == 0);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	CHECK(failure.kind == VMSRS_KIND_DEADLINE);
	/* It was cut short where it waited. */
	CHECK(came_back == 0);
}

static void in_another_thread(void *(*work)(void *))
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, work, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
}

static void *use_the_mutex(void *argument)
{
	CHECK(pthread_mutex_trylock(&mutex) == 0);
	CHECK(pthread_mutex_unlock(&mutex) == 0);
	return argument;
}

static atomic_int woken, waiting;

static void *wait_to_be_woken(void *argument)
{
	pthread_mutex_lock(&mutex);
	waiting++;
	while (!woken)
		pthread_cond_wait(&condition, &mutex);
	woken--;
	pthread_mutex_unlock(&mutex);
	return argument;
}

/* One signal wakes one of those who wait still. */
static void conditions_work(void)
{
	pthread_t other[3];

	waiting = 0;
	for (int i = 0; i < 3; i++)
		CHECK(pthread_create(&other[i], NULL, wait_to_be_woken, NULL) == 0);
	while (waiting < 3)
		usleep(1000);
	for (int i = 0; i < 3; i++) {
		pthread_mutex_lock(&mutex);
		woken++;
		CHECK(pthread_cond_signal(&condition) == 0);
		pthread_mutex_unlock(&mutex);
		while (woken)
			usleep(1000);
	}
	for (int i = 0; i < 3; i++)
		CHECK(pthread_join(other[i], NULL) == 0);
}

static void conditions(int type)
{
	void (*waits[])(void) = { wait_for_a_condition,
				  wait_for_a_condition_with_a_limit };
	pthread_mutexattr_t attributes;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, type);
	pthread_mutex_init(&mutex, &attributes);
	for (int i = 0; i < 4; i++) {
		expect_deadline(waits[i % 2]);
		in_another_thread(use_the_mutex);
		conditions_work();
	}
	/* Nobody is counted as a user or a waiter of either. */
	CHECK(pthread_cond_destroy(&condition) == 0);
	CHECK(pthread_mutex_destroy(&mutex) == 0);
}

static void *use_the_lock(void *argument)
{
	CHECK(pthread_rwlock_trywrlock(&rwlock) == 0);
	CHECK(pthread_rwlock_unlock(&rwlock) == 0);
	CHECK(pthread_rwlock_tryrdlock(&rwlock) == 0);
	CHECK(pthread_rwlock_unlock(&rwlock) == 0);
	CHECK(pthread_rwlock_wrlock(&rwlock) == 0);
	CHECK(pthread_rwlock_unlock(&rwlock) == 0);
	return argument;
}

static void *read_it(void *argument)
{
	CHECK(pthread_rwlock_rdlock(&rwlock) == 0);
	CHECK(pthread_rwlock_unlock(&rwlock) == 0);
	return argument;
}

static atomic_int step;

static void *hold_the_lock(void *argument)
{
	int (*lock)(pthread_rwlock_t *) = argument;

	CHECK(lock(&rwlock) == 0);
	step = 1;
	while (step != 2)
		usleep(1000);
	CHECK(pthread_rwlock_unlock(&rwlock) == 0);
	return NULL;
}

static void with_the_lock(int (*lock)(pthread_rwlock_t *), void (*work)(void))
{
	pthread_t holder;

	step = 0;
	CHECK(pthread_create(&holder, NULL, hold_the_lock, (void *)lock) == 0);
	while (step != 1)
		usleep(1000);
	expect_deadline(work);
	/* A writer that has gone does not keep readers out. */
	if (lock == pthread_rwlock_rdlock)
		in_another_thread(read_it);
	step = 2;
	CHECK(pthread_join(holder, NULL) == 0);
	in_another_thread(use_the_lock);
}

static void read_write_locks(int kind)
{
	void (*waits[])(void) = { read_the_lock, read_the_lock_with_a_limit,
				  write_the_lock, write_the_lock_with_a_limit };
	pthread_rwlockattr_t attributes;

	pthread_rwlockattr_init(&attributes);
	pthread_rwlockattr_setkind_np(&attributes, kind);
	pthread_rwlock_init(&rwlock, &attributes);
	for (int i = 0; i < 4; i++)
		with_the_lock(pthread_rwlock_wrlock, waits[i]);
	for (int i = 2; i < 4; i++)
		with_the_lock(pthread_rwlock_rdlock, waits[i]);
}

static void *lock_it(void *argument)
{
	CHECK(pthread_mutex_lock(&mutex) == 0);
	step = 1;
	while (step != 2)
		usleep(1000);
	CHECK(pthread_mutex_unlock(&mutex) == 0);
	return argument;
}

static void mutexes(int protocol)
{
	void (*waits[])(void) = { lock_the_mutex, lock_the_mutex_with_a_limit };
	pthread_mutexattr_t attributes;
	pthread_t holder;

	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setprotocol(&attributes, protocol);
	pthread_mutex_init(&mutex, &attributes);
	for (int i = 0; i < 2; i++) {
		step = 0;
		CHECK(pthread_create(&holder, NULL, lock_it, NULL) == 0);
		while (step != 1)
			usleep(1000);
		expect_deadline(waits[i]);
		step = 2;
		CHECK(pthread_join(holder, NULL) == 0);
		in_another_thread(use_the_mutex);
	}
}

static void semaphores(void)
{
	CHECK(sem_init(&semaphore, 0, 0) == 0);
	for (int i = 0; i < 2; i++) {
		expect_deadline(wait_for_the_semaphore);
		CHECK(sem_post(&semaphore) == 0);
		CHECK(sem_trywait(&semaphore) == 0);
		CHECK(sem_trywait(&semaphore) == -1 && errno == EAGAIN);
	}
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int tries;

/* The first one fails, the second one misses its deadline. */
static void begin(void)
{
	if (tries++ == 0)
		*(volatile int *)8 = 1;
	while (tries == 2)
		pause();
}

static void begin_once(void)
{
	pthread_once(&once, begin);
}

static int failing(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	begin_once();
	return 0;
}

static void *use_what_was_begun(void *argument)
{
	begin_once();
	return argument;
}

static void initializers(void)
{
	CHECK(vmsrs_run(domain, failing, NULL, NULL) == VMSRS_EFAILED);
	CHECK(tries == 1);
	expect_deadline(begin_once);
	CHECK(tries == 2);
	in_another_thread(use_what_was_begun);
	in_another_thread(use_what_was_begun);
	CHECK(tries == 3);
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("waits", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	if (!strcmp(arguments[1], "conditions")) {
		conditions(PTHREAD_MUTEX_NORMAL);
		conditions(PTHREAD_MUTEX_ERRORCHECK);
		conditions(PTHREAD_MUTEX_RECURSIVE);
	} else if (!strcmp(arguments[1], "read-write")) {
		read_write_locks(PTHREAD_RWLOCK_PREFER_READER_NP);
		read_write_locks(PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	} else if (!strcmp(arguments[1], "mutexes")) {
		mutexes(PTHREAD_PRIO_NONE);
		mutexes(PTHREAD_PRIO_INHERIT);
	} else if (!strcmp(arguments[1], "once")) {
		initializers();
	} else {
		CHECK(!strcmp(arguments[1], "semaphores"));
		semaphores();
	}
	return 0;
}
