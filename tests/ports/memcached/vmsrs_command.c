// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Commands as requests, and what a connection is after one that failed. */
#include "vmsrs_request.h"

#include <stdio.h>
#include <string.h>

#include "proto_bin.h"
#include "proto_text.h"

struct command {
    conn *c;
    char *text;
    void (*with_text)(conn *c, char *text);
    void (*without)(conn *c);
    char *next; /* what follows the line or the header, and then what follows its value */
    int value;  /* bytes of the value, if all of it is there */
};

/* Copies what is there already of the command's value, and stores it if that is all. */
static void take_value(struct command *command) {
    conn *c = command->c;
    int there = c->rbytes - (int)(command->next - c->rcurr);

    if (there >= c->rlbytes)
        command->value = there = c->rlbytes;
    memmove(c->ritem, command->next, (size_t)there);
    c->ritem += there;
    c->rlbytes -= there;
    if (!c->rlbytes) {
        if (c->protocol == binary_prot)
            complete_nread_binary(c);
        else
            complete_nread_ascii(c);
    }
    command->next += there;
}

static int command_run(void *argument) {
    struct command *command = argument;

    if (!command->with_text) {
        command->without(command->c);
        return 0;
    }
    command->with_text(command->c, command->text);
    if (command->next && command->c->state == conn_nread && command->c->rlbytes > 0)
        take_value(command);
    return 0;
}

/* Empties a response that a failed request has begun to fill. */
static void response_empty(mc_resp *resp) {
    void *memory = resp->write_and_free;

    resp->item = NULL;
    resp->write_and_free = NULL;
    /* What was allocated by malloc() may be freed already. */
    if (in_region(memory))
        region_give(memory);
    resp_reset(resp);
}

/* Makes the connection what it was before a failed request. */
static void conn_restore(conn *c, const conn *before) {
    mc_resp *next = before->resp->next;
    mc_resp *last = c->resp;

    memcpy(c, before, sizeof(*c));
    response_empty(c->resp);
    c->resp->next = NULL;
    /* Others that the request has begun go back. */
    while (next) {
        mc_resp *resp = next;

        next = resp == last ? NULL : resp->next;
        resp->next = NULL;
        response_empty(resp);
        resp_finish(c, resp);
    }
}

/* Tells the client. What it has sent of the command beyond this line would be taken for commands. */
static void conn_failed(conn *c, int code, bool in_step) {
    char text[160];
    vmsrs_failure failure;

    if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK)
        snprintf(text, sizeof(text), "SERVER_ERROR request failed: %s%s%.60s, incident %llu",
                 vmsrs_kind_name(failure.kind), failure.message[0] ? ": " : "", failure.message,
                 (unsigned long long)failure.incident);
    else
        snprintf(text, sizeof(text), "SERVER_ERROR %s", vmsrs_strerror(code));
    out_of_memory(c, text);
    if (!in_step) {
        c->close_after_write = true;
        conn_set_state(c, conn_mwrite);
    }
}

/* The words of a line, without changing it. */
static const char *word(const char **at, size_t *length) {
    const char *start;

    while (**at == ' ')
        ++*at;
    start = *at;
    while (**at && **at != ' ')
        ++*at;
    *length = (size_t)(*at - start);
    return start;
}

static bool is(const char *text, size_t length, const char *name) {
    return length == strlen(name) && !memcmp(text, name, length);
}

/* A value follows the line. */
static bool is_store(const char *name, size_t length) {
    static const char *const names[] = {"set", "ms", "add", "cas", "replace", "append", "prepend"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (is(name, length, names[i]))
            return true;
    }
    return false;
}

/* Commands that hand the connection to another thread, stop threads or end the process: not requests. */
static bool is_outside(const char *name, size_t length) {
    static const char *const names[] = {"shutdown", "watch", "lru", "lru_crawler", "slabs", "cache_memlimit", "misbehave"};

    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (is(name, length, names[i]))
            return true;
    }
    return false;
}

bool request_response(conn *c) {
    return vmsrs_in_request() || resp_start(c);
}

/* Runs the request of a line. */
static int line_run(struct command *command, const char *name, size_t name_length, const char *at) {
    size_t key_length, next_length;
    const char *key = word(&at, &key_length), *next;
    uint32_t some = 0;
    int result;

    if (name_length == 2 && name[0] == 'm') {
        /* A key in base 64: its shard is known once it is decoded. */
        if (strstr(at, " b"))
            key_length = 0;
    } else if (is(name, name_length, "stats")) {
        return run_some(HOLDS_ALL, (uint32_t)((1ull << shards_count()) - 1), command_run, command, &result);
    } else if (name_length >= 3 && name[0] == 'g') {
        if (name[1] == 'a')
            key = word(&at, &key_length);
        /* Several keys: their shards are entered in an order that is the same for all. */
        next = word(&at, &next_length);
        if (next_length) {
            some = 1u << shard_of(hash(key, key_length));
            for (; next_length; next = word(&at, &next_length))
                some |= 1u << shard_of(hash(next, next_length));
            return run_some(HOLDS_SOME, some, command_run, command, &result);
        }
    } else if (!is_store(name, name_length) && !is(name, name_length, "incr") && !is(name, name_length, "decr") &&
               !is(name, name_length, "delete") && !is(name, name_length, "touch")) {
        key_length = 0;
    }
    if (key_length && key_length <= KEY_MAX_LENGTH)
        return run_key(key, key_length, command_run, command, &result);
    return run_some(HOLDS_SOME, 0, command_run, command, &result);
}

/* Gives back what a value was read into, if it is stored: the request has freed nothing outside of domains. */
static void region_is_done(conn *c) {
    if (self.region && c->state != conn_nread) {
        region_give(self.region);
        c->item_malloced = false;
    }
}

char *request_line(conn *c, char *next, void (*process)(conn *c, char *line)) {
    struct command command = {.c = c, .text = c->rcurr, .with_text = process};
    const char *at = c->rcurr, *name;
    size_t name_length;
    bool stores;
    conn before;
    int code;

    name = word(&at, &name_length);
    if (is_outside(name, name_length)) {
        process(c, c->rcurr);
        return next;
    }
    /* Not in the request: what responses come from is kept by many connections. */
    if (!resp_start(c)) {
        conn_set_state(c, conn_closing);
        return next;
    }
    stores = is_store(name, name_length);
    if (stores)
        command.next = next;
    memcpy(&before, c, sizeof(before));
    code = line_run(&command, name, name_length, at);
    if (code != VMSRS_OK) {
        conn_restore(c, &before);
        conn_failed(c, code, !stores || command.value);
        return next + command.value;
    }
    if (!stores)
        return next;
    region_is_done(c);
    return command.next;
}

void request_binary(conn *c, char *extras, void (*dispatch)(conn *c, char *extras)) {
    struct command command = {.c = c, .text = extras, .with_text = dispatch};
    size_t length = c->binary_header.request.keylen;
    conn before;
    int code, result;

    command.next = c->rcurr;
    memcpy(&before, c, sizeof(before));
    if (c->cmd == PROTOCOL_BINARY_CMD_STAT)
        code = run_some(HOLDS_ALL, (uint32_t)((1ull << shards_count()) - 1), command_run, &command, &result);
    else if (length && length <= KEY_MAX_LENGTH)
        code = run_key(c->rcurr - length, length, command_run, &command, &result);
    else
        code = run_some(HOLDS_SOME, 0, command_run, &command, &result);
    if (code != VMSRS_OK) {
        conn_restore(c, &before);
        conn_failed(c, code, false);
        return;
    }
    c->rbytes -= (int)(command.next - c->rcurr);
    c->rcurr = command.next;
    region_is_done(c);
}

void request_value(conn *c, void (*complete)(conn *c)) {
    struct command command = {.c = c, .without = complete};
    item *outside = c->item;
    conn before;
    int code, result;

    memcpy(&before, c, sizeof(before));
    code = run_key(ITEM_key(outside), outside->nkey, command_run, &command, &result);
    if (code != VMSRS_OK)
        conn_restore(c, &before);
    c->item = NULL;
    c->item_malloced = false;
    if (code != VMSRS_OK) {
        c->set_stale = false;
        c->mset_res = false;
        conn_failed(c, code, true);
    }
    /* The request has freed nothing outside of domains, so that this is right however it ended. */
    item_outside_free(outside);
}

struct copy {
    conn *c;
    int length;
};

static int copy_run(void *argument) {
    const struct copy *copy = argument;

    memmove(copy->c->ritem, copy->c->rcurr, copy->length);
    return 0;
}

bool request_copy(conn *c, int length) {
    struct copy copy = {c, length};
    int result, code;

    code = run_some(HOLDS_SOME, 0, copy_run, &copy, &result);
    if (code != VMSRS_OK)
        conn_failed(c, code, false);
    return code == VMSRS_OK;
}

