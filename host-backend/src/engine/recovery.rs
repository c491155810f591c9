//! Recovery: a failed request's drafts are checked, taken away from the guest and kept as evidence;
//! the verdict says which version the pages return to.
//!
//! Restoring itself costs the host nothing: sealed versions were never touched, and the driver maps
//! them again on demand.

use std::time::Duration;

use vmsrs_protocol::incident::{
    DroppedDraft, IncidentReport, KIND_CHECKSUM, KIND_MAX, KIND_POISON,
};
use vmsrs_protocol::{APP_BASE, APP_PAGES, FrameRun, NONE, PAGE_SIZE};

use super::changes::{self, Page};
use super::incidents::{CHANGES_MAX, DRAFTS_KEPT, Dropped, FailedRequest, IncidentStore, Verdict};
use super::protection::{Inspect, Protection};
use super::refusal::Refusal;
use super::store::{FrameState, Store};

/// Takes a report of a failed request with its dropped drafts; returns frames in exchange.
pub(crate) fn report(
    store: &mut Store,
    incidents: &mut IncidentStore,
    limits: Limits,
    at: Duration,
    report: &IncidentReport,
    drafts: &[DroppedDraft],
    memory: &mut (impl Protection + Inspect),
) -> Result<Vec<FrameRun>, Refusal> {
    check(store, incidents, report, drafts)?;
    let frames: Vec<u32> = drafts.iter().map(|draft| draft.frame).collect();
    drop_frames(store, &frames, memory)?;

    let verdict = drafts
        .iter()
        .map(|draft| judge(store, report.app, draft))
        .max()
        .unwrap_or(Verdict::Intact);
    let kept = drafts
        .len()
        .min(DRAFTS_KEPT)
        .min(limits.evidence_frames as usize);
    let mut request = FailedRequest {
        report: *report,
        verdict,
        drafts: Vec::with_capacity(drafts.len().min(DRAFTS_KEPT)),
        program: None,
        stripped: false,
    };
    let mut room = CHANGES_MAX;
    let versions = Versions {
        store,
        app: report.app,
        drafts,
        memory,
    };
    for (number, draft) in drafts.iter().take(DRAFTS_KEPT).enumerate() {
        let frame = if number < kept { draft.frame } else { NONE };
        request
            .drafts
            .push(versions.compare(draft, frame, &mut room));
    }
    for draft in &drafts[kept..] {
        store.retire(draft.frame);
    }
    // Oldest evidence goes first, and the incident before the evidence of younger ones.
    if let Some(mut oldest) = incidents.add_request(at, request) {
        for frame in oldest.release_evidence() {
            store.retire(frame);
        }
    }
    while store.frames.count(FrameState::Evidence) > limits.evidence_frames {
        for frame in incidents.release_oldest_evidence() {
            store.retire(frame);
        }
    }
    Ok(exchange(store, frames.len(), limits.max_runs, memory))
}

/// Bounds on what a report may use.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Maximum number of frames kept as evidence.
    pub(crate) evidence_frames: u32,
    /// Maximum number of runs in the reply.
    pub(crate) max_runs: usize,
}

/// Takes drafts that were dropped without an error; returns frames in exchange.
pub(crate) fn discard(
    store: &mut Store,
    frames: &[u32],
    max_runs: usize,
    protection: &mut impl Protection,
) -> Result<Vec<FrameRun>, Refusal> {
    for &frame in frames {
        store.check_granted(frame)?;
    }
    check_distinct(frames.iter().copied())?;
    drop_frames(store, frames, protection)?;
    for &frame in frames {
        store.retire(frame);
    }
    Ok(exchange(store, frames.len(), max_runs, protection))
}

fn check(
    store: &Store,
    incidents: &IncidentStore,
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
    store.app(report.app)?;
    for domain in [report.domain, report.address_domain] {
        if domain != NONE {
            store.app_with_domain(report.app, domain)?;
        }
    }
    for draft in drafts {
        store.check_page(report.app, draft.domain, draft.page)?;
        store.check_granted(draft.frame)?;
    }
    check_distinct(drafts.iter().map(|draft| draft.frame))
}

fn check_distinct(frames: impl Iterator<Item = u32>) -> Result<(), Refusal> {
    let mut frames: Vec<u32> = frames.collect();
    frames.sort_unstable();
    if frames.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refusal::Malformed("the driver dropped a frame twice"));
    }
    Ok(())
}

/// Takes granted frames away from the guest: they are read-only evidence then, until the caller
/// says otherwise.
fn drop_frames(
    store: &mut Store,
    frames: &[u32],
    protection: &mut impl Protection,
) -> Result<(), Refusal> {
    let set = |store: &mut Store, state| {
        for &frame in frames {
            store.frames.set(frame, state);
        }
    };
    set(store, FrameState::Evidence);
    store.protect(frames.to_vec(), protection, |store| {
        set(store, FrameState::Granted);
    })
}

/// Which version a page returns to, by the host's own page map.
fn judge(store: &Store, app: u32, draft: &DroppedDraft) -> Verdict {
    let sealed = store.apps[app as usize].frame(draft.page);
    if draft.committed == sealed {
        Verdict::Intact
    } else if store.frames.state(draft.committed) == Some(FrameState::Granted) {
        Verdict::Unsealed
    } else {
        Verdict::Mismatch
    }
}

/// Number of pages before a changed byte that are searched for its heap block.
const BLOCK_PAGES_MAX: u32 = 16;

/// The versions of an app's pages that a report is about.
struct Versions<'a, M> {
    store: &'a Store,
    app: u32,
    drafts: &'a [DroppedDraft],
    memory: &'a M,
}

impl<M: Inspect> Versions<'_, M> {
    /// The content of a frame of the window; zeros for [`NONE`] and beyond.
    fn content(&self, frame: u32) -> Page {
        let mut content = [0; PAGE_SIZE as usize];
        if self.store.frames.state(frame).is_some() {
            self.memory.read(frame, &mut content);
        }
        content
    }

    fn address(&self, page: u32) -> u64 {
        let page = u64::from(self.app) * u64::from(APP_PAGES) + u64::from(page);
        APP_BASE + page * u64::from(PAGE_SIZE)
    }

    /// What a dropped draft had changed; `frame` is where it is kept.
    fn compare(&self, draft: &DroppedDraft, frame: u32, room: &mut usize) -> Dropped {
        // The driver names the version that stays, which may not be sealed yet. Without a valid frame
        // the changes are unknown.
        let known = draft.committed == NONE || self.store.frames.state(draft.committed).is_some();
        let new = self.content(draft.frame);
        let old = if known {
            self.content(draft.committed)
        } else {
            new
        };
        let (changed, first) = changes::count(&old, &new);
        let mut found = Vec::new();
        if changed != 0 && *room != 0 {
            let address = self.address(draft.page);
            let blocks = changes::blocks(address, &old, &new);
            found = changes::changes(address, &old, &new, &blocks);
            let cost: usize = found.iter().map(changes::Change::cost).sum();
            match room.checked_sub(cost) {
                Some(left) => {
                    *room = left;
                    self.find_block_before(draft, &mut found);
                }
                None => {
                    *room = 0;
                    found = Vec::new();
                }
            }
        }
        Dropped {
            domain: draft.domain,
            page: draft.page,
            frame,
            changed,
            first,
            changes: found,
        }
    }

    /// Names the block of the changes before the page's first one.
    fn find_block_before(&self, draft: &DroppedDraft, found: &mut [changes::Change]) {
        let first = found.partition_point(|change| change.block.is_none());
        if first != 0 {
            let before = self.last_block_before(draft);
            found[..first]
                .iter_mut()
                .for_each(|change| change.block = before);
        }
    }

    /// The last block that starts in the pages before a draft's, as far as they are its domain's.
    fn last_block_before(&self, draft: &DroppedDraft) -> Option<changes::Block> {
        let app = &self.store.apps[self.app as usize];
        for page in (draft.page.saturating_sub(BLOCK_PAGES_MAX)..draft.page).rev() {
            if app.owner(page) != Some(draft.domain) {
                return None;
            }
            let old = self.content(app.frame(page));
            let dropped = self.drafts.iter().find(|dropped| dropped.page == page);
            let new = dropped.map_or(old, |dropped| self.content(dropped.frame));
            let last = changes::blocks(self.address(page), &old, &new).pop();
            if last.is_some() {
                return last;
            }
        }
        None
    }
}

fn exchange(
    store: &mut Store,
    frames: usize,
    max_runs: usize,
    protection: &mut impl Protection,
) -> Vec<FrameRun> {
    // The frames are dropped, so a failed grant does not fail the message: the driver asks again
    // when its pool runs low.
    let wanted = u32::try_from(frames).unwrap_or(u32::MAX);
    store
        .grant(wanted, max_runs, protection)
        .unwrap_or_default()
}
