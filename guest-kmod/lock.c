// SPDX-License-Identifier: GPL-2.0
/*
 * Lock words: one u64 a domain in pages that all processes of an app map, and the sleep of those
 * that find one taken. What a word means is told in vmsrs_protocol.h; programs change them at any
 * time, so they are only ever changed by compare-and-exchange here.
 *
 * Like a futex, but the driver takes the lock for the sleeper, and knows how to release those of a
 * thread that failed or died.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>

#include "vmsrs.h"

#define QUEUE_BITS		8
#define WORDS_PER_PAGE		(PAGE_SIZE / sizeof(u64))

/* Sleepers, hashed by the address of their word. */
static wait_queue_head_t lock_queues[1 << QUEUE_BITS];

struct lock_sleeper {
	struct wait_queue_entry entry;
	atomic64_t *word;
};

void vmsrs_locks_init(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lock_queues); i++)
		init_waitqueue_head(&lock_queues[i]);
}

static wait_queue_head_t *queue_of(atomic64_t *word)
{
	return &lock_queues[hash_ptr(word, QUEUE_BITS)];
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

static atomic64_t *lock_word(struct vmsrs_app *app, u32 domain, gfp_t gfp)
{
	struct page *page = lock_page(app, domain / WORDS_PER_PAGE, gfp);

	if (!page)
		return NULL;
	return (atomic64_t *)page_address(page) + domain % WORDS_PER_PAGE;
}

/* Tag of the request that holds a domain, or 0. */
u64 vmsrs_lock_tag(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = lock_word(app, domain, 0);

	return word ? atomic64_read(word) & VMSRS_LOCK_TAG : 0;
}

static int lock_wake_function(struct wait_queue_entry *entry, unsigned int mode, int sync,
			      void *word)
{
	struct lock_sleeper *sleeper = container_of(entry, struct lock_sleeper, entry);

	if (word && sleeper->word != word)
		return 0;
	return autoremove_wake_function(entry, mode, sync, word);
}

/* Wakes one sleeper; it marks the word again for the others. */
static void wake_one(atomic64_t *word)
{
	__wake_up(queue_of(word), TASK_NORMAL, 1, word);
}

void vmsrs_lock_wake(struct vmsrs_app *app, u32 domain)
{
	atomic64_t *word = lock_word(app, domain, 0);

	if (word)
		wake_one(word);
}

/* The device is gone. */
void vmsrs_lock_wake_everybody(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(lock_queues); i++)
		wake_up_all(&lock_queues[i]);
}

/*
 * Releases a domain that the tag holds. Wakes in any case: the holder may have died between its
 * release and its wake-up call. Any context but interrupts.
 */
void vmsrs_lock_release(struct vmsrs_app *app, u32 domain, u64 tag)
{
	atomic64_t *word = lock_word(app, domain, 0);
	s64 value;

	if (!word)
		return;
	value = atomic64_read(word);
	while (tag && (value & VMSRS_LOCK_TAG) == tag)
		if (atomic64_try_cmpxchg(word, &value, 0))
			break;
	wake_one(word);
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

/*
 * Takes the lock, or marks it as waited for. Whoever takes it here sets the mark as well: there may
 * be sleepers that marked the word before its last release. That holds even for one who has not
 * slept: it is on the queue, and the wake-up of that release may have found it there.
 */
static int lock_try(atomic64_t *word, u64 tag)
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

/* Nobody will release the lock of a request that nobody works for. */
static void release_orphan(struct vmsrs_app *app, u32 domain)
{
	u64 tag = vmsrs_lock_tag(app, domain);

	if (tag && vmsrs_request_orphaned(app, tag))
		vmsrs_fail_orphan(app, domain, tag);
}

static bool request_failed(struct vmsrs_app *app, u64 tag)
{
	struct vmsrs_request *request;
	bool failed;

	spin_lock(&app->dev->requests_lock);
	request = vmsrs_request_find(app, tag);
	failed = request && request->failed;
	spin_unlock(&app->dev->requests_lock);
	return failed;
}

/*
 * Waits for a domain's lock and takes it. The caller checked that the tag is the calling thread's.
 * -ESTALE: the request has failed. -EDEADLK: its holder waits for the caller's request.
 */
long vmsrs_lock_wait(struct vmsrs_app *app, const struct vmsrs_ioctl_lock *arg)
{
	unsigned long due = jiffies + msecs_to_jiffies(arg->timeout_ms);
	struct vmsrs_wait wait = { .app = app, .tag = arg->tag };
	struct lock_sleeper sleeper;
	wait_queue_head_t *queue;
	long ret, left, interrupted;

	sleeper.word = lock_word(app, arg->domain, GFP_KERNEL_ACCOUNT);
	if (!sleeper.word)
		return -ENOMEM;
	wait.word = sleeper.word;
	RB_CLEAR_NODE(&wait.node);
	INIT_LIST_HEAD(&wait.todo);
	queue = queue_of(sleeper.word);
	init_wait_entry(&sleeper.entry, WQ_FLAG_EXCLUSIVE);
	sleeper.entry.func = lock_wake_function;
	for (;;) {
		/* Queued before the word is looked at, so that no wake-up is missed. */
		interrupted = prepare_to_wait_event(queue, &sleeper.entry, TASK_INTERRUPTIBLE);
		if (request_failed(app, arg->tag)) {
			ret = -ESTALE;
			break;
		}
		ret = lock_try(sleeper.word, arg->tag);
		if (ret != -EAGAIN)
			break;
		if (READ_ONCE(app->dev->gone)) {
			ret = -ENODEV;
			break;
		}
		if (interrupted) {
			ret = -EINTR;
			break;
		}
		left = (long)(due - jiffies);
		if (left <= 0) {
			ret = -ETIMEDOUT;
			break;
		}
		ret = vmsrs_wait_enter(&wait);
		if (ret)
			break;
		if (!schedule_timeout(min_t(long, left, LOCK_SLICE)))
			release_orphan(app, arg->domain);
	}
	finish_wait(queue, &sleeper.entry);
	vmsrs_wait_leave(&wait);
	/* A wake-up that came too late for this sleeper is another's. */
	if (ret)
		wake_one(sleeper.word);
	return ret;
}

/* Nobody maps the words any more. */
void vmsrs_locks_clear(struct vmsrs_app *app)
{
	u32 i;

	for (i = 0; i < LOCK_PAGES; i++)
		if (app->lock_pages[i])
			clear_page(page_address(app->lock_pages[i]));
}

void vmsrs_locks_free(struct vmsrs_app *app)
{
	u32 i;

	for (i = 0; i < LOCK_PAGES; i++)
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
