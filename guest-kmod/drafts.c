// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages a request has drafts of: the library's audit looks at those.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/slab.h>
#include <linux/uaccess.h>

#include "vmsrs.h"

/* Notes the pages of the request's drafts, but for the first `skip`; returns how many. */
static u32 drafts_note(struct vmsrs_domain *domain, const struct vmsrs_ioctl_drafts *arg, u32 *pages)
{
	struct vmsrs_draft *draft;
	u32 place = 0, count = 0;

	mutex_lock(&domain->lock);
	list_for_each_entry(draft, &domain->drafts, list) {
		/* A domain's drafts are all of one request. */
		if (draft->tag != arg->tag || count == arg->capacity)
			break;
		if (place++ >= arg->skip)
			pages[count++] = draft->page;
	}
	mutex_unlock(&domain->lock);
	return count;
}

/* The caller checked the argument's ranges, and that the tag is the calling thread's. */
long vmsrs_drafts_list(struct vmsrs_app *app, struct vmsrs_ioctl_drafts *arg)
{
	/* Domains live as long as their app. */
	struct vmsrs_domain *domain = xa_load(&app->domains, arg->domain);
	long ret = 0;
	u32 *pages;

	arg->count = 0;
	if (!domain)
		return 0;
	pages = kmalloc_array(arg->capacity, sizeof(*pages), GFP_KERNEL);
	if (!pages)
		return -ENOMEM;
	/* Copied when the lock is free: the page fault handler takes it. */
	arg->count = drafts_note(domain, arg, pages);
	if (copy_to_user(u64_to_user_ptr(arg->pages), pages, arg->count * sizeof(*pages)))
		ret = -EFAULT;
	kfree(pages);
	return ret;
}
