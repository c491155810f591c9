// SPDX-License-Identifier: GPL-2.0
/* Drafts: made by a request's first write to a page, committed or discarded with the request. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/mm.h>
#include <linux/ratelimit.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vmsrs.h"

/* Most drafts of one request: half of the pool, so that one that writes without end fails alone. */
static int drafts_max(const struct vmsrs_device *dev)
{
	return dev->config.pool_frames / 2;
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

/* Fills a draft with the committed version, or zeros if there is none. */
static int fill(struct vmsrs_device *dev, const struct vmsrs_page *entry, void *content)
{
	if (entry->frame == VMSRS_NONE)
		return vmsrs_clear_page(content);
	/* The host reports which page it was that cannot be read. */
	return vmsrs_copy_page(content, vmsrs_frame_address(dev, entry->frame));
}

/*
 * Fills a frame as a whole, before anything maps it: it still has what was in it before. One whose
 * own memory is broken is not used any more. Returns 0; -EIO: the committed version is lost, and
 * the frame has been put; -EAGAIN: the frame is broken.
 */
static __always_inline int fill_frame(struct vmsrs_device *dev, const struct vmsrs_page *entry,
				      struct vmsrs_frame *frame)
{
	void *content = vmsrs_frame_address(dev, vmsrs_frame_name(dev, frame));

	return fill(dev, entry, content) ? vmsrs_pool_put_unfilled(dev, frame) : 0;
}

/* Takes a frame and fills it. */
static struct vmsrs_frame *take_filled(struct vmsrs_device *dev, const struct vmsrs_page *entry,
				       u32 reserve)
{
	struct vmsrs_frame *frame;
	int error;

	do {
		frame = vmsrs_pool_take(dev, reserve);
		if (!frame)
			return ERR_PTR(-EAGAIN);
		error = fill_frame(dev, entry, frame);
	} while (error == -EAGAIN);
	return error ? ERR_PTR(error) : frame;
}

/*
 * Decides which of the two becomes the draft: a frame with a copy of the page, or the frame that
 * the page shows. In its place the copy is the committed version then, and the entry need not be
 * zapped: the write makes it writable. domain->lock is held.
 *
 * Not if another process shows it, the host is reading it, or a report names it.
 */
static struct vmsrs_frame *choose_draft(struct vmsrs_domain *domain, struct vmsrs_page *entry,
					struct vmsrs_frame *copy)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_frame *shown;

	if (!entry->mapped || !vmsrs_in_pool(entry->frame) || !vmsrs_app_is_private(domain->app))
		return copy;
	shown = vmsrs_pool_frame(dev, entry->frame);
	/* Further references are taken under the domain's lock. */
	if (READ_ONCE(shown->refs) != 1)
		return copy;
	copy->domain = domain;
	copy->entry = entry;
	copy->page = shown->page;
	copy->committed = shown->committed;
	copy->replaced = shown->replaced;
	copy->lost = shown->lost;
	copy->commit = shown->commit;
	copy->streak = shown->streak;
	copy->sample = false;
	if (!vmsrs_batch_replace(dev, shown, copy))
		return copy;
	entry->frame = vmsrs_frame_name(dev, copy);
	return shown;
}

/*
 * Adds the draft of a page to the domain's, as vmsrs_frame.ahead says: a frame with a copy of the
 * page, or the frame that the copy takes the place of. domain->lock is held.
 */
static __always_inline void add_draft(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry,
				      struct vmsrs_frame *copy, u8 ahead)
{
	struct vmsrs_frame *draft = choose_draft(domain, entry, copy);

	/* The caller zaps what shows the committed version in the only mapping. */
	vmsrs_draft_init(draft, domain, page, entry, vmsrs_app_is_private(domain->app));
	draft->ahead = ahead;
	draft->resident = false;
	vmsrs_frames_add(&domain->drafts, draft);
}

/**
 * vmsrs_draft_make() - make a draft of a page and add it to the domain's
 * @domain: the domain, locked
 * @page: number of the page
 * @entry: the page
 * @thread: the calling thread; this and the next three are not used if the domain has an owner
 * @file: its file
 * @tag: tag of its request
 * @key: protection key of the request, in case it is new
 * @reserve: frames to leave to others
 *
 * Return: 0; -EAGAIN: no free frame beyond @reserve; -ESTALE: the request has failed; -EFBIG: it
 * has too many drafts; -EIO: the committed version is lost; -ENOMEM.
 */
int vmsrs_draft_make(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry,
		     struct vmsrs_thread *thread, struct vmsrs_file *file, u64 tag, u32 key,
		     u32 reserve)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_frame *frame;
	int error;

	if (entry->frame == VMSRS_DAMAGED_FRAME)
		return -EIO;
	frame = take_filled(dev, entry, reserve);
	if (IS_ERR(frame))
		return PTR_ERR(frame);
	if (!domain->owner) {
		error = vmsrs_request_own_domain(domain, thread, file, tag, key);
		if (error)
			goto put;
	}
	if (atomic_inc_return(&domain->owner->drafts) > drafts_max(dev)) {
		atomic_dec(&domain->owner->drafts);
		error = -EFBIG;
		goto put;
	}
	add_draft(domain, page, entry, frame, VMSRS_AHEAD_NOT);
	atomic_inc(&dev->drafts);
	return 0;

put:
	vmsrs_pool_put(dev, frame);
	return error;
}

/**
 * vmsrs_ahead_begin() - take frames for drafts of pages that will probably be written
 * @domain: the domain, with an owner; locked until vmsrs_ahead_end()
 * @count: how many pages
 * @free: row for the frames
 *
 * It must not cost the request or others anything that they will want: frames have to be plenty,
 * and the request far from having too many drafts.
 */
void vmsrs_ahead_begin(struct vmsrs_domain *domain, u32 count, struct vmsrs_frames *free)
{
	struct vmsrs_device *dev = domain->app->dev;
	int room = drafts_max(dev) / 2 - atomic_read(&domain->owner->drafts);

	if (room > 0)
		vmsrs_pool_take_some(dev, min_t(u32, count, room), vmsrs_pool_low_mark(dev), free);
}

/**
 * vmsrs_ahead_make() - make a draft of a page that will probably be written
 * @domain: its domain
 * @page: number of the page
 * @entry: the page, which has no draft
 * @why: VMSRS_AHEAD_HOT or VMSRS_AHEAD_FOLLOWS
 * @free: the frames
 *
 * Return: 0; -EAGAIN: no frame is left; -EIO: the committed version is lost, or the frame is
 * broken.
 */
int vmsrs_ahead_make(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry, u8 why,
		     struct vmsrs_frames *free)
{
	struct vmsrs_frame *frame;

	/* A write to a page whose content is lost is refused when it comes. */
	if (entry->frame == VMSRS_DAMAGED_FRAME)
		return -EIO;
	frame = vmsrs_frames_take(free);
	if (!frame)
		return -EAGAIN;
	if (fill_frame(domain->app->dev, entry, frame))
		return -EIO;
	add_draft(domain, page, entry, frame, why);
	domain->follows += why == VMSRS_AHEAD_FOLLOWS;
	return 0;
}

/**
 * vmsrs_ahead_end() - count the drafts that were made ahead, and put the frames that are left
 * @domain: the domain
 * @made: number of drafts
 * @free: the frames
 */
void vmsrs_ahead_end(struct vmsrs_domain *domain, u32 made, struct vmsrs_frames *free)
{
	struct vmsrs_device *dev = domain->app->dev;

	if (made) {
		domain->ahead = true;
		atomic_add(made, &domain->owner->drafts);
		atomic_add(made, &dev->drafts);
	}
	vmsrs_pool_put_all(dev, free);
}

/* The calling process's mapping of a domain's drafts, for vmsrs_mapping_put(), or NULL. */
static struct vm_area_struct *mapping_of(struct vmsrs_domain *domain)
{
	const struct vmsrs_frame *draft = domain->drafts.first;

	return draft ? vmsrs_mapping_get(domain->app, current->mm, draft->page) : NULL;
}

/* Adds a row of pages to what is unmapped, as vmsrs_zap_add(). */
static void zap_add_row(struct vmsrs_run *zap, struct vmsrs_page *entry, u32 page, u32 count)
{
	if (!vmsrs_run_add_row(zap, entry, page, count)) {
		vmsrs_zap_finish(zap);
		vmsrs_run_add_row(zap, entry, page, count);
	}
}

/*
 * Unmaps the pages of a domain's drafts in every process. If some were made ahead: returns of how
 * many drafts it is not sure that they were written through the calling process's mapping, and
 * notes that in them. The domain's lock is held.
 */
static u32 zap_drafts(struct vmsrs_domain *domain, struct vm_area_struct *vma)
{
	struct vmsrs_run zap = { .app = domain->app, .vma = vma, .note = domain->ahead };
	struct vmsrs_frame *draft = domain->drafts.first, *first;
	struct vmsrs_page *entry;

	while (draft) {
		first = draft;
		/*
		 * Most are neighbours, in this order. The entries of two extents have something
		 * between them.
		 */
		for (entry = draft->entry; draft && draft->entry == entry && entry->mapped; entry++) {
			entry->mapped = false;
			draft = draft->next;
		}
		if (draft != first) {
			zap_add_row(&zap, first->entry, first->page, entry - first->entry);
		} else {
			draft->unsure = true;
			zap.unsure++;
			draft = draft->next;
		}
	}
	vmsrs_zap_finish(&zap);
	return zap.unsure;
}

/* Has a draft the content of a version? */
static bool is_copy(struct vmsrs_device *dev, const struct vmsrs_frame *draft, u32 version)
{
	return vmsrs_same_page(vmsrs_frame_address(dev, vmsrs_frame_name(dev, draft)),
			       vmsrs_frame_address(dev, version));
}

/**
 * vmsrs_draft_is_unchanged() - tell whether a draft has the content of its page's committed version
 * @dev: the device
 * @draft: the draft, whose domain is locked
 */
bool vmsrs_draft_is_unchanged(struct vmsrs_device *dev, const struct vmsrs_frame *draft)
{
	u32 committed = draft->entry->frame;

	/*
	 * Without the device, pool and vault cannot be read. Its removal waits for holders of
	 * commit_lock and for fault handlers, which the callers are.
	 */
	if (committed == VMSRS_DAMAGED_FRAME || READ_ONCE(dev->gone))
		return false;
	if (committed == VMSRS_NONE)
		committed = VMSRS_ZERO_FRAME;
	return is_copy(dev, draft, committed);
}

/*
 * Unmaps the pages of a domain's drafts, and drops those drafts that were made ahead and not
 * written. The domain's lock is held.
 *
 * A dirty entry shows that a page was written. One that is not shows nothing, since the page may
 * have been written later, or through an entry that was zapped. In most requests all that was made
 * ahead has been written: then drafts are not looked at one by one.
 */
static void end_drafts(struct vmsrs_domain *domain, struct vm_area_struct *vma)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_frame **place = &domain->drafts.first, *draft;
	struct vmsrs_frames unwritten = { };
	u32 unsure = zap_drafts(domain, vma), follow = domain->follows;

	unsure = domain->ahead ? unsure : 0;
	domain->ahead = false;
	domain->follows = 0;
	while (unsure && (draft = *place)) {
		if (!draft->unsure || draft->ahead == VMSRS_AHEAD_NOT || !vmsrs_draft_is_unchanged(dev, draft)) {
			place = &draft->next;
			continue;
		}
		follow -= draft->ahead == VMSRS_AHEAD_FOLLOWS;
		*place = draft->next;
		draft->entry->draft = VMSRS_NO_DRAFT;
		vmsrs_frames_add(&unwritten, draft);
		cond_resched();
	}
	vmsrs_predict_end(domain, &unwritten, follow);
	if (!unwritten.count)
		return;
	domain->drafts.last = place == &domain->drafts.first ? NULL :
			      container_of(place, struct vmsrs_frame, next);
	domain->drafts.count -= unwritten.count;
	atomic_sub(unwritten.count, &dev->drafts);
	atomic_sub(unwritten.count, &domain->owner->drafts);
	vmsrs_pool_put_all(dev, &unwritten);
}

/*
 * Maps what has been committed in the calling process, which will probably read it soon. The
 * domain's lock is held.
 */
static void map_committed(struct vmsrs_domain *domain, struct vm_area_struct *vma)
{
	struct vmsrs_run run = {
		.app = domain->app,
		.vma = vma,
		.fresh = vmsrs_predict_sample(domain),
	};
	struct vmsrs_frame *frame;

	vmsrs_for_each_frame(frame, &domain->drafts) {
		if (vmsrs_run_add(&run, frame->entry, frame->page))
			continue;
		/* If memory is short, there is a page fault. */
		vmsrs_run_map(&run, vma->vm_page_prot, false);
		vmsrs_run_add(&run, frame->entry, frame->page);
	}
	vmsrs_run_map(&run, vma->vm_page_prot, false);
}

/* Takes a draft out of a domain, which is locked. */
static void remove_draft(struct vmsrs_domain *domain, const struct vmsrs_frame *draft)
{
	struct vmsrs_frames all = domain->drafts;
	struct vmsrs_frame *frame;

	domain->drafts = (struct vmsrs_frames) { };
	while ((frame = vmsrs_frames_take(&all)))
		if (frame != draft)
			vmsrs_frames_add(&domain->drafts, frame);
}

/**
 * vmsrs_draft_drop_copy() - drop a page's draft if it was made ahead and nobody has written to it
 * @domain: the page's domain, locked
 * @entry: the page
 * @version: vault frame that the draft is a copy of, whose content is lost
 *
 * Otherwise a request that does not touch the page would commit what was wrong with that version.
 * If that cannot be read any more, it could be when the copy was made.
 */
void vmsrs_draft_drop_copy(struct vmsrs_domain *domain, struct vmsrs_page *entry, u32 version)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_run zap = { .app = domain->app };
	struct vmsrs_frame *draft;

	if (entry->draft == VMSRS_NO_DRAFT)
		return;
	draft = &dev->pool.frames[entry->draft];
	if (draft->ahead == VMSRS_AHEAD_NOT)
		return;
	/* From here on, a write waits for the domain's lock. */
	vmsrs_zap_add(&zap, entry, draft->page);
	vmsrs_zap_finish(&zap);
	if (!is_copy(dev, draft, version))
		return;
	domain->follows -= draft->ahead == VMSRS_AHEAD_FOLLOWS;
	entry->draft = VMSRS_NO_DRAFT;
	remove_draft(domain, draft);
	atomic_dec(&domain->owner->drafts);
	atomic_dec(&dev->drafts);
	vmsrs_pool_put(dev, draft);
}

/**
 * vmsrs_drafts_commit() - make the drafts of a domain its committed versions
 * @domain: the domain, locked
 * @records: where the frames are moved to, for vmsrs_batch_append() under the same lock
 */
void vmsrs_drafts_commit(struct vmsrs_domain *domain, struct vmsrs_frames *records)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vm_area_struct *vma = mapping_of(domain);
	struct vmsrs_frame *draft;

	end_drafts(domain, vma);
	domain->commits++;
	vmsrs_for_each_frame(draft, &domain->drafts) {
		draft->committed = draft->entry->frame;
		draft->entry->frame = vmsrs_frame_name(dev, draft);
		draft->entry->draft = VMSRS_NO_DRAFT;
		vmsrs_predict_written(domain, draft);
	}
	if (vma && vmsrs_predict_reads(domain))
		map_committed(domain, vma);
	if (vma)
		vmsrs_mapping_put(vma);
	vmsrs_frames_move(&domain->drafts, records);
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
	struct vmsrs_device *dev = domain->app->dev;
	struct vm_area_struct *vma;
	struct vmsrs_frame *draft;
	struct vmsrs_page *entry;
	u32 committed, all = 0;

	mutex_lock(&domain->lock);
	vma = mapping_of(domain);
	end_drafts(domain, vma);
	if (vma)
		vmsrs_mapping_put(vma);
	vmsrs_for_each_frame(draft, &domain->drafts) {
		entry = draft->entry;
		committed = entry->frame;
		entry->draft = VMSRS_NO_DRAFT;
		draft->committed = committed;
		all |= committed;
	}
	/* Perhaps: it is known exactly of each. */
	if (all & VMSRS_IN_POOL)
		vmsrs_pool_pin_committed(dev, &domain->drafts);
	vmsrs_frames_move(&domain->drafts, &report->drafts);
	domain->owner = NULL;
	hlist_del_init(&domain->owned);
	mutex_unlock(&domain->lock);
}

/*
 * Copies the page numbers of the request's drafts, except for the first `skip`; returns how
 * many.
 */
static u32 copy_pages(struct vmsrs_domain *domain, const struct vmsrs_ioctl_drafts *arg, u32 *pages)
{
	struct vmsrs_frame *draft;
	u32 place = 0, count = 0;

	mutex_lock(&domain->lock);
	vmsrs_for_each_frame(draft, &domain->drafts) {
		/* A domain's drafts are all of its owner. */
		if (domain->owner->tag != arg->tag || count == arg->capacity)
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
