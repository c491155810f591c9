//! Files in memory: what the guest's RAM, the pool and the vault are made of.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};

use thiserror::Error;

use crate::size::Size;

/// Size of a huge page in bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// Where the kernel keeps its numbers of huge pages of [`HUGE_PAGE`] bytes.
pub(crate) const HUGE_PAGE_FOLDER: &str = "sys/kernel/mm/hugepages/hugepages-2048kB";

/// Which pages of the host a memory file has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HostPages {
    /// 4 KiB, and transparent huge pages where the host allows them for files in memory.
    #[default]
    Standard,
    /// Huge pages of 2 MiB, reserved by the operator (hugetlbfs). All of them are taken at once.
    Huge,
}

impl HostPages {
    /// Sizes of memory files are multiples of so many bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Standard => 4096,
            Self::Huge => HUGE_PAGE,
        }
    }
}

/// Why a memory file could not be made.
#[derive(Debug, Error)]
pub enum MemoryFileError {
    /// The system refused.
    #[error("cannot create a memory file of {}", Size(*.size))]
    Create {
        /// Size in bytes.
        size: u64,
        /// The system's error.
        source: io::Error,
    },
    /// There are too few huge pages.
    #[error(
        "cannot take {} in huge pages: {needed} of 2M are needed and {free} are free; reserve more \
         with `sudo sysctl vm.nr_hugepages=NUMBER`, or run without --hugepages",
        Size(*.needed * HUGE_PAGE)
    )]
    HugePages {
        /// Huge pages that the file needs.
        needed: u64,
        /// Huge pages that are free.
        free: u64,
        /// The system's error.
        source: io::Error,
    },
}

/// Makes a file in memory of `size` bytes, all zeros. Its size cannot change if it is `sealed`, so that
/// no access to a mapping of it can raise SIGBUS for want of file.
///
/// # Errors
///
/// Fails when the system refuses, or has too few huge pages.
pub(crate) fn memory_file(
    name: &CStr,
    size: u64,
    pages: HostPages,
    sealed: bool,
) -> Result<File, MemoryFileError> {
    let failed = |source| match pages {
        HostPages::Standard => MemoryFileError::Create { size, source },
        HostPages::Huge => MemoryFileError::HugePages {
            needed: size.div_ceil(HUGE_PAGE),
            free: free_huge_pages().unwrap_or(0),
            source,
        },
    };
    create(name, size, pages, sealed).map_err(failed)
}

fn create(name: &CStr, size: u64, pages: HostPages, sealed: bool) -> io::Result<File> {
    let kind = match pages {
        HostPages::Standard => 0,
        HostPages::Huge => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | kind;
    // SAFETY: the name is a string that ends with a zero byte; the call has no other effect on
    // memory.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open, it was made above, and has no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    take_pages(&file, size, pages)?;
    if sealed {
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: `fd` is open, and F_ADD_SEALS takes an integer.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(file)
}

/// Takes the huge pages of a file, so that no access can fail for want of one. Other pages are taken as
/// they are used.
pub(crate) fn take_pages(file: &File, size: u64, pages: HostPages) -> io::Result<()> {
    match pages {
        HostPages::Standard => Ok(()),
        HostPages::Huge => allocate(file, 0, 0, size),
    }
}

/// Takes pages out of a file: it has zeros there, and other memory when they are used again.
pub(crate) fn punch(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    allocate(file, mode, offset, length)
}

fn allocate(file: &File, mode: i32, offset: u64, length: u64) -> io::Result<()> {
    // Memory files are smaller than 2^63 bytes.
    let (offset, length) = (offset as libc::off_t, length as libc::off_t);
    // SAFETY: the descriptor is open; the call changes the file and no memory of Rust.
    match unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks for transparent huge pages in a mapping. A host that has none for files in memory ignores it.
pub(crate) fn want_huge_pages(start: *mut u8, length: usize) {
    // SAFETY: the advice changes which pages back the mapping, not what it shows; for addresses that are
    // not mapped the call fails.
    let _ = unsafe { libc::madvise(start.cast(), length, libc::MADV_HUGEPAGE) };
}

/// Huge pages that are neither used nor reserved, if the kernel has any.
pub fn free_huge_pages() -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(format!("/{HUGE_PAGE_FOLDER}/{name}")).ok()?;
        text.trim().parse().ok()
    };
    Some(number("free_hugepages")?.saturating_sub(number("resv_hugepages")?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_sealed_file_keeps_its_size() {
        let file = memory_file(c"test", 8192, HostPages::Standard, true).unwrap();
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(16384).is_err());
        let file = memory_file(c"test", 8192, HostPages::Standard, false).unwrap();
        file.set_len(4096).unwrap();
    }

    #[test]
    fn a_hole_reads_as_zeros() {
        let file = memory_file(c"test", 8192, HostPages::Standard, true).unwrap();
        file.write_all_at(&[7; 8192], 0).unwrap();
        punch(&file, 4096, 4096).unwrap();
        let mut content = [1; 8192];
        file.read_exact_at(&mut content, 0).unwrap();
        assert_eq!((content[4095], content[4096], content[8191]), (7, 0, 0));
    }

    #[test]
    fn too_few_huge_pages_are_said_with_their_number() {
        // More than any machine has.
        let result = memory_file(c"test", 1 << 50, HostPages::Huge, true);
        let text = result.unwrap_err().to_string();
        assert!(text.contains("536870912 of 2M are needed"), "{text}");
        assert!(text.contains("vm.nr_hugepages"), "{text}");
    }
}
