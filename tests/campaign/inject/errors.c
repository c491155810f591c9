// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The errors, and when they are made. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "inject.h"

/* Hides values from the compiler, which may transform what it can prove wrong. */
static volatile uintptr_t nothing;

__attribute__((noinline)) static int overflow(unsigned int depth)
{
	volatile char frame[512];

	frame[depth % sizeof(frame)] = (char)depth;
	/* The compiler must not see that this never ends. */
	return (nothing ? 0 : overflow(depth + 1)) + frame[0];
}

/* Lets the kernel write a byte to a frame that no process may write. False if it was stopped. */
static bool stray_write(void *place, unsigned int value)
{
	char line[96];
	int file = open("/sys/kernel/debug/vmsrs_stray/store", O_WRONLY | O_CLOEXEC);
	int length = snprintf(line, sizeof(line), "address %p 0x%x nofault", place, value & 0xff);
	bool done = file >= 0 && write(file, line, (size_t)length) == length;

	if (file >= 0)
		close(file);
	return done;
}

static void panic(void)
{
	int file = open("/proc/sysrq-trigger", O_WRONLY);

	if (file >= 0 && write(file, "c", 1) == 1)
		for (;;)
			pause();
}

char *target_root(unsigned long long number)
{
	vmsrs_domain *target = atomic_load(&targets[number % TARGETS]);

	return target ? real.root(target) : NULL;
}

/* Whether the request itself holds the domain. */
static bool is_own(const char *root)
{
	return root == real.root(arm.domain) || (arm.entered && root == real.root(arm.entered));
}

/* The block that another thread's request works on; NULL if there is none. */
static char *work_of_another(unsigned long long number)
{
	for (unsigned int i = 0; i < WORKERS; i++) {
		unsigned int other = (number + i) % WORKERS;
		char *work = other == worker() ? NULL : atomic_load(&works[other]);

		if (work && !is_own(work))
			return work;
	}
	return NULL;
}

void make(enum error error, unsigned long long parameter)
{
	static pthread_mutex_t never = PTHREAD_MUTEX_INITIALIZER;
	char *place, *other;
	int ends[2];

	switch (error) {
	case NULL_WRITE:
		*(volatile char *)(nothing + parameter % 4096) = 1;
		break;
	case NULL_READ:
		nothing = *(volatile uintptr_t *)(nothing + parameter % 4088);
		break;
	case BAD_FILE: /* past the end of a file: SIGBUS */
		nothing = (uintptr_t)bad_file[parameter % 4096] & 0;
		break;
	case WILD_WRITE: /* somewhere in the app's range, far above every domain */
		*(volatile char *)(VMSRS_APP_BASE + (1ULL << 38) + parameter % (1ULL << 38)) = 1;
		break;
	case FOREIGN_WRITE:
		place = target_root(parameter);
		if (place)
			((volatile char *)place)[parameter % 64] ^= 0x55;
		break;
	case FOREIGN_DRAFT:
		/* Changes nothing if it is not stopped. */
		place = work_of_another(parameter);
		if (place)
			__asm__ volatile("lock orb $0, %0" : "+m"(*(volatile char *)place));
		else
			arm.fired = false;
		break;
	case CODE_WRITE:
		*(volatile char *)(server_low + parameter % (server_high - server_low)) = 1;
		break;
	case WILD_JUMP:
		((void (*)(void))(nothing + parameter % 4096))();
		break;
	case DIVISION:
		nothing = (unsigned int)parameter / (unsigned int)nothing;
		break;
	case INSTRUCTION:
		__asm__ volatile("ud2");
		break;
	case TRAP:
		__asm__ volatile("int3");
		break;
	case ABORT:
		abort();
	case OVERFLOW:
		nothing = (uintptr_t)overflow(0) & 0;
		break;
	case SMASH: /* called by compiled code whose canary has changed */
		((void (*)(void))dlsym(RTLD_DEFAULT, "__stack_chk_fail"))();
		break;
	case FORTIFY: /* called by the C library for a copy that is longer than its target */
		((void (*)(void))dlsym(RTLD_DEFAULT, "__chk_fail"))();
		break;
	case EXCEPTION:
		inject_exception();
		break;
	case TERMINATE:
		inject_terminate();
		break;
	case OVERRUN:
		place = real.alloc(arm.domain, 24);
		if (place)
			real.memset(place, 0x5a, 25 + parameter % 15);
		break;
	case LATE_WRITE:
		place = real.alloc(arm.domain, 48);
		if (place) {
			real.free(arm.domain, place);
			place[parameter % 48] ^= 0x5a;
		}
		break;
	case DOUBLE_FREE:
		place = real.alloc(arm.domain, 32);
		real.free(arm.domain, place);
		real.free(arm.domain, place);
		break;
	case FOREIGN_FREE:
		place = real.alloc(arm.domain, 256);
		real.free(arm.domain, parameter % 2 ? place + 16 : (char *)&place);
		break;
	case C_DOUBLE_FREE:
		other = place = malloc(40);
		__asm__("" : "+r"(other));
		free(place);
		free(other);
		break;
	case C_FOREIGN_FREE:
		/* Unaligned, which the C library detects before it locks its heap. */
		place = (char *)(((uintptr_t)&place & ~15UL) + 8);
		__asm__("" : "+r"(place));
		free(place);
		break;
	case FAIL:
		real.fail("an invariant does not hold");
		break;
	case INVARIANT:
	case INVARIANT_ERROR:
		arm.check = error;
		break;
	case LOOP:
		for (;;)
			__asm__ volatile("");
	case SLEEP:
		if (!pipe2(ends, O_CLOEXEC)) {
			char byte;

			/* Fails only when a signal whose handler returns interrupts it. */
			while (read(ends[0], &byte, 1) < 0)
				continue;
		}
		break;
	case DEADLOCK:
		pthread_mutex_lock(&never);
		pthread_mutex_lock(&never);
		break;
	case STRAY:
		place = target_root(parameter);
		if (place)
			arm.stopped = !stray_write(place + parameter % 64, (unsigned int)parameter);
		break;
	case KILL:
		kill(getpid(), SIGKILL);
		break;
	case PANIC:
		panic();
		break;
	case C_OVERRUN: /* over the next blocks of the C library's heap and their sizes */
		place = malloc(40);
		if (place)
			real.memset(place, 0x41, 4096);
		free(place);
		break;
	case OTHER_STACK: /* over return addresses of a thread that waits for its client */
		place = atomic_load(&stacks[0]);
		if (place == NULL || (place > (char *)&ends && place - (char *)&ends < 1 << 20))
			place = atomic_load(&stacks[1]);
		if (place)
			real.memset(place - 512, 0x41, 1024);
		break;
	case GLOBAL: /* over a page of the server's variables */
		place = (char *)((server_data + 4095) & ~4095UL);
		for (int i = 0; i < 4096; i++)
			((volatile char *)place)[i] = 0x41;
		break;
	case MASK:
	case ALT_STACK:
	case CANCEL:
	case LOCALE:
	case CONTROLS:
	case FLAGS:
	case FLAGS_KEPT:
	case CONTROLS_KEPT:
	case CLEANUP:
	case CLEANUP_JUMPED:
	case PRINT:
	case CAUGHT:
	case UNWINDING:
	case ROBUST:
	case BROKEN_PIPE:
	case RSEQ:
		leave(error, parameter);
		break;
	case LIBRARY_LOOP:
	case SYSTEM:
	case FRAME:
	case CLOSE_LOW:
	case CLOSE:
	case REUSE:
	case VFORK:
		reach(error, parameter);
		break;
	case WILD_CALL:
		call_wildly(parameter);
		break;
	case JUMP:
		jump_out();
	case HANDLER:
	case HANDLER_JUMP:
		interrupt(parameter);
		break;
	default:
		break;
	}
}

bool passage(enum point point)
{
	if (!arm.armed || arm.fired || arm.point != point)
		return false;
	if (++arm.passages < arm.count)
		return false;
	arm.fired = true;
	return true;
}

void strike(enum point point)
{
	if (passage(point))
		make(arm.error, arm.parameter);
}

enum error change(enum point point)
{
	if (!passage(point))
		return NONE;
	if (arm.error >= SHORTEN)
		return arm.error;
	make(arm.error, arm.parameter);
	return NONE;
}
