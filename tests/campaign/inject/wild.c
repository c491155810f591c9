// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Calls of every public function of the library with one wild argument.
 *
 * wild_calls.h is generated from vmsrs.h (src/wild.rs): CALL(function, arguments, ARGUMENT(number,
 * type), ...) for each. A type that GOOD does not know stops the compiler.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "inject.h"

#pragma GCC diagnostic ignored "-Wunused-result"

enum { SEVERAL = 4 };

/* A call: what is wild, and what the other arguments are. */
struct call {
	void *function;
	unsigned int wild; /* number of the argument */
	uintptr_t address; /* no memory is there */
	const char *name;
	const vmsrs_app *app;
	vmsrs_request *request;
	const vmsrs_domain *domain;
	const vmsrs_domain *domains[SEVERAL];
	vmsrs_piece pieces[SEVERAL];
	vmsrs_options options;
	vmsrs_budget budget;
	vmsrs_ticket_t ticket;
	vmsrs_task *task;
	void *block; /* of the domain */
	int result;
	/* Results. */
	vmsrs_app *opened_app;
	vmsrs_domain *opened_domain;
	vmsrs_task *new_task;
	void *place;
	vmsrs_failure failure;
	vmsrs_info info;
	vmsrs_health_t health;
	vmsrs_domain_info_t domain_info;
	vmsrs_mutex_t mutex;
	vmsrs_lease_t lease;
};

static void undo(void *argument)
{
	(void)argument;
}

static int find_nothing(vmsrs_request *request, void *argument, const void **bytes, size_t *length)
{
	(void)request, (void)argument, (void)bytes, (void)length;
	return 0;
}

/* A check stays for the life of the process, so it is never wild. */
static int sound(vmsrs_domain *domain, void *argument)
{
	(void)domain, (void)argument;
	return 0;
}

#define GOOD(type)                                                   \
	_Generic((type){ 0 },                                        \
		int: 0,                                              \
		uint32_t: 0,                                         \
		size_t: (size_t)SEVERAL,                             \
		int *: &call->result,                                \
		void *: call->block,                                 \
		void **: &call->place,                               \
		const char *: call->name,                            \
		const void *: call->name,                            \
		const struct vmsrs_app *: call->app,                 \
		struct vmsrs_app **: &call->opened_app,              \
		const struct vmsrs_domain *: call->domain,           \
		struct vmsrs_domain **: &call->opened_domain,        \
		const struct vmsrs_domain *const *: call->domains,   \
		const struct vmsrs_request *: call->request,         \
		const struct vmsrs_options *: &call->options,        \
		struct vmsrs_piece *: call->pieces,                  \
		struct vmsrs_ticket_t *: &call->ticket,              \
		const struct vmsrs_ticket_t *: &call->ticket,        \
		struct vmsrs_task *: call->task,                     \
		struct vmsrs_task **: &call->new_task,               \
		struct vmsrs_failure *: &call->failure,              \
		struct vmsrs_info *: &call->info,                    \
		struct vmsrs_health_t *: &call->health,              \
		struct vmsrs_domain_info_t *: &call->domain_info,    \
		struct vmsrs_mutex_t *: &call->mutex,                \
		struct vmsrs_lease_t *: &call->lease,                \
		const struct vmsrs_budget *: &call->budget,          \
		vmsrs_request_fn: no_work,                           \
		vmsrs_defer_fn: undo,                                \
		vmsrs_find_fn: find_nothing,                         \
		vmsrs_invariant_fn: sound)

/* Numbers are out of range: what they count is not read past its end. */
#define WILD(type)                                                   \
	_Generic((type){ 0 },                                        \
		int: -16,                                            \
		uint32_t: ~(uint32_t)15,                             \
		size_t: ~(size_t)15,                                 \
		vmsrs_invariant_fn: sound,                           \
		default: (type)call->address)

#define ARGUMENT(number, type) (call->wild == (number) ? (type)WILD(type) : (type)GOOD(type))

#define CALL(called, count, ...)                                     \
	static void call_##called(struct call *call)                 \
	{                                                            \
		(void)((__typeof__(&called))call->function)(__VA_ARGS__); \
	}
#include "wild_calls.h"
#undef CALL

static struct entry {
	const char *name;
	void (*call)(struct call *call);
	unsigned int arguments;
	void *function;
} entries[] = {
#define CALL(called, count, ...) { #called, call_##called, count, NULL },
#include "wild_calls.h"
#undef CALL
};

enum { ENTRIES = sizeof(entries) / sizeof(entries[0]) };

/* Not in a request: that could end with the loader's lock. */
__attribute__((constructor)) static void find_entries(void)
{
	for (int i = 0; i < ENTRIES; i++)
		entries[i].function = dlsym(RTLD_NEXT, entries[i].name);
}

void call_wildly(unsigned long long which)
{
	/* Small, not canonical, far above every domain, and the kernel's. */
	const uintptr_t places[] = {
		8,
		0x4141414141414141,
		VMSRS_APP_BASE + (1ULL << 38) + which % (1ULL << 38),
		0xffff888000000000,
	};
	struct entry *entry = &entries[which % ENTRIES];
	struct call call = {
		.function = entry->function,
		.wild = (unsigned int)(which / ENTRIES) % entry->arguments,
		.address = places[which / ENTRIES / 8 % 4],
		.name = "wild",
		.app = opened_app(),
		.request = arm.request,
		.domain = arm.domain,
	};

	for (int i = 0; i < SEVERAL; i++) {
		call.domains[i] = arm.domain;
		call.pieces[i].function = no_work;
	}
	call.block = real.alloc(arm.domain, 100);
	if (real.ticket(arm.request, &call.ticket) != VMSRS_OK ||
	    real.task_new(arm.domain, NULL, &call.task) != VMSRS_OK)
		real.fail("the injector's ticket and task");
	entry->call(&call);
	/* An error was returned, and the request could go on. */
	make(NULL_WRITE, 0);
}
