//! The pool: memory that the guest writes, for drafts and for what is committed but not sealed yet.

use std::io;

use super::{AccessError, Region, RegionsError};
use crate::engine::Page;
use crate::host_memory::{HostPages, punch, take_pages};

/// The pool's memory.
#[derive(Debug)]
pub struct Pool {
    pub(super) region: Region,
}

impl Pool {
    pub(super) fn new(frames: u32, pages: HostPages) -> Result<Self, RegionsError> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        Ok(Self {
            region: Region::new("pool", c"vmsrs-pool", frames, pages, access)?,
        })
    }

    /// Number of frames.
    pub fn frames(&self) -> u32 {
        self.region.frames
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.region.size()
    }

    /// Address of the guest-facing mapping in this process, for the memory slot given to KVM. It
    /// stays valid as long as the pool lives.
    pub fn guest_mapping(&self) -> *mut u8 {
        self.region.guest.as_ptr()
    }

    /// Where the host reads a frame.
    pub(super) fn frame(&self, frame: u32) -> Result<*const u8, AccessError> {
        Ok(self
            .region
            .frame_of(&self.region.guest, frame)?
            .cast_const())
    }

    /// Whether the pool is mapped at an address.
    pub(super) fn is_at(&self, address: usize) -> bool {
        let start = self.guest_mapping() as usize;
        (start..start + self.region.guest.size()).contains(&address)
    }

    /// Copies a frame's content. The guest may be writing to it at the same time.
    ///
    /// # Errors
    ///
    /// Fails when the pool does not have this frame, or its memory is broken.
    pub fn read(&self, frame: u32, content: &mut Page) -> Result<(), AccessError> {
        self.region.read(&self.region.guest, frame, content)
    }

    /// Gives the pool other memory, all zeros. For the time between two boots, when no vCPU runs: the
    /// next kernel finds nothing of the one before, and no broken memory.
    ///
    /// # Errors
    ///
    /// Fails when the system refuses, or has too few huge pages.
    pub fn renew(&self) -> io::Result<()> {
        let Region {
            file, pages, guest, ..
        } = &self.region;
        punch(file, 0, self.size())?;
        // The hole takes pages out of mappings, but leaves the marks of broken ones there.
        // SAFETY: no Rust object is a part of the guest-facing mapping; what it shows is the file's
        // content as before.
        if unsafe { libc::madvise(guest.as_ptr().cast(), guest.size(), libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
        take_pages(file, self.size(), *pages)
    }
}

#[cfg(test)]
mod tests {
    use crate::regions::tests::{guest_byte, regions};

    #[test]
    fn what_the_guest_writes_is_gone_at_the_next_boot() {
        let pool = regions().pool;
        let guest = pool.guest_mapping();
        // SAFETY: frame 7 of the guest-facing mapping is writable, and there is no reference to it.
        unsafe { guest.add(7 * 4096 + 100).write_volatile(9) };
        let mut content = [0; 4096];
        pool.read(7, &mut content).unwrap();
        assert_eq!(content.iter().position(|&byte| byte == 9), Some(100));
        pool.renew().unwrap();
        pool.read(7, &mut content).unwrap();
        assert_eq!(content, [0; 4096]);
        assert_eq!(guest_byte(guest, 7, 100), 0);
    }
}
