/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The part of vmsrs.h that the servers use, built on malloc and mutexes: a domain is a lock and a
 * root pointer, a request is a function call, and an error ends the process.
 */
#ifndef PLAIN_H
#define PLAIN_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { VMSRS_OK = 0, VMSRS_ENOMEM = -12 };

typedef struct vmsrs_app {
	int unused;
} vmsrs_app;

typedef struct vmsrs_domain {
	pthread_mutex_t lock;
	void *root;
} vmsrs_domain;

typedef struct vmsrs_request {
	vmsrs_domain *held[4];
	unsigned int count;
} vmsrs_request;

typedef struct vmsrs_options {
	uint32_t lock_timeout_ms; /* mutexes wait for as long as it takes */
} vmsrs_options;

typedef int (*vmsrs_request_fn)(vmsrs_request *request, void *argument);

static inline int vmsrs_open(const char *name, vmsrs_app **app)
{
	static vmsrs_app only;

	(void)name;
	*app = &only;
	return VMSRS_OK;
}

static inline int vmsrs_domain_open(void *app, const void *key, size_t length,
				    vmsrs_domain **domain)
{
	(void)app, (void)key, (void)length;
	*domain = calloc(1, sizeof(**domain));
	return *domain && !pthread_mutex_init(&(*domain)->lock, NULL) ? VMSRS_OK : -1;
}

static inline int vmsrs_enter(vmsrs_request *request, vmsrs_domain *domain)
{
	pthread_mutex_lock(&domain->lock);
	request->held[request->count++] = domain;
	return VMSRS_OK;
}

static inline int vmsrs_leave(vmsrs_request *request, vmsrs_domain *domain)
{
	request->count--;
	pthread_mutex_unlock(&domain->lock);
	return VMSRS_OK;
}

static inline int vmsrs_run(vmsrs_domain *domain, vmsrs_request_fn function, void *argument,
			    int *result)
{
	vmsrs_request request = { .count = 0 };

	vmsrs_enter(&request, domain);
	*result = function(&request, argument);
	while (request.count)
		vmsrs_leave(&request, request.held[request.count - 1]);
	return VMSRS_OK;
}

static inline int vmsrs_run_with(vmsrs_domain *domain, const vmsrs_options *options,
				 vmsrs_request_fn function, void *argument, int *result)
{
	(void)options;
	return vmsrs_run(domain, function, argument, result);
}

static inline void *vmsrs_alloc(vmsrs_domain *domain, size_t size)
{
	(void)domain;
	return malloc(size);
}

static inline void *vmsrs_alloc_zeroed(vmsrs_domain *domain, size_t size)
{
	(void)domain;
	return calloc(1, size);
}

static inline int vmsrs_free(vmsrs_domain *domain, void *block)
{
	(void)domain;
	free(block);
	return VMSRS_OK;
}

static inline void *vmsrs_root(vmsrs_domain *domain)
{
	return domain->root;
}

static inline int vmsrs_set_root(vmsrs_domain *domain, void *block)
{
	domain->root = block;
	return VMSRS_OK;
}

static inline const char *vmsrs_strerror(int code)
{
	return code == VMSRS_OK ? "done" : "refused";
}

__attribute__((noreturn)) static inline void vmsrs_fail(const char *message)
{
	fprintf(stderr, "%s\n", message);
	abort();
}

#endif
