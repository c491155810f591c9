//! The window: the memory that holds all tagged pages.
//!
//! It is a file in memory. Its one mapping, *guest-facing*, is what KVM maps into the guest; the
//! protection of that mapping is the second-level protection, and no frame is writable there until
//! it is granted. The host itself reads and writes the file: that needs no permission of the
//! mapping, the guest has no way to it, and memory that the hardware reports as broken is an error
//! of the call there, where a mapping would raise a signal.

mod protection;
mod replace;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion};
use vmsrs_protocol::{FrameRun, NONE, PAGE_SIZE};

use crate::engine::{ConfigError, EngineConfig};

pub use protection::MprotectProtection;

/// Why the window could not be made.
#[derive(Debug, Error)]
pub enum WindowError {
    /// The size is not a number of frames.
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
        /// The system's error.
        source: io::Error,
    },
    /// The file could not be mapped.
    #[error("cannot map the window: there may not be enough address space")]
    Map(#[from] MmapRegionError),
}

/// Frames cannot be read or written: the window does not have them, or their memory is broken.
#[derive(Debug, Error)]
#[error("frames {start}+{count} of the window cannot be accessed")]
pub struct AccessError {
    start: u32,
    count: u32,
    #[source]
    source: io::Error,
}

/// The window's memory.
#[derive(Debug)]
pub struct Window {
    frames: u32,
    file: Arc<File>,
    guest: MmapRegion,
}

impl Window {
    /// Makes a window of `size` bytes, all zeros and nowhere writable by the guest, with the one
    /// value that can change that. Memory is used as frames are written.
    ///
    /// # Errors
    ///
    /// Fails when `size` is not a multiple of [`PAGE_SIZE`], too small or too large for the engine
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
    /// Fails when `size` is not a multiple of [`PAGE_SIZE`] or has more frames than there are numbers.
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
        let length = usize::try_from(size).map_err(|_| WindowError::Size(size))?;
        let guest = MmapRegionBuilder::new(length)
            .with_file_offset(FileOffset::from_arc(Arc::clone(&file), 0))
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .build()?;
        let window = Arc::new(Self {
            frames,
            file,
            guest,
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

    /// Fills frames with zeros. A frame whose memory is broken gets new memory.
    ///
    /// Plain writes, rather than a hole in the file: that would take the pages out of the mapping and
    /// make the next use of each fault twice.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have these frames, or the system has no memory for them.
    pub fn wipe(&self, run: FrameRun) -> Result<(), AccessError> {
        self.check(run)?;
        for frame in run.start..run.start + run.count {
            if self.write(frame, &[0; PAGE_SIZE as usize]).is_err() {
                self.renew(frame)?;
            }
        }
        Ok(())
    }

    /// Copies a frame's content. The guest may be writing to it at the same time.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have this frame, or its memory is broken.
    pub fn read(
        &self,
        frame: u32,
        content: &mut [u8; PAGE_SIZE as usize],
    ) -> Result<(), AccessError> {
        self.file
            .read_exact_at(content, offset(frame))
            .map_err(|source| access(frame, source))
    }

    /// Overwrites a frame's content.
    ///
    /// # Errors
    ///
    /// As [`Window::read`].
    pub fn write(&self, frame: u32, content: &[u8; PAGE_SIZE as usize]) -> Result<(), AccessError> {
        self.check(single(frame))?;
        self.file
            .write_all_at(content, offset(frame))
            .map_err(|source| access(frame, source))
    }

    /// Returns a frame's memory to the system: the frame has other memory then, all
    /// zeros.
    ///
    /// # Errors
    ///
    /// Fails when the window does not have this frame, or the system refuses.
    pub fn renew(&self, frame: u32) -> Result<(), AccessError> {
        self.punch(frame)?;
        let page = PAGE_SIZE as usize;
        // The hole takes whole pages out of mappings, but leaves the marks of broken ones there.
        // SAFETY: the frame lies in the guest-facing mapping, of which no Rust object is a part; what
        // it shows is the file's content as before.
        let dropped = unsafe {
            let start = self.guest.as_ptr().add(frame as usize * page);
            libc::madvise(start.cast(), page, libc::MADV_DONTNEED)
        };
        match dropped {
            0 => Ok(()),
            _ => Err(access(frame, io::Error::last_os_error())),
        }
    }

    /// Takes the page of a frame out of the file.
    fn punch(&self, frame: u32) -> Result<(), AccessError> {
        self.check(single(frame))?;
        // SAFETY: the descriptor is open, and the frame lies inside the file.
        let punched = unsafe {
            libc::fallocate(
                self.file.as_raw_fd(),
                libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
                // Windows are smaller than 2^44 bytes.
                offset(frame) as libc::off_t,
                libc::off_t::from(PAGE_SIZE),
            )
        };
        match punched {
            0 => Ok(()),
            _ => Err(access(frame, io::Error::last_os_error())),
        }
    }

    /// Which frame lies at an address of the guest-facing mapping.
    pub fn frame_at(&self, address: usize) -> Option<u32> {
        let offset = address.checked_sub(self.guest.as_ptr() as usize)?;
        let frame = u32::try_from(offset / PAGE_SIZE as usize).ok()?;
        (frame < self.frames).then_some(frame)
    }

    fn check(&self, run: FrameRun) -> Result<(), AccessError> {
        match run.start.checked_add(run.count) {
            Some(end) if end <= self.frames => Ok(()),
            _ => Err(AccessError {
                start: run.start,
                count: run.count,
                source: io::ErrorKind::InvalidInput.into(),
            }),
        }
    }
}

fn offset(frame: u32) -> u64 {
    u64::from(frame) * u64::from(PAGE_SIZE)
}

fn single(frame: u32) -> FrameRun {
    FrameRun {
        start: frame,
        count: 1,
    }
}

fn access(frame: u32, source: io::Error) -> AccessError {
    AccessError {
        start: frame,
        count: 1,
        source,
    }
}

impl From<AccessError> for io::Error {
    fn from(error: AccessError) -> Self {
        error.source
    }
}

/// Makes a file in memory whose size cannot change, so that no access to a mapping of it can
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
    // SAFETY: the descriptor is open, it was made above, and has no other owner.
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
    use crate::engine::{Content, Inspect, Protection, checksum};

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
    fn size_must_be_a_number_of_frames() {
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
    fn what_the_guest_writes_is_seen_and_wiped_through_the_file() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        protection.unprotect(run(7, 1)).unwrap();
        // SAFETY: frame 7 of the guest-facing mapping is writable, and there is no reference to it.
        unsafe { window.guest_mapping().add(7 * 4096 + 100).write_volatile(9) };
        protection.protect(run(7, 1)).unwrap();
        let mut content = [0; PAGE_SIZE as usize];
        protection.read(7, &mut content);
        assert_eq!(content.iter().position(|&byte| byte == 9), Some(100));
        window.wipe(run(7, 1)).unwrap();
        protection.read(7, &mut content);
        assert_eq!(content, [0; PAGE_SIZE as usize]);
    }

    #[test]
    fn protected_frame_can_be_copied_and_replaced() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        window.write(3, &[7; 4096]).unwrap();
        protection.copy(3, 5).unwrap();
        assert_eq!(protection.checksum(3).unwrap(), checksum(&[7; 4096]));
        assert_eq!(protection.checksum(5).unwrap(), checksum(&[7; 4096]));
        protection.replace(4, Some(5)).unwrap();
        // SAFETY: frame 4 of the guest-facing mapping is readable, and there is no reference to it.
        let seen = unsafe { window.guest_mapping().add(4 * 4096 + 9).read_volatile() };
        assert_eq!(seen, 7);
        assert!(!kernel_lets_write(&window, 4));
        protection.replace(4, None).unwrap();
        assert_eq!(protection.checksum(4).unwrap(), checksum(&[0; 4096]));
        assert_eq!(
            window.frame_at(window.guest_mapping() as usize + 4097),
            Some(1)
        );
        assert_eq!(window.frame_at(window.guest_mapping() as usize - 1), None);
    }

    #[test]
    fn replacing_a_frame_is_atomic_for_readers() {
        let (window, mut protection) = Window::with_frames(FRAMES).unwrap();
        for frame in [3, 5] {
            window.write(frame, &[7; 4096]).unwrap();
        }
        let done = std::sync::atomic::AtomicBool::new(false);
        let ordering = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0u64;
                // A panic or a signal shows what was seen between.
                while !done.load(ordering) || reads == 0 {
                    // SAFETY: frame 3 of the guest-facing mapping is readable at any moment, which is
                    // what is tested, and there is no reference to it.
                    let seen = unsafe { window.guest_mapping().add(3 * 4096 + 9).read_volatile() };
                    assert_eq!(seen, 7);
                    reads += 1;
                }
            });
            for _ in 0..2000 {
                protection.replace(3, Some(5)).unwrap();
            }
            done.store(true, ordering);
            reader.join().unwrap();
        });
        assert!(!kernel_lets_write(&window, 3));
        protection.unprotect(run(3, 1)).unwrap();
        // SAFETY: frame 3 is writable now, and there is no reference to it.
        unsafe { window.guest_mapping().add(3 * 4096).write_volatile(8) };
        let mut content = [0; PAGE_SIZE as usize];
        window.read(3, &mut content).unwrap();
        assert_eq!(content[..2], [8, 7], "the mapping shows the file again");
    }

    #[test]
    fn failed_replacement_leaves_the_frame_readable() {
        let (window, protection) = Window::with_frames(FRAMES).unwrap();
        drop(protection);
        let mut window = Arc::into_inner(window).unwrap();
        window.write(3, &[7; 4096]).unwrap();
        // Neither a hole nor a write is possible through this descriptor.
        let path = format!("/proc/self/fd/{}", window.file.as_raw_fd());
        window.file = Arc::new(File::open(path).unwrap());
        let window = Arc::new(window);
        let mut protection = MprotectProtection::new(window.clone());
        for (frame, from, expected) in [(3, Some(4), 7), (0, None, 0)] {
            assert!(protection.replace(frame, from).is_err());
            // SAFETY: the frame is readable for the guest, and there is no reference to it.
            let seen = unsafe {
                let byte = window.guest_mapping().add(frame as usize * 4096);
                byte.read_volatile()
            };
            assert_eq!(seen, expected, "frame {frame}");
        }
    }
}
