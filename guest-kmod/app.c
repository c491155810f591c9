// SPDX-License-Identifier: GPL-2.0
/*
 * Apps, domains and extents: caches of what the host says. They are kept until the device
 * structure is freed, so a pointer to one stays valid.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/string.h>

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

static u64 app_base(const struct vmsrs_app *app)
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
	u64 page = (address - app_base(app)) >> PAGE_SHIFT;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;

	if (address < app_base(app) || page >= VMSRS_APP_PAGES)
		return VMSRS_NONE;
	/* An extent whose domain is deleted is not freed meanwhile. */
	rcu_read_lock();
	extent = vmsrs_extent_find(app, page);
	domain = extent ? READ_ONCE(extent->domain) : NULL;
	rcu_read_unlock();
	return domain ? domain->number : VMSRS_NONE;
}

/* A name or key is `length` bytes, followed by zeros. */
static bool padded(const u8 *bytes, size_t length, size_t size)
{
	return length <= size && !memchr_inv(bytes + length, 0, size - length);
}

/*
 * The host sends this answer only to a malformed question: it and the driver disagree about the
 * state.
 */
static long unexpected(struct vmsrs_device *dev, u32 kind, int error)
{
	if (error == -ENODEV || error == -ENOMEM)
		return error;
	vmsrs_device_fail(dev, "message %u refused (%d)", kind, error);
	return -ENODEV;
}

static struct vmsrs_app *app_new(struct vmsrs_device *dev, u32 number, const u8 *name)
{
	struct vmsrs_app *app = kzalloc(sizeof(*app), GFP_KERNEL);

	if (!app)
		return NULL;
	app->lock_pages = kvcalloc(VMSRS_LOCK_PAGES, sizeof(*app->lock_pages), GFP_KERNEL);
	if (!app->lock_pages) {
		kfree(app);
		return NULL;
	}
	app->dev = dev;
	app->number = number;
	mutex_init(&app->lock);
	xa_init(&app->domains);
	xa_init(&app->units);
	xa_init(&app->deleted);
	INIT_LIST_HEAD(&app->deletion_list);
	INIT_LIST_HEAD(&app->open_files);
	spin_lock_init(&app->mapping_lock);
	spin_lock_init(&app->hot_lock);
	INIT_LIST_HEAD(&app->residents);
	vmsrs_waits_init(app);
	memcpy(app->name, name, sizeof(app->name));
	return app;
}

/* Frees a domain's extents, which nobody has found. */
static void domain_empty(struct vmsrs_domain *domain)
{
	struct vmsrs_extent_pages *extent, *next;

	for (extent = vmsrs_extent_first(domain); extent; extent = next) {
		next = vmsrs_extent_after(domain, extent);
		kvfree(extent);
	}
	domain->last = NULL;
	domain->extent_count = 0;
}

static void domain_free(struct vmsrs_domain *domain)
{
	domain_empty(domain);
	kfree(domain->heat);
	kfree(domain);
}

/**
 * vmsrs_app_free() - free an app that is not used any more, with its domains
 * @app: the app, or NULL
 */
void vmsrs_app_free(struct vmsrs_app *app)
{
	struct vmsrs_deletion *deletion;
	struct vmsrs_domain *domain;
	unsigned long number;

	if (!app)
		return;
	xa_for_each(&app->domains, number, domain)
		domain_free(domain);
	xa_for_each(&app->deleted, number, deletion) {
		domain_free(deletion->domain);
		vmsrs_deletion_free(deletion);
	}
	xa_destroy(&app->deleted);
	xa_destroy(&app->domains);
	xa_destroy(&app->units);
	vmsrs_locks_free(app);
	kfree(app);
}

/* Asks the host for the app's number and finds or creates its structure. apps_lock is held. */
static struct vmsrs_app *app_get(struct vmsrs_device *dev, const u8 *name)
{
	struct vmsrs_open_app request;
	struct vmsrs_app_reply reply;
	struct vmsrs_app *app;
	int error;

	memcpy(request.name, name, sizeof(request.name));
	error = vmsrs_control_call(dev, VMSRS_MESSAGE_OPEN_APP, &request, sizeof(request), &reply,
				   sizeof(reply));
	if (error)
		return ERR_PTR(error);
	if (reply.app >= VMSRS_MAX_APPS) {
		vmsrs_device_fail(dev, "app number %u", reply.app);
		return ERR_PTR(-ENODEV);
	}
	app = dev->apps[reply.app];
	if (app) {
		if (!memcmp(app->name, name, sizeof(app->name)))
			return app;
		vmsrs_device_fail(dev, "two apps with number %u", reply.app);
		return ERR_PTR(-ENODEV);
	}
	app = app_new(dev, reply.app, name);
	if (!app)
		return ERR_PTR(-ENOMEM);
	dev->apps[reply.app] = app;
	return app;
}

/* A file opens an app, whose process has noted deletions up to number `noted`. apps_lock is held. */
static long app_attach(struct vmsrs_file *file, struct vmsrs_app *app, u64 noted)
{
	long ret = 0;

	mutex_lock(&app->lock);
	if (noted < app->forgotten) {
		ret = -ESTALE;
	} else {
		file->noted = min(noted, app->deletions);
		list_add_tail(&file->app_entry, &app->open_files);
		app->files++;
	}
	mutex_unlock(&app->lock);
	/* Pairs with file_app(). */
	if (!ret)
		smp_store_release(&file->app, app);
	return ret;
}

/**
 * vmsrs_app_open() - open the app of a file
 * @file: the file
 * @arg: argument of the ioctl
 *
 * Return: 0 or a negative error.
 */
long vmsrs_app_open(struct vmsrs_file *file, struct vmsrs_ioctl_open_app *arg)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_app *app;
	long ret = 0;

	if (arg->abi_version != VMSRS_ABI_VERSION || !arg->name[0] ||
	    !padded(arg->name, strnlen(arg->name, VMSRS_NAME_MAX), VMSRS_NAME_MAX))
		return -EINVAL;
	mutex_lock(&dev->apps_lock);
	app = file->app;
	if (app) {
		if (memcmp(app->name, arg->name, sizeof(app->name)))
			ret = -EBUSY;
	} else {
		app = app_get(dev, arg->name);
		ret = IS_ERR(app) ? PTR_ERR(app) : app_attach(file, app, arg->deletions);
	}
	mutex_unlock(&dev->apps_lock);
	if (ret)
		return ret;
	arg->app = app->number;
	arg->deletions = READ_ONCE(file->noted);
	arg->base = app_base(app);
	arg->length = (u64)VMSRS_APP_PAGES * PAGE_SIZE;
	arg->pages_offset = (u64)app->number << VMSRS_APP_OFFSET_SHIFT;
	arg->locks_offset = VMSRS_LOCKS_OFFSET;
	arg->locks_length = VMSRS_LOCKS_LENGTH;
	return 0;
}

/**
 * vmsrs_app_close() - close the app of a file whose last reference went
 * @file: the file
 *
 * With the last file, the lock words are cleared: no process maps them any more.
 */
void vmsrs_app_close(struct vmsrs_file *file)
{
	struct vmsrs_app *app = file->app;

	if (!app)
		return;
	mutex_lock(&file->dev->apps_lock);
	mutex_lock(&app->lock);
	list_del(&file->app_entry);
	mutex_unlock(&app->lock);
	if (!--app->files)
		vmsrs_locks_clear(app);
	mutex_unlock(&file->dev->apps_lock);
}

static struct vmsrs_extent_pages *extent_new(struct vmsrs_domain *domain,
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

static void extent_append(struct vmsrs_domain *domain, struct vmsrs_extent_pages *extent)
{
	extent->next = domain->last ? domain->last->next : extent;
	if (domain->last)
		domain->last->next = extent;
	domain->last = extent;
	domain->extent_count++;
}

static bool extent_valid(const struct vmsrs_extent *extent)
{
	return extent->pages && extent->pages <= VMSRS_EXTENT_MAX_PAGES &&
	       extent->pages % VMSRS_EXTENT_UNIT_PAGES == 0 &&
	       extent->page % VMSRS_EXTENT_UNIT_PAGES == 0 &&
	       extent->page <= VMSRS_APP_PAGES - extent->pages;
}

/*
 * Reserves entries in the index for an extent, so that publishing it cannot fail. app->lock is
 * held.
 */
static int extent_reserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent)
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

static void extent_unreserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent)
{
	u32 unit;

	for (unit = unit_of(extent->page); unit < unit_of(extent->page + extent->pages); unit++)
		xa_release(&app->units, unit);
}

/* From here on faults find the extent. */
static void extent_publish(struct vmsrs_app *app, struct vmsrs_extent_pages *extent)
{
	u32 unit;

	for (unit = unit_of(extent->page); unit < unit_of(extent->page + extent->pages); unit++)
		WARN_ON(xa_err(xa_store(&app->units, unit, extent, GFP_KERNEL)));
}

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
		error = unexpected(dev, kind, error);
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
		error = unexpected(dev, kind, error);
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
		if (!extent_valid(where) || domain->extent_count == U16_MAX)
			return -EPROTO;
		extent = extent_new(domain, where);
		if (!extent)
			return -ENOMEM;
		error = extent_reserve(domain->app, extent);
		if (error) {
			kvfree(extent);
			return error;
		}
		extent_append(domain, extent);
	}
	return 0;
}

static struct vmsrs_page *page_entry(struct vmsrs_domain *domain, u32 page)
{
	struct vmsrs_extent_pages *extent;

	/* Not from the index: the domain is being fetched, so its extents are not there yet. */
	vmsrs_for_each_extent(extent, domain)
		if (page >= extent->page && page - extent->page < extent->pages)
			return &extent->entries[page - extent->page];
	return NULL;
}

/* Enters a sealed page of a domain that is not published yet. */
static int take_page(struct vmsrs_domain *domain, u32 page, u32 frame)
{
	struct vmsrs_page *entry = page_entry(domain, page);

	if (!entry || frame == VMSRS_ZERO_FRAME ||
	    (frame >= domain->app->dev->config.vault_frames && frame != VMSRS_DAMAGED_FRAME))
		return -EPROTO;
	entry->frame = frame;
	return 0;
}

static int take_pages(struct vmsrs_domain *domain, const void *entries, u32 count)
{
	const struct vmsrs_page_frame *sealed = entries;
	int error = 0;

	for (; count-- && !error; sealed++)
		error = take_page(domain, sealed->page, sealed->frame);
	return error;
}

/*
 * Enters what the answer has of a domain that is not published yet, and lists what it has beyond.
 */
static int domain_fill(struct vmsrs_domain *domain, const struct vmsrs_domain_reply *reply)
{
	struct vmsrs_device *dev = domain->app->dev;
	u32 pages = 0, next, i;
	int error;

	if (!reply->extents)
		return 0;
	error = take_extents(domain, &reply->first, 1);
	for (i = 0; i < ARRAY_SIZE(reply->frames) && !error; i++) {
		if (reply->frames[i] == VMSRS_NONE)
			continue;
		error = take_page(domain, reply->first.page + i, reply->frames[i]);
		pages++;
	}
	if (error == -EPROTO)
		return unexpected(dev, VMSRS_MESSAGE_OPEN_DOMAIN, error);
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

/* Forgets what a deleted domain was like; others may still have a pointer to it. */
static void domain_renew(struct vmsrs_domain *domain)
{
	mutex_lock(&domain->lock);
	domain->lost = 0;
	domain->next_page = 0;
	domain->row = 0;
	domain->predicted = 0;
	if (domain->heat) {
		domain->heat->steady = 0;
		domain->heat->paid = 0;
		domain->heat->reluctance = 0;
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
			extent_unreserve(app, extent);
		if (deletion)
			domain_empty(domain);
		else
			domain_free(domain);
		return ERR_PTR(error);
	}
	if (deletion) {
		vmsrs_deletion_forget(deletion);
		vmsrs_lock_revive(app, number);
	}
	vmsrs_for_each_extent(extent, domain)
		extent_publish(app, extent);
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
	    !padded(arg->key, arg->key_length, VMSRS_KEY_MAX) ||
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
		return ERR_PTR(unexpected(app->dev, VMSRS_MESSAGE_ADD_EXTENT, error));
	if (!extent_valid(&reply)) {
		vmsrs_device_fail(app->dev, "extent of %u pages at %u", reply.pages, reply.page);
		return ERR_PTR(-ENODEV);
	}
	/* If memory is short here, the host has the extent, and asking again finds it. */
	extent = extent_new(domain, &reply);
	if (!extent)
		return ERR_PTR(-ENOMEM);
	error = extent_reserve(app, extent);
	if (error) {
		kvfree(extent);
		return ERR_PTR(error);
	}
	extent_append(domain, extent);
	extent_publish(app, extent);
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
