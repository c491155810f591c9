//! Recovery: a failed request's report is checked, and what its drafts had changed is kept as evidence;
//! the verdict says which version the pages return to.
//!
//! Restoring itself costs the host nothing: committed versions were never touched, and the driver maps
//! them again on demand.

use std::borrow::Cow;

use vmsrs_protocol::incident::{
    DroppedDraft, IncidentReport, KIND_CHECKSUM, KIND_MAX, KIND_POISON, REPORT_ADDRESS,
};
use vmsrs_protocol::{DAMAGED_FRAME, IN_POOL, NONE, PAGE_SIZE};

use super::changes::{self, Block, Change, Differences, Page};
use super::incidents::{CHANGES_MAX, DRAFTS_KEPT, Dropped, FailedRequest, IncidentStore, Verdict};
use super::memory::Memory;
use super::refusal::Refusal;
use super::seal::check_pool_frame;
use super::store::{PageOf, Store};

/// Takes a report of a failed request with its dropped drafts.
pub(crate) fn report(
    store: &Store,
    incidents: &IncidentStore,
    pool_frames: u32,
    report: &IncidentReport,
    drafts: &[DroppedDraft],
    memory: &impl Memory,
) -> Result<FailedRequest, Refusal> {
    let drafts = &*without_deleted(store, report.app, drafts);
    check(store, incidents, pool_frames, report, drafts)?;
    let mut verdict = Verdict::Intact;
    let mut kept = Vec::with_capacity(drafts.len().min(DRAFTS_KEPT));
    let mut comparison = Comparison::new(store, report.app, drafts, memory);
    let has_address = report.flags & REPORT_ADDRESS != 0;
    let accessed = has_address.then(|| report.address & !(u64::from(PAGE_SIZE) - 1));
    for (number, draft) in drafts.iter().enumerate() {
        let sealed = store.apps[report.app as usize].frame(draft.page);
        let known = match draft.committed {
            named if store.is_shown_as(sealed, named) => Verdict::Intact,
            DAMAGED_FRAME | NONE => Verdict::Mismatch,
            named if named & IN_POOL != 0 => Verdict::Unsealed,
            // Superseded meanwhile, or wrong: the host has nothing to compare with.
            _ => Verdict::Mismatch,
        };
        verdict = verdict.max(known);
        if number < DRAFTS_KEPT {
            let is_compared =
                number < COMPARED_MAX || accessed == Some(comparison.address(draft.page));
            kept.push(match is_compared {
                true => comparison.compare(number, known),
                false => Dropped::listed(draft),
            });
        }
    }
    let details = kept.iter().flat_map(|draft| &draft.changes);
    let details = details.map(Change::cost).sum();
    Ok(FailedRequest {
        report: *report,
        verdict,
        drafts: kept,
        program: None,
        details,
        stripped: false,
    })
}

/// The drafts without those of domains that are deleted: the report may have been on its way meanwhile.
fn without_deleted<'a>(
    store: &Store,
    app: u32,
    drafts: &'a [DroppedDraft],
) -> Cow<'a, [DroppedDraft]> {
    match store.app(app) {
        Ok(known) if known.has_deleted() => {
            let is_there = |draft: &&DroppedDraft| {
                let checked = store.check_page(app, draft.domain, draft.page);
                checked.is_ok() || draft.domain >= known.domains()
            };
            drafts.iter().filter(is_there).copied().collect()
        }
        _ => Cow::Borrowed(drafts),
    }
}

fn check(
    store: &Store,
    incidents: &IncidentStore,
    pool_frames: u32,
    report: &IncidentReport,
    drafts: &[DroppedDraft],
) -> Result<(), Refusal> {
    if report.kind == 0 || report.kind > KIND_MAX {
        return Err(Refusal::Malformed(
            "the driver reported an incident of an unknown kind",
        ));
    }
    // Only the host can find errors of its own memory.
    if matches!(report.kind, KIND_CHECKSUM | KIND_POISON) {
        return Err(Refusal::Malformed(
            "the driver reported a hardware failure, which only the host can find",
        ));
    }
    if !incidents.is_new_number(report.incident) {
        return Err(Refusal::Malformed(
            "the driver reported an incident under an invalid number",
        ));
    }
    let app = store.app(report.app)?;
    for domain in [report.domain, report.address_domain] {
        // One that is deleted meanwhile has a number below this, too.
        if domain != NONE && domain >= app.domains() {
            store.app_with_domain(report.app, domain)?;
        }
    }
    for draft in drafts {
        store.check_page(report.app, draft.domain, draft.page)?;
        check_pool_frame(draft.pool_frame, pool_frames)?;
        match draft.committed {
            NONE | DAMAGED_FRAME => {}
            frame if frame & IN_POOL != 0 => check_pool_frame(frame & !IN_POOL, pool_frames)?,
            frame if store.frames.state(frame).is_some() => {}
            _ => {
                return Err(Refusal::Malformed(
                    "the driver named a frame that the vault does not have",
                ));
            }
        }
    }
    let mut frames: Vec<u32> = drafts.iter().map(|draft| draft.pool_frame).collect();
    frames.sort_unstable();
    if frames.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refusal::Malformed("the driver dropped a frame twice"));
    }
    Ok(())
}

/// Drafts of a report that are compared with the version that stays, beside that of the failed access. To
/// read and compare a page costs as much as all else that a failure with one page does.
const COMPARED_MAX: usize = 4;

/// Number of pages in which a report's comparison searches for the block that a page starts in.
const SEARCH_PAGES_MAX: u32 = 2;

/// The drafts of a report against the versions that stay.
struct Comparison<'a, M> {
    store: &'a Store,
    app: u32,
    drafts: &'a [DroppedDraft],
    memory: &'a M,
    /// Versions of the page that is looked at.
    old: Page,
    new: Page,
    /// Bytes of changes that may still be kept.
    room: usize,
    /// Pages that may still be searched.
    searches: u32,
    /// The page that was compared last, with its domain and the last block that starts in it or before it.
    before: Option<(u32, u32, Option<Block>)>,
}

impl<'a, M: Memory> Comparison<'a, M> {
    fn new(store: &'a Store, app: u32, drafts: &'a [DroppedDraft], memory: &'a M) -> Self {
        Self {
            store,
            app,
            drafts,
            memory,
            old: [0; PAGE_SIZE as usize],
            new: [0; PAGE_SIZE as usize],
            room: CHANGES_MAX,
            searches: SEARCH_PAGES_MAX,
            before: None,
        }
    }

    /// What the draft of a number had changed.
    fn compare(&mut self, number: usize, verdict: Verdict) -> Dropped {
        let draft = &self.drafts[number];
        let mut dropped = Dropped::listed(draft);
        if !self.load(draft, verdict) {
            return dropped;
        }
        let found = Differences::new(&self.old, &self.new);
        dropped.changed = Some(found.count);
        dropped.first = found.first();
        let address = self.address(draft.page);
        if found.count != 0 && self.room != 0 {
            let mut changes = found.changes(address, &self.old, &self.new);
            let cost: usize = changes.iter().map(Change::cost).sum();
            match self.room.checked_sub(cost) {
                Some(left) => {
                    self.room = left;
                    self.find_block_before(number, address, &mut changes);
                    dropped.changes = changes;
                }
                None => self.room = 0,
            }
        }
        dropped
    }

    /// Loads both versions of a page. False if they cannot be compared.
    fn load(&mut self, draft: &DroppedDraft, verdict: Verdict) -> bool {
        let is_loaded = match (draft.committed, verdict) {
            (_, Verdict::Mismatch) | (DAMAGED_FRAME, _) => false,
            (NONE, _) => {
                self.old.fill(0);
                true
            }
            (frame, Verdict::Unsealed) => {
                let frame = frame & !IN_POOL;
                self.memory.read_pool(frame, &mut self.old).is_ok()
            }
            (frame, Verdict::Intact) => self.memory.read_vault(frame, &mut self.old).is_ok(),
        };
        is_loaded
            && self
                .memory
                .read_pool(draft.pool_frame, &mut self.new)
                .is_ok()
    }

    fn page_of(&self, page: u32) -> PageOf {
        PageOf {
            app: self.app,
            page,
        }
    }

    fn address(&self, page: u32) -> u64 {
        self.page_of(page).address()
    }

    /// Names the block of the changes before the page's first one.
    fn find_block_before(&mut self, number: usize, address: u64, changes: &mut [Change]) {
        let draft = &self.drafts[number];
        let is_next =
            |next: &DroppedDraft| (next.page, next.domain) == (draft.page + 1, draft.domain);
        let goes_on = self.drafts.get(number + 1).is_some_and(is_next);
        let last = goes_on.then(|| changes::last_block(address, &self.old, &self.new));
        let first = changes.partition_point(|change| change.block.is_none());
        let before = match self.before {
            Some((page, domain, block)) if (page + 1, domain) == (draft.page, draft.domain) => {
                block
            }
            _ if first != 0 => self.search(draft),
            _ => None,
        };
        for change in &mut changes[..first] {
            change.block = before;
        }
        // Without a block of its own the page has told nothing if it was not searched for.
        let last = last.flatten();
        self.before =
            (last.is_some() || first != 0).then(|| (draft.page, draft.domain, last.or(before)));
    }

    /// The last block that starts in the pages before a draft's, as far as they are its domain's.
    fn search(&mut self, draft: &DroppedDraft) -> Option<Block> {
        let app = &self.store.apps[self.app as usize];
        for page in (0..draft.page).rev() {
            if self.searches == 0 || app.owner(page) != Some(draft.domain) {
                return None;
            }
            self.searches -= 1;
            match app.frame(page) {
                NONE => self.old.fill(0),
                frame => self.memory.read_vault(frame, &mut self.old).ok()?,
            }
            let address = self.address(page);
            let last = match self.drafts.iter().find(|dropped| dropped.page == page) {
                None => changes::last_block_of(address, &self.old),
                Some(dropped) => {
                    self.memory
                        .read_pool(dropped.pool_frame, &mut self.new)
                        .ok()?;
                    changes::last_block(address, &self.old, &self.new)
                }
            };
            if last.is_some() {
                return last;
            }
        }
        None
    }
}
