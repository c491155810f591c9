/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the files of the port share; see vmsrs_port.h for what redis' sources call. */
#ifndef VMSRS_KEYSPACE_H
#define VMSRS_KEYSPACE_H

#include "server.h"

#include "vmsrs_alloc.h"
#include "vmsrs_inside.h"

/* ---- vmsrs_reply.c */

/* A request begins, for this client or for the server itself. */
void replies_begin(client *to);
/* Gives clients what the committed request has replied to them. */
void replies_commit(void);
/* Forgets it. With `close`, clients that were to get something are closed. */
void replies_discard(bool close);

/* Of networking.c. */
void _addReplyToBufferOrList(client *c, const char *s, size_t len);

/* ---- Functions of redis' that are requests; edit.pl has given them these names */

void expire_inside(int type);
void serve_blocked_inside(void);
int evict_inside(void);
void resize_inside(int dbid);
int rehash_inside(int dbid);
void load_inside(void);

#endif
