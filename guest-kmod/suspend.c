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
#define OVERDUE_MAX 16

/* Takes over the list of domains that the thread holds. requests_lock is held. */
static void take_held(struct vmsrs_request *request, const struct vmsrs_thread *thread)
{
	u32 count = min_t(u32, READ_ONCE(thread->control->held_count), VMSRS_HELD_MAX);
	u32 i;

	for (i = 0; i < count; i++)
		request->held[i] = READ_ONCE(thread->control->held[i]);
	request->held_count = count;
}

/* Sets a thread's request aside. The caller checked that the thread is its caller's. */
long vmsrs_suspend(struct vmsrs_file *file, struct vmsrs_thread *thread,
		   const struct vmsrs_ioctl_suspend *arg)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request, *spare;
	long ret = 0;

	spare = vmsrs_request_alloc(file->app, arg->tag, GFP_KERNEL);
	if (!spare)
		return -ENOMEM;
	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(file->app, arg->tag);
	if (!request) {
		request = spare;
		spare = NULL;
		request->file = file;
		request->key = vmsrs_thread_key(thread);
		vmsrs_request_add(request);
	}
	if (request->failed) {
		ret = -ESTALE;
	} else if (request->suspended_by) {
		ret = -EALREADY;
	} else {
		request->suspended_by = file;
		request->due_ns = arg->deadline_ns;
		take_held(request, thread);
		list_add_tail(&request->suspended_entry, &dev->suspended_requests);
	}
	spin_unlock(&dev->requests_lock);
	mutex_unlock(&dev->commit_lock);
	kfree(spare);
	/* Its deadline is watched even if its threads unregister. */
	if (!ret)
		queue_delayed_work(dev->wq, &dev->watch, WATCH_PERIOD);
	return ret;
}

/* Forgets that a request is suspended. requests_lock is held. */
static void unsuspend(struct vmsrs_request *request)
{
	lockdep_assert_held(&request->app->dev->requests_lock);
	request->suspended_by = NULL;
	list_del_init(&request->suspended_entry);
}

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

/* Gives a suspended request up. */
long vmsrs_abandon(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	u32 held[VMSRS_HELD_MAX], count = 0, i;
	struct vmsrs_request *request;

	/* Its drafts first: nobody but this file's process can resume it meanwhile. */
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	spin_unlock(&dev->requests_lock);
	if (!request)
		return -ENOENT;
	vmsrs_discard(file->app, tag);

	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = find_suspended(file, tag);
	if (request) {
		count = request->held_count;
		memcpy(held, request->held, sizeof(held));
		unsuspend(request);
	}
	spin_unlock(&dev->requests_lock);
	if (request)
		vmsrs_request_settle(request);
	mutex_unlock(&dev->commit_lock);
	for (i = 0; i < count; i++)
		if (held[i] < VMSRS_MAX_DOMAINS)
			vmsrs_lock_release(file->app, held[i], tag);
	return request ? 0 : -ENOENT;
}

/* Fails those that are over their deadline. */
void vmsrs_suspended_watch(struct vmsrs_device *dev, u64 now)
{
	struct vmsrs_app *apps[OVERDUE_MAX];
	struct vmsrs_request *request;
	u64 tags[OVERDUE_MAX];
	u32 count = 0, i;

	spin_lock(&dev->requests_lock);
	list_for_each_entry(request, &dev->suspended_requests, suspended_entry) {
		/*
		 * One that was marked as overdue while its thread suspended it has failed, but still
		 * has its locks and drafts. Only a hint here: vmsrs_fail_suspended() looks again.
		 */
		if (READ_ONCE(request->discarded) || !request->due_ns || now < request->due_ns)
			continue;
		apps[count] = request->app;
		tags[count] = request->tag;
		if (++count == OVERDUE_MAX)
			break;
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
bool vmsrs_suspended_any(struct vmsrs_device *dev)
{
	return !list_empty_careful(&dev->suspended_requests);
}
