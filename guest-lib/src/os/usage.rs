//! What the process has open: descriptors, and memory that it has mapped for itself, by any allocator.
//!
//! The kernel's own counts, which a damaged heap cannot falsify, and for which no lock of the C library is taken. Nothing
//! here allocates, and no call is one that acts on a cancellation of the thread.

use super::region;
use std::ffi::CStr;

/// More descriptors are not counted where the kernel does not say their number (before Linux 6.2).
const LISTED_MAX: u32 = 4096;

/// What the process has open at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) descriptors: u32,
    /// Bytes of private writable memory, without the library's own.
    pub(crate) memory: u64,
    pub(crate) threads: u32,
}

/// A descriptor of this module, for the time of one call.
struct Opened(libc::c_int);

impl Opened {
    fn new(path: &CStr, flags: libc::c_int) -> Option<Self> {
        let flags = flags | libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: a path; makes a descriptor.
        let fd = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags) };
        libc::c_int::try_from(fd)
            .ok()
            .filter(|&fd| fd >= 0)
            .map(Self)
    }

    fn stat(&self) -> Option<libc::stat> {
        // SAFETY: all zero is a stat.
        let mut stat = unsafe { std::mem::zeroed::<libc::stat>() };
        // The C library's function asks by a path, which takes longer.
        // SAFETY: writes the stat.
        let found = unsafe { libc::syscall(libc::SYS_fstat, self.0, &raw mut stat) };
        (found == 0).then_some(stat)
    }

    /// Entries of a folder, unless they are too many.
    fn entries(&self) -> Option<u32> {
        const LENGTH: usize = 16;
        let mut entries = 0;
        loop {
            let mut buffer = [0_u64; 256];
            // SAFETY: fills the buffer.
            let bytes = unsafe {
                libc::syscall(
                    libc::SYS_getdents64,
                    self.0,
                    buffer.as_mut_ptr(),
                    size_of_val(&buffer),
                )
            };
            let bytes = usize::try_from(bytes).ok()?;
            if bytes == 0 {
                return Some(entries);
            }
            let mut from = 0;
            while from < bytes {
                // SAFETY: an entry of the kernel's begins there; its length is behind two words.
                let length = unsafe {
                    let entry = buffer.as_ptr().cast::<u8>().add(from + LENGTH);
                    entry.cast::<u16>().read()
                };
                from += usize::from(length.max(1));
                entries += 1;
            }
            if entries > LISTED_MAX {
                return None;
            }
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: made in new().
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}

impl Usage {
    /// From `/proc`, which takes some 40,000 instructions. `None` where the kernel does not tell.
    pub(crate) fn from_proc() -> Option<Self> {
        Some(Self {
            descriptors: descriptors()?,
            memory: without_own(memory()?),
            threads: threads()?,
        })
    }
}

fn descriptors() -> Option<u32> {
    let folder = Opened::new(c"/proc/self/fd", libc::O_DIRECTORY)?;
    let listed = match u32::try_from(folder.stat()?.st_size).ok()? {
        // Before Linux 6.2; two entries are not descriptors.
        0 => folder.entries()?.saturating_sub(2),
        told => told,
    };
    // Without the folder itself.
    Some(listed.saturating_sub(1))
}

fn memory() -> Option<u64> {
    /// Of the numbers in `statm`, all pages of private writable memory.
    const DATA: usize = 5;
    let file = Opened::new(c"/proc/self/statm", 0)?;
    let mut text = [0_u8; 128];
    // SAFETY: fills the buffer.
    let length = unsafe { libc::syscall(libc::SYS_read, file.0, text.as_mut_ptr(), text.len()) };
    let text = text.get(..usize::try_from(length).ok()?)?;
    let pages: u64 = std::str::from_utf8(text)
        .ok()?
        .split_ascii_whitespace()
        .nth(DATA)?
        .parse()
        .ok()?;
    Some(pages * 4096)
}

/// The process's memory without that of the library.
pub(crate) fn without_own(memory: u64) -> u64 {
    memory.saturating_sub(region::mapped())
}

fn threads() -> Option<u32> {
    let folder = Opened::new(c"/proc/self/task", libc::O_DIRECTORY)?;
    // Itself, its parent, and one for each.
    u32::try_from(folder.stat()?.st_nlink).ok()?.checked_sub(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::region::Region;
    use std::fs::File;

    // Other tests run in the same process: only large changes say something.

    #[test]
    fn open_files_are_counted_both_ways() {
        const FILES: u32 = 300;
        let by_list = || {
            let folder = Opened::new(c"/proc/self/fd", libc::O_DIRECTORY).unwrap();
            folder.entries().unwrap() - 3
        };
        let before = (descriptors().unwrap(), by_list());
        let files: Vec<File> = (0..FILES)
            .map(|_| File::open("/dev/null").unwrap())
            .collect();
        let after = (descriptors().unwrap(), by_list());
        drop(files);
        for (before, after) in [(before.0, after.0), (before.1, after.1)] {
            assert!(
                (FILES / 2..FILES * 2).contains(&(after.wrapping_sub(before))),
                "{before} {after}"
            );
        }
    }

    #[test]
    fn memory_is_counted_without_the_librarys_own() {
        const BYTES: usize = 1 << 30;
        let before = without_own(memory().unwrap());
        let region = Region::new(BYTES).unwrap();
        let with_region = without_own(memory().unwrap());
        drop(region);
        assert!(with_region.abs_diff(before) < BYTES as u64 / 2);
        // What nobody looks at is not allocated in optimised builds.
        let block = std::hint::black_box(Vec::<u8>::with_capacity(BYTES));
        let with_block = without_own(memory().unwrap());
        drop(block);
        assert!(with_block - before > BYTES as u64 / 2);
    }
}
