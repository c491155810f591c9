// SPDX-License-Identifier: GPL-2.0
/*
 * What the answer to a batch changes: pages show their sealed versions, and the frames of the pool
 * are free.
 *
 * Before a frame is free, its entries are unmapped and all TLBs flushed. The only flush that a
 * module can have is the kernel's when it unmaps entries: of one range, all of which is unmapped.
 * So neighbours are unmapped together, also those of domains that lie next to each other, all of
 * which are locked meanwhile. Pages that stay mapped end such a run.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>

#include "vmsrs.h"

/* Most frames that are taken out of use while their domains are locked. */
#define FRAMES_MAX		256
/* Most domains that are locked at a time: lockdep has room for 48 locks of a task. */
#define DOMAINS_MAX		24
/* Most pages without an entry between two pages of a run. */
#define GAP_MAX			16

/**
 * struct answer - what is done with some domains locked
 * @dev: the device
 * @domains: the domains
 * @count: how many
 * @extent: the extent that was looked at last, or NULL
 * @zap: pages to be unmapped
 * @frames: frames that are free when that is done
 */
struct answer {
	struct vmsrs_device *dev;
	struct vmsrs_domain *domains[DOMAINS_MAX];
	u32 count;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_run zap;
	struct vmsrs_frames frames;
};

/*
 * The frame of the page's committed version if it is in the batch that was sent, or NULL. The
 * page's domain is locked.
 */
static struct vmsrs_frame *sent_version(const struct vmsrs_device *dev,
					const struct vmsrs_page *entry)
{
	struct vmsrs_frame *frame;

	if (!vmsrs_in_pool(entry->frame))
		return NULL;
	frame = vmsrs_pool_frame(dev, entry->frame);
	/*
	 * Neither changes meanwhile: versions enter a batch under their domain's lock, and the
	 * caller sends batches.
	 */
	return frame->batch == dev->batch.number - 1 ? frame : NULL;
}

/* Has the page, whose committed version a frame is, show the sealed one. Its domain is locked. */
static __always_inline void show_sealed(struct vmsrs_device *dev, struct vmsrs_frame *frame,
					struct vmsrs_page *entry)
{
	lockdep_assert_held(&frame->domain->lock);
	entry->frame = frame->sealed;
	/* The host may have found the loss before this, and vmsrs_page_damaged() noted it. */
	if (frame->sealed == frame->lost)
		entry->frame = VMSRS_DAMAGED_FRAME;
	if (entry->frame != VMSRS_DAMAGED_FRAME)
		return;
	WRITE_ONCE(frame->domain->lost, frame->batch);
	if (entry->draft != VMSRS_NO_DRAFT)
		dev->pool.frames[entry->draft].replaced = frame->sealed;
}

/* A newer version has been committed meanwhile: it replaces the sealed one. The domain is locked. */
static void note_sealed(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_page *entry = frame->entry;

	/* Its domain was deleted. */
	if (entry->frame == VMSRS_NONE)
		return;
	if (!WARN_ON_ONCE(!vmsrs_in_pool(entry->frame)))
		vmsrs_pool_frame(dev, entry->frame)->replaced = frame->sealed;
}

/* Is the draft of a page all that entries show? The domain's lock is held. */
static bool shows_draft_only(const struct vmsrs_device *dev, const struct vmsrs_page *entry)
{
	return entry->draft != VMSRS_NO_DRAFT && dev->pool.frames[entry->draft].alone;
}

/* Takes a frame of the batch out of use whose page shows a newer version. */
static void finish_frame(struct answer *answer, struct vmsrs_frame *frame)
{
	struct vmsrs_device *dev = answer->dev;

	dev->batch.sent[frame->place] = NULL;
	if (frame->sealed != VMSRS_DAMAGED_FRAME)
		vmsrs_frames_add(&answer->frames, frame);
	else
		vmsrs_pool_lose(dev, frame);
}

/* Learns whether the page of a frame, which is still mapped, has been read. Its domain is locked. */
static void look_at_sample(const struct answer *answer, const struct vmsrs_frame *frame)
{
	if (vmsrs_run_sees(&answer->zap, frame->page))
		vmsrs_predict_learn(frame->domain, vmsrs_run_accessed(&answer->zap, frame->page));
}

/* Adds pages of the extent, from one up to another, to those to be unmapped. */
static void zap_add(struct answer *answer, u32 start, u32 end)
{
	struct vmsrs_extent_pages *extent = answer->extent;
	struct vmsrs_run *zap = &answer->zap;

	if (!end)
		return;
	if (!zap->count) {
		zap->entries = &extent->entries[start];
		zap->page = extent->page + start;
	}
	zap->count = extent->page + end - zap->page;
}

/*
 * Finishes pages of an extent whose domain is locked, from one on. Returns true if the end of the
 * extent was reached, with nothing but pages that are unmapped.
 */
static bool finish_pages(struct answer *answer, u32 i)
{
	struct vmsrs_extent_pages *extent = answer->extent;
	u32 start = 0, end = 0, gap = 0, count = extent->pages;
	struct vmsrs_frames frames = answer->frames;
	u16 commits = extent->domain->commits;
	struct vmsrs_device *dev = answer->dev;
	struct vmsrs_frame **sent = dev->batch.sent, *frame;
	struct vmsrs_page *entry;

	for (; i < count; i++) {
		entry = &extent->entries[i];
		frame = sent_version(dev, entry);
		if (!frame || frames.count >= FRAMES_MAX) {
			if (frame || entry->mapped || ++gap > GAP_MAX)
				break;
			continue;
		}
		gap = 0;
		sent[frame->place] = NULL;
		if (frame->commit == commits)
			vmsrs_predict_sealed(extent->domain, frame);
		show_sealed(dev, frame, entry);
		if (frame->sealed != VMSRS_DAMAGED_FRAME)
			vmsrs_frames_add(&frames, frame);
		else
			vmsrs_pool_lose(dev, frame);
		if (!entry->mapped)
			continue;
		if (shows_draft_only(dev, entry)) {
			zap_add(answer, start, end);
			vmsrs_zap_finish(&answer->zap);
			end = 0;
			continue;
		}
		if (frame->sample)
			look_at_sample(answer, frame);
		entry->mapped = false;
		if (!end)
			start = i;
		end = i + 1;
	}
	zap_add(answer, start, end);
	answer->frames = frames;
	return i == count;
}

/*
 * Goes on with the extent after the last one, and locks its domain. Returns false if it is not a
 * neighbour or cannot.
 */
static bool lock_next(struct answer *answer)
{
	u32 unit = (answer->extent->page + answer->extent->pages) / VMSRS_EXTENT_UNIT_PAGES;
	struct vmsrs_app *app = answer->zap.app;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	bool locked = false;

	/* An extent whose domain is deleted is not freed before it is found to be that. */
	rcu_read_lock();
	extent = xa_load(&app->units, unit);
	/* Between those of two domains there is a unit that is never used. */
	if (!extent)
		extent = xa_load(&app->units, unit + 1);
	domain = extent ? READ_ONCE(extent->domain) : NULL;
	if (!domain)
		goto unlock;
	locked = domain == answer->domains[answer->count - 1];
	/* Only tried, since commits lock domains in another order. */
	if (!locked && answer->count < DOMAINS_MAX && mutex_trylock(&domain->lock)) {
		locked = extent->domain;
		if (locked)
			answer->domains[answer->count++] = domain;
		else
			mutex_unlock(&domain->lock);
	}
	if (locked)
		answer->extent = extent;
unlock:
	rcu_read_unlock();
	return locked;
}

/* Finishes the page of a frame that is the committed version, with its neighbours. */
static void finish_row(struct answer *answer, struct vmsrs_frame *frame)
{
	struct vmsrs_extent_pages *extent = answer->extent;
	u32 i;

	if (!extent || frame->page - extent->page >= extent->pages)
		extent = xa_load(&answer->zap.app->units, frame->page / VMSRS_EXTENT_UNIT_PAGES);
	answer->extent = extent;
	i = frame->page - extent->page;
	while (i && sent_version(answer->dev, &extent->entries[i - 1]))
		i--;
	vmsrs_zap_finish(&answer->zap);
	while (finish_pages(answer, i) && lock_next(answer))
		i = 0;
}

/*
 * The frame of a page if it is in the batch and not finished yet. The page's domain need not be
 * locked.
 */
static struct vmsrs_frame *unfinished(const struct vmsrs_device *dev,
				      const struct vmsrs_page *entry)
{
	u32 version = READ_ONCE(entry->frame), place;
	struct vmsrs_frame *frame;

	if (!vmsrs_in_pool(version))
		return NULL;
	frame = vmsrs_pool_frame(dev, version);
	place = READ_ONCE(frame->place);
	return place < dev->batch.sent_count && dev->batch.sent[place] == frame ? frame : NULL;
}

/*
 * The frame to begin with, so that as many neighbours as can be finished at a time lie to the right
 * of it. A guess, since domains are not locked. Under RCU: extents of deleted domains may be found.
 */
static struct vmsrs_frame *leftmost(const struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	struct vmsrs_app *app = frame->domain->app;
	u32 unit = frame->page / VMSRS_EXTENT_UNIT_PAGES, extents = 1, frames = 1, gap = 0, i;
	struct vmsrs_extent_pages *extent = xa_load(&app->units, unit);
	struct vmsrs_frame *before;

	if (!extent)
		return frame;
	i = frame->page - extent->page;
	while (frames < FRAMES_MAX) {
		if (!i) {
			unit = extent->page / VMSRS_EXTENT_UNIT_PAGES;
			extent = unit ? xa_load(&app->units, unit - 1) : NULL;
			if (!extent && unit > 1)
				extent = xa_load(&app->units, unit - 2);
			if (!extent || ++extents > DOMAINS_MAX)
				break;
			i = extent->pages;
		}
		before = unfinished(dev, &extent->entries[--i]);
		if (!before && (extent->entries[i].mapped || ++gap > GAP_MAX))
			break;
		if (before) {
			frame = before;
			frames++;
			gap = 0;
		}
	}
	return frame;
}

/* Finishes a frame, with the neighbours of its page. */
static void finish(struct answer *answer, struct vmsrs_frame *frame)
{
	if (sent_version(answer->dev, frame->entry) == frame) {
		finish_row(answer, frame);
	} else {
		note_sealed(answer->dev, frame);
		finish_frame(answer, frame);
	}
}

/*
 * Finishes the first frames of a batch that was sent, as far as they are of one domain, with their
 * neighbours; or neighbours to the left of the first one. Returns how many of them have been dealt
 * with.
 */
static u32 finish_domain(struct vmsrs_device *dev, struct vmsrs_frame *const *sent, u32 count)
{
	struct answer answer = { .dev = dev };
	struct vmsrs_domain *domain;
	struct vmsrs_frame *first;
	struct mm_struct *mm;
	u32 i;

	rcu_read_lock();
	first = leftmost(dev, sent[0]);
	rcu_read_unlock();
	domain = first->domain;
	mm = vmsrs_mapping_mm(domain->app);
	answer.domains[answer.count++] = domain;
	answer.zap.app = domain->app;
	mutex_lock(&domain->lock);
	answer.zap.vma = vmsrs_mapping_get(domain->app, mm, first->page);
	finish(&answer, first);
	for (i = 0; i < count; i++) {
		if (!sent[i])
			continue;
		if (sent[i]->domain != domain || answer.frames.count >= FRAMES_MAX)
			break;
		finish(&answer, sent[i]);
		/* The row may have been too long. */
		if (sent[i])
			break;
	}
	vmsrs_zap_finish(&answer.zap);
	if (answer.zap.vma)
		vmsrs_mapping_put(answer.zap.vma);
	while (answer.count)
		mutex_unlock(&answer.domains[--answer.count]->lock);
	if (mm)
		mmput_async(mm);
	vmsrs_pool_put_all(dev, &answer.frames);
	return i;
}

/**
 * vmsrs_answer_finish() - have pages show the sealed versions of a batch, and free its frames
 * @dev: the device, whose batch was answered; called by the seal work alone
 */
void vmsrs_answer_finish(struct vmsrs_device *dev)
{
	struct vmsrs_frame *const *sent = dev->batch.sent;
	u32 count = dev->batch.sent_count, i;

	for (i = 0; i < count;) {
		if (!sent[i]) {
			i++;
			continue;
		}
		i += finish_domain(dev, sent + i, count - i);
		cond_resched();
	}
}
