// SPDX-License-Identifier: GPL-2.0
/*
 * Reports about failed requests, and evidence, on their way to the host. A work sends them, which
 * runs once at a time. A refusal breaks the device, as that of a batch does.
 */
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

/* Drafts that one report has room for, if it is alone in its message. */
#define VMSRS_DROPPED_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_control_header) - \
				  sizeof(struct vmsrs_incident_report)) / \
				 sizeof(struct vmsrs_dropped_draft))

static struct vmsrs_report *report_alloc(gfp_t gfp)
{
	return kzalloc(sizeof(struct vmsrs_report), gfp);
}

/* Takes a report that is kept ready, or returns NULL. reports->lock is held. */
static struct vmsrs_report *take_spare(struct vmsrs_reports *reports)
{
	struct vmsrs_report *report;

	lockdep_assert_held(&reports->lock);
	report = list_first_entry_or_null(&reports->spare, struct vmsrs_report, list);
	if (report)
		list_del(&report->list);
	return report;
}

/**
 * vmsrs_report_new() - take or allocate a report
 * @dev: the device
 * @incident: it is to be sent; otherwise it only collects drafts
 *
 * Return: the report; never NULL, since the callers cannot fail, and a report is small.
 */
struct vmsrs_report *vmsrs_report_new(struct vmsrs_device *dev, bool incident)
{
	struct vmsrs_report *report;

	spin_lock(&dev->reports.lock);
	report = take_spare(&dev->reports);
	spin_unlock(&dev->reports.lock);
	if (!report)
		report = report_alloc(GFP_KERNEL | __GFP_NOFAIL);
	report->incident = incident;
	return report;
}

/**
 * vmsrs_report_new_evidence() - take or allocate a report for evidence, for vmsrs_report_queue()
 * @dev: the device
 * @length: bytes of the evidence
 *
 * Return: the report, whose evidence is not initialised; NULL if too much evidence is queued, or
 * without memory.
 */
struct vmsrs_report *vmsrs_report_new_evidence(struct vmsrs_device *dev, u32 length)
{
	struct vmsrs_report *report = NULL;
	struct vmsrs_reports *reports = &dev->reports;
	bool room;

	spin_lock(&reports->lock);
	room = reports->evidence < VMSRS_EVIDENCE_MAX;
	if (room) {
		reports->evidence++;
		report = take_spare(reports);
	}
	spin_unlock(&reports->lock);
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
	vmsrs_report_free(dev, report);

release:
	spin_lock(&reports->lock);
	reports->evidence--;
	spin_unlock(&reports->lock);
	return NULL;
}

/**
 * vmsrs_report_free() - free a report, or keep it for the next failure
 * @dev: the device
 * @report: the report, not queued; its drafts are put
 */
void vmsrs_report_free(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	struct vmsrs_evidence *evidence = report->evidence;
	struct vmsrs_reports *reports = &dev->reports;
	bool keep = report->memory;

	vmsrs_pool_put_dropped(dev, &report->drafts);
	if (evidence != report->memory)
		kvfree(evidence);
	report->evidence = NULL;
	spin_lock(&reports->lock);
	if (evidence)
		reports->evidence--;
	if (keep)
		list_add(&report->list, &reports->spare);
	spin_unlock(&reports->lock);
	if (!keep)
		kfree(report);
}

/**
 * vmsrs_report_queue() - queue a report, or free it if the host is gone
 * @dev: the device
 * @report: the report; taken over
 */
void vmsrs_report_queue(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	if (vmsrs_device_broken(dev)) {
		vmsrs_report_free(dev, report);
		return;
	}
	spin_lock(&dev->reports.lock);
	list_add_tail(&report->list, &dev->reports.queue);
	dev->reports.queued++;
	spin_unlock(&dev->reports.lock);
	/* Its frames are needed if few are free. */
	if (vmsrs_pool_low(dev))
		vmsrs_device_kick_reports(dev);
	else
		vmsrs_device_kick_reports_soon(dev);
}

static bool reports_few(struct vmsrs_device *dev)
{
	return READ_ONCE(dev->reports.queued) < VMSRS_REPORTS_MAX || vmsrs_device_broken(dev);
}

/**
 * vmsrs_reports_room() - number of reports that a caller that must not wait may add now
 * @dev: the device
 *
 * Return: at least 1, so that the caller makes progress while the host does not. That is over
 * when the host has missed VMSRS_CONTROL_TIMEOUT.
 */
u32 vmsrs_reports_room(struct vmsrs_device *dev)
{
	u32 queued = READ_ONCE(dev->reports.queued);

	if (vmsrs_device_broken(dev))
		return U32_MAX;
	return queued < VMSRS_REPORTS_MAX ? VMSRS_REPORTS_MAX - queued : 1;
}

/**
 * vmsrs_reports_wait() - wait until the host has caught up with the reports
 * @dev: the device
 *
 * For callers that add reports at will. The host must answer each message within
 * VMSRS_CONTROL_TIMEOUT, so each thread has at most one report more than VMSRS_REPORTS_MAX in
 * the list.
 */
void vmsrs_reports_wait(struct vmsrs_device *dev)
{
	if (reports_few(dev))
		return;
	vmsrs_device_kick_reports(dev);
	wait_event_killable_timeout(dev->reports.wait, reports_few(dev), VMSRS_CONTROL_TIMEOUT);
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
static struct vmsrs_report *take_report(struct vmsrs_reports *reports, u32 room)
{
	struct vmsrs_report *report;

	spin_lock(&reports->lock);
	report = list_first_entry_or_null(&reports->queue, struct vmsrs_report, list);
	if (report && report_bytes(report) > room)
		report = NULL;
	if (report) {
		list_del(&report->list);
		reports->queued--;
	}
	spin_unlock(&reports->lock);
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
		report = take_report(&dev->reports, VMSRS_PAYLOAD_MAX - length);
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
			vmsrs_report_free(dev, report);
		}
		wake_up_all(&dev->reports.wait);
		if (error)
			vmsrs_device_fail(dev, "reports were refused or badly answered (%d)", error);
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
	vmsrs_report_free(dev, report);
	return 0;
}

/**
 * vmsrs_reports_init() - initialise the queue of reports and its work
 * @dev: the device
 *
 * Return: 0 or -ENOMEM; vmsrs_reports_free() is called in any case.
 */
int vmsrs_reports_init(struct vmsrs_device *dev)
{
	struct vmsrs_reports *reports = &dev->reports;
	int error = 0;
	u32 i;

	spin_lock_init(&reports->lock);
	INIT_LIST_HEAD(&reports->queue);
	INIT_LIST_HEAD(&reports->spare);
	init_waitqueue_head(&reports->wait);
	INIT_DELAYED_WORK(&dev->report_work, report_work);
	for (i = 0; i < VMSRS_REPORTS_SPARE && !error; i++)
		error = add_spare(dev);
	return error;
}

/**
 * vmsrs_reports_free() - free all reports, those that were not sent as well
 * @dev: the device; its works do not run any more
 */
void vmsrs_reports_free(struct vmsrs_device *dev)
{
	struct vmsrs_report *report, *next;

	while ((report = take_report(&dev->reports, U32_MAX)))
		vmsrs_report_free(dev, report);
	list_for_each_entry_safe(report, next, &dev->reports.spare, list) {
		kfree(report->memory);
		kfree(report);
	}
}
