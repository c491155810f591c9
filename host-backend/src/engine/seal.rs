//! Sealing: committed pages become the authoritative version, whole commits at a time.

use vmsrs_protocol::control::STATUS_OK;
use vmsrs_protocol::seal::{COMMIT_PAGES_MAX, SEAL_LAST, SealRecord};
use vmsrs_protocol::shared::LOCK_TAG;
use vmsrs_protocol::{FrameRun, NONE};

use super::content::Content;
use super::integrity;
use super::protection::Protection;
use super::refusal::Refusal;
use super::store::{FrameState, PageOf, Store};

/// The records of the commit that is still arriving. Their frames are marked as staged.
#[derive(Default)]
pub(crate) struct Staging {
    records: Vec<SealRecord>,
}

/// The outcome of a seal message.
#[derive(Debug, PartialEq, Eq)]
pub struct SealOutcome {
    /// Records accepted: sealed, or staged until the rest of their commit arrives.
    pub taken: u32,
    /// Pages sealed, those included whose records came in earlier messages.
    pub sealed: u32,
    /// Why the commit after them was refused, if one was.
    pub refusal: Option<Refusal>,
    /// Frames granted in exchange for the sealed ones.
    pub granted: Vec<FrameRun>,
    /// Frames of them whose content could not be read.
    pub damaged: Vec<u32>,
}

impl SealOutcome {
    /// The `STATUS_` constant for the reply.
    pub fn refusal_status(&self) -> u32 {
        self.refusal.map_or(STATUS_OK, Refusal::status)
    }
}

impl Staging {
    /// Drops the commit that is still arriving; its frames are plain granted ones again.
    pub(crate) fn drop_commit(&mut self, store: &mut Store) {
        for record in self.take(store) {
            debug_assert!(!store.frames.is_staged(record.new_frame));
        }
    }

    /// Number of records that wait for the rest of their commit.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    fn take(&mut self, store: &mut Store) -> Vec<SealRecord> {
        let records = std::mem::take(&mut self.records);
        for record in &records {
            store.frames.set_staged(record.new_frame, false);
        }
        records
    }

    /// Stages records that have been staged before.
    fn restore(&mut self, store: &mut Store, records: Vec<SealRecord>) {
        self.drop_commit(store);
        for record in &records {
            store.frames.set_staged(record.new_frame, true);
        }
        self.records = records;
    }

    /// Adds records of a commit whose last record has not arrived.
    fn stage(&mut self, store: &mut Store, records: &[SealRecord]) -> Result<(), Refusal> {
        for &record in records {
            store.check_granted(record.new_frame)?;
            store.frames.set_staged(record.new_frame, true);
            self.records.push(record);
        }
        Ok(())
    }
}

/// Applies the commits of one message in order, up to the first that is refused.
///
/// Commits are applied to the page map one after the other, each checked against what the ones
/// before it have left; then all their frames are made read-only at once. If the host cannot do
/// that, everything is as before the message.
pub(crate) fn seal(
    store: &mut Store,
    staging: &mut Staging,
    records: &[SealRecord],
    max_runs: usize,
    memory: &mut (impl Protection + Content),
) -> SealOutcome {
    let staged = staging.take(store);
    let mut applied: Vec<SealRecord> = Vec::with_capacity(staged.len() + records.len());
    let mut refusal = None;
    let mut taken = 0;
    while taken < records.len() && refusal.is_none() {
        let rest = &records[taken..];
        let first: &[SealRecord] = if taken == 0 { &staged } else { &[] };
        let last = rest.iter().position(|record| record.flags & SEAL_LAST != 0);
        let part = &rest[..last.map_or(rest.len(), |last| last + 1)];
        let result = check_shape(first, part).and_then(|()| match last {
            Some(_) => apply(store, &mut applied, first, part),
            None => staging
                .stage(store, first)
                .and_then(|()| staging.stage(store, part)),
        });
        match result {
            Ok(()) => taken += part.len(),
            Err(error) => {
                staging.drop_commit(store);
                refusal = Some(error);
            }
        }
    }
    if records.is_empty() {
        staging.restore(store, staged);
        return SealOutcome {
            taken: 0,
            sealed: 0,
            refusal: None,
            granted: Vec::new(),
            damaged: Vec::new(),
        };
    }
    let frames = applied.iter().map(|record| record.new_frame).collect();
    let protected = store.protect(frames, memory, |store| {
        roll_back(store, &mut applied, 0);
    });
    if let Err(error) = protected {
        staging.restore(store, staged);
        return SealOutcome {
            taken: 0,
            sealed: 0,
            refusal: Some(error),
            granted: Vec::new(),
            damaged: Vec::new(),
        };
    }
    for record in &applied {
        if record.old_frame != NONE {
            store.forget_damage(record.old_frame, owner(record));
            store.retire(record.old_frame);
        }
    }
    // Only now are they immutable. Those that a later commit of the message superseded
    // are retired already.
    let damaged = applied
        .iter()
        .map(|record| record.new_frame)
        .filter(|&frame| store.frames.page(frame).is_some())
        .collect::<Vec<_>>()
        .into_iter()
        .filter(|&frame| !integrity::take_in(store, frame, memory))
        .collect();
    // The commits are sealed, so a failed grant does not fail the message: the driver asks again
    // when its pool runs low.
    let granted = store.grant(applied.len() as u32, max_runs, memory);
    SealOutcome {
        // A message has fewer than 2^16 bytes.
        taken: taken as u32,
        sealed: applied.len() as u32,
        refusal,
        granted: granted.unwrap_or_default(),
        damaged,
    }
}

/// Checks what the records of one commit must have in common.
fn check_shape(first: &[SealRecord], part: &[SealRecord]) -> Result<(), Refusal> {
    if first.len() + part.len() > COMMIT_PAGES_MAX as usize {
        return Err(Refusal::NoSpace(
            "the driver sent a commit of too many pages",
        ));
    }
    let mut records = first.iter().chain(part);
    let tag = records.clone().next().map_or(0, |record| record.tag);
    if tag == 0 || tag > LOCK_TAG || !records.all(|record| record.tag == tag) {
        return Err(Refusal::Malformed(
            "the driver sent a commit without a tag or with several",
        ));
    }
    if part.iter().any(|record| record.flags & !SEAL_LAST != 0) {
        return Err(Refusal::Malformed(
            "the driver sent a seal record with unknown flags",
        ));
    }
    Ok(())
}

/// Applies the records of one commit to the page map, all of them or none.
fn apply(
    store: &mut Store,
    applied: &mut Vec<SealRecord>,
    first: &[SealRecord],
    part: &[SealRecord],
) -> Result<(), Refusal> {
    let mark = applied.len();
    for record in first.iter().chain(part) {
        if let Err(error) = apply_record(store, record) {
            roll_back(store, applied, mark);
            return Err(error);
        }
        applied.push(*record);
    }
    Ok(())
}

fn apply_record(store: &mut Store, record: &SealRecord) -> Result<(), Refusal> {
    store.check_page(record.app, record.domain, record.page)?;
    // A frame that this message has sealed already is not granted any more.
    store.check_granted(record.new_frame)?;
    let app = &mut store.apps[record.app as usize];
    if app.frame(record.page) != record.old_frame {
        return Err(Refusal::Stale);
    }
    app.set_frame(record.page, record.new_frame);
    store.frames.seal(record.new_frame, owner(record));
    if record.old_frame != NONE {
        // It is retired once the whole message has been applied.
        store.frames.set(record.old_frame, FrameState::Retired);
    }
    Ok(())
}

/// Reverts all applied records from number `mark` on, newest first.
fn roll_back(store: &mut Store, applied: &mut Vec<SealRecord>, mark: usize) {
    for record in applied.drain(mark..).rev() {
        store.apps[record.app as usize].set_frame(record.page, record.old_frame);
        store.frames.set(record.new_frame, FrameState::Granted);
        if record.old_frame != NONE {
            store.frames.seal(record.old_frame, owner(&record));
        }
    }
}

fn owner(record: &SealRecord) -> PageOf {
    PageOf {
        app: record.app,
        page: record.page,
    }
}
