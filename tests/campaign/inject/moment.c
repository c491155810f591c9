// SPDX-License-Identifier: Apache-2.0 OR MIT
/* An error at a moment in time, at any instruction. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "inject.h"

static int moment_signal;

static void at_moment(void)
{
	make(arm.error, arm.parameter);
	/* The interrupted code's state is lost: there is no way back. */
	abort();
}

/* Makes the thread continue in at_moment(). */
static void moment(int signal, siginfo_t *info, void *context)
{
	greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;

	(void)signal, (void)info;
	if (!arm.armed || arm.fired || arm.point != AT_MOMENT || !arm.running)
		return;
	arm.fired = true;
	if (arm.error == HANDLER)
		fail_in_handler(arm.error, arm.parameter);
	/* Below the red zone, aligned as at the start of a function. */
	registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~15LL) - 8;
	registers[REG_RIP] = (greg_t)at_moment;
}

static void install_moment(void)
{
	struct sigaction action = { .sa_sigaction = moment, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };

	moment_signal = SIGRTMIN + 2;
	sigaction(moment_signal, &action, NULL);
}

bool begin_moment(timer_t *timer)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = moment_signal };
	struct itimerspec time = {
		.it_value = { (time_t)(arm.count / 1000000000), (long)(arm.count % 1000000000) },
	};
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, install_moment);
	event.sigev_signo = moment_signal;
	event._sigev_un._tid = (pid_t)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, timer))
		return false;
	return !timer_settime(*timer, 0, &time, NULL);
}
