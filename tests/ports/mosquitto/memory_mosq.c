// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Takes the place of mosquitto's: what requests allocate is in the domain. */
#include "vmsrs_broker.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "memory_mosq.h"

/* Of ordinary memory; db.memcount is that of the domain. */
static unsigned long memcount, max_memcount;
static size_t mem_limit;

void memory__set_limit(size_t limit) {
    mem_limit = limit;
}

unsigned long mosquitto__memory_used(void) {
    return memcount + db.memcount;
}

unsigned long mosquitto__max_memory_used(void) {
    return max_memcount;
}

static bool is_inside(void) {
    return broker_in_request && !broker_outside;
}

static uintptr_t arena;

void arena_open(void) {
    /* Rounded down: before the first block are only the library's words. */
    arena = (uintptr_t)vmsrs_arena_alloc(broker_request, 0) & ~4095ul;
    if (!arena)
        vmsrs_fail("no arena");
}

static bool in_arena(const void *address) {
    return arena && (uintptr_t)address - arena < ARENA_BYTES;
}

static size_t size_of(void *block) {
    if (in_domain(block))
        return vmsrs_usable_size(block);
    return block && !in_arena(block) ? malloc_usable_size(block) : 0;
}

static bool is_too_much(size_t size) {
    return mem_limit && mosquitto__memory_used() + size > mem_limit;
}

static void *count(void *block) {
    unsigned long used;

    if (in_domain(block))
        db.memcount += size_of(block);
    else
        memcount += size_of(block);
    used = mosquitto__memory_used();
    if (used > max_memcount)
        max_memcount = used;
    return block;
}

static void uncount(void *block, size_t size) {
    if (in_domain(block))
        db.memcount -= size;
    else
        memcount -= size;
}

void *mosquitto__malloc(size_t size) {
    if (is_too_much(size))
        return NULL;
    return count(is_inside() ? vmsrs_alloc(broker_domain, size) : malloc(size));
}

void *mosquitto__calloc(size_t nmemb, size_t size) {
    size_t bytes;

    if (__builtin_mul_overflow(nmemb, size, &bytes) || is_too_much(bytes))
        return NULL;
    return count(is_inside() ? vmsrs_alloc_zeroed(broker_domain, bytes) : calloc(1, bytes));
}

void *mosquitto__realloc(void *block, size_t size) {
    size_t before = size_of(block);
    void *moved;

    if (is_too_much(size))
        return NULL;
    if (block ? in_domain(block) : is_inside())
        moved = vmsrs_realloc(broker_domain, block, size);
    else
        moved = realloc(block, size);
    if (!moved)
        return NULL;
    uncount(moved, before);
    return count(moved);
}

void mosquitto__free(void *block) {
    if (!block || in_arena(block))
        return;
    uncount(block, size_of(block));
    if (in_domain(block))
        vmsrs_free(broker_domain, block);
    else
        free(block);
}

char *mosquitto__strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = mosquitto__malloc(bytes);

    if (copy)
        memcpy(copy, text, bytes);
    return copy;
}

void *arena_room(size_t length) {
    void *room;

    if (!broker_in_request)
        return mosquitto__malloc(length);
    room = vmsrs_arena_alloc(broker_request, length);
    /* There is what the last request has left, of another client: one that reads what it has not written must not find it. */
    return room ? memset(room, 0, length) : NULL;
}

void *arena_zeroed(size_t count, size_t size) {
    return broker_in_request ? arena_room(count * size) : mosquitto__calloc(count, size);
}

char *arena_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = arena_room(bytes);

    return copy ? memcpy(copy, text, bytes) : NULL;
}
