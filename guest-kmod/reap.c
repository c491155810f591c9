// SPDX-License-Identifier: GPL-2.0
/* The end of registered threads: by their own call, with their file, or found by the watch. */
#include <linux/sched/signal.h>

#include "vmsrs.h"

static bool process_dead(const struct vmsrs_thread *thread)
{
	const struct signal_struct *signal = thread->task->signal;
	const struct mm_struct *mm = READ_ONCE(thread->task->mm);

	/* A thread that has exited alone has no mm; after an exec it has another one. */
	return READ_ONCE(signal->flags) & SIGNAL_GROUP_EXIT || !atomic_read(&signal->live) ||
	       (mm && mm != thread->mm);
}

/* Ends an unlinked thread: fails its request, if it has one, and drops the tables' reference. */
static void thread_end(struct vmsrs_thread *thread, u32 kind)
{
	struct vmsrs_ioctl_fail fail = { .kind = kind, .tag = vmsrs_thread_tag(thread) };

	if (vmsrs_tag_valid(thread->dev, fail.tag))
		vmsrs_fail(thread->app, thread, &fail);
	else
		vmsrs_lock_release_held(thread, 0);
	vmsrs_thread_put(thread);
}

/**
 * vmsrs_threads_end() - end unlinked threads
 * @threads: list that vmsrs_thread_unlink() moved them to
 */
void vmsrs_threads_end(struct list_head *threads)
{
	struct vmsrs_thread *thread, *next;

	list_for_each_entry_safe(thread, next, threads, list) {
		list_del(&thread->list);
		/* A thread that is alive but has lost its mm was cut off by exit or exec. */
		thread_end(thread, process_dead(thread) ? VMSRS_KIND_PROCESS_DEATH :
							  VMSRS_KIND_THREAD_DEATH);
	}
}

/**
 * vmsrs_threads_reap() - end the threads of a file
 * @file: the file
 * @all: all of them, not only those that are dead
 */
void vmsrs_threads_reap(struct vmsrs_file *file, bool all)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_thread *thread, *next;
	LIST_HEAD(ended);

	spin_lock(&dev->threads_lock);
	list_for_each_entry_safe(thread, next, &dev->thread_list, list)
		if (thread->file == file && (all || vmsrs_thread_dead(thread)))
			vmsrs_thread_unlink(thread, &ended);
	spin_unlock(&dev->threads_lock);
	vmsrs_threads_end(&ended);
	/*
	 * Nothing is held any more, so the wait hurts only a process that ends threads faster than
	 * the host takes reports.
	 */
	vmsrs_reports_wait(dev);
}

/**
 * vmsrs_thread_exit() - unregister the calling thread
 * @file: the file
 *
 * Return: 0; -ENOENT: it is not registered.
 */
long vmsrs_thread_exit(struct vmsrs_file *file)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_thread *thread;
	LIST_HEAD(ended);

	thread = vmsrs_thread_current(file->app);
	if (!thread)
		return -ENOENT;
	spin_lock(&dev->threads_lock);
	/* The last close of another file of the app may have unlinked it. */
	if (!hlist_unhashed(&thread->node))
		vmsrs_thread_unlink(thread, &ended);
	spin_unlock(&dev->threads_lock);
	if (!list_empty(&ended)) {
		list_del(&thread->list);
		thread_end(thread, VMSRS_KIND_THREAD_DEATH);
	}
	vmsrs_thread_put(thread);
	/* A program may register and exit in a request as often as it likes. */
	vmsrs_reports_wait(dev);
	return 0;
}
