// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * ledger: a small multi-user server that survives its own bugs.
 *
 * Users have a balance and notes; a directory that all users share has some facts about each of
 * them. Clients speak a line protocol over TCP (docs/demo.md). Each connection has a thread.
 *
 * The file builds into two programs:
 *
 *   cc -O2 -pthread ledger.c -lvmsrs -Wl,-z,now   the server with VMSRS
 *   cc -O2 -pthread -DPLAIN ledger.c              the same server with malloc and mutexes
 *
 * Some handlers have ordinary bugs: a missing check, a truncated number, a dangling pointer. Each is
 * marked "BUG" with the request that reaches it. The plain server dies of them, or continues with
 * somebody's data destroyed. The server with VMSRS answers that one request with an error and
 * continues as if it had never come.
 *
 * To port a server of your own, look for "STEP 1" to "STEP 7".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef PLAIN
#include "vmsrs.h"
#else
#include "../../servers/plain.h"
#endif

/* ---- State that outlives requests ------------------------------------------------------------ */

/*
 * STEP 1. Find the state that must be correct after an error, and who owns it.
 *
 * Each user's state is one domain; the shared directory is another. A domain has its own heap, and
 * its root pointer leads to everything in it. Pointers in a domain, also those to other domains,
 * stay valid when the process restarts.
 */

enum { NAME_LENGTH = 24, MEMO_LENGTH = 40, LABELS = 4, FEE = 1, FREE_CREDIT = 1000000000 };

struct note {
	struct note *next;
	uint32_t id;
	uint32_t capacity; /* bytes at text */
	uint32_t length;   /* bytes of text in use */
	uint32_t changed;  /* the user's number of changes at the last change of this note */
	char *text;
};

struct user {
	char name[NAME_LENGTH];
	int64_t balance;
	int64_t value;	  /* result of the last CALC */
	uint64_t changes; /* requests that changed anything here */
	uint32_t note_count;
	uint32_t last_id;
	uint32_t memo_length;
	char memo[MEMO_LENGTH]; /* start of the last request that changed anything */
	struct note *notes;	/* newest last */
	struct entry *entry;	/* this user's entry in the directory */
};

struct entry {
	struct entry *next; /* in order of name */
	char name[NAME_LENGTH];
	uint32_t notes;
	uint32_t transfers_in;
	uint32_t transfers_out;
	uint64_t changes;
	int64_t label[LABELS];
};

struct directory {
	uint64_t changes; /* of all entries together */
	uint64_t listings;
	uint32_t users;
	struct entry *first;
};

/* ---- Ordinary memory of the process ---------------------------------------------------------- */

/* A user known to this process, with its domain. Never freed. */
struct account {
	struct account *next;
	char name[NAME_LENGTH];
	vmsrs_domain *domain;
};

enum { LINE_MAX_BYTES = 65536, REPLY_MAX_BYTES = 65536, LOCK_TIMEOUT_MS = 600000 };

/* One connection. */
struct session {
	int socket;
	struct account *account; /* selected by USER, or NULL */
	size_t reply_length;
	char input[LINE_MAX_BYTES];
	char reply[REPLY_MAX_BYTES];
};

/* One request: a parsed line. */
struct request {
	struct session *session;
	const struct command *command;
	char *line;	/* all of it */
	char *argument; /* what follows the command's name */
	struct account *account;
	struct account *other; /* receiver of a TRANSFER */
	int64_t amount;
	vmsrs_request *running; /* set while it runs */
};

struct command {
	const char *name;
	/* Does the work, in a request on the domain of the session's user. */
	void (*handle)(struct request *request, struct user *user);
};

static pthread_mutex_t accounts_lock = PTHREAD_MUTEX_INITIALIZER;
static struct account *accounts; /* guarded by accounts_lock */
#ifndef PLAIN
static vmsrs_app *app;
#else
static void *app;
#endif
static vmsrs_domain *directory_domain;
static atomic_ulong requests_served, requests_failed;
static char boot_id[40];

/* Adds to the session's reply, which is truncated if it does not fit. */
__attribute__((format(printf, 2, 3))) static void say(struct session *session, const char *format, ...)
{
	size_t room = sizeof(session->reply) - session->reply_length;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(session->reply + session->reply_length, room, format, arguments);
	va_end(arguments);
	if (length > 0)
		session->reply_length += (size_t)length < room ? (size_t)length : room - 1;
}

/* Adds bytes to the session's reply. */
static void say_bytes(struct session *session, const char *bytes, size_t length)
{
	size_t room = sizeof(session->reply) - session->reply_length;

	if (length >= room)
		length = room - 1;
	memcpy(session->reply + session->reply_length, bytes, length);
	session->reply_length += length;
}

/* ---- Memory and locks ------------------------------------------------------------------------ */

/*
 * STEP 2. Allocate lasting memory from the domain that owns it: vmsrs_alloc and vmsrs_free instead
 * of malloc and free. Other memory stays as it is.
 *
 * vmsrs_fail aborts the request from any depth. All its changes to domains are undone, so there is
 * no need to unwind by hand.
 */
static void *allocate(vmsrs_domain *domain, size_t size)
{
	void *block = vmsrs_alloc(domain, size ? size : 1);

	if (!block)
		vmsrs_fail(errno == ENOMEM ? "no memory for the request" : "allocation in a domain that is not held");
	return block;
}

static void release(vmsrs_domain *domain, void *block)
{
	vmsrs_free(domain, block);
}

/* Records in the user's state that a request changes it. */
static void touch(struct request *request, struct user *user)
{
	size_t length = strlen(request->line);

	if (length > MEMO_LENGTH)
		length = MEMO_LENGTH;
	memcpy(user->memo, request->line, length);
	user->memo_length = (uint32_t)length;
	user->changes++;
}

/* touch() for a request that costs a fee. Without credit it answers the client and returns false. */
static bool charge(struct request *request, struct user *user)
{
	if (user->balance < FEE) {
		say(request->session, "NO funds");
		return false;
	}
	touch(request, user);
	user->balance -= FEE;
	return true;
}

/*
 * STEP 4. Enter shared domains. enter() takes the lock of the directory's domain; from then on the
 * request may write to it. There are two ways to continue:
 *
 * - leave() commits the changes of the directory and releases the lock at once. An error later in
 *   the request does not undo them. See directory().
 * - Without leave() the lock is kept and the directory commits together with the user's state: both
 *   change or neither does. This is needed for the entry, which repeats facts of the user.
 */
static void enter(vmsrs_request *running, vmsrs_domain *domain)
{
	int code = vmsrs_enter(running, domain);
	char message[160];

	if (code == VMSRS_OK)
		return;
	snprintf(message, sizeof(message), "%s is not entered: %s",
		 domain == directory_domain ? "the directory" : "another user", vmsrs_strerror(code));
	vmsrs_fail(message);
}

static struct directory *enter_directory(struct request *request)
{
	enter(request->running, directory_domain);
	return vmsrs_root(directory_domain);
}

/* Enters the directory and brings the user's entry up to date. */
static void update_entry(struct request *request, struct user *user)
{
	struct directory *directory = enter_directory(request);

	directory->changes++;
	user->entry->changes = user->changes;
	user->entry->notes = user->note_count;
}

/* ---- Notes ----------------------------------------------------------------------------------- */

static struct note *find_note(struct user *user, uint32_t id)
{
	struct note *note = user->notes;

	while (note && note->id != id)
		note = note->next;
	return note;
}

/* Takes the note out of the list; the note itself stays. */
static void unlink_note(struct user *user, struct note *note)
{
	struct note **link;

	for (link = &user->notes; *link; link = &(*link)->next) {
		if (*link == note) {
			*link = note->next;
			user->note_count--;
			return;
		}
	}
}

static void release_note(vmsrs_domain *own, struct note *note)
{
	char *text = note->text;

	release(own, note);
	release(own, text);
}

/* Gives the note room for `size` bytes of text, and keeps its text. */
static void grow_note(vmsrs_domain *own, struct note *note, uint32_t size)
{
	char *text = allocate(own, size);

	memcpy(text, note->text, note->length);
	release(own, note->text);
	note->text = text;
	note->capacity = size;
}

/* NOTE ADD <text> */
static void note_add(struct request *request, struct user *user)
{
	vmsrs_domain *own = request->account->domain;
	uint32_t length = (uint32_t)strlen(request->argument);
	struct note *note = allocate(own, sizeof(*note));
	char *text = allocate(own, length);
	struct note **link = &user->notes;

	touch(request, user);
	memcpy(text, request->argument, length);
	note->next = NULL;
	note->id = ++user->last_id;
	note->capacity = length;
	note->length = length;
	note->changed = (uint32_t)user->changes;
	note->text = text;
	while (*link)
		link = &(*link)->next;
	*link = note;
	user->note_count++;
	update_entry(request, user);
	say(request->session, "OK note=%" PRIu32, note->id);
}

/* NOTE EDIT <id> <text> */
static void note_edit(struct request *request, struct user *user)
{
	char *text;
	uint32_t id = (uint32_t)strtoul(request->argument, &text, 10);
	struct note *note = find_note(user, id);
	uint32_t length;

	if (*text == ' ')
		text++;
	length = (uint32_t)strlen(text);
	touch(request, user);
	/* BUG, null write: the check for NULL, an unknown id, is missing. */
	note->changed = (uint32_t)user->changes;
	note->length = 0;
	if (note->capacity < length)
		grow_note(request->account->domain, note, length);
	memcpy(note->text, text, length);
	note->length = length;
	update_entry(request, user);
	say(request->session, "OK note=%" PRIu32, id);
}

/* NOTE DELETE <id> [<id> ...]: all of them or none. */
static void note_delete(struct request *request, struct user *user)
{
	struct note *victims[16];
	unsigned int count = 0;
	char *next = request->argument;

	while (*next && count < sizeof(victims) / sizeof(victims[0])) {
		struct note *note = find_note(user, (uint32_t)strtoul(next, &next, 10));

		if (!note) {
			say(request->session, "NO note");
			return;
		}
		victims[count++] = note;
		while (*next == ' ')
			next++;
	}
	touch(request, user);
	/* BUG, double free: an id that is given twice. All are looked up before any is freed. */
	for (unsigned int i = 0; i < count; i++) {
		unlink_note(user, victims[i]);
		release_note(request->account->domain, victims[i]);
	}
	update_entry(request, user);
	say(request->session, "OK notes=%" PRIu32, user->note_count);
}

/* NOTE LIST */
static void note_list(struct request *request, struct user *user)
{
	say(request->session, "OK notes=%" PRIu32, user->note_count);
	for (struct note *note = user->notes; note; note = note->next)
		say(request->session, " %" PRIu32 ":%" PRIu32, note->id, note->length);
}

/* NOTE PAD <id> <width>: fills the text with dots up to that width. */
static void note_pad(struct request *request, struct user *user)
{
	char *rest;
	struct note *note = find_note(user, (uint32_t)strtoul(request->argument, &rest, 10));
	unsigned long width = strtoul(rest, NULL, 10);
	/* BUG, heap overflow: from 65,536 on the width is truncated here, and the room is too small. */
	uint16_t room = (uint16_t)width;

	if (!note) {
		say(request->session, "NO note");
		return;
	}
	touch(request, user);
	note->changed = (uint32_t)user->changes;
	if (room > note->capacity)
		grow_note(request->account->domain, note, room);
	if (width > note->length) {
		/* With 4,194,340 this leaves the block, the heap, and then this user's pages. */
		memset(note->text + note->length, '.', width - note->length);
		note->length = (uint32_t)width;
	}
	update_entry(request, user);
	say(request->session, "OK note=%" PRIu32, note->id);
}

/* NOTE QUOTE <id>: puts the text in quotes. */
static void note_quote(struct request *request, struct user *user)
{
	vmsrs_domain *own = request->account->domain;
	struct note *note = find_note(user, (uint32_t)strtoul(request->argument, NULL, 10));
	uint32_t length;
	char *text, *end;

	if (!note) {
		say(request->session, "NO note");
		return;
	}
	length = note->length + 2;
	text = allocate(own, length);
	touch(request, user);
	end = text;
	*end++ = '"';
	for (uint32_t i = 0; i < note->length; i++) {
		/* BUG, small overrun: quotes in the text need room that was not counted. */
		if (note->text[i] == '"')
			*end++ = '\\';
		*end++ = note->text[i];
	}
	*end++ = '"';
	release(own, note->text);
	note->text = text;
	note->capacity = length;
	note->length = (uint32_t)(end - text);
	note->changed = (uint32_t)user->changes;
	update_entry(request, user);
	say(request->session, "OK note=%" PRIu32, note->id);
}

/* NOTE JOIN <id> <id>: appends the second note's text to the first, and deletes the second. */
static void note_join(struct request *request, struct user *user)
{
	vmsrs_domain *own = request->account->domain;
	char *rest;
	struct note *first = find_note(user, (uint32_t)strtoul(request->argument, &rest, 10));
	struct note *second = find_note(user, (uint32_t)strtoul(rest, NULL, 10));
	uint32_t length;
	char *text;

	if (!first || !second) {
		say(request->session, "NO note");
		return;
	}
	length = first->length + second->length;
	text = allocate(own, length);
	touch(request, user);
	memcpy(text, first->text, first->length);
	memcpy(text + first->length, second->text, second->length);
	release(own, first->text);
	first->text = text;
	first->capacity = length;
	unlink_note(user, second);
	release_note(own, second);
	/* BUG, use after free: a note that is joined with itself has been freed. */
	first->length = length;
	first->changed = (uint32_t)user->changes;
	update_entry(request, user);
	say(request->session, "OK notes=%" PRIu32, user->note_count);
}

/* Not inlined: compilers would turn the division by zero into another fault. */
__attribute__((noinline)) static uint32_t mean(uint32_t total, uint32_t count)
{
	return total / count;
}

/* NOTE AVERAGE <prefix>: mean length of the notes with this prefix. Costs a fee. */
static void note_average(struct request *request, struct user *user)
{
	size_t prefix = strlen(request->argument);
	uint32_t total = 0, count = 0;

	if (!charge(request, user))
		return;
	for (struct note *note = user->notes; note; note = note->next) {
		if (note->length >= prefix && !memcmp(note->text, request->argument, prefix)) {
			total += note->length;
			count++;
		}
	}
	/* BUG, division by zero: no note has the prefix. */
	total = mean(total, count);
	update_entry(request, user);
	say(request->session, "OK average=%" PRIu32, total);
}

/* ---- Money ----------------------------------------------------------------------------------- */

/* DEPOSIT <amount> */
static void deposit(struct request *request, struct user *user)
{
	if (request->amount <= 0 || request->amount > FREE_CREDIT - user->balance) {
		say(request->session, "NO amount");
		return;
	}
	touch(request, user);
	user->balance += request->amount;
	update_entry(request, user);
	say(request->session, "OK balance=%" PRId64, user->balance);
}

/* WITHDRAW <amount> */
static void withdraw(struct request *request, struct user *user)
{
	if (request->amount <= 0 || request->amount > user->balance) {
		say(request->session, "NO funds");
		return;
	}
	touch(request, user);
	user->balance -= request->amount;
	update_entry(request, user);
	say(request->session, "OK balance=%" PRId64, user->balance);
}

/*
 * TRANSFER <user> <amount>: serve() has taken both users' domains in order of name, so that opposite
 * transfers do not deadlock.
 */
static void transfer(struct request *request, struct user *user)
{
	struct user *other = vmsrs_root(request->other->domain);

	if (!other) {
		say(request->session, "NO user");
		return;
	}
	if (request->amount <= 0 || request->amount > user->balance ||
	    request->amount > FREE_CREDIT - other->balance) {
		say(request->session, "NO funds");
		return;
	}
	touch(request, user);
	user->balance -= request->amount;
	touch(request, other);
	other->balance += request->amount;
	update_entry(request, user);
	user->entry->transfers_out++;
	other->entry->transfers_in++;
	other->entry->changes = other->changes;
	say(request->session, "OK balance=%" PRId64, user->balance);
}

/* TAX <percent> */
static void tax(struct request *request, struct user *user)
{
	touch(request, user);
	user->balance -= user->balance * request->amount / 100;
	update_entry(request, user);
	/* BUG, abort: the percentage is not checked. */
	assert(user->balance >= 0);
	say(request->session, "OK balance=%" PRId64, user->balance);
}

/* LABEL <slot> <value>: sets one of the labels in the directory. Costs a fee. */
static void label(struct request *request, struct user *user)
{
	char *rest;
	long slot = strtol(request->argument, &rest, 10);

	if (!charge(request, user))
		return;
	update_entry(request, user);
	/* BUG, wild pointer: the slot is not checked. The directory is locked and half changed. */
	user->entry->label[slot] = strtol(rest, NULL, 10);
	say(request->session, "OK label=%" PRId64, user->entry->label[slot]);
}

/* ---- Sums ------------------------------------------------------------------------------------ */

static uint64_t apply(char operator, uint64_t left, uint64_t right)
{
	switch (operator) {
	case '+':
		return left + right;
	case '-':
		return left - right;
	default:
		return left * right;
	}
}

/* Reads an expression of numbers, + - * and parentheses; wraps around at 64 bits. */
static uint64_t expression(const char **text, bool *good)
{
	uint64_t values[32];
	char operators[32];
	unsigned int depth = 0;

	for (;;) {
		if (**text == '(') {
			(*text)++;
			/* BUG, stack overflow: the depth is not limited. */
			values[depth] = expression(text, good);
			if (**text == ')')
				(*text)++;
			else
				*good = false;
		} else if (**text >= '0' && **text <= '9') {
			values[depth] = strtoull(*text, (char **)text, 10);
		} else {
			*good = false;
			values[depth] = 0;
		}
		while (depth && (operators[depth - 1] == '*' || **text != '*')) {
			depth--;
			values[depth] = apply(operators[depth], values[depth], values[depth + 1]);
		}
		if (!*good || (**text != '+' && **text != '-' && **text != '*'))
			return values[0];
		operators[depth++] = *(*text)++;
	}
}

/* CALC <expression>: the user's state keeps the last result. Costs a fee. */
static void calc(struct request *request, struct user *user)
{
	const char *text = request->argument;
	bool good = true;
	uint64_t value;

	if (!charge(request, user))
		return;
	update_entry(request, user);
	value = expression(&text, &good);
	if (!good || *text)
		value = 0;
	user->value = (int64_t)value;
	say(request->session, "OK value=%" PRId64, user->value);
}

/* ---- Reading --------------------------------------------------------------------------------- */

/* READ: everything in the user's state, exactly. */
static void read_all(struct request *request, struct user *user)
{
	struct session *session = request->session;

	say(session, "OK user=%s balance=%" PRId64 " value=%" PRId64 " changes=%" PRIu64, user->name,
	    user->balance, user->value, user->changes);
	say(session, " last=%" PRIu32 " memo=%" PRIu32 ":", user->last_id, user->memo_length);
	say_bytes(session, user->memo, user->memo_length);
	say(session, " notes=%" PRIu32, user->note_count);
	for (struct note *note = user->notes; note; note = note->next) {
		say(session, " %" PRIu32 ":%" PRIu32 ":%" PRIu32 ":", note->id, note->changed,
		    note->length);
		say_bytes(session, note->text, note->length);
	}
}

/*
 * DIRECTORY: all entries. The count of listings does not depend on the user's state, so leave()
 * commits it, and the lock is free when the answer is sent.
 */
static void directory(struct request *request, struct user *user)
{
	struct session *session = request->session;
	struct directory *shared = enter_directory(request);

	(void)user;
	shared->listings++;
	say(session, "OK users=%" PRIu32 " changes=%" PRIu64 " listings=%" PRIu64, shared->users,
	    shared->changes, shared->listings);
	for (struct entry *entry = shared->first; entry; entry = entry->next) {
		say(session, " %s:%" PRIu32 ":%" PRIu64 ":%" PRIu32 ":%" PRIu32, entry->name,
		    entry->notes, entry->changes, entry->transfers_in, entry->transfers_out);
		for (int i = 0; i < LABELS; i++)
			say(session, ":%" PRId64, entry->label[i]);
	}
	if (vmsrs_leave(request->running, directory_domain) != VMSRS_OK)
		vmsrs_fail("the directory was not left");
}

static const struct command commands[] = {
	{ "NOTE ADD", note_add },	  { "NOTE EDIT", note_edit },	{ "NOTE DELETE", note_delete },
	{ "NOTE LIST", note_list },	  { "NOTE PAD", note_pad },	{ "NOTE QUOTE", note_quote },
	{ "NOTE JOIN", note_join },	  { "NOTE AVERAGE", note_average }, { "DEPOSIT", deposit },
	{ "WITHDRAW", withdraw },	  { "TRANSFER", transfer },	{ "TAX", tax },
	{ "LABEL", label },		  { "CALC", calc },		{ "READ", read_all },
	{ "DIRECTORY", directory },
};

/* ---- Serving --------------------------------------------------------------------------------- */

/*
 * Finds the account in this process's list, or adds it. Returns NULL when it is not there and `add`
 * is false, when there is no memory, or when the domain cannot be opened: then *code says why.
 */
static struct account *find_account(const char *name, bool add, int *code)
{
	struct account *account;

	*code = VMSRS_OK;
	pthread_mutex_lock(&accounts_lock);
	for (account = accounts; account; account = account->next) {
		if (!strcmp(account->name, name))
			goto out;
	}
	if (!add)
		goto out;
	account = calloc(1, sizeof(*account));
	if (!account)
		goto out;
	strcpy(account->name, name);
	*code = vmsrs_domain_open(app, name, strlen(name), &account->domain);
	if (*code != VMSRS_OK) {
		free(account);
		account = NULL;
		goto out;
	}
	account->next = accounts;
	accounts = account;
out:
	pthread_mutex_unlock(&accounts_lock);
	return account;
}

/* Creates the directory on the very first start, and finds the users of earlier starts. */
static int start_directory(vmsrs_request *running, void *unused)
{
	struct directory *directory = vmsrs_root(directory_domain);
	int code;

	(void)running, (void)unused;
	if (!directory) {
		directory = vmsrs_alloc_zeroed(directory_domain, sizeof(*directory));
		if (!directory || vmsrs_set_root(directory_domain, directory) != VMSRS_OK)
			vmsrs_fail("no memory for the directory");
	}
	for (struct entry *entry = directory->first; entry; entry = entry->next) {
		if (!find_account(entry->name, true, &code))
			vmsrs_fail("the domain of a user could not be opened");
	}
	return 0;
}

/* Creates the state of a new user, and the entry in the directory. */
static struct user *create_user(struct request *request)
{
	struct account *account = request->account;
	struct user *user = vmsrs_alloc_zeroed(account->domain, sizeof(*user));
	struct directory *directory = enter_directory(request);
	struct entry *entry = vmsrs_alloc_zeroed(directory_domain, sizeof(*entry));
	struct entry **link = &directory->first;

	if (!user || !entry || vmsrs_set_root(account->domain, user) != VMSRS_OK)
		vmsrs_fail("no memory for a new user");
	strcpy(user->name, account->name);
	strcpy(entry->name, account->name);
	user->entry = entry;
	while (*link && strcmp((*link)->name, entry->name) < 0)
		link = &(*link)->next;
	entry->next = *link;
	*link = entry;
	directory->users++;
	return user;
}

/* The body of every request. Both domains of a TRANSFER are taken here, in order of name. */
static int serve(vmsrs_request *running, void *argument)
{
	struct request *request = argument;
	struct account *other = request->other;
	struct user *user;

	request->running = running;
	if (other) {
		bool first = strcmp(request->account->name, other->name) < 0;

		enter(running, (first ? other : request->account)->domain);
	}
	user = vmsrs_root(request->account->domain);
	if (!request->command) {
		if (!user)
			user = create_user(request);
		say(request->session, "OK user=%s", user->name);
	} else if (user) {
		request->command->handle(request, user);
	} else {
		say(request->session, "NO user");
	}
	return 0;
}

/* The answer when a call has failed without a failed request. */
static void refuse(struct session *session, int code)
{
#ifndef PLAIN
	if (code == VMSRS_ESYSTEM) {
		say(session, "NO %s: %s", vmsrs_refused(), strerror(errno));
		return;
	}
#endif
	say(session, "NO %s", vmsrs_strerror(code));
}

/*
 * STEP 3. Run each request with vmsrs_run or vmsrs_run_with, on the domain of its user. The function
 * runs on a stack of its own; when it returns, its changes are committed. The option gives requests
 * more time to wait for a lock than the default, for machines that are emulated and overloaded.
 *
 * STEP 5. When that returns VMSRS_EFAILED, the request hit an error, and its changes to domains
 * have been undone. Changes outside of domains remain: here that is half an answer in the session's
 * buffer, which is dropped. Tell the client, and continue.
 */
static void run(struct request *request)
{
	struct session *session = request->session;
	struct account *first = request->account;
	const vmsrs_options options = { .lock_timeout_ms = LOCK_TIMEOUT_MS };
	int code, result;

	if (request->other && strcmp(request->other->name, first->name) < 0)
		first = request->other;
	code = vmsrs_run_with(first->domain, &options, serve, request, &result);
	atomic_fetch_add(&requests_served, 1);
	if (code == VMSRS_OK)
		return;
	atomic_fetch_add(&requests_failed, 1);
	session->reply_length = 0;
#ifndef PLAIN
	if (code == VMSRS_EFAILED) {
		vmsrs_failure failure;

		vmsrs_last_failure(&failure);
		say(session, "ERR %s incident=%" PRIu64 " recovery_ns=%" PRIu64,
		    vmsrs_kind_name(failure.kind), failure.incident, failure.recovery_ns);
		return;
	}
#endif
	refuse(session, code);
}

/* The name is 1 to NAME_LENGTH - 1 letters, digits, '-' or '_'. */
static bool good_name(const char *name)
{
	size_t length = strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_");

	return length && length < NAME_LENGTH && !name[length];
}

static void choose_user(struct request *request)
{
	struct session *session = request->session;
	int code;

	if (!good_name(request->argument)) {
		say(session, "NO name");
		return;
	}
	request->account = find_account(request->argument, true, &code);
	if (!request->account) {
		refuse(session, code != VMSRS_OK ? code : VMSRS_ENOMEM);
		return;
	}
	session->account = request->account;
	run(request);
}

static void statistics(struct session *session)
{
	const char *protection = "plain";

#ifndef PLAIN
	protection = vmsrs_protection(app) == VMSRS_PROTECTION_FULL ? "full" : "none";
#endif
	say(session, "OK pid=%d boot=%s protection=%s requests=%lu failed=%lu", getpid(), boot_id,
	    protection, atomic_load(&requests_served), atomic_load(&requests_failed));
}

/* What follows the word or words at the start of the line; NULL if it does not start with them. */
static char *after(char *line, const char *words)
{
	size_t length = strlen(words);

	if (strncmp(line, words, length) || (line[length] && line[length] != ' '))
		return NULL;
	return line + length + (line[length] == ' ');
}

/* Puts the answer to one line into the session's reply, without the newline. False for QUIT. */
static bool answer(struct session *session, char *line)
{
	struct request request = { .session = session, .line = line, .account = session->account };
	const struct command *end = commands + sizeof(commands) / sizeof(commands[0]);
	char *number;

	if (!strcmp(line, "QUIT")) {
		say(session, "OK bye");
		return false;
	}
	if (!strcmp(line, "PING")) {
		say(session, "OK pong");
		return true;
	}
	if (!strcmp(line, "STATS")) {
		statistics(session);
		return true;
	}
	request.argument = after(line, "USER");
	if (request.argument) {
		choose_user(&request);
		return true;
	}
	for (request.command = commands; request.command < end; request.command++) {
		request.argument = after(line, request.command->name);
		if (request.argument)
			break;
	}
	if (!request.argument) {
		say(session, "NO command");
		return true;
	}
	if (!request.account) {
		say(session, "NO login");
		return true;
	}
	number = request.argument;
	if (request.command->handle == transfer) {
		char name[NAME_LENGTH];
		size_t length = strcspn(request.argument, " ");
		int code;

		if (length >= sizeof(name))
			length = 0;
		memcpy(name, request.argument, length);
		name[length] = 0;
		number += length;
		request.other = find_account(name, false, &code);
		if (!request.other || request.other == request.account) {
			say(session, "NO user");
			return true;
		}
	}
	request.amount = strtol(number, NULL, 10);
	run(&request);
	return true;
}

/* Sends the whole reply. False when the client is gone. */
static bool send_reply(struct session *session)
{
	size_t sent = 0;

	session->reply[session->reply_length++] = '\n';
	while (sent < session->reply_length) {
		ssize_t count = send(session->socket, session->reply + sent,
				     session->reply_length - sent, MSG_NOSIGNAL);

		if (count < 0 && errno == EINTR)
			continue;
		if (count <= 0)
			return false;
		sent += (size_t)count;
	}
	session->reply_length = 0;
	return true;
}

/* The thread of a connection. It needs no set-up: vmsrs_run does that. */
static void *connection(void *argument)
{
	struct session *session = argument;
	size_t filled = 0;
	bool open = true;

	while (open) {
		char *end = memchr(session->input, '\n', filled);

		if (end) {
			size_t used = (size_t)(end - session->input) + 1;

			*end = 0;
			if (end > session->input && end[-1] == '\r')
				end[-1] = 0;
			open = answer(session, session->input);
			open = send_reply(session) && open;
			memmove(session->input, session->input + used, filled - used);
			filled -= used;
		} else if (filled == sizeof(session->input)) {
			say(session, "NO line");
			send_reply(session);
			open = false;
		} else {
			ssize_t count = recv(session->socket, session->input + filled,
					     sizeof(session->input) - filled, 0);

			if (count < 0 && errno == EINTR)
				continue;
			if (count <= 0)
				break;
			filled += (size_t)count;
		}
	}
	close(session->socket);
	free(session);
	return NULL;
}

static void fatal(const char *what, const char *why)
{
	fprintf(stderr, "ledger: %s: %s\n", what, why);
	exit(1);
}

/* Listens on the port, or on any free one for 0, and prints its number. */
static int listen_on(uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t length = sizeof(address);
	int one = 1;

	if (listener < 0)
		fatal("socket", strerror(errno));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 64) ||
	    getsockname(listener, (struct sockaddr *)&address, &length))
		fatal("listen", strerror(errno));
	fprintf(stderr, "ledger: ready on port %u\n", ntohs(address.sin_port));
	return listener;
}

/*
 * STEP 6. Open the app and the shared domains when the server starts. This also works outside of a
 * VMSRS guest: errors are suppressed there, but nothing is restored. Say so.
 */
static void open_app(void)
{
	int code, result;

#ifndef PLAIN
	code = vmsrs_open("ledger", &app);
	if (code != VMSRS_OK)
		fatal("vmsrs_open", vmsrs_strerror(code));
	if (vmsrs_protection(app) != VMSRS_PROTECTION_FULL)
		fprintf(stderr, "ledger: no VMSRS here: nothing is restored after an error\n");
#endif
	code = vmsrs_domain_open(app, "/directory", strlen("/directory"), &directory_domain);
	if (code == VMSRS_OK)
		code = vmsrs_run(directory_domain, start_directory, NULL, &result);
	if (code != VMSRS_OK)
		fatal("directory", "it could not be opened");
#ifndef PLAIN
	/*
	 * STEP 7. Requests only read the variables above, so protect them while requests run: a stray write
	 * to one then costs its request, not the server. Continue without on a CPU without protection keys.
	 */
	code = vmsrs_guard_variables();
	if (code != VMSRS_OK && code != VMSRS_ENOKEYS)
		fprintf(stderr, "ledger: variables are not guarded: %s\n", vmsrs_strerror(code));
#endif
}

int main(int count, char **arguments)
{
	uint16_t port = count > 1 ? (uint16_t)atoi(arguments[1]) : 7878;
	FILE *file = fopen("/proc/sys/kernel/random/boot_id", "r");
	int listener;

	if (!file || fscanf(file, "%39s", boot_id) != 1)
		strcpy(boot_id, "unknown");
	if (file)
		fclose(file);
	open_app();
	listener = listen_on(port);
	for (;;) {
		struct session *session = calloc(1, sizeof(*session));
		pthread_t thread;
		int one = 1;

		if (!session)
			fatal("session", "no memory");
		session->socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (session->socket < 0) {
			free(session);
			if (errno == EINTR || errno == ECONNABORTED || errno == EMFILE)
				continue;
			fatal("accept", strerror(errno));
		}
		setsockopt(session->socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, NULL, connection, session)) {
			close(session->socket);
			free(session);
			continue;
		}
		pthread_detach(thread);
	}
}
