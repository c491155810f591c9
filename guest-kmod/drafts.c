// SPDX-License-Identifier: GPL-2.0
/* Drafts: created by a request's first write to a page, committed or discarded with the request. */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vmsrs.h"

static struct kmem_cache *draft_cache;

/**
 * vmsrs_draft_cache_init() - create the slab cache of drafts
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_draft_cache_init(void)
{
	draft_cache = KMEM_CACHE(vmsrs_draft, 0);
	return draft_cache ? 0 : -ENOMEM;
}

/**
 * vmsrs_draft_cache_exit() - destroy the slab cache of drafts
 */
void vmsrs_draft_cache_exit(void)
{
	kmem_cache_destroy(draft_cache);
}

/**
 * vmsrs_draft_alloc() - allocate a draft
 *
 * Return: the draft, not initialised, or NULL.
 */
struct vmsrs_draft *vmsrs_draft_alloc(void)
{
	return kmem_cache_alloc(draft_cache, GFP_KERNEL);
}

/**
 * vmsrs_draft_free() - free a draft
 * @draft: the draft
 */
void vmsrs_draft_free(struct vmsrs_draft *draft)
{
	kmem_cache_free(draft_cache, draft);
}

/**
 * vmsrs_drafts_free() - free all drafts in a list
 * @drafts: the list; empty afterwards
 */
void vmsrs_drafts_free(struct list_head *drafts)
{
	struct vmsrs_draft *draft, *next;

	list_for_each_entry_safe(draft, next, drafts, list) {
		list_del(&draft->list);
		vmsrs_draft_free(draft);
	}
}

/* Unmaps the pages of a domain's drafts, run by run. The domain's lock is held. */
static void zap_drafts(struct vmsrs_app *app, struct list_head *drafts)
{
	struct vmsrs_draft *draft;
	u32 start = 0, end = 0;

	/* They are in the order of the first writes, which mostly goes up or down. */
	list_for_each_entry(draft, drafts, list) {
		if (end != start && draft->page == end) {
			end++;
		} else if (end != start && draft->page + 1 == start) {
			start--;
		} else {
			if (end != start)
				vmsrs_zap_pages(app, start, end - start);
			start = draft->page;
			end = start + 1;
		}
	}
	if (end != start)
		vmsrs_zap_pages(app, start, end - start);
}

/*
 * Most drafts of one request: as many as the host takes in one commit, but at most half of the
 * pool, so that a request that writes without end fails alone.
 */
static int drafts_max(const struct vmsrs_device *dev)
{
	return min_t(u32, VMSRS_COMMIT_PAGES_MAX, dev->config.pool_frames / 2);
}

/* Drafts of the request that writes to the domain. domain->lock is held. */
static int drafts_of(const struct vmsrs_domain *domain, u64 tag)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_request *request;
	int drafts = 0;

	if (domain->owner)
		return atomic_read(&domain->owner->drafts);
	/* It may have some in other domains. */
	spin_lock(&dev->requests_lock);
	request = vmsrs_request_find(domain->app, tag);
	if (request)
		drafts = atomic_read(&request->drafts);
	spin_unlock(&dev->requests_lock);
	return drafts;
}

/**
 * vmsrs_drafts_reserve() - frames that a request must leave to others when it writes to a domain
 * @domain: the domain, locked
 * @tag: tag of the request
 *
 * Several requests with less than drafts_max() drafts each could take the whole pool, and one
 * that wants its first frame would wait until it is failed. So requests with many drafts do not
 * touch the last eighth of the pool.
 */
u32 vmsrs_drafts_reserve(const struct vmsrs_domain *domain, u64 tag)
{
	const struct vmsrs_device *dev = domain->app->dev;
	int many = min_t(int, dev->config.pool_frames / 16, drafts_max(dev) / 2);

	return drafts_of(domain, tag) < many ? 0 : vmsrs_pool_reserve(dev);
}

static void *frame_address(struct vmsrs_device *dev, u32 frame)
{
	return dev->window + ((size_t)frame << PAGE_SHIFT);
}

/**
 * vmsrs_draft_make() - make a draft of a page and add it to the domain's list
 * @domain: the domain, locked
 * @entry: the page
 * @file: file of the writing thread
 * @tag: tag of its request
 * @key: protection key of the request, in case it is new
 * @reserve: frames to leave to others
 * @draft: the draft; its page is filled in, and it is the domain's if this succeeds
 *
 * Return: 0; -EAGAIN: no free frame beyond @reserve; -ESTALE: the request has failed; -EFBIG: it
 * has too many drafts; -EIO: the committed version is lost; -ENOMEM.
 */
int vmsrs_draft_make(struct vmsrs_domain *domain, struct vmsrs_page *entry,
		     struct vmsrs_file *file, u64 tag, u32 key, u32 reserve,
		     struct vmsrs_draft *draft)
{
	struct vmsrs_device *dev = domain->app->dev;
	int error;

	if (entry->frame == VMSRS_DAMAGED_FRAME)
		return -EIO;
	draft->frame = vmsrs_pool_take(dev, reserve);
	if (draft->frame == VMSRS_NONE)
		return -EAGAIN;
	/*
	 * Granted frames are zero already. An access to broken memory ends with a fault, and the
	 * host reports which page that was.
	 */
	if (entry->frame != VMSRS_NONE &&
	    copy_mc_to_kernel(frame_address(dev, draft->frame), frame_address(dev, entry->frame),
			      PAGE_SIZE)) {
		error = -EIO;
		goto put;
	}
	if (!domain->owner) {
		error = vmsrs_request_own_domain(domain, file, tag, key);
		if (error)
			goto put;
	}
	if (atomic_inc_return(&domain->owner->drafts) > drafts_max(dev)) {
		atomic_dec(&domain->owner->drafts);
		error = -EFBIG;
		goto put;
	}
	draft->tag = tag;
	draft->app = domain->app->number;
	draft->domain = domain->number;
	draft->committed = entry->frame;
	draft->entry = entry;
	draft->flags = 0;
	entry->draft = draft->frame;
	list_add_tail(&draft->list, &domain->drafts);
	domain->draft_count++;
	atomic_inc(&dev->drafts);
	return 0;

put:
	/* Frames of the pool are zero, and what was copied belongs to a domain. */
	if (entry->frame != VMSRS_NONE)
		clear_page(frame_address(dev, draft->frame));
	vmsrs_pool_put(dev, draft->frame);
	return error;
}

/**
 * vmsrs_drafts_commit() - make the drafts of a domain its committed versions
 * @domain: the domain, locked
 * @records: list that the drafts are moved to
 */
void vmsrs_drafts_commit(struct vmsrs_domain *domain, struct list_head *records)
{
	struct vmsrs_draft *draft;

	zap_drafts(domain->app, &domain->drafts);
	list_for_each_entry(draft, &domain->drafts, list) {
		draft->entry->frame = draft->frame;
		draft->entry->draft = VMSRS_NONE;
	}
	list_splice_tail_init(&domain->drafts, records);
	domain->draft_count = 0;
	domain->owner = NULL;
}

/**
 * vmsrs_drafts_discard() - drop the drafts of a domain
 * @domain: the domain, in no request's list any more
 * @report: takes over the drafts
 *
 * The next access to their pages maps the committed version.
 */
void vmsrs_drafts_discard(struct vmsrs_domain *domain, struct vmsrs_report *report)
{
	struct vmsrs_draft *draft;

	mutex_lock(&domain->lock);
	zap_drafts(domain->app, &domain->drafts);
	list_for_each_entry(draft, &domain->drafts, list)
		draft->entry->draft = VMSRS_NONE;
	list_splice_tail_init(&domain->drafts, &report->drafts);
	report->count += domain->draft_count;
	domain->draft_count = 0;
	domain->owner = NULL;
	list_del_init(&domain->owned);
	mutex_unlock(&domain->lock);
}

/*
 * Copies the page numbers of the request's drafts, except for the first `skip`; returns how
 * many.
 */
static u32 copy_pages(struct vmsrs_domain *domain, const struct vmsrs_ioctl_drafts *arg, u32 *pages)
{
	struct vmsrs_draft *draft;
	u32 place = 0, count = 0;

	mutex_lock(&domain->lock);
	list_for_each_entry(draft, &domain->drafts, list) {
		/* A domain's drafts are all of one request. */
		if (draft->tag != arg->tag || count == arg->capacity)
			break;
		if (place++ >= arg->skip)
			pages[count++] = draft->page;
	}
	mutex_unlock(&domain->lock);
	return count;
}

/**
 * vmsrs_drafts_list() - list the pages of a domain that a request has drafts of
 * @app: the app
 * @arg: argument of the ioctl, with checked ranges; the tag is the calling thread's
 *
 * The library's audit checks these pages.
 *
 * Return: 0; -EFAULT; -ENOMEM.
 */
long vmsrs_drafts_list(struct vmsrs_app *app, struct vmsrs_ioctl_drafts *arg)
{
	/* Domains live as long as their app. */
	struct vmsrs_domain *domain = xa_load(&app->domains, arg->domain);
	long ret = 0;
	u32 *pages;

	arg->count = 0;
	if (!domain)
		return 0;
	pages = kmalloc_array(arg->capacity, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	/* Copied without the lock, which the page fault handler takes. */
	arg->count = copy_pages(domain, arg, pages);
	if (copy_to_user(u64_to_user_ptr(arg->pages), pages, arg->count * sizeof(*pages)))
		ret = -EFAULT;
	kfree(pages);
	return ret;
}
