//! Replacing a frame's memory, in one step for its readers.
//!
//! A page of a file cannot be exchanged: there is a moment between the hole and the new content in which
//! the file has zeros. So another page with the content takes the frame's place in the guest-facing
//! mapping meanwhile. Each of the two changes is one `mmap` over the other: who reads at that moment
//! waits for the kernel and sees what was there before or what is there after. KVM's own entries are
//! invalidated with the mapping that they came from, and made again from the one that is there then.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::process;

use vmsrs_protocol::PAGE_SIZE;

use super::{AccessError, Window, access, memory_file, offset, single};

/// A page that stands in a frame's place; the file is back there when this is dropped.
struct StandIn<'a> {
    window: &'a Window,
    frame: u32,
    /// What the guest may do with the frame then.
    protection: i32,
}

impl<'a> StandIn<'a> {
    fn new(window: &'a Window, frame: u32, content: &[u8]) -> io::Result<Self> {
        let page = memory_file(PAGE_SIZE.into())?;
        page.write_all_at(content, 0)?;
        window.map(frame, page.as_raw_fd(), 0, libc::PROT_READ)?;
        Ok(Self {
            window,
            frame,
            protection: libc::PROT_READ,
        })
    }
}

impl Drop for StandIn<'_> {
    fn drop(&mut self) {
        let file = self.window.file.as_raw_fd();
        let mapped = self
            .window
            .map(self.frame, file, offset(self.frame), self.protection);
        if let Err(error) = mapped {
            // The frame would show a page that nothing writes to, to its next user too.
            log::error!("frame {} cannot be mapped again: {error}", self.frame);
            process::abort();
        }
    }
}

impl Window {
    /// Backs a frame that the guest cannot write with other memory, with `content`. Who reads the frame
    /// through the guest-facing mapping finds its old memory or `content`, at any moment.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have this frame, or the system refuses. The guest can read the
    /// frame as before then; or not at all, if its old memory is gone and it should not be zeros.
    pub fn replace(
        &self,
        frame: u32,
        content: &[u8; PAGE_SIZE as usize],
    ) -> Result<(), AccessError> {
        self.check(single(frame))?;
        let mut stand_in =
            StandIn::new(self, frame, content).map_err(|source| access(frame, source))?;
        self.punch(frame)?;
        let written = self.write(frame, content);
        if written.is_err() && content.iter().any(|&byte| byte != 0) {
            stand_in.protection = libc::PROT_NONE;
        }
        written
    }

    /// Puts a page of a file in a frame's place in the guest-facing mapping.
    fn map(&self, frame: u32, file: RawFd, offset: u64, protection: i32) -> io::Result<()> {
        let page = PAGE_SIZE as usize;
        // SAFETY: callers have checked that the frame lies in the guest-facing mapping. That mapping is
        // nothing but the window: no Rust object lives in it, and this process does not write through
        // it.
        let (start, mapped) = unsafe {
            let start = self.guest.as_ptr().add(frame as usize * page);
            let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
            // Files of the window are smaller than 2^44 bytes.
            let offset = offset as libc::off_t;
            let mapped = libc::mmap(start.cast(), page, protection, flags, file, offset);
            (start, mapped)
        };
        if mapped != libc::MAP_FAILED {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // SAFETY: without flags that write anything the call only looks at the mapping.
        if unsafe { libc::msync(start.cast(), page, libc::MS_ASYNC) } != 0 {
            // The system took the old page away before it refused. Whatever is mapped there next would
            // be shown to the guest.
            log::error!("frame {frame} has no place in memory any more: {error}");
            process::abort();
        }
        Err(error)
    }
}
