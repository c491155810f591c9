// SPDX-License-Identifier: Apache-2.0 OR MIT
/* What a thread carries from one request to the next, and whether a request has changed it. */
#define _GNU_SOURCE
#include <cpuid.h>
#include <errno.h>
#include <linux/futex.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "inject.h"

enum {
	FLAG_DF = 1 << 10,
	FLAG_NT = 1 << 14,
	FLAG_AC = 1 << 18,
	FLAGS_TOGETHER = FLAG_DF | FLAG_NT | FLAG_AC,
};

struct state {
	uint64_t mask;
	char *alternate; /* its stack; NULL if there is none */
	uint64_t flags;
	uint64_t controls;
	uint64_t keys;
	uint64_t cancel;
	const void *cleanup[2]; /* lists of the C library */
	const void *robust[2];	/* the first mutex of the list, and one that is being locked */
	const void *exceptions; /* being handled */
	uint64_t uncaught;
	locale_t locale;
	uint64_t rseq; /* whether it is registered */
};

/* The parts, by their names in the line to the client. */
static const struct part {
	const char *name;
	size_t start, size;
} parts[] = {
#define PART(name, field) { name, offsetof(struct state, field), sizeof(((struct state *)0)->field) }
	PART("signal-mask", mask),
	PART("alternate-stack", alternate),
	PART("flags", flags),
	PART("control-words", controls),
	PART("protection-keys", keys),
	PART("cancel-state", cancel),
	PART("cleanup-list", cleanup),
	PART("robust-list", robust),
	PART("exceptions-caught", exceptions),
	PART("exceptions-uncaught", uncaught),
	PART("locale", locale),
	PART("rseq", rseq),
#undef PART
};

/* What the thread's first request has left; in requests, what the first one has found. */
static __thread struct state outside, inside __attribute__((tls_model("initial-exec")));
static __thread bool outside_known, inside_known __attribute__((tls_model("initial-exec")));

static uint64_t keys(void)
{
	unsigned int a, b, c, d, rights;

	/* Bit 4: the kernel has enabled protection keys. */
	if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & 1 << 4))
		return 0;
	__asm__ volatile("rdpkru" : "=a"(rights) : "c"(0) : "rdx");
	return rights;
}

/* They are off afterwards: nothing else may run with them. */
static uint64_t flags(void)
{
	uint64_t found;

	__asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
			 "pushfq\n\t"
			 "mov (%%rsp), %0\n\t"
			 "andq %1, (%%rsp)\n\t"
			 "popfq\n\t"
			 "lea 128(%%rsp), %%rsp"
			 : "=&r"(found)
			 : "r"(~(uint64_t)FLAGS_TOGETHER)
			 : "cc", "memory");
	return found & FLAGS_TOGETHER;
}

static uint64_t controls(void)
{
	unsigned int vector;
	unsigned short x87;

	__asm__ volatile("stmxcsr %0\n\tfnstcw %1" : "=m"(vector), "=m"(x87));
	/* Without the flags of exceptions that have occurred. */
	return (uint64_t)x87 << 32 | (vector & ~0x3fU);
}

/* The cancellation state and type. */
static uint64_t cancel(void)
{
	int state, type;

	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &state);
	pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type);
	pthread_setcancelstate(state, NULL);
	pthread_setcanceltype(type, NULL);
	return (uint64_t)state << 32 | (unsigned int)type;
}

static void look(struct state *state)
{
	__pthread_unwind_buf_t buffer;
	struct robust_list_head *robust;
	size_t size;
	stack_t stack;

	syscall(SYS_rt_sigprocmask, SIG_BLOCK, NULL, &state->mask, sizeof(state->mask));
	if (!sigaltstack(NULL, &stack) && !(stack.ss_flags & SS_DISABLE))
		state->alternate = stack.ss_sp;
	state->controls = controls();
	state->keys = keys();
	state->cancel = cancel();
	/* Notes the heads of both lists in the buffer. */
	__pthread_register_cancel(&buffer);
	state->cleanup[0] = buffer.__pad[0];
	state->cleanup[1] = buffer.__pad[1];
	__pthread_unregister_cancel(&buffer);
	if (!syscall(SYS_get_robust_list, 0, &robust, &size)) {
		state->robust[0] = robust->list.next == &robust->list ? NULL : robust->list.next;
		state->robust[1] = robust->list_op_pending;
	}
	inject_exceptions(&state->exceptions, &state->uncaught);
	state->locale = uselocale((locale_t)0);
	state->rseq = syscall(SYS_rseq, rseq_area(), RSEQ_SIZE, 0, RSEQ_SIG) != 0;
}

/* The first part that differs from what was known, which is what is found now; NULL if there is none. */
static const char *compare(struct state *known, bool *is_known)
{
	/* First: code of the compiler and the C library does not work with them. */
	uint64_t found = flags();
	int error = errno;
	const char *name = NULL;
	struct state now;

	memset(&now, 0, sizeof(now));
	now.flags = found;
	look(&now);
	/* Each request has keys of its own. */
	if (known == &inside)
		now.keys = 0;
	for (size_t i = 0; *is_known && !name && i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (memcmp((char *)known + parts[i].start, (char *)&now + parts[i].start, parts[i].size))
			name = parts[i].name;
	}
	*known = now;
	known->flags = 0;
	*is_known = true;
	errno = error;
	return name;
}

void note_state(void)
{
	if (!outside_known)
		compare(&outside, &outside_known);
}

void check_state_inside(void)
{
	const char *changed = compare(&inside, &inside_known);

	if (changed) {
		arm.left = changed;
		arm.left_before = true;
	}
}

void check_state(void)
{
	const char *changed = outside_known ? compare(&outside, &outside_known) : NULL;

	if (!changed)
		return;
	if (!arm.left)
		arm.left = changed;
	/* The next request finds the same. */
	inside_known = false;
}
