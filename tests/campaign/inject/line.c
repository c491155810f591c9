// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The lines to and from whoever talks to the server (inject.h). */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "inject.h"

__thread struct arm arm __attribute__((tls_model("initial-exec")));
_Atomic(char *) stacks[2];

static const char *const points[POINTS] = {
	"start", "end",	    "root",   "alloc",	   "free",  "enter",	"entered",   "leave",
	"copy",	 "library", "commit", "committed", "defer", "recovery", "recovered", "member",
	"beside", "handed", "moment",
};

static const char *const errors[ERRORS] = {
	"none",		  "null-write",	   "null-read",	   "bad-file",	  "wild-write",
	"foreign-write",  "foreign-draft", "code-write",   "wild-jump",	  "division",
	"instruction",	  "trap",	   "abort",	   "overflow",	  "smash",
	"fortify",	  "exception",	   "terminate",	   "overrun",	  "late-write",
	"double-free",	  "foreign-free",  "c-double-free", "c-foreign-free", "fail",
	"invariant",	  "invariant-error",
	"loop",		  "sleep",	   "deadlock",	   "stray",	  "kill",
	"panic",	  "c-overrun",	   "other-stack",  "global",	  "shorten",
	"early-free",	  "flip",	   "dirty",	   "skip",	  "twice",
	"longer",	  "shorter",	   "elsewhere",
};

static int find(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

/* Takes in a line of ours. One that is malformed is a fault of the caller: the server ends. */
static void take_line(const char *line)
{
	char point[16], error[24];
	int found_point, found_error;

	memset(&arm, 0, sizeof(arm));
	if (sscanf(line, "%15s %lu %23s %llu %u %u", point, &arm.count, error, &arm.parameter, &arm.deadline,
		   &arm.seal) != 6)
		goto malformed;
	found_point = find(point, points, POINTS);
	found_error = find(error, errors, ERRORS);
	if (found_point < 0 || found_error < 0)
		goto malformed;
	arm.point = (enum point)found_point;
	arm.error = (enum error)found_error;
	arm.options = true;
	arm.armed = arm.error != NONE;
	if (arm.point == AT_MEMBER || arm.point == AT_BESIDE || arm.point == AT_HANDED) {
		hire();
		await_helpers();
	}
	return;
malformed:
	fprintf(stderr, "inject: malformed line: %s\n", line);
	_exit(3);
}

/* recv(2) of one byte. */
static bool next_byte(int socket, char *byte)
{
	ssize_t count;

	do
		count = real.recv(socket, byte, 1, 0);
	while (count < 0 && errno == EINTR);
	return count == 1;
}

EXPORT ssize_t recv(int socket, void *buffer, size_t size, int flags)
{
	for (;;) {
		ssize_t count = real.recv(socket, buffer, size, flags);
		char line[160], *bytes = buffer;
		size_t length = 0, used = 1;

		if (!arm.running)
			atomic_store(&stacks[(uintptr_t)&line >> 23 & 1], (char *)__builtin_frame_address(0));
		if (count <= 0 || bytes[0] != 1)
			return count;
		for (;;) {
			char byte;

			if (used < (size_t)count)
				byte = bytes[used++];
			else if (!next_byte(socket, &byte))
				return 0;
			if (byte == '\n')
				break;
			if (length < sizeof(line) - 1)
				line[length++] = byte;
		}
		line[length] = 0;
		take_line(line);
		if (used < (size_t)count) {
			real.memmove(bytes, bytes + used, (size_t)count - used);
			return count - (ssize_t)used;
		}
	}
}

EXPORT ssize_t send(int socket, const void *buffer, size_t size, int flags)
{
	if (arm.armed) {
		bool fired = arm.point == AT_MEMBER ? helper_struck() : arm.fired;
		char line[64];
		int length = snprintf(line, sizeof(line), "\1%d %lu %d\n", fired, arm.passages, arm.stopped);

		arm.armed = false;
		if (real.send(socket, line, (size_t)length, flags | MSG_MORE) != length)
			return -1;
	}
	return real.send(socket, buffer, size, flags);
}
