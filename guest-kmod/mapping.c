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
 * Pages mostly come in order, up or down. Nothing is sure to be unmapped before vmsrs_zap_finish().
 */
void vmsrs_zap_add(struct vmsrs_zap *zap, struct vmsrs_page *entry, u32 page)
{
	if (!entry->mapped)
		return;
	entry->mapped = false;
	if (zap->count && page == zap->page + zap->count) {
		zap->count++;
	} else if (zap->count && page + 1 == zap->page) {
		zap->page--;
		zap->count++;
	} else {
		vmsrs_zap_finish(zap);
		zap->page = page;
		zap->count = 1;
	}
}

/**
 * vmsrs_zap_finish() - unmap the pages that were added last
 * @zap: what is to be unmapped; empty afterwards
 */
void vmsrs_zap_finish(struct vmsrs_zap *zap)
{
	if (zap->count)
		zap_pages(zap->app, zap->page, zap->count);
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

static unsigned long page_address_of(const struct vmsrs_app *app, u32 page)
{
	return VMSRS_APP_BASE + ((unsigned long)app->number << VMSRS_APP_OFFSET_SHIFT) +
	       ((unsigned long)page << PAGE_SHIFT);
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

/* What map_entry() needs. */
struct map {
	struct mm_struct *mm;
	unsigned long pfn;
	pgprot_t prot;
};

static int map_entry(pte_t *entry, unsigned long address, void *data)
{
	const struct map *map = data;

	if (pte_none(*entry))
		set_pte_at(map->mm, address, entry, pte_mkspecial(pfn_pte(map->pfn, map->prot)));
	return 0;
}

/**
 * vmsrs_map_page() - map a page, unless it is mapped or outside of the mapping
 * @app: the app
 * @vma: the mapping; mmap_lock is held
 * @entry: the page, whose domain is locked
 * @page: number of the page
 * @pfn: what it is mapped to
 * @prot: protection of the entry
 *
 * Saves a fault. If memory is short, there is one.
 */
void vmsrs_map_page(struct vmsrs_app *app, struct vm_area_struct *vma, struct vmsrs_page *entry,
		    u32 page, unsigned long pfn, pgprot_t prot)
{
	struct map map = { .mm = vma->vm_mm, .pfn = pfn, .prot = prot };
	unsigned long address = page_address_of(app, page);

	if (address < vma->vm_start || address >= vma->vm_end)
		return;
	entry->mapped = true;
	apply_to_page_range(vma->vm_mm, address, PAGE_SIZE, map_entry, &map);
}
