/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* The walk of the crawler, included by crawler.c: each shard's lists from their tails, in a request. */
#ifndef VMSRS_CRAWL_H
#define VMSRS_CRAWL_H

/* So many items are looked at before what was reclaimed is committed. */
#define CRAWL_STEP 128

static int crawl_shard(void *arg) {
    bool hash_walk = *(bool *)arg;
    unsigned int steps = 0;

    for (int i = POWER_SMALLEST; i < LARGEST_ID; i++) {
        crawler *state = &crawlers[i], before = *state;
        uint32_t left = state->remaining;
        item *prev;

        if (!hash_walk && state->it_flags != 1)
            continue;
        for (item *it = shard->lists[i].tail; it != NULL; it = prev) {
            prev = it->prev;
            if (active_crawler_mod.c.c != NULL) {
                if (lru_crawler_client_getbuf(&active_crawler_mod.c) != 0)
                    return 0;
            } else if (active_crawler_mod.mod->needs_client) {
                return 0;
            }
            if (left && --left < 1)
                break;
            state->checked++;
            refcount_incr(it);
            active_crawler_mod.mod->eval(&active_crawler_mod, it, hash(ITEM_key(it), it->nkey), i);
            if (++steps % CRAWL_STEP == 0)
                shard_commit();
        }
        if (!hash_walk)
            do_item_stats_add_crawl(i, state->reclaimed - before.reclaimed, state->unfetched - before.unfetched,
                                    state->checked - before.checked);
    }
    return 0;
}

static void crawl(void) {
    bool hash_walk = crawler_count == -1;

    if (crawler_count == 0)
        return;
    pthread_mutex_unlock(&lru_crawler_lock);
    shards_each(crawl_shard, &hash_walk);
    pthread_mutex_lock(&lru_crawler_lock);
    for (int i = POWER_SMALLEST; i < LARGEST_ID; i++) {
        if (crawlers[i].it_flags != 1)
            continue;
        crawlers[i].it_flags = 0;
        if (active_crawler_mod.mod->doneclass != NULL)
            active_crawler_mod.mod->doneclass(&active_crawler_mod, i);
    }
    crawler_count = 0;
}

#endif
