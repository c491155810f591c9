// SPDX-License-Identifier: GPL-2.0
/*
 * Which pages a request will write to, from what was written before: they are made drafts with its
 * first write, ahead of their own, which saves their page faults.
 *
 * - Hot pages: every request that writes to the domain has written to them, several times in a row.
 * - The pages that follow: the request writes to one page after the other, a row. It is expected to
 *   be as long as the last two rows in the domain were, and if it becomes longer, twice as long as
 *   it is.
 *
 * A draft made ahead that stays unwritten is dropped when the request ends, and costs about as much
 * as two thirds of a fault. So a page that was once left out is hot no more, and a domain whose
 * requests stop early gets no following pages.
 *
 * And whether what is committed is read before it is sealed: then it is mapped at once, which costs
 * a fifth of the reader's page fault. Of one commit in eight, one page is a sample, so what counts is
 * how many of the pages are read.
 */
#include <linux/slab.h>

#include "vmsrs.h"

/* Pages of a row that is longer than expected after which the following ones are predicted. */
#define ROW_MIN			2
/* Bounds of vmsrs_domain.row_score. */
#define ROW_SCORE_MAX		4
/* Longer rows count as this long. */
#define ROW_MAX			U8_MAX

/* Samples in a row that nobody had read, after which it is not expected any more. */
#define UNREAD_MAX		8

/* In vmsrs_heat.pages, a streak is above the number of its page. */
#define STREAK_SHIFT		28
/*
 * Commits in a row with pages that several before them have written, after which a domain is hot;
 * twice as many for each time that it has cooled.
 */
#define HOT_AFTER		4
/* Most times that it takes twice as many. */
#define RELUCTANCE_MAX		8

static void end_row(struct vmsrs_domain *domain, u32 length)
{
	domain->last_rows[1] = domain->last_rows[0];
	domain->last_rows[0] = length;
}

/* How many pages will follow in the row, whose last page has just been written. */
static u32 expected(const struct vmsrs_domain *domain)
{
	u32 last = min(domain->last_rows[0], domain->last_rows[1]);

	if (domain->row <= last)
		return last - domain->row;
	/* At most half of them are for nothing. */
	return domain->row < ROW_MIN || domain->row_score < 0 ? 0 : domain->row;
}

/* Predicts how many pages follow: those before domain->next_page then. */
static u32 following(struct vmsrs_domain *domain, const struct vmsrs_extent_pages *extent, u32 page)
{
	u32 count;

	if (page != domain->next_page) {
		/* What was predicted last may not have come. */
		if (domain->row)
			end_row(domain, domain->row - min(domain->row, domain->predicted));
		domain->row = 0;
	}
	domain->row = min_t(u32, domain->row + 1, ROW_MAX);
	/* What was not predicted has come. */
	if (domain->row_score < 0 && domain->row == ROW_MIN + 1)
		domain->row_score++;
	count = min_t(u32, expected(domain), VMSRS_FOLLOWING_MAX);
	count = min_t(u32, count, extent->page + extent->pages - (page + 1));
	domain->next_page = page + 1 + count;
	domain->predicted = count;
	domain->row = min_t(u32, domain->row + count, ROW_MAX);
	return count;
}

/**
 * vmsrs_predict() - predict what a request will write to
 * @domain: the domain, locked
 * @extent: the extent of @page
 * @page: page that the request writes to
 * @first: it is its first one in the domain
 * @prediction: set; good until the domain is unlocked
 *
 * Return: number of pages. Some may have drafts.
 */
u32 vmsrs_predict(struct vmsrs_domain *domain, const struct vmsrs_extent_pages *extent, u32 page,
		  bool first, struct vmsrs_prediction *prediction)
{
	const struct vmsrs_heat *hot = domain->heat;

	lockdep_assert_held(&domain->lock);
	prediction->hot_count = 0;
	if (first) {
		domain->row = 0;
		domain->next_page = VMSRS_NONE;
		if (hot) {
			prediction->hot = hot->pages;
			prediction->hot_count = hot->count;
		}
	}
	prediction->following = page + 1;
	prediction->following_count = following(domain, extent, page);
	return prediction->hot_count + prediction->following_count;
}

/**
 * vmsrs_heat_get() - find what is known of what the last requests in a domain have written
 * @domain: the domain, locked
 *
 * Return: the heat, or NULL if there is none yet and memory is short.
 */
struct vmsrs_heat *vmsrs_heat_get(struct vmsrs_domain *domain)
{
	if (!domain->heat)
		domain->heat = kzalloc(sizeof(*domain->heat), GFP_NOWAIT | __GFP_NOWARN);
	return domain->heat;
}

/* Adds a hot page, if there is memory and room for it. */
static void add_hot(struct vmsrs_domain *domain, u32 page)
{
	struct vmsrs_heat *hot = vmsrs_heat_get(domain);
	u32 i;

	for (i = 0; hot && i < hot->count; i++)
		if (hot->pages[i] == page)
			return;
	if (!hot || hot->count == VMSRS_HOT_MAX)
		return;
	/* In the place of a page that is only kept, which moves up if there is room. */
	if (hot->kept && hot->count + hot->kept < VMSRS_HOT_MAX)
		hot->pages[hot->count + hot->kept] = hot->pages[hot->count];
	else if (hot->kept)
		hot->kept--;
	hot->pages[hot->count++] = page;
}

static void remove_hot(struct vmsrs_heat *hot, u32 page)
{
	u32 i;

	for (i = 0; hot && i < hot->count; i++) {
		if (hot->pages[i] == page) {
			hot->pages[i] = hot->pages[--hot->count];
			/* Those that are kept follow the hot ones. */
			hot->pages[hot->count] = hot->pages[hot->count + hot->kept];
			return;
		}
	}
}

/* Finds a page that is hot, or kept; NULL if it is neither. */
static u32 *find_kept(struct vmsrs_heat *heat, u32 page)
{
	u32 i;

	for (i = 0; i < heat->count + heat->kept; i++)
		if (heat->pages[i] << (32 - STREAK_SHIFT) == page << (32 - STREAK_SHIFT))
			return &heat->pages[i];
	return NULL;
}

/* Commits in a row, up to the one before this, that have written a page that was sealed since. */
static noinline u32 kept_streak(struct vmsrs_heat *heat, const struct vmsrs_frame *draft)
{
	u32 *kept;

	if (draft->ahead == VMSRS_AHEAD_HOT)
		return VMSRS_STREAK_MAX;
	kept = find_kept(heat, draft->page);
	if (!kept)
		return 0;
	return *kept >> STREAK_SHIFT ? *kept >> STREAK_SHIFT : VMSRS_STREAK_MAX;
}

/**
 * vmsrs_predict_written() - learn from a draft that is committed
 * @domain: its domain, locked; domain->commits has been incremented for this commit
 * @draft: the draft, whose @committed has been set
 */
void vmsrs_predict_written(struct vmsrs_domain *domain, struct vmsrs_frame *draft)
{
	struct vmsrs_heat *heat = domain->heat;
	const struct vmsrs_frame *before;
	u16 last = domain->commits - 1;

	lockdep_assert_held(&domain->lock);
	draft->commit = domain->commits;
	draft->streak = 1;
	if (vmsrs_in_pool(draft->committed)) {
		before = vmsrs_pool_frame(domain->app->dev, draft->committed);
		if (before->commit == last)
			draft->streak = min_t(u32, before->streak + 1, VMSRS_STREAK_MAX);
	} else if (heat && heat->kept_commit == last && !heat->many) {
		draft->streak = min_t(u32, kept_streak(heat, draft) + 1, VMSRS_STREAK_MAX);
	}
	/* A request that writes to one page alone has nothing to gain. */
	if (draft->streak == VMSRS_STREAK_MAX && domain->drafts.count > 1 &&
	    draft->ahead != VMSRS_AHEAD_HOT)
		add_hot(domain, draft->page);
}

/**
 * vmsrs_predict_sealed() - keep the streak of a page whose committed version leaves its frame
 * @domain: the page's domain, locked
 * @frame: the frame, in which the domain's last commit has left the version
 *
 * So it does not matter how much time there is between two requests. Pages that have been sealed
 * once are left out: most domains of a server with many are not used again for long, and need no
 * memory for this.
 */
void vmsrs_predict_sealed(struct vmsrs_domain *domain, const struct vmsrs_frame *frame)
{
	struct vmsrs_heat *heat = domain->heat;

	lockdep_assert_held(&domain->lock);
	if (heat && heat->many && heat->kept_commit == domain->commits)
		return;
	if (frame->replaced == VMSRS_NONE)
		return;
	heat = vmsrs_heat_get(domain);
	if (!heat)
		return;
	if (heat->kept_commit != domain->commits) {
		heat->kept_commit = domain->commits;
		heat->kept = 0;
		heat->many = false;
	}
	if (heat->many || find_kept(heat, frame->page))
		return;
	if (heat->count + heat->kept < VMSRS_HOT_MAX)
		heat->pages[heat->count + heat->kept++] = frame->page | (u32)frame->streak << STREAK_SHIFT;
	else
		heat->many = true;
}

/**
 * vmsrs_predict_reads() - tell whether what is committed will probably be read before it is sealed
 * @domain: the domain, locked
 */
bool vmsrs_predict_reads(const struct vmsrs_domain *domain)
{
	lockdep_assert_held(&domain->lock);
	return domain->unread < UNREAD_MAX;
}

/* Spreads the numbers of commits, so that what repeats every few commits is seen as a whole. */
static u16 spread(const struct vmsrs_domain *domain)
{
	return domain->commits * 40503;
}

/**
 * vmsrs_predict_sample() - tell whether a commit has a sample of what is read, and note which
 * @domain: the domain, locked, whose drafts have just become committed versions
 *
 * Return: true for one in eight.
 */
bool vmsrs_predict_sample(const struct vmsrs_domain *domain)
{
	struct vmsrs_frame *frame = domain->drafts.first;
	u32 skip;

	lockdep_assert_held(&domain->lock);
	if (likely(spread(domain) >> 13) || !frame)
		return false;
	for (skip = spread(domain) % domain->drafts.count; skip; skip--)
		frame = frame->next;
	frame->sample = true;
	return true;
}

/**
 * vmsrs_predict_learn() - learn whether a version was read before it was sealed
 * @domain: its domain, locked
 * @read: it was
 */
void vmsrs_predict_learn(struct vmsrs_domain *domain, bool read)
{
	lockdep_assert_held(&domain->lock);
	if (read)
		domain->unread = 0;
	else if (domain->unread < UNREAD_MAX)
		domain->unread++;
}

/**
 * vmsrs_heat_steady() - count a commit with pages that several before it have written
 * @heat: what is known of the domain
 *
 * Return: true if it is time for the domain to be hot.
 */
bool vmsrs_heat_steady(struct vmsrs_heat *heat)
{
	return ++heat->steady >= HOT_AFTER << heat->reluctance;
}

/**
 * vmsrs_heat_cooled() - note that a domain is not hot any more
 * @heat: what is known of the domain
 */
void vmsrs_heat_cooled(struct vmsrs_heat *heat)
{
	heat->resident = NULL;
	heat->steady = 0;
	heat->paid = 0;
	heat->reluctance = min(heat->reluctance + 1, RELUCTANCE_MAX);
}

/**
 * vmsrs_predict_end() - learn from the end of a request's drafts in a domain
 * @domain: the domain, locked
 * @unwritten: the drafts that were made ahead and not written
 * @written: number of those that were made ahead because they follow, and written
 */
void vmsrs_predict_end(struct vmsrs_domain *domain, const struct vmsrs_frames *unwritten, u32 written)
{
	struct vmsrs_frame *draft;
	u32 follow = 0;

	lockdep_assert_held(&domain->lock);
	vmsrs_for_each_frame(draft, unwritten) {
		if (draft->ahead == VMSRS_AHEAD_FOLLOWS)
			follow++;
		else
			remove_hot(domain->heat, draft->page);
	}
	end_row(domain, domain->row - min_t(u32, follow, domain->row));
	if (follow > written)
		domain->row_score = max_t(int, domain->row_score - 1, -ROW_SCORE_MAX);
	else if (written && !follow)
		domain->row_score = min_t(int, domain->row_score + 1, ROW_SCORE_MAX);
}
