// SPDX-License-Identifier: GPL-2.0
/*
 * The pool of granted frames. The host grants frames zeroed; the lowest free one is used first,
 * so that frames sealed together are neighbours. A frame that was written to does not come back to
 * the pool: the host wipes it first.
 */
#include <linux/bitmap.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>

#include "compat.h"
#include "vmsrs.h"

/**
 * vmsrs_pool_init() - allocate the pool's bitmaps
 * @dev: the device, with its configuration
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_pool_init(struct vmsrs_device *dev)
{
	struct vmsrs_pool *pool = &dev->pool;
	size_t bytes = BITS_TO_LONGS(dev->config.window_frames) * sizeof(long);

	spin_lock_init(&pool->lock);
	init_waitqueue_head(&pool->wait);
	pool->granted = kvzalloc(bytes, GFP_KERNEL);
	pool->free = kvzalloc(bytes, GFP_KERNEL);
	if (!pool->granted || !pool->free) {
		vmsrs_pool_free(dev);
		return -ENOMEM;
	}
	return 0;
}

/**
 * vmsrs_pool_free() - free the pool's bitmaps
 * @dev: the device
 */
void vmsrs_pool_free(struct vmsrs_device *dev)
{
	kvfree(dev->pool.granted);
	kvfree(dev->pool.free);
}

/**
 * vmsrs_pool_take() - take the lowest free frame, and ask for more in time
 * @dev: the device
 * @reserve: frames to leave to others
 *
 * Context: any except interrupts.
 * Return: the frame, or VMSRS_NONE if no more than @reserve are free.
 */
u32 vmsrs_pool_take(struct vmsrs_device *dev, u32 reserve)
{
	struct vmsrs_pool *pool = &dev->pool;
	u32 frame = VMSRS_NONE;
	bool low;

	spin_lock(&pool->lock);
	if (pool->free_count > reserve) {
		frame = find_next_bit(pool->free, dev->config.window_frames, pool->hint);
		__clear_bit(frame, pool->free);
		pool->free_count--;
		pool->hint = frame + 1;
	}
	low = pool->free_count < dev->config.pool_frames / 4;
	spin_unlock(&pool->lock);
	if (low)
		vmsrs_device_kick_host_soon(dev);
	return frame;
}

/**
 * vmsrs_pool_put() - put a frame back that is still zero
 * @dev: the device
 * @frame: the frame
 */
void vmsrs_pool_put(struct vmsrs_device *dev, u32 frame)
{
	struct vmsrs_pool *pool = &dev->pool;

	spin_lock(&pool->lock);
	__set_bit(frame, pool->free);
	pool->free_count++;
	pool->hint = min(pool->hint, frame);
	spin_unlock(&pool->lock);
	wake_up(&pool->wait);
}

/**
 * vmsrs_pool_revoke() - note that a frame is the host's again, sealed or dropped
 * @dev: the device
 * @frame: the frame
 */
void vmsrs_pool_revoke(struct vmsrs_device *dev, u32 frame)
{
	struct vmsrs_pool *pool = &dev->pool;

	spin_lock(&pool->lock);
	__clear_bit(frame, pool->granted);
	pool->granted_count--;
	spin_unlock(&pool->lock);
}

static bool run_valid(struct vmsrs_device *dev, const struct vmsrs_frame_run *run)
{
	struct vmsrs_pool *pool = &dev->pool;
	u32 frames = dev->config.window_frames;

	if (run->start == VMSRS_ZERO_FRAME || run->start >= frames || !run->count ||
	    run->count > frames - run->start ||
	    run->count > dev->config.pool_frames - pool->granted_count)
		return false;
	return find_next_bit(pool->granted, run->start + run->count, run->start) >=
	       run->start + run->count;
}

/**
 * vmsrs_pool_grant() - add frames that the host granted
 * @dev: the device
 * @runs: runs of frames, unchecked
 * @count: number of runs
 *
 * Return: 0, or -EPROTO if the host granted frames that it must not.
 */
int vmsrs_pool_grant(struct vmsrs_device *dev, const struct vmsrs_frame_run *runs, u32 count)
{
	struct vmsrs_pool *pool = &dev->pool;
	int error = 0;
	u32 i;

	if (!count)
		return 0;
	spin_lock(&pool->lock);
	for (i = 0; i < count; i++) {
		if (!run_valid(dev, &runs[i])) {
			error = -EPROTO;
			break;
		}
		bitmap_set(pool->granted, runs[i].start, runs[i].count);
		bitmap_set(pool->free, runs[i].start, runs[i].count);
		pool->granted_count += runs[i].count;
		pool->free_count += runs[i].count;
		pool->hint = min(pool->hint, runs[i].start);
	}
	spin_unlock(&pool->lock);
	wake_up_all(&pool->wait);
	return error;
}

/**
 * vmsrs_pool_take_reply() - add the frames in a reply that starts with a vmsrs_grant_reply
 * @dev: the device
 * @reply: the reply, unchecked
 * @length: bytes of it
 *
 * Return: 0 or -EPROTO.
 */
int vmsrs_pool_take_reply(struct vmsrs_device *dev, const void *reply, u32 length)
{
	const struct vmsrs_grant_reply *head = reply;

	if (length < sizeof(*head) || head->runs > VMSRS_REPLY_RUNS_MAX ||
	    length != sizeof(*head) + head->runs * sizeof(struct vmsrs_frame_run))
		return -EPROTO;
	return vmsrs_pool_grant(dev, reply + sizeof(*head), head->runs);
}

/**
 * vmsrs_pool_refill() - ask the host for the frames that the pool lacks
 * @dev: the device
 *
 * Called by the host work only. A grant may be cut short by the number of runs in a reply, so
 * this repeats as long as frames arrive.
 *
 * Return: 0, or a negative error that breaks the device.
 */
int vmsrs_pool_refill(struct vmsrs_device *dev)
{
	struct vmsrs_pool *pool = &dev->pool;
	struct vmsrs_grant_request request = { };
	const void *reply;
	u32 length, before, now;
	void *payload;
	int error;

	for (;;) {
		spin_lock(&pool->lock);
		before = pool->granted_count;
		now = pool->free_count;
		spin_unlock(&pool->lock);
		request.frames = dev->config.pool_frames - before;
		/* Frames come with every sealed batch; ask only if that is not enough. */
		if (!request.frames || now >= dev->config.pool_frames / 2)
			return 0;
		if (READ_ONCE(pool->dry) && !atomic_read(&pool->waiters))
			return 0;

		payload = vmsrs_control_begin(dev);
		if (IS_ERR(payload))
			return PTR_ERR(payload);
		memcpy(payload, &request, sizeof(request));
		error = vmsrs_control_exchange(dev, VMSRS_MESSAGE_GRANT, sizeof(request), &reply,
					       &length);
		if (!error)
			error = vmsrs_pool_take_reply(dev, reply, length);
		vmsrs_control_end(dev);
		if (error == -ENOSPC)
			error = 0;
		if (error)
			return error;

		spin_lock(&pool->lock);
		now = pool->granted_count;
		spin_unlock(&pool->lock);
		if (now == before) {
			WRITE_ONCE(pool->dry, true);
			return 0;
		}
		WRITE_ONCE(pool->dry, false);
	}
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
	atomic_inc(&pool->waiters);
	vmsrs_device_kick_host(dev);
	/* A copy by the kernel continues after a signal, and would come back here at once. */
	if (file && (flags & FAULT_FLAG_INTERRUPTIBLE) && (flags & FAULT_FLAG_USER))
		left = wait_event_interruptible_timeout(pool->wait, frame_free(dev, reserve),
							left);
	else
		left = wait_event_killable_timeout(pool->wait, frame_free(dev, reserve),
						   left);
	atomic_dec(&pool->waiters);
	if (file) {
		fput(file);
		return VM_FAULT_RETRY;
	}
	return left < 0 ? VM_FAULT_SIGBUS : 0;
}
