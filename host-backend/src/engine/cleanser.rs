//! The cleanser: retired frames are wiped and become free again.
//!
//! The engine touches no memory: the cleanser's thread takes runs, wipes them through the host's own
//! mapping, without holding the engine, and returns them.

use vmsrs_protocol::FrameRun;

use super::runs::{frames_of, gather};
use super::store::{FrameState, Store};

/// Runs of frames to wipe. They stay retired and reserved until they are returned
/// to [`super::Engine::cleansed`].
#[derive(Debug, Default)]
#[must_use = "frames that are not returned are lost"]
pub struct RetiredFrames {
    runs: Vec<FrameRun>,
}

impl RetiredFrames {
    /// The runs.
    pub fn runs(&self) -> &[FrameRun] {
        &self.runs
    }

    /// Whether there is nothing to wipe.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Wipes frame by frame. A frame for which `wipe` returns false stays retired, to be tried again.
    /// Returns the frames that were wiped and those that were not.
    pub fn wipe_each(self, mut wipe: impl FnMut(u32) -> bool) -> (Self, Self) {
        let frames = self.runs.into_iter().flat_map(frames_of);
        let (mut clean, mut left): (Vec<u32>, Vec<u32>) = frames.partition(|&frame| wipe(frame));
        let gathered = |frames: &mut Vec<u32>| Self {
            runs: gather(frames, |_| false),
        };
        (gathered(&mut clean), gathered(&mut left))
    }

    /// Adds other frames.
    pub fn add(&mut self, other: Self) {
        self.runs.extend(other.runs);
    }
}

/// Takes up to `frames` retired frames.
pub(crate) fn take(store: &mut Store, frames: u32) -> RetiredFrames {
    RetiredFrames {
        runs: store.retired.take(frames, usize::MAX),
    }
}

/// Takes wiped frames back. Returns whether the driver should be told that frames are free again.
pub(crate) fn done(store: &mut Store, retired: RetiredFrames) -> bool {
    for frame in retired.runs.into_iter().flat_map(frames_of) {
        debug_assert_eq!(store.frames.state(frame), Some(FrameState::Retired));
        store.frames.set(frame, FrameState::Free);
        store.free.insert(frame);
    }
    store.free.len() > 0 && store.take_short()
}
