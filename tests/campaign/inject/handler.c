// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Ways out of a request: jumps, and signal handlers of the server. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>

#include "inject.h"

void jump_out(void)
{
	siglongjmp(arm.out, 1);
}

void fail_in_handler(enum error error, unsigned long long parameter)
{
	static const enum error errors[] = { NULL_WRITE, ABORT, DIVISION, INSTRUCTION, WILD_WRITE, FOREIGN_WRITE };

	if (error == HANDLER_JUMP)
		jump_out();
	make(errors[parameter % (sizeof(errors) / sizeof(errors[0]))], parameter);
}

static void handler(int signal)
{
	(void)signal;
	fail_in_handler(arm.error, arm.parameter / 2);
}

/* As servers have them: to read their configuration again, and for time limits of their own. */
__attribute__((constructor)) static void install_handlers(void)
{
	struct sigaction action = { .sa_handler = handler, .sa_flags = SA_RESTART };

	sigaction(SIGHUP, &action, NULL);
	action.sa_flags = SA_ONSTACK;
	sigaction(SIGALRM, &action, NULL);
}

void interrupt(unsigned long long which)
{
	raise(which % 2 ? SIGHUP : SIGALRM);
}
