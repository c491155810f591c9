// SPDX-License-Identifier: GPL-2.0
/*
 * Leases: committed versions of pages that a process goes on reading, at addresses of its own, whatever
 * becomes of the pages. Nobody waits for a lease, and requests do not know of it.
 *
 * A version in the pool is kept by a reference to its frame, until it is sealed. One in the vault stays until the host gets a
 * version that replaces it, or its domain's deletion: before the driver sends that, it copies what is leased,
 * and has the leases show the copy.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "compat.h"
#include "vmsrs.h"

#define LEASES_PGOFF		((pgoff_t)(VMSRS_LEASES_OFFSET >> PAGE_SHIFT))
/* Pages that a page fault maps at a time. */
#define MAPPED_AHEAD		64

/* Place of a lease in the files' address space, in pages. */
static pgoff_t lease_pgoff(const struct vmsrs_lease *lease)
{
	return LEASES_PGOFF + (pgoff_t)lease->id * VMSRS_LEASE_PAGES_MAX;
}

/* Unmaps a page of a lease. */
static void unmap(const struct vmsrs_lease *lease, const struct vmsrs_lease_page *page)
{
	loff_t offset = (loff_t)(lease_pgoff(lease) + (page - lease->pages)) << PAGE_SHIFT;

	unmap_mapping_range(lease->dev->inode->i_mapping, offset, PAGE_SIZE, 1);
}

/* Is what a page of a lease shows in a frame of the vault that the host will use for something else? */
static bool in_vault(const struct vmsrs_lease_page *page)
{
	return page->version < VMSRS_IN_POOL && page->version != VMSRS_ZERO_FRAME;
}

/* Has a page of a lease, which is in the vault, show a copy, or nothing if that is NULL. leases_lock is held. */
static void show_copy(struct vmsrs_lease *lease, struct vmsrs_lease_page *page, struct page *copy)
{
	lockdep_assert_held(&lease->dev->leases_lock);
	hash_del(&page->node);
	page->version = VMSRS_DAMAGED_FRAME;
	page->copy = copy;
	if (copy)
		get_page(copy);
	/* A fault that has seen the frame has mapped it by now. */
	unmap(lease, page);
}

/* Copies a frame of the vault. Returns NULL if it cannot be read, or memory is short. */
static struct page *copy_frame(struct vmsrs_device *dev, u32 frame)
{
	struct page *copy = alloc_page(GFP_KERNEL);

	if (copy && vmsrs_copy_page(page_address(copy), vmsrs_frame_address(dev, frame))) {
		__free_page(copy);
		copy = NULL;
	}
	return copy;
}

/* Has all leases of a frame of the vault show one copy of it, or nothing. leases_lock is held. */
static void leave_frame(struct vmsrs_device *dev, u32 frame, bool lost)
{
	struct vmsrs_lease_page *page;
	struct page *copy = NULL;
	struct hlist_node *next;
	bool made = lost;

	hash_for_each_possible_safe(dev->leased, page, next, node, frame) {
		if (page->version != frame)
			continue;
		if (!made)
			copy = copy_frame(dev, frame);
		made = true;
		show_copy(page->lease, page, copy);
	}
	if (copy)
		put_page(copy);
}

/**
 * vmsrs_leases_keep() - copy what is leased of the versions that the host will not have any more
 * @dev: the device; called by the seal work alone
 * @sent: a batch that is about to be sent
 * @count: length of @sent
 * @deletions: struct vmsrs_deletion, by batch_entry: its deletions
 */
void vmsrs_leases_keep(struct vmsrs_device *dev, struct vmsrs_frame *const *sent, u32 count,
		       struct list_head *deletions)
{
	struct vmsrs_deletion *deletion;
	struct vmsrs_lease *lease;
	u32 i;

	/* Whoever leases a version does so before it is replaced, under its domain's lock. */
	if (!READ_ONCE(dev->lease_pages))
		return;
	mutex_lock(&dev->leases_lock);
	for (i = 0; i < count; i++)
		if (sent[i]->replaced < VMSRS_IN_POOL)
			leave_frame(dev, sent[i]->replaced, false);
	list_for_each_entry(deletion, deletions, batch_entry)
		list_for_each_entry(lease, &dev->leases, list)
			for (i = 0; i < lease->count && lease->domain == deletion->domain; i++)
				if (in_vault(&lease->pages[i]))
					leave_frame(dev, lease->pages[i].version, false);
	mutex_unlock(&dev->leases_lock);
}

/*
 * The frame of the vault where the host has just sealed the version in a frame of the pool; VMSRS_NONE if that was not in the
 * batch, or is lost.
 */
static u32 sealed_version(struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	const struct vmsrs_batch *batch = &dev->batch;

	if (frame->batch != batch->number - 1 || frame->place >= batch->sent_count ||
	    batch->sent[frame->place] != frame)
		return VMSRS_NONE;
	/* A loss that is noted after this finds the lease. */
	return frame->sealed == VMSRS_DAMAGED_FRAME || frame->sealed == READ_ONCE(frame->lost) ? VMSRS_NONE :
											    frame->sealed;
}

/**
 * vmsrs_leases_sealed() - have leases show the sealed versions of a batch, so that they do not keep frames of the pool
 * @dev: the device, whose batch was answered; called by the seal work alone, before vmsrs_answer_finish()
 */
void vmsrs_leases_sealed(struct vmsrs_device *dev)
{
	struct vmsrs_lease_page *page;
	struct vmsrs_lease *lease;
	struct vmsrs_frame *frame;
	u32 sealed, i;

	/* One that is just being taken keeps its frames. */
	if (!READ_ONCE(dev->lease_frames))
		return;
	mutex_lock(&dev->leases_lock);
	list_for_each_entry(lease, &dev->leases, list) {
		for (i = 0; i < lease->count; i++) {
			page = &lease->pages[i];
			if (!vmsrs_in_pool(page->version))
				continue;
			frame = vmsrs_pool_frame(dev, page->version);
			sealed = sealed_version(dev, frame);
			if (sealed == VMSRS_NONE)
				continue;
			page->version = sealed;
			hash_add(dev->leased, &page->node, sealed);
			unmap(lease, page);
			WRITE_ONCE(dev->lease_frames, dev->lease_frames - 1);
			vmsrs_pool_put(dev, frame);
		}
	}
	mutex_unlock(&dev->leases_lock);
}

/**
 * vmsrs_leases_lose() - the content of a frame of the vault is lost
 * @dev: the device
 * @frame: the frame
 *
 * Who reads it by a lease gets SIGBUS, and a system call EFAULT.
 */
void vmsrs_leases_lose(struct vmsrs_device *dev, u32 frame)
{
	mutex_lock(&dev->leases_lock);
	leave_frame(dev, frame, true);
	mutex_unlock(&dev->leases_lock);
}

/**
 * vmsrs_lease_new() - make a lease of no page
 * @dev: the device
 * @count: number of pages that it will have
 *
 * Return: the lease, for vmsrs_lease_put(); -ENOSPC: too many pages are leased; -ENOMEM.
 */
struct vmsrs_lease *vmsrs_lease_new(struct vmsrs_device *dev, u32 count)
{
	struct vmsrs_lease *lease;
	int error = -ENOSPC;

	lease = kvzalloc(struct_size(lease, pages, count), GFP_KERNEL_ACCOUNT);
	if (!lease)
		return ERR_PTR(-ENOMEM);
	kref_init(&lease->ref);
	lease->dev = dev;
	lease->taker = current;
	mutex_lock(&dev->leases_lock);
	/* The copies that it may need are not charged to anyone. */
	if (count <= dev->config.pool_frames - min(dev->lease_pages, dev->config.pool_frames))
		error = xa_alloc(&dev->lease_ids, &lease->id, lease,
				 XA_LIMIT(0, VMSRS_LEASES_MAX - 1), GFP_KERNEL_ACCOUNT);
	if (!error) {
		lease->reserved = count;
		WRITE_ONCE(dev->lease_pages, dev->lease_pages + count);
		list_add_tail(&lease->list, &dev->leases);
	}
	mutex_unlock(&dev->leases_lock);
	if (!error)
		return lease;
	kvfree(lease);
	return ERR_PTR(error == -EBUSY ? -ENOSPC : error);
}

/**
 * vmsrs_lease_add() - lease the committed version of one more page
 * @lease: the lease
 * @domain: the page's domain, which is locked
 * @version: the version, as in vmsrs_page.frame; not lost
 *
 * Return: 0; -ENOSPC: too many frames of the pool are leased.
 */
int vmsrs_lease_add(struct vmsrs_lease *lease, struct vmsrs_domain *domain, u32 version)
{
	struct vmsrs_lease_page *page = &lease->pages[lease->count];
	struct vmsrs_device *dev = lease->dev;
	int error = 0;

	lockdep_assert_held(&domain->lock);
	mutex_lock(&dev->leases_lock);
	lease->domain = domain;
	page->lease = lease;
	page->version = version == VMSRS_NONE ? VMSRS_ZERO_FRAME : version;
	if (vmsrs_in_pool(page->version)) {
		/* They are missing to requests. */
		if (dev->lease_frames >= vmsrs_pool_reserve(dev)) {
			error = -ENOSPC;
		} else {
			WRITE_ONCE(dev->lease_frames, dev->lease_frames + 1);
			vmsrs_pool_pin(dev, vmsrs_pool_frame(dev, page->version));
		}
	} else if (in_vault(page)) {
		hash_add(dev->leased, &page->node, page->version);
	}
	lease->count += !error;
	mutex_unlock(&dev->leases_lock);
	return error;
}

static void lease_release(struct kref *ref)
{
	struct vmsrs_lease *lease = container_of(ref, struct vmsrs_lease, ref);
	struct vmsrs_device *dev = lease->dev;
	struct vmsrs_lease_page *page;
	u32 i;

	mutex_lock(&dev->leases_lock);
	list_del(&lease->list);
	xa_erase(&dev->lease_ids, lease->id);
	WRITE_ONCE(dev->lease_pages, dev->lease_pages - lease->reserved);
	for (i = 0; i < lease->count; i++) {
		page = &lease->pages[i];
		if (page->copy) {
			put_page(page->copy);
		} else if (vmsrs_in_pool(page->version)) {
			WRITE_ONCE(dev->lease_frames, dev->lease_frames - 1);
			vmsrs_pool_put(dev, vmsrs_pool_frame(dev, page->version));
		} else if (in_vault(page)) {
			hash_del(&page->node);
		}
	}
	mutex_unlock(&dev->leases_lock);
	kvfree(lease);
}

/**
 * vmsrs_lease_put() - let a lease go
 * @lease: the lease; when the last one lets it go, no entry shows its pages
 */
void vmsrs_lease_put(struct vmsrs_lease *lease)
{
	kref_put(&lease->ref, lease_release);
}

/* Maps a page. leases_lock is held. */
static vm_fault_t map_page(struct vmsrs_lease *lease, struct vm_area_struct *vma, u32 i)
{
	const struct vmsrs_lease_page *page = &lease->pages[i];
	unsigned long pfn;

	if (page->copy)
		pfn = page_to_pfn(page->copy);
	else if (page->version == VMSRS_DAMAGED_FRAME)
		return VM_FAULT_SIGBUS;
	else
		pfn = vmsrs_frame_pfn(lease->dev, page->version);
	return vmf_insert_pfn(vma, vma->vm_start + ((unsigned long)i << PAGE_SHIFT), pfn);
}

static vm_fault_t lease_fault(struct vm_fault *vmf)
{
	struct vmsrs_lease *lease = vmf->vma->vm_private_data;
	u32 i = vmf->pgoff - lease_pgoff(lease), end;
	struct vmsrs_device *dev = lease->dev;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	int index;

	/* Removal waits for this section before it unmaps pool and vault. */
	index = srcu_read_lock(&dev->srcu);
	if (!READ_ONCE(dev->gone) && i < lease->count) {
		/* What a page shows does not change before it is mapped. */
		mutex_lock(&dev->leases_lock);
		ret = map_page(lease, vmf->vma, i);
		end = min(lease->count, i + MAPPED_AHEAD);
		while (ret == VM_FAULT_NOPAGE && ++i < end)
			if (map_page(lease, vmf->vma, i) != VM_FAULT_NOPAGE)
				break;
		mutex_unlock(&dev->leases_lock);
	}
	srcu_read_unlock(&dev->srcu, index);
	return ret;
}

/* mm copies the mapping for mremap(), before that is refused. */
static void lease_open(struct vm_area_struct *vma)
{
	struct vmsrs_lease *lease = vma->vm_private_data;

	kref_get(&lease->ref);
}

/* No entry is left. */
static void lease_close(struct vm_area_struct *vma)
{
	vmsrs_lease_put(vma->vm_private_data);
}

static int lease_mremap(struct vm_area_struct *vma)
{
	return -EINVAL;
}

static int lease_may_split(struct vm_area_struct *vma, unsigned long addr)
{
	return -EINVAL;
}

static const struct vm_operations_struct lease_vm_ops = {
	.fault = lease_fault,
	.open = lease_open,
	.close = lease_close,
	.mremap = lease_mremap,
	.may_split = lease_may_split,
};

/**
 * vmsrs_lease_mmap() - map a lease that the calling thread is just taking
 * @dev: the device
 * @vma: the mapping, at or after VMSRS_LEASES_OFFSET
 *
 * Return: 0 or a negative error.
 */
int vmsrs_lease_mmap(struct vmsrs_device *dev, struct vm_area_struct *vma)
{
	struct vmsrs_lease *lease;
	int error = -EINVAL;

	if (vma->vm_flags & VM_WRITE)
		return -EACCES;
	mutex_lock(&dev->leases_lock);
	lease = xa_load(&dev->lease_ids, (vma->vm_pgoff - LEASES_PGOFF) / VMSRS_LEASE_PAGES_MAX);
	if (lease && lease->taker == current && vma->vm_pgoff == lease_pgoff(lease) &&
	    vma->vm_end - vma->vm_start == (unsigned long)lease->count << PAGE_SHIFT) {
		kref_get(&lease->ref);
		vm_flags_mod(vma, VM_PFNMAP, VM_MAYWRITE);
		vma->vm_ops = &lease_vm_ops;
		vma->vm_private_data = lease;
		lease->taker = NULL;
		error = 0;
	}
	mutex_unlock(&dev->leases_lock);
	return error;
}

/**
 * vmsrs_lease_map() - map a lease in the calling process
 * @lease: the lease, which the calling thread has taken; let go
 * @filp: a file of the app
 *
 * Return: the address, or a negative error.
 */
unsigned long vmsrs_lease_map(struct vmsrs_lease *lease, struct file *filp)
{
	unsigned long address;

	/* munmap() of the caller's other threads may end it any time. */
	address = vm_mmap(filp, 0, (unsigned long)lease->count << PAGE_SHIFT, PROT_READ, MAP_SHARED,
			  lease_pgoff(lease) << PAGE_SHIFT);
	/* Nobody else maps it. */
	mutex_lock(&lease->dev->leases_lock);
	lease->taker = NULL;
	mutex_unlock(&lease->dev->leases_lock);
	vmsrs_lease_put(lease);
	return address;
}

/**
 * vmsrs_leases_init() - there are no leases yet
 * @dev: the device
 */
void vmsrs_leases_init(struct vmsrs_device *dev)
{
	mutex_init(&dev->leases_lock);
	INIT_LIST_HEAD(&dev->leases);
	hash_init(dev->leased);
	xa_init_flags(&dev->lease_ids, XA_FLAGS_ALLOC);
}
