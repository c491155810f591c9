#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# edit.pl FOLDER: edits the sources of memcached 1.6 in FOLDER so that they call what vmsrs_port.h declares.
#
# common/Edit.pm says how.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../common";
use Edit;

sources(shift);

in_file('memcached.h');
all(qr/\z/ms, "\n#include \"vmsrs_port.h\"\n");

# ---- Mutexes that requests lock
all(qr/#include <pthread\.h>/ms, '#include "vmsrs_mutex.h"');
all(qr/(struct thread_stats \{\n *)pthread_mutex_t\b/ms, sub { "$1struct no_mutex" });
in_file('logger.h');
all(qr/\bpthread_mutex_t( mutex;)/ms, sub { "vmsrs_mutex_t$1" });
in_file('crawler.h');
all(qr/\bpthread_mutex_t( lock;)/ms, sub { "vmsrs_mutex_t$1" });
in_file('thread.c');
all(qr/\bpthread_mutex_t stats_lock\b[^;]*;/ms, 'vmsrs_mutex_t stats_lock;');

# ---- Lists and their statistics: of the shard that the request works on
in_file('items.c');
all(qr/^static item \*heads\[LARGEST_ID\];\nstatic item \*tails\[LARGEST_ID\];\n/ms, '');
all(qr/^static itemstats_t itemstats\[LARGEST_ID\];\n/ms,
    "_Static_assert(sizeof(itemstats_t) <= LIST_STATS * sizeof(uint64_t), \"LIST_STATS\");\n"
    . "#define itemstats ((itemstats_t (*)[LIST_STATS * sizeof(uint64_t) / sizeof(itemstats_t)])shard->stats)\n");
all(qr/^static unsigned int sizes\[LARGEST_ID\];\nstatic uint64_t sizes_bytes\[LARGEST_ID\];\n/ms, '');
all(qr/\bheads\[([^\[\]]*)\]/ms, sub { "shard->lists[$1].head" });
all(qr/\btails\[([^\[\]]*)\]/ms, sub { "shard->lists[$1].tail" });
all(qr/\bsizes\[([^\[\]]*)\]/ms, sub { "shard->lists[$1].size" });
all(qr/\bsizes_bytes\[([^\[\]]*)\]/ms, sub { "shard->lists[$1].bytes" });
all(qr/\bitemstats\[([^\[\]]*)\]\./ms, sub { "itemstats[$1][0]." });
all(qr/&itemstats\[([^\[\]]*)\]/ms, sub { "&itemstats[$1][0]" });
# A shard's domain is the lock of its lists.
all(qr/^ *pthread_mutex_(?:lock|unlock)\(&lru_locks\[[^;]*\]\);\n/ms, '');
# What the lists tell is summed up for statistics.
all(qr/^ *stats_state\.curr_(?:items|bytes) [-+]= [^;]*;\n/ms, '');
all(qr/^ *STATS_LOCK\(\);\n *STATS_UNLOCK\(\);\n/ms, '');
within('item_stats_reset', qr/\{\n *int i;\n.*?^\}/ms, "{\n    shards_reset_stats();\n}");
# A number that nobody need lock
within('get_cas_id', qr/\{.*^\}/ms, "{\n    return __atomic_add_fetch(&cas_id, 1, __ATOMIC_RELAXED);\n}");
# A hit on a cold item moves it at once: the request holds its lists.
within('do_item_bump', qr/!lru_bump_async\(c->thread->lru_bump_buf, it, hv\)/ms, '(do_item_update(it), false)');
without('lru_bump_async');
# What is set already is not written again.
within('do_item_bump', qr/\} else \{\n( *)it->it_flags \|= ITEM_FETCHED;/ms,
    sub { "} else {\n$1if ((it->it_flags & ITEM_FETCHED) == 0)\n$1    it->it_flags |= ITEM_FETCHED;" });
# Background work is a request for each shard.
all(qr/^(static int )lru_maintainer_juggle(\(const int slabs_clsid\) \{.*?^\}\n)/ms, sub {
    "$1lru_juggle$2\n"
    . "static int lru_juggle_shard(void *arg) {\n    return shard_needs_care(*(int *)arg) ? lru_juggle(*(int *)arg) : 0;\n}\n\n"
    . "static int lru_maintainer_juggle(int slabs_clsid) {\n"
    . "    return slabs_class_used(slabs_clsid) ? shards_each(lru_juggle_shard, &slabs_clsid) : 0;\n}\n" });
within('lru_maintainer_crawler_check', qr/shard->lists\[i\]\.size/ms, '0u');
within('lru_maintainer_thread', qr/settings\.slab_automove == 1/ms, 'false');
within('lru_maintainer_thread', qr/\bsam->init\(&settings\)/ms, 'NULL');
within('lru_maintainer_thread', qr/\bsam->free\(am\);/ms, '(void)am;');

# ---- The crawler walks a shard's list in a request
in_file('crawler.c');
without('lru_crawler_class_done');
without('item_crawl_hash');
within('do_lru_crawler_start', qr/do_get_lru_size\(sid\)/ms, '0');
within('do_lru_crawler_start', qr/do_item_linktail_q\([^;]*;/ms, '');
within('item_crawler_thread', qr/\bif \(crawler_count == -1\) \{.*\} \/\/ if crawler_count\n/ms, "crawl();\n");
within('item_crawler_thread', qr/^ *int (?:i|crawls_persleep)\b[^;]*;\n/ms, '');
all(qr/^static void \*item_crawler_thread\(void \*arg\) \{/ms, sub { <<'END' . $& });
#include "vmsrs_crawl.h"

END

# ---- Locks, and stores of what was read outside of domains
in_file('thread.c');
without($_) for qw(item_lock item_unlock item_trylock item_trylock_unlock);
all(qr/\bhv = hash\(/ms, 'hv = request_hash(');
within('item_remove', qr/(uint32_t hv;\n)/ms, sub { "$1    if (item_is_outside(item))\n        return;\n" });
within('store_item', qr/ret = (do_store_item\(item, comm, c, hv\))/ms,
    sub { "ret = item_is_outside(item) ? item_store_outside(item, comm, c, hv) : $1" });

# ---- Commands as requests
in_file('memcached.c');
within('drive_machine', qr/\bcomplete_nread\(c\)/ms, 'request_value(c, complete_nread)');
# What is read of a value that is not behind its line yet
within('drive_machine', qr/\bmemmove\(c->ritem, c->rcurr, tocopy\);/ms,
    "if (!request_copy(c, tocopy))\n                        break;");
within($_, qr/\bfree\(c->item\)/ms, 'item_outside_free(c->item)') for qw(conn_release_items reset_cmd_handler);
within($_, qr/\bfree\(resp->write_and_free\)/ms, 'response_free(resp->write_and_free)') for qw(resp_reset resp_finish);
within($_, qr/\bit->refcount\b/ms, 'item_refs(it)') for qw(do_add_delta limited_get limited_get_locked);

in_file('proto_text.c');
within('try_read_command_ascii', qr/\bprocess_command_ascii\(c, c->rcurr\)/ms,
    'cont = request_line(c, cont, process_command_ascii)');
within('process_command_ascii', qr/!resp_start\(c\)/ms, '!request_response(c)');
within($_, qr/\bitem_alloc\(/ms, 'item_outside(c, ') for qw(process_update_command process_mset_command);
within($_, qr/\bresp->item = it;/ms, 'item_copy_out(resp, it);') for qw(process_get_command process_mget_command);
within('complete_nread_ascii', qr/\bcase STORED:\n *out_string/ms, sub {
    "case NO_MEMORY:\n              out_of_memory(c, \"SERVER_ERROR out of memory storing object\");\n"
    . "              break;\n          $&" });

in_file('proto_bin.c');
within('try_read_command_binary', qr/\bdispatch_bin_command\(c, extbuf\)/ms,
    'request_binary(c, extbuf, dispatch_bin_command)');
within($_, qr/\bitem_alloc\(/ms, 'item_outside(c, ') for qw(process_bin_update process_bin_append_prepend);
within('process_bin_get_or_touch', qr/\bc->resp->item = it;/ms, 'item_copy_out(c->resp, it);');
save();
