// SPDX-License-Identifier: GPL-2.0
/*
 * Resident pages: what nearly every request in a domain writes stays mapped writable between
 * requests, under a protection key of the domain, which is hot then. It needs no page fault, is not
 * unmapped, and no TLB hears of it.
 *
 * A resident page shows a frame of its own, which is the page's draft but in none of the domain's
 * drafts, and never sealed. Commits compare it with the committed version, and make a new one of a
 * copy where they differ. A request is inside a hot domain while its thread may write with the key,
 * which its PKRU says, and the domain's claim has its tag. Whoever wants to change which pages are
 * resident claims the domain itself.
 *
 * Everything unusual takes the pages back (take_back()): what the request inside has written
 * becomes ordinary drafts, or is dropped.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "vmsrs.h"

/* In a claim: the driver. No tag is that large. */
#define CLAIMED_HERE		S64_MAX
/* Commits in a row that have left a resident page as it was, after which the domain cools. */
#define COOL_AFTER		8

/* Claims a hot domain for the driver unless it has a claim, which is returned, otherwise 0. */
static s64 try_claim(struct vmsrs_resident *resident)
{
	return atomic64_cmpxchg(resident->claim, 0, CLAIMED_HERE);
}

/**
 * vmsrs_resident_claim() - claim a hot domain, whose lock is held, for the driver
 * @resident: its resident pages
 *
 * Return: false if a request is inside.
 */
bool vmsrs_resident_claim(struct vmsrs_resident *resident)
{
	return !try_claim(resident);
}

/* Is that a request's? A stray write can have left anything in a claim. */
static bool claim_valid(struct vmsrs_resident *resident, s64 claim)
{
	return claim != CLAIMED_HERE && vmsrs_tag_valid(resident->domain->app->dev, claim);
}

/*
 * The domain is not hot any more. Frames that differ from the committed version are moved to a row,
 * still the drafts of their pages; the others are put. domain->lock is held.
 */
static void take_back(struct vmsrs_domain *domain, struct vmsrs_frames *changed)
{
	struct vmsrs_resident *resident = vmsrs_domain_resident(domain);
	struct vmsrs_run zap = { .app = domain->app };
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_frames pages = { }, same = { };
	struct vmsrs_frame *frame = resident->pages.first;

	lockdep_assert_held(&domain->lock);
	if (current->mm == resident->mm && frame)
		zap.vma = vmsrs_mapping_get(domain->app, current->mm, frame->page);
	if (current->mm == resident->mm && vmsrs_keys_open(vmsrs_key_mask(resident->key)))
		vmsrs_key_stop_writes(resident->key);
	vmsrs_for_each_frame(frame, &resident->pages)
		vmsrs_zap_add(&zap, frame->entry, frame->page);
	vmsrs_zap_finish(&zap);
	if (zap.vma)
		vmsrs_mapping_put(zap.vma);
	vmsrs_frames_move(&resident->pages, &pages);
	atomic_sub(pages.count, &dev->resident);
	spin_lock(&domain->app->hot_lock);
	vmsrs_hot_list(resident);
	list_del(&resident->list);
	resident->file->residents[resident->key] = NULL;
	/* Before another domain can have the key, and with it the word. */
	atomic64_set_release(resident->claim, 0);
	spin_unlock(&domain->app->hot_lock);
	while ((frame = vmsrs_frames_take(&pages))) {
		frame->resident = false;
		if (vmsrs_draft_is_unchanged(dev, frame)) {
			frame->entry->draft = VMSRS_NO_DRAFT;
			vmsrs_frames_add(&same, frame);
		} else {
			vmsrs_frames_add(changed, frame);
		}
	}
	vmsrs_pool_put_all(dev, &same);
	vmsrs_heat_cooled(domain->heat);
	mmdrop(resident->mm);
	kfree(resident);
}

/**
 * vmsrs_resident_drop() - have a domain not be hot any more; what a request inside has written is
 * dropped
 * @domain: the domain, hot and locked
 */
void vmsrs_resident_drop(struct vmsrs_domain *domain)
{
	struct vmsrs_frames changed = { };
	struct vmsrs_frame *frame;

	take_back(domain, &changed);
	vmsrs_for_each_frame(frame, &changed)
		frame->entry->draft = VMSRS_NO_DRAFT;
	vmsrs_pool_put_all(domain->app->dev, &changed);
}

/*
 * The same for the request that is inside: what it has written becomes drafts of it. Returns 0, or
 * what vmsrs_request_own_domain() returned: nothing has changed then.
 */
static int take_back_written(struct vmsrs_domain *domain, struct vmsrs_thread *thread, u64 tag)
{
	struct vmsrs_frames changed = { };
	int error = 0;

	if (!domain->owner)
		error = vmsrs_request_own_domain(domain, thread, vmsrs_domain_resident(domain)->file, tag,
						 vmsrs_thread_key(thread));
	if (error)
		return error;
	take_back(domain, &changed);
	atomic_add(changed.count, &domain->app->dev->drafts);
	atomic_add(changed.count, &domain->owner->drafts);
	vmsrs_frames_move(&changed, &domain->drafts);
	/* Its thread has written with the domain's key until now. */
	vmsrs_key_open(domain->owner->key);
	return 0;
}

/* Is the request with that tag inside the hot domain, and nobody else? domain->lock is held. */
static bool is_inside(struct vmsrs_domain *domain, u64 tag)
{
	return (u64)atomic64_read(vmsrs_domain_resident(domain)->claim) == tag &&
	       vmsrs_lock_tag(domain->app, domain->number) == tag &&
	       (!domain->owner || domain->owner->tag == tag);
}

/**
 * vmsrs_resident_lock() - lock the hot domain that the calling thread is inside
 * @thread: the thread
 * @tag: tag of its request
 * @lock: the request's lock, which is held
 *
 * Nothing but PKRU says whether there is one.
 *
 * Return: the domain, whose lock the caller releases; NULL; -EOWNERDEAD: another request is inside,
 * too, since a stray write has changed the lock's word, or what this one has written is dropped
 * already.
 */
struct vmsrs_domain *vmsrs_resident_lock(struct vmsrs_thread *thread, u64 tag, struct mutex *lock)
{
	u32 keys = vmsrs_keys_open(thread->hot_keys);
	struct vmsrs_domain *domain = NULL;
	struct vmsrs_resident *resident;

	if (!keys)
		return NULL;
	/* Not by a file: the process may have several. */
	spin_lock(&thread->app->hot_lock);
	list_for_each_entry(resident, &thread->app->residents, list)
		if (resident->mm == current->mm && keys == vmsrs_key_mask(resident->key))
			domain = resident->domain;
	spin_unlock(&thread->app->hot_lock);
	if (!domain)
		return ERR_PTR(-EOWNERDEAD);
	mutex_lock_nest_lock(&domain->lock, lock);
	if (vmsrs_domain_resident(domain) && vmsrs_domain_resident(domain)->mm == current->mm &&
	    keys == vmsrs_key_mask(vmsrs_domain_resident(domain)->key) && is_inside(domain, tag))
		return domain;
	mutex_unlock(&domain->lock);
	return ERR_PTR(-EOWNERDEAD);
}

/*
 * Copies the resident pages that differ from their committed version. Returns false if it cannot.
 */
static bool copy_changed(struct vmsrs_device *dev, struct vmsrs_resident *resident,
			 struct vmsrs_frames *copies)
{
	struct vmsrs_frame *frame, *copy;

	vmsrs_for_each_frame(frame, &resident->pages) {
		if (vmsrs_draft_is_unchanged(dev, frame)) {
			frame->unwritten++;
			continue;
		}
		frame->unwritten = 0;
		copy = vmsrs_pool_take(dev, 0);
		if (!copy)
			return false;
		if (vmsrs_copy_page(vmsrs_frame_address(dev, vmsrs_frame_name(dev, copy)),
				    vmsrs_frame_address(dev, vmsrs_frame_name(dev, frame)))) {
			vmsrs_pool_put_unfilled(dev, copy);
			return false;
		}
		copy->entry = frame->entry;
		vmsrs_frames_add(copies, copy);
	}
	return true;
}

/*
 * Does no entry show a committed version of a resident page? A process that has read one may have
 * the only mapping by now.
 */
static bool are_alone(const struct vmsrs_resident *resident)
{
	const struct vmsrs_frame *frame;

	vmsrs_for_each_frame(frame, &resident->pages)
		if (!frame->alone)
			return false;
	return true;
}

/**
 * vmsrs_resident_prepare() - do what can fail of the commit of resident pages
 * @domain: what vmsrs_resident_lock() returned
 * @thread: the calling thread
 * @tag: tag of its request
 * @copies: row for the new versions
 *
 * If another process has the app open by now or has read the pages, or frames are short, the pages
 * become ordinary drafts.
 *
 * Return: 0; -ESTALE: the request has failed; -ENOMEM.
 */
int vmsrs_resident_prepare(struct vmsrs_domain *domain, struct vmsrs_thread *thread, u64 tag,
			   struct vmsrs_frames *copies)
{
	struct vmsrs_resident *resident = vmsrs_domain_resident(domain);
	struct vmsrs_device *dev = domain->app->dev;

	if (vmsrs_app_is_private(domain->app) && are_alone(resident) &&
	    copy_changed(dev, resident, copies))
		return 0;
	vmsrs_pool_put_all(dev, copies);
	return take_back_written(domain, thread, tag);
}

/* Has pages that many commits have left as they were be ordinary ones. */
static void drop_unwritten(struct vmsrs_domain *domain)
{
	struct vmsrs_resident *resident = vmsrs_domain_resident(domain);
	struct vmsrs_frames pages = { }, dropped = { };
	struct vmsrs_run zap = { .app = domain->app };
	struct vmsrs_frame *frame;
	bool any = false, all = true;

	vmsrs_for_each_frame(frame, &resident->pages) {
		any |= frame->unwritten >= COOL_AFTER;
		all &= frame->unwritten >= COOL_AFTER;
	}
	if (all)
		vmsrs_resident_drop(domain);
	if (all || !any)
		return;
	vmsrs_frames_move(&resident->pages, &pages);
	while ((frame = vmsrs_frames_take(&pages))) {
		if (frame->unwritten < COOL_AFTER) {
			vmsrs_frames_add(&resident->pages, frame);
			continue;
		}
		vmsrs_zap_add(&zap, frame->entry, frame->page);
		frame->entry->draft = VMSRS_NO_DRAFT;
		frame->resident = false;
		vmsrs_frames_add(&dropped, frame);
	}
	vmsrs_zap_finish(&zap);
	atomic_sub(dropped.count, &domain->app->dev->resident);
	vmsrs_pool_put_all(domain->app->dev, &dropped);
	spin_lock(&domain->app->hot_lock);
	vmsrs_hot_list(resident);
	spin_unlock(&domain->app->hot_lock);
}

/**
 * vmsrs_resident_commit() - make copies of resident pages the committed versions
 * @domain: the domain, hot and locked
 * @copies: the copies; none afterwards
 * @records: where they are moved to, for vmsrs_batch_append() under the same lock
 */
void vmsrs_resident_commit(struct vmsrs_domain *domain, struct vmsrs_frames *copies,
			   struct vmsrs_frames *records)
{
	struct vmsrs_device *dev = domain->app->dev;
	struct vmsrs_frame *frame, *copy;

	vmsrs_for_each_frame(copy, copies) {
		frame = &dev->pool.frames[copy->entry->draft];
		copy->domain = domain;
		copy->page = frame->page;
		copy->committed = copy->entry->frame;
		/* Only if that version is lost. */
		copy->replaced = frame->replaced;
		copy->lost = VMSRS_NONE;
		copy->commit = domain->commits;
		copy->streak = VMSRS_STREAK_MAX;
		copy->ahead = VMSRS_AHEAD_NOT;
		copy->sample = false;
		copy->entry->frame = vmsrs_frame_name(dev, copy);
		frame->replaced = VMSRS_NONE;
	}
	if (copies->count)
		vmsrs_heat_paid(domain->heat);
	vmsrs_frames_move(copies, records);
	vmsrs_domain_resident(domain)->used = true;
	drop_unwritten(domain);
	if (vmsrs_domain_resident(domain))
		atomic64_set_release(vmsrs_domain_resident(domain)->claim, 0);
}

/*
 * Is a request that ends inside a hot domain? Its tag may be gone from the claim or from the lock's
 * word, by stray writes. `own`: the calling thread's.
 */
static bool is_of(struct vmsrs_resident *resident, u64 tag, bool own)
{
	s64 claim = atomic64_read(resident->claim);

	if ((u64)claim == tag)
		return true;
	if (claim == CLAIMED_HERE || claim_valid(resident, claim))
		return false;
	return vmsrs_lock_tag(resident->domain->app, resident->domain->number) == tag ||
	       (own && current->mm == resident->mm && vmsrs_keys_open(vmsrs_key_mask(resident->key)));
}

/* A hot domain that a request is inside, or NULL. */
static struct vmsrs_domain *find_of(struct vmsrs_app *app, u64 tag, bool own)
{
	struct vmsrs_domain *domain = NULL;
	struct vmsrs_resident *resident;

	if (list_empty_careful(&app->residents))
		return NULL;
	spin_lock(&app->hot_lock);
	list_for_each_entry(resident, &app->residents, list)
		if (is_of(resident, tag, own))
			domain = resident->domain;
	spin_unlock(&app->hot_lock);
	return domain;
}

/**
 * vmsrs_resident_discard() - drop what a request has written to resident pages
 * @app: the app
 * @tag: tag of the request
 * @own: it is the calling thread's
 * @report: takes over the frames
 *
 * The domains are not hot any more.
 *
 * Return: number of pages, which count as drafts of the device from here on.
 */
u32 vmsrs_resident_discard(struct vmsrs_app *app, u64 tag, bool own, struct vmsrs_report *report)
{
	struct vmsrs_frames changed = { };
	struct vmsrs_domain *domain;
	struct vmsrs_frame *frame;
	u32 count = 0, tries = VMSRS_PROTECTION_KEY_MAX;

	/* A program can change the words meanwhile. */
	while (tries-- && (domain = find_of(app, tag, own))) {
		mutex_lock(&domain->lock);
		if (vmsrs_domain_resident(domain) && is_of(vmsrs_domain_resident(domain), tag, own))
			take_back(domain, &changed);
		vmsrs_for_each_frame(frame, &changed) {
			frame->committed = frame->entry->frame;
			frame->entry->draft = VMSRS_NO_DRAFT;
		}
		if (changed.count)
			vmsrs_pool_pin_committed(app->dev, &changed);
		count += changed.count;
		vmsrs_frames_move(&changed, &report->drafts);
		mutex_unlock(&domain->lock);
	}
	atomic_add(count, &app->dev->drafts);
	return count;
}

/**
 * vmsrs_resident_yield() - let a request write to a domain that it has the lock of, hot or not
 * @domain: the domain, locked
 * @mm: its process's address space
 * @tag: tag of the request
 *
 * Unless it is inside the hot domain, that is not hot any more.
 *
 * Return: false if another request is inside.
 */
bool vmsrs_resident_yield(struct vmsrs_domain *domain, const struct mm_struct *mm, u64 tag)
{
	struct vmsrs_resident *resident = vmsrs_domain_resident(domain);
	s64 claim;

	if (!resident)
		return true;
	claim = atomic64_read(resident->claim);
	if ((u64)claim != tag)
		claim = try_claim(resident);
	if ((u64)claim == tag && resident->mm == mm)
		return true;
	/* One that has died, or lost its tag, is not inside. */
	if (claim && claim_valid(resident, claim) && !vmsrs_request_orphaned(domain->app, claim))
		return false;
	vmsrs_resident_drop(domain);
	return true;
}

/**
 * vmsrs_resident_cool() - have the pages of a domain be ordinary ones
 * @file: the calling thread's file
 * @thread: the calling thread
 * @arg: argument of the ioctl; the tag is the thread's
 *
 * Return: 0; -ESTALE: the request has failed; -EOWNERDEAD: another request is inside; -ENOMEM;
 * -EINVAL.
 */
long vmsrs_resident_cool(struct vmsrs_file *file, struct vmsrs_thread *thread,
			 const struct vmsrs_ioctl_cool *arg)
{
	struct vmsrs_domain *domain = xa_load(&file->app->domains, arg->domain);
	struct vmsrs_device *dev = file->dev;
	struct mutex *lock;
	long ret = 0;

	if (!domain || arg->reserved)
		return -EINVAL;
	lock = vmsrs_request_lock(dev, arg->tag);
	mutex_lock(&domain->lock);
	if (!vmsrs_device_usable(dev))
		ret = -ENODEV;
	else if (vmsrs_lock_tag(file->app, domain->number) != arg->tag)
		ret = -EOWNERDEAD;
	else if (vmsrs_domain_resident(domain) && vmsrs_domain_resident(domain)->mm == current->mm &&
		 is_inside(domain, arg->tag))
		ret = take_back_written(domain, thread, arg->tag);
	else if (!vmsrs_resident_yield(domain, NULL, arg->tag))
		ret = -EOWNERDEAD;
	mutex_unlock(&domain->lock);
	vmsrs_request_unlock(dev, lock);
	return ret;
}

/**
 * vmsrs_residents_drop() - take back the resident pages of a process that is gone
 * @file: its file, which is released
 */
void vmsrs_residents_drop(struct vmsrs_file *file)
{
	struct vmsrs_domain *domain;
	u32 key;

	if (!file->app)
		return;
	down_read(&file->dev->commit_lock);
	for (key = 1; key <= VMSRS_PROTECTION_KEY_MAX; key++) {
		spin_lock(&file->app->hot_lock);
		domain = file->residents[key] ? file->residents[key]->domain : NULL;
		spin_unlock(&file->app->hot_lock);
		if (!domain)
			continue;
		mutex_lock(&domain->lock);
		if (vmsrs_domain_resident(domain) && vmsrs_domain_resident(domain)->file == file)
			vmsrs_resident_drop(domain);
		mutex_unlock(&domain->lock);
	}
	up_read(&file->dev->commit_lock);
}
