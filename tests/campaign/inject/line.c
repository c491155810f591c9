// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The lines to and from the client (inject.h). */
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
	[AT_START] = "start",
	[AT_END] = "end",
	[AT_ROOT] = "root",
	[AT_ALLOC] = "alloc",
	[AT_FREE] = "free",
	[AT_ENTER] = "enter",
	[AT_ENTERED] = "entered",
	[AT_LEAVE] = "leave",
	[AT_COPY] = "copy",
	[AT_LIBRARY] = "library",
	[AT_COMMIT] = "commit",
	[AT_COMMITTED] = "committed",
	[AT_DEFER] = "defer",
	[AT_RECOVERY] = "recovery",
	[AT_RECOVERED] = "recovered",
	[AT_MEMBER] = "member",
	[AT_BESIDE] = "beside",
	[AT_HANDED] = "handed",
	[AT_MOMENT] = "moment",
};

static const char *const errors[ERRORS] = {
	[NONE] = "none",
	[NULL_WRITE] = "null-write",
	[NULL_READ] = "null-read",
	[BAD_FILE] = "bad-file",
	[WILD_WRITE] = "wild-write",
	[FOREIGN_WRITE] = "foreign-write",
	[FOREIGN_DRAFT] = "foreign-draft",
	[CODE_WRITE] = "code-write",
	[WILD_JUMP] = "wild-jump",
	[DIVISION] = "division",
	[INSTRUCTION] = "instruction",
	[TRAP] = "trap",
	[ABORT] = "abort",
	[OVERFLOW] = "overflow",
	[SMASH] = "smash",
	[FORTIFY] = "fortify",
	[EXCEPTION] = "exception",
	[TERMINATE] = "terminate",
	[OVERRUN] = "overrun",
	[LATE_WRITE] = "late-write",
	[DOUBLE_FREE] = "double-free",
	[FOREIGN_FREE] = "foreign-free",
	[C_DOUBLE_FREE] = "c-double-free",
	[C_FOREIGN_FREE] = "c-foreign-free",
	[FAIL] = "fail",
	[INVARIANT] = "invariant",
	[INVARIANT_ERROR] = "invariant-error",
	[LOOP] = "loop",
	[SLEEP] = "sleep",
	[DEADLOCK] = "deadlock",
	[STRAY] = "stray",
	[KILL] = "kill",
	[PANIC] = "panic",
	[C_OVERRUN] = "c-overrun",
	[OTHER_STACK] = "other-stack",
	[GLOBAL] = "global",
	[MASK] = "mask",
	[ALT_STACK] = "alt-stack",
	[CANCEL] = "cancel-state",
	[LOCALE] = "locale",
	[CONTROLS] = "controls",
	[FLAGS] = "flags",
	[FLAGS_KEPT] = "flags-kept",
	[CONTROLS_KEPT] = "controls-kept",
	[CLEANUP] = "cleanup",
	[CLEANUP_JUMPED] = "cleanup-jumped",
	[PRINT] = "print",
	[CAUGHT] = "caught",
	[UNWINDING] = "unwinding",
	[ROBUST] = "robust",
	[BROKEN_PIPE] = "broken-pipe",
	[RSEQ] = "rseq",
	[WILD_CALL] = "wild-call",
	[LIBRARY_LOOP] = "library-loop",
	[SYSTEM] = "system",
	[FRAME] = "frame",
	[CLOSE_LOW] = "close-low",
	[CLOSE] = "close",
	[REUSE] = "reuse",
	[VFORK] = "vfork",
	[JUMP] = "jump",
	[HANDLER] = "handler",
	[HANDLER_JUMP] = "handler-jump",
	[SHORTEN] = "shorten",
	[EARLY_FREE] = "early-free",
	[FLIP] = "flip",
	[DIRTY] = "dirty",
	[SKIP] = "skip",
	[TWICE] = "twice",
	[LONGER] = "longer",
	[SHORTER] = "shorter",
	[ELSEWHERE] = "elsewhere",
};

enum { FILES = 4096 };

/* How often a descriptor has become a connection. */
static atomic_uint connections[FILES];
/* Orders of connections that their thread has turned away from. */
static struct arm kept[FILES];
/* The connection that the thread serves, by its descriptor. */
static __thread int served __attribute__((tls_model("initial-exec"))) = -1;
static __thread unsigned int served_as __attribute__((tls_model("initial-exec")));

/* Goes on with a connection's orders. */
static void serve(int socket)
{
	unsigned int as;

	if (socket < 0 || socket >= FILES)
		return;
	as = atomic_load(&connections[socket]);
	if (served == socket && served_as == as)
		return;
	/* What a connection has left that is closed is nobody's. */
	if (served >= 0 && served_as == atomic_load(&connections[served]))
		real.memcpy(&kept[served], &arm, sizeof(arm));
	real.memcpy(&arm, &kept[socket], sizeof(arm));
	real.memset(&kept[socket], 0, sizeof(arm));
	served = socket;
	served_as = as;
}

/* A new connection has no orders. */
static int connected(int socket)
{
	if (socket >= 0 && socket < FILES) {
		real.memset(&kept[socket], 0, sizeof(kept[socket]));
		atomic_fetch_add(&connections[socket], 1);
	}
	return socket;
}

EXPORT int accept(int socket, struct sockaddr *address, socklen_t *length)
{
	return connected(real.accept(socket, address, length));
}

EXPORT int accept4(int socket, struct sockaddr *address, socklen_t *length, int flags)
{
	return connected(real.accept4(socket, address, length, flags));
}

static int find(const char *name, const char *const *names, int count)
{
	for (int i = 0; i < count; i++) {
		if (!strcmp(name, names[i]))
			return i;
	}
	return -1;
}

/* Parses a line for the injector. A malformed one ends the server: it is a bug of the client. */
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
	if (arm.point == AT_MEMBER || arm.point == AT_BESIDE || arm.point == AT_HANDED)
		prepare_helpers();
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
	serve(socket);
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
	serve(socket);
	if (arm.armed) {
		bool fired = arm.point == AT_MEMBER ? helper_struck() : arm.fired;
		const char *left = arm.left || arm.point != AT_MEMBER ? arm.left : left_by_helper();
		char line[96];
		int length = snprintf(line, sizeof(line), "\1%d %lu %d %s%s\n", fired, arm.passages, arm.stopped,
				      arm.left_before ? "before:" : "", left ? left : "-");

		arm.armed = false;
		if (real.send(socket, line, (size_t)length, flags | MSG_MORE) != length)
			return -1;
	}
	return real.send(socket, buffer, size, flags);
}
