/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/* Housekeeping that fails again and again; see docs/porting.md. */
#include <stdio.h>
#include <stdlib.h>
#include <vmsrs.h>

struct session {
	struct session *next;
	int number;
	int *will; /* wild in the third one */
};

struct root {
	struct session *expired;
	int sent;
};

static vmsrs_domain *state;

/* Each element is its own request: the first one, since the list may be another one by the next. */
static int end_first(vmsrs_request *request, void *argument)
{
	struct root *root = vmsrs_root(state);
	struct session *first = root->expired;

	(void)request;
	(void)argument;
	root->sent += *first->will;
	root->expired = first->next;
	return vmsrs_free(state, first);
}

/* Takes the element off, and touches nothing else of it: it is not freed. */
static int skip_first(vmsrs_request *request, void *argument)
{
	struct root *root = vmsrs_root(state);

	(void)request;
	(void)argument;
	root->expired = root->expired->next;
	return 0;
}

static void end_expired(void)
{
	/* Outside of requests the loop only looks whether there is something to do. */
	while (((struct root *)vmsrs_root(state))->expired) {
		if (vmsrs_run(state, end_first, NULL, NULL) == VMSRS_OK)
			continue;
		/* The same error may come again and again, as what it comes of is committed. */
		if (vmsrs_run(state, skip_first, NULL, NULL) != VMSRS_OK)
			return;
	}
}

static int fill(vmsrs_request *request, void *argument)
{
	static int wills[] = { 1, 2, 3, 4 };
	struct root *root = vmsrs_alloc_zeroed(state, sizeof(*root));

	(void)request;
	(void)argument;
	if (!root || vmsrs_set_root(state, root))
		return -1;
	for (int i = 3; i >= 0; i--) {
		struct session *session = vmsrs_alloc(state, sizeof(*session));

		if (!session)
			return -1;
		*session = (struct session){ root->expired, i, i == 2 ? (int *)8 : &wills[i] };
		root->expired = session;
	}
	return 0;
}

int main(void)
{
	vmsrs_app *app;
	struct root *root;

	if (vmsrs_open("housekeeping", &app) || vmsrs_domain_open(app, "state", 5, &state) ||
	    vmsrs_run(state, fill, NULL, NULL))
		return EXIT_FAILURE;
	end_expired();
	root = vmsrs_root(state);
	printf("%s, %d\n", root->expired ? "not done" : "done", root->sent);
	return 0;
}
