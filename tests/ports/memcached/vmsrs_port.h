/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * The cache of memcached in domains: what its sources, edited by edit.pl, call.
 *
 * Keys are spread over shards by their hash. A shard is a domain: the index, the LRU lists and the items
 * of its keys, so a command on one key writes to one domain. Each command runs as a request. Sockets,
 * connections and their buffers are outside of domains: a value is read into a block of malloc() and copied
 * in by the request that stores it, and what a request wants to send is copied out before it ends.
 *
 * Included at the end of memcached.h.
 */
#ifndef VMSRS_PORT_H
#define VMSRS_PORT_H

/* A set of shards is a word of 32 bits; one more domain is the workers'. */
#define SHARDS_MAX 31

/* Buckets come in segments of a page each. */
#define SEGMENT_BUCKETS 512
#define SEGMENTS_MAX 2048

/* Room for the statistics that items.c keeps for each list. */
#define LIST_STATS 22

/* An LRU list, together so that a change of it writes to one page. */
struct shard_list {
    item *head;
    item *tail;
    uint64_t bytes;
    uint32_t size;
    uint32_t reserved;
};

/* What a shard's root leads to. What each store changes comes first: it should be one page. */
struct shard {
    const struct shard *self; /* shows that a pointer to it is right */
    unsigned int number;
    uint64_t used_bytes; /* of blocks, as large as their class */
    uint64_t items;
    uint32_t buckets;
    uint32_t level; /* the largest power of two that is not above buckets */
    uint32_t used[MAX_NUMBER_OF_SLAB_CLASSES]; /* blocks of each class */
    struct shard_list lists[POWER_LARGEST];
    item **segments[SEGMENTS_MAX];
    uint64_t stats[POWER_LARGEST][LIST_STATS];
};

/* The shard that the calling thread's request works on, or the sum of all (shards_sum()). */
extern __thread struct shard *shard;

/* ---- Start and shape */

/* Opens the domains and empties them. MEMCACHED_SHARDS is their number. */
void shards_init(void);
unsigned int shards_count(void);

/* Runs a function as a request of each shard in turn, and adds up what it returns. */
int shards_each(int (*function)(void *argument), void *argument);

/* What has been changed so far is kept if the request fails later: for long walks. */
void shard_commit(void);

/* Whether a class has had an item: the maintainer passes over the others. */
bool slabs_class_used(unsigned int id);

/*
 * Whether the maintainer has to look at the shard's lists of a class: when the shard has used a quarter of its part of the
 * limit, or an item at an end has expired. Otherwise nothing is to be evicted soon, and each move of an item writes to
 * three pages.
 */
bool shard_needs_care(int class);

/* Zeroes the statistics of lists, of all shards that the request holds. */
void shards_reset_stats(void);

/* ---- Commands as requests */

/*
 * The request of a line, and of the value behind it if it is there. Returns where the next command begins, which is `next`
 * if nothing but the line was taken.
 */
char *request_line(conn *c, char *next, void (*process)(conn *c, char *line));
/* Begins the response of a line, unless the request has one. */
bool request_response(conn *c);
/* hash() of a key that the request works on. */
uint32_t request_hash(const char *key, size_t length);
void request_binary(conn *c, char *extras, void (*dispatch)(conn *c, char *extras));
/* Stores a value that has arrived behind its line. */
void request_value(conn *c, void (*complete)(conn *c));
/* Copies what has been read of a value already. False: it failed, and the connection is to be closed. */
bool request_copy(conn *c, int length);

/* ---- Items */

/* An item outside of domains, into which a value is read. */
item *item_outside(conn *c, const char *key, size_t nkey, unsigned int flags, rel_time_t exptime, int nbytes);
void item_outside_free(item *it);
bool item_is_outside(const void *it);
/* Stores what was read into such an item. */
enum store_item_type item_store_outside(item *outside, int comm, conn *c, uint32_t hv);
/* Copies what the response sends out of the domain, and drops the response's reference. */
void item_copy_out(mc_resp *resp, item *it);
/* Frees what a response has sent. */
void response_free(void *memory);

/*
 * References that end with the request are counted beside the item: a get writes nothing.
 */
unsigned short item_ref(item *it);
unsigned short item_unref(item *it);
unsigned short item_refs(const item *it);
#undef refcount_incr
#undef refcount_decr
#define refcount_incr(it) item_ref((item *)(it))
#define refcount_decr(it) item_unref((item *)(it))

#endif
