// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Errors that reach the library by descriptors, children, calls and large frames. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "inject.h"

enum {
	/* Descriptors below are what a server has of its own. */
	LOW = 256,
	MOST_FILES = 64,
};

/* Descriptors of the device; returns how many there are. */
static int device_files(int files[static MOST_FILES])
{
	DIR *folder = opendir("/proc/self/fd");
	struct dirent *entry;
	int count = 0;

	while (folder && count < MOST_FILES && (entry = readdir(folder))) {
		char target[16] = "";

		if (readlinkat(dirfd(folder), entry->d_name, target, sizeof(target) - 1) > 0 &&
		    !strcmp(target, "/dev/vmsrs"))
			files[count++] = atoi(entry->d_name);
	}
	if (folder)
		closedir(folder);
	return count;
}

static void close_low(void)
{
	int files[MOST_FILES];
	int count = device_files(files);

	for (int i = 0; i < count; i++) {
		if (files[i] < LOW)
			close(files[i]);
	}
}

/* Closes one of the library's descriptors, and may give its number to a socket. */
static void close_one(unsigned long long which, bool reuse)
{
	int files[MOST_FILES];
	int count = device_files(files);
	struct stat status;
	int file, other;

	if (!count)
		return;
	file = files[which % (unsigned int)count];
	if (!reuse) {
		close(file);
		return;
	}
	other = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (other < 0)
		return;
	if (dup3(other, file, O_CLOEXEC) == file && !fstat(file, &status)) {
		arm.reused = file;
		arm.inode = status.st_ino;
	}
	close(other);
}

void check_reused(void)
{
	struct stat status;

	if (!arm.inode)
		return;
	if (fstat(arm.reused, &status) || status.st_ino != arm.inode)
		arm.left = "no-socket";
	else
		close(arm.reused);
	arm.inode = 0;
}

/* A child with the request's memory, until it ends. */
static void have_child(unsigned long long what)
{
	pid_t child = vfork();

	if (child > 0) {
		waitpid(child, NULL, 0);
		return;
	}
	if (child < 0)
		real.fail("no child");
	switch (what % 6) {
	case 0:
		make(NULL_WRITE, 0);
		break;
	case 1:
		abort();
	case 2:
		execl("/nonexistent", "nonexistent", NULL);
		exit(127);
	case 3:
		real.fail("in a child");
		break;
	case 4: {
		void *block = real.alloc(arm.domain, 100);

		real.free(arm.domain, block);
		break;
	}
	default:
		break;
	}
	_exit(1);
}

/* Calls of the library without end. */
static _Noreturn void call_for_ever(unsigned long long what)
{
	vmsrs_options options = { 0 };
	vmsrs_ticket_t ticket;
	vmsrs_domain *domain;
	vmsrs_task *task;
	vmsrs_app *app;
	char key[] = "loop0";

	for (;; key[4] = (char)('0' + (key[4] + 1) % 8)) {
		switch (what % 7) {
		case 0:
			real.domain_open_with(opened_app(), key, sizeof(key) - 1, 0, &domain);
			break;
		case 1:
			real.open(key, &app);
			break;
		case 2:
			if (real.task_new(arm.domain, &options, &task) == VMSRS_OK)
				real.task_free(task);
			break;
		case 3:
			if (real.ticket(arm.request, &ticket) == VMSRS_OK)
				real.join(&ticket, no_work, NULL, NULL);
			break;
		case 4:
			real.free(arm.domain, real.alloc(arm.domain, 3000));
			break;
		case 5:
			real.flush(opened_app());
			break;
		default: {
			vmsrs_piece pieces[] = { { .function = no_work }, { .function = no_work } };

			real.fan_out(arm.request, pieces, 2);
		}
		}
	}
}

enum { FRAME_END = 64 << 10 };

/* The size of a frame that ends on the request stack of another thread; any size up to 4 GiB if there is none. */
static size_t frame_size(unsigned long long which)
{
	const size_t least = 1 << 20, most = 1ULL << 32;
	char *here = __builtin_frame_address(0);

	for (unsigned int i = 0; i < WORKERS; i++) {
		char *other = atomic_load(&frames[(which + i) % WORKERS]);
		size_t distance = (size_t)(here - other) + FRAME_END / 2;

		if (other && other < here && distance > least && distance < most)
			return distance;
	}
	return least + which % (most - least);
}

/* Writes to the end of a frame that is far longer than the stack. */
__attribute__((noinline)) static void have_frame(size_t size)
{
	char *frame = __builtin_alloca(size);

	__asm__ volatile("" : "+r"(frame));
	real.memset(frame, 0x41, FRAME_END);
}

/*
 * One at a time: what one thread finds to be the library's descriptor may be another one's socket when it is closed. A thread that
 * is cut short meanwhile never comes back, so the others wait for some time only.
 */
static void stray_close(enum error error, unsigned long long parameter)
{
	static atomic_flag closing = ATOMIC_FLAG_INIT;
	int tries = 0;

	while (atomic_flag_test_and_set(&closing) && tries++ < 10000)
		sched_yield();
	if (error == CLOSE_LOW)
		close_low();
	else
		close_one(parameter, error == REUSE);
	atomic_flag_clear(&closing);
}

void reach(enum error error, unsigned long long parameter)
{
	switch (error) {
	case CLOSE_LOW:
	case CLOSE:
	case REUSE:
		stray_close(error, parameter);
		break;
	case VFORK:
		have_child(parameter);
		break;
	case LIBRARY_LOOP:
		call_for_ever(parameter);
	case SYSTEM: /* which blocks signals and has a cleanup handler meanwhile */
		for (;;)
			(void)!system("exec sleep 5");
	case FRAME:
		have_frame(frame_size(parameter));
		break;
	default:
		break;
	}
}
