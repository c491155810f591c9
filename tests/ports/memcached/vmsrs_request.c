// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The request of the calling thread: how it is run, and what it leaves outside of domains if it fails. */
#include "vmsrs_request.h"

#include <stdio.h>
#include <stdlib.h>

__thread struct self self;

/* The thread's own domain, with which commands begin that have no shard, or several. */
static __thread vmsrs_domain *own;

/* ---- References ----------------------------------------------------------------------------------- */

static unsigned int ref_find(const item *it) {
    unsigned int i = 0;

    while (i < self.refs && self.ref[i].it != it)
        i++;
    return i;
}

unsigned short item_refs(const item *it) {
    unsigned int i = ref_find(it);

    return it->refcount + (i < self.refs ? self.ref[i].count : 0);
}

unsigned short item_ref(item *it) {
    unsigned int i = ref_find(it);

    if (i == self.refs) {
        if (self.refs == REFS_MAX)
            vmsrs_fail("too many references");
        self.ref[self.refs].it = it;
        self.ref[self.refs++].count = 0;
    }
    return it->refcount + ++self.ref[i].count;
}

unsigned short item_unref(item *it) {
    unsigned int i = ref_find(it);
    unsigned short left = 0;

    if (i == self.refs)
        return --it->refcount;
    left = --self.ref[i].count;
    if (!left)
        self.ref[i] = self.ref[--self.refs];
    return it->refcount + left;
}

/* ---- Locks ---------------------------------------------------------------------------------------- */

/* A request for a key that comes to another one has been misled: it would change what belongs to others. */
static void check_key(uint32_t hv) {
    if (self.one_key && hv != self.hv)
        vmsrs_fail("another key");
}

uint32_t request_hash(const char *key, size_t length) {
    uint32_t hv = key == self.key && length == self.key_length && self.one_key ? self.hv : hash(key, length);

    check_key(hv);
    return hv;
}

/* An item's lock is its shard's domain, held to the end of the request. */
void item_lock(uint32_t hv) {
    unsigned int number = shard_of(hv);

    check_key(hv);
    if (!(self.held & 1u << number)) {
        int code = vmsrs_enter(self.request, shard_domains[number]);

        if (code != VMSRS_OK)
            vmsrs_fail(vmsrs_strerror(code));
        self.held |= 1u << number;
    }
    shard_select(number);
}

void item_unlock(uint32_t hv) {
}

void *item_trylock(uint32_t hv) {
    return shard;
}

void item_trylock_unlock(void *lock) {
}

void shard_commit(void) {
    if (vmsrs_commit(self.request, 0) != VMSRS_OK)
        vmsrs_fail("cannot commit");
}

/* ---- Requests ------------------------------------------------------------------------------------- */

static int call(vmsrs_request *request, void *argument) {
    struct call *call = argument;

    self.request = request;
    if (call->holds != HOLDS_ONE && call->some) {
        const vmsrs_domain *wanted[SHARDS_MAX];
        size_t length = 0;
        int code;

        for (unsigned int number = 0; number < shards_count(); number++) {
            if (call->some & 1u << number)
                wanted[length++] = shard_domains[number];
        }
        code = vmsrs_enter_all(request, wanted, length);
        if (code != VMSRS_OK)
            vmsrs_fail(vmsrs_strerror(code));
    }
    self.held = call->some;
    if (call->holds == HOLDS_ONE)
        shard_select((unsigned int)__builtin_ctz(call->some));
    else if (call->holds == HOLDS_ALL)
        shards_sum();
    return call->function(call->argument);
}

/* Runs the call as a request that begins with this domain, and puts right what it leaves if it fails. */
static int run(const vmsrs_domain *domain, struct call *what, int *result) {
    int code;

    self.refs = 0;
    self.region = NULL;
    code = vmsrs_run_with(domain, NULL, call, what, result);
    if (code != VMSRS_OK && self.region)
        region_give(self.region);
    self.one_key = false;
    shard = NULL;
    return code;
}

static vmsrs_domain *own_domain(void) {
    static unsigned int threads;

    if (!own) {
        char key[32];
        int length = snprintf(key, sizeof(key), "thread %u", __atomic_fetch_add(&threads, 1, __ATOMIC_RELAXED));

        if (vmsrs_domain_open(app, key, (size_t)length, &own) != VMSRS_OK) {
            fprintf(stderr, "cannot open a thread's domain\n");
            exit(EXIT_FAILURE);
        }
    }
    return own;
}

int run_one(unsigned int number, int (*function)(void *argument), void *argument, int *result) {
    struct call what = {HOLDS_ONE, 1u << number, function, argument};

    return run(shard_domains[number], &what, result);
}

int run_key(const char *key, size_t length, int (*function)(void *argument), void *argument, int *result) {
    self.key = key;
    self.key_length = length;
    self.hv = hash(key, length);
    self.one_key = true;
    return run_one(shard_of(self.hv), function, argument, result);
}

int run_some(enum holds holds, uint32_t some, int (*function)(void *argument), void *argument, int *result) {
    struct call what = {holds, some, function, argument};

    return run(own_domain(), &what, result);
}

int shards_each(int (*function)(void *argument), void *argument) {
    int all = 0;

    for (unsigned int number = 0; number < shards_count(); number++) {
        int result = 0;

        /* One that fails is tried again with the next round of whoever calls this. */
        if (run_one(number, function, argument, &result) == VMSRS_OK)
            all += result;
    }
    return all;
}
