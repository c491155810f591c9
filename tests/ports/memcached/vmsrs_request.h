/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the files of the port share; see vmsrs_port.h for what memcached's sources call. */
#ifndef VMSRS_REQUEST_H
#define VMSRS_REQUEST_H

#include "memcached.h"
#include "vmsrs_server.h"

/* More references at a time than any command takes: an item, the one it replaces and the one it evicts. */
#define REFS_MAX 16

static inline bool in_domain(const void *address) {
    return (uintptr_t)address >= DOMAINS_START && (uintptr_t)address < DOMAINS_END;
}

/* ---- vmsrs_request.c: the request of the calling thread */

struct self {
    vmsrs_request *request; /* while there is one */
    uint32_t held;          /* shards, a bit for each */
    bool one_key;           /* the request is for one key ... */
    uint32_t hv;            /* ... with this hash */
    const char *key;        /* ... which is here */
    size_t key_length;
    unsigned int refs;
    struct {
        item *it;
        unsigned short count;
    } ref[REFS_MAX];
    void *region; /* that it has taken for an item */
};

extern __thread struct self self;

/* What a request holds. */
enum holds { HOLDS_ONE, HOLDS_SOME, HOLDS_ALL };

struct call {
    enum holds holds;
    uint32_t some; /* shards, a bit for each */
    int (*function)(void *argument);
    void *argument;
};

/* Run the function as a request: of one shard, of a key with this hash, or with several shards and the thread's domain. */
int run_one(unsigned int number, int (*function)(void *argument), void *argument, int *result);
int run_key(const char *key, size_t length, int (*function)(void *argument), void *argument, int *result);
int run_some(enum holds holds, uint32_t some, int (*function)(void *argument), void *argument, int *result);

/* ---- vmsrs_shard.c */

extern vmsrs_app *app;
extern vmsrs_domain *shard_domains[SHARDS_MAX];
/* That of `shard`. */
extern __thread vmsrs_domain *shard_domain;

unsigned int shard_of(uint32_t hv);
/* Makes it the calling thread's. */
void shard_select(unsigned int number);
/* Makes `shard` the sum of all shards, for statistics. What is written there is lost. */
void shards_sum(void);

/* ---- vmsrs_region.c: memory between pages that nobody can touch */

/* Room for the largest item; null if there is none. */
void *region_take(void);
/* Gives it back. Nothing happens if that was done before. */
void region_give(void *start);
bool in_region(const void *address);
/* Notes how much of it is used, so that what is large goes back to the kernel. */
void region_uses(void *start, size_t bytes);

#endif
