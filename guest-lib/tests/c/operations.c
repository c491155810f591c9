/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * Requests that miss their deadlines while they wait for operations of the C library's
 * own threads. These threads know nothing of it: what they have of the wait stays as it
 * was until the operations have ended.
 */
#define _GNU_SOURCE
#include <aio.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vmsrs.h>

#include "check.h"
#include "watch.h"

enum { BYTES = 16, STACK = 60000, PATTERN = 0x33 };

static vmsrs_domain *domain;
static int came_back;

static int run_watched(void (*work)(void), uint32_t deadline_ms)
{
	vmsrs_options options = { .deadline_ms = deadline_ms };
	pthread_t watcher, self = pthread_self();
	int code;

	ended = 0;
	CHECK(pthread_create(&watcher, NULL, watch, &self) == 0);
	code = vmsrs_run_with(domain, &options, request, (void *)work, NULL);
	ended = 1;
	CHECK(pthread_join(watcher, NULL) == 0);
	return code;
}

static void expect_deadline(void (*work)(void))
{
	vmsrs_failure failure;

	came_back = 0;
	CHECK(run_watched(work, 100) == VMSRS_EFAILED);
	CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
	CHECK(failure.kind == VMSRS_KIND_DEADLINE);
	CHECK(came_back == 0);
}

/* Ends the operations, and comes back when nobody has anything to do with them. */
static void (*end_operations)(void);

/* It has the whole stack, and others write nothing to it. */
static void use_the_stack(void)
{
	volatile unsigned char bytes[STACK];

	for (int i = 0; i < STACK; i++)
		bytes[i] = PATTERN;
	end_operations();
	for (int i = 0; i < STACK; i++)
		CHECK(bytes[i] == PATTERN);
	came_back = 1;
}

static void others_go_on(void)
{
	came_back = 0;
	CHECK(vmsrs_run(domain, request, (void *)use_the_stack, NULL) == VMSRS_OK);
	CHECK(came_back == 1);
}

static int pipes[2];
static char read_bytes[2][BYTES];
static struct aiocb reads[2];

static void begin_read(int which)
{
	reads[which] = (struct aiocb){ .aio_fildes = pipes[0],
				       .aio_buf = read_bytes[which],
				       .aio_nbytes = BYTES,
				       .aio_lio_opcode = LIO_READ };
	if (which == 1)
		CHECK(aio_read(&reads[1]) == 0);
}

static void write_to_the_pipe(int count)
{
	static const char bytes[BYTES];

	for (int i = 0; i < count; i++)
		CHECK(write(pipes[1], bytes, BYTES) == BYTES);
}

/* Operations of a file are done one after the other. */
static void end_reads(void)
{
	begin_read(1);
	write_to_the_pipe(2);
	while (aio_error(&reads[1]) == EINPROGRESS)
		usleep(1000);
	CHECK(aio_error(&reads[0]) == 0 && aio_error(&reads[1]) == 0);
}

static void wait_for_a_list(void)
{
	struct aiocb *list[] = { &reads[0] };

	CHECK(lio_listio(LIO_WAIT, list, 1, NULL) == 0);
	came_back++;
}

static void wait_for_a_read(void)
{
	const struct aiocb *list[] = { &reads[0] };

	while (aio_suspend(list, 1, NULL) != 0)
		CHECK(errno == EINTR);
	came_back++;
}

static void *write_late(void *argument)
{
	/* Interrupts come before it, most likely. */
	usleep(50000);
	write_to_the_pipe(1);
	return argument;
}

static void all_reads(void)
{
	pthread_t other;

	CHECK(pipe(pipes) == 0);
	end_operations = end_reads;
	for (int i = 0; i < 3; i++) {
		begin_read(0);
		expect_deadline(wait_for_a_list);
		others_go_on();
		begin_read(0);
		CHECK(aio_read(&reads[0]) == 0);
		expect_deadline(wait_for_a_read);
		others_go_on();
		/* An interrupt that is for another request does not end the wait. */
		begin_read(0);
		CHECK(pthread_create(&other, NULL, write_late, NULL) == 0);
		CHECK(run_watched(wait_for_a_list, 100000) == VMSRS_OK);
		CHECK(pthread_join(other, NULL) == 0);
		CHECK(came_back == 2);
	}
}

static struct gaicb name = { .ar_name = "a-name.vmsrs.test" };
static struct gaicb *names[] = { &name };

/* A table of names that lets those wait who read it; 0 where this process may not have its own. */
static int make_table(void)
{
	int fd;

	if (unshare(CLONE_NEWNS) != 0)
		return 0;
	if (mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
	    mount("none", "/etc", "tmpfs", 0, NULL) != 0)
		return 0;
	fd = creat("/etc/nsswitch.conf", 0644);
	CHECK(fd >= 0 && dprintf(fd, "hosts: files\n") > 0 && close(fd) == 0);
	CHECK(mkfifo("/etc/hosts", 0644) == 0);
	return 1;
}

static void end_names(void)
{
	while (gai_error(&name) == EAI_INPROGRESS) {
		int fd = open("/etc/hosts", O_WRONLY | O_NONBLOCK);

		if (fd >= 0) {
			dprintf(fd, "127.0.0.1 a-name.vmsrs.test\n");
			close(fd);
		}
		usleep(1000);
	}
	/* Who waits is told a moment later; the test can only miss that. */
	usleep(100000);
}

static void wait_for_names(void)
{
	getaddrinfo_a(GAI_WAIT, names, 1, NULL);
	came_back++;
}

static void wait_for_a_name(void)
{
	while (gai_suspend((const struct gaicb *const *)names, 1, NULL) == EAI_INTR)
		;
	came_back++;
}

static void all_names(void)
{
	if (!make_table()) {
		dprintf(2, "skipped: no mount namespace\n");
		return;
	}
	end_operations = end_names;
	signal(SIGPIPE, SIG_IGN);
	for (int i = 0; i < 3; i++) {
		expect_deadline(wait_for_names);
		others_go_on();
		CHECK(getaddrinfo_a(GAI_NOWAIT, names, 1, NULL) == 0);
		expect_deadline(wait_for_a_name);
		others_go_on();
	}
}

int main(int count, char **arguments)
{
	vmsrs_app *app;

	CHECK(count == 2);
	CHECK(vmsrs_open("operations", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "user", 4, &domain) == VMSRS_OK);
	/* A hang fails the test. */
	alarm(600);
	if (!strcmp(arguments[1], "reads")) {
		all_reads();
	} else {
		CHECK(!strcmp(arguments[1], "names"));
		all_names();
	}
	return 0;
}
