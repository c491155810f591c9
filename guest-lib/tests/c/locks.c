/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Requests that are cut short in functions of the C library that have a lock of their
 * own: the functions work for all others afterwards.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *domain;
static atomic_bool ended;
static int came_back;
static void *volatile wild = (void *)8;

static int request(vmsrs_request *this, void *argument)
{
	void (*work)(void) = argument;

	(void)this;
	work();
	came_back++;
	return 0;
}

/* Interrupts the thread past its deadline, as the driver does where there is one. */
static void *watch(void *argument)
{
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		usleep(2000);
	}
	return NULL;
}

static void expect_failure(void (*work)(void), uint32_t kind)
{
	vmsrs_options options = { .deadline_ms = 300 };
	pthread_t watcher, self = pthread_self();
	vmsrs_failure failure;

	ended = 0;
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	CHECK(vmsrs_run_with(domain, &options, request, (void *)work, NULL) ==
	      VMSRS_EFAILED);
	ended = 1;
	CHECK(pthread_join(watcher, NULL) == 0);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	CHECK(failure.kind == kind);
	CHECK(came_back == 0);
}

static void *call(void *argument)
{
	((void (*)(void))argument)();
	return NULL;
}

/* It would wait forever. */
static void in_another_thread(void (*work)(void))
{
	pthread_t other;

	CHECK(pthread_create(&other, NULL, call, (void *)work) == 0);
	CHECK(pthread_join(other, NULL) == 0);
}

/* A socket that takes what it is sent, and answers nothing. */
static struct sockaddr_in silent_server(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	CHECK(inet_pton(AF_INET, "127.0.0.1", &address.sin_addr) == 1);
	CHECK(fd >= 0);
	CHECK(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	CHECK(getsockname(fd, (struct sockaddr *)&address, &length) == 0);
	return address;
}

static void ask_for_a_name(void)
{
	(void)gethostbyname("a-name.vmsrs.test.");
}

static void ask_for_an_address(void)
{
	CHECK(gethostbyname("127.0.0.1"));
}

static void names(void)
{
	CHECK(res_init() == 0);
	for (int i = 0; i < 3; i++)
		_res.nsaddr_list[i] = silent_server();
	_res.nscount = 3;
	_res.retrans = 1000;
	for (int i = 0; i < 3; i++) {
		expect_failure(ask_for_a_name, VMSRS_KIND_DEADLINE);
		in_another_thread(ask_for_an_address);
	}
}

/* A daemon for the log that reads nothing; 0 where this process may not have its own. */
static int silent_daemon(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "/dev/log" };
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);

	if (unshare(CLONE_NEWNS) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0)
		return 0;
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount("none", "/dev", "tmpfs", 0, NULL) != 0)
		return 0;
	CHECK(bind(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	return 1;
}

static void log_without_end(void)
{
	for (;;)
		syslog(LOG_INFO, "a line that nobody reads");
}

static void set_what_is_logged(void)
{
	/* It takes the lock, and sends nothing. */
	setlogmask(LOG_MASK(LOG_ERR));
	syslog(LOG_INFO, "a line that nobody wants");
	setlogmask(LOG_UPTO(LOG_DEBUG));
}

static void logs(void)
{
	if (!silent_daemon()) {
		dprintf(2, "skipped: no mount namespace\n");
		return;
	}
	for (int i = 0; i < 3; i++) {
		expect_failure(log_without_end, VMSRS_KIND_DEADLINE);
		in_another_thread(set_what_is_logged);
	}
}

static void log_a_wild_string(void)
{
	syslog(LOG_INFO, "user %s logged in", (char *)wild);
}

static void log_with_a_wild_name(void)
{
	openlog((char *)wild, 0, LOG_USER);
	syslog(LOG_INFO, "a user logged in");
}

static void wild_logs(void)
{
	void (*works[])(void) = { log_a_wild_string, log_with_a_wild_name };

	for (int i = 0; i < 4; i++) {
		expect_failure(works[i % 2], VMSRS_KIND_MEMORY);
		openlog("locks", 0, LOG_USER);
		in_another_thread(set_what_is_logged);
	}
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("locks", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	if (!strcmp(arguments[1], "names")) {
		names();
	} else if (!strcmp(arguments[1], "wild")) {
		wild_logs();
	} else {
		CHECK(!strcmp(arguments[1], "logs"));
		logs();
	}
	return 0;
}
