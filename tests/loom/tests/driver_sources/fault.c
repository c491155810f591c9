/* SPDX-License-Identifier: GPL-2.0 */
/*
 * note_tag() and thread_write() of guest-kmod/page.c, which the test writes to functions.inc, with
 * stubs for what they call.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmsrs_protocol.h"

typedef uint32_t u32;
typedef uint64_t u64;
typedef int vm_fault_t;

/* As in vmsrs.h. */
#define READ_ONCE(x) (x)
#define VMSRS_NO_DRAFT 0x7fffffffU

enum { VM_FAULT_NOPAGE = 1, VM_FAULT_OOM, VM_FAULT_SIGBUS, VM_FAULT_RETRY };

struct mutex { bool locked; };
struct file { void *private_data; };
struct mm_struct { int unused; };
struct vm_area_struct { struct file *vm_file; struct mm_struct *vm_mm; };
struct vm_fault { struct vm_area_struct *vma; unsigned long address; };
typedef struct { long counter; } atomic64_t;
struct vmsrs_device { bool usable; atomic64_t write_faults; };
struct vmsrs_file { int unused; };
struct vmsrs_page { u32 frame, draft; bool mapped; };
struct vmsrs_app { struct vmsrs_device *dev; };
struct vmsrs_domain { struct mutex lock; void *owner; };
struct vmsrs_extent_pages { struct vmsrs_domain *domain; u32 page; struct vmsrs_page entries[1]; };

struct vmsrs_thread {
	struct vmsrs_thread_control *control;
	u64 noted_tag, refused_address;
	unsigned long frame_due;
};

static struct vmsrs_domain domain_of_page;
static struct vmsrs_extent_pages extent_of_page = { .domain = &domain_of_page };
/* In the thread's control block. */
static u32 key;
/* What vmsrs_draft_make() returns. */
static int make_error;
static u32 listed;
/* Calls of draft_ahead(), and those for the first write of a request in the domain. */
static u32 predictions, first_writes;
/* Calls of map_writable() for a page that may be mapped to another frame. */
static u32 zaps;

static void mutex_lock(struct mutex *lock)
{
	lock->locked = true;
}

static void mutex_unlock(struct mutex *lock)
{
	lock->locked = false;
}

static u32 fault_page(struct vmsrs_app *app, struct vm_fault *vmf)
{
	return 0;
}

static u64 vmsrs_thread_tag(const struct vmsrs_thread *thread)
{
	return thread->control->tag;
}

static u32 vmsrs_thread_key(const struct vmsrs_thread *thread)
{
	return 0;
}

/* As in vmsrs.h. */
static bool vmsrs_thread_writes_over(const struct vmsrs_thread *thread)
{
	return thread->control->key == VMSRS_KEY_WRITES_OVER;
}

static struct vmsrs_extent_pages *extent_of(struct vmsrs_thread *thread, u32 page)
{
	return &extent_of_page;
}

static vm_fault_t refuse(struct vmsrs_thread *thread, struct vm_fault *vmf, u32 kind)
{
	return VM_FAULT_SIGBUS;
}

static bool vmsrs_tag_valid(struct vmsrs_device *dev, u64 tag)
{
	return true;
}

static bool may_write(struct vmsrs_domain *domain, u64 tag)
{
	return true;
}

/* No request is inside a hot domain. */
static bool vmsrs_resident_yield(struct vmsrs_domain *domain, const struct mm_struct *mm, u64 tag)
{
	return true;
}

static u32 vmsrs_drafts_reserve(const struct vmsrs_domain *domain, u64 tag)
{
	return 0;
}

static int vmsrs_draft_make(struct vmsrs_domain *domain, u32 page, struct vmsrs_page *entry,
			    struct vmsrs_thread *thread, struct vmsrs_file *file, u64 tag, u32 key,
			    u32 reserve)
{
	return make_error;
}

static void vmsrs_zap_own(struct vmsrs_app *app, struct vm_area_struct *vma, unsigned long address)
{
}

static bool shows(struct vmsrs_app *app, const struct vm_fault *vmf, u32 version)
{
	return false;
}

static vm_fault_t map_writable(struct vmsrs_domain *domain, struct vm_fault *vmf,
			       struct vmsrs_page *entry, u32 page, bool stale)
{
	zaps += stale;
	return VM_FAULT_NOPAGE;
}

static void draft_ahead(struct vmsrs_extent_pages *extent, struct vmsrs_thread *thread,
			struct vm_fault *vmf, bool first)
{
	if (!domain_of_page.lock.locked)
		exit(3);
	predictions++;
	first_writes += first;
}

static void atomic64_inc(atomic64_t *count)
{
	count->counter++;
}

static vm_fault_t vmsrs_pool_wait(struct vmsrs_device *dev, struct vmsrs_thread *thread,
				  struct vm_fault *vmf, u32 reserve)
{
	return VM_FAULT_RETRY;
}

static bool vmsrs_device_usable(const struct vmsrs_device *dev)
{
	return dev->usable;
}

static void vmsrs_thread_note_written(struct vmsrs_thread *thread, u64 tag, u32 page)
{
	listed++;
}

#include "functions.inc"

/*
 * A write fault of a thread that waits for a frame since an earlier fault. Returns what is left of
 * the wait's end.
 */
static unsigned long fault(u32 draft, int error, vm_fault_t expected)
{
	struct vmsrs_device dev = { .usable = true };
	struct vmsrs_app app = { .dev = &dev };
	struct vmsrs_thread_control control = { .tag = 7, .key = key };
	struct vmsrs_thread thread = { .control = &control, .noted_tag = 7, .frame_due = 1234 };
	struct file file = { };
	struct vm_area_struct vma = { .vm_file = &file };
	struct vm_fault vmf = { .vma = &vma };

	extent_of_page.entries[0].draft = draft;
	make_error = error;
	if (thread_write(&app, &thread, &vmf, false) != expected)
		exit(2);
	return thread.frame_due;
}

static void check(const char *what, bool holds)
{
	if (holds)
		return;
	fprintf(stderr, "wrong: %s\n", what);
	exit(1);
}

int main(void)
{
	check("the wait goes on while there is no frame",
	      fault(VMSRS_NO_DRAFT, -EAGAIN, VM_FAULT_RETRY) == 1234);
	check("the thread's own draft ends the wait", !fault(VMSRS_NO_DRAFT, 0, VM_FAULT_NOPAGE));
	check("the thread's own draft is listed", listed == 1);
	check("pages are predicted at a draft", predictions == 1 && first_writes == 1);
	domain_of_page.owner = &domain_of_page;
	check("a further draft", !fault(VMSRS_NO_DRAFT, 0, VM_FAULT_NOPAGE));
	check("is not the first one", predictions == 2 && first_writes == 1 && listed-- == 2);
	check("the draft of another member ends the wait", !fault(5, 0, VM_FAULT_NOPAGE));
	check("the draft of another member is not listed", listed == 1);
	check("nor is anything predicted at it", predictions == 2);
	check("pages without an entry are not zapped", !zaps);
	extent_of_page.entries[0].mapped = true;
	check("a draft", !fault(VMSRS_NO_DRAFT, 0, VM_FAULT_NOPAGE));
	check("is mapped in place of what another thread has mapped", zaps == 1);
	key = VMSRS_KEY_WRITES_OVER;
	listed = 0;
	check("a write after the request's last one is refused",
	      fault(VMSRS_NO_DRAFT, 0, VM_FAULT_SIGBUS) && !listed);
	return 0;
}
