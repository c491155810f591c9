// SPDX-License-Identifier: GPL-2.0
/*
 * Commit: all drafts of a request become the committed versions, together, and are queued to be
 * sealed.
 */
#include "vmsrs.h"

/*
 * Commits the domains on the list, and the resident pages of `hot`, which is locked. `copies` are
 * their new versions. Returns what vmsrs_batch_wait_sealed() takes, or 0 if nothing has been
 * written, and sets *batch to the batch's number. commit_lock and the request's lock are held. All
 * domains' locks are held from the first change to the last, so that no fault, commit or discard
 * sees some of the domains committed and others not.
 */
static u64 domains_commit(struct vmsrs_file *file, struct mutex *lock, struct vmsrs_request *request,
			  struct hlist_head *domains, struct vmsrs_domain *hot,
			  struct vmsrs_frames *copies, bool alone, u32 *batch)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_domain *only = hot;
	struct vmsrs_domain *domain;
	struct hlist_node *next;
	struct vmsrs_frames records = { };
	u32 drafts;
	u64 end = 0;

	hlist_for_each_entry(domain, domains, owned)
		if (domain != hot)
			mutex_lock_nest_lock(&domain->lock, lock);
	if (hot && !hot->owner)
		hot->commits++;
	hlist_for_each_entry(domain, domains, owned) {
		vmsrs_drafts_commit(domain, &records);
		alone = alone && (!only || only == domain);
		only = domain;
	}
	drafts = records.count;
	if (hot && vmsrs_domain_resident(hot))
		vmsrs_resident_commit(hot, copies, &records);
	if (alone && only && drafts)
		vmsrs_heat_learn(only, file, &records);
	if (records.count)
		end = vmsrs_batch_append(dev, &records, batch);
	/*
	 * Before the unlock: another member's next draft must not count beside the committed ones.
	 */
	if (drafts)
		atomic_sub(drafts, &request->drafts);
	hlist_for_each_entry_safe(domain, next, domains, owned) {
		/* Once unlocked, it may be added to another request's list. */
		hlist_del_init(&domain->owned);
		if (domain != hot)
			mutex_unlock(&domain->lock);
	}
	if (!end)
		return 0;
	if (drafts)
		atomic_sub(drafts, &dev->drafts);
	atomic64_inc(&dev->commits);
	return end;
}

/*
 * Commits a request, whose lock is held. Sets *request to it, for the caller to keep or free, or to
 * NULL, and *end and *batch as domains_commit() does.
 */
static long commit_locked(struct vmsrs_file *file, struct vmsrs_thread *thread,
			  u64 tag, u32 number, u32 flags, struct mutex *lock,
			  struct vmsrs_request **request, u64 *end, u32 *batch)
{
	struct vmsrs_domain *hot = NULL;
	struct vmsrs_frames copies = { };
	HLIST_HEAD(domains);
	int error = 0;

	if (!vmsrs_device_usable(file->dev))
		return -ENODEV;
	if (number == VMSRS_NONE)
		hot = vmsrs_resident_lock(thread, tag, lock);
	if (IS_ERR(hot))
		return PTR_ERR(hot);
	if (hot)
		error = vmsrs_resident_prepare(hot, thread, tag, &copies);
	if (!error) {
		*request = vmsrs_request_take_domains(file->app, tag, number, &domains);
		error = PTR_ERR_OR_ZERO(*request);
	}
	if (error) {
		*request = NULL;
		vmsrs_pool_put_all(file->dev, &copies);
	} else if (hot || !hlist_empty(&domains)) {
		*end = domains_commit(file, lock, *request, &domains, hot, &copies,
				      flags & VMSRS_COMMIT_ALONE, batch);
	}
	if (hot)
		mutex_unlock(&hot->lock);
	if (*request)
		*request = vmsrs_request_remove_idle(*request);
	return error;
}

/*
 * Has one of the domains that the thread holds lost content in that batch, which is sealed, or in a
 * later one?
 */
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
 * @file: its file
 * @thread: the calling thread
 * @tag: the request's tag, which is the thread's
 * @number: the domain to commit, or VMSRS_NONE for all
 * @flags: VMSRS_COMMIT_*, unchecked as @number
 *
 * Return: 0; -ESTALE: the request has failed; -EOWNERDEAD: see vmsrs_resident_lock(); -ETIMEDOUT,
 * -EINTR: committed but not sealed yet; -EIO: committed, but content was lost before it was sealed;
 * -EINVAL; -ENODEV; -ENOMEM.
 */
long vmsrs_commit(struct vmsrs_file *file, struct vmsrs_thread *thread, u64 tag, u32 number,
		  u32 flags)
{
	struct vmsrs_device *dev = file->dev;
	struct vmsrs_request *request = NULL;
	struct mutex *lock;
	u32 batch = 0;
	u64 end = 0;
	long ret;

	if (flags & ~(VMSRS_COMMIT_SEAL | VMSRS_COMMIT_ALONE))
		return -EINVAL;
	if (number != VMSRS_NONE && number >= VMSRS_MAX_DOMAINS)
		return -EINVAL;
	lock = vmsrs_request_lock(dev, tag);
	ret = commit_locked(file, thread, tag, number, flags, lock, &request, &end, &batch);
	vmsrs_request_unlock(dev, lock);
	if (ret)
		return ret;
	vmsrs_thread_keep_spare(thread, request);
	if (!(flags & VMSRS_COMMIT_SEAL))
		return 0;
	/* Without pages in this commit, wait for those of the request's earlier ones. */
	if (!end)
		end = vmsrs_batch_last(dev, &batch);
	ret = vmsrs_batch_wait_sealed(dev, end, true);
	return !ret && held_lost(file->app, thread, batch) ? -EIO : ret;
}
