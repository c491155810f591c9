/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A small server: users with notes. One kind of request has a bug; the others go on.
 *
 *	cc examples/notes.c $(pkg-config --cflags --libs vmsrs) -o notes
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vmsrs.h>

/* The root of a user's domain, from which all its data is reached. */
struct notes {
	unsigned int count;
	char *last;
};

static vmsrs_domain *user;

static struct notes *notes(void)
{
	struct notes *root = vmsrs_root(user);

	if (root)
		return root;
	root = vmsrs_alloc_zeroed(user, sizeof(*root));
	if (!root || vmsrs_set_root(user, root) != VMSRS_OK)
		return NULL;
	return root;
}

/* Adds a note; gives up if there is no memory. */
static int add_note(vmsrs_request *request, void *argument)
{
	const char *text = argument;
	struct notes *root = notes();
	char *copy;

	(void)request;
	if (!root)
		return -1;
	copy = vmsrs_alloc(user, strlen(text) + 1);
	if (!copy)
		return -1;
	strcpy(copy, text);
	vmsrs_free(user, root->last);
	root->last = copy;
	return (int)++root->count;
}

/* Shouts the last note. The bug: a user may have no notes yet. */
static int shout(vmsrs_request *request, void *argument)
{
	struct notes *root = vmsrs_root(user);

	(void)request;
	(void)argument;
	root->last[0] -= 32;
	return (int)root->count;
}

static int serve(vmsrs_request_fn function, const char *text)
{
	vmsrs_failure failure;
	int value = 0;
	int code = vmsrs_run(user, function, (void *)text, &value);

	if (code == VMSRS_OK) {
		printf("ok %d\n", value);
	} else if (code == VMSRS_EFAILED && vmsrs_last_failure(&failure) == VMSRS_OK) {
		printf("failed: %s at %#llx\n", vmsrs_kind_name(failure.kind),
		       (unsigned long long)failure.address);
	} else {
		printf("error: %s\n", vmsrs_strerror(code));
	}
	return code;
}

int main(void)
{
	vmsrs_app *app;
	int code = vmsrs_open("notes", &app);

	if (code == VMSRS_OK)
		code = vmsrs_domain_open(app, "alice", 5, &user);
	if (code != VMSRS_OK) {
		fprintf(stderr, "notes: %s\n", vmsrs_strerror(code));
		return EXIT_FAILURE;
	}
	serve(shout, NULL);
	serve(add_note, "buy milk");
	serve(shout, NULL);
	serve(add_note, "feed the cat");
	return EXIT_SUCCESS;
}
