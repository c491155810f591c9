// SPDX-License-Identifier: GPL-2.0
/*
 * Suspended requests: no thread carries their tag, but their drafts and locks stay theirs. They are
 * known from IOCTL_SUSPEND to IOCTL_RESUME or IOCTL_ABANDON, even if they fail meanwhile: whoever
 * resumes one must learn of it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/slab.h>

#include "vmsrs.h"

/* Overdue requests that one run of the watch fails; the next run takes the others. */
#define VMSRS_OVERDUE_MAX 16

/* Takes over the list of domains that the thread holds. requests_lock is held. */
static void take_held(struct vmsrs_request *request, const struct vmsrs_thread *thread)
{
	u32 count = min_t(u32, READ_ONCE(thread->control->held_count), VMSRS_HELD_MAX);
	u32 i;

	for (i = 0; i < count; i++)
		request->held[i] = READ_ONCE(thread->control->held[i]);
	request->held_count = count;
}

static bool due_less(struct rb_node *node, const struct rb_node *parent)
{
	return rb_entry(node, struct vmsrs_request, due_node)->due_ns <
	       rb_entry(parent, struct vmsrs_request, due_node)->due_ns;
}

/* The watch has nothing to do about a suspended request any more. requests_lock is held. */
void vmsrs_suspended_undue(struct vmsrs_request *request)
{
	struct vmsrs_device *dev = request->app->dev;

	lockdep_assert_held(&dev->requests_lock);
	if (RB_EMPTY_NODE(&request->due_node))
		return;
	rb_erase_cached(&request->due_node, &dev->due_requests);
	RB_CLEAR_NODE(&request->due_node);
}

/* Notes that a request is suspended. requests_lock is held. */
static void suspend(struct vmsrs_file *file, struct vmsrs_request *request, u64 due_ns)
{
	lockdep_assert_held(&file->dev->requests_lock);
	request->suspended_by = file;
	list_add_tail(&request->suspended_entry, &file->suspended);
	file->suspended_count++;
	request->due_ns = due_ns;
	if (due_ns)
		rb_add_cached(&request->due_node, &file->dev->due_requests, due_less);
}

/* Forgets that a request is suspended. requests_lock is held. */
static void unsuspend(struct vmsrs_request *request)
{
	struct vmsrs_device *dev = request->app->dev;

	lockdep_assert_held(&dev->requests_lock);
	vmsrs_suspended_undue(request);
	list_del_init(&request->suspended_entry);
	request->suspended_by->suspended_count--;
	request->suspended_by = NULL;
	/* It is remembered for as long as a thread carries its tag. */
	if (request->failed)
		list_add_tail(&request->failed_entry, &dev->failed_requests);
}

/* Sets a thread's request aside. The caller checked that the thread is its caller's. */
long vmsrs_suspend(struct vmsrs_file *file, struct vmsrs_thread *thread,
		   const struct vmsrs_ioctl_suspend *arg)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request, *spare;
	long ret = 0;

	spare = vmsrs_request_alloc(file->app, arg->tag, GFP_KERNEL_ACCOUNT);
	if (!spare)
		return -ENOMEM;
	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(file->app, arg->tag);
	if (request && request->failed) {
		ret = -ESTALE;
	} else if (request && request->suspended_by) {
		ret = -EALREADY;
	} else if (file->suspended_count == VMSRS_SUSPENDED_MAX) {
		ret = -EAGAIN;
	} else {
		if (!request) {
			request = spare;
			spare = NULL;
			vmsrs_request_begun(request, file, vmsrs_thread_key(thread));
		}
		suspend(file, request, arg->deadline_ns);
		take_held(request, thread);
	}
	spin_unlock(&dev->requests_lock);
	mutex_unlock(&dev->commit_lock);
	kfree(spare);
	/* Its deadline is watched even if its threads unregister. */
	if (!ret)
		queue_delayed_work(dev->wq, &dev->watch, VMSRS_WATCH_PERIOD);
	return ret;
}

/* requests_lock is held. */
static struct vmsrs_request *find_suspended(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_request *request = vmsrs_request_find(file->app, tag);

	return request && request->suspended_by == file ? request : NULL;
}

/*
 * Takes a request up again; the calling thread carries its tag. -ESTALE: it has failed. It is
 * remembered as failed for as long as that thread carries the tag.
 */
long vmsrs_resume(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;
	long ret = -ENOENT;

	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	if (request) {
		ret = request->failed ? -ESTALE : 0;
		unsuspend(request);
		/* From here on the thread's own list tells what it holds. */
		request->held_count = 0;
	}
	spin_unlock(&dev->requests_lock);
	if (request && !ret)
		vmsrs_request_settle(request);
	mutex_unlock(&dev->commit_lock);
	return ret;
}

/*
 * Gives a suspended request up. Its locks are free before it is forgotten: nobody carries its tag, so
 * whoever waits for one of them would take it for an orphan.
 */
long vmsrs_abandon(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;
	u32 i;

	/* Its drafts first: nobody but this file's process can resume it meanwhile. */
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	spin_unlock(&dev->requests_lock);
	if (!request)
		return -ENOENT;
	vmsrs_discard(file->app, tag);

	/* Under commit_lock it stays suspended, and its list of domains the same. */
	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	spin_unlock(&dev->requests_lock);
	if (request) {
		for (i = 0; i < request->held_count; i++)
			if (request->held[i] < VMSRS_MAX_DOMAINS)
				vmsrs_lock_release(file->app, request->held[i], tag);
		spin_lock(&dev->requests_lock);
		unsuspend(request);
		spin_unlock(&dev->requests_lock);
		vmsrs_request_settle(request);
	}
	mutex_unlock(&dev->commit_lock);
	return request ? 0 : -ENOENT;
}

/* Nobody will resume a request of the file, which has failed; if it is suspended at all. */
void vmsrs_suspended_forget(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;

	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	if (request)
		unsuspend(request);
	spin_unlock(&dev->requests_lock);
	mutex_unlock(&dev->commit_lock);
}

/* Fails those that are over their deadline. */
void vmsrs_suspended_watch(struct vmsrs_device *dev, u64 now)
{
	struct vmsrs_app *apps[VMSRS_OVERDUE_MAX];
	struct vmsrs_request *request;
	u64 tags[VMSRS_OVERDUE_MAX];
	struct rb_node *node;
	u32 count = 0, i;

	spin_lock(&dev->requests_lock);
	for (node = rb_first_cached(&dev->due_requests); node && count < VMSRS_OVERDUE_MAX;
	     node = rb_next(node)) {
		request = rb_entry(node, struct vmsrs_request, due_node);
		if (now < request->due_ns)
			break;
		apps[count] = request->app;
		tags[count++] = request->tag;
	}
	spin_unlock(&dev->requests_lock);
	for (i = 0; i < count; i++) {
		struct vmsrs_ioctl_fail fail = {
			.kind = VMSRS_KIND_DEADLINE,
			.tag = tags[i],
			.detected_ns = now,
		};

		vmsrs_fail_suspended(apps[i], &fail);
	}
}

/* Are there any whose deadline must be watched? */
bool vmsrs_suspended_due(struct vmsrs_device *dev)
{
	return !RB_EMPTY_ROOT(&dev->due_requests.rb_root);
}
