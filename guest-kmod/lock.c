// SPDX-License-Identifier: GPL-2.0
/*
 * Lock words: one u64 per domain, in pages that all processes of an app map. Programs change
 * them at any time, so they are only ever changed by compare-and-exchange here. vmsrs_protocol.h
 * defines them.
 *
 * Like a futex, except that the driver takes the lock for the sleeper (lock_wait.c), and
 * releases the locks of a thread that failed or died.
 */
#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define VMSRS_QUEUE_BITS		8
#define VMSRS_WORDS_PER_PAGE		(PAGE_SIZE / sizeof(u64))
/*
 * A sleeper that was woken this often, and each time found the lock taken by a thread that had not
 * slept, is handed the lock by the next wake-up. Not by the first: others can use the lock until
 * the sleeper gets to run.
 */
#define VMSRS_HANDOVER_AFTER		2

/**
 * struct lock_queue - sleepers of all words with the same hash
 * @lock: guards the list and its members; an innermost lock
 * @sleepers: struct vmsrs_lock_sleeper, in order of arrival
 */
struct lock_queue {
	spinlock_t lock;	/* guards sleepers */
	struct list_head sleepers;
};

static struct lock_queue lock_queues[1 << VMSRS_QUEUE_BITS];

/**
 * vmsrs_locks_init() - initialise the queues of sleepers
 */
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

/* Returns a page of lock words; allocates it if there is none yet, unless `gfp` is 0. */
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

/**
 * vmsrs_lock_word() - find the lock word of a domain
 * @app: the app
 * @domain: number of the domain, below VMSRS_MAX_DOMAINS
 * @gfp: how to allocate the word's page if there is none yet, or 0 not to
 *
 * Return: the word, or NULL if there is no page for it.
 */
atomic64_t *vmsrs_lock_word(struct vmsrs_app *app, u32 domain, gfp_t gfp)
{
	struct page *page = lock_page(app, domain / VMSRS_WORDS_PER_PAGE, gfp);

	if (!page)
		return NULL;
	return (atomic64_t *)page_address(page) + domain % VMSRS_WORDS_PER_PAGE;
}

/**
 * vmsrs_lock_tag() - tell which request holds a domain
 * @app: the app
 * @domain: number of the domain
 *
 * Return: the tag of the holder, or 0.
 */
u64 vmsrs_lock_tag(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);

	return word ? atomic64_read(word) & VMSRS_LOCK_TAG : 0;
}

/**
 * vmsrs_lock_try() - take a lock, or mark it as waited for
 * @word: the lock word
 * @tag: tag that takes it
 *
 * Taking it sets the mark as well: there may be sleepers that marked the word before its last
 * release, and the wake-up of that release may have found this caller at the front of the queue.
 *
 * Return: 0; -EEXIST: the tag holds the lock already; -EAGAIN: another tag holds it.
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

/**
 * vmsrs_lock_wake_one() - wake the sleeper that has waited longest
 * @word: the lock word
 *
 * The sleeper marks the word again for the others. If it was overtaken too often, the lock is
 * taken for it here, provided it is still free: another program can come between a program's
 * release and its wake-up call, but hardly each time.
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

/**
 * vmsrs_sleeper_add() - append a task to the queue of its word
 * @sleeper: the task
 */
void vmsrs_sleeper_add(struct vmsrs_lock_sleeper *sleeper)
{
	struct lock_queue *queue = queue_of(sleeper->word);

	spin_lock(&queue->lock);
	list_add_tail(&sleeper->entry, &queue->sleepers);
	spin_unlock(&queue->lock);
}

/**
 * vmsrs_sleeper_remove() - take a task off the queue of its word
 * @sleeper: the task
 *
 * Return: true if the lock was taken for it; from here on it is not.
 */
bool vmsrs_sleeper_remove(struct vmsrs_lock_sleeper *sleeper)
{
	struct lock_queue *queue = queue_of(sleeper->word);

	spin_lock(&queue->lock);
	list_del(&sleeper->entry);
	spin_unlock(&queue->lock);
	return sleeper->granted;
}

/**
 * vmsrs_lock_wake() - wake the first sleeper of a domain's lock
 * @app: the app
 * @domain: number of the domain
 */
void vmsrs_lock_wake(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);

	if (word)
		vmsrs_lock_wake_one(word);
}

/**
 * vmsrs_lock_wake_all() - wake all sleepers, since the device is gone
 */
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

/**
 * vmsrs_lock_release() - release a domain if the tag holds it
 * @app: the app
 * @domain: number of the domain
 * @tag: tag of the holder, or 0 to wake only
 *
 * Wakes in any case: the holder may have died between its release and its wake-up call.
 *
 * Context: any except interrupts.
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

/**
 * vmsrs_lock_release_held() - release the domains in a thread's list of held domains
 * @thread: the thread
 * @tag: tag of its request; only what this tag holds is released
 */
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

/**
 * vmsrs_lock_delete() - mark the lock of a domain as that of a deleted one
 * @app: the app
 * @domain: number of the domain
 * @tag: tag of the request that deletes it
 *
 * The caller wakes a sleeper, which wakes the next when it gives up.
 *
 * Return: false if the tag does not have the lock.
 */
bool vmsrs_lock_delete(struct vmsrs_app *app, u32 domain, u64 tag)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);
	s64 value;

	if (!word)
		return false;
	value = atomic64_read(word);
	do {
		if ((value & VMSRS_LOCK_TAG) != tag)
			return false;
	} while (!atomic64_try_cmpxchg(word, &value, VMSRS_LOCK_DELETED));
	return true;
}

/**
 * vmsrs_lock_deleted() - tell whether a lock is that of a deleted domain
 * @app: the app
 * @domain: number of the domain
 *
 * The word alone does not tell: a process may have written it.
 */
bool vmsrs_lock_deleted(struct vmsrs_app *app, u32 domain)
{
	return vmsrs_lock_tag(app, domain) == VMSRS_LOCK_DELETED &&
	       xa_load(&app->deleted, domain);
}

/**
 * vmsrs_lock_revive() - free the lock of a number that another domain gets
 * @app: the app
 * @domain: the number; no process knows it as that of a domain
 */
void vmsrs_lock_revive(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = vmsrs_lock_word(app, domain, 0);

	if (word)
		atomic64_set(word, 0);
}

/**
 * vmsrs_locks_clear() - zero the lock words, which no process maps any more
 * @app: the app
 */
void vmsrs_locks_clear(struct vmsrs_app *app)
{
	u32 i;

	for (i = 0; i < VMSRS_LOCK_PAGES; i++)
		if (app->lock_pages[i])
			clear_page(page_address(app->lock_pages[i]));
}

/**
 * vmsrs_locks_free() - free the pages of lock words
 * @app: the app
 */
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
