//! What the engine needs from the memory of the window: second-level permissions, and a look at
//! the content of frames.

use std::io;

use thiserror::Error;
use vmsrs_protocol::FrameRun;

use super::changes::Page;

/// The protection of a run of frames could not be changed.
#[derive(Debug, Error)]
#[error("cannot change the protection of {} frames from frame {}", run.count, run.start)]
pub struct ProtectionError {
    /// The run.
    pub run: FrameRun,
    /// The system's error.
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
    /// Copies a frame's content, which the guest may be changing. Zeros if there is no such frame.
    fn read(&self, frame: u32, content: &mut Page);
}
