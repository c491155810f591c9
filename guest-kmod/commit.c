// SPDX-License-Identifier: GPL-2.0
/*
 * Commit: all drafts of a request become the committed versions, together, and are queued to be
 * sealed.
 */
#include "vmsrs.h"

/*
 * Commits the domains on the list and returns what vmsrs_batch_wait_sealed() takes, or 0 if they
 * had no drafts. Sets *number to the batch's. commit_lock and the request's lock are held. All domains' locks are held from the
 * first change to the last, so that no fault, commit or discard sees some of the domains committed
 * and others not.
 */
static u64 domains_commit(struct vmsrs_device *dev, struct mutex *lock,
			  struct vmsrs_request *request, struct hlist_head *domains, u32 *number)
{
	struct vmsrs_domain *domain;
	struct hlist_node *next;
	struct vmsrs_frames records = { };
	u32 count;
	u64 end = 0;

	hlist_for_each_entry(domain, domains, owned)
		mutex_lock_nest_lock(&domain->lock, lock);
	hlist_for_each_entry(domain, domains, owned)
		vmsrs_drafts_commit(domain, &records);
	count = records.count;
	if (count)
		end = vmsrs_batch_append(dev, &records, number);
	/* Before the unlock: another member's next draft must not count beside the committed ones. */
	atomic_sub(count, &request->drafts);
	hlist_for_each_entry_safe(domain, next, domains, owned) {
		/* Once unlocked, it may be added to another request's list. */
		hlist_del_init(&domain->owned);
		mutex_unlock(&domain->lock);
	}
	if (!count)
		return 0;
	atomic_sub(count, &dev->drafts);
	atomic64_inc(&dev->commits);
	return end;
}

/* Has one of the domains that the thread holds lost content in that batch, which is sealed, or in a later one? */
static bool held_lost(struct vmsrs_app *app, const struct vmsrs_thread *thread, u32 number)
{
	u32 count = min_t(u32, READ_ONCE(thread->control->held_count), VMSRS_HELD_MAX);
	struct vmsrs_domain *domain;

	while (count--) {
		domain = xa_load(&app->domains, READ_ONCE(thread->control->held[count]));
		if (domain && vmsrs_batch_lost(domain, number))
			return true;
	}
	return false;
}

/**
 * vmsrs_commit() - commit the drafts of a request
 * @app: the app
 * @thread: the calling thread
 * @arg: argument of the ioctl; the tag is the thread's
 *
 * Return: 0; -ESTALE: the request has failed; -ETIMEDOUT, -EINTR: committed but not sealed yet; -EIO:
 * committed, but content was lost before it was sealed; -EINVAL; -ENODEV.
 */
long vmsrs_commit(struct vmsrs_app *app, struct vmsrs_thread *thread,
		  const struct vmsrs_ioctl_commit *arg)
{
	struct vmsrs_device *dev = app->dev;
	struct vmsrs_request *request;
	struct mutex *lock;
	HLIST_HEAD(domains);
	u32 number = 0;
	u64 end = 0;
	long ret;

	if (arg->flags & ~VMSRS_COMMIT_SEAL)
		return -EINVAL;
	if (arg->domain != VMSRS_NONE && arg->domain >= VMSRS_MAX_DOMAINS)
		return -EINVAL;
	lock = vmsrs_request_lock(dev, arg->tag);
	if (vmsrs_device_usable(dev))
		request = vmsrs_request_take_domains(app, arg->tag, arg->domain, &domains);
	else
		request = ERR_PTR(-ENODEV);
	if (!hlist_empty(&domains))
		end = domains_commit(dev, lock, request, &domains, &number);
	if (!IS_ERR_OR_NULL(request))
		request = vmsrs_request_remove_idle(request);
	vmsrs_request_unlock(dev, lock);
	if (IS_ERR(request))
		return PTR_ERR(request);
	vmsrs_thread_keep_spare(thread, request);
	if (!(arg->flags & VMSRS_COMMIT_SEAL))
		return 0;
	/* Without pages in this commit, wait for those of the request's earlier ones. */
	if (!end)
		end = vmsrs_batch_last(dev, &number);
	ret = vmsrs_batch_wait_sealed(dev, end, true);
	return !ret && held_lost(app, thread, number) ? -EIO : ret;
}
