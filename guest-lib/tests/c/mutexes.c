/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Mutexes that are locked where no request runs any more: in deferred functions and in functions that put something right. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vmsrs.h>

#include "check.h"

#define ALL 16

static vmsrs_domain *alice, *bob;
static vmsrs_mutex_t first, second, third;
static atomic_int repairs;
static sigjmp_buf loop;

static void crash(void)
{
	*(volatile int *)8 = 1;
}

static void lock(vmsrs_mutex_t *mutex)
{
	CHECK(vmsrs_mutex_lock(mutex) == VMSRS_OK);
}

static int is_free(vmsrs_mutex_t *mutex)
{
	int code = vmsrs_mutex_trylock(mutex);

	if (code == VMSRS_OK)
		CHECK(vmsrs_mutex_unlock(mutex) == VMSRS_OK);
	return code == VMSRS_OK;
}

static int use(vmsrs_request *this, void *mutex)
{
	(void)this;
	return is_free(mutex);
}

static int is_free_in_a_request(vmsrs_mutex_t *mutex)
{
	int result = 0;

	CHECK(vmsrs_run(bob, use, mutex, &result) == VMSRS_OK);
	return result;
}

static void *look(void *mutex)
{
	return is_free_in_a_request(mutex) ? mutex : NULL;
}

/* On this thread and on another one, in a request and outside. */
static void expect_free(vmsrs_mutex_t *mutex)
{
	pthread_t other;
	void *found;

	CHECK(is_free(mutex));
	CHECK(is_free_in_a_request(mutex));
	CHECK(pthread_create(&other, NULL, look, mutex) == 0);
	CHECK(pthread_join(other, &found) == 0);
	CHECK(found == mutex);
}

static void count(void *argument)
{
	(void)argument;
	repairs++;
}

/* Runs a request that fails; returns how many of its deferred functions did. */
static uint32_t fail(vmsrs_request_fn request)
{
	vmsrs_failure failure;

	CHECK(vmsrs_run(alice, request, NULL, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	return failure.defers_failed;
}

/* A mutex that is locked in a deferred function which fails. */

static void lock_and_crash(void *mutex)
{
	lock(mutex);
	crash();
}

static int defer_and_crash(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, lock_and_crash, &first) == VMSRS_OK);
	crash();
	return 0;
}

static int defer_and_give_up(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, lock_and_crash, &first) == VMSRS_OK);
	return -1;
}

static void defers(void)
{
	CHECK(vmsrs_mutex_init(&first, count, NULL) == VMSRS_OK);
	CHECK(fail(defer_and_crash) == 1);
	CHECK(repairs == 1);
	expect_free(&first);
	CHECK(vmsrs_run(alice, defer_and_give_up, NULL, NULL) == VMSRS_OK);
	CHECK(repairs == 2);
	expect_free(&first);
}

/* One that is locked in the function of another. */

static int lock_first_and_crash(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	lock_and_crash(&first);
	return 0;
}

static int lock_all_and_crash(vmsrs_request *this, void *argument)
{
	static vmsrs_mutex_t others[ALL - 1];

	(void)this;
	(void)argument;
	lock(&first);
	for (int i = 0; i < ALL - 1; i++) {
		memset(&others[i], 0, sizeof others[i]);
		lock(&others[i]);
	}
	CHECK(vmsrs_mutex_lock(&third) == VMSRS_ELIMIT);
	crash();
	return 0;
}

static void nested(void)
{
	CHECK(vmsrs_mutex_init(&first, lock_and_crash, &second) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&second, count, NULL) == VMSRS_OK);
	CHECK(fail(lock_first_and_crash) == 1);
	CHECK(repairs == 1);
	expect_free(&first);
	expect_free(&second);
	/* It finds room where its request had none left. */
	CHECK(fail(lock_all_and_crash) == 1);
	CHECK(repairs == 2);
	expect_free(&first);
	expect_free(&second);
}

/* Functions that lock each other's mutexes and fail, without an end. */

static void lock_if_free_and_crash(void *mutex)
{
	repairs++;
	(void)!vmsrs_mutex_lock(mutex);
	crash();
}

static void renew(void *argument)
{
	/* Gives away what it was called with. */
	(void)argument;
	repairs++;
	CHECK(vmsrs_mutex_unlock(&first) == VMSRS_OK);
	lock(&first);
}

static void renew_and_crash(void *argument)
{
	renew(argument);
	crash();
}

static void cycles(void)
{
	CHECK(vmsrs_mutex_init(&first, lock_if_free_and_crash, &second) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&second, lock_if_free_and_crash, &third) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&third, lock_if_free_and_crash, &first) == VMSRS_OK);
	CHECK(fail(lock_first_and_crash) == 3);
	CHECK(repairs == 3);
	expect_free(&first);
	expect_free(&second);
	expect_free(&third);
	CHECK(vmsrs_mutex_init(&first, renew, NULL) == VMSRS_OK);
	CHECK(fail(lock_first_and_crash) == 0);
	CHECK(repairs == 4);
	expect_free(&first);
	repairs = 0;
	CHECK(vmsrs_mutex_init(&first, renew_and_crash, NULL) == VMSRS_OK);
	CHECK(fail(lock_first_and_crash) == (uint32_t)repairs);
	CHECK(repairs > 1);
	expect_free(&first);
}

/* A deferred function that returns with a mutex locked: it stays the thread's, as after a request. */

static void lock_only(void *mutex)
{
	lock(mutex);
}

static int defer_lock_and_crash(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, lock_and_crash, &second) == VMSRS_OK);
	CHECK(vmsrs_defer(this, lock_only, &first) == VMSRS_OK);
	crash();
	return 0;
}

static void returns(void)
{
	CHECK(vmsrs_mutex_init(&first, count, NULL) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&second, count, NULL) == VMSRS_OK);
	CHECK(fail(defer_lock_and_crash) == 1);
	CHECK(repairs == 1);
	expect_free(&second);
	CHECK(vmsrs_mutex_trylock(&first) == VMSRS_EHELD);
	CHECK(vmsrs_mutex_unlock(&first) == VMSRS_OK);
	expect_free(&first);
}

/* Mutexes that are freed while they are locked. */

static int lock_and_free(vmsrs_request *this, void *argument)
{
	vmsrs_mutex_t *mutex = calloc(1, sizeof *mutex);

	(void)this;
	(void)argument;
	CHECK(mutex);
	int code = vmsrs_mutex_lock(mutex);
	free(mutex);
	return code;
}

static int lock_and_count(vmsrs_request *this, void *argument)
{
	static vmsrs_mutex_t many[ALL];
	int locked = 0;

	(void)this;
	(void)argument;
	while (locked < ALL && vmsrs_mutex_lock(&many[locked]) == VMSRS_OK)
		locked++;
	for (int i = 0; i < locked; i++)
		CHECK(vmsrs_mutex_unlock(&many[i]) == VMSRS_OK);
	return locked;
}

static void places(void)
{
	int result = -1;

	for (int i = 0; i < 3 * ALL; i++) {
		CHECK(vmsrs_run(alice, lock_and_free, NULL, &result) == VMSRS_OK);
		CHECK(result == VMSRS_OK);
	}
	CHECK(vmsrs_run(bob, lock_and_count, NULL, &result) == VMSRS_OK);
	CHECK(result == ALL);
}

/* A function that never ends. */

static volatile int turns;

static void turn(void *argument)
{
	(void)argument;
	repairs++;
	for (;;)
		turns++;
}

static void take_turns(void *mutex)
{
	repairs++;
	for (;;) {
		lock(mutex);
		CHECK(vmsrs_mutex_unlock(mutex) == VMSRS_OK);
	}
}

static void *wait_for(void *mutex)
{
	while (repairs == 0)
		usleep(1000);
	lock(mutex);
	CHECK(vmsrs_mutex_unlock(mutex) == VMSRS_OK);
	return NULL;
}

static void endless(void)
{
	static void (*const functions[])(void *) = { turn, take_turns };
	pthread_t waiter;

	for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
		repairs = 0;
		CHECK(vmsrs_mutex_init(&first, functions[i], &second) == VMSRS_OK);
		CHECK(pthread_create(&waiter, NULL, wait_for, &first) == 0);
		CHECK(fail(lock_first_and_crash) == 1);
		CHECK(repairs == 1);
		CHECK(pthread_join(waiter, NULL) == 0);
		expect_free(&first);
		expect_free(&second);
	}
}

/* One that is left by longjmp. */

static void lock_and_leave(void *mutex)
{
	lock(mutex);
	siglongjmp(loop, 1);
}

static int defer_and_leave(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, count, NULL) == VMSRS_OK);
	CHECK(vmsrs_defer(this, lock_and_leave, &second) == VMSRS_OK);
	return -1;
}

static void left(void)
{
	CHECK(vmsrs_mutex_init(&first, lock_and_leave, &second) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&second, count, NULL) == VMSRS_OK);
	if (sigsetjmp(loop, 1) == 0) {
		(void)!vmsrs_run(alice, lock_first_and_crash, NULL, NULL);
		CHECK(0);
	}
	CHECK(is_free_in_a_request(&first));
	CHECK(repairs == 1);
	expect_free(&first);
	expect_free(&second);
	if (sigsetjmp(loop, 1) == 0) {
		(void)!vmsrs_run(alice, defer_and_leave, NULL, NULL);
		CHECK(0);
	}
	CHECK(is_free_in_a_request(&second));
	CHECK(repairs == 3);
	expect_free(&second);
}

static vmsrs_ticket_t ticket;

static void *member(void *argument)
{
	if (sigsetjmp(loop, 1) == 0) {
		(void)!vmsrs_join(&ticket, lock_first_and_crash, NULL, NULL);
		CHECK(0);
	}
	/* The defers are not this thread's. */
	CHECK(is_free_in_a_request(&first));
	CHECK(repairs == 1);
	return argument;
}

static int with_a_member(vmsrs_request *this, void *argument)
{
	pthread_t thread;

	(void)argument;
	CHECK(vmsrs_defer(this, lock_and_crash, &third) == VMSRS_OK);
	CHECK(vmsrs_ticket(this, &ticket) == VMSRS_OK);
	CHECK(pthread_create(&thread, NULL, member, NULL) == 0);
	pthread_join(thread, NULL);
	return 0;
}

static void left_by_a_member(void)
{
	CHECK(vmsrs_mutex_init(&first, lock_and_leave, &second) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&second, count, NULL) == VMSRS_OK);
	CHECK(fail(with_a_member) == 1);
	CHECK(repairs == 1);
	expect_free(&first);
	expect_free(&second);
	expect_free(&third);
}

int main(int count_, char **arguments)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} tests[] = {
		{ "defers", defers },	{ "nested", nested },	{ "cycles", cycles },
		{ "returns", returns }, { "places", places },	{ "endless", endless },
		{ "left", left },	{ "member", left_by_a_member },
	};
	vmsrs_app *app;

	CHECK(count_ == 2);
	/* A hang fails the test. */
	alarm(120);
	CHECK(vmsrs_open("mutexes", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "alice", 5, &alice) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "bob", 3, &bob) == VMSRS_OK);
	for (size_t i = 0; i < sizeof tests / sizeof *tests; i++) {
		if (!strcmp(arguments[1], tests[i].name)) {
			tests[i].run();
			_exit(0);
		}
	}
	CHECK(0);
}
