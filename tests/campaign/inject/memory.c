// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Memory and string functions of the C library. */
#define _GNU_SOURCE
#include <string.h>

#include "inject.h"

uintptr_t copies_low, copies_high;

enum { STACK = 256 << 10 };

/* Whether a change of what is written there is to be made. */
static bool is_target(const void *place)
{
	uintptr_t address = (uintptr_t)place;

	if (!copies_high || !place)
		return true;
	return address - copies_low < copies_high - copies_low || (uintptr_t)arm.frame - address < STACK;
}

/* The change to a call of the C library by `caller`, which writes to `place` unless that is null. */
static enum error c_change(const void *caller, const void *place)
{
	uintptr_t address = (uintptr_t)caller;

	if (address - library_low < library_high - library_low) {
		strike(AT_LIBRARY);
		return NONE;
	}
	if (!is_server(caller) || (arm.error >= SHORTEN && !is_target(place)))
		return NONE;
	return change(AT_COPY);
}

static size_t changed(enum error error, size_t size)
{
	switch (error) {
	case LONGER:
		return size + 1 + arm.parameter % 16;
	case SHORTER:
		return size - (size ? 1 + arm.parameter % size : 0);
	case SKIP:
		return 0;
	default:
		return size;
	}
}

#define WATCHED (__builtin_expect(arm.armed && arm.running, 0))
#define CALLER __builtin_return_address(0)

EXPORT void *memcpy(void *to, const void *from, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER, to), size);
	if (real.memcpy)
		return real.memcpy(to, from, size);
	for (size_t i = 0; i < size; i++)
		((volatile char *)to)[i] = ((const volatile char *)from)[i];
	return to;
}

EXPORT void *memmove(void *to, const void *from, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER, to), size);
	if (real.memmove)
		return real.memmove(to, from, size);
	for (size_t i = 0; i < size; i++) {
		size_t place = to < from ? i : size - 1 - i;

		((volatile char *)to)[place] = ((const volatile char *)from)[place];
	}
	return to;
}

EXPORT void *memset(void *to, int value, size_t size)
{
	if (WATCHED)
		size = changed(c_change(CALLER, to), size);
	if (real.memset)
		return real.memset(to, value, size);
	for (size_t i = 0; i < size; i++)
		((volatile char *)to)[i] = (char)value;
	return to;
}

EXPORT size_t strlen(const char *text)
{
	size_t length = 0;

	if (real.strlen)
		length = real.strlen(text);
	else
		while (((const volatile char *)text)[length])
			length++;
	return WATCHED ? changed(c_change(CALLER, NULL), length) : length;
}

EXPORT char *strcpy(char *to, const char *from)
{
	enum error error = WATCHED ? c_change(CALLER, to) : NONE;

	if (error == SKIP)
		return to;
	real.strcpy(to, from);
	if (error == LONGER)
		to[real.strlen(to)] = '!';
	return to;
}
