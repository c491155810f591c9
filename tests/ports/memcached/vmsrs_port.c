// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The cache of memcached in domains; see vmsrs_port.h. */
#define VMSRS_PORT_C
#include "memcached.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

#include "proto_bin.h"

/* Where domains lie. */
#define DOMAINS_START 0x110000000000
#define DOMAINS_END 0x510000000000

/* More references at a time than any command takes: an item, the one it replaces and the one it evicts. */
#define REFS_MAX 16
#define MUTEXES_MAX 16

__thread struct shard *shard;
/* Its domain. */
static __thread vmsrs_domain *domain;

static unsigned int count = 16;
static vmsrs_app *app;
static vmsrs_domain *domains[SHARDS_MAX];
/* Which classes have had an item, so that the maintainer passes over the others. */
static bool used_classes[MAX_NUMBER_OF_SLAB_CLASSES];
/* What shards_sum() adds up. Only a request that holds all shards uses it. */
static struct shard sum;

/* The request of the calling thread. */
static __thread struct {
    vmsrs_request *request; /* null outside of requests */
    uint32_t held;          /* shards, a bit for each */
    unsigned int refs;
    unsigned int mutexes;
    struct {
        item *it;
        unsigned short count;
    } ref[REFS_MAX];
    pthread_mutex_t *mutex[MUTEXES_MAX];
    void *region; /* that it has taken */
} self;

/* The thread's own domain, with which commands begin that have no shard, or several. */
static __thread vmsrs_domain *own;

unsigned int shards_count(void) {
    return count;
}

/* The index uses the low bits. */
static unsigned int shard_of(uint32_t hv) {
    return (hv >> 22) % count;
}

/* ---- Mutexes -------------------------------------------------------------------------------------- */

/* Noted before it is locked: whether it was is seen from its owner. */
static void mutex_note(pthread_mutex_t *mutex) {
    if (!self.request)
        return;
    if (self.mutexes == MUTEXES_MAX)
        vmsrs_fail("too many mutexes");
    self.mutex[self.mutexes++] = mutex;
}

static void mutex_forget(pthread_mutex_t *mutex) {
    if (!self.request)
        return;
    for (unsigned int i = self.mutexes; i-- > 0;) {
        if (self.mutex[i] == mutex) {
            self.mutex[i] = self.mutex[--self.mutexes];
            return;
        }
    }
}

int request_mutex_lock(pthread_mutex_t *mutex) {
    mutex_note(mutex);
    return pthread_mutex_lock(mutex);
}

int request_mutex_trylock(pthread_mutex_t *mutex) {
    int ret;

    mutex_note(mutex);
    ret = pthread_mutex_trylock(mutex);
    if (ret)
        mutex_forget(mutex);
    return ret;
}

int request_mutex_unlock(pthread_mutex_t *mutex) {
    int ret = pthread_mutex_unlock(mutex);

    mutex_forget(mutex);
    return ret;
}

/* Unlocks what a failed request has left locked. */
static void mutexes_release(void) {
    int me = (int)gettid();

    while (self.mutexes) {
        pthread_mutex_t *mutex = self.mutex[--self.mutexes];

        if (mutex->__data.__owner == me)
            pthread_mutex_unlock(mutex);
    }
}

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

/* ---- Shards --------------------------------------------------------------------------------------- */

static void shard_select(unsigned int number) {
    domain = domains[number];
    shard = vmsrs_root(domain);
}

/* An item's lock is its shard's domain, held to the end of the request. */
void item_lock(uint32_t hv) {
    unsigned int number = shard_of(hv);

    if (!(self.held & 1u << number)) {
        int code = vmsrs_enter(self.request, domains[number]);

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

/* Makes `shard` the sum of all shards, for statistics. What is written there is lost. */
static void shards_sum(void) {
    memset(&sum, 0, sizeof(sum));
    for (unsigned int number = 0; number < count; number++) {
        struct shard *one = vmsrs_root(domains[number]);

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
        struct shard *one = vmsrs_root(domains[number]);

        memset(one->stats, 0, sizeof(one->stats));
    }
    memset(sum.stats, 0, sizeof(sum.stats));
}

/* ---- Regions for values that are read ------------------------------------------------------------- */

/*
 * Items outside of domains lie in regions of their own, each between two pages that nobody can touch: a
 * length that is wrong while a value is read costs its connection and nothing else. A thread keeps those
 * that it has used; what large values have left there goes back to the kernel.
 */
struct region {
    struct region *next;
};

enum { PAGE = 4096, REGION_KEPT = 64 * 1024 };

static __thread struct region *regions;

static size_t region_size(void) {
    return ((size_t)settings.item_size_max + 2 * PAGE) / PAGE * PAGE;
}

static void *region_take(void) {
    struct region *region = regions;
    char *start;

    if (region) {
        regions = region->next;
        self.region = region;
        return region;
    }
    start = mmap(NULL, region_size() + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start == MAP_FAILED)
        return NULL;
    if (mprotect(start + PAGE, region_size(), PROT_READ | PROT_WRITE)) {
        munmap(start, region_size() + 2 * PAGE);
        return NULL;
    }
    self.region = start + PAGE;
    return self.region;
}

static void region_give(struct region *region) {
    region->next = regions;
    regions = region;
}

void item_outside_free(item *it) {
    if (it->nbytes > REGION_KEPT)
        madvise((char *)it + PAGE, region_size() - PAGE, MADV_DONTNEED);
    region_give((struct region *)it);
}

/* ---- Requests ------------------------------------------------------------------------------------- */

/* What a request holds. */
enum holds { HOLDS_ONE, HOLDS_SOME, HOLDS_ALL };

struct call {
    enum holds holds;
    uint32_t some; /* shards, a bit for each */
    int (*function)(void *argument);
    void *argument;
};

static int call(vmsrs_request *request, void *argument) {
    struct call *call = argument;

    self.request = request;
    if (call->holds != HOLDS_ONE && call->some) {
        const vmsrs_domain *wanted[SHARDS_MAX];
        size_t length = 0;
        int code;

        for (unsigned int number = 0; number < count; number++) {
            if (call->some & 1u << number)
                wanted[length++] = domains[number];
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
    self.mutexes = 0;
    self.region = NULL;
    code = vmsrs_run_with(domain, NULL, call, what, result);
    if (code != VMSRS_OK) {
        mutexes_release();
        if (self.region)
            region_give(self.region);
    }
    self.request = NULL;
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

static int run_one(unsigned int number, int (*function)(void *argument), void *argument, int *result) {
    struct call what = {HOLDS_ONE, 1u << number, function, argument};

    return run(domains[number], &what, result);
}

static int run_some(enum holds holds, uint32_t some, int (*function)(void *argument), void *argument, int *result) {
    struct call what = {holds, some, function, argument};

    return run(own_domain(), &what, result);
}

int shards_each(int (*function)(void *argument), void *argument) {
    int all = 0;

    for (unsigned int number = 0; number < count; number++) {
        int result = 0;

        /* One that fails is tried again with the next round of whoever calls this. */
        if (run_one(number, function, argument, &result) == VMSRS_OK)
            all += result;
    }
    return all;
}

/* ---- Commands ------------------------------------------------------------------------------------- */

struct command {
    conn *c;
    char *text;
    void (*with_text)(conn *c, char *text);
    void (*without)(conn *c);
};

static int command_run(void *argument) {
    struct command *command = argument;

    if (command->with_text)
        command->with_text(command->c, command->text);
    else
        command->without(command->c);
    return 0;
}

/* Makes the connection what it was before a failed request. */
static void conn_restore(conn *c, const conn *before) {
    mc_resp *next = before->resp_head ? before->resp->next : c->resp_head;
    mc_resp *last = c->resp;

    memcpy(c, before, sizeof(*c));
    if (c->resp)
        c->resp->next = NULL;
    /* Responses that the request began go back; what they were to free may be freed already. */
    while (next) {
        mc_resp *resp = next;

        next = resp == last ? NULL : resp->next;
        resp->next = NULL;
        resp->item = NULL;
        resp->write_and_free = NULL;
        resp_finish(c, resp);
        c->resp_head = before->resp_head;
        c->resp = before->resp;
    }
}

/* Tells the client. What it has sent of the command beyond this line would be taken for commands. */
static void conn_failed(conn *c, int code, bool in_step) {
    char text[160];
    vmsrs_failure failure;

    if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK)
        snprintf(text, sizeof(text), "SERVER_ERROR request failed: %s%s%.60s, incident %llu",
                 vmsrs_kind_name(failure.kind), failure.message[0] ? ": " : "", failure.message,
                 (unsigned long long)failure.incident);
    else
        snprintf(text, sizeof(text), "SERVER_ERROR %s", vmsrs_strerror(code));
    if (!c->resp && !resp_start(c)) {
        conn_set_state(c, conn_closing);
        return;
    }
    if (c->resp->tosend && !resp_start(c)) {
        conn_set_state(c, conn_closing);
        return;
    }
    out_of_memory(c, text);
    if (!in_step) {
        c->close_after_write = true;
        conn_set_state(c, conn_mwrite);
    }
}

/* The words of a line, without changing it. */
static const char *word(const char **at, size_t *length) {
    const char *start;

    while (**at == ' ')
        ++*at;
    start = *at;
    while (**at && **at != ' ')
        ++*at;
    *length = (size_t)(*at - start);
    return start;
}

static bool is(const char *text, size_t length, const char *name) {
    return length == strlen(name) && !memcmp(text, name, length);
}

/* Commands that hand the connection to another thread, stop threads or end the process: not requests. */
static bool is_outside(const char *name, size_t length) {
    static const char *const names[] = {"shutdown", "watch", "lru", "lru_crawler", "slabs", "cache_memlimit", "misbehave"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (is(name, length, names[i]))
            return true;
    }
    return false;
}

void request_line(conn *c, char *line, void (*process)(conn *c, char *line)) {
    struct command command = {.c = c, .text = line, .with_text = process};
    const char *at = line, *name, *key, *next;
    size_t name_length, key_length, next_length;
    bool stores = false;
    uint32_t some = 0;
    conn before;
    int code, result;

    name = word(&at, &name_length);
    if (is_outside(name, name_length)) {
        process(c, line);
        return;
    }
    memcpy(&before, c, sizeof(before));
    key = word(&at, &key_length);
    if (name_length == 2 && name[0] == 'm') {
        stores = name[1] == 's';
        /* A key in base 64: its shard is known once it is decoded. */
        if (strstr(at, " b"))
            key_length = 0;
    } else if (is(name, name_length, "stats")) {
        code = run_some(HOLDS_ALL, (1u << count) - 1, command_run, &command, &result);
        goto done;
    } else if (name_length >= 3 && name[0] == 'g') {
        if (name[1] == 'a')
            key = word(&at, &key_length);
        /* Several keys: their shards are entered in an order that is the same for all. */
        next = word(&at, &next_length);
        if (next_length) {
            some = 1u << shard_of(hash(key, key_length));
            for (; next_length; next = word(&at, &next_length))
                some |= 1u << shard_of(hash(next, next_length));
            if (some & (some - 1)) {
                code = run_some(HOLDS_SOME, some, command_run, &command, &result);
                goto done;
            }
        }
    } else {
        stores = is(name, name_length, "set") || is(name, name_length, "add") || is(name, name_length, "replace") ||
                 is(name, name_length, "append") || is(name, name_length, "prepend") || is(name, name_length, "cas");
        if (!stores && !is(name, name_length, "incr") && !is(name, name_length, "decr") &&
            !is(name, name_length, "delete") && !is(name, name_length, "touch"))
            key_length = 0;
    }
    if (key_length && key_length <= KEY_MAX_LENGTH)
        code = run_one(shard_of(hash(key, key_length)), command_run, &command, &result);
    else
        code = run_some(HOLDS_SOME, 0, command_run, &command, &result);
done:
    if (code != VMSRS_OK) {
        conn_restore(c, &before);
        conn_failed(c, code, !stores);
    }
}

void request_binary(conn *c, char *extras, void (*dispatch)(conn *c, char *extras)) {
    struct command command = {.c = c, .text = extras, .with_text = dispatch};
    size_t length = c->binary_header.request.keylen;
    conn before;
    int code, result;

    memcpy(&before, c, sizeof(before));
    if (c->cmd == PROTOCOL_BINARY_CMD_STAT)
        code = run_some(HOLDS_ALL, (1u << count) - 1, command_run, &command, &result);
    else if (length && length <= KEY_MAX_LENGTH)
        code = run_one(shard_of(hash(c->rcurr - length, length)), command_run, &command, &result);
    else
        code = run_some(HOLDS_SOME, 0, command_run, &command, &result);
    if (code != VMSRS_OK) {
        conn_restore(c, &before);
        conn_failed(c, code, false);
    }
}

void request_value(conn *c, void (*complete)(conn *c)) {
    struct command command = {.c = c, .without = complete};
    item *outside = c->item;
    conn before;
    int code, result;

    memcpy(&before, c, sizeof(before));
    code = run_one(shard_of(hash(ITEM_key(outside), outside->nkey)), command_run, &command, &result);
    if (code != VMSRS_OK)
        conn_restore(c, &before);
    c->item = NULL;
    c->item_malloced = false;
    if (code != VMSRS_OK) {
        c->set_stale = false;
        c->mset_res = false;
        conn_failed(c, code, true);
    }
    /* The request has freed nothing outside of domains, so that this is right however it ended. */
    item_outside_free(outside);
}

struct copy {
    conn *c;
    int length;
};

static int copy_run(void *argument) {
    const struct copy *copy = argument;

    memmove(copy->c->ritem, copy->c->rcurr, copy->length);
    return 0;
}

bool request_copy(conn *c, int length) {
    struct copy copy = {c, length};
    int result, code;

    code = run_some(HOLDS_SOME, 0, copy_run, &copy, &result);
    if (code != VMSRS_OK)
        conn_failed(c, code, false);
    return code == VMSRS_OK;
}

/* ---- Items ---------------------------------------------------------------------------------------- */

static bool in_domain(const void *address) {
    return (uintptr_t)address >= DOMAINS_START && (uintptr_t)address < DOMAINS_END;
}

bool item_is_outside(const void *it) {
    return self.request && !in_domain(it);
}

static size_t item_size(size_t nkey, unsigned int flags, int nbytes) {
    return sizeof(item) + nkey + 1 + (flags ? sizeof(flags) : 0) + (size_t)nbytes +
           (settings.use_cas ? sizeof(uint64_t) : 0);
}

item *item_outside(conn *c, const char *key, size_t nkey, unsigned int flags, rel_time_t exptime, int nbytes) {
    size_t size;
    item *it;

    if (nbytes < 2 || !item_size_ok(nkey, (int)flags, nbytes))
        return NULL;
    size = item_size(nkey, flags, nbytes);
    it = region_take();
    if (!it)
        return NULL;
    memset(it, 0, sizeof(*it));
    it->refcount = 1;
    it->slabs_clsid = (uint8_t)slabs_clsid(size);
    it->it_flags = (uint16_t)((settings.use_cas ? ITEM_CAS : 0) | (flags ? ITEM_CFLAGS : 0));
    it->nkey = (uint8_t)nkey;
    it->nbytes = nbytes;
    it->exptime = exptime;
    memcpy(ITEM_key(it), key, nkey);
    ITEM_key(it)[nkey] = 0;
    if (flags)
        memcpy(ITEM_suffix(it), &flags, sizeof(flags));
    c->item_malloced = true;
    return it;
}

/* Copies the value of an item outside into an item of chunks. */
static bool fill_chunks(item *it, const item *outside) {
    const char *from = ITEM_data(outside);
    int left = outside->nbytes;
    item_chunk *chunk = (item_chunk *)ITEM_schunk(it);

    while (left) {
        int room = chunk->size - chunk->used;
        int step = room < left ? room : left;

        if (!step) {
            chunk = do_item_alloc_chunk(chunk, (size_t)left);
            if (!chunk)
                return false;
            continue;
        }
        memcpy(chunk->data + chunk->used, from, (size_t)step);
        chunk->used += step;
        from += step;
        left -= step;
    }
    return true;
}

/*
 * A set whose item keeps its size overwrites it: one or two pages are written instead of those of two
 * items, their neighbours in the list and the index. It stays where it is in its list and counts as active, or
 * moves once a minute, as for a hit.
 */
static bool overwrite(item *old, const item *it, conn *c) {
    const unsigned int shape = ITEM_CAS | ITEM_CFLAGS | ITEM_CHUNKED;

    if (old->nbytes != it->nbytes || ((old->it_flags ^ it->it_flags) & shape) || (old->it_flags & ITEM_CHUNKED) ||
        item_refs(old) != 2)
        return false;
    item_stats_sizes_remove(old);
    old->it_flags &= (uint16_t)~(ITEM_TOKEN_SENT | ITEM_STALE | ITEM_KEY_BINARY | ITEM_FETCHED | ITEM_ACTIVE);
    old->it_flags |= it->it_flags & ITEM_KEY_BINARY;
    if (settings.lru_segmented)
        old->it_flags |= ITEM_ACTIVE;
    else
        do_item_update(old);
    old->exptime = it->exptime;
    old->time = current_time;
    ITEM_set_cas(old, settings.use_cas ? get_cas_id() : 0);
    item_stats_sizes_add(old);
    if (it->it_flags & ITEM_CFLAGS)
        memcpy(ITEM_suffix(old), ITEM_suffix(it), sizeof(uint32_t));
    memcpy(ITEM_data(old), ITEM_data(it), (size_t)it->nbytes);
    c->cas = ITEM_get_cas(old);
    return true;
}

enum store_item_type item_store_outside(item *outside, int comm, conn *c, uint32_t hv) {
    enum store_item_type ret;
    uint32_t flags = 0;
    item *it;

    if (comm == NREAD_SET && ITEM_get_cas(outside) == 0) {
        item *old = do_item_get(ITEM_key(outside), outside->nkey, hv, c, DONT_UPDATE);
        bool done = old && overwrite(old, outside, c);

        if (old)
            do_item_remove(old);
        if (done)
            return STORED;
    }
    if (outside->it_flags & ITEM_CFLAGS)
        memcpy(&flags, ITEM_suffix(outside), sizeof(flags));
    it = do_item_alloc(ITEM_key(outside), outside->nkey, flags, outside->exptime, outside->nbytes);
    if (it && (it->it_flags & ITEM_CHUNKED) && !fill_chunks(it, outside)) {
        do_item_remove(it);
        it = NULL;
    }
    if (!it) {
        /* The old value must not be taken for the new one. */
        item *old = comm == NREAD_SET ? do_item_get(ITEM_key(outside), outside->nkey, hv, c, DONT_UPDATE) : NULL;

        if (old) {
            do_item_unlink(old, hv);
            do_item_remove(old);
        }
        pthread_mutex_lock(&c->thread->stats.mutex);
        c->thread->stats.store_no_memory++;
        pthread_mutex_unlock(&c->thread->stats.mutex);
        return NO_MEMORY;
    }
    if (!(it->it_flags & ITEM_CHUNKED))
        memcpy(ITEM_data(it), ITEM_data(outside), (size_t)outside->nbytes);
    it->it_flags |= outside->it_flags & ITEM_KEY_BINARY;
    ITEM_set_cas(it, ITEM_get_cas(outside));
    ret = do_store_item(it, comm, c, hv);
    do_item_remove(it);
    return ret;
}

/* Copies so many bytes of an item of chunks. */
static void copy_chunks(char *to, item *it, int left) {
    item_chunk *chunk = (item_chunk *)ITEM_schunk(it);

    for (; chunk && left; chunk = chunk->next) {
        int step = chunk->used < left ? chunk->used : left;

        memcpy(to, chunk->data, (size_t)step);
        to += step;
        left -= step;
    }
}

void item_copy_out(mc_resp *resp, item *it) {
    size_t length = 0, room = sizeof(resp->wbuf), used = 0;
    char *to;

    for (unsigned int i = 0; i < resp->iovcnt; i++) {
        const struct iovec *part = &resp->iov[i];

        if (in_domain(part->iov_base))
            length += part->iov_len;
        else if ((char *)part->iov_base >= resp->wbuf && (char *)part->iov_base < resp->wbuf + room)
            used = (size_t)((char *)part->iov_base - resp->wbuf) + part->iov_len;
    }
    /* What is small is sent from the response itself. */
    if (length <= room - used) {
        to = resp->wbuf + used;
    } else {
        to = malloc(length);
        if (!to)
            vmsrs_fail("no memory for a response");
        resp->write_and_free = to;
    }
    for (unsigned int i = 0; i < resp->iovcnt; i++) {
        struct iovec *part = &resp->iov[i];

        if (!in_domain(part->iov_base))
            continue;
        if (resp->chunked_data_iov && resp->chunked_data_iov == i)
            copy_chunks(to, part->iov_base, (int)part->iov_len);
        else
            memcpy(to, part->iov_base, part->iov_len);
        part->iov_base = to;
        to += part->iov_len;
    }
    resp->chunked_data_iov = 0;
    resp->chunked_total = 0;
    do_item_remove(it);
}

/* ---- Start ---------------------------------------------------------------------------------------- */

/* Frees what an earlier process has left in the domain. */
static void clear(vmsrs_request *request, struct shard *old) {
    unsigned int freed = 0;

    for (unsigned int i = 0; i < POWER_LARGEST; i++) {
        while (old->lists[i].head) {
            item *it = old->lists[i].head;
            item_chunk *chunk = NULL;

            old->lists[i].head = it->next;
            if (it->it_flags & ITEM_CHUNKED)
                chunk = ((item_chunk *)ITEM_schunk(it))->next;
            while (chunk) {
                item_chunk *next = chunk->next;

                vmsrs_free(own, chunk);
                chunk = next;
            }
            vmsrs_free(own, it);
            if (++freed % 256 == 0 && vmsrs_commit(request, 0) != VMSRS_OK)
                vmsrs_fail("cannot commit");
        }
    }
    for (unsigned int i = 0; i < SEGMENTS_MAX && old->segments[i]; i++)
        vmsrs_free(own, old->segments[i]);
    vmsrs_free(own, old);
}

static int shard_make(vmsrs_request *request, void *argument) {
    unsigned int segments = *(unsigned int *)argument;
    struct shard *old = vmsrs_root(own), *made;

    if (old)
        clear(request, old);
    made = vmsrs_alloc_aligned(own, sizeof(*made), 4096);
    if (!made || vmsrs_set_root(own, made) != VMSRS_OK)
        return -1;
    memset(made, 0, sizeof(*made));
    for (unsigned int i = 0; i < segments; i++) {
        made->segments[i] = vmsrs_alloc_zeroed(own, SEGMENT_BUCKETS * sizeof(item *));
        if (!made->segments[i])
            return -1;
    }
    made->buckets = segments * SEGMENT_BUCKETS;
    made->level = made->buckets;
    return 0;
}

static void die(const char *what, int code) {
    fprintf(stderr, "%s: %s\n", what, vmsrs_strerror(code));
    exit(EXIT_FAILURE);
}

/*
 * Domains outlive the process, and a process can neither drop them nor tell whether another one uses them.
 * So servers share a few names for their apps, and each takes one that no other has.
 */
static void open_app(void) {
    char path[64], name[32];

    for (unsigned int i = 0; i < 48; i++) {
        int file;

        snprintf(path, sizeof(path), "/tmp/memcached-vmsrs-%u-%u.lock", (unsigned int)geteuid(), i);
        file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file >= 0 && !flock(file, LOCK_EX | LOCK_NB)) {
            int code;

            snprintf(name, sizeof(name), "memcached-%u", i);
            code = vmsrs_open(name, &app);
            if (code != VMSRS_OK)
                die(name, code);
            return;
        }
        if (file >= 0)
            close(file);
    }
    die("too many servers", VMSRS_ELIMIT);
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
    open_app();
    for (unsigned int number = 0; number < count; number++) {
        char key[32];
        int length = snprintf(key, sizeof(key), "shard %u", number), result = 0, code;

        code = vmsrs_domain_open(app, key, (size_t)length, &domains[number]);
        own = domains[number];
        if (code == VMSRS_OK)
            code = vmsrs_run(own, shard_make, &segments, &result);
        if (code != VMSRS_OK || result)
            die(key, code == VMSRS_OK ? VMSRS_ENOMEM : code);
    }
    own = NULL;
}

/* ---- Blocks, instead of slabs: slabs.h ------------------------------------------------------------ */

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
    uint64_t share = (uint64_t)settings.slab_page_size / count;
    item *it;

    if (id < POWER_SMALLEST || id > largest)
        return NULL;
    /* Each class may have a page, whatever the limit, as with slabs: it could evict nothing otherwise. */
    if (limit && shard->used_bytes + class->size > limit / count && shard->used[id] &&
        ((uint64_t)shard->used[id] + 1) * class->size > share)
        return NULL;
    it = vmsrs_alloc(domain, size);
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
    vmsrs_free(domain, block);
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

/* ---- Index: assoc.h ------------------------------------------------------------------------------- */

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
        item **segment = vmsrs_alloc_zeroed(domain, SEGMENT_BUCKETS * sizeof(item *));

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
