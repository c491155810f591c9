/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Requests that fail while the process has no memory left, not even for the failure. */
#include <pthread.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *domain;
static void **blocks;

static void limit_memory(rlim_t bytes)
{
	struct rlimit limit;

	CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
	limit.rlim_cur = bytes;
	CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
}

/* Takes all that there is, and keeps it. */
static void take_all(void)
{
	/* No new memory from the kernel. */
	limit_memory(4096);
	for (size_t size = 1 << 20; size >= 16; size /= 2) {
		void **block;

		while ((block = malloc(size))) {
			*block = blocks;
			blocks = block;
		}
	}
}

static void give_back(void)
{
	limit_memory(RLIM_INFINITY);
	while (blocks) {
		void **next = *blocks;

		free(blocks);
		blocks = next;
	}
}

static int fail(vmsrs_request *request, void *by_call)
{
	(void)request;
	take_all();
	if (by_call)
		vmsrs_fail("there is no memory, and this is said with more words than a small block has room for");
	*(volatile int *)8 = 1;
	return 0;
}

static int nothing(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	return 0;
}

static void *failures(void *argument)
{
	vmsrs_failure failure;

	for (int i = 0; i < 6; i++) {
		CHECK(vmsrs_run(domain, fail, i % 2 ? &failure : NULL, NULL) == VMSRS_EFAILED);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		CHECK(failure.kind == (i % 2 ? VMSRS_KIND_INVARIANT : VMSRS_KIND_MEMORY));
		CHECK(vmsrs_run(domain, nothing, NULL, NULL) == VMSRS_OK);
		give_back();
		CHECK(vmsrs_run(domain, nothing, NULL, NULL) == VMSRS_OK);
	}
	return argument;
}

int main(void)
{
	vmsrs_app *app;
	pthread_t other;

	CHECK(vmsrs_open("memory", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	CHECK(vmsrs_run(domain, nothing, NULL, NULL) == VMSRS_OK);
	failures(NULL);
	/* Whose heap is another one. */
	CHECK(pthread_create(&other, NULL, failures, NULL) == 0);
	CHECK(pthread_join(other, NULL) == 0);
	return 0;
}
