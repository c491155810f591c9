// Requests in a program that the compiler has given a sanitizer: what a failed one has left on its stack is not reported
// in the next one. With the argument "device" there must be one, with "refused" it must be refused.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "vmsrs.h"

static vmsrs_domain *domain;
static char *volatile escaped;
static volatile int stop;

static int fail_deep_inside(vmsrs_request *request, void *argument)
{
	char buffer[64];
	int depth = *(int *)argument;

	escaped = buffer;
	memset(buffer, depth, sizeof(buffer));
	if (depth == stop) {
		*(int *)vmsrs_root(domain) = -1;
		*(volatile int *)8 = 1;
	}
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

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "none";
	int depth = 20, first = 0, result = 0, restores;
	vmsrs_app *app;

	if (!strcmp(device, "refused")) {
		check(vmsrs_open("sanitized", &app) == VMSRS_ESANITIZER, "the device is refused");
		return 0;
	}
	check(!vmsrs_open("sanitized", &app), "the app opens");
	restores = vmsrs_protection(app) == VMSRS_PROTECTION_FULL;
	check(restores == !strcmp(device, "device"), "there is a device if one is expected");
	check(!vmsrs_domain_open(app, "alice", 5, &domain), "a domain opens");
	// An earlier program may have counted, too.
	check(vmsrs_run(domain, use_the_stack, NULL, &first) == VMSRS_OK && first > 0, "a request runs");
	for (int i = 1; i < 5; i++) {
		check(vmsrs_run(domain, fail_deep_inside, &depth, NULL) == VMSRS_EFAILED, "a request fails");
		check(vmsrs_run(domain, use_the_stack, NULL, &result) == VMSRS_OK, "the next one does not");
		// Without a device what the failed one wrote stays.
		check(result == (restores ? first + i : 0), "and finds what the last one wrote");
	}
	return 0;
}
