// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Takes the place of mosquitto's: events are about connections, and each packet that is complete is a request. */
#include "vmsrs_broker.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "mux.h"
#include "packet_mosq.h"
#include "time_mosq.h"

enum { EVENTS = 1000, WAIT_MS = 100 };

static sigset_t blocked;
static struct epoll_event events[EVENTS];
static int epoll = -1;

static int control(int operation, int file, uint32_t wanted, void *about) {
    struct epoll_event event = {.events = wanted, .data.ptr = about};

    return epoll_ctl(epoll, operation, file, &event);
}

int mux_epoll__init(struct mosquitto__listener_sock *listensock, int listensock_count) {
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    sigaddset(&blocked, SIGUSR1);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGHUP);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0) {
        log__printf(NULL, MOSQ_LOG_ERR, "Error in epoll creating: %s", strerror(errno));
        return MOSQ_ERR_UNKNOWN;
    }
    for (int i = 0; i < listensock_count; i++) {
        if (control(EPOLL_CTL_ADD, listensock[i].sock, EPOLLIN, &listensock[i]) < 0) {
            log__printf(NULL, MOSQ_LOG_ERR, "Error in epoll initial registering: %s", strerror(errno));
            return MOSQ_ERR_UNKNOWN;
        }
    }
    return MOSQ_ERR_SUCCESS;
}

void mux_wants_out(struct connection *connection, bool wants) {
    if (wants == connection->wants_out || connection->closed)
        return;
    connection->wants_out = wants;
    control(EPOLL_CTL_MOD, connection->sock, wants ? EPOLLIN | EPOLLOUT : EPOLLIN, connection);
}

void mux_forget(struct connection *connection) {
    control(EPOLL_CTL_DEL, connection->sock, 0, NULL);
}

/* A connection that is closed leaves the set by itself, and packets are sent by their connections. */
int mux_epoll__add_out(struct mosquitto *context) {
    UNUSED(context);
    return MOSQ_ERR_SUCCESS;
}

int mux_epoll__remove_out(struct mosquitto *context) {
    UNUSED(context);
    return MOSQ_ERR_SUCCESS;
}

int mux_epoll__delete(struct mosquitto *context) {
    UNUSED(context);
    return MOSQ_ERR_SUCCESS;
}

int mux_epoll__add_in(struct mosquitto *context) {
    struct connection *connection = context->conn;

    connection_start(context);
    if (control(EPOLL_CTL_ADD, connection->sock, EPOLLIN, connection) < 0) {
        log__printf(NULL, MOSQ_LOG_ERR, "Error in epoll accepting: %s", strerror(errno));
        do_disconnect(context, MOSQ_ERR_ERRNO);
    }
    return MOSQ_ERR_SUCCESS;
}

struct accept {
    struct mosquitto__listener_sock *listener;
    struct mosquitto *context;
};

static void accept_one(void *argument) {
    struct accept *accept = argument;

    accept->context = net__socket_accept(accept->listener);
}

static void accept_all(struct mosquitto__listener_sock *listener) {
    struct accept accept = {listener, NULL};

    do {
        connection_prepare();
        accept.context = NULL;
        if (!request_run(accept_one, &accept))
            break;
        if (accept.context)
            mux__add_in(accept.context);
    } while (accept.context);
}

static void serve(struct connection *connection, uint32_t what) {
    int code;

    if (connection->closed)
        return;
    if (what & EPOLLOUT)
        connection_write(connection);
    if (what & EPOLLIN) {
        code = packet__read(connection->context);
        if (code && !connection->closed)
            do_disconnect(connection->context, code);
    } else if (what & (EPOLLERR | EPOLLHUP)) {
        do_disconnect(connection->context, MOSQ_ERR_CONN_LOST);
    }
}

int mux_epoll__handle(void) {
    sigset_t before;
    int count;

    sigprocmask(SIG_SETMASK, &blocked, &before);
    count = epoll_wait(epoll, events, EVENTS, WAIT_MS);
    sigprocmask(SIG_SETMASK, &before, NULL);
    db.now_s = mosquitto_time();
    db.now_real_s = time(NULL);
    if (count < 0 && errno != EINTR)
        log__printf(NULL, MOSQ_LOG_ERR, "Error in epoll waiting: %s.", strerror(errno));
    for (int i = 0; i < count; i++) {
        int ident = *(int *)events[i].data.ptr;

        if (ident == id_client)
            serve(events[i].data.ptr, events[i].events);
        else if (ident == id_listener && events[i].events & (EPOLLIN | EPOLLPRI))
            accept_all(events[i].data.ptr);
    }
    connections_free();
    return MOSQ_ERR_SUCCESS;
}

int mux_epoll__cleanup(void) {
    close(epoll);
    return MOSQ_ERR_SUCCESS;
}
