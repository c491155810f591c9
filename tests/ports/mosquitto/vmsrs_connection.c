// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * Connections: sockets are read and written outside of requests. What a request sends is sent once it is committed, and what
 * it closes is closed then.
 */
#include "vmsrs_broker.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "memory_mosq.h"
#include "mqtt_protocol.h"
#include "packet_mosq.h"
#include "sys_tree.h"

#undef in_packet
#undef last_msg_in

/* Bytes that could not be sent at once. */
struct output {
    struct output *next;
    size_t length;
    size_t sent;
    uint8_t command;
    uint8_t bytes[];
};

/* A packet that the request sends. */
struct order {
    struct connection *connection;
    struct mosquitto__packet *packet;
};

/* That of contexts without one. */
static struct connection nobody = {.sock = INVALID_SOCKET, .in_packet.remaining_mult = 1};
/* For the next context. */
static struct connection *spare;
/* Closed, and not freed yet. */
static struct connection *closed;

void connection_prepare(void) {
    if (!spare)
        spare = calloc(1, sizeof(*spare));
}

struct connection *connection_for(mosq_sock_t sock) {
    if (sock == INVALID_SOCKET)
        return &nobody;
    if (!spare)
        vmsrs_fail("no memory for a connection");
    memset(spare, 0, sizeof(*spare));
    spare->ident = id_client;
    spare->sock = sock;
    spare->in_packet.remaining_mult = 1;
    return spare;
}

int connection_accept(mosq_sock_t listener) {
    int sock = accept(listener, NULL, 0);

    /* Closed if the request fails. */
    if (sock >= 0 && vmsrs_own_fd(broker_request, sock) != VMSRS_OK) {
        close(sock);
        sock = INVALID_SOCKET;
    }
    return sock;
}

void connection_start(struct mosquitto *context) {
    spare->context = context;
    spare = NULL;
}

/* ---- What a request sends and closes, once it is committed ----------------------------------------- */

static void packet_send(struct connection *connection, const struct mosquitto__packet *packet);

static void send_order(void *argument) {
    const struct order *order = argument;

    packet_send(order->connection, order->packet);
}

static void order(struct connection *connection, struct mosquitto__packet *packet) {
    struct order *one = vmsrs_arena_alloc(broker_request, sizeof(*one));

    if (!one)
        vmsrs_fail("too much to send");
    *one = (struct order){connection, packet};
    if (vmsrs_on_commit(broker_request, send_order, one) != VMSRS_OK)
        vmsrs_fail("too much to send");
}

static int pending(const struct connection *connection) {
    return connection->serial == broker_serial ? connection->pending : 0;
}

int connection_outputs(const struct mosquitto *context) {
    return context->conn->outputs + pending(context->conn);
}

bool connection_is_behind(const struct mosquitto *context) {
    return context->conn->outputs > 0;
}

int packet__queue(struct mosquitto *context, struct mosquitto__packet *packet) {
    struct connection *connection = context->conn;

    if (connection == &nobody)
        return MOSQ_ERR_NO_CONN;
    if (broker_in_request && db.config->max_queued_messages > 0 &&
        connection_outputs(context) >= db.config->max_queued_messages) {
        if (!context->is_dropping) {
            context->is_dropping = true;
            log__printf(NULL, MOSQ_LOG_NOTICE, "Outgoing messages are being dropped for client %s.", context->id);
        }
        G_MSGS_DROPPED_INC();
        return MOSQ_ERR_SUCCESS;
    }
    if (broker_in_request) {
        connection->pending = pending(connection) + 1;
        connection->serial = broker_serial;
        order(connection, packet);
    } else {
        packet_send(connection, packet);
        mosquitto__free(packet->payload);
        mosquitto__free(packet);
    }
    return MOSQ_ERR_SUCCESS;
}

static void close_socket(void *argument) {
    struct connection *connection = argument;

    close(connection->sock);
    connection->sock = INVALID_SOCKET;
    connection->context = NULL;
    connection->broken = true;
    connection->closed = true;
    /* One that was refused in the request that accepted it is still the spare one. */
    if (connection == spare)
        return;
    connection->next_closed = closed;
    closed = connection;
}

void connection_close(struct mosquitto *context) {
    struct connection *connection = context->conn;

    context->conn = &nobody;
    if (connection == &nobody)
        return;
    if (!broker_in_request)
        close_socket(connection);
    else if (vmsrs_on_commit(broker_request, close_socket, connection) != VMSRS_OK)
        vmsrs_fail("too much to close");
}

/* ---- Sockets -------------------------------------------------------------------------------------- */

/* Forgets what waits. */
static void outputs_drop(struct connection *connection) {
    while (connection->first) {
        struct output *output = connection->first;

        connection->first = output->next;
        free(output);
    }
    connection->last = NULL;
    connection->outputs = 0;
}

/* Sends bytes; returns how many. */
static size_t send_some(struct connection *connection, const uint8_t *bytes, size_t length) {
    size_t sent = 0;

    while (sent < length) {
        ssize_t count = write(connection->sock, bytes + sent, length - sent);

        if (count > 0) {
            G_BYTES_SENT_INC(count);
            sent += (size_t)count;
        } else if (errno != EINTR) {
            /* The loop gets an event for what has ended. */
            connection->broken = errno != EAGAIN && errno != EWOULDBLOCK;
            break;
        }
    }
    return sent;
}

static void count_sent(uint8_t command) {
    G_MSGS_SENT_INC(1);
    if ((command & 0xf6) == CMD_PUBLISH)
        G_PUB_MSGS_SENT_INC(1);
}

void connection_write(struct connection *connection) {
    while (connection->first && !connection->broken) {
        struct output *output = connection->first;

        output->sent += send_some(connection, output->bytes + output->sent, output->length - output->sent);
        if (output->sent < output->length)
            break;
        count_sent(output->command);
        connection->first = output->next;
        if (!connection->first)
            connection->last = NULL;
        connection->outputs--;
        free(output);
    }
    if (connection->broken)
        outputs_drop(connection);
    mux_wants_out(connection, connection->first != NULL);
}

/* Sends a packet, or keeps it. */
static void packet_send(struct connection *connection, const struct mosquitto__packet *packet) {
    struct output *output;
    size_t sent = 0;

    if (connection->broken)
        return;
    if (!connection->first) {
        sent = send_some(connection, packet->payload, packet->packet_length);
        if (sent == packet->packet_length)
            count_sent(packet->command);
        if (sent == packet->packet_length || connection->broken)
            return;
    }
    output = malloc(sizeof(*output) + packet->packet_length);
    if (!output) {
        /* What follows would be taken for its end. */
        shutdown(connection->sock, SHUT_RDWR);
        connection->broken = true;
        return;
    }
    output->next = NULL;
    output->length = packet->packet_length;
    output->sent = sent;
    output->command = packet->command;
    memcpy(output->bytes, packet->payload, packet->packet_length);
    if (connection->last)
        connection->last->next = output;
    else
        connection->first = output;
    connection->last = output;
    connection->outputs++;
    mux_wants_out(connection, true);
}

void connection_abandon(struct connection *connection) {
    if (connection == &nobody)
        return;
    mux_forget(connection);
    shutdown(connection->sock, SHUT_RDWR);
    outputs_drop(connection);
    connection->broken = true;
    connection->closed = true;
}

void connections_free(void) {
    while (closed) {
        struct connection *connection = closed;

        closed = connection->next_closed;
        outputs_drop(connection);
        packet__cleanup(&connection->in_packet);
        free(connection);
    }
}
