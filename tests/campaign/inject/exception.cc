// SPDX-License-Identifier: Apache-2.0 OR MIT
// Errors of C++ in a server in C, which catches nothing.

#include <cstdint>
#include <cxxabi.h>
#include <exception>

namespace
{
// What the C++ runtime has for each thread, as the C++ ABI says.
struct exceptions {
	const void *caught;
	unsigned int uncaught;
};

struct failing {
	void (*fail)();
	~failing()
	{
		fail();
	}
};
} // namespace

extern "C" {

// Leaves the request's function.
void inject_exception()
{
	throw 1;
}

void inject_terminate()
{
	std::terminate();
}

// Fails while an exception is being handled.
void inject_caught(void (*fail)())
{
	try {
		throw 1;
	} catch (int) {
		fail();
	}
}

// Fails in a destructor, while an exception is on its way.
void inject_unwinding(void (*fail)())
{
	try {
		failing on_the_way{ fail };
		throw 1;
	} catch (int) {
	}
}

void inject_exceptions(const void **caught, std::uint64_t *uncaught)
{
	auto *found = reinterpret_cast<exceptions *>(abi::__cxa_get_globals());

	*caught = found->caught;
	*uncaught = found->uncaught;
}
}
