//! How the library's heap marks its blocks in a domain. The host reads it to tell a developer in
//! which block a changed byte lies; nothing depends on what it finds.
//!
//! ```text
//! block: BlockHeader | bytes | red zone
//! free:  BlockHeader | links of its list | poison, where a block was given back
//! ```

/// Changes whenever blocks are marked in another way.
///
/// cbindgen:ignore
pub const REVISION: usize = 1;

/// Least alignment of a block's address.
///
/// cbindgen:ignore
pub const GRAIN: usize = 16;

/// Least bytes of the red zone after a block.
///
/// cbindgen:ignore
pub const RED_ZONE_MIN: usize = 8;

/// Most bytes of the red zone after a block: it reaches to the next multiple of [`GRAIN`], and takes a
/// remainder of one grain, which is too small for a block.
///
/// cbindgen:ignore
pub const RED_ZONE_MAX: usize = RED_ZONE_MIN + (GRAIN - 1) + GRAIN;

/// State of a block, mixed into its check word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// In use.
    Live = 0x4c49_5645,
    /// Given back by the running request.
    Freed = 0x4652_4545,
    /// Free room.
    Free = 0x524f_4f4d,
}

/// Lies before every block's bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct BlockHeader {
    /// Bound to the block's address, size and state; odd.
    pub check: u64,
    /// Four times the size in bytes, and 2, in the low half; in the high half the room from the block's first
    /// byte to the next header, in units of 16 bytes.
    ///
    /// To glibc, which finds the size of a block of its own there, the 2 means one with a mapping of its own,
    /// and the odd word before it a place where no mapping begins: so its `free` and `realloc` refuse
    /// such a block (`abort`) before they take a lock or change anything.
    pub meta: u64,
}

/// See [`BlockHeader::meta`]: `IS_MMAPPED` of glibc's `malloc.c`.
const MAPPED: u64 = 2;

/// Bytes of a [`BlockHeader`].
///
/// cbindgen:ignore
pub const BLOCK_HEADER: usize = size_of::<BlockHeader>();

impl BlockHeader {
    /// The header of a block of `size` bytes, below 1 GiB, at `address` that has `room` bytes to the next header,
    /// a multiple of 16 below 4 GiB.
    #[inline]
    #[must_use]
    pub fn new(address: u64, size: usize, room: usize, state: State) -> Self {
        let meta = (size as u64) << 2 | MAPPED | ((room / GRAIN) as u64) << 32;
        Self {
            check: check(address, meta, state),
            meta,
        }
    }

    /// Whether this is the header of a block at `address` in that state.
    #[inline]
    #[must_use]
    pub fn is(self, address: u64, state: State) -> bool {
        self.check == check(address, self.meta, state)
    }

    /// Bytes of the block.
    #[inline]
    #[must_use]
    pub fn size(self) -> usize {
        (self.meta & 0xffff_ffff) as usize >> 2
    }

    /// Bytes from the block's first to the next header.
    #[inline]
    #[must_use]
    pub fn room(self) -> usize {
        (self.meta >> 32) as usize * GRAIN
    }
}

/// A finalizer in the manner of `SplitMix64` (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, OOPSLA 2014): one changed bit changes half of the result.
#[inline]
fn check(address: u64, meta: u64, state: State) -> u64 {
    let mut value = address ^ meta.rotate_left(32) ^ ((state as u64) << 17);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (value ^ (value >> 31)) | 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_header_is_good_for_one_address_size_and_state_only() {
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
}
