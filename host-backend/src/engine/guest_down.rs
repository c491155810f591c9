//! Ends of the guest's kernel (a panic, a reboot, a triple fault) that took requests with them.
//!
//! The driver cannot report these any more, so the host does: what it lost is what the guest had
//! written into granted frames and not brought to a seal.

use std::collections::VecDeque;
use std::time::Duration;

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

    /// Whether there was anything that somebody may miss.
    pub(crate) fn is_none(&self) -> bool {
        self.written_frames == 0 && self.staged_pages == 0
    }
}

/// One such end.
#[derive(Debug)]
pub(crate) struct GuestDown {
    pub(crate) number: u64,
    /// Since the Unix epoch.
    pub(crate) at: Duration,
    /// How the guest ended, in a sentence without a full stop.
    pub(crate) reason: String,
    pub(crate) loss: Loss,
}

/// The latest ends.
pub(crate) struct GuestDowns {
    limit: usize,
    /// Oldest first.
    kept: VecDeque<GuestDown>,
    /// All of them since the engine was made.
    count: u64,
}

impl GuestDowns {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            kept: VecDeque::new(),
            count: 0,
        }
    }

    pub(crate) fn add(&mut self, down: GuestDown) {
        if self.kept.len() == self.limit {
            self.kept.pop_front();
        }
        self.kept.push_back(down);
        self.count += 1;
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &GuestDown> {
        self.kept.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_ends_are_kept_and_all_are_counted() {
        let mut downs = GuestDowns::new(2);
        for number in [2, 4, 6] {
            downs.add(GuestDown {
                number,
                at: Duration::ZERO,
                reason: "the guest reset itself".into(),
                loss: Loss::default(),
            });
        }
        let kept: Vec<u64> = downs.iter().map(|down| down.number).collect();
        assert_eq!((kept, downs.count()), (vec![4, 6], 3));
    }
}
