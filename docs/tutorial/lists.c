/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Lists for several users over TCP. A request is a line: USER COMMAND [SLOT] [TEXT]. With VMSRS. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vmsrs.h>

enum { SLOTS = 4 };
struct list { unsigned saves; char *item[SLOTS]; };	/* one user's data: root of the user's domain */
struct board { unsigned long requests; };		/* shared by all users: root of its domain */
struct user { struct user *next; char name[16]; vmsrs_domain *domain; };
struct request {
	struct user *user;
	char command[8], text[64], answer[256];
	unsigned slot;
	vmsrs_request *running;	/* valid while the request runs */
	char partial[32];	/* file that undo_save() removes */
	int file;		/* -1 when closed */
};

static struct user *users;
static vmsrs_app *app;
static vmsrs_domain *board_domain;
static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER;

static struct user *find_user(const char *name)
{
	struct user *user;

	pthread_mutex_lock(&users_lock);
	for (user = users; user && strcmp(user->name, name); user = user->next)
		;
	if (!user && (user = calloc(1, sizeof(*user)))) {
		strcpy(user->name, name);
		if (vmsrs_domain_open(app, name, strlen(name), &user->domain) == VMSRS_OK) {
			user->next = users;
			users = user;
		} else {
			free(user);
			user = NULL;
		}
	}
	pthread_mutex_unlock(&users_lock);
	return user;
}

/* The root block of a domain, allocated on first use. */
static void *root(vmsrs_domain *domain, size_t size)
{
	void *block = vmsrs_root(domain);

	if (block)
		return block;
	block = vmsrs_alloc_zeroed(domain, size);
	if (!block || vmsrs_set_root(domain, block) != VMSRS_OK)
		vmsrs_fail("no memory");
	return block;
}

static char *allocate(struct request *request, size_t size)
{
	char *block = vmsrs_alloc(request->user->domain, size);

	if (!block)
		vmsrs_fail("no memory");
	return block;
}

/* set SLOT TEXT: stores the text in the slot. */
static void set(struct list *list, struct request *request)
{
	vmsrs_free(request->user->domain, list->item[request->slot]);
	list->item[request->slot] = allocate(request, strlen(request->text) + 1);
	strcpy(list->item[request->slot], request->text);
}

/* append SLOT TEXT: appends a space and the text. BUG: allocates no room for the space. */
static void append(struct list *list, struct request *request)
{
	char *old = list->item[request->slot] ? list->item[request->slot] : "";
	char *joined = allocate(request, strlen(old) + strlen(request->text) + 1);

	stpcpy(stpcpy(stpcpy(joined, old), " "), request->text);
	if (old[0])
		vmsrs_free(request->user->domain, old);
	list->item[request->slot] = joined;
}

static void undo_save(void *argument)
{
	struct request *request = argument;

	if (request->file >= 0)
		close(request->file);
	unlink(request->partial);
}

/* save: writes the list to a file. BUG: does not check for empty slots. */
static void save(struct list *list, struct request *request)
{
	char path[32];

	snprintf(path, sizeof(path), "%s.list", request->user->name);
	snprintf(request->partial, sizeof(request->partial), "%s.partial", request->user->name);
	request->file = open(request->partial, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	if (vmsrs_defer(request->running, undo_save, request) != VMSRS_OK)
		vmsrs_fail("too many defers");
	list->saves++;
	for (int i = 0; i < SLOTS; i++)
		dprintf(request->file, "%.*s\n", (int)strlen(list->item[i]), list->item[i]);
	close(request->file);
	request->file = -1;
	rename(request->partial, path);
}

static int work(vmsrs_request *running, void *argument)
{
	struct request *request = argument;
	struct list *list = root(request->user->domain, sizeof(*list));
	struct board *board;

	request->running = running;
	if (vmsrs_enter(running, board_domain) != VMSRS_OK)
		vmsrs_fail("cannot lock the board");
	board = root(board_domain, sizeof(*board));
	board->requests++;
	if (vmsrs_leave(running, board_domain) != VMSRS_OK)
		vmsrs_fail("cannot commit the board");
	if (!strcmp(request->command, "set"))
		set(list, request);
	else if (!strcmp(request->command, "append"))
		append(list, request);
	else if (!strcmp(request->command, "save"))
		save(list, request);
	snprintf(request->answer, sizeof(request->answer), "ok %u %s, %s, %s, %s", list->saves,
		 list->item[0], list->item[1], list->item[2], list->item[3]);
	return 0;
}

static void run(struct request *request)
{
	int code = vmsrs_run(request->user->domain, work, request, NULL);
	vmsrs_failure failure;

	if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK)
		snprintf(request->answer, sizeof(request->answer), "failed: %s, incident %llu",
			 vmsrs_kind_name(failure.kind), (unsigned long long)failure.incident);
	else if (code != VMSRS_OK)
		snprintf(request->answer, sizeof(request->answer), "refused: %s", vmsrs_strerror(code));
}

static void *connection(void *stream)
{
	char line[128], name[16];

	while (fgets(line, sizeof(line), stream)) {
		struct request request = { .slot = 0 };

		if (sscanf(line, "%15[a-z] %7[a-z] %u %63[^\r\n]", name, request.command,
			   &request.slot, request.text) < 2 || request.slot >= SLOTS)
			continue;
		request.user = find_user(name);
		if (!request.user)
			break;
		run(&request);
		dprintf(fileno(stream), "%s\n", request.answer);
	}
	fclose(stream);
	return NULL;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET };
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	pthread_t thread;
	int code = vmsrs_open("lists", &app);

	if (code == VMSRS_OK)
		code = vmsrs_domain_open(app, "/board", strlen("/board"), &board_domain);
	if (code != VMSRS_OK) {
		fprintf(stderr, "lists: %s\n", vmsrs_strerror(code));
		return 1;
	}
	signal(SIGPIPE, SIG_IGN);
	address.sin_port = htons(argc > 1 ? atoi(argv[1]) : 7000);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) || listen(listener, 8)) {
		perror("lists");
		return 1;
	}
	for (;;)
		pthread_create(&thread, NULL, connection, fdopen(accept(listener, NULL, NULL), "r"));
}
