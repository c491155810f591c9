// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Regions: values on their way in and out lie each between two pages that nobody can touch. A length that is wrong while
 * a value is read or copied out costs its request and reaches nothing else.
 *
 * A thread keeps those that it has used. A request may fail in the middle of any function here: that costs a region at
 * most.
 */
#include "vmsrs_request.h"

#include <stdatomic.h>
#include <sys/mman.h>

#define REGIONS_START 0x0a0000000000
#define REGIONS_END DOMAINS_START
/* Each takes a mapping, of which a process has 65,530. */
#define REGIONS_MAX 16384u

enum { PAGE = 4096, KEPT = 256 * 1024 };

static struct region {
    uint32_t next;
    bool taken;
    bool large;
} regions[REGIONS_MAX];

/* The next number that was never used; 0 is none. */
static _Atomic uint32_t unused = 1;
/* What the thread keeps. */
static __thread uint32_t first;

static size_t size(void) {
    return ((size_t)settings.item_size_max + 2 * PAGE) / PAGE * PAGE;
}

static char *place(uint32_t number) {
    return (char *)REGIONS_START + (size_t)number * (size() + PAGE) + PAGE;
}

static uint32_t number_of(const void *address) {
    return (uint32_t)(((uintptr_t)address - REGIONS_START) / (size() + PAGE));
}

bool in_region(const void *address) {
    return (uintptr_t)address >= REGIONS_START && (uintptr_t)address < REGIONS_END;
}

/* Maps a new one. Nothing else is mapped in this range, so the pages around it stay free. */
static uint32_t make(void) {
    uint32_t number = atomic_load(&unused);
    char *start;

    do {
        if (number == REGIONS_MAX || !in_region(place(number + 1)))
            return 0;
    } while (!atomic_compare_exchange_weak(&unused, &number, number + 1));
    start = place(number);
    if (mmap(start, size(), PROT_READ | PROT_WRITE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0) != start)
        return 0;
    return number;
}

void *region_take(void) {
    uint32_t number = first;

    if (number)
        first = regions[number].next;
    else
        number = make();
    if (!number)
        return NULL;
    /* From the list first: a failure here must not leave it there, too. */
    atomic_signal_fence(memory_order_seq_cst);
    regions[number].taken = true;
    return place(number);
}

void region_uses(void *start, size_t bytes) {
    regions[number_of(start)].large = bytes > KEPT;
}

void region_give(void *start) {
    uint32_t number = number_of(start);

    if (!regions[number].taken)
        return;
    regions[number].taken = false;
    atomic_signal_fence(memory_order_seq_cst);
    if (regions[number].large) {
        madvise((char *)start + KEPT, size() - KEPT, MADV_DONTNEED);
        regions[number].large = false;
    }
    regions[number].next = first;
    atomic_signal_fence(memory_order_seq_cst);
    first = number;
}
