/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* What the files of the port share; see vmsrs_port.h for what mosquitto's sources call. */
#ifndef VMSRS_BROKER_H
#define VMSRS_BROKER_H

#include "config.h"

#include "mosquitto_broker_internal.h"
#include "vmsrs_server.h"

/* ---- vmsrs_request.c */

extern const vmsrs_domain *broker_domain;
extern vmsrs_request *broker_request;
/* What is allocated is ordinary memory, also in a request. */
extern bool broker_outside;
/* Of the last request. */
extern unsigned long broker_serial;

/* Runs the function as a request. Once it is committed, what it has to send is sent, and what it has closed is closed. */
bool request_run(void (*function)(void *argument), void *argument);

static inline bool in_domain(const void *address) {
    return (uintptr_t)address >= DOMAINS_START && (uintptr_t)address < DOMAINS_END;
}

/* ---- memory_mosq.c */

/* The arena of requests: addresses that a broker of one thread has for good. */
#define ARENA_BYTES (1ul << 36)
void arena_open(void);

/* ---- vmsrs_connection.c */

/* A connection for the context that net__socket_accept() may make. */
void connection_prepare(void);
/* Begins to serve it. */
void connection_start(struct mosquitto *context);
/* Sends what waits. */
void connection_write(struct connection *connection);
/* Ends it for the client; its context keeps it, so that its number is not used again. */
void connection_abandon(struct connection *connection);
/* Frees connections that are closed: the loop knows of no more events about them. */
void connections_free(void);

/* ---- mux_epoll.c */

void mux_wants_out(struct connection *connection, bool wants);
/* No more events. */
void mux_forget(struct connection *connection);

#endif
