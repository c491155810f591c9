// SPDX-License-Identifier: GPL-2.0
/*
 * Domains are opened: the driver fetches what the host has of one that it does not know yet.
 */
#include <linux/slab.h>
#include <linux/string.h>

#include "vmsrs.h"

/*
 * Sends a list message and passes the entries to `take`. Sets *next to where the next message
 * begins. app->lock is held.
 */
static int list_some(struct vmsrs_domain *domain, u32 kind, u32 *next, size_t entry_size,
		     int (*take)(struct vmsrs_domain *domain, const void *entries, u32 count))
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_list_domain *request;
	const struct vmsrs_list_reply *list;
	const void *reply;
	u32 length;
	int error;

	request = vmsrs_control_begin(dev);
	if (IS_ERR(request))
		return PTR_ERR(request);
	request->app = domain->app->number;
	request->domain = domain->number;
	request->first = *next;
	request->limit = (VMSRS_MESSAGE_BYTES_MAX - sizeof(struct vmsrs_reply_header) -
			  sizeof(*list)) / entry_size;
	error = vmsrs_control_exchange(dev, kind, sizeof(*request), &reply, &length);
	if (error) {
		error = vmsrs_control_unexpected(dev, kind, error);
		goto end;
	}
	list = reply;
	error = -EPROTO;
	if (length >= sizeof(*list) && list->count <= (length - sizeof(*list)) / entry_size &&
	    length == sizeof(*list) + list->count * entry_size &&
	    (list->next == VMSRS_NONE || (list->count && list->next > *next)))
		error = take(domain, list + 1, list->count);
	*next = error ? VMSRS_NONE : list->next;
	if (error == -EPROTO)
		error = vmsrs_control_unexpected(dev, kind, error);
end:
	vmsrs_control_end(dev);
	return error;
}

/* Adds extents to a domain that is not published yet. */
static int take_extents(struct vmsrs_domain *domain, const void *entries, u32 count)
{
	const struct vmsrs_extent *where = entries;
	struct vmsrs_extent_pages *extent;
	int error;

	for (; count--; where++) {
		if (!vmsrs_extent_valid(where) || domain->extent_count == U16_MAX)
			return -EPROTO;
		extent = vmsrs_extent_new(domain, where);
		if (!extent)
			return -ENOMEM;
		error = vmsrs_extent_reserve(domain->app, extent);
		if (error) {
			kvfree(extent);
			return error;
		}
		vmsrs_extent_append(domain, extent);
	}
	return 0;
}

/* `last` has the extent of the page before: pages come in order. */
static struct vmsrs_page *page_entry(struct vmsrs_domain *domain, u32 page,
				     struct vmsrs_extent_pages **last)
{
	struct vmsrs_extent_pages *extent = *last;

	if (extent && page - extent->page < extent->pages)
		return &extent->entries[page - extent->page];
	/* Not from the index: the domain is being fetched, so its extents are not there yet. */
	vmsrs_for_each_extent(extent, domain) {
		if (page - extent->page >= extent->pages)
			continue;
		*last = extent;
		return &extent->entries[page - extent->page];
	}
	return NULL;
}

/* Enters a sealed page of a domain that is not published yet. */
static int take_page(struct vmsrs_domain *domain, u32 page, u32 frame,
		     struct vmsrs_extent_pages **last)
{
	struct vmsrs_page *entry = page_entry(domain, page, last);

	if (!entry || frame == VMSRS_ZERO_FRAME ||
	    (frame >= domain->app->dev->config.vault_frames && frame != VMSRS_DAMAGED_FRAME))
		return -EPROTO;
	entry->frame = frame;
	return 0;
}

static int take_pages(struct vmsrs_domain *domain, const void *entries, u32 count)
{
	const struct vmsrs_page_frame *sealed = entries;
	struct vmsrs_extent_pages *last = NULL;
	int error = 0;

	for (; count-- && !error; sealed++)
		error = take_page(domain, sealed->page, sealed->frame, &last);
	return error;
}

/*
 * Enters what the answer has of a domain that is not published yet, and lists what it has beyond.
 */
static int domain_fill(struct vmsrs_domain *domain, const struct vmsrs_domain_reply *reply)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_extent_pages *last = NULL;
	u32 pages = 0, next, i;
	int error;

	if (!reply->extents)
		return 0;
	error = take_extents(domain, &reply->first, 1);
	for (i = 0; i < ARRAY_SIZE(reply->frames) && !error; i++) {
		if (reply->frames[i] == VMSRS_NONE)
			continue;
		error = take_page(domain, reply->first.page + i, reply->frames[i], &last);
		pages++;
	}
	if (error == -EPROTO)
		return vmsrs_control_unexpected(dev, VMSRS_MESSAGE_OPEN_DOMAIN, error);
	for (next = reply->extents > 1 ? 1 : VMSRS_NONE; !error && next != VMSRS_NONE;)
		error = list_some(domain, VMSRS_MESSAGE_LIST_EXTENTS, &next,
				  sizeof(struct vmsrs_extent), take_extents);
	next = reply->pages > pages ? reply->first.page + i : VMSRS_NONE;
	while (!error && next != VMSRS_NONE)
		error = list_some(domain, VMSRS_MESSAGE_LIST_PAGES, &next,
				  sizeof(struct vmsrs_page_frame), take_pages);
	return error;
}

static struct vmsrs_domain *domain_new(struct vmsrs_app *app, u32 number)
{
	struct vmsrs_domain *domain = kzalloc(sizeof(*domain), GFP_KERNEL);

	if (!domain)
		return NULL;
	mutex_init(&domain->lock);
	domain->app = app;
	domain->number = number;
	return domain;
}

/* There may be a million. Kernels that debug mutexes have larger ones. */
static_assert(sizeof(struct mutex) > 32 || sizeof(struct vmsrs_domain) <= 128);

/* Forgets what a deleted domain was like; others may still have a pointer to it. */
static void domain_renew(struct vmsrs_domain *domain)
{
	mutex_lock(&domain->lock);
	domain->lost = 0;
	domain->next_page = 0;
	domain->row = 0;
	domain->predicted = 0;
	memset(domain->last_rows, 0, sizeof(domain->last_rows));
	domain->row_score = 0;
	domain->unread = 0;
	if (domain->heat) {
		domain->heat->steady = 0;
		domain->heat->paid = 0;
		domain->heat->reluctance = 0;
		domain->heat->many = 0;
		domain->heat->count = 0;
		domain->heat->kept = 0;
	}
	mutex_unlock(&domain->lock);
}

/* Makes a domain that the driver does not know yet, of a deleted one if that has had its number. app->lock is held. */
static struct vmsrs_domain *domain_fetch(struct vmsrs_app *app,
					 const struct vmsrs_domain_reply *reply,
					 struct vmsrs_deletion *deletion)
{
	u32 number = reply->domain;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	int error;

	domain = deletion ? deletion->domain : domain_new(app, number);
	if (!domain)
		return ERR_PTR(-ENOMEM);
	if (deletion)
		domain_renew(domain);

	error = xa_reserve(&app->domains, number, GFP_KERNEL);
	if (!error)
		error = domain_fill(domain, reply);
	if (error) {
		xa_release(&app->domains, number);
		vmsrs_for_each_extent(extent, domain)
			vmsrs_extent_unreserve(app, extent);
		if (deletion)
			vmsrs_extents_free(domain);
		else
			vmsrs_domain_free(domain);
		return ERR_PTR(error);
	}
	if (deletion) {
		vmsrs_deletion_forget(deletion);
		vmsrs_lock_revive(app, number);
	}
	vmsrs_for_each_extent(extent, domain)
		vmsrs_extent_publish(app, extent);
	WARN_ON(xa_err(xa_store(&app->domains, number, domain, GFP_KERNEL)));
	return domain;
}

/*
 * Opens or creates a domain. Returns -EAGAIN if the host has yet to delete the one with that key, or one that has the room.
 * app->lock is held.
 */
static long domain_open_locked(struct vmsrs_app *app, struct vmsrs_open_domain *request,
			       struct vmsrs_ioctl_open_domain *arg)
{
	struct vmsrs_deletion *reusable = vmsrs_deletion_reusable(app), *deletion = NULL;
	struct vmsrs_domain_reply reply;
	struct vmsrs_domain *domain;
	long ret;

	request->reuse = reusable ? reusable->domain->number : VMSRS_NONE;
	ret = vmsrs_control_call(app->dev, VMSRS_MESSAGE_OPEN_DOMAIN, request, sizeof(*request),
				 &reply, sizeof(reply));
	if (ret == -ENOSPC && vmsrs_batch_deletes(app->dev))
		return -EAGAIN;
	if (ret)
		return ret;
	domain = xa_load(&app->domains, reply.domain);
	if (!domain)
		deletion = xa_load(&app->deleted, reply.domain);
	if (deletion && !deletion->gone)
		return -EAGAIN;
	if (reply.domain >= VMSRS_MAX_DOMAINS || (deletion && deletion != reusable)) {
		vmsrs_device_fail(app->dev, "domain number %u", reply.domain);
		return -ENODEV;
	}
	if (!domain)
		domain = domain_fetch(app, &reply, deletion);
	if (IS_ERR(domain))
		return PTR_ERR(domain);
	arg->domain = domain->number;
	arg->extents = domain->extent_count;
	arg->flags = reply.flags;
	arg->deletions = app->deletions;
	return 0;
}

/**
 * vmsrs_domain_open() - open or create a domain
 * @app: the app
 * @arg: argument of the ioctl
 *
 * Return: 0 or a negative error.
 */
long vmsrs_domain_open(struct vmsrs_app *app, struct vmsrs_ioctl_open_domain *arg)
{
	struct vmsrs_open_domain request;
	long ret;

	if (!arg->key_length || arg->key_length > VMSRS_KEY_MAX ||
	    !vmsrs_padded(arg->key, arg->key_length, VMSRS_KEY_MAX) ||
	    arg->flags & ~VMSRS_DOMAIN_MIRROR || arg->pages > VMSRS_EXTENT_MAX_PAGES)
		return -EINVAL;
	request.app = app->number;
	request.key_length = arg->key_length;
	memcpy(request.key, arg->key, sizeof(request.key));
	request.flags = arg->flags;
	request.pages = arg->pages;

	for (;;) {
		mutex_lock(&app->lock);
		ret = domain_open_locked(app, &request, arg);
		mutex_unlock(&app->lock);
		if (ret != -EAGAIN)
			return ret;
		/* Without the lock: the host's answer is noted under it. */
		ret = vmsrs_batch_flush(app->dev, true);
		if (ret)
			return ret;
	}
}

/**
 * vmsrs_domain_free() - free a domain and its extents, which nobody finds any more
 * @domain: the domain
 */
void vmsrs_domain_free(struct vmsrs_domain *domain)
{
	vmsrs_extents_free(domain);
	kfree(domain->heat);
	kfree(domain);
}
