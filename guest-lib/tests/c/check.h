/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* How the programs of these tests end when something is not as it must be: at once, without exit handlers. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <unistd.h>

#define CHECK(condition)                                                       \
	do {                                                                   \
		if (!(condition)) {                                            \
			dprintf(2, "%s:%d: %s\n", __FILE__, __LINE__,          \
				#condition);                                   \
			_exit(1);                                              \
		}                                                              \
	} while (0)

/* The same in words. */
static inline void check(int holds, const char *words)
{
	if (!holds) {
		dprintf(2, "not so: %s\n", words);
		_exit(1);
	}
}

#endif
