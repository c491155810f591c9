// SPDX-License-Identifier: Apache-2.0 OR MIT
// Errors of a server in C++: for inject.c, whose server is in C and has nothing that catches.

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
