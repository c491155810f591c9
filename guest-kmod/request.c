// SPDX-License-Identifier: GPL-2.0
/* The table of requests. A request is added at its first draft, suspension or failure. */
#include <linux/hash.h>
#include <linux/slab.h>
#include <linux/string.h>

#include "vmsrs.h"

/**
 * vmsrs_tag_valid() - tell whether a tag was handed out in this boot
 * @dev: the device
 * @tag: the tag
 */
bool vmsrs_tag_valid(struct vmsrs_device *dev, u64 tag)
{
	return tag && tag >= dev->config.tag_base && tag < (u64)atomic64_read(&dev->next_tag);
}

/**
 * vmsrs_request_find() - find a request; requests_lock is held
 * @app: the app
 * @tag: its tag
 *
 * Return: the request, or NULL.
 */
struct vmsrs_request *vmsrs_request_find(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_request *request;

	lockdep_assert_held(&app->dev->requests_lock);
	hash_for_each_possible(app->dev->requests, request, node, tag)
		if (request->tag == tag && request->app == app)
			return request;
	return NULL;
}

/**
 * vmsrs_request_failed() - tell whether a request has failed
 * @app: the app
 * @tag: tag of the request
 */
bool vmsrs_request_failed(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_request *request;
	bool failed;

	spin_lock(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	failed = request && request->failed;
	spin_unlock(&app->dev->requests_lock);
	return failed;
}

/* All but @held, which is as long as @held_count says. */
static void request_init(struct vmsrs_request *request, struct vmsrs_app *app, u64 tag)
{
	memset(request, 0, offsetof(struct vmsrs_request, held));
	memset_after(request, 0, held);
	INIT_LIST_HEAD(&request->failed_entry);
	INIT_LIST_HEAD(&request->suspended_entry);
	RB_CLEAR_NODE(&request->due_node);
	request->app = app;
	request->tag = tag;
}

/**
 * vmsrs_request_add() - add a request to the table; requests_lock is held
 * @request: memory for the request
 * @app: the app
 * @tag: its tag
 */
void vmsrs_request_add(struct vmsrs_request *request, struct vmsrs_app *app, u64 tag)
{
	lockdep_assert_held(&app->dev->requests_lock);
	request_init(request, app, tag);
	hash_add(app->dev->requests, &request->node, tag);
}

/**
 * vmsrs_request_begin() - add a request that a thread has begun; requests_lock is held
 * @request: memory for the request
 * @file: the thread's file
 * @tag: its tag
 * @key: protection key of its drafts, or 0
 */
void vmsrs_request_begin(struct vmsrs_request *request, struct vmsrs_file *file, u64 tag, u32 key)
{
	vmsrs_request_add(request, file->app, tag);
	request->file = file;
	request->key = key;
	hlist_add_head(&request->file_entry, &file->requests);
}

/**
 * vmsrs_request_remove() - take a request out of the tables; requests_lock is held
 * @request: the request
 */
void vmsrs_request_remove(struct vmsrs_request *request)
{
	lockdep_assert_held(&request->app->dev->requests_lock);
	hash_del(&request->node);
	hlist_del_init(&request->file_entry);
}

/**
 * vmsrs_request_own_domain() - make a request the owner of a domain that has none
 * @domain: the domain, locked
 * @thread: the calling thread
 * @file: its file, in case the request is new
 * @tag: tag of the request
 * @key: protection key of its drafts, in case it is new
 *
 * Return: 0; -ESTALE: the request has failed; -ENOMEM.
 */
int vmsrs_request_own_domain(struct vmsrs_domain *domain, struct vmsrs_thread *thread,
			     struct vmsrs_file *file, u64 tag, u32 key)
{
	struct vmsrs_app *app = domain->app;
	struct vmsrs_request *request;
	int error = 0;

	lockdep_assert_held(&domain->lock);
	/*
	 * The thread has none only after a request that ended in an unusual way, or that another
	 * thread committed.
	 */
	if (!thread->spare)
		thread->spare = kmalloc(sizeof(*thread->spare), GFP_KERNEL_ACCOUNT);
	if (!thread->spare)
		return -ENOMEM;
	spin_lock(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (!request) {
		request = thread->spare;
		thread->spare = NULL;
		vmsrs_request_begin(request, file, tag, key);
	}
	if (request->failed) {
		error = -ESTALE;
	} else {
		hlist_add_head(&domain->owned, &request->domains);
		domain->owner = request;
	}
	spin_unlock(&app->dev->requests_lock);
	return error;
}

static struct mutex *lock_of(struct vmsrs_device *dev, u64 tag)
{
	return &dev->request_locks[hash_64(tag, VMSRS_REQUEST_LOCKS_SHIFT)];
}

/**
 * vmsrs_request_lock() - keep everything else away from a request, except for faults
 * @dev: the device
 * @tag: tag of the request
 *
 * Whatever commits, discards, fails, suspends, resumes or forgets it takes its lock. Others'
 * commits and failures go on: a domain, its drafts and its list belong to one request at a time.
 * Only the removal of the device stops all of them.
 *
 * Return: the request's lock, for vmsrs_request_unlock(); few other requests have the same.
 */
struct mutex *vmsrs_request_lock(struct vmsrs_device *dev, u64 tag)
{
	struct mutex *lock = lock_of(dev, tag);

	down_read(&dev->commit_lock);
	mutex_lock(lock);
	return lock;
}

/**
 * vmsrs_request_unlock() - let a request go
 * @dev: the device
 * @lock: what vmsrs_request_lock() returned
 */
void vmsrs_request_unlock(struct vmsrs_device *dev, struct mutex *lock)
{
	mutex_unlock(lock);
	up_read(&dev->commit_lock);
}

/**
 * vmsrs_request_take_domains() - take a request's domains off it, for the caller to empty
 * @app: the app
 * @tag: tag of the request
 * @number: the one domain to take, or VMSRS_NONE for all
 * @domains: list that they are moved to
 *
 * The domains still name their owner until their lock is taken; a draft made before that belongs
 * to what the caller does. A request that has nothing else to be remembered for is in the table no
 * more: what its other threads write from now on belongs to a new one of the same tag. The
 * request's lock is held.
 *
 * Return: the request; NULL if there is none; ERR_PTR(-ESTALE) if it has failed, and then
 * nothing is taken.
 */
struct vmsrs_request *vmsrs_request_take_domains(struct vmsrs_app *app, u64 tag, u32 number,
						 struct hlist_head *domains)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_request *request;
	struct vmsrs_domain *domain;

	lockdep_assert_held(&dev->commit_lock);
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	if (request && request->failed) {
		request = ERR_PTR(-ESTALE);
	} else if (request && number == VMSRS_NONE) {
		hlist_move_list(&request->domains, domains);
		if (!request->suspended_by)
			vmsrs_request_remove(request);
	} else if (request) {
		hlist_for_each_entry(domain, &request->domains, owned) {
			if (domain->number != number)
				continue;
			hlist_del_init(&domain->owned);
			hlist_add_head(&domain->owned, domains);
			break;
		}
	}
	spin_unlock(&dev->requests_lock);
	return request;
}

/**
 * vmsrs_request_remove_idle() - forget a request that has nothing to be remembered for
 * @request: the request; it stays if it has domains, has failed or is suspended
 *
 * The request's lock is held.
 *
 * Return: the request, which the caller frees or keeps with vmsrs_thread_keep_spare(); NULL if it
 * stays.
 */
struct vmsrs_request *vmsrs_request_remove_idle(struct vmsrs_request *request)
{
	struct vmsrs_device *dev = request->app->dev;
	bool idle;

	lockdep_assert_held(&dev->commit_lock);
	/* Under the request's lock, nothing else removes it. */
	if (hlist_unhashed_lockless(&request->node))
		return request;
	spin_lock(&dev->requests_lock);
	idle = hlist_empty(&request->domains) && !request->failed && !request->suspended_by;
	if (idle)
		vmsrs_request_remove(request);
	spin_unlock(&dev->requests_lock);
	return idle ? request : NULL;
}

/**
 * vmsrs_request_forget() - forget a failed request without domains that no thread carries any more
 * @request: the request, not suspended; requests_lock is held, and commit_lock for reading
 *
 * Return: false if it stays, since something is being done to it.
 */
bool vmsrs_request_forget(struct vmsrs_request *request)
{
	struct mutex *lock = lock_of(request->app->dev, request->tag);

	/* Outside of requests_lock in the order of locks, so it is only tried. */
	if (!mutex_trylock(lock))
		return false;
	vmsrs_request_remove(request);
	mutex_unlock(lock);
	return true;
}

/**
 * vmsrs_request_orphaned() - tell whether no thread works for a request and it is not suspended
 * @app: the app
 * @tag: tag of the request
 *
 * Then the thread that carried it has lost its tag (its control block was overwritten): a tag is
 * carried from before the first lock is taken with it until after the last one is released.
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

/**
 * vmsrs_request_new() - take or allocate memory for a request
 * @dev: the device
 *
 * Return: the memory; never NULL, since the callers cannot fail, and a request is small.
 */
struct vmsrs_request *vmsrs_request_new(struct vmsrs_device *dev)
{
	struct vmsrs_request *request;

	spin_lock(&dev->requests_lock);
	request = list_first_entry_or_null(&dev->spare_requests, struct vmsrs_request, failed_entry);
	if (request) {
		list_del(&request->failed_entry);
		dev->spare_count--;
	}
	spin_unlock(&dev->requests_lock);
	return request ? request : kmalloc(sizeof(*request), GFP_KERNEL | __GFP_NOFAIL);
}

/**
 * vmsrs_requests_forget() - free failed requests, or keep their memory for later ones
 * @dev: the device
 * @requests: the requests, in no table, by failed_entry
 */
void vmsrs_requests_forget(struct vmsrs_device *dev, struct list_head *requests)
{
	struct vmsrs_request *request, *next;

	spin_lock(&dev->requests_lock);
	list_for_each_entry_safe(request, next, requests, failed_entry) {
		if (dev->spare_count == VMSRS_REQUESTS_SPARE)
			break;
		list_move(&request->failed_entry, &dev->spare_requests);
		dev->spare_count++;
	}
	spin_unlock(&dev->requests_lock);
	list_for_each_entry_safe(request, next, requests, failed_entry)
		kfree(request);
}

/**
 * vmsrs_requests_free() - free all requests
 * @dev: the device, which nothing else uses any more
 */
void vmsrs_requests_free(struct vmsrs_device *dev)
{
	struct vmsrs_request *request, *spare;
	struct hlist_node *next;
	int bucket;

	hash_for_each_safe(dev->requests, bucket, next, request, node)
		kfree(request);
	list_for_each_entry_safe(request, spare, &dev->spare_requests, failed_entry)
		kfree(request);
}
