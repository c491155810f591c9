//! Pages inside of an extent, and what is marked in them.

use super::bits::{WORD, is_zero};
use super::layout::{BITMAP_PER_PAGE, GRAIN};
use std::mem::size_of;
use vmsrs_protocol::PAGE_SIZE;

const PAGE: u64 = PAGE_SIZE as u64;
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

/// Pages in the middle of a large extent, and the first level above their bits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Middle {
    /// First byte of the extent.
    pub(super) start: u64,
    pub(super) low: u64,
    pub(super) bytes: u64,
    pub(super) starts: *const u64,
    pub(super) fills: *const u64,
}

impl Middle {
    /// No pages.
    pub(super) const NONE: Self = Self {
        start: 0,
        low: 0,
        bytes: 0,
        starts: std::ptr::null(),
        fills: std::ptr::null(),
    };

    /// Whether the page at `address` is one of these, and nothing is marked in it, nor in *starts* up to [`WORD`] bytes after it.
    #[inline]
    pub(super) fn has_no_marks(&self, address: u64) -> bool {
        /// Words of a bitmap for a page.
        const WORDS: u64 = PAGE / WORD;
        if address.wrapping_sub(self.low) >= self.bytes {
            return false;
        }
        let number = (address - self.start) / WORD;
        let (word, bit) = ((number / 64) as usize, number % 64);
        // SAFETY: words of the first level of the extent, which the request holds; another page follows.
        let (starts, fills, next) = unsafe {
            (
                self.starts.add(word).read(),
                self.fills.add(word).read(),
                self.starts.add((number + WORDS) as usize / 64).read(),
            )
        };
        let next = next >> ((number + WORDS) % 64) & 1;
        ((starts | fills) >> bit & ((1 << WORDS) - 1)) | next == 0
    }
}
