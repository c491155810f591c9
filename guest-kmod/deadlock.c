// SPDX-License-Identifier: GPL-2.0
/*
 * Who waits for whom: a circle of requests, each of which waits for a domain that the next one
 * holds, would last until somebody's timeout. Whoever would close one is told instead of put to
 * sleep.
 *
 * An edge leads from a sleeper's tag to the tag in the lock word that it sleeps for. Words change
 * without the driver, so edges are read from them during the walk and stored nowhere. All sleepers
 * of a circle are registered when its last one looks, and that one finds it: whoever takes a lock
 * without the driver runs, and only closes a circle when it sleeps itself. A thread of a request
 * that has another one asleep already can close one without sleeping; sleepers therefore look again
 * after each slice of their sleep.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include "vmsrs.h"

/*
 * Most sleepers that one walk looks at. It holds waits_lock; in a longer chain the lock's timeout is
 * the way out.
 */
#define WALK_MAX 1024

void vmsrs_waits_init(struct vmsrs_device *dev)
{
	spin_lock_init(&dev->waits_lock);
	hash_init(dev->waits);
}

/* Appends the sleepers of a tag to the list of those to follow. True if `target` is that tag. */
static bool follow(struct vmsrs_wait *of, u64 tag, u64 target, struct list_head *todo)
{
	struct vmsrs_device *dev = of->app->dev;
	struct vmsrs_wait *wait;

	if (tag == target)
		return true;
	hash_for_each_possible(dev->waits, wait, node, tag)
		if (wait->tag == tag && wait->app == of->app && list_empty(&wait->todo))
			list_add_tail(&wait->todo, todo);
	return false;
}

/*
 * Does what `first` waits for depend on its own request? waits_lock is held. Each sleeper is
 * followed once: it is on `todo` from then to the end.
 */
static bool closes_circle(struct vmsrs_wait *first)
{
	struct vmsrs_wait *wait, *next;
	bool found = false;
	u32 steps = 0;
	LIST_HEAD(todo);

	list_add(&first->todo, &todo);
	list_for_each_entry(wait, &todo, todo) {
		u64 holder = atomic64_read(wait->word) & VMSRS_LOCK_TAG;

		if (holder && follow(wait, holder, first->tag, &todo)) {
			found = true;
			break;
		}
		if (++steps == WALK_MAX)
			break;
	}
	list_for_each_entry_safe(wait, next, &todo, todo)
		list_del_init(&wait->todo);
	return found;
}

/*
 * Registers a sleeper, or has a registered one look again. -EDEADLK: it would close a circle; then
 * it is not registered.
 */
int vmsrs_wait_enter(struct vmsrs_wait *wait)
{
	struct vmsrs_device *dev = wait->app->dev;
	bool circle;

	spin_lock(&dev->waits_lock);
	if (hlist_unhashed(&wait->node))
		hash_add(dev->waits, &wait->node, wait->tag);
	circle = closes_circle(wait);
	if (circle)
		hash_del(&wait->node);
	spin_unlock(&dev->waits_lock);
	return circle ? -EDEADLK : 0;
}

/* The sleeper, if it was registered, has what it waited for or gave up. */
void vmsrs_wait_leave(struct vmsrs_wait *wait)
{
	struct vmsrs_device *dev = wait->app->dev;

	if (hlist_unhashed(&wait->node))
		return;
	spin_lock(&dev->waits_lock);
	hash_del(&wait->node);
	spin_unlock(&dev->waits_lock);
}
