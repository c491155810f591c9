// SPDX-License-Identifier: GPL-2.0
/*
 * Failed, discarded and abandoned requests. The order matters: first no write of the request is
 * accepted any more, then its drafts leave the page tables, and only then its locks are
 * released.
 */
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

static void report_finish(struct vmsrs_device *dev, struct vmsrs_report *report)
{
	atomic_sub(report->drafts.count, &dev->drafts);
	atomic64_add(report->drafts.count, &dev->discarded);
	if (report->incident) {
		atomic64_inc(&dev->incidents);
		vmsrs_report_queue(dev, report);
	} else {
		vmsrs_report_free(dev, report);
	}
}

/*
 * Finds or adds the request and marks it failed. A new one comes from *spare. requests_lock is
 * held.
 */
static struct vmsrs_request *mark_failed(struct vmsrs_app *app, u64 tag,
					 struct vmsrs_request **spare)
{
	struct vmsrs_request *request;

	lockdep_assert_held(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (!request) {
		request = *spare;
		*spare = NULL;
		vmsrs_request_add(request, app, tag);
	}
	if (!request->failed) {
		WRITE_ONCE(request->failed, true);
		vmsrs_suspended_clear_deadline(request);
		if (!request->suspended_by)
			list_add_tail(&request->failed_entry, &app->dev->failed_requests);
	}
	return request;
}

/*
 * A protection key forbade the access to a page of an app. A request has the key of its own
 * drafts open, so it hit another request's draft, which may be committed or gone by now. In a
 * domain that it holds, the host stopped a write into the vault, which looks the same.
 */
static u32 refine_key(struct vmsrs_app *app, const struct vmsrs_ioctl_fail *fail)
{
	u32 domain = vmsrs_address_domain(app, fail->address);

	if (domain != VMSRS_NONE && vmsrs_lock_tag(app, domain) == fail->tag)
		return VMSRS_KIND_SEALED_WRITE;
	return VMSRS_KIND_FOREIGN_DRAFT;
}

static bool in_apps(u64 address)
{
	return address >= VMSRS_APP_BASE &&
	       address - VMSRS_APP_BASE < (u64)VMSRS_MAX_APPS << VMSRS_APP_OFFSET_SHIFT;
}

/* Finds out what a signal alone does not tell. */
static u32 refine(struct vmsrs_app *app, const struct vmsrs_thread *thread,
		  const struct vmsrs_ioctl_fail *fail, bool overdue)
{
	if (fail->kind != VMSRS_KIND_MEMORY)
		return fail->kind;
	if (overdue)
		return VMSRS_KIND_DEADLINE;
	if (fail->signal == SIGSEGV && fail->code == SEGV_PKUERR && in_apps(fail->address))
		return refine_key(app, fail);
	/* There are no notes on a request that has overwritten its own tag. */
	if (thread && thread->noted_tag == fail->tag && thread->refused_address &&
	    thread->refused_address == (fail->address & PAGE_MASK))
		return thread->refused_kind;
	return fail->kind;
}

static void describe(struct vmsrs_app *app, struct vmsrs_thread *thread, u32 domain,
		     const struct vmsrs_ioctl_fail *fail, struct vmsrs_report *report)
{
	struct task_struct *task = thread ? thread->task : current;
	struct vmsrs_incident_report *body = &report->body;
	char name[TASK_COMM_LEN];

	body->incident = fail->incident;
	body->tag = fail->tag;
	body->app = app->number;
	body->domain = domain;
	body->kind = fail->kind;
	body->signal = fail->signal;
	body->code = fail->code;
	body->pid = task_tgid_nr(task);
	body->tid = task_pid_nr(task);
	body->address = fail->address;
	body->flags = fail->flags & (VMSRS_REPORT_ADDRESS | VMSRS_REPORT_LEFT |
				     VMSRS_REPORT_LEFT_ESTIMATE);
	body->address_domain = body->flags & VMSRS_REPORT_ADDRESS ?
			       vmsrs_address_domain(app, fail->address) : VMSRS_NONE;
	body->drafts_total = report->drafts.count;
	body->recovery_ns = fail->recovery_ns;
	body->left_descriptors = fail->left_descriptors;
	body->left_bytes = fail->left_bytes;
	BUILD_BUG_ON(sizeof(body->thread_name) != sizeof(name));
	get_task_comm(name, task);
	memcpy(body->thread_name, name, sizeof(name));
	memcpy(body->registers, fail->registers, sizeof(body->registers));
	memcpy(body->backtrace, fail->backtrace, sizeof(body->backtrace));
	if (thread && task == current)
		vmsrs_evidence_registers(body);
}

/*
 * First domain in the thread's list, or VMSRS_NONE. The program may have written any number
 * there, and the host refuses a report about a domain that does not exist.
 */
static u32 first_held(const struct vmsrs_thread *thread)
{
	u32 domain;

	if (!thread || !READ_ONCE(thread->control->held_count))
		return VMSRS_NONE;
	domain = READ_ONCE(thread->control->held[0]);
	return xa_load(&thread->app->domains, domain) ? domain : VMSRS_NONE;
}

/*
 * Releases the locks of a request that has no drafts any more: those that the thread and its other
 * members hold, and those that it held when it was suspended. As fail_locked().
 */
static void release_locks(struct vmsrs_request *request, struct vmsrs_thread *thread)
{
	struct vmsrs_app *app = request->app;
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_thread *member, *next;
	u64 tag = request->tag;
	LIST_HEAD(members);
	u32 i;

	if (thread)
		vmsrs_lock_release_held(thread, tag);
	for (i = 0; i < request->held_count; i++)
		if (request->held[i] < VMSRS_MAX_DOMAINS)
			vmsrs_lock_release(app, request->held[i], tag);
	/*
	 * Not under threads_lock: each may have many locks, and each lock many sleepers. A program
	 * can write another tag to a control block, so two failures may find the same thread.
	 */
	mutex_lock(&dev->release_lock);
	spin_lock(&dev->threads_lock);
	list_for_each_entry(member, &dev->thread_list, list) {
		if (member == thread || member->app != app || vmsrs_thread_tag(member) != tag)
			continue;
		kref_get(&member->ref);
		list_add_tail(&member->releasing, &members);
	}
	spin_unlock(&dev->threads_lock);
	list_for_each_entry_safe(member, next, &members, releasing) {
		list_del_init(&member->releasing);
		vmsrs_lock_release_held(member, tag);
		vmsrs_thread_put(member);
		cond_resched();
	}
	mutex_unlock(&dev->release_lock);
}

/*
 * Fails request fail->tag, whose lock is held. A new request comes from *spare. The caller finishes
 * the report without the lock. Returns false if the request had failed before.
 */
static bool fail_locked(struct vmsrs_app *app, struct vmsrs_thread *thread,
			struct vmsrs_ioctl_fail *fail, struct vmsrs_report *report,
			struct vmsrs_request **spare)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_request *request;
	struct vmsrs_domain *domain;
	struct hlist_node *next;
	u32 first, written = VMSRS_NONE;
	HLIST_HEAD(domains);
	u64 now;

	if (!fail->detected_ns)
		fail->detected_ns = ktime_get_ns();
	lockdep_assert_held(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = mark_failed(app, fail->tag, spare);
	fail->kind = refine(app, thread, fail, request->overdue);
	hlist_move_list(&request->domains, &domains);
	WRITE_ONCE(request->file, NULL);
	hlist_del_init(&request->file_entry);
	spin_unlock(&dev->requests_lock);

	first = first_held(thread);
	atomic_add(vmsrs_resident_discard(app, fail->tag, thread && thread->task == current, report),
		   &request->drafts);
	hlist_for_each_entry_safe(domain, next, &domains, owned) {
		/* The last one here is the first that it has written to. */
		written = domain->number;
		vmsrs_drafts_discard(domain, report);
		vmsrs_lock_release(app, domain->number, fail->tag);
	}
	if (first == VMSRS_NONE)
		first = written;
	atomic_sub(report->drafts.count, &request->drafts);
	release_locks(request, thread);

	request->dropped += report->drafts.count;
	fail->drafts = request->dropped;
	now = ktime_get_ns();
	/* The program's own number is not in the future. */
	fail->recovery_ns = now - min(fail->detected_ns, now);
	if (request->discarded) {
		/* Another member was first; its incident stands for the request. */
		fail->incident = request->incident;
		fail->kind = request->kind;
		report->incident = false;
	} else {
		fail->incident = atomic64_fetch_add(2, &dev->next_incident);
		WRITE_ONCE(request->discarded, true);
		request->incident = fail->incident;
		request->kind = fail->kind;
		describe(app, thread, first, fail, report);
		vmsrs_thread_signal_members(app, fail->tag, now);
	}
	return report->incident;
}

/**
 * vmsrs_fail() - fail a request
 * @app: the app
 * @thread: the thread at fault, or NULL if it is not known
 * @fail: argument of the ioctl; what it returns is filled in
 *
 * Discards its drafts, releases its locks, interrupts its other threads and queues the report. If
 * the request has failed before, its incident is returned again.
 *
 * Return: true if this is a new incident.
 */
bool vmsrs_fail(struct vmsrs_app *app, struct vmsrs_thread *thread, struct vmsrs_ioctl_fail *fail)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_report *report = vmsrs_report_new(dev, true);
	bool own = thread && thread->task == current, incident;
	struct vmsrs_request *spare = NULL;
	struct mutex *lock;

	if (own)
		swap(spare, thread->spare);
	if (!spare)
		spare = vmsrs_request_new(dev);
	lock = vmsrs_request_lock(dev, fail->tag);
	incident = fail_locked(app, thread, fail, report, &spare);
	vmsrs_request_unlock(dev, lock);
	if (own)
		vmsrs_thread_keep_spare(thread, spare);
	else
		kfree(spare);
	report_finish(dev, report);
	return incident;
}

/**
 * vmsrs_fail_suspended() - fail a request, unless it is not suspended any more or has failed
 * @app: the app
 * @fail: tag and reason
 */
void vmsrs_fail_suspended(struct vmsrs_app *app, struct vmsrs_ioctl_fail *fail)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_report *report = vmsrs_report_new(dev, true);
	struct vmsrs_request *request;
	struct mutex *lock;
	bool wanted;

	/* A thread that resumes it takes its lock, too. */
	lock = vmsrs_request_lock(dev, fail->tag);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(app, fail->tag);
	wanted = request && request->suspended_by && !request->failed;
	spin_unlock(&dev->requests_lock);
	if (wanted)
		fail_locked(app, NULL, fail, report, NULL);
	vmsrs_request_unlock(dev, lock);
	if (wanted)
		report_finish(dev, report);
	else
		vmsrs_report_free(dev, report);
}

/**
 * vmsrs_fail_orphan() - fail a request that holds a domain but that no thread works for
 * @app: the app
 * @domain: the domain, whose lock is released
 * @tag: tag of the request
 */
void vmsrs_fail_orphan(struct vmsrs_app *app, u32 domain, u64 tag)
{
	struct vmsrs_ioctl_fail fail = { .kind = VMSRS_KIND_THREAD_DEATH, .tag = tag };
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_request *spare = vmsrs_request_new(dev);
	struct vmsrs_report *report = vmsrs_report_new(dev, true);
	struct mutex *lock;
	bool wanted;

	lock = vmsrs_request_lock(dev, tag);
	/*
	 * In this order: the last thread that carried the tag released the domain before that. A
	 * tag that was never handed out is garbage in the lock word.
	 */
	wanted = vmsrs_request_orphaned(app, tag) && vmsrs_lock_tag(app, domain) == tag;
	if (wanted && vmsrs_tag_valid(dev, tag))
		fail_locked(app, NULL, &fail, report, &spare);
	if (wanted)
		vmsrs_lock_release(app, domain, tag);
	vmsrs_request_unlock(dev, lock);
	kfree(spare);
	if (fail.incident)
		report_finish(dev, report);
	else
		vmsrs_report_free(dev, report);
}

/**
 * vmsrs_fail_file() - fail all requests begun or suspended through a file
 * @file: the file, whose last reference went: no request is begun or suspended through it any
 * 	more
 *
 * Suspended requests are forgotten.
 */
void vmsrs_fail_file(struct vmsrs_file *file)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request;

	for (;;) {
		struct vmsrs_ioctl_fail fail = { .kind = VMSRS_KIND_PROCESS_DEATH };

		spin_lock(&dev->requests_lock);
		request = hlist_entry_safe(file->requests.first, struct vmsrs_request, file_entry);
		if (!request)
			request = list_first_entry_or_null(&file->suspended, struct vmsrs_request,
							   suspended_entry);
		if (request)
			fail.tag = request->tag;
		spin_unlock(&dev->requests_lock);
		if (!request)
			break;
		/* One that has failed before stays as it is. Both calls take it off a list. */
		vmsrs_fail(file->app, NULL, &fail);
		vmsrs_suspended_forget(file, fail.tag);
		vmsrs_reports_wait(dev);
	}
	/* Without threads the watch has stopped, and it has to forget the failed requests. */
	if (!list_empty_careful(&dev->failed_requests))
		vmsrs_device_start_watch(dev);
}

/**
 * vmsrs_discard() - drop a request's drafts without an incident
 * @app: the app
 * @tag: tag of the request
 * @own: it is the calling thread's
 *
 * The request keeps its locks. That holds for an overdue request, too: its thread may be about
 * to give it up and release the locks.
 */
void vmsrs_discard(struct vmsrs_app *app, u64 tag, bool own)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_report *report = vmsrs_report_new(dev, false);
	struct vmsrs_request *request, *idle = NULL;
	struct vmsrs_domain *domain;
	struct hlist_node *next;
	HLIST_HEAD(domains);
	struct mutex *lock;

	lock = vmsrs_request_lock(dev, tag);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (request)
		hlist_move_list(&request->domains, &domains);
	spin_unlock(&dev->requests_lock);
	if (request) {
		hlist_for_each_entry_safe(domain, next, &domains, owned)
			vmsrs_drafts_discard(domain, report);
		atomic_sub(report->drafts.count, &request->drafts);
		idle = vmsrs_request_remove_idle(request);
	}
	vmsrs_resident_discard(app, tag, own, report);
	vmsrs_request_unlock(dev, lock);
	kfree(idle);
	report_finish(dev, report);
}

/**
 * vmsrs_abandon() - give up a suspended request: drop its drafts and release its locks
 * @file: file through which it was suspended
 * @tag: tag of the request
 *
 * Its locks are free before it is forgotten: no thread carries its tag, so a thread that waits
 * for one of them would take it for an orphan.
 *
 * Return: 0; -ENOENT: it is not suspended through this file.
 */
long vmsrs_abandon(struct vmsrs_file *file, u64 tag)
{
	struct vmsrs_request *request, *idle = NULL;
	struct vmsrs_device *dev = file->dev;
	struct mutex *lock;
	u32 i;

	/* Its drafts first: only this file's process could resume it in the meantime. */
	spin_lock(&dev->requests_lock);
	request = vmsrs_suspended_find(file, tag);
	spin_unlock(&dev->requests_lock);
	if (!request)
		return -ENOENT;
	vmsrs_discard(file->app, tag, false);

	/* Under its lock it stays suspended and its list of domains does not change. */
	lock = vmsrs_request_lock(dev, tag);
	spin_lock(&dev->requests_lock);
	request = vmsrs_suspended_find(file, tag);
	spin_unlock(&dev->requests_lock);
	if (request) {
		for (i = 0; i < request->held_count; i++)
			if (request->held[i] < VMSRS_MAX_DOMAINS)
				vmsrs_lock_release(file->app, request->held[i], tag);
		spin_lock(&dev->requests_lock);
		vmsrs_suspended_remove(request);
		spin_unlock(&dev->requests_lock);
		idle = vmsrs_request_remove_idle(request);
	}
	vmsrs_request_unlock(dev, lock);
	kfree(idle);
	return request ? 0 : -ENOENT;
}

/**
 * vmsrs_fail_overdue() - mark a request as failed by its deadline and interrupt its threads
 * @app: the app
 * @tag: tag of the request
 * @now: the time, in nanoseconds
 *
 * One of its threads is expected to call IOCTL_FAIL; until then the request keeps its locks and
 * drafts, but can neither write nor commit. A commit that has begun is done as a whole. A request
 * that was suspended in the meantime has no threads that could call it, and is failed here.
 */
void vmsrs_fail_overdue(struct vmsrs_app *app, u64 tag, u64 now)
{
	struct vmsrs_request *request, *spare = vmsrs_request_new(app->dev);
	struct vmsrs_ioctl_fail fail = {
		.kind = VMSRS_KIND_DEADLINE,
		.tag = tag,
		.detected_ns = now,
	};
	struct vmsrs_device *dev = app->dev;
	bool suspended;

	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	suspended = request && request->suspended_by;
	if (!suspended && (!request || !request->failed)) {
		request = mark_failed(app, tag, &spare);
		request->overdue = true;
	}
	spin_unlock(&dev->requests_lock);
	kfree(spare);
	if (suspended)
		vmsrs_fail_suspended(app, &fail);
	else
		vmsrs_thread_signal_members(app, tag, now);
}
