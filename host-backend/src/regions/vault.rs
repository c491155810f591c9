//! The vault: memory that the guest reads and only the host writes, for what is sealed.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

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
    /// Where the host writes the frames. Files are read into it: a frame with broken memory is an error
    /// then. (The file itself cannot be written if it has [`HostPages::Huge`].)
    host: MmapRegion,
    /// A page of zeros.
    zeros: File,
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
        let zeros = page_file().map_err(|source| RegionsError::Create {
            region: region.name,
            source,
        })?;
        Ok(Self {
            region,
            host,
            zeros,
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
        self.region.read(frame, content)
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
        match self.fill(frame, &self.zeros, 0) {
            Ok(()) => Ok(()),
            Err(_) => self.renew(frame),
        }
    }

    /// Overwrites a frame with the content of another.
    pub(super) fn copy(&self, from: u32, to: u32) -> Result<(), AccessError> {
        self.region.check(from)?;
        self.fill(to, &self.region.file, offset(from))
    }

    /// Overwrites a frame with a page of a file.
    pub(super) fn fill(&self, frame: u32, file: &File, offset: u64) -> Result<(), AccessError> {
        let to = self.host_frame(frame)?;
        let page = PAGE_SIZE as usize;
        loop {
            // SAFETY: the frame lies in the host's mapping, of which no Rust object is a part: what it
            // holds is copied out by the kernel, or read after this by the frame's user.
            // Offsets in memory files are smaller than 2^63.
            let read = unsafe { libc::pread(file.as_raw_fd(), to.cast(), page, offset as _) };
            let error = match read {
                read if read == page as isize => return Ok(()),
                0.. => io::ErrorKind::UnexpectedEof.into(),
                _ => io::Error::last_os_error(),
            };
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(self.region.error(frame, error));
            }
        }
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

    /// Where the host writes a frame.
    pub(super) fn host_frame(&self, frame: u32) -> Result<*mut u8, AccessError> {
        self.region.check(frame)?;
        // SAFETY: the mapping is as long as the region, in which the frame lies.
        Ok(unsafe { self.host.as_ptr().add(frame as usize * PAGE_SIZE as usize) })
    }

    /// Overwrites a frame's content.
    #[cfg(test)]
    pub(crate) fn write(&self, frame: u32, content: &Page) -> Result<(), AccessError> {
        use std::os::unix::fs::FileExt;
        let file = page_file().unwrap();
        file.write_all_at(content, 0).unwrap();
        self.fill(frame, &file, 0)
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
