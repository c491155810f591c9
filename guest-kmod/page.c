// SPDX-License-Identifier: GPL-2.0
/*
 * Page faults: which frame a page shows, and which thread may make a draft of it.
 *
 * Page table entries are a cache of the page map: read-only for committed versions, writable for
 * drafts. They are inserted and zapped under the domain's lock.
 */
#include <linux/mm.h>

#include "vmsrs.h"

static u32 fault_page(struct vmsrs_app *app, struct vm_fault *vmf)
{
	return vmf->pgoff - ((pgoff_t)app->number << VMSRS_APP_PAGES_SHIFT);
}

/* Is the draft of a page, which has one, resident? domain->lock is held. */
static bool is_resident(const struct vmsrs_domain *domain, const struct vmsrs_page *entry)
{
	return domain->app->dev->pool.frames[entry->draft].resident;
}

/*
 * Protection key of the entry of a draft: its request's, or if it is resident its domain's. All
 * threads of the process share the page table; the key tells them apart. The CPU refuses a thread
 * whose PKRU has the key closed, and mm ends that fault (SEGV_PKUERR, or EFAULT for a copy by the
 * kernel) without calling the driver. Committed versions have the mapping's own key, 0.
 */
static u32 draft_key(const struct vmsrs_domain *domain, const struct vmsrs_page *entry)
{
	return is_resident(domain, entry) ? vmsrs_domain_resident(domain)->key : domain->owner->key;
}

/* Does the process of a mapping see the draft of a page, which has one? */
static bool sees_draft(const struct vmsrs_domain *domain, const struct vmsrs_page *entry,
		       const struct vm_area_struct *vma)
{
	if (is_resident(domain, entry))
		return vmsrs_domain_resident(domain)->mm == vma->vm_mm;
	/* The file is NULL if the request has failed: then the draft is about to go. */
	return READ_ONCE(domain->owner->file) == vma->vm_file->private_data;
}

/*
 * Protection of an entry that can be written. Not from vm_page_prot, which is for read-only
 * entries, since the driver is told about first writes.
 */
static pgprot_t write_prot(const struct vm_area_struct *vma, u32 key)
{
	return vmsrs_key_prot(vm_get_page_prot(vma->vm_flags), key);
}

/*
 * Maps the draft of the page that was written to, for the calling thread to write. `stale` says
 * that it may have an entry that shows another frame. domain->lock is held.
 */
static vm_fault_t map_writable(struct vmsrs_domain *domain, struct vm_fault *vmf,
			       struct vmsrs_page *entry, u32 page, bool stale)
{
	u32 key = draft_key(domain, entry);
	int error;

	if (stale)
		vmsrs_zap_own(domain->app, vmf->vma, vmf->address);
	error = vmsrs_fault_map(domain->app, vmf, entry, page, write_prot(vmf->vma, key));
	/*
	 * A thread that has written nothing has it closed. Only keys that the program has named get
	 * this far.
	 */
	vmsrs_key_open(key);
	return error ? VM_FAULT_OOM : VM_FAULT_NOPAGE;
}

/* Drops what was noted for an earlier request. Called by the thread itself only. */
static void note_tag(struct vmsrs_thread *thread, u64 tag)
{
	if (thread->noted_tag == tag)
		return;
	thread->noted_tag = tag;
	thread->refused_address = 0;
	thread->frame_due = 0;
}

static vm_fault_t refuse(struct vmsrs_thread *thread, struct vm_fault *vmf, u32 kind)
{
	thread->refused_address = vmf->address;
	thread->refused_kind = kind;
	return kind == VMSRS_KIND_FOREIGN_WRITE ? VM_FAULT_SIGSEGV : VM_FAULT_SIGBUS;
}

/* A read of a page whose content is lost, by a registered thread or by any other. */
static vm_fault_t refuse_damaged(struct vmsrs_app *app, struct vm_fault *vmf)
{
	struct vmsrs_thread *thread = vmsrs_thread_current(app);

	if (thread) {
		note_tag(thread, vmsrs_thread_tag(thread));
		refuse(thread, vmf, VMSRS_KIND_DAMAGED);
		vmsrs_thread_put(thread);
	}
	return VM_FAULT_SIGBUS;
}

/* Maps a version for reading. domain->lock is held. */
static vm_fault_t map_readable(struct vmsrs_app *app, struct vm_fault *vmf,
			       struct vmsrs_page *entry, u32 frame, pgprot_t prot)
{
	entry->mapped = true;
	return vmf_insert_pfn_prot(vmf->vma, vmf->address, vmsrs_frame_pfn(app->dev, frame), prot);
}

/*
 * Every thread may read: the committed version, or zeros; in the process of the request that is
 * writing the page, its draft (under the request's key); in the process that has it resident, what
 * is written there (under the domain's key).
 */
static vm_fault_t page_read(struct vmsrs_app *app, struct vm_fault *vmf)
{
	u32 page = fault_page(app, vmf), frame;
	pgprot_t prot = vmf->vma->vm_page_prot;
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	struct vmsrs_page *entry;
	vm_fault_t ret;

	extent = vmsrs_extent_find(app, page);
	domain = extent ? READ_ONCE(extent->domain) : NULL;
	if (!domain)
		return VM_FAULT_SIGSEGV;
	entry = &extent->entries[page - extent->page];

	mutex_lock(&domain->lock);
	if (!extent->domain) {
		mutex_unlock(&domain->lock);
		return VM_FAULT_SIGSEGV;
	}
	frame = entry->frame == VMSRS_NONE ? VMSRS_ZERO_FRAME : entry->frame;
	if (entry->draft != VMSRS_NO_DRAFT && sees_draft(domain, entry, vmf->vma)) {
		frame = entry->draft | VMSRS_IN_POOL;
		prot = is_resident(domain, entry) ? write_prot(vmf->vma, draft_key(domain, entry)) :
						    vmsrs_key_prot(prot, draft_key(domain, entry));
	} else if (entry->draft != VMSRS_NO_DRAFT) {
		app->dev->pool.frames[entry->draft].alone = false;
	} else if (vmsrs_in_pool(frame) && vmsrs_app_is_private(app)) {
		vmsrs_predict_learn(domain, true);
	}
	if (frame == VMSRS_DAMAGED_FRAME)
		ret = VM_FAULT_SIGBUS;
	else
		ret = map_readable(app, vmf, entry, frame, prot);
	mutex_unlock(&domain->lock);
	return frame == VMSRS_DAMAGED_FRAME ? refuse_damaged(app, vmf) : ret;
}

/* May the request write to the domain? domain->lock is held. */
static bool may_write(struct vmsrs_domain *domain, u64 tag)
{
	if (vmsrs_lock_tag(domain->app, domain->number) != tag)
		return false;
	return !domain->owner ||
	       (domain->owner->tag == tag && !READ_ONCE(domain->owner->failed));
}

/*
 * Maps drafts for the calling process, some of whose entries show other frames: those in `zap` go
 * first.
 */
static void map_drafts(struct vmsrs_run *zap, struct vmsrs_run *run, pgprot_t prot)
{
	vmsrs_zap_own_run(zap);
	/* Where memory is short, there is a page fault. */
	vmsrs_run_map(run, prot, true);
}

/*
 * Makes drafts of what is predicted, as long as frames are plenty, and maps them. domain->lock is
 * held.
 */
static noinline void draft_predicted(struct vmsrs_extent_pages *extent, struct vmsrs_thread *thread,
				     struct vm_fault *vmf, const struct vmsrs_prediction *prediction)
{
	struct vmsrs_domain *domain = extent->domain;
	struct vmsrs_app *app = domain->app;
	u32 hot = prediction->hot_count, count = hot + prediction->following_count;
	struct vmsrs_run zap = { .app = app, .vma = vmf->vma }, run = zap;
	u32 fault = fault_page(app, vmf), page, version, made = 0, i;
	pgprot_t prot = write_prot(vmf->vma, domain->owner->key);
	struct vmsrs_frames free = { };
	struct vmsrs_page *entry;
	unsigned long address;
	bool mapped;
	int error;

	vmsrs_ahead_begin(domain, count, &free);
	for (i = 0; i < count; i++) {
		page = i < hot ? prediction->hot[i] : prediction->following + (i - hot);
		address = (vmf->address & PAGE_MASK) + ((long)page - fault) * PAGE_SIZE;
		if (address < vmf->vma->vm_start || address >= vmf->vma->vm_end)
			continue;
		if (page - extent->page >= extent->pages)
			extent = vmsrs_extent_find(app, page);
		entry = &extent->entries[page - extent->page];
		if (entry->draft != VMSRS_NO_DRAFT)
			continue;
		version = entry->frame;
		mapped = entry->mapped;
		error = vmsrs_ahead_make(domain, page, entry,
					 i < hot ? VMSRS_AHEAD_HOT : VMSRS_AHEAD_FOLLOWS, &free);
		if (error == -EIO)
			continue;
		if (error)
			break;
		made++;
		vmsrs_thread_note_written(thread, domain->owner->tag, page);
		if (!vmsrs_run_add(&run, entry, page)) {
			map_drafts(&zap, &run, prot);
			vmsrs_run_add(&run, entry, page);
		}
		if (mapped && version != (entry->draft | VMSRS_IN_POOL) && !vmsrs_run_add(&zap, entry, page)) {
			vmsrs_zap_own_run(&zap);
			vmsrs_run_add(&zap, entry, page);
		}
	}
	map_drafts(&zap, &run, prot);
	vmsrs_ahead_end(domain, made, &free);
}

/* Makes drafts of the pages that the request is likely to write to next. domain->lock is held. */
static void draft_ahead(struct vmsrs_extent_pages *extent, struct vmsrs_thread *thread,
			struct vm_fault *vmf, bool first)
{
	struct vmsrs_domain *domain = extent->domain;
	struct vmsrs_prediction prediction;

	if (vmsrs_predict(domain, extent, fault_page(domain->app, vmf), first, &prediction))
		draft_predicted(extent, thread, vmf, &prediction);
}

/* Does the entry that a write fault has found show a version in the pool? */
static bool shows(struct vmsrs_app *app, const struct vm_fault *vmf, u32 version)
{
	return pte_pfn(vmf->orig_pte) == vmsrs_frame_pfn(app->dev, version);
}

/* The extent of a page, or NULL. Most pages are of the one that the thread has written to last. */
static struct vmsrs_extent_pages *extent_of(struct vmsrs_thread *thread, u32 page)
{
	struct vmsrs_extent_pages *extent = thread->extent;
	/* Pairs with vmsrs_deletion_add(): one that was found before may be freed. */
	u64 deletions = smp_load_acquire(&thread->app->deletions);

	if (!extent || thread->deletions != deletions || page < extent->page || page - extent->page >= extent->pages) {
		extent = vmsrs_extent_find(thread->app, page);
		thread->extent = extent;
		thread->deletions = deletions;
	}
	return extent;
}

/*
 * A write by a registered thread. `mapped` says that the page has a read-only entry
 * (.pfn_mkwrite): then mm makes that very entry writable unless the answer is an error or
 * VM_FAULT_NOPAGE, so VM_FAULT_RETRY cannot be used.
 */
static vm_fault_t thread_write(struct vmsrs_app *app, struct vmsrs_thread *thread,
			       struct vm_fault *vmf, bool mapped)
{
	struct vmsrs_file *file = vmf->vma->vm_file->private_data;
	u32 page = fault_page(app, vmf);
	struct vmsrs_extent_pages *extent;
	struct vmsrs_domain *domain;
	struct vmsrs_page *entry;
	vm_fault_t ret;
	u32 key, shown, reserve = 0;
	bool first = false, stale;
	u64 tag;
	int error;

	tag = vmsrs_thread_tag(thread);
	key = vmsrs_thread_key(thread);
	note_tag(thread, tag);
	extent = extent_of(thread, page);
	domain = extent ? READ_ONCE(extent->domain) : NULL;
	if (!domain)
		return refuse(thread, vmf, VMSRS_KIND_FOREIGN_WRITE);
	entry = &extent->entries[page - extent->page];
	if (!vmsrs_tag_valid(app->dev, tag) || vmsrs_thread_writes_over(thread))
		return refuse(thread, vmf, VMSRS_KIND_FOREIGN_WRITE);

	for (;;) {
		mutex_lock(&domain->lock);
		if (!extent->domain || !may_write(domain, tag) ||
		    !vmsrs_resident_yield(domain, vmf->vma->vm_mm, tag)) {
			error = -ESTALE;
		} else if (entry->draft != VMSRS_NO_DRAFT) {
			/* Made by another member, or mapped for reading since. */
			error = -EEXIST;
			stale = mapped && !shows(app, vmf, entry->draft | VMSRS_IN_POOL);
		} else {
			first = !domain->owner;
			stale = entry->mapped;
			shown = entry->frame;
			reserve = vmsrs_drafts_reserve(domain, tag);
			error = vmsrs_draft_make(domain, page, entry, thread, file, tag, key,
						 reserve);
			/* Not in place, but beside what entries show. */
			stale = stale && shown != (entry->draft | VMSRS_IN_POOL);
		}
		if (!error || error == -EEXIST) {
			ret = map_writable(domain, vmf, entry, page, stale);
			if (!error)
				draft_ahead(extent, thread, vmf, first);
		} else if (error == -EAGAIN && mapped) {
			/* The instruction faults again, without an entry, and may wait then. */
			vmsrs_zap_own(app, vmf->vma, vmf->address);
			ret = VM_FAULT_NOPAGE;
		}
		mutex_unlock(&domain->lock);
		if (error != -EAGAIN)
			break;
		if (mapped)
			return ret;
		ret = vmsrs_pool_wait(app->dev, thread, vmf, reserve);
		if (ret)
			return ret;
		if (!vmsrs_device_usable(app->dev))
			return VM_FAULT_SIGBUS;
	}

	switch (error) {
	case 0:
		atomic64_inc(&app->dev->write_faults);
		thread->frame_due = 0;
		vmsrs_thread_note_written(thread, tag, page);
		return ret;
	case -EEXIST:
		/* A wait for a frame is over as well: the next one gets its full time. */
		thread->frame_due = 0;
		return ret;
	case -ENOMEM:
		return VM_FAULT_OOM;
	case -EFBIG:
		return refuse(thread, vmf, VMSRS_KIND_NO_FRAMES);
	case -EIO:
		return refuse(thread, vmf, VMSRS_KIND_DAMAGED);
	default:
		return refuse(thread, vmf, VMSRS_KIND_FOREIGN_WRITE);
	}
}

/*
 * A write by the current task: a thread of the process, or the kernel on its behalf (a copy to
 * user memory, which ends with EFAULT). A kernel thread that borrowed the mm is not registered.
 */
static vm_fault_t page_write(struct vmsrs_app *app, struct vm_fault *vmf, bool mapped)
{
	struct vmsrs_thread *thread;
	vm_fault_t ret;

	if (vmsrs_device_broken(app->dev))
		return VM_FAULT_SIGBUS;
	thread = vmsrs_thread_current(app);
	if (!thread)
		return VM_FAULT_SIGSEGV;
	ret = thread_write(app, thread, vmf, mapped);
	vmsrs_thread_put(thread);
	return ret;
}

static vm_fault_t page_access(struct vm_fault *vmf, bool write, bool mapped)
{
	struct vmsrs_app *app = vmf->vma->vm_private_data;
	struct vmsrs_device *dev = app->dev;
	vm_fault_t ret;
	int index;

	/* Removal waits for this section before it unmaps pool and vault. */
	index = srcu_read_lock(&dev->srcu);
	if (READ_ONCE(dev->gone))
		ret = VM_FAULT_SIGBUS;
	else if (write)
		ret = page_write(app, vmf, mapped);
	else
		ret = page_read(app, vmf);
	srcu_read_unlock(&dev->srcu, index);
	return ret;
}

static vm_fault_t page_fault(struct vm_fault *vmf)
{
	return page_access(vmf, vmf->flags & FAULT_FLAG_WRITE, false);
}

/* First write to a page that is mapped read-only. */
static vm_fault_t page_pfn_mkwrite(struct vm_fault *vmf)
{
	return page_access(vmf, true, true);
}

/*
 * mm copies the mapping for mremap(), before page_mremap() refuses that, and closes the copy then.
 */
static void page_open(struct vm_area_struct *vma)
{
	vmsrs_mapping_opened(vma->vm_private_data, vma->vm_mm);
}

/* The mapping is gone. It was never divided. */
static void page_close(struct vm_area_struct *vma)
{
	vmsrs_mapping_closed(vma->vm_private_data);
}

/* The addresses are fixed: the pages contain pointers. */
static int page_mremap(struct vm_area_struct *vma)
{
	return -EINVAL;
}

/*
 * No part of the mapping can be unmapped or protected by itself (munmap, mprotect, mmap with
 * MAP_FIXED): a request with a wrong address would do that to others.
 */
static int page_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	return -EINVAL;
}

const struct vm_operations_struct vmsrs_page_vm_ops = {
	.fault = page_fault,
	.pfn_mkwrite = page_pfn_mkwrite,
	.open = page_open,
	.close = page_close,
	.mremap = page_mremap,
	.may_split = page_may_split,
};

/* Notes in an entry that the version in a vault frame is lost. The domain's lock is held. */
static void note_lost(struct vmsrs_domain *domain, struct vmsrs_page *entry, u32 frame)
{
	struct vmsrs_device *dev = domain->app->dev;

	if (vmsrs_in_pool(entry->frame)) {
		/* If that is where the host has sealed it, the answer has not been read yet. */
		if (vmsrs_batch_sent(dev, vmsrs_pool_frame(dev, entry->frame)))
			vmsrs_pool_frame(dev, entry->frame)->lost = frame;
	} else if (entry->frame == frame) {
		entry->frame = VMSRS_DAMAGED_FRAME;
		/*
		 * A draft that is committed replaces the lost version, unless nobody has written to
		 * it.
		 */
		vmsrs_draft_drop_copy(domain, entry, frame);
		if (entry->draft != VMSRS_NO_DRAFT)
			dev->pool.frames[entry->draft].replaced = frame;
	}
}

/*
 * Has the host lost the sealed version of a page? If it does not say, it has. The app's lock is
 * held.
 */
static bool host_lost(const struct vmsrs_domain *domain, u32 page)
{
	struct vmsrs_list_domain request = {
		.app = domain->app->number,
		.domain = domain->number,
		.first = page,
		.limit = 1,
	};
	struct {
		struct vmsrs_list_reply list;
		struct vmsrs_page_frame sealed;
	} reply;
	int error;

	error = vmsrs_control_call(domain->app->dev, VMSRS_MESSAGE_LIST_PAGES, &request,
				   sizeof(request), &reply, sizeof(reply));
	return error || (reply.sealed.page == page && reply.sealed.frame == VMSRS_DAMAGED_FRAME);
}

/*
 * Locks a page's domain and tells whether the host has lost the page's sealed version.
 *
 * An event may be late. The page may have been sealed twice since then, and be in the frame again
 * that the event names, with good content. So the host is asked, again if a batch has been sealed
 * meanwhile. The app's lock is held.
 */
static bool lock_lost(struct vmsrs_domain *domain, u32 page)
{
	struct vmsrs_device *dev = domain->app->dev;
	u32 before, now, tries = 0;
	bool lost;

	for (;;) {
		vmsrs_batch_last(dev, &before);
		lost = host_lost(domain, page);
		mutex_lock(&domain->lock);
		vmsrs_batch_last(dev, &now);
		/* To refuse a good page is better than to show a lost one. */
		if (now == before || ++tries == VMSRS_LOST_TRIES)
			return lost;
		mutex_unlock(&domain->lock);
	}
}

/**
 * vmsrs_page_damaged() - handle the loss of a page's committed version: refuse all access to it
 * @dev: the device
 * @address: address of the page, unchecked
 * @frame: vault frame with the lost version; a version that has superseded it is not affected
 */
void vmsrs_page_damaged(struct vmsrs_device *dev, u64 address, u32 frame)
{
	struct vmsrs_extent_pages *extent;
	struct vmsrs_page *entry;
	struct vmsrs_run zap = { };
	struct vmsrs_app *app;
	u64 offset;
	u32 page;

	offset = address - VMSRS_APP_BASE;
	if (address < VMSRS_APP_BASE || offset >> VMSRS_APP_OFFSET_SHIFT >= VMSRS_MAX_APPS)
		return;
	mutex_lock(&dev->apps_lock);
	app = dev->apps[offset >> VMSRS_APP_OFFSET_SHIFT];
	mutex_unlock(&dev->apps_lock);
	if (!app)
		return;
	zap.app = app;
	page = (offset >> PAGE_SHIFT) & (VMSRS_APP_PAGES - 1);
	/* Waits for a fetch of the domain, which may have got the state before the loss. */
	mutex_lock(&app->lock);
	extent = vmsrs_extent_find(app, page);
	if (extent) {
		entry = &extent->entries[page - extent->page];
		if (lock_lost(extent->domain, page)) {
			note_lost(extent->domain, entry, frame);
			vmsrs_leases_lose(dev, frame);
		}
		if (entry->frame == VMSRS_DAMAGED_FRAME)
			vmsrs_zap_add(&zap, entry, page);
		vmsrs_zap_finish(&zap);
		mutex_unlock(&extent->domain->lock);
	}
	mutex_unlock(&app->lock);
}
