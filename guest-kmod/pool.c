// SPDX-License-Identifier: GPL-2.0
/*
 * The pool: memory that the guest can write to, in frames of a page. All frames are the driver's.
 *
 * A frame has one owner at a time: the list of free frames, the drafts of a domain, a batch, or a
 * report. A report also keeps the committed versions that it names, and a lease those that it shows, so a
 * frame is free again when its owner and all of these have put it.
 *
 * Frames are not wiped after use. Nothing of what one has held is ever shown: before an entry for a
 * frame exists, the whole frame is overwritten with the content of its page, or cleared
 * (vmsrs_draft_make()), and before a frame is put, no entry for it exists any more.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "vmsrs.h"

/**
 * vmsrs_pool_init() - make all frames free
 * @dev: the device, with its configuration
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_pool_init(struct vmsrs_device *dev)
{
	struct vmsrs_pool *pool = &dev->pool;
	u32 count = dev->config.pool_frames, i;

	spin_lock_init(&pool->lock);
	init_waitqueue_head(&pool->wait);
	pool->frames = kvcalloc(count, sizeof(*pool->frames), GFP_KERNEL);
	if (!pool->frames)
		return -ENOMEM;
	for (i = 0; i < count - 1; i++)
		pool->frames[i].next = &pool->frames[i + 1];
	pool->free = pool->frames;
	pool->free_count = count;
	pool->usable = count;
	return 0;
}

/**
 * vmsrs_pool_touch() - have the host provide the memory of all frames
 * @dev: the device, whose pool is mapped and not used yet
 *
 * So no request has to wait for that. Frames whose memory is broken are never used.
 */
void vmsrs_pool_touch(struct vmsrs_device *dev)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_frame **place = &pool->free, *frame;

	while ((frame = *place)) {
		if (vmsrs_clear_page(vmsrs_frame_address(dev, vmsrs_frame_name(dev, frame)))) {
			*place = frame->next;
			pool->free_count--;
			vmsrs_pool_lose(dev, frame);
		} else {
			place = &frame->next;
		}
		cond_resched();
	}
}

/**
 * vmsrs_pool_lose() - a frame that was taken is broken, and not put back: it would be the next to
 * be taken
 * @dev: the device
 * @frame: the frame, which no page-table entry shows
 */
void vmsrs_pool_lose(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_pool *pool = &dev->pool;

	pr_warn_ratelimited("frame %u of the pool is broken\n", vmsrs_frame_number(dev, frame));
	spin_lock(&pool->lock);
	WRITE_ONCE(pool->usable, pool->usable - 1);
	spin_unlock(&pool->lock);
}

/**
 * vmsrs_pool_free() - free the frames' descriptions
 * @dev: the device
 */
void vmsrs_pool_free(struct vmsrs_device *dev)
{
	kvfree(dev->pool.frames);
}

/**
 * vmsrs_pool_take_some() - take the frames that were freed last, which the CPU's caches may still
 * have
 * @dev: the device
 * @count: how many
 * @reserve: frames to leave to others; fewer are taken if need be
 * @frames: row that they are added to
 *
 * Context: any except interrupts.
 */
void vmsrs_pool_take_some(struct vmsrs_device *dev, u32 count, u32 reserve, struct vmsrs_frames *frames)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_frame *frame, *next;
	u32 low = vmsrs_pool_low_mark(dev), before, after, i;

	spin_lock(&pool->lock);
	before = pool->free_count;
	after = before - min(count, before - min(before, reserve));
	for (next = pool->free, i = after; i < before; i++) {
		frame = next;
		next = frame->next;
		frame->refs = 1;
		vmsrs_frames_add(frames, frame);
	}
	pool->free = next;
	pool->free_count = after;
	spin_unlock(&pool->lock);
	/* Later on, commits and reports see to it themselves. */
	if (before > low && after <= low) {
		vmsrs_device_kick_seal(dev);
		vmsrs_device_kick_reports(dev);
	}
}

/**
 * vmsrs_pool_take() - take a frame
 * @dev: the device
 * @reserve: frames to leave to others
 *
 * Context: any except interrupts.
 * Return: the frame, in no row, or NULL if no more than @reserve are free.
 */
struct vmsrs_frame *vmsrs_pool_take(struct vmsrs_device *dev, u32 reserve)
{
	struct vmsrs_frames frames = { };

	vmsrs_pool_take_some(dev, 1, reserve, &frames);
	return frames.first;
}

/* Puts a frame that is in no row. pool->lock is held. */
static void put(struct vmsrs_pool *pool, struct vmsrs_frame *frame)
{
	lockdep_assert_held(&pool->lock);
	if (--frame->refs)
		return;
	frame->next = pool->free;
	pool->free = frame;
	pool->free_count++;
}

/* Unpins the committed version that a dropped draft names. pool->lock is held. */
static void unpin(struct vmsrs_device *dev, u32 committed)
{
	if (vmsrs_in_pool(committed))
		put(&dev->pool, vmsrs_pool_frame(dev, committed));
}

static void wake_waiters(struct vmsrs_pool *pool)
{
	if (wq_has_sleeper(&pool->wait))
		wake_up_all(&pool->wait);
}

/**
 * vmsrs_pool_put() - put a frame that no entry maps
 * @dev: the device
 * @frame: the frame, in no row
 */
void vmsrs_pool_put(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_pool *pool = &dev->pool;

	spin_lock(&pool->lock);
	put(pool, frame);
	spin_unlock(&pool->lock);
	wake_waiters(pool);
}

/**
 * vmsrs_pool_put_unfilled() - put a frame that a page could not be copied to
 * @dev: the device
 * @frame: the frame, in no row, which no entry maps; not used any more if its own memory is broken
 *
 * Return: -EIO: it is what should have been copied that cannot be read; -EAGAIN: the frame is
 * broken.
 */
int vmsrs_pool_put_unfilled(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	if (vmsrs_clear_page(vmsrs_frame_address(dev, vmsrs_frame_name(dev, frame)))) {
		vmsrs_pool_lose(dev, frame);
		return -EAGAIN;
	}
	vmsrs_pool_put(dev, frame);
	return -EIO;
}

/**
 * vmsrs_pool_put_all() - put frames that no entry maps
 * @dev: the device
 * @frames: the frames; none afterwards
 */
void vmsrs_pool_put_all(struct vmsrs_device *dev, struct vmsrs_frames *frames)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_frame *frame;

	if (!frames->count)
		return;
	spin_lock(&pool->lock);
	while ((frame = vmsrs_frames_take(frames)))
		put(pool, frame);
	spin_unlock(&pool->lock);
	wake_waiters(pool);
}

/**
 * vmsrs_pool_pin() - keep a committed version, until vmsrs_pool_put()
 * @dev: the device
 * @frame: its frame; its domain is locked, so it is still committed
 */
void vmsrs_pool_pin(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	spin_lock(&dev->pool.lock);
	frame->refs++;
	spin_unlock(&dev->pool.lock);
}

/**
 * vmsrs_pool_pin_committed() - keep the committed versions that dropped drafts name
 * @dev: the device
 * @dropped: the drafts
 *
 * The domain's lock is held, so the versions are still committed.
 */
void vmsrs_pool_pin_committed(struct vmsrs_device *dev, const struct vmsrs_frames *dropped)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_frame *frame;

	spin_lock(&pool->lock);
	vmsrs_for_each_frame(frame, dropped)
		if (vmsrs_in_pool(frame->committed))
			vmsrs_pool_frame(dev, frame->committed)->refs++;
	spin_unlock(&pool->lock);
}

/**
 * vmsrs_pool_put_dropped() - put dropped drafts and the committed versions that they name
 * @dev: the device
 * @dropped: the drafts, which no entry maps; none afterwards
 */
void vmsrs_pool_put_dropped(struct vmsrs_device *dev, struct vmsrs_frames *dropped)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_frame *frame;

	if (!dropped->count)
		return;
	spin_lock(&pool->lock);
	while ((frame = vmsrs_frames_take(dropped))) {
		unpin(dev, frame->committed);
		put(pool, frame);
	}
	spin_unlock(&pool->lock);
	wake_waiters(pool);
}

static bool frame_free(struct vmsrs_device *dev, u32 reserve)
{
	return READ_ONCE(dev->pool.free_count) > reserve || !vmsrs_device_usable(dev);
}

/**
 * vmsrs_pool_wait() - wait for a frame in a write fault
 * @dev: the device
 * @thread: the thread that writes
 * @vmf: the fault
 * @reserve: frames to leave to others
 *
 * Where mm allows it, this waits without mmap_lock (VM_FAULT_RETRY), so that other threads can
 * map and unmap, and signals are taken at the faulting instruction.
 *
 * Context: no lock of the driver is held.
 * Return: 0 if the caller should try again, otherwise what the fault handler returns.
 */
vm_fault_t vmsrs_pool_wait(struct vmsrs_device *dev, struct vmsrs_thread *thread,
			   struct vm_fault *vmf, u32 reserve)
{
	struct vmsrs_pool *pool = &dev->pool;
	unsigned int flags = vmf->flags;
	struct file *file = NULL;
	long left;

	/* Do not continue a wait that a signal ended long ago. */
	if (!thread->frame_due || time_after(jiffies, thread->frame_due + VMSRS_FRAME_TIMEOUT))
		thread->frame_due = (jiffies + VMSRS_FRAME_TIMEOUT) | 1;
	left = (long)(thread->frame_due - jiffies);
	if (left <= 0) {
		thread->frame_due = 0;
		thread->refused_address = vmf->address;
		thread->refused_kind = VMSRS_KIND_NO_FRAMES;
		return VM_FAULT_SIGBUS;
	}
	if (flags & FAULT_FLAG_ALLOW_RETRY) {
		if (flags & FAULT_FLAG_RETRY_NOWAIT)
			return VM_FAULT_RETRY;
		/* The mapping may go without the lock; its file keeps the device and the app. */
		file = get_file(vmf->vma->vm_file);
		release_fault_lock(vmf);
	}
	vmsrs_device_kick_seal(dev);
	vmsrs_device_kick_reports(dev);
	/* A copy by the kernel continues after a signal, and would come back here at once. */
	if (file && (flags & FAULT_FLAG_INTERRUPTIBLE) && (flags & FAULT_FLAG_USER))
		left = wait_event_interruptible_timeout(pool->wait, frame_free(dev, reserve),
							left);
	else
		left = wait_event_killable_timeout(pool->wait, frame_free(dev, reserve),
						   left);
	if (file) {
		fput(file);
		return VM_FAULT_RETRY;
	}
	return left < 0 ? VM_FAULT_SIGBUS : 0;
}
