// SPDX-License-Identifier: GPL-2.0
/*
 * Deletions on their way: of domains that are gone for all processes, to the host, and to all processes that may still
 * know their numbers.
 *
 * The host learns of a deletion with the batch that collects when the domain is deleted (domain.c), so that it is part of
 * a cut like commits are. The domain's pages are the host's from then on. Its number stays its own until every open file of
 * the app has noted the deletion: what a process knows of the number would lead to another domain otherwise.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_DELETE_RECORDS_MAX	((VMSRS_PAYLOAD_MAX - sizeof(struct vmsrs_delete_request)) / \
					 sizeof(struct vmsrs_delete_record))

/* Frees the extents of a row, linked like those of a domain. */
static void extents_free(struct vmsrs_extent_pages *last)
{
	struct vmsrs_extent_pages *extent = last, *next;

	if (!last)
		return;
	do {
		next = extent->next;
		kvfree(extent);
		extent = next;
	} while (extent != last);
}

/**
 * vmsrs_deletion_free() - free a deletion and the extents that it has
 * @deletion: the deletion, in no list
 */
void vmsrs_deletion_free(struct vmsrs_deletion *deletion)
{
	extents_free(deletion->extents);
	kfree(deletion);
}

/**
 * vmsrs_deletion_add() - number a deletion, and keep it until its domain's number is used again
 * @deletion: the deletion
 *
 * app->lock is held, and has been since an entry for the domain was reserved in app->deleted. The extents are not found any
 * more.
 */
void vmsrs_deletion_add(struct vmsrs_deletion *deletion)
{
	struct vmsrs_app *app = deletion->domain->app;

	lockdep_assert_held(&app->lock);
	WARN_ON(xa_err(xa_store(&app->deleted, deletion->domain->number, deletion, GFP_KERNEL)));
	deletion->number = app->deletions + 1;
	list_add_tail(&deletion->list, &app->deletion_list);
	/* Pairs with extent_of(): who sees the number finds the extents no more. */
	smp_store_release(&app->deletions, deletion->number);
}

/**
 * vmsrs_deletion_reusable() - find a number that another domain may have
 * @app: the app; its lock is held
 *
 * Return: the oldest deletion, if the host has it and all processes have noted it; or NULL.
 */
struct vmsrs_deletion *vmsrs_deletion_reusable(struct vmsrs_app *app)
{
	struct vmsrs_deletion *deletion;
	struct vmsrs_file *file;

	lockdep_assert_held(&app->lock);
	deletion = list_first_entry_or_null(&app->deletion_list, struct vmsrs_deletion, list);
	if (!deletion || !deletion->gone)
		return NULL;
	list_for_each_entry(file, &app->open_files, app_entry)
		if (file->noted < deletion->number)
			return NULL;
	return deletion;
}

/**
 * vmsrs_deletion_forget() - the domain of a deletion is there again, as another one
 * @deletion: the deletion, which vmsrs_deletion_reusable() has returned; freed
 *
 * app->lock is held.
 */
void vmsrs_deletion_forget(struct vmsrs_deletion *deletion)
{
	struct vmsrs_app *app = deletion->domain->app;

	lockdep_assert_held(&app->lock);
	app->forgotten = deletion->number;
	xa_erase(&app->deleted, deletion->domain->number);
	list_del(&deletion->list);
	vmsrs_deletion_free(deletion);
}

/**
 * vmsrs_deletions_note() - a process has noted deletions
 * @file: its file
 * @arg: argument of the ioctl
 * @domains: room for arg->capacity numbers; filled with the first arg->count later ones
 *
 * Return: 0 or -EINVAL.
 */
long vmsrs_deletions_note(struct vmsrs_file *file, struct vmsrs_ioctl_deleted *arg, u32 *domains)
{
	struct vmsrs_app *app = file->app;
	struct vmsrs_deletion *deletion;
	long ret = 0;

	mutex_lock(&app->lock);
	if (arg->after > app->deletions) {
		ret = -EINVAL;
		goto unlock;
	}
	file->noted = max(file->noted, arg->after);
	arg->count = 0;
	arg->last = app->deletions;
	/* Those that it knows are mostly all but a few. */
	list_for_each_entry_reverse(deletion, &app->deletion_list, list)
		if (deletion->number <= arg->after)
			break;
	list_for_each_entry_continue(deletion, &app->deletion_list, list) {
		domains[arg->count++] = deletion->domain->number;
		if (arg->count == arg->capacity) {
			arg->last = deletion->number;
			break;
		}
	}
unlock:
	mutex_unlock(&app->lock);
	return ret;
}

static void fill_records(struct vmsrs_deletion **deletion, u32 count, struct vmsrs_delete_record *record)
{
	const struct vmsrs_domain *domain;

	for (; count--; record++) {
		domain = (*deletion)->domain;
		record->app = domain->app->number;
		record->domain = domain->number;
		record->extents = VMSRS_NONE;
		record->reserved = 0;
		*deletion = list_next_entry(*deletion, batch_entry);
	}
}

/**
 * vmsrs_deletions_send() - send the deletions of a batch, before its pages
 * @dev: the device
 * @deletions: struct vmsrs_deletion, by batch_entry; at least one
 * @count: how many
 *
 * Return: 0 or a negative error.
 */
int vmsrs_deletions_send(struct vmsrs_device *dev, struct list_head *deletions, u32 count)
{
	struct vmsrs_deletion *deletion = list_first_entry(deletions, struct vmsrs_deletion, batch_entry);
	struct vmsrs_delete_request *request;
	const void *reply;
	u32 records, length;
	int error;

	for (; count; count -= records) {
		request = vmsrs_control_begin(dev);
		if (IS_ERR(request))
			return PTR_ERR(request);
		records = min_t(u32, count, VMSRS_DELETE_RECORDS_MAX);
		request->records = records;
		request->reserved = 0;
		fill_records(&deletion, records, (struct vmsrs_delete_record *)(request + 1));
		error = vmsrs_control_exchange(dev, VMSRS_MESSAGE_DELETE,
					       sizeof(*request) +
					       records * sizeof(struct vmsrs_delete_record),
					       &reply, &length);
		if (!error && length)
			error = -EPROTO;
		vmsrs_control_end(dev);
		if (error)
			return error;
	}
	return 0;
}

/**
 * vmsrs_deletions_done() - the host has done the deletions of a batch
 * @dev: the device
 * @deletions: struct vmsrs_deletion, by batch_entry; empty afterwards
 *
 * Context: may sleep; neither waits for a batch nor is waited for by one that does with an app's lock.
 */
void vmsrs_deletions_done(struct vmsrs_device *dev, struct list_head *deletions)
{
	struct vmsrs_deletion *deletion, *next;
	struct vmsrs_app *app;

	list_for_each_entry_safe(deletion, next, deletions, batch_entry) {
		list_del_init(&deletion->batch_entry);
		app = deletion->domain->app;
		spin_lock(&dev->extents_lock);
		if (deletion->extents && dev->dead_extents)
			swap(deletion->extents->next, dev->dead_extents->next);
		else if (deletion->extents)
			dev->dead_extents = deletion->extents;
		deletion->extents = NULL;
		spin_unlock(&dev->extents_lock);
		mutex_lock(&app->lock);
		/* From here on the number may be had again. */
		deletion->gone = true;
		mutex_unlock(&app->lock);
	}
	queue_work(dev->wq, &dev->extents_work);
}

/* Frees extents when nobody can have found them before they were taken away. */
static void extents_work(struct work_struct *work)
{
	struct vmsrs_device *dev = container_of(work, struct vmsrs_device, extents_work);
	struct vmsrs_extent_pages *last;

	spin_lock(&dev->extents_lock);
	last = dev->dead_extents;
	dev->dead_extents = NULL;
	spin_unlock(&dev->extents_lock);
	/* Fault handlers, and vmsrs_address_domain(). */
	synchronize_srcu(&dev->srcu);
	synchronize_rcu();
	extents_free(last);
}

/**
 * vmsrs_deletions_init() - initialise what frees the extents of deleted domains
 * @dev: the device
 */
void vmsrs_deletions_init(struct vmsrs_device *dev)
{
	spin_lock_init(&dev->extents_lock);
	INIT_WORK(&dev->extents_work, extents_work);
}
