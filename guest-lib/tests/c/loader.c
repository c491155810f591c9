// The dynamic linker's lock, left by a constructor that crashes in a request or never returns, and held while
// other threads run requests.
//
// `loader KIND PROGRAM`: the program itself, whose copy with -DPLUGIN -shared is the library that is loaded.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef PLUGIN

__attribute__((constructor)) static void begin(void)
{
	const char *kind = getenv("CONSTRUCTOR");

	if (kind && !strcmp(kind, "crash"))
		*(volatile int *)8 = 1;
	// Says that it has the linker's lock.
	if (write(atoi(getenv("CONSTRUCTOR_RUNS")), "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

#else

#include "check.h"
#include "vmsrs.h"

static vmsrs_app *app;
static vmsrs_domain *alice, *bob;
static pthread_key_t key;

static int load(vmsrs_request *request, void *path)
{
	(void)request;
	dlopen(path, RTLD_NOW);
	return 0;
}

static int load_a_wild_path(vmsrs_request *request, void *wild)
{
	(void)request;
	dlopen(wild, RTLD_NOW);
	return 0;
}

static int look_up_a_wild_name(vmsrs_request *request, void *wild)
{
	(void)request;
	dlsym(RTLD_DEFAULT, wild);
	return 0;
}

static int look_up_for_a_wild_place(vmsrs_request *request, void *wild)
{
	(void)request;
	dladdr(dlopen, wild);
	return 0;
}

static void *use_the_linker(void *argument)
{
	void *library = dlopen("libm.so.6", RTLD_NOW);

	check(library && dlsym(library, "cos"), "a library is loaded");
	check(!dlclose(library), "and not used any more");
	return argument;
}

static void linker_goes_on(void)
{
	pthread_t thread;

	check(!pthread_create(&thread, NULL, use_the_linker, NULL), "a thread starts");
	check(!pthread_join(thread, NULL), "and does not wait for ever");
}

static int count(vmsrs_request *request, void *argument)
{
	int *value = vmsrs_root(bob);

	(void)request;
	(void)argument;
	if (!value) {
		value = vmsrs_alloc_zeroed(bob, sizeof(*value));
		check(value && !vmsrs_set_root(bob, value), "the domain has room");
	}
	return ++*value;
}

static int piece(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	return 7;
}

static int fan_out(vmsrs_request *request, void *argument)
{
	vmsrs_piece pieces[2] = { { .function = piece }, { .function = piece } };

	(void)argument;
	check(vmsrs_fan_out(request, pieces, 2) == VMSRS_OK, "pieces run");
	return pieces[0].result + pieces[1].result;
}

static int fail(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	vmsrs_fail("on purpose");
}

static void at_thread_end(void *argument)
{
	(void)argument;
	check(vmsrs_run(bob, piece, NULL, NULL) == VMSRS_OK, "a request in a key's destructor");
}

static void *use(void *argument)
{
	vmsrs_failure failure;
	vmsrs_domain *domain;
	int result = -1;

	check(!pthread_setspecific(key, &key), "the thread is told of its end");
	check(vmsrs_run(bob, count, NULL, &result) == VMSRS_OK && result > 0, "a thread's first request");
	check(vmsrs_run(bob, fail, NULL, NULL) == VMSRS_EFAILED, "a request fails");
	check(!vmsrs_last_failure(&failure) && !strcmp(failure.message, "on purpose"), "with its message");
	check(vmsrs_run(bob, fan_out, NULL, &result) == VMSRS_OK && result == 14, "pieces of a request");
	check(!vmsrs_domain_open(app, "carol", 5, &domain), "a domain opens");
	return argument;
}

static void *load_for_ever(void *path)
{
	dlopen(path, RTLD_NOW);
	return path;
}

int main(int argc, char **argv)
{
	vmsrs_app *another;
	pthread_t thread;
	char text[16], runs;
	int pipe_of[2];

	// A hang fails the test.
	alarm(600);
	check(argc == 3, "loader crash|wait LIBRARY");
	check(!pipe(pipe_of), "a pipe");
	snprintf(text, sizeof(text), "%d", pipe_of[1]);
	setenv("CONSTRUCTOR", argv[1], 1);
	setenv("CONSTRUCTOR_RUNS", text, 1);
	check(!vmsrs_open("loader", &app), "the app opens");
	check(!vmsrs_domain_open(app, "alice", 5, &alice), "a domain opens");
	check(!vmsrs_domain_open(app, "bob", 3, &bob), "another one");
	check(!pthread_key_create(&key, at_thread_end), "a key");
	check(!pthread_create(&thread, NULL, use, NULL) && !pthread_join(thread, NULL), "a thread before");
	if (!strcmp(argv[1], "crash")) {
		check(vmsrs_run(alice, load, argv[2], NULL) == VMSRS_EFAILED, "the constructor costs its request");
		linker_goes_on();
		for (int i = 0; i < 3; i++) {
			vmsrs_request_fn looks[] = { load_a_wild_path, look_up_a_wild_name, look_up_for_a_wild_place };

			check(vmsrs_run(alice, looks[i], (void *)8, NULL) == VMSRS_EFAILED, "a wild argument");
			linker_goes_on();
		}
	} else {
		check(!pthread_create(&thread, NULL, load_for_ever, argv[2]), "a thread that loads it");
		check(read(pipe_of[0], &runs, 1) == 1, "its constructor runs");
	}
	for (int i = 0; i < 3; i++)
		check(!pthread_create(&thread, NULL, use, NULL) && !pthread_join(thread, NULL), "threads go on");
	check(!vmsrs_open("process", &another), "another app opens");
	_exit(0);
}

#endif
