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

/// Low bits of a frame's marks: its app. There are at most 64 (`MAX_APPS`).
const APP: u8 = 0x3f;
/// Mark of a sealed frame with a second copy: then its number is in the frame's entry of
/// `checksums`, and the checksum in the copy's.
const MIRRORED: u8 = 0x40;
/// Mark of a sealed frame whose content is lost.
const DAMAGED: u8 = 0x80;

/// The states of all frames, with the number of frames in each, and the free and the retired ones as
/// lists: of the free ones, the frame that came last is taken first; of the retired ones, the first.
///
/// One array for each fact rather than a structure with padding: there can be a hundred million
/// frames. The large ones start as zeros, so that frames that were never used cost little memory.
pub(crate) struct FrameTable {
    /// Of a sealed frame the page whose version it is; of a listed one the next in its list.
    pages: Vec<u32>,
    /// The checksum of each frame's content when it was sealed.
    checksums: Vec<u32>,
    /// The app of each frame's page, and marks.
    marks: Vec<u8>,
    states: Vec<FrameState>,
    counts: [u32; STATES],
    /// Free frames that were used before. Those from `fresh` on are free too.
    free: List,
    /// Frames below were taken at least once.
    fresh: u32,
    retired: Queue,
}

/// A list that is linked through [`FrameTable::pages`].
struct List {
    /// Its first frame, or [`NONE`].
    head: u32,
}

impl List {
    const EMPTY: Self = Self { head: NONE };

    fn push(&mut self, links: &mut [u32], frame: u32) {
        links[frame as usize] = self.head;
        self.head = frame;
    }

    fn pop(&mut self, links: &[u32]) -> Option<u32> {
        let frame = self.head;
        self.head = *links.get(frame as usize)?;
        Some(frame)
    }
}

/// A queue that is linked through [`FrameTable::pages`].
struct Queue {
    /// Its first and its last frame; [`NONE`] if it is empty.
    head: u32,
    tail: u32,
    length: u32,
    /// The least length since [`Self::take_least`].
    least: u32,
}

impl Queue {
    const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        length: 0,
        least: 0,
    };

    fn push(&mut self, links: &mut [u32], frame: u32) {
        links[frame as usize] = NONE;
        match links.get_mut(self.tail as usize) {
            Some(last) => *last = frame,
            None => self.head = frame,
        }
        self.tail = frame;
        self.length += 1;
    }

    fn pop(&mut self, links: &[u32]) -> Option<u32> {
        let frame = self.head;
        self.head = *links.get(frame as usize)?;
        if self.head == NONE {
            self.tail = NONE;
        }
        self.length -= 1;
        self.least = self.least.min(self.length);
        Some(frame)
    }

    fn take_least(&mut self) -> u32 {
        std::mem::replace(&mut self.least, self.length)
    }
}

impl FrameTable {
    /// All frames free but the zero frame, which is always sealed.
    pub(crate) fn new(frames: u32) -> Self {
        let length = frames as usize;
        let mut table = Self {
            pages: vec![0; length],
            checksums: vec![0; length],
            marks: vec![0; length],
            states: vec![FrameState::Free; length],
            counts: [0; STATES],
            free: List::EMPTY,
            fresh: ZERO_FRAME + 1,
            retired: Queue::EMPTY,
        };
        table.counts[FrameState::Free as usize] = frames;
        table.replace(ZERO_FRAME, FrameState::Sealed, NONE, 0);
        table
    }

    pub(crate) fn len(&self) -> u32 {
        // The table was made with a `u32` length.
        self.states.len() as u32
    }

    /// The state of a frame; `None` beyond the vault.
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

    /// Takes a frame that will be overwritten as a whole: the one that was retired first, which need not be
    /// wiped then; else the one that became free last, else one that was never used.
    pub(crate) fn take(&mut self, state: FrameState) -> Option<u32> {
        let retired = self.retired.pop(&self.pages);
        let frame = match retired.or_else(|| self.free.pop(&self.pages)) {
            Some(frame) => frame,
            None if self.fresh < self.len() => {
                self.fresh += 1;
                self.fresh - 1
            }
            None => return None,
        };
        self.replace(frame, state, NONE, 0);
        Some(frame)
    }

    /// Makes a staged frame the committed version of a page.
    pub(crate) fn seal(&mut self, frame: u32, owner: PageOf, checksum: u32) {
        debug_assert_eq!(self.state(frame), Some(FrameState::Staged));
        // Apps are at most `MAX_APPS`, checked when they are made.
        self.replace(frame, FrameState::Sealed, owner.page, owner.app as u8);
        self.checksums[frame as usize] = checksum;
    }

    /// Retires a frame that holds something.
    pub(crate) fn retire(&mut self, frame: u32) {
        self.set_aside(frame);
        self.retired.push(&mut self.pages, frame);
    }

    /// Retires a frame that holds something, and leaves it out of the list.
    pub(crate) fn set_aside(&mut self, frame: u32) {
        debug_assert!(!matches!(
            self.state(frame),
            Some(FrameState::Free | FrameState::Retired)
        ));
        self.replace(frame, FrameState::Retired, NONE, 0);
    }

    /// At most so many retired frames in the list have been there since the last call; none of them is missed.
    pub(crate) fn take_unused(&mut self) -> u32 {
        self.retired.take_least()
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
        debug_assert_eq!(self.state(frame), Some(FrameState::Retired));
        self.replace(frame, FrameState::Free, NONE, 0);
        self.free.push(&mut self.pages, frame);
    }

    /// The checksum of a sealed frame's right content.
    pub(crate) fn checksum(&self, frame: u32) -> u32 {
        let holder = self.mirror(frame).unwrap_or(frame);
        self.checksums[holder as usize]
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

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        (self.pages.capacity() + self.checksums.capacity()) * size_of::<u32>()
            + self.marks.capacity()
            + self.states.capacity() * size_of::<FrameState>()
    }

    /// Gives a frame another state and owner, without marks.
    fn replace(&mut self, frame: u32, state: FrameState, page: u32, app: u8) {
        let index = frame as usize;
        self.counts[self.states[index] as usize] -= 1;
        self.counts[state as usize] += 1;
        self.states[index] = state;
        self.pages[index] = page;
        self.marks[index] = app;
    }

    /// The frames in a state, lowest first.
    #[cfg(test)]
    pub(crate) fn in_state(&self, state: FrameState) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.states)
            .filter(move |&(_, &known)| known == state)
            .map(|(frame, _)| frame)
    }

    /// The frames of both lists, the free ones first, and panics when one is listed twice or in
    /// another state.
    #[cfg(test)]
    pub(crate) fn check_lists(&self) -> [std::collections::BTreeSet<u32>; 2] {
        let lists = [
            (self.free.head, FrameState::Free),
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
                assert_eq!(found.len(), self.retired.length as usize);
                assert!(self.retired.least <= self.retired.length);
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
        table.seal(frame, PageOf { app: 2, page: 77 }, 5);
        assert_eq!(table.page(frame), Some(PageOf { app: 2, page: 77 }));
        assert_eq!(table.count(FrameState::Free), 6);
        assert_eq!(table.count(FrameState::Sealed), 2);
        table.retire(frame);
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
            table.retire(frame);
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
            table.retire(frame);
        }
        assert_eq!(table.take_unused(), 0, "none was there before");
        // Two are used and come back behind the others.
        for frame in [frames[0], frames[1]] {
            assert_eq!(table.take(FrameState::Staged), Some(frame));
        }
        for frame in [frames[0], frames[1]] {
            table.retire(frame);
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
        table.seal(frame, PageOf { app: 63, page: 77 }, 4711);
        table.set_mirror(frame, copy);
        table.set_damaged(frame, true);
        assert_eq!(
            (table.checksum(frame), table.mirror(frame)),
            (4711, Some(copy))
        );
        assert_eq!(table.page(frame), Some(PageOf { app: 63, page: 77 }));
        assert_eq!(table.take_mirror(frame), Some(copy));
        assert_eq!((table.checksum(frame), table.mirror(frame)), (4711, None));
        assert!(table.is_damaged(frame));
    }
}
