//! Read-only pages whose bytes do not change.

use std::io;
use std::ptr::{self, NonNull};

/// Whole pages at an address of their own, which only this process has. Unmapped when dropped.
#[derive(Debug)]
pub(crate) struct View {
    first: NonNull<u8>,
    size: usize,
    /// A child of a fork does not have it.
    process: i32,
}

// SAFETY: nobody writes them.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

impl View {
    /// Takes over a mapping of the calling process's.
    ///
    /// # Safety
    ///
    /// Nobody else unmaps it, and nobody writes to it.
    pub(crate) unsafe fn new(first: NonNull<u8>, size: usize) -> Self {
        // SAFETY: changes nothing.
        let process = unsafe { libc::getpid() };
        Self {
            first,
            size,
            process,
        }
    }

    /// A copy of so many bytes, at least one.
    ///
    /// # Errors
    ///
    /// Those of `mmap`.
    ///
    /// # Safety
    ///
    /// They can be read.
    pub(crate) unsafe fn copy_of(bytes: NonNull<u8>, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing.
        let place = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if place == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(place.cast()).ok_or(io::ErrorKind::InvalidData)?;
        // SAFETY: the new mapping, which is the view's, has room for them; they can be read by contract.
        unsafe {
            let view = Self::new(first, length.next_multiple_of(4096));
            first.copy_from_nonoverlapping(bytes, length);
            libc::mprotect(place, view.size, libc::PROT_READ);
            Ok(view)
        }
    }

    /// The first byte.
    pub(crate) fn first(&self) -> NonNull<u8> {
        self.first
    }

    /// What [`View::from_parts`] takes; the view stays mapped.
    pub(crate) fn into_parts(self) -> [u64; 3] {
        let parts = [
            self.first.as_ptr() as u64,
            self.size as u64,
            self.process as u64,
        ];
        std::mem::forget(self);
        parts
    }

    /// The view with these parts; `None` if the first one is 0.
    ///
    /// # Safety
    ///
    /// They are from [`View::into_parts`], and nobody else has them.
    pub(crate) unsafe fn from_parts([first, size, process]: [u64; 3]) -> Option<Self> {
        Some(Self {
            first: NonNull::new(first as *mut u8)?,
            size: size as usize,
            process: process as i32,
        })
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is this process's, and nobody uses it after its owner.
        unsafe {
            if libc::getpid() == self.process {
                libc::munmap(self.first.as_ptr().cast(), self.size);
            }
        }
    }
}
