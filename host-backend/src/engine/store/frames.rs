//! The state of every frame.

use vmsrs_protocol::{APP_BASE, APP_PAGES, FrameRun, NONE, PAGE_SIZE, ZERO_FRAME};

use crate::engine::runs::frames_of;

/// What a frame is used for. Only granted frames are writable by the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameState {
    /// Wiped, waiting for a grant.
    Free,
    /// The driver's: free in its pool, a draft, or committed and not yet sealed.
    Granted,
    /// The committed version of a page.
    Sealed,
    /// No longer needed, waiting for the cleanser.
    Retired,
    /// A dropped draft that an incident keeps.
    Evidence,
    /// The second copy of a committed page.
    Mirror,
}

const STATES: usize = 6;

/// A page of an app, as the owner of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageOf {
    /// The app.
    pub app: u32,
    /// The page in it.
    pub page: u32,
}

impl PageOf {
    /// The page's address in every process of its app.
    pub fn address(self) -> u64 {
        let pages = u64::from(self.app) * u64::from(APP_PAGES) + u64::from(self.page);
        APP_BASE + pages * u64::from(PAGE_SIZE)
    }
}

/// Low bits of a frame's marks: its app. There are at most 64 (`MAX_APPS`).
const APP: u8 = 0x3f;
/// Mark of a sealed frame with a second copy: then its number is in the frame's entry of
/// `checksums`, and the checksum in the copy's.
const MIRRORED: u8 = 0x40;
/// Mark of a sealed frame whose content is lost.
const DAMAGED: u8 = 0x80;

/// The states of all frames, with the number of frames in each.
///
/// One array for each fact rather than a structure with padding: there can be a hundred million
/// frames.
pub(crate) struct FrameTable {
    /// The page whose version each frame is, while sealed.
    pages: Vec<u32>,
    /// The checksum of each frame's content when it was sealed.
    checksums: Vec<u32>,
    /// The app of each frame's page, and marks.
    marks: Vec<u8>,
    states: Vec<FrameState>,
    /// One bit a frame: named by a record of the commit whose records are still arriving.
    staged: Vec<u64>,
    counts: [u32; STATES],
}

impl FrameTable {
    /// All frames free but the zero frame, which is always sealed.
    pub(crate) fn new(frames: u32) -> Self {
        let length = frames as usize;
        let mut table = Self {
            pages: vec![NONE; length],
            checksums: vec![0; length],
            marks: vec![0; length],
            states: vec![FrameState::Free; length],
            staged: vec![0; length.div_ceil(u64::BITS as usize)],
            counts: [0; STATES],
        };
        table.counts[FrameState::Free as usize] = frames;
        table.set(ZERO_FRAME, FrameState::Sealed);
        table
    }

    pub(crate) fn len(&self) -> u32 {
        // The table was made with a `u32` length.
        self.states.len() as u32
    }

    /// The state of a frame; `None` beyond the window.
    pub(crate) fn state(&self, frame: u32) -> Option<FrameState> {
        self.states.get(frame as usize).copied()
    }

    /// The page whose committed version the frame holds.
    pub(crate) fn page(&self, frame: u32) -> Option<PageOf> {
        let state = self.state(frame)?;
        let page = self.pages[frame as usize];
        (state == FrameState::Sealed && page != NONE).then_some(PageOf {
            app: u32::from(self.marks[frame as usize] & APP),
            page,
        })
    }

    /// Number of frames in a state.
    pub(crate) fn count(&self, state: FrameState) -> u32 {
        self.counts[state as usize]
    }

    /// Gives a frame of the window a state without an owner.
    pub(crate) fn set(&mut self, frame: u32, state: FrameState) {
        self.replace(frame, state, NONE, 0);
    }

    /// Gives a run of frames of the window a state without an owner.
    pub(crate) fn set_run(&mut self, run: FrameRun, state: FrameState) {
        frames_of(run).for_each(|frame| self.set(frame, state));
    }

    /// Makes a frame the committed version of a page.
    pub(crate) fn seal(&mut self, frame: u32, owner: PageOf) {
        // Apps are at most `MAX_APPS`, checked when they are made.
        self.replace(frame, FrameState::Sealed, owner.page, owner.app as u8);
    }

    pub(crate) fn is_staged(&self, frame: u32) -> bool {
        self.staged[(frame / u64::BITS) as usize] >> (frame % u64::BITS) & 1 == 1
    }

    pub(crate) fn set_staged(&mut self, frame: u32, staged: bool) {
        let word = &mut self.staged[(frame / u64::BITS) as usize];
        let bit = 1 << (frame % u64::BITS);
        match staged {
            true => *word |= bit,
            false => *word &= !bit,
        }
    }

    /// The checksum of a sealed frame's right content.
    pub(crate) fn checksum(&self, frame: u32) -> u32 {
        let holder = self.mirror(frame).unwrap_or(frame);
        self.checksums[holder as usize]
    }

    /// Sets the checksum of a frame that has no second copy.
    pub(crate) fn set_checksum(&mut self, frame: u32, checksum: u32) {
        debug_assert!(self.mirror(frame).is_none());
        self.checksums[frame as usize] = checksum;
    }

    /// The frame with the second copy of a frame's content, if there is one.
    pub(crate) fn mirror(&self, frame: u32) -> Option<u32> {
        let has = self.marks[frame as usize] & MIRRORED != 0;
        has.then(|| self.checksums[frame as usize])
    }

    /// Gives a frame that has its checksum a second copy.
    pub(crate) fn set_mirror(&mut self, frame: u32, copy: u32) {
        self.checksums[copy as usize] = self.checksum(frame);
        self.checksums[frame as usize] = copy;
        self.marks[frame as usize] |= MIRRORED;
    }

    /// Takes a frame's second copy away from it.
    pub(crate) fn take_mirror(&mut self, frame: u32) -> Option<u32> {
        let copy = self.mirror(frame)?;
        self.checksums[frame as usize] = self.checksums[copy as usize];
        self.marks[frame as usize] &= !MIRRORED;
        Some(copy)
    }

    /// Whether a sealed frame's content is lost.
    pub(crate) fn is_damaged(&self, frame: u32) -> bool {
        self.marks[frame as usize] & DAMAGED != 0
    }

    pub(crate) fn set_damaged(&mut self, frame: u32, damaged: bool) {
        let marks = &mut self.marks[frame as usize];
        match damaged {
            true => *marks |= DAMAGED,
            false => *marks &= !DAMAGED,
        }
    }

    /// The frames in a state, lowest first.
    pub(crate) fn in_state(&self, state: FrameState) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.states)
            .filter(move |&(_, &known)| known == state)
            .map(|(frame, _)| frame)
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        (self.pages.capacity() + self.checksums.capacity()) * size_of::<u32>()
            + self.marks.capacity()
            + self.states.capacity() * size_of::<FrameState>()
            + self.staged.capacity() * size_of::<u64>()
    }

    /// Gives a frame another state and owner. Its checksum, second copy and damage stay, since a
    /// commit that is refused brings the former version back.
    fn replace(&mut self, frame: u32, state: FrameState, page: u32, app: u8) {
        let index = frame as usize;
        self.counts[self.states[index] as usize] -= 1;
        self.counts[state as usize] += 1;
        self.states[index] = state;
        self.pages[index] = page;
        self.marks[index] = self.marks[index] & !APP | app;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_counted_in_exactly_one_state() {
        let mut table = FrameTable::new(8);
        assert_eq!(table.state(ZERO_FRAME), Some(FrameState::Sealed));
        table.set(3, FrameState::Granted);
        table.seal(3, PageOf { app: 2, page: 77 });
        assert_eq!(table.page(3), Some(PageOf { app: 2, page: 77 }));
        assert_eq!(table.count(FrameState::Free), 6);
        assert_eq!(table.count(FrameState::Sealed), 2);
        table.set(3, FrameState::Retired);
        assert_eq!(table.page(3), None);
        assert_eq!(table.count(FrameState::Sealed), 1);
        assert_eq!(table.state(8), None);
    }

    #[test]
    fn a_frame_keeps_its_checksum_with_and_without_a_second_copy() {
        let mut table = FrameTable::new(8);
        table.seal(3, PageOf { app: 63, page: 77 });
        table.set_checksum(3, 4711);
        table.set_mirror(3, 5);
        table.set_damaged(3, true);
        assert_eq!((table.checksum(3), table.mirror(3)), (4711, Some(5)));
        assert_eq!(table.page(3), Some(PageOf { app: 63, page: 77 }));
        // A commit that is refused.
        table.set(3, FrameState::Retired);
        table.seal(3, PageOf { app: 63, page: 77 });
        assert_eq!(table.take_mirror(3), Some(5));
        assert_eq!((table.checksum(3), table.mirror(3)), (4711, None));
        assert!(table.is_damaged(3));
    }
}
