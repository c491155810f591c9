// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages a request will write to, from what was written before: they are made drafts with its
 * first write, ahead of their own, which saves their page faults.
 *
 * - Hot pages: every request that writes to the domain has written to them, several times in a row.
 * - The pages that follow: the request writes to one page after the other.
 *
 * A draft made ahead that stays unwritten is dropped when the request ends, and costs about as much as
 * two thirds of a fault. So a page that was once left out is hot no more, and a domain whose requests
 * stop early gets no following pages.
 */
#include <linux/slab.h>

#include "vmsrs.h"

/* Commits in a row after which a page is hot. */
#define HOT_AFTER		3
/* Pages written in a row after which the following ones are predicted, and at most how many. */
#define RUN_MIN			2
#define RUN_MAX			VMSRS_FOLLOWING_MAX
/* Bounds of vmsrs_domain.run_score. */
#define RUN_SCORE_MAX		4

/*
 * Adds the pages that follow to the prediction. As many as were written in a row, so that at most
 * half of them are for nothing.
 */
static u32 following(struct vmsrs_domain *domain, const struct vmsrs_extent_pages *extent, u32 page,
		     struct vmsrs_ahead *pages)
{
	u32 count, i;

	domain->run = page == domain->next_page ? min_t(u32, domain->run + 1, RUN_MAX) : 1;
	domain->next_page = page + 1;
	/* What was not predicted has come. */
	if (domain->run_score < 0 && domain->run == RUN_MIN + 1)
		domain->run_score++;
	if (domain->run < RUN_MIN || domain->run_score < 0)
		return 0;
	count = min_t(u32, domain->run, extent->page + extent->pages - domain->next_page);
	for (i = 0; i < count; i++) {
		pages[i].page = domain->next_page + i;
		pages[i].why = VMSRS_AHEAD_FOLLOWS;
	}
	domain->next_page += count;
	domain->run = min_t(u32, domain->run + count, RUN_MAX);
	return count;
}

/**
 * vmsrs_predict() - predict what a request will write to
 * @domain: the domain, locked
 * @extent: the extent of @page
 * @page: page that the request writes to
 * @first: it is its first one in the domain
 * @pages: room for VMSRS_AHEAD_MAX pages
 *
 * Return: number of pages, in the order in which they are most likely. Some may have drafts.
 */
u32 vmsrs_predict(struct vmsrs_domain *domain, const struct vmsrs_extent_pages *extent, u32 page,
		  bool first, struct vmsrs_ahead *pages)
{
	const struct vmsrs_hot_pages *hot = domain->hot;
	u32 count = 0;

	lockdep_assert_held(&domain->lock);
	if (first) {
		domain->run = 0;
		domain->next_page = VMSRS_NONE;
		for (; hot && count < hot->count; count++) {
			pages[count].page = hot->pages[count];
			pages[count].why = VMSRS_AHEAD_HOT;
		}
	}
	return count + following(domain, extent, page, pages + count);
}

/* Adds a hot page, if there is memory and room for it. */
static void add_hot(struct vmsrs_domain *domain, u32 page)
{
	struct vmsrs_hot_pages *hot = domain->hot;
	u32 i;

	if (!hot) {
		hot = kzalloc(sizeof(*hot), GFP_NOWAIT | __GFP_NOWARN);
		if (!hot)
			return;
		domain->hot = hot;
	}
	for (i = 0; i < hot->count; i++)
		if (hot->pages[i] == page)
			return;
	if (hot->count < VMSRS_HOT_MAX)
		hot->pages[hot->count++] = page;
}

static void remove_hot(struct vmsrs_hot_pages *hot, u32 page)
{
	u32 i;

	for (i = 0; hot && i < hot->count; i++) {
		if (hot->pages[i] == page) {
			hot->pages[i] = hot->pages[--hot->count];
			return;
		}
	}
}

/**
 * vmsrs_predict_written() - learn from a draft that is committed
 * @domain: its domain, locked; domain->commits has been incremented for this commit
 * @draft: the draft, whose @committed has been set
 */
void vmsrs_predict_written(struct vmsrs_domain *domain, struct vmsrs_frame *draft)
{
	const struct vmsrs_frame *before = NULL;

	lockdep_assert_held(&domain->lock);
	if (vmsrs_in_pool(draft->committed))
		before = vmsrs_pool_frame(domain->app->dev, draft->committed);
	draft->commit = domain->commits;
	draft->streak = 1;
	if (before && before->commit == domain->commits - 1)
		draft->streak = min_t(u32, before->streak + 1, HOT_AFTER);
	/* A request that writes to one page alone has nothing to gain. */
	if (draft->streak == HOT_AFTER && domain->draft_count > 1 &&
	    draft->ahead != VMSRS_AHEAD_HOT)
		add_hot(domain, draft->page);
}

/**
 * vmsrs_predict_unwritten() - learn from drafts that were made ahead and not written
 * @domain: the domain, locked
 * @drafts: the drafts
 * @written: number of those that were made ahead because they follow, and written
 */
void vmsrs_predict_unwritten(struct vmsrs_domain *domain, const struct list_head *drafts,
			     u32 written)
{
	struct vmsrs_frame *draft;
	u32 unwritten = 0;

	lockdep_assert_held(&domain->lock);
	list_for_each_entry(draft, drafts, list) {
		if (draft->ahead == VMSRS_AHEAD_FOLLOWS)
			unwritten++;
		else
			remove_hot(domain->hot, draft->page);
	}
	if (unwritten > written)
		domain->run_score = max_t(int, domain->run_score - 1, -RUN_SCORE_MAX);
	else if (written && !unwritten)
		domain->run_score = min_t(int, domain->run_score + 1, RUN_SCORE_MAX);
}
