/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Internal structures and functions of the VMSRS driver.
 *
 * The host is the authority for apps, domains, extents and sealed pages. The driver caches what the
 * host said, keeps the versions that are not sealed yet, and maps pages.
 *
 * Functions are declared in the order of the files, lowest layer first. A file calls only its own
 * functions and those of files before it (tests/loom checks that).
 *
 * Lock order, outermost first. Locks on one line are never held together.
 *
 *	mmap_lock (held by mm when it calls the fault handlers and .mmap; not a VMA's lock, since
 *		there is no .map_pages)
 *	apps_lock vmsrs_app.lock commit_lock request_locks release_lock vmsrs_domain.lock (more than
 *	one only under one of request_locks: a domain is one request's; others are only
 *		tried: a hot domain whose key is taken for another, and neighbours when a batch is
 *	answered) control.lock requests_lock vmsrs_app.hot_lock threads_lock leases_lock pool.lock, batch.lock,
 *	reports.lock, control.vq_lock, vmsrs_app.waits_lock,
 *		vmsrs_app.mapping_lock, locks of lock.c's queues
 *
 * - Fault handlers take one domain's lock or leases_lock, and spinlocks; .mmap takes leases_lock and spinlocks only: neither ever
 *   waits for anything that is held across a copy from or to user memory.
 * - No lock of the driver is held while user memory is accessed.
 * - Commits, discards and failures take mmap_lock inside the domains' locks, to look at the
 *   process's entries and to change them. They only try to, and do without if they cannot.
 * - control.lock is held while the host works on a message, at most VMSRS_CONTROL_TIMEOUT. Holders
 *   of apps_lock and vmsrs_app.lock may take it; holders of commit_lock or of a domain's lock must
 *   not.
 * - mm's own i_mmap_rwsem and page table locks nest inside a domain's lock, and inside leases_lock: page table entries are
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
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/srcu.h>
#include <linux/virtio.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <linux/xarray.h>

#include "vmsrs_protocol.h"

/* In place of the number of a draft's frame; larger than VMSRS_MAX_FRAMES. */
#define VMSRS_NO_DRAFT			0x7fffffffU
#define VMSRS_APP_PAGES_SHIFT		(VMSRS_APP_OFFSET_SHIFT - PAGE_SHIFT)

/* The host must answer a message within this time. */
#define VMSRS_CONTROL_TIMEOUT		(10 * HZ)
/* A commit or flush waits at most this long for its records to be sealed. */
#define VMSRS_SEAL_TIMEOUT		(10 * HZ)
/* The host is asked this often about a lost page while batches are sealed. */
#define VMSRS_LOST_TRIES		16
/* A write fault waits at most this long for a frame. */
#define VMSRS_FRAME_TIMEOUT		(2 * HZ)
/*
 * Commits are collected this long before they are sent, so that a page which is written again and
 * again is sealed once for many commits.
 */
#define VMSRS_BATCH_DELAY		msecs_to_jiffies(50)
/* Reports are collected this long: they hold frames of the pool. */
#define VMSRS_REPORT_DELAY		msecs_to_jiffies(5)
/* Period of the watch. */
#define VMSRS_WATCH_PERIOD		msecs_to_jiffies(10)
/* The driver fails an overdue request that its threads have not failed after this time. */
#define VMSRS_DEADLINE_GRACE_MS		1000
/* Threads that carry the tag of a failed request are interrupted again after this time. */
#define VMSRS_SIGNAL_AGAIN_MS		100
/*
 * A sleeper rechecks its lock word after this time even if nothing woke it. Programs that clear a
 * word without a wake-up call need that; otherwise no wake-up is lost (tests/loom). A holder that
 * died without a trace and a cycle that closed without the driver are found then, too.
 */
#define VMSRS_LOCK_SLICE		HZ

/* Bytes of a message after its header. */
#define VMSRS_PAYLOAD_MAX		(VMSRS_MESSAGE_BYTES_MAX - sizeof(struct vmsrs_control_header))
/* Largest protection key of x86: 4 bits of a page table entry. */
#define VMSRS_PROTECTION_KEY_MAX	15
/* A thread that adds a report to this many waits until some have been sent. */
#define VMSRS_REPORTS_MAX		256
/* Evidence queued at a time, up to a message each; further incidents go without. */
#define VMSRS_EVIDENCE_MAX		64
/* Reports that are kept ready for failures, each with memory for this much evidence. */
#define VMSRS_REPORTS_SPARE		64
/* Requests whose memory is kept for failures. */
#define VMSRS_REQUESTS_SPARE		64
#define VMSRS_EVIDENCE_SPARE		8192

/* Commits in a row with a page are counted up to this many; after them it is hot. */
#define VMSRS_STREAK_MAX		3
/*
 * Commits that have written resident pages after which one time that the domain has cooled is
 * forgotten.
 */
#define VMSRS_PAID_AFTER		256
/* Hot pages of a domain; struct vmsrs_heat has 64 bytes then. */
#define VMSRS_HOT_MAX			12
/* Most pages that are drafted ahead at a time because they follow. */
#define VMSRS_FOLLOWING_MAX		16

/* Requests share this many locks, as a power of two. */
#define VMSRS_REQUEST_LOCKS_SHIFT	6
/* Threads registered at a time. */
#define VMSRS_THREADS_MAX		65536
/* Tags handed out at a time: few, since a short-lived thread leaves most of them unused. */
#define VMSRS_TAGS_PER_RANGE		BIT_ULL(16)
/* Pages of lock words of one app. */
#define VMSRS_LOCK_PAGES		(VMSRS_LOCKS_LENGTH / PAGE_SIZE)
/* Buffers in the event queue. */
#define VMSRS_EVENT_BUFFERS		16

struct vmsrs_app;
struct vmsrs_deletion;
struct vmsrs_device;
struct vmsrs_domain;
struct vmsrs_file;
struct vmsrs_lease;
struct vmsrs_request;
struct vmsrs_resident;
struct vmsrs_thread;

/**
 * struct vmsrs_page - a page of a domain; guarded by the domain's lock
 * @frame: committed version: its vault frame; its pool frame with VMSRS_IN_POOL while it is not
 *	sealed; VMSRS_NONE if it was never committed; or VMSRS_DAMAGED_FRAME
 * @draft: number of the pool frame that a request is writing, or that is resident, or
 *	VMSRS_NO_DRAFT
 * @mapped: some process may have an entry for it in its page table
 */
struct vmsrs_page {
	u32 frame;
	u32 draft : 31;
	u32 mapped : 1;
};

/**
 * struct vmsrs_run - neighbouring pages of an extent
 * @app: the app
 * @vma: a mapping of them, with mmap_lock held; or NULL, to unmap them only
 * @entries: the pages, @count of them
 * @page: number of the first one
 * @count: number of pages; 0 for an empty run
 * @note: when they are unmapped, it is noted which of their drafts are not sure to have been
 *	written through @vma
 * @unsure: how many these are
 * @fresh: entries are made such that the CPU notes the first access
 */
struct vmsrs_run {
	struct vmsrs_app *app;
	struct vm_area_struct *vma;
	struct vmsrs_page *entries;
	u32 page;
	u32 count;
	bool note;
	bool fresh;
	u32 unsure;
};

/**
 * struct vmsrs_extent_pages - consecutive pages of a domain
 * @domain: the domain, or NULL if it is deleted
 * @next: next extent of the domain, in order of index, after the last one the first; guarded by
 *	vmsrs_app.lock
 * @page: first page
 * @pages: number of pages
 * @entries: the pages
 *
 * Never changes, except for the contents of @entries, until its domain is deleted. Then @domain is NULL, changed under the
 * domain's lock; it is freed when no fault handler can have found it before that (vmsrs_device.srcu).
 */
struct vmsrs_extent_pages {
	struct vmsrs_domain *domain;
	struct vmsrs_extent_pages *next;
	u32 page;
	u32 pages;
	struct vmsrs_page entries[];
};

/**
 * struct vmsrs_frame - a frame of the pool: free, or a version of a page that is not sealed
 * @next: the next one in vmsrs_pool.free, vmsrs_domain.drafts or vmsrs_report.drafts. The owner of
 *	these, of vmsrs_batch.records or of vmsrs_batch.sent owns the frame. A frame is in none of
 *	them that its owner has put while reports still name it or leases show it, or whose memory is broken: that one
 *	is not used any more
 * @entry: its page
 * @domain: the page's domain
 * @page: number of the page
 * @refs: its owner, each report that names it as a committed version, and each lease of it;
 *	guarded by vmsrs_pool.lock
 * @committed: committed version of the page, as in vmsrs_page.frame, when this one was committed or
 *	dropped
 * @replaced: vault frame that the host has for the page, or VMSRS_NONE; set at the commit, by the
 *	answer to an older batch, or when that version is lost; guarded by the domain's lock
 * @sealed: vault frame that the host answered, or VMSRS_DAMAGED_FRAME; only used by the seal work
 * @lost: vault frame whose loss the host reported while this one was sent, or VMSRS_NONE; guarded
 *	by the domain's lock
 * @batch: number of its batch; guarded by vmsrs_batch.lock
 * @place: index in vmsrs_batch.records; guarded by vmsrs_batch.lock
 * @commit: number of the commit in its domain; guarded by the domain's lock, like the following
 * @streak: commits in a row that have written the page, up to the one of this version
 * @ahead: why it became a draft before it was written
 * @unsure: it may be as it was made; noted when its page is unmapped
 * @sample: whether it was read before it was sealed is looked at
 * @alone: no entry shows the committed version that it is a draft of
 * @resident: it is a draft between requests, too, and in vmsrs_resident.pages
 * @unwritten: commits in a row that have left the resident page as it was
 */
struct vmsrs_frame {
	struct vmsrs_frame *next;
	struct vmsrs_page *entry;
	struct vmsrs_domain *domain;
	u32 page;
	u32 refs;
	u32 committed;
	u32 replaced;
	u32 sealed;
	u32 lost;
	u32 batch;
	u32 place;
	u16 commit;
	u8 streak;
	u8 ahead;
	bool unsure : 1;
	bool sample : 1;
	bool alone;
	bool resident;
	u8 unwritten;
};

/* In vmsrs_frame.ahead: why a page became a draft before it was written. */
#define VMSRS_AHEAD_NOT			0
#define VMSRS_AHEAD_HOT			1
#define VMSRS_AHEAD_FOLLOWS		2

/**
 * struct vmsrs_frames - frames in a row; all zero if there are none
 * @first: the first one, or NULL
 * @last: the last one; undefined if there are none
 * @count: how many
 *
 * A frame is in one row at most. Unlike lists these have no checks, which would take a fifth of the
 * time of a page.
 */
struct vmsrs_frames {
	struct vmsrs_frame *first;
	struct vmsrs_frame *last;
	u32 count;
};

/**
 * struct vmsrs_prediction - pages that will probably be written, the most likely ones first
 * @hot: numbers of hot pages
 * @hot_count: how many
 * @following: first page of those that follow, which are neighbours
 * @following_count: how many
 */
struct vmsrs_prediction {
	const u32 *hot;
	u32 hot_count;
	u32 following;
	u32 following_count;
};

/**
 * struct vmsrs_heat - what the last requests in a domain have written, if that is the same again
 * and again
 * @resident: the domain's resident pages, or NULL if it is not hot
 * @steady: commits in a row with pages that several before them have written
 * @paid: commits, since it is hot, that have written resident pages
 * @kept_commit: commit that has written the pages that are kept
 * @reluctance: how often it has cooled, less what it has paid for that
 * @count: number of hot pages
 * @many: @kept_commit has written more pages than can be kept
 * @kept: number of pages that are kept
 * @pages: numbers of the hot pages, which each of the last requests has written; then those of
 *	pages that @kept_commit has written and that were sealed since, with their streaks
 */
struct vmsrs_heat {
	struct vmsrs_resident *resident;
	u16 steady;
	u16 paid;
	u16 kept_commit;
	u8 reluctance : 4;
	u8 many : 1;
	u8 count : 4;
	u8 kept : 4;
	u32 pages[VMSRS_HOT_MAX];
};

/**
 * struct vmsrs_domain - a domain of an app; lives as long as the app. There may be a million: 128
 * bytes, as kmalloc has sizes
 * @lock: guards @drafts, @owner, the entries of its extents, and from @next_page on
 * @app: the app
 * @last: last extent, or NULL; guarded by vmsrs_app.lock
 * @owner: request that may have drafts here, or NULL if there are none
 * @owned: in @owner->domains; guarded by vmsrs_device.requests_lock
 * @drafts: in order of the first write
 * @number: its number, the index of its lock word
 * @extent_count: number of extents; guarded by vmsrs_app.lock
 * @follows: number of @drafts that are VMSRS_AHEAD_FOLLOWS; guarded by @lock
 * @next_page: page after the one that was drafted last
 * @lost: number of the last batch in which a page lost its content before it was sealed, or 0
 * @heat: what its last requests have written, or NULL
 * @commits: number of its last commit
 * @row: drafts made one page after the other by @owner, up to @next_page
 * @predicted: pages at the end of @row that were drafted ahead with its last write
 * @last_rows: lengths of the last two rows
 * @row_score: whether expecting longer rows has been of use; not if it is negative
 * @unread: samples in a row that nobody had read before they were sealed
 * @ahead: some of @drafts were made ahead
 */
struct vmsrs_domain {
	struct mutex lock;
	struct vmsrs_app *app;
	struct vmsrs_extent_pages *last;
	struct vmsrs_request *owner;
	struct hlist_node owned;
	struct vmsrs_frames drafts;
	u32 number;
	u16 extent_count;
	u16 follows;
	u32 next_page;
	u32 lost;
	struct vmsrs_heat *heat;
	u16 commits;
	u8 row;
	u8 predicted;
	u8 last_rows[2];
	s8 row_score : 4;
	u8 unread : 4;
	bool ahead;
};

/**
 * struct vmsrs_deletion - a domain that is deleted, until another one gets its number
 * @list: in @domain->app->deletion_list, like the next four guarded by the app's lock
 * @domain: the domain, which has no extents and is not found by its number
 * @number: number of the deletion in its app
 * @gone: the host has deleted it
 * @extents: its last extent before; the next two are the batch's
 * @batch_entry: in vmsrs_batch.deletions, or in the list of the batch that is sent
 */
struct vmsrs_deletion {
	struct list_head list;
	struct vmsrs_domain *domain;
	u64 number;
	bool gone;
	struct vmsrs_extent_pages *extents;
	struct list_head batch_entry;
};

/**
 * struct vmsrs_resident - the resident pages of a hot domain; guarded by the domain's lock
 * @list: in @domain->app->residents; guarded by hot_lock
 * @domain: the domain
 * @file: file of the process that writes them: the only one that has the app mapped when they
 *	became resident
 * @mm: that process's address space, referenced (without its pages)
 * @claim: the word that says which request is inside; the process writes it, with the key open
 * @pages: the frames that the pages show
 * @key: the domain's protection key
 * @used: a request has ended here since a key was looked for; guarded by hot_lock, set without
 */
struct vmsrs_resident {
	struct list_head list;
	struct vmsrs_domain *domain;
	struct vmsrs_file *file;
	struct mm_struct *mm;
	atomic64_t *claim;
	struct vmsrs_frames pages;
	u32 key;
	bool used;
};

/**
 * struct vmsrs_lease_page - a page of a lease; guarded by leases_lock
 * @node: in vmsrs_device.leased if @version is in the vault and not VMSRS_ZERO_FRAME
 * @lease: the lease
 * @version: what it shows, as in vmsrs_page.frame, but never VMSRS_NONE; VMSRS_DAMAGED_FRAME if it
 *	shows @copy, or nothing any more
 * @copy: a copy of what it has shown, or NULL
 */
struct vmsrs_lease_page {
	struct hlist_node node;
	struct vmsrs_lease *lease;
	u32 version;
	struct page *copy;
};

/**
 * struct vmsrs_lease - versions of neighbouring pages that are kept for a reader; guarded by
 * leases_lock
 * @ref: its mapping, and who is taking it
 * @dev: the device
 * @domain: the pages' domain, which may have been deleted since
 * @list: in vmsrs_device.leases
 * @taker: thread that is taking it and has not mapped it, or NULL
 * @id: its place in vmsrs_device.lease_ids
 * @reserved: number of pages that it was made for
 * @count: number of @pages; never changes once it is mapped
 * @pages: the pages
 */
struct vmsrs_lease {
	struct kref ref;
	struct vmsrs_device *dev;
	struct vmsrs_domain *domain;
	struct list_head list;
	struct task_struct *taker;
	u32 id;
	u32 reserved;
	u32 count;
	struct vmsrs_lease_page pages[];
};

/**
 * struct vmsrs_app - an app; lives as long as the device structure
 * @dev: the device
 * @lock: guards domains and extents while they are fetched or created
 * @domains: number -> struct vmsrs_domain
 * @units: page / VMSRS_EXTENT_UNIT_PAGES -> struct vmsrs_extent_pages
 * @lock_pages: VMSRS_LOCK_PAGES pages of lock words, each set once by cmpxchg
 * @number: its number
 * @files: open files of the app; guarded by vmsrs_device.apps_lock
 * @open_files: the same as a list; guarded by @lock, like the following
 * @deleted: number -> struct vmsrs_deletion
 * @deletion_list: the same in the order of their numbers
 * @deletions: number of the last deletion of a domain; read without @lock
 * @forgotten: number of the last one whose domain's number is used again
 * @mappings: mappings of its pages in all processes; changed under @mapping_lock
 * @mapping_lock: guards @mm; no other lock is taken under it
 * @mm: address space of a mapping that was the only one, referenced (without its pages), or NULL.
 *	That mapping may be gone
 * @name: its name, padded with zeros
 * @waits_lock: guards @waits; no other lock of the driver is taken under it
 * @waits: struct vmsrs_wait, by tag
 * @hot_lock: guards @residents, and of files the residents, @hot_keys, @hot_mm and lists of hot
 *	domains
 * @residents: struct vmsrs_resident
 */
struct vmsrs_app {
	struct vmsrs_device *dev;
	struct mutex lock;
	struct xarray domains;
	struct xarray units;
	struct page **lock_pages;
	u32 number;
	u32 files;
	struct list_head open_files;
	struct xarray deleted;
	struct list_head deletion_list;
	u64 deletions;
	u64 forgotten;
	atomic_t mappings;
	spinlock_t mapping_lock;
	struct mm_struct *mm;
	u8 name[VMSRS_NAME_MAX];
	spinlock_t waits_lock;
	struct rb_root waits;
	spinlock_t hot_lock;
	struct list_head residents;
};

/**
 * struct vmsrs_request - a request that has drafts, has failed, or is suspended
 * @node: in vmsrs_device.requests; guarded by requests_lock
 * @domains: domains with its drafts; guarded by requests_lock
 * @failed_entry: in vmsrs_device.failed_requests, unless it is suspended, or in .spare_requests;
 *	guarded by requests_lock
 * @suspended_entry: in @suspended_by->suspended; guarded by requests_lock, changed under the
 *	request's lock as well, like the next five
 * @suspended_by: file through which it was suspended, or NULL
 * @due_node: in vmsrs_device.due_requests, or empty if it has no deadline or has failed
 * @due_ns: its deadline while suspended, or 0
 * @held_count: domains that it holds while suspended
 * @held: their numbers, as the program wrote them: not checked
 * @app: the app
 * @file: file through which it was begun, or NULL if it has failed
 * @file_entry: in @file->requests; guarded by requests_lock
 * @tag: its tag
 * @key: protection key of its drafts, or 0; never changes
 * @drafts: number of its drafts
 * @failed: it may not write any more; set under requests_lock, never cleared
 * @overdue: it failed because of its deadline; guarded by requests_lock
 * @carried: only for the watch
 * @discarded: its incident is recorded; guarded by the request's lock, like the following
 * @dropped: drafts that its failure has cost so far
 * @kind: kind of its incident
 * @incident: number of its incident
 *
 * Created at its first draft, suspension or failure. Removed, under the request's lock, before its
 * drafts are committed or when they are discarded, or, if it failed, when no thread carries its tag
 * any more; but never while it is suspended.
 *
 * States: in flight (neither @failed nor @suspended_by), suspended, failed, or failed while
 * suspended. A request that failed while suspended has always been discarded.
 */
struct vmsrs_request {
	struct hlist_node node;
	struct hlist_head domains;
	struct list_head failed_entry;
	struct list_head suspended_entry;
	struct vmsrs_file *suspended_by;
	struct rb_node due_node;
	u64 due_ns;
	u32 held_count;
	u32 held[VMSRS_HELD_MAX];
	struct vmsrs_app *app;
	struct vmsrs_file *file;
	struct hlist_node file_entry;
	u64 tag;
	u32 key;
	atomic_t drafts;
	bool failed;
	bool overdue;
	bool carried;
	bool discarded;
	u32 dropped;
	u32 kind;
	u64 incident;
};

/**
 * struct vmsrs_thread - registration of a thread with an app
 * @ref: reference count; vmsrs_device.thread_list has one reference
 * @rcu: for the free after a grace period
 * @node: in vmsrs_device.threads; guarded by threads_lock, read under RCU
 * @list: in vmsrs_device.thread_list; guarded by threads_lock
 * @dev: the device
 * @app: the app
 * @file: file through which it registered; valid while it is in thread_list
 * @task: the thread; referenced, so its address is not reused
 * @mm: address space at the registration; referenced (without its pages), to detect an exec
 * @page: control page
 * @control: the control block in @page; the process writes to it at any time
 * @written_page: page of @written
 * @written: pages that its request has written, which only the thread itself notes; and keys of hot
 *	domains, which vmsrs_hot_tell() notes. The process maps it read-only
 * @spare: memory for the next request, not initialised, or NULL; only used by the thread itself
 * @slot: index of its control page in the file's offsets
 * @signal: signal that interrupts it, or 0
 * @keys: protection keys that the program has named for drafts, a bit each
 * @hot_keys: those that it has named for hot domains, vmsrs_key_mask() of each
 * @extent: extent that it has written to last, or NULL; only used by the thread itself, like the next one
 * @deletions: vmsrs_app.deletions when @extent was found: it may be freed after another one
 * @noted_tag: tag that the next three belong to; only used by the thread itself, like them
 * @refused_address: page of the last access that was refused, or 0
 * @refused_kind: why it was refused
 * @frame_due: jiffies at which a wait for a frame ends, or 0
 * @signalled_tag: tag that was overdue when the watch looked; only used by the watch
 * @signalled_ns: when that was, or 0; only used by the watch
 * @interrupted_ns: time of the last signal; guarded by threads_lock
 * @releasing: in a list of threads whose locks are released; guarded by release_lock
 */
struct vmsrs_thread {
	struct kref ref;
	struct rcu_head rcu;
	struct hlist_node node;
	struct list_head list;
	struct vmsrs_device *dev;
	struct vmsrs_app *app;
	struct vmsrs_file *file;
	struct task_struct *task;
	struct mm_struct *mm;
	struct page *page;
	struct vmsrs_thread_control *control;
	struct page *written_page;
	struct vmsrs_written_pages *written;
	struct vmsrs_request *spare;
	u32 slot;
	u32 signal;
	u32 keys;
	u32 hot_keys;
	struct vmsrs_extent_pages *extent;
	u64 deletions;
	u64 noted_tag;
	u64 refused_address;
	u32 refused_kind;
	unsigned long frame_due;
	u64 signalled_tag;
	u64 signalled_ns;
	u64 interrupted_ns;
	struct list_head releasing;
};

/**
 * struct vmsrs_lock_sleeper - a task in the queue of a lock word
 * @entry: in the queue until the task has the lock or gives up, so that it keeps its place
 * @task: the task, which has this on its stack
 * @word: the lock word
 * @tag: tag that takes the lock
 * @woken: how often it was woken for the lock
 * @granted: the lock was taken for it
 */
struct vmsrs_lock_sleeper {
	struct list_head entry;
	struct task_struct *task;
	atomic64_t *word;
	u64 tag;
	u32 woken;
	bool granted;
};

/**
 * struct vmsrs_wait - an edge of the graph of who waits for whom
 * @node: in @app->waits, or empty; guarded by waits_lock
 * @todo: in the list of one walk; guarded by waits_lock
 * @app: the app
 * @tag: tag of the request that waits
 * @word: the lock word that it waits for
 */
struct vmsrs_wait {
	struct rb_node node;
	struct list_head todo;
	struct vmsrs_app *app;
	u64 tag;
	atomic64_t *word;
};

/**
 * struct vmsrs_file - an open file of the device
 * @dev: the device
 * @app: NULL until it is set once under vmsrs_device.apps_lock
 * @app_entry: in @app->open_files; guarded by @app->lock, like the next one
 * @noted: number of the last deletion of a domain that its process has noted
 * @requests: requests begun through it that have not failed; guarded by requests_lock
 * @suspended: requests suspended through it; guarded by requests_lock
 * @suspended_count: length of @suspended
 * @hot_pages: the list of hot domains, and the claims of each key; each set once by cmpxchg
 * @hot_keys: keys whose claims are mapped, a bit each: those for hot domains
 * @hot_mm: address space that has the list mapped, referenced (without its pages), or NULL
 * @residents: resident pages of hot domains, by key
 */
struct vmsrs_file {
	struct vmsrs_device *dev;
	struct vmsrs_app *app;
	struct list_head app_entry;
	u64 noted;
	struct hlist_head requests;
	struct list_head suspended;
	u32 suspended_count;
	struct page *hot_pages[VMSRS_PROTECTION_KEY_MAX + 1];
	u32 hot_keys;
	struct mm_struct *hot_mm;
	struct vmsrs_resident *residents[VMSRS_PROTECTION_KEY_MAX + 1];
};

/**
 * struct vmsrs_region - a region of shared memory
 * @phys: its guest physical address
 * @length: bytes that are used
 * @base: where the driver has it mapped
 */
struct vmsrs_region {
	phys_addr_t phys;
	u64 length;
	void *base;
};

/**
 * struct vmsrs_pool - frames of the pool
 * @lock: guards @free, @free_count, @usable and the references of frames
 * @frames: all frames, by number
 * @free: free frames, the one that was freed last first, each with the next
 * @free_count: length of @free
 * @usable: frames whose memory is not known to be broken
 * @wait: threads that wait for a free frame
 */
struct vmsrs_pool {
	spinlock_t lock;
	struct vmsrs_frame *frames;
	struct vmsrs_frame *free;
	u32 free_count;
	u32 usable;
	wait_queue_head_t wait;
};

/**
 * struct vmsrs_batch - committed pages on their way to the host
 * @lock: guards @records to @sent_deletions
 * @records: the newest committed version of each page that has one which was not sent; there is
 *	room for all frames
 * @queued: length of @records
 * @number: number of the batch that collects; the first one is 1
 * @sent_count: length of @sent before the answer
 * @appended: commits and deletions ever added
 * @deletions: struct vmsrs_deletion, sent with @records
 * @deletion_count: length of @deletions
 * @sent_deletions: deletions that are sent
 * @sent: the batch that is sent, NULL for what has been answered; only used by the seal work
 * @sealed: commits ever sealed
 * @wait: threads that wait for @sealed
 */
struct vmsrs_batch {
	spinlock_t lock;
	struct vmsrs_frame **records;
	u32 queued;
	u32 number;
	u32 sent_count;
	u64 appended;
	struct list_head deletions;
	u32 deletion_count;
	u32 sent_deletions;
	struct vmsrs_frame **sent;
	atomic64_t sealed;
	wait_queue_head_t wait;
};

/**
 * struct vmsrs_reports - reports on their way to the host
 * @lock: guards @queue to @spare
 * @queue: struct vmsrs_report
 * @queued: length of @queue
 * @evidence: reports with evidence, in @queue or about to be
 * @spare: struct vmsrs_report, kept ready for failures
 * @wait: threads that wait for fewer reports
 */
struct vmsrs_reports {
	spinlock_t lock;
	struct list_head queue;
	u32 queued;
	u32 evidence;
	struct list_head spare;
	wait_queue_head_t wait;
};

/**
 * struct vmsrs_control - the control queue
 * @lock: one message at a time; guards @request and @reply
 * @vq_lock: guards @vq, @done and @used
 * @vq: the virtqueue
 * @request: VMSRS_MESSAGE_BYTES_MAX bytes; the host's while a message is out
 * @reply: the same
 * @done: the reply has arrived
 * @used: its length
 * @wait: the sender
 */
struct vmsrs_control {
	struct mutex lock;
	spinlock_t vq_lock;
	struct virtqueue *vq;
	void *request;
	void *reply;
	bool done;
	u32 used;
	wait_queue_head_t wait;
};

/**
 * struct vmsrs_device - the device
 * @ref: held by the virtio device and by every open file
 * @release: frees the structure after the last reference
 * @vdev: valid until remove; used only under control.lock
 * @misc: /dev/vmsrs
 * @inode: its mapping is shared by all open files
 * @wq: runs the works
 * @gone: the virtio device is being removed; set under @commit_lock for writing
 * @broken: the host misbehaved, or @gone; never cleared
 * @srcu: read side: fault handlers, which use pool and vault
 * @config: the device's configuration
 * @pool_region: memory of the pool, which the guest can write to
 * @vault_region: memory of the vault, which the guest can only read
 * @control: the control queue
 * @event_vq: NULL without VMSRS_FEATURE_EVENTS; used by @event_work alone
 * @events: VMSRS_EVENT_BUFFERS buffers
 * @event_lock: guards @events_stopped; taken in hard interrupts
 * @events_stopped: @event_work is not queued any more
 * @event_work: reads the event queue
 * @pool: the pool's frames
 * @batch: commits that are to be sent
 * @reports: reports that are to be sent
 * @seal_work: sends commits
 * @extents_lock: guards @dead_extents; no other lock is taken under it
 * @dead_extents: last extent of a row that belongs to no domain any more, or NULL
 * @extents_work: frees them
 * @report_work: sends reports
 * @leases_lock: guards leases, and the next five; mm's locks of reverse mappings and page tables are taken under it, and
 *	memory is allocated
 * @leases: struct vmsrs_lease
 * @leased: struct vmsrs_lease_page, by frame of the vault
 * @lease_ids: struct vmsrs_lease, by number
 * @lease_pages: number of pages of all leases; read without the lock
 * @lease_frames: references of leases to frames of the pool; read without the lock
 * @apps_lock: guards @apps and their files, and vmsrs_file.app
 * @apps: by number
 * @commit_lock: held for reading by whatever commits, discards, fails, suspends or forgets
 *	requests, all of which happens at the same time; for writing by the removal of the device
 * @request_locks: what happens to one request does so one after the other; by hash of its tag
 * @release_lock: guards vmsrs_thread.releasing
 * @requests_lock: guards @requests, @failed_requests, @spare_requests, @spare_count, @due_requests,
 *	and the lists of files
 * @requests: struct vmsrs_request, by tag
 * @failed_requests: failed requests that are not suspended
 * @spare_requests: memory of failed ones that were forgotten, for later ones
 * @spare_count: how many these are, VMSRS_REQUESTS_SPARE at most
 * @due_requests: suspended requests with a deadline, by deadline
 * @threads_lock: guards @threads and @thread_list
 * @threads: struct vmsrs_thread, by task
 * @thread_list: all registered threads
 * @slots: slots of control pages
 * @watch: deadlines, ended threads, failed requests
 * @next_tag: next tag to hand out
 * @next_incident: next number of an incident
 * @drafts: drafts of all requests
 * @resident: frames of resident pages
 * @commits: commits with at least one page
 * @sealed_pages: pages sealed
 * @discarded: drafts discarded
 * @incidents: incidents reported
 * @seal_messages: seal messages sent
 * @write_faults: write faults that made a draft
 * @zaps: calls that unmapped pages
 */
struct vmsrs_device {
	struct kref ref;
	void (*release)(struct kref *ref);
	struct virtio_device *vdev;
	struct miscdevice misc;
	struct inode *inode;
	struct workqueue_struct *wq;
	bool gone;
	bool broken;
	struct srcu_struct srcu;

	struct vmsrs_device_config config;
	struct vmsrs_region pool_region;
	struct vmsrs_region vault_region;

	struct vmsrs_control control;
	struct virtqueue *event_vq;
	struct vmsrs_event *events;
	spinlock_t event_lock;		/* guards events_stopped */
	bool events_stopped;
	struct work_struct event_work;

	struct vmsrs_pool pool;
	struct vmsrs_batch batch;
	struct vmsrs_reports reports;
	struct delayed_work seal_work;
	spinlock_t extents_lock;	/* guards dead_extents */
	struct vmsrs_extent_pages *dead_extents;
	struct work_struct extents_work;
	struct delayed_work report_work;

	struct mutex leases_lock;	/* guards leases, and the next five */
	struct list_head leases;
	DECLARE_HASHTABLE(leased, 8);
	struct xarray lease_ids;
	u32 lease_pages;
	u32 lease_frames;

	struct mutex apps_lock;		/* guards apps and their files */
	struct vmsrs_app *apps[VMSRS_MAX_APPS];

	struct rw_semaphore commit_lock; /* for reading together with requests' locks */
	struct mutex request_locks[1 << VMSRS_REQUEST_LOCKS_SHIFT]; /* by hash of the tag */
	struct mutex release_lock;	/* guards vmsrs_thread.releasing */
	spinlock_t requests_lock;	/* guards the next five, and the lists of files */
	DECLARE_HASHTABLE(requests, 10);
	struct list_head failed_requests;
	struct list_head spare_requests;
	u32 spare_count;
	struct rb_root_cached due_requests;

	spinlock_t threads_lock;	/* guards threads and thread_list */
	DECLARE_HASHTABLE(threads, 8);
	struct list_head thread_list;
	struct ida slots;
	struct delayed_work watch;

	atomic64_t next_tag;
	atomic64_t next_incident;

	atomic_t drafts;
	atomic_t resident;
	atomic64_t commits;
	atomic64_t sealed_pages;
	atomic64_t discarded;
	atomic64_t incidents;
	atomic64_t seal_messages;
	atomic64_t write_faults;
	atomic64_t zaps;
};

/**
 * struct vmsrs_report - what the host is told about a failed or discarded request
 * @list: in vmsrs_reports.queue or vmsrs_reports.spare
 * @drafts: the dropped drafts
 * @evidence: what the program kept, followed by its bytes, in @memory or by kvmalloc; or NULL
 * @memory: VMSRS_EVIDENCE_SPARE bytes, or NULL if the report is not one that is kept
 * @incident: there is an incident to report
 * @body: the report, with @incident; undefined before
 */
struct vmsrs_report {
	struct list_head list;
	struct vmsrs_frames drafts;
	struct vmsrs_evidence *evidence;
	void *memory;
	bool incident;
	struct vmsrs_incident_report body;
};

/*
 * Layer 1: copies, lock words, the state of the device, the address space. Nothing here knows of
 * requests.
 */

/* copy.c */
int vmsrs_copy_page(void *to, const void *from);
int vmsrs_clear_page(void *to);
bool vmsrs_same_page(const void *a, const void *b);
bool vmsrs_same_bytes(const void *a, const void *b, size_t count);

/* lock.c */
extern const struct vm_operations_struct vmsrs_lock_vm_ops;
void vmsrs_locks_init(void);
atomic64_t *vmsrs_lock_word(struct vmsrs_app *app, u32 domain, gfp_t gfp);
u64 vmsrs_lock_tag(struct vmsrs_app *app, u32 domain);
int vmsrs_lock_try(atomic64_t *word, u64 tag);
void vmsrs_lock_wake_one(atomic64_t *word);
void vmsrs_sleeper_add(struct vmsrs_lock_sleeper *sleeper);
bool vmsrs_sleeper_remove(struct vmsrs_lock_sleeper *sleeper);
void vmsrs_lock_wake(struct vmsrs_app *app, u32 domain);
void vmsrs_lock_wake_all(void);
void vmsrs_lock_release(struct vmsrs_app *app, u32 domain, u64 tag);
void vmsrs_lock_release_held(struct vmsrs_thread *thread, u64 tag);
bool vmsrs_lock_delete(struct vmsrs_app *app, u32 domain, u64 tag);
bool vmsrs_lock_deleted(struct vmsrs_app *app, u32 domain);
void vmsrs_lock_revive(struct vmsrs_app *app, u32 domain);
void vmsrs_locks_clear(struct vmsrs_app *app);
void vmsrs_locks_free(struct vmsrs_app *app);

/* deadlock.c */
void vmsrs_waits_init(struct vmsrs_app *app);
int vmsrs_wait_enter(struct vmsrs_wait *wait);
void vmsrs_wait_leave(struct vmsrs_wait *wait);

/* device.c */
void vmsrs_device_wake_all(struct vmsrs_device *dev);
__printf(2, 3) void vmsrs_device_fail(struct vmsrs_device *dev, const char *format, ...);
void vmsrs_device_put(struct vmsrs_device *dev);
void vmsrs_device_kick_seal_soon(struct vmsrs_device *dev);
void vmsrs_device_kick_seal(struct vmsrs_device *dev);
void vmsrs_device_kick_reports_soon(struct vmsrs_device *dev);
void vmsrs_device_kick_reports(struct vmsrs_device *dev);
void vmsrs_device_start_watch(struct vmsrs_device *dev);

/* Called for each of many pages, where the caller may sleep. */
static inline void vmsrs_page_resched(u32 number)
{
	if (number % 4096 == 0)
		cond_resched();
}

/* The host misbehaved, or the device is gone. */
static inline bool vmsrs_device_broken(const struct vmsrs_device *dev)
{
	return READ_ONCE(dev->broken);
}

/* Programs may ask for something that needs the host. */
static inline bool vmsrs_device_usable(const struct vmsrs_device *dev)
{
	return !READ_ONCE(dev->gone) && !vmsrs_device_broken(dev);
}

/* key.c */
pgprot_t vmsrs_key_prot(pgprot_t prot, u32 key);
void vmsrs_key_open(u32 key);
void vmsrs_key_stop_writes(u32 key);
u32 vmsrs_keys_open(u32 keys);

/*
 * A key in a set of keys: a bit where the key's two are in PKRU, so that a set is compared with
 * that at once.
 */
static inline u32 vmsrs_key_mask(u32 key)
{
	return 1U << (2 * key);
}

/* mapping.c */

/* Is that version of a page, as in vmsrs_page.frame, in the pool? */
static inline bool vmsrs_in_pool(u32 version)
{
	return version & VMSRS_IN_POOL && version < VMSRS_DAMAGED_FRAME;
}

/* The frame of a version in the pool. */
static inline struct vmsrs_frame *vmsrs_pool_frame(const struct vmsrs_device *dev, u32 version)
{
	return &dev->pool.frames[version & ~VMSRS_IN_POOL];
}

static inline u32 vmsrs_frame_number(const struct vmsrs_device *dev,
				     const struct vmsrs_frame *frame)
{
	return frame - dev->pool.frames;
}

/* How a version in the pool is named in vmsrs_page.frame. */
static inline u32 vmsrs_frame_name(const struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	return vmsrs_frame_number(dev, frame) | VMSRS_IN_POOL;
}

/* Where the driver has a version mapped that is in the pool or in the vault. */
static inline void *vmsrs_frame_address(const struct vmsrs_device *dev, u32 version)
{
	const struct vmsrs_region *region = vmsrs_in_pool(version) ? &dev->pool_region :
								     &dev->vault_region;

	return region->base + ((size_t)(version & ~VMSRS_IN_POOL) << PAGE_SHIFT);
}

/*
 * There is one mapping of the app's pages. A further one shows nothing of a domain before its lock
 * has been taken, so the holder of that lock may rely on this.
 */
static inline bool vmsrs_app_is_private(const struct vmsrs_app *app)
{
	return atomic_read(&app->mappings) == 1;
}

/* The page frame number of a version that is in the pool or in the vault. */
static inline unsigned long vmsrs_frame_pfn(const struct vmsrs_device *dev, u32 version)
{
	const struct vmsrs_region *region = vmsrs_in_pool(version) ? &dev->pool_region :
								     &dev->vault_region;

	return PHYS_PFN(region->phys) + (version & ~VMSRS_IN_POOL);
}

/*
 * Adds neighbouring pages to a run; any begin an empty one. Pages mostly come in order, up or down.
 * Returns false if they are no neighbours of the run in the same extent.
 */
static inline bool vmsrs_run_add_row(struct vmsrs_run *run, struct vmsrs_page *entry, u32 page, u32 count)
{
	if (page == run->page + run->count && entry == run->entries + run->count) {
		run->count += count;
		return true;
	}
	if (run->count && (page + count != run->page || entry + count != run->entries))
		return false;
	run->entries = entry;
	run->page = page;
	run->count += count;
	return true;
}

static inline bool vmsrs_run_add(struct vmsrs_run *run, struct vmsrs_page *entry, u32 page)
{
	return vmsrs_run_add_row(run, entry, page, 1);
}

struct inode *vmsrs_inode_new(void);
void vmsrs_inode_free(struct inode *inode);
void vmsrs_zap_finish(struct vmsrs_run *zap);

/*
 * Unmaps a page of an app in every process, with its neighbours in one call. At first, @zap is
 * empty except for the app, the mapping and whether to note writes. The page's domain is locked
 * until vmsrs_zap_finish(), before which nothing is sure to be unmapped.
 */
static inline void vmsrs_zap_add(struct vmsrs_run *zap, struct vmsrs_page *entry, u32 page)
{
	if (!entry->mapped)
		return;
	entry->mapped = false;
	if (!vmsrs_run_add(zap, entry, page)) {
		vmsrs_zap_finish(zap);
		vmsrs_run_add(zap, entry, page);
	}
}

void vmsrs_zap_all(struct vmsrs_device *dev);
void vmsrs_zap_own(struct vmsrs_app *app, struct vm_area_struct *vma, unsigned long address);
void vmsrs_zap_own_run(struct vmsrs_run *run);
void vmsrs_mapping_opened(struct vmsrs_app *app, struct mm_struct *mm);
void vmsrs_mapping_closed(struct vmsrs_app *app);
struct mm_struct *vmsrs_mapping_mm(struct vmsrs_app *app);
struct vm_area_struct *vmsrs_mapping_get(struct vmsrs_app *app, struct mm_struct *mm, u32 page);
void vmsrs_mapping_put(struct vm_area_struct *vma);
int vmsrs_fault_map(struct vmsrs_app *app, struct vm_fault *vmf, struct vmsrs_page *entry, u32 page,
		    pgprot_t prot);
int vmsrs_run_map(struct vmsrs_run *run, pgprot_t prot, bool drafts);
bool vmsrs_run_sees(const struct vmsrs_run *run, u32 page);
bool vmsrs_run_accessed(const struct vmsrs_run *run, u32 page);

/*
 * Layer 2: messages to the host, and the pool.
 */

/* control.c */
int vmsrs_control_init(struct vmsrs_device *dev);
void vmsrs_control_free(struct vmsrs_device *dev);
void vmsrs_control_done(struct virtqueue *vq);
void *vmsrs_control_begin(struct vmsrs_device *dev);
void vmsrs_control_end(struct vmsrs_device *dev);
int vmsrs_control_exchange(struct vmsrs_device *dev, u32 kind, u32 length, const void **reply,
			   u32 *reply_length);
int vmsrs_control_call(struct vmsrs_device *dev, u32 kind, const void *payload, u32 length,
		       void *reply, u32 reply_length);
long vmsrs_control_unexpected(struct vmsrs_device *dev, u32 kind, int error);

/* pool.c */

/* Adds a frame, which is in no row, at the end. */
static inline void vmsrs_frames_add(struct vmsrs_frames *frames, struct vmsrs_frame *frame)
{
	frame->next = NULL;
	if (frames->first)
		frames->last->next = frame;
	else
		frames->first = frame;
	frames->last = frame;
	frames->count++;
}

/* Takes the first frame, or returns NULL. */
static inline struct vmsrs_frame *vmsrs_frames_take(struct vmsrs_frames *frames)
{
	struct vmsrs_frame *frame = frames->first;

	if (frame) {
		frames->first = frame->next;
		frames->count--;
	}
	return frame;
}

/* Moves all frames to the end of another row. */
static inline void vmsrs_frames_move(struct vmsrs_frames *from, struct vmsrs_frames *to)
{
	if (!from->first)
		return;
	if (to->first)
		to->last->next = from->first;
	else
		to->first = from->first;
	to->last = from->last;
	to->count += from->count;
	from->first = NULL;
	from->count = 0;
}

#define vmsrs_for_each_frame(frame, frames) \
	for ((frame) = (frames)->first; (frame); (frame) = (frame)->next)

/* Frames that requests with many drafts leave to others. */
static inline u32 vmsrs_pool_reserve(const struct vmsrs_device *dev)
{
	return dev->config.pool_frames / 8;
}

/* With fewer free frames, what holds some is sent at once. */
static inline u32 vmsrs_pool_low_mark(const struct vmsrs_device *dev)
{
	return dev->config.pool_frames / 4;
}

static inline bool vmsrs_pool_low(const struct vmsrs_device *dev)
{
	return READ_ONCE(dev->pool.free_count) < vmsrs_pool_low_mark(dev);
}

int vmsrs_pool_init(struct vmsrs_device *dev);
void vmsrs_pool_touch(struct vmsrs_device *dev);
void vmsrs_pool_lose(struct vmsrs_device *dev, struct vmsrs_frame *frame);
void vmsrs_pool_free(struct vmsrs_device *dev);
struct vmsrs_frame *vmsrs_pool_take(struct vmsrs_device *dev, u32 reserve);
void vmsrs_pool_take_some(struct vmsrs_device *dev, u32 count, u32 reserve, struct vmsrs_frames *frames);
void vmsrs_pool_put(struct vmsrs_device *dev, struct vmsrs_frame *frame);
int vmsrs_pool_put_unfilled(struct vmsrs_device *dev, struct vmsrs_frame *frame);
void vmsrs_pool_put_all(struct vmsrs_device *dev, struct vmsrs_frames *frames);
void vmsrs_pool_pin(struct vmsrs_device *dev, struct vmsrs_frame *frame);
void vmsrs_pool_pin_committed(struct vmsrs_device *dev, const struct vmsrs_frames *dropped);
void vmsrs_pool_put_dropped(struct vmsrs_device *dev, struct vmsrs_frames *dropped);
vm_fault_t vmsrs_pool_wait(struct vmsrs_device *dev, struct vmsrs_thread *thread,
			   struct vm_fault *vmf, u32 reserve);

/*
 * Layer 3: tables of threads and requests.
 */

/* thread.c */
void vmsrs_thread_put(struct vmsrs_thread *thread);
struct vmsrs_thread *vmsrs_thread_current(struct vmsrs_app *app);
void vmsrs_thread_unlink(struct vmsrs_thread *thread, struct list_head *list);
bool vmsrs_thread_dead(const struct vmsrs_thread *thread);
void vmsrs_thread_tags(struct vmsrs_device *dev, u64 *first, u64 *count);
long vmsrs_thread_register(struct vmsrs_file *file, struct vmsrs_ioctl_thread *arg);
int vmsrs_thread_mmap(struct vmsrs_file *file, struct vm_area_struct *vma);
void vmsrs_thread_keep_spare(struct vmsrs_thread *thread, struct vmsrs_request *request);
void vmsrs_thread_note_written(struct vmsrs_thread *thread, u64 tag, u32 page);
void vmsrs_thread_clear_written(struct vmsrs_thread *thread, u64 tag);
void vmsrs_thread_signal_again(struct vmsrs_thread *thread, u64 now);
bool vmsrs_thread_carries(struct vmsrs_app *app, u64 tag);
void vmsrs_thread_signal_members(struct vmsrs_app *app, u64 tag, u64 now);
void vmsrs_threads_init(struct vmsrs_device *dev);

/* Tag that the thread carries, or 0. */
static inline u64 vmsrs_thread_tag(const struct vmsrs_thread *thread)
{
	return READ_ONCE(thread->control->tag);
}

/* Protection key for the drafts of a request that the thread begins, or 0. */
static inline u32 vmsrs_thread_key(const struct vmsrs_thread *thread)
{
	u32 key = READ_ONCE(thread->control->key);

	return key <= VMSRS_PROTECTION_KEY_MAX && thread->keys & BIT(key) ? key : 0;
}

/* Has the thread's request said that it writes no more? */
static inline bool vmsrs_thread_writes_over(const struct vmsrs_thread *thread)
{
	return READ_ONCE(thread->control->key) == VMSRS_KEY_WRITES_OVER;
}

/* request.c */
bool vmsrs_tag_valid(struct vmsrs_device *dev, u64 tag);
struct vmsrs_request *vmsrs_request_find(struct vmsrs_app *app, u64 tag);
bool vmsrs_request_failed(struct vmsrs_app *app, u64 tag);
void vmsrs_request_add(struct vmsrs_request *request, struct vmsrs_app *app, u64 tag);
void vmsrs_request_begin(struct vmsrs_request *request, struct vmsrs_file *file, u64 tag, u32 key);
void vmsrs_request_remove(struct vmsrs_request *request);
int vmsrs_request_own_domain(struct vmsrs_domain *domain, struct vmsrs_thread *thread,
			     struct vmsrs_file *file, u64 tag, u32 key);
struct mutex *vmsrs_request_lock(struct vmsrs_device *dev, u64 tag);
void vmsrs_request_unlock(struct vmsrs_device *dev, struct mutex *lock);
struct vmsrs_request *vmsrs_request_take_domains(struct vmsrs_app *app, u64 tag, u32 number,
						 struct hlist_head *domains);
struct vmsrs_request *vmsrs_request_remove_idle(struct vmsrs_request *request);
bool vmsrs_request_forget(struct vmsrs_request *request);
bool vmsrs_request_orphaned(struct vmsrs_app *app, u64 tag);
struct vmsrs_request *vmsrs_request_new(struct vmsrs_device *dev);
void vmsrs_requests_forget(struct vmsrs_device *dev, struct list_head *requests);
void vmsrs_requests_free(struct vmsrs_device *dev);

/* suspend.c */
void vmsrs_suspended_clear_deadline(struct vmsrs_request *request);
void vmsrs_suspended_remove(struct vmsrs_request *request);
long vmsrs_suspend(struct vmsrs_file *file, struct vmsrs_thread *thread,
		   const struct vmsrs_ioctl_suspend *arg);
struct vmsrs_request *vmsrs_suspended_find(struct vmsrs_file *file, u64 tag);
long vmsrs_resume(struct vmsrs_file *file, u64 tag);
void vmsrs_suspended_forget(struct vmsrs_file *file, u64 tag);

/*
 * Layer 4: pages. What is sent to the host, drafts, domains and their extents, page faults.
 */

/* The first extent of a domain. */
/* A name or key is `length` bytes, followed by zeros. */
static inline bool vmsrs_padded(const u8 *bytes, size_t length, size_t size)
{
	return length <= size && !memchr_inv(bytes + length, 0, size - length);
}

static inline struct vmsrs_extent_pages *vmsrs_extent_first(const struct vmsrs_domain *domain)
{
	return domain->last ? domain->last->next : NULL;
}

static inline struct vmsrs_extent_pages *vmsrs_extent_after(const struct vmsrs_domain *domain,
							    const struct vmsrs_extent_pages *extent)
{
	return extent == domain->last ? NULL : extent->next;
}

#define vmsrs_for_each_extent(extent, domain) \
	for ((extent) = vmsrs_extent_first(domain); (extent); (extent) = vmsrs_extent_after(domain, extent))

/* deletion.c */
void vmsrs_deletion_free(struct vmsrs_deletion *deletion);
void vmsrs_deletion_add(struct vmsrs_deletion *deletion);
struct vmsrs_deletion *vmsrs_deletion_reusable(struct vmsrs_app *app);
void vmsrs_deletion_forget(struct vmsrs_deletion *deletion);
long vmsrs_deletions_note(struct vmsrs_file *file, struct vmsrs_ioctl_deleted *arg, u32 *domains);
int vmsrs_deletions_send(struct vmsrs_device *dev, struct list_head *deletions, u32 count);
void vmsrs_deletions_done(struct vmsrs_device *dev, struct list_head *deletions);
void vmsrs_deletions_init(struct vmsrs_device *dev);

/* lease.c */
void vmsrs_leases_keep(struct vmsrs_device *dev, struct vmsrs_frame *const *sent, u32 count,
		       struct list_head *deletions);
void vmsrs_leases_sealed(struct vmsrs_device *dev);
void vmsrs_leases_lose(struct vmsrs_device *dev, u32 frame);
struct vmsrs_lease *vmsrs_lease_new(struct vmsrs_device *dev, u32 count);
int vmsrs_lease_add(struct vmsrs_lease *lease, struct vmsrs_domain *domain, u32 version);
void vmsrs_lease_put(struct vmsrs_lease *lease);
int vmsrs_lease_mmap(struct vmsrs_device *dev, struct vm_area_struct *vma);
unsigned long vmsrs_lease_map(struct vmsrs_lease *lease, struct file *filp);
void vmsrs_leases_init(struct vmsrs_device *dev);

/* predict.c */
struct vmsrs_heat *vmsrs_heat_get(struct vmsrs_domain *domain);
u32 vmsrs_predict(struct vmsrs_domain *domain, const struct vmsrs_extent_pages *extent, u32 page,
		  bool first, struct vmsrs_prediction *prediction);
void vmsrs_predict_written(struct vmsrs_domain *domain, struct vmsrs_frame *draft);
void vmsrs_predict_sealed(struct vmsrs_domain *domain, const struct vmsrs_frame *frame);
bool vmsrs_predict_reads(const struct vmsrs_domain *domain);
bool vmsrs_predict_sample(const struct vmsrs_domain *domain);
void vmsrs_predict_learn(struct vmsrs_domain *domain, bool read);
bool vmsrs_heat_steady(struct vmsrs_heat *heat);

/* Counts a commit of resident pages that were written. */
static inline void vmsrs_heat_paid(struct vmsrs_heat *heat)
{
	if (++heat->paid < VMSRS_PAID_AFTER)
		return;
	heat->paid = 0;
	heat->reluctance -= heat->reluctance != 0;
}

void vmsrs_heat_cooled(struct vmsrs_heat *heat);
void vmsrs_predict_end(struct vmsrs_domain *domain, const struct vmsrs_frames *unwritten, u32 written);

/* answer.c */
void vmsrs_answer_finish(struct vmsrs_device *dev);

/* batch.c */
u64 vmsrs_batch_append(struct vmsrs_device *dev, struct vmsrs_frames *records, u32 *number);
bool vmsrs_batch_replace(struct vmsrs_device *dev, struct vmsrs_frame *old, struct vmsrs_frame *new);
bool vmsrs_batch_remove(struct vmsrs_device *dev, struct vmsrs_frame *frame);
void vmsrs_batch_append_deletion(struct vmsrs_device *dev, struct vmsrs_deletion *deletion);
bool vmsrs_batch_deletes(struct vmsrs_device *dev);
bool vmsrs_batch_sent(struct vmsrs_device *dev, const struct vmsrs_frame *frame);
u64 vmsrs_batch_last(struct vmsrs_device *dev, u32 *number);
bool vmsrs_batch_lost(const struct vmsrs_domain *domain, u32 number);
long vmsrs_batch_wait_sealed(struct vmsrs_device *dev, u64 end, bool killable_only);
long vmsrs_batch_flush(struct vmsrs_device *dev, bool killable_only);
int vmsrs_batch_init(struct vmsrs_device *dev);
void vmsrs_batch_free(struct vmsrs_device *dev);

/* report.c */
struct vmsrs_report *vmsrs_report_new(struct vmsrs_device *dev, bool incident);
struct vmsrs_report *vmsrs_report_new_evidence(struct vmsrs_device *dev, u32 length);
void vmsrs_report_free(struct vmsrs_device *dev, struct vmsrs_report *report);
void vmsrs_report_queue(struct vmsrs_device *dev, struct vmsrs_report *report);
u32 vmsrs_reports_room(struct vmsrs_device *dev);
void vmsrs_reports_wait(struct vmsrs_device *dev);
int vmsrs_reports_init(struct vmsrs_device *dev);
void vmsrs_reports_free(struct vmsrs_device *dev);

/* drafts.c */

/* All of a draft but @ahead and @resident. The page's domain is locked. */
static inline void vmsrs_draft_init(struct vmsrs_frame *draft, struct vmsrs_domain *domain, u32 page,
				    struct vmsrs_page *entry, bool alone)
{
	draft->domain = domain;
	draft->entry = entry;
	draft->page = page;
	draft->replaced = VMSRS_NONE;
	draft->lost = VMSRS_NONE;
	draft->unsure = false;
	draft->sample = false;
	draft->alone = alone;
	entry->draft = vmsrs_frame_number(domain->app->dev, draft);
}

u32 vmsrs_drafts_reserve(const struct vmsrs_domain *domain, u64 tag);
int vmsrs_draft_make(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry,
		     struct vmsrs_thread *thread, struct vmsrs_file *file, u64 tag, u32 key,
		     u32 reserve);
void vmsrs_ahead_begin(struct vmsrs_domain *domain, u32 count, struct vmsrs_frames *free);
int vmsrs_ahead_make(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry, u8 why,
		     struct vmsrs_frames *free);
void vmsrs_ahead_end(struct vmsrs_domain *domain, u32 made, struct vmsrs_frames *free);
bool vmsrs_draft_is_unchanged(struct vmsrs_device *dev, const struct vmsrs_frame *draft);
void vmsrs_draft_drop_copy(struct vmsrs_domain *domain, struct vmsrs_page *entry, u32 version);
void vmsrs_drafts_commit(struct vmsrs_domain *domain, struct vmsrs_frames *records);
void vmsrs_drafts_discard(struct vmsrs_domain *domain, struct vmsrs_report *report);
long vmsrs_drafts_list(struct vmsrs_app *app, struct vmsrs_ioctl_drafts *arg);

/* hot.c */
int vmsrs_hot_mmap(struct vmsrs_file *file, struct vm_area_struct *vma);
void vmsrs_hot_free(struct vmsrs_file *file);
int vmsrs_hot_key(const struct vmsrs_file *file, u32 domain);
atomic64_t *vmsrs_hot_claim(const struct vmsrs_file *file, u32 key, u32 domain);
void vmsrs_hot_tell(struct vmsrs_app *app, const struct mm_struct *mm);
void vmsrs_hot_list(const struct vmsrs_resident *resident);

/* resident.c */
static inline struct vmsrs_resident *vmsrs_domain_resident(const struct vmsrs_domain *domain)
{
	return domain->heat ? domain->heat->resident : NULL;
}

bool vmsrs_resident_claim(struct vmsrs_resident *resident);
void vmsrs_resident_drop(struct vmsrs_domain *domain);
struct vmsrs_domain *vmsrs_resident_lock(struct vmsrs_thread *thread, u64 tag, struct mutex *lock);
int vmsrs_resident_prepare(struct vmsrs_domain *domain, struct vmsrs_thread *thread, u64 tag,
			   struct vmsrs_frames *copies);
void vmsrs_resident_commit(struct vmsrs_domain *domain, struct vmsrs_frames *copies,
			   struct vmsrs_frames *records);
u32 vmsrs_resident_discard(struct vmsrs_app *app, u64 tag, bool own, struct vmsrs_report *report);
bool vmsrs_resident_yield(struct vmsrs_domain *domain, const struct mm_struct *mm, u64 tag);
long vmsrs_resident_cool(struct vmsrs_file *file, struct vmsrs_thread *thread,
			 const struct vmsrs_ioctl_cool *arg);
void vmsrs_residents_drop(struct vmsrs_file *file);

/* heat.c */
void vmsrs_heat_learn(struct vmsrs_domain *domain, struct vmsrs_file *file,
		      const struct vmsrs_frames *records);

/* extent.c */
struct vmsrs_extent_pages *vmsrs_extent_find(struct vmsrs_app *app, u32 page);
u64 vmsrs_app_base(const struct vmsrs_app *app);
u32 vmsrs_address_domain(struct vmsrs_app *app, u64 address);
struct vmsrs_extent_pages *vmsrs_extent_new(struct vmsrs_domain *domain,
					    const struct vmsrs_extent *where);
void vmsrs_extent_append(struct vmsrs_domain *domain, struct vmsrs_extent_pages *extent);
bool vmsrs_extent_valid(const struct vmsrs_extent *extent);
int vmsrs_extent_reserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent);
void vmsrs_extent_unreserve(struct vmsrs_app *app, const struct vmsrs_extent_pages *extent);
void vmsrs_extent_publish(struct vmsrs_app *app, struct vmsrs_extent_pages *extent);
void vmsrs_extents_free(struct vmsrs_domain *domain);
long vmsrs_extent_open(struct vmsrs_app *app, struct vmsrs_ioctl_extent *arg);

/* fetch.c */
long vmsrs_domain_open(struct vmsrs_app *app, struct vmsrs_ioctl_open_domain *arg);
void vmsrs_domain_free(struct vmsrs_domain *domain);

/* app.c */
void vmsrs_app_free(struct vmsrs_app *app);
long vmsrs_app_open(struct vmsrs_file *file, struct vmsrs_ioctl_open_app *arg);
void vmsrs_app_close(struct vmsrs_file *file);

/* lease_take.c */
struct vmsrs_lease *vmsrs_lease_take(struct vmsrs_app *app, const struct vmsrs_ioctl_lease *arg);

/* page.c */
extern const struct vm_operations_struct vmsrs_page_vm_ops;
void vmsrs_page_damaged(struct vmsrs_device *dev, u64 address, u32 frame);

/* event.c */
int vmsrs_event_init(struct vmsrs_device *dev);
void vmsrs_event_free(struct vmsrs_device *dev);
void vmsrs_event_start(struct vmsrs_device *dev);
void vmsrs_event_stop(struct vmsrs_device *dev);
void vmsrs_event_done(struct virtqueue *vq);

/*
 * Layer 5: how a request ends.
 */

/* domain.c */
long vmsrs_domain_delete(struct vmsrs_file *file, const struct vmsrs_ioctl_delete *arg);
long vmsrs_domain_info(struct vmsrs_app *app, struct vmsrs_ioctl_domain_info *arg);

/* commit.c */
long vmsrs_commit(struct vmsrs_file *file, struct vmsrs_thread *thread, u64 tag, u32 number,
		  u32 flags);

/* evidence.c */
void vmsrs_evidence_registers(struct vmsrs_incident_report *body);
bool vmsrs_evidence_valid(const struct vmsrs_ioctl_fail *fail);
void vmsrs_evidence_take(struct vmsrs_device *dev, const struct vmsrs_ioctl_fail *fail);

/* fail.c */
bool vmsrs_fail(struct vmsrs_app *app, struct vmsrs_thread *thread, struct vmsrs_ioctl_fail *fail);
void vmsrs_fail_suspended(struct vmsrs_app *app, struct vmsrs_ioctl_fail *fail);
void vmsrs_fail_orphan(struct vmsrs_app *app, u32 domain, u64 tag);
void vmsrs_fail_file(struct vmsrs_file *file);
void vmsrs_fail_overdue(struct vmsrs_app *app, u64 tag, u64 now);
void vmsrs_discard(struct vmsrs_app *app, u64 tag, bool own);
long vmsrs_abandon(struct vmsrs_file *file, u64 tag);

/*
 * Layer 6: what fails requests that their own threads do not end.
 */

/* lock_wait.c */
long vmsrs_lock_wait(struct vmsrs_app *app, const struct vmsrs_ioctl_lock *arg);

/* reap.c */
void vmsrs_threads_end(struct list_head *threads);
void vmsrs_threads_reap(struct vmsrs_file *file, bool all);
long vmsrs_thread_exit(struct vmsrs_file *file);

/* watch.c */
void vmsrs_watch_init(struct vmsrs_device *dev);

/*
 * Layer 7: the interfaces to programs and to virtio.
 */

/* file.c */
extern const struct file_operations vmsrs_fops;

/* main.c has the module and the virtio driver. */

#endif /* VMSRS_H */
