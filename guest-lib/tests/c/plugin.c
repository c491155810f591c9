// The library as a part of a plug-in: loaded by dlopen, and unknown to the threads of the program.
//
// `plugin LIBRARY damage` damages the C library's heap on such a thread, with the error found while the heap is
// locked; `plugin LIBRARY use` runs a request.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

static volatile int loaded;
// The compiler does not know it.
static volatile size_t size = 16;
static char *volatile block, *volatile next, *volatile last;

static int nothing(void *request, void *argument)
{
	(void)request;
	(void)argument;
	return 7;
}

static void *damage(void *argument)
{

	while (!loaded)
		usleep(1000);
	block = malloc(4008);
	next = malloc(4008);
	last = malloc(4008);
	check(block && next && last, "there is memory");
	// The size of the next block, which free() looks at under the heap's lock.
	memset(block, 0x41, 4008 + size);
	free(next);
	check(0, "the damage is found");
	return argument;
}

int main(int argc, char **argv)
{
	int (*open_app)(const char *, void **);
	int (*open_domain)(void *, const void *, size_t, void **);
	int (*run)(void *, void *, void *, int *);
	void *library, *app, *domain;
	pthread_t thread;
	int result = 0;

	check(argc == 3 && !pthread_create(&thread, NULL, damage, NULL), "a thread that is there before");
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
	check(library != NULL, "the library is loaded");
	*(void **)&open_app = dlsym(library, "vmsrs_open");
	*(void **)&open_domain = dlsym(library, "vmsrs_domain_open");
	*(void **)&run = dlsym(library, "vmsrs_run");
	check(!open_app("plugin", &app) && !open_domain(app, "alice", 5, &domain), "it opens");
	check(!run(domain, (void *)nothing, NULL, &result) && result == 7, "it runs a request");
	if (strcmp(argv[2], "damage"))
		return 0;
	loaded = 1;
	pthread_join(thread, NULL);
	return 1;
}
