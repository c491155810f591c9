// SPDX-License-Identifier: Apache-2.0 OR MIT
// The header in C++; a C++ exception that leaves a request is a failure like any other.
#include <cstdlib>
#include <stdexcept>
#include <vmsrs.h>

static int throws(vmsrs_request *, void *)
{
	throw std::runtime_error("nobody catches this");
}

static int fine(vmsrs_request *, void *)
{
	return 7;
}

int main()
{
	vmsrs_app *app = nullptr;
	vmsrs_domain *domain = nullptr;

	if (vmsrs_open("exception", &app) != VMSRS_OK ||
	    vmsrs_domain_open(app, "user", 4, &domain) != VMSRS_OK)
		return EXIT_FAILURE;
	for (int round = 0; round < 3; round++) {
		int result = 0;
		if (vmsrs_run(domain, throws, nullptr, &result) != VMSRS_EFAILED)
			return EXIT_FAILURE;
		if (vmsrs_run(domain, fine, nullptr, &result) != VMSRS_OK || result != 7)
			return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}
