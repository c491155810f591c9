// SPDX-License-Identifier: GPL-2.0
/*
 * Apps. What the driver knows of one, with its domains and extents, is kept until the device structure is freed, so a
 * pointer to one stays valid.
 */
#include <linux/slab.h>
#include <linux/string.h>

#include "vmsrs.h"

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
		vmsrs_domain_free(domain);
	xa_for_each(&app->deleted, number, deletion) {
		vmsrs_domain_free(deletion->domain);
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
	    !vmsrs_padded(arg->name, strnlen(arg->name, VMSRS_NAME_MAX), VMSRS_NAME_MAX))
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
	arg->base = vmsrs_app_base(app);
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
