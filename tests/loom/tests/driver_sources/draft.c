/* SPDX-License-Identifier: GPL-2.0 */
/*
 * fill(), fill_frame() and take_filled() of guest-kmod/drafts.c, and what they call in pool.c, which the test writes to
 * functions.inc, with stubs for what these call.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmsrs_protocol.h"

typedef uint32_t u32;

#define FRAMES 4
#define VAULT_FRAME 7U

#define ERR_PTR(error) ((void *)(intptr_t)(error))
#define pr_warn_ratelimited(...) fprintf(stdout, __VA_ARGS__)

struct vmsrs_page { u32 frame; };
struct vmsrs_frame { char content[8]; bool broken; };

/* Frames of the pool, and those that are free, of which the last one is taken first. */
struct vmsrs_device {
	struct vmsrs_frame frames[FRAMES];
	struct vmsrs_frame *free[FRAMES];
	u32 free_count;
};

static char vault_frame[8] = "sealed";
static bool vault_broken;

static struct vmsrs_frame *vmsrs_pool_take(struct vmsrs_device *dev, u32 reserve)
{
	return dev->free_count > reserve ? dev->free[--dev->free_count] : NULL;
}

static void vmsrs_pool_put(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	dev->free[dev->free_count++] = frame;
}

static void vmsrs_pool_lose(struct vmsrs_device *dev, struct vmsrs_frame *frame)
{
	(void)dev;
	(void)frame;
}

static u32 vmsrs_frame_number(const struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	return frame - dev->frames;
}

static u32 vmsrs_frame_name(const struct vmsrs_device *dev, const struct vmsrs_frame *frame)
{
	return vmsrs_frame_number(dev, frame) | VMSRS_IN_POOL;
}

static void *vmsrs_frame_address(struct vmsrs_device *dev, u32 version)
{
	if (version & VMSRS_IN_POOL)
		return dev->frames[version & ~VMSRS_IN_POOL].content;
	return vault_frame;
}

/* The content is a frame's first member. */
static bool broken(const void *content)
{
	return ((const struct vmsrs_frame *)content)->broken;
}

static int vmsrs_clear_page(void *to)
{
	if (broken(to))
		return -EIO;
	memset(to, 0, 8);
	return 0;
}

static int vmsrs_copy_page(void *to, const void *from)
{
	if (broken(to) || vault_broken)
		return -EIO;
	memcpy(to, from, 8);
	return 0;
}

#include "functions.inc"

static void expect(bool right, const char *what)
{
	if (right)
		return;
	fprintf(stderr, "%s\n", what);
	exit(1);
}

/* A device whose frames are free and full; those in `mask` are broken. */
static struct vmsrs_device device(u32 mask)
{
	struct vmsrs_device dev = { .free_count = 0 };
	u32 i;

	for (i = 0; i < FRAMES; i++) {
		strcpy(dev.frames[i].content, "former");
		dev.frames[i].broken = mask & 1U << i;
	}
	return dev;
}

static void free_all(struct vmsrs_device *dev)
{
	for (dev->free_count = 0; dev->free_count < FRAMES; dev->free_count++)
		dev->free[dev->free_count] = &dev->frames[dev->free_count];
}

int main(void)
{
	static const u32 versions[] = { VMSRS_NONE, VAULT_FRAME };
	static const char *contents[] = { "", "sealed" };
	struct vmsrs_device dev;
	struct vmsrs_page entry;
	struct vmsrs_frame *frame;
	u32 i;

	for (i = 0; i < 2; i++) {
		entry.frame = versions[i];
		/* The two that are taken first. */
		dev = device(1 << 3 | 1 << 2);
		free_all(&dev);
		frame = take_filled(&dev, &entry, 0);
		expect(frame == &dev.frames[1], "broken frames are left out");
		expect(!strcmp(frame->content, contents[i]), "the frame is filled");
		expect(dev.free_count == 1, "broken frames are not free any more");
		expect(take_filled(&dev, &entry, 1) == ERR_PTR(-EAGAIN), "the reserve is left");
	}

	vault_broken = true;
	dev = device(1 << 3);
	free_all(&dev);
	expect(take_filled(&dev, &entry, 0) == ERR_PTR(-EIO), "the version cannot be read");
	expect(dev.free_count == 3, "only the broken frame is lost");
	expect(take_filled(&dev, &entry, 0) == ERR_PTR(-EIO), "nor can it later");
	expect(dev.free_count == 3, "the frame is free again");

	dev = device((1 << FRAMES) - 1);
	free_all(&dev);
	expect(take_filled(&dev, &entry, 0) == ERR_PTR(-EAGAIN), "there is no other frame");
	return 0;
}
