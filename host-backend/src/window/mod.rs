//! The window: the memory that holds all tagged pages.
//!
//! It is a file in memory that is mapped twice. The *guest-facing* mapping is what KVM maps into
//! the guest; its protection is the second-level protection, and no frame is writable there until
//! it is granted. The *host's own* mapping is always readable and writable and is what the cleanser
//! wipes through; the guest has no way to it.

mod protection;

use std::fs::File;
use std::io;
use std::os::fd::FromRawFd;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory, VolatileMemoryError};
use vmsrs_protocol::{FrameRun, NONE, PAGE_SIZE};

use crate::engine::{ConfigError, EngineConfig};

pub use protection::MprotectProtection;

/// Why there is no window.
#[derive(Debug, Error)]
pub enum WindowError {
    /// The size is no number of frames.
    #[error("a window of {0} bytes is not possible: give a multiple of 4 KiB below 16 TiB")]
    Size(u64),
    /// The engine cannot work with a window of this size.
    #[error(transparent)]
    Limits(#[from] ConfigError),
    /// The file in memory could not be made.
    #[error("cannot create a memory file of {size} bytes for the window")]
    Create {
        /// Size in bytes.
        size: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("cannot map the window: is less address space available than asked for?")]
    Map(#[from] MmapRegionError),
}

/// A frame that the window does not have was to be read or wiped.
#[derive(Debug, Error)]
#[error("frames {start}+{count} are outside the window")]
pub struct OutsideWindow {
    start: u32,
    count: u32,
    #[source]
    source: VolatileMemoryError,
}

/// The window's memory.
#[derive(Debug)]
pub struct Window {
    frames: u32,
    guest: MmapRegion,
    host: MmapRegion,
}

impl Window {
    /// Makes a window of `size` bytes, all zeros and nowhere writable by the guest, with the one
    /// value that can change that. Memory is used as frames are written.
    ///
    /// # Errors
    ///
    /// Fails when `size` is no multiple of [`PAGE_SIZE`], too small or too large for the engine
    /// ([`EngineConfig::for_window`]), or when the operating system refuses.
    pub fn new(size: u64) -> Result<(Arc<Self>, MprotectProtection), WindowError> {
        let frames = Self::frames_of_size(size)?;
        EngineConfig::for_window(frames).page_frames()?;
        Self::with_frames(frames)
    }

    /// The number of frames in a window of `size` bytes.
    ///
    /// # Errors
    ///
    /// Fails when `size` is no multiple of [`PAGE_SIZE`] or has more frames than there are numbers.
    pub fn frames_of_size(size: u64) -> Result<u32, WindowError> {
        let page = u64::from(PAGE_SIZE);
        match u32::try_from(size / page) {
            Ok(frames) if size.is_multiple_of(page) && frames != 0 && frames != NONE => Ok(frames),
            _ => Err(WindowError::Size(size)),
        }
    }

    fn with_frames(frames: u32) -> Result<(Arc<Self>, MprotectProtection), WindowError> {
        let size = u64::from(frames) * u64::from(PAGE_SIZE);
        let file = memory_file(size).map_err(|source| WindowError::Create { size, source })?;
        let file = Arc::new(file);
        let map = |protection| -> Result<MmapRegion, WindowError> {
            let length = usize::try_from(size).map_err(|_| WindowError::Size(size))?;
            Ok(MmapRegionBuilder::new(length)
                .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
                .with_mmap_prot(protection)
                .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                .build()?)
        };
        let window = Arc::new(Self {
            frames,
            guest: map(libc::PROT_READ)?,
            host: map(libc::PROT_READ | libc::PROT_WRITE)?,
        });
        let protection = MprotectProtection::new(Arc::clone(&window));
        Ok((window, protection))
    }

    /// Number of frames.
    pub fn frames(&self) -> u32 {
        self.frames
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        u64::from(self.frames) * u64::from(PAGE_SIZE)
    }

    /// Address of the guest-facing mapping in this process, for the memory slot given to KVM. It
    /// stays valid as long as the window lives. Nothing in this process may write through it.
    pub fn guest_mapping(&self) -> *mut u8 {
        self.guest.as_ptr()
    }

    /// Fills frames with zeros through the host's own mapping.
    ///
    /// Plain stores, rather than a hole in the file: that would take the pages out of both mappings
    /// and make the next use of each fault twice.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have these frames.
    pub fn wipe(&self, run: FrameRun) -> Result<(), OutsideWindow> {
        const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        let slice = self.slice(run)?;
        for offset in (0..slice.len()).step_by(ZEROS.len()) {
            let page = slice
                .offset(offset)
                .map_err(|source| outside(run, source))?;
            page.copy_from(&ZEROS);
        }
        Ok(())
    }

    /// Copies a frame's content. The guest may be writing to it at the same time.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have this frame.
    pub fn read(
        &self,
        frame: u32,
        content: &mut [u8; PAGE_SIZE as usize],
    ) -> Result<(), OutsideWindow> {
        let run = FrameRun {
            start: frame,
            count: 1,
        };
        self.slice(run)?.copy_to(&mut content[..]);
        Ok(())
    }

    fn slice(&self, run: FrameRun) -> Result<vm_memory::VolatileSlice<'_>, OutsideWindow> {
        let page = PAGE_SIZE as usize;
        // `usize` has 64 bits here, and frames have 32.
        self.host
            .get_slice(run.start as usize * page, run.count as usize * page)
            .map_err(|source| outside(run, source))
    }
}

fn outside(run: FrameRun, source: VolatileMemoryError) -> OutsideWindow {
    OutsideWindow {
        start: run.start,
        count: run.count,
        source,
    }
}

/// Makes a file in memory whose size nobody can change, so that no access to a mapping of it can
/// ever raise SIGBUS for want of file.
fn memory_file(size: u64) -> io::Result<File> {
    // SAFETY: the name is a string that ends with a zero byte; the call has no other effect on
    // memory.
    let fd = unsafe {
        libc::memfd_create(
            c"vmsrs-window".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, it was made above, and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: `fd` is open, and F_ADD_SEALS takes an integer.
    if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Inspect, Protection};

    const FRAMES: u32 = 256;

    fn run(start: u32, count: u32) -> FrameRun {
        FrameRun { start, count }
    }

    /// Whether a process with the guest-facing mapping can write to a frame: the kernel's own
    /// answer, from the protection of the mapping.
    fn kernel_lets_write(window: &Window, frame: u32) -> bool {
        let offset = frame as usize * PAGE_SIZE as usize;
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
            let address = window.guest_mapping().add(offset);
            libc::read(pipe[0], address.cast(), 1)
        };
        for fd in pipe {
            // SAFETY: the descriptors were made above and are closed once.
            unsafe { libc::close(fd) };
        }
        got == 1
    }

    #[test]
    fn a_size_that_is_no_number_of_frames_is_refused() {
        for size in [0, 1, 4095, 4097, u64::from(NONE) << 12, 1 << 44, u64::MAX] {
            let result = Window::new(size);
            assert!(matches!(result, Err(WindowError::Size(_))), "{size}");
        }
        assert!(matches!(Window::new(4096), Err(WindowError::Limits(_))));
    }

    #[test]
    fn only_granted_frames_are_writable_by_the_guest() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        assert!(!kernel_lets_write(&window, 0));
        protection.unprotect(run(10, 5)).unwrap();
        protection.protect(run(12, 1)).unwrap();
        for frame in 8..17 {
            let expected = matches!(frame, 10 | 11 | 13 | 14);
            assert_eq!(protection.is_writable(frame), expected, "frame {frame}");
            assert_eq!(kernel_lets_write(&window, frame), expected, "frame {frame}");
        }
    }

    #[test]
    fn frames_outside_the_window_are_refused() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        for run in [run(FRAMES, 1), run(FRAMES - 1, 2), run(u32::MAX, u32::MAX)] {
            assert!(protection.unprotect(run).is_err());
            assert!(protection.protect(run).is_err());
            assert!(window.wipe(run).is_err());
        }
        assert!(!protection.is_writable(FRAMES));
        assert!(window.read(FRAMES, &mut [0; 4096]).is_err());
    }

    #[test]
    fn what_the_guest_writes_is_seen_and_wiped_through_the_host_mapping() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        protection.unprotect(run(7, 1)).unwrap();
        // SAFETY: frame 7 of the guest-facing mapping is writable, and nobody has a reference.
        unsafe { window.guest_mapping().add(7 * 4096 + 100).write_volatile(9) };
        protection.protect(run(7, 1)).unwrap();
        let mut content = [0; PAGE_SIZE as usize];
        protection.read(7, &mut content);
        assert_eq!(content.iter().position(|&byte| byte == 9), Some(100));
        window.wipe(run(7, 1)).unwrap();
        protection.read(7, &mut content);
        assert_eq!(content, [0; PAGE_SIZE as usize]);
    }
}
