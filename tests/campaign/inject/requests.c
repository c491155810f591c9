// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Start and end of requests; the domains that the server opens. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "inject.h"

static vmsrs_app *app;
_Atomic(vmsrs_domain *) targets[TARGETS];
_Atomic(char *) works[WORKERS];
_Atomic(char *) frames[WORKERS];

enum {
	/*
	 * How long requests wait for a lock: long enough for a queue on an overloaded emulated machine.
	 * A lock that is never released is still found.
	 */
	LOCK_TIMEOUT_MS = 180000,
	/*
	 * Of requests that have no other deadline: shorter than a client waits. A list that an error has
	 * made circular keeps a later reader busy until then. An ordinary request that ends so counts as
	 * harmed, and an error that is not endless by itself as a hang.
	 */
	DEADLINE_MS = 240000,
	/* What the requests' functions leave in errno. */
	ITS_ERRNO = 1000,
};

unsigned int worker(void)
{
	static atomic_uint workers;
	static __thread unsigned int number __attribute__((tls_model("initial-exec")));

	if (!number)
		number = 1 + atomic_fetch_add(&workers, 1);
	return number % WORKERS;
}

vmsrs_app *opened_app(void)
{
	return app;
}

struct call {
	vmsrs_request_fn function;
	void *argument;
	int result;
};

static void deferred(void *unused)
{
	(void)unused;
	strike(AT_DEFER);
}

static int function(vmsrs_request *request, void *argument)
{
	struct call *call = argument;
	int result;

	check_state_inside();
	arm.frame = __builtin_frame_address(0);
	atomic_store(&frames[worker()], arm.frame);
	arm.request = request;
	arm.running = true;
	if (arm.point == AT_DEFER && real.defer(request, deferred, NULL) != VMSRS_OK)
		real.fail("the injector's defer");
	strike(AT_START);
	if (arm.point == AT_BESIDE)
		occupy_helpers(request);
	result = call->function(request, call->argument);
	strike(AT_END);
	strike(AT_BESIDE);
	strike(AT_HANDED);
	if (passage(AT_MEMBER))
		make_in_helper(request);
	if (arm.point == AT_DEFER || arm.point == AT_RECOVERY || arm.point == AT_RECOVERED)
		make(NULL_WRITE, 0);
	arm.running = false;
	errno = ITS_ERRNO;
	return result;
}

/* The last step of a task, with the function's result. */
static int last_step(vmsrs_request *request, void *argument)
{
	struct call *call = argument;

	call->result = function(request, call);
	return call->result < 0 ? call->result : VMSRS_STEP_DONE;
}

/* vmsrs_run_with() in two steps, the first of them on another thread. */
static int run_handed(const vmsrs_domain *domain, const vmsrs_options *options, struct call *call, int *result)
{
	vmsrs_task *task;
	int code = real.task_new(domain, options, &task);

	if (code != VMSRS_OK)
		return code;
	code = begin_in_helper(task, domain);
	if (code == VMSRS_OK) {
		code = real.task_step(task, last_step, call, NULL);
		*result = call->result;
	}
	real.task_free(task);
	return code;
}

int no_work(vmsrs_request *request, void *unused)
{
	(void)request, (void)unused;
	return 0;
}

/* vmsrs_run_with() with an error, which may jump out of it. */
static int run_armed(const vmsrs_domain *domain, const vmsrs_options *options, struct call *call, int *result)
{
	int code;

	/* A handler that does not return must give its signal free. */
	if (sigsetjmp(arm.out, arm.error == HANDLER_JUMP)) {
		/* The thread's next call or request ends the one that was left, and its domain is free. */
		if (arm.parameter % 4 < 2)
			code = real.flush(app);
		else
			code = real.run_with(domain, options, no_work, NULL, NULL);
		return code == VMSRS_OK ? VMSRS_EFAILED : code;
	}
	if (arm.point == AT_HANDED)
		return run_handed(domain, options, call, result);
	code = real.run_with(domain, options, function, call, result);
	if (code == VMSRS_OK && errno != ITS_ERRNO)
		arm.left = "errno";
	return code;
}

EXPORT int vmsrs_run_with(const vmsrs_domain *domain, const vmsrs_options *asked, vmsrs_request_fn work,
			  void *argument, int *result)
{
	struct call call = { work, argument, 0 };
	/* What the server needs for its request stays. */
	vmsrs_options options = asked ? *asked : (vmsrs_options){ 0 };
	bool timed = false;
	timer_t timer;
	int code;

	options.deadline_ms = DEADLINE_MS;
	/* Longer than a deadline, so that the deadline ends a wait and is reported. */
	options.lock_timeout_ms = LOCK_TIMEOUT_MS;
	if (arm.options || arm.armed) {
		options.flags |= arm.seal ? VMSRS_SEAL : 0;
		if (arm.deadline)
			options.deadline_ms = arm.deadline;
	}
	arm.options = false;
	if (!arm.armed) {
		code = real.run_with(domain, &options, work, argument, result);
		atomic_store(&works[worker()], NULL);
		/* A thread that could not be registered has another state than one that is. */
		if (code != VMSRS_ESYSTEM)
			note_state();
		return code;
	}
	arm.domain = domain;
	arm.entered = NULL;
	if (arm.point == AT_MOMENT)
		timed = begin_moment(&timer);
	code = run_armed(domain, &options, &call, result);
	check_state();
	check_reused();
	arm.running = false;
	atomic_store(&works[worker()], NULL);
	if (timed)
		timer_delete(timer);
	return code;
}

/* The app's own check, registered for the server: finds a violation or fails when told to. */
static int check(vmsrs_domain *domain, void *unused)
{
	(void)domain, (void)unused;
	if (!arm.armed)
		return 0;
	if (arm.check == INVARIANT_ERROR)
		make(NULL_WRITE, 0);
	return arm.check == INVARIANT;
}

EXPORT int vmsrs_open(const char *name, vmsrs_app **opened)
{
	int code = real.open(name, opened);

	if (code == VMSRS_OK) {
		app = *opened;
		code = real.app_invariant(app, check, NULL);
	}
	return code;
}

EXPORT int vmsrs_domain_open(const vmsrs_app *of, const void *key, size_t length, vmsrs_domain **domain)
{
	/* Users whose frames are corrupted have mirrors. */
	bool mirror = length == 7 && !memcmp(key, "mirror", 6);
	int code = real.domain_open_with(of, key, length, mirror ? VMSRS_MIRROR : 0, domain);

	if (code == VMSRS_OK && length == 7 && !memcmp(key, "target", 6))
		atomic_store(&targets[((const char *)key)[6] % TARGETS], *domain);
	return code;
}

struct start {
	void *(*function)(void *);
	void *argument;
};

/* Threads of pools that shrink end like this: the C library runs what is on their cleanup lists. */
static void *start_thread(void *argument)
{
	struct start start = *(struct start *)argument;

	free(argument);
	pthread_exit(start.function(start.argument));
}

EXPORT int pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*function)(void *),
			  void *argument)
{
	struct start *start;
	int error;

	if (!is_server(__builtin_return_address(0)))
		return real.pthread_create(thread, attributes, function, argument);
	start = malloc(sizeof(*start));
	if (!start)
		return EAGAIN;
	*start = (struct start){ function, argument };
	error = real.pthread_create(thread, attributes, start_thread, start);
	if (error)
		free(start);
	return error;
}
