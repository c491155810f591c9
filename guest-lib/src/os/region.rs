//! Anonymous memory between two guards.

use super::sanitizer;
use crate::error::Error;
use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of each guard, unless more is asked for below.
const GUARD: usize = 64 * 1024;

/// Bytes of all of them.
static MAPPED: AtomicU64 = AtomicU64::new(0);

/// Bytes of the library's own memory, without guards.
pub(super) fn mapped() -> u64 {
    MAPPED.load(Ordering::Relaxed)
}

/// Private zeroed memory with an inaccessible guard below and above; given back when dropped.
#[derive(Debug)]
pub(crate) struct Region {
    low: NonNull<u8>,
    size: usize,
    /// Bytes of the guard below.
    guard: usize,
}

// SAFETY: the memory is nobody else's; the region owns it.
unsafe impl Send for Region {}

impl Region {
    /// Maps `size` bytes, rounded up to whole pages.
    ///
    /// # Errors
    ///
    /// [`Error::System`] when the kernel has no memory or no more mappings.
    pub(crate) fn new(size: usize) -> Result<Self, Error> {
        Self::above_guard(size, GUARD)
    }

    /// Like [`Region::new`], with `guard` bytes below, whole pages. A guard takes addresses, but no
    /// memory.
    ///
    /// # Errors
    ///
    /// As [`Region::new`].
    pub(crate) fn above_guard(size: usize, guard: usize) -> Result<Self, Error> {
        let size = size.next_multiple_of(4096);
        let failed = || Error::system("mmap of a thread's memory")(io::Error::last_os_error());
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing.
        let all = unsafe {
            libc::mmap(
                ptr::null_mut(),
                guard + size + GUARD,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if all == libc::MAP_FAILED {
            return Err(failed());
        }
        let low = all.cast::<u8>().wrapping_add(guard);
        // SAFETY: inside the mapping made above.
        if unsafe { libc::mprotect(low.cast(), size, libc::PROT_READ | libc::PROT_WRITE) } != 0 {
            let error = failed();
            // SAFETY: the mapping made above, which nobody knows yet.
            unsafe { libc::munmap(all, guard + size + GUARD) };
            return Err(error);
        }
        let low = NonNull::new(low).ok_or_else(failed)?;
        sanitizer::add_root(low.as_ptr(), size);
        MAPPED.fetch_add(size as u64, Ordering::Relaxed);
        Ok(Self { low, size, guard })
    }

    /// First byte.
    pub(crate) fn low(&self) -> *mut u8 {
        self.low.as_ptr()
    }

    /// The same.
    pub(crate) fn place(&self) -> NonNull<u8> {
        self.low
    }

    /// First byte after the memory.
    pub(crate) fn top(&self) -> *mut u8 {
        self.low.as_ptr().wrapping_add(self.size)
    }

    /// Bytes.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Gives the memory of all but the first `kept` bytes, whole pages, back to the system: it reads as zero afterwards.
    pub(crate) fn shrink(&self, kept: usize) {
        let rest = self.low().wrapping_add(kept);
        // SAFETY: inside the region; its owner has nothing there any more.
        unsafe { libc::madvise(rest.cast(), self.size - kept, libc::MADV_DONTNEED) };
    }

    /// Whether the address lies in the guard below.
    pub(crate) fn is_below(&self, address: u64) -> bool {
        let low = self.low() as u64;
        (low - self.guard as u64..low).contains(&address)
    }

    /// Whether the address lies inside, at its end, or in the guard below: that of a stack pointer, however deep it went.
    pub(crate) fn reaches(&self, address: u64) -> bool {
        self.holds(address, 0) || self.is_below(address)
    }

    /// Whether that many bytes from `address` on lie inside.
    pub(crate) fn holds(&self, address: u64, bytes: usize) -> bool {
        let low = self.low() as u64;
        bytes <= self.size && (low..=low + (self.size - bytes) as u64).contains(&address)
    }

    /// Whether `address` and the 7 bytes after it lie inside.
    pub(crate) fn holds_word(&self, address: u64) -> bool {
        self.holds(address, 8)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        sanitizer::remove_root(self.low(), self.size);
        let all = self.low().wrapping_sub(self.guard);
        // SAFETY: the mapping made in above_guard(); nobody uses it after its owner.
        unsafe { libc::munmap(all.cast(), self.guard + self.size + GUARD) };
        MAPPED.fetch_sub(self.size as u64, Ordering::Relaxed);
    }
}
