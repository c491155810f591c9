// SPDX-License-Identifier: GPL-2.0
/*
 * The watch: a work that runs every VMSRS_WATCH_PERIOD while threads are registered or suspended
 * requests have deadlines. It ends dead threads, handles overdue requests, and forgets failed
 * ones.
 */
#include <linux/ktime.h>
#include <linux/slab.h>

#include "vmsrs.h"

/* Most overdue threads or requests that one run of the watch deals with. */
#define VMSRS_OVERDUE_MAX 16

/**
 * struct overdue - an overdue thread
 * @thread: the thread, with a reference
 * @tag: tag of its request
 * @fail: the request is to be failed; otherwise it is only marked and the thread interrupted
 */
struct overdue {
	struct vmsrs_thread *thread;
	u64 tag;
	bool fail;
};

/* Looks at one thread. Returns true if *overdue was filled in, with a reference to the thread. */
static bool watch_thread(struct vmsrs_thread *thread, u64 now, struct overdue *overdue)
{
	u64 tag = vmsrs_thread_tag(thread), due;

	/* The deadline belongs to the tag if the tag is the same before and after. */
	smp_rmb();
	due = READ_ONCE(thread->control->deadline_ns);
	smp_rmb();
	if (vmsrs_thread_tag(thread) != tag)
		return false;
	if (!due || now < due || !vmsrs_tag_valid(thread->dev, tag))
		return false;
	if (tag != thread->signalled_tag) {
		thread->signalled_tag = tag;
		thread->signalled_ns = 0;
	}
	if (thread->signalled_ns &&
	    now < thread->signalled_ns + VMSRS_DEADLINE_GRACE_MS * (u64)NSEC_PER_MSEC)
		return false;
	overdue->fail = thread->signalled_ns;
	overdue->tag = tag;
	overdue->thread = thread;
	kref_get(&thread->ref);
	thread->signalled_ns = now;
	return true;
}

/* Fails suspended requests that are over their deadline. */
static void watch_suspended(struct vmsrs_device *dev, u64 now)
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

/* Are there suspended requests with a deadline? */
static bool suspended_due(struct vmsrs_device *dev)
{
	return !RB_EMPTY_ROOT(&dev->due_requests.rb_root);
}

/*
 * Sets `carried` of the failed requests, and interrupts the threads that carry them again. One
 * pass over the threads and one over the requests, since programs decide how many there are of
 * both. requests_lock is held.
 */
static void mark_carried(struct vmsrs_device *dev)
{
	struct vmsrs_request *request;
	struct vmsrs_thread *thread;
	u64 now = ktime_get_ns();

	list_for_each_entry(request, &dev->failed_requests, failed_entry)
		request->carried = false;
	spin_lock(&dev->threads_lock);
	list_for_each_entry(thread, &dev->thread_list, list) {
		request = vmsrs_request_find(thread->app, vmsrs_thread_tag(thread));
		if (!request)
			continue;
		request->carried = true;
		if (request->failed)
			vmsrs_thread_signal_again(thread, now);
	}
	spin_unlock(&dev->threads_lock);
}

/*
 * Removes failed requests whose tag no thread carries any more; until then the tag must be
 * remembered, so that late writes of members are refused. A suspended request is not in the list.
 * An overdue one whose threads went on without failing it is failed first. One to which something
 * is being done is looked at again the next time.
 */
static void prune_requests(struct vmsrs_device *dev)
{
	struct vmsrs_ioctl_fail fail = { .kind = VMSRS_KIND_DEADLINE };
	struct vmsrs_request *request, *next;
	struct vmsrs_app *app = NULL;
	LIST_HEAD(done);

	/* Usually there are none. One that is added now is seen the next time. */
	if (list_empty_careful(&dev->failed_requests))
		return;
	down_read(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	mark_carried(dev);
	list_for_each_entry_safe(request, next, &dev->failed_requests, failed_entry) {
		if (request->carried)
			continue;
		if (!hlist_empty(&request->domains)) {
			app = request->app;
			fail.tag = request->tag;
		} else if (vmsrs_request_forget(request)) {
			list_move(&request->failed_entry, &done);
		}
	}
	spin_unlock(&dev->requests_lock);
	up_read(&dev->commit_lock);
	vmsrs_requests_forget(dev, &done);
	if (app)
		vmsrs_fail(app, NULL, &fail);
}

/*
 * An overdue request is interrupted the first time. After the grace period it is failed here,
 * and its threads are interrupted for as long as they carry the tag. The work must not wait for
 * the host, so it ends no more threads than there is room for reports; the next run goes on.
 */
static void watch_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(to_delayed_work(work), struct vmsrs_device, watch);
	struct overdue overdue[VMSRS_OVERDUE_MAX];
	struct vmsrs_thread *thread, *next;
	u32 room = vmsrs_reports_room(dev);
	u64 now = ktime_get_ns();
	LIST_HEAD(ended);
	u32 count = 0, i;
	bool idle;

	spin_lock(&dev->threads_lock);
	list_for_each_entry_safe(thread, next, &dev->thread_list, list) {
		if (vmsrs_thread_dead(thread)) {
			if (room) {
				vmsrs_thread_unlink(thread, &ended);
				room--;
			}
		} else if (count < VMSRS_OVERDUE_MAX &&
			   watch_thread(thread, now, &overdue[count])) {
			count++;
		}
	}
	idle = list_empty(&dev->thread_list);
	spin_unlock(&dev->threads_lock);

	vmsrs_threads_end(&ended);
	for (i = 0; i < count; i++) {
		struct vmsrs_ioctl_fail fail = {
			.kind = VMSRS_KIND_DEADLINE,
			.tag = overdue[i].tag,
			.detected_ns = now,
		};

		if (overdue[i].fail)
			vmsrs_fail(overdue[i].thread->app, overdue[i].thread, &fail);
		vmsrs_fail_overdue(overdue[i].thread->app, overdue[i].tag, now);
		vmsrs_thread_put(overdue[i].thread);
	}
	watch_suspended(dev, now);
	prune_requests(dev);
	idle = idle && !suspended_due(dev);
	if (!idle && !READ_ONCE(dev->gone))
		vmsrs_device_start_watch(dev);
}

/**
 * vmsrs_watch_init() - initialise the watch
 * @dev: the device
 */
void vmsrs_watch_init(struct vmsrs_device *dev)
{
	INIT_DELAYED_WORK(&dev->watch, watch_work);
}
