// SPDX-License-Identifier: Apache-2.0 OR MIT
/*
 * cache: a key-value cache that speaks memcached's text protocol, so that any memcached client,
 * test or load generator can be pointed at it.
 *
 * The file builds into two programs:
 *
 *   cc -O2 -pthread cache.c -lvmsrs -Wl,-z,now   each shard is a domain, each command a request
 *   cc -O2 -pthread -DPLAIN cache.c              the same with malloc and mutexes
 *
 * Keys are spread over shards by their hash. A command touches one shard; a bug in it costs that
 * command, never another shard nor what other commands have stored in this one. Sockets and their
 * buffers lie outside of domains: a command reads its input from one buffer, and what it appends
 * to the other counts only once it has succeeded.
 *
 * With domains, what is written to memory is what costs. So an item that keeps its size is
 * overwritten in place, recency is noted at most once a minute (as memcached does), eviction is a
 * clock hand over the table instead of a linked list, and the table grows by linear hashing, one
 * bucket at a time (Litwin, VLDB 1980).
 *
 * Commands: get gets set add replace append prepend cas delete incr decr touch flush_all stats
 * version verbosity quit. Protocol: doc/protocol.txt of memcached.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifdef PLAIN
#include "plain.h"
#else
#include "vmsrs.h"
#endif

#define KEY_LENGTH_MAX		250
#define VALUE_LENGTH_MAX	(1024 * 1024)
/* The longest line: a get with a hundred keys of full length fits. */
#define LINE_LENGTH_MAX		(32 * 1024)
#define INPUT_MAX		(LINE_LENGTH_MAX + VALUE_LENGTH_MAX + 2)
#define BUFFER_START		(16 * 1024)

/* Recency is noted again after this many seconds. */
#define USED_INTERVAL		60
/* An expiry time above this is a point in time, not a number of seconds from now. */
#define EXPIRY_RELATIVE_MAX	(60 * 60 * 24 * 30)

/* ---- Shards: what outlives a command ----------------------------------------------------------- */

/* Buckets come in segments of a page each; a shard has room for SEGMENTS_MAX of them. */
#define SEGMENT_BUCKETS		512
#define SEGMENTS_MAX		2048
/* Buckets of a new shard. */
#define BUCKETS_START		SEGMENT_BUCKETS

struct item {
	struct item *next;		/* in its bucket */
	uint64_t hash;
	uint64_t cas;			/* unique among the values that its key ever has */
	uint32_t expires;		/* seconds since 1970, or 0 for never */
	uint32_t used;			/* seconds since 1970, up to USED_INTERVAL too early */
	uint32_t flags;
	uint32_t value_length;
	uint32_t key_length;
	uint32_t room;			/* bytes for the value, at least value_length */
	char bytes[];			/* key, value */
};

struct shard {
	uint64_t items;
	uint64_t bytes;			/* of items, with their headers */
	uint64_t evictions;
	uint64_t flushed;		/* items with a smaller cas are gone */
	uint32_t buckets;
	uint32_t level;			/* largest power of two that is not above buckets */
	uint32_t hand;			/* bucket at which eviction goes on */
	uint32_t reserved;
	struct item **segments[SEGMENTS_MAX];
};

static struct {
	uint16_t port;
	unsigned int threads;
	unsigned int shards;
	uint64_t shard_bytes;		/* most bytes of items in one shard */
	vmsrs_domain **domains;
	time_t started;
} server = { .port = 11211, .threads = 4, .shards = 64 };

/* FNV-1a with a final mix, so that shard and bucket come from different bits. */
static uint64_t hash_of(const char *key, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (unsigned char)key[i]) * 0x100000001b3;
	hash ^= hash >> 32;
	return hash * 0x9e3779b97f4a7c15;
}

static vmsrs_domain *domain_of(uint64_t hash)
{
	return server.domains[(hash >> 48) % server.shards];
}

static uint32_t now_seconds(void)
{
	return (uint32_t)time(NULL);
}

/* A value's version. It grows with time, so no counter has to be kept for it. */
static uint64_t version_after(uint64_t before)
{
	struct timespec now;
	uint64_t version;

	clock_gettime(CLOCK_REALTIME, &now);
	version = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	return version > before ? version : before + 1;
}

static struct item **bucket_at(struct shard *shard, uint32_t index)
{
	return &shard->segments[index / SEGMENT_BUCKETS][index % SEGMENT_BUCKETS];
}

static struct item **bucket_of(struct shard *shard, uint64_t hash)
{
	uint32_t index = (uint32_t)hash & (2 * shard->level - 1);

	return bucket_at(shard, index < shard->buckets ? index : index - shard->level);
}

static char *value_of(struct item *item)
{
	return item->bytes + item->key_length;
}

static uint64_t size_of(const struct item *item)
{
	return sizeof(*item) + item->key_length + item->room;
}

static bool is_gone(const struct shard *shard, const struct item *item, uint32_t now)
{
	return (item->expires && item->expires <= now) || item->cas < shard->flushed;
}

/* Takes the item out of its bucket, through which `link` leads to it, and frees it. */
static void item_remove(vmsrs_domain *domain, struct shard *shard, struct item **link)
{
	struct item *item = *link;

	*link = item->next;
	shard->items--;
	shard->bytes -= size_of(item);
	vmsrs_free(domain, item);
}

/* The link to the item with this key, or the link at the bucket's end. */
static struct item **find(struct shard *shard, const char *key, size_t length, uint64_t hash)
{
	struct item **link = bucket_of(shard, hash);

	while (*link && ((*link)->hash != hash || (*link)->key_length != length ||
			 memcmp((*link)->bytes, key, length)))
		link = &(*link)->next;
	return link;
}

/* Adds a bucket and moves to it what belongs there from the bucket that it splits. */
static void grow(vmsrs_domain *domain, struct shard *shard)
{
	uint32_t index = shard->buckets;
	struct item **from, **to;

	if (index == SEGMENT_BUCKETS * SEGMENTS_MAX)
		return;
	if (index % SEGMENT_BUCKETS == 0 && !shard->segments[index / SEGMENT_BUCKETS]) {
		shard->segments[index / SEGMENT_BUCKETS] =
			vmsrs_alloc_zeroed(domain, SEGMENT_BUCKETS * sizeof(struct item *));
		if (!shard->segments[index / SEGMENT_BUCKETS])
			return;
	}
	if (index == 2 * shard->level)
		shard->level *= 2;
	shard->buckets++;
	from = bucket_at(shard, index - shard->level);
	to = bucket_at(shard, index);
	while (*from) {
		struct item *item = *from;

		if (((uint32_t)item->hash & (2 * shard->level - 1)) != index) {
			from = &item->next;
			continue;
		}
		*from = item->next;
		item->next = NULL;
		*to = item;
		to = &item->next;
	}
}

/*
 * Makes room for `bytes` more: the hand goes over the buckets and takes what was not used for a
 * while; after a whole turn it takes whatever comes.
 */
static void evict(vmsrs_domain *domain, struct shard *shard, uint64_t bytes, uint32_t now)
{
	uint32_t visited = 0;

	while (shard->bytes + bytes > server.shard_bytes && shard->items) {
		struct item **link = bucket_at(shard, shard->hand);

		while (*link) {
			bool idle = now - (*link)->used >= 2 * USED_INTERVAL;

			if (is_gone(shard, *link, now)) {
				item_remove(domain, shard, link);
			} else if (idle || visited >= shard->buckets) {
				item_remove(domain, shard, link);
				shard->evictions++;
			} else {
				link = &(*link)->next;
				continue;
			}
			if (shard->bytes + bytes <= server.shard_bytes)
				return;
		}
		shard->hand = (shard->hand + 1) % shard->buckets;
		visited++;
	}
}

static int shard_make(vmsrs_request *request, void *argument)
{
	vmsrs_domain *domain = argument;
	struct shard *shard;

	(void)request;
	if (vmsrs_root(domain))
		return 0;
	shard = vmsrs_alloc_zeroed(domain, sizeof(*shard));
	if (!shard)
		return -1;
	shard->segments[0] = vmsrs_alloc_zeroed(domain, SEGMENT_BUCKETS * sizeof(struct item *));
	if (!shard->segments[0])
		return -1;
	shard->buckets = BUCKETS_START;
	shard->level = BUCKETS_START;
	return vmsrs_set_root(domain, shard) == VMSRS_OK ? 0 : -1;
}

/* ---- Commands ---------------------------------------------------------------------------------- */

struct buffer {
	char *bytes;
	size_t length;
	size_t room;
};

enum store_mode { SET, ADD, REPLACE, APPEND, PREPEND, CAS };

enum outcome {
	DONE, NOT_STORED, EXISTS, NOT_FOUND, NOT_A_NUMBER, TOO_LARGE, NO_MEMORY, NEEDS_ROOM,
};

/* A command's arguments and results, on the worker's own stack. */
struct command {
	const char *key;
	size_t key_length;
	uint64_t hash;
	vmsrs_domain *domain;
	uint32_t now;
	/* stores */
	enum store_mode mode;
	uint32_t flags;
	uint32_t expires;
	uint64_t cas;
	const char *value;
	size_t value_length;
	/* incr, decr */
	bool decrement;
	uint64_t delta;			/* in: by how much; out: the new number */
	/* get, gets */
	bool with_cas;
	struct buffer *output;
	size_t appended;		/* bytes of the answer after output->length */
	/* stats */
	uint64_t items, bytes, evictions;
};

static void command_start(struct command *command, const char *key, size_t length)
{
	command->key = key;
	command->key_length = length;
	command->hash = hash_of(key, length);
	command->domain = domain_of(command->hash);
	command->now = now_seconds();
}

static int get(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);
	struct item *item = *find(shard, command->key, command->key_length, command->hash);
	struct buffer *output = command->output;
	size_t needed, length;
	char *at;

	(void)request;
	if (!item || is_gone(shard, item, command->now))
		return NOT_FOUND;
	needed = sizeof("VALUE    \r\n\r\n") + item->key_length + 3 * 20 + item->value_length;
	command->appended = needed;
	if (output->room - output->length < needed)
		return NEEDS_ROOM;
	at = output->bytes + output->length;
	memcpy(at, "VALUE ", 6);
	memcpy(at + 6, item->bytes, item->key_length);
	length = 6 + item->key_length;
	if (command->with_cas)
		length += (size_t)sprintf(at + length, " %" PRIu32 " %" PRIu32 " %" PRIu64 "\r\n",
					  item->flags, item->value_length, item->cas);
	else
		length += (size_t)sprintf(at + length, " %" PRIu32 " %" PRIu32 "\r\n",
					  item->flags, item->value_length);
	memcpy(at + length, value_of(item), item->value_length);
	length += item->value_length;
	memcpy(at + length, "\r\n", 2);
	command->appended = length + 2;
	/* The write costs a page, so it is rare. */
	if (command->now - item->used >= USED_INTERVAL)
		item->used = command->now;
	return DONE;
}

/* Puts an item with room for `length` bytes of value in the place of what `link` leads to. */
static struct item *item_replace(struct shard *shard, struct item **link,
				 const struct command *command, size_t length)
{
	uint64_t size = sizeof(struct item) + command->key_length + length;
	struct item *old = *link, *item;

	item = vmsrs_alloc(command->domain, size);
	if (!item)
		return NULL;
	memset(item, 0, sizeof(*item));
	item->hash = command->hash;
	item->key_length = (uint32_t)command->key_length;
	item->room = (uint32_t)length;
	memcpy(item->bytes, command->key, command->key_length);
	item->next = old ? old->next : NULL;
	*link = item;
	shard->bytes += size;
	if (old)
		shard->bytes -= size_of(old);
	else
		shard->items++;
	return item;
}

static int store(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);
	struct item **link = find(shard, command->key, command->key_length, command->hash);
	bool there = *link && !is_gone(shard, *link, command->now);
	bool joins = command->mode == APPEND || command->mode == PREPEND;
	struct item *old = *link, *item = old;
	size_t length = command->value_length;

	(void)request;
	if (command->mode == CAS && !there)
		return NOT_FOUND;
	if (command->mode == CAS && old->cas != command->cas)
		return EXISTS;
	if ((command->mode == ADD && there) ||
	    ((command->mode == REPLACE || joins) && !there))
		return NOT_STORED;
	if (joins)
		length += old->value_length;
	if (length > VALUE_LENGTH_MAX)
		return TOO_LARGE;
	if (!item || item->room < length || item->room - length > length / 4 + 64) {
		uint64_t size = sizeof(*item) + command->key_length + length;

		if (shard->bytes + size > server.shard_bytes) {
			evict(command->domain, shard, size, command->now);
			/* The hand may have taken the old item, or one before it. */
			link = find(shard, command->key, command->key_length, command->hash);
			if (joins && !*link)
				return NOT_STORED;
			old = *link;
		}
		item = item_replace(shard, link, command, length);
		if (!item)
			return NO_MEMORY;
	}
	if (command->mode == APPEND) {
		if (item != old)
			memcpy(value_of(item), value_of(old), old->value_length);
		memcpy(value_of(item) + old->value_length, command->value, command->value_length);
	} else if (command->mode == PREPEND) {
		memmove(value_of(item) + command->value_length, value_of(old), old->value_length);
		memcpy(value_of(item), command->value, command->value_length);
	} else {
		memcpy(value_of(item), command->value, command->value_length);
	}
	if (joins) {
		item->flags = old->flags;
		item->expires = old->expires;
	} else {
		item->flags = command->flags;
		item->expires = command->expires;
	}
	item->value_length = (uint32_t)length;
	item->cas = version_after(old ? old->cas : shard->flushed);
	item->used = command->now;
	if (old && item != old)
		vmsrs_free(command->domain, old);
	if (!old && shard->items > shard->buckets)
		grow(command->domain, shard);
	return DONE;
}

static int delete_item(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);
	struct item **link = find(shard, command->key, command->key_length, command->hash);

	(void)request;
	if (!*link || is_gone(shard, *link, command->now))
		return NOT_FOUND;
	item_remove(command->domain, shard, link);
	return DONE;
}

static int touch(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);
	struct item *item = *find(shard, command->key, command->key_length, command->hash);

	(void)request;
	if (!item || is_gone(shard, item, command->now))
		return NOT_FOUND;
	item->expires = command->expires;
	item->used = command->now;
	return DONE;
}

static bool parse_number(const char *text, size_t length, uint64_t *number)
{
	uint64_t value = 0;

	if (!length || length > 20)
		return false;
	for (size_t i = 0; i < length; i++) {
		unsigned int digit = (unsigned char)text[i] - '0';

		if (digit > 9 || __builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, digit, &value))
			return false;
	}
	*number = value;
	return true;
}

static int arithmetic(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);
	struct item *item = *find(shard, command->key, command->key_length, command->hash);
	char digits[24];
	uint64_t number;

	if (!item || is_gone(shard, item, command->now))
		return NOT_FOUND;
	if (!parse_number(value_of(item), item->value_length, &number))
		return NOT_A_NUMBER;
	if (command->decrement)
		number = number > command->delta ? number - command->delta : 0;
	else
		number += command->delta;
	command->delta = number;
	command->mode = SET;
	command->flags = item->flags;
	command->expires = item->expires;
	command->value = digits;
	command->value_length = (size_t)sprintf(digits, "%" PRIu64, number);
	return store(request, command);
}

static int flush_all(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	struct shard *shard = vmsrs_root(command->domain);

	(void)request;
	shard->flushed = version_after(shard->flushed);
	return DONE;
}

static int count(vmsrs_request *request, void *argument)
{
	struct command *command = argument;
	const struct shard *shard = vmsrs_root(command->domain);

	(void)request;
	command->items += shard->items;
	command->bytes += shard->bytes;
	command->evictions += shard->evictions;
	return DONE;
}

/* ---- Connections ------------------------------------------------------------------------------- */

struct connection {
	int socket;
	bool closing;			/* when all output is sent */
	uint64_t skip;			/* bytes of input to drop: a value that is too large */
	struct buffer input;
	struct buffer output;
	size_t sent;			/* bytes of output */
};

struct worker {
	pthread_t thread;
	int epoll;
	/* Changed by the worker, read by whoever answers "stats". */
	atomic_uint_least64_t gets, hits, sets, failed;
};

static struct worker *workers;

static void add(atomic_uint_least64_t *counter)
{
	atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + 1,
			      memory_order_relaxed);
}

static bool reserve(struct buffer *buffer, size_t more)
{
	size_t room = buffer->room ? buffer->room : BUFFER_START;
	char *bytes;

	if (buffer->room - buffer->length >= more)
		return true;
	while (room - buffer->length < more)
		room *= 2;
	bytes = realloc(buffer->bytes, room);
	if (!bytes)
		return false;
	buffer->bytes = bytes;
	buffer->room = room;
	return true;
}

static void say(struct connection *connection, const char *text)
{
	size_t length = strlen(text);

	if (!reserve(&connection->output, length)) {
		connection->closing = true;
		return;
	}
	memcpy(connection->output.bytes + connection->output.length, text, length);
	connection->output.length += length;
}

/* Runs the command as a request. A negative result: it failed, and an answer has been given. */
static int run(struct worker *worker, struct connection *connection, vmsrs_request_fn function,
	       struct command *command)
{
	int result, code = vmsrs_run(command->domain, function, command, &result);

	if (code == VMSRS_OK && result != NO_MEMORY)
		return result;
	add(&worker->failed);
	say(connection, code == VMSRS_OK ? "SERVER_ERROR out of memory storing object\r\n" :
					   "SERVER_ERROR request failed\r\n");
	return -1;
}

/* Words of a line. */
struct words {
	const char *at, *end;
};

static bool next_word(struct words *words, const char **word, size_t *length)
{
	while (words->at < words->end && *words->at == ' ')
		words->at++;
	*word = words->at;
	while (words->at < words->end && *words->at != ' ')
		words->at++;
	*length = (size_t)(words->at - *word);
	return *length;
}

static bool next_number(struct words *words, uint64_t *number)
{
	const char *word;
	size_t length;

	return next_word(words, &word, &length) && parse_number(word, length, number);
}

/* Turns the protocol's expiry into seconds since 1970, 0 for never. */
static bool next_expiry(struct words *words, uint32_t *expires)
{
	uint64_t number;
	const char *word;
	size_t length;
	bool negative;

	if (!next_word(words, &word, &length))
		return false;
	negative = *word == '-';
	if (!parse_number(word + negative, length - negative, &number) || number > UINT32_MAX / 2)
		return false;
	if (negative)
		*expires = 1;
	else if (number && number <= EXPIRY_RELATIVE_MAX)
		*expires = now_seconds() + (uint32_t)number;
	else
		*expires = (uint32_t)number;
	return true;
}

static bool next_key(struct words *words, struct command *command)
{
	const char *word;
	size_t length;

	if (!next_word(words, &word, &length) || length > KEY_LENGTH_MAX)
		return false;
	command_start(command, word, length);
	return true;
}

static bool at_end(struct words words)
{
	const char *word;
	size_t length;

	return !next_word(&words, &word, &length);
}

/* What may stand at the end of a line that changes something: "noreply" or nothing. */
static bool next_noreply(struct words *words, bool *noreply)
{
	const char *word;
	size_t length;

	*noreply = next_word(words, &word, &length);
	return !*noreply || (length == 7 && !memcmp(word, "noreply", 7) && at_end(*words));
}

static const char BAD_LINE[] = "CLIENT_ERROR bad command line format\r\n";

static void do_get(struct worker *worker, struct connection *connection, struct words words,
		   bool with_cas)
{
	struct buffer *output = &connection->output;
	size_t start = output->length;
	bool any = false;

	for (;;) {
		struct command command = { .with_cas = with_cas, .output = output };
		const char *word;
		size_t length;
		int outcome;

		if (!next_word(&words, &word, &length))
			break;
		any = true;
		if (length > KEY_LENGTH_MAX) {
			output->length = start;
			say(connection, BAD_LINE);
			return;
		}
		command_start(&command, word, length);
		add(&worker->gets);
		do {
			outcome = run(worker, connection, get, &command);
		} while (outcome == NEEDS_ROOM && reserve(output, command.appended));
		if (outcome == NEEDS_ROOM)
			connection->closing = true;
		if (outcome < 0 || outcome == NEEDS_ROOM)
			return;
		if (outcome == DONE) {
			add(&worker->hits);
			output->length += command.appended;
		}
	}
	say(connection, any ? "END\r\n" : "ERROR\r\n");
}

/*
 * Stores the value that follows the line. Returns the bytes of the line and the value, or 0 if the
 * value has not arrived yet.
 */
static size_t do_store(struct worker *worker, struct connection *connection, struct words words,
		       enum store_mode mode, size_t line)
{
	const struct buffer *input = &connection->input;
	struct command command = { .mode = mode };
	uint64_t flags, length;
	const char *answer;
	bool noreply;

	if (!next_key(&words, &command) || !next_number(&words, &flags) || flags > UINT32_MAX ||
	    !next_expiry(&words, &command.expires) || !next_number(&words, &length) ||
	    length > INT32_MAX || (mode == CAS && !next_number(&words, &command.cas)) ||
	    !next_noreply(&words, &noreply)) {
		say(connection, BAD_LINE);
		return line;
	}
	if (length > VALUE_LENGTH_MAX) {
		say(connection, "SERVER_ERROR object too large for cache\r\n");
		connection->skip = length + 2;
		return line;
	}
	if (input->length - line < length + 2)
		return 0;
	command.flags = (uint32_t)flags;
	command.value = input->bytes + line;
	command.value_length = length;
	if (memcmp(command.value + length, "\r\n", 2)) {
		say(connection, "CLIENT_ERROR bad data chunk\r\n");
		return line + length + 2;
	}
	add(&worker->sets);
	switch (run(worker, connection, store, &command)) {
	case DONE:
		answer = "STORED\r\n";
		break;
	case EXISTS:
		answer = "EXISTS\r\n";
		break;
	case NOT_FOUND:
		answer = "NOT_FOUND\r\n";
		break;
	case NOT_STORED:
		answer = "NOT_STORED\r\n";
		break;
	case TOO_LARGE:
		answer = "SERVER_ERROR object too large for cache\r\n";
		break;
	default:
		return line + length + 2;
	}
	if (!noreply)
		say(connection, answer);
	return line + length + 2;
}

static void do_arithmetic(struct worker *worker, struct connection *connection,
			  struct words words, bool decrement)
{
	struct command command = { .decrement = decrement };
	char answer[32];
	bool noreply;

	if (!next_key(&words, &command)) {
		say(connection, BAD_LINE);
		return;
	}
	if (!next_number(&words, &command.delta) || !next_noreply(&words, &noreply)) {
		say(connection, "CLIENT_ERROR invalid numeric delta argument\r\n");
		return;
	}
	switch (run(worker, connection, arithmetic, &command)) {
	case DONE:
		snprintf(answer, sizeof(answer), "%" PRIu64 "\r\n", command.delta);
		if (!noreply)
			say(connection, answer);
		break;
	case NOT_FOUND:
		if (!noreply)
			say(connection, "NOT_FOUND\r\n");
		break;
	case NOT_A_NUMBER:
		say(connection,
		    "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n");
	}
}

static void do_delete(struct worker *worker, struct connection *connection, struct words words)
{
	struct command command = { 0 };
	struct words rest;
	uint64_t hold;
	bool noreply;
	int outcome;

	if (!next_key(&words, &command)) {
		say(connection, BAD_LINE);
		return;
	}
	/* Old clients send for how long the key is blocked; 0 is the only time that was ever kept. */
	rest = words;
	if (next_number(&rest, &hold) && !hold)
		words = rest;
	if (!next_noreply(&words, &noreply)) {
		say(connection,
		    "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]\r\n");
		return;
	}
	outcome = run(worker, connection, delete_item, &command);
	if (outcome >= 0 && !noreply)
		say(connection, outcome == DONE ? "DELETED\r\n" : "NOT_FOUND\r\n");
}

static void do_touch(struct worker *worker, struct connection *connection, struct words words)
{
	struct command command = { 0 };
	bool noreply;
	int outcome;

	if (!next_key(&words, &command) || !next_expiry(&words, &command.expires) ||
	    !next_noreply(&words, &noreply)) {
		say(connection, BAD_LINE);
		return;
	}
	outcome = run(worker, connection, touch, &command);
	if (outcome >= 0 && !noreply)
		say(connection, outcome == DONE ? "TOUCHED\r\n" : "NOT_FOUND\r\n");
}

static void do_flush_all(struct worker *worker, struct connection *connection, struct words words)
{
	struct words rest = words;
	uint64_t delay;
	bool noreply;

	if (next_number(&rest, &delay)) {
		if (delay) {
			say(connection, "CLIENT_ERROR a delay is not supported\r\n");
			return;
		}
		words = rest;
	}
	if (!next_noreply(&words, &noreply)) {
		say(connection, BAD_LINE);
		return;
	}
	for (unsigned int i = 0; i < server.shards; i++) {
		struct command command = { .domain = server.domains[i] };

		if (run(worker, connection, flush_all, &command) < 0)
			return;
	}
	if (!noreply)
		say(connection, "OK\r\n");
}

static void say_stat(struct connection *connection, const char *name, uint64_t value)
{
	char line[80];

	snprintf(line, sizeof(line), "STAT %s %" PRIu64 "\r\n", name, value);
	say(connection, line);
}

static void say_time(struct connection *connection, const char *name, struct timeval time)
{
	char line[80];

	snprintf(line, sizeof(line), "STAT %s %ld.%06ld\r\n", name, (long)time.tv_sec,
		 (long)time.tv_usec);
	say(connection, line);
}

/* Names as memcached has them, so that tools understand them. */
static void do_stats(struct worker *worker, struct connection *connection)
{
	uint64_t gets = 0, hits = 0, sets = 0, failed = 0;
	struct command command = { 0 };
	struct rusage usage;

	for (unsigned int i = 0; i < server.shards; i++) {
		command.domain = server.domains[i];
		if (run(worker, connection, count, &command) < 0)
			return;
	}
	for (unsigned int i = 0; i < server.threads; i++) {
		gets += atomic_load_explicit(&workers[i].gets, memory_order_relaxed);
		hits += atomic_load_explicit(&workers[i].hits, memory_order_relaxed);
		sets += atomic_load_explicit(&workers[i].sets, memory_order_relaxed);
		failed += atomic_load_explicit(&workers[i].failed, memory_order_relaxed);
	}
	getrusage(RUSAGE_SELF, &usage);
	say_stat(connection, "pid", (uint64_t)getpid());
	say_stat(connection, "uptime", (uint64_t)(time(NULL) - server.started));
	say_stat(connection, "time", (uint64_t)time(NULL));
	say_stat(connection, "pointer_size", 8 * sizeof(char *));
	say_time(connection, "rusage_user", usage.ru_utime);
	say_time(connection, "rusage_system", usage.ru_stime);
	say_stat(connection, "curr_items", command.items);
	say_stat(connection, "bytes", command.bytes);
	say_stat(connection, "evictions", command.evictions);
	say_stat(connection, "cmd_get", gets);
	say_stat(connection, "cmd_set", sets);
	say_stat(connection, "get_hits", hits);
	say_stat(connection, "get_misses", gets - hits);
	say_stat(connection, "failed_requests", failed);
	say_stat(connection, "limit_maxbytes", server.shard_bytes * server.shards);
	say_stat(connection, "threads", server.threads);
	say(connection, "END\r\n");
}

/* There is nothing to be more or less verbose about. */
static void do_verbosity(struct connection *connection, struct words words)
{
	bool noreply = false;
	unsigned int count = 0;
	const char *word;
	size_t length;

	for (; next_word(&words, &word, &length); count++)
		noreply = length == 7 && !memcmp(word, "noreply", 7);
	if (!noreply)
		say(connection, count == 1 ? "OK\r\n" : "ERROR\r\n");
}

/*
 * Carries out the command in the input's first line of `line` bytes, with its end. Returns the
 * bytes that were used up, or 0 if more has to arrive.
 */
static size_t execute(struct worker *worker, struct connection *connection, size_t line)
{
	const char *text = connection->input.bytes, *word;
	struct words words = { .at = text, .end = text + line - 1 };
	size_t length;

	if (words.end > words.at && words.end[-1] == '\r')
		words.end--;
	next_word(&words, &word, &length);
#define IS(name) (length == sizeof(name) - 1 && !memcmp(word, name, sizeof(name) - 1))
	if (IS("get"))
		do_get(worker, connection, words, false);
	else if (IS("gets"))
		do_get(worker, connection, words, true);
	else if (IS("set"))
		return do_store(worker, connection, words, SET, line);
	else if (IS("add"))
		return do_store(worker, connection, words, ADD, line);
	else if (IS("replace"))
		return do_store(worker, connection, words, REPLACE, line);
	else if (IS("append"))
		return do_store(worker, connection, words, APPEND, line);
	else if (IS("prepend"))
		return do_store(worker, connection, words, PREPEND, line);
	else if (IS("cas"))
		return do_store(worker, connection, words, CAS, line);
	else if (IS("delete"))
		do_delete(worker, connection, words);
	else if (IS("incr"))
		do_arithmetic(worker, connection, words, false);
	else if (IS("decr"))
		do_arithmetic(worker, connection, words, true);
	else if (IS("touch"))
		do_touch(worker, connection, words);
	else if (IS("flush_all"))
		do_flush_all(worker, connection, words);
	else if (IS("stats") && at_end(words))
		do_stats(worker, connection);
	else if (IS("version"))
		say(connection, "VERSION 1.6.0-vmsrs\r\n");
	else if (IS("verbosity"))
		do_verbosity(connection, words);
	else if (IS("quit"))
		connection->closing = true;
	else
		say(connection, "ERROR\r\n");
#undef IS
	return line;
}

static void consume(struct buffer *buffer, size_t length)
{
	memmove(buffer->bytes, buffer->bytes + length, buffer->length - length);
	buffer->length -= length;
}

/* Carries out what has arrived completely. */
static void execute_all(struct worker *worker, struct connection *connection)
{
	struct buffer *input = &connection->input;
	struct buffer whole = *input;
	size_t used = 0;

	/* Commands see the rest of the input as if it began with them. */
	while (!connection->closing && used < whole.length) {
		size_t left = whole.length - used, step;
		char *end;

		input->bytes = whole.bytes + used;
		input->length = left;
		if (connection->skip) {
			step = connection->skip < left ? connection->skip : left;
			connection->skip -= step;
			used += step;
			continue;
		}
		end = memchr(input->bytes, '\n', left);
		if (!end && left > LINE_LENGTH_MAX) {
			say(connection, "CLIENT_ERROR line too long\r\n");
			connection->closing = true;
		}
		step = end ? execute(worker, connection, (size_t)(end - input->bytes) + 1) : 0;
		if (!step)
			break;
		used += step;
	}
	*input = whole;
	consume(input, used);
}

static bool flush(struct connection *connection)
{
	struct buffer *output = &connection->output;

	while (connection->sent < output->length) {
		ssize_t sent = send(connection->socket, output->bytes + connection->sent,
				    output->length - connection->sent, MSG_NOSIGNAL);

		if (sent < 0)
			return errno == EAGAIN || errno == EINTR;
		connection->sent += (size_t)sent;
	}
	output->length = 0;
	connection->sent = 0;
	return !connection->closing;
}

/* Serves a connection that is ready. False: it is over. */
static bool serve(struct worker *worker, struct connection *connection)
{
	struct buffer *input = &connection->input;
	ssize_t received;

	if (!flush(connection))
		return false;
	/* A client that does not read its answers is not asked for more. */
	if (connection->output.length)
		return true;
	if (input->length == input->room && !reserve(input, BUFFER_START))
		return false;
	received = recv(connection->socket, input->bytes + input->length,
			input->room - input->length, 0);
	if (received < 0)
		return errno == EAGAIN || errno == EINTR;
	if (!received)
		return false;
	input->length += (size_t)received;
	execute_all(worker, connection);
	return input->length <= INPUT_MAX && flush(connection);
}

static void connection_free(struct connection *connection)
{
	close(connection->socket);
	free(connection->input.bytes);
	free(connection->output.bytes);
	free(connection);
}

static void watch(struct worker *worker, struct connection *connection, int operation)
{
	struct epoll_event event = { .data.ptr = connection };

	event.events = connection->output.length ? EPOLLOUT : EPOLLIN;
	if (epoll_ctl(worker->epoll, operation, connection->socket, &event))
		connection_free(connection);
}

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct epoll_event events[64];

	for (;;) {
		int count = epoll_wait(worker->epoll, events, 64, -1);

		for (int i = 0; i < count; i++) {
			struct connection *connection = events[i].data.ptr;
			bool sending = connection->output.length;

			if (!serve(worker, connection))
				connection_free(connection);
			else if (sending != !!connection->output.length)
				watch(worker, connection, EPOLL_CTL_MOD);
		}
	}
	return NULL;
}

/* ---- Start ------------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("cache: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	exit(1);
}

static void start_workers(void)
{
	workers = calloc(server.threads, sizeof(*workers));
	if (!workers)
		die("out of memory");
	for (unsigned int i = 0; i < server.threads; i++) {
		workers[i].epoll = epoll_create1(EPOLL_CLOEXEC);
		if (workers[i].epoll < 0 ||
		    pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("cannot start a thread");
	}
}

static void open_shards(void)
{
	vmsrs_app *app;
	int code;

	code = vmsrs_open("cache", &app);
	if (code != VMSRS_OK)
		die("open: %s", vmsrs_strerror(code));
	server.domains = calloc(server.shards, sizeof(*server.domains));
	if (!server.domains)
		die("out of memory");
	for (unsigned int i = 0; i < server.shards; i++) {
		char key[32];
		int length = snprintf(key, sizeof(key), "shard %u of %u", i, server.shards);
		int result = 0;

		code = vmsrs_domain_open(app, key, (size_t)length, &server.domains[i]);
		if (code == VMSRS_OK)
			code = vmsrs_run(server.domains[i], shard_make, server.domains[i],
					 &result);
		if (code != VMSRS_OK || result)
			die("%s: %s", key, result ? "no memory" : vmsrs_strerror(code));
	}
}

static int listen_on(uint16_t port)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	address.sin_addr.s_addr = htonl(INADDR_ANY);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, 1024))
		die("port %u: %s", port, strerror(errno));
	return listener;
}

static uint64_t option_number(const char *text, uint64_t least, uint64_t most)
{
	uint64_t number;

	if (!parse_number(text, strlen(text), &number) || number < least || number > most)
		die("%s: a number from %" PRIu64 " to %" PRIu64 " is expected", text, least, most);
	return number;
}

static void parse_options(int argc, char **argv)
{
	uint64_t megabytes = 64;
	int option;

	while ((option = getopt(argc, argv, "p:t:m:s:h")) != -1) {
		switch (option) {
		case 'p':
			server.port = (uint16_t)option_number(optarg, 1, UINT16_MAX);
			break;
		case 't':
			server.threads = (unsigned int)option_number(optarg, 1, 1024);
			break;
		case 'm':
			megabytes = option_number(optarg, 1, 1024 * 1024);
			break;
		case 's':
			server.shards = (unsigned int)option_number(optarg, 1, 65536);
			break;
		default:
			fprintf(option == 'h' ? stdout : stderr,
				"usage: cache [-p PORT] [-t THREADS] [-m MEGABYTES] [-s SHARDS]\n");
			exit(option == 'h' ? 0 : 2);
		}
	}
	server.shard_bytes = megabytes * 1024 * 1024 / server.shards;
	server.started = time(NULL);
}

int main(int argc, char **argv)
{
	unsigned int turn = 0;
	int listener;

	parse_options(argc, argv);
	open_shards();
	listener = listen_on(server.port);
	start_workers();
	for (;;) {
		int one = 1, client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		struct connection *connection;

		if (client < 0) {
			/* Out of descriptors: those in use must end first. */
			if (errno == EMFILE || errno == ENFILE)
				usleep(10000);
			continue;
		}
		setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		connection = calloc(1, sizeof(*connection));
		if (!connection) {
			close(client);
			continue;
		}
		connection->socket = client;
		watch(&workers[turn++ % server.threads], connection, EPOLL_CTL_ADD);
	}
}
