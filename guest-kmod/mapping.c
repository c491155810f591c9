// SPDX-License-Identifier: GPL-2.0
/*
 * The address space that all open files share, through an inode of the driver's own: one call
 * zaps a page in every process, whichever device node was opened.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mount.h>
#include <linux/pagemap.h>
#include <linux/pseudo_fs.h>

#include "vmsrs.h"

#define VMSRS_FS_MAGIC 0x56535253

static struct vfsmount *vmsrs_mount;
static int vmsrs_mount_count;

static int vmsrs_fs_init_context(struct fs_context *context)
{
	return init_pseudo(context, VMSRS_FS_MAGIC) ? 0 : -ENOMEM;
}

/*
 * Without .owner: otherwise the mount would keep the module from being unloaded as long as there
 * is a device. The mount is gone before the module is, since open files hold the module.
 */
static struct file_system_type vmsrs_fs_type = {
	.name = "vmsrs",
	.init_fs_context = vmsrs_fs_init_context,
	.kill_sb = kill_anon_super,
};

/**
 * vmsrs_inode_new() - create the inode
 *
 * Return: the inode, or an ERR_PTR().
 */
struct inode *vmsrs_inode_new(void)
{
	struct inode *inode;
	int error;

	error = simple_pin_fs(&vmsrs_fs_type, &vmsrs_mount, &vmsrs_mount_count);
	if (error)
		return ERR_PTR(error);
	inode = alloc_anon_inode(vmsrs_mount->mnt_sb);
	if (IS_ERR(inode))
		simple_release_fs(&vmsrs_mount, &vmsrs_mount_count);
	return inode;
}

/**
 * vmsrs_inode_free() - free the inode
 * @inode: the inode
 */
void vmsrs_inode_free(struct inode *inode)
{
	iput(inode);
	simple_release_fs(&vmsrs_mount, &vmsrs_mount_count);
}

static unsigned long page_address_of(const struct vmsrs_app *app, u32 page)
{
	return VMSRS_APP_BASE + ((unsigned long)app->number << VMSRS_APP_OFFSET_SHIFT) +
	       ((unsigned long)page << PAGE_SHIFT);
}

/* Unmaps pages of an app in every process. */
static void zap_pages(struct vmsrs_app *app, u32 page, u32 count)
{
	loff_t offset = ((loff_t)app->number << VMSRS_APP_OFFSET_SHIFT) +
			((loff_t)page << PAGE_SHIFT);

	atomic64_inc(&app->dev->zaps);
	unmap_mapping_range(app->dev->inode->i_mapping, offset, (loff_t)count << PAGE_SHIFT, 1);
}

/**
 * vmsrs_zap_add() - unmap a page of an app in every process, with its neighbours in one call
 * @zap: what is to be unmapped; empty at first, except for the app
 * @entry: the page; its domain's lock is held until vmsrs_zap_finish()
 * @page: number of the page
 *
 * Nothing is sure to be unmapped before vmsrs_zap_finish().
 */
void vmsrs_zap_add(struct vmsrs_run *zap, struct vmsrs_page *entry, u32 page)
{
	if (!entry->mapped)
		return;
	entry->mapped = false;
	if (!vmsrs_run_add(zap, entry, page)) {
		vmsrs_zap_finish(zap);
		vmsrs_run_add(zap, entry, page);
	}
}

/**
 * vmsrs_zap_finish() - unmap the pages that were added last
 * @zap: what is to be unmapped; empty afterwards
 */
void vmsrs_zap_finish(struct vmsrs_run *zap)
{
	const struct vm_area_struct *vma = zap->vma;
	unsigned long start = page_address_of(zap->app, zap->page);
	unsigned long length = (unsigned long)zap->count << PAGE_SHIFT;

	if (!zap->count)
		return;
	if (vma && vmsrs_app_is_private(zap->app) && start >= vma->vm_start &&
	    start + length <= vma->vm_end) {
		atomic64_inc(&zap->app->dev->zaps);
		zap_vma_ptes(zap->vma, start, length);
	} else {
		zap_pages(zap->app, zap->page, zap->count);
	}
	zap->count = 0;
}

/**
 * vmsrs_zap_all() - unmap the pages of all apps in every process
 * @dev: the device
 */
void vmsrs_zap_all(struct vmsrs_device *dev)
{
	unmap_mapping_range(dev->inode->i_mapping, 0,
			    (loff_t)VMSRS_MAX_APPS << VMSRS_APP_OFFSET_SHIFT, 1);
}

/**
 * vmsrs_zap_own() - unmap a page in the mapping in which it has been written to
 * @app: the app
 * @vma: the mapping; mm's lock for the fault is held
 * @address: address of the page
 *
 * Entries of other processes show the committed version, and go on showing it while a draft is
 * made here.
 */
void vmsrs_zap_own(struct vmsrs_app *app, struct vm_area_struct *vma, unsigned long address)
{
	atomic64_inc(&app->dev->zaps);
	zap_vma_ptes(vma, address, PAGE_SIZE);
}

/**
 * vmsrs_mapping_get() - find the calling process's mapping of a page of an app
 * @app: the app
 * @page: the page
 *
 * Does not wait for mmap_lock, so it may be called with locks that nest inside of it.
 *
 * Return: the mapping, for vmsrs_mapping_put(), or NULL if there is none or it is being changed.
 */
struct vm_area_struct *vmsrs_mapping_get(struct vmsrs_app *app, u32 page)
{
	unsigned long address = page_address_of(app, page);
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	pgoff_t offset;

	if (!mm || !mmap_read_trylock(mm))
		return NULL;
	/*
	 * Not from a note of ours: munmap() frees page tables with the lock held for reading, but only
	 * after the mapping cannot be found here any more.
	 */
	vma = vma_lookup(mm, address);
	offset = ((pgoff_t)app->number << VMSRS_APP_PAGES_SHIFT) + page;
	if (vma && vma->vm_file && vma->vm_file->f_mapping == app->dev->inode->i_mapping &&
	    linear_page_index(vma, address) == offset && vma->vm_flags & VM_READ)
		return vma;
	mmap_read_unlock(mm);
	return NULL;
}

/**
 * vmsrs_mapping_put() - let a mapping go
 * @vma: what vmsrs_mapping_get() returned, not NULL
 */
void vmsrs_mapping_put(struct vm_area_struct *vma)
{
	mmap_read_unlock(vma->vm_mm);
}

/* What the functions for single entries need. */
struct walk {
	struct vmsrs_device *dev;
	struct mm_struct *mm;
	struct vmsrs_run *run;
	pgprot_t prot;
	bool drafts;
};

/* Cuts off what lies outside of the mapping; false if nothing is left. */
static bool clip(struct vmsrs_run *run)
{
	const struct vm_area_struct *vma = run->vma;
	unsigned long start = page_address_of(run->app, run->page);
	u32 cut;

	if (!run->count)
		return false;
	if (start < vma->vm_start) {
		cut = min_t(unsigned long, (vma->vm_start - start) >> PAGE_SHIFT, run->count);
		run->entries += cut;
		run->page += cut;
		run->count -= cut;
		start += (unsigned long)cut << PAGE_SHIFT;
	}
	if (start >= vma->vm_end)
		return false;
	run->count = min_t(unsigned long, run->count, (vma->vm_end - start) >> PAGE_SHIFT);
	return run->count;
}

/* The page table for an address, if there is one. mmap_lock is held and the mapping exists, so it stays. */
static pmd_t *find_table(struct mm_struct *mm, unsigned long address)
{
	pgd_t *pgd = pgd_offset(mm, address);
	p4d_t *p4d;
	pud_t *pud;
	pmd_t *pmd;

	if (pgd_none(*pgd))
		return NULL;
	p4d = p4d_offset(pgd, address);
	if (p4d_none(*p4d))
		return NULL;
	pud = pud_offset(p4d, address);
	if (pud_none(*pud))
		return NULL;
	pmd = pmd_offset(pud, address);
	return pmd_none(*pmd) ? NULL : pmd;
}

/* Calls a function for the entries of consecutive pages that share a page table. */
static void walk_table(struct walk *walk, pmd_t *pmd, unsigned long address, u32 count, pte_fn_t fn)
{
	spinlock_t *lock = pte_lockptr(walk->mm, pmd);
	pte_t *pte;

	spin_lock(lock);
	pte = pte_offset_kernel(pmd, address);
	for (; count--; pte++, address += PAGE_SIZE)
		fn(pte, address, walk);
	spin_unlock(lock);
}

/*
 * Calls a function for the entries of a run. Mostly they share a page table that exists, which takes half
 * the time. Others are made if `create` says so.
 */
static int walk_run(struct walk *walk, pte_fn_t fn, bool create)
{
	const struct vmsrs_run *run = walk->run;
	unsigned long address = page_address_of(run->app, run->page);
	unsigned long length = (unsigned long)run->count << PAGE_SHIFT;
	pmd_t *pmd = NULL;

	if ((address & PMD_MASK) == ((address + length - 1) & PMD_MASK))
		pmd = find_table(walk->mm, address);
	if (!pmd && !create)
		return apply_to_existing_page_range(walk->mm, address, length, fn, walk);
	if (!pmd)
		return apply_to_page_range(walk->mm, address, length, fn, walk);
	walk_table(walk, pmd, address, run->count, fn);
	return 0;
}

static struct vmsrs_page *walked_page(const struct walk *walk, unsigned long address)
{
	const struct vmsrs_run *run = walk->run;

	return run->entries + ((address - page_address_of(run->app, run->page)) >> PAGE_SHIFT);
}

static int map_entry(pte_t *pte, unsigned long address, void *data)
{
	const struct walk *walk = data;
	struct vmsrs_page *page = walked_page(walk, address);
	u32 version = walk->drafts ? page->draft | VMSRS_IN_POOL : page->frame;
	unsigned long pfn = vmsrs_frame_pfn(walk->dev, version);

	/* A draft in its committed version's place becomes writable: no TLB has to hear of that. */
	if (!pte_none(*pte) && !(walk->drafts && pte_pfn(*pte) == pfn))
		return 0;
	page->mapped = true;
	set_pte_at(walk->mm, address, pte, pte_mkspecial(pfn_pte(pfn, walk->prot)));
	return 0;
}

/**
 * vmsrs_run_map() - map pages in one process
 * @run: the pages, whose domain is locked, and the mapping; empty afterwards
 * @prot: protection of the entries
 * @drafts: show the pages' drafts; otherwise their committed versions, which exist
 *
 * Pages outside of the mapping are left out, and those that are mapped, unless a draft has taken the
 * place of what is mapped.
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_run_map(struct vmsrs_run *run, pgprot_t prot, bool drafts)
{
	struct walk walk = {
		.dev = run->app->dev,
		.mm = run->vma->vm_mm,
		.run = run,
		.prot = prot,
		.drafts = drafts,
	};
	int error = 0;

	if (clip(run))
		error = walk_run(&walk, map_entry, true);
	run->count = 0;
	return error;
}

/**
 * vmsrs_fault_map() - map the page of a write fault to its draft
 * @app: the app
 * @vmf: the fault
 * @entry: the page, whose domain is locked
 * @page: its number
 * @prot: protection of the entry
 *
 * As vmsrs_run_map() of one page, but mm has found the page table.
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_fault_map(struct vmsrs_app *app, struct vm_fault *vmf, struct vmsrs_page *entry, u32 page,
		    pgprot_t prot)
{
	struct vmsrs_run run = {
		.app = app,
		.vma = vmf->vma,
		.entries = entry,
		.page = page,
		.count = 1,
	};
	unsigned long address = vmf->address & PAGE_MASK;
	struct walk walk = {
		.dev = app->dev,
		.mm = vmf->vma->vm_mm,
		.run = &run,
		.prot = prot,
		.drafts = true,
	};

	if (pmd_none(*vmf->pmd))
		return vmsrs_run_map(&run, prot, true);
	walk_table(&walk, vmf->pmd, address, 1, map_entry);
	return 0;
}

static int note_dirty(pte_t *pte, unsigned long address, void *data)
{
	const struct walk *walk = data;
	struct vmsrs_page *page = walked_page(walk, address);

	if (page->draft != VMSRS_NO_DRAFT && pte_present(*pte) && pte_dirty(*pte))
		walk->dev->pool.frames[page->draft].dirty = true;
	return 0;
}

/**
 * vmsrs_run_note_dirty() - note which drafts have been written through a mapping
 * @run: the pages, whose domain is locked, and the mapping; empty afterwards
 *
 * What is written from now on is not noted, nor is what was written through an entry that has been
 * zapped.
 */
void vmsrs_run_note_dirty(struct vmsrs_run *run)
{
	struct walk walk = { .dev = run->app->dev, .mm = run->vma->vm_mm, .run = run };

	if (clip(run))
		walk_run(&walk, note_dirty, false);
	run->count = 0;
}
