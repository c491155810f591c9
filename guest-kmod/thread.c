// SPDX-License-Identifier: GPL-2.0
/* Registered threads, their control pages and their lists of written pages. */
#include <linux/fs.h>
#include <linux/ktime.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include "compat.h"
#include "vmsrs.h"

static void thread_release(struct kref *ref)
{
	struct vmsrs_thread *thread = container_of(ref, struct vmsrs_thread, ref);

	ida_free(&thread->dev->slots, thread->slot);
	put_page(thread->page);
	put_page(thread->written_page);
	mmdrop(thread->mm);
	put_task_struct(thread->task);
	kfree(thread->spare);
	kfree_rcu(thread, rcu);
}

/**
 * vmsrs_thread_put() - drop a reference
 * @thread: the thread
 */
void vmsrs_thread_put(struct vmsrs_thread *thread)
{
	kref_put(&thread->ref, thread_release);
}

/**
 * vmsrs_thread_current() - find the calling thread's registration with an app
 * @app: the app
 *
 * Return: the registration, which the caller puts, or NULL.
 */
struct vmsrs_thread *vmsrs_thread_current(struct vmsrs_app *app)
{
	struct vmsrs_thread *thread, *found = NULL;

	rcu_read_lock();
	hash_for_each_possible_rcu(app->dev->threads, thread, node, (unsigned long)current) {
		/* A registration from before an exec may not be reaped yet. */
		if (thread->task == current && thread->mm == current->mm &&
		    thread->app == app && kref_get_unless_zero(&thread->ref)) {
			found = thread;
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/**
 * vmsrs_thread_unlink() - take a thread out of the tables
 * @thread: the thread
 * @list: list that it is moved to
 *
 * The caller has to end the thread. threads_lock is held.
 */
void vmsrs_thread_unlink(struct vmsrs_thread *thread, struct list_head *list)
{
	lockdep_assert_held(&thread->dev->threads_lock);
	hash_del_rcu(&thread->node);
	list_move_tail(&thread->list, list);
}

/**
 * vmsrs_thread_dead() - tell whether a registered thread runs no more code of the program
 * @thread: the thread
 *
 * That is so when it exits or execs: then its mm is another one, since the address of the old
 * one is not reused while it is referenced.
 */
bool vmsrs_thread_dead(const struct vmsrs_thread *thread)
{
	return READ_ONCE(thread->task->flags) & PF_EXITING ||
	       READ_ONCE(thread->task->mm) != thread->mm;
}

/**
 * vmsrs_thread_tags() - hand out a range of tags
 * @dev: the device
 * @first: first tag
 * @count: number of tags
 */
void vmsrs_thread_tags(struct vmsrs_device *dev, u64 *first, u64 *count)
{
	*count = VMSRS_TAGS_PER_RANGE;
	*first = atomic64_fetch_add(VMSRS_TAGS_PER_RANGE, &dev->next_tag);
}

static struct vmsrs_thread *thread_new(struct vmsrs_file *file, u32 signal, u32 keys)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_thread *thread;
	u32 key;
	int slot;

	thread = kzalloc(sizeof(*thread), GFP_KERNEL_ACCOUNT);
	if (!thread)
		return ERR_PTR(-ENOMEM);
	thread->page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	thread->written_page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	thread->spare = kmalloc(sizeof(*thread->spare), GFP_KERNEL_ACCOUNT);
	if (!thread->page || !thread->written_page || !thread->spare) {
		slot = -ENOMEM;
		goto free;
	}
	slot = ida_alloc_max(&dev->slots, VMSRS_THREADS_MAX - 1, GFP_KERNEL);
	if (slot < 0)
		goto free;
	kref_init(&thread->ref);
	INIT_LIST_HEAD(&thread->list);
	INIT_LIST_HEAD(&thread->releasing);
	thread->dev = dev;
	thread->app = file->app;
	thread->file = file;
	thread->task = get_task_struct(current);
	thread->mm = current->mm;
	mmgrab(thread->mm);
	thread->control = page_address(thread->page);
	thread->written = page_address(thread->written_page);
	thread->slot = slot;
	thread->signal = signal;
	thread->keys = keys & U16_MAX;
	for (key = 1; key <= VMSRS_PROTECTION_KEY_MAX; key++)
		if (keys >> 16 & BIT(key))
			thread->hot_keys |= vmsrs_key_mask(key);
	return thread;

free:
	if (thread->page)
		__free_page(thread->page);
	if (thread->written_page)
		__free_page(thread->written_page);
	kfree(thread->spare);
	kfree(thread);
	return ERR_PTR(slot == -ENOSPC ? -EAGAIN : slot);
}

/**
 * vmsrs_thread_register() - register the calling thread with the file's app
 * @file: the file
 * @arg: argument of the ioctl
 *
 * Return: 0 or a negative error.
 */
long vmsrs_thread_register(struct vmsrs_file *file, struct vmsrs_ioctl_thread *arg)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_thread *thread;

	if (arg->signal && (!valid_signal(arg->signal) || sig_kernel_only(arg->signal)))
		return -EINVAL;
	/* Key 0 is that of all other memory. */
	if (arg->keys & (BIT(0) | BIT(16)))
		return -EINVAL;
	/* Only the thread registers itself, so this cannot race. */
	thread = vmsrs_thread_current(file->app);
	if (thread) {
		vmsrs_thread_put(thread);
		return -EEXIST;
	}
	thread = thread_new(file, arg->signal, arg->keys);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	arg->control_offset = VMSRS_CONTROL_OFFSET + (u64)thread->slot * PAGE_SIZE;
	arg->written_offset = VMSRS_WRITTEN_OFFSET + (u64)thread->slot * PAGE_SIZE;
	vmsrs_thread_tags(dev, &arg->tag_first, &arg->tag_count);

	spin_lock(&dev->threads_lock);
	hash_add_rcu(dev->threads, &thread->node, (unsigned long)current);
	list_add_tail(&thread->list, &dev->thread_list);
	spin_unlock(&dev->threads_lock);
	vmsrs_device_start_watch(dev);
	return 0;
}

/**
 * vmsrs_thread_mmap() - map the control page or the list of written pages of a thread
 * @file: file through which the thread registered
 * @vma: the mapping, within the offsets of one of the two
 *
 * Return: 0 or a negative error.
 */
int vmsrs_thread_mmap(struct vmsrs_file *file, struct vm_area_struct *vma)
{
	bool written = vma->vm_pgoff >= VMSRS_WRITTEN_OFFSET >> PAGE_SHIFT;
	u64 offset = written ? VMSRS_WRITTEN_OFFSET : VMSRS_CONTROL_OFFSET;
	u64 slot = vma->vm_pgoff - (offset >> PAGE_SHIFT);
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_thread *thread;
	struct page *page = NULL;
	int error;

	if (vma->vm_end - vma->vm_start != PAGE_SIZE)
		return -EINVAL;
	if (written) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_mod(vma, 0, VM_MAYWRITE);
	}
	spin_lock(&dev->threads_lock);
	list_for_each_entry(thread, &dev->thread_list, list) {
		if (thread->slot == slot && thread->file == file &&
		    thread->task->tgid == current->tgid) {
			page = written ? thread->written_page : thread->page;
			get_page(page);
			break;
		}
	}
	spin_unlock(&dev->threads_lock);
	if (!page)
		return -EINVAL;
	error = vm_insert_page(vma, vma->vm_start, page);
	put_page(page);
	return error;
}

/**
 * vmsrs_thread_keep_spare() - keep a request's memory for the next one, so that no fault allocates
 * @thread: the calling thread
 * @request: the request, in no table; or NULL
 */
void vmsrs_thread_keep_spare(struct vmsrs_thread *thread, struct vmsrs_request *request)
{
	if (thread->spare)
		kfree(request);
	else
		thread->spare = request;
}

/**
 * vmsrs_thread_note_written() - add a page to the calling thread's list of written pages
 * @thread: the calling thread
 * @tag: tag of its request
 * @page: the page
 */
void vmsrs_thread_note_written(struct vmsrs_thread *thread, u64 tag, u32 page)
{
	struct vmsrs_written_pages *written = thread->written;

	if (written->tag != tag) {
		written->tag = tag;
		written->count = 0;
	}
	if (written->count < VMSRS_WRITTEN_MAX)
		written->pages[written->count] = page;
	if (written->count != U32_MAX)
		written->count++;
}

/**
 * vmsrs_thread_clear_written() - empty the calling thread's list of written pages
 * @thread: the calling thread
 * @tag: tag of its request, which has no drafts any more
 */
void vmsrs_thread_clear_written(struct vmsrs_thread *thread, u64 tag)
{
	if (thread->written->tag == tag)
		thread->written->count = 0;
}

/*
 * Interrupts a thread that carries the tag of a failed request. The tag is written to the
 * control block first: if the signal comes late, the thread finds that it carries another one.
 * threads_lock is held.
 */
static void interrupt(struct vmsrs_thread *thread, u64 tag, u64 now)
{
	WRITE_ONCE(thread->control->failed, tag);
	thread->interrupted_ns = now;
	if (thread->signal && thread->task != current && !vmsrs_thread_dead(thread))
		send_sig(thread->signal, thread->task, 1);
}

/**
 * vmsrs_thread_signal_again() - interrupt a thread again if the last time was long ago
 * @thread: a thread that carries the tag of a failed request
 * @now: the time, in nanoseconds
 *
 * The thread may have taken the tag only since, or have slept on its way out. threads_lock is
 * held.
 */
void vmsrs_thread_signal_again(struct vmsrs_thread *thread, u64 now)
{
	lockdep_assert_held(&thread->dev->threads_lock);
	if (now - thread->interrupted_ns >= VMSRS_SIGNAL_AGAIN_MS * (u64)NSEC_PER_MSEC)
		interrupt(thread, vmsrs_thread_tag(thread), now);
}

/**
 * vmsrs_thread_carries() - tell whether a registered thread carries a tag
 * @app: the app
 * @tag: the tag
 */
bool vmsrs_thread_carries(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_thread *thread;
	bool carried = false;

	spin_lock(&dev->threads_lock);
	list_for_each_entry(thread, &dev->thread_list, list) {
		carried = thread->app == app && vmsrs_thread_tag(thread) == tag;
		if (carried)
			break;
	}
	spin_unlock(&dev->threads_lock);
	return carried;
}

/**
 * vmsrs_thread_signal_members() - interrupt the other threads that carry a tag
 * @app: the app
 * @tag: tag of a failed request
 * @now: the time, in nanoseconds
 */
void vmsrs_thread_signal_members(struct vmsrs_app *app, u64 tag, u64 now)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_thread *thread;

	spin_lock(&dev->threads_lock);
	list_for_each_entry(thread, &dev->thread_list, list)
		if (thread->app == app && vmsrs_thread_tag(thread) == tag)
			interrupt(thread, tag, now);
	spin_unlock(&dev->threads_lock);
}

/**
 * vmsrs_threads_init() - initialise the tables of threads
 * @dev: the device
 */
void vmsrs_threads_init(struct vmsrs_device *dev)
{
	spin_lock_init(&dev->threads_lock);
	hash_init(dev->threads);
	INIT_LIST_HEAD(&dev->thread_list);
	ida_init(&dev->slots);
}
