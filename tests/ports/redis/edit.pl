#!/usr/bin/perl
# SPDX-License-Identifier: Apache-2.0 OR MIT
#
# edit.pl FOLDER: edits the sources of redis 7.0 in FOLDER so that they call what vmsrs_port.h declares.
#
# common/Edit.pm says how.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../common";
use Edit;

sources(shift);

# Puts lines at the start of a function.
sub first_in {
    my ($function, $lines) = @_;
    within($function, qr/\A([^{]*\{)/, sub { "$1\n$lines" });
}

# Lets a function be called by our one of this name.
sub is_inside {
    my ($function, $name) = @_;
    all(qr/^(void|int) \Q$function\E\((?=[^;{]*\)\s*\{)/m, sub { "$1 $name(" });
}

in_file('src/Makefile');
all(qr/^FINAL_LIBS=-lm\n/m, "FINAL_LIBS=\$(PORT_LIBS) -lm\n");

# ---- Memory: blocks of the keyspace are in the domain
in_file('src/zmalloc.h');
all(qr/^#define zmalloc_size\(p\) malloc_usable_size\(p\)/m, "#include \"vmsrs_alloc.h\"\n#define zmalloc_size(p) port_size(p)");
in_file('src/zmalloc.c');
all(qr/(?=^#define update_zmalloc_stat_alloc)/m, sub { <<'END' });
#define malloc(size) port_malloc(size)
#define calloc(count,size) port_calloc(count,size)
#define realloc(ptr,size) port_realloc(ptr,size)
#define free(ptr) port_free(ptr)

END
all(qr/(?=^size_t zmalloc_used_memory\()/m, sub { <<'END' });
void zmalloc_set_used_memory(size_t used) {
    atomicSet(used_memory, used);
}

END
in_file('src/server.h');
all(qr/^#include "zmalloc\.h"[^\n]*\n/m, sub { "$&#include \"vmsrs_port.h\"\n" });

# What is not the keyspace's, though a command may allocate it
in_file('src/adlist.c');
all(qr/\bzmalloc\(/, 'port_zmalloc_outside(');
all(qr/^#include "zmalloc\.h"\n/m, sub { "$&#include \"vmsrs_port.h\"\n" });
in_file('src/dict.c');
all(qr/^#include "zmalloc\.h"\n/m, sub { "$&#include \"vmsrs_port.h\"\n" });
first_in($_, "    PORT_BESIDE(d);\n") for qw(dictAddRaw _dictExpand);
within('_dictRehashStep', qr/d->pauserehash == 0/, 'd->pauserehash == 0 && port_can_write(d)');
in_file('src/server.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(incrementErrorCount alsoPropagate updateCommandLatencyHistogram);
in_file('src/blocked.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(blockForKeys signalKeyAsReady updateStatsOnUnblock);
within('signalKeyAsReady', qr/(?=^    rl = zmalloc\()/m, "    key = port_key(key);\n");
in_file('src/networking.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(getClientPeerId getClientSockname closeClientOnOutputBufferLimitReached);
in_file('src/rdb.c');
first_in('rdbFunctionLoad', "    PORT_OUTSIDE;\n");
in_file('src/timeout.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(addClientToTimeoutTable removeClientFromTimeoutTable);
in_file('src/tracking.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(trackingInvalidateKey trackingInvalidateKeysOnFlush);
in_file('src/notify.c');
first_in('notifyKeyspaceEvent', "    PORT_OUTSIDE;\n");
in_file('src/latency.c');
first_in('latencyAddSample', "    PORT_OUTSIDE;\n");
in_file('src/evict.c');
first_in($_, "    PORT_OUTSIDE;\n") for qw(evictionPoolPopulate startEvictionTimeProc);
is_inside('performEvictions', 'evict_inside');

# Nothing of the keyspace is freed by other threads
in_file('src/lazyfree.c');
within('freeObjAsync', qr/free_effort > LAZYFREE_THRESHOLD && obj->refcount == 1/, '0 && free_effort');
in_file('src/db.c');
within('emptyDbStructure', qr/\bif \(async\)/, 'if (0 && async)');

# ---- The keyspace: its values are its own
first_in($_, "    val = port_own(val);\n") for qw(dbAdd dbOverwrite);
first_in('setKey', "    robj *given = val;\n\n    val = port_own(val);\n");
within('setKey', qr/\bincrRefCount\(val\);/, 'if (val == given) incrRefCount(val);');
in_file('src/t_string.c');
within('appendCommand', qr/^        incrRefCount\(c->argv\[2\]\);\n/m, '');

# A read that writes costs a page: the time of the last access is kept to some seconds.
in_file('src/db.c');
within('lookupKey', qr/\bval->lru = LRU_CLOCK\(\);/, 'port_touch(val, LRU_CLOCK());');
in_file('src/expire.c');
within('activeExpireCycle', qr/\bdb->avg_ttl = 0;/, 'if (db->avg_ttl) db->avg_ttl = 0;');
is_inside('activeExpireCycle', 'expire_inside');

# ---- Requests
in_file('src/server.c');
within('call', qr/\bc->cmd->proc\(c\);/, 'port_command(c);');
is_inside('tryResizeHashTables', 'resize_inside');
is_inside('incrementallyRehash', 'rehash_inside');
is_inside('loadDataFromDisk', 'load_inside');
moved('initServer', qr/^    for \(j = 0; j < server\.dbnum; j\+\+\) \{\n        server\.db\[j\]\.dict = .*?^    \}\n/ms,
    "static void create_databases(void)\n", "    port_open(create_databases);\n");
within('initServer', qr/^    int j;\n\n/m, '');
within('initServer', qr/^    server\.db = zmalloc\(sizeof\(redisDb\)\*server\.dbnum\);\n/m, '');
within('create_databases', qr/\A([^{]*\{\n)/, sub { "$1    int j;\n\n    server.db = zmalloc(sizeof(redisDb)*server.dbnum);\n" });
within('create_databases', qr/\bdictCreate\((?=&keylistDictType|&objectKeyPointerValueDictType)/, 'port_dict_outside(');
in_file('src/blocked.c');
is_inside('handleClientsBlockedOnKeys', 'serve_blocked_inside');
in_file('src/networking.c');
# The event loop does not run within a request.
first_in('processEventsWhileBlocked', "    if (port_inside()) return;\n");
# There is nobody to whom commands are propagated in another form.
first_in($_, "    if (port_inside()) return;\n") for qw(retainOriginalCommandVector rewriteClientCommandVector rewriteClientCommandArgument);
in_file('src/debug.c');
first_in('_serverAssert', "    port_fail(estr);\n");
within('_serverPanic', qr/^    va_end\(ap\);\n/m, "    va_end(ap);\n    port_fail(fmtmsg);\n");

# ---- Replies
in_file('src/networking.c');
within('prepareClientToWrite', qr/^    if \(!clientHasPendingReplies\(c\) && /m, '    if (!port_inside() && !clientHasPendingReplies(c) && ');
first_in('_addReplyToBufferOrList', "    if (port_inside()) {\n        port_reply(c, s, len);\n        return;\n    }\n");
within('addReplyDeferredLen', qr/(?=^    trimReplyUnusedTailSpace\(c\);)/m, "    if (port_inside()) return port_reply_later(c);\n");
within('setDeferredReply', qr/^    if \(node == NULL\) return;\n/m,
    sub { "$&    if (port_inside()) {\n        port_reply_fill(node, s, length);\n        return;\n    }\n" });

# ---- What needs a process that has the keyspace as it was: a child has it as it is
in_file('src/rdb.c');
first_in($_, "    serverLog(LL_WARNING, \"not with VMSRS\");\n    return C_ERR;\n") for qw(rdbSaveBackground);
in_file('src/aof.c');
first_in($_, "    serverLog(LL_WARNING, \"not with VMSRS\");\n    return C_ERR;\n") for qw(rewriteAppendOnlyFileBackground startAppendOnly);
in_file('src/cluster.c');
first_in('migrateCommand', "    addReplyError(c, \"not with VMSRS\");\n    return;\n");
in_file('src/replication.c');
first_in($_, "    addReplyError(c, \"not with VMSRS\");\n    return;\n") for qw(replicaofCommand syncCommand);
in_file('src/rdb.c');
within('rdbSaveDb', qr/\bdictGetSafeIterator\(/, 'dictGetIterator(');
save();
