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
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <syslog.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"

static vmsrs_domain *domain;
static atomic_bool started, ended;
static const int deadline_ms = 300;
static int came_back;
static void *volatile wild = (void *)8;

static int request(vmsrs_request *this, void *argument)
{
	void (*work)(void) = argument;

	(void)this;
	started = 1;
	work();
	came_back++;
	return 0;
}

/* Interrupts the thread past its deadline, as the driver does where there is one. */
static void *watch(void *argument)
{
	while (!started)
		usleep(1000);
	usleep((deadline_ms + 20) * 1000);
	while (!ended) {
		pthread_kill(*(pthread_t *)argument, SIGRTMAX);
		usleep(2000);
	}
	return NULL;
}

static void expect_failure(void (*work)(void), uint32_t kind)
{
	vmsrs_options options = { .deadline_ms = deadline_ms };
	pthread_t watcher, self = pthread_self();
	vmsrs_failure failure;

	started = ended = 0;
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

/* The stream that it makes lies in its own frame. */
static void print_a_wild_string(void)
{
	dprintf(2, "%s", (char *)wild);
}

static void open_and_close(void)
{
	FILE *file = fopen("/dev/null", "w");

	CHECK(file && fclose(file) == 0);
}

static FILE *shared;

static void flush_without_end(void)
{
	for (;;)
		fflush(shared);
}

static void streams(void)
{
	static const char line[] = "of another user\n";
	char bytes[4096] = { 0 };
	int sockets[2];

	for (int i = 0; i < 3; i++) {
		expect_failure(print_a_wild_string, VMSRS_KIND_MEMORY);
		in_another_thread(open_and_close);
	}
	CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
	while (send(sockets[0], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	while (send(sockets[0], bytes, 1, MSG_DONTWAIT) > 0)
		;
	shared = fdopen(sockets[0], "w");
	CHECK(shared && fputs(line, shared) >= 0);
	expect_failure(flush_without_end, VMSRS_KIND_DEADLINE);
	while (recv(sockets[1], bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		;
	CHECK(fflush(shared) == 0);
	CHECK(recv(sockets[1], bytes, sizeof(bytes), MSG_DONTWAIT) == sizeof(line) - 1);
	CHECK(memcmp(bytes, line, sizeof(line) - 1) == 0);
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
	} else if (!strcmp(arguments[1], "streams")) {
		streams();
	} else {
		CHECK(!strcmp(arguments[1], "logs"));
		logs();
	}
	return 0;
}
