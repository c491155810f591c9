// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Memory of a request outside of domains: the packet that it works on, and those that it sends. It is not restored, costs
 * no pages of the domain, and lies between pages that nobody can touch: a length that is wrong reaches nothing else.
 */
#include "vmsrs_broker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define START 0x0a0000000000
enum { PAGE = 4096, KEPT = 256 * 1024, RED_ZONE = 16, RED = 0xa5 };

/* The largest packet, and pages' worth more than one of those for what is sent. */
#define IN_BYTES (268435456ul + PAGE)
#define OUT_BYTES (1ul << 36)

static char *const in_end = (char *)START + PAGE + IN_BYTES;
static char *const out_start = (char *)START + PAGE + IN_BYTES + PAGE;
static size_t out_used, in_used;

static void map(char *start, size_t bytes) {
    if (mmap(start, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1,
             0) != start) {
        perror("mmap");
        exit(EXIT_FAILURE);
    }
}

void scratch_init(void) {
    map(in_end - IN_BYTES, IN_BYTES);
    map(out_start, OUT_BYTES);
}

bool in_scratch(const void *address) {
    return (const char *)address >= (char *)START && (const char *)address < out_start + OUT_BYTES;
}

uint8_t *scratch_take_in(const uint8_t *bytes, size_t length) {
    in_used = length;
    return memcpy(in_end - length, bytes, length);
}

void *scratch_alloc(size_t bytes) {
    char *start = out_start + out_used;

    if (bytes > OUT_BYTES - PAGE - out_used)
        return NULL;
    out_used += (bytes + 15) & ~15ul;
    return start;
}

void scratch_end(void) {
    if (out_used > KEPT)
        madvise(out_start + KEPT, (out_used - KEPT + PAGE - 1) & ~(PAGE - 1ul), MADV_DONTNEED);
    if (in_used > KEPT)
        madvise(in_end - IN_BYTES, IN_BYTES - KEPT, MADV_DONTNEED);
    out_used = 0;
    in_used = 0;
}

void *scratch_zeroed(size_t count, size_t size) {
    void *memory = scratch_alloc(count * size);

    return memory ? memset(memory, 0, count * size) : NULL;
}

char *scratch_strdup(const char *text) {
    size_t bytes = strlen(text) + 1;
    char *copy = scratch_alloc(bytes);

    return copy ? memcpy(copy, text, bytes) : NULL;
}

struct mosquitto__packet *packet_new(void) {
    return scratch_zeroed(1, sizeof(struct mosquitto__packet));
}

uint8_t *packet_room(size_t length) {
    uint8_t *room = scratch_alloc(length + RED_ZONE);

    if (room)
        memset(room + length, RED, RED_ZONE);
    return room;
}

void packet_check(const struct mosquitto__packet *packet) {
    static const uint8_t zone[RED_ZONE] = {[0 ... RED_ZONE - 1] = RED};

    if (!in_scratch(packet->payload) || memcmp(packet->payload + packet->packet_length, zone, RED_ZONE))
        vmsrs_fail("a packet longer than its room");
}
