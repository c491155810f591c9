// An allocator in the place of the C library's: with one lock, under which it spends nearly all of its time, half of it in
// the C++ library.
//
// A block of STUCK bytes is never found: the search for it goes on for ever.
//
// Compiled with -DPRELOADED -shared it is the allocator; otherwise the program that uses it, in which requests are cut
// short at any instruction of it.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#define STUCK 54321
/* The allocator is interrupted by a signal under its lock. */
#define SIGNALLED 54322

#ifdef PRELOADED

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *room;
static size_t left;

// As the C++ library has it: of a map's tree.
struct node {
	int colour;
	struct node *parent, *left, *right;
};

struct node *_ZSt18_Rb_tree_incrementPSt18_Rb_tree_node_base(struct node *);

static struct node nodes[200];

static void work(void)
{
	for (volatile int i = 0; i < 200; i++)
		;
	// Goes to the right once, then to the left as far as it can.
	if (!nodes[0].right) {
		for (int i = 1; i < 199; i++)
			nodes[i].left = &nodes[i + 1];
		nodes[0].right = &nodes[1];
	}
	_ZSt18_Rb_tree_incrementPSt18_Rb_tree_node_base(nodes);
}

void *malloc(size_t size)
{
	int is_stuck = size == STUCK, is_signalled = size == SIGNALLED;
	size_t *block;

	size = (size + 31) & ~(size_t)15;
	pthread_mutex_lock(&lock);
	if (is_signalled)
		raise(SIGUSR1);
	do
		work();
	while (is_stuck);
	if (size > left) {
		left = (size + (64 << 20)) & ~(size_t)4095;
		room = mmap(NULL, left, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	}
	block = (size_t *)room;
	room += size;
	left -= size;
	work();
	pthread_mutex_unlock(&lock);
	block[0] = size - 16;
	return block + 2;
}

void free(void *block)
{
	if (!block)
		return;
	pthread_mutex_lock(&lock);
	work();
	pthread_mutex_unlock(&lock);
}

void *calloc(size_t count, size_t size)
{
	// Fresh from the kernel.
	return malloc(count * size);
}

void *realloc(void *old, size_t size)
{
	void *block = malloc(size);

	if (old) {
		size_t had = ((size_t *)old)[-2];

		memcpy(block, old, had < size ? had : size);
	}
	return block;
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
	char *start = malloc(size + alignment);

	*block = (void *)(((size_t)start + alignment - 1) & ~(alignment - 1));
	((size_t *)*block)[-2] = size;
	return 0;
}

void *aligned_alloc(size_t alignment, size_t size)
{
	void *block = NULL;

	posix_memalign(&block, alignment < 16 ? 16 : alignment, size);
	return block;
}

void *memalign(size_t alignment, size_t size)
{
	return aligned_alloc(alignment, size);
}

size_t malloc_usable_size(void *block)
{
	return block ? ((size_t *)block)[-2] : 0;
}

#else

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "vmsrs.h"

static vmsrs_domain *domain;
static atomic_ulong rounds;
// Whether the request does.
static atomic_bool allocates;
static atomic_int ready;

static int is_mixed;

// Blocks of many sizes, of which some stay for a while: an allocator has to do all that it can.
static void allocate_mixed(void)
{
	void *blocks[64] = { NULL };
	unsigned seed = 1;

	for (;;) {
		int which;

		seed = seed * 1103515245 + 12345;
		which = seed >> 16 & 63;
		free(blocks[which]);
		blocks[which] = malloc(16 + (seed >> 8 & 0x3ffff));
		rounds++;
	}
}

static void *allocate(void *argument)
{
	if (is_mixed)
		allocate_mixed();
	for (;;) {
		void *volatile block = malloc(100);

		free(block);
		rounds++;
	}
	return argument;
}

static int allocate_in_request(vmsrs_request *request, void *argument)
{
	(void)request;
	allocates = 1;
	allocate(argument);
	return 0;
}

static int fail_later(vmsrs_request *request, void *argument)
{
	(void)request;
	// What starts a thread of the request uses the heap, too.
	ready = 1;
	// At another place in the allocator each time.
	while (!allocates)
		sched_yield();
	for (volatile int i = 0; i < abs(*(int *)argument) * 3700; i++)
		;
	vmsrs_fail("interrupts the other piece");
}

static int allocate_stuck(vmsrs_request *request, void *argument)
{
	void *volatile block;

	(void)request;
	(void)argument;
	while (!ready)
		sched_yield();
	allocates = 1;
	block = malloc(STUCK);
	free(block);
	return 0;
}

static sigjmp_buf outside;
static const char *mode;

static void interrupt(int signal)
{
	(void)signal;
	if (!strcmp(mode, "handler"))
		*(volatile int *)8 = 1;
	if (!strcmp(mode, "fail"))
		vmsrs_fail("the handler of a signal");
	siglongjmp(outside, 1);
}

static int allocate_signalled(vmsrs_request *request, void *argument)
{
	void *volatile block;

	(void)request;
	(void)argument;
	block = malloc(SIGNALLED);
	free(block);
	return 0;
}

static void interrupt_allocator(void)
{
	signal(SIGUSR1, interrupt);
	if (!sigsetjmp(outside, 1))
		(void)!vmsrs_run(domain, allocate_signalled, NULL, NULL);
	(void)!vmsrs_run(domain, allocate_signalled, NULL, NULL);
	check(0, "the process ends");
}

static int both(vmsrs_request *request, void *argument)
{
	vmsrs_piece pieces[2] = {
		{ .function = *(int *)argument < 0 ? allocate_stuck : allocate_in_request },
		{ .function = fail_later, .argument = argument },
	};

	allocates = 0;
	return vmsrs_fan_out(request, pieces, 2);
}

// "stuck": a request never comes out of the allocator. "mixed": blocks of many sizes, for allocators other than the one above;
// the number of requests may follow. "handler", "fail", "left": the handler of a signal that comes under the allocator's lock fails,
// or leaves the request.
int main(int count, char **arguments)
{
	pthread_t thread;
	vmsrs_app *app;
	int deadlines, requests = 20;

	check(!vmsrs_open("allocator", &app), "the app opens");
	check(!vmsrs_domain_open(app, "alice", 5, &domain), "a domain opens");
	is_mixed = count > 1 && !strcmp(arguments[1], "mixed");
	if (count > 2)
		requests = atoi(arguments[2]);
	check(!pthread_create(&thread, NULL, allocate, NULL), "another thread allocates");
	deadlines = vmsrs_protection(app) == VMSRS_PROTECTION_FULL;
	if (count > 1 && !strcmp(arguments[1], "stuck")) {
		// The first ones may be cut short on the way.
		for (int stuck = -1; stuck > -(1 << 20); stuck *= 2) {
			ready = 0;
			check(vmsrs_run(domain, both, &stuck, NULL) == VMSRS_EFAILED, "the request fails");
		}
		check(0, "the process ends");
	}
	mode = count > 1 ? arguments[1] : "";
	if (!strcmp(mode, "handler") || !strcmp(mode, "fail") || !strcmp(mode, "left"))
		interrupt_allocator();
	for (int i = 0; i < requests; i++) {
		unsigned long before;
		vmsrs_options options = { .deadline_ms = deadlines ? 15 + i : 0 };
		vmsrs_request_fn function = deadlines ? allocate_in_request : both;

		check(vmsrs_run_with(domain, &options, function, &i, NULL) == VMSRS_EFAILED, "the request fails");
		before = rounds;
		// Hangs if the lock stays taken.
		while (rounds == before)
			usleep(1000);
	}
	puts("all requests left the allocator in order");
	return 0;
}

#endif
