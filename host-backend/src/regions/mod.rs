//! Pool and vault: the two memory regions with the pages of domains.
//!
//! Each is a file in memory with a *guest-facing* mapping, which is what KVM maps into the guest. The
//! protection of that mapping is the second-level protection of the region and never changes: the guest
//! can write the whole pool ([`Pool`]) and nothing of the vault ([`Vault`]).
//!
//! The host reads the pool through that mapping, and reads and writes the vault through another one of its
//! own. All of these accesses are of [`crate::broken_memory`], so that memory that the hardware reports as
//! broken is an error and not a signal.

mod pool;
mod replace;
mod seal;
mod vault;

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion};
use vmsrs_protocol::{MAX_FRAMES, PAGE_SIZE};

use crate::broken_memory::{Broken, Pages};
use crate::engine::{Memory, NotCopied, Page, PoolCopy, Unreadable};
use crate::host_memory::{HostPages, MemoryFileError, memory_file, want_huge_pages};
use crate::size::Size;

pub use pool::Pool;
pub use vault::Vault;

/// Why the regions could not be made.
#[derive(Debug, Error)]
pub enum RegionsError {
    /// The size is not a number of frames.
    #[error("a window of {:#} is not possible: give a multiple of 4K below 4T", Size(*.0))]
    Size(u64),
    /// The file in memory could not be made.
    #[error("no memory for the {region}")]
    Create {
        /// The region.
        region: &'static str,
        /// What was refused.
        source: MemoryFileError,
    },
    /// The file could not be mapped.
    #[error("cannot map the {region}: there may not be enough address space")]
    Map {
        /// The region.
        region: &'static str,
        /// What was refused.
        source: MmapRegionError,
    },
    /// Accesses to broken memory could not be made errors.
    #[error("SIGBUS cannot be handled")]
    Handler(#[source] io::Error),
}

/// A frame cannot be read or written: the region does not have it, or its memory is broken.
#[derive(Debug, Error)]
#[error("frame {frame} of the {region} cannot be accessed")]
pub struct AccessError {
    region: &'static str,
    frame: u32,
    #[source]
    source: io::Error,
}

impl From<AccessError> for io::Error {
    fn from(error: AccessError) -> Self {
        error.source
    }
}

/// The number of frames in `size` bytes.
///
/// # Errors
///
/// Fails when `size` is not a multiple of [`PAGE_SIZE`], or has more frames than a region can have.
pub fn frames_of_size(size: u64) -> Result<u32, RegionsError> {
    let page = u64::from(PAGE_SIZE);
    match u32::try_from(size / page) {
        Ok(frames) if size.is_multiple_of(page) && (1..=MAX_FRAMES).contains(&frames) => Ok(frames),
        _ => Err(RegionsError::Size(size)),
    }
}

/// Pool and vault of a VM, as the engine uses them.
#[derive(Clone, Debug)]
pub struct Regions {
    /// The pool.
    pub pool: Arc<Pool>,
    /// The vault.
    pub vault: Arc<Vault>,
}

impl Regions {
    /// Makes the regions, all zeros. Standard pages are taken as frames are written, huge pages at once.
    ///
    /// # Errors
    ///
    /// Fails when the operating system refuses. With huge pages the numbers of frames must be multiples
    /// of what fits in one.
    pub fn new(
        pool_frames: u32,
        vault_frames: u32,
        pages: HostPages,
    ) -> Result<Self, RegionsError> {
        Ok(Self {
            pool: Arc::new(Pool::new(pool_frames, pages)?),
            vault: Arc::new(Vault::new(vault_frames, pages)?),
        })
    }

    fn vault_content(&self, frame: u32) -> Result<Page, Unreadable> {
        let mut content = [0; PAGE_SIZE as usize];
        self.read_vault(frame, &mut content)?;
        Ok(content)
    }
}

impl Memory for Regions {
    #[inline]
    fn seal(&mut self, copy: PoolCopy) -> Result<u64, NotCopied> {
        seal::seal(&self.pool, &self.vault, copy)
    }

    fn read_pool(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        self.pool.read(frame, content).map_err(unreadable)
    }

    fn read_vault(&self, frame: u32, content: &mut Page) -> Result<(), Unreadable> {
        self.vault.read(frame, content).map_err(unreadable)
    }

    fn checksum(&self, frame: u32) -> Result<u64, Unreadable> {
        self.vault.checksum(frame).map_err(unreadable)
    }

    fn copy(&mut self, from: u32, to: u32) -> Result<(), Unreadable> {
        self.vault.copy(from, to).map_err(unreadable)
    }

    fn replace(&mut self, frame: u32, from: Option<u32>) -> Result<(), Unreadable> {
        let content = match from {
            Some(from) => self.vault_content(from)?,
            None => [0; PAGE_SIZE as usize],
        };
        self.vault.replace(frame, &content).map_err(unreadable)
    }
}

fn unreadable(error: AccessError) -> Unreadable {
    Unreadable {
        frame: error.frame,
        source: error.source,
    }
}

/// A memory file and its guest-facing mapping.
#[derive(Debug)]
struct Region {
    name: &'static str,
    frames: u32,
    file: Arc<File>,
    pages: HostPages,
    guest: MmapRegion,
    access: Pages,
}

impl Region {
    /// Makes a region whose guest-facing mapping has the `protection`.
    fn new(
        name: &'static str,
        file_name: &CStr,
        frames: u32,
        pages: HostPages,
        protection: i32,
    ) -> Result<Self, RegionsError> {
        let size = u64::from(frames) * u64::from(PAGE_SIZE);
        let file =
            memory_file(file_name, size, pages, true).map_err(|source| RegionsError::Create {
                region: name,
                source,
            })?;
        let file = Arc::new(file);
        Ok(Self {
            name,
            frames,
            pages,
            guest: map(name, &file, size, protection)?,
            file,
            access: Pages::new().map_err(RegionsError::Handler)?,
        })
    }

    fn size(&self) -> u64 {
        u64::from(self.frames) * u64::from(PAGE_SIZE)
    }

    /// Where a frame is in a mapping of the region.
    fn frame_of(&self, mapping: &MmapRegion, frame: u32) -> Result<*mut u8, AccessError> {
        self.check(frame)?;
        // SAFETY: mappings are as long as the region, in which the frame lies.
        Ok(unsafe { mapping.as_ptr().add(frame as usize * PAGE_SIZE as usize) })
    }

    /// Copies a frame's content, as a mapping shows it.
    fn read(
        &self,
        mapping: &MmapRegion,
        frame: u32,
        content: &mut Page,
    ) -> Result<(), AccessError> {
        let from = self.frame_of(mapping, frame)?;
        // SAFETY: the frame is mapped, and `content` is a page of the caller's.
        unsafe { self.access.copy(content.as_mut_ptr(), from) }
            .map_err(|broken| self.broken(frame, broken))
    }

    fn check(&self, frame: u32) -> Result<(), AccessError> {
        if frame < self.frames {
            return Ok(());
        }
        Err(self.error(frame, io::ErrorKind::InvalidInput.into()))
    }

    fn broken(&self, frame: u32, broken: Broken) -> AccessError {
        self.error(frame, broken.into())
    }

    fn error(&self, frame: u32, source: io::Error) -> AccessError {
        AccessError {
            region: self.name,
            frame,
            source,
        }
    }
}

/// Maps the whole of a region's file.
fn map(
    region: &'static str,
    file: &Arc<File>,
    size: u64,
    protection: i32,
) -> Result<MmapRegion, RegionsError> {
    let length = usize::try_from(size).map_err(|_| RegionsError::Size(size))?;
    let mapping = MmapRegionBuilder::new(length)
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), 0))
        .with_mmap_prot(protection)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|source| RegionsError::Map { region, source })?;
    want_huge_pages(mapping.as_ptr(), length);
    Ok(mapping)
}

fn offset(frame: u32) -> u64 {
    u64::from(frame) * u64::from(PAGE_SIZE)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host_memory::{HUGE_PAGE, free_huge_pages};
    use std::os::fd::AsRawFd;
    use vmsrs_protocol::NONE;

    pub(crate) const POOL: u32 = 64;
    pub(crate) const VAULT: u32 = 256;

    pub(crate) fn regions() -> Regions {
        Regions::new(POOL, VAULT, HostPages::Standard).unwrap()
    }

    /// Whether a process with a guest-facing mapping can write to a frame: the kernel's own answer, from
    /// the protection of the mapping.
    pub(crate) fn kernel_lets_write(mapping: *mut u8, frame: u32) -> bool {
        let byte = 0u8;
        let mut pipe = [0; 2];
        // SAFETY: `pipe` has room for two descriptors.
        assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
        // SAFETY: `byte` is one readable byte.
        let sent = unsafe { libc::write(pipe[1], (&raw const byte).cast(), 1) };
        assert_eq!(sent, 1);
        // SAFETY: the address lies in the guest-facing mapping; no reference to its content
        // exists, and the kernel checks the protection.
        let got = unsafe {
            let address = mapping.add(frame as usize * PAGE_SIZE as usize);
            libc::read(pipe[0], address.cast(), 1)
        };
        for fd in pipe {
            // SAFETY: the descriptors were made above and are closed once.
            unsafe { libc::close(fd) };
        }
        got == 1
    }

    /// The checksum that a frame with this content has.
    pub(crate) fn checksum(content: &Page) -> u64 {
        // SAFETY: the page is the caller's.
        unsafe { Pages::new().unwrap().checksum(content.as_ptr()) }.unwrap()
    }

    /// A byte as the guest sees it.
    pub(crate) fn guest_byte(mapping: *mut u8, frame: u32, byte: usize) -> u8 {
        // SAFETY: the frame lies in the guest-facing mapping, which is readable, and there is no
        // reference to it.
        unsafe {
            mapping
                .add(frame as usize * PAGE_SIZE as usize + byte)
                .read_volatile()
        }
    }

    /// Takes the memory away that a mapping shows after so many frames: accesses there raise SIGBUS, as to
    /// broken memory.
    pub(crate) fn lose_after(mapping: &mut MmapRegion, frames: u32) {
        let size = mapping.size();
        let file = memory_file(c"test", size as u64, HostPages::Standard, false).unwrap();
        let mut content = vec![0; frames as usize * PAGE_SIZE as usize];
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the caller has the only reference to the mapping, into which no Rust object points; the
        // file's mapping takes its place, with a part of its content.
        unsafe {
            let start = mapping.as_ptr();
            start.copy_to(content.as_mut_ptr(), content.len());
            let mapped = libc::mmap(start.cast(), size, access, flags, file.as_raw_fd(), 0);
            assert_eq!(mapped, start.cast());
            start.copy_from(content.as_ptr(), content.len());
        }
        file.set_len(content.len() as u64).unwrap();
    }

    #[test]
    fn size_must_be_a_number_of_frames() {
        for size in [0, 1, 4095, 4097, (1 << 42) + 4096, 1 << 44, u64::MAX] {
            let result = frames_of_size(size);
            assert!(matches!(result, Err(RegionsError::Size(_))), "{size}");
        }
        assert_eq!(frames_of_size(1 << 42).unwrap(), MAX_FRAMES);
    }

    #[test]
    fn guest_writes_the_pool_and_nothing_of_the_vault() {
        let regions = regions();
        for frame in 0..POOL {
            assert!(kernel_lets_write(regions.pool.guest_mapping(), frame));
        }
        for frame in 0..VAULT {
            assert!(!kernel_lets_write(regions.vault.guest_mapping(), frame));
        }
    }

    #[test]
    fn frames_outside_of_the_regions_are_refused() {
        let mut regions = regions();
        let mut content = [0; 4096];
        for frame in [VAULT, NONE] {
            assert!(regions.vault.wipe(frame).is_err());
            assert!(regions.read_vault(frame, &mut content).is_err());
            assert!(regions.read_pool(frame, &mut content).is_err());
            assert!(regions.checksum(frame).is_err());
            assert!(regions.copy(frame, 1).is_err());
            assert!(regions.copy(1, frame).is_err());
            assert!(regions.replace(frame, None).is_err());
        }
        assert!(regions.read_pool(POOL, &mut content).is_err());
    }

    #[test]
    fn vault_frames_can_be_copied_and_replaced() {
        let mut regions = regions();
        let guest = regions.vault.guest_mapping();
        regions.vault.write(3, &[7; 4096]).unwrap();
        regions.copy(3, 5).unwrap();
        assert_eq!(regions.checksum(3).unwrap(), checksum(&[7; 4096]));
        assert_eq!(regions.checksum(5).unwrap(), checksum(&[7; 4096]));
        regions.replace(4, Some(5)).unwrap();
        assert_eq!(guest_byte(guest, 4, 9), 7);
        assert!(!kernel_lets_write(guest, 4));
        regions.replace(4, None).unwrap();
        assert_eq!(regions.checksum(4).unwrap(), checksum(&[0; 4096]));
        assert_eq!(guest_byte(guest, 4, 9), 0);
    }

    #[test]
    fn reserved_huge_pages_work_as_others_do() {
        const FRAMES: u32 = (HUGE_PAGE / PAGE_SIZE as u64) as u32;
        if free_huge_pages().unwrap_or(0) < 3 {
            eprintln!("skipped: this machine has no 3 huge pages free");
            return;
        }
        let mut regions = Regions::new(FRAMES, 2 * FRAMES, HostPages::Huge).unwrap();
        let (pool, vault) = (regions.pool.clone(), regions.vault.clone());
        assert!(kernel_lets_write(pool.guest_mapping(), 1));
        assert!(!kernel_lets_write(vault.guest_mapping(), FRAMES));
        // SAFETY: frame 5 of the guest-facing mapping is writable, and there is no reference to it.
        unsafe { pool.guest_mapping().add(5 * 4096).write_bytes(7, 4096) };
        let copy = PoolCopy {
            pool_frame: 5,
            vault_frame: FRAMES,
        };
        let sum = checksum(&[7; 4096]);
        assert_eq!(regions.seal(copy).unwrap(), sum);
        regions.copy(FRAMES, 1).unwrap();
        assert_eq!(regions.checksum(1).unwrap(), sum);
        vault.wipe(FRAMES).unwrap();
        assert_eq!(guest_byte(vault.guest_mapping(), FRAMES, 9), 0);
        assert!(regions.replace(1, None).is_err());
        assert_eq!(guest_byte(vault.guest_mapping(), 1, 9), 7);
        pool.renew().unwrap();
        assert_eq!(guest_byte(pool.guest_mapping(), 5, 9), 0);
    }
}
