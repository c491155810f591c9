//! The vault: memory that the guest reads and only the host writes, for what is sealed.

use std::fs::File;
use std::io;

use vm_memory::MmapRegion;
use vmsrs_protocol::PAGE_SIZE;

use super::{AccessError, Region, RegionsError, map, offset};
use crate::engine::Page;
use crate::host_memory::{HostPages, MemoryFileError, memory_file, punch};

/// The vault's memory. The engine gives a frame to one user at a time, so nobody reads a frame while
/// another writes to it. Only the guest can: it may find anything in a frame that no page shows.
#[derive(Debug)]
pub struct Vault {
    pub(super) region: Region,
    /// Where the host reads and writes the frames, whatever the guest-facing mapping shows.
    pub(super) host: MmapRegion,
}

impl Vault {
    pub(super) fn new(frames: u32, pages: HostPages) -> Result<Self, RegionsError> {
        let region = Region::new("vault", c"vmsrs-vault", frames, pages, libc::PROT_READ)?;
        let host = map(
            region.name,
            &region.file,
            region.size(),
            libc::PROT_READ | libc::PROT_WRITE,
        )?;
        Ok(Self { region, host })
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
    /// stays valid as long as the vault lives, and is not writable.
    pub fn guest_mapping(&self) -> *mut u8 {
        self.region.guest.as_ptr()
    }

    /// Copies a frame's content.
    ///
    /// # Errors
    ///
    /// Fails when the vault does not have this frame, or its memory is broken.
    pub fn read(&self, frame: u32, content: &mut Page) -> Result<(), AccessError> {
        self.region.read(&self.host, frame, content)
    }

    /// Fills a frame with zeros. A frame whose memory is broken gets new memory.
    ///
    /// A plain write, rather than a hole in the file: that would take the page out of the mappings and
    /// make the next use of it fault.
    ///
    /// # Errors
    ///
    /// Fails when the vault does not have this frame, or the system has no memory for it.
    pub fn wipe(&self, frame: u32) -> Result<(), AccessError> {
        let to = self.host_frame(frame)?;
        // SAFETY: a frame of the host's mapping, of which no Rust object is a part.
        match unsafe { self.region.access.clear(to) } {
            Ok(()) => Ok(()),
            Err(_) => self.renew(frame),
        }
    }

    /// The checksum of a frame's content.
    pub(super) fn checksum(&self, frame: u32) -> Result<u64, AccessError> {
        let from = self.host_frame(frame)?;
        // SAFETY: a frame of the host's mapping.
        unsafe { self.region.access.checksum(from) }
            .map_err(|broken| self.region.broken(frame, broken))
    }

    /// Overwrites a frame with the content of another.
    pub(super) fn copy(&self, from: u32, to: u32) -> Result<(), AccessError> {
        self.fill(to, self.host_frame(from)?)
    }

    /// Overwrites a frame's content.
    pub(crate) fn write(&self, frame: u32, content: &Page) -> Result<(), AccessError> {
        self.fill(frame, content.as_ptr())
    }

    /// Overwrites a frame with a page that is mapped.
    fn fill(&self, frame: u32, from: *const u8) -> Result<(), AccessError> {
        let to = self.host_frame(frame)?;
        // SAFETY: `to` is a frame of the host's mapping, of which no Rust object is a part, and callers
        // give a page.
        unsafe { self.region.access.copy(to, from) }
            .map_err(|broken| self.region.broken(frame, broken))
    }

    /// Gives a frame other memory, all zeros.
    ///
    /// # Errors
    ///
    /// Fails when the vault does not have this frame, or the system refuses. With [`HostPages::Huge`] a
    /// single frame cannot be renewed.
    pub fn renew(&self, frame: u32) -> Result<(), AccessError> {
        self.punch(frame)?;
        self.drop_marks(frame, &self.region.guest)
    }

    /// Takes the page of a frame out of the file. The host's mapping shows the file's new page, if that is
    /// used again.
    pub(super) fn punch(&self, frame: u32) -> Result<(), AccessError> {
        self.region.check(frame)?;
        if self.region.pages == HostPages::Huge {
            return Err(self.region.error(frame, io::ErrorKind::Unsupported.into()));
        }
        punch(&self.region.file, offset(frame), PAGE_SIZE.into())
            .map_err(|source| self.region.error(frame, source))?;
        self.drop_marks(frame, &self.host)
    }

    /// A hole takes whole pages out of mappings, but leaves the marks of broken ones there: takes these
    /// out of one of the two mappings.
    fn drop_marks(&self, frame: u32, mapping: &MmapRegion) -> Result<(), AccessError> {
        let page = PAGE_SIZE as usize;
        // SAFETY: callers have checked that the frame lies in the region, and so in each mapping of it, of
        // which no Rust object is a part; what it shows is the file's content as before.
        let dropped = unsafe {
            let start = mapping.as_ptr().add(frame as usize * page);
            libc::madvise(start.cast(), page, libc::MADV_DONTNEED)
        };
        match dropped {
            0 => Ok(()),
            _ => Err(self.region.error(frame, io::Error::last_os_error())),
        }
    }

    /// Where the host reads and writes a frame.
    pub(super) fn host_frame(&self, frame: u32) -> Result<*mut u8, AccessError> {
        self.region.frame_of(&self.host, frame)
    }
}

/// A file of one page of zeros.
pub(super) fn page_file() -> Result<File, MemoryFileError> {
    memory_file(c"vmsrs-page", PAGE_SIZE.into(), HostPages::Standard, true)
}

#[cfg(test)]
mod tests {
    use crate::regions::tests::{VAULT, guest_byte, regions};

    #[test]
    fn wiped_and_renewed_frames_are_zeros() {
        let vault = regions().vault;
        let guest = vault.guest_mapping();
        for frame in 7..10 {
            vault.write(frame, &[9; 4096]).unwrap();
            assert_eq!(guest_byte(guest, frame, 4095), 9);
        }
        vault.wipe(7).unwrap();
        vault.renew(8).unwrap();
        for (frame, byte) in [(7, 0), (8, 0), (9, 9)] {
            let mut content = [1; 4096];
            vault.read(frame, &mut content).unwrap();
            assert_eq!(content, [byte; 4096], "frame {frame}");
            assert_eq!(guest_byte(guest, frame, 4095), byte, "frame {frame}");
        }
        vault.write(8, &[5; 4096]).unwrap();
        assert_eq!(guest_byte(guest, 8, 0), 5, "all show the new memory");
    }

    #[test]
    fn the_last_frame_can_be_written_and_none_after_it() {
        let vault = regions().vault;
        vault.write(VAULT - 1, &[1; 4096]).unwrap();
        assert!(vault.write(VAULT, &[1; 4096]).is_err());
        assert!(vault.copy(VAULT - 1, VAULT).is_err());
    }
}
