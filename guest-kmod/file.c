// SPDX-License-Identifier: GPL-2.0
/* /dev/vmsrs: open, close, ioctl, fadvise, mmap. */
#include <linux/bitops.h>
#include <linux/bitmap.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "compat.h"
#include "vmsrs.h"

static int file_open(struct inode *inode, struct file *filp)
{
	/* misc_open() put it there; the device cannot be removed while it runs. */
	struct vmsrs_device *dev = container_of(filp->private_data, struct vmsrs_device, misc);
	struct vmsrs_file *file;

	file = kzalloc(sizeof(*file), GFP_KERNEL_ACCOUNT);
	if (!file)
		return -ENOMEM;
	INIT_LIST_HEAD(&file->suspended);
	kref_get(&dev->ref);
	file->dev = dev;
	filp->private_data = file;
	/* One address space for all, so that one call zaps a page everywhere. */
	filp->f_mapping = dev->inode->i_mapping;
	return nonseekable_open(inode, filp);
}

/* A process that exits closes its files here, when none of its threads runs its code any more. */
static int file_flush(struct file *filp, fl_owner_t id)
{
	if (current->flags & PF_EXITING)
		vmsrs_threads_reap(filp->private_data, false);
	return 0;
}

/* The last reference is gone, mappings included. */
static int file_release(struct inode *inode, struct file *filp)
{
	struct vmsrs_file *file = filp->private_data;
	struct vmsrs_device *dev = file->dev;

	vmsrs_threads_reap(file, true);
	vmsrs_fail_file(file);
	vmsrs_residents_drop(file);
	/*
	 * What was taken back from a hot domain before that may have become a request's of this
	 * file.
	 */
	vmsrs_fail_file(file);
	vmsrs_hot_free(file);
	vmsrs_app_close(file);
	kfree(file);
	vmsrs_device_put(dev);
	return 0;
}

/* The file's app, or NULL. Pairs with the release in vmsrs_app_open(). */
static struct vmsrs_app *file_app(struct vmsrs_file *file)
{
	return smp_load_acquire(&file->app);
}

/*
 * Returns the calling thread, which the caller puts, if it carries the tag; otherwise an ERR_PTR().
 */
static struct vmsrs_thread *thread_of_tag(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_thread *thread;

	if (!tag)
		return ERR_PTR(-EINVAL);
	thread = vmsrs_thread_current(app);
	if (!thread)
		return ERR_PTR(-EPERM);
	if (vmsrs_thread_tag(thread) == tag && vmsrs_tag_valid(app->dev, tag))
		return thread;
	vmsrs_thread_put(thread);
	return ERR_PTR(-EPERM);
}

/* Returns 0 if the calling thread is registered and carries the tag. */
static long check_tag(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_thread *thread = thread_of_tag(app, tag);

	if (IS_ERR(thread))
		return PTR_ERR(thread);
	vmsrs_thread_put(thread);
	return 0;
}

static long ioctl_open_app(struct vmsrs_file *file, void __user *user)
{
	struct vmsrs_ioctl_open_app arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = vmsrs_app_open(file, &arg);
	if (!ret && copy_to_user(user, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}

static long ioctl_open_domain(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_open_domain arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = vmsrs_domain_open(app, &arg);
	if (!ret && copy_to_user(user, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}

static long ioctl_extent(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_extent arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = vmsrs_extent_open(app, &arg);
	if (!ret && copy_to_user(user, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}

static long ioctl_thread(struct vmsrs_file *file, void __user *user)
{
	struct vmsrs_ioctl_thread arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = vmsrs_thread_register(file, &arg);
	if (!ret) {
		spin_lock(&file->app->hot_lock);
		vmsrs_hot_tell(file->app, current->mm);
		spin_unlock(&file->app->hot_lock);
	}
	if (!ret && copy_to_user(user, &arg, sizeof(arg))) {
		vmsrs_thread_exit(file);
		ret = -EFAULT;
	}
	return ret;
}

static long ioctl_tags(struct vmsrs_device *dev, void __user *user)
{
	struct vmsrs_ioctl_tags arg;

	vmsrs_thread_tags(dev, &arg.tag_first, &arg.tag_count);
	return copy_to_user(user, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/*
 * Kinds of failure that a program may report. The driver or the host finds the others: a program
 * that reported them would forge a failure of the hardware, or blame another request.
 */
static bool kind_valid(u32 kind)
{
	switch (kind) {
	case VMSRS_KIND_MEMORY:
	case VMSRS_KIND_ARITHMETIC:
	case VMSRS_KIND_INSTRUCTION:
	case VMSRS_KIND_ABORT:
	case VMSRS_KIND_STACK_OVERFLOW:
	case VMSRS_KIND_DOUBLE_FREE:
	case VMSRS_KIND_FOREIGN_FREE:
	case VMSRS_KIND_RED_ZONE:
	case VMSRS_KIND_USE_AFTER_FREE:
	case VMSRS_KIND_HEAP_CORRUPT:
	case VMSRS_KIND_PANIC:
	case VMSRS_KIND_DEADLINE:
	case VMSRS_KIND_THREAD_DEATH:
	case VMSRS_KIND_INVARIANT:
	case VMSRS_KIND_QUARANTINE:
		return true;
	default:
		return false;
	}
}

/*
 * Those of a set of signals, signal 1 in the lowest bit, for which the process has another handler. Another thread may
 * be changing them.
 */
static u64 handled_by_others(u64 signals, u64 handler)
{
	const struct sighand_struct *sighand = rcu_dereference_raw(current->sighand);
	u64 others = 0, left;

	for (left = signals; left; left &= left - 1) {
		unsigned int place = __ffs64(left);

		if (unlikely((__force unsigned long)
				READ_ONCE(sighand->action[place].sa.sa_handler) != handler))
			others |= BIT_ULL(place);
	}
	return others;
}

static long ioctl_fail(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_thread *thread;
	struct vmsrs_ioctl_fail arg;
	bool incident;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	if (!kind_valid(arg.kind) || !vmsrs_evidence_valid(&arg))
		return -EINVAL;
	thread = thread_of_tag(app, arg.tag);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	incident = vmsrs_fail(app, thread, &arg);
	thread->refused_address = 0;
	thread->frame_due = 0;
	vmsrs_thread_put(thread);
	/*
	 * Drafts are gone and locks are free, so the wait hurts only a thread that fails requests
	 * faster than the host takes reports.
	 */
	vmsrs_reports_wait(app->dev);
	if (incident)
		vmsrs_evidence_take(app->dev, &arg);
	arg.handled = handled_by_others(arg.handled, arg.handler);
	/* What follows is only read. */
	return copy_to_user(user, &arg, offsetof(struct vmsrs_ioctl_fail, registers)) ? -EFAULT : 0;
}

static long ioctl_discard(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_tag arg;
	struct vmsrs_thread *thread;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	thread = thread_of_tag(app, arg.tag);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	vmsrs_discard(app, arg.tag, true);
	vmsrs_thread_clear_written(thread, arg.tag);
	vmsrs_thread_put(thread);
	return 0;
}

static long ioctl_suspend(struct vmsrs_file *file, struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_suspend arg;
	struct vmsrs_thread *thread;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	thread = thread_of_tag(app, arg.tag);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	ret = vmsrs_suspend(file, thread, &arg);
	vmsrs_thread_put(thread);
	return ret;
}

static long ioctl_resume(struct vmsrs_file *file, struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_tag arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = check_tag(app, arg.tag);
	return ret ? ret : vmsrs_resume(file, arg.tag);
}

static long ioctl_abandon(struct vmsrs_file *file, void __user *user)
{
	struct vmsrs_ioctl_tag arg;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	return vmsrs_abandon(file, arg.tag);
}

static long ioctl_cool(struct vmsrs_file *file, struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_cool arg;
	struct vmsrs_thread *thread;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	thread = thread_of_tag(app, arg.tag);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	ret = vmsrs_resident_cool(file, thread, &arg);
	vmsrs_thread_put(thread);
	return ret;
}

static long ioctl_delete(struct vmsrs_file *file, struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_delete arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = check_tag(app, arg.tag);
	return ret ? ret : vmsrs_domain_delete(file, &arg);
}

static long ioctl_deleted(struct vmsrs_file *file, void __user *user)
{
	struct vmsrs_ioctl_deleted arg;
	u32 *domains;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	if (!arg.capacity || arg.capacity > VMSRS_DELETED_MAX)
		return -EINVAL;
	domains = kmalloc_array(arg.capacity, sizeof(*domains), GFP_KERNEL);
	if (!domains)
		return -ENOMEM;
	ret = vmsrs_deletions_note(file, &arg, domains);
	if (!ret && (copy_to_user(u64_to_user_ptr(arg.domains), domains, arg.count * sizeof(*domains)) ||
		     copy_to_user(user, &arg, sizeof(arg))))
		ret = -EFAULT;
	kfree(domains);
	return ret;
}

static long ioctl_domain_info(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_domain_info arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	ret = vmsrs_domain_info(app, &arg);
	if (!ret && copy_to_user(user, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}

static long ioctl_lease(struct file *filp, struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_lease arg;
	struct vmsrs_lease *lease;
	unsigned long address, offset;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	offset = offset_in_page(arg.address);
	lease = vmsrs_lease_take(app, &arg);
	if (IS_ERR(lease))
		return PTR_ERR(lease);
	address = vmsrs_lease_map(lease, filp);
	if (IS_ERR_VALUE(address))
		return address;
	arg.address = address + offset;
	if (!copy_to_user(user, &arg, sizeof(arg)))
		return 0;
	vm_munmap(address, PAGE_ALIGN(offset + arg.length));
	return -EFAULT;
}

static long ioctl_drafts(struct vmsrs_app *app, void __user *user)
{
	struct vmsrs_ioctl_drafts arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	if (arg.domain >= VMSRS_MAX_DOMAINS || !arg.capacity || arg.capacity > VMSRS_DRAFTS_MAX)
		return -EINVAL;
	ret = check_tag(app, arg.tag);
	if (!ret)
		ret = vmsrs_drafts_list(app, &arg);
	if (ret)
		return ret;
	return copy_to_user(user, &arg, sizeof(arg)) ? -EFAULT : 0;
}

static long ioctl_lock(struct vmsrs_app *app, unsigned int command, void __user *user)
{
	struct vmsrs_ioctl_lock arg;
	long ret;

	if (copy_from_user(&arg, user, sizeof(arg)))
		return -EFAULT;
	if (arg.domain >= VMSRS_MAX_DOMAINS)
		return -EINVAL;
	if (command == VMSRS_IOCTL_LOCK_WAKE) {
		vmsrs_lock_wake(app, arg.domain);
		return 0;
	}
	if (!arg.timeout_ms || arg.timeout_ms > 3600000)
		return -EINVAL;
	ret = check_tag(app, arg.tag);
	return ret ? ret : vmsrs_lock_wait(app, &arg);
}

static long ioctl_info(struct vmsrs_device *dev, void __user *user)
{
	struct vmsrs_ioctl_info arg = {
		.vault_frames = dev->config.vault_frames,
		.pool_frames = READ_ONCE(dev->pool.usable),
		.pool_free = READ_ONCE(dev->pool.free_count),
		.drafts = atomic_read(&dev->drafts),
		.broken = vmsrs_device_broken(dev),
		.resident = atomic_read(&dev->resident),
		.reports = READ_ONCE(dev->reports.queued),
		.commits = atomic64_read(&dev->commits),
		.sealed_pages = atomic64_read(&dev->sealed_pages),
		.discarded = atomic64_read(&dev->discarded),
		.incidents = atomic64_read(&dev->incidents),
		.seal_messages = atomic64_read(&dev->seal_messages),
		.write_faults = atomic64_read(&dev->write_faults),
		.zaps = atomic64_read(&dev->zaps),
	};

	spin_lock(&dev->batch.lock);
	arg.unsealed = dev->batch.queued + dev->batch.sent_count;
	spin_unlock(&dev->batch.lock);
	return copy_to_user(user, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/* What /proc tells by reading folders, which takes a hundred times as long. */
static long ioctl_usage(void __user *user)
{
	struct vmsrs_ioctl_usage arg = {
		.threads = get_nr_threads(current),
		.memory = (u64)(READ_ONCE(current->mm->data_vm) + READ_ONCE(current->mm->stack_vm)) <<
			  PAGE_SHIFT,
	};
	struct fdtable *table;

	rcu_read_lock();
	table = files_fdtable(current->files);
	arg.descriptors = bitmap_weight(table->open_fds, table->max_fds);
	rcu_read_unlock();
	return copy_to_user(user, &arg, sizeof(arg)) ? -EFAULT : 0;
}

/* Calls that give up a request or a lock, or query the state, work without a host, too. */
static bool needs_host(unsigned int command)
{
	switch (command) {
	case VMSRS_IOCTL_FAIL:
	case VMSRS_IOCTL_DISCARD:
	case VMSRS_IOCTL_LOCK_WAIT:
	case VMSRS_IOCTL_LOCK_WAKE:
	case VMSRS_IOCTL_THREAD_EXIT:
	case VMSRS_IOCTL_SUSPEND:
	case VMSRS_IOCTL_RESUME:
	case VMSRS_IOCTL_ABANDON:
	case VMSRS_IOCTL_INFO:
	case VMSRS_IOCTL_DOMAIN_INFO:
	case VMSRS_IOCTL_USAGE:
		return false;
	default:
		return true;
	}
}

static long call(struct file *filp, unsigned int command, void __user *user)
{
	struct vmsrs_file *file = filp->private_data;
	struct vmsrs_app *app = file_app(file);

	if (_IOC_TYPE(command) != 'V')
		return -ENOTTY;
	if (needs_host(command) && !vmsrs_device_usable(file->dev))
		return -ENODEV;
	switch (command) {
	case VMSRS_IOCTL_OPEN_APP:
		return ioctl_open_app(file, user);
	case VMSRS_IOCTL_TAGS:
		return ioctl_tags(file->dev, user);
	case VMSRS_IOCTL_INFO:
		return ioctl_info(file->dev, user);
	case VMSRS_IOCTL_USAGE:
		return ioctl_usage(user);
	case VMSRS_IOCTL_FLUSH:
		return vmsrs_batch_flush(file->dev, false);
	}
	if (!app)
		return -EBADFD;
	switch (command) {
	case VMSRS_IOCTL_OPEN_DOMAIN:
		return ioctl_open_domain(app, user);
	case VMSRS_IOCTL_EXTENT:
		return ioctl_extent(app, user);
	case VMSRS_IOCTL_THREAD:
		return ioctl_thread(file, user);
	case VMSRS_IOCTL_THREAD_EXIT:
		return vmsrs_thread_exit(file);
	case VMSRS_IOCTL_FAIL:
		return ioctl_fail(app, user);
	case VMSRS_IOCTL_DISCARD:
		return ioctl_discard(app, user);
	case VMSRS_IOCTL_SUSPEND:
		return ioctl_suspend(file, app, user);
	case VMSRS_IOCTL_RESUME:
		return ioctl_resume(file, app, user);
	case VMSRS_IOCTL_ABANDON:
		return ioctl_abandon(file, user);
	case VMSRS_IOCTL_DRAFTS:
		return ioctl_drafts(app, user);
	case VMSRS_IOCTL_LEASE:
		return ioctl_lease(filp, app, user);
	case VMSRS_IOCTL_COOL:
		return ioctl_cool(file, app, user);
	case VMSRS_IOCTL_DELETE:
		return ioctl_delete(file, app, user);
	case VMSRS_IOCTL_DELETED:
		return ioctl_deleted(file, user);
	case VMSRS_IOCTL_DOMAIN_INFO:
		return ioctl_domain_info(app, user);
	case VMSRS_IOCTL_LOCK_WAIT:
	case VMSRS_IOCTL_LOCK_WAKE:
		return ioctl_lock(app, command, user);
	default:
		return -ENOTTY;
	}
}

/*
 * What a call answers that has not failed. It names the app: the caller may have meant a file that
 * had this one's descriptor before.
 */
static long answer(const struct vmsrs_app *app)
{
	return VMSRS_IOCTL_ANSWER + (app ? app->number : VMSRS_MAX_APPS);
}

static long file_ioctl(struct file *filp, unsigned int command, unsigned long arg)
{
	long ret = call(filp, command, (void __user *)arg);

	return ret < 0 ? ret : answer(file_app(filp->private_data));
}

#if !IS_ENABLED(CONFIG_ADVISE_SYSCALLS)
#error "commits need the system call fadvise64 (CONFIG_ADVISE_SYSCALLS)"
#endif

/*
 * Commits a request: `offset` is its tag, `length` the domain and flags. madvise(MADV_WILLNEED) on
 * pages of the device comes here too, with another advice.
 */
static int file_fadvise(struct file *filp, loff_t offset, loff_t length, int advice)
{
	struct vmsrs_file *file = filp->private_data;
	struct vmsrs_app *app = file_app(file);
	u32 domain = upper_32_bits(length);
	struct vmsrs_thread *thread;
	u64 tag = offset;
	long ret;

	if (advice != VMSRS_ADVICE_COMMIT)
		return -EINVAL;
	if (!app)
		return -EBADFD;
	thread = thread_of_tag(app, tag);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	ret = vmsrs_commit(file, thread, tag, domain, lower_32_bits(length));
	/*
	 * It is committed with the last three as well. After a commit of one domain, others have
	 * drafts.
	 */
	if (domain == VMSRS_NONE && (!ret || ret == -ETIMEDOUT || ret == -EINTR || ret == -EIO))
		vmsrs_thread_clear_written(thread, tag);
	vmsrs_thread_put(thread);
	return ret < 0 ? ret : answer(app);
}

/* Does the mapping lie within `length` bytes at `offset` of the file? */
static bool within(const struct vm_area_struct *vma, u64 offset, u64 length)
{
	u64 start = (u64)vma->vm_pgoff << PAGE_SHIFT;

	return start >= offset && start - offset < length &&
	       vma->vm_end - vma->vm_start <= length - (start - offset);
}

/* The app's pages can be mapped at their fixed address only, since they contain pointers. */
static int mmap_pages(struct vmsrs_app *app, struct vm_area_struct *vma)
{
	u64 offset = (u64)app->number << VMSRS_APP_OFFSET_SHIFT;

	if (vma->vm_start != VMSRS_APP_BASE + ((u64)vma->vm_pgoff << PAGE_SHIFT))
		return -EINVAL;
	if (!within(vma, offset, (u64)VMSRS_APP_PAGES << PAGE_SHIFT))
		return -EINVAL;
	vm_flags_mod(vma, VM_PFNMAP, 0);
	vma->vm_ops = &vmsrs_page_vm_ops;
	vma->vm_private_data = app;
	vmsrs_mapping_opened(app, vma->vm_mm);
	return 0;
}

static int mmap_locks(struct vmsrs_app *app, struct vm_area_struct *vma)
{
	vma->vm_ops = &vmsrs_lock_vm_ops;
	vma->vm_private_data = app;
	return 0;
}

static int file_mmap(struct file *filp, struct vm_area_struct *vma)
{
	struct vmsrs_file *file = filp->private_data;
	struct vmsrs_app *app = file_app(file);

	if (!app)
		return -EBADFD;
	if (READ_ONCE(file->dev->gone))
		return -ENODEV;
	/* Private copies could not be zapped, and nothing here is code. */
	if (!(vma->vm_flags & VM_SHARED) || vma->vm_flags & VM_EXEC)
		return -EINVAL;
	/* Not inherited, not dumped, not pinned: a child of fork() has to open the app itself. */
	vm_flags_mod(vma, VM_IO | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY, VM_MAYEXEC);
	if (within(vma, VMSRS_LOCKS_OFFSET, VMSRS_LOCKS_LENGTH))
		return mmap_locks(app, vma);
	if (within(vma, VMSRS_CONTROL_OFFSET, (u64)VMSRS_THREADS_MAX << PAGE_SHIFT) ||
	    within(vma, VMSRS_WRITTEN_OFFSET, (u64)VMSRS_THREADS_MAX << PAGE_SHIFT))
		return vmsrs_thread_mmap(file, vma);
	if (within(vma, VMSRS_HOT_OFFSET, (u64)(VMSRS_PROTECTION_KEY_MAX + 1) << PAGE_SHIFT))
		return vmsrs_hot_mmap(file, vma);
	if (within(vma, VMSRS_LEASES_OFFSET, (u64)VMSRS_LEASES_MAX * VMSRS_LEASE_PAGES_MAX << PAGE_SHIFT))
		return vmsrs_lease_mmap(file->dev, vma);
	return mmap_pages(app, vma);
}

const struct file_operations vmsrs_fops = {
	.owner = THIS_MODULE,
	.open = file_open,
	.flush = file_flush,
	.release = file_release,
	.unlocked_ioctl = file_ioctl,
	.fadvise = file_fadvise,
	.mmap = file_mmap,
};
