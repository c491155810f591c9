/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What redis' edited sources call.
 *
 * The keyspace is one domain. A command that works on it is a request, and so is each piece of work that the server does on it by
 * itself. Ordinary memory has clients, their arguments and replies, and all that `server` points to but its databases.
 */
#ifndef VMSRS_PORT_H
#define VMSRS_PORT_H

#include <stdbool.h>
#include <stddef.h>

struct client;
struct dict;
struct dictType;
struct redisObject;

/* ---- Requests */

/* Whether the thread is in one. */
bool port_inside(void);
/* Runs the function as a request that creates the databases, once. */
void port_open(void (*create)(void));
/* Runs the command of a client, as a request if it works on the keyspace. */
void port_command(struct client *client);
/* Own work of the server; each is one, or a part of the thread's. */
void tryResizeHashTables(int dbid);
int incrementallyRehash(int dbid);
void loadDataFromDisk(void);
/* Fails the request of the thread, if it has one. */
void port_fail(const char *why);

/* ---- Memory: what requests allocate is in the domain */

/* What the rest of the function allocates is ordinary memory: for what the keyspace does not own. */
#define PORT_OUTSIDE __attribute__((cleanup(port_outside_end), unused)) int port_scope = port_outside_begin()
/* The same, unless this block is in the domain itself. */
#define PORT_BESIDE(block) \
    __attribute__((cleanup(port_outside_end), unused)) int port_scope = port_beside_begin(block)
int port_outside_begin(void);
int port_beside_begin(const void *block);
void port_outside_end(int *scope);

void *port_zmalloc_outside(size_t size);
struct dict *port_dict_outside(struct dictType *type);
/* Whether what the block belongs to may be changed now. */
bool port_can_write(const void *block);
/* A value for the keyspace, in place of a client's argument; takes over nothing. */
struct redisObject *port_own(struct redisObject *value);
/* A key for what is not the keyspace's. */
struct redisObject *port_key(struct redisObject *key);
/* Notes that a value is used, if it was not lately. */
void port_touch(struct redisObject *value, unsigned int clock);

/* ---- Replies: kept apart until the request is committed */

void port_reply(struct client *client, const char *bytes, size_t length);
/* One whose bytes are told later. */
void *port_reply_later(struct client *client);
void port_reply_fill(void *reply, const char *bytes, size_t length);

#endif
