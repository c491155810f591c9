// SPDX-License-Identifier: GPL-2.0
/* The sleep of a thread that finds a domain's lock taken. */
#include <linux/jiffies.h>
#include <linux/sched/signal.h>

#include "vmsrs.h"

/* Releases the lock of a domain that a process has marked as deleted and that is not. */
static void release_forged(struct vmsrs_app *app, u32 domain)
{
	/* A deletion marks the lock and is noted without letting go of this one. */
	mutex_lock(&app->lock);
	if (!xa_load(&app->deleted, domain))
		vmsrs_lock_release(app, domain, VMSRS_LOCK_DELETED);
	mutex_unlock(&app->lock);
}

/* Releases the lock of a request that no thread works for: nothing else would. */
static void release_orphan(struct vmsrs_app *app, u32 domain)
{
	u64 tag = vmsrs_lock_tag(app, domain);

	if (tag == VMSRS_LOCK_DELETED)
		release_forged(app, domain);
	else if (tag && vmsrs_request_orphaned(app, tag))
		vmsrs_fail_orphan(app, domain, tag);
}

/* Sleeps until the task has the lock or there is a reason to give up. */
static long lock_sleep(struct vmsrs_app *app, const struct vmsrs_ioctl_lock *arg,
		       struct vmsrs_lock_sleeper *sleeper, struct vmsrs_wait *wait)
{
	unsigned long due = jiffies + msecs_to_jiffies(arg->timeout_ms);
	long ret, left;

	for (;;) {
		/* Before the word is read, so that no wake-up is missed. */
		set_current_state(TASK_INTERRUPTIBLE);
		if (vmsrs_request_failed(app, arg->tag)) {
			ret = -ESTALE;
			break;
		}
		if (READ_ONCE(sleeper->granted)) {
			ret = 0;
			break;
		}
		ret = vmsrs_lock_try(sleeper->word, arg->tag);
		if (ret != -EAGAIN)
			break;
		if (vmsrs_lock_deleted(app, arg->domain)) {
			ret = -EIDRM;
			break;
		}
		if (READ_ONCE(app->dev->gone)) {
			ret = -ENODEV;
			break;
		}
		if (signal_pending(current)) {
			ret = -EINTR;
			break;
		}
		left = (long)(due - jiffies);
		if (left <= 0) {
			ret = -ETIMEDOUT;
			break;
		}
		ret = vmsrs_wait_enter(wait);
		if (ret)
			break;
		if (!schedule_timeout(min_t(long, left, VMSRS_LOCK_SLICE)))
			release_orphan(app, arg->domain);
	}
	__set_current_state(TASK_RUNNING);
	return ret;
}

/**
 * vmsrs_lock_wait() - wait for a domain's lock and take it
 * @app: the app
 * @arg: argument of the ioctl; the tag is the calling thread's
 *
 * Return: 0; -EEXIST: the request holds the lock; -ESTALE: it has failed; -EDEADLK: the holder
 * waits for it; -EIDRM: the domain is deleted; -ETIMEDOUT; -EINTR; -ENODEV; -ENOMEM.
 */
long vmsrs_lock_wait(struct vmsrs_app *app, const struct vmsrs_ioctl_lock *arg)
{
	struct vmsrs_wait wait = { .app = app, .tag = arg->tag };
	struct vmsrs_lock_sleeper sleeper = { .task = current, .tag = arg->tag };
	long ret;

	sleeper.word = vmsrs_lock_word(app, arg->domain, GFP_KERNEL_ACCOUNT);
	if (!sleeper.word)
		return -ENOMEM;
	wait.word = sleeper.word;
	RB_CLEAR_NODE(&wait.node);
	INIT_LIST_HEAD(&wait.todo);
	vmsrs_sleeper_add(&sleeper);
	ret = lock_sleep(app, arg, &sleeper, &wait);
	vmsrs_wait_leave(&wait);
	if (vmsrs_sleeper_remove(&sleeper)) {
		/* Whatever ended the sleep, the task has the lock, unless its request failed. */
		if (ret == -ESTALE)
			vmsrs_lock_release(app, arg->domain, arg->tag);
		else
			ret = 0;
	}
	/*
	 * A wake-up that came too late is passed on: the task has given up, or its request failed
	 * and the lock was released since.
	 */
	if (ret || vmsrs_lock_tag(app, arg->domain) != arg->tag)
		vmsrs_lock_wake_one(sleeper.word);
	return ret;
}
