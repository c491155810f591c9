// SPDX-License-Identifier: GPL-2.0
/*
 * What a process and the driver share about hot domains: the page that says which domains are hot,
 * and the claims of the requests that are inside.
 *
 * The process reads the first one only. A claim is mapped under the key of the hot domain, so that
 * no request writes it that is not inside such a domain.
 */
#include <linux/mm.h>
#include <linux/sched/mm.h>

#include "compat.h"
#include "vmsrs.h"

/* The page at that place of the file's, made if there is none. */
static struct page *hot_page(struct vmsrs_file *file, u32 place)
{
	struct page *page = smp_load_acquire(&file->hot_pages[place]), *other;

	if (page)
		return page;
	page = alloc_page(GFP_KERNEL_ACCOUNT | __GFP_ZERO);
	if (!page)
		return NULL;
	other = cmpxchg(&file->hot_pages[place], NULL, page);
	if (other) {
		__free_page(page);
		page = other;
	}
	return page;
}

/**
 * vmsrs_hot_mmap() - map the list of hot domains, or the claims of a key
 * @file: the file, with an app
 * @vma: the mapping, within the offsets of these
 *
 * Return: 0 or a negative error.
 */
int vmsrs_hot_mmap(struct vmsrs_file *file, struct vm_area_struct *vma)
{
	u32 place = vma->vm_pgoff - (VMSRS_HOT_OFFSET >> PAGE_SHIFT);
	struct vmsrs_app *app = file->app;
	struct page *page;
	int error;

	if (vma->vm_end - vma->vm_start != PAGE_SIZE)
		return -EINVAL;
	if (!place) {
		if (vma->vm_flags & VM_WRITE)
			return -EACCES;
		vm_flags_mod(vma, 0, VM_MAYWRITE);
	}
	page = hot_page(file, place);
	if (!page)
		return -ENOMEM;
	error = vm_insert_page(vma, vma->vm_start, page);
	if (error)
		return error;
	spin_lock(&app->hot_lock);
	if (place) {
		file->hot_keys |= BIT(place);
	} else if (!file->hot_mm) {
		mmgrab(vma->vm_mm);
		file->hot_mm = vma->vm_mm;
	}
	spin_unlock(&app->hot_lock);
	return 0;
}

/**
 * vmsrs_hot_free() - free the pages of a file that is released
 * @file: the file, which has no hot domains any more
 */
void vmsrs_hot_free(struct vmsrs_file *file)
{
	u32 i;

	for (i = 0; i < ARRAY_SIZE(file->hot_pages); i++)
		if (file->hot_pages[i])
			put_page(file->hot_pages[i]);
	if (file->hot_mm)
		mmdrop(file->hot_mm);
}

static struct vmsrs_hot_domains *list_of(const struct vmsrs_file *file)
{
	return page_address(file->hot_pages[0]);
}

static u32 *entry_of(const struct vmsrs_file *file, u32 domain)
{
	return &list_of(file)->entries[domain % VMSRS_HOT_ENTRIES];
}

/**
 * vmsrs_hot_key() - find a key for a domain that becomes hot; hot_lock is held
 * @file: the calling process's file, which has a list of hot domains
 * @domain: number of the domain
 *
 * Return: the key; 0: none is free; -EBUSY: the domain's entry is another one's.
 */
int vmsrs_hot_key(const struct vmsrs_file *file, u32 domain)
{
	u32 key;

	lockdep_assert_held(&file->app->hot_lock);
	if (*entry_of(file, domain))
		return -EBUSY;
	/* One that is becoming hot has not got its entry yet. */
	for (key = 1; key <= VMSRS_PROTECTION_KEY_MAX; key++)
		if (file->residents[key] && entry_of(file, file->residents[key]->domain->number) ==
					    entry_of(file, domain))
			return -EBUSY;
	for (key = 1; key <= VMSRS_PROTECTION_KEY_MAX; key++)
		if (file->hot_keys & BIT(key) && !file->residents[key])
			return key;
	return 0;
}

/**
 * vmsrs_hot_claim() - find the word that says which request is inside a hot domain
 * @file: the file
 * @key: the domain's key
 * @domain: number of the domain
 */
atomic64_t *vmsrs_hot_claim(const struct vmsrs_file *file, u32 key, u32 domain)
{
	atomic64_t *claims = page_address(file->hot_pages[key]);

	return &claims[domain % VMSRS_HOT_ENTRIES];
}

/**
 * vmsrs_hot_tell() - tell the threads of a process which keys its hot domains have; hot_lock is
 * held
 * @app: the app
 * @mm: the process's address space
 *
 * Keys that domains have had stay: a thread may be inside one whose pages are taken back at this
 * moment.
 */
void vmsrs_hot_tell(struct vmsrs_app *app, const struct mm_struct *mm)
{
	const struct vmsrs_resident *resident;
	struct vmsrs_thread *thread;
	u32 keys = 0;

	lockdep_assert_held(&app->hot_lock);
	list_for_each_entry(resident, &app->residents, list)
		if (resident->mm == mm)
			keys |= 2U << 2 * resident->key;
	spin_lock(&app->dev->threads_lock);
	list_for_each_entry(thread, &app->dev->thread_list, list)
		if (thread->app == app && thread->mm == mm)
			WRITE_ONCE(thread->written->hot_keys, thread->written->hot_keys | keys);
	spin_unlock(&app->dev->threads_lock);
}

/**
 * vmsrs_hot_list() - bring the list up to date; hot_lock is held
 * @resident: the domain's resident pages
 *
 * The process finds its entries first, and loses them last: who finds it on the list can write with
 * its key.
 */
void vmsrs_hot_list(const struct vmsrs_resident *resident)
{
	struct vmsrs_hot_domains *list = list_of(resident->file);
	struct vmsrs_hot_domain *hot = &list->domains[resident->key];
	u32 number = resident->domain->number, count = 0;
	const struct vmsrs_frame *frame;

	lockdep_assert_held(&resident->domain->app->hot_lock);
	vmsrs_for_each_frame(frame, &resident->pages)
		hot->pages[count++] = frame->page;
	hot->domain = number;
	hot->count = count;
	/* After the list, and after the caller has mapped or unmapped the pages. */
	smp_store_release(entry_of(resident->file, number), count ? resident->key : 0);
}
