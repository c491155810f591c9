// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Errors that leave something behind on their thread. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <locale.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inject.h"

static void crash(void)
{
	make(NULL_WRITE, 0);
}

/* Blocks SIGTERM and others, except for those of errors: the kernel ends a process that blocks its error's signal. */
static void block_signals(unsigned long long which)
{
	static const int errors[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT };
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	for (int signal = 1; signal <= 64; signal++) {
		if (which >> signal % 32 & 1)
			sigaddset(&set, signal);
	}
	for (size_t i = 0; i < sizeof(errors) / sizeof(errors[0]); i++)
		sigdelset(&set, errors[i]);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
}

/* Takes the alternate signal stack away, or replaces it by one that is gone after the error. */
static void change_stack(unsigned long long which)
{
	char other[64 << 10];
	stack_t stack = { .ss_sp = other, .ss_size = sizeof(other), .ss_flags = which % 2 ? SS_DISABLE : 0 };

	sigaltstack(&stack, NULL);
	crash();
}

/* AC, DF, both, or NT. */
static uint64_t chosen_flags(unsigned long long which)
{
	static const uint64_t flags[] = { 1 << 18, 1 << 10, 1 << 18 | 1 << 10, 1 << 14 };

	return flags[which % 4];
}

static void set_flags(uint64_t flags)
{
	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
			 "pushfq\n\t"
			 "orq %0, (%%rsp)\n\t"
			 "popfq\n\t"
			 "lea 128(%%rsp), %%rsp"
			 :
			 : "r"(flags)
			 : "cc", "memory");
}

/* Sets flags and fails at the next instruction. */
static void crash_with_flags(uint64_t flags)
{
	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
			 "pushfq\n\t"
			 "orq %0, (%%rsp)\n\t"
			 "popfq\n\t"
			 "movb $1, (%1)"
			 :
			 : "r"(flags), "r"((uintptr_t)0)
			 : "cc", "memory");
}

/* Rounds towards zero and traps divisions by zero, in both units. One of x87's is pending. */
static void change_controls(void)
{
	unsigned int vector = 0x1f80 | 3 << 13;
	unsigned short x87 = 0x037f | 3 << 10;

	vector &= ~(1U << 9);
	x87 &= (unsigned short)~(1U << 2);
	__asm__ volatile("ldmxcsr %0\n\t"
			 "fldcw %1\n\t"
			 "fld1\n\t"
			 "fldz\n\t"
			 "fdivrp"
			 :
			 : "m"(vector), "m"(x87));
}

static void clean(void *unused)
{
	(void)unused;
}

/* Pushes a cleanup handler, and fails with it or after a jump over its end. */
static void push_cleanup(bool jumps)
{
	jmp_buf over;

	if (setjmp(over))
		crash();
	pthread_cleanup_push(clean, NULL);
	if (jumps)
		longjmp(over, 1);
	crash();
	pthread_cleanup_pop(0);
}

/* Fails inside the C library, which has pushed a cleanup handler of its own. The stream stays locked. */
static void print_wild(unsigned long long which)
{
	FILE *stream = fmemopen(NULL, 64, "w");

	if (stream)
		fprintf(stream, "%s\n", (const char *)(uintptr_t)(1 + which % 4095));
}

static void lock_robust(void)
{
	pthread_mutex_t mutex;
	pthread_mutexattr_t robust;

	pthread_mutexattr_init(&robust);
	pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&mutex, &robust);
	pthread_mutex_lock(&mutex);
	crash();
}

/* As libraries do that must not raise SIGPIPE; it waits for the thread. */
static void break_pipe(void)
{
	sigset_t set;
	int ends[2];

	sigemptyset(&set);
	sigaddset(&set, SIGPIPE);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	if (pipe2(ends, O_CLOEXEC))
		return;
	close(ends[0]);
	(void)!write(ends[1], "", 1);
	close(ends[1]);
}

void leave(enum error error, unsigned long long parameter)
{
	switch (error) {
	case MASK:
		block_signals(parameter);
		break;
	case ALT_STACK:
		change_stack(parameter);
		break;
	case CANCEL:
		pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
		pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
		break;
	case LOCALE:
		uselocale(newlocale(LC_ALL_MASK, "C", (locale_t)0));
		break;
	case CONTROLS:
		change_controls();
		break;
	case FLAGS:
		crash_with_flags(chosen_flags(parameter));
		break;
	case FLAGS_KEPT:
		set_flags(chosen_flags(parameter));
		return;
	case CONTROLS_KEPT:
		change_controls();
		return;
	case CLEANUP:
		push_cleanup(false);
		break;
	case CLEANUP_JUMPED:
		push_cleanup(true);
		break;
	case PRINT:
		print_wild(parameter);
		break;
	case CAUGHT:
		inject_caught(crash);
		break;
	case UNWINDING:
		inject_unwinding(crash);
		break;
	case ROBUST:
		lock_robust();
		break;
	case BROKEN_PIPE:
		break_pipe();
		break;
	case RSEQ: /* 1: takes the area away */
		syscall(SYS_rseq, rseq_area(), RSEQ_SIZE, 1, RSEQ_SIG);
		break;
	default:
		break;
	}
	crash();
}
