// SPDX-License-Identifier: GPL-2.0
/*
 * How a domain becomes hot: pages that each of its last requests has written become resident.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "vmsrs.h"

/* Takes a key from a domain that has not been used since this was asked for the last time. */
static void free_key(struct vmsrs_file *file)
{
	struct vmsrs_domain *domain = NULL;
	struct vmsrs_resident *resident;
	u32 key;

	spin_lock(&file->app->hot_lock);
	for (key = 1; key <= VMSRS_PROTECTION_KEY_MAX; key++) {
		resident = file->residents[key];
		if (resident && !resident->used)
			domain = resident->domain;
		else if (resident)
			resident->used = false;
	}
	spin_unlock(&file->app->hot_lock);
	/* The caller has another domain's lock. */
	if (!domain || !mutex_trylock(&domain->lock))
		return;
	resident = vmsrs_domain_resident(domain);
	if (resident && resident->file == file && vmsrs_resident_claim(resident))
		vmsrs_resident_drop(domain);
	mutex_unlock(&domain->lock);
}

/* Makes a domain hot that has no resident pages yet. Returns NULL if it cannot. */
static struct vmsrs_resident *resident_new(struct vmsrs_domain *domain, struct vmsrs_file *file)
{
	struct vmsrs_resident *resident = NULL;
	int key;

	spin_lock(&file->app->hot_lock);
	key = vmsrs_hot_key(file, domain->number);
	if (key > 0)
		resident = kzalloc(sizeof(*resident), GFP_NOWAIT | __GFP_ACCOUNT | __GFP_NOWARN);
	if (resident) {
		resident->domain = domain;
		resident->file = file;
		resident->key = key;
		resident->used = true;
		resident->claim = vmsrs_hot_claim(file, key, domain->number);
		atomic64_set(resident->claim, 0);
		vmsrs_resident_claim(resident);
		mmgrab(current->mm);
		resident->mm = current->mm;
		file->residents[key] = resident;
		list_add_tail(&resident->list, &file->app->residents);
		vmsrs_hot_tell(file->app, current->mm);
	}
	spin_unlock(&file->app->hot_lock);
	if (resident)
		domain->heat->resident = resident;
	else if (!key)
		free_key(file);
	return resident;
}

/* Is the page of a new version to be resident? */
static bool is_candidate(const struct vmsrs_frame *frame)
{
	return frame->streak == VMSRS_STREAK_MAX && frame->entry->draft == VMSRS_NO_DRAFT;
}

/*
 * Gives a page whose new version has just been committed a frame to be written. Returns false if
 * there is none.
 */
static bool add_page(struct vmsrs_resident *resident, struct vmsrs_frame *version)
{
	struct vmsrs_device *dev = resident->domain->app->dev;
	struct vmsrs_frame *frame;

	if (resident->pages.count == VMSRS_RESIDENT_MAX)
		return false;
	/* Nobody gives them back, so they are a quarter of the pool at most. */
	frame = vmsrs_pool_take(dev, READ_ONCE(dev->pool.usable) / 4 * 3);
	if (!frame)
		return false;
	if (vmsrs_copy_page(vmsrs_frame_address(dev, vmsrs_frame_name(dev, frame)),
			    vmsrs_frame_address(dev, vmsrs_frame_name(dev, version)))) {
		vmsrs_pool_put_unfilled(dev, frame);
		return false;
	}
	vmsrs_draft_init(frame, resident->domain, version->page, version->entry, true);
	frame->ahead = VMSRS_AHEAD_NOT;
	frame->resident = true;
	frame->unwritten = 0;
	vmsrs_frames_add(&resident->pages, frame);
	atomic_inc(&dev->resident);
	return true;
}

/* Has the entries of a domain's new resident pages show their frames. */
static void map_pages(struct vmsrs_resident *resident, struct vm_area_struct *vma)
{
	pgprot_t prot = vmsrs_key_prot(vm_get_page_prot(vma->vm_flags), resident->key);
	struct vmsrs_run zap = { .app = resident->domain->app, .vma = vma };
	struct vmsrs_run run = zap;
	struct vmsrs_frame *frame;

	vmsrs_for_each_frame(frame, &resident->pages)
		vmsrs_zap_add(&zap, frame->entry, frame->page);
	vmsrs_zap_finish(&zap);
	vmsrs_for_each_frame(frame, &resident->pages) {
		if (vmsrs_run_add(&run, frame->entry, frame->page))
			continue;
		/* Where memory is short, there is a page fault. */
		vmsrs_run_map(&run, prot, true);
		vmsrs_run_add(&run, frame->entry, frame->page);
	}
	vmsrs_run_map(&run, prot, true);
}

/**
 * vmsrs_heat_learn() - have pages be resident that the last requests have written
 * @domain: the domain, locked, which a request of one thread has just committed, and no other
 * @file: the calling thread's file
 * @records: the new versions
 */
void vmsrs_heat_learn(struct vmsrs_domain *domain, struct vmsrs_file *file,
		      const struct vmsrs_frames *records)
{
	struct vmsrs_resident *resident = vmsrs_domain_resident(domain);
	struct vmsrs_frame *frame, *first = NULL;
	struct vm_area_struct *vma;

	if (!file->hot_keys || file->hot_mm != current->mm || !vmsrs_app_is_private(domain->app))
		return;
	vmsrs_for_each_frame(frame, records) {
		if (!is_candidate(frame))
			continue;
		first = frame;
		break;
	}
	if (!first) {
		if (domain->heat)
			domain->heat->steady = 0;
		return;
	}
	if (!vmsrs_heat_get(domain))
		return;
	if (resident && (resident->file != file || resident->pages.count == VMSRS_RESIDENT_MAX))
		return;
	if (!resident && !vmsrs_heat_steady(domain->heat))
		return;
	vma = vmsrs_mapping_get(domain->app, current->mm, first->page);
	if (!vma)
		return;
	if (!resident)
		resident = resident_new(domain, file);
	else if (!vmsrs_resident_claim(resident))
		resident = NULL;
	if (resident) {
		vmsrs_for_each_frame(frame, records)
			if (is_candidate(frame) && !add_page(resident, frame))
				break;
	}
	if (resident && !resident->pages.count) {
		/* Frames are short. */
		vmsrs_resident_drop(domain);
	} else if (resident) {
		map_pages(resident, vma);
		spin_lock(&domain->app->hot_lock);
		vmsrs_hot_list(resident);
		spin_unlock(&domain->app->hot_lock);
		atomic64_set_release(resident->claim, 0);
	}
	vmsrs_mapping_put(vma);
}
