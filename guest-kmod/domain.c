// SPDX-License-Identifier: GPL-2.0
/*
 * Domains as a whole: deleted, and counted.
 *
 * A deletion takes a domain away from all processes at once, under the lock of the domain and of its app: its pages are
 * not found any more, its lock word says that it is deleted, and what it has in the pool is dropped. The deletion joins
 * the batch that collects in place of the domain's pages there. So it counts together with the commits before it, and
 * what the host has is the whole domain or none of it.
 */
#include <linux/slab.h>

#include "vmsrs.h"

/*
 * Drops what a page has, and adds its frame to a row if it has one that is not on its way to the host; the answer frees that
 * one. The page's domain is locked; no draft is left.
 */
static void drop_version(struct vmsrs_device *dev, struct vmsrs_page *entry, struct vmsrs_frames *frames)
{
	struct vmsrs_frame *frame;

	if (vmsrs_in_pool(entry->frame)) {
		frame = vmsrs_pool_frame(dev, entry->frame);
		if (vmsrs_batch_remove(dev, frame))
			vmsrs_frames_add(frames, frame);
	}
	entry->frame = VMSRS_NONE;
}

/* Takes an extent away from all who look for its pages. The domain's and the app's lock are held. */
static void take_away(struct vmsrs_app *app, struct vmsrs_extent_pages *extent, struct vmsrs_frames *frames)
{
	struct vmsrs_run zap = { .app = app };
	u32 page, end = extent->page + extent->pages;

	/* Who has found it waits for the domain's lock, and looks at this then. */
	WRITE_ONCE(extent->domain, NULL);
	vmsrs_extent_unreserve(app, extent);
	for (page = extent->page; page < end; page++) {
		vmsrs_zap_add(&zap, &extent->entries[page - extent->page], page);
		vmsrs_page_resched(page);
	}
	vmsrs_zap_finish(&zap);
	/* No entry shows a frame any more. */
	for (page = 0; page < extent->pages; page++) {
		drop_version(app->dev, &extent->entries[page], frames);
		vmsrs_page_resched(page);
	}
}

/* The domain is gone. Its lock and the app's are held, and there is an entry for it in app->deleted. */
static void domain_gone(struct vmsrs_domain *domain, struct vmsrs_deletion *deletion)
{
	struct vmsrs_app *app = domain->app;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_frames frames = { };

	vmsrs_for_each_extent(extent, domain)
		take_away(app, extent, &frames);
	deletion->domain = domain;
	deletion->extents = domain->last;
	domain->last = NULL;
	domain->extent_count = 0;
	xa_erase(&app->domains, domain->number);
	vmsrs_deletion_add(deletion);
	vmsrs_batch_append_deletion(app->dev, deletion);
	vmsrs_pool_put_all(app->dev, &frames);
}

/* Deletes a domain. The locks of its app and of the request are held. */
static long delete_locked(struct vmsrs_domain *domain, u64 tag, struct vmsrs_deletion *deletion)
{
	struct vmsrs_app *app = domain->app;
	long ret = 0;

	if (!vmsrs_device_usable(app->dev))
		return -ENODEV;
	if (vmsrs_request_failed(app, tag))
		return -ESTALE;
	mutex_lock(&domain->lock);
	if (vmsrs_lock_tag(app, domain->number) != tag)
		ret = -EPERM;
	else if (domain->owner)
		ret = -EBUSY;
	else if (!vmsrs_resident_yield(domain, NULL, tag))
		ret = -EOWNERDEAD;
	else if (!vmsrs_lock_delete(app, domain->number, tag))
		ret = -EPERM;
	else
		domain_gone(domain, deletion);
	mutex_unlock(&domain->lock);
	return ret;
}

/**
 * vmsrs_domain_delete() - delete a domain that a request has the lock of
 * @file: the calling thread's file
 * @arg: argument of the ioctl; the tag is the thread's
 *
 * Return: 0; -EINVAL: there is no such domain; -EPERM: the request does not have its lock; -EBUSY: a request has written to
 * it; -ESTALE: the request has failed; -EOWNERDEAD: another request is inside the hot domain; -ENODEV; -ENOMEM.
 */
long vmsrs_domain_delete(struct vmsrs_file *file, const struct vmsrs_ioctl_delete *arg)
{
	struct vmsrs_app *app = file->app;
	struct vmsrs_deletion *deletion;
	struct vmsrs_domain *domain;
	struct mutex *lock;
	long ret = -EINVAL;

	if (arg->reserved)
		return -EINVAL;
	deletion = kzalloc(sizeof(*deletion), GFP_KERNEL_ACCOUNT);
	if (!deletion)
		return -ENOMEM;
	mutex_lock(&app->lock);
	domain = xa_load(&app->domains, arg->domain);
	if (domain)
		ret = xa_reserve(&app->deleted, arg->domain, GFP_KERNEL);
	if (!ret) {
		lock = vmsrs_request_lock(app->dev, arg->tag);
		ret = delete_locked(domain, arg->tag, deletion);
		vmsrs_request_unlock(app->dev, lock);
		if (ret)
			xa_release(&app->deleted, arg->domain);
	}
	mutex_unlock(&app->lock);
	if (ret)
		kfree(deletion);
	else
		/* One after the other, each of those that wait. */
		vmsrs_lock_wake(app, arg->domain);
	return ret;
}

/**
 * vmsrs_domain_info() - count the pages of a domain
 * @app: the app
 * @arg: argument of the ioctl
 *
 * Return: 0 or -EINVAL.
 */
long vmsrs_domain_info(struct vmsrs_app *app, struct vmsrs_ioctl_domain_info *arg)
{
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	long ret = -EINVAL;
	u32 i;

	mutex_lock(&app->lock);
	domain = xa_load(&app->domains, arg->domain);
	if (!domain)
		goto unlock;
	ret = 0;
	*arg = (struct vmsrs_ioctl_domain_info) {
		.domain = domain->number,
		.extents = domain->extent_count,
	};
	mutex_lock(&domain->lock);
	vmsrs_for_each_extent(extent, domain) {
		arg->pages += extent->pages;
		for (i = 0; i < extent->pages; i++) {
			arg->committed += extent->entries[i].frame != VMSRS_NONE;
			arg->unsealed += vmsrs_in_pool(extent->entries[i].frame);
			arg->drafts += extent->entries[i].draft != VMSRS_NO_DRAFT;
			vmsrs_page_resched(i);
		}
	}
	mutex_unlock(&domain->lock);
unlock:
	mutex_unlock(&app->lock);
	return ret;
}
