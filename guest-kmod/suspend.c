// SPDX-License-Identifier: GPL-2.0
/*
 * Suspended requests: no thread carries their tag, but they keep their drafts and locks. They
 * are remembered from IOCTL_SUSPEND to IOCTL_RESUME or IOCTL_ABANDON, even if they fail in
 * between: the thread that resumes one must learn of it.
 */
#include <linux/slab.h>

#include "vmsrs.h"

/* Copies the thread's list of held domains. requests_lock is held. */
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

/**
 * vmsrs_suspended_clear_deadline() - stop watching the deadline of a suspended request
 * @request: the request; it need not have a deadline
 *
 * requests_lock is held.
 */
void vmsrs_suspended_clear_deadline(struct vmsrs_request *request)
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

/**
 * vmsrs_suspended_remove() - note that a request is not suspended any more
 * @request: the request
 *
 * If it has failed, it is remembered as failed for as long as a thread carries its tag.
 * requests_lock is held, and the request's lock.
 */
void vmsrs_suspended_remove(struct vmsrs_request *request)
{
	struct vmsrs_device *dev = request->app->dev;

	lockdep_assert_held(&dev->requests_lock);
	vmsrs_suspended_clear_deadline(request);
	list_del_init(&request->suspended_entry);
	request->suspended_by->suspended_count--;
	request->suspended_by = NULL;
	/* It is remembered for as long as a thread carries its tag. */
	if (request->failed)
		list_add_tail(&request->failed_entry, &dev->failed_requests);
}

/**
 * vmsrs_suspend() - suspend a thread's request
 * @file: the thread's file
 * @thread: the calling thread, which carries the tag
 * @arg: argument of the ioctl
 *
 * Return: 0; -ESTALE: it has failed; -EALREADY: it is suspended; -EAGAIN: too many are; -ENOMEM.
 */
long vmsrs_suspend(struct vmsrs_file *file, struct vmsrs_thread *thread,
		   const struct vmsrs_ioctl_suspend *arg)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request, *spare;
	struct mutex *lock;
	long ret = 0;

	spare = kmalloc(sizeof(*spare), GFP_KERNEL_ACCOUNT);
	if (!spare)
		return -ENOMEM;
	lock = vmsrs_request_lock(dev, arg->tag);
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
			vmsrs_request_begin(request, file, arg->tag, vmsrs_thread_key(thread));
		}
		suspend(file, request, arg->deadline_ns);
		take_held(request, thread);
	}
	spin_unlock(&dev->requests_lock);
	vmsrs_request_unlock(dev, lock);
	kfree(spare);
	/* Its deadline is watched even if its threads unregister. */
	if (!ret)
		vmsrs_device_start_watch(dev);
	return ret;
}

/**
 * vmsrs_suspended_find() - find a request that was suspended through a file
 * @file: the file
 * @tag: tag of the request
 *
 * requests_lock is held.
 *
 * Return: the request, or NULL.
 */
struct vmsrs_request *vmsrs_suspended_find(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_request *request = vmsrs_request_find(file->app, tag);

	return request && request->suspended_by == file ? request : NULL;
}

/**
 * vmsrs_resume() - resume a request; the calling thread carries its tag
 * @file: file through which it was suspended
 * @tag: tag of the request
 *
 * A failed request is remembered as failed for as long as the thread carries the tag.
 *
 * Return: 0; -ESTALE: it has failed; -ENOENT: it was not suspended through this file.
 */
long vmsrs_resume(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;
	struct mutex *lock;
	long ret = -ENOENT;

	lock = vmsrs_request_lock(dev, tag);
	spin_lock(&dev->requests_lock);
	request = vmsrs_suspended_find(file, tag);
	if (request) {
		ret = request->failed ? -ESTALE : 0;
		vmsrs_suspended_remove(request);
		/* From here on the thread's own list says what it holds. */
		request->held_count = 0;
	}
	spin_unlock(&dev->requests_lock);
	request = request && !ret ? vmsrs_request_remove_idle(request) : NULL;
	vmsrs_request_unlock(dev, lock);
	kfree(request);
	return ret;
}

/**
 * vmsrs_suspended_forget() - forget that a failed request is suspended: it will not be resumed
 * @file: file through which it may have been suspended
 * @tag: tag of the request
 */
void vmsrs_suspended_forget(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;
	struct mutex *lock;

	lock = vmsrs_request_lock(dev, tag);
	spin_lock(&dev->requests_lock);
	request = vmsrs_suspended_find(file, tag);
	if (request)
		vmsrs_suspended_remove(request);
	spin_unlock(&dev->requests_lock);
	vmsrs_request_unlock(dev, lock);
}
