//! Sealing: the pages of a batch are copied into the vault as they arrive, and become the committed
//! versions all at once when the last has arrived.

use vmsrs_protocol::control::STATUS_OK;
use vmsrs_protocol::seal::{SEAL_LAST, SealRecord};
use vmsrs_protocol::{DAMAGED_FRAME, NONE, ZERO_FRAME};

use super::integrity;
use super::memory::{Memory, NotCopied, PoolCopy};
use super::refusal::Refusal;
use super::store::{FrameState, PageOf, Store};

/// The batch that is still arriving. Its pages are marked as named in their app, its pool frames here,
/// and its vault frames are in the state [`FrameState::Staged`].
pub(crate) struct Staging {
    records: Vec<Staged>,
    /// One bit a pool frame: some record names it.
    named: Vec<u64>,
    pool_frames: u32,
    /// For the messages to come, so that none allocates.
    copies: Vec<PoolCopy>,
    sealed: Vec<Result<u32, NotCopied>>,
}

/// A record whose page has been copied.
#[derive(Clone, Copy)]
struct Staged {
    record: SealRecord,
    /// The page's sealed frame, or [`NONE`].
    former: u32,
    /// The vault frame with the copy; [`NONE`] until there is one.
    frame: u32,
    /// The copy's checksum; `None` if the pool frame could not be read.
    checksum: Option<u32>,
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
            named: vec![0; pool_frames.div_ceil(u64::BITS) as usize],
            pool_frames,
            copies: Vec::new(),
            sealed: Vec::new(),
        }
    }

    /// Number of records that wait for the rest of their batch.
    pub(crate) fn len(&self) -> u32 {
        // At most as many as the pool has frames.
        self.records.len() as u32
    }

    /// Drops the batch that is still arriving.
    pub(crate) fn drop_batch(&mut self, store: &mut Store) {
        for staged in std::mem::take(&mut self.records) {
            self.free_pool_frame(staged.record.pool_frame);
            store.apps[staged.record.app as usize].release_page(staged.record.page);
            if staged.frame != NONE {
                store.retire(staged.frame);
            }
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
        let first = self.records.len();
        let copied = self
            .check(store, records, flags)
            .and_then(|()| self.copy(store, first, memory));
        if let Err(refusal) = copied {
            self.drop_batch(store);
            return SealOutcome {
                refusal: Some(refusal),
                ..SealOutcome::default()
            };
        }
        let frames = self.records[first..].iter().map(Staged::shown).collect();
        let mut outcome = SealOutcome {
            frames,
            ..SealOutcome::default()
        };
        if flags & SEAL_LAST != 0 {
            self.finish(store, &mut outcome, memory);
        }
        outcome
    }

    /// Checks records and adds them to the batch, without a copy. After a refusal some have been added.
    fn check(
        &mut self,
        store: &mut Store,
        records: &[SealRecord],
        flags: u32,
    ) -> Result<(), Refusal> {
        if flags & !SEAL_LAST != 0 {
            return Err(Refusal::Malformed(
                "the driver sent a seal message with unknown flags",
            ));
        }
        if self.records.len() + records.len() > self.pool_frames as usize {
            return Err(Refusal::Malformed(
                "the driver sent a batch of more pages than the pool has frames",
            ));
        }
        self.records.reserve(records.len());
        for &record in records {
            check_pool_frame(record.pool_frame, self.pool_frames)?;
            let (word, bit) = place(record.pool_frame);
            let word = &mut self.named[word];
            if *word & bit != 0 {
                return Err(Refusal::Malformed(
                    "the driver named a pool frame twice in a batch",
                ));
            }
            let former = store.name_page(record.app, record.domain, record.page)?;
            *word |= bit;
            self.records.push(Staged {
                record,
                former,
                frame: NONE,
                checksum: None,
            });
            if !store.is_shown_as(former, record.vault_frame) {
                return Err(Refusal::Stale);
            }
        }
        Ok(())
    }

    /// Copies the pages of the records from number `first` on into the vault.
    fn copy(
        &mut self,
        store: &mut Store,
        first: usize,
        memory: &mut impl Memory,
    ) -> Result<(), Refusal> {
        self.copies.clear();
        for staged in &mut self.records[first..] {
            self.copies.push(staged.place(store)?);
        }
        self.sealed.clear();
        write(memory, &self.copies, &mut self.sealed)?;
        for (staged, sealed) in self.records[first..].iter_mut().zip(self.sealed.drain(..)) {
            match sealed {
                Ok(checksum) => staged.checksum = Some(checksum),
                Err(error) => staged.copy_again(store, memory, error)?,
            }
        }
        Ok(())
    }

    /// Makes the copies the committed versions of their pages.
    fn finish(&mut self, store: &mut Store, outcome: &mut SealOutcome, memory: &mut impl Memory) {
        let records = std::mem::take(&mut self.records);
        // At most as many as the pool has frames.
        outcome.sealed = records.len() as u32;
        for staged in &records {
            let record = &staged.record;
            self.free_pool_frame(record.pool_frame);
            let owner = PageOf {
                app: record.app,
                page: record.page,
            };
            if staged.former != NONE {
                store.forget_damage(staged.former, owner);
                store.retire(staged.former);
            }
            store.apps[record.app as usize].set_named_frame(record.page, staged.frame);
            store
                .frames
                .seal(staged.frame, owner, staged.checksum.unwrap_or_default());
            if staged.checksum.is_none() {
                store.damage(staged.frame);
                outcome.damaged.push(staged.frame);
            }
        }
        // When the copies of all former versions are retired there are frames for these.
        for staged in records.iter().filter(|staged| staged.checksum.is_some()) {
            let record = &staged.record;
            if store.apps[record.app as usize].is_mirrored(record.domain) {
                integrity::mirror(store, staged.frame, memory);
            }
        }
        self.records = records;
        self.records.clear();
    }

    /// The pool frame may be named again.
    fn free_pool_frame(&mut self, frame: u32) {
        let (word, bit) = place(frame);
        self.named[word] &= !bit;
    }

    /// Panics when what is marked is not what the records name.
    #[cfg(test)]
    pub(crate) fn check_invariants(&self, store: &Store) {
        let bits: u32 = self.named.iter().map(|word| word.count_ones()).sum();
        assert_eq!(bits, self.len());
        let mut pages = std::collections::BTreeSet::new();
        let mut frames = Vec::new();
        for staged in &self.records {
            let record = &staged.record;
            let (word, bit) = place(record.pool_frame);
            assert!(self.named[word] & bit != 0);
            assert!(store.apps[record.app as usize].is_named(record.page));
            assert!(pages.insert((record.app, record.page)));
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
    /// Gives the page a frame for its copy.
    fn place(&mut self, store: &mut Store) -> Result<PoolCopy, Refusal> {
        self.frame = NONE;
        // The budget leaves as many as the pool has frames, less those that are set aside.
        self.frame = store
            .frames
            .take(FrameState::Staged)
            .ok_or(Refusal::NoSpace("the vault has no frame for a page"))?;
        Ok(PoolCopy {
            pool_frame: self.record.pool_frame,
            vault_frame: self.frame,
        })
    }

    /// Copies the page to other frames than those that cannot be written, which are set aside.
    #[cold]
    fn copy_again(
        &mut self,
        store: &mut Store,
        memory: &mut impl Memory,
        mut error: NotCopied,
    ) -> Result<(), Refusal> {
        loop {
            log::error!("{error}: {}", error.cause());
            if let NotCopied::Pool(_) = error {
                clear(self.frame, memory);
                return Ok(());
            }
            store.set_aside(self.frame);
            let mut sealed = Vec::new();
            write(memory, &[self.place(store)?], &mut sealed)?;
            match sealed.pop() {
                Some(Err(again)) => error = again,
                checksum => {
                    self.checksum = checksum.and_then(Result::ok);
                    return Ok(());
                }
            }
        }
    }

    /// How the driver knows the copy.
    fn shown(&self) -> u32 {
        match self.checksum {
            Some(_) => self.frame,
            None => DAMAGED_FRAME,
        }
    }
}

/// Copies pages into the vault.
fn write(
    memory: &mut impl Memory,
    copies: &[PoolCopy],
    sealed: &mut Vec<Result<u32, NotCopied>>,
) -> Result<(), Refusal> {
    memory.seal(copies, sealed).map_err(|error| {
        log::error!("{error}: {}", error.source);
        Refusal::Host
    })
}

/// Checks that the pool has a frame.
pub(crate) fn check_pool_frame(frame: u32, pool_frames: u32) -> Result<(), Refusal> {
    match frame < pool_frames {
        true => Ok(()),
        false => Err(Refusal::Malformed(
            "the driver named a frame that the pool does not have",
        )),
    }
}

/// The place of a frame's bit.
fn place(frame: u32) -> (usize, u64) {
    ((frame / u64::BITS) as usize, 1 << (frame % u64::BITS))
}

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
