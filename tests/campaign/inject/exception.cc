// SPDX-License-Identifier: Apache-2.0 OR MIT
// Errors of C++ in a server in C, which catches nothing.

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
