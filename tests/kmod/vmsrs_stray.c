// SPDX-License-Identifier: GPL-2.0
/*
 * Test module: the guest's kernel writes where it should not.
 *
 * It behaves like a kernel with a stray pointer, to show that the second-level page table protects the
 * vault. Never load it outside a test.
 *
 * A command stores one byte, through a mapping of the module's own, into a frame of the VMSRS device.
 * The frame is given by its number in the pool or the vault, or by an address at which the calling
 * process has a frame of the vault mapped. Commands are written, one per write(2), to
 * /sys/kernel/debug/vmsrs_stray/store:
 *
 *	pool NUMBER OFFSET VALUE MODE
 *	vault NUMBER OFFSET VALUE MODE
 *	address ADDRESS VALUE MODE
 *
 * (ADDRESS and VALUE as strtoul takes them, with 0x for hexadecimal). MODE is
 *
 *	nofault	the store has an exception table entry: write(2) fails with EFAULT
 *	raw	the store has none, like any stray write: a kernel thread makes it and is killed
 *		by the oops; write(2) fails with EIO. (The kernel must run without panic_on_oops.)
 *
 * /sys/kernel/debug/vmsrs_stray/pool and .../vault can be mapped: the frames of these regions, which a
 * user process can write to without the driver, as if its page table were corrupt.
 *
 * If the store is not stopped, write(2) succeeds. /sys/kernel/debug/vmsrs_stray/byte has the byte that
 * the kernel then reads there, and .../frame the number of the frame of the last command.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/debugfs.h>
#include <linux/io.h>
#include <linux/ioport.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/version.h>

#include <asm/asm.h>

/* A shared memory region of the device. */
struct region {
	/* The name under which vmsrs.ko claims it. */
	const char *name;
	/* Physical address, and size in bytes. */
	unsigned long long phys;
	unsigned long long length;
};

static struct region pool = { .name = "vmsrs pool" };
module_param_named(pool, pool.phys, ullong, 0400);
MODULE_PARM_DESC(pool, "physical address of the pool (default: what vmsrs.ko claimed)");
module_param_named(pool_length, pool.length, ullong, 0400);
MODULE_PARM_DESC(pool_length, "bytes of the pool, with pool");

static struct region vault = { .name = "vmsrs vault" };
module_param_named(vault, vault.phys, ullong, 0400);
MODULE_PARM_DESC(vault, "physical address of the vault (default: what vmsrs.ko claimed)");
module_param_named(vault_length, vault.length, ullong, 0400);
MODULE_PARM_DESC(vault_length, "bytes of the vault, with vault");

static struct dentry *directory;
static DEFINE_MUTEX(command_lock);	/* guards last_frame and last_byte */
static u32 last_frame;
static u32 last_byte;

struct store {
	u8 *place;
	u8 value;
	bool survived;
	struct completion started;
};

/* An ordinary store. Not inlined, so that its name is in the oops. */
static noinline void store_raw(u8 *place, u8 value)
{
	WRITE_ONCE(*place, value);
}

/* A store that survives its exception. (copy_to_kernel_nofault() is not exported.) */
static noinline int store_nofault(u8 *place, u8 value)
{
	int error = -EFAULT;

	asm volatile("1:	movb %2, %1\n"
		     "	xorl %0, %0\n"
		     "2:\n"
		     _ASM_EXTABLE(1b, 2b)
		     : "+r" (error), "=m" (*place)
		     : "q" (value)
		     : "cc");
	return error;
}

static int store_thread(void *data)
{
	struct store *store = data;

	complete(&store->started);
	store_raw(store->place, store->value);
	store->survived = true;
	return 0;
}

/* Returns true if the thread ran to its end, false if an exception ended it. */
static bool store_in_thread(struct store *store)
{
	struct task_struct *task;

	init_completion(&store->started);
	task = kthread_create(store_thread, store, "vmsrs_stray");
	if (IS_ERR(task))
		return false;
	get_task_struct(task);
	wake_up_process(task);
	/* A thread that is stopped before it starts does not run. After an oops it exits, too. */
	wait_for_completion(&store->started);
	kthread_stop(task);
	put_task_struct(task);
	return store->survived;
}

static int command_store(const struct region *region, u64 frame, u32 offset, u8 value,
			 const char *mode)
{
	struct store store = { .value = value };
	u8 *page;
	int error = 0;

	if (offset >= PAGE_SIZE || frame >= region->length >> PAGE_SHIFT)
		return -ERANGE;
	page = memremap(region->phys + (frame << PAGE_SHIFT), PAGE_SIZE, MEMREMAP_WB);
	if (!page)
		return -ENOMEM;
	store.place = page + offset;
	if (!strcmp(mode, "nofault"))
		error = store_nofault(store.place, value);
	else if (!strcmp(mode, "raw"))
		error = store_in_thread(&store) ? 0 : -EIO;
	else
		error = -EINVAL;
	last_frame = frame;
	last_byte = READ_ONCE(*store.place);
	memunmap(page);
	return error;
}

/* Finds the physical page that is mapped at an address. mmap_lock is held. */
static int find_pfn(struct vm_area_struct *vma, unsigned long address, unsigned long *pfn)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 12, 0)
	return follow_pfn(vma, address, pfn);
#else
	struct follow_pfnmap_args args = { .vma = vma, .address = address };
	int error = follow_pfnmap_start(&args);

	if (error)
		return error;
	*pfn = args.pfn;
	follow_pfnmap_end(&args);
	return 0;
#endif
}

/* Finds the frame of the vault that is mapped at an address of the calling process. */
static int find_frame(unsigned long address, u64 *frame)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	unsigned long pfn = 0;
	int error;

	mmap_read_lock(mm);
	vma = vma_lookup(mm, address);
	error = vma ? find_pfn(vma, address, &pfn) : -EINVAL;
	mmap_read_unlock(mm);
	if (error)
		return error;
	if (PFN_PHYS((u64)pfn) < vault.phys || PFN_PHYS((u64)pfn) - vault.phys >= vault.length)
		return -EINVAL;
	*frame = (PFN_PHYS((u64)pfn) - vault.phys) >> PAGE_SHIFT;
	return 0;
}

static ssize_t store_write(struct file *file, const char __user *user, size_t size, loff_t *offset)
{
	const struct region *region = &vault;
	unsigned long address;
	u32 place, value;
	char mode[8];
	char *line;
	u64 frame;
	int error;

	if (size > 128)
		return -EINVAL;
	line = memdup_user_nul(user, size);
	if (IS_ERR(line))
		return PTR_ERR(line);
	mutex_lock(&command_lock);
	error = 0;
	if (sscanf(line, "vault %lli %i %i %7s", &frame, &place, &value, mode) == 4) {
		/* The frame is given by its number. */
	} else if (sscanf(line, "pool %lli %i %i %7s", &frame, &place, &value, mode) == 4) {
		region = &pool;
	} else if (sscanf(line, "address %li %i %7s", &address, &value, mode) == 3) {
		error = find_frame(address, &frame);
		place = offset_in_page(address);
	} else {
		error = -EINVAL;
	}
	if (!error)
		error = command_store(region, frame, place, value, mode);
	mutex_unlock(&command_lock);
	kfree(line);
	return error ? error : size;
}

static const struct file_operations store_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = store_write,
};

/* The inode's data is the region. */
static int region_mmap(struct file *file, struct vm_area_struct *vma)
{
	const struct region *region = file_inode(file)->i_private;
	unsigned long size = vma->vm_end - vma->vm_start;

	if (vma->vm_pgoff || size > region->length)
		return -EINVAL;
	return remap_pfn_range(vma, vma->vm_start, PHYS_PFN(region->phys), size,
			       vma->vm_page_prot);
}

static const struct file_operations region_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.mmap = region_mmap,
};

static bool find_in(struct resource *resource, struct region *region)
{
	for (; resource; resource = resource->sibling) {
		if (resource->name && !strcmp(resource->name, region->name)) {
			region->phys = resource->start;
			region->length = resource_size(resource);
			return true;
		}
		if (find_in(resource->child, region))
			return true;
	}
	return false;
}

static int __init stray_init(void)
{
	struct region *regions[] = { &pool, &vault };
	int i;

	for (i = 0; i < ARRAY_SIZE(regions); i++) {
		if (!regions[i]->phys && !find_in(iomem_resource.child, regions[i])) {
			pr_err("no %s: load vmsrs.ko first, or give address and length\n",
			       regions[i]->name);
			return -ENODEV;
		}
	}
	directory = debugfs_create_dir("vmsrs_stray", NULL);
	debugfs_create_file("store", 0200, directory, NULL, &store_fops);
	/* "Unsafe": debugfs's own wrapper has no mmap. Only this module removes the files. */
	debugfs_create_file_unsafe("pool", 0600, directory, &pool, &region_fops);
	debugfs_create_file_unsafe("vault", 0600, directory, &vault, &region_fops);
	debugfs_create_u32("frame", 0400, directory, &last_frame);
	debugfs_create_u32("byte", 0400, directory, &last_byte);
	return 0;
}

static void __exit stray_exit(void)
{
	debugfs_remove(directory);
}

module_init(stray_init);
module_exit(stray_exit);

MODULE_DESCRIPTION("Test module: stray kernel writes into the VMSRS device's memory");
MODULE_AUTHOR("The VMSRS authors");
MODULE_LICENSE("GPL");
