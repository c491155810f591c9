//! Memory for the duration of a request: one bump allocator per thread, reset at the end.
//!
//! Blocks grow upwards. Input grows downwards from the end, behind which no page can be touched.

use crate::error::Error;
use crate::os::region::Region;
use std::alloc::Layout;
use std::cell::{Cell, UnsafeCell};
use std::fmt;
use std::ptr::NonNull;

mod zones;

/// Bytes that one request can take from its arena, unless [`crate::Options::arena`] has made it larger.
pub const ARENA_SIZE: usize = 16 * 1024 * 1024;

/// Bytes that an arena has at most.
pub(crate) const ARENA_MAX: usize = 1 << 36;

/// What is kept of a used arena for the next request; the rest goes back to the system.
const KEEP: usize = 256 * 1024;

const PAGE: usize = 4096;

/// What is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Level {
    /// Bytes at the start.
    low: usize,
    /// Bytes at the end.
    high: usize,
}

/// Memory for the duration of one request, unversioned: no page faults after the first use, no
/// drafts. Nothing in it is dropped.
pub struct Arena {
    /// Replaced by a larger one between requests alone.
    region: UnsafeCell<Region>,
    start: Cell<NonNull<u8>>,
    size: Cell<usize>,
    /// Bytes at the start that are in use.
    low: Cell<usize>,
    /// All bytes that are in use.
    used: Cell<usize>,
    /// Pages between several inputs cannot be touched.
    is_split: Cell<bool>,
    /// What stays in use for those who are called after the commit of a request.
    held: Cell<Level>,
    /// Where the blocks of a request begin that has them checked, and kept after its end.
    checked: Cell<Option<usize>>,
}

impl fmt::Debug for Arena {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Arena")
            .field("size", &self.size.get())
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

impl Arena {
    pub(crate) fn new() -> Result<Self, Error> {
        let region = Region::new(ARENA_SIZE)?;
        Ok(Self {
            start: Cell::new(region.place()),
            size: Cell::new(region.size()),
            region: UnsafeCell::new(region),
            low: Cell::new(0),
            used: Cell::new(0),
            is_split: Cell::new(false),
            held: Cell::default(),
            checked: Cell::new(None),
        })
    }

    fn at(&self, offset: usize) -> *mut u8 {
        self.start.get().as_ptr().wrapping_add(offset)
    }

    fn level(&self) -> Level {
        let low = self.low.get();
        let high = self.used.get() - low;
        Level { low, high }
    }

    fn set_level(&self, level: Level) {
        self.low.set(level.low);
        self.used.set(level.low + level.high);
    }

    /// Takes `size` bytes aligned to `alignment`, a power of two up to 4096; `None` when the arena
    /// is used up or the alignment is invalid.
    #[must_use]
    pub fn allocate(&self, size: usize, alignment: usize) -> Option<NonNull<u8>> {
        if !alignment.is_power_of_two() || alignment > PAGE {
            return None;
        }
        if self.checked.get().is_some() {
            return self.allocate_checked(size, alignment);
        }
        let Level { low, high } = self.level();
        let start = low.next_multiple_of(alignment);
        self.take_to(start.checked_add(size)?, high)?;
        NonNull::new(self.at(start))
    }

    /// From here on the bytes up to `low` are in use.
    fn take_to(&self, low: usize, high: usize) -> Option<()> {
        if low > self.size.get() - high {
            return None;
        }
        self.set_level(Level { low, high });
        Some(())
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

    /// Copies bytes that were received to where a page follows that nobody can touch: code that reads behind them fails its request
    /// at the first byte. They begin wherever their length says, so at any alignment. `None` when the arena is used up.
    ///
    /// The first input of a request costs the copy; each further one a system call, too, and one more at the request's end.
    #[expect(clippy::mut_from_ref, reason = "every call gives another piece")]
    pub fn input(&self, bytes: &[u8]) -> Option<&mut [u8]> {
        let place = self.allocate_input(bytes.len())?;
        // SAFETY: as in alloc_slice(); bytes have no alignment.
        unsafe {
            place.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len());
            Some(std::slice::from_raw_parts_mut(place.as_ptr(), bytes.len()))
        }
    }

    /// Takes `size` bytes that end where no page can be touched.
    pub(crate) fn allocate_input(&self, size: usize) -> Option<NonNull<u8>> {
        let (Level { low, high }, all) = (self.level(), self.size.get());
        let mut end = all;
        if high != 0 {
            // The page below the one that has the first byte of the input before.
            end = ((all - high) & !(PAGE - 1)).checked_sub(PAGE)?;
        }
        let start = end.checked_sub(size).filter(|&start| start >= low)?;
        if end != all {
            // SAFETY: a page that nobody uses: below all inputs, and above all blocks.
            let closed = unsafe { libc::mprotect(self.at(end).cast(), PAGE, libc::PROT_NONE) };
            self.is_split.set(true);
            if closed != 0 {
                return None;
            }
        }
        // An empty one takes a byte, so that the next one does not end there as well.
        let high = (all - start).max(1);
        self.set_level(Level { low, high });
        NonNull::new(self.at(start))
    }

    /// Bytes in use.
    #[must_use]
    #[inline]
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Frees everything that is not held.
    #[inline(never)]
    pub(crate) fn reset(&self) {
        let (used, held) = (self.used.get(), self.held.get());
        self.set_level(held);
        self.checked.set(None);
        if self.is_split.replace(false) {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: the arena's memory. Should the kernel have no memory for that, an input ends earlier than it might.
            unsafe { libc::mprotect(self.at(0).cast(), self.size.get(), rights) };
        }
        if used > KEEP && held == Level::default() {
            // SAFETY: only replaced by enlarge(), on this thread.
            unsafe { &*self.region.get() }.shrink(KEEP);
        }
    }

    /// What is in use stays so, until what was held before is held again.
    pub(crate) fn hold(&self) -> Level {
        self.held.replace(self.level())
    }

    pub(crate) fn hold_again(&self, before: Level) {
        self.held.set(before);
    }

    /// Has at least that many bytes. The arena is empty.
    ///
    /// # Errors
    ///
    /// [`Error::Argument`] for more than [`ARENA_MAX`], or while some are held; [`Error::System`].
    pub(crate) fn enlarge(&self, bytes: usize) -> Result<(), Error> {
        if bytes <= self.size.get() {
            return Ok(());
        }
        if bytes > ARENA_MAX {
            return Err(Error::Argument("an arena has at most 64 GiB"));
        }
        if self.held.get() != Level::default() {
            return Err(Error::Argument(
                "the arena is in use by what is called after a commit",
            ));
        }
        self.reset();
        let larger = Region::new(bytes)?;
        self.start.set(larger.place());
        self.size.set(larger.size());
        // SAFETY: it is empty, and nobody has a reference to it.
        drop(unsafe { std::mem::replace(&mut *self.region.get(), larger) });
        Ok(())
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
        assert!(arena.input(&[1]).is_none());
        arena.reset();
        assert!(arena.allocate(usize::MAX, 16).is_none());
        assert!(arena.allocate(1, 3).is_none());
    }

    /// Whether the byte at that address can be read.
    fn is_readable(address: u64) -> bool {
        let mut byte = 0u8;
        let iovec = |base: *mut libc::c_void| libc::iovec {
            iov_base: base,
            iov_len: 1,
        };
        let (to, from) = (iovec((&raw mut byte).cast()), iovec(address as *mut _));
        // SAFETY: one byte, to the variable.
        unsafe {
            libc::process_vm_readv(libc::getpid(), &raw const to, 1, &raw const from, 1, 0) == 1
        }
    }

    #[test]
    fn each_input_ends_at_a_page_that_nobody_can_touch() {
        let arena = Arena::new().unwrap();
        for round in 0..2 {
            let sizes = [5, 0, 4096, 1, 100_000];
            let inputs = sizes.map(|size| {
                let bytes = vec![size as u8; size];
                let input = arena.input(&bytes).unwrap();
                assert_eq!(input, bytes);
                (input.as_ptr() as u64, size as u64)
            });
            for (start, size) in inputs {
                assert!(!is_readable(start + size), "{round}: {size}");
                assert!(size == 0 || is_readable(start + size - 1));
            }
            let block = arena.alloc(7u64).unwrap();
            assert_eq!(*block, 7);
            arena.reset();
            assert_eq!(arena.used(), 0);
            let all = arena.allocate(ARENA_SIZE, 16).unwrap();
            // SAFETY: what was just taken.
            unsafe { all.write_bytes(1, ARENA_SIZE) };
            arena.reset();
        }
    }

    #[test]
    fn what_is_held_outlives_a_reset() {
        let arena = Arena::new().unwrap();
        let (block, input) = (arena.alloc(1u64).unwrap(), arena.input(&[2; 3]).unwrap());
        let before = arena.hold();
        *arena.alloc(8u64).unwrap() = 9;
        arena.input(&[9; 3]).unwrap();
        assert!(arena.enlarge(2 * ARENA_SIZE).is_err());
        arena.reset();
        *arena.alloc(8u64).unwrap() = 9;
        arena.reset();
        assert_eq!((*block, &*input), (1, &[2; 3][..]));
        arena.hold_again(before);
        arena.reset();
        assert_eq!(arena.used(), 0);
        arena.enlarge(2 * ARENA_SIZE).unwrap();
        assert!(arena.allocate(2 * ARENA_SIZE, 1).is_some());
    }
}
