/* SPDX-License-Identifier: GPL-2.0 */
/*
 * vmsrs_page_damaged() of guest-kmod/page.c with the functions it has for itself, which the test writes to
 * functions.inc, with stubs for what they call.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "vmsrs_protocol.h"

typedef uint32_t u32;
typedef uint64_t u64;

/* As in vmsrs.h. */
#define VMSRS_NO_DRAFT 0x7fffffffU
#define VMSRS_LOST_TRIES 16
#define PAGE_SHIFT 12

#define FRAME 7
#define PAGE 4

struct mutex { int locked; };
struct vmsrs_frame { u32 lost, replaced; };
struct vmsrs_pool { struct vmsrs_frame frames[1]; };
struct vmsrs_app;
struct vmsrs_device { struct mutex apps_lock; struct vmsrs_app *apps[VMSRS_MAX_APPS]; struct vmsrs_pool pool; };
struct vmsrs_app { struct mutex lock; struct vmsrs_device *dev; u32 number; };
struct vmsrs_page { u32 frame, draft; bool mapped; };
struct vmsrs_domain { struct mutex lock; struct vmsrs_app *app; u32 number; };
struct vmsrs_extent_pages { struct vmsrs_domain *domain; u32 page; struct vmsrs_page entries[1]; };
struct vmsrs_run { struct vmsrs_app *app; };

static struct vmsrs_device device;
static struct vmsrs_app app_of_page = { .dev = &device };
static struct vmsrs_domain domain_of_page = { .app = &app_of_page };
static struct vmsrs_extent_pages extent_of_page = { .domain = &domain_of_page, .page = PAGE };
/* What the host says about the page, first and later. */
static u32 answers[2];
static u32 asked;
static int call_error;
static u32 batch;
/* The batch that is sealed after the host was asked the first time. */
static bool seals;

static void mutex_lock(struct mutex *lock)
{
	if (lock->locked++)
		exit(2);
}

static void mutex_unlock(struct mutex *lock)
{
	if (lock->locked-- != 1)
		exit(3);
}

static bool vmsrs_in_pool(u32 version)
{
	return version & VMSRS_IN_POOL && version < VMSRS_DAMAGED_FRAME;
}

static struct vmsrs_frame *vmsrs_pool_frame(struct vmsrs_device *dev, u32 version)
{
	return &dev->pool.frames[version & ~VMSRS_IN_POOL];
}

static bool vmsrs_batch_sent(struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	return true;
}

static u64 vmsrs_batch_last(struct vmsrs_device *dev, u32 *number)
{
	*number = batch;
	return 0;
}

static void vmsrs_draft_drop_copy(struct vmsrs_domain *domain, struct vmsrs_page *entry, u32 version)
{
}

/* Frames whose leases show nothing any more. */
static u32 leases_lost;

static void vmsrs_leases_lose(struct vmsrs_device *dev, u32 frame)
{
	leases_lost += frame == FRAME;
}

static void vmsrs_zap_add(struct vmsrs_run *zap, struct vmsrs_page *entry, u32 page)
{
	entry->mapped = false;
}

static void vmsrs_zap_finish(struct vmsrs_run *zap)
{
}

static struct vmsrs_extent_pages *vmsrs_extent_find(struct vmsrs_app *app, u32 page)
{
	return &extent_of_page;
}

static int vmsrs_control_call(struct vmsrs_device *dev, u32 kind, const void *payload, u32 length,
			      void *reply, u32 reply_length)
{
	struct vmsrs_page_frame *sealed = (void *)((char *)reply + sizeof(struct vmsrs_list_reply));

	/* The host may take long. */
	if (domain_of_page.lock.locked)
		exit(4);
	sealed->page = PAGE;
	sealed->frame = answers[asked++ > 0];
	batch += asked == 1 && seals;
	return call_error;
}

#include "functions.inc"

/* Handles the event of a page that shows its frame. */
static u32 after_event(u32 first, u32 later)
{
	struct vmsrs_page *entry = &extent_of_page.entries[0];

	*entry = (struct vmsrs_page) { .frame = FRAME, .draft = VMSRS_NO_DRAFT, .mapped = true };
	answers[0] = first;
	answers[1] = later;
	asked = 0;
	leases_lost = 0;
	vmsrs_page_damaged(&device, VMSRS_APP_BASE + (PAGE << PAGE_SHIFT), FRAME);
	if (device.apps_lock.locked || app_of_page.lock.locked || domain_of_page.lock.locked)
		exit(5);
	/* Leases of the frame are lost with the page. */
	if (leases_lost != (entry->frame == VMSRS_DAMAGED_FRAME))
		exit(6);
	return entry->frame;
}

static void expect(bool holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "%s\n", what);
	exit(1);
}

int main(void)
{
	device.apps[0] = &app_of_page;
	expect(after_event(VMSRS_DAMAGED_FRAME, FRAME) == VMSRS_DAMAGED_FRAME, "a lost page is shown");
	expect(after_event(FRAME, FRAME) == FRAME, "a page is refused that is good again");
	seals = true;
	expect(after_event(VMSRS_DAMAGED_FRAME, FRAME) == FRAME && asked == 2,
	       "a page is refused that was sealed while the host was asked");
	seals = false;
	call_error = -ENODEV;
	expect(after_event(FRAME, FRAME) == VMSRS_DAMAGED_FRAME, "a page is shown of which the host says nothing");
	return 0;
}
