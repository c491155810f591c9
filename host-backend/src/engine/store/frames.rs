//! The state of every frame of the vault.

use vmsrs_protocol::{APP_BASE, APP_PAGES, NONE, PAGE_SIZE, ZERO_FRAME};

/// What a frame of the vault is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrameState {
    /// Wiped.
    Free,
    /// A copy of a page of the batch that is still arriving.
    Staged,
    /// The committed version of a page.
    Sealed,
    /// No longer needed, waiting for the cleanser.
    Retired,
    /// The second copy of a committed page.
    Mirror,
}

const STATES: usize = 5;

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

/// Low bits of a frame's facts: its app.
const APP: u16 = 0xff;
/// Mark of a sealed frame with a second copy: then its number is in the frame's entry of
/// `checksums`, and the checksum in the copy's.
const MIRRORED: u16 = 0x100;
/// Mark of a sealed frame whose content is lost.
const DAMAGED: u16 = 0x200;
/// Position of a frame's state in its facts.
const STATE_SHIFT: u32 = 12;

/// The states of all frames, with the number of frames in each, and the free and the retired ones as
/// lists: of the free ones, the frame that came last is taken first; of the retired ones, the first.
///
/// One array for each fact rather than a structure with padding: there can be a hundred million
/// frames. They start as zeros, so that frames that were never used cost little memory.
pub(crate) struct FrameTable {
    /// Of a sealed frame the page whose version it is; of a listed one the next in its list.
    pages: Vec<u32>,
    /// The checksum of each frame's content when it was sealed.
    checksums: Vec<u64>,
    /// The app of each frame's page, marks, and the frame's state.
    facts: Vec<u16>,
    /// Number of frames in each state; 0 for sealed ones, which are the rest.
    counts: [u32; STATES],
    /// The free frame that came last, or [`NONE`]. Frames from `fresh` on are free too.
    free: u32,
    /// Frames below were taken at least once.
    fresh: u32,
    retired: Queue,
}

/// A queue that is linked through [`FrameTable::pages`].
struct Queue {
    /// Its first and its last frame; [`NONE`] if it is empty.
    head: u32,
    tail: u32,
    /// Frames that were ever added, and removed.
    added: u64,
    removed: u64,
    /// Those that had been added at the last [`Self::take_unused`].
    seen: u64,
}

impl Queue {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        added: 0,
        removed: 0,
        seen: 0,
    };

    #[inline]
    fn push(&mut self, links: &mut [u32], frame: u32) {
        links[frame as usize] = NONE;
        match links.get_mut(self.tail as usize) {
            Some(last) => *last = frame,
            None => self.head = frame,
        }
        self.tail = frame;
        self.added += 1;
    }

    #[inline]
    fn pop(&mut self, links: &[u32]) -> Option<u32> {
        let frame = self.head;
        self.head = *links.get(frame as usize)?;
        if self.head == NONE {
            self.tail = NONE;
        }
        self.removed += 1;
        Some(frame)
    }

    /// How many frames are in it that were at the last call; they are its first ones.
    fn take_unused(&mut self) -> u32 {
        let unused = std::mem::replace(&mut self.seen, self.added).saturating_sub(self.removed);
        // No more than there are frames.
        unused as u32
    }
}

impl FrameTable {
    /// All frames free but the zero frame, which is always sealed.
    pub(crate) fn new(frames: u32) -> Self {
        let length = frames as usize;
        let mut table = Self {
            pages: vec![0; length],
            checksums: vec![0; length],
            facts: vec![0; length],
            counts: [0; STATES],
            free: NONE,
            fresh: ZERO_FRAME + 1,
            retired: Queue::EMPTY,
        };
        table.counts[FrameState::Free as usize] = frames;
        table.replace(ZERO_FRAME, FrameState::Free, FrameState::Sealed, 0);
        table.pages[ZERO_FRAME as usize] = NONE;
        table
    }

    pub(crate) fn len(&self) -> u32 {
        // The table was made with a `u32` length.
        self.facts.len() as u32
    }

    /// The state of a frame; `None` beyond the vault.
    pub(crate) fn state(&self, frame: u32) -> Option<FrameState> {
        self.facts
            .get(frame as usize)
            .map(|facts| match facts >> STATE_SHIFT {
                0 => FrameState::Free,
                1 => FrameState::Staged,
                2 => FrameState::Sealed,
                3 => FrameState::Retired,
                _ => FrameState::Mirror,
            })
    }

    /// The page whose committed version the frame holds.
    pub(crate) fn page(&self, frame: u32) -> Option<PageOf> {
        let state = self.state(frame)?;
        let page = self.pages[frame as usize];
        (state == FrameState::Sealed && page != NONE).then_some(PageOf {
            app: (self.facts[frame as usize] & APP).into(),
            page,
        })
    }

    /// Number of frames in a state.
    pub(crate) fn count(&self, state: FrameState) -> u32 {
        match state {
            FrameState::Sealed => self.len() - self.counts.iter().sum::<u32>(),
            state => self.counts[state as usize],
        }
    }

    /// Takes a frame that will be overwritten as a whole: the one that was retired first, which need not be
    /// wiped then; else the one that became free last, else one that was never used.
    #[inline]
    pub(crate) fn take(&mut self, state: FrameState) -> Option<u32> {
        if let Some(frame) = self.retired.pop(&self.pages) {
            self.replace(frame, FrameState::Retired, state, 0);
            return Some(frame);
        }
        let frame = match self.pages.get(self.free as usize) {
            Some(&next) => std::mem::replace(&mut self.free, next),
            None if self.fresh < self.len() => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        self.replace(frame, FrameState::Free, state, 0);
        Some(frame)
    }

    /// Notes the checksum of a staged frame's content.
    #[inline]
    pub(crate) fn set_checksum(&mut self, frame: u32, checksum: u64) {
        self.checksums[frame as usize] = checksum;
    }

    /// Makes a staged frame the committed version of a page.
    #[inline]
    pub(crate) fn seal(&mut self, frame: u32, owner: PageOf) {
        // Apps are at most `MAX_APPS`, checked when they are made.
        let app = owner.app as u8;
        self.replace(frame, FrameState::Staged, FrameState::Sealed, app);
        self.pages[frame as usize] = owner.page;
    }

    /// Retires a frame that is in this state.
    #[inline]
    pub(crate) fn retire(&mut self, frame: u32, state: FrameState) {
        self.set_aside(frame, state);
        self.retired.push(&mut self.pages, frame);
    }

    /// Retires a frame that is in this state, and leaves it out of the list.
    #[inline]
    pub(crate) fn set_aside(&mut self, frame: u32, state: FrameState) {
        self.replace(frame, state, FrameState::Retired, 0);
    }

    /// How many retired frames in the list have been there since the last call; they are its first ones.
    pub(crate) fn take_unused(&mut self) -> u32 {
        self.retired.take_unused()
    }

    /// Takes a retired frame out of the list. It stays retired.
    pub(crate) fn pop_retired(&mut self) -> Option<u32> {
        self.retired.pop(&self.pages)
    }

    /// Puts a retired frame back into the list.
    pub(crate) fn push_retired(&mut self, frame: u32) {
        debug_assert_eq!(self.state(frame), Some(FrameState::Retired));
        self.retired.push(&mut self.pages, frame);
    }

    /// Whether there are retired frames in the list.
    pub(crate) fn has_retired(&self) -> bool {
        self.retired.head != NONE
    }

    /// Frees a retired frame that is not in the list.
    pub(crate) fn free(&mut self, frame: u32) {
        self.replace(frame, FrameState::Retired, FrameState::Free, 0);
        self.pages[frame as usize] = std::mem::replace(&mut self.free, frame);
    }

    /// The checksum of a sealed frame's right content.
    pub(crate) fn checksum(&self, frame: u32) -> u64 {
        let holder = self.mirror(frame).unwrap_or(frame);
        self.checksums[holder as usize]
    }

    /// The frame with the second copy of a frame's content, if there is one.
    pub(crate) fn mirror(&self, frame: u32) -> Option<u32> {
        let has = self.facts[frame as usize] & MIRRORED != 0;
        // A frame's number.
        has.then(|| self.checksums[frame as usize] as u32)
    }

    /// Gives a frame that has its checksum a second copy.
    pub(crate) fn set_mirror(&mut self, frame: u32, copy: u32) {
        self.checksums[copy as usize] = self.checksum(frame);
        self.checksums[frame as usize] = copy.into();
        self.facts[frame as usize] |= MIRRORED;
    }

    /// Takes a frame's second copy away from it.
    pub(crate) fn take_mirror(&mut self, frame: u32) -> Option<u32> {
        let copy = self.mirror(frame)?;
        self.checksums[frame as usize] = self.checksums[copy as usize];
        self.facts[frame as usize] &= !MIRRORED;
        Some(copy)
    }

    /// Whether a sealed frame is neither damaged nor has a second copy.
    #[inline]
    pub(crate) fn is_plain(&self, frame: u32) -> bool {
        self.facts[frame as usize] & (MIRRORED | DAMAGED) == 0
    }

    /// Whether a sealed frame's content is lost.
    pub(crate) fn is_damaged(&self, frame: u32) -> bool {
        self.facts[frame as usize] & DAMAGED != 0
    }

    pub(crate) fn set_damaged(&mut self, frame: u32, damaged: bool) {
        let facts = &mut self.facts[frame as usize];
        match damaged {
            true => *facts |= DAMAGED,
            false => *facts &= !DAMAGED,
        }
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.pages.capacity() * size_of::<u32>()
            + self.checksums.capacity() * size_of::<u64>()
            + self.facts.capacity() * size_of::<u16>()
    }

    /// Gives a frame another state and an app, without marks.
    #[inline]
    fn replace(&mut self, frame: u32, from: FrameState, to: FrameState, app: u8) {
        debug_assert_eq!(self.state(frame), Some(from), "frame {frame}");
        if from != FrameState::Sealed {
            self.counts[from as usize] -= 1;
        }
        if to != FrameState::Sealed {
            self.counts[to as usize] += 1;
        }
        self.facts[frame as usize] = u16::from(app) | (to as u16) << STATE_SHIFT;
    }

    /// The frames in a state, lowest first.
    #[cfg(test)]
    pub(crate) fn in_state(&self, state: FrameState) -> impl Iterator<Item = u32> {
        (0..self.len()).filter(move |&frame| self.state(frame) == Some(state))
    }

    /// The frames of both lists, the free ones first, and panics when one is listed twice or in
    /// another state.
    #[cfg(test)]
    pub(crate) fn check_lists(&self) -> [std::collections::BTreeSet<u32>; 2] {
        let lists = [
            (self.free, FrameState::Free),
            (self.retired.head, FrameState::Retired),
        ];
        lists.map(|(head, state)| {
            let mut found = std::collections::BTreeSet::new();
            let mut next = head;
            while next != NONE {
                assert_eq!(self.state(next), Some(state), "frame {next}");
                assert!(found.insert(next), "frame {next} is in a list twice");
                next = self.pages[next as usize];
            }
            if state == FrameState::Free {
                found.extend(self.fresh..self.len());
                assert_eq!(found.len(), self.count(state) as usize);
            } else {
                let Queue { added, removed, .. } = self.retired;
                assert_eq!(found.len() as u64, added - removed);
            }
            found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_is_counted_in_exactly_one_state() {
        let mut table = FrameTable::new(8);
        assert_eq!(table.state(ZERO_FRAME), Some(FrameState::Sealed));
        let frame = table.take(FrameState::Staged).unwrap();
        table.seal(frame, PageOf { app: 2, page: 77 });
        assert_eq!(table.page(frame), Some(PageOf { app: 2, page: 77 }));
        assert_eq!(table.count(FrameState::Free), 6);
        assert_eq!(table.count(FrameState::Sealed), 2);
        table.retire(frame, FrameState::Sealed);
        assert_eq!(table.page(frame), None);
        assert_eq!(table.count(FrameState::Sealed), 1);
        assert_eq!(table.state(8), None);
        table.check_lists();
    }

    #[test]
    fn retired_frames_are_taken_first_and_new_ones_last() {
        let mut table = FrameTable::new(6);
        let take = |table: &mut FrameTable| table.take(FrameState::Staged);
        for frame in 1..=4 {
            assert_eq!(take(&mut table), Some(frame));
        }
        for frame in [1, 4, 2, 3] {
            table.retire(frame, FrameState::Staged);
        }
        for frame in [1, 4] {
            assert_eq!(table.pop_retired(), Some(frame));
            table.free(frame);
        }
        let order = std::iter::from_fn(|| take(&mut table));
        assert_eq!(order.collect::<Vec<_>>(), [2, 3, 4, 1, 5]);
        table.check_lists();
    }

    #[test]
    fn what_no_seal_has_used_is_known_from_one_look_to_the_next() {
        let mut table = FrameTable::new(8);
        let mut next = || table.take(FrameState::Staged).unwrap();
        let frames: [u32; 5] = std::array::from_fn(|_| next());
        for frame in frames {
            table.retire(frame, FrameState::Staged);
        }
        assert_eq!(table.take_unused(), 0, "none was there before");
        // Two are used and come back behind the others.
        for frame in [frames[0], frames[1]] {
            assert_eq!(table.take(FrameState::Staged), Some(frame));
        }
        for frame in [frames[0], frames[1]] {
            table.retire(frame, FrameState::Staged);
        }
        assert_eq!(table.take_unused(), 3);
        for frame in &frames[2..] {
            assert_eq!(table.pop_retired(), Some(*frame));
            table.free(*frame);
        }
        assert_eq!(table.take_unused(), 2);
        table.check_lists();
    }

    #[test]
    fn a_frame_keeps_its_checksum_with_and_without_a_second_copy() {
        let mut table = FrameTable::new(8);
        let frame = table.take(FrameState::Staged).unwrap();
        let copy = table.take(FrameState::Mirror).unwrap();
        table.set_checksum(frame, 4711 << 32);
        table.seal(frame, PageOf { app: 63, page: 77 });
        table.set_mirror(frame, copy);
        table.set_damaged(frame, true);
        assert_eq!(
            (table.checksum(frame), table.mirror(frame)),
            (4711 << 32, Some(copy))
        );
        assert_eq!(table.page(frame), Some(PageOf { app: 63, page: 77 }));
        assert_eq!(table.take_mirror(frame), Some(copy));
        assert_eq!(
            (table.checksum(frame), table.mirror(frame)),
            (4711 << 32, None)
        );
        assert!(table.is_damaged(frame));
    }
}
