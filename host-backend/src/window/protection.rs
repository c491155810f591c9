//! Second-level permissions by `mprotect`: KVM takes a page's protection in the guest-facing
//! mapping over into the second-level page table and invalidates entries that no longer hold.

use std::io;
use std::sync::Arc;

use vmsrs_protocol::{FrameRun, PAGE_SIZE};

use super::Window;
use crate::engine::{Content, Inspect, Page, Protection, ProtectionError, Unreadable, checksum};

/// The protection of a window's frames. There is one value for each window.
#[derive(Debug)]
pub struct MprotectProtection {
    window: Arc<Window>,
    /// One bit a frame: the guest may write to it.
    writable: Vec<u64>,
}

impl MprotectProtection {
    pub(super) fn new(window: Arc<Window>) -> Self {
        let words = window.frames.div_ceil(u64::BITS) as usize;
        Self {
            window,
            writable: vec![0; words],
        }
    }

    /// Whether the guest may write to a frame. One whose protection could not be changed counts as
    /// writable.
    pub fn is_writable(&self, frame: u32) -> bool {
        self.writable
            .get((frame / u64::BITS) as usize)
            .is_some_and(|word| word >> (frame % u64::BITS) & 1 == 1)
    }

    fn set_writable(&mut self, run: FrameRun, writable: bool) {
        for frame in run.start..run.start + run.count {
            let word = &mut self.writable[(frame / u64::BITS) as usize];
            let bit = 1 << (frame % u64::BITS);
            if writable {
                *word |= bit;
            } else {
                *word &= !bit;
            }
        }
    }

    fn mprotect(&self, run: FrameRun, protection: i32) -> Result<(), ProtectionError> {
        let failed = |source| ProtectionError { run, source };
        let inside = run
            .start
            .checked_add(run.count)
            .is_some_and(|end| end <= self.window.frames);
        if !inside {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        }
        let page = PAGE_SIZE as usize;
        let length = run.count as usize * page;
        // SAFETY: the run lies inside the guest-facing mapping, as checked above. That mapping is
        // nothing but the window: no Rust object lives in it, and this process neither reads nor
        // writes through it, so a change of its protection takes nothing from anybody here.
        let result = unsafe {
            let start = self.window.guest.as_ptr().add(run.start as usize * page);
            libc::mprotect(start.cast(), length, protection)
        };
        match result {
            0 => Ok(()),
            _ => Err(failed(io::Error::last_os_error())),
        }
    }
}

impl Protection for MprotectProtection {
    fn protect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.mprotect(run, libc::PROT_READ)?;
        self.set_writable(run, false);
        Ok(())
    }

    fn unprotect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.mprotect(run, libc::PROT_READ | libc::PROT_WRITE)?;
        self.set_writable(run, true);
        Ok(())
    }
}

impl Inspect for MprotectProtection {
    fn read(&self, frame: u32, content: &mut Page) {
        if let Err(error) = self.window.read(frame, content) {
            log::error!("{error}");
            content.fill(0);
        }
    }
}

impl MprotectProtection {
    fn content(&self, frame: u32) -> Result<[u8; PAGE_SIZE as usize], Unreadable> {
        let mut content = [0; PAGE_SIZE as usize];
        match self.window.read(frame, &mut content) {
            Ok(()) => Ok(content),
            Err(error) => Err(unreadable(frame, error)),
        }
    }
}

fn unreadable(frame: u32, error: impl Into<io::Error>) -> Unreadable {
    Unreadable {
        frame,
        source: error.into(),
    }
}

impl Content for MprotectProtection {
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable> {
        Ok(checksum(&self.content(frame)?))
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        let content = self.content(from)?;
        self.window
            .write(to, &content)
            .map_err(|error| unreadable(to, error))
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        let content = match from {
            Some(from) => self.content(from)?,
            None => [0; PAGE_SIZE as usize],
        };
        self.window
            .replace(frame, &content)
            .map_err(|error| unreadable(frame, error))
    }
}
