// SPDX-License-Identifier: GPL-2.0
/*
 * Batches: committed pages on their way to the host, to be sealed. A work sends them, which runs
 * once at a time.
 *
 * A batch is one consistent cut: all that was committed up to some moment, each page once, in its
 * newest version. There are two of them: the one that collects commits, and the one that is sent.
 *
 * A refusal shows that driver and host disagree about the state, so it breaks the device.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_RECORDS_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_seal_request)) / \
			 sizeof(struct vmsrs_seal_record))

/* Most records in a message. */
static u32 records_max(const struct vmsrs_device *dev)
{
	return min_t(u32, dev->config.batch_records, VMSRS_RECORDS_MAX);
}

/*
 * The version that a newer one takes the place of in the batch that collects, or NULL. batch->lock
 * is held.
 */
static struct vmsrs_frame *superseded_by(struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	struct vmsrs_frame *old;

	if (!vmsrs_in_pool(frame->committed))
		return NULL;
	old = vmsrs_pool_frame(dev, frame->committed);
	/* What is sent is the older batch's; its answer says what this version replaces. */
	return old->batch == dev->batch.number ? old : NULL;
}

/*
 * Adds a committed version to the batch. One that it replaces there is moved to a row. batch->lock
 * and the domain's lock are held.
 */
static void add_record(struct vmsrs_device *dev, struct vmsrs_frame *frame,
		       struct vmsrs_frames *superseded)
{
	struct vmsrs_batch *batch = &dev->batch;
	struct vmsrs_frame *old = superseded_by(dev, frame);

	lockdep_assert_held(&batch->lock);
	if (old) {
		frame->replaced = old->replaced;
		frame->place = old->place;
		vmsrs_frames_add(superseded, old);
	} else {
		/* The loss of a sealed version has entered it already. */
		if (!vmsrs_in_pool(frame->committed) && frame->committed != VMSRS_DAMAGED_FRAME)
			frame->replaced = frame->committed;
		frame->place = batch->queued++;
	}
	frame->batch = batch->number;
	batch->records[frame->place] = frame;
}

/**
 * vmsrs_batch_append() - add the pages of one whole commit to the batch
 * @dev: the device
 * @records: the frames; none afterwards
 * @number: set to the batch's number, for vmsrs_batch_lost()
 *
 * The locks of all their domains are held, so nothing is between the change of the page entries and
 * this; no entry maps a version that they supersede any more.
 *
 * Return: what vmsrs_batch_wait_sealed() takes.
 */
u64 vmsrs_batch_append(struct vmsrs_device *dev, struct vmsrs_frames *records, u32 *number)
{
	struct vmsrs_batch *batch = &dev->batch;
	struct vmsrs_frames superseded = { };
	struct vmsrs_frame *frame;
	bool full;
	u64 end;

	spin_lock(&batch->lock);
	while ((frame = vmsrs_frames_take(records)))
		add_record(dev, frame, &superseded);
	end = ++batch->appended;
	*number = batch->number;
	full = batch->queued >= records_max(dev);
	spin_unlock(&batch->lock);
	vmsrs_pool_put_all(dev, &superseded);
	if (full || vmsrs_pool_low(dev))
		vmsrs_device_kick_seal(dev);
	else
		vmsrs_device_kick_seal_soon(dev);
	return end;
}

/**
 * vmsrs_batch_replace() - let another frame be sent as a committed version
 * @dev: the device
 * @old: the version, shown by its page, whose domain is locked; in no row afterwards
 * @new: a frame with the same content, in no row
 *
 * Return: false if the version has been sent; nothing has changed then.
 */
bool vmsrs_batch_replace(struct vmsrs_device *dev, struct vmsrs_frame *old, struct vmsrs_frame *new)
{
	struct vmsrs_batch *batch = &dev->batch;
	bool queued;

	spin_lock(&batch->lock);
	queued = old->batch == batch->number;
	if (queued) {
		new->batch = old->batch;
		new->place = old->place;
		batch->records[new->place] = new;
	}
	spin_unlock(&batch->lock);
	return queued;
}

/**
 * vmsrs_batch_remove() - take a committed version out of the batch that collects
 * @dev: the device
 * @frame: the version, shown by its page, whose domain is locked; its page shows it no more
 *
 * Return: false if it has been sent: it is put when the answer comes.
 */
bool vmsrs_batch_remove(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_batch *batch = &dev->batch;
	struct vmsrs_frame *last;
	bool queued;

	spin_lock(&batch->lock);
	queued = frame->batch == batch->number;
	if (queued) {
		last = batch->records[--batch->queued];
		last->place = frame->place;
		batch->records[last->place] = last;
	}
	spin_unlock(&batch->lock);
	return queued;
}

/**
 * vmsrs_batch_append_deletion() - add a deletion to the batch
 * @dev: the device
 * @deletion: the deletion of a domain that is locked, and has no page in the batch that collects
 */
void vmsrs_batch_append_deletion(struct vmsrs_device *dev, struct vmsrs_deletion *deletion)
{
	struct vmsrs_batch *batch = &dev->batch;

	spin_lock(&batch->lock);
	list_add_tail(&deletion->batch_entry, &batch->deletions);
	batch->deletion_count++;
	batch->appended++;
	spin_unlock(&batch->lock);
	vmsrs_device_kick_seal_soon(dev);
}

/**
 * vmsrs_batch_deletes() - tell whether there are deletions that the host has not done
 * @dev: the device
 */
bool vmsrs_batch_deletes(struct vmsrs_device *dev)
{
	bool deletes;

	spin_lock(&dev->batch.lock);
	deletes = dev->batch.deletion_count || dev->batch.sent_deletions;
	spin_unlock(&dev->batch.lock);
	return deletes;
}

/**
 * vmsrs_batch_sent() - tell whether a committed version is in the batch that is sent
 * @dev: the device
 * @frame: the version, shown by its page, whose domain is locked
 */
bool vmsrs_batch_sent(struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	bool sent;

	spin_lock(&dev->batch.lock);
	sent = frame->batch != dev->batch.number;
	spin_unlock(&dev->batch.lock);
	return sent;
}

static bool is_sealed(struct vmsrs_batch *batch, u64 end)
{
	/* Pairs with seal(): what it has noted of lost pages is seen after this. */
	return (u64)atomic64_read_acquire(&batch->sealed) >= end;
}

/**
 * vmsrs_batch_wait_sealed() - wait until commits are sealed
 * @dev: the device
 * @end: what vmsrs_batch_append() returned for the last of them
 * @killable_only: only a fatal signal ends the wait early
 *
 * Return: 0; -ENODEV: the device is broken; -EINTR; -ETIMEDOUT.
 */
long vmsrs_batch_wait_sealed(struct vmsrs_device *dev, u64 end, bool killable_only)
{
	struct vmsrs_batch *batch = &dev->batch;
	long left;

	if (is_sealed(batch, end))
		return 0;
	vmsrs_device_kick_seal(dev);
	if (killable_only)
		left = wait_event_killable_timeout(batch->wait,
						   is_sealed(batch, end) ||
						   vmsrs_device_broken(dev), VMSRS_SEAL_TIMEOUT);
	else
		left = wait_event_interruptible_timeout(batch->wait,
							is_sealed(batch, end) ||
							vmsrs_device_broken(dev),
							VMSRS_SEAL_TIMEOUT);
	if (is_sealed(batch, end))
		return 0;
	if (vmsrs_device_broken(dev))
		return -ENODEV;
	return left < 0 ? -EINTR : -ETIMEDOUT;
}

/**
 * vmsrs_batch_last() - tell how far commits have come
 * @dev: the device
 * @number: set to the number of the oldest batch that is not sealed, for vmsrs_batch_lost()
 *
 * Return: what vmsrs_batch_wait_sealed() takes, for all commits so far.
 */
u64 vmsrs_batch_last(struct vmsrs_device *dev, u32 *number)
{
	u64 end;

	spin_lock(&dev->batch.lock);
	end = dev->batch.appended;
	*number = dev->batch.number - (dev->batch.sent_count != 0);
	spin_unlock(&dev->batch.lock);
	return end;
}

/**
 * vmsrs_batch_lost() - tell whether a page of a domain has lost its content in a batch or in a
 * later one
 * @domain: the domain
 * @number: number of the batch, which is sealed
 */
bool vmsrs_batch_lost(const struct vmsrs_domain *domain, u32 number)
{
	u32 lost = READ_ONCE(domain->lost);

	return lost && (s32)(lost - number) >= 0;
}

/**
 * vmsrs_batch_flush() - send the batch and wait until everything committed so far is sealed
 * @dev: the device
 * @killable_only: only a fatal signal ends the wait early
 *
 * Return: as vmsrs_batch_wait_sealed().
 */
long vmsrs_batch_flush(struct vmsrs_device *dev, bool killable_only)
{
	u32 number;

	return vmsrs_batch_wait_sealed(dev, vmsrs_batch_last(dev, &number), killable_only);
}

/* Fills `count` records with frames of the batch. */
static void fill_records(struct vmsrs_device *dev, struct vmsrs_frame *const *frames, u32 count,
			 struct vmsrs_seal_record *record)
{
	const struct vmsrs_frame *frame;

	for (; count--; record++) {
		frame = *frames++;
		record->app = frame->domain->app->number;
		record->domain = frame->domain->number;
		record->page = frame->page;
		record->pool_frame = vmsrs_frame_number(dev, frame);
		record->vault_frame = frame->replaced;
		record->reserved = 0;
	}
}

/* Takes the vault frames of `count` frames of the batch. */
static int take_seal_reply(struct vmsrs_device *dev, const void *bytes, u32 length, u32 count,
			   struct vmsrs_frame *const *frames)
{
	const struct vmsrs_seal_reply *reply = bytes;
	const u32 *sealed = (const u32 *)(reply + 1);

	if (length < sizeof(*reply))
		return -EPROTO;
	if (reply->refusal != VMSRS_STATUS_OK) {
		vmsrs_device_fail(dev, "a batch was refused (status %u)", reply->refusal);
		return -ENODEV;
	}
	if (reply->sealed != count || length != sizeof(*reply) + count * sizeof(*sealed))
		return -EPROTO;
	for (; count--; sealed++) {
		if (*sealed == VMSRS_ZERO_FRAME || (*sealed >= dev->config.vault_frames &&
						    *sealed != VMSRS_DAMAGED_FRAME))
			return -EPROTO;
		(*frames++)->sealed = *sealed;
	}
	return 0;
}

/* Sends the pages of the batch, in as many messages as it takes. The page map moves with the last one. */
static int send_pages(struct vmsrs_device *dev, u32 left)
{
	struct vmsrs_frame *const *frames = dev->batch.sent;
	struct vmsrs_seal_request *request;
	const void *reply;
	u32 count, length;
	int error;

	do {
		request = vmsrs_control_begin(dev);
		if (IS_ERR(request))
			return PTR_ERR(request);
		count = min(left, records_max(dev));
		request->records = count;
		request->flags = count == left ? VMSRS_SEAL_LAST : 0;
		fill_records(dev, frames, count, (struct vmsrs_seal_record *)(request + 1));
		error = vmsrs_control_exchange(dev, VMSRS_MESSAGE_SEAL,
					       sizeof(*request) +
					       count * sizeof(struct vmsrs_seal_record),
					       &reply, &length);
		if (!error)
			error = take_seal_reply(dev, reply, length, count, frames);
		vmsrs_control_end(dev);
		if (error)
			return error;
		atomic64_inc(&dev->seal_messages);
		left -= count;
		frames += count;
	} while (left);
	return 0;
}

/* Sends the batch, which has pages or deletions. */
static int send_batch(struct vmsrs_device *dev, u32 count, struct list_head *deletions, u32 deletion_count)
{
	int error = 0;

	if (deletion_count) {
		/* Those that name the domains' pages come first. */
		vmsrs_device_kick_reports(dev);
		flush_delayed_work(&dev->report_work);
		error = vmsrs_deletions_send(dev, deletions, deletion_count);
	}
	return error ? error : send_pages(dev, count);
}

/* Sends what has been committed up to now, unless that is nothing. */
static int seal(struct vmsrs_device *dev)
{
	struct vmsrs_batch *batch = &dev->batch;
	u32 count, deletion_count;
	LIST_HEAD(deletions);
	int error;
	u64 end;

	spin_lock(&batch->lock);
	count = batch->queued;
	end = batch->appended;
	swap(batch->records, batch->sent);
	batch->queued = 0;
	batch->sent_count = count;
	batch->number++;
	list_splice_init(&batch->deletions, &deletions);
	deletion_count = batch->deletion_count;
	batch->sent_deletions = deletion_count;
	batch->deletion_count = 0;
	spin_unlock(&batch->lock);
	if (!count && !deletion_count)
		return 0;
	vmsrs_leases_keep(dev, batch->sent, count, &deletions);
	/* After an error the frames stay where they are: pages show them. Deletions stay in their apps. */
	error = send_batch(dev, count, &deletions, deletion_count);
	if (error)
		return error;
	vmsrs_leases_sealed(dev);
	vmsrs_answer_finish(dev);
	if (deletion_count)
		vmsrs_deletions_done(dev, &deletions);
	spin_lock(&batch->lock);
	batch->sent_count = 0;
	batch->sent_deletions = 0;
	spin_unlock(&batch->lock);
	atomic64_add(count, &dev->sealed_pages);
	/* Pairs with is_sealed(). */
	atomic64_set_release(&batch->sealed, end);
	wake_up_all(&batch->wait);
	return 0;
}

static void seal_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(to_delayed_work(work), struct vmsrs_device,
						seal_work);
	int error;

	if (vmsrs_device_broken(dev))
		return;
	error = seal(dev);
	if (error)
		vmsrs_device_fail(dev, "a batch was refused or badly answered (%d)", error);
}

/**
 * vmsrs_batch_init() - initialise the batch and its work
 * @dev: the device, with its configuration
 *
 * Return: 0 or -ENOMEM; vmsrs_batch_free() is called in any case.
 */
int vmsrs_batch_init(struct vmsrs_device *dev)
{
	struct vmsrs_batch *batch = &dev->batch;
	u32 frames = dev->config.pool_frames;

	spin_lock_init(&batch->lock);
	init_waitqueue_head(&batch->wait);
	batch->number = 1;
	INIT_LIST_HEAD(&batch->deletions);
	INIT_DELAYED_WORK(&dev->seal_work, seal_work);
	batch->records = kvcalloc(frames, sizeof(*batch->records), GFP_KERNEL);
	batch->sent = kvcalloc(frames, sizeof(*batch->sent), GFP_KERNEL);
	return batch->records && batch->sent ? 0 : -ENOMEM;
}

/**
 * vmsrs_batch_free() - free the batch
 * @dev: the device; its works do not run any more
 */
void vmsrs_batch_free(struct vmsrs_device *dev)
{
	kvfree(dev->batch.records);
	kvfree(dev->batch.sent);
}
