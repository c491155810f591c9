/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Calls each function of vmsrs.h, with valid and with invalid arguments. */
#include <assert.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_app *app;
static vmsrs_domain *one, *two;
static int undone;

static int right(vmsrs_request *request, void *argument);

static void undo(void *argument)
{
	CHECK(vmsrs_run(two, right, &one, NULL) == VMSRS_ENESTED);
	CHECK(!vmsrs_in_request());
	undone = undone * 10 + *(int *)argument;
}

static vmsrs_request *last;

/* The request of another thread is refused. */
static void *stranger(void *request)
{
	CHECK(!vmsrs_arena_alloc(request, 16));
	CHECK(!vmsrs_in_request());
	return NULL;
}

static int right(vmsrs_request *request, void *argument)
{
	char *block = vmsrs_alloc(one, 100);
	char *wide = vmsrs_alloc_aligned(one, 10, 4096);
	int result;
	pthread_t id;

	CHECK(argument == &one);
	CHECK(block && wide && (size_t)wide % 4096 == 0);
	memset(block, 7, 100);
	block = vmsrs_realloc(one, block, 5000);
	CHECK(block && block[99] == 7);
	CHECK(vmsrs_in_request() == 1);
	CHECK(vmsrs_usable_size(block) == 5000 && vmsrs_usable_size(wide) == 10);
	CHECK(vmsrs_usable_size(NULL) == 0);
	CHECK(vmsrs_is_domain_address(block) == 1 && vmsrs_is_domain_address(wide + 9) == 1);
	CHECK(!vmsrs_is_domain_address(&result) && !vmsrs_is_domain_address(NULL));
	errno = 0;
	CHECK(vmsrs_usable_size(&result) == 0 && errno == EPERM);
	CHECK(vmsrs_set_root(one, block) == VMSRS_OK);
	CHECK(vmsrs_root(one) == block);
	CHECK(vmsrs_free(one, wide) == VMSRS_OK);
	CHECK(vmsrs_free(one, NULL) == VMSRS_OK);
	errno = 0;
	CHECK(!vmsrs_alloc(two, 1) && errno == EPERM);
	CHECK(vmsrs_free(two, block) == VMSRS_ENOTHELD);
	CHECK(vmsrs_set_root(two, NULL) == VMSRS_ENOTHELD);
	errno = 0;
	CHECK(!vmsrs_alloc(one, (size_t)2 << 40) && errno == ENOMEM);
	errno = 0;
	CHECK(!vmsrs_alloc_aligned(one, 1, 5) && errno == EINVAL);
	CHECK(vmsrs_enter(request, one) == VMSRS_EHELD);
	CHECK(vmsrs_leave(request, one) == VMSRS_EMAIN);
	CHECK(vmsrs_leave(request, two) == VMSRS_ENOTHELD);
	CHECK(vmsrs_enter(request, two) == VMSRS_OK);
	CHECK(vmsrs_alloc_zeroed(two, 10));
	CHECK(vmsrs_leave(request, two) == VMSRS_OK);
	CHECK(vmsrs_commit(request, VMSRS_SEAL) == VMSRS_OK);
	CHECK(vmsrs_commit(request, 8) == VMSRS_EINVAL);
	CHECK(vmsrs_arena_alloc(request, 1000));
	CHECK(!vmsrs_arena_alloc(request, 1 << 30));
	CHECK(!vmsrs_arena_alloc(NULL, 1));
	CHECK(!memcmp(vmsrs_input(request, "input", 5), "input", 5));
	CHECK(!vmsrs_input(request, NULL, 5) && !vmsrs_input(NULL, "input", 5));
	CHECK(pthread_create(&id, NULL, stranger, request) == 0);
	CHECK(pthread_join(id, NULL) == 0);
	last = request;
	CHECK(vmsrs_run(two, right, NULL, &result) == VMSRS_ENESTED);
	return 42;
}

static int wrong(vmsrs_request *request, void *argument)
{
	static int numbers[] = { 1, 2, 3 };

	for (int i = 0; i < 3; i++)
		CHECK(vmsrs_defer(request, undo, &numbers[i]) == VMSRS_OK);
	switch (*(int *)argument) {
	case VMSRS_KIND_MEMORY:
		*(volatile int *)argument = 0;
		*(volatile int *)8 = 0;
		break;
	case VMSRS_KIND_ABORT:
		assert(!"this");
		break;
	case VMSRS_KIND_ARITHMETIC:
		raise(SIGFPE);
		break;
	case VMSRS_KIND_DOUBLE_FREE: {
		void *block = vmsrs_alloc(one, 10);

		vmsrs_free(one, block);
		vmsrs_free(one, block);
		break;
	}
	case VMSRS_KIND_FOREIGN_FREE:
		vmsrs_free(one, &numbers[0]);
		break;
	case VMSRS_KIND_INVARIANT:
		vmsrs_fail("so be it");
	}
	return -5;
}

/* Overflows a buffer on the stack, which glibc detects. */
static int smash(vmsrs_request *request, void *argument)
{
	char buffer[8];
	volatile char *bytes = buffer;

	(void)request;
	for (int i = 0; i < *(int *)argument; i++)
		bytes[i] = 1;
	return buffer[0];
}

/* The value at the root must be even; 13 makes the check itself fail. */
static int is_even(vmsrs_domain *domain, void *argument)
{
	int *root = vmsrs_root(domain);

	CHECK(argument == &undone);
	if (root && *root == 13)
		root = (int *)8;
	if (root && *root == 15)
		vmsrs_fail("fifteen");
	return root && *root % 2;
}

static int set_value(vmsrs_request *request, void *argument)
{
	vmsrs_domain *domain = *(int *)argument < 0 ? one : two;
	int *root = vmsrs_root(domain);

	(void)request;
	if (!root) {
		root = vmsrs_alloc(domain, sizeof(*root));
		CHECK(root && vmsrs_set_root(domain, root) == VMSRS_OK);
	}
	*root = *(int *)argument;
	return 0;
}

static void invariants(void)
{
	const struct {
		int value;
		int status;
		const char *message;
	} cases[] = {
		{ 2, VMSRS_OK, "" },
		{ 3, VMSRS_EFAILED, "the check of the invariant returned 1" },
		{ 4, VMSRS_OK, "" },
		{ 13, VMSRS_EFAILED, "an error in the check of the invariant" },
		{ 15, VMSRS_EFAILED, "fifteen" },
		{ 6, VMSRS_OK, "" },
	};

	CHECK(vmsrs_domain_invariant(NULL, is_even, &undone) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_invariant(two, NULL, &undone) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_invariant(two, is_even, &undone) == VMSRS_OK);
	CHECK(vmsrs_domain_invariant(two, is_even, &undone) == VMSRS_EINVAL);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		vmsrs_failure failure;
		int value = cases[i].value;

		CHECK(vmsrs_run(two, set_value, &value, NULL) == cases[i].status);
		if (cases[i].status == VMSRS_OK)
			continue;
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == VMSRS_KIND_INVARIANT);
		CHECK(!strcmp(failure.message, cases[i].message));
	}
	CHECK(vmsrs_app_invariant(NULL, is_even, &undone) == VMSRS_EINVAL);
	CHECK(vmsrs_app_invariant(app, is_even, &undone) == VMSRS_OK);
	CHECK(vmsrs_app_invariant(app, is_even, &undone) == VMSRS_EINVAL);
	for (int value = -2; value > -4; value--)
		CHECK(vmsrs_run(one, set_value, &value, NULL) ==
		      (value % 2 ? VMSRS_EFAILED : VMSRS_OK));
}

static void *thread(void *argument)
{
	vmsrs_failure failure;
	int kinds[] = { VMSRS_KIND_MEMORY,	VMSRS_KIND_ABORT,
			VMSRS_KIND_ARITHMETIC,	VMSRS_KIND_DOUBLE_FREE,
			VMSRS_KIND_FOREIGN_FREE, VMSRS_KIND_INVARIANT };

	(void)argument;
	CHECK(vmsrs_last_failure(&failure) == VMSRS_ENOREQUEST);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		int kind = kinds[i], result = 77;

		undone = 0;
		CHECK(vmsrs_run(one, wrong, &kind, &result) == VMSRS_EFAILED);
		CHECK(result == 77 && undone == 321);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == (unsigned int)kinds[i]);
		CHECK(failure.incident != 0);
		CHECK(strlen(vmsrs_kind_name(failure.kind)) > 2);
	}
	CHECK(!strcmp(failure.message, "so be it"));
	return NULL;
}

static vmsrs_ticket_t ticket;

static int add_one(vmsrs_request *request, void *argument)
{
	int *block = vmsrs_alloc(one, sizeof(*block));

	(void)request;
	CHECK(block);
	*block = *(int *)argument;
	return -*block;
}

static int stop(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	*(volatile int *)8 = 1;
	return 0;
}

/* Joins the request of another thread, and fails it if there is an argument. */
static void *joiner(void *argument)
{
	vmsrs_failure failure;
	int value = 7, result = 0;

	if (argument) {
		CHECK(vmsrs_join(&ticket, stop, NULL, NULL) == VMSRS_EFAILED);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == VMSRS_KIND_MEMORY);
	} else {
		CHECK(vmsrs_join(&ticket, add_one, &value, &result) == VMSRS_OK);
		CHECK(result == -7);
	}
	return NULL;
}

static int leads(vmsrs_request *request, void *argument)
{
	const vmsrs_domain *domains[] = { two, one };
	pthread_t id;

	CHECK(vmsrs_ticket(NULL, &ticket) == VMSRS_EINVAL);
	CHECK(vmsrs_ticket(request, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_ticket(request, &ticket) == VMSRS_OK);
	CHECK(vmsrs_join(&ticket, add_one, NULL, NULL) == VMSRS_ENESTED);
	CHECK(vmsrs_enter_all(request, NULL, 2) == VMSRS_EINVAL);
	CHECK(vmsrs_enter_all(request, domains, 2) == VMSRS_OK);
	CHECK(vmsrs_leave(request, two) == VMSRS_OK);
	CHECK(pthread_create(&id, NULL, joiner, argument) == 0);
	CHECK(pthread_join(id, NULL) == 0);
	return 0;
}

#define PIECES 64

/* More threads than the address space allows: some pieces are not run, and say so. */
static void refused_pieces(vmsrs_request *request)
{
	void *reserve[4], *end;
	vmsrs_piece pieces[PIECES];
	struct rlimit old, none = { 0 };
	int value = 3, status, run = 0;

	/* Memory for malloc(), which could not grow its heap. */
	for (int i = 0; i < 4; i++)
		reserve[i] = malloc(100000);
	end = malloc(16);
	for (int i = 0; i < 4; i++)
		free(reserve[i]);
	for (int i = 0; i < PIECES; i++)
		pieces[i] = (vmsrs_piece){ add_one, &value, 77, 77 };
	CHECK(getrlimit(RLIMIT_AS, &old) == 0);
	none.rlim_max = old.rlim_max;
	CHECK(setrlimit(RLIMIT_AS, &none) == 0);
	status = vmsrs_fan_out(request, pieces, PIECES);
	CHECK(setrlimit(RLIMIT_AS, &old) == 0);
	free(end);
	CHECK(status == VMSRS_ESYSTEM);
	for (int i = 0; i < PIECES; i++) {
		if (pieces[i].outcome == VMSRS_OK) {
			CHECK(pieces[i].result == -3);
			run++;
		} else {
			CHECK(pieces[i].outcome == VMSRS_ESYSTEM && pieces[i].result == 0);
		}
	}
	CHECK(run < PIECES && pieces[PIECES - 1].outcome == VMSRS_ESYSTEM);
}

/* Runs several pieces at once; one of them fails if there is an argument. */
static int fans_out(vmsrs_request *request, void *argument)
{
	int values[] = { 5, 6, 7 };
	vmsrs_piece pieces[] = {
		{ .function = add_one, .argument = &values[0], .outcome = 77 },
		{ .function = add_one, .argument = &values[1], .outcome = 77 },
		{ .function = add_one, .argument = &values[2], .outcome = 77 },
	};

	CHECK(vmsrs_fan_out(NULL, pieces, 3) == VMSRS_EINVAL);
	CHECK(vmsrs_fan_out(request, NULL, 3) == VMSRS_EINVAL);
	CHECK(vmsrs_fan_out(request, pieces, SIZE_MAX) == VMSRS_EINVAL);
	pieces[1].function = NULL;
	CHECK(vmsrs_fan_out(request, pieces, 3) == VMSRS_EINVAL);
	CHECK(vmsrs_fan_out(request, pieces, 0) == VMSRS_OK);
	CHECK(pieces[0].outcome == 77);
	pieces[1].function = argument ? stop : add_one;
	CHECK(vmsrs_fan_out(request, pieces, 3) == VMSRS_OK);
	CHECK(!argument);
	for (int i = 0; i < 3; i++)
		CHECK(pieces[i].outcome == VMSRS_OK && pieces[i].result == -values[i]);
	refused_pieces(request);
	CHECK(vmsrs_fan_out(request, pieces, 3) == VMSRS_OK);
	last = request;
	return 0;
}

static void pieces(void)
{
	vmsrs_failure failure;
	vmsrs_piece piece = { .function = add_one, .outcome = 77 };

	CHECK(vmsrs_run(one, fans_out, NULL, NULL) == VMSRS_OK);
	CHECK(vmsrs_fan_out(last, &piece, 1) == VMSRS_ENOREQUEST);
	CHECK(piece.outcome == 77);
	CHECK(vmsrs_run(one, fans_out, &failure, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	CHECK(failure.kind == VMSRS_KIND_MEMORY && failure.address == 8);
	CHECK(vmsrs_run(one, fans_out, NULL, NULL) == VMSRS_OK);
}

static int step(vmsrs_request *request, void *argument)
{
	(void)request;
	return *(int *)argument;
}

static void members_and_steps(void)
{
	vmsrs_ticket_t none = { 0 };
	vmsrs_options options = { .flags = 8 };
	int result = 0, want = VMSRS_STEP_SUSPEND;
	vmsrs_task *task;

	CHECK(vmsrs_run(one, leads, NULL, NULL) == VMSRS_OK);
	CHECK(vmsrs_join(&ticket, add_one, &want, NULL) == VMSRS_EENDED);
	CHECK(vmsrs_join(&none, add_one, &want, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_join(&ticket, NULL, &want, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_run(one, leads, &ticket, NULL) == VMSRS_EFAILED);

	CHECK(vmsrs_task_new(one, &options, &task) == VMSRS_EINVAL);
	CHECK(vmsrs_task_new(one, NULL, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_task_new(one, NULL, &task) == VMSRS_OK);
	CHECK(vmsrs_task_step(task, NULL, NULL, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_task_step(task, step, &want, &result) == VMSRS_OK);
	CHECK(result == VMSRS_STEP_SUSPEND);
	options = (vmsrs_options){ .lock_timeout_ms = 1 };
	CHECK(vmsrs_run_with(one, &options, step, &want, NULL) == VMSRS_ETIMEOUT);
	want = VMSRS_STEP_DONE;
	CHECK(vmsrs_task_step(task, step, &want, &result) == VMSRS_OK);
	CHECK(result == VMSRS_STEP_DONE);
	CHECK(vmsrs_task_step(task, step, &want, &result) == VMSRS_EENDED);
	vmsrs_task_free(task);
	vmsrs_task_free(NULL);
	CHECK(vmsrs_task_new(one, NULL, &task) == VMSRS_OK);
	CHECK(vmsrs_task_step(task, stop, NULL, NULL) == VMSRS_EFAILED);
	vmsrs_task_free(task);
}

static vmsrs_mutex_t mutex;
static int repaired;

static void repair(void *argument)
{
	CHECK(!vmsrs_in_request());
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_EHELD);
	repaired += *(int *)argument;
}

static int locks(vmsrs_request *request, void *argument)
{
	(void)request;
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK);
	CHECK(vmsrs_mutex_trylock(&mutex) == VMSRS_EHELD);
	if (*(int *)argument == 1)
		vmsrs_fail("with a mutex");
	if (*(int *)argument == 2)
		return -1;
	if (*(int *)argument == 3)
		return VMSRS_STEP_SUSPEND;
	if (*(int *)argument == 4)
		return VMSRS_OK;
	CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
	return 0;
}

static void *others(void *argument)
{
	CHECK(vmsrs_mutex_trylock(&mutex) == VMSRS_ETIMEOUT);
	CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_ENOTHELD);
	return argument;
}

static int locks_in_a_piece(vmsrs_request *request, void *argument)
{
	vmsrs_piece piece = { .function = locks, .argument = argument };

	return vmsrs_fan_out(request, &piece, 1);
}

/* Its thread goes, or may go on with something else: nobody could unlock it. */
static void mutex_that_outlives_its_part_of_a_request(void)
{
	int suspended = 3, kept = 4;
	vmsrs_task *task;

	CHECK(vmsrs_task_new(one, NULL, &task) == VMSRS_OK);
	CHECK(vmsrs_task_step(task, locks, &suspended, NULL) == VMSRS_EFAILED);
	vmsrs_task_free(task);
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK && vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
	CHECK(vmsrs_run(one, locks_in_a_piece, &kept, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK && vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
	/* The whole request has ended well: it is the thread's. */
	CHECK(vmsrs_run(one, locks, &kept, NULL) == VMSRS_OK);
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_EHELD);
	CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
}

static void mutexes(void)
{
	int ten = 10;
	pthread_t id;

	CHECK(vmsrs_mutex_init(NULL, repair, &ten) == VMSRS_EINVAL);
	CHECK(vmsrs_mutex_lock(NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_mutex_trylock(NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_mutex_unlock(NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_mutex_init(&mutex, repair, &ten) == VMSRS_OK);
	for (int how = 0; how < 3; how++)
		CHECK(vmsrs_run(one, locks, &how, NULL) == (how == 1 ? VMSRS_EFAILED : VMSRS_OK));
	CHECK(repaired == 20);
	CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_ENOTHELD);
	mutex_that_outlives_its_part_of_a_request();
	CHECK(repaired == 40);
	repaired = 20;
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK);
	CHECK(pthread_create(&id, NULL, others, NULL) == 0);
	CHECK(pthread_join(id, NULL) == 0);
	CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
	CHECK(vmsrs_mutex_init(&mutex, NULL, NULL) == VMSRS_OK);
	ten = 1;
	CHECK(vmsrs_run(one, locks, &ten, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_mutex_trylock(&mutex) == VMSRS_OK && repaired == 20);
}

static int deletes(vmsrs_request *request, void *argument)
{
	(void)request;
	CHECK(vmsrs_domain_delete(argument) == VMSRS_ENESTED);
	return vmsrs_root(argument) ? 1 : 0;
}

static int enters(vmsrs_request *request, void *argument)
{
	CHECK(vmsrs_enter(request, argument) == VMSRS_EDELETED);
	return 0;
}

static void deletion(void)
{
	vmsrs_domain_info_t size;
	vmsrs_domain *user, *again;
	int value = 2, result = 7;

	CHECK(vmsrs_domain_delete(NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_info(NULL, &size) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_open(app, "user", 4, &user) == VMSRS_OK);
	CHECK(vmsrs_domain_info(user, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_info(user, &size) == VMSRS_OK);
	CHECK(size.pages == 4 && size.quarantine_ms == 0);
	CHECK(vmsrs_run(user, deletes, user, &result) == VMSRS_OK && result == 0);
	CHECK(vmsrs_domain_delete(user) == VMSRS_OK);
	CHECK(vmsrs_domain_delete(user) == VMSRS_EDELETED);
	CHECK(vmsrs_run(user, deletes, user, NULL) == VMSRS_EDELETED);
	CHECK(vmsrs_run(two, enters, user, NULL) == VMSRS_OK);
	CHECK(vmsrs_domain_info(user, &size) == VMSRS_EDELETED);
	CHECK(vmsrs_domain_open(app, "user", 4, &again) == VMSRS_OK && again != user);
	CHECK(vmsrs_run(again, deletes, again, &result) == VMSRS_OK && result == 0);
	user = again;
	CHECK(vmsrs_domain_clear(NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_clear(&user) == VMSRS_OK && user != again);
	CHECK(vmsrs_domain_clear(&again) == VMSRS_EDELETED);
	CHECK(vmsrs_run(user, deletes, user, &result) == VMSRS_OK && result == 0);
	user = NULL;
	CHECK(vmsrs_domain_clear(&user) == VMSRS_EINVAL);
	CHECK(vmsrs_run(two, set_value, &value, NULL) == VMSRS_OK);
}

static int fill(vmsrs_request *request, void *argument)
{
	char *block = vmsrs_alloc(argument, 20000);

	(void)request;
	CHECK(vmsrs_held_domain(vmsrs_domain_number(argument)) == argument);
	CHECK(!vmsrs_held_domain(vmsrs_domain_number(two)));
	CHECK(block);
	memset(block, 'l', 20000);
	return vmsrs_set_root(argument, block);
}

static int find(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	(void)request;
	CHECK(!*bytes);
	*bytes = vmsrs_root(argument);
	*length = 20000;
	return 0;
}

static int find_nothing(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	(void)request;
	(void)bytes;
	(void)length;
	return *(int *)argument;
}

static int find_outside(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	(void)request;
	*bytes = argument;
	*length = 1;
	return 0;
}

static int find_wildly(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	vmsrs_lease_t lease;

	CHECK(find(request, argument, bytes, length) == 0);
	CHECK(vmsrs_lease(argument, find, argument, &lease) == VMSRS_ENESTED && !lease.data);
	vmsrs_fail("found, and failed");
}

static void leases(void)
{
	vmsrs_domain *user;
	vmsrs_lease_t lease;
	int given_up = -1, nothing = 0;

	CHECK(vmsrs_domain_open(app, "lease", 5, &user) == VMSRS_OK);
	CHECK(vmsrs_domain_number(NULL) == UINT32_MAX);
	CHECK(!vmsrs_held_domain(vmsrs_domain_number(user)));
	CHECK(vmsrs_run(user, fill, user, NULL) == VMSRS_OK);
	CHECK(vmsrs_lease(NULL, find, user, &lease) == VMSRS_EINVAL && !lease.data);
	CHECK(vmsrs_lease(user, NULL, user, &lease) == VMSRS_EINVAL);
	CHECK(vmsrs_lease(user, find, user, NULL) == VMSRS_EINVAL);
	CHECK(vmsrs_lease(user, find_outside, &lease, &lease) == VMSRS_EINVAL && !lease.data);
	CHECK(vmsrs_lease(user, find_nothing, &nothing, &lease) == VMSRS_OK && !lease.data);
	CHECK(vmsrs_lease(user, find_nothing, &given_up, &lease) == VMSRS_OK && !lease.data);
	CHECK(vmsrs_lease(user, find_wildly, user, &lease) == VMSRS_EFAILED && !lease.data);
	CHECK(vmsrs_lease_end(&lease) == VMSRS_OK);
	CHECK(vmsrs_lease_end(NULL) == VMSRS_OK);
	CHECK(vmsrs_lease(user, find, user, &lease) == VMSRS_OK);
	CHECK(vmsrs_domain_delete(user) == VMSRS_OK);
	CHECK(lease.length == 20000);
	for (size_t i = 0; i < lease.length; i++)
		CHECK(((const char *)lease.data)[i] == 'l');
	errno = EXDEV;
	CHECK(vmsrs_lease_end(&lease) == VMSRS_OK);
	CHECK(errno == EXDEV && !lease.data && !lease.length);
	CHECK(vmsrs_lease_end(&lease) == VMSRS_OK);
	CHECK(vmsrs_lease(user, find, user, &lease) == VMSRS_EDELETED);
}

/* What a domain holds: a lease, which must not be there, and bytes to be leased. */
struct kept {
	vmsrs_lease_t lease;
	char bytes[20000];
};

static int keep(vmsrs_request *request, void *argument)
{
	vmsrs_domain *user = argument;
	struct kept *kept = vmsrs_alloc_zeroed(user, sizeof(*kept));

	(void)request;
	CHECK(kept && !vmsrs_set_root(user, kept));
	memset(kept->bytes, 'k', sizeof(kept->bytes));
	return 0;
}

static int find_kept(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	struct kept *kept = vmsrs_root(argument);

	(void)request;
	*bytes = kept->bytes;
	*length = sizeof(kept->bytes);
	return 0;
}

/* The lease that the requests below are about. */
static vmsrs_lease_t theirs;

static int put_lease(vmsrs_request *request, void *argument)
{
	(void)request;
	((struct kept *)vmsrs_root(argument))->lease = theirs;
	return 0;
}

static int get_lease(vmsrs_request *request, void *argument)
{
	(void)request;
	theirs = ((struct kept *)vmsrs_root(argument))->lease;
	return 0;
}

static int end_kept(vmsrs_request *request, void *argument)
{
	struct kept *kept = vmsrs_root(argument);
	int code;

	(void)request;
	errno = EXDEV;
	code = vmsrs_lease_end(&kept->lease);
	CHECK(errno == EXDEV && !kept->lease.data && !kept->lease.state[0] && !kept->lease.state[1] && !kept->lease.state[2]);
	return code ? 100 - code : 0;
}

static int end_and_fail(vmsrs_request *request, void *argument)
{
	CHECK(end_kept(request, argument) == 0);
	vmsrs_fail("with a lease that is ended");
}

/* The kernel can read all bytes of a lease. */
static int is_there(const vmsrs_lease_t *lease)
{
	int ends[2], there;

	CHECK(pipe(ends) == 0);
	there = write(ends[1], lease->data, lease->length) == (ssize_t)lease->length;
	close(ends[0]);
	close(ends[1]);
	return there;
}

/* What is ended a second time is not there any more, and what lies in its place is somebody else's. */
static void stale_leases(void)
{
	vmsrs_domain *user;
	vmsrs_lease_t copy, wrong, others;
	int result, status;
	pid_t child;

	CHECK(vmsrs_domain_open(app, "stale", 5, &user) == VMSRS_OK);
	CHECK(vmsrs_run(user, keep, user, NULL) == VMSRS_OK);

	/* A copy. */
	CHECK(vmsrs_lease(user, find_kept, user, &theirs) == VMSRS_OK);
	copy = theirs;
	CHECK(vmsrs_lease_end(&theirs) == VMSRS_OK);
	CHECK(vmsrs_lease(user, find_kept, user, &others) == VMSRS_OK);
	/* Or else the test shows nothing. */
	CHECK(others.data == copy.data);
	CHECK(vmsrs_lease_end(&copy) == VMSRS_EINVAL && !copy.data && is_there(&others));
	CHECK(vmsrs_lease_end(&copy) == VMSRS_OK);

	/* In a domain, where a request that fails brings it back. Without protection it has to be put there. */
	CHECK(vmsrs_lease(user, find_kept, user, &theirs) == VMSRS_OK);
	CHECK(vmsrs_run(user, put_lease, user, NULL) == VMSRS_OK);
	CHECK(vmsrs_run(user, end_and_fail, user, NULL) == VMSRS_EFAILED);
	CHECK(vmsrs_run(user, put_lease, user, NULL) == VMSRS_OK);
	CHECK(vmsrs_lease(user, find_kept, user, &copy) == VMSRS_OK);
	CHECK(copy.data == theirs.data);
	CHECK(vmsrs_run(user, end_kept, user, &result) == VMSRS_OK && result == 100 - VMSRS_EINVAL);
	CHECK(is_there(&copy) && is_there(&others));
	CHECK(vmsrs_run(user, get_lease, user, NULL) == VMSRS_OK && !theirs.data);

	/* With one wrong field. */
	for (int field = 0; field < 6; field++) {
		wrong = copy;
		switch (field) {
		case 0:
			wrong.data = (const char *)copy.data + 4096;
			break;
		case 1:
			wrong.length += 4096;
			break;
		case 5:
			wrong = others;
			wrong.state[1] = copy.state[1];
			break;
		default:
			wrong.state[field - 2]++;
		}
		CHECK(vmsrs_lease_end(&wrong) == VMSRS_EINVAL && is_there(&copy) && is_there(&others));
	}

	/* In a child, which has leases of its own. */
	child = fork();
	if (!child) {
		CHECK(vmsrs_lease(user, find_kept, user, &theirs) == VMSRS_OK);
		wrong = copy;
		CHECK(vmsrs_lease_end(&wrong) == VMSRS_EINVAL);
		CHECK(vmsrs_lease_end(&others) == VMSRS_EINVAL && is_there(&theirs));
		CHECK(vmsrs_lease_end(&theirs) == VMSRS_OK);
		_exit(0);
	}
	CHECK(waitpid(child, &status, 0) == child && status == 0);
	CHECK(is_there(&copy) && is_there(&others));
	CHECK(vmsrs_lease_end(&copy) == VMSRS_OK && vmsrs_lease_end(&others) == VMSRS_OK);
}

int main(void)
{
	vmsrs_options options = { .deadline_ms = 600000, .lock_timeout_ms = 60000 };
	vmsrs_app *again;
	vmsrs_info info;
	pthread_t id;
	int kind = 0, result = 0, bytes = 64;

	/*
	 * One heap for all threads: under refused_pieces() a new thread cannot have one of its own, and glibc ends
	 * the process if such a thread registers a destructor.
	 */
	CHECK(mallopt(M_ARENA_MAX, 1));
	CHECK(vmsrs_open(NULL, &app) == VMSRS_EINVAL);
	CHECK(vmsrs_open("", &app) == VMSRS_EINVAL);
	CHECK(vmsrs_open("calls", &app) == VMSRS_OK);
	CHECK(vmsrs_open("calls", &again) == VMSRS_OK && again == app);
	CHECK(vmsrs_protection(app) == VMSRS_PROTECTION_NONE);
	CHECK(vmsrs_app_info(app, &info) == VMSRS_OK && info.broken == 0);
	CHECK(vmsrs_flush(app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "one", 3, &one) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "two", 3, &two) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "none", 0, &two) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_open(app, "long", 65, &two) == VMSRS_EINVAL);
	CHECK(vmsrs_domain_open(app, "long", SIZE_MAX, &two) == VMSRS_EINVAL);

	errno = 0;
	CHECK(!vmsrs_alloc(one, 8) && errno == EPERM);
	CHECK(vmsrs_free(one, &errno) == VMSRS_ENOREQUEST);
	CHECK(vmsrs_run(one, NULL, NULL, NULL) == VMSRS_EINVAL);

	CHECK(vmsrs_run_with(one, &options, right, &one, &result) == VMSRS_OK);
	CHECK(result == 42);
	CHECK(!vmsrs_arena_alloc(last, 16));
	CHECK(vmsrs_on_commit(last, undo, &result) == VMSRS_ENOREQUEST);
	CHECK(vmsrs_keep(last, &result, sizeof(result)) == VMSRS_ENOREQUEST);
	CHECK(!vmsrs_input(last, &result, sizeof(result)));
	CHECK(vmsrs_on_commit(NULL, undo, &result) == VMSRS_EINVAL);
	CHECK(vmsrs_on_commit(last, NULL, &result) == VMSRS_EINVAL);
	CHECK(vmsrs_run(one, wrong, &kind, &result) == VMSRS_OK);
	CHECK(result == -5 && undone == 321);
	options.flags = VMSRS_AUDIT_WHOLE | VMSRS_SEAL;
	CHECK(vmsrs_run_with(one, &options, right, &one, &result) == VMSRS_OK);
	options.flags = 8;
	CHECK(vmsrs_run_with(one, &options, right, &one, NULL) == VMSRS_EINVAL);

	CHECK(pthread_create(&id, NULL, thread, NULL) == 0);
	CHECK(pthread_join(id, NULL) == 0);
	CHECK(vmsrs_run(two, smash, &bytes, &result) == VMSRS_EFAILED);
	CHECK(vmsrs_run(one, right, &one, &result) == VMSRS_OK);
	members_and_steps();
	pieces();
	deletion();
	mutexes();
	leases();
	stale_leases();
	invariants();
	for (int code = VMSRS_EUNCOMMITTED; code <= VMSRS_OK; code++)
		CHECK(strcmp(vmsrs_strerror(code), vmsrs_strerror(1)) != 0);
	return 0;
}
