// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * A server's variables, guarded: what requests, defers, handlers of signals and threads may do with them.
 * Says what does not hold and ends with 1, or ends with 0; with 77 if the CPU has no protection keys.
 */
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmsrs.h"

static volatile int in_data = 3;
static volatile int in_bss;
static volatile sig_atomic_t handled;
static vmsrs_app *app;
static vmsrs_domain *domain;

static void expect(int holds, const char *what)
{
	if (holds)
		return;
	printf("does not hold: %s\n", what);
	exit(1);
}

static void undo(void *unused)
{
	(void)unused;
	in_bss++;
}

static int writes(vmsrs_request *request, void *place)
{
	if (in_data != 3 || vmsrs_defer(request, undo, NULL) != VMSRS_OK)
		return -1;
	*(volatile int *)place = 99;
	return 0;
}

/* An ordinary handler, in the middle of a request. */
static void handler(int number)
{
	(void)number;
	vmsrs_open_guard();
	handled = 1;
}

static int raises(vmsrs_request *request, void *place)
{
	raise(SIGUSR1);
	/* What the handler was allowed is over. */
	return writes(request, place);
}

static int guards(vmsrs_request *request, void *unused)
{
	(void)request, (void)unused;
	return vmsrs_guard_variables() == VMSRS_ENESTED ? 0 : -1;
}

static void refused(vmsrs_request_fn function, volatile int *place, const char *what)
{
	int before = *place, undone = in_bss;
	vmsrs_failure failure;
	int code, result;

	code = vmsrs_run(domain, function, (void *)place, &result);
	expect(code == VMSRS_EFAILED, what);
	vmsrs_last_failure(&failure);
	expect(failure.kind == VMSRS_KIND_MEMORY && failure.address == (uint64_t)(uintptr_t)place, what);
	expect(failure.defers_failed == 0 && in_bss == undone + 1, "a defer may write");
	expect(place == &in_bss || *place == before, what);
}

static void *thread(void *unused)
{
	in_bss = 20;
	refused(writes, &in_data, "a write to .data by a new thread's request");
	in_bss = 30;
	return unused;
}

int main(void)
{
	pthread_t other;
	int code, result;

	signal(SIGUSR1, handler);
	code = vmsrs_open("variables", &app);
	expect(code == VMSRS_OK, "vmsrs_open");
	expect(vmsrs_domain_open(app, "one", 3, &domain) == VMSRS_OK, "vmsrs_domain_open");
	code = vmsrs_guard_variables();
	if (code == VMSRS_ENOKEYS)
		return 77;
	expect(code == VMSRS_OK, vmsrs_strerror(code));
	expect(vmsrs_guard_variables() == VMSRS_OK, "guarding again");

	refused(writes, &in_data, "a write to .data");
	refused(writes, &in_bss, "a write to .bss");
	refused(raises, &in_data, "a write behind a handler of a signal");
	expect(handled == 1, "a handler may write when it has said so");
	expect(vmsrs_run(domain, guards, NULL, &result) == VMSRS_OK && result == 0, "no guarding in a request");
	expect(pthread_create(&other, NULL, thread, NULL) == 0, "pthread_create");
	expect(pthread_join(other, NULL) == 0 && in_bss == 30, "another thread may write");
	in_data = 4;
	expect(vmsrs_guard((char *)&in_data + 1, 4096) == VMSRS_EINVAL, "a range that is not of pages");
	expect(vmsrs_guard(NULL, 4096) == VMSRS_EINVAL, "a null pointer");
	return 0;
}
