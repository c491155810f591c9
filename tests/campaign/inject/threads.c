// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Other threads that work for a request. */
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <unistd.h>

#include "inject.h"

enum role { MAKE_ERROR, COMPUTE, BLOCK, BEGIN };

/* A thread that helps the thread of a connection. Lives as long as the process. */
struct helper {
	sem_t go;
	sem_t done; /* for BEGIN */
	atomic_ulong asked, finished; /* jobs */
	atomic_bool struck;	      /* the error of the latest job is being made */
	_Atomic(const char *) left;   /* what the latest job has changed of the thread's state, or NULL */
	enum role role;
	enum error error;
	unsigned long long parameter;
	const vmsrs_domain *domain;
	vmsrs_ticket_t ticket;
	vmsrs_task *task;
	int code;
};

enum { HELPERS = 2 };

static __thread struct helper *helpers __attribute__((tls_model("initial-exec")));

static int help(vmsrs_request *request, void *argument)
{
	struct helper *self = argument;
	void *block;

	(void)request;
	switch (self->role) {
	case MAKE_ERROR:
		/* The request does not end before this thread has left it, so the answer has this. */
		atomic_store(&self->struck, true);
		make(self->error, self->parameter);
		return 0;
	case COMPUTE:
		make(LOOP, 0);
		return 0;
	case BLOCK:
		make(SLEEP, 0);
		return 0;
	default: /* a change that the other thread's failure must undo */
		block = real.alloc(self->domain, 100);
		if (block)
			real.memset(block, 0x77, 100);
		real.free(self->domain, block);
		return VMSRS_STEP_SUSPEND;
	}
}

static void *helper(void *argument)
{
	struct helper *self = argument;
	const vmsrs_domain *domain = atomic_load(&targets[0]);
	const vmsrs_options options = { 0 };

	/* The thread's first request shows its state. */
	if (domain && real.run_with(domain, &options, no_work, NULL, NULL) == VMSRS_OK)
		note_state();
	for (;;) {
		if (sem_wait(&self->go))
			continue;
		arm.domain = self->domain;
		if (self->role == BEGIN) {
			self->code = real.task_step(self->task, help, self, NULL);
			sem_post(&self->done);
		} else {
			/* Fails if the request has ended: the driver checks that. */
			self->code = real.join(&self->ticket, help, self, NULL);
		}
		check_state();
		atomic_store(&self->left, arm.left);
		arm.left = NULL;
		atomic_fetch_add(&self->finished, 1);
	}
	return NULL;
}

static void hire(void)
{
	struct helper *hired;

	if (helpers)
		return;
	hired = calloc(HELPERS, sizeof(*hired));

	for (int i = 0; hired && i < HELPERS; i++) {
		pthread_t thread;

		sem_init(&hired[i].go, 0, 0);
		sem_init(&hired[i].done, 0, 0);
		if (real.pthread_create(&thread, NULL, helper, &hired[i]))
			_exit(3);
		pthread_detach(thread);
	}
	helpers = hired;
}

static void await_helpers(void)
{
	for (int i = 0; i < HELPERS; i++) {
		while (atomic_load(&helpers[i].finished) != atomic_load(&helpers[i].asked))
			usleep(1000);
	}
}

void prepare_helpers(void)
{
	hire();
	await_helpers();
	atomic_store(&helpers[0].struck, false);
	atomic_store(&helpers[0].left, NULL);
}

static void ask_helper(int number, enum role role, vmsrs_request *request)
{
	struct helper *asked = &helpers[number];

	asked->role = role;
	asked->error = arm.error;
	asked->parameter = arm.parameter;
	asked->domain = arm.domain;
	if (real.ticket(request, &asked->ticket) != VMSRS_OK)
		real.fail("the injector's ticket");
	atomic_store(&asked->struck, false);
	atomic_fetch_add(&asked->asked, 1);
	sem_post(&asked->go);
}

void make_in_helper(vmsrs_request *request)
{
	ask_helper(0, MAKE_ERROR, request);
	if (arm.parameter % 3 < 2)
		make(arm.parameter % 3 ? SLEEP : LOOP, 0);
}

bool helper_struck(void)
{
	return atomic_load(&helpers[0].struck);
}

const char *left_by_helper(void)
{
	await_helpers();
	return atomic_load(&helpers[0].left);
}

void occupy_helpers(vmsrs_request *request)
{
	ask_helper(0, COMPUTE, request);
	ask_helper(1, BLOCK, request);
}

int begin_in_helper(vmsrs_task *task, const vmsrs_domain *domain)
{
	struct helper *other = &helpers[0];

	other->role = BEGIN;
	other->domain = domain;
	other->task = task;
	atomic_fetch_add(&other->asked, 1);
	sem_post(&other->go);
	while (sem_wait(&other->done))
		continue;
	return other->code;
}
