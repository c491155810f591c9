//! How the heap of the library marks blocks in a domain.
//!
//! The host reads the marks to tell a developer in which block a changed byte lies. Nothing else
//! depends on them.
//!
//! ```text
//! block: BlockHeader | bytes | red zone
//! free:  BlockHeader | links of its list | poison, where a block was freed
//! slab:  BlockHeader | red zone, then its chunks:
//! taken: BlockHeader | bytes | red zone
//! given: BlockHeader | what the server keeps there | poison | red zone
//! ```

/// Revision of the marks.
///
/// cbindgen:ignore
pub const REVISION: usize = 3;

/// Minimum alignment of a block.
///
/// cbindgen:ignore
pub const GRAIN: usize = 16;

/// Minimum size of the red zone after a block in bytes.
///
/// cbindgen:ignore
pub const RED_ZONE_MIN: usize = 8;

/// Maximum size of the red zone after a block in bytes: it is rounded up to [`GRAIN`], and takes a rest of
/// one grain, which is too small for a block.
///
/// cbindgen:ignore
pub const RED_ZONE_MAX: usize = RED_ZONE_MIN + (GRAIN - 1) + GRAIN;

/// State of a block, mixed into its check word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use.
    Live = 0x4c49_5645,
    /// Freed by the running request.
    Freed = 0x4652_4545,
    /// Free space.
    Free = 0x524f_4f4d,
    /// The beginning of a slab. Its chunks follow, as many as are taken or given.
    Slab = 0x4241_5345,
    /// A chunk of a slab, in use.
    Taken = 0x5441_4b45,
    /// A chunk of a slab, free. Its size is what the server keeps of it.
    Given = 0x4749_5645,
}

impl State {
    /// All of them, the likeliest first.
    const ALL: [Self; 6] = [
        Self::Live,
        Self::Free,
        Self::Freed,
        Self::Taken,
        Self::Given,
        Self::Slab,
    ];
}

/// Header before the bytes of a block.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct BlockHeader {
    /// Bound to the block's address, size, room and state; odd.
    pub check: u64,
    /// Bits 28 to 63: bytes from the block to the next header, in units of 16. Bits 2 to 27: how many of these are the red zone's;
    /// 0 for free space. Bit 1 is set, bit 0 is 0.
    ///
    /// glibc has the size of its own blocks at this place. It takes bit 1 for a block with a mapping of
    /// its own, and the odd word before it for an invalid start of a mapping: `free` and `realloc` of
    /// glibc abort on such a block before they take a lock or change anything. A number of 32 MiB or less here would change
    /// what glibc takes for a large block; with the bytes in the upper bits it is more.
    pub meta: u64,
}

/// `IS_MMAPPED` of glibc's `malloc.c`; see [`BlockHeader::meta`].
const MAPPED: u64 = 2;

/// Position and mask of the red zone's bytes in [`BlockHeader::meta`], and position of the room.
const ZONE_SHIFT: u32 = 2;
const ZONE_MASK: u64 = (1 << (ROOM_SHIFT - ZONE_SHIFT)) - 1;
const ROOM_SHIFT: u32 = 28;

const _: () = assert!(RED_ZONE_MAX <= ZONE_MASK as usize);

/// Size of a [`BlockHeader`] in bytes.
///
/// cbindgen:ignore
pub const BLOCK_HEADER: usize = size_of::<BlockHeader>();

impl BlockHeader {
    /// The header of a block of `size` bytes at `address`, with `room` bytes to the next header (a multiple of 16, less than
    /// 1 TiB): as many as the block and its red zone have, which is less than 64 MiB. The size of free space is its room.
    #[inline]
    #[must_use]
    pub fn new(address: u64, size: usize, room: usize, state: State) -> Self {
        let zone = match state {
            State::Free => 0,
            _ => (room - size) as u64,
        };
        debug_assert!(zone <= ZONE_MASK);
        let meta = ((room / GRAIN) as u64) << ROOM_SHIFT | zone << ZONE_SHIFT | MAPPED;
        Self {
            check: check(address, meta, state),
            meta,
        }
    }

    /// Whether this is the header of a block at `address` in this state.
    #[inline]
    #[must_use]
    pub fn is(self, address: u64, state: State) -> bool {
        self.check == check(address, self.meta, state)
    }

    /// The state of a block at `address` whose header this is; `None` if it is the header of none.
    #[inline]
    #[must_use]
    pub fn state(self, address: u64) -> Option<State> {
        let sum = self.check.wrapping_mul(INVERSE);
        let state = sum.wrapping_sub(address).wrapping_sub(self.meta);
        State::ALL.into_iter().find(|&known| known as u64 == state)
    }

    /// Size of the block in bytes.
    #[inline]
    #[must_use]
    pub fn size(self) -> usize {
        self.room().wrapping_sub(self.red_zone())
    }

    /// Size of its red zone in bytes; 0 for free space.
    #[inline]
    #[must_use]
    pub fn red_zone(self) -> usize {
        (self.meta >> ZONE_SHIFT & ZONE_MASK) as usize
    }

    /// Bytes from the block to the next header.
    #[inline]
    #[must_use]
    pub fn room(self) -> usize {
        (self.meta >> ROOM_SHIFT) as usize * GRAIN
    }
}

/// Multiplication by an odd number (that of `SplitMix64`: Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA
/// 2014) maps no two sums to one result.
const FACTOR: u64 = 0xbf58_476d_1ce4_e5b9;

/// Takes the multiplication back (Newton: each step doubles the number of bits that are right, of which an odd number has three).
const INVERSE: u64 = {
    let mut inverse = FACTOR;
    let mut bits = 3;
    while bits < u64::BITS {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(FACTOR.wrapping_mul(inverse)));
        bits *= 2;
    }
    inverse
};

/// Three instructions, since each audit of a page computes it for every block on it. Of what is added, only the state is odd.
#[inline]
fn check(address: u64, meta: u64, state: State) -> u64 {
    let sum = address.wrapping_add(meta).wrapping_add(state as u64);
    sum.wrapping_mul(FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_header_matches_one_address_size_and_state() {
        let header = BlockHeader::new(0x1000, 40, 64, State::Live);
        assert!(header.is(0x1000, State::Live));
        assert!(!header.is(0x1010, State::Live));
        assert!(!header.is(0x1000, State::Freed));
        assert_eq!((header.size(), header.room()), (40, 64));
        let other = BlockHeader {
            meta: header.meta + 1,
            ..header
        };
        assert!(!other.is(0x1000, State::Live));
    }

    #[test]
    fn glibc_takes_no_block_for_a_small_one_with_a_mapping() {
        // DEFAULT_MMAP_THRESHOLD_MAX
        let max = 32 << 20;
        assert!(BlockHeader::new(0x1000, 0, 16, State::Live).meta > max);
        assert!(BlockHeader::new(0x1000, 0, 16, State::Freed).meta & MAPPED != 0);
    }

    #[test]
    fn every_changed_bit_of_a_block_header_is_seen() {
        let large = (1 << 40) - (1 << 35);
        for (address, size, room) in [
            (0x1000, 40, 64),
            (0x7f12_3456_7890, 100, 112),
            (0x1100_0000_0010, large - 39, large),
        ] {
            for state in State::ALL {
                let header = BlockHeader::new(address, size, room, state);
                let size = if state == State::Free { room } else { size };
                assert_eq!((header.size(), header.room()), (size, room));
                assert_eq!(header.state(address), Some(state));
                assert_eq!(header.state(address + 16), None);
                let BlockHeader { check, meta } = header;
                assert!(check % 2 == 1);
                for flip in (0..64).map(|bit| 1 << bit) {
                    let check = check ^ flip;
                    assert!(!BlockHeader { check, meta }.is(address, state));
                }
                for flip in (0..64).map(|bit| 1 << bit) {
                    let meta = meta ^ flip;
                    assert!(!BlockHeader { check, meta }.is(address, state));
                    let header = BlockHeader::new(address, size, room, state);
                    assert!(!header.is(address ^ flip, state));
                }
            }
        }
    }
}
