/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Code that leaves its request by longjmp, and signal handlers of a server that run in the
 * middle of requests: one that does not return, and one that fails.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *alice, *bob;
static sigjmp_buf loop;
static vmsrs_request *volatile left;
static void *volatile wild = (void *)8;

static int fine(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	return 7;
}

/* A short wait shows whether the domain is free. */
static void is_free(vmsrs_domain *domain)
{
	const vmsrs_options options = { .lock_timeout_ms = 100 };
	int result = 0;

	CHECK(vmsrs_run_with(domain, &options, fine, NULL, &result) == VMSRS_OK);
	CHECK(result == 7);
}

static void *other_thread(void *argument)
{
	is_free(alice);
	is_free(bob);
	return argument;
}

static void all_are_free(void)
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, other_thread, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
}

static int leave(vmsrs_request *this, void *argument)
{
	left = this;
	(void)argument;
	siglongjmp(loop, 1);
}

static int enter_and_leave(vmsrs_request *this, void *argument)
{
	CHECK(vmsrs_enter(this, bob) == VMSRS_OK);
	return leave(this, argument);
}

/* Runs the same function deeper on the stack than the loop. */
static __attribute__((noinline)) int run_deeper(vmsrs_domain *domain,
						vmsrs_request_fn function)
{
	volatile char room[3000];
	int code;

	room[0] = 1;
	code = vmsrs_run(domain, function, NULL, NULL);
	return code + room[0] - 1;
}

static void leave_requests(void)
{
	static vmsrs_request_fn functions[] = { leave, enter_and_leave };

	for (volatile int round = 0; round < 8; round++) {
		if (sigsetjmp(loop, 1) == 0) {
			if (round & 1)
				(void)!run_deeper(alice, functions[round / 4]);
			else
				(void)!vmsrs_run(alice, functions[round / 4], NULL, NULL);
			CHECK(0);
		}
		/* The next request may be one of another user, or of the same. */
		if (round & 2)
			is_free(bob);
		is_free(alice);
		all_are_free();
	}
}

static void call_after_leaving(void)
{
	vmsrs_health_t health;
	vmsrs_domain *other;
	vmsrs_app *app;
	void *low, *high;
	int protection;

	CHECK(vmsrs_open("leaving", &app) == VMSRS_OK);
	protection = vmsrs_protection(app);
	for (volatile int call = 0; call < 10; call++) {
		if (sigsetjmp(loop, 1) == 0) {
			(void)!vmsrs_run(alice, leave, NULL, NULL);
			CHECK(0);
		}
		switch (call) {
		case 0:
			CHECK(!vmsrs_alloc(alice, 10));
			break;
		case 1:
			CHECK(vmsrs_enter(left, bob) == VMSRS_ENOREQUEST);
			break;
		case 2:
			CHECK(vmsrs_commit(left, 0) == VMSRS_ENOREQUEST);
			break;
		case 3:
			CHECK(!vmsrs_arena_alloc(left, 10));
			break;
		case 4:
			CHECK(vmsrs_stack_bounds(&low, &high) == VMSRS_ENOREQUEST);
			break;
		case 5:
			CHECK(vmsrs_open("leaving", &app) == VMSRS_OK);
			CHECK(vmsrs_domain_open(app, "new", 3, &other) == VMSRS_OK);
			break;
		case 6:
			vmsrs_root(alice);
			break;
		case 7:
			CHECK(vmsrs_set_root(alice, NULL) == VMSRS_ENOREQUEST);
			break;
		case 8:
			CHECK(vmsrs_protection(app) == protection);
			break;
		case 9:
			CHECK(vmsrs_health(&health) == VMSRS_OK);
			break;
		}
		all_are_free();
		is_free(alice);
	}
}

static atomic_bool ended;

/* Interrupts the thread past its deadline, as the driver does where there is one. */
static void *watch(void *argument)
{
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		usleep(1000);
	}
	return NULL;
}

static void spin(long milliseconds)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000 +
		       (now.tv_nsec - start.tv_nsec) / 1000000 <
	       milliseconds);
}

static void leave_and_miss_the_deadline(void)
{
	const vmsrs_options options = { .deadline_ms = 20 };
	static pthread_t self;
	pthread_t watcher;

	self = pthread_self();
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	for (volatile int round = 0; round < 3; round++) {
		if (sigsetjmp(loop, 1) == 0) {
			(void)!vmsrs_run_with(alice, &options, leave, NULL, NULL);
			CHECK(0);
		}
		spin(60);
		is_free(alice);
	}
	ended = 1;
	CHECK(pthread_join(watcher, NULL) == 0);
}

static void undo(void *argument)
{
	(void)argument;
	siglongjmp(loop, 1);
}

static atomic_int undone;

static void count(void *argument)
{
	(void)argument;
	undone++;
}

static int leave_in_a_defer(vmsrs_request *this, void *argument)
{
	(void)argument;
	CHECK(vmsrs_defer(this, count, NULL) == VMSRS_OK);
	CHECK(vmsrs_defer(this, undo, NULL) == VMSRS_OK);
	CHECK(vmsrs_defer(this, count, NULL) == VMSRS_OK);
	return -1;
}

static void leave_defers(void)
{
	for (volatile int round = 0; round < 3; round++) {
		undone = 0;
		if (sigsetjmp(loop, 1) == 0) {
			(void)!vmsrs_run(alice, leave_in_a_defer, NULL, NULL);
			CHECK(0);
		}
		is_free(alice);
		CHECK(undone == 2);
		all_are_free();
	}
}

static void leave_steps(void)
{
	for (volatile int round = 0; round < 3; round++) {
		static vmsrs_task *task;

		CHECK(vmsrs_task_new(alice, NULL, &task) == VMSRS_OK);
		if (sigsetjmp(loop, 1) == 0) {
			(void)!vmsrs_task_step(task, leave, NULL, NULL);
			CHECK(0);
		}
		is_free(alice);
		CHECK(vmsrs_task_step(task, fine, NULL, NULL) == VMSRS_EENDED);
		vmsrs_task_free(task);
		all_are_free();
	}
}

static vmsrs_ticket_t ticket;

static void *member(void *argument)
{
	int code;

	if (sigsetjmp(loop, 1) == 0) {
		(void)!vmsrs_join(&ticket, leave, NULL, NULL);
		CHECK(0);
	}
	code = vmsrs_join(&ticket, fine, NULL, NULL);
	CHECK(code == VMSRS_EENDED);
	return argument;
}

static int with_a_member(vmsrs_request *this, void *argument)
{
	pthread_t thread;

	(void)argument;
	CHECK(vmsrs_ticket(this, &ticket) == VMSRS_OK);
	CHECK(pthread_create(&thread, NULL, member, NULL) == 0);
	pthread_join(thread, NULL);
	return 0;
}

static void leave_as_a_member(void)
{
	CHECK(vmsrs_run(alice, with_a_member, NULL, NULL) == VMSRS_EFAILED);
	all_are_free();
}

static void jump(int number)
{
	(void)number;
	siglongjmp(loop, 1);
}

static atomic_bool is_held, may_end;

static void fail(int number)
{
	(void)number;
	may_end = 1;
	*(volatile int *)wild = 1;
}

static void set_handler(void (*handler)(int), int flags)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = flags };

	CHECK(sigaction(SIGALRM, &action, NULL) == 0);
}

static atomic_bool is_ready;

struct target {
	pthread_t thread;
	pid_t number;
	int must_sleep;
};

static int sleeps(pid_t number)
{
	char path[64], text[256];
	const char *state;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", number);
	file = fopen(path, "r");
	CHECK(file && fgets(text, sizeof(text), file));
	fclose(file);
	state = strrchr(text, ')');
	return state && state[2] == 'S';
}

static void *send_when_ready(void *argument)
{
	const struct target *target = argument;

	while (!is_ready || (target->must_sleep && !sleeps(target->number)))
		usleep(1000);
	pthread_kill(target->thread, SIGALRM);
	return NULL;
}

/* To the calling thread, once it is ready, and asleep if it must be. */
static void send_alarm(int must_sleep)
{
	static struct target target;
	pthread_t sender;

	is_ready = 0;
	target.thread = pthread_self();
	target.number = gettid();
	target.must_sleep = must_sleep;
	CHECK(pthread_create(&sender, NULL, send_when_ready, &target) == 0);
	CHECK(pthread_detach(sender) == 0);
}

static int endless(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	is_ready = 1;
	while (is_ready)
		;
	return 0;
}

static int sends_itself_the_signal(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	raise(SIGALRM);
	return 0;
}

static int hold(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	is_held = 1;
	while (!may_end)
		usleep(1000);
	return 0;
}

static void *holder(void *argument)
{
	CHECK(vmsrs_run(alice, hold, NULL, NULL) == VMSRS_OK);
	return argument;
}

static void hold_alice(pthread_t *thread)
{
	is_held = may_end = 0;
	CHECK(pthread_create(thread, NULL, holder, NULL) == 0);
	while (!is_held)
		usleep(1000);
}

/* The signal waits until the library has put back what the thread blocks. */
static void block_it(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	raise(SIGALRM);
}

static int fail_with_it_waiting(vmsrs_request *this, void *argument)
{
	(void)this;
	(void)argument;
	block_it();
	*(volatile int *)wild = 1;
	return 0;
}

static int free_foreign_with_it_waiting(vmsrs_request *this, void *argument)
{
	static int foreign;

	(void)this;
	(void)argument;
	block_it();
	(void)!vmsrs_free(alice, &foreign);
	return 0;
}

static void jump_out_of_the_landing(void)
{
	static vmsrs_request_fn functions[] = { fail_with_it_waiting,
						free_foreign_with_it_waiting };

	for (volatile int round = 0; round < 8; round++) {
		set_handler(jump, round & 1 ? SA_ONSTACK : 0);
		if (sigsetjmp(loop, 1) == 0) {
			(void)!vmsrs_run(alice, functions[round / 4], NULL, NULL);
			CHECK(0);
		}
		if (round & 2)
			is_free(bob);
		is_free(alice);
		all_are_free();
	}
}

static void jump_out_of_a_handler(void)
{
	for (volatile int round = 0; round < 4; round++) {
		set_handler(jump, round & 1 ? SA_ONSTACK : 0);
		if (sigsetjmp(loop, 1) == 0) {
			send_alarm(0);
			(void)!vmsrs_run(alice, endless, NULL, NULL);
			CHECK(0);
		}
		is_free(alice);
		all_are_free();
	}
	/* Out of the library, which waits for a domain. */
	for (volatile int round = 0; round < 4; round++) {
		static pthread_t thread;

		hold_alice(&thread);
		set_handler(jump, round & 1 ? SA_ONSTACK : 0);
		if (sigsetjmp(loop, 1) == 0) {
			send_alarm(1);
			is_ready = 1;
			(void)!vmsrs_run(alice, fine, NULL, NULL);
			CHECK(0);
		}
		is_free(bob);
		may_end = 1;
		CHECK(pthread_join(thread, NULL) == 0);
		is_free(alice);
	}
}

static void fail_in_a_handler(void)
{
	static vmsrs_request_fn functions[] = { endless, sends_itself_the_signal };

	for (int round = 0; round < 8; round++) {
		vmsrs_failure failure;

		set_handler(fail, round & 1 ? SA_ONSTACK : 0);
		if (round & 2)
			send_alarm(0);
		CHECK(vmsrs_run(alice, functions[!(round & 2)], NULL, NULL) ==
		      VMSRS_EFAILED);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == VMSRS_KIND_MEMORY);
		CHECK(!strcmp(failure.message, "in a signal handler"));
		is_free(alice);
	}
}

static void fail_in_a_handler_in_the_library(void)
{
	for (int round = 0; round < 4; round++) {
		pthread_t thread;
		int result = 0;
		sigset_t set;

		hold_alice(&thread);
		set_handler(fail, round & 1 ? SA_ONSTACK : 0);
		send_alarm(1);
		is_ready = 1;
		/* The wait goes on, until the handler lets the other thread end. */
		CHECK(vmsrs_run(alice, fine, NULL, &result) == VMSRS_OK);
		CHECK(result == 7);
		CHECK(pthread_join(thread, NULL) == 0);
		CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
		CHECK(!sigismember(&set, SIGALRM));
		is_free(alice);
	}
}

static vmsrs_mutex_t mutex;
static int pipe_ends[2];

static int take_all_and_leave(vmsrs_request *this, void *argument)
{
	CHECK(vmsrs_defer(this, count, NULL) == VMSRS_OK);
	CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK);
	CHECK(pipe(pipe_ends) == 0);
	CHECK(vmsrs_own_fd(this, pipe_ends[0]) == VMSRS_OK);
	return leave(this, argument);
}

static void take_all(void)
{
	undone = 0;
	if (sigsetjmp(loop, 1) == 0) {
		(void)!vmsrs_run(alice, take_all_and_leave, NULL, NULL);
		CHECK(0);
	}
}

static void *end_at_once(void *argument)
{
	take_all();
	return argument;
}

/* The thread calls the library no more. */
static void leave_and_end(void)
{
	CHECK(vmsrs_mutex_init(&mutex, NULL, NULL) == VMSRS_OK);
	for (int round = 0; round < 4; round++) {
		pthread_t thread;

		CHECK(pthread_create(&thread, NULL, end_at_once, NULL) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		CHECK(undone == 1);
		CHECK(fcntl(pipe_ends[0], F_GETFD) == -1);
		CHECK(close(pipe_ends[1]) == 0);
		CHECK(vmsrs_mutex_lock(&mutex) == VMSRS_OK);
		CHECK(vmsrs_mutex_unlock(&mutex) == VMSRS_OK);
		all_are_free();
	}
}

static void look_at_exit(void)
{
	CHECK(undone == 1);
	CHECK(fcntl(pipe_ends[0], F_GETFD) == -1);
}

/* Handlers that were registered earlier are called later. */
static void leave_and_exit(void)
{
	CHECK(atexit(look_at_exit) == 0);
	CHECK(vmsrs_mutex_init(&mutex, NULL, NULL) == VMSRS_OK);
	take_all();
	exit(0);
}

struct mode {
	const char *name;
	void (*run)(void);
};

static const struct mode modes[] = {
	{ "requests", leave_requests },
	{ "calls", call_after_leaving },
	{ "deadline", leave_and_miss_the_deadline },
	{ "defers", leave_defers },
	{ "steps", leave_steps },
	{ "member", leave_as_a_member },
	{ "end", leave_and_end },
	{ "exit", leave_and_exit },
	{ "handler", jump_out_of_a_handler },
	{ "landing", jump_out_of_the_landing },
	{ "failing-handler", fail_in_a_handler },
	{ "failing-handler-in-library", fail_in_a_handler_in_the_library },
};

/* Also in a thread that is not the first one. */
static void *run(void *mode)
{
	((const struct mode *)mode)->run();
	return NULL;
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("leaving", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "alice", 5, &alice) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "bob", 3, &bob) == VMSRS_OK);
	for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
		pthread_t thread;

		if (strcmp(modes[i].name, arguments[1]))
			continue;
		modes[i].run();
		ended = 0;
		CHECK(pthread_create(&thread, NULL, run, (void *)&modes[i]) == 0);
		CHECK(pthread_join(thread, NULL) == 0);
		return 0;
	}
	return 2;
}
