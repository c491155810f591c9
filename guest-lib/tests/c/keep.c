/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Variables outside of domains that go back when their request fails. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

struct counts {
	int clients;
	char name[13];
	long bytes;
};

static vmsrs_domain *alice, *bob;
static struct counts counts;
static const struct counts before = { 3, "three", 33 };

static void crash(void)
{
	*(volatile int *)8 = 1;
}

static void reset(void)
{
	counts = before;
}

static int is_changed(void)
{
	return memcmp(&counts, &before, sizeof(counts)) != 0;
}

static int run(vmsrs_domain *domain, vmsrs_request_fn work, void *argument)
{
	int result = 0;
	int code = vmsrs_run(domain, work, argument, &result);

	return code == VMSRS_OK ? result : code;
}

static uint32_t lost(void)
{
	vmsrs_failure failure;

	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	return failure.defers_failed;
}

static void change(vmsrs_request *this)
{
	CHECK(vmsrs_keep(this, &counts, sizeof(counts)) == VMSRS_OK);
	counts = (struct counts){ 4, "four", 44 };
	/* The first copy counts. */
	CHECK(vmsrs_keep(this, &counts.clients, sizeof(counts.clients)) == VMSRS_OK);
	counts.clients++;
}

static int succeed(vmsrs_request *this, void *argument)
{
	(void)argument;
	change(this);
	return 1;
}

static int fail(vmsrs_request *this, void *argument)
{
	(void)argument;
	change(this);
	crash();
	return 0;
}

static int give_up(vmsrs_request *this, void *argument)
{
	(void)argument;
	change(this);
	return -1;
}

static int commit_and_fail(vmsrs_request *this, void *argument)
{
	(void)argument;
	change(this);
	CHECK(vmsrs_commit(this, 0) == VMSRS_OK);
	CHECK(vmsrs_keep(this, &counts.bytes, sizeof(counts.bytes)) == VMSRS_OK);
	counts.bytes = 99;
	crash();
	return 0;
}

static void ends(void)
{
	reset();
	CHECK(run(alice, fail, NULL) == VMSRS_EFAILED && !is_changed() && lost() == 0);
	CHECK(run(alice, give_up, NULL) == -1 && !is_changed());
	CHECK(run(alice, succeed, NULL) == 1 && is_changed());
	/* What an earlier request has kept is forgotten. */
	CHECK(counts.clients == 5);
	CHECK(run(alice, fail, NULL) == VMSRS_EFAILED && counts.clients == 5);
	reset();
	CHECK(run(alice, commit_and_fail, NULL) == VMSRS_EFAILED);
	CHECK(counts.clients == 5 && counts.bytes == 44);
}

/* ---- What cannot be kept */

static int refused(vmsrs_request *this, void *argument)
{
	int *block = vmsrs_alloc(alice, sizeof(*block));

	(void)argument;
	CHECK(block);
	CHECK(vmsrs_keep(NULL, &counts, 1) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, NULL, 0) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, &counts, 0) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, &counts, SIZE_MAX) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, block, sizeof(*block)) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, (char *)block - 4, (size_t)1 << 40) == VMSRS_EINVAL);
	CHECK(vmsrs_keep(this, &counts, 1 << 16) == VMSRS_ELIMIT);
	return 1;
}

static int unreadable(vmsrs_request *this, void *argument)
{
	change(this);
	(void)!vmsrs_keep(this, argument, 8);
	return 0;
}

static int unmapped(vmsrs_request *this, void *page)
{
	CHECK(vmsrs_keep(this, page, 100) == VMSRS_OK);
	change(this);
	CHECK(munmap(page, 4096) == 0);
	crash();
	return 0;
}

static void wrong(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	CHECK(page != MAP_FAILED);
	reset();
	CHECK(run(alice, refused, NULL) == 1);
	CHECK(run(alice, unreadable, (void *)16) == VMSRS_EFAILED && !is_changed() && lost() == 0);
	CHECK(run(alice, unmapped, page) == VMSRS_EFAILED && !is_changed() && lost() == 1);
	CHECK(run(alice, fail, NULL) == VMSRS_EFAILED && !is_changed() && lost() == 0);
}

/* ---- Several threads and steps */

static int piece(vmsrs_request *this, void *argument)
{
	(void)argument;
	change(this);
	return 0;
}

static int join_and_end(vmsrs_request *this, void *how)
{
	vmsrs_piece pieces[] = { { .function = piece } };

	CHECK(vmsrs_fan_out(this, pieces, 1) == VMSRS_OK);
	if (how)
		crash();
	return 0;
}

static int step(vmsrs_request *this, void *how)
{
	if (how)
		crash();
	change(this);
	return VMSRS_STEP_SUSPEND;
}

static int free_task(vmsrs_request *this, void *task)
{
	(void)this;
	vmsrs_task_free(task);
	return 0;
}

static void threads_and_steps(void)
{
	vmsrs_task *task;

	reset();
	CHECK(run(alice, join_and_end, alice) == VMSRS_EFAILED && !is_changed());
	CHECK(run(alice, join_and_end, NULL) == 0 && is_changed());
	for (int how = 0; how < 3; how++) {
		reset();
		CHECK(vmsrs_task_new(alice, NULL, &task) == VMSRS_OK);
		CHECK(vmsrs_task_step(task, step, NULL, NULL) == VMSRS_OK);
		CHECK(is_changed());
		if (how == 1)
			CHECK(run(bob, free_task, task) == 0);
		else if (how == 2)
			CHECK(vmsrs_task_step(task, step, alice, NULL) == VMSRS_EFAILED);
		if (how != 1)
			vmsrs_task_free(task);
		CHECK(!is_changed());
	}
}

/* ---- A mutex is released when what it guards is as it was */

static vmsrs_mutex_t mutex;
static int clients_found;

static void look(void *argument)
{
	(void)argument;
	clients_found = counts.clients;
}

static int lock_and_fail(vmsrs_request *this, void *argument)
{
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK);
	return fail(this, argument);
}

static void locked(void)
{
	reset();
	CHECK(vmsrs_mutex_init(&mutex, look, NULL) == VMSRS_OK);
	CHECK(run(alice, lock_and_fail, NULL) == VMSRS_EFAILED);
	CHECK(clients_found == before.clients);
}

/* ---- The child of a fork has its own */

static int forked(vmsrs_request *this, void *argument)
{
	pid_t *child = argument;

	change(this);
	*child = fork();
	if (*child)
		crash();
	return 0;
}

static void forks(void)
{
	static pid_t child = -1;
	int code, status;

	reset();
	code = run(alice, forked, &child);
	if (child == 0) {
		CHECK(code == VMSRS_EFORKED && is_changed());
		_exit(0);
	}
	CHECK(code == VMSRS_EFAILED && !is_changed());
	CHECK(waitpid(child, &status, 0) == child && status == 0);
}

int main(int arguments, char **argument)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} modes[] = {
		{ "ends", ends }, { "wrong", wrong }, { "threads and steps", threads_and_steps }, { "locked", locked },
		{ "forks", forks },
	};
	vmsrs_app *app;

	CHECK(arguments == 2);
	CHECK(vmsrs_open("keep", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "alice", 5, &alice) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "bob", 3, &bob) == VMSRS_OK);
	CHECK(vmsrs_keep(NULL, &counts, sizeof(counts)) == VMSRS_EINVAL);
	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++) {
		if (!strcmp(argument[1], modes[i].name)) {
			modes[i].run();
			return 0;
		}
	}
	return 1;
}
