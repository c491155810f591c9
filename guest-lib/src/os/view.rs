//! Read-only bytes that do not change.

use super::live::{self, Ticket};
use std::io;
use std::mem;
use std::ptr::{self, NonNull};

/// Bytes in pages of a mapping of their own, which only this process has. Unmapped when dropped: once, also if there are copies of
/// the view, and only by the process that has it.
#[derive(Debug)]
pub(crate) struct View {
    first: NonNull<u8>,
    length: usize,
    ticket: Ticket,
}

// SAFETY: nobody writes them.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}

/// Unmaps the pages that so many bytes are in.
///
/// # Safety
///
/// They are a mapping that nobody uses any more.
unsafe fn unmap(first: NonNull<u8>, length: usize) {
    let start = first.as_ptr().map_addr(|first| first & !4095);
    let end = (first.as_ptr().addr() + length).next_multiple_of(4096);
    // SAFETY: by contract.
    unsafe { libc::munmap(start.cast(), end - start.addr()) };
}

impl View {
    /// Takes over a mapping of the calling process's: the pages that so many bytes are in. It is unmapped in case of an error.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the process has too many views, and those of `mmap`.
    ///
    /// # Safety
    ///
    /// Nobody else unmaps it, and nobody writes to it.
    pub(crate) unsafe fn new(first: NonNull<u8>, length: usize) -> io::Result<Self> {
        match live::add(first.as_ptr().addr() as u64, length as u64) {
            Ok(ticket) => Ok(Self {
                first,
                length,
                ticket,
            }),
            Err(error) => {
                // SAFETY: it is the caller's, who gives it up.
                unsafe { unmap(first, length) };
                Err(error)
            }
        }
    }

    /// A copy of so many bytes, at least one.
    ///
    /// # Errors
    ///
    /// Those of `mmap`, and of [`View::new`].
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
            let view = Self::new(first, length)?;
            first.copy_from_nonoverlapping(bytes, length);
            libc::mprotect(place, length, libc::PROT_READ);
            Ok(view)
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: they are mapped as long as the view lives, and never change.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.length) }
    }

    /// What [`View::from_parts`] takes: the first byte, their number, and three words, not all of them 0. The view stays mapped.
    pub(crate) fn into_parts(self) -> (NonNull<u8>, usize, [u64; 3]) {
        let parts = (
            self.first,
            self.length,
            [self.ticket.place, self.ticket.serial, self.ticket.table],
        );
        mem::forget(self);
        parts
    }

    /// The view with these parts, which may be anything: only what is one of this process's views can be ended.
    ///
    /// # Safety
    ///
    /// Nobody uses the bytes of that view, if it is one.
    pub(crate) unsafe fn from_parts(
        first: NonNull<u8>,
        length: usize,
        [place, serial, table]: [u64; 3],
    ) -> Self {
        Self {
            first,
            length,
            ticket: Ticket {
                place,
                serial,
                table,
            },
        }
    }

    /// Unmaps it. Returns whether the process has had it.
    pub(crate) fn end(self) -> bool {
        let is_ours = self.close();
        mem::forget(self);
        is_ours
    }

    fn close(&self) -> bool {
        let is_ours = live::remove(
            self.ticket,
            self.first.as_ptr().addr() as u64,
            self.length as u64,
        );
        if is_ours {
            // SAFETY: a mapping of this process's, which nobody uses after its owner; nobody else finds it in the table.
            unsafe { unmap(self.first, self.length) };
        }
        is_ours
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_a_view_that_was_ended_unmaps_nothing() {
        let bytes = [7; 5000];
        // SAFETY: an array's bytes.
        let make = || unsafe { View::copy_of(NonNull::from(&bytes).cast(), bytes.len()) }.unwrap();
        let (first, length, words) = make().into_parts();
        // SAFETY: nobody uses them.
        let copy = || unsafe { View::from_parts(first, length, words) };
        assert!(copy().end());
        // What another one has mapped there meanwhile.
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        let place = first.as_ptr().cast();
        // SAFETY: not over any other mapping.
        let theirs = unsafe { libc::mmap(place, length, libc::PROT_READ, flags, -1, 0) };
        assert!(!copy().end());
        drop(copy());
        // Or another test's threads were faster.
        if theirs == place {
            // SAFETY: the mapping made above.
            unsafe {
                assert_eq!(first.as_ptr().read_volatile(), 0);
                libc::munmap(place, length);
            }
        }
        let view = make();
        assert_eq!(view.bytes(), bytes);
        assert!(view.end());
    }
}
