//! Memory for the duration of a request: one bump allocator per thread, reset at the end.

use crate::error::Error;
use crate::os::region::Region;
use std::alloc::Layout;
use std::cell::Cell;
use std::ptr::NonNull;

/// Bytes that one request can take from its arena.
pub const ARENA_SIZE: usize = 16 * 1024 * 1024;

/// What is kept of a used arena for the next request; the rest goes back to the system.
const KEEP: usize = 256 * 1024;

/// Memory for the duration of one request, unversioned: no page faults after the first use, no
/// drafts. Nothing in it is dropped.
#[derive(Debug)]
pub struct Arena {
    region: Region,
    used: Cell<usize>,
}

impl Arena {
    pub(crate) fn new() -> Result<Self, Error> {
        Ok(Self {
            region: Region::new(ARENA_SIZE)?,
            used: Cell::new(0),
        })
    }

    /// Takes `size` bytes aligned to `alignment`, a power of two up to 4096; `None` when the arena
    /// is used up or the alignment is invalid.
    #[must_use]
    pub fn allocate(&self, size: usize, alignment: usize) -> Option<NonNull<u8>> {
        if !alignment.is_power_of_two() || alignment > 4096 {
            return None;
        }
        let start = self.used.get().next_multiple_of(alignment);
        let end = start.checked_add(size)?;
        if end > self.region.size() {
            return None;
        }
        self.used.set(end);
        NonNull::new(self.region.low().wrapping_add(start))
    }

    /// Moves a value into the arena; `None` when it is used up.
    #[expect(clippy::mut_from_ref, reason = "every call gives another piece")]
    pub fn alloc<T: Copy>(&self, value: T) -> Option<&mut T> {
        let layout = Layout::new::<T>();
        let place = self.allocate(layout.size(), layout.align())?.cast::<T>();
        // SAFETY: fresh, aligned, large enough, and nobody else's until the arena is reset, which
        // happens after the request that the borrow of self is bound to.
        unsafe {
            place.write(value);
            Some(&mut *place.as_ptr())
        }
    }

    /// Copies a slice into the arena; `None` when it is used up.
    #[expect(clippy::mut_from_ref, reason = "every call gives another piece")]
    pub fn alloc_slice<T: Copy>(&self, values: &[T]) -> Option<&mut [T]> {
        let layout = Layout::for_value(values);
        let place = self.allocate(layout.size(), layout.align())?.cast::<T>();
        // SAFETY: as in alloc(); the source cannot overlap fresh memory.
        unsafe {
            place.copy_from_nonoverlapping(NonNull::from(values).cast(), values.len());
            Some(std::slice::from_raw_parts_mut(place.as_ptr(), values.len()))
        }
    }

    /// Copies a string into the arena; `None` when it is used up.
    pub fn alloc_str(&self, text: &str) -> Option<&str> {
        let bytes = self.alloc_slice(text.as_bytes())?;
        std::str::from_utf8(bytes).ok()
    }

    /// Bytes in use.
    #[must_use]
    #[inline]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Frees everything.
    #[inline(never)]
    pub(crate) fn reset(&self) {
        if self.used.replace(0) > KEEP {
            self.region.shrink(KEEP);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_apart_and_gone_after_a_reset() {
        let arena = Arena::new().unwrap();
        let one = arena.alloc(1u8).unwrap();
        let two = arena.alloc(2u64).unwrap();
        assert_eq!((*one, *two), (1, 2));
        assert_eq!(arena.alloc_str("three"), Some("three"));
        assert!((std::ptr::from_ref(two) as usize).is_multiple_of(8));
        arena.reset();
        assert_eq!(arena.used(), 0);
        assert!(arena.allocate(ARENA_SIZE, 1).is_some());
        assert!(arena.allocate(1, 1).is_none());
        arena.reset();
        assert!(arena.allocate(usize::MAX, 16).is_none());
        assert!(arena.allocate(1, 3).is_none());
    }
}
