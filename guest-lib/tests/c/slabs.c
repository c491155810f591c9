/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A server's own allocator in a domain, as caches have them: classes of sizes, each with slabs that are divided into chunks, and a
 * list of free chunks that is linked through their first words. docs/porting.md shows parts of this.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <vmsrs.h>

#include "check.h"

struct item {
	struct item *next;
	char data[];
};

/* Items of one size. */
struct class {
	size_t chunk_bytes;
	struct item *free;
};

enum { CHUNKS = 50, CLASSES = 12, ITEMS = 300 };

static vmsrs_domain *domain;

static int add_slab(struct class *class)
{
	char *slab = vmsrs_slab_alloc(domain, class->chunk_bytes, CHUNKS, sizeof(struct item));

	if (!slab)
		return -1;
	for (int i = 0; i < CHUNKS; i++) {
		struct item *item = (struct item *)(slab + i * class->chunk_bytes);

		item->next = class->free;
		class->free = item;
	}
	return 0;
}

static struct item *item_alloc(struct class *class, size_t size)
{
	struct item *item;

	if (!class->free && add_slab(class))
		return NULL;
	item = class->free;
	if (vmsrs_slab_take(domain, item, size))
		return NULL;
	class->free = item->next;
	return item;
}

static void item_free(struct class *class, struct item *item)
{
	vmsrs_slab_give(domain, item, sizeof(struct item));
	item->next = class->free;
	class->free = item;
}

static struct class *class_of(size_t size)
{
	struct class *class = vmsrs_root(domain);

	while (class->chunk_bytes < size + VMSRS_CHUNK_OVERHEAD)
		class++;
	return class;
}

static int make_classes(vmsrs_request *request, void *argument)
{
	struct class *classes = vmsrs_alloc_zeroed(domain, CLASSES * sizeof(*classes));
	size_t bytes = 48;

	(void)request;
	(void)argument;
	CHECK(classes);
	for (int i = 0; i < CLASSES; i++) {
		classes[i].chunk_bytes = bytes;
		bytes = (bytes + bytes / 2 + 15) / 16 * 16;
	}
	return vmsrs_set_root(domain, classes);
}

/* What the test knows of an item. */
static struct known {
	struct item *item;
	size_t size;
	char byte;
} known[ITEMS];

static void check_item(const struct known *known)
{
	CHECK(vmsrs_usable_size(known->item) == known->size);
	for (size_t i = sizeof(struct item); i < known->size; i++)
		CHECK(((char *)known->item)[i] == known->byte);
}

static int use_items(vmsrs_request *request, void *argument)
{
	(void)request;
	(void)argument;
	for (int i = 0; i < 200; i++) {
		struct known *one = &known[rand() % ITEMS];

		if (one->item) {
			check_item(one);
			item_free(class_of(one->size), one->item);
			one->item = NULL;
			continue;
		}
		one->size = sizeof(struct item) + rand() % 2000;
		one->byte = rand();
		one->item = item_alloc(class_of(one->size), one->size);
		CHECK(one->item);
		memset(one->item->data, one->byte, one->size - sizeof(struct item));
	}
	return 0;
}

enum error {
	OVERRUN,
	OVERRUN_FAR,
	USE_AFTER_FREE,
	DOUBLE_FREE,
	FOREIGN_FREE,
	NO_CHUNK,
	IN_USE,
	WRONG_FREE,
	WRONG_REALLOC,
	WRITTEN_WHILE_FREE,
	NO_SLAB,
	LIBC_FREE,
	ERRORS,
};

static const uint32_t kinds[ERRORS] = {
	[OVERRUN] = VMSRS_KIND_RED_ZONE,
	[OVERRUN_FAR] = VMSRS_KIND_RED_ZONE,
	[USE_AFTER_FREE] = VMSRS_KIND_USE_AFTER_FREE,
	[DOUBLE_FREE] = VMSRS_KIND_DOUBLE_FREE,
	[FOREIGN_FREE] = VMSRS_KIND_FOREIGN_FREE,
	[NO_CHUNK] = VMSRS_KIND_FOREIGN_FREE,
	[IN_USE] = VMSRS_KIND_HEAP_CORRUPT,
	[WRONG_FREE] = VMSRS_KIND_FOREIGN_FREE,
	[WRONG_REALLOC] = VMSRS_KIND_FOREIGN_FREE,
	[WRITTEN_WHILE_FREE] = VMSRS_KIND_USE_AFTER_FREE,
	[NO_SLAB] = VMSRS_KIND_FOREIGN_FREE,
	[LIBC_FREE] = VMSRS_KIND_ABORT,
};

/* Two items of 100 bytes in a class of 112 - VMSRS_CHUNK_OVERHEAD and up. */
static int fail(vmsrs_request *request, void *argument)
{
	struct class *class = class_of(100);
	struct item *item = item_alloc(class, 100), *other = item_alloc(class, 100);
	volatile char *bytes = (volatile char *)item;

	(void)request;
	CHECK(item && other);
	switch (*(enum error *)argument) {
	case OVERRUN:
		bytes[100] = 1;
		return 0;
	case OVERRUN_FAR:
		bytes[class->chunk_bytes - VMSRS_CHUNK_OVERHEAD + 7] = 1;
		return 0;
	case USE_AFTER_FREE:
		item_free(class, item);
		bytes[60] = 1;
		return 0;
	case DOUBLE_FREE:
		item_free(class, item);
		item_free(class, other);
		item_free(class, item);
		break;
	case FOREIGN_FREE:
		item_free(class, (struct item *)item->data);
		break;
	case NO_CHUNK:
		item_free(class, vmsrs_root(domain));
		break;
	case IN_USE:
		/* As if the list were wrong. */
		other->next = class->free;
		class->free = other;
		(void)item_alloc(class, 100);
		break;
	case WRONG_FREE:
		vmsrs_free(domain, item);
		break;
	case WRONG_REALLOC:
		(void)!vmsrs_realloc(domain, item, 10);
		break;
	case WRITTEN_WHILE_FREE:
		item_free(class, item);
		bytes[60] = 1;
		(void)item_alloc(class, 100);
		break;
	case NO_SLAB:
		vmsrs_slab_free(domain, item);
		break;
	case LIBC_FREE:
		free(item);
		break;
	default:
		break;
	}
	CHECK(!"the call returns");
	return 0;
}

static int free_whole(vmsrs_request *request, void *argument)
{
	char *slab = vmsrs_slab_alloc(domain, 128, CHUNKS, 0);

	(void)request;
	(void)argument;
	CHECK(slab);
	CHECK(vmsrs_slab_take(domain, slab, 105) == VMSRS_EINVAL);
	for (int i = 0; i < CHUNKS; i += 3) {
		CHECK(vmsrs_slab_take(domain, slab + i * 128, 104) == VMSRS_OK);
		memset(slab + i * 128, 1, 104);
	}
	CHECK(vmsrs_slab_give(domain, slab, 105) == VMSRS_EINVAL);
	CHECK(vmsrs_slab_free(domain, slab) == VMSRS_OK);
	return 0;
}

static int refused(vmsrs_request *request, void *other)
{
	(void)request;
	CHECK(!vmsrs_slab_alloc(other, 48, CHUNKS, 0) && errno == EPERM);
	CHECK(vmsrs_slab_take(other, &errno, 0) == VMSRS_ENOTHELD);
	CHECK(vmsrs_slab_give(other, &errno, 0) == VMSRS_ENOTHELD);
	CHECK(vmsrs_slab_free(other, &errno) == VMSRS_ENOTHELD);
	errno = 0;
	CHECK(!vmsrs_slab_alloc(domain, 40, CHUNKS, 0) && errno == EINVAL);
	CHECK(!vmsrs_slab_alloc(domain, 1 << 20, 1 << 20, 0) && errno == ENOMEM);
	CHECK(!vmsrs_slab_alloc(NULL, 48, CHUNKS, 0) && errno == EINVAL);
	CHECK(vmsrs_slab_take(NULL, &errno, 0) == VMSRS_EINVAL);
	CHECK(vmsrs_slab_take(domain, NULL, 0) == VMSRS_EINVAL);
	CHECK(vmsrs_slab_give(domain, NULL, 0) == VMSRS_EINVAL);
	CHECK(vmsrs_slab_free(domain, NULL) == VMSRS_EINVAL);
	return 0;
}

int main(void)
{
	vmsrs_failure failure;
	vmsrs_domain *other;
	vmsrs_app *app;

	CHECK(vmsrs_open("slabs", &app) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "good", 4, &domain) == VMSRS_OK);
	CHECK(vmsrs_slab_take(domain, &errno, 0) == VMSRS_ENOREQUEST);
	CHECK(vmsrs_run(domain, make_classes, NULL, NULL) == VMSRS_OK);
	for (int i = 0; i < 100; i++)
		CHECK(vmsrs_run(domain, use_items, NULL, NULL) == VMSRS_OK);
	CHECK(vmsrs_run(domain, free_whole, NULL, NULL) == VMSRS_OK);
	CHECK(vmsrs_domain_open(app, "other", 5, &other) == VMSRS_OK);
	CHECK(vmsrs_run(domain, refused, other, NULL) == VMSRS_OK);
	/* Without protection the damage stays: a domain for each. */
	for (enum error error = 0; error < ERRORS; error++) {
		CHECK(vmsrs_domain_open(app, &error, sizeof(error), &domain) == VMSRS_OK);
		CHECK(vmsrs_run(domain, make_classes, NULL, NULL) == VMSRS_OK);
		CHECK(vmsrs_run(domain, fail, &error, NULL) == VMSRS_EFAILED);
		CHECK(vmsrs_last_failure(&failure) == VMSRS_OK);
		if (failure.kind != kinds[error])
			dprintf(2, "error %d: %s\n", error, vmsrs_kind_name(failure.kind));
		CHECK(failure.kind == kinds[error]);
	}
	return 0;
}
