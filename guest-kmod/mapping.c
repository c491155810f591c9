// SPDX-License-Identifier: GPL-2.0
/*
 * The address space that all open files share, through an inode of the driver's own: one call
 * zaps a page in every process, whichever device node was opened.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/mount.h>
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

/**
 * vmsrs_zap_pages() - unmap pages of an app in every process
 * @app: the app
 * @page: first page
 * @count: number of pages
 */
void vmsrs_zap_pages(struct vmsrs_app *app, u32 page, u32 count)
{
	loff_t offset = ((loff_t)app->number << VMSRS_APP_OFFSET_SHIFT) +
			((loff_t)page << PAGE_SHIFT);

	atomic64_inc(&app->dev->zaps);
	unmap_mapping_range(app->dev->inode->i_mapping, offset, (loff_t)count << PAGE_SHIFT, 1);
}

/**
 * vmsrs_zap_add() - unmap a page of an app in every process, with its neighbours in one call
 * @zap: what is to be unmapped; empty at first, except for the app
 * @page: the page
 *
 * Pages mostly come in order, up or down. Nothing is sure to be unmapped before vmsrs_zap_finish().
 */
void vmsrs_zap_add(struct vmsrs_zap *zap, u32 page)
{
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
		vmsrs_zap_pages(zap->app, zap->page, zap->count);
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
