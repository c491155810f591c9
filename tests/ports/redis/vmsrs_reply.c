// SPDX-License-Identifier: Apache-2.0 OR MIT
/* Replies of a request: its clients get them once it is committed, so one that fails has replied nothing. */
#include "vmsrs_keyspace.h"

/* Bytes for a client, in scratch memory. */
struct reply {
    struct reply *next;
    client *to;
    const char *bytes;
    size_t length;
    /* What follows `bytes` is free so far. */
    size_t room;
};

enum { ROOM = 512 };

static struct reply *first, *last;
/* The client whose request it is, and what it has of replies so far: its limit holds in a request, too. */
static client *asks;
static size_t asked_bytes;

void replies_begin(client *to) {
    asks = to;
    asked_bytes = 0;
}

/* Those that are counted are not the client's yet. */
static void replies_end(void) {
    if (asks)
        asks->reply_bytes -= asked_bytes;
    asks = NULL;
    asked_bytes = 0;
    first = last = NULL;
}

static struct reply *add(client *to) {
    struct reply *reply = scratch_alloc(sizeof(*reply));

    if (!reply)
        port_fail("too much to reply");
    *reply = (struct reply){.to = to};
    if (last)
        last->next = reply;
    else
        first = reply;
    last = reply;
    return reply;
}

static char *room_for(struct reply *reply, size_t length) {
    size_t room = length < ROOM ? ROOM : length;
    char *bytes = scratch_alloc(room);

    if (!bytes)
        port_fail("too much to reply");
    reply->bytes = bytes;
    reply->room = room;
    if (reply->to == asks) {
        asks->reply_bytes += room;
        asked_bytes += room;
        closeClientOnOutputBufferLimitReached(asks, 1);
    }
    return bytes;
}

void port_reply(client *to, const char *bytes, size_t length) {
    struct reply *reply = last;

    if (to->flags & CLIENT_CLOSE_AFTER_REPLY)
        return;
    if (!reply || reply->to != to || reply->room < length) {
        reply = add(to);
        room_for(reply, length);
    }
    memcpy((char *)reply->bytes + reply->length, bytes, length);
    reply->length += length;
    reply->room -= length;
}

void *port_reply_later(client *to) {
    return add(to);
}

void port_reply_fill(void *reply, const char *bytes, size_t length) {
    struct reply *later = reply;

    memcpy(room_for(later, length), bytes, length);
    later->length = length;
    later->room = 0;
}

void replies_commit(void) {
    struct reply *reply = first;

    replies_end();
    for (; reply; reply = reply->next) {
        client *to = reply->to;

        if (!reply->length)
            continue;
        if (to->conn && !clientHasPendingReplies(to))
            putClientInPendingWriteQueue(to);
        _addReplyToBufferOrList(to, reply->bytes, reply->length);
    }
    scratch_end();
}

void replies_discard(bool close) {
    for (struct reply *reply = first; close && reply; reply = reply->next) {
        if (reply->to->conn)
            freeClientAsync(reply->to);
    }
    replies_end();
    scratch_end();
}
