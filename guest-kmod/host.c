// SPDX-License-Identifier: GPL-2.0
/*
 * The host work: sends what has been collected (commits in their order, then reports) and asks
 * for frames. These messages are sent nowhere else, and the work runs once at a time.
 *
 * A refusal shows that driver and host disagree about the state, so it breaks the device.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_PAYLOAD_MAX	(VMSRS_MESSAGE_BYTES_MAX - sizeof(struct vmsrs_control_header))

#define VMSRS_RECORDS_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_seal_request)) / \
			 sizeof(struct vmsrs_seal_record))
#define VMSRS_DROPPED_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_incident_report)) / \
			 sizeof(struct vmsrs_dropped_draft))
#define VMSRS_DISCARDED_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_discard_request)) / \
				 sizeof(u32))

/**
 * vmsrs_host_append() - queue the records of one whole commit
 * @dev: the device
 * @records: list of drafts; empty afterwards
 * @count: length of the list
 *
 * commit_lock is held, so that the records are in the order of the commits.
 *
 * Return: the value of batch.sealed at which these records are sealed.
 */
u64 vmsrs_host_append(struct vmsrs_device *dev, struct list_head *records, u32 count)
{
	struct vmsrs_batch *batch = &dev->batch;
	bool full;
	u64 end;

	lockdep_assert_held(&dev->commit_lock);
	spin_lock(&batch->lock);
	list_splice_tail_init(records, &batch->records);
	batch->queued += count;
	batch->appended += count;
	end = batch->appended;
	full = batch->queued >= min_t(u32, dev->config.batch_records, VMSRS_RECORDS_MAX);
	spin_unlock(&batch->lock);
	if (full)
		vmsrs_device_kick_host(dev);
	else
		vmsrs_device_kick_host_soon(dev);
	return end;
}

static bool is_sealed(struct vmsrs_batch *batch, u64 end)
{
	return (u64)atomic64_read(&batch->sealed) >= end;
}

/**
 * vmsrs_host_wait_sealed() - wait until records are sealed
 * @dev: the device
 * @end: what vmsrs_host_append() returned
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
	vmsrs_device_kick_host(dev);
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

/**
 * vmsrs_host_evidence_reserve() - reserve room for one more piece of evidence
 * @dev: the device
 *
 * Return: true if there is room; the caller passes it on to vmsrs_host_evidence(), or releases
 * it.
 */
bool vmsrs_host_evidence_reserve(struct vmsrs_device *dev)
{
	bool room;

	spin_lock(&dev->batch.lock);
	room = dev->batch.evidence < VMSRS_EVIDENCE_MAX;
	if (room)
		dev->batch.evidence++;
	spin_unlock(&dev->batch.lock);
	return room;
}

/**
 * vmsrs_host_evidence_release() - release the room for a piece of evidence
 * @dev: the device
 */
void vmsrs_host_evidence_release(struct vmsrs_device *dev)
{
	spin_lock(&dev->batch.lock);
	dev->batch.evidence--;
	spin_unlock(&dev->batch.lock);
}

/* Frees evidence and releases its room. */
static void evidence_free(struct vmsrs_device *dev, struct vmsrs_evidence *evidence)
{
	if (!evidence)
		return;
	kvfree(evidence);
	vmsrs_host_evidence_release(dev);
}

static void report_free(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	vmsrs_drafts_free(&report->drafts);
	evidence_free(dev, report->evidence);
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
		report_free(dev, report);
		return;
	}
	spin_lock(&dev->batch.lock);
	list_add_tail(&report->list, &dev->batch.reports);
	dev->batch.reports_queued++;
	spin_unlock(&dev->batch.lock);
	vmsrs_device_kick_host_soon(dev);
}

/**
 * vmsrs_host_evidence() - queue evidence after the report of its incident
 * @dev: the device
 * @evidence: the evidence, taken over with its room
 */
void vmsrs_host_evidence(struct vmsrs_device *dev, struct vmsrs_evidence *evidence)
{
	struct vmsrs_report *report = kzalloc(sizeof(*report), GFP_KERNEL_ACCOUNT);

	if (!report) {
		evidence_free(dev, evidence);
		return;
	}
	INIT_LIST_HEAD(&report->drafts);
	report->evidence = evidence;
	vmsrs_host_report(dev, report);
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
	vmsrs_device_kick_host(dev);
	wait_event_killable_timeout(dev->batch.wait, reports_few(dev), VMSRS_CONTROL_TIMEOUT);
}

/* Moves up to `limit` records from the batch to a list. */
static u32 take_records(struct vmsrs_batch *batch, u32 limit, struct list_head *records)
{
	struct list_head *last = &batch->records;
	u32 count = 0;

	spin_lock(&batch->lock);
	while (count < limit && !list_is_last(last, &batch->records)) {
		last = last->next;
		count++;
	}
	list_cut_position(records, &batch->records, last);
	batch->queued -= count;
	spin_unlock(&batch->lock);
	return count;
}

static void fill_record(struct vmsrs_seal_record *record, const struct vmsrs_draft *draft)
{
	record->tag = draft->tag;
	record->app = draft->app;
	record->domain = draft->domain;
	record->page = draft->page;
	record->old_frame = draft->committed;
	record->new_frame = draft->frame;
	record->flags = draft->flags;
}

/* Frames that the host took back, sealed or dropped. Frees the drafts. */
static void revoke(struct vmsrs_device *dev, struct list_head *drafts)
{
	struct vmsrs_draft *draft;

	list_for_each_entry(draft, drafts, list)
		vmsrs_pool_revoke(dev, draft->frame);
	vmsrs_drafts_free(drafts);
}

static int take_seal_reply(struct vmsrs_device *dev, const void *bytes, u32 length, u32 count,
			   struct list_head *records)
{
	const struct vmsrs_seal_reply *reply = bytes;

	if (length < sizeof(*reply) || reply->runs > VMSRS_REPLY_RUNS_MAX ||
	    length != sizeof(*reply) + reply->runs * sizeof(struct vmsrs_frame_run))
		return -EPROTO;
	if (reply->refusal != VMSRS_STATUS_OK || reply->sealed != count) {
		vmsrs_device_fail(dev, "seal refused after %u of %u records (status %u)",
				  reply->sealed, count, reply->refusal);
		return -ENODEV;
	}
	revoke(dev, records);
	return vmsrs_pool_grant(dev, (const void *)(reply + 1), reply->runs);
}

static int send_records(struct vmsrs_device *dev)
{
	u32 limit = min_t(u32, dev->config.batch_records, VMSRS_RECORDS_MAX);
	struct vmsrs_batch *batch = &dev->batch;
	struct vmsrs_seal_request *request;
	struct vmsrs_seal_record *record;
	struct vmsrs_draft *draft;
	const void *reply;
	u32 count, length;
	int error;

	do {
		LIST_HEAD(records);

		if (list_empty_careful(&batch->records))
			return 0;
		request = vmsrs_control_begin(dev);
		if (IS_ERR(request))
			return PTR_ERR(request);
		count = take_records(batch, limit, &records);
		request->records = count;
		request->reserved = 0;
		record = (struct vmsrs_seal_record *)(request + 1);
		list_for_each_entry(draft, &records, list)
			fill_record(record++, draft);
		error = vmsrs_control_exchange(dev, VMSRS_MESSAGE_SEAL,
					       sizeof(*request) + count * sizeof(*record), &reply,
					       &length);
		if (!error)
			error = take_seal_reply(dev, reply, length, count, &records);
		vmsrs_control_end(dev);
		vmsrs_drafts_free(&records);
		if (error)
			return error;
		WRITE_ONCE(dev->pool.dry, false);
		atomic64_inc(&dev->seal_messages);
		atomic64_add(count, &dev->sealed_pages);
		atomic64_add(count, &batch->sealed);
		wake_up_all(&batch->wait);
	} while (count == limit);
	return 0;
}

static struct vmsrs_report *take_report(struct vmsrs_batch *batch)
{
	struct vmsrs_report *report;

	spin_lock(&batch->lock);
	report = list_first_entry_or_null(&batch->reports, struct vmsrs_report, list);
	if (report) {
		list_del(&report->list);
		batch->reports_queued--;
	}
	spin_unlock(&batch->lock);
	return report;
}

/* Moves up to `limit` drafts of a report to a list. */
static u32 take_drafts(struct vmsrs_report *report, u32 limit, struct list_head *drafts)
{
	struct list_head *last = &report->drafts;
	u32 count = 0;

	while (count < limit && !list_is_last(last, &report->drafts)) {
		last = last->next;
		count++;
	}
	list_cut_position(drafts, &report->drafts, last);
	return count;
}

static u32 fill_incident(void *payload, struct vmsrs_report *report, struct list_head *drafts)
{
	struct vmsrs_incident_report *body = payload;
	struct vmsrs_dropped_draft *dropped = (struct vmsrs_dropped_draft *)(body + 1);
	struct vmsrs_draft *draft;
	u32 count;

	count = take_drafts(report, VMSRS_DROPPED_MAX, drafts);
	*body = report->body;
	body->drafts = count;
	list_for_each_entry(draft, drafts, list) {
		dropped->domain = draft->domain;
		dropped->page = draft->page;
		dropped->frame = draft->frame;
		dropped->committed = draft->committed;
		dropped++;
	}
	return sizeof(*body) + count * sizeof(*dropped);
}

static u32 fill_discard(void *payload, struct vmsrs_report *report, struct list_head *drafts)
{
	struct vmsrs_discard_request *request = payload;
	u32 *frame = (u32 *)(request + 1);
	struct vmsrs_draft *draft;

	request->frames = take_drafts(report, VMSRS_DISCARDED_MAX, drafts);
	request->reserved = 0;
	list_for_each_entry(draft, drafts, list)
		*frame++ = draft->frame;
	return sizeof(*request) + request->frames * sizeof(*frame);
}

static u32 fill_evidence(struct vmsrs_device *dev, void *payload, struct vmsrs_report *report)
{
	struct vmsrs_evidence *evidence = report->evidence;
	u32 length = sizeof(*evidence) + evidence->stack_bytes + evidence->modules_bytes +
		     evidence->text_bytes;

	memcpy(payload, evidence, length);
	evidence_free(dev, evidence);
	report->evidence = NULL;
	return length;
}

/* Sends one message of a report: the incident first, then what had no room in it. */
static int send_report_part(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	const void *reply;
	LIST_HEAD(drafts);
	void *payload;
	bool grants = true;
	u32 kind, length;
	int error;

	payload = vmsrs_control_begin(dev);
	if (IS_ERR(payload))
		return PTR_ERR(payload);
	if (report->incident) {
		kind = VMSRS_MESSAGE_INCIDENT;
		length = fill_incident(payload, report, &drafts);
		report->incident = false;
	} else if (report->evidence) {
		kind = VMSRS_MESSAGE_EVIDENCE;
		length = fill_evidence(dev, payload, report);
		grants = false;
	} else {
		kind = VMSRS_MESSAGE_DISCARD;
		length = fill_discard(payload, report, &drafts);
	}
	error = vmsrs_control_exchange(dev, kind, length, &reply, &length);
	if (!error) {
		revoke(dev, &drafts);
		if (grants)
			error = vmsrs_pool_take_reply(dev, reply, length);
		else if (length)
			error = -EPROTO;
	}
	vmsrs_control_end(dev);
	vmsrs_drafts_free(&drafts);
	return error;
}

static int send_reports(struct vmsrs_device *dev)
{
	struct vmsrs_report *report;
	int error = 0;
	u32 i;

	for (i = 0; !error && i < VMSRS_REPORTS_PER_TURN; i++) {
		report = take_report(&dev->batch);
		if (!report)
			return 0;
		while (!error && (report->incident || report->evidence ||
				  !list_empty(&report->drafts)))
			error = send_report_part(dev, report);
		report_free(dev, report);
		WRITE_ONCE(dev->pool.dry, false);
		wake_up_all(&dev->batch.wait);
	}
	return error;
}

static void host_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(to_delayed_work(work), struct vmsrs_device,
						host_work);
	int error;

	if (vmsrs_device_broken(dev))
		return;
	error = send_records(dev);
	if (!error)
		error = send_reports(dev);
	if (!error)
		error = vmsrs_pool_refill(dev);
	if (error) {
		vmsrs_device_fail(dev, "a message was refused or badly answered (%d)", error);
		return;
	}
	if (!list_empty_careful(&dev->batch.reports))
		vmsrs_device_kick_host(dev);
	else if (atomic_read(&dev->pool.waiters) &&
		 READ_ONCE(dev->pool.free_count) <= vmsrs_pool_reserve(dev))
		queue_delayed_work(dev->wq, &dev->host_work, VMSRS_GRANT_RETRY_DELAY);
}

/**
 * vmsrs_host_init() - initialise the batch and the host work
 * @dev: the device
 */
void vmsrs_host_init(struct vmsrs_device *dev)
{
	struct vmsrs_batch *batch = &dev->batch;

	spin_lock_init(&batch->lock);
	INIT_LIST_HEAD(&batch->records);
	INIT_LIST_HEAD(&batch->reports);
	init_waitqueue_head(&batch->wait);
	INIT_DELAYED_WORK(&dev->host_work, host_work);
}

/**
 * vmsrs_host_free() - free what was not sent
 * @dev: the device; its host work does not run any more
 */
void vmsrs_host_free(struct vmsrs_device *dev)
{
	struct vmsrs_report *report;

	vmsrs_drafts_free(&dev->batch.records);
	while ((report = take_report(&dev->batch)))
		report_free(dev, report);
}
