/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Lists for several users over TCP. A request is a line: USER COMMAND [SLOT] [TEXT]. Without VMSRS. */
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

enum { SLOTS = 4 };
struct list { unsigned saves; char *item[SLOTS]; };	/* one user's data */
struct board { unsigned long requests; };		/* shared by all users */
struct user { struct user *next; char name[16]; pthread_mutex_t lock; struct list *list; };
struct request {
	struct user *user;
	char command[8], text[64], answer[256];
	unsigned slot;
};

static struct user *users;
static struct board board;
static pthread_mutex_t users_lock = PTHREAD_MUTEX_INITIALIZER, board_lock = PTHREAD_MUTEX_INITIALIZER;

static struct user *find_user(const char *name)
{
	struct user *user;

	pthread_mutex_lock(&users_lock);
	for (user = users; user && strcmp(user->name, name); user = user->next)
		;
	if (!user && (user = calloc(1, sizeof(*user)))) {
		strcpy(user->name, name);
		user->list = calloc(1, sizeof(*user->list));
		pthread_mutex_init(&user->lock, NULL);
		user->next = users;
		users = user;
	}
	pthread_mutex_unlock(&users_lock);
	return user;
}

/* set SLOT TEXT: stores the text in the slot. */
static void set(struct list *list, struct request *request)
{
	free(list->item[request->slot]);
	list->item[request->slot] = strdup(request->text);
}

/* append SLOT TEXT: appends a space and the text. BUG: allocates no room for the space. */
static void append(struct list *list, struct request *request)
{
	char *old = list->item[request->slot] ? list->item[request->slot] : "";
	char *joined = malloc(strlen(old) + strlen(request->text) + 1);

	stpcpy(stpcpy(stpcpy(joined, old), " "), request->text);
	if (old[0])
		free(old);
	list->item[request->slot] = joined;
}

/* save: writes the list to a file. BUG: does not check for empty slots. */
static void save(struct list *list, struct request *request)
{
	char path[32], partial[32];
	int file;

	snprintf(path, sizeof(path), "%s.list", request->user->name);
	snprintf(partial, sizeof(partial), "%s.partial", request->user->name);
	file = open(partial, O_CREAT | O_WRONLY | O_TRUNC, 0600);
	list->saves++;
	for (int i = 0; i < SLOTS; i++)
		dprintf(file, "%.*s\n", (int)strlen(list->item[i]), list->item[i]);
	close(file);
	rename(partial, path);
}

static void work(struct request *request)
{
	struct list *list = request->user->list;

	pthread_mutex_lock(&board_lock);
	board.requests++;
	pthread_mutex_unlock(&board_lock);
	if (!strcmp(request->command, "set"))
		set(list, request);
	else if (!strcmp(request->command, "append"))
		append(list, request);
	else if (!strcmp(request->command, "save"))
		save(list, request);
	snprintf(request->answer, sizeof(request->answer), "ok %u %s, %s, %s, %s", list->saves,
		 list->item[0], list->item[1], list->item[2], list->item[3]);
}

static void run(struct request *request)
{
	pthread_mutex_lock(&request->user->lock);
	work(request);
	pthread_mutex_unlock(&request->user->lock);
}

static void *connection(void *stream)
{
	char line[128], name[16];

	while (fgets(line, sizeof(line), stream)) {
		struct request request = { .slot = 0 };

		if (sscanf(line, "%15[a-z] %7[a-z] %u %63[^\r\n]", name, request.command, &request.slot,
			   request.text) < 2 || request.slot >= SLOTS)
			continue;
		request.user = find_user(name);
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
