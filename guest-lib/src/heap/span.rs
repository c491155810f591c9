//! One extent as the heap sees it: its two bitmaps, and the chunks after them.

use super::bits::{Bits, Fills, Starts};
use super::inner::Inner;
use super::layout::{
    BITMAP_PER_PAGE, DomainHeader, GRAIN, LargeHeader, MAPS_PER_PAGE, PLAIN_PAGES,
    levels_before_maps, levels_bytes,
};
use super::{Damage, check_zero};
use std::mem::size_of;
use std::ops::Range;
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::control::Extent;

const PAGE: u64 = PAGE_SIZE as u64;
const STEP: u64 = GRAIN as u64;

/// Bytes for which [`LargeHeader::fresh`] is moved on, so that few requests write it.
const FRESH_STEP: u64 = 1 << 20;

/// An extent's addresses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    /// First byte of the extent.
    start: u64,
    maps: u64,
    pages: usize,
}

/// Bytes that a large extent has before its bitmaps.
// Away from what all extents have to do.
#[cold]
#[inline(never)]
fn before_maps(pages: usize) -> u64 {
    (size_of::<LargeHeader>() + levels_before_maps(0, levels_bytes(pages))) as u64
}

impl Span {
    /// Extent `index` of a domain of the app at `base`.
    pub(super) fn new(base: u64, index: usize, extent: Extent) -> Self {
        let start = base + u64::from(extent.page) * PAGE;
        let header = if index == 0 {
            size_of::<DomainHeader>().next_multiple_of(64) as u64
        } else {
            0
        };
        let pages = extent.pages as usize;
        let mut maps = start + header;
        if pages > PLAIN_PAGES {
            maps += before_maps(pages);
        }
        Self { start, maps, pages }
    }

    /// First byte of the extent.
    #[cfg(test)]
    pub(super) fn start(self) -> u64 {
        self.start
    }

    /// Address of the first chunk's header.
    pub(super) fn first(self) -> u64 {
        self.maps + (self.pages * MAPS_PER_PAGE) as u64
    }

    /// First byte after the extent.
    pub(super) fn end(self) -> u64 {
        self.start + self.pages as u64 * PAGE
    }

    /// Whether a chunk's bytes can begin at the address.
    pub(super) fn can_start(self, address: u64) -> bool {
        address >= self.first() + STEP && address < self.end() && address.is_multiple_of(STEP)
    }

    /// Whether its bitmaps have levels above them.
    #[inline]
    pub(super) fn is_large(self) -> bool {
        self.pages > PLAIN_PAGES
    }

    /// Where the bytes of chunks begin.
    #[inline]
    pub(super) fn starts(self) -> Starts {
        Bits::new(self.start, self.end(), self.maps)
    }

    /// Which free room is filled.
    #[inline]
    pub(super) fn fills(self) -> Fills {
        Bits::new(self.start, self.end(), self.maps)
    }

    /// The header of a large extent.
    pub(super) fn large_header(self) -> *mut LargeHeader {
        (self.maps - before_maps(self.pages)) as *mut LargeHeader
    }

    /// The header of a large extent from whose address `fresh` on nothing was ever written.
    fn fresh_from(self, fresh: u64) -> LargeHeader {
        let place = self.large_header() as u64;
        let check = (fresh ^ place.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        LargeHeader { fresh, check }
    }

    /// From which address on the extent is known to be zero: nothing was ever written there.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::HeapCorrupt`].
    #[inline]
    pub(super) fn fresh(self) -> Result<u64, Damage> {
        if self.is_large() {
            self.large_fresh()
        } else {
            Ok(self.end())
        }
    }

    #[cold]
    fn large_fresh(self) -> Result<u64, Damage> {
        let place = self.large_header();
        // SAFETY: in the extent, which the request holds.
        let header = unsafe { place.read() };
        if header != self.fresh_from(header.fresh) {
            return Err(Damage::corrupt(place as u64));
        }
        Ok(header.fresh)
    }

    /// Notes in a new extent that nothing was ever written in it.
    pub(super) fn begin(self) {
        if self.is_large() {
            // SAFETY: in the extent, which the request holds.
            unsafe { self.large_header().write(self.fresh_from(self.first())) };
        }
    }

    /// Whether a page of the extent is one where nothing was ever written. Anything in it is damage: it is known to be zero.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::HeapCorrupt`].
    pub(super) fn check_fresh(self, page: u64) -> Result<bool, Damage> {
        if !self.is_large() || page < self.fresh()? {
            return Ok(false);
        }
        // SAFETY: a page of the extent, which the request holds.
        unsafe { check_zero(page, page + PAGE) }.map(|()| true)
    }

    /// Notes that what is below an address will be written.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::HeapCorrupt`].
    #[inline]
    pub(super) fn touch(self, below: u64) -> Result<(), Damage> {
        if self.is_large() {
            self.touch_large(below)
        } else {
            Ok(())
        }
    }

    #[cold]
    fn touch_large(self, below: u64) -> Result<(), Damage> {
        if below > self.fresh()? {
            let fresh = below.next_multiple_of(FRESH_STEP).min(self.end());
            // SAFETY: in the extent, which the request holds.
            unsafe { self.large_header().write(self.fresh_from(fresh)) };
        }
        Ok(())
    }

    /// Whether an address lies in what stands above the bitmaps.
    pub(super) fn is_above_maps(self, address: u64) -> bool {
        self.is_large() && address < self.maps
    }

    /// Pages of the extent that were written, and have neither bitmaps nor an end of the extent near them.
    ///
    /// # Errors
    ///
    /// [`crate::Kind::HeapCorrupt`].
    #[inline]
    pub(super) fn inner(self) -> Result<Inner, Damage> {
        let low = (self.first() + STEP).next_multiple_of(PAGE);
        // What comes after the last one is looked at with it.
        let high = self.fresh()?.min(self.end() - PAGE) & !(PAGE - 1);
        Ok(Inner {
            low,
            bytes: high.saturating_sub(low),
            starts: (self.maps + (low - self.start) / (8 * STEP)) as *const u64,
            fills: self.pages * BITMAP_PER_PAGE / size_of::<u64>(),
        })
    }

    /// The addresses that the bits in a range of the extent stand for: those of *starts* and of *fills*.
    pub(super) fn mapped(self, from: u64, to: u64) -> (Range<u64>, Range<u64>) {
        let bytes = (self.pages * BITMAP_PER_PAGE) as u64;
        let range = |map: u64| {
            let address = |at: u64| self.start + (at.clamp(map, map + bytes) - map) * 8 * STEP;
            address(from)..address(to)
        };
        (range(self.maps), range(self.maps + bytes))
    }
}
