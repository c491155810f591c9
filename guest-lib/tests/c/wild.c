// Every function of the library with wild pointers, and in a loop that is cut short: it costs the request, and no other
// thread waits for anything.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmsrs.h"

#define WILD ((void *)8)

static vmsrs_app *app;
static vmsrs_domain *alice, *bob;
static unsigned call;
static unsigned serial;
// Calls that are to be cut short.
static atomic_uint made;

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "not so: %s (call %u)\n", what, call);
		_exit(1);
	}
}

static int nothing(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	return 0;
}

static int invariant(vmsrs_domain *domain, void *argument)
{
	(void)domain;
	(void)argument;
	return 0;
}

static void undo(void *argument)
{
	(void)argument;
}

static vmsrs_domain *open_next(void)
{
	vmsrs_domain *domain = NULL;
	char key[32];

	snprintf(key, sizeof(key), "domain %u", serial++);
	if (vmsrs_domain_open(app, key, strlen(key), &domain) != VMSRS_OK)
		serial = 0;
	return domain;
}

// False after the last one.
static int call_wildly(vmsrs_request *request)
{
	vmsrs_failure *failure = WILD;
	vmsrs_ticket_t *ticket = WILD;
	vmsrs_domain *domain;
	vmsrs_info *info = WILD;
	vmsrs_task *task;
	vmsrs_app *opened;

	switch (call) {
	case 0: (void)!vmsrs_open(WILD, &opened); break;
	case 1: (void)!vmsrs_open("another", WILD); break;
	case 2: (void)!vmsrs_domain_open(app, WILD, 5, &domain); break;
	case 3: (void)!vmsrs_domain_open(app, "carol", 5, WILD); break;
	case 4: (void)!vmsrs_domain_open(WILD, "carol", 5, &domain); break;
	case 5: (void)!vmsrs_domain_open_with(app, WILD, 64, VMSRS_MIRROR, &domain); break;
	case 6: vmsrs_protection(WILD); break;
	case 7: (void)!vmsrs_app_info(app, info); break;
	case 8: (void)!vmsrs_app_info(WILD, info); break;
	case 9: (void)!vmsrs_flush(WILD); break;
	case 10: (void)!vmsrs_run(WILD, nothing, NULL, NULL); break;
	case 11: (void)!vmsrs_run_with(bob, WILD, nothing, NULL, NULL); break;
	case 12: (void)!vmsrs_commit(WILD, 0); break;
	case 13: vmsrs_last_failure(failure); break;
	case 14: vmsrs_fail(WILD); break;
	case 15: (void)!vmsrs_defer(WILD, undo, NULL); break;
	case 16: vmsrs_root(WILD); break;
	case 17: (void)!vmsrs_set_root(WILD, NULL); break;
	case 18: (void)!vmsrs_alloc(WILD, 10); break;
	case 19: (void)!vmsrs_alloc_zeroed(WILD, 10); break;
	case 20: (void)!vmsrs_alloc_aligned(WILD, 64, 64); break;
	case 21: (void)!vmsrs_realloc(WILD, WILD, 10); break;
	case 22: (void)!vmsrs_realloc(alice, WILD, 10); break;
	case 23: (void)!vmsrs_free(WILD, WILD); break;
	case 24: (void)!vmsrs_free(alice, WILD); break;
	case 25: (void)!vmsrs_arena_alloc(WILD, 10); break;
	case 26: (void)!vmsrs_enter(request, WILD); break;
	case 27: (void)!vmsrs_enter(WILD, bob); break;
	case 28: (void)!vmsrs_enter_all(request, WILD, 3); break;
	case 29: (void)!vmsrs_leave(request, WILD); break;
	case 30: (void)!vmsrs_ticket(request, ticket); break;
	case 31: (void)!vmsrs_join(ticket, nothing, NULL, NULL); break;
	case 32: (void)!vmsrs_fan_out(request, WILD, 3); break;
	case 33: (void)!vmsrs_task_new(WILD, NULL, &task); break;
	case 34: (void)!vmsrs_task_new(bob, WILD, &task); break;
	case 35: (void)!vmsrs_task_new(bob, NULL, WILD); break;
	case 36: (void)!vmsrs_task_step(WILD, nothing, NULL, NULL); break;
	case 37: vmsrs_task_free(WILD); break;
	case 38: (void)!vmsrs_app_invariant(WILD, invariant, NULL); break;
	case 39: (void)!vmsrs_domain_invariant(WILD, invariant, NULL); break;
	case 40: (void)!vmsrs_disown_fd(WILD, 2); break;
	default: return 0;
	}
	return 1;
}

static int wildly(vmsrs_request *request, void *more)
{
	*(int *)more = 1;
	*(int *)more = call_wildly(request);
	return 0;
}

// Never returns, unless there is no such call.
static int call_for_ever(vmsrs_request *request, void *argument)
{
	vmsrs_info info;
	vmsrs_task *task;
	vmsrs_app *opened;

	(void)argument;
	for (;; made++) {
		switch (call) {
		case 0: open_next(); break;
		case 1: (void)!vmsrs_open("wild", &opened); break;
		case 2: (void)!vmsrs_flush(app); break;
		case 3: (void)!vmsrs_app_info(app, &info); break;
		case 4:
			if (!vmsrs_task_new(bob, NULL, &task))
				vmsrs_task_free(task);
			break;
		case 5: (void)!vmsrs_commit(request, 0); break;
		case 6: vmsrs_free(alice, vmsrs_alloc(alice, 3000)); break;
		case 7: (void)!vmsrs_domain_invariant(open_next(), invariant, NULL); break;
		case 8:
			if (!vmsrs_enter(request, bob))
				(void)!vmsrs_leave(request, bob);
			break;
		case 9: (void)!vmsrs_alloc(open_next(), 100); break;
		case 10: {
			vmsrs_piece pieces[2] = { { .function = nothing }, { .function = nothing } };

			(void)!vmsrs_fan_out(request, pieces, 2);
			break;
		}
		default: return -1;
		}
	}
}

static int fail_later(vmsrs_request *request, void *argument)
{
	(void)request;
	// At another place in the call each time.
	while (made < 2)
		sched_yield();
	for (volatile unsigned i = 0; i < *(unsigned *)argument * 6100; i++)
		;
	vmsrs_fail("interrupts the other piece");
}

static int cut_short(vmsrs_request *request, void *argument)
{
	vmsrs_piece pieces[2] = {
		{ .function = call_for_ever },
		{ .function = fail_later, .argument = argument },
	};

	made = 0;
	return vmsrs_fan_out(request, pieces, 2);
}

// Without a device what the request has written stays: blocks that it had allocated or freed, perhaps half, when it was cut short.
static int is_next_as_it_must_be(int code)
{
	vmsrs_failure failure;

	if (code == VMSRS_OK)
		return 1;
	return vmsrs_protection(app) == VMSRS_PROTECTION_NONE && code == VMSRS_EFAILED &&
	       vmsrs_last_failure(&failure) == VMSRS_OK && failure.kind == VMSRS_KIND_HEAP_CORRUPT;
}

// What another thread does meanwhile.
static void *neighbour(void *argument)
{
	vmsrs_domain *domain = open_next();
	vmsrs_task *task;
	vmsrs_app *same;

	check(domain && vmsrs_run(domain, nothing, NULL, NULL) == VMSRS_OK, "another domain");
	check(vmsrs_run(bob, nothing, NULL, NULL) == VMSRS_OK, "bob's request");
	check(is_next_as_it_must_be(vmsrs_run(alice, nothing, NULL, NULL)), "alice's next request");
	check(!vmsrs_open("wild", &same) && same == app, "the app");
	check(!vmsrs_task_new(bob, NULL, &task), "a task");
	vmsrs_task_free(task);
	return argument;
}

static void look(void)
{
	pthread_t thread;

	check(!pthread_create(&thread, NULL, neighbour, NULL), "a thread");
	check(!pthread_join(thread, NULL), "that ends");
}

int main(void)
{
	int more = 1;

	alarm(600);
	check(!vmsrs_open("wild", &app), "the app opens");
	check(!vmsrs_domain_open(app, "alice", 5, &alice), "a domain");
	check(!vmsrs_domain_open(app, "bob", 3, &bob), "another one");
	for (call = 0; more; call++) {
		int code = vmsrs_run(alice, wildly, &more, NULL);

		check(code == VMSRS_EFAILED || code == VMSRS_OK, "the request ends");
		look();
	}
	check(call == 42, "all calls");
	for (call = 0; call <= 10; call++)
		for (unsigned i = 0; i < 12; i++) {
			check(vmsrs_run(alice, cut_short, &i, NULL) == VMSRS_EFAILED, "the request fails");
			look();
		}
	return 0;
}
