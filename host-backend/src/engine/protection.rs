//! What the engine needs from the memory of the window: second-level permissions, and a look at
//! the content of frames.

use std::io;

use thiserror::Error;
use vmsrs_protocol::{FrameRun, PAGE_SIZE};

/// The protection of a run of frames could not be changed.
#[derive(Debug, Error)]
#[error("protection of {} frames from frame {} on not changed", run.count, run.start)]
pub struct ProtectionError {
    /// The run.
    pub run: FrameRun,
    /// What the operating system said.
    #[source]
    pub source: io::Error,
}

/// Second-level permissions: what the guest may do with frames, whatever its own page tables say.
///
/// Every frame is readable always. After an error the protection of the run's frames is
/// unspecified, and the caller sets it again.
pub trait Protection {
    /// Makes a run of frames read-only for the guest. Frames that are read-only already stay so.
    ///
    /// # Errors
    ///
    /// Fails when the operating system refuses.
    fn protect(&mut self, run: FrameRun) -> Result<(), ProtectionError>;

    /// Makes a run of frames writable by the guest.
    ///
    /// # Errors
    ///
    /// Fails when the operating system refuses.
    fn unprotect(&mut self, run: FrameRun) -> Result<(), ProtectionError>;
}

/// A look at the content of frames, for evidence.
pub trait Inspect {
    /// Where the content of two frames differs. The guest may be writing to either of them.
    fn difference(&self, draft: u32, committed: u32) -> Difference;
}

/// How a dropped draft differed from the committed version of its page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Bytes that differ.
    pub bytes: u32,
    /// Offset in the page of the first byte that differs, if one does.
    pub first: Option<u32>,
}

/// Compares a draft with the committed version of its page.
pub fn difference(draft: &[u8], committed: &[u8]) -> Difference {
    debug_assert!(draft.len() == committed.len() && draft.len() <= PAGE_SIZE as usize);
    let mut found = Difference::default();
    for (offset, (new, old)) in (0u32..).zip(draft.iter().zip(committed)) {
        if new != old {
            found.bytes += 1;
            found.first.get_or_insert(offset);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::{Difference, difference};

    #[test]
    fn a_difference_has_its_first_offset_and_its_number_of_bytes() {
        assert_eq!(difference(&[1, 2, 3], &[1, 2, 3]), Difference::default());
        assert_eq!(
            difference(&[1, 9, 3, 8], &[1, 2, 3, 4]),
            Difference {
                bytes: 2,
                first: Some(1)
            }
        );
    }
}
