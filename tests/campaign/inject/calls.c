// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Calls of libvmsrs.so by the server, and its system calls. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "inject.h"

static void *flipped(void *pointer)
{
	return (void *)((uintptr_t)pointer ^ 1ULL << arm.parameter % 47);
}

EXPORT void *vmsrs_root(const vmsrs_domain *domain)
{
	/* Only pointers to the data of the request's own user: see docs/campaign.md. */
	enum error error = domain == arm.domain ? change(AT_ROOT) : NONE;
	void *root = real.root(domain);

	atomic_store(&works[worker()], root);
	switch (error) {
	case FLIP:
		return flipped(root);
	case ELSEWHERE:
		return target_root(arm.parameter);
	case SKIP:
		return NULL;
	default:
		return root;
	}
}

static void *allocate(void *(*from)(const vmsrs_domain *, size_t), const vmsrs_domain *domain, size_t size)
{
	enum error error = change(AT_ALLOC);
	void *block;

	if (error == SHORTEN)
		size -= 1 + arm.parameter % size;
	if (error == DIRTY)
		from = real.alloc;
	if (error == ELSEWHERE)
		domain = atomic_load(&targets[arm.parameter % TARGETS]);
	block = from(domain, size);
	switch (error) {
	case EARLY_FREE:
		real.free(domain, block);
		return block;
	case FLIP:
		return domain == arm.domain ? flipped(block) : block;
	case DIRTY:
		return block ? real.memset(block, (int)(arm.parameter | 1) & 0xff, size) : NULL;
	case SKIP:
		return NULL;
	default:
		return block;
	}
}

EXPORT void *vmsrs_alloc(const vmsrs_domain *domain, size_t size)
{
	return allocate(real.alloc, domain, size);
}

EXPORT void *vmsrs_alloc_zeroed(const vmsrs_domain *domain, size_t size)
{
	return allocate(real.alloc_zeroed, domain, size);
}

EXPORT int vmsrs_free(const vmsrs_domain *domain, void *block)
{
	switch (change(AT_FREE)) {
	case SKIP:
		return VMSRS_OK;
	case TWICE:
		real.free(domain, block);
		return real.free(domain, block);
	case FLIP:
		return real.free(domain, flipped(block));
	case ELSEWHERE:
		return real.free(domain, target_root(arm.parameter));
	default:
		return real.free(domain, block);
	}
}

EXPORT int vmsrs_enter(const vmsrs_request *request, const vmsrs_domain *domain)
{
	enum error error = change(AT_ENTER);
	int code;

	if (error == SKIP)
		return VMSRS_OK;
	code = real.enter(request, domain);
	if (error == TWICE)
		code = real.enter(request, domain);
	if (code == VMSRS_OK) {
		arm.entered = domain;
		strike(AT_ENTERED);
	}
	return code;
}

EXPORT int vmsrs_leave(const vmsrs_request *request, const vmsrs_domain *domain)
{
	enum error error = change(AT_LEAVE);
	int code;

	if (error == SKIP)
		return VMSRS_OK;
	code = real.leave(request, domain);
	if (code == VMSRS_OK)
		arm.entered = NULL;
	if (error == TWICE)
		code = real.leave(request, domain);
	return code;
}

EXPORT int ioctl(int file, unsigned long number, ...)
{
	va_list arguments;
	void *argument;
	int code, error;

	va_start(arguments, number);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (!arm.armed)
		return real.ioctl(file, number, argument);
	if (number == VMSRS_IOCTL_FAIL)
		strike(AT_RECOVERY);
	code = real.ioctl(file, number, argument);
	error = errno;
	if (number == VMSRS_IOCTL_FAIL)
		strike(AT_RECOVERED);
	errno = error;
	return code;
}

/* Commits, and what else is called by number: of up to six arguments the kernel takes what it needs. */
EXPORT long syscall(long number, ...)
{
	long code, argument[6];
	bool commits;
	va_list list;
	int error;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		argument[i] = va_arg(list, long);
	va_end(list);
	/* Constructors of other objects may come before ours. */
	if (!real.syscall)
		real.syscall = (__typeof__(real.syscall))dlsym(RTLD_NEXT, "syscall");
	commits = arm.armed && number == SYS_fadvise64 && argument[3] == VMSRS_ADVICE_COMMIT;
	if (commits)
		strike(AT_COMMIT);
	code = real.syscall(number, argument[0], argument[1], argument[2], argument[3], argument[4],
			    argument[5]);
	error = errno;
	if (commits)
		strike(AT_COMMITTED);
	errno = error;
	return code;
}
