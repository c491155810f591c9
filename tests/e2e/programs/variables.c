// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Guards a server's variables and checks what requests, defers, signal handlers and threads can do with them.
 * Exits with 0, with 1 and a message when a check fails, or with 77 when the CPU has no protection keys.
 */
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

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
	printf("failed: %s\n", what);
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

/* A regular handler that interrupts a request. */
static void handler(int number)
{
	(void)number;
	vmsrs_open_guard();
	handled = 1;
}

static int raises(vmsrs_request *request, void *place)
{
	raise(SIGUSR1);
	/* The handler's access has ended with it. */
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
	expect(failure.defers_failed == 0 && in_bss == undone + 1, "a defer writes");
	expect(place == &in_bss || *place == before, what);
}

static void *thread(void *unused)
{
	in_bss = 20;
	refused(writes, &in_data, "a write to .data by a new thread's request");
	in_bss = 30;
	return unused;
}

/*
 * Starts before anything is guarded, so it cannot access the variables until it guards a page of its own.
 */
static void *older(void *go)
{
	volatile char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	while (sem_wait(go))
		continue;
	expect(vmsrs_guard((void *)page, 4096) == VMSRS_OK, "an older thread guards a page");
	page[0] = 1;
	in_bss = page[0] + 39;
	return NULL;
}

static void faults(int number)
{
	(void)number;
	/* Without vmsrs_open_guard(): refused. */
	handled = 2;
}

static void raise_in_defer(void *unused)
{
	(void)unused;
	raise(SIGUSR2);
}

/* The handler's error ends the first defer; the second one and the server can still write. */
static int defers(vmsrs_request *request, void *place)
{
	if (vmsrs_defer(request, undo, NULL) != VMSRS_OK ||
	    vmsrs_defer(request, raise_in_defer, NULL) != VMSRS_OK)
		return -1;
	*(volatile int *)place = 99;
	return 0;
}

static void exits(int number)
{
	exit(number == SIGTERM ? 5 : 6);
}

static int nothing(vmsrs_request *request, void *unused)
{
	(void)request, (void)unused;
	return 0;
}

static int exits_in_request(vmsrs_request *request, void *unused)
{
	(void)request, (void)unused;
	exit(7);
}

/* The calling thread's rights for each protection key. */
static unsigned int rights(void)
{
	unsigned int pkru;

	__asm__ volatile("rdpkru" : "=a"(pkru) : "c"(0) : "edx");
	return pkru;
}

static unsigned int rights_outside;

/* Shared by a request's two threads; not one of the guarded variables. */
struct pair {
	vmsrs_ticket_t ticket;
	sem_t joined, out;
};
static struct pair *pair;

/* exit() is not part of the request that calls it: an exit handler may wait for the request's other thread. */
static void at_end(void)
{
	struct timespec limit;

	if (rights() != rights_outside)
		_exit(8);
	if (!pair)
		return;
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 300;
	if (sem_timedwait(&pair->out, &limit) != 0)
		_exit(9);
}

/* Mostly in the C library, where a thread is not interrupted immediately. */
static int allocates(vmsrs_request *request, void *unused)
{
	void *volatile block;

	(void)request, (void)unused;
	sem_post(&pair->joined);
	for (;;) {
		block = malloc(64);
		free(block);
	}
	return 0;
}

static int waits(vmsrs_request *request, void *unused)
{
	(void)request, (void)unused;
	for (;;)
		pause();
	return 0;
}

static void *joins_and_allocates(void *unused)
{
	int result;

	(void)!vmsrs_join(&pair->ticket, allocates, NULL, &result);
	sem_post(&pair->out);
	return unused;
}

static void *joins_and_exits(void *unused)
{
	int result;

	(void)!vmsrs_join(&pair->ticket, exits_in_request, NULL, &result);
	return unused;
}

static int exits_as_leader(vmsrs_request *request, void *unused)
{
	pthread_t member;

	if (vmsrs_ticket(request, &pair->ticket) != VMSRS_OK ||
	    pthread_create(&member, NULL, joins_and_allocates, NULL) != 0)
		return -1;
	while (sem_wait(&pair->joined) != 0)
		;
	return exits_in_request(request, unused);
}

static int leads_one_that_exits(vmsrs_request *request, void *unused)
{
	pthread_t member;

	if (vmsrs_ticket(request, &pair->ticket) != VMSRS_OK ||
	    pthread_create(&member, NULL, joins_and_exits, NULL) != 0)
		return -1;
	return waits(request, unused);
}

enum end { IN_REQUEST, AS_LEADER, AS_MEMBER, IN_HANDLER, IN_HANDLER_ON_ITS_STACK };

/* Ends the calling process in a request with another thread, for which at_end() waits. */
static void ends_in_pair(enum end where)
{
	int result;

	pair = malloc(sizeof(*pair));
	if (!pair || sem_init(&pair->joined, 0, 0) != 0 || sem_init(&pair->out, 0, 0) != 0)
		_exit(10);
	(void)!vmsrs_run(domain, where == AS_LEADER ? exits_as_leader : leads_one_that_exits, NULL, &result);
	sem_post(&pair->out);
	/* The other thread ends the process. */
	for (;;)
		pause();
}

/* Runs a child that ends in a request or in a signal handler. */
static void ends(enum end where, int expected, const char *what)
{
	struct sigaction on_its_stack = { .sa_handler = exits, .sa_flags = SA_ONSTACK };
	int status = 0, result;
	pid_t child = fork();

	if (child == 0) {
		if (where != IN_HANDLER && where != IN_HANDLER_ON_ITS_STACK && atexit(at_end))
			_exit(1);
		/* Gives the thread a signal stack. */
		(void)!vmsrs_run(domain, nothing, NULL, &result);
		if (where == IN_HANDLER_ON_ITS_STACK)
			sigaction(SIGTERM, &on_its_stack, NULL);
		rights_outside = rights();
		if (where == IN_HANDLER || where == IN_HANDLER_ON_ITS_STACK)
			raise(SIGTERM);
		else if (where == IN_REQUEST)
			(void)!vmsrs_run(domain, exits_in_request, NULL, &result);
		else
			ends_in_pair(where);
		_exit(1);
	}
	expect(child > 0 && waitpid(child, &status, 0) == child, "fork");
	expect(WIFEXITED(status) && WEXITSTATUS(status) == expected, what);
}

int main(void)
{
	pthread_t other, old;
	vmsrs_failure failure;
	int code, result;
	sem_t go;

	signal(SIGUSR1, handler);
	signal(SIGUSR2, faults);
	signal(SIGTERM, exits);
	/* On this stack, which is not guarded. */
	expect(sem_init(&go, 0, 0) == 0 && pthread_create(&old, NULL, older, &go) == 0, "pthread_create");
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
	refused(raises, &in_data, "a write after a signal handler");
	expect(handled == 1, "a handler writes after vmsrs_open_guard()");
	expect(vmsrs_run(domain, guards, NULL, &result) == VMSRS_OK && result == 0, "guarding in a request");
	expect(pthread_create(&other, NULL, thread, NULL) == 0, "pthread_create");
	expect(pthread_join(other, NULL) == 0 && in_bss == 30, "another thread writes");
	in_data = 4;
	sem_post(&go);
	expect(pthread_join(old, NULL) == 0 && in_bss == 40, "an older thread writes after it has guarded");
	expect(vmsrs_run(domain, defers, (void *)&in_data, &result) == VMSRS_EFAILED, "a request fails");
	vmsrs_last_failure(&failure);
	expect(failure.defers_failed == 1 && in_bss == 41, "the defer after a failed one writes");
	in_bss = 42;
	ends(IN_HANDLER, 5, "exit in a signal handler");
	ends(IN_HANDLER_ON_ITS_STACK, 5, "exit in a signal handler on the signal stack");
	ends(IN_REQUEST, 7, "exit in a request");
	ends(AS_LEADER, 7, "exit in a request that another thread has joined");
	ends(AS_MEMBER, 7, "exit by a thread that has joined a request");
	expect(vmsrs_guard((char *)&in_data + 1, 4096) == VMSRS_EINVAL, "a range that is not page-aligned");
	expect(vmsrs_guard(NULL, 4096) == VMSRS_EINVAL, "a null pointer");
	return 0;
}
