// What children do that share the memory of their parent: those of vfork() and of clone() with CLONE_VM.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "vmsrs.h"

static vmsrs_app *app;
static vmsrs_domain *alice, *bob;
static const char *deed;
static int flags;
static char stack[256 * 1024] __attribute__((aligned(16)));

static int count(vmsrs_request *request, void *domain)
{
	int *value = vmsrs_root(domain);

	(void)request;
	if (!value) {
		value = vmsrs_alloc_zeroed(domain, sizeof(*value));
		check(value && !vmsrs_set_root(domain, value), "the domain has room");
	}
	return ++*value;
}

static int counts(vmsrs_domain *domain)
{
	vmsrs_options options = { .lock_timeout_ms = 20000 };
	int result = -1;

	check(vmsrs_run_with(domain, &options, count, domain, &result) == VMSRS_OK, "a request succeeds");
	return result;
}

static int nothing(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	return 0;
}

static int crash(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	*(volatile int *)8 = 1;
	return 0;
}

// In the child. Returns if the deed does not end it.
static int act(void *argument)
{
	vmsrs_request *request = argument;

	if (!strcmp(deed, "crash"))
		*(volatile int *)8 = 1;
	else if (!strcmp(deed, "abort"))
		abort();
	else if (!strcmp(deed, "fail"))
		vmsrs_fail("the program cannot be started");
	else if (!strcmp(deed, "exit"))
		exit(3);
	else if (!strcmp(deed, "raise"))
		raise(SIGFPE);
	else if (!strcmp(deed, "run"))
		_exit(vmsrs_run(bob, nothing, NULL, NULL) == VMSRS_ENESTED ? 3 : 4);
	else if (!strcmp(deed, "commit") && request)
		_exit(vmsrs_commit(request, 0) == VMSRS_ENOREQUEST ? 3 : 4);
	else if (!strcmp(deed, "enter") && request)
		_exit(vmsrs_enter(request, bob) == VMSRS_ENOREQUEST ? 3 : 4);
	else if (!strcmp(deed, "alloc") && request)
		_exit(!vmsrs_alloc(alice, 16) && errno == EPERM ? 3 : 4);
	else if (!strcmp(deed, "free") && request)
		_exit(vmsrs_free(alice, (void *)8) == VMSRS_ENOREQUEST ? 3 : 4);
	else if (!strcmp(deed, "damage"))
		vmsrs_free(alice, (void *)8);
	return 5;
}

// A request in a child, where its parent's thread has none.
static int in_the_child(vmsrs_request *request, void *argument)
{
	(void)argument;
	// The driver does not let it write: that ends it. Without one it is as if the parent had.
	if (!strcmp(deed, "write"))
		return count(request, alice);
	return act(NULL);
}

static int in_vfork(vmsrs_request *request, void *argument)
{
	int before = count(request, alice), status = 0;
	pid_t child = vfork();

	(void)argument;
	if (!child)
		_exit(act(request));
	check(waitpid(child, &status, 0) == child, "the parent goes on");
	check(WIFSIGNALED(status) || WEXITSTATUS(status) == 3, "the child has ended by its deed");
	return before;
}

static int in_clone(vmsrs_request *request, void *argument)
{
	int before = count(request, alice), status = 0;
	pid_t child = clone(act, stack + sizeof(stack), CLONE_VM | flags | SIGCHLD, request);

	(void)argument;
	check(child > 0 && waitpid(child, &status, 0) == child, "the parent goes on");
	check(WIFSIGNALED(status) || WEXITSTATUS(status) == 3, "the child has ended by its deed");
	return before;
}

// The child is the parent's thread for the library, but another task for the driver.
static void outside_of_requests(void)
{
	int status = 0;
	pid_t child = vfork();

	if (!child) {
		(void)!vmsrs_run(alice, in_the_child, NULL, NULL);
		_exit(3);
	}
	check(child > 0 && waitpid(child, &status, 0) == child, "the parent goes on");
	check(WIFSIGNALED(status) || WEXITSTATUS(status) == 3, "the child has ended by its deed");
}

static void *on_another_thread(void *argument)
{
	check(counts(alice) > 1, "another thread finds the domain free");
	return argument;
}

// A domain of this deed alone: in a guest an app keeps what the programs before have committed.
static vmsrs_domain *own_domain(const char *user, const char *parent)
{
	vmsrs_domain *domain;
	char key[64];

	snprintf(key, sizeof(key), "%s %s %s", user, parent, deed);
	check(!vmsrs_domain_open(app, key, strlen(key), &domain), "a domain opens");
	return domain;
}

int main(int argc, char **argv)
{
	vmsrs_request_fn parent = argc > 1 && strcmp(argv[1], "vfork") ? in_clone : in_vfork;
	int result = -1, code;
	pthread_t thread;

	deed = argc > 2 ? argv[2] : "";
	if (argc > 1 && !strcmp(argv[1], "handlers"))
		flags = CLONE_SIGHAND;
	check(!vmsrs_open("process", &app), "the app opens");
	alice = own_domain("alice", argc > 1 ? argv[1] : "");
	bob = own_domain("bob", argc > 1 ? argv[1] : "");
	if (argc > 1 && !strcmp(argv[1], "outside")) {
		check(counts(alice) == 1, "a request succeeds before");
		outside_of_requests();
		check(counts(bob) == 1, "the thread goes on");
		code = counts(alice);
		check(code == 2 || (code == 3 && !strcmp(deed, "write") && vmsrs_protection(app) != VMSRS_PROTECTION_FULL),
		      "the domain is free, and has what was committed");
		check(!pthread_create(&thread, NULL, on_another_thread, NULL), "a thread starts");
		check(!pthread_join(thread, NULL), "and ends");
		return 0;
	}
	code = vmsrs_run(alice, parent, NULL, &result);
	// A child that ends in the middle of the library leaves the request's heap half changed.
	if (!strcmp(deed, "damage"))
		check(code == VMSRS_EFAILED, "the parent's request fails");
	else
		check(code == VMSRS_OK && result == 1, "the parent's request succeeds");
	check(counts(alice) > 0, "its thread goes on");
	check(vmsrs_run(bob, crash, NULL, NULL) == VMSRS_EFAILED, "errors are handled");
	check(counts(bob) == 1, "in other domains as well");
	check(!pthread_create(&thread, NULL, on_another_thread, NULL), "a thread starts");
	check(!pthread_join(thread, NULL), "and ends");
	return 0;
}
