/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inner structures of the VMSRS driver.
 *
 * The host is the authority for apps, domains, extents and sealed pages. The driver caches what the
 * host said, keeps the versions that are not sealed yet, and maps pages.
 *
 * Lock order, outermost first. Locks on one line are never held together.
 *
 *	mmap_lock or a VMA's lock (held by mm when it calls the fault handlers and .mmap)
 *	apps_lock
 *	vmsrs_app.lock
 *	commit_lock
 *	vmsrs_domain.lock (more than one only under commit_lock)
 *	control.lock
 *	requests_lock
 *	threads_lock
 *	pool.lock, batch.lock, control.vq_lock, vmsrs_app.waits_lock, locks of lock.c's queues
 *
 * - Fault handlers take one domain's lock and spinlocks, .mmap takes spinlocks: neither ever waits
 *   for anything that is held over a copy from or to user memory.
 * - User memory is accessed with no lock of the driver held.
 * - control.lock is held while the host works on a message, at most VMSRS_CONTROL_TIMEOUT. Holders of
 *   apps_lock and vmsrs_app.lock may take it; holders of commit_lock or of a domain's lock must
 *   not.
 * - mm's own i_mmap_rwsem and page table locks nest inside a domain's lock: a page's entries are
 *   zapped and inserted under it, so they always show the domain's state.
 */
#ifndef VMSRS_H
#define VMSRS_H

#include <linux/atomic.h>
#include <linux/hashtable.h>
#include <linux/idr.h>
#include <linux/kref.h>
#include <linux/list.h>
#include <linux/miscdevice.h>
#include <linux/mm_types.h>
#include <linux/mutex.h>
#include <linux/rbtree.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "vmsrs_protocol.h"

#define VMSRS_APP_PAGES_SHIFT		(VMSRS_APP_OFFSET_SHIFT - PAGE_SHIFT)

/* The host must answer a message within this time. */
#define VMSRS_CONTROL_TIMEOUT		(10 * HZ)
/* A commit or flush waits this long for its records to be sealed. */
#define VMSRS_SEAL_TIMEOUT		(10 * HZ)
/* A write fault waits this long for a frame. */
#define VMSRS_FRAME_TIMEOUT		(2 * HZ)
/* Work for the host is collected this long before it is sent. */
#define VMSRS_BATCH_DELAY		msecs_to_jiffies(5)
/* The host is asked again this often while somebody waits for a frame. */
#define VMSRS_GRANT_RETRY_DELAY	msecs_to_jiffies(10)
/* Period of the watch. */
#define VMSRS_WATCH_PERIOD		msecs_to_jiffies(10)
/* An overdue request that nobody fails is failed by the driver after this time. */
#define VMSRS_DEADLINE_GRACE_MS	1000
/* Threads that carry the tag of a failed request are interrupted again after this time. */
#define VMSRS_SIGNAL_AGAIN_MS		100
/*
 * A sleeper looks at its lock word again after this time, even if nobody woke it. Only programs that
 * clear a word and do not say so need that: among others no wake-up is lost (tests/loom). The
 * holder's death without a trace is found then, too, and a circle that closed without the driver.
 */
#define VMSRS_LOCK_SLICE		HZ

/* Largest protection key of x86: 4 bits of a page table entry. */
#define VMSRS_PROTECTION_KEY_MAX	15
/* Who adds a report to that many waits until some are sent, so that nobody can pile them up. */
#define VMSRS_REPORTS_MAX		256
/*
 * Most evidence that waits to be sent, up to a message each; an incident that comes while there is as
 * much goes without.
 */
#define VMSRS_EVIDENCE_MAX		64
/* Reports sent before commits, which may have come meanwhile, have their turn again. */
#define VMSRS_REPORTS_PER_TURN	16

/* Most threads that are registered at a time. */
#define VMSRS_THREADS_MAX		65536
/* Tags given out at a time: few, since a short-lived thread leaves the most of them unused. */
#define VMSRS_TAGS_PER_RANGE		BIT_ULL(16)
/* Pages of lock words of one app. */
#define VMSRS_LOCK_PAGES		(VMSRS_LOCKS_LENGTH / PAGE_SIZE)

struct vmsrs_app;
struct vmsrs_domain;
struct vmsrs_device;

/* A page of a domain. Guarded by the domain's lock. */
struct vmsrs_page {
	u32 frame;		/* committed version, VMSRS_NONE, or VMSRS_DAMAGED_FRAME */
	u32 draft;		/* version that a request is writing, or VMSRS_NONE */
};

/*
 * Consecutive pages of a domain. Never changes and never goes away while the device structure
 * lives, but for the contents of entries[].
 */
struct vmsrs_extent_pages {
	struct vmsrs_domain *domain;
	struct vmsrs_extent_pages *next;	/* in order of index; guarded by vmsrs_app.lock */
	u32 page;
	u32 pages;
	struct vmsrs_page entries[];
};

/*
 * A version of a page on its way: first on its domain's list of drafts, then either in the seal
 * batch or in a report. Whoever has it on its list owns it.
 */
struct vmsrs_draft {
	struct list_head list;
	struct vmsrs_page *entry;
	u64 tag;
	u32 app;
	u32 domain;
	u32 page;
	u32 frame;
	u32 committed;		/* frame of the version before, or VMSRS_NONE */
	u32 flags;		/* of its seal record */
};

struct vmsrs_domain {
	struct mutex lock;	/* guards drafts, draft_count, owner and the entries of its extents */
	struct vmsrs_app *app;
	struct vmsrs_extent_pages *first, *last;	/* guarded by vmsrs_app.lock */
	struct vmsrs_request *owner;		/* whose drafts these are, or NULL if there are none */
	struct list_head owned;			/* in owner->domains; guarded by requests_lock */
	struct list_head drafts;
	u32 number;
	u32 draft_count;
	u32 extent_count;			/* guarded by vmsrs_app.lock */
};

/* Apps live as long as the device structure. */
struct vmsrs_app {
	struct vmsrs_device *dev;
	struct mutex lock;		/* guards domains and extents while they are fetched or made */
	struct xarray domains;		/* number -> struct vmsrs_domain */
	struct xarray units;		/* page / EXTENT_UNIT_PAGES -> struct vmsrs_extent_pages */
	struct page **lock_pages;	/* VMSRS_LOCK_PAGES entries, set once each by cmpxchg */
	u32 number;
	u32 files;			/* guarded by vmsrs_device.apps_lock */
	u8 name[VMSRS_NAME_MAX];
	spinlock_t waits_lock;		/* guards waits; nests in nothing of the driver's */
	struct rb_root waits;		/* struct vmsrs_wait, by tag */
};

/*
 * A request that has drafts, has failed, or is suspended. Made at its first draft or suspension;
 * goes away when its drafts are committed or discarded, or, if it failed, when no thread carries its
 * tag any more; but never while it is suspended. One that failed while suspended has been discarded:
 * what has failed is not suspended, and the watch does not only mark what is. Removed only under
 * commit_lock.
 */
struct vmsrs_request {
	struct hlist_node node;		/* in requests; guarded by requests_lock */
	struct list_head domains;	/* domains with its drafts; guarded by requests_lock */
	/* In failed_requests, unless it is suspended; guarded by requests_lock */
	struct list_head failed_entry;
	/* Guarded by requests_lock, changed under commit_lock as well: */
	struct list_head suspended_entry;	/* in suspended_by->suspended */
	struct vmsrs_file *suspended_by;	/* NULL if it is not suspended */
	struct rb_node due_node;	/* in due_requests, or empty: it has no deadline or failed */
	u64 due_ns;			/* its deadline while suspended, or 0 */
	u32 held_count;			/* domains it holds while suspended; not checked */
	u32 held[VMSRS_HELD_MAX];
	struct vmsrs_app *app;
	struct vmsrs_file *file;	/* through which it was begun; NULL if it has failed */
	struct list_head file_entry;	/* in file->requests; guarded by requests_lock */
	u64 tag;
	u32 key;			/* protection key of its drafts, or 0; never changes */
	atomic_t drafts;
	bool failed;			/* set under requests_lock, never cleared: it may not write */
	bool overdue;			/* failed because of its deadline; guarded by requests_lock */
	bool carried;			/* only for vmsrs_requests_prune() */
	bool discarded;			/* guarded by commit_lock, like the following */
	u32 dropped;			/* drafts that its failure has cost so far */
	u32 kind;
	u64 incident;
};

/* A registered thread: one for each thread and app. */
struct vmsrs_thread {
	struct kref ref;
	struct rcu_head rcu;
	struct hlist_node node;		/* in threads; guarded by threads_lock, read under RCU */
	struct list_head list;		/* in thread_list; guarded by threads_lock */
	struct vmsrs_device *dev;
	struct vmsrs_app *app;
	struct vmsrs_file *file;	/* valid while the thread is in thread_list */
	struct task_struct *task;	/* referenced, so its address is not used again */
	struct mm_struct *mm;		/* referenced (not its pages); tells an exec */
	struct page *page;
	struct vmsrs_thread_control *control;	/* in page; the process writes to it at any time */
	u32 slot;
	u32 signal;

	/* Only used by the thread itself. */
	u64 noted_tag;			/* the tag that the next three are of */
	u64 refused_address;		/* page of the last access that was refused, or 0 */
	u32 refused_kind;
	unsigned long frame_due;	/* jiffies when waiting for a frame ends, or 0 */

	/* Only used by the watch. */
	u64 signalled_tag;		/* that was overdue when the watch saw it */
	u64 signalled_ns;

	u64 interrupted_ns;		/* last signal; guarded by threads_lock */
	struct list_head releasing;	/* among those whose locks go; guarded by commit_lock */
};

/* A thread that sleeps for a lock. */
struct vmsrs_wait {
	struct rb_node node;		/* in app->waits, or empty; guarded by waits_lock */
	struct list_head todo;		/* of one walk; guarded by waits_lock */
	struct vmsrs_app *app;
	u64 tag;
	atomic64_t *word;
};

struct vmsrs_file {
	struct vmsrs_device *dev;
	struct vmsrs_app *app;		/* set once under apps_lock; NULL before */
	/* Guarded by requests_lock: */
	struct list_head requests;	/* begun through it, and not failed */
	struct list_head suspended;	/* suspended through it */
	u32 suspended_count;
};

/* Frames that the host granted. */
struct vmsrs_pool {
	spinlock_t lock;		/* guards what follows up to the wait queue */
	unsigned long *granted;		/* a bit a frame: free, in a draft, or unsealed */
	unsigned long *free;		/* a bit a frame: subset of granted */
	u32 granted_count;
	u32 free_count;
	u32 hint;			/* no free frame is below */
	wait_queue_head_t wait;		/* for a free frame */
	atomic_t waiters;
	bool dry;			/* the host granted less than asked; only a hint */
};

/* Committed pages and reports, on their way to the host. */
struct vmsrs_batch {
	spinlock_t lock;		/* guards what follows up to appended */
	struct list_head records;	/* struct vmsrs_draft, in order of commit */
	u32 queued;			/* records on the list */
	struct list_head reports;	/* struct vmsrs_report */
	u32 reports_queued;		/* reports on the list */
	u32 evidence;			/* reports with evidence, on the list or about to be */
	u64 appended;			/* records ever put on the list */
	atomic64_t sealed;		/* records ever sealed */
	wait_queue_head_t wait;		/* for sealed, and for fewer reports */
};

struct vmsrs_control {
	struct mutex lock;		/* one message at a time; guards request and reply */
	spinlock_t vq_lock;		/* guards vq, done and used */
	struct virtqueue *vq;
	void *request;			/* MESSAGE_BYTES_MAX each; the host's while a message is out */
	void *reply;
	bool done;
	u32 used;
	wait_queue_head_t wait;
};

#define VMSRS_EVENT_BUFFERS 16

struct vmsrs_device {
	struct kref ref;		/* the virtio device and every open file */
	struct virtio_device *vdev;	/* valid until remove; use only under control.lock */
	struct miscdevice misc;
	struct inode *inode;		/* whose mapping all opens share */
	struct workqueue_struct *wq;
	bool gone;			/* the virtio device is being removed; set under commit_lock */
	bool broken;			/* the host misbehaved, or gone; never cleared */
	struct srcu_struct srcu;	/* read side: fault handlers, which use the window */

	struct vmsrs_device_config config;
	phys_addr_t window_phys;
	void *window;

	struct vmsrs_control control;
	struct virtqueue *event_vq;	/* NULL without FEATURE_EVENTS; used by event_work alone */
	struct vmsrs_event *events;	/* VMSRS_EVENT_BUFFERS buffers */
	spinlock_t event_lock;		/* guards events_stopped; taken in hard interrupts */
	bool events_stopped;		/* event_work is not queued any more */
	struct work_struct event_work;

	struct vmsrs_pool pool;
	struct vmsrs_batch batch;
	struct delayed_work host_work;

	struct mutex apps_lock;		/* guards apps and their files, and vmsrs_file.app */
	struct vmsrs_app *apps[VMSRS_MAX_APPS];

	struct mutex commit_lock;	/* commits, discards and failures happen one after the other */
	spinlock_t requests_lock;	/* guards requests, the two below, and the lists of files */
	DECLARE_HASHTABLE(requests, 10);
	struct list_head failed_requests;
	struct rb_root_cached due_requests;	/* suspended ones with a deadline, by it */

	spinlock_t threads_lock;	/* guards threads and thread_list */
	DECLARE_HASHTABLE(threads, 8);
	struct list_head thread_list;
	struct ida slots;
	struct delayed_work watch;

	atomic64_t next_tag;
	atomic64_t next_incident;

	atomic_t drafts;
	atomic64_t commits;
	atomic64_t sealed_pages;
	atomic64_t discarded;
	atomic64_t incidents;
	atomic64_t seal_messages;
};

/* A failed request's story, or (without incident) frames to be discarded, or evidence. */
struct vmsrs_report {
	struct list_head list;
	struct list_head drafts;
	struct vmsrs_evidence *evidence;	/* with its bytes behind it; by kvmalloc, or NULL */
	bool incident;
	u32 count;
	struct vmsrs_incident_report body;
};

/* main.c */
void vmsrs_device_put(struct vmsrs_device *dev);
__printf(2, 3) void vmsrs_break(struct vmsrs_device *dev, const char *format, ...);
void vmsrs_wake_everybody(struct vmsrs_device *dev);

static inline bool vmsrs_broken(const struct vmsrs_device *dev)
{
	return READ_ONCE(dev->broken);
}

/* May programs ask for something that needs the host? */
static inline bool vmsrs_usable(const struct vmsrs_device *dev)
{
	return !READ_ONCE(dev->gone) && !vmsrs_broken(dev);
}

/* inode.c */
struct inode *vmsrs_inode_new(void);
void vmsrs_inode_free(struct inode *inode);

/* control.c */
int vmsrs_control_init(struct vmsrs_device *dev);
void vmsrs_control_free(struct vmsrs_device *dev);
void vmsrs_control_done(struct virtqueue *vq);
void *vmsrs_control_begin(struct vmsrs_device *dev);
int vmsrs_control_exchange(struct vmsrs_device *dev, u32 kind, u32 length, const void **reply,
			   u32 *reply_length);
void vmsrs_control_end(struct vmsrs_device *dev);
int vmsrs_control_call(struct vmsrs_device *dev, u32 kind, const void *payload, u32 length,
		       void *reply, u32 reply_length);

/* event.c */
int vmsrs_event_init(struct vmsrs_device *dev);
void vmsrs_event_start(struct vmsrs_device *dev);
void vmsrs_event_stop(struct vmsrs_device *dev);
void vmsrs_event_free(struct vmsrs_device *dev);
void vmsrs_event_done(struct virtqueue *vq);

/* pool.c */

/* Frames that requests with many drafts leave to others. */
static inline u32 vmsrs_pool_reserve(const struct vmsrs_device *dev)
{
	return dev->config.pool_frames / 8;
}

int vmsrs_pool_init(struct vmsrs_device *dev);
void vmsrs_pool_free(struct vmsrs_device *dev);
u32 vmsrs_pool_take(struct vmsrs_device *dev, u32 reserve);
void vmsrs_pool_put(struct vmsrs_device *dev, u32 frame);
void vmsrs_pool_revoke(struct vmsrs_device *dev, u32 frame);
int vmsrs_pool_grant(struct vmsrs_device *dev, const struct vmsrs_frame_run *runs, u32 count);
int vmsrs_pool_take_reply(struct vmsrs_device *dev, const void *reply, u32 length);
int vmsrs_pool_refill(struct vmsrs_device *dev);
vm_fault_t vmsrs_pool_wait(struct vmsrs_device *dev, struct vmsrs_thread *thread,
			   struct vm_fault *vmf, u32 reserve);

/* app.c */
long vmsrs_app_open(struct vmsrs_file *file, struct vmsrs_ioctl_open_app *arg);
void vmsrs_app_close(struct vmsrs_file *file);
void vmsrs_app_free(struct vmsrs_app *app);
long vmsrs_domain_open(struct vmsrs_app *app, struct vmsrs_ioctl_open_domain *arg);
long vmsrs_extent_open(struct vmsrs_app *app, struct vmsrs_ioctl_extent *arg);
struct vmsrs_extent_pages *vmsrs_extent_find(struct vmsrs_app *app, u32 page);
u32 vmsrs_address_domain(struct vmsrs_app *app, u64 address);

/* page.c */
extern const struct vm_operations_struct vmsrs_page_vm_ops;
void vmsrs_zap_drafts(struct vmsrs_app *app, struct list_head *drafts);
void vmsrs_zap_everything(struct vmsrs_device *dev);
void vmsrs_page_damaged(struct vmsrs_device *dev, u64 address, u32 frame);
int vmsrs_draft_cache_init(void);
void vmsrs_draft_cache_exit(void);
void vmsrs_drafts_free(struct list_head *drafts);
void vmsrs_draft_free(struct vmsrs_draft *draft);

/* request.c */
int vmsrs_request_own(struct vmsrs_domain *domain, struct vmsrs_file *file, u64 tag, u32 key);
struct vmsrs_request *vmsrs_request_take(struct vmsrs_app *app, u64 tag, u32 domain,
					 struct list_head *domains);
struct vmsrs_request *vmsrs_request_find(struct vmsrs_app *app, u64 tag);
void vmsrs_request_add(struct vmsrs_request *request);
struct vmsrs_request *vmsrs_request_alloc(struct vmsrs_app *app, u64 tag, gfp_t gfp);
void vmsrs_request_begun(struct vmsrs_request *request, struct vmsrs_file *file, u32 key);
void vmsrs_request_settle(struct vmsrs_request *request);
bool vmsrs_tag_valid(struct vmsrs_device *dev, u64 tag);
bool vmsrs_request_orphaned(struct vmsrs_app *app, u64 tag);
void vmsrs_requests_prune(struct vmsrs_device *dev);
void vmsrs_requests_free(struct vmsrs_device *dev);

/* commit.c */
long vmsrs_commit(struct vmsrs_app *app, const struct vmsrs_ioctl_commit *arg);

/* drafts.c */
long vmsrs_drafts_list(struct vmsrs_app *app, struct vmsrs_ioctl_drafts *arg);
long vmsrs_flush(struct vmsrs_device *dev, bool killable_only);

/* host.c */
void vmsrs_host_init(struct vmsrs_device *dev);
void vmsrs_host_free(struct vmsrs_device *dev);
void vmsrs_host_work_soon(struct vmsrs_device *dev);
void vmsrs_host_work_now(struct vmsrs_device *dev);
u64 vmsrs_host_append(struct vmsrs_device *dev, struct list_head *records, u32 count);
void vmsrs_host_report(struct vmsrs_device *dev, struct vmsrs_report *report);
bool vmsrs_host_evidence_reserve(struct vmsrs_device *dev);
void vmsrs_host_evidence_release(struct vmsrs_device *dev);
void vmsrs_host_evidence(struct vmsrs_device *dev, struct vmsrs_evidence *evidence);
void vmsrs_host_reports_wait(struct vmsrs_device *dev);
u32 vmsrs_host_reports_room(struct vmsrs_device *dev);

/* fail.c */
bool vmsrs_fail(struct vmsrs_app *app, struct vmsrs_thread *thread, struct vmsrs_ioctl_fail *fail);
void vmsrs_fail_suspended(struct vmsrs_app *app, struct vmsrs_ioctl_fail *fail);
void vmsrs_fail_orphan(struct vmsrs_app *app, u32 domain, u64 tag);
void vmsrs_fail_file(struct vmsrs_file *file);
void vmsrs_discard(struct vmsrs_app *app, u64 tag);
void vmsrs_overdue(struct vmsrs_app *app, u64 tag, u64 now);

/* evidence.c */
void vmsrs_evidence_registers(struct vmsrs_incident_report *body);
bool vmsrs_evidence_valid(const struct vmsrs_ioctl_fail *fail);
void vmsrs_evidence_take(struct vmsrs_device *dev, const struct vmsrs_ioctl_fail *fail);

/* suspend.c */
long vmsrs_suspend(struct vmsrs_file *file, struct vmsrs_thread *thread,
		   const struct vmsrs_ioctl_suspend *arg);
long vmsrs_resume(struct vmsrs_file *file, u64 tag);
long vmsrs_abandon(struct vmsrs_file *file, u64 tag);
void vmsrs_suspended_undue(struct vmsrs_request *request);
void vmsrs_suspended_forget(struct vmsrs_file *file, u64 tag);
void vmsrs_suspended_watch(struct vmsrs_device *dev, u64 now);
bool vmsrs_suspended_due(struct vmsrs_device *dev);

/* deadlock.c */
void vmsrs_waits_init(struct vmsrs_app *app);
int vmsrs_wait_enter(struct vmsrs_wait *wait);
void vmsrs_wait_leave(struct vmsrs_wait *wait);

/* thread.c */
void vmsrs_threads_init(struct vmsrs_device *dev);
struct vmsrs_thread *vmsrs_thread_current(struct vmsrs_app *app);
void vmsrs_thread_put(struct vmsrs_thread *thread);
long vmsrs_thread_register(struct vmsrs_file *file, struct vmsrs_ioctl_thread *arg);
long vmsrs_thread_exit(struct vmsrs_file *file);
void vmsrs_threads_reap(struct vmsrs_file *file, bool all);
int vmsrs_thread_mmap(struct vmsrs_file *file, struct vm_area_struct *vma);
void vmsrs_thread_signal_members(struct vmsrs_app *app, u64 tag);
void vmsrs_thread_signal_again(struct vmsrs_thread *thread, u64 now);
bool vmsrs_thread_carries(struct vmsrs_app *app, u64 tag);
void vmsrs_thread_tags(struct vmsrs_device *dev, u64 *first, u64 *count);

static inline u64 vmsrs_thread_tag(const struct vmsrs_thread *thread)
{
	return READ_ONCE(thread->control->tag);
}

/* Protection key for the drafts of a request that the thread begins, or 0. */
static inline u32 vmsrs_thread_key(const struct vmsrs_thread *thread)
{
	u32 key = READ_ONCE(thread->control->key);

	return key <= VMSRS_PROTECTION_KEY_MAX ? key : 0;
}

/* lock.c */
extern const struct vm_operations_struct vmsrs_lock_vm_ops;
void vmsrs_locks_init(void);
u64 vmsrs_lock_tag(struct vmsrs_app *app, u32 domain);
void vmsrs_lock_release(struct vmsrs_app *app, u32 domain, u64 tag);
void vmsrs_lock_release_held(struct vmsrs_thread *thread, u64 tag);
long vmsrs_lock_wait(struct vmsrs_app *app, const struct vmsrs_ioctl_lock *arg);
void vmsrs_lock_wake(struct vmsrs_app *app, u32 domain);
void vmsrs_lock_wake_everybody(void);
void vmsrs_locks_clear(struct vmsrs_app *app);
void vmsrs_locks_free(struct vmsrs_app *app);

/* file.c */
extern const struct file_operations vmsrs_fops;

#endif /* VMSRS_H */
