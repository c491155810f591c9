// SPDX-License-Identifier: Apache-2.0 OR MIT
// vmsrs.h in C++: an exception that leaves a request fails it.
// `exception NAME` ends requests that way, and exits with 0 if each ended as expected.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vmsrs.h>

static int destroyed;

struct Guard {
	~Guard() { destroyed++; }
};

static int throws(vmsrs_request *, void *)
{
	Guard guard;

	throw std::runtime_error("nobody catches this");
}

static int throws_int(vmsrs_request *, void *)
{
	throw 5;
}

static void promises() noexcept
{
	throw std::logic_error("not so");
}

static int breaks_noexcept(vmsrs_request *, void *)
{
	promises();
	return 0;
}

static int terminates(vmsrs_request *, void *)
{
	std::terminate();
}

struct Base {
	Base() { indirect(); }
	virtual ~Base() {}
	void indirect() { pure(); }
	virtual void pure() = 0;
};

struct Derived : Base {
	void pure() override {}
};

static int calls_a_pure_virtual(vmsrs_request *, void *)
{
	Derived derived;

	return 0;
}

static int catches(vmsrs_request *, void *)
{
	try {
		Guard guard;

		throw std::runtime_error(std::string("caught"));
	} catch (const std::exception &error) {
		return std::strcmp(error.what(), "caught") ? 0 : 7;
	}
}

static void undo(void *)
{
	throw std::runtime_error("in a defer");
}

static int defers_and_throws(vmsrs_request *request, void *)
{
	if (vmsrs_defer(request, undo, nullptr) != VMSRS_OK)
		return 0;
	throw std::runtime_error("in a request");
}

static void write_to_null()
{
	volatile int *volatile null = nullptr;

	*null = 1;
}

static int fails_in_a_handler(vmsrs_request *, void *)
{
	try {
		throw std::runtime_error("caught");
	} catch (const std::exception &) {
		write_to_null();
	}
	return 0;
}

struct Broken {
	~Broken() { write_to_null(); }
};

static int fails_while_unwinding(vmsrs_request *, void *)
{
	try {
		Broken broken;

		throw std::runtime_error("on its way");
	} catch (const std::exception &) {
	}
	return 0;
}

static int fails_in_both(vmsrs_request *request, void *)
{
	try {
		throw std::runtime_error("caught");
	} catch (const std::exception &) {
		return fails_while_unwinding(request, nullptr);
	}
}

// What the server handles while it runs requests, or nothing.
static std::exception_ptr handled;

static int fine(vmsrs_request *, void *)
{
	if (std::uncaught_exceptions() != 0 || std::current_exception() != handled)
		return 8;
	return 7;
}

static int fails(vmsrs_request *, void *)
{
	write_to_null();
	return 0;
}

// More than are looked at as a thread begins.
static const int SEEN = 100;

// Runs the function where the server handles two exceptions; then throws the inner one again, and the outer one. Its
// requests have been looked at before that.
static int keeps(vmsrs_domain *domain, vmsrs_request_fn function)
{
	bool inner = false;

	try {
		try {
			throw std::runtime_error("outer");
		} catch (const std::exception &) {
			try {
				try {
					throw std::logic_error("inner");
				} catch (...) {
					if (vmsrs_run(domain, function, nullptr, nullptr) != VMSRS_EFAILED)
						return 10;
					throw;
				}
			} catch (const std::logic_error &error) {
				inner = !std::strcmp(error.what(), "inner");
			}
			throw;
		}
	} catch (const std::runtime_error &error) {
		if (!inner || std::strcmp(error.what(), "outer"))
			return 11;
	}
	return std::current_exception() || std::uncaught_exceptions() ? 12 : EXIT_SUCCESS;
}

// Requests of a thread that was only seen without exceptions, or only with one that it does not handle any more.
static int keeps_all(vmsrs_domain *domain)
{
	static const vmsrs_request_fn functions[] = { fails, fails_in_a_handler, fails_while_unwinding,
						      fails_in_both };
	int result;

	for (int i = 0; i < SEEN; i++)
		if (vmsrs_run(domain, fine, nullptr, &result) != VMSRS_OK || result != 7)
			return 9;
	for (vmsrs_request_fn function : functions) {
		int code = keeps(domain, function);

		if (code != EXIT_SUCCESS)
			return code;
	}
	return EXIT_SUCCESS;
}

static int forgets(vmsrs_domain *domain)
{
	try {
		throw std::runtime_error("seen");
	} catch (const std::exception &) {
		for (int i = 0; i < SEEN; i++)
			if (vmsrs_run(domain, catches, nullptr, nullptr) != VMSRS_OK)
				return 13;
	}
	if (vmsrs_run(domain, fails, nullptr, nullptr) != VMSRS_EFAILED)
		return 14;
	return std::current_exception() ? 15 : EXIT_SUCCESS;
}

struct Case {
	const char *name;
	vmsrs_request_fn function;
	// Result of a request that succeeds, or VMSRS_EFAILED.
	int result;
	int destroyed;
	unsigned defers_failed;
	unsigned kind = VMSRS_KIND_ABORT;
};

static const Case cases[] = {
	{ "throw", throws, VMSRS_EFAILED, 1, 0 },
	{ "throw-int", throws_int, VMSRS_EFAILED, 0, 0 },
	{ "noexcept", breaks_noexcept, VMSRS_EFAILED, 0, 0 },
	{ "terminate", terminates, VMSRS_EFAILED, 0, 0 },
	{ "pure-virtual", calls_a_pure_virtual, VMSRS_EFAILED, 0, 0 },
	{ "caught", catches, 7, 1, 0 },
	{ "defer", defers_and_throws, VMSRS_EFAILED, 0, 1 },
	{ "handler", fails_in_a_handler, VMSRS_EFAILED, 0, 0, VMSRS_KIND_MEMORY },
	{ "unwinding", fails_while_unwinding, VMSRS_EFAILED, 0, 0, VMSRS_KIND_MEMORY },
	{ "both", fails_in_both, VMSRS_EFAILED, 0, 0, VMSRS_KIND_MEMORY },
};

static int run(vmsrs_domain *domain, const Case &test)
{
	for (int round = 1; round <= 3; round++) {
		vmsrs_failure failure;
		int result = 0;
		int status = vmsrs_run(domain, test.function, nullptr, &result);

		if (destroyed != round * test.destroyed)
			return 2;
		if (test.result != VMSRS_EFAILED) {
			if (status != VMSRS_OK || result != test.result)
				return 3;
		} else if (status != VMSRS_EFAILED ||
			   vmsrs_last_failure(&failure) != VMSRS_OK ||
			   failure.kind != test.kind ||
			   failure.defers_failed != test.defers_failed) {
			return 4;
		}
		if (vmsrs_run(domain, fine, nullptr, &result) != VMSRS_OK || result != 7)
			return 5;
	}
	return EXIT_SUCCESS;
}

int main(int, char **arguments)
{
	vmsrs_app *app = nullptr;
	vmsrs_domain *domain = nullptr;

	if (vmsrs_open("exception", &app) != VMSRS_OK ||
	    vmsrs_domain_open(app, "user", 4, &domain) != VMSRS_OK)
		return EXIT_FAILURE;
	if (!std::strcmp(arguments[1], "server")) {
		int code = keeps_all(domain);

		if (code != EXIT_SUCCESS)
			return code;
		// A new thread is looked at anew.
		std::thread([&] { code = forgets(domain); }).join();
		return code;
	}
	for (const Case &test : cases) {
		if (std::strcmp(test.name, arguments[1]))
			continue;
		int code = run(domain, test);
		if (code != EXIT_SUCCESS)
			return code;
		destroyed = 0;
		// The same by a server that handles an exception of its own.
		try {
			throw std::runtime_error("the server's");
		} catch (const std::exception &) {
			handled = std::current_exception();
			return run(domain, test);
		}
	}
	return 6;
}
