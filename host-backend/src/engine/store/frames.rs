//! The state of every frame.

use vmsrs_protocol::{FrameRun, NONE, ZERO_FRAME};

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

/// Eight bytes a frame: there can be a hundred million of them.
#[derive(Clone, Copy)]
struct Frame {
    /// The page whose version this is, while sealed.
    page: u32,
    /// Its app; below `MAX_APPS`.
    app: u8,
    state: FrameState,
    /// Named by a record of the commit whose records are still arriving.
    staged: bool,
}

/// The states of all frames, with the number of frames in each.
pub(crate) struct FrameTable {
    frames: Vec<Frame>,
    counts: [u32; STATES],
}

impl FrameTable {
    /// All frames free but the zero frame, which is sealed for ever.
    pub(crate) fn new(frames: u32) -> Self {
        let free = Frame {
            page: NONE,
            app: 0,
            state: FrameState::Free,
            staged: false,
        };
        let mut table = Self {
            frames: vec![free; frames as usize],
            counts: [0; STATES],
        };
        table.counts[FrameState::Free as usize] = frames;
        table.set(ZERO_FRAME, FrameState::Sealed);
        table
    }

    pub(crate) fn len(&self) -> u32 {
        // The table was made with a `u32` length.
        self.frames.len() as u32
    }

    /// The state of a frame; `None` beyond the window.
    pub(crate) fn state(&self, frame: u32) -> Option<FrameState> {
        self.frames.get(frame as usize).map(|entry| entry.state)
    }

    /// The page whose committed version the frame holds.
    pub(crate) fn page(&self, frame: u32) -> Option<PageOf> {
        let entry = self.frames.get(frame as usize)?;
        (entry.state == FrameState::Sealed && entry.page != NONE).then_some(PageOf {
            app: u32::from(entry.app),
            page: entry.page,
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
        // Apps are fewer than 256 (`MAX_APPS`), checked when they are made.
        self.replace(frame, FrameState::Sealed, owner.page, owner.app as u8);
    }

    pub(crate) fn is_staged(&self, frame: u32) -> bool {
        self.frames[frame as usize].staged
    }

    pub(crate) fn set_staged(&mut self, frame: u32, staged: bool) {
        self.frames[frame as usize].staged = staged;
    }

    /// The frames in a state, lowest first.
    pub(crate) fn in_state(&self, state: FrameState) -> impl Iterator<Item = u32> {
        (0u32..)
            .zip(&self.frames)
            .filter(move |(_, entry)| entry.state == state)
            .map(|(frame, _)| frame)
    }

    /// Bytes of host memory in use.
    pub(crate) fn bytes(&self) -> usize {
        self.frames.capacity() * size_of::<Frame>()
    }

    fn replace(&mut self, frame: u32, state: FrameState, page: u32, app: u8) {
        let entry = &mut self.frames[frame as usize];
        self.counts[entry.state as usize] -= 1;
        self.counts[state as usize] += 1;
        entry.state = state;
        entry.page = page;
        entry.app = app;
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
    fn the_state_of_a_frame_takes_eight_bytes() {
        assert_eq!(size_of::<Frame>(), 8);
    }
}
