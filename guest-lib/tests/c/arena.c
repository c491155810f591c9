/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Memory of requests outside of domains: input before a guard page, and arenas that are kept after the request. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static const vmsrs_options keep = { .flags = VMSRS_KEEP_ARENA };
static vmsrs_domain *alice, *bob;
static char *kept, *input;

static int run(const vmsrs_options *options, vmsrs_domain *domain, vmsrs_request_fn work, void *argument)
{
	int result = 0;
	int code = vmsrs_run_with(domain, options, work, argument, &result);

	return code == VMSRS_OK ? result : code;
}

static uint32_t kind(void)
{
	vmsrs_failure failure;

	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	return failure.kind;
}

/* ---- Input */

static int parse(vmsrs_request *this, void *argument)
{
	size_t length = *(size_t *)argument;
	volatile char *packet = vmsrs_input(this, "a packet", 8);
	int sum = 0;

	for (size_t i = 0; i < length; i++)
		sum += packet[i];
	return sum;
}

static int parse_twice(vmsrs_request *this, void *argument)
{
	(void)!vmsrs_input(this, "another one", 11);
	return parse(this, argument);
}

static void inputs(void)
{
	vmsrs_request_fn parsers[] = { parse, parse_twice };
	size_t lengths[] = { 8, 9 };

	for (int i = 0; i < 4; i++) {
		CHECK(run(NULL, alice, parsers[i % 2], &lengths[0]) > 0);
		CHECK(run(NULL, alice, parsers[i % 2], &lengths[1]) == VMSRS_EFAILED);
		CHECK(kind() == VMSRS_KIND_MEMORY);
	}
}

/* ---- An arena that is kept */

static int take(vmsrs_request *this, void *argument)
{
	kept = vmsrs_arena_alloc(this, 1000);
	input = vmsrs_input(this, "input", 5);
	CHECK(kept && input);
	memset(kept, *(char *)argument, 1000);
	return 1;
}

static int overwrite(vmsrs_request *this, void *argument)
{
	char *block = vmsrs_arena_alloc(this, 1000);

	(void)argument;
	memset(block, 'x', 1000);
	memset(vmsrs_input(this, "xxxxx", 5), 'y', 5);
	return block == kept || !kept;
}

static void expect_kept(char what)
{
	for (int i = 0; i < 1000; i++)
		CHECK(kept[i] == what);
	CHECK(!memcmp(input, "input", 5));
}

static void *other_thread(void *argument)
{
	CHECK(run(&keep, bob, overwrite, argument) >= 0);
	return NULL;
}

static int fail(vmsrs_request *this, void *argument)
{
	take(this, argument);
	vmsrs_fail("this request fails");
}

static void keeps(void)
{
	pthread_t other;
	char what = 'k';

	for (int round = 0; round < 200; round++, what++) {
		CHECK(run(&keep, alice, take, &what) == 1);
		expect_kept(what);
		CHECK(pthread_create(&other, NULL, other_thread, NULL) == 0);
		CHECK(pthread_join(other, NULL) == 0);
		expect_kept(what);
		/* The next one has the memory again, whichever it is. */
		if (round % 3 == 0)
			CHECK(run(NULL, bob, overwrite, NULL) >= 0);
	}
	kept = NULL;
	CHECK(run(&keep, alice, overwrite, NULL) == 1);
	CHECK(run(NULL, alice, take, &what) == 1);
	CHECK(run(NULL, alice, overwrite, NULL) == 1);
	CHECK(run(&keep, alice, fail, &what) == VMSRS_EFAILED);
	CHECK(run(&keep, alice, take, &what) == 1);
	expect_kept(what);
}

/* ---- For functions that are called after the commit, also if one of them runs requests */

static int sent;

static void send(void *packet)
{
	CHECK(!strcmp(packet, "a packet"));
	CHECK(run(&keep, bob, overwrite, NULL) >= 0);
	CHECK(run(NULL, bob, overwrite, NULL) >= 0);
	sent++;
}

static int answer(vmsrs_request *this, void *argument)
{
	int packets = *(int *)argument;

	for (int i = 0; i < packets; i++) {
		char *packet = vmsrs_arena_alloc(this, 9);

		strcpy(packet, "a packet");
		CHECK(vmsrs_on_commit(this, send, packet) == VMSRS_OK);
	}
	return 0;
}

static void answers(void)
{
	int packets = 10;

	for (int round = 1; round < 4; round++) {
		CHECK(run(&keep, alice, answer, &packets) == 0);
		CHECK(sent == 10 * round);
	}
}

/* ---- Red zones */

static int overrun(vmsrs_request *this, void *argument)
{
	volatile char *first = vmsrs_arena_alloc(this, 100), *second = vmsrs_arena_alloc(this, 100);
	int place = *(int *)argument;

	(void)second;
	first[place] = 1;
	if (place == 101)
		CHECK(vmsrs_commit(this, 0) == VMSRS_OK);
	return 0;
}

static void zones(void)
{
	int places[] = { 99, 100, 101, 115, -1, -16 };

	for (int i = 0; i < 6; i++) {
		CHECK(run(&keep, alice, overrun, &places[i]) == (i ? VMSRS_EFAILED : 0));
		CHECK(!i || kind() == VMSRS_KIND_RED_ZONE);
		/* Only where they are asked for. */
		if (places[i] >= 0)
			CHECK(run(NULL, alice, overrun, &places[i]) == 0);
	}
}

/* ---- Large arenas, and steps of tasks */

static int take_all(vmsrs_request *this, void *bytes)
{
	return vmsrs_arena_alloc(this, *(size_t *)bytes) != NULL;
}

static void sizes(void)
{
	vmsrs_options options = { .flags = VMSRS_KEEP_ARENA, .arena_bytes = 64 << 20 };
	size_t bytes = 60 << 20;

	CHECK(run(NULL, alice, take_all, &bytes) == 0);
	CHECK(run(&options, alice, take_all, &bytes) == 1);
	CHECK(run(NULL, alice, take_all, &bytes) == 1);
	options.arena_bytes = ((uint64_t)1 << 36) + 1;
	CHECK(run(&options, alice, take_all, &bytes) == VMSRS_EINVAL);
	options.arena_bytes = (uint64_t)1 << 36;
	bytes = (size_t)1 << 35;
	CHECK(run(&options, alice, take_all, &bytes) == 1);
}

static int step(vmsrs_request *this, void *what)
{
	take(this, what);
	return *(char *)what == 'b' ? VMSRS_STEP_DONE : VMSRS_STEP_SUSPEND;
}

static int overrun_step(vmsrs_request *this, void *argument)
{
	volatile char *block = vmsrs_arena_alloc(this, 100);

	(void)argument;
	block[100] = 1;
	return VMSRS_STEP_DONE;
}

static void steps(void)
{
	vmsrs_task *task;
	char what[] = "ab";

	CHECK(vmsrs_task_new(alice, &keep, &task) == VMSRS_OK);
	for (int i = 0; i < 2; i++) {
		CHECK(vmsrs_task_step(task, step, &what[i], NULL) == VMSRS_OK);
		expect_kept(what[i]);
	}
	vmsrs_task_free(task);
	CHECK(vmsrs_task_new(alice, &keep, &task) == VMSRS_OK);
	CHECK(vmsrs_task_step(task, overrun_step, NULL, NULL) == VMSRS_EFAILED);
	CHECK(kind() == VMSRS_KIND_RED_ZONE);
	vmsrs_task_free(task);
	CHECK(run(NULL, alice, overwrite, NULL) >= 0);
}

int main(int arguments, char **argument)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} modes[] = {
		{ "inputs", inputs }, { "keeps", keeps }, { "answers", answers }, { "zones", zones }, { "sizes", sizes },
		{ "steps", steps },
	};
	vmsrs_app *app;

	CHECK(arguments == 2);
	CHECK(vmsrs_open("arena", &app) == VMSRS_OK);
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
