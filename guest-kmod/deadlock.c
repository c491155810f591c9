// SPDX-License-Identifier: GPL-2.0
/*
 * Deadlock detection: a cycle of requests, each waiting for a domain that the next one holds,
 * would last until a timeout. The request that would close a cycle gets an error instead.
 *
 * An edge leads from a sleeper's tag to the tag in the lock word that it sleeps for. Words
 * change without the driver, so edges are read from them during the walk and not stored. All
 * sleepers of a cycle are registered when the last one looks, and that one finds the cycle: a
 * thread that takes a lock without the driver is running, and closes a cycle only when it sleeps
 * itself. A second thread of a request that has one asleep can close a cycle without sleeping;
 * sleepers therefore look again after each slice of their sleep.
 */
#include "vmsrs.h"

/*
 * Most sleepers that one walk visits, since it holds waits_lock. In a longer chain the lock's
 * timeout is the way out.
 */
#define VMSRS_WALK_MAX 1024

/**
 * struct walk - a walk over the sleepers of an app
 * @todo: sleepers visited or to visit, each once
 * @looked: how many these are
 */
struct walk {
	struct list_head todo;
	u32 looked;
};

/**
 * vmsrs_waits_init() - initialise the graph of waiting requests
 * @app: the app
 */
void vmsrs_waits_init(struct vmsrs_app *app)
{
	spin_lock_init(&app->waits_lock);
	app->waits = RB_ROOT;
}

static u64 tag_of(const struct rb_node *node)
{
	return rb_entry(node, struct vmsrs_wait, node)->tag;
}

static bool tag_less(struct rb_node *node, const struct rb_node *parent)
{
	return tag_of(node) < tag_of(parent);
}

static int tag_compare(const void *key, const struct rb_node *node)
{
	u64 tag = *(const u64 *)key;

	if (tag == tag_of(node))
		return 0;
	return tag < tag_of(node) ? -1 : 1;
}

/* Appends the sleepers of a tag to those to visit, up to VMSRS_WALK_MAX in all. */
static void follow(struct walk *walk, struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_wait *wait;
	struct rb_node *node;

	rb_for_each(node, &tag, &app->waits, tag_compare) {
		wait = rb_entry(node, struct vmsrs_wait, node);
		/* The order is the same each time: if the first was visited, all were. */
		if (!list_empty(&wait->todo) || walk->looked == VMSRS_WALK_MAX)
			return;
		list_add_tail(&wait->todo, &walk->todo);
		walk->looked++;
	}
}

/* Does what `first` waits for depend on its own request? waits_lock is held. */
static bool closes_cycle(struct vmsrs_wait *first)
{
	struct walk walk = { .looked = 1 };
	struct vmsrs_wait *wait, *next;
	bool found = false;

	INIT_LIST_HEAD(&walk.todo);
	list_add(&first->todo, &walk.todo);
	list_for_each_entry(wait, &walk.todo, todo) {
		u64 holder = atomic64_read(wait->word) & VMSRS_LOCK_TAG;

		if (holder == first->tag) {
			found = true;
			break;
		}
		if (holder)
			follow(&walk, first->app, holder);
	}
	list_for_each_entry_safe(wait, next, &walk.todo, todo)
		list_del_init(&wait->todo);
	return found;
}

/* waits_lock is held. */
static void wait_remove(struct vmsrs_wait *wait)
{
	lockdep_assert_held(&wait->app->waits_lock);
	rb_erase(&wait->node, &wait->app->waits);
	RB_CLEAR_NODE(&wait->node);
}

/**
 * vmsrs_wait_enter() - register a sleeper, or have a registered one look again
 * @wait: the sleeper
 *
 * Return: 0; -EDEADLK: it would close a cycle, and is not registered.
 */
int vmsrs_wait_enter(struct vmsrs_wait *wait)
{
	struct vmsrs_app *app = wait->app;
	bool cycle;

	spin_lock(&app->waits_lock);
	if (RB_EMPTY_NODE(&wait->node))
		rb_add(&wait->node, &app->waits, tag_less);
	cycle = closes_cycle(wait);
	if (cycle)
		wait_remove(wait);
	spin_unlock(&app->waits_lock);
	return cycle ? -EDEADLK : 0;
}

/**
 * vmsrs_wait_leave() - unregister a sleeper that has the lock or gave up
 * @wait: the sleeper; it need not be registered
 */
void vmsrs_wait_leave(struct vmsrs_wait *wait)
{
	struct vmsrs_app *app = wait->app;

	if (RB_EMPTY_NODE(&wait->node))
		return;
	spin_lock(&app->waits_lock);
	wait_remove(wait);
	spin_unlock(&app->waits_lock);
}
