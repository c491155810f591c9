/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What requests have done after their commits. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *alice, *bob;
static int numbers[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 };
/* What was called, a digit for each. */
static long called;
/* They are called in a request. */
static int inside;

static void note(void *number)
{
	CHECK(vmsrs_in_request() == inside);
	called = called * 10 + *(int *)number;
	errno = EDOM;
}

static void later(vmsrs_request *this, int number)
{
	CHECK(vmsrs_on_commit(this, note, &numbers[number]) == VMSRS_OK);
}

static void crash(void)
{
	*(volatile int *)8 = 1;
}

/* What was called since the last time. */
static long take(void)
{
	long was = called;

	called = 0;
	return was;
}

static int run(vmsrs_domain *domain, vmsrs_request_fn work, void *argument)
{
	int result = 0;
	int code = vmsrs_run(domain, work, argument, &result);

	return code == VMSRS_OK ? result : code;
}

/* ---- One thread */

static int two(vmsrs_request *this, void *argument)
{
	long before = called;

	(void)argument;
	later(this, 1);
	later(this, 2);
	CHECK(called == before);
	errno = ERANGE;
	return 3;
}

static int two_and_crash(vmsrs_request *this, void *argument)
{
	two(this, argument);
	crash();
	return 0;
}

static int two_and_give_up(vmsrs_request *this, void *argument)
{
	two(this, argument);
	return -7;
}

static int commit_between(vmsrs_request *this, void *how)
{
	later(this, 1);
	CHECK(vmsrs_commit(this, 0) == VMSRS_OK);
	CHECK(called == 0);
	later(this, 2);
	if (how)
		crash();
	return -1;
}

static int refused(vmsrs_request *this, void *argument)
{
	CHECK(vmsrs_on_commit(NULL, note, argument) == VMSRS_EINVAL);
	CHECK(vmsrs_on_commit(this, NULL, argument) == VMSRS_EINVAL);
	return 0;
}

static void order(void)
{
	CHECK(run(alice, two, NULL) == 3 && take() == 12 && errno == ERANGE);
	CHECK(run(alice, two_and_crash, NULL) == VMSRS_EFAILED && take() == 0);
	CHECK(run(alice, two_and_give_up, NULL) == -7 && take() == 0);
	CHECK(run(alice, commit_between, alice) == VMSRS_EFAILED && take() == 1);
	CHECK(run(alice, commit_between, NULL) == -1 && take() == 1);
	CHECK(run(alice, refused, NULL) == 0);
	CHECK(vmsrs_on_commit(NULL, note, NULL) == VMSRS_EINVAL);
}


/* ---- Requests that such functions begin */

static void begin_one(void *work)
{
	called = called * 10 + 4;
	CHECK(run(bob, *(vmsrs_request_fn *)work, NULL) != VMSRS_ENESTED);
	called = called * 10 + 5;
}

static vmsrs_request_fn both[] = { two, two_and_crash };

static int begin_both(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_on_commit(this, begin_one, &both[0]) == VMSRS_OK);
	CHECK(vmsrs_on_commit(this, begin_one, &both[1]) == VMSRS_OK);
	later(this, 9);
	return 0;
}

static void nested(void)
{
	/* Of the inner request at its end, in the middle of the function that has run it. */
	CHECK(run(alice, begin_both, NULL) == 0 && take() == 4125459);
	CHECK(run(alice, two, NULL) == 3 && take() == 12);
}

/* ---- Several threads and steps */

static int piece(vmsrs_request *this, void *number)
{
	later(this, *(int *)number);
	return 0;
}

static int join_and_end(vmsrs_request *this, void *how)
{
	vmsrs_piece pieces[] = { { .function = piece, .argument = &numbers[5] } };

	later(this, 4);
	CHECK(vmsrs_fan_out(this, pieces, 1) == VMSRS_OK);
	later(this, 6);
	CHECK(called == 0);
	if (how)
		crash();
	return 0;
}

static void threads(void)
{
	CHECK(run(alice, join_and_end, NULL) == 0 && take() == 456);
	CHECK(run(alice, join_and_end, alice) == VMSRS_EFAILED && take() == 0);
}

static int step(vmsrs_request *this, void *number)
{
	later(this, *(int *)number);
	return *(int *)number == 3 ? VMSRS_STEP_DONE : VMSRS_STEP_SUSPEND;
}

static int commit_step(vmsrs_request *this, void *number)
{
	later(this, *(int *)number);
	CHECK(vmsrs_commit(this, 0) == VMSRS_OK);
	later(this, 7);
	return VMSRS_STEP_SUSPEND;
}

static void *last_step(void *task)
{
	CHECK(vmsrs_task_step(task, step, &numbers[3], NULL) == VMSRS_OK);
	CHECK(take() == 123);
	return NULL;
}

static int free_task(vmsrs_request *this, void *task)
{
	(void)this;
	vmsrs_task_free(task);
	return 0;
}

static void steps(void)
{
	vmsrs_task *task;
	pthread_t other;

	CHECK(vmsrs_task_new(alice, NULL, &task) == VMSRS_OK);
	CHECK(vmsrs_task_step(task, step, &numbers[1], NULL) == VMSRS_OK);
	/* Others of the same thread come and go. */
	CHECK(run(bob, two, NULL) == 3 && take() == 12);
	CHECK(vmsrs_task_step(task, step, &numbers[2], NULL) == VMSRS_OK);
	CHECK(called == 0);
	CHECK(pthread_create(&other, NULL, last_step, task) == 0);
	CHECK(pthread_join(other, NULL) == 0);
	vmsrs_task_free(task);

	/* Freed in another request, as a part of that one. */
	for (inside = 0; inside < 2; inside++) {
		CHECK(vmsrs_task_new(alice, NULL, &task) == VMSRS_OK);
		CHECK(vmsrs_task_step(task, commit_step, &numbers[6], NULL) == VMSRS_OK);
		if (inside)
			CHECK(run(bob, free_task, task) == 0);
		else
			vmsrs_task_free(task);
		CHECK(take() == 6);
	}
	inside = 0;
}

/* ---- The child of a fork */

static int forked(vmsrs_request *this, void *argument)
{
	pid_t *child = argument;

	later(this, 1);
	*child = fork();
	return 0;
}

static void forks(void)
{
	pid_t child = -1;
	int code, status;

	code = run(alice, forked, &child);
	if (child == 0) {
		CHECK(code == VMSRS_EFORKED && called == 0);
		CHECK(run(bob, two, NULL) == 3 && take() == 12);
		_exit(0);
	}
	CHECK(code == 0 && take() == 1);
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* ---- Many */

static void count(void *sum)
{
	++*(long *)sum;
}

static int many(vmsrs_request *this, void *sum)
{
	int code;

	while ((code = vmsrs_on_commit(this, count, sum)) == VMSRS_OK)
		;
	return code == VMSRS_ELIMIT;
}

static void limit(void)
{
	long sum = 0;

	for (int round = 1; round < 3; round++) {
		CHECK(run(alice, many, &sum) == 1);
		CHECK(sum == round * 262144);
	}
}

/* ---- An error in one of them is the process's */

static void crash_later(void *argument)
{
	(void)argument;
	crash();
}

static int crash_after(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_on_commit(this, crash_later, NULL) == VMSRS_OK);
	return 0;
}

static void errors(void)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		run(alice, crash_after, NULL);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child);
	CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/* ---- Stray writes to what the library has noted */

static uintptr_t self;

/* Changes each word that has the address of a function, outside of this program and the stacks; returns how many. */
static int redirect(void)
{
	char line[512];
	FILE *maps = fopen("/proc/self/maps", "r");
	int found = 0;

	CHECK(maps);
	while (fgets(line, sizeof(line), maps)) {
		unsigned long start, end;
		char rights[8];

		CHECK(sscanf(line, "%lx-%lx %7s", &start, &end, rights) == 3);
		if (strncmp(rights, "rw", 2) || strchr(line, '/') || strchr(line, '['))
			continue;
		for (uintptr_t *word = (uintptr_t *)start; word < (uintptr_t *)end; word++) {
			if (*word == self) {
				*word = (uintptr_t)crash_later;
				found++;
			}
		}
	}
	fclose(maps);
	return found;
}

static int stray(vmsrs_request *this, void *argument)
{
	later(this, 1);
	CHECK(vmsrs_on_commit(this, count, argument) == VMSRS_OK);
	/* The list, and stacks that have the word from the call. */
	CHECK(redirect() > 0);
	return 0;
}

static void strays(void)
{
	long sum = 0;

	self = (uintptr_t)count;
	CHECK(run(alice, stray, &sum) == VMSRS_EFAILED && take() == 0 && sum == 0);
	CHECK(run(alice, two, NULL) == 3 && take() == 12);
}

int main(int arguments, char **argument)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} modes[] = {
		{ "order", order }, { "nested", nested }, { "threads", threads }, { "steps", steps }, { "forks", forks },
		{ "limit", limit }, { "errors", errors }, { "strays", strays },
	};
	vmsrs_app *app;

	CHECK(arguments == 2);
	CHECK(vmsrs_open("on commit", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "alice", 5, &alice) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "bob", 3, &bob) == VMSRS_OK);
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		if (!strcmp(argument[1], modes[i].name)) {
			modes[i].run();
			return 0;
		}
	}
	return 1;
}
