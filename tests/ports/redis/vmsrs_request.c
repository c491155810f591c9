// SPDX-License-Identifier: Apache-2.0 OR MIT
/* The server's requests, and what is done when one has failed. */
#include "vmsrs_keyspace.h"

/* The domain's root. */
struct root {
    struct root *self;
    redisDb *databases;
};

enum { STACK = 1024 * 1024 };

const vmsrs_domain *keyspace;
__thread bool inside;
static struct vmsrs_options options = {.stack_bytes = STACK};

bool port_inside(void) {
    return inside;
}

void port_fail(const char *why) {
    if (inside)
        vmsrs_fail(why);
}

/* ---- How a request is run ------------------------------------------------------------------------- */

/* Variables outside of the domain that requests change and that must be right afterwards. */
struct variables {
    long long dirty;
    int fixed_time_expire, core_propagates, in_nested_call, blocking_op_nesting;
    size_t used_memory;
};

static void variables_save(struct variables *kept) {
    kept->dirty = server.dirty;
    kept->fixed_time_expire = server.fixed_time_expire;
    kept->core_propagates = server.core_propagates;
    kept->in_nested_call = server.in_nested_call;
    kept->blocking_op_nesting = server.blocking_op_nesting;
    kept->used_memory = zmalloc_used_memory();
}

static void variables_restore(const struct variables *kept) {
    server.dirty = kept->dirty;
    server.fixed_time_expire = kept->fixed_time_expire;
    server.core_propagates = kept->core_propagates;
    server.in_nested_call = kept->in_nested_call;
    server.blocking_op_nesting = kept->blocking_op_nesting;
    zmalloc_set_used_memory(kept->used_memory);
}

struct call {
    void (*function)(void *argument);
    void *argument;
};

static int call_inside(vmsrs_request *request, void *argument) {
    const struct call *call = argument;
    const struct root *root = vmsrs_root(keyspace);

    UNUSED(request);
    /* What is written by a wrong pointer to it would be found by nobody. */
    if (root && (root->self != root || root->databases != server.db))
        vmsrs_fail("not the keyspace");
    call->function(call->argument);
    return 0;
}

static void describe(int code, char *text, size_t size) {
    vmsrs_failure failure;

    if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK)
        snprintf(text, size, "request failed: %s%s%.60s, incident %llu", vmsrs_kind_name(failure.kind),
                 failure.message[0] ? ": " : "", failure.message, (unsigned long long)failure.incident);
    else
        snprintf(text, size, "request failed: %s", vmsrs_strerror(code));
}

/* Runs the function as a request, for a client or for the server itself. If it fails, `why` says why, and nothing has been replied. */
static bool request_run(const char *name, void (*function)(void *argument), void *argument, client *asks, char *why,
                        size_t size) {
    struct call call = {function, argument};
    struct variables kept;
    int code;

    variables_save(&kept);
    replies_begin(asks);
    inside = true;
    code = vmsrs_run_with(keyspace, &options, call_inside, &call, NULL);
    inside = false;
    if (code == VMSRS_OK) {
        replies_commit();
        return true;
    }
    describe(code, why, size);
    outside = 0;
    variables_restore(&kept);
    /* A client that was waiting and was to be served is not waiting any more. */
    replies_discard(asks == NULL);
    serverLog(LL_WARNING, "%s: %s", name, why);
    return false;
}

/* ---- Start ---------------------------------------------------------------------------------------- */

static void open_inside(void *argument) {
    struct root *root = vmsrs_alloc_aligned(keyspace, sizeof(*root), 4096);

    if (!root || vmsrs_set_root(keyspace, root) != VMSRS_OK)
        vmsrs_fail("no memory for the keyspace");
    (*(void (**)(void))argument)();
    *root = (struct root){root, server.db};
}

void port_open(void (*create)(void)) {
    static const char key[] = "keyspace";
    const char *deadline = getenv("REDIS_DEADLINE_MS");
    vmsrs_domain *domain;
    vmsrs_app *app;
    char why[160];
    int code;

    if (deadline)
        options.deadline_ms = (uint32_t)atoi(deadline);
    server_open_app("redis", &app);
    code = vmsrs_domain_open(app, key, sizeof(key) - 1, &domain);
    /* What an earlier process has left points to that one's functions. */
    if (code == VMSRS_OK)
        code = vmsrs_domain_clear(&domain);
    if (code != VMSRS_OK)
        server_die(key, code);
    keyspace = domain;
    scratch_open();
    if (!request_run("start", open_inside, &create, NULL, why, sizeof(why)))
        exit(EXIT_FAILURE);
}

/* ---- Commands ------------------------------------------------------------------------------------- */

struct command {
    client *client;
    /* The client's own, which the command does not get. */
    robj **argv;
    int argc;
    size_t argv_len_sum;
    struct redisCommand *cmd;
    uint64_t flags;
};

static bool is_request(const struct redisCommand *command) {
    if (command->proc == debugCommand)
        return true;
    return command->flags & (CMD_WRITE | CMD_READONLY) && !(command->acl_categories & ACL_CATEGORY_SCRIPTING);
}

static void command_inside(void *argument) {
    client *client = ((struct command *)argument)->client;

    client->cmd->proc(client);
    /* Its own vector, or one that it has put there. */
    for (int i = 0; i < client->argc; i++)
        decrRefCount(client->argv[i]);
    zfree(client->argv);
}

/* Gives the command a vector of its own: it may replace it, and keep what is in it. */
static bool lend_arguments(const struct command *command) {
    robj **copy = scratch_alloc(sizeof(*copy) * (size_t)command->argc);

    if (!copy)
        return false;
    for (int i = 0; i < command->argc; i++) {
        copy[i] = command->argv[i];
        incrRefCount(copy[i]);
    }
    command->client->argv = copy;
    return true;
}

/* References that the command has had: what it has taken besides is lost. */
static void take_back_references(const struct command *command) {
    for (int i = 0; i < command->argc; i++) {
        if (command->argv[i]->refcount > 1)
            decrRefCount(command->argv[i]);
    }
}

void port_command(client *client) {
    struct command command = {client, client->argv, client->argc, client->argv_len_sum, client->cmd, client->flags};
    char why[160];
    bool done;

    if (inside || !is_request(client->cmd) || !lend_arguments(&command)) {
        client->cmd->proc(client);
        return;
    }
    done = request_run(client->cmd->fullname, command_inside, &command, client, why, sizeof(why));
    client->argv = command.argv;
    client->argc = command.argc;
    client->argv_len_sum = command.argv_len_sum;
    client->cmd = command.cmd;
    if (done)
        return;
    take_back_references(&command);
    if (client->flags & CLIENT_BLOCKED)
        unblockClient(client);
    client->flags = command.flags;
    addReplyErrorFormat(client, "%s", why);
}

/* ---- The server's own work on the keyspace -------------------------------------------------------- */

static bool own_work(void (*function)(void *argument), void *argument) {
    char why[160];

    if (inside) {
        function(argument);
        return true;
    }
    return request_run("own work", function, argument, NULL, why, sizeof(why));
}

static void call_expire(void *argument) {
    expire_inside(*(int *)argument);
}

void activeExpireCycle(int type) {
    own_work(call_expire, &type);
}

static void call_serve_blocked(void *argument) {
    UNUSED(argument);
    serve_blocked_inside();
}

void handleClientsBlockedOnKeys(void) {
    if (listLength(server.ready_keys))
        own_work(call_serve_blocked, NULL);
}

static void call_evict(void *argument) {
    *(int *)argument = evict_inside();
}

int performEvictions(void) {
    int result = EVICT_FAIL;

    if (!server.maxmemory)
        return EVICT_OK;
    return own_work(call_evict, &result) ? result : EVICT_FAIL;
}

static void call_resize(void *argument) {
    resize_inside(*(int *)argument);
}

void tryResizeHashTables(int dbid) {
    own_work(call_resize, &dbid);
}

struct rehash {
    int dbid;
    int result;
};

static void call_rehash(void *argument) {
    struct rehash *rehash = argument;

    rehash->result = rehash_inside(rehash->dbid);
}

int incrementallyRehash(int dbid) {
    struct rehash rehash = {dbid, 0};

    return own_work(call_rehash, &rehash) ? rehash.result : 1;
}

static void call_load(void *argument) {
    UNUSED(argument);
    load_inside();
}

void loadDataFromDisk(void) {
    if (!own_work(call_load, NULL))
        exit(EXIT_FAILURE);
}
