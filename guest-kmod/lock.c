// SPDX-License-Identifier: GPL-2.0
/*
 * Lock words: one u64 a domain in pages that all processes of an app map, and the sleep of those
 * that find one taken. What a word means is told in vmsrs_protocol.h; programs change them at any
 * time, so they are only ever changed by compare-and-exchange here.
 *
 * Like a futex, but the driver takes the lock for the sleeper, and knows how to release those of a
 * thread that failed or died.
 */
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_QUEUE_BITS		8
#define VMSRS_WORDS_PER_PAGE		(PAGE_SIZE / sizeof(u64))
/*
 * A sleeper that was woken so often, and each time found the lock taken by somebody who had not slept,
 * gets it from whoever wakes it next. Not from the first: others can use the lock while the sleeper
 * comes to run.
 */
#define VMSRS_HANDOVER_AFTER		2

/* Sleepers, in the order in which they came; of all words with the same hash. */
struct lock_queue {
	spinlock_t lock;		/* guards the list and its members; an innermost one */
	struct list_head sleepers;
};

static struct lock_queue lock_queues[1 << VMSRS_QUEUE_BITS];

void vmsrs_locks_init(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lock_queues); i++) {
		spin_lock_init(&lock_queues[i].lock);
		INIT_LIST_HEAD(&lock_queues[i].sleepers);
	}
}

static struct lock_queue *queue_of(atomic64_t *word)
{
	return &lock_queues[hash_ptr(word, VMSRS_QUEUE_BITS)];
}

/* The page with lock words; allocated if there is none yet, unless `gfp` is 0. */
static struct page *lock_page(struct vmsrs_app *app, u32 index, gfp_t gfp)
{
	struct page *page = smp_load_acquire(&app->lock_pages[index]), *other;

	if (page || !gfp)
		return page;
	page = alloc_page(gfp | __GFP_ZERO);
	if (!page)
		return NULL;
	other = cmpxchg(&app->lock_pages[index], NULL, page);
	if (other) {
		__free_page(page);
		page = other;
	}
	return page;
}

atomic64_t *vmsrs_lock_word(struct vmsrs_app *app, u32 domain, gfp_t gfp)
{
	struct page *page = lock_page(app, domain / VMSRS_WORDS_PER_PAGE, gfp);

	if (!page)
		return NULL;
	return (atomic64_t *)page_address(page) + domain % VMSRS_WORDS_PER_PAGE;
}

/* Tag of the request that holds a domain, or 0. */
u64 vmsrs_lock_tag(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);

	return word ? atomic64_read(word) & VMSRS_LOCK_TAG : 0;
}

/*
 * Takes the lock, or marks it as waited for. Whoever takes it here sets the mark as well: there may
 * be sleepers that marked the word before its last release. That holds even for one who has not
 * slept: it is on the queue, and the wake-up of that release may have found it there.
 */
int vmsrs_lock_try(atomic64_t *word, u64 tag)
{
	s64 value = atomic64_read(word), new;

	for (;;) {
		if ((value & VMSRS_LOCK_TAG) == tag)
			return -EEXIST;
		if (value & VMSRS_LOCK_TAG)
			new = value | VMSRS_LOCK_WAITERS;
		else
			new = tag | VMSRS_LOCK_WAITERS;
		if (new == value || atomic64_try_cmpxchg(word, &value, new))
			return (new & VMSRS_LOCK_TAG) == tag ? 0 : -EAGAIN;
	}
}

/*
 * Wakes the sleeper that has waited longest; it marks the word again for the others. For one that was
 * overtaken too often the lock is taken here, if it still is free: between a program's release and
 * its call another program can come, but hardly each time.
 */
void vmsrs_lock_wake_one(atomic64_t *word)
{
	struct lock_queue *queue = queue_of(word);
	struct vmsrs_lock_sleeper *sleeper;

	spin_lock(&queue->lock);
	list_for_each_entry(sleeper, &queue->sleepers, entry) {
		if (sleeper->word != word || sleeper->granted)
			continue;
		if (sleeper->woken++ >= VMSRS_HANDOVER_AFTER)
			WRITE_ONCE(sleeper->granted, !vmsrs_lock_try(word, sleeper->tag));
		wake_up_process(sleeper->task);
		break;
	}
	spin_unlock(&queue->lock);
}

void vmsrs_sleeper_add(struct vmsrs_lock_sleeper *sleeper)
{
	struct lock_queue *queue = queue_of(sleeper->word);

	spin_lock(&queue->lock);
	list_add_tail(&sleeper->entry, &queue->sleepers);
	spin_unlock(&queue->lock);
}

/* Was the lock taken for the sleeper? From here on it is not. */
bool vmsrs_sleeper_remove(struct vmsrs_lock_sleeper *sleeper)
{
	struct lock_queue *queue = queue_of(sleeper->word);

	spin_lock(&queue->lock);
	list_del(&sleeper->entry);
	spin_unlock(&queue->lock);
	return sleeper->granted;
}

void vmsrs_lock_wake(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);

	if (word)
		vmsrs_lock_wake_one(word);
}

/* The device is gone. */
void vmsrs_lock_wake_all(void)
{
	struct vmsrs_lock_sleeper *sleeper;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lock_queues); i++) {
		spin_lock(&lock_queues[i].lock);
		list_for_each_entry(sleeper, &lock_queues[i].sleepers, entry)
			wake_up_process(sleeper->task);
		spin_unlock(&lock_queues[i].lock);
	}
}

/*
 * Releases a domain that the tag holds. Wakes in any case: the holder may have died between its
 * release and its wake-up call. Any context but interrupts.
 */
void vmsrs_lock_release(struct vmsrs_app *app, u32 domain, u64 tag)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);
	s64 value;

	if (!word)
		return;
	value = atomic64_read(word);
	while (tag && (value & VMSRS_LOCK_TAG) == tag)
		if (atomic64_try_cmpxchg(word, &value, 0))
			break;
	vmsrs_lock_wake_one(word);
}

/* Releases what a thread has entered as held, as far as the tag holds it. */
void vmsrs_lock_release_held(struct vmsrs_thread *thread, u64 tag)
{
	u32 count = min_t(u32, READ_ONCE(thread->control->held_count), VMSRS_HELD_MAX);
	u32 i, domain;

	for (i = 0; i < count; i++) {
		domain = READ_ONCE(thread->control->held[i]);
		if (domain < VMSRS_MAX_DOMAINS)
			vmsrs_lock_release(thread->app, domain, tag);
	}
}

/* Nobody maps the words any more. */
void vmsrs_locks_clear(struct vmsrs_app *app)
{
	u32 i;

	for (i = 0; i < VMSRS_LOCK_PAGES; i++)
		if (app->lock_pages[i])
			clear_page(page_address(app->lock_pages[i]));
}

void vmsrs_locks_free(struct vmsrs_app *app)
{
	u32 i;

	for (i = 0; i < VMSRS_LOCK_PAGES; i++)
		if (app->lock_pages[i])
			put_page(app->lock_pages[i]);
	kvfree(app->lock_pages);
}

static vm_fault_t lock_fault(struct vm_fault *vmf)
{
	struct vmsrs_app *app = vmf->vma->vm_private_data;
	struct page *page;

	page = lock_page(app, vmf->pgoff - (VMSRS_LOCKS_OFFSET >> PAGE_SHIFT),
			 GFP_KERNEL_ACCOUNT);
	if (!page)
		return VM_FAULT_OOM;
	get_page(page);
	vmf->page = page;
	return 0;
}

const struct vm_operations_struct vmsrs_lock_vm_ops = {
	.fault = lock_fault,
};
