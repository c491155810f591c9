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
#include <linux/sched/mm.h>

#include "compat.h"
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
 * vmsrs_zap_all() - unmap the pages of all apps, and leases, in every process
 * @dev: the device; nothing else unmaps pages of apps meanwhile
 */
void vmsrs_zap_all(struct vmsrs_device *dev)
{
	unmap_mapping_range(dev->inode->i_mapping, 0,
			    (loff_t)VMSRS_MAX_APPS << VMSRS_APP_OFFSET_SHIFT, 1);
	unmap_mapping_range(dev->inode->i_mapping, VMSRS_LEASES_OFFSET,
			    (loff_t)VMSRS_LEASES_MAX * VMSRS_LEASE_PAGES_MAX << PAGE_SHIFT, 1);
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
	zap_special_vma_range(vma, address, PAGE_SIZE);
}

/**
 * vmsrs_mapping_opened() - note that a process maps the pages of an app
 * @app: the app
 * @mm: the process's address space
 */
void vmsrs_mapping_opened(struct vmsrs_app *app, struct mm_struct *mm)
{
	spin_lock(&app->mapping_lock);
	if (atomic_inc_return(&app->mappings) == 1) {
		mmgrab(mm);
		app->mm = mm;
	}
	spin_unlock(&app->mapping_lock);
}

/**
 * vmsrs_mapping_closed() - note that a mapping of an app's pages is gone
 * @app: the app
 */
void vmsrs_mapping_closed(struct vmsrs_app *app)
{
	struct mm_struct *mm = NULL;

	spin_lock(&app->mapping_lock);
	if (atomic_dec_and_test(&app->mappings))
		swap(mm, app->mm);
	spin_unlock(&app->mapping_lock);
	if (mm)
		mmdrop(mm);
}

/**
 * vmsrs_mapping_mm() - find the address space that probably has the only mapping of an app's pages
 * @app: the app
 *
 * Return: the address space, for mmput_async(), or NULL.
 */
struct mm_struct *vmsrs_mapping_mm(struct vmsrs_app *app)
{
	struct mm_struct *mm;

	spin_lock(&app->mapping_lock);
	mm = app->mm;
	if (mm && !mmget_not_zero(mm))
		mm = NULL;
	spin_unlock(&app->mapping_lock);
	return mm;
}

/**
 * vmsrs_mapping_get() - find a mapping of a page of an app
 * @app: the app
 * @mm: the address space that it is looked for in, which is in use; or NULL
 * @page: the page
 *
 * Does not wait for mmap_lock, so it may be called with locks that nest inside of it.
 *
 * Return: the mapping, for vmsrs_mapping_put(), or NULL if there is none or it is being changed.
 */
struct vm_area_struct *vmsrs_mapping_get(struct vmsrs_app *app, struct mm_struct *mm, u32 page)
{
	unsigned long address = page_address_of(app, page);
	struct vm_area_struct *vma;
	pgoff_t offset;

	if (!mm || !mmap_read_trylock(mm))
		return NULL;
	/*
	 * Not from a note of ours: munmap() frees page tables with the lock held for reading, but
	 * only after the mapping cannot be found here any more.
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

/* Does a run lie within its mapping? */
static bool within(const struct vmsrs_run *run)
{
	const struct vm_area_struct *vma = run->vma;
	unsigned long start = page_address_of(run->app, run->page);

	return start >= vma->vm_start && start + ((unsigned long)run->count << PAGE_SHIFT) <= vma->vm_end;
}

/* Cuts off what lies outside of the mapping. */
static void clip(struct vmsrs_run *run)
{
	const struct vm_area_struct *vma = run->vma;
	unsigned long start = page_address_of(run->app, run->page);
	u32 cut;

	if (within(run))
		return;
	if (start < vma->vm_start) {
		cut = min_t(unsigned long, (vma->vm_start - start) >> PAGE_SHIFT, run->count);
		run->entries += cut;
		run->page += cut;
		run->count -= cut;
		start += (unsigned long)cut << PAGE_SHIFT;
	}
	if (start >= vma->vm_end)
		run->count = 0;
	run->count = min_t(unsigned long, run->count, (vma->vm_end - start) >> PAGE_SHIFT);
}

/*
 * The page table for an address, if there is one. mmap_lock is held and the mapping exists, so it
 * stays.
 */
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

/*
 * The page table of a run's page, or NULL if there is none. Sets *count to the number of pages from
 * that one to the end of the table or of the run.
 */
static pmd_t *table_of(const struct vmsrs_run *run, u32 i, u32 *count)
{
	unsigned long address = page_address_of(run->app, run->page + i);

	*count = min_t(u32, run->count - i, PTRS_PER_PTE - pte_index(address));
	return find_table(run->vma->vm_mm, address);
}

/* Notes that drafts may be as they were made, from page `i` of a run on. */
static void note_unsure(struct vmsrs_run *run, u32 i, u32 count)
{
	struct vmsrs_frame *frames = run->app->dev->pool.frames;

	for (run->unsure += count; count--; i++)
		frames[run->entries[i].draft].unsure = true;
}

/*
 * Prepares pages of a table to be unmapped: notes of which drafts it is not sure that they were
 * written, and with `clear` clears the entries between the first and the last page of the run. Page
 * `i` of it is the first in the table.
 */
static void prepare_entries(struct vmsrs_run *run, pmd_t *pmd, u32 i, u32 count, bool clear)
{
	unsigned long address = page_address_of(run->app, run->page + i);
	struct mm_struct *mm = run->vma->vm_mm;
	spinlock_t *lock = pte_lockptr(mm, pmd);
	pte_t *first, *pte, *last, *end;

	spin_lock(lock);
	first = pte_offset_kernel(pmd, address);
	end = first + count;
	pte = first;
	last = first;
	if (clear) {
		/* The ends of the run, if they are in this table, are not cleared. */
		last = end - (i + count == run->count);
		if (!i) {
			if (!pte_dirty(*pte) && run->note)
				note_unsure(run, 0, 1);
			pte++;
		}
	}
	for (; pte < last; pte++)
		if (!pte_dirty(ptep_get_and_clear(mm, address + (pte - first) * PAGE_SIZE, pte)) &&
		    run->note)
			note_unsure(run, i + (pte - first), 1);
	for (; pte < end; pte++)
		if (!pte_dirty(*pte) && run->note)
			note_unsure(run, i + (pte - first), 1);
	spin_unlock(lock);
}

/* Does the same to a run that lies within its mapping. */
static void prepare_run(struct vmsrs_run *run, bool clear)
{
	u32 count, i;
	pmd_t *pmd;

	for (i = 0; i < run->count; i += count) {
		pmd = table_of(run, i, &count);
		if (pmd)
			prepare_entries(run, pmd, i, count, clear);
		else if (run->note)
			note_unsure(run, i, count);
	}
}

static bool has_entry(const struct vmsrs_run *run, u32 i)
{
	unsigned long address = page_address_of(run->app, run->page + i);
	pmd_t *pmd = find_table(run->vma->vm_mm, address);

	return pmd && !pte_none(*pte_offset_kernel(pmd, address));
}

/*
 * Unmaps pages in one mapping. The kernel flushes the TLBs from the first to the last entry that it
 * unmaps, and takes ten times as long for an entry than for none, so those between are cleared
 * here. That these two stay until then is sure: entries change under the domain's lock, with
 * mmap_lock for writing, or in vmsrs_zap_all(), which runs alone.
 */
static void zap_only(struct vmsrs_run *run)
{
	bool clear = run->count > 2 && has_entry(run, 0) && has_entry(run, run->count - 1);

	if (clear || run->note)
		prepare_run(run, clear);
	atomic64_inc(&run->app->dev->zaps);
	zap_special_vma_range(run->vma, page_address_of(run->app, run->page),
			      (unsigned long)run->count << PAGE_SHIFT);
}

/**
 * vmsrs_zap_own_run() - unmap pages in their mapping, as vmsrs_zap_own()
 * @run: the pages, whose domain is locked, all within the mapping; empty afterwards
 */
void vmsrs_zap_own_run(struct vmsrs_run *run)
{
	if (run->count)
		zap_only(run);
	run->count = 0;
}

/**
 * vmsrs_zap_finish() - unmap the pages that were added last
 * @zap: what is to be unmapped; empty afterwards
 *
 * If it asks for that, and the pages have drafts: those are noted, and counted, that are not sure
 * to have been written through its mapping until then.
 */
void vmsrs_zap_finish(struct vmsrs_run *zap)
{
	bool seen = zap->vma && within(zap);

	if (!zap->count)
		return;
	if (seen && vmsrs_app_is_private(zap->app)) {
		zap_only(zap);
	} else {
		if (zap->note && seen)
			prepare_run(zap, false);
		else if (zap->note)
			note_unsure(zap, 0, zap->count);
		zap_pages(zap->app, zap->page, zap->count);
	}
	zap->count = 0;
}

/* Maps pages of a table. Page `i` of the run is the first in the table. */
static void map_entries(const struct vmsrs_run *run, pmd_t *pmd, u32 i, u32 count, pgprot_t prot, bool drafts)
{
	unsigned long address = page_address_of(run->app, run->page + i);
	const struct vmsrs_device *dev = run->app->dev;
	/* Entries differ from this one in the physical address. */
	pte_t first = pte_mkspecial(pfn_pte(0, prot));
	pteval_t zero = pte_val(run->fresh ? pte_mkold(first) : first);
	pteval_t pool = zero + dev->pool_region.phys, vault = zero + dev->vault_region.phys, value;
	struct vmsrs_page *page = run->entries + i;
	struct mm_struct *mm = run->vma->vm_mm;
	spinlock_t *lock = pte_lockptr(mm, pmd);
	u32 version;
	pte_t *pte;

	spin_lock(lock);
	pte = pte_offset_kernel(pmd, address);
	for (; count--; page++, pte++, address += PAGE_SIZE) {
		version = drafts ? page->draft | VMSRS_IN_POOL : page->frame;
		value = vmsrs_in_pool(version) ? pool : vault;
		value += (pteval_t)(version & ~VMSRS_IN_POOL) << PAGE_SHIFT;
		/*
		 * A draft in its committed version's place becomes writable: no TLB has to hear of
		 * that.
		 */
		if (!pte_none(*pte) && !(drafts && pte_pfn(*pte) == pte_pfn(__pte(value))))
			continue;
		page->mapped = true;
		set_pte_at(mm, address, pte, __pte(value));
	}
	spin_unlock(lock);
}

/**
 * vmsrs_run_map() - map pages in one process
 * @run: the pages, whose domain is locked, and the mapping; empty afterwards
 * @prot: protection of the entries
 * @drafts: show the pages' drafts; otherwise their committed versions, which exist
 *
 * Pages outside of the mapping are left out, and those that are mapped, unless a draft has taken
 * the place of what is mapped.
 *
 * Return: 0 or -ENOMEM.
 */
int vmsrs_run_map(struct vmsrs_run *run, pgprot_t prot, bool drafts)
{
	int error = 0;
	u32 count, i;
	pmd_t *pmd;

	clip(run);
	for (i = 0; i < run->count && !error;) {
		pmd = table_of(run, i, &count);
		if (pmd) {
			map_entries(run, pmd, i, count, prot, drafts);
			i += count;
		} else {
			/* Without a function it only makes the table. */
			error = apply_to_page_range(run->vma->vm_mm, page_address_of(run->app, run->page + i),
						    PAGE_SIZE, NULL, NULL);
		}
	}
	run->count = 0;
	return error;
}

/**
 * vmsrs_run_sees() - tell whether a mapping is the only one of a page
 * @run: its app, and the mapping or NULL
 * @page: the page
 */
bool vmsrs_run_sees(const struct vmsrs_run *run, u32 page)
{
	struct vmsrs_run one = { .app = run->app, .vma = run->vma, .page = page, .count = 1 };

	return run->vma && within(&one) && vmsrs_app_is_private(run->app);
}

/**
 * vmsrs_run_accessed() - tell whether a page has been accessed since a fresh entry was made
 * @run: its app and its only mapping
 * @page: the page, whose domain is locked
 */
bool vmsrs_run_accessed(const struct vmsrs_run *run, u32 page)
{
	unsigned long address = page_address_of(run->app, page);
	pmd_t *pmd = find_table(run->vma->vm_mm, address);

	return pmd && pte_young(*pte_offset_kernel(pmd, address));
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

	if (pmd_none(*vmf->pmd))
		return vmsrs_run_map(&run, prot, true);
	map_entries(&run, vmf->pmd, 0, 1, prot, true);
	return 0;
}
