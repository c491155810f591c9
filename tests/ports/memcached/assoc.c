// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Instead of memcached's assoc.c: the index of a shard, a table that grows by a bucket at a time. */
#include "vmsrs_request.h"

#include <assert.h>
#include <string.h>

unsigned int hashpower = HASHPOWER_DEFAULT;

void assoc_init(const int wanted) {
    if (wanted)
        hashpower = (unsigned int)wanted;
    stats_state.hash_power_level = hashpower;
    stats_state.hash_bytes = ((uint64_t)1 << hashpower) * sizeof(item *);
    shards_init();
}

static item **bucket_at(uint32_t index) {
    return &shard->segments[index / SEGMENT_BUCKETS][index % SEGMENT_BUCKETS];
}

static item **bucket_of(uint32_t hv) {
    uint32_t index = hv & (2 * shard->level - 1);

    return bucket_at(index < shard->buckets ? index : index - shard->level);
}

static item **find(const char *key, size_t nkey, uint32_t hv) {
    item **link = bucket_of(hv);

    while (*link && ((*link)->nkey != nkey || memcmp(ITEM_key(*link), key, nkey)))
        link = &(*link)->h_next;
    return link;
}

item *assoc_find(const char *key, const size_t nkey, const uint32_t hv) {
    return *find(key, nkey, hv);
}

/*
 * Adds a bucket and moves to it what belongs there from the bucket that it splits (Litwin, VLDB 1980): a
 * table that doubles at once would write to all of its items.
 */
static void grow(void) {
    uint32_t index = shard->buckets;
    item **from, **to;

    if (index == SEGMENT_BUCKETS * SEGMENTS_MAX)
        return;
    if (index % SEGMENT_BUCKETS == 0 && !shard->segments[index / SEGMENT_BUCKETS]) {
        item **segment = vmsrs_alloc_zeroed(shard_domain, SEGMENT_BUCKETS * sizeof(item *));

        if (!segment)
            return;
        shard->segments[index / SEGMENT_BUCKETS] = segment;
    }
    if (index == 2 * shard->level)
        shard->level *= 2;
    shard->buckets++;
    from = bucket_at(index - shard->level);
    to = bucket_at(index);
    while (*from) {
        item *it = *from;

        if ((hash(ITEM_key(it), it->nkey) & (2 * shard->level - 1)) != index) {
            from = &it->h_next;
            continue;
        }
        *from = it->h_next;
        it->h_next = NULL;
        *to = it;
        to = &it->h_next;
    }
}

int assoc_insert(item *it, const uint32_t hv) {
    item **bucket = bucket_of(hv);

    /* It would be found by nobody, and whoever drops it would look for another one. */
    if (hash(ITEM_key(it), it->nkey) != hv)
        vmsrs_fail("an item with another key");
    it->h_next = *bucket;
    *bucket = it;
    if (++shard->items > (uint64_t)shard->buckets * 3 / 2)
        grow();
    return 1;
}

void assoc_delete(const char *key, const size_t nkey, const uint32_t hv) {
    item **link = find(key, nkey, hv);
    item *it = *link;

    assert(it);
    *link = it->h_next;
    it->h_next = NULL;
    shard->items--;
}

/* It grows with each item that is added. */
void assoc_start_expand(uint64_t items) {
}

int start_assoc_maintenance_thread(void) {
    return 0;
}

void stop_assoc_maintenance_thread(void) {
}
