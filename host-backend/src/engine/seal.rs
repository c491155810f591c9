//! Sealing: the pages of a batch are copied into the vault as they arrive, and become the committed
//! versions all at once when the last has arrived.

use std::collections::HashMap;

use vmsrs_protocol::control::{DeleteRecord, STATUS_OK};
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, NONE, ZERO_FRAME};

use super::integrity;
use super::memory::{Memory, NotCopied, PoolCopy};
use super::refusal::Refusal;
use super::store::{FrameState, NamedPage, PageOf, Store};

/// The batch that is still arriving. Its pages are marked as named in their app, its pool frames here,
/// and its vault frames are in the state [`FrameState::Staged`].
pub(crate) struct Staging {
    records: Vec<Staged>,
    /// Numbers in `records` of pages that could not be read.
    lost: Vec<usize>,
    /// Domains that are deleted or cleared with the batch, and how many of their extents stay.
    deletions: HashMap<(u32, u32), u32>,
    /// The last batch that has named each pool frame.
    named: Vec<u32>,
    /// The number of this batch; not 0.
    batch: u32,
}

/// A record whose page has been copied.
struct Staged {
    app: u32,
    page: NamedPage,
    /// The page's sealed frame, or [`NONE`].
    former: u32,
    /// The vault frame with the copy.
    frame: u32,
}

/// The outcome of a seal message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SealOutcome {
    /// The vault frame of each record, or [`DAMAGED_FRAME`]; empty after a refusal.
    pub frames: Vec<u32>,
    /// Why the batch was refused, if it was.
    pub refusal: Option<Refusal>,
    /// Pages that this message has sealed: those of the whole batch if it was the last.
    pub sealed: u32,
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
    pub(crate) fn new(pool_frames: u32) -> Self {
        Self {
            records: Vec::new(),
            lost: Vec::new(),
            deletions: HashMap::new(),
            named: vec![0; pool_frames as usize],
            batch: 1,
        }
    }

    /// Number of records that wait for the rest of their batch.
    pub(crate) fn len(&self) -> u32 {
        // At most as many as the pool has frames.
        self.records.len() as u32
    }

    /// Drops the batch that is still arriving.
    pub(crate) fn drop_batch(&mut self, store: &mut Store) {
        for staged in self.records.drain(..) {
            store.frames.retire(staged.frame, FrameState::Staged);
            store.apps[staged.app as usize].release_page(staged.page);
        }
        self.begin();
    }

    /// Begins the next batch.
    fn begin(&mut self) {
        self.lost.clear();
        self.deletions.clear();
        self.batch = self.batch.wrapping_add(1);
        if self.batch == 0 {
            self.named.fill(0);
            self.batch = 1;
        }
    }

    /// Takes a message of the batch.
    pub(crate) fn seal(
        &mut self,
        store: &mut Store,
        records: &[SealRecord],
        flags: u32,
        memory: &mut impl Memory,
    ) -> SealOutcome {
        let mut outcome = SealOutcome::default();
        match self.stage_all(store, records, flags, memory) {
            Ok(frames) => outcome.frames = frames,
            Err(refusal) => {
                self.drop_batch(store);
                outcome.refusal = Some(refusal);
                return outcome;
            }
        }
        if flags & SEAL_LAST != 0 {
            self.finish(store, &mut outcome, memory);
        }
        outcome
    }

    /// Takes a message that names domains which are deleted or cleared with the batch. A refusal drops the batch.
    pub(crate) fn delete(
        &mut self,
        store: &mut Store,
        records: &[DeleteRecord],
    ) -> Result<(), Refusal> {
        let outcome = records.iter().try_for_each(|record| {
            store.app_with_domain(record.app, record.domain)?;
            if record.extents == 0 {
                return Err(Refusal::Malformed(
                    "the driver left a domain without its first extent",
                ));
            }
            let domain = (record.app, record.domain);
            // There are no more of them than domains.
            match self.deletions.insert(domain, record.extents) {
                None => Ok(()),
                Some(_) => Err(Refusal::Malformed(
                    "the driver deleted a domain twice in a batch",
                )),
            }
        });
        outcome.inspect_err(|_| self.drop_batch(store))
    }

    /// Adds the records of a message to the batch, with copies of their pages; returns the vault frames as the
    /// driver knows them. After a refusal some have been added.
    fn stage_all(
        &mut self,
        store: &mut Store,
        records: &[SealRecord],
        flags: u32,
        memory: &mut impl Memory,
    ) -> Result<Vec<u32>, Refusal> {
        if flags & !SEAL_LAST != 0 {
            return Err(Refusal::Malformed(
                "the driver sent a seal message with unknown flags",
            ));
        }
        let first = self.records.len();
        if first + records.len() > self.named.len() {
            return Err(Refusal::Malformed(
                "the driver sent a batch of more pages than the pool has frames",
            ));
        }
        self.records.reserve(records.len());
        for record in records {
            self.stage(store, record, memory)?;
        }
        let staged = self.records[first..].iter();
        let mut shown: Vec<u32> = staged.map(|staged| staged.frame).collect();
        for number in &self.lost {
            if let Some(number) = number.checked_sub(first) {
                shown[number] = DAMAGED_FRAME;
            }
        }
        Ok(shown)
    }

    /// Checks a record, marks what it names, and copies its page.
    #[inline]
    fn stage(
        &mut self,
        store: &mut Store,
        record: &SealRecord,
        memory: &mut impl Memory,
    ) -> Result<(), Refusal> {
        let Some(named) = self.named.get_mut(record.pool_frame as usize) else {
            return Err(NO_POOL_FRAME);
        };
        if *named == self.batch {
            return Err(Refusal::Malformed(
                "the driver named a pool frame twice in a batch",
            ));
        }
        *named = self.batch;
        let (page, former) = store.name_page(record.app, record.domain, record.page)?;
        let copied = match store.is_shown_as(former, record.vault_frame) {
            true => copy(store, record.pool_frame, memory),
            false => Err(Refusal::Stale),
        };
        let (frame, is_lost) = copied.inspect_err(|_| {
            store.apps[record.app as usize].release_page(page);
        })?;
        if is_lost {
            self.lost.push(self.records.len());
        }
        self.records.push(Staged {
            app: record.app,
            page,
            former,
            frame,
        });
        Ok(())
    }

    /// Makes the copies the committed versions of their pages.
    fn finish(&mut self, store: &mut Store, outcome: &mut SealOutcome, memory: &mut impl Memory) {
        // At most as many as the pool has frames.
        outcome.sealed = self.records.len() as u32;
        for staged in &self.records {
            let owner = staged.owner();
            if staged.former != NONE {
                store.supersede(staged.former, owner);
            }
            store.apps[staged.app as usize].set_named_frame(staged.page, staged.frame);
            store.frames.seal(staged.frame, owner);
        }
        for &number in &self.lost {
            let frame = self.records[number].frame;
            store.damage(frame);
            outcome.damaged.push(frame);
        }
        // When the copies of all former versions are retired there are frames for these.
        if store.has_mirrors() {
            for staged in &self.records {
                if !store.frames.is_damaged(staged.frame) {
                    integrity::mirror(store, staged.frame, memory);
                }
            }
        }
        self.records.clear();
        // In what was sealed just now, too.
        for (&(app, domain), &extents) in &self.deletions {
            store.give_back(app, domain, extents);
        }
        self.begin();
    }

    /// Panics when what is marked is not what the records name.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self, store: &Store) {
        let named = self.named.iter().filter(|&&batch| batch == self.batch);
        assert_eq!(named.count(), self.records.len());
        let mut pages = std::collections::BTreeSet::new();
        let mut frames = Vec::new();
        for staged in &self.records {
            let PageOf { app, page } = staged.owner();
            assert!(store.apps[app as usize].is_named(page));
            assert!(pages.insert((app, page)));
            frames.push(staged.frame);
        }
        for (number, app) in (0u32..).zip(&store.apps) {
            for page in 0..app.end() {
                assert_eq!(app.is_named(page), pages.contains(&(number, page)));
            }
        }
        frames.sort_unstable();
        let staged: Vec<u32> = store.frames.in_state(FrameState::Staged).collect();
        assert_eq!(frames, staged);
    }
}

impl Staged {
    fn owner(&self) -> PageOf {
        PageOf {
            app: self.app,
            page: self.page.page,
        }
    }
}

/// Copies a page into a frame of the vault. Returns that, and whether the pool frame could not be read.
#[inline]
fn copy(
    store: &mut Store,
    pool_frame: u32,
    memory: &mut impl Memory,
) -> Result<(u32, bool), Refusal> {
    loop {
        // The budget leaves as many as the pool has frames, less those that are set aside.
        let frame = store
            .frames
            .take(FrameState::Staged)
            .ok_or(Refusal::NoSpace("the vault has no frame for a page"))?;
        let copied = memory.seal(PoolCopy {
            pool_frame,
            vault_frame: frame,
        });
        match copied {
            Ok(checksum) => {
                store.frames.set_checksum(frame, checksum);
                return Ok((frame, false));
            }
            Err(error) => {
                if not_copied(store, frame, memory, error)? {
                    return Ok((frame, true));
                }
            }
        }
    }
}

/// True if a pool frame cannot be read. A vault frame that cannot be written is set aside, for another one.
#[cold]
fn not_copied(
    store: &mut Store,
    frame: u32,
    memory: &mut impl Memory,
    error: NotCopied,
) -> Result<bool, Refusal> {
    log::error!("{error}: {}", error.cause());
    match error {
        NotCopied::Pool(_) => {
            clear(frame, memory);
            Ok(true)
        }
        NotCopied::Vault(_) => {
            store.set_aside(frame, FrameState::Staged);
            Ok(false)
        }
        NotCopied::Host(_) => {
            store.frames.retire(frame, FrameState::Staged);
            Err(Refusal::Host)
        }
    }
}

/// Checks that the pool has a frame.
pub(crate) fn check_pool_frame(frame: u32, pool_frames: u32) -> Result<(), Refusal> {
    match frame < pool_frames {
        true => Ok(()),
        false => Err(NO_POOL_FRAME),
    }
}

const NO_POOL_FRAME: Refusal =
    Refusal::Malformed("the driver named a frame that the pool does not have");

/// Zeros in a frame that may hold another page's former content: the frame of a page must not show it.
fn clear(frame: u32, memory: &mut impl Memory) {
    let cleared = memory
        .copy(ZERO_FRAME, frame)
        .or_else(|_| memory.replace(frame, None));
    if let Err(error) = cleared {
        // Its memory is broken, so that nobody can read it either.
        log::error!("{error}: {}", error.source);
    }
}
