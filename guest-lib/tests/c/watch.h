/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* A request whose work is a function, and the interrupts that the driver would send past its deadline. */
#ifndef WATCH_H
#define WATCH_H

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>
#include <vmsrs.h>

static atomic_bool ended;

static int request(vmsrs_request *this, void *argument)
{
	void (*work)(void) = argument;

	(void)this;
	work();
	return 0;
}

/*
 * Interrupts the thread past its deadline, as the driver does where there is one. Before
 * that it has no effect.
 */
static void *watch(void *argument)
{
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		usleep(2000);
	}
	return NULL;
}

#endif
