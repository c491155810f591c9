/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * What mosquitto's edited sources call.
 *
 * The broker's state is one domain: contexts, sessions, the tree of subscriptions, messages. A complete packet is a request of
 * it, and so is each piece of housekeeping. Ordinary memory has sockets, what is read from them, and what is to be sent.
 */
#ifndef VMSRS_PORT_H
#define VMSRS_PORT_H

#include <stdbool.h>
#include <stddef.h>
#include <time.h>

struct output;

/* A client's socket. */
struct connection {
    int ident; /* first, as in listeners: what an event is about */
    mosq_sock_t sock;
    struct mosquitto *context;
    struct mosquitto__packet in_packet;
    time_t last_msg_in;
    struct output *first, *last; /* to be sent */
    int outputs;
    int pending; /* outputs of the request `serial` */
    unsigned long serial;
    bool wants_out; /* the event loop tells when more can be sent */
    bool broken;
    bool closed;
    struct connection *next_closed;
};

/* The members of a context that are its connection's. */
#define in_packet conn->in_packet
#define last_msg_in conn->last_msg_in

/* What the event loop writes between requests. */
struct broker_clock {
    time_t now_s;
    time_t now_real_s;
    int persistence_changes;
};

extern struct broker_clock broker_clock;
#define now_s clock->now_s
#define now_real_s clock->now_real_s
#define persistence_changes clock->persistence_changes

/* In the domain, once it is open. */
extern struct mosquitto_db *broker_db;
#define db (*broker_db)

/* ---- Start */

/* Before the domain is open, for the configuration. */
void broker_init(void);
int broker_open(struct mosquitto__config *config);

/* ---- Requests; each does nothing more if it fails. */

/* Whether the thread is in one. */
extern bool broker_in_request;

void broker_do(void (*function)(void));
/* The same, but what it allocates is ordinary memory: for what belongs to the configuration. */
void broker_do_outside(void (*function)(void));
int broker_packet(struct mosquitto *context);
/* The packet's client has a session of an earlier connection, which is this one's. */
void broker_takes_over(struct mosquitto *earlier);
void broker_sys_tree(int interval, time_t start);
void broker_tick(void);
void broker_free_disused(void);
void broker_expire_sessions(void);
void broker_send_delayed_wills(void);
void broker_reload_security(void);
void broker_log(const char *topic, const char *line);
/* The request changes a count of the configuration, which goes back if it fails. */
void broker_keep(int *count);
/* What do_disconnect() does in a request. */
void disconnect_inside(struct mosquitto *context, int reason);

/* ---- Connections */

int connection_accept(mosq_sock_t listener);
/* The connection that a new context is for. */
struct connection *connection_for(mosq_sock_t sock);
/* Closes it when the request has been committed. */
void connection_close(struct mosquitto *context);
/* Packets that wait to be sent. */
int connection_outputs(const struct mosquitto *context);
/* Whether some were waiting before this request. */
bool connection_is_behind(const struct mosquitto *context);

/* Memory of the request's arena, which is kept until the next one begins, without what earlier ones have left there; of the heap
 * where there is no request. arena_room() is for the bytes of a packet that is sent, which has a red zone behind it.
 * mosquitto__free() takes it all. */
void *arena_zeroed(size_t count, size_t size);
char *arena_strdup(const char *text);
void *arena_room(size_t length);

#endif
