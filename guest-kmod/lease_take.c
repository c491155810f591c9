// SPDX-License-Identifier: GPL-2.0
/* Taking a lease: the pages are looked at under their domain's lock, so they are as one commit has left them. */
#include <linux/mm.h>

#include "vmsrs.h"

/*
 * Does what the calling process sees of a page, from one byte up to another, differ from its committed
 * version? domain->lock is held.
 */
static bool is_changed(struct vmsrs_device *dev, const struct vmsrs_page *entry, u32 from, u32 to)
{
	u32 committed = entry->frame == VMSRS_NONE ? VMSRS_ZERO_FRAME : entry->frame;

	if (entry->draft == VMSRS_NO_DRAFT)
		return false;
	return !vmsrs_same_bytes(vmsrs_frame_address(dev, entry->draft | VMSRS_IN_POOL) + from,
				 vmsrs_frame_address(dev, committed) + from, to - from);
}

/* Adds the pages with `length` bytes from `offset` of the app on. They are in the extent, whose domain is locked. */
static int lease_pages(struct vmsrs_lease *lease, const struct vmsrs_extent_pages *extent, u64 offset, u64 length)
{
	struct vmsrs_domain *domain = extent->domain;
	const struct vmsrs_page *entry;
	u32 from = offset % PAGE_SIZE, to;
	u32 page = offset >> PAGE_SHIFT;
	int error = 0;

	for (; length && !error; page++) {
		entry = &extent->entries[page - extent->page];
		to = min_t(u64, PAGE_SIZE, from + length);
		if (entry->frame == VMSRS_DAMAGED_FRAME)
			return -EIO;
		if (is_changed(lease->dev, entry, from, to))
			return -EBUSY;
		error = vmsrs_lease_add(lease, domain, entry->frame);
		length -= to - from;
		from = 0;
	}
	return error;
}

/* Adds the pages that the bytes are in, if they are an extent's of the domain. A block is in one extent. */
static int take_pages(struct vmsrs_lease *lease, struct vmsrs_app *app, u32 number, u64 offset, u64 length)
{
	u32 page = offset >> PAGE_SHIFT, last = (offset + length - 1) >> PAGE_SHIFT;
	struct vmsrs_extent_pages *extent = vmsrs_extent_find(app, page);
	struct vmsrs_domain *domain = extent ? READ_ONCE(extent->domain) : NULL;
	int error = -EINVAL;

	if (!domain || domain->number != number || last - extent->page >= extent->pages)
		return -EINVAL;
	mutex_lock(&domain->lock);
	/* Unless it was deleted meanwhile. */
	if (extent->domain)
		error = lease_pages(lease, extent, offset, length);
	mutex_unlock(&domain->lock);
	return error;
}

/**
 * vmsrs_lease_take() - lease bytes of a domain
 * @app: the app
 * @arg: argument of the ioctl
 *
 * Return: the lease, for vmsrs_lease_map(); or as the ioctl.
 */
struct vmsrs_lease *vmsrs_lease_take(struct vmsrs_app *app, const struct vmsrs_ioctl_lease *arg)
{
	u64 base = VMSRS_APP_BASE + ((u64)app->number << VMSRS_APP_OFFSET_SHIFT);
	u64 offset = arg->address - base, size = (u64)VMSRS_APP_PAGES << PAGE_SHIFT, pages;
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_lease *lease;
	int index, error;

	if (arg->reserved || arg->address < base || offset >= size || !arg->length || arg->length > size - offset)
		return ERR_PTR(-EINVAL);
	pages = ((offset + arg->length - 1) >> PAGE_SHIFT) - (offset >> PAGE_SHIFT) + 1;
	if (pages > VMSRS_LEASE_PAGES_MAX)
		return ERR_PTR(-EINVAL);
	lease = vmsrs_lease_new(dev, pages);
	if (IS_ERR(lease))
		return lease;
	/* As a page fault: the extent stays, and so do pool and vault. */
	index = srcu_read_lock(&dev->srcu);
	error = READ_ONCE(dev->gone) ? -ENODEV : take_pages(lease, app, arg->domain, offset, arg->length);
	srcu_read_unlock(&dev->srcu, index);
	if (!error)
		return lease;
	vmsrs_lease_put(lease);
	return ERR_PTR(error);
}
