// SPDX-License-Identifier: GPL-2.0
/*
 * Extents: where the pages of a domain lie, and the index by which faults find them.
 */
#include <linux/bitops.h>
#include <linux/log2.h>
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

	/* A block of any size may be asked for: without memory there is none, and nothing is killed for it. */
	extent = kvzalloc(struct_size(extent, entries, where->pages),
			  GFP_KERNEL_ACCOUNT | __GFP_RETRY_MAYFAIL | __GFP_NOWARN);
	if (!extent)
		return NULL;
	extent->domain = domain;
	extent->page = where->page;
	extent->pages = where->pages;
	for (i = 0; i < where->pages; i++) {
		extent->entries[i].frame = VMSRS_NONE;
		extent->entries[i].draft = VMSRS_NO_DRAFT;
		vmsrs_page_resched(i);
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

/*
 * Stores an entry for some units, as many at a time as the index can have in one place. Fails only where something is stored
 * for the first time.
 */
static int index_store(struct vmsrs_app *app, u32 first, u32 end, void *entry)
{
	u32 unit, order, most;

	for (unit = first; unit < end; unit += 1U << order) {
		XA_STATE(xas, &app->units, 0);

		most = ilog2(end - unit);
		order = unit ? min_t(u32, __ffs(unit), most) : most;
		if (!IS_ENABLED(CONFIG_XARRAY_MULTI))
			order = 0;
		xas_set_order(&xas, unit, order);
		do {
			xas_lock(&xas);
			xas_store(&xas, entry);
			xas_unlock(&xas);
		} while (xas_nomem(&xas, GFP_KERNEL));
		if (xas_error(&xas))
			return xas_error(&xas);
	}
	return 0;
}

static u32 first_unit(const struct vmsrs_extent_pages *extent)
{
	return unit_of(extent->page);
}

static u32 end_unit(const struct vmsrs_extent_pages *extent)
{
	return unit_of(extent->page + extent->pages);
}

/* Is there an extent, or room reserved for one, in some units? */
static bool is_taken(struct vmsrs_app *app, u32 first, u32 end)
{
	XA_STATE(xas, &app->units, first);
	void *entry;

	rcu_read_lock();
	do {
		entry = xas_find(&xas, end - 1);
	} while (xas_retry(&xas, entry));
	rcu_read_unlock();
	return entry;
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
	int error;

	if (is_taken(app, first_unit(extent), end_unit(extent))) {
		vmsrs_device_fail(app->dev, "overlapping extents at page %u", extent->page);
		return -ENODEV;
	}
	error = index_store(app, first_unit(extent), end_unit(extent), XA_ZERO_ENTRY);
	if (error)
		vmsrs_extent_unreserve(app, extent);
	return error;
}

/**
 * vmsrs_extent_unreserve() - take an extent, or what vmsrs_extent_reserve() has reserved for it, out of the index
 * @app: the app
 * @extent: the extent
 *
 * Context: the app's lock is held.
 */
void vmsrs_extent_unreserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent)
{
	WARN_ON(index_store(app, first_unit(extent), end_unit(extent), NULL));
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
	WARN_ON(index_store(app, first_unit(extent), end_unit(extent), extent));
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
	struct vmsrs_extent where = { .pages = pages };
	struct vmsrs_extent_pages *extent;
	vmsrs_extent_reply reply;
	int error;

	/* Before the host is asked, which keeps what it has given. */
	extent = vmsrs_extent_new(domain, &where);
	if (!extent)
		return ERR_PTR(-ENOMEM);
	error = vmsrs_control_call(app->dev, VMSRS_MESSAGE_ADD_EXTENT, &request, sizeof(request),
				   &reply, sizeof(reply));
	if (error == -ENOSPC) {
		error = -ENOMEM;
		goto free;
	}
	if (error) {
		error = vmsrs_control_unexpected(app->dev, VMSRS_MESSAGE_ADD_EXTENT, error);
		goto free;
	}
	error = -ENODEV;
	if (!vmsrs_extent_valid(&reply)) {
		vmsrs_device_fail(app->dev, "extent of %u pages at %u", reply.pages, reply.page);
		goto free;
	}
	if (reply.pages != pages) {
		/* One that the host had already. */
		kvfree(extent);
		extent = vmsrs_extent_new(domain, &reply);
		if (!extent)
			return ERR_PTR(-ENOMEM);
	}
	extent->page = reply.page;
	error = vmsrs_extent_reserve(app, extent);
	if (error)
		goto free;
	vmsrs_extent_append(domain, extent);
	vmsrs_extent_publish(app, extent);
	return extent;
free:
	kvfree(extent);
	return ERR_PTR(error);
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
