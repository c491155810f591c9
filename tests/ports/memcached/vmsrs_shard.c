// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The shards: domains of the server's app, with the index, the lists and the items of their keys. */
#include "vmsrs_request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__thread struct shard *shard;
__thread vmsrs_domain *shard_domain;

vmsrs_app *app;
vmsrs_domain *shard_domains[SHARDS_MAX];

static unsigned int count = 16;
/* What shards_sum() adds up. Only a request that holds all shards uses it. */
static struct shard sum;

unsigned int shards_count(void) {
    return count;
}

/* The index uses the low bits. */
unsigned int shard_of(uint32_t hv) {
    return (hv >> 22) % count;
}

void shard_select(unsigned int number) {
    struct shard *root = vmsrs_root(shard_domains[number]);

    /* What is written by a wrong pointer to it would be found by nobody. */
    if (root->self != root || root->number != number)
        vmsrs_fail("not a shard");
    shard_domain = shard_domains[number];
    shard = root;
}

void shards_sum(void) {
    memset(&sum, 0, sizeof(sum));
    for (unsigned int number = 0; number < count; number++) {
        struct shard *one = vmsrs_root(shard_domains[number]);

        sum.used_bytes += one->used_bytes;
        sum.items += one->items;
        for (unsigned int i = 0; i < MAX_NUMBER_OF_SLAB_CLASSES; i++)
            sum.used[i] += one->used[i];
        for (unsigned int i = 0; i < POWER_LARGEST; i++) {
            struct shard_list *list = &sum.lists[i], *part = &one->lists[i];

            if (!list->head)
                list->head = part->head;
            if (!list->tail || (part->tail && part->tail->time < list->tail->time))
                list->tail = part->tail;
            list->bytes += part->bytes;
            list->size += part->size;
            for (unsigned int j = 0; j < LIST_STATS; j++)
                sum.stats[i][j] += one->stats[i][j];
        }
    }
    stats_state.curr_items = 0;
    stats_state.curr_bytes = 0;
    for (unsigned int i = 0; i < POWER_LARGEST; i++) {
        stats_state.curr_items += sum.lists[i].size;
        stats_state.curr_bytes += sum.lists[i].bytes;
    }
    shard = &sum;
}

void shards_reset_stats(void) {
    for (unsigned int number = 0; number < count; number++) {
        struct shard *one = vmsrs_root(shard_domains[number]);

        memset(one->stats, 0, sizeof(one->stats));
    }
    memset(sum.stats, 0, sizeof(sum.stats));
}

/* ---- Start ---------------------------------------------------------------------------------------- */

/* The shard that is being made. */
static struct making {
    vmsrs_domain *domain;
    unsigned int number;
    unsigned int segments;
} making;

static int shard_make(vmsrs_request *request, void *argument) {
    struct shard *made = vmsrs_alloc_aligned(making.domain, sizeof(*made), 4096);

    if (!made || vmsrs_set_root(making.domain, made) != VMSRS_OK)
        return -1;
    memset(made, 0, sizeof(*made));
    for (unsigned int i = 0; i < making.segments; i++) {
        made->segments[i] = vmsrs_alloc_zeroed(making.domain, SEGMENT_BUCKETS * sizeof(item *));
        if (!made->segments[i])
            return -1;
    }
    made->self = made;
    made->number = making.number;
    made->buckets = making.segments * SEGMENT_BUCKETS;
    made->level = made->buckets;
    return 0;
}

/* Opens a domain, empties it of what an earlier process has left, and makes a shard in it. */
static vmsrs_domain *shard_open(const char *key, size_t length, unsigned int number, unsigned int segments) {
    int result = 0, code;

    making.number = number;
    making.segments = segments;
    code = vmsrs_domain_open(app, key, length, &making.domain);
    if (code == VMSRS_OK && vmsrs_root(making.domain))
        code = vmsrs_domain_clear(&making.domain);
    if (code == VMSRS_OK)
        code = vmsrs_run(making.domain, shard_make, NULL, &result);
    if (code != VMSRS_OK || result)
        server_die(key, code == VMSRS_OK ? VMSRS_ENOMEM : code);
    return making.domain;
}

void shards_init(void) {
    const char *text = getenv("MEMCACHED_SHARDS");
    unsigned int segments;

    if (text)
        count = (unsigned int)atoi(text);
    if (count < 1 || count > SHARDS_MAX) {
        fprintf(stderr, "MEMCACHED_SHARDS: 1 to %d\n", SHARDS_MAX);
        exit(EXIT_FAILURE);
    }
    /* As many buckets as the option asks for, in powers of two of pages. */
    segments = (unsigned int)(((uint64_t)1 << hashpower) / count / SEGMENT_BUCKETS);
    if (segments > 256)
        segments = 256;
    while (segments & (segments - 1))
        segments &= segments - 1;
    if (!segments)
        segments = 1;
    server_open_app("memcached", &app);
    for (unsigned int number = 0; number < count; number++) {
        char key[32];
        int length = snprintf(key, sizeof(key), "shard %u", number);

        shard_domains[number] = shard_open(key, (size_t)length, number, segments);
    }
}

