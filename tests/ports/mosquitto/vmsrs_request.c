// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The broker's requests, and what is done when one has failed. */
#include "vmsrs_broker.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "memory_mosq.h"
#include "mqtt_protocol.h"
#include "send_mosq.h"
#include "sys_tree.h"
#include "util_mosq.h"

/* The domain's root. */
struct root {
    struct mosquitto_db state;
    struct root *self;
};

struct broker_clock broker_clock;
static struct mosquitto_db before_open;
struct mosquitto_db *broker_db = &before_open;
const vmsrs_domain *broker_domain;
vmsrs_request *broker_request;
bool broker_in_request, broker_outside;
unsigned long broker_serial;

void broker_init(void) {
    memset(&before_open, 0, sizeof(before_open));
    before_open.clock = &broker_clock;
}

/* ---- How a request is run ------------------------------------------------------------------------- */

struct call {
    void (*function)(void *argument);
    void *argument;
};

static int call(vmsrs_request *request, void *argument) {
    const struct call *call = argument;
    struct root *root = vmsrs_root(broker_domain);

    /* What is written by a wrong pointer to it would be found by nobody. */
    if (broker_db != &before_open && (&root->state != broker_db || root->self != root))
        vmsrs_fail("not the broker");
    broker_request = request;
    call->function(call->argument);
    return 0;
}

static void complain(int code) {
    static bool complains;
    vmsrs_failure failure;

    /* A log that goes to a topic is a request, too. */
    if (complains)
        return;
    complains = true;
    if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK)
        log__printf(NULL, MOSQ_LOG_ERR, "Request failed: %s%s%.60s, incident %llu", vmsrs_kind_name(failure.kind),
                    failure.message[0] ? ": " : "", failure.message, (unsigned long long)failure.incident);
    else
        log__printf(NULL, MOSQ_LOG_ERR, "Request failed: %s", vmsrs_strerror(code));
    complains = false;
}

void broker_keep(int *count) {
    if (broker_in_request && vmsrs_keep(broker_request, count, sizeof(*count)) != VMSRS_OK)
        vmsrs_fail("too many counts");
}

bool request_run(void (*function)(void *argument), void *argument) {
    static const vmsrs_options options = {.flags = VMSRS_KEEP_ARENA, .arena_bytes = ARENA_BYTES};
    struct call what = {function, argument};
    int code, result;

    broker_serial++;
    broker_in_request = true;
    code = vmsrs_run_with(broker_domain, &options, call, &what, &result);
    broker_in_request = false;
    broker_request = NULL;
    if (code == VMSRS_OK)
        return true;
    complain(code);
    return false;
}

static void without_argument(void *argument) {
    (*(void (**)(void))argument)();
}

void broker_do(void (*function)(void)) {
    request_run(without_argument, &function);
}

void broker_do_outside(void (*function)(void)) {
    broker_outside = true;
    broker_do(function);
    broker_outside = false;
}

/* ---- Start ---------------------------------------------------------------------------------------- */

struct opening {
    struct mosquitto__config *config;
    struct root *root;
    int result;
};

static void open_inside(void *argument) {
    struct opening *opening = argument;
    struct root *root = vmsrs_alloc_aligned(broker_domain, sizeof(*root), 4096);

    arena_open();
    if (!root || vmsrs_set_root(broker_domain, root) != VMSRS_OK)
        vmsrs_fail("no memory for the broker");
    root->state = before_open;
    root->self = root;
    opening->root = root;
    broker_db = &root->state;
    opening->result = db__open(opening->config);
}

int broker_open(struct mosquitto__config *config) {
    static const char key[] = "broker";
    struct opening opening = {config, NULL, MOSQ_ERR_UNKNOWN};
    vmsrs_domain *domain;
    vmsrs_app *app;
    int code;

    server_open_app("mosquitto", &app);
    code = vmsrs_domain_open(app, key, sizeof(key) - 1, &domain);
    /* What an earlier process has left has its pointers to that one's configuration. */
    if (code == VMSRS_OK)
        code = vmsrs_domain_clear(&domain);
    if (code != VMSRS_OK)
        server_die(key, code);
    broker_domain = domain;
    if (!request_run(open_inside, &opening))
        exit(EXIT_FAILURE);
    return opening.result;
}

/* ---- Packets -------------------------------------------------------------------------------------- */

struct packet {
    struct mosquitto *context;
    int result;
};

static void packet_inside(void *argument) {
    struct packet *packet = argument;
    struct mosquitto__packet *in = &packet->context->in_packet;

    /* A length in it that is longer than the packet is found at the first byte. */
    if (in->payload && !(in->payload = vmsrs_input(broker_request, in->payload, in->remaining_length)))
        vmsrs_fail("a packet larger than the arena");
    packet->result = handle__packet(packet->context);
}

/* Whose session the request takes over, and whose it was when such a request has failed. */
static struct mosquitto *earlier, *failed_with;

void broker_takes_over(struct mosquitto *context) {
    earlier = context;
}

/* Its client begins anew. */
static void drop_session(void *argument) {
    struct mosquitto *context = argument;

    session_expiry__remove(context);
    will_delay__remove(context);
    context->will = NULL;
    context__add_to_disused(context);
}

/* A session that cannot be taken over twice would lock its client out. */
static void take_over_failed(void) {
    if (earlier && earlier == failed_with && earlier->sock == INVALID_SOCKET) {
        request_run(drop_session, earlier);
        failed_with = NULL;
    } else {
        failed_with = earlier;
    }
}

int broker_packet(struct mosquitto *context) {
    /* Its connection's: that lives until the end of the loop's round. */
    struct mosquitto__packet *in = &context->in_packet;
    struct packet packet = {context, MOSQ_ERR_UNKNOWN};
    uint8_t *bytes = in->payload;

    earlier = NULL;
    if (!request_run(packet_inside, &packet)) {
        in->payload = bytes;
        if (earlier)
            take_over_failed();
        if (context->protocol == mosq_p_mqtt5)
            send__disconnect(context, MQTT_RC_UNSPECIFIED, NULL);
    }
    in->payload = bytes;
    return packet.result;
}

/* ---- The end of a connection ---------------------------------------------------------------------- */

static void disconnect(void *argument) {
    struct packet *packet = argument;

    disconnect_inside(packet->context, packet->result);
}

/* Without its will: that may be what fails. */
static void disconnect_without_will(void *argument) {
    struct packet *packet = argument;

    packet->context->will = NULL;
    disconnect_inside(packet->context, packet->result);
}

/* Only the socket: its session stays, and what it has is not freed. */
static void disconnect_socket(void *argument) {
    struct packet *packet = argument;

    packet->context->will = NULL;
    net__socket_close(packet->context);
    mosquitto__set_state(packet->context, mosq_cs_disconnected);
}

void do_disconnect(struct mosquitto *context, int reason) {
    struct packet packet = {context, reason};

    if (broker_in_request)
        disconnect_inside(context, reason);
    else if (!request_run(disconnect, &packet) && !request_run(disconnect_without_will, &packet) &&
             !request_run(disconnect_socket, &packet))
        connection_abandon(context->conn);
}

/* ---- Housekeeping: what fails for one context must not stop that of others ------------------------- */

static void free_first(void *argument) {
    struct mosquitto *context = db.ll_for_free;

    UNUSED(argument);
    db.ll_for_free = context->for_free_next;
    context__cleanup(context, true);
}

/* It is not freed. */
static void skip_first(void *argument) {
    UNUSED(argument);
    db.ll_for_free = db.ll_for_free->for_free_next;
}

void broker_free_disused(void) {
    while (db.ll_for_free) {
        if (!request_run(free_first, NULL) && !request_run(skip_first, NULL))
            return;
    }
}

static void skip_session(void *argument) {
    struct mosquitto *context = db.expiry_list->context;

    UNUSED(argument);
    session_expiry__remove(context);
    context->will = NULL;
}

void broker_expire_sessions(void) {
    void (*function)(void) = session_expiry__check;

    if (!db.expiry_list)
        return;
    if (!request_run(without_argument, &function) && db.expiry_list)
        request_run(skip_session, NULL);
}

static void skip_will(void *argument) {
    struct mosquitto *context = db.delay_list->context;

    UNUSED(argument);
    will_delay__remove(context);
    context->will = NULL;
}

void broker_send_delayed_wills(void) {
    void (*function)(void) = will_delay__check;

    if (!db.delay_list)
        return;
    if (!request_run(without_argument, &function) && db.delay_list)
        request_run(skip_will, NULL);
}

struct update {
    int interval;
    time_t start;
};

static void update_inside(void *argument) {
    struct update *update = argument;

    sys_tree__update(update->interval, update->start);
}

void broker_sys_tree(int interval, time_t start) {
    static time_t last;
    struct update update = {interval, start};

    /* As sys_tree__update() does, which would be a request in each round of the loop. */
    if (db.now_s - interval > last) {
        last = db.now_s;
        request_run(update_inside, &update);
    }
}

void broker_tick(void) {
    const struct mosquitto__config *config = db.config;
    bool wanted = config->security_options.plugin_callbacks.tick;

    for (int i = 0; i < config->listener_count; i++)
        wanted |= config->listeners[i].security_options.plugin_callbacks.tick != NULL;
    if (wanted)
        broker_do(plugin__handle_tick);
}

static void reload_inside(void) {
    mosquitto_security_cleanup(true);
    mosquitto_security_init(true);
    mosquitto_security_apply();
}

void broker_reload_security(void) {
    broker_do_outside(reload_inside);
}

struct log {
    const char *topic;
    const char *line;
};

static void log_inside(void *argument) {
    struct log *log = argument;

    db__messages_easy_queue(NULL, log->topic, 2, (uint32_t)strlen(log->line), log->line, 0, 20, NULL);
}

void broker_log(const char *topic, const char *line) {
    struct log log = {topic, line};

    if (broker_in_request)
        log_inside(&log);
    else if (broker_domain)
        request_run(log_inside, &log);
}
