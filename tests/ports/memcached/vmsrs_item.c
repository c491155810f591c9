// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Items on their way: read into a region and copied into the domain; copied out of it and sent. */
#include "vmsrs_request.h"

#include <stdlib.h>
#include <string.h>

bool item_is_outside(const void *it) {
    return in_region(it);
}

void item_outside_free(item *it) {
    region_give(it);
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
    self.region = it;
    region_uses(it, size);
    memset(it, 0, sizeof(*it));
    it->refcount = 1;
    it->slabs_clsid = (uint8_t)slabs_clsid(size);
    it->it_flags = (uint16_t)((settings.use_cas ? ITEM_CAS : 0) | (flags ? ITEM_CFLAGS : 0));
    it->nkey = (uint8_t)nkey;
    it->nbytes = nbytes;
    it->exptime = exptime;
    memcpy(ITEM_key(it), key, nkey);
    ITEM_key(it)[nkey] = 0;
    /* Whoever stores it has nothing else to know it by. */
    request_hash(key, nkey);
    if (memcmp(ITEM_key(it), key, nkey))
        vmsrs_fail("an item with another key");
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

/* Whether the new value has room in the old item, which stays in its class. */
static bool fits(const item *old, const item *it) {
    size_t size = ITEM_ntotal(it);

    return old->nbytes == it->nbytes || (slabs_clsid(size) == ITEM_clsid(old) && size <= vmsrs_usable_size(old));
}

/*
 * A set whose value fits into its item overwrites it: one or two pages are written instead of those of two
 * items, their neighbours in the list and the index. It stays where it is in its list and counts as active, or
 * moves once a minute, as for a hit.
 */
static bool overwrite(item *old, const item *it, conn *c) {
    const unsigned int shape = ITEM_CAS | ITEM_CFLAGS | ITEM_CHUNKED;

    if (((old->it_flags ^ it->it_flags) & shape) || (old->it_flags & ITEM_CHUNKED) || item_refs(old) != 1 ||
        item_is_flushed(old) || (old->exptime && old->exptime <= current_time) || !fits(old, it))
        return false;
    item_stats_sizes_remove(old);
    if (old->nbytes != it->nbytes) {
        shard->lists[old->slabs_clsid].bytes += (uint64_t)it->nbytes - (uint64_t)old->nbytes;
        old->nbytes = it->nbytes;
    }
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
        item *old = assoc_find(ITEM_key(outside), outside->nkey, hv);

        if (old && overwrite(old, outside, c)) {
            /* As do_item_get() and do_store_item() do. */
            LOGGER_LOG(c->thread->l, LOG_FETCHERS, LOGGER_ITEM_GET, NULL, 1, ITEM_key(old), old->nkey, old->nbytes,
                       ITEM_clsid(old), c->sfd);
            LOGGER_LOG(c->thread->l, LOG_MUTATIONS, LOGGER_ITEM_STORE, NULL, STORED, comm, ITEM_key(old), old->nkey,
                       old->nbytes, old->exptime, ITEM_clsid(old), c->sfd);
            return STORED;
        }
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
        c->thread->stats.store_no_memory++;
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

void response_free(void *memory) {
    if (in_region(memory))
        region_give(memory);
    else
        free(memory);
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
        to = region_take();
        if (!to)
            vmsrs_fail("no memory for a response");
        region_uses(to, length);
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

