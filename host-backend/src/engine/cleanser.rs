//! The cleanser: retired frames are wiped and become free again.
//!
//! The engine touches no memory: whoever runs the cleanser takes runs, wipes them through the
//! host's own mapping, without holding the engine, and gives them back.

use vmsrs_protocol::FrameRun;

use super::runs::frames_of;
use super::store::{FrameState, Store};

/// Runs of frames to wipe. They stay retired, and nobody else gets them, until they are given back
/// to [`super::Engine::cleansed`].
#[derive(Debug, Default)]
#[must_use = "frames that are not given back are lost"]
pub struct Laundry {
    runs: Vec<FrameRun>,
}

impl Laundry {
    /// The runs.
    pub fn runs(&self) -> &[FrameRun] {
        &self.runs
    }

    /// Whether there is nothing to wipe.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }
}

/// Takes up to `frames` retired frames.
pub(crate) fn take(store: &mut Store, frames: u32) -> Laundry {
    Laundry {
        runs: store.retired.take(frames, usize::MAX),
    }
}

/// Takes wiped frames back. Gives whether the driver should hear that frames are free again.
pub(crate) fn done(store: &mut Store, laundry: Laundry) -> bool {
    for frame in laundry.runs.into_iter().flat_map(frames_of) {
        debug_assert_eq!(store.frames.state(frame), Some(FrameState::Retired));
        store.frames.set(frame, FrameState::Free);
        store.free.insert(frame);
    }
    store.free.len() > 0 && store.take_short()
}
