//! A window for tests: content is one number a frame, and changes of protection can fail.

use std::io;

use vmsrs_protocol::{FrameRun, ZERO_FRAME};

use super::content::{Content, Unreadable};
use super::runs::frames_of;
use super::{Inspect, Page, Protection, ProtectionError, RetiredFrames};

pub(crate) struct MockMemory {
    pub(crate) writable: Vec<bool>,
    pub(crate) content: Vec<u64>,
    /// Frames whose memory is broken.
    pub(crate) poisoned: Vec<bool>,
    /// Changes of protection that succeed before one fails half-way.
    pub(crate) fails_after: Option<u32>,
    /// Changes of protection so far.
    pub(crate) changes: u32,
}

impl MockMemory {
    pub(crate) fn new(frames: u32) -> Self {
        Self {
            writable: vec![false; frames as usize],
            content: vec![0; frames as usize],
            poisoned: vec![false; frames as usize],
            fails_after: None,
            changes: 0,
        }
    }

    /// What the guest does to a frame: nothing if it may not.
    pub(crate) fn guest_write(&mut self, frame: u32, content: u64) {
        if self.writable[frame as usize] {
            self.content[frame as usize] = content;
        }
    }

    pub(crate) fn wipe(&mut self, retired: &RetiredFrames) {
        for frame in retired.runs().iter().copied().flat_map(frames_of) {
            assert_ne!(frame, ZERO_FRAME);
            assert!(!self.writable[frame as usize]);
            self.renew(frame);
        }
    }

    /// Backs a frame with zeroed memory.
    fn renew(&mut self, frame: u32) {
        self.content[frame as usize] = 0;
        self.poisoned[frame as usize] = false;
    }

    fn check(&self, frame: u32) -> Result<(), Unreadable> {
        match self.poisoned[frame as usize] {
            false => Ok(()),
            true => Err(Unreadable {
                frame,
                source: io::Error::from_raw_os_error(libc::EIO),
            }),
        }
    }

    fn change(&mut self, run: FrameRun, writable: bool) -> Result<(), ProtectionError> {
        assert_ne!(run.count, 0);
        self.changes += 1;
        let fails = match &mut self.fails_after {
            Some(0) => {
                self.fails_after = None;
                true
            }
            Some(count) => {
                *count -= 1;
                false
            }
            None => false,
        };
        let done = if fails { run.count / 2 } else { run.count };
        for frame in run.start..run.start + done {
            self.writable[frame as usize] = writable;
        }
        if fails {
            let source = io::Error::from_raw_os_error(libc::ENOMEM);
            return Err(ProtectionError { run, source });
        }
        Ok(())
    }
}

impl Protection for MockMemory {
    fn protect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.change(run, false)
    }

    fn unprotect(&mut self, run: FrameRun) -> Result<(), ProtectionError> {
        self.change(run, true)
    }
}

impl Inspect for MockMemory {
    fn read(&self, frame: u32, content: &mut Page) {
        content.fill(0);
        content[..8].copy_from_slice(&self.content[frame as usize].to_le_bytes());
    }
}

impl Content for MockMemory {
    fn checksum(&self, frame: u32) -> Result<u32, Unreadable> {
        self.check(frame)?;
        let mut page = [0; vmsrs_protocol::PAGE_SIZE as usize];
        page[..8].copy_from_slice(&self.content[frame as usize].to_le_bytes());
        Ok(super::content::checksum(&page))
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        self.check(from)?;
        self.check(to)?;
        assert!(!self.writable[to as usize]);
        self.content[to as usize] = self.content[from as usize];
        Ok(())
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        assert!(!self.writable[frame as usize]);
        if let Some(from) = from {
            self.check(from)?;
        }
        let content = from.map_or(0, |from| self.content[from as usize]);
        self.renew(frame);
        self.content[frame as usize] = content;
        Ok(())
    }
}
