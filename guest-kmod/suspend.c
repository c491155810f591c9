// SPDX-License-Identifier: GPL-2.0
/*
 * Suspended requests: no thread carries their tag, but their drafts and locks stay theirs. They are
 * known from IOCTL_SUSPEND to IOCTL_RESUME or IOCTL_ABANDON, even if they fail meanwhile: whoever
 * resumes one must learn of it.
 */
#include <linux/slab.h>

#include "vmsrs.h"

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

/* Forgets that a request is suspended. requests_lock is held. */
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
			vmsrs_request_begin(request, file, vmsrs_thread_key(thread));
		}
		suspend(file, request, arg->deadline_ns);
		take_held(request, thread);
	}
	spin_unlock(&dev->requests_lock);
	mutex_unlock(&dev->commit_lock);
	kfree(spare);
	/* Its deadline is watched even if its threads unregister. */
	if (!ret)
		vmsrs_device_start_watch(dev);
	return ret;
}

/* requests_lock is held. */
struct vmsrs_request *vmsrs_suspended_find(struct vmsrs_file *file, u64 tag)
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
	request = vmsrs_suspended_find(file, tag);
	if (request) {
		ret = request->failed ? -ESTALE : 0;
		vmsrs_suspended_remove(request);
		/* From here on the thread's own list tells what it holds. */
		request->held_count = 0;
	}
	spin_unlock(&dev->requests_lock);
	if (request && !ret)
		vmsrs_request_remove_idle(request);
	mutex_unlock(&dev->commit_lock);
	return ret;
}

/* Nobody will resume a request of the file, which has failed; if it is suspended at all. */
void vmsrs_suspended_forget(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;

	mutex_lock(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = vmsrs_suspended_find(file, tag);
	if (request)
		vmsrs_suspended_remove(request);
	spin_unlock(&dev->requests_lock);
	mutex_unlock(&dev->commit_lock);
}
