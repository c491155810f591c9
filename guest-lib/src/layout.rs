//! What lies in a domain's first page, and how blocks look.
//!
//! ```text
//! extent 0:  DomainHeader | bitmap | heap ...
//! extent n:  bitmap | heap ...
//! block:     BlockHeader | bytes | red zone
//! ```
//!
//! An extent's bitmap has one bit for each 16 bytes of the extent: set where a block's bytes begin.
//! So a pointer is known to be a block without reading through it, and the audit finds all blocks.
//! A bit stands for [`GRAIN`] bytes, the least alignment of a block.

use crate::heap::Growth;
use dlmalloc::Dlmalloc;
use std::mem::{MaybeUninit, align_of, offset_of, size_of};
use vmsrs_protocol::PAGE_SIZE;
use vmsrs_protocol::control::Extent;
pub(crate) use vmsrs_protocol::heap::{BLOCK_HEADER, BlockHeader, GRAIN, State};

/// Marks an initialised domain ("VMSRSDOM").
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"VMSRSDOM");

/// Most extents in one domain. They grow with the domain up to 4 MiB each: about 470 MiB in all.
pub(crate) const EXTENTS_MAX: usize = 128;

/// Bytes of bitmap for a page.
pub(crate) const BITMAP_PER_PAGE: usize = PAGE_SIZE as usize / GRAIN / 8;

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
    /// Entries in use in `extents`.
    pub(crate) extent_count: u32,
    /// Bit n: the heap has extent n.
    pub(crate) given: u128,
    /// The extents, as the host gave them.
    pub(crate) extents: [Extent; EXTENTS_MAX],
    /// The heap's state; initialised when `magic` is.
    pub(crate) heap: MaybeUninit<Dlmalloc<Growth>>,
}

/// Identifies the layout: a domain written by a library with another one is refused.
///
/// The order of a Rust structure's fields is the compiler's choice, so its version counts too.
pub(crate) const FINGERPRINT: u64 = {
    let numbers = [
        size_of::<DomainHeader>(),
        align_of::<DomainHeader>(),
        offset_of!(DomainHeader, heap),
        size_of::<Dlmalloc<Growth>>(),
        EXTENTS_MAX,
        GRAIN,
    ];
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut index = 0;
    while index < numbers.len() {
        hash = fnv(hash, &numbers[index].to_le_bytes());
        index += 1;
    }
    hash = fnv(hash, env!("VMSRS_RUSTC").as_bytes());
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
    size_of::<DomainHeader>() + 4 * BITMAP_PER_PAGE < 3 * PAGE_SIZE as usize / 4,
    "the first page has room for a heap behind header and bitmap"
);

/// What a red zone is made of.
pub(crate) const RED: u8 = 0xbd;

/// What a freed block is filled with: as a pointer it is no canonical address.
pub(crate) const POISON: u8 = 0xdf;

/// Bytes of a freed block that are poisoned: more would draft pages that the request never touched.
pub(crate) const POISON_MAX: usize = 1024;

/// Bytes from a block's first to the end of its red zone. The zone has 8 to 23 bytes, and together
/// with the allocator's own word a block wastes nothing.
pub(crate) const fn with_red_zone(size: usize) -> usize {
    size.next_multiple_of(GRAIN) + 8
}
