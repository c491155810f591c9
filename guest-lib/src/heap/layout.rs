//! What lies in a domain's first page, and how its extents are divided.
//!
//! ```text
//! extent 0:  DomainHeader | starts | fills | heap ...
//! extent n:  starts | fills | heap ...
//! large one: LargeHeader | levels of starts | levels of fills | starts | fills | heap ...
//! heap:      chunk | chunk | ...        a block, free room or part of a slab, each with a BlockHeader before it
//! ```
//!
//! An extent has two bitmaps with one bit for each 16 bytes. In *starts* it is set where a chunk's bytes
//! begin, so a pointer is known to be a block without reading through it, and the audit finds all
//! chunks. In *fills* it is set where free room is filled with [`POISON`] and must still be, and as a mark in
//! chunks of slabs (`slab.rs`). Those of an extent of more than
//! [`PLAIN_PAGES`] pages have levels above them (`sums.rs`), so that nothing in it takes time by its size.

use super::sums;
use std::mem::{align_of, offset_of, size_of};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::control::Extent;
pub(crate) use vmsrs_protocol::heap::{
    BLOCK_HEADER, BlockHeader, GRAIN, RED_ZONE_MAX, RED_ZONE_MIN, REVISION, State,
};

use super::bins::Bins;

/// Marks an initialised domain ("VMSRSDOM").
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"VMSRSDOM");

/// Most extents in one domain. They grow with the domain (`grow.rs`): sixty-five make a terabyte.
pub(crate) const EXTENTS_MAX: usize = 128;

/// Bytes of one bitmap for a page.
pub(crate) const BITMAP_PER_PAGE: usize = PAGE_SIZE as usize / GRAIN / 8;

/// Bytes of an extent's bitmaps for a page.
pub(crate) const MAPS_PER_PAGE: usize = 2 * BITMAP_PER_PAGE;

/// Pages of an extent up to which its bitmaps are looked through word by word.
pub(crate) const PLAIN_PAGES: usize = 1024;

/// Words of one bitmap of an extent.
pub(crate) const fn bitmap_words(pages: usize) -> usize {
    pages * BITMAP_PER_PAGE / size_of::<u64>()
}

/// Bytes that the levels of one bitmap of an extent have.
pub(crate) const fn levels_bytes(pages: usize) -> usize {
    if pages <= PLAIN_PAGES {
        return 0;
    }
    let bytes = sums::total(bitmap_words(pages)) * size_of::<u64>();
    bytes.next_multiple_of(64)
}

/// How far before an extent's bitmaps the levels of bitmap number `map` begin, if those of one have that many bytes.
pub(crate) const fn levels_before_maps(map: usize, bytes: usize) -> usize {
    (2 - map) * bytes
}

/// Starts a large extent, after the domain's header if it is the first one. All zero in a new one.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LargeHeader {
    /// From this address on nothing of the extent was ever written.
    pub(crate) fresh: u64,
    /// Bound to `fresh` and its place.
    pub(crate) check: u64,
}

/// Starts a domain's first page. All zero in a new domain.
#[repr(C)]
pub(crate) struct DomainHeader {
    /// [`MAGIC`], or 0 in a new domain.
    pub(crate) magic: u64,
    /// [`FINGERPRINT`] of the library that initialised it.
    pub(crate) fingerprint: u64,
    /// The server's root pointer.
    pub(crate) root: u64,
    /// Blocks, those in quarantine included.
    pub(crate) blocks: u64,
    /// The domain's number.
    pub(crate) domain: u32,
    /// Entries in use in `extents`; the heap has them all.
    pub(crate) extent_count: u32,
    /// Bound to `domain`, `extent_count` and the extents in use.
    pub(crate) extents_check: u64,
    /// The extents, as the host gave them.
    pub(crate) extents: [Extent; EXTENTS_MAX],
    /// Lists of free room.
    pub(crate) bins: Bins,
}

/// Identifies the layout: a domain written by a library with another one is refused.
pub(crate) const FINGERPRINT: u64 = {
    let numbers = [
        size_of::<DomainHeader>(),
        align_of::<DomainHeader>(),
        offset_of!(DomainHeader, bins),
        EXTENTS_MAX,
        GRAIN,
        MAPS_PER_PAGE,
        PLAIN_PAGES,
        size_of::<LargeHeader>(),
        REVISION,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < numbers.len() {
        hash = fnv(hash, &numbers[index].to_le_bytes());
        index += 1;
    }
    fnv(hash, env!("CARGO_PKG_VERSION").as_bytes())
};

/// FNV-1a (<http://www.isthe.com/chongo/tech/comp/fnv/>).
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x0100_0000_01b3);
        index += 1;
    }
    hash
}

const _: () = assert!(
    size_of::<DomainHeader>() + 4 * MAPS_PER_PAGE < 3 * PAGE_SIZE as usize / 4,
    "the first page has room for a heap after header and bitmaps"
);

/// The value of [`DomainHeader::extents_check`].
pub(crate) fn extents_check(domain: u32, extents: &[Extent]) -> u64 {
    let start = u64::from(domain) << 32 | extents.len() as u64;
    extents.iter().fold(start, |hash, extent| {
        let word = u64::from(extent.page) << 32 | u64::from(extent.pages);
        (hash ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    })
}

/// What a red zone is made of.
pub(crate) const RED: u8 = 0xbd;

/// What a freed block is filled with: as a pointer it is not canonical.
pub(crate) const POISON: u8 = 0xdf;

/// Bytes of a freed block that are poisoned: more would draft pages that the request never touched.
pub(crate) const POISON_MAX: usize = 1024;

/// How far after a range a chunk can begin whose header or red zone reaches into the range, rounded up.
pub(crate) const REACH: u64 = (RED_ZONE_MAX + BLOCK_HEADER + GRAIN).next_multiple_of(GRAIN) as u64;

/// Least room of a block of `size` bytes: the block and the shortest red zone that ends at a grain.
pub(crate) const fn with_red_zone(size: usize) -> usize {
    (size + RED_ZONE_MIN).next_multiple_of(GRAIN)
}
