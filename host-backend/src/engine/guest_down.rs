//! Ends of the guest's kernel (a panic, a reboot, a triple fault) that took requests with them.
//!
//! The driver cannot report these any more, so the host does: what it lost is what the guest had
//! written into granted frames and not brought to a seal.

use vmsrs_protocol::PAGE_SIZE;

use super::protection::Inspect;
use super::store::{FrameState, Store};

/// Name of this kind of incident, beside those of the driver's reports.
pub(crate) const KIND_NAME: &str = "guest-down";

/// What went with the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Frames that the driver held.
    pub(crate) granted_frames: u32,
    /// Those of them that are not all zeros: drafts, and commits that had not reached the host.
    pub(crate) written_frames: u32,
    /// Pages of a commit of which only a part had reached the host.
    pub(crate) staged_pages: u32,
}

impl Loss {
    /// Counts what a reset is about to drop. The driver no longer uses the device.
    pub(crate) fn of(store: &Store, staged_pages: usize, memory: &impl Inspect) -> Self {
        let mut loss = Self {
            // A commit has fewer pages than the window has frames.
            staged_pages: staged_pages as u32,
            ..Self::default()
        };
        let mut content = [0; PAGE_SIZE as usize];
        for frame in store.frames.in_state(FrameState::Granted) {
            loss.granted_frames += 1;
            // Frames are zeros when they are granted.
            memory.read(frame, &mut content);
            loss.written_frames += u32::from(content.iter().any(|&byte| byte != 0));
        }
        loss
    }

    /// Whether nothing was lost.
    pub(crate) fn is_none(&self) -> bool {
        self.written_frames == 0 && self.staged_pages == 0
    }
}

/// One such end.
#[derive(Debug)]
pub(crate) struct GuestDown {
    /// How the guest ended, in a sentence without a full stop.
    pub(crate) reason: String,
    pub(crate) loss: Loss,
}
