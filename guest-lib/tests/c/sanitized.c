// Requests in a program that the compiler has given a sanitizer: what a failed one has left on its stack is no error of
// the next one.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vmsrs.h"

static vmsrs_domain *domain;
static char *volatile escaped;
static volatile int stop;

static void check(int holds, const char *what)
{
	if (!holds) {
		fprintf(stderr, "not so: %s\n", what);
		_exit(1);
	}
}

static int fail_deep_inside(vmsrs_request *request, void *argument)
{
	char buffer[64];
	int depth = *(int *)argument;

	escaped = buffer;
	memset(buffer, depth, sizeof(buffer));
	if (depth == stop)
		*(volatile int *)8 = 1;
	depth--;
	if (depth < stop)
		return 0;
	return fail_deep_inside(request, &depth) + escaped[3];
}

static int use_the_stack(vmsrs_request *request, void *argument)
{
	char buffer[30000];
	int *value = vmsrs_root(domain);

	(void)argument;
	(void)request;
	escaped = buffer;
	memset(escaped, 1, sizeof(buffer));
	if (!value) {
		value = vmsrs_alloc_zeroed(domain, sizeof(*value));
		check(value && !vmsrs_set_root(domain, value), "the domain has room");
	}
	return *value += buffer[7];
}

int main(void)
{
	vmsrs_app *app;
	int depth = 20, result = 0;

	check(!vmsrs_open("sanitized", &app), "the app opens");
	check(!vmsrs_domain_open(app, "alice", 5, &domain), "a domain opens");
	for (int i = 1; i < 5; i++) {
		check(vmsrs_run(domain, fail_deep_inside, &depth, NULL) == VMSRS_EFAILED, "a request fails");
		check(vmsrs_run(domain, use_the_stack, NULL, &result) == VMSRS_OK, "the next one does not");
		check(result == i, "and finds what the last one wrote");
	}
	return 0;
}
