// SPDX-License-Identifier: GPL-2.0
/*
 * Requests: found by app and tag, made at their first draft.
 */
#include <linux/hash.h>
#include <linux/slab.h>

#include "vmsrs.h"

/* Was the tag given out in this boot? */
bool vmsrs_tag_valid(struct vmsrs_device *dev, u64 tag)
{
	return tag && tag >= dev->config.tag_base && tag < (u64)atomic64_read(&dev->next_tag);
}

/* requests_lock is held. */
struct vmsrs_request *vmsrs_request_find(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_request *request;

	lockdep_assert_held(&app->dev->requests_lock);
	hash_for_each_possible(app->dev->requests, request, node, tag)
		if (request->tag == tag && request->app == app)
			return request;
	return NULL;
}

struct vmsrs_request *vmsrs_request_alloc(struct vmsrs_app *app, u64 tag, gfp_t gfp)
{
	struct vmsrs_request *request = kzalloc(sizeof(*request), gfp);

	if (!request)
		return NULL;
	INIT_LIST_HEAD(&request->domains);
	INIT_LIST_HEAD(&request->failed_entry);
	INIT_LIST_HEAD(&request->suspended_entry);
	INIT_LIST_HEAD(&request->file_entry);
	RB_CLEAR_NODE(&request->due_node);
	request->app = app;
	request->tag = tag;
	return request;
}

/* requests_lock is held. */
void vmsrs_request_add(struct vmsrs_request *request)
{
	lockdep_assert_held(&request->app->dev->requests_lock);
	hash_add(request->app->dev->requests, &request->node, request->tag);
}

/* Adds a request that a thread has begun; `key` is that of its drafts. requests_lock is held. */
void vmsrs_request_begin(struct vmsrs_request *request, struct vmsrs_file *file, u32 key)
{
	request->file = file;
	request->key = key;
	list_add_tail(&request->file_entry, &file->requests);
	vmsrs_request_add(request);
}

/* Takes a request out of the tables. requests_lock is held. */
void vmsrs_request_remove(struct vmsrs_request *request)
{
	lockdep_assert_held(&request->app->dev->requests_lock);
	hash_del(&request->node);
	list_del_init(&request->file_entry);
}

/*
 * Makes the request the owner of a domain that has none; `file` and `key` are for a request that is
 * not known yet. domain->lock is held.
 * -ESTALE: the request has failed.
 */
int vmsrs_request_own_domain(struct vmsrs_domain *domain, struct vmsrs_file *file, u64 tag, u32 key)
{
	struct vmsrs_app *app = domain->app;
	struct vmsrs_request *request, *spare;
	int error = 0;

	lockdep_assert_held(&domain->lock);
	spare = vmsrs_request_alloc(app, tag, GFP_KERNEL_ACCOUNT);
	if (!spare)
		return -ENOMEM;
	spin_lock(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (!request) {
		request = spare;
		spare = NULL;
		vmsrs_request_begin(request, file, key);
	}
	if (request->failed) {
		error = -ESTALE;
	} else {
		list_add_tail(&domain->owned, &request->domains);
		domain->owner = request;
	}
	spin_unlock(&app->dev->requests_lock);
	kfree(spare);
	return error;
}

/*
 * Takes a request's domains, or just one of them, off it, for the caller to empty. commit_lock is
 * held. The domains still name their owner until their lock is taken; a draft that is made before
 * that belongs to what the caller does. Returns the request, NULL if there is none, or -ESTALE if
 * it has failed (and then takes nothing).
 */
struct vmsrs_request *vmsrs_request_take_domains(struct vmsrs_app *app, u64 tag, u32 number,
					 struct list_head *domains)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_request *request;
	struct vmsrs_domain *domain, *next;

	lockdep_assert_held(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (request && request->failed) {
		request = ERR_PTR(-ESTALE);
	} else if (request) {
		list_for_each_entry_safe(domain, next, &request->domains, owned)
			if (number == VMSRS_NONE || domain->number == number)
				list_move_tail(&domain->owned, domains);
	}
	spin_unlock(&dev->requests_lock);
	return request;
}

/*
 * Removes a request that has not failed, is not suspended, and has no drafts left. commit_lock is
 * held.
 */
void vmsrs_request_remove_idle(struct vmsrs_request *request)
{
	struct vmsrs_device *dev = request->app->dev;
	bool idle;

	lockdep_assert_held(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	idle = list_empty(&request->domains) && !request->failed && !request->suspended_by;
	if (idle)
		vmsrs_request_remove(request);
	spin_unlock(&dev->requests_lock);
	if (idle)
		kfree(request);
}

/*
 * Nobody works for the request and nobody set it aside: who carried it has lost its tag (a control
 * block that was overwritten). A tag is carried before the first lock is taken with it, until after
 * the last one is released.
 */
bool vmsrs_request_orphaned(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_request *request;
	bool suspended;

	spin_lock(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	suspended = request && request->suspended_by;
	spin_unlock(&app->dev->requests_lock);
	return !suspended && !vmsrs_thread_carries(app, tag);
}

/* Frees all requests; nobody else uses the device structure any more. */
void vmsrs_requests_free(struct vmsrs_device *dev)
{
	struct vmsrs_request *request;
	struct hlist_node *next;
	int bucket;

	hash_for_each_safe(dev->requests, bucket, next, request, node)
		kfree(request);
}
