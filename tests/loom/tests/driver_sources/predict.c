/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The functions of guest-kmod/predict.c, which the test writes to functions.inc, with stubs for what they
 * call.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "vmsrs_protocol.h"

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef int8_t s8;

/* As in vmsrs.h and predict.c. */
#define VMSRS_HOT_MAX 12
#define VMSRS_FOLLOWING_MAX 16
#define VMSRS_AHEAD_NOT 0
#define VMSRS_AHEAD_HOT 1
#define VMSRS_AHEAD_FOLLOWS 2
#define VMSRS_STREAK_MAX 3
#define ROW_MIN 2
#define ROW_SCORE_MAX 4
#define ROW_MAX UINT8_MAX
#define STREAK_SHIFT 28
#define HOT_AFTER 4
#define RELUCTANCE_MAX 8
#define VMSRS_PAID_AFTER 256
#define noinline

#define GFP_NOWAIT 0
#define __GFP_NOWARN 0
#define kzalloc(size, flags) calloc(1, size)
#define lockdep_assert_held(lock)
#define min_t(type, a, b) ((type)(a) < (type)(b) ? (type)(a) : (type)(b))
#define max_t(type, a, b) ((type)(a) > (type)(b) ? (type)(a) : (type)(b))
#define min(a, b) ((a) < (b) ? (a) : (b))
/* Drafts of a request, by place. */
#define vmsrs_for_each_frame(draft, row) \
	for (draft = (row)->drafts; draft != (row)->drafts + (row)->count; draft++)

struct vmsrs_prediction { const u32 *hot; u32 hot_count, following, following_count; };
struct vmsrs_heat {
	void *resident;
	u16 steady, paid, kept_commit;
	u8 reluctance : 4, many : 1, count : 4, kept : 4;
	u32 pages[VMSRS_HOT_MAX];
};
struct vmsrs_frame { u32 page, committed, replaced; u16 commit; u8 streak, ahead; };
struct vmsrs_frames { struct vmsrs_frame *drafts; u32 count; };
struct vmsrs_app { void *dev; };
struct vmsrs_extent_pages { u32 page, pages; };

struct vmsrs_domain {
	struct vmsrs_app *app;
	struct vmsrs_heat *heat;
	struct vmsrs_frames drafts;
	u32 next_page;
	u16 commits;
	u8 row, predicted, last_rows[2];
	s8 row_score;
};

#define PAGES 100U

/* The versions that were committed last, one a page: its name is its page. Those that were sealed are in the vault. */
static struct vmsrs_frame versions[PAGES];
static bool sealed[PAGES];

static bool vmsrs_in_pool(u32 version)
{
	return version & VMSRS_IN_POOL && version != VMSRS_NONE;
}

static struct vmsrs_frame *vmsrs_pool_frame(void *dev, u32 version)
{
	return &versions[version & ~VMSRS_IN_POOL];
}

#include "functions.inc"

static struct vmsrs_app app;
static struct vmsrs_domain domain = { .app = &app };
static const struct vmsrs_extent_pages extent = { .page = 0, .pages = PAGES };

/* Faults, drafts made ahead and those of them that stayed unwritten, in the last request. */
static u32 faults, ahead, unwritten;

/* A request that writes these pages and commits. */
static void request(const u32 *pages, u32 count)
{
	struct vmsrs_frame drafts[PAGES] = { }, dropped[PAGES];
	struct vmsrs_frames list = { dropped, 0 };
	bool drafted[PAGES] = { }, written[PAGES] = { };
	u32 i, j, page, predicted, follow = 0;
	struct vmsrs_prediction next;

	faults = ahead = 0;
	for (i = 0; i < count; i++) {
		written[pages[i]] = true;
		if (drafted[pages[i]])
			continue;
		drafted[pages[i]] = true;
		predicted = vmsrs_predict(&domain, &extent, pages[i], !faults++, &next);
		for (j = 0; j < predicted; j++) {
			page = j < next.hot_count ? next.hot[j] : next.following + j - next.hot_count;
			if (page >= PAGES)
				exit(2);
			if (drafted[page])
				continue;
			drafted[page] = true;
			drafts[page].ahead = j < next.hot_count ? VMSRS_AHEAD_HOT : VMSRS_AHEAD_FOLLOWS;
			ahead++;
		}
	}
	domain.drafts.count = 0;
	for (i = 0; i < PAGES; i++) {
		drafts[i].page = i;
		drafts[i].committed = i | (sealed[i] ? 0 : VMSRS_IN_POOL);
		drafts[i].replaced = sealed[i] ? i : versions[i].replaced;
		if (drafted[i] && !written[i])
			dropped[list.count++] = drafts[i];
		follow += written[i] && drafts[i].ahead == VMSRS_AHEAD_FOLLOWS;
		domain.drafts.count += written[i];
	}
	unwritten = list.count;
	vmsrs_predict_end(&domain, &list, follow);
	domain.commits++;
	for (i = 0; i < PAGES; i++) {
		if (written[i]) {
			vmsrs_predict_written(&domain, &drafts[i]);
			versions[i] = drafts[i];
			sealed[i] = false;
		}
	}
}

static void row(u32 first, u32 count)
{
	u32 pages[PAGES], i;

	for (i = 0; i < count; i++)
		pages[i] = first + i;
	request(pages, count);
}

static void fresh(void)
{
	u32 i;

	free(domain.heat);
	domain = (struct vmsrs_domain){ .app = &app };
	memset(versions, 0, sizeof(versions));
	memset(sealed, 0, sizeof(sealed));
	for (i = 0; i < PAGES; i++) {
		versions[i].commit = UINT16_MAX - 1;
		versions[i].replaced = VMSRS_NONE;
	}
}

static void expect(bool right, const char *what)
{
	if (right)
		return;
	fprintf(stderr, "wrong: %s: %u faults, %u ahead, %u of them unwritten\n", what, faults, ahead,
		unwritten);
	exit(1);
}

#define REQUEST(...) \
	request((u32[]){ __VA_ARGS__ }, sizeof((u32[]){ __VA_ARGS__ }) / sizeof(u32))

static void hot_pages(void)
{
	u32 i, count;

	fresh();
	for (i = 0; i < 3; i++) {
		REQUEST(70, 3, 41);
		expect(faults == 3 && !ahead, "nothing is hot yet");
	}
	for (i = 0; i < 3; i++) {
		REQUEST(3, 70, 41);
		expect(faults == 1 && ahead == 2 && !unwritten, "all pages are hot");
	}
	REQUEST(70, 3);
	expect(faults == 1 && ahead == 2 && unwritten == 1, "one is left out");
	REQUEST(70, 3, 41);
	expect(faults == 2 && ahead == 1, "that one is hot no more");

	fresh();
	for (i = 0; i < 30; i++) {
		REQUEST(5, 10 + i % 10 * 2);
		expect(!ahead || i >= 3, "one page is the same");
		expect(ahead <= 1 && !unwritten, "pages that come again later are not hot");
	}

	fresh();
	for (i = 0; i < 10; i++)
		REQUEST(8);
	expect(!domain.heat, "a page alone needs no memory");

	fresh();
	for (i = 0; i < 5; i++) {
		REQUEST(0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 57);
		count = ahead;
	}
	expect(count == VMSRS_HOT_MAX || count == VMSRS_HOT_MAX - 1, "as many as there is room for");
}

static void following_pages(void)
{
	u32 i;

	fresh();
	row(10, 4);
	expect(faults == 2 && ahead == 2 && !unwritten, "four in a row");
	row(20, 64);
	expect(faults < 12 && unwritten < 16, "64 in a row");
	row(PAGES - 3, 3);
	expect(!unwritten, "up to the end of the extent");
	for (i = 0; i < 2; i++)
		row(i, 1);
	row(2, 1);
	expect(faults == 1 && !ahead, "a row ends with its request");

	fresh();
	for (i = 0; i < 2; i++)
		row(10, 7);
	row(50, 7);
	expect(faults == 1 && ahead == 6 && !unwritten, "as long as the last two rows");
	row(30, 2);
	expect(unwritten == 5, "a shorter one");
	row(30, 2);
	expect(faults == 1 && !unwritten, "what the shorter of the last two has");
	row(30, 12);
	expect(faults <= 4 && ahead >= 8, "a longer one is found out");

	fresh();
	row(10, 2);
	expect(faults == 2 && ahead == 2 && unwritten == 2, "two in a row, for nothing");
	row(30, 2);
	expect(faults == 2 && !ahead, "a second time, and no prediction");
	for (i = 0; i < 20; i += 2) {
		row(40 + i, 2);
		expect(faults == 1 && !unwritten, "two in a row as always");
	}
	row(10, 30);
	expect(ahead > 10, "a long row is worth it again");

	fresh();
	for (i = 0; i < 2; i++)
		row(10, 9);
	REQUEST(10, 30, 50, 70, 90);
	expect(faults == 5 && ahead <= 16, "rows that end early are not expected to be long any more");

	fresh();
	for (i = 0; i < 20; i++) {
		REQUEST(i * 3, 90 - i * 3);
		expect(!ahead, "pages without an order");
	}
}

/* All that was committed is sealed. */
static void seal(void)
{
	u32 i;

	for (i = 0; i < PAGES; i++) {
		if (versions[i].commit == domain.commits && !sealed[i])
			vmsrs_predict_sealed(&domain, &versions[i]);
		sealed[i] = true;
	}
}

/* How often the domain has become hot in so many plain requests, with a seal and a failure after each so many. */
static u32 became_hot(u32 requests, u32 between_seals, u32 between_failures, u32 *hot_requests)
{
	u32 i, times = 0;

	*hot_requests = 0;
	for (i = 1; i <= requests; i++) {
		REQUEST(5);
		if (domain.heat && domain.heat->resident) {
			++*hot_requests;
			vmsrs_heat_paid(domain.heat);
		} else if (versions[5].streak == VMSRS_STREAK_MAX && vmsrs_heat_get(&domain) &&
			   vmsrs_heat_steady(domain.heat)) {
			domain.heat->resident = &domain;
			times++;
		}
		if (i % between_seals == 0)
			seal();
		if (i % between_failures == 0 && domain.heat && domain.heat->resident)
			vmsrs_heat_cooled(domain.heat);
	}
	return times;
}

static void steady_domains(void)
{
	u32 between, hot, i;

	for (between = 1; between < 10; between++) {
		fresh();
		expect(became_hot(1000, between, UINT32_MAX, &hot) == 1, "hot once, however slow");
		expect(hot > 980, "soon");
	}
	/* One that fails now and then is hot most of the time, as often as it has failed. */
	fresh();
	became_hot(40000, 1, 1000, &hot);
	expect(hot > 39000 && domain.heat->reluctance <= 1, "what it has paid counts");
	/* One that fails all the time gives up. */
	fresh();
	expect(became_hot(40000, 1, 50, &hot) < 60, "no back and forth");
	expect(domain.heat->reluctance == RELUCTANCE_MAX, "it has paid for nothing");
	became_hot(40000, 1, UINT32_MAX, &hot);
	expect(hot > 38000 && !domain.heat->reluctance, "what it has paid is forgotten in the end");

	/* A page that is left out once starts again. */
	fresh();
	for (i = 0; i < 4; i++) {
		REQUEST(5);
		seal();
	}
	expect(versions[5].streak == VMSRS_STREAK_MAX, "a page that each request writes");
	REQUEST(6);
	seal();
	REQUEST(5);
	expect(versions[5].streak == 1, "left out");
	/* As many pages as are kept. */
	fresh();
	for (i = 0; i < 5; i++) {
		row(0, VMSRS_HOT_MAX);
		seal();
	}
	for (i = 0; i < VMSRS_HOT_MAX; i++)
		expect(versions[i].streak == VMSRS_STREAK_MAX, "each is kept");
	/* More. */
	fresh();
	for (i = 0; i < 6; i++) {
		row(0, 20);
		seal();
	}
	expect(domain.heat->count + domain.heat->kept <= VMSRS_HOT_MAX, "room");
	REQUEST(0, 4, 8);
	REQUEST(0, 4, 8);
	expect(domain.heat->count <= VMSRS_HOT_MAX, "room");
}

int main(void)
{
	hot_pages();
	following_pages();
	steady_domains();
	return 0;
}
