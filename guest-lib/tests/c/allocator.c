// An allocator in the place of the C library's: with one lock, under which it spends nearly all of its time.
//
// Compiled with -DPRELOADED -shared it is the allocator; otherwise the program that uses it, in which requests are cut
// short at any instruction of it.
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#ifdef PRELOADED

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *room;
static size_t left;

static void work(void)
{
	for (volatile int i = 0; i < 200; i++)
		;
}

void *malloc(size_t size)
{
	size_t *block;

	size = (size + 31) & ~(size_t)15;
	pthread_mutex_lock(&lock);
	work();
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

static void *allocate(void *argument)
{
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
	// At another place in the allocator each time.
	while (!allocates)
		sched_yield();
	for (volatile int i = 0; i < *(int *)argument * 3700; i++)
		;
	vmsrs_fail("interrupts the other piece");
}

static int both(vmsrs_request *request, void *argument)
{
	vmsrs_piece pieces[2] = {
		{ .function = allocate_in_request },
		{ .function = fail_later, .argument = argument },
	};

	allocates = 0;
	return vmsrs_fan_out(request, pieces, 2);
}

int main(void)
{
	pthread_t thread;
	vmsrs_app *app;
	int deadlines;

	check(!vmsrs_open("allocator", &app), "the app opens");
	check(!vmsrs_domain_open(app, "alice", 5, &domain), "a domain opens");
	check(!pthread_create(&thread, NULL, allocate, NULL), "another thread allocates");
	deadlines = vmsrs_protection(app) == VMSRS_PROTECTION_FULL;
	for (int i = 0; i < 15; i++) {
		unsigned long before = rounds;

		vmsrs_options options = { .deadline_ms = deadlines ? 15 + i : 0 };
		vmsrs_request_fn function = deadlines ? allocate_in_request : both;

		check(vmsrs_run_with(domain, &options, function, &i, NULL) == VMSRS_EFAILED, "the request fails");
		// Hangs if the lock stays taken.
		while (rounds == before)
			usleep(1000);
	}
	puts("all requests left the allocator in order");
	return 0;
}

#endif
