//! Pages inside of an extent, and what is marked in them.

use super::bits::{WORD, is_zero};
use super::layout::{BITMAP_PER_PAGE, GRAIN};
use std::mem::size_of;

const STEP: u64 = GRAIN as u64;

/// Pages inside of an extent, and their bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inner {
    pub(super) low: u64,
    pub(super) bytes: u64,
    /// The word of the first page's first bit in *starts*.
    pub(super) starts: *const u64,
    /// Words from there to the same in *fills*.
    pub(super) fills: usize,
}

impl Inner {
    /// No pages.
    pub(super) const NONE: Self = Self {
        low: 0,
        bytes: 0,
        starts: std::ptr::null(),
        fills: 0,
    };

    /// What is marked in the page at `address`, if it is one of these: in *starts*, also for the first `after` bytes after
    /// it (a multiple of 16, less than 1024), and in *fills*.
    #[inline]
    pub(super) fn marked(&self, address: u64, after: u64) -> Option<[bool; 2]> {
        const WORDS: usize = BITMAP_PER_PAGE / size_of::<u64>();
        let offset = address.wrapping_sub(self.low);
        if offset >= self.bytes {
            return None;
        }
        let starts = self.starts.wrapping_add((offset / WORD) as usize);
        let fills = starts.wrapping_add(self.fills);
        // SAFETY: words of the bitmaps of an extent that the request holds; another page follows.
        let (starts, next, fills) = unsafe {
            (
                starts.cast::<[u64; WORDS]>().read(),
                starts.add(WORDS).read(),
                fills.cast::<[u64; WORDS]>().read(),
            )
        };
        let next = next & ((1 << (after / STEP)) - 1);
        Some([!is_zero(&starts) || next != 0, !is_zero(&fills)])
    }
}
