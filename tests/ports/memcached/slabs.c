// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Instead of memcached's slabs.c: items are blocks of their shard's domain, counted by classes as if they were in slabs. */
#include "vmsrs_request.h"

#include <stdio.h>
#include <string.h>

/* Which classes have had an item, so that the maintainer passes over the others. */
static bool used_classes[MAX_NUMBER_OF_SLAB_CLASSES];

struct class {
    unsigned int size;
    unsigned int perslab;
};

static struct class classes[MAX_NUMBER_OF_SLAB_CLASSES];
static unsigned int largest;
static size_t limit;

/* A class for blocks of this size, rounded up as slabs were. */
static void class_add(unsigned int size) {
    struct class *class = &classes[++largest];

    class->size = size;
    if (size % CHUNK_ALIGN_BYTES)
        class->size += CHUNK_ALIGN_BYTES - size % CHUNK_ALIGN_BYTES;
    class->perslab = (unsigned int)settings.slab_page_size / class->size;
}

void slabs_init(const size_t most, const double factor, const bool prealloc, const uint32_t *sizes, void *base,
                bool reuse) {
    const double last = settings.slab_chunk_size_max / factor;

    limit = most;
    largest = POWER_SMALLEST - 1;
    if (sizes) {
        for (; *sizes && largest < MAX_NUMBER_OF_SLAB_CLASSES - 2; sizes++)
            class_add(*sizes);
    } else {
        unsigned int size = (unsigned int)(sizeof(item) + (size_t)settings.chunk_size);

        while (size < last && largest < MAX_NUMBER_OF_SLAB_CLASSES - 2) {
            class_add(size);
            size = (unsigned int)(classes[largest].size * factor);
        }
    }
    class_add((unsigned int)settings.slab_chunk_size_max);
}

void slabs_prefill_global(void) {
}

unsigned int slabs_clsid(const size_t size) {
    unsigned int i = POWER_SMALLEST;

    if (!size || size > (size_t)settings.item_size_max)
        return 0;
    while (i < largest && size > classes[i].size)
        i++;
    return i;
}

unsigned int slabs_size(const int id) {
    return classes[id].size;
}

void *slabs_alloc(const size_t size, unsigned int id, unsigned int flags) {
    struct class *class = &classes[id];
    uint64_t share = (uint64_t)settings.slab_page_size / shards_count();
    item *it;

    if (id < POWER_SMALLEST || id > largest)
        return NULL;
    /* Each class may have a page, whatever the limit, as with slabs: it could evict nothing otherwise. */
    if (limit && shard->used_bytes + class->size > limit / shards_count() && shard->used[id] &&
        ((uint64_t)shard->used[id] + 1) * class->size > share)
        return NULL;
    it = vmsrs_alloc(shard_domain, size);
    if (!it)
        return NULL;
    memset(it, 0, sizeof(*it));
    it->refcount = 1;
    shard->used[id]++;
    shard->used_bytes += class->size;
    if (!used_classes[id])
        used_classes[id] = true;
    return it;
}

static void block_free(void *block, unsigned int id) {
    shard->used[id]--;
    shard->used_bytes -= classes[id].size;
    vmsrs_free(shard_domain, block);
}

void slabs_free(void *block, size_t size, unsigned int id) {
    item *it = block;

    if (it->it_flags & ITEM_CHUNKED) {
        item_chunk *first = (item_chunk *)ITEM_schunk(it), *chunk = first->next;

        id = first->orig_clsid;
        while (chunk) {
            item_chunk *next = chunk->next;

            block_free(chunk, chunk->slabs_clsid);
            chunk = next;
        }
    }
    block_free(block, id);
}

bool slabs_adjust_mem_limit(size_t most) {
    limit = most;
    settings.maxbytes = most;
    return true;
}

unsigned int slabs_available_chunks(unsigned int id, bool *full, unsigned int *perslab) {
    if (full)
        *full = false;
    if (perslab)
        *perslab = classes[id].perslab;
    return 0;
}

/* Whether the maintainer has anything to do for a class. */
bool slabs_class_used(unsigned int id) {
    return used_classes[id];
}

bool shard_needs_care(int class) {
    static const int lists[] = {HOT_LRU, WARM_LRU, COLD_LRU, TEMP_LRU};

    if (limit && shard->used_bytes > limit / shards_count() / 4)
        return true;
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++) {
        const item *last = shard->lists[class | lists[i]].tail;

        if (last && last->exptime && last->exptime <= current_time)
            return true;
    }
    return false;
}

unsigned int global_page_pool_size(bool *full) {
    if (full)
        *full = false;
    return 0;
}

void fill_slab_stats_automove(slab_stats_automove *am) {
    memset(am, 0, sizeof(*am) * MAX_NUMBER_OF_SLAB_CLASSES);
}

/* What is counted for each class, by its name in the protocol. */
static const struct {
    const char *name;
    size_t offset;
} counters[] = {
    {"get_hits", offsetof(struct slab_stats, get_hits)},       {"cmd_set", offsetof(struct slab_stats, set_cmds)},
    {"delete_hits", offsetof(struct slab_stats, delete_hits)}, {"incr_hits", offsetof(struct slab_stats, incr_hits)},
    {"decr_hits", offsetof(struct slab_stats, decr_hits)},     {"cas_hits", offsetof(struct slab_stats, cas_hits)},
    {"cas_badval", offsetof(struct slab_stats, cas_badval)},   {"touch_hits", offsetof(struct slab_stats, touch_hits)},
};

static void tell(ADD_STAT add_stats, void *c, unsigned int class, const char *name, uint64_t value) {
    char key[64], text[24];
    int key_length = snprintf(key, sizeof(key), "%u:%s", class, name);
    int length = snprintf(text, sizeof(text), "%llu", (unsigned long long)value);

    add_stats(key, (uint16_t)key_length, text, (uint32_t)length, c);
}

/* As if blocks came in pages, so that tools understand it. */
void slabs_stats(ADD_STAT add_stats, void *c) {
    struct thread_stats stats;
    uint64_t all_pages = 0;
    unsigned int active = 0;

    threadlocal_stats_aggregate(&stats);
    for (unsigned int i = POWER_SMALLEST; i <= largest; i++) {
        uint64_t perslab = classes[i].perslab, used = shard->used[i];
        uint64_t pages = used ? (used + perslab - 1) / perslab : 1;

        if (!used_classes[i])
            continue;
        active++;
        all_pages += pages;
        tell(add_stats, c, i, "chunk_size", classes[i].size);
        tell(add_stats, c, i, "chunks_per_page", perslab);
        tell(add_stats, c, i, "total_pages", pages);
        tell(add_stats, c, i, "total_chunks", pages * perslab);
        tell(add_stats, c, i, "used_chunks", used);
        tell(add_stats, c, i, "free_chunks", pages * perslab - used);
        tell(add_stats, c, i, "free_chunks_end", 0);
        for (size_t j = 0; j < sizeof(counters) / sizeof(counters[0]); j++)
            tell(add_stats, c, i, counters[j].name,
                 *(uint64_t *)((char *)&stats.slab_stats[i] + counters[j].offset));
    }
    APPEND_STAT("active_slabs", "%u", active);
    APPEND_STAT("total_malloced", "%llu", (unsigned long long)(all_pages * (uint64_t)settings.slab_page_size));
    add_stats(NULL, 0, NULL, 0, c);
}

/* Pages do not move between classes, since there are none. */
void slabs_mlock(void) {
}

void slabs_munlock(void) {
}

int start_slab_maintenance_thread(void) {
    return 0;
}

void stop_slab_maintenance_thread(void) {
}

enum reassign_result_type slabs_reassign(int from, int to) {
    if (from < -1 || from > (int)largest || to < 0 || to > (int)largest)
        return REASSIGN_BADCLASS;
    return from == to ? REASSIGN_SRC_DST_SAME : REASSIGN_NOSPARE;
}

void slabs_rebalancer_pause(void) {
}

void slabs_rebalancer_resume(void) {
}

unsigned int slabs_fixup(char *chunk, const int border) {
    return 0;
}

