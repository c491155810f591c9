// SPDX-License-Identifier: GPL-2.0
/*
 * Extents: where the pages of a domain lie, and the index by which faults find them.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "vmsrs.h"

static u32 unit_of(u32 page)
{
	return page / VMSRS_EXTENT_UNIT_PAGES;
}

/**
 * vmsrs_extent_find() - find the extent that a page belongs to
 * @app: the app
 * @page: the page
 *
 * Context: any.
 * Return: the extent, or NULL.
 */
struct vmsrs_extent_pages *vmsrs_extent_find(struct vmsrs_app *app, u32 page)
{
	return xa_load(&app->units, unit_of(page));
}

/**
 * vmsrs_app_base() - where an app's pages begin
 * @app: the app
 *
 * Return: the address.
 */
u64 vmsrs_app_base(const struct vmsrs_app *app)
{
	return VMSRS_APP_BASE + ((u64)app->number << VMSRS_APP_OFFSET_SHIFT);
}

/**
 * vmsrs_address_domain() - find the domain that an address belongs to
 * @app: the app
 * @address: any address
 *
 * Return: number of the domain, or VMSRS_NONE.
 */
u32 vmsrs_address_domain(struct vmsrs_app *app, u64 address)
{
	u64 page = (address - vmsrs_app_base(app)) >> PAGE_SHIFT;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;

	if (address < vmsrs_app_base(app) || page >= VMSRS_APP_PAGES)
		return VMSRS_NONE;
	/* An extent whose domain is deleted is not freed meanwhile. */
	rcu_read_lock();
	extent = vmsrs_extent_find(app, page);
	domain = extent ? READ_ONCE(extent->domain) : NULL;
	rcu_read_unlock();
	return domain ? domain->number : VMSRS_NONE;
}

/**
 * vmsrs_extent_new() - make an extent that has no pages with frames yet
 * @domain: its domain
 * @where: where it lies
 *
 * Return: the extent, or NULL without memory.
 */
struct vmsrs_extent_pages *vmsrs_extent_new(struct vmsrs_domain *domain,
					     const struct vmsrs_extent *where)
{
	struct vmsrs_extent_pages *extent;
	u32 i;

	extent = kvzalloc(struct_size(extent, entries, where->pages), GFP_KERNEL);
	if (!extent)
		return NULL;
	extent->domain = domain;
	extent->page = where->page;
	extent->pages = where->pages;
	for (i = 0; i < where->pages; i++) {
		extent->entries[i].frame = VMSRS_NONE;
		extent->entries[i].draft = VMSRS_NO_DRAFT;
	}
	BUILD_BUG_ON(VMSRS_NO_DRAFT <= VMSRS_MAX_FRAMES);
	return extent;
}

/**
 * vmsrs_extent_append() - add an extent to the list of its domain
 * @domain: the domain
 * @extent: the extent
 *
 * Context: the app's lock is held, or nobody has found the domain yet.
 */
void vmsrs_extent_append(struct vmsrs_domain *domain, struct vmsrs_extent_pages *extent)
{
	extent->next = domain->last ? domain->last->next : extent;
	if (domain->last)
		domain->last->next = extent;
	domain->last = extent;
	domain->extent_count++;
}

/**
 * vmsrs_extent_valid() - check an extent that the host has told
 * @extent: what it said
 *
 * Return: whether an extent may lie there.
 */
bool vmsrs_extent_valid(const struct vmsrs_extent *extent)
{
	return extent->pages && extent->pages <= VMSRS_EXTENT_MAX_PAGES &&
	       extent->pages % VMSRS_EXTENT_UNIT_PAGES == 0 &&
	       extent->page % VMSRS_EXTENT_UNIT_PAGES == 0 &&
	       extent->page <= VMSRS_APP_PAGES - extent->pages;
}

/**
 * vmsrs_extent_reserve() - reserve entries in the index, so that publishing the extent cannot fail
 * @app: the app
 * @extent: the extent
 *
 * Context: the app's lock is held.
 * Return: 0 or a negative error. An extent that overlaps another one breaks the device.
 */
int vmsrs_extent_reserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent)
{
	u32 first = unit_of(extent->page), end = unit_of(extent->page + extent->pages), unit;
	int error = 0;

	for (unit = first; unit < end; unit++) {
		if (xa_load(&app->units, unit)) {
			vmsrs_device_fail(app->dev, "overlapping extents at page %u", extent->page);
			error = -ENODEV;
			break;
		}
		error = xa_reserve(&app->units, unit, GFP_KERNEL);
		if (error)
			break;
	}
	if (error)
		while (unit-- > first)
			xa_release(&app->units, unit);
	return error;
}

/**
 * vmsrs_extent_unreserve() - give back what vmsrs_extent_reserve() has reserved
 * @app: the app
 * @extent: an extent that was not published
 */
void vmsrs_extent_unreserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent)
{
	u32 unit;

	for (unit = unit_of(extent->page); unit < unit_of(extent->page + extent->pages); unit++)
		xa_release(&app->units, unit);
}

/**
 * vmsrs_extent_publish() - from here on faults find the extent
 * @app: the app
 * @extent: an extent that was reserved
 *
 * Context: the app's lock is held.
 */
void vmsrs_extent_publish(struct vmsrs_app *app, struct vmsrs_extent_pages *extent)
{
	u32 unit;

	for (unit = unit_of(extent->page); unit < unit_of(extent->page + extent->pages); unit++)
		WARN_ON(xa_err(xa_store(&app->units, unit, extent, GFP_KERNEL)));
}

/**
 * vmsrs_extents_free() - free a domain's extents, which nobody has found
 * @domain: the domain
 */
void vmsrs_extents_free(struct vmsrs_domain *domain)
{
	struct vmsrs_extent_pages *extent, *next;

	for (extent = vmsrs_extent_first(domain); extent; extent = next) {
		next = vmsrs_extent_after(domain, extent);
		kvfree(extent);
	}
	domain->last = NULL;
	domain->extent_count = 0;
}

/* Creates the next extent of a domain. app->lock is held. */
static struct vmsrs_extent_pages *extent_add(struct vmsrs_domain *domain, u32 pages)
{
	struct vmsrs_app *app = domain->app;
	struct vmsrs_add_extent request = {
		.app = app->number,
		.domain = domain->number,
		.index = domain->extent_count,
		.pages = pages,
	};
	struct vmsrs_extent_pages *extent;
	vmsrs_extent_reply reply;
	int error;

	error = vmsrs_control_call(app->dev, VMSRS_MESSAGE_ADD_EXTENT, &request, sizeof(request),
				   &reply, sizeof(reply));
	if (error == -ENOSPC)
		return ERR_PTR(-ENOMEM);
	if (error)
		return ERR_PTR(vmsrs_control_unexpected(app->dev, VMSRS_MESSAGE_ADD_EXTENT, error));
	if (!vmsrs_extent_valid(&reply)) {
		vmsrs_device_fail(app->dev, "extent of %u pages at %u", reply.pages, reply.page);
		return ERR_PTR(-ENODEV);
	}
	/* If memory is short here, the host has the extent, and asking again finds it. */
	extent = vmsrs_extent_new(domain, &reply);
	if (!extent)
		return ERR_PTR(-ENOMEM);
	error = vmsrs_extent_reserve(app, extent);
	if (error) {
		kvfree(extent);
		return ERR_PTR(error);
	}
	vmsrs_extent_append(domain, extent);
	vmsrs_extent_publish(app, extent);
	return extent;
}

/* Finds or creates an extent of a domain. */
static long extent_open(struct vmsrs_app *app, struct vmsrs_ioctl_extent *arg)
{
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	long ret = 0;
	u32 i;

	mutex_lock(&app->lock);
	domain = xa_load(&app->domains, arg->domain);
	if (!domain || arg->index > domain->extent_count) {
		ret = -EINVAL;
	} else if (arg->index == domain->extent_count) {
		if (!arg->pages || arg->pages > VMSRS_EXTENT_MAX_PAGES)
			extent = ERR_PTR(-EINVAL);
		else if (domain->extent_count == U16_MAX)
			extent = ERR_PTR(-ENOMEM);
		else
			extent = extent_add(domain, arg->pages);
		ret = PTR_ERR_OR_ZERO(extent);
	} else if (arg->index == domain->extent_count - 1) {
		extent = domain->last;
	} else {
		extent = domain->last->next;
		for (i = 0; i < arg->index; i++)
			extent = extent->next;
	}
	if (!ret) {
		arg->page = extent->page;
		arg->pages = extent->pages;
	}
	mutex_unlock(&app->lock);
	return ret;
}

/**
 * vmsrs_extent_open() - find or create an extent of a domain
 * @app: the app
 * @arg: argument of the ioctl
 *
 * Return: 0 or a negative error.
 */
long vmsrs_extent_open(struct vmsrs_app *app, struct vmsrs_ioctl_extent *arg)
{
	long ret;

	/* The room of deleted domains comes back with their batch. */
	do {
		ret = extent_open(app, arg);
	} while (ret == -ENOMEM && vmsrs_batch_deletes(app->dev) &&
		 !vmsrs_batch_flush(app->dev, true));
	return ret;
}
