// SPDX-License-Identifier: GPL-2.0
/*
 * What is sent to the host in the background: committed pages, to be sealed, and reports. Each has
 * a work, which runs once at a time, and these messages are sent nowhere else.
 *
 * A batch is one consistent cut: all that was committed up to some moment, each page once, in its
 * newest version. There are two of them: the one that collects commits, and the one that is sent.
 *
 * A refusal shows that driver and host disagree about the state, so it breaks the device.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_PAYLOAD_MAX	(VMSRS_MESSAGE_BYTES_MAX - sizeof(struct vmsrs_control_header))

#define VMSRS_RECORDS_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_seal_request)) / \
			 sizeof(struct vmsrs_seal_record))
/* Drafts that one report has room for, if it is alone in its message. */
#define VMSRS_DROPPED_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_control_header) - \
				  sizeof(struct vmsrs_incident_report)) / \
				 sizeof(struct vmsrs_dropped_draft))

/* Most records in a message. */
static u32 records_max(const struct vmsrs_device *dev)
{
	return min_t(u32, dev->config.batch_records, VMSRS_RECORDS_MAX);
}

/* The version that a newer one takes the place of in the batch that collects, or NULL. batch->lock is held. */
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
 * vmsrs_host_append() - add the pages of one whole commit to the batch
 * @dev: the device
 * @records: the frames; none afterwards
 *
 * The locks of all their domains are held, so nothing is between the change of the page entries and
 * this; no entry maps a version that they supersede any more.
 *
 * Return: what vmsrs_host_wait_sealed() takes.
 */
u64 vmsrs_host_append(struct vmsrs_device *dev, struct vmsrs_frames *records)
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
 * vmsrs_host_replace() - let another frame be sent as a committed version
 * @dev: the device
 * @old: the version, shown by its page, whose domain is locked; in no row afterwards
 * @new: a frame with the same content, in no row
 *
 * Return: false if the version has been sent; nothing has changed then.
 */
bool vmsrs_host_replace(struct vmsrs_device *dev, struct vmsrs_frame *old, struct vmsrs_frame *new)
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
 * vmsrs_host_sent() - tell whether a committed version is in the batch that is sent
 * @dev: the device
 * @frame: the version, shown by its page, whose domain is locked
 */
bool vmsrs_host_sent(struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	bool sent;

	spin_lock(&dev->batch.lock);
	sent = frame->batch != dev->batch.number;
	spin_unlock(&dev->batch.lock);
	return sent;
}

static bool is_sealed(struct vmsrs_batch *batch, u64 end)
{
	return (u64)atomic64_read(&batch->sealed) >= end;
}

/**
 * vmsrs_host_wait_sealed() - wait until commits are sealed
 * @dev: the device
 * @end: what vmsrs_host_append() returned for the last of them
 * @killable_only: only a fatal signal ends the wait early
 *
 * Return: 0; -ENODEV: the device is broken; -EINTR; -ETIMEDOUT.
 */
long vmsrs_host_wait_sealed(struct vmsrs_device *dev, u64 end, bool killable_only)
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
 * vmsrs_host_flush() - send the batch and wait until everything committed so far is sealed
 * @dev: the device
 * @killable_only: only a fatal signal ends the wait early
 *
 * Return: as vmsrs_host_wait_sealed().
 */
long vmsrs_host_flush(struct vmsrs_device *dev, bool killable_only)
{
	u64 end;

	spin_lock(&dev->batch.lock);
	end = dev->batch.appended;
	spin_unlock(&dev->batch.lock);
	return vmsrs_host_wait_sealed(dev, end, killable_only);
}

static struct vmsrs_report *report_alloc(gfp_t gfp)
{
	return kzalloc(sizeof(struct vmsrs_report), gfp);
}

/* Takes a report that is kept ready, or returns NULL. batch->lock is held. */
static struct vmsrs_report *take_spare(struct vmsrs_batch *batch)
{
	struct vmsrs_report *report;

	lockdep_assert_held(&batch->lock);
	report = list_first_entry_or_null(&batch->spare, struct vmsrs_report, list);
	if (report)
		list_del(&report->list);
	return report;
}

/**
 * vmsrs_host_report_new() - take or allocate a report
 * @dev: the device
 * @incident: it is to be sent; otherwise it only collects drafts
 *
 * Return: the report; never NULL, since the callers cannot fail, and a report is small.
 */
struct vmsrs_report *vmsrs_host_report_new(struct vmsrs_device *dev, bool incident)
{
	struct vmsrs_report *report;

	spin_lock(&dev->batch.lock);
	report = take_spare(&dev->batch);
	spin_unlock(&dev->batch.lock);
	if (!report)
		report = report_alloc(GFP_KERNEL | __GFP_NOFAIL);
	report->incident = incident;
	return report;
}

/**
 * vmsrs_host_evidence_new() - take or allocate a report for evidence, for vmsrs_host_report()
 * @dev: the device
 * @length: bytes of the evidence
 *
 * Return: the report, whose evidence is not initialised; NULL if too much evidence is queued, or
 * without memory.
 */
struct vmsrs_report *vmsrs_host_evidence_new(struct vmsrs_device *dev, u32 length)
{
	struct vmsrs_report *report = NULL;
	struct vmsrs_batch *batch = &dev->batch;
	bool room;

	spin_lock(&batch->lock);
	room = batch->evidence < VMSRS_EVIDENCE_MAX;
	if (room) {
		batch->evidence++;
		report = take_spare(batch);
	}
	spin_unlock(&batch->lock);
	if (!room)
		return NULL;
	if (!report)
		report = report_alloc(GFP_KERNEL_ACCOUNT);
	if (!report)
		goto release;
	report->incident = false;
	if (report->memory && length <= VMSRS_EVIDENCE_SPARE)
		report->evidence = report->memory;
	else
		report->evidence = kvmalloc(length, GFP_KERNEL_ACCOUNT | __GFP_NOWARN);
	if (report->evidence)
		return report;
	vmsrs_host_report_free(dev, report);

release:
	spin_lock(&batch->lock);
	batch->evidence--;
	spin_unlock(&batch->lock);
	return NULL;
}

/**
 * vmsrs_host_report_free() - free a report, or keep it for the next failure
 * @dev: the device
 * @report: the report, not queued; its drafts are put
 */
void vmsrs_host_report_free(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	struct vmsrs_evidence *evidence = report->evidence;
	struct vmsrs_batch *batch = &dev->batch;
	bool keep = report->memory;

	vmsrs_pool_put_dropped(dev, &report->drafts);
	if (evidence != report->memory)
		kvfree(evidence);
	report->evidence = NULL;
	spin_lock(&batch->lock);
	if (evidence)
		batch->evidence--;
	if (keep)
		list_add(&report->list, &batch->spare);
	spin_unlock(&batch->lock);
	if (!keep)
		kfree(report);
}

/**
 * vmsrs_host_report() - queue a report, or free it if the host is gone
 * @dev: the device
 * @report: the report; taken over
 */
void vmsrs_host_report(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	if (vmsrs_device_broken(dev)) {
		vmsrs_host_report_free(dev, report);
		return;
	}
	spin_lock(&dev->batch.lock);
	list_add_tail(&report->list, &dev->batch.reports);
	dev->batch.reports_queued++;
	spin_unlock(&dev->batch.lock);
	/* Its frames are needed if few are free. */
	if (vmsrs_pool_low(dev))
		vmsrs_device_kick_reports(dev);
	else
		vmsrs_device_kick_reports_soon(dev);
}

static bool reports_few(struct vmsrs_device *dev)
{
	return READ_ONCE(dev->batch.reports_queued) < VMSRS_REPORTS_MAX || vmsrs_device_broken(dev);
}

/**
 * vmsrs_host_reports_room() - number of reports that a caller that must not wait may add now
 * @dev: the device
 *
 * Return: at least 1, so that the caller makes progress while the host does not. That is over
 * when the host has missed VMSRS_CONTROL_TIMEOUT.
 */
u32 vmsrs_host_reports_room(struct vmsrs_device *dev)
{
	u32 queued = READ_ONCE(dev->batch.reports_queued);

	if (vmsrs_device_broken(dev))
		return U32_MAX;
	return queued < VMSRS_REPORTS_MAX ? VMSRS_REPORTS_MAX - queued : 1;
}

/**
 * vmsrs_host_reports_wait() - wait until the host has caught up with the reports
 * @dev: the device
 *
 * For callers that add reports at will. The host must answer each message within
 * VMSRS_CONTROL_TIMEOUT, so each thread has at most one report more than VMSRS_REPORTS_MAX in
 * the list.
 */
void vmsrs_host_reports_wait(struct vmsrs_device *dev)
{
	if (reports_few(dev))
		return;
	vmsrs_device_kick_reports(dev);
	wait_event_killable_timeout(dev->batch.wait, reports_few(dev), VMSRS_CONTROL_TIMEOUT);
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

/* Sends the batch, in as many messages as it takes. The page map moves with the last one. */
static int send_batch(struct vmsrs_device *dev, u32 left)
{
	struct vmsrs_frame *const *frames = dev->batch.sent;
	struct vmsrs_seal_request *request;
	const void *reply;
	u32 count, length;
	int error;

	for (; left; left -= count, frames += count) {
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
	}
	return 0;
}

/*
 * Has the page show the sealed version, unless a newer one has been committed: that one replaces it
 * then. Returns true if entries of the page have to be zapped. The domain's lock is held.
 */
static bool show_sealed(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_page *entry = frame->entry;

	lockdep_assert_held(&frame->domain->lock);
	if (entry->frame != vmsrs_frame_name(dev, frame)) {
		if (!WARN_ON_ONCE(!vmsrs_in_pool(entry->frame)))
			vmsrs_pool_frame(dev, entry->frame)->replaced = frame->sealed;
		return false;
	}
	entry->frame = frame->sealed;
	/* The host may have found the loss before this, and vmsrs_page_damaged() noted it. */
	if (frame->sealed == frame->lost)
		entry->frame = VMSRS_DAMAGED_FRAME;
	if (entry->frame == VMSRS_DAMAGED_FRAME && entry->draft != VMSRS_NO_DRAFT)
		dev->pool.frames[entry->draft].replaced = frame->sealed;
	return true;
}

/* Is the draft of a page all that entries show? The domain's lock is held. */
static bool shows_draft_only(const struct vmsrs_device *dev, const struct vmsrs_page *entry)
{
	return entry->draft != VMSRS_NO_DRAFT && dev->pool.frames[entry->draft].alone;
}

/*
 * Takes the first frames of a batch that was sent, as far as they are of one domain, out of use: the pages show
 * their sealed versions, and no entry maps the frames any more. Returns how many these are.
 */
static u32 finish_domain(struct vmsrs_device *dev, struct vmsrs_frame *const *sent, u32 count)
{
	struct vmsrs_domain *domain = sent[0]->domain;
	struct vmsrs_run zap = { .app = domain->app };
	struct vmsrs_frames frames = { };
	struct vmsrs_frame *frame;
	u32 i;

	mutex_lock(&domain->lock);
	for (i = 0; i < count; i++) {
		frame = sent[i];
		if (frame->domain != domain)
			break;
		if (show_sealed(dev, frame) && !shows_draft_only(dev, frame->entry))
			vmsrs_zap_add(&zap, frame->entry, frame->page);
		/* Memory that cannot be read is not used any more. */
		if (frame->sealed != VMSRS_DAMAGED_FRAME)
			vmsrs_frames_add(&frames, frame);
	}
	vmsrs_zap_finish(&zap);
	mutex_unlock(&domain->lock);
	vmsrs_pool_put_all(dev, &frames);
	return i;
}

/* Sends what has been committed up to now, unless that is nothing. */
static int seal(struct vmsrs_device *dev)
{
	struct vmsrs_batch *batch = &dev->batch;
	u32 count, done;
	int error;
	u64 end;

	spin_lock(&batch->lock);
	count = batch->queued;
	end = batch->appended;
	swap(batch->records, batch->sent);
	batch->queued = 0;
	batch->sent_count = count;
	batch->number++;
	spin_unlock(&batch->lock);
	if (!count)
		return 0;
	/* After an error the frames stay where they are: pages show them. */
	error = send_batch(dev, count);
	if (error)
		return error;
	for (done = 0; done < count;) {
		done += finish_domain(dev, batch->sent + done, count - done);
		cond_resched();
	}
	spin_lock(&batch->lock);
	batch->sent_count = 0;
	spin_unlock(&batch->lock);
	atomic64_add(count, &dev->sealed_pages);
	atomic64_set(&batch->sealed, end);
	wake_up_all(&batch->wait);
	return 0;
}

static void work_failed(struct vmsrs_device *dev, int error)
{
	vmsrs_device_fail(dev, "a message was refused or badly answered (%d)", error);
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
		work_failed(dev, error);
}

static u32 evidence_bytes(const struct vmsrs_evidence *evidence)
{
	return sizeof(*evidence) + evidence->stack_bytes + evidence->modules_bytes +
	       evidence->text_bytes;
}

static u32 dropped_count(const struct vmsrs_report *report)
{
	return min_t(u32, report->drafts.count, VMSRS_DROPPED_MAX);
}

/* Bytes that a report takes in a message. */
static u32 report_bytes(const struct vmsrs_report *report)
{
	u32 payload;

	if (report->evidence)
		payload = ALIGN(evidence_bytes(report->evidence), 8);
	else
		payload = sizeof(report->body) +
			  dropped_count(report) * sizeof(struct vmsrs_dropped_draft);
	return sizeof(struct vmsrs_control_header) + payload;
}

/* Takes the first report unless it needs more than `room` bytes in a message. */
static struct vmsrs_report *take_report(struct vmsrs_batch *batch, u32 room)
{
	struct vmsrs_report *report;

	spin_lock(&batch->lock);
	report = list_first_entry_or_null(&batch->reports, struct vmsrs_report, list);
	if (report && report_bytes(report) > room)
		report = NULL;
	if (report) {
		list_del(&report->list);
		batch->reports_queued--;
	}
	spin_unlock(&batch->lock);
	return report;
}

static u32 fill_incident(struct vmsrs_device *dev, void *payload, struct vmsrs_report *report)
{
	struct vmsrs_incident_report *body = payload;
	struct vmsrs_dropped_draft *dropped = (struct vmsrs_dropped_draft *)(body + 1);
	u32 count = 0, most = dropped_count(report);
	struct vmsrs_frame *draft;

	vmsrs_for_each_frame(draft, &report->drafts) {
		if (count == most)
			break;
		dropped[count].domain = draft->domain->number;
		dropped[count].page = draft->page;
		dropped[count].pool_frame = vmsrs_frame_number(dev, draft);
		dropped[count].committed = draft->committed;
		count++;
	}
	*body = report->body;
	body->drafts = count;
	return sizeof(*body) + count * sizeof(*dropped);
}

static u32 fill_evidence(void *payload, const struct vmsrs_evidence *evidence)
{
	u32 length = evidence_bytes(evidence);

	memcpy(payload, evidence, length);
	memset(payload + length, 0, ALIGN(length, 8) - length);
	return length;
}

/* Adds a report to a message; returns the bytes that it takes there. */
static u32 fill_report(struct vmsrs_device *dev, struct vmsrs_control_header *header,
		       struct vmsrs_report *report)
{
	if (report->evidence) {
		header->kind = VMSRS_MESSAGE_EVIDENCE;
		header->length = fill_evidence(header + 1, report->evidence);
	} else {
		header->kind = VMSRS_MESSAGE_INCIDENT;
		header->length = fill_incident(dev, header + 1, report);
	}
	return sizeof(*header) + ALIGN(header->length, 8);
}

/*
 * Sends as many reports as one message has room for: each message costs the host more than what is
 * in it. They are moved to a list, and the host has read their frames when this returns.
 */
static int send_reports(struct vmsrs_device *dev, struct list_head *sent)
{
	struct vmsrs_report *report;
	u32 length = 0, answer = 0, count;
	const void *reply;
	void *payload;
	int error = 0;

	payload = vmsrs_control_begin(dev);
	if (IS_ERR(payload))
		return PTR_ERR(payload);
	for (count = 0; count < VMSRS_PARTS_MAX; count++) {
		report = take_report(&dev->batch, VMSRS_PAYLOAD_MAX - length);
		if (!report)
			break;
		list_add_tail(&report->list, sent);
		length += fill_report(dev, payload + length, report);
	}
	if (length)
		error = vmsrs_control_exchange(dev, VMSRS_MESSAGE_REPORTS, length, &reply, &answer);
	if (!error && answer)
		error = -EPROTO;
	vmsrs_control_end(dev);
	return error;
}

static void report_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(to_delayed_work(work), struct vmsrs_device,
						report_work);
	struct vmsrs_report *report, *next;
	LIST_HEAD(sent);
	int error;

	while (!vmsrs_device_broken(dev)) {
		error = send_reports(dev, &sent);
		if (!error && list_empty(&sent))
			return;
		list_for_each_entry_safe(report, next, &sent, list) {
			list_del(&report->list);
			vmsrs_host_report_free(dev, report);
		}
		wake_up_all(&dev->batch.wait);
		if (error)
			work_failed(dev, error);
		cond_resched();
	}
}

/* Keeps a report ready for a failure. */
static int add_spare(struct vmsrs_device *dev)
{
	struct vmsrs_report *report = report_alloc(GFP_KERNEL);

	if (!report)
		return -ENOMEM;
	report->memory = kmalloc(VMSRS_EVIDENCE_SPARE, GFP_KERNEL);
	if (!report->memory) {
		kfree(report);
		return -ENOMEM;
	}
	vmsrs_host_report_free(dev, report);
	return 0;
}

/**
 * vmsrs_host_init() - initialise the batch and the works
 * @dev: the device, with its configuration
 *
 * Return: 0 or -ENOMEM; vmsrs_host_free() is called in any case.
 */
int vmsrs_host_init(struct vmsrs_device *dev)
{
	struct vmsrs_batch *batch = &dev->batch;
	u32 frames = dev->config.pool_frames, i;
	int error = 0;

	spin_lock_init(&batch->lock);
	INIT_LIST_HEAD(&batch->reports);
	INIT_LIST_HEAD(&batch->spare);
	init_waitqueue_head(&batch->wait);
	INIT_DELAYED_WORK(&dev->seal_work, seal_work);
	INIT_DELAYED_WORK(&dev->report_work, report_work);
	batch->records = kvcalloc(frames, sizeof(*batch->records), GFP_KERNEL);
	batch->sent = kvcalloc(frames, sizeof(*batch->sent), GFP_KERNEL);
	if (!batch->records || !batch->sent)
		error = -ENOMEM;
	for (i = 0; i < VMSRS_REPORTS_SPARE && !error; i++)
		error = add_spare(dev);
	return error;
}

/**
 * vmsrs_host_free() - free all reports, those that were not sent as well
 * @dev: the device; its works do not run any more
 */
void vmsrs_host_free(struct vmsrs_device *dev)
{
	struct vmsrs_report *report, *next;

	while ((report = take_report(&dev->batch, U32_MAX)))
		vmsrs_host_report_free(dev, report);
	list_for_each_entry_safe(report, next, &dev->batch.spare, list) {
		kfree(report->memory);
		kfree(report);
	}
	kvfree(dev->batch.records);
	kvfree(dev->batch.sent);
}
