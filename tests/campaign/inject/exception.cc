// SPDX-License-Identifier: Apache-2.0 OR MIT
// Errors of a server in C++, in one in C: nothing there catches.

#include <exception>

extern "C" {

/* Leaves the request's function. */
void inject_exception()
{
	throw 1;
}

void inject_terminate()
{
	std::terminate();
}
}
