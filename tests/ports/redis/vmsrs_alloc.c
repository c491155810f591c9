// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Where blocks are: what a request allocates for the keyspace is in its domain, all else in ordinary memory. */
#include "vmsrs_inside.h"

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "vmsrs_alloc.h"
#include "vmsrs_port.h"

__thread int outside;

static bool is_for_domain(void) {
    return inside && !outside;
}

/* ---- Scratch: arguments and replies of the request --------------------------------------------------- */

#define START 0x0a0000000000
#define BYTES (1ul << 36)
enum { PAGE = 4096, KEPT = 256 * 1024 };

static char *const scratch = (char *)START + PAGE;
static size_t used;

void scratch_open(void) {
    if (mmap(scratch, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
             0) != scratch) {
        perror("mmap");
        exit(EXIT_FAILURE);
    }
}

static bool in_scratch(const void *address) {
    return (const char *)address >= scratch && (const char *)address < scratch + BYTES;
}

void *scratch_alloc(size_t bytes) {
    char *start = scratch + used;

    if (bytes > BYTES - PAGE - used)
        return NULL;
    used += (bytes + 15) & ~15ul;
    return start;
}

void scratch_end(void) {
    if (used > KEPT)
        madvise(scratch + KEPT, (used - KEPT + PAGE - 1) & ~(PAGE - 1ul), MADV_DONTNEED);
    /* The next request, another client's, must not find it if it reads what it has not written. */
    memset(scratch, 0, used < KEPT ? used : KEPT);
    used = 0;
}

/* ---- What zmalloc.c calls ------------------------------------------------------------------------- */

void *port_malloc(size_t size) {
    return is_for_domain() ? vmsrs_alloc(keyspace, size) : malloc(size);
}

void *port_calloc(size_t count, size_t size) {
    size_t bytes;

    if (!is_for_domain())
        return calloc(count, size);
    return __builtin_mul_overflow(count, size, &bytes) ? NULL : vmsrs_alloc_zeroed(keyspace, bytes);
}

void *port_realloc(void *block, size_t size) {
    if (block ? vmsrs_is_domain_address(block) : is_for_domain())
        return vmsrs_realloc(keyspace, block, size);
    return realloc(block, size);
}

/* Of another thread, or between requests: it would only be lost, and nobody would know. */
static void check_inside(const char *what) {
    if (!inside) {
        fprintf(stderr, "%s of the keyspace outside of a request\n", what);
        abort();
    }
}

void port_free(void *block) {
    if (vmsrs_is_domain_address(block)) {
        check_inside("a block freed");
        vmsrs_free(keyspace, block);
    } else if (!in_scratch(block)) {
        free(block);
    }
}

size_t port_size(void *block) {
    if (vmsrs_is_domain_address(block)) {
        check_inside("the size of a block");
        return vmsrs_usable_size(block);
    }
    return in_scratch(block) ? 0 : malloc_usable_size(block);
}

/* ---- Scopes --------------------------------------------------------------------------------------- */

int port_outside_begin(void) {
    outside++;
    return 1;
}

int port_beside_begin(const void *block) {
    int begins = !vmsrs_is_domain_address(block);

    outside += begins;
    return begins;
}

void port_outside_end(int *scope) {
    outside -= *scope;
}
